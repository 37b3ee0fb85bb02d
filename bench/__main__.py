"""``python -m bench``: all benchmarks, one after the other."""

from __future__ import annotations

import importlib
import sys
import time

BENCHMARKS = ("raw", "ingest", "throughput", "stack", "logs", "stacks")


def main() -> None:
    chosen = sys.argv[1:] or list(BENCHMARKS)
    for name in chosen:
        print(f"\n== {name}", flush=True)
        started = time.monotonic()
        importlib.import_module(f"bench.{name}").main()
        print(f"   ({time.monotonic() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
