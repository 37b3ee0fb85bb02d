from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopwright_measure.statistics import Count, compare, dispersion, exposure_needed, rate_interval
from scipy.stats import binomtest, chi2

events = st.integers(min_value=0, max_value=2_000)
exposure = st.floats(min_value=0.5, max_value=1e6)
confidence = st.sampled_from([0.8, 0.9, 0.95, 0.975, 0.99])


def close(one: float, other: float) -> bool:
    return one == other or math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)


@given(events, exposure, events, exposure, confidence)
def test_swapping_before_and_after_inverts_the_ratio_and_keeps_the_p_value(a, e, b, f, level):
    forward, backward = compare(Count(a, e), Count(b, f), level), compare(Count(b, f), Count(a, e), level)
    assert math.isclose(forward.p_value, backward.p_value, rel_tol=1e-6, abs_tol=1e-12)
    inverse = lambda value: math.inf if value == 0 else 0.0 if math.isinf(value) else 1 / value  # noqa: E731
    assert close(forward.low, inverse(backward.high))
    assert close(forward.high, inverse(backward.low))


@given(events, exposure, events, exposure, confidence)
def test_the_interval_holds_the_ratio_and_grows_with_confidence(a, e, b, f, level):
    found = compare(Count(a, e), Count(b, f), level)
    assert found.low <= found.high
    if found.ratio is not None:
        assert found.low <= found.ratio * (1 + 1e-9)
        assert found.ratio <= found.high * (1 + 1e-9)
    wider = compare(Count(a, e), Count(b, f), 0.999)
    assert wider.low <= found.low * (1 + 1e-9)
    assert wider.high >= found.high * (1 - 1e-9)


@given(events, exposure, events, exposure, confidence)
def test_one_more_event_after_moves_the_interval_up(a, e, b, f, level):
    fewer, more = compare(Count(a, e), Count(b, f), level), compare(Count(a, e), Count(b + 1, f), level)
    assert more.low >= fewer.low * (1 - 1e-9)
    assert more.high >= fewer.high * (1 - 1e-9)


@given(events, exposure, events, exposure, st.floats(min_value=0.01, max_value=1_000))
def test_the_unit_of_exposure_does_not_matter(a, e, b, f, factor):
    one, other = compare(Count(a, e), Count(b, f), 0.95), compare(Count(a, e * factor), Count(b, f * factor), 0.95)
    assert close(one.low, other.low)
    assert close(one.high, other.high)
    assert math.isclose(one.p_value, other.p_value, rel_tol=1e-5, abs_tol=1e-9)


@given(events, exposure, events, exposure, confidence)
def test_the_test_and_the_interval_agree(a, e, b, f, level):
    found = compare(Count(a, e), Count(b, f), level)
    significant = found.p_value < 1 - level
    excluded = found.low > 1.0 or found.high < 1.0
    assert significant == excluded or math.isclose(found.p_value, 1 - level, rel_tol=1e-6)


@given(st.integers(0, 300), exposure, st.integers(0, 300), exposure, confidence)
def test_the_limits_are_those_of_scipys_exact_binomial(a, e, b, f, level):
    if a + b == 0:
        return
    found = compare(Count(a, e), Count(b, f), level)
    exact = binomtest(b, a + b, f / (e + f)).proportion_ci(level, method="exact")
    odds = f / e
    assert math.isclose(found.low * odds / (1 + found.low * odds), exact.low, rel_tol=1e-6, abs_tol=1e-9)
    if not math.isinf(found.high):
        assert math.isclose(found.high * odds / (1 + found.high * odds), exact.high, rel_tol=1e-6)


@given(st.integers(0, 1_000), exposure, confidence)
def test_a_single_rates_limits_are_garwoods(count, time, level):
    low, high = rate_interval(Count(count, time), level)
    alpha = 1 - level
    assert close(low * time, chi2.ppf(alpha / 2, 2 * count) / 2 if count else 0.0)
    assert close(high * time, chi2.ppf(1 - alpha / 2, 2 * count + 2) / 2)


@given(st.integers(1, 500), exposure, st.floats(min_value=0.05, max_value=0.95), confidence)
def test_the_exposure_needed_is_where_no_event_at_all_just_shows_the_effect(count, time, wanted, level):
    needed = exposure_needed(Count(count, time), wanted, level)
    assert compare(Count(count, time), Count(0, needed * 1.001), level).high <= wanted
    assert compare(Count(count, time), Count(0, needed * 0.999), level).high > wanted


def test_a_baseline_without_events_can_never_show_a_decrease():
    assert exposure_needed(Count(0, 100), 0.5, 0.95) == math.inf


@pytest.mark.parametrize("bad", [Count(1, 0), Count(0, 0)])
def test_sides_without_exposure_are_not_compared(bad):
    with pytest.raises(ValueError, match="exposure"):
        compare(bad, Count(1, 1), 0.95)
    assert rate_interval(bad, 0.95) is None


@pytest.mark.parametrize("bad", [{"events": -1, "exposure": 1}, {"events": 1, "exposure": -1}])
def test_negative_counts_are_refused(bad):
    with pytest.raises(ValueError, match="negative"):
        Count(**bad)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_dispersion_is_near_one_for_poisson_and_large_for_bursts(seed):
    rng = np.random.default_rng(seed)
    calm = dispersion([Count(float(count), 100.0) for count in rng.poisson(5, 200)])
    bursts = dispersion([Count(float(count), 100.0) for count in rng.negative_binomial(0.5, 0.05, 200)])
    assert 1.0 <= calm < 1.8
    assert bursts > 3.0


def test_dispersion_needs_ten_minutes_to_say_anything():
    assert dispersion([Count(0, 10), Count(100, 10)] * 4) == 1.0
    assert dispersion([Count(0, 10), Count(100, 10)] * 5) > 10


@pytest.mark.parametrize("rate", [0.5, 5.0, 50.0])
def test_the_interval_covers_the_truth_as_often_as_it_says(rate):
    """Seeded simulation: exact intervals cover at least nominally (Clopper-Pearson is conservative)."""
    rng = np.random.default_rng(20260101)
    trials, covered = 2_000, 0
    for before, after in zip(rng.poisson(rate * 10, trials), rng.poisson(rate * 0.4 * 10, trials), strict=True):
        found = compare(Count(float(before), 10.0), Count(float(after), 10.0), 0.9)
        covered += found.low <= 0.4 <= found.high
    assert covered / trials >= 0.9 - 0.01
