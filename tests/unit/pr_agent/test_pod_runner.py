"""The runner of a pod, as a process of its own against a real broker, and what it makes of bundles that nobody here would write."""

# ruff: noqa: ASYNC221, ASYNC240 (a test may well block while it looks at the host)

from __future__ import annotations

import ast
import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from loopwright_common.testing.clock import FakeClock
from loopwright_common.testing.memory_bus import MemoryBus
from loopwright_pr_agent.broker.api import BrokerServer, broker_app
from loopwright_pr_agent.broker.bundle import write_bundle
from loopwright_pr_agent.broker.records import PodResult, RunRecord, RunRecords
from loopwright_pr_agent.broker.runs import Runs
from loopwright_pr_agent.broker.tokens import Tokens
from loopwright_pr_agent.sandbox import pod_runner
from loopwright_pr_agent.sandbox.kubernetes.manifest import run_id
from loopwright_pr_agent.sandbox.pod_runner import Broken, Places, stays_inside, unpack
from loopwright_pr_agent.sandbox.port import MIB, Limits, RunRequest

NOW = datetime(2026, 11, 26, 10, 0, tzinfo=UTC)
LIMITS = Limits(wall_seconds=20, memory_bytes=512 * MIB, processes=4_000)  # as whoever runs the tests, who has processes already
RUN = run_id("acme/chg1/step")


class Bench:
    """A broker that can be taken away and brought back, and a runner beside it."""

    def __init__(self, tmp_path: Path) -> None:
        self.tmp_path, self.bus, self.port = tmp_path, MemoryBus("pr-agent"), 0
        self.files = tmp_path / "files"
        self.files.mkdir()

    async def up(self) -> None:
        self.runs = Runs(RunRecords(await self.bus.key_value("runs")), Tokens(b"k" * 32), FakeClock(NOW))
        self.server = BrokerServer(broker_app(self.runs), "127.0.0.1", self.port)
        await self.server.start()
        self.port = self.server.port

    async def offer(self, line: str) -> None:
        request = RunRequest(("sh", "-c", line), self.files, limits=LIMITS)
        bundle = await asyncio.to_thread(
            write_bundle, request, self.tmp_path / "bundle.tar", bytes_max=MIB, processes_of_user=8_000, model_seconds=5.0
        )
        record = RunRecord(key="k", digest=bundle.digest, generation=1, deadline=NOW + timedelta(minutes=10))
        await self.runs.records.create(RUN, record)
        self.live = self.runs.offer(RUN, 1, bundle.path)

    def start(self, token: str = "") -> subprocess.Popen[str]:
        places = [f"--{name}={self.tmp_path / name}" for name in ("workspace", "home", "inputs", "tmp")]
        for name in ("home", "tmp"):
            (self.tmp_path / name).mkdir(exist_ok=True)
        environment = {
            "PATH": os.environ["PATH"], "LOOPWRIGHT_BROKER_URL": f"http://127.0.0.1:{self.port}", "LOOPWRIGHT_RUN": RUN,
            "LOOPWRIGHT_RUN_TOKEN": token or self.runs.tokens.token(RUN, 1),
        }  # fmt: skip
        command = [sys.executable, "-I", pod_runner.__file__, *places]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    async def ended(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        said, _ = await asyncio.to_thread(process.communicate, timeout=40)
        return process.returncode, said

    async def result(self) -> PodResult | None:
        return (await self.runs.records.get(RUN)).record.result


@pytest.fixture
async def bench(tmp_path):
    made = Bench(tmp_path)
    await made.up()
    yield made
    await made.server.stop()


async def appeared(path: Path) -> None:
    async with asyncio.timeout(30):
        while not path.exists():
            await asyncio.sleep(0.02)


def test_the_runner_is_one_file_of_the_standard_library():
    tree = ast.parse(Path(pod_runner.__file__).read_text())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names


async def test_a_run_from_its_input_to_its_result(bench):
    (bench.files / "a.txt").write_text("brought in")
    await bench.offer("cat a.txt; exit 3")
    code, said = await bench.ended(bench.start())
    assert (code, (await bench.result()).exit_code, (await bench.result()).output_tail) == (0, 3, "brought in"), said
    assert "brought in" not in said  # the pod's log holds nothing of the run


async def test_the_token_is_in_no_environment_and_no_argument_once_the_run_has_begun(bench):
    await bench.offer("touch begun; while [ ! -e go ]; do sleep 0.05; done; tr '\\0' '\\n' < /proc/$PPID/environ; env")
    process = bench.start()
    await appeared(bench.tmp_path / "workspace" / "begun")
    outside = Path(f"/proc/{process.pid}")
    token = bench.runs.tokens.token(RUN, 1)
    if os.getuid() == 0:  # who may look anywhere
        assert token not in (outside / "environ").read_text() + (outside / "cmdline").read_text()
    else:
        with pytest.raises(PermissionError):
            (outside / "environ").read_text()
    assert "NoNewPrivs:\t1" in (outside / "status").read_text()
    (bench.tmp_path / "workspace" / "go").touch()
    code, said = await bench.ended(process)
    assert (code, token in said + (await bench.result()).output_tail) == (0, False)
    assert "LOOPWRIGHT_BROKER" not in (await bench.result()).output_tail.partition("PWD=")[2]


async def test_a_broker_that_is_away_when_the_command_ends_gets_the_result_later(bench):
    await bench.offer("touch begun; sleep 1; echo done")
    process = bench.start()
    await appeared(bench.tmp_path / "workspace" / "begun")
    await bench.server.stop()
    await asyncio.sleep(2)
    assert process.poll() is None
    await bench.up()
    code, said = await bench.ended(process)
    assert (code, (await bench.result()).output_tail) == (0, "done\n"), said


async def test_a_broker_that_does_not_have_the_input_yet_is_asked_again(bench):
    await bench.offer("echo done")
    bench.runs.withdraw(RUN, 1)
    process = bench.start()
    await asyncio.sleep(1)
    assert process.poll() is None
    bench.runs.offer(RUN, 1, bench.tmp_path / "bundle.tar")
    assert (await bench.ended(process))[0] == 0


async def test_a_refused_token_ends_the_runner_at_once(bench):
    await bench.offer("echo done")
    code, said = await bench.ended(bench.start(token=bench.runs.tokens.token(RUN, 2)))
    assert (code, "refuses" in said) == (pod_runner.REFUSED, True)
    assert not (bench.tmp_path / "workspace").exists()


async def test_a_runner_without_its_variables_says_which(bench):
    said = await asyncio.to_thread(subprocess.run, [sys.executable, "-I", pod_runner.__file__], env={}, capture_output=True, text=True)
    assert (said.returncode, "LOOPWRIGHT_RUN_TOKEN" in said.stderr) == (pod_runner.WRONG_CALL, True)


async def test_sigterm_ends_the_command_and_the_runner(bench):
    await bench.offer("touch begun; sleep 345")
    process = bench.start()
    await appeared(bench.tmp_path / "workspace" / "begun")
    process.send_signal(signal.SIGTERM)
    code, _ = await bench.ended(process)
    assert code == pod_runner.TOLD_TO_END
    assert not subprocess.run(["pgrep", "-f", "sleep 345"], capture_output=True, text=True).stdout.strip()
    assert await bench.result() is None


async def test_a_command_that_the_kernel_killed_for_memory_is_out_of_memory(bench, monkeypatch, tmp_path):
    counted = tmp_path / "memory.events"
    counted.write_text("low 0\noom 1\noom_kill 1\noom_group_kill 0\n")
    monkeypatch.setattr(pod_runner, "KERNEL_KILLS", (str(tmp_path / "none"), str(counted)))
    assert pod_runner.kernel_kills() == 1
    monkeypatch.setattr(pod_runner, "KERNEL_KILLS", (str(tmp_path / "none"),))
    assert pod_runner.kernel_kills() == 0
    # In a copy of the runner that counts in our file, the command itself writes what the kernel would, then dies as it would.
    copy = tmp_path / "pod_runner.py"
    copy.write_text(Path(pod_runner.__file__).read_text().replace('"/sys/fs/cgroup/memory.events"', repr(str(counted))))
    monkeypatch.setattr(pod_runner, "__file__", str(copy))
    await bench.offer(f"echo oom_kill 2 > {counted}; kill -9 $$")
    code, said = await bench.ended(bench.start())
    assert (code, (await bench.result()).outcome) == (0, "out_of_memory"), said


# Bundles that nobody here would write


def tar(*members: tuple[tarfile.TarInfo, bytes]) -> io.BytesIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as bundle:
        for info, content in members:
            info.size = len(content)
            bundle.addfile(info, io.BytesIO(content))
    return io.BytesIO(out.getvalue())


def member(name: str, content: bytes = b"x", kind: bytes = tarfile.REGTYPE, link: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, 0o6777
    return info, content if kind == tarfile.REGTYPE else b""


REQUEST = member("request.json", json.dumps({"argv": ["true"]}).encode())


@pytest.fixture
def places(tmp_path):
    return Places(*(str(tmp_path / "pod" / name) for name in ("workspace", "home", "inputs", "tmp")))


@pytest.mark.parametrize(
    "members",
    [
        (member("workspace/a"),),
        (REQUEST, member("workspace/../escaped")),
        (REQUEST, member("/workspace/a")),
        (REQUEST, member("elsewhere/a")),
        (REQUEST, member("workspace/./a")),
        (REQUEST, member("workspace//a")),
        (REQUEST, member("workspace/link", kind=tarfile.SYMTYPE, link="/etc/passwd")),
        (REQUEST, member("workspace/link", kind=tarfile.SYMTYPE, link="../escaped")),
        (REQUEST, member("workspace/link", kind=tarfile.SYMTYPE, link="."), member("workspace/link/escaped")),
        (REQUEST, member("workspace/a"), member("workspace/a")),
        (REQUEST, member("workspace/hard", kind=tarfile.LNKTYPE, link="request.json")),
        (REQUEST, member("workspace/fifo", kind=tarfile.FIFOTYPE)),
        (REQUEST, member("workspace/device", kind=tarfile.CHRTYPE)),
        (REQUEST, member("inputs/link", kind=tarfile.SYMTYPE, link="a")),
        (REQUEST, member("workspace/" + "a/" * 3_000 + "b")),
        (),
    ],
    ids=range(16),
)
def test_a_bundle_that_would_lead_out_is_refused(places, tmp_path, members):
    with pytest.raises((Broken, FileNotFoundError, tarfile.ReadError)):
        unpack(tar(*members), places)
    assert not (tmp_path / "pod" / "escaped").exists()
    assert not (tmp_path / "escaped").exists()


def test_what_is_unpacked_has_plain_rights_and_an_earlier_try_leaves_nothing(places):
    for _ in range(2):
        members = (REQUEST, member("workspace/d", kind=tarfile.DIRTYPE), member("workspace/d/a"), member("inputs/signals.json"),
                   member("workspace/link", kind=tarfile.SYMTYPE, link="d/a"))  # fmt: skip
        assert unpack(tar(*members), places) == {"argv": ["true"]}
    found = Path(places.workspace, "d", "a").stat().st_mode & 0o7777, Path(places.inputs, "signals.json").stat().st_mode & 0o7777
    assert found == (0o755, 0o444)
    unpack(tar(REQUEST), places)
    assert os.listdir(places.workspace) == []


@pytest.mark.parametrize(
    ("name", "target", "inside"),
    [
        ("a", "b", True), ("d/a", "../b", True), ("d/e/a", "../../b", True), ("a", ".", True), ("a", "../b", False),
        ("d/a", "../../b", False),
        ("a", "/b", False), ("d/a", "x/../../../b", False), ("a", "..", False), ("d/a", "..", True),
    ],
)  # fmt: skip
def test_a_link_stays_inside_or_does_not(name, target, inside):
    assert stays_inside(name, target) is inside
