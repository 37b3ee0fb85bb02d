"""Measure's adapters on both buses and a real forge, and the whole service as its own process."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from loopwright_common.bus import Conflict, ConsumerSpec, Outgoing
from loopwright_common.contracts.changes import ChangeMerged
from loopwright_common.contracts.configuration import CONFIG_BUCKET, ProjectConfig, PublishedProject, RepositoryConfig, ServiceConfig
from loopwright_common.contracts.investigations import Investigation, InvestigationVerdict, MetricContract
from loopwright_common.contracts.queries import ExposureMinute, RatesAnswer, RatesQuery
from loopwright_common.contracts.reports import MinuteCount
from loopwright_common.contracts.signals import Deploy
from loopwright_common.contracts.subjects import CHANGES_MERGED, DEPLOYS, MEASUREMENTS_COMPLETED, MEASUREMENTS_STARTED, RATES_QUERY, SIGNALS
from loopwright_common.errors import Permanent, Unavailable
from loopwright_measure.adapters.gateway_rates import GatewayRates
from loopwright_measure.adapters.git_history import GitHistory
from loopwright_measure.adapters.kv_store import KeyValueStore
from loopwright_measure.domain import DEPLOYS_REMEMBERED_MAX, Pending, finish
from loopwright_repositories.errors import ForgeUnavailable
from loopwright_repositories.forges.local import LocalForge
from pydantic import SecretStr

READ, WRITE, MERGE = "read-token-0123456789", "write-token-0123456789", "merge-token-0123456789"
NOW = datetime(2026, 3, 1, 10, 0, tzinfo=UTC)
METRIC = MetricContract(query="q", service="shop", baseline_start=NOW, baseline_end=NOW)


def pending(change: str = "c1", project: str = "acme") -> Pending:
    return Pending(
        project=project, report_id="r1", change_id=change, title="t", repository="shop", service="shop", merge_commit="a" * 40,
        merged_at=NOW, metric=METRIC, next_look_at=NOW,
    )  # fmt: skip


def deploy(number: int, **changed) -> Deploy:
    return Deploy(
        **{
            "id": f"d{number}",
            "project": "acme",
            "service": "shop",
            "release": f"v{number}",
            "deployed_at": NOW + timedelta(minutes=number),
        }
        | changed
    )


# The store


async def test_a_pending_measurement_is_read_back_as_it_was_kept(bus):
    store = await KeyValueStore.open(bus)
    assert await store.get("acme", "c1") is None
    kept = await store.create(pending())
    assert (await store.get("acme", "c1")).pending == pending()
    changed = await store.update(kept, kept.pending.model_copy(update={"looks": 3}))
    assert (await store.get("acme", "c1")) == changed


async def test_a_slower_writer_is_told(bus):
    store = await KeyValueStore.open(bus)
    kept = await store.create(pending())
    with pytest.raises(Conflict):
        await store.create(pending())
    await store.update(kept, kept.pending.model_copy(update={"looks": 1}))
    with pytest.raises(Conflict):
        await store.update(kept, kept.pending.model_copy(update={"looks": 2}))


async def test_projects_are_kept_apart_and_done_ones_are_forgotten_in_time(bus):
    store = await KeyValueStore.open(bus)
    await store.create(pending("c1"))
    await store.create(pending("c2", project="acme-two"))
    done = await store.create(pending("c3"))
    await store.update(done, finish(done.pending, NOW))
    assert [kept.pending.change_id for kept in await store.of_project("acme")] == ["c1"]
    assert len(await store.all()) == 3
    assert await store.forget_done(NOW) == 0
    assert await store.forget_done(NOW + timedelta(seconds=1)) == 1
    assert await store.get("acme", "c3") is None


async def test_the_newest_deploys_are_remembered_once_each_in_order(bus):
    store = await KeyValueStore.open(bus)
    assert await store.deploys("acme") == []
    await store.remember_deploy(deploy(2))
    await store.remember_deploy(deploy(1))
    await store.remember_deploy(deploy(2))
    assert [each.release for each in await store.deploys("acme")] == ["v1", "v2"]
    await asyncio.gather(*(store.remember_deploy(deploy(number)) for number in range(3, 8)))
    assert len(await store.deploys("acme")) == 7


async def test_deploys_remembered_are_bounded(memory_bus):
    store = await KeyValueStore.open(memory_bus)
    for number in range(DEPLOYS_REMEMBERED_MAX + 5):
        await store.remember_deploy(deploy(number))
    releases = [each.release for each in await store.deploys("acme")]
    assert len(releases) == DEPLOYS_REMEMBERED_MAX
    assert releases[-1] == f"v{DEPLOYS_REMEMBERED_MAX + 4}"


# The counts


def minutes(query: RatesQuery) -> list[datetime]:
    found, minute = [], query.start
    while minute < query.end:
        found.append(minute)
        minute += timedelta(minutes=1)
    return found


async def test_counts_are_asked_in_parts_and_come_whole(bus):
    asked: list[RatesQuery] = []

    async def answer(query: RatesQuery) -> RatesAnswer:
        asked.append(query)
        if query.end - query.start > timedelta(hours=7):
            return RatesAnswer(truncated=True)
        rows = minutes(query)
        return RatesAnswer(
            signals=tuple(MinuteCount(minute=minute, release="v1", count=1) for minute in rows),
            exposure=tuple(ExposureMinute(minute=minute, service="shop", release="v1", count=10) for minute in rows),
        )

    await bus.answer(RATES_QUERY, answer)
    found = await GatewayRates(bus).counts("acme", "r1", METRIC, NOW, NOW + timedelta(days=2, minutes=1))
    assert len(found.signals) == len(found.exposure) == 2 * 1_440 + 1
    assert len({row.minute for row in found.signals}) == 2 * 1_440 + 1
    assert all((query.service, query.report_id) == ("shop", "r1") for query in asked)


async def test_counts_that_can_never_be_whole_are_refused(memory_bus):
    async def answer(query: RatesQuery) -> RatesAnswer:
        return RatesAnswer(truncated=True)

    await memory_bus.answer(RATES_QUERY, answer)
    with pytest.raises(Permanent):
        await GatewayRates(memory_bus).counts("acme", "r1", METRIC, NOW, NOW + timedelta(days=1))


async def test_nobody_answering_is_worth_a_retry(memory_bus):
    with pytest.raises(Unavailable):
        await GatewayRates(memory_bus).counts("acme", "r1", METRIC, NOW, NOW + timedelta(minutes=1))


# The history, and the process


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        assert process.poll() is None, f"{url} ended with {process.returncode}"
        try:
            if httpx.get(url, timeout=1).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"{url} did not answer")


class Own:
    """A person's own repository."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
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


@pytest.fixture
def forge_url(tmp_path) -> Iterator[str]:
    port = free_port()
    environment = {
        "PATH": os.environ["PATH"], "LOOPWRIGHT_FORGE_PORT": str(port), "LOOPWRIGHT_FORGE_DATA": str(tmp_path / "forge"),
        "LOOPWRIGHT_FORGE_READ_TOKEN": READ, "LOOPWRIGHT_FORGE_WRITE_TOKEN": WRITE, "LOOPWRIGHT_FORGE_MERGE_TOKEN": MERGE,
    }  # fmt: skip
    process = subprocess.Popen([sys.executable, "-m", "loopwright_repositories.local_forge"], env=environment)
    wait_for(f"http://127.0.0.1:{port}/healthz", process)
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait(timeout=20)


async def test_history_tells_containment_from_a_forge_it_can_only_read(forge_url, tmp_path):
    own = Own(tmp_path / "own")
    async with LocalForge(forge_url, SecretStr(WRITE)) as writer, LocalForge(forge_url, SecretStr(READ)) as reader:
        await writer.ensure_repository("shop", source=str(own.path))
        history = GitHistory(tmp_path / "mirrors", reader)
        assert (await history.contains("shop", deploy(1, commit=own.base), own.base)).answer == "yes"
        fix = own.commit("fix")
        own.git("tag", "v2")
        # Only the person's repository has them; the forge is asked to catch up.
        assert (await history.contains("shop", deploy(2), fix)).answer == "yes"
        found = await history.contains("shop", deploy(1, commit=own.base), fix)
        assert (found.answer, found.commit) == ("no", own.base)
        assert (await history.contains("shop", deploy(3), fix)).answer == "unknown"
        assert (await history.contains("shop", deploy(3, release="--help"), fix)).answer == "unknown"
        assert (await history.contains("nothing", deploy(1), fix)).answer == "unknown"
    async with LocalForge("http://127.0.0.1:9", SecretStr(READ)) as away:
        with pytest.raises((ForgeUnavailable, Unavailable)):
            await GitHistory(tmp_path / "other", away).contains("shop", deploy(1), fix)


class Measure:
    """The service as its own process."""

    def __init__(self, nats_url: str, forge_url: str, data: Path) -> None:
        self.port = free_port()
        self.environment = {
            "PATH": os.environ["PATH"], "LOOPWRIGHT_NATS_URL": nats_url, "LOOPWRIGHT_MEASURE_PORT": str(self.port),
            "LOOPWRIGHT_MEASURE_FORGE_URL": forge_url, "LOOPWRIGHT_MEASURE_FORGE_TOKEN": READ,
            "LOOPWRIGHT_MEASURE_CHECKOUTS_DIR": str(data), "LOOPWRIGHT_NATS_STORE_BYTES": str(256 * 1024**2),
        }  # fmt: skip
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-m", "loopwright_measure"], env=self.environment)
        wait_for(f"http://127.0.0.1:{self.port}/readyz", self.process)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


async def eventually(what, seconds: float = 40.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_the_service_gives_one_verdict_over_kills_at_every_stage(forge_url, nats_server, nats_bus, tmp_path):
    """Real nats-server, real forge, real process; windows of seconds. The verdict's signal comes once."""
    own = Own(tmp_path / "own")
    fix = own.commit("fix")
    async with LocalForge(forge_url, SecretStr(WRITE)) as writer:
        await writer.ensure_repository("shop", source=str(own.path))
    config = ProjectConfig(
        name="acme", repositories=(RepositoryConfig(name="shop"),), services=(ServiceConfig(name="shop", repository="shop"),)
    )
    bucket = await nats_bus.key_value(CONFIG_BUCKET)
    await bucket.put("project.acme", PublishedProject(number=1, revision=1, config=config).model_dump_json().encode())
    begun = datetime.now(UTC) - timedelta(minutes=5)

    async def answer(query: RatesQuery) -> RatesAnswer:
        start = begun.replace(second=0, microsecond=0)
        now = datetime.now(UTC).replace(second=0, microsecond=0)
        use = [(start + timedelta(minutes=number), "v1", 100) for number in range(5)] + [(now, "v2", 400)]
        asked = [row for row in use if query.start <= row[0] < query.end]
        return RatesAnswer(
            signals=tuple(MinuteCount(minute=minute, release=release, count=20) for minute, release, _ in asked if release == "v1"),
            exposure=tuple(ExposureMinute(minute=minute, service="shop", release=release, count=count) for minute, release, count in asked),
        )

    facts: dict[str, list] = {"started": [], "completed": [], "signals": []}

    def hear(name: str):
        async def handler(received) -> None:
            facts[name].append(received.payload)

        return handler

    await nats_bus.answer(RATES_QUERY, answer)
    for name, subject in (("started", MEASUREMENTS_STARTED), ("completed", MEASUREMENTS_COMPLETED), ("signals", SIGNALS)):
        await nats_bus.consume(ConsumerSpec(f"test-{name}", "test", (subject,)), hear(name))
    metric = METRIC.model_copy(
        update={
            "baseline_start": begun, "baseline_end": datetime.now(UTC), "settle": timedelta(seconds=1),
            "minimum_window": timedelta(seconds=4), "maximum_wait": timedelta(minutes=5),
        }
    )  # fmt: skip
    merged = ChangeMerged(
        change_id="c1", project="acme", report_id="r1", repository="shop", merge_commit=fix, merged_by="person:ada",
        merged_at=datetime.now(UTC), investigation=Investigation(
            id="i1", project="acme", report_id="r1", attempt=1, title="TypeError", summary="s", priority="P1", reason="r", confidence=0.9,
            verdict=InvestigationVerdict.ACTIONABLE, metric=metric, started_at=begun, completed_at=begun,
        ),
    )  # fmt: skip
    measure = Measure(nats_server.url, forge_url, tmp_path / "checkouts")
    try:
        await nats_bus.publish(Outgoing(CHANGES_MERGED, merged, "merged-c1", {"project": "acme"}))
        await eventually(lambda: httpx.get(f"http://127.0.0.1:{measure.port}/v1/measurements/pending").json()["total"] == 1)
        measure.kill()
        released = deploy(2, commit=fix, deployed_at=datetime.now(UTC))
        await nats_bus.publish(Outgoing(DEPLOYS, released, released.id, {"project": "acme", "service": "shop"}))
        measure.start()
        await eventually(lambda: facts["started"])
        measure.kill()
        await asyncio.sleep(5)  # the timer falls due while it is down
        measure.start()
        await eventually(lambda: facts["signals"])
    finally:
        measure.kill()
    (completed,) = facts["completed"]
    (signal,) = facts["signals"]
    assert completed.verdict == "held", completed.reason
    assert (completed.before.events, completed.after.events) == (99, 0)
    assert (signal.about_report, signal.labels["verdict"]) == ("r1", "held")
    assert len(facts["started"]) == 1


@pytest.mark.parametrize(
    ("arguments", "settings", "code", "told"),
    [
        (["--help"], {}, 0, "LOOPWRIGHT_MEASURE_FORGE_URL"),
        (["--wrong"], {}, 2, "unknown argument"),
        ([], {"LOOPWRIGHT_MEASURE_PORT": "x"}, 2, "LOOPWRIGHT_MEASURE_PORT"),
    ],
)
def test_help_and_bad_settings_tell_a_stranger_what_to_do(tmp_path, arguments, settings, code, told):
    done = subprocess.run(
        [sys.executable, "-m", "loopwright_measure", *arguments], env={"PATH": os.environ["PATH"], **settings}, cwd=tmp_path,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == code
    assert told in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
