"""The little that is asked over HTTP: what is being worked on, and a finished investigation's replay bundle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter
from loopwright_common.contracts.base import Contract
from loopwright_common.problems import ProblemError
from pydantic import ValidationError

from loopwright_investigator.handlers import Investigations
from loopwright_investigator.ports import Bundles
from loopwright_investigator.replay import read_bundle


class InvestigatorStatus(Contract):
    """How many investigations run in this process, and the model that words them (empty: none)."""

    running: int
    model: str


def router(parts: Callable[[], tuple[Investigations, Bundles, str] | None]) -> APIRouter:
    """The routes; ``parts`` gives what they speak of once it is there."""
    routes = APIRouter()

    def there() -> tuple[Investigations, Bundles, str]:
        found = parts()
        if found is None:
            raise ProblemError(503, "The service is starting; ask again in a moment.", headers={"Retry-After": "1"})
        return found

    @routes.get("/v1/status", summary="What is being worked on")
    async def status() -> InvestigatorStatus:
        investigations, _, model = there()
        return InvestigatorStatus(running=investigations.running, model=model)

    @routes.get("/v1/investigations/{investigation_id}/bundle", summary="All that an investigation saw")
    async def bundle(investigation_id: str) -> dict[str, Any]:
        _, bundles, _ = there()
        stored = await bundles.get(investigation_id) if len(investigation_id) <= 64 and _is_plain(investigation_id) else None
        if stored is None:
            raise ProblemError(404, f"There is no bundle of the investigation {investigation_id[:64]}; the oldest are removed.")
        try:
            return read_bundle(stored).model_dump(mode="json")
        except (ValidationError, OSError, EOFError) as error:
            raise ProblemError(410, f"The bundle of {investigation_id} was kept by another version and cannot be read.") from error

    return routes


def _is_plain(text: str) -> bool:
    return all(character.isascii() and (character.isalnum() or character in "-_") for character in text)
