"""The sandbox of Jobs over the cluster by hand: one Job per run over restarts, failures told as what they are, nothing left behind."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest
from loopwright_common.model import ModelClient, ModelRole
from loopwright_common.testing.scripted_model import ScriptedModel
from loopwright_pr_agent.sandbox.kubernetes import statuses
from loopwright_pr_agent.sandbox.kubernetes.manifest import JobSettings, run_id
from loopwright_pr_agent.sandbox.port import MIB, Limits, NoSandbox, RunKey, RunRequest, SandboxBroken
from loopwright_pr_agent.testing.fake_cluster import FakeCluster
from loopwright_pr_agent.testing.stand import NAMESPACE, Stand

LIMITS = Limits(wall_seconds=30, cpu_seconds=20, memory_bytes=256 * MIB, file_bytes=4 * MIB, processes=48, output_bytes=MIB)
KEY = RunKey("acme", "chg1", "changed.test/0")
RUN = run_id(str(KEY))

pytestmark = pytest.mark.skipif(
    not shutil.which("bwrap") or not shutil.which("setpriv"), reason="the cluster by hand runs its pods with bubblewrap and setpriv"
)


@pytest.fixture
def cluster():
    made = FakeCluster()
    yield made
    made.close()


@pytest.fixture
async def stand(cluster, tmp_path):
    async with Stand(cluster, tmp_path / "work") as made:
        yield made


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "a.txt").write_text("one\n")
    return folder


def shell(files, line: str, *, key: RunKey = KEY, **more: Any) -> RunRequest:
    return RunRequest(("sh", "-c", line), files, limits=more.pop("limits", LIMITS), key=key, **more)


async def until(condition, seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


def begun(cluster: FakeCluster):
    return lambda: any(
        "the command begins" in cluster.log(pod["metadata"]["name"]) for pod in cluster.list("pods", f"loopwright.dev/run={RUN}").items
    )


# One Job per run


async def test_a_run_that_a_restart_interrupts_is_found_again_and_runs_once(stand, cluster, files):
    request = shell(files, "echo run >> a.txt; sleep 1.5; cat a.txt")
    first = asyncio.create_task(stand.sandbox.run(request))
    await until(begun(cluster))
    uid = next(iter(cluster.jobs.values()))["metadata"]["uid"]
    await stand.kill(first)
    assert [job["metadata"]["uid"] for job in cluster.jobs.values()] == [uid]
    await stand.start()
    result = await stand.sandbox.run(request)
    assert (result.exit_code, result.output_tail.split()) == (0, ["one", "run"])
    assert len(cluster.created) == 1
    assert cluster.jobs == {}


async def test_a_result_that_comes_while_nobody_waits_is_kept_and_used(stand, cluster, files):
    request = shell(files, "sleep 1; echo done")
    first = asyncio.create_task(stand.sandbox.run(request))
    await until(begun(cluster))
    await stand.kill(first)
    await asyncio.sleep(1.5)  # the command ends, and its runner finds no broker
    await stand.start()

    async def stored() -> bool:
        kept = await stand.runs.records.get(RUN)
        return kept.record.state == "finished"

    async with asyncio.timeout(20):
        while not await stored():
            await asyncio.sleep(0.05)
    result = await stand.sandbox.run(request)
    assert result.output_tail.strip() == "done"
    assert len(cluster.created) == 1


async def test_the_same_run_asked_again_is_told_again_and_another_input_runs_anew(stand, cluster, files):
    random = "head -c 8 /dev/urandom | od -An -tx1"
    first = await stand.sandbox.run(shell(files, random))
    assert (await stand.sandbox.run(shell(files, random))).output_tail == first.output_tail
    assert len(cluster.created) == 1
    (files / "a.txt").write_text("two\n")
    assert (await stand.sandbox.run(shell(files, random))).output_tail != first.output_tail
    assert len(cluster.created) == len(set(cluster.created)) == 2


async def test_two_who_ask_at_once_for_the_same_run_share_one_job(stand, cluster, files):
    request = shell(files, "sleep 0.3; head -c 8 /dev/urandom | od -An -tx1")
    one, other = await asyncio.gather(stand.sandbox.run(request), stand.sandbox.run(request))
    assert one.output_tail == other.output_tail
    assert len(cluster.created) == 1


async def test_a_job_that_was_made_but_not_noted_is_known_by_its_claim(stand, cluster, files):
    request = shell(files, "sleep 1.5; echo done")
    first = asyncio.create_task(stand.sandbox.run(request))
    await until(begun(cluster))
    await stand.kill(first)
    kept = await stand.runs.records.get(RUN)
    await stand.runs.records.update(kept, kept.record.model_copy(update={"job_uid": ""}))
    await stand.start()
    assert (await stand.sandbox.run(request)).output_tail.strip() == "done"
    assert len(cluster.created) == 1


async def test_a_job_that_only_bears_the_name_is_nobodys_and_stays(stand, cluster, files):
    metadata = {"name": f"loopwright-acme-{RUN}-1", "uid": "strangers", "labels": {"loopwright.dev/run": RUN}, "annotations": {}}
    cluster.jobs[metadata["name"]] = {"metadata": metadata, "spec": {}, "status": {}}
    with pytest.raises(SandboxBroken, match="did not make"):
        await stand.sandbox.run(shell(files, "echo done"))
    assert cluster.jobs[metadata["name"]]["metadata"]["uid"] == "strangers"
    assert (await stand.sandbox.run(shell(files, "echo done"))).output_tail.strip() == "done"
    assert cluster.created == [f"loopwright-acme-{RUN}-2"]


async def test_a_job_put_in_the_place_of_ours_is_not_taken_for_it(stand, cluster, files):
    request = shell(files, "sleep 30")
    first = asyncio.create_task(stand.sandbox.run(request))
    await until(begun(cluster))
    name, job = next(iter(cluster.jobs.items()))
    cluster.jobs[name] = {**job, "metadata": {**job["metadata"], "uid": "another"}, "status": {}}
    with pytest.raises(SandboxBroken, match="another"):
        await first
    assert cluster.jobs[name]["metadata"]["uid"] == "another"
    del cluster.jobs[name]


async def test_cancelling_takes_the_job_away_and_ends_its_token(stand, cluster, files):
    task = asyncio.create_task(stand.sandbox.run(shell(files, "sleep 30")))
    await until(begun(cluster))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cluster.jobs == {}
    assert (await stand.runs.records.get(RUN)).record.state == "broken"


async def test_a_watch_that_expired_is_begun_anew(stand, cluster, files):
    cluster.expire_watches = 3
    assert (await stand.sandbox.run(shell(files, "sleep 0.5; echo done"))).output_tail.strip() == "done"


# Failures as what they are


def ends(**status: Any):
    def fate(_: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"phase": "Failed", **status}

    return fate


def stuck(state: Mapping[str, Any] | None = None, **status: Any):
    def fate(_: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"phase": "Pending", "containerStatuses": [{"name": "run", "state": state}] if state else [], **status}

    return fate


def left(code: int, reason: str) -> list[dict[str, Any]]:
    times = {"startedAt": "2026-11-26T10:00:00Z", "finishedAt": "2026-11-26T10:00:07Z"}
    return [{"name": "run", "state": {"terminated": {"exitCode": code, "reason": reason, **times}}}]


async def test_oomkilled_is_the_runs_own_end_and_is_stored(stand, cluster, files):
    cluster.fate = ends(containerStatuses=left(137, "OOMKilled"))
    result = await stand.sandbox.run(shell(files, "true"))
    assert (result.outcome, result.exit_code, result.wall_seconds) == ("out_of_memory", None, 7.0)
    assert "OOMKilled" in result.output_tail
    assert (await stand.sandbox.run(shell(files, "true"))).outcome == "out_of_memory"
    assert len(cluster.created) == 1
    assert cluster.jobs == {}


async def test_a_passed_deadline_is_a_time_out(stand, cluster, files):
    cluster.fate = ends(containerStatuses=left(137, "Error"), jobReason="DeadlineExceeded")
    result = await stand.sandbox.run(shell(files, "true"))
    assert (result.outcome, "DeadlineExceeded" in result.output_tail) == ("timed_out", True)


async def test_eviction_for_its_own_disk_names_it(stand, cluster, files):
    cluster.fate = ends(reason="Evicted", message='Usage of EmptyDir volume "workspace" exceeds the limit "2Gi".')
    result = await stand.sandbox.run(shell(files, "true"))
    assert (result.outcome, '"workspace"' in result.output_tail) == ("killed", True)


@pytest.mark.parametrize(
    ("fate", "error", "said"),
    [
        (ends(reason="Evicted", message="The node was low on resource: memory."), SandboxBroken, "low on resource"),
        (stuck({"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}), SandboxBroken, "ImagePullBackOff"),
        (stuck({"waiting": {"reason": "InvalidImageName", "message": "bad"}}), NoSandbox, "SANDBOX_IMAGE"),
        (ends(containerStatuses=left(5, "Error")), SandboxBroken, "could not be reached"),
    ],
    ids=["node pressure", "image pull", "image name", "no broker"],
)
async def test_what_is_not_the_runs_fault_is_an_error_that_names_it(stand, cluster, files, fate, error, said):
    cluster.fate = fate
    with pytest.raises(error, match=said):
        await stand.sandbox.run(shell(files, "true"))
    assert cluster.jobs == {}
    cluster.fate = None
    assert (await stand.sandbox.run(shell(files, "echo done"))).passed  # the next try is a new Job
    assert len(set(cluster.created)) == 2


async def test_no_node_within_the_bound_is_told_with_the_schedulers_words(cluster, tmp_path, files):
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "Insufficient cpu"}
    cluster.fate = stuck(conditions=[condition])
    async with Stand(cluster, tmp_path / "work", pending_seconds_max=1.0) as stand:
        with pytest.raises(SandboxBroken, match="Insufficient cpu"):
            await stand.sandbox.run(shell(files, "true"))
    assert cluster.jobs == {}


async def test_a_quota_that_is_used_up_is_found_out_by_a_dry_run(stand, cluster, files, monkeypatch):
    monkeypatch.setattr(statuses, "NO_POD_SECONDS", 0.5)
    cluster.refuses_pods = (403, 'pods "x" is forbidden: exceeded quota: sandbox, requested: limits.memory=1Gi')
    with pytest.raises(SandboxBroken, match=r"limits\.memory"):
        await stand.sandbox.run(shell(files, "true"))
    assert cluster.jobs == {}


async def test_a_job_that_somebody_deletes_is_told(stand, cluster, files):
    task = asyncio.create_task(stand.sandbox.run(shell(files, "sleep 30")))
    await until(begun(cluster))
    name, job = next(iter(cluster.jobs.items()))
    await asyncio.to_thread(cluster.delete_job, name, job["metadata"]["uid"])
    with pytest.raises(SandboxBroken, match="gone"):
        await task


# Setup, diff, model, token


async def test_what_ran_before_is_run_again_and_must_end_as_it_did(stand, cluster, files):
    before = ((("sh", "-c", "echo built > built; exit 0"), 0), (("sh", "-c", "exit 7"), 7))
    assert (await stand.sandbox.run(shell(files, "cat built", before=before))).output_tail.strip() == "built"
    with pytest.raises(SandboxBroken, match="ended with 3 before"):
        await stand.sandbox.run(shell(files, "cat built", key=RunKey("acme", "chg1", "b"), before=((("sh", "-c", "exit 0"), 3),)))


async def test_the_diff_says_what_the_command_changed_and_hides_nothing(stand, files):
    (files / "gone.txt").write_text("gone\n")
    (files / "run.sh").write_text("#!/bin/sh\n")
    line = "echo two >> a.txt; rm gone.txt; chmod +x run.sh; mkdir d; printf 'x\\000y' > d/bin; ln -s a.txt link; git init -q . || true"
    result = await stand.sandbox.run(shell(files, line, diff=True))
    for said in ("+two", "deleted file mode 100644", "new mode 100755", "GIT binary patch", "new file mode 120000"):
        assert said in (result.diff or ""), result
    assert (await stand.sandbox.run(shell(files, "true", key=RunKey("a", "b", "c")))).diff is None


async def test_the_command_asks_the_model_by_a_socket_and_never_sees_the_token(cluster, tmp_path, files):
    ask = (
        "import http.client, os, socket, json\n"
        "class Door(http.client.HTTPConnection):\n"
        "    def connect(self): self.sock = socket.socket(socket.AF_UNIX); self.sock.connect(os.environ['LOOPWRIGHT_MODEL_SOCKET'])\n"
        "door = Door('x'); door.request('POST', '/v1/chat/completions', json.dumps({'messages': [{'role': 'user', 'content': 'hi'}]}))\n"
        "print(json.load(door.getresponse())['choices'][0]['message']['content'])\n"
    )
    with ScriptedModel(api_key="the-real-key") as model:
        client = ModelClient(ModelRole(name="coding", base_url=model.url, api_key="the-real-key", model="m-1"))
        model.answers("hello from the model")
        async with Stand(cluster, tmp_path / "work", model=client) as stand:
            request = RunRequest(("python", "-c", ask), files, limits=LIMITS, key=KEY, model=True)
            result = await stand.sandbox.run(request)
        await client.close()
    assert result.output_tail.strip() == "hello from the model"


async def test_neither_token_nor_key_nor_the_runners_memory_can_be_had_by_the_command(stand, files):
    code = (
        "import glob, os, re, sys\nseen, found = 0, 0\n"
        "paths = [path for name in ('environ', 'cmdline', 'fd/*') for path in glob.glob(f'/proc/[0-9]*/{name}')]\n"
        "for folder, _, names in os.walk('/'):\n"
        "    if not folder.startswith(('/proc', '/sys', '/usr', '/dev', sys.prefix, sys.base_prefix)):\n"
        "        paths += [os.path.join(folder, name) for name in names if os.path.isfile(os.path.join(folder, name))]\n"
        "for path in paths:\n"
        "    if path.startswith(f'/proc/{os.getpid()}/fd'): continue\n"
        "    try: data = open(path, 'rb').read(1 << 20)\n"
        "    except OSError: continue\n"
        "    seen, found = seen + 1, found + bool(re.search(b'lwrun_[0-9a-f]', data))\n"
        "for name in ('mem', 'maps', 'environ', 'fd'):\n"
        "    try: os.listdir('/proc/1/fd') if name == 'fd' else open(f'/proc/1/{name}', 'rb').read(1); print('RUNNER', name)\n"
        "    except OSError: pass\n"
        "print('TOKEN' if found else 'nothing', seen > 3, any('TOKEN' in name or 'BROKER' in name for name in os.environ))\n"
    )
    result = await stand.sandbox.run(RunRequest(("python", "-c", code), files, limits=LIMITS, key=KEY))
    assert (result.outcome, result.output_tail.split()) == ("exited", ["nothing", "True", "False"]), result


# The probe and the sweep


async def test_the_probe_says_what_holds(stand):
    assert NAMESPACE in await stand.sandbox.probe()
    assert "digest" not in await stand.sandbox.probe()


async def test_a_permission_that_is_missing_is_named(stand, cluster):
    cluster.forbidden = {("create", "jobs"), ("get", "pods/log")}
    with pytest.raises(NoSandbox, match=r"create jobs, get pods/log"):
        await stand.sandbox.probe()


async def test_a_namespace_that_admits_no_such_pod_is_named(stand, cluster):
    cluster.refuses_pods = (403, 'violates PodSecurity "restricted:latest": runAsUser=1000000')
    with pytest.raises(NoSandbox, match="PodSecurity"):
        await stand.sandbox.probe()


async def test_an_image_by_tag_is_taken_and_told(cluster, tmp_path):
    async with Stand(cluster, tmp_path / "work", settings=JobSettings(NAMESPACE, "sandbox:latest")) as stand:
        assert "by digest" in await stand.sandbox.probe()


async def test_the_sweep_takes_what_nobody_owns_and_leaves_the_rest(stand, cluster, files):
    owned = asyncio.create_task(stand.sandbox.run(shell(files, "sleep 1.5; echo done")))
    await until(begun(cluster))
    run, labels = run_id("orphan"), {"app.kubernetes.io/managed-by": "loopwright-pr-agent", "app.kubernetes.io/component": "sandbox"}
    for name, claim in (("orphan", stand.runs.tokens.claim(run, 1)), ("strangers", "wrong")):
        metadata = {
            "name": name,
            "uid": name,
            "labels": {**labels, "loopwright.dev/run": run},
            "annotations": {"loopwright.dev/claim": claim},
        }
        cluster.jobs[name] = {"metadata": metadata, "spec": {}, "status": {}}
    assert await stand.sandbox.sweep() == 1
    assert sorted(cluster.jobs) == [f"loopwright-acme-{RUN}-1", "strangers"]
    assert (await owned).output_tail.strip() == "done"
    assert await stand.runs.records.sweep(stand.clock.now() + timedelta(days=1)) == 1
    assert await stand.runs.records.get(RUN) is None
