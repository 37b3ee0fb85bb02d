"""What lies around a newcomer: the index's answers together with the newcomers of the same batch that are not stored yet.

So a batch is decided as if its signals had come one by one, wherever the batch ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence, Set

import numpy as np
import numpy.typing as npt

from loopwright_cluster.columns import Columns
from loopwright_cluster.domain import Exemplar, Match
from loopwright_cluster.grouping.lexicon import Lexicon, Rarity, Sparse, query_by_all, query_by_title
from loopwright_cluster.grouping.v1 import HUMAN_KINDS, HUMAN_WINDOW, Surroundings
from loopwright_cluster.grouping.wording import Wording, wording_of
from loopwright_cluster.ports import SPREAD_MAX, Hybrid, Near, VectorIndex, Where, sparse_of

NEIGHBOURS_MAX = 10  # the right report is in a text's nearest ten in 7 of 10 cases; more candidates mean more wrong ones
IN_WINDOW_MAX = 10  # of the newcomer's own service and time: where signals of other kinds about the same thing are
SAME_KIND_MAX = 3  # per candidate report
SPREAD_TOKENS_MAX = 24  # names whose rarity is asked for

Vector = npt.NDArray[np.float32]
Standing = Callable[[Exemplar], Awaitable[tuple[str, bool]]]
"""The report the matcher counts an exemplar in as things stand (merges followed), and whether people have put that report away."""


class _Newcomers:
    """A project's newcomers of one batch, to be searched as the stored ones are."""

    def __init__(self, newcomers: Iterable[tuple[Exemplar, Vector]]) -> None:
        self._columns: Columns | None = None
        self._exemplars: list[Exemplar] = []
        self._reports: set[str] = set()
        self.speaking_of: dict[str, set[str]] = {}  # name -> the reports in which it occurs
        for exemplar, vector in newcomers:
            self.add(exemplar, vector)

    def add(self, exemplar: Exemplar, vector: Vector) -> None:
        """One that is not here yet."""
        if self._columns is None:
            self._columns = Columns(len(vector))
        self._columns.write(exemplar.point_id, exemplar.report_id, exemplar.kind, exemplar.service, exemplar.occurred_at, vector)
        self._exemplars.append(exemplar)
        self._reports.add(exemplar.report_id)
        for name in exemplar.anchors:
            self.speaking_of.setdefault(name, set()).add(exemplar.report_id)

    def nearest(self, vector: Vector, near: Near) -> list[Match]:
        """The most similar ones, best first."""
        if self._columns is None or (near.where.report_id is not None and near.where.report_id not in self._reports):
            return []
        # Rounded before the cut, so that of those which are shown as equally near the first by id are taken.
        scores = np.rint(self._columns.scores(vector).astype(np.float64) * 10_000)
        rows = self._columns.best(scores, near.limit, near.where)
        vectors = self._columns.vectors(rows)
        return [Match(self._exemplars[row], float(scores[row]) / 10_000, vectors[at]) for at, row in enumerate(rows)]


class Neighbourhood:
    """Answers for one batch. ``add`` makes a newcomer a neighbour of those that come after it."""

    def __init__(self, index: VectorIndex, *, degraded: bool) -> None:
        self._index = index
        self._degraded = degraded
        self._pending: dict[str, tuple[Exemplar, Vector]] = {}
        self._newcomers: dict[str, _Newcomers] = {}  # by project, the same ones; made anew when one was replaced or taken back
        self._rarities: dict[str, Rarity] = {}

    def add(self, exemplar: Exemplar, vector: Vector) -> None:
        """Remember a decided newcomer until it is stored."""
        rarity = self._rarities.get(exemplar.project)
        if rarity is not None and exemplar.kind in HUMAN_KINDS and exemplar.point_id not in self._pending:
            rarity.add(wording_of(exemplar.title, exemplar.body))
        if exemplar.point_id in self._pending:
            self._newcomers.clear()
        elif exemplar.project in self._newcomers:
            self._newcomers[exemplar.project].add(exemplar, vector)
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
        self._newcomers.clear()
        self._rarities.clear()  # made again from what is left, when the next text by a person is judged

    def stored(self) -> None:
        """What was pending is in the index now, and its words are the project's."""
        self._pending.clear()
        self._newcomers.clear()
        self._rarities.clear()

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
        anywhere, in_window = await self._search(newcomer, vector, [Near(NEIGHBOURS_MAX), Near(IN_WINDOW_MAX, nearby)])
        found = {match.exemplar.point_id: match for match in anywhere}
        for match in in_window:
            found.setdefault(match.exemplar.point_id, match)
        stands = _AsItStands(standing)
        neighbours = [await stands.of(match) for match in found.values()]
        reports = sorted({match.exemplar.report_id for match in found.values()})
        own_kind = [Near(SAME_KIND_MAX, Where(report_id=report_id, kind=newcomer.kind)) for report_id in reports]
        searches, spread = await asyncio.gather(self._search(newcomer, vector, own_kind), self._spread(newcomer, neighbours))
        same_kind: dict[str, list[Match]] = {}
        for matches in searches:
            for match in matches:
                current = await stands.of(match)
                same_kind.setdefault(current.exemplar.report_id, []).append(current)
        return Surroundings(neighbours, same_kind, spread, frozenset(stands.quiet), self._degraded)

    async def hybrid(
        self, newcomer: Exemplar, vector: Vector, wording: Wording, rarity: Rarity, limit_each: int, standing: Standing
    ) -> tuple[list[Match], Set[str]]:
        """What people wrote that is like the newcomer in meaning or in words, nearest first, and which of its reports were put away."""
        queries = (query_by_all(wording, rarity), query_by_title(wording, rarity))
        stored = await self._index.hybrid(newcomer.project, Hybrid(vector, queries), limit_each + 1)
        found = {match.exemplar.point_id: match for match in stored}
        for match in self._of_batch(newcomer.project).nearest(vector, Near(len(self._pending))):
            found[match.exemplar.point_id] = match
        found.pop(newcomer.point_id, None)
        if self._pending:
            found = _first_of_each(found, queries, limit_each)
        stands = _AsItStands(standing)
        nearest = sorted(found.values(), key=lambda match: (-match.similarity, match.exemplar.point_id))
        return [await stands.of(match) for match in nearest if match.exemplar.kind in HUMAN_KINDS], stands.quiet

    async def _search(self, newcomer: Exemplar, vector: Vector, asked: Sequence[Near]) -> list[list[Match]]:
        """What is most like the newcomer, itself left out, in each of the searches."""
        with_itself = [Near(near.limit + 1, near.where) for near in asked]
        batch, answers = self._of_batch(newcomer.project), []
        for near, stored in zip(with_itself, await self._index.search(newcomer.project, vector, with_itself), strict=True):
            matches = {match.exemplar.point_id: match for match in stored}
            matches |= {match.exemplar.point_id: match for match in batch.nearest(vector, near)}
            matches.pop(newcomer.point_id, None)
            nearest = sorted(matches.values(), key=lambda match: (-match.similarity, match.exemplar.point_id))
            answers.append(nearest[: near.limit - 1])
        return answers

    def _of_batch(self, project: str) -> _Newcomers:
        newcomers = self._newcomers.get(project)
        if newcomers is None:
            newcomers = _Newcomers(item for item in self._pending.values() if item[0].project == project)
            self._newcomers[project] = newcomers
        return newcomers

    async def _spread(self, newcomer: Exemplar, neighbours: Sequence[Match]) -> dict[str, int]:
        """In how many reports each name occurs that the newcomer shares with a neighbour, those of the batch included."""
        shared: Set[str] = newcomer.anchors.keys() & {name for match in neighbours for name in match.exemplar.anchors}
        names = sorted(shared, key=lambda name: (-newcomer.anchors[name], name))[:SPREAD_TOKENS_MAX]
        reports = {name: set(found) for name, found in (await self._index.spread(newcomer.project, names)).items()}
        speaking_of = self._of_batch(newcomer.project).speaking_of
        for name in names:
            reports[name] |= speaking_of.get(name, set())
        return {name: min(SPREAD_MAX, len(found)) for name, found in reports.items()}


def _first_of_each(found: dict[str, Match], queries: Sequence[Sparse], limit: int) -> dict[str, Match]:
    """Those that one search would have returned, had all of them been stored: so a decision does not depend on where a batch began."""
    kept = set(sorted(found, key=lambda point: (-found[point].similarity, point))[:limit])
    vectors = {point: sparse_of(match.exemplar) for point, match in found.items()}
    for query in queries:
        scores = {point: sum(weight * vector.get(index, 0.0) for index, weight in query.items()) for point, vector in vectors.items()}
        kept.update(point for point in sorted(scores, key=lambda point: (-scores[point], point))[:limit] if scores[point] > 0)
    return {point: found[point] for point in kept}


class _AsItStands:
    """Matches in their reports as things stand, each report looked up once. ``quiet``: those that people have put away."""

    def __init__(self, standing: Standing) -> None:
        self._standing = standing
        self._known: dict[str, str] = {}
        self.quiet: set[str] = set()

    async def of(self, match: Match) -> Match:
        filed = match.exemplar.report_id
        if filed not in self._known:
            self._known[filed], put_away = await self._standing(match.exemplar)
            if put_away:
                self.quiet.add(self._known[filed])
        report_id = self._known[filed]
        return match.in_report(report_id)
