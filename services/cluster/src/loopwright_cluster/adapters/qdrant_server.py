"""The vector index on a Qdrant server, for a cluster: several replicas, one collection for each embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from loopwright_common.errors import Unavailable
from qdrant_client import AsyncQdrantClient, models
from qdrant_client.http.exceptions import ApiException, ResponseHandlingException

from loopwright_cluster.domain import Exemplar, Match
from loopwright_cluster.grouping.lexicon import Sparse
from loopwright_cluster.ports import ANYWHERE, SPREAD_MAX, Hybrid, Near, Vectors, Where, sparse_of

VECTOR_NAME = "dense"
SPARSE_NAME = "words"
LAYOUT = "_hybrid"  # another name with every change of what a point holds: the new collection is filled from the fingerprint records
SCROLL_PAGE = 1_000
KEYWORD_FIELDS = ("project", "report", "kind", "service", "tokens")


class QdrantServerIndex:
    """The `VectorIndex` port on a collection. Raises Unavailable when the server does not answer."""

    def __init__(self, client: AsyncQdrantClient, collection: str) -> None:
        self._client = client
        self._collection = collection

    @classmethod
    async def open(cls, client: AsyncQdrantClient, collection: str, dimensions: int) -> QdrantServerIndex:
        """The index, its collection made when it is not there."""
        collection += LAYOUT
        try:
            if not await client.collection_exists(collection):
                await client.create_collection(
                    collection,
                    vectors_config={VECTOR_NAME: models.VectorParams(size=dimensions, distance=models.Distance.COSINE)},
                    sparse_vectors_config={SPARSE_NAME: models.SparseVectorParams()},
                )
            for name in KEYWORD_FIELDS:
                await client.create_payload_index(collection, name, models.PayloadSchemaType.KEYWORD, wait=True)
            await client.create_payload_index(collection, "occurred_at", models.PayloadSchemaType.FLOAT, wait=True)
        except (ApiException, ResponseHandlingException) as error:
            raise _unavailable(error) from error
        return cls(client, collection)

    async def upsert(self, exemplars: Sequence[Exemplar], vectors: Vectors) -> None:
        points = [
            models.PointStruct(
                id=exemplar.point_id,
                vector={VECTOR_NAME: row.tolist(), SPARSE_NAME: _sparse(sparse_of(exemplar))},
                payload=exemplar.to_payload(),
            )
            for exemplar, row in zip(exemplars, vectors, strict=True)
        ]
        if points:
            await self._ask("upsert", points=points, wait=True)

    async def nearest(self, project: str, vector: npt.NDArray[np.float32], limit: int, where: Where = ANYWHERE) -> list[Match]:
        return (await self.search(project, vector, [Near(limit, where)]))[0]

    async def search(self, project: str, vector: npt.NDArray[np.float32], asked: Sequence[Near]) -> list[list[Match]]:
        dense = vector.tolist()
        requests = [
            models.QueryRequest(
                query=dense,
                using=VECTOR_NAME,
                filter=_filter(project, near.where),
                limit=near.limit,
                with_payload=True,
                params=models.SearchParams(exact=True),
            )
            for near in asked
        ]
        answers = await self._ask("query_batch_points", requests=requests) if requests else []
        return [[Match(Exemplar.from_payload(point.payload or {}), round(point.score, 4)) for point in answer.points] for answer in answers]

    async def hybrid(self, project: str, query: Hybrid, limit_each: int, where: Where = ANYWHERE) -> list[Match]:
        chosen, exact = _filter(project, where), models.SearchParams(exact=True)
        dense = query.dense.tolist()
        found = [models.Prefetch(query=dense, using=VECTOR_NAME, limit=limit_each, filter=chosen, params=exact)]
        found += [
            models.Prefetch(query=_sparse(words), using=SPARSE_NAME, limit=limit_each, filter=chosen) for words in query.sparse if words
        ]
        # Fused by the vectors themselves: everything that one of the searches found, with its cosine, which the matcher wants anyway.
        answer = await self._ask(
            "query_points",
            prefetch=found,
            query=dense,
            using=VECTOR_NAME,
            limit=limit_each * len(found),
            with_payload=True,
            with_vectors=[VECTOR_NAME],
            search_params=exact,
        )
        return [Match(Exemplar.from_payload(point.payload or {}), round(point.score, 4), _vector(point)) for point in answer.points]

    async def exemplars(self, project: str, limit: int) -> list[Exemplar]:
        chosen = models.Filter(must=[_is("project", project)])
        found: list[Exemplar] = []
        offset = None
        while len(found) < limit:
            records, offset = await self._ask(
                "scroll", scroll_filter=chosen, limit=min(SCROLL_PAGE, limit - len(found)), offset=offset, with_payload=True
            )
            found += [Exemplar.from_payload(record.payload or {}) for record in records]
            if offset is None:
                break
        return found

    async def foresee(self, project: str, vectors: Vectors) -> None:
        """Nothing: the server works out each answer when it is asked."""

    async def spread(self, project: str, tokens: Sequence[str]) -> Mapping[str, frozenset[str]]:
        found = {}
        for token in tokens:
            chosen = models.Filter(must=[_is("project", project), _is("tokens", token)])
            answer = await self._ask("facet", key="report", facet_filter=chosen, limit=SPREAD_MAX, exact=True)
            found[token] = frozenset(str(hit.value) for hit in answer.hits)
        return found

    async def assign(self, exemplars: Sequence[Exemplar]) -> None:
        absent = await self.missing([exemplar.point_id for exemplar in exemplars])
        for exemplar in exemplars:
            if exemplar.point_id not in absent:
                await self._ask("set_payload", payload={"report": exemplar.report_id}, points=[exemplar.point_id], wait=True)

    async def move(self, project: str, from_report_id: str, to_report_id: str) -> None:
        chosen = _filter(project, Where(report_id=from_report_id))
        await self._ask("set_payload", payload={"report": to_report_id}, points=chosen, wait=True)

    async def missing(self, point_ids: Sequence[str]) -> set[str]:
        records = await self._ask("retrieve", ids=list(point_ids), with_payload=False, with_vectors=False)
        return set(point_ids) - {str(record.id) for record in records}

    async def count(self, project: str | None = None) -> int:
        chosen = models.Filter(must=[_is("project", project)]) if project is not None else None
        answer = await self._ask("count", count_filter=chosen, exact=True)
        return int(answer.count)

    async def close(self) -> None:
        await self._client.close()

    async def _ask(self, method: str, **arguments: Any) -> Any:
        try:
            return await getattr(self._client, method)(collection_name=self._collection, **arguments)
        except (ApiException, ResponseHandlingException) as error:
            raise _unavailable(error) from error


def _unavailable(error: Exception) -> Unavailable:
    return Unavailable(f"the Qdrant server did not do as asked ({type(error).__name__}: {error}); see LOOPWRIGHT_CLUSTER_QDRANT_URL")


def _sparse(words: Sparse) -> models.SparseVector:
    return models.SparseVector(indices=list(words), values=list(words.values()))


def _vector(point: Any) -> npt.NDArray[np.float32]:
    return np.array(point.vector[VECTOR_NAME], np.float32)


def _is(key: str, value: str) -> models.FieldCondition:
    return models.FieldCondition(key=key, match=models.MatchValue(value=value))


def _filter(project: str, where: Where) -> models.Filter:
    wanted = {"report": where.report_id, "kind": where.kind, "service": where.service}
    conditions: list[Any] = [_is("project", project)]
    conditions += [_is(key, value) for key, value in wanted.items() if value is not None]
    if where.occurred_from is not None or where.occurred_to is not None:
        window = models.Range(gte=where.occurred_from, lte=where.occurred_to)
        conditions.append(models.FieldCondition(key="occurred_at", range=window))
    return models.Filter(must=conditions)
