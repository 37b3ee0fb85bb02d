"""What the API shows: the shapes of its answers, and of what people send. The inbox is drawn from these alone."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from loopwright_common.contracts.base import CommitSha, Identifier, Input, Line, ShortText
from loopwright_common.contracts.changes import CheckRun, ProofLevel, PullRequest, SandboxRun
from loopwright_common.contracts.configuration import ProjectConfig, Scope
from loopwright_common.contracts.investigations import Cost, Investigation
from loopwright_common.contracts.measurements import Measurement, MeasurementStarted
from loopwright_common.contracts.queries import ExposureMinute
from loopwright_common.contracts.reports import DismissReason, GroupingDecision, MinuteCount, ReportState
from loopwright_common.contracts.signals import Deploy, Signal, SignalKind
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

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


class SignalView(View):
    """What is kept of a signal for as long as it is counted."""

    id: str
    kind: SignalKind
    title: str = Field(description="Its own where it is one of the examples, otherwise that of the first signal of its fingerprint.")
    service: str
    release: str
    environment: str
    occurred_at: datetime
    weight: float
    backfill: bool = Field(description="Loaded as history.")
    counted: bool = Field(description="False for a verdict: it is on the report, but is not an occurrence of the problem.")
    source: str | None = Field(description="Where it came from; of examples only.")


class Moved(View):
    """The word of a person that put a signal where it is: the latest that was not taken back."""

    command_id: str
    action: Literal["merge", "split", "move", "never_together", "undo"]
    actor: str
    reason: str
    at: datetime
    from_report_id: str


class Explanation(View):
    """Why a signal is on this report."""

    signal: SignalView
    fingerprint: str = Field(description="Empty for what was counted before fingerprints were kept.")
    decision: GroupingDecision | None = Field(
        description="The rule, the nearest neighbours with their figures, and similar reports. Where the signal's fingerprint was simply "
        "known, this is the decision on the fingerprint's first signal. Null when it is not kept."
    )
    moved: Moved | None = Field(description="Which person's word moved it here; null when the grouping put it here.")
    example: Signal | None = Field(description="The signal as it came, where it is one of the report's examples.")


class FingerprintView(View):
    """A fingerprint of a report: what a person picks from to split or move."""

    fingerprint: str = Field(description="Empty for what was counted before fingerprints were kept.")
    title: str
    kind: SignalKind
    rule: str = Field(description="The rule by which its first signal came to the report; empty when it is not kept.")
    reason: str
    similar: list[str] = Field(description="Reports that may be the same problem, most probable first.")
    signals: int = Field(description="How many of its signals are on this report, exactly; signals are kept for `seen_days`.")
    first_seen: datetime
    last_seen: datetime
    example: str = Field(description="The id of one of its signals on this report, an example where there is one.")


class WordView(View):
    """What a person said of the grouping, and what came of it."""

    command_id: str
    action: Literal["merge", "split", "move", "never_together", "undo"]
    report_id: str = Field(description="merge: the one that stays; split, move: the one that is left; undo: where things return to.")
    other_report_id: str | None = Field(description="merge: the one that goes; move: where to; undo: where things were.")
    new_report_id: str | None = Field(description="split: the report that was made, once it is done.")
    fingerprints: list[str] = Field(description="Those that go along, with all their signals, past and to come; at most 1,000 are shown.")
    signals: int = Field(description="asked: the signals named; done: the signals moved.")
    actor: str
    reason: str
    at: datetime
    state: Literal["asked", "done", "refused", "undone"]
    refusal: str = Field(description="refused: why; nothing changed then.")
    undoes: str | None = Field(description="undo: the word that it takes back.")
    undone_by: str | None
    undoable: bool


class Grouping(View):
    """What people said of this report's grouping, newest first, at most 1,000 words."""

    words: list[WordView]


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


class NeverTogether(Input):
    report_id: Identifier = Field(description="The other report.")
    comment: ShortText = ""


Fingerprint = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=r"^[^\x00]+$")]


class Split(Input):
    """At least one signal or fingerprint. A fingerprint leaves with all its signals, those to come too; a signal leaves alone."""

    signal_ids: list[Identifier] = Field(default_factory=list, max_length=10_000)
    fingerprints: list[Fingerprint] = Field(default_factory=list, max_length=1_000)
    comment: ShortText = ""

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.signal_ids and not self.fingerprints:
            raise ValueError("name at least one of signal_ids and fingerprints")
        return self


class Move(Split):
    """At least one signal or fingerprint, and where they go."""

    report_id: Identifier = Field(description="Where they go.")


class Undo(Input):
    command_id: Identifier = Field(description="The word to take back, as /v1/reports/{id}/grouping names it.")
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
