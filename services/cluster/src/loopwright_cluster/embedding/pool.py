"""Several encoders side by side: each embeds its share of the texts in a thread of its own, outside of the GIL."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np

from loopwright_cluster.ports import Embedding, Vectors


class EmbeddingPool:
    """The `Embedding` port on encoders of one kind. A text's vector is the same whichever of them makes it."""

    def __init__(self, encoders: Sequence[Embedding]) -> None:
        self._encoders = list(encoders)
        self._next = 0
        self.name = encoders[0].name
        self.degraded = encoders[0].degraded
        self.dimensions = encoders[0].dimensions

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """Return float32 [len(texts), dimensions], in the order of ``texts``."""
        if not texts:
            return np.zeros((0, self.dimensions), np.float32)
        each = -(-len(texts) // len(self._encoders))
        parts = []
        for start in range(0, len(texts), each):
            parts.append(self._encoders[self._next].embed(texts[start : start + each]))
            self._next = (self._next + 1) % len(self._encoders)
        return np.concatenate(await asyncio.gather(*parts))

    async def close(self) -> None:
        """Close every encoder."""
        for encoder in self._encoders:
            await encoder.close()
