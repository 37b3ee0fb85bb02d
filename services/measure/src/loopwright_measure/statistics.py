"""Comparing two rates: counts over exposure, before and after. Exact methods, so that small counts are not flattered.

Given the total, the count after is binomial with p = rE/(1 + rE), where r is the ratio of the rates and E that of the exposures
(Przyborowski and Wilenski, "Homogeneity of results in testing samples from Poisson series", Biometrika 31, 1940). The Clopper-Pearson
limits of p ("The use of confidence or fiducial limits illustrated in the case of the binomial", Biometrika 26, 1934) give those of the
ratio, and the central two-sided p-value agrees with them (Fay, "Two-sided exact tests and matching confidence intervals for discrete
data", The R Journal 2, 2010). Limits of a single rate: Garwood, "Fiducial limits for the Poisson distribution", Biometrika 28, 1936.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import special

DISPERSION_CELLS_MIN = 10  # an estimate from fewer minutes is mostly noise


@dataclass(frozen=True)
class Count:
    """Events over exposure; the unit of exposure is the caller's (requests, hours)."""

    events: float
    exposure: float

    def __post_init__(self) -> None:
        if self.events < 0 or self.exposure < 0:
            raise ValueError(f"a count cannot be negative: {self.events} events over {self.exposure}")

    @property
    def rate(self) -> float | None:
        """Events per unit of exposure; None without exposure."""
        return self.events / self.exposure if self.exposure > 0 else None


@dataclass(frozen=True)
class Comparison:
    """The ratio of the rates, after / before, with its interval. ``high`` is infinite when nothing bounds it; ``ratio`` is None for 0/0."""

    ratio: float | None
    low: float
    high: float
    p_value: float
    confidence: float


def rate_interval(count: Count, confidence: float) -> tuple[float, float] | None:
    """Garwood's limits of a Poisson rate; None without exposure."""
    _check_confidence(confidence)
    if count.exposure <= 0:
        return None
    alpha = 1.0 - confidence
    low = special.gammaincinv(count.events, alpha / 2) if count.events > 0 else 0.0
    high = special.gammaincinv(count.events + 1, 1 - alpha / 2)
    return float(low) / count.exposure, float(high) / count.exposure


def compare(before: Count, after: Count, confidence: float) -> Comparison:
    """The exact conditional test and interval of two Poisson rates. Raises ValueError when one side has no exposure.

    Counts need not be whole (see ``dispersion``): the beta form of Clopper-Pearson takes them as they are.
    """
    _check_confidence(confidence)
    if before.exposure <= 0 or after.exposure <= 0:
        raise ValueError("both sides need exposure to be compared")
    x, y = after.events, before.events
    if x + y == 0:
        return Comparison(None, 0.0, math.inf, 1.0, confidence)
    alpha = 1.0 - confidence
    per_odds = before.exposure / after.exposure
    low = _odds(float(special.betaincinv(x, y + 1, alpha / 2))) * per_odds if x > 0 else 0.0
    high = _odds(float(special.betaincinv(x + 1, y, 1 - alpha / 2))) * per_odds if y > 0 else math.inf
    ratio = (x / after.exposure) / (y / before.exposure) if y > 0 else math.inf
    expected = after.exposure / (after.exposure + before.exposure)
    at_least = float(special.betainc(x, y + 1, expected)) if x > 0 else 1.0  # P(X >= x) when the rates are equal
    at_most = 1.0 - float(special.betainc(x + 1, y, expected)) if y > 0 else 1.0  # P(X <= x)
    return Comparison(ratio, low, high, min(1.0, 2 * min(at_least, at_most)), confidence)


def exposure_needed(before: Count, wanted_ratio: float, confidence: float) -> float:
    """The exposure after at which an interval could first lie below ``wanted_ratio``: when not one event comes. Infinite when never.

    It depends on the baseline alone, so waiting for it does not favour any outcome.
    """
    _check_confidence(confidence)
    if before.events <= 0 or before.exposure <= 0 or wanted_ratio <= 0:
        return math.inf
    limit = _odds(float(special.betaincinv(1, before.events, 1 - (1 - confidence) / 2)))
    return limit * before.exposure / wanted_ratio


def dispersion(cells: Sequence[Count]) -> float:
    """How much more the minutes vary than Poisson counts would: 1.0 or more.

    Pearson's chi-squared over its degrees of freedom (McCullagh and Nelder, "Generalized Linear Models", 1989, section 9.2). Events of real
    programs come in bursts; dividing counts by this factor widens the interval to what the minutes themselves show. 1.0 with fewer than
    DISPERSION_CELLS_MIN minutes of exposure.
    """
    used = [cell for cell in cells if cell.exposure > 0]
    events, exposure = sum(cell.events for cell in used), sum(cell.exposure for cell in used)
    if len(used) < DISPERSION_CELLS_MIN or events <= 0:
        return 1.0
    rate = events / exposure
    chi_squared = sum((cell.events - rate * cell.exposure) ** 2 / (rate * cell.exposure) for cell in used)
    return max(1.0, chi_squared / (len(used) - 1))


def _odds(probability: float) -> float:
    return probability / (1.0 - probability) if probability < 1.0 else math.inf


def _check_confidence(confidence: float) -> None:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence {confidence} is not between 0 and 1")
