"""What only a real server can show: crashes, restarts, full streams, two connections."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from loopwright_common import telemetry
from loopwright_common.bus import BusUnavailable, ConsumerSpec, Outgoing, Received, Timer
from loopwright_common.contracts.queries import SearchAnswer, SearchHit, SearchQuery
from loopwright_common.contracts.signals import Signal
from loopwright_common.contracts.subjects import SEARCH_QUERY, SIGNALS, STREAMS
from loopwright_common.errors import Permanent, Refused, Unavailable
from loopwright_common.nats_bus import NatsBus
from loopwright_common.nats_bus.lease import LOOK_SECONDS, Members
from loopwright_common.testing.nats_server import NatsServer
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import REGISTRY

NOW = datetime(2026, 11, 26, 10, 0, tzinfo=UTC)
SOON = timedelta(milliseconds=50)


def signal(number: int) -> Outgoing:
    payload = Signal(
        id=f"s{number}", project="shop", source="http", kind="custom", title=f"number {number}", occurred_at=NOW, received_at=NOW
    )
    return Outgoing(SIGNALS, payload, f"signal:{number}", {"project": "shop", "source": "http"}, payload.id)


def spec(name: str, **more: Any) -> ConsumerSpec:
    return ConsumerSpec(name, "test", (SIGNALS,), **({"retry_first": SOON, "retry_most": SOON} | more))


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def insist(work: Callable[[], Any]) -> Any:
    """What a caller does with Retryable: again, a little later."""
    for _ in range(200):
        try:
            return await work()
        except BusUnavailable:
            await asyncio.sleep(0.05)
    raise AssertionError("the bus did not come back")


async def crash_now_and_then(server: NatsServer, rng: random.Random, times: int) -> None:
    for _ in range(times):
        await asyncio.sleep(rng.uniform(0.05, 0.4))
        await asyncio.to_thread(server.kill)
        await asyncio.sleep(rng.uniform(0.0, 0.3))
        await asyncio.to_thread(server.start)


async def stored_ids(bus: NatsBus) -> Counter[str]:
    seen: Counter[str] = Counter()

    async def take(messages: Sequence[Received[Any]]) -> None:
        seen.update(message.payload.id for message in messages if message.attempt == 1)

    state = (await bus._connection.api("STREAM.INFO.SIGNALS"))["state"]
    await bus.consume_batches(spec("auditor", batch_max=200), take)
    await until(lambda: sum(seen.values()) == state["messages"])
    return seen


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_server_killed_while_it_is_published_to_loses_nothing_and_doubles_nothing(
    nats_server: NatsServer, nats_bus: NatsBus, seed: int
) -> None:
    rng = random.Random(seed)
    crashing = asyncio.create_task(crash_now_and_then(nats_server, rng, 3))
    published = 0
    while not crashing.done():
        size = rng.choice([1, 1, 7, 60])
        numbers = range(published, published + size)
        await insist(lambda numbers=numbers: nats_bus.publish_batch([signal(number) for number in numbers]))
        published += size
    await crashing

    assert await stored_ids(nats_bus) == Counter(f"s{number}" for number in range(published))


@pytest.mark.parametrize(
    ("seed", "more"), [(4, {}), (5, {"concurrency": 4}), (6, {"ordered": True, "batch_max": 20}), (7, {"batch_max": 9})]
)
async def test_consumers_go_on_by_themselves_after_the_server_was_killed(
    nats_server: NatsServer, nats_bus: NatsBus, seed: int, more: dict[str, Any]
) -> None:
    rng = random.Random(seed)
    handled: Counter[str] = Counter()

    async def handle(messages: Sequence[Received[Any]]) -> None:
        await asyncio.sleep(rng.uniform(0.0, 0.02))
        handled.update(message.payload.id for message in messages)

    async def handle_one(message: Received[Any]) -> None:
        await handle([message])

    await nats_bus.publish_batch([signal(number) for number in range(100)])
    wanted = spec("surviving", ack_wait=timedelta(seconds=2), **more)
    if "batch_max" in more:
        await nats_bus.consume_batches(wanted, handle)
    else:
        await nats_bus.consume(wanted, handle_one)
    await crash_now_and_then(nats_server, rng, 2)
    await insist(lambda: nats_bus.publish_batch([signal(number) for number in range(100, 150)]))

    await until(lambda: len(handled) == 150, 30)
    assert await insist(nats_bus.dead_letters) == []


async def test_what_is_not_connected_refuses_at_once_and_says_nothing_later(nats_server: NatsServer, nats_bus: NatsBus) -> None:
    await nats_bus.publish(signal(1))
    nats_server.kill()
    started = time.monotonic()
    for number in range(2, 12):
        with pytest.raises(BusUnavailable):
            await nats_bus.publish(signal(number))
    refused_within = time.monotonic() - started
    assert await nats_bus.ready() is False
    nats_server.start()
    await until(lambda: nats_bus._connection.connected)

    assert refused_within < 1
    assert await insist(lambda: stored_ids(nats_bus)) == Counter(["s1"])


async def test_a_publish_in_flight_fails_when_the_server_dies(nats_server: NatsServer, nats_bus: NatsBus) -> None:
    nats_server.pause()
    waiting = asyncio.create_task(nats_bus.publish(signal(1)))
    await asyncio.sleep(0.2)
    started = time.monotonic()
    nats_server.kill()

    with pytest.raises(BusUnavailable):
        await waiting
    assert time.monotonic() - started < 2


async def test_the_same_message_after_a_crash_is_still_known(nats_server: NatsServer, nats_bus: NatsBus) -> None:
    first = await nats_bus.publish(signal(1))
    nats_server.restart()
    again = await insist(lambda: nats_bus.publish(signal(1)))

    assert again.duplicate
    assert again.sequence == first.sequence


async def test_a_thousand_messages_are_one_batch_and_more_are_several(nats_bus: NatsBus) -> None:
    acks = await nats_bus.publish_batch([signal(number) for number in range(2_300)])

    assert [ack.sequence for ack in acks] == list(range(1, 2_301))
    again = await nats_bus.publish_batch([signal(number) for number in range(1_000, 2_400)])
    assert [ack.duplicate for ack in again] == [True] * 1_300 + [False] * 100
    assert [ack.sequence for ack in again[:3]] == [1_001, 1_002, 1_003]


async def test_batches_side_by_side_all_come_through(nats_bus: NatsBus) -> None:
    batches = await asyncio.gather(
        *(nats_bus.publish_batch([signal(start + number) for number in range(100)]) for start in range(0, 6_000, 100))
    )

    assert sorted(ack.sequence for acks in batches for ack in acks) == list(range(1, 6_001))


async def test_a_full_stream_refuses_and_keeps_what_it_has(nats_bus: NatsBus) -> None:
    config = (await nats_bus._connection.api("STREAM.INFO.SIGNALS"))["config"]
    await nats_bus._connection.api("STREAM.UPDATE.SIGNALS", {**config, "max_msgs": 5})
    await nats_bus.publish_batch([signal(number) for number in range(5)])

    with pytest.raises(BusUnavailable, match="maximum messages"):
        await nats_bus.publish(signal(5))
    with pytest.raises(BusUnavailable):
        await nats_bus.publish_batch([signal(6), signal(7)])
    assert await stored_ids(nats_bus) == Counter(f"s{number}" for number in range(5))


async def test_a_small_store_gets_smaller_streams_and_a_changed_table_is_taken_over(nats_server: NatsServer) -> None:
    bus = NatsBus(nats_server.url, "test", store_bytes=50 * 1024**3)  # a hundred times what the server has
    await bus.connect()
    sizes = [(await bus._connection.api(f"STREAM.INFO.{stream.name}"))["config"]["max_bytes"] for stream in STREAMS]
    config = (await bus._connection.api("STREAM.INFO.SIGNALS"))["config"]
    await bus._connection.api("STREAM.UPDATE.SIGNALS", {**config, "subjects": ["signals.*.old"], "max_age": 0})
    await bus.close()
    again = NatsBus(nats_server.url, "test", store_bytes=64 * 1024**2)
    await again.connect()
    ack = await again.publish(signal(1))
    config = (await again._connection.api("STREAM.INFO.SIGNALS"))["config"]
    await again.close()

    assert sum(sizes) <= nats_server.store_bytes
    assert sum(sizes) >= nats_server.store_bytes / 4
    assert ack.sequence == 1
    assert config["max_age"] == 30 * 86_400 * 10**9
    assert config["discard"] == "new"


async def test_timers_outlive_the_server_also_when_they_fall_due_meanwhile(nats_server: NatsServer, nats_bus: NatsBus) -> None:
    fired: list[Timer] = []

    async def handle(timer: Timer) -> None:
        fired.append(timer)

    now = datetime.now(UTC)
    for key, seconds in (("while down", 0.6), ("later", 2.5), ("past", -60.0)):
        await nats_bus.schedule(Timer(service="test", purpose="wake", key=key, due_at=now + timedelta(seconds=seconds)))
    nats_server.kill()
    await asyncio.sleep(1)
    nats_server.start()
    await insist(lambda: nats_bus.on_timer("test", handle))
    await until(lambda: len(fired) == 3)

    assert [timer.key for timer in fired][-1] == "later"
    assert datetime.now(UTC) - now >= timedelta(seconds=2.5)

    async def left() -> int:
        return int((await nats_bus._connection.api("STREAM.INFO.TIMERS"))["state"]["messages"])

    async with asyncio.timeout(5):
        while await left():
            await asyncio.sleep(0.05)  # what was handled does not stay for the stream's age


async def test_a_timer_beyond_what_the_stream_keeps_is_refused(nats_bus: NatsBus) -> None:
    with pytest.raises(Refused, match="keeps timers"):
        await nats_bus.schedule(Timer(service="test", purpose="wake", key="k", due_at=datetime.now(UTC) + timedelta(days=100)))


async def test_two_replicas_of_an_ordered_flow_never_overlap_and_keep_the_order(new_nats_bus: Any) -> None:
    first, second = await new_nats_bus("one"), await new_nats_bus("two")
    running = 0
    overlaps = 0
    seen: list[int] = []
    by: Counter[str] = Counter()

    def handler(name: str) -> Any:
        async def handle(messages: Sequence[Received[Any]]) -> None:
            nonlocal running, overlaps
            running += 1
            overlaps += running > 1
            await asyncio.sleep(0.01)
            seen.extend(message.sequence for message in messages)
            by[name] += len(messages)
            running -= 1

        return handle

    wanted = spec("flow", ordered=True, batch_max=10)
    await first.consume_batches(wanted, handler("one"))
    await second.consume_batches(wanted, handler("two"))
    for start in range(0, 300, 30):
        await first.publish_batch([signal(number) for number in range(start, start + 30)])
        await asyncio.sleep(0.02)
    await until(lambda: len(seen) >= 150)
    active = by.most_common(1)[0][0]
    await (first if active == "one" else second).close()  # the standby takes over
    await until(lambda: len(seen) == 300)

    assert overlaps == 0
    assert seen == list(range(1, 301))
    assert len(by) == 2 or by[active] == 300


async def test_a_standby_takes_over_from_one_that_died_and_stops_at_once_when_told(new_nats_bus: Any) -> None:
    first, second, third = await new_nats_bus("one"), await new_nats_bus("two"), await new_nats_bus("three")
    seen: list[tuple[str, int]] = []

    def handler(name: str) -> Any:
        async def handle(messages: Sequence[Received[Any]]) -> None:
            seen.extend((name, message.sequence) for message in messages)

        return handle

    wanted = spec("flow", ordered=True, batch_max=10, ack_wait=timedelta(seconds=2))
    await first.consume_batches(wanted, handler("one"))
    await first.publish(signal(1))
    await until(lambda: seen == [("one", 1)])
    await second.consume_batches(wanted, handler("two"))
    await third.consume_batches(wanted, handler("three"))
    started = time.monotonic()
    await third.close()
    stopped_within = time.monotonic() - started
    client, first._connection._client = first._connection._client, None  # as if its process had been killed: nothing is released
    for _, task in first._consumers:
        task.cancel()
    client._transport.close()
    killed = time.monotonic()
    await second.publish(signal(2))
    await until(lambda: len(seen) == 2)

    assert stopped_within < 2
    assert time.monotonic() - killed < 12
    assert seen[1] == ("two", 2)


async def test_messages_that_trickle_in_are_never_left_lying(nats_bus: NatsBus) -> None:
    """A batch that ends while the server is sending must not strand what is on its way until ``ack_wait`` is over."""
    seen: list[int] = []
    attempts: Counter[int] = Counter()

    async def handle(messages: Sequence[Received[Any]]) -> None:
        seen.extend(message.sequence for message in messages)
        attempts.update(message.attempt for message in messages)

    await nats_bus.consume_batches(spec("trickle", ordered=True, batch_max=50, batch_wait=timedelta(milliseconds=3)), handle)
    for number in range(400):
        await nats_bus.publish(signal(number))
        await asyncio.sleep(0.001)
    await until(lambda: len(seen) == 400, 5)

    assert seen == list(range(1, 401))
    assert attempts == Counter({1: 400})


async def test_a_handler_longer_than_ack_wait_keeps_its_message(nats_bus: NatsBus) -> None:
    attempts: list[int] = []
    done = asyncio.Event()

    async def handle(message: Received[Any]) -> None:
        attempts.append(message.attempt)
        await asyncio.sleep(2.5)
        done.set()

    await nats_bus.publish(signal(1))
    await nats_bus.consume(spec("long", ack_wait=timedelta(seconds=1), concurrency=2), handle)
    await asyncio.wait_for(done.wait(), 10)
    await asyncio.sleep(1.5)

    assert attempts == [1]


async def test_a_drain_that_takes_too_long_gives_the_message_to_another_at_once(new_nats_bus: Any) -> None:
    first, second = await new_nats_bus("one"), await new_nats_bus("two")
    started = asyncio.Event()
    taken: list[int] = []

    async def hang(_: Received[Any]) -> None:
        started.set()
        await asyncio.sleep(60)

    async def handle(message: Received[Any]) -> None:
        taken.append(message.attempt)

    await first.publish(signal(1))
    await first.consume(spec("shared"), hang)
    await asyncio.wait_for(started.wait(), 5)
    await first.close(timedelta(milliseconds=200))
    await second.consume(spec("shared"), handle)

    await until(lambda: taken == [2], 5)  # ack_wait is 30 s


@pytest.mark.parametrize(
    ("headers", "payload", "reason"),
    [
        (None, b"{}", "lacks the header"),
        ({"ce-id": "x", "ce-source": "y", "ce-type": "other", "ce-time": NOW.isoformat()}, b"{}", "the type is 'other'"),
        ({"ce-id": "x", "ce-source": "y", "ce-type": "io.loopwright.signals.v1", "ce-time": "yesterday"}, b"{}", "cannot be read"),
        ({"ce-id": "x", "ce-source": "y", "ce-type": "io.loopwright.signals.v1", "ce-time": NOW.isoformat()}, b"\xff[", "not a Signal"),
        (
            {"ce-id": "x", "ce-source": "y", "ce-type": "io.loopwright.signals.v1", "ce-time": NOW.isoformat()},
            b"[" * 50_000,
            "not a Signal",
        ),
    ],
)
async def test_what_cannot_be_read_is_buried_as_it_came(nats_bus: NatsBus, headers: Any, payload: bytes, reason: str) -> None:
    handled: list[str] = []

    async def handle(message: Received[Any]) -> None:
        handled.append(message.payload.id)

    await nats_bus.consume(spec("reading"), handle)
    await nats_bus._connection.request("signals.shop.http", payload, headers=headers)
    await nats_bus.publish(signal(1))
    await until(lambda: handled == ["s1"])
    async with asyncio.timeout(5):
        while not (letters := await nats_bus.dead_letters()):
            await asyncio.sleep(0.02)

    assert letters[0].payload == payload
    assert reason in letters[0].reason


async def test_a_message_at_the_servers_limit_is_buried_cut_short_rather_than_never(nats_bus: NatsBus) -> None:
    payload = b"x" * (nats_bus._connection.client.max_payload - 10)

    async def handle(_: Received[Any]) -> None:
        raise AssertionError("it cannot be read")

    await nats_bus.consume(spec("reading"), handle)
    await nats_bus._connection.request("signals.shop.http", payload)
    async with asyncio.timeout(5):
        while not (letters := await nats_bus.dead_letters()):
            await asyncio.sleep(0.02)

    assert "payload cut from" in letters[0].reason
    assert payload.startswith(letters[0].payload)


async def test_dead_letters_are_listed_over_gaps_page_by_page(nats_bus: NatsBus) -> None:
    async def handle(_: Received[Any]) -> None:
        raise Permanent("no")

    await nats_bus.publish_batch([signal(number) for number in range(12)])
    await nats_bus.consume(spec("failing", concurrency=4), handle)
    async with asyncio.timeout(10):
        while len(letters := await nats_bus.dead_letters()) < 12:
            await asyncio.sleep(0.02)
    for letter in letters[2:9]:
        await nats_bus.discard(letter.sequence, "not worth it")

    first = await nats_bus.dead_letters(limit=3)
    rest = await nats_bus.dead_letters(limit=3, before=first[-1].sequence)
    assert [letter.sequence for letter in first + rest] == [letters[index].sequence for index in (0, 1, 9, 10, 11)]


async def test_a_consumer_that_is_deleted_behind_our_back_comes_again(nats_bus: NatsBus) -> None:
    seen: list[str] = []

    async def handle(message: Received[Any]) -> None:
        seen.append(message.payload.id)

    await nats_bus.consume(spec("deleted"), handle)
    await nats_bus.publish(signal(1))
    await until(lambda: seen == ["s1"])
    await asyncio.sleep(0.2)
    await nats_bus._connection.api("CONSUMER.DELETE.SIGNALS.deleted")
    await nats_bus.publish(signal(2))

    await until(lambda: "s2" in seen)


async def test_one_trace_runs_from_the_publisher_to_the_handler_and_through_a_question(nats_bus: NatsBus) -> None:
    provider = trace.get_tracer_provider()
    if not isinstance(provider, TracerProvider):
        trace.set_tracer_provider(TracerProvider())
    seen: list[int] = []

    async def handle(_: Received[Any]) -> None:
        seen.append(trace.get_current_span().get_span_context().trace_id)
        await nats_bus.ask(SEARCH_QUERY, SearchQuery(project="shop", text="x"))

    async def search(_: SearchQuery) -> SearchAnswer:
        seen.append(trace.get_current_span().get_span_context().trace_id)
        return SearchAnswer()

    await nats_bus.answer(SEARCH_QUERY, search)
    await nats_bus.consume(spec("traced"), handle)
    with telemetry.span("request") as span:
        wanted = span.get_span_context().trace_id
        await nats_bus.publish(signal(1))
    await until(lambda: len(seen) == 2)

    assert seen == [wanted, wanted]


async def test_an_answer_too_large_is_said_to_be(nats_bus: NatsBus) -> None:
    async def search(_: SearchQuery) -> SearchAnswer:
        hits = tuple(SearchHit(report_id="r", similarity=0.5, title="x" * 512) for _ in range(100))
        return _Swollen(hits=hits, padding="x" * nats_bus._connection.client.max_payload)

    await nats_bus.answer(SEARCH_QUERY, search)

    with pytest.raises(Permanent, match="too large"):
        await nats_bus.ask(SEARCH_QUERY, SearchQuery(project="shop", text="x"))


class _Swollen(SearchAnswer):
    padding: str


async def test_replicas_share_questions_and_answer_again_after_a_restart(nats_server: NatsServer, new_nats_bus: Any) -> None:
    asking = await new_nats_bus("asking")
    answered: Counter[str] = Counter()
    for name in ("one", "two"):
        replica = await new_nats_bus(name)

        async def search(_: SearchQuery, name: str = name) -> SearchAnswer:
            answered[name] += 1
            return SearchAnswer()

        await replica.answer(SEARCH_QUERY, search)
    for _ in range(40):
        await asking.ask(SEARCH_QUERY, SearchQuery(project="shop", text="x"))
    nats_server.restart()

    async def ask_again() -> Any:
        try:
            return await asking.ask(SEARCH_QUERY, SearchQuery(project="shop", text="x"), timedelta(seconds=1))
        except Unavailable as error:
            raise BusUnavailable(str(error)) from error

    await insist(ask_again)
    assert set(answered) == {"one", "two"}
    assert sum(answered.values()) == 41


async def test_a_watch_goes_on_after_a_restart_and_tells_what_was_deleted_meanwhile(nats_server: NatsServer, new_nats_bus: Any) -> None:
    watching, writing = await new_nats_bus("watching"), await new_nats_bus("writing")
    bucket = await watching.key_value("things")
    await bucket.put("a", b"1")
    await bucket.put("b", b"1")
    told: list[Any] = []

    async def follow() -> None:
        async for entry in bucket.watch():
            told.append(entry if entry is None else (entry.key, entry.value))

    task = asyncio.create_task(follow())
    await until(lambda: None in told)
    nats_server.restart()
    other = await writing.key_value("things")
    await insist(lambda: other.delete("a"))
    await insist(lambda: other.put("b", b"2"))
    await until(lambda: len(told) >= 5)
    task.cancel()

    assert told == [("a", b"1"), ("b", b"1"), None, ("a", b""), ("b", b"2")]


async def test_wrong_credentials_are_refused_at_once_and_right_ones_are_taken(tmp_path: Any) -> None:
    server = NatsServer(tmp_path / "nats", user="loopwright", password="right").start()
    try:
        started = time.monotonic()
        with pytest.raises(Refused, match="credentials"):
            await NatsBus(server.url, "test", user="loopwright", password="wrong").connect()
        assert time.monotonic() - started < 5
        bus = NatsBus(server.url, "test", user="loopwright", password="right", store_bytes=64 * 1024**2)
        await bus.connect()
        assert await bus.ready()
        await bus.close()
    finally:
        server.kill()


async def test_a_bus_waits_for_a_server_that_starts_after_it(tmp_path: Any) -> None:
    server = NatsServer(tmp_path / "nats").start()
    server.kill()
    bus = NatsBus(server.url, "test", store_bytes=64 * 1024**2)
    connecting = asyncio.create_task(bus.connect(timedelta(seconds=20)))
    await asyncio.sleep(0.5)
    server.start()
    try:
        await asyncio.wait_for(connecting, 15)
        assert (await bus.publish(signal(1))).sequence == 1
        await bus.close()
        server.kill()
        with pytest.raises(BusUnavailable, match="did not answer within"):
            await NatsBus(server.url, "test").connect(timedelta(seconds=0.5))
    finally:
        server.kill()


async def test_objects_survive_a_crash_and_a_half_written_one_is_not_there(nats_server: NatsServer, nats_bus: NatsBus) -> None:
    store = await nats_bus.object_store("bundles")
    value = random.Random(1).randbytes(3_000_000)
    await store.put("whole", value)
    writing = asyncio.create_task(store.put("whole", value[::-1] * 10))
    await asyncio.sleep(0.03)
    nats_server.restart()
    with pytest.raises(BusUnavailable):
        await writing

    assert await insist(lambda: store.get("whole")) == value


def test_the_configuration_of_a_stream_is_plain_json() -> None:
    from loopwright_common.nats_bus.streams import stream_config

    for stream in STREAMS:
        assert json.loads(json.dumps(stream_config(stream, 10**9, 3)))["num_replicas"] == 3


async def test_projects_are_shared_out_among_replicas_and_taken_over_from_one_that_died(new_nats_bus: Any) -> None:
    buses = {name: await new_nats_bus("same") for name in ("one", "two")}
    by: dict[str, Counter[str]] = {name: Counter() for name in buses}
    running: Counter[str] = Counter()
    overlaps = 0
    seen: dict[str, list[int]] = defaultdict(list)

    def handler(name: str) -> Any:
        async def handle(messages: Sequence[Received[Any]]) -> None:
            nonlocal overlaps
            project = messages[0].project
            running[project] += 1
            overlaps += running[project] > 1
            await asyncio.sleep(0.005)
            seen[project].extend(message.sequence for message in messages)
            by[name][project] += len(messages)
            running[project] -= 1

        return handle

    projects = [f"p{number}" for number in range(12)]
    wanted = spec("flow", ordered=True, per_project=True, batch_max=10, ack_wait=timedelta(seconds=2))

    async def publish(first: int) -> None:
        for project in projects:
            messages = [signal(number) for number in range(first, first + 5)]
            await buses["two"].publish_batch(
                [replace(m, tokens={**m.tokens, "project": project}, message_id=f"{project}-{m.message_id}") for m in messages]
            )

    await publish(0)
    await buses["one"].consume_batches(wanted, handler("one"))
    await until(lambda: sum(map(len, seen.values())) == 60)
    assert len(by["one"]) == 12  # it is alone
    await buses["two"].consume_batches(wanted, handler("two"))
    started = 5
    async with asyncio.timeout(30):
        while len(by["two"]) < 3:  # once it has been there for a while, its share is handed over
            await publish(started)
            started += 5
            await asyncio.sleep(0.3)
    await until(lambda: all(len(seen[project]) == started for project in projects))
    assert overlaps == 0
    assert all(seen[project] == sorted(set(seen[project])) for project in projects)

    one = buses["one"]
    client, one._connection._client = one._connection._client, None  # as if its process had been killed: nothing is released
    for _, task in one._consumers:
        task.cancel()
    client._transport.close()
    await publish(started)
    await until(lambda: all(len(set(seen[project])) == started + 5 for project in projects), 20)


async def test_a_flow_for_each_project_goes_on_where_the_one_flow_of_all_had_ended(nats_bus: NatsBus) -> None:
    before: list[str] = []
    after: list[str] = []

    async def old(messages: Sequence[Received[Any]]) -> None:
        before.extend(message.payload.id for message in messages)

    async def new(messages: Sequence[Received[Any]]) -> None:
        after.extend(message.payload.id for message in messages)

    wanted = spec("flow", ordered=True, batch_max=10)
    await nats_bus.consume_batches(wanted, old)
    await nats_bus.publish_batch([signal(number) for number in range(20)])
    await until(lambda: len(before) == 20)
    (consumer, task), *_ = nats_bus._consumers
    consumer.stop()
    await task
    await nats_bus.publish(signal(20))
    await nats_bus.consume_batches(replace(wanted, per_project=True), new)
    await until(lambda: after == ["s20"])


async def test_lag_is_what_jetstream_says_and_is_unsaid_when_it_says_nothing(nats_server: NatsServer, new_nats_bus: Any) -> None:
    bus: NatsBus = await new_nats_bus("lagging")
    started, release = asyncio.Event(), asyncio.Event()

    async def handle(_: Received[Any]) -> None:
        started.set()
        await release.wait()

    def shown(name: str) -> float | None:
        return REGISTRY.get_sample_value(name, {"consumer": "lag-test", "stream": "SIGNALS"})

    await bus.publish_batch([signal(number) for number in range(10)])
    await bus.consume(spec("lag-test", ordered=True), handle)
    await asyncio.wait_for(started.wait(), 10)
    await bus.lag.read()
    assert (shown("loopwright_consumer_pending"), shown("loopwright_consumer_ack_pending")) == (9, 1)

    nats_server.kill()
    await bus.lag.read()
    assert (shown("loopwright_consumer_pending"), shown("loopwright_consumer_ack_pending")) == (None, None)

    nats_server.start()
    release.set()

    async def drained() -> bool:
        await bus.lag.read()
        return shown("loopwright_consumer_pending") == 0 and shown("loopwright_consumer_ack_pending") == 0

    async with asyncio.timeout(30):
        while not await drained():
            await asyncio.sleep(0.1)


async def test_a_lease_has_one_holder_within_a_process_too(nats_bus: NatsBus) -> None:
    members = Members(await nats_bus.key_value("leases-of-one"), "test")
    await members.start()
    told: list[str] = []

    async def hold(name: str) -> None:
        async with members.lease("flow", asyncio.Event()):
            told.append(f"{name} begins")
            await asyncio.sleep(3 * LOOK_SECONDS)
            told.append(f"{name} ends")

    await asyncio.gather(hold("one"), hold("two"), hold("three"))
    await members.stop()

    names = [line.split()[0] for line in told]
    assert told == [f"{name} {what}" for name in names[::2] for what in ("begins", "ends")]
    assert sorted(names[::2]) == ["one", "three", "two"]
