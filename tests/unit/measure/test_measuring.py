"""The whole service on the memory bus and a clock that stands still; the repository is real git, the gateway a few lines."""

from __future__ import annotations

import asyncio
import os
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from loopwright_common.bus import Outgoing
from loopwright_common.contracts.changes import ChangeMerged
from loopwright_common.contracts.configuration import CONFIG_BUCKET, ProjectConfig, PublishedProject, RepositoryConfig, ServiceConfig
from loopwright_common.contracts.investigations import Investigation, InvestigationVerdict, MetricContract
from loopwright_common.contracts.measurements import Verdict
from loopwright_common.contracts.queries import ExposureMinute, RatesAnswer, RatesQuery
from loopwright_common.contracts.reports import MinuteCount
from loopwright_common.contracts.signals import Deploy, SignalKind
from loopwright_common.contracts.subjects import CHANGES_MERGED, DEPLOYS, MEASUREMENTS_COMPLETED, MEASUREMENTS_STARTED, RATES_QUERY, SIGNALS
from loopwright_common.errors import Permanent, Unavailable
from loopwright_common.identifiers import derived_id
from loopwright_common.testing.clock import FakeClock
from loopwright_common.testing.memory_bus import MemoryBus
from loopwright_measure.adapters.git_history import GitHistory
from loopwright_measure.adapters.kv_store import KeyValueStore
from loopwright_measure.api import router
from loopwright_measure.app import Service
from loopwright_measure.ports import Containment

START = datetime(2026, 11, 26, 10, 0, tzinfo=UTC)
PROJECT = "acme"


class Repository:
    """A repository whose commits tests lay down, served from disk as the forge would serve it."""

    def __init__(self, root: Path) -> None:
        self.path = root / "git" / "shop.git"
        self.path.mkdir(parents=True)
        self.git("init", "-q", "-b", "main")
        self.base = self.commit("base")

    def git(self, *arguments: str) -> str:
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.path), "GIT_CONFIG_NOSYSTEM": "1"}
        for role in ("AUTHOR", "COMMITTER"):
            environment |= {f"GIT_{role}_NAME": "Ada", f"GIT_{role}_EMAIL": "ada@example.org"}
        return subprocess.run(
            ["git", *arguments], cwd=self.path, env=environment, check=True, capture_output=True, text=True
        ).stdout.strip()

    def commit(self, message: str) -> str:
        self.git("commit", "-q", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD")


class DiskForge:
    """A forge whose clone URLs are paths."""

    credential = None

    def __init__(self, root: Path) -> None:
        self.root = root
        self.synced = 0

    def clone_url(self, repository: str) -> str:
        return str(self.root / "git" / f"{repository}.git")

    async def sync_repository(self, repository: str) -> tuple[()]:
        self.synced += 1
        return ()


class Gateway:
    """Counts as the gateway would answer them: traffic of 100 requests a minute, errors as told."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.releases: list[tuple[datetime, str, float]] = []  # from when, release, share of requests that fail
        self.until: datetime | None = None  # traffic ends
        self.refuses: Exception | None = None

    def serve(self, release: str, failing: float) -> None:
        self.releases.append((self.clock.now(), release, failing))

    async def answer(self, query: RatesQuery) -> RatesAnswer:
        if self.refuses is not None:
            raise self.refuses
        signals, exposure = [], []
        minute = query.start
        while minute < min(query.end, self.clock.now()):
            current = [entry for entry in self.releases if entry[0] <= minute]
            if current and (self.until is None or minute < self.until):
                _, release, failing = current[-1]
                exposure.append(ExposureMinute(minute=minute, service="shop", release=release, count=100))
                if failing:
                    signals.append(MinuteCount(minute=minute, release=release, count=round(100 * failing)))
            minute += timedelta(minutes=1)
        return RatesAnswer(signals=tuple(signals), exposure=tuple(exposure))


class World:
    """A project with one service in one repository, and the measure service running."""

    def __init__(self, clock: FakeClock, bus: MemoryBus, tmp_path: Path) -> None:
        self.clock, self.bus, self.tmp_path = clock, bus, tmp_path
        self.repository = Repository(tmp_path / "forge")
        self.gateway = Gateway(clock)
        self.service: Service | None = None
        self.history = GitHistory(tmp_path / "mirrors", DiskForge(tmp_path / "forge"))

    async def open(self) -> None:
        config = ProjectConfig(
            name=PROJECT, repositories=(RepositoryConfig(name="shop"), RepositoryConfig(name="docs")),
            services=(ServiceConfig(name="shop", repository="shop"), ServiceConfig(name="site", repository="docs")),
        )  # fmt: skip
        bucket = await self.bus.key_value(CONFIG_BUCKET)
        await bucket.put(f"project.{PROJECT}", PublishedProject(number=1, revision=1, config=config).model_dump_json().encode())
        await self.bus.answer(RATES_QUERY, self.gateway.answer)
        await self.start()

    async def start(self) -> None:
        self.measure_bus = self.bus.as_service("measure")
        self.service = Service(self.measure_bus, self.history, self.clock)
        await self.service.start()
        await asyncio.sleep(0)  # the consumers' tasks begin

    async def restart(self) -> None:
        assert self.service is not None
        await self.service.stop(timedelta(seconds=1))
        await self.start()

    async def close(self) -> None:
        if self.service is not None:
            await self.service.stop(timedelta(seconds=1))

    async def merge(self, commit: str, change: str = "c1", **metric) -> None:
        merged = ChangeMerged(
            change_id=change, project=PROJECT, report_id="r1", repository="shop", merge_commit=commit, merged_by="person:ada",
            merged_at=self.clock.now(), investigation=investigation(self.clock.now(), **metric),
        )  # fmt: skip
        await self.bus.publish(Outgoing(CHANGES_MERGED, merged, f"merged-{change}", {"project": PROJECT}))
        await self.bus.idle()

    async def deploy(self, release: str, commit: str | None, service: str = "shop", **changed) -> Deploy:
        deploy = Deploy(
            **{"id": derived_id(release, service, str(changed), str(self.clock.now())), "project": PROJECT, "service": service,
               "release": release, "commit": commit, "deployed_at": self.clock.now(), **changed}
        )  # fmt: skip
        await self.bus.publish(Outgoing(DEPLOYS, deploy, deploy.id, {"project": PROJECT, "service": service}))
        await self.bus.idle()
        return deploy

    async def wait(self, **units: float) -> None:
        """Time passes, a minute at a time, with everything due handled."""
        end = self.clock.now() + timedelta(**units)
        while self.clock.now() < end:
            self.clock.advance(min(timedelta(minutes=5), end - self.clock.now()))
            await self.bus.idle()

    @property
    def completed(self):
        return self.bus.published(MEASUREMENTS_COMPLETED)

    @property
    def signals(self):
        return self.bus.published(SIGNALS)

    @property
    def started(self):
        return self.bus.published(MEASUREMENTS_STARTED)


def investigation(now: datetime, no_metric: bool = False, **changed) -> Investigation:
    metric = MetricContract(
        **{"query": "signals of r1 per request of shop", "service": "shop", "baseline_start": START, "baseline_end": now, **changed}
    )
    return Investigation(
        id="i1", project=PROJECT, report_id="r1", attempt=1, title="TypeError in checkout", summary="s", priority="P1",
        verdict=InvestigationVerdict.ACTIONABLE, reason="r", confidence=0.9, metric=None if no_metric else metric,
        started_at=now, completed_at=now,
    )  # fmt: skip


@pytest.fixture
async def world(tmp_path):
    clock = FakeClock(START)
    bus = MemoryBus("test", clock=clock)
    made = World(clock, bus, tmp_path)
    await made.open()
    yield made
    await made.close()
    await bus.close()


async def test_a_fix_that_works_is_held_with_an_interval_and_its_signal_comes_back(world):
    world.gateway.serve("v1", 0.05)
    await world.wait(minutes=60)
    fixed = world.repository.commit("fix")
    await world.merge(fixed)
    assert world.started == []
    await world.wait(minutes=30)
    world.gateway.serve("v2", 0.0)
    deploy = await world.deploy("v2", fixed)
    (started,) = world.started
    assert (started.deploy_id, started.commit, started.settles_at) == (deploy.id, fixed, deploy.deployed_at + timedelta(minutes=10))
    await world.wait(minutes=65)
    assert world.completed == []  # settle and minimum window are not over
    await world.wait(minutes=10)
    (measurement,) = world.completed
    assert measurement.verdict is Verdict.HELD
    assert (measurement.before.events, measurement.before.exposure) == (449, 9_000)  # 90 minutes, less the signal that opened the report
    assert measurement.after.events == 0
    assert measurement.ratio == 0.0
    assert 0 < measurement.ratio_high < 0.5
    assert measurement.p_value < 1e-6
    assert measurement.series
    (signal,) = world.signals
    assert (signal.kind, signal.about_report, signal.source, signal.weight) == (SignalKind.MEASUREMENT, "r1", "measurement", 0.0)
    assert signal.title == "Held: TypeError in checkout"
    assert signal.labels["verdict"] == "held"


@pytest.mark.parametrize(("share", "verdict"), [(0.05, Verdict.NOT_HELD), (0.2, Verdict.WORSE)])
async def test_a_fix_that_does_not_work_is_told(world, share, verdict):
    world.gateway.serve("v1", 0.05)
    await world.wait(minutes=120)
    fixed = world.repository.commit("fix")
    await world.merge(fixed)
    world.gateway.serve("v2", share)
    await world.deploy("v2", fixed)
    await world.wait(hours=12)
    assert [measurement.verdict for measurement in world.completed] == [verdict]


async def test_a_deploy_heard_before_the_merge_counts(world):
    world.gateway.serve("v1", 0.05)
    await world.wait(minutes=60)
    fixed = world.repository.commit("fix")
    world.gateway.serve("v2", 0.0)
    await world.deploy("v2", fixed)
    await world.merge(fixed)
    assert len(world.started) == 1


async def test_deploys_without_the_change_of_others_or_elsewhere_do_not_start_it(world):
    fixed = world.repository.commit("fix")
    await world.merge(fixed, environment="production")
    await world.deploy("v1b", world.repository.base)
    await world.deploy("v2", fixed, service="site")
    await world.deploy("v2", fixed, environment="staging")
    assert world.started == []
    await world.deploy("v2", fixed)
    assert len(world.started) == 1


async def test_a_release_without_a_commit_is_looked_up_as_a_tag(world):
    fixed = world.repository.commit("fix")
    await world.merge(fixed)
    world.repository.commit("later")
    world.repository.git("tag", "v2.0.0")
    await world.deploy("shop@2.0.0", None)
    (started,) = world.started
    assert started.release == "shop@2.0.0"


async def test_a_commit_that_reaches_the_forge_after_its_deploy_is_found_on_a_later_try(world):
    fixed = world.repository.commit("fix")
    await world.merge(fixed)
    world.repository.git("checkout", "-q", "-b", "elsewhere")
    ahead = world.repository.commit("not pushed yet")
    world.repository.git("checkout", "-q", "main")
    world.repository.git("update-ref", "refs/hidden/x", ahead)
    world.repository.git("branch", "-D", "elsewhere")
    await world.deploy("v2", ahead)
    assert world.started == []
    world.repository.git("branch", "elsewhere", ahead)
    await world.wait(minutes=1)
    assert len(world.started) == 1


async def test_a_rollback_ends_it_inconclusive_with_that_reason(world):
    world.gateway.serve("v1", 0.05)
    await world.wait(minutes=60)
    fixed = world.repository.commit("fix")
    await world.merge(fixed)
    await world.deploy("v2", fixed)
    await world.wait(minutes=5)
    await world.deploy("v1", world.repository.base)
    (measurement,) = world.completed
    assert measurement.verdict is Verdict.INCONCLUSIVE
    assert "rolled back" in measurement.reason
    assert "v1" in measurement.reason
    await world.wait(hours=3)
    assert len(world.completed) == 1
    assert len(world.signals) == 1


async def test_later_releases_with_the_change_count_for_the_same_side(world):
    world.gateway.serve("v1", 0.05)
    await world.wait(minutes=60)
    fixed = world.repository.commit("fix")
    await world.merge(fixed)
    world.gateway.serve("v2", 0.0)
    await world.deploy("v2", fixed)
    await world.wait(minutes=30)
    world.gateway.serve("v3", 0.0)
    await world.deploy("v3", world.repository.commit("feature"))
    await world.wait(minutes=60)
    (measurement,) = world.completed
    assert measurement.verdict is Verdict.HELD
    assert measurement.after.releases == ("v2", "v3")
    assert measurement.after.exposure == 6_000


async def test_too_little_use_waits_and_ends_inconclusive_saying_what_is_missing(world):
    world.gateway.serve("v1", 0.05)
    await world.wait(minutes=60)
    fixed = world.repository.commit("fix")
    await world.merge(fixed, maximum_wait=timedelta(hours=6))
    world.gateway.serve("v2", 0.0)
    await world.deploy("v2", fixed)
    world.gateway.until = world.clock.now() + timedelta(minutes=11)
    await world.wait(hours=5.5)
    assert world.completed == []
    await world.wait(hours=1)
    (measurement,) = world.completed
    assert measurement.verdict is Verdict.INCONCLUSIVE
    assert "are needed to show the effect" in measurement.reason


async def test_no_deploy_ends_it_inconclusive_and_names_what_was_seen(world):
    fixed = world.repository.commit("fix")
    await world.merge(fixed, maximum_wait=timedelta(hours=2))
    await world.deploy("old", world.repository.base)
    await world.wait(hours=3)
    (measurement,) = world.completed
    assert measurement.verdict is Verdict.INCONCLUSIVE
    assert "No deploy of shop" in measurement.reason
    assert "old" in measurement.reason
    assert world.started == []


async def test_without_a_metric_it_is_said_at_once(world):
    await world.merge(world.repository.commit("fix"), no_metric=True)
    (measurement,) = world.completed
    assert measurement.verdict is Verdict.INCONCLUSIVE
    assert "fixed no metric" in measurement.reason
    assert len(world.signals) == 1


async def test_everything_survives_a_restart_at_any_stage(world):
    world.gateway.serve("v1", 0.05)
    await world.wait(minutes=60)
    fixed = world.repository.commit("fix")
    await world.merge(fixed)
    await world.restart()
    world.gateway.serve("v2", 0.0)
    await world.deploy("v2", fixed)
    await world.restart()
    await world.wait(minutes=30)
    await world.restart()
    await world.wait(minutes=60)
    await world.restart()
    await world.wait(minutes=60)
    assert [measurement.verdict for measurement in world.completed] == [Verdict.HELD]
    assert len(world.signals) == 1
    assert len(world.started) == 1


async def test_messages_that_come_twice_change_nothing(world):
    world.gateway.serve("v1", 0.05)
    await world.wait(minutes=60)
    fixed = world.repository.commit("fix")
    world.gateway.serve("v2", 0.0)
    for _ in range(2):
        await world.merge(fixed)
        await world.deploy("v2", fixed)
        world.clock.advance(minutes=11)  # beyond the window in which the bus itself drops repeats
    await world.wait(minutes=90)
    assert len(world.completed) == 1
    await world.merge(fixed)
    await world.wait(minutes=30)
    assert len(world.completed) == 1


async def test_a_verdict_that_was_kept_but_not_published_is_published_as_it_was(world):
    """A crash between keeping and saying: the counts move on, the verdict does not."""
    world.gateway.serve("v1", 0.05)
    await world.wait(minutes=60)
    fixed = world.repository.commit("fix")
    await world.merge(fixed)
    world.gateway.serve("v2", 0.0)
    await world.deploy("v2", fixed)
    publish, world.measure_bus.publish = world.measure_bus.publish, None
    await world.wait(minutes=72)
    store = await KeyValueStore.open(world.bus)
    kept = await store.get(PROJECT, "c1")
    assert (kept.pending.phase, world.completed) == ("concluded", [])
    world.gateway.serve("v2", 0.9)
    world.measure_bus.publish = publish
    await world.restart()
    await world.wait(minutes=10)
    assert world.completed == [kept.pending.result]
    assert (await store.get(PROJECT, "c1")).pending.phase == "done"


async def test_a_forge_that_is_away_delays_but_loses_nothing(world):
    class Away:
        async def contains(self, repository, deploy, commit) -> Containment:
            raise Unavailable("the forge does not answer")

    fixed = world.repository.commit("fix")
    real, world.history = world.history, Away()
    await world.restart()
    await world.merge(fixed)
    await world.deploy("v2", fixed)
    assert world.started == []
    world.history = real
    await world.restart()
    await world.wait(minutes=10)
    assert len(world.started) == 1


async def test_a_gateway_that_is_away_for_long_delays_the_verdict_only(world):
    world.gateway.serve("v1", 0.05)
    await world.wait(minutes=60)
    fixed = world.repository.commit("fix")
    await world.merge(fixed)
    world.gateway.serve("v2", 0.0)
    await world.deploy("v2", fixed)
    world.gateway.refuses = Unavailable("starting")
    await world.wait(hours=3)
    assert world.completed == []
    world.gateway.refuses = None
    await world.wait(minutes=10)
    assert [measurement.verdict for measurement in world.completed] == [Verdict.HELD]
    assert await world.bus.dead_letters() == []


async def test_counts_that_cannot_be_had_end_it_inconclusive(world):
    fixed = world.repository.commit("fix")
    await world.merge(fixed)
    await world.deploy("v2", fixed)
    world.gateway.refuses = Permanent("there is no report r1")
    await world.wait(hours=2)
    (measurement,) = world.completed
    assert measurement.verdict is Verdict.INCONCLUSIVE
    assert "there is no report r1" in measurement.reason


async def test_windows_of_seconds_give_a_verdict_within_two_minutes(world):
    """What the demo uses: the count's minutes are coarser than the windows, the releases tell the sides apart."""
    world.gateway.serve("v1", 0.3)
    await world.wait(minutes=2)
    fixed = world.repository.commit("fix")
    seconds = {"settle": timedelta(seconds=2), "minimum_window": timedelta(seconds=10), "maximum_wait": timedelta(minutes=3)}
    await world.merge(fixed, **seconds)
    world.gateway.serve("v2", 0.0)
    await world.deploy("v2", fixed)
    for _ in range(24):
        world.clock.advance(seconds=5)
        await world.bus.idle()
    (measurement,) = world.completed
    assert measurement.verdict is Verdict.HELD


async def test_what_is_pending_can_be_seen(world):
    await world.merge(world.repository.commit("fix"))
    app = FastAPI()
    app.include_router(router(await KeyValueStore.open(world.bus)))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://measure") as client:
        said = (await client.get("/v1/measurements/pending")).json()
    assert said["total"] == 1
    assert (said["items"][0]["change_id"], said["items"][0]["phase"]) == ("c1", "waiting")
