"""The vectors of the projects in use, beside the embedded engine: one newcomer's searches are one pass over a matrix.

The engine scans a project anew for each search (1 to 4 ms at 10,000 points, five and more searches for each new fingerprint) and holds the
GIL meanwhile. Here the products of one vector with all others are made once (0.3 ms at 10,000) and every search of that vector is a mask
over them. Whatever changes a point changes the engine first and then, in the same step, these columns; they are never the only copy, and a
project that is not here, or not yet wholly, is answered by the engine.

What it takes: for each point 1.6 KB and its id, and the exemplars that were found last, both within limits.
"""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from loopwright_cluster.columns import Columns, Floats, unit
from loopwright_cluster.domain import Exemplar

Point = tuple[str, str, str, str, float, Floats]  # id, report, kind, service, when it occurred, vector of unit length

EXEMPLAR_BYTES = 4_000  # of an exemplar beside its text and body: names with their weights, frames, the object itself
IN_USE_SECONDS = 60.0  # a project that was asked within it is not pushed out: two that do not both fit would be read again and again


@dataclass
class _Held:
    columns: Columns
    used: float  # when it was asked last, in seconds of the monotonic clock


@dataclass
class Memory:
    """The columns of the projects that were asked last, and the exemplars that were found last, each within its bytes.

    ``lock`` is held by whoever reads or writes; none of the methods takes it.
    """

    dimensions: int
    vector_bytes_max: int
    exemplar_bytes_max: int
    now: Callable[[], float]
    lock: threading.Lock = field(default_factory=threading.Lock)
    _projects: OrderedDict[str, _Held] = field(default_factory=OrderedDict)
    _exemplars: OrderedDict[str, Exemplar] = field(default_factory=OrderedDict)
    _exemplar_bytes: int = 0

    @property
    def bytes(self) -> tuple[int, int]:
        """About what the vectors take, and the exemplars."""
        return sum(held.columns.bytes_with(0) for held in self._projects.values()), self._exemplar_bytes

    def of(self, project: str) -> Columns | None:
        """A project's columns, complete or not."""
        held = self._projects.get(project)
        return held.columns if held is not None else None

    def use(self, project: str) -> Columns | None:
        """A project's columns when they are complete; it is in use from now on."""
        held = self._projects.get(project)
        if held is None:
            return None
        held.used = self.now()
        self._projects.move_to_end(project)
        return held.columns if held.columns.complete else None

    def begin(self, project: str, points: int) -> Columns | None:
        """Empty columns for a project of so many points, to be filled; None when there is no room for it as things are."""
        columns = Columns(self.dimensions)
        if not self._make_room(columns.bytes_with(points), sparing=project):
            return None
        self._projects[project] = _Held(columns, self.now())
        return columns

    def loaded(self, project: str, columns: Columns, points: Sequence[Point]) -> bool:
        """Some of a project's stored points were read; False when its columns were let go meanwhile, or have no room for more."""
        if self.of(project) is not columns or not self._let_grow(project, len(points)):
            return False
        for point in points:
            columns.write(*point)
        return True

    def _let_grow(self, project: str, more: int) -> bool:
        """Whether a project may get so many more points; where not, its columns are let go."""
        held = self._projects.get(project)
        if held is None:
            return False
        columns = held.columns
        if self._make_room(columns.bytes_with(more) - columns.bytes_with(0), sparing=project):
            return True
        del self._projects[project]
        return False

    def _make_room(self, wanted: int, *, sparing: str) -> bool:
        """Let the least recently used go until so many bytes are free; those in use stay, and it is refused."""
        free = self.vector_bytes_max - sum(held.columns.bytes_with(0) for held in self._projects.values())
        idle = [name for name, held in self._projects.items() if name != sparing and self.now() - held.used > IN_USE_SECONDS]
        going = []
        for name in idle:
            if free >= wanted:
                break
            free += self._projects[name].columns.bytes_with(0)
            going.append(name)
        if free < wanted:
            return False
        for name in going:
            del self._projects[name]
        return True

    def let_go_unfinished(self, project: str) -> None:
        """Columns that nobody fills any more."""
        held = self._projects.get(project)
        if held is not None and not held.columns.complete:
            del self._projects[project]

    def forget(self, projects: Set[str]) -> None:
        """What is known of these projects may be wrong."""
        for name in projects:
            self._projects.pop(name, None)
        for point in [point for point, item in self._exemplars.items() if item.project in projects]:
            self._drop(point)

    def wrote(self, exemplars: Sequence[Exemplar], vectors: Floats) -> None:
        """These points were stored or replaced; ``vectors`` as they were given to the engine."""
        more: dict[str, int] = {}
        for item in exemplars:
            more[item.project] = more.get(item.project, 0) + 1
        columns = {project: self._projects[project].columns for project, count in more.items() if self._let_grow(project, count)}
        for item, vector in zip(exemplars, unit(vectors), strict=True):
            if item.project in columns:
                columns[item.project].write(item.point_id, item.report_id, item.kind, item.service, item.occurred_at, vector)
        # As they would be read back: what iterates over the names comes by them in one order.
        self.keep([replace(item, anchors=dict(sorted(item.anchors.items()))) for item in exemplars])

    def assigned(self, exemplars: Sequence[Exemplar]) -> None:
        """These points belong to other reports now."""
        for item in exemplars:
            held, known = self._projects.get(item.project), self._exemplars.get(item.point_id)
            if held is not None:
                held.columns.assign(item.point_id, item.report_id)
            if known is not None:
                self._exemplars[item.point_id] = known.in_report(item.report_id)

    def moved(self, project: str, from_report: str, to_report: str) -> None:
        """All points of a report belong to another now."""
        held = self._projects.get(project)
        if held is not None:
            held.columns.move(from_report, to_report)
        for point, item in self._exemplars.items():
            if item.project == project and item.report_id == from_report:
                self._exemplars[point] = item.in_report(to_report)

    def keep(self, exemplars: Sequence[Exemplar]) -> None:
        """Remember exemplars as they are stored."""
        for item in exemplars:
            point = item.point_id
            self._drop(point)
            self._exemplars[point] = item
            self._exemplar_bytes += _size(item)
        while self._exemplar_bytes > self.exemplar_bytes_max and self._exemplars:
            self._exemplar_bytes -= _size(self._exemplars.popitem(last=False)[1])

    def _drop(self, point: str) -> None:
        gone = self._exemplars.pop(point, None)
        if gone is not None:
            self._exemplar_bytes -= _size(gone)

    def exemplars(self, points: Sequence[str]) -> Mapping[str, Exemplar]:
        """Those of the points that are remembered."""
        found = {}
        for point in points:
            item = self._exemplars.get(point)
            if item is not None:
                self._exemplars.move_to_end(point)
                found[point] = item
        return found


def _size(item: Exemplar) -> int:
    return EXEMPLAR_BYTES + sys.getsizeof(item.text) + sys.getsizeof(item.body)
