"""Replays what failed: the requests found in example signals, in this process.

LOOPWRIGHT_SIGNALS names a JSON list of signals with "exception_type" and "request" (method, url, query_string).
Exit code 1: the same failure happened again; 0: it did not; 2: there was nothing to replay.
"""

import io
import json
import os
import sys
from urllib.parse import urlsplit

from shop.app import application

REQUESTS_MAX = 50


def replay(request):
    """The name of the exception that the request ends in; empty when it is answered."""
    url = urlsplit(request.get("url") or "/")
    environ = {
        "REQUEST_METHOD": request.get("method") or "GET",
        "PATH_INFO": url.path or "/",
        "QUERY_STRING": request.get("query_string") or url.query,
        "wsgi.input": io.BytesIO(str(request.get("data") or "").encode()),
        "wsgi.errors": sys.stderr,
    }
    try:
        application(environ, lambda status, headers, *_: print(f"  answered {status}"))
    except Exception as error:
        print(f"  raised {type(error).__name__}: {error}")
        return type(error).__name__
    return ""


def main():
    with open(os.environ["LOOPWRIGHT_SIGNALS"], encoding="utf-8") as file:
        signals = json.load(file)
    replayed = failed = 0
    for signal in signals[:REQUESTS_MAX]:
        request, wanted = signal.get("request"), signal.get("exception_type")
        if not request or not wanted:
            continue
        print(f"{request.get('method')} {request.get('url')} {request.get('query_string')}, which raised {wanted}")
        replayed += 1
        failed += replay(request) == wanted
    print(f"{failed} of {replayed} requests failed as they did")
    return 2 if not replayed else 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
