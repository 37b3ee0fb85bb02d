"""Two replicas of the service on a real nats-server; the active one is killed in the middle of a batch."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from loopwright_cluster.adapters.qdrant_server import QdrantServerIndex
from loopwright_cluster.app import Service
from loopwright_cluster.embedding.hashing import HashingEmbedding
from loopwright_cluster.grouping.fingerprints import fingerprint
from loopwright_common.bus import ConsumerSpec, Outgoing, Received
from loopwright_common.clock import SystemClock
from loopwright_common.contracts.subjects import GROUPS_UPDATED, SIGNALS
from qdrant_client import AsyncQdrantClient

from tests.sim.conftest import crash

PLACES = ("checkout", "search", "basket", "login", "parcels", "ledger")
PROJECTS = ("shop", "bank", "crm")


class Stuck:
    """The bus of a process that hangs at one of its facts, with its fingerprints recorded, until it is killed."""

    def __init__(self, bus: Any, after: int) -> None:
        self._bus, self._left = bus, after
        self.hangs = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    async def publish_batch(self, messages: Sequence[Outgoing]) -> Any:
        self._left -= 1
        if self._left < 0:
            self.hangs.set()
            await asyncio.Event().wait()
        return await self._bus.publish_batch(messages)


@pytest.mark.parametrize("after", [0, 1, 4])
async def test_when_the_active_replica_dies_in_a_batch_the_other_finishes_it_and_opens_nothing_twice(new_nats_bus: Any, after: int) -> None:
    index = await QdrantServerIndex.open(AsyncQdrantClient(location=":memory:"), "loopwright", 384)
    ingest, gateway = await new_nats_bus("ingest"), await new_nats_bus("gateway")
    told: list[Any] = []

    async def hear(messages: Sequence[Received[Any]]) -> None:
        told.extend(fact for message in messages for fact in message.payload.apart())

    await gateway.consume_batches(ConsumerSpec("gateway-groups", "gateway", (GROUPS_UPDATED,), ordered=True, batch_max=100), hear)
    signals = [crash(number, PLACES[number % len(PLACES)], PROJECTS[number % len(PROJECTS)]) for number in range(240)]

    async def publish(some: Sequence[Any]) -> None:
        tokens = [{"project": item.project, "source": item.source} for item in some]
        await ingest.publish_batch([Outgoing(SIGNALS, item, f"signal-{item.id}", named) for item, named in zip(some, tokens, strict=True)])

    await publish(signals[:120])
    first_bus, second_bus = await new_nats_bus("cluster"), await new_nats_bus("cluster")
    stuck: Any = Stuck(first_bus, after)
    first = Service(stuck, HashingEmbedding(), index, SystemClock(), batch_max=20)
    second = Service(second_bus, HashingEmbedding(), index, SystemClock(), batch_max=20)
    await first.start()
    async with asyncio.timeout(15):
        await stuck.hangs.wait()
    await second.start()
    await publish(signals[120:])

    client, first_bus._connection._client = first_bus._connection._client, None  # as if its process had been killed: nothing is released
    client._transport.close()
    for _, task in first_bus._consumers:
        task.cancel()
    for task in first_bus._members._tasks:
        task.cancel()
    async with asyncio.timeout(60):
        while len({fact.signal.id for fact in told}) < len(signals):
            await asyncio.sleep(0.05)

    reports: dict[str, str] = {}
    for fact in told:  # told again or not, it is the same
        assert reports.setdefault(fact.signal.id, fact.report_id) == fact.report_id
    by_fingerprint: dict[tuple[str, str], set[str]] = {}
    for item in signals:
        by_fingerprint.setdefault((item.project, fingerprint(item).key), set()).add(reports[item.id])
    assert all(len(found) == 1 for found in by_fingerprint.values())
    assert not await ingest.dead_letters()
    await second.pause(timedelta(seconds=5))
    await first._records.stop()  # type: ignore[union-attr]
    await asyncio.sleep(0)
