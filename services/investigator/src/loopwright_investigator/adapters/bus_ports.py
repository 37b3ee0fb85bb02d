"""``Rates`` and ``Bundles`` over the bus."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import cast

import structlog
from loopwright_common.bus import Bus, Conflict, KeyValue, ObjectStore
from loopwright_common.contracts.queries import RatesAnswer, RatesQuery
from loopwright_common.contracts.subjects import RATES_QUERY

BUCKET = "investigation-bundles"
RATES_TIMEOUT = timedelta(seconds=20)  # a week of minutes of a busy service
PRUNE_AT_ONCE = 20

log = structlog.get_logger()


class BusRates:
    """Asks the gateway by request/reply."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def ask(self, query: RatesQuery) -> RatesAnswer:
        return cast(RatesAnswer, await self._bus.ask(RATES_QUERY, query, RATES_TIMEOUT))


class StoredBundles:
    """Bundles in the object store, with their order kept beside them so that the oldest can go when there are more than ``kept_max``."""

    def __init__(self, objects: ObjectStore, order: KeyValue, kept_max: int) -> None:
        self._objects = objects
        self._order = order
        self._kept_max = kept_max

    @classmethod
    async def open(cls, bus: Bus, kept_max: int) -> StoredBundles:
        return cls(await bus.object_store(BUCKET), await bus.key_value(BUCKET), kept_max)

    async def get(self, name: str) -> bytes | None:
        return await self._objects.get(name)

    async def put(self, name: str, value: bytes) -> None:
        await self._objects.put(name, value)
        keys = sorted(await self._order.keys())
        if not any(key.endswith(f".{name}") for key in keys):
            # The time leads the key, so that sorting the keys is sorting by age.
            key = f"{int(datetime.now(UTC).timestamp() * 1_000):015d}.{name}"
            try:
                await self._order.create(key, b"1")
            except Conflict:
                log.info("bundle_already_ordered", key=key)
            keys.append(key)
        for key in keys[: max(0, len(keys) - self._kept_max)][:PRUNE_AT_ONCE]:
            await self._objects.delete(key.partition(".")[2])
            await self._order.delete(key)
