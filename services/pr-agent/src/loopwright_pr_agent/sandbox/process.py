"""Runs a confined command to its end: feeds the launcher its job, watches time, memory, processes and output, leaves nobody behind.

Blocking on purpose: one thread per run (``PR_SET_PDEATHSIG`` follows the thread that forked), with the exact resource use from wait4(2).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loopwright_pr_agent.sandbox.port import Limits, Outcome, RunRequest, RunResult, SandboxBroken

LAUNCHER = Path(__file__).with_name("launcher.py")
WATCH_SECONDS = 0.1  # how long a run may be over a limit before it is seen
END_SECONDS = 10.0  # a killed tree ends at once; beyond it a process hangs in the kernel
TICKS = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_OUT_OF_MEMORY = (b"MemoryError", b"Cannot allocate memory", b"std::bad_alloc", b"out of memory", b"heap out of memory")


@dataclass(frozen=True)
class Confined:
    """How an adapter starts a run: the whole command, the launcher's job, and what holds."""

    command: tuple[str, ...]
    job: dict[str, Any]
    isolation: str
    facts: tuple[str, ...]


def rlimits(limits: Limits, processes: int) -> list[tuple[str, int]]:
    """The launcher's resource limits. RLIMIT_DATA, not RLIMIT_AS: runtimes such as V8 and Go reserve far more addresses than they use."""
    return [
        ("RLIMIT_CORE", 0),
        ("RLIMIT_CPU", limits.cpu_seconds),
        ("RLIMIT_DATA", limits.memory_bytes),
        ("RLIMIT_FSIZE", limits.file_bytes),
        ("RLIMIT_NPROC", processes),
        ("RLIMIT_NOFILE", 1_024),
        ("RLIMIT_MEMLOCK", 64 * 1024),
        ("RLIMIT_MSGQUEUE", 0),
    ]


def environment_of(request: RunRequest, inputs: Mapping[str, str], home: str) -> dict[str, str]:
    """The whole environment inside: nothing of the service's own."""
    bins = [str(prefix / "bin") for prefix in request.toolchains]
    path = ":".join(dict.fromkeys([*reversed(bins), "/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin", "/sbin"]))
    base = {"PATH": path, "HOME": home, "TMPDIR": home, "LANG": "C.UTF-8", "TZ": "UTC", "CI": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    base["GIT_CONFIG_NOSYSTEM"] = "1"
    return {**base, **request.environment, **inputs}


async def run_confined(confined: Confined, limits: Limits) -> RunResult:
    """Runs it in a thread. Cancelling kills the run and waits for its end. Raises SandboxBroken."""
    stop = threading.Event()
    loop = asyncio.get_running_loop()
    done: asyncio.Future[RunResult] = loop.create_future()

    def work() -> None:
        try:
            result = _run(confined, limits, stop)
        except BaseException as error:
            _settle(loop, done, error=error)
        else:
            _settle(loop, done, result=result)

    threading.Thread(target=work, name="sandbox", daemon=True).start()
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        stop.set()
        with contextlib.suppress(Exception):
            await done
        raise


def _settle(
    loop: asyncio.AbstractEventLoop, done: asyncio.Future[RunResult], *, result: RunResult | None = None, error: BaseException | None = None
) -> None:
    def settle() -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        elif result is not None:
            done.set_result(result)

    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(settle)


def _run(confined: Confined, limits: Limits, stop: threading.Event) -> RunResult:
    started = time.monotonic()
    status_read, status_write = os.pipe()
    job = json.dumps({**confined.job, "status_fd": status_write}).encode()
    try:
        process = subprocess.Popen(
            confined.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"PATH": os.defpath},
            cwd="/",
            pass_fds=(status_write,),
            start_new_session=True,
        )
    except OSError as error:
        os.close(status_read)
        raise SandboxBroken(f"{confined.isolation}: {confined.command[0]} cannot be started: {error}") from error
    finally:
        os.close(status_write)
    watch = _Watch(process.pid, limits, started + limits.wall_seconds)
    try:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(job)
            process.stdin.close()
        exceeded, tail, exit_status, cpu_seconds = _attend(process, watch, limits, stop)
    finally:
        watch.kill_all()
        status = _read_all(status_read)
        if process.stdout is not None:
            process.stdout.close()
    if not status.startswith(b"R"):
        if exceeded == "timed_out":
            raise SandboxBroken(f"{confined.isolation}: could not be set up within {limits.wall_seconds:g} s")
        said = status.decode("utf-8", "replace") or tail.decode("utf-8", "replace").strip()[-600:]
        raise SandboxBroken(f"{confined.isolation} cannot be set up: {said or f'ended with {exit_status}'}")
    if status[1:]:
        tail += b"\n" + status[2:]  # the command itself was not found or not executable
    outcome, exit_code = _judge(exceeded, exit_status, tail)
    text = tail.decode("utf-8", "replace").replace("\x00", "\ufffd")
    return RunResult(
        outcome, exit_code, text, confined.isolation, confined.facts, round(time.monotonic() - started, 3), round(cpu_seconds, 3)
    )


def _attend(
    process: subprocess.Popen[bytes], watch: _Watch, limits: Limits, stop: threading.Event
) -> tuple[Outcome | None, bytes, int, float]:
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    os.set_blocking(descriptor, False)
    tail, total, chunk = b"", 0, b""
    exceeded: Outcome | None = None
    ended: tuple[int, float] | None = None
    next_look = time.monotonic() + WATCH_SECONDS
    while True:
        if select.select([descriptor], [], [], 0.02 if ended is None else 0)[0]:
            chunk = os.read(descriptor, 65_536)
            total += len(chunk)
            tail = (tail + chunk)[-limits.tail_bytes :]
            if total > limits.output_bytes and exceeded is None:
                exceeded = "output_limit"
            if not chunk and ended is None:
                time.sleep(0.01)  # it closed its output and goes on
        elif ended is not None:
            break
        if ended is None:
            pid, wait_status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                process.returncode = os.waitstatus_to_exitcode(wait_status)
                ended = process.returncode, usage.ru_utime + usage.ru_stime
                watch.leader_gone = True
                watch.kill_all()
                continue
        elif exceeded is not None or not chunk:
            break
        now = time.monotonic()
        if ended is None and (exceeded is not None or stop.is_set()):
            watch.kill_all()
        elif ended is None and now >= next_look:
            exceeded = watch.look(now)
            next_look = now + WATCH_SECONDS
        if now > watch.deadline + END_SECONDS and ended is None:
            raise SandboxBroken(f"process {process.pid} did not end within {END_SECONDS:g} s of being killed")
    assert ended is not None
    return exceeded, tail, ended[0], max(ended[1], watch.cpu_seconds)


def _judge(exceeded: Outcome | None, status: int, tail: bytes) -> tuple[Outcome, int | None]:
    if exceeded is not None:
        return exceeded, None
    by_signal = -status if status < 0 else (status - 128 if 128 < status <= 128 + 64 else 0)
    if by_signal == signal.SIGXCPU:
        return "timed_out", None
    if by_signal == signal.SIGKILL:
        return "killed", None
    if status != 0 and any(sign in tail for sign in _OUT_OF_MEMORY):
        # What a refused allocation looks like from outside. A command that only prints it deceives nobody but itself: it failed anyway.
        return "out_of_memory", None
    return ("killed", None) if status < 0 else ("exited", status)


def _read_all(descriptor: int) -> bytes:
    os.set_blocking(descriptor, False)
    try:
        return os.read(descriptor, 4_096)
    except BlockingIOError:
        return b""
    finally:
        os.close(descriptor)


@dataclass
class _Watch:
    """Looks at a run from outside: what rlimits cannot bound (all processes together), and the end of everybody."""

    leader: int
    limits: Limits
    deadline: float
    leader_gone: bool = False  # reaped: its number may soon be another's
    cpu_seconds: float = 0.0  # as last seen: where an init of its own reaps the command, wait4 does not tell
    began: int = 0  # of the leader
    seen: dict[int, _Entry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        entry = _entry(self.leader)
        self.began = entry.began if entry is not None else 0

    def look(self, now: float) -> Outcome | None:
        if now >= self.deadline:
            return "timed_out"
        members = self._members()
        self.cpu_seconds = max(self.cpu_seconds, sum(map(_cpu_seconds, members)))
        if len(members) > self.limits.processes:
            return "killed"
        used = max(sum(map(_resident_bytes, members)), _shared_bytes(members))
        return "out_of_memory" if used > self.limits.memory_bytes else None

    def kill_all(self) -> None:
        """Ends everybody of the run and waits for it. Only members are signalled, never a user: that could be somebody else's process."""
        until = time.monotonic() + END_SECONDS
        while True:
            # One signal to the group cannot be outrun by forking. It reaches all of a Landlock run, which cannot leave the group, and the
            # init of a bubblewrap run, with which the kernel ends its process table. The number stays the group's while it has a member.
            members = self._members()
            if not self.leader_gone or any(entry.group == self.leader for entry in members.values()):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.leader, signal.SIGKILL)
            left = {pid: entry for pid, entry in members.items() if pid != self.leader}
            for pid, entry in left.items():
                _kill(pid, entry)
            if not left or time.monotonic() >= until:
                return
            time.sleep(0.005)

    def _members(self) -> dict[int, _Entry]:
        """The run's processes: the leader's session, which a Landlock run cannot leave (setsid is refused), and its descendants, which in a
        process table of their own stay below its init. What was a member stays one, so that nobody is lost when a parent ends first."""
        table = _table()
        found = {pid for pid, entry in self.seen.items() if pid in table and table[pid].began == entry.began}
        found |= {pid for pid, entry in table.items() if entry.session == self.leader and entry.began >= self.began}
        if not self.leader_gone and self.leader in table:
            found.add(self.leader)
        children: dict[int, list[int]] = {}
        for pid, entry in table.items():
            children.setdefault(entry.parent, []).append(pid)
        ahead = list(found)
        while ahead:
            more = [pid for pid in children.get(ahead.pop(), ()) if pid not in found]
            found.update(more)
            ahead += more
        self.seen = {pid: table[pid] for pid in sorted(found)}
        return self.seen


@dataclass(frozen=True)
class _Entry:
    """A process as proc(5) ``stat`` shows it. ``began``: clock ticks after boot; with the number it names a process for good."""

    parent: int
    group: int
    session: int
    began: int


def _entry(pid: int | str) -> _Entry | None:
    """None for one that has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return _Entry(*map(int, (*fields[1:4], fields[19]))) if len(fields) > 19 and fields[0] not in (b"Z", b"X") else None


def _table() -> dict[int, _Entry]:
    return {int(name): entry for name in os.listdir("/proc") if name.isdigit() and (entry := _entry(name)) is not None}


def _kill(pid: int, entry: _Entry) -> None:
    """Through a descriptor, looked at again once it is held: the number may be another process's by now."""
    with contextlib.suppress(OSError):
        descriptor = os.pidfd_open(pid)
        try:
            now = _entry(pid)
            if now is not None and now.began == entry.began:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        finally:
            os.close(descriptor)


def _cpu_seconds(pid: int) -> float:
    """User and system time of a process and the children it has waited for, proc(5) fields 14 to 17."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return sum(map(int, file.read().rpartition(b")")[2].split()[11:15])) / TICKS
    except (OSError, ValueError):
        return 0.0


def _resident_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * PAGE_BYTES
    except (OSError, IndexError):
        return 0


def _shared_bytes(pids: Iterable[int]) -> int:
    """Size of the shared anonymous memory that processes map, each piece once. It stays when a process lets go of its pages
    (``MADV_DONTNEED``), so that neither RLIMIT_DATA nor resident sizes count it. A process that may not be read counts nothing."""
    ends: dict[bytes, int] = {}
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", "rb") as file:
            for line in file:
                if line.endswith(b" /dev/zero (deleted)\n"):
                    addresses, _, offset, _, inode = line.split()[:5]
                    start, _, end = addresses.partition(b"-")
                    ends[inode] = max(ends.get(inode, 0), int(offset, 16) + int(end, 16) - int(start, 16))
    return sum(ends.values())
