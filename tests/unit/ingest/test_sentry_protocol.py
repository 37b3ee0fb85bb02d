"""The Sentry SDK protocol over real HTTP: what becomes of an envelope's items, and what clients are answered."""

import gzip
import json
import os
import uuid
import zlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import brotli
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loopwright_common.contracts.signals import Signal
from loopwright_ingest.domain import Sender
from loopwright_ingest.sources import sentry

SAMPLES = os.environ.get("LOOPWRIGHT_TEST_SENTRY_EVENTS", "")  # a folder of events as Sentry-compatible projects collect them
EVENT_ID = "fc6d8c0c43fc4630ad850ee518f1b9d0"


def event(**more):
    return {
        "event_id": EVENT_ID,
        "timestamp": datetime.now(UTC).isoformat(),
        "platform": "python",
        "level": "error",
        "release": "3f9c2a1",
        "environment": "production",
        "transaction": "POST /checkout",
        "user": {"id": 42, "email": "ann@example.org"},
        "tags": {"region": "eu"},
        "contexts": {"trace": {"trace_id": "a" * 32}},
        "request": {
            "method": "POST",
            "url": "http://shop/checkout",
            "query_string": "cart=1",
            "data": {"people": 0},
            "headers": {"Authorization": "Bearer t", "Cookie": "session=1", "Accept": "*/*"},
            "cookies": {"session": "1"},
        },
        "exception": {
            "values": [
                {"type": "KeyError", "value": "'people'", "stacktrace": {"frames": [{"filename": "lib.py", "in_app": False}]}},
                {
                    "type": "ZeroDivisionError",
                    "value": "division by zero",
                    "stacktrace": {
                        "frames": [
                            {"filename": "site-packages/flask/app.py", "function": "dispatch", "lineno": 1, "in_app": False},
                            {
                                "filename": "shop/checkout.py",
                                "abs_path": "/srv/shop/checkout.py",
                                "module": "shop.checkout",
                                "function": "split_bill",
                                "lineno": 12,
                                "context_line": "    return total / people",
                                "in_app": True,
                                "vars": {"card": "4111"},
                            },
                        ]
                    },
                },
            ]
        },
    } | more


def raised(kind, *functions, **more):
    frames = [{"filename": "shop/app.py", "function": name, "in_app": True} for name in functions]
    return {"type": kind, "value": "x", "stacktrace": {"frames": frames}, **more}


async def test_a_wrapped_exception_has_the_frames_that_led_to_its_cause(edge):
    values = [raised("KeyError", "pay", "price"), raised("PaymentFailed", "handle", "pay")]
    await edge.envelope(("event", event(exception={"values": values})), headers={"event_id": EVENT_ID})
    (signal,) = edge.signals
    assert [frame.function for frame in signal.frames] == ["handle", "pay", "price"]
    assert (signal.exception_type, signal.labels["exception.chain"]) == ("PaymentFailed", "PaymentFailed <- KeyError")


async def test_a_cause_that_is_told_in_full_needs_no_frames_of_who_wrapped_it(edge):
    values = [raised("KeyError", "main", "pay", "price"), raised("PaymentFailed", "main", "guarded")]
    await edge.envelope(("event", event(exception={"values": values})), headers={"event_id": EVENT_ID})
    values = [raised("KeyError", "run", "work", "price"), raised("ExecutionException", "main", "wait")]
    values[0]["stacktrace"]["frames"][0] |= {"in_app": False}
    await edge.envelope(("event", event(exception={"values": values}, platform="java", event_id="b" * 32)), headers={"event_id": "b" * 32})
    assert [[frame.function for frame in signal.frames] for signal in edge.signals] == [["main", "pay", "price"], ["run", "work", "price"]]


async def test_what_was_being_handled_when_another_exception_was_raised_is_not_its_cause(edge):
    values = [raised("KeyError", "price", mechanism={"type": "chained", "source": "__context__"}), raised("NameError", "handle", "report")]
    await edge.envelope(("event", event(exception={"values": values})), headers={"event_id": EVENT_ID})
    (signal,) = edge.signals
    assert [frame.function for frame in signal.frames] == ["handle", "report"]
    assert "exception.chain" not in signal.labels


async def test_an_event_becomes_a_signal(edge):
    answer = await edge.envelope(("event", event()), headers={"event_id": EVENT_ID})
    assert (answer.status_code, answer.json()) == (200, {"id": EVENT_ID})
    (signal,) = edge.signals
    assert (signal.source, signal.kind, signal.title) == ("sentry", "exception", "ZeroDivisionError: division by zero")
    assert (signal.exception_type, signal.exception_value) == ("ZeroDivisionError", "division by zero")
    assert (signal.release, signal.environment, signal.severity, signal.transaction) == ("3f9c2a1", "production", "error", "POST /checkout")
    assert (signal.service, signal.trace_id, signal.dedupe_key) == ("checkout", "a" * 32, EVENT_ID)
    assert signal.labels["region"] == "eu"
    assert signal.labels["exception.chain"] == "ZeroDivisionError <- KeyError"
    library, raised = signal.frames
    assert (library.in_app, raised.in_app) == (False, True)
    assert (raised.file, raised.module, raised.function, raised.line) == ("shop/checkout.py", "shop.checkout", "split_bill", 12)
    assert raised.context == "return total / people"
    assert (signal.request.method, signal.request.url, signal.request.query_string) == ("POST", "http://shop/checkout", "cart=1")
    assert json.loads(signal.request.data) == {"people": 0}


async def test_nothing_that_identifies_or_admits_a_person_is_stored(edge):
    await edge.envelope(("event", event()))
    kept = "".join(message.payload.decode() for message in edge.bus.broker.streams["SIGNALS"])
    for private in ("ann@example.org", "Bearer t", "session=1", "4111"):
        assert private not in kept
    assert edge.signals[0].request.headers == {"Accept": "*/*"}
    assert len(edge.signals[0].actor) == 32


async def test_a_person_is_the_same_whether_an_error_or_a_ticket_names_them(edge):
    await edge.envelope(("event", event(user={"id": "customer-17"})))
    await edge.post("/v1/signals", {"title": "Cannot pay", "kind": "ticket", "actor": "customer-17"})
    event_actor, ticket_actor = (signal.actor for signal in edge.signals)
    assert event_actor == ticket_actor != ""


async def test_an_address_to_be_filled_in_is_nobody(edge):
    await edge.envelope(("event", event(user={"ip_address": "{{auto}}"})))
    assert edge.signals[0].actor == ""


async def test_an_event_sent_again_is_stored_once(edge):
    for _ in range(3):
        assert (await edge.envelope(("event", event()))).json() == {"id": EVENT_ID}
    assert len(edge.signals) == 1


async def test_the_same_event_of_two_projects_is_two_signals(start_edge, make_project, make_key):
    from loopwright_common.contracts.configuration import Scope

    other = "f" * 32
    edge = await start_edge(projects=[make_project(), make_project("books", 8, keys=(make_key("k", other, Scope.SENTRY),))])
    await edge.envelope(("event", event()))
    await edge.envelope(("event", event()), token=other, project=8)
    assert len({signal.id for signal in edge.signals}) == 2


@pytest.mark.parametrize(
    ("said", "title"),
    [
        ({"message": "plain"}, "plain"),
        ({"message": {"message": "order %s", "formatted": "order 7"}}, "order 7"),
        ({"logentry": {"message": "order %s failed", "formatted": "order 7 failed"}}, "order 7 failed"),
        ({"logentry": {"message": "two\nlines"}}, "two"),
        ({}, "(no message)"),
    ],
)
async def test_an_event_without_an_exception_is_a_log_line(edge, said, title):
    body = event(**said)
    del body["exception"]
    await edge.envelope(("event", body))
    assert (edge.signals[0].kind, edge.signals[0].title) == ("log", title)


@pytest.mark.parametrize(
    ("level", "severity"), [("fatal", "fatal"), ("warning", "warning"), ("log", "info"), ("nonsense", "error"), (None, "error")]
)
async def test_levels_are_understood(edge, level, severity):
    await edge.envelope(("event", event(level=level)))
    assert edge.signals[0].severity == severity


async def test_an_explicit_fingerprint_is_kept(edge):
    await edge.envelope(("event", event(fingerprint=["{{ default }}", "checkout", 7])))
    assert edge.signals[0].fingerprint == ("{{ default }}", "checkout", "7")


async def test_the_service_is_the_keys_else_the_tags_else_the_only_one(start_edge, make_project, make_key):
    from loopwright_common.contracts.configuration import Scope

    dsn = "0123456789abcdef0123456789abcdef"
    for bound, tags, services, expected in [
        ("cart", {"service": "said"}, ("a", "b"), "cart"),
        ("", {"service": "said"}, ("a", "b"), "said"),
        ("", {}, ("only",), "only"),
        ("", {}, ("a", "b"), ""),
    ]:
        edge = await start_edge(projects=[make_project(services=services, keys=(make_key("k", dsn, Scope.SENTRY, service=bound),))])
        await edge.envelope(("event", event(tags=tags)))
        assert edge.signals[0].service == expected


# How it is sent

ENCODINGS = {"gzip": gzip.compress, "deflate": zlib.compress, "br": brotli.compress, "identity": lambda body: body}


def bare(*lines):
    return "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines).encode()


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_envelopes_come_compressed(edge, encoding):
    body = ENCODINGS[encoding](bare({}, {"type": "event"}, event()))
    assert (await edge.envelope(content=body, Content_Encoding=encoding)).status_code == 200
    assert len(edge.signals) == 1


async def test_envelopes_come_in_chunks(edge, keys):
    async def pieces():
        body = bare({}, {"type": "event"}, event())
        for start in range(0, len(body), 50):
            yield body[start : start + 50]

    answer = await edge.client.post(f"/api/7/envelope/?sentry_key={keys[1]}&sentry_version=7", content=pieces())
    assert answer.status_code == 200
    assert len(edge.signals) == 1


@pytest.mark.parametrize("way", ["header", "authorization", "query", "dsn"])
async def test_the_key_may_come_in_four_ways(edge, keys, way):
    dsn, headers, path = keys[1], {}, "/api/7/envelope/"
    if way == "header":
        headers["X-Sentry-Auth"] = f"Sentry sentry_key={dsn}, sentry_version=7"
    if way == "authorization":
        headers["Authorization"] = f"Sentry sentry_key={dsn}"
    if way == "query":
        path += f"?sentry_key={dsn}"
    envelope = bare({"dsn": f"http://{dsn}@127.0.0.1/7"} if way == "dsn" else {}, {"type": "event"}, event())
    assert (await edge.client.post(path, content=envelope, headers=headers)).status_code == 200
    assert len(edge.signals) == 1


async def test_the_store_endpoint_takes_one_event(edge, keys):
    for path in ("/api/7/store/", "/api/7/store"):
        answer = await edge.client.post(f"{path}?sentry_key={keys[1]}", json=event(event_id=uuid.uuid4().hex))
        assert answer.status_code == 200
        assert len(answer.json()["id"]) == 32
    assert len(edge.signals) == 2


async def test_items_may_have_a_length_or_end_with_their_line(edge):
    one, two = json.dumps(event()), json.dumps(event(event_id=uuid.uuid4().hex))
    body = bare({}, {"type": "event", "length": len(one)}, one, {"type": "event"}, two) + b"\n\n"
    assert (await edge.envelope(content=body)).status_code == 200
    assert len(edge.signals) == 2


# Exposure


def minute_ago():
    return datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=1)


async def test_session_aggregates_are_the_requests_of_a_minute(edge):
    started = minute_ago()
    await edge.envelope(
        (
            "sessions",
            {
                "aggregates": [
                    {"started": started.isoformat(), "exited": 90, "errored": 4},
                    {"started": (started - timedelta(minutes=1)).isoformat(), "exited": 7, "crashed": 2, "abnormal": 1},
                    {"started": started.isoformat()},
                ],
                "attrs": {"release": "3f9c2a1", "environment": "production"},
            },
        )
    )
    assert [(item.minute, item.count, item.errored) for item in edge.exposures] == [
        (started, 94, 4),
        (started - timedelta(minutes=1), 10, 3),
    ]
    assert {(item.service, item.release, item.environment, item.unit) for item in edge.exposures} == {
        ("checkout", "3f9c2a1", "production", "requests")
    }


async def test_a_session_counts_when_it_begins_and_not_at_its_updates(edge):
    session = {"sid": str(uuid.uuid4()), "init": True, "started": minute_ago().isoformat(), "status": "ok", "attrs": {"release": "1"}}
    await edge.envelope(("session", session))
    await edge.envelope(("session", session | {"init": False, "status": "exited"}))
    assert [(item.count, item.unit, item.release) for item in edge.exposures] == [(1, "sessions", "1")]


async def test_sessions_sent_again_are_counted_once(edge):
    sessions = {"aggregates": [{"started": minute_ago().isoformat(), "exited": 5}], "attrs": {"release": "1"}}
    for _ in range(2):
        await edge.envelope(("sessions", sessions), headers={"sent_at": "2026-11-26T10:00:00.123456Z"})
    assert sum(item.count for item in edge.exposures) == 5


# What is not used


async def drops(edge):
    answer = await edge.client.get("/v1/drops", headers={"Authorization": "Bearer lw_full_key"})
    assert answer.status_code == 200
    return {(drop["type"]): (drop["count"], drop["reason"]) for drop in answer.json()}


async def test_what_is_not_used_is_counted_with_its_reason(edge):
    items = [(kind, {}) for kind in ("attachment", "transaction", "replay_event", "profile", "log", "client_report")]
    assert (await edge.envelope(*items, items[0])).status_code == 200
    found = await drops(edge)
    assert set(found) == {kind for kind, _ in items}
    assert found["attachment"][0] == 2
    assert all(reason for _, reason in found.values())
    assert edge.stored == 0


async def test_drops_are_a_projects_own(start_edge, make_project, make_key):
    from loopwright_common.contracts.configuration import Scope

    other = make_project("books", 8, keys=(make_key("k", "lw_books", Scope.SIGNALS),))
    edge = await start_edge(projects=[make_project(), other])
    await edge.envelope(("attachment", "x"))
    answer = await edge.client.get("/v1/drops", headers={"Authorization": "Bearer lw_books"})
    assert answer.json() == []
    assert (await edge.client.get("/v1/drops")).status_code == 401


async def test_a_thousand_made_up_item_types_stay_a_bounded_count(edge):
    for start in range(0, 1_200, 150):
        await edge.envelope(*((f"kind{number}", "x") for number in range(start, start + 150)))
    answer = await edge.client.get("/v1/drops", headers={"Authorization": "Bearer lw_full_key"})
    assert sum(drop["count"] for drop in answer.json()) == 1_200
    assert len(answer.json()) <= 1_001


async def test_an_error_with_an_impossible_time_is_kept_as_of_now(edge):
    await edge.envelope(("event", event(timestamp="2031-01-01T00:00:00Z")))
    assert len(edge.signals) == 1


async def test_an_event_with_half_a_surrogate_pair_is_kept(edge):
    body = json.dumps(event()).replace("division by zero", "smile \\ud83d")
    assert (await edge.envelope(("event", body))).status_code == 200
    assert len(edge.signals) == 1


# Errors as Sentry clients expect them


@pytest.mark.parametrize(
    ("token", "project", "status"), [(None, 7, 401), ("0" * 32, 7, 403), ("0123456789abcdef0123456789abcdef", 8, 403), ("short", 7, 401)]
)
async def test_a_wrong_key_is_refused_with_the_header_clients_show(edge, token, project, status):
    answer = await edge.envelope(("event", event()), token=token, project=project)
    assert answer.status_code == status
    assert answer.headers["x-sentry-error"]
    assert edge.stored == 0


async def test_a_key_without_the_scope_is_refused(start_edge, make_project, make_key):
    from loopwright_common.contracts.configuration import Scope

    edge = await start_edge(projects=[make_project(keys=(make_key("k", "a" * 32, Scope.SIGNALS),))])
    assert (await edge.envelope(("event", event()), token="a" * 32)).status_code == 403
    assert edge.stored == 0


async def test_a_rate_limit_is_said_the_way_clients_obey(start_edge, make_project):
    from sentry_sdk.transport import _parse_rate_limits

    edge = await start_edge(projects=[make_project(signals_per_minute_max=1)])
    answers = [await edge.envelope(("event", event(event_id=uuid.uuid4().hex))) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 429]
    assert int(answers[1].headers["retry-after"]) >= 1
    limits = dict(_parse_rate_limits(answers[1].headers["x-sentry-rate-limits"]))
    assert None in limits  # all categories: whatever an envelope holds counts towards the same rate
    assert edge.stored == 1


BROKEN = {
    "nothing": b"",
    "no JSON": b"hello",
    "a list for a header": b"[]",
    "an item header that is no JSON": b"{}\nhello\nworld",
    "an item longer than the envelope": b'{}\n{"type":"event","length":9000}\n{}',
    "an item longer than it says": b'{}\n{"type":"event","length":1}\n{}',
    "a negative length": b'{}\n{"type":"event","length":-1}\n{}',
    "a length of words": b'{}\n{"type":"event","length":"2"}\n{}',
    "a huge length": b'{}\n{"type":"event","length":' + b"9" * 400 + b"}\n{}",
    "an event that is no JSON": b'{}\n{"type":"event"}\nhello',
    "an event that is a list": b'{}\n{"type":"event"}\n[]',
    "an event nested 1,000 deep": b'{}\n{"type":"event"}\n{"a":' + b"[" * 1_000 + b"]" * 1_000 + b"}",
    "a header nested 100,000 deep": b'{"a":' * 100_000,
    "not UTF-8": b'{}\n{"type":"event"}\n{"message":"\xff"}',
    "sessions that are no JSON": b'{}\n{"type":"sessions"}\nhello',
    "201 items": b"{}" + b'\n{"type":"attachment"}\nx' * 201,
}


@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN.keys())
async def test_a_broken_envelope_is_a_400_and_stores_nothing(edge, body):
    good = bare({"type": "event"}, event())
    answer = await edge.envelope(content=body)
    assert answer.status_code == 400
    assert answer.headers["x-sentry-error"].isascii()
    assert edge.stored == 0
    assert (await edge.envelope(content=b"{}\n" + good)).status_code == 200


async def test_an_event_of_more_than_a_mebibyte_is_refused(edge):
    answer = await edge.envelope(("event", event(extra={"pad": "x" * 1024 * 1024})))
    assert (answer.status_code, bool(answer.headers["x-sentry-error"])) == (413, True)
    assert edge.stored == 0


async def test_a_good_event_beside_a_broken_one_is_not_stored_alone(edge):
    body = bare({}, {"type": "event"}, event(), {"type": "event"}) + b"\nbroken"
    assert (await edge.envelope(content=body)).status_code == 400
    assert edge.stored == 0


@pytest.mark.parametrize(("encoding", "status"), [("gzip", 400), ("br", 400), ("zstd", 415)])
async def test_a_wrongly_compressed_envelope_is_refused(edge, encoding, status):
    answer = await edge.envelope(("event", event()), Content_Encoding=encoding)
    assert (answer.status_code, bool(answer.headers["x-sentry-error"])) == (status, True)
    assert edge.stored == 0


@pytest.mark.parametrize("number", ["x", "7x", "-7", "0x7", "99999999999", "%37%00"])
async def test_a_project_that_is_no_number_is_refused(edge, number):
    answer = await edge.envelope(("event", event()), project=number)
    assert 400 <= answer.status_code < 500
    assert edge.stored == 0


async def test_while_the_bus_is_away_clients_are_told_to_come_back(edge):
    edge.bus.broker.available = False
    answer = await edge.envelope(("event", event()))
    assert (answer.status_code, bool(answer.headers["retry-after"]), bool(answer.headers["x-sentry-error"])) == (503, True, True)


# Whatever comes

SENDER_NOW = datetime(2026, 11, 26, 10, tzinfo=UTC)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "value", "values", "frames", "stacktrace", "id"]), inner, max_size=3)
    ),
    max_leaves=15,
)
NAMES = [
    "event_id",
    "timestamp",
    "exception",
    "threads",
    "message",
    "logentry",
    "tags",
    "user",
    "request",
    "contexts",
    "fingerprint",
    "level",
    "release",
    "environment",
    "transaction",
    "stacktrace",
    "logger",
]


@pytest.fixture
def sender(make_project):
    project = make_project()
    return Sender(project, project.keys[1], b"secret")


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.dictionaries(st.sampled_from(NAMES), values, max_size=8))
def test_an_event_of_any_shape_is_a_signal_or_a_drop(sender, body):
    payload = json.dumps(body, allow_nan=True).replace("NaN", "null").replace("-Infinity", "1e300").replace("Infinity", "1e300").encode()
    try:
        found = sentry.understand([sentry.Item("event", {}, payload)], sender, SENDER_NOW)
    except sentry.Undecodable:
        return  # half a surrogate pair
    assert len(found.signals) + len(found.drops) == 1
    for signal in found.signals:
        assert Signal.model_validate_json(signal.model_dump_json()) == signal


@settings(max_examples=300, deadline=None)
@given(body=st.binary(max_size=300))
def test_bytes_of_any_kind_are_an_envelope_or_an_error(body):
    try:
        headers, items = sentry.read_envelope(body)
    except sentry.Undecodable:
        return
    assert isinstance(headers, dict)
    assert len(items) <= sentry.ITEMS_MAX


def sample_events():
    if not SAMPLES:
        return [pytest.param(None, marks=pytest.mark.skip(reason="LOOPWRIGHT_TEST_SENTRY_EVENTS names no folder of sample events"))]
    return [pytest.param(path, id=str(path.relative_to(SAMPLES))) for path in sorted(Path(SAMPLES).rglob("*.json"))]


@pytest.mark.parametrize("path", sample_events())
def test_events_that_real_clients_sent_become_signals(sender, path):
    body = json.loads(path.read_bytes())
    if not isinstance(body, dict) or body.get("type") == "transaction" or not {"event_id", "exception", "message", "logentry"} & set(body):
        pytest.skip("not an error event")
    body["timestamp"] = SENDER_NOW.isoformat()
    found = sentry.understand([sentry.Item("event", {}, json.dumps(body).encode())], sender, SENDER_NOW)
    (signal,) = found.signals
    assert signal.title
    if body.get("exception") and signal.frames:
        assert signal.kind == "exception"
