"""The walls of a sandbox pod, leaned on from inside, and its failures told as what they are: on a real cluster.

Two insides are tried. ``command`` is what a repository's own code is: started by the runner, under its system call filter and limits.
``pod`` is the same pod without the runner, as if that had been overcome: only what Kubernetes holds is left.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from loopwright_pr_agent.broker.records import PodResult, RunRecord
from loopwright_pr_agent.sandbox.kubernetes.api import ApiRefused, ClusterApi
from loopwright_pr_agent.sandbox.kubernetes.manifest import JobRun, JobSettings, job_manifest, run_id
from loopwright_pr_agent.sandbox.kubernetes.statuses import Ended, verdict
from loopwright_pr_agent.sandbox.port import MIB, Limits, NoSandbox, RunKey, RunRequest, RunResult, SandboxBroken
from loopwright_pr_agent.testing.stand import Stand

from tests.cluster.clusters import Cluster
from tests.cluster.release import SANDBOXES, Release

WALLS = "loopwright-walls"
LIMITS = Limits(wall_seconds=60, cpu_seconds=30, memory_bytes=128 * MIB, file_bytes=4 * MIB, processes=48, output_bytes=MIB)
SCRATCH = ("/workspace", "/tmp", "/home/sandbox", "/run/inputs", "/dev/shm", "/dev/mqueue")
# Of the container engine: a message of 4 KiB that the kubelet reads, and the devices that give nothing away.
ENGINE = (
    "/dev/termination-log",
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/ptmx",
    "/dev/pts/ptmx",
)
SETTLE = "6"  # a policy is in force a moment after the pod has its address, not before: Kubernetes promises no more
CONNECT = """
import json, socket, sys, time
time.sleep(float(sys.argv[2]))
said = {}
for name, (host, port) in json.loads(sys.argv[1]).items():
    try:
        socket.create_connection((host, port), 4).close()
        said[name] = "reached"
    except OSError as error:
        said[name] = type(error).__name__ + " " + str(error)
print("SAID " + json.dumps(said))
"""
ASK = """
import json, sys, urllib.request
said = {}
for name, (url, token) in json.loads(sys.argv[1]).items():
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Authorization": "Bearer " + token}), timeout=10) as answer:
            said[name] = [answer.status, answer.read().decode()]
    except urllib.error.HTTPError as error:
        said[name] = [error.code, error.read().decode()]
print("SAID " + json.dumps(said))
"""


@pytest.fixture(scope="module")
def image(release: Release) -> str:
    """The sandbox image as the installed pr-agent has it."""
    pod = release.get("deployment", f"{release.name}-pr-agent")["spec"]["template"]["spec"]
    return str(next(item["value"] for item in pod["containers"][0]["env"] if item["name"] == "LOOPWRIGHT_PR_AGENT_SANDBOX_IMAGE"))


@pytest.fixture(scope="module")
def settings(image: str) -> JobSettings:
    return JobSettings(
        WALLS, image, cpu_request="50m", memory_request="64Mi", workspace_bytes=32 * MIB, home_bytes=16 * MIB, tmp_bytes=16 * MIB
    )


@pytest.fixture(scope="module")
def port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def walls(cluster: Cluster, port: int) -> Iterator[ClusterApi]:
    """A namespace like the chart's for sandboxes, whose pods reach a broker of this test and nothing else."""
    os.environ["KUBECONFIG"], before = str(cluster.kubeconfig), os.environ.get("KUBECONFIG")
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")}
    policy = {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
        "egress": [{"to": [{"ipBlock": {"cidr": f"{cluster.host}/32"}}], "ports": [{"port": port, "protocol": "TCP"}]}],
    }
    cluster.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": WALLS, "labels": labels}},
        {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "broker", "namespace": WALLS}, "spec": policy},
    )
    try:
        yield ClusterApi.connect(WALLS)
    finally:
        cluster.kubectl("delete", "namespace", WALLS, "--wait=false")
        if before is None:
            del os.environ["KUBECONFIG"]
        else:
            os.environ["KUBECONFIG"] = before


@pytest.fixture
async def stand(walls: ClusterApi, settings: JobSettings, cluster: Cluster, port: int, tmp_path: Path) -> AsyncIterator[Stand]:
    url = f"http://{cluster.host}:{port}"
    async with Stand(walls, tmp_path / "work", settings=settings, host="0.0.0.0", port=port, broker_url=url) as made:
        yield made


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "files").mkdir()
    return tmp_path / "files"


Command = Callable[..., Awaitable[RunResult]]


@pytest.fixture
def command(stand: Stand, files: Path) -> Command:
    async def run(code: str, *arguments: str, **more: Any) -> RunResult:
        return await stand.sandbox.run(RunRequest(("python3", "-c", code, *arguments), files, limits=more.pop("limits", LIMITS), **more))

    return run


def manifest_of(settings: JobSettings, argv: list[str], **more: Any) -> dict[str, Any]:
    """The Job of a run whose runner is gone and whose container is ``argv`` instead."""
    name = run_id(os.urandom(8).hex())
    fields = {
        "name": f"walls-{name}", "run": name, "key": "k", "project": "acme", "change": "c", "claim": "c", "token": "t",
        "broker_url": "http://192.0.2.1:1", "deadline_seconds": 120, "memory_bytes": 64 * MIB,
    }  # fmt: skip
    made = job_manifest(settings, JobRun(**{**fields, **more}))
    made["spec"]["template"]["spec"]["containers"][0]["command"] = argv
    return made


async def ended(api: ClusterApi, manifest: dict[str, Any], seconds: float = 120.0) -> tuple[dict[str, Any], list[dict[str, Any]], str]:
    """The Job, its pods and what they said, once it has come to its end."""
    made = await asyncio.to_thread(api.create, "jobs", manifest)
    selector = f"loopwright.dev/run={manifest['metadata']['labels']['loopwright.dev/run']}"
    until = time.monotonic() + seconds
    while True:
        job = await asyncio.to_thread(api.get_job, manifest["metadata"]["name"])
        pods = (await asyncio.to_thread(api.list, "pods", selector)).items
        assert job is not None
        if any(
            item["type"] in ("Complete", "Failed") and item["status"] == "True" for item in job.get("status", {}).get("conditions") or ()
        ):
            break
        assert time.monotonic() < until, (job["status"], [pod["status"] for pod in pods])
        await asyncio.sleep(0.3)
    said = "".join([await asyncio.to_thread(api.log, pod["metadata"]["name"]) for pod in pods])
    await asyncio.to_thread(api.delete_job, manifest["metadata"]["name"], made["metadata"]["uid"])
    return job, pods, said


def heard(said: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(said.partition("SAID ")[2].splitlines()[0])
    return found


@pytest.fixture
def targets(cluster: Cluster, release: Release) -> dict[str, tuple[str, int]]:
    """What a sandbox must not reach, by addresses that are really there."""

    def service(name: str, port: int) -> tuple[str, int]:
        return release.get("service", f"{release.name}-{name}")["spec"]["clusterIP"], port

    api = cluster.get("service", "kubernetes", "-n", "default")["spec"]["clusterIP"]
    node = cluster.get("nodes")["items"][0]["status"]["addresses"]
    return {
        "API server": (api, 443),
        "kubelet": (next(item["address"] for item in node if item["type"] == "InternalIP"), 10_250),
        "NATS": service("nats", 4_222),
        "database": service("postgresql", 5_432),
        "gateway": service("gateway", 8_405),
        "metadata": ("169.254.169.254", 80),
        "internet": ("1.1.1.1", 443),
        "name server": (cluster.get("service", "-n", "kube-system", "-l", "k8s-app=kube-dns")["items"][0]["spec"]["clusterIP"], 53),
    }


# The network


async def test_a_command_reaches_nothing_at_all_not_even_the_broker(
    command: Command, targets: dict[str, Any], cluster: Cluster, port: int
) -> None:
    result = await command(CONNECT, json.dumps({**targets, "broker": (cluster.host, port)}), "0")
    said = heard(result.output_tail)
    assert len(said) == len(targets) + 1
    assert all("Address family not supported" in answer for answer in said.values()), said


async def test_a_pod_without_its_runner_reaches_the_broker_alone(
    release: Release, cluster: Cluster, walls: ClusterApi, settings: JobSettings, targets: dict[str, Any]
) -> None:
    if not cluster.enforces_network_policies:
        pytest.skip("this cluster does not enforce network policies")
    broker = release.get("service", f"{release.name}-pr-agent-broker")["spec"]
    wanted = {**targets, "broker": (broker["clusterIP"], broker["ports"][0]["port"])}
    chart = await asyncio.to_thread(ClusterApi.connect, SANDBOXES)  # under the chart's own policy
    argv = ["python3", "-c", CONNECT, json.dumps(wanted), SETTLE]
    _, _, said = await ended(chart, manifest_of(replace(settings, namespace=SANDBOXES), argv))
    answers = heard(said)
    assert answers.pop("broker") == "reached", answers
    assert [name for name, answer in answers.items() if answer == "reached"] == []


async def test_those_addresses_answer_where_no_policy_stands(
    cluster: Cluster, walls: ClusterApi, settings: JobSettings, targets: dict[str, Any]
) -> None:
    open_to_all = "loopwright-walls-open"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": open_to_all, "labels": labels}})
    try:
        api = await asyncio.to_thread(ClusterApi.connect, open_to_all)
        argv = ["python3", "-c", CONNECT, json.dumps(targets), "0"]
        _, _, said = await ended(api, manifest_of(replace(settings, namespace=open_to_all), argv))
    finally:
        cluster.kubectl("delete", "namespace", open_to_all, "--wait=false")
    # The release's own policies keep NATS, the database and the gateway from strangers; the rest depends on where this runs.
    assert {name for name, answer in heard(said).items() if answer == "reached"} >= {"API server", "kubelet", "name server"}


# The broker's tokens


async def test_tokens_of_others_and_of_finished_runs_open_nothing(
    stand: Stand, walls: ClusterApi, settings: JobSettings, tmp_path: Path
) -> None:
    (tmp_path / "bundle").write_text("somebody's files")
    deadline = stand.clock.now() + timedelta(minutes=10)
    runs = {name: run_id(name) for name in ("acme/mine", "umbrella/theirs", "acme/finished")}
    for name, run in runs.items():
        await stand.runs.records.create(run, RunRecord(key=name, digest="d", generation=1, deadline=deadline))
        stand.runs.offer(run, 1, tmp_path / "bundle")
    tokens = {name: stand.runs.tokens.token(run, 1) for name, run in runs.items()}
    finished = await stand.runs.records.get(runs["acme/finished"])
    assert finished is not None
    await stand.runs.take(finished, PodResult(outcome="exited", exit_code=0))

    def at(name: str) -> str:
        return f"{stand.broker_url}/v1/runs/{runs[name]}/input"

    asked = {
        "own": (at("acme/mine"), tokens["acme/mine"]),
        "another project's run": (at("umbrella/theirs"), tokens["acme/mine"]),
        "another project's token": (at("acme/mine"), tokens["umbrella/theirs"]),
        "a finished run": (at("acme/finished"), tokens["acme/finished"]),
        "no run": (at("acme/mine").replace(runs["acme/mine"], run_id("none")), stand.runs.tokens.token(run_id("none"), 1)),
    }
    _, _, said = await ended(walls, manifest_of(settings, ["python3", "-c", ASK, json.dumps(asked)]))
    answers = heard(said)
    assert answers.pop("own") == [200, "somebody's files"]
    assert {status for status, _ in answers.values()} == {401}
    assert len({body for _, body in answers.values()}) == 1


# Files, processes, rights


LOOK = """
import json, os, sys
def tried(path, mode="rb"):
    try:
        with open(path, mode) as file: return file.read(200).decode("utf-8", "replace") if "r" in mode else "written"
    except OSError as error: return "ERROR " + type(error).__name__
paths = json.loads(sys.argv[1])
writable = []
for folder, folders, names in os.walk("/"):
    if folder in ("/proc", "/sys"): folders[:] = []; continue
    for path in [folder, *(os.path.join(folder, name) for name in names)]:
        if not os.path.islink(path) and os.access(path, os.W_OK): writable.append(path)
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
processes = [open(f"/proc/{pid}/cmdline").read().replace(chr(0), " ")[:60] for pid in os.listdir("/proc") if pid.isdigit()]
print("SAID " + json.dumps({
    "read": {path: tried(path) for path in paths}, "writable": writable, "uid": os.getuid(), "groups": os.getgroups(),
    "status": {name: status[name].strip() for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")},
    "processes": processes, "environment": sorted(os.environ),
}))
"""


async def look(kind: str, command: Command, walls: ClusterApi, settings: JobSettings, paths: list[str]) -> dict[str, Any]:
    if kind == "command":
        return heard((await command(LOOK, json.dumps(paths))).output_tail)
    return heard((await ended(walls, manifest_of(settings, ["python3", "-c", LOOK, json.dumps(paths)])))[2])


@pytest.mark.parametrize("kind", ["command", "pod"])
async def test_files_of_the_node_of_other_pods_and_of_kubernetes_cannot_be_read(
    kind: str, command: Command, walls: ClusterApi, settings: JobSettings, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("of the node")
    (tmp_path / "secret").chmod(0o644)
    account = "/var/run/secrets/kubernetes.io/serviceaccount/token"
    paths = [
        str(tmp_path / "secret"),
        account,
        "/etc/shadow",
        "/proc/1/root/etc/shadow",
        "/var/lib/kubelet/config.yaml",
        "/proc/kcore",
        "/dev/vda",
    ]
    found = await look(kind, command, walls, settings, paths)
    assert {path: said for path, said in found["read"].items() if said and not said.startswith("ERROR")} == {}
    # Nobody else's processes, so nobody else's files through them.
    assert len(found["processes"]) <= 3, found["processes"]
    assert all("pod_runner" in line or "python3 -c" in line for line in found["processes"])
    # The kubelet names the API server's address to every pod; the command is not even told that.
    told = [name for name in found["environment"] if "SERVICE" in name]
    assert [name for name in told if kind == "command" or not name.startswith("KUBERNETES_")] == []


@pytest.mark.parametrize("kind", ["command", "pod"])
async def test_nothing_outside_the_scratch_folders_can_be_written(
    kind: str, command: Command, walls: ClusterApi, settings: JobSettings
) -> None:
    found = await look(kind, command, walls, settings, [])
    outside = [path for path in found["writable"] if not path.startswith(SCRATCH) and path not in ENGINE]
    assert outside == []
    assert {"/workspace", "/tmp"} <= set(found["writable"])


@pytest.mark.parametrize("kind", ["command", "pod"])
async def test_it_is_not_root_and_has_no_capability(kind: str, command: Command, walls: ClusterApi, settings: JobSettings) -> None:
    found = await look(kind, command, walls, settings, [])
    assert found["uid"] >= 1_000_000
    assert 0 not in found["groups"]
    assert {int(found["status"][name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert (found["status"]["NoNewPrivs"], found["status"]["Seccomp"]) == ("1", "2")


GAIN = """
import ctypes, os, subprocess
libc = ctypes.CDLL(None, use_errno=True)
had = []
for name, call in {
    "setuid": lambda: os.setuid(0), "chroot": lambda: os.chroot("/tmp"), "mknod": lambda: os.mknod("/tmp/x", 0o60600, os.makedev(254, 0)),
    "chown": lambda: os.chown("/etc/passwd", os.getuid(), -1), "sethostname": lambda: __import__("socket").sethostname("x"),
}.items():
    try: call(); had.append(name)
    except OSError: pass
for name, value in {
    "unshare user": libc.unshare(0x10000000), "unshare mount": libc.unshare(0x20000), "mount": libc.mount(b"none", b"/tmp", b"tmpfs", 0, 0),
    "ptrace 1": libc.ptrace(16, 1, 0, 0), "bpf": libc.syscall(321, 0, 0, 0), "init_module": libc.syscall(175, 0, 0, 0),
}.items():
    if value == 0: had.append(name)
for argv in (["su", "-c", "id"], ["mount", "-t", "tmpfs", "none", "/tmp"], ["sudo", "id"], ["newgrp", "root"]):
    try:
        if "uid=0" in subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=10).stdout: had.append(argv[0])
    except (OSError, subprocess.TimeoutExpired): pass
print("SAID", __import__("json").dumps({"had": had}))
"""


@pytest.mark.parametrize("kind", ["command", "pod"])
async def test_no_right_can_be_gained(kind: str, command: Command, walls: ClusterApi, settings: JobSettings) -> None:
    if kind == "command":
        said = (await command(GAIN)).output_tail
    else:
        said = (await ended(walls, manifest_of(settings, ["python3", "-c", GAIN])))[2]
    had = heard(said)["had"]
    # A user namespace gives rights over nothing but itself; RuntimeDefault refuses it where the engine's profile does.
    assert [name for name in had if kind == "command" or name != "unshare user"] == []


@pytest.mark.parametrize(
    "change",
    [
        lambda pod: pod["containers"][0]["securityContext"].update(runAsUser=0),
        lambda pod: pod["containers"][0]["securityContext"].update(privileged=True, allowPrivilegeEscalation=True),
        lambda pod: pod["containers"][0]["securityContext"].update(allowPrivilegeEscalation=True),
        lambda pod: pod["containers"][0]["securityContext"].update(capabilities={"drop": ["ALL"], "add": ["SYS_ADMIN"]}),
        lambda pod: pod.update(hostPID=True),
        lambda pod: pod.update(hostNetwork=True),
        lambda pod: pod["volumes"].append({"name": "node", "hostPath": {"path": "/"}}),
    ],
    ids=["root", "privileged", "escalation", "capability", "host processes", "host network", "host files"],
)
async def test_a_pod_with_more_rights_is_refused_by_the_namespace(
    walls: ClusterApi, settings: JobSettings, change: Callable[[Any], None]
) -> None:
    template = manifest_of(settings, ["true"])["spec"]["template"]
    change(template["spec"])
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "walls-", "namespace": WALLS}, "spec": template["spec"]}
    with pytest.raises(ApiRefused, match="violates PodSecurity"):
        await asyncio.to_thread(walls.create, "pods", pod, dry_run=True)


# Bounds


async def test_forking_without_bound_ends_and_the_node_lives_on(command: Command, cluster: Cluster) -> None:
    code = "import os, time\nwhile True:\n    try: os.fork()\n    except OSError: time.sleep(0.05)\n"
    result = await command(code, limits=replace(LIMITS, wall_seconds=5, memory_bytes=512 * MIB))
    assert result.outcome in ("timed_out", "killed")
    conditions = cluster.get("nodes")["items"][0]["status"]["conditions"]
    assert {item["type"]: item["status"] for item in conditions}["Ready"] == "True"
    assert (await command("print('alive')")).output_tail.strip() == "alive"


FILL = """
import os, sys, time
folder, written = sys.argv[1], 0
try:
    for number in range(200):
        with open(f"{folder}/{number}", "wb") as file:
            for _ in range(2): written += file.write(b"x" * (1 << 20)); file.flush()
except OSError as error: print("REFUSED", error.errno, written >> 20, flush=True)
if len(sys.argv) > 2: time.sleep(150)
"""


async def test_the_memory_file_systems_are_full_at_their_size(command: Command) -> None:
    for folder, most in (("/tmp", 16), ("/dev/shm", 64)):
        result = await command(FILL, folder)
        assert result.outcome in ("exited", "out_of_memory"), result
        if result.outcome == "exited":
            assert "REFUSED 28" in result.output_tail
            assert int(result.output_tail.split()[2]) <= most


@pytest.mark.timeout(400)
async def test_filling_the_disk_gets_the_pod_evicted_and_the_volume_named(stand: Stand, files: Path) -> None:
    request = RunRequest(("python3", "-c", FILL, "/workspace", "wait"), files, limits=replace(LIMITS, wall_seconds=200))
    result = await stand.sandbox.run(request)
    assert result.outcome == "killed", result
    assert "workspace" in result.output_tail or "ephemeral" in result.output_tail


@pytest.mark.timeout(300)
async def test_the_jobs_own_deadline_ends_what_outlives_the_runner(walls: ClusterApi, settings: JobSettings) -> None:
    code = "import signal, subprocess, time\nsignal.signal(15, signal.SIG_IGN)\n"
    code += "subprocess.Popen(['sleep', '613'], start_new_session=True)\ntime.sleep(600)"
    manifest = manifest_of(settings, ["python3", "-c", code], deadline_seconds=6)
    job, pods, _ = await ended(walls, manifest)
    found = verdict(job, pods, job["metadata"]["uid"], 10.0, 60.0)
    assert isinstance(found, Ended), found
    assert found.outcome == "timed_out"
    for _ in range(60):  # where the node is on this machine, its processes are seen here
        left = subprocess.run(["pgrep", "-f", "sleep 613"], capture_output=True).stdout  # noqa: ASYNC221  nothing else runs meanwhile
        if not left:
            break
        await asyncio.sleep(0.5)
    assert not left


async def test_detached_processes_end_with_the_run_and_the_job_goes(stand: Stand, files: Path, walls: ClusterApi) -> None:
    line = "setsid nohup sleep 614 >/dev/null 2>&1 & sleep 0.3; echo done"
    result = await stand.sandbox.run(RunRequest(("sh", "-c", line), files, limits=LIMITS))
    assert result.output_tail.strip() == "done"
    for _ in range(60):
        if not (await asyncio.to_thread(walls.list, "jobs", "app.kubernetes.io/component=sandbox")).items:
            break
        await asyncio.sleep(0.5)
    assert (await asyncio.to_thread(walls.list, "jobs", "app.kubernetes.io/component=sandbox")).items == []


# Failures as what they are


async def test_oomkilled_is_out_of_memory(walls: ClusterApi, settings: JobSettings) -> None:
    code = "x = []\nwhile True: x.append(bytearray(8 << 20))"
    job, pods, _ = await ended(walls, manifest_of(settings, ["python3", "-c", code]))
    found = verdict(job, pods, job["metadata"]["uid"], 10.0, 60.0)
    assert isinstance(found, Ended), (found, job["status"], [pod["status"] for pod in pods])
    assert found.outcome == "out_of_memory"


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"image": "registry.invalid/none:1"}, SandboxBroken, "ErrImagePull|ImagePullBackOff"),
        ({"image": "Not An Image"}, NoSandbox, "InvalidImageName"),
        ({"image": "registry.invalid/none:1", "image_pull_policy": "Never"}, NoSandbox, "ErrImageNeverPull"),
        ({"node_selector": {"no": "such-node"}}, SandboxBroken, "no node takes"),
        ({"runtime_class": "no-such-class"}, NoSandbox, "no-such-class"),
    ],
    ids=["image pull", "image name", "image never pulled", "no node", "runtime class"],
)
async def test_what_is_not_the_runs_fault_is_told_with_its_remedy(
    stand: Stand, files: Path, settings: JobSettings, changes: dict[str, Any], error: type[Exception], said: str
) -> None:
    stand.sandbox._settings = replace(settings, **changes)
    stand.sandbox._options = replace(stand.sandbox._options, pending_seconds_max=12.0)
    with pytest.raises(error, match=said):
        await stand.sandbox.run(RunRequest(("true",), files, limits=LIMITS))


async def test_a_quota_that_is_used_up_is_told(stand: Stand, files: Path, cluster: Cluster) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none", "namespace": WALLS}, "spec": {"hard": {"pods": "0"}}}
    cluster.apply(quota)
    try:
        for _ in range(50):
            if "hard" in cluster.get("resourcequota", "none", "-n", WALLS).get("status", {}):
                break
            await asyncio.sleep(0.2)
        with pytest.raises(SandboxBroken, match="exceeded quota"):
            await stand.sandbox.run(RunRequest(("true",), files, limits=LIMITS))
    finally:
        cluster.kubectl("delete", "resourcequota", "none", "-n", WALLS)


# A restart, and the rights of the service itself


async def test_a_run_is_found_again_after_a_restart_and_runs_once(stand: Stand, files: Path, walls: ClusterApi) -> None:
    key = RunKey("acme", os.urandom(4).hex(), "changed.test/0")
    request = RunRequest(("sh", "-c", "sleep 6; head -c 8 /dev/urandom | od -An -tx1"), files, limits=LIMITS, key=key)
    first = asyncio.create_task(stand.sandbox.run(request))
    selector = f"loopwright.dev/run={run_id(str(key))}"
    async with asyncio.timeout(60):
        while not any(pod["status"].get("phase") == "Running" for pod in (await asyncio.to_thread(walls.list, "pods", selector)).items):
            await asyncio.sleep(0.1)
    uid = (await asyncio.to_thread(walls.list, "jobs", selector)).items[0]["metadata"]["uid"]
    await stand.kill(first)
    await stand.start()
    again = asyncio.create_task(stand.sandbox.run(request))
    await asyncio.sleep(1)
    assert [job["metadata"]["uid"] for job in (await asyncio.to_thread(walls.list, "jobs", selector)).items] == [uid]
    result = await again
    assert result.passed
    assert (await stand.sandbox.run(request)).output_tail == result.output_tail


async def test_pr_agent_may_do_its_work_in_the_sandbox_namespace_and_nothing_else(release: Release, cluster: Cluster) -> None:
    account = release.get("deployment", f"{release.name}-pr-agent")["spec"]["template"]["spec"]["serviceAccountName"]
    user = f"system:serviceaccount:{release.namespace}:{account}"

    def may(verb: str, resource: str, namespace: str, subresource: str = "") -> bool:
        asked = ["auth", "can-i", verb, resource, "-n", namespace, "--as", user, *([f"--subresource={subresource}"] if subresource else [])]
        return cluster.kubectl(*asked, expected=(0, 1)).strip() == "yes"

    for resource in ("jobs.batch", "pods"):
        for verb in ("get", "list", "watch", "create", "delete"):
            assert may(verb, resource, SANDBOXES), (verb, resource)
            assert not may(verb, resource, release.namespace), (verb, resource)
        for verb in ("update", "patch", "deletecollection"):
            assert not may(verb, resource, SANDBOXES), (verb, resource)
    assert may("get", "pods", SANDBOXES, "log")
    for verb, resource, subresource in (
        ("create", "pods", "exec"), ("create", "pods", "attach"), ("create", "pods", "portforward"), ("get", "secrets", ""),
        ("list", "events", ""), ("get", "configmaps", ""), ("create", "serviceaccounts", "token"),
    ):  # fmt: skip
        assert not may(verb, resource, SANDBOXES, subresource), (verb, resource, subresource)
