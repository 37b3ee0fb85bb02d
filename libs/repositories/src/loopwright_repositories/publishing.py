"""From a diff to a pushed branch, without ever writing the repository's files to disk.

The tree is made in an index of its own in a temporary repository that borrows the mirror's objects, so a hostile tree (links, odd names,
attributes) has nothing to act on. The same base, diff, message, person and time give the same commit: a repeat pushes nothing new.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from loopwright_repositories.checkout import Checkout
from loopwright_repositories.errors import RepositoryRefused
from loopwright_repositories.forges.port import Person
from loopwright_repositories.git import GitCredential, GitFailed, run_git
from loopwright_repositories.history import parse_numstat
from loopwright_repositories.names import branch_name, commit_sha, remote_url

BRANCH = "loopwright-publish"  # within the temporary repository only
MADE_BYTES_MAX = 4 * 1024 * 1024  # of the diff that is judged: what the diffs of other modules may be
# Newer versions of git take attributes from HEAD in a bare repository, and a file could so call itself binary and its lines unseen.
NO_ATTRIBUTES = ("-c", "attr.tree=")


class DiffDoesNotApply(RepositoryRefused):
    """The diff does not fit the base it is said to be for."""


class BranchMoved(RepositoryRefused):
    """The branch on the remote is not where the caller expected it: somebody else pushed."""


@dataclass(frozen=True)
class ChangedPath:
    """A path that differs between two trees; a rename is two. Modes as git writes them, ``000000`` where the path is not there."""

    path: str
    old_mode: str
    new_mode: str


@dataclass(frozen=True)
class MadeCommit:
    """What git made of a diff, which is what will be pushed: the paths that differ from the parent, and the diff that git writes of it."""

    commit: str
    paths: tuple[ChangedPath, ...]
    diff: str


Judge = Callable[[MadeCommit], None]  # raises RepositoryRefused for what may not be pushed


async def push_diff(
    checkout: Checkout,
    *,
    base: str,
    diff: str,
    message: str,
    person: Person,
    at: datetime,
    url: str,
    branch: str,
    credential: GitCredential | None,
    expected: str | None = None,
    judge: Judge | None = None,
) -> str:
    """Commits ``diff`` on ``base`` as ``person`` and pushes it as ``branch``; gives the commit.

    ``judge`` looks at the commit before anything is pushed, since a diff's text and what git makes of it may say different things; what it
    raises is passed on. ``expected`` is the commit that the remote branch has now (None: it does not exist), so that nobody's push is
    overwritten; a branch that already is the new commit is fine. Raises DiffDoesNotApply, BranchMoved, RepositoryUnavailable, GitFailed
    (the remote said no).
    """
    parent, target = await checkout.resolve(base), branch_name(branch)
    async with checkout.borrowed(parent, BRANCH) as directory:
        commit = await _commit(directory, parent, diff, message, person, at)
        if judge is not None:
            judge(await _made(directory, parent, commit))
        remote = remote_url(url)
        lease = f"--force-with-lease=refs/heads/{target}:{expected or ''}"
        push = ["push", "--quiet", lease, "--end-of-options", remote, f"{commit}:refs/heads/{target}"]
        try:
            await run_git(push, git_dir=directory, credential=(credential, remote) if credential is not None else None)
        except GitFailed as error:
            if "stale info" not in error.stderr:
                raise
            if await _tip(directory, remote, target, credential) != commit:
                raise BranchMoved(f"{target} is not at {(expected or 'nothing')[:12]} any more: look at who pushed to it") from error
    return commit


async def _made(directory: Path, parent: str, commit: str) -> MadeCommit:
    listed = await run_git(["diff-tree", "-r", "-z", "--no-renames", parent, commit], git_dir=directory)
    tokens = listed.stdout.decode("utf-8", "surrogateescape").split("\x00")
    paths = []
    for header, path in zip(tokens[0::2], tokens[1::2], strict=False):
        old_mode, new_mode = header.removeprefix(":").split(" ")[:2]
        paths.append(ChangedPath(path, old_mode, new_mode))
    written = await run_git(
        [*NO_ATTRIBUTES, "diff-tree", "-r", "-p", "-M", "--no-ext-diff", "--no-textconv", "--full-index", parent, commit],
        git_dir=directory,
        output_bytes_max=MADE_BYTES_MAX,
    )
    return MadeCommit(commit, tuple(paths), written.stdout.decode("utf-8", "replace"))


async def _commit(directory: Path, parent: str, diff: str, message: str, person: Person, at: datetime) -> str:
    stamp = at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S+00:00")
    environment = {f"GIT_{role}_{part}": value for role in ("AUTHOR", "COMMITTER")
                   for part, value in (("NAME", person.name), ("EMAIL", person.email), ("DATE", stamp))}  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="loopwright-index-") as temporary:
        environment["GIT_INDEX_FILE"] = f"{temporary}/index"
        await run_git(["read-tree", parent], git_dir=directory, environment=environment)
        patch = diff.encode() + (b"\n" if diff.endswith("\n") else b"\n\n")  # a binary patch ends with an empty line
        apply = ["apply", "--cached", "--whitespace=nowarn", "-"]
        try:
            said = await run_git(apply, git_dir=directory, stdin=patch, environment=environment)
            named = await run_git(["apply", "--numstat", "-z", "-"], git_dir=directory, stdin=patch)
        except GitFailed as error:
            raise DiffDoesNotApply(f"the diff does not apply to {parent[:12]}: {error.stderr[:500]}") from error
        if any(line.startswith("error:") for line in said.stderr.splitlines()):
            # git apply ends with 0 after leaving out a binary file whose part is cut short or corrupt.
            raise DiffDoesNotApply(f"the diff is damaged: {said.stderr[:500]}")
        tree = commit_sha((await run_git(["write-tree"], git_dir=directory, environment=environment)).text.strip())
    await _check_all_applied(directory, parent, tree, named.stdout)
    made = await run_git(
        ["commit-tree", tree, "-p", parent, "-F", "-"],
        git_dir=directory,
        stdin=message.replace("\x00", "").encode(),
        environment=environment,
    )
    return commit_sha(made.text.strip())


async def _check_all_applied(directory: Path, parent: str, tree: str, numstat: bytes) -> None:
    """Every file that the diff names must have changed."""
    changed = await run_git(["diff-tree", "-r", "-z", "--name-only", "--no-renames", parent, tree], git_dir=directory)
    done = set(changed.text.split("\x00"))
    named = {file.path for files in parse_numstat(f"{parent}\x00".encode() + numstat).values() for file in files}
    if missing := sorted(named - done):
        raise DiffDoesNotApply(f"the diff says it changes {', '.join(missing[:5])}, but applying it does not: is it cut short?")


async def _tip(directory: Path, remote: str, branch: str, credential: GitCredential | None) -> str | None:
    said = await run_git(
        ["ls-remote", "--end-of-options", remote, f"refs/heads/{branch}"],
        git_dir=directory,
        credential=(credential, remote) if credential is not None else None,
    )
    return said.text.split()[0] if said.text.strip() else None
