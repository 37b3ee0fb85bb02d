"""What the grouping needs from outside: an embedding and a vector index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from loopwright_cluster.domain import Exemplar, Match
from loopwright_cluster.grouping.lexicon import Sparse, stored_vector
from loopwright_cluster.grouping.wording import wording_of

Vectors = npt.NDArray[np.float32]


class Embedding(Protocol):
    """Turns text into vectors. ``degraded`` says that they only find near-identical text; people are told so."""

    @property
    def name(self) -> str: ...

    @property
    def degraded(self) -> bool: ...

    @property
    def dimensions(self) -> int: ...

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """Return float32 [len(texts), dimensions] of unit length. A text's vector does not depend on the texts beside it."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True)
class Where:
    """Narrows a search; what is None is not asked for. Times in epoch seconds, both ends included."""

    report_id: str | None = None
    kind: str | None = None
    service: str | None = None
    occurred_from: float | None = None
    occurred_to: float | None = None

    def admits(self, exemplar: Exemplar) -> bool:
        """Whether the exemplar is within these bounds."""
        return (
            (self.report_id is None or exemplar.report_id == self.report_id)
            and (self.kind is None or exemplar.kind == self.kind)
            and (self.service is None or exemplar.service == self.service)
            and (self.occurred_from is None or exemplar.occurred_at >= self.occurred_from)
            and (self.occurred_to is None or exemplar.occurred_at <= self.occurred_to)
        )


ANYWHERE = Where()


@dataclass(frozen=True)
class Near:
    """One search for what is most like a vector: at most ``limit`` exemplars within ``where``."""

    limit: int
    where: Where = ANYWHERE


@dataclass(frozen=True)
class Hybrid:
    """A search by meaning and by words at once: ``dense`` of unit length, and one search for each of the ``sparse`` queries."""

    dense: npt.NDArray[np.float32]
    sparse: tuple[Sparse, ...]


def sparse_of(exemplar: Exemplar) -> Sparse:
    """The sparse vector an index keeps for an exemplar."""
    return stored_vector(wording_of(exemplar.title, exemplar.body))


class VectorIndex(Protocol):
    """Exemplars by the similarity of their text. It can always be rebuilt from the fingerprint map, so it is never the only copy."""

    async def upsert(self, exemplars: Sequence[Exemplar], vectors: Vectors) -> None:
        """Store or replace one point for each exemplar; durable when it returns. ``vectors`` is float32 [len(exemplars), dimensions]."""
        ...

    async def nearest(self, project: str, vector: npt.NDArray[np.float32], limit: int, where: Where = ANYWHERE) -> list[Match]:
        """The most similar exemplars of a project, best first; exact, not approximate."""
        ...

    async def search(self, project: str, vector: npt.NDArray[np.float32], asked: Sequence[Near]) -> list[list[Match]]:
        """``nearest`` for several searches with one vector, in one go; an answer for each, in their order."""
        ...

    async def foresee(self, project: str, vectors: Vectors) -> None:
        """These are going to be searched with: what is cheaper to work out for all of them together may be. Changes no answer."""
        ...

    async def hybrid(self, project: str, query: Hybrid, limit_each: int, where: Where = ANYWHERE) -> list[Match]:
        """What any of the searches has among its first ``limit_each``, best first; with its cosine to ``query.dense`` and its vector."""
        ...

    async def exemplars(self, project: str, limit: int) -> list[Exemplar]:
        """The project's exemplars in no particular order, ``limit`` at most: what word statistics are made anew from."""
        ...

    async def spread(self, project: str, tokens: Sequence[str]) -> Mapping[str, frozenset[str]]:
        """For each token, the reports of the project in which it occurs (at most SPREAD_MAX of them)."""
        ...

    async def assign(self, exemplars: Sequence[Exemplar]) -> None:
        """Write the exemplars' ``report_id`` to their points, vectors untouched; those without a point are left out. Durable."""
        ...

    async def move(self, project: str, from_report_id: str, to_report_id: str) -> None:
        """Write another report to all points of a report. Durable."""
        ...

    async def missing(self, point_ids: Sequence[str]) -> set[str]:
        """Which of the points are not in the index."""
        ...

    async def count(self, project: str | None = None) -> int:
        """How many points there are, in one project or in all."""
        ...

    async def close(self) -> None: ...


SPREAD_MAX = 64  # a name that occurs in 64 reports is common, whatever the size of the project
