"""When a report is ready: what counts, what people read of it, and that more of anything never makes it later."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopwright_common.bus import Timer
from loopwright_common.contracts import subjects as s
from loopwright_common.contracts.configuration import Promotion
from loopwright_common.testing.clock import START
from loopwright_gateway.ports import ReportQuery
from loopwright_gateway.promotion import Gathered, MinuteWeight, Totals, from_minutes, from_totals, kinds_that_count, parts_of, promote
from pydantic import ValidationError

KINDS = ["exception", "ticket", "health_check"]


@dataclass(frozen=True)
class Said:
    """A signal, as far as promotion looks at it."""

    minute: int
    kind: str
    weight: float
    backfill: bool
    actor: str


def _gathered(promotion: Promotion, said: list[Said]) -> tuple[Gathered, Gathered, bool]:
    """(exact, by the totals alone, whether that is exact too)"""
    totals = Totals(
        Counter(item.kind for item in said),
        sum(item.weight for item in said),
        sum(not item.backfill for item in said),
        len({item.actor for item in said if item.actor}),
    )
    counting = set(kinds_that_count(promotion, totals.kinds))
    groups: dict[tuple[datetime, str], list[Said]] = {}
    for item in said:
        if item.kind in counting:
            groups.setdefault((START + timedelta(minutes=item.minute), item.kind), []).append(item)
    minutes = [
        MinuteWeight(minute, kind, sum(item.weight for item in items), sum(not item.backfill for item in items))
        for (minute, kind), items in sorted(groups.items())
    ]
    rough, known = from_totals(promotion, totals)
    return from_minutes(promotion, totals, minutes), rough, known


def _reached(promotion: Promotion, said: list[Said]) -> bool:
    return all(part.reached for part in parts_of(promotion, _gathered(promotion, said)[0]))


WEIGHTS = st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0])
SAID = st.builds(Said, st.integers(-500, 500), st.sampled_from(KINDS), WEIGHTS, st.booleans(), st.sampled_from(["", "", "ada", "bo", "cy"]))
SAIDS = st.lists(SAID, max_size=12)
PROMOTIONS = st.builds(
    lambda **values: Promotion.model_validate(values),
    minimum_weight=st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0]),
    kind_weights=st.dictionaries(st.sampled_from(KINDS), st.sampled_from([0.0, 0.25, 1.0, 2.0]), max_size=3),
    minimum_count=st.integers(1, 5),
    half_life=st.sampled_from([None, 60, 600, 36_000]),
    minimum_people=st.integers(0, 2),
    people_weight=st.sampled_from([0.0, 0.5]),
    group_wait=st.sampled_from([0, 30]),
)


@given(PROMOTIONS, SAIDS, SAID)
@settings(max_examples=400, deadline=None)
def test_another_signal_never_makes_it_later(promotion: Promotion, said: list[Said], more: Said) -> None:
    assert _reached(promotion, said) <= _reached(promotion, [*said, more])


@given(PROMOTIONS, SAIDS, st.integers(0, 11))
@settings(max_examples=400, deadline=None)
def test_another_person_or_a_live_signal_in_historys_place_never_makes_it_later(promotion: Promotion, said: list[Said], at: int) -> None:
    changed = list(said)
    if at < len(said):
        old = said[at]
        changed[at] = Said(old.minute, old.kind, old.weight, backfill=False, actor=f"new{at}" if not old.actor else old.actor)
    assert _reached(promotion, said) <= _reached(promotion, changed)


@given(PROMOTIONS, SAIDS, st.sampled_from(KINDS), st.sampled_from([0.1, 1.0, 7.0]))
@settings(max_examples=400, deadline=None)
def test_a_heavier_kind_or_a_longer_half_life_never_makes_it_later(promotion: Promotion, said: list[Said], kind: str, by: float) -> None:
    heavier = {**promotion.kind_weights, kind: promotion.kind_weight(kind) + by}
    more = promotion.model_copy(update={"kind_weights": Promotion.model_validate({"kind_weights": heavier}).kind_weights})
    assert _reached(promotion, said) <= _reached(more, said)
    if promotion.half_life is not None:
        for longer in (promotion.half_life * 3, None):
            assert _reached(promotion, said) <= _reached(promotion.model_copy(update={"half_life": longer}), said)


@given(PROMOTIONS, SAIDS, st.randoms(use_true_random=False))
@settings(max_examples=300, deadline=None)
def test_the_totals_say_no_only_where_the_signals_do(promotion: Promotion, said: list[Said], rng: random.Random) -> None:
    exact, rough, known = _gathered(promotion, said)
    assert rough.signals == exact.signals
    assert rough.people == exact.people
    if exact.live:  # otherwise the score is of no moment
        assert rough.weight >= exact.weight - 1e-9
        assert not known or rough.weight == pytest.approx(exact.weight)
    assert rough.live >= exact.live
    assert not known or rough.live == exact.live
    shuffled = rng.sample(said, len(said))
    again = _gathered(promotion, shuffled)[0]
    assert again.weight == pytest.approx(exact.weight)
    assert (again.signals, again.people, again.live) == (exact.signals, exact.people, exact.live)


@given(PROMOTIONS, SAIDS)
@settings(max_examples=200, deadline=None)
def test_history_alone_is_never_ready(promotion: Promotion, said: list[Said]) -> None:
    history = [Said(item.minute, item.kind, 1_000.0, backfill=True, actor=item.actor) for item in said]
    assert not _reached(promotion, history)


def test_the_share_of_a_signal_halves_with_its_age_at_a_live_signals_time() -> None:
    promotion = Promotion.model_validate({"half_life": 3_600})
    old, new = Said(0, "exception", 8.0, False, ""), Said(120, "exception", 1.0, False, "")
    history = Said(0, "exception", 8.0, True, "")
    assert _gathered(promotion, [history, new])[0].weight == 8 / 4 + 1
    assert _gathered(promotion, [old, new])[0].weight == 8  # the highest it was, at the first one's time
    assert _gathered(promotion, [history])[0].weight == 0
    assert _gathered(promotion, [new, Said(180, "exception", 8.0, True, "")])[0].weight == 1  # history from after it


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"kind_weights": {"measurement": 1}}, "a verdict coming back"),
        ({"kind_weights": {"exceptions": 1}}, "exception"),
        ({"kind_weights": {"log": -1}}, "greater than or equal to 0"),
        ({"kind_weights": {"log": float("inf")}}, "finite"),
        (
            {
                "kind_weights": dict.fromkeys(
                    ["exception", "log", "alert", "health_check", "ticket", "issue", "replay", "observation", "custom"], 0
                )
            },
            "nothing would ever be investigated",
        ),
        ({"minimum_count": 0}, "minimum_count"),
        ({"half_life": 30}, "1 minute"),
        ({"minimum_people": -1}, "minimum_people"),
        ({"people_weight": -0.5}, "people_weight"),
        ({"half_lives": 60}, "half_lives"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused_with_the_reason(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Promotion.model_validate(values)


# On the report


async def _say(gateway: Any, id: str, report: str = "r1", minutes: int = 0, **more: Any) -> None:
    fact = gateway.group(id, report, **more)
    at = fact.signal.occurred_at + timedelta(minutes=minutes)
    await gateway.give(s.GROUPS_UPDATED, fact.model_copy(update={"signal": fact.signal.model_copy(update={"occurred_at": at})}))


async def _shown(gateway: Any, report: str = "r1") -> Any:
    return await gateway.inbox.report(report, gateway.clock.now())


async def test_a_project_that_sets_nothing_is_as_quick_as_before(gateway: Any) -> None:
    await _say(gateway, "s1")
    assert await gateway.state() == "ready"
    assert (await gateway.timeline())[-1].reason == "weight 1 reached 1 and 0 s were left for a burst"
    assert (await _shown(gateway)).promotion is None


async def test_the_report_says_what_it_has_and_what_is_needed(gateway: Any) -> None:
    gateway.config["promotion"] = {
        "minimum_weight": 3, "kind_weights": {"health_check": 0.25, "log": 0}, "minimum_count": 4, "minimum_people": 2,
        "people_weight": 0.5, "group_wait": 60,
    }  # fmt: skip
    await _say(gateway, "s1", actor="ada")
    for number in range(3):
        await _say(gateway, f"h{number}", kind="health_check")
    await _say(gateway, "l1", kind="log")
    found = await _shown(gateway)
    assert {part.name: (part.value, part.needed) for part in found.promotion.parts} == {
        "live_signals": (4, 1), "weight": (1 + 3 * 0.25 + 0.5, 3), "signals": (4, 4), "people": (1, 2),
    }  # fmt: skip
    assert found.promotion.reason == "weight 2.25 of 3 and people 1 of 2 so far"
    assert found.waits_for == "more signals and more people: weight 2.25 of 3, people 1 of 2"
    assert (found.promotion.ready, found.promotion.at) == (False, None)

    await _say(gateway, "s2", actor="bo")
    found = await _shown(gateway)
    assert found.promotion.at == gateway.clock.now() + timedelta(seconds=60)
    assert found.waits_for == f"a burst to gather until {found.promotion.at:%H:%M:%S} UTC"
    (row,), _, _ = await gateway.inbox.reports(ReportQuery(project="shop"), gateway.clock.now())
    assert row.waits_for == found.waits_for
    (timer,) = {item.payload for item in await gateway.store.outbox(100) if item.kind == "timer"}
    gateway.clock.advance(seconds=60)
    await gateway.facts.timer(Timer.model_validate_json(timer))
    assert await gateway.state() == "ready"
    assert (await gateway.timeline())[-1].reason == (
        "weight 3.75 reached 3 (exception 2, health_check 0.75, people 2 x 0.5), 5 signals reached 4, 2 people reached 2"
        " and 60 s were left for a burst"
    )


async def test_kinds_without_weight_gather_for_ever_and_history_does_not_promote_by_their_company(gateway: Any) -> None:
    gateway.config["promotion"] = {"kind_weights": {"log": 0}, "group_wait": 0}
    for number in range(5):
        await _say(gateway, f"l{number}", kind="log")
    await _say(gateway, "h1", backfill=True)
    assert await gateway.state() == "gathering"
    assert (await _shown(gateway)).waits_for == "a live signal"
    await _say(gateway, "s1")
    assert await gateway.state() == "ready"


async def test_a_score_that_fell_is_raised_by_a_signal_and_never_by_waiting(gateway: Any) -> None:
    gateway.config["promotion"] = {"minimum_weight": 2, "half_life": 600, "group_wait": 30}
    await _say(gateway, "s1")
    gateway.clock.advance(timedelta(minutes=20))
    await _say(gateway, "s2")
    assert (await _shown(gateway)).promotion.reason == "weight 1.25 of 2 so far"
    assert not [item for item in await gateway.store.outbox(100) if item.kind == "timer"], "nothing is missing but time"
    gateway.clock.advance(timedelta(days=3))
    await gateway.facts.timer(Timer(service="gateway", purpose="promote", key="r1", due_at=gateway.clock.now()))
    assert await gateway.state() == "gathering"
    await _say(gateway, "s3")
    assert await gateway.state() == "gathering"
    await _say(gateway, "s4")
    assert await gateway.state() == "ready"
    assert (await gateway.timeline())[-1].reason == ("weight 2 reached 2 (exception 2, halved every 10 min) and 30 s were left for a burst")


async def test_a_score_that_was_reached_stays_reached_while_a_burst_gathers(gateway: Any) -> None:
    gateway.config["promotion"] = {"minimum_weight": 2, "half_life": 60, "group_wait": 3_600}
    await _say(gateway, "s1")
    await _say(gateway, "s2")
    due = (await _shown(gateway)).promotion.at
    gateway.clock.advance(timedelta(minutes=30))
    await _say(gateway, "s3", weight=0.01)
    assert (await _shown(gateway)).promotion.at == due
    gateway.clock.advance(timedelta(minutes=30))
    await gateway.facts.timer(Timer(service="gateway", purpose="promote", key="r1", due_at=gateway.clock.now()))
    assert await gateway.state() == "ready"


@pytest.mark.parametrize("seed", range(6))
async def test_the_figures_do_not_depend_on_order_batches_and_redelivery(gateway: Any, seed: int) -> None:
    rng = random.Random(seed)
    gateway.config["promotion"] = {"minimum_weight": 1e6, "kind_weights": {"ticket": 3, "log": 0.1}, "half_life": 900, "people_weight": 0.5}
    facts = []
    for number in range(25):
        fact = gateway.group(
            f"s{number}", kind=rng.choice(["exception", "ticket", "log"]), actor=rng.choice(["", "ada", "bo"]),
            backfill=rng.random() < 0.3, weight=rng.choice([0.1, 1.0, 2.5]),
        )  # fmt: skip
        at = fact.signal.occurred_at - timedelta(minutes=rng.randrange(120))
        facts.append(fact.model_copy(update={"signal": fact.signal.model_copy(update={"occurred_at": at})}))

    async def told(report: str) -> Any:
        renamed = [
            fact.model_copy(update={"report_id": report, "signal": fact.signal.model_copy(update={"id": f"{report}-{fact.signal.id}"})})
            for fact in facts
        ]
        deliveries = renamed + rng.choices(renamed, k=20)
        rng.shuffle(deliveries)
        while deliveries:
            size = rng.randrange(1, 9)
            batch, deliveries = deliveries[:size], deliveries[size:]
            await gateway.facts.grouped([gateway.received(s.GROUPS_UPDATED, fact, fact.signal.id) for fact in batch])
        found = (await _shown(gateway, report)).promotion
        return [(part.name, pytest.approx(part.value)) for part in found.parts], found

    (_, first), (approximate, _) = await told("r1"), await told("r2")
    assert [(part.name, part.value) for part in first.parts] == approximate


async def test_after_a_merge_and_a_split_the_figures_are_those_of_the_signals_that_are_there(gateway: Any) -> None:
    config = {"minimum_weight": 9, "kind_weights": {"ticket": 2}, "people_weight": 1, "half_life": 600, "group_wait": 0}
    gateway.config["promotion"] = config
    for number in range(3):
        await _say(gateway, f"a{number}", "r1", actor="ada")
        await _say(gateway, f"b{number}", "r2", -10, kind="ticket", actor="ada" if number else "bo", backfill=True)

    async def weight(report: str) -> float:
        (found,) = [part.value for part in (await _shown(gateway, report)).promotion.parts if part.name == "weight"]
        return float(found)

    assert await weight("r1") == 3 + 1
    await gateway.give(s.GROUPS_REGROUPED, gateway.regrouped("r1", "r2"), "merge")
    assert await weight("r1") == 3 + 6 / 2 + 2  # three tickets of weight 2, one half life old; two people
    await gateway.give(s.GROUPS_REGROUPED, gateway.regrouped("r3", "r1", ("a0", "b0", "b1")), "split")
    assert await weight("r1") == 2 + 2 / 2 + 1
    assert await weight("r3") == 1 + 4 / 2 + 2
    for number in range(3, 8):
        await _say(gateway, f"a{number}", "r1", actor="ada")
    assert await gateway.state("r1") == "ready"
    await gateway.give(s.GROUPS_REGROUPED, gateway.regrouped("r3", "r1", ("a3", "a4", "a5", "a6")), "split2")
    assert await gateway.state("r1") == "ready"  # what was begun goes on
    assert len([fact for fact in await gateway.sent(s.REPORTS_READY) if fact.report.id == "r1"]) == 1


async def test_signals_that_are_moved_count_where_they_are_and_once(gateway: Any) -> None:
    gateway.config["promotion"] = {
        "minimum_weight": 4,
        "kind_weights": {"ticket": 2},
        "minimum_people": 2,
        "half_life": 600,
        "group_wait": 0,
    }
    for number, actor in enumerate(["ada", "bo", "bo"]):
        await _say(gateway, f"a{number}", "r1", actor=actor)
    await _say(gateway, "b0", "r2", kind="ticket", actor="ada")
    assert (await _shown(gateway, "r2")).promotion.reason == "weight 2 of 4 and people 1 of 2 so far"

    move = gateway.regrouped("r2", "r1", ("a1", "a2")).model_copy(update={"action": "move"})
    for _ in range(3):
        await gateway.give(s.GROUPS_REGROUPED, move)
    assert await gateway.state("r2") == "ready"
    assert (await gateway.timeline("r2"))[-1].reason.startswith("weight 4 reached 4 (exception 2, ticket 2, halved every 10 min), 2 people")
    assert (await _shown(gateway, "r1")).promotion.reason == "weight 1 of 4 and people 1 of 2 so far"
    assert len([fact for fact in await gateway.sent(s.REPORTS_READY) if fact.report.id == "r2"]) == 1


async def test_a_flood_that_cannot_be_ready_yet_is_not_read_again(gateway: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway.config["promotion"] = {"minimum_people": 1, "kind_weights": {"log": 0.5}, "half_life": 600}
    await _say(gateway, "l0", kind="log")
    async with gateway.store.transaction() as unit:
        read = type(unit).minute_weights

    async def fail(*_: Any) -> Any:
        raise AssertionError("the report's signals were read")

    monkeypatch.setattr(type(unit), "minute_weights", fail)
    for number in range(1, 4):
        await _say(gateway, f"l{number}", kind="log")  # nobody was named, whatever they weigh
    monkeypatch.setattr(type(unit), "minute_weights", read)
    assert await gateway.state() == "gathering"


def test_the_wait_is_counted_from_the_opening() -> None:
    promotion = Promotion.model_validate({"group_wait": 90})
    early = promote(promotion, Gathered(1, 1, 0, 1), opened_at=START, now=START + timedelta(seconds=30))
    assert (early.ready, early.at) == (False, START + timedelta(seconds=90))
    assert promote(promotion, Gathered(1, 1, 0, 1), opened_at=START, now=early.at or START).ready
