"""The cluster, the images and one installed release, shared by all tests here."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.binaries import CannotBuild
from tests.cluster.clusters import Cluster, ClusterFailed, running
from tests.cluster.node import NodeFailed
from tests.cluster.release import NAMESPACE, RELEASE, SANDBOXES, Release

CI = os.environ.get("CI", "") not in ("", "0", "false")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.cluster)
            if item.get_closest_marker("timeout") is None:
                # The first test of a session waits for the cluster and the images: a quarter of an hour where nothing was built yet.
                item.add_marker(pytest.mark.timeout(3_000))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster with the product's images. Where none can be had it is said; in CI that is an error."""
    from tests.cluster.images import bring_images  # what needs no cluster needs no images

    try:
        with running() as found:
            if not found.given and os.environ.get("LOOPWRIGHT_TEST_KEEP_CLUSTER") != "release":
                found.load([image.archive for image in bring_images().values()])
            yield found
    except (CannotBuild, NodeFailed) as error:
        if CI:
            pytest.fail(f"no cluster for the tests: {error}")
        pytest.skip(f"no cluster for the tests: {error}")


@pytest.fixture(scope="session")
def release(cluster: Cluster) -> Release:
    """The chart installed with its default values, every pod Ready. LOOPWRIGHT_TEST_KEEP_CLUSTER=release takes the one that is there."""
    if not cluster.given and os.environ.get("LOOPWRIGHT_TEST_KEEP_CLUSTER") == "release":
        return Release(cluster)
    if cluster.given:
        # It may be somebody's, with data: nothing is uninstalled or deleted that was not made here.
        if any(item["metadata"]["name"] in (NAMESPACE, SANDBOXES) for item in cluster.get("namespaces")["items"]):
            pytest.fail(
                f"the cluster has a namespace {NAMESPACE} or {SANDBOXES}, which may be in use; delete them, or give another cluster"
            )
    else:
        with contextlib.suppress(ClusterFailed):
            cluster.helm("uninstall", RELEASE, "--namespace", NAMESPACE, "--wait")
        with contextlib.suppress(ClusterFailed):
            # What an earlier run left behind is not this release's to take up.
            cluster.kubectl("-n", NAMESPACE, "delete", "persistentvolumeclaims", "--all", "--wait")
    made = Release(cluster, base={"global": {"imageRegistry": cluster.registry}} if cluster.registry else {})
    made.install()
    return made
