"""What both adapters need to know of the host: the uid to run as, the folders of a run, how many processes are there already."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from loopwright_pr_agent.sandbox.port import RunRequest, SandboxBroken

# Debian Policy 9.2.2: 60000 to 64999 are given to nobody by default. Each run at once gets one of its own, so that its processes can be
# counted, limited (RLIMIT_NPROC counts per user) and ended together.
FIRST_UID, UIDS = 60_100, 400


@contextmanager
def own_uid() -> Iterator[int | None]:
    """A user id for one run where the service is root; None where it is not and so cannot become anybody else.

    Held by binding an abstract unix socket of that name: over all processes of this host, and free again when its holder dies. Two runs
    under one id would end each other's processes. Raises SandboxBroken when all are taken.
    """
    if os.geteuid() != 0:
        yield None
        return
    order = list(range(FIRST_UID, FIRST_UID + UIDS))
    random.shuffle(order)
    for uid in order:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as claim:
            try:
                claim.bind(f"\0loopwright-sandbox-user-{uid}")
            except OSError:
                continue
            yield uid
            return
    raise SandboxBroken(f"all {UIDS} user ids for sandboxes are in use; lower LOOPWRIGHT_PR_AGENT_CONCURRENCY")


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
