"""The chart's values without helm: every one has a comment and a rule, and the schema is what they and the settings say."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "helm" / "loopwright"
TEXT = (CHART / "values.yaml").read_text(encoding="utf-8")
VALUES: dict[str, Any] = yaml.safe_load(TEXT)


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = util.spec_from_file_location("chart_schema", ROOT / "tools" / "chart_schema.py")
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def keys(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every key, those of maps in lists left out."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*path, key)
            yield from keys(item, (*path, key))


def test_the_schema_is_what_values_and_settings_say() -> None:
    done = subprocess.run([sys.executable, ROOT / "tools" / "chart_schema.py", "--check"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_value_has_a_comment_that_says_what_it_is_for(tool: ModuleType) -> None:
    told = tool.comments(TEXT)
    wanted = {".".join(part.replace(".", "~") for part in path) for path in keys(VALUES)}
    assert wanted - set(told) == set()
    assert {path: comment for path, comment in told.items() if len(comment) < 5} == {}


def test_a_value_without_a_comment_stops_the_writing(tool: ModuleType) -> None:
    with pytest.raises(tool.Incomplete, match=r"image\.tag has no comment"):
        tool.comments("# The image.\nimage:\n  tag: x\n")
    with pytest.raises(tool.Incomplete, match="no rule says"):
        tool.schema_of([], ["newList"], {})
    with pytest.raises(tool.Incomplete, match="no rule says"):
        tool.schema_of({}, ["newMap"], {})


def test_the_defaults_keep_the_schema(validator: Draft202012Validator) -> None:
    assert [error.message for error in validator.iter_errors(VALUES)] == []


def within(schema: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any] | None:
    """The schema of a value, or None where the names below a map are not the chart's but those of Kubernetes, a node or a label."""
    found: Any = schema
    for part in path:
        while "$ref" in found:
            target: Any = schema
            for step in found["$ref"].removeprefix("#/").split("/"):
                target = target[step]
            found = target
        if part not in found.get("properties", {}):
            return None
        found = found["properties"][part]
    return found


def test_only_maps_of_other_peoples_names_are_open(validator: Draft202012Validator) -> None:
    unknown = {".".join(path[:-1]) for path in keys(VALUES) if within(validator.schema, path) is None}
    wanted = {"requests", "limits", "default", "defaultRequest", "max", "hard", "labels", "parameters", "seccompProfile", "capabilities"}
    assert {path.rpartition(".")[2] for path in unknown} - {"strategy"} <= wanted


@pytest.mark.parametrize("path", list(keys(VALUES)), ids=".".join)
def test_every_key_is_in_the_schema_and_a_typo_of_it_is_refused(path: tuple[str, ...], validator: Draft202012Validator) -> None:
    if within(validator.schema, path) is None:
        return  # looked at by the test above
    changed = copy.deepcopy(VALUES)
    parent = changed
    for part in path[:-1]:
        parent = parent[part]
    parent[f"{path[-1]}x"] = parent.pop(path[-1])
    refused = [error.message for error in validator.iter_errors(changed)]
    assert any(f"'{path[-1]}x' was unexpected" in message for message in refused), refused


@pytest.mark.parametrize(
    "change",
    [
        {"gateway": {"replicas": "2"}},
        {"gateway": {"replicas": -1}},
        {"image": {"tag": 1.1}},
        {"image": {"digest": "sha256:abc"}},
        {"ingest": {"port": 0}},
        {"bundled": {"nats": {"persistence": {"size": "20 GB"}}}},
        {"defaults": {"podSecurityContext": {"runasuser": 1}}},
        {"external": {"nats": {"url": "http://nats:4222"}}},
        {"measure": {"settings": {"forge_url": "http://elsewhere"}}},  # decided by other values: it would be lost
        {"investigator": {"settings": {"concurency": 2}}},
        {"cluster": {"model": {}}},
    ],
    ids=json.dumps,
)
def test_what_cannot_be_meant_is_refused(change: dict[str, Any], validator: Draft202012Validator) -> None:
    assert not validator.is_valid(change)


@pytest.mark.parametrize(
    "change",
    [
        {"defaults": {"podSecurityContext": {"runAsUser": None}}},
        {"investigator": {"settings": {"concurrency": 2}}},
        {"gateway": {"resources": {"limits": {"memory": "2Gi", "example.com/gpu": 1}}}},
        {"defaults": {"pdb": {"maxUnavailable": "50%"}}},
        {"external": {"nats": {"url": "tls://a:4222,tls://b:4222"}}},
    ],
    ids=json.dumps,
)
def test_what_can_be_meant_is_taken(change: dict[str, Any], validator: Draft202012Validator) -> None:
    assert [error.message for error in validator.iter_errors(change)] == []
