"""Grouping of known fingerprints as a ratio to raw JetStream consumption, on the same nats-server in the same run.

`python -m bench.known_path [signals]`. Raw consumption reads the same messages and acknowledges them, nothing else: once as bytes, and once
through the bus, which also parses each signal. Grouping then fingerprints each, looks up its report and publishes the fact durably.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import structlog
from loopwright_cluster.adapters.qdrant_edge import QdrantEdgeIndex
from loopwright_cluster.app import Service
from loopwright_cluster.embedding.hashing import HashingEmbedding
from loopwright_common.bus import ConsumerSpec, Outgoing, Received
from loopwright_common.clock import SystemClock
from loopwright_common.contracts.signals import Signal, StackFrame
from loopwright_common.contracts.subjects import SIGNALS
from loopwright_common.nats_bus import NatsBus
from loopwright_common.testing.nats_server import NatsServer

SIGNALS_COUNT = 10_000
FINGERPRINTS = 50
BATCH = 400
MOMENT = datetime(2026, 11, 26, 10, tzinfo=UTC)


def signal(number: int) -> Signal:
    """An exception as sentry-sdk sends it, 8 frames deep; one of `FINGERPRINTS` problems."""
    problem = number % FINGERPRINTS
    frames = [StackFrame(file=f"/srv/shop/part{depth}.py", function=f"step_{depth}", line=number % 500) for depth in range(7)]
    frames.append(StackFrame(file=f"/srv/shop/area{problem}.py", function=f"compute_area{problem}"))
    return Signal(
        id=f"s{number}", project="bench", source="sentry", kind="exception", title=f"KeyError: '{number}'", exception_type="KeyError",
        exception_value=f"'{number}'", service="shop", release="abc123", occurred_at=MOMENT, received_at=MOMENT,
        transaction=f"/area{problem}", frames=tuple(frames), body="x" * 200,
    )  # fmt: skip


class Counter:
    """Counts what a consumer was handed; ``reached`` returns the seconds from the start to the count."""

    def __init__(self, wanted: int) -> None:
        self.wanted, self.count, self.done = wanted, 0, asyncio.Event()

    async def take(self, batch: Sequence[Received[Any]]) -> None:
        self.count += len(batch)
        if self.count >= self.wanted:
            self.done.set()

    async def reached(self, started: float) -> float:
        async with asyncio.timeout(300):
            await self.done.wait()
        return time.perf_counter() - started


async def open_bus(server: NatsServer, service: str) -> NatsBus:
    bus = NatsBus(server.url, service, store_bytes=server.store_bytes // 2)
    await bus.connect()
    return bus


async def fill(bus: NatsBus, count: int) -> None:
    for start in range(0, count, 500):
        numbers = range(start, min(start + 500, count))
        tokens = {"project": "bench", "source": "sentry"}
        await bus.publish_batch([Outgoing(SIGNALS, signal(number), f"b{number}", tokens) for number in numbers])


async def measure_raw(server: NatsServer, count: int) -> float:
    """Messages a second by a bare nats-py pull consumer: fetch, acknowledge, nothing else."""
    import nats
    from nats.js.api import ConsumerConfig

    connection = await nats.connect(server.url)
    stream = connection.jetstream()
    subscription = await stream.pull_subscribe("signals.*.*", durable="raw", stream="SIGNALS", config=ConsumerConfig(max_ack_pending=BATCH))
    started, taken = time.perf_counter(), 0
    while taken < count:
        messages = await subscription.fetch(BATCH, timeout=10)
        for message in messages[:-1]:
            await message.ack()
        await messages[-1].ack_sync()  # as an ordered flow does: known ground before the next batch
        taken += len(messages)
    seconds = time.perf_counter() - started
    await connection.close()
    return count / seconds


async def measure_bus(server: NatsServer, count: int) -> float:
    bus, counter = await open_bus(server, "raw"), Counter(count)
    started = time.perf_counter()
    await bus.consume_batches(ConsumerSpec("raw-bus", "raw", (SIGNALS,), ordered=True, batch_max=BATCH), counter.take)
    seconds = await counter.reached(started)
    await bus.close()
    return count / seconds


class CountingBus:
    """The bus, counting the facts it has stored."""

    def __init__(self, bus: NatsBus, counter: Counter) -> None:
        self._bus, self._counter = bus, counter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    async def publish_batch(self, messages: Sequence[Outgoing]) -> Any:
        acks = await self._bus.publish_batch(messages)
        await self._counter.take([signal for message in messages for signal in message.payload.apart()])
        return acks


async def measure_grouping(server: NatsServer, count: int, folder: Path) -> float:
    """Signals a second until each one's fact is stored. The first of each fingerprint is new and counted too: 50 of 10,000."""
    counter = Counter(count)
    bus: Any = CountingBus(await open_bus(server, "cluster"), counter)
    service = Service(bus, HashingEmbedding(), QdrantEdgeIndex(folder, 384), SystemClock(), batch_max=BATCH)
    started = time.perf_counter()
    await service.start()
    seconds = await counter.reached(started)
    await service.stop(timedelta(seconds=5))
    return count / seconds


async def run(count: int) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with tempfile.TemporaryDirectory(prefix="loopwright-bench-") as folder:
        server = NatsServer(Path(folder) / "nats", store_bytes=1024**3).start()
        try:
            bus = await open_bus(server, "ingest")
            await fill(bus, count)
            await bus.close()
            raw = await measure_raw(server, count)
            parsed = await measure_bus(server, count)
            grouped = await measure_grouping(server, count, Path(folder) / "vectors")
        finally:
            server.kill()
    print(f"{count} signals, {FINGERPRINTS} fingerprints, batches of {BATCH}, nats-server with sync_interval always")
    print(f"raw JetStream consumption (bytes, acknowledged)   {raw:9.0f}/s   1.00")
    print(f"through the bus (parsed, acknowledged)            {parsed:9.0f}/s   {parsed / raw:.2f}")
    print(f"grouped (fingerprint, report, fact stored)        {grouped:9.0f}/s   {grouped / raw:.2f}")


def main(count: int = SIGNALS_COUNT) -> None:
    asyncio.run(run(count))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else SIGNALS_COUNT)
