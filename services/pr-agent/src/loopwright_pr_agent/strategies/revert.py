"""The change that needs no judgement: undo the commit that the investigation suspects most."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path

from loopwright_common.contracts.changes import ChangeRequested
from loopwright_repositories.checkout import Checkout
from loopwright_repositories.errors import OutputTooLarge, UnknownRevision
from loopwright_repositories.git import run_git

from loopwright_pr_agent.domain import NoSafeChange, Proposal, shorten

DIFF_BYTES_MAX = 4 * 1024 * 1024  # above any policy: the policy says the figure
IDENTITY = {
    f"GIT_{role}_{part}": value
    for role in ("AUTHOR", "COMMITTER")
    for part, value in (("NAME", "Loopwright"), ("EMAIL", "loopwright@localhost"))
}


class Revert:
    """Reverts ``investigation.suspects[0]`` on the tip of the base branch, as ``git revert --no-commit`` does."""

    name = "revert"

    async def propose(self, request: ChangeRequested, checkout: Checkout, base_commit: str) -> Proposal:
        investigation = request.investigation
        if request.feedback:
            raise NoSafeChange(
                f"A reviewer asked for something else than the revert ({shorten(request.feedback[-1], 300)}), and a revert is all that "
                "can be made without a coding model.",
                "Could somebody make this change by hand, or set up a model for the coding role?",
            )
        if not investigation.suspects:
            raise NoSafeChange(
                "The investigation names no suspect commit, so there is nothing to revert.", "Which commit or release first showed this?"
            )
        suspect = investigation.suspects[0]
        is_merge = await self._revertible(checkout, suspect.commit, base_commit)
        diff = await _revert(checkout, base_commit, suspect.commit, is_merge)
        reasons = "; ".join(suspect.reasons[:4])
        return Proposal(
            strategy=self.name,
            title=f'Revert "{shorten(suspect.title, 120)}"',
            why=f"Commit {suspect.commit[:12]} is the most likely cause (score {suspect.score:.2f}): {reasons}. "
            "This undoes it and nothing else.",
            diff=diff,
            base_commit=base_commit,
            reverts=suspect.commit,
        )

    @staticmethod
    async def _revertible(checkout: Checkout, suspect: str, base: str) -> bool:
        """Whether it is a merge. Raises NoSafeChange for a commit that is not there, not on the base branch, or has nothing before it."""
        short = suspect[:12]
        try:
            commit = await checkout.commit(suspect)
        except UnknownRevision as error:
            raise NoSafeChange(
                f"The suspect commit {short} is not in the repository {checkout.name}.", "Has it been pushed to the forge?"
            ) from error
        if not await checkout.is_ancestor(suspect, base):
            raise NoSafeChange(
                f"The suspect commit {short} is not on the base branch.",
                "Which branch is the affected release made from, and is it pushed?",
            )
        if not commit.parents:
            raise NoSafeChange(
                f"The suspect commit {short} is the repository's first; there is nothing to go back to.", "What should be done instead?"
            )
        return len(commit.parents) > 1


async def _revert(checkout: Checkout, base: str, suspect: str, is_merge: bool) -> str:
    """The diff that undoes ``suspect`` on ``base``. Raises NoSafeChange naming the files in conflict."""
    temporary = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="loopwright-revert-"))
    try:
        async with checkout.borrowed(base, "main") as directory:
            tree = temporary / "files"
            await asyncio.to_thread(tree.mkdir)
            environment = {"GIT_INDEX_FILE": str(temporary / "index"), "GIT_WORK_TREE": str(tree), **IDENTITY}

            async def git(*arguments: str, expected: tuple[int, ...] = (0,)) -> tuple[int, bytes, str]:
                said = await run_git(
                    arguments, git_dir=directory, cwd=tree, environment=environment, expected=expected, output_bytes_max=DIFF_BYTES_MAX
                )
                return said.exit_code, said.stdout, said.stderr

            await git("read-tree", base)
            await git("checkout-index", "--all", "--quiet")
            await git("update-index", "-q", "--refresh", expected=(0, 1))
            exit_code, _, stderr = await git("revert", "--no-commit", *(("-m", "1") if is_merge else ()), suspect, expected=(0, 1, 128))
            if exit_code != 0:
                _, listed, _ = await git("diff", "--name-only", "-z", "--diff-filter=U")
                files = [name for name in listed.decode("utf-8", "replace").split("\x00") if name]
                where = ", ".join(files[:10]) if files else shorten(stderr, 300)
                raise NoSafeChange(
                    f"Reverting {suspect[:12]} conflicts with what came after it, in {where}.",
                    f"Later commits build on {suspect[:12]}. How should {where} look without it?",
                )
            try:
                _, diff, _ = await git("diff", "--cached", "--binary", "--full-index", "--no-ext-diff", "--no-textconv", base)
                text = diff.decode()
            except (OutputTooLarge, UnicodeDecodeError) as error:
                raise NoSafeChange(
                    f"The revert of {suspect[:12]} cannot be shown for review: {shorten(str(error), 200)}.",
                    "Could somebody make this revert by hand?",
                ) from error
    finally:
        await asyncio.to_thread(shutil.rmtree, temporary, True)
    if not text.strip():
        raise NoSafeChange(f"Commit {suspect[:12]} is already undone on the base branch.", "Is the fixed version deployed everywhere?")
    return text
