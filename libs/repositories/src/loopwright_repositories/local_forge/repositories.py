"""The forge's bare repositories on disk: made, imported from a source, and followed by fast-forward."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from loopwright_common.clock import Clock

from loopwright_repositories.checkout import Checkout
from loopwright_repositories.errors import RepositoryRefused
from loopwright_repositories.forges.port import ForgeRepository, SyncedBranch
from loopwright_repositories.git import GitFailed, run_git
from loopwright_repositories.local_forge.problems import Problem
from loopwright_repositories.local_forge.store import ForgeStore
from loopwright_repositories.names import branch_name, remote_url

ZERO = "0" * 40
BRANCHES_FOLLOWED_MAX = 2_000
_UPDATE_HOOK = """#!/bin/sh
# Run by git receive-pack for each pushed ref: ref, old commit, new commit. What the token may do is in the environment.
ref=$1 old=$2 new=$3
case $ref in
    refs/heads/*|refs/tags/*) ;;
    *) echo "loopwright forge: only branches and tags can be pushed, not $ref" >&2; exit 1 ;;
esac
[ "$LOOPWRIGHT_FORGE_ACCESS" = MERGE ] && allowed=1 || allowed=
existed=1; case $old in *[!0]*) ;; *) existed= ;; esac
deleted=1; case $new in *[!0]*) deleted= ;; esac
case $ref in
    refs/tags/*)
        if [ "$existed" ] && [ ! "$allowed" ]; then
            echo "loopwright forge: $ref is there already; moving a tag needs a token with the merge scope" >&2; exit 1
        fi ;;
esac
if [ "$ref" = "$LOOPWRIGHT_FORGE_PROTECTED" ]; then
    if [ ! "$allowed" ]; then
        echo "loopwright forge: $ref is protected: open a pull request (or use a token with the merge scope)" >&2; exit 1
    fi
    if [ "$deleted" ]; then
        echo "loopwright forge: the default branch cannot be deleted" >&2; exit 1
    fi
    if [ "$existed" ] && ! git merge-base --is-ancestor "$old" "$new"; then
        echo "loopwright forge: $ref moves only forward; what you push does not contain $old" >&2; exit 1
    fi
fi
exit 0
"""


@dataclass
class ForgeRepositories:
    """Owns ``data/repositories``. Changes to one repository take turns; git's own pushes are kept apart by its ref locks."""

    data: Path
    base_url: str
    store: ForgeStore
    clock: Clock
    git_timeout: timedelta
    _locks: dict[str, asyncio.Lock] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        return self.data / "repositories"

    @property
    def hooks(self) -> Path:
        return self.data / "hooks"

    def prepare(self) -> None:
        """Makes the folders and the push hook; removes what a killed import left."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.hooks.mkdir(parents=True, exist_ok=True)
        hook = self.hooks / "update"
        hook.write_text(_UPDATE_HOOK)
        hook.chmod(0o755)
        for leftover in self.root.glob("*.importing"):
            shutil.rmtree(leftover, ignore_errors=True)
        for lock in self.root.glob("*.git/**/*.lock"):
            with contextlib.suppress(OSError):
                lock.unlink()

    def lock(self, name: str) -> asyncio.Lock:
        """Held around anything that reads refs and then acts on them."""
        return self._locks.setdefault(name, asyncio.Lock())

    def directory(self, name: str) -> Path:
        return self.root / f"{name}.git"

    async def known(self, name: str) -> dict[str, Any]:
        """The repository's record. Raises Problem 404."""
        found = await asyncio.to_thread(self.store.repository, name)
        if found is None:
            raise Problem(404, f"there is no repository {name[:80]!r} here")
        return found

    async def checkout(self, name: str) -> Checkout:
        """The repository's questions. Raises Problem 404."""
        await self.known(name)
        return Checkout(self.directory(name), name)

    async def describe(self, name: str) -> ForgeRepository:
        """The repository as the API gives it. Raises Problem 404."""
        record = await self.known(name)
        head = await self.tip(name, record["default_branch"])
        return ForgeRepository(
            name=name, default_branch=record["default_branch"], clone_url=f"{self.base_url}/git/{name}.git",
            web_url=f"{self.base_url}/repos/{name}", source=record["source"], head_commit=head,
        )  # fmt: skip

    async def ensure(self, name: str, source: str, default_branch: str) -> tuple[ForgeRepository, bool]:
        """The repository, made (and imported) when it is not there, and whether it was. Raises Problem 409 when it has another source."""
        branch_name(default_branch)
        if source:
            remote_url(source)
        async with self.lock(name):
            record = await asyncio.to_thread(self.store.repository, name)
            if record is not None:
                if source and source != record["source"]:
                    raise Problem(409, f"repository {name} follows {record['source'] or 'no source'}, not {source}; use another name")
                return await self.describe(name), False
            await self._make(name, source, default_branch)
            await asyncio.to_thread(self.store.add_repository, name, default_branch, source, self.clock.now())
        return await self.describe(name), True

    async def _make(self, name: str, source: str, default_branch: str) -> None:
        directory = self.directory(name)
        importing = self.root / f"{name}.importing"
        await asyncio.to_thread(shutil.rmtree, importing, ignore_errors=True)
        await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)  # no record: an import that a crash cut short
        await run_git(["init", "--quiet", "--bare", f"--initial-branch={default_branch}", str(importing)])
        if source:
            await self._fetch(importing, source)
            branches = await _refs(importing, "refs/sources/heads/")
            if default_branch not in branches:
                names = ", ".join(sorted(branches)[:10]) or "none"
                raise Problem(422, f"{source} has no branch {default_branch}; it has: {names}. Set default_branch")
            await _follow(importing)
        await asyncio.to_thread(importing.rename, directory)

    async def sync(self, name: str) -> tuple[SyncedBranch, ...]:
        """Follows the source: branches advance by fast-forward or are left as they are; tags that are missing are added."""
        record = await self.known(name)
        if not record["source"]:
            return ()
        async with self.lock(name):
            await self._fetch(self.directory(name), record["source"])
            return tuple(await _follow(self.directory(name)))

    async def _fetch(self, directory: Path, source: str) -> None:
        try:
            await run_git(
                ["fetch", "--quiet", "--prune", "--no-tags", "--no-write-fetch-head", "--end-of-options", remote_url(source),
                 "+refs/heads/*:refs/sources/heads/*", "+refs/tags/*:refs/sources/tags/*"],
                git_dir=directory, timeout=self.git_timeout,
            )  # fmt: skip
        except GitFailed as error:
            raise RepositoryRefused(f"{source} cannot be imported: {error}") from error

    async def tip(self, name: str, branch: str) -> str | None:
        """The commit a branch points to, None when there is no such branch."""
        return await tip(self.directory(name), f"refs/heads/{branch}")


async def tip(directory: Path, ref: str) -> str | None:
    """The commit of a full ref name, None when it does not exist."""
    said = await run_git(
        ["rev-parse", "--verify", "--quiet", "--end-of-options", ref + "^{commit}"], git_dir=directory, expected=(0, 1, 128)
    )
    return said.text.split()[-1] if said.exit_code == 0 and said.text.strip() else None


async def _refs(directory: Path, prefix: str) -> dict[str, str]:
    said = await run_git(["for-each-ref", "--format=%(objectname) %(refname)", prefix], git_dir=directory)
    pairs = [line.split(" ", 1) for line in said.text.splitlines()]
    if len(pairs) > BRANCHES_FOLLOWED_MAX:
        raise Problem(422, f"the source has {len(pairs)} branches or tags; {BRANCHES_FOLLOWED_MAX} are followed at most")
    return {name.removeprefix(prefix): commit for commit, name in pairs}


async def _follow(directory: Path) -> list[SyncedBranch]:
    theirs, ours = await _refs(directory, "refs/sources/heads/"), await _refs(directory, "refs/heads/")
    synced, updates = [], []
    for branch, commit in sorted(theirs.items()):
        current = ours.get(branch)
        if current is None:
            updates.append(f"create refs/heads/{branch} {commit}\n")
            synced.append(SyncedBranch(branch=branch, outcome="created", commit=commit))
        elif current == commit:
            synced.append(SyncedBranch(branch=branch, outcome="unchanged", commit=commit))
        elif await _contains(directory, commit, current):
            updates.append(f"update refs/heads/{branch} {commit} {current}\n")
            synced.append(SyncedBranch(branch=branch, outcome="advanced", commit=commit, detail=f"from {current[:12]}"))
        elif await _contains(directory, current, commit):
            detail = f"the forge has commits that the source lacks, up to {current[:12]}: pull them into the source"
            synced.append(SyncedBranch(branch=branch, outcome="ahead", commit=current, detail=detail))
        else:
            detail = (
                f"source {commit[:12]} and forge {current[:12]} went different ways: merge the forge's branch into the source, then sync"
            )
            synced.append(SyncedBranch(branch=branch, outcome="diverged", commit=current, detail=detail))
    known_tags = await _refs(directory, "refs/tags/")
    for tag, target in sorted((await _refs(directory, "refs/sources/tags/")).items()):
        if tag not in known_tags:
            updates.append(f"create refs/tags/{tag} {target}\n")
    if updates:
        # One transaction with the old values named: a push in between makes it fail whole, and the next sync sees the new state.
        await run_git(["update-ref", "--stdin"], git_dir=directory, stdin="".join(updates).encode())
    return synced


async def _contains(directory: Path, commit: str, ancestor: str) -> bool:
    said = await run_git(["merge-base", "--is-ancestor", ancestor, commit], git_dir=directory, expected=(0, 1))
    return said.exit_code == 0
