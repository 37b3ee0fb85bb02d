"""Comparing two counts over two exposures, exactly. Pure, standard library only."""

from __future__ import annotations

import math


def binomial_tail(successes: int, trials: int, probability: float) -> float:
    """P(X >= successes) for a binomial X: the one-sided exact conditional test of two Poisson rates (Przyborowski and Wilenski, 1940).

    With ``successes`` events in the second window, ``trials`` in both, and ``probability`` the second window's share of the exposure, it
    is the chance of a rise at least this large when nothing changed.
    """
    if successes <= 0:
        return 1.0
    if trials < successes or probability <= 0.0:
        return 0.0
    if probability >= 1.0:
        return 1.0
    # Summed from the larger side's edge; terms shrink geometrically beyond the mode, so the loop ends long before the last.
    log_p, log_q = math.log(probability), math.log1p(-probability)
    total = 0.0
    if successes > trials * probability:
        for count in range(successes, trials + 1):
            term = math.exp(_log_choose(trials, count) + count * log_p + (trials - count) * log_q)
            total += term
            if term < total * 1e-12:
                break
        return min(1.0, total)
    for count in range(successes - 1, -1, -1):
        term = math.exp(_log_choose(trials, count) + count * log_p + (trials - count) * log_q)
        total += term
        if term < total * 1e-12 and term < 1e-15:
            break
    return max(0.0, 1.0 - total)


def chance_of_none(rate: float, exposure: float) -> float:
    """The chance of seeing nothing over ``exposure`` when events come at ``rate`` per unit of it (Poisson)."""
    return math.exp(-min(700.0, max(0.0, rate) * max(0.0, exposure)))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
