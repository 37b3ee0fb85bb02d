"""The whole loop on the sample product, undisturbed and with processes killed at seeded moments."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from loopwright_cli.client import Api, ApiFailed
from loopwright_cli.demo import Demo, Outcome, free_ports
from loopwright_cli.stack import Stack
from loopwright_cli.supervisor import Supervisor
from loopwright_common.contracts.signals import Signal
from loopwright_common.contracts.subjects import SIGNALS
from loopwright_common.nats_bus import NatsBus
from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]
SEED = int(os.environ.get("LOOPWRIGHT_FAULT_SEED", "20261126"))
VICTIMS = ("nats", "forge", "gateway", "ingest", "cluster", "investigator", "pr-agent", "measure")
KILLS_PER_RUN = 3

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(420)]


@dataclass
class Played:
    """What a run left behind, read before the stack was stopped."""

    outcome: Outcome
    accepted: set[str]
    counted: int
    pull_requests: list[dict[str, Any]]
    changes: list[dict[str, Any]]
    usage: dict[str, Any]
    killed: list[str] = field(default_factory=list)


async def _accepted(stack: Stack) -> set[str]:
    """The ids of all signals that the bus holds: what was accepted."""
    bus = NatsBus(f"nats://127.0.0.1:{stack.port('nats')}", "test", user="loopwright", password=stack.secret("nats_password"))
    await bus.connect()
    found: set[str] = set()
    try:
        async with asyncio.timeout(30):
            connection = bus._connection
            state = (await connection.api(f"STREAM.INFO.{SIGNALS.stream}"))["state"]
            import base64

            for sequence in range(int(state["first_seq"]), int(state["last_seq"]) + 1):
                message = (await connection.api(f"STREAM.MSG.GET.{SIGNALS.stream}", {"seq": sequence}))["message"]
                found.add(Signal.model_validate_json(base64.b64decode(message["data"])).id)
    finally:
        await bus.close()
    return found


def _counted(api: Api) -> int:
    """Signals over all reports, the verdict's included."""
    total = 0
    for row in api.pages("/v1/reports", 1000, closed="true"):
        total += row["signal_count"] + row["kinds"].get("measurement", 0)
    return total


def play(folder: Path, killer: Any = None) -> Played:
    stack = Stack(folder, free_ports(9000), ROOT / ".cache" / "models")
    console = Console(width=160, highlight=False, force_terminal=False)
    with Supervisor(stack, lambda text: console.print(f"  [supervisor] {text}", markup=False)) as supervisor:
        demo = Demo(console, supervisor, ROOT, person=False)
        killed: list[str] = []
        with killer(supervisor, killed) if killer else _nobody():
            demo.play()
        accepted = asyncio.run(_accepted(stack))
        deadline = time.monotonic() + 30
        while (counted := _counted_safely(demo.api)) != len(accepted) and time.monotonic() < deadline:
            supervisor.look_after()
            time.sleep(0.5)
            accepted = asyncio.run(_accepted(stack))
        forge = Api(stack.url("forge"), stack.secret("forge_read_token"))
        pulls = forge.get("/api/v1/repos/shop/pulls")
        return Played(
            outcome=demo.outcome,
            accepted=accepted,
            counted=counted,
            pull_requests=next(iter(pulls.values())) if isinstance(pulls, dict) else pulls,
            changes=list(demo.api.pages("/v1/changes", 100)),
            usage=demo.api.get("/v1/usage"),
            killed=killed,
        )


def _counted_safely(api: Api) -> int:
    try:
        return _counted(api)
    except ApiFailed:
        return -1


@contextmanager
def _nobody() -> Iterator[None]:
    yield


def check_closed(played: Played) -> None:
    """The loop closed: what every run has to show."""
    report = played.outcome.report
    assert {"exception", "health_check", "ticket", "measurement"} <= set(report["kinds"])
    assert report["investigation"]["suspects"][0]["commit"] == played.outcome.guilty
    assert report["change"]["proof"] == "reproduced"
    assert report["change"]["reverts"] == played.outcome.guilty
    assert report["measurement"]["verdict"] == "held"
    assert report["measurement"]["ratio_high"] is not None
    assert report["measurement"]["ratio_high"] < 1 - report["measurement"]["metric"]["minimum_effect"]
    assert report["state"] == "held"
    assert any(entry["kind"] == "verdict_signal" for entry in played.outcome.timeline)
    assert len(played.changes) == 1
    assert len(played.pull_requests) == 1
    assert played.usage["pull_requests"] == 1
    assert played.counted == len(played.accepted)


def test_the_loop_closes_on_real_input(tmp_path: Path) -> None:
    played = play(tmp_path / "data")

    check_closed(played)
    report = played.outcome.report
    rules = {item["signal"]["kind"]: item["decision"] for item in played.outcome.explanations}
    assert all(rules[kind]["reason"] for kind in ("exception", "health_check", "ticket", "measurement"))
    runs = {run["step"]: run for run in report["change"]["runs"]}
    assert runs, "what ran in the sandbox is on the change"
    assert all(run["isolation"] in ("bubblewrap", "landlock+seccomp") for run in runs.values())
    assert any("test" in step and run["exit_code"] == 0 for step, run in runs.items())
    evidence = {item["id"] for item in report["investigation"]["evidence"]}
    assert all(set(claim["cites"]) and set(claim["cites"]) <= evidence for claim in report["investigation"]["claims"])
    states = [entry["to_state"] for entry in played.outcome.timeline if entry["to_state"]]
    expected = ["gathering", "ready", "investigating", "actionable", "changing", "in_review", "merged", "measuring", "held"]
    assert states == expected
    body = report["change"]["body"]
    for words in ("reproduced", report["investigation"]["suspects"][0]["commit"][:7]):
        assert words in body.lower()


def test_the_demo_command_closes_the_loop_again() -> None:
    environment = {key: value for key, value in os.environ.items() if key not in ("PACE", "KEEP")}
    done = subprocess.run(
        [sys.executable, "-m", "loopwright_cli", "demo"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "held" in done.stdout
    assert "The inbox" in done.stdout


def _killer(victims: list[str], rng: random.Random) -> Any:
    """Kills each victim once, at random moments over the time the loop usually takes."""

    @contextmanager
    def killing(supervisor: Supervisor, killed: list[str]) -> Iterator[None]:
        over = threading.Event()
        moments = sorted(rng.uniform(4.0, 75.0) for _ in victims)

        def run() -> None:
            began = time.monotonic()
            for moment, victim in zip(moments, victims, strict=True):
                if over.wait(max(0.0, began + moment - time.monotonic())):
                    return
                if (pid := supervisor.pid(victim)) is not None:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(f"{victim} after {moment:.1f} s")
                    print(f"  [killer] {killed[-1]}", flush=True)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    return killing


def _runs() -> list[tuple[int, list[str]]]:
    """All victims, shuffled by the seed, a few per run."""
    rng = random.Random(SEED)
    order = list(VICTIMS)
    rng.shuffle(order)
    return [(SEED + start, order[start : start + KILLS_PER_RUN]) for start in range(0, len(order), KILLS_PER_RUN)]


@pytest.mark.parametrize(("seed", "victims"), _runs(), ids=lambda value: "+".join(value) if isinstance(value, list) else f"seed{value}")
def test_the_loop_closes_once_whatever_is_killed(seed: int, victims: list[str], tmp_path: Path) -> None:
    played = play(tmp_path / "data", _killer(victims, random.Random(seed)))

    print(f"seed {seed}: {played.killed}; {len(played.accepted)} signals accepted, {played.counted} counted")
    assert played.killed, "nothing was killed: the moments lie after the end of the loop"
    check_closed(played)
