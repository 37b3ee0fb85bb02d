"""``POST /v1/signals``, ``/v1/deploys`` and ``/v1/exposure`` over real HTTP."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

TICKET = {"kind": "ticket", "title": "Cannot pay", "body": "The button does nothing.", "actor": "ann@example.org"}


async def test_a_signal_is_stored_before_it_is_answered(edge):
    answer = await edge.post("/v1/signals", TICKET)
    assert answer.status_code == 202
    (signal,) = edge.signals
    assert answer.json() == {
        "accepted": 1,
        "duplicates": 0,
        "rejected": 0,
        "results": [{"index": 0, "outcome": "accepted", "id": signal.id, "errors": []}],
    }
    assert (signal.project, signal.source, signal.kind, signal.title) == ("shop", "http", "ticket", "Cannot pay")


async def test_the_project_is_the_keys_and_the_service_its_only_one(edge):
    await edge.post("/v1/signals", {"title": "x"})
    assert (edge.signals[0].project, edge.signals[0].service) == ("shop", "checkout")


@pytest.mark.parametrize(
    ("labels", "service"),
    [
        ({"service": "search"}, "search"),
        ({"job": "prod/search", "namespace": "prod"}, "search"),
        ({"service": "kube-state-metrics", "deployment": "search", "container": "envoy"}, "search"),
        ({"pod": "search-7d9f8c6b5d-x2lkq"}, "search"),
        ({"pod": "search-indexer-7d9f8c6b5d-x2lkq"}, ""),
        ({"service": "elsewhere", "job": "node"}, ""),
        ({}, ""),
    ],
)
async def test_a_signal_that_names_no_service_has_the_one_of_the_projects_that_its_labels_name(start_edge, make_project, labels, service):
    edge = await start_edge(projects=[make_project(services=("checkout", "search"))])
    await edge.post("/v1/signals", {"title": "HighErrorRate", "kind": "alert", "labels": labels})
    await edge.post("/v1/signals", {"title": "HighErrorRate", "kind": "alert", "labels": labels, "service": "said"})
    assert [signal.service for signal in edge.signals] == [service, "said"]


async def test_a_ticket_weighs_more_than_a_log_line_unless_the_client_says_otherwise(edge):
    await edge.post("/v1/signals", [{"title": "t", "kind": "ticket"}, {"title": "l", "kind": "log"}, {"title": "w", "weight": 7}])
    ticket, log, own = edge.signals
    assert ticket.weight > log.weight
    assert own.weight == 7


async def test_a_person_is_stored_as_a_keyed_hash_and_told_apart(edge):
    await edge.post("/v1/signals", [TICKET, TICKET, TICKET | {"actor": "bob@example.org"}])
    ann, again, bob = (signal.actor for signal in edge.signals)
    assert ann == again != bob
    assert len(ann) == 32
    kept = "".join(message.payload.decode() for message in edge.bus.broker.streams["SIGNALS"])
    assert "ann@" not in kept


async def test_another_secret_gives_a_person_another_name(start_edge):
    one, other = await start_edge(), await start_edge(actor_secret="another")
    for edge in (one, other):
        await edge.post("/v1/signals", TICKET)
    assert one.signals[0].actor != other.signals[0].actor


async def test_without_a_secret_nobody_is_recorded(start_edge):
    edge = await start_edge(actor_secret="")
    assert (await edge.post("/v1/signals", TICKET)).status_code == 202
    assert edge.signals[0].actor == ""


@pytest.mark.parametrize("body", [{"signals": [{"title": "a"}, {"title": "b"}]}, [{"title": "a"}, {"title": "b"}]])
async def test_many_may_come_as_a_list_or_in_an_object(edge, body):
    answer = await edge.post("/v1/signals", body)
    assert answer.status_code == 202
    assert [signal.title for signal in edge.signals] == ["a", "b"]


async def test_a_thousand_are_taken_and_one_more_is_not(edge):
    items = [{"title": f"t{number}"} for number in range(1_001)]
    assert (await edge.post("/v1/signals", items)).status_code == 422
    assert edge.stored == 0
    answer = await edge.post("/v1/signals", items[:1_000])
    assert (answer.status_code, answer.json()["accepted"]) == (202, 1_000)
    assert [signal.title for signal in edge.signals] == [item["title"] for item in items[:1_000]]


async def test_each_item_has_its_own_outcome(edge):
    answer = await edge.post("/v1/signals", [{"title": "good"}, {"titel": "typing error"}, {"title": "good too"}])
    assert answer.status_code == 207
    results = answer.json()["results"]
    assert [result["outcome"] for result in results] == ["accepted", "rejected", "accepted"]
    assert {error["pointer"] for error in results[1]["errors"]} == {"/title", "/titel"}
    assert [signal.title for signal in edge.signals] == ["good", "good too"]


async def test_where_none_is_good_it_is_an_error_that_names_the_fields(edge):
    answer = await edge.post("/v1/signals", [{"title": ""}, {"title": "x", "severity": "terrible"}])
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/0/title", "/1/severity"]
    assert edge.stored == 0


@pytest.mark.parametrize(
    "field", ["project", "source", "received_at", "about_report", "dedupe_key", "Title", "__proto__", "actor_hash", "occured_at"]
)
async def test_what_a_client_may_not_say_is_refused(edge, field):
    answer = await edge.post("/v1/signals", {"title": "x", field: "y"})
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == [f"/{field}"]
    assert edge.stored == 0


async def test_a_measurement_cannot_be_forged(edge):
    assert (await edge.post("/v1/signals", {"title": "It held", "kind": "measurement"})).status_code == 422
    assert edge.stored == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("title", "t" * 513),
        ("body", "b" * 16_385),
        ("weight", -1),
        ("weight", 1_001),
        ("weight", "nan"),
        ("labels", {f"l{number}": "v" for number in range(65)}),
        ("labels", {"l": 3}),
        ("frames", [{}] * 101),
        ("frames", [{"line": -1}]),
        ("fingerprint", ["f"] * 17),
        ("links", [{"title": "x", "url": "javascript:alert(1)"}]),
        ("request", {"headers": {f"h{number}": "v" for number in range(33)}}),
        ("occurred_at", "yesterday"),
        ("occurred_at", "2026-11-26T10:00:00"),
    ],
)
async def test_a_field_over_its_bounds_is_named(edge, field, value):
    answer = await edge.post("/v1/signals", {"title": "x"} | {field: value})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"].startswith(f"/{field}")
    assert edge.stored == 0


async def test_a_time_that_cannot_be_is_refused_and_old_news_is_history(edge):
    now = datetime.now(UTC)
    times = [now + timedelta(hours=1), now - timedelta(days=400), now - timedelta(days=3), now + timedelta(minutes=1), now]
    answer = await edge.post("/v1/signals", [{"title": str(n), "occurred_at": at.isoformat()} for n, at in enumerate(times)])
    assert [result["outcome"] for result in answer.json()["results"]] == ["rejected", "rejected", "accepted", "accepted", "accepted"]
    assert [signal.backfill for signal in edge.signals] == [True, False, False]
    assert edge.signals[1].occurred_at <= edge.signals[1].received_at


async def test_the_clients_own_name_makes_it_one_signal(edge):
    first = await edge.post("/v1/signals", {"title": "x", "id": "order-17"})
    second = await edge.post("/v1/signals", {"title": "x", "id": "order-17"})
    assert first.json()["results"][0]["outcome"] == "accepted"
    assert second.status_code == 202
    assert second.json()["results"][0]["outcome"] == "duplicate"
    assert first.json()["results"][0]["id"] == second.json()["results"][0]["id"]
    assert len(edge.signals) == 1


async def test_the_same_name_twice_in_one_request_is_one_signal(edge):
    answer = await edge.post("/v1/signals", [{"title": "x", "id": "a"}, {"title": "y", "id": "b"}, {"title": "x", "id": "a"}])
    assert [result["outcome"] for result in answer.json()["results"]] == ["accepted", "accepted", "duplicate"]
    assert len(edge.signals) == 2


async def test_two_projects_may_use_the_same_name(start_edge, make_project, make_key):
    from loopwright_common.contracts.configuration import Scope

    other = make_project("books", 8, keys=(make_key("k", "lw_books", Scope.SIGNALS),))
    edge = await start_edge(projects=[make_project(), other])
    ids = set()
    for token in ("lw_full_key", "lw_books"):
        answer = await edge.post("/v1/signals", {"title": "x", "id": "same"}, token=token)
        assert answer.json()["accepted"] == 1
        ids.add(answer.json()["results"][0]["id"])
    assert len(ids) == 2


async def test_credentials_in_a_request_are_left_out(edge):
    headers = {"Authorization": "Bearer x", "cookie": "s=1", "X-Api-Key": "k", "X-Forwarded-For": "10.0.0.1", "Accept": "text/html"}
    await edge.post("/v1/signals", {"title": "x", "request": {"method": "GET", "url": "/pay", "headers": headers}})
    assert edge.signals[0].request.headers == {"Accept": "text/html"}


async def test_concurrent_requests_each_get_their_own_answer(edge):
    answers = await asyncio.gather(*(edge.post("/v1/signals", {"title": f"t{number}", "id": f"i{number}"}) for number in range(60)))
    assert {answer.status_code for answer in answers} == {202}
    by_id = {signal.id: signal.title for signal in edge.signals}
    assert [by_id[answer.json()["results"][0]["id"]] for answer in answers] == [f"t{number}" for number in range(60)]


async def test_a_deploy_is_told(edge):
    body = {"service": "checkout", "release": "1.2", "commit": "a" * 40, "deployed_at": "2026-11-26T10:00:00+02:00"}
    answer = await edge.post("/v1/deploys", body)
    assert (answer.status_code, answer.json()["outcome"]) == (202, "accepted")
    (deploy,) = edge.deploys
    assert (deploy.id, deploy.project, deploy.service) == (answer.json()["id"], "shop", "checkout")
    assert (deploy.release, deploy.commit) == ("1.2", "a" * 40)
    assert deploy.deployed_at == datetime(2026, 11, 26, 8, tzinfo=UTC)
    assert deploy.environment == "production"


async def test_a_deploy_told_twice_is_one_deploy(edge):
    body = {"service": "checkout", "release": "1.2", "deployed_at": "2026-11-26T10:00:00Z"}
    first, second = [(await edge.post("/v1/deploys", body)).json() for _ in range(2)]
    assert (first["outcome"], second["outcome"], first["id"]) == ("accepted", "duplicate", second["id"])
    assert len(edge.deploys) == 1


@pytest.mark.parametrize(
    "change", [{"service": "Check Out"}, {"service": "a.b"}, {"release": ""}, {"commit": "abc"}, {"commit": "g" * 40}, {"project": "x"}]
)
async def test_a_deploy_that_cannot_be_is_refused(edge, change):
    answer = await edge.post("/v1/deploys", {"service": "checkout", "release": "1"} | change)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == f"/{next(iter(change))}"
    assert edge.stored == 0


async def test_exposure_is_counted_by_the_minute(edge):
    minute = datetime(2026, 11, 26, 10, tzinfo=UTC)
    row = {"release": "1.2", "minute": "2026-11-26T10:00:37Z", "count": 90, "errored": 3, "id": "m1"}
    answer = await edge.post("/v1/exposure", {"exposure": [row, row | {"id": "m2", "unit": "sessions"}]})
    assert (answer.status_code, answer.json()) == (202, {"accepted": 2, "duplicates": 0})
    first, second = edge.exposures
    assert (first.minute, first.count, first.errored, first.service, first.unit) == (minute, 90, 3, "checkout", "requests")
    assert second.unit == "sessions"
    assert (await edge.post("/v1/exposure", {"exposure": [row]})).json() == {"accepted": 0, "duplicates": 1}


@pytest.mark.parametrize("change", [{"count": -1}, {"count": 2_000_000_000}, {"unit": "probes"}, {"minute": "now"}, {"project": "x"}])
async def test_exposure_that_cannot_be_is_refused_whole(edge, change):
    good = {"minute": "2026-11-26T10:00:00Z", "count": 1}
    answer = await edge.post("/v1/exposure", {"exposure": [good, good | change]})
    assert answer.status_code == 422
    assert edge.stored == 0
