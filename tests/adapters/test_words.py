"""People's last word on the grouping, at the gateway: what reports hold afterwards is what they would hold had it come there at once.

On SQLite and on PostgreSQL. Cluster is a fake that keeps fingerprints and links, and says what the real one says.
"""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from loopwright_common.contracts import subjects as s
from loopwright_common.contracts.queries import GroupCommand
from loopwright_common.contracts.reports import DismissReason, GroupingDecision, GroupUpdated, ReportsRegrouped
from loopwright_common.errors import NotFound, Refused
from loopwright_common.testing.clock import FakeClock
from loopwright_gateway.adapters import tables as t
from loopwright_gateway.adapters.store import SqlStore
from sqlalchemy import select, text

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
        self.undone: set[str] = set()

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
            self.undone.add(said.command_id)
            source, target = self.now(said.report_id), said.from_report_id
            if said.action == "merge":
                back = tuple(name for name, home in self.pointers.items() if target in self.led_to(home))
                del self.links[target]
                fingerprints = back  # type: ignore[assignment]
            else:
                later = list(self.words)[list(self.words).index(said.command_id) + 1 :]
                moved_on = {name for command in later if command not in self.undone for name in self.words[command][1]}
                back = tuple(name for name in origins if self.pointers[name] == said.report_id and name not in moved_on)
                target = self.now(target)
                self.pointers |= {name: origins[name] if self.now(origins[name]) == target else target for name in back}
                fingerprints = back  # type: ignore[assignment]
        fact = ReportsRegrouped(
            project="shop", command_id=command.command_id, action=command.action, report_id=target, from_report_id=source,
            signal_ids=signal_ids, fingerprints=fingerprints, undoes=command.undoes, actor=command.actor, reason=command.reason, at=at,
        )  # fmt: skip
        self.words[command.command_id] = (fact, came_from)
        return fact


class Desk(Gateway):
    """A gateway and its cluster."""

    def __init__(self, store: SqlStore, clock: FakeClock) -> None:  # noqa: F811
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

    async def names(self) -> list[str]:
        """The reports that were not merged away."""
        async with self.store.reading.connect() as connection:
            return sorted((await connection.execute(select(t.reports.c.id).where(t.reports.c.merged_into.is_(None)))).scalars())

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
                    # Of a report that holds nothing but verdicts, the times are those of the first that was told.
                    **{figure: getattr(report, figure) for figure in FIGURES if report.signal_count or not figure.endswith("_seen")},
                    "weight": round(report.weight, 6),
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


@pytest.mark.parametrize("seed", range(8))
async def test_words_taken_back_in_any_order_leave_reports_that_hold_what_their_signals_amount_to(
    desk: Desk, fresh: Desk, seed: int
) -> None:
    """Any word that stands may be taken back, not only the last, and in the end all are."""
    dice = random.Random(f"any order {seed}")
    facts: list[GroupUpdated] = []
    standing: list[str] = []
    for number in range(18):
        desk.clock.advance(timedelta(seconds=5))
        facts.append(varied(dice, desk, number, f"f{number % 6}", f"r{number % 6}"))
        await desk.tell(facts[-1])
    for number in range(18, 34):
        report = dice.choice(sorted(set((await desk.places()).values())))
        others = [name for name in await desk.names() if name != report]  # some of which nothing is left in
        shown, _ = await desk.inbox.fingerprints(report, None, 100)
        action = dice.choice(["merge_into", "split", "move", "undo"])
        if action == "undo" and standing:
            command = standing.pop(dice.randrange(len(standing)))
            await desk.say(desk.cluster.words[command][0].from_report_id, "undo", command)
        elif action == "split" or not others:
            standing.append((await desk.say(report, "split", [], [dice.choice(shown).fingerprint])).command_id)
        elif action in ("merge_into", "move"):
            arguments = [] if action == "merge_into" else [[], [dice.choice(shown).fingerprint]]
            standing.append((await desk.say(report, action, dice.choice(others), *arguments)).command_id)
        facts.append(varied(dice, desk, number, f"f{dice.randrange(6)}", ""))
        await desk.tell(facts[-1])
        await together(desk, facts, f"seed {seed}, step {number}")
    dice.shuffle(standing)
    for command in standing:
        await desk.say(desk.cluster.words[command][0].from_report_id, "undo", command)
        await together(desk, facts, f"seed {seed}, undo of {command}")
    await same_as_fresh(desk, fresh, facts)


async def together(desk: Desk, facts: list[GroupUpdated], when: str) -> None:
    """No signal stays behind: all are where new ones with their fingerprint go."""
    cluster = desk.cluster
    wanted = {fact.signal.id: cluster.now(cluster.pointers[fact.decision.fingerprint]) for fact in facts}
    assert await desk.places() == wanted, when


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


# One word at a time


async def two_reports(desk: Desk) -> None:
    """r1 with fingerprints f1 (3 signals) and g1 (2), r2 with f2 (2)."""
    for number, (fingerprint, report) in enumerate(
        [("f1", "r1"), ("g1", "r1"), ("f2", "r2"), ("f1", ""), ("g1", ""), ("f2", ""), ("f1", "")]
    ):
        desk.clock.advance(timedelta(minutes=1))
        await desk.come(f"s{number}", fingerprint, report, actor=f"actor-{number % 4}", service=f"service-{number % 3}")


@pytest.mark.parametrize(
    ("action", "arguments"),
    [
        ("merge_into", ("r2",)),
        ("split", ([], ["f1"])),
        ("split", (["s0", "s1"], [])),
        ("move", ("r2", [], ["g1"])),
        ("move", ("r2", ["s3"], ["g1"])),
        ("move", ("r2", [], ["f1", "g1"])),
    ],
)
async def test_what_is_taken_back_is_as_it_was(desk: Desk, action: str, arguments: tuple[Any, ...]) -> None:
    await two_reports(desk)
    places, picture = await desk.places(), await desk.picture()
    fact = await desk.say("r1", action, *arguments)
    assert await desk.places() != places
    said, after = await desk.word("r1"), await desk.places()
    assert (said.state, said.undoable, said.signals) == ("done", True, sum(after[id_] != place for id_, place in places.items()))
    await desk.say("r1", "undo", fact.command_id, "it was right before")
    assert (await desk.places(), await desk.picture()) == (places, picture)
    undo, said = await desk.inbox.words("r1")
    assert (said.state, said.undone_by, said.undoable) == ("undone", undo.command_id, False)
    assert (undo.state, undo.undoes, undo.undoable, undo.reason) == ("done", fact.command_id, False, "it was right before")
    assert (await desk.report("r1")).merged_into is None
    assert (await desk.state("r1"), await desk.state("r2")) == ("gathering", "gathering")
    if fact.action == "split":
        assert await desk.state(fact.report_id) == "dismissed"  # nothing is left of it
    for name in {"r1", "r2", fact.report_id}:
        await desk.check_timeline(name)
    # What comes now comes where it came before.
    await desk.come("after", "g1")
    assert (await desk.places())["after"] == "r1"


async def test_what_came_since_goes_along_when_a_word_is_taken_back(desk: Desk) -> None:
    await two_reports(desk)
    merge = await desk.say("r1", "merge_into", "r2")
    await desk.come("of-r1", "f1")
    await desk.come("of-r2", "f2")
    await desk.come("new", "f3", "r2")
    assert set((await desk.places()).values()) == {"r2"}
    await desk.say("r2", "undo", merge.command_id)
    places = await desk.places()
    assert (places["of-r1"], places["of-r2"], places["new"]) == ("r1", "r2", "r2")


async def test_a_signal_named_leaves_alone_and_all_of_them_take_their_fingerprint_along(desk: Desk) -> None:
    await two_reports(desk)
    alone = await desk.say("r1", "split", ["s0", "s1"], [])
    assert (alone.signal_ids, alone.fingerprints) == (("s0", "s1"), ())
    await desk.come("f-later", "f1")
    assert (await desk.places())["f-later"] == "r1"
    whole = await desk.say("r1", "split", ["s4"], [])  # the one of g1 that is left
    assert whole.fingerprints == ("g1",)
    await desk.come("g-later", "g1")
    assert (await desk.places())["g-later"] == whole.report_id
    # A fingerprint that is here by signals put here alone can be named as any other.
    shown, _ = await desk.inbox.fingerprints(alone.report_id, None, 10)
    assert {item.fingerprint: item.signals for item in shown} == {"f1": 1, "g1": 1}
    await desk.say(alone.report_id, "move", "r2", [], ["f1"])
    assert (await desk.places())["s0"] == "r2"
    await desk.come("f-latest", "f1")
    assert (await desk.places())["f-latest"] == "r1"


async def test_facts_told_late_are_counted_where_their_fingerprint_is_and_make_no_ghost(desk: Desk) -> None:
    await two_reports(desk)
    late = [desk.fact(f"late-{number}", "f1") for number in range(3)]
    split = await desk.say("r1", "split", [], ["f1"])
    await desk.tell(late[0])
    await desk.say("r1", "undo", split.command_id)
    await desk.tell(late[1])
    await desk.say("r1", "merge_into", "r2")
    for _ in range(2):
        await desk.tell(late[2])
    places = await desk.places()
    assert [places[fact.signal.id] for fact in late] == ["r2"] * 3
    assert (await desk.report("r2")).signal_count == 10
    await desk.check_empty()


async def test_a_split_whose_signals_are_all_to_come_opens_its_report_with_them(desk: Desk) -> None:
    await desk.come("s0", "f1", "r1")
    await desk.come("s1", "g1", "r1")
    late = desk.fact("late", "h1", "r1")
    command = GroupCommand(
        command_id="c1", project="shop", action="split", report_id="r1", fingerprints=("h1",), actor=ROBIN, at=desk.clock.now()
    )
    fact = desk.cluster.obey(command, desk.clock.now())
    await desk.give(s.GROUPS_REGROUPED, fact, "g1")
    await desk.tell(late)
    assert (await desk.places())["late"] == fact.report_id
    assert ((await desk.report("r1")).signal_count, (await desk.report(fact.report_id)).signal_count) == (2, 1)
    await desk.check_timeline(fact.report_id)


async def test_a_merge_is_taken_back_after_somebody_acted_on_what_it_went_into(desk: Desk) -> None:
    desk.config = {"promotion": {"group_wait": 0}}
    await two_reports(desk)
    picture = await desk.picture()
    merge = await desk.say("r1", "merge_into", "r2")
    await desk.give(s.INVESTIGATIONS_COMPLETED, desk.investigation("r2"))
    change = await desk.latest("r2")
    await desk.give(s.CHANGES_OPENED, desk.change(change, "r2"))
    await desk.say("r2", "undo", merge.command_id)
    assert await desk.picture() == picture
    assert await desk.state("r2") == "in_review"  # what it was looked into for stays
    assert await desk.state("r1") == "ready"  # it had been looked into, and is again
    assert (await desk.report("r1")).attempt == 2
    for name in ("r1", "r2"):
        await desk.check_timeline(name)


async def test_a_dismissed_report_gives_back_what_was_merged_into_it_and_stays_dismissed(desk: Desk) -> None:
    await two_reports(desk)
    picture = await desk.picture()
    merge = await desk.say("r1", "merge_into", "r2")
    await desk.people.dismiss("r2", ROBIN, DismissReason.EXPECTED)
    await desk.say("r1", "undo", merge.command_id)
    assert (await desk.state("r1"), await desk.state("r2"), await desk.picture()) == ("gathering", "dismissed", picture)


async def test_a_snooze_waits_for_signals_that_come_and_not_for_those_that_are_brought(desk: Desk) -> None:
    await two_reports(desk)
    await desk.people.snooze("r2", ROBIN, signals=3)
    await desk.say("r1", "move", "r2", [], ["f1"])
    await desk.come("one", "f2")
    assert await desk.state("r2") == "snoozed"
    for id_ in ("two", "three"):
        await desk.come(id_, "f1")
    assert await desk.state("r2") == "gathering"


async def test_a_refused_word_changes_nothing_and_says_why(desk: Desk) -> None:
    await two_reports(desk)
    picture = await desk.picture()
    await desk.people.merge_into("r1", ROBIN, "r2", "they look alike")
    asked = await desk.word("r1")
    assert (asked.state, asked.undoable) == ("asked", False)
    with pytest.raises(Refused, match="not carried out yet"):
        await desk.people.undo("r1", ROBIN, asked.command_id)
    refused = ReportsRegrouped(
        project="shop", command_id=asked.command_id, action="merge", report_id="r2", from_report_id="r1", signal_ids=None,
        refused="Ada said never together: undo that first", actor=ROBIN, at=desk.clock.now(),
    )  # fmt: skip
    for _ in range(2):
        await desk.give(s.GROUPS_REGROUPED, refused, "g1")
    for name in ("r1", "r2"):
        word = await desk.word(name)
        assert (word.state, word.refusal, word.reason) == ("refused", refused.refused, "they look alike")
        lines = [line for line in await desk.timeline(name) if line.kind == "grouping_refused"]
        assert [line.reason for line in lines] == ["The merge was not done: Ada said never together: undo that first"]
    assert await desk.picture() == picture
    with pytest.raises(Refused, match="it was refused, and changed nothing"):
        await desk.people.undo("r1", ROBIN, asked.command_id)


async def test_never_together_is_said_on_both_reports_and_can_be_taken_back(desk: Desk) -> None:
    await two_reports(desk)
    picture = await desk.picture()
    fact = await desk.say("r1", "never_together", "r2", "two teams")
    for name in ("r1", "r2"):
        assert (await desk.word(name)).state == "done"
        assert any(line.kind == "kept_apart" for line in await desk.timeline(name))
    await desk.give(s.GROUPS_REGROUPED, undo_of(fact, desk), "g-undo")
    assert (await desk.word("r2", 1)).state == "undone"
    assert await desk.picture() == picture


def undo_of(fact: ReportsRegrouped, desk: Desk) -> ReportsRegrouped:
    return ReportsRegrouped(
        project="shop", command_id="undo-1", action="undo", report_id=fact.report_id, from_report_id=fact.from_report_id, signal_ids=(),
        undoes=fact.command_id, actor=ROBIN, at=desk.clock.now(),
    )  # fmt: skip


async def test_only_a_word_about_the_report_that_stands_can_be_taken_back(desk: Desk) -> None:
    await two_reports(desk)
    await desk.come("elsewhere", "f9", "r9")
    fact = await desk.say("r1", "split", [], ["f1"])
    for report, command in (("r9", fact.command_id), ("r1", "unknown")):
        with pytest.raises(NotFound, match="is not a word on the grouping of report"):
            await desk.people.undo(report, ROBIN, command)
    undo = await desk.say(fact.report_id, "undo", fact.command_id)  # where its signals went, it can be taken back too
    with pytest.raises(Refused, match=f"taken back already, by command {undo.command_id}"):
        await desk.people.undo("r1", ROBIN, fact.command_id)
    with pytest.raises(Refused, match="takes back another itself"):
        await desk.people.undo("r1", ROBIN, undo.command_id)


async def test_a_report_that_gets_signals_after_all_had_left_it_has_their_times_and_services(desk: Desk, fresh: Desk) -> None:
    early, late = desk.clock.now() - timedelta(days=3), desk.clock.now() + timedelta(days=3)
    facts = [
        desk.fact("old", "f1", "r1", occurred_at=early, service="billing"),
        desk.fact("far", "f1", "r1", occurred_at=late, service="billing"),
        desk.fact("here", "f2", "r2", service="shop"),
        desk.fact("there", "f3", "r3", service="search"),
    ]
    for fact in facts:
        await desk.tell(fact)
    await desk.say("r1", "move", "r2", [], ["f1"])  # nothing is left on r1
    await desk.say("r3", "merge_into", "r1")
    await same_as_fresh(desk, fresh, facts)
    report = await desk.report("r1")
    assert (report.first_seen, report.last_seen, report.services) == (*[facts[3].signal.occurred_at] * 2, ["search"])

    await desk.say("r1", "move", "r2", [], ["f3"])
    await desk.come("since", "f2", service="mail")
    await desk.say("r2", "move", "r1", [], ["f2"])
    assert (await desk.report("r1")).services == ["mail", "shop"]


async def test_a_report_that_a_merge_gives_back_has_the_services_of_what_it_gets(desk: Desk) -> None:
    for id, fingerprint, report, service in (("a", "f1", "r1", "shop"), ("b", "f2", "r1", "search"), ("c", "f3", "r2", "mail")):
        await desk.come(id, fingerprint, report, service=service)
    merge = await desk.say("r1", "merge_into", "r2")
    await desk.say("r2", "split", [], ["f2"])
    await desk.say("r2", "undo", merge.command_id)
    assert (await desk.report("r1")).services == ["shop"]
    assert (await desk.report("r2")).services == ["mail"]


async def test_signals_stay_with_their_fingerprint_when_a_split_and_the_merge_that_brought_it_back_are_undone(desk: Desk) -> None:
    """In the order in which they were said: then the fingerprint stays where it was split from, and so do its signals."""
    await two_reports(desk)
    split = await desk.say("r1", "split", [], ["f1"])
    merge = await desk.say(split.report_id, "merge_into", "r1")
    await desk.say("r1", "undo", split.command_id)
    await desk.come("since", "f1")
    await desk.say("r1", "undo", merge.command_id)
    assert await desk.state(split.report_id) == "dismissed"  # it came back with nothing in it
    await desk.check_timeline(split.report_id)
    await desk.come("last", "f1")
    places = await desk.places()
    assert {places[name] for name in ("s0", "s3", "s6", "since", "last")} == {"r1"}
    await desk.check_empty()


async def test_signals_told_late_of_a_report_with_a_long_history_of_merges_come_to_where_it_is_now(desk: Desk) -> None:
    for number in range(26):
        await desk.come(f"s{number}", f"f{number}", f"r{number}")
    late = desk.fact("late", "f0")
    for number in range(25):
        await desk.say(f"r{number}", "merge_into", f"r{number + 1}")
    await desk.tell(late)
    assert (await desk.places())["late"] == "r25"
    await desk.check_empty()


async def test_what_an_undo_took_out_of_a_merge_is_not_explained_by_that_merge(desk: Desk) -> None:
    await two_reports(desk)
    await desk.come("third", "f3", "r3")
    split = await desk.say("r1", "split", [], ["f1"])
    merge = await desk.say(split.report_id, "merge_into", "r3")
    assert {item.moved.command_id for item in (await desk.inbox.explain("r3", "f1", None, 10))[0]} == {merge.command_id}
    await desk.say("r1", "undo", split.command_id)
    shown, _ = await desk.inbox.explain("r1", "f1", None, 10)
    assert [item.moved for item in shown] == [None, None, None]
    again = await desk.say("r1", "merge_into", "r3")
    await desk.say("r3", "undo", merge.command_id)  # it had not moved what is there now
    assert {item.moved.command_id for item in (await desk.inbox.explain("r3", "f1", None, 10))[0]} == {again.command_id}
    await desk.check_empty()


@pytest.mark.parametrize("action", ["move", "merge_into", "a signal on its way"])
async def test_a_report_that_was_closed_for_having_no_signals_is_opened_by_what_comes(desk: Desk, action: str) -> None:
    await two_reports(desk)
    late = desk.fact("late", "new", "r2")  # grouped before the word, and told after it
    await desk.say("r2", "move", "r1", [], ["f2"])
    assert await desk.state("r2") == "dismissed"
    if action == "move":
        await desk.say("r1", "move", "r2", [], ["g1"])
    elif action == "merge_into":
        await desk.say("r1", "merge_into", "r2")
    else:
        await desk.tell(late)
    report = await desk.report("r2")
    assert report.signal_count
    assert report.state.value == "gathering", report.state_reason
    await desk.check_timeline("r2")


@pytest.mark.parametrize("action", ["move", "split", "merge_into"])
async def test_a_report_that_a_person_dismissed_stays_dismissed_when_its_signals_come_back(desk: Desk, action: str) -> None:
    await two_reports(desk)
    await desk.people.dismiss("r2", ROBIN, DismissReason.EXPECTED)
    arguments = {"move": ["r1", [], ["f2"]], "split": [[], ["f2"]], "merge_into": ["r1"]}[action]
    word = await desk.say("r2", action, *arguments)
    await desk.say("r2", "undo", word.command_id)
    assert (await desk.report("r2")).signal_count == 2
    assert (await desk.state("r2")) == ("gathering" if action == "merge_into" else "dismissed")  # as after any merge that is undone


async def test_what_is_told_of_a_report_that_a_merge_gave_back_before_that_is_heard_goes_back_with_it(desk: Desk) -> None:
    await two_reports(desk)
    merge = await desk.say("r2", "merge_into", "r1")
    await desk.people.undo("r1", ROBIN, merge.command_id)
    desk.command = (await desk.sent(s.COMMANDS_GROUPS))[-1]
    undone = desk.answer()
    desk.clock.advance(timedelta(minutes=1))
    await desk.come("new", "f9", "r2")  # the first of its fingerprint, decided after the undo and told before it
    assert (await desk.places())["new"] == "r1"
    await desk.give(s.GROUPS_REGROUPED, undone, "undo")
    assert (await desk.places())["new"] == "r2"
    assert (await desk.report("r1")).signal_count == 5
    assert (await desk.report("r2")).signal_count == 3
    await desk.check_empty()


async def test_what_is_not_on_the_report_is_refused_at_once(desk: Desk) -> None:
    await two_reports(desk)
    with pytest.raises(Refused, match="signals s2 are not on report r1"):
        await desk.people.split("r1", ROBIN, ["s0", "s2"], [])
    with pytest.raises(Refused, match="fingerprint f2 has no signal on report r1"):
        await desk.people.move("r1", ROBIN, "r2", [], ["f2"])
    for other, why in (("r1", "it is this one"), ("nowhere", "there is no such report")):
        with pytest.raises(Refused, match=f"is not one of project shop that signals of this can be moved to: {why}"):
            await desk.people.move("r1", ROBIN, other, ["s0"], [])
    assert await desk.sent(s.COMMANDS_GROUPS) == []


async def test_a_report_that_cannot_be_merged_into_is_refused_with_why_and_what_to_name_instead(desk: Desk) -> None:
    await two_reports(desk)
    await desk.come("third", "f3", "r3")
    await desk.give(s.GROUPS_UPDATED, desk.group("bank", "r9").model_copy(update={"project": "bank"}))
    await desk.say("r2", "merge_into", "r3")
    for other, why in (("r2", "it was merged into report r3: name that one"), ("r9", "it is one of project bank")):
        with pytest.raises(Refused, match=f"that this can be merged into: {why}"):
            await desk.people.merge_into("r1", ROBIN, other)


async def test_explain_shows_each_signal_with_its_reason_and_who_moved_it(desk: Desk) -> None:
    for number in range(60):
        desk.clock.advance(timedelta(seconds=1))
        await desk.come(f"s{number:02}", f"f{number % 3}", "r1")
    await desk.come("t", "other", "r2")
    fact = await desk.say("r1", "move", "r2", ["s01"], ["f0"], "of the other team")
    await desk.come("since", "f0")
    shown: list[Any] = []
    after = None
    while True:
        page, after = await desk.inbox.explain("r2", None, after, 7)
        shown += page
        if after is None:
            break
    ids = [item.signal.id for item in shown]
    assert sorted(ids) == sorted(name for name, place in (await desk.places()).items() if place == "r2")
    assert [item.signal.occurred_at for item in shown] == sorted((item.signal.occurred_at for item in shown), reverse=True)
    for item in shown:
        # Most are no examples, and of each it is known why it was grouped and, where somebody moved it, who.
        assert item.decision.reason == f"first of {item.fingerprint}"
        assert item.signal.title == f"Crash {item.fingerprint}"
        moved = item.moved and (item.moved.command_id, item.moved.actor, item.moved.from_report_id, item.moved.reason)
        assert moved == (None if item.signal.id == "t" else (fact.command_id, ROBIN, "r1", "of the other team"))
    only, _ = await desk.inbox.explain("r2", "f1", None, 100)
    assert [item.signal.id for item in only] == ["s01"]
    pages, after = await desk.inbox.fingerprints("r2", None, 2)
    rest, end = await desk.inbox.fingerprints("r2", after, 2)
    assert end is None
    assert [(item.fingerprint, item.signals, item.rule) for item in pages + rest] == [
        ("f0", 21, "new"),
        ("other", 1, "new"),
        ("f1", 1, "new"),
    ]
    await desk.say("r1", "undo", fact.command_id)
    back, _ = await desk.inbox.explain("r1", None, None, 100)
    assert len(back) == 61
    assert all(item.moved is None for item in back)


async def test_a_report_split_off_without_examples_gets_one_to_look_into(desk: Desk) -> None:
    for number in range(80):
        desk.clock.advance(timedelta(seconds=1))
        await desk.come(f"s{number:02}", "f0" if number < 40 else "f1" if number == 40 else "f2", "r1")
    fact = await desk.say("r1", "split", [], ["f1"])
    async with desk.store.transaction() as unit:
        assert [signal.id for signal, _ in await unit.examples(fact.report_id, 10)] == ["s40"]
    assert (await desk.report(fact.report_id)).title == "Crash f1"


async def test_a_merge_of_a_hundred_thousand_signals_reads_none_of_them(desk: Desk) -> None:
    await desk.come("first", "f1", "r1")
    await desk.come("other", "f2", "r2")
    async with desk.store.transaction() as unit:
        numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)"
        columns = [column.name for column in t.signals_seen.columns if column.name != "signal_id"]
        await unit.execute(
            text(
                f"INSERT INTO signals_seen (signal_id, {', '.join(columns)}) {numbers} SELECT 'many-' || i, {', '.join(columns)} "
                "FROM signals_seen, n WHERE signal_id = 'first'"
            )
        )
        await unit.execute(text("UPDATE minute_counts SET count = count + 100000 WHERE report_id = 'r1'"))
        report = await unit.report("r1")
        assert report is not None
        report.signal_count = report.live_count = 100_001
        report.weight, report.kinds, report.releases = 100_001.0, {"exception": 100_001}, {"v2": 100_001}
        await unit.save_report(report)
    picture = await desk.picture()
    tracemalloc.start()
    merge = await desk.say("r1", "merge_into", "r2")
    await desk.say("r1", "undo", merge.command_id)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5_000_000, "bytes; the ids alone are 7 MB"
    assert await desk.picture() == picture
