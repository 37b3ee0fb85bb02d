"""A bare mirror per repository, and what can be asked of it.

Each service keeps its mirrors under a root of its own, which no other process opens. Reads need no lock: objects and refs only ever
appear, and git replaces a ref by an atomic rename.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import shutil
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from loopwright_repositories.checkout import Checkout
from loopwright_repositories.errors import RepositoryUnavailable
from loopwright_repositories.git import GitCredential, run_git
from loopwright_repositories.names import branch_name, remote_url

FETCH_TIMEOUT = timedelta(minutes=10)  # the first fetch of a large repository over a slow line
_REFSPECS = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
_SLUG = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True)
class RemoteRepository:
    """Where a repository is fetched from. ``credential`` goes to the URL's host only."""

    name: str
    url: str
    credential: GitCredential | None = None
    default_branch: str = ""  # empty: what the remote's HEAD names

    @property
    def folder(self) -> str:
        """The mirror's folder name: readable, and different for different URLs."""
        slug = _SLUG.sub("-", self.name.lower()).strip("-")[:48] or "repository"
        return f"{slug}-{hashlib.sha256(self.url.encode()).hexdigest()[:12]}.git"


@dataclass
class Checkouts:
    """The mirrors below ``root``. One process owns a root; within it, calls for one repository take turns."""

    root: Path
    fetch_timeout: timedelta = FETCH_TIMEOUT
    _locks: dict[str, asyncio.Lock] = field(default_factory=dict)
    _tidied: set[str] = field(default_factory=set)

    async def sync(self, repository: RemoteRepository) -> Checkout:
        """Fetches all branches and tags, and gives the mirror as it now is.

        Branches and tags that the remote no longer has are removed here too. Raises RepositoryUnavailable when the remote does not answer
        within ``fetch_timeout``, HostileInput for a URL that is not fetched from, GitFailed when the remote refuses.
        """
        url = remote_url(repository.url)
        async with self._lock(repository):
            directory = await self._ensure(repository)
            credential = (repository.credential, url) if repository.credential is not None else None
            await run_git(
                ["fetch", "--quiet", "--prune", "--no-write-fetch-head", "--no-auto-maintenance", "--end-of-options", url, *_REFSPECS],
                git_dir=directory, credential=credential, timeout=self.fetch_timeout,
            )  # fmt: skip
            branch = repository.default_branch or await self._remote_head(directory, url, credential)
            if branch:
                await run_git(["symbolic-ref", "HEAD", f"refs/heads/{branch_name(branch)}"], git_dir=directory)
            await run_git(["gc", "--auto", "--quiet"], git_dir=directory, timeout=self.fetch_timeout)
            return Checkout(directory, repository.name)

    async def open(self, repository: RemoteRepository) -> Checkout:
        """The mirror as it was last fetched, or a first fetch when there is none yet. Raises as sync does."""
        directory = self.root / repository.folder
        if (directory / "HEAD").is_file() and repository.folder in self._tidied:
            return Checkout(directory, repository.name)
        return await self.sync(repository)

    async def forget(self, repository: RemoteRepository) -> None:
        """Removes the mirror from disk."""
        async with self._lock(repository):
            self._tidied.discard(repository.folder)
            await asyncio.to_thread(shutil.rmtree, self.root / repository.folder, ignore_errors=True)

    def _lock(self, repository: RemoteRepository) -> asyncio.Lock:
        return self._locks.setdefault(repository.folder, asyncio.Lock())

    async def _ensure(self, repository: RemoteRepository) -> Path:
        directory = self.root / repository.folder
        if not (directory / "HEAD").is_file():
            await asyncio.to_thread(directory.mkdir, parents=True, exist_ok=True)
            await run_git(["init", "--quiet", "--bare", str(directory)])
        if repository.folder not in self._tidied:
            # A process that was killed in mid-fetch leaves lock files, and nobody else writes here.
            await asyncio.to_thread(_remove_stale_locks, directory)
            self._tidied.add(repository.folder)
        return directory

    @staticmethod
    async def _remote_head(directory: Path, url: str, credential: tuple[GitCredential, str] | None) -> str:
        answer = await run_git(["ls-remote", "--symref", "--end-of-options", url, "HEAD"], git_dir=directory, credential=credential)
        for line in answer.text.splitlines():
            if line.startswith("ref: refs/heads/"):
                return line.removeprefix("ref: refs/heads/").partition("\t")[0]
        return ""  # a detached HEAD: the mirror keeps the branch it had


def _remove_stale_locks(directory: Path) -> None:
    for place in (directory, directory / "refs", directory / "objects" / "info"):
        pattern = "**/*.lock" if place.name == "refs" else "*.lock"
        for lock in place.glob(pattern):
            try:
                lock.unlink(missing_ok=True)
            except OSError as error:
                raise RepositoryUnavailable(f"{lock} is left from a killed process and cannot be removed: {error}") from error
    with contextlib.suppress(OSError):
        for leftover in (directory / "objects" / "pack").glob("tmp_*"):
            leftover.unlink(missing_ok=True)
