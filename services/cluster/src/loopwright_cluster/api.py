"""The little that is asked over HTTP: how grouping runs here. Everything else travels on the bus."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter
from loopwright_common.contracts.base import Contract
from loopwright_common.problems import ProblemError

from loopwright_cluster.grouping import v2
from loopwright_cluster.ports import Embedding, VectorIndex


class GroupingStatus(Contract):
    """Which grouping runs, on which embedding, over how many known problems."""

    grouping_version: str
    embedding: str
    degraded: bool
    fingerprints_indexed: int


def router(running: Callable[[], tuple[Embedding, VectorIndex] | None]) -> APIRouter:
    """The routes; ``running`` gives the parts once they are there."""
    routes = APIRouter()

    @routes.get("/v1/grouping", summary="How grouping runs here")
    async def grouping() -> GroupingStatus:
        parts = running()
        if parts is None:
            raise ProblemError(503, "The service is starting; ask again in a moment.", headers={"Retry-After": "1"})
        embedding, index = parts
        return GroupingStatus(
            grouping_version=v2.VERSION, embedding=embedding.name, degraded=embedding.degraded, fingerprints_indexed=await index.count()
        )

    return routes
