"""Projects, keys, tokens, sessions, dead letters."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from loopwright_common.auth import TOKEN_LENGTH_MAX
from loopwright_common.contracts.configuration import ProjectConfig, ProjectKey, PublishedProject
from loopwright_common.problems import ProblemError

from loopwright_gateway import views as v
from loopwright_gateway.api.parts import COOKIE, READ, WRITE, Admin, Caller, Parts, PartsOf, check_origin, problems
from loopwright_gateway.ports import Account

router = APIRouter(prefix="/v1")

Name = Annotated[str, Path(pattern=r"^[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?$", description="The project's name.")]
Id = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Sequence = Annotated[int, Path(ge=1, le=2**53)]


@router.get("/projects", responses=READ, tags=["projects"])
async def list_projects(parts: PartsOf, _: Caller) -> list[v.ProjectView]:
    """All projects."""
    return [_project(project) for project in await parts.catalogue.all()]


@router.get("/projects/{name}", responses=READ, tags=["projects"])
async def show_project(parts: PartsOf, _: Caller, name: Name) -> v.ProjectView:
    """A project's configuration and keys."""
    return _project(await parts.catalogue.show(name))


@router.put("/projects/{name}", responses=WRITE, tags=["projects"])
async def apply_project(
    parts: PartsOf,
    _: Admin,
    name: Name,
    config: ProjectConfig,
    dry_run: Annotated[bool, Query(description="Only say what would be done.")] = False,
) -> v.AppliedView:
    """Makes the project what the body says; every service hears of it."""
    if config.name != name:
        raise ProblemError(422, f"The body is about project {config.name}, and the address about {name}.")
    applied = await parts.catalogue.apply(config, dry_run=dry_run)
    return v.AppliedView.model_validate({"outcome": applied.outcome, "dry_run": dry_run, "project": _project(applied.project)})


@router.post("/projects/{name}/keys", responses=WRITE, status_code=201, tags=["projects"])
async def create_key(parts: PartsOf, _: Admin, name: Name, body: v.CreateKey) -> v.NewKey:
    """A key for the edge. Its secret is told this once; a key with only sentry:write comes with its DSN."""
    key, secret = await parts.catalogue.create_key(name, list(dict.fromkeys(body.scopes)), body.label, body.service)
    project = await parts.catalogue.show(name)
    dsn = None
    if body.scopes == ["sentry:write"]:
        scheme, _slashes, rest = parts.settings.ingest_public_url.rstrip("/").partition("://")
        dsn = f"{scheme}://{secret}@{rest}/{project.number}"
    return v.NewKey(**_key(key).model_dump(), secret=secret, dsn=dsn)


@router.delete("/projects/{name}/keys/{key_id}", responses=WRITE, status_code=204, tags=["projects"])
async def revoke_key(parts: PartsOf, _: Admin, name: Name, key_id: Id) -> Response:
    """The key is refused from now on."""
    await parts.catalogue.revoke_key(name, key_id)
    return Response(status_code=204)


def _project(project: PublishedProject) -> v.ProjectView:
    return v.ProjectView(number=project.number, revision=project.revision, config=project.config, keys=[_key(key) for key in project.keys])


def _key(key: ProjectKey) -> v.KeyView:
    return v.KeyView(
        id=key.id, scopes=list(key.scopes), label=key.label, service=key.service, created_at=key.created_at, revoked_at=key.revoked_at
    )


@router.get("/me", responses=READ, tags=["access"])
async def me(account: Caller) -> v.Me:
    """Who the caller is taken for."""
    return v.Me.model_validate({"name": account.name, "role": account.role})


@router.post("/session", responses=problems(400, 401, 403, 413, 422, 503), tags=["access"])
async def open_session(parts: PartsOf, request: Request, response: Response, body: v.Session) -> v.Me:
    """Exchanges a token for a cookie that scripts cannot read: how the inbox signs in."""
    check_origin(request)
    account = await parts.accounts.find(body.token, parts.clock.now())
    if account is None:
        raise ProblemError(401, "The token is not in force.", headers={"WWW-Authenticate": 'Bearer realm="loopwright"'})
    await _set_cookie(parts, account, response)
    return v.Me.model_validate({"name": account.name, "role": account.role})


async def _set_cookie(parts: Parts, account: Account, response: Response) -> None:
    now = parts.clock.now()
    life = parts.settings.session_life
    _id, token = await parts.accounts.create(account.name, account.role, now, now + life, "lws")
    response.set_cookie(
        COOKIE, token, max_age=int(life.total_seconds()), path="/", httponly=True, samesite="strict", secure=parts.settings.secure_cookies
    )


@router.delete("/session", responses=problems(401, 403, 503), status_code=204, tags=["access"])
async def close_session(parts: PartsOf, account: Caller, request: Request) -> Response:
    """Signs the browser out."""
    cookie = request.cookies.get(COOKIE, "")
    if 0 < len(cookie) <= TOKEN_LENGTH_MAX and (found := await parts.accounts.find(cookie, parts.clock.now())) is not None:
        await parts.accounts.revoke(found.token_id, parts.clock.now())
    response = Response(status_code=204)
    response.delete_cookie(COOKIE, path="/")
    return response


@router.post("/tokens", responses=WRITE, status_code=201, tags=["access"])
async def create_token(parts: PartsOf, _: Admin, body: v.CreateToken) -> v.NewToken:
    """A token for a person or a program; it is told this once. The name is what timelines show."""
    token_id, token = await parts.accounts.create(body.name, body.role, parts.clock.now(), None, "lwt")
    return v.NewToken(id=token_id, name=body.name, role=body.role, token=token)


@router.delete("/tokens/{token_id}", responses=WRITE, status_code=204, tags=["access"])
async def revoke_token(parts: PartsOf, _: Admin, token_id: Id) -> Response:
    """The token is refused from now on."""
    if not await parts.accounts.revoke(token_id, parts.clock.now()):
        raise ProblemError(404, f"There is no token {token_id} in force.")
    return Response(status_code=204)


@router.get("/dead-letters", responses=READ, tags=["dead letters"])
async def list_dead_letters(
    parts: PartsOf, _: Caller, before: Annotated[int | None, Query(ge=1, le=2**53)] = None, limit: Annotated[int, Query(ge=1, le=200)] = 50
) -> list[v.DeadLetterView]:
    """What no attempt could handle, newest first, with the reason."""
    return [
        v.DeadLetterView(
            sequence=letter.sequence,
            subject=letter.subject,
            stream=letter.stream,
            consumer=letter.consumer,
            reason=letter.reason,
            attempts=letter.attempts,
            died_at=letter.died_at,
            payload=letter.payload[:4_096].decode("utf-8", errors="replace"),
        )
        for letter in await parts.bus.dead_letters(limit, before)
    ]


@router.post("/dead-letters/{sequence}/replay", responses=WRITE, status_code=202, tags=["dead letters"])
async def replay(parts: PartsOf, _: Admin, sequence: Sequence) -> Response:
    """Gives it to the consumer that failed, once more."""
    await parts.bus.replay(sequence)
    return Response(status_code=202)


@router.post("/dead-letters/{sequence}/discard", responses=WRITE, status_code=204, tags=["dead letters"])
async def discard(parts: PartsOf, _: Admin, sequence: Sequence, body: v.Discard) -> Response:
    """Removes it for good."""
    await parts.bus.discard(sequence, body.reason)
    return Response(status_code=204)
