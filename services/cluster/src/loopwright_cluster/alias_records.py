"""Other keys of fingerprints, kept in a key-value bucket: an exception by all its frames, or without the layer that wrapped it.

An alias names a fingerprint, not a report: what people merge, split or move is moved with the fingerprint, and its aliases follow. It is
asked only for what is not known otherwise, so nothing is watched; what was asked for is remembered within a limit. The first to take an
alias keeps it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from loopwright_common.bus import Bus, KeyValue

ALIASES_BUCKET = "cluster_aliases"  # <project>.<key> -> the fingerprint's key
REMEMBERED_MAX = 50_000  # about 200 bytes each


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
        wanted = [f"{project}.{key}" for key in keys]
        absent = [key for key in wanted if key not in self._known]
        stored = await self._store.get_many(absent) if absent else {}
        found = {}
        for key, full in zip(keys, wanted, strict=True):
            if full in stored and stored[full].value:
                found[key] = self._remember(full, stored[full].value.decode())
            elif full in self._known:
                self._known.move_to_end(full)
                found[key] = self._known[full]
        return found

    async def add(self, project: str, aliases: Mapping[str, str]) -> None:
        """Let each key be an alias of its fingerprint, unless it is one of another already. Durable when it returns."""
        unknown = {f"{project}.{key}": fingerprint for key, fingerprint in aliases.items() if f"{project}.{key}" not in self._known}
        created = await self._store.create_many({key: fingerprint.encode() for key, fingerprint in unknown.items()})
        for key in created:  # of the others somebody was first; ``first`` will say who
            self._remember(key, unknown[key])

    def _remember(self, key: str, fingerprint: str) -> str:
        self._known[key] = fingerprint
        while len(self._known) > REMEMBERED_MAX:
            self._known.popitem(last=False)
        return fingerprint
