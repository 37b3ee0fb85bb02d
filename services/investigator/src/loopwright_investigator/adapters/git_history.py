"""``History`` and ``Repositories`` over the mirrors of ``loopwright_repositories``."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import structlog
from loopwright_common.contracts.configuration import RepositoryConfig
from loopwright_common.errors import NotFound, Permanent
from loopwright_repositories.checkout import Checkout
from loopwright_repositories.checkouts import Checkouts, RemoteRepository
from loopwright_repositories.codeowners import CodeOwners
from loopwright_repositories.diffs import FileDiff
from loopwright_repositories.errors import RepositoryRefused
from loopwright_repositories.git import GitCredential, GitFailed, run_git
from loopwright_repositories.history import BlamedLine, Commit
from loopwright_repositories.names import COMMIT, commit_sha

from loopwright_investigator.code import defined_names, is_source, kind_of, names_in, strip_comment
from loopwright_investigator.domain import RevertCheck
from loopwright_investigator.ports import History, Match

FILE_BYTES_MAX = 1024 * 1024  # a source file that a person wrote is smaller
NAMES_BYTES_MAX = 64 * 1024 * 1024  # half a million files
NAMES_CHECKED_MAX = 40  # names that a commit defined and that a revert would take away
_TREE = re.compile(r"^[0-9a-f]{40}(?:[0-9a-f]{24})?$")
_IDENTITY = {
    "GIT_AUTHOR_NAME": "loopwright",
    "GIT_AUTHOR_EMAIL": "loopwright@localhost",
    "GIT_AUTHOR_DATE": "2020-01-01T00:00:00+0000",
    "GIT_COMMITTER_NAME": "loopwright",
    "GIT_COMMITTER_EMAIL": "loopwright@localhost",
    "GIT_COMMITTER_DATE": "2020-01-01T00:00:00+0000",
}

log = structlog.get_logger()


@dataclass
class GitHistory:
    """A mirror's answers, remembered for the length of one investigation: all of them are of fixed commits."""

    checkout: Checkout
    main: str
    _files: dict[str, Sequence[str]] = field(default_factory=dict)
    _texts: dict[tuple[str, str], Sequence[str] | None] = field(default_factory=dict)
    _commits: dict[str, Commit | None] = field(default_factory=dict)
    _diffs: dict[tuple[str, str | None, tuple[str, ...]], Sequence[FileDiff]] = field(default_factory=dict)
    _owners: CodeOwners | None = None

    @property
    def name(self) -> str:
        return self.checkout.name

    async def resolve(self, revision: str) -> str | None:
        try:
            return await self.checkout.resolve(revision)
        except RepositoryRefused:
            return None

    async def is_ancestor(self, ancestor: str, descendant: str) -> bool:
        try:
            return await self.checkout.is_ancestor(ancestor, descendant)
        except RepositoryRefused:
            return False

    async def files(self, commit: str) -> Sequence[str]:
        if commit not in self._files:
            # Names only: sizes cost git a look at every object, and a large repository's list would pass the usual output limit.
            arguments = ["ls-tree", "-r", "-z", "--name-only", "--full-tree", commit_sha(commit)]
            try:
                said = await run_git(arguments, git_dir=self.checkout.directory, output_bytes_max=NAMES_BYTES_MAX)
                self._files[commit] = [name for name in said.text.split("\x00") if name]
            except RepositoryRefused as error:
                log.warning("files_unreadable", repository=self.name, commit=commit, error=str(error))
                self._files[commit] = ()
        return self._files[commit]

    async def text(self, path: str, commit: str) -> Sequence[str] | None:
        key = (path, commit)
        if key not in self._texts:
            try:
                content = await self.checkout.show_file(path, commit, FILE_BYTES_MAX)
                # Not splitlines: git counts lines by line feeds only, and so must every line number here.
                self._texts[key] = None if b"\x00" in content else content.decode("utf-8", "replace").removesuffix("\n").split("\n")
            except RepositoryRefused:
                self._texts[key] = None
        return self._texts[key]

    async def blame(self, path: str, commit: str, start: int, end: int) -> Sequence[BlamedLine]:
        try:
            return await self.checkout.blame(path, commit, start, end)
        except RepositoryRefused:
            return ()

    async def log(self, commit: str, *, not_in: str | None = None, path: str | None = None, limit: int = 100) -> Sequence[Commit]:
        found: Sequence[Commit] = ()
        for tried in (limit, max(1, limit // 10)):  # commits of thousands of files pass the output limit together, and seldom alone
            try:
                found = await self.checkout.log(commit, not_in=not_in, path=path, limit=tried)
                break
            except RepositoryRefused as error:
                log.warning("log_unreadable", repository=self.name, commit=commit, limit=tried, error=str(error))
        for each in found:
            self._commits[each.sha] = each
        return found

    async def commit(self, commit: str) -> Commit | None:
        if commit not in self._commits:
            try:
                self._commits[commit] = await self.checkout.commit(commit)
            except RepositoryRefused:
                self._commits[commit] = None
        return self._commits[commit]

    async def diff(self, commit: str, base: str | None = None, paths: Sequence[str] = ()) -> Sequence[FileDiff]:
        key = (commit, base, tuple(paths))
        if key not in self._diffs:
            try:
                self._diffs[key] = await self.checkout.diff(commit, base, paths)
            except RepositoryRefused as error:
                log.info("diff_unreadable", repository=self.name, commit=commit, error=str(error))
                self._diffs[key] = ()
        return self._diffs[key]

    async def owners(self, path: str) -> Sequence[str]:
        if self._owners is None:
            self._owners = await self.checkout.codeowners(self.main)
        return self._owners.of(path)

    async def grep(self, text: str, commit: str, *, word: bool = False, limit: int = 50) -> Sequence[Match]:
        if not COMMIT.match(commit) or not text or len(text) > 400 or any(ord(character) < 32 for character in text):
            return ()
        return await self._grep(self.checkout.directory, [text], commit, word=word, limit=limit)

    async def revert(self, commit: str, onto: str) -> RevertCheck:
        about = await self.commit(commit)
        if about is None:
            return RevertCheck(commit, onto, clean=False, reason="the commit is not in the repository")
        if not about.parents:
            return RevertCheck(commit, onto, clean=False, reason="it is the first commit: taking it back leaves nothing")
        try:
            if not await self.checkout.is_ancestor(commit, onto):
                return RevertCheck(commit, onto, clean=False, reason="the default branch does not contain it")
            async with _scratch(self.checkout.directory) as directory:
                return await self._revert(about, onto, directory)
        except RepositoryRefused as error:
            return RevertCheck(commit, onto, clean=False, reason=f"git could not try it: {str(error)[:300]}")

    async def _revert(self, about: Commit, onto: str, directory: Path) -> RevertCheck:
        # merge-tree takes the base from the history, so the two sides are given a history in which the suspect is the base: what git
        # revert does with three trees. (merge-tree --merge-base exists only since git 2.40.)
        ours = await self._commit_tree(directory, f"{onto}^{{tree}}", about.sha)
        theirs = await self._commit_tree(directory, f"{about.parents[0]}^{{tree}}", about.sha)
        said = await run_git(
            ["merge-tree", "--write-tree", "-z", "--name-only", "--no-messages", ours, theirs], git_dir=directory, expected=(0, 1)
        )
        tokens = [token for token in said.stdout.decode("utf-8", "replace").split("\x00") if token]
        if not tokens or not _TREE.match(tokens[0]):
            return RevertCheck(about.sha, onto, clean=False, reason="git could not try it")
        tree, conflicts = tokens[0], tuple(tokens[1:50])
        if said.exit_code != 0:
            return RevertCheck(about.sha, onto, clean=False, conflicts=conflicts, reason="later changes touch the same lines")
        reverted = await self._commit_tree(directory, tree, onto)
        changed = Checkout(directory, self.name)
        diffs = await changed.diff(reverted)
        if not diffs:
            return RevertCheck(about.sha, onto, clean=True, empty=True, reason="main no longer has anything of it")
        return RevertCheck(
            about.sha,
            onto,
            clean=True,
            files=tuple(each.path for each in diffs),
            changed_lines=sum(each.added + each.deleted for each in diffs),
            dangling=await self._dangling(changed, diffs, reverted),
        )

    async def _dangling(self, changed: Checkout, diffs: Sequence[FileDiff], reverted: str) -> tuple[tuple[str, str], ...]:
        """Names whose definition the revert takes away while other code still uses them: what was built on top."""
        gone: set[str] = set()
        back: set[str] = set()
        for each in diffs:
            if kind_of(each.path) == "test":
                continue
            gone |= defined_names((text.text for hunk in each.hunks for text in hunk.lines if text.kind == "deleted"), each.path)
            back |= defined_names((text.text for hunk in each.hunks for text in hunk.lines if text.kind == "added"), each.path)
        names = sorted(name for name in gone - back if len(name) > 2)[:NAMES_CHECKED_MAX]
        if not names:
            return ()
        found: list[tuple[str, str]] = []
        for hit in await self._grep(changed.directory, names, reverted, word=True, limit=400):
            code = strip_comment(hit.text, hit.path)
            if not is_source(hit.path) or not code:
                continue
            words = set(names_in(hit.text))
            found += [(name, hit.path) for name in names if name in words]
        defined_elsewhere = {
            name
            for name, path in found
            if any(name in defined_names([text], path) for text in await _lines(changed, path, reverted) if name in text)
        }
        return tuple(dict.fromkeys(pair for pair in found if pair[0] not in defined_elsewhere))[:20]

    @staticmethod
    async def _commit_tree(directory: Path, tree: str, parent: str) -> str:
        said = await run_git(["commit-tree", tree, "-p", parent, "-m", "trial"], git_dir=directory, environment=_IDENTITY)
        return said.text.strip()

    @staticmethod
    async def _grep(directory: Path, texts: Sequence[str], commit: str, *, word: bool, limit: int) -> list[Match]:
        arguments = ["grep", "-n", "-z", "-I", "-F", "--full-name", *(["-w"] if word else [])]
        for text in texts:
            arguments += ["-e", text]
        try:
            # Exit code 1 is "nothing found".
            said = await run_git([*arguments, commit, "--"], git_dir=directory, expected=(0, 1))
        except RepositoryRefused as error:
            log.info("grep_failed", error=str(error))
            return []
        found: list[Match] = []
        for record in said.text.split("\n"):
            parts = record.split("\x00", 2)  # <commit>:<path> NUL <line> NUL <text>
            if len(parts) == 3 and parts[1].isdigit():
                found.append(Match(parts[0].removeprefix(f"{commit}:"), int(parts[1]), parts[2][:400]))
            if len(found) >= limit:
                break
        return found


async def _lines(checkout: Checkout, path: str, commit: str) -> list[str]:
    try:
        return (await checkout.show_file(path, commit, FILE_BYTES_MAX)).decode("utf-8", "replace").split("\n")
    except RepositoryRefused:
        return []


class _scratch:
    """A temporary repository that borrows a mirror's objects: trials leave nothing behind in the mirror."""

    def __init__(self, mirror: Path) -> None:
        self._mirror = mirror

    async def __aenter__(self) -> Path:
        self._temporary = tempfile.TemporaryDirectory(prefix="loopwright-trial-")
        directory = Path(self._temporary.name) / "trial.git"
        await run_git(["init", "--quiet", "--bare", str(directory)])
        (directory / "objects" / "info" / "alternates").write_text(f"{self._mirror.absolute()}/objects\n")
        return directory

    async def __aexit__(self, *_: object) -> None:
        self._temporary.cleanup()


class Source(Protocol):
    """Says where a configured repository is fetched from, after making it there if the forge has to."""

    async def remote(self, repository: RepositoryConfig) -> RemoteRepository: ...


class PlainSource:
    """Fetches from the configuration's ``source`` itself: for use without a forge."""

    def __init__(self, credential: GitCredential | None = None) -> None:
        self._credential = credential

    async def remote(self, repository: RepositoryConfig) -> RemoteRepository:
        if not repository.source:
            raise Permanent(f"the repository {repository.name} has no source to fetch from; give one with loopwright apply")
        return RemoteRepository(repository.name, repository.source, self._credential, repository.default_branch)


@dataclass
class MirroredRepositories:
    """Mirrors under a folder of this service's own."""

    checkouts: Checkouts
    source: Source

    async def open(self, repository: RepositoryConfig, main: str | None = None) -> History:
        remote = await self.source.remote(repository)
        checkout = await self.checkouts.sync(remote)
        try:
            head = await checkout.resolve(main or "HEAD")
        except GitFailed as error:
            raise Permanent(f"the repository {repository.name} cannot be read: {error}") from error
        except NotFound as error:
            raise Permanent(
                f"the repository {repository.name} has no branch {repository.default_branch}; set default_branch to the deployed one"
            ) from error
        return GitHistory(checkout, head)
