"""The sample's history: real commits, a guilty one among innocent ones, and a revert that applies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Shop = tuple[Path, list[dict[str, Any]]]
Git = Callable[..., str]

FAILING = {
    "exception_type": "ZeroDivisionError",
    "request": {"method": "POST", "url": "http://127.0.0.1:8440/checkout", "query_string": "items=mug:1&currency=JPY", "data": ""},
}


def suite(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder), "-c", os.devnull, "tests"]
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1"}  # the shop needs no plugin
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)


def replay(folder: Path, signals: list[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
    file = folder.parent / "signals.json"
    file.write_text(json.dumps(signals))
    environment = {"PATH": os.environ["PATH"], "LOOPWRIGHT_SIGNALS": str(file), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "replay.py"], cwd=folder, env=environment, capture_output=True, text=True, timeout=30, check=False
    )


def test_the_same_base_time_gives_the_same_commits(shop: Shop, tmp_path: Path, lay_down: Callable[[Path], list[dict[str, Any]]]) -> None:
    assert lay_down(tmp_path / "again") == shop[1]


def test_authors_differ_and_time_only_goes_forward(shop: Shop, git: Git) -> None:
    folder, commits = shop
    times = [int(line) for line in git(folder, "log", "--reverse", "--format=%ct").splitlines()]
    assert times == sorted(times)
    assert len(times) == len(commits) == len(set(times))
    assert len(set(git(folder, "log", "--format=%ae").splitlines())) >= 3


def test_innocent_commits_before_and_after_touch_the_guilty_file(shop: Shop, guilty: str, git: Git) -> None:
    folder, commits = shop
    file = git(folder, "show", "--format=", "--name-only", guilty)
    touching = git(folder, "log", "--reverse", "--format=%H", "--", file).splitlines()
    assert touching.index(guilty) > 0
    assert touching[-1] != guilty
    assert commits[-1]["commit"] != guilty
    first = next(commit for commit in commits if commit["first_release"])
    # The demo's first release is healthy, and its second holds more than the guilty commit.
    assert git(folder, "rev-list", "--count", f"{first['commit']}..{commits[-1]['commit']}") > "1"
    assert guilty in git(folder, "rev-list", f"{first['commit']}..main").splitlines()


def test_every_commit_passes_the_tests_of_its_time(shop: Shop, git: Git) -> None:
    folder, commits = shop
    for commit in commits:
        git(folder, "checkout", "--quiet", "--detach", commit["commit"])
        done = suite(folder)
        assert done.returncode == 0, f"{commit['subject']}: {done.stdout}"


def test_a_reverted_main_keeps_later_work_and_no_longer_fails(shop: Shop, guilty: str, git: Git) -> None:
    folder, _ = shop
    later = git(folder, "show", "main:shop/pricing.py")
    assert replay(folder, [FAILING]).returncode == 1
    git(folder, "revert", "--no-edit", guilty)
    assert replay(folder, [FAILING]).returncode == 0
    assert suite(folder).returncode == 0
    kept = next(line for line in later.splitlines() if "* 10 // 100" in line)
    assert kept in (folder / "shop" / "pricing.py").read_text().splitlines()


def test_the_guilty_commit_is_the_first_that_fails(shop: Shop, guilty: str, git: Git) -> None:
    folder, _ = shop
    git(folder, "checkout", "--quiet", "--detach", f"{guilty}^")
    assert replay(folder, [FAILING]).returncode == 0
    git(folder, "checkout", "--quiet", "--detach", guilty)
    assert replay(folder, [FAILING]).returncode == 1


@pytest.mark.parametrize(
    "signals",
    [
        [],
        [{"exception_type": "ZeroDivisionError", "request": None}],
        [{"exception_type": None, "request": FAILING["request"]}],
    ],
)
def test_a_replay_without_anything_to_replay_says_so(shop: Shop, signals: list[dict[str, Any]]) -> None:
    assert replay(shop[0], signals).returncode == 2


def test_another_failure_than_the_reported_one_does_not_count_as_reproduced(shop: Shop) -> None:
    assert replay(shop[0], [FAILING | {"exception_type": "KeyError"}]).returncode == 0


def test_the_replay_reads_the_contract_of_a_real_signal(shop: Shop) -> None:
    from loopwright_common.contracts.signals import RequestContext

    request = RequestContext(method="POST", url="http://127.0.0.1:8440/checkout", query_string="items=mug:1&currency=KRW")
    done = replay(shop[0], [{"exception_type": "ZeroDivisionError", "request": json.loads(request.model_dump_json())}])
    assert done.returncode == 1, done.stdout


def test_the_manifest_is_one_that_loopwright_reads(shop: Shop) -> None:
    from loopwright_repositories.manifest import parse_manifest

    found = parse_manifest((shop[0] / ".loopwright.yaml").read_bytes())
    assert found.test
    assert found.reproduce == ("python replay.py",)
    assert found.services == {"shop": "shop"}
