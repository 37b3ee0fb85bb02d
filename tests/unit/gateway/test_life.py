"""The report's life: which state may follow which, and that no order of facts and wishes leaves the table."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Any

import pytest
from loopwright_common.contracts import subjects as s
from loopwright_common.contracts.configuration import Promotion
from loopwright_common.contracts.reports import DismissReason, ReportState
from loopwright_common.errors import LoopwrightError
from loopwright_common.testing.clock import START
from loopwright_gateway.domain import FOLLOWS, OPEN_WORK, Action, Facts, IllegalTransition, actions, check, waits_for
from loopwright_gateway.promotion import Gathered, promote


def test_every_state_can_be_reached_from_gathering() -> None:
    reached, frontier = {ReportState.GATHERING}, [ReportState.GATHERING]
    while frontier:
        for following in FOLLOWS[frontier.pop()] - reached:
            reached.add(following)
            frontier.append(following)
    assert reached == set(ReportState)


def test_what_was_merged_into_another_report_moves_only_when_that_is_taken_back() -> None:
    assert FOLLOWS[ReportState.MERGED_INTO] == {ReportState.GATHERING, ReportState.READY}
    assert actions(Facts(ReportState.MERGED_INTO, True, True, False)) == ()


@pytest.mark.parametrize("current", list(ReportState))
def test_a_refused_move_names_both_states(current: ReportState) -> None:
    for following in set(ReportState) - FOLLOWS[current]:
        with pytest.raises(IllegalTransition, match=f"{current.value} cannot become {following.value}"):
            check(current, following)


@pytest.mark.parametrize("state", list(ReportState))
@pytest.mark.parametrize("actionable", [True, False])
def test_every_action_that_is_offered_leads_where_the_table_allows(state: ReportState, actionable: bool) -> None:
    leads = {
        Action.PROVIDE_INPUT: ReportState.READY, Action.START_WORK: ReportState.CHANGING, Action.DISMISS: ReportState.DISMISSED,
        Action.SNOOZE: ReportState.SNOOZED, Action.REOPEN: ReportState.READY, Action.SUPPRESS: ReportState.SUPPRESSED,
        Action.MERGE_INTO: ReportState.MERGED_INTO, Action.MERGE: ReportState.MERGED, Action.DECLINE: ReportState.NEEDS_INPUT,
    }  # fmt: skip
    offered = actions(Facts(state, True, actionable, state in OPEN_WORK))
    for action in offered:
        assert action not in leads or leads[action] in FOLLOWS[state], action
    assert len(set(offered)) == len(offered)
    assert actionable or Action.START_WORK not in offered


def test_history_alone_never_promotes_and_a_burst_is_waited_for() -> None:
    promotion = Promotion.model_validate({"minimum_weight": 2, "group_wait": 30})
    arguments: dict[str, Any] = {"opened_at": START, "now": START}
    assert not promote(promotion, Gathered(99, 9, 0, live=0), **arguments).ready
    assert promote(promotion, Gathered(1, 1, 0, live=1), **arguments).at is None
    early = promote(promotion, Gathered(2, 2, 0, live=1), **arguments)
    assert not early.ready
    assert early.at == START + promotion.group_wait
    assert promote(promotion, Gathered(2, 2, 0, live=1), opened_at=START, now=early.at).ready


def test_a_report_that_needs_input_says_which() -> None:
    assert waits_for(ReportState.NEEDS_INPUT, "Which currency?", "") == "Which currency?"
    assert waits_for(ReportState.HELD, "", "") == ""


async def _wish(gateway: Any, rng: random.Random) -> None:
    people, report = gateway.people, "r1"
    wish = rng.choice(["answer", "start", "dismiss", "snooze", "suppress", "reopen"])
    if wish == "answer":
        await people.provide_input(report, "person:robin", "it is euros")
    elif wish == "start":
        await people.start_work(report, "person:robin")
    elif wish == "dismiss":
        await people.dismiss(report, "person:robin", rng.choice(list(DismissReason)))
    elif wish == "snooze":
        await people.snooze(report, "person:robin", seconds=rng.choice([None, 60.0]), signals=rng.choice([2, 3]))
    elif wish == "suppress":
        await people.suppress(report, "person:robin")
    else:
        await people.reopen(report, "person:robin")


async def _fact(gateway: Any, rng: random.Random, step: int) -> None:
    report = await gateway.report()
    async with gateway.store.transaction() as unit:
        change = await unit.latest_change("r1")
    facts: list[tuple[s.Subject, Any]] = [(s.GROUPS_UPDATED, gateway.group(f"s{rng.randrange(40)}"))]
    verdict = rng.choice(["actionable", "needs_input", "not_actionable", "already_addressed"])
    attempt = max(1, report.attempt - rng.choice([0, 0, 0, 1]))
    facts.append((s.INVESTIGATIONS_COMPLETED, gateway.investigation(attempt=attempt, id=f"i{step}", verdict=verdict)))
    if change is not None:
        facts += [
            (s.CHANGES_OPENED, gateway.change(change.id)),
            (s.CHANGES_MERGED, gateway.merged(change.id)),
            (s.CHANGES_CLOSED, gateway.closed(change.id)),
            (s.CHANGES_FAILED, gateway.failed(change.id)),
            (s.MEASUREMENTS_STARTED, gateway.started(change.id)),
            (s.MEASUREMENTS_COMPLETED, gateway.measurement(change.id, verdict=rng.choice(["held", "not_held", "worse", "inconclusive"]))),
        ]
    await gateway.give(*rng.choice(facts))


@pytest.mark.parametrize("seed", range(8))
async def test_no_order_of_facts_and_wishes_leaves_the_table(gateway: Any, seed: int) -> None:
    rng = random.Random(seed)
    gateway.config["policy"] = {"changes_per_hour_max": 50, "open_changes_max": 50, "changes_per_day_max": 90}
    await gateway.open()
    for step in range(40):
        gateway.clock.advance(seconds=rng.choice([0, 1, 90]))
        with suppress(LoopwrightError):  # a refusal is an answer; anything else is a bug
            await (_wish(gateway, rng) if rng.random() < 0.4 else _fact(gateway, rng, step))
    await gateway.check_timeline()
