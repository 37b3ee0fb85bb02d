"""One active process per ordered flow, over all replicas: leases in a bucket, held by members whose hearts beat there.

A lease names its holder and is written only when it changes hands; a member's heartbeat is one small write however many leases it holds,
so that a flow per project costs nothing while nothing comes. Clocks are not compared: who waits sees whether the holder's heart beats, and
takes the lease when it has stood still for ``LEASE_SECONDS``. Who does not hear its own heart in the bucket judges nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from loopwright_common.bus import BusUnavailable, Conflict, Entry, KeyValue
from loopwright_common.identifiers import new_id

log = structlog.get_logger()

LEASE_SECONDS = 6.0  # how long a flow stands still when its process died
RENEW_SECONDS = 1.5  # four tries before it is lost
LOOK_SECONDS = 0.25
# A flow that is spread over the replicas goes to its own one only when that has been there for a while: a crash loop moves nothing.
SETTLED_SECONDS = 5.0
# What nobody holds is left to its own replica for this long.
COURTESY_SECONDS = 1.0
FORGOTTEN_SECONDS = 60.0
MEMBER = "member."


class Term:
    """A time in which a lease is held: stop at once when ``lost`` is set, after the work in hand when ``ending`` is."""

    def __init__(self) -> None:
        self.lost = asyncio.Event()
        self.ending = asyncio.Event()

    def end(self, *, lost: bool) -> None:
        if lost:
            self.lost.set()
        self.ending.set()


class Members:
    """The processes of one service that hold leases, and this one among them. ``start`` before use, ``stop`` after the last lease."""

    def __init__(self, bucket: KeyValue, service: str) -> None:
        self._bucket = bucket
        self._group = f"{MEMBER}{service}."
        self.me = new_id()
        self._entries: dict[str, Entry] = {}
        self._moved: dict[str, float] = {}  # when a key was last seen to change, by our own clock
        self._since: dict[str, float] = {}  # when a member was first heard
        self._held: dict[str, tuple[Term, bool]] = {}
        self._held_until = 0.0
        self._loaded = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Returns when this process's heart beats and the bucket is being watched."""
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._watch(), name="leases"), asyncio.create_task(self._beat(), name="heartbeat")]
        await self._loaded.wait()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._tasks:
            with contextlib.suppress(BusUnavailable):
                await self._bucket.delete(self._key(self.me))
        self._tasks = []

    @asynccontextmanager
    async def lease(self, name: str, stopping: asyncio.Event, *, spread: bool = False) -> AsyncIterator[Term]:
        """Waits until the lease is ours, then keeps it. Raises BusUnavailable. When ``stopping`` is set first, the term is lost at once.

        ``spread``: many leases are shared out among the members, each to the one it falls to, for as long as that one is there.
        """
        term = Term()
        revision = await self._acquire(name, stopping, spread)
        if not revision:
            term.end(lost=True)
            yield term
            return
        self._held[name] = (term, spread)
        try:
            yield term
        finally:
            del self._held[name]
            if not term.lost.is_set():
                with contextlib.suppress(BusUnavailable, Conflict):
                    await self._bucket.update(name, b"", revision)  # free at once for the next one

    async def _acquire(self, name: str, stopping: asyncio.Event, spread: bool) -> int:
        """The lease's revision, 0 when told to stop first."""
        free_since: float | None = None
        while not stopping.is_set():
            now = time.monotonic()
            entry = self._entries.get(name)
            holder = entry.value.decode() if entry is not None else ""
            # Of this process, too, only one at a time: what is written in our name may be held by another taker here.
            if name in self._held or (holder not in ("", self.me) and self._lives(name, holder, now)):
                free_since = None
            elif self._can_judge(now):
                free_since = free_since or now
                if not spread or self._falls_to(name, now) == self.me or now - free_since > COURTESY_SECONDS:
                    with contextlib.suppress(Conflict):  # another was faster
                        return await self._take(name, entry)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), LOOK_SECONDS)
        return 0

    async def _take(self, name: str, entry: Entry | None) -> int:
        mine = self.me.encode()
        revision = await (self._bucket.update(name, mine, entry.revision) if entry is not None else self._bucket.create(name, mine))
        self._see(Entry(name, mine, revision))
        return revision

    def _can_judge(self, now: float) -> bool:
        """Whether the bucket has been heard of late: our own heartbeats come back through the same watch as the others'."""
        return now - self._moved.get(self._key(self.me), 0.0) < 2 * RENEW_SECONDS and now < self._held_until

    def _lives(self, name: str, holder: str, now: float) -> bool:
        return now - max(self._moved.get(self._key(holder), 0.0), self._moved.get(name, 0.0)) < LEASE_SECONDS

    def _falls_to(self, name: str, now: float, *, settled: float = 0.0) -> str:
        """Who among the living members is to have the lease: the highest of the hashes of both names (rendezvous hashing)."""
        living = [
            key.removeprefix(self._group)
            for key, moved in self._moved.items()
            if key.startswith(self._group) and now - moved < LEASE_SECONDS and now - self._since.get(key, now) >= settled
        ]
        return max(living, key=lambda member: hashlib.sha256(f"{member} {name}".encode()).digest(), default=self.me)

    def _key(self, member: str) -> str:
        return self._group + member

    # What is heard

    def _see(self, entry: Entry) -> None:
        known = self._entries.get(entry.key)
        if known is not None and known.revision >= entry.revision:
            return
        now = time.monotonic()
        if entry.key.startswith(MEMBER):
            if not entry.value:
                for known_of in (self._entries, self._moved, self._since):
                    known_of.pop(entry.key, None)
                return
            self._since.setdefault(entry.key, now)
        self._entries[entry.key] = entry
        self._moved[entry.key] = now
        held = self._held.get(entry.key)
        if held is not None and entry.value.decode() != self.me:
            log.warning("lease_lost", lease=entry.key)
            held[0].end(lost=True)

    async def _watch(self) -> None:
        while True:
            try:
                async for entry in self._bucket.watch():
                    if entry is None:
                        self._loaded.set()
                    else:
                        self._see(entry)
            except Exception as error:
                log.warning("lease_watch_interrupted", error=str(error))
            await asyncio.sleep(LOOK_SECONDS)

    # What is said

    async def _beat_once(self) -> None:
        started = time.monotonic()
        async with asyncio.timeout(RENEW_SECONDS):
            await self._bucket.put(self._key(self.me), b"1")
        self._held_until = started + LEASE_SECONDS

    async def _beat(self) -> None:
        while True:
            late = bool(self._held) and time.monotonic() > self._held_until
            with contextlib.suppress(BusUnavailable, TimeoutError):
                await self._beat_once()
            # A little early, so that we stop before another may begin. A beat that comes too late finds that others may have begun.
            if late or time.monotonic() > self._held_until - RENEW_SECONDS:
                self._lose_all()
            else:
                self._hand_over()
                with contextlib.suppress(BusUnavailable, TimeoutError):
                    await self._bury_the_dead()
            await asyncio.sleep(RENEW_SECONDS)

    def _lose_all(self) -> None:
        for name, (term, _) in self._held.items():
            if not term.lost.is_set():
                log.warning("lease_given_up", lease=name)
                term.end(lost=True)

    def _hand_over(self) -> None:
        """Ends the terms of leases that fall to another member, which then takes them: the hot standby becomes a second worker."""
        now = time.monotonic()
        for name, (term, spread) in self._held.items():
            if spread and not term.ending.is_set() and self._falls_to(name, now, settled=SETTLED_SECONDS) != self.me:
                to = self._falls_to(name, now)
                if to != self.me:
                    log.info("lease_handed_over", lease=name, to=to)
                    term.end(lost=False)

    async def _bury_the_dead(self) -> None:
        """Removes the keys of members that have long been still; one that comes back writes its own again."""
        now = time.monotonic()
        if self._can_judge(now):
            for key in [key for key, moved in self._moved.items() if key.startswith(self._group) and now - moved > FORGOTTEN_SECONDS]:
                self._moved[key] = now  # once is enough; the watch tells when it is gone
                await self._bucket.delete(key)
