"""What may still be spent today, counted before it is spent, so that a cap is a cap also when many ask at once or a process dies."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Protocol

from loopwright_common.bus import Conflict, KeyValue
from loopwright_common.clock import Clock, SystemClock
from loopwright_common.errors import Refused, Unavailable

TRIES_MAX = 50


class Spending(Protocol):
    """US dollars per role and day (UTC)."""

    async def reserve(self, role: str, usd: float, usd_per_day_max: float) -> str:
        """Counts ``usd`` as spent and returns the day it was counted on. Raises Refused when the day's cap would be passed."""
        ...

    async def settle(self, role: str, day: str, reserved: float, spent: float) -> None:
        """Corrects a reservation to what was really spent."""
        ...


class MemorySpending:
    """Counts in this process: a restart begins anew. For tests, tools, and a role whose model costs nothing."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._spent: dict[tuple[str, str], float] = defaultdict(float)

    async def reserve(self, role: str, usd: float, usd_per_day_max: float) -> str:
        day = self._clock.now().date().isoformat()
        _check(role, self._spent[role, day], usd, usd_per_day_max)
        self._spent[role, day] += usd
        return day

    async def settle(self, role: str, day: str, reserved: float, spent: float) -> None:
        self._spent[role, day] += spent - reserved


class BucketSpending:
    """Counts in a bucket, by compare-and-set: over replicas and restarts. A process that dies leaves its reservation counted."""

    def __init__(self, bucket: KeyValue, clock: Clock | None = None) -> None:
        self._bucket = bucket
        self._clock = clock or SystemClock()

    async def reserve(self, role: str, usd: float, usd_per_day_max: float) -> str:
        """Raises Unavailable too, when the bucket cannot be asked: a cap that cannot be checked refuses."""
        day = self._clock.now().date().isoformat()
        await self._add(role, day, usd, usd_per_day_max)
        return day

    async def settle(self, role: str, day: str, reserved: float, spent: float) -> None:
        if spent != reserved:
            await self._add(role, day, spent - reserved, None)

    async def _add(self, role: str, day: str, usd: float, usd_per_day_max: float | None) -> None:
        key = f"usd.{role}.{day}"
        for _ in range(TRIES_MAX):
            entry = await self._bucket.get(key)
            spent = float(json.loads(entry.value)) if entry is not None else 0.0
            if usd_per_day_max is not None:
                _check(role, spent, usd, usd_per_day_max)
            value = json.dumps(round(max(0.0, spent + usd), 9)).encode()
            try:
                if entry is None:
                    await self._bucket.create(key, value)
                else:
                    await self._bucket.update(key, value, entry.revision)
            except Conflict:
                continue
            return
        raise Unavailable(f"the spending of {role} was changed by others {TRIES_MAX} times in a row")


def _check(role: str, spent: float, usd: float, usd_per_day_max: float) -> None:
    # A cent's millionth of tolerance: sums of prices are not exact in binary.
    if spent + usd > usd_per_day_max + 1e-8:
        raise Refused(
            f"the model role {role} has used {spent:.4f} of {usd_per_day_max:g} US dollars today; this call could cost {usd:.4f}. "
            "Raise its usd_per_day_max or wait until tomorrow (UTC)"
        )
