"""Questions between services: NATS request/reply. Nobody opens another service's store."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from loopwright_common.contracts.base import Contract, Identifier, Line, Name, ShortText, UtcDatetime
from loopwright_common.contracts.reports import MinuteCount
from loopwright_common.contracts.signals import Deploy


class RatesQuery(Contract):
    """Asks the gateway: signals of a report and use of a service, per minute and release, in [start, end)."""

    project: Name
    report_id: Identifier | None = None
    service: Line = ""  # empty: all services of the report
    environment: Line = ""
    start: UtcDatetime
    end: UtcDatetime


class ExposureMinute(Contract):
    minute: UtcDatetime
    service: Line
    release: Line = ""
    unit: Literal["requests", "sessions", "probes"] = "requests"
    count: int
    errored: int = 0


class RatesAnswer(Contract):
    """Exact counts. ``truncated`` when more than the limit matched: then the window must be asked in parts."""

    signals: tuple[MinuteCount, ...] = Field(default=(), max_length=100_000)
    exposure: tuple[ExposureMinute, ...] = Field(default=(), max_length=100_000)
    deploys: tuple[Deploy, ...] = Field(default=(), max_length=1_000)
    people_count: int = 0
    truncated: bool = False


class SearchQuery(Contract):
    """Asks cluster: the reports most like a text."""

    project: Name
    text: ShortText
    limit: int = Field(default=20, ge=1, le=100)


class SearchHit(Contract):
    report_id: Identifier
    similarity: float
    title: Line


class SearchAnswer(Contract):
    hits: tuple[SearchHit, ...] = Field(default=(), max_length=100)
    degraded: bool = False


class QueryError(Contract):
    """The answer when a question cannot be answered; ``retryable`` says whether asking again may help."""

    error: ShortText
    retryable: bool = False


class GroupCommand(Contract):
    """A person's last word on grouping, carried out by cluster. ``commands.<project>.groups``."""

    command_id: Identifier
    project: Name
    action: Literal["merge", "split"]
    report_id: Identifier  # merge: the one that stays; split: the one that is split
    other_report_id: Identifier | None = None  # merge: the one that goes
    signal_ids: tuple[Identifier, ...] = Field(default=(), max_length=10_000)  # split: those that leave
    actor: Line
    reason: ShortText = ""
    at: UtcDatetime
