"""Investigations: evidence with ids, claims that cite it, and a verdict with its reason."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import Any, Literal

from pydantic import Field

from loopwright_common.contracts.base import CommitSha, Contract, Identifier, Line, Name, ShortText, Text, UtcDatetime
from loopwright_common.contracts.reports import Priority

EVIDENCE_MAX = 200


class Observation(Contract):
    """One thing that was looked at: the exact question, the window and the answer, so that anyone can look again."""

    id: Identifier  # e1, e2, ... within the investigation
    kind: Line  # git.blame, git.log, rates, deploys, signals, manifest, ...
    question: ShortText
    window: Line = ""
    answer: Text
    data: dict[str, Any] = Field(default_factory=dict)


class Claim(Contract):
    """A statement and the observations it rests on. A claim that cites none, or one that is not there, is dropped by code."""

    statement: ShortText
    cites: tuple[Identifier, ...] = Field(max_length=20)
    author: Literal["analysis", "model"] = "analysis"


class Hypothesis(Contract):
    """An explanation that was considered, and why it was kept or discarded."""

    statement: ShortText
    kept: bool
    reason: ShortText
    cites: tuple[Identifier, ...] = Field(default=(), max_length=20)
    author: Literal["analysis", "model"] = "analysis"


class SuspectCommit(Contract):
    """A commit that may have caused the report. ``score`` 0..1 orders suspects; ``reasons`` say where it comes from."""

    commit: CommitSha
    title: Line
    author: Line
    committed_at: UtcDatetime
    score: float = Field(ge=0.0, le=1.0)
    reasons: tuple[ShortText, ...] = Field(max_length=20)
    files: tuple[Line, ...] = Field(default=(), max_length=100)
    cites: tuple[Identifier, ...] = Field(default=(), max_length=20)


class SuspectLines(Contract):
    """Lines of code at the heart of it, as they are in ``commit``."""

    file: Line
    start: int = Field(ge=1)
    end: int = Field(ge=1)
    text: Text
    commit: CommitSha


class PriorityFactor(Contract):
    """One stated factor behind the priority: what was found, and how far it moved it."""

    name: Line
    value: Line
    points: float


class Reviewer(Contract):
    """Somebody who knows the code, and how we know that."""

    name: Line
    reason: ShortText


class InvestigationVerdict(StrEnum):
    """What can be done about the report now."""

    ACTIONABLE = "actionable"
    NEEDS_INPUT = "needs_input"
    NOT_ACTIONABLE = "not_actionable"
    ALREADY_ADDRESSED = "already_addressed"


class Guardrail(Contract):
    """Another rate that must not get worse by more than ``worsening_max`` (relative) while the target gets better."""

    metric: Line
    direction: Literal["decrease", "increase"] = "decrease"
    worsening_max: float = Field(default=0.2, ge=0.0)


class MetricContract(Contract):
    """What will be measured, fixed before the pull request exists so that the verdict cannot be shopped for afterwards."""

    metric: Line = "report_signals_per_exposure"
    query: ShortText  # in words and names, as it is asked of rates.query
    service: Line = ""
    environment: Line = ""
    exposure_unit: Literal["requests", "sessions", "probes", "time"] = "requests"
    direction: Literal["decrease", "increase"] = "decrease"
    # 0.5: the rate must fall by at least half. The interval, not the point estimate, has to show it.
    minimum_effect: float = Field(default=0.5, gt=0.0, lt=1.0)
    guardrails: tuple[Guardrail, ...] = Field(default=(), max_length=8)
    baseline_start: UtcDatetime
    baseline_end: UtcDatetime
    baseline_count: int = Field(default=0, ge=0)
    baseline_exposure: float = Field(default=0.0, ge=0.0)
    test: ShortText = "exact conditional test of two Poisson rates"
    confidence: float = Field(default=0.95, gt=0.5, lt=1.0)
    settle: timedelta = timedelta(minutes=10)
    minimum_window: timedelta = timedelta(hours=1)
    maximum_wait: timedelta = timedelta(days=7)


class Cost(Contract):
    """What a stage used. Money in US dollars as the price table of the model role says; 0.0 where no model was asked."""

    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    model_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    usd: float = 0.0


class InvestigationStarted(Contract):
    project: Name
    report_id: Identifier
    attempt: int
    at: UtcDatetime


class Investigation(Contract):
    """The whole result of one attempt: ``investigations.<project>.completed``."""

    id: Identifier
    project: Name
    report_id: Identifier
    attempt: int = Field(ge=1)
    title: Line
    summary: Text
    evidence: tuple[Observation, ...] = Field(default=(), max_length=EVIDENCE_MAX)
    claims: tuple[Claim, ...] = Field(default=(), max_length=100)
    claims_dropped: int = 0
    hypotheses: tuple[Hypothesis, ...] = Field(default=(), max_length=50)
    suspects: tuple[SuspectCommit, ...] = Field(default=(), max_length=20)  # best first
    suspect_lines: tuple[SuspectLines, ...] = Field(default=(), max_length=10)
    reviewers: tuple[Reviewer, ...] = Field(default=(), max_length=10)
    repository: Line = ""  # the configured repository's name; empty where none is known
    base_commit: CommitSha | None = None  # main at the time of looking
    priority: Priority
    priority_factors: tuple[PriorityFactor, ...] = Field(default=(), max_length=20)
    verdict: InvestigationVerdict
    reason: ShortText = Field(min_length=1)
    confidence: float = Field(ge=0.0, le=1.0)
    question: ShortText = ""  # one precise question, when input is needed
    metric: MetricContract | None = None
    cost: Cost = Cost()
    started_at: UtcDatetime
    completed_at: UtcDatetime
