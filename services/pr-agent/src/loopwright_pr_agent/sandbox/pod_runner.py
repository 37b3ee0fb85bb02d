"""Runs inside a sandbox pod: takes one run's input from the broker, runs its command confined, hands the result back.

One file of the standard library, copied alone into the sandbox image and run as ``python3 /opt/loopwright/pod_runner.py``. The pod is the
wall; this program adds what a pod has no word for (system call filter, limits of one run) and keeps the run's token from the command:
it begins anew with the token in a pipe, so that no environment shows it, and is not dumpable, so that nobody of its user may look into it.

Exit codes: 0 the result was handed over; 2 it was called wrongly; 3 the broker did not take the result; 4 the broker refused the input;
5 the broker could not be reached; 143 it was told to end.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import ctypes
import http.client
import json
import os
import platform
import resource
import select
import shutil
import signal
import socketserver
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from typing import IO, Any, NamedTuple, cast
from urllib.parse import urlsplit

HANDED_OVER, WRONG_CALL, NOT_TAKEN, REFUSED, UNREACHABLE, TOLD_TO_END = 0, 2, 3, 4, 5, 143
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 36, 38
SECCOMP_MODE_FILTER = 2
WATCH_SECONDS = 0.1  # how long a run may be over a limit before it is seen
END_SECONDS = 10.0  # a killed tree ends at once; beyond it a process hangs in the kernel
HTTP_SECONDS = 60.0
# How long a broker that does not answer is asked again: it is back within a minute, and its run is delivered again within another. Both
# together are less than a Job may take beside its command, so that it ends with its reason and not by its deadline.
FETCH_SECONDS_MAX = 240.0
HAND_OVER_SECONDS_MAX = 600.0
WAIT_FIRST_SECONDS, WAIT_MOST_SECONDS = 0.25, 5.0
MEMBERS_MAX, PATH_BYTES_MAX = 1_000_000, 4_096
REQUEST_BYTES_MAX = 4 * 1024**2
MODEL_BODY_BYTES_MAX, MODEL_ANSWER_BYTES_MAX = 1024**2, 8 * 1024**2
MODEL_CALLS_AT_ONCE = 4
TICKS = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
KERNEL_KILLS = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")  # as cgroup version 2 counts, and version 1
OUT_OF_MEMORY = (b"MemoryError", b"Cannot allocate memory", b"std::bad_alloc", b"out of memory", b"heap out of memory")

libc = ctypes.CDLL(None, use_errno=True)


class Broken(Exception):
    """The run could not be set up; the command never started."""


class Refused(Exception):
    """The broker does not take this run's token."""


class Unreachable(Exception):
    """The broker gave no usable answer in time."""


class Told(BaseException):
    """SIGTERM came: the Job is taken away or its deadline has passed."""


class Places(NamedTuple):
    """The scratch folders; everything else is read-only."""

    workspace: str
    home: str
    inputs: str
    tmp: str


def prctl(option: int, *values: int) -> None:
    arguments = [ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:4]]
    if libc.prctl(option, *arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl {option}: {os.strerror(number)}")


def say(text: str) -> None:
    """A line for the pod's log: of this program's own state, never of the run's content."""
    print(f"pod_runner: {text}", flush=True)


# The broker


class Broker:
    """The one address that can be reached."""

    def __init__(self, url: str, run: str, token: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"LOOPWRIGHT_BROKER_URL={url!r} is not http://<host>:<port>")
        self.host, self.port, self.run = parts.hostname, parts.port or 80, run
        self._headers = {"Authorization": f"Bearer {token}", "User-Agent": "loopwright-pod-runner"}

    def request(self, method: str, path: str, body: bytes | None = None, seconds: float = HTTP_SECONDS) -> http.client.HTTPResponse:
        """One try, without proxies. Raises OSError and http.client.HTTPException."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=seconds)
        headers = dict(self._headers)
        if body is not None:
            headers["Content-Type"] = "application/json"
        connection.request(method, path, body, headers)
        return connection.getresponse()

    def fetch(self, use: Callable[[IO[bytes]], Any]) -> Any:
        """Asks for the input until it comes, and gives its stream to ``use``."""
        path = f"/v1/runs/{self.run}/input"
        for _ in _tries(FETCH_SECONDS_MAX):
            try:
                response = self.request("GET", path)
                if response.status == 200:
                    return use(cast("IO[bytes]", response))
                said = response.read(2_000)
                if response.status in (401, 403):
                    raise Refused(f"the broker refuses this run's token (status {response.status})")
                if response.status < 500 and response.status not in (408, 429):
                    raise Refused(f"the broker refuses the input: status {response.status}, {said.decode('utf-8', 'replace')[:500]}")
                last = f"status {response.status}"
            except (OSError, http.client.HTTPException, tarfile.ReadError, EOFError) as error:
                last = f"{type(error).__name__}: {error}"
            say(f"the broker at {self.host}:{self.port} does not give the input yet ({last})")
        raise Unreachable(f"no input from the broker at {self.host}:{self.port} within {FETCH_SECONDS_MAX:g} s ({last})")

    def hand_over(self, result: dict[str, Any]) -> bool:
        """Sends the result until it is taken. False when the broker does not want it any more."""
        body, sent = json.dumps(result).encode(), False
        for _ in _tries(HAND_OVER_SECONDS_MAX):
            try:
                response = self.request("POST", f"/v1/runs/{self.run}/result", body)
                said = response.read(2_000).decode("utf-8", "replace")
                if response.status in (200, 204):
                    return True
                if response.status in (401, 403):
                    # A token dies with its run: when an earlier try reached the broker and only the answer was lost, this is how it looks.
                    return sent
                if response.status < 500 and response.status not in (408, 429):
                    say(f"the broker does not take the result: status {response.status}, {said[:500]}")
                    return False
                last = f"status {response.status}"
            except ConnectionRefusedError as error:
                last = str(error)
            except (OSError, http.client.HTTPException) as error:
                sent, last = True, f"{type(error).__name__}: {error}"
            say(f"the broker at {self.host}:{self.port} does not take the result yet ({last})")
        return False


def _tries(seconds: float) -> Iterator[int]:
    deadline, wait, number = time.monotonic() + seconds, WAIT_FIRST_SECONDS, 0
    while True:
        yield number
        number += 1
        if time.monotonic() + wait > deadline:
            return
        time.sleep(wait)
        wait = min(wait * 1.5, WAIT_MOST_SECONDS)


# The bundle


def unpack(stream: IO[bytes], places: Places) -> dict[str, Any]:
    """Reads the bundle: ``request.json``, then ``inputs/*`` and ``workspace/**``. Gives the request.

    Only folders, files and links that stay inside are written, each new, below folders that are really folders. Raises Broken otherwise.
    """
    for folder in (places.workspace, places.inputs):
        _empty(folder)  # an earlier try may have been cut off
    request: dict[str, Any] | None = None
    with tarfile.open(fileobj=stream, mode="r|") as bundle:
        for count, member in enumerate(bundle):
            if count > MEMBERS_MAX or len(member.name) > PATH_BYTES_MAX:
                raise Broken(f"the bundle has more than {MEMBERS_MAX} members, or a name over {PATH_BYTES_MAX} characters")
            if request is None:
                if member.name != "request.json" or not member.isreg() or member.size > REQUEST_BYTES_MAX:
                    raise Broken("the bundle does not begin with request.json")
                request = json.loads(_content(bundle, member).read())
                continue
            top, _, rest = member.name.partition("/")
            root = {"workspace": places.workspace, "inputs": places.inputs}.get(top)
            if root is None:
                raise Broken(f"the bundle has a member {member.name[:200]!r}")
            if rest:
                _place(bundle, member, root, rest, links=top == "workspace")
    if request is None:
        raise Broken("the bundle is empty")
    return request


def _content(bundle: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    content = bundle.extractfile(member)
    if content is None:
        raise Broken(f"{member.name[:200]!r} has no content")
    return content


def _place(bundle: tarfile.TarFile, member: tarfile.TarInfo, root: str, name: str, links: bool) -> None:
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\x00" in name:
        raise Broken(f"{member.name[:200]!r} is not a plain path")
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = below
        if member.isdir():
            os.mkdir(parts[-1], 0o755, dir_fd=folder)
        elif member.isreg():
            mode = 0o444 if not links else 0o755 if member.mode & 0o100 else 0o644
            target = os.open(parts[-1], os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode, dir_fd=folder)
            with os.fdopen(target, "wb") as file:
                shutil.copyfileobj(_content(bundle, member), file, 1024**2)
        elif member.issym() and links and stays_inside(name, member.linkname):
            os.symlink(member.linkname, parts[-1], dir_fd=folder)
        else:
            raise Broken(f"{member.name[:200]!r} is neither a file, a folder nor a link that stays inside")
    except FileExistsError as error:
        raise Broken(f"{member.name[:200]!r} comes twice") from error
    except NotADirectoryError as error:
        raise Broken(f"{member.name[:200]!r} goes through something that is no folder") from error
    finally:
        os.close(folder)


def stays_inside(name: str, target: str) -> bool:
    """Whether a link at ``name`` (relative to its root) leads to something below the root, going by the text alone."""
    if target.startswith("/") or "\x00" in target:
        return False
    depth = len(name.split("/")) - 1
    for part in target.split("/"):
        depth += -1 if part == ".." else 0 if part in ("", ".") else 1
        if depth < 0:
            return False
    return True


def _empty(folder: str) -> None:
    os.makedirs(folder, exist_ok=True)
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)


# The command


class Ran(NamedTuple):
    """How a command ended. ``exit_code`` is None unless it exited by itself."""

    outcome: str
    exit_code: int | None
    tail: bytes
    wall_seconds: float
    cpu_seconds: float


def run(argv: list[str], environment: dict[str, str], cwd: str, limits: dict[str, Any], filters: dict[str, str]) -> Ran:
    """Runs one command confined, watches it, and leaves nobody behind. Raises Broken when it could not be confined."""
    started = time.monotonic()
    program = filters.get(platform.machine())
    if program is None:
        raise Broken(f"there is no system call filter for {platform.machine()}")
    status_read, status_write = os.pipe()
    job = {"argv": argv, "cwd": cwd, "environment": environment, "limits": limits, "seccomp": program, "status_fd": status_write}
    cpu_before, kills_before = _cpu_of_children(), kernel_kills()
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", os.path.abspath(__file__), "--launch"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={"PATH": os.defpath},
        cwd="/",
        pass_fds=(status_write,),
        start_new_session=True,
    )
    os.close(status_write)
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(job).encode())
            process.stdin.close()
        except BrokenPipeError:
            pass
        exceeded, tail, status = _attend(process.pid, process.stdout.fileno(), limits, started + limits["wall_seconds"])
    finally:
        end_everybody()
        process.returncode = 0  # reaped here, not by Popen
        if process.stdout is not None:
            process.stdout.close()
        os.set_blocking(status_read, False)
        try:
            said = os.read(status_read, 4_096)
        except BlockingIOError:
            said = b""
        os.close(status_read)
    if not said.startswith(b"R"):
        raise Broken(said[1:].decode("utf-8", "replace") or tail.decode("utf-8", "replace")[-600:] or f"the launcher ended with {status}")
    if said[1:]:
        tail += b"\n" + said[2:]  # the command itself was not found or not executable
    outcome, exit_code = judge(exceeded, status, tail)
    if outcome == "killed" and exceeded is None and kernel_kills() > kills_before:
        outcome = "out_of_memory"
    wall = time.monotonic() - started
    return Ran(outcome, exit_code, tail, round(wall, 3), round(max(0.0, _cpu_of_children() - cpu_before), 3))


def _attend(child: int, output: int, limits: dict[str, Any], deadline: float) -> tuple[str | None, bytes, int]:
    os.set_blocking(output, False)
    tail, total = b"", 0
    exceeded: str | None = None
    status: int | None = None
    is_open, next_look = True, time.monotonic() + WATCH_SECONDS
    while True:
        chunk = b""
        if is_open and select.select([output], [], [], 0.02 if status is None else 0)[0]:
            chunk = os.read(output, 65_536)
            is_open = bool(chunk)
            total += len(chunk)
            tail = (tail + chunk)[-limits["tail_bytes"] :]
            if total > limits["output_bytes"] and exceeded is None:
                exceeded = "output_limit"
        elif not is_open and status is None:
            time.sleep(0.02)
        if status is None:
            status = _reap(child)
            if status is not None:
                end_everybody()
                continue
        elif exceeded is not None or not chunk:
            break
        now = time.monotonic()
        if status is None and exceeded is not None:
            end_everybody(leave=child)
        elif status is None and now >= next_look:
            exceeded = _look(limits, now >= deadline)
            next_look = now + WATCH_SECONDS
        if status is None and now > deadline + END_SECONDS:
            raise Broken(f"process {child} did not end within {END_SECONDS:g} s of being killed")
    return exceeded, tail, status


def _reap(child: int) -> int | None:
    """Takes leave of everybody who has ended, orphans too; the status of ``child`` when it is among them."""
    found = None
    while True:
        try:
            pid, status, _ = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == child:
            found = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _look(limits: dict[str, Any], is_late: bool) -> str | None:
    if is_late:
        return "timed_out"
    members = descendants()
    if len(members) > limits["processes"]:
        return "killed"
    used = max(sum(map(_resident_bytes, members)), _shared_bytes(members))
    return "out_of_memory" if used > limits["memory_bytes"] else None


def judge(exceeded: str | None, status: int, tail: bytes) -> tuple[str, int | None]:
    """The outcome, as the sandboxes of one machine judge it."""
    if exceeded is not None:
        return exceeded, None
    by_signal = -status if status < 0 else (status - 128 if 128 < status <= 128 + 64 else 0)
    if by_signal == signal.SIGXCPU:
        return "timed_out", None
    if by_signal == signal.SIGKILL:
        return "killed", None
    if status != 0 and any(sign in tail for sign in OUT_OF_MEMORY):
        return "out_of_memory", None
    return ("killed", None) if status < 0 else ("exited", status)


def kernel_kills() -> int:
    """How many of this pod's processes the kernel has killed for want of memory."""
    for path in KERNEL_KILLS:
        with contextlib.suppress(OSError, ValueError, IndexError), open(path) as file:
            return sum(int(line.split()[1]) for line in file if line.startswith("oom_kill "))
    return 0


def descendants() -> list[int]:
    """Everybody below this process. Nobody gets away: orphans become its children (it is the first process, or a subreaper)."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            if fields and fields[0] not in (b"Z", b"X"):
                children.setdefault(int(fields[1]), []).append(int(name))
    found: list[int] = []
    ahead = [os.getpid()]
    while ahead:
        below = children.get(ahead.pop(), [])
        found += below
        ahead += below
    return found


def end_everybody(leave: int = 0) -> None:
    """Kills whatever runs below and waits for it; ``leave`` is killed too but left to be reaped by the caller."""
    until = time.monotonic() + END_SECONDS
    while True:
        if os.getpid() == 1:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)  # all of this process table but ourselves, at once: it cannot be outrun by forking
        left = descendants()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if leave:
            return
        _reap(0)
        if not left or time.monotonic() >= until:
            return
        time.sleep(0.005)


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _resident_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * PAGE_BYTES
    except (OSError, IndexError):
        return 0


def _shared_bytes(pids: list[int]) -> int:
    """Shared anonymous memory that is mapped, each piece once: it stays when a process lets go of its pages."""
    ends: dict[bytes, int] = {}
    for pid in pids:
        try:
            with open(f"/proc/{pid}/maps", "rb") as file:
                for line in file:
                    if line.endswith(b" /dev/zero (deleted)\n"):
                        addresses, _, offset, _, inode = line.split()[:5]
                        start, _, end = addresses.partition(b"-")
                        ends[inode] = max(ends.get(inode, 0), int(offset, 16) + int(end, 16) - int(start, 16))
        except OSError:
            continue
    return sum(ends.values())


# The launcher: a process of its own, which confines itself and becomes the command


def launch() -> None:
    job = json.loads(sys.stdin.buffer.read())
    status = job["status_fd"]
    os.set_inheritable(status, False)
    try:
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        os.closerange(3, status)
        os.closerange(status + 1, 4_096)
        os.umask(0o022)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        limits = job["limits"]
        for name, value in (
            ("RLIMIT_CORE", 0), ("RLIMIT_CPU", limits["cpu_seconds"]), ("RLIMIT_DATA", limits["memory_bytes"]),
            ("RLIMIT_FSIZE", limits["file_bytes"]), ("RLIMIT_NPROC", limits["processes_of_user"]), ("RLIMIT_NOFILE", 1_024),
            ("RLIMIT_MEMLOCK", 64 * 1024), ("RLIMIT_MSGQUEUE", 0),
        ):  # fmt: skip
            limit = getattr(resource, name)
            hard = resource.getrlimit(limit)[1]
            bounded = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(limit, (bounded, bounded))
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.chdir(job["cwd"])
        _install_filter(base64.b64decode(job["seccomp"]))
        os.write(status, b"R")
        os.execvpe(job["argv"][0], job["argv"], job["environment"])  # noqa: S606  it is the purpose of this process
    except BaseException as error:
        os.write(status, f"E{type(error).__name__}: {error}".encode()[:2_000])
        sys.exit(126)


def _install_filter(program: bytes) -> None:
    buffer = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: an unsigned short, padding, a pointer
    described = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer)))
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(described))


# The model, through this process: the command asks a unix socket, and the token is added on this side


class ModelDoor(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Takes ``POST /v1/chat/completions`` on a socket in the file system and passes it on to the broker."""

    daemon_threads = True
    request_queue_size = 16

    def __init__(self, path: str, broker: Broker, seconds: float) -> None:
        self.broker, self.seconds = broker, seconds
        self.slots = threading.BoundedSemaphore(MODEL_CALLS_AT_ONCE)
        super().__init__(path, _ModelCall)
        threading.Thread(target=self.serve_forever, name="model", daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        say(f"a call to the model was cut off ({sys.exc_info()[0]})")


class _ModelCall(BaseHTTPRequestHandler):
    timeout = 30
    server: ModelDoor

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if self.path != "/v1/chat/completions":
            self._answer(404, b'{"title": "Not Found", "status": 404}')
        elif not length.isdigit() or int(length) > MODEL_BODY_BYTES_MAX:
            self._answer(413, b'{"title": "Content Too Large", "status": 413}')
        else:
            body = self.rfile.read(int(length))
            with self.server.slots:
                try:
                    response = self.server.broker.request("POST", self.path, body, self.server.seconds)
                    self._answer(response.status, response.read(MODEL_ANSWER_BYTES_MAX), response.headers.get("Content-Type", ""))
                except (OSError, http.client.HTTPException):
                    self._answer(502, b'{"title": "Bad Gateway", "status": 502, "detail": "The broker does not answer."}')

    def _answer(self, status: int, body: bytes, kind: str = "application/problem+json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "the command"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: what is asked is the run's."""


# The changes


def changes(broker: Broker, places: Places, bytes_max: int) -> tuple[str | None, str]:
    """The diff of the workspace against the bundle as it is handed out again: what the command did to an older copy does not matter.

    None, and why, where it cannot be made.
    """
    if shutil.which("git") is None:
        return None, "the image has no git to make the diff with"
    with tempfile.TemporaryDirectory(prefix="diff-", dir=places.tmp if os.path.isdir(places.tmp) else None) as scratch:
        base = Places(os.path.join(scratch, "base"), places.home, os.path.join(scratch, "inputs"), scratch)
        broker.fetch(lambda stream: unpack(stream, base))
        environment = {
            "PATH": os.environ.get("PATH", os.defpath), "HOME": scratch, "GIT_DIR": os.path.join(scratch, "git"),
            "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_ATTR_NOSYSTEM": "1", "LC_ALL": "C",
        }  # fmt: skip

        def git(*arguments: str, tree: str) -> bytes:
            command = ["git", "-c", "core.fsmonitor=false", "-c", "core.autocrlf=false", "-c", "core.hooksPath=/dev/null", *arguments]
            done = subprocess.run(
                command, cwd=tree, env={**environment, "GIT_WORK_TREE": tree}, capture_output=True, timeout=120, check=False
            )
            if done.returncode != 0:
                raise OSError(f"git {arguments[0]} ended with {done.returncode}: {done.stderr.decode('utf-8', 'replace')[:300]}")
            return done.stdout

        try:
            git("init", "--quiet", tree=base.workspace)
            git("add", "--all", "--force", tree=base.workspace)
            before = git("write-tree", tree=base.workspace).decode().strip()
            git("add", "--all", tree=places.workspace)
            diff = git("diff", "--cached", "--binary", "--full-index", "--no-ext-diff", "--no-textconv", before, tree=places.workspace)
        except (OSError, subprocess.TimeoutExpired) as error:
            return None, f"the diff could not be made: {error}"
    if len(diff) > bytes_max:
        return None, f"the diff is {len(diff)} bytes; {bytes_max} are taken"
    try:
        return diff.decode(), ""
    except UnicodeDecodeError:
        return None, "the diff is not UTF-8 text"


# The whole


def perform(broker: Broker, places: Places) -> dict[str, Any]:
    """One run from its input to its result."""
    try:
        request = broker.fetch(lambda stream: unpack(stream, places))
    except Broken as error:
        return _result(broken=str(error))
    say("the input is here")
    limits = request["limits"]
    environment = {
        "PATH": os.environ.get("PATH", os.defpath), "HOME": places.home, "TMPDIR": places.tmp, "LANG": "C.UTF-8", "TZ": "UTC", "CI": "1",
        "PYTHONDONTWRITEBYTECODE": "1", "GIT_CONFIG_NOSYSTEM": "1",
        "USER": "sandbox", "LOGNAME": "sandbox",  # the user has no name in the image: each run is another
        **request["environment"],
        **{variable: os.path.join(places.inputs, name) for variable, name in request["inputs"].items()},
    }  # fmt: skip
    door = None
    try:
        if request["model"]:
            path = os.path.join(places.inputs, "model.sock")
            door = ModelDoor(path, broker, float(request["model_seconds"]))
            environment["LOOPWRIGHT_MODEL_SOCKET"] = path
        for argv, expected in request["before"]:
            again = run(argv, environment, places.workspace, limits, request["seccomp"])
            if again.exit_code != expected:
                told = again.tail.decode("utf-8", "replace")[-600:]
                raise Broken(f"{argv!r} ended with {expected} before and now with {again.outcome} {again.exit_code}: {told}")
        say("the command begins")
        ran = run(request["argv"], environment, places.workspace, limits, request["seccomp"])
    except Broken as error:
        return _result(broken=str(error))
    finally:
        if door is not None:
            door.shutdown()
    say(f"the command ended: {ran.outcome} {ran.exit_code}")
    diff, why = changes(broker, places, int(request["diff_bytes_max"])) if request["diff"] else (None, "")
    return _result(
        outcome=ran.outcome, exit_code=ran.exit_code, output_tail=ran.tail.decode("utf-8", "replace").replace("\x00", "\ufffd"),
        wall_seconds=ran.wall_seconds, cpu_seconds=ran.cpu_seconds, diff=diff, no_diff=why,
    )  # fmt: skip


def _result(**fields: Any) -> dict[str, Any]:
    empty = {"outcome": None, "exit_code": None, "output_tail": "", "wall_seconds": 0.0, "cpu_seconds": 0.0, "diff": None, "no_diff": ""}
    return {**empty, "broken": "", **fields}


def main() -> int:
    parser = argparse.ArgumentParser(prog="pod_runner.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--launch", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--token-fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--workspace", default="/workspace")
    parser.add_argument("--home", default="/home/sandbox")
    parser.add_argument("--inputs", default="/run/inputs")
    parser.add_argument("--tmp", default="/tmp")  # noqa: S108
    arguments = parser.parse_args()
    if arguments.launch:
        launch()
    url, run_name, token = (os.environ.get(f"LOOPWRIGHT_{name}", "") for name in ("BROKER_URL", "RUN", "RUN_TOKEN"))
    if token:
        _begin_anew(token)
    if not url or not run_name or arguments.token_fd is None:
        print("LOOPWRIGHT_BROKER_URL, LOOPWRIGHT_RUN and LOOPWRIGHT_RUN_TOKEN are needed", file=sys.stderr)
        return WRONG_CALL
    with os.fdopen(arguments.token_fd, "rb") as pipe:
        token = pipe.read().decode()
    prctl(PR_SET_DUMPABLE, 0)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGTERM, _told)
    broker = Broker(url, run_name, token)
    try:
        taken = broker.hand_over(perform(broker, Places(arguments.workspace, arguments.home, arguments.inputs, arguments.tmp)))
    except Refused as error:
        say(str(error))
        return REFUSED
    except Unreachable as error:
        say(str(error))
        return UNREACHABLE
    except Told:
        end_everybody()
        return TOLD_TO_END
    say("the result was handed over" if taken else "the result was not taken")
    return HANDED_OVER if taken else NOT_TAKEN


def _told(*_: object) -> None:
    raise Told


def _begin_anew(token: str) -> None:
    """This program again, with the token in a pipe: the kernel shows a process's first environment to everybody of its user."""
    read, write = os.pipe()
    os.write(write, token.encode())
    os.close(write)
    os.set_inheritable(read, True)
    environment = {name: value for name, value in os.environ.items() if name != "LOOPWRIGHT_RUN_TOKEN"}
    os.execve(sys.executable, [sys.executable, "-I", os.path.abspath(__file__), *sys.argv[1:], f"--token-fd={read}"], environment)  # noqa: S606


if __name__ == "__main__":
    sys.exit(main())
