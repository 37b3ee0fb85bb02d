"""A process that dies at a chosen effect: every call of its bus, its buckets and its index is counted, and one of them is its last."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from loopwright_cluster.adapters.qdrant_server import QdrantServerIndex
from loopwright_cluster.app import Service
from loopwright_cluster.embedding.hashing import HashingEmbedding
from loopwright_cluster.grouping.fingerprints import fingerprint
from loopwright_common.bus import BatchHandler, Conflict, ConsumerSpec, Handler, Outgoing
from loopwright_common.contracts.signals import Signal
from loopwright_common.contracts.subjects import GROUPS_UPDATED, SIGNALS
from loopwright_common.testing.clock import FakeClock
from loopwright_common.testing.memory_bus import Broker, MemoryBus
from qdrant_client import AsyncQdrantClient

START = datetime(2026, 11, 26, 10, tzinfo=UTC)


class Died(BaseException):
    """The process ended here."""


class Fuse:
    """Counts effects, and ends the process just before or just after the ``at``-th. After its end nothing has any effect."""

    def __init__(self, at: int = 0, *, after: bool = False) -> None:
        self.at, self.after, self.count = at, after, 0
        self.blown = asyncio.Event()

    async def run(self, effect: Callable[[], Awaitable[Any]]) -> Any:
        if self.blown.is_set():
            raise Died
        self.count += 1
        if self.count != self.at:
            return await effect()
        if self.after:
            await effect()
        self.blown.set()
        raise Died


class Mortal:
    """A port of a process that may die: the calls named are effects, or reads that it may die of."""

    def __init__(self, target: Any, fuse: Fuse, *names: str) -> None:
        self._target, self._fuse, self._names = target, fuse, names

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if name not in self._names:
            return found

        async def call(*arguments: Any) -> Any:
            return await self._fuse.run(lambda: found(*arguments))

        return call


class MortalBus(Mortal):
    """A batch may be cut anywhere: the server stores messages one by one when it cannot store them together."""

    def __init__(self, bus: Any, fuse: Fuse) -> None:
        super().__init__(bus, fuse, "publish")

    async def publish_batch(self, messages: Sequence[Outgoing]) -> list[Any]:
        return [await self.publish(message) for message in messages]

    async def consume(self, spec: ConsumerSpec, handler: Handler) -> None:
        await self._target.consume(spec, _handled_until_death(handler))

    async def consume_batches(self, spec: ConsumerSpec, handler: BatchHandler) -> None:
        await self._target.consume_batches(spec, _handled_until_death(handler))

    async def key_value(self, bucket: str) -> Any:
        return MortalBucket(await self._target.key_value(bucket), self._fuse, "get", "get_many", "create", "update", "put")


class MortalBucket(Mortal):
    """Creating many may be cut anywhere: what a server does not take together is written one by one."""

    async def create_many(self, values: Mapping[str, bytes]) -> dict[str, int]:
        created = {}
        for key, value in values.items():
            with contextlib.suppress(Conflict):
                created[key] = await self.create(key, value)
        return created


def _handled_until_death(handler: Callable[[Any], Awaitable[None]]) -> Any:
    async def handle(messages: Any) -> None:
        try:
            await handler(messages)
        except Died:
            # The broker in memory has no ack_wait: what the dead had in hand is given back as by one that is told to stop.
            raise asyncio.CancelledError from None

    return handle


class World:
    """What outlives every process: the broker and the vector server."""

    def __init__(self, index: QdrantServerIndex) -> None:
        self.clock = FakeClock(START + timedelta(hours=1))
        self.broker = Broker(self.clock)
        self.index = index
        self._watching: list[asyncio.Task[None]] = []

    async def publish(self, signals: Sequence[Signal]) -> None:
        tokens = [{"project": item.project, "source": item.source} for item in signals]
        ingest = MemoryBus("ingest", broker=self.broker)
        messages = [Outgoing(SIGNALS, item, f"signal-{item.project}-{item.id}", named) for item, named in zip(signals, tokens, strict=True)]
        await ingest.publish_batch(messages)

    async def start(self, fuse: Fuse, batch_max: int) -> MemoryBus:
        """A process of the service; when the fuse blows it is gone, with all it had in hand. Returns its bus."""
        memory = MemoryBus("cluster", broker=self.broker)
        bus: Any = MortalBus(memory, fuse)
        index: Any = Mortal(self.index, fuse, "nearest", "spread", "upsert", "missing", "hybrid", "move", "assign")
        service = Service(bus, HashingEmbedding(), index, self.clock, batch_max=batch_max)
        with contextlib.suppress(Died):
            await service.start()
        if fuse.at:
            self._watching.append(asyncio.create_task(self._bury(memory, fuse)))
        memory.service_parts = service  # type: ignore[attr-defined]
        return memory

    async def _bury(self, memory: MemoryBus, fuse: Fuse) -> None:
        await fuse.blown.wait()
        await self.end(memory)

    async def end(self, memory: MemoryBus) -> None:
        """Takes the process away; what it had in hand is delivered again."""
        for task in list(memory._tasks):
            task.cancel()
        await asyncio.gather(*memory._tasks, return_exceptions=True)
        await memory.close(timedelta(0))
        for part in (memory.service_parts._words, memory.service_parts._records):  # type: ignore[attr-defined]
            if part is not None:
                await part.stop()

    async def settle(self, signals: Sequence[Signal], fuse: Fuse | None = None) -> None:
        """Lets time pass until every signal has been told of, or the process is dead. Raises TimeoutError."""
        wanted = {(item.project, item.id) for item in signals}
        async with asyncio.timeout(30):
            while wanted - {(fact.project, fact.signal.id) for fact in self.told()}:
                if fuse is not None and fuse.blown.is_set():
                    return
                await asyncio.sleep(0.001)
                self.clock.advance(timedelta(seconds=1))  # what was given back falls due

    def told(self) -> list[Any]:
        found: Any = MemoryBus("test", broker=self.broker).published(GROUPS_UPDATED)
        return [fact for together in found for fact in together.apart()]

    def reports(self) -> dict[tuple[str, str], str]:
        """Each signal's report, counted as the gateway counts: once by its id. What was told again has to say the same."""
        found: dict[tuple[str, str], str] = {}
        for fact in self.told():
            assert found.setdefault((fact.project, fact.signal.id), fact.report_id) == fact.report_id
        return found

    def check(self, signals: Sequence[Signal]) -> None:
        """None lost, none invented, and one report for each fingerprint."""
        reports = self.reports()
        assert set(reports) == {(item.project, item.id) for item in signals}
        by_fingerprint: dict[tuple[str, str], set[str]] = {}
        for item in signals:
            by_fingerprint.setdefault((item.project, fingerprint(item).key), set()).add(reports[item.project, item.id])
        assert all(len(found) == 1 for found in by_fingerprint.values())


@pytest.fixture
def new_world() -> Callable[[], Awaitable[World]]:
    async def make() -> World:
        return World(await QdrantServerIndex.open(AsyncQdrantClient(location=":memory:"), "loopwright", 384))

    return make


def crash(number: int, place: str, project: str = "shop") -> Signal:
    """An exception of a place, as one of many."""
    moment = START + timedelta(seconds=number)
    return Signal.model_validate(
        {
            "id": f"s{number}", "project": project, "source": "sentry", "kind": "exception", "title": f"KeyError: in {place}",
            "exception_type": "KeyError", "service": "web", "transaction": f"/{place}", "occurred_at": moment, "received_at": moment,
            "frames": [{"file": "app.py", "function": "dispatch"}, {"file": f"{place}.py", "function": place}],
        }
    )  # fmt: skip
