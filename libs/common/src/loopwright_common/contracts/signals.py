"""Signals: one thing a product, a person or a probe said, as it travels from the edge to a report. Untrusted text always."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from loopwright_common.contracts.base import CommitSha, Contract, Identifier, Line, Name, ShortText, Text, UtcDatetime

FRAMES_MAX = 100
LABELS_MAX = 64
LINKS_MAX = 16
FINGERPRINT_PARTS_MAX = 16


class SignalKind(StrEnum):
    """What sort of thing was said; it decides how the signal is fingerprinted and weighed."""

    EXCEPTION = "exception"
    LOG = "log"
    ALERT = "alert"
    HEALTH_CHECK = "health_check"
    TICKET = "ticket"
    ISSUE = "issue"
    REPLAY = "replay"
    OBSERVATION = "observation"  # found by a scout
    MEASUREMENT = "measurement"  # a verdict coming back
    CUSTOM = "custom"


class Severity(StrEnum):
    """Syslog's order, with the names error trackers use."""

    FATAL = "fatal"
    ERROR = "error"
    WARNING = "warning"
    INFO = "info"
    DEBUG = "debug"


class StackFrame(Contract):
    """One stack frame, outermost first in ``Signal.frames`` (the last frame is where it was raised), as Sentry orders them."""

    file: Line = ""
    function: Line = ""
    module: Line = ""
    line: int | None = Field(default=None, ge=0, le=10_000_000)
    column: int | None = Field(default=None, ge=0, le=10_000_000)
    in_app: bool = True
    context: Line = ""  # the source line, where the client sent it


class RequestContext(Contract):
    """The request that was being served, without cookies and credentials: what a reproduction replays."""

    method: Annotated[str, StringConstraints(max_length=16)] = ""
    url: ShortText = ""
    query_string: ShortText = ""
    data: Text = ""  # the body as text; JSON where the client sent JSON
    headers: dict[Line, Line] = Field(default_factory=dict, max_length=32)


class Link(Contract):
    """Where a person can see the original."""

    title: Line
    url: ShortText


class Signal(Contract):
    """One accepted signal. ``actor`` is a keyed hash, never the person's name; ``weight`` counts towards promotion."""

    id: Identifier
    project: Name
    source: Name  # sentry, http, health, measurement, ... : the last part of its subject
    kind: SignalKind
    title: Line
    body: Text = ""
    occurred_at: UtcDatetime
    received_at: UtcDatetime
    service: Annotated[str, StringConstraints(max_length=64)] = ""
    release: Line = ""
    environment: Annotated[str, StringConstraints(max_length=64)] = ""
    severity: Severity = Severity.ERROR
    weight: float = Field(default=1.0, ge=0.0, le=1_000.0)
    actor: Annotated[str, StringConstraints(max_length=64)] = ""
    exception_type: Line = ""
    exception_value: ShortText = ""
    transaction: Line = ""  # the route or job in which it happened
    frames: tuple[StackFrame, ...] = Field(default=(), max_length=FRAMES_MAX)
    request: RequestContext | None = None
    fingerprint: tuple[Line, ...] = Field(default=(), max_length=FINGERPRINT_PARTS_MAX)  # explicit; may hold "{{ default }}"
    labels: dict[Line, Line] = Field(default_factory=dict, max_length=LABELS_MAX)
    links: tuple[Link, ...] = Field(default=(), max_length=LINKS_MAX)
    dedupe_key: Line = ""
    backfill: bool = False  # history being loaded: counted, never promoted by itself
    about_report: Identifier | None = None  # only from our own measure and scouts: ingest refuses it from outside
    trace_id: Annotated[str, StringConstraints(max_length=64)] = ""


class Exposure(Contract):
    """How much a service was used: ``count`` requests or sessions that began within ``minute``. The denominator of every rate."""

    id: Identifier
    project: Name
    service: Annotated[str, StringConstraints(max_length=64)]
    release: Line = ""
    environment: Annotated[str, StringConstraints(max_length=64)] = ""
    unit: Literal["requests", "sessions", "probes"] = "requests"
    minute: UtcDatetime
    count: int = Field(ge=0, le=1_000_000_000)
    errored: int = Field(default=0, ge=0, le=1_000_000_000)


class Deploy(Contract):
    """A release of a service went live in an environment."""

    id: Identifier
    project: Name
    service: Name
    release: Line
    commit: CommitSha | None = None  # without it the release name is looked up as a tag or an abbreviated commit
    environment: Annotated[str, StringConstraints(max_length=64)] = "production"
    deployed_at: UtcDatetime
    url: ShortText = ""
