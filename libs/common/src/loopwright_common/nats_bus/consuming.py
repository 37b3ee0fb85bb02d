"""Durable pull consumers: fetch, hand to the worker, fetch again; through lost connections and restarted servers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any

import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from loopwright_common.bus import BusUnavailable, ConsumerSpec, KeyValue
from loopwright_common.deliveries import Delivery, RawMessage, Worker
from loopwright_common.nats_bus.connection import ApiError, Connection
from loopwright_common.nats_bus.lease import Lease

log = structlog.get_logger()

NANOSECONDS = 1_000_000_000
FETCH_SECONDS = 20.0
GATHER_SECONDS_MIN = 0.001
# A request ends on the server at its time; only a server that hangs or a lost connection lets it go unanswered longer.
GRACE_SECONDS = 2.0
PENDING_MAX = 1_000
WAIT_AFTER_TROUBLE_SECONDS = 0.5
LEASES = "leases"
DONE_STATUSES = ("400", "404", "408", "409")


def nanoseconds(time: timedelta) -> int:
    return int(time.total_seconds() * NANOSECONDS)


class NatsDelivery:
    """A delivered message; acknowledged by publishing to its reply subject (NATS ADR-15)."""

    def __init__(self, message: Msg, connection: Connection) -> None:
        # $JS.ACK.<stream>.<consumer>.<delivered>.<stream sequence>.<consumer sequence>.<time>.<pending>
        tokens = message.reply.split(".")
        if len(tokens) > 9:  # with domain and account hash in front
            tokens = tokens[:2] + tokens[4:]
        headers = dict(message.headers or {})
        self.message = RawMessage(message.subject, headers, message.data, tokens[2], int(tokens[5]), int(tokens[4]))
        self._reply = message.reply
        self._connection = connection
        self._done = False  # a word after the last one could bring the message back, or forward

    async def ack(self, confirmed: bool = False) -> None:
        await self._finish(b"+ACK", confirmed)

    async def give_back(self, delay: timedelta) -> None:
        await self._finish(b"-NAK " + json.dumps({"delay": nanoseconds(delay)}).encode() if delay else b"-NAK", False)

    async def terminate(self) -> None:
        await self._finish(b"+TERM", True)

    async def in_progress(self) -> None:
        if not self._done:
            await self._connection.publish(self._reply, b"+WPI")

    async def _finish(self, word: bytes, confirmed: bool) -> None:
        if self._done:
            return
        self._done = True
        if confirmed:
            await self._connection.request(self._reply, word)
        else:
            await self._connection.publish(self._reply, word)


class Consumer:
    """One consumer on one stream. ``run`` goes on until it is stopped."""

    def __init__(
        self, connection: Connection, spec: ConsumerSpec, stream: str, worker: Worker, open_bucket: Callable[[str], Awaitable[KeyValue]]
    ) -> None:
        self._connection = connection
        self._spec = spec
        self._stream = stream
        self._worker = worker
        self._open_bucket = open_bucket
        self._stopping = asyncio.Event()
        self._free = asyncio.Semaphore(1 if spec.ordered else spec.concurrency)
        self._lease: Lease | None = None

    async def declare(self) -> None:
        """Makes the durable consumer or updates it in place. Raises BusUnavailable."""
        spec = self._spec
        filters = [subject.wildcard for subject in spec.subjects if subject.stream == self._stream]
        config: dict[str, Any] = {
            "durable_name": spec.name,
            "name": spec.name,
            "ack_policy": "explicit",
            "deliver_policy": "all",
            "replay_policy": "instant",
            "ack_wait": nanoseconds(spec.ack_wait),
            "max_deliver": -1,  # counted by the worker, which buries with a reason
            "max_ack_pending": spec.batch_max if spec.ordered else PENDING_MAX,
            "filter_subjects": filters,
        }
        request = {"stream_name": self._stream, "config": config, "action": ""}
        try:
            await self._connection.api(f"CONSUMER.CREATE.{self._stream}.{spec.name}", request)
        except ApiError as error:
            raise BusUnavailable(f"the consumer {spec.name} on {self._stream} was refused: {error}") from error

    def stop(self) -> None:
        """Takes nothing more; what is being handled is handled to its end."""
        self._stopping.set()

    async def run(self) -> None:
        while not self._stopping.is_set():
            try:
                await first_of(self._connection.wait_connected(), self._stopping)
                if self._stopping.is_set():
                    return
                # With batches of one, the server's own limit of one message on its way keeps the order, at no cost.
                if self._spec.ordered and self._spec.batch_max > 1:
                    await self._run_alone()
                else:
                    await self._fetch_on(asyncio.Event())
            except BusUnavailable as error:
                if not self._stopping.is_set():
                    log.info("consumer_waits", consumer=self._spec.name, stream=self._stream, reason=str(error))
                    await self._pause()
                    with contextlib.suppress(BusUnavailable):
                        await self.declare()  # a server that lost its memory of it, or a stream made anew
            except Exception as error:
                log.error("consumer_failed", consumer=self._spec.name, stream=self._stream, exc_info=error)
                await self._pause()

    async def _run_alone(self) -> None:
        if self._lease is None:
            self._lease = Lease(await self._open_bucket(LEASES), f"{self._stream}.{self._spec.name}")
        async with self._lease.held(self._stopping) as lost:
            await self._fetch_on(lost)

    async def _pause(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), WAIT_AFTER_TROUBLE_SECONDS)

    async def _fetch_on(self, lost: asyncio.Event) -> None:
        """Fetches and handles until stopped or the lease is lost. Raises BusUnavailable."""
        handling: set[asyncio.Task[None]] = set()
        inbox = await Inbox.open(self._connection, self._stream, self._spec)
        try:
            while not self._stopping.is_set() and not lost.is_set():
                await first_of(self._free.acquire(), self._stopping)
                if self._stopping.is_set():
                    break
                try:
                    deliveries = await inbox.fetch(self._stopping, lost)
                except BaseException:
                    self._free.release()
                    raise
                if not deliveries:
                    self._free.release()
                    continue
                task = asyncio.create_task(self._work(deliveries))
                handling.add(task)
                task.add_done_callback(handling.discard)
                if self._spec.ordered:
                    await first_of(asyncio.wait([task]), lost)
        finally:
            await inbox.close()
            if lost.is_set():
                await cancel(handling)  # another may already be at it: what is not done by now is given back
            try:
                if handling:
                    await asyncio.wait(handling)
            except asyncio.CancelledError:
                await cancel(handling)  # draining took too long
                raise

    async def _work(self, deliveries: Sequence[Delivery]) -> None:
        try:
            await self._worker.work(deliveries)
        finally:
            self._free.release()


class Inbox:
    """Where a consumer's messages arrive. It stays over many requests, so that none is sent to where nobody listens any more."""

    def __init__(self, connection: Connection, stream: str, spec: ConsumerSpec, subject: str) -> None:
        self._connection = connection
        self._spec = spec
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{spec.name}"
        self._subject = subject
        self._queue: asyncio.Queue[Msg] = asyncio.Queue()
        self._subscription: Subscription | None = None
        self._generation = connection.generation

    @classmethod
    async def open(cls, connection: Connection, stream: str, spec: ConsumerSpec) -> Inbox:
        """Raises BusUnavailable."""
        inbox = cls(connection, stream, spec, connection.client.new_inbox())

        async def arrived(message: Msg) -> None:
            inbox._queue.put_nowait(message)

        inbox._subscription = await connection.subscribe(inbox._subject, cb=arrived)
        return inbox

    async def close(self) -> None:
        """Gives back what was delivered meanwhile: nobody else would get it before its time is up."""
        if self._subscription is None:
            return
        with contextlib.suppress(Exception):
            await self._subscription.unsubscribe()
            await self._connection.client.flush(timeout=2)  # what the server had sent before it knew is here after this
        while not self._queue.empty():
            message = self._queue.get_nowait()
            if message.reply.startswith("$JS.ACK."):
                with contextlib.suppress(BusUnavailable):
                    await NatsDelivery(message, self._connection).give_back(timedelta(0))

    async def fetch(self, *signals: asyncio.Event) -> list[Delivery]:
        """A batch: its first message, waited for, and what comes within ``batch_wait``. Empty when there was none for a while.

        Raises BusUnavailable when the connection is lost, or was since the last time.
        """
        found: list[Delivery] = []
        with self._connection.losing() as lost:
            if self._generation != self._connection.generation:
                raise BusUnavailable("the connection was lost; what was asked for is forgotten")
            if not await self._request(found, 1, FETCH_SECONDS, lost, *signals):
                return found
            if self._spec.batch_max > len(found):
                seconds = max(GATHER_SECONDS_MIN, self._spec.batch_wait.total_seconds())
                await self._request(found, self._spec.batch_max - len(found), seconds, lost)
            if lost.is_set() and not found:
                raise BusUnavailable("the connection was lost")
        return found

    async def _request(self, found: list[Delivery], count: int, seconds: float, lost: asyncio.Event, *signals: asyncio.Event) -> bool:
        """Asks for up to ``count`` more and takes what comes until the server says that the request is over; whether any came."""
        request = {"batch": count, "expires": int(seconds * NANOSECONDS)}
        await self._connection.publish(self._next, json.dumps(request).encode(), self._subject)
        wanted = len(found) + count
        deadline = time.monotonic() + seconds + GRACE_SECONDS
        while len(found) < wanted:
            message = await _next(self._queue, deadline - time.monotonic(), lost, *signals)
            if message is None:
                break
            if message.reply.startswith("$JS.ACK."):
                found.append(NatsDelivery(message, self._connection))
            elif self._is_over(message):
                break
        return bool(found)

    def _is_over(self, message: Msg) -> bool:
        headers = message.headers or {}
        status, said = headers.get("Status"), str(headers.get("Description", ""))
        if status == "503":
            raise BusUnavailable("JetStream does not answer yet")
        if status == "409" and any(word in said for word in ("Consumer Deleted", "Shutdown", "Leadership")):
            raise BusUnavailable(f"the consumer is gone: {said}")
        return status in DONE_STATUSES


async def cancel(tasks: set[asyncio.Task[None]]) -> None:
    """Ends the tasks and waits until they have given back what they held."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(set(tasks))


async def first_of(work: Awaitable[Any], signal: asyncio.Event) -> None:
    """Returns when the work is done or the signal is set; unfinished work is cancelled, and its error raised when it has one."""
    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(signal.wait())
    try:
        await asyncio.wait([working, watching], return_when=asyncio.FIRST_COMPLETED)
    finally:
        watching.cancel()
        if not working.done():
            working.cancel()
    if working.done() and not working.cancelled():
        working.result()


async def _next(queue: asyncio.Queue[Msg], seconds: float, *signals: asyncio.Event) -> Msg | None:
    """The next message; None after ``seconds`` or when one of the signals is set."""
    if not queue.empty():
        return queue.get_nowait()
    getting = asyncio.ensure_future(queue.get())
    watching = [asyncio.ensure_future(signal.wait()) for signal in signals]
    try:
        await asyncio.wait([getting, *watching], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        return getting.result() if getting.done() else None
    finally:
        for task in (getting, *watching):
            if not task.done():
                task.cancel()
