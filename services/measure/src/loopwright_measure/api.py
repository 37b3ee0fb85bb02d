"""What is being measured now, and why it is not done yet. Verdicts themselves travel on the bus and are read at the gateway."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from loopwright_common.contracts.base import Contract, UtcDatetime

from loopwright_measure.ports import PendingStore

LISTED_MAX = 1_000


class PendingMeasurement(Contract):
    """One measurement that has no verdict yet."""

    project: str
    change_id: str
    report_id: str
    phase: Literal["waiting", "measuring", "concluded", "done"]
    merge_commit: str
    release: str
    looks: int
    next_look_at: UtcDatetime
    deadline: UtcDatetime
    notes: tuple[str, ...]


class PendingMeasurements(Contract):
    """Those whose next look comes first, first; ``total`` counts all."""

    total: int
    items: tuple[PendingMeasurement, ...]


def router(store: PendingStore) -> APIRouter:
    """The routes, over a store that is already open."""
    routes = APIRouter()

    @routes.get("/v1/measurements/pending", summary="Measurements without a verdict yet")
    async def pending() -> PendingMeasurements:
        found = [kept.pending for kept in await store.all() if kept.pending.phase != "done"]
        found.sort(key=lambda each: each.next_look_at)
        items = tuple(
            PendingMeasurement(
                project=each.project, change_id=each.change_id, report_id=each.report_id, phase=each.phase, merge_commit=each.merge_commit,
                release=each.deploy.release if each.deploy is not None else "", looks=each.looks, next_look_at=each.next_look_at,
                deadline=each.deadline, notes=each.notes,
            )
            for each in found[:LISTED_MAX]
        )  # fmt: skip
        return PendingMeasurements(total=len(found), items=items)

    return routes
