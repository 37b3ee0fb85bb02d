"""The product installed in a cluster, as a person with kubectl and helm sees it."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loopwright_cli.client import Api

from tests.cluster.clusters import Cluster

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "loopwright"
RELEASE = NAMESPACE = "loopwright"
SANDBOXES = f"{NAMESPACE}-sandboxes"
INSTALL_TIMEOUT = "420s"


@dataclass
class Release:
    """The product in the cluster, as a person with kubectl sees it."""

    cluster: Cluster
    name: str = RELEASE
    namespace: str = NAMESPACE
    base: dict[str, Any] = field(default_factory=dict)  # what the cluster needs beside the chart's defaults: nothing, or its registry

    def kubectl(self, *arguments: str, **more: Any) -> str:
        return self.cluster.kubectl("-n", self.namespace, *arguments, **more)

    def get(self, *arguments: str) -> dict[str, Any]:
        return self.cluster.get("-n", self.namespace, *arguments)

    def helm(self, command: str, *arguments: str, **more: Any) -> str:
        return self.cluster.helm(command, self.name, *arguments, "--namespace", self.namespace, **more)

    def install(self) -> None:
        """``helm install`` with the default values; returns when every pod is Ready."""
        self._helm_with({}, "install", "--create-namespace")

    def upgrade(self, values: dict[str, Any]) -> None:
        """``helm upgrade`` to these values alone; returns when every pod is Ready."""
        self._helm_with(values, "upgrade")

    def _helm_with(self, values: dict[str, Any], command: str, *more: str) -> None:
        arguments = [str(CHART), *more, "--wait", "--timeout", INSTALL_TIMEOUT, "--values", "-"]
        self.helm(command, *arguments, stdin=json.dumps({**self.base, **values}))

    def secrets(self) -> dict[str, str]:
        """The release's generated secrets, by the names that one machine's stack gives them."""
        kept = {"operator_token": ("operator", "token")} | {
            f"forge_{scope}_token": ("forge-tokens", scope) for scope in ("read", "write", "merge")
        }
        return {name: self._secret(*place) for name, place in kept.items()}

    def _secret(self, name: str, key: str) -> str:
        found = self.get("secret", f"{self.name}-{name}")
        return base64.b64decode(found["data"][key]).decode()

    @contextlib.contextmanager
    def api(self, service: str, port: int, token: str = "") -> Iterator[Api]:
        with self.cluster.forwarded(self.namespace, f"service/{self.name}-{service}", port) as local:
            yield Api(f"http://127.0.0.1:{local}", token)
