"""The forge as it looks: pull requests and their checks, with a token that can only read."""

from __future__ import annotations

from collections.abc import Sequence

from loopwright_common.contracts.changes import CheckRun, PullRequest
from loopwright_repositories.forges.port import Forge, ForgeCheckRun, ForgePullRequest

from loopwright_pr_agent.ports import PullRequestSeen


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


class ForgeReader:
    """The ForgeView over a Forge client."""

    def __init__(self, forge: Forge) -> None:
        self._forge = forge

    async def look(self, repository: str, number: int) -> PullRequestSeen:
        pull = await self._forge.get_pull_request(repository, number)
        return seen_of(pull, await self._forge.list_check_runs(repository, pull.head_commit))
