"""Which Kubernetes the tests run on, and how they reach it.

1. KUBECONFIG is set: that cluster. It must already have the images (LOOPWRIGHT_TEST_REGISTRY names the registry they were pushed to, if not
   the images' own), and LOOPWRIGHT_TEST_HOST names the address under which its pods reach this machine. Nothing that is there is touched:
   where the tests' namespace exists, they refuse.
2. Docker answers and kind is installed: a kind cluster, made for this run.
3. This is Linux and we are root: a node of our own (``tests.cluster.node``).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster.binaries import CannotBuild, bring, cache
from tests.cluster.node import HOST_IP, PACKAGES, Node

KIND_NAME = "loopwright-test"
KEEP = os.environ.get("LOOPWRIGHT_TEST_KEEP_CLUSTER", "") not in ("", "0")


class ClusterFailed(Exception):
    """A command against the cluster failed; the message holds what it said."""


@dataclass
class Cluster:
    """A running cluster. ``host`` is this machine as its pods see it; ``given``: it is somebody's, not made for the tests."""

    kubeconfig: Path
    programs: Path
    host: str
    given: bool = False
    enforces_network_policies: bool = True
    registry: str = ""
    node: Node | None = None

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = 300.0, expected: tuple[int, ...] = (0,)) -> str:
        """kubectl's output. Raises ClusterFailed on other exit codes than those expected."""
        return self._run("kubectl", arguments, stdin, timeout, expected)

    def helm(self, *arguments: str, stdin: str | None = None, timeout: float = 900.0) -> str:
        """helm's output. Raises ClusterFailed."""
        return self._run("helm", arguments, stdin, timeout)

    def get(self, *arguments: str) -> dict[str, Any]:
        """``kubectl get`` as an object."""
        found: dict[str, Any] = json.loads(self.kubectl("get", *arguments, "-o", "json"))
        return found

    def apply(self, *objects: dict[str, Any]) -> None:
        items = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl("apply", "-f", "-", stdin=json.dumps(items))

    def load(self, archives: Sequence[Path]) -> None:
        """Gives the cluster images that it can pull from nowhere."""
        for archive in archives:
            if self.node is not None:
                self.node.load(archive)
            elif not self.given:
                _must("kind", "load", "image-archive", str(archive), "--name", KIND_NAME)

    @contextlib.contextmanager
    def forwarded(self, namespace: str, target: str, port: int, local: int = 0) -> Iterator[int]:
        """A local port that leads to ``target``'s port; taken up again when its pod was replaced, as a person would."""
        local = local or free_port()
        command = [self.programs / "kubectl", "--kubeconfig", self.kubeconfig, "-n", namespace, "port-forward", target, f"{local}:{port}"]
        stop = threading.Event()
        running: list[subprocess.Popen[bytes]] = []

        def keep() -> None:
            while not stop.is_set():
                if not running or running[-1].poll() is not None:
                    running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
                stop.wait(0.5)

        keeper = threading.Thread(target=keep, daemon=True)
        keeper.start()
        try:
            _wait_for_port(local, f"{namespace}/{target}:{port}")
            yield local
        finally:
            stop.set()
            keeper.join(5)
            running[-1].terminate()
            running[-1].wait(10)

    def _run(self, program: str, arguments: Sequence[str], stdin: str | None, timeout: float, expected: tuple[int, ...] = (0,)) -> str:
        environment = os.environ | {"KUBECONFIG": str(self.kubeconfig)}
        command = [str(self.programs / program), *arguments]
        try:
            done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=timeout, env=environment)
        except subprocess.TimeoutExpired as error:
            raise ClusterFailed(f"{program} {' '.join(arguments)} took more than {timeout:g} s") from error
        if done.returncode not in expected:
            raise ClusterFailed(f"{program} {' '.join(arguments)}: {done.stderr[-3_000:]}{done.stdout[-1_000:]}")
        return done.stdout


def _wait_for_port(port: int, what: str, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise ClusterFailed(f"{what} cannot be reached by port-forward")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running() -> Iterator[Cluster]:
    """A cluster for this run, taken down afterwards if it was brought up for it. Raises CannotBuild, NodeFailed, ClusterFailed."""
    given = os.environ.get("KUBECONFIG", "")
    own = Node(cache() / "node", cache() / "bin")
    if given and Path(given).resolve() != own.kubeconfig.resolve():
        programs = bring("kubernetes", "helm")
        host = os.environ.get("LOOPWRIGHT_TEST_HOST", "")
        if not host:
            raise CannotBuild(
                f"KUBECONFIG is {given}: LOOPWRIGHT_TEST_HOST has to name the address under which its pods reach this machine"
            )
        enforces = os.environ.get("LOOPWRIGHT_TEST_NETWORK_POLICIES", "1") != "0"
        registry = os.environ.get("LOOPWRIGHT_TEST_REGISTRY", "")
        yield Cluster(Path(given), programs, host, given=True, enforces_network_policies=enforces, registry=registry)
    elif _docker() and shutil.which("kind"):
        programs = bring("kubernetes", "helm")
        kubeconfig = cache() / "kind.kubeconfig"
        _must("kind", "create", "cluster", "--name", KIND_NAME, "--kubeconfig", str(kubeconfig), "--wait", "180s")
        try:
            yield Cluster(kubeconfig, programs, _kind_host())  # kindnet enforces NetworkPolicy since kind 0.24
        finally:
            if not KEEP:
                _must("kind", "delete", "cluster", "--name", KIND_NAME)
    else:
        yield from _own_node(own)


def _own_node(node: Node) -> Iterator[Cluster]:
    if sys.platform != "linux" or os.geteuid() != 0:
        raise CannotBuild("a cluster is needed: set KUBECONFIG, start Docker with kind installed, or run this as root on Linux")
    _bring_packages()
    node.programs = bring()
    if not (KEEP and node.kubeconfig.exists() and node.is_ready()):
        node.up()
    try:
        yield Cluster(node.kubeconfig, node.programs, HOST_IP, node=node)
    finally:
        if not KEEP:
            node.down()


def _bring_packages() -> None:
    """Debian's packages that a node needs. Raises CannotBuild naming the line to type."""
    wanted = [package for package in PACKAGES if subprocess.run(["dpkg", "-s", package], capture_output=True, check=False).returncode]
    if not wanted:
        return
    print(f"· installing the Debian packages {' '.join(wanted)}", file=sys.stderr, flush=True)
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *wanted]
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    # Policy 101: their daemons are not started on this machine; the tests start their own.
    policy = Path("/usr/sbin/policy-rc.d")
    held = not policy.exists()
    if held:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        for _ in range(2):
            done = subprocess.run(install, capture_output=True, text=True, check=False, env=environment)
            if done.returncode == 0:
                return
            subprocess.run(["apt-get", "update", "-qq"], capture_output=True, check=False, env=environment)
    except OSError as error:
        raise CannotBuild(f"needed: {' '.join(wanted)}; this is not Debian: {error}") from error
    finally:
        if held:
            policy.unlink()
    raise CannotBuild(f"as root, type: apt-get install {' '.join(wanted)}\n{done.stderr[-1_000:]}")


def _docker() -> bool:
    return shutil.which("docker") is not None and subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0


def _kind_host() -> str:
    said = _must("docker", "network", "inspect", "kind", "-f", "{{range .IPAM.Config}}{{.Gateway}} {{end}}")
    return next(address for address in said.split() if ":" not in address)


def _must(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterFailed(f"{' '.join(command)}: {done.stderr[-2_000:]}")
    return done.stdout
