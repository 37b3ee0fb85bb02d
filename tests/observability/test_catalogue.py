"""Dashboards, alerts, documentation and services speak of the same metrics, and Prometheus understands the alerts."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import shutil
import subprocess
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "helm" / "loopwright" / "files"
DASHBOARDS = sorted((FILES / "dashboards").glob("*.json"))
DOCUMENT = (ROOT / "docs" / "observability.md").read_text()
SERVICES = ("common", "ingest", "cluster", "investigator", "pr_agent", "measure", "gateway")
FORBIDDEN_LABELS = {"id", "project", "report_id", "signal_id", "change_id", "message", "url", "path", "reason", "error"}
ALLOWED_LABELS = {"loopwright_cluster_fingerprints_degraded": {"reason"}}  # the setting that limits it: a word of the code's own
NAME = re.compile(r"\bloopwright_[a-z0-9_]+\b")


@pytest.fixture(scope="module")
def exported() -> dict[str, Any]:
    """Every collector that the services register when they are imported, by its name without suffix."""
    for service in SERVICES:
        package = importlib.import_module(f"loopwright_{service}")
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if not module.name.endswith(("__main__", ".env", ".testing.fixtures")) and ".migrations" not in module.name:
                importlib.import_module(module.name)
    collectors = set(REGISTRY._collector_to_names)
    return {collector._name: collector for collector in collectors if getattr(collector, "_name", "").startswith("loopwright_")}


def samples(collector: Any) -> set[str]:
    kinds = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
    return {collector._name + suffix for suffix in kinds[collector._type]}


def expressions() -> list[tuple[str, str]]:
    found = [
        (f"{file.stem}: {panel['title']}", target["expr"])
        for file in DASHBOARDS
        for panel in json.loads(file.read_text())["panels"]
        for target in panel.get("targets", [])
    ]
    rules = yaml.safe_load((FILES / "alerts.yaml").read_text())["groups"]
    return found + [(rule["alert"], rule["expr"]) for group in rules for rule in group["rules"]]


def without_strings(expression: str) -> str:
    return re.sub(r"\"(?:[^\"\\]|\\.)*\"", '""', expression)


def test_dashboards_and_alerts_name_only_metrics_and_labels_that_services_export(exported: dict[str, Any]) -> None:
    by_sample = {sample: collector for collector in exported.values() for sample in samples(collector)}
    assert len(expressions()) > 40
    for where, expression in expressions():
        names = set(NAME.findall(without_strings(expression)))
        assert names or expression.startswith("up{"), where
        assert names <= set(by_sample), (where, names - set(by_sample))
        labels = {label for name in names for label in by_sample[name]._labelnames} | {"le"}
        for listed in re.findall(r"\bby \(([^)]*)\)", expression):
            assert {label.strip() for label in listed.split(",")} <= labels, (where, listed)
        for name, matchers in re.findall(r"(loopwright_[a-z0-9_]+)\{([^}]*)\}", expression):
            assert set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", without_strings(matchers))) <= set(by_sample[name]._labelnames), where


def test_shared_gauges_are_never_summed_over_replicas(exported: dict[str, Any]) -> None:
    shared = {name for name, collector in exported.items() if "Shared by replicas" in collector._documentation}
    assert len(shared) > 10
    for where, expression in expressions():
        for name in set(NAME.findall(expression)) & shared:
            aggregated = re.findall(rf"(\w+)\s*(?:by\s*\([^)]*\)\s*)?\(\s*{name}\b", expression)
            assert aggregated, (where, name)
            assert set(aggregated) == {"max"}, (where, name, aggregated)


def test_the_documentation_lists_exactly_what_is_exported_with_its_labels(exported: dict[str, Any]) -> None:
    rows = re.findall(r"^\| `(loopwright_\w+)` \| ([^|]*)\|(.*)\|$", DOCUMENT, re.MULTILINE)
    documented = {name: [label.strip() for label in labels.split(",") if label.strip()] for name, labels, _ in rows}
    wanted = {
        collector._name + ("_total" if collector._type == "counter" else ""): list(collector._labelnames) for collector in exported.values()
    }
    assert documented == wanted
    shared = {name for name, _, meaning in rows if meaning.strip().startswith("shared")}
    assert shared == {name for name, collector in exported.items() if "Shared by replicas" in collector._documentation}


def test_no_label_could_hold_an_id_or_a_text(exported: dict[str, Any]) -> None:
    found = {name: set(collector._labelnames) & FORBIDDEN_LABELS - ALLOWED_LABELS.get(name, set()) for name, collector in exported.items()}
    assert [name for name, labels in found.items() if labels] == []


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_a_dashboard_is_what_grafana_reads(file: Path) -> None:
    board = json.loads(file.read_text())
    assert board["uid"] == f"loopwright-{file.stem}"
    assert board["title"].startswith("Loopwright: ")
    assert board["schemaVersion"] >= 36
    assert [variable["type"] for variable in board["templating"]["list"]] == ["datasource"]
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert panel["targets"]
            assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_every_alert_says_what_it_is_and_where_to_read_on() -> None:
    headings = {line[4:].strip() for line in DOCUMENT.splitlines() if line.startswith("### ")}
    rules = [rule for group in yaml.safe_load((FILES / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
    for rule in rules:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"]
        assert rule["annotations"]["runbook_url"].endswith(f"docs/observability.md#{rule['alert'].lower()}")
    assert {rule["alert"] for rule in rules} == headings


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        text = "promtool is not installed (Debian: apt-get install prometheus): the alerts were not checked by Prometheus itself"
        warnings.warn(text, stacklevel=1)
        pytest.skip(text)
    return found


def test_prometheus_takes_the_rules(promtool: str) -> None:
    done = subprocess.run([promtool, "check", "rules", str(FILES / "alerts.yaml")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_parses_every_panel(promtool: str, tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:number_{number}", "expr": expression.replace("$__rate_interval", "5m").replace("$__range", "1d")}
        for number, (_, expression) in enumerate(expressions())
    ]
    file = tmp_path / "panels.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run([promtool, "check", "rules", str(file)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_when_they_should_and_once_for_all_replicas(promtool: str, tmp_path: Path) -> None:
    rising = {"series": 'loopwright_consumer_pending{consumer="cluster-signals",stream="SIGNALS",pod="a"}', "values": "0+100x60"}
    rising_too = {**rising, "series": rising["series"].replace('"a"', '"b"')}
    falling = {"series": 'loopwright_consumer_pending{consumer="gateway-groups",stream="GROUPS",pod="a"}', "values": "9000-100x60"}
    buried = {"series": 'loopwright_stream_messages{stream="DEAD",pod="a"}', "values": "0x30 2x30"}
    unknown = {"series": "loopwright_outbox_oldest_seconds", "values": "_x60"}
    cases = [
        ("5m", "LoopwrightConsumerLagGrows", []),
        ("50m", "LoopwrightConsumerLagGrows", [{"severity": "warning", "consumer": "cluster-signals", "stream": "SIGNALS"}]),
        ("20m", "LoopwrightDeadLetters", []),
        ("40m", "LoopwrightDeadLetters", [{"severity": "warning"}]),
        ("50m", "LoopwrightOutboxOld", []),
    ]
    rules = yaml.safe_load((FILES / "alerts.yaml").read_text())
    for rule in rules["groups"][0]["rules"]:
        rule["annotations"] = {}  # promtool compares them word for word
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    test = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [rising, rising_too, falling, buried, unknown],
                "alert_rule_test": [
                    {"eval_time": at, "alertname": name, "exp_alerts": [{"exp_labels": labels} for labels in expected]}
                    for at, name, expected in cases
                ],
            }
        ],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(test))
    done = subprocess.run([promtool, "test", "rules", "test.yaml"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
