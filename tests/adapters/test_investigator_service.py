"""The investigator as its own process on a real nats-server: from the ready report to the published result, also through kill -9."""

# ruff: noqa: ASYNC220 (the service is another process: a test may well block while it starts or ends)

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from loopwright_common.bus import ConsumerSpec, Outgoing
from loopwright_common.contracts.configuration import CONFIG_BUCKET, ProjectConfig, PublishedProject, RepositoryConfig, ServiceConfig
from loopwright_common.contracts.investigations import InvestigationVerdict
from loopwright_common.contracts.queries import ExposureMinute, RatesAnswer
from loopwright_common.contracts.reports import MinuteCount, ReportReady, ReportSnapshot, ReportState
from loopwright_common.contracts.signals import Deploy, Signal, SignalKind, StackFrame
from loopwright_common.contracts.subjects import INVESTIGATIONS_COMPLETED, RATES_QUERY, REPORTS_READY

GOOD = "def total(cart):\n    amount = 0\n    for line in cart['lines']:\n        amount += line['price']\n    return amount\n"
BAD = GOOD.replace("line['price']", "line['price'] * line['rate']")
IDENTITY = {"GIT_AUTHOR_NAME": "Dave", "GIT_AUTHOR_EMAIL": "d@x.org", "GIT_COMMITTER_NAME": "Dave", "GIT_COMMITTER_EMAIL": "d@x.org"}


def git(directory, *arguments):
    environment = {**os.environ, **IDENTITY, "GIT_CONFIG_GLOBAL": "/dev/null"}
    said = subprocess.run(["git", "-C", str(directory), *arguments], env=environment, check=True, capture_output=True, text=True)
    return said.stdout.strip()


def commit(directory, message, files):
    for path, text in files.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_text(text)
    git(directory, "add", "-A")
    git(directory, "commit", "-q", "-m", message)
    return git(directory, "rev-parse", "HEAD")


@pytest.fixture
def source(tmp_path):
    directory = tmp_path / "source"
    directory.mkdir()
    git(directory, "init", "-q", "-b", "main")
    good = commit(directory, "Begin", {"shop/cart.py": GOOD})
    guilty = commit(directory, "Convert prices", {"shop/cart.py": BAD})
    bad = commit(directory, "Explain", {"README.md": "# Shop\n"})
    return directory, good, guilty, bad


class Process:
    """``python -m loopwright_investigator`` on a free port."""

    def __init__(self, nats_url, tmp_path, **settings):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.environment = {
            "PATH": os.environ["PATH"],
            "LOOPWRIGHT_NATS_URL": nats_url,
            "LOOPWRIGHT_LOG_FORMAT": "text",
            "LOOPWRIGHT_INVESTIGATOR_PORT": str(self.port),
            "LOOPWRIGHT_INVESTIGATOR_MIRRORS_DIR": str(tmp_path / "mirrors"),
            "LOOPWRIGHT_INVESTIGATOR_FORGE_URL": "",
            "LOOPWRIGHT_INVESTIGATOR_NATS_STORE_BYTES": str(256 * 1024**2),
            **{f"LOOPWRIGHT_INVESTIGATOR_{name.upper()}": value for name, value in settings.items()},
        }
        self.process = None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    async def start(self):
        self.process = subprocess.Popen([sys.executable, "-m", "loopwright_investigator"], env=self.environment)
        async with httpx.AsyncClient(timeout=1) as client:
            for _ in range(300):
                assert self.process.poll() is None, f"the service ended with {self.process.returncode}"
                try:
                    if (await client.get(f"{self.url}/readyz")).status_code == 200:
                        return
                except httpx.HTTPError:
                    pass
                await asyncio.sleep(0.1)
        raise AssertionError("the service was not ready within 30 s")

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(timeout=10)

    def stop(self):
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(timeout=20)
        return self.process.returncode if self.process is not None else None


@pytest.fixture
def new_process(nats_server, tmp_path):
    made = []

    def make(**settings):
        made.append(Process(nats_server.url, tmp_path, **settings))
        return made[-1]

    yield make
    for process in made:
        process.stop()


class Gateway:
    """What the gateway does for the investigator: configuration, rates, the ready report; it hears the results."""

    def __init__(self, bus, source, slow=0.0):
        self.bus = bus
        self.directory, self.good, self.guilty, self.bad = source
        self.now = datetime.now(UTC).replace(microsecond=0)
        self.results = []
        self.heard = asyncio.Event()
        self.asked = asyncio.Event()
        self.slow = slow
        self.deploys = tuple(
            Deploy(
                id=f"d{name[-1]}", project="demo", service="shop", release=name, commit=sha, deployed_at=self.now - timedelta(minutes=ago)
            )
            for name, sha, ago in (("1.1", self.bad, 20), ("1.0", self.good, 60))
        )

    async def start(self):
        bucket = await self.bus.key_value(CONFIG_BUCKET)
        config = ProjectConfig(
            name="demo",
            repositories=(RepositoryConfig(name="code", source=str(self.directory)),),
            services=(ServiceConfig(name="shop", repository="code"),),
        )
        await bucket.put("project.demo", PublishedProject(number=1, revision=1, config=config).model_dump_json().encode())
        await self.bus.answer(RATES_QUERY, self._rates)

        async def hear(received):
            self.results.append(received.payload)
            self.heard.set()

        await self.bus.consume(ConsumerSpec("test-results", "gateway", (INVESTIGATIONS_COMPLETED,)), hear)

    async def _rates(self, query):
        self.asked.set()
        await asyncio.sleep(self.slow)
        return RatesAnswer(
            signals=(MinuteCount(minute=self.now - timedelta(minutes=5), release="1.1", count=30),),
            exposure=tuple(
                ExposureMinute(minute=self.now - timedelta(minutes=ago), service="shop", release=release, count=500)
                for release, ago in (("1.0", 50), ("1.0", 40), ("1.1", 10), ("1.1", 5))
            ),
            deploys=self.deploys,
        )

    async def say_ready(self, report_id="r1", message_id="ready-1"):
        frame = StackFrame(file="/app/shop/cart.py", line=4, function="total", context="        amount += line['price'] * line['rate']")
        seen = self.now - timedelta(minutes=8)
        signal_ = Signal(
            id="s1",
            project="demo",
            source="sentry",
            kind=SignalKind.EXCEPTION,
            title="KeyError: 'rate'",
            occurred_at=seen,
            received_at=seen,
            service="shop",
            release="1.1",
            environment="production",
            exception_type="KeyError",
            exception_value="'rate'",
            frames=(frame,),
        )
        report = ReportSnapshot(
            id=report_id,
            project="demo",
            title="KeyError: 'rate'",
            state=ReportState.READY,
            services=("shop",),
            kinds={"exception": 30},
            releases={"1.1": 30},
            signal_count=30,
            people_count=4,
            first_seen=seen,
            last_seen=self.now,
            examples=(signal_,),
        )
        ready = ReportReady(project="demo", report=report, deploys=self.deploys, at=self.now)
        await self.bus.publish(Outgoing(REPORTS_READY, ready, message_id, {"project": "demo"}, about=report_id))

    async def result(self, seconds=30.0):
        await asyncio.wait_for(self.heard.wait(), seconds)
        return self.results[0]


@pytest.fixture
async def gateway(new_nats_bus, source):
    gateway = Gateway(await new_nats_bus("gateway"), source)
    await gateway.start()
    return gateway


async def test_ready_report_becomes_a_published_investigation_with_its_bundle(gateway, new_process):
    process = new_process()
    await process.start()
    await gateway.say_ready()
    result = await gateway.result()
    assert result.suspects[0].commit == gateway.guilty
    assert result.verdict is InvestigationVerdict.ACTIONABLE
    assert result.base_commit == gateway.bad
    async with httpx.AsyncClient(base_url=process.url) as client:
        bundle = (await client.get(f"/v1/investigations/{result.id}/bundle")).json()
        assert bundle["investigation"]["id"] == result.id
        assert bundle["main"] == gateway.bad
        missing = await client.get("/v1/investigations/nothing/bundle")
        assert missing.status_code == 404
        assert missing.headers["content-type"].startswith("application/problem+json")
        status = (await client.get("/v1/status")).json()
        assert status == {"running": 0, "model": ""}
        assert "loopwright_investigations_total" in (await client.get("/metrics")).text
    assert process.stop() == 0


async def test_process_killed_while_it_investigates_gives_one_result_after_its_restart(gateway, new_process):
    gateway.slow = 1.0
    process = new_process()
    await process.start()
    await gateway.say_ready()
    await asyncio.wait_for(gateway.asked.wait(), 20)
    process.kill()
    gateway.slow = 0.0
    await process.start()
    result = await gateway.result(60)
    assert result.suspects[0].commit == gateway.guilty
    await asyncio.sleep(1.0)
    assert len({each.id for each in gateway.results}) == 1


def test_bad_setting_stops_the_start_with_the_remedy(tmp_path):
    environment = {"PATH": os.environ["PATH"], "LOOPWRIGHT_INVESTIGATOR_MODEL_BASE_URL": "http://127.0.0.1:1/v1"}
    said = subprocess.run([sys.executable, "-m", "loopwright_investigator"], env=environment, capture_output=True, text=True, timeout=60)
    assert said.returncode == 2
    assert "LOOPWRIGHT_INVESTIGATOR_MODEL_NAME" in said.stderr


def test_help_names_every_setting(tmp_path):
    command = [sys.executable, "-m", "loopwright_investigator", "--help"]
    said = subprocess.run(command, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, timeout=60)
    assert said.returncode == 0
    for name in ("MIRRORS_DIR", "FORGE_URL", "FORGE_TOKEN", "MODEL_BASE_URL", "MODEL_API_KEY"):
        assert f"LOOPWRIGHT_INVESTIGATOR_{name}" in said.stdout
