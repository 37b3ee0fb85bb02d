"""Puts the forge together: store, repositories, pull requests, git transport, API, pages, webhooks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Annotated

from fastapi import FastAPI, Path, Request, Response
from loopwright_common.clock import Clock, SystemClock
from starlette.types import ASGIApp, Receive, Scope, Send

from loopwright_repositories.local_forge.access import access_of, check_host
from loopwright_repositories.local_forge.api import Number, RepositoryName, needs, routes
from loopwright_repositories.local_forge.pages import pull_page, repositories_page, repository_page
from loopwright_repositories.local_forge.problems import Problem, install, problem_response
from loopwright_repositories.local_forge.pulls import Pulls
from loopwright_repositories.local_forge.repositories import ForgeRepositories
from loopwright_repositories.local_forge.settings import Access, ForgeSettings, Tokens
from loopwright_repositories.local_forge.store import ForgeStore
from loopwright_repositories.local_forge.transport import GitTransport
from loopwright_repositories.local_forge.webhooks import Webhooks

JSON_BYTES_MAX = 1024 * 1024  # the largest body is a pull request's text of 256 Ki characters


def build_app(settings: ForgeSettings, tokens: Tokens, clock: Clock | None = None) -> FastAPI:
    """The forge as an ASGI application. One process owns ``settings.data``."""
    clock = clock or SystemClock()
    settings.data.mkdir(parents=True, exist_ok=True)
    store = ForgeStore(settings.data / "forge.sqlite3", webhooks=settings.webhook_url is not None, backlog_max=settings.webhook_backlog_max)
    repositories = ForgeRepositories(settings.data, settings.base_url, store, clock, timedelta(seconds=settings.git_seconds_max))
    pulls = Pulls(repositories)
    webhooks = Webhooks(settings, store, pulls, clock)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(repositories.prepare)
        webhooks.start()
        yield
        await webhooks.stop()
        store.close()

    app = FastAPI(
        title="Loopwright local forge", version="1", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url="/api/v1/openapi.json"
    )
    app.state.settings, app.state.tokens = settings, tokens
    install(app)

    app.add_middleware(_Guard, settings=settings)

    transport = GitTransport(repositories, settings, pulls.refresh_open)

    @app.api_route("/git/{name}.git/{what:path}", methods=["GET", "POST"], include_in_schema=False)
    async def git(request: Request, name: RepositoryName, what: Annotated[str, Path(max_length=256)]) -> Response:
        return await transport.serve(request, name, what, access_of(request.headers, tokens, settings))

    app.include_router(routes(repositories, pulls))
    _pages(app, repositories, pulls)

    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> dict[str, str]:
        await asyncio.to_thread(store.repositories, 1)
        return {"status": "ok"}

    return app


class _Guard:
    """Refuses a request for another host or with a body that is too large. Plain ASGI, so git's streams pass untouched."""

    def __init__(self, app: ASGIApp, settings: ForgeSettings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            request = Request(scope)
            try:
                check_host(request.headers, self._settings)
                _check_length(request)
            except Problem as problem:
                await problem_response(problem.status, problem.detail)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _pages(app: FastAPI, repositories: ForgeRepositories, pulls: Pulls) -> None:
    readable = [needs(Access.READ)]

    @app.get("/", dependencies=readable, include_in_schema=False)
    async def index() -> Response:
        found = await asyncio.to_thread(repositories.store.repositories)
        return repositories_page([await repositories.describe(record["name"]) for record in found])

    @app.get("/repos/{name}", dependencies=readable, include_in_schema=False)
    async def repository(name: RepositoryName) -> Response:
        return repository_page(await repositories.describe(name), await pulls.listed(name))

    @app.get("/repos/{name}/pulls/{number}", dependencies=readable, include_in_schema=False)
    async def pull(name: RepositoryName, number: Number) -> Response:
        found = await pulls.get(name, number)
        return pull_page(
            found, await pulls.diff(name, number), await pulls.checks(name, found.head_commit), await pulls.comments(name, number),
            await pulls.commits(name, number),
        )  # fmt: skip


def _check_length(request: Request) -> None:
    if request.url.path.startswith("/git/") or request.method not in ("POST", "PUT", "PATCH"):
        return
    length = request.headers.get("content-length", "")
    if not length.isdigit():
        raise Problem(411, "send the body's length in Content-Length")
    if int(length) > JSON_BYTES_MAX:
        raise Problem(413, f"the body is {length[:20]} bytes; the limit is {JSON_BYTES_MAX}")
