"""The forge's REST API. Bodies are JSON and bounded; names are checked by their types before anything is done."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from loopwright_common.contracts.base import CommitSha, Line, LongText, Name, ShortText, Text
from pydantic import BaseModel, ConfigDict, StringConstraints

from loopwright_repositories.forges.port import (
    CheckConclusion,
    CheckStatus,
    ForgeCheckRun,
    ForgeComment,
    ForgePullRequest,
    ForgeRepository,
    Person,
)
from loopwright_repositories.local_forge.access import access_of, require
from loopwright_repositories.local_forge.problems import Problem
from loopwright_repositories.local_forge.pulls import Pulls
from loopwright_repositories.local_forge.repositories import ForgeRepositories
from loopwright_repositories.local_forge.settings import Access, ForgeSettings, Tokens
from loopwright_repositories.local_forge.store import PULLS_LISTED_MAX

RepositoryName = Annotated[Name, Path()]
Number = Annotated[int, Path(ge=1, le=2**31)]
Title = Annotated[str, StringConstraints(min_length=1, max_length=512, strip_whitespace=True)]
Branch = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NewRepository(_Body):
    name: Name
    source: ShortText = ""
    default_branch: Branch = "main"


class NewPull(_Body):
    head: Branch
    base: Annotated[str, StringConstraints(max_length=256)] = ""
    title: Title
    body: LongText = ""
    draft: bool = True


class PullEdit(_Body):
    title: Title | None = None
    body: LongText | None = None
    draft: Literal[False] | None = None


class NewComment(_Body):
    body: Annotated[Text, StringConstraints(min_length=1)]
    author: Annotated[str, StringConstraints(min_length=1, max_length=200)] = "loopwright"
    key: Line = ""


class NewCheckRun(_Body):
    name: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    status: CheckStatus
    conclusion: CheckConclusion | None = None
    summary: Text = ""


class Merge(_Body):
    person: Person
    expected_head: CommitSha | None = None
    message: ShortText = ""


class Close(_Body):
    closed_by: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    comment: Text = ""


class SyncWish(_Body):
    """Nothing to say: the source is known."""


def needs(access: Access) -> Any:
    """A dependency that lets through tokens of at least this access. Changes must be JSON, which a foreign page cannot send unasked."""

    async def check(request: Request) -> None:
        tokens: Tokens = request.app.state.tokens
        settings: ForgeSettings = request.app.state.settings
        require(access_of(request.headers, tokens, settings), access)
        if (
            request.method not in ("GET", "HEAD")
            and request.headers.get("content-type", "").partition(";")[0].strip() != "application/json"
        ):
            raise Problem(415, "send application/json")

    return Depends(check)


def routes(repositories: ForgeRepositories, pulls: Pulls) -> APIRouter:
    """The API below ``/api/v1``."""
    api = APIRouter(prefix="/api/v1")
    read, write, merge = [needs(Access.READ)], [needs(Access.WRITE)], [needs(Access.MERGE)]

    @api.get("/repos", dependencies=read)
    async def list_repositories() -> dict[str, list[ForgeRepository]]:
        found = await asyncio.to_thread(repositories.store.repositories)
        return {"repositories": [await repositories.describe(record["name"]) for record in found]}

    @api.post("/repos", dependencies=write)
    async def ensure_repository(wish: NewRepository, response: Response) -> ForgeRepository:
        found, made = await repositories.ensure(wish.name, wish.source, wish.default_branch)
        response.status_code = 201 if made else 200
        return found

    @api.get("/repos/{name}", dependencies=read)
    async def get_repository(name: RepositoryName) -> ForgeRepository:
        return await repositories.describe(name)

    # With the read scope: who asks chooses nothing, since the source was fixed when the repository was made; the forge only catches up.
    @api.post("/repos/{name}/sync", dependencies=read)
    async def sync_repository(name: RepositoryName, wish: SyncWish) -> dict[str, Any]:
        branches = await repositories.sync(name)
        await pulls.refresh_open(name)
        return {"branches": branches}

    @api.get("/repos/{name}/pulls", dependencies=read)
    async def list_pulls(
        name: RepositoryName,
        head: Annotated[str, Query(max_length=256)] = "",
        state: Annotated[Literal["", "open", "merged", "closed"], Query()] = "",
        limit: Annotated[int, Query(ge=1, le=PULLS_LISTED_MAX)] = PULLS_LISTED_MAX,
    ) -> dict[str, list[ForgePullRequest]]:
        return {"pulls": await pulls.listed(name, head=head, state=state, limit=limit)}

    @api.post("/repos/{name}/pulls", dependencies=write)
    async def open_pull(name: RepositoryName, wish: NewPull, response: Response) -> ForgePullRequest:
        found, made = await pulls.open(name, head=wish.head, base=wish.base, title=wish.title, body=wish.body, draft=wish.draft)
        response.status_code = 201 if made else 200
        return found

    @api.get("/repos/{name}/pulls/{number}", dependencies=read)
    async def get_pull(name: RepositoryName, number: Number) -> ForgePullRequest:
        return await pulls.get(name, number)

    @api.patch("/repos/{name}/pulls/{number}", dependencies=write)
    async def edit_pull(name: RepositoryName, number: Number, wish: PullEdit) -> ForgePullRequest:
        changed = wish.model_dump(exclude_none=True)
        return await pulls.edit(name, number, **{key: int(value) if key == "draft" else value for key, value in changed.items()})

    @api.get("/repos/{name}/pulls/{number}/diff", dependencies=read)
    async def get_diff(name: RepositoryName, number: Number) -> dict[str, str]:
        return {"diff": await pulls.diff(name, number)}

    @api.get("/repos/{name}/pulls/{number}/commits", dependencies=read)
    async def get_commits(name: RepositoryName, number: Number) -> dict[str, list[dict[str, Any]]]:
        return {"commits": await pulls.commits(name, number)}

    @api.get("/repos/{name}/pulls/{number}/comments", dependencies=read)
    async def list_comments(name: RepositoryName, number: Number) -> dict[str, list[ForgeComment]]:
        return {"comments": await pulls.comments(name, number)}

    @api.post("/repos/{name}/pulls/{number}/comments", dependencies=write, status_code=201)
    async def add_comment(name: RepositoryName, number: Number, wish: NewComment) -> ForgeComment:
        await pulls.get(name, number)
        made = await asyncio.to_thread(
            repositories.store.add_comment, name, number, wish.author, wish.body, wish.key, repositories.clock.now()
        )
        return ForgeComment.model_validate(made)

    @api.get("/repos/{name}/commits/{commit}/check-runs", dependencies=read)
    async def list_checks(name: RepositoryName, commit: Annotated[CommitSha, Path()]) -> dict[str, list[ForgeCheckRun]]:
        return {"check_runs": await pulls.checks(name, commit)}

    @api.post("/repos/{name}/commits/{commit}/check-runs", dependencies=write)
    async def set_check(name: RepositoryName, commit: Annotated[CommitSha, Path()], wish: NewCheckRun) -> ForgeCheckRun:
        if (wish.conclusion is None) == (wish.status == "completed"):
            raise Problem(
                422, f"a check that is {wish.status} has {'no' if wish.conclusion is None else 'a'} conclusion; only a completed one has"
            )
        await pulls.checks(name, commit)
        now = repositories.clock.now()
        await asyncio.to_thread(repositories.store.set_check, name, commit, wish.name, wish.status, wish.conclusion, wish.summary, now)
        return ForgeCheckRun(name=wish.name, status=wish.status, conclusion=wish.conclusion, summary=wish.summary, updated_at=now)

    @api.post("/repos/{name}/pulls/{number}/merge", dependencies=merge)
    async def merge_pull(name: RepositoryName, number: Number, wish: Merge) -> ForgePullRequest:
        return await pulls.merge(name, number, wish.person, wish.expected_head, wish.message)

    @api.post("/repos/{name}/pulls/{number}/close", dependencies=write)
    async def close_pull(name: RepositoryName, number: Number, wish: Close) -> ForgePullRequest:
        return await pulls.close(name, number, wish.closed_by, wish.comment)

    @api.get("/webhooks/failed", dependencies=merge)
    async def failed_webhooks() -> dict[str, list[dict[str, Any]]]:
        return {"deliveries": await asyncio.to_thread(repositories.store.failed_deliveries)}

    return api
