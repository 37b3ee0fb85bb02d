"""A broker and a Kubernetes sandbox over any cluster, and what a restart of their service leaves of them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from loopwright_common.bus import Bus
from loopwright_common.clock import Clock, SystemClock
from loopwright_common.model import ModelClient
from loopwright_common.testing.memory_bus import MemoryBus

from loopwright_pr_agent.broker.api import BrokerServer, broker_app
from loopwright_pr_agent.broker.records import BUCKET, RunRecords
from loopwright_pr_agent.broker.runs import Runs
from loopwright_pr_agent.broker.tokens import open_tokens
from loopwright_pr_agent.sandbox.kubernetes.api import JobsApi
from loopwright_pr_agent.sandbox.kubernetes.jobs import JobOptions, KubernetesSandbox
from loopwright_pr_agent.sandbox.kubernetes.manifest import JobSettings

NAMESPACE = "loopwright-sandbox"
IMAGE = f"registry.example/loopwright-sandbox@sha256:{'0' * 64}"


class Stand:
    """``async with Stand(api, work_dir) as stand: await stand.sandbox.run(...)``."""

    sandbox: KubernetesSandbox
    runs: Runs
    server: BrokerServer

    def __init__(
        self,
        api: JobsApi,
        work_dir: Path,
        *,
        settings: JobSettings | None = None,
        host: str = "127.0.0.1",
        broker_url: str = "",
        port: int = 0,
        pending_seconds_max: float = 60.0,
        model: ModelClient | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.api, self.work_dir, self.host, self.port = api, work_dir, host, port
        self.settings = settings or JobSettings(NAMESPACE, IMAGE)
        self.broker_url, self.pending_seconds_max, self.model = broker_url, pending_seconds_max, model
        self.clock = clock or SystemClock()
        self.bus: Bus = MemoryBus("pr-agent")

    async def __aenter__(self) -> Stand:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        bucket = await self.bus.key_value(BUCKET)
        self.runs = Runs(RunRecords(bucket), await open_tokens("", bucket), self.clock, self.model)
        self.server = BrokerServer(broker_app(self.runs), self.host, self.port)
        await self.server.start()
        self.port = self.server.port
        self.broker_url = self.broker_url or f"http://127.0.0.1:{self.port}"
        options = JobOptions(self.broker_url, self.work_dir, concurrency=2, pending_seconds_max=self.pending_seconds_max)
        self.sandbox = KubernetesSandbox(self.api, self.settings, self.runs, options, self.clock)

    async def stop(self) -> None:
        await self.server.stop()
        self.sandbox.close()

    async def kill(self, *tasks: asyncio.Task[object]) -> None:
        """Ends the service as an upgrade does, with its work in mid-run: nothing of it stays but the bus and the cluster."""
        self.sandbox.leave()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.stop()
