"""History from mirrors of the forge's repositories, with a token that can only read."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from loopwright_common.contracts.signals import Deploy
from loopwright_repositories.checkout import Checkout
from loopwright_repositories.checkouts import Checkouts, RemoteRepository
from loopwright_repositories.errors import ForgeNotFound, ForgeRefused, HostileInput, RepositoryRefused, UnknownRevision
from loopwright_repositories.forges.port import SyncedBranch
from loopwright_repositories.git import GitCredential

from loopwright_measure.ports import Containment


class Source(Protocol):
    """The part of a Forge that is needed here."""

    @property
    def credential(self) -> GitCredential | None: ...

    def clone_url(self, repository: str) -> str: ...

    async def sync_repository(self, repository: str) -> tuple[SyncedBranch, ...]: ...


class GitHistory:
    """The History port over ``Checkouts``. Mirrors are kept below ``root``, which this process owns."""

    def __init__(self, root: Path, forge: Source) -> None:
        self._checkouts = Checkouts(root)
        self._forge = forge

    async def contains(self, repository: str, deploy: Deploy, commit: str) -> Containment:
        remote = RemoteRepository(repository, self._forge.clone_url(repository), self._forge.credential)
        try:
            found = await self._ask(await self._checkouts.open(remote), deploy, commit)
            if found.answer != "unknown":
                return found
            await self._catch_up(repository)
            return await self._ask(await self._checkouts.sync(remote), deploy, commit)
        except HostileInput as error:
            return Containment("unknown", str(error))
        except RepositoryRefused as error:
            # The forge says no to this token or does not have the repository: a person can mend either, so it is not "no".
            return Containment("unknown", f"{repository} cannot be read: {error}")

    async def _catch_up(self, repository: str) -> None:
        """A release that was made in a person's own repository may not have reached the forge's copy of it."""
        try:
            await self._forge.sync_repository(repository)
        except (ForgeRefused, ForgeNotFound):
            return  # what the forge has is asked as it is; the answer says what is missing there

    async def _ask(self, checkout: Checkout, deploy: Deploy, commit: str) -> Containment:
        try:
            deployed = await checkout.resolve(deploy.commit if deploy.commit is not None else deploy.release)
            if await checkout.is_ancestor(commit, deployed):
                return Containment("yes", f"{deployed[:12]} contains {commit[:12]}", deployed)
        except UnknownRevision as error:
            return Containment("unknown", str(error))
        return Containment("no", f"its commit {deployed[:12]} does not contain {commit[:12]}", deployed)
