"""A report as the gateway keeps it, and the lines of its timeline."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

from loopwright_common import telemetry
from loopwright_common.contracts.reports import GroupingDecision, ReportState
from loopwright_common.contracts.signals import Signal

RELEASES_MAX = 100


@dataclass
class Report:
    """One row of ``reports``. Handlers load it, change it, and save it in one transaction."""

    id: str
    project: str
    title: str
    state: ReportState
    first_seen: datetime
    last_seen: datetime
    opened_at: datetime
    updated_at: datetime
    priority: str | None = None
    question: str = ""
    state_reason: str = ""
    services: list[str] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=dict)
    releases: dict[str, int] = field(default_factory=dict)
    input: list[str] = field(default_factory=list)
    weight: float = 0.0
    signal_count: int = 0
    live_count: int = 0
    people_count: int = 0
    attempt: int = 0
    change_attempt: int = 0
    timeline_sequence: int = 0
    version: int = 0
    recurrence_of: str | None = None
    merged_into: str | None = None
    snoozed_until: datetime | None = None
    snoozed_at_count: int | None = None
    snooze_signals: int | None = None


@dataclass(frozen=True)
class TimelineEntry:
    """One line a person reads: a transition, or something noted. ``cause`` makes it unique on its report."""

    sequence: int
    kind: str
    actor: str
    reason: str
    at: datetime
    cause: str
    from_state: ReportState | None = None
    to_state: ReportState | None = None


@dataclass(frozen=True)
class SeenSignal:
    """What exact counting remembers of a signal."""

    signal_id: str
    report_id: str
    minute: datetime
    release: str
    environment: str
    kind: str
    service: str
    weight: float
    actor: str
    backfill: bool
    counted: bool
    fingerprint: str = ""  # not known of what was counted before fingerprints were kept
    told_report_id: str = ""  # where the grouping put it; ``report_id`` is where people's words did
    occurred_at: datetime | None = None  # None: within ``minute``


@dataclass(frozen=True)
class FirstDecision:
    """Why a fingerprint came to a report: the decision on its first signal there."""

    project: str
    report_id: str
    signal: Signal
    decision: GroupingDecision
    at: datetime


@dataclass
class WordRecord:
    """One row of ``words``: what a person said of the grouping, and what came of it."""

    command_id: str
    project: str
    action: str
    report_id: str  # merge: stays; split, move: is left; undo: where things return
    actor: str
    at: datetime
    reason: str = ""
    other_report_id: str | None = None  # merge: goes; move: where to; never_together: the other; undo: where they were
    new_report_id: str | None = None
    undoes: str | None = None
    fingerprints: list[str] = field(default_factory=list)
    signals: int = 0  # asked: those named; done: those moved
    state: str = "asked"
    refusal: str = ""
    undone_by: str | None = None

    @property
    def undoable(self) -> bool:
        return self.state == "done" and self.action != "undo"

    @property
    def reports(self) -> list[str]:
        """The reports that it is about."""
        return list(dict.fromkeys(item for item in (self.report_id, self.other_report_id, self.new_report_id) if item))


@dataclass(frozen=True)
class FingerprintMove:
    """A word took a fingerprint from one report to another; what was decided until ``at`` belongs to the other."""

    command_id: str
    from_report_id: str
    to_report_id: str
    at: datetime


@dataclass(frozen=True)
class Carried:
    """What the signals that a word moves amount to."""

    signals: int = 0
    signal_count: int = 0  # of those that are occurrences of the problem
    live_count: int = 0
    weight: float = 0.0
    kinds: dict[str, int] = field(default_factory=dict)
    releases: dict[str, int] = field(default_factory=dict)
    services: list[str] = field(default_factory=list)
    first_seen: datetime | None = None
    last_seen: datetime | None = None
    title: str = ""  # of the earliest


@dataclass(frozen=True)
class Kept:
    """What is still known of the signals of a report. ``complete`` is False once some were forgotten for their age."""

    complete: bool
    services: list[str]
    first_seen: datetime | None
    last_seen: datetime | None


@dataclass
class ChangeRecord:
    """One row of ``changes``. ``body`` is the JSON of contracts.Change once the pull request was opened."""

    id: str
    project: str
    report_id: str
    repository: str
    suspect: str | None
    state: str
    attempt: int
    title: str
    requested_by: str
    created_at: datetime
    updated_at: datetime
    fact_at: datetime
    feedback: list[str] = field(default_factory=list)
    failure: str = ""
    merge_commit: str | None = None
    closed_by: str | None = None
    body: str | None = None


@dataclass(frozen=True)
class OutboxItem:
    """Something to do once the transaction stands: publish a fact, set or cancel a timer, publish a configuration.

    ``traceparent`` is the trace in which it was decided; whichever replica sends it goes on in that one.
    """

    kind: str
    tokens: dict[str, str]
    message_id: str
    about: str
    payload: str
    id: int = 0
    traceparent: str = field(default_factory=telemetry.traceparent)
    decided_at: datetime = field(default_factory=lambda: datetime.now(UTC), compare=False)


@dataclass(frozen=True)
class StreamEvent:
    """One event of ``/v1/stream``."""

    id: int
    kind: str
    project: str
    body: str
