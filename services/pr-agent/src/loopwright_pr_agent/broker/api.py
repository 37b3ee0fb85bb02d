"""The broker over HTTP: a server of its own on a port of its own, apart from the service's API, since its callers are hostile."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any, TypeVar

import structlog
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse
from loopwright_common import problems
from loopwright_common.contracts.base import Input
from loopwright_common.process import BodyLimit, Instrumented
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import JSONResponse, Response

from loopwright_pr_agent.broker.records import KeptRun, PodResult
from loopwright_pr_agent.broker.runs import NotAdmitted, Runs

BODY_BYTES_MAX = 2 * 1024**2  # a result with the largest diff, escaped as JSON may be, or a model call with a mebibyte of messages
MESSAGES_MAX, TOOLS_MAX = 1_000, 128
START_SECONDS_MAX = 10.0
CONNECTIONS_MAX = 256  # each run has one at a time, and a few for the model

log = structlog.get_logger()
M = TypeVar("M", bound=BaseModel)


class ChatRequest(Input):
    """What may be asked of the model: the parts of the OpenAI API that are passed on. Model, limits and the rest are the broker's."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    messages: list[dict[str, Any]] = Field(min_length=1, max_length=MESSAGES_MAX)
    tools: list[dict[str, Any]] = Field(default_factory=list, max_length=TOOLS_MAX)
    response_format: dict[str, Any] | None = None
    stream: bool = False
    n: int | None = None


def broker_app(runs: Runs) -> FastAPI:
    """The routes, behind a body limit; every refusal is a problem, and one of a token is always the same."""
    app = FastAPI(title="Loopwright broker", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    problems.install(app)

    @app.exception_handler(NotAdmitted)
    async def _not_admitted(_: Request, __: NotAdmitted) -> Response:
        return problems.problem_response(401, "The token is not one of a running run.", headers={"WWW-Authenticate": "Bearer"})

    async def admit(request: Request, run: str | None = None) -> KeptRun:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        return await runs.admit(token.strip()[:512] if scheme.lower() == "bearer" else "", run)

    @app.get("/v1/runs/{run}/input")
    async def input_of(run: str, request: Request) -> Response:
        kept = await admit(request, run)
        return FileResponse(runs.input_of(kept), media_type="application/x-tar")

    @app.post("/v1/runs/{run}/result")
    async def take(run: str, request: Request) -> Response:
        kept = await admit(request, run)  # before the body is read
        await runs.take(kept, _read(PodResult, await request.body()))
        return Response(status_code=204)

    @app.post("/v1/chat/completions")
    async def complete(request: Request) -> Response:
        kept = await admit(request)
        asked = _read(ChatRequest, await request.body())
        if asked.stream or asked.n not in (None, 1):
            return problems.problem_response(422, "Streams and several choices are not given here; ask with stream=false and n=1.")
        return JSONResponse(await runs.complete(kept, asked.model_dump()))

    app.add_middleware(BodyLimit, bytes_max=BODY_BYTES_MAX)
    app.add_middleware(Instrumented, service="pr-agent-broker")
    return app


def _read(model: type[M], body: bytes) -> M:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        errors = problems.field_errors(error.errors(include_input=False, include_url=False))
        raise problems.ProblemError(422, "The body has fields that cannot be used; see errors.", errors=errors) from None


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The service's own server handles signals; this one is told."""
        yield


class BrokerServer:
    """Serves the app in this event loop. ``port`` is the one it really listens on."""

    def __init__(self, app: FastAPI, host: str, port: int) -> None:
        config = uvicorn.Config(
            app, host=host, port=port, log_config=None, access_log=False, server_header=False, proxy_headers=False, lifespan="off",
            ws="none", h11_max_incomplete_event_size=64 * 1024, limit_concurrency=CONNECTIONS_MAX, timeout_graceful_shutdown=5,
        )  # fmt: skip
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None
        self.port = port

    async def start(self) -> None:
        """Returns when it listens. Raises OSError when the port cannot be had."""
        self._task = asyncio.create_task(self._serve(), name="broker")
        async with asyncio.timeout(START_SECONDS_MAX):
            while not self._server.started:
                if self._task.done():
                    raise OSError(f"the broker cannot listen on {self._server.config.host}:{self._server.config.port}")
                await asyncio.sleep(0.01)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]
        log.info("broker_listens", port=self.port)

    async def _serve(self) -> None:
        with contextlib.suppress(SystemExit):  # how uvicorn says that it cannot bind
            await self._server.serve()

    async def stop(self) -> None:
        self._server.should_exit = True
        if self._task is not None:
            await self._task
