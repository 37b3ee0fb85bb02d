"""SDKs in browsers: any page may send events with its DSN's key and read the answer, and nothing else is opened to pages."""

import json

import pytest

PAGE = {"Origin": "https://shop.example"}
EVENT = {"event_id": "fc6d8c0c43fc4630ad850ee518f1b9d0", "message": "it broke"}
OURS = "access-control-"


def envelope(event=None):
    payload = json.dumps(event or EVENT)
    return "\n".join([json.dumps({"sent_at": "2026-11-26T10:00:00Z"}), json.dumps({"type": "event"}), payload]).encode()


def preflight(edge, path, method="POST", headers="content-type,x-sentry-auth"):
    asked = {**PAGE, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": headers}
    return edge.client.options(path, headers=asked)


@pytest.mark.parametrize("path", ["/api/7/envelope/", "/api/7/envelope", "/api/7/store/", "/api/7/store"])
async def test_a_preflight_is_answered_without_a_key(edge, path):
    answer = await preflight(edge, path)
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["access-control-allow-methods"] == "POST"
    allowed = {name.strip().lower() for name in answer.headers["access-control-allow-headers"].split(",")}
    assert {"content-type", "content-encoding", "x-sentry-auth", "sentry-trace", "baggage", "traceparent"} <= allowed
    assert int(answer.headers["access-control-max-age"]) > 0
    assert "access-control-allow-credentials" not in answer.headers
    assert edge.stored == 0


async def test_an_event_from_a_page_is_taken_and_its_answer_may_be_read(edge, keys):
    # As the browser SDK sends it: the key in the query, plain text, so that no preflight is needed.
    path = f"/api/7/envelope/?sentry_key={keys[1]}&sentry_version=7&sentry_client=sentry.javascript.browser%2F10.0.0"
    sent = {**PAGE, "Content-Type": "text/plain;charset=UTF-8", "Cookie": "session=1", "Referer": "https://shop.example/cart"}
    answer = await edge.client.post(path, content=envelope(), headers=sent)
    assert (answer.status_code, answer.json()) == (200, {"id": EVENT["event_id"]})
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in answer.headers
    assert len(edge.signals) == 1


@pytest.mark.parametrize("way", ["wrong key", "no key", "too large", "not an envelope", "over the rate"])
async def test_a_refusal_may_be_read_too(start_edge, make_project, keys, way):
    edge = await start_edge(body_bytes_max=2_000, projects=[make_project(signals_per_minute_max=1)])
    key = {"wrong key": "f" * 32, "no key": ""}.get(way, keys[1])
    content = {"too large": b"x" * 4_000, "not an envelope": b"\n\n"}.get(way, envelope())
    path = f"/api/7/envelope/?sentry_key={key}"
    for _ in range(3 if way == "over the rate" else 1):
        answer = await edge.client.post(path, content=content, headers=PAGE)
    assert answer.status_code == {"wrong key": 403, "no key": 401, "too large": 413, "not an envelope": 400, "over the rate": 429}[way]
    assert answer.headers["access-control-allow-origin"] == "*"
    exposed = {name.strip().lower() for name in answer.headers["access-control-expose-headers"].split(",")}
    assert {"x-sentry-error", "x-sentry-rate-limits", "retry-after"} <= exposed


@pytest.mark.parametrize(
    "path",
    [
        "/v1/signals",
        "/v1/deploys",
        "/v1/exposure",
        "/v1/drops",
        "/openapi.json",
        "/healthz",
        "/metrics",
        "/api/7/envelope/x",
        "/api//store",
    ],
)
async def test_no_other_endpoint_is_opened_to_pages(edge, path):
    answers = [await preflight(edge, path, method) for method in ("GET", "POST")]
    answers.append(await edge.client.get(path, headers=PAGE))
    answers.append(await edge.post(path, {"title": "x"}, Origin="https://shop.example"))
    assert not [name for answer in answers for name in answer.headers if name.startswith(OURS)]
    assert {answer.status_code for answer in answers[:2]} <= {404, 405}


async def test_an_options_that_is_no_preflight_is_a_405(edge):
    answer = await edge.client.options("/api/7/envelope/", headers=PAGE)
    assert answer.status_code == 405
    assert "access-control-allow-methods" not in answer.headers
