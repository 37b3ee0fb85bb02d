"""The policy: what starts by itself, the caps, and that what cannot be counted refuses."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
from loopwright_common.contracts import subjects as s
from loopwright_common.contracts.configuration import Policy
from loopwright_common.errors import Refused
from loopwright_gateway.policy import Load, PolicyDecision, decide

IDLE = Load(changes_last_hour=0, changes_last_day=0, open_in_repository=0, usd_last_day=0.0, same_cause_open=None)


def ask(
    gateway: Any, load: Load = IDLE, *, backfill: bool = False, person: bool = False, found: Any = None, **policy: Any
) -> PolicyDecision:
    investigation = found or gateway.investigation()
    return decide(Policy.model_validate(policy), investigation, load, backfill_only=backfill, by_person=person)


def test_an_actionable_report_starts_by_itself(gateway: Any) -> None:
    assert ask(gateway).start


@pytest.mark.parametrize(
    ("why", "arguments"),
    [
        ("report_only", {"mode": "report_only"}),
        ("ask", {"mode": "ask"}),
        ("history", {"backfill": True}),
        ("P1 does not start", {"start_priorities": ("P0",)}),
        ("last hour", {"load": dataclasses.replace(IDLE, changes_last_hour=2)}),
        ("24 hours", {"load": dataclasses.replace(IDLE, changes_last_day=20)}),
        ("open changes in shop", {"load": dataclasses.replace(IDLE, open_in_repository=10)}),
        (r"\$20\.00", {"load": dataclasses.replace(IDLE, usd_last_day=20.0)}),
        ("r7 already has a change", {"load": dataclasses.replace(IDLE, same_cause_open="r7")}),
    ],
)
def test_each_limit_refuses_and_names_itself(gateway: Any, why: str, arguments: dict[str, Any]) -> None:
    decision = ask(gateway, **arguments)
    assert not decision.start
    assert re.search(why, decision.reason), decision.reason


@pytest.mark.parametrize("field", ["changes_last_hour", "changes_last_day", "open_in_repository", "usd_last_day"])
def test_what_could_not_be_counted_refuses(gateway: Any, field: str) -> None:
    decision = ask(gateway, dataclasses.replace(IDLE, **{field: None}))
    assert not decision.start
    assert "could not be counted" in decision.reason


@pytest.mark.parametrize("verdict", ["needs_input", "not_actionable", "already_addressed"])
@pytest.mark.parametrize("person", [True, False])
def test_without_a_concrete_change_nobody_starts_one(gateway: Any, verdict: str, person: bool) -> None:
    assert not ask(gateway, person=person, found=gateway.investigation(verdict=verdict)).start


def test_a_person_passes_the_mode_the_priorities_and_the_hour_but_not_the_day_or_the_money(gateway: Any) -> None:
    busy = dataclasses.replace(IDLE, changes_last_hour=99)
    assert ask(gateway, busy, person=True, mode="report_only", start_priorities=()).start
    for field, value in (("changes_last_day", 20), ("open_in_repository", 10), ("usd_last_day", 20.0), ("same_cause_open", "r7")):
        assert not ask(gateway, dataclasses.replace(IDLE, **{field: value}), person=True).start


def test_a_budget_of_nothing_starts_nothing(gateway: Any) -> None:
    assert not ask(gateway, usd_per_day_max=0.0).start


async def test_the_hourly_cap_holds_over_reports_and_the_refusal_is_on_the_timeline(gateway: Any) -> None:
    for number in range(4):
        report = f"r{number}"
        await gateway.open(report)
        suspects = gateway.investigation().suspects[0].model_copy(update={"commit": f"{number}" * 40})
        await gateway.give(s.INVESTIGATIONS_COMPLETED, gateway.investigation(report, suspects=(suspects,)))
    assert len(await gateway.sent(s.CHANGES_REQUESTED)) == 2
    assert [await gateway.state(f"r{number}") for number in range(4)] == ["changing", "changing", "actionable", "actionable"]
    (line,) = [line for line in await gateway.timeline("r3") if line.kind == "not_started"]
    assert line.reason == "2 changes in the last hour, and the cap is 2"
    gateway.clock.advance(hours=2)
    await gateway.open("r9")
    await gateway.give(s.INVESTIGATIONS_COMPLETED, gateway.investigation("r9", suspects=()))
    assert await gateway.state("r9") == "changing"


async def test_one_cause_gets_one_change_however_many_reports_it_has(gateway: Any) -> None:
    await gateway.to_review("r1")
    await gateway.open("r2")
    await gateway.give(s.INVESTIGATIONS_COMPLETED, gateway.investigation("r2"))
    assert await gateway.state("r2") == "actionable"
    assert len(await gateway.sent(s.CHANGES_REQUESTED)) == 1
    with pytest.raises(Refused, match="r1 already has a change"):
        await gateway.people.start_work("r2", "person:robin")


async def test_what_the_policy_did_not_start_is_in_the_waits_for_me_view(gateway: Any) -> None:
    gateway.config["policy"] = {"mode": "ask"}
    await gateway.open()
    await gateway.give(s.INVESTIGATIONS_COMPLETED, gateway.investigation())
    row = await gateway.inbox.report("r1", gateway.clock.now())
    assert "start_work" in row.actions
    assert row.waits_for_person


async def test_loaded_history_is_counted_and_starts_nothing(gateway: Any) -> None:
    await gateway.open(signals=5, backfill=True)
    report = await gateway.report()
    assert (report.signal_count, report.live_count, report.state.value) == (5, 0, "gathering")
    await gateway.give(s.GROUPS_UPDATED, gateway.group("live"))
    assert await gateway.state() == "ready"
