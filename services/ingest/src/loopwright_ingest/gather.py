"""Gathers concurrent requests for a few milliseconds into one atomic batch: one synced write for many answers.

One message at a time reaches about a tenth of what batches of a hundred do when every write is synced, so waiting a little is
faster for all.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass
from datetime import timedelta

from loopwright_common.bus import Ack, Bus, BusUnavailable, Outgoing
from loopwright_common.errors import Permanent

BATCH_MAX = 1_000  # what one atomic batch may hold (ADR-50 of the NATS architecture)
IN_FLIGHT = 2  # one batch is written while the next one gathers


class Busy(BusUnavailable):
    """More is waiting for the bus than the limit allows."""


@dataclass
class _Waiting:
    messages: list[Outgoing]
    done: asyncio.Future[list[Ack]]


class Gatherer:
    """``submit`` returns once the messages are durable."""

    def __init__(self, bus: Bus, wait: timedelta, pending_max: int) -> None:
        self._bus = bus
        self._wait_seconds = wait.total_seconds()
        self._pending_max = pending_max
        self._waiting: deque[_Waiting] = deque()
        self._pending = 0
        self._arrived = asyncio.Event()
        self._slots = asyncio.Semaphore(IN_FLIGHT)
        self._sending: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="gather")

    async def stop(self) -> None:
        """Sends what waits, then stops."""
        if self._waiting or self._sending:
            await asyncio.gather(*(item.done for item in self._waiting), *self._sending, return_exceptions=True)
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def submit(self, messages: list[Outgoing]) -> list[Ack]:
        """One Ack per message, in order. Raises Busy when too much waits, BusUnavailable when the bus does not take them."""
        if self._pending + len(messages) > self._pending_max:
            raise Busy(
                f"{self._pending} messages wait for the bus already; LOOPWRIGHT_INGEST_PENDING_MAX is {self._pending_max}. Try again.",
                after=timedelta(seconds=1),
            )
        waiting = _Waiting(messages, asyncio.get_running_loop().create_future())
        self._pending += len(messages)
        self._waiting.append(waiting)
        self._arrived.set()
        return await asyncio.shield(waiting.done)

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            if self._wait_seconds and sum(len(item.messages) for item in self._waiting) < BATCH_MAX:
                await asyncio.sleep(self._wait_seconds)
            await self._slots.acquire()
            batch = self._take()
            if not self._waiting:
                self._arrived.clear()
            task = asyncio.create_task(self._send(batch))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    def _take(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        size = 0
        while self._waiting and (not batch or size + len(self._waiting[0].messages) <= BATCH_MAX):
            batch.append(self._waiting.popleft())
            size += len(batch[-1].messages)
        return batch

    async def _send(self, batch: list[_Waiting]) -> None:
        messages = [message for waiting in batch for message in waiting.messages]
        try:
            acks = await self._bus.publish_batch(messages)
        except Permanent as error:
            if len(batch) > 1:
                # One request's message is at fault: each is tried alone, so that only its own sender hears of it. A bus that is away is not
                # asked again: each try may last as long as the first, and all would wait for all.
                for waiting in batch:
                    await self._send_alone(waiting)
            else:
                _fail(batch[0], error)
        except Exception as error:
            for waiting in batch:
                _fail(waiting, error)
        else:
            for waiting in batch:
                if not waiting.done.done():
                    waiting.done.set_result(acks[: len(waiting.messages)])
                acks = acks[len(waiting.messages) :]
        finally:
            self._pending -= len(messages)
            self._slots.release()

    async def _send_alone(self, waiting: _Waiting) -> None:
        try:
            acks = await self._bus.publish_batch(waiting.messages)
        except Exception as error:
            _fail(waiting, error)
        else:
            if not waiting.done.done():
                waiting.done.set_result(acks)


def _fail(waiting: _Waiting, error: Exception) -> None:
    if not waiting.done.done():
        waiting.done.set_exception(error)
