"""Counting many at once is counting each."""

from datetime import UTC, datetime, timedelta

from loopwright_common.metrics import STAGE, observe_stage, observe_stages

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)


def counted(stage: str) -> dict[tuple[str, str], float]:
    """What is exported of a stage: (name, bucket) -> value."""
    return {
        (sample.name, sample.labels.get("le", "")): sample.value
        for family in STAGE.collect()
        for sample in family.samples
        if sample.labels["stage"] == stage and not sample.name.endswith("_created")
    }


def test_many_stages_at_once_are_counted_as_one_by_one() -> None:
    # On the edges of buckets, between them, beyond the last, and of a clock that is ahead.
    seconds = [0, 0.05, 0.050001, 0.15, 1, 1.5, 4.9, 5, 5.0, 600, 604_800, 700_000, -3]
    starts = [NOW - timedelta(seconds=value) for value in seconds]
    observe_stages("test_together", starts, NOW)
    for start in starts:
        observe_stage("test_apart", start, NOW)

    together, apart = counted("test_together"), counted("test_apart")
    assert together == apart
    assert together["loopwright_stage_seconds_count", ""] == len(seconds)
    assert together["loopwright_stage_seconds_bucket", "0.05"] == 3


def test_no_stage_at_all_counts_nothing() -> None:
    observe_stages("test_none", [], NOW)
    assert counted("test_none")["loopwright_stage_seconds_count", ""] == 0
