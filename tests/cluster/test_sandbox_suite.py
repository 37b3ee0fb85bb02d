"""The suite that every sandbox passes, on this cluster, with the sandbox image as it is installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.clusters import Cluster
from tests.cluster.release import Release

ROOT = Path(__file__).resolve().parents[2]
SUITE = "loopwright-suite"
PASSED_LEAST = 35  # of the suite's tests there are about forty on an isolation; fewer means that they were not collected


@pytest.mark.timeout(900)
def test_jobs_on_this_cluster_pass_the_suite_of_all_sandboxes(cluster: Cluster, release: Release) -> None:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SUITE, "labels": labels}})
    pod = release.get("deployment", f"{release.name}-pr-agent")["spec"]["template"]["spec"]
    image = next(item["value"] for item in pod["containers"][0]["env"] if item["name"] == "LOOPWRIGHT_PR_AGENT_SANDBOX_IMAGE")
    named = {
        "KUBECONFIG": str(cluster.kubeconfig),
        "LOOPWRIGHT_TEST_SANDBOX_IMAGE": image,
        "LOOPWRIGHT_TEST_SANDBOX_NAMESPACE": SUITE,
        "LOOPWRIGHT_TEST_BROKER_HOST": cluster.host,
    }
    command = [sys.executable, "-m", "pytest", "-q", "-k", "real-cluster", "tests/adapters/test_sandbox.py"]
    try:
        done = subprocess.run(command, cwd=ROOT, env=os.environ | named, capture_output=True, text=True, timeout=840, check=False)
    finally:
        cluster.kubectl("delete", "namespace", SUITE, "--wait=false")
    assert done.returncode == 0, done.stdout[-6_000:]
    found = re.search(r"(\d+) passed", done.stdout)
    assert found is not None
    assert int(found[1]) >= PASSED_LEAST
