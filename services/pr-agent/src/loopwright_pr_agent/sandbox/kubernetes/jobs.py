"""Runs a command as a Job: the one place that creates, watches and deletes.

A run is known by its key. Its record (on the bus) says which try it is at and which Job, by uid, is that try's; the Job's name follows from
both, so that a service that begins anew finds its Job, and a Job that only bears the name is nobody's. What was found out once, the pod's
result or its death, is stored before it is told: asked again for the same key and input, it is told again, and nothing runs twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import socket
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

import structlog
from loopwright_common import telemetry
from loopwright_common.bus import Conflict
from loopwright_common.clock import Clock

from loopwright_pr_agent.broker.bundle import Bundle, write_bundle
from loopwright_pr_agent.broker.records import TAIL_CHARACTERS_MAX, KeptRun, PodResult, RunRecord
from loopwright_pr_agent.broker.runs import Live, Runs
from loopwright_pr_agent.sandbox.kubernetes.api import RULES, ApiRefused, ApiUnreachable, JobsApi, Kind, WatchExpired
from loopwright_pr_agent.sandbox.kubernetes.manifest import (
    ANNOTATION_CLAIM,
    LABEL_RUN,
    SELECTOR,
    JobRun,
    JobSettings,
    job_manifest,
    job_name,
    run_id,
)
from loopwright_pr_agent.sandbox.kubernetes.statuses import Ended, Handed, Trouble, refusal, verdict
from loopwright_pr_agent.sandbox.port import NoSandbox, RunRequest, RunResult, SandboxBroken, SandboxError

WATCH_SECONDS = 10.0  # a watch that hears nothing is begun anew, so that a cut connection is noticed
ASK_AGAIN_SECONDS = 2.0
SETTLE_SECONDS = 5.0  # a status that says "ended, nobody knows why" often says why a moment later
HAND_OVER_SECONDS = 960.0  # fetching, unpacking, the diff, and a broker that begins anew: more than the runner asks it again in all
FORGET_AFTER = timedelta(days=2)
T = TypeVar("T")

log = structlog.get_logger()


@dataclass(frozen=True)
class JobOptions:
    """What is ours to decide, beside the Job's own shape."""

    broker_url: str
    work_dir: Path
    concurrency: int = 1
    pending_seconds_max: float = 300.0
    bundle_bytes_max: int = 256 * 1024**2
    model_seconds: float = 120.0


class KubernetesSandbox:
    """Jobs in one namespace. ``close`` it in the end; what ``leave`` was called before stays in the cluster, to be found again."""

    def __init__(self, api: JobsApi, settings: JobSettings, runs: Runs, options: JobOptions, clock: Clock) -> None:
        self._api, self._settings, self._runs, self._options, self._clock = api, settings, runs, options, clock
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._leaving = False
        # Of our own: two watches a run would fill the loop's threads, on which everything else waits too.
        self._threads = ThreadPoolExecutor(4 + 4 * options.concurrency, thread_name_prefix="kubernetes")

    @property
    def isolation(self) -> str:
        return f"kubernetes+{self._settings.runtime_class}" if self._settings.runtime_class else "kubernetes"

    def leave(self) -> None:
        """From here on a cancelled run is left to go on in the cluster: the service ends, and the next one finds it."""
        self._leaving = True

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def run(self, request: RunRequest) -> RunResult:
        """As the port says. Raises SandboxBroken, NoSandbox, BundleTooLarge."""
        run = run_id(str(request.key))
        telemetry.annotate(k8s__namespace__name=self._settings.namespace, loopwright__sandbox__run=run)
        lock = self._locks.setdefault(run, asyncio.Lock())
        async with lock:
            return await self._run(request, run)

    async def _run(self, request: RunRequest, run: str) -> RunResult:
        await asyncio.to_thread(self._options.work_dir.mkdir, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="job-", dir=self._options.work_dir) as folder:
            write = partial(
                write_bundle,
                bytes_max=self._options.bundle_bytes_max,
                processes_of_user=self._processes_of_user(request.limits.processes),
                model_seconds=self._options.model_seconds,
            )
            bundle = await asyncio.to_thread(write, request, Path(folder) / "bundle.tar")
            kept = await self._begin(request, run, bundle)
            if kept.record.result is not None:
                log.info("run_result_found", run=run, step=request.key.name)
                return self._result(kept.record.result, request, bundle)
            generation = kept.record.generation
            live = self._runs.offer(run, generation, bundle.path)
            try:
                kept = await self._job(kept, request)
                result = await self._wait(kept, request, live)
            except asyncio.CancelledError:
                if not self._leaving:
                    await asyncio.shield(self._abandon(kept, request))
                raise
            except SandboxError:
                await self._abandon(kept, request)
                raise
            except (ApiUnreachable, ApiRefused) as error:  # the Job, if there is one, goes on: the next try finds it
                raise (
                    _raised(refusal(error.status, error.message)) if isinstance(error, ApiRefused) else SandboxBroken(str(error))
                ) from error
            finally:
                self._runs.withdraw(run, generation)
            await self._delete(request, kept)
            return self._result(result, request, bundle)

    # The record

    async def _begin(self, request: RunRequest, run: str, bundle: Bundle) -> KeptRun:
        """The record to go on with: that of an earlier life of this run, or a new one."""
        now = self._clock.now()
        for _ in range(10):
            kept = await self._runs.records.get(run)
            if kept is not None and kept.record.digest == bundle.digest:
                if kept.record.state == "finished":
                    return kept
                if kept.record.state == "running" and now < kept.record.deadline:
                    log.info("run_found_again", run=run, job_uid=kept.record.job_uid, step=request.key.name)
                    return kept
            record = RunRecord(
                key=str(request.key)[:1_000],
                digest=bundle.digest,
                generation=1 if kept is None else kept.record.generation + 1,
                deadline=now + timedelta(seconds=self._seconds(request)),
                model=request.model,
            )
            try:
                if kept is None:
                    return await self._runs.records.create(run, record)
                if kept.record.state == "running":
                    await self._delete(request, kept)  # of an older input, or past its deadline
                return await self._runs.records.update(kept, record)
            except Conflict:
                continue
        raise SandboxBroken(f"the record of run {run} is written by somebody else all the time")

    def _seconds(self, request: RunRequest) -> float:
        """From the Job's creation to its end at the latest: waiting for a node, the commands, what is between."""
        return self._options.pending_seconds_max + request.limits.wall_seconds * (1 + len(request.before)) + HAND_OVER_SECONDS

    def _processes_of_user(self, processes: int) -> int:
        """What RLIMIT_NPROC is set to: where runs share a user id, all of them together, and the runner's own."""
        shared = self._options.concurrency if self._settings.uid is None else 1
        return processes * shared + 8

    # The Job

    async def _job(self, kept: KeptRun, request: RunRequest) -> KeptRun:
        """Sees to it that the Job is there, and is ours; the record then names it. Raises SandboxBroken, NoSandbox."""
        record, name = kept.record, self._name(request, kept)
        job = await self._call(self._api.get_job, name)
        if job is None and not record.job_uid:
            job = await self._create(kept, request, name)
        if job is None:
            return kept  # it was there and is gone: the result may have come before it went
        uid = job["metadata"]["uid"]
        if record.job_uid:
            if uid != record.job_uid:
                raise SandboxBroken(f"the Job {name} is not the one that was begun (uid {uid}, not {record.job_uid})")
            return kept
        claim = (job["metadata"].get("annotations") or {}).get(ANNOTATION_CLAIM, "")
        if not hmac.compare_digest(claim.encode(), self._runs.tokens.claim(kept.run, record.generation).encode()):
            raise SandboxBroken(f"there is a Job {name} that this service did not make; the next try takes another name")
        written = await self._runs.change(kept.run, record.generation, job_uid=uid)
        telemetry.annotate(k8s__job__name=name, k8s__job__uid=uid)
        log.info("job_begun", run=kept.run, job=name, uid=uid, step=request.key.name)
        return written or replace(kept, record=record.model_copy(update={"job_uid": uid}))

    async def _create(self, kept: KeptRun, request: RunRequest, name: str) -> dict[str, Any] | None:
        manifest = await self._manifest(kept, request, name)
        try:
            return await self._call(self._api.create, "jobs", manifest)
        except ApiRefused as error:
            if error.reason == "AlreadyExists":
                return await self._call(self._api.get_job, name)
            raise _raised(refusal(error.status, error.message)) from error

    async def _manifest(self, kept: KeptRun, request: RunRequest, name: str) -> dict[str, Any]:
        tokens, generation = self._runs.tokens, kept.record.generation
        left = (kept.record.deadline - self._clock.now()).total_seconds()
        run = JobRun(
            name=name,
            run=kept.run,
            key=str(request.key),
            project=request.key.project or "none",
            change=request.key.change or "none",
            claim=tokens.claim(kept.run, generation),
            token=tokens.token(kept.run, generation),
            broker_url=self._options.broker_url,
            broker_address=await self._broker_address(),
            deadline_seconds=max(1, int(left)),
            memory_bytes=request.limits.memory_bytes,
            traceparent=telemetry.traceparent(),
        )
        return job_manifest(self._settings, run)

    async def _broker_address(self) -> str:
        """Where the broker's name leads, since nothing is resolved inside; empty where the URL holds an address."""
        host = urlsplit(self._options.broker_url).hostname or ""
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(host)
            return ""
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except OSError as error:
            raise SandboxBroken(f"the broker's name {host} (LOOPWRIGHT_PR_AGENT_BROKER_URL) cannot be resolved: {error}") from error
        return str(found[0][4][0])

    def _name(self, request: RunRequest, kept: KeptRun) -> str:
        return job_name(request.key.project or "none", kept.run, kept.record.generation)

    # The wait

    async def _wait(self, kept: KeptRun, request: RunRequest, live: Live) -> PodResult:
        """The run's one result. Raises SandboxBroken, NoSandbox."""
        name, uid, generation = self._name(request, kept), kept.record.job_uid, kept.record.generation
        unclear_since: datetime | None = None
        until = kept.record.deadline + timedelta(seconds=60)
        while True:
            if live.result.done():
                return _usable(live.result.result())
            try:
                job = await self._call(self._api.get_job, name)
                listed = await self._call(self._api.list, "pods", f"{LABEL_RUN}={kept.run}")
                jobs = await self._call(self._api.list, "jobs", f"{LABEL_RUN}={kept.run}")
            except (ApiUnreachable, WatchExpired) as error:
                log.warning("cluster_not_seen", run=kept.run, error=str(error)[:300])
                await self._pause(live, ASK_AGAIN_SECONDS)
                if self._clock.now() > until:
                    raise SandboxBroken(f"the Job {name} could not be seen until its deadline: {error}") from error
                continue
            waited = self._waited(kept, request)
            found = verdict(job, listed.items, uid, waited, self._options.pending_seconds_max)
            if found is not None or self._clock.now() > until:
                stored = await self._stored(kept, live)
                if stored is not None:
                    return stored
                if found is None:
                    raise SandboxBroken(f"the Job {name} did not end by its deadline, and gave no result")
                now = self._clock.now()
                unclear_since = unclear_since or now
                if isinstance(found, Ended) or (now - unclear_since).total_seconds() >= SETTLE_SECONDS or _is_clear(found):
                    return await self._conclude(found, kept, request, listed.items, generation)
                await self._pause(live, 0.5)
                continue
            unclear_since = None
            await self._changed(kept.run, {"pods": listed.version, "jobs": jobs.version}, live)

    async def _stored(self, kept: KeptRun, live: Live) -> PodResult | None:
        """A result that came while the cluster was looked at, to this process or to another one."""
        if live.result.done():
            return _usable(live.result.result())
        now = await self._runs.records.get(kept.run)
        if now is not None and now.record.generation == kept.record.generation and now.record.result is not None:
            return _usable(now.record.result)
        return None

    async def _conclude(
        self, found: Ended | Trouble | Handed, kept: KeptRun, request: RunRequest, pods: list[dict[str, Any]], generation: int
    ) -> PodResult:
        name = self._name(request, kept)
        if isinstance(found, Ended):
            result = PodResult(outcome=found.outcome, output_tail=found.detail, wall_seconds=_seconds_of(pods, kept.record.job_uid))
            stored = await self._runs.change(kept.run, generation, state="finished", result=result)
            log.info("run_ended_without_result", run=kept.run, job=name, outcome=found.outcome, detail=found.detail)
            if stored is None and (other := await self._runs.records.get(kept.run)) is not None and other.record.result is not None:
                return _usable(other.record.result)
            return result
        said = ""
        for pod in pods:
            said = (await self._call(self._api.log, pod["metadata"]["name"])).strip()[-600:] or said
        if isinstance(found, Handed):
            raise SandboxBroken(f"the Job {name} ended well, but its result never came. The runner said: {said or 'nothing'}")
        if found.no_pod:
            found = await self._why_no_pod(kept, request, name)
        raise _raised(Trouble(f"the Job {name}: {found.reason}{f'. The runner said: {said}' if said else ''}", found.permanent))

    async def _why_no_pod(self, kept: KeptRun, request: RunRequest, name: str) -> Trouble:
        """Asks for the pod that the Job could not have, without making it: the refusal says why."""
        try:
            await self._call(self._api.create, "pods", _pod_of(await self._manifest(kept, request, name)), dry_run=True)
        except ApiRefused as error:
            return refusal(error.status, error.message)
        except ApiUnreachable as error:
            return Trouble(f"no pod could be made for it, and why could not be asked ({error})")
        return Trouble("no pod was made for it, though one would be admitted now; is the cluster's Job controller running?")

    def _waited(self, kept: KeptRun, request: RunRequest) -> float:
        """Seconds since this try began, by this service's clock alone: the cluster's may differ."""
        return max(0.0, self._seconds(request) - (kept.record.deadline - self._clock.now()).total_seconds())

    async def _changed(self, run: str, versions: dict[Kind, str], live: Live) -> None:
        """Returns at the first change of the pod or the Job, at the result, or after a while."""
        watches: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(self._call(self._api.watch, kind, f"{LABEL_RUN}={run}", version, WATCH_SECONDS))
            for kind, version in versions.items()
        ]
        try:
            watched: list[asyncio.Future[Any]] = [*watches, live.result]
            done, _ = await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED, timeout=WATCH_SECONDS + 5)
            for watch in done - {live.result}:
                error = watch.exception()
                if isinstance(error, ApiUnreachable | ApiRefused):
                    log.warning("watch_broke_off", run=run, error=str(error)[:300])
                    await self._pause(live, ASK_AGAIN_SECONDS)
                elif error is not None and not isinstance(error, WatchExpired):  # expired: what is there is read anew anyway
                    raise error
        finally:
            for watch in watches:
                watch.cancel()

    @staticmethod
    async def _pause(live: Live, seconds: float) -> None:
        await asyncio.wait([live.result], timeout=seconds)

    # The end

    async def _abandon(self, kept: KeptRun, request: RunRequest) -> None:
        """The run is over without a result: its token dies, its Job goes."""
        with contextlib.suppress(Conflict):
            await self._runs.change(kept.run, kept.record.generation, state="broken")
        now = await self._runs.records.get(kept.run)
        await self._delete(request, now if now is not None and now.record.generation == kept.record.generation else kept)

    async def _delete(self, request: RunRequest, kept: KeptRun) -> None:
        """Takes the Job away; one that cannot be taken away now goes by its time to live."""
        name = self._name(request, kept)
        try:
            uid = kept.record.job_uid
            if not uid:  # begun, and cut off before it was noted
                job = await self._call(self._api.get_job, name)
                claim = ((job or {}).get("metadata", {}).get("annotations") or {}).get(ANNOTATION_CLAIM, "")
                if job is None or claim != self._runs.tokens.claim(kept.run, kept.record.generation):
                    return
                uid = job["metadata"]["uid"]
            await self._call(self._api.delete_job, name, uid)
        except (ApiUnreachable, ApiRefused) as error:
            log.warning("job_not_deleted", job=name, error=str(error)[:300])

    async def sweep(self) -> int:
        """Deletes the Jobs of this service that nobody owns any more, and forgets old runs. Gives how many Jobs went."""
        gone = 0
        for job in (await self._call(self._api.list, "jobs", SELECTOR)).items:
            metadata = job["metadata"]
            run, uid = (metadata.get("labels") or {}).get(LABEL_RUN, ""), metadata["uid"]
            kept = await self._runs.records.get(run) if run else None
            if kept is not None and kept.record.state == "running" and kept.record.job_uid in ("", uid):
                continue  # its change will be asked for again; the deadline and the time to live bound that
            ours = any(
                (metadata.get("annotations") or {}).get(ANNOTATION_CLAIM) == self._runs.tokens.claim(run, generation)
                for generation in range(1, (kept.record.generation if kept is not None else 8) + 1)
            )
            if ours:
                await self._call(self._api.delete_job, metadata["name"], uid)
                gone += 1
        forgotten = await self._runs.records.sweep(self._clock.now() - FORGET_AFTER)
        log.info("sandbox_jobs_swept", jobs=gone, records=forgotten)
        return gone

    # The probe

    async def probe(self) -> str:
        """What holds, in words. Raises NoSandbox naming everything that is missing, SandboxBroken when the cluster does not answer."""
        try:
            missing = [rule for rule in RULES if not await self._call(self._api.may, *rule)]
            if missing:
                named = ", ".join(f"{verb} {resource}{f'/{sub}' if sub else ''}" for verb, _, resource, sub in missing)
                raise NoSandbox(
                    f"pr-agent may not {named} in the namespace {self._settings.namespace}; give its ServiceAccount the Role of the chart."
                )
            sample = RunRequest(("true",), self._options.work_dir)
            record = RunRecord(key="probe", digest="", generation=1, deadline=self._clock.now() + timedelta(seconds=60))
            manifest = await self._manifest(KeptRun(run_id("probe"), record, 0), sample, job_name("none", run_id("probe"), 1))
            for kind, thing in (("jobs", manifest), ("pods", _pod_of(manifest))):
                try:
                    await self._call(self._api.create, kind, thing, dry_run=True)
                except ApiRefused as error:
                    if error.reason != "AlreadyExists":
                        raise _raised(refusal(error.status, error.message)) from error
        except ApiUnreachable as error:
            raise SandboxBroken(f"the cluster does not answer: {error}") from error
        image = self._settings.image
        pinned = "" if "@sha256:" in image else "; the image is named by a tag, which may change: name it by digest"
        return f"Jobs in {self._settings.namespace} of {image}{pinned}"

    def _result(self, result: PodResult, request: RunRequest, bundle: Bundle) -> RunResult:
        result = _usable(result)
        assert result.outcome is not None
        tail = result.output_tail.encode()[-request.limits.tail_bytes :].decode("utf-8", "replace")[-TAIL_CHARACTERS_MAX:]
        return RunResult(
            result.outcome,
            result.exit_code if result.outcome == "exited" else None,
            tail,
            self.isolation,
            self._facts(result, bundle),
            result.wall_seconds,
            result.cpu_seconds,
            result.diff if request.diff else None,
        )

    def _facts(self, result: PodResult, bundle: Bundle) -> tuple[str, ...]:
        facts = [
            f"a pod of its own in {self._settings.namespace}: not root, read-only root, no capabilities, no service-account token",
            "the command has no network; the pod can reach the broker, and nothing else where the cluster enforces network policies",
            "RuntimeDefault seccomp and a system call filter of its own",
        ]
        if self._settings.runtime_class:
            facts.append(f"runtime class {self._settings.runtime_class}")
        if bundle.left_out:
            facts.append(
                f"left out, links that lead out of the repository: {len(bundle.left_out)}, {', '.join(bundle.left_out[:10])[:400]}"
            )
        if result.no_diff:
            facts.append(f"no diff: {result.no_diff[:400]}")
        kernel = "" if self._settings.runtime_class else "bugs of the node's kernel; "
        facts.append(f"not covered: {kernel}the disk is bounded by eviction, which takes the kubelet some seconds")
        return tuple(facts)

    async def _call(self, call: Callable[..., T], *arguments: Any, **more: Any) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, partial(call, *arguments, **more))
        except RuntimeError as error:  # closed
            raise SandboxBroken(f"this service is ending: {error}") from error


def _pod_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The pod that the Job controller would make."""
    template = manifest["spec"]["template"]
    metadata = {**template["metadata"], "generateName": f"{manifest['metadata']['name']}-", "namespace": manifest["metadata"]["namespace"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def _raised(trouble: Trouble) -> SandboxError:
    return NoSandbox(trouble.reason) if trouble.permanent else SandboxBroken(trouble.reason)


def _is_clear(found: Ended | Trouble | Handed) -> bool:
    """Whether a status will not be told better in a moment: a pod that is gone or failed often is."""
    return isinstance(found, Trouble) and (found.permanent or found.no_pod)


def _usable(result: PodResult) -> PodResult:
    if result.broken or result.outcome is None:
        raise SandboxBroken(f"the run could not be set up in its pod: {result.broken or 'no outcome was told'}")
    return result


def _seconds_of(pods: list[dict[str, Any]], uid: str) -> float:
    """How long the container ran, as its status says."""
    for pod in pods:
        for container in pod.get("status", {}).get("containerStatuses") or ():
            ended = (container.get("state") or {}).get("terminated") or {}
            with contextlib.suppress(KeyError, ValueError):
                began, over = (datetime.fromisoformat(ended[name]) for name in ("startedAt", "finishedAt"))
                return max(0.0, (over - began).total_seconds())
    return 0.0
