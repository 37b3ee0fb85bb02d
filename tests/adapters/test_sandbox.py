"""The Sandbox port against real isolations: what is inside cannot reach what is outside, and ends when it should.

``kubernetes`` runs on the cluster by hand, whose pods are local processes. Where KUBECONFIG and LOOPWRIGHT_TEST_SANDBOX_IMAGE name a real
cluster and an image in it, ``real-cluster`` runs there too (``make test-k8s`` does that): LOOPWRIGHT_TEST_SANDBOX_NAMESPACE is where Jobs
may be made, LOOPWRIGHT_TEST_BROKER_HOST the address of this host that pods reach.
"""

# ruff: noqa: ASYNC220, ASYNC221, ASYNC240, ASYNC251 (a test may well block while it looks at the host)

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from loopwright_pr_agent.sandbox.bubblewrap import BubblewrapSandbox
from loopwright_pr_agent.sandbox.detect import candidates, choose, probe
from loopwright_pr_agent.sandbox.kubernetes.api import ClusterApi
from loopwright_pr_agent.sandbox.kubernetes.manifest import JobSettings
from loopwright_pr_agent.sandbox.landlock import LandlockSandbox
from loopwright_pr_agent.sandbox.port import MIB, InputFile, Limits, RunRequest, SandboxBroken
from loopwright_pr_agent.testing.fake_cluster import FakeCluster
from loopwright_pr_agent.testing.stand import NAMESPACE, Stand

CLUSTER = bool(os.environ.get("KUBECONFIG") and os.environ.get("LOOPWRIGHT_TEST_SANDBOX_IMAGE"))
HERE = ("bubblewrap", "landlock")  # isolations of this host: they share its folders, and may run as an ordinary user
EVERYWHERE = (*HERE, "kubernetes", *(("real-cluster",) if CLUSTER else ()))
TOOLCHAINS = (Path(sys.base_prefix), Path(sys.prefix))
LIMITS = Limits(wall_seconds=30, cpu_seconds=20, memory_bytes=256 * MIB, file_bytes=4 * MIB, processes=48, output_bytes=MIB)


@pytest.fixture(params=EVERYWHERE)
async def sandbox(request, tmp_path):
    if request.param == "kubernetes":
        if not shutil.which("bwrap") or not shutil.which("setpriv"):
            pytest.skip("the cluster by hand runs its pods with bubblewrap and setpriv")
        api = FakeCluster()
        async with Stand(api, tmp_path / "work") as stand:
            yield stand.sandbox
        api.close()
    elif request.param == "real-cluster":
        namespace = os.environ.get("LOOPWRIGHT_TEST_SANDBOX_NAMESPACE", NAMESPACE)
        settings = JobSettings(namespace, os.environ["LOOPWRIGHT_TEST_SANDBOX_IMAGE"], cpu_request="100m", memory_request="64Mi")
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        url = f"http://{os.environ['LOOPWRIGHT_TEST_BROKER_HOST']}:{port}"
        api = await asyncio.to_thread(ClusterApi.connect, namespace)
        async with Stand(api, tmp_path / "work", settings=settings, host="0.0.0.0", broker_url=url, port=port) as stand:
            yield stand.sandbox
    else:
        yield await held(request.param)


async def held(isolation: str):
    for candidate in candidates(isolation):
        finding = await probe(candidate)
        if finding.holds:
            return candidate
    pytest.skip(f"{isolation} does not hold here: {finding.reason}")


def is_here(sandbox) -> bool:
    return not sandbox.isolation.startswith("kubernetes")


@pytest.fixture
def workspace(tmp_path):
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and folder != Path("/") and "pytest" in str(folder):
            folder.chmod(0o711)  # pytest makes them 0700
    place = tmp_path / "workspace"
    place.mkdir()
    return place


@pytest.fixture
def run(sandbox, workspace):
    async def start(code: str, *, shell: bool = False, limits: Limits = LIMITS, **more):
        argv = ("sh", "-c", code) if shell else ("python3", "-c", code)
        return await sandbox.run(RunRequest(argv, workspace, TOOLCHAINS, limits=limits, **more))

    return start


async def test_a_command_runs_and_its_exit_code_and_output_come_back(run, workspace):
    (workspace / "there").write_text("brought in")
    result = await run("cat there; echo hello; echo oops >&2; touch made; ls; exit 3", shell=True, diff=True)
    assert (result.outcome, result.exit_code) == ("exited", 3)
    for said in ("brought in", "hello", "oops", "made"):
        assert said in result.output_tail
    assert (workspace / "made").exists() or "b/made" in (result.diff or "")
    assert result.isolation in ("bubblewrap", "landlock+seccomp", "kubernetes")
    assert any("not covered" in fact for fact in result.facts)


async def test_host_files_cannot_be_read(run, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("outside-content")
    secret.chmod(0o644)
    home = Path.home() / f".loopwright-test-{os.getpid()}"
    home.write_text("outside-content")
    home.chmod(0o644)
    try:
        for path in (secret, home, "/etc/shadow", f"/proc/{os.getpid()}/environ", "/proc/1/environ"):
            result = await run(f"data = open({str(path)!r}, 'rb').read(); print('READ', len(data), 'outside-content' in str(data))")
            # A process number may exist inside a process table of its own; its environment then is the sandbox's.
            assert result.exit_code != 0 or b"outside" not in result.output_tail.encode(), path
            assert "True" not in result.output_tail
            if "proc" not in str(path):
                assert result.exit_code == 1, path
    finally:
        home.unlink()


async def test_the_services_environment_and_open_files_do_not_reach_the_command(run, tmp_path, monkeypatch):
    monkeypatch.setenv("LOOPWRIGHT_SECRET", "do-not-tell")
    leaked = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(leaked, True)
    try:
        result = await run(
            "import os, glob\nprint(dict(os.environ))\n"
            "for path in glob.glob('/proc/[0-9]*/environ'):\n"
            "    try: print(open(path).read())\n"
            "    except OSError: pass\n"
            "for number in range(3, 200):\n"
            "    try: os.fstat(number); print('OPEN', number)\n"
            "    except OSError: pass\n"
        )
    finally:
        os.close(leaked)
    assert result.passed, result.output_tail
    assert "do-not-tell" not in result.output_tail
    assert "OPEN" not in result.output_tail
    assert "LOOPWRIGHT_SECRET" not in result.output_tail


async def test_the_network_is_closed_even_to_loopback(run):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        result = await run(f"import socket; socket.create_connection(('127.0.0.1', {port}), 2); print('CONNECTED')")
    assert result.exit_code == 1
    assert "CONNECTED" not in result.output_tail


async def test_unix_sockets_of_the_host_cannot_be_reached(run, tmp_path):
    path = tmp_path / "engine.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        path.chmod(0o777)
        server.listen()
        result = await run(f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({str(path)!r}); print('CONNECTED')")
    assert "CONNECTED" not in result.output_tail
    assert result.exit_code == 1


async def test_nothing_outside_the_workspace_can_be_written(run, tmp_path):
    for place in (tmp_path / "planted", "/usr/planted", "/etc/planted", f"{sys.prefix}/planted", "/var/tmp/planted"):
        result = await run(f"open({str(place)!r}, 'w').write('x')")
        assert result.exit_code == 1, place
        assert not Path(place).exists()


@pytest.mark.parametrize(
    "attempt",
    [
        "os.unshare(0x10000000)" if hasattr(os, "unshare") else "libc.unshare(0x10000000)",
        "libc.syscall(56, 0x10000011, 0, 0, 0, 0)",
        "libc.ptrace(16, os.getppid(), 0, 0)",
        "libc.syscall(250, 0, 0, 0, 0)",
        "libc.syscall(321, 0, 0, 0)",
        "libc.syscall(425, 8, 0)",
        "libc.mount(b'none', b'/tmp', b'tmpfs', 0, 0)",
        "libc.syscall(323, 0)",
        "libc.syscall(298, 0, 0, -1, -1, 0)",
    ],
)
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="system call numbers of x86_64")
async def test_dangerous_system_calls_and_nested_namespaces_are_refused(run, attempt):
    result = await run(
        f"import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\nvalue = {attempt}\nprint(value, ctypes.get_errno())\n"
    )
    assert result.exit_code == 0, result.output_tail
    assert result.output_tail.split()[0] == "-1", result.output_tail
    assert result.output_tail.split()[1] in ("1", "38")


async def test_a_fork_bomb_is_bounded_and_leaves_nobody_behind(run):
    before = time.monotonic()
    code = "import os, time\ntop = 0\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        time.sleep(0.05)\n"
    result = await run(code, limits=Limits(wall_seconds=3, cpu_seconds=20, memory_bytes=1024 * MIB, processes=48))
    assert result.outcome in ("timed_out", "killed")
    assert time.monotonic() - before < 20
    assert not subprocess.run(["pgrep", "-f", "os.fork"], capture_output=True, text=True).stdout.strip()


async def test_it_is_not_root_has_no_capability_and_gains_none(run):
    code = (
        "import ctypes, os, struct, subprocess\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "held = ctypes.create_string_buffer(24)\nlibc.capget(struct.pack('Ii', 0x20080522, 0), held)\n"
        "words = struct.unpack('6I', held.raw)\nheld = words[0] | words[1] | words[2]\n"
        "print('HELD', hex(held | (words[3] | words[4] | words[5]) << 32))\n"
        "print('UID', os.getuid() != 0 and os.geteuid() != 0, 'NNP', libc.prctl(39, 0, 0, 0, 0))\n"
        "try: os.setuid(0); print('ROOT')\nexcept OSError: print('REFUSED')\n"
        "for argv in (['su', '-c', 'id -u'], ['mount', '-t', 'tmpfs', 'none', '/tmp']):\n"
        "    try: done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=10)\n"
        "    except (OSError, subprocess.TimeoutExpired): continue\n"
        "    if done.returncode == 0: print('GAINED', argv[0])\n"
    )
    result = await run(code)
    kept = "0x4" if any("keeps the right to pass" in fact for fact in result.facts) else "0x0"  # CAP_DAC_READ_SEARCH, where it is told
    assert result.output_tail.split("\n")[:3] == [f"HELD {kept}", "UID True NNP 1", "REFUSED"], result
    assert "GAINED" not in result.output_tail


async def test_processes_that_detach_themselves_end_with_the_run(run):
    result = await run("setsid nohup sleep 321 >/dev/null 2>&1 & sleep 0.3; echo done", shell=True)
    assert result.passed
    await asyncio.sleep(0.2)
    assert not subprocess.run(["pgrep", "-f", "sleep 321"], capture_output=True, text=True).stdout.strip()


async def test_a_file_over_the_limit_is_not_written(run):
    result = await run(
        "import os\nfile = open('big', 'wb', buffering=0)\ntry:\n    for _ in range(64): file.write(b'x' * 1048576)\n"
        "finally: print('SIZE', os.stat('big').st_size)"
    )
    assert result.exit_code != 0
    assert int(result.output_tail.partition("SIZE ")[2].split()[0]) <= LIMITS.file_bytes


async def test_the_deadline_ends_a_run_and_its_children(run):
    before = time.monotonic()
    result = await run("sleep 300 & sleep 300", shell=True, limits=Limits(wall_seconds=1))
    assert result.outcome == "timed_out"
    assert result.exit_code is None
    assert time.monotonic() - before < 10


async def test_a_busy_loop_ends_at_its_processor_time(run):
    result = await run("while True: pass", limits=Limits(wall_seconds=20, cpu_seconds=1))
    assert result.outcome in ("timed_out", "killed")
    assert result.wall_seconds < 15


async def test_memory_over_the_limit_is_refused(run):
    result = await run("x = bytearray(1024 * 1024 * 1024); print('HAD IT')")
    assert result.outcome == "out_of_memory"
    assert "HAD IT" not in result.output_tail


async def test_memory_of_many_processes_together_is_bounded(run):
    code = "import os, time\nfor _ in range(6):\n    if os.fork() == 0:\n        x = b'x' * (100 * 1048576)\n        time.sleep(60)\n"
    code += "time.sleep(60)"
    result = await run(code)
    assert result.outcome == "out_of_memory"
    assert result.wall_seconds < 20


async def test_a_flood_of_output_ends_the_run_and_only_a_tail_is_kept(run):
    result = await run("import sys\nwhile True: sys.stdout.write('flood ' * 1000)")
    assert result.outcome == "output_limit"
    assert len(result.output_tail.encode()) <= LIMITS.tail_bytes + 64


async def test_cancelling_ends_the_run(sandbox, run):
    task = asyncio.create_task(run("touch started; sleep 222", shell=True))
    for _ in range(200):  # on a real cluster the pod is elsewhere: there it may be cancelled before it has begun
        if subprocess.run(["pgrep", "-f", "sleep 222"], capture_output=True).returncode == 0:
            break
        await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for _ in range(1 if is_here(sandbox) else 600):  # a Job's deletion is heard by the kubelet a moment later
        left = subprocess.run(["pgrep", "-f", "sleep 222"], capture_output=True, text=True).stdout.strip()
        if not left:
            break
        await asyncio.sleep(0.05)
    assert not left


async def test_input_files_are_named_by_variables_and_read_only(run):
    result = await run(
        "import os\npath = os.environ['LOOPWRIGHT_SIGNALS']\nprint(open(path).read())\nopen(path, 'w')",
        inputs=(InputFile("signals.json", b'[{"title": "x"}]', "LOOPWRIGHT_SIGNALS"),),
    )
    assert '"title": "x"' in result.output_tail
    assert result.exit_code == 1


async def test_an_ordinary_projects_tests_run(run, workspace):
    (workspace / "shop.py").write_text("import asyncio\n\nasync def total(items):\n    await asyncio.sleep(0)\n    return sum(items)\n")
    (workspace / "test_shop.py").write_text(
        "import asyncio, pathlib, subprocess, sys, tempfile, unittest\nfrom shop import total\n\n"
        "class Shop(unittest.TestCase):\n"
        "    def test_total(self):\n        self.assertEqual(asyncio.run(total([1, 2])), 3)\n\n"
        "    def test_child(self):\n"
        "        self.assertEqual(subprocess.run([sys.executable, '-c', 'print(1)'], capture_output=True).stdout, b'1\\n')\n"
        "        with tempfile.TemporaryDirectory() as folder: (pathlib.Path(folder) / 'a').write_text('b')\n"
    )
    # An image in a cluster brings its own tools, and need not bring pytest.
    line = "if python3 -c 'import pytest'; then python3 -m pytest -q -p no:cacheprovider; else python3 -m unittest; fi"
    result = await run(line, shell=True, limits=Limits(wall_seconds=60))
    assert result.passed, result.output_tail
    assert "2 passed" in result.output_tail or "Ran 2 tests" in result.output_tail
    assert result.cpu_seconds > 0


async def test_a_command_that_is_not_there_fails_as_a_command(sandbox, workspace):
    result = await sandbox.run(RunRequest(("no-such-program",), workspace, TOOLCHAINS, limits=LIMITS))
    assert (result.outcome, result.exit_code) == ("exited", 126)
    assert "no-such-program" in result.output_tail


async def test_a_missing_bubblewrap_is_told_and_never_runs_the_command_unconfined(workspace):
    with pytest.raises(SandboxBroken):
        await BubblewrapSandbox("/nonexistent/bwrap").run(RunRequest(("touch", "made"), workspace))
    assert not (workspace / "made").exists()


async def test_a_kernel_without_landlock_is_refused_before_anything_runs(workspace, monkeypatch):
    monkeypatch.setattr("loopwright_pr_agent.sandbox.landlock.abi", lambda: 0)
    with pytest.raises(SandboxBroken, match=r"5\.13"):
        await LandlockSandbox().run(RunRequest(("touch", "made"), workspace))
    assert not (workspace / "made").exists()


@pytest.mark.parametrize("isolation", HERE)
async def test_the_choice_names_what_holds(isolation):
    expected = await held(isolation)
    chosen, findings = await choose(isolation)
    assert chosen.isolation == expected.isolation
    assert findings[-1].holds


ORDINARY_UID = 3_000_017  # nobody's
ORDINARY_RUN = """
import asyncio, dataclasses, json, sys
from pathlib import Path
from loopwright_pr_agent.sandbox.detect import candidates, probe
from loopwright_pr_agent.sandbox.port import Limits, RunRequest

async def main():
    job = json.load(sys.stdin)
    for sandbox in candidates(job["isolation"]):
        finding = await probe(sandbox)
        if finding.holds:
            request = RunRequest((sys.executable, "-c", job["code"]), Path(job["workspace"]), limits=Limits(**job["limits"]))
            print(json.dumps(dataclasses.asdict(await sandbox.run(request))))
            return
    sys.exit(f"NO SANDBOX: {finding.reason}")

asyncio.run(main())
"""


def code_folders() -> list[Path]:
    import loopwright_common
    import loopwright_pr_agent

    return [Path(package.__file__).resolve().parents[1] for package in (loopwright_common, loopwright_pr_agent)]


@pytest.fixture(params=["as this user", "as an ordinary user"])
def look(request, sandbox, workspace):
    """Runs code in the sandbox and gives the result as a mapping: as this user, and where this is root as an ordinary user too."""

    async def here(code: str, **limits: float) -> dict:
        result = await sandbox.run(RunRequest(("python3", "-c", code), workspace, TOOLCHAINS, limits=Limits(**(vars(LIMITS) | limits))))
        return vars(result)

    async def ordinary(code: str, **limits: float) -> dict:
        job = {"isolation": sandbox.isolation.partition("+")[0], "code": code, "workspace": str(place / "workspace"),
               "limits": vars(LIMITS) | limits}  # fmt: skip
        said = await asyncio.to_thread(
            subprocess.run,
            [*become, "/usr/bin/python3", "-c", ORDINARY_RUN],
            input=json.dumps(job), capture_output=True, text=True, timeout=60, cwd="/",
            env={"PATH": os.environ["PATH"], "HOME": str(place), "TMPDIR": str(place), "PYTHONPATH": ":".join(map(str, code_folders()))},
        )  # fmt: skip
        if "NO SANDBOX" in said.stderr:
            pytest.skip(f"no {sandbox.isolation} for an ordinary user here: {said.stderr.strip()[-300:]}")
        assert said.returncode == 0, said.stderr
        return json.loads(said.stdout)

    if request.param == "as this user":
        yield here
        return
    if not is_here(sandbox):
        pytest.skip("whoever asks for a Job, it runs as a user of its own")
    if os.getuid() != 0:
        pytest.skip("this user is an ordinary one already")
    become = [shutil.which("setpriv") or "", f"--reuid={ORDINARY_UID}", f"--regid={ORDINARY_UID}", "--clear-groups"]
    if not become[0] or not Path("/usr/bin/python3").exists():
        pytest.skip("becoming an ordinary user takes setpriv and /usr/bin/python3")
    readable = [*become, "/usr/bin/python3", "-c", "import loopwright_pr_agent.sandbox.detect"]
    trial = subprocess.run(readable, capture_output=True, text=True, env={"PYTHONPATH": ":".join(map(str, code_folders()))}, timeout=30)
    if trial.returncode != 0:
        pytest.skip(f"an ordinary user cannot run this code here: {trial.stderr.strip()[-200:]}")
    # Not in tmp_path: each beginning pytest closes the folder of all temporary folders to other users, also while this one runs.
    with tempfile.TemporaryDirectory(prefix="loopwright-test-") as folder:
        place = Path(folder)
        (place / "workspace").mkdir()
        for made in (place, place / "workspace"):
            os.chown(made, ORDINARY_UID, ORDINARY_UID)
        yield ordinary


@pytest.mark.parametrize(
    "attempt",
    [
        "os.memfd_create('m')",
        "checked(libc.shmget(0, 300 << 20, 0o1600))",
        "checked(libc.shmat(0, None, 0))",
        "checked(libc.semget(0, 30_000, 0o1600))",
        "checked(libc.msgget(0, 0o1600))",
        "checked(librt.mq_open(b'/loopwright-test', 0o102, 0o600, None))",
    ],
)
async def test_memory_that_no_limit_counts_cannot_be_had(look, attempt):
    result = await look(
        "import ctypes, os, errno\nlibc = ctypes.CDLL(None, use_errno=True)\nlibrt = ctypes.CDLL('librt.so.1', use_errno=True)\n"
        "def checked(value):\n    if value < 0: raise OSError(ctypes.get_errno(), 'refused')\n    print('HAD', value)\n"
        f"try:\n    {attempt}\n    print('HAD IT')\nexcept OSError as error:\n    print(errno.errorcode[error.errno])\n"
    )
    assert (result["outcome"], result["output_tail"].strip()) == ("exited", "ENOSYS")


async def test_what_is_written_to_memory_file_systems_stays_under_the_memory_limit(look):
    result = await look(
        "import os\nwritten = 0\n"
        "for folder in ('/dev', '/dev/shm', '/tmp', '/run', '/'):\n"
        "    if not os.path.ismount(folder): continue\n"
        "    for number in range(100):\n"
        "        try:\n"
        "            with open(f'{folder}/loopwright-{number}', 'wb') as file:\n"
        "                for _ in range(4): written += file.write(b'x' * (1 << 20)); file.flush()\n"
        "        except OSError: break\n"
        "print('MIB', written >> 20)",
        memory_bytes=128 * MIB, wall_seconds=20,
    )  # fmt: skip
    assert result["outcome"] == "exited", result
    assert int(result["output_tail"].split()[-1]) <= 128 + 64


async def test_locks_between_processes_work_or_their_lack_is_told(look):
    result = await look("import multiprocessing as m\nwith m.Lock(): print('LOCKED')")
    if result["isolation"] != "landlock+seccomp":
        assert "LOCKED" in result["output_tail"], result["output_tail"]
    else:  # /dev/shm would be the host's
        assert "LOCKED" not in result["output_tail"]
        assert any("multiprocessing.Lock" in fact and "not covered" in fact for fact in result["facts"])


async def test_limits_and_priorities_of_processes_outside_cannot_be_set(look):
    # As the same user, which is what an ordinary user's sandbox runs as: the kernel alone would allow it.
    user = ORDINARY_UID if look.__name__ == "ordinary" else os.getuid()
    become = ["setpriv", f"--reuid={user}", "--clear-groups"] if user != os.getuid() else []
    with subprocess.Popen([*become, "sleep", "60"]) as outside:
        try:
            time.sleep(0.2)
            result = await look(
                f"import ctypes, os, struct\npid = {outside.pid}\nlibc = ctypes.CDLL(None, use_errno=True)\n"
                "mask, policy = struct.pack('Q', 1), struct.pack('i', 0)\n"
                "had = {'prlimit': libc.prlimit(pid, 7, struct.pack('QQ', 20, 20), None), 'setpriority': libc.setpriority(0, pid, 19),\n"
                "  'of user': libc.setpriority(2, 0, 19), 'affinity': libc.sched_setaffinity(pid, 8, mask),\n"
                "  'scheduler': libc.sched_setscheduler(pid, 3, policy), 'param': libc.sched_setparam(pid, policy),\n"
                f"  'ioprio': libc.syscall({251 if os.uname().machine == 'x86_64' else 30}, 1, pid, 3 << 13)}}\n"
                "print('HAD', [name for name, value in had.items() if value == 0])\n"
                "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100)); os.nice(1); print('OWN')"
            )
            limits = Path(f"/proc/{outside.pid}/limits").read_text()
            niceness = os.getpriority(os.PRIO_PROCESS, outside.pid)
        finally:
            outside.kill()
    assert "OWN" in result["output_tail"], result["output_tail"]
    # In a process table and user of its own a number means another process, or none.
    allowed = {"HAD []"} if result["isolation"] == "landlock+seccomp" else {"HAD []", "HAD ['of user']"}
    assert result["output_tail"].splitlines()[0] in allowed
    assert "20                   20" not in limits
    assert niceness == os.getpriority(os.PRIO_PROCESS, 0)


@pytest.fixture
def leases(tmp_path, monkeypatch):
    """Two user ids of our own to choose from, held in a folder of our own."""
    if os.getuid() != 0:
        pytest.skip("only root runs commands as other users")
    from loopwright_pr_agent.sandbox import common

    monkeypatch.setattr(common, "FIRST_UID", ORDINARY_UID + 1)
    monkeypatch.setattr(common, "UIDS", 2)
    monkeypatch.setattr(common, "LEASES", tmp_path / "leases", raising=False)
    return [ORDINARY_UID + 1, ORDINARY_UID + 2]


def begin_as(uid: int) -> subprocess.Popen[bytes]:
    stranger = subprocess.Popen([shutil.which("setpriv") or pytest.skip("no setpriv"), f"--reuid={uid}", "--clear-groups", "sleep", "60"])
    deadline = time.monotonic() + 5
    while os.stat(f"/proc/{stranger.pid}").st_uid != uid and time.monotonic() < deadline:
        time.sleep(0.01)
    return stranger


@pytest.mark.parametrize("sandbox", HERE, indirect=True)
async def test_a_user_id_with_a_process_of_somebody_else_is_passed_over_and_the_process_lives(leases, run):
    with begin_as(leases[0]) as stranger:
        try:
            results = [await run("import os; print(os.getuid())") for _ in range(4)]
            assert stranger.poll() is None
        finally:
            stranger.kill()
    assert {result.output_tail.strip() for result in results} == {str(leases[1])}


@pytest.mark.parametrize("sandbox", HERE, indirect=True)
async def test_a_process_that_somebody_begins_under_the_runs_user_id_meanwhile_outlives_the_run(leases, run, workspace):
    with begin_as(leases[0]) as other:
        task = asyncio.create_task(run("open('started', 'w').close(); import time; time.sleep(60)", limits=Limits(wall_seconds=2)))
        while not (workspace / "started").exists() and not task.done():
            await asyncio.sleep(0.02)
        with begin_as(leases[1]) as stranger:
            try:
                assert (await task).outcome == "timed_out"
                assert (stranger.poll(), other.poll()) == (None, None)
            finally:
                stranger.kill()
                other.kill()


async def test_no_two_holders_share_a_user_id_over_processes_and_accounts_are_passed_over(leases, monkeypatch, tmp_path):
    from loopwright_pr_agent.sandbox import common

    holding = (
        "import sys\nfrom pathlib import Path\nfrom loopwright_pr_agent.sandbox import common\n"
        f"common.FIRST_UID, common.UIDS = {leases[0]}, 2\n"
        f"with common.own_uid(Path({str(tmp_path / 'leases')!r})) as uid:\n    print(uid, flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", holding], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        theirs = int(other.stdout.readline())
        with common.own_uid() as ours:
            assert {ours, theirs} == set(leases)
            with pytest.raises(SandboxBroken, match="in use"), common.own_uid():
                pass
        other.kill()
    with common.own_uid() as one, common.own_uid() as two:
        assert {one, two} == set(leases)
    known = common.pwd.getpwuid(0)
    monkeypatch.setattr(common.pwd, "getpwuid", lambda uid: known)
    with pytest.raises(SandboxBroken, match="in use"), common.own_uid():
        pass


def test_leases_that_others_could_write_are_refused(leases, tmp_path, monkeypatch):
    from loopwright_pr_agent.sandbox import common

    monkeypatch.setattr(common.tempfile, "gettempdir", lambda: str(tmp_path / "none"))
    (tmp_path / "leases").mkdir(mode=0o777)
    (tmp_path / "leases").chmod(0o777)
    with pytest.raises(SandboxBroken, match="0700"), common.own_uid():
        pass


def test_user_ids_for_runs_are_those_that_systemd_gives_to_nobody():
    from loopwright_pr_agent.sandbox import common

    assert range(60_706, 61_184)[0] <= common.FIRST_UID
    assert common.FIRST_UID + common.UIDS <= 61_184


async def test_memory_of_processes_whose_parents_have_ended_is_bounded_too(look):
    code = "import os, time\nfor _ in range(6):\n    if os.fork() == 0:\n        if os.fork(): os._exit(0)\n"
    code += "        x = b'x' * (100 * 1048576)\n        time.sleep(30)\ntime.sleep(30)"
    result = await look(code, wall_seconds=15)
    assert result["outcome"] == "out_of_memory"


async def test_shared_memory_whose_pages_were_let_go_is_bounded_too(look):
    code = "import mmap, time\nheld = mmap.mmap(-1, 400 << 20)\nfor start in range(0, 400 << 20, 50 << 20):\n"
    code += "    for page in range(start, start + (50 << 20), 4096): held[page] = 1\n"
    code += "    held.madvise(mmap.MADV_DONTNEED, start, 50 << 20)\ntime.sleep(20)"
    result = await look(code, wall_seconds=15)
    assert result["outcome"] == "out_of_memory"
