"""Models behind OpenAI-compatible endpoints: roles, limits, structured output, cost. The only module that imports openai.

A role says where the model is and how much it may be used. A run is one piece of work under one role: its calls, tokens and dollars are
counted, and a call that could pass a limit is refused before it is made. Neither prompts nor answers nor keys are logged.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import structlog
from opentelemetry.trace import SpanKind
from prometheus_client import Counter
from pydantic import BaseModel, Field, SecretStr, model_validator

from loopwright_common import telemetry
from loopwright_common.clock import Clock, SystemClock
from loopwright_common.contracts.base import Input
from loopwright_common.contracts.investigations import Cost
from loopwright_common.errors import Permanent, Refused, Unavailable
from loopwright_common.redaction import redact
from loopwright_common.spending import MemorySpending, Spending
from loopwright_common.structured import problem_of, read_object, strict_schema

if TYPE_CHECKING:
    import openai

T = TypeVar("T", bound=BaseModel)
Messages = Sequence[Mapping[str, Any]]

MESSAGE_OVERHEAD_TOKENS = 16  # role and separators of a chat message, generously
RETRY_FIRST_SECONDS = 0.5
RETRY_MOST_SECONDS = 20.0
RESPONSE_BYTES_MAX = 8 * 1024**2  # an answer of 64,000 tokens, or 256 embeddings of 3,072 numbers, with room to spare
EMBEDDINGS_PER_CALL_MAX = 256
REPAIR_CHARACTERS_MAX = 20_000

CALLS = Counter("loopwright_model_calls", "Calls to models.", ["role", "outcome"])
TOKENS = Counter("loopwright_model_tokens", "Tokens that models read and wrote.", ["role", "direction"])
DOLLARS = Counter("loopwright_model_usd", "US dollars by the role's price table.", ["role"])

log = structlog.get_logger()


class ModelRole(Input):
    """One use of a model: where it is, and its limits. A service builds it from its settings."""

    name: str = Field(pattern=r"^[a-z0-9_-]{1,40}$")
    base_url: str = Field(pattern=r"^https?://", max_length=2_048)
    api_key: SecretStr = SecretStr("")
    model: str = Field(min_length=1, max_length=200)
    # A loop of an agent that does not end by itself ends here.
    calls_per_run_max: int = Field(default=20, ge=1, le=10_000)
    input_tokens_per_run_max: int = Field(default=400_000, ge=1)
    output_tokens_per_run_max: int = Field(default=40_000, ge=1)
    output_tokens_per_call_max: int = Field(default=4_000, ge=1, le=1_000_000)
    usd_per_run_max: float = Field(default=0.5, ge=0.0)
    usd_per_day_max: float = Field(default=10.0, ge=0.0)
    usd_per_million_input: float = Field(default=0.0, ge=0.0)
    usd_per_million_output: float = Field(default=0.0, ge=0.0)
    attempt_seconds_max: float = Field(default=60.0, gt=0.0, le=3_600.0)
    call_seconds_max: float = Field(default=120.0, gt=0.0, le=7_200.0)  # with its retries
    retries_max: int = Field(default=3, ge=0, le=20)
    concurrency: int = Field(default=4, ge=1, le=256)
    temperature: float | None = Field(default=None, ge=0.0, le=2.0)  # None: the endpoint's own; some models take no other

    @model_validator(mode="after")
    def _times_fit(self) -> ModelRole:
        if self.call_seconds_max < self.attempt_seconds_max:
            raise ValueError("call_seconds_max is less than attempt_seconds_max: no attempt could end in time")
        return self

    def usd(self, input_tokens: int, output_tokens: int) -> float:
        """What so many tokens cost."""
        return (input_tokens * self.usd_per_million_input + output_tokens * self.usd_per_million_output) / 1_000_000


@dataclass(frozen=True)
class ToolCall:
    """A tool that the model wants called. ``arguments`` is JSON text as the model wrote it: untrusted and perhaps not JSON."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Completion:
    """An answer. ``model`` is the name it was given under; ``finish`` is the endpoint's reason: stop, length, tool_calls, ..."""

    content: str
    tool_calls: tuple[ToolCall, ...]
    finish: str
    model: str
    cost: Cost


class ModelClient:
    """A role's endpoint, for many runs. ``close`` it in the end."""

    def __init__(
        self,
        role: ModelRole,
        *,
        spending: Spending | None = None,
        clock: Clock | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rng: random.Random | None = None,
    ) -> None:
        # Imported here: it takes 0.7 s and 40 MB, which a service without a model does not pay.
        from loopwright_common.model_transport import open_client

        self.role = role
        self._clock = clock or SystemClock()
        self._spending = spending or MemorySpending(self._clock)
        self._sleep = sleep
        self._rng = rng or random.Random()  # noqa: S311  spreads retries, protects nothing
        self._slots = asyncio.Semaphore(role.concurrency)
        self._client = open_client(role.base_url, role.api_key, role.attempt_seconds_max, RESPONSE_BYTES_MAX)
        self._takes_schema = True
        self._limit_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"

    def start_run(self, used: Cost | None = None) -> ModelRun:
        """A run with the whole of the role's limits per run before it, less what it ``used`` before a restart."""
        return ModelRun(self, used)

    async def close(self) -> None:
        await self._client.close()


class ModelRun:
    """One piece of work: an investigation, a change. Its cost adds up; beyond its limits it raises Refused before it calls."""

    def __init__(self, client: ModelClient, used: Cost | None = None) -> None:
        self._client = client
        self._role = client.role
        self._cost = used or Cost()

    @property
    def cost(self) -> Cost:
        """What the run has used so far."""
        return self._cost

    async def complete(
        self, messages: Messages, *, schema: Mapping[str, Any] | None = None, tools: Sequence[Mapping[str, Any]] = ()
    ) -> Completion:
        """An answer to chat messages; with ``schema``, one that should be such a JSON object (``structured`` makes sure).

        Raises Refused over a limit or when the model declines, Unavailable when the endpoint does not answer in time, Permanent when it
        refuses the request.
        """
        clean = [_redacted(message) for message in messages]
        started = time.monotonic()
        while True:
            body = self._body(clean, schema, tools)
            try:
                answer, cost = await self._call("chat", body, self._role.output_tokens_per_call_max, started)
                break
            except _BadRequest as error:
                if not self._adapt(error, schema is not None):
                    raise Permanent(f"the model endpoint of {self._role.name} refused the request: {error}") from None
        try:
            return _completion(self._role, answer, cost)
        except (AttributeError, TypeError, LookupError, ValueError):
            raise Unavailable(f"the model of {self._role.name} gave an answer of another shape") from None

    async def structured(self, answer_type: type[T], messages: Messages) -> T:
        """An answer as a validated ``answer_type``. What is not valid is shown to the model once, with the errors, to be repaired.

        Raises Permanent when the repair is not valid either, and what ``complete`` raises.
        """
        schema = answer_type.model_json_schema()
        completion = await self.complete(messages, schema=schema)
        try:
            return read_object(answer_type, completion.content)
        except ValueError as error:
            problem = problem_of(error)
        log.info("model_answer_repaired", role=self._role.name, problem=problem)
        again = [
            *messages,
            {"role": "assistant", "content": completion.content[:REPAIR_CHARACTERS_MAX]},
            {"role": "user", "content": f"That is not the JSON object asked for: {problem}. Give the whole object again and nothing else."},
        ]
        completion = await self.complete(again, schema=schema)
        try:
            return read_object(answer_type, completion.content)
        except ValueError as error:
            raise Permanent(f"the model's answer is not a {answer_type.__name__}, also after a repair: {problem_of(error)}") from None

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One vector per text, in order. Raises like ``complete``, and Permanent when the vectors are not what was asked for."""
        vectors: list[list[float]] = []
        for start in range(0, len(texts), EMBEDDINGS_PER_CALL_MAX):
            part = [redact(text) for text in texts[start : start + EMBEDDINGS_PER_CALL_MAX]]
            try:
                answer, _ = await self._call("embeddings", {"input": part, "encoding_format": "float"}, 0, time.monotonic())
            except _BadRequest as error:
                raise Permanent(f"the embedding endpoint of {self._role.name} refused the request: {error}") from None
            try:
                vectors += _vectors(self._role.name, answer, len(part))
            except (AttributeError, TypeError, LookupError, ValueError):
                raise Permanent(f"the embedding endpoint of {self._role.name} gave an answer of another shape") from None
        if len({len(vector) for vector in vectors}) > 1:
            raise Permanent(f"the embedding endpoint of {self._role.name} gave vectors of different lengths")
        return vectors

    def _body(self, messages: Sequence[Mapping[str, Any]], schema: Mapping[str, Any] | None, tools: Sequence[Mapping[str, Any]]) -> Any:
        body: dict[str, Any] = {"messages": list(messages), self._client._limit_name: self._role.output_tokens_per_call_max}
        if self._role.temperature is not None:
            body["temperature"] = self._role.temperature
        if tools:
            body["tools"] = list(tools)
        if schema is not None and self._client._takes_schema:
            json_schema = {"name": "answer", "strict": True, "schema": strict_schema(schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": json_schema}
        elif schema is not None:
            wish = f"Answer with one JSON object that follows this JSON schema, and nothing else:\n{json.dumps(schema)}"
            body["messages"].append({"role": "user", "content": wish})
        return body

    def _adapt(self, error: _BadRequest, with_schema: bool) -> bool:
        """Whether another form of the request may be taken; remembered for the endpoint."""
        client = self._client
        if "max_completion_tokens" in error.said and client._limit_name == "max_tokens":
            client._limit_name = "max_completion_tokens"
            return True
        if with_schema and client._takes_schema:
            # Endpoints word this in many ways, or in none: asking without the schema finds out.
            client._takes_schema = False
            log.info("model_takes_no_schema", role=self._role.name)
            return True
        return False

    async def _call(self, kind: Literal["chat", "embeddings"], body: dict[str, Any], output_max: int, started: float) -> tuple[Any, Cost]:
        role = self._role
        bound = _tokens_at_most(body)
        deadline = started + role.call_seconds_max
        attempt = 0
        async with self._client._slots:
            while True:
                attempt += 1
                try:
                    return await self._attempt(kind, body, bound, output_max, deadline)
                except Unavailable as error:
                    wait = max(self._backoff(attempt), error.after.total_seconds() if error.after is not None else 0.0)
                    if attempt > role.retries_max or time.monotonic() + wait >= deadline:
                        raise Unavailable(f"{error} ({attempt} attempts)", error.after) from None
                    log.info("model_retried", role=role.name, attempt=attempt, wait_seconds=round(wait, 2), reason=str(error))
                    await self._client._sleep(wait)

    def _backoff(self, attempt: int) -> float:
        most = min(RETRY_FIRST_SECONDS * 2.0 ** (attempt - 1), RETRY_MOST_SECONDS)
        return most * self._client._rng.uniform(0.5, 1.0)

    async def _attempt(self, kind: str, body: dict[str, Any], bound: int, output_max: int, deadline: float) -> tuple[Any, Cost]:
        import openai

        role = self._role
        reserved = role.usd(bound, output_max)
        self._check_run(bound, output_max, reserved)
        try:
            day = await self._client._spending.reserve(role.name, reserved, role.usd_per_day_max)
        except Refused:
            CALLS.labels(role.name, "over_budget").inc()
            raise
        # Counted as used in full until we know better: calls side by side cannot pass a limit together, and one that is lost may be billed.
        held = Cost(model_calls=1, input_tokens=bound, output_tokens=output_max, usd=reserved)
        self._cost = _plus(self._cost, held)
        used, outcome, began = held, "lost", time.monotonic()
        try:
            with telemetry.span(f"model {role.name}", kind=SpanKind.CLIENT, **{"gen_ai.request.model": role.model}):
                async with asyncio.timeout(max(0.1, min(role.attempt_seconds_max, deadline - began))):
                    answer = await self._request(kind, body)
            used, outcome = _used(role, answer, bound, output_max), "answered"
        except (TimeoutError, openai.APITimeoutError):
            outcome = "timed_out"
            raise Unavailable(f"the model of {role.name} did not answer within {role.attempt_seconds_max:g} s") from None
        except openai.APIStatusError as error:
            used, outcome = Cost(model_calls=1), f"status_{error.status_code}"
            raise _explain(role, error) from None
        except openai.APIConnectionError as error:
            outcome = "unreachable"
            cause = error.__cause__
            used = Cost(model_calls=1) if type(cause).__name__ == "ConnectError" else held
            raise Unavailable(f"the model of {role.name} cannot be reached: {type(cause or error).__name__}") from None
        except (openai.OpenAIError, ValueError, RecursionError) as error:
            outcome = "unreadable"
            raise Unavailable(f"the model of {role.name} gave an answer that cannot be read: {type(error).__name__}") from None
        finally:
            used = used.model_copy(update={"wall_seconds": time.monotonic() - began})
            self._cost = _plus(_minus(self._cost, held), used)
            await self._client._spending.settle(role.name, day, reserved, used.usd)
            self._record(outcome, used)
        return answer, used

    async def _request(self, kind: str, body: dict[str, Any]) -> Any:
        client: openai.AsyncOpenAI = self._client._client
        if kind == "chat":
            return await client.chat.completions.create(model=self._role.model, **body)
        return await client.embeddings.create(model=self._role.model, **body)

    def _check_run(self, input_tokens: int, output_tokens: int, usd: float) -> None:
        role, cost = self._role, self._cost
        for what, used, more, most in (
            ("calls", cost.model_calls, 1, role.calls_per_run_max),
            ("input tokens", cost.input_tokens, input_tokens, role.input_tokens_per_run_max),
            ("output tokens", cost.output_tokens, output_tokens, role.output_tokens_per_run_max),
            ("US dollars", cost.usd, usd, role.usd_per_run_max + 1e-8),
        ):
            if used + more > most:
                CALLS.labels(role.name, "refused").inc()
                raise Refused(
                    f"the model role {role.name} may use {most:g} {what} a run; {used:g} are used and this call could use {more:g}"
                )

    def _record(self, outcome: str, used: Cost) -> None:
        role = self._role
        CALLS.labels(role.name, outcome).inc()
        TOKENS.labels(role.name, "input").inc(used.input_tokens)
        TOKENS.labels(role.name, "output").inc(used.output_tokens)
        DOLLARS.labels(role.name).inc(used.usd)
        log.info(
            "model_called",
            role=role.name,
            model=role.model,
            outcome=outcome,
            input_count=used.input_tokens,
            output_count=used.output_tokens,
            usd=round(used.usd, 6),
            seconds=round(used.wall_seconds, 3),
        )


class _BadRequest(Exception):
    """The endpoint does not take the request in this form. ``said`` is its text, for looking into, never for showing."""

    def __init__(self, status: int, code: str, said: str) -> None:
        super().__init__(f"status {status}{f', {code}' if code else ''}")
        self.said = said


def _explain(role: ModelRole, error: openai.APIStatusError) -> Exception:
    """The error for a status. The endpoint's own text is left out: it may repeat the prompt or the key."""
    status = error.status_code
    body = error.body if isinstance(error.body, dict) else {}
    code = "".join(
        character for character in str(body.get("code") or body.get("type") or "")[:60] if character.isalnum() or character in "_-."
    )
    told = f"status {status}{f', {code}' if code else ''}"
    if status in (401, 403):
        return Refused(f"the model endpoint of {role.name} does not take the key ({told})")
    if status == 429 and code == "insufficient_quota":
        return Refused(f"the account of the model role {role.name} has no quota left ({told})")
    if status in (408, 409, 425, 429) or status >= 500:
        return Unavailable(f"the model endpoint of {role.name} is not serving now ({told})", _retry_after(error.response.headers))
    if status in (400, 422):
        return _BadRequest(status, code, str(error.body)[:20_000])
    if status == 404:
        return Permanent(f"the model endpoint of {role.name} knows no model {role.model!r} or no such route ({told}); see its base URL")
    return Permanent(f"the model endpoint of {role.name} refused the request ({told})")


def _retry_after(headers: Mapping[str, str]) -> timedelta | None:
    """RFC 9110, section 10.2.3, and the header in milliseconds that some endpoints send."""
    try:
        if "retry-after-ms" in headers:
            return timedelta(milliseconds=max(0.0, float(headers["retry-after-ms"])))
        text = headers.get("retry-after")
        if text is None:
            return None
        if text.strip().replace(".", "", 1).isdigit():
            return timedelta(seconds=float(text))
        moment = parsedate_to_datetime(text)
        return max(timedelta(0), moment - SystemClock().now())
    except (ValueError, TypeError, OverflowError):
        return None


def _tokens_at_most(body: Mapping[str, Any]) -> int:
    """No tokeniser in use makes more tokens than there are bytes, so this many at most are billed for the input."""
    return len(json.dumps(body, ensure_ascii=False).encode()) + MESSAGE_OVERHEAD_TOKENS * (len(body.get("messages", ())) + 1)


def _used(role: ModelRole, answer: Any, bound: int, output_max: int) -> Cost:
    """What the answer says it used; what it does not say is counted as the most it can be."""
    usage = getattr(answer, "usage", None)
    found = [getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
    input_tokens = found[0] if isinstance(found[0], int) and found[0] >= 0 else bound
    output_tokens = found[1] if isinstance(found[1], int) and found[1] >= 0 else output_max
    return Cost(model_calls=1, input_tokens=input_tokens, output_tokens=output_tokens, usd=role.usd(input_tokens, output_tokens))


def _plus(one: Cost, other: Cost) -> Cost:
    return Cost(**{name: getattr(one, name) + getattr(other, name) for name in Cost.model_fields})


def _minus(one: Cost, other: Cost) -> Cost:
    return Cost(**{name: getattr(one, name) - getattr(other, name) for name in Cost.model_fields})


def _redacted(message: Mapping[str, Any]) -> dict[str, Any]:
    return {key: redact(value) if key == "content" and isinstance(value, str) else value for key, value in message.items()}


def _completion(role: ModelRole, answer: Any, cost: Cost) -> Completion:
    choices = getattr(answer, "choices", None)
    if not choices:
        raise Unavailable(f"the model of {role.name} gave an answer without a choice")
    choice = choices[0]
    message, finish = choice.message, str(choice.finish_reason or "")
    if getattr(message, "refusal", None) or finish == "content_filter":
        raise Refused(f"the model of {role.name} declined to answer")
    calls = tuple(
        ToolCall(str(call.id), str(call.function.name), str(call.function.arguments or ""))
        for call in (message.tool_calls or ())
        if getattr(call, "function", None) is not None
    )
    return Completion(str(message.content or ""), calls, finish, str(answer.model or role.model), cost)


def _vectors(role: str, answer: Any, wanted: int) -> list[list[float]]:
    data = sorted(getattr(answer, "data", None) or (), key=lambda item: int(item.index))
    vectors = [[float(number) for number in item.embedding] for item in data]
    if [item.index for item in data] != list(range(wanted)) or not all(vectors):
        raise Permanent(f"the embedding endpoint of {role} gave {len(data)} vectors for {wanted} texts")
    if not all(math.isfinite(number) for vector in vectors for number in vector):
        raise Permanent(f"the embedding endpoint of {role} gave a vector with numbers that are not finite")
    return vectors
