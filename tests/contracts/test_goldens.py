"""The wire format of every payload and its JSON schema, against the golden files."""

from __future__ import annotations

import json
import types
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le, Lt
from loopwright_common.bus import Timer
from loopwright_common.contracts.configuration import ProjectConfig, PublishedProject
from loopwright_common.contracts.queries import QueryError
from loopwright_common.contracts.subjects import QUESTIONS, SUBJECTS
from pydantic import BaseModel
from pydantic.fields import FieldInfo

MOMENT = datetime(2026, 11, 26, 10, 0, 0, 250_000, tzinfo=UTC)
PAYLOADS = sorted(
    {
        *(subject.payload for subject in SUBJECTS),
        *(question.query for question in QUESTIONS),
        *(question.answer for question in QUESTIONS),
        QueryError,
        Timer,
        ProjectConfig,
        PublishedProject,
    },
    key=lambda payload: payload.__name__,
)
# What a pattern or a rule between fields asks for and no type says.
SAID = {
    "commit": "c0ffee" * 6 + "beef",
    "sha256": "ab" * 32,
    "priority": "P1",
    "start_priorities": ("P0", "P1"),
    "expected_head": "c0ffee" * 6 + "beef",
    "merge_commit": "c0ffee" * 6 + "beef",
    "base_commit": "c0ffee" * 6 + "beef",
    "head_commit": "c0ffee" * 6 + "beef",
    "reverts": "c0ffee" * 6 + "beef",
    "repository": "name",  # the one that is declared beside it
    "source": "http",
    "kind_weights": {"log": 0.5},
    "half_life": timedelta(hours=1),
}


def example(model: type[BaseModel]) -> dict[str, Any]:
    """A value for every field, made from its type and name alone: the same at every run."""
    return {name: value_of(name, field.annotation, field) for name, field in model.model_fields.items()}


def value_of(name: str, annotation: Any, field: FieldInfo | None = None) -> Any:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return value_of(name, next(argument for argument in arguments if argument is not type(None)), field)
    if origin is tuple:
        return SAID[name] if isinstance(SAID.get(name), tuple) else (value_of(name.removesuffix("s"), arguments[0]),)
    if name in SAID and origin is not Literal:
        return SAID[name]
    if hasattr(annotation, "__metadata__"):
        return value_of(name, annotation.__origin__, field)
    if origin is dict:
        return {"key": "ä" if arguments[1] is Any else value_of(name, arguments[1])}
    if origin is Literal:
        return arguments[0]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return example(annotation)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return next(iter(annotation)).value
    plain: dict[Any, Any] = {str: name.replace("_", "-")[:40], bool: True, datetime: MOMENT, timedelta: timedelta(seconds=30)}
    return plain[annotation] if annotation in plain else number(annotation, field)


def number(annotation: Any, field: FieldInfo | None) -> Any:
    """A number within the field's bounds."""
    least, most = 0.0, 1e9
    for rule in field.metadata if field is not None else ():
        if isinstance(rule, Ge | Gt):
            least = (
                float(rule.ge if isinstance(rule, Ge) else rule.gt)
                if isinstance(getattr(rule, "ge", getattr(rule, "gt", 0)), int | float)
                else least
            )
        if isinstance(rule, Le | Lt):
            most = float(rule.le if isinstance(rule, Le) else rule.lt)
    middle = least + min(1.0, (most - least) / 2)
    return int(middle) if annotation is int else middle


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda payload: payload.__name__)
def test_a_payload_is_written_as_it_was_agreed(payload: type[BaseModel], golden: Callable[[str, Any], None]) -> None:
    value = payload.model_validate(example(payload))

    golden(payload.__name__, json.loads(value.model_dump_json()))


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda payload: payload.__name__)
def test_what_an_earlier_version_wrote_is_still_read(payload: type[BaseModel]) -> None:
    written = (Path(__file__).parent / "golden" / f"{payload.__name__}.json").read_text(encoding="utf-8")

    read = payload.model_validate_json(written)

    assert json.loads(read.model_dump_json()) == json.loads(written)


def test_no_golden_is_left_of_a_payload_that_is_gone() -> None:
    kept = {path.stem for path in (Path(__file__).parent / "golden").glob("*.json")}

    assert kept == {payload.__name__ for payload in PAYLOADS} | {"subjects"}


def test_the_table_of_subjects_is_as_it_was_agreed(golden: Callable[[str, Any], None]) -> None:
    golden(
        "subjects",
        {
            "facts": [
                {
                    "subject": subject.pattern,
                    "payload": subject.payload.__name__,
                    "type": subject.event_type,
                    "publishers": list(subject.publishers),
                    "stream": subject.stream,
                }
                for subject in SUBJECTS
            ],
            "questions": [
                {"subject": each.subject, "query": each.query.__name__, "answer": each.answer.__name__, "answered_by": each.answered_by}
                for each in QUESTIONS
            ],
        },
    )
