"""Which minutes count for which side: by release where exposure carries one, else by time. Pure.

By release: what the new releases did from the end of the settle period on, against what the others did before the deploy; stragglers of the
old release after the deploy count for neither side. By time: whole minutes only, those before the deploy against those after the settle
period. The baseline begins where the metric contract says and goes on until the deploy: a window that ends when signals were enough to act
on would overstate the rate.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from loopwright_common.contracts.investigations import MetricContract
from loopwright_common.contracts.measurements import RateWindow
from loopwright_common.contracts.queries import RatesAnswer
from loopwright_common.contracts.reports import MinuteCount

from loopwright_measure.statistics import Count, rate_interval

MINUTE = timedelta(minutes=1)
# Enough for a chart of a week in quarter hours, and small enough for one message.
SERIES_POINTS_MAX = 1_500
_BUCKETS = tuple(timedelta(minutes=minutes) for minutes in (1, 5, 15, 60, 240, 1_440))


@dataclass(frozen=True)
class Deployed:
    """The deploy that the measurement starts at, and every release since that contains the change."""

    at: datetime
    releases: frozenset[str]

    def has(self, release: str) -> bool:
        """Whether a signal's release is one of these, under whichever of its usual names: ``shop@1.4.2`` is ``1.4.2`` is ``v1.4.2``, and an
        abbreviated commit is the commit."""
        return release in self.releases or any(_same(_tail(release), _tail(each)) for each in self.releases)


@dataclass(frozen=True)
class Side:
    """One side of the comparison."""

    start: datetime
    end: datetime
    releases: tuple[str, ...]
    count: Count
    errored: Count  # requests that failed, over requests: what guardrails look at
    cells: tuple[Count, ...] = ()  # per minute

    def window(self, confidence: float) -> RateWindow:
        """The side as the contract tells it."""
        interval = rate_interval(self.count, confidence)
        low, high = interval if interval is not None else (None, None)
        return RateWindow(
            start=self.start, end=max(self.start, self.end), releases=self.releases[:50], events=round(self.count.events),
            exposure=self.count.exposure, rate=self.count.rate, rate_low=low, rate_high=high,
        )  # fmt: skip


@dataclass(frozen=True)
class Sides:
    """Both sides and how they were told apart."""

    before: Side
    after: Side
    by: Literal["release", "time"]
    unit: str
    notes: tuple[str, ...] = ()


@dataclass
class _Sums:
    events: dict[datetime, float] = field(default_factory=lambda: defaultdict(float))
    exposure: dict[datetime, float] = field(default_factory=lambda: defaultdict(float))
    errored: float = 0.0
    releases: set[str] = field(default_factory=set)


_COMMIT = re.compile(r"^[0-9a-f]{7,64}$")


def _tail(release: str) -> str:
    version = release.rsplit("@", 1)[-1]
    return version[1:] if re.match(r"^v\d", version) else version


def _same(one: str, other: str) -> bool:
    if one == other:
        return bool(one)
    return bool(_COMMIT.match(one) and _COMMIT.match(other)) and (one.startswith(other) or other.startswith(one))


def floor_minute(moment: datetime) -> datetime:
    """The beginning of the minute that holds ``moment``."""
    return moment.replace(second=0, microsecond=0)


def ceil_minute(moment: datetime) -> datetime:
    """The first whole minute at or after ``moment``."""
    floor = floor_minute(moment)
    return floor if floor == moment else floor + MINUTE


def question_window(metric: MetricContract, now: datetime) -> tuple[datetime, datetime]:
    """What has to be asked: a day more than the baseline, to see whether it begins with the report's first signal."""
    return floor_minute(metric.baseline_start) - timedelta(days=1), ceil_minute(now)


def split(rates: RatesAnswer, metric: MetricContract, deployed: Deployed, now: datetime) -> Sides:
    """Both sides of the comparison from the counts up to ``now``."""
    start, settled = floor_minute(metric.baseline_start), deployed.at + metric.settle
    unit = metric.exposure_unit
    exposures = [each for each in rates.exposure if each.unit == unit and (not metric.service or each.service == metric.service)]
    notes: list[str] = []
    if unit != "time" and not any(each.count for each in exposures if start <= each.minute < deployed.at):
        notes.append(f"no {unit} were reported before the deploy, so the rates are per hour")
        unit = "time"
    # Over several services a release says nothing: the others' releases go on unchanged on both sides.
    by_release = unit != "time" and bool(metric.service) and all(each.release for each in exposures if each.count and each.minute >= start)
    named = {row.release for row in rates.signals} | {use.release for use in exposures}
    ours = {release for release in named if release and deployed.has(release)}
    before, after = _Sums(), _Sums()

    def side_of(minute: datetime, release: str) -> _Sums | None:
        if minute < start or minute >= now:
            return None
        if by_release and release:
            if release in ours:
                return after if minute >= floor_minute(settled) else None
            return before if minute < deployed.at else None
        if minute + MINUTE <= deployed.at:
            return before
        whole = minute >= settled and (by_release or minute + MINUTE <= now)
        return after if whole else None

    for row in rates.signals:
        if (side := side_of(row.minute, row.release)) is not None:
            side.events[row.minute] += row.count
            side.releases.add(row.release)
    for use in exposures:
        if (side := side_of(use.minute, use.release)) is not None:
            side.errored += use.errored
            side.releases.add(use.release)
            if unit != "time":
                side.exposure[use.minute] += use.count
    if by_release:
        before_end, after_start, after_end = ceil_minute(deployed.at), floor_minute(settled), now
    else:
        before_end, after_start, after_end = floor_minute(deployed.at), ceil_minute(settled), floor_minute(now)
    if unit == "time":
        _hours(before, start, before_end)
        _hours(after, after_start, after_end)
    strangers = sorted({use.release for use in exposures if use.minute >= settled and use.count and use.release not in ours})
    if by_release and strangers:
        notes.append(f"use of other releases after the deploy counts for neither side: {', '.join(strangers[:5])}"[:500])
    discount = _opening_signal(rates.signals, before, start)
    if discount:
        notes.append("the signal that opened the report is not counted, since the baseline begins with it")
    return Sides(
        _side(before, start, before_end, discount),
        _side(after, after_start, after_end, 0),
        "release" if by_release else "time",
        unit,
        tuple(notes),
    )


def _hours(sums: _Sums, start: datetime, end: datetime) -> None:
    minutes = max(0, int((end - start) / MINUTE))
    for number in range(minutes):
        sums.exposure[start + number * MINUTE] = 1 / 60


def _opening_signal(signals: Iterable[MinuteCount], before: _Sums, start: datetime) -> int:
    """1 when the baseline begins with the very first signal of the report: it is there by choice, not by chance."""
    earliest = min((row.minute for row in signals if row.count), default=None)
    return 1 if earliest == start and before.events.get(start, 0) >= 1 else 0


def _side(sums: _Sums, start: datetime, end: datetime, discount: int) -> Side:
    events, exposure = sum(sums.events.values()) - discount, math.fsum(sums.exposure.values())
    cells = tuple(Count(sums.events.get(minute, 0.0), sums.exposure[minute]) for minute in sorted(sums.exposure))
    releases = tuple(sorted(release for release in sums.releases if release))
    return Side(start, end, releases, Count(events, exposure), Count(min(sums.errored, exposure), exposure), cells)


def series(signals: Iterable[MinuteCount]) -> tuple[MinuteCount, ...]:
    """The counts for a chart, in buckets wide enough that there are at most SERIES_POINTS_MAX points."""
    rows = [row for row in signals if row.count]
    for bucket in _BUCKETS:
        summed: dict[tuple[datetime, str], int] = defaultdict(int)
        for row in rows:
            seconds = row.minute.timestamp() // bucket.total_seconds() * bucket.total_seconds()
            summed[(datetime.fromtimestamp(seconds, row.minute.tzinfo), row.release)] += row.count
        if len(summed) <= SERIES_POINTS_MAX:
            break
    points = [MinuteCount(minute=minute, release=release, count=count) for (minute, release), count in sorted(summed.items())]
    return tuple(points[-SERIES_POINTS_MAX:])
