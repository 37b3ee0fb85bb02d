"""ONE table: subject <-> payload <-> sole publisher <-> stream. Streams are declared from it; a contract test holds the services to it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property

from loopwright_common.contracts.base import Contract
from loopwright_common.contracts.changes import (
    Change,
    ChangeClosed,
    ChangeCommand,
    ChangeFailed,
    ChangeMerged,
    ChangeProgress,
    ChangeRequested,
    CommandRefused,
)
from loopwright_common.contracts.investigations import Investigation, InvestigationStarted
from loopwright_common.contracts.measurements import Measurement, MeasurementStarted
from loopwright_common.contracts.queries import (
    EvaluationAnswer,
    EvaluationQuery,
    GroupCommand,
    RatesAnswer,
    RatesQuery,
    SearchAnswer,
    SearchQuery,
    ShadowAnswer,
    ShadowQuery,
)
from loopwright_common.contracts.reports import GroupUpdated, ReportReady, ReportsRegrouped, ReportTransitioned
from loopwright_common.contracts.signals import Deploy, Exposure, Signal

EVENT_TYPE_PREFIX = "io.loopwright."
VERSION = 1


@dataclass(frozen=True)
class Subject:
    """A kind of fact: ``pattern`` has ``{project}`` and at most one more placeholder, each one subject token."""

    pattern: str
    payload: type[Contract]
    publishers: tuple[str, ...]  # one service; signals have one per source
    stream: str

    def name(self, **tokens: str) -> str:
        """The subject for these tokens. Raises ValueError when a token is not a single subject token."""
        for key, token in tokens.items():
            if not token or any(character in token for character in " .*>\t\r\n"):
                raise ValueError(f"{key}={token!r} is not a single subject token")
        return self.pattern.format(**tokens)

    @property
    def wildcard(self) -> str:
        """The pattern with ``*`` for each placeholder."""
        return ".".join("*" if token.startswith("{") else token for token in self.pattern.split("."))

    @cached_property  # it is compared with that of every message
    def event_type(self) -> str:
        """CloudEvents ``type``: the fact without project or source, as in ``io.loopwright.changes.opened.v1``."""
        fixed = ".".join(token for token in self.pattern.split(".") if not token.startswith("{"))
        return f"{EVENT_TYPE_PREFIX}{fixed}.v{VERSION}"


SIGNALS = Subject("signals.{project}.{source}", Signal, ("ingest", "scouts", "measure"), "SIGNALS")
EXPOSURES = Subject("exposures.{project}.{service}", Exposure, ("ingest",), "EXPOSURES")
DEPLOYS = Subject("deploys.{project}.{service}", Deploy, ("ingest",), "DEPLOYS")
GROUPS_UPDATED = Subject("groups.{project}.updated", GroupUpdated, ("cluster",), "GROUPS")
GROUPS_REGROUPED = Subject("groups.{project}.regrouped", ReportsRegrouped, ("cluster",), "GROUPS")
REPORTS_READY = Subject("reports.{project}.ready", ReportReady, ("gateway",), "REPORTS")
REPORTS_TRANSITIONED = Subject("reports.{project}.transitioned", ReportTransitioned, ("gateway",), "REPORTS")
INVESTIGATIONS_STARTED = Subject("investigations.{project}.started", InvestigationStarted, ("investigator",), "INVESTIGATIONS")
INVESTIGATIONS_COMPLETED = Subject("investigations.{project}.completed", Investigation, ("investigator",), "INVESTIGATIONS")
CHANGES_REQUESTED = Subject("changes.{project}.requested", ChangeRequested, ("gateway",), "CHANGES")
CHANGES_PROGRESSED = Subject("changes.{project}.progressed", ChangeProgress, ("pr-agent",), "CHANGES")
CHANGES_OPENED = Subject("changes.{project}.opened", Change, ("pr-agent",), "CHANGES")
CHANGES_UPDATED = Subject("changes.{project}.updated", Change, ("pr-agent",), "CHANGES")
CHANGES_MERGED = Subject("changes.{project}.merged", ChangeMerged, ("pr-agent",), "CHANGES")
CHANGES_CLOSED = Subject("changes.{project}.closed", ChangeClosed, ("pr-agent",), "CHANGES")
CHANGES_FAILED = Subject("changes.{project}.failed", ChangeFailed, ("pr-agent",), "CHANGES")
CHANGES_REFUSED = Subject("changes.{project}.refused", CommandRefused, ("pr-agent",), "CHANGES")
MEASUREMENTS_STARTED = Subject("measurements.{project}.started", MeasurementStarted, ("measure",), "MEASUREMENTS")
MEASUREMENTS_COMPLETED = Subject("measurements.{project}.completed", Measurement, ("measure",), "MEASUREMENTS")
COMMANDS_CHANGES = Subject("commands.{project}.changes", ChangeCommand, ("gateway",), "COMMANDS")
COMMANDS_GROUPS = Subject("commands.{project}.groups", GroupCommand, ("gateway",), "COMMANDS")

SUBJECTS: tuple[Subject, ...] = (
    SIGNALS, EXPOSURES, DEPLOYS, GROUPS_UPDATED, GROUPS_REGROUPED, REPORTS_READY, REPORTS_TRANSITIONED,
    INVESTIGATIONS_STARTED, INVESTIGATIONS_COMPLETED, CHANGES_REQUESTED, CHANGES_PROGRESSED, CHANGES_OPENED, CHANGES_UPDATED,
    CHANGES_MERGED, CHANGES_CLOSED, CHANGES_FAILED, CHANGES_REFUSED, MEASUREMENTS_STARTED, MEASUREMENTS_COMPLETED,
    COMMANDS_CHANGES, COMMANDS_GROUPS,
)  # fmt: skip


@dataclass(frozen=True)
class Question:
    """A request/reply subject: who answers it, with what."""

    subject: str
    query: type[Contract]
    answer: type[Contract]
    answered_by: str


RATES_QUERY = Question("questions.rates.query", RatesQuery, RatesAnswer, "gateway")
SEARCH_QUERY = Question("questions.search.query", SearchQuery, SearchAnswer, "cluster")
EVALUATION_QUERY = Question("questions.grouping-evaluation.query", EvaluationQuery, EvaluationAnswer, "cluster")
SHADOW_QUERY = Question("questions.grouping-shadow.query", ShadowQuery, ShadowAnswer, "cluster")
QUESTIONS: tuple[Question, ...] = (RATES_QUERY, SEARCH_QUERY, EVALUATION_QUERY, SHADOW_QUERY)


@dataclass(frozen=True)
class Stream:
    """A JetStream stream: its limits bound what a flood may keep on disk. A full stream refuses new messages, never drops old ones."""

    name: str
    subjects: tuple[str, ...]
    max_age: timedelta
    store_share: float  # of the bytes the deployment gives to JetStream; the shares of all streams add up to less than 1
    duplicate_window: timedelta = timedelta(minutes=10)
    scheduled: bool = False


def _of(stream: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(subject.wildcard for subject in SUBJECTS if subject.stream == stream))


# Ages: signals for a re-index of a month; facts about changes for the quarter that a review of the loop looks back on.
STREAMS: tuple[Stream, ...] = (
    Stream("SIGNALS", _of("SIGNALS"), timedelta(days=30), 0.3),
    Stream("EXPOSURES", _of("EXPOSURES"), timedelta(days=7), 0.04),
    Stream("DEPLOYS", _of("DEPLOYS"), timedelta(days=90), 0.02),
    Stream("GROUPS", _of("GROUPS"), timedelta(days=7), 0.3),
    Stream("REPORTS", _of("REPORTS"), timedelta(days=90), 0.06),
    Stream("INVESTIGATIONS", _of("INVESTIGATIONS"), timedelta(days=90), 0.06),
    Stream("CHANGES", _of("CHANGES"), timedelta(days=90), 0.06),
    Stream("MEASUREMENTS", _of("MEASUREMENTS"), timedelta(days=90), 0.02),
    Stream("COMMANDS", _of("COMMANDS"), timedelta(days=30), 0.02),
    # timers.<service>.<purpose>.<key> when due; schedules.<same> while waiting.
    Stream("TIMERS", ("timers.>", "schedules.>"), timedelta(days=90), 0.02, scheduled=True),
    # dead.<stream>.<consumer>: what no attempt could handle, with its reason, until it is replayed or ages out.
    Stream("DEAD", ("dead.>",), timedelta(days=90), 0.06),
)
