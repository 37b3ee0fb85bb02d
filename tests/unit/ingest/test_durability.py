"""2xx only after the acknowledgement: what the bus does not take is not accepted, and what waits is bounded."""

import asyncio
from datetime import timedelta

import pytest
from loopwright_common.bus import Ack, BusUnavailable, MessageTooLarge, Outgoing
from loopwright_common.contracts.signals import Signal
from loopwright_common.contracts.subjects import SIGNALS
from loopwright_common.testing.clock import START
from loopwright_common.testing.memory_bus import MemoryBus
from loopwright_ingest.gather import Busy, Gatherer

SIGNAL = {"title": "x"}


class Gated(MemoryBus):
    """A bus that acknowledges when the test says so."""

    def __init__(self):
        super().__init__("ingest")
        self.gate = asyncio.Event()
        self.batches = []

    async def publish_batch(self, messages):
        self.batches.append(len(messages))
        await self.gate.wait()
        return await super().publish_batch(messages)


async def test_no_answer_is_given_before_the_acknowledgement(start_edge):
    bus = Gated()
    edge = await start_edge(bus=bus)
    posting = asyncio.create_task(edge.post("/v1/signals", SIGNAL))
    await asyncio.sleep(0.3)
    assert not posting.done()
    bus.gate.set()
    assert (await posting).status_code == 202


async def test_requests_of_one_moment_go_in_one_batch(start_edge):
    bus = Gated()
    bus.gate.set()
    edge = await start_edge(bus=bus, gather_milliseconds=100.0)
    answers = await asyncio.gather(*(edge.post("/v1/signals", SIGNAL) for _ in range(30)))
    assert {answer.status_code for answer in answers} == {202}
    assert sum(bus.batches) == 30
    assert len(bus.batches) <= 4


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/signals", SIGNAL),
        ("/v1/deploys", {"service": "checkout", "release": "1"}),
        ("/v1/exposure", {"exposure": [{"minute": "2026-11-26T10:00:00Z", "count": 1}]}),
    ],
)
async def test_while_the_bus_is_away_it_is_a_503_and_nothing_is_lost_or_kept(edge, path, body):
    edge.bus.broker.available = False
    answer = await edge.post(path, body)
    assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
    assert int(answer.headers["retry-after"]) >= 1
    edge.bus.broker.available = True
    assert edge.stored == 0
    assert (await edge.post(path, body)).status_code == 202


async def test_a_full_stream_refuses_and_says_so(edge):
    edge.bus.broker.stream_limits["SIGNALS"] = 1
    assert [(await edge.post("/v1/signals", SIGNAL)).status_code for _ in range(3)] == [202, 503, 503]


async def test_a_repeat_after_a_lost_answer_is_counted_once(edge):
    body = {"title": "x", "id": "mine"}
    await edge.post("/v1/signals", body)
    assert (await edge.post("/v1/signals", body)).json()["duplicates"] == 1
    assert len(edge.signals) == 1


async def test_beyond_what_may_wait_clients_are_told_to_come_back(start_edge):
    bus = Gated()
    edge = await start_edge(bus=bus, pending_max=1_000)
    posting = asyncio.create_task(edge.post("/v1/signals", [SIGNAL] * 1_000))
    while not bus.batches:
        await asyncio.sleep(0.01)
    answer = await edge.post("/v1/signals", SIGNAL)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    bus.gate.set()
    assert (await posting).status_code == 202
    assert (await edge.post("/v1/signals", SIGNAL)).status_code == 202


async def test_what_waits_is_sent_before_the_edge_stops(start_edge):
    bus = Gated()
    edge = await start_edge(bus=bus, gather_milliseconds=200.0)
    posting = asyncio.create_task(edge.post("/v1/signals", SIGNAL))
    await asyncio.sleep(0.05)
    bus.gate.set()
    assert (await posting).status_code == 202
    assert len(edge.signals) == 1


# The gatherer by itself


def message(name, **fields):
    signal = Signal(
        id=name, project="p", source="http", kind="custom", title="t", occurred_at=START, received_at=START, **fields
    )  # fmt: skip
    return Outgoing(SIGNALS, signal, name, {"project": "p", "source": "http"})


class Scripted:
    """A bus that answers each batch as a function says."""

    def __init__(self, answer):
        self.answer, self.batches = answer, []

    async def publish_batch(self, messages):
        names = [item.message_id for item in messages]
        self.batches.append(names)
        await asyncio.sleep(0)
        return self.answer(names)


async def gather(bus, *requests, pending_max=1_000, wait=0.005):
    gatherer = Gatherer(bus, timedelta(seconds=wait), pending_max)
    await gatherer.start()
    try:
        return await asyncio.gather(*(gatherer.submit([message(name) for name in names]) for names in requests), return_exceptions=True)
    finally:
        await gatherer.stop()


def acks(names):
    return [Ack("SIGNALS", int(name)) for name in names]


async def test_each_request_gets_the_acknowledgements_of_its_own_messages():
    bus = Scripted(acks)
    first, second, third = await gather(bus, ["1", "2"], ["3"], ["4", "5", "6"])
    assert bus.batches == [["1", "2", "3", "4", "5", "6"]]
    assert [[ack.sequence for ack in found] for found in (first, second, third)] == [[1, 2], [3], [4, 5, 6]]


async def test_one_request_at_fault_fails_alone():
    def answer(names):
        if "3" in names:
            raise MessageTooLarge("3 is too large")
        return acks(names)

    first, second, third = await gather(Scripted(answer), ["1", "2"], ["3"], ["4"])
    assert [ack.sequence for ack in first] == [1, 2]
    assert isinstance(second, MessageTooLarge)
    assert [ack.sequence for ack in third] == [4]


async def test_while_the_bus_is_away_all_requests_of_a_batch_fail():
    def answer(names):
        raise BusUnavailable("away")

    found = await gather(Scripted(answer), ["1"], ["2"])
    assert [type(error) for error in found] == [BusUnavailable, BusUnavailable]


async def test_an_absent_bus_is_asked_once_for_a_batch():
    def answer(names):
        raise BusUnavailable("away")

    bus = Scripted(answer)
    await gather(bus, *([str(number)] for number in range(20)))
    assert len(bus.batches) == 1


async def test_a_programmers_error_fails_the_requests_and_not_the_gatherer():
    def answer(names):
        if "1" in names:
            raise RuntimeError("a bug")
        return acks(names)

    bus = Scripted(answer)
    gatherer = Gatherer(bus, timedelta(0), 1_000)
    await gatherer.start()
    with pytest.raises(RuntimeError):
        await gatherer.submit([message("1")])
    assert [ack.sequence for ack in await gatherer.submit([message("2")])] == [2]
    await gatherer.stop()


async def test_what_has_failed_no_longer_counts_as_waiting():
    def answer(names):
        raise BusUnavailable("away")

    gatherer = Gatherer(Scripted(answer), timedelta(0), 2)
    await gatherer.start()
    for _ in range(5):
        with pytest.raises(BusUnavailable):
            await gatherer.submit([message("1"), message("2")])
    with pytest.raises(Busy):
        await gatherer.submit([message("1"), message("2"), message("3")])
    await gatherer.stop()


async def test_no_batch_is_larger_than_the_server_takes():
    bus = Scripted(acks)
    found = await gather(bus, *([str(number * 400 + offset) for offset in range(400)] for number in range(6)), pending_max=10_000)
    assert max(len(batch) for batch in bus.batches) <= 1_000
    assert sum(len(batch) for batch in bus.batches) == 2_400
    assert [[ack.sequence for ack in acknowledged] for acknowledged in found][5][-1] == 5 * 400 + 399


async def test_one_signal_that_the_bus_cannot_take_does_not_fail_its_neighbours(edge):
    huge = {"title": "huge", "frames": [dict.fromkeys(("file", "function", "module", "context"), "\x01" * 512)] * 100}
    answer = await edge.post("/v1/signals", [{"title": "a"}, huge, {"title": "b"}])
    assert answer.status_code == 207
    assert [result["outcome"] for result in answer.json()["results"]] == ["accepted", "rejected", "accepted"]
    assert [signal.title for signal in edge.signals] == ["a", "b"]
