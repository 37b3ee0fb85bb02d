"""The forge as it looks: pull requests and their checks, with a token that can only read."""

from __future__ import annotations

from loopwright_repositories.forges.port import Forge

from loopwright_pr_agent.ports import PullRequestSeen, seen_of


class ForgeReader:
    """The ForgeView over a Forge client."""

    def __init__(self, forge: Forge) -> None:
        self._forge = forge

    async def look(self, repository: str, number: int) -> PullRequestSeen:
        pull = await self._forge.get_pull_request(repository, number)
        return seen_of(pull, await self._forge.list_check_runs(repository, pull.head_commit))
