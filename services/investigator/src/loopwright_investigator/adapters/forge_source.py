"""Where repositories come from when a forge holds them: its copy, brought up to its source first where the token allows that."""

from __future__ import annotations

import structlog
from loopwright_common.contracts.configuration import RepositoryConfig
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
            try:
                await self._forge.sync_repository(repository.name)
            except ForgeNotFound:
                await self._forge.ensure_repository(repository.name, source=repository.source, default_branch=repository.default_branch)
        except ForgeRefused as error:
            # A token that may only read, or a source that moved apart: what the forge has is still the truth about what is deployed.
            log.info("forge_not_synced", repository=repository.name, reason=str(error)[:300])
        return RemoteRepository(repository.name, self._forge.clone_url(repository.name), self._forge.credential, repository.default_branch)
