"""Questions between services: NATS request/reply. Nobody opens another service's store."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from loopwright_common.contracts.base import Contract, Identifier, Line, Name, ShortText, UtcDatetime
from loopwright_common.contracts.reports import MinuteCount, RegroupAction
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


FINGERPRINTS_PER_COMMAND_MAX = 1_000


class GroupCommand(Contract):
    """A person's last word on grouping, carried out by cluster. ``commands.<project>.groups``.

    A fingerprint that is named leaves with all its signals, those to come too; a signal that is named leaves alone.
    """

    command_id: Identifier
    project: Name
    action: RegroupAction
    report_id: (
        Identifier  # merge: the one that stays; split, move: the one that is left; never_together: one of the two; undo: where it is said
    )
    other_report_id: Identifier | None = None  # merge: the one that goes; move: where to; never_together: the other
    signal_ids: tuple[Identifier, ...] = Field(default=(), max_length=10_000)  # split, move: those that leave
    fingerprints: tuple[Line, ...] = Field(default=(), max_length=FINGERPRINTS_PER_COMMAND_MAX)  # split, move: those that leave
    undoes: Identifier | None = None  # undo: the command that is taken back
    actor: Line
    reason: ShortText = ""
    at: UtcDatetime


class EvaluationQuery(Contract):
    """Asks cluster: how a version of the grouping would decide the pairs that people have decided. Empty: the version in charge."""

    project: Name
    version: Literal["", "v1", "v2"] = ""


class LabelledPair(Contract):
    """Two fingerprints that a person put together (``same``) or apart, and what the version says of them by itself."""

    command_id: Identifier  # the word it comes from
    fingerprint: Line
    other_fingerprint: Line
    title: Line
    other_title: Line
    same: bool
    would_join: bool
    probability: float | None = None  # None: decided by a rule, not by the matcher
    reason: ShortText = ""


class EvaluationAnswer(Contract):
    """Counts over all labelled pairs; ``pairs`` shows some of them, the wrongly decided first."""

    version: Line
    same: int = 0
    same_joined: int = 0
    apart: int = 0
    apart_joined: int = 0
    pairs: tuple[LabelledPair, ...] = Field(default=(), max_length=200)
    truncated: bool = False  # more pairs than were compared
    degraded: bool = False


class ShadowQuery(Contract):
    """Asks cluster: how the version in shadow decided beside the one in charge."""

    project: Name


class ShadowDifference(Contract):
    signal_id: Identifier
    title: Line
    report_id: Identifier | None  # None: it opened a report
    reason: ShortText
    shadow_report_id: Identifier | None
    shadow_reason: ShortText
    at: UtcDatetime


class ShadowAnswer(Contract):
    """``shadow`` is empty when none runs. Counts since the two were first compared; the newest differences, newest first."""

    version: Line
    shadow: Line = ""
    since: UtcDatetime
    agreed: int = 0
    differed: int = 0
    differences: tuple[ShadowDifference, ...] = Field(default=(), max_length=100)
