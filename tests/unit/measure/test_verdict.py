from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopwright_common.contracts.investigations import Guardrail, MetricContract
from loopwright_common.contracts.measurements import Verdict
from loopwright_measure.statistics import Comparison, Count
from loopwright_measure.verdict import LOOKS_MAX, against_contract, exposure_for_look, judge, look_confidence, wanted_ratio
from loopwright_measure.windows import Side, Sides

T0 = datetime(2026, 3, 1, 10, 0, tzinfo=UTC)
HELD, NOT_HELD, WORSE, INCONCLUSIVE = Verdict.HELD, Verdict.NOT_HELD, Verdict.WORSE, Verdict.INCONCLUSIVE


def metric(**changed) -> MetricContract:
    return MetricContract(**{"query": "q", "service": "shop", "baseline_start": T0, "baseline_end": T0, **changed})


def side(events, exposure, errored=0.0, cells=()) -> Side:
    return Side(T0, T0 + timedelta(hours=1), ("v1",), Count(events, exposure), Count(errored, exposure), tuple(cells))


def sides(before, after, unit="requests") -> Sides:
    return Sides(before, after, "release", unit)


def comparison(low, high) -> Comparison:
    return Comparison(low, low, high, 0.5, 0.95)


@pytest.mark.parametrize(
    ("low", "high", "decrease", "increase"),
    [
        (0.0, 0.5, HELD, WORSE),
        (0.1, 0.51, INCONCLUSIVE, WORSE),
        (0.51, 0.9, NOT_HELD, WORSE),
        (0.51, 1.2, NOT_HELD, NOT_HELD),
        (0.4, 1.2, INCONCLUSIVE, NOT_HELD),
        (1.01, 1.4, WORSE, NOT_HELD),
        (1.01, 1.6, WORSE, INCONCLUSIVE),
        (1.5, 3.0, WORSE, HELD),
        (0.1, math.inf, INCONCLUSIVE, INCONCLUSIVE),
        (1.6, math.inf, WORSE, HELD),
        (0.0, math.inf, INCONCLUSIVE, INCONCLUSIVE),
    ],
)
def test_the_interval_against_the_contract(low, high, decrease, increase):
    assert against_contract(metric(minimum_effect=0.5, direction="decrease"), comparison(low, high)) is decrease
    assert against_contract(metric(minimum_effect=0.5, direction="increase"), comparison(low, high)) is increase


@pytest.mark.parametrize(
    ("before", "after", "expected", "words"),
    [
        (Count(60, 6_000), Count(0, 6_000), HELD, "fell by at least 50%"),
        (Count(60, 6_000), Count(60, 6_000), NOT_HELD, "did not fall by 50%"),
        (Count(60, 6_000), Count(160, 6_000), WORSE, "rose after the change"),
        (Count(60, 6_000), Count(2, 300), INCONCLUSIVE, "At least"),
        (Count(2, 100), Count(0, 100), INCONCLUSIVE, "are needed to show the effect"),
        (Count(0, 100), Count(0, 100), INCONCLUSIVE, "no signal beside the one"),
        (Count(60, 6_000), Count(0, 0), INCONCLUSIVE, "no requests after the deploy"),
        (Count(0, 0), Count(5, 10), INCONCLUSIVE, "no requests before the deploy"),
    ],
)
def test_verdicts_and_their_reasons(before, after, expected, words):
    found = judge(metric(), sides(side(before.events, before.exposure), side(after.events, after.exposure)), looks_before=0, final=True)
    assert found.verdict is expected
    assert words in found.reason
    assert found.reason.endswith(".")
    assert bool(found.missing) == (expected is INCONCLUSIVE)


def test_the_reason_has_the_figures_a_person_needs():
    found = judge(metric(), sides(side(60, 6_000), side(3, 3_000)), looks_before=0, final=True)
    for figure in ("60 signals in 6,000 requests before", "3 in 3,000 requests after", "ratio 0.1", "95.00% interval", "p = "):
        assert figure in found.reason
    assert "exact conditional test" in found.test
    assert "told apart by release" in found.test


def test_a_broken_guardrail_makes_it_worse_and_an_unmeasured_one_is_told():
    guarded = metric(guardrails=(Guardrail(metric="service_errors_per_exposure", worsening_max=0.2),))
    good = judge(guarded, sides(side(60, 6_000, errored=120), side(0, 6_000, errored=130)), looks_before=0, final=True)
    assert good.verdict is HELD
    bad = judge(guarded, sides(side(60, 6_000, errored=120), side(0, 6_000, errored=400)), looks_before=0, final=True)
    assert bad.verdict is WORSE
    assert "120 of 6000 before, 400 of 6000 after" in bad.reason
    other = judge(metric(guardrails=(Guardrail(metric="latency"),)), sides(side(60, 6_000), side(0, 6_000)), looks_before=0, final=True)
    assert other.verdict is HELD
    assert "latency was not measured" in other.reason


def test_bursts_widen_the_interval():
    calm, burst = [Count(5, 100)] * 20, [Count(0, 100), Count(10, 100)] * 10
    plain = judge(metric(), sides(side(100, 2_000, cells=calm), side(20, 2_000, cells=[Count(1, 100)] * 20)), looks_before=0, final=True)
    bursty = judge(metric(), sides(side(100, 2_000, cells=burst), side(20, 2_000, cells=[Count(1, 100)] * 20)), looks_before=0, final=True)
    assert bursty.comparison.high > plain.comparison.high
    assert "counts divided by" in bursty.test


@given(st.integers(0, 400), st.integers(0, 400), st.floats(1, 1e4), st.floats(1, 1e4), st.floats(0.05, 0.8))
def test_fewer_events_after_never_make_the_verdict_less_favourable(before, after, e, f, effect):
    order = {WORSE: 0, NOT_HELD: 1, INCONCLUSIVE: 2, HELD: 3}
    contract = metric(minimum_effect=effect)
    more = judge(contract, sides(side(before, e), side(after + 1, f)), looks_before=0, final=True).verdict
    fewer = judge(contract, sides(side(before, e), side(after, f)), looks_before=0, final=True).verdict
    # Between worse and held lie not_held and inconclusive, in either order: wide intervals cross both thresholds.
    assert order[fewer] >= order[more] or {fewer, more} == {NOT_HELD, INCONCLUSIVE}
    assert not (more is HELD and fewer is not HELD)
    assert not (fewer is WORSE and more is not WORSE)


@given(st.integers(0, 400), st.integers(0, 400), st.floats(1, 1e4), st.floats(1, 1e4), st.floats(0.05, 0.45))
def test_a_mirrored_contract_on_swapped_sides_gives_the_same_verdict(before, after, e, f, effect):
    mirrored = metric(direction="increase", minimum_effect=1 / (1 - effect) - 1)
    one = judge(metric(minimum_effect=effect), sides(side(before, e), side(after, f)), looks_before=0, final=True)
    other = judge(mirrored, sides(side(after, f), side(before, e)), looks_before=0, final=True)
    assert one.verdict is other.verdict


@given(st.integers(0, LOOKS_MAX), st.floats(0.51, 0.999))
def test_all_looks_together_use_no_more_than_the_contracts_error(final_after, level):
    contract = metric(confidence=level)
    spent = sum(1 - look_confidence(contract, number, final=False) for number in range(final_after))
    spent += 1 - look_confidence(contract, final_after, final=True)
    assert spent <= (1 - level) * (1 + 1e-9)


@given(st.integers(1, 500), st.floats(10, 1e5), st.integers(0, 6))
def test_a_look_waits_until_it_could_show_the_effect_and_each_next_one_for_twice_as_much(before, e, looks):
    found = sides(side(before, e), side(0, 1))
    first = exposure_for_look(metric(), found, 0)
    assert exposure_for_look(metric(), found, looks) == pytest.approx(first * 2**looks)
    enough = judge(metric(), sides(side(before, e), side(0, first * 1.001)), looks_before=0, final=False)
    assert enough.verdict is HELD
    short = judge(metric(), sides(side(before, e), side(0, first * 0.999)), looks_before=0, final=False)
    assert short.verdict is INCONCLUSIVE


def test_the_wanted_ratio_follows_the_direction():
    assert (wanted_ratio(metric(minimum_effect=0.3)), wanted_ratio(metric(direction="increase", minimum_effect=0.3))) == (0.7, 1.3)


def _with_looks(rng, contract, baseline_rate, ratio, days=14) -> Verdict:
    """One measurement as the service runs it: looks as exposure comes, until a verdict or the last one."""
    before = side(float(rng.poisson(baseline_rate * 1_000)), 1_000.0)
    events, exposure, looks = 0.0, 0.0, 0
    for step in range(1, days + 1):
        events += float(rng.poisson(baseline_rate * ratio * 500))
        exposure += 500.0
        found = sides(before, side(events, exposure))
        final = step == days
        if exposure < exposure_for_look(contract, found, looks) and not final:
            continue
        verdict = judge(contract, found, looks_before=looks, final=final).verdict
        looks += 1
        if verdict is not INCONCLUSIVE or final:
            return verdict
    raise AssertionError("unreachable")


@pytest.mark.parametrize("rate", [0.002, 0.02, 0.2])
def test_a_placebo_is_rarely_called_an_effect(rate):
    """A change that changes nothing: held and worse together come no oftener than the contract allows. Seeded; prints its figure."""
    rng, contract, trials = np.random.default_rng(7), metric(confidence=0.9), 600
    found = [_with_looks(rng, contract, rate, 1.0) for _ in range(trials)]
    false_claims = sum(verdict in (HELD, WORSE) for verdict in found) / trials
    print(f"placebo at {rate}: false claims {false_claims:.3f}, nominal 0.100")
    assert false_claims <= 0.10


def test_an_effect_just_short_of_the_promise_is_rarely_called_held():
    rng, contract, trials = np.random.default_rng(11), metric(confidence=0.9, minimum_effect=0.5), 600
    found = [_with_looks(rng, contract, 0.1, 0.501) for _ in range(trials)]
    assert sum(verdict is HELD for verdict in found) / trials <= 0.05 + 0.01  # one side of the interval


def test_a_real_fix_is_found_and_a_real_worsening_too():
    rng, contract, trials = np.random.default_rng(13), metric(confidence=0.95), 200
    assert sum(_with_looks(rng, contract, 0.05, 0.0) is HELD for _ in range(trials)) / trials > 0.97
    assert sum(_with_looks(rng, contract, 0.05, 0.2) is HELD for _ in range(trials)) / trials > 0.9
    assert sum(_with_looks(rng, contract, 0.05, 2.5) is WORSE for _ in range(trials)) / trials > 0.95
