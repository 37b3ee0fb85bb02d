"""A small shop with a guilty commit, the local forge as its own process, and a pr-agent on the bus in memory."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from loopwright_common.bus import ConsumerSpec, Outgoing
from loopwright_common.clock import SystemClock
from loopwright_common.contracts import subjects
from loopwright_common.contracts.changes import ChangeCommand, ChangeRequested
from loopwright_common.contracts.configuration import CONFIG_BUCKET, ProjectConfig, PublishedProject, RepositoryConfig, ServiceConfig
from loopwright_common.contracts.investigations import Claim, Investigation, MetricContract, Observation, SuspectCommit
from loopwright_common.contracts.reports import ReportSnapshot
from loopwright_common.contracts.signals import RequestContext, Signal
from loopwright_common.testing.memory_bus import Broker, MemoryBus
from loopwright_pr_agent.app import Service
from loopwright_pr_agent.settings import PrAgentSettings
from loopwright_repositories.forges.local import LocalForge
from pydantic import SecretStr

READ, WRITE, MERGE = "read-token-0123456789", "write-token-0123456789", "merge-token-0123456789"
NOW = datetime(2026, 11, 26, 10, 0, tzinfo=UTC)

MANIFEST = """version: 1
test: PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 python -m pytest -q -p no:cacheprovider
reproduce: python replay.py
timeout: 60
"""
REPLAY = """import json, os, sys
from shop import total
failed = 0
for signal in json.load(open(os.environ["LOOPWRIGHT_SIGNALS"])):
    try:
        total(json.loads(signal["request"]["data"]))
    except ZeroDivisionError:
        failed += 1
print(failed, "failed")
sys.exit(1 if failed else 0)
"""
GOOD = "def total(items):\n    return sum(items)\n\n\ndef name():\n    return 'shop'\n"
BAD = "def total(items):\n    return sum(items) / len(items) * len(items)\n\n\ndef name():\n    return 'shop'\n"
TESTS = "from shop import total\n\n\ndef test_total():\n    assert total([1, 2]) == 3\n"


class Repository:
    """A person's own repository."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self.git("init", "-q", "-b", "main")

    def git(self, *arguments: str) -> str:
        environment = {
            "PATH": os.environ["PATH"], "HOME": str(self.path), "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_AUTHOR_NAME": "Bob", "GIT_AUTHOR_EMAIL": "bob@example.org", "GIT_COMMITTER_NAME": "Bob",
            "GIT_COMMITTER_EMAIL": "bob@example.org",
        }  # fmt: skip
        said = subprocess.run(["git", *arguments], cwd=self.path, env=environment, check=True, capture_output=True, text=True, timeout=30)
        return said.stdout.strip()

    def commit(self, title: str, **files: str) -> str:
        for name, content in files.items():
            place = self.path / name.replace("__", "/").replace("_yaml", ".yaml").replace("_py", ".py")
            if name == "manifest":
                place = self.path / ".loopwright.yaml"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(content)
        self.git("add", "-A")
        self.git("commit", "-q", "-m", title)
        return self.git("rev-parse", "HEAD")


class ForgeServer:
    """The local forge as its own process."""

    def __init__(self, data: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        environment = {
            "PATH": os.environ["PATH"], "LOOPWRIGHT_FORGE_PORT": str(self.port), "LOOPWRIGHT_FORGE_DATA": str(data),
            "LOOPWRIGHT_FORGE_READ_TOKEN": READ, "LOOPWRIGHT_FORGE_WRITE_TOKEN": WRITE, "LOOPWRIGHT_FORGE_MERGE_TOKEN": MERGE,
        }  # fmt: skip
        self.process = subprocess.Popen([sys.executable, "-m", "loopwright_repositories.local_forge"], env=environment, cwd=data.parent)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"{self.url}/healthz", timeout=1).status_code == 200:
                    return
            except httpx.HTTPError:
                time.sleep(0.05)
        raise AssertionError("the forge did not start")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=20)


@pytest.fixture(scope="session")
def forge_server(tmp_path_factory) -> Iterator[ForgeServer]:
    server = ForgeServer(tmp_path_factory.mktemp("forge") / "data")
    yield server
    server.stop()


@pytest.fixture
def repository(tmp_path) -> Repository:
    return Repository(tmp_path / "shop")


@pytest.fixture
def guilty(repository) -> str:
    """The shop's history; gives the guilty commit."""
    repository.commit("Sell things", shop_py=GOOD, test_shop_py=TESTS, replay_py=REPLAY, manifest=MANIFEST)
    guilty = repository.commit("Average <img src=x> the @everyone total", shop_py=BAD)
    repository.commit("Say hello", README="hello\n")
    return guilty


class Stage:
    """A pr-agent, what it said, and the means to ask it."""

    def __init__(self, broker: Broker, settings: PrAgentSettings, name: str, source: Path) -> None:
        self.broker = broker
        self.bus, self.settings, self.name, self.source = MemoryBus("pr-agent", broker=broker), settings, name, source
        self.said: list = []
        self.service: Service | None = None

    async def begin(self) -> None:
        await self.begin_with(self.source)
        await self.listen()

    async def begin_with(self, source: Path) -> None:
        """The configuration, with the repository imported from ``source``."""
        config = ProjectConfig(
            name="acme",
            repositories=(RepositoryConfig(name=self.name, source=str(source)),),
            services=(ServiceConfig(name="checkout", repository=self.name),),
        )
        bucket = await self.bus.key_value(CONFIG_BUCKET)
        await bucket.put("project.acme", PublishedProject(number=1, revision=1, config=config).model_dump_json().encode())

    async def listen(self) -> None:
        async def hear(received) -> None:
            self.said.append(received.payload)

        told = (
            subjects.CHANGES_OPENED, subjects.CHANGES_UPDATED, subjects.CHANGES_MERGED, subjects.CHANGES_CLOSED, subjects.CHANGES_FAILED,
            subjects.CHANGES_REFUSED, subjects.CHANGES_PROGRESSED,
        )  # fmt: skip
        await self.bus.consume(ConsumerSpec("ears", "test", told), hear)

    def reconnect(self) -> None:
        """A new connection to the same broker, with new ears."""
        self.bus = MemoryBus("pr-agent", broker=self.broker)
        self.said = []

    async def start(self, publisher=None) -> Service:
        self.service = Service(self.settings, self.bus, SystemClock(), publisher)
        await self.service.start()
        return self.service

    async def heard(self, kind: type, seconds: float = 60.0, count: int = 1):
        """The ``count``-th fact of a kind, waited for."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = [fact for fact in self.said if type(fact) is kind]
            if len(found) >= count:
                return found[count - 1]
            await asyncio.sleep(0.05)
        raise AssertionError(f"no {kind.__name__} (of {[type(fact).__name__ for fact in self.said]}) within {seconds} s: {self.said[-3:]}")

    async def ask(self, request: ChangeRequested, again: str = "") -> None:
        await self.bus.publish(Outgoing(subjects.CHANGES_REQUESTED, request, f"ask{again}:{request.change_id}", {"project": "acme"}))

    async def command(self, change_id: str, action: str, command_id: str = "cmd1", **more) -> None:
        command = ChangeCommand(
            command_id=command_id, project="acme", change_id=change_id, report_id="rep1", action=action, actor="person:ada",
            actor_name="Ada Lovelace", actor_email="ada@example.org", at=NOW, **more,
        )  # fmt: skip
        await self.bus.publish(Outgoing(subjects.COMMANDS_CHANGES, command, command_id, {"project": "acme"}))

    def forge(self, token: str = MERGE) -> LocalForge:
        return LocalForge(self.settings.forge_url, SecretStr(token))

    def request(self, suspect: str | None, change_id: str = "chg1", **more) -> ChangeRequested:
        signal_ = Signal(
            id="sig1", project="acme", source="sentry", kind="exception", title="ZeroDivisionError", occurred_at=NOW, received_at=NOW,
            exception_type="ZeroDivisionError", request=RequestContext(method="POST", url="/total", data="[]"),
        )  # fmt: skip
        report = ReportSnapshot(
            id="rep1", project="acme", title="ZeroDivisionError in @admin's <b>total</b>", state="changing", services=("checkout",),
            kinds={"exception": 3}, signal_count=3, people_count=2, first_seen=NOW, last_seen=NOW, examples=(signal_,),
        )  # fmt: skip
        suspects = ()
        if suspect:
            suspects = (
                SuspectCommit(commit=suspect, title="Average <img src=x> the @everyone total", author="Bob", committed_at=NOW, score=0.9,
                              reasons=("it last touched the failing line",)),
            )  # fmt: skip
        investigation = Investigation(
            id="inv1", project="acme", report_id="rep1", attempt=1, title="t", summary="It divides by zero.",
            evidence=(Observation(id="e1", kind="git.blame", question="who?", answer="Bob"),),
            claims=(Claim(statement="![x](http://evil.example/x.png) @team did it", cites=("e1",)),),
            suspects=suspects, repository=self.name, priority="P1", verdict="actionable", reason="clear", confidence=0.9,
            metric=MetricContract(query="errors", service="checkout", baseline_start=NOW - timedelta(hours=1), baseline_end=NOW),
            started_at=NOW, completed_at=NOW,
        )  # fmt: skip
        return ChangeRequested(
            change_id=change_id, project="acme", report=report, investigation=investigation, requested_by="policy", at=NOW, **more
        )


@pytest.fixture
async def stage(tmp_path, forge_server, repository, request):
    (tmp_path / "write").write_text(WRITE)
    (tmp_path / "merge").write_text(MERGE)
    settings = PrAgentSettings(
        work_dir=tmp_path / "work",
        forge_url=forge_server.url,
        forge_read_token=SecretStr(READ),
        forge_write_token_file=tmp_path / "write",
        forge_merge_token_file=tmp_path / "merge",
        poll_seconds=0.3,
        run_seconds_max=60,
    )
    for folder in tmp_path.parents:
        if "pytest" in folder.name:
            folder.chmod(0o711)
    tmp_path.chmod(0o711)
    made = Stage(Broker(SystemClock()), settings, f"shop-{abs(hash(request.node.nodeid)) % 10**9}", repository.path)
    await made.begin()
    yield made
    if made.service is not None:
        await made.service.stop(timedelta(seconds=2))
    await made.bus.close()
