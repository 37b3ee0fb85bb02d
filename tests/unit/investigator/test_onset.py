"""When it began: first seen and the counts per release, set against the deploys."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopwright_investigator.poisson import binomial_tail, chance_of_none


async def onset_of(scene):
    _, found = await scene.investigate()
    return found.onset


async def test_release_that_first_failed_is_new_with_the_chance_stated(new_repo, new_scene, shop):
    repo = new_repo()
    good, _, bad = shop.history(repo)
    scene = shop.deployed(new_scene(repo), good, bad)
    shop.crash(scene, "1.1")
    onset = await onset_of(scene)
    assert (onset.bad.name, onset.good.name, onset.tie) == ("1.1", "1.0", "new")
    assert onset.chance < 1e-10
    assert "40.0 signals were expected" in onset.reason


async def test_release_before_that_was_hardly_used_is_only_likely_good(new_repo, new_scene, shop):
    repo = new_repo()
    good, _, bad = shop.history(repo)
    scene = new_scene(repo)
    scene.deploy("1.0", good, requests=50)
    scene.deploy("1.1", bad, requests=20_000)
    shop.crash(scene, "1.1", count=10)
    onset = await onset_of(scene)
    assert onset.tie == "likely"
    assert onset.chance > 0.9


async def test_clear_rise_in_a_later_release_is_the_beginning(new_repo, new_scene, shop):
    repo = new_repo()
    good, guilty, bad = shop.history(repo)
    scene = shop.deployed(new_scene(repo), good, bad)
    shop.crash(scene, "1.1", count=200)
    scene.counts["1.0"] = 2
    result, found = await scene.investigate()
    assert (found.onset.bad.name, found.onset.tie) == ("1.1", "rose")
    assert result.suspects[0].commit == guilty


async def test_small_rise_is_no_beginning(new_repo, new_scene, shop):
    repo = new_repo()
    good, _, bad = shop.history(repo)
    scene = shop.deployed(new_scene(repo), good, bad)
    shop.crash(scene, "1.1", count=24)
    scene.counts["1.0"] = 20
    onset = await onset_of(scene)
    assert onset.bad.name == "1.0"
    assert onset.good is None


async def test_deploy_before_the_first_signal_is_taken_where_signals_name_no_release(new_repo, new_scene, shop):
    repo = new_repo()
    good, guilty, bad = shop.history(repo)
    scene = shop.deployed(new_scene(repo), good, bad)
    shop.crash(scene, "")
    result, found = await scene.investigate()
    assert (found.onset.bad.name, found.onset.tie) == ("1.1", "likely")
    assert result.suspects[0].commit == guilty


async def test_deploy_to_another_environment_is_not_the_beginning(new_repo, new_scene, shop):
    repo = new_repo()
    good, _, bad = shop.history(repo)
    scene = new_scene(repo)
    scene.deploy("1.0", good)
    scene.deploy("1.1-rc", bad, environment="staging")
    scene.exposure.pop("1.1-rc")
    scene.deploy("1.1", bad)
    shop.crash(scene, "1.1")
    onset = await onset_of(scene)
    assert [release.name for release in onset.releases] == ["1.0", "1.1"]
    assert onset.good.name == "1.0"


async def test_onset_without_any_release_says_so(new_repo, new_scene, shop):
    repo = new_repo()
    shop.history(repo)
    scene = new_scene(repo)
    shop.crash(scene, "")
    onset = await onset_of(scene)
    assert onset.bad is None
    assert onset.reason == "no release or deploy is known"


async def test_time_is_the_exposure_where_use_is_not_reported(new_repo, new_scene, shop):
    repo = new_repo()
    good, _, bad = shop.history(repo)
    scene = shop.deployed(new_scene(repo), good, bad)
    scene.exposure.clear()
    scene.repo.now += timedelta(hours=5)
    shop.crash(scene, "1.1", count=100)
    result, found = await scene.investigate()
    assert "hours live" in next(each.answer for each in result.evidence if each.kind == "deploys")
    assert result.metric.exposure_unit == "time"
    assert found.reach.share is None


def test_exact_tail_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    for successes, trials, share in [
        (5, 10, 0.5),
        (1, 10, 0.5),
        (100, 1_000, 0.05),
        (500, 1_000, 0.5),
        (0, 3, 0.2),
        (3, 3, 0.2),
        (40, 5_000, 0.02),
    ]:
        assert binomial_tail(successes, trials, share) == pytest.approx(stats.binom.sf(successes - 1, trials, share), rel=1e-6, abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 500), st.integers(0, 500), st.floats(0.0, 1.0))
def test_tail_is_a_probability_and_falls_with_the_count(successes, more, share):
    trials = successes + more
    tail = binomial_tail(successes, trials, share)
    assert 0.0 <= tail <= 1.0
    assert binomial_tail(successes + 1, trials + 1, share) <= tail + 1e-9 or share > 0


def test_chance_of_none_is_one_without_use_and_never_fails():
    assert chance_of_none(0.5, 0.0) == 1.0
    assert chance_of_none(1e9, 1e9) < 1e-300
    assert chance_of_none(-1.0, 5.0) == 1.0
