"""What became of a Job, read from its own status and its pod's: pure, on the API's plain JSON.

Events are not read: they need another permission, come late and are thrown away. What only they would tell (why no pod could be made) is
asked for with a dry run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from loopwright_pr_agent.sandbox.port import Outcome

Object = Mapping[str, Any]
NO_POD_SECONDS = 15.0  # a Job's pod is made within one; longer means that something refuses it
WRONG_IMAGE = frozenset({"InvalidImageName", "ErrImageNeverPull"})
NO_IMAGE = frozenset({"ImagePullBackOff", "RegistryUnavailable", "ImageInspectError", "SignatureValidationFailed"})
WRONG_CONTAINER = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "CrashLoopBackOff"})
CANNOT_START = frozenset({"StartError", "ContainerCannotRun"})
# The kubelet's words for a pod's own doing; any other eviction is the node's trouble (pkg/kubelet/eviction).
OWN_DISK = ("emptydir volume", "ephemeral local storage usage exceeds", "exceeded its local ephemeral storage limit")
RUNNER_EXITS = {
    2: "the runner in the image was called wrongly; does the image belong to this version?",
    3: "the broker did not take the result",
    4: "the broker refused the run's token",
    5: "the broker could not be reached from the pod; does a network policy or LOOPWRIGHT_PR_AGENT_BROKER_URL stand in the way?",
    143: "the pod was told to end",
}


@dataclass(frozen=True)
class Ended:
    """The run came to an end that is its own doing, without a result: how a sandbox reports it."""

    outcome: Outcome
    detail: str


@dataclass(frozen=True)
class Trouble:
    """The run could not be done. ``permanent``: no further try can do better. ``no_pod``: the reason has to be asked for."""

    reason: str
    permanent: bool = False
    no_pod: bool = False


@dataclass(frozen=True)
class Handed:
    """The runner left with success, so its result is stored."""


Verdict = Ended | Trouble | Handed


def verdict(job: Object | None, pods: Sequence[Object], uid: str, waited_seconds: float, pending_seconds_max: float) -> Verdict | None:
    """How the Job ``uid`` stands after ``waited_seconds``; None while it may still come to its end."""
    if job is None:
        return Trouble("the Job is gone: somebody deleted it, or it was cleaned up, before its result came")
    if job["metadata"]["uid"] != uid:
        return Trouble(f"the Job of that name is another one (uid {job['metadata']['uid']}, not {uid})")
    own = [pod for pod in pods if _belongs_to(pod, uid)]
    for pod in own:
        if (found := _of_pod(pod, waited_seconds, pending_seconds_max)) is not None:
            return found
    failed = _condition(job, "Failed") or _condition(job, "FailureTarget")
    if failed is not None:
        reason, message = str(failed.get("reason", "")), str(failed.get("message", ""))[:500]
        if reason == "DeadlineExceeded" and any(_has_begun(pod) for pod in own):
            return Ended("timed_out", "DeadlineExceeded: the Job was active longer than it may")
        if reason == "DeadlineExceeded" and own:
            return Trouble("DeadlineExceeded: the Job's pod did not begin in time")
        if reason == "DeadlineExceeded":
            return Ended("timed_out", "DeadlineExceeded: the Job was active longer than it may, and its pod is gone")
        if not own:
            return Trouble(f"the Job failed ({reason}: {message}) and its pod is gone")
        if all(pod["status"].get("phase") in ("Failed", "Succeeded") for pod in own):
            return Trouble(f"the Job failed ({reason}: {message})")
    if _condition(job, "Complete") is not None:
        return Handed()
    if not own and failed is None and waited_seconds > NO_POD_SECONDS:
        return Trouble("no pod could be made for the Job", no_pod=True)
    return None


def refusal(status: int, message: str) -> Trouble:
    """What the API server's no to a create means, from its status and its words."""
    said = message[:600]
    if status == 403 and "exceeded quota" in message:
        return Trouble(f"the quota of the sandbox namespace is used up ({said}); raise it, or lower LOOPWRIGHT_PR_AGENT_CONCURRENCY")
    if status == 403 and "violates PodSecurity" in message:
        return Trouble(f"PodSecurity refuses the pod ({said}); set SANDBOX_UID and SANDBOX_GID as it asks", permanent=True)
    if status == 403 and "being terminated" in message:
        return Trouble(f"the sandbox namespace is being deleted ({said})")
    if status in (401, 403):
        return Trouble(f"pr-agent may not do this ({said}); give its ServiceAccount the Role of the chart", permanent=True)
    if status == 404:
        return Trouble(f"the sandbox namespace is not there ({said}); create it, or set SANDBOX_NAMESPACE", permanent=True)
    if status in (400, 422):
        return Trouble(f"the API server does not take the Job ({said}); look at the SANDBOX_ settings", permanent=True)
    return Trouble(f"the API server answers with status {status} ({said})")


def _of_pod(pod: Object, waited_seconds: float, pending_seconds_max: float) -> Verdict | None:
    status = pod.get("status", {})
    name, message = pod["metadata"]["name"], str(status.get("message", ""))[:600]
    if status.get("reason") == "Evicted":
        if any(words in message.lower() for words in OWN_DISK):
            return Ended("killed", f"evicted, the disk it may use was full: {message}")
        return Trouble(f"the pod {name} was evicted: {message}")
    if status.get("reason") == "DeadlineExceeded":
        return Ended("timed_out", "DeadlineExceeded: the pod was active longer than it may") if _has_begun(pod) else None
    disruption = _condition(pod, "DisruptionTarget")
    for state in _states(pod):
        ended, waiting = state.get("terminated"), state.get("waiting")
        if ended is not None and (found := _of_terminated(name, ended, disruption)) is not None:
            return found
        if waiting is not None and (found := _of_waiting(name, waiting, waited_seconds, pending_seconds_max)) is not None:
            return found
    if disruption is not None and status.get("phase") == "Failed":
        return Trouble(f"the pod {name} was disrupted ({disruption.get('reason', '')}: {str(disruption.get('message', ''))[:300]})")
    scheduled = _condition(pod, "PodScheduled", "False")
    if scheduled is not None and scheduled.get("reason") in ("Unschedulable", "SchedulerError") and waited_seconds > pending_seconds_max:
        said = str(scheduled.get("message", ""))[:500]
        return Trouble(f"no node takes the pod {name} for {waited_seconds:.0f} s ({said}); make room, or look at SANDBOX_NODE_SELECTOR")
    if status.get("phase") == "Pending" and waited_seconds > pending_seconds_max:
        return Trouble(f"the pod {name} did not begin within {pending_seconds_max:g} s (LOOPWRIGHT_PR_AGENT_SANDBOX_PENDING_SECONDS_MAX)")
    return None


def _of_terminated(name: str, ended: Object, disruption: Object | None) -> Verdict | None:
    reason, code = str(ended.get("reason", "")), int(ended.get("exitCode", 0))
    message = str(ended.get("message", ""))[:500]
    if reason == "OOMKilled":
        return Ended("out_of_memory", "OOMKilled: the pod passed its memory limit")
    if reason in CANNOT_START:
        return Trouble(f"the sandbox image cannot be started ({reason}: {message}); it needs python3 and the runner in it", permanent=True)
    if code == 0:
        return Handed()
    if disruption is not None:
        said = str(disruption.get("message", ""))[:300]
        return Trouble(f"the pod {name} was disrupted ({disruption.get('reason', '')}: {said})")
    if code in (137, 143):
        return None  # ended from outside: the Job's condition or the pod's reason says why
    return Trouble(f"the pod {name} ended with {code} without a result: {RUNNER_EXITS.get(code, message or reason)}")


def _of_waiting(name: str, waiting: Object, waited_seconds: float, pending_seconds_max: float) -> Verdict | None:
    reason, message = str(waiting.get("reason", "")), str(waiting.get("message", ""))[:500]
    if reason in WRONG_IMAGE:
        return Trouble(f"the sandbox image cannot be used ({reason}: {message}); correct LOOPWRIGHT_PR_AGENT_SANDBOX_IMAGE", permanent=True)
    if reason in NO_IMAGE:
        return Trouble(f"the sandbox image cannot be pulled ({reason}: {message}); is it there, and do the pull secrets open it?")
    if reason in WRONG_CONTAINER:
        return Trouble(f"the container of {name} cannot be made ({reason}: {message})", permanent=reason == "CreateContainerConfigError")
    if reason == "ErrImagePull" and waited_seconds > pending_seconds_max:
        return Trouble(f"the sandbox image cannot be pulled ({reason}: {message})")
    return None


def _belongs_to(pod: Object, uid: str) -> bool:
    owners = pod["metadata"].get("ownerReferences") or ()
    return any(owner.get("uid") == uid and owner.get("controller") and owner.get("kind") == "Job" for owner in owners)


def _states(pod: Object) -> list[Object]:
    return [container.get("state") or {} for container in pod.get("status", {}).get("containerStatuses") or ()]


def _has_begun(pod: Object) -> bool:
    return any("running" in state or "terminated" in state for state in _states(pod))


def _condition(thing: Object, kind: str, value: Literal["True", "False"] = "True") -> Object | None:
    for condition in thing.get("status", {}).get("conditions") or ():
        if condition.get("type") == kind and condition.get("status") == value:
            found: Object = condition
            return found
    return None
