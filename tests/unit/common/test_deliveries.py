"""What becomes of a delivery: acknowledged, given back with a growing delay, or buried before it is ended."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopwright_common.bus import BusUnavailable, ConsumerSpec, Outgoing, Received
from loopwright_common.contracts.envelope import Envelope
from loopwright_common.contracts.signals import Signal
from loopwright_common.contracts.subjects import SIGNALS
from loopwright_common.deliveries import REPLAY_FOR, RawMessage, Worker, retry_delay
from loopwright_common.errors import Permanent, Retryable, Unavailable
from loopwright_common.testing.clock import FakeClock
from loopwright_common.testing.memory_bus import MemoryBus

NOW = datetime(2026, 11, 26, 10, 0, tzinfo=UTC)


def payload(number: int) -> Signal:
    return Signal(id=f"s{number}", project="shop", source="http", kind="custom", title="t", occurred_at=NOW, received_at=NOW)


@dataclass
class Noted:
    """A delivery that notes what it is told."""

    number: int = 1
    attempt: int = 1
    extra: dict[str, str] = field(default_factory=dict)
    log: list[tuple[int, str]] = field(default_factory=list)

    @property
    def message(self) -> RawMessage:
        envelope = Envelope(id=f"m{self.number}", source="/services/ingest", type=SIGNALS.event_type, time=NOW)
        body = payload(self.number).model_dump_json().encode()
        return RawMessage("signals.shop.http", envelope.headers() | self.extra, body, "SIGNALS", self.number, self.attempt)

    async def ack(self, confirmed: bool = False) -> None:
        self.log.append((self.number, "ack!" if confirmed else "ack"))

    async def ack_with(self, earlier: Sequence[Noted]) -> None:
        self.log += [*((delivery.number, "ack") for delivery in earlier), (self.number, "ack!")]

    async def give_back(self, delay: timedelta) -> None:
        self.log.append((self.number, f"back {delay.total_seconds():g}"))

    async def terminate(self) -> None:
        self.log.append((self.number, "end"))

    async def in_progress(self) -> None:
        self.log.append((self.number, "beat"))


class Stage:
    """A worker with a handler that raises what it is told for a message's number."""

    def __init__(self, *, bury_fails: bool = False, **spec: Any) -> None:
        self.log: list[tuple[int, str]] = []
        self.handled: list[list[str]] = []
        self.raises: dict[int, BaseException] = {}
        self.seconds = 0.0
        self.bury_fails = bury_fails
        self.worker = Worker(ConsumerSpec("mine", "test", (SIGNALS,), **spec), self.handle, self.bury)

    async def handle(self, messages: Sequence[Received[Any]]) -> None:
        self.handled.append([message.payload.id for message in messages])
        await asyncio.sleep(self.seconds)
        for message in messages:
            if message.sequence in self.raises:
                raise self.raises[message.sequence]

    async def bury(self, message: RawMessage, reason: str) -> None:
        if self.bury_fails:
            raise BusUnavailable("no room")
        self.log.append((message.sequence, f"bury: {reason}"))

    async def work(self, *deliveries: Noted) -> list[tuple[int, str]]:
        for delivery in deliveries:
            delivery.log = self.log
        await self.worker.work(deliveries)
        return self.log


async def test_what_is_read_ahead_is_handled_in_its_turn() -> None:
    stage = Stage(batch_max=3)
    batch = [Noted(1), Noted(2, extra={"ce-type": "another"}), Noted(3)]
    for delivery in batch:
        delivery.log = stage.log
    ahead = await stage.worker.read(batch)
    assert (stage.handled, [number for number, _ in stage.log]) == ([], [2, 2])  # buried, and ended

    await stage.worker.work(batch, ahead)
    assert stage.handled == [["s1", "s3"]]
    assert stage.log[2:] == [(1, "ack"), (3, "ack!")]


async def test_a_batch_is_acknowledged_with_its_last_one_confirmed() -> None:
    stage = Stage(batch_max=3)

    assert await stage.work(Noted(1), Noted(2), Noted(3)) == [(1, "ack"), (2, "ack"), (3, "ack!")]
    assert stage.handled == [["s1", "s2", "s3"]]


async def test_it_is_buried_before_it_is_ended() -> None:
    stage = Stage()
    stage.raises[1] = Permanent("blue")

    assert await stage.work(Noted(1)) == [(1, "bury: blue"), (1, "end")]


async def test_what_cannot_be_buried_is_not_ended() -> None:
    stage = Stage(bury_fails=True)
    stage.raises[1] = Permanent("blue")

    assert await stage.work(Noted(1)) == []


async def test_a_message_that_may_have_killed_its_process_is_not_handled_again() -> None:
    stage = Stage(attempts_max=3)

    log = await stage.work(Noted(1, attempt=4))

    assert stage.handled == []
    assert log[0][1].startswith("bury: delivered 3 times and never finished")


async def test_a_replay_is_handled_by_the_consumer_it_is_for_and_passed_over_by_others() -> None:
    stage = Stage(batch_max=2)

    log = await stage.work(Noted(1, extra={REPLAY_FOR: "another"}), Noted(2, extra={REPLAY_FOR: "mine"}))

    assert log == [(1, "ack"), (2, "ack")]
    assert stage.handled == [["s2"]]


async def test_a_programmers_error_is_tried_again_until_the_tries_are_used_up() -> None:
    stage = Stage(attempts_max=2)
    stage.raises[1] = ZeroDivisionError("division by zero")

    await stage.work(Noted(1, attempt=1))
    log = await stage.work(Noted(1, attempt=2))

    assert log == [(1, "back 1"), (1, "bury: gave up after 2 attempts: ZeroDivisionError: division by zero"), (1, "end")]


async def test_only_what_fails_by_itself_is_given_back() -> None:
    stage = Stage(batch_max=3)
    stage.raises[2] = Retryable("not yet", timedelta(seconds=7))

    log = await stage.work(Noted(1), Noted(2), Noted(3))

    assert log == [(1, "ack"), (2, "back 7"), (3, "ack")]
    assert stage.handled == [["s1", "s2", "s3"], ["s1"], ["s2"], ["s3"]]


async def test_the_rest_of_a_batch_is_not_tried_while_something_beside_it_is_down() -> None:
    stage = Stage(batch_max=3)
    stage.raises[2] = Unavailable("the database is down")

    log = await stage.work(Noted(1), Noted(2), Noted(3))

    assert log == [(1, "ack"), (2, "back 1"), (3, "back 1")]
    assert stage.handled[-1] == ["s2"]


async def test_a_long_handler_says_that_it_is_still_at_work() -> None:
    stage = Stage(ack_wait=timedelta(milliseconds=60))
    stage.seconds = 0.1

    log = await stage.work(Noted(1))

    assert 2 <= log.count((1, "beat")) <= 5
    assert log[-1] == (1, "ack")
    await asyncio.sleep(0.05)
    assert log[-1] == (1, "ack")


async def test_what_is_cancelled_is_given_back_at_once() -> None:
    stage = Stage()
    stage.seconds = 60
    working = asyncio.create_task(stage.work(Noted(1)))
    await asyncio.sleep(0.02)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working

    assert stage.log == [(1, "back 0")]


@given(st.integers(1, 10_000), st.floats(0.01, 10), st.floats(10, 1_000), st.none() | st.floats(0, 5_000))
def test_delays_grow_to_their_most_and_are_never_shorter_than_asked(attempt: int, first: float, most: float, least: float | None) -> None:
    spec = ConsumerSpec("c", "test", (SIGNALS,), retry_first=timedelta(seconds=first), retry_most=timedelta(seconds=most))
    asked = None if least is None else timedelta(seconds=least)
    delay = retry_delay(spec, attempt, asked)

    assert delay >= (asked or timedelta(0))
    assert delay <= max(spec.retry_most, asked or timedelta(0))
    assert retry_delay(spec, attempt + 1, asked) >= delay


async def test_on_a_still_clock_retries_fall_due_when_the_test_says_so(memory_bus: MemoryBus, fake_clock: FakeClock) -> None:
    times: list[float] = []

    async def handle(_: Received[Any]) -> None:
        times.append((fake_clock.now() - start).total_seconds())
        raise Retryable("not yet")

    start = fake_clock.now()
    retry_most = timedelta(seconds=4)
    await memory_bus.consume(ConsumerSpec("slow", "test", (SIGNALS,), retry_most=retry_most, attempts_max=5), handle)
    await memory_bus.publish(Outgoing(SIGNALS, payload(1), "m1", {"project": "shop", "source": "http"}))
    await memory_bus.idle()
    for _ in range(40):
        fake_clock.advance(seconds=0.5)
        await memory_bus.idle()

    assert times == [0, 1, 3, 7, 11]
    assert len(await memory_bus.dead_letters()) == 1


async def test_a_bus_made_unavailable_says_so_and_goes_on_afterwards(memory_bus: MemoryBus) -> None:
    seen: list[str] = []

    async def handle(message: Received[Any]) -> None:
        seen.append(message.payload.id)

    await memory_bus.consume(ConsumerSpec("later", "test", (SIGNALS,)), handle)
    memory_bus.broker.available = False
    with pytest.raises(BusUnavailable):
        await memory_bus.publish(Outgoing(SIGNALS, payload(1), "m1", {"project": "shop", "source": "http"}))
    assert not await memory_bus.ready()
    memory_bus.broker.available = True
    await memory_bus.publish(Outgoing(SIGNALS, payload(1), "m1", {"project": "shop", "source": "http"}))
    await memory_bus.idle()

    assert seen == ["s1"]
