"""Blast radius, priority, reviewers, metric contract."""

from __future__ import annotations

from datetime import timedelta

from loopwright_common.contracts.queries import ExposureMinute, RatesAnswer
from loopwright_common.contracts.reports import MinuteCount
from loopwright_common.contracts.signals import Severity, SignalKind
from loopwright_investigator.analyzers.blast_radius import measure_reach
from loopwright_investigator.domain import Case, Evidence, Onset
from loopwright_investigator.investigation import find_place


async def investigated(new_repo, new_scene, shop, **fields):
    repo = new_repo()
    good, _, bad = shop.history(repo)
    scene = shop.deployed(new_scene(repo, **fields), good, bad)
    return scene, repo


async def test_priority_is_the_sum_of_its_stated_factors(new_repo, new_scene, shop):
    scene, _ = await investigated(new_repo, new_scene, shop, people=500)
    shop.crash(scene, "1.1", severity=Severity.FATAL, count=400)
    scene.signal(kind=SignalKind.HEALTH_CHECK, title="GET /checkout answered 500", release="1.1", count=2)
    scene.signal(kind=SignalKind.TICKET, title="Cannot check out", count=1)
    result, _ = await scene.investigate()
    points = {factor.name: factor.points for factor in result.priority_factors}
    assert points["health check"] == 15.0
    assert points["severity"] == 20.0
    assert points["people"] == 18.0
    assert points["kinds that agree"] == 14.0
    assert sum(points.values()) >= 75
    assert result.priority == "P0"


async def test_one_error_of_one_person_is_low(new_repo, new_scene, shop):
    scene, _ = await investigated(new_repo, new_scene, shop, people=1)
    shop.crash(scene, "1.1", count=1)
    result, _ = await scene.investigate()
    assert result.priority == "P3"


async def test_staging_alone_is_lowered(new_repo, new_scene, shop):
    scene, _ = await investigated(new_repo, new_scene, shop, people=0)
    shop.crash(scene, "1.1", count=1, environment="staging")
    result, _ = await scene.investigate()
    assert result.priority == "P4"
    assert any(factor.name == "environment" and factor.points < 0 for factor in result.priority_factors)


async def test_share_is_signals_per_request_since_the_onset(new_repo, new_scene, shop):
    scene, _ = await investigated(new_repo, new_scene, shop)
    shop.crash(scene, "1.1", count=40)
    result, found = await scene.investigate()
    assert found.reach.exposure_unit == "requests"
    assert found.reach.share == 40 / found.reach.exposure
    assert result.metric.baseline_count == 40
    assert result.metric.baseline_exposure == found.reach.exposure


async def test_metric_contract_carries_the_projects_settings_and_guardrail(new_repo, new_scene, shop):
    scene, _ = await investigated(new_repo, new_scene, shop)
    shop.crash(scene, "1.1")
    result, _ = await scene.investigate()
    metric = result.metric
    assert metric.service == "shop"
    assert metric.environment == "production"
    assert metric.direction == "decrease"
    assert metric.minimum_effect == 0.5
    assert metric.settle == timedelta(minutes=10)
    assert metric.guardrails[0].metric == "service_errors_per_exposure"
    assert metric.baseline_start <= scene.first_seen < metric.baseline_end
    assert "r1" in metric.query


def rates_case(scene, counts, start):
    minutes = [start + timedelta(minutes=number) for number in range(len(counts))]
    rates = RatesAnswer(
        signals=tuple(MinuteCount(minute=at, release="1.1", count=count) for at, count in zip(minutes, counts, strict=True) if count),
        exposure=tuple(ExposureMinute(minute=at, service="shop", release="1.1", count=100) for at in minutes),
    )
    case = scene.case
    return Case(case.ready, case.config, rates, minutes[-1] + timedelta(minutes=1))


async def test_trend_is_told_only_where_the_counts_show_it(new_repo, new_scene, shop):
    scene, repo = await investigated(new_repo, new_scene, shop)
    shop.crash(scene, "1.1")
    start = repo.now.replace(second=0)

    def trend(counts):
        case = rates_case(scene, counts, start)
        return measure_reach(case, find_place(case), Onset(first_seen=start), Evidence()).trend

    assert trend([1] * 20 + [9] * 10) == "rising"
    assert trend([9] * 20 + [0] * 10) == "falling"
    assert trend([3] * 30) == "steady"
    assert trend([0] * 29 + [1]) == "unknown"


async def test_owners_come_first_and_the_suspects_author_is_marked(new_repo, new_scene, shop):
    repo = new_repo()
    repo.commit("Owners", {".github/CODEOWNERS": "* @everyone\nsrc/shop/ @acme/checkout\n"})
    good, guilty, bad = shop.history(repo)
    scene = shop.deployed(new_scene(repo), good, bad)
    shop.crash(scene, "1.1")
    result, _ = await scene.investigate()
    assert result.reviewers[0].name == "@acme/checkout"
    assert "CODEOWNERS" in result.reviewers[0].reason
    dave = next(reviewer for reviewer in result.reviewers if reviewer.name == "Dave")
    assert f"wrote the suspect {guilty[:7]}" in dave.reason
    assert any(reviewer.name == "Alice" for reviewer in result.reviewers)
