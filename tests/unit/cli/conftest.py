"""A small stack for the supervisor's tests: real processes, but programs of a few lines instead of the services."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from loopwright_cli import supervisor as supervisor_module
from loopwright_cli.stack import Child, Stack
from loopwright_cli.supervisor import Supervisor

# Answers 200 at /readyz; ends at SIGTERM with 0. With "refuse" it ends at once, with a word why.
PROGRAM = """
import http.server, os, signal, sys
if "refuse" in sys.argv:
    sys.exit("LOOPWRIGHT_SMALL_LIMIT is -1; it must be positive")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *arguments):
        pass
def stop(*_):
    print("asked to stop", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("started", flush=True)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def new_child(tmp_path: Path) -> Callable[..., Child]:
    """Makes a child that runs a few lines of Python on a free port."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)

    def make(name: str, *arguments: str, port: int = 0) -> Child:
        port = port or free_port()
        command = (sys.executable, str(program), str(port), *arguments)
        return Child(name, command, {"PATH": os.environ["PATH"]}, ready_url=f"http://127.0.0.1:{port}/readyz", port=port)

    return make


@pytest.fixture
def new_supervisor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_child: Callable[..., Child]
) -> Iterator[Callable[..., tuple[Supervisor, list[str]]]]:
    """Makes a supervisor over small children (nats, the forge and one service, or those given) and the list of what it tells."""
    made: list[Supervisor] = []

    def make(*children: Child, data: Path | None = None) -> tuple[Supervisor, list[str]]:
        chosen = list(children) or [new_child("nats"), new_child("forge"), new_child("small")]
        monkeypatch.setattr(supervisor_module, "children", lambda stack: chosen)
        told: list[str] = []
        supervisor = Supervisor(Stack(data or tmp_path / "data"), told.append)
        made.append(supervisor)
        return supervisor, told

    yield make
    for supervisor in made:
        supervisor.stop()


@pytest.fixture
def until() -> Callable[..., Any]:
    """Waits for something true, for at most 15 seconds."""

    def wait(look: Callable[[], Any], what: str = "it") -> Any:
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            if found := look():
                return found
            time.sleep(0.02)
        raise AssertionError(f"{what} did not happen")

    return wait
