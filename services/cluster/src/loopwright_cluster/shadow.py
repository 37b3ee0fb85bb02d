"""Answers how the version in shadow has decided beside the one in charge."""

from __future__ import annotations

from loopwright_common.contracts.queries import ShadowAnswer, ShadowDifference, ShadowQuery

from loopwright_cluster.domain import Decision
from loopwright_cluster.handlers import BEFORE_EVERYTHING
from loopwright_cluster.judging import Judging
from loopwright_cluster.records import Records

REASON_MAX = 2_048


class Shadow:
    """Reads what ``judging`` has compared in this process; a report is named as it is now, merges followed."""

    def __init__(self, judging: Judging, records: Records) -> None:
        self._judging = judging
        self._records = records

    async def answer(self, query: ShadowQuery) -> ShadowAnswer:
        """The counts of a project and its newest differences, newest first."""
        comparison = self._judging.comparison
        compared = comparison.of(query.project)
        return ShadowAnswer(
            version=self._judging.version,
            shadow=self._judging.shadow or "",
            since=comparison.since,
            agreed=compared.agreed,
            differed=compared.differed,
            differences=tuple(
                [
                    ShadowDifference(
                        signal_id=item.newcomer.signal_id,
                        title=item.newcomer.title[:512],
                        report_id=await self._now(query.project, item.decided),
                        reason=item.decided.reason[:REASON_MAX],
                        shadow_report_id=await self._now(query.project, item.shadow),
                        shadow_reason=item.shadow.reason[:REASON_MAX],
                        at=item.at,
                    )
                    for item in reversed(compared.differences)
                ]
            ),
        )

    async def _now(self, project: str, decision: Decision) -> str | None:
        if decision.report_id is None:
            return None
        return (await self._records.place(project, decision.report_id, BEFORE_EVERYTHING, "")).report_id
