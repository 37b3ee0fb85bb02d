"""The sample's loop, played from outside against a release in a cluster: the same play as the demo's, by other addresses."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from loopwright_cli.demo import SHOP_PORT_OFFSET, Demo
from rich.console import Console

from tests.cluster.clusters import free_port
from tests.cluster.release import ROOT, Release

PORTS = {"gateway": 8400, "ingest": 8401, "forge": 8406}


@dataclass
class Reached:
    """A release's services on local ports, with what the demo asks of a stack."""

    data: Path
    release: Release
    ports: dict[str, int]
    first_port: int
    secrets: dict[str, str] = field(default_factory=dict)

    @property
    def logs(self) -> Path:
        folder = self.data / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def operator_token(self) -> str:
        return self.secret("operator_token")

    @property
    def inbox_url(self) -> str:
        return f"{self.url('gateway')}/#token={self.operator_token}"

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"

    def secret(self, name: str) -> str:
        return self.secrets[name]


class ClusterDemo(Demo):
    """The demo with the product in a cluster and the shop on this machine, which the cluster's pods reach as ``host``."""

    def __init__(self, reached: Reached, host: str, project: str, act: Callable[[str], None]) -> None:
        supervisor: Any = SimpleNamespace(stack=reached, look_after=lambda: None)
        super().__init__(Console(width=160), supervisor, ROOT, person=False)
        self.reached = reached
        self.project = project
        self.shop_host = "0.0.0.0"
        self.probed = f"http://{host}:{reached.first_port + SHOP_PORT_OFFSET}"
        self.act = act

    def _project(self, source: Path) -> dict[str, Any]:
        project = super()._project(source)
        project["repositories"][0].pop("source")
        project["services"][0]["health_checks"][0]["url"] = f"{self.probed}/health/checkout"
        return project

    def _key(self, scopes: list[str], service: str) -> dict[str, Any]:
        """A DSN names ingest as the cluster's clients reach it; the shop here takes the forwarded port."""
        key = super()._key(scopes, service)
        if key.get("dsn"):
            there = urlsplit(key["dsn"])
            key["dsn"] = urlunsplit(there._replace(netloc=f"{there.username}@127.0.0.1:{self.reached.ports['ingest']}"))
        return key

    def _seed(self, source: Path) -> None:
        """A person pushes the history to the forge, which is in the cluster and cannot read this machine's folders."""
        url = f"http://pusher:{self.reached.secret('forge_merge_token')}@127.0.0.1:{self.reached.ports['forge']}/git/{self.project}.git"

        def push() -> bool:
            command = ["git", "-C", str(source), "push", "--quiet", url, "main:main"]
            return subprocess.run(command, capture_output=True, check=False).returncode == 0

        self.wait("the forge to take the history", push)

    def stage(self, title: str) -> contextlib.AbstractContextManager[Any]:
        self.act(title)
        return super().stage(title)


@contextlib.contextmanager
def reached(release: Release, data: Path) -> Iterator[Reached]:
    """The release's HTTP services by port-forward."""
    with contextlib.ExitStack() as stack:
        ports = {
            name: stack.enter_context(release.cluster.forwarded(release.namespace, f"service/{release.name}-{name}", port))
            for name, port in PORTS.items()
        }
        first = free_port() - SHOP_PORT_OFFSET
        data.mkdir(parents=True, exist_ok=True)
        yield Reached(data, release, ports, first, release.secrets())


def play(release: Release, data: Path, act: Callable[[str], None] = lambda title: None, *, project: str = "shop") -> Any:
    """Plays the loop to its end; what it saw. Raises DemoFailed. ``act`` is called at the beginning of each stage, with its title."""
    with reached(release, data) as there, contextlib.closing(ClusterDemo(there, release.cluster.host, project, act)) as demo:
        return demo.play()
