"""Counts from the gateway, asked in parts small enough for one message each."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import cast

from loopwright_common.bus import Bus
from loopwright_common.contracts.investigations import MetricContract
from loopwright_common.contracts.queries import ExposureMinute, RatesAnswer, RatesQuery
from loopwright_common.contracts.reports import MinuteCount
from loopwright_common.contracts.subjects import RATES_QUERY
from loopwright_common.errors import Permanent

# A day of minutes for three releases is some 4,000 rows of each kind: half a megabyte, where a message may have one.
PART = timedelta(days=1)
PART_LEAST = timedelta(minutes=1)
PARTS_MAX = 400
ROWS_MAX = 1_000_000  # as many minutes as the longest window with ten releases; beyond it the memory of this process is at stake
ASK_TIMEOUT = timedelta(seconds=20)


class GatewayRates:
    """The Rates port over the question ``rates.query``."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def counts(self, project: str, report_id: str, metric: MetricContract, start: datetime, end: datetime) -> RatesAnswer:
        signals: list[MinuteCount] = []
        exposure: list[ExposureMinute] = []
        waiting, asked = _parts(start, end), 0
        while waiting:
            since, until = waiting.pop(0)
            asked += 1
            if asked > PARTS_MAX or len(signals) + len(exposure) > ROWS_MAX:
                raise Permanent(f"the counts of report {report_id} from {start} to {end} are too many to compare ({asked} parts)")
            query = RatesQuery(
                project=project, report_id=report_id, service=metric.service, environment=metric.environment, start=since, end=until
            )
            answer = cast(RatesAnswer, await self._bus.ask(RATES_QUERY, query, ASK_TIMEOUT))
            if answer.truncated and until - since > PART_LEAST:
                middle = since + max(PART_LEAST, (until - since) / 2 // PART_LEAST * PART_LEAST)
                waiting[:0] = [(since, middle), (middle, until)]
                continue
            if answer.truncated:
                raise Permanent(f"one minute of report {report_id} has more rows than one answer can carry")
            signals += answer.signals
            exposure += answer.exposure
        return RatesAnswer.model_construct(signals=tuple(signals), exposure=tuple(exposure))


def _parts(start: datetime, end: datetime) -> list[tuple[datetime, datetime]]:
    parts = []
    while start < end:
        until = min(start + PART, end)
        parts.append((start, until))
        start = until
    return parts
