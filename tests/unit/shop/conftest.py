"""The sample shop's repository, laid down once for all tests that only read it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SAMPLE = Path(__file__).resolve().parents[3] / "examples" / "shop"
NOW = "2026-11-20T12:00:00+00:00"
GUILTY = "Derive the cash rounding from the currency"


@pytest.fixture(scope="session")
def sample() -> Path:
    """The folder of the sample product."""
    return SAMPLE


@pytest.fixture(scope="session")
def lay_down() -> Callable[[Path], list[dict[str, Any]]]:
    """Lays the shop's history down in a folder; the commits, oldest first."""

    def lay(target: Path) -> list[dict[str, Any]]:
        command = [sys.executable, str(SAMPLE / "history.py"), str(target), "--now", NOW]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        return [json.loads(line) for line in done.stdout.splitlines()]

    return lay


@pytest.fixture(scope="session")
def git() -> Callable[..., str]:
    """Runs git in a folder without this machine's configuration; what it printed."""

    def run(folder: Path, *arguments: str) -> str:
        environment = os.environ | {
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_SYSTEM": os.devnull,
            "GIT_AUTHOR_NAME": "A Test",
            "GIT_AUTHOR_EMAIL": "test@shop.example",
            "GIT_COMMITTER_NAME": "A Test",
            "GIT_COMMITTER_EMAIL": "test@shop.example",
        }
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], env=environment, capture_output=True, text=True, check=True, timeout=60
        )
        return done.stdout.strip()

    return run


@pytest.fixture
def shop(tmp_path: Path, lay_down: Callable[[Path], list[dict[str, Any]]]) -> tuple[Path, list[dict[str, Any]]]:
    """(a fresh repository of the shop, its commits); the test may change it."""
    folder = tmp_path / "shop"
    return folder, lay_down(folder)


@pytest.fixture
def guilty(shop: tuple[Path, list[dict[str, Any]]]) -> str:
    """The commit that breaks a share of the orders."""
    return next(str(commit["commit"]) for commit in shop[1] if commit["subject"] == GUILTY)
