"""Last of all: the release goes, and leaves what holds data, nothing else."""

from __future__ import annotations

import json
import time

from tests.cluster.release import SANDBOXES, Release

KINDS = (
    "deployments,statefulsets,daemonsets,jobs,pods,services,configmaps,secrets,serviceaccounts,roles,rolebindings,networkpolicies,"
    "poddisruptionbudgets"
)
OF_THE_CLUSTER = {"kube-root-ca.crt", "default", "kubernetes"}


def test_uninstall_leaves_only_the_volumes(release: Release) -> None:
    claims = {claim["metadata"]["name"] for claim in release.get("persistentvolumeclaims")["items"]}
    assert claims
    release.helm("uninstall", "--wait", "--timeout", "180s")
    until = time.monotonic() + 90
    while left := _left(release):
        assert time.monotonic() < until, left
        time.sleep(1)
    assert {claim["metadata"]["name"] for claim in release.get("persistentvolumeclaims")["items"]} == claims
    namespaces = json.loads(release.cluster.kubectl("get", "namespaces", "-o", "json"))["items"]
    assert SANDBOXES not in [item["metadata"]["name"] for item in namespaces if item["status"]["phase"] == "Active"]


def _left(release: Release) -> list[str]:
    items = release.get(KINDS)["items"]
    return [f"{item['kind']} {item['metadata']['name']}" for item in items if item["metadata"]["name"] not in OF_THE_CLUSTER]
