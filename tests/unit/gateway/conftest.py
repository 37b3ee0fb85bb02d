"""A gateway without its HTTP: handlers, people and a real SQLite store on a clock that stands still."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from loopwright_common.bus import Received
from loopwright_common.contracts import subjects as s
from loopwright_common.contracts.base import Contract
from loopwright_common.contracts.changes import Change, ChangeClosed, ChangeFailed, ChangeMerged, PullRequest
from loopwright_common.contracts.configuration import ProjectConfig
from loopwright_common.contracts.envelope import Envelope
from loopwright_common.contracts.investigations import Investigation, MetricContract, SuspectCommit
from loopwright_common.contracts.measurements import Measurement, MeasurementStarted
from loopwright_common.contracts.reports import GroupingDecision, GroupUpdated, ReportsRegrouped
from loopwright_common.contracts.signals import Signal
from loopwright_common.testing.clock import FakeClock
from loopwright_gateway.adapters.inbox import Inbox
from loopwright_gateway.adapters.store import SqlStore
from loopwright_gateway.domain import FOLLOWS
from loopwright_gateway.handlers import Facts, handlers
from loopwright_gateway.people import People

SUSPECT = "a" * 40


class Gateway:
    """Hands facts to the handlers as a consumer would, and looks at what became of them."""

    def __init__(self, store: SqlStore, clock: FakeClock) -> None:
        self.store, self.clock = store, clock
        self.config: dict[str, Any] = {"promotion": {"group_wait": 0}}
        self.facts = Facts(store, self.project, clock)
        self.people = People(store, self.project, clock)
        self.inbox = Inbox(store, self.project)
        self._handlers = handlers(self.facts)

    def project(self, name: str) -> ProjectConfig:
        return ProjectConfig.model_validate({"name": name, **self.config})

    def received(self, subject: s.Subject, payload: Contract, message_id: str) -> Received[Any]:
        envelope = Envelope(id=message_id, source="/services/test", type=subject.event_type, time=self.clock.now())
        return Received(subject.pattern, payload, envelope, subject.stream, 1, 1, "shop")

    async def give(self, subject: s.Subject, payload: Any, message_id: str = "") -> None:
        message = self.received(subject, payload, message_id or f"{subject.event_type}:{getattr(payload, 'id', '')}")
        if subject is s.GROUPS_UPDATED:
            await self.facts.grouped([message])
        elif subject is s.EXPOSURES:
            await self.facts.exposed([message])
        else:
            await self._handlers[subject.pattern](message)

    # What others say

    def signal(self, id: str, **more: Any) -> Signal:
        now = self.clock.now()
        values = {"source": "sentry", "kind": "exception", "title": "ZeroDivisionError", "service": "shop", "release": "v2", **more}
        return Signal.model_validate({"id": id, "project": "shop", "occurred_at": now, "received_at": now, **values})

    def group(self, id: str, report: str = "r1", *, recurrence_of: str | None = None, **more: Any) -> GroupUpdated:
        decision = GroupingDecision(outcome="joined", rule="fingerprint", reason="the same crash", fingerprint="f", grouping_version="v1")
        return GroupUpdated(
            project="shop", report_id=report, signal=self.signal(id, **more), decision=decision, recurrence_of=recurrence_of,
            decided_at=self.clock.now(),
        )  # fmt: skip

    def investigation(self, report: str = "r1", attempt: int = 1, **more: Any) -> Investigation:
        now = self.clock.now()
        suspect = SuspectCommit(commit=SUSPECT, title="Split bills", author="Robin", committed_at=now, score=0.9, reasons=("blame",))
        values: dict[str, Any] = {"verdict": "actionable", "priority": "P1", "reason": "a revert is safe", "suspects": (suspect,), **more}
        return Investigation.model_validate({
            "id": f"i-{report}-{attempt}", "project": "shop", "report_id": report, "attempt": attempt, "title": "Checkout divides by zero",
            "summary": "", "confidence": 0.9, "repository": "shop", "started_at": now, "completed_at": now, **values,
        })  # fmt: skip

    def change(self, id: str, report: str = "r1", *, state: str = "in_review", **more: Any) -> Change:
        pull = PullRequest(number=1, url="http://forge/1", branch="loopwright/x", base="main", head_commit="c" * 40)
        return Change.model_validate({
            "id": id, "project": "shop", "report_id": report, "state": state, "strategy": "revert", "title": "Revert it",
            "repository": "shop", "base_commit": "b" * 40, "proof": "reproduced", "pull_request": pull, "at": self.clock.now(), **more,
        })  # fmt: skip

    def merged(self, id: str, report: str = "r1") -> ChangeMerged:
        return ChangeMerged(
            change_id=id, project="shop", report_id=report, repository="shop", merge_commit="d" * 40, merged_by="person:robin",
            merged_at=self.clock.now(), investigation=self.investigation(report),
        )  # fmt: skip

    def closed(self, id: str, report: str = "r1") -> ChangeClosed:
        return ChangeClosed(change_id=id, project="shop", report_id=report, closed_by="person:robin", reason="no", at=self.clock.now())

    def failed(self, id: str, report: str = "r1") -> ChangeFailed:
        return ChangeFailed(change_id=id, project="shop", report_id=report, reason="conflict", missing="Which one?", at=self.clock.now())

    def started(self, change: str, report: str = "r1") -> MeasurementStarted:
        now = self.clock.now()
        return MeasurementStarted(
            id=f"m-{change}", project="shop", report_id=report, change_id=change, deploy_id="d1", release="v3", commit="d" * 40,
            deployed_at=now, settles_at=now, ends_at=now + timedelta(hours=1), at=now,
        )  # fmt: skip

    def measurement(self, change: str, report: str = "r1", verdict: str = "held") -> Measurement:
        now = self.clock.now()
        metric = MetricContract(query="signals per request", baseline_start=now - timedelta(hours=1), baseline_end=now)
        return Measurement.model_validate({
            "id": f"m-{change}", "project": "shop", "report_id": report, "change_id": change, "verdict": verdict, "reason": "it fell",
            "metric": metric, "at": now,
        })  # fmt: skip

    def regrouped(self, report: str, source: str, signals: tuple[str, ...] | None = None) -> ReportsRegrouped:
        return ReportsRegrouped(
            project="shop",
            command_id=f"word-{report}-{source}",
            action="merge" if signals is None else "split",
            report_id=report,
            from_report_id=source,
            signal_ids=signals,
            actor="person:robin",
            at=self.clock.now(),
        )

    # What became of it

    async def open(self, report: str = "r1", signals: int = 1, **more: Any) -> None:
        for number in range(signals):
            await self.give(s.GROUPS_UPDATED, self.group(f"{report}-s{number}", report, **more))

    async def to_review(self, report: str = "r1") -> str:
        """Up to the pull request; the change's id."""
        await self.open(report)
        await self.give(s.INVESTIGATIONS_COMPLETED, self.investigation(report))
        change = await self.latest(report)
        await self.give(s.CHANGES_OPENED, self.change(change, report))
        return change

    async def state(self, report: str = "r1") -> str:
        return (await self.report(report)).state.value

    async def report(self, report: str = "r1") -> Any:
        async with self.store.transaction() as unit:
            found = await unit.report(report)
        assert found is not None, f"there is no report {report}"
        return found

    async def latest(self, report: str = "r1") -> str:
        async with self.store.transaction() as unit:
            change = await unit.latest_change(report)
        assert change is not None, f"report {report} has no change"
        return change.id

    async def timeline(self, report: str = "r1") -> list[Any]:
        return await self.inbox.timeline(report, 0, 1_000)

    async def sent(self, subject: s.Subject) -> list[Any]:
        """The payloads that wait in the outbox."""
        items = await self.store.outbox(10_000)
        return [subject.payload.model_validate_json(item.payload) for item in items if item.kind == subject.pattern]

    async def check_timeline(self, report: str = "r1") -> None:
        """Sequences have no gap, and no state follows one that it cannot."""
        lines = await self.timeline(report)
        assert [line.sequence for line in lines] == list(range(1, len(lines) + 1))
        current = None
        for line in lines:
            if line.to_state is None:
                continue
            assert line.from_state == current
            assert current is None or line.to_state in FOLLOWS[current]
            current = line.to_state
        assert current == (await self.report(report)).state


@pytest_asyncio.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlStore]:
    opened = SqlStore.open(f"sqlite+aiosqlite:///{tmp_path}/gateway.db")
    await opened.migrate()
    yield opened
    await opened.close()


@pytest.fixture
def gateway(store: SqlStore, fake_clock: FakeClock) -> Gateway:
    return Gateway(store, fake_clock)
