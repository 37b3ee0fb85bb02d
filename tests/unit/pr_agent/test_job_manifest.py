"""The Job of a run, as a pure function makes it: what PodSecurity asks for, and every setting in its place."""

from __future__ import annotations

import copy
import json

import pytest
from loopwright_pr_agent.sandbox import pod_runner
from loopwright_pr_agent.sandbox.kubernetes.jobs import HAND_OVER_SECONDS
from loopwright_pr_agent.sandbox.kubernetes.manifest import (
    JobRun,
    JobSettings,
    bytes_of,
    job_manifest,
    job_name,
    label_value,
    memory_limit,
    run_id,
    user_of,
)
from loopwright_pr_agent.sandbox.port import MIB
from loopwright_pr_agent.testing.pod_security import restricted_faults

IMAGE = f"registry.example/sandbox@sha256:{'a' * 64}"
SETTINGS = JobSettings("sandbox", IMAGE)
RUN = JobRun(
    name="loopwright-acme-0123-1", run=run_id("acme/chg1/step"), key="acme/chg1/step", project="acme", change="chg1", claim="claim",
    token="token", broker_url="http://broker.loopwright:8414", broker_address="10.0.0.7", deadline_seconds=900, memory_bytes=512 * MIB,
)  # fmt: skip


def pod_of(settings: JobSettings = SETTINGS, run: JobRun = RUN) -> dict:
    return job_manifest(settings, run)["spec"]["template"]["spec"]


@pytest.mark.parametrize(
    "settings", [SETTINGS, JobSettings("sandbox", IMAGE, uid=None, gid=None), JobSettings("sandbox", IMAGE, runtime_class="gvisor")]
)
def test_a_jobs_pod_is_clean_under_podsecurity_restricted(settings):
    assert restricted_faults(pod_of(settings)) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("hostNetwork",), True),
        (("hostPID",), True),
        (("containers", 0, "securityContext", "privileged"), True),
        (("containers", 0, "securityContext", "allowPrivilegeEscalation"), True),
        (("containers", 0, "securityContext", "runAsNonRoot"), False),
        (("containers", 0, "securityContext", "runAsUser"), 0),
        (("containers", 0, "securityContext", "capabilities"), {"drop": ["NET_RAW"]}),
        (("containers", 0, "securityContext", "capabilities"), {"drop": ["ALL"], "add": ["SYS_ADMIN"]}),
        (("containers", 0, "securityContext", "seccompProfile"), {"type": "Unconfined"}),
        (("volumes", 0), {"name": "node", "hostPath": {"path": "/"}}),
    ],
)
def test_the_check_of_podsecurity_sees_each_fault(path, value):
    pod = copy.deepcopy(pod_of())
    place = pod
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert len(restricted_faults(pod)) == 1


def test_the_pod_has_no_account_no_names_and_no_way_to_write_but_bounded_scratch():
    pod = pod_of()
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert (pod["dnsPolicy"], pod["dnsConfig"]["nameservers"]) == ("None", ["127.0.0.1"])
    assert pod["hostAliases"] == [{"ip": "10.0.0.7", "hostnames": ["broker.loopwright"]}]
    container = pod["containers"][0]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    volumes = {volume["name"]: volume["emptyDir"] for volume in pod["volumes"]}
    assert all(int(volume["sizeLimit"]) > 0 for volume in volumes.values())
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {"/workspace", "/home/sandbox", "/run/inputs", "/tmp"}


def test_a_broker_named_by_address_needs_no_alias():
    run = JobRun(**{**vars(RUN), "broker_url": "http://10.0.0.7:8414", "broker_address": ""})
    assert "hostAliases" not in pod_of(run=run)


def test_a_job_and_its_pod_name_the_trace_they_belong_to():
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    job = job_manifest(SETTINGS, JobRun(**{**vars(RUN), "traceparent": trace}))
    for metadata in (job["metadata"], job["spec"]["template"]["metadata"]):
        assert metadata["annotations"]["loopwright.dev/traceparent"] == trace
    assert "loopwright.dev/traceparent" not in job_manifest(SETTINGS, RUN)["metadata"]["annotations"]


def test_a_job_is_tried_once_and_bounded_in_time():
    spec = job_manifest(SETTINGS, RUN)["spec"]
    assert (spec["backoffLimit"], spec["completions"], spec["parallelism"]) == (0, 1, 1)
    assert (spec["activeDeadlineSeconds"], spec["ttlSecondsAfterFinished"]) == (900, 900)
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert spec["podReplacementPolicy"] == "Failed"


def test_limits_cover_the_run_its_memory_file_system_and_the_runner():
    settings = JobSettings("sandbox", IMAGE, tmp_bytes=256 * MIB, workspace_bytes=100 * MIB, home_bytes=50 * MIB, cpu_limit="3")
    resources = pod_of(settings)["containers"][0]["resources"]
    assert int(resources["limits"]["memory"]) == memory_limit(settings, 512 * MIB) == (512 + 256 + 128) * MIB
    assert resources["limits"]["cpu"] == "3"
    assert int(resources["limits"]["ephemeral-storage"]) == (100 + 50 + 64 + 64) * MIB
    assert int(resources["requests"]["ephemeral-storage"]) <= int(resources["limits"]["ephemeral-storage"])
    small = JobRun(**{**vars(RUN), "memory_bytes": 64 * MIB})
    resources = pod_of(settings, small)["containers"][0]["resources"]
    assert int(resources["requests"]["memory"]) <= int(resources["limits"]["memory"]) == (64 + 64 + 128) * MIB


def test_what_is_set_is_in_the_pod_and_what_is_not_is_left_out():
    plain = pod_of()
    assert not {"imagePullSecrets", "runtimeClassName", "nodeSelector", "tolerations", "priorityClassName"} & set(plain)
    pod = pod_of(
        JobSettings(
            "sandbox", IMAGE, image_pull_policy="Always", image_pull_secrets=("one", "two"), runtime_class="gvisor", priority_class="low",
            node_selector={"pool": "sandbox"}, tolerations=({"key": "sandbox", "operator": "Exists"},), uid=5_000, uids=1, gid=6_000,
        )
    )  # fmt: skip
    assert pod["imagePullSecrets"] == [{"name": "one"}, {"name": "two"}]
    assert (pod["runtimeClassName"], pod["priorityClassName"]) == ("gvisor", "low")
    assert (pod["nodeSelector"], pod["tolerations"]) == ({"pool": "sandbox"}, [{"key": "sandbox", "operator": "Exists"}])
    assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"]) == (5_000, 6_000)
    container = pod["containers"][0]
    assert (container["image"], container["imagePullPolicy"]) == (IMAGE, "Always")
    assert container["command"] == ["python3", "-I", "/opt/loopwright/pod_runner.py"]
    assert {item["name"] for item in container["env"]} == {"LOOPWRIGHT_BROKER_URL", "LOOPWRIGHT_RUN", "LOOPWRIGHT_RUN_TOKEN"}


def test_where_the_platform_chooses_the_user_none_is_named():
    pod = pod_of(JobSettings("sandbox", IMAGE, uid=None, gid=None))
    for context in (pod["securityContext"], pod["containers"][0]["securityContext"]):
        assert context["runAsNonRoot"] is True
        assert not {"runAsUser", "runAsGroup"} & set(context)


def test_runs_take_users_of_their_own_out_of_the_range():
    users = {user_of(SETTINGS, run_id(f"run {number}")) for number in range(50)}
    assert len(users) > 45
    assert all(1_000_000 <= user < 1_010_000 for user in users)


def test_labels_are_an_index_and_the_token_is_in_none_of_them():
    job = job_manifest(SETTINGS, RUN)
    labels = job["metadata"]["labels"]
    assert labels["loopwright.dev/run"] == RUN.run
    assert (labels["loopwright.dev/change"], labels["loopwright.dev/project"]) == ("chg1", "acme")
    assert "token" not in json.dumps([job["metadata"], job["spec"]["template"]["metadata"]])


def test_names_and_labels_fit_whatever_the_project_is_called():
    name = job_name("Ä very long project_name " * 5, run_id("x"), 123_456)
    assert len(name) <= 63
    assert name == name.lower()
    assert name.replace("-", "").isalnum()
    assert label_value("-_ä/chg 1" * 20)[0].isalnum()
    assert len(label_value("x" * 200)) == 63


def test_the_same_key_names_the_same_run_and_another_key_another():
    assert run_id("acme/chg1/a") == run_id("acme/chg1/a") != run_id("acme/chg1/b")
    assert job_name("acme", run_id("a"), 1) != job_name("acme", run_id("a"), 2)


@pytest.mark.parametrize(("text", "number"), [("512Mi", 512 * MIB), ("1.5Gi", 1_610_612_736), ("2G", 2_000_000_000), ("1000", 1_000)])
def test_quantities_are_read_as_kubernetes_reads_them(text, number):
    assert bytes_of(text) == number


@pytest.mark.parametrize("text", ["", "12 Mi", "1e3", "Mi", "5Xi"])
def test_what_is_no_quantity_is_refused(text):
    with pytest.raises(ValueError, match="quantity"):
        bytes_of(text)


def test_a_runner_gives_up_with_its_reason_before_its_job_is_ended_without_one():
    assert pod_runner.FETCH_SECONDS_MAX + pod_runner.HAND_OVER_SECONDS_MAX + 60 < HAND_OVER_SECONDS
