"""The two ends of a question: what the service that answers sends back, and how the one that asked reads it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from opentelemetry.trace import SpanKind
from pydantic import ValidationError

from loopwright_common import telemetry
from loopwright_common.contracts.base import Contract
from loopwright_common.contracts.queries import QueryError
from loopwright_common.contracts.subjects import Question
from loopwright_common.errors import Permanent, Retryable, Unavailable

OUTCOME = "Loopwright-Outcome"  # "answer", or "error" with a QueryError as the body

log = structlog.get_logger()


async def answer_question(
    question: Question, handler: Callable[[Any], Awaitable[Contract]], body: bytes, traceparent: str = ""
) -> tuple[dict[str, str], bytes]:
    """Headers and body of the answer; never raises, an error is an answer too."""
    try:
        query = question.query.model_validate_json(body)
    except ValidationError as error:
        return failure(f"the query is not a {question.query.__name__}: {error.error_count()} errors", retryable=False)
    with telemetry.span(f"answer {question.subject}", parent=traceparent, kind=SpanKind.SERVER):
        try:
            answer = await handler(query)
        except Retryable as error:
            return failure(str(error), retryable=True)
        except Permanent as error:
            return failure(str(error), retryable=False)
        except Exception as error:
            log.error("answer_crashed", question=question.subject, exc_info=error)
            return failure(f"{question.answered_by} failed: {type(error).__name__}", retryable=True)
    return {OUTCOME: "answer"}, answer.model_dump_json().encode()


def failure(reason: str, *, retryable: bool) -> tuple[dict[str, str], bytes]:
    """An answer that says why there is none."""
    return {OUTCOME: "error"}, QueryError(error=reason[:2_000], retryable=retryable).model_dump_json().encode()


def read_answer(question: Question, headers: dict[str, str], body: bytes) -> Contract:
    """The answer. Raises Unavailable or Permanent as the other side says, Permanent when it cannot be read."""
    try:
        if headers.get(OUTCOME) == "error":
            error = QueryError.model_validate_json(body)
        else:
            return question.answer.model_validate_json(body)
    except ValidationError as invalid:
        raise Permanent(f"{question.answered_by} gave an answer to {question.subject} that cannot be read") from invalid
    if error.retryable:
        raise Unavailable(error.error)
    raise Permanent(error.error)
