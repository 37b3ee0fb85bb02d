"""The bus every service speaks to: a protocol, so that services are tested without a server and run with one.

Adapters: ``nats_bus.NatsBus`` (JetStream) and ``testing.memory_bus.MemoryBus``; both pass ``tests/adapters/test_bus.py``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Generic, Protocol, TypeVar

from pydantic import Field

from loopwright_common import telemetry
from loopwright_common.contracts.base import Contract
from loopwright_common.contracts.envelope import Envelope
from loopwright_common.contracts.subjects import Question, Subject
from loopwright_common.errors import Permanent, Retryable

M = TypeVar("M", bound=Contract)


class BusUnavailable(Retryable):
    """The server does not answer or has no room: nothing was accepted."""


class Conflict(Retryable):
    """A compare-and-set found another revision: read again and decide anew."""


class MessageTooLarge(Permanent):
    """The payload is over the server's limit."""


@dataclass(frozen=True)
class Outgoing:
    """A fact to publish. ``message_id`` is derived from its cause, so that saying it twice stores it once.

    ``traceparent`` is the trace that the fact belongs to: that of the span it was made in, wherever it is published from later.
    """

    subject: Subject
    payload: Contract
    message_id: str
    tokens: dict[str, str] = field(default_factory=dict)  # project, and source or service where the pattern has one
    about: str = ""  # CloudEvents subject: the signal, report or change it is about
    traceparent: str = field(default_factory=telemetry.traceparent, compare=False)
    written: bytes = field(default=b"", compare=False)  # the payload as JSON, where it is at hand; ``payload`` says the same

    @property
    def body(self) -> bytes:
        """The payload as JSON."""
        return self.written or self.payload.model_dump_json().encode()


@dataclass(frozen=True)
class Ack:
    """Where a published message is stored. ``duplicate``: it already was."""

    stream: str
    sequence: int
    duplicate: bool = False


@dataclass
class Received(Generic[M]):
    """A message in a handler's hands. The consumer acknowledges when the handler returns; ``in_progress`` is sent for long handlers."""

    subject: str
    payload: M
    envelope: Envelope
    stream: str
    sequence: int
    attempt: int  # 1 on the first delivery
    project: str
    stored: bytes = b""  # the payload as it was stored: who passes it on need not write it anew


Handler = Callable[[Received[Any]], Awaitable[None]]
BatchHandler = Callable[[Sequence[Received[Any]]], Awaitable[None]]


@dataclass(frozen=True)
class ConsumerSpec:
    """A durable pull consumer.

    ``name`` is also the JetStream durable name: replicas of a service share it. ``ordered`` keeps one message (or one batch) in flight
    over all replicas; with ``per_project`` it does so for each project, different projects are handled at once, shared out among the
    replicas, and a project that fails holds up no other. Retry delays grow from ``retry_first`` by a factor of two to ``retry_most``;
    after ``attempts_max`` deliveries, or at once on Permanent, the message goes to ``dead.<stream>.<name>`` with the reason.
    """

    name: str
    service: str
    subjects: tuple[Subject, ...]
    ordered: bool = False
    per_project: bool = False  # with ordered: one flow for each project, found as they come; a batch is of one project
    batch_max: int = 1
    batch_wait: timedelta = timedelta(milliseconds=20)  # how long a batch gathers once its first message is there
    concurrency: int = 1  # handlers at once in this process; 1 when ordered
    ack_wait: timedelta = timedelta(seconds=30)  # a heartbeat is sent at a third of it
    retry_first: timedelta = timedelta(seconds=1)
    retry_most: timedelta = timedelta(minutes=5)
    attempts_max: int = 10


@dataclass(frozen=True)
class DeadLetter:
    """A message that could not be handled: where it came from, why it is here, how often it was tried."""

    sequence: int  # in the DEAD stream: names it for replay and discard
    subject: str
    stream: str
    consumer: str
    reason: str
    attempts: int
    died_at: datetime
    headers: dict[str, str]
    payload: bytes


@dataclass(frozen=True)
class Entry:
    """A value of a key-value bucket with the revision that a compare-and-set names."""

    key: str
    value: bytes
    revision: int


class KeyValue(Protocol):
    """A bucket. Keys are ``[A-Za-z0-9_=.-]+`` without leading or trailing dot. Every write is durable when it returns."""

    async def get(self, key: str) -> Entry | None: ...

    async def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        """Those of the keys that are there: ``get`` for many at the cost of few."""
        ...

    async def create_many(self, values: Mapping[str, bytes]) -> dict[str, int]:
        """``create`` for many at the cost of few: the revisions of what was created. What is not among them existed."""
        ...

    async def create(self, key: str, value: bytes) -> int:
        """Writes a key that does not exist (or was deleted); returns its revision. Raises Conflict when it exists."""
        ...

    async def update(self, key: str, value: bytes, revision: int) -> int:
        """Writes when the key's revision is still ``revision``; returns the new one. Raises Conflict otherwise."""
        ...

    async def put(self, key: str, value: bytes) -> int:
        """Writes whatever is there. Only for a key with one writer."""
        ...

    async def delete(self, key: str) -> None: ...

    async def keys(self, prefix: str = "") -> list[str]: ...

    def watch(self, prefix: str = "") -> AsyncIterator[Entry | None]:
        """First every present entry, then None once, then each change as it comes. A deleted key comes with an empty value."""
        ...


class ObjectStore(Protocol):
    """Large values by name."""

    async def put(self, name: str, value: bytes) -> None: ...

    async def get(self, name: str) -> bytes | None: ...

    async def delete(self, name: str) -> None: ...


class Timer(Contract):
    """What a scheduled message carries: the service set it, the service gets it back when due."""

    service: str
    purpose: str
    key: str
    due_at: datetime
    data: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class StreamUsage:
    """What a stream (or a bucket, which is one too) holds. ``bytes_max`` is 0 when it has no limit of its own."""

    name: str
    messages: int
    bytes: int
    bytes_max: int


@dataclass(frozen=True)
class Usage:
    """What the server keeps, and may keep, for us. ``bytes_max`` is 0 when there is no limit."""

    streams: tuple[StreamUsage, ...]
    bytes: int
    bytes_max: int


TimerHandler = Callable[[Timer], Awaitable[None]]


class Bus(Protocol):
    """The one way services meet."""

    async def publish(self, message: Outgoing) -> Ack:
        """Stores one fact durably; returns after the acknowledgement. Raises BusUnavailable, MessageTooLarge."""
        ...

    async def publish_batch(self, messages: Sequence[Outgoing]) -> list[Ack]:
        """Stores many facts, in order, atomically per stream where the server can (at most 1,000 at a time); falls back to singles
        when one of them is already stored. One Ack per message, in the order given. Raises BusUnavailable, MessageTooLarge."""
        ...

    async def consume(self, spec: ConsumerSpec, handler: Handler) -> None:
        """Starts handling one message at a time per slot; returns once the consumer exists. ``close`` drains it."""
        ...

    async def consume_batches(self, spec: ConsumerSpec, handler: BatchHandler) -> None:
        """Like consume with up to ``batch_max`` messages a call, in stream order. When the handler raises, the batch is tried again one by
        one, so that a poisoned message goes to the dead letters alone."""
        ...

    async def key_value(self, bucket: str) -> KeyValue:
        """Opens a bucket, making it when it is not there."""
        ...

    async def object_store(self, bucket: str) -> ObjectStore: ...

    async def schedule(self, timer: Timer) -> None:
        """Delivers ``timer`` at ``due_at`` to its service, also over restarts. Same service, purpose and key: the new replaces the old."""
        ...

    async def cancel(self, service: str, purpose: str, key: str) -> None: ...

    async def on_timer(self, service: str, handler: TimerHandler) -> None:
        """Handles this service's due timers, at least once each."""
        ...

    async def ask(self, question: Question, query: Contract, timeout: timedelta = timedelta(seconds=10)) -> Contract:
        """Asks the service that answers ``question``. Raises Unavailable when nobody answers, Retryable or Permanent as the answer says."""
        ...

    async def answer(self, question: Question, handler: Callable[[Any], Awaitable[Contract]]) -> None:
        """Answers a question from now on; replicas share the load."""
        ...

    async def dead_letters(self, limit: int = 100, before: int | None = None) -> list[DeadLetter]:
        """The dead letters, newest first; ``before`` is the sequence to go on from."""
        ...

    async def replay(self, sequence: int) -> Ack:
        """Publishes a dead letter again where it came from, for the consumer that failed it, and removes it. Raises NotFound."""
        ...

    async def discard(self, sequence: int, reason: str) -> None:
        """Removes a dead letter for good. Raises NotFound."""
        ...

    async def usage(self) -> Usage:
        """How full the streams and the store are. Raises BusUnavailable."""
        ...

    async def ready(self) -> bool:
        """Whether the server answers now."""
        ...

    async def close(self, drain: timedelta = timedelta(seconds=10)) -> None:
        """Stops taking, lets running handlers finish within ``drain``, and disconnects."""
        ...
