"""The metric contract: what will be measured after the change, fixed now, with the baseline as it stands."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal, cast

from loopwright_common.contracts.configuration import MeasurementConfig
from loopwright_common.contracts.investigations import Guardrail, MetricContract

from loopwright_investigator.analyzers.blast_radius import exposure_unit
from loopwright_investigator.domain import Case, Evidence, Onset, Place, line, plural

BASELINE_MOST = timedelta(days=7)  # one week holds the daily and weekly swing; older traffic says less about now
Unit = Literal["requests", "sessions", "probes", "time"]


def fix_metric(case: Case, place: Place, onset: Onset, evidence: Evidence) -> tuple[MetricContract, str]:
    """The contract and the id of the observation that holds its baseline.

    The baseline runs from the onset (whole minutes) to now. Exposure is in the contract's unit; for ``time`` in hours.
    """
    measurement = case.config.measurement if case.config is not None else MeasurementConfig()
    unit = cast(Unit, exposure_unit(case.rates, place.service))
    start = max(onset.first_seen.replace(second=0, microsecond=0), case.now - BASELINE_MOST)
    end = case.now.replace(second=0, microsecond=0) + timedelta(minutes=1)
    count = 0
    exposure = 0.0
    if case.rates is not None:
        count = sum(each.count for each in case.rates.signals if start <= each.minute < end)
        if unit != "time":
            exposure = float(
                sum(
                    each.count
                    for each in case.rates.exposure
                    if each.unit == unit and start <= each.minute < end and (not place.service or each.service == place.service)
                )
            )
    if unit == "time":
        exposure = (end - start).total_seconds() / 3_600
    environments = sorted({signal.environment for signal in case.signals if signal.environment})
    environment = environments[0] if len(environments) == 1 else ""
    query = (
        f"signals of report {case.ready.report.id} per {'hour' if unit == 'time' else unit.removesuffix('s')} of "
        f"{line(place.service, 64) or 'its services'}{f' in {environment}' if environment else ''}"
    )
    # The service's other errors must not rise while this one falls; only a service that reports its use has that rate.
    guardrails = (
        (Guardrail(metric="service_errors_per_exposure", direction="decrease", worsening_max=0.2),)
        if unit in ("requests", "probes")
        else ()
    )
    contract = MetricContract(
        query=query,
        service=place.service,
        environment=environment,
        exposure_unit=unit,
        direction="decrease",
        minimum_effect=measurement.minimum_effect,
        guardrails=guardrails,
        baseline_start=start,
        baseline_end=end,
        baseline_count=count,
        baseline_exposure=exposure,
        confidence=measurement.confidence,
        settle=measurement.settle,
        minimum_window=measurement.minimum_window,
        maximum_wait=measurement.maximum_wait,
    )
    answer = f"{plural(count, 'signal')} in {exposure:,.1f} {'hours' if unit == 'time' else unit}"
    if exposure > 0:
        answer += f": {count / exposure:.4g} per {'hour' if unit == 'time' else unit.removesuffix('s')}"
    if case.rates is None:
        answer += f"; the rates could not be asked ({case.rates_missing}), so the measurement takes its baseline anew"
    observed = evidence.observe(
        "rates",
        f"What is the baseline of the metric? (rates.query: {query})",
        answer,
        window=f"{start:%Y-%m-%dT%H:%M:%SZ} to {end:%Y-%m-%dT%H:%M:%SZ}",
        data={"count": count, "exposure": exposure, "unit": unit},
    )
    return contract, observed
