"""Starts the stack, keeps it running, stops it in order. One supervisor per data folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from loopwright_cli.stack import Child, Stack, children

READY_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 15.0
RESTART_SECONDS_FIRST = 0.2
RESTART_SECONDS_MOST = 10.0
STEADY_SECONDS = 30.0  # after that a death is a new one, not the same again
LOG_BYTES_MAX = 20 * 1024 * 1024
LOOK_SECONDS = 0.1
LAUNCH = Path(__file__).with_name("launch.py")


class StartFailed(Exception):
    """The stack did not come up; the message says which part, and the end of its log."""


@dataclass
class Running:
    """A child and how it has fared."""

    child: Child
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    deaths: int = 0
    restart_at: float = 0.0


class Supervisor:
    """``with Supervisor(stack) as supervisor: supervisor.watch()``. ``tell`` hears what happens, in words."""

    def __init__(self, stack: Stack, tell: Callable[[str], None]) -> None:
        self.stack = stack
        self.running = {child.name: Running(child) for child in children(stack)}
        self._tell = tell
        self._lock: IO[str] | None = None
        self._stopping = False

    def __enter__(self) -> Supervisor:
        self._take_lock()
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _take_lock(self) -> None:
        self.stack.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.stack.logs.mkdir(parents=True, exist_ok=True)
        self.stack.pids.mkdir(parents=True, exist_ok=True)
        lock = (self.stack.data / "lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise StartFailed(f"{self.stack.data} is in use by another `loopwright up`. Stop it, or give another --data.") from error
        self._lock = lock

    def start(self) -> None:
        """Starts everything and returns when all are ready. Raises StartFailed."""
        for name, running in self.running.items():
            self._wait_for_predecessor(name)
            if _listens(running.child.port):
                raise StartFailed(f"port {running.child.port} ({name}) is taken. Stop what listens there, or give another --port.")
        self._spawn(self.running["nats"])
        self._wait({"nats"})
        for name, running in self.running.items():
            if name != "nats":
                self._spawn(running)
        self._wait(set(self.running) - {"nats"})

    def _wait_for_predecessor(self, name: str) -> None:
        """Children of a supervisor that was killed are told to stop by the kernel, and may still be finishing what they were at."""
        file = self.stack.pids / f"{name}.pid"
        deadline = time.monotonic() + STOP_SECONDS_MAX
        told = False
        while _is_ours(file, self.running[name].child) and time.monotonic() < deadline:
            if not told:
                self._tell(f"waiting for the former {name} to end")
                told = True
            time.sleep(LOOK_SECONDS)

    def _spawn(self, running: Running) -> None:
        log_file = self.stack.logs / f"{running.child.name}.log"
        with log_file.open("ab") as log:
            running.process = subprocess.Popen(
                [sys.executable, str(LAUNCH), str(os.getpid()), *running.child.command],
                env=running.child.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.stack.data,
            )
        running.started = time.monotonic()
        (self.stack.pids / f"{running.child.name}.pid").write_text(str(running.process.pid))

    def _wait(self, names: set[str]) -> None:
        deadline = time.monotonic() + READY_SECONDS_MAX
        left = set(names)
        while left:
            for name in sorted(left):
                running = self.running[name]
                if self.is_ready(name):
                    left.discard(name)
                    self._tell(f"{name} is ready")
                elif running.process is not None and running.process.poll() == 2:
                    raise StartFailed(f"{name} refused to start:\n{self.tail(name)}")
                elif running.process is not None and running.process.poll() is not None:
                    running.deaths += 1
                    if running.deaths > 5:
                        raise StartFailed(f"{name} ended {running.deaths} times while starting:\n{self.tail(name)}")
                    time.sleep(RESTART_SECONDS_FIRST)
                    self._spawn(running)
            if time.monotonic() > deadline:
                name = sorted(left)[0]
                raise StartFailed(
                    f"{', '.join(sorted(left))} not ready after {READY_SECONDS_MAX:g} s. The end of {name}'s log:\n{self.tail(name)}"
                )
            time.sleep(LOOK_SECONDS)

    def is_ready(self, name: str) -> bool:
        child = self.running[name].child
        if not child.ready_url:
            return _listens(child.port)
        try:
            with urllib.request.urlopen(child.ready_url, timeout=2) as answer:  # noqa: S310  our own http address
                return bool(answer.status == 200)
        except (OSError, urllib.error.HTTPError):
            return False

    def tail(self, name: str, lines: int = 15) -> str:
        """The end of a child's log."""
        try:
            with (self.stack.logs / f"{name}.log").open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - 16_384))
                return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])
        except OSError as error:
            return f"(no log: {error})"

    def pid(self, name: str) -> int | None:
        """The child's process id: the launcher becomes the program, so it is the same."""
        process = self.running[name].process
        return process.pid if process is not None and process.poll() is None else None

    def look_after(self) -> None:
        """Starts again what has died, when it is time. Call it often."""
        now = time.monotonic()
        for name, running in self.running.items():
            if self._stopping or running.process is None or running.process.poll() is None:
                continue
            if running.restart_at == 0.0:
                if now - running.started > STEADY_SECONDS:
                    running.deaths = 0
                delay = min(RESTART_SECONDS_FIRST * 2**running.deaths, RESTART_SECONDS_MOST)
                running.deaths += 1
                running.restart_at = now + delay
                self._tell(f"{name} ended ({_how(running.process.returncode)}); starting it again in {delay:g} s")
            elif now >= running.restart_at:
                running.restart_at = 0.0
                self._spawn(running)

    def watch(self) -> None:
        """Looks after the children until interrupted."""
        rotate_at = 0.0
        while not self._stopping:
            self.look_after()
            if time.monotonic() > rotate_at:
                self._rotate()
                rotate_at = time.monotonic() + 60
            time.sleep(LOOK_SECONDS)

    def _rotate(self) -> None:
        for log in self.stack.logs.glob("*.log"):
            if log.stat().st_size > LOG_BYTES_MAX:
                shutil.copyfile(log, log.with_suffix(".log.1"))
                os.truncate(log, 0)  # children append, so they go on at the new end

    def stop(self) -> None:
        """Stops the services, then the forge, then nats-server; each may finish what it is at."""
        self._stopping = True
        last = [name for name in ("forge", "nats") if name in self.running]
        self._stop([name for name in self.running if name not in last])
        for name in last:
            self._stop([name])
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _stop(self, names: list[str]) -> None:
        processes = [process for name in names if (process := self.running[name].process) is not None and process.poll() is None]
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS_MAX
        for process in processes:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _is_ours(file: Path, child: Child) -> bool:
    """Whether the process a pid file names is alive and runs what this child does: process ids are used again. Linux only."""
    try:
        running = Path(f"/proc/{int(file.read_text())}/cmdline").read_bytes().split(b"\0")[:-1]
    except (OSError, ValueError):
        return False
    return running == [part.encode() for part in child.command]


def _listens(port: int) -> bool:
    with socket.socket() as connection:
        connection.settimeout(0.5)
        return connection.connect_ex(("127.0.0.1", port)) == 0


def _how(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
