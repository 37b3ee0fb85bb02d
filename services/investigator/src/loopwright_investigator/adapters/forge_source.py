"""Where repositories come from when a forge holds them: its copy, brought up to its source first."""

from __future__ import annotations

import structlog
from loopwright_common.contracts.configuration import RepositoryConfig
from loopwright_common.errors import Unavailable
from loopwright_repositories.checkouts import RemoteRepository
from loopwright_repositories.errors import ForgeNotFound, ForgeRefused
from loopwright_repositories.forges.port import Forge

log = structlog.get_logger()


class ForgeSource:
    """The forge's clone URL. A release that was just pushed to the source is there too, because the forge is asked to follow it first."""

    def __init__(self, forge: Forge) -> None:
        self._forge = forge

    async def remote(self, repository: RepositoryConfig) -> RemoteRepository:
        try:
            await self._forge.sync_repository(repository.name)
        except ForgeNotFound:
            await self._make(repository)
        except ForgeRefused as error:
            # A source that moved apart from the forge: what the forge has is still what changes are made against.
            log.info("forge_not_synced", repository=repository.name, reason=str(error)[:300])
        return RemoteRepository(repository.name, self._forge.clone_url(repository.name), self._forge.credential, repository.default_branch)

    async def _make(self, repository: RepositoryConfig) -> None:
        try:
            await self._forge.ensure_repository(repository.name, source=repository.source, default_branch=repository.default_branch)
        except ForgeRefused as error:
            # A token that may only read, as it should be: pr-agent, which may write, makes the repository from the same configuration.
            raise Unavailable(f"the forge does not have the repository {repository.name} yet: {str(error)[:300]}") from error
