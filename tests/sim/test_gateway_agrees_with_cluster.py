"""The real grouping and the real gateway, side by side: what people see is where the grouping says it is, whatever is said and undone.

Facts come late, twice and out of order, commands twice; the grouping's process is started anew now and then.
"""

from __future__ import annotations

import itertools
import logging
import random
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
from loopwright_cluster.adapters.qdrant_server import QdrantServerIndex
from loopwright_cluster.embedding.hashing import HashingEmbedding
from loopwright_cluster.handlers import BEFORE_EVERYTHING
from loopwright_common.contracts import subjects as s
from loopwright_common.contracts.signals import Signal
from loopwright_common.errors import Refused, Retryable
from loopwright_common.testing.clock import FakeClock
from loopwright_common.testing.memory_bus import MemoryBus
from loopwright_gateway import people
from loopwright_gateway.adapters import tables as t
from loopwright_gateway.adapters.store import SqlStore
from loopwright_gateway.adapters.words import word_of
from loopwright_gateway.records import WordRecord
from qdrant_client import AsyncQdrantClient
from sqlalchemy import select

from tests.adapters.test_words import ROBIN, Desk, same_as_fresh
from tests.unit.cluster.conftest import START, Flow, received

STEPS = 90
WAYS, PLACES = ("basket", "wishlist", "gift", "coupon"), ("query", "search")


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


class Both:
    """A desk whose cluster is the real one, and what is on its way between the two."""

    def __init__(self, desk: Desk, flow: Flow, dice: random.Random) -> None:
        self.desk, self.flow, self.dice, self.clock = desk, flow, dice, desk.clock
        self.facts: dict[str, Any] = {}
        self.updated: list[Any] = []  # on their way to the gateway
        self.regrouped: list[Any] = []
        self.commands: list[Any] = []  # on their way to cluster
        self.heard, self.sent, self.numbers = [0, 0], set[str](), itertools.count()

    def signal(self, way: str, place: str) -> Signal:
        """Exceptions of one place, reached by several ways: alike, so that some are put together."""
        at = self.clock.now() - timedelta(seconds=self.dice.randrange(60))
        frames = [{"file": f"{name}.py", "function": name} for name in ("dispatch", "session", "orders", way, "cursor", place)]
        return Signal.model_validate({
            "id": f"s{next(self.numbers)}", "project": "shop", "source": "sentry", "kind": "exception", "title": f"KeyError: in {place}",
            "exception_type": "KeyError", "service": self.dice.choice(["web", "api"]), "occurred_at": at, "received_at": at,
            "frames": frames, "actor": self.dice.choice(["", "ann", "bo"]), "release": self.dice.choice(["", "v1", "v2"]),
            "weight": self.dice.choice([0.5, 1.0]), "backfill": self.dice.random() < 0.1,
        })  # fmt: skip

    async def come(self, *signals: Signal) -> None:
        await self.flow.take(*signals)
        if self.dice.random() < 0.1:
            await self.flow.take(*signals)
        self.listen()

    def listen(self) -> None:
        told = (self.flow.bus.published(s.GROUPS_UPDATED), self.flow.bus.published(s.GROUPS_REGROUPED))
        for queue, facts, at in zip((self.updated, self.regrouped), told, self.heard, strict=True):
            queue += facts[at:]
        self.facts |= {fact.signal.id: fact for together in told[0][self.heard[0] :] for fact in together.apart()}
        self.heard = [len(facts) for facts in told]

    async def deliver(self) -> None:
        """One fact, of either kind, perhaps twice."""
        queues = [queue for queue in (self.updated, self.regrouped) if queue]
        if not queues:
            return
        queue = self.dice.choice(queues)
        fact = queue.pop(0 if queue is self.regrouped or self.dice.random() < 0.8 else self.dice.randrange(len(queue)))
        subject = s.GROUPS_UPDATED if queue is self.updated else s.GROUPS_REGROUPED
        try:
            for _ in range(self.dice.choice([1, 1, 1, 2])):
                await self.desk.give(subject, fact, f"m{next(self.numbers)}")
        except Retryable:
            queue.insert(0, fact)

    async def obey(self) -> None:
        """The next command, perhaps twice."""
        for item in await self.desk.store.outbox(100_000):
            if item.kind == s.COMMANDS_GROUPS.pattern and item.message_id not in self.sent:
                self.sent.add(item.message_id)
                self.commands.append(s.COMMANDS_GROUPS.payload.model_validate_json(item.payload))
        if not self.commands:
            return
        command = self.commands.pop(0)
        for _ in range(self.dice.choice([1, 1, 2])):
            await self.flow.regrouping.obey(received(s.COMMANDS_GROUPS, command))
        self.listen()
        self.clock.advance(timedelta(seconds=self.dice.choice([0, 0.2, 2])))

    async def drain(self) -> None:
        for _ in range(10_000):
            await self.obey()
            if not (self.updated or self.regrouped or self.commands):
                return
            await self.deliver()
        raise AssertionError("facts go round and round")

    async def words(self) -> list[WordRecord]:
        async with self.desk.store.reading.connect() as connection:
            return [word_of(row) for row in (await connection.execute(select(t.words))).mappings()]

    async def say(self) -> None:
        dice, desk = self.dice, self.desk
        report = dice.choice(sorted(set((await desk.places()).values())))
        others = [name for name in await desk.names() if name != report]
        shown, _ = await desk.inbox.fingerprints(report, None, 100)
        named = [item.fingerprint for item in dice.sample(shown, min(len(shown), dice.randint(1, 2)))]
        action = dice.choice(["merge_into", "split", "move", "undo", "undo", "never_together"])
        try:
            if action == "undo":
                standing = sorted((word for word in await self.words() if word.undoable), key=lambda word: word.command_id)
                word = dice.choice(standing) if standing else None
                if word is not None:
                    await desk.people.undo(word.report_id, ROBIN, word.command_id)
            elif action == "split":
                await desk.people.split(report, ROBIN, [], named)
            elif others and action == "move":
                await desk.people.move(report, ROBIN, dice.choice(others), [], named)
            elif others:
                await getattr(desk.people, action)(report, ROBIN, dice.choice(others))
        except Refused:
            pass  # as things have come to stand meanwhile
        self.clock.advance(timedelta(seconds=dice.choice([0, 0.5, 3])))

    async def check(self) -> None:
        pointers = await self.flow.records.fingerprints_of("shop")
        wanted = {}
        for signal_id, fact in self.facts.items():
            place = await self.flow.records.place("shop", pointers[fact.decision.fingerprint].report_id, BEFORE_EVERYTHING, "")
            wanted[signal_id] = place.report_id
        assert await self.desk.places() == wanted
        theirs = {word.command_id: (bool(word.refused), word.undone_by) for word in await self.flow.words.all_of("shop")}
        assert {word.command_id: (word.state == "refused", word.undone_by) for word in await self.words()} == theirs


@pytest.mark.parametrize("seed", range(5))
async def test_what_people_see_is_where_the_grouping_says_it_is_whatever_is_said_and_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    commands = itertools.count(1)
    monkeypatch.setattr(people, "new_id", lambda: f"c{next(commands):05}")  # a seed is to give the same run again
    clock, dice = FakeClock(START + timedelta(hours=1)), random.Random(seed)
    store, other = (SqlStore.open(f"sqlite+aiosqlite:///{tmp_path}/{name}.db") for name in ("gateway", "fresh"))
    for opened in (store, other):
        await opened.migrate()
    index = await QdrantServerIndex.open(AsyncQdrantClient(location=":memory:"), "loopwright", 384)
    flow = Flow(MemoryBus("cluster"), HashingEmbedding(), index)
    flow.clock = clock
    await flow.restart()
    both = Both(Desk(store, clock), flow, dice)
    for way, place in itertools.product(WAYS, PLACES):
        clock.advance(timedelta(seconds=3))
        await both.come(both.signal(way, place))
    await both.drain()
    for _ in range(STEPS):
        clock.advance(timedelta(seconds=dice.choice([0, 1, 5])))
        (step,) = dice.choices(["come", "say", "deliver", "obey", "restart"], [0.15, 0.4, 0.25, 0.18, 0.02])
        if step == "come":
            await both.come(*(both.signal(dice.choice(WAYS), dice.choice(PLACES)) for _ in range(dice.randint(1, 3))))
        elif step == "say":
            await both.say()
        elif step == "restart":
            await flow.restart()
        else:
            await getattr(both, step)()
    await both.drain()
    await both.check()
    await same_as_fresh(both.desk, Desk(other, clock), list(both.facts.values()))
    for part in (store.close, other.close, flow.words.stop, flow.fingerprinting.stop):
        await part()
