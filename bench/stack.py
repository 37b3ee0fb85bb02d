"""The idle stack: how long until everything is ready, and the memory it holds.

``python -m bench.stack``. Start-up is a ratio to starting one empty Python process with the web framework imported, in the same run.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from loopwright_cli.demo import free_ports
from loopwright_cli.stack import Stack
from loopwright_cli.supervisor import Supervisor

ROOT = Path(__file__).resolve().parents[1]
IDLE_SECONDS = 5.0


def resident_bytes(pid: int) -> int:
    """Proportional set size where the kernel tells it (shared pages are counted once over all), else the resident set."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * 4096


def main() -> None:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import fastapi, uvicorn, pydantic_settings"], check=True)
    bare = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        for turn in ("first start", "second start"):
            stack = Stack(Path(folder) / "data", free_ports(9400), ROOT / ".cache" / "models")
            started = time.perf_counter()
            with Supervisor(stack, lambda _: None) as supervisor:
                ready = time.perf_counter() - started
                print(f"{turn}: ready in {ready:.1f} s, {ready / bare:.1f} of one bare web process ({bare:.1f} s)")
                if turn == "second start":
                    time.sleep(IDLE_SECONDS)
                    sizes = {name: resident_bytes(pid) for name in supervisor.running if (pid := supervisor.pid(name)) is not None}
                    for name, size in sorted(sizes.items(), key=lambda item: -item[1]):
                        print(f"  {name:<14}{size / 1024**2:7.0f} MiB")
                    print(f"  {'in all':<14}{sum(sizes.values()) / 1024**2:7.0f} MiB")


if __name__ == "__main__":
    main()
