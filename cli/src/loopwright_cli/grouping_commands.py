"""Why signals are together, and people's last word on it: ``loopwright reports merge, split, move, ...`` and ``loopwright grouping``."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any

import typer

from loopwright_cli.client import Api, ApiFailed
from loopwright_cli.telling import plain, tell_explanation, tell_word
from loopwright_cli.terminal import DATA, REFUSED, URL, As, Data, Output, Token, Url, api, console, errors, fail, show

grouping_app = typer.Typer(no_args_is_help=True, help="How well signals are put together.")

POLL_SECONDS = 0.25
SETTLED = {"done", "refused", "undone"}

Report = Annotated[str, typer.Argument(metavar="REPORT", help="The report's id.")]
Other = Annotated[str, typer.Argument(metavar="OTHER", help="The other report's id.")]
Signals = Annotated[list[str] | None, typer.Option("--signal", help="A signal that leaves alone; may be repeated.")]
Fingerprints = Annotated[
    list[str] | None,
    typer.Option("--fingerprint", help="A fingerprint that leaves with all its signals, those to come too; may be repeated."),
]
Why = Annotated[str, typer.Option("--comment", "-m", help="Why; kept with the word.")]
Wait = Annotated[float, typer.Option(min=0, max=600, help="Seconds to wait for what comes of it; 0 only asks.")]
# The grouping answers within a second when it runs; a batch with a model to ask may hold a project's flow for some seconds.
WAIT_SECONDS = 15.0
EVALUATION_SECONDS = 90.0  # all pairs are decided anew; the gateway gives the grouping 60 seconds for it


def add_to(reports_app: typer.Typer) -> None:
    """Hangs these commands below ``loopwright reports``."""
    commands: dict[str, Callable[..., None]] = {
        "explain": explain_report, "fingerprints": list_fingerprints, "words": list_words, "merge": merge_reports, "split": split_report,
        "move": move_signals, "never-together": never_together, "undo": undo_word,
    }  # fmt: skip
    for name, command in commands.items():
        reports_app.command(name)(command)


def explain_report(
    report_id: Report,
    fingerprint: Annotated[str, typer.Option(help="Only signals of this fingerprint.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 50,
    url: Url = URL,
    token: Token = "",
    data: Data = DATA,
    output: As = Output.TABLE,
) -> None:
    """Why each of its signals is there, newest first: the rule or the nearest neighbours with their figures, or who put it there."""
    client = api(url, token, data)
    try:
        items = list(client.pages(f"/v1/reports/{report_id}/explain", limit, fingerprint=fingerprint))
        nothing = "" if items or output is Output.JSON else _nothing(client, report_id, fingerprint)
    except ApiFailed as error:
        raise fail(error) from error
    if output is Output.JSON:
        show(items, output)
        return
    if nothing:
        console.print(nothing)
    for item in items:
        tell_explanation(console, item)


def list_fingerprints(
    report_id: Report,
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 50,
    url: Url = URL,
    token: Token = "",
    data: Data = DATA,
    output: As = Output.TABLE,
) -> None:
    """What a report is made of: one line a fingerprint. These are what split and move take."""
    client = api(url, token, data)
    try:
        items = list(client.pages(f"/v1/reports/{report_id}/fingerprints", limit))
        nothing = "" if items or output is Output.JSON else _nothing(client, report_id)
    except ApiFailed as error:
        raise fail(error) from error
    if nothing:
        console.print(nothing)
        return
    columns = {"fingerprint": "fingerprint", "signals": "signals", "kind": "kind", "title": "title", "rule": "rule", "reason": "reason"}
    show(items, output, columns | {"first seen": "first_seen", "last seen": "last_seen"})


def list_words(report_id: Report, url: Url = URL, token: Token = "", data: Data = DATA, output: As = Output.TABLE) -> None:
    """What people said about its grouping, newest first, and what came of it."""
    try:
        words = _words(api(url, token, data), report_id)
    except ApiFailed as error:
        raise fail(error) from error
    if output is Output.JSON:
        show(words, output)
        return
    if not words:
        console.print("nobody has said anything about its grouping")
    for word in words:
        tell_word(console, word)


def merge_reports(
    report_id: Report,
    into: Annotated[str, typer.Argument(metavar="INTO", help="The report that stays.")],
    comment: Why = "",
    wait: Wait = WAIT_SECONDS,
    url: Url = URL,
    token: Token = "",
    data: Data = DATA,
    output: As = Output.TABLE,
) -> None:
    """Puts REPORT's signals, and those to come, into the report INTO."""
    _say(api(url, token, data), report_id, "merge", "merge_into", {"report_id": into, "comment": comment}, wait, output)


def split_report(
    report_id: Report,
    signal_ids: Signals = None,
    fingerprints: Fingerprints = None,
    comment: Why = "",
    wait: Wait = WAIT_SECONDS,
    url: Url = URL,
    token: Token = "",
    data: Data = DATA,
    output: As = Output.TABLE,
) -> None:
    """Gives some signals or fingerprints a report of their own, and keeps them apart."""
    body = _named(signal_ids, fingerprints) | {"comment": comment}
    _say(api(url, token, data), report_id, "split", "split", body, wait, output)


def move_signals(
    report_id: Report,
    to: Annotated[str, typer.Argument(metavar="TO", help="The report they belong to.")],
    signal_ids: Signals = None,
    fingerprints: Fingerprints = None,
    comment: Why = "",
    wait: Wait = WAIT_SECONDS,
    url: Url = URL,
    token: Token = "",
    data: Data = DATA,
    output: As = Output.TABLE,
) -> None:
    """Moves some signals or fingerprints of REPORT to the report TO, and keeps them there."""
    body = _named(signal_ids, fingerprints) | {"report_id": to, "comment": comment}
    _say(api(url, token, data), report_id, "move", "move", body, wait, output)


def never_together(
    report_id: Report,
    other: Other,
    comment: Why = "",
    wait: Wait = WAIT_SECONDS,
    url: Url = URL,
    token: Token = "",
    data: Data = DATA,
    output: As = Output.TABLE,
) -> None:
    """Says that two reports are two problems: nothing puts them together until this is undone."""
    _say(api(url, token, data), report_id, "never_together", "never_together", {"report_id": other, "comment": comment}, wait, output)


def undo_word(
    report_id: Report,
    command_id: Annotated[str, typer.Argument(metavar="COMMAND", help="The word's id, as `loopwright reports words` tells it.")],
    comment: Why = "",
    wait: Wait = WAIT_SECONDS,
    url: Url = URL,
    token: Token = "",
    data: Data = DATA,
    output: As = Output.TABLE,
) -> None:
    """Takes back what was said about a report's grouping."""
    _say(api(url, token, data), report_id, "undo", "undo", {"command_id": command_id, "comment": comment}, wait, output)


def _named(signal_ids: list[str] | None, fingerprints: list[str] | None) -> dict[str, Any]:
    if not signal_ids and not fingerprints:
        errors.print("[red]✗[/] say what leaves: --signal or --fingerprint (`loopwright reports fingerprints` lists them)")
        raise typer.Exit(2)
    return {name: value for name, value in (("signal_ids", signal_ids), ("fingerprints", fingerprints)) if value}


def _nothing(client: Api, report_id: str, fingerprint: str = "") -> str:
    """Why there is nothing to tell of a report's signals."""
    merged_into = client.get(f"/v1/reports/{report_id}")["merged_into"]
    if merged_into:
        return f"{plain(report_id)} was merged into {plain(merged_into)}, and its signals are there"
    return f"no signal of fingerprint {plain(fingerprint)} is on it" if fingerprint else "no signal is on it"


def _words(client: Api, report_id: str) -> list[dict[str, Any]]:
    words: list[dict[str, Any]] = client.get(f"/v1/reports/{report_id}/grouping")["words"]
    return words


def _say(client: Api, report_id: str, action: str, route: str, body: dict[str, Any], wait: float, output: Output) -> None:
    """Asks for it, waits for what comes of it and tells that. A refusal is exit code 4."""
    try:
        known = {word["command_id"] for word in _words(client, report_id)}
        report = client.post(f"/v1/reports/{report_id}/actions/{route}", body)
        word = _outcome(client, report_id, action, body, known, wait)
    except ApiFailed as error:
        raise fail(error) from error
    if output is Output.JSON:
        show(word or report, output)
    elif word is None or word["state"] not in SETTLED:
        console.print(f"asked for; `loopwright reports words {plain(report_id)}` says what came of it")
    elif word["state"] != "refused":
        tell_word(console, word)
    if word is not None and word["state"] == "refused":
        errors.print(f"[red]✗[/] not done: {plain(word['refusal'])}")
        raise typer.Exit(REFUSED)


def _outcome(client: Api, report_id: str, action: str, body: dict[str, Any], known: set[str], wait: float) -> dict[str, Any] | None:
    """The word as it stands once the grouping has carried it out or refused it, or when the time is over. None: it is not listed yet.

    The answer to the asking is the report, which names no command: the word is the one of this action that was not there before.
    """
    deadline = time.monotonic() + wait
    while True:
        words = _words(client, report_id)
        said = next((word for word in words if word["action"] == action and word["command_id"] not in known), None)
        if said is None and action == "undo":
            said = next((word for word in words if word["command_id"] == body["command_id"] and word["state"] == "undone"), None)
        if (said is not None and said["state"] in SETTLED) or time.monotonic() >= deadline:
            return said
        time.sleep(POLL_SECONDS)


@grouping_app.command("evaluate")
def evaluate(
    project: Annotated[str, typer.Argument(help="The project.")],
    version: Annotated[str, typer.Option(help="v1 or v2; by default the version in charge.")] = "",
    url: Url = URL,
    token: Token = "",
    data: Data = DATA,
    output: As = Output.TABLE,
) -> None:
    """How a version of the grouping would decide, by itself, the pairs that people have decided."""
    try:
        found = api(url, token, data, EVALUATION_SECONDS).get(f"/v1/projects/{project}/grouping/evaluation", version=version)
    except ApiFailed as error:
        raise fail(error) from error
    if output is Output.JSON:
        show(found, output)
        return
    if not found["same"] and not found["apart"]:
        console.print(f"people have decided no pair of {plain(project)} yet: a merge, a split, a move or “never together” makes some")
        return
    console.print(f"[bold]{plain(found['version'])}[/] on the pairs that people have decided{_limits(found)}")
    console.print(f"  one problem: {found['same_joined']} of {found['same']} it would put together")
    console.print(f"  two problems: {found['apart'] - found['apart_joined']} of {found['apart']} it would keep apart")
    for pair in found["pairs"]:
        right = pair["same"] == pair["would_join"]
        mark = "[green]✓[/]" if right else "[red]✕[/]"
        console.print(f"{mark} “{plain(pair['title'])}” and “{plain(pair['other_title'])}”")
        verdict = f"{'one' if pair['same'] else 'two'} by a person, {'one' if pair['would_join'] else 'two'} by {found['version']}"
        by = f"probability {pair['probability']:.2f}" if pair["probability"] is not None else "by a rule"
        console.print(f"  [dim]{plain(verdict)} ({by}){': ' if pair['reason'] else ''}{plain(pair['reason'])}[/]")


def _limits(found: dict[str, Any]) -> str:
    said = [text for name, text in (("truncated", "not all pairs"), ("degraded", "without the embedding model")) if found[name]]
    return f" [yellow]({', '.join(said)})[/]" if said else ""


@grouping_app.command("shadow")
def shadow(
    project: Annotated[str, typer.Argument(help="The project.")],
    url: Url = URL,
    token: Token = "",
    data: Data = DATA,
    output: As = Output.TABLE,
) -> None:
    """How the version in shadow decided beside the one in charge."""
    try:
        found = api(url, token, data).get(f"/v1/projects/{project}/grouping/shadow")
    except ApiFailed as error:
        raise fail(error) from error
    if output is Output.JSON:
        show(found, output)
        return
    if not found["shadow"]:
        console.print(f"{plain(found['version'])} decides alone; LOOPWRIGHT_CLUSTER_SHADOW runs another version beside it")
        return
    asked = found["agreed"] + found["differed"]
    share = f" ({found['differed'] / asked:.1%} differed)" if asked else ""
    console.print(
        f"[bold]{plain(found['shadow'])}[/] beside {plain(found['version'])} since {plain(found['since'])}: "
        f"{found['agreed']} decided alike, {found['differed']} otherwise{share}"
    )
    for item in found["differences"]:
        console.print(f"“{plain(item['title'])}” [dim]{plain(item['at'])} {plain(item['signal_id'])}[/]")
        for version, where, why in (
            (found["version"], item["report_id"], item["reason"]),
            (found["shadow"], item["shadow_report_id"], item["shadow_reason"]),
        ):
            console.print(f"  {plain(version)}: {plain(where or 'a new report')}: {plain(why)}")
