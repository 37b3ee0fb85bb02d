"""The ``loopwright`` command.

Exit codes: 0 done; 1 failed; 2 called wrongly; 3 not found; 4 refused or not allowed; 5 the server does not answer.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.syntax import Syntax

from loopwright_cli import grouping_commands
from loopwright_cli.client import Api, ApiFailed
from loopwright_cli.stack import FIRST_PORT, NotInstalled, Stack, find_nats_server
from loopwright_cli.supervisor import StartFailed, Supervisor
from loopwright_cli.telling import plain, tell_measurement, tell_report
from loopwright_cli.terminal import DATA, FAILED, URL, As, Data, Output, Project, Token, Url, api, console, errors, fail, show

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Loopwright: from what a product says about itself to shipped, measured changes.",
    epilog="Exit codes: 0 done; 1 failed; 2 called wrongly; 3 not found; 4 refused or not allowed; 5 the server does not answer.",
)
signals_app = typer.Typer(no_args_is_help=True, help="What comes in.")
reports_app = typer.Typer(no_args_is_help=True, help="What points at one problem.")
changes_app = typer.Typer(no_args_is_help=True, help="What is proposed.")
verdicts_app = typer.Typer(no_args_is_help=True, help="What was measured.")
keys_app = typer.Typer(no_args_is_help=True, help="Keys of the edge.")
for name, group in {
    "signals": signals_app,
    "reports": reports_app,
    "changes": changes_app,
    "verdicts": verdicts_app,
    "keys": keys_app,
    "grouping": grouping_commands.grouping_app,
}.items():
    app.add_typer(group, name=name)
grouping_commands.add_to(reports_app)


def checkout() -> Path | None:
    """The checkout this runs from, where there is one."""
    root = Path(__file__).resolve().parents[3]
    return root if (root / "examples" / "shop" / "history.py").exists() else None


def models() -> Path | None:
    root = checkout()
    return root / ".cache" / "models" if root is not None else None


@app.command()
def up(
    data: Data = DATA,
    port: Annotated[
        int, typer.Option(envvar="LOOPWRIGHT_PORT", help="The first of the ports: the gateway's; the others follow.")
    ] = FIRST_PORT,
) -> None:
    """Runs everything on this machine, in the foreground. Ctrl-C stops it; state stays in the data folder."""
    stack = Stack(data.resolve(), port, models())
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        with Supervisor(stack, lambda text: console.print(f"[dim]·[/] {plain(text)}")) as supervisor:
            console.print(f"\nThe inbox: [bold]{stack.inbox_url}[/]")
            console.print(f"Signals go to {stack.url('ingest')}; logs are in {stack.logs}. Ctrl-C stops everything.\n")
            supervisor.watch()
    except KeyboardInterrupt:
        console.print("\nstopped")
    except (StartFailed, NotInstalled) as error:
        errors.print(f"[red]✗[/] {plain(error)}")
        raise typer.Exit(FAILED) from error


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


@app.command()
def demo(
    pace: Annotated[str, typer.Option(envvar="PACE", help="person: wait for a person to merge in the inbox.")] = "",
    keep: Annotated[str, typer.Option(envvar="KEEP", help="1: leave everything running at the end.")] = "",
    data: Annotated[
        str, typer.Option(envvar="LOOPWRIGHT_DEMO_DATA", help="A folder for this run; by default a new one that is removed.")
    ] = "",
    port: Annotated[int, typer.Option(envvar="LOOPWRIGHT_PORT", help="The first of the ports; by default 8400, or others when taken.")] = 0,
) -> None:
    """Plays the whole loop with a sample product, from a regression to its measured end."""
    from loopwright_cli.demo import run_demo

    root = checkout()
    if root is None:
        errors.print("The sample product is part of the source checkout; run `make demo` there.")
        raise typer.Exit(FAILED)
    signal.signal(signal.SIGTERM, _interrupt)
    code = run_demo(console, root, data=data, first_port=port, person=pace == "person", keep=keep not in ("", "0"))
    raise typer.Exit(code)


@app.command()
def doctor(data: Data = DATA, output: As = Output.TABLE) -> None:
    """Says what is missing on this machine, and the remedy."""
    found = [_check(name, *result) for name, result in _findings(data).items()]
    if output is Output.JSON:
        show(found, output)
    else:
        for item in found:
            mark = {"ok": "[green]✓[/]", "missing": "[red]✗[/]", "limited": "[yellow]![/]"}[item["state"]]
            console.print(f"{mark} {item['name']}: {plain(item['detail'])}")
            if item["remedy"]:
                console.print(f"    {plain(item['remedy'])}")
    if any(item["state"] == "missing" for item in found):
        raise typer.Exit(FAILED)


def _check(name: str, state: str, detail: str, remedy: str = "") -> dict[str, str]:
    return {"name": name, "state": state, "detail": detail, "remedy": remedy}


def _findings(data: Path) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {"python": ("ok", sys.version.split()[0])}
    git = shutil.which("git")
    found["git"] = ("ok", _first_line([git, "--version"])) if git else ("missing", "not found", "apt-get install git")
    try:
        found["nats-server"] = ("ok", _first_line([find_nats_server(), "--version"]))
    except NotInstalled as error:
        found["nats-server"] = ("missing", "not found", str(error))
    detect = subprocess.run([sys.executable, "-m", "loopwright_pr_agent.sandbox.detect"], capture_output=True, text=True, check=False)
    said = (detect.stdout + detect.stderr).strip().splitlines()
    if detect.returncode == 0:
        found["sandbox"] = ("ok", said[0] if said else "holds")
    else:
        found["sandbox"] = ("missing", said[0] if said else "none holds", " ".join(said[1:]) or "apt-get install bubblewrap")
    folder = models()
    model = folder / "minilm-int8" / "manifest.json" if folder else None
    if model is not None and model.exists():
        found["embedding model"] = ("ok", str(model.parent))
    else:
        remedy = "python -m loopwright_cluster.embedding.model_build --out .cache/models/minilm-int8"
        found["embedding model"] = ("limited", "missing: grouping by meaning runs degraded", remedy)
    free = shutil.disk_usage(data if data.exists() else Path.cwd()).free
    low = free < 4 * 1024**3
    found["disk"] = ("limited" if low else "ok", f"{free / 1024**3:.1f} GiB free", "the bus alone may take 2 GiB" if low else "")
    return found


def _first_line(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    return (done.stdout or done.stderr).strip().partition("\n")[0]


@app.command()
def apply(
    file: Annotated[Path, typer.Option("--file", "-f", help="The project's declaration, YAML or JSON; - reads standard input.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    url: Url = URL,
    token: Token = "",
    data: Data = DATA,
    output: As = Output.TABLE,
) -> None:
    """Makes a project what a file says."""
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
        declared = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        errors.print(f"[red]✗[/] {file} cannot be read: {plain(error)}")
        raise typer.Exit(2) from error
    if not isinstance(declared, dict) or not isinstance(declared.get("name"), str):
        errors.print(f"[red]✗[/] {file} declares no project: it needs a name")
        raise typer.Exit(2)
    for repository in declared.get("repositories") or []:
        source = repository.get("source") if isinstance(repository, dict) else None
        if isinstance(source, str) and source and "://" not in source and not source.startswith("git@"):
            base = Path.cwd() if str(file) == "-" else file.resolve().parent
            repository["source"] = str((base / Path(source).expanduser()).resolve())
    try:
        applied = api(url, token, data).put(f"/v1/projects/{declared['name']}", declared, dry_run=dry_run)
    except ApiFailed as error:
        raise fail(error) from error
    if output is Output.JSON:
        show(applied, output)
    else:
        project = applied["project"]
        console.print(f"project {declared['name']} {applied['outcome']}{' (dry run)' if dry_run else ''}, revision {project['revision']}")


@keys_app.command("create")
def create_key(
    project: Annotated[str, typer.Argument(help="The project.")],
    scope: Annotated[list[str], typer.Option(help="signals:write, deploys:write, exposure:write, or sentry:write alone for a DSN.")],
    service: Annotated[str, typer.Option(help="The service that a Sentry DSN's events belong to.")] = "",
    label: Annotated[str, typer.Option(help="What it is for.")] = "",
    url: Url = URL,
    token: Token = "",
    data: Data = DATA,
    output: As = Output.TABLE,
) -> None:
    """Makes a key. Its secret is told this once."""
    try:
        key = api(url, token, data).post(f"/v1/projects/{project}/keys", {"scopes": scope, "service": service, "label": label})
    except ApiFailed as error:
        raise fail(error) from error
    if output is Output.JSON:
        show(key, output)
    else:
        console.print(f"key {key['id']} ({', '.join(key['scopes'])})")
        print(key["dsn"] or key["secret"])


@signals_app.command("send")
def send_signals(
    title: Annotated[str, typer.Option(help="The title of one signal.")] = "",
    kind: Annotated[str, typer.Option(help="ticket, exception, log, alert, issue, custom, ...")] = "custom",
    body: Annotated[str, typer.Option(help="Its text.")] = "",
    service: Annotated[str, typer.Option(help="The service it is about.")] = "",
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Signals as JSON; - reads standard input.")] = None,
    ingest: Annotated[str, typer.Option(envvar="LOOPWRIGHT_INGEST_URL", help="Ingest's address.")] = f"http://127.0.0.1:{FIRST_PORT + 1}",
    key: Annotated[str, typer.Option(envvar="LOOPWRIGHT_KEY", help="A key with signals:write.")] = "",
    output: As = Output.TABLE,
) -> None:
    """Sends one signal, or those of a file."""
    if (file is None) == (not title):
        errors.print("[red]✗[/] give either --title or --file")
        raise typer.Exit(2)
    try:
        if file is not None:
            sent = json.loads(sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8"))
        else:
            sent = {"title": title, "kind": kind, "body": body, "service": service}
        answer = Api(ingest, key).post("/v1/signals", sent)
    except ApiFailed as error:
        raise fail(error) from error
    except (OSError, ValueError) as error:
        errors.print(f"[red]✗[/] {file} cannot be read: {plain(error)}")
        raise typer.Exit(2) from error
    if output is Output.JSON:
        show(answer, output)
    else:
        console.print(f"{answer['accepted']} accepted, {answer['duplicates']} known already, {answer['rejected']} rejected")
        for result in answer["results"]:
            for problem in result["errors"]:
                console.print(f"  {result['index']}{plain(problem['pointer'])}: {plain(problem['detail'])}")
    if answer["rejected"]:
        raise typer.Exit(FAILED)


@reports_app.command("list")
def list_reports(
    project: Project = "",
    state: Annotated[list[str] | None, typer.Option(help="Only these states.")] = None,
    mine: Annotated[bool, typer.Option("--waiting", help="Only what waits for a person.")] = False,
    query: Annotated[str, typer.Option("--query", "-q", help="Words, by meaning and in titles.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 50,
    url: Url = URL,
    token: Token = "",
    data: Data = DATA,
    output: As = Output.TABLE,
) -> None:
    """The reports, most urgent first."""
    try:
        more = {"state": state or None, "waits_for_me": "true" if mine else None, "q": query, "project": project}
        items = list(api(url, token, data).pages("/v1/reports", limit, **more))
    except ApiFailed as error:
        raise fail(error) from error
    columns = {"": "priority", "id": "id", "title": "title", "service": "services", "signals": "signal_count", "people": "people_count"}
    show(items, output, columns | {"state": "state", "waits for": "waits_for"})


@reports_app.command("show")
def show_report(report_id: str, url: Url = URL, token: Token = "", data: Data = DATA, output: As = Output.TABLE) -> None:
    """A report: verdict, cause, change, measurement, timeline."""
    try:
        client = api(url, token, data)
        report, timeline = client.get(f"/v1/reports/{report_id}"), client.get(f"/v1/reports/{report_id}/timeline")
    except ApiFailed as error:
        raise fail(error) from error
    if output is Output.JSON:
        show(report | {"timeline": timeline}, output)
        return
    tell_report(console, report, timeline)


@changes_app.command("list")
def list_changes(
    project: Project = "",
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 50,
    url: Url = URL,
    token: Token = "",
    data: Data = DATA,
    output: As = Output.TABLE,
) -> None:
    """The changes, newest first."""
    try:
        items = list(api(url, token, data).pages("/v1/changes", limit, project=project))
    except ApiFailed as error:
        raise fail(error) from error
    columns = {"id": "id", "state": "state", "title": "title", "proof": "proof", "pull request": "pull_request.url"}
    show(items, output, columns)


@changes_app.command("diff")
def show_diff(change_id: str, url: Url = URL, token: Token = "", data: Data = DATA) -> None:
    """A change as a unified diff."""
    try:
        text = api(url, token, data).text(f"/v1/changes/{change_id}/diff")
    except ApiFailed as error:
        raise fail(error) from error
    if sys.stdout.isatty():
        console.print(Syntax(text, "diff", background_color="default"))
    else:
        sys.stdout.write(text)


@changes_app.command("merge")
def merge_change(
    change_id: str,
    head: Annotated[str, typer.Option(help="The head commit that was looked at; by default the one that is shown now.")] = "",
    name: Annotated[str, typer.Option(help="The name the merge commit bears.")] = "",
    email: Annotated[str, typer.Option(help="And the address.")] = "",
    url: Url = URL,
    token: Token = "",
    data: Data = DATA,
) -> None:
    """Merges a change in your name."""
    try:
        client = api(url, token, data)
        pull = client.get(f"/v1/changes/{change_id}").get("pull_request")
        if pull is None:
            raise ApiFailed(409, "The change has no pull request yet.")
        client.post(f"/v1/changes/{change_id}/actions/merge", {"expected_head": head or pull["head_commit"], "name": name, "email": email})
    except ApiFailed as error:
        raise fail(error) from error
    console.print("asked for the merge; the report's timeline says when it is done")


@changes_app.command("decline")
def decline_change(
    change_id: str,
    comment: Annotated[str, typer.Option("--comment", "-m", help="Why.")],
    url: Url = URL,
    token: Token = "",
    data: Data = DATA,
) -> None:
    """Closes a change's pull request."""
    try:
        api(url, token, data).post(f"/v1/changes/{change_id}/actions/decline", {"comment": comment})
    except ApiFailed as error:
        raise fail(error) from error
    console.print("declined")


@verdicts_app.command("show")
def show_verdict(
    report_id: Annotated[str, typer.Argument(help="A report; without one, the newest verdicts.")] = "",
    project: Project = "",
    url: Url = URL,
    token: Token = "",
    data: Data = DATA,
    output: As = Output.TABLE,
) -> None:
    """What was measured after a change went live."""
    try:
        items = list(api(url, token, data).pages("/v1/verdicts", 50, project=project, report_id=report_id))
    except ApiFailed as error:
        raise fail(error) from error
    if report_id and not items:
        raise fail(ApiFailed(404, f"Report {report_id} has no verdict yet."))
    if output is Output.JSON:
        show(items, output)
        return
    for item in items:
        console.print(f"[bold]{plain(item['report_title'])}[/]")
        tell_measurement(console, item["measurement"])


def main() -> None:
    os.environ.setdefault("PYTHONUTF8", "1")
    app()
