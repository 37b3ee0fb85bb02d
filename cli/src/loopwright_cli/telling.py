"""Reports, changes and measurements told in words at a terminal. Text from outside is stripped of escapes and markup."""

from __future__ import annotations

import re
from typing import Any

from rich.console import Console
from rich.markup import escape

COMMIT = re.compile(r"\b([0-9a-f]{8})[0-9a-f]{32}\b")
VERDICT_STYLES = {"held": "green", "not_held": "yellow", "worse": "red", "inconclusive": "dim"}


def plain(text: Any) -> str:
    """Text that cannot act on a terminal, with full commit ids cut to eight digits."""
    text = COMMIT.sub(r"\1", str(text))
    return escape("".join(character if character.isprintable() or character == "\n" else "�" for character in str(text)))


def short(sha: str | None) -> str:
    return sha[:8] if sha else "–"


def percent(rate: float | None) -> str:
    return "–" if rate is None else f"{rate:.2%}"


def tell_report(console: Console, report: dict[str, Any], timeline: list[dict[str, Any]]) -> None:
    """A report like an incident note."""
    console.print(f"[bold]{plain(report['priority'] or '··')} {plain(report['title'])}[/]")
    waits = f", waits for {plain(report['waits_for'])}" if report["waits_for"] else ""
    console.print(f"{plain(report['state'])}{waits}")
    kinds = ", ".join(f"{number} {kind.replace('_', ' ')}" for kind, number in report["kinds"].items())
    console.print(
        f"{report['signal_count']} signals ({plain(kinds)}), {report['people_count']} people, since {plain(report['first_seen'])}\n"
    )
    if investigation := report["investigation"]:
        tell_investigation(console, investigation)
    if change := report["change"]:
        tell_change(console, change)
    if measurement := report["measurement"]:
        tell_measurement(console, measurement)
    console.print("[dim]timeline[/]")
    for entry in timeline:
        state = f"{entry['to_state']}: " if entry["to_state"] else ""
        console.print(f"  [dim]{plain(entry['at'][:19])}[/] {plain(state)}{plain(entry['reason'])} [dim]{plain(entry['actor'])}[/]")


def tell_investigation(console: Console, investigation: dict[str, Any]) -> None:
    """Verdict, evidence, suspects."""
    console.print(
        f"[dim]verdict[/] {plain(investigation['verdict'])} ({investigation['confidence']:.0%}): {plain(investigation['reason'])}"
    )
    for claim in investigation["claims"][:8]:
        console.print(f"  · {plain(claim['statement'])} [dim]{plain(' '.join(claim['cites']))}[/]")
    for number, suspect in enumerate(investigation["suspects"][:3], start=1):
        console.print(
            f"  {number}. {short(suspect['commit'])} {plain(suspect['title'])} ({plain(suspect['author'])}, score {suspect['score']:.2f})"
        )
        for reason in suspect["reasons"][:3] if number == 1 else []:
            console.print(f"     {plain(reason)}")
    console.print()


def tell_change(console: Console, change: dict[str, Any]) -> None:
    """The change, its proof and its checks."""
    pull = change["pull_request"]
    console.print(f"[dim]change[/] {plain(change['title'])}: {plain(change['state'])}, {plain(change['proof'] or 'no proof yet')}")
    if pull:
        console.print(f"  pull request #{pull['number']} {plain(pull['url'])}")
    if change["failure"]:
        console.print(f"  {plain(change['failure'])}")
    for check in change["checks"]:
        mark = {"success": "[green]✓[/]", "failure": "[red]✕[/]"}.get(check["conclusion"] or "", "○")
        console.print(f"  {mark} {plain(check['name'])} {plain(check['summary'])}")
    console.print()


def tell_measurement(console: Console, measurement: dict[str, Any]) -> None:
    """Before, after, the ratio with its interval, the verdict."""
    style = VERDICT_STYLES[measurement["verdict"]]
    console.print(f"[dim]measured[/] [{style}]{plain(measurement['verdict']).replace('_', ' ')}[/]: {plain(measurement['reason'])}")
    for name in ("before", "after"):
        if side := measurement[name]:
            interval = f"({percent(side['rate_low'])} to {percent(side['rate_high'])})"
            console.print(f"  {name}: {side['events']} of {side['exposure']:g} {percent(side['rate'])} {interval}")
    if measurement["ratio"] is not None:
        high = "∞" if measurement["ratio_high"] is None else f"{measurement['ratio_high']:.3f}"
        console.print(f"  after ÷ before {measurement['ratio']:.3f}, interval {measurement['ratio_low'] or 0:.3f} to {high}")
    console.print()


# What the matcher and the rules compare, as people say it. "rarest": the weight of the rarest word that both texts hold.
FIGURES = {
    "probability": "probability",
    "score": "score",
    "cosine": "alike in meaning",
    "words_cosine": "alike in words",
    "rarest": "rarest shared word",
    "shared_names": "weight of shared names",
    "same_kind": "same kind",
    "same_service": "same service",
    "same_release": "same release",
    "onset_gap_seconds": "seconds apart",
}
# What spoke most for a pair, by the matcher: told without the figure, whose scale is the matcher's own.
REASONS = {
    "title_share_new": "the titles share rare words",
    "title_share_old": "the titles share rare words",
    "title_cosine": "the titles are alike",
    "title_in_old": "a title's words are in the other text",
    "title_in_new": "a title's words are in the other text",
    "words_share_old": "they use the same words",
    "rarest_2": "they share two rare words",
    "rarest_4": "they share four rare words",
    "title_rarest": "the titles share a rare word",
    "names": "they name the same things",
    "title_names": "a name of a title is in the other text",
    "quotes": "they quote the same",
    "lines": "they hold the same lines",
    "errors": "they tell of the same error",
    "errors_share": "they tell of the same error",
    "title_letters": "the titles are spelled alike",
    "code_cosine": "their code is alike",
}
ACTIONS = {"merge": "merged", "split": "split off", "move": "moved", "never_together": "never together", "undo": "undone"}
NEIGHBOURS_TOLD = 3


def figures(features: dict[str, float], similarity: float) -> str:
    """A pair's figures in a line, each by a name a person understands. Those without one are left to ``-o json``."""
    told = {"cosine": similarity} | features
    found = []
    for name, known in FIGURES.items():
        if name not in told:
            continue
        if name.startswith("same_"):
            if told[name]:  # not "other": one of the two may just not name its own
                found.append(known)
        elif name == "onset_gap_seconds":
            found.append(f"{told[name]:.0f} s apart")
        else:
            found.append(f"{known} {told[name]:.2f}")
    if names := [name.removeprefix("name:") for name in told if name.startswith("name:")]:
        found.append(f"both name {', '.join(names)}")
    found.extend(dict.fromkeys(REASONS[name] for name, value in told.items() if name in REASONS and value > 0))
    return ", ".join(found)


def tell_explanation(console: Console, item: dict[str, Any]) -> None:
    """One signal: what it says, why it is where it is, what it was compared with, and who moved it."""
    signal, decision, moved = item["signal"], item["decision"], item["moved"]
    console.print(f"[bold]{plain(signal['title'])}[/]")
    by = f" from {plain(signal['source'])}" if signal.get("source") else ""
    console.print(f"  {plain(signal['kind'])}{by}, {plain(signal['occurred_at'])} [dim]{plain(signal['id'])}[/]")
    if moved:
        what = ACTIONS.get(moved["action"], moved["action"])
        console.print(
            f"  {plain(what)} here from {plain(moved['from_report_id'])} by {plain(moved['actor'].removeprefix('person:'))}, "
            f"{plain(moved['at'])} [dim]{plain(moved['command_id'])}[/]"
        )
    if item["fingerprint"]:
        console.print(f"  [dim]fingerprint[/] {plain(item['fingerprint'])}")
    if decision is None:
        console.print("  [dim]how it was decided is no longer kept[/]")
        return
    degraded = " [yellow](without the embedding model)[/]" if decision["degraded"] else ""
    rule = decision["rule"].replace("_", " ")
    console.print(f"  {plain(decision['outcome'])} by {plain(rule)}: {plain(decision['reason'])}{degraded}")
    for near in decision["neighbours"][:NEIGHBOURS_TOLD]:
        console.print(
            f"    near “{plain(near['title'])}” [dim]{plain(near['report_id'])}[/]: {plain(figures(near['features'], near['similarity']))}"
        )
    if decision["similar"]:
        console.print(f"    may be the same as {plain(', '.join(decision['similar']))}")


def tell_word(console: Console, word: dict[str, Any]) -> None:
    """What a person said about the grouping, and what came of it."""
    left, other, new = plain(word["report_id"]), plain(word["other_report_id"] or ""), plain(word["new_report_id"] or "")
    sentences = {
        "merge": f"{other} was merged into {left}",
        "split": f"split off {left} into {new or 'a report of its own'}",
        "move": f"moved from {left} to {other}",
        "never_together": f"{left} and {other} never together",
        "undo": "took back what was said",
    }
    parts = [
        f"{number} {name}{'' if number == 1 else 's'}"
        for name, number in (("fingerprint", len(word["fingerprints"])), ("signal", word["signals"]))
        if number
    ]
    what = sentences.get(word["action"], word["action"])
    state = {"asked": "[yellow]asked[/]", "refused": "[red]refused[/]", "undone": "[dim]undone[/]"}.get(word["state"], "[green]done[/]")
    console.print(f"{state} {what}{f' ({plain(told)})' if (told := ', '.join(parts)) else ''}")
    console.print(f"  {plain(word['actor'].removeprefix('person:'))}, {plain(word['at'])} [dim]{plain(word['command_id'])}[/]")
    if word["reason"]:
        console.print(f"  “{plain(word['reason'])}”")
    if word["refusal"]:
        console.print(f"  [red]not done:[/] {plain(word['refusal'])}")
    if word["undone_by"]:
        console.print(f"  [dim]undone by {plain(word['undone_by'])}[/]")
