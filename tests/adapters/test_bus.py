"""What the Bus promises, held by the bus in memory and by NATS JetStream alike."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from loopwright_common import telemetry
from loopwright_common.bus import Bus, Conflict, ConsumerSpec, MessageTooLarge, Outgoing, Received, Timer
from loopwright_common.contracts.queries import RatesAnswer, RatesQuery, SearchAnswer, SearchHit, SearchQuery
from loopwright_common.contracts.signals import Deploy, Signal
from loopwright_common.contracts.subjects import DEPLOYS, RATES_QUERY, SEARCH_QUERY, SIGNALS
from loopwright_common.errors import NotFound, Permanent, Retryable, Unavailable

NOW = datetime(2026, 11, 26, 10, 0, tzinfo=UTC)
SOON = timedelta(milliseconds=50)
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def signal(number: int, project: str = "shop", body: str = "") -> Outgoing:
    payload = Signal(
        id=f"s{number}",
        project=project,
        source="http",
        kind="custom",
        title=f"number {number}",
        body=body,
        occurred_at=NOW,
        received_at=NOW,
    )
    return Outgoing(SIGNALS, payload, f"signal:{project}:{number}", {"project": project, "source": "http"}, payload.id)


def spec(name: str, **more: Any) -> ConsumerSpec:
    return ConsumerSpec(name, "test", more.pop("subjects", (SIGNALS,)), **({"retry_first": SOON, "retry_most": SOON} | more))


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def test_what_was_published_before_a_consumer_exists_reaches_it(bus: Bus) -> None:
    acks = [await bus.publish(signal(number)) for number in range(3)]
    seen: list[Received[Any]] = []

    async def handle(message: Received[Any]) -> None:
        seen.append(message)

    await bus.consume(spec("late"), handle)
    await until(lambda: len(seen) == 3)

    assert [message.payload.id for message in seen] == ["s0", "s1", "s2"]
    assert [message.sequence for message in seen] == [ack.sequence for ack in acks]
    assert {message.project for message in seen} == {"shop"}
    assert seen[0].envelope.type == "io.loopwright.signals.v1"
    assert seen[0].attempt == 1


async def test_saying_it_twice_stores_it_once(bus: Bus) -> None:
    first = await bus.publish(signal(1))
    again = await bus.publish(signal(1))

    assert not first.duplicate
    assert again.duplicate
    assert again.sequence == first.sequence


async def test_a_batch_keeps_its_order_and_gives_one_ack_each(bus: Bus) -> None:
    acks = await bus.publish_batch([signal(number) for number in range(250)])

    assert len(acks) == 250
    sequences = [ack.sequence for ack in acks]
    assert sequences == list(range(sequences[0], sequences[0] + 250))


async def test_a_batch_with_something_already_stored_stores_the_rest(bus: Bus) -> None:
    await bus.publish(signal(1))

    acks = await bus.publish_batch([signal(0), signal(1), signal(2), signal(2)])

    assert [ack.duplicate for ack in acks] == [False, True, False, True]


async def test_a_message_over_the_servers_limit_is_refused_and_stores_nothing(bus: Bus) -> None:
    links = tuple({"title": "x" * 500, "url": "u" * 2000} for _ in range(16))
    frames = tuple({"file": "f" * 512, "function": "g" * 512, "module": "m" * 512, "context": "c" * 512} for _ in range(100))
    big = signal(1).payload.model_copy(update={"title": "ä" * 512})
    payload = Signal.model_validate(big.model_dump() | {"body": "b" * 16_000, "links": links, "frames": frames})
    message = Outgoing(
        DEPLOYS, Deploy(id="d", project="shop", service="shop", release="r", deployed_at=NOW), "x", {"project": "shop", "service": "shop"}
    )
    oversized = Outgoing(SIGNALS, _Huge(**payload.model_dump()), "huge", {"project": "shop", "source": "http"})

    await bus.publish(message)
    with pytest.raises(MessageTooLarge):
        await bus.publish(oversized)


class _Huge(Signal):
    padding: str = "x" * (9 * 1024 * 1024)


async def test_a_retryable_error_brings_it_back_and_counts_the_attempts(bus: Bus) -> None:
    attempts: list[int] = []

    async def handle(message: Received[Any]) -> None:
        attempts.append(message.attempt)
        if len(attempts) < 3:
            raise Retryable("not yet")

    await bus.publish(signal(1))
    await bus.consume(spec("retrying"), handle)
    await until(lambda: len(attempts) == 3)
    await asyncio.sleep(0.2)

    assert attempts == [1, 2, 3]
    assert await bus.dead_letters() == []


async def test_a_permanent_error_buries_it_with_the_reason_and_a_replay_reaches_only_who_failed(bus: Bus) -> None:
    failing: list[int] = []
    other: list[int] = []

    async def fail(message: Received[Any]) -> None:
        failing.append(message.attempt)
        if len(failing) == 1:
            raise Permanent("the title is blue")

    async def succeed(message: Received[Any]) -> None:
        other.append(message.attempt)

    await bus.consume(spec("failing"), fail)
    await bus.consume(spec("other"), succeed)
    await bus.publish(signal(1))
    await until(lambda: bool(failing and other))
    letters = await _letters(bus, 1)

    assert letters[0].reason == "the title is blue"
    assert letters[0].consumer == "failing"
    assert letters[0].subject == "signals.shop.http"
    await bus.replay(letters[0].sequence)
    await until(lambda: len(failing) == 2)
    await asyncio.sleep(0.2)
    assert len(other) == 1
    assert await bus.dead_letters() == []
    with pytest.raises(NotFound):
        await bus.replay(letters[0].sequence)


async def _letters(bus: Bus, number: int) -> list[Any]:
    async with asyncio.timeout(10):
        while len(found := await bus.dead_letters()) < number:
            await asyncio.sleep(0.02)
    return found


async def test_too_many_tries_bury_it_and_a_discard_removes_it(bus: Bus) -> None:
    async def handle(_: Received[Any]) -> None:
        raise Retryable("never")

    await bus.consume(spec("hopeless", attempts_max=3), handle)
    await bus.publish(signal(1))
    (letter,) = await _letters(bus, 1)

    assert letter.attempts == 3
    assert "never" in letter.reason
    await bus.discard(letter.sequence, "not worth it")
    assert await bus.dead_letters() == []


async def test_a_poisoned_message_in_a_batch_dies_alone(bus: Bus) -> None:
    handled: list[str] = []

    async def handle(messages: Sequence[Received[Any]]) -> None:
        if any(message.payload.id == "s3" for message in messages):
            raise Permanent("poison")
        handled.extend(message.payload.id for message in messages)

    await bus.publish_batch([signal(number) for number in range(6)])
    await bus.consume_batches(spec("batching", batch_max=6), handle)
    await until(lambda: len(handled) >= 5)
    (letter,) = await _letters(bus, 1)

    assert sorted(handled) == ["s0", "s1", "s2", "s4", "s5"]
    assert letter.reason == "poison"


async def test_batches_come_in_stream_order_and_no_larger_than_asked(bus: Bus) -> None:
    batches: list[list[int]] = []

    async def handle(messages: Sequence[Received[Any]]) -> None:
        batches.append([message.sequence for message in messages])

    await bus.publish_batch([signal(number) for number in range(50)])
    await bus.consume_batches(spec("ordered", ordered=True, batch_max=20), handle)
    await until(lambda: sum(map(len, batches)) == 50)

    flat = [sequence for batch in batches for sequence in batch]
    assert flat == sorted(flat)
    assert max(map(len, batches)) <= 20


async def test_a_buckets_writes_are_compare_and_set(bus: Bus) -> None:
    bucket = await bus.key_value("things")
    first = await bucket.create("a.b", b"1")
    with pytest.raises(Conflict):
        await bucket.create("a.b", b"2")
    second = await bucket.update("a.b", b"3", first)
    with pytest.raises(Conflict):
        await bucket.update("a.b", b"4", first)

    entry = await bucket.get("a.b")
    assert entry is not None
    assert (entry.value, entry.revision) == (b"3", second)
    await bucket.put("a.c", b"5")
    assert await bucket.keys("a.") == ["a.b", "a.c"]
    await bucket.delete("a.b")
    assert await bucket.get("a.b") is None
    assert await bucket.keys() == ["a.c"]
    await bucket.create("a.b", b"6")
    assert await bucket.get("nothing") is None


async def test_many_keys_are_read_and_created_at_once_and_what_exists_stays(bus: Bus) -> None:
    bucket = await bus.key_value("things")
    assert await bucket.get_many(["a", "b"]) == {}
    assert await bucket.get_many([]) == {}
    assert await bucket.create_many({}) == {}
    made = await bucket.create_many({f"k.{number}": b"%d" % number for number in range(1_200)})
    assert len(set(made.values())) == len(made) == 1_200
    await bucket.delete("k.7")
    await bucket.put("k.8", b"changed")

    found = await bucket.get_many([f"k.{number}" for number in range(0, 1_300)] + ["k.1"])
    assert sorted(found) == sorted(f"k.{number}" for number in range(1_200) if number != 7)
    assert found["k.1199"].value == b"1199"
    assert found["k.1199"].revision == made["k.1199"]
    assert found["k.8"].value == b"changed"
    assert found["k.8"] == await bucket.get("k.8")

    # One that exists keeps its value, one that was deleted is made anew, and the others are made as well.
    again = await bucket.create_many({"k.6": b"x", "k.7": b"back", "new.1": b"1", "new.2": b""})
    assert sorted(again) == ["k.7", "new.1", "new.2"]
    values = await bucket.get_many(["k.6", "k.7", "new.1", "new.2"])
    assert {key: entry.value for key, entry in values.items()} == {"k.6": b"6", "k.7": b"back", "new.1": b"1", "new.2": b""}
    assert values["k.7"].revision == again["k.7"]
    await bucket.update("new.1", b"2", again["new.1"])


async def test_of_two_who_create_the_same_keys_at_once_each_key_is_one_s(bus: Bus) -> None:
    bucket = await bus.key_value("things")
    keys = [f"k{number}" for number in range(40)]

    mine, theirs = await asyncio.gather(
        bucket.create_many(dict.fromkeys(keys[:30], b"mine")), bucket.create_many(dict.fromkeys(keys[10:], b"theirs"))
    )

    assert not mine.keys() & theirs.keys()
    assert mine.keys() | theirs.keys() == set(keys)
    found = await bucket.get_many(keys)
    assert {key for key, entry in found.items() if entry.value == b"mine"} == set(mine)


async def test_only_one_of_many_writers_wins_each_revision(bus: Bus) -> None:
    bucket = await bus.key_value("counter")
    await bucket.create("n", b"0")

    async def add() -> None:
        while True:
            entry = await bucket.get("n")
            assert entry is not None
            try:
                await bucket.update("n", str(int(entry.value) + 1).encode(), entry.revision)
            except Conflict:
                continue
            return

    await asyncio.gather(*(add() for _ in range(20)))
    entry = await bucket.get("n")
    assert entry is not None
    assert entry.value == b"20"


async def test_a_watch_tells_what_is_there_then_none_then_every_change(bus: Bus) -> None:
    bucket = await bus.key_value("watched")
    await bucket.put("x.1", b"one")
    await bucket.put("y.1", b"other")
    told: list[Any] = []

    async def follow() -> None:
        async for entry in bucket.watch("x."):
            told.append(entry if entry is None else (entry.key, entry.value))

    task = asyncio.create_task(follow())
    await until(lambda: None in told)
    await bucket.put("x.2", b"two")
    await bucket.delete("x.1")
    await until(lambda: len(told) == 4)
    task.cancel()

    assert told == [("x.1", b"one"), None, ("x.2", b"two"), ("x.1", b"")]


async def test_an_empty_bucket_is_told_at_once(bus: Bus) -> None:
    bucket = await bus.key_value("empty")
    async with asyncio.timeout(5):
        async for entry in bucket.watch():
            assert entry is None
            break


async def test_large_objects_come_back_whole_and_the_newest_counts(bus: Bus) -> None:
    store = await bus.object_store("bundles")
    value = bytes(range(256)) * 4096
    await store.put("one/two three", b"old")
    await store.put("one/two three", value)

    assert await store.get("one/two three") == value
    await store.delete("one/two three")
    assert await store.get("one/two three") is None
    assert await store.get("never") is None


async def test_a_timer_comes_when_it_is_due_and_the_later_one_replaces_the_earlier(bus: Bus) -> None:
    fired: list[Timer] = []

    async def handle(timer: Timer) -> None:
        fired.append(timer)

    await bus.on_timer("test", handle)
    now = datetime.now(UTC)
    await bus.schedule(Timer(service="test", purpose="wake", key="a/1", due_at=now + timedelta(hours=1)))
    await bus.schedule(Timer(service="test", purpose="wake", key="a/1", due_at=now + timedelta(seconds=1), data={"n": 2}))
    await bus.schedule(Timer(service="test", purpose="wake", key="gone", due_at=now + timedelta(seconds=1)))
    await bus.cancel("test", "wake", "gone")
    assert fired == []
    await until(lambda: len(fired) == 1)
    await asyncio.sleep(0.5)

    assert [(timer.key, timer.data) for timer in fired] == [("a/1", {"n": 2})]
    assert datetime.now(UTC) >= fired[0].due_at


async def test_a_question_is_answered_and_its_errors_come_through(bus: Bus) -> None:
    async def search(query: SearchQuery) -> SearchAnswer:
        if query.text == "no":
            raise Permanent("that cannot be searched")
        return SearchAnswer(hits=(SearchHit(report_id="r", similarity=0.5, title=query.text),))

    await bus.answer(SEARCH_QUERY, search)

    answer = await bus.ask(SEARCH_QUERY, SearchQuery(project="shop", text="checkout"))
    assert isinstance(answer, SearchAnswer)
    assert answer.hits[0].title == "checkout"
    with pytest.raises(Permanent, match="that cannot be searched"):
        await bus.ask(SEARCH_QUERY, SearchQuery(project="shop", text="no"))
    with pytest.raises(Unavailable, match="gateway"):
        await bus.ask(RATES_QUERY, RatesQuery(project="shop", start=NOW, end=NOW), timedelta(seconds=1))
    assert RatesAnswer().truncated is False


async def test_closing_lets_a_running_handler_finish(bus: Bus) -> None:
    started, finished = asyncio.Event(), asyncio.Event()

    async def handle(_: Received[Any]) -> None:
        started.set()
        await asyncio.sleep(0.3)
        finished.set()

    await bus.publish(signal(1))
    await bus.consume(spec("slow"), handle)
    await asyncio.wait_for(started.wait(), 5)
    await bus.close()

    assert finished.is_set()


async def test_a_batch_over_several_streams_gives_each_its_ack_in_the_order_given(bus: Bus) -> None:
    deploys = [Deploy(id=f"d{number}", project="shop", service="web", release="r", deployed_at=NOW) for number in range(3)]
    mixed: list[Outgoing] = []
    for number, deploy in enumerate(deploys):
        mixed += [signal(number), Outgoing(DEPLOYS, deploy, f"deploy:{number}", {"project": "shop", "service": "web"}, deploy.id)]

    acks = await bus.publish_batch(mixed)

    assert [ack.stream for ack in acks] == ["SIGNALS", "DEPLOYS"] * 3
    assert [ack.sequence for ack in acks] == [1, 1, 2, 2, 3, 3]
    assert await bus.publish_batch([]) == []


async def test_two_takers_of_one_ordered_flow_never_handle_at_once(bus: Bus) -> None:
    running = most = 0
    seen: list[int] = []

    async def handle(messages: Sequence[Received[Any]]) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        seen.extend(message.sequence for message in messages)
        running -= 1

    flow = spec("flow", ordered=True, batch_max=10)
    await bus.consume_batches(flow, handle)
    await bus.consume_batches(flow, handle)
    await bus.publish_batch([signal(number) for number in range(60)])
    await until(lambda: len(seen) == 60)

    assert most == 1
    assert seen == sorted(seen)


async def test_an_ordered_flow_of_single_messages_waits_for_the_one_that_failed(bus: Bus) -> None:
    seen: list[tuple[str, int]] = []

    async def handle(message: Received[Any]) -> None:
        seen.append((message.payload.id, message.attempt))
        if message.payload.id == "s1" and message.attempt == 1:
            raise Retryable("not yet")

    await bus.publish_batch([signal(number) for number in range(3)])
    await bus.consume(spec("strict", ordered=True), handle)
    await until(lambda: len(seen) == 4)

    assert seen == [("s0", 1), ("s1", 1), ("s1", 2), ("s2", 1)]


async def test_concurrency_is_how_many_handlers_run_at_once(bus: Bus) -> None:
    running = most = done = 0

    async def handle(_: Received[Any]) -> None:
        nonlocal running, most, done
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.05)
        running -= 1
        done += 1

    await bus.publish_batch([signal(number) for number in range(12)])
    await bus.consume(spec("parallel", concurrency=3), handle)
    await until(lambda: done == 12)

    assert most == 3


async def test_a_position_belongs_to_the_name_of_the_consumer(bus: Bus) -> None:
    first: list[str] = []
    second: list[str] = []

    async def handle(message: Received[Any]) -> None:
        first.append(message.payload.id)

    async def handle_again(message: Received[Any]) -> None:
        second.append(message.payload.id)

    await bus.publish_batch([signal(number) for number in range(5)])
    await bus.consume(spec("durable"), handle)
    await until(lambda: len(first) == 5)
    await asyncio.sleep(0.1)
    await bus.consume(spec("durable"), handle_again)
    await bus.consume(spec("fresh"), handle_again)
    await until(lambda: len(second) >= 5)
    await asyncio.sleep(0.1)

    assert second == first  # all by the fresh name, none a second time by the durable one


@pytest.mark.parametrize("key", ["", ".a", "a.", "a..b", "a b", "a*", ">", "ä", "a/b", "x" * 600])
async def test_a_key_of_another_form_is_refused(bus: Bus, key: str) -> None:
    bucket = await bus.key_value("things")
    many = (bucket.get_many(["good", key]), bucket.create_many({"good": b"", key: b""}))
    for work in (*many, bucket.get(key), bucket.put(key, b""), bucket.create(key, b""), bucket.update(key, b"", 1), bucket.delete(key)):
        with pytest.raises(ValueError, match="is not a key"):
            await work


async def test_a_bucket_of_another_name_is_refused(bus: Bus) -> None:
    with pytest.raises(ValueError, match="bucket"):
        await bus.key_value("no dots.please")
    with pytest.raises(ValueError, match="bucket"):
        await bus.object_store("../etc")


async def test_deleting_what_is_not_there_is_no_error_and_an_empty_value_is_a_value(bus: Bus) -> None:
    bucket = await bus.key_value("things")
    await bucket.delete("never")
    await bucket.put("empty", b"")

    entry = await bucket.get("empty")
    assert entry is not None
    assert entry.value == b""
    assert await bucket.keys() == ["empty"]


async def test_a_handler_of_questions_that_fails_is_unavailable_to_who_asks(bus: Bus) -> None:
    async def search(query: SearchQuery) -> SearchAnswer:
        if query.text == "later":
            raise Retryable("the index is loading")
        raise ZeroDivisionError("oh")

    await bus.answer(SEARCH_QUERY, search)

    with pytest.raises(Unavailable, match="the index is loading"):
        await bus.ask(SEARCH_QUERY, SearchQuery(project="shop", text="later"))
    with pytest.raises(Unavailable, match="ZeroDivisionError"):
        await bus.ask(SEARCH_QUERY, SearchQuery(project="shop", text="x"))


async def test_an_answer_that_takes_too_long_is_not_waited_for(bus: Bus) -> None:
    async def search(_: SearchQuery) -> SearchAnswer:
        await asyncio.sleep(30)
        return SearchAnswer()

    await bus.answer(SEARCH_QUERY, search)

    with pytest.raises(Unavailable):
        await bus.ask(SEARCH_QUERY, SearchQuery(project="shop", text="x"), timedelta(milliseconds=200))
    await bus.close(timedelta(milliseconds=100))


async def test_a_timer_that_fails_for_good_is_buried_and_its_replay_comes_again(bus: Bus) -> None:
    tries: list[str] = []

    async def handle(timer: Timer) -> None:
        tries.append(timer.key)
        raise Permanent("nobody wants it")

    await bus.on_timer("test", handle)
    await bus.schedule(Timer(service="test", purpose="wake", key="k", due_at=datetime.now(UTC)))
    (letter,) = await _letters(bus, 1)

    assert letter.reason == "nobody wants it"
    await bus.replay(letter.sequence)
    await until(lambda: tries == ["k", "k"])


async def test_it_says_what_the_streams_hold(bus: Bus) -> None:
    await bus.publish_batch([signal(number) for number in range(3)])

    usage = await bus.usage()

    held = {stream.name: stream for stream in usage.streams}
    assert (held["SIGNALS"].messages, held["DEAD"].messages) == (3, 0)
    assert held["SIGNALS"].bytes > 0
    assert usage.bytes >= held["SIGNALS"].bytes


async def test_a_fact_keeps_the_trace_it_was_made_in_wherever_it_is_published(bus: Bus) -> None:
    seen: list[str] = []

    async def handle(message: Received[Any]) -> None:
        seen.append(message.envelope.traceparent)

    with telemetry.continued(TRACEPARENT):
        made = signal(1)
    await bus.publish_batch([made, signal(2)])
    await bus.consume(spec("traced"), handle)
    await until(lambda: len(seen) == 2)

    assert seen == [TRACEPARENT, ""]


async def test_a_timer_keeps_the_trace_it_was_set_in(bus: Bus) -> None:
    seen: list[str] = []

    async def due(_: Timer) -> None:
        seen.append(telemetry.traceparent())

    await bus.on_timer("test", due)
    with telemetry.continued(TRACEPARENT):
        await bus.schedule(Timer(service="test", purpose="look", key="r1", due_at=datetime.now(UTC) + SOON))
    await until(lambda: bool(seen))

    assert seen[0][:36] == TRACEPARENT[:36]


# A flow for each project


PER_PROJECT = {"ordered": True, "per_project": True, "batch_max": 10}


async def test_each_project_has_a_flow_of_its_own_in_order_and_a_batch_is_of_one_project(bus: Bus) -> None:
    seen: dict[str, list[int]] = {}
    mixed = 0

    async def handle(messages: Sequence[Received[Any]]) -> None:
        nonlocal mixed
        mixed += len({message.project for message in messages}) > 1
        for message in messages:
            seen.setdefault(message.project, []).append(message.sequence)

    projects = ("shop", "bank", "shop-two")
    await bus.publish(signal(0, "shop"))  # there before the consumer, the others come later
    await bus.consume_batches(spec("flows", **PER_PROJECT), handle)
    for number in range(1, 40):
        await bus.publish_batch([signal(number, project) for project in projects])
    await until(lambda: sum(map(len, seen.values())) == 39 * 3 + 1)

    assert set(seen) == set(projects)
    assert all(sequences == sorted(sequences) for sequences in seen.values())
    assert mixed == 0


async def test_a_project_that_hangs_or_fails_holds_up_no_other(bus: Bus) -> None:
    seen: list[str] = []
    let_go = asyncio.Event()

    async def handle(messages: Sequence[Received[Any]]) -> None:
        if messages[0].project == "hangs":
            await let_go.wait()
        if messages[0].project == "fails":
            raise Unavailable("its tracker does not answer")
        seen.extend(message.project for message in messages)

    await bus.consume_batches(spec("flows", **PER_PROJECT), handle)
    await bus.publish_batch([signal(number, project) for number in range(5) for project in ("hangs", "fails", "works")])
    await until(lambda: seen == ["works"] * 5)
    let_go.set()
    await until(lambda: seen.count("hangs") == 5)


async def test_what_follows_a_batch_that_waits_does_not_overtake_it(bus: Bus) -> None:
    seen: list[int] = []
    refusals = 0

    async def handle(messages: Sequence[Received[Any]]) -> None:
        nonlocal refusals
        if refusals < 3:
            refusals += 1
            raise Unavailable("the vector server is down")
        seen.extend(message.sequence for message in messages)

    await bus.publish_batch([signal(number) for number in range(60)])
    await bus.consume_batches(spec("flow", ordered=True, batch_max=10), handle)
    await until(lambda: len(set(seen)) == 60)

    assert sorted(seen) == sorted(set(seen))
    assert seen[:10] == sorted(seen[:10])
