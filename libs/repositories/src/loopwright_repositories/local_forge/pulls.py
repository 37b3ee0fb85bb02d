"""Pull requests: opened, kept in step with their branches, merged, closed.

A merge writes its intent, makes the merge commit, moves the base branch by compare-and-set, and then records the merge. Whatever moment a
crash picks, the next read finishes it: the intent's commit, or any merge of the head, is found on the base branch.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from loopwright_repositories.errors import RepositoryUnavailable
from loopwright_repositories.forges.port import ForgeCheckRun, ForgeComment, ForgePullRequest, Person
from loopwright_repositories.git import GitFailed, run_git
from loopwright_repositories.local_forge.problems import Problem
from loopwright_repositories.local_forge.repositories import ForgeRepositories, tip
from loopwright_repositories.names import branch_name, commit_sha

MERGE_ATTEMPTS_MAX = 5  # each failure means that a push moved the base in between
REMEMBERED_MAX = 2_000
Row = dict[str, Any]


@dataclass
class Pulls:
    """The pull requests of all repositories."""

    repositories: ForgeRepositories
    # (repository, head, base) -> (mergeable, reason): commits never change, so neither does the answer.
    _mergeable: dict[tuple[str, str, str], tuple[bool, str]] = field(default_factory=dict)

    async def open(self, name: str, *, head: str, base: str, title: str, body: str, draft: bool) -> tuple[ForgePullRequest, bool]:
        """The open pull request of ``head`` into ``base``, and whether it was made now. Raises Problem 422."""
        record = await self.repositories.known(name)
        base = base or record["default_branch"]
        if branch_name(head) == branch_name(base):
            raise Problem(422, f"head and base are both {head}")
        async with self.repositories.lock(name):
            head_commit, base_tip = await self.repositories.tip(name, head), await self.repositories.tip(name, base)
            if head_commit is None or base_tip is None:
                raise Problem(422, f"{name} has no branch {head if head_commit is None else base}; push it first")
            if await self._is_ancestor(name, head_commit, base_tip):
                raise Problem(422, f"{head} has no commit that {base} lacks")
            wish = {"head": head, "base": base, "title": title, "body": body, "draft": draft, "head_commit": head_commit,
                    "base_commit": await self._merge_base(name, base_tip, head_commit)}  # fmt: skip
            number, made = await asyncio.to_thread(self.repositories.store.open_pull, name, wish, self.repositories.clock.now())
            await self._keep(name, number, head_commit)
            return await self._present(await self._refreshed(name, number)), made

    async def get(self, name: str, number: int) -> ForgePullRequest:
        """The pull request as it is now. Raises Problem 404."""
        await self.repositories.known(name)
        async with self.repositories.lock(name):
            return await self._present(await self._refreshed(name, number))

    async def listed(self, name: str, *, head: str = "", state: str = "", limit: int = 100) -> list[ForgePullRequest]:
        """Newest first; ``state`` is what it is after looking at the branches."""
        await self.repositories.known(name)
        async with self.repositories.lock(name):
            for row in await asyncio.to_thread(self.repositories.store.pulls, name, head=head, state="open"):
                await self._refreshed(name, row["number"])
            rows = await asyncio.to_thread(self.repositories.store.pulls, name, head=head, state=state, limit=limit)
            return [await self._present(row) for row in rows]

    async def refresh_open(self, name: str) -> None:
        """After a push: sees moved heads and merges made by hand."""
        async with self.repositories.lock(name):
            for row in await asyncio.to_thread(self.repositories.store.pulls, name, state="open"):
                await self._refreshed(name, row["number"])

    async def edit(self, name: str, number: int, **changed: str | int) -> ForgePullRequest:
        """Changes title, body or draft. Raises Problem 409 when it is not open any more and more than title and body would change."""
        await self.repositories.known(name)
        async with self.repositories.lock(name):
            row = await self._refreshed(name, number)
            if "draft" in changed and row["state"] != "open" and changed["draft"] != row["draft"]:
                raise Problem(409, f"pull request {number} is {row['state']}")
            if changed:
                await self._edit(name, number, **changed)
            return await self._present(await self._row(name, number))

    async def diff(self, name: str, number: int) -> str:
        """The unified diff from the merge base to the head."""
        pull = await self.get(name, number)
        checkout = await self.repositories.checkout(name)
        return await checkout.raw_diff(pull.head_commit, pull.base_commit)

    async def commits(self, name: str, number: int, limit: int = 100) -> list[dict[str, Any]]:
        """The commits it would bring, newest first."""
        pull = await self.get(name, number)
        checkout = await self.repositories.checkout(name)
        found = await checkout.log(pull.head_commit, not_in=pull.base_commit, limit=limit, with_files=False)
        return [
            {"sha": commit.sha, "subject": commit.subject, "author": commit.author_name, "committed_at": commit.committed_at.isoformat()}
            for commit in found
        ]

    async def close(self, name: str, number: int, closed_by: str, comment: str) -> ForgePullRequest:
        """Closes without a merge. Raises Problem 409 when it is merged."""
        await self.repositories.known(name)
        async with self.repositories.lock(name):
            row = await self._refreshed(name, number)
            if row["state"] == "merged":
                raise Problem(409, f"pull request {number} is merged and cannot be closed")
            if row["state"] == "open":
                now = self.repositories.clock.now()
                if comment:
                    key = f"close-{number}"
                    await asyncio.to_thread(self.repositories.store.add_comment, name, number, closed_by, comment, key, now)
                await asyncio.to_thread(self.repositories.store.mark_closed, name, number, closed_by, now)
            return await self._present(await self._row(name, number))

    async def merge(self, name: str, number: int, person: Person, expected_head: str | None, message: str) -> ForgePullRequest:
        """Merges in ``person``'s name with a merge commit; already merged, it is given as it is. Raises Problem 409."""
        await self.repositories.known(name)
        async with self.repositories.lock(name):
            for _ in range(MERGE_ATTEMPTS_MAX):
                row = await self._refreshed(name, number)
                if row["state"] == "merged":
                    return await self._present(row)
                if await self._merge_once(name, row, person, expected_head, message):
                    return await self._present(await self._row(name, number))
        raise Problem(503, f"{row['base']} kept moving while pull request {number} was being merged; try again", {"Retry-After": "1"})

    async def _merge_once(self, name: str, row: Row, person: Person, expected_head: str | None, message: str) -> bool:
        number, directory = row["number"], self.repositories.directory(name)
        if row["state"] == "closed":
            raise Problem(409, f"pull request {number} is closed")
        head, base = row["head_commit"], await self.repositories.tip(name, row["base"])
        if await self.repositories.tip(name, row["head"]) != head:
            raise Problem(409, f"the branch {row['head']} of pull request {number} is gone or holds nothing new")
        if expected_head is not None and head != expected_head:
            raise Problem(409, f"pull request {number} is at {head[:12]}, not at {expected_head[:12]} as you saw it: look again")
        if base is None:
            raise Problem(409, f"{name} has no branch {row['base']} any more")
        tree, conflicts = await self._merge_tree(name, base, head)
        if tree is None:
            raise Problem(409, f"pull request {number} does not merge into {row['base']}: {conflicts}")
        commit = await self._commit_merge(name, row, person, message, tree=tree, parents=(base, head))
        await self._edit(name, number, intent_commit=commit, intent_by=person.name)
        try:
            await run_git(["update-ref", "--end-of-options", f"refs/heads/{row['base']}", commit, base], git_dir=directory)
        except (GitFailed, RepositoryUnavailable):
            return False
        await asyncio.to_thread(self.repositories.store.mark_merged, name, number, commit, person.name, self.repositories.clock.now())
        return True

    async def _commit_merge(self, name: str, row: Row, person: Person, message: str, *, tree: str, parents: tuple[str, str]) -> str:
        title = " ".join(str(row["title"]).split())
        text = f"Merge pull request #{row['number']} from {row['head']}\n\n{title}\n" + (f"\n{message}\n" if message else "")
        at = self.repositories.clock.now().strftime("%Y-%m-%dT%H:%M:%S+00:00")
        identity = {f"GIT_{role}_{part}": value for role in ("AUTHOR", "COMMITTER")
                    for part, value in (("NAME", person.name), ("EMAIL", person.email), ("DATE", at))}  # fmt: skip
        said = await run_git(
            ["commit-tree", tree, "-p", parents[0], "-p", parents[1], "-F", "-"],
            git_dir=self.repositories.directory(name), stdin=text.replace("\x00", "").encode(), environment=identity,
        )  # fmt: skip
        return commit_sha(said.text.strip())

    async def _refreshed(self, name: str, number: int) -> Row:
        """The record after looking at the branches; finishes a merge that a crash interrupted. The caller holds the lock."""
        row = await self._row(name, number)
        if row["state"] != "open":
            return row
        store, now = self.repositories.store, self.repositories.clock.now()
        base, head = await self.repositories.tip(name, row["base"]), await self.repositories.tip(name, row["head"])
        if base is not None and row["intent_commit"] and await self._is_ancestor(name, row["intent_commit"], base):
            await asyncio.to_thread(store.mark_merged, name, number, row["intent_commit"], row["intent_by"] or "", now)
        elif base is not None and await self._is_ancestor(name, row["head_commit"], base):
            merge_commit, merged_by = await self._merged_by_hand(name, row["head_commit"], base)
            await asyncio.to_thread(store.mark_merged, name, number, merge_commit, merged_by, now)
        elif base is not None and head is not None and not await self._is_ancestor(name, head, base):
            merge_base = await self._merge_base(name, base, head)
            if (head, merge_base) != (row["head_commit"], row["base_commit"]):
                await self._edit(name, number, head_commit=head, base_commit=merge_base)
                await self._keep(name, number, head)
        return await self._row(name, number)

    async def _merged_by_hand(self, name: str, head: str, base: str) -> tuple[str, str]:
        directory = self.repositories.directory(name)
        said = await run_git(["rev-list", "--parents", "--ancestry-path", f"{head}..{base}"], git_dir=directory)
        merge_commit = head  # a fast-forward
        for line in said.text.splitlines():
            commit, *parents = line.split()
            if head in parents[1:]:
                merge_commit = commit
        checkout = await self.repositories.checkout(name)
        return merge_commit, (await checkout.commit(merge_commit)).committer_name

    async def _present(self, row: Row) -> ForgePullRequest:
        mergeable, reason = None, ""
        name = row["repository"]
        if row["state"] == "open":
            base, head = await self.repositories.tip(name, row["base"]), await self.repositories.tip(name, row["head"])
            if base is None or head is None:
                mergeable, reason = False, f"the branch {row['base'] if base is None else row['head']} is gone"
            elif head != row["head_commit"]:
                mergeable, reason = False, f"{row['head']} has no commit that {row['base']} lacks"
            else:
                mergeable, reason = await self._can_merge(name, base, head)
        fields = {key: row[key] for key in ForgePullRequest.model_fields if key in row}
        return ForgePullRequest(
            **{**fields, "draft": bool(row["draft"])}, mergeable=mergeable, mergeable_reason=reason,
            web_url=f"{self.repositories.base_url}/repos/{name}/pulls/{row['number']}",
        )  # fmt: skip

    async def _can_merge(self, name: str, base: str, head: str) -> tuple[bool, str]:
        key = (name, head, base)
        if key not in self._mergeable:
            if len(self._mergeable) >= REMEMBERED_MAX:
                self._mergeable.clear()
            tree, conflicts = await self._merge_tree(name, base, head)
            self._mergeable[key] = (tree is not None, conflicts)
        return self._mergeable[key]

    async def _merge_tree(self, name: str, base: str, head: str) -> tuple[str | None, str]:
        """The tree of a clean merge, or None and the files in conflict."""
        said = await run_git(
            ["merge-tree", "--write-tree", "--name-only", "-z", "--no-messages", base, head],
            git_dir=self.repositories.directory(name), expected=(0, 1),
        )  # fmt: skip
        tree, *files = said.text.split("\x00")
        if said.exit_code == 0:
            return commit_sha(tree.strip()), ""
        names = [file for file in files if file]
        return None, "conflicts in " + ", ".join(names[:10])[:1_000] + (f" and {len(names) - 10} more" if len(names) > 10 else "")

    async def _is_ancestor(self, name: str, ancestor: str, descendant: str) -> bool:
        directory = self.repositories.directory(name)
        said = await run_git(["merge-base", "--is-ancestor", ancestor, descendant], git_dir=directory, expected=(0, 1, 128))
        return said.exit_code == 0  # 128: a commit that a crash kept from being written

    async def _merge_base(self, name: str, base: str, head: str) -> str:
        said = await run_git(["merge-base", base, head], git_dir=self.repositories.directory(name), expected=(0, 1))
        if said.exit_code == 1:
            raise Problem(422, "the two branches have no common history")
        return commit_sha(said.text.split()[0])

    async def _keep(self, name: str, number: int, head: str) -> None:
        """A ref of the forge's own, so that the head stays readable after its branch is deleted."""
        await run_git(["update-ref", f"refs/pull/{number}/head", head], git_dir=self.repositories.directory(name))

    async def _row(self, name: str, number: int) -> Row:
        row = await asyncio.to_thread(self.repositories.store.pull, name, number)
        if row is None:
            raise Problem(404, f"{name} has no pull request {number}")
        return row

    async def _edit(self, name: str, number: int, **changed: str | int) -> None:
        await asyncio.to_thread(self.repositories.store.edit_pull, name, number, self.repositories.clock.now(), **changed)

    async def comments(self, name: str, number: int) -> list[ForgeComment]:
        """Oldest first."""
        await self._row(name, number)
        rows = await asyncio.to_thread(self.repositories.store.comments, name, number)
        return [ForgeComment.model_validate(row) for row in rows]

    async def checks(self, name: str, commit: str) -> list[ForgeCheckRun]:
        """The checks of a commit by name. Raises Problem 404 when the repository has no such commit."""
        await self.repositories.known(name)
        if await tip(self.repositories.directory(name), commit_sha(commit)) is None:
            raise Problem(404, f"{name} has no commit {commit[:12]}")
        rows = await asyncio.to_thread(self.repositories.store.checks, name, commit)
        return [ForgeCheckRun.model_validate(row) for row in rows]
