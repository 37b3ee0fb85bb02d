"""The HTTP edge."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Path, Request, Response
from loopwright_common.auth import TOKEN_LENGTH_MAX, bearer
from loopwright_common.contracts.configuration import Scope
from loopwright_common.contracts.signals import Signal
from loopwright_common.errors import Retryable
from loopwright_common.problems import MEDIA_TYPE, Problem, ProblemError, field_errors, problem_response
from loopwright_common.process import BodyTooLarge
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from loopwright_ingest.admission import Admission
from loopwright_ingest.decoding import TooLarge, Undecodable, UnknownEncoding, decompress, parse_json
from loopwright_ingest.domain import Sender
from loopwright_ingest.handlers import Intake
from loopwright_ingest.settings import IngestSettings
from loopwright_ingest.sources import deploys, http, sentry

COMPRESSED_HERE_BYTES = 2 * 1024  # may be a bomb that grows a thousandfold
DECODE_HERE_BYTES = 64 * 1024  # larger bodies are decompressed and parsed in a thread, so that others are not kept waiting

router = APIRouter()


class Parts:
    """What routes are given."""

    def __init__(self, settings: IngestSettings, admission: Admission, intake: Intake) -> None:
        self.settings = settings
        self.admission = admission
        self.intake = intake


def parts(request: Request) -> Parts:
    found: Parts | None = getattr(request.app.state, "parts", None)
    if found is None:
        raise ProblemError(503, "Ingest is starting.", headers={"Retry-After": "1"})
    return found


PartsOf = Annotated[Parts, Depends(parts)]


class DropCount(BaseModel):
    type: str
    reason: str
    count: int


DEFINITIONS: dict[str, Any] = {}  # what the schemas below refer to; ``app`` puts it into the OpenAPI document's components


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    """A model's schema for the OpenAPI document. Left as pydantic makes it, "#/$defs/..." would lead nowhere in there."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    DEFINITIONS.update(schema.pop("$defs", {}))
    return schema


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    words = {
        400: "The body is not JSON, or not compressed as it says.",
        401: "No key.",
        403: "The key is unknown, revoked, or lacks the scope.",
        413: "The body is over the limit, as sent or once decompressed.",
        415: "A content type or encoding that is not understood.",
        422: "Fields that cannot be used; errors names them.",
        429: "The project's rate is used up; Retry-After says for how long.",
        503: "Not accepted: the bus or the keys are out of reach. Try again.",
    }
    content = {MEDIA_TYPE: {"schema": _schema(Problem)}}
    return {status: {"description": words[status], "content": content} for status in statuses}


ERRORS = _problems(400, 401, 403, 413, 415, 422, 429, 503)


def _body(model: type[BaseModel], *, many: bool = False) -> dict[str, Any]:
    """Documents a body that is read by hand, so that limits hold before it is parsed."""
    one = _schema(model)
    if many:
        several = {"type": "array", "items": one, "minItems": 1, "maxItems": http.ITEMS_MAX}
        wrapped = {"type": "object", "properties": {"signals": several}, "required": ["signals"], "additionalProperties": False}
        one = {"anyOf": [one, several, wrapped]}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": one}}}}


def _key(request: Request) -> str:
    key = bearer(request.headers) or request.headers.get("x-loopwright-key", "")
    return key if len(key) <= TOKEN_LENGTH_MAX else ""


async def _read(request: Request, parts: Parts) -> bytes:
    """The body, decompressed, within the limits."""
    try:
        body = await request.body()
    except ClientDisconnect as error:
        raise ProblemError(400, "The body ended too early.") from error
    encoding = ", ".join(request.headers.getlist("content-encoding"))
    limit = parts.settings.decoded_bytes_max
    try:
        if encoding and len(body) > COMPRESSED_HERE_BYTES:
            return await run_in_threadpool(decompress, body, encoding, limit)
        return decompress(body, encoding, limit)
    except UnknownEncoding as error:
        raise ProblemError(415, str(error), headers={"Accept-Encoding": "gzip, deflate, br"}) from error
    except TooLarge as error:
        raise ProblemError(413, str(error)) from error
    except Undecodable as error:
        raise ProblemError(400, str(error)) from error


async def _read_json(request: Request, parts: Parts) -> Any:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("application/json", "") and not kind.endswith("+json"):
        raise ProblemError(415, f"Content-Type {kind[:64]!r} is not understood; send application/json.")
    body = await _read(request, parts)
    try:
        return await run_in_threadpool(parse_json, body) if len(body) > DECODE_HERE_BYTES else parse_json(body)
    except Undecodable as error:
        raise ProblemError(400, str(error)) from error
    except TooLarge as error:
        raise ProblemError(413, str(error)) from error


M = TypeVar("M", bound=BaseModel)


def _validated(model: type[M], body: Any) -> M:
    try:
        return model.model_validate(body)
    except ValidationError as error:
        found = field_errors(error.errors(include_url=False, include_input=False, include_context=False))
        raise ProblemError(422, "The body has fields that cannot be used; see errors.", errors=found) from error


@router.post(
    "/v1/signals",
    status_code=202,
    response_model=http.SignalsAnswer,
    responses={**ERRORS, 207: {"model": http.SignalsAnswer, "description": "Some were accepted; see each result."}},
    openapi_extra=_body(http.SignalIn, many=True),
    tags=["signals"],
)
async def post_signals(request: Request, parts: PartsOf) -> Response:
    """Takes one signal, or up to 1,000 as a list or as ``{"signals": [...]}``. Answered once they are durable."""
    sender = parts.admission.admit(_key(request), Scope.SIGNALS)
    body = await _read_json(request, parts)
    try:
        items = http.items_of(body)
    except ValueError as error:
        raise ProblemError(422, str(error)) from error
    answer = await parts.intake.signals(items, sender)
    if answer.rejected == len(items):
        first = answer.results[0]
        errors = (
            first.errors
            if len(items) == 1
            else [e.model_copy(update={"pointer": f"/{r.index}{e.pointer}"}) for r in answer.results for e in r.errors]
        )
        raise ProblemError(422, "No signal of the request can be used; see errors.", errors=errors[:50])
    return JSONResponse(answer.model_dump(mode="json"), 207 if answer.rejected else 202)


@router.post(
    "/v1/deploys",
    status_code=202,
    response_model=deploys.DeployAnswer,
    responses=ERRORS,
    openapi_extra=_body(deploys.DeployIn),
    tags=["deploys"],
)
async def post_deploy(request: Request, parts: PartsOf) -> Response:
    """A release of a service went live."""
    sender = parts.admission.admit(_key(request), Scope.DEPLOYS)
    given = _validated(deploys.DeployIn, await _read_json(request, parts))
    parts.admission.spend(sender, 1)
    deploy = deploys.deploy(given, sender, parts.intake.now())
    ack = await parts.intake.deploy(deploy)
    answer = deploys.DeployAnswer(id=deploy.id, outcome="duplicate" if ack.duplicate else "accepted")
    return JSONResponse(answer.model_dump(), 202)


@router.post(
    "/v1/exposure",
    status_code=202,
    response_model=deploys.ExposureAnswer,
    responses=ERRORS,
    openapi_extra=_body(deploys.ExposuresIn),
    tags=["exposure"],
)
async def post_exposure(request: Request, parts: PartsOf) -> Response:
    """How many requests or sessions began in each minute: what every rate is divided by."""
    sender = parts.admission.admit(_key(request), Scope.EXPOSURE)
    given = _validated(deploys.ExposuresIn, await _read_json(request, parts))
    parts.admission.spend(sender, len(given.exposure))
    acks = await parts.intake.exposure([deploys.exposure(item, sender) for item in given.exposure])
    duplicates = sum(ack.duplicate for ack in acks)
    return JSONResponse(deploys.ExposureAnswer(accepted=len(acks) - duplicates, duplicates=duplicates).model_dump(), 202)


@router.get("/v1/drops", response_model=list[DropCount], responses=_problems(401, 403, 503), tags=["signals"])
async def show_drops(request: Request, parts: PartsOf) -> Response:
    """What was taken from the project's clients and is not used, since this process started."""
    sender = parts.admission.admit(_key(request), Scope.SIGNALS)
    return JSONResponse(parts.admission.dropped(sender.name))


# Sentry clients

Number = Annotated[str, Path(pattern=r"^[0-9]{1,9}$")]


@router.post("/api/{project}/envelope/", include_in_schema=False)
@router.post("/api/{project}/envelope", include_in_schema=False)
async def post_envelope(request: Request, parts: PartsOf, project: Number) -> Response:
    """An envelope from a Sentry SDK."""

    async def take() -> str:
        body: bytes | None = None
        key = _sentry_key(request)
        if not key:
            # Only the envelope itself can name the key then; it is read within the same limits.
            body = await _read(request, parts)
            key = sentry.key_of("", "", str(sentry.read_envelope(body)[0].get("dsn") or ""))
        sender = parts.admission.admit(key, Scope.SENTRY, number=int(project))
        if body is None:
            body = await _read(request, parts)
        headers, items = sentry.read_envelope(body)
        found = await parts.intake.sentry(items, sender, str(headers.get("sent_at") or "")[:64])
        return _event_id(str(headers.get("event_id") or ""), found.signals)

    return await _sentry(take)


@router.post("/api/{project}/store/", include_in_schema=False)
@router.post("/api/{project}/store", include_in_schema=False)
async def post_store(request: Request, parts: PartsOf, project: Number) -> Response:
    """One event, as older SDKs send it."""

    async def take() -> str:
        sender: Sender = parts.admission.admit(_sentry_key(request), Scope.SENTRY, number=int(project))
        body = await _read(request, parts)
        found = await parts.intake.sentry([sentry.Item("event", {}, body)], sender)
        return _event_id("", found.signals)

    return await _sentry(take)


def _sentry_key(request: Request) -> str:
    header = request.headers.get("x-sentry-auth") or request.headers.get("authorization") or ""
    return sentry.key_of(header[:1024], request.url.query[:2048])


def _event_id(said: str, signals: list[Signal]) -> str:
    return said.replace("-", "") or (signals[0].dedupe_key if signals else "")


async def _sentry(take: Any) -> Response:
    """Answers as Sentry clients expect: the event's id, or X-Sentry-Error, and the rate limits they obey."""
    try:
        event_id = await take()
    except ProblemError as error:
        return _sentry_error(error.status, error.detail, error.headers)
    except (Undecodable, RecursionError) as error:
        return _sentry_error(400, str(error), {})
    except TooLarge as error:
        return _sentry_error(413, str(error), {})
    except BodyTooLarge:
        raise
    except Retryable as error:
        return _sentry_error(503, str(error), {"Retry-After": "1"})
    return JSONResponse({"id": event_id} if event_id else {})


def _sentry_error(status: int, detail: str, headers: dict[str, str]) -> Response:
    text = "".join(character for character in detail if 32 <= ord(character) < 127)[:500]
    extra = {**headers, "X-Sentry-Error": text}
    if status == 429:
        extra["X-Sentry-Rate-Limits"] = f"{headers.get('Retry-After', '60')}::project"  # no category: all of them
    return problem_response(status, detail, headers=extra)
