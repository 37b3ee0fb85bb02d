"""Raw JetStream: what publishing and consuming cost without anything around them, on this machine, in this run.

``python -m bench.raw``. Other benchmarks call ``publish_rates`` and ``consume_rate`` to have something to be a ratio of.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loopwright_common.bus import ConsumerSpec, Outgoing, Received
from loopwright_common.contracts.signals import Signal
from loopwright_common.contracts.subjects import SIGNALS
from loopwright_common.nats_bus import NatsBus
from loopwright_common.testing.nats_server import NatsServer

MESSAGES = 10_000
BATCH = 100
BATCHES_AT_ONCE = 4
SINGLES = 1_500
MOMENT = datetime(2026, 11, 26, 10, tzinfo=UTC)


@dataclass(frozen=True)
class PublishRates:
    """Messages a second: one by one, and in atomic batches of 100."""

    single: float
    batched: float


def message(number: int, run: str) -> Outgoing:
    """A signal of about 500 bytes."""
    signal = Signal(
        id=f"{run}-{number}", project="bench", source="http", kind="custom", title=f"number {number}", body="x" * 120,
        occurred_at=MOMENT, received_at=MOMENT, service="shop",
    )  # fmt: skip
    return Outgoing(SIGNALS, signal, f"signal:{run}:{number}", {"project": "bench", "source": "http"}, signal.id)


async def publish_rates(bus: NatsBus, run: str = "raw") -> PublishRates:
    """Publishes acknowledged messages, every write synced, and says how many a second."""
    started = time.perf_counter()
    for number in range(SINGLES):
        await bus.publish(message(number, f"{run}-single"))
    single = SINGLES / (time.perf_counter() - started)
    batches = [[message(number, f"{run}-batch") for number in range(start, start + BATCH)] for start in range(0, MESSAGES, BATCH)]
    slots = asyncio.Semaphore(BATCHES_AT_ONCE)

    async def send(batch: list[Outgoing]) -> None:
        async with slots:
            await bus.publish_batch(batch)

    started = time.perf_counter()
    await asyncio.gather(*(send(batch) for batch in batches))
    return PublishRates(single, MESSAGES / (time.perf_counter() - started))


async def consume_rate(bus: NatsBus, expected: int, name: str = "bench-raw") -> float:
    """Messages a second that a durable consumer fetches in batches and acknowledges."""
    seen = 0
    done = asyncio.Event()

    async def take(batch: Sequence[Received[Any]]) -> None:
        nonlocal seen
        seen += len(batch)
        if seen >= expected:
            done.set()

    started = time.perf_counter()
    await bus.consume_batches(ConsumerSpec(name, "bench", (SIGNALS,), batch_max=500), take)
    async with asyncio.timeout(120):
        await done.wait()
    return seen / (time.perf_counter() - started)


async def measure() -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = NatsServer(Path(folder), store_bytes=2 * 1024**3).start()
        bus = NatsBus(server.url, "bench", store_bytes=1024**3)
        await bus.connect()
        try:
            rates = await publish_rates(bus)
            consumed = await consume_rate(bus, SINGLES + MESSAGES)
        finally:
            await bus.close()
            server.kill()
    print(f"publishing one by one       {rates.single:8.0f}/s   1.00")
    print(f"publishing in batches       {rates.batched:8.0f}/s  {rates.batched / rates.single:5.2f} of one by one")
    print(f"consuming and acknowledging {consumed:8.0f}/s  {consumed / rates.batched:5.2f} of batched publishing")


def main() -> None:
    asyncio.run(measure())


if __name__ == "__main__":
    sys.exit(main())
