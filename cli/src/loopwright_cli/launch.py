"""Starts a program that ends when its parent does: ``python launch.py <parent's pid> <program> <arguments ...>``.

A supervisor that is killed cannot stop its children; the kernel can (prctl PR_SET_PDEATHSIG, Linux). Standard library only, run by path, so
that it costs a few milliseconds.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent = int(sys.argv[1])
    os.setsid()  # Ctrl-C at the terminal is the supervisor's: it stops its children in order
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)  # the parent died before the kernel was asked
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606  the supervisor gives the program


if __name__ == "__main__":
    main()
