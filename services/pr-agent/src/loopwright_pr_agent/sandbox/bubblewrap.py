"""The sandbox by bubblewrap: namespaces of its own for users, processes, mounts, network, IPC and host name.

As an ordinary user it is a user namespace with further ones disabled. As root bubblewrap needs none, and the launcher becomes another
user inside: then the limit on processes holds (the kernel exempts root's own uid) and nothing inside belongs to root.
"""

from __future__ import annotations

import base64
import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

from loopwright_pr_agent.sandbox import seccomp
from loopwright_pr_agent.sandbox.common import Scratch, own_uid, scratch, tasks_of_user
from loopwright_pr_agent.sandbox.port import RunRequest, RunResult, SandboxBroken
from loopwright_pr_agent.sandbox.process import LAUNCHER, Confined, environment_of, rlimits, run_confined

WORKSPACE, INPUTS, HOME, LAUNCHER_INSIDE = "/workspace", "/run/inputs", "/tmp", "/run/launcher.py"  # noqa: S108  names inside the sandbox
HOME_BYTES = 512 * 1024 * 1024  # /tmp is memory; builds seldom need more, and never more than the run's own memory is given
SHARED_MEMORY_BYTES = 64 * 1024 * 1024  # /dev/shm, as container engines size it: semaphores, and the small segments of test suites
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
ETC = (
    "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "localtime", "mime.types", "ssl/certs", "ca-certificates", "services",
    "protocols",
)  # fmt: skip


class BubblewrapSandbox:
    """``bwrap`` on this host. ``disable_userns``: False for versions or kernels that cannot; the filter closes that door too."""

    isolation = "bubblewrap"

    def __init__(self, program: str = "", *, disable_userns: bool = True) -> None:
        self._program = program or shutil.which("bwrap") or ""
        self._disable_userns = disable_userns

    async def run(self, request: RunRequest) -> RunResult:
        if not self._program:
            raise SandboxBroken("bubblewrap is not installed: there is no 'bwrap' on PATH")
        with own_uid() as uid:
            async with scratch(request, uid) as made:
                return await run_confined(self._confined(request, made, uid), request.limits)

    def _confined(self, request: RunRequest, made: Scratch, uid: int | None) -> Confined:
        inputs = {item.variable: f"{INPUTS}/{item.name}" for item in request.inputs}
        processes = request.limits.processes + (tasks_of_user() if uid is None else 0)
        job = {
            "argv": list(request.argv),
            "cwd": WORKSPACE,
            "environment": environment_of(request, inputs, HOME),
            "rlimits": rlimits(request.limits, processes),
            "landlock": None,
            "uid": uid,
            "gid": uid,
            "keep_capability": None,
            "seccomp": base64.b64encode(seccomp.assemble(seccomp.common_rules())).decode(),
        }
        facts = (
            "no network", "own processes, mounts, IPC and host name", "system and toolchains read-only", "system call filter",
            f"runs as user {uid}" if uid is not None else "own user namespace",
            "memory file systems of bounded size",
            "not covered: bugs of the host's kernel; the sum of all files written; shared anonymous memory of processes that cannot be "
            "read; memfd, System V IPC and message queues are refused",
        )  # fmt: skip
        return Confined((*self._command(request, made, uid), *_launch()), job, self.isolation, facts)

    def _command(self, request: RunRequest, made: Scratch, uid: int | None) -> list[str]:
        help_text = _help(self._program)

        def folder(path: str) -> list[str]:
            # Made here, so that another user may pass where the host closes the way, as /root, and where bwrap would make it 0700.
            return ["--perms", "0755", "--dir", path] if "--perms" in help_text else ["--dir", path]

        command = [self._program, "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
        if uid is None:
            command += ["--unshare-user"]
            if self._disable_userns and "--disable-userns" in help_text:
                command += ["--disable-userns"]
        command += ["--die-with-parent", "--new-session", "--clearenv", "--hostname", "sandbox", "--dev", "/dev", "--proc", "/proc"]

        def memory(path: str, bytes_max: int) -> list[str]:
            size = ["--size", str(min(bytes_max, request.limits.memory_bytes))] if "--size" in help_text else []
            return [*size, *(["--perms", "1777"] if "--perms" in help_text else []), "--tmpfs", path]

        command += memory(HOME, HOME_BYTES)
        # A version that cannot size it gets none: /dev is closed below, where an ordinary user could fill half of the host's memory.
        command += memory("/dev/shm", SHARED_MEMORY_BYTES) if "--size" in help_text else []  # noqa: S108
        command += ["--remount-ro", "/dev"]
        for path in SYSTEM:
            if os.path.islink(path):
                command += ["--symlink", os.readlink(path), path]
            elif os.path.isdir(path):
                command += ["--ro-bind", path, path]
        for path in ("/etc", "/etc/ssl", "/run"):
            command += folder(path)
        for name in ETC:
            command += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
        command += self._accounts(made, os.getuid() if uid is None else uid)
        for prefix in toolchain_folders(request.toolchains):
            for parent in [*reversed(prefix.parents)][1:]:
                command += folder(str(parent))
            command += ["--ro-bind", str(prefix), str(prefix)]
        command += ["--ro-bind", str(made.inputs), INPUTS, "--ro-bind", str(LAUNCHER), LAUNCHER_INSIDE]
        return [*command, "--bind", str(request.workspace), WORKSPACE, "--remount-ro", "/", "--chdir", "/", "--"]

    @staticmethod
    def _accounts(made: Scratch, uid: int) -> list[str]:
        arguments = []
        for name, line in (("passwd", f"sandbox:x:{uid}:{uid}:sandbox:{HOME}:/bin/sh\n"), ("group", f"sandbox:x:{uid}:\n")):
            place = made.inputs.parent / name
            place.write_text(line)
            place.chmod(0o444)
            arguments += ["--ro-bind", str(place), f"/etc/{name}"]
        return arguments


def toolchain_folders(toolchains: tuple[Path, ...]) -> list[Path]:
    """The folders to show inside: what was asked for and the launcher's own interpreter, without those the system already brings."""
    wanted = [path.absolute() for path in (*toolchains, Path(sys.base_prefix))]
    wanted += [path.resolve() for path in wanted]
    kept = [path for path in dict.fromkeys(wanted) if path.is_dir() and not path.is_relative_to("/usr") and path != Path("/")]
    return sorted(kept, key=lambda path: len(path.parts))  # an outer folder first: mounts go on top of each other


def _launch() -> tuple[str, ...]:
    return (interpreter(), "-I", "-S", LAUNCHER_INSIDE)


def interpreter() -> str:
    """The base interpreter, which is below ``sys.base_prefix``, not the virtual environment's link to it."""
    return os.path.realpath(sys.executable)


@functools.cache
def _help(program: str) -> str:
    try:
        return subprocess.run([program, "--help"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SandboxBroken(f"bubblewrap cannot be started: {error}") from error
