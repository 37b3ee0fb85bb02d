"""Who may send what, how much, and what happens while that cannot be known."""

import asyncio

import pytest
from loopwright_common.contracts.configuration import Scope
from loopwright_common.contracts.signals import Exposure
from loopwright_common.testing.memory_bus import MemoryBus
from loopwright_ingest.admission import Bucket

SIGNAL = {"title": "x"}
DEPLOY = {"service": "checkout", "release": "1"}
EXPOSURE = {"exposure": [{"minute": "2026-11-26T10:00:00Z", "count": 1}]}
ROUTES = [("/v1/signals", SIGNAL), ("/v1/deploys", DEPLOY), ("/v1/exposure", EXPOSURE)]


@pytest.mark.parametrize(("path", "body"), ROUTES)
async def test_without_a_key_it_is_a_401_with_a_challenge(edge, path, body):
    answer = await edge.post(path, body, token=None)
    assert (answer.status_code, answer.headers["content-type"]) == (401, "application/problem+json")
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert edge.stored == 0


@pytest.mark.parametrize(
    "token", ["lw_unknown", "lw_revoked", "LW_FULL_KEY", "lw_full_keyx", "x" * 300, "0123456789abcdef0123456789abcdef"]
)
async def test_a_key_that_is_not_in_force_gets_nothing_in(edge, token):
    answer = await edge.post("/v1/signals", SIGNAL, token=token)
    assert answer.status_code in (401, 403)
    assert answer.headers["content-type"] == "application/problem+json"
    assert edge.stored == 0


@pytest.mark.parametrize("header", ["Basic bHdfZnVsbF9rZXk6", "Bearer", "lw_full_key", "Token lw_full_key"])
async def test_another_way_to_authenticate_is_a_401(edge, header):
    assert (await edge.post("/v1/signals", SIGNAL, token=None, Authorization=header)).status_code == 401
    assert edge.stored == 0


async def test_a_key_may_come_in_a_header_of_our_own(edge, keys):
    assert (await edge.post("/v1/signals", SIGNAL, token=None, X_Loopwright_Key=keys[0])).status_code == 202


async def test_a_key_does_only_what_its_scopes_say(edge):
    assert (await edge.post("/v1/deploys", DEPLOY, token="lw_deploys_only")).status_code == 202
    for path, body in (ROUTES[0], ROUTES[2]):
        answer = await edge.post(path, body, token="lw_deploys_only")
        assert answer.status_code == 403
        assert "deploys:write" in answer.json()["detail"]
    assert (len(edge.deploys), edge.stored) == (1, 1)


async def test_a_keys_body_is_not_even_read_when_it_is_refused(edge):
    head = b"POST /v1/signals HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\nConnection: close\r\n\r\n"
    assert (await edge.raw(head)).startswith(b"HTTP/1.1 401 ")


async def test_a_key_that_is_revoked_is_refused_at_once(edge, make_project, make_key, keys):
    assert (await edge.post("/v1/signals", SIGNAL)).status_code == 202
    await edge.publish(make_project(revision=2, keys=(make_key("new", "lw_new", Scope.SIGNALS),)))
    assert (await edge.post("/v1/signals", SIGNAL)).status_code in (401, 403)
    assert (await edge.post("/v1/signals", SIGNAL, token="lw_new")).status_code == 202
    assert len(edge.signals) == 2


async def test_a_removed_projects_keys_end_with_it(edge):
    bucket = await edge.bus.key_value("config")
    await bucket.delete("project.shop")
    for _ in range(100):
        if (answer := await edge.post("/v1/signals", SIGNAL)).status_code in (401, 403):
            break
        await asyncio.sleep(0.02)
    assert answer.status_code in (401, 403)


async def test_a_damaged_configuration_leaves_the_last_good_one_in_force(edge):
    bucket = await edge.bus.key_value("config")
    await bucket.put("project.shop", b'{"number": "x"')
    await asyncio.sleep(0.05)
    assert (await edge.post("/v1/signals", SIGNAL)).status_code == 202


class Unreadable(MemoryBus):
    """A bus whose buckets do not answer."""

    async def key_value(self, bucket):
        from loopwright_common.bus import BusUnavailable

        raise BusUnavailable("no answer")


async def test_until_the_keys_were_read_everything_is_refused_as_a_503(start_edge):
    edge = await start_edge(bus=Unreadable("ingest"), projects=[])
    for path, body in ROUTES:
        answer = await edge.post(path, body)
        assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
        assert int(answer.headers["retry-after"]) >= 1
    assert (await edge.envelope(("event", {}))).status_code == 503
    ready = await edge.client.get("/readyz")
    assert (ready.status_code, ready.json()["needs"]["configuration"] != "") == (503, True)
    assert edge.stored == 0


async def test_a_project_that_sends_too_much_is_told_to_wait_and_others_are_not(start_edge, make_project, make_key):
    other = make_project("books", 8, keys=(make_key("k", "lw_books", Scope.SIGNALS),))
    edge = await start_edge(projects=[make_project(signals_per_minute_max=3), other])
    answers = [await edge.post("/v1/signals", SIGNAL) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [202, 202, 202, 429, 429]
    assert answers[-1].headers["content-type"] == "application/problem+json"
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 21
    assert (await edge.post("/v1/signals", SIGNAL, token="lw_books")).status_code == 202
    assert len(edge.signals) == 4


async def test_a_batch_over_what_is_left_is_refused_whole(start_edge, make_project):
    edge = await start_edge(projects=[make_project(signals_per_minute_max=3)])
    assert (await edge.post("/v1/signals", [SIGNAL] * 2)).status_code == 202
    assert (await edge.post("/v1/signals", [SIGNAL] * 2)).status_code == 429
    assert len(edge.signals) == 2


async def test_a_limit_that_is_raised_holds_at_once(start_edge, make_project):
    edge = await start_edge(projects=[make_project(signals_per_minute_max=1)])
    assert [(await edge.post("/v1/signals", SIGNAL)).status_code for _ in range(2)] == [202, 429]
    await edge.publish(make_project(revision=2, signals_per_minute_max=100))
    assert (await edge.post("/v1/signals", SIGNAL)).status_code == 202


async def test_items_that_cannot_be_used_count_too(start_edge, make_project):
    edge = await start_edge(projects=[make_project(signals_per_minute_max=3)])
    assert [(await edge.post("/v1/signals", {"titel": "x"})).status_code for _ in range(5)][-1] == 429


def test_a_bucket_refills_evenly():
    bucket = Bucket(60, 60.0, 0.0)
    assert bucket.take(60, 0.0) == 0
    assert bucket.take(1, 0.5) == pytest.approx(0.5)
    assert bucket.take(1, 1.0) == 0
    assert bucket.take(60, 3_600.0) == 0  # and holds a minute's worth at most
    assert bucket.take(1, 3_600.0) > 0


def test_a_request_of_more_than_a_minutes_worth_goes_once_the_bucket_is_full():
    bucket = Bucket(3, 3.0, 0.0)
    assert bucket.take(2, 0.0) == 0
    assert bucket.take(5, 0.0) > 0
    assert bucket.take(5, 60.0) == 0


def test_a_request_of_more_than_a_minutes_worth_uses_it_up():
    bucket = Bucket(3, 3.0, 0.0)
    assert bucket.take(5, 0.0) == 0
    assert bucket.take(5, 0.0) > 0


async def test_the_edge_says_what_it_counts(edge):
    await edge.post("/v1/signals", [SIGNAL, {"titel": "x"}])
    metrics = (await edge.client.get("/metrics")).text
    for outcome in ("accepted", "rejected"):
        assert f'loopwright_ingest_items_total{{outcome="{outcome}",source="http"}}' in metrics
    assert "shop" not in metrics


def test_exposure_of_a_probe_cannot_come_from_outside():
    assert "probes" in Exposure.model_json_schema()["properties"]["unit"]["enum"]
    from loopwright_ingest.sources.deploys import ExposureIn

    assert "probes" not in ExposureIn.model_json_schema()["properties"]["unit"]["enum"]
