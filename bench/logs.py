"""Grouping accuracy of log lines, by the product's own fingerprints, without any setting for a system.

`python -m bench.logs [FILE.jsonl ...]`: without files, the log systems of the public data set beside the checkout (`../shared/data`, or the
folder in LOOPWRIGHT_BENCH_DATA). Each line is fed as a signal of kind `log`, in order; a decision is final. Grouping accuracy, as the log
parsing literature has it: the share of lines whose predicted group holds exactly the lines of their true group.

The time for a fingerprint is printed as a ratio to reading the same signal from JSON, in the same run.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loopwright_cluster.grouping.fingerprints import fingerprint
from loopwright_cluster.grouping.logs import Templates
from loopwright_common.contracts.signals import Signal

DATA = Path(os.environ.get("LOOPWRIGHT_BENCH_DATA", str(Path(__file__).parents[2] / "shared" / "data"))) / "grouping" / "loghub"
MOMENT = datetime(2026, 11, 26, 10, tzinfo=UTC)


def signal(row: dict[str, Any], service: str) -> Signal:
    """The row as the ingest hands a log line on: the title is cut, the body has the whole."""
    line = row["title"]
    return Signal(
        id=row["id"], project="bench", source="http", kind="log", title=line[:512],
        body="\n".join(filter(None, (line, row["text"])))[:16_384],
        occurred_at=MOMENT, received_at=MOMENT, service=service[:64],
    )  # fmt: skip


def grouping_accuracy(gold: Sequence[str], found: Sequence[str]) -> float:
    """The share of items whose found group is exactly their true one."""
    true, guessed = defaultdict(set), defaultdict(set)
    for number, (label, guess) in enumerate(zip(gold, found, strict=True)):
        true[label].add(number)
        guessed[guess].add(number)
    return sum(len(items) for items in guessed.values() if items == true[gold[min(items)]]) / len(gold)


def measure(path: Path) -> tuple[float, int, int, float, float]:
    """(accuracy, groups, groups found, seconds for the fingerprints, seconds for reading the signals)."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    texts = [signal(row, path.stem).model_dump_json().encode() for row in rows]
    started = time.perf_counter()
    signals = [Signal.model_validate_json(text) for text in texts]
    read = time.perf_counter() - started
    templates = Templates()
    started = time.perf_counter()
    found = [fingerprint(item, templates=templates).key for item in signals]
    taken = time.perf_counter() - started
    gold = [row["group"] for row in rows]
    return grouping_accuracy(gold, found), len(set(gold)), len(set(found)), taken, read


def main(paths: Iterable[Path] = ()) -> None:
    files = sorted(paths) or sorted(DATA.glob("*.jsonl"))
    if not files:
        print(f"no log systems to measure with: {DATA} is not there; name files, or set LOOPWRIGHT_BENCH_DATA")
        return
    total = taken = read = 0.0
    print(f"{'system':<16} {'accuracy':>8} {'groups':>7} {'found':>6}")
    for path in files:
        accuracy, groups, found, *seconds = measure(path)
        total, taken, read = total + accuracy, taken + seconds[0], read + seconds[1]
        print(f"{path.stem:<16} {accuracy:8.4f} {groups:7d} {found:6d}")
    print(f"{'mean':<16} {total / len(files):8.4f}")
    print(f"fingerprinting a line takes {taken / read:.2f} of reading its signal from JSON")


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
