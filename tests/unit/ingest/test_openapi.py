"""The OpenAPI document says what the edge does."""

import json

import pytest
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

ROUTES = {"/v1/signals": "post", "/v1/deploys": "post", "/v1/exposure": "post", "/v1/drops": "get"}
GOOD = {
    "/v1/signals": [{"title": "x"}, [{"title": "x"}], {"signals": [{"title": "x", "frames": [{"file": "a.py"}]}]}],
    "/v1/deploys": [{"service": "checkout", "release": "1"}],
    "/v1/exposure": [{"exposure": [{"minute": "2026-11-26T10:00:00Z", "count": 1}]}],
}
BAD = {
    "/v1/signals": [{"titel": "x"}, [{"title": 3}], {"signals": [{"title": "x", "frames": [{"line": -1}]}]}],
    "/v1/deploys": [{"service": "No Name", "release": "1"}, {"service": "x"}],
    "/v1/exposure": [{"exposure": []}, {"exposure": [{"minute": "2026-11-26T10:00:00Z", "count": -1}]}],
}


@pytest.fixture
async def document(edge):
    answer = await edge.client.get("/openapi.json")
    assert answer.status_code == 200
    return answer.json()


def validator(document, schema):
    """A validator for a schema that lies somewhere in the document: its references are the document's."""
    resource = Resource.from_contents(document, default_specification=DRAFT202012)
    registry = Registry().with_resource("urn:openapi", resource)
    text = json.dumps(schema).replace('"#/', '"urn:openapi#/')
    return Draft202012Validator(json.loads(text), registry=registry)


def schema_of(document, path):
    return document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]


async def test_every_route_and_error_is_there(document):
    assert set(ROUTES) <= set(document["paths"])
    for path, method in ROUTES.items():
        answers = document["paths"][path][method]["responses"]
        assert {"401", "403", "503"} <= set(answers)
        assert all("application/problem+json" in answers[status]["content"] for status in ("401", "403", "503"))
    assert {"202", "207", "400", "413", "415", "422", "429"} <= set(document["paths"]["/v1/signals"]["post"]["responses"])


async def test_every_reference_leads_somewhere(document):
    def references(value):
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                yield value["$ref"]
            for item in value.values():
                yield from references(item)
        elif isinstance(value, list):
            for item in value:
                yield from references(item)

    for reference in set(references(document)):
        found = document
        for part in reference.removeprefix("#/").split("/"):
            assert part in found, reference
            found = found[part]


@pytest.mark.parametrize("path", GOOD)
async def test_what_it_allows_is_taken_and_what_it_does_not_is_refused(edge, document, path):
    check = validator(document, schema_of(document, path))
    for body in GOOD[path]:
        assert check.is_valid(body), body
        assert (await edge.post(path, body)).status_code == 202
    for body in BAD[path]:
        assert not check.is_valid(body), body
        assert (await edge.post(path, body)).status_code == 422
