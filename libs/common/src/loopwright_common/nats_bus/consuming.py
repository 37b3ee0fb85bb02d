"""Durable pull consumers: fetch, hand to the worker, fetch again; through lost connections and restarted servers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any

import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from loopwright_common.bus import BusUnavailable, ConsumerSpec
from loopwright_common.contracts.subjects import STREAMS, Subject
from loopwright_common.deliveries import Delivery, RawMessage, Worker
from loopwright_common.nats_bus.connection import ApiError, Connection
from loopwright_common.nats_bus.lease import Members, Term

log = structlog.get_logger()

NANOSECONDS = 1_000_000_000
FETCH_SECONDS = 20.0
GATHER_SECONDS_MIN = 0.001
# A request ends on the server at its time; only a server that hangs or a lost connection lets it go unanswered longer.
GRACE_SECONDS = 2.0
PENDING_MAX = 1_000
WAIT_AFTER_TROUBLE_SECONDS = 0.5
CONSUMER_NOT_FOUND = 10014
# The first signal of a new project waits so long at most, for one small request that finds the stream as it was or not.
LOOK_FOR_PROJECTS_SECONDS = 0.5
SUBJECTS_LOOKED_AT_PER_SECOND = 2_000  # of a stream that changes: 10,000 subjects are looked at every five seconds
SUBJECTS_PER_PAGE = 100_000  # the server's
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
        self.message = RawMessage(message.subject, message.headers or {}, message.data, tokens[2], int(tokens[5]), int(tokens[4]))
        self._reply = message.reply
        self._connection = connection
        self._done = False  # a word after the last one could bring the message back, or forward

    async def ack(self, confirmed: bool = False) -> None:
        await self._finish(b"+ACK", confirmed)

    async def ack_with(self, earlier: Sequence[NatsDelivery]) -> None:
        open_ones = [delivery for delivery in earlier if not delivery._done]
        for delivery in open_ones:
            delivery._done = True
        await self._connection.publish_each([delivery._reply for delivery in open_ones], b"+ACK")
        await self.ack(confirmed=True)

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
    """One durable consumer on one stream. ``run`` goes on until it is stopped.

    ``durable`` and ``filters`` are the spec's own, or those of one project's flow.
    """

    def __init__(
        self,
        connection: Connection,
        spec: ConsumerSpec,
        stream: str,
        worker: Worker,
        members: Callable[[], Awaitable[Members]],
        project: str = "",
    ) -> None:
        self._connection = connection
        self._spec = spec
        self._stream = stream
        self._worker = worker
        self._members = members
        self._project = project
        self.durable = f"{spec.name}-{project}" if project else spec.name
        self._stopping = asyncio.Event()
        self._free = asyncio.Semaphore(1 if spec.ordered else spec.concurrency)

    def config(self) -> dict[str, Any]:
        spec = self._spec
        pending = PENDING_MAX
        if spec.ordered:
            # A batch in hand and, unless batches are of one, the next one on its way meanwhile.
            pending = spec.batch_max * 2 if spec.batch_max > 1 else 1
        config: dict[str, Any] = {
            "durable_name": self.durable,
            "name": self.durable,
            "ack_policy": "explicit",
            "deliver_policy": "all",
            "replay_policy": "instant",
            "ack_wait": nanoseconds(spec.ack_wait),
            "max_deliver": -1,  # counted by the worker, which buries with a reason
            "max_ack_pending": pending,
            "filter_subjects": [_filter(subject, self._project) for subject in spec.subjects if subject.stream == self._stream],
        }
        if self._project:
            # A project that is gone leaves nothing behind, and by then the stream holds nothing that a new consumer would see again.
            ages = [stream.max_age for stream in STREAMS if stream.name == self._stream]
            config["inactive_threshold"] = nanoseconds(max(ages))
        return config

    async def declare(self) -> None:
        """Makes the durable consumer or updates it in place. Raises BusUnavailable."""
        config = self.config()
        try:
            if self._project:
                config |= await self._start()
            request = {"stream_name": self._stream, "config": config, "action": ""}
            await self._connection.api(f"CONSUMER.CREATE.{self._stream}.{self.durable}", request)
        except ApiError as error:
            raise BusUnavailable(f"the consumer {self.durable} on {self._stream} was refused: {error}") from error

    async def _start(self) -> dict[str, Any]:
        """Where a project's flow begins: where it began; or after what the one consumer of all projects had done; or at the start."""
        for durable in (self.durable, self._spec.name):
            try:
                found = await self._connection.api(f"CONSUMER.INFO.{self._stream}.{durable}")
            except ApiError as error:
                if error.err_code != CONSUMER_NOT_FOUND:
                    raise
                continue
            if durable == self.durable:
                return {key: found["config"][key] for key in ("deliver_policy", "opt_start_seq") if key in found["config"]}
            return {"deliver_policy": "by_start_sequence", "opt_start_seq": int(found["ack_floor"]["stream_seq"]) + 1}
        return {}

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
                if self._spec.ordered and (self._spec.batch_max > 1 or self._project):
                    await self._run_alone()
                else:
                    await self._fetch_on()
            except BusUnavailable as error:
                if not self._stopping.is_set():
                    log.info("consumer_waits", consumer=self.durable, stream=self._stream, reason=str(error))
                    await self._pause()
                    with contextlib.suppress(BusUnavailable):
                        await self.declare()  # a server that lost its memory of it, or a stream made anew
            except Exception as error:
                log.error("consumer_failed", consumer=self.durable, stream=self._stream, exc_info=error)
                await self._pause()

    async def _run_alone(self) -> None:
        members = await self._members()
        async with members.lease(f"{self._stream}.{self.durable}", self._stopping, spread=bool(self._project)) as term:
            await self._flow(term)

    async def _pause(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), WAIT_AFTER_TROUBLE_SECONDS)

    async def _flow(self, term: Term) -> None:
        """One batch after the other, the next one fetched meanwhile, until stopped or the term ends. Raises BusUnavailable."""
        inbox = await Inbox.open(self._connection, self._stream, self._spec, self.durable)
        working: asyncio.Task[timedelta | None] | None = None
        try:
            while not self._stopping.is_set() and not term.ending.is_set():
                deliveries = await inbox.fetch(self._stopping, term.ending)
                # Read while the one before waits for the server to store what came of it.
                ahead = await self._worker.read(deliveries)
                if working is not None:
                    delay = await self._wait(working, deliveries, term)
                    if delay is not None or term.ending.is_set():
                        # What came first waits to come again: this must not overtake it.
                        await give_back(deliveries, delay or timedelta(0))
                        deliveries = []
                    working = None
                if deliveries:
                    working = asyncio.create_task(self._worker.work(deliveries, ahead))
        finally:
            await inbox.close()
            running = {working} if working is not None else set()
            if term.lost.is_set():
                await cancel(running)  # another may already be at it: what is not done by now is given back
            try:
                if running:
                    await asyncio.wait(running)
            except asyncio.CancelledError:
                await cancel(running)  # draining took too long
                raise

    async def _wait(self, working: asyncio.Task[timedelta | None], fetched: Sequence[Delivery], term: Term) -> timedelta | None:
        """Waits for a batch while the next one is held ready; how long it is to wait with it when it was given back as a whole."""
        beat = self._spec.ack_wait.total_seconds() / 3
        losing = asyncio.ensure_future(term.lost.wait())
        try:
            while not working.done() and not term.lost.is_set():
                await asyncio.wait([working, losing], timeout=beat, return_when=asyncio.FIRST_COMPLETED)
                if not working.done():
                    for delivery in fetched:
                        await delivery.in_progress()
        finally:
            losing.cancel()
        if not working.done():
            await cancel({working})
        return None if working.cancelled() else working.result()

    async def _fetch_on(self) -> None:
        """Fetches and handles, several at once when the consumer is not ordered, until stopped. Raises BusUnavailable."""
        handling: set[asyncio.Task[Any]] = set()
        inbox = await Inbox.open(self._connection, self._stream, self._spec, self.durable)
        try:
            while not self._stopping.is_set():
                await first_of(self._free.acquire(), self._stopping)
                if self._stopping.is_set():
                    break
                try:
                    deliveries = await inbox.fetch(self._stopping)
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
            await inbox.close()
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


class ProjectFlows:
    """One durable consumer for each project that has messages in the stream, found as they come. ``run`` goes on until it is stopped."""

    def __init__(
        self,
        connection: Connection,
        spec: ConsumerSpec,
        stream: str,
        new_worker: Callable[[], Worker],
        members: Callable[[], Awaitable[Members]],
    ) -> None:
        self._connection = connection
        self._spec = spec
        self.stream = stream
        self._new_worker = new_worker
        self._members = members
        self._stopping = asyncio.Event()
        self._flows: dict[str, tuple[Consumer, asyncio.Task[None]]] = {}
        self._last = -1
        self._subjects = 0

    @property
    def durables(self) -> list[str]:
        """The names of the consumers there are."""
        return [consumer.durable for consumer, _ in self._flows.values()]

    async def declare(self) -> None:
        """Makes the consumers of the projects that are there. Raises BusUnavailable."""
        try:
            await self._look()
        except ApiError as error:
            raise BusUnavailable(f"the stream {self.stream} does not tell its subjects: {error}") from error

    def stop(self) -> None:
        self._stopping.set()
        for consumer, _ in self._flows.values():
            consumer.stop()

    async def run(self) -> None:
        try:
            while not self._stopping.is_set():
                seconds = max(LOOK_FOR_PROJECTS_SECONDS, self._subjects / SUBJECTS_LOOKED_AT_PER_SECOND)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), seconds)
                try:
                    if not self._stopping.is_set():
                        await self._look()
                except (BusUnavailable, ApiError) as error:
                    log.info("projects_not_seen", consumer=self._spec.name, stream=self.stream, reason=str(error))
                except Exception as error:
                    log.error("projects_not_seen", consumer=self._spec.name, stream=self.stream, exc_info=error)
            await asyncio.gather(*(task for _, task in self._flows.values()))
        finally:
            tasks = {task for _, task in self._flows.values()}
            await cancel({task for task in tasks if not task.done()})

    async def _look(self) -> None:
        last = int((await self._connection.api(f"STREAM.INFO.{self.stream}"))["state"]["last_seq"])
        if last == self._last:
            return
        present: set[str] = set()
        for subject in self._spec.subjects:
            if subject.stream == self.stream:
                place = subject.pattern.split(".").index("{project}")
                names = await self._names(subject.wildcard)
                present |= {name.split(".")[place] for name in names}
                self._subjects = len(names)
        for project in sorted(present - self._flows.keys()):
            consumer = Consumer(self._connection, self._spec, self.stream, self._new_worker(), self._members, project)
            await consumer.declare()
            self._flows[project] = (consumer, asyncio.create_task(consumer.run(), name=f"consumer {consumer.durable}"))
        for project in self._flows.keys() - present:
            consumer, task = self._flows[project]
            consumer.stop()
            if task.done():
                del self._flows[project]
        self._last = last

    async def _names(self, wildcard: str) -> list[str]:
        names: list[str] = []
        while True:
            request = {"subjects_filter": wildcard, "offset": len(names)}
            page = (await self._connection.api(f"STREAM.INFO.{self.stream}", request))["state"].get("subjects") or {}
            names += page
            if len(page) < SUBJECTS_PER_PAGE:
                return names


def _filter(subject: Subject, project: str) -> str:
    return ".".join(
        project if token == "{project}" and project else "*" if token.startswith("{") else token  # noqa: S105  a subject token
        for token in subject.pattern.split(".")
    )


class Arrivals(asyncio.Queue[Msg]):
    """What the client puts a subscription's messages into, with an event that says that some are there.

    Taken from without a task that waits for each: that was a tenth of what it costs to receive one.
    """

    def __init__(self, arrived: asyncio.Event) -> None:
        super().__init__()
        self.messages: deque[Msg] = deque()
        self._has_some = arrived

    def put_nowait(self, item: Msg) -> None:
        self.messages.append(item)
        self._has_some.set()


class Inbox:
    """Where a consumer's messages arrive. It stays over many requests, so that none is sent to where nobody listens any more."""

    def __init__(self, connection: Connection, stream: str, spec: ConsumerSpec, durable: str, subject: str) -> None:
        self._connection = connection
        self._spec = spec
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"
        self._subject = subject
        self._arrived = asyncio.Event()
        self._queue = Arrivals(self._arrived)
        self._subscription: Subscription | None = None
        self._generation = connection.generation

    @classmethod
    async def open(cls, connection: Connection, stream: str, spec: ConsumerSpec, durable: str) -> Inbox:
        """Raises BusUnavailable."""
        inbox = cls(connection, stream, spec, durable, connection.client.new_inbox())
        # Without a limit of bytes: nothing comes here that was not asked for, and the client would drop what is beyond it.
        inbox._subscription = await connection.subscribe(inbox._subject, pending_bytes_limit=0)
        inbox._subscription._pending_queue = inbox._queue  # nothing is lost by that: nothing was asked for yet
        return inbox

    async def close(self) -> None:
        """Gives back what was delivered meanwhile: nobody else would get it before its time is up."""
        if self._subscription is None:
            return
        with contextlib.suppress(Exception):
            await self._subscription.unsubscribe()
            await self._connection.client.flush(timeout=2)  # what the server had sent before it knew is here after this
        while self._queue.messages:
            message = self._queue.messages.popleft()
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
        messages = self._queue.messages
        while len(found) < wanted:
            if not messages and not await self._more(deadline - time.monotonic(), lost, *signals):
                break
            message = messages.popleft()
            if message.reply.startswith("$JS.ACK."):
                found.append(NatsDelivery(message, self._connection))
            elif self._is_over(message):
                break
        return bool(found)

    async def _more(self, seconds: float, *signals: asyncio.Event) -> bool:
        """Whether a message came, within ``seconds`` and before one of the signals was set."""
        self._arrived.clear()
        if any(signal.is_set() for signal in signals):
            return False
        watching = [asyncio.ensure_future(event.wait()) for event in (self._arrived, *signals)]
        try:
            await asyncio.wait(watching, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in watching:
                task.cancel()
        return bool(self._queue.messages)

    def _is_over(self, message: Msg) -> bool:
        headers = message.headers or {}
        status, said = headers.get("Status"), str(headers.get("Description", ""))
        if status == "503":
            raise BusUnavailable("JetStream does not answer yet")
        if status == "409" and any(word in said for word in ("Consumer Deleted", "Shutdown", "Leadership")):
            raise BusUnavailable(f"the consumer is gone: {said}")
        return status in DONE_STATUSES


async def give_back(deliveries: Sequence[Delivery], delay: timedelta) -> None:
    """To be delivered again after ``delay``; when the connection is lost they come again by themselves."""
    with contextlib.suppress(BusUnavailable):
        for delivery in deliveries:
            await delivery.give_back(delay)


async def cancel(tasks: set[asyncio.Task[Any]]) -> None:
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
