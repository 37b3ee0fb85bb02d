from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from loopwright_common.contracts.investigations import MetricContract
from loopwright_common.contracts.queries import ExposureMinute, RatesAnswer
from loopwright_common.contracts.reports import MinuteCount
from loopwright_measure.windows import SERIES_POINTS_MAX, Deployed, ceil_minute, floor_minute, question_window, series, split

T0 = datetime(2026, 3, 1, 10, 0, tzinfo=UTC)


def at(minute: float) -> datetime:
    return T0 + timedelta(minutes=minute)


def metric(**changed) -> MetricContract:
    return MetricContract(
        **{"query": "q", "service": "shop", "baseline_start": at(0), "baseline_end": at(10), "settle": timedelta(minutes=2), **changed}
    )


def signals(*rows: tuple[int, str, int]) -> tuple[MinuteCount, ...]:
    return tuple(MinuteCount(minute=at(minute), release=release, count=count) for minute, release, count in rows)


def uses(*rows: tuple[int, str, int], service="shop", unit="requests", errored=0) -> tuple[ExposureMinute, ...]:
    return tuple(ExposureMinute(minute=at(m), service=service, release=r, unit=unit, count=c, errored=errored) for m, r, c in rows)


DEPLOYED = Deployed(at(10.5), frozenset({"v2"}))


def test_releases_tell_the_sides_apart_and_stragglers_count_for_neither():
    answer = RatesAnswer(
        signals=signals((-5, "v1", 1), (0, "v1", 3), (9, "v1", 4), (10, "v1", 2), (11, "v1", 9), (10, "v2", 7), (13, "v2", 1)),
        exposure=uses((0, "v1", 100), (9, "v1", 100), (10, "v1", 50), (11, "v1", 30), (10, "v2", 20), (12, "v2", 80), (13, "v2", 90)),
    )
    sides = split(answer, metric(), DEPLOYED, at(14))
    assert sides.by == "release"
    assert (sides.before.count.events, sides.before.count.exposure) == (9, 250)
    assert (sides.after.count.events, sides.after.count.exposure) == (1, 170)
    assert (sides.before.releases, sides.after.releases) == (("v1",), ("v2",))


def test_without_releases_only_whole_minutes_outside_the_settle_period_count():
    rows = [(minute, "", 10) for minute in range(20)]
    answer = RatesAnswer(signals=signals((-1, "", 1), *rows), exposure=uses(*[(minute, "", 100) for minute in range(20)]))
    sides = split(answer, metric(), DEPLOYED, at(18.5))
    assert sides.by == "time"
    assert (sides.before.count.events, sides.before.count.exposure) == (100, 1_000)  # minutes 0 to 9
    assert (sides.after.count.events, sides.after.count.exposure) == (50, 500)  # minutes 13 to 17
    assert (sides.before.end, sides.after.start, sides.after.end) == (at(10), at(13), at(18))


def test_one_use_without_a_release_makes_it_a_comparison_by_time():
    answer = RatesAnswer(exposure=uses((0, "v1", 100), (15, "v2", 100), (16, "", 1)))
    assert split(answer, metric(), DEPLOYED, at(18)).by == "time"


def test_signals_without_a_release_are_placed_by_time_beside_those_that_have_one():
    answer = RatesAnswer(
        signals=signals((-5, "", 1), (1, "", 1), (1, "v1", 5), (10, "", 1), (12, "", 1), (13, "", 2), (13, "v2", 1)),
        exposure=uses((1, "v1", 100), (13, "v2", 100)),
    )
    sides = split(answer, metric(), DEPLOYED, at(14))
    assert (sides.by, sides.before.count.events, sides.after.count.events) == ("release", 6, 3)


def test_the_signal_that_opened_the_report_is_not_counted():
    answer = RatesAnswer(signals=signals((0, "v1", 3), (4, "v1", 2)), exposure=uses((0, "v1", 100), (12, "v2", 50)))
    sides = split(answer, metric(), DEPLOYED, at(13))
    assert sides.before.count.events == 4
    assert any("opened the report" in note for note in sides.notes)
    earlier = answer.model_copy(update={"signals": (*signals((-100, "v1", 1)), *answer.signals)})
    assert split(earlier, metric(), DEPLOYED, at(13)).before.count.events == 5


def test_without_exposure_the_rates_are_per_hour_and_it_says_so():
    answer = RatesAnswer(signals=signals((-1, "v1", 1), (0, "v1", 3), (13, "v2", 1)))
    sides = split(answer, metric(), DEPLOYED, at(43))
    assert (sides.unit, sides.by) == ("time", "time")
    assert sides.before.count.exposure == pytest.approx(10 / 60)
    assert sides.after.count.exposure == pytest.approx(30 / 60)
    assert any("no requests were reported" in note for note in sides.notes)


def test_other_services_and_units_are_not_the_exposure():
    answer = RatesAnswer(exposure=uses((1, "v1", 5)) + uses((1, "v1", 100), service="web") + uses((1, "v1", 100), unit="sessions"))
    assert split(answer, metric(), DEPLOYED, at(13)).before.count.exposure == 5
    every = split(answer, metric(service=""), DEPLOYED, at(13))
    assert every.before.count.exposure == 105


@pytest.mark.parametrize(
    ("deployed", "said"),
    [
        ("1.4.2", "shop@1.4.2"),
        ("v1.4.2", "1.4.2"),
        ("shop@v1.4.2", "shop@1.4.2"),
        ("0123456789abcdef" * 2 + "01234567", "shop@0123456"),
        ("x", "x"),
    ],
)
def test_a_release_is_known_under_its_usual_names(deployed, said):
    assert Deployed(T0, frozenset({deployed})).has(said)


@pytest.mark.parametrize(("deployed", "said"), [("1.4.2", "1.4.20"), ("1.4.2", ""), ("vega", "ega"), ("0123456", "012345"), ("", "x")])
def test_like_names_are_not_the_same_release(deployed, said):
    assert not Deployed(T0, frozenset({deployed})).has(said)


def test_over_several_services_the_sides_are_told_apart_by_time():
    answer = RatesAnswer(exposure=uses((1, "v1", 5), (14, "v2", 7)) + uses((1, "w1", 100), (14, "w1", 90), service="web"))
    sides = split(answer, metric(service=""), DEPLOYED, at(16))
    assert (sides.by, sides.before.count.exposure, sides.after.count.exposure) == ("time", 105, 97)


def test_use_of_a_release_nobody_deployed_is_told():
    answer = RatesAnswer(exposure=uses((1, "v1", 5), (13, "canary", 50), (13, "v2", 1)))
    assert any("canary" in note for note in split(answer, metric(), DEPLOYED, at(14)).notes)


def test_windows_of_seconds_work_where_releases_tell_the_sides_apart():
    short = metric(settle=timedelta(seconds=5), minimum_window=timedelta(seconds=20), baseline_end=at(1))
    answer = RatesAnswer(signals=signals((0, "v1", 12)), exposure=uses((0, "v1", 60), (1, "v1", 30), (1, "v2", 30), (2, "v2", 10)))
    sides = split(answer, short, Deployed(at(1.5), frozenset({"v2"})), at(2.2))
    assert (sides.before.count.events, sides.before.count.exposure) == (11, 90)
    assert (sides.after.count.events, sides.after.count.exposure) == (0, 40)


def test_what_is_asked_reaches_a_day_further_back_than_the_baseline():
    assert question_window(metric(), at(14.5)) == (at(0) - timedelta(days=1), at(15))


def test_minutes_are_rounded():
    assert (floor_minute(at(1.5)), ceil_minute(at(1.5)), ceil_minute(at(1))) == (at(1), at(2), at(1))


def test_a_long_series_is_summed_into_wider_buckets_without_losing_a_signal():
    rows = signals(*[(minute, "v1", 2) for minute in range(10_080)])
    points = series(rows)
    assert len(points) <= SERIES_POINTS_MAX
    assert sum(point.count for point in points) == 20_160
    assert series(rows[:3]) == rows[:3]
