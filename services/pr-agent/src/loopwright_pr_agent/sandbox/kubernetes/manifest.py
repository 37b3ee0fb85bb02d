"""The Job of one run, from plain data: what PodSecurity ``restricted`` asks for, and more.

https://kubernetes.io/docs/concepts/security/pod-security-standards/ names the controls. The limit on processes is the kubelet's
(``podPidsLimit``); the runner inside sets the run's own.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from loopwright_pr_agent.sandbox.port import MIB

RUNNER = "/opt/loopwright/pod_runner.py"  # where the sandbox image keeps it
MANAGER = "loopwright-pr-agent"
LABEL_RUN, LABEL_CHANGE, LABEL_PROJECT = "loopwright.dev/run", "loopwright.dev/change", "loopwright.dev/project"
ANNOTATION_KEY, ANNOTATION_CLAIM, ANNOTATION_TRACE = "loopwright.dev/key", "loopwright.dev/claim", "loopwright.dev/traceparent"
SELECTOR = f"app.kubernetes.io/managed-by={MANAGER},app.kubernetes.io/component=sandbox"
RUNNER_MEMORY_BYTES = 128 * MIB  # the interpreter beside the command, 25 MiB, and the page cache the kernel counts to the pod
INPUTS_BYTES, LOG_BYTES = 64 * MIB, 64 * MIB
GRACE_SECONDS = 10  # SIGTERM ends the command at once; the rest is for the runner's last words
UNITS = {"": 1, "m": 0.001, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


@dataclass(frozen=True)
class JobSettings:
    """What is the same for every Job of this service. Bytes are bytes, quantities are Kubernetes' own text."""

    namespace: str
    image: str
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    runtime_class: str = ""
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()
    priority_class: str = ""
    # The first of ``uids`` user ids: RLIMIT_NPROC counts a user's processes over all pods of a node, so runs side by side need their own.
    # None: the platform chooses, as OpenShift does.
    uid: int | None = 1_000_000
    uids: int = 10_000
    gid: int | None = 65_532
    cpu_request: str = "250m"
    cpu_limit: str = "2"
    memory_request: str = "512Mi"
    workspace_bytes: int = 2_048 * MIB
    home_bytes: int = 512 * MIB
    tmp_bytes: int = 256 * MIB
    ttl_seconds: int = 900


@dataclass(frozen=True)
class JobRun:
    """What is this run's own. ``broker_address``: where the name in ``broker_url`` leads; empty where the URL holds an address."""

    name: str
    run: str
    key: str
    project: str
    change: str
    claim: str  # shows that this service made the Job, though somebody else may name one like it
    token: str
    broker_url: str
    deadline_seconds: int
    memory_bytes: int
    broker_address: str = ""
    traceparent: str = ""  # of the run's span: leads from the Job to its trace. The pod has nowhere to send spans of its own


def run_id(key: str) -> str:
    """The name of a run in records, labels and tokens: the same for the same key, whatever characters it holds."""
    return hashlib.sha256(key.encode()).hexdigest()[:20]


def job_name(project: str, run: str, generation: int) -> str:
    """A name that a restarted service finds again. A generation is one try: a run whose Job broke is tried under the next."""
    slug = re.sub(r"[^a-z0-9]+", "-", project.lower())[:20].strip("-") or "project"
    return f"loopwright-{slug}-{run}-{generation}"


def job_manifest(settings: JobSettings, run: JobRun) -> dict[str, Any]:
    """The Job, ready to be created."""
    labels = {
        "app.kubernetes.io/name": "loopwright",
        "app.kubernetes.io/component": "sandbox",
        "app.kubernetes.io/managed-by": MANAGER,
        LABEL_RUN: run.run,
        LABEL_CHANGE: label_value(run.change),
        LABEL_PROJECT: label_value(run.project),
    }
    annotations = {ANNOTATION_KEY: run.key[:1_000], ANNOTATION_CLAIM: run.claim}
    if run.traceparent:
        annotations[ANNOTATION_TRACE] = run.traceparent
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": run.name, "namespace": settings.namespace, "labels": labels, "annotations": annotations},
        "spec": {
            "parallelism": 1,
            "completions": 1,
            "backoffLimit": 0,
            "activeDeadlineSeconds": run.deadline_seconds,
            "ttlSecondsAfterFinished": settings.ttl_seconds,
            "podReplacementPolicy": "Failed",  # never two pods at once, also while one that was evicted is still ending
            "template": {"metadata": {"labels": labels, "annotations": annotations}, "spec": _pod(settings, run)},
        },
    }


def label_value(text: str) -> str:
    """``text`` as a label may hold it: an index to find things by, never the truth."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", text)[:63].strip("_.-")


def bytes_of(quantity: str) -> int:
    """The bytes that a quantity of memory means. Raises ValueError."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([a-zA-Z]*)", quantity)
    if found is None or found[2] not in UNITS:
        raise ValueError(f"{quantity!r} is not a quantity such as 512Mi")
    return int(float(found[1]) * UNITS[found[2]])


def tmp_bytes(settings: JobSettings, memory_bytes: int) -> int:
    """The size of /tmp, which is memory: never more than the run's own."""
    return min(settings.tmp_bytes, memory_bytes)


def memory_limit(settings: JobSettings, memory_bytes: int) -> int:
    """The pod's limit: the run's own, /tmp, and the runner beside them."""
    return memory_bytes + tmp_bytes(settings, memory_bytes) + RUNNER_MEMORY_BYTES


def user_of(settings: JobSettings, run: str) -> int | None:
    """The user id of a run; None where the platform chooses."""
    return None if settings.uid is None else settings.uid + int(run, 16) % settings.uids


def _pod(settings: JobSettings, run: JobRun) -> dict[str, Any]:
    ids = (("runAsUser", user_of(settings, run.run)), ("runAsGroup", settings.gid))
    identity = {name: number for name, number in ids if number is not None}
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "hostNetwork": False,
        "hostPID": False,
        "hostIPC": False,
        "shareProcessNamespace": False,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        # No name is ever resolved inside: a resolver would carry whatever a command asks it for out of the cluster. "None" wants a server.
        "dnsPolicy": "None",
        "dnsConfig": {"nameservers": ["127.0.0.1"], "options": [{"name": "attempts", "value": "1"}]},
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}, **identity},
        "containers": [_container(settings, run, identity)],
        "volumes": [
            {"name": "workspace", "emptyDir": {"sizeLimit": str(settings.workspace_bytes)}},
            {"name": "home", "emptyDir": {"sizeLimit": str(settings.home_bytes)}},
            {"name": "inputs", "emptyDir": {"sizeLimit": str(INPUTS_BYTES)}},
            {"name": "tmp", "emptyDir": {"medium": "Memory", "sizeLimit": str(tmp_bytes(settings, run.memory_bytes))}},
        ],
    }
    if run.broker_address:
        host = run.broker_url.split("://", 1)[-1].split("/", 1)[0].rsplit(":", 1)[0]
        pod["hostAliases"] = [{"ip": run.broker_address, "hostnames": [host]}]
    for name, value in (
        ("imagePullSecrets", [{"name": secret} for secret in settings.image_pull_secrets]),
        ("runtimeClassName", settings.runtime_class),
        ("nodeSelector", dict(settings.node_selector)),
        ("tolerations", [dict(toleration) for toleration in settings.tolerations]),
        ("priorityClassName", settings.priority_class),
    ):
        if value:
            pod[name] = value
    return pod


def _container(settings: JobSettings, run: JobRun, identity: Mapping[str, int]) -> dict[str, Any]:
    disk = settings.workspace_bytes + settings.home_bytes + INPUTS_BYTES + LOG_BYTES
    memory = memory_limit(settings, run.memory_bytes)
    return {
        "name": "run",
        "image": settings.image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": ["python3", "-I", RUNNER],
        "workingDir": "/",
        "env": [
            {"name": "LOOPWRIGHT_BROKER_URL", "value": run.broker_url},
            {"name": "LOOPWRIGHT_RUN", "value": run.run},
            {"name": "LOOPWRIGHT_RUN_TOKEN", "value": run.token},
        ],
        "securityContext": {
            "runAsNonRoot": True,
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "privileged": False,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
            **identity,
        },
        "resources": {
            "requests": {
                "cpu": settings.cpu_request,
                "memory": str(min(memory, bytes_of(settings.memory_request))),
                "ephemeral-storage": str(min(disk, 256 * MIB)),
            },
            "limits": {"cpu": settings.cpu_limit, "memory": str(memory), "ephemeral-storage": str(disk)},
        },
        "volumeMounts": [
            {"name": "workspace", "mountPath": "/workspace"},
            {"name": "home", "mountPath": "/home/sandbox"},
            {"name": "inputs", "mountPath": "/run/inputs"},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  a volume's place inside
        ],
    }
