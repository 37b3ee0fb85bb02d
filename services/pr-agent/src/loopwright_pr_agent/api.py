"""What a person at a terminal may ask this service directly: which sandbox holds, and how far a change is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Path
from loopwright_common.contracts.base import Contract, Line, ShortText
from loopwright_common.problems import ProblemError

from loopwright_pr_agent.domain import Progress
from loopwright_pr_agent.ports import ProgressStore


class SandboxStatus(Contract):
    """Which isolation holds on this host; empty with the remedy in ``reason`` where none does."""

    isolation: Line
    reason: ShortText


def router(store: ProgressStore, sandbox: Callable[[], SandboxStatus]) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/v1")

    @routes.get("/sandbox")
    async def which_sandbox() -> SandboxStatus:
        return sandbox()

    @routes.get("/projects/{project}/changes/{change_id}")
    async def change(
        project: Annotated[str, Path(pattern=r"^[a-z0-9_-]{1,64}$")], change_id: Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    ) -> Progress:
        kept = await store.get(project, change_id)
        if kept is None:
            raise ProblemError(404, f"No change {change_id} in project {project}.")
        return kept.progress

    return routes
