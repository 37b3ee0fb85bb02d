"""What became of a Job: statuses in the form that Kubernetes writes them, read as what they are."""

from __future__ import annotations

from typing import Any

import pytest
from loopwright_pr_agent.sandbox.kubernetes.statuses import Ended, Handed, Trouble, refusal, verdict

UID = "0b7e6a1c"


def job(*conditions: dict[str, Any], uid: str = UID, **status: Any) -> dict[str, Any]:
    return {"metadata": {"name": "loopwright-acme-1", "uid": uid}, "status": {"conditions": list(conditions), **status}}


def failed(reason: str, kind: str = "Failed") -> dict[str, Any]:
    return {"type": kind, "status": "True", "reason": reason, "message": f"{reason} was met"}


def pod(state: dict[str, Any] | None = None, *, phase: str = "Running", owner: str = UID, **status: Any) -> dict[str, Any]:
    statuses = [{"name": "run", "state": state}] if state is not None else []
    owners = [{"kind": "Job", "uid": owner, "controller": True}]
    return {"metadata": {"name": "pod-1", "ownerReferences": owners}, "status": {"phase": phase, "containerStatuses": statuses, **status}}


def terminated(code: int, reason: str = "Error", message: str = "") -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": reason, "message": message}}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}}


def look(thing: dict[str, Any] | None, *pods: dict[str, Any], waited: float = 5.0) -> Any:
    return verdict(thing, pods, UID, waited, 60.0)


@pytest.mark.parametrize(
    "pods", [(), (pod(phase="Pending"),), (pod({"running": {}}),), (pod(waiting("ContainerCreating"), phase="Pending"),)], ids=range(4)
)
def test_a_job_that_may_still_come_to_its_end_is_waited_for(pods):
    assert look(job(active=1), *pods) is None


def test_oomkilled_is_out_of_memory():
    found = look(job(failed("BackoffLimitExceeded")), pod(terminated(137, "OOMKilled"), phase="Failed"))
    assert isinstance(found, Ended)
    assert (found.outcome, "OOMKilled" in found.detail) == ("out_of_memory", True)


@pytest.mark.parametrize("kind", ["Failed", "FailureTarget"])
def test_a_deadline_that_passed_while_it_ran_is_a_time_out(kind):
    assert look(job(failed("DeadlineExceeded", kind)), pod(terminated(143), phase="Failed")) == Ended(
        "timed_out", "DeadlineExceeded: the Job was active longer than it may"
    )


def test_a_deadline_whose_pod_is_gone_is_a_time_out_too():
    found = look(job(failed("DeadlineExceeded")))
    assert isinstance(found, Ended)
    assert found.outcome == "timed_out"


def test_a_deadline_that_passed_before_the_pod_began_is_not_the_runs_fault():
    found = look(job(failed("DeadlineExceeded")), pod(phase="Pending"))
    assert isinstance(found, Trouble)
    assert "did not begin" in found.reason


@pytest.mark.parametrize(
    "message",
    [
        'Usage of EmptyDir volume "workspace" exceeds the limit "2Gi". ',
        "Pod ephemeral local storage usage exceeds the total limit of containers 2Gi. ",
        'Container run exceeded its local ephemeral storage limit "2Gi". ',
    ],
)
def test_eviction_for_its_own_disk_ends_the_run_and_names_the_volume(message):
    found = look(job(failed("BackoffLimitExceeded")), pod(terminated(137), phase="Failed", reason="Evicted", message=message))
    assert isinstance(found, Ended)
    assert found.outcome == "killed"
    assert message in found.detail


@pytest.mark.parametrize(
    "message", ["The node was low on resource: ephemeral-storage. Threshold quantity: 1Gi", "The node had condition: [DiskPressure]. "]
)
def test_eviction_for_the_nodes_trouble_is_tried_again(message):
    found = look(job(failed("BackoffLimitExceeded")), pod(phase="Failed", reason="Evicted", message=message))
    assert isinstance(found, Trouble)
    assert not found.permanent
    assert message in found.reason


@pytest.mark.parametrize("reason", ["EvictionByEvictionAPI", "PreemptionByScheduler", "DeletionByTaintManager", "TerminationByKubelet"])
def test_a_disruption_of_the_pod_is_tried_again_by_its_name(reason):
    condition = {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": "going away"}
    found = look(job(failed("BackoffLimitExceeded")), pod(terminated(137), phase="Failed", conditions=[condition]))
    assert isinstance(found, Trouble)
    assert reason in found.reason
    assert not found.permanent


@pytest.mark.parametrize(
    ("reason", "permanent"),
    [("ImagePullBackOff", False), ("InvalidImageName", True), ("ErrImageNeverPull", True), ("CreateContainerConfigError", True)],
)
def test_an_image_that_cannot_be_had_is_told_with_the_kubelets_words(reason, permanent):
    found = look(job(active=1), pod(waiting(reason, "back-off pulling image x"), phase="Pending"))
    assert isinstance(found, Trouble)
    assert reason in found.reason
    assert "back-off pulling image x" in found.reason
    assert found.permanent is permanent


def test_a_first_failed_pull_is_given_time_and_not_for_ever():
    stuck = pod(waiting("ErrImagePull", "no route"), phase="Pending")
    assert look(job(active=1), stuck, waited=10) is None
    found = look(job(active=1), stuck, waited=61)
    assert isinstance(found, Trouble)
    assert "ErrImagePull" in found.reason


def test_an_image_without_the_runner_is_told_for_good():
    found = look(job(failed("BackoffLimitExceeded")), pod(terminated(128, "StartError", "exec: python3: not found"), phase="Failed"))
    assert isinstance(found, Trouble)
    assert found.permanent
    assert "python3" in found.reason


def test_no_node_within_the_bound_is_told_with_the_schedulers_words():
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes: Insufficient memory"}
    stuck = pod(phase="Pending", conditions=[condition])
    assert look(job(active=1), stuck, waited=30) is None
    found = look(job(active=1), stuck, waited=61)
    assert isinstance(found, Trouble)
    assert "Insufficient memory" in found.reason


def test_a_job_without_a_pod_is_asked_about():
    assert look(job(), waited=10) is None
    found = look(job(), waited=16)
    assert isinstance(found, Trouble)
    assert found.no_pod


def test_a_pod_of_another_job_is_not_looked_at():
    assert look(job(active=1), pod(terminated(137, "OOMKilled"), phase="Failed", owner="another")) is None


def test_a_job_of_that_name_with_another_uid_is_not_ours():
    found = look(job(uid="another"), pod({"running": {}}))
    assert isinstance(found, Trouble)
    assert "another one" in found.reason


def test_a_job_that_is_gone_is_told():
    found = look(None)
    assert isinstance(found, Trouble)
    assert "gone" in found.reason


def test_a_runner_that_left_well_has_handed_over():
    complete = {"type": "Complete", "status": "True", "reason": "CompletionsReached"}
    assert look(job(complete), pod(terminated(0, "Completed"), phase="Succeeded")) == Handed()


@pytest.mark.parametrize(("code", "said"), [(5, "could not be reached"), (4, "token"), (1, "Traceback")])
def test_a_runner_that_left_without_a_result_says_why(code, said):
    found = look(job(failed("BackoffLimitExceeded")), pod(terminated(code, message="Traceback"), phase="Failed"))
    assert isinstance(found, Trouble)
    assert said in found.reason


@pytest.mark.parametrize(
    ("status", "message", "permanent", "said"),
    [
        (403, 'pods "x" is forbidden: exceeded quota: sandbox, requested: pods=1, used: pods=5, limited: pods=5', False, "quota"),
        (403, 'pods "x" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true', True, "PodSecurity"),
        (403, 'jobs.batch is forbidden: User "system:serviceaccount:a:b" cannot create resource "jobs"', True, "Role"),
        (403, "unable to create new content in namespace sandbox because it is being terminated", False, "being deleted"),
        (404, 'namespaces "sandbox" not found', True, "SANDBOX_NAMESPACE"),
        (422, "Job.batch is invalid: spec.template.spec.tolerations[0]", True, "SANDBOX_"),
        (409, "conflict", False, "409"),
    ],
)
def test_the_api_servers_no_is_told_with_its_remedy(status, message, permanent, said):
    found = refusal(status, message)
    assert found.permanent is permanent
    assert said in found.reason
