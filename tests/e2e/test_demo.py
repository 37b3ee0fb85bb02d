"""The loop on the sample, by the command that a person types; then a repository of one's own on the same stack."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from loopwright_common.testing.otlp_receiver import LOOP, LOOP_AFTER_THE_MERGE, OtlpReceiver, orphans

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(420)]

GUILTY = "Derive the cash rounding from the currency"
DEMO_SECONDS_MAX = 240.0
INVESTIGATION_SECONDS_MAX = 60.0
Loopwright = Callable[..., Any]


@contextmanager
def demo_left_running(root: Path, data: Path, first_port: int, otlp: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """``make demo KEEP=1`` up to where it has played, with what it said. Traces go to ``otlp``."""
    environment = os.environ | {
        "LOOPWRIGHT_OTLP_ENDPOINT": otlp,
        "KEEP": "1",
        "LOOPWRIGHT_DEMO_DATA": str(data),
        "LOOPWRIGHT_PORT": str(first_port),
        "COLUMNS": "160",
    }
    environment.pop("PACE", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "loopwright_cli", "demo"],
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines: queue.Queue[str] = queue.Queue()
    assert process.stdout is not None
    output = process.stdout

    def read() -> None:
        for line in output:
            lines.put(line)
        lines.put("")

    threading.Thread(target=read, daemon=True).start()
    said: list[str] = []
    try:
        deadline = time.monotonic() + DEMO_SECONDS_MAX
        while not said or "left running" not in said[-1]:
            said.append(lines.get(timeout=max(0.1, deadline - time.monotonic())))
            assert said[-1], "".join(said)
        yield process, said
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


def test_the_loop_closes_on_the_sample_and_a_repository_of_ones_own_is_looked_into(
    root: Path, tmp_path: Path, first_port: int, loopwright: Loopwright, git: Callable[..., str], sandbox_holds: None
) -> None:
    data = tmp_path / "data"
    with OtlpReceiver() as receiver, demo_left_running(root, data, first_port, receiver.endpoint) as (process, said):
        text = "".join(said)
        assert "the loop is closed" in text
        check_the_sample(loopwright, git, data)
        check_the_trace(receiver)
        check_ones_own(loopwright, git, tmp_path)
        pids = {file.stem: int(file.read_text()) for file in (data / "run").glob("*.pid")}
        assert len(pids) == 8
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    left = {name: pid for name, pid in pids.items() if Path(f"/proc/{pid}").exists()}
    assert left == {}


def check_the_sample(loopwright: Loopwright, git: Callable[..., str], data: Path) -> None:
    listed = loopwright("reports", "list", "--project", "shop", "-o", "json")
    assert len(listed) == 1, [row["title"] for row in listed]
    report = loopwright("reports", "show", listed[0]["id"], "-o", "json")
    assert report["state"] == "held"
    assert {"exception", "health_check", "ticket", "measurement"} <= set(report["kinds"])

    explained = {
        item["signal"]["kind"]: item["decision"]
        for item in loopwright("reports", "explain", report["id"], "--limit", "10000", "-o", "json")
    }
    assert {"exception", "health_check", "ticket"} <= set(explained)
    assert all(decision["reason"] for decision in explained.values())
    assert not any(decision["degraded"] for decision in explained.values())

    guilty = git(data / "product" / "shop", "log", "--format=%H", f"--grep=^{GUILTY}$")
    assert report["investigation"]["suspects"][0]["commit"] == guilty
    cited = {observation["id"] for observation in report["investigation"]["evidence"]}
    assert all(set(claim["cites"]) <= cited and claim["cites"] for claim in report["investigation"]["claims"])

    changes = loopwright("changes", "list", "--project", "shop", "-o", "json")
    assert len(changes) == 1
    change = report["change"]
    assert change["proof"] == "reproduced"
    assert change["state"] == "merged"
    runs = {run["step"]: run for run in change["runs"]}
    assert runs
    assert all(run["isolation"] for run in change["runs"])
    tests = [run for step, run in runs.items() if step.endswith("changed.test")]
    assert tests
    assert all(run["exit_code"] == 0 and "passed" in run["output_tail"] for run in tests)
    assert any(run["exit_code"] == 1 for step, run in runs.items() if "baseline.reproduce" in step)
    assert any(run["exit_code"] == 0 for step, run in runs.items() if "changed.reproduce" in step)
    diff = loopwright("changes", "diff", change["id"])
    assert "+CASH_STEPS = {" in diff

    verdict = loopwright("verdicts", "show", report["id"], "-o", "json")[0]["measurement"]
    assert verdict["verdict"] == "held"
    assert verdict["ratio_low"] < verdict["ratio_high"] < 1
    assert verdict["before"]["events"] > 0
    assert verdict["after"]["events"] == 0
    assert "held" in loopwright("verdicts", "show", report["id"])

    states = [entry["to_state"] for entry in report["timeline"] if entry["to_state"]]
    assert [state for state in states if state in ("ready", "in_review", "merged", "measuring", "held")] == [
        "ready",
        "in_review",
        "merged",
        "measuring",
        "held",
    ]
    assert any("Robin Vale" in entry["reason"] or entry["actor"].startswith("person:") for entry in report["timeline"])


def check_the_trace(receiver: OtlpReceiver) -> None:
    """One trace, from the request that brought the signal to the verdict on the change."""
    spans = receiver.wait_for_trace((*LOOP, *LOOP_AFTER_THE_MERGE))
    assert orphans(spans) == []
    assert len([span for span in spans if not span.parent_id]) == 1
    runs = [span for span in spans if span.name == "sandbox run"]
    steps = {str(span.attributes["loopwright.sandbox.step"]) for span in runs}
    assert any("baseline.reproduce" in step for step in steps)
    assert any(step.startswith("verify.") for step in steps)
    assert all(span.attributes["loopwright.sandbox.isolation"] and span.attributes["loopwright.sandbox.outcome"] for span in runs)
    assert all(span.resource["service.version"] and span.resource["service.namespace"] == "loopwright" for span in spans)
    merge = next(span for span in spans if span.name == "pull request merged")
    assert merge.links  # the merge was asked for by a person, in a request of its own
    assert set(merge.links).isdisjoint({merge.trace_id})


FAILING = """
import sys
import sentry_sdk
from billing.invoice import mean

sentry_sdk.init(dsn=sys.argv[1], release=sys.argv[2], environment="production")
for number in range(4):
    with sentry_sdk.new_scope() as scope:
        scope.set_user({"id": f"customer-{number}"})
        try:
            mean([])
        except Exception as error:
            scope.capture_exception(error)
sentry_sdk.flush(10)
"""


def check_ones_own(loopwright: Loopwright, git: Callable[..., str], tmp_path: Path) -> None:
    """A person's repository, declared with ``apply``, its exception sent by sentry-sdk; the change is not safe, so a person is asked."""
    folder = tmp_path / "ledger"
    (folder / "billing").mkdir(parents=True)
    git(folder, "init", "--quiet", "--initial-branch=main", ".")
    module, script = folder / "billing" / "invoice.py", folder / "nightly.py"

    def commit(subject: str, text: str) -> str:
        module.write_text(text)
        git(folder, "add", "--all")
        git(folder, "commit", "--quiet", "--message", subject)
        return git(folder, "rev-parse", "HEAD")

    script.write_text(FAILING)
    commit("Send invoices", "def mean(amounts):\n    if not amounts:\n        return 0\n    return sum(amounts) / len(amounts)\n")
    guilty = commit("Say the mean in one line", "def mean(amounts):\n    return sum(amounts) / len(amounts)\n")
    # Rewrites the guilty line: git cannot take the guilty commit back any more.
    head = commit(
        "Round the mean to cents",
        '"""Invoices."""\n\n\ndef mean(amounts):\n    """The mean amount, in cents."""\n    return round(sum(amounts) / len(amounts), 2)\n',
    )
    declared = tmp_path / "ledger.yaml"
    declared.write_text(
        yaml.safe_dump(
            {
                "name": "ledger",
                "repositories": [{"name": "ledger", "forge": "local", "source": "ledger"}],
                "services": [{"name": "billing", "repository": "ledger"}],
                "promotion": {"minimum_weight": 3, "group_wait": 1},
            }
        )
    )
    loopwright("apply", "-f", str(declared))
    key = loopwright("keys", "create", "ledger", "--scope", "sentry:write", "--service", "billing", "-o", "json")
    deploys = loopwright("keys", "create", "ledger", "--scope", "signals:write", "-o", "json")
    # A new key reaches ingest a moment later; the SDK does not try again.
    wait(lambda: "1 accepted" in try_to_send(loopwright, deploys["secret"]))
    subprocess.run(
        [sys.executable, str(script), key["dsn"], head], cwd=folder, check=True, timeout=60, env=os.environ | {"PYTHONPATH": "."}
    )

    def investigated() -> Any:
        for row in loopwright("reports", "list", "--project", "ledger", "-o", "json"):
            if "exception" in row["kinds"]:
                report = loopwright("reports", "show", row["id"], "-o", "json")
                return report if report["state"] in ("needs_input", "in_review", "not_actionable") else None
        return None

    report = wait(investigated)
    assert report["state"] == "needs_input", report["state_reason"]
    assert report["question"]
    found = report["investigation"]
    assert {found["suspects"][0]["commit"], found["suspects"][1]["commit"]} >= {head}
    assert guilty in {suspect["commit"] for suspect in found["suspects"]}
    assert "billing/invoice.py" in json.dumps(found)
    assert loopwright("changes", "list", "--project", "ledger", "-o", "json") == []


def try_to_send(loopwright: Loopwright, secret: str) -> str:
    try:
        return str(loopwright("signals", "send", "--title", "Nightly run began", "--kind", "log", LOOPWRIGHT_KEY=secret))
    except AssertionError as error:
        return str(error)


def wait(look: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + INVESTIGATION_SECONDS_MAX
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.3)
    raise AssertionError(f"not within {INVESTIGATION_SECONDS_MAX:g} s")
