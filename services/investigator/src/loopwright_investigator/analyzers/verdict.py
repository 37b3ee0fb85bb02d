"""What can be done now. The order of the questions is the order in which a missing answer makes the later ones pointless.

Actionable means that a concrete change exists: one suspect stands out, git can take it back on top of main, nothing was built on it, and
taking it back is safe (small enough, no database migration, no protected path). Everything else asks one question.
"""

from __future__ import annotations

import pathspec

from loopwright_investigator.code import kind_of
from loopwright_investigator.domain import (
    Addressed,
    BlastRadius,
    Candidate,
    Case,
    Evidence,
    Judgement,
    Located,
    Onset,
    Place,
    RevertCheck,
    Suspects,
    abbreviated,
    cites,
    line,
    plural,
)
from loopwright_investigator.ports import History

# Share of the whole that the first suspect must hold, and how far it must be ahead of the second.
ENOUGH = 0.55
ENOUGH_WITHOUT_WINDOW = 0.6
MARGIN = 2.0
FAR_ENOUGH = 0.75  # for a commit that only changed the same file, or where no stack frame says what fails
CLOSE_TIERS = frozenset({"line", "beside", "near", "function", "names"})
# Larger reverts are rewrites: nobody can review in minutes what else they take away.
FILES_MAX = 30
LINES_MAX = 1_000
ADDRESSED_LEAST = 0.6


async def judge(
    case: Case,
    place: Place,
    located: Located,
    onset: Onset,
    suspects: Suspects,
    addressed: Addressed,
    reach: BlastRadius,
    history: History | None,
    evidence: Evidence,
    unreadable: str = "",
) -> Judgement:
    """The verdict with its reason, confidence, and the one question where input is needed."""
    base = cites(*onset.cites, *reach.cites)
    if onset.gone_since is not None and onset.gone_chance is not None:
        reason = (
            f"not seen since {line(onset.gone_since.name, 80)} went live: at the earlier rate the chance of none in so much use is "
            f"{onset.gone_chance:.2g}"
        )
        return Judgement("already_addressed", reason, min(0.95, 1.0 - onset.gone_chance), cites=base)
    if _harmless(case):
        return Judgement("not_actionable", "all signals are informational; nothing failed", 0.8, cites=base)
    if unreadable:
        return _ask(
            f"the repository {place.repository.name if place.repository else ''} cannot be read: {line(unreadable, 300)}",
            f"How can the repository {place.repository.name if place.repository else ''} be read? {line(unreadable, 300)}",
            0.9,
            base,
        )
    if history is None or place.repository is None:
        service = place.service or "the service that sent these signals"
        return _ask(
            f"no repository is configured for {service}",
            f"Which repository holds the code of {service}? Declare it with loopwright apply.",
            0.95,
            base,
        )
    if addressed.by and addressed.strength >= ADDRESSED_LEAST:
        return Judgement("already_addressed", addressed.reason, addressed.strength, cites=cites(*addressed.cites, *base))
    # Frames that lead nowhere are the question to ask first; what a title's words happen to name in the code is not an answer to it.
    # A person who answered that question is taken at their word.
    by_words = bool(located.locations) and (not located.frames_seen or bool(case.ready.report.input))
    placed = located.raising is not None or by_words
    if not placed and not (suspects.first and suspects.first.named_by_person):
        return _no_place(place, located, history, base)
    if onset.bad is None or onset.bad.commit is None:
        said = (
            f"the release {line(onset.bad.name, 80)} names no commit of {history.name}"
            if onset.bad
            else "no signal and no deploy names a release"
        )
        if not (suspects.first and suspects.first.named_by_person):
            return _ask(
                said,
                f"Which commit of {history.name} was running? Send the release with the signals, or its commit with the deploy.",
                0.8,
                cites(*located.cites, *base),
            )
    return await _about_suspect(case, located, onset, suspects, history, evidence, base)


def _ask(reason: str, question: str, confidence: float, cited: tuple[str, ...], revert: RevertCheck | None = None) -> Judgement:
    return Judgement("needs_input", reason, round(confidence, 3), question, revert, cited)


def _harmless(case: Case) -> bool:
    signals = case.signals
    return bool(signals) and all(
        signal.severity.value in ("info", "debug") and signal.kind.value not in ("ticket", "issue", "health_check", "exception")
        for signal in signals
    )


def _no_place(place: Place, located: Located, history: History, base: tuple[str, ...]) -> Judgement:
    cited = cites(*located.cites, *base)
    if located.minified:
        return _ask(
            "the stack frames are of built files without a source map",
            f"Where are the source maps of this build? Without them no frame leads to a file of {history.name}.",
            0.85,
            cited,
        )
    if located.frames_seen and located.third_party_only:
        return _ask(
            "no stack frame is of the product's own code",
            f"Which part of {history.name} uses the library that fails here? All frames are of installed packages.",
            0.8,
            cited,
        )
    if located.frames_seen:
        example = located.unmapped[0] if located.unmapped else "the frames' paths"
        return _ask(
            f"no stack frame maps to a file of {history.name}",
            f"Is this code in {history.name}, and under which folder is it deployed (deployed_path of the service)? {example}",
            0.85,
            cited,
        )
    return _ask(
        f"no signal has a stack frame, and nothing they name is found in {history.name}",
        "Which page, route or function shows the problem?",
        0.85,
        cited,
    )


async def _about_suspect(
    case: Case, located: Located, onset: Onset, suspects: Suspects, history: History, evidence: Evidence, base: tuple[str, ...]
) -> Judgement:
    first = suspects.first
    cited = cites(*suspects.cites, *located.cites, *base)
    where = _where(located)
    if suspects.considered == 0 and suspects.window_known and not (first and first.named_by_person):
        reason = f"no commit went live with {line(onset.bad.name, 80) if onset.bad else 'it'} (git log {suspects.window} is empty)"
        return _ask(reason, f"What else changed when it began: configuration, data, a dependency, or the traffic? {where}", 0.7, cited)
    if first is None:
        return _ask(f"none of {plural(suspects.considered, 'commit')} stands out", f"Which change do you suspect? {where}", 0.6, cited)
    second = suspects.candidates[1] if len(suspects.candidates) > 1 else None
    enough = ENOUGH if suspects.window_known else ENOUGH_WITHOUT_WINDOW
    if first.discarded_by_window(suspects) and not first.named_by_person:
        reason = f"the likeliest commit, {_said(first)}, was live before the problem began"
        return _ask(reason, f"What changed for {_short_where(located)} when it began, if not {_named(first)}?", 1.0 - first.score, cited)
    # Two strong candidates share the whole between them: that is a tie, and a person who knows both changes decides it at a glance.
    tied = second is not None and not second.discarded_by_window(suspects) and first.score < MARGIN * second.score
    if second is not None and tied and first.score + second.score >= enough:
        reason = f"two commits fit about equally: {_said(first)} and {_said(second)}"
        return _ask(reason, f"Is it {_named(first)} or {_named(second)}? {where}", 1.0 - first.score, cited)
    close = first.tier in CLOSE_TIERS and located.raising is not None
    if first.score < enough or (not close and not first.named_by_person and first.score < FAR_ENOUGH):
        reason = f"no commit stands out: the first, {_said(first)}, {first.reasons[0] if first.reasons else 'is only the newest'}"
        return _ask(reason, f"What changed for {_short_where(located)} when it began, if not {_named(first)}?", 1.0 - first.score, cited)
    return await _can_be_reverted(case, first, suspects, history, evidence, cited)


async def _can_be_reverted(
    case: Case, first: Candidate, suspects: Suspects, history: History, evidence: Evidence, cited: tuple[str, ...]
) -> Judgement:
    check = await history.revert(first.commit, history.main)
    observed = evidence.observe(
        "git.revert",
        f"Can {abbreviated(first.commit)} be taken back on main? (git revert {abbreviated(first.commit)} on {abbreviated(history.main)})",
        _revert_said(check),
        window=abbreviated(history.main),
        data={
            "commit": first.commit,
            "clean": check.clean,
            "conflicts": list(check.conflicts[:20]),
            "files": list(check.files[:50]),
            "changed_lines": check.changed_lines,
            "dangling": [list(pair) for pair in check.dangling[:20]],
        },
    )
    cited = cites(observed, *cited)
    obstacle = _obstacle(case, first, check)
    reasons = "; ".join(first.reasons[:3])
    if check.clean and check.empty:
        return Judgement(
            "already_addressed",
            f"main has nothing of {_said(first)} any more; it is not deployed yet",
            0.85 * first.score,
            revert=check,
            cites=cited,
        )
    if obstacle:
        why, question = obstacle
        return _ask(f"the cause is most likely {_said(first)} ({reasons}), but {why}", question, first.score, cited, check)
    reason = f"{_said(first)}: {reasons}. Git takes it back cleanly on main, and nothing later uses what it added"
    return Judgement("actionable", reason, first.score, revert=check, cites=cited)


def _revert_said(check: RevertCheck) -> str:
    if check.empty:
        return "It has no effect: " + check.reason
    if check.clean:
        text = f"Yes, cleanly: {plural(len(check.files), 'file')}, {plural(check.changed_lines, 'line')} ({', '.join(check.files[:8])})."
        if check.dangling:
            text += " But still used afterwards: " + ", ".join(f"{name} in {path}" for name, path in check.dangling[:8]) + "."
        return text
    return f"No: {check.reason}." + (f" Conflicts in {', '.join(check.conflicts[:8])}." if check.conflicts else "")


def _obstacle(case: Case, first: Candidate, check: RevertCheck) -> tuple[str, str] | None:
    """Why taking it back is not a safe change, and what to ask then."""
    short = abbreviated(first.commit)
    if not check.clean:
        at = f" in {', '.join(check.conflicts[:3])}" if check.conflicts else ""
        return (
            f"git cannot take it back on main: {check.reason}{at}",
            f"What should replace the change of {short}{at}, now that later code builds on it?",
        )
    if check.dangling:
        name, path = check.dangling[0]
        return f"later code was built on it: {name} is used in {path}", f"What should {path} use instead of {name} from {short}?"
    migrations = [path for path in (*check.files, *first.files) if kind_of(path) == "migration"]
    if migrations:
        return f"it has the database migration {migrations[0]}", f"How is the data of {migrations[0]} ({short}) brought back safely?"
    patterns = [pattern for repository in (case.config.repositories if case.config else ()) for pattern in repository.protected_paths]
    protected = next(iter(pathspec.PathSpec.from_lines("gitignore", patterns).match_files(check.files)), None) if patterns else None
    if protected is not None:
        return f"it touches the protected path {protected}", f"Who may change {protected}? It is protected, and {short} touches it."
    if len(check.files) > FILES_MAX or check.changed_lines > LINES_MAX:
        size = f"{plural(len(check.files), 'file')} and {plural(check.changed_lines, 'line')}"
        return (
            f"taking it back changes {size}, too much for one safe change",
            f"Which part of {short} should be taken back? The whole is {size}.",
        )
    return None


def _said(candidate: Candidate) -> str:
    return f"{abbreviated(candidate.commit)} “{line(candidate.title, 100)}” ({candidate.score:.0%})"


def _named(candidate: Candidate) -> str:
    return f"{abbreviated(candidate.commit)} (“{line(candidate.title, 80)}”)"


def _short_where(located: Located) -> str:
    raising = located.raising or (located.locations[0] if located.locations else None)
    return f"{raising.path}:{raising.line}" if raising is not None and raising.line else raising.path if raising is not None else "this"


def _where(located: Located) -> str:
    return f"It fails at {_short_where(located)}." if located.locations else ""
