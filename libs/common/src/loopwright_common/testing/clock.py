"""A clock that moves only when a test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

START = datetime(2026, 11, 26, 10, 0, tzinfo=UTC)


class FakeClock:
    """Stands still at ``now`` until it is advanced; sleepers and listeners wake when their time has come."""

    def __init__(self, now: datetime = START) -> None:
        self._now = now.astimezone(UTC)
        self._listeners: list[Callable[[], None]] = []

    def now(self) -> datetime:
        return self._now

    def advance(self, by: timedelta = timedelta(0), **units: float) -> datetime:
        """Moves the time on, by a timedelta or by units as in ``advance(minutes=5)``; returns the new time."""
        step = by + timedelta(**units)
        if step < timedelta(0):
            raise ValueError("time goes forward only")
        self._now += step
        for listener in list(self._listeners):
            listener()
        return self._now

    def set(self, now: datetime) -> None:
        """Moves the time on to ``now``."""
        self.advance(now.astimezone(UTC) - self._now)

    def on_advance(self, listener: Callable[[], None]) -> None:
        """Calls ``listener`` after each step."""
        self._listeners.append(listener)

    async def sleep(self, duration: timedelta) -> None:
        """Returns once the clock was advanced by ``duration``."""
        due = self._now + duration
        moved = asyncio.Event()
        self._listeners.append(moved.set)
        try:
            while self._now < due:
                moved.clear()
                await moved.wait()
        finally:
            self._listeners.remove(moved.set)
