#!/opt/loopwright/.venv/bin/python
"""Stands as `python` first on the PATH of the dev image: runs what Python would, and again whenever a file of ours changes.

Polls, because a file system that a cluster's node shares with a laptop tells nobody of changes. When the program ends by itself its exit
code is ours, so that a migration's Job ends as it should; when we are told to end it is told too.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PYTHON = "/opt/loopwright/.venv/bin/python"
WATCHED = Path(os.environ.get("LOOPWRIGHT_RELOAD_DIR", "/opt/loopwright/packages"))
POLL_SECONDS = 0.5
END_SECONDS = 15  # as long as a service drains; then it is killed


def state() -> dict[str, int]:
    found = {}
    for path in WATCHED.rglob("*.py"):
        try:
            found[str(path)] = path.stat().st_mtime_ns
        except FileNotFoundError:
            continue  # just being replaced: the next look sees it
    return found


def end(child: "subprocess.Popen[bytes]") -> None:
    child.terminate()
    try:
        child.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def main() -> int:
    told: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: told.append(received))
    while True:
        seen = state()
        child = subprocess.Popen([PYTHON, *sys.argv[1:]])
        while child.poll() is None:
            time.sleep(POLL_SECONDS)
            if told:
                end(child)
                return 128 + told[0]
            if state() != seen:
                print("reload: a file changed, starting again", file=sys.stderr, flush=True)
                end(child)
                break
        else:
            return child.returncode


if __name__ == "__main__":
    sys.exit(main())
