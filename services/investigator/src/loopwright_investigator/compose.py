"""Title, summary, claims and hypotheses said from the findings, without a model: short, exact, nothing that was not looked at. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from loopwright_common.contracts.investigations import Claim, Hypothesis

from loopwright_investigator.domain import (
    TEXT_MAX,
    Addressed,
    BlastRadius,
    Case,
    Judgement,
    Located,
    Onset,
    Place,
    Suspects,
    abbreviated,
    cites,
    line,
    plural,
    short,
)

TITLE_MAX = 160


@dataclass(frozen=True)
class Findings:
    """What the analyzers found, together."""

    case: Case
    place: Place
    located: Located
    onset: Onset
    suspects: Suspects
    addressed: Addressed
    reach: BlastRadius
    judgement: Judgement
    priority: str
    metric_cite: str
    main: str = ""


def compose_title(found: Findings) -> str:
    """What fails and where, as one line: ``KeyError: 'currency' in total (shop/cart.py)``."""
    example = next((signal for signal in found.case.signals if signal.exception_type), None)
    raising = found.located.raising or (found.located.locations[0] if found.located.locations else None)
    if example is None:
        return line(found.case.ready.report.title, TITLE_MAX) or "Report without a title"
    what = line(f"{example.exception_type}: {example.exception_value}" if example.exception_value else example.exception_type, 110)
    if raising is None:
        where = f" in {line(example.transaction, 60)}" if example.transaction else ""
    else:
        where = f" in {raising.function} ({raising.path})" if raising.function else f" in {raising.path}"
    return line(what + where, TITLE_MAX)


def compose_summary(found: Findings) -> str:
    """What happens, since when, who is hit, the cause, what can be done, and what was not checked: a sentence each."""
    parts = [_what(found), _since(found), _who(found), _cause(found), _next(found), _unchecked(found)]
    return "\n".join(part for part in parts if part)[:TEXT_MAX]


def compose_claims(found: Findings) -> tuple[Claim, ...]:
    """The statements of the summary that rest on observations, each with those."""
    located, onset, reach, suspects = found.located, found.onset, found.reach, found.suspects
    claims = [
        _claim(_since(found), onset.cites),
        _claim(_who(found), reach.cites),
        _claim(_what(found) if located.locations else "", located.cites),
        _claim(_cause(found), cites(*suspects.cites, *located.cites)),
        _claim(found.addressed.reason if found.addressed.by else "", found.addressed.cites),
        _claim(f"Verdict: {found.judgement.verdict.replace('_', ' ')}. {found.judgement.reason}.", found.judgement.cites),
    ]
    return tuple(claim for claim in claims if claim is not None)


def compose_hypotheses(found: Findings) -> tuple[Hypothesis, ...]:
    """The suspects as explanations: the first kept when the verdict rests on it, the others and the ruled out with why not."""
    kept_first = found.judgement.verdict == "actionable"
    hypotheses: list[Hypothesis] = []
    for position, candidate in enumerate(found.suspects.candidates[:5]):
        statement = f"{abbreviated(candidate.commit)} “{line(candidate.title, 100)}” caused it"
        reason = f"{candidate.score:.0%}: " + ("; ".join(candidate.reasons[:4]) or "nothing speaks for it")
        hypotheses.append(Hypothesis(statement=statement, kept=position == 0 and kept_first, reason=short(reason), cites=candidate.cites))
    for statement, reason, cited in found.suspects.discarded:
        hypotheses.append(Hypothesis(statement=short(f"{statement} caused it"), kept=False, reason=short(reason), cites=cited))
    if found.suspects.considered:
        share = found.suspects.unexplained
        hypotheses.append(
            Hypothesis(
                statement="Something outside the commits caused it: configuration, data, traffic, a dependency",
                kept=share >= 0.5,
                reason=f"{share:.0%} of the weight is left for it",
                cites=cites(*found.suspects.cites, *found.onset.cites),
            )
        )
    return tuple({each.statement: each for each in reversed(hypotheses)}.values())[::-1]


def _claim(statement: str, cited: tuple[str, ...]) -> Claim | None:
    return Claim(statement=short(statement), cites=cited) if statement else None


def _what(found: Findings) -> str:
    raising = found.located.raising
    if raising is not None:
        at = f"{raising.path}:{raising.line}" if raising.line else raising.path
        code = f": {line(raising.text, 160)}" if raising.text else ""
        return f"It fails in {raising.function or 'top-level code'} at {at}{code}."
    if found.located.locations:
        places = ", ".join(dict.fromkeys(location.path for location in found.located.locations[:3]))
        return f"The signals have no stack frame; what they name is in {places}."
    return ""


def _since(found: Findings) -> str:
    onset = found.onset
    began = f"First seen {_time(onset.first_seen)}"
    if onset.bad is None:
        return f"{began}; {onset.reason}."
    live = f", {_minutes(onset.bad.live_from, onset.first_seen)} after {line(onset.bad.name, 80)} went live" if onset.bad.live_from else ""
    return f"{began}{live}; {onset.reason}."


def _who(found: Findings) -> str:
    reach = found.reach
    people = f", {plural(reach.people, 'person')} affected".replace("persons", "people") if reach.people else ""
    share = f", {reach.share:.2%} of {reach.exposure_unit}" if reach.share is not None else ""
    trend = f"; {reach.trend}" if reach.trend != "unknown" else ""
    return f"{plural(reach.signals, 'signal')}{people}{share}{trend}."


def _cause(found: Findings) -> str:
    first = found.suspects.first
    if first is None:
        return ""
    reasons = "; ".join(first.reasons[:3])
    by = f" by {line(first.author, 60)}" if first.author else ""
    return f"First suspect: {abbreviated(first.commit)} “{line(first.title, 100)}”{by} ({first.score:.0%}): {reasons}."


def _next(found: Findings) -> str:
    judgement = found.judgement
    if judgement.verdict == "actionable" and found.suspects.first is not None:
        return f"Change: revert of {abbreviated(found.suspects.first.commit)}, which applies cleanly on main ({abbreviated(found.main)})."
    if judgement.verdict == "already_addressed":
        return f"Already addressed: {judgement.reason}."
    if judgement.verdict == "not_actionable":
        return f"Not actionable: {judgement.reason}."
    return f"Input needed: {judgement.question}"


def _unchecked(found: Findings) -> str:
    missing = []
    if found.case.rates is None:
        missing.append("exact rates")
    elif found.reach.share is None:
        missing.append("the share of requests (the service reports no use)")
    if found.suspects.truncated:
        missing.append("commits beyond the newest 500 of the window")
    if found.judgement.verdict == "actionable":
        missing.append("whether the revert passes the tests")
    return f"Not checked: {', '.join(missing)}." if missing else ""


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M UTC")


def _minutes(earlier: datetime | None, later: datetime) -> str:
    if earlier is None:
        return ""
    seconds = (later - earlier).total_seconds()
    if seconds < 0:
        return "just"
    if seconds < 7_200:
        return f"{max(1, round(seconds / 60))} min"
    return f"{seconds / 3_600:.0f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"
