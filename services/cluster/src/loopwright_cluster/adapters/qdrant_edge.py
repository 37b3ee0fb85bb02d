"""The vector index inside this process: Qdrant's own engine as a library (`qdrant-edge-py`), for one machine.

The engine holds the GIL while it works and must not be entered twice at once, so every call goes through one thread. Searches are exact
scans (15 ms at 100,000 vectors); `optimize()` is never called, as it blocks everything for seconds. `flush()` ends every write: without it
a power loss takes all points since the last one.
"""

from __future__ import annotations

import asyncio
import fcntl
import time
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import qdrant_edge as engine
import structlog
from loopwright_common.errors import Permanent

from loopwright_cluster.adapters.spread import Spread
from loopwright_cluster.domain import Exemplar, Match
from loopwright_cluster.grouping.lexicon import Sparse
from loopwright_cluster.ports import ANYWHERE, SPREAD_MAX, Hybrid, Vectors, Where, sparse_of

VECTOR_NAME = "dense"
SPARSE_NAME = "words"
LAYOUT = "shard-hybrid"  # another name with every change of what a point holds: the new folder is filled from the fingerprint records
SCROLL_PAGE = 1_000
KEYWORD_FIELDS = ("project", "report", "kind", "service", "tokens")
# Far above what a shard holds (in KB): no HNSW graph is ever due, since exact scans are quick enough and give the same answer every time.
INDEXING_THRESHOLD_KB = 1_000_000_000

T = TypeVar("T")
log = structlog.get_logger(__name__)


class IndexInUse(Permanent):
    """Another process has the folder open."""


class QdrantEdgeIndex:
    """The `VectorIndex` port on a folder. One process may have it open; a second is refused with IndexInUse."""

    def __init__(self, folder: Path, dimensions: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = (folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise IndexInUse(f"{folder} is open in another process; stop it, or use a Qdrant server for more than one replica") from error
        self._spread = Spread()  # touched by the one thread only
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
            self._spread.forget({item.project for item in exemplars if item.point_id in there | twice})
            try:
                self._shard.update(engine.UpdateOperation.upsert_points(points))
                self._shard.flush()
            except BaseException:
                self._spread.forget({item.project for item in exemplars})  # some of it may be there
                raise
            for item in exemplars:
                if item.point_id not in twice:
                    self._spread.wrote(item.project, item.report_id, item.anchors)

        await self._call(write)

    async def nearest(self, project: str, vector: npt.NDArray[np.float32], limit: int, where: Where = ANYWHERE) -> list[Match]:
        request = engine.QueryRequest(
            limit=limit,
            query=engine.Query.Nearest(vector.tolist(), using=VECTOR_NAME),
            filter=_filter(project, where),
            with_payload=True,
            params=engine.SearchParams(exact=True),
        )
        points = await self._call(lambda: self._shard.query(request))
        return [Match(Exemplar.from_payload(point.payload or {}), round(point.score, 4)) for point in points]

    async def hybrid(self, project: str, query: Hybrid, limit_each: int, where: Where = ANYWHERE) -> list[Match]:
        chosen, exact = _filter(project, where), engine.SearchParams(exact=True)
        near = engine.Query.Nearest(query.dense.tolist(), using=VECTOR_NAME)
        found = [engine.Prefetch(limit_each, query=near, params=exact, filter=chosen)]
        found += [
            engine.Prefetch(limit_each, query=engine.Query.Nearest(_sparse(words), using=SPARSE_NAME), filter=chosen)
            for words in query.sparse
            if words
        ]
        # Fused by the vectors themselves: everything that one of the searches found, with its cosine, which the matcher wants anyway.
        request = engine.QueryRequest(limit=limit_each * len(found), query=near, prefetches=found, with_payload=True, params=exact)
        points = await self._call(lambda: self._shard.query(request))
        return [Match(Exemplar.from_payload(point.payload or {}), round(point.score, 4)) for point in points]

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
        def collect() -> dict[str, frozenset[str]]:
            known, asked = self._spread.split(project, tokens)
            found = dict(known)
            for token in asked:
                conditions: list[Any] = [_is("project", project), _is("tokens", token)]
                request = engine.FacetRequest("report", limit=SPREAD_MAX, exact=True, filter=engine.Filter(must=conditions))
                found[token] = frozenset(str(hit.value) for hit in self._shard.facet(request).hits)
                self._spread.learn(project, token, found[token])
            return found

        return await self._call(collect)

    async def assign(self, exemplars: Sequence[Exemplar]) -> None:
        absent = await self.missing([exemplar.point_id for exemplar in exemplars])
        present = [exemplar for exemplar in exemplars if exemplar.point_id not in absent]
        operations = [engine.UpdateOperation.set_payload([item.point_id], {"report": item.report_id}) for item in present]
        if operations:
            await self._write(operations, {exemplar.project for exemplar in present})

    async def move(self, project: str, from_report_id: str, to_report_id: str) -> None:
        chosen = _filter(project, Where(report_id=from_report_id))
        await self._write([engine.UpdateOperation.set_payload_by_filter(chosen, {"report": to_report_id})], {project})

    async def missing(self, point_ids: Sequence[str]) -> set[str]:
        records = await self._call(lambda: self._shard.retrieve(list(point_ids), with_payload=False, with_vector=False))
        return set(point_ids) - {str(record.id) for record in records}

    async def count(self, project: str | None = None) -> int:
        chosen = engine.Filter(must=[_is("project", project)]) if project is not None else None
        return await self._call(lambda: self._shard.count(engine.CountRequest(exact=True, filter=chosen)))

    async def close(self) -> None:
        def close() -> None:
            self._shard.flush()
            self._shard.close()

        await self._call(close)
        await asyncio.to_thread(self._thread.shutdown)
        self._lock.close()

    async def _write(self, operations: Sequence[Any], projects: Set[str]) -> None:
        def write() -> None:
            self._spread.forget(projects)
            for operation in operations:
                self._shard.update(operation)
            self._shard.flush()

        await self._call(write)

    async def _call(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


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
