"""Changes: our proposal, how far it was proven, and what became of its pull request."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field

from loopwright_common.contracts.base import CommitSha, Contract, Identifier, Line, LongText, Name, ShortText, Text, UtcDatetime
from loopwright_common.contracts.investigations import Cost, Investigation
from loopwright_common.contracts.reports import ReportSnapshot


class ProofLevel(StrEnum):
    """How much was proven; said, never implied."""

    REPRODUCED = "reproduced"  # the failure was replayed: it failed before the change and passes after it
    TESTS_ONLY = "tests_only"
    NOT_VERIFIED = "not_verified"


class ChangeState(StrEnum):
    REQUESTED = "requested"
    WORKING = "working"
    IN_REVIEW = "in_review"
    MERGED = "merged"
    CLOSED = "closed"
    FAILED = "failed"


class CheckRun(Contract):
    """One check on the change: the sandbox's own, or the forge's CI."""

    name: Line
    status: Literal["queued", "in_progress", "completed"]
    conclusion: Literal["success", "failure", "neutral", "skipped", "timed_out"] | None = None
    summary: ShortText = ""
    details: Text = ""


class SandboxRun(Contract):
    """One command inside a sandbox: which isolation held, what it said."""

    step: Line  # baseline.reproduce, changed.reproduce, changed.test, verify.baseline.reproduce, ...
    command: ShortText
    isolation: Line  # bubblewrap, landlock+seccomp, kubernetes
    outcome: Literal["exited", "timed_out", "out_of_memory", "killed", "output_limit"]
    exit_code: int | None
    wall_seconds: float
    cpu_seconds: float = 0.0
    output_tail: Text = ""


class PullRequest(Contract):
    """The forge's object."""

    number: int
    url: ShortText
    branch: Line
    base: Line
    head_commit: CommitSha
    draft: bool = True
    state: Literal["open", "merged", "closed"] = "open"


class ChangeRequested(Contract):
    """Gateway's request: make this change. ``change_id`` is derived from the report and attempt, so it is asked once."""

    change_id: Identifier
    project: Name
    report: ReportSnapshot
    investigation: Investigation
    attempt: int = Field(default=1, ge=1)
    requested_by: Line  # policy, or person:alice
    feedback: tuple[ShortText, ...] = Field(default=(), max_length=20)  # what reviewers asked for, oldest first
    at: UtcDatetime


class ChangeProgress(Contract):
    """pr-agent's fact while it works: one line for the timeline. ``changes.<project>.progressed``."""

    change_id: Identifier
    project: Name
    report_id: Identifier
    step: Line
    detail: ShortText = ""
    at: UtcDatetime


class Change(Contract):
    """The change as it stands. ``changes.<project>.opened`` and ``.updated`` carry the whole of it."""

    id: Identifier
    project: Name
    report_id: Identifier
    attempt: int = 1
    state: ChangeState
    strategy: Line  # revert, ...
    title: Line
    body: LongText = ""  # the pull request's markdown
    repository: Line
    base_commit: CommitSha
    diff: LongText = ""
    diff_bytes: int = 0
    files: tuple[Line, ...] = Field(default=(), max_length=300)
    reverts: CommitSha | None = None
    proof: ProofLevel
    proof_reason: ShortText = ""
    runs: tuple[SandboxRun, ...] = Field(default=(), max_length=50)
    checks: tuple[CheckRun, ...] = Field(default=(), max_length=50)
    pull_request: PullRequest | None = None
    cost: Cost = Cost()
    at: UtcDatetime


class ChangeMerged(Contract):
    """The pull request was merged, by whom, as which commit."""

    change_id: Identifier
    project: Name
    report_id: Identifier
    repository: Line
    service: Line = ""  # the service whose deploy is waited for; empty: any service of the repository
    merge_commit: CommitSha
    merged_by: Line
    merged_at: UtcDatetime
    investigation: Investigation  # carries the metric contract that was fixed beforehand


class ChangeClosed(Contract):
    """The pull request was closed without a merge."""

    change_id: Identifier
    project: Name
    report_id: Identifier
    closed_by: Line
    reason: ShortText = ""
    at: UtcDatetime


class ChangeFailed(Contract):
    """No safe change could be made: why, and what is missing for one."""

    change_id: Identifier
    project: Name
    report_id: Identifier
    reason: ShortText
    missing: ShortText = ""  # what a person could provide, as a question
    runs: tuple[SandboxRun, ...] = Field(default=(), max_length=50)
    cost: Cost = Cost()
    at: UtcDatetime


class ChangeCommand(Contract):
    """A person's wish about a change, carried out by pr-agent in that person's name. ``commands.<project>.changes``."""

    command_id: Identifier
    project: Name
    change_id: Identifier
    report_id: Identifier
    action: Literal["merge", "decline", "request_changes"]
    actor: Line  # person:alice
    actor_name: Line = ""
    actor_email: Line = ""
    comment: ShortText = ""
    expected_head: CommitSha | None = None  # merge only what the person saw
    at: UtcDatetime


class CommandRefused(Contract):
    """A command that could not be carried out, and why: ``changes.<project>.refused``."""

    command_id: Identifier
    project: Name
    change_id: Identifier
    report_id: Identifier
    action: Line
    reason: ShortText
    at: UtcDatetime
