"""What ``/metrics`` says of reports and changes: once for each that happened, and nothing for what was rolled back."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from loopwright_common.contracts import subjects as s
from loopwright_gateway import metrics
from prometheus_client import REGISTRY


class Counted:
    """How much counters have grown since this was made: they are the whole process's."""

    def __init__(self) -> None:
        self._before = self._read()

    def __call__(self, name: str, **labels: str) -> float:
        key = (name, tuple(sorted(labels.items())))
        return self._read().get(key, 0.0) - self._before.get(key, 0.0)

    @staticmethod
    def _read() -> dict[Any, float]:
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value for family in REGISTRY.collect() for sample in family.samples
        }


@pytest.fixture
def counted() -> Counted:
    return Counted()


async def test_the_funnel_counts_each_step_once_however_often_it_is_told(gateway: Any, counted: Counted) -> None:
    change = await gateway.to_review()
    again = gateway.change(change)
    gateway.clock.advance(timedelta(minutes=5))
    for _ in range(2):
        await gateway.give(s.CHANGES_OPENED, again)
        await gateway.give(s.CHANGES_MERGED, gateway.merged(change))
        await gateway.give(s.MEASUREMENTS_COMPLETED, gateway.measurement(change))

    events = ("requested", "opened", "updated", "merged", "closed", "failed", "refused")
    assert {event: counted("loopwright_changes_total", event=event) for event in events} == {
        "requested": 1, "opened": 1, "updated": 0, "merged": 1, "closed": 0, "failed": 0, "refused": 0,
    }  # fmt: skip
    assert counted("loopwright_verdicts_total", verdict="held") == 1
    assert [counted("loopwright_report_transitions_total", state=state) for state in ("gathering", "ready", "in_review", "held")] == [1] * 4


async def test_stages_are_timed_from_the_facts_own_times(gateway: Any, counted: Counted) -> None:
    gateway.config["promotion"] = {"group_wait": 60}
    await gateway.open()
    gateway.clock.advance(timedelta(seconds=90))
    await gateway.open(signals=2)
    await gateway.give(s.INVESTIGATIONS_COMPLETED, gateway.investigation())
    gateway.clock.advance(timedelta(seconds=200))
    await gateway.give(s.CHANGES_OPENED, gateway.change(await gateway.latest()))

    assert counted("loopwright_stage_seconds_sum", stage="grouped_to_ready") == 90
    assert counted("loopwright_stage_seconds_sum", stage="requested_to_opened") == 200
    assert counted("loopwright_stage_seconds_count", stage="requested_to_opened") == 1


async def test_what_the_policy_does_not_start_is_counted_by_its_rule(gateway: Any, counted: Counted) -> None:
    gateway.config["policy"] = {"mode": "report_only"}
    await gateway.open()
    await gateway.give(s.INVESTIGATIONS_COMPLETED, gateway.investigation())

    assert counted("loopwright_changes_not_started_total", rule="mode") == 1
    assert counted("loopwright_changes_total", event="requested") == 0


async def test_what_is_rolled_back_is_not_counted(gateway: Any, counted: Counted) -> None:
    async def fail() -> None:
        async with gateway.store.transaction() as unit:
            unit.after_commit(metrics.VERDICTS.labels("held").inc)
            raise RuntimeError("power")

    with pytest.raises(RuntimeError, match="power"):
        await fail()
    assert counted("loopwright_verdicts_total", verdict="held") == 0


async def test_the_gauges_show_how_things_stand_and_nothing_when_it_cannot_be_known(gateway: Any) -> None:
    def shown(name: str, **labels: str) -> float | None:
        return REGISTRY.get_sample_value(name, labels)

    await gateway.to_review("r1")
    await gateway.open("r2")
    gateway.clock.advance(timedelta(hours=3))
    standing = await gateway.store.standing(gateway.clock.now())
    metrics.show_standing(standing)

    assert (shown("loopwright_reports", state="in_review"), shown("loopwright_reports", state="held")) == (1, 0)
    assert (shown("loopwright_open_changes", state="in_review"), shown("loopwright_open_changes", state="requested")) == (1, 0)
    assert shown("loopwright_open_change_oldest_seconds", state="in_review") == 3 * 3600
    assert standing.outbox_items > 0
    assert shown("loopwright_outbox_items") == standing.outbox_items

    await gateway.store.sent([item.id for item in await gateway.store.outbox(1_000)])
    metrics.show_standing(await gateway.store.standing(gateway.clock.now()))
    assert (shown("loopwright_outbox_items"), shown("loopwright_outbox_oldest_seconds")) == (0, 0)

    metrics.forget_standing()
    assert shown("loopwright_reports", state="in_review") is None
