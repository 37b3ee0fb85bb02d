"""HTTP errors as problem+json (RFC 9457), the same in every service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from loopwright_common.errors import LoopwrightError, NotFound, Refused, Retryable

MEDIA_TYPE = "application/problem+json"
FIELD_ERRORS_MAX = 50

log = structlog.get_logger()


class FieldError(BaseModel):
    """What is wrong with one field; ``pointer`` is a JSON pointer (RFC 6901) into the body, or the parameter's name."""

    pointer: str
    detail: str


class Problem(BaseModel):
    """The body of every error answer."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str = ""
    errors: list[FieldError] = Field(default_factory=list)


class ProblemError(Exception):
    """Raised by a route to answer with a problem. ``detail`` names the thing, the value, the limit and the next step."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        errors: Sequence[FieldError] = (),
        type: str = "about:blank",
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})
        self.errors = list(errors)
        self.type = type


def problem_response(
    status: int, detail: str = "", *, headers: Mapping[str, str] | None = None, errors: Sequence[FieldError] = (), type: str = "about:blank"
) -> Response:
    """A problem+json answer."""
    title = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "Error"
    problem = Problem(type=type, title=title, status=status, detail=detail, errors=list(errors))
    return JSONResponse(problem.model_dump(exclude_defaults=False), status, dict(headers or {}), media_type=MEDIA_TYPE)


def field_errors(errors: Sequence[Any], *, of_request: bool = False) -> list[FieldError]:
    """pydantic's errors as field errors, without the input: it may hold a secret, and it is hostile.

    ``of_request``: FastAPI's own, which begin with where in the request they are. A model's may begin with a field named body.
    """
    found = []
    for error in list(errors)[:FIELD_ERRORS_MAX]:
        location = [str(part).replace("~", "~0").replace("/", "~1") for part in error.get("loc", ())]
        if of_request and location[:1] == ["body"]:
            location = location[1:]
        found.append(FieldError(pointer="/" + "/".join(location)[:500], detail=str(error.get("msg", "is not valid"))[:500]))
    return found


def install(app: FastAPI) -> None:
    """Makes every error of ``app`` a problem+json answer, the unexpected ones without their insides."""

    @app.exception_handler(ProblemError)
    async def _problem(_: Request, error: ProblemError) -> Response:
        return problem_response(error.status, error.detail, headers=error.headers, errors=error.errors, type=error.type)

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> Response:
        kinds = {item.get("type") for item in error.errors()}
        if "json_invalid" in kinds:
            return problem_response(400, "The body is not valid JSON.")
        return problem_response(
            422, "The request has fields that cannot be used; see errors.", errors=field_errors(error.errors(), of_request=True)
        )

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> Response:
        return problem_response(error.status_code, str(error.detail or ""), headers=error.headers)

    @app.exception_handler(LoopwrightError)
    async def _ours(_: Request, error: LoopwrightError) -> Response:
        if isinstance(error, NotFound):
            return problem_response(404, str(error))
        if isinstance(error, Refused):
            return problem_response(409, str(error))
        if isinstance(error, Retryable):
            seconds = max(1, int(error.after.total_seconds())) if error.after else 1
            return problem_response(503, str(error), headers={"Retry-After": str(seconds)})
        return problem_response(422, str(error))

    @app.exception_handler(Exception)
    async def _unexpected(request: Request, error: Exception) -> Response:
        log.error("request_failed", method=request.method, route=_route(request), exc_info=error)
        return problem_response(500, "Something went wrong here; the log has the details under this request's trace id.")


def _route(request: Request) -> str:
    route = request.scope.get("route")
    return str(getattr(route, "path", "unknown"))
