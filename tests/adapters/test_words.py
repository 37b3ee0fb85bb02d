"""People's last word on the grouping, at the gateway: what reports hold afterwards is what they would hold had it come there at once.

On SQLite and on PostgreSQL. Cluster is a fake that keeps fingerprints and links, and says what the real one says.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from loopwright_common.contracts import subjects as s
from loopwright_common.contracts.queries import GroupCommand
from loopwright_common.contracts.reports import GroupingDecision, GroupUpdated, ReportsRegrouped
from loopwright_common.testing.clock import FakeClock
from loopwright_gateway.adapters import tables as t
from loopwright_gateway.adapters.store import SqlStore
from sqlalchemy import select

from tests.unit.gateway.conftest import Gateway

from .test_store import postgres, store, url  # noqa: F401  (fixtures)

ROBIN = "person:robin"
FIGURES = (
    "signal_count", "live_count", "people_count", "kinds", "releases", "services", "first_seen", "last_seen",
)  # fmt: skip


class Cluster:
    """What cluster knows: where each fingerprint is, and which report was merged into which. It obeys commands as the real one does."""

    def __init__(self) -> None:
        self.pointers: dict[str, str] = {}
        self.links: dict[str, str] = {}
        self.words: dict[str, tuple[ReportsRegrouped, dict[str, str]]] = {}

    def now(self, report: str) -> str:
        while report in self.links:
            report = self.links[report]
        return report

    def led_to(self, report: str) -> set[str]:
        """The report, and all it was merged into."""
        found = {report}
        while report in self.links:
            report = self.links[report]
            found.add(report)
        return found

    def obey(self, command: GroupCommand, at: datetime) -> ReportsRegrouped:
        source, target, signal_ids, fingerprints = command.report_id, command.other_report_id or "", (), ()
        came_from: dict[str, str] = {}
        if command.action == "merge":
            source, target = self.now(target), self.now(command.report_id)
            self.links[source] = target
            signal_ids = None  # type: ignore[assignment]
        elif command.action in ("split", "move"):
            source = self.now(source)
            target = self.now(target) if command.action == "move" else f"new-{command.command_id}"[:64]
            came_from = {name: self.pointers[name] for name in command.fingerprints if self.now(self.pointers[name]) == source}
            self.pointers |= dict.fromkeys(came_from, target)
            signal_ids, fingerprints = command.signal_ids, tuple(came_from)  # type: ignore[assignment]
        elif command.action == "undo":
            said, origins = self.words[command.undoes or ""]
            source, target = self.now(said.report_id), said.from_report_id
            if said.action == "merge":
                back = tuple(name for name, home in self.pointers.items() if target in self.led_to(home))
                del self.links[target]
                fingerprints = back  # type: ignore[assignment]
            else:
                back = tuple(name for name in origins if self.pointers[name] == said.report_id)
                target = self.now(target)
                self.pointers |= {name: origins[name] for name in back}
                fingerprints = back  # type: ignore[assignment]
        fact = ReportsRegrouped(
            project="shop", command_id=command.command_id, action=command.action, report_id=target, from_report_id=source,
            signal_ids=signal_ids, fingerprints=fingerprints, undoes=command.undoes, actor=command.actor, reason=command.reason, at=at,
        )  # fmt: skip
        self.words[command.command_id] = (fact, came_from)
        return fact


class Desk(Gateway):
    """A gateway and its cluster."""

    def __init__(self, store: SqlStore, clock: FakeClock) -> None:
        super().__init__(store, clock)
        self.cluster = Cluster()
        self.carried_out = 0
        self.config = {"promotion": {"group_wait": 3_600}}

    def fact(self, id: str, fingerprint: str, report: str = "", **more: Any) -> GroupUpdated:
        """A signal grouped now: where its fingerprint is, or, the first of it, on ``report``."""
        first = fingerprint not in self.cluster.pointers
        self.cluster.pointers.setdefault(fingerprint, report)
        told = self.cluster.now(self.cluster.pointers[fingerprint])
        decision = GroupingDecision(
            outcome="opened" if first else "joined", rule="new" if first else "fingerprint", fingerprint=fingerprint,
            reason=f"first of {fingerprint}" if first else "the fingerprint is known", grouping_version="v1",
        )  # fmt: skip
        signal = self.signal(id, **{"title": f"Crash {fingerprint}", **more})
        return GroupUpdated(project="shop", report_id=told, signal=signal, decision=decision, decided_at=self.clock.now())

    async def come(self, id: str, fingerprint: str, report: str = "", **more: Any) -> None:
        await self.tell(self.fact(id, fingerprint, report, **more))

    async def tell(self, fact: GroupUpdated) -> None:
        await self.give(s.GROUPS_UPDATED, fact, f"group:{fact.signal.id}")

    def answer(self) -> ReportsRegrouped:
        """What cluster says to the word said last."""
        self.clock.advance(timedelta(seconds=1))
        return self.cluster.obey(self.command, self.clock.now())

    async def say(self, report: str, action: str, *arguments: Any) -> ReportsRegrouped:
        """Says a word and has it carried out; the fact comes twice, as facts do."""
        self.clock.advance(timedelta(seconds=1))
        await getattr(self.people, action)(report, ROBIN, *arguments)
        commands = await self.sent(s.COMMANDS_GROUPS)
        self.command = commands[-1]
        fact = self.answer()
        for _ in range(2):
            await self.give(s.GROUPS_REGROUPED, fact, f"regroup-{fact.command_id}")
        self.clock.advance(timedelta(seconds=1))
        return fact

    async def word(self, report: str, number: int = 0) -> Any:
        return (await self.inbox.words(report))[number]

    async def places(self) -> dict[str, str]:
        async with self.store.reading.connect() as connection:
            rows = await connection.execute(select(t.signals_seen.c.signal_id, t.signals_seen.c.report_id))
            return {row[0]: row[1] for row in rows}

    async def picture(self) -> dict[str, Any]:
        """Report -> all that its signals amount to, of reports with signals."""
        found: dict[str, Any] = {}
        minutes, actors = t.minute_counts.c, t.actors.c
        for name in sorted(set((await self.places()).values())):
            report = await self.report(name)
            async with self.store.reading.connect() as connection:
                counts = await connection.execute(
                    select(minutes.minute, minutes.release, minutes.environment, minutes.count).where(minutes.report_id == name)
                )
                people = await connection.execute(select(actors.actor).where(actors.report_id == name))
                found[name] = {
                    **{figure: getattr(report, figure) for figure in FIGURES if report.signal_count or not figure.endswith("_seen")}, "weight": round(report.weight, 6),
                    "minutes": sorted(map(tuple, counts)), "people": sorted(people.scalars()),
                }  # fmt: skip
        return found

    async def check_empty(self) -> None:
        """What has no signals counts none."""
        full = set((await self.places()).values())
        async with self.store.reading.connect() as connection:
            names = list((await connection.execute(select(t.reports.c.id))).scalars())
            for table in (t.minute_counts, t.actors):
                assert set((await connection.execute(select(table.c.report_id).distinct())).scalars()) <= full
        for name in set(names) - full:
            report = await self.report(name)
            assert (report.signal_count, report.live_count, report.people_count, report.weight) == (0, 0, 0, 0.0)
            assert (report.kinds, report.releases) == ({}, {})


@pytest_asyncio.fixture
async def desk(store: SqlStore, fake_clock: FakeClock) -> Desk:  # noqa: F811
    return Desk(store, fake_clock)


@pytest_asyncio.fixture
async def fresh(tmp_path: Path, fake_clock: FakeClock) -> AsyncIterator[Desk]:
    opened = SqlStore.open(f"sqlite+aiosqlite:///{tmp_path}/fresh.db")
    await opened.migrate()
    yield Desk(opened, fake_clock)
    await opened.close()


async def same_as_fresh(desk: Desk, fresh: Desk, facts: list[GroupUpdated]) -> None:
    """The same signals, told where they are now to a store that knows nothing, make the same reports."""
    places = await desk.places()
    for fact in facts:
        await fresh.tell(fact.model_copy(update={"report_id": places[fact.signal.id], "recurrence_of": None}))
    assert await desk.picture() == await fresh.picture()
    await desk.check_empty()
    async with desk.store.reading.connect() as connection:
        names = list((await connection.execute(select(t.reports.c.id))).scalars())
    for name in names:
        await desk.check_timeline(name)


def varied(dice: random.Random, desk: Desk, number: int, fingerprint: str, report: str) -> GroupUpdated:
    at = desk.clock.now() - timedelta(seconds=dice.randrange(7_200), milliseconds=dice.randrange(1_000))
    return desk.fact(
        f"s{number}", fingerprint, report, occurred_at=at, kind=dice.choice(["exception", "ticket", "log", "measurement"]),
        service=dice.choice(["shop", "billing", ""]), release=dice.choice(["v1", "v2", ""]), weight=dice.choice([0.5, 1.0, 2.0]),
        environment=dice.choice(["production", "staging"]), actor=dice.choice(["", "ann", "bo", "cy"]), backfill=dice.random() < 0.2,
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(8))
async def test_after_any_words_reports_hold_what_they_would_had_it_come_there_at_once(desk: Desk, fresh: Desk, seed: int) -> None:
    """Signals come late and early, words are said and the last of them is taken back, in an order that a seed gives."""
    dice = random.Random(seed)
    fingerprints = [f"f{number}" for number in range(6)]
    facts: list[GroupUpdated] = []
    waiting: list[GroupUpdated] = []
    log: list[tuple[str, Any]] = []  # ("signal", fact) and ("word", fact), as they were decided
    stack: list[str] = []
    for step in range(60):
        desk.clock.advance(timedelta(seconds=5))
        if step < 8 or dice.random() < 0.6:
            fingerprint = dice.choice(fingerprints)
            fact = varied(dice, desk, step, fingerprint, f"r{fingerprint[1:]}")
            facts.append(fact)
            log.append(("signal", fact))
            # The first of a fingerprint is told before anything is said of it: a person says it of what is seen.
            if fact.decision.rule == "fingerprint" and dice.random() < 0.3:
                waiting.append(fact)
            else:
                await desk.tell(fact)
            continue
        places = await desk.places()
        reports = sorted(set(places.values()))
        report = dice.choice(reports)
        others = [name for name in reports if name != report]
        here = sorted(name for name, place in places.items() if place == report)
        chosen = dice.sample(here, dice.randint(1, len(here)))
        shown, _ = await desk.inbox.fingerprints(report, None, 100)
        whole = [dice.choice(shown).fingerprint]
        action = dice.choice(["merge_into", "split", "split", "move", "move", "undo", "undo"])
        if action == "undo" and stack:
            said, _ = desk.cluster.words[stack[-1]]
            word = await desk.say(said.from_report_id, "undo", stack.pop())
            log = [entry for entry in log if entry[0] == "signal" or entry[1].command_id != word.undoes]
            continue
        if action == "undo" or (action in ("merge_into", "move") and not others):
            continue
        by_signals = dice.random() < 0.5
        if action == "merge_into":
            word = await desk.say(report, "merge_into", dice.choice(others))
        elif action == "split":
            word = await desk.say(report, "split", chosen if by_signals else [], [] if by_signals else whole)
        else:
            word = await desk.say(report, "move", dice.choice(others), chosen if by_signals else [], [] if by_signals else whole)
        log.append(("word", word))
        stack.append(word.command_id)
        for late in list(waiting):
            if dice.random() < 0.5:
                waiting.remove(late)
                await desk.tell(late)
    for late in waiting:
        await desk.tell(late)
    assert await desk.places() == replayed(log), f"seed {seed}"
    await same_as_fresh(desk, fresh, facts)


def replayed(log: list[tuple[str, Any]]) -> dict[str, str]:
    """Where signals are when only what stands had ever been said."""
    cluster, places, names = Cluster(), {}, {}
    for kind, entry in log:
        if kind == "signal":
            cluster.pointers.setdefault(entry.decision.fingerprint, f"r{entry.decision.fingerprint[1:]}")
            places[entry.signal.id] = cluster.now(cluster.pointers[entry.decision.fingerprint])
            names[entry.signal.id] = entry.decision.fingerprint
            continue
        for signal, place in list(places.items()):
            if place == entry.from_report_id and (
                entry.signal_ids is None or signal in entry.signal_ids or names[signal] in entry.fingerprints
            ):
                places[signal] = entry.report_id
        if entry.action == "merge":
            cluster.links[entry.from_report_id] = entry.report_id
        cluster.pointers |= dict.fromkeys(entry.fingerprints, entry.report_id)
    return places
