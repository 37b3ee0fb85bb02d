"""Publishing: acknowledged, many at once in atomic batches (NATS ADR-50)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import structlog

from loopwright_common import telemetry
from loopwright_common.bus import Ack, BusUnavailable, MessageTooLarge, Outgoing
from loopwright_common.contracts.envelope import Envelope
from loopwright_common.identifiers import new_id
from loopwright_common.nats_bus.connection import ApiError, Connection, Headers, NobodyListens, wait_reply

log = structlog.get_logger()

BATCH_MESSAGES_MAX = 1_000  # the server's limit (ADR-50)
# A batch is held in the server's memory until it commits.
BATCH_BYTES_MAX = 8 * 1024**2
BATCHES_IN_FLIGHT_MAX = 16  # the server takes 50 per stream
SINGLES_IN_FLIGHT_MAX = 256
ACK_SECONDS = 10.0
HEADER_OVERHEAD_BYTES = 64  # status line, and ": " and line end per header, roughly

MESSAGE_TOO_LARGE = 10054
BATCH_NOT_ENABLED = 10174
BATCH_DUPLICATE = 10201


@dataclass(frozen=True)
class Prepared:
    """A message as it goes over the wire."""

    stream: str
    subject: str
    headers: Headers
    payload: bytes

    @cached_property
    def size(self) -> int:
        return len(self.payload) + sum(len(key) + len(value) + 4 for key, value in self.headers.items()) + HEADER_OVERHEAD_BYTES


class Publisher:
    """Stores messages and returns when they are stored."""

    def __init__(self, connection: Connection, service: str) -> None:
        self._connection = connection
        self._source = f"/services/{service}"
        self._singles = asyncio.Semaphore(SINGLES_IN_FLIGHT_MAX)
        self._batches = asyncio.Semaphore(BATCHES_IN_FLIGHT_MAX)

    def prepare(self, message: Outgoing, now: datetime) -> Prepared:
        """The message with its envelope. Raises MessageTooLarge, ValueError for tokens or ids that cannot be sent."""
        envelope = Envelope(
            id=message.message_id,
            source=self._source,
            type=message.subject.event_type,
            subject=message.about,
            time=now,
            traceparent=message.traceparent or telemetry.traceparent(),
        )
        subject = message.subject.name(**message.tokens)
        prepared = Prepared(message.subject.stream, subject, envelope.headers(), message.body)
        self.check_size(prepared)
        return prepared

    def check_size(self, prepared: Prepared) -> None:
        limit = self._connection.message_bytes_max
        if prepared.size > limit:
            raise MessageTooLarge(f"the message for {prepared.subject} has {prepared.size} bytes; the bus takes {limit}")

    async def publish(self, message: Outgoing) -> Ack:
        return await self.store(self.prepare(message, datetime.now(UTC)))

    async def store(self, prepared: Prepared) -> Ack:
        """Stores one prepared message."""
        async with self._singles:
            reply, future = self._connection.expect_reply()
            await self._send(prepared, reply, future)
            return await _ack(prepared, future)

    async def publish_batch(self, messages: Sequence[Outgoing]) -> list[Ack]:
        now = datetime.now(UTC)
        prepared = [self.prepare(message, now) for message in messages]
        acks: dict[int, Ack] = {}
        by_stream: dict[str, list[int]] = {}
        for index, item in enumerate(prepared):
            by_stream.setdefault(item.stream, []).append(index)
        for indexes in by_stream.values():
            for chunk in _chunks(indexes, prepared):
                found = await self._store_chunk([prepared[index] for index in chunk])
                acks |= dict(zip(chunk, found, strict=True))
        return [acks[index] for index in range(len(prepared))]

    async def _store_chunk(self, items: list[Prepared]) -> list[Ack]:
        # One duplicate, also within the batch, refuses the whole of it: what is said twice in one breath is sent once.
        first: dict[str, int] = {}
        unique: list[Prepared] = []
        for item in items:
            if first.setdefault(item.headers["Nats-Msg-Id"], len(unique)) == len(unique):
                unique.append(item)
        acks = await self._store_unique(unique)
        found: list[Ack] = []
        seen: set[str] = set()
        for item in items:
            identifier = item.headers["Nats-Msg-Id"]
            ack = acks[first[identifier]]
            found.append(Ack(ack.stream, ack.sequence, duplicate=True) if identifier in seen else ack)
            seen.add(identifier)
        return found

    async def _store_unique(self, items: list[Prepared]) -> list[Ack]:
        if len(items) == 1:
            return [await self.store(items[0])]
        async with self._batches:
            try:
                return await self._atomic(items)
            except ApiError as error:
                if error.err_code not in (BATCH_DUPLICATE, BATCH_NOT_ENABLED):
                    raise BusUnavailable(f"the stream {items[0].stream} refused a batch: {error}") from error
        return await self._singly(items)

    async def _atomic(self, items: list[Prepared]) -> list[Ack]:
        batch = new_id()
        reply, future = self._connection.expect_reply()
        for index, item in enumerate(items, start=1):
            headers = {**item.headers, "Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(index)}
            last = index == len(items)
            if last:
                headers["Nats-Batch-Commit"] = "1"
            await self._send(Prepared(item.stream, item.subject, headers, item.payload), reply if last else "", future)
        answer = await _answer(items[-1], future)
        count, last_sequence = int(answer.get("count", 0)), int(answer["seq"])
        if count != len(items):
            raise BusUnavailable(f"the stream {items[0].stream} committed {count} messages of a batch of {len(items)}")
        return [Ack(answer["stream"], last_sequence - count + index) for index in range(1, count + 1)]

    async def _singly(self, items: list[Prepared]) -> list[Ack]:
        """Sends in order, with a bounded number on their way, and waits for each acknowledgement. The first failure stops the sending."""
        acks: list[Ack] = []
        waiting: list[tuple[Prepared, asyncio.Future[Any]]] = []
        try:
            for item in items:
                if len(waiting) >= SINGLES_IN_FLIGHT_MAX:
                    acks.append(await _ack(*waiting.pop(0)))
                reply, future = self._connection.expect_reply()
                waiting.append((item, future))
                await self._send(item, reply, future)
            while waiting:
                acks.append(await _ack(*waiting.pop(0)))
        finally:
            for _, future in waiting:
                _forget(future)
        return acks

    async def _send(self, item: Prepared, reply: str, future: asyncio.Future[Any]) -> None:
        try:
            await self._connection.publish(item.subject, item.payload, reply, item.headers)
        except BaseException:
            _forget(future)
            raise


def _chunks(indexes: list[int], prepared: list[Prepared]) -> list[list[int]]:
    chunks: list[list[int]] = [[]]
    size = 0
    for index in indexes:
        if chunks[-1] and (len(chunks[-1]) >= BATCH_MESSAGES_MAX or size + prepared[index].size > BATCH_BYTES_MAX):
            chunks.append([])
            size = 0
        chunks[-1].append(index)
        size += prepared[index].size
    return chunks


def _forget(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.cancel()
    elif not future.cancelled():
        future.exception()


async def _answer(item: Prepared, future: asyncio.Future[Any]) -> dict[str, Any]:
    try:
        message = await wait_reply(item.subject, future, ACK_SECONDS)
    except NobodyListens as error:
        raise BusUnavailable(f"no stream takes {item.subject}; JetStream may still be starting") from error
    answer: dict[str, Any] = json.loads(message.data)
    if "error" in answer:
        raise ApiError(answer["error"])
    return answer


async def _ack(item: Prepared, future: asyncio.Future[Any]) -> Ack:
    try:
        answer = await _answer(item, future)
    except ApiError as error:
        if error.err_code == MESSAGE_TOO_LARGE:
            raise MessageTooLarge(f"the message for {item.subject} has {item.size} bytes: {error}") from error
        raise BusUnavailable(f"the stream {item.stream} did not take a message for {item.subject}: {error}") from error
    return Ack(answer["stream"], int(answer["seq"]), bool(answer.get("duplicate", False)))
