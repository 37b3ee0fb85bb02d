"""The metrics that more than one service exports; each service's own stand beside what they count. docs/observability.md lists them all.

Labels have few values, known in advance: consumers, streams, stages, outcomes, model roles. No ids, messages or addresses. Nor projects,
although the configuration bounds them: a hundred projects would make every histogram a hundred times as large, and what a project
uses is exact in the gateway (``/v1/usage``, the inbox) where no series are needed for it.

A counter counts what this process did: dashboards sum it. A gauge that describes what all replicas share (a consumer's lag, the inbox)
is read by each of them and is the same for all: dashboards take the maximum, never the sum.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Iterable
from datetime import datetime

from prometheus_client import Counter, Gauge, Histogram

from loopwright_common.bus import Timer

# From a batch that gathers for milliseconds to a verdict after a week: each bucket is about three times the one before.
STAGE_BUCKETS = (0.05, 0.15, 0.5, 1.5, 5, 15, 60, 180, 600, 1_800, 3_600, 10_800, 43_200, 86_400, 259_200, 604_800)

CONSUMED = Counter("loopwright_consumer_messages", "Messages by what became of them: handled, retried, buried.", ["consumer", "outcome"])
REDELIVERED = Counter("loopwright_consumer_redeliveries", "Messages that had been delivered before.", ["consumer"])
HANDLING = Histogram(
    "loopwright_consumer_handle_seconds",
    "Time in the handler, of a batch or a message.",
    ["consumer"],
    buckets=(0.005, 0.02, 0.05, 0.2, 0.5, 2, 5, 20, 60, 300, 1_200),
)
PENDING = Gauge("loopwright_consumer_pending", "Messages not yet delivered to the consumer. Shared by replicas.", ["consumer", "stream"])
ACK_PENDING = Gauge(
    "loopwright_consumer_ack_pending", "Messages delivered and not yet acknowledged. Shared by replicas.", ["consumer", "stream"]
)
TIMER_LATE = Histogram(
    "loopwright_timer_late_seconds",
    "How long after it was due a timer was handled.",
    ["service"],
    buckets=(0.1, 0.5, 1, 5, 15, 60, 300, 3600),
)
STAGE = Histogram("loopwright_stage_seconds", "Time from one step of the loop to the next.", ["stage"], buckets=STAGE_BUCKETS)


def observe_stage(stage: str, start: datetime, end: datetime) -> None:
    """Counts a stage that is over. Clocks of two machines may differ: what would be negative is zero."""
    STAGE.labels(stage).observe(max(0.0, (end - start).total_seconds()))


def observe_stages(stage: str, starts: Iterable[datetime], end: datetime) -> None:
    """Counts a stage that is over for many at once: each bucket is written to once, where `observe` would take three locks for each."""
    lasted = [max(0.0, (end - start).total_seconds()) for start in starts]
    child = STAGE.labels(stage)
    child._sum.inc(sum(lasted))
    for bucket, number in Tally(bisect_left(STAGE_BUCKETS, seconds) for seconds in lasted).items():
        child._buckets[bucket].inc(number)


def observe_timer(timer: Timer, now: datetime) -> None:
    """Counts a timer that is handled now."""
    TIMER_LATE.labels(timer.service).observe(max(0.0, (now - timer.due_at).total_seconds()))
