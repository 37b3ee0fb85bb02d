"""The parts of a Kubernetes sandbox put together from the settings: the cluster's API, the broker, the model behind it."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from typing import Any

import structlog
from loopwright_common.bus import Bus
from loopwright_common.clock import Clock
from loopwright_common.errors import Retryable
from loopwright_common.model import ModelClient, ModelRole
from loopwright_common.spending import BucketSpending

from loopwright_pr_agent.broker.api import BrokerServer, broker_app
from loopwright_pr_agent.broker.records import BUCKET, RunRecords
from loopwright_pr_agent.broker.runs import Runs
from loopwright_pr_agent.broker.tokens import SECRET_BYTES, Tokens, open_tokens
from loopwright_pr_agent.sandbox.kubernetes.api import SERVICE_ACCOUNT_TOKEN, ApiRefused, ApiUnreachable, ClusterApi, JobsApi
from loopwright_pr_agent.sandbox.kubernetes.jobs import JobOptions, KubernetesSandbox
from loopwright_pr_agent.sandbox.kubernetes.manifest import JobSettings
from loopwright_pr_agent.sandbox.port import NoSandbox
from loopwright_pr_agent.settings import PrAgentSettings

SPENDING_BUCKET = "pr-agent-spending"
ROLE = "coding"
NEEDED = ("sandbox_namespace", "sandbox_image", "broker_url")
SWEEP_SECONDS = 3_600.0

log = structlog.get_logger()


def is_wanted(settings: PrAgentSettings) -> bool:
    """Whether Jobs are to be tried: when they are asked for by name, and in a pod where everything is set that they need."""
    if settings.sandbox == "kubernetes":
        return True
    is_set = all(getattr(settings, name) for name in NEEDED)
    return settings.sandbox == "auto" and is_set and SERVICE_ACCOUNT_TOKEN.exists()


@dataclass
class ClusterSandbox:
    """A sandbox with its broker. ``start``, then ``check``; ``leave`` before the work is drained, ``stop`` after it."""

    sandbox: KubernetesSandbox
    _server: BrokerServer
    _model: ModelClient | None
    _swept: bool = False

    @classmethod
    async def start(cls, settings: PrAgentSettings, bus: Bus, clock: Clock, api: JobsApi | None = None) -> ClusterSandbox:
        """The broker listens from here on. Raises NoSandbox for settings that cannot do, SandboxBroken without a way to a cluster."""
        _check_set(settings)
        cluster: JobsApi = api if api is not None else await asyncio.to_thread(ClusterApi.connect, settings.sandbox_namespace)
        bucket = await bus.key_value(BUCKET)
        tokens = await open_tokens(settings.broker_secret.get_secret_value(), bucket)
        model = None
        if settings.model_base_url:
            model = ModelClient(_role(settings), spending=BucketSpending(await bus.key_value(SPENDING_BUCKET), clock), clock=clock)
        runs = Runs(RunRecords(bucket), tokens, clock, model)
        server = BrokerServer(broker_app(runs), settings.broker_host, settings.broker_port)
        try:
            await server.start()
        except (OSError, TimeoutError) as error:
            raise NoSandbox(f"The broker cannot listen on {settings.broker_host}:{settings.broker_port}: {error}") from error
        return cls(KubernetesSandbox(cluster, job_settings(settings), runs, _options(settings), clock), server, model)

    async def check(self) -> str:
        """What holds; the first time it does, Jobs that nobody owns are taken away. Raises NoSandbox, SandboxBroken."""
        facts = await self.sandbox.probe()
        if not self._swept:
            self._swept = await self._sweep()
        return facts

    async def keep_swept(self) -> None:
        """Sweeps now and then until cancelled: a service that runs for months forgets old runs too."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            await self._sweep()

    async def _sweep(self) -> bool:
        try:
            await self.sandbox.sweep()
        except (ApiUnreachable, ApiRefused, Retryable) as error:
            log.warning("sandbox_jobs_not_swept", error=str(error)[:300])
            return False
        return True

    def leave(self) -> None:
        """Runs that are cancelled from here on stay in the cluster, for the next life of this service to find."""
        self.sandbox.leave()

    async def stop(self) -> None:
        await self._server.stop()
        self.sandbox.close()
        if self._model is not None:
            await self._model.close()


async def look(settings: PrAgentSettings, clock: Clock, api: JobsApi | None = None) -> tuple[str, str]:
    """The isolation that Jobs would have with these settings, and what was found of it; nothing is run, and no bus is needed.

    The cluster is asked about the account's rights, and to check a Job and its pod without making them. Raises NoSandbox, SandboxBroken.
    """
    _check_set(settings)
    cluster: JobsApi = api if api is not None else await asyncio.to_thread(ClusterApi.connect, settings.sandbox_namespace)
    no_bucket: Any = None  # of runs that are kept there are none
    runs = Runs(RunRecords(no_bucket), Tokens(secrets.token_bytes(SECRET_BYTES)), clock)
    sandbox = KubernetesSandbox(cluster, job_settings(settings), runs, _options(settings), clock)
    try:
        return sandbox.isolation, await sandbox.probe()
    finally:
        sandbox.close()


def _check_set(settings: PrAgentSettings) -> None:
    for name in NEEDED:
        if not getattr(settings, name):
            raise NoSandbox(f"LOOPWRIGHT_PR_AGENT_{name.upper()} is not set; Jobs need it.")


def _options(settings: PrAgentSettings) -> JobOptions:
    return JobOptions(
        broker_url=settings.broker_url,
        work_dir=(settings.work_dir / "bundles").absolute(),
        concurrency=settings.concurrency,
        pending_seconds_max=settings.sandbox_pending_seconds_max,
        bundle_bytes_max=settings.sandbox_bundle_bytes_max,
        model_seconds=settings.model_seconds_max + 5.0,
    )


def job_settings(settings: PrAgentSettings) -> JobSettings:
    """What the settings say of every Job."""
    return JobSettings(
        namespace=settings.sandbox_namespace,
        image=settings.sandbox_image,
        image_pull_policy=settings.sandbox_image_pull_policy,
        image_pull_secrets=settings.sandbox_image_pull_secrets,
        runtime_class=settings.sandbox_runtime_class,
        node_selector=settings.sandbox_node_selector,
        tolerations=settings.sandbox_tolerations,
        priority_class=settings.sandbox_priority_class,
        uid=settings.sandbox_uid,
        uids=settings.sandbox_uids,
        gid=settings.sandbox_gid,
        cpu_request=settings.sandbox_cpu_request,
        cpu_limit=settings.sandbox_cpu_limit,
        memory_request=settings.sandbox_memory_request,
        workspace_bytes=settings.sandbox_workspace_bytes,
        home_bytes=settings.sandbox_home_bytes,
        tmp_bytes=settings.sandbox_tmp_bytes,
        ttl_seconds=settings.sandbox_ttl_seconds,
    )


def _role(settings: PrAgentSettings) -> ModelRole:
    return ModelRole(
        name=ROLE,
        base_url=settings.model_base_url,
        api_key=settings.model_api_key,
        model=settings.model_name,
        calls_per_run_max=settings.model_calls_per_run_max,
        input_tokens_per_run_max=settings.model_input_tokens_per_run_max,
        output_tokens_per_run_max=settings.model_output_tokens_per_run_max,
        output_tokens_per_call_max=settings.model_output_tokens_max,
        usd_per_run_max=settings.model_usd_per_run_max,
        usd_per_day_max=settings.model_usd_per_day_max,
        usd_per_million_input=settings.model_usd_per_million_input,
        usd_per_million_output=settings.model_usd_per_million_output,
        attempt_seconds_max=settings.model_seconds_max,
        call_seconds_max=settings.model_seconds_max,
    )
