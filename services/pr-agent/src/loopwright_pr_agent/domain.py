"""A change's way from request to pull request: its record, its names, what a run proves. Pure: time comes as an argument.

ChangeError
└── NoSafeChange  Permanent  nothing can be proposed: why, and what a person could provide
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from loopwright_common.contracts.base import CommitSha, Contract, Identifier, Line, Name
from loopwright_common.contracts.changes import (
    Change,
    ChangeClosed,
    ChangeFailed,
    ChangeMerged,
    ChangeRequested,
    ChangeState,
    CheckRun,
    ProofLevel,
    PullRequest,
    SandboxRun,
)
from loopwright_common.contracts.investigations import Cost
from loopwright_common.errors import Permanent

TAIL_CHARACTERS_MAX = 4_000  # of a run's output in a change: fifty runs still fit one message
SHORT = 2_000  # ShortText with room for an ellipsis
_SLUG = re.compile(r"[^a-z0-9]+")

Phase = Literal["working", "prepared", "in_review", "merged", "closed", "failed"]


class NoSafeChange(Permanent):
    """Nothing safe can be proposed. ``missing`` is the question whose answer would help; ``runs`` what was tried."""

    def __init__(self, reason: str, missing: str = "", runs: Sequence[SandboxRun] = ()) -> None:
        super().__init__(reason)
        self.reason = shorten(reason)
        self.missing = shorten(missing)
        self.runs = tuple(runs)


class Progress(Contract):
    """What is kept of a change between messages and over crashes. Written by compare-and-set only."""

    change_id: Identifier
    project: Name
    report_id: Identifier
    attempt: int
    phase: Phase
    requested_at: datetime
    service: Line = ""
    base_branch: Line = "main"
    branch: Line = ""
    change: Change | None = None
    merged: ChangeMerged | None = None  # without its investigation, which is kept beside it
    closed: ChangeClosed | None = None
    failed: ChangeFailed | None = None
    updates: int = 0  # how many times ``updated`` was said: numbers its message ids


@dataclass(frozen=True)
class Proposal:
    """What a strategy proposes."""

    strategy: str
    title: str
    why: str
    diff: str
    base_commit: CommitSha
    reverts: CommitSha | None = None


@dataclass(frozen=True)
class Verified:
    """How far a proposal was proven, and the runs that say so."""

    proof: ProofLevel
    reason: str
    runs: tuple[SandboxRun, ...]
    tests_passed: bool | None  # None: there were none to run
    isolation: str
    facts: tuple[str, ...] = field(default=())


def begin(request: ChangeRequested, base_branch: str, service: str) -> Progress:
    """The record of a change that was just asked for."""
    return Progress(
        change_id=request.change_id,
        project=request.project,
        report_id=request.report.id,
        attempt=request.attempt,
        phase="working",
        requested_at=request.at,
        service=service,
        base_branch=base_branch,
        branch=branch_of(request),
    )


def branch_of(request: ChangeRequested) -> str:
    """``loopwright/<report>-<slug>``: the same request always has the same branch, another attempt another."""
    slug = _SLUG.sub("-", request.report.title.lower()).strip("-")[:40].strip("-") or "change"
    again = f"-{request.attempt}" if request.attempt > 1 else ""
    return f"loopwright/{request.report.id}-{slug}{again}"


def shorten(text: str, limit: int = SHORT) -> str:
    """The text, or its beginning with an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def cost_of(runs: Sequence[SandboxRun], wall_seconds: float) -> Cost:
    """What the change used: the time from start to end, and the processor time of all its runs."""
    return Cost(wall_seconds=round(wall_seconds, 3), cpu_seconds=round(sum(run.cpu_seconds for run in runs), 3))


def checks_of(verified: Verified) -> tuple[CheckRun, ...]:
    """The three checks a reviewer sees."""

    def check(name: str, good: bool | None, summary: str, details: str = "") -> CheckRun:
        conclusion: Literal["success", "failure", "neutral"] = "neutral" if good is None else "success" if good else "failure"
        return CheckRun(name=name, status="completed", conclusion=conclusion, summary=shorten(summary), details=shorten(details, 16_000))

    reproduced = True if verified.proof is ProofLevel.REPRODUCED else None
    transcript = "\n\n".join(
        f"$ {run.command}\n[{run.step}: {run.outcome} {run.exit_code}]\n{run.output_tail[-1_500:]}" for run in verified.runs
    )
    tests = "The repository's tests pass with the change." if verified.tests_passed else "No tests of the repository speak for the change."
    return (
        check("loopwright/reproduction", reproduced, verified.reason, transcript),
        check("loopwright/tests", True if verified.tests_passed else None, tests),
        check("loopwright/diff-policy", True, "Size, protected paths, secrets and binary files were checked."),
    )


def prepared(progress: Progress, proposal: Proposal, verified: Verified, repository: str, body: str, files: Sequence[str],
             cost: Cost, at: datetime) -> Progress:  # fmt: skip
    """The change as it will be published. From here on a restart publishes exactly this and makes nothing anew."""
    change = Change(
        id=progress.change_id,
        project=progress.project,
        report_id=progress.report_id,
        attempt=progress.attempt,
        state=ChangeState.WORKING,
        strategy=proposal.strategy,
        title=shorten(proposal.title, 200),
        body=body,
        repository=repository,
        base_commit=proposal.base_commit,
        diff=proposal.diff,
        diff_bytes=len(proposal.diff.encode()),
        files=tuple(files)[:300],
        reverts=proposal.reverts,
        proof=verified.proof,
        proof_reason=shorten(verified.reason),
        runs=verified.runs[:50],
        checks=checks_of(verified),
        cost=cost,
        at=at,
    )
    return progress.model_copy(update={"phase": "prepared", "change": change})


def opened(progress: Progress, pull_request: PullRequest, at: datetime) -> Progress:
    """The change with its pull request."""
    assert progress.change is not None
    change = progress.change.model_copy(update={"state": ChangeState.IN_REVIEW, "pull_request": pull_request, "at": at})
    return progress.model_copy(update={"phase": "in_review", "change": change})


def seen(progress: Progress, pull_request: PullRequest, checks: tuple[CheckRun, ...], at: datetime) -> Progress | None:
    """The change after the forge was looked at; None when nothing that people see is different."""
    assert progress.change is not None
    change = progress.change
    if (change.pull_request, change.checks) == (pull_request, checks):
        return None
    change = change.model_copy(update={"pull_request": pull_request, "checks": checks, "at": at})
    return progress.model_copy(update={"change": change, "updates": progress.updates + 1})


def with_details(known: Sequence[CheckRun], found: Sequence[CheckRun]) -> tuple[CheckRun, ...]:
    """The forge's checks by name, with the details that only we hold."""
    ours = {check.name: check for check in known}
    merged = [
        check.model_copy(update={"details": ours[check.name].details, "summary": ours[check.name].summary or check.summary})
        if check.name in ours
        else check
        for check in found
    ]
    return tuple(sorted(merged, key=lambda check: check.name))[:50] if merged else tuple(known)
