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
