"""What the API shows: the shapes of its answers, and of what people send. The inbox is drawn from these alone."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from loopwright_common.contracts.base import CommitSha, Identifier, Input, Line, ShortText
from loopwright_common.contracts.changes import CheckRun, ProofLevel, PullRequest, SandboxRun
from loopwright_common.contracts.configuration import ProjectConfig, Scope
from loopwright_common.contracts.investigations import Cost, Investigation
from loopwright_common.contracts.measurements import Measurement, MeasurementStarted
from loopwright_common.contracts.queries import ExposureMinute
from loopwright_common.contracts.reports import DismissReason, GroupingDecision, MinuteCount, ReportState
from loopwright_common.contracts.signals import Deploy, Signal
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

T = TypeVar("T")


class View(BaseModel):
    model_config = ConfigDict(frozen=True)


class Page(View, Generic[T]):
    """A page. ``next_cursor`` is opaque; None on the last page. ``total`` counts what matches, up to 10,000."""

    items: list[T]
    next_cursor: str | None = None
    total: int | None = None


class DeployMark(View):
    at: datetime
    service: str
    release: str


class ReportRow(View):
    """A row of the list."""

    id: str
    project: str
    title: str
    state: ReportState
    priority: str | None
    services: list[str]
    kinds: dict[str, int]
    signal_count: int
    people_count: int
    first_seen: datetime
    last_seen: datetime
    waits_for: str = Field(description="What it waits for, in words; empty when for nothing.")
    waits_for_person: bool
    sparkline: list[int] = Field(description="Signals per hour of the last 24 hours, oldest first.")
    deploys: list[DeployMark] = Field(description="Deploys of its services in the last 24 hours.")
    recurrence_of: str | None
    version: int


class ChangeView(View):
    """A change, without its diff: that is at /v1/changes/{id}/diff."""

    id: str
    project: str
    report_id: str
    repository: str
    state: str
    attempt: int
    title: str
    requested_by: str
    feedback: list[str]
    failure: str
    merge_commit: str | None
    closed_by: str | None
    created_at: datetime
    updated_at: datetime
    strategy: str = ""
    body: str = ""
    base_commit: str | None = None
    reverts: str | None = None
    files: list[str] = Field(default_factory=list)
    diff_bytes: int = 0
    proof: ProofLevel | None = None
    proof_reason: str = ""
    runs: list[SandboxRun] = Field(default_factory=list)
    checks: list[CheckRun] = Field(default_factory=list)
    pull_request: PullRequest | None = None
    cost: Cost = Cost()


class PromotionPart(View):
    """One thing that a gathering report needs, and how much of it there is."""

    name: Literal["live_signals", "weight", "signals", "people"]
    value: float
    needed: float


class PromotionView(View):
    """How far a gathering report is from being looked into."""

    ready: bool = Field(description="Nothing is missing: only where the configuration changed since the last signal.")
    reason: str
    parts: list[PromotionPart]
    at: datetime | None = Field(description="When it becomes ready, where only time is missing.")


class ReportDetail(ReportRow):
    """A report with everything known of it."""

    releases: dict[str, int]
    question: str
    state_reason: str
    input: list[str]
    actions: list[str]
    merged_into: str | None
    recurrences: list[str]
    snoozed_until: datetime | None
    promotion: PromotionView | None = Field(description="While it gathers; its timeline keeps the figures it became ready with.")
    investigation: Investigation | None
    change: ChangeView | None
    measurement: Measurement | None
    measurement_started: MeasurementStarted | None


class TimelineItem(View):
    """A line of the timeline: a transition (kind ``transition``) or something noted."""

    sequence: int
    kind: str
    actor: str
    reason: str
    at: datetime
    from_state: ReportState | None
    to_state: ReportState | None


class Explanation(View):
    """Why a signal is on this report."""

    signal: Signal
    decision: GroupingDecision


class Rates(View):
    """What charts are drawn from: exact counts per minute and release, the exposure beside them, the deploys."""

    start: datetime
    end: datetime
    signals: list[MinuteCount]
    exposure: list[ExposureMinute]
    deploys: list[Deploy]
    truncated: bool


class VerdictView(View):
    """A verdict with the report it is about."""

    report_title: str
    measurement: Measurement


class StageUsage(View):
    stage: str
    runs: int
    pull_requests: int
    cost: Cost


class Usage(View):
    """Metered use: pull requests, and cost per stage."""

    project: str | None
    month: str
    pull_requests: int
    usd: float
    stages: list[StageUsage]


class KeyView(View):
    id: str
    scopes: list[Scope]
    label: str
    service: str
    created_at: datetime
    revoked_at: datetime | None


class NewKey(KeyView):
    """A key just made: the secret is told this once."""

    secret: str
    dsn: str | None = Field(default=None, description="For sentry:write: the DSN to configure a Sentry SDK with.")


class ProjectView(View):
    number: int
    revision: int
    config: ProjectConfig
    keys: list[KeyView]


class AppliedView(View):
    outcome: Literal["created", "updated", "unchanged"]
    dry_run: bool
    project: ProjectView


class DeadLetterView(View):
    sequence: int
    subject: str
    stream: str
    consumer: str
    reason: str
    attempts: int
    died_at: datetime
    payload: str = Field(description="The first 4,096 characters of what could not be handled.")


class Me(View):
    """Who the API takes the caller for."""

    name: str
    role: Literal["viewer", "responder", "admin"]


class NewToken(View):
    """A token just made: it is told this once."""

    id: str
    name: str
    role: str
    token: str


class Event(View):
    """An event of /v1/stream, as its data."""

    kind: str
    project: str
    body: dict[str, Any]


# What people send

Words = Annotated[str, StringConstraints(min_length=1, max_length=2_048, strip_whitespace=True)]


class ProvideInput(Input):
    text: Words


class StartWork(Input):
    pass


class Comment(Input):
    comment: ShortText = ""


class RequiredComment(Input):
    comment: Words


class Dismiss(Input):
    reason: DismissReason
    comment: ShortText = ""


class Snooze(Input):
    seconds: float | None = Field(default=None, gt=0, le=366 * 86_400)
    signals: int | None = Field(default=None, ge=1, le=1_000_000)


class MergeInto(Input):
    report_id: Identifier
    comment: ShortText = ""


class Split(Input):
    signal_ids: list[Identifier] = Field(min_length=1, max_length=10_000)
    comment: ShortText = ""


class MergeChange(Input):
    """``expected_head`` is the commit the person saw: another one is not merged."""

    expected_head: CommitSha
    name: Line = Field(default="", description="The name the merge commit bears; empty: the token's.")
    email: Line = ""


class CreateKey(Input):
    scopes: list[Scope] = Field(min_length=1, max_length=8)
    label: Line = ""
    service: Annotated[str, StringConstraints(max_length=64)] = ""


class CreateToken(Input):
    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
    role: Literal["viewer", "responder", "admin"]


class Session(Input):
    token: Annotated[str, StringConstraints(min_length=1, max_length=256)]


class Discard(Input):
    reason: Words
