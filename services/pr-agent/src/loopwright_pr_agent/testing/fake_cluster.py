"""A cluster by hand: the calls of ``JobsApi``, a Job controller and a kubelet that runs a pod's container with bubblewrap.

It passes the suite that a real cluster passes (tests/adapters/test_sandbox.py). What only a real one has, cgroups, eviction, network
policies, is set by hand here (``fate``) or is not claimed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loopwright_pr_agent.sandbox import pod_runner
from loopwright_pr_agent.sandbox.bubblewrap import SYSTEM, toolchain_folders
from loopwright_pr_agent.sandbox.kubernetes.api import ApiRefused, Kind, Listed, WatchExpired
from loopwright_pr_agent.sandbox.kubernetes.manifest import RUNNER
from loopwright_pr_agent.testing.pod_security import restricted_faults

Fate = Callable[[dict[str, Any]], Mapping[str, Any] | None]  # a pod in; the status it is stuck or ends with, or None to run it
TOOLCHAINS = (Path(sys.base_prefix), Path(sys.prefix))


class FakeCluster:
    """One namespace. ``fate`` decides about each pod; ``forbidden`` holds (verb, resource) that the account may not."""

    def __init__(self, fate: Fate | None = None) -> None:
        self.fate = fate
        self.forbidden: set[tuple[str, str]] = set()
        self.refuses_pods: tuple[int, str] | None = None  # as a quota does
        self.jobs: dict[str, dict[str, Any]] = {}
        self.pods: dict[str, dict[str, Any]] = {}
        self.created: list[str] = []  # names of all Jobs there ever were
        self.expire_watches = 0
        self._logs: dict[str, Path] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._version = 1
        self._changed = threading.Condition(threading.RLock())
        self._scratch = Path(tempfile.mkdtemp(prefix="loopwright-cluster-"))
        self._scratch.chmod(0o711)

    def close(self) -> None:
        for name in list(self.jobs):
            self.delete_job(name, self.jobs[name]["metadata"]["uid"])
        for uid in list(self._processes):  # of Jobs too that a test put something else in the place of
            self._end(uid)
        shutil.rmtree(self._scratch, ignore_errors=True)

    # The API

    def create(self, kind: Kind, manifest: Mapping[str, Any], *, dry_run: bool = False) -> dict[str, Any]:
        self._check("create", kind)
        if kind == "pods":
            if not dry_run:
                raise AssertionError("this service makes Jobs, never pods")
            self._admit_pod(manifest["spec"])
            return dict(manifest)
        with self._changed:
            name = manifest["metadata"]["name"]
            if name in self.jobs:
                raise ApiRefused(409, "AlreadyExists", f'jobs.batch "{name}" already exists')
            metadata = {**manifest["metadata"], "uid": str(uuid.uuid4()), "creationTimestamp": _now()}
            job: dict[str, Any] = {**manifest, "metadata": metadata, "status": {}}
            if dry_run:
                return job
            self.jobs[name] = job
            self.created.append(name)
            self._touch()
        try:
            self._admit_pod(manifest["spec"]["template"]["spec"])
        except ApiRefused:
            return job  # the controller cannot make the pod, and says so in an event that nobody reads
        threading.Thread(target=self._live, args=(job,), name=f"pod-{name}", daemon=True).start()
        return job

    def get_job(self, name: str) -> dict[str, Any] | None:
        self._check("get", "jobs")
        with self._changed:
            found: dict[str, Any] | None = _copy(self.jobs.get(name))
            return found

    def delete_job(self, name: str, uid: str) -> None:
        self._check("delete", "jobs")
        with self._changed:
            job = self.jobs.get(name)
            if job is None or job["metadata"]["uid"] != uid:
                return
            del self.jobs[name]
            self._touch()
        self._end(uid)
        with self._changed:
            self.pods.pop(uid, None)
            self._touch()

    def list(self, kind: Kind, selector: str) -> Listed:
        self._check("list", kind)
        with self._changed:
            things = self.jobs if kind == "jobs" else self.pods
            return Listed([_copy(thing) for thing in things.values() if _matches(thing, selector)], str(self._version))

    def watch(self, kind: Kind, selector: str, version: str, seconds: float) -> bool:
        self._check("watch", kind)
        with self._changed:
            if self.expire_watches > 0:
                self.expire_watches -= 1
                raise WatchExpired
            return self._changed.wait_for(lambda: self._version > int(version), timeout=min(seconds, 1.0))

    def log(self, pod: str) -> str:
        self._check("get", "pods")
        found = [path for uid, path in self._logs.items() if f"pod-{uid}" == pod]
        return found[0].read_text("utf-8", "replace")[-4_000:] if found and found[0].exists() else ""

    def may(self, verb: str, group: str, resource: str, subresource: str) -> bool:
        return (verb, f"{resource}/{subresource}" if subresource else resource) not in self.forbidden

    def _check(self, verb: str, resource: str) -> None:
        if (verb, resource) in self.forbidden:
            raise ApiRefused(403, "Forbidden", f'{resource} is forbidden: User "pr-agent" cannot {verb} resource "{resource}"')

    def _admit_pod(self, spec: Mapping[str, Any]) -> None:
        if self.refuses_pods is not None:
            raise ApiRefused(self.refuses_pods[0], "Forbidden", self.refuses_pods[1])
        if faults := restricted_faults(spec):
            raise ApiRefused(403, "Forbidden", f'pods is forbidden: violates PodSecurity "restricted:latest": {"; ".join(faults)}')

    # The Job controller and the kubelet

    def _live(self, job: dict[str, Any]) -> None:
        uid, spec = job["metadata"]["uid"], job["spec"]
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": job["metadata"]["name"], "uid": uid, "controller": True}
        template = spec["template"]
        pod: dict[str, Any] = {
            "metadata": {**template["metadata"], "name": f"pod-{uid}", "uid": str(uuid.uuid4()), "ownerReferences": [owner]},
            "spec": template["spec"],
            "status": {"phase": "Pending"},
        }
        with self._changed:
            self.pods[uid] = pod
            self._touch()
        decided = self.fate(pod) if self.fate is not None else None
        if decided is not None:
            self._tell(uid, decided)
            if decided.get("phase") == "Failed":
                self._finish(job, "Failed", str(decided.get("jobReason", "BackoffLimitExceeded")))
            return
        deadline = time.monotonic() + spec["activeDeadlineSeconds"]
        began = _now()
        code = self._run(uid, pod["spec"], began, deadline)
        if code is None:
            self._tell(uid, {"phase": "Failed", "reason": "DeadlineExceeded", "containerStatuses": [_ended(137, "Error", began)]})
            self._finish(job, "Failed", "DeadlineExceeded")
            return
        reason, phase = ("Completed", "Succeeded") if code == 0 else ("Error", "Failed")
        self._tell(uid, {"phase": phase, "containerStatuses": [_ended(code, reason, began)]})
        self._finish(job, *(("Complete", "CompletionsReached") if code == 0 else ("Failed", "BackoffLimitExceeded")))

    def _run(self, uid: str, spec: Mapping[str, Any], began: str, deadline: float) -> int | None:
        container = spec["containers"][0]
        root = self._scratch / uid
        root.mkdir(mode=0o711)
        user = int(container["securityContext"].get("runAsUser", 65_532))
        folders = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        binds: list[str] = []
        for path, name in folders.items():
            volume = next(volume["emptyDir"] for volume in spec["volumes"] if volume["name"] == name)
            if volume.get("medium") == "Memory":
                binds += ["--size", volume["sizeLimit"], "--perms", "1777", "--tmpfs", path]
                continue
            (root / name).mkdir()
            (root / name).chmod(0o777)
            binds += ["--bind", str(root / name), path]
        self._logs[uid] = root / "log"
        with self._logs[uid].open("wb") as output:
            process = subprocess.Popen(
                _command(binds, container, spec, user), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd="/"
            )
        with self._changed:
            self._processes[uid] = process
            is_deleted = uid not in self._uids()
        if is_deleted:
            self._end(uid)
        self._tell(uid, {"phase": "Running", "containerStatuses": [{"name": "run", "state": {"running": {"startedAt": began}}}]})
        try:
            return process.wait(timeout=max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._end(uid)
            return None

    def _uids(self) -> set[str]:
        return {job["metadata"]["uid"] for job in self.jobs.values()}

    def _end(self, uid: str) -> None:
        process = self._processes.get(uid)
        if process is None or process.poll() is not None:
            return
        # The container's first process, with which the kernel ends all of it; bubblewrap outside would leave it behind.
        first = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        for number, seconds in ((signal.SIGTERM, 1.0), (signal.SIGKILL, 10.0)):
            for pid in first:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=seconds)
                return

    def _tell(self, uid: str, status: Mapping[str, Any]) -> None:
        with self._changed:
            if uid in self.pods:
                self.pods[uid]["status"] = {**self.pods[uid]["status"], **status}
            self._touch()

    def _finish(self, job: dict[str, Any], kind: str, reason: str) -> None:
        with self._changed:
            job["status"]["conditions"] = [{"type": kind, "status": "True", "reason": reason, "message": reason}]
            self._touch()

    def _touch(self) -> None:
        self._version += 1
        self._changed.notify_all()


def _command(binds: list[str], container: Mapping[str, Any], spec: Mapping[str, Any], user: int) -> list[str]:
    command = ["bwrap", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--as-pid-1", "--die-with-parent", "--new-session"]
    as_root = os.geteuid() == 0
    command += [] if as_root else ["--unshare-user", "--uid", str(user), "--gid", str(user)]
    command += ["--clearenv", "--proc", "/proc", "--dev", "/dev"]
    for path in SYSTEM:
        if os.path.islink(path):
            command += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            command += ["--ro-bind", path, path]
    for path in ("/etc", "/run", "/opt", "/opt/loopwright", "/home", "/root"):
        command += ["--perms", "0755", "--dir", path]
    for name in ("ld.so.cache", "passwd", "group", "alternatives"):
        command += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    for prefix in toolchain_folders(TOOLCHAINS):
        for parent in [*reversed(prefix.parents)][1:]:
            command += ["--perms", "0755", "--dir", str(parent)]
        command += ["--ro-bind", str(prefix), str(prefix)]
    path = ":".join([*(str(prefix / "bin") for prefix in reversed(TOOLCHAINS)), "/usr/local/bin", "/usr/bin", "/bin"])
    binds = [*binds, "--size", str(64 * 1024**2), "--perms", "1777", "--tmpfs", "/dev/shm"]  # noqa: S108  as container engines make it
    command += [*binds, "--ro-bind", str(Path(pod_runner.__file__)), RUNNER, "--remount-ro", "/dev", "--remount-ro", "/"]
    for variable in ({"name": "PATH", "value": path}, *container["env"]):
        command += ["--setenv", variable["name"], variable["value"]]
    drop = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]
    return [*command, "--chdir", "/", "--", *(drop if as_root else []), *container["command"], *(container.get("args") or ())]


def _ended(code: int, reason: str, began: str) -> dict[str, Any]:
    return {"name": "run", "state": {"terminated": {"exitCode": code, "reason": reason, "startedAt": began, "finishedAt": _now()}}}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _copy(thing: Any) -> Any:
    """As over the wire."""
    if isinstance(thing, Mapping):
        return {key: _copy(value) for key, value in thing.items()}
    return [_copy(value) for value in thing] if isinstance(thing, list | tuple) else thing


def _matches(thing: Mapping[str, Any], selector: str) -> bool:
    labels = thing["metadata"].get("labels") or {}
    return all(labels.get(part.partition("=")[0]) == part.partition("=")[2] for part in selector.split(","))
