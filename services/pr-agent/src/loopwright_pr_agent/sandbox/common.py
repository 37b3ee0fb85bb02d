"""What both adapters need to know of the host: the uid to run as, the folders of a run, how many processes are there already."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pwd
import random
import shutil
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from loopwright_pr_agent.sandbox.port import RunRequest, SandboxBroken

# Left to nobody by systemd (systemd.io/UIDS-GIDS: homed ends at 60513, containers at 60577, greeters of later versions at 60705, dynamic
# users begin at 61184) and by Debian (Policy 9.2.2: 60000 to 64999 only on demand). Each run at once gets one of its own, so that it can
# reach nobody else's processes and the kernel's limit on processes (RLIMIT_NPROC counts per user) is its own.
FIRST_UID, UIDS = 60_706, 478
# Shared by every pr-agent of this host; /run is emptied at boot, as users' processes are.
LEASES = Path("/run/loopwright-sandbox-users")


@contextmanager
def own_uid(leases: Path | None = None) -> Iterator[int | None]:
    """A user id for one run where the service is root; None where it is not and so cannot become anybody else.

    Held by a lock (flock(2)) on a file of that name: over all processes that share the folder, and free again when its holder dies. An id
    that has an account or a process is somebody's and is passed over. Raises SandboxBroken when none is left.
    """
    if os.geteuid() != 0:
        yield None
        return
    folder = _lease_folder(leases or LEASES)
    taken = _uids_with_processes()
    order = list(range(FIRST_UID, FIRST_UID + UIDS))
    random.shuffle(order)
    for uid in order:
        if uid in taken or _has_account(uid):
            continue
        lease = os.open(folder / str(uid), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            if uid in _uids_with_processes():
                continue  # another run had it, and left or lost its lock, since the first look
            yield uid
            return
        finally:
            os.close(lease)
    raise SandboxBroken(f"all {UIDS} user ids for sandboxes are in use; lower LOOPWRIGHT_PR_AGENT_CONCURRENCY")


def _lease_folder(folder: Path) -> Path:
    """The folder of the leases, root's alone: where others could write, they could hold every id or lead the files astray."""
    for place in (folder, Path(tempfile.gettempdir()) / folder.name):  # a container's /run may be read-only
        try:
            place.mkdir(mode=0o700, exist_ok=True)
            status = place.lstat()
        except OSError:
            continue
        if stat.S_ISDIR(status.st_mode) and status.st_uid == 0 and not status.st_mode & 0o077 and os.access(place, os.W_OK):
            return place
    raise SandboxBroken(f"{folder} cannot be made or is not root's alone (mode 0700); user ids for sandboxes are held there")


def _has_account(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _uids_with_processes() -> set[int]:
    """Every user that some process is, was or may become: real, effective, saved and file system ids (proc(5), ``Uid``)."""
    found: set[int] = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/status", "rb") as file:
                found.update(int(uid) for line in file if line.startswith(b"Uid:") for uid in line.split()[1:])
    return found


def tasks_of_user() -> int:
    """Threads that this user already runs: RLIMIT_NPROC counts them too."""
    total, uid = 0, os.getuid()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if entry.stat().st_uid == uid:
                    total += len(os.listdir(f"/proc/{entry.name}/task"))
    return total


@dataclass(frozen=True)
class Scratch:
    """A run's own folders beside the workspace."""

    inputs: Path
    home: Path


@asynccontextmanager
async def scratch(request: RunRequest, uid: int | None) -> AsyncIterator[Scratch]:
    """The inputs (read-only for the command) and an empty home; the workspace is handed to ``uid``. All is removed in the end."""
    root = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="loopwright-run-"))
    try:
        made = Scratch(root / "inputs", root / "home")
        await asyncio.to_thread(_fill, root, made, request, uid)
        yield made
    finally:
        await asyncio.shield(asyncio.to_thread(shutil.rmtree, root, ignore_errors=True))


def _fill(root: Path, made: Scratch, request: RunRequest, uid: int | None) -> None:
    root.chmod(0o711 if uid is not None else 0o700)
    made.inputs.mkdir(mode=0o755)
    made.home.mkdir(mode=0o700)
    for item in request.inputs:
        if "/" in item.name or item.name.startswith("."):
            raise ValueError(f"{item.name!r} is not a plain file name")
        (made.inputs / item.name).write_bytes(item.content)
        (made.inputs / item.name).chmod(0o444)
    if uid is not None:
        os.chown(made.home, uid, uid)
        for path in _tree(request.workspace):
            os.chown(path, uid, uid, follow_symlinks=False)


def _tree(folder: Path) -> Iterator[str]:
    yield str(folder)
    for root, folders, files in os.walk(folder, followlinks=False):
        for name in (*folders, *files):
            yield os.path.join(root, name)
