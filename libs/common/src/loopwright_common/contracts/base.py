"""What all contract models share: closed, immutable, bounded."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints


class Contract(BaseModel):
    """A message or a part of one. Unknown fields are ignored on reading, so that an older service understands a newer one."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_timedelta="float", str_strip_whitespace=False)


class Input(BaseModel):
    """What a person or a program sends us. Unknown fields are refused, so that a typing error is told rather than dropped."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_timedelta="float")


def _utc(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError("needs a time zone, as in 2026-11-26T10:00:00Z")
    return value.astimezone(UTC)


UtcDatetime = Annotated[datetime, AfterValidator(_utc)]
# A name is part of a NATS subject, a KV key and a URL path: one token, lower case, no dots, no wildcards.
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?$")]
Identifier = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
CommitSha = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}(?:[0-9a-f]{24})?$")]
Line = Annotated[str, StringConstraints(max_length=512)]
ShortText = Annotated[str, StringConstraints(max_length=2_048)]
Text = Annotated[str, StringConstraints(max_length=16_384)]
LongText = Annotated[str, StringConstraints(max_length=262_144)]
