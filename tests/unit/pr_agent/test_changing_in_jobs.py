"""A change made in Jobs from request to pull request, with its service killed in mid-run: every run once, one result used."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections import Counter
from datetime import timedelta

import pytest
from loopwright_common.clock import SystemClock
from loopwright_common.contracts.changes import Change, ChangeFailed
from loopwright_pr_agent.app import Service
from loopwright_pr_agent.settings import PrAgentSettings
from loopwright_pr_agent.testing.fake_cluster import FakeCluster
from loopwright_pr_agent.testing.stand import IMAGE, NAMESPACE

pytestmark = pytest.mark.skipif(
    not shutil.which("bwrap") or not shutil.which("setpriv"), reason="the cluster by hand runs its pods with bubblewrap and setpriv"
)
# Waits between the two halves of the replay, so that there is a middle to be killed in.
SLOW = """import json, os, sys, time
time.sleep(2)
from shop import total
for signal in json.load(open(os.environ["LOOPWRIGHT_SIGNALS"])):
    try:
        total(json.loads(signal["request"]["data"]))
    except ZeroDivisionError:
        sys.exit(1)
"""
MANIFEST = """version: 1
setup: echo built > built.txt
test: test -f built.txt && PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 python -m pytest -q -p no:cacheprovider
reproduce: test -f built.txt && python replay.py
timeout: 60
"""


@pytest.fixture
def cluster():
    made = FakeCluster()
    yield made
    made.close()


@pytest.fixture
def in_jobs(stage) -> PrAgentSettings:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    wanted = {
        "sandbox": "kubernetes", "sandbox_namespace": NAMESPACE, "sandbox_image": IMAGE, "broker_host": "127.0.0.1", "broker_port": port,
        "broker_url": f"http://127.0.0.1:{port}",
    }  # fmt: skip
    stage.settings = stage.settings.model_copy(update=wanted)
    return stage.settings


async def begin(stage, cluster) -> Service:
    stage.service = Service(stage.settings, stage.bus, SystemClock(), jobs_api=cluster)
    await stage.service.start()
    return stage.service


@pytest.fixture
def slowly(repository, guilty) -> str:
    repository.commit("Wait a moment", replay_py=SLOW, manifest=MANIFEST)
    return guilty


@pytest.mark.timeout(240)
async def test_a_service_killed_in_mid_run_finds_its_job_and_every_run_happens_once(stage, in_jobs, cluster, slowly):
    first = await begin(stage, cluster)
    assert first.sandbox_status().isolation == "kubernetes"
    await stage.ask(stage.request(slowly))
    async with asyncio.timeout(60):
        while len(cluster.created) < 2 or not cluster.jobs:  # the baseline's setup, then its replay, which takes two seconds
            await asyncio.sleep(0.02)
    interrupted = {name: job["metadata"]["uid"] for name, job in cluster.jobs.items()}
    await first.stop(timedelta(0))
    assert {name: job["metadata"]["uid"] for name, job in cluster.jobs.items()} == interrupted
    stage.reconnect()
    await stage.begin()
    await begin(stage, cluster)
    change = await stage.heard(Change, seconds=180)
    assert change.proof == "reproduced", change
    assert [run.isolation for run in change.runs] == ["kubernetes"] * len(change.runs)
    steps = [run.step for run in change.runs]
    assert steps[:2] == ["baseline.setup", "baseline.reproduce"]
    # One Job for each run, none a second time: also not for those whose results came before the kill.
    assert len(cluster.created) == len(steps)
    assert set(Counter(cluster.created).values()) == {1}
    assert cluster.jobs == {}
    async with stage.forge() as forge:
        assert [pull.number for pull in await forge.list_pull_requests(stage.name)] == [change.pull_request.number]


async def test_a_cluster_that_lets_nothing_be_made_fails_the_change_with_what_is_missing(stage, in_jobs, cluster, guilty):
    cluster.forbidden = {("create", "jobs")}
    service = await begin(stage, cluster)
    assert "may not create jobs" in service.sandbox_status().reason
    await stage.ask(stage.request(guilty))
    assert "may not create jobs" in (await stage.heard(ChangeFailed)).reason
    assert cluster.created == []
