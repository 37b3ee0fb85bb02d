"""Repositories as mirrors of the forge's, fetched with a token that can only read."""

from __future__ import annotations

from pathlib import Path

import structlog
from loopwright_common.contracts.configuration import RepositoryConfig
from loopwright_repositories.checkout import Checkout
from loopwright_repositories.checkouts import Checkouts, RemoteRepository
from loopwright_repositories.errors import ForgeNotFound, ForgeRefused
from loopwright_repositories.forges.port import Forge

from loopwright_pr_agent.ports import Publisher

log = structlog.get_logger()


class Mirrors:
    """The Repositories port. The forge is asked to follow its source first; a repository it lacks is made by the publisher."""

    def __init__(self, root: Path, forge: Forge, publisher: Publisher) -> None:
        self._checkouts = Checkouts(root)
        self._forge = forge
        self._publisher = publisher

    async def fresh(self, repository: RepositoryConfig) -> Checkout:
        try:
            await self._forge.sync_repository(repository.name)
        except ForgeNotFound:
            await self._publisher.ensure(repository)
        except ForgeRefused as error:
            # A source that moved apart from the forge: what the forge has is still what changes are made against.
            log.info("forge_not_synced", repository=repository.name, reason=str(error)[:300])
        url = self._forge.clone_url(repository.name)
        return await self._checkouts.sync(RemoteRepository(repository.name, url, self._forge.credential, repository.default_branch))
