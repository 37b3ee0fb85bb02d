"""The bus in memory, for tests of services: the same promises as NatsBus, kept without a server.

Streams, durable consumers, buckets and timers live in a ``Broker``; each service of a test may have a MemoryBus of its own on one Broker.
With a FakeClock, retry delays and timers fall due only when the test advances it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from loopwright_common import telemetry
from loopwright_common.answers import answer_question, read_answer
from loopwright_common.bus import (
    Ack,
    BatchHandler,
    BusUnavailable,
    Conflict,
    ConsumerSpec,
    DeadLetter,
    Entry,
    Handler,
    KeyValue,
    MessageTooLarge,
    ObjectStore,
    Outgoing,
    StreamUsage,
    Timer,
    TimerHandler,
    Usage,
)
from loopwright_common.clock import Clock, SystemClock
from loopwright_common.contracts.base import Contract
from loopwright_common.contracts.envelope import Envelope
from loopwright_common.contracts.subjects import STREAMS, Question, Subject
from loopwright_common.deliveries import REPLAY_FOR, Bury, RawMessage, Worker, as_batch_handler
from loopwright_common.errors import NotFound, Unavailable
from loopwright_common.identifiers import derived_id, new_id
from loopwright_common.keys import check_bucket, check_due, check_key, timer_spec, timer_subject
from loopwright_common.metrics import observe_timer
from loopwright_common.testing.clock import FakeClock

PAYLOAD_BYTES_MAX = 1024 * 1024  # nats-server's default max_payload
DUPLICATE_WINDOWS = {stream.name: stream.duplicate_window for stream in STREAMS}


@dataclass
class Stored:
    """A message in a stream."""

    sequence: int
    subject: str
    headers: dict[str, str]
    payload: bytes
    at: datetime


@dataclass
class _Pending:
    attempt: int
    due: datetime
    held: bool


class _Consumer:
    """The durable position of one consumer on one stream."""

    def __init__(self, spec: ConsumerSpec, stream: str, project: str = "") -> None:
        self.spec = spec
        self.stream = stream
        self.project = project  # whose flow it is, where each has its own
        self.cursor = 0  # sequence of the last message that was delivered or passed over
        self.pending: dict[int, _Pending] = {}
        self.outstanding_max = spec.batch_max if spec.ordered else 1_000
        self.turn = asyncio.Lock()  # ordered: one batch at a time over all replicas
        self.takers = 0

    def wants(self, message: Stored) -> bool:
        found = next((subject for subject in self.spec.subjects if matches(subject.wildcard, message.subject)), None)
        return found is not None and (not self.project or project_of(found, message.subject) == self.project)


class Broker:
    """What a nats-server keeps: streams, consumers, buckets, objects, timers."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock: Clock = clock or SystemClock()
        self.streams: dict[str, list[Stored]] = {stream.name: [] for stream in STREAMS}
        self.stream_limits: dict[str, int] = {}  # messages; a full stream refuses
        self.available = True
        self.buckets: dict[str, MemoryKeyValue] = {}
        self.objects: dict[str, MemoryObjectStore] = {}
        self.timers: dict[tuple[str, str, str], tuple[Timer, dict[str, str]]] = {}
        self.consumers: dict[tuple[str, str], _Consumer] = {}
        self.finders: list[Callable[[str, str], None]] = []  # told of each stream and subject that is stored: a new project has a new flow
        self.dead_headers: dict[int, dict[str, str]] = {}  # of the original, by the dead letter's sequence
        self.answers: dict[str, list[Callable[[bytes, str], Awaitable[tuple[dict[str, str], bytes]]]]] = defaultdict(list)
        self._ids: dict[str, dict[str, tuple[int, datetime]]] = defaultdict(dict)
        self._sequences: dict[str, int] = defaultdict(int)
        self._waiters: set[asyncio.Future[None]] = set()
        if isinstance(self.clock, FakeClock):
            self.clock.on_advance(self.changed)

    def changed(self) -> None:
        """Wakes whoever waits for messages, time or rest."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    async def wait(self, until: datetime | None = None) -> None:
        """Returns when something changed, or at ``until`` by a real clock."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        timeout = None
        if until is not None and not isinstance(self.clock, FakeClock):
            timeout = max(0.0, (until - self.clock.now()).total_seconds())
        try:
            async with asyncio.timeout(timeout):
                await waiter
        except TimeoutError:
            pass
        finally:
            self._waiters.discard(waiter)

    def store(self, stream: str, subject: str, headers: dict[str, str], payload: bytes) -> Ack:
        if not self.available:
            raise BusUnavailable("the memory bus was made unavailable by the test")
        if len(payload) > PAYLOAD_BYTES_MAX:
            raise MessageTooLarge(f"the payload for {subject} has {len(payload)} bytes; the server takes {PAYLOAD_BYTES_MAX}")
        now = self.clock.now()
        identifier = headers.get("Nats-Msg-Id")
        known = self._ids[stream].get(identifier) if identifier else None
        if known is not None and now - known[1] < DUPLICATE_WINDOWS[stream]:
            return Ack(stream, known[0], duplicate=True)
        if len(self.streams[stream]) >= self.stream_limits.get(stream, 10_000_000):
            raise BusUnavailable(f"the stream {stream} is full")
        self._sequences[stream] += 1
        sequence = self._sequences[stream]
        self.streams[stream].append(Stored(sequence, subject, dict(headers), payload, now))
        if identifier:
            self._ids[stream][identifier] = (sequence, now)
        for find in self.finders:
            find(stream, subject)
        self.changed()
        return Ack(stream, sequence)

    def take(self, consumer: _Consumer, count: int) -> list[_MemoryDelivery]:
        """Up to ``count`` due messages: those given back first, then new ones."""
        self.fire_timers()
        now = self.clock.now()
        stream = self.streams[consumer.stream]
        stored = {sequence: message for sequence in consumer.pending if (message := _find(stream, sequence)) is not None}
        taken: list[_MemoryDelivery] = []
        for sequence, pending in sorted(consumer.pending.items()):
            if sequence not in stored:
                del consumer.pending[sequence]  # discarded meanwhile
            elif not pending.held and pending.due <= now and len(taken) < count:
                consumer.pending[sequence] = _Pending(pending.attempt + 1, now, held=True)
                taken.append(self._deliver(consumer, stored[sequence], pending.attempt + 1))
        for message in islice(stream, _after(stream, consumer.cursor), None):
            if len(taken) >= count or len(consumer.pending) >= consumer.outstanding_max:
                break
            consumer.cursor = message.sequence
            if consumer.wants(message):
                consumer.pending[message.sequence] = _Pending(1, now, held=True)
                taken.append(self._deliver(consumer, message, 1))
        return taken

    def _deliver(self, consumer: _Consumer, message: Stored, attempt: int) -> _MemoryDelivery:
        raw = RawMessage(message.subject, dict(message.headers), message.payload, consumer.stream, message.sequence, attempt)
        return _MemoryDelivery(raw, self, consumer)

    def next_due(self, consumer: _Consumer) -> datetime | None:
        """When the next message given back, or the next timer, falls due."""
        moments = [pending.due for pending in consumer.pending.values() if not pending.held]
        moments += [timer.due_at for timer, _ in self.timers.values()]
        return min(moments, default=None)

    def fire_timers(self) -> None:
        """Publishes the timers that are due."""
        now = self.clock.now()
        for key, (timer, headers) in sorted(self.timers.items(), key=lambda item: item[1][0].due_at):
            if timer.due_at <= now:
                del self.timers[key]
                self.store("TIMERS", timer_subject(*key), headers, timer.model_dump_json().encode())

    def resting(self) -> bool:
        """Whether no consumer has anything in hand or due."""
        now = self.clock.now()
        if any(timer.due_at <= now for timer, _ in self.timers.values()):
            return False
        for consumer in self.consumers.values():
            if not consumer.takers:
                continue
            if any(pending.held or pending.due <= now for pending in consumer.pending.values()):
                return False
            stream = self.streams[consumer.stream]
            for message in islice(stream, _after(stream, consumer.cursor), None):
                if consumer.wants(message):
                    if len(consumer.pending) < consumer.outstanding_max:
                        return False
                    break
        return True


def _after(stream: list[Stored], sequence: int) -> int:
    """The index of the first message after a sequence."""
    return bisect_right(stream, sequence, key=lambda message: message.sequence)


def _find(stream: list[Stored], sequence: int) -> Stored | None:
    index = _after(stream, sequence) - 1
    return stream[index] if index >= 0 and stream[index].sequence == sequence else None


def matches(wildcard: str, subject: str) -> bool:
    """Whether a subject matches a NATS pattern with ``*`` and a last ``>``."""
    want, have = wildcard.split("."), subject.split(".")
    for index, token in enumerate(want):
        if token == ">":  # noqa: S105  a subject token
            return len(have) > index
        if index >= len(have) or token not in ("*", have[index]):
            return False
    return len(want) == len(have)


def project_of(kind: Subject, subject: str) -> str:
    """The project that a subject names."""
    return subject.split(".")[kind.pattern.split(".").index("{project}")]


class _MemoryDelivery:
    def __init__(self, message: RawMessage, broker: Broker, consumer: _Consumer) -> None:
        self.message = message
        self._broker = broker
        self._consumer = consumer
        self._done = False

    async def ack(self, confirmed: bool = False) -> None:
        self._finish(None)

    async def ack_with(self, earlier: Sequence[Any]) -> None:
        for delivery in (*earlier, self):
            await delivery.ack()

    async def terminate(self) -> None:
        self._finish(None)

    async def give_back(self, delay: timedelta) -> None:
        self._finish(self._broker.clock.now() + delay)

    async def in_progress(self) -> None:
        return

    def _finish(self, due: datetime | None) -> None:
        if self._done:
            return
        self._done = True
        sequence = self.message.sequence
        if due is None:
            self._consumer.pending.pop(sequence, None)
        else:
            self._consumer.pending[sequence] = _Pending(self.message.attempt, due, held=False)
        self._broker.changed()


class MemoryBus:
    """The Bus in memory. ``service`` is who it speaks for; several may share one ``broker``."""

    def __init__(self, service: str = "test", *, clock: Clock | None = None, broker: Broker | None = None) -> None:
        self.service = service
        self.broker = broker or Broker(clock)
        self._tasks: set[asyncio.Task[None]] = set()
        self._working = 0
        self._closing = False
        self._answering: list[tuple[str, Any]] = []
        self._finders: list[Callable[[str, str], None]] = []

    def as_service(self, service: str) -> MemoryBus:
        """Another service's bus on the same broker."""
        return MemoryBus(service, broker=self.broker)

    # What tests look at.

    def published(self, subject: Subject) -> list[Any]:
        """The payloads stored so far under a subject, oldest first."""
        return [
            subject.payload.model_validate_json(message.payload)
            for message in self.broker.streams[subject.stream]
            if matches(subject.wildcard, message.subject)
        ]

    async def idle(self, timeout: float = 10.0) -> None:
        """Returns when every consumer has handled all that is due now. Raises TimeoutError."""
        async with asyncio.timeout(timeout):
            while not self.broker.resting():
                await self.broker.wait(self.broker.clock.now() + timedelta(milliseconds=20))
                await asyncio.sleep(0)

    # The Bus.

    async def publish(self, message: Outgoing) -> Ack:
        subject = message.subject.name(**message.tokens)
        envelope = Envelope(
            id=message.message_id,
            source=f"/services/{self.service}",
            type=message.subject.event_type,
            subject=message.about,
            time=self.broker.clock.now(),
            traceparent=message.traceparent or telemetry.traceparent(),
        )
        await asyncio.sleep(0)
        return self.broker.store(message.subject.stream, subject, envelope.headers(), message.body)

    async def publish_batch(self, messages: Sequence[Outgoing]) -> list[Ack]:
        return [await self.publish(message) for message in messages]

    async def consume(self, spec: ConsumerSpec, handler: Handler) -> None:
        await self._consume(replace(spec, batch_max=1), as_batch_handler(handler))

    async def consume_batches(self, spec: ConsumerSpec, handler: BatchHandler) -> None:
        await self._consume(spec, handler)

    async def _consume(self, spec: ConsumerSpec, handler: BatchHandler) -> None:
        async def bury(message: RawMessage, reason: str) -> None:
            self._bury(spec.name, message, reason)

        if spec.per_project:
            self._follow_projects(spec, handler, bury)
            return
        worker = Worker(spec, handler, bury)
        for stream in dict.fromkeys(subject.stream for subject in spec.subjects):
            consumer = self.broker.consumers.setdefault((stream, spec.name), _Consumer(spec, stream))
            consumer.spec = spec
            for _ in range(1 if spec.ordered else spec.concurrency):
                self._spawn(self._run(spec, consumer, worker))

    def _follow_projects(self, spec: ConsumerSpec, handler: BatchHandler, bury: Bury) -> None:
        following: set[str] = set()

        def find(stream: str, subject: str) -> None:
            kind = next((kind for kind in spec.subjects if kind.stream == stream and matches(kind.wildcard, subject)), None)
            project = project_of(kind, subject) if kind is not None else ""
            if project and project not in following and not self._closing:
                following.add(project)
                key = (stream, f"{spec.name}-{project}")
                consumer = self.broker.consumers.setdefault(key, _Consumer(spec, stream, project))
                consumer.spec = spec
                consumer.takers += 1  # before the task begins: the broker is not at rest meanwhile
                self._spawn(self._run(spec, consumer, Worker(spec, handler, bury), counted=True))

        self.broker.finders.append(find)
        self._finders.append(find)
        for stream in dict.fromkeys(subject.stream for subject in spec.subjects):
            for message in list(self.broker.streams[stream]):
                find(stream, message.subject)

    async def _run(self, spec: ConsumerSpec, consumer: _Consumer, worker: Worker, counted: bool = False) -> None:
        consumer.takers += not counted
        try:
            while not self._closing:
                if spec.ordered:
                    async with consumer.turn:
                        handled = await self._round(spec, consumer, worker)
                else:
                    handled = await self._round(spec, consumer, worker)
                if not handled:
                    await self.broker.wait(self.broker.next_due(consumer))
        finally:
            consumer.takers -= 1

    async def _round(self, spec: ConsumerSpec, consumer: _Consumer, worker: Worker) -> bool:
        if not self.broker.available:
            return False
        deliveries = self.broker.take(consumer, spec.batch_max)
        if not deliveries:
            return False
        self._working += 1
        try:
            await worker.work(deliveries)
        finally:
            self._working -= 1
            self.broker.changed()
        return True

    def _bury(self, consumer: str, message: RawMessage, reason: str) -> None:
        headers = {
            "Nats-Msg-Id": derived_id("dead", message.stream, consumer, str(message.sequence), message.headers.get("Nats-Msg-Id", "")),
            "subject": message.subject,
            "stream": message.stream,
            "consumer": consumer,
            "reason": reason,
            "attempts": str(message.attempt),
        }
        ack = self.broker.store("DEAD", f"dead.{message.stream}.{consumer}", headers, message.payload)
        if not ack.duplicate:
            self.broker.dead_headers[ack.sequence] = dict(message.headers)

    async def key_value(self, bucket: str) -> KeyValue:
        check_bucket(bucket)
        return self.broker.buckets.setdefault(bucket, MemoryKeyValue(self.broker))

    async def object_store(self, bucket: str) -> ObjectStore:
        check_bucket(bucket)
        return self.broker.objects.setdefault(bucket, MemoryObjectStore(self.broker))

    async def schedule(self, timer: Timer) -> None:
        if not self.broker.available:
            raise BusUnavailable("the memory bus was made unavailable by the test")
        check_due(timer, self.broker.clock.now())
        subject = timer_spec(timer.service).subjects[0]
        envelope = Envelope(
            id=new_id(),
            source=f"/services/{self.service}",
            type=subject.event_type,
            time=self.broker.clock.now(),
            traceparent=telemetry.traceparent(),
        )
        self.broker.timers[(timer.service, timer.purpose, timer.key)] = (timer, envelope.headers())
        self.broker.changed()

    async def cancel(self, service: str, purpose: str, key: str) -> None:
        self.broker.timers.pop((service, purpose, key), None)
        due = timer_subject(service, purpose, key)
        self.broker.streams["TIMERS"][:] = [message for message in self.broker.streams["TIMERS"] if message.subject != due]
        self.broker.changed()

    async def on_timer(self, service: str, handler: TimerHandler) -> None:
        async def handle(received: Any) -> None:
            observe_timer(received.payload, self.broker.clock.now())
            await handler(received.payload)

        await self.consume(timer_spec(service), handle)

    async def ask(self, question: Question, query: Contract, timeout: timedelta = timedelta(seconds=10)) -> Contract:
        answerers = self.broker.answers.get(question.subject)
        if not answerers:
            raise Unavailable(f"nobody answers {question.subject}: {question.answered_by} is not running")
        answerers.append(answerers.pop(0))  # replicas take turns
        try:
            async with asyncio.timeout(timeout.total_seconds()):
                headers, body = await answerers[-1](query.model_dump_json().encode(), telemetry.traceparent())
        except TimeoutError as error:
            raise Unavailable(f"{question.answered_by} did not answer {question.subject} within {timeout.total_seconds():g} s") from error
        return read_answer(question, headers, body)

    async def answer(self, question: Question, handler: Callable[[Any], Awaitable[Contract]]) -> None:
        async def respond(body: bytes, traceparent: str) -> tuple[dict[str, str], bytes]:
            return await answer_question(question, handler, body, traceparent)

        self.broker.answers[question.subject].append(respond)
        self._answering.append((question.subject, respond))

    async def dead_letters(self, limit: int = 100, before: int | None = None) -> list[DeadLetter]:
        found = [message for message in reversed(self.broker.streams["DEAD"]) if before is None or message.sequence < before]
        return [self._dead_letter(message) for message in found[:limit]]

    def _dead_letter(self, message: Stored) -> DeadLetter:
        headers = message.headers
        return DeadLetter(
            sequence=message.sequence,
            subject=headers["subject"],
            stream=headers["stream"],
            consumer=headers["consumer"],
            reason=headers["reason"],
            attempts=int(headers["attempts"]),
            died_at=message.at,
            headers=self.broker.dead_headers[message.sequence],
            payload=message.payload,
        )

    async def replay(self, sequence: int) -> Ack:
        letter = self._dead_letter(self._find_dead(sequence))
        headers = {
            **letter.headers,
            REPLAY_FOR: letter.consumer,
            "Nats-Msg-Id": derived_id("replay", str(sequence), letter.died_at.isoformat()),
        }
        ack = self.broker.store(letter.stream, letter.subject, headers, letter.payload)
        self._remove_dead(sequence)
        return ack

    async def discard(self, sequence: int, reason: str) -> None:
        self._find_dead(sequence)
        self._remove_dead(sequence)

    def _find_dead(self, sequence: int) -> Stored:
        for message in self.broker.streams["DEAD"]:
            if message.sequence == sequence:
                return message
        raise NotFound(f"there is no dead letter {sequence}; it was replayed, discarded or has aged out")

    def _remove_dead(self, sequence: int) -> None:
        self.broker.streams["DEAD"][:] = [message for message in self.broker.streams["DEAD"] if message.sequence != sequence]

    async def usage(self) -> Usage:
        if not self.broker.available:
            raise BusUnavailable("the memory bus was made unavailable by the test")
        streams = [
            StreamUsage(name, len(messages), sum(len(message.payload) for message in messages), 0)
            for name, messages in self.broker.streams.items()
        ]
        return Usage(tuple(streams), sum(stream.bytes for stream in streams), 0)

    async def ready(self) -> bool:
        return self.broker.available and not self._closing

    async def close(self, drain: timedelta = timedelta(seconds=10)) -> None:
        self._closing = True
        for subject, respond in self._answering:
            self.broker.answers[subject].remove(respond)
        for find in self._finders:
            self.broker.finders.remove(find)
        self._finders.clear()
        self._answering.clear()
        deadline = time.monotonic() + drain.total_seconds()
        while self._working and time.monotonic() < deadline:  # noqa: ASYNC110  a fake may poll
            await asyncio.sleep(0.005)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@dataclass
class _Value:
    value: bytes
    revision: int
    deleted: bool = False


@dataclass
class MemoryKeyValue:
    """A bucket in memory."""

    broker: Broker
    values: dict[str, _Value] = field(default_factory=dict)
    revision: int = 0
    watchers: list[tuple[str, asyncio.Queue[Entry | None]]] = field(default_factory=list)

    async def get(self, key: str) -> Entry | None:
        self._check(key)
        found = self.values.get(key)
        return None if found is None or found.deleted else Entry(key, found.value, found.revision)

    async def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        found = {key: await self.get(key) for key in keys}
        return {key: entry for key, entry in found.items() if entry is not None}

    async def create_many(self, values: Mapping[str, bytes]) -> dict[str, int]:
        created = {}
        for key, value in values.items():
            with contextlib.suppress(Conflict):
                created[key] = await self.create(key, value)
        return created

    async def create(self, key: str, value: bytes) -> int:
        self._check(key)
        found = self.values.get(key)
        if found is not None and not found.deleted:
            raise Conflict(f"{key} exists at revision {found.revision}")
        return self._write(key, value)

    async def update(self, key: str, value: bytes, revision: int) -> int:
        self._check(key)
        found = self.values.get(key)
        at = found.revision if found is not None else 0
        if at != revision:
            raise Conflict(f"{key} is at revision {at}, not {revision}")
        return self._write(key, value)

    async def put(self, key: str, value: bytes) -> int:
        self._check(key)
        return self._write(key, value)

    async def delete(self, key: str) -> None:
        self._check(key)
        if key in self.values and not self.values[key].deleted:
            self._write(key, b"", deleted=True)

    async def keys(self, prefix: str = "") -> list[str]:
        self._check()
        return sorted(key for key, found in self.values.items() if key.startswith(prefix) and not found.deleted)

    async def watch(self, prefix: str = "") -> AsyncIterator[Entry | None]:
        queue: asyncio.Queue[Entry | None] = asyncio.Queue()
        present = sorted(self.values.items(), key=lambda item: item[1].revision)
        for key, found in present:
            if key.startswith(prefix) and not found.deleted:
                queue.put_nowait(Entry(key, found.value, found.revision))
        queue.put_nowait(None)
        watcher = (prefix, queue)
        self.watchers.append(watcher)
        try:
            while True:
                yield await queue.get()
        finally:
            self.watchers.remove(watcher)

    def _check(self, key: str | None = None) -> None:
        if key is not None:
            check_key(key)
        if not self.broker.available:
            raise BusUnavailable("the memory bus was made unavailable by the test")

    def _write(self, key: str, value: bytes, deleted: bool = False) -> int:
        if len(value) > PAYLOAD_BYTES_MAX:
            raise MessageTooLarge(f"the value of {key} has {len(value)} bytes; the server takes {PAYLOAD_BYTES_MAX}")
        self.revision += 1
        self.values[key] = _Value(value, self.revision, deleted)
        for prefix, queue in self.watchers:
            if key.startswith(prefix):
                queue.put_nowait(Entry(key, value, self.revision))
        return self.revision


@dataclass
class MemoryObjectStore:
    """Large values in memory."""

    broker: Broker
    values: dict[str, bytes] = field(default_factory=dict)

    async def put(self, name: str, value: bytes) -> None:
        self._check()
        self.values[name] = bytes(value)

    async def get(self, name: str) -> bytes | None:
        self._check()
        return self.values.get(name)

    async def delete(self, name: str) -> None:
        self._check()
        self.values.pop(name, None)

    def _check(self) -> None:
        if not self.broker.available:
            raise BusUnavailable("the memory bus was made unavailable by the test")
