"""The loop while its parts are killed: every service, the forge and nats-server, each with kill -9 at a seeded moment.

LOOPWRIGHT_FAULT_SEEDS="3 4 5" pytest tests/e2e/test_faults.py      other seeds than the ones that always run
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nats
import pytest
from loopwright_cli.client import Api, ApiFailed
from loopwright_cli.demo import PROJECT, Demo, Stage
from loopwright_cli.stack import Stack
from loopwright_cli.supervisor import Supervisor
from loopwright_common.contracts.signals import Signal
from rich.console import Console

from tests.audit import AUDIT, Integrator, begin, counted

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]

SEEDS = [int(seed) for seed in os.environ.get("LOOPWRIGHT_FAULT_SEEDS", "11").split()]
STAGES = 8  # of the demo's nine: after the last nothing is left to happen
DELAY_SECONDS_MAX = 4.0
COUNTED_SECONDS_MAX = 90.0


class Killer:
    """Kills each part once: a permutation of the parts over the stages, each after a random delay."""

    def __init__(self, supervisor: Supervisor, seed: int) -> None:
        self._supervisor = supervisor
        rng = random.Random(seed)
        parts = list(supervisor.running)
        rng.shuffle(parts)
        stages = [1 + index % STAGES for index in range(len(parts))]
        self.plan = [(stage, part, rng.uniform(0.0, DELAY_SECONDS_MAX)) for stage, part in zip(stages, parts, strict=True)]
        self.killed: list[str] = []
        self._timers: list[threading.Timer] = []

    def stage_begins(self, number: int) -> None:
        for stage, part, delay in self.plan:
            if stage == number:
                timer = threading.Timer(delay, self._kill, (part,))
                timer.start()
                self._timers.append(timer)

    def _kill(self, part: str) -> None:
        for _ in range(100):  # it may be down already, from another kill
            if (pid := self._supervisor.pid(part)) is not None:
                os.kill(pid, signal.SIGKILL)
                self.killed.append(part)
                return
            time.sleep(0.1)

    def wait(self) -> None:
        for timer in self._timers:
            timer.join()


class KilledDemo(Demo):
    """The demo, with something that goes wrong in every stage."""

    killer: Killer

    @contextmanager
    def stage(self, title: str) -> Iterator[Stage]:
        self.killer.stage_begins(len(self.outcome.stages) + 1)
        with super().stage(title) as stage:
            yield stage


async def stored_signals(stack: Stack) -> dict[str, set[str]]:
    """Project -> the ids of all signals that the stream holds: what was accepted."""
    client = await nats.connect(
        f"nats://127.0.0.1:{stack.port('nats')}", user="loopwright", password=stack.secret("nats_password"), allow_reconnect=False
    )
    try:
        stream = client.jetstream()
        found: dict[str, set[str]] = {}
        state = (await stream.stream_info("SIGNALS")).state
        assert state.messages == state.last_seq - state.first_seq + 1
        for sequence in range(state.first_seq, state.last_seq + 1):
            message = await stream.get_msg("SIGNALS", sequence)
            accepted = Signal.model_validate_json(message.data or b"")
            ids = found.setdefault(accepted.project, set())
            assert accepted.id not in ids, f"stored twice: {accepted.id}"
            ids.add(accepted.id)
        return found
    finally:
        await client.close()


@pytest.mark.parametrize("seed", SEEDS)
async def test_the_loop_closes_though_every_part_is_killed_once(
    seed: int, root: Path, tmp_path: Path, first_port: int, sandbox_holds: None
) -> None:
    stack = Stack(tmp_path / "data", first_port, root / ".cache" / "models")
    with Supervisor(stack, print) as supervisor:
        demo = KilledDemo(Console(width=150, highlight=False), supervisor, root, person=False)
        demo.killer = Killer(supervisor, seed)
        print(f"seed {seed}: " + ", ".join(f"{part} in stage {stage} after {delay:.1f} s" for stage, part, delay in demo.killer.plan))
        integrator = Integrator(stack.url("ingest"), begin(demo.api), random.Random(seed))
        integrator.start()
        try:
            outcome = demo.play()
        finally:
            demo.close()
            integrator.stop()
            demo.killer.wait()
        assert sorted(demo.killer.killed) == sorted(supervisor.running)

        assert outcome.report["state"] == "held"
        assert outcome.report["investigation"]["suspects"][0]["commit"] == outcome.guilty
        assert outcome.report["change"]["proof"] == "reproduced"

        async def all_counted() -> bool:
            # Counts first: what is accepted meanwhile may be in the stream only, never only in the counts.
            seen = {project: counted(demo.api, project) for project in (AUDIT, PROJECT)}
            stored = await stored_signals(stack)
            assert len(stored[AUDIT]) == len(integrator.accepted)
            print(f"stored { {project: len(ids) for project, ids in stored.items()} }, counted {seen}")
            assert all(seen[project] <= len(stored[project]) for project in stored), "a signal is counted twice"
            return all(seen[project] == len(stored[project]) for project in stored)

        deadline = time.monotonic() + COUNTED_SECONDS_MAX
        while not await settled(all_counted):
            supervisor.look_after()
            assert time.monotonic() < deadline, f"not every accepted signal was counted within {COUNTED_SECONDS_MAX:g} s"
            await asyncio.sleep(1)
        assert len(integrator.accepted) > 20

        pulls = Api(stack.url("forge"), stack.secret("forge_read_token")).get(f"/api/v1/repos/{PROJECT}/pulls")["pulls"]
        assert len(pulls) == 1, pulls
        assert len(list(demo.api.pages("/v1/changes", 100, project=PROJECT))) == 1
        assert demo.api.get(f"/v1/reports/{outcome.report['id']}/usage")["pull_requests"] == 1
        assert demo.api.get("/v1/dead-letters") == []


async def settled(look: Any) -> bool:
    """What ``look`` says; no while a part is being started again."""
    try:
        return bool(await look())
    except (ApiFailed, OSError, nats.errors.Error):
        return False
