"""Other keys of fingerprints, kept in a key-value bucket: an exception by all its frames, or without the layer that wrapped it.

An alias names a fingerprint, not a report: what people merge, split or move is moved with the fingerprint, and its aliases follow. It is
asked only for what is not known otherwise, so nothing is watched; what was asked for is remembered within a limit. The first to take an
alias keeps it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from loopwright_common.bus import Bus, Conflict, KeyValue

ALIASES_BUCKET = "cluster_aliases"  # <project>.<key> -> the fingerprint's key
REMEMBERED_MAX = 50_000  # about 200 bytes each
WRITES_AT_ONCE = 32


class AliasRecords:
    """This service is the bucket's only writer. Only what is there is remembered: another replica may add what is absent."""

    def __init__(self, store: KeyValue) -> None:
        self._store = store
        self._known: OrderedDict[str, str] = OrderedDict()

    @classmethod
    async def open(cls, bus: Bus) -> AliasRecords:
        """The aliases on this bus's bucket."""
        return cls(await bus.key_value(ALIASES_BUCKET))

    async def first(self, project: str, keys: Sequence[str]) -> Mapping[str, str]:
        """The fingerprints that these keys are aliases of, for those that are."""
        found = await asyncio.gather(*(self._get(f"{project}.{key}") for key in keys))
        return {key: fingerprint for key, fingerprint in zip(keys, found, strict=True) if fingerprint is not None}

    async def add(self, project: str, aliases: Mapping[str, str]) -> None:
        """Let each key be an alias of its fingerprint, unless it is one of another already. Durable when it returns."""
        slots = asyncio.Semaphore(WRITES_AT_ONCE)

        async def write(key: str, fingerprint: str) -> None:
            async with slots:
                if key not in self._known:
                    try:
                        await self._store.create(key, fingerprint.encode())
                    except Conflict:
                        return  # somebody was first; ``first`` will say who
                    self._remember(key, fingerprint)

        results = await asyncio.gather(
            *(write(f"{project}.{key}", fingerprint) for key, fingerprint in aliases.items()), return_exceptions=True
        )
        for result in results:  # all are over before the first failure goes up
            if isinstance(result, BaseException):
                raise result

    async def _get(self, key: str) -> str | None:
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        entry = await self._store.get(key)
        return self._remember(key, entry.value.decode()) if entry is not None and entry.value else None

    def _remember(self, key: str, fingerprint: str) -> str:
        self._known[key] = fingerprint
        while len(self._known) > REMEMBERED_MAX:
            self._known.popitem(last=False)
        return fingerprint
