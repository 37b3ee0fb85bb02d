"""The supervisor: start, restart, stop in order, and nothing left behind when it is killed itself."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loopwright_cli import supervisor as supervisor_module
from loopwright_cli.stack import Child
from loopwright_cli.supervisor import StartFailed, Supervisor

New = Callable[..., tuple[Supervisor, list[str]]]
Until = Callable[..., Any]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_all_children_are_ready_when_the_start_returns(new_supervisor: New) -> None:
    supervisor, told = new_supervisor()
    with supervisor:
        assert all(supervisor.is_ready(name) for name in ("nats", "forge", "small"))
        assert told[0] == "nats is ready"
        assert sorted(told) == ["forge is ready", "nats is ready", "small is ready"]
        pids = [supervisor.pid(name) for name in ("nats", "forge", "small")]
    assert not any(alive(pid) for pid in pids if pid)


def test_a_child_that_dies_is_started_again_and_it_is_said_so(new_supervisor: New, until: Until) -> None:
    supervisor, told = new_supervisor()
    with supervisor:
        first = supervisor.pid("small")
        assert first is not None
        os.kill(first, signal.SIGKILL)

        def again() -> bool:
            supervisor.look_after()
            return supervisor.pid("small") not in (None, first) and supervisor.is_ready("small")

        until(again, "the restart")
        assert any("small ended (SIGKILL); starting it again in 0.2 s" in text for text in told)


def test_the_delay_before_a_restart_grows(new_supervisor: New, new_child: Callable[..., Child], until: Until) -> None:
    supervisor, told = new_supervisor()
    with supervisor:

        def ended_three_times() -> bool:
            supervisor.look_after()
            pid = supervisor.pid("small")
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
            return len([text for text in told if "ended" in text]) == 3

        until(ended_three_times, "the third end")
    delays = [text.rpartition(" in ")[2] for text in told if "ended" in text]
    assert delays == ["0.2 s", "0.4 s", "0.8 s"]


def test_services_stop_before_the_forge_and_the_forge_before_nats(
    new_supervisor: New, monkeypatch: pytest.MonkeyPatch, new_child: Callable[..., Child]
) -> None:
    supervisor, _ = new_supervisor(*(new_child(name) for name in ("nats", "forge", "ingest", "gateway")))
    order: list[list[str]] = []
    stop = Supervisor._stop

    def note(self: Supervisor, names: list[str]) -> None:
        stop(self, names)
        order.append([name for name in names if self.pid(name) is None])

    monkeypatch.setattr(Supervisor, "_stop", note)
    with supervisor:
        logs = supervisor.stack.logs
    assert order == [["ingest", "gateway"], ["forge"], ["nats"]]
    assert all("asked to stop" in (logs / f"{name}.log").read_text() for name in ("ingest", "gateway", "forge", "nats"))


def test_a_child_that_will_not_stop_is_killed(
    new_supervisor: New, monkeypatch: pytest.MonkeyPatch, new_child: Callable[..., Child], tmp_path: Path
) -> None:
    monkeypatch.setattr(supervisor_module, "STOP_SECONDS_MAX", 0.5)
    deaf = new_child("small")
    program = tmp_path / "deaf.py"
    program.write_text((tmp_path / "program.py").read_text().replace("sys.exit(0)", "pass"))
    command = (deaf.command[0], str(program), *deaf.command[2:])
    supervisor, _ = new_supervisor(
        new_child("nats"), new_child("forge"), Child("small", command, deaf.environment, deaf.ready_url, deaf.port)
    )
    with supervisor:
        pid = supervisor.pid("small")
    assert pid is not None
    assert not alive(pid)


def test_a_service_that_refuses_its_settings_stops_the_start_with_its_own_words(
    new_supervisor: New, new_child: Callable[..., Child], tmp_path: Path
) -> None:
    refusing = new_child("small", "refuse")
    program = tmp_path / "refusing.py"
    program.write_text("import sys; print('LOOPWRIGHT_SMALL_LIMIT is -1; it must be positive'); sys.exit(2)")
    command = (sys.executable, str(program))
    supervisor, _ = new_supervisor(
        new_child("nats"), new_child("forge"), Child("small", command, refusing.environment, refusing.ready_url, refusing.port)
    )
    with pytest.raises(StartFailed, match=r"LOOPWRIGHT_SMALL_LIMIT is -1"), supervisor:
        pass
    assert supervisor.pid("nats") is None


def test_a_service_that_keeps_ending_stops_the_start_with_the_end_of_its_log(new_supervisor: New, new_child: Callable[..., Child]) -> None:
    supervisor, _ = new_supervisor(new_child("nats"), new_child("forge"), new_child("small", "refuse"))
    with pytest.raises(StartFailed, match=r"small ended 6 times while starting:\n.*LOOPWRIGHT_SMALL_LIMIT"), supervisor:
        pass
    assert supervisor.pid("forge") is None


def test_a_taken_port_is_named_with_the_remedy(new_supervisor: New, new_child: Callable[..., Child]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        supervisor, _ = new_supervisor(new_child("nats"), new_child("forge", port=port))
        with pytest.raises(StartFailed, match=rf"port {port} \(forge\) is taken.*--port"), supervisor:
            pass


def test_one_data_folder_has_one_supervisor(new_supervisor: New, new_child: Callable[..., Child]) -> None:
    first, _ = new_supervisor()
    with first:
        second, _ = new_supervisor(new_child("nats"))
        with pytest.raises(StartFailed, match=r"in use by another `loopwright up`.*--data"), second:
            pass
        assert first.is_ready("nats")
    third, _ = new_supervisor()
    with third:
        assert third.is_ready("nats")


OUTER = """
import sys, time
from pathlib import Path
from loopwright_cli import supervisor as module
from loopwright_cli.stack import Child, Stack
program, port, data = sys.argv[1:]
child = Child("nats", (sys.executable, program, port), {"PATH": "/usr/bin:/bin"}, f"http://127.0.0.1:{port}/readyz", int(port))
module.children = lambda stack: [child]
with module.Supervisor(Stack(Path(data)), lambda text: print(text, flush=True)) as supervisor:
    supervisor.watch()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells children of their parent's end on Linux only")
def test_children_end_when_the_supervisor_is_killed_and_a_new_one_waits_for_them(
    tmp_path: Path, new_supervisor: New, new_child: Callable[..., Child], until: Until
) -> None:
    child = new_child("nats")
    # It takes a moment to end, as a service that finishes what it is at.
    slow = tmp_path / "slow.py"
    slow.write_text((tmp_path / "program.py").read_text().replace("sys.exit(0)", "import time; time.sleep(1); sys.exit(0)"))
    command = [sys.executable, "-c", OUTER, str(slow), str(child.port), str(tmp_path / "data")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as outer:
        assert outer.stdout is not None
        assert outer.stdout.readline() == "nats is ready\n"
        pid = int((tmp_path / "data" / "run" / "nats.pid").read_text())
        assert alive(pid)
        outer.kill()
        outer.wait()
    slow_child = Child("nats", (sys.executable, str(slow), str(child.port)), child.environment, child.ready_url, child.port)
    supervisor, told = new_supervisor(slow_child)
    with supervisor:
        assert told[0] == "waiting for the former nats to end"
        assert not alive(pid)
        assert supervisor.is_ready("nats")
    until(lambda: "asked to stop" in (tmp_path / "data" / "logs" / "nats.log").read_text(), "an orderly end")


def test_a_reused_process_id_is_not_waited_for(new_supervisor: New, tmp_path: Path) -> None:
    supervisor, told = new_supervisor()
    supervisor.stack.pids.mkdir(parents=True)
    (supervisor.stack.pids / "nats.pid").write_text(str(os.getpid()))
    with supervisor:
        assert told[0] == "nats is ready"


def test_a_log_that_grew_large_is_turned_over_and_written_on(new_supervisor: New, monkeypatch: pytest.MonkeyPatch, until: Until) -> None:
    monkeypatch.setattr(supervisor_module, "LOG_BYTES_MAX", 1_000)
    supervisor, _ = new_supervisor()
    with supervisor:
        log = supervisor.stack.logs / "small.log"
        with log.open("a") as opened:
            opened.write("x" * 2_000)
        supervisor._rotate()
        assert log.stat().st_size == 0
        assert (supervisor.stack.logs / "small.log.1").stat().st_size > 2_000
    assert "asked to stop" in log.read_text()


def test_an_interrupt_ends_the_watch_and_stops_everything(new_supervisor: New, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor, _ = new_supervisor()
    looked = 0

    def look_after() -> None:
        nonlocal looked
        looked += 1
        if looked == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(supervisor, "look_after", look_after)
    with pytest.raises(KeyboardInterrupt), supervisor:
        supervisor.watch()
    assert supervisor.pid("small") is None
