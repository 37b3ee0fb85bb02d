"""What lies around a newcomer: the index's answers together with the newcomers of the same batch that are not stored yet.

So a batch is decided as if its signals had come one by one, wherever the batch ends.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence, Set

import numpy as np
import numpy.typing as npt

from loopwright_cluster.domain import Exemplar, Match
from loopwright_cluster.grouping.lexicon import Lexicon, Rarity, Sparse, query_by_all, query_by_title
from loopwright_cluster.grouping.v1 import HUMAN_KINDS, HUMAN_WINDOW, Surroundings
from loopwright_cluster.grouping.wording import Wording, wording_of
from loopwright_cluster.ports import ANYWHERE, SPREAD_MAX, Hybrid, VectorIndex, Where, sparse_of

NEIGHBOURS_MAX = 10  # the right report is in a text's nearest ten in 7 of 10 cases; more candidates mean more wrong ones
IN_WINDOW_MAX = 10  # of the newcomer's own service and time: where signals of other kinds about the same thing are
SAME_KIND_MAX = 3  # per candidate report
SPREAD_TOKENS_MAX = 24  # names whose rarity is asked for

Vector = npt.NDArray[np.float32]
Standing = Callable[[Exemplar], Awaitable[tuple[str, bool]]]
"""The report an exemplar belongs to as things stand (merges followed), and whether people have put that report away."""


class Neighbourhood:
    """Answers for one batch. ``add`` makes a newcomer a neighbour of those that come after it."""

    def __init__(self, index: VectorIndex, *, degraded: bool) -> None:
        self._index = index
        self._degraded = degraded
        self._pending: dict[str, tuple[Exemplar, Vector]] = {}
        self._rarities: dict[str, Rarity] = {}

    def add(self, exemplar: Exemplar, vector: Vector) -> None:
        """Remember a decided newcomer until it is stored."""
        rarity = self._rarities.get(exemplar.project)
        if rarity is not None and exemplar.kind in HUMAN_KINDS and exemplar.point_id not in self._pending:
            rarity.add(wording_of(exemplar.title, exemplar.body))
        self._pending[exemplar.point_id] = (exemplar, vector)

    def rarity_of(self, project: str) -> Rarity | None:
        """The project's rarities as of now, those of the batch included; None before ``listen``."""
        return self._rarities.get(project)

    def listen(self, project: str, lexicon: Lexicon) -> Rarity:
        """Count words from now on: the project's stored texts and, as they come, those of this batch."""
        people = [item for item, _ in self._pending.values() if item.project == project and item.kind in HUMAN_KINDS]
        self._rarities[project] = Rarity(lexicon, [wording_of(item.title, item.body) for item in people])
        return self._rarities[project]

    def as_decided(self, exemplar: Exemplar) -> Exemplar:
        """The exemplar as this batch has decided it, where it is one of its newcomers; else as it is."""
        return self._pending.get(exemplar.point_id, (exemplar, None))[0]

    def take_back(self, count: int) -> None:
        """Only the first ``count`` newcomers were decided: the others are going to be decided anew."""
        for point_id in list(self._pending)[count:]:
            del self._pending[point_id]
        self._rarities.clear()  # made again from what is left, when the next text by a person is judged

    @property
    def pending(self) -> list[tuple[Exemplar, Vector]]:
        """The newcomers that were added, in order: what has to be stored."""
        return list(self._pending.values())

    async def around(self, newcomer: Exemplar, vector: Vector, standing: Standing) -> Surroundings:
        """Gather what ``decide`` needs to know about a newcomer; ``standing`` says how its neighbours' reports stand."""
        window = HUMAN_WINDOW.total_seconds()
        nearby = Where(
            service=newcomer.service or None, occurred_from=newcomer.occurred_at - window, occurred_to=newcomer.occurred_at + window
        )
        found = {match.exemplar.point_id: match for match in await self._nearest(newcomer, vector, NEIGHBOURS_MAX, ANYWHERE)}
        for match in await self._nearest(newcomer, vector, IN_WINDOW_MAX, nearby):
            found.setdefault(match.exemplar.point_id, match)
        quiet: set[str] = set()
        neighbours = [await _as_it_stands(match, standing, quiet) for match in found.values()]
        same_kind: dict[str, list[Match]] = {}
        for stored_report_id in sorted({match.exemplar.report_id for match in found.values()}):
            where = Where(report_id=stored_report_id, kind=newcomer.kind)
            for match in await self._nearest(newcomer, vector, SAME_KIND_MAX, where):
                current = await _as_it_stands(match, standing, quiet)
                same_kind.setdefault(current.exemplar.report_id, []).append(current)
        return Surroundings(neighbours, same_kind, await self._spread(newcomer, neighbours), frozenset(quiet), self._degraded)

    async def hybrid(
        self, newcomer: Exemplar, vector: Vector, wording: Wording, rarity: Rarity, limit_each: int, standing: Standing
    ) -> tuple[list[Match], Set[str]]:
        """What people wrote that is like the newcomer in meaning or in words, nearest first, and which of its reports were put away."""
        queries = (query_by_all(wording, rarity), query_by_title(wording, rarity))
        stored = await self._index.hybrid(newcomer.project, Hybrid(vector, queries), limit_each + 1)
        found = {match.exemplar.point_id: match for match in stored}
        for point_id, (exemplar, other) in self._pending.items():
            if exemplar.project == newcomer.project:
                found[point_id] = Match(exemplar, round(float(vector @ other), 4))
        found.pop(newcomer.point_id, None)
        if self._pending:
            found = _first_of_each(found, queries, limit_each)
        quiet: set[str] = set()
        nearest = sorted(found.values(), key=lambda match: (-match.similarity, match.exemplar.point_id))
        return [await _as_it_stands(match, standing, quiet) for match in nearest if match.exemplar.kind in HUMAN_KINDS], quiet

    async def _nearest(self, newcomer: Exemplar, vector: Vector, limit: int, where: Where) -> list[Match]:
        stored = await self._index.nearest(newcomer.project, vector, limit + 1, where)
        matches = {match.exemplar.point_id: match for match in stored}
        for point_id, (exemplar, other) in self._pending.items():
            if exemplar.project == newcomer.project and where.admits(exemplar):
                matches[point_id] = Match(exemplar, round(float(vector @ other), 4))
        matches.pop(newcomer.point_id, None)
        return sorted(matches.values(), key=lambda match: (-match.similarity, match.exemplar.point_id))[:limit]

    async def _spread(self, newcomer: Exemplar, neighbours: Sequence[Match]) -> dict[str, int]:
        """In how many reports each name occurs that the newcomer shares with a neighbour, those of the batch included."""
        shared: Set[str] = newcomer.anchors.keys() & {name for match in neighbours for name in match.exemplar.anchors}
        names = sorted(shared, key=lambda name: (-newcomer.anchors[name], name))[:SPREAD_TOKENS_MAX]
        reports = {name: set(found) for name, found in (await self._index.spread(newcomer.project, names)).items()}
        for exemplar, _ in self._pending.values():
            for name in names if exemplar.project == newcomer.project else ():
                if name in exemplar.anchors:
                    reports[name].add(exemplar.report_id)
        return {name: min(SPREAD_MAX, len(found)) for name, found in reports.items()}


def _first_of_each(found: dict[str, Match], queries: Sequence[Sparse], limit: int) -> dict[str, Match]:
    """Those that one search would have returned, had all of them been stored: so a decision does not depend on where a batch began."""
    kept = set(sorted(found, key=lambda point: (-found[point].similarity, point))[:limit])
    vectors = {point: sparse_of(match.exemplar) for point, match in found.items()}
    for query in queries:
        scores = {point: sum(weight * vector.get(index, 0.0) for index, weight in query.items()) for point, vector in vectors.items()}
        kept.update(point for point in sorted(scores, key=lambda point: (-scores[point], point))[:limit] if scores[point] > 0)
    return {point: found[point] for point in kept}


async def _as_it_stands(match: Match, standing: Standing, quiet: set[str]) -> Match:
    report_id, put_away = await standing(match.exemplar)
    if put_away:
        quiet.add(report_id)
    return Match(match.exemplar.in_report(report_id), match.similarity)
