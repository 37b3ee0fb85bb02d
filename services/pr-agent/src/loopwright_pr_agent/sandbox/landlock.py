"""The sandbox for hosts where namespaces are closed, as in many containers: Landlock, a system call filter and rlimits.

Landlock (kernel 5.13 and later) confines the files; the filter leaves no sockets but connected pairs; as root the run becomes a user of
its own, so that signals, memory and environments of others are out of reach. What this does not cover is said in the facts.
Rights and structures: landlock(7), include/uapi/linux/landlock.h.
"""

from __future__ import annotations

import base64
import ctypes
import os
from pathlib import Path
from typing import Any

from loopwright_pr_agent.sandbox import seccomp
from loopwright_pr_agent.sandbox.bubblewrap import ETC, SYSTEM, interpreter, toolchain_folders
from loopwright_pr_agent.sandbox.common import Scratch, own_uid, scratch, tasks_of_user
from loopwright_pr_agent.sandbox.port import RunRequest, RunResult, SandboxBroken
from loopwright_pr_agent.sandbox.process import LAUNCHER, Confined, environment_of, rlimits, run_confined

CREATE_RULESET, VERSION_FLAG = 444, 1
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
ALL_OF_ABI_1 = (1 << 13) - 1
BIND_TCP, CONNECT_TCP = 1, 2
SCOPE_ABSTRACT_UNIX, SCOPE_SIGNAL = 1, 2
READ = EXECUTE | READ_FILE | READ_DIR
FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
FACTS_OF_HOST = (
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/loadavg",
    "/proc/version",
    "/proc/filesystems",
    "/sys/devices/system/cpu",
)
ABI_WITH_SIGNAL_SCOPE = 6
DAC_OVERRIDE, DAC_READ_SEARCH = 1, 2


def abi() -> int:
    """The kernel's Landlock ABI; 0 where it has none or it is switched off."""
    libc = ctypes.CDLL(None, use_errno=True)
    return max(0, int(libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), VERSION_FLAG)))


class LandlockSandbox:
    """Landlock with whatever ABI the kernel has."""

    isolation = "landlock+seccomp"

    async def run(self, request: RunRequest) -> RunResult:
        version = abi()
        if version < 1:
            raise SandboxBroken("this kernel has no Landlock (5.13 and later, with 'landlock' among the active security modules)")
        with own_uid() as uid:
            async with scratch(request, uid) as made:
                return await run_confined(self._confined(request, made, uid, version), request.limits)

    def _confined(self, request: RunRequest, made: Scratch, uid: int | None, version: int) -> Confined:
        inputs = {item.variable: f"{made.inputs}/{item.name}" for item in request.inputs}
        processes = request.limits.processes + (tasks_of_user() if uid is None else 0)
        keep = _capability_for_way([request.workspace, made.home, *toolchain_folders(request.toolchains)]) if uid is not None else None
        rules = [*seccomp.common_rules(), *seccomp.shared_host_rules()]
        job = {
            "argv": list(request.argv),
            "cwd": str(request.workspace),
            "environment": environment_of(request, inputs, str(made.home)),
            "rlimits": rlimits(request.limits, processes),
            "landlock": self._rules(request, made, version),
            "uid": uid,
            "gid": uid,
            "keep_capability": keep,
            "seccomp": base64.b64encode(seccomp.assemble(rules)).decode(),
        }
        command = (interpreter(), "-I", "-S", str(LAUNCHER))
        return Confined(command, job, self.isolation, _facts(uid, version, keep))

    @staticmethod
    def _rules(request: RunRequest, made: Scratch, version: int) -> dict[str, Any]:
        handled = ALL_OF_ABI_1
        handled |= REFER if version >= 2 else 0
        handled |= TRUNCATE if version >= 3 else 0
        handled |= IOCTL_DEV if version >= 5 else 0
        everything = handled & ~IOCTL_DEV
        # (path, rights, whether it may be missing)
        rules: list[tuple[str, int, bool]] = [(path, READ, True) for path in SYSTEM if not os.path.islink(path)]
        for name in ETC:
            rules.append((f"/etc/{name}", READ if os.path.isdir(f"/etc/{name}") else READ_FILE, True))
        rules += [("/etc/passwd", READ_FILE, True), ("/etc/group", READ_FILE, True)]  # names only; who may log in is in shadow
        rules += [(path, (WRITE_FILE | READ_FILE) & handled, True) for path in DEVICES]
        rules += [(path, READ if os.path.isdir(path) else READ_FILE, True) for path in FACTS_OF_HOST]
        rules += [(str(path), READ, False) for path in toolchain_folders(request.toolchains)]
        rules += [
            (str(made.inputs), READ_FILE | READ_DIR, False),
            (str(made.home), everything, False),
            (str(request.workspace), everything, False),
        ]
        return {
            "handled": handled,
            "handled_net": BIND_TCP | CONNECT_TCP if version >= 4 else 0,
            "scoped": SCOPE_ABSTRACT_UNIX | SCOPE_SIGNAL if version >= ABI_WITH_SIGNAL_SCOPE else 0,
            "attributes_bytes": 24 if version >= ABI_WITH_SIGNAL_SCOPE else 16 if version >= 4 else 8,
            "rules": rules,
        }


def _facts(uid: int | None, version: int, keep: int | None) -> tuple[str, ...]:
    facts = [f"files by Landlock ABI {version}", "system call filter: no sockets but connected pairs"]
    facts.append(f"runs as user {uid}" if uid is not None else "runs as the service's user")
    if keep is not None:
        facts.append("keeps the right to pass closed folders on the way to a toolchain; Landlock still bounds what is read")
    missing = [
        "bugs of the host's kernel",
        "the sum of all files written",
        "shared anonymous memory of processes that cannot be read",
        "file names and sizes (stat) of the host",
        "no /proc inside",
        "no /dev/shm inside, since it would be the host's: POSIX semaphores and shared memory fail (multiprocessing.Lock, Pool, Queue)",
        "memfd, System V IPC and message queues are refused, and threads cannot be pinned to processors",
    ]
    if uid is None and version < ABI_WITH_SIGNAL_SCOPE:
        missing.append("signals to processes of the same user")
    if version < 3:
        missing.append("truncating files that the user may write")
    return (*facts, "not covered: " + "; ".join(missing))


def _capability_for_way(paths: list[Path]) -> int | None:
    """The one capability that another user needs to reach these paths, such as a toolchain below /root; None when any user may pass.

    Raises SandboxBroken where it is needed and not held.
    """
    folders = {folder for path in paths for folder in path.parents}
    closed = sorted(str(folder) for folder in folders if not folder.stat().st_mode & 0o001)
    if not closed:
        return None
    held = _effective_capabilities()
    for capability in (DAC_READ_SEARCH, DAC_OVERRIDE):
        if held >> capability & 1:
            return capability
    raise SandboxBroken(f"another user cannot pass {closed[0]}: open it (chmod o+x) or keep the toolchain and work folder elsewhere")


def _effective_capabilities() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0
