"""``POST /v1/signals``: signals from anything that can post JSON."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from loopwright_common.contracts.base import Input, Line, ShortText, Text, UtcDatetime
from loopwright_common.contracts.signals import (
    FINGERPRINT_PARTS_MAX,
    FRAMES_MAX,
    LABELS_MAX,
    LINKS_MAX,
    Severity,
    Signal,
    SignalKind,
)
from loopwright_common.problems import FieldError, field_errors
from pydantic import BaseModel, Field, StringConstraints, ValidationError

from loopwright_ingest.domain import PRIVATE_HEADERS, WEIGHTS, Sender, judge_time, signal_id

SOURCE = "http"
ITEMS_MAX = 1_000


class FrameIn(Input):
    """A stack frame, outermost first in ``frames``."""

    file: Line = ""
    function: Line = ""
    module: Line = ""
    line: int | None = Field(default=None, ge=0, le=10_000_000)
    column: int | None = Field(default=None, ge=0, le=10_000_000)
    in_app: bool = True
    context: Line = ""


class LinkIn(Input):
    title: Line
    url: Annotated[str, StringConstraints(max_length=2_048, pattern=r"^https?://")]


class RequestIn(Input):
    """The request that was being served: what a reproduction replays. Headers with credentials are left out."""

    method: Annotated[str, StringConstraints(max_length=16)] = ""
    url: ShortText = ""
    query_string: ShortText = ""
    data: Text = ""
    headers: dict[Line, Line] = Field(default_factory=dict, max_length=32)


class SignalIn(Input):
    """A signal as a client posts it. The project is the key's."""

    kind: Literal["exception", "log", "alert", "health_check", "ticket", "issue", "replay", "observation", "custom"] = "custom"
    title: Annotated[str, StringConstraints(min_length=1, max_length=512, strip_whitespace=True)]
    body: Text = ""
    id: Annotated[str, StringConstraints(max_length=128)] = Field(
        default="", description="The client's own name for it: posting it twice stores it once."
    )
    occurred_at: UtcDatetime | None = Field(default=None, description="By default now. Older than a day is taken for history.")
    service: Annotated[str, StringConstraints(max_length=64)] = Field(
        default="", description="By default the one of the project's services that a label names, else its only one."
    )
    release: Line = ""
    environment: Annotated[str, StringConstraints(max_length=64)] = ""
    severity: Severity = Severity.ERROR
    weight: float | None = Field(default=None, ge=0.0, le=1_000.0, description="By default the kind's.")
    actor: Line = Field(default="", description="Who was hit: an id or an address. Only a keyed hash of it is kept.")
    exception_type: Line = ""
    exception_value: ShortText = ""
    transaction: Line = ""
    frames: list[FrameIn] = Field(default_factory=list, max_length=FRAMES_MAX)
    request: RequestIn | None = None
    fingerprint: list[Line] = Field(default_factory=list, max_length=FINGERPRINT_PARTS_MAX)
    labels: dict[Line, Line] = Field(default_factory=dict, max_length=LABELS_MAX)
    links: list[LinkIn] = Field(default_factory=list, max_length=LINKS_MAX)
    backfill: bool = Field(default=False, description="History being loaded: counted, never promoted by itself.")
    trace_id: Annotated[str, StringConstraints(max_length=64)] = ""


class ItemResult(BaseModel):
    """What became of one item, in the order in which they were sent."""

    index: int
    outcome: Literal["accepted", "duplicate", "rejected"]
    id: str | None = None
    errors: list[FieldError] = Field(default_factory=list)


class SignalsAnswer(BaseModel):
    """What became of a request: 202 when all were accepted, 207 when some were, 422 when none was."""

    accepted: int
    duplicates: int
    rejected: int
    results: list[ItemResult]


def items_of(body: Any) -> list[Any]:
    """The signals in a body: one object, a list, or ``{"signals": [...]}``. Raises ValueError with what is wrong."""
    if isinstance(body, dict) and set(body) == {"signals"}:
        body = body["signals"]
        if not isinstance(body, list):
            raise ValueError('"signals" must be a list.')
    items = body if isinstance(body, list) else [body]
    if not items:
        raise ValueError("There is no signal in the body.")
    if len(items) > ITEMS_MAX:
        raise ValueError(f"There are {len(items)} signals in the body; at most {ITEMS_MAX} go into one request.")
    return items


def understand(item: Any, sender: Sender, now: datetime) -> Signal | list[FieldError]:
    """The signal, or what is wrong with it."""
    try:
        given = SignalIn.model_validate(item)
    except ValidationError as error:
        return field_errors(error.errors(include_url=False, include_input=False, include_context=False))
    try:
        occurred_at, history = judge_time(given.occurred_at, now)
    except ValueError as error:
        return [FieldError(pointer="/occurred_at", detail=str(error))]
    kind = SignalKind(given.kind)
    request = given.request.model_dump() if given.request else None
    if request is not None:
        request["headers"] = {name: value for name, value in request["headers"].items() if not PRIVATE_HEADERS.search(name)}
    try:
        return Signal.model_validate(
            given.model_dump(exclude={"id", "actor", "weight", "occurred_at", "backfill", "request", "service"})
            | {
                "id": signal_id(sender.name, SOURCE, given.id),
                "project": sender.name,
                "source": SOURCE,
                "occurred_at": occurred_at,
                "received_at": now,
                "service": sender.service(given.service, given.labels),
                "weight": WEIGHTS[kind] if given.weight is None else given.weight,
                "actor": sender.pseudonym(given.actor),
                "request": request,
                "backfill": given.backfill or history,
                "dedupe_key": given.id,
            }
        )
    except ValidationError as error:
        return field_errors(error.errors(include_url=False, include_input=False, include_context=False))
