"""The Bus on NATS JetStream."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from pydantic import SecretStr

from loopwright_common import telemetry
from loopwright_common.answers import answer_question, failure, read_answer
from loopwright_common.bus import (
    Ack,
    BatchHandler,
    BusUnavailable,
    ConsumerSpec,
    DeadLetter,
    Handler,
    KeyValue,
    MessageTooLarge,
    ObjectStore,
    Outgoing,
    Timer,
    TimerHandler,
    Usage,
)
from loopwright_common.contracts.base import Contract
from loopwright_common.contracts.subjects import Question
from loopwright_common.deliveries import RawMessage, Worker, as_batch_handler
from loopwright_common.errors import Unavailable
from loopwright_common.keys import timer_spec
from loopwright_common.metrics import observe_timer
from loopwright_common.nats_bus import timers
from loopwright_common.nats_bus.connection import ApiError, Connection, NobodyListens
from loopwright_common.nats_bus.consuming import Consumer, ProjectFlows
from loopwright_common.nats_bus.dead import DeadLetters
from loopwright_common.nats_bus.lease import Members
from loopwright_common.nats_bus.publishing import Publisher
from loopwright_common.nats_bus.stores import NatsKeyValue, NatsObjectStore
from loopwright_common.nats_bus.streams import declare_streams
from loopwright_common.nats_bus.watching import LagWatch, read_usage

LEASES = "leases"
DECLARE_TRIES_SECONDS = 0.3
QUESTIONS_AT_ONCE = 64
QUESTIONS_WAITING_MAX = 1_000  # beyond it the answer is at once that there is none
PATIENCE_SECONDS = 15.0  # a server that has just restarted refuses for a second or two


class NatsBus:
    """Implements bus.Bus. ``connect`` before use; ``close`` drains."""

    def __init__(
        self,
        url: str,
        service: str,
        *,
        user: str = "",
        password: SecretStr | str = "",
        token: SecretStr | str = "",
        ca_file: Path | None = None,
        store_bytes: int = 20 * 1024**3,
        replicas: int = 1,
    ) -> None:
        secret, ticket = (given if isinstance(given, SecretStr) else SecretStr(given) for given in (password, token))
        self._connection = Connection(url, f"loopwright-{service}", user=user, password=secret, token=ticket, ca_file=ca_file)
        self.service = service
        self.url = url
        self._store_bytes = store_bytes
        self._replicas = replicas
        self._publisher = Publisher(self._connection, service)
        self._dead = DeadLetters(self._connection, self._publisher)
        self._buckets: dict[str, NatsKeyValue] = {}
        self._objects: dict[str, NatsObjectStore] = {}
        self._consumers: list[tuple[Consumer | ProjectFlows, asyncio.Task[None]]] = []
        self._members: Members | None = None
        self._subscriptions: list[Subscription] = []
        self._answering: set[asyncio.Task[None]] = set()
        self._durables: list[tuple[str, str]] = []
        self.lag = LagWatch(self._connection, self._followed)
        self._watching: asyncio.Task[None] | None = None

    async def connect(self, timeout: timedelta = timedelta(seconds=30)) -> None:
        """Connects and declares the streams, trying until ``timeout``: a server that has just started may not answer for JetStream yet.

        Raises BusUnavailable, Refused when credentials or room are refused.
        """
        async with contextlib.AsyncExitStack() as stack:
            deadline = asyncio.get_running_loop().time() + timeout.total_seconds()
            await self._connection.open(timeout.total_seconds())
            stack.push_async_callback(self._connection.close)
            while True:
                try:
                    await declare_streams(self._connection, self._store_bytes, self._replicas)
                    break
                except BusUnavailable:
                    if asyncio.get_running_loop().time() > deadline:
                        raise
                    await asyncio.sleep(DECLARE_TRIES_SECONDS)
            stack.pop_all()

    async def publish(self, message: Outgoing) -> Ack:
        return await self._publisher.publish(message)

    async def publish_batch(self, messages: Sequence[Outgoing]) -> list[Ack]:
        return await self._publisher.publish_batch(messages)

    async def consume(self, spec: ConsumerSpec, handler: Handler) -> None:
        await self._consume(replace(spec, batch_max=1), as_batch_handler(handler))

    async def consume_batches(self, spec: ConsumerSpec, handler: BatchHandler) -> None:
        await self._consume(spec, handler)

    async def _consume(self, spec: ConsumerSpec, handler: BatchHandler) -> None:
        async def bury(message: RawMessage, reason: str) -> None:
            await self._dead.bury(spec.name, message, reason)

        worker = Worker(spec, handler, bury)
        for stream in dict.fromkeys(subject.stream for subject in spec.subjects):
            consumer: Consumer | ProjectFlows
            if spec.per_project:
                consumer = ProjectFlows(self._connection, spec, stream, lambda: Worker(spec, handler, bury), self._joined)
            else:
                consumer = Consumer(self._connection, spec, stream, worker, self._joined)
            await self._patiently(consumer.declare)
            self._consumers.append((consumer, asyncio.create_task(consumer.run(), name=f"consumer {spec.name}")))
            if not spec.per_project:
                self._durables.append((stream, spec.name))
        if self._watching is None:
            self._watching = asyncio.create_task(self.lag.run(), name="lag")

    def _followed(self) -> list[tuple[str, str]]:
        """Stream and durable name of each consumer, those of the projects included."""
        flows = [consumer for consumer, _ in self._consumers if isinstance(consumer, ProjectFlows)]
        return self._durables + [(flow.stream, durable) for flow in flows for durable in flow.durables]

    async def _joined(self) -> Members:
        """The members of this service, this process among them."""
        if self._members is None:
            self._members = Members(await self.key_value(LEASES), self.service)
        await self._members.start()
        return self._members

    async def key_value(self, bucket: str) -> KeyValue:
        if bucket not in self._buckets:
            opened = NatsKeyValue(self._connection, bucket, self._replicas)
            await self._patiently(opened.open)
            self._buckets[bucket] = opened
        return self._buckets[bucket]

    async def object_store(self, bucket: str) -> ObjectStore:
        if bucket not in self._objects:
            opened = NatsObjectStore(self._connection, bucket, self._replicas)
            await self._patiently(opened.open)
            self._objects[bucket] = opened
        return self._objects[bucket]

    async def _patiently(self, work: Callable[[], Awaitable[None]]) -> None:
        """What is done once at the start is tried for a while: the services of a machine start together with their server."""
        deadline = asyncio.get_running_loop().time() + PATIENCE_SECONDS
        while True:
            try:
                return await work()
            except BusUnavailable:
                if asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(DECLARE_TRIES_SECONDS)

    async def schedule(self, timer: Timer) -> None:
        await timers.schedule(self._connection, self.service, timer)

    async def cancel(self, service: str, purpose: str, key: str) -> None:
        await timers.cancel(self._connection, service, purpose, key)

    async def on_timer(self, service: str, handler: TimerHandler) -> None:
        async def handle(received: Any) -> None:
            observe_timer(received.payload, datetime.now(UTC))
            await handler(received.payload)
            # The stream would keep it for its whole age; a crash before this leaves only a message that was acknowledged.
            with contextlib.suppress(BusUnavailable, ApiError):
                await self._connection.api(f"STREAM.MSG.DELETE.{received.stream}", {"seq": received.sequence, "no_erase": True})

        await self.consume(timer_spec(service), handle)

    async def ask(self, question: Question, query: Contract, timeout: timedelta = timedelta(seconds=10)) -> Contract:
        headers = {"traceparent": telemetry.traceparent()} if telemetry.traceparent() else {}
        try:
            message = await self._connection.request(
                question.subject, query.model_dump_json().encode(), headers=headers or None, timeout=timeout.total_seconds()
            )
        except NobodyListens as error:
            raise Unavailable(f"nobody answers {question.subject}: {question.answered_by} is not running") from error
        except BusUnavailable as error:
            raise Unavailable(f"{question.answered_by} did not answer {question.subject}: {error}") from error
        return read_answer(question, dict(message.headers or {}), message.data)

    async def answer(self, question: Question, handler: Callable[[Any], Awaitable[Contract]]) -> None:
        slots = asyncio.Semaphore(QUESTIONS_AT_ONCE)

        async def respond(message: Msg) -> None:
            async with slots:
                parent = (message.headers or {}).get("traceparent", "")
                headers, body = await answer_question(question, handler, message.data, parent)
                await reply(message, headers, body)

        async def reply(message: Msg, headers: dict[str, str], body: bytes) -> None:
            with contextlib.suppress(BusUnavailable):  # who asked runs into its timeout, and asks again
                try:
                    await self._connection.publish(message.reply, body, headers=headers)
                except MessageTooLarge as error:
                    headers, body = failure(f"the answer is too large: {error}", retryable=False)
                    await self._connection.publish(message.reply, body, headers=headers)

        async def arrived(message: Msg) -> None:
            if not message.reply:
                return
            if len(self._answering) >= QUESTIONS_WAITING_MAX:
                await reply(message, *failure(f"{self.service} has {QUESTIONS_WAITING_MAX} questions waiting", retryable=True))
                return
            task = asyncio.create_task(respond(message))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)

        async def listen() -> None:
            self._subscriptions.append(await self._connection.subscribe(question.subject, queue=question.answered_by, cb=arrived))

        await listen()
        self._connection.on_new_client(listen)

    async def dead_letters(self, limit: int = 100, before: int | None = None) -> list[DeadLetter]:
        return await self._dead.list(limit, before)

    async def replay(self, sequence: int) -> Ack:
        return await self._dead.replay(sequence)

    async def discard(self, sequence: int, reason: str) -> None:
        await self._dead.discard(sequence)

    async def usage(self) -> Usage:
        return await read_usage(self._connection)

    async def ready(self) -> bool:
        if not self._connection.connected:
            return False
        try:
            await self._connection.api("INFO", timeout=3)
        except Exception:  # whatever it is, the answer to the question is no
            return False
        return True

    async def close(self, drain: timedelta = timedelta(seconds=10)) -> None:
        for subscription in self._subscriptions:
            with contextlib.suppress(Exception):
                await subscription.unsubscribe()
        for consumer, _ in self._consumers:
            consumer.stop()
        if self._watching is not None:
            self._watching.cancel()
        tasks = [task for _, task in self._consumers] + list(self._answering)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=drain.total_seconds())
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        self._consumers.clear()
        if self._members is not None:
            await self._members.stop()
        await self._connection.close()
