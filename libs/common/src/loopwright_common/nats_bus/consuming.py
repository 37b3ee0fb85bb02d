"""Durable pull consumers: fetch, hand to the worker, fetch again; through lost connections and restarted servers."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import structlog
from nats.aio.msg import Msg

from loopwright_common.bus import BusUnavailable, ConsumerSpec, KeyValue
from loopwright_common.deliveries import Delivery, RawMessage, Worker
from loopwright_common.nats_bus.connection import ApiError, Connection
from loopwright_common.nats_bus.lease import Lease

log = structlog.get_logger()

NANOSECONDS = 1_000_000_000
FETCH_SECONDS = 20.0
FETCH_GRACE_SECONDS = 2.0
PENDING_MAX = 1_000
WAIT_AFTER_TROUBLE_SECONDS = 0.5
LEASES = "leases"
DONE_STATUSES = ("404", "408", "409")


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
        self._generation = connection.generation

    async def ack(self, confirmed: bool = False) -> None:
        if confirmed:
            await self._connection.request(self._reply, b"+ACK")
        else:
            await self._connection.publish(self._reply, b"+ACK")

    async def give_back(self, delay: timedelta) -> None:
        await self._connection.publish(self._reply, b"-NAK " + json.dumps({"delay": nanoseconds(delay)}).encode())

    async def terminate(self) -> None:
        await self._connection.request(self._reply, b"+TERM")

    async def in_progress(self) -> None:
        await self._connection.publish(self._reply, b"+WPI")


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
                await self._connection.wait_connected()
                if self._spec.ordered:
                    lease = Lease(await self._open_bucket(LEASES), f"{self._stream}.{self._spec.name}")
                    async with lease.held() as lost:
                        await self._fetch_on(lost)
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

    async def _pause(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), WAIT_AFTER_TROUBLE_SECONDS)

    async def _fetch_on(self, lost: asyncio.Event) -> None:
        """Fetches and handles until stopped or the lease is lost. Raises BusUnavailable."""
        handling: set[asyncio.Task[None]] = set()
        try:
            while not self._stopping.is_set() and not lost.is_set():
                await self._free.acquire()
                try:
                    deliveries = await self._fetch(lost)
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
                    await asyncio.wait([task])
        finally:
            if handling:
                await asyncio.wait(handling)

    async def _work(self, deliveries: list[Delivery]) -> None:
        try:
            await self._worker.work(deliveries)
        finally:
            self._free.release()

    async def _fetch(self, lost: asyncio.Event) -> list[Delivery]:
        """Up to a batch: waits for its first message, then gathers for ``batch_wait``. Empty when there is none for a while."""
        reply = self._connection.client.new_inbox()
        queue: asyncio.Queue[Msg] = asyncio.Queue()

        async def arrived(message: Msg) -> None:
            queue.put_nowait(message)

        subscription = await self._connection.subscribe(reply, cb=arrived)
        found: list[Delivery] = []
        try:
            with self._connection.losing() as disconnected:
                request = {"batch": self._spec.batch_max, "expires": int(FETCH_SECONDS * NANOSECONDS)}
                subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._spec.name}"
                await self._connection.publish(subject, json.dumps(request).encode(), reply)
                await self._gather(queue, found, disconnected, lost)
        finally:
            with contextlib.suppress(Exception):
                await subscription.unsubscribe()
        # The rest of the request lapses with its subscription: the server sees that nobody listens and keeps the messages.
        return found

    async def _gather(self, queue: asyncio.Queue[Msg], found: list[Delivery], disconnected: asyncio.Event, lost: asyncio.Event) -> None:
        seconds = FETCH_SECONDS + FETCH_GRACE_SECONDS
        while len(found) < self._spec.batch_max:
            message = await _next(queue, seconds, disconnected, lost, self._stopping)
            if message is None:
                return
            status = (message.headers or {}).get("Status") if not message.data else None
            if status == "503":
                raise BusUnavailable("JetStream does not answer yet")
            if status == "409" and "Consumer Deleted" in str((message.headers or {}).get("Description", "")):
                raise BusUnavailable("the consumer is gone")
            if status in DONE_STATUSES:
                return
            if status is not None or not message.reply:
                continue
            found.append(NatsDelivery(message, self._connection))
            seconds = self._spec.batch_wait.total_seconds()


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
