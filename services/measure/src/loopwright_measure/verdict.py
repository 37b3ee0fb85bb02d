"""From two sides to a verdict with its reason. Pure: the metric contract decides, which was fixed before the pull request existed.

The interval of the ratio after / before is held against the contract. With direction ``decrease`` and minimum effect m:

    interval entirely at or below 1 - m                held
    interval entirely above 1                          worse
    interval entirely above 1 - m, but reaching 1      not_held: it may have moved, but by less than was promised
    anything else                                      inconclusive

With ``increase`` the same with 1 + m, mirrored. A guardrail whose whole interval lies beyond its limit makes ``worse`` of any of these.

Looking more than once would find an effect by chance sooner or later, so the looks share the error: the first has half of it, the second a
quarter, and so on, and the last (at the maximum wait) all that is left. Their sum never exceeds 1 - confidence (Bonferroni; Pocock, "Group
sequential methods in the design and analysis of clinical trials", Biometrika 64, 1977, on why it must not).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from loopwright_common.contracts.investigations import Guardrail, MetricContract
from loopwright_common.contracts.measurements import Verdict

from loopwright_measure.statistics import Comparison, Count, compare, dispersion, exposure_needed
from loopwright_measure.windows import Side, Sides

LOOKS_MAX = 12  # the twelfth look has a two-thousandth of the error: a further one could show nothing


@dataclass(frozen=True)
class Judgement:
    """A verdict, the sentence a person reads, and the figures. ``comparison`` is None when the sides could not be compared."""

    verdict: Verdict
    reason: str
    comparison: Comparison | None
    test: str
    missing: str = ""  # what would make it conclusive


def look_confidence(metric: MetricContract, looks_before: int, final: bool) -> float:
    """The confidence of this look, so that all looks together keep the contract's."""
    share = 0.5 ** min(looks_before, LOOKS_MAX) if final else 0.5 ** (min(looks_before, LOOKS_MAX) + 1)
    return 1.0 - (1.0 - metric.confidence) * share


def wanted_ratio(metric: MetricContract) -> float:
    """The ratio after / before that the change promised to reach."""
    return 1.0 - metric.minimum_effect if metric.direction == "decrease" else 1.0 + metric.minimum_effect


def exposure_for_look(metric: MetricContract, sides: Sides, looks_before: int) -> float:
    """How much exposure this look waits for: what the first needs to be able to show the promise, doubled for each look after it."""
    factor = _factor(sides)
    needed = math.inf
    if metric.direction == "decrease":
        confidence = look_confidence(metric, 0, final=False)
        needed = exposure_needed(_scaled(sides.before.count, factor), wanted_ratio(metric), confidence) * factor
    if math.isinf(needed):
        # No decrease can be shown, but a rise can: as much use as the baseline had is a fair first look.
        needed = sides.before.count.exposure
    return needed * 2.0**looks_before


def judge(metric: MetricContract, sides: Sides, *, looks_before: int, final: bool) -> Judgement:
    """What the counts say now."""
    confidence = look_confidence(metric, looks_before, final)
    factor = _factor(sides)
    test = _describe(metric, sides, confidence, factor)
    missing = _missing(sides)
    if missing:
        return Judgement(Verdict.INCONCLUSIVE, f"The two rates cannot be compared: {missing}.", None, test, missing)
    before, after = sides.before.count, sides.after.count
    comparison = compare(_scaled(before, factor), _scaled(after, factor), confidence)
    verdict = against_contract(metric, comparison)
    said = _figures(before, after, sides.unit, comparison)
    broken, notes = _guardrails(metric, sides, confidence)
    if broken:
        return Judgement(Verdict.WORSE, f"{broken} The target: {said}.", comparison, test)
    reason = f"{_sentence(metric, verdict, comparison)}: {said}.{notes}"
    lacking = "" if verdict is not Verdict.INCONCLUSIVE else _lacking(metric, sides, factor, confidence)
    if lacking:
        reason = f"{reason} {lacking}"
    return Judgement(verdict, reason, comparison, test, lacking)


def against_contract(metric: MetricContract, comparison: Comparison) -> Verdict:
    """Where the interval lies."""
    wanted = wanted_ratio(metric)
    if metric.direction == "decrease":
        if comparison.high <= wanted:
            return Verdict.HELD
        if comparison.low > 1.0:
            return Verdict.WORSE
        return Verdict.NOT_HELD if comparison.low > wanted else Verdict.INCONCLUSIVE
    if comparison.low >= wanted:
        return Verdict.HELD
    if comparison.high < 1.0:
        return Verdict.WORSE
    return Verdict.NOT_HELD if comparison.high < wanted else Verdict.INCONCLUSIVE


def _factor(sides: Sides) -> float:
    return max(dispersion(sides.before.cells), dispersion(sides.after.cells))


def _scaled(count: Count, factor: float) -> Count:
    return count if factor == 1.0 else Count(count.events / factor, count.exposure / factor)


def _missing(sides: Sides) -> str:
    for side, name in ((sides.before, "before"), (sides.after, "after")):
        if side.count.exposure <= 0:
            return f"no {'whole minute' if sides.unit == 'time' else sides.unit} {name} the deploy"
    return ""


def _lacking(metric: MetricContract, sides: Sides, factor: float, confidence: float) -> str:
    before = _scaled(sides.before.count, factor)
    if before.events <= 0:
        return "The baseline has no signal beside the one that opened the report, so no decrease can be shown."
    if metric.direction == "decrease":
        needed = exposure_needed(before, wanted_ratio(metric), confidence) * factor
        if needed > sides.after.count.exposure:
            had = _amount(sides.after.count.exposure, sides.unit)
            return f"At least {_amount(needed, sides.unit)} after the deploy are needed to show the effect; there were {had}."
    return "The interval is too wide to say: it needs more use, or a larger effect."


def _sentence(metric: MetricContract, verdict: Verdict, comparison: Comparison) -> str:
    moved = "fell" if metric.direction == "decrease" else "rose"
    percent = f"{metric.minimum_effect:.0%}"
    limits = f"{_number(comparison.low)} to {_number(comparison.high)}"
    interval = f"ratio {_number(comparison.ratio)}, {comparison.confidence:.2%} interval {limits}"
    return {
        Verdict.HELD: f"The rate {moved} by at least {percent} ({interval})",
        Verdict.NOT_HELD: f"The rate did not {'fall' if metric.direction == 'decrease' else 'rise'} by {percent} ({interval})",
        Verdict.WORSE: f"The rate {'rose' if metric.direction == 'decrease' else 'fell'} after the change ({interval})",
        Verdict.INCONCLUSIVE: f"It cannot be said whether the rate {moved} by {percent} ({interval})",
    }[verdict]


def _figures(before: Count, after: Count, unit: str, comparison: Comparison) -> str:
    return (
        f"{before.events:.0f} signals in {_amount(before.exposure, unit)} before, {after.events:.0f} in "
        f"{_amount(after.exposure, unit)} after, p = {comparison.p_value:.2g}"
    )


def _guardrails(metric: MetricContract, sides: Sides, confidence: float) -> tuple[str, str]:
    """The sentence of the first guardrail that is broken, and notes on those that could not be looked at."""
    notes = []
    shared = 1.0 - (1.0 - confidence) / max(1, len(metric.guardrails))
    for guardrail in metric.guardrails:
        if guardrail.metric != "service_errors_per_exposure" or sides.unit == "time":
            notes.append(f" Guardrail {guardrail.metric} was not measured: there are no counts for it.")
            continue
        found = _errors(guardrail, sides.before, sides.after, shared)
        if found:
            return found, ""
    return "", "".join(notes)


def _errors(guardrail: Guardrail, before: Side, after: Side, confidence: float) -> str:
    if before.errored.exposure <= 0 or after.errored.exposure <= 0:
        return ""
    comparison = compare(before.errored, after.errored, confidence)
    limit = 1.0 + guardrail.worsening_max if guardrail.direction == "decrease" else 1.0 / (1.0 + guardrail.worsening_max)
    broken = comparison.low > limit if guardrail.direction == "decrease" else comparison.high < limit
    if not broken:
        return ""
    return (
        f"The service's errors per exposure got worse by more than {guardrail.worsening_max:.0%}: {before.errored.events:.0f} of "
        f"{before.errored.exposure:.0f} before, {after.errored.events:.0f} of {after.errored.exposure:.0f} after "
        f"(interval of the ratio {_number(comparison.low)} to {_number(comparison.high)})."
    )


def _describe(metric: MetricContract, sides: Sides, confidence: float, factor: float) -> str:
    told = [
        f"{metric.test}; Clopper-Pearson interval of the ratio at {confidence:.4g} for this look, {metric.confidence:.4g} over all looks",
        f"sides told apart by {sides.by}",
        *sides.notes,
    ]
    if factor > 1.0:
        told.append(f"counts divided by {factor:.3g}, as the minutes vary more than Poisson counts")
    return "; ".join(told)


def _amount(exposure: float, unit: str) -> str:
    if math.isinf(exposure):
        return f"more {unit if unit != 'time' else 'hours'} than can be waited for"
    return f"{exposure:,.2f} hours" if unit == "time" else f"{exposure:,.0f} {unit}"


def _number(value: float | None) -> str:
    if value is None:
        return "undefined"
    return "unbounded" if math.isinf(value) else f"{value:.3g}"
