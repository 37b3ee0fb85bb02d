"""The product in a real cluster: installed with the chart's defaults, its loop played, its parts killed, upgraded and rolled back."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from loopwright_cli.client import Api
from loopwright_common.testing.otlp_receiver import LOOP, LOOP_AFTER_THE_MERGE, OtlpReceiver, orphans

from tests.audit import AUDIT, Integrator, await_counted, begin, counted
from tests.cluster.clusters import Cluster
from tests.cluster.loop import Reached, play, reached
from tests.cluster.release import SANDBOXES, Release

COUNTED_SECONDS_MAX = 120.0
SERVICES = ("gateway", "ingest", "cluster", "investigator", "pr-agent", "measure")


def extra(cluster: Cluster, otlp: str = "") -> dict[str, Any]:
    """The values that the shop on this machine needs: ingest may ask its health; traces go to this machine where somebody listens."""
    machine = {"ipBlock": {"cidr": f"{cluster.host}/32"}}
    values: dict[str, Any] = {"ingest": {"networkPolicy": {"egress": [{"to": [machine]}]}}}
    if otlp:
        values["telemetry"] = {"otlpEndpoint": otlp, "otlpTo": [machine], "otlpPort": int(otlp.rsplit(":", 1)[1])}
    return values


def pods(release: Release) -> list[dict[str, Any]]:
    """The release's own pods that should run for good."""
    found = release.get("pods", "-l", f"app.kubernetes.io/instance={release.name}")["items"]
    return [pod for pod in found if not any(owner["kind"] == "Job" for owner in pod["metadata"].get("ownerReferences", []))]


def restarts(release: Release) -> dict[str, int]:
    return {pod["metadata"]["name"]: sum(item["restartCount"] for item in pod["status"]["containerStatuses"]) for pod in pods(release)}


def test_every_pod_is_ready_with_the_default_values_and_none_was_restarted(release: Release) -> None:
    found = pods(release)
    components = {pod["metadata"]["labels"]["app.kubernetes.io/component"] for pod in found}
    assert set(SERVICES) | {"nats", "postgresql", "forge"} <= components
    for pod in found:
        conditions = {condition["type"]: condition["status"] for condition in pod["status"]["conditions"]}
        assert conditions["Ready"] == "True", pod["metadata"]["name"]
    assert not any(restarts(release).values()), restarts(release)


def test_helm_test_passes(release: Release) -> None:
    said = release.helm("test", "--timeout", "180s", "--logs")
    assert "Succeeded" in said


def test_only_pr_agent_holds_a_token_of_the_cluster(release: Release) -> None:
    for pod in pods(release):
        component = pod["metadata"]["labels"]["app.kubernetes.io/component"]
        mounts = [mount["mountPath"] for container in pod["spec"]["containers"] for mount in container.get("volumeMounts", [])]
        assert ("/var/run/secrets/kubernetes.io/serviceaccount" in mounts) == (component == "pr-agent"), component


def test_pr_agent_may_do_in_the_sandbox_namespace_what_it_needs_and_nothing_else(release: Release) -> None:
    account = next(pod["spec"]["serviceAccountName"] for pod in pods(release) if "pr-agent" in pod["metadata"]["name"])
    who = f"system:serviceaccount:{release.namespace}:{account}"

    def may(verb: str, resource: str, namespace: str) -> bool:
        # can-i exits 1 when the answer is no
        name, _, part = resource.partition("/")  # can-i itself would take "pods/log" for a pod of that name
        asked = [verb, name, *([f"--subresource={part}"] if part else []), "-n", namespace, f"--as={who}"]
        said = release.cluster.kubectl("auth", "can-i", *asked, expected=(0, 1)).strip()
        assert said in ("yes", "no"), said
        return said == "yes"

    for resource in ("jobs.batch", "pods"):
        assert all(may(verb, resource, SANDBOXES) for verb in ("get", "list", "watch", "create", "delete"))
        assert not any(may(verb, resource, SANDBOXES) for verb in ("update", "patch", "deletecollection"))
        assert not any(may(verb, resource, release.namespace) for verb in ("get", "list", "create", "delete"))
    assert may("get", "pods/log", SANDBOXES)
    for verb, resource in (("get", "secrets"), ("list", "secrets"), ("create", "pods/exec"), ("get", "configmaps"), ("list", "events")):
        assert not may(verb, resource, SANDBOXES), (verb, resource)
        assert not may(verb, resource, release.namespace), (verb, resource)


@pytest.fixture
def audited(release: Release, tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Signals are posted all the while; the function given says, at the end, that each accepted one is counted once."""
    with reached(release, tmp_path / "audit") as there:
        gateway = Api(there.url("gateway"), there.operator_token)
        key = begin(gateway)
        before = counted(gateway, AUDIT)
        integrator = Integrator(there.url("ingest"), key, random.Random(5), prefix=f"{time.time_ns()}-")
        integrator.start()

        def check() -> None:
            integrator.stop()
            assert len(integrator.accepted) > 20
            await_counted(gateway, AUDIT, before + len(integrator.accepted), COUNTED_SECONDS_MAX)

        yield check
        integrator.stop()


@pytest.mark.timeout(900)
def test_the_loop_closes_in_the_cluster_in_one_trace(release: Release, tmp_path: Path, audited: Callable[[], None]) -> None:
    with OtlpReceiver("0.0.0.0") as receiver:
        release.upgrade(extra(release.cluster, f"http://{release.cluster.host}:{receiver.port}"))
        outcome = play(release, tmp_path / "demo")
        audited()
        report = outcome.report
        assert report["state"] == "held"
        assert report["investigation"]["suspects"][0]["commit"] == outcome.guilty
        assert {"exception", "health_check", "ticket", "measurement"} <= set(report["kinds"])
        change = report["change"]
        assert change["proof"] == "reproduced"
        assert {run["isolation"] for run in change["runs"]} == {"kubernetes"}
        assert {run["step"].startswith("verify.") for run in change["runs"]} == {True, False}, "made in one sandbox, verified in another"
        spans = receiver.wait_for_trace((*LOOP, *LOOP_AFTER_THE_MERGE))
        assert orphans(spans) == []
        jobs = {str(span.attributes.get("k8s.job.name", "")) for span in spans if span.name == "sandbox run"}
        assert "" not in jobs
        assert len(jobs) == len(change["runs"])
    leave_no_jobs(release)


def leave_no_jobs(release: Release) -> None:
    """What a run needed is gone when its result is in."""
    until = time.monotonic() + 60
    while left := [job["metadata"]["name"] for job in release.cluster.get("-n", SANDBOXES, "jobs")["items"]]:
        assert time.monotonic() < until, left
        time.sleep(1)


def test_an_upgrade_and_a_rollback_lose_no_accepted_signal(release: Release, audited: Callable[[], None]) -> None:
    changed = {**extra(release.cluster), "defaults": {"podAnnotations": {"example.org/changed": "yes"}}}
    release.upgrade(changed)
    assert all(pod["metadata"].get("annotations", {}).get("example.org/changed") == "yes" for pod in pods(release) if is_ours(pod))
    release.helm("rollback", "--wait", "--timeout", "300s")
    assert not any("example.org/changed" in pod["metadata"].get("annotations", {}) for pod in pods(release) if is_ours(pod))
    audited()


def is_ours(pod: dict[str, Any]) -> bool:
    gone = pod["metadata"].get("deletionTimestamp") is not None
    return pod["metadata"]["labels"]["app.kubernetes.io/component"] in SERVICES and not gone


@pytest.mark.timeout(900)
def test_the_loop_closes_once_though_its_pods_are_killed_and_the_kubelet_restarts(
    release: Release, tmp_path: Path, audited: Callable[[], None]
) -> None:
    killed: list[str] = []
    threads: list[threading.Thread] = []

    def kill(component: str, delay: float) -> None:
        time.sleep(delay)
        release.kubectl("delete", "pod", "-l", f"app.kubernetes.io/component={component}", "--grace-period=0", "--force", "--wait=false")
        killed.append(component)

    def kill_in_mid_run(delay: float) -> None:
        """pr-agent dies while one of its Jobs runs; another minute it is the kubelet."""
        until = time.monotonic() + 90
        while time.monotonic() < until:
            running = release.cluster.get("-n", SANDBOXES, "pods", "--field-selector=status.phase=Running")["items"]
            if running:
                kill("pr-agent", delay)
                if release.cluster.node is not None:
                    release.cluster.node.restart_kubelet()
                    killed.append("kubelet")
                return
            time.sleep(0.1)

    def act(title: str) -> None:
        plans: dict[str, Callable[[], None]] = {
            "Signals arrive, and find together": lambda: kill("cluster", 1.0),
            "The investigation": lambda: kill("gateway", 0.2),
            "The change, made and checked in a sandbox": lambda: kill_in_mid_run(0.2),
            "Did it help?": lambda: kill("measure", 2.0),
        }
        if title in plans:
            threads.append(threading.Thread(target=plans[title], daemon=True))
            threads[-1].start()

    release.upgrade(extra(release.cluster))
    outcome = play(release, tmp_path / "demo", act, project="shop-again")
    for thread in threads:
        thread.join(120)
    expected = {"cluster", "gateway", "pr-agent", "measure"} | ({"kubelet"} if release.cluster.node is not None else set())
    assert set(killed) == expected
    report = outcome.report
    assert report["state"] == "held"
    assert report["change"]["proof"] == "reproduced"
    with reached(release, tmp_path / "after") as there:
        assert_one_pull_request(there, "shop-again")
    audited()
    leave_no_jobs(release)


def assert_one_pull_request(there: Reached, repository: str) -> None:
    pulls = Api(there.url("forge"), there.secret("forge_read_token")).get(f"/api/v1/repos/{repository}/pulls")["pulls"]
    assert len(pulls) == 1, pulls
