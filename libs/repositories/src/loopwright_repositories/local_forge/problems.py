"""The forge's refusals as HTTP problems (RFC 9457)."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from loopwright_repositories.errors import (
    HostileInput,
    OutputTooLarge,
    RepositoryError,
    RepositoryUnavailable,
    UnknownPath,
    UnknownRevision,
)
from loopwright_repositories.local_forge.store import Full

_TITLES = {
    400: "Bad request", 401: "Who are you?", 403: "Not with this token", 404: "Not found", 405: "Method not allowed", 409: "Conflict",
    411: "Length required", 413: "Too large", 415: "Unsupported media type", 422: "Cannot be processed", 500: "Server error",
    503: "Not now",
}  # fmt: skip


class Problem(Exception):
    """An answer other than success. ``detail`` says what is wrong and what to do."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers or {}


def problem_response(status: int, detail: str, headers: dict[str, str] | None = None, **more: Any) -> JSONResponse:
    """A problem+json answer."""
    body = {"type": "about:blank", "title": _TITLES.get(status, "Error"), "status": status, "detail": detail, **more}
    return JSONResponse(body, status_code=status, media_type="application/problem+json", headers=headers)


def install(app: FastAPI) -> None:
    """Answers every error of the application as problem+json."""

    @app.exception_handler(Problem)
    async def _problem(request: Request, error: Problem) -> JSONResponse:
        return problem_response(error.status, error.detail, error.headers)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        return problem_response(error.status_code, str(error.detail), dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        faults = [
            {"where": ".".join(str(part)[:64] for part in fault["loc"]), "fault": fault["msg"][:300]} for fault in error.errors()[:20]
        ]
        return problem_response(422, "; ".join(f"{fault['where']}: {fault['fault']}" for fault in faults[:3]), errors=faults)

    @app.exception_handler(Full)
    async def _full(request: Request, error: Full) -> JSONResponse:
        return problem_response(422, str(error))

    @app.exception_handler(RepositoryError)
    async def _repository(request: Request, error: RepositoryError) -> JSONResponse:
        if isinstance(error, RepositoryUnavailable):
            return problem_response(503, str(error), {"Retry-After": "2"})
        if isinstance(error, UnknownRevision | UnknownPath):
            return problem_response(404, str(error))
        if isinstance(error, HostileInput):
            return problem_response(422, str(error))
        if isinstance(error, OutputTooLarge):
            return problem_response(413, str(error))
        return problem_response(422, str(error))
