"""The loop played on the sample product, from nothing to a verdict, told as it happens.

Everything is the real thing: the services that `up` runs, a shop run from its deployed commit, an unmodified sentry-sdk in it, a forge over
git HTTP. The demo acts only from outside: as the shop's customers, its CD system, an integrator who posts a ticket, and the person on call.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table

from loopwright_cli.client import Api, ApiFailed
from loopwright_cli.stack import FIRST_PORT, NotInstalled, Stack
from loopwright_cli.supervisor import StartFailed, Supervisor
from loopwright_cli.telling import VERDICT_STYLES, percent, plain, short

PROJECT = "shop"
SHOP_PORT_OFFSET = 40
TRAFFIC_SECONDS = 240  # an end of its own, should nobody stop it
PER_SECOND = 25
LOOK_SECONDS = 0.25
STAGE_SECONDS_MAX = 100.0
PERSON_SECONDS_MAX = 24 * 3600.0
HEALTHY_SECONDS = 6.0
STOP_SECONDS_MAX = 5.0
FINGERPRINTS_MAX = 50

TICKET = {
    "kind": "ticket",
    "id": "support-4711",
    "title": "Checkout fails when I pay in yen",
    "body": "Hello, when I go to the checkout of your shop and choose JPY I only get an error page, whatever is in my cart. "
    "In euro the same order works. Please help, I would like to order today.",
    "service": "shop",
    "actor": "customer-1207",
    "links": [{"title": "Ticket 4711", "url": "https://support.shop.example/tickets/4711"}],
}


class DemoFailed(Exception):
    """The loop did not close; the message says where, and what to look at."""


@dataclass
class Stage:
    """A stage of the loop, for the table at the end."""

    name: str
    began: float
    seconds: float = 0.0
    said: str = ""


@dataclass
class Outcome:
    """What the demo saw; tests look here."""

    report: dict[str, Any] = field(default_factory=dict)
    timeline: list[dict[str, Any]] = field(default_factory=list)
    commits: list[dict[str, Any]] = field(default_factory=list)
    guilty: str = ""
    stages: list[Stage] = field(default_factory=list)


class Demo:
    """Plays the loop once. ``supervisor`` runs the stack; ``tell`` prints."""

    def __init__(self, console: Console, supervisor: Supervisor, root: Path, *, person: bool) -> None:
        self.console = console
        self.supervisor = supervisor
        self.stack = supervisor.stack
        self.project = PROJECT  # the name of the project, and of its repository
        self.sample = root / "examples" / "shop"
        self.person = person
        self.api = Api(self.stack.url("gateway"), self.stack.operator_token)
        self.shop_host = "127.0.0.1"  # where the shop listens
        self.shop_url = f"http://127.0.0.1:{self.stack.first_port + SHOP_PORT_OFFSET}"  # where its health is asked
        self.outcome = Outcome()
        self._processes: list[subprocess.Popen[str]] = []
        self._deploys: queue.Queue[dict[str, Any]] = queue.Queue()

    # Telling

    @contextlib.contextmanager
    def stage(self, title: str) -> Iterator[Stage]:
        """A stage with its heading and its time."""
        stage = Stage(title, time.monotonic())
        self.outcome.stages.append(stage)
        self.console.print(f"\n[bold]{len(self.outcome.stages)}. {title}[/]")
        yield stage
        stage.seconds = time.monotonic() - stage.began

    def say(self, text: str) -> None:
        self.console.print(f"   {text}")

    def wait(self, what: str, look: Callable[[], Any], seconds: float = STAGE_SECONDS_MAX) -> Any:
        """The first true answer of ``look``; the stack is looked after meanwhile. Raises DemoFailed."""
        deadline = time.monotonic() + seconds
        last = ""
        with self.console.status(f"   [dim]waiting for {what}[/]"):
            while time.monotonic() < deadline:
                self.supervisor.look_after()
                try:
                    if found := look():
                        return found
                except ApiFailed as error:
                    if error.status not in (0, 404, 503):
                        raise
                    last = error.detail  # a service that was stopped is being started again
                time.sleep(LOOK_SECONDS)
        state = self.outcome.report.get("state", "none yet")
        raise DemoFailed(
            f"gave up waiting for {what} after {seconds:g} s (report: {state}{'; ' + last if last else ''}). Logs: {self.stack.logs}"
        )

    # The loop

    def play(self) -> Outcome:
        """The whole loop. Raises DemoFailed. The shop and its customers go on until ``close``."""
        self._prepare()
        self._regress()
        self._gather()
        self._investigate()
        self._change()
        self._merge()
        self._deploy()
        self._measure()
        self._close()
        return self.outcome

    def close(self) -> None:
        """Stops the shop, its deployer and its customers."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _prepare(self) -> None:
        with self.stage("A product: the shop, in production") as stage:
            source = self.stack.data / "product" / "shop"
            laid = subprocess.run(
                [sys.executable, str(self.sample / "history.py"), str(source)], capture_output=True, text=True, check=True
            )
            self.outcome.commits = [json.loads(line) for line in laid.stdout.splitlines()]
            first = next(commit for commit in self.outcome.commits if commit["first_release"])
            self.outcome.guilty = self.outcome.commits[first["number"] + 1]["commit"]
            self.say(f"{len(self.outcome.commits)} commits of history laid down in {source}")
            self._apply(source, watched=False)
            self._seed(source)
            dsn = self._key(["sentry:write"], "shop")["dsn"]
            self.deploy_key = self._key(["deploys:write"], "")["secret"]
            self.ticket_key = self._key(["signals:write"], "")["secret"]
            self.wait("the forge to hold the repository", self._repository_is_there)
            self._start_deployer(dsn)
            self._send_deployer(f"deploy {first['commit']}")
            self._await_deploy(first["commit"])
            self.say(f"release {short(first['commit'])} is live at {self.shop_url}: “{plain(first['subject'])}”")
            self._apply(source, watched=True)
            self._start_traffic()
            time.sleep(HEALTHY_SECONDS)
            stage.said = f"{PER_SECOND} requests/s, all well"
            self.say(f"customers come, {PER_SECOND} requests a second; nothing is reported")

    def _apply(self, source: Path, *, watched: bool) -> None:
        """Declares the project; its health check only once there is something to watch."""
        project = self._project(source)
        if not watched:
            project["services"][0]["health_checks"] = []
        self.wait("the project to be taken", lambda: self.api.put(f"/v1/projects/{self.project}", project))

    def _seed(self, source: Path) -> None:
        """Brings the shop's history to the forge: here the forge follows the folder by itself."""

    def _project(self, source: Path) -> dict[str, Any]:
        return {
            "name": self.project,
            "title": "The sample shop",
            "repositories": [{"name": self.project, "forge": "local", "source": str(source)}],
            "services": [
                {
                    "name": "shop",
                    "repository": self.project,
                    "health_checks": [
                        {"name": "checkout", "url": f"{self.shop_url}/health/checkout", "interval": 1, "failures_before_signal": 3}
                    ],
                }
            ],
            "promotion": {"minimum_weight": 3, "group_wait": 8},
            "measurement": {"settle": 3, "minimum_window": 12, "maximum_wait": 90},
        }

    def _key(self, scopes: list[str], service: str) -> dict[str, Any]:
        body = {"scopes": scopes, "service": service, "label": "demo"}
        key: dict[str, Any] = self.wait("a key", lambda: self.api.post(f"/v1/projects/{self.project}/keys", body))
        return key

    def _repository_is_there(self) -> bool:
        forge = Api(self.stack.url("forge"), self.stack.secret("forge_read_token"))
        return bool(forge.get(f"/api/v1/repos/{self.project}").get("head_commit"))

    def _start_deployer(self, dsn: str) -> None:
        environment = os.environ | {
            "SHOP_REPOSITORY_TOKEN": self.stack.secret("forge_read_token"),
            "SHOP_DEPLOY_KEY": self.deploy_key,
            "SHOP_SENTRY_DSN": dsn,
        }
        log = (self.stack.logs / "deployer.log").open("a")
        repository = f"{self.stack.url('forge')}/git/{self.project}.git"
        port = str(self.stack.first_port + SHOP_PORT_OFFSET)
        command = [sys.executable, str(self.sample / "deployer.py"), "--repository", repository]
        command += ["--folder", str(self.stack.data / "product" / "deployed"), "--host", self.shop_host]
        command += ["--port", port, "--ingest", self.stack.url("ingest")]
        self._deployer = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
        self._processes.append(self._deployer)

        def read() -> None:
            assert self._deployer.stdout is not None
            for line in self._deployer.stdout:
                self._deploys.put(json.loads(line))

        threading.Thread(target=read, daemon=True).start()

    def _send_deployer(self, command: str) -> None:
        assert self._deployer.stdin is not None
        self._deployer.stdin.write(command + "\n")
        self._deployer.stdin.flush()

    def _await_deploy(self, commit: str) -> None:
        def look() -> bool:
            if self._deployer.poll() is not None:
                log = self.stack.logs / "deployer.log"
                raise DemoFailed(f"the shop's deployer ended; see {log}: {log.read_text(errors='replace')[-300:].strip()}")
            with contextlib.suppress(queue.Empty):
                return bool(self._deploys.get_nowait()["deployed"] == commit)
            return False

        self.wait("the deploy", look)

    def _start_traffic(self) -> None:
        command = [sys.executable, str(self.sample / "traffic.py"), "--url", self.shop_url, "--seed", "7"]
        command += ["--seconds", str(TRAFFIC_SECONDS), "--per-second", str(PER_SECOND)]
        self._processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, text=True))

    def _regress(self) -> None:
        with self.stage("A regression goes out with other changes") as stage:
            main = self.outcome.commits[-1]["commit"]
            self._send_deployer(f"deploy {main}")
            self._await_deploy(main)
            first = next(commit["number"] for commit in self.outcome.commits if commit["first_release"])
            stage.said = f"release {short(main)}"
            self.say(f"release {short(main)} is live, with {len(self.outcome.commits) - first - 1} commits; one of them breaks some orders")

    def _gather(self) -> None:
        with self.stage("Signals arrive, and find together") as stage:
            self.wait("the first exception", lambda: self._with_kinds({"exception"}))
            self.say("an exception from the shop's sentry-sdk")
            ingest = Api(self.stack.url("ingest"), self.ticket_key)
            self.wait("the ticket to be taken", lambda: ingest.post("/v1/signals", TICKET))
            self.say(f"a customer writes: “{plain(TICKET['title'])}”, posted over HTTP")
            self.wait("all three kinds on one report", lambda: self._with_kinds({"exception", "health_check", "ticket"}))
            self._explain()
            kinds = self.outcome.report["kinds"]
            stage.said = ", ".join(f"{number} {kind.replace('_', ' ')}" for kind, number in sorted(kinds.items()))
            self.say(f"one report: [bold]{plain(self.outcome.report['title'])}[/] ({stage.said})")

    def _with_kinds(self, kinds: set[str]) -> bool:
        for row in self.api.get("/v1/reports", project=self.project)["items"]:
            if kinds <= set(row["kinds"]):
                self.outcome.report = self.api.get(f"/v1/reports/{row['id']}")
                return True
        return False

    def _explain(self) -> None:
        told: set[str] = set()
        for item in self.api.pages(f"/v1/reports/{self.outcome.report['id']}/fingerprints", FINGERPRINTS_MAX):
            kind = item["kind"]
            if kind not in told:
                told.add(kind)
                self.say(f"[dim]why the {kind.replace('_', ' ')} is here:[/] {plain(item['reason'])}")

    def _refresh(self) -> dict[str, Any]:
        self.outcome.report = self.api.get(f"/v1/reports/{self.outcome.report['id']}")
        return self.outcome.report

    def _reach(self, *states: str) -> Callable[[], bool]:
        def look() -> bool:
            report = self._refresh()
            if report["state"] in states:
                return True
            if report["state"] in ("needs_input", "not_actionable") and not set(states) & {"needs_input", "not_actionable"}:
                raise DemoFailed(f"the report is {report['state']}: {report['state_reason']} {report['question']}")
            return False

        return look

    def _investigate(self) -> None:
        with self.stage("The investigation") as stage:
            self.wait("the investigation", lambda: self._refresh()["investigation"])
            found = self.outcome.report["investigation"]
            for claim in found["claims"][:6]:
                self.say(f"· {plain(claim['statement'])} [dim]{plain(' '.join(claim['cites']))}[/]")
            for number, suspect in enumerate(found["suspects"][:3], start=1):
                author = plain(suspect["author"])
                self.say(f"{number}. suspect {short(suspect['commit'])} “{plain(suspect['title'])}” by {author}, {suspect['score']:.2f}")
                for reason in suspect["reasons"][:3] if number == 1 else []:
                    self.say(f"     [dim]{plain(reason)}[/]")
            self.say(f"{found['priority']}, {plain(found['verdict'])}: {plain(found['reason'])}")
            first = short(found["suspects"][0]["commit"]) if found["suspects"] else "none"
            stage.said = f"{found['priority']}, {found['verdict']}, suspect {first}"

    def _change(self) -> None:
        with self.stage("The change, made and checked in a sandbox") as stage:
            self.wait("the pull request", self._reach("in_review"))
            change = self.outcome.report["change"]
            pull = change["pull_request"]
            self.console.print(Syntax(self.api.text(f"/v1/changes/{change['id']}/diff"), "diff", background_color="default"))
            for check in change["checks"]:
                mark = {"success": "[green]✓[/]", "failure": "[red]✕[/]"}.get(check["conclusion"] or "", "○")
                self.say(f"{mark} {plain(check['name'])} [dim]{plain(check['summary'])}[/]")
            isolation = ", ".join(sorted({run["isolation"] for run in change["runs"]}))
            self.say(f"pull request #{pull['number']} {plain(pull['url'])}")
            self.say(f"proof [bold]{plain(change['proof'])}[/], run under {plain(isolation)}")
            stage.said = f"#{pull['number']}, {change['proof']}"

    def _merge(self) -> None:
        with self.stage("A person merges") as stage:
            change = self.outcome.report["change"]
            if self.person:
                self.say(f"it waits for you: [bold]{self.stack.inbox_url}[/]")
                self.wait("your merge", self._reach("merged", "measuring", "held"), PERSON_SECONDS_MAX)
                stage.said = "you"
            else:
                body = {"expected_head": change["pull_request"]["head_commit"], "name": "Robin Vale", "email": "robin@shop.example"}

                def ask() -> bool:
                    try:
                        self.api.post(f"/v1/changes/{change['id']}/actions/merge", body)
                    except ApiFailed as error:
                        # Asked before, and the answer was lost with a service that was being restarted.
                        return error.status == 409 and self._refresh()["state"] != "in_review"
                    return True

                self.wait("the merge to be asked for", ask)
                self.wait("the merge", self._reach("merged", "measuring", "held", "not_held", "worse", "inconclusive"))
                stage.said = "Robin Vale, over the API"
            self.say(f"merged as {short(self.outcome.report['change']['merge_commit'])} by {stage.said}")

    def _deploy(self) -> None:
        with self.stage("It is deployed") as stage:
            commit = self.outcome.report["change"]["merge_commit"]
            self._send_deployer("follow")
            self._await_deploy(commit)
            stage.said = f"release {short(commit)}"
            self.say(f"the shop's CD system saw main move: release {short(commit)} is live")

    def _measure(self) -> None:
        with self.stage("Did it help?") as stage:
            self.wait("the measurement to start", lambda: self._refresh()["measurement_started"] or self.outcome.report["measurement"])
            self.wait("the verdict", lambda: self._refresh()["measurement"], 150.0)
            found = self.outcome.report["measurement"]
            for name in ("before", "after"):
                if side := found[name]:
                    interval = f"({percent(side['rate_low'])} to {percent(side['rate_high'])})"
                    self.say(
                        f"{name + ':':<8}{side['events']} failures in {side['exposure']:g} requests, {percent(side['rate'])} {interval}"
                    )
            if found["ratio"] is not None and found["ratio_high"] is not None:
                interval = f"{found['ratio_low']:.3f} to {found['ratio_high']:.3f}"
                self.say(
                    f"after ÷ before {found['ratio']:.3f}, {found['metric']['confidence']:.0%} interval {interval} ({plain(found['test'])})"
                )
            self.say(f"[{VERDICT_STYLES[found['verdict']]}]{found['verdict'].replace('_', ' ')}[/]: {plain(found['reason'])}")
            stage.said = found["verdict"].replace("_", " ")

    def _close(self) -> None:
        with self.stage("The verdict comes back as a signal") as stage:
            self.wait("the verdict's signal", lambda: self._refresh()["kinds"].get("measurement"))
            report_id = self.outcome.report["id"]
            self.outcome.timeline = self.api.get(f"/v1/reports/{report_id}/timeline")
            stage.said = "on its report"
            self.say("it is on the report it came from: the loop is closed")

    def summary(self) -> None:
        """The table at the end: time and cost of each stage."""
        usage = self.wait("the usage", lambda: self.api.get(f"/v1/reports/{self.outcome.report['id']}/usage"))
        costs = {item["stage"]: item["cost"] for item in usage["stages"]}
        by_stage = {"The investigation": "investigate", "The change, made and checked in a sandbox": "change", "Did it help?": "measure"}
        table = Table(box=None, header_style="dim", pad_edge=False)
        for title, justify in (("stage", "left"), ("time", "right"), ("cost", "right"), ("result", "left")):
            table.add_column(title, justify=justify)  # type: ignore[arg-type]
        for stage in self.outcome.stages:
            cost = costs.get(by_stage.get(stage.name, ""))
            money = "" if cost is None else f"${cost['usd']:.2f}, {cost['wall_seconds']:.1f} s of work"
            table.add_row(stage.name, f"{stage.seconds:.1f} s", money, plain(stage.said))
        total = sum(stage.seconds for stage in self.outcome.stages)
        table.add_row(
            "[bold]in all[/]", f"[bold]{total:.1f} s[/]", f"${usage['usd']:.2f}", f"{usage['pull_requests']} pull request metered"
        )
        self.console.print()
        self.console.print(table)


def free_ports(wanted: int) -> int:
    """``wanted``, or the first of a free range when one of its ports is taken."""
    from loopwright_cli.stack import PORT_OFFSETS

    for first in range(wanted, wanted + 2_000, 100):
        for offset in (*PORT_OFFSETS.values(), SHOP_PORT_OFFSET):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", first + offset)) == 0:
                    break
        else:
            return first
    raise DemoFailed(f"no free ports between {wanted} and {wanted + 2_000}")


def run_demo(console: Console, root: Path, *, data: str, first_port: int, person: bool, keep: bool) -> int:
    """Plays the demo; the exit code. 0 only when the verdict's signal came back to its report."""
    folder = Path(data).resolve() if data else Path(tempfile.mkdtemp(prefix="loopwright-demo-"))
    console.print("[bold]Loopwright[/]: a regression in a real program, from its first signals to a measured verdict.")
    console.print("[dim]No model is asked and nothing leaves this machine.[/]")
    started = time.monotonic()
    code = 1
    try:
        stack = Stack(folder, first_port or free_ports(FIRST_PORT), root / ".cache" / "models")
        with Supervisor(stack, lambda text: console.print(f"   [dim]{plain(text)}[/]")) as supervisor:
            console.print(f"   [dim]the stack is up after {time.monotonic() - started:.1f} s[/]")
            with contextlib.closing(Demo(console, supervisor, root, person=person)) as demo:
                demo.play()
                demo.summary()
                code = 0
                console.print(f"\nThe inbox: [bold]{stack.inbox_url}[/]")
                if keep:
                    console.print("Everything is left running; Ctrl-C stops it.")
                    supervisor.watch()
                else:
                    console.print("It stops now. `make demo KEEP=1` leaves everything running, to look around in the inbox.")
    except KeyboardInterrupt:
        console.print("\nstopped")
    except (DemoFailed, StartFailed, NotInstalled, ApiFailed) as error:
        console.print(f"\n[red]✗[/] {plain(error)}")
        code = 1
    finally:
        if code == 0 and not data:
            shutil.rmtree(folder, ignore_errors=True)
        elif code:
            console.print(f"[dim]its data and logs are kept in {folder}[/]")
    return code
