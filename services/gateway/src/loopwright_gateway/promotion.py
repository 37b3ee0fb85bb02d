"""When a report is ready to be investigated: a score that says what it is made of. Pure: no I/O, no clock.

With a configuration's ``kind_weights`` k, ``half_life`` h and ``people_weight`` p, the score of a report is

    max over t of  sum of  k[kind] * weight * 2 ** -((t - minute) / h)      + p * people
                   (signals whose minute is not after t)

where t runs over the minutes of its live signals, and ``people`` are its distinct actors. Without a half life the power is 1 and the
maximum is the plain sum. What follows from it, and is tested:

- It depends on which signals the report has, not on the order or the company in which they were told, nor on how often.
- Another signal, another person or a greater weight never makes it smaller. In particular a score that was reached stays reached while a
  burst has its time to gather: it is the highest there was, not the present one.
- Nothing becomes ready by waiting: the score of a moment falls until the next signal, so only a signal can raise the maximum.
- History that is loaded (backfill) adds to the score at a live signal's time, and to the count, but without a live signal there is no t.

Decay over a half life is the one of radioactive decay; error trackers that rank by "trends" do alike, over hours to days.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby

from loopwright_common.contracts.configuration import Promotion
from loopwright_common.contracts.signals import SignalKind

# Sums of floats depend on their order in the last digits: ten signals of 0.1 are to be 1.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class MinuteWeight:
    """The counted signals of one kind in one minute: the sum of their own weights, and how many of them are live."""

    minute: datetime
    kind: str
    weight: float
    live: int


@dataclass(frozen=True)
class Totals:
    """What a report keeps of its signals at hand."""

    kinds: Mapping[str, int]  # signals per kind; verdicts too, which are not counted
    weight: float
    live: int
    people: int


@dataclass(frozen=True)
class Gathered:
    """What is compared with a configuration's minima."""

    weight: float
    signals: int
    people: int
    live: int
    kinds: tuple[tuple[str, float], ...] = ()  # (kind, its share of the weight), where the kinds were told apart


@dataclass(frozen=True)
class Part:
    """One thing that is needed, and how much of it there is."""

    name: str
    value: float
    needed: float

    @property
    def reached(self) -> bool:
        return self.value >= self.needed * (1.0 - TOLERANCE)


@dataclass(frozen=True)
class PromotionDecision:
    """Whether a report is ready, and why; ``at`` when only time is missing. ``waits_for`` says the same in a few words."""

    ready: bool
    reason: str
    parts: tuple[Part, ...] = ()
    at: datetime | None = None
    waits_for: str = ""


def kinds_that_count(promotion: Promotion, kinds: Mapping[str, int]) -> list[str]:
    """Those of a report's kinds that add to its score and its count."""
    return sorted(kind for kind in kinds if kind != SignalKind.MEASUREMENT.value and promotion.kind_weight(kind) > 0.0)


def from_totals(promotion: Promotion, totals: Totals) -> tuple[Gathered, bool]:
    """What a report has gathered, and whether that is exact. Where it is not, weight and live signals are no less than the exact ones.

    It is exact where no signal loses weight and all its kinds have the same: then no signal has to be looked at again.
    """
    kinds = [kind for kind in totals.kinds if kind != SignalKind.MEASUREMENT.value]
    weights = {promotion.kind_weight(kind) for kind in kinds}
    most = max(weights, default=1.0)
    exact = len(weights) <= 1 and promotion.half_life is None
    counting = sum(totals.kinds[kind] for kind in kinds_that_count(promotion, totals.kinds))
    live = totals.live if counting else 0
    return Gathered(most * totals.weight + promotion.people_weight * totals.people, counting, totals.people, live), exact


def from_minutes(promotion: Promotion, totals: Totals, minutes: Sequence[MinuteWeight]) -> Gathered:
    """The exact answer. ``minutes`` are all of the report's, of the kinds that count, in the order of time."""
    live = sum(item.live for item in minutes)
    score, kinds = _highest(promotion, minutes)
    counting = sum(totals.kinds[kind] for kind in kinds_that_count(promotion, totals.kinds))
    return Gathered(score + promotion.people_weight * totals.people, counting, totals.people, live, tuple(sorted(kinds.items())))


def _highest(promotion: Promotion, minutes: Sequence[MinuteWeight]) -> tuple[float, dict[str, float]]:
    """The highest sum at a live signal's time, and its kinds' shares."""
    shares: dict[str, float] = {}
    if promotion.half_life is None:  # nothing is lost: the whole sum, with history from after the last live signal too
        for item in minutes:
            shares[item.kind] = shares.get(item.kind, 0.0) + promotion.kind_weight(item.kind) * item.weight
        return (sum(shares.values()), shares) if any(item.live for item in minutes) else (0.0, {})
    highest, of_highest, before = 0.0, dict[str, float](), None
    for minute, group in groupby(minutes, key=lambda item: item.minute):
        left = 0.5 ** ((minute - before) / promotion.half_life) if before is not None else 1.0
        shares, before, live = {kind: share * left for kind, share in shares.items()}, minute, False
        for item in group:
            shares[item.kind] = shares.get(item.kind, 0.0) + promotion.kind_weight(item.kind) * item.weight
            live = live or item.live > 0
        if live and (total := sum(shares.values())) >= highest:
            highest, of_highest = total, dict(shares)
    return highest, of_highest


def parts_of(promotion: Promotion, gathered: Gathered) -> tuple[Part, ...]:
    """What is needed beside time."""
    return (
        Part("live_signals", gathered.live, 1),
        Part("weight", gathered.weight, promotion.minimum_weight),
        Part("signals", gathered.signals, promotion.minimum_count),
        Part("people", gathered.people, promotion.minimum_people),
    )


def promote(promotion: Promotion, gathered: Gathered, *, opened_at: datetime, now: datetime) -> PromotionDecision:
    """Whether a gathering report is ready. Backfill counts towards the weight but never promotes by itself."""
    parts = parts_of(promotion, gathered)
    if not parts[0].reached:
        reason = "no live signal yet of a kind that counts: history that was loaded is not looked into by itself"
        return PromotionDecision(False, reason, parts, waits_for="a live signal")
    missing = [part for part in parts if not part.reached]
    if missing:
        figures = [f"{part.name} {_figure(part.value)} of {part.needed:g}" for part in missing]
        words = [f"more {'people' if part.name == 'people' else 'signals'}" for part in missing]
        waits_for = f"{' and '.join(dict.fromkeys(words))}: {', '.join(figures)}"
        return PromotionDecision(False, f"{' and '.join(figures)} so far", parts, waits_for=waits_for)
    due = opened_at + promotion.group_wait
    if now < due:
        reason = f"a burst may still gather for {(due - now).total_seconds():.0f} s"
        return PromotionDecision(False, reason, parts, due, f"a burst to gather until {due:%H:%M:%S} UTC")
    return PromotionDecision(True, _why_ready(promotion, gathered), parts)


def _figure(value: float) -> str:
    """At most three decimals, rounded down: a weight that is short of what is needed must not look as if it were not."""
    return f"{int(value * 1_000 * (1 + TOLERANCE)) / 1_000:.12g}"


def _why_ready(promotion: Promotion, gathered: Gathered) -> str:
    """The figures, as the timeline keeps them."""
    made_of = [f"{kind} {_figure(share)}" for kind, share in gathered.kinds]
    if promotion.people_weight:
        made_of.append(f"people {gathered.people} x {promotion.people_weight:g}")
    if promotion.half_life is not None:
        made_of.append(f"halved every {_duration(promotion.half_life)}")
    reached = [f"weight {_figure(gathered.weight)} reached {promotion.minimum_weight:g}" + (f" ({', '.join(made_of)})" if made_of else "")]
    if promotion.minimum_count > 1:
        reached.append(f"{gathered.signals} signals reached {promotion.minimum_count}")
    if promotion.minimum_people:
        reached.append(f"{gathered.people} people reached {promotion.minimum_people}")
    return f"{', '.join(reached)} and {promotion.group_wait.total_seconds():g} s were left for a burst"


def _duration(span: timedelta) -> str:
    seconds = span.total_seconds()
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"
