"""Measurements: did the metric move once the change was live."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from loopwright_common.contracts.base import CommitSha, Contract, Identifier, Line, Name, ShortText, UtcDatetime
from loopwright_common.contracts.investigations import Cost, MetricContract
from loopwright_common.contracts.reports import MinuteCount


class Verdict(StrEnum):
    HELD = "held"
    NOT_HELD = "not_held"
    WORSE = "worse"
    INCONCLUSIVE = "inconclusive"


class RateWindow(Contract):
    """One side of the comparison: events over exposure. ``exposure`` is in units of the metric's exposure_unit (hours for time)."""

    start: UtcDatetime
    end: UtcDatetime
    releases: tuple[Line, ...] = Field(default=(), max_length=50)
    events: int = Field(ge=0)
    exposure: float = Field(ge=0.0)
    rate: float | None = None
    rate_low: float | None = None
    rate_high: float | None = None


class MeasurementStarted(Contract):
    """The change is live: ``measurements.<project>.started``."""

    id: Identifier
    project: Name
    report_id: Identifier
    change_id: Identifier
    deploy_id: Identifier
    release: Line
    commit: CommitSha
    deployed_at: UtcDatetime
    settles_at: UtcDatetime
    ends_at: UtcDatetime
    at: UtcDatetime


class Measurement(Contract):
    """The verdict with its numbers: ``measurements.<project>.completed``. ``ratio`` is after / before, with its interval."""

    id: Identifier
    project: Name
    report_id: Identifier
    change_id: Identifier
    verdict: Verdict
    reason: ShortText
    metric: MetricContract
    before: RateWindow | None = None
    after: RateWindow | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None  # None with verdicts other than inconclusive: unbounded
    p_value: float | None = None
    test: ShortText = ""
    release: Line = ""
    deployed_at: UtcDatetime | None = None
    series: tuple[MinuteCount, ...] = Field(default=(), max_length=20_000)
    cost: Cost = Cost()
    at: UtcDatetime
