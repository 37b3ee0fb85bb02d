"""The whole stack on this machine: real processes, real nats-server, real git, the sandbox that holds here."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def sandbox_holds() -> None:
    """Skips where changes cannot be verified: no isolation holds on this host."""
    found = subprocess.run(
        [sys.executable, "-m", "loopwright_pr_agent.sandbox.detect"], capture_output=True, text=True, check=False, timeout=60
    )
    if found.returncode != 0:
        text = f"no sandbox holds on this host: {found.stdout} {found.stderr}"
        if os.environ.get("CI", "") not in ("", "0", "false"):
            pytest.fail(text)
        pytest.skip(text)


@pytest.fixture
def first_port() -> int:
    """The first of a free range of ports, below those that the kernel gives out by itself."""
    from loopwright_cli.demo import free_ports

    return free_ports(random.randrange(150, 300) * 100)


@pytest.fixture
def git() -> Callable[..., str]:
    """Runs git in a folder without this machine's configuration; what it printed."""

    def run(folder: Path, *arguments: str) -> str:
        environment = os.environ | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
        for who in ("AUTHOR", "COMMITTER"):
            environment |= {f"GIT_{who}_NAME": "Ada Moss", f"GIT_{who}_EMAIL": "ada@billing.example"}
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], env=environment, capture_output=True, text=True, check=True, timeout=60
        )
        return done.stdout.strip()

    return run


Loopwright = Callable[..., Any]


@pytest.fixture
def loopwright(tmp_path: Path, first_port: int) -> Loopwright:
    """The command as a person types it, against this test's stack; its JSON, or its text for commands without."""

    def run(*arguments: str, **environment: str) -> Any:
        gateway = {"LOOPWRIGHT_URL": f"http://127.0.0.1:{first_port}", "LOOPWRIGHT_DATA": str(tmp_path / "data")}
        gateway["LOOPWRIGHT_INGEST_URL"] = f"http://127.0.0.1:{first_port + 1}"
        done = subprocess.run(
            [sys.executable, "-m", "loopwright_cli", *arguments],
            env=os.environ | gateway | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout) if "json" in arguments else done.stdout

    return run
