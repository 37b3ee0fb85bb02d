"""Grouping of a stream by the product's own path, without a model: `python -m bench.grouping FILE.jsonl --out PRED.jsonl`.

The rows go, one by one and in order, through the cluster service's handler: in-process bus, embedded index, the real embedding. Only `id`,
`timestamp`, `title`, `text` and `frames` are looked at. PRED.jsonl has one {"id", "report"} a row, in order; with `--suggestions K` also
the K earlier reports that fit best. A row of one line goes in as a log line, one with frames as an exception, all others as issues by people.

When the rows have a `group`, figures are printed after the stream: of the rows from `--scored-from` on (the first half is what the matcher
was fitted to when the file is the development set). The TF-IDF baseline of the public data's `score.py` is computed on the same rows.
`--curve FILE` writes the whole trade-off as CSV and SVG; `--upper-bound` streams once more, with a perfect adjudicator in a model's place.
"""

# ruff: noqa: E501  the drawing's and the figures' lines read better whole

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import logging
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog
from loopwright_cluster.adapters.qdrant_edge import QdrantEdgeIndex
from loopwright_cluster.adjudication import Question
from loopwright_cluster.app import open_embedding
from loopwright_cluster.costly import CostlyPath
from loopwright_cluster.domain import Exemplar
from loopwright_cluster.fingerprinting import Fingerprinting
from loopwright_cluster.grouping import v2
from loopwright_cluster.grouping.matcher import fitted
from loopwright_cluster.handlers import ProjectLocks, SignalGrouping
from loopwright_cluster.judging import Judging
from loopwright_cluster.records import Records
from loopwright_cluster.settings import ClusterSettings
from loopwright_common.bus import Outgoing, Received
from loopwright_common.clock import SystemClock
from loopwright_common.contracts.envelope import Envelope
from loopwright_common.contracts.subjects import SIGNALS
from loopwright_common.testing.memory_bus import MemoryBus

from bench.rows import kinds_of, load, signal_of
from bench.training import baseline

BATCH = 50


class Knows:
    """The perfect adjudicator: answers from the labels. What it makes of the stream is an upper bound, not a result."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._labels = {f"row-{number}": str(row["group"]) for number, row in enumerate(rows)}
        self.asked: list[int] = []

    async def choose(self, questions: Sequence[Question]) -> list[int]:
        self.asked += [row_of(question.newcomer) for question in questions]
        return [self._answer(question) for question in questions]

    def _answer(self, question: Question) -> int:
        label = self._labels[question.newcomer.signal_id]
        offered = [self._labels[item.signal_id] for item in question.candidates]
        return offered.index(label) + 1 if label in offered else 0


class Recorded(Judging):
    """The product's judging, remembering what it judged by new signal."""

    def __init__(self, adjudicator: Knows | None = None) -> None:
        super().__init__(adjudicator=adjudicator)
        self.judged: dict[str, v2.Judgement] = {}

    async def decide(self, index: Any, neighbourhood: Any, newcomer: Any, *rest: Any) -> v2.Judgement:
        judgement = await super().decide(index, neighbourhood, newcomer, *rest)
        self.judged[newcomer.signal_id] = judgement
        return judgement


class KeptVectors:
    """The embedding, its vectors kept between runs: they are the same every time, and take most of it."""

    def __init__(self, embedding: Any, folder: Path | None) -> None:
        self._embedding, self._folder = embedding, folder
        self._file = folder / f"{embedding.name}.npz" if folder else None
        self._kept: dict[str, Any] = {}
        if self._file is not None and self._file.exists():
            with np.load(self._file) as stored:
                self._kept = dict(zip(stored["names"].tolist(), stored["vectors"], strict=True))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._embedding, name)

    async def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        names = [hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:32] for text in texts]
        missing = {name: text for name, text in zip(names, texts, strict=True) if name not in self._kept}
        if missing:
            self._kept |= dict(zip(missing, await self._embedding.embed(list(missing.values())), strict=True))
        return np.stack([self._kept[name] for name in names])

    def keep(self) -> None:
        if self._file is not None and self._kept:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            np.savez(self._file, names=np.array(list(self._kept)), vectors=np.stack(list(self._kept.values())))


def row_of(exemplar: Exemplar) -> int:
    return int(exemplar.signal_id.removeprefix("row-"))


async def stream(
    rows: list[dict[str, Any]], cache: Path | None, adjudicator: Knows | None = None
) -> tuple[list[str], list[v2.Judgement | None]]:
    """Each row's report, and how it was judged where its fingerprint was new."""
    bus = MemoryBus("cluster")
    records = await Records.open(bus)
    fingerprinting = await Fingerprinting.open(bus)
    await fingerprinting.start()
    embedding, judging = KeptVectors(open_embedding(ClusterSettings()), cache), Recorded(adjudicator)
    reports: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="loopwright-bench-") as folder:
        index = QdrantEdgeIndex(Path(folder), embedding.dimensions)
        told: Any = Told(bus, reports)
        kept: Any = embedding
        grouping = SignalGrouping(told, records, kept, index, SystemClock(), ProjectLocks(), CostlyPath(0), fingerprinting, judging)
        signals = [signal_of(number, row, kind) for number, (row, kind) in enumerate(zip(rows, kinds_of(rows), strict=True))]
        for start in range(0, len(signals), BATCH):
            await grouping.handle([received(signal, start + at) for at, signal in enumerate(signals[start : start + BATCH])])
            if start % 1_000 == 0:
                print(f"  {start} of {len(signals)}", file=sys.stderr, flush=True)
        await index.close()
        await fingerprinting.stop()
    embedding.keep()
    await embedding.close()
    return [reports[signal.id] for signal in signals], [judging.judged.get(signal.id) for signal in signals]


class Told:
    """The bus, noting each signal's report from the facts that are published."""

    def __init__(self, bus: MemoryBus, reports: dict[str, str]) -> None:
        self._bus, self._reports = bus, reports

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    async def publish_batch(self, messages: Sequence[Outgoing]) -> None:
        for message in messages:
            fact: Any = message.payload
            for signal in (fact.signal, *fact.more):
                self._reports[signal.id] = fact.report_id


def received(signal: Any, number: int) -> Received[Any]:
    """The signal as the bus hands it in."""
    subject = SIGNALS.name(project=signal.project, source=signal.source)
    envelope = Envelope(id=f"m{number}", source="/services/bench", type=SIGNALS.event_type, time=datetime.now(UTC))
    stored = signal.model_dump_json().encode()
    return Received(subject, signal, envelope, SIGNALS.stream, number + 1, 1, signal.project, stored)


# ---------------------------------------------------------------------- figures


def ranked_rows(judged: Sequence[v2.Judgement | None]) -> list[list[tuple[int, float]]]:
    """For each row the earlier rows that stand for its candidates, best first, with their probability."""
    return [[(row_of(item.match.exemplar), item.score) for item in (one.ranked if one else ())] for one in judged]


def recalls(gold: Sequence[str], found: Sequence[str], ranked: list[list[tuple[int, float]]], scored: range) -> list[float]:
    """How often the right earlier report is among the first 1, 5, 10. A row whose fingerprint was known counts by the report it joined."""
    seen: set[str] = set()
    labels: dict[str, set[str]] = defaultdict(set)
    hits, needed = [0, 0, 0], 0
    for number, label in enumerate(gold):
        if label in seen and number in scored:
            needed += 1
            order = [gold[row] for row, _ in ranked[number]]
            if not order and label in labels[found[number]]:
                order = [label]
            for at, count in enumerate((1, 5, 10)):
                hits[at] += label in order[:count]
        seen.add(label)
        labels[found[number]].add(label)
    return [hit / max(1, needed) for hit in hits]


def curve_of(gold: Sequence[str], ranked: list[list[tuple[int, float]]], scored: range) -> list[tuple[float, float, float, float, float]]:
    """(threshold, precision, recall, F1, false-merge rate) of joining the best candidate from each threshold on, judged by its label."""
    seen: set[str] = set()
    rows = []
    for number, label in enumerate(gold):
        if number in scored and ranked[number]:
            row, probability = ranked[number][0]
            rows.append((probability, gold[row] == label, label in seen))
        seen.add(label)
    known = set(gold[: scored.start])
    needed = 0
    for number in scored:
        needed += gold[number] in known
        known.add(gold[number])
    new = len(scored) - needed
    rows.sort(key=lambda item: -item[0])
    found, right, wrong_new = [], 0, 0
    for count, (probability, is_right, is_known) in enumerate(rows, 1):
        right, wrong_new = right + is_right, wrong_new + (not is_known)
        precision, recall = right / count, right / max(1, needed)
        f1 = 2 * precision * recall / (precision + recall) if right else 0.0
        found.append((probability, precision, recall, f1, wrong_new / max(1, new)))
    return found


def write_curve(curve: list[tuple[float, float, float, float, float]], path: Path) -> None:
    """CSV, and beside it an SVG of attach F1 and precision over the false-merge rate."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["threshold,precision,recall,attach_f1,false_merge_rate"]
    lines += [",".join(f"{value:.4f}" for value in point) for point in curve[:: max(1, len(curve) // 400)]]
    path.with_suffix(".csv").write_text("\n".join(lines) + "\n")
    shown = [point for point in curve if point[4] <= 0.2]
    width, height, left, top = 640, 360, 56, 24

    def line(at: int, scale: float) -> str:
        return " ".join(f"{left + point[4] / 0.2 * width:.1f},{top + height - min(1, point[at] / scale) * height:.1f}" for point in shown)

    marks = "".join(
        f'<text x="{left + x / 0.2 * width:.0f}" y="{top + height + 18}" text-anchor="middle">{x:.2f}</text>'
        for x in (0, 0.05, 0.1, 0.15, 0.2)
    ) + "".join(
        f'<text x="{left - 8}" y="{top + height - y / 0.5 * height + 4:.0f}" text-anchor="end">{y:.1f}</text>'
        for y in (0, 0.1, 0.2, 0.3, 0.4, 0.5)
    )
    here = next((point for point in reversed(curve) if point[0] >= fitted().thresholds.join), None)
    dot = (
        f'<circle cx="{left + here[4] / 0.2 * width:.1f}" cy="{top + height - here[3] / 0.5 * height:.1f}" r="5" fill="#b3261e"/>'
        if here
        else ""
    )
    path.with_suffix(".svg").write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 24} {top + height + 44}" font-size="12">'
        f'<rect width="100%" height="100%" fill="#fff"/><path d="M{left} {top}V{top + height}H{left + width}" fill="none" stroke="#888"/>{marks}'
        f'<polyline points="{line(3, 0.5)}" fill="none" stroke="#1f5fbf" stroke-width="2"/>'
        f'<polyline points="{line(1, 0.5)}" fill="none" stroke="#2e7d32" stroke-width="2" stroke-dasharray="5 3"/>{dot}'
        f'<text x="{left + width / 2}" y="{top + height + 38}" text-anchor="middle">false-merge rate</text>'
        f'<text x="{left + 12}" y="{top + 14}" fill="#1f5fbf">attach F1 (dot: in use)</text>'
        f'<text x="{left + 12}" y="{top + 30}" fill="#2e7d32">precision of joins</text></svg>\n'
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.grouping", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--suggestions", type=int, default=0, help="also write so many earlier reports for each row, best first")
    parser.add_argument("--scored-from", type=int, default=0, help="the first row that counts in the figures")
    parser.add_argument(
        "--tune", type=Path, help="rows the baseline is tuned on (default: the rows before --scored-from, else the first 40 %%)"
    )
    parser.add_argument("--curve", type=Path, help="write the trade-off curve as CSV and SVG under this name")
    parser.add_argument(
        "--upper-bound",
        action="store_true",
        help="stream once more, with an adjudicator that knows the labels and may be asked as a model may",
    )
    parser.add_argument("--cache", type=Path, help="a folder for vectors, kept between runs")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    rows = load(options.file)
    reports, judged = asyncio.run(stream(rows, options.cache))
    ranked = ranked_rows(judged)
    if options.out:
        with options.out.open("w") as out:
            for number, (row, report) in enumerate(zip(rows, reports, strict=True)):
                line: dict[str, Any] = {"id": row["id"], "report": report}
                if options.suggestions:
                    line["suggestions"] = list(dict.fromkeys(reports[other] for other, _ in ranked[number]))[: options.suggestions]
                out.write(json.dumps(line) + "\n")
    if not all("group" in row for row in rows):
        print("no labels in the file: no figures")
        return
    gold, scored = [str(row["group"]) for row in rows], range(options.scored_from, len(rows))
    figures, recall = baseline.attach(gold, reports, scored), recalls(gold, reports, ranked, scored)
    print(f"{options.file.name}: {len(rows)} rows, scored {len(scored)}, {figures['needed']:.0f} with an earlier mate, no model")
    print(f"suggestions  recall@1/5/10  {recall[0]:.3f} / {recall[1]:.3f} / {recall[2]:.3f}")
    print(f"decisions    attach P {figures['precision']:.3f} R {figures['recall']:.3f} F1 {figures['f1']:.3f}, {figures['joins']:.0f} joins, "
          f"false-merge rate {figures['false_merges']:.4f}")  # fmt: skip
    curve = curve_of(gold, ranked, scored)
    for limit in (0.005, 0.01, 0.02, 0.035, 0.05, 0.07, 0.1):
        within = [point for point in curve if point[4] <= limit]
        if within:
            print(
                f"  at a false-merge rate up to {limit:.3f}: F1 {within[-1][3]:.3f}, precision {within[-1][1]:.2f}, threshold {within[-1][0]:.3f}"
            )
    if options.curve:
        write_curve(curve, options.curve)
    tune = load(options.tune) if options.tune else rows[: options.scored_from or int(len(rows) * 0.4)]
    print_baseline(baseline.figures(rows, tune, scored), figures, recall, curve)
    if options.upper_bound:
        knows = Knows(rows)
        upper = baseline.attach(gold, asyncio.run(stream(rows, options.cache, knows))[0], scored)
        asked = sum(number in scored for number in knows.asked) / max(1, len(scored))
        print(f"upper bound, not a result: the same stream with a perfect adjudicator, asked about {asked:.3f} of the rows:")
        print(f"             attach P {upper['precision']:.3f} R {upper['recall']:.3f} F1 {upper['f1']:.3f}, "
              f"false-merge rate {upper['false_merges']:.4f}")  # fmt: skip


def print_baseline(
    compared: dict[str, Any], figures: dict[str, float], recall: Sequence[float], curve: list[tuple[float, float, float, float, float]]
) -> None:
    """The TF-IDF search on the same rows, and the product's figures over its; also from where on they would be at half its false merges."""
    print(f"TF-IDF       recall@1/5/10  {' / '.join(f'{value:.3f}' for value in compared['recall'])}")
    names = ("tuned", "best possible threshold")
    for name in names:
        print(f"TF-IDF ({name})  attach F1 {compared[name]['f1']:.3f}, false-merge rate {compared[name]['false_merges']:.4f}")
    ratios = [mine / theirs if theirs else float("nan") for mine, theirs in zip(recall, compared["recall"], strict=True)]
    print(f"ratios       recall@1/5/10  {' / '.join(f'{value:.2f}' for value in ratios)}")
    for name in names:
        f1, false_merges = compared[name]["f1"] or float("nan"), compared[name]["false_merges"] or float("nan")
        print(f"ratios ({name})  attach F1 {figures['f1'] / f1:.2f}, false-merge rate {figures['false_merges'] / false_merges:.2f}")
        half = max((point for point in curve if point[4] <= false_merges / 2), key=lambda point: point[3], default=None)
        if half is not None:
            print(f"  joining from {half[0]:.3f} on: attach F1 {half[3] / f1:.2f}, false-merge rate {half[4] / false_merges:.2f}")


if __name__ == "__main__":
    main()
