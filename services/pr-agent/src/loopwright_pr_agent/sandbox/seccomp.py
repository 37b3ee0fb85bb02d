"""A small assembler for seccomp filters: a list of rules in, the kernel's ``struct sock_filter[]`` out.

Rules deny; everything else is allowed, so that compilers and test runners of any language work. The machine's architecture is checked
first and the x32 numbers of x86_64 are refused, since the rules know neither. Numbers are from the kernel's syscall tables
(arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h); the layout from seccomp(2) and linux/filter.h.
"""

from __future__ import annotations

import errno
import platform
import struct
from dataclasses import dataclass
from typing import Literal

LOAD, JUMP_EQUAL, JUMP_GREATER_EQUAL, AND, RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
NUMBER_OFFSET, ARCH_OFFSET, ARGUMENTS_OFFSET = 0, 4, 16
X32_BIT = 0x40000000
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
AF_UNIX, SOCK_DGRAM, SOCK_TYPE_MASK = 1, 2, 0xF
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
# CLONE_NEW{TIME,NS,CGROUP,UTS,IPC,USER,PID,NET}, linux/sched.h
NEW_NAMESPACES = 0x80 | 0x20000 | 0x2000000 | 0x4000000 | 0x8000000 | 0x10000000 | 0x20000000 | 0x40000000

# name: (x86_64, aarch64); None where the machine has no such call
NUMBERS: dict[str, tuple[int | None, int | None]] = {
    "ioctl": (16, 29), "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201), "socketpair": (53, 199),
    "clone": (56, 220), "kill": (62, 129), "ptrace": (101, 117), "syslog": (103, 116), "setpgid": (109, 154), "setsid": (112, 157),
    "uselib": (134, None), "vhangup": (153, 58), "pivot_root": (155, 41), "_sysctl": (156, None), "adjtimex": (159, 171),
    "chroot": (161, 51), "acct": (163, 89), "settimeofday": (164, 170), "mount": (165, 40), "umount2": (166, 39), "swapon": (167, 224),
    "swapoff": (168, 225), "reboot": (169, 142), "sethostname": (170, 161), "setdomainname": (171, 162), "iopl": (172, None),
    "ioperm": (173, None), "create_module": (174, None), "init_module": (175, 105), "delete_module": (176, 106), "quotactl": (179, 60),
    "nfsservctl": (180, 42), "lookup_dcookie": (212, 18), "clock_settime": (227, 112), "kexec_load": (246, 104), "add_key": (248, 217),
    "request_key": (249, 218), "keyctl": (250, 219), "migrate_pages": (256, 238), "unshare": (272, 97), "move_pages": (279, 239),
    "vmsplice": (278, 75), "perf_event_open": (298, 241), "fanotify_init": (300, 262), "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265), "clock_adjtime": (305, 266), "setns": (308, 268), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "kcmp": (312, 272), "finit_module": (313, 273), "kexec_file_load": (320, 294), "bpf": (321, 280),
    "userfaultfd": (323, 282), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fspick": (433, 433), "clone3": (435, 435), "pidfd_getfd": (438, 438), "process_madvise": (440, 440), "mount_setattr": (442, 442),
    "quotactl_fd": (443, 443), "memfd_secret": (447, 447), "memfd_create": (319, 279),
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190), "semop": (65, 193), "semctl": (66, 191),
    "semtimedop": (220, 192), "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187), "mq_open": (240, 180),
    "mq_unlink": (241, 181), "prlimit64": (302, 261), "setpriority": (141, 140), "ioprio_set": (251, 30), "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119), "sched_setaffinity": (203, 122), "sched_setattr": (314, 274),
}  # fmt: skip

DANGEROUS = (
    "ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "kcmp", "pidfd_getfd", "keyctl", "add_key", "request_key",
    "bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register", "mount", "umount2", "pivot_root",
    "chroot", "open_tree", "move_mount", "fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr", "unshare", "setns",
    "kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "create_module", "open_by_handle_at",
    "name_to_handle_at", "fanotify_init", "acct", "swapon", "swapoff", "reboot", "sethostname", "setdomainname", "settimeofday",
    "clock_settime", "clock_adjtime", "adjtimex", "iopl", "ioperm", "syslog", "quotactl", "quotactl_fd", "nfsservctl", "lookup_dcookie",
    "uselib", "_sysctl", "vhangup", "migrate_pages", "move_pages", "vmsplice", "memfd_secret",
)  # fmt: skip

# Memory that belongs to no process's private pages, so that neither RLIMIT_DATA nor resident sizes bound it, and that (System V, message
# queues) may be the host's, by key, and outlives the run. "Not there" lets libraries fall back to files.
UNCOUNTED_MEMORY = (
    "memfd_create", "shmget", "shmat", "shmctl", "semget", "semop", "semctl", "semtimedop", "msgget", "msgsnd", "msgrcv", "msgctl",
    "mq_open", "mq_unlink",
)  # fmt: skip
PRIORITY_OF_USER, IO_PRIORITY_OF_USER = 2, 3  # PRIO_USER, IOPRIO_WHO_USER: all processes of a user, ours outside too


@dataclass(frozen=True)
class Deny:
    """Answers ``error`` to a call: always, or when an argument's low 32 bits, masked, compare with ``value`` as said."""

    call: str
    error: int = errno.EPERM
    when: Literal["always", "equal", "not_equal", "any_bit"] = "always"
    argument: int = 0
    value: int = 0
    mask: int = 0xFFFFFFFF


def common_rules() -> list[Deny]:
    """What no sandbox allows: reaching into other processes, the kernel's rarely used doors, new namespaces, sockets but unix ones."""
    rules = [Deny(call) for call in DANGEROUS]
    rules += [Deny(call, errno.ENOSYS) for call in UNCOUNTED_MEMORY]
    rules += [
        Deny("clone", when="any_bit", value=NEW_NAMESPACES),
        Deny("clone3", errno.ENOSYS),  # its flags are in memory, where a filter cannot look; libraries fall back to clone
        Deny("socket", errno.EAFNOSUPPORT, "not_equal", value=AF_UNIX),
        Deny("socketpair", errno.EAFNOSUPPORT, "not_equal", value=AF_UNIX),
        Deny("ioctl", when="equal", argument=1, value=TIOCSTI),
        Deny("ioctl", when="equal", argument=1, value=TIOCLINUX),
    ]
    return rules


def shared_host_rules() -> list[Deny]:
    """What must also be closed where the sandbox shares the host's process table and file system.

    Landlock does not guard connecting to a unix socket by its path (a container engine's, say), so no socket can be made but a
    connected pair; a datagram pair could still send to a path. ``setsid`` and ``setpgid`` answer success and do nothing, so that one
    signal to the process group reaches everything in the end.

    Limits, priorities and processors may be set for the caller only (process 0): a number could be a process of the same user outside.
    That also refuses ``pthread_setaffinity_np`` and ``pthread_setschedparam``, which name their thread.
    """
    return [
        Deny("socket", errno.EAFNOSUPPORT),
        Deny("socketpair", errno.EAFNOSUPPORT, "equal", argument=1, value=SOCK_DGRAM, mask=SOCK_TYPE_MASK),
        Deny("connect"), Deny("bind"), Deny("listen"),
        Deny("kill", when="equal", value=0xFFFFFFFF),
        Deny("setsid", 0), Deny("setpgid", 0),
        *(Deny(call, when="not_equal", value=0) for call in ("prlimit64", "sched_setparam", "sched_setscheduler", "sched_setaffinity",
                                                             "sched_setattr")),
        *(Deny(call, when="not_equal", argument=1, value=0) for call in ("setpriority", "ioprio_set")),
        Deny("setpriority", when="equal", value=PRIORITY_OF_USER), Deny("ioprio_set", when="equal", value=IO_PRIORITY_OF_USER),
    ]  # fmt: skip


def supported(machine: str | None = None) -> bool:
    """Whether filters can be made for this machine."""
    return (machine or platform.machine()) in ARCHITECTURES


def assemble(rules: list[Deny], machine: str | None = None) -> bytes:
    """The filter as the kernel takes it. Raises ValueError for a machine whose numbers are not known here."""
    name = machine or platform.machine()
    if name not in ARCHITECTURES:
        raise ValueError(f"no system call numbers for {name}; x86_64 and aarch64 are known")
    column = list(ARCHITECTURES).index(name)
    program = [_op(LOAD, ARCH_OFFSET), _op(JUMP_EQUAL, ARCHITECTURES[name], 1, 0), _op(RETURN, KILL), _op(LOAD, NUMBER_OFFSET)]
    if name == "x86_64":
        program += [_op(JUMP_GREATER_EQUAL, X32_BIT, 0, 1), _op(RETURN, KILL)]
    for rule in rules:
        number = NUMBERS[rule.call][column]
        if number is None:
            continue
        block = _block(rule)
        program += [_op(JUMP_EQUAL, number, 0, len(block)), *block]
    program.append(_op(RETURN, ALLOW))
    if len(program) > 4_096:  # BPF_MAXINSNS
        raise ValueError(f"the filter has {len(program)} instructions; the kernel takes 4096")
    return b"".join(program)


def _block(rule: Deny) -> list[bytes]:
    deny = _op(RETURN, ERRNO | rule.error)
    if rule.when == "always":
        return [deny]
    # Little-endian on both machines: the low half of the 64-bit argument comes first.
    compare = [_op(LOAD, ARGUMENTS_OFFSET + 8 * rule.argument)]
    if rule.when == "any_bit":
        compare += [_op(AND, rule.value), _op(JUMP_EQUAL, 0, 1, 0)]
    else:
        compare += [_op(AND, rule.mask)]
        compare += [_op(JUMP_EQUAL, rule.value, 0, 1) if rule.when == "equal" else _op(JUMP_EQUAL, rule.value, 1, 0)]
    return [*compare, deny, _op(LOAD, NUMBER_OFFSET)]


def _op(code: int, value: int, jump_true: int = 0, jump_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, jump_true, jump_false, value & 0xFFFFFFFF)
