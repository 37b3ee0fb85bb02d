"""Points as columns: the cosines of one vector to all of them in one pass, and any number of searches as masks over these.

Used for what is in memory of the embedded index, and for the newcomers of a batch that are not stored yet.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from loopwright_cluster.ports import Where

Floats = npt.NDArray[np.float32]

ROWS_FIRST = 256
BLOCK_ROWS = 4_096  # 6 MB of vectors
PASS_ROWS = 64  # stay in a core's cache while several vectors are multiplied with them; BLOCK_ROWS is a multiple
ASKED_REMEMBERED_MAX = 8
HEAD_ROWS = 256
POINT_BYTES = 350  # of a point beside its vector: its id, its place, four columns, its place among those of its report
NORMALISED_WITHIN = 1e-6  # of the squared length; what is as near to one is left as it is, as the engine does


def unit(vectors: Floats) -> Floats:
    """The vectors at unit length, as the engine keeps them: those that have it already to the last bit, and zeros, are unchanged."""
    squared = np.einsum("...i,...i->...", vectors, vectors)
    change = (np.abs(squared - 1.0) > NORMALISED_WITHIN) & (squared > np.finfo(np.float32).eps)
    if not change.any():
        return vectors
    return (vectors / np.where(change, np.sqrt(squared), np.float32(1.0))[..., None]).astype(np.float32)


class Columns:
    """One project's points. Rows are never removed, only written over, so a row number holds for good. Not thread-safe.

    The vectors lie in blocks: growing copies none of them, and of a block's memory the system gives what was written to.
    """

    def __init__(self, dimensions: int) -> None:
        self._dimensions = dimensions
        self._blocks: list[Floats] = []
        self._codes = np.zeros((3, ROWS_FIRST), np.int64)  # hashes of report, kind and service
        self._occurred_at = np.zeros(ROWS_FIRST, np.float64)
        self._head: tuple[Floats | None, npt.NDArray[np.int64]] = (None, np.zeros(0, np.int64))  # of the scores that were asked about last
        self.count = 0
        self.complete = False
        self._asked: OrderedDict[bytes, Floats] = OrderedDict()  # the products of a vector with the first so many points
        self.ids: list[str] = []
        self.rows: dict[str, int] = {}
        self._of_report: dict[int, list[int]] = {}  # by the report's hash: each newcomer asks for the points of some ten reports

    def bytes_with(self, more: int) -> int:
        """About the memory it takes with so many more points."""
        return (self.count + more) * (self._dimensions * 4 + POINT_BYTES)

    def _row(self, point: str) -> int:
        row = self.rows.get(point)
        if row is not None:
            self._asked.clear()  # its vector may become another
            return row
        row = self.rows[point] = self.count
        self.ids.append(point)
        self.count += 1
        if row == len(self._blocks) * BLOCK_ROWS:
            self._blocks.append(np.zeros((BLOCK_ROWS, self._dimensions), np.float32))
        if row == len(self._occurred_at):
            more = row // 4
            self._codes = np.pad(self._codes, ((0, 0), (0, more)))
            self._occurred_at = np.pad(self._occurred_at, (0, more))
        return row

    def write(self, point: str, report: str, kind: str, service: str, occurred_at: float, vector: Floats) -> None:
        """Store or replace a point; ``vector`` is of unit length."""
        known = point in self.rows
        row = self._row(point)
        self._blocks[row // BLOCK_ROWS][row % BLOCK_ROWS] = vector
        if known:
            self._of_report[int(self._codes[0, row])].remove(row)
        self._of_report.setdefault(hash(report), []).append(row)
        self._codes[:, row] = hash(report), hash(kind), hash(service)
        self._occurred_at[row] = occurred_at

    def assign(self, point: str, report: str) -> None:
        """Write another report to a point, if it is there."""
        row = self.rows.get(point)
        if row is not None:
            self._of_report[int(self._codes[0, row])].remove(row)
            self._of_report.setdefault(hash(report), []).append(row)
            self._codes[0, row] = hash(report)

    def move(self, from_report: str, to_report: str) -> None:
        """Write another report to all points of a report."""
        rows = self._of_report.pop(hash(from_report), [])
        self._codes[0, rows] = hash(to_report)
        self._of_report.setdefault(hash(to_report), []).extend(rows)

    def scores(self, vector: Floats) -> Floats:
        """The cosines to all points, by row; remembered for the vectors that were asked last.

        A row's product is the same to the last bit wherever it stands, and the same as ``vector @ other``; a matrix product's is not,
        and with two threads of BLAS it takes 8 ms instead of .3.
        """
        key = vector.tobytes()
        known = self._asked.get(key)
        if known is not None and len(known) == self.count:
            return known
        found = np.empty(self.count, np.float32)
        at = 0 if known is None else len(known)
        if known is not None:
            found[:at] = known
        while at < self.count:
            block, start = divmod(at, BLOCK_ROWS)
            rows = min(BLOCK_ROWS - start, self.count - at)
            np.vecdot(self._blocks[block][start : start + rows], vector, out=found[at : at + rows])
            at += rows
        self._remember(key, found)
        return found

    def foresee(self, vectors: Floats) -> None:
        """Remember the cosines of several vectors [at most ASKED_REMEMBERED_MAX, dimensions]: they are going to be asked for.

        One pass over the points for all of them takes half the time of a pass for each, and leaves the other threads their share of the
        memory's. The products are the same to the last bit.
        """
        vectors = np.ascontiguousarray(vectors[:ASKED_REMEMBERED_MAX])
        found = np.empty((len(vectors), self.count), np.float32)
        for at in range(0, self.count, PASS_ROWS):
            block, start = divmod(at, BLOCK_ROWS)
            rows = min(PASS_ROWS, self.count - at)
            np.vecdot(self._blocks[block][None, start : start + rows], vectors[:, None, :], out=found[:, at : at + rows])
        for vector, products in zip(vectors, found, strict=True):
            self._remember(vector.tobytes(), products)

    def _remember(self, key: bytes, products: Floats) -> None:
        self._asked[key] = products
        self._asked.move_to_end(key)
        while len(self._asked) > ASKED_REMEMBERED_MAX:
            self._asked.popitem(last=False)

    def vectors(self, rows: Sequence[int]) -> Floats:
        """Copies of these rows' vectors [len(rows), dimensions]."""
        found = np.empty((len(rows), self._dimensions), np.float32)
        for at, row in enumerate(rows):
            found[at] = self._blocks[row // BLOCK_ROWS][row % BLOCK_ROWS]
        return found

    def best(self, scores: Floats, limit: int, where: Where) -> list[int]:
        """The rows with the highest scores within the bounds, best first; of equal ones the lowest id first."""
        if where.report_id is not None:
            rows = np.array(self._of_report.get(hash(where.report_id), ()), np.int64)
            return self._first(scores, self._within(where, rows[rows < len(scores)]), limit)
        if limit < HEAD_ROWS and len(scores) > 4 * HEAD_ROWS:
            rows = self._within(where, self._head_of(scores))
            if len(rows) >= limit:  # nothing beyond the head has a score as high
                return self._first(scores, rows, limit)
        return self._first(scores, self._within(where, np.arange(len(scores))), limit)

    def _head_of(self, scores: Floats) -> npt.NDArray[np.int64]:
        """Rows that score higher than all others, fewer than HEAD_ROWS: searches within several bounds begin with them."""
        if self._head[0] is not scores:
            least = np.partition(scores, len(scores) - HEAD_ROWS)[len(scores) - HEAD_ROWS]
            self._head = scores, np.flatnonzero(scores > least)
        return self._head[1]

    def _first(self, scores: Floats, rows: npt.NDArray[np.int64], limit: int) -> list[int]:
        chosen = scores[rows]
        if len(rows) <= limit:
            return sorted(rows.tolist(), key=lambda row: (-scores[row], self.ids[row]))
        least = np.partition(chosen, len(chosen) - limit)[len(chosen) - limit]
        above = sorted(rows[chosen > least].tolist(), key=lambda row: (-scores[row], self.ids[row]))
        return above + heapq.nsmallest(limit - len(above), rows[chosen == least].tolist(), key=self.ids.__getitem__)

    def _within(self, where: Where, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Those of the rows that are within the bounds; the report is not looked at."""
        for column, wanted in ((1, where.kind), (2, where.service)):
            if wanted is not None:
                rows = rows[self._codes[column, rows] == hash(wanted)]
        if where.occurred_from is not None:
            rows = rows[self._occurred_at[rows] >= where.occurred_from]
        if where.occurred_to is not None:
            rows = rows[self._occurred_at[rows] <= where.occurred_to]
        return rows
