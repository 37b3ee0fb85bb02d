"""``POST /v1/deploys`` and ``POST /v1/exposure``: what went live, and how much it was used."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from loopwright_common.contracts.base import CommitSha, Input, Name, UtcDatetime
from loopwright_common.contracts.signals import Deploy, Exposure
from loopwright_common.identifiers import derived_id, new_id
from pydantic import BaseModel, Field, StringConstraints

from loopwright_ingest.domain import Sender

EXPOSURES_MAX = 1_000


class DeployIn(Input):
    """A release of a service went live."""

    service: Name
    release: Annotated[str, StringConstraints(min_length=1, max_length=512)]
    commit: CommitSha | None = Field(default=None, description="The commit that was deployed, in full.")
    environment: Annotated[str, StringConstraints(max_length=64)] = "production"
    deployed_at: UtcDatetime | None = Field(default=None, description="By default now.")
    url: Annotated[str, StringConstraints(max_length=2_048)] = ""


class DeployAnswer(BaseModel):
    id: str
    outcome: Literal["accepted", "duplicate"]


class ExposureIn(Input):
    """Requests or sessions that began in one minute."""

    service: Annotated[str, StringConstraints(max_length=64)] = ""
    release: Annotated[str, StringConstraints(max_length=512)] = ""
    environment: Annotated[str, StringConstraints(max_length=64)] = ""
    unit: Literal["requests", "sessions"] = "requests"
    minute: UtcDatetime
    count: int = Field(ge=0, le=1_000_000_000)
    errored: int = Field(default=0, ge=0, le=1_000_000_000)
    id: Annotated[str, StringConstraints(max_length=128)] = Field(default="", description="The client's own name for it: counted once.")


class ExposuresIn(Input):
    exposure: list[ExposureIn] = Field(min_length=1, max_length=EXPOSURES_MAX)


class ExposureAnswer(BaseModel):
    accepted: int
    duplicates: int


def deploy(given: DeployIn, sender: Sender, now: datetime) -> Deploy:
    """The deploy. Without a time it cannot be told from the same release deployed again, so each is its own."""
    at = given.deployed_at or now
    name = derived_id("deploy", sender.name, given.service, given.environment, given.release, at.isoformat())
    return Deploy(
        id=name,
        project=sender.name,
        service=given.service,
        release=given.release,
        commit=given.commit,
        environment=given.environment,
        deployed_at=at,
        url=given.url,
    )


def exposure(given: ExposureIn, sender: Sender) -> Exposure:
    """The exposure, at the start of its minute."""
    return Exposure(
        id=derived_id("exposure", sender.name, given.id) if given.id else new_id(),
        project=sender.name,
        service=sender.service(given.service),
        release=given.release,
        environment=given.environment,
        unit=given.unit,
        minute=given.minute.replace(second=0, microsecond=0),
        count=given.count,
        errored=min(given.errored, given.count),
    )
