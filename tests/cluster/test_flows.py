"""The chart's NetworkPolicies on the wire: who reaches whom in the installed release is what docs/ARCHITECTURE.md draws, and no more."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cluster.clusters import Cluster
from tests.cluster.release import Release

SERVICES = {"gateway": 8400, "ingest": 8401, "cluster": 8402, "investigator": 8403, "pr-agent": 8404, "measure": 8405}
PORTS = {name: (port,) for name, port in SERVICES.items()} | {
    "pr-agent": (8404, 8414), "forge": (8406,), "nats": (4222, 8222), "postgresql": (5432,),
}  # fmt: skip
STRANGER = "flows-stranger"
# Run in a pod: asks all at once, and prints those that answered the knock.
KNOCK = """
import asyncio, json, sys
async def knock(name, host, port):
    try:
        async with asyncio.timeout(4):
            _, writer = await asyncio.open_connection(host, port)
            writer.close()
            return [name, port]
    except (OSError, TimeoutError):
        return None
async def main():
    found = await asyncio.gather(*(knock(*target) for target in json.loads(sys.argv[1])))
    print(json.dumps([item for item in found if item]))
asyncio.run(main())
"""


def running(release: Release) -> dict[str, dict[str, Any]]:
    """One ready pod of each component."""
    found = release.get("pods", "-l", f"app.kubernetes.io/instance={release.name}", "--field-selector=status.phase=Running")["items"]
    return {pod["metadata"]["labels"]["app.kubernetes.io/component"]: pod for pod in found if "deletionTimestamp" not in pod["metadata"]}


def stranger(namespace: str, image: str) -> dict[str, Any]:
    """A pod that is none of ours."""
    context = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    container = {
        "name": "main", "image": image, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "600"], "securityContext": context,
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "128Mi"}},
    }  # fmt: skip
    spec = {
        "containers": [container],
        "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": STRANGER, "namespace": namespace}, "spec": spec}


def reached(cluster: Cluster, namespace: str, pod: str, targets: list[tuple[str, str, int]]) -> set[tuple[str, int]]:
    said = cluster.kubectl("-n", namespace, "exec", pod, "--", "python", "-c", KNOCK, json.dumps(targets))
    return {(name, port) for name, port in json.loads(said.splitlines()[-1])}


@pytest.fixture
def strangers(cluster: Cluster, release: Release) -> Any:
    """A pod beside ours and one in another namespace: name -> (namespace, pod)."""
    image = running(release)["gateway"]["spec"]["containers"][0]["image"]
    places = {"neighbour": release.namespace, "stranger": "default"}
    for namespace in places.values():
        cluster.kubectl("-n", namespace, "delete", "pod", STRANGER, "--ignore-not-found", "--wait")
    cluster.apply(*(stranger(namespace, image) for namespace in places.values()))
    for namespace in places.values():
        cluster.kubectl("-n", namespace, "wait", "--for=condition=Ready", f"pod/{STRANGER}", "--timeout=120s")
    yield {name: (namespace, STRANGER) for name, namespace in places.items()}
    for namespace in places.values():
        cluster.kubectl("-n", namespace, "delete", "pod", STRANGER, "--ignore-not-found", "--wait=false")


def test_who_reaches_whom_is_what_the_architecture_draws(cluster: Cluster, release: Release, strangers: Any) -> None:
    if not cluster.enforces_network_policies:
        pytest.skip("this cluster's network plugin does not enforce NetworkPolicies; tests/cluster/test_chart.py evaluates them")
    pods = running(release)
    targets = [(name, pods[name]["status"]["podIP"], port) for name, ports in PORTS.items() for port in ports]
    kubernetes = json.loads(cluster.kubectl("-n", "default", "get", "service", "kubernetes", "-o", "json"))
    targets.append(("the API server", kubernetes["spec"]["clusterIP"], 443))
    wanted = {(service, "nats", 4222) for service in SERVICES} | {("gateway", "postgresql", 5432), ("pr-agent", "the API server", 443)}
    wanted |= {(service, "forge", 8406) for service in ("investigator", "pr-agent", "measure")}
    # With default values anybody may knock at the two edges, where a key or a token is asked for.
    wanted |= {(name, edge, SERVICES[edge]) for name in strangers for edge in ("gateway", "ingest")}

    sources = {name: (release.namespace, pods[name]["metadata"]["name"]) for name in (*SERVICES, "forge")} | strangers
    found = set()
    for source, (namespace, pod) in sources.items():
        asked = [target for target in targets if target[0] != source and (source not in strangers or target[0] in pods)]
        found |= {(source, *answer) for answer in reached(cluster, namespace, pod, asked)}
    assert found - wanted == set(), "open, and not drawn"
    assert wanted - found == set(), "drawn, and closed"
