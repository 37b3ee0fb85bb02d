"""How urgent it is, P0 to P4, as a sum of stated points.

The scale is our own: points are additive so that a person can check the sum, and the steps are set so that one strong factor alone (a fatal
error, a tenth of the requests) reaches P2, two reach P1, and a failing health check with a large share reaches P0.
"""

from __future__ import annotations

from loopwright_common.contracts.investigations import PriorityFactor
from loopwright_common.contracts.signals import Severity

from loopwright_investigator.domain import BlastRadius, Case, plural

STEPS = ((75.0, "P0"), (50.0, "P1"), (28.0, "P2"), (12.0, "P3"))
SHARES = ((0.1, 30.0), (0.01, 22.0), (0.001, 12.0), (0.0, 4.0))
PEOPLE = ((1_000, 25.0), (100, 18.0), (10, 10.0), (1, 4.0))
SEVERITIES = {Severity.FATAL: 20.0, Severity.ERROR: 10.0, Severity.WARNING: 4.0, Severity.INFO: 0.0, Severity.DEBUG: 0.0}
PER_FURTHER_KIND, KINDS_MOST = 7.0, 14.0
HEALTH = 15.0
TRENDS = {"rising": 8.0, "falling": -6.0}
NOT_PRODUCTION = -25.0
PRODUCTION = frozenset({"production", "prod", "live", ""})


def rank(case: Case, reach: BlastRadius) -> tuple[str, tuple[PriorityFactor, ...]]:
    """The priority and the factors that add up to it."""
    report = case.ready.report
    factors: list[PriorityFactor] = []

    def add(name: str, value: str, points: float) -> None:
        factors.append(PriorityFactor(name=name, value=value, points=points))

    if reach.share is not None:
        points = next((points for least, points in SHARES if reach.share >= least), 0.0) if reach.share > 0 else 0.0
        add("share", f"{reach.share:.2%} of {reach.exposure_unit}", points)
    else:
        add("share", "not known", 8.0)  # neither nothing nor a tenth: the middle of the scale's lower half
    add(
        "people",
        plural(reach.people, "person").replace("persons", "people"),
        next((points for least, points in PEOPLE if reach.people >= least), 0.0),
    )
    worst = max((signal.severity for signal in case.signals), key=lambda severity: SEVERITIES[severity], default=Severity.ERROR)
    add("severity", worst.value, SEVERITIES[worst])
    kinds = sorted(kind for kind, count in report.kinds.items() if count and kind != "measurement")
    if len(kinds) > 1:
        add("kinds that agree", ", ".join(kinds), min(KINDS_MOST, PER_FURTHER_KIND * (len(kinds) - 1)))
    if report.kinds.get("health_check"):
        add("health check", "failing", HEALTH)
    if reach.trend in TRENDS:
        add("trend", reach.trend, TRENDS[reach.trend])
    if reach.environments and not any(name.lower() in PRODUCTION for name in reach.environments):
        add("environment", ", ".join(reach.environments), NOT_PRODUCTION)
    total = sum(factor.points for factor in factors)
    return next((name for least, name in STEPS if total >= least), "P4"), tuple(factors)
