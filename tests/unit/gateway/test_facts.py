"""Facts from other services: told twice, late or in another order, they do no harm, and each signal is counted once."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

import pytest
from loopwright_common.bus import Timer
from loopwright_common.contracts import subjects as s
from loopwright_common.contracts.reports import DismissReason
from loopwright_common.contracts.signals import Deploy, Exposure
from loopwright_common.errors import Permanent, Refused, Retryable
from loopwright_gateway.people import StaleVersion

# Counting


@pytest.mark.parametrize("seed", range(6))
async def test_signals_delivered_in_any_order_and_often_are_counted_once(gateway: Any, seed: int) -> None:
    rng = random.Random(seed)
    facts = [
        gateway.group(f"s{number}", rng.choice(["r1", "r2"]), actor=rng.choice(["", "a", "b", "c"]), release=rng.choice(["v1", "v2"]))
        for number in range(30)
    ]
    deliveries = facts + rng.choices(facts, k=40)
    rng.shuffle(deliveries)
    while deliveries:
        batch, deliveries = deliveries[: rng.randrange(1, 9)], deliveries[8:]
        await gateway.facts.grouped([gateway.received(s.GROUPS_UPDATED, fact, fact.signal.id) for fact in batch])
    await gateway.facts.grouped([gateway.received(s.GROUPS_UPDATED, fact, fact.signal.id) for fact in facts])
    start, end = gateway.clock.now() - timedelta(hours=1), gateway.clock.now() + timedelta(hours=1)
    for name in ("r1", "r2"):
        mine = [fact.signal for fact in facts if fact.report_id == name]
        report = await gateway.report(name)
        counts, _, truncated = await gateway.store.rates("shop", name, [], "", start, end, 1_000)
        assert report.signal_count == len(mine) == sum(item.count for item in counts)
        assert report.people_count == len({signal.actor for signal in mine if signal.actor})
        assert report.releases == {release: n for release in ("v1", "v2") if (n := sum(signal.release == release for signal in mine))}
        assert not truncated


@pytest.mark.parametrize("seed", range(4))
async def test_signals_told_of_together_and_again_in_other_company_are_counted_once(gateway: Any, seed: int) -> None:
    rng = random.Random(seed)
    facts = [gateway.group(f"s{number}", actor=rng.choice(["", "a", "b"])) for number in range(1_200)]
    for _ in range(3):  # each time cut anew, as after a crash
        start = 0
        while start < len(facts):
            end = start + rng.randrange(1, 700)
            first, *others = facts[start:end]
            together = first.model_copy(update={"more": tuple(fact.signal for fact in others)})
            await gateway.give(s.GROUPS_UPDATED, together, f"cut{start}-{end}")
            start = end
    report = await gateway.report("r1")
    assert report.signal_count == 1_200
    assert report.people_count == 2


async def test_exposure_told_twice_counts_once(gateway: Any) -> None:
    minute = gateway.clock.now()
    item = Exposure(id="e1", project="shop", service="shop", release="v2", minute=minute, count=40, errored=3)
    for _ in range(3):
        await gateway.give(s.EXPOSURES, item)
    await gateway.give(s.EXPOSURES, item.model_copy(update={"id": "e2"}))
    _, exposure, _ = await gateway.store.rates("shop", None, ["shop"], "", minute, minute + timedelta(minutes=1), 10)
    assert [(entry["count"], entry["errored"]) for entry in exposure] == [(80, 6)]


async def test_a_deploy_told_twice_is_one_mark(gateway: Any) -> None:
    deploy = Deploy(id="d1", project="shop", service="shop", release="v2", deployed_at=gateway.clock.now())
    await gateway.give(s.DEPLOYS, deploy)
    await gateway.give(s.DEPLOYS, deploy)
    await gateway.open()
    (mark,) = (await gateway.inbox.report("r1", gateway.clock.now())).deploys
    assert mark.release == "v2"


async def test_examples_stay_bounded_and_varied(gateway: Any) -> None:
    await gateway.open(signals=60)
    for kind in ("ticket", "health_check"):
        await gateway.give(s.GROUPS_UPDATED, gateway.group(f"k-{kind}", kind=kind))
    examples = [item for item in (await gateway.inbox.explain("r1", None, None, 1_000))[0] if item.example]
    assert len(examples) <= 40
    assert {item.signal.kind.value for item in examples} == {"exception", "ticket", "health_check"}
    assert "r1-s0" in {item.signal.id for item in examples}


# Promotion and timers


async def test_a_burst_is_gathered_before_the_report_is_ready(gateway: Any) -> None:
    gateway.config["promotion"] = {"group_wait": 30}
    await gateway.open(signals=3)
    assert await gateway.state() == "gathering"
    (timer, *_) = [Timer.model_validate_json(item.payload) for item in await gateway.store.outbox(100) if item.kind == "timer"]
    await gateway.facts.timer(timer.model_copy(update={"due_at": gateway.clock.now()}))
    assert await gateway.state() == "gathering"  # an early timer promotes nothing
    gateway.clock.advance(seconds=30)
    for _ in range(3):
        await gateway.facts.timer(timer)
    assert await gateway.state() == "ready"
    assert len(await gateway.sent(s.REPORTS_READY)) == 1


async def test_a_snooze_ends_with_its_time_or_its_signals(gateway: Any) -> None:
    await gateway.open()
    await gateway.give(s.INVESTIGATIONS_COMPLETED, gateway.investigation(verdict="not_actionable"))
    await gateway.people.snooze("r1", "person:robin", seconds=60)
    timer = Timer(service="gateway", purpose="snooze", key="r1", due_at=gateway.clock.now())
    await gateway.facts.timer(timer)
    assert await gateway.state() == "snoozed"
    await gateway.facts.timer(timer.model_copy(update={"due_at": gateway.clock.advance(seconds=60)}))
    assert await gateway.state() == "ready"
    await gateway.give(s.INVESTIGATIONS_COMPLETED, gateway.investigation(attempt=2, verdict="not_actionable"))
    await gateway.people.snooze("r1", "person:robin", signals=2)
    await gateway.give(s.GROUPS_UPDATED, gateway.group("n1"))
    assert await gateway.state() == "snoozed"
    await gateway.give(s.GROUPS_UPDATED, gateway.group("n2"))
    assert await gateway.state() == "ready"
    await gateway.check_timeline()


# Investigations


async def test_an_investigation_told_twice_asks_for_one_change(gateway: Any) -> None:
    await gateway.open()
    for _ in range(3):
        await gateway.give(s.INVESTIGATIONS_COMPLETED, gateway.investigation())
    assert len(await gateway.sent(s.CHANGES_REQUESTED)) == 1
    assert (await gateway.inbox.usage("shop", gateway.clock.now().strftime("%Y-%m"))).stages[0].runs == 1


async def test_an_older_attempt_that_comes_late_changes_nothing_but_the_timeline(gateway: Any) -> None:
    await gateway.open()
    await gateway.give(s.INVESTIGATIONS_COMPLETED, gateway.investigation(verdict="needs_input", question="Which currency?"))
    report = await gateway.people.provide_input("r1", "person:robin", "euros")
    assert report.attempt == 2
    await gateway.give(s.INVESTIGATIONS_COMPLETED, gateway.investigation(attempt=1, id="late", priority="P0"))
    report = await gateway.report()
    assert (report.state.value, report.priority) == ("ready", "P1")
    (ready,) = [item for item in await gateway.sent(s.REPORTS_READY) if item.attempt == 2]
    assert ready.report.input == ("euros",)
    await gateway.check_timeline()


async def test_an_investigation_of_an_unknown_report_is_given_back(gateway: Any) -> None:
    with pytest.raises(Retryable):
        await gateway.give(s.INVESTIGATIONS_COMPLETED, gateway.investigation("nobody"))


# Changes and measurements


async def test_a_merge_that_comes_before_the_opening_is_still_a_merge(gateway: Any) -> None:
    await gateway.open()
    await gateway.give(s.INVESTIGATIONS_COMPLETED, gateway.investigation())
    change = await gateway.latest()
    await gateway.give(s.CHANGES_MERGED, gateway.merged(change))
    await gateway.give(s.CHANGES_OPENED, gateway.change(change))
    assert await gateway.state() == "merged"
    shown = await gateway.inbox.change(change)
    assert (shown.state, shown.pull_request.number) == ("merged", 1)
    assert (await gateway.inbox.usage(None, gateway.clock.now().strftime("%Y-%m"))).pull_requests == 1


@pytest.mark.parametrize("seed", range(6))
async def test_the_loop_closes_when_each_fact_comes_twice_in_order(gateway: Any, seed: int) -> None:
    rng = random.Random(seed)
    change = await gateway.to_review()
    order = [
        (s.CHANGES_OPENED, gateway.change(change)),
        (s.CHANGES_MERGED, gateway.merged(change)),
        (s.MEASUREMENTS_STARTED, gateway.started(change)),
        (s.MEASUREMENTS_COMPLETED, gateway.measurement(change)),
        (s.GROUPS_UPDATED, gateway.group("verdict", kind="measurement", source="measurement", title="held", about_report="r1")),
    ]
    told: list[Any] = []
    for fact in order:
        told.append(fact)
        await gateway.give(*fact)
        for again in rng.choices(told, k=2):
            await gateway.give(*again)
    report = await gateway.report()
    assert (report.state.value, report.signal_count, report.kinds["measurement"]) == ("held", 1, 1)
    assert [line.to_state for line in await gateway.timeline() if line.to_state].count("held") == 1
    assert "verdict_signal" in [line.kind for line in await gateway.timeline()]
    await gateway.check_timeline()


async def test_a_verdict_that_overtakes_the_merge_still_reaches_the_report(gateway: Any) -> None:
    change = await gateway.to_review()
    await gateway.give(s.MEASUREMENTS_STARTED, gateway.started(change))
    await gateway.give(s.MEASUREMENTS_COMPLETED, gateway.measurement(change))
    await gateway.give(s.CHANGES_MERGED, gateway.merged(change))
    assert await gateway.state() == "held"


async def test_a_fact_about_an_older_change_does_not_move_the_report(gateway: Any) -> None:
    first = await gateway.to_review()
    await gateway.give(s.CHANGES_CLOSED, gateway.closed(first))
    await gateway.people.start_work("r1", "person:robin")
    assert await gateway.latest() != first
    await gateway.give(s.CHANGES_MERGED, gateway.merged(first))
    assert await gateway.state() == "changing"


async def test_an_older_picture_of_a_change_does_not_replace_a_newer_one(gateway: Any) -> None:
    change = await gateway.to_review()
    older = gateway.change(change, title="older")
    gateway.clock.advance(seconds=5)
    await gateway.give(s.CHANGES_UPDATED, gateway.change(change, title="newer"), "u2")
    await gateway.give(s.CHANGES_UPDATED, older, "u1")
    assert (await gateway.inbox.change(change)).title == "newer"


async def test_a_failed_change_asks_the_question_that_is_missing(gateway: Any) -> None:
    await gateway.open()
    await gateway.give(s.INVESTIGATIONS_COMPLETED, gateway.investigation())
    change = await gateway.latest()
    await gateway.give(s.CHANGES_FAILED, gateway.failed(change))
    await gateway.give(s.CHANGES_FAILED, gateway.failed(change))
    row = await gateway.inbox.report("r1", gateway.clock.now())
    assert (row.state.value, row.waits_for, row.waits_for_person) == ("needs_input", "Which one?", True)
    assert "start_work" in row.actions


async def test_a_change_nobody_asked_for_goes_to_the_dead_letters(gateway: Any) -> None:
    await gateway.open()
    with pytest.raises(Permanent, match="never asked for"):
        await gateway.give(s.CHANGES_MERGED, gateway.merged("c9"))


@pytest.mark.parametrize("verdict", ["not_held", "worse"])
async def test_a_change_that_did_not_help_waits_for_a_person_with_actions(gateway: Any, verdict: str) -> None:
    change = await gateway.to_review()
    await gateway.give(s.CHANGES_MERGED, gateway.merged(change))
    await gateway.give(s.MEASUREMENTS_COMPLETED, gateway.measurement(change, verdict=verdict))
    row = await gateway.inbox.report("r1", gateway.clock.now())
    assert row.waits_for_person
    assert {"start_work", "provide_input", "dismiss"} <= set(row.actions)


async def test_a_recurrence_opens_a_report_and_both_know_each_other(gateway: Any) -> None:
    await gateway.open("r1")
    await gateway.give(s.GROUPS_UPDATED, gateway.group("again", "r2", recurrence_of="r1"))
    old, new = [await gateway.inbox.report(name, gateway.clock.now()) for name in ("r1", "r2")]
    assert (new.recurrence_of, old.recurrences) == ("r1", ["r2"])
    assert "recurred" in [line.kind for line in await gateway.timeline("r1")]


# Merging and splitting


async def test_merged_reports_add_up_and_later_signals_follow(gateway: Any) -> None:
    await gateway.open("r1", 3, actor="a")
    await gateway.open("r2", 2, actor="b")
    for _ in range(2):
        await gateway.give(s.GROUPS_REGROUPED, gateway.regrouped("r1", "r2"), "g1")
    await gateway.give(s.GROUPS_UPDATED, gateway.group("late", "r2", actor="a"))
    report = await gateway.report("r1")
    assert (report.signal_count, report.people_count) == (6, 2)
    assert (await gateway.report("r2")).merged_into == "r1"
    assert await gateway.state("r2") == "merged_into"
    for name in ("r1", "r2"):
        await gateway.check_timeline(name)


async def test_split_signals_take_their_counts_along(gateway: Any) -> None:
    await gateway.open("r1", 5, actor="a")
    for _ in range(2):
        await gateway.give(s.GROUPS_REGROUPED, gateway.regrouped("r2", "r1", ("r1-s0", "r1-s1")), "g1")
    assert (await gateway.report("r1")).signal_count == 3
    assert (await gateway.report("r2")).signal_count == 2
    now = gateway.clock.now()
    for name, number in (("r1", 3), ("r2", 2)):
        counts, _, _ = await gateway.store.rates("shop", name, [], "", now - timedelta(hours=1), now + timedelta(hours=1), 100)
        assert sum(item.count for item in counts) == number


# People


async def test_an_action_on_a_version_that_is_gone_is_refused(gateway: Any) -> None:
    await gateway.open()
    seen = (await gateway.report()).version
    await gateway.people.dismiss("r1", "person:robin", DismissReason.EXPECTED, version=seen)
    with pytest.raises(StaleVersion, match="look at it again"):
        await gateway.people.reopen("r1", "person:alice", version=seen)


async def test_signals_that_come_meanwhile_do_not_make_an_action_stale(gateway: Any) -> None:
    await gateway.open()
    seen = (await gateway.report()).version
    await gateway.give(s.GROUPS_UPDATED, gateway.group("meanwhile"))
    await gateway.people.dismiss("r1", "person:robin", DismissReason.EXPECTED, version=seen)
    assert await gateway.state() == "dismissed"


async def test_only_the_commit_that_was_seen_is_merged(gateway: Any) -> None:
    change = await gateway.to_review()
    with pytest.raises(StaleVersion):
        await gateway.people.merge(change, "person:robin", "Robin", "", "e" * 40)
    assert await gateway.sent(s.COMMANDS_CHANGES) == []
    await gateway.people.merge(change, "person:robin", "Robin", "r@shop.example", "c" * 40)
    (command,) = await gateway.sent(s.COMMANDS_CHANGES)
    assert (command.action, command.expected_head, command.actor) == ("merge", "c" * 40, "person:robin")


async def test_what_a_state_does_not_allow_is_refused_with_what_it_does(gateway: Any) -> None:
    await gateway.open()
    with pytest.raises(Refused, match=r"start_work is not possible while the report is ready; possible: .*dismiss"):
        await gateway.people.start_work("r1", "person:robin")


async def test_a_persons_refused_start_is_on_the_timeline(gateway: Any) -> None:
    gateway.config["policy"] = {"mode": "ask", "changes_per_day_max": 0}
    await gateway.open()
    await gateway.give(s.INVESTIGATIONS_COMPLETED, gateway.investigation())
    with pytest.raises(Refused, match="cap is 0"):
        await gateway.people.start_work("r1", "person:robin")
    assert any("cap is 0" in line.reason for line in await gateway.timeline())
