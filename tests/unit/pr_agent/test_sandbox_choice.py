"""Which sandbox a service takes, by its settings and by what it finds."""

from __future__ import annotations

from datetime import timedelta

import pytest
from loopwright_common.clock import SystemClock
from loopwright_common.settings import BadSetting, load
from loopwright_common.testing.memory_bus import Broker, MemoryBus
from loopwright_pr_agent.app import Service
from loopwright_pr_agent.sandbox import detect
from loopwright_pr_agent.sandbox.kubernetes import service
from loopwright_pr_agent.sandbox.kubernetes.service import is_wanted, job_settings
from loopwright_pr_agent.settings import PrAgentSettings
from loopwright_pr_agent.testing.fake_cluster import FakeCluster

CLUSTER = {"sandbox_namespace": "sandboxes", "sandbox_image": "sandbox:1", "broker_url": "http://127.0.0.1:8414"}


@pytest.fixture
def in_a_pod(monkeypatch, tmp_path):
    (tmp_path / "token").write_text("t")
    monkeypatch.setattr(service, "SERVICE_ACCOUNT_TOKEN", tmp_path / "token")


@pytest.mark.parametrize("missing", ["sandbox_namespace", "sandbox_image", "broker_url"])
def test_kubernetes_by_name_needs_its_settings_and_says_which(monkeypatch, missing):
    monkeypatch.setenv("LOOPWRIGHT_PR_AGENT_SANDBOX", "kubernetes")
    for name, value in CLUSTER.items():
        if name != missing:
            monkeypatch.setenv(f"LOOPWRIGHT_PR_AGENT_{name.upper()}", value)
    with pytest.raises(BadSetting, match=f"LOOPWRIGHT_PR_AGENT_{missing.upper()}"):
        load(PrAgentSettings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BROKER_SECRET", "short"), ("BROKER_URL", "https://broker/path"), ("SANDBOX_CPU_LIMIT", "two"), ("SANDBOX_UID", "0"),
        ("SANDBOX_NAMESPACE", "Not_A_Name"), ("MODEL_BASE_URL", "http://model/v1"),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_do_stops_the_start(monkeypatch, name, value):
    monkeypatch.setenv(f"LOOPWRIGHT_PR_AGENT_{name}", value)
    with pytest.raises(BadSetting):
        load(PrAgentSettings)


def test_settings_reach_the_job(monkeypatch):
    for name, value in {
        "SANDBOX_UID": "null", "SANDBOX_GID": "null", "SANDBOX_IMAGE_PULL_SECRETS": "one, two", "SANDBOX_NODE_SELECTOR": '{"pool": "x"}',
        "SANDBOX_TOLERATIONS": '[{"key": "x", "operator": "Exists"}]', "SANDBOX_RUNTIME_CLASS": "gvisor",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"LOOPWRIGHT_PR_AGENT_{name}", value)
    made = job_settings(load(PrAgentSettings))
    assert (made.uid, made.gid, made.image_pull_secrets) == (None, None, ("one", "two"))
    assert (made.node_selector, made.runtime_class) == ({"pool": "x"}, "gvisor")
    assert made.tolerations == ({"key": "x", "operator": "Exists"},)


def test_jobs_are_tried_by_name_and_in_a_pod_where_a_namespace_is_set(in_a_pod):
    assert is_wanted(PrAgentSettings(sandbox="kubernetes", **CLUSTER))
    assert is_wanted(PrAgentSettings(sandbox="auto", **CLUSTER))
    assert not is_wanted(PrAgentSettings(sandbox="auto"))
    assert not is_wanted(PrAgentSettings(sandbox="bubblewrap", **CLUSTER))


def test_outside_of_a_pod_auto_stays_on_the_host(monkeypatch, tmp_path):
    monkeypatch.setattr(service, "SERVICE_ACCOUNT_TOKEN", tmp_path / "none")
    assert not is_wanted(PrAgentSettings(sandbox="auto", **CLUSTER))


async def started(settings: PrAgentSettings, cluster: FakeCluster) -> Service:
    made = Service(settings, MemoryBus("pr-agent", broker=Broker(SystemClock())), SystemClock(), jobs_api=cluster)
    await made._find_sandbox()
    return made


async def test_auto_takes_the_cluster_and_where_it_does_not_hold_the_host(in_a_pod, tmp_path, monkeypatch):
    cluster = FakeCluster()
    settings = PrAgentSettings(sandbox="auto", broker_host="127.0.0.1", broker_port=0, work_dir=tmp_path, **CLUSTER)
    taken = await started(settings, cluster)
    assert taken.sandbox_status().isolation == "kubernetes"
    await taken.stop(timedelta(0))
    cluster.forbidden = {("create", "jobs")}
    other = await started(settings, cluster)
    assert other.sandbox_status().isolation != "kubernetes"
    await other.stop(timedelta(0))
    cluster.close()


async def test_kubernetes_by_name_never_falls_back_and_is_looked_for_again(tmp_path):
    cluster = FakeCluster()
    cluster.forbidden = {("get", "pods/log")}
    settings = PrAgentSettings(sandbox="kubernetes", broker_host="127.0.0.1", broker_port=0, work_dir=tmp_path, **CLUSTER)
    made = await started(settings, cluster)
    assert (made.sandbox_status().isolation, "get pods/log" in made.sandbox_status().reason) == ("", True)
    cluster.forbidden = set()
    await made._find_sandbox()
    assert made.sandbox_status().isolation == "kubernetes"
    await made.stop(timedelta(0))
    cluster.close()


# What `python -m loopwright_pr_agent.sandbox.detect` says of a cluster


@pytest.fixture
def cluster():
    made = FakeCluster()
    yield made
    made.close()


def set_up(monkeypatch, **more):
    for name, value in (CLUSTER | more).items():
        monkeypatch.setenv(f"LOOPWRIGHT_PR_AGENT_{name.upper()}", value)


def test_detect_says_that_jobs_hold_in_a_cluster_and_makes_none(monkeypatch, capsys, cluster):
    set_up(monkeypatch, sandbox_runtime_class="gvisor")
    assert detect.main(["kubernetes"], cluster) == 0
    said = capsys.readouterr()
    assert said.out.startswith("kubernetes+gvisor: holds: Jobs in sandboxes of sandbox:1; the image is named by a tag")
    assert (said.err, cluster.created) == ("", [])


@pytest.mark.parametrize(
    ("forbidden", "more", "told"),
    [
        ({("create", "jobs")}, {}, "pr-agent may not create jobs in the namespace sandboxes; give its ServiceAccount the Role"),
        (set(), {"sandbox_image": ""}, "LOOPWRIGHT_PR_AGENT_SANDBOX_IMAGE is not set; Jobs need it."),
        (set(), {"broker_url": "http://nowhere.invalid:8414"}, "nowhere.invalid (LOOPWRIGHT_PR_AGENT_BROKER_URL) cannot be resolved"),
    ],
)
def test_detect_says_what_is_missing_in_a_cluster(monkeypatch, capsys, cluster, forbidden, more, told):
    set_up(monkeypatch, **more)
    cluster.forbidden = forbidden
    assert detect.main(["kubernetes"], cluster) == 1
    said = capsys.readouterr()
    assert said.err.startswith("kubernetes: does not hold: ")
    assert told in said.err
    assert said.out == ""


def test_detect_says_that_there_is_no_way_to_a_cluster(monkeypatch, capsys, tmp_path):
    set_up(monkeypatch)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    assert detect.main(["kubernetes"]) == 1
    assert "there is no way to a cluster" in capsys.readouterr().err


def test_detect_looks_at_host_and_cluster_where_there_are_settings_for_one(monkeypatch, capsys, cluster):
    async def only_landlock(choice="auto"):
        return None, [detect.Finding("bubblewrap", False, "not installed"), detect.Finding("landlock", True, "files")]

    monkeypatch.setattr(detect, "choose", only_landlock)
    assert detect.main([], cluster) == 0
    assert "kubernetes" not in capsys.readouterr().out
    set_up(monkeypatch)
    cluster.forbidden = {("get", "pods/log")}
    assert detect.main(["auto"], cluster) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["landlock", "bubblewrap", "kubernetes"]
    assert "get pods/log" in lines[2]


def test_detect_names_a_setting_that_cannot_be_used(monkeypatch, capsys, cluster):
    set_up(monkeypatch, sandbox_namespace="Not_A_Name")
    assert detect.main(["kubernetes"], cluster) == 2
    assert "LOOPWRIGHT_PR_AGENT_SANDBOX_NAMESPACE" in capsys.readouterr().err
