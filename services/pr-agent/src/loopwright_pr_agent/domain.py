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

from loopwright_common.contracts.base import CommitSha, Contract, Identifier, Line, Name, ShortText, UtcDatetime
from loopwright_common.contracts.changes import (
    Change,
    ChangeClosed,
    ChangeCommand,
    ChangeFailed,
    ChangeMerged,
    ChangeRequested,
    ChangeState,
    CheckRun,
    ProofLevel,
    PullRequest,
    SandboxRun,
)
from loopwright_common.contracts.investigations import Cost, Investigation
from loopwright_common.errors import Permanent

TAIL_CHARACTERS_MAX = 4_000  # of a run's output in a change: fifty runs still fit one message
CHANGE_BYTES_MAX = 800 * 1024  # a message holds 1 MiB; beyond this the transcript is cut to the last lines of each run
SHORT = 2_000  # ShortText with room for an ellipsis
_NOT_IN_NAME = re.compile(r"[<>\x00-\x1f\x7f]")
_NOT_IN_EMAIL = re.compile(r"[<>\s\x00-\x1f\x7f]")
_SLUG = re.compile(r"[^a-z0-9]+")

Phase = Literal["working", "prepared", "in_review", "merged", "closed", "failed"]


class NoSafeChange(Permanent):
    """Nothing safe can be proposed. ``missing`` is the question whose answer would help; ``runs`` what was tried."""

    def __init__(self, reason: str, missing: str = "", runs: Sequence[SandboxRun] = ()) -> None:
        super().__init__(reason)
        self.reason = shorten(reason)
        self.missing = shorten(missing)
        self.runs = tuple(runs)


class Ending(Contract):
    """How a pull request ended: ``commit`` is the merge; without one it was closed."""

    by: Line
    at: UtcDatetime
    commit: CommitSha | None = None
    reason: ShortText = ""


class Wish(Contract):
    """Who asked for which end."""

    action: Literal["merge", "decline"]
    by: Line
    reason: ShortText = ""


class Progress(Contract):
    """What is kept of a change between messages and over crashes. Written by compare-and-set only."""

    change_id: Identifier
    project: Name
    report_id: Identifier
    attempt: int
    phase: Phase
    requested_at: UtcDatetime
    service: Line = ""
    base_branch: Line = "main"
    branch: Line = ""
    change: Change | None = None
    wish: Wish | None = None  # of a person, being carried out: an end of that kind is theirs, whoever sees it first
    ending: Ending | None = None
    failed: ChangeFailed | None = None
    updates: int = 0  # how many times ``updated`` was said: numbers its message ids
    traceparent: Line = ""  # of the request: what is seen on the forge days later is still part of its trace


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


def printable(text: str) -> str:
    """The text without control characters, which JSON would blow up six times and a terminal might obey."""
    return "".join(character if character.isprintable() or character in "\n\t" else "\ufffd" for character in text)


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
    return (  # by name, as the forge's are listed
        check("loopwright/diff-policy", True, "Size, protected paths, secrets and binary files were checked."),
        check("loopwright/reproduction", reproduced, verified.reason, transcript),
        check("loopwright/tests", True if verified.tests_passed else None, tests),
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
    if len(change.model_dump_json().encode()) > CHANGE_BYTES_MAX:
        short = tuple(run.model_copy(update={"output_tail": run.output_tail[-200:]}) for run in change.runs)
        change = change.model_copy(update={"runs": short})
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


def ended(progress: Progress, ending: Ending, at: datetime) -> Progress:
    """The change after its pull request was merged or closed."""
    assert progress.change is not None
    merged = ending.commit is not None
    change = progress.change.model_copy(update={"state": ChangeState.MERGED if merged else ChangeState.CLOSED, "at": at})
    return progress.model_copy(update={"phase": "merged" if merged else "closed", "ending": ending, "change": change})


def failed(progress: Progress, reason: str, missing: str, runs: Sequence[SandboxRun], cost: Cost, at: datetime) -> Progress:
    """The change that could not be made safely."""
    fact = ChangeFailed(
        change_id=progress.change_id,
        project=progress.project,
        report_id=progress.report_id,
        reason=shorten(reason),
        missing=shorten(missing),
        runs=tuple(run.model_copy(update={"output_tail": run.output_tail[-2_000:]}) for run in runs[:50]),
        cost=cost,
        at=at,
    )
    return progress.model_copy(update={"phase": "failed", "failed": fact})


def merged_fact(progress: Progress, ending: Ending, investigation: Investigation) -> ChangeMerged:
    """What measure waits for."""
    assert progress.change is not None
    assert ending.commit is not None
    return ChangeMerged(
        change_id=progress.change_id,
        project=progress.project,
        report_id=progress.report_id,
        repository=progress.change.repository,
        service=progress.service,
        merge_commit=ending.commit,
        merged_by=ending.by,
        merged_at=ending.at,
        investigation=investigation,
    )


def closed_fact(progress: Progress, ending: Ending) -> ChangeClosed:
    """The end without a merge."""
    return ChangeClosed(
        change_id=progress.change_id,
        project=progress.project,
        report_id=progress.report_id,
        closed_by=ending.by,
        reason=ending.reason,
        at=ending.at,
    )


def person_of(command: ChangeCommand) -> tuple[str, str]:
    """Name and e-mail address as git can write them, of the person who gave a command."""
    login = command.actor.partition(":")[2] or command.actor
    name = " ".join(_NOT_IN_NAME.sub(" ", command.actor_name or login).split())[:200] or "somebody"
    email = _NOT_IN_EMAIL.sub("", command.actor_email)[:254]
    if not re.fullmatch(r"[^@]+@[^@]+", email):
        email = f"{_SLUG.sub('-', login.lower()).strip('-')[:64] or 'somebody'}@localhost"
    return name, email
