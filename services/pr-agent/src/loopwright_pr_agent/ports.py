"""What the pr-agent asks of the world: repositories, a forge to look at, a publisher that alone may write, a place for its records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from loopwright_common.contracts.base import Contract, Line, ShortText
from loopwright_common.contracts.changes import Change, ChangeRequested, CheckRun, PullRequest
from loopwright_common.contracts.configuration import RepositoryConfig
from loopwright_common.contracts.investigations import Investigation
from loopwright_repositories.checkout import Checkout

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

    async def in_review(self) -> list[Kept]: ...


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
