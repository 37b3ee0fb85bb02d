"""Who is hit: people, requests, the share of the service's use, environments, and whether it grows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import datetime, timedelta

from loopwright_common.contracts.queries import RatesAnswer

from loopwright_investigator.domain import BlastRadius, Case, Evidence, Onset, Place, plural
from loopwright_investigator.poisson import binomial_tail

TREND_LEVEL = 0.01
UNITS = ("requests", "sessions", "probes")  # the first that the service reports is the denominator


def exposure_unit(rates: RatesAnswer | None, service: str) -> str:
    """The unit in which the service's use is known; ``time`` where it is not."""
    if rates is None:
        return "time"
    known = {minute.unit for minute in rates.exposure if minute.count and (not service or minute.service == service)}
    return next((unit for unit in UNITS if unit in known), "time")


def measure_reach(case: Case, place: Place, onset: Onset, evidence: Evidence) -> BlastRadius:
    """The report's reach since its onset. A share is signals per unit of exposure, and may pass 1 when one request says several things."""
    report = case.ready.report
    unit = exposure_unit(case.rates, place.service)
    since = _floor(onset.first_seen)
    exposure = 0.0
    signals = 0
    if case.rates is not None:
        exposure = float(
            sum(
                minute.count
                for minute in case.rates.exposure
                if minute.unit == unit and minute.minute >= since and (not place.service or minute.service == place.service)
            )
        )
        signals = sum(count.count for count in case.rates.signals if count.minute >= since)
    share = signals / exposure if exposure > 0 else None
    environments = tuple(sorted({signal.environment for signal in case.signals if signal.environment}))
    trend, why = _trend(case, place, unit, since)
    answer = [f"{plural(report.signal_count, 'signal')}, {plural(report.people_count, 'person')}".replace("persons", "people")]
    if share is not None:
        answer.append(f"{plural(signals, 'signal')} in {exposure:,.0f} {unit} since the first: {share:.3%}")
    elif case.rates is None:
        answer.append(f"the share is not known: {case.rates_missing or 'the rates could not be asked'}")
    else:
        answer.append("the share is not known: the service reports no use (exposure)")
    answer.append(f"environments: {', '.join(environments) or 'not said'}")
    answer.append(f"trend: {trend} ({why})")
    answer.append("kinds: " + ", ".join(f"{count} {kind}" for kind, count in sorted(report.kinds.items())))
    observed = evidence.observe(
        "rates",
        f"How many signals, people and requests? (rates.query report_id={report.id} service={place.service or '*'})",
        "\n".join(answer),
        window=f"{since:%Y-%m-%dT%H:%M:%SZ} to {case.now:%Y-%m-%dT%H:%M:%SZ}",
        data={
            "signals": signals,
            "exposure": exposure,
            "unit": unit,
            "share": share,
            "people": report.people_count,
            "trend": trend,
            "kinds": dict(report.kinds),
            "environments": list(environments),
        },
    )
    return BlastRadius(
        report.signal_count, report.people_count, share, exposure, unit, environments, trend, (observed,) if observed else ()
    )


def _floor(moment: datetime) -> datetime:
    return moment.replace(second=0, microsecond=0)


def _trend(case: Case, place: Place, unit: str, since: datetime) -> tuple[str, str]:
    """The newest third of the time since the onset against the two before it, by the exact test on two rates."""
    if case.rates is None:
        return "unknown", "no rates"
    last = case.now
    length = last - since
    if length < timedelta(minutes=6):
        return "unknown", "it began less than 6 minutes ago"
    split = last - length / 3
    signals = _sums(((count.minute, count.count) for count in case.rates.signals), since, split)
    if unit == "time":
        exposures = {"before": (split - since).total_seconds(), "after": (last - split).total_seconds()}
    else:
        exposures = _sums(
            (
                (minute.minute, minute.count)
                for minute in case.rates.exposure
                if minute.unit == unit and (not place.service or minute.service == place.service)
            ),
            since,
            split,
        )
    total = signals["before"] + signals["after"]
    if total < 5 or exposures["before"] <= 0 or exposures["after"] <= 0:
        return "unknown", "too few signals or too little use to tell"
    share = exposures["after"] / (exposures["before"] + exposures["after"])
    up = binomial_tail(int(signals["after"]), int(total), share)
    down = binomial_tail(int(signals["before"]), int(total), 1.0 - share)
    if up <= TREND_LEVEL:
        return "rising", f"the last third is higher, p={up:.2g}"
    if down <= TREND_LEVEL:
        return "falling", f"the last third is lower, p={down:.2g}"
    return "steady", f"the last third is neither higher (p={up:.2g}) nor lower (p={down:.2g})"


def _sums(counts: Iterable[tuple[datetime, int]], since: datetime, split: datetime) -> dict[str, float]:
    found: Counter[str] = Counter()
    for minute, count in counts:
        if minute >= since:
            found["before" if minute < split else "after"] += count
    return {"before": float(found["before"]), "after": float(found["after"])}
