"""One active consumer over all replicas: a lease in a bucket, renewed while it is held, taken over when it no longer is.

Clocks are not compared: who waits sees whether the entry moves, and takes it when it has stood still for the lease's length.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from loopwright_common.bus import BusUnavailable, Conflict, KeyValue
from loopwright_common.identifiers import new_id

log = structlog.get_logger()

LEASE_SECONDS = 6.0  # how long a flow stands still when its process died
RENEW_SECONDS = 1.5  # four tries before it is lost
LOOK_SECONDS = 0.5


class Lease:
    """A named lease. Held within ``async with lease.held() as lost``: stop when ``lost`` is set."""

    def __init__(self, bucket: KeyValue, name: str) -> None:
        self._bucket = bucket
        self._name = name
        self._owner = new_id().encode()
        self._revision = 0

    @asynccontextmanager
    async def held(self, stopping: asyncio.Event) -> AsyncIterator[asyncio.Event]:
        """Waits until the lease is ours, then keeps it. Raises BusUnavailable. When ``stopping`` is set first, ``lost`` is set at once."""
        lost = asyncio.Event()
        if not await self._acquire(stopping):
            lost.set()
            yield lost
            return
        renewing = asyncio.create_task(self._renew(lost))
        try:
            yield lost
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
            if not lost.is_set():
                with contextlib.suppress(BusUnavailable, Conflict):
                    await self._bucket.update(self._name, b"", self._revision)  # free at once for the next one

    async def _acquire(self, stopping: asyncio.Event) -> bool:
        seen, since = -1, time.monotonic()
        while not stopping.is_set():
            entry = await self._bucket.get(self._name)
            try:
                if entry is None:
                    self._revision = await self._bucket.create(self._name, self._owner)
                    return True
                if entry.revision != seen:
                    seen, since = entry.revision, time.monotonic()
                if entry.value in (b"", self._owner) or time.monotonic() - since >= LEASE_SECONDS:
                    self._revision = await self._bucket.update(self._name, self._owner, entry.revision)
                    return True
            except Conflict:
                continue  # another was faster
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), LOOK_SECONDS)
        return False

    async def _renew(self, lost: asyncio.Event) -> None:
        held_until = time.monotonic() + LEASE_SECONDS
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            started = time.monotonic()
            try:
                async with asyncio.timeout(RENEW_SECONDS):
                    self._revision = await self._bucket.update(self._name, self._owner, self._revision)
                held_until = started + LEASE_SECONDS
            except Conflict:
                # Either another took it, or our own write arrived and its answer did not.
                entry = None
                with contextlib.suppress(BusUnavailable):
                    entry = await self._bucket.get(self._name)
                if entry is not None and entry.value == self._owner:
                    self._revision = entry.revision
                    continue
                log.warning("lease_lost", lease=self._name)
                lost.set()
                return
            except (BusUnavailable, TimeoutError):
                # A little early, so that we stop before another may begin.
                if time.monotonic() > held_until - RENEW_SECONDS:
                    log.warning("lease_given_up", lease=self._name)
                    lost.set()
                    return
