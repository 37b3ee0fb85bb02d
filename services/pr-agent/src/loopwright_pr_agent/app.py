"""The composition root: which sandbox, which forge, which store, and who handles what."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta

import structlog
from fastapi import FastAPI
from loopwright_common.bus import Bus, ConsumerSpec
from loopwright_common.clock import Clock, SystemClock
from loopwright_common.contracts.subjects import CHANGES_REQUESTED, COMMANDS_CHANGES
from loopwright_common.nats_bus import NatsBus, open_bus
from loopwright_common.process import service_app
from loopwright_common.projects import Projects
from loopwright_repositories.forges.local import LocalForge
from prometheus_client import Gauge

from loopwright_pr_agent import api
from loopwright_pr_agent.adapters.forge_view import ForgeReader
from loopwright_pr_agent.adapters.kv_store import KeyValueProgress
from loopwright_pr_agent.adapters.mirrors import Mirrors
from loopwright_pr_agent.adapters.publisher_process import PublisherProcess
from loopwright_pr_agent.handlers import ATTEMPTS_MAX, SERVICE, Changing, keep_looking, keep_repositories
from loopwright_pr_agent.making import Workshop
from loopwright_pr_agent.policy import DiffLimits
from loopwright_pr_agent.ports import Publisher
from loopwright_pr_agent.sandbox.detect import choose
from loopwright_pr_agent.sandbox.kubernetes.api import JobsApi
from loopwright_pr_agent.sandbox.kubernetes.service import ClusterSandbox, is_wanted
from loopwright_pr_agent.sandbox.port import Limits, NoSandbox, Sandbox, SandboxError
from loopwright_pr_agent.settings import PrAgentSettings
from loopwright_pr_agent.strategies.revert import Revert

ACK_WAIT = timedelta(seconds=60)  # a change takes minutes; heartbeats go on meanwhile, and a crash is noticed within this
MAKE_AGAIN_SECONDS = 5.0
FIND_AGAIN_SECONDS = 20.0

SANDBOX = Gauge("loopwright_sandbox_available", "1 while changes can be verified here, 0 where no sandbox holds.")

log = structlog.get_logger()


class Service:
    """The running parts. ``start`` returns when requests and commands are being handled; ``stop`` drains."""

    def __init__(
        self, settings: PrAgentSettings, bus: Bus, clock: Clock, publisher: Publisher | None = None, jobs_api: JobsApi | None = None
    ) -> None:
        self._settings = settings
        self._bus = bus
        self._clock = clock
        self._projects = Projects(bus)
        token = settings.forge_read_token if settings.forge_read_token.get_secret_value() else None
        self._forge = LocalForge(settings.forge_url, token)
        limits = DiffLimits(settings.diff_bytes_max, settings.diff_files_max)
        self._publisher = publisher or PublisherProcess(
            settings.forge_url, settings.forge_write_token_file, settings.forge_merge_token_file, limits
        )
        self._diff_limits = limits
        self._jobs_api = jobs_api
        self._cluster: ClusterSandbox | None = None
        self._sandbox: Sandbox | None = None
        self._sandbox_reason = "the service is starting"
        self._tasks: list[asyncio.Task[None]] = []
        self.changing: Changing | None = None

    async def start(self) -> KeyValueProgress:
        """Begins; gives the store, for the API. Without a sandbox it starts too, and says no to each change with the remedy."""
        settings = self._settings
        runs = (settings.work_dir / "runs").absolute()
        await asyncio.to_thread(shutil.rmtree, runs, ignore_errors=True)  # work folders that a crash left behind
        await self._find_sandbox()
        store = await KeyValueProgress.open(self._bus)
        await self._projects.start()
        await self._projects.wait_loaded()
        workshop = Workshop(
            repositories=Mirrors((settings.work_dir / "mirrors").absolute(), self._forge, self._publisher),
            strategy=Revert(),
            sandbox=self._held_sandbox,
            work_dir=runs,
            toolchains=settings.toolchains,
            limits=Limits(
                wall_seconds=settings.run_seconds_max,
                memory_bytes=settings.run_memory_bytes_max,
                file_bytes=settings.run_file_bytes_max,
                processes=settings.run_processes_max,
                output_bytes=settings.run_output_bytes_max,
            ),
            diff_limits=self._diff_limits,
            protected_paths=settings.protected_paths,
        )
        changing = Changing(self._bus, store, self._projects, workshop, self._publisher, ForgeReader(self._forge), self._clock)
        self.changing = changing
        requests = ConsumerSpec(
            "pr-agent-requests",
            SERVICE,
            (CHANGES_REQUESTED,),
            concurrency=settings.concurrency,
            ack_wait=ACK_WAIT,
            attempts_max=ATTEMPTS_MAX,
        )
        commands = ConsumerSpec(
            "pr-agent-commands", SERVICE, (COMMANDS_CHANGES,), concurrency=4, ack_wait=ACK_WAIT, attempts_max=ATTEMPTS_MAX
        )
        await self._bus.consume(requests, changing.requested)
        await self._bus.consume(commands, changing.commanded)
        self._tasks = [
            asyncio.create_task(keep_looking(changing, settings.poll_seconds), name="forge-watch"),
            asyncio.create_task(keep_repositories(changing, self._projects, MAKE_AGAIN_SECONDS), name="repositories"),
        ]
        if self._cluster is not None:
            self._tasks.append(asyncio.create_task(self._cluster.keep_swept(), name="sandbox-sweep"))
        if settings.sandbox == "kubernetes":
            self._tasks.append(asyncio.create_task(self._keep_finding(), name="sandbox-watch"))
        return store

    async def stop(self, drain: timedelta) -> None:
        if self._cluster is not None:
            self._cluster.leave()  # what does not end while we drain goes on in the cluster, and is found by the next process
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self._bus.close(drain)
        if self._cluster is not None:
            await self._cluster.stop()
        await self._projects.stop()
        await self._forge.aclose()

    def sandbox_status(self) -> api.SandboxStatus:
        isolation = self._sandbox.isolation if self._sandbox is not None else ""
        return api.SandboxStatus(isolation=isolation, reason=self._sandbox_reason[:2_000])

    async def _find_sandbox(self) -> None:
        """A cluster's Jobs where they are wanted, else what holds on this host; the reason says what was found, or the remedy."""
        choice = self._settings.sandbox
        try:
            if is_wanted(self._settings):
                try:
                    await self._find_cluster()
                except SandboxError as error:
                    if choice == "kubernetes":
                        raise
                    log.warning("no_sandbox_in_the_cluster", reason=str(error))
            if self._sandbox is None and choice != "kubernetes":
                self._sandbox, findings = await choose(choice)
                self._sandbox_reason = findings[-1].reason
        except SandboxError as error:
            self._sandbox_reason = str(error)
            SANDBOX.set(0)
            log.error("no_sandbox", reason=self._sandbox_reason)
        if self._sandbox is not None:
            SANDBOX.set(1)
            log.info("sandbox_holds", isolation=self._sandbox.isolation, facts=self._sandbox_reason)

    async def _find_cluster(self) -> None:
        if self._cluster is None:
            self._cluster = await ClusterSandbox.start(self._settings, self._bus, self._clock, self._jobs_api)
        self._sandbox_reason = await self._cluster.check()
        self._sandbox = self._cluster.sandbox

    async def _keep_finding(self) -> None:
        """A cluster may come, or a Role be given, after this service began."""
        while self._sandbox is None:
            await asyncio.sleep(FIND_AGAIN_SECONDS)
            await self._find_sandbox()

    def _held_sandbox(self) -> Sandbox:
        if self._sandbox is None:
            raise NoSandbox(self._sandbox_reason)
        return self._sandbox


def create_app(settings: PrAgentSettings) -> FastAPI:
    """The service's app; its parts live as long as the app's lifespan."""
    running: dict[str, NatsBus] = {}

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            bus = await open_bus(settings, SERVICE)
            service = Service(settings, bus, SystemClock())
            stack.push_async_callback(service.stop, timedelta(seconds=settings.drain_seconds))
            app.include_router(api.router(await service.start(), service.sandbox_status))
            running["bus"] = bus
            yield
            running.clear()

    async def readiness() -> Mapping[str, str]:
        bus = running.get("bus")
        if bus is None:
            return {"start": "the service is starting"}
        return {"bus": "" if await bus.ready() else f"no answer from {settings.nats_url}"}

    return service_app(SERVICE, "Loopwright pr-agent", lifespan, readiness)
