"""python -m shop --port 8480"""

import argparse
import signal
import socketserver
import sys
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from shop import monitoring
from shop.app import application


class Server(socketserver.ThreadingMixIn, WSGIServer):
    request_queue_size = 64
    allow_reuse_port = True  # a new release starts beside the old one


class Quiet(WSGIRequestHandler):
    def log_message(self, *arguments):
        pass


def main():
    options = argparse.ArgumentParser(prog="shop")
    options.add_argument("--host", default="127.0.0.1")
    options.add_argument("--port", type=int, default=8480)
    given = options.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    wrapped = monitoring.start()(application)
    with make_server(given.host, given.port, wrapped, Server, Quiet) as server:
        print(f"ready on http://{given.host}:{server.server_port}", flush=True)
        server.serve_forever(poll_interval=0.1)


if __name__ == "__main__":
    main()
