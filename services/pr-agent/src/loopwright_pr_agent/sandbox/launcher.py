"""Runs inside the child, confines itself, then becomes the command. Standard library only; reads its job as JSON on standard input.

Order matters: paths are opened with what rights there are, then rights are given away, then the filter closes the doors behind.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import fcntl
import json
import os
import resource
import signal
import struct
import sys
from typing import Any

PR_SET_PDEATHSIG, PR_SET_KEEPCAPS, PR_SET_NO_NEW_PRIVS, PR_CAPBSET_DROP, PR_CAP_AMBIENT = 1, 8, 38, 24, 47
PR_CAP_AMBIENT_RAISE, PR_CAP_AMBIENT_CLEAR_ALL = 2, 4
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
CAP_LAST = 63
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446  # the same on x86_64 and aarch64
O_PATH = 0o10000000

libc = ctypes.CDLL(None, use_errno=True)


def checked(value: int, what: str) -> int:
    if value < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return value


def prctl(option: int, *values: int) -> int:
    arguments = [ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:4]]
    return int(libc.prctl(option, *arguments))


def restrict_files(job: dict[str, Any]) -> int:
    """Landlock: only the listed paths, with the listed rights."""
    attributes = struct.pack("=QQQ", job["handled"], job["handled_net"], job["scoped"])[: job["attributes_bytes"]]
    ruleset = checked(libc.syscall(LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0), "landlock ruleset")
    for path, rights, optional in job["rules"]:
        try:
            descriptor = os.open(path, O_PATH | os.O_CLOEXEC)
        except OSError:
            if optional:
                continue
            raise
        rule = struct.pack("=Qi", rights, descriptor)
        checked(libc.syscall(LANDLOCK_ADD_RULE, ruleset, 1, rule, 0), f"landlock rule for {path}")
        os.close(descriptor)
    return ruleset


def capset(bits: int) -> None:
    header = struct.pack("=Ii", 0x20080522, 0)
    low, high = bits & 0xFFFFFFFF, bits >> 32
    checked(libc.capset(header, struct.pack("=IIIIII", low, low, low, high, high, high)), "capset")


def give_up_rights(uid: int | None, gid: int, keep: int | None) -> None:
    """Another user, no capabilities but ``keep`` (which only opens folders on the way to a toolchain), none to be had back."""
    held = os.geteuid() == 0
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    if held:
        for capability in range(CAP_LAST + 1):
            if capability != keep:
                prctl(PR_CAPBSET_DROP, capability)
    if uid is not None:
        prctl(PR_SET_KEEPCAPS, 1 if keep is not None else 0)
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    capset(0 if keep is None else 1 << keep)
    if keep is not None:
        checked(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, keep), "ambient capability")


def install_filter(program: bytes) -> None:
    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p)]

    buffer = ctypes.create_string_buffer(program, len(program))
    described = Program(len(program) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    address = ctypes.addressof(described)
    checked(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, address), "seccomp")


def confine(job: dict[str, Any]) -> None:
    for name, value in job["rlimits"]:
        limit = getattr(resource, name)
        hard = resource.getrlimit(limit)[1]
        bounded = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (bounded, bounded))
    checked(prctl(PR_SET_NO_NEW_PRIVS, 1), "no_new_privs")
    ruleset = restrict_files(job["landlock"]) if job["landlock"] else None
    give_up_rights(job["uid"], job["gid"], job["keep_capability"])
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if ruleset is not None:
        checked(libc.syscall(LANDLOCK_RESTRICT_SELF, ruleset, 0), "landlock")
        os.close(ruleset)
    os.chdir(job["cwd"])
    install_filter(base64.b64decode(job["seccomp"]))


def main() -> None:
    with open(0, "rb", closefd=False) as stream:
        job = json.loads(stream.read())
    status = job["status_fd"]
    fcntl.fcntl(status, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    try:
        null = os.open("/dev/null", os.O_RDONLY)
        os.dup2(null, 0)
        for name in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else map(str, range(3, 256)):
            if int(name) > 2 and int(name) != status:
                with contextlib.suppress(OSError):
                    os.close(int(name))
        os.umask(0o022)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        confine(job)
        os.write(status, b"R")
        os.execvpe(job["argv"][0], job["argv"], job["environment"])  # noqa: S606  it is the purpose of this program
    except BaseException as error:
        os.write(status, f"E{type(error).__name__}: {error}".encode()[:2000])
        sys.exit(126)


if __name__ == "__main__":
    main()
