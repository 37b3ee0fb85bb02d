"""The Forge port: what pr-agent and others ask of GitHub, GitLab, Gitea or the local forge, in one vocabulary."""

from __future__ import annotations

from typing import Annotated, Literal, Protocol

from loopwright_common.contracts.base import CommitSha, Contract, Line, LongText, Name, ShortText, Text, UtcDatetime
from pydantic import Field, StringConstraints

from loopwright_repositories.git import GitCredential

# GitHub's own limit for titles is 256 characters and for bodies 65,536; ours are the contracts'.
CheckStatus = Literal["queued", "in_progress", "completed"]
CheckConclusion = Literal["success", "failure", "neutral", "skipped", "timed_out"]
PullRequestState = Literal["open", "merged", "closed"]


class Person(Contract):
    """Somebody in whose name a merge is made: what git writes as author and committer."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^<>\x00-\x1f\x7f]+$")]
    email: Annotated[str, StringConstraints(min_length=3, max_length=254, pattern=r"^[^<>\s\x00-\x1f\x7f]+@[^<>\s\x00-\x1f\x7f]+$")]


class ForgeRepository(Contract):
    """A repository on a forge."""

    name: Name
    default_branch: Line
    clone_url: ShortText
    web_url: ShortText
    source: ShortText = ""  # where the local forge imports it from
    head_commit: CommitSha | None = None  # of the default branch; None while it is empty


class ForgePullRequest(Contract):
    """A pull request as the forge has it now. ``mergeable`` is None when it is not open any more."""

    repository: Name
    number: int = Field(ge=1)
    title: Line
    body: LongText = ""
    head: Line
    base: Line
    head_commit: CommitSha
    base_commit: CommitSha  # the merge base: what the diff is against
    draft: bool
    state: PullRequestState
    mergeable: bool | None = None
    mergeable_reason: ShortText = ""
    merge_commit: CommitSha | None = None
    merged_by: Line = ""
    merged_at: UtcDatetime | None = None
    closed_by: Line = ""
    closed_at: UtcDatetime | None = None
    created_at: UtcDatetime
    updated_at: UtcDatetime
    web_url: ShortText


class ForgeComment(Contract):
    """A comment on a pull request. ``key`` makes it once: the same key again gives the first comment."""

    id: int
    author: Line
    body: Text
    key: Line = ""
    created_at: UtcDatetime


class ForgeCheckRun(Contract):
    """A check on a commit, one per name."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    status: CheckStatus
    conclusion: CheckConclusion | None = None
    summary: Text = ""
    updated_at: UtcDatetime | None = None


class SyncedBranch(Contract):
    """What following the source did to one branch."""

    branch: Line
    outcome: Literal["created", "advanced", "unchanged", "ahead", "diverged"]
    commit: CommitSha
    detail: ShortText = ""


class Forge(Protocol):
    """A forge. Every method raises ForgeUnavailable (try again), ForgeRefused or ForgeConflict (it said no), ForgeNotFound."""

    @property
    def kind(self) -> str:
        """``local``, ``github``, ..."""
        ...

    @property
    def credential(self) -> GitCredential | None:
        """What git sends to this forge's clone URLs."""
        ...

    def clone_url(self, repository: str) -> str:
        """Where git clones from and pushes to. Never holds a credential."""
        ...

    async def ensure_repository(self, repository: str, *, source: str = "", default_branch: str = "main") -> ForgeRepository:
        """The repository, made when it is not there. A forge that cannot make one raises ForgeNotFound."""
        ...

    async def sync_repository(self, repository: str) -> tuple[SyncedBranch, ...]:
        """Brings the forge's copy up to its source, fast-forward only. A forge that is itself the source does nothing."""
        ...

    async def open_pull_request(
        self, repository: str, *, head: str, base: str, title: str, body: str, draft: bool = True
    ) -> ForgePullRequest:
        """The open pull request from ``head``: the one that is there, else a new one."""
        ...

    async def get_pull_request(self, repository: str, number: int) -> ForgePullRequest: ...

    async def find_pull_request(self, repository: str, head: str, state: PullRequestState | None = None) -> ForgePullRequest | None:
        """The newest pull request from ``head``, if any."""
        ...

    async def list_pull_requests(
        self, repository: str, state: PullRequestState | None = None, limit: int = 100
    ) -> tuple[ForgePullRequest, ...]:
        """Newest first."""
        ...

    async def update_pull_request(
        self, repository: str, number: int, *, title: str | None = None, body: str | None = None
    ) -> ForgePullRequest: ...

    async def mark_ready(self, repository: str, number: int) -> ForgePullRequest:
        """A draft no longer. Marking twice changes nothing."""
        ...

    async def diff(self, repository: str, number: int) -> str:
        """The unified diff from the merge base to the head."""
        ...

    async def comment(self, repository: str, number: int, body: str, *, author: str = "loopwright", key: str = "") -> ForgeComment:
        """Adds a comment; with a ``key`` only once."""
        ...

    async def list_comments(self, repository: str, number: int) -> tuple[ForgeComment, ...]:
        """Oldest first."""
        ...

    async def set_check_run(
        self,
        repository: str,
        commit: str,
        name: str,
        *,
        status: CheckStatus,
        conclusion: CheckConclusion | None = None,
        summary: str = "",
    ) -> ForgeCheckRun:
        """Makes or replaces the check of that name on a commit. ``conclusion`` with status ``completed`` and only then."""
        ...

    async def list_check_runs(self, repository: str, commit: str) -> tuple[ForgeCheckRun, ...]: ...

    async def merge(
        self, repository: str, number: int, *, person: Person, expected_head: str | None = None, message: str = ""
    ) -> ForgePullRequest:
        """Merges with a merge commit in ``person``'s name. Already merged: gives it as it is. Raises ForgeConflict when the head is not
        ``expected_head``, the pull request is closed, or the branches do not merge."""
        ...

    async def close(self, repository: str, number: int, *, closed_by: str, comment: str = "") -> ForgePullRequest:
        """Closes it without a merge. Closing twice changes nothing; a merged one raises ForgeConflict."""
        ...
