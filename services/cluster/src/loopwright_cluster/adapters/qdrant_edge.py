"""The vector index inside this process: Qdrant's own engine as a library (`qdrant-edge-py`), for one machine.

The engine holds the GIL while it works and must not be entered twice at once, so every call goes through one thread. Searches are exact
scans (15 ms at 100,000 vectors); `optimize()` is never called, as it blocks everything for seconds. `flush()` ends every write: without it
a power loss takes all points since the last one.
"""

from __future__ import annotations

import asyncio
import fcntl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import qdrant_edge as engine
import structlog
from loopwright_common.errors import Permanent

from loopwright_cluster.adapters.memory import Memory, Point
from loopwright_cluster.adapters.spread import Spread
from loopwright_cluster.columns import Columns, unit
from loopwright_cluster.domain import Exemplar, Match
from loopwright_cluster.grouping.lexicon import Sparse
from loopwright_cluster.ports import ANYWHERE, SPREAD_MAX, Hybrid, Near, Vectors, Where, sparse_of

VECTOR_NAME = "dense"
SPARSE_NAME = "words"
LAYOUT = "shard-hybrid"  # another name with every change of what a point holds: the new folder is filled from the fingerprint records
SCROLL_PAGE = 1_000
KEYWORD_FIELDS = ("project", "report", "kind", "service", "tokens")
# Far above what a shard holds (in KB): no HNSW graph is ever due, since exact scans are quick enough and give the same answer every time.
INDEXING_THRESHOLD_KB = 1_000_000_000
# Of all projects together. 256 MB hold the vectors of 105,000 reports and 10,000 exemplars; what is beyond, the engine answers.
MEMORY_BYTES_MAX = 256 * 1024**2
VECTORS_SHARE_PERCENT = 75  # the rest is for exemplars
SPREAD_LOOKED_AT = 4 * SPREAD_MAX
COMPUTED_HERE_MAX = 20_000  # points; a pass over so many takes less than a millisecond, over more it is made in a thread
LOADED_AT_ONCE = 100  # points, 4 ms of the engine's thread
LOADED_FIELDS = ["report", "kind", "service", "occurred_at"]
REFUSED_SECONDS = 60.0  # until a project that found no room is tried again

T = TypeVar("T")
log = structlog.get_logger(__name__)


class IndexInUse(Permanent):
    """Another process has the folder open."""


class QdrantEdgeIndex:
    """The `VectorIndex` port on a folder. One process may have it open; a second is refused with IndexInUse."""

    def __init__(
        self, folder: Path, dimensions: int, *, memory_bytes_max: int = MEMORY_BYTES_MAX, now: Callable[[], float] = time.monotonic
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = (folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise IndexInUse(f"{folder} is open in another process; stop it, or use a Qdrant server for more than one replica") from error
        self._now = now
        vectors = memory_bytes_max * VECTORS_SHARE_PERCENT // 100
        self._memory = Memory(dimensions, vectors, memory_bytes_max - vectors, now)
        self._spread = Spread()  # under the memory's lock, like all that is remembered
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._refused: dict[str, float] = {}  # projects that are too large for the memory as things are, and when that was seen
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="qdrant-edge")
        try:
            self._shard = self._thread.submit(_open, folder / LAYOUT, dimensions).result()
        except BaseException:
            self._thread.shutdown()
            self._lock.close()
            raise

    async def upsert(self, exemplars: Sequence[Exemplar], vectors: Vectors) -> None:
        points = [
            engine.Point(exemplar.point_id, {VECTOR_NAME: row.tolist(), SPARSE_NAME: _sparse(sparse_of(exemplar))}, exemplar.to_payload())
            for exemplar, row in zip(exemplars, vectors, strict=True)
        ]
        if not points:
            return

        ids = [exemplar.point_id for exemplar in exemplars]

        def write() -> None:
            there = {str(record.id) for record in self._shard.retrieve(list(ids), with_payload=False, with_vector=False)}
            twice = {point_id for point_id in ids if ids.count(point_id) > 1} if len(set(ids)) < len(ids) else set()
            with self._memory.lock:
                self._spread.forget({item.project for item in exemplars if item.point_id in there | twice})
            with self._all_or_forgotten({item.project for item in exemplars}):
                self._shard.update(engine.UpdateOperation.upsert_points(points))
                self._shard.flush()
            with self._memory.lock:
                self._memory.wrote(exemplars, vectors)
                for item in exemplars:
                    if item.point_id not in twice:
                        self._spread.wrote(item.project, item.report_id, item.anchors)

        await self._call(write)

    async def nearest(self, project: str, vector: npt.NDArray[np.float32], limit: int, where: Where = ANYWHERE) -> list[Match]:
        return (await self.search(project, vector, [Near(limit, where)]))[0]

    async def search(self, project: str, vector: npt.NDArray[np.float32], asked: Sequence[Near]) -> list[list[Match]]:
        if not self._in_memory(project):
            return await self._search_engine(project, vector, asked)
        found = await self._compute(project, lambda columns: _best_of_each(columns, vector, asked))
        return await self._matches(found) if found is not None else await self._search_engine(project, vector, asked)

    async def foresee(self, project: str, vectors: Vectors) -> None:
        if self._in_memory(project):
            await self._compute(project, lambda columns: columns.foresee(unit(vectors)))

    async def _search_engine(self, project: str, vector: npt.NDArray[np.float32], asked: Sequence[Near]) -> list[list[Match]]:
        requests = [
            engine.QueryRequest(
                limit=near.limit,
                query=engine.Query.Nearest(vector.tolist(), using=VECTOR_NAME),
                filter=_filter(project, near.where),
                with_payload=True,
                params=engine.SearchParams(exact=True),
            )
            for near in asked
        ]
        answers = await self._call(lambda: [self._shard.query(request) for request in requests])
        return [[Match(Exemplar.from_payload(point.payload or {}), round(point.score, 4)) for point in points] for points in answers]

    async def hybrid(self, project: str, query: Hybrid, limit_each: int, where: Where = ANYWHERE) -> list[Match]:
        if not self._in_memory(project):
            return await self._hybrid_engine(project, query, limit_each, where)
        chosen = _filter(project, where)
        by_words = [
            engine.QueryRequest(limit=limit_each, query=engine.Query.Nearest(_sparse(words), using=SPARSE_NAME), filter=chosen)
            for words in query.sparse
            if words
        ]
        limit = limit_each * (1 + len(by_words))
        named: Set[str] = set()
        if by_words:
            named = await self._call(lambda: {str(point.id) for request in by_words for point in self._shard.query(request)})
        found = await self._compute(project, lambda columns: _with_named(columns, query.dense, Near(limit_each, where), named, limit))
        if found is None:
            return await self._hybrid_engine(project, query, limit_each, where)
        scored, vectors = found
        return [Match(one.exemplar, one.similarity, vectors[one.exemplar.point_id]) for one in (await self._matches([scored]))[0]]

    async def _hybrid_engine(self, project: str, query: Hybrid, limit_each: int, where: Where = ANYWHERE) -> list[Match]:
        chosen, exact = _filter(project, where), engine.SearchParams(exact=True)
        near = engine.Query.Nearest(query.dense.tolist(), using=VECTOR_NAME)
        found = [engine.Prefetch(limit_each, query=near, params=exact, filter=chosen)]
        found += [
            engine.Prefetch(limit_each, query=engine.Query.Nearest(_sparse(words), using=SPARSE_NAME), filter=chosen)
            for words in query.sparse
            if words
        ]
        # Fused by the vectors themselves: everything that one of the searches found, with its cosine, which the matcher wants anyway.
        request = engine.QueryRequest(
            limit=limit_each * len(found), query=near, prefetches=found, with_payload=True, with_vector=[VECTOR_NAME], params=exact
        )
        points = await self._call(lambda: self._shard.query(request))
        return [Match(Exemplar.from_payload(point.payload or {}), round(point.score, 4), _vector(point)) for point in points]

    async def exemplars(self, project: str, limit: int) -> list[Exemplar]:
        chosen = engine.Filter(must=[_is("project", project)])

        def read() -> list[Exemplar]:
            found: list[Exemplar] = []
            offset = None
            while len(found) < limit:
                request = engine.ScrollRequest(limit=min(SCROLL_PAGE, limit - len(found)), offset=offset, filter=chosen, with_payload=True)
                points, offset = self._shard.scroll(request)
                found += [Exemplar.from_payload(point.payload or {}) for point in points]
                if offset is None:
                    break
            return found

        return await self._call(read)

    async def spread(self, project: str, tokens: Sequence[str]) -> Mapping[str, frozenset[str]]:
        with self._memory.lock:
            known, asked = self._spread.split(project, tokens)
        if not asked:
            return known

        def collect() -> dict[str, frozenset[str]]:
            with self._memory.lock:
                known, asked = self._spread.split(project, tokens)
            found = dict(known)
            for token in asked:
                found[token] = self._reports_with(project, token)
                with self._memory.lock:
                    self._spread.learn(project, token, found[token])
            return found

        return await self._call(collect)

    def _reports_with(self, project: str, token: str) -> frozenset[str]:
        """The reports in which a name occurs, or SPREAD_MAX of them. Called in the engine's thread."""
        chosen = engine.Filter(must=[_is("project", project), _is("tokens", token)])
        # Counting by report goes over all points that have the name: 250 ms where 30,000 have it. Most often a few of them say enough.
        some = engine.ScrollRequest(limit=SPREAD_LOOKED_AT, filter=chosen, with_payload=["report"], with_vector=False)
        records, following = self._shard.scroll(some)
        found = sorted({str((record.payload or {})["report"]) for record in records})
        if following is None or len(found) >= SPREAD_MAX:
            return frozenset(found[:SPREAD_MAX])
        every = engine.FacetRequest("report", limit=SPREAD_MAX, exact=True, filter=chosen)
        return frozenset(str(hit.value) for hit in self._shard.facet(every).hits)

    async def assign(self, exemplars: Sequence[Exemplar]) -> None:
        absent = await self.missing([exemplar.point_id for exemplar in exemplars])
        present = [exemplar for exemplar in exemplars if exemplar.point_id not in absent]
        operations = [engine.UpdateOperation.set_payload([item.point_id], {"report": item.report_id}) for item in present]
        if operations:
            await self._write(operations, {exemplar.project for exemplar in present}, lambda: self._memory.assigned(present))

    async def move(self, project: str, from_report_id: str, to_report_id: str) -> None:
        chosen = _filter(project, Where(report_id=from_report_id))
        operation = engine.UpdateOperation.set_payload_by_filter(chosen, {"report": to_report_id})
        await self._write([operation], {project}, lambda: self._memory.moved(project, from_report_id, to_report_id))

    async def missing(self, point_ids: Sequence[str]) -> set[str]:
        records = await self._call(lambda: self._shard.retrieve(list(point_ids), with_payload=False, with_vector=False))
        return set(point_ids) - {str(record.id) for record in records}

    async def count(self, project: str | None = None) -> int:
        if project is not None:
            with self._memory.lock:
                columns = self._memory.use(project)
                if columns is not None:
                    return columns.count
        chosen = engine.Filter(must=[_is("project", project)]) if project is not None else None
        return await self._call(lambda: self._shard.count(engine.CountRequest(exact=True, filter=chosen)))

    async def close(self) -> None:
        def close() -> None:
            self._shard.flush()
            self._shard.close()

        loading = list(self._loading.values())
        for task in loading:
            task.cancel()
        await asyncio.gather(*loading, return_exceptions=True)
        await self._call(close)
        await asyncio.to_thread(self._thread.shutdown)
        self._lock.close()

    @property
    def remembered_bytes(self) -> tuple[int, int]:
        """About the memory that vectors take, and exemplars."""
        with self._memory.lock:
            return self._memory.bytes

    async def in_memory(self, project: str) -> bool:
        """Whether the project's searches are answered from memory; begins to read it when it is not there, and waits for that."""
        found = self._in_memory(project)
        if project in self._loading:
            await asyncio.wait([self._loading[project]])
        return found or self._in_memory(project)

    def _in_memory(self, project: str) -> bool:
        """Whether the project is in memory; where not, reading it begins, unless that was refused a moment ago."""
        with self._memory.lock:
            if self._memory.use(project) is not None:
                return True
        if project not in self._loading and self._refused.get(project, -inf) < self._now() - REFUSED_SECONDS:
            self._refused.pop(project, None)
            task = asyncio.create_task(self._load(project), name=f"vectors of {project}")
            self._loading[project] = task
            task.add_done_callback(lambda _: self._loading.pop(project, None))
        return False

    async def _load(self, project: str) -> None:
        """Read a project's vectors into memory, a little at a time: other calls come in between."""
        chosen = engine.Filter(must=[_is("project", project)])

        def begin() -> Columns | None:
            points = self._shard.count(engine.CountRequest(exact=True, filter=chosen))
            with self._memory.lock:
                return self._memory.begin(project, points)

        def page(columns: Columns, offset: Any) -> tuple[bool, Any]:
            request = engine.ScrollRequest(
                limit=LOADED_AT_ONCE, offset=offset, filter=chosen, with_payload=LOADED_FIELDS, with_vector=[VECTOR_NAME]
            )
            records, following = self._shard.scroll(request)
            points = [_point(record) for record in records]
            with self._memory.lock:
                fits = self._memory.loaded(project, columns, points)
                columns.complete = fits and following is None
            return fits, following

        try:
            columns, offset = await self._call(begin), None
            while columns is not None and not columns.complete:
                fits, offset = await self._call(partial(page, columns, offset))
                columns = columns if fits else None
        except Exception as error:
            columns = None
            log.warning("vectors_not_in_memory", project=project, error=str(error), remedy="the embedded engine answers instead")
        finally:
            with self._memory.lock:
                self._memory.let_go_unfinished(project)
        if columns is None:
            self._refused[project] = self._now()

    async def _compute(self, project: str, work: Callable[[Columns], T]) -> T | None:
        """The work's result on the project's columns, in a thread where it may take long; None when they are there no more."""

        def locked() -> T | None:
            with self._memory.lock:
                columns = self._memory.use(project)
                return work(columns) if columns is not None else None

        if self._memory.lock.acquire(blocking=False):
            try:
                columns = self._memory.use(project)
                if columns is None:
                    return None
                if columns.count <= COMPUTED_HERE_MAX:
                    return work(columns)
            finally:
                self._memory.lock.release()
        return await asyncio.to_thread(locked)

    async def _matches(self, found: Sequence[Sequence[tuple[str, float]]]) -> list[list[Match]]:
        """The exemplars of the points that were found, from memory or else from the engine."""
        points = list(dict.fromkeys(point for scored in found for point, _ in scored))
        with self._memory.lock:
            known = dict(self._memory.exemplars(points))
        absent = [point for point in points if point not in known]

        def read() -> dict[str, Exemplar]:
            records = self._shard.retrieve(list(absent), with_payload=True, with_vector=False)
            exemplars = {str(record.id): Exemplar.from_payload(record.payload or {}) for record in records}
            with self._memory.lock:
                self._memory.keep(list(exemplars.values()))
            return exemplars

        if absent:
            known |= await self._call(read)
        return [[Match(known[point], round(score, 4)) for point, score in scored if point in known] for scored in found]

    async def _write(self, operations: Sequence[Any], projects: Set[str], remember: Callable[[], None]) -> None:
        def write() -> None:
            with self._memory.lock:
                self._spread.forget(projects)
            with self._all_or_forgotten(projects):
                for operation in operations:
                    self._shard.update(operation)
                self._shard.flush()
            with self._memory.lock:
                remember()

        await self._call(write)

    @contextmanager
    def _all_or_forgotten(self, projects: Set[str]) -> Iterator[None]:
        """A write that failed may have been done in part: nothing that is remembered of the projects holds then."""
        try:
            yield
        except BaseException:
            self._forget(projects)
            raise

    def _forget(self, projects: Set[str]) -> None:
        with self._memory.lock:
            self._memory.forget(projects)
            self._spread.forget(projects)

    async def _call(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def _best_of_each(columns: Columns, vector: npt.NDArray[np.float32], asked: Sequence[Near]) -> list[list[tuple[str, float]]]:
    scores = columns.scores(unit(vector))
    return [[(columns.ids[row], float(scores[row])) for row in columns.best(scores, near.limit, near.where)] for near in asked]


def _with_named(
    columns: Columns, vector: npt.NDArray[np.float32], near: Near, named: Set[str], limit: int
) -> tuple[list[tuple[str, float]], dict[str, npt.NDArray[np.float32]]]:
    """The nearest points and the named ones, best first, and their vectors."""
    scores = columns.scores(unit(vector))
    rows = list({*columns.best(scores, near.limit, near.where), *(columns.rows[point] for point in named if point in columns.rows)})
    scored = [(columns.ids[row], float(scores[row])) for row in rows]
    vectors = dict(zip((columns.ids[row] for row in rows), columns.vectors(rows), strict=True))
    return sorted(scored, key=lambda item: (-item[1], item[0]))[:limit], vectors


def _point(record: Any) -> Point:
    payload = record.payload
    return str(record.id), payload["report"], payload["kind"], payload["service"], float(payload["occurred_at"]), _vector(record)


def _vector(record: Any) -> npt.NDArray[np.float32]:
    return np.array(record.vector[VECTOR_NAME], np.float32)


def _open(folder: Path, dimensions: int) -> engine.EdgeShard:
    config = engine.EdgeConfig(
        vectors={VECTOR_NAME: engine.EdgeVectorParams(size=dimensions, distance=engine.Distance.Cosine)},
        sparse_vectors={SPARSE_NAME: engine.EdgeSparseVectorParams()},
        optimizers=engine.EdgeOptimizersConfig(indexing_threshold=INDEXING_THRESHOLD_KB),
        max_search_threads=1,  # one project's decisions come one after another; more threads would take cores from the other services
    )
    if (folder / "segments").exists():
        try:
            return engine.EdgeShard.load(str(folder), config)
        except Exception as error:
            # Half made when the power went, or of another engine version. The fingerprint map holds all that is needed to fill a new one.
            aside = folder.with_name(f"{folder.name}.unreadable-{time.time_ns()}")
            log.warning("vector_index_unreadable", folder=str(folder), kept_as=str(aside), error=str(error))
            folder.rename(aside)
    folder.mkdir(parents=True, exist_ok=True)
    shard = engine.EdgeShard.create(str(folder), config)
    for name in KEYWORD_FIELDS:
        shard.update(engine.UpdateOperation.create_field_index(name, engine.PayloadSchemaType.Keyword))
    shard.update(engine.UpdateOperation.create_field_index("occurred_at", engine.PayloadSchemaType.Float))
    shard.flush()
    return shard


def _sparse(words: Sparse) -> Any:
    return engine.SparseVector(list(words), list(words.values()))


def _is(key: str, value: str) -> engine.FieldCondition:
    return engine.FieldCondition(key, match=engine.MatchValue(value))


def _filter(project: str, where: Where) -> engine.Filter:
    wanted = {"report": where.report_id, "kind": where.kind, "service": where.service}
    conditions: list[Any] = [_is("project", project)]
    conditions += [_is(key, value) for key, value in wanted.items() if value is not None]
    if where.occurred_from is not None or where.occurred_to is not None:
        window = engine.RangeFloat(gte=where.occurred_from, lte=where.occurred_to)
        conditions.append(engine.FieldCondition("occurred_at", range=window))
    return engine.Filter(must=conditions)
