"""Answers that are JSON objects: the schema to ask for, the object to find, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

T = TypeVar("T", bound=BaseModel)

# What structured output takes: closed objects with every field required; bounds are checked when the answer is validated.
_NOT_IN_STRICT = frozenset(
    {"default", "title", "maxLength", "minLength", "pattern", "format", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
     "multipleOf", "minItems", "maxItems", "uniqueItems"}
)  # fmt: skip


def strict_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON schema as structured output wants it (OpenAI, "Structured model outputs", supported schemas)."""

    def convert(node: Any, is_schema: bool = True) -> Any:
        if isinstance(node, Mapping):
            kept = {key: value for key, value in node.items() if not (is_schema and key in _NOT_IN_STRICT)}
            result = {key: convert(value, is_schema=not (is_schema and key in ("properties", "$defs"))) for key, value in kept.items()}
            if is_schema and isinstance(node.get("properties"), Mapping):
                result |= {"additionalProperties": False, "required": list(node["properties"])}
            return result
        return [convert(item) for item in node] if isinstance(node, list) else node

    converted: dict[str, Any] = convert(schema)
    return converted


def read_object(answer_type: type[T], content: str) -> T:
    """The JSON object within ``content``, also where the endpoint wraps it in a fence or in words. Raises ValueError."""
    start, end = content.find("{"), content.rfind("}")
    if start < 0 or end < start:
        raise ValueError("it holds no JSON object")
    return answer_type.model_validate_json(content[start : end + 1])


def problem_of(error: ValueError) -> str:
    if isinstance(error, ValidationError):
        items = error.errors(include_input=False, include_url=False)[:10]
        return "; ".join(f"{'.'.join(map(str, item['loc'])) or 'the object'}: {item['msg']}" for item in items)[:2_000]
    return str(error)[:500]
