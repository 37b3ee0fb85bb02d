"""What the pr-agent asks of the world: repositories, a forge to look at, a publisher that alone may write, a place for its records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from loopwright_common.contracts.base import Contract, Line, ShortText
from loopwright_common.contracts.changes import Change, ChangeRequested, CheckRun, PullRequest
from loopwright_common.contracts.configuration import RepositoryConfig
from loopwright_common.contracts.investigations import Investigation
from loopwright_repositories.checkout import Checkout
from loopwright_repositories.forges.port import ForgeCheckRun, ForgePullRequest

from loopwright_pr_agent.domain import Progress, Proposal


@dataclass(frozen=True)
class Kept:
    """A record and the revision that the next write names."""

    progress: Progress
    revision: int


class PullRequestSeen(Contract):
    """A pull request as the forge has it, with who ended it."""

    pull_request: PullRequest
    merge_commit: Line | None = None
    ended_by: Line = ""
    ended_at: str = ""
    checks: tuple[CheckRun, ...] = ()
    reason: ShortText = ""


def seen_of(pull: ForgePullRequest, checks: Sequence[ForgeCheckRun]) -> PullRequestSeen:
    """A forge's pull request in our words."""
    ended_at = pull.merged_at or pull.closed_at
    return PullRequestSeen(
        pull_request=PullRequest(
            number=pull.number,
            url=pull.web_url,
            branch=pull.head,
            base=pull.base,
            head_commit=pull.head_commit,
            draft=pull.draft,
            state=pull.state,
        ),
        merge_commit=pull.merge_commit,
        ended_by=pull.merged_by or pull.closed_by,
        ended_at=ended_at.isoformat() if ended_at is not None else "",
        checks=tuple(
            CheckRun(name=check.name, status=check.status, conclusion=check.conclusion, summary=check.summary[:2_000])
            for check in sorted(checks, key=lambda check: check.name)
        )[:50],
        reason=pull.mergeable_reason,
    )


@dataclass(frozen=True)
class Publication:
    """What the publisher is to put on the forge."""

    change: Change
    branch: str
    base_branch: str
    mirror: str  # the folder of the mirror that has the base commit
    protected_paths: tuple[str, ...]
    transcript: str
    committed_at: str  # fixed by the request, so that a repeat makes the same commit


class ProgressStore(Protocol):
    """The records of changes. Writes raise Conflict when somebody else wrote first."""

    async def get(self, project: str, change_id: str) -> Kept | None: ...

    async def create(self, progress: Progress, investigation: Investigation) -> Kept: ...

    async def update(self, kept: Kept, progress: Progress) -> Kept: ...

    async def investigation(self, project: str, change_id: str) -> Investigation: ...

    async def in_review(self) -> list[Kept]:
        """All whose pull request is open as far as we know."""
        ...


class Repositories(Protocol):
    """Repositories to read. Raises RepositoryUnavailable or RepositoryRefused."""

    async def fresh(self, repository: RepositoryConfig) -> Checkout:
        """The mirror as the forge has it now."""
        ...


class ForgeView(Protocol):
    """The forge, read-only."""

    async def look(self, repository: str, number: int) -> PullRequestSeen: ...


class Publisher(Protocol):
    """The only way to change anything on a forge. Raises ForgeUnavailable, ForgeConflict, ForgeRefused, ForgeNotFound.

    Every method may be repeated: the second time finds what the first did.
    """

    async def ensure(self, repository: RepositoryConfig) -> None: ...

    async def publish(self, publication: Publication) -> PullRequestSeen: ...

    async def merge(self, repository: str, number: int, *, expected_head: str, name: str, email: str, key: str) -> PullRequestSeen: ...

    async def close(self, repository: str, number: int, *, actor: str, comment: str, key: str) -> PullRequestSeen: ...

    async def comment(self, repository: str, number: int, *, actor: str, body: str, key: str) -> None: ...


class Strategy(Protocol):
    """A way to make a change. Raises NoSafeChange."""

    @property
    def name(self) -> str: ...

    async def propose(self, request: ChangeRequested, checkout: Checkout, base_commit: str) -> Proposal: ...
