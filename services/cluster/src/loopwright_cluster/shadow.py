"""Answers how the version in shadow has decided beside the one in charge."""

from __future__ import annotations

from loopwright_common.clock import Clock
from loopwright_common.contracts.queries import ShadowAnswer, ShadowQuery

from loopwright_cluster.comparison_records import ComparisonRecords
from loopwright_cluster.handlers import BEFORE_EVERYTHING
from loopwright_cluster.records import Records


class Shadow:
    """Reads what was compared, in whichever process; a report is named as it is now, merges followed. ``compared`` None: none runs."""

    def __init__(self, version: str, records: Records, clock: Clock, compared: ComparisonRecords | None) -> None:
        self._version = version
        self._records = records
        self._clock = clock
        self._compared = compared

    async def answer(self, query: ShadowQuery) -> ShadowAnswer:
        """The counts of a project and its newest differences, newest first."""
        if self._compared is None:
            return ShadowAnswer(version=self._version, since=self._clock.now())
        kept = await self._compared.of(query.project)
        differences = [
            item.model_copy(
                update={
                    "report_id": await self._now(query.project, item.report_id),
                    "shadow_report_id": await self._now(query.project, item.shadow_report_id),
                }
            )
            for item in kept.differences
        ]
        return ShadowAnswer(
            version=kept.version,
            shadow=kept.shadow,
            since=kept.since,
            agreed=kept.agreed,
            differed=kept.differed,
            differences=tuple(differences),
        )

    async def _now(self, project: str, report_id: str | None) -> str | None:
        if report_id is None:
            return None
        return (await self._records.place(project, report_id, BEFORE_EVERYTHING, "")).report_id
