"""What a consumer does with what was delivered to it: the same for every bus.

Read the envelope and the payload, hand them over, then acknowledge, give back with a growing delay, or bury in the dead letters.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import structlog
from opentelemetry.trace import SpanKind
from pydantic import ValidationError

from loopwright_common import metrics, telemetry
from loopwright_common.bus import BatchHandler, BusUnavailable, ConsumerSpec, Handler, Received
from loopwright_common.contracts.envelope import Envelope
from loopwright_common.contracts.subjects import Subject
from loopwright_common.errors import Permanent, Retryable, Unavailable

REPLAY_FOR = "Loopwright-Replay-For"
REASON_CHARACTERS_MAX = 2_000
SUBJECTS_REMEMBERED_MAX = 10_000

log = structlog.get_logger()


@dataclass(slots=True)  # not frozen: that doubles what it costs to make one, and one is made of every message
class RawMessage:
    """A message as the bus keeps it. ``attempt`` is 1 on the first delivery."""

    subject: str
    headers: dict[str, str]
    payload: bytes
    stream: str
    sequence: int
    attempt: int


class Delivery(Protocol):
    """A message in our hands until one of these is called."""

    @property
    def message(self) -> RawMessage: ...

    async def ack(self, confirmed: bool = False) -> None:
        """Done. ``confirmed`` waits until the server knows."""
        ...

    async def ack_with(self, earlier: Sequence[Any]) -> None:
        """Done, and so are ``earlier`` ones of the same consumer; waits until the server knows of them all."""
        ...

    async def give_back(self, delay: timedelta) -> None:
        """Deliver it again after ``delay``."""
        ...

    async def terminate(self) -> None:
        """Never again: it is buried."""
        ...

    async def in_progress(self) -> None:
        """Still at work: start counting ``ack_wait`` anew."""
        ...


Read = tuple[Delivery, Received[Any]]
Bury = Callable[[RawMessage, str], Awaitable[None]]
"""Stores a dead letter with its reason, durably; raises BusUnavailable when it cannot."""


class Unreadable(Exception):
    """The message is not what its subject promises; the text says why."""


class Reader:
    """Turns raw messages into Received ones, by the subjects a consumer takes."""

    def __init__(self, subjects: Sequence[Subject]) -> None:
        self._patterns = [(subject.pattern.split("."), subject) for subject in subjects]
        self._kinds: dict[str, tuple[Subject, str]] = {}  # of subjects seen before

    def read(self, raw: RawMessage) -> Received[Any]:
        """The message with its payload and envelope. Raises Unreadable."""
        subject, project = self._kinds.get(raw.subject) or self._kind(raw.subject)
        try:
            envelope = Envelope.from_headers(raw.headers)
        except KeyError as error:
            raise Unreadable(f"the envelope lacks the header {error.args[0]}") from error
        except (ValidationError, ValueError) as error:
            raise Unreadable(f"the envelope cannot be read: {_brief(error)}") from error
        if envelope.type != subject.event_type:
            raise Unreadable(f"the type is {envelope.type!r}, this consumer reads {subject.event_type!r}")
        try:
            payload = subject.payload.model_validate_json(raw.payload)
        except ValidationError as error:
            raise Unreadable(f"the payload is not a {subject.payload.__name__}: {_brief(error)}") from error
        return Received(raw.subject, payload, envelope, raw.stream, raw.sequence, raw.attempt, project, raw.payload)

    def _kind(self, name: str) -> tuple[Subject, str]:
        """The kind of subject, and the project it names. Raises Unreadable."""
        tokens = name.split(".")
        for pattern, subject in self._patterns:
            if len(pattern) == len(tokens) and all(p == t or p.startswith("{") for p, t in zip(pattern, tokens, strict=True)):
                project = next((t for p, t in zip(pattern, tokens, strict=True) if p == "{project}"), "")
                if len(self._kinds) >= SUBJECTS_REMEMBERED_MAX:
                    self._kinds.clear()
                self._kinds[name] = (subject, project)
                return subject, project
        raise Unreadable(f"no subject of this consumer matches {name!r}")


def _brief(error: Exception) -> str:
    if isinstance(error, ValidationError):
        # Where and what, never the input: it may hold a secret and goes into a header.
        return "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors(include_input=False)[:5])
    return str(error)[:500]


def retry_delay(spec: ConsumerSpec, attempt: int, least: timedelta | None = None) -> timedelta:
    """The wait after the ``attempt``-th try: ``retry_first``, doubling up to ``retry_most``, and no shorter than ``least``."""
    grown = min(spec.retry_first * 2.0 ** min(attempt - 1, 30), spec.retry_most)
    return max(grown, least or timedelta(0))


def as_batch_handler(handler: Handler) -> BatchHandler:
    """A handler of one message as a handler of batches of one."""

    async def handle(messages: Sequence[Received[Any]]) -> None:
        await handler(messages[0])

    return handle


class Worker:
    """Handles what was delivered. One per consumer and process."""

    def __init__(self, spec: ConsumerSpec, handler: BatchHandler, bury: Bury) -> None:
        self._spec = spec
        self._handler = handler
        self._bury = bury
        self._reader = Reader(spec.subjects)
        self._slots = asyncio.Semaphore(1 if spec.ordered else spec.concurrency)

    async def read(self, deliveries: Sequence[Delivery]) -> list[Read]:
        """The messages that can be read; the others are buried. Nothing is handled yet, so it may be done ahead of a batch's turn."""
        found: list[Read] = []
        try:
            for delivery in deliveries:
                pair = await self._read(delivery)
                if pair is not None:
                    found.append(pair)
        except BusUnavailable as error:
            self._lost(deliveries, error)
        return found

    async def work(self, deliveries: Sequence[Delivery], read: list[Read] | None = None) -> timedelta | None:
        """Handles one batch to its end: every message is acknowledged, given back or buried when this returns.

        ``read`` is what ``read`` has made of them, where that was done before.

        Returns how long the rest of the batch waits when something beside the messages failed (an ordered flow then waits with what
        follows), else None. When the connection is lost meanwhile, the server delivers again what it did not hear of.
        """
        try:
            async with self._heartbeat(deliveries), self._slots:
                readable = read if read is not None else await self.read(deliveries)
                return await self._handle(readable) if readable else None
        except BusUnavailable as error:
            self._lost(deliveries, error)
            return None
        except asyncio.CancelledError:
            # Draining took too long: somebody else may have it at once.
            for delivery in deliveries:
                with suppress(BusUnavailable):
                    await delivery.give_back(timedelta(0))
            raise

    def _lost(self, deliveries: Sequence[Delivery], error: BusUnavailable) -> None:
        log.warning("acknowledgement_lost", consumer=self._spec.name, messages=len(deliveries), error=str(error))

    async def _read(self, delivery: Delivery) -> Read | None:
        raw = delivery.message
        if raw.attempt > 1:
            metrics.REDELIVERED.labels(self._spec.name).inc()
        wanted = raw.headers.get(REPLAY_FOR)
        if wanted is not None and wanted != self._spec.name:
            await delivery.ack()  # replayed for another consumer; this one had it the first time
            return None
        if raw.attempt > self._spec.attempts_max:
            # Its handler never came to an end: the message may well be what kills the process.
            await self._end(delivery, f"delivered {raw.attempt - 1} times and never finished; the process may have died of it")
            return None
        try:
            return delivery, self._reader.read(raw)
        except Unreadable as error:
            await self._end(delivery, str(error))
            return None

    async def _handle(self, pairs: list[Read]) -> timedelta | None:
        try:
            await self._call([received for _, received in pairs])
        except Exception as error:
            if len(pairs) == 1:
                delay = await self._failed(*pairs[0], error)
                return delay if isinstance(error, Unavailable | BusUnavailable) else None
            log.warning("batch_failed", consumer=self._spec.name, messages=len(pairs), error=_describe(error))
            return await self._one_by_one(pairs)
        else:
            # The last one is confirmed, and with it all before it, so that an ordered flow starts its next batch on known ground.
            if len(pairs) > 1:
                await pairs[-1][0].ack_with([delivery for delivery, _ in pairs[:-1]])
            else:
                await pairs[0][0].ack(confirmed=self._spec.ordered)
            self._count("handled", len(pairs))
            return None

    async def _one_by_one(self, pairs: list[Read]) -> timedelta | None:
        for index, (delivery, received) in enumerate(pairs):
            try:
                await self._call([received])
            except (Unavailable, BusUnavailable) as error:
                # What fails is beside the messages: trying the rest would only wait for the same answer again.
                delays = [await self._failed(*rest, error) for rest in pairs[index:]]
                return max((delay for delay in delays if delay is not None), default=None)
            except Exception as error:
                await self._failed(delivery, received, error)
            else:
                await delivery.ack(confirmed=self._spec.ordered)
                self._count("handled")
        return None

    def _count(self, outcome: str, messages: int = 1) -> None:
        metrics.CONSUMED.labels(self._spec.name, outcome).inc(messages)

    async def _call(self, messages: list[Received[Any]]) -> None:
        first = messages[0]
        one = len(messages) == 1
        fields: dict[str, str | int] = {"consumer": self._spec.name, "attempt": first.attempt}
        if first.project and len({message.project for message in messages}) == 1:
            fields["project"] = first.project
        traces = [message.envelope.traceparent for message in messages]
        with (
            telemetry.bound(**fields),
            metrics.HANDLING.labels(self._spec.name).time(),
            telemetry.span(
                f"handle {self._spec.name}",
                # A batch belongs to no one of its messages' traces: it links to them, and a handler goes on in each one's own.
                parent=traces[0] if one else "",
                linked=() if one else traces,
                kind=SpanKind.CONSUMER,
                messaging__system="nats",
                messaging__destination__name=first.stream,
                messaging__consumer__group__name=self._spec.name,
                messaging__batch__message_count=len(messages),
            ),
        ):
            await self._handler(messages)

    async def _failed(self, delivery: Delivery, received: Received[Any], error: Exception) -> timedelta | None:
        """Buries the message or gives it back; how long it waits then."""
        reason = _describe(error)
        if isinstance(error, Permanent):
            await self._end(delivery, reason)
        elif received.attempt >= self._spec.attempts_max:
            await self._end(delivery, f"gave up after {received.attempt} attempts: {reason}")
        else:
            delay = retry_delay(self._spec, received.attempt, error.after if isinstance(error, Retryable) else None)
            fields = {"consumer": self._spec.name, "subject": received.subject, "sequence": received.sequence, "attempt": received.attempt}
            with telemetry.continued(received.envelope.traceparent):
                if isinstance(error, Retryable):
                    log.warning("message_given_back", reason=reason, delay_seconds=delay.total_seconds(), **fields)
                else:
                    log.error("handler_crashed", delay_seconds=delay.total_seconds(), exc_info=error, **fields)
            await delivery.give_back(delay)
            self._count("retried")
            return delay
        return None

    async def _end(self, delivery: Delivery, reason: str) -> None:
        raw = delivery.message
        # Buried before it is terminated: a crash in between buries it twice under one id, which is once.
        await self._bury(raw, reason[:REASON_CHARACTERS_MAX])
        await delivery.terminate()
        self._count("buried")
        fields = {"subject": raw.subject, "sequence": raw.sequence, "attempt": raw.attempt}
        with telemetry.continued(raw.headers.get("traceparent", "")):  # the line is found with those of the message's own trace
            log.error("message_buried", consumer=self._spec.name, reason=reason, **fields)

    @asynccontextmanager
    async def _heartbeat(self, deliveries: Sequence[Delivery]) -> AsyncIterator[None]:
        async def beat() -> None:
            while True:
                await asyncio.sleep(self._spec.ack_wait.total_seconds() / 3)
                for delivery in deliveries:
                    with suppress(BusUnavailable):
                        await delivery.in_progress()

        task = asyncio.create_task(beat())
        try:
            yield
        finally:
            task.cancel()


def _describe(error: Exception) -> str:
    text = str(error)
    return text if isinstance(error, Permanent | Retryable) and text else f"{type(error).__name__}: {text}"
