"""Grouping under load, as ratios within one run, on a nats-server that syncs every write.

`python -m bench.throughput [--full] [--memory]`, at 1,000 and 10,000 existing reports, with ``--full`` at 100,000 too:

known path   signals of known fingerprints, until their facts are stored, to a bare nats-py consumer that fetches and acknowledges them
new path     signals of new fingerprints, until their facts are stored, to the embedding alone with the same texts
(of both the median of five rounds, each of some seconds; the new ones stay, so there are 5,000 more reports at the end)
latency      from the acknowledgement of a signal to that of its fact, at a steady 200/s of which one in a hundred is new

``--memory`` groups a million known signals and prints the resident memory at ten points (some minutes).
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from loopwright_cluster.adapters.qdrant_edge import QdrantEdgeIndex
from loopwright_cluster.app import Service, open_embedding, tune_the_interpreter
from loopwright_cluster.domain import Exemplar
from loopwright_cluster.grouping.describe import describe
from loopwright_cluster.grouping.fingerprints import fingerprint
from loopwright_cluster.ports import Embedding
from loopwright_cluster.records import FingerprintRecord, Records
from loopwright_cluster.settings import ClusterSettings
from loopwright_common.bus import Outgoing
from loopwright_common.clock import SystemClock
from loopwright_common.contracts.reports import GroupingDecision, ReportState, ReportTransitioned
from loopwright_common.contracts.signals import Signal, StackFrame
from loopwright_common.contracts.subjects import SIGNALS
from loopwright_common.nats_bus import NatsBus
from loopwright_common.testing.nats_server import NatsServer

from bench.known_path import BATCH, FINGERPRINTS, MOMENT, measure_raw, open_bus, signal

SIZES = (1_000, 10_000)
SIZE_FULL = 100_000
KNOWN = 10_000
ROUNDS = 5  # both sides of a ratio in turn, as a machine is not equally fast for a minute; the median ratio counts
NEW = 1_000  # several batches: of 200, a tenth of the time is spent before the first text is embedded and after the last
RATE_PER_SECOND = 200
STEADY_SECONDS = 15
NEW_ONE_IN = 100
MILLION = 1_000_000
POINTS = 10
WRITES_AT_ONCE = 64
WORDS = (
    *("ledger", "parcel", "voucher", "tariff", "anchor", "gasket", "beacon", "canvas", "dynamo"),
    *("ember", "fathom", "girder", "harbour", "inlet", "jigsaw", "kernel", "lattice", "meadow"),
)


def newcomer(number: int) -> Signal:
    """An exception of a place that nothing else speaks of, with a text of usual length."""
    rng = random.Random(number)
    words = rng.sample(WORDS, 6)
    frames = [StackFrame(file=f"/srv/{words[0]}/{words[depth]}{number}.py", function=f"{words[depth]}_{number}") for depth in range(4)]
    return Signal(
        id=f"n{number}", project="bench", source="sentry", kind="exception", title=f"ValueError: {' '.join(words)}",
        exception_type="ValueError", exception_value=" ".join(words), service="shop", occurred_at=MOMENT, received_at=MOMENT,
        transaction=f"/{words[1]}/{words[2]}", frames=tuple(frames), body=f"A {words[3]} was closed, and the {words[4]} had no {words[5]}.",
    )  # fmt: skip


class Facts:
    """The bus of the service, telling when each signal's fact was stored."""

    def __init__(self, bus: NatsBus) -> None:
        self._bus = bus
        self.stored: dict[str, float] = {}
        self.count = 0
        self.marks: list[tuple[float, int]] = []  # when so many had been stored
        self.keep = True
        self._changed = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    async def publish_batch(self, messages: Sequence[Outgoing]) -> Any:
        acks = await self._bus.publish_batch(messages)
        now = time.perf_counter()
        for message in messages:
            told: Any = message.payload
            self.count += 1 + len(told.more)
            if self.keep:
                self.stored.update((item.id, now) for item in (told.signal, *told.more))
        self.marks.append((now, self.count))
        self._changed.set()
        return acks

    async def reached(self, count: int, seconds: float = 900.0) -> None:
        async with asyncio.timeout(seconds):
            while self.count < count:
                self._changed.clear()
                await self._changed.wait()

    def rate(self) -> float:
        """Signals a second from the first batch stored to the last: the time to start is not counted."""
        (first, before), (last, after) = self.marks[0], self.marks[-1]
        return (after - before) / (last - first)


async def prepare(bus: NatsBus, index: QdrantEdgeIndex, count: int) -> None:
    """So many reports, each with a fingerprint, an exemplar and a vector, as if they had come one by one."""
    records = await Records.open(bus)
    rng = np.random.default_rng(count)
    slots = asyncio.Semaphore(WRITES_AT_ONCE)
    decision = GroupingDecision(outcome="opened", rule="new", reason="made for a benchmark", fingerprint="f", grouping_version="bench")

    async def record(exemplar: Exemplar) -> None:
        async with slots:
            entry = FingerprintRecord(
                report_id=exemplar.report_id, signal_id=exemplar.signal_id, decision=decision, decided_at=MOMENT,
                exemplar=exemplar.to_payload(),
            )  # fmt: skip
            await records.create("bench", exemplar.fingerprint, entry)
            told = ReportTransitioned(
                project="bench", report_id=exemplar.report_id, sequence=1, from_state=None, to_state=ReportState.GATHERING,
                actor="policy", reason="made for a benchmark", at=MOMENT,
            )  # fmt: skip
            await records.transition(told)

    for start in range(0, count, 1_000):
        exemplars = []
        for number in range(start, min(start + 1_000, count)):
            made = newcomer(10_000_000 + number)
            exemplars.append(describe(made, fingerprint(made)).in_report(f"r{number}"))
        vectors = rng.standard_normal((len(exemplars), 384)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        await index.upsert(exemplars, vectors)
        await asyncio.gather(*(record(exemplar) for exemplar in exemplars))


@dataclass
class Line:
    """The figures at one number of reports."""

    reports: int
    raw: float
    known: float
    embedded: float
    new: float
    p50_ms: float
    p99_ms: float


class Lent:
    """The embedding, which outlives the services that use it."""

    def __init__(self, embedding: Embedding) -> None:
        self._embedding = embedding

    def __getattr__(self, name: str) -> Any:
        return getattr(self._embedding, name)

    async def close(self) -> None:
        return


async def publish(bus: NatsBus, signals: Sequence[Signal]) -> None:
    tokens = {"project": "bench", "source": "sentry"}
    for start in range(0, len(signals), 500):
        await bus.publish_batch([Outgoing(SIGNALS, item, f"b{item.id}", tokens) for item in signals[start : start + 500]])


async def grouped(server: NatsServer, index: QdrantEdgeIndex, embedding: Embedding) -> tuple[Service, Facts]:
    facts = Facts(await open_bus(server, "cluster"))
    bus: Any = facts
    lent: Any = Lent(embedding)
    service = Service(bus, lent, index, SystemClock(), batch_max=BATCH)
    await service.start()
    return service, facts


async def steady(bus: NatsBus, facts: Facts, first: int) -> tuple[float, float]:
    """p50 and p99 in milliseconds from accepted to grouped."""
    accepted: dict[str, float] = {}
    count = RATE_PER_SECOND * STEADY_SECONDS

    async def send(item: Signal) -> None:
        await bus.publish(Outgoing(SIGNALS, item, f"b{item.id}", {"project": "bench", "source": "sentry"}))
        accepted[item.id] = time.perf_counter()

    before = facts.count
    started = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for number in range(first, first + count):
            await asyncio.sleep(max(0.0, started + (number - first) / RATE_PER_SECOND - time.perf_counter()))
            tasks.create_task(send(newcomer(number) if number % NEW_ONE_IN == 0 else signal(number)))
    await facts.reached(before + count)
    waits = [max(0.0, facts.stored[id] - at) * 1_000 for id, at in accepted.items()]
    p50, p99 = np.percentile(waits, [50, 99])
    return float(p50), float(p99)


async def new_round(bus: NatsBus, facts: Facts, embedding: Embedding, first: int) -> tuple[float, float, float]:
    """The ratio, and its two rates: texts embedded and signals of new fingerprints grouped, a second."""
    arrivals = [newcomer(number) for number in range(first, first + NEW)]
    texts = [describe(item, fingerprint(item)).text for item in arrivals]
    started = time.perf_counter()
    await embedding.embed(texts)
    embedded = NEW / (time.perf_counter() - started)
    before, started = facts.count, time.perf_counter()
    await publish(bus, arrivals)
    await facts.reached(before + NEW)
    new = NEW / (time.perf_counter() - started)
    return new / embedded, embedded, new


async def measure(size: int, embedding: Embedding) -> Line:
    with tempfile.TemporaryDirectory(prefix="loopwright-bench-") as folder:
        server = NatsServer(Path(folder) / "nats", store_bytes=2 * 1024**3).start()
        index = QdrantEdgeIndex(Path(folder) / "vectors", embedding.dimensions)
        try:
            bus = await open_bus(server, "ingest")
            await prepare(bus, index, size)
            # The problems that the known signals are of, and the parts of the path, are warm before anything is measured.
            service, facts = await grouped(server, index, embedding)
            await publish(bus, [signal(number) for number in range(FINGERPRINTS)])
            await facts.reached(FINGERPRINTS)
            await index.in_memory("bench")
            p50, p99 = await steady(bus, facts, 5_000_000)
            rounds = [await new_round(bus, facts, embedding, number * NEW) for number in range(ROUNDS)]
            _, embedded, new = sorted(rounds)[ROUNDS // 2]
            rounds = []
            for number in range(ROUNDS):
                await service.pause()
                await publish(bus, [signal(10_000_000 + number * KNOWN + at) for at in range(KNOWN)])
                raw = await measure_raw(server, KNOWN)
                service, facts = await grouped(server, index, embedding)
                await facts.reached(KNOWN)
                rounds.append((facts.rate() / raw, raw, facts.rate()))
            _, raw, known = sorted(rounds)[ROUNDS // 2]
            await service.stop(timedelta(seconds=5))
            await bus.close()
        finally:
            server.kill()
    return Line(size, raw, known, embedded, new, p50, p99)


def resident_mib() -> float:
    """Resident memory of this process, from /proc."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1024**2


async def memory(embedding: Embedding, count: int = MILLION) -> None:
    """Groups so many known signals, and prints the resident memory on the way; publisher and service are one process."""
    with tempfile.TemporaryDirectory(prefix="loopwright-bench-") as folder:
        server = NatsServer(Path(folder) / "nats", store_bytes=16 * 1024**3).start()
        index = QdrantEdgeIndex(Path(folder) / "vectors", embedding.dimensions)
        bus = await open_bus(server, "ingest")
        service, facts = await grouped(server, index, embedding)
        facts.keep = False
        step = count // POINTS
        print(f"\n{'signals':>10}{'resident MiB':>14}", flush=True)
        try:
            for point in range(POINTS):
                for start in range(point * step, (point + 1) * step, 500):
                    await publish(bus, [signal(number) for number in range(start, start + 500)])
                    await facts.reached(start - 20_000)  # no further ahead: the memory is the service's, not a backlog's
                await facts.reached((point + 1) * step)
                facts.marks.clear()
                print(f"{facts.count:>10}{resident_mib():>14.1f}", flush=True)
        finally:
            await service.stop(timedelta(seconds=5))
            await bus.close()
            server.kill()


async def run(arguments: Sequence[str]) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    embedding = open_embedding(ClusterSettings())
    tune_the_interpreter()
    print(f"embedding {embedding.name}{' (a stand-in: no model is there)' if embedding.degraded else ''}; batches of {BATCH}")
    try:
        if "--memory" in arguments:
            await memory(embedding)
            return
        print(
            f"{'reports':>8}{'raw/s':>9}{'known/s':>9}{'ratio':>7}{'embed/s':>9}{'new/s':>8}{'ratio':>7}{'p50 ms':>8}{'p99 ms':>8}",
            flush=True,
        )
        lines = []
        for size in (*SIZES, SIZE_FULL) if "--full" in arguments else SIZES:
            line = await measure(size, embedding)
            lines.append(line)
            print(
                f"{line.reports:>8}{line.raw:>9.0f}{line.known:>9.0f}{line.known / line.raw:>7.2f}{line.embedded:>9.0f}{line.new:>8.0f}"
                f"{line.new / line.embedded:>7.2f}{line.p50_ms:>8.1f}{line.p99_ms:>8.1f}",
                flush=True,
            )
        print(json.dumps([vars(line) for line in lines]))
    finally:
        await embedding.close()


def main(arguments: Sequence[str] = ()) -> None:
    asyncio.run(run(arguments))


if __name__ == "__main__":
    main(sys.argv[1:])
