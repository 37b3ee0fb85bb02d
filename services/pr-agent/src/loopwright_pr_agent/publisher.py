"""The publisher: a process of its own, and the only one that reads the tokens that write.

``python -m loopwright_pr_agent.publisher`` takes one job as JSON on standard input and gives one result as JSON on standard output. It
trusts nothing in the job: the diff is checked again here. Every action finds what an earlier try has done, so a repeat changes nothing.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from loopwright_common.contracts.base import Contract, Line, LongText, ShortText
from loopwright_common.contracts.changes import Change
from loopwright_common.errors import LoopwrightError, Retryable
from loopwright_repositories.checkout import Checkout
from loopwright_repositories.errors import ForgeConflict, ForgeNotFound, RepositoryRefused
from loopwright_repositories.forges.local import LocalForge
from loopwright_repositories.forges.port import Forge, ForgePullRequest, Person
from loopwright_repositories.publishing import MadeCommit, push_diff
from pydantic import SecretStr, ValidationError

from loopwright_pr_agent.policy import Checked, DiffLimits, check_diff, check_made
from loopwright_pr_agent.ports import PullRequestSeen, seen_of

JOB_BYTES_MAX = 4 * 1024 * 1024
TOKEN_BYTES_MAX = 4_096
OURSELVES = Person(name="Loopwright", email="loopwright@localhost")


class Job(Contract):
    """What to do. The tokens are named by their files; which one is read follows from the action."""

    action: Literal["ensure", "publish", "merge", "close", "comment"]
    forge_url: ShortText
    write_token_file: ShortText = ""
    merge_token_file: ShortText = ""
    repository: Line
    source: ShortText = ""
    default_branch: Line = "main"
    change: Change | None = None
    branch: Line = ""
    mirror: ShortText = ""
    committed_at: datetime = datetime(2000, 1, 1, tzinfo=UTC)
    transcript: LongText = ""
    diff_bytes_max: int = 128 * 1024
    diff_files_max: int = 100
    protected_paths: tuple[Line, ...] = ()
    number: int = 0
    expected_head: Line = ""
    name: Line = ""
    email: Line = ""
    actor: Line = ""
    body: ShortText = ""
    key: Line = ""


class Result(Contract):
    """What came of it: a pull request, or why not and whether a retry helps."""

    ok: bool
    kind: Literal["", "refused", "conflict", "not_found", "unavailable"] = ""
    reason: ShortText = ""
    seen: PullRequestSeen | None = None


async def perform(job: Job) -> Result:
    """Does the job. Never raises for what a forge or a file says."""
    try:
        async with LocalForge(job.forge_url, _token(job)) as forge:
            return Result(ok=True, seen=await ACTIONS[job.action](job, forge))
    except ForgeConflict as error:
        return Result(ok=False, kind="conflict", reason=str(error)[:2_000])
    except ForgeNotFound as error:
        return Result(ok=False, kind="not_found", reason=str(error)[:2_000])
    except Retryable as error:
        return Result(ok=False, kind="unavailable", reason=str(error)[:2_000])
    except LoopwrightError as error:
        return Result(ok=False, kind="refused", reason=str(error)[:2_000])


def _token(job: Job) -> SecretStr:
    name = "FORGE_MERGE_TOKEN_FILE" if job.action == "merge" else "FORGE_WRITE_TOKEN_FILE"
    path = job.merge_token_file if job.action == "merge" else job.write_token_file
    variable = f"LOOPWRIGHT_PR_AGENT_{name}"
    if not path:
        raise RepositoryRefused(f"{variable} is not set: without it nothing can be written to the forge")
    try:
        with Path(path).open("rb") as file:
            content = file.read(TOKEN_BYTES_MAX + 1)
    except OSError as error:
        raise RepositoryRefused(f"{variable}={path} cannot be read ({error.strerror}); make it readable for this user") from error
    token = content.decode("utf-8", "replace").strip()
    if not token or len(content) > TOKEN_BYTES_MAX:
        raise RepositoryRefused(f"{variable}={path} is empty or over {TOKEN_BYTES_MAX} bytes; a token is one short line")
    return SecretStr(token)


async def ensure(job: Job, forge: Forge) -> PullRequestSeen | None:
    """The repository, imported from its source when the forge does not have it."""
    await forge.ensure_repository(job.repository, source=job.source, default_branch=job.default_branch)
    return None


async def publish(job: Job, forge: Forge) -> PullRequestSeen | None:
    """Checks the diff, pushes the branch, opens the draft, sets the checks and the comment."""
    change = job.change
    if change is None:
        raise RepositoryRefused("a publish job without a change")
    limits = DiffLimits(job.diff_bytes_max, job.diff_files_max)

    def refuse(checked: Checked) -> None:
        if checked.faults:
            raise RepositoryRefused("the diff is not published: " + "; ".join(checked.faults))

    def judge(made: MadeCommit) -> None:
        refuse(check_made(made, limits, job.protected_paths))

    refuse(check_diff(change.diff, limits, job.protected_paths))
    pull = await forge.find_pull_request(job.repository, job.branch)
    if pull is None:
        message = f"{change.title}\n\nProof: {change.proof.value}. {change.proof_reason[:500]}\n\nLoopwright-Change: {change.id}\n"
        await push_diff(
            Checkout(Path(job.mirror), job.repository),
            base=change.base_commit,
            diff=change.diff,
            message=message,
            person=OURSELVES,
            at=job.committed_at,
            url=forge.clone_url(job.repository),
            branch=job.branch,
            credential=forge.credential,
            judge=judge,
        )
        pull = await forge.open_pull_request(
            job.repository, head=job.branch, base=job.default_branch, title=change.title, body=change.body, draft=True
        )
    if pull.state == "open":
        for check in change.checks:
            await forge.set_check_run(
                job.repository, pull.head_commit, check.name, status=check.status, conclusion=check.conclusion, summary=check.summary
            )
        if job.transcript:
            await forge.comment(job.repository, pull.number, job.transcript[:16_000], key=f"transcript:{change.id}")
    return await _seen(forge, pull)


async def merge(job: Job, forge: Forge) -> PullRequestSeen | None:
    """Merges what the person saw, in the person's name."""
    pull = await forge.get_pull_request(job.repository, job.number)
    if pull.state == "open":
        if pull.head_commit != job.expected_head:
            raise ForgeConflict(f"the branch is at {pull.head_commit[:12]}, and {job.expected_head[:12]} was looked at: look again")
        try:
            person = Person(name=job.name, email=job.email)
        except ValidationError as error:
            raise RepositoryRefused(f"{job.name!r} <{job.email}> cannot be written as a git author") from error
        if pull.draft:
            await forge.mark_ready(job.repository, job.number)
        pull = await forge.merge(job.repository, job.number, person=person, expected_head=job.expected_head)
    elif pull.state == "closed":
        raise ForgeConflict(f"pull request {job.number} was closed by {pull.closed_by or 'somebody'}")
    return await _seen(forge, pull)


async def close(job: Job, forge: Forge) -> PullRequestSeen | None:
    """Closes it, saying who and why."""
    return await _seen(forge, await forge.close(job.repository, job.number, closed_by=job.actor, comment=job.body))


async def comment(job: Job, forge: Forge) -> PullRequestSeen | None:
    """One comment per key."""
    await forge.comment(job.repository, job.number, job.body, author=job.actor or "loopwright", key=job.key)
    return None


async def _seen(forge: Forge, pull: ForgePullRequest) -> PullRequestSeen:
    return seen_of(pull, await forge.list_check_runs(pull.repository, pull.head_commit))


ACTIONS: dict[str, Callable[[Job, Forge], Awaitable[PullRequestSeen | None]]] = {
    "ensure": ensure, "publish": publish, "merge": merge, "close": close, "comment": comment,
}  # fmt: skip


def main() -> int:
    """0 with a result on standard output, also when the forge said no; 2 for a job that is not one."""
    if sys.argv[1:]:
        print("The publisher takes one job as JSON on standard input; pr-agent starts it.", file=sys.stderr)
        return 0 if sys.argv[1:] in (["--help"], ["-h"]) else 2
    content = sys.stdin.buffer.read(JOB_BYTES_MAX + 1)
    try:
        if len(content) > JOB_BYTES_MAX:
            raise ValueError(f"a job of more than {JOB_BYTES_MAX} bytes")
        job = Job.model_validate_json(content)
    except ValueError as error:
        print(f"not a publisher's job: {str(error)[:1_000]}", file=sys.stderr)
        return 2
    sys.stdout.write(asyncio.run(perform(job)).model_dump_json())
    return 0


if __name__ == "__main__":
    sys.exit(main())
