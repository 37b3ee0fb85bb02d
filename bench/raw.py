"""Raw JetStream: what publishing and consuming cost without anything around them, on this machine, in this run.

``python -m bench.raw``. Raw is nats-py with ready-made bytes, nothing else; the bus beside it also writes and reads contracts, envelopes
and traces. Other benchmarks call ``publish_rates`` and ``consume_rate`` to have something to be a ratio of.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nats
from loopwright_common.bus import ConsumerSpec, Outgoing, Received
from loopwright_common.contracts.signals import Signal
from loopwright_common.contracts.subjects import SIGNALS
from loopwright_common.identifiers import new_id
from loopwright_common.nats_bus import NatsBus
from loopwright_common.testing.nats_server import NatsServer
from nats.aio.client import Client
from nats.js.api import ConsumerConfig, DiscardPolicy, StreamConfig

MESSAGES = 10_000
BATCH = 100
RAW = "bench.raw"
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
    """Acknowledged messages a second by bare nats-py to the bus's server, every write synced: ready bytes, an id, no envelope."""
    client = await nats.connect(bus.url)
    payload = message(0, run).payload.model_dump_json().encode()
    stream = client.jetstream()
    # A stream of its own, with the settings of those of the table: what is not an envelope has no place in theirs.
    await stream.add_stream(
        StreamConfig(
            name="BENCH", subjects=[RAW], max_bytes=128 * 1024**2, discard=DiscardPolicy.NEW, duplicate_window=600, allow_atomic=True
        )
    )
    try:

        async def one(number: int) -> None:
            await stream.publish(RAW, payload, headers={"Nats-Msg-Id": f"{run}-single-{number}"})

        async def many(start: int) -> None:
            await raw_batch(client, payload, [f"{run}-batch-{number}" for number in range(start, start + BATCH)])

        return await _rates(one, many)
    finally:
        await stream.delete_stream("BENCH")
        await client.close()


async def raw_batch(client: Client, payload: bytes, ids: Sequence[str]) -> None:
    """One atomic batch (NATS ADR-50)."""
    batch = new_id()
    for index, identifier in enumerate(ids, start=1):
        headers = {"Nats-Msg-Id": identifier, "Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(index)}
        if index < len(ids):
            await client.publish(RAW, payload, headers=headers)
        else:
            answer = await client.request(RAW, payload, timeout=10, headers={**headers, "Nats-Batch-Commit": "1"})
            assert json.loads(answer.data)["count"] == len(ids), answer.data


async def bus_publish_rates(bus: NatsBus, run: str = "bus") -> PublishRates:
    """The same through the bus: each message is a contract, made before the clock starts, with an envelope."""
    singles = [message(number, f"{run}-single") for number in range(SINGLES)]
    batched = [message(number, f"{run}-batch") for number in range(MESSAGES)]

    async def one(number: int) -> None:
        await bus.publish(singles[number])

    async def many(start: int) -> None:
        await bus.publish_batch(batched[start : start + BATCH])

    return await _rates(one, many)


async def _rates(one: Callable[[int], Awaitable[None]], many: Callable[[int], Awaitable[None]]) -> PublishRates:
    started = time.perf_counter()
    for number in range(SINGLES):
        await one(number)
    single = SINGLES / (time.perf_counter() - started)
    slots = asyncio.Semaphore(BATCHES_AT_ONCE)

    async def send(start: int) -> None:
        async with slots:
            await many(start)

    started = time.perf_counter()
    await asyncio.gather(*(send(start) for start in range(0, MESSAGES, BATCH)))
    return PublishRates(single, MESSAGES / (time.perf_counter() - started))


async def raw_consume_rate(bus: NatsBus, expected: int, name: str = "bench-bare") -> float:
    """Messages a second by a bare nats-py pull consumer: fetch 500, acknowledge, nothing else."""
    client = await nats.connect(bus.url)
    try:
        config = ConsumerConfig(max_ack_pending=1_000)
        subscription = await client.jetstream().pull_subscribe("signals.*.*", durable=name, stream="SIGNALS", config=config)
        started, taken = time.perf_counter(), 0
        while taken < expected:
            messages = await subscription.fetch(500, timeout=10)
            for received in messages[:-1]:
                await received.ack()
            await messages[-1].ack_sync()
            taken += len(messages)
        return taken / (time.perf_counter() - started)
    finally:
        await client.close()


async def consume_rate(bus: NatsBus, expected: int, name: str = "bench-raw") -> float:
    """Messages a second through a consumer of the bus: read, handed over in batches, acknowledged."""
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
            raw = await publish_rates(bus)
            ours = await bus_publish_rates(bus)
            taken = await raw_consume_rate(bus, SINGLES + MESSAGES)
            consumed = await consume_rate(bus, SINGLES + MESSAGES)
        finally:
            await bus.close()
            server.kill()
    print("                              raw nats-py    the bus")
    print(f"publishing one by one          {raw.single:8.0f}/s {ours.single:8.0f}/s  {ours.single / raw.single:5.2f}")
    print(f"publishing in batches of {BATCH}   {raw.batched:8.0f}/s {ours.batched:8.0f}/s  {ours.batched / raw.batched:5.2f}")
    print(f"consuming and acknowledging    {taken:8.0f}/s {consumed:8.0f}/s  {consumed / taken:5.2f}")
    print(f"a batch to singles             {raw.batched / raw.single:8.1f}   {ours.batched / ours.single:8.1f}")


def main() -> None:
    asyncio.run(measure())


if __name__ == "__main__":
    sys.exit(main())
