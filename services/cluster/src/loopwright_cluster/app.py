"""The composition root: which embedding, which index, which bus, and who handles what."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial

import structlog
from fastapi import FastAPI
from loopwright_common.bus import Bus, ConsumerSpec
from loopwright_common.clock import Clock, SystemClock
from loopwright_common.contracts.subjects import (
    COMMANDS_GROUPS,
    EVALUATION_QUERY,
    REPORTS_TRANSITIONED,
    SEARCH_QUERY,
    SHADOW_QUERY,
    SIGNALS,
)
from loopwright_common.model import ModelClient, ModelRole
from loopwright_common.nats_bus import open_bus
from loopwright_common.process import service_app
from loopwright_common.projects import Projects
from loopwright_common.spending import BucketSpending

from loopwright_cluster import api
from loopwright_cluster.adapters.qdrant_edge import QdrantEdgeIndex
from loopwright_cluster.adjudication import ModelAdjudicator
from loopwright_cluster.comparison_records import ComparisonRecords
from loopwright_cluster.costly import CostlyPath
from loopwright_cluster.embedding.hashing import HashingEmbedding
from loopwright_cluster.embedding.minilm import MiniLmEmbedding
from loopwright_cluster.embedding.pool import EmbeddingPool
from loopwright_cluster.evaluation import Evaluation
from loopwright_cluster.fingerprinting import Fingerprinting
from loopwright_cluster.handlers import ProjectLocks, SignalGrouping
from loopwright_cluster.judging import Judging
from loopwright_cluster.ports import Embedding, VectorIndex
from loopwright_cluster.records import Records
from loopwright_cluster.regrouping import Regrouping, Search, fill_index
from loopwright_cluster.settings import ClusterSettings
from loopwright_cluster.shadow import Shadow
from loopwright_cluster.word_records import Words

SERVICE = "cluster"
SPENDING_BUCKET = "cluster-spending"
# How long an ordered flow stands still when this process or the server dies with a batch in hand. A long batch is kept by heartbeats.
ACK_WAIT = timedelta(seconds=10)
SWITCH_SECONDS = 0.000_2

log = structlog.get_logger()


def open_embedding(settings: ClusterSettings) -> Embedding:
    """MiniLM from its folder, or the labelled degraded mode when the folder is missing or unreadable."""
    try:
        encoders = [
            MiniLmEmbedding(settings.embedding_model_dir, threads=settings.embedding_threads, tokens_max=settings.embedding_tokens_max)
            for _ in range(settings.embedding_workers)
        ]
        return EmbeddingPool(encoders) if len(encoders) > 1 else encoders[0]
    except Exception as error:  # onnxruntime has its own; whatever it is, signals are still grouped by fingerprint
        log.warning(
            "grouping_degraded",
            model_dir=str(settings.embedding_model_dir),
            error=f"{type(error).__name__}: {error}",
            remedy=f"python -m loopwright_cluster.embedding.model_build --out {settings.embedding_model_dir}",
        )
        return HashingEmbedding()


async def open_index(settings: ClusterSettings, embedding: Embedding) -> VectorIndex:
    """The embedded index, or a server's. One folder or collection for each embedding: their vectors do not compare."""
    if not settings.qdrant_url:
        folder, memory = settings.index_dir / embedding.name, settings.index_memory_mib * 1024**2
        return await asyncio.to_thread(partial(QdrantEdgeIndex, folder, embedding.dimensions, memory_bytes_max=memory))
    # Imported here: a machine with the embedded index need not load the client (30 MB, 0.3 s).
    from qdrant_client import AsyncQdrantClient

    from loopwright_cluster.adapters.qdrant_server import QdrantServerIndex

    client = AsyncQdrantClient(
        url=settings.qdrant_url,
        api_key=settings.qdrant_api_key.get_secret_value() or None,
        timeout=settings.qdrant_timeout_seconds,
        check_compatibility=False,  # it would ask at once and warn on failure; the readiness check tells better
    )
    return await QdrantServerIndex.open(client, f"loopwright_{embedding.name}", embedding.dimensions)


def adjudicator_role(settings: ClusterSettings) -> ModelRole:
    """The model role that the settings describe. A call is counted at its most, a token per byte, before it is made."""
    return ModelRole(
        name="adjudicator",
        base_url=settings.model_base_url,
        api_key=settings.model_api_key,
        model=settings.model_name,
        calls_per_run_max=4,  # the answer, one repair of it, and a retry of each
        input_tokens_per_run_max=1_500_000,  # four times the bytes of the longest question
        output_tokens_per_call_max=1_000,  # ten answers take 200; the rest is for models that think aloud
        usd_per_run_max=settings.model_usd_per_day_max,
        usd_per_day_max=settings.model_usd_per_day_max,
        usd_per_million_input=settings.model_usd_per_million_input,
        usd_per_million_output=settings.model_usd_per_million_output,
        attempt_seconds_max=settings.model_seconds_max,
        call_seconds_max=settings.model_seconds_max,
        retries_max=1,
    )


async def open_judging(settings: ClusterSettings, bus: Bus, clock: Clock) -> Judging:
    """The version that decides, the one in shadow, and the model that may be asked, if one is configured.

    What is spent in a day is counted on the bus, over replicas and restarts.
    """
    adjudicator = None
    if settings.model_base_url:
        spending = BucketSpending(await bus.key_value(SPENDING_BUCKET), clock)
        adjudicator = ModelAdjudicator(ModelClient(adjudicator_role(settings), spending=spending, clock=clock))
    return Judging(
        settings.grouping_version,
        shadow=settings.shadow or None,
        adjudicator=adjudicator,
        seconds_max=settings.model_seconds_max,
        clock=clock,
        join_probability_min=settings.join_probability_min,
    )


class Service:
    """The running parts. ``start`` returns when signals are being grouped; ``stop`` drains."""

    def __init__(
        self,
        bus: Bus,
        embedding: Embedding,
        index: VectorIndex,
        clock: Clock,
        *,
        batch_max: int,
        new_per_minute: int = 0,
        judging: Judging | None = None,
    ) -> None:
        self.bus = bus
        self.embedding = embedding
        self.index = index
        self._clock = clock
        self._batch_max = batch_max
        self._costly = CostlyPath(new_per_minute)
        self._judging = judging or Judging()
        self._records: Records | None = None
        self._words: Words | None = None
        self._projects: Projects | None = None
        self._fingerprinting: Fingerprinting | None = None

    async def start(self) -> None:
        records = self._records = await Records.open(self.bus)
        await records.start()
        words = self._words = await Words.open(self.bus)
        await words.start()
        projects = self._projects = Projects(self.bus)
        await projects.start()
        # Before a signal is fingerprinted: a project's rules that come late would give it another fingerprint.
        await projects.wait_loaded()
        fingerprinting = self._fingerprinting = await Fingerprinting.open(self.bus, projects)
        await fingerprinting.start()
        await fill_index(records, self.embedding, self.index)
        locks, judging = ProjectLocks(), self._judging
        compared = (
            await ComparisonRecords.open(self.bus, self._clock, judging.version, judging.shadow) if judging.shadow is not None else None
        )
        grouping = SignalGrouping(
            self.bus, records, self.embedding, self.index, self._clock, locks, self._costly, fingerprinting, judging, words, compared
        )
        regrouping = Regrouping(self.bus, records, words, self.index, locks, self._clock)
        # How reports stand is heard before signals are placed, so that a restart does not put a recurrence into a resolved report.
        await self.bus.consume_batches(
            ConsumerSpec("cluster-reports", SERVICE, (REPORTS_TRANSITIONED,), ordered=True, batch_max=100, ack_wait=ACK_WAIT),
            regrouping.hear,
        )
        await self.bus.consume(
            ConsumerSpec("cluster-commands", SERVICE, (COMMANDS_GROUPS,), ordered=True, ack_wait=ACK_WAIT), regrouping.obey
        )
        await self.bus.consume_batches(
            ConsumerSpec(
                "cluster-signals",
                SERVICE,
                (SIGNALS,),
                ordered=True,
                per_project=True,
                batch_max=self._batch_max,
                ack_wait=ACK_WAIT,
                attempts_max=20,  # an hour of waiting for a vector server that is down, before signals go to the dead letters
            ),
            grouping.handle,
        )
        await self.bus.answer(SEARCH_QUERY, Search(records, self.embedding, self.index).answer)
        evaluation = Evaluation(records, words, self.embedding, self.index, judging, locks)
        await self.bus.answer(EVALUATION_QUERY, evaluation.answer)
        await self.bus.answer(SHADOW_QUERY, Shadow(judging.version, records, self._clock, compared).answer)

    async def pause(self, drain: timedelta = timedelta(seconds=10)) -> None:
        """Stop grouping; embedding and index stay open for another."""
        await self.bus.close(drain)
        await self._judging.close()
        for part in (self._fingerprinting, self._projects, self._words, self._records):
            if part is not None:
                await part.stop()

    async def stop(self, drain: timedelta) -> None:
        await self.pause(drain)
        await self.embedding.close()
        await self.index.close()


def tune_the_interpreter() -> None:
    """Lets Python look for garbage cycles seldom, and hand over between threads soon.

    The search took a quarter of the time in a flood, and found nothing: a batch is some ten thousand objects that live until it is
    published, and none of them points back; by default every 700 new objects start one. What there is now (modules, models) is never
    searched again.

    The embedding's thread computes without the interpreter's lock for 4 ms a text, and then had to wait up to 5 ms for it whenever the
    event loop had it: a flood of new fingerprints takes a twentieth less time since it waits 0.2 ms.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)
    sys.setswitchinterval(SWITCH_SECONDS)


def create_app(settings: ClusterSettings) -> FastAPI:
    """The service's app; its parts live as long as the app's lifespan."""
    running: list[Service] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        embedding = await asyncio.to_thread(open_embedding, settings)
        index = await open_index(settings, embedding)
        bus, clock = await open_bus(settings, SERVICE), SystemClock()
        service = Service(
            bus,
            embedding,
            index,
            clock,
            batch_max=settings.batch_max,
            new_per_minute=settings.new_fingerprints_per_minute,
            judging=await open_judging(settings, bus, clock),
        )
        try:
            await service.start()
            tune_the_interpreter()
            running.append(service)
            yield
        finally:
            running.clear()
            await service.stop(timedelta(seconds=settings.drain_seconds))

    async def readiness() -> Mapping[str, str]:
        if not running:
            return {"start": "the service is starting"}
        (service,) = running
        needs = {"bus": "" if await service.bus.ready() else f"no answer from {settings.nats_url}"}
        if service.embedding.degraded:
            # Not a reason to take no traffic: fingerprints group as ever, and each decision that was made this way says so.
            needs[f"embedding: DEGRADED to {service.embedding.name}, no model in {settings.embedding_model_dir}"] = ""
        else:
            needs["embedding"] = ""
        return needs

    app = service_app(SERVICE, "Loopwright cluster", lifespan, readiness)
    app.include_router(api.router(lambda: (running[0].embedding, running[0].index) if running else None))
    return app
