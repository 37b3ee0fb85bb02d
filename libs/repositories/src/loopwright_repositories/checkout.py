"""One mirror and the questions it answers. Everything named from outside (revisions, paths) is checked before git sees it."""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from loopwright_repositories.codeowners import PLACES, CodeOwners, parse_codeowners
from loopwright_repositories.diffs import FileDiff, parse_diff
from loopwright_repositories.errors import HostileInput, OutputTooLarge, RepositoryRefused, UnknownPath, UnknownRevision
from loopwright_repositories.git import GitFailed, absolute, run_git
from loopwright_repositories.history import (
    FILES_PER_COMMIT_MAX,
    BlamedLine,
    Commit,
    TreeFile,
    parse_batch,
    parse_blame,
    parse_commit,
    parse_numstat,
    parse_tree,
)
from loopwright_repositories.names import COMMIT, branch_name, commit_sha, repository_path, revision_name

COMMITS_MAX = 5_000
BLAME_LINES_MAX = 5_000
FILE_BYTES_MAX = 4 * 1024 * 1024  # source files are far smaller; a larger one is data
DIFF_BYTES_MAX = 4 * 1024 * 1024
OWNERS_BYTES_MAX = 3 * 1024 * 1024  # GitHub's own limit
_ABBREVIATED = re.compile(r"^[0-9a-f]{7,64}$")


def release_candidates(name: str) -> tuple[str, ...]:
    """What a release name may mean, likeliest first.

    ``shop@1.4.2+9f3c2aa`` (Sentry's package@version+build) may be that tag, ``1.4.2``, ``v1.4.2`` or the commit ``9f3c2aa``;
    ``shop-9f3c2aa`` and ``v1.4.2`` likewise.
    """
    found = [name]
    version = name.rsplit("@", 1)[-1]
    plain, _, build = version.partition("+")
    found += [version, plain, build]
    found += [part for part in (plain.rsplit("-", 1)[-1], plain.rsplit("_", 1)[-1]) if _ABBREVIATED.match(part)]
    for candidate in (version, plain):
        found.append(candidate.removeprefix("v") if candidate.startswith("v") else f"v{candidate}")
    return tuple(dict.fromkeys(candidate for candidate in found if candidate))


@dataclass(frozen=True)
class Checkout:
    """A bare repository on disk. Methods that take ``revision`` accept whatever ``resolve`` does."""

    directory: Path
    name: str

    async def resolve(self, revision: str) -> str:
        """The full commit id that a commit, tag, branch or release name stands for.

        In this order: a full commit id, a tag, an abbreviated commit id of at least seven digits, a branch; then the same for the parts of
        a release name (``release_candidates``). Raises UnknownRevision, HostileInput.
        """
        if COMMIT.match(revision):
            found = await self._verify(revision)
            if found is None:
                raise UnknownRevision(f"{self.name} has no commit {revision}")
            return found
        if revision == "HEAD":
            found = await self._verify("HEAD")
            if found is None:
                raise UnknownRevision(f"{self.name} has no commit yet on its default branch")
            return found
        revision_name(revision)
        for candidate in release_candidates(revision):
            places = [f"refs/tags/{candidate}"]
            if _ABBREVIATED.match(candidate):
                places.append(candidate)
            places.append(f"refs/heads/{candidate}")
            for place in places:
                found = await self._verify(place)
                # Without the prefix git would also take "abcdef1" for a branch of that name; only the commit is meant.
                if found is not None and (place.startswith("refs/") or found.startswith(candidate)):
                    return found
        raise UnknownRevision(f"{self.name} has no commit, tag or branch named {revision[:80]!r}; tag it, or send the commit")

    async def default_branch(self) -> str:
        """The branch that HEAD names."""
        said = await run_git(["symbolic-ref", "--short", "HEAD"], git_dir=self.directory)
        return said.text.strip()

    async def branches(self) -> dict[str, str]:
        """Branch name -> commit."""
        said = await run_git(["for-each-ref", "--format=%(objectname) %(refname:lstrip=2)", "refs/heads/"], git_dir=self.directory)
        return {name: sha for sha, _, name in (line.partition(" ") for line in said.text.splitlines())}

    async def is_ancestor(self, ancestor: str, descendant: str) -> bool:
        """Whether ``descendant`` contains ``ancestor`` (a commit contains itself)."""
        older, newer = await self.resolve(ancestor), await self.resolve(descendant)
        said = await run_git(["merge-base", "--is-ancestor", older, newer], git_dir=self.directory, expected=(0, 1))
        return said.exit_code == 0

    async def merge_base(self, one: str, other: str) -> str | None:
        """The best common ancestor, or None when the histories are unrelated."""
        first, second = await self.resolve(one), await self.resolve(other)
        said = await run_git(["merge-base", first, second], git_dir=self.directory, expected=(0, 1))
        return said.text.split("\n", 1)[0].strip() or None

    async def commit(self, revision: str) -> Commit:
        """One commit with its files."""
        return (await self._describe([await self.resolve(revision)]))[0]

    async def log(
        self,
        revision: str = "HEAD",
        *,
        path: str | None = None,
        not_in: str | None = None,
        limit: int = 100,
        first_parent: bool = False,
        with_files: bool = True,
    ) -> list[Commit]:
        """Commits reachable from ``revision`` and not from ``not_in``, newest first.

        ``path``: only those that touched this file (through its renames) or folder. Raises UnknownRevision, HostileInput.
        """
        _at_most(limit, COMMITS_MAX, "commits")
        arguments = ["log", "--format=%H", "--no-show-signature", f"--max-count={limit}"]
        if first_parent:
            arguments.append("--first-parent")
        if path is not None:
            repository_path(path)
            arguments.append("--follow" if await self._is_file(path, revision) else "--full-history")
            if arguments[-1] == "--full-history":
                arguments.append("--no-merges")
        arguments += ["--end-of-options", await self.resolve(revision)]
        if not_in is not None:
            arguments.append("^" + await self.resolve(not_in))
        arguments += ["--", *([path] if path is not None else [])]
        said = await run_git(arguments, git_dir=self.directory)
        return await self._describe(said.text.split(), with_files=with_files)

    async def blame(
        self, path: str, revision: str, start: int = 1, end: int | None = None, *, ignore_whitespace: bool = True, follow_moves: bool = True
    ) -> list[BlamedLine]:
        """Who last wrote each line from ``start`` to ``end`` (from 1, both included) of a file at a revision.

        ``follow_moves`` sees through lines moved within the file or from another file of the same commit (``-M -C``). Lines past the
        end of the file are left out. Raises UnknownPath, UnknownRevision, HostileInput.
        """
        commit = await self.resolve(revision)
        entry = await self._entry(path, commit)
        if entry.mode.startswith("12") or entry.size_bytes is None:
            raise UnknownPath(f"{path[:200]} is not a plain file at {commit[:12]}")
        if start < 1 or (end is not None and end < start):
            raise HostileInput(f"lines {start} to {end} are not a range")
        last = start + BLAME_LINES_MAX - 1 if end is None else end
        _at_most(last - start + 1, BLAME_LINES_MAX, "lines to blame")
        arguments = ["blame", "--porcelain", f"-L{start},{last}"]
        arguments += ["-w"] if ignore_whitespace else []
        arguments += ["-M", "-C"] if follow_moves else []
        try:
            said = await run_git([*arguments, commit, "--", path], git_dir=self.directory)
        except GitFailed as error:
            if "has only" in error.stderr:
                return []
            raise
        return parse_blame(said.text)

    async def show_file(self, path: str, revision: str, bytes_max: int = FILE_BYTES_MAX) -> bytes:
        """A file's content at a revision. Raises UnknownPath (also for links and submodules), OutputTooLarge."""
        commit = await self.resolve(revision)
        entry = await self._entry(path, commit)
        if entry.size_bytes is None or entry.mode == "120000":
            raise UnknownPath(f"{path[:200]} is not a plain file at {commit[:12]}")
        if entry.size_bytes > bytes_max:
            raise OutputTooLarge(f"{path[:200]} is {entry.size_bytes} bytes; the limit is {bytes_max}")
        return (await run_git(["cat-file", "blob", entry.object_id], git_dir=self.directory, output_bytes_max=bytes_max + 1)).stdout

    async def list_files(self, revision: str = "HEAD", under: str | None = None) -> list[TreeFile]:
        """Every file at a revision, or those under a folder."""
        commit = await self.resolve(revision)
        paths = [repository_path(under).rstrip("/") + "/"] if under is not None else []
        said = await run_git(["ls-tree", "-r", "-z", "-l", "--full-tree", commit, "--", *paths], git_dir=self.directory)
        return parse_tree(said.stdout)

    async def raw_diff(
        self, commit: str, base: str | None = None, paths: Iterable[str] = (), *, binary: bool = True, bytes_max: int = DIFF_BYTES_MAX
    ) -> str:
        """The unified diff of a commit against ``base``, by default its first parent (or nothing, for a root commit).

        ``binary``: with the content of binary files, as ``git apply`` needs it; otherwise they are only named.
        """
        newer = await self.resolve(commit)
        wanted = [repository_path(path) for path in paths]
        arguments = ["diff-tree", "-p", "-M", "--no-ext-diff", "--no-textconv", "--full-index", *(["--binary"] if binary else [])]
        if base is not None:
            arguments += [await self.resolve(base), newer]
        else:
            arguments += ["--root", "--no-commit-id", "--diff-merges=first-parent", newer]
        said = await run_git([*arguments, "--", *wanted], git_dir=self.directory, output_bytes_max=bytes_max)
        return said.text

    async def diff(self, commit: str, base: str | None = None, paths: Iterable[str] = ()) -> tuple[FileDiff, ...]:
        """The same as files and hunks."""
        return parse_diff(await self.raw_diff(commit, base, paths, binary=False))

    async def codeowners(self, revision: str = "HEAD") -> CodeOwners:
        """The owners the repository names at a revision; without a CODEOWNERS file nobody owns anything."""
        for place in PLACES:
            try:
                content = await self.show_file(place, revision, OWNERS_BYTES_MAX)
            except UnknownPath:
                continue
            return parse_codeowners(content.decode("utf-8", "replace"), place)
        return CodeOwners()

    async def bundle(self, revision: str, path: Path, branch: str = "main") -> str:
        """Writes a git bundle of the whole history of ``revision``; gives its commit.

        ``git clone <path>`` of it has the commit checked out on ``branch`` and nothing else of the repository: no other branch, no remote.
        """
        commit = await self.resolve(revision)
        branch_name(branch)
        async with self.borrowed(commit, branch) as directory:
            await run_git(["bundle", "create", "--quiet", absolute(path), "HEAD", f"refs/heads/{branch}"], git_dir=directory)
        return commit

    async def export(self, revision: str, target: Path) -> str:
        """Writes the files of a revision below ``target``, which must be empty or absent; gives its commit.

        Unlike ``git archive`` it leaves nothing out for ``export-ignore``. Submodules are empty folders.
        """
        commit = await self.resolve(revision)
        await asyncio.to_thread(_make_empty, target)
        with tempfile.TemporaryDirectory(prefix="loopwright-index-") as temporary:
            environment = {"GIT_INDEX_FILE": f"{temporary}/index", "GIT_WORK_TREE": absolute(target)}
            await run_git(["read-tree", commit], git_dir=self.directory, cwd=target, environment=environment)
            await run_git(["checkout-index", "--all", "--quiet"], git_dir=self.directory, cwd=target, environment=environment)
        return commit

    @asynccontextmanager
    async def borrowed(self, commit: str, branch: str) -> AsyncIterator[Path]:
        """A temporary repository that borrows this one's objects and has one branch."""
        with tempfile.TemporaryDirectory(prefix="loopwright-bundle-") as temporary:
            directory = Path(temporary) / "borrowed.git"
            await run_git(["init", "--quiet", "--bare", str(directory)])
            (directory / "objects" / "info" / "alternates").write_text(f"{self.directory.absolute()}/objects\n")
            await run_git(["update-ref", f"refs/heads/{branch}", commit], git_dir=directory)
            await run_git(["symbolic-ref", "HEAD", f"refs/heads/{branch}"], git_dir=directory)
            yield directory

    async def _verify(self, revision: str) -> str | None:
        said = await run_git(
            ["rev-parse", "--verify", "--quiet", "--end-of-options", revision + "^{commit}"], git_dir=self.directory, expected=(0, 1, 128)
        )
        lines = [line for line in said.text.split() if COMMIT.match(line)]
        return lines[-1] if said.exit_code == 0 and lines else None

    async def _entry(self, path: str, commit: str) -> TreeFile:
        wanted = repository_path(path)
        said = await run_git(["ls-tree", "-z", "-l", "--full-tree", commit_sha(commit), "--", wanted], git_dir=self.directory)
        for entry in parse_tree(said.stdout):
            if entry.path == wanted and entry.mode != "040000":
                return entry
        raise UnknownPath(f"{self.name} has no file {path[:200]} at {commit[:12]}")

    async def _is_file(self, path: str, revision: str) -> bool:
        try:
            await self._entry(path, await self.resolve(revision))
        except UnknownPath:
            return False
        return True

    async def _describe(self, commits: list[str], with_files: bool = True) -> list[Commit]:
        if not commits:
            return []
        names = "".join(f"{commit_sha(commit)}\n" for commit in commits).encode()
        objects = await run_git(["cat-file", "--batch"], git_dir=self.directory, stdin=names)
        described = [parse_commit(sha, raw) for sha, raw in parse_batch(objects.stdout)]
        if not with_files:
            return described
        counting = ["diff-tree", "--stdin", "-z", "--numstat", "-r", "-M", "--root", "--diff-merges=first-parent"]
        said = await run_git(counting, git_dir=self.directory, stdin=names)
        files = parse_numstat(said.stdout)
        return [
            replace(
                commit,
                files=tuple(files.get(commit.sha, ())[:FILES_PER_COMMIT_MAX]),
                files_truncated=len(files.get(commit.sha, ())) > FILES_PER_COMMIT_MAX,
            )
            for commit in described
        ]


def _make_empty(target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    if any(target.iterdir()):
        raise RepositoryRefused(f"{target} is not empty; files are exported into an empty folder")


def _at_most(value: int, limit: int, what: str) -> None:
    if not 1 <= value <= limit:
        raise RepositoryRefused(f"{value} {what} asked for; 1 to {limit} are given at once")
