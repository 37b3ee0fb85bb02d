"""History from mirrors of the forge's repositories, with a token that can only read."""

from __future__ import annotations

from pathlib import Path

from loopwright_common.contracts.signals import Deploy
from loopwright_repositories.checkout import Checkout
from loopwright_repositories.checkouts import Checkouts, RemoteRepository
from loopwright_repositories.errors import ForgeNotFound, HostileInput, RepositoryRefused, UnknownRevision
from loopwright_repositories.git import GitCredential
from pydantic import SecretStr

from loopwright_measure.ports import Containment


class GitHistory:
    """The History port over ``Checkouts``. ``forge_url`` is the local forge; mirrors are kept below ``root``, which this process owns."""

    def __init__(self, root: Path, forge_url: str, token: SecretStr) -> None:
        self._checkouts = Checkouts(root)
        self._forge_url = forge_url.rstrip("/")
        self._credential = GitCredential(token) if token.get_secret_value() else None

    async def contains(self, repository: str, deploy: Deploy, commit: str) -> Containment:
        remote = RemoteRepository(repository, f"{self._forge_url}/git/{repository}.git", self._credential)
        try:
            found = await self._ask(await self._checkouts.open(remote), deploy, commit)
            if found.answer != "unknown":
                return found
            return await self._ask(await self._checkouts.sync(remote), deploy, commit)
        except (HostileInput, ForgeNotFound) as error:
            return Containment("unknown", str(error))
        except RepositoryRefused as error:
            # The forge says no to this token or does not have the repository: a person can mend either, so it is not "no".
            return Containment("unknown", f"{repository} cannot be read: {error}")

    async def _ask(self, checkout: Checkout, deploy: Deploy, commit: str) -> Containment:
        try:
            deployed = await checkout.resolve(deploy.commit if deploy.commit is not None else deploy.release)
            if await checkout.is_ancestor(commit, deployed):
                return Containment("yes", f"{deployed[:12]} contains {commit[:12]}", deployed)
        except UnknownRevision as error:
            return Containment("unknown", str(error))
        return Containment("no", f"its commit {deployed[:12]} does not contain {commit[:12]}", deployed)
