"""The gateway over real HTTP: who may do what, what is refused and how, pages, the stream, and that the OpenAPI document is true."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, given, settings
from loopwright_common.bus import ConsumerSpec, Outgoing
from loopwright_common.clock import SystemClock
from loopwright_common.contracts import subjects as s
from loopwright_common.contracts.base import Contract
from loopwright_common.contracts.queries import EvaluationAnswer, EvaluationQuery, RatesAnswer, RatesQuery, ShadowAnswer, ShadowQuery
from loopwright_common.contracts.reports import GroupingDecision, GroupUpdated
from loopwright_common.contracts.signals import Exposure, Signal
from loopwright_common.errors import Permanent
from loopwright_common.problems import MEDIA_TYPE
from loopwright_common.testing.memory_bus import MemoryBus
from loopwright_gateway.app import create_app
from loopwright_gateway.settings import GatewaySettings
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import positive_data_acceptance

OPERATOR = "operator-token-of-this-test"
ADMIN = {"Authorization": f"Bearer {OPERATOR}"}


class Running:
    """The gateway served by uvicorn on a free port, in a thread with a loop of its own."""

    def __init__(self, folder: Path, **more: Any) -> None:
        self.bus = MemoryBus("gateway")
        values = {"database_url": f"sqlite+aiosqlite:///{folder}/gateway.db", "operator_token": OPERATOR, "drain_seconds": 2, **more}
        self.app = create_app(GatewaySettings(**values), bus=self.bus)
        self.server = uvicorn.Server(uvicorn.Config(self.app, port=0, log_config=None, ws="none", timeout_graceful_shutdown=2))
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(self.server.serve())

    def __enter__(self) -> Running:
        self.thread.start()
        deadline = time.monotonic() + 30
        while not self.server.started:
            assert self.thread.is_alive(), "the gateway did not start"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive(), "the gateway did not stop"

    def do(self, work: Any) -> Any:
        """Runs a coroutine where the gateway runs."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    def publish(self, subject: s.Subject, payload: Contract, message_id: str, **tokens: str) -> None:
        self.do(self.bus.publish(Outgoing(subject, payload, message_id, {"project": "shop", **tokens})))

    def signal(self, id: str, report: str = "r1", **more: Any) -> None:
        now = SystemClock().now()
        values = {"source": "sentry", "kind": "exception", "title": f"Crash of {report}", "service": "shop", "release": "v1", **more}
        signal = Signal.model_validate({"id": id, "project": "shop", "occurred_at": now, "received_at": now, **values})
        decision = GroupingDecision(outcome="joined", rule="new", reason="the first of its kind", fingerprint="f", grouping_version="v1")
        fact = GroupUpdated(project="shop", report_id=report, signal=signal, decision=decision, decided_at=now)
        self.publish(s.GROUPS_UPDATED, fact, f"group:{id}")

    def client(self, **headers: str) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers=headers, timeout=20)


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Running]:
    with Running(tmp_path) as running:
        yield running


@pytest.fixture
def admin(gateway: Running) -> Iterator[httpx.Client]:
    with gateway.client(**ADMIN) as client:
        yield client


def until(look: Any, seconds: float = 10.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
    return found


def report(gateway: Running, client: httpx.Client, id: str = "r1", signals: int = 1) -> dict[str, Any]:
    for number in range(signals):
        gateway.signal(f"{id}-s{number}", id)

    def counted() -> Any:
        response = client.get(f"/v1/reports/{id}")
        return response.status_code == 200 and response.json()["signal_count"] >= signals and response.json()

    found: dict[str, Any] = until(counted)
    return found


def is_problem(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == MEDIA_TYPE
    body: dict[str, Any] = response.json()
    assert body["status"] == status
    assert body["title"]
    return body


# Who may come in


ROUTES = [
    "/v1/reports", "/v1/reports/r1", "/v1/changes", "/v1/verdicts", "/v1/usage", "/v1/projects", "/v1/dead-letters", "/v1/stream", "/v1/me",
]  # fmt: skip
BAD = [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic b3A6b3A="}, {"Authorization": "Bearer"}]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("header", BAD)
def test_without_a_token_nothing_is_told(gateway: Running, route: str, header: dict[str, str]) -> None:
    with gateway.client(**header) as client:
        response = client.get(route)
    is_problem(response, 401)
    assert response.headers["www-authenticate"].startswith("Bearer")


def test_a_role_may_do_what_it_says_and_no_more(gateway: Running, admin: httpx.Client) -> None:
    report(gateway, admin)
    tokens = {role: admin.post("/v1/tokens", json={"name": role, "role": role}).json() for role in ("viewer", "responder")}
    with gateway.client(Authorization=f"Bearer {tokens['viewer']['token']}") as viewer:
        assert viewer.get("/v1/me").json() == {"name": "viewer", "role": "viewer"}
        is_problem(viewer.post("/v1/reports/r1/actions/dismiss", json={"reason": "expected"}), 403)
    with gateway.client(Authorization=f"Bearer {tokens['responder']['token']}") as responder:
        is_problem(responder.put("/v1/projects/shop", json={"name": "shop"}), 403)
        is_problem(responder.post("/v1/tokens", json={"name": "x", "role": "admin"}), 403)
        assert responder.post("/v1/reports/r1/actions/dismiss", json={"reason": "expected"}).json()["state"] == "dismissed"
        assert responder.get("/v1/reports/r1/timeline").json()[-1]["actor"] == "person:responder"
        assert admin.delete(f"/v1/tokens/{tokens['responder']['id']}").status_code == 204
        is_problem(responder.get("/v1/me"), 401)


@contextmanager
def signed_in(gateway: Running) -> Iterator[httpx.Client]:
    with gateway.client(Origin=gateway.url) as client:
        _sign_in(client)
        yield client


def _sign_in(client: httpx.Client) -> None:
    response = client.post("/v1/session", json={"token": OPERATOR})
    assert response.status_code == 200
    cookie = response.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie


def test_a_cookie_works_from_our_own_pages_only(gateway: Running) -> None:
    with signed_in(gateway) as client:
        assert client.get("/v1/me").json()["role"] == "admin"
        body = {"name": "shop"}
        for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
            is_problem(client.put("/v1/projects/shop", json=body, headers={"Origin": origin}), 403)
        del client.headers["Origin"]
        is_problem(client.put("/v1/projects/shop", json=body), 403)
        assert client.get("/v1/projects").json() == []
        assert client.put("/v1/projects/shop", json=body, headers={"Origin": gateway.url}).status_code == 200
        assert client.delete("/v1/session", headers={"Origin": gateway.url}).status_code == 204
        is_problem(client.get("/v1/me"), 401)


def test_a_session_is_not_opened_for_another_page_or_a_wrong_token(gateway: Running) -> None:
    with gateway.client() as client:
        is_problem(client.post("/v1/session", json={"token": OPERATOR}, headers={"Origin": "http://evil.example"}), 403)
        is_problem(client.post("/v1/session", json={"token": "wrong"}, headers={"Origin": gateway.url}), 401)


def test_a_form_cannot_act_with_a_cookie(gateway: Running) -> None:
    with signed_in(gateway) as client:
        report(gateway, client)
        for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
            response = client.post("/v1/reports/r1/actions/suppress", content="{}", headers={"Content-Type": content_type})
            assert response.status_code in (415, 422), content_type
        assert client.get("/v1/reports/r1").json()["state"] != "suppressed"


def test_sessions_end_with_the_token_that_opened_them(gateway: Running, admin: httpx.Client) -> None:
    made = admin.post("/v1/tokens", json={"name": "alice", "role": "responder"}).json()
    with gateway.client(Origin=gateway.url) as browser:
        assert browser.post("/v1/session", json={"token": made["token"]}).status_code == 200
        assert admin.delete(f"/v1/tokens/{made['id']}").status_code == 204
        is_problem(browser.get("/v1/me"), 401)


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "evil.example:8400", ""])
def test_another_host_name_is_refused(gateway: Running, host: str) -> None:
    with gateway.client(**ADMIN) as client:
        is_problem(client.get("/v1/reports", headers={"Host": host}), 400)
        is_problem(client.get("/", headers={"Host": host}), 400)


# What is sent


def test_bad_requests_get_the_right_problem(gateway: Running, admin: httpx.Client) -> None:
    report(gateway, admin)
    as_json = {"Content-Type": "application/json"}
    act = "/v1/reports/r1/actions"
    is_problem(admin.post(f"{act}/dismiss", content="{", headers=as_json), 400)
    is_problem(admin.post(f"{act}/dismiss", content=b"\xff\xfe", headers=as_json), 400)
    assert is_problem(admin.post(f"{act}/dismiss", json={"reason": "because"}), 422)["errors"][0]["pointer"] == "/reason"
    assert is_problem(admin.post(f"{act}/dismiss", json={"reason": "fixed", "typo": 1}), 422)["errors"][0]["pointer"] == "/typo"
    is_problem(admin.post(f"{act}/snooze", json={}), 409)
    is_problem(admin.post(f"{act}/dismiss", content=b"x" * 2_000_000, headers=as_json), 413)
    is_problem(admin.get("/v1/reports?cursor=bm90IG91cnM"), 422)
    is_problem(admin.get("/v1/reports?limit=100000"), 422)
    is_problem(admin.get("/v1/reports/nobody"), 404)
    is_problem(admin.get("/v1/nothing"), 404)
    is_problem(admin.post(f"{act}/reopen", headers={"If-Match": "x"}), 422)
    is_problem(admin.post(f"{act}/suppress", headers={"If-Match": '"999"'}), 409)
    assert admin.get("/v1/reports/r1").json()["state"] != "suppressed"


# The grouping


def test_words_on_the_grouping_are_asked_for_and_listed(gateway: Running, admin: httpx.Client) -> None:
    report(gateway, admin, "r1", 2)
    report(gateway, admin, "r2")
    act = "/v1/reports/r1/actions"
    version = admin.get("/v1/reports/r1").json()["version"]
    is_problem(admin.post(f"{act}/split", json={"signal_ids": ["r1-s0"]}, headers={"If-Match": f'"{version + 1}"'}), 409)
    asked = {
        "split": {"signal_ids": ["r1-s0"]}, "move": {"report_id": "r2", "fingerprints": ["f"], "comment": "theirs"},
        "never_together": {"report_id": "r2"}, "merge_into": {"report_id": "r2"},
    }  # fmt: skip
    for name, body in asked.items():
        version = admin.get("/v1/reports/r1").json()["version"]
        answer = admin.post(f"{act}/{name}", json=body, headers={"If-Match": f'"{version}"'})
        assert answer.status_code == 202, answer.text
        assert {"split", "move", "never_together"} <= set(answer.json()["actions"])
    words = admin.get("/v1/reports/r1/grouping").json()["words"]
    assert [word["action"] for word in words] == ["merge", "never_together", "move", "split"]
    assert all((word["state"], word["undoable"]) == ("asked", False) for word in words)
    assert (words[2]["reason"], words[2]["fingerprints"], words[2]["other_report_id"]) == ("theirs", ["f"], "r2")
    assert [word["action"] for word in admin.get("/v1/reports/r2/grouping").json()["words"]] == ["merge", "never_together", "move"]
    is_problem(admin.post(f"{act}/undo", json={"command_id": words[0]["command_id"]}), 409)
    is_problem(admin.post(f"{act}/undo", json={"command_id": "unknown"}), 404)
    until(lambda: len(gateway.bus.published(s.COMMANDS_GROUPS)) == len(asked))
    assert [command.action for command in gateway.bus.published(s.COMMANDS_GROUPS)] == ["split", "move", "never_together", "merge"]


def test_what_cannot_be_a_word_on_the_grouping_is_refused_with_a_problem(gateway: Running, admin: httpx.Client) -> None:
    report(gateway, admin, "r1", 2)
    act = "/v1/reports/r1/actions"
    for name, body in {
        "split": {}, "move": {"report_id": "r2"}, "never_together": {}, "undo": {"command_id": "a b"}, "merge_into": {"report_id": "../r2"},
    }.items():  # fmt: skip
        is_problem(admin.post(f"{act}/{name}", json=body), 422)
    for hostile in ("", "a/b", "a\x00b", "x" * 65, "'; DROP TABLE words; --", "\U0001f600"):
        is_problem(admin.post(f"{act}/split", json={"signal_ids": [hostile]}), 422)
        is_problem(admin.post(f"{act}/move", json={"report_id": hostile, "signal_ids": ["r1-s0"]}), 422)
    for hostile in ("", "f\x00", "x" * 513):
        is_problem(admin.post(f"{act}/split", json={"fingerprints": [hostile]}), 422)
    half = b'{"fingerprints": ["\\ud800"]}'
    is_problem(admin.post(f"{act}/split", content=half, headers={"Content-Type": "application/json"}), 422)
    is_problem(admin.post(f"{act}/split", json={"signal_ids": ["nobody"]}), 409)
    is_problem(admin.post(f"{act}/split", json={"fingerprints": ["\u202e' OR 1=1 --"]}), 409)
    is_problem(admin.post(f"{act}/split", json={"signal_ids": ["s"] * 10_001}), 422)
    for route in ("explain", "fingerprints", "grouping"):
        is_problem(admin.get(f"/v1/reports/nobody/{route}"), 404)
        is_problem(admin.get(f"/v1/reports/a%00b/{route}"), 422)
    assert admin.get("/v1/reports/r1/grouping").json() == {"words": []}


@pytest.mark.parametrize("route", ["explain", "fingerprints"])
def test_pages_of_reasons_go_on_and_a_cursor_of_another_make_is_refused(gateway: Running, admin: httpx.Client, route: str) -> None:
    report(gateway, admin, "r1", 3)
    whole = admin.get(f"/v1/reports/r1/{route}").json()
    assert (len(whole["items"]), whole["next_cursor"]) == (3 if route == "explain" else 1, None)
    if route == "explain":
        first = admin.get("/v1/reports/r1/explain?limit=2").json()
        second = admin.get(f"/v1/reports/r1/explain?limit=2&cursor={first['next_cursor']}").json()
        assert first["items"] + second["items"] == whole["items"]
        assert second["next_cursor"] is None
        assert admin.get("/v1/reports/r1/explain?fingerprint=other").json()["items"] == []
    made = (
        [route], [route, 1], [route, "1", "s"], [route, 2**70, "s"], [route, True, "s"], [route, 1, "\ud800"], [route, 1, None],
        ["other", 1, "s"], {"a": 1}, [route, 1, "s", 1],
    )  # fmt: skip
    cursors = [base64.urlsafe_b64encode(json.dumps(value).encode()).decode() for value in made]
    for cursor in (*cursors, "x", "%00", "=" * 10, "A" * 3_000):
        is_problem(admin.get(f"/v1/reports/r1/{route}?cursor={cursor}"), 422)
    for query in ("limit=0", "limit=201", "limit=x"):
        is_problem(admin.get(f"/v1/reports/r1/{route}?{query}"), 422)
    is_problem(admin.get("/v1/reports/r1/explain?fingerprint=%00"), 422)


def test_how_versions_of_the_grouping_compare_is_asked_of_cluster(gateway: Running, admin: httpx.Client) -> None:
    admin.put("/v1/projects/shop", json={"name": "shop", "services": [{"name": "shop"}]})
    for route in ("evaluation", "shadow"):
        is_problem(admin.get(f"/v1/projects/nobody/grouping/{route}"), 404)
        problem = is_problem(admin.get(f"/v1/projects/shop/grouping/{route}"), 503)
        assert "did not answer" in problem["detail"]
    is_problem(admin.get("/v1/projects/shop/grouping/evaluation?version=v9"), 422)

    async def evaluate(query: EvaluationQuery) -> EvaluationAnswer:
        return EvaluationAnswer(version=query.version or "v2", same=3, same_joined=2)

    async def compare(query: ShadowQuery) -> ShadowAnswer:
        return ShadowAnswer(version="v2", shadow="v1", since=SystemClock().now(), agreed=7)

    gateway.do(gateway.bus.answer(s.EVALUATION_QUERY, evaluate))
    gateway.do(gateway.bus.answer(s.SHADOW_QUERY, compare))
    found = admin.get("/v1/projects/shop/grouping/evaluation?version=v1").json()
    assert (found["version"], found["same"], found["same_joined"], found["pairs"]) == ("v1", 3, 2, [])
    assert admin.get("/v1/projects/shop/grouping/shadow").json()["agreed"] == 7


def test_every_answer_carries_the_security_headers(gateway: Running, admin: httpx.Client) -> None:
    for path in ("/", "/reports/r1", "/v1/me", "/v1/nothing"):
        headers = admin.get(path).headers
        assert "script-src 'self'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
    assert admin.get("/v1/me").headers["cache-control"] == "no-store"
    page = admin.get("/reports/some-report")
    assert page.headers["content-type"].startswith("text/html")
    assert admin.get("/", headers={"If-None-Match": page.headers["etag"]}).status_code == 304
    for path in ("/../settings.py", "/%2e%2e/settings.py", "/missing.js"):
        assert admin.get(path).status_code == 404


@pytest.mark.parametrize("path", ["/v1/reports", "/v1/session", "/", "/healthz"])
def test_no_page_of_another_site_may_read_or_ask_leave(gateway: Running, admin: httpx.Client, path: str) -> None:
    elsewhere = {"Origin": "https://elsewhere.example"}
    answers = [
        admin.get(path, headers=elsewhere),
        admin.request("OPTIONS", path, headers={**elsewhere, "Access-Control-Request-Method": "POST"}),
    ]
    assert not [name for answer in answers for name in answer.headers if name.startswith("access-control-")]
    assert answers[1].status_code >= 400


# Reports


def test_pages_stay_right_over_http_while_reports_come(gateway: Running, admin: httpx.Client) -> None:
    for number in range(9):
        gateway.signal(f"s{number}", f"r{number}")
    until(lambda: admin.get("/v1/reports").json()["total"] == 9)
    found: list[str] = []
    cursor, page = None, 0
    while True:
        body = admin.get("/v1/reports", params={"limit": 2, "sort": "created"} | ({"cursor": cursor} if cursor else {})).json()
        found += [row["id"] for row in body["items"]]
        cursor, page = body["next_cursor"], page + 1
        if cursor is None:
            break
        gateway.signal(f"new{page}", f"new{page}")
        until(lambda page=page: admin.get(f"/v1/reports/new{page}").status_code == 200)
    assert sorted(found) == sorted(f"r{number}" for number in range(9))
    is_problem(admin.get("/v1/reports", params={"sort": "people", "cursor": admin.get("/v1/reports?limit=1").json()["next_cursor"]}), 422)


def test_a_report_tells_what_its_row_tells_and_more(gateway: Running, admin: httpx.Client) -> None:
    shown = report(gateway, admin, signals=3)
    (row,) = admin.get("/v1/reports", params={"project": "shop", "q": "CRASH"}).json()["items"]
    assert {key: shown[key] for key in row} == row
    assert sum(row["sparkline"]) == 3
    assert len(row["sparkline"]) == 24
    explained = admin.get("/v1/reports/r1/explain").json()["items"]
    assert {item["decision"]["reason"] for item in explained} == {"the first of its kind"}
    assert sum(item["count"] for item in admin.get("/v1/reports/r1/rates").json()["signals"]) == 3


def test_the_rates_question_is_answered_exactly(gateway: Running, admin: httpx.Client) -> None:
    report(gateway, admin, signals=4)
    now = SystemClock().now()
    gateway.publish(s.EXPOSURES, Exposure(id="e1", project="shop", service="shop", minute=now, count=50), "e1", service="shop")
    query = RatesQuery(project="shop", report_id="r1", start=now.replace(hour=0, minute=0), end=now.replace(year=now.year + 1, day=1))

    def ask() -> RatesAnswer:
        answer = gateway.do(gateway.bus.ask(s.RATES_QUERY, query))
        assert isinstance(answer, RatesAnswer)
        return answer

    answer = until(lambda: (found := ask()).exposure and found)
    assert sum(item.count for item in answer.signals) == 4
    assert [item.count for item in answer.exposure] == [50]
    assert not answer.truncated


# Projects and keys


def test_a_project_is_applied_published_and_its_keys_are_told_once(gateway: Running, admin: httpx.Client) -> None:
    config = {"name": "shop", "services": [{"name": "shop"}]}
    assert admin.put("/v1/projects/shop?dry_run=true", json=config).json()["outcome"] == "created"
    is_problem(admin.get("/v1/projects/shop"), 404)
    assert [admin.put("/v1/projects/shop", json=config).json()["outcome"] for _ in range(2)] == ["created", "unchanged"]
    is_problem(admin.put("/v1/projects/shop", json={"name": "other"}), 422)
    is_problem(admin.put("/v1/projects/shop", json={"name": "shop", "services": [{"name": "x", "repository": "none"}]}), 422)
    key = admin.post("/v1/projects/shop/keys", json={"scopes": ["sentry:write"], "service": "shop"}).json()
    assert re.fullmatch(r"[0-9a-f]{32}", key["secret"])
    assert key["dsn"] == f"http://{key['secret']}@127.0.0.1:8401/1"
    is_problem(admin.post("/v1/projects/shop/keys", json={"scopes": ["sentry:write", "signals:write"]}), 409)
    assert key["secret"] not in admin.get("/v1/projects/shop").text

    def published() -> Any:
        entry = gateway.do(_get(gateway.bus, "project.shop"))
        return entry is not None and json.loads(entry.value)

    assert until(lambda: (found := published()) and found["keys"] and found)["keys"][0]["revoked_at"] is None
    assert admin.delete(f"/v1/projects/shop/keys/{key['id']}").status_code == 204
    is_problem(admin.delete(f"/v1/projects/shop/keys/{key['id']}"), 404)
    until(lambda: published()["keys"][0]["revoked_at"])


async def _get(bus: MemoryBus, key: str) -> Any:
    return await (await bus.key_value("config")).get(key)


def test_dead_letters_are_listed_replayed_and_discarded(gateway: Running, admin: httpx.Client) -> None:
    taken: list[str] = []

    async def fail(message: Any) -> None:
        taken.append(message.payload.id)
        raise Permanent("no such minute")

    spec = ConsumerSpec("broken", "test", (s.EXPOSURES,))
    gateway.do(gateway.bus.consume(spec, fail))
    for number in range(2):
        item = Exposure(id=f"e{number}", project="shop", service="shop", minute=SystemClock().now(), count=1)
        gateway.publish(s.EXPOSURES, item, f"e{number}", service="shop")
    letters = until(lambda: len(found := admin.get("/v1/dead-letters").json()) == 2 and found)
    assert letters[0]["reason"] == "no such minute"
    assert '"count":1' in letters[0]["payload"]
    assert admin.post(f"/v1/dead-letters/{letters[0]['sequence']}/discard", json={"reason": "known"}).status_code == 204
    assert admin.post(f"/v1/dead-letters/{letters[1]['sequence']}/replay").status_code == 202
    until(lambda: len(taken) == 3)
    is_problem(admin.post("/v1/dead-letters/999/replay"), 404)


# The stream


def listen(gateway: Running, after: str | None, wanted: int, made: Any = None, **query: str) -> list[tuple[str, str, Any]]:
    """The first events of a client, as (event, id, data)."""
    headers = ADMIN | ({"Last-Event-ID": after} if after else {})
    found: list[tuple[str, str, Any]] = []
    fields: dict[str, str] = {}
    with gateway.client() as client, client.stream("GET", "/v1/stream", headers=headers, params=query) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        for line in response.iter_lines():
            if not line and "event" in fields:
                found.append((fields["event"], fields.get("id", ""), json.loads(fields["data"])))
                fields = {}
                if len(found) == 1 and made is not None:
                    made()
                if len(found) >= wanted:
                    return found
            name, _, value = line.partition(": ")
            if name:
                fields[name] = value
    raise AssertionError(f"the stream ended after {len(found)} events")


def test_a_client_that_comes_back_misses_nothing(gateway: Running, admin: httpx.Client) -> None:
    hello, first = listen(gateway, None, 2, lambda: gateway.signal("s0"))
    assert (hello[0], first[0], first[2]["body"]["id"]) == ("hello", "report.changed", "r1")
    for number in range(1, 4):
        gateway.signal(f"x{number}", f"r{number + 1}")
        until(lambda number=number: admin.get(f"/v1/reports/r{number + 1}").status_code == 200)
    later = listen(gateway, first[1], 4)
    ids = [int(item[1]) for item in later]
    assert ids == sorted(set(ids))
    assert min(ids) == int(first[1]) + 1
    again = listen(gateway, later[1][1], 2)
    assert again == later[2:4]


def test_a_client_that_was_away_too_long_is_told_to_read_again(gateway: Running) -> None:
    gateway.signal("s0")
    ((event, _, _),) = listen(gateway, "999999999", 1)
    assert event == "reset"


def test_an_open_stream_does_not_hold_up_the_stop(tmp_path: Path) -> None:
    with Running(tmp_path) as running:
        heard = threading.Event()

        def stay() -> None:
            with httpx.Client(timeout=20) as client, client.stream("GET", f"{running.url}/v1/stream", headers=ADMIN) as response:
                for _ in response.iter_lines():
                    heard.set()

        thread = threading.Thread(target=lambda: _quietly(stay), daemon=True)
        thread.start()
        assert heard.wait(10)
        began = time.monotonic()
    assert time.monotonic() - began < 8


def _quietly(work: Any) -> None:
    try:
        work()
    except httpx.HTTPError:
        return


# The document


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("schema")) as running, running.client(**ADMIN) as client:
        client.put("/v1/projects/shop", json={"name": "shop", "services": [{"name": "shop"}]})
        report(running, client)
        yield running


def test_the_document_is_openapi_3_1_and_each_reference_leads_somewhere(served: Running) -> None:
    document = httpx.get(f"{served.url}/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    text = json.dumps(document)
    for pointer in set(re.findall(r'"\$ref": "#/([^"]+)"', text)):
        found: Any = document
        for part in pointer.split("/"):
            assert part in found, pointer
            found = found[part]


@pytest.mark.slow
def test_every_answer_is_as_the_document_says(served: Running) -> None:
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    failures: list[str] = []
    for result in schema.exclude(path="/v1/stream").get_all_operations():
        operation = result.ok()

        @given(case=operation.as_strategy())
        @settings(max_examples=8, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True)
        def run(case: Any) -> None:
            # A schema cannot say what an opaque cursor or a rule over two fields admits, so 422 is no failure there.
            case.call_and_validate(headers=ADMIN, timeout=20, excluded_checks=[positive_data_acceptance])

        try:
            run()
        except FailureGroup as error:
            failures.append(f"{operation.label}: {error}")
    assert not failures, "\n\n".join(failures)
