"""A ready report comes in; load, investigate, word, keep the bundle, publish. Every step may happen twice and has one effect.

The bundle is written before the result is published: a message that comes again finds the finished bundle and publishes the same result.
"""

from __future__ import annotations

import asyncio
import gzip
import resource
import time
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import structlog
from loopwright_common import telemetry
from loopwright_common.bus import Bus, Outgoing, Received
from loopwright_common.clock import Clock
from loopwright_common.contracts.configuration import ProjectConfig
from loopwright_common.contracts.investigations import Cost, Investigation, InvestigationStarted
from loopwright_common.contracts.queries import RatesAnswer, RatesQuery
from loopwright_common.contracts.reports import ReportReady
from loopwright_common.contracts.subjects import INVESTIGATIONS_COMPLETED, INVESTIGATIONS_STARTED
from loopwright_common.errors import Permanent, Retryable
from loopwright_common.identifiers import derived_id
from loopwright_common.metrics import observe_stage
from loopwright_common.projects import Projects
from prometheus_client import Counter, Histogram
from pydantic import ValidationError

from loopwright_investigator.agent import Advice, as_data, merge_advice, question, read_advice
from loopwright_investigator.domain import Bundle, Case, Evidence, Place, Transcript, line
from loopwright_investigator.investigation import find_place, investigate
from loopwright_investigator.ports import Advisor, Bundles, History, Rates, Repositories

LOOK_BACK = timedelta(days=1)  # before the first signal, for the rate of the release before it
LOOK_BACK_MOST = timedelta(days=7)  # the exposures' own age limit on the bus
PARTS_MAX = 16  # a window that is cut at the gateway's limit is asked in halves, at most so many
# After these many deliveries the investigation goes on without what does not answer, and says so: a person is better served by a
# result that names the gap than by a report that waits in silence.
PATIENCE = 4
RESULT_BYTES_MAX = 700_000  # the request for a change carries the result and the report: both must fit one message of 1 MiB

COMPLETED = Counter("loopwright_investigations", "Investigations completed.", ["verdict", "priority"])
SECONDS = Histogram("loopwright_investigation_seconds", "Wall time of an investigation.", buckets=(0.5, 1, 2, 5, 10, 30, 60, 300, 900))
ADVICE = Counter("loopwright_investigation_advice", "How asking the model ended.", ["outcome"])

log = structlog.get_logger()


def investigation_id(ready: ReportReady) -> str:
    """The id of an attempt: the same whenever and wherever it is carried out."""
    return derived_id("investigation", ready.project, ready.report.id, str(ready.attempt))


class Investigations:
    """Handles ``reports.<project>.ready``."""

    def __init__(
        self,
        bus: Bus,
        projects: Projects,
        repositories: Repositories,
        rates: Rates,
        bundles: Bundles,
        clock: Clock,
        *,
        advisor: Advisor | None = None,
        seconds_max: float = 900.0,
    ) -> None:
        self._bus = bus
        self._projects = projects
        self._repositories = repositories
        self._rates = rates
        self._bundles = bundles
        self._clock = clock
        self._advisor = advisor
        self._seconds_max = seconds_max
        self.running = 0

    async def handle(self, received: Received[ReportReady]) -> None:
        """Raises Retryable while something it needs may come back, Permanent for a message that is not what its subject says."""
        ready = received.payload
        if ready.project != received.project:
            raise Permanent(f"a report of project {ready.project!r} came on {received.subject!r}")
        identifier = investigation_id(ready)
        with telemetry.bound(project=ready.project, report_id=ready.report.id, attempt=ready.attempt):
            known = await self._known(identifier)
            if known is not None:
                await self._publish(known)
                return
            started = self._clock.now()
            await self._say_started(ready, identifier, started)
            self.running += 1
            try:
                await self._carry_out(ready, identifier, started, received.attempt)
            finally:
                self.running -= 1

    async def _known(self, identifier: str) -> Investigation | None:
        stored = await self._bundles.get(identifier)
        if stored is None:
            return None
        try:
            return Investigation.model_validate(Bundle.model_validate_json(gzip.decompress(stored)).investigation)
        except (ValidationError, OSError, EOFError) as error:
            log.warning("bundle_unreadable", investigation_id=identifier, error=str(error)[:300])
            return None

    async def _say_started(self, ready: ReportReady, identifier: str, now: datetime) -> None:
        fact = InvestigationStarted(project=ready.project, report_id=ready.report.id, attempt=ready.attempt, at=now)
        await self._bus.publish(
            Outgoing(INVESTIGATIONS_STARTED, fact, f"investigation-started-{identifier}", {"project": ready.project}, about=ready.report.id)
        )

    async def _carry_out(self, ready: ReportReady, identifier: str, started: datetime, delivery: int) -> None:
        wall, cpu = time.perf_counter(), _cpu_seconds()
        case = await self._case(ready, started, delivery)
        place = find_place(case)
        result, main, unreadable = await self._within_limit(case, identifier, place, delivery)
        advice = await self._ask(result)
        result = merge_advice(result, advice) if advice is not None else result
        cost = advice.cost if advice is not None else Cost()
        seconds = time.perf_counter() - wall
        result = result.model_copy(
            update={
                "cost": cost.model_copy(update={"wall_seconds": round(seconds, 3), "cpu_seconds": round(_cpu_seconds() - cpu, 3)}),
                "started_at": started,
                "completed_at": max(started, self._clock.now()),
            }
        )
        result = fitted(result)
        bundle = Bundle(
            investigation_id=identifier,
            ready=ready,
            config=case.config,
            rates=case.rates,
            rates_missing=case.rates_missing,
            rates_start=case.rates_start,
            now=case.now,
            repository=result.repository,
            main=main,
            unreadable=unreadable,
            investigation=result.model_dump(mode="json"),
            transcript=(as_data(advice.transcript),) if advice is not None and advice.transcript is not None else (),
        )
        await self._bundles.put(identifier, gzip.compress(bundle.model_dump_json().encode(), mtime=0))
        await self._publish(result)
        SECONDS.observe(seconds)
        observe_stage("ready_to_investigated", ready.at, self._clock.now())
        COMPLETED.labels(result.verdict.value, result.priority).inc()
        log.info(
            "investigation_completed",
            investigation_id=identifier,
            verdict=result.verdict.value,
            priority=result.priority,
            confidence=result.confidence,
            suspect=result.suspects[0].commit if result.suspects else "",
            wall_seconds=round(seconds, 2),
        )

    async def _case(self, ready: ReportReady, now: datetime, delivery: int) -> Case:
        config = self._config(ready.project)
        oldest = now - LOOK_BACK_MOST
        live = [deploy.deployed_at for deploy in ready.deploys if deploy.deployed_at <= ready.report.first_seen]
        # Two deploys back reach the release before the one it began with.
        start = max(oldest, min([ready.report.first_seen - LOOK_BACK, *sorted(live, reverse=True)[:2]]))
        start = min(start, now - timedelta(minutes=1)).replace(second=0, microsecond=0)
        query = RatesQuery(project=ready.project, report_id=ready.report.id, start=start, end=now + timedelta(minutes=1))
        try:
            rates: RatesAnswer | None = await ask_in_parts(self._rates, query)
            missing = ""
        except Retryable as error:
            if delivery < PATIENCE:
                raise
            rates, missing = None, line(str(error), 300)
        except Permanent as error:
            rates, missing = None, line(str(error), 300)
        return Case(ready, config, rates, now, missing, start)

    def _config(self, project: str) -> ProjectConfig | None:
        published = self._projects.get(project)
        if published is None and not self._projects.loaded:
            raise Retryable("the projects' configuration is not read yet", after=timedelta(seconds=1))
        return published.config if published is not None else None

    async def _within_limit(self, case: Case, identifier: str, place: Place, delivery: int) -> tuple[Investigation, str, str]:
        """The result, main's commit, and why the repository was not read; time that runs out again and again is such a reason."""
        try:
            async with asyncio.timeout(self._seconds_max):
                history, unreadable = await self._open(place, delivery)
                result, _ = await investigate(case, identifier, place, history, Evidence(), unreadable)
                return result, history.main if history is not None else "", unreadable
        except TimeoutError as error:
            reason = f"it took longer than {self._seconds_max:.0f} s; LOOPWRIGHT_INVESTIGATOR_INVESTIGATION_SECONDS_MAX is the limit"
            if delivery < PATIENCE:
                raise Retryable(reason) from error
        except Retryable as error:
            if delivery < PATIENCE:
                raise
            reason = line(str(error), 300)
        result, _ = await investigate(case, identifier, place, None, Evidence(), reason)
        return result, "", reason

    async def _open(self, place: Place, delivery: int) -> tuple[History | None, str]:
        if place.repository is None:
            return None, ""
        try:
            return await self._repositories.open(place.repository), ""
        except Retryable as error:
            if delivery < PATIENCE:
                raise
            return None, line(str(error), 300)
        except Permanent as error:
            return None, line(str(error), 300)

    async def _ask(self, result: Investigation) -> Advice | None:
        """The model's advice, or None without a model: whatever goes wrong there, the composed text stands."""
        if self._advisor is None:
            return None
        system, user = question(result)
        asked = await self._advisor.advise(system, user)
        advice = read_advice(asked.said, result.evidence) if asked.said is not None else Advice()
        ADVICE.labels(asked.outcome).inc()
        log.info("model_asked", outcome=asked.outcome, detail=asked.detail, dropped=advice.dropped, usd=asked.cost.usd)
        answer = asked.said.model_dump_json() if asked.said is not None else asked.detail
        return replace(advice, cost=asked.cost, transcript=Transcript(user, answer[:200_000], asked.outcome, self._advisor.name))

    async def _publish(self, result: Investigation) -> None:
        await self._bus.publish(
            Outgoing(
                INVESTIGATIONS_COMPLETED,
                result,
                f"investigation-completed-{result.id}",
                {"project": result.project},
                about=result.report_id,
            )
        )


async def ask_in_parts(rates: Rates, query: RatesQuery) -> RatesAnswer:
    """The rates of a window; an answer cut at the gateway's limit is asked again in halves, PARTS_MAX questions at most."""
    left = PARTS_MAX - 1

    async def ask(start: datetime, end: datetime) -> RatesAnswer:
        nonlocal left
        answer = await rates.ask(query.model_copy(update={"start": start, "end": end}))
        minutes = int((end - start).total_seconds() // 60)
        if not answer.truncated or minutes < 2 or left < 2:
            return answer
        left -= 2
        middle = start + timedelta(minutes=minutes // 2)
        first, second = await ask(start, middle), await ask(middle, end)
        deploys = {deploy.id: deploy for deploy in (*first.deploys, *second.deploys)}
        return RatesAnswer(
            signals=(*first.signals, *second.signals)[:100_000],
            exposure=(*first.exposure, *second.exposure)[:100_000],
            deploys=tuple(deploys.values())[:1_000],
            people_count=max(first.people_count, second.people_count),
            truncated=first.truncated or second.truncated,
        )

    return await ask(query.start, query.end)


def fitted(result: Investigation, bytes_max: int = RESULT_BYTES_MAX) -> Investigation:
    """The result within ``bytes_max`` as JSON: first the observations' data go, then long answers are cut; ids and claims stay."""
    for step in range(4):
        if len(result.model_dump_json().encode()) <= bytes_max:
            return result
        answer_max = (16_384, 4_000, 1_000, 200)[step]
        evidence = tuple(
            each.model_copy(
                update={"data": {}, "answer": each.answer if len(each.answer) <= answer_max else each.answer[:answer_max] + "…"}
            )
            for each in result.evidence
        )
        suspects = tuple(each.model_copy(update={"files": each.files[: 20 if step < 2 else 5]}) for each in result.suspects)
        result = result.model_copy(update={"evidence": evidence, "suspects": suspects})
    return result


def _cpu_seconds() -> float:
    """Processor time of this process and its ended children (git). With several investigations at once each counts the others' too."""
    usage: list[Any] = [resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)]
    return float(sum(each.ru_utime + each.ru_stime for each in usage))
