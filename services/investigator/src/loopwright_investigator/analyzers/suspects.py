"""Which commits may have caused it: those of the onset's deploy window, ranked by how close their diff comes to where it fails.

Each candidate starts from odds of 1 and is multiplied by the factors of ``factors.py``, each with a reason in words. One more
share is kept for "none of them" (configuration, data, traffic, an older fault), so that the scores are shares of a whole and a lone
innocent commit does not become a certain culprit. The order of the factors' sizes follows work on bug-inducing changes (SZZ: Sliwerski,
Zimmermann and Zeller, MSR 2005; its known false positives, format changes and renames: Kim et al., ASE 2006); their values were set on
the seeded histories of ``tests/unit/investigator/test_suspects_measured.py``, which prints how often the first is right.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import timedelta

from loopwright_repositories.history import Commit

from loopwright_investigator.domain import (
    Candidate,
    Case,
    Evidence,
    Located,
    Onset,
    Place,
    Suspects,
    abbreviated,
    cites,
    line,
)
from loopwright_investigator.factors import NAMED_BY_PERSON, Scored, find_formatting, judge_kinds, judge_places, judge_time, judge_words
from loopwright_investigator.ports import History

COMMITS_MAX = 500  # a deploy with more commits is not told apart by this analysis, and the evidence says that it was cut
DIFFS_MAX = 120  # read in full: all that touch located files first, then the newest
SHOWN_MAX = 12
LOOK_BACK = timedelta(days=30)  # where the last good release is not known
# The share of "none of them", against 20 for a commit that wrote the raising line.
NONE_OF_THEM = {"new": 1.5, "likely": 4.0, "rose": 3.0, "unclear": 10.0}
_SHA = re.compile(r"\b[0-9a-f]{7,40}\b")


async def find_suspects(case: Case, place: Place, located: Located, onset: Onset, history: History, evidence: Evidence) -> Suspects:
    """The candidates with their shares 0..1, best first, and what was ruled out."""
    bad = onset.bad.commit if onset.bad is not None and onset.bad.commit else None
    good = await _last_good(onset, bad, history)
    anchor = bad or history.main
    commits = list(await history.log(anchor, not_in=good, limit=COMMITS_MAX))
    truncated = len(commits) >= COMMITS_MAX
    known = bad is not None and good is not None
    if good is None:
        oldest = onset.first_seen - LOOK_BACK
        newest = onset.first_seen + timedelta(hours=1)
        commits = [commit for commit in commits if oldest <= commit.committed_at and (bad is not None or commit.committed_at <= newest)]
        truncated = False
    window = f"{abbreviated(good)}..{abbreviated(anchor)}" if good else f"{abbreviated(anchor)}, {LOOK_BACK.days} days back"
    scored = {commit.sha: Scored(commit, True) for commit in commits}
    blame_cites = await _blame(located, scored, history, evidence)
    logged = evidence.observe(
        "git.log",
        f"Which commits of {history.name} went live with it? (git log {window})",
        "\n".join(_listed(each) for each in commits[:60]) or "none",
        window=window,
        data={"count": len(commits), "cut": truncated, "good": good, "bad": anchor},
    )
    person = await _named_by_people(case, history) - {onset.commit_from_person}
    for sha in person:
        if sha not in scored and (commit := await history.commit(sha)) is not None:
            scored[sha] = Scored(commit, False)
    aliases = _aliases(located, commits)
    await _read_diffs(scored, aliases, place, history)
    await find_formatting(scored, history)
    judge_kinds(scored, place, aliases)
    await judge_places(scored, located, aliases, history)
    await judge_words(scored, case.signals, located, case.ready.report.input, anchor, history)
    for each in scored.values():
        judge_time(each, onset, known)
        if each.commit.sha in person:
            each.person = True
            each.factor *= NAMED_BY_PERSON
            each.reasons.insert(0, "a person named it")
    base = (logged, *blame_cites, *onset.cites)
    return _ranked(scored, located, onset, known, window, truncated, cites(*base))


def _listed(commit: Commit) -> str:
    return f"{abbreviated(commit.sha)} {commit.committed_at:%Y-%m-%d %H:%M} {line(commit.author_name, 40)}: {line(commit.subject, 120)}"


async def _last_good(onset: Onset, bad: str | None, history: History) -> str | None:
    """The commit of the nearest earlier release that is known, did not show the problem, and differs from the bad one."""
    if onset.bad is None or bad is None:
        return None
    earlier = onset.releases[: onset.releases.index(onset.bad)]
    for release in reversed(earlier):
        if release.commit is None or (release.signals and onset.tie != "rose"):
            continue
        if release.commit == bad:
            return bad if release is earlier[-1] else None  # deployed again without a change of code: nothing is in the window
        return release.commit
    return None


async def _blame(located: Located, scored: dict[str, Scored], history: History, evidence: Evidence) -> tuple[str, ...]:
    """Notes on each candidate which located lines it wrote; adds the commits before the window that wrote the raising line."""
    observed: list[str] = []
    for location in located.locations[:12]:
        if location.line is None:
            continue
        lines = await history.blame(location.path, location.commit, location.line, location.line)
        if not lines:
            continue
        blamed = lines[0]
        at = location.line
        if location.raising or len(observed) < 4:
            observed.append(
                evidence.observe(
                    "git.blame",
                    f"Who last wrote {location.path}:{at}? (git blame -w -M -C -L{at},{at} {abbreviated(location.commit)})",
                    f"{abbreviated(blamed.commit)} {blamed.committed_at:%Y-%m-%d} {line(blamed.author_name, 60)}: "
                    f"{line(blamed.summary, 120)}\n{blamed.text[:300]}",
                    window=abbreviated(location.commit),
                    data={"path": location.path, "line": location.line, "commit": blamed.commit},
                )
            )
        if blamed.commit not in scored:
            if not location.raising:
                continue
            commit = await history.commit(blamed.commit)
            if commit is None:
                continue
            scored[blamed.commit] = Scored(commit, False)
        scored[blamed.commit].blamed.append(location)
    return tuple(observed)


async def _named_by_people(case: Case, history: History) -> set[str]:
    found = set()
    for text in case.ready.report.input[-5:]:
        for word in _SHA.findall(text)[:5]:
            commit = await history.resolve(word)
            if commit is not None:
                found.add(commit)
    return found


def _aliases(located: Located, commits: Sequence[Commit]) -> dict[str, set[str]]:
    """Every name that a located file had within the window -> its name at the release."""
    aliases: dict[str, set[str]] = {}
    for location in located.locations:
        aliases.setdefault(location.path, set()).add(location.path)
    for commit in commits:  # newest first: a name is followed back through its renames
        for file in commit.files:
            if file.old_path and file.path in aliases:
                aliases.setdefault(file.old_path, set()).update(aliases[file.path])
    return aliases


async def _read_diffs(scored: Mapping[str, Scored], aliases: Mapping[str, set[str]], place: Place, history: History) -> None:
    def urgency(each: Scored) -> tuple[bool, bool, bool, float]:
        touches = any(path in aliases for path in each.paths)
        inside = any(path.startswith(place.path + "/") for path in each.paths) if place.path else True
        return (not each.blamed, not touches, not inside, -each.commit.committed_at.timestamp())

    for each in sorted(scored.values(), key=urgency)[:DIFFS_MAX]:
        if not each.commit.is_merge or each.blamed:
            each.diffs = await history.diff(each.commit.sha)


def _ranked(
    scored: Mapping[str, Scored], located: Located, onset: Onset, known: bool, window: str, truncated: bool, base: tuple[str, ...]
) -> Suspects:
    none = NONE_OF_THEM[onset.tie if known else "unclear"] * (1.0 if located.raising is not None else 1.5)
    total = sum(each.factor for each in scored.values()) + none
    ordered = sorted(scored.values(), key=lambda each: (-each.factor, -each.commit.committed_at.timestamp(), each.commit.sha))
    candidates = tuple(
        Candidate(
            commit=each.commit.sha,
            title=line(each.commit.subject),
            author=line(each.commit.author_name, 120),
            author_mail=each.commit.author_mail,
            committed_at=each.commit.committed_at,
            score=round(each.factor / total, 4),
            tier=each.tier,
            reasons=tuple(each.reasons),
            files=tuple(line(file.path) for file in each.commit.files[:100]),
            in_window=each.in_window,
            is_merge=each.commit.is_merge,
            cites=base,
            named_by_person=each.person,
        )
        for each in ordered[:SHOWN_MAX]
        if each.factor / total >= 0.01
    )
    kept = {candidate.commit for candidate in candidates[:1]}
    discarded = tuple(
        (f"{abbreviated(each.commit.sha)} {line(each.commit.subject, 120)}", each.discarded, base)
        for each in ordered
        if each.discarded and each.commit.sha not in kept and (each.blamed or each.touches)
    )[:10]
    in_window = sum(each.in_window for each in scored.values())
    return Suspects(candidates, in_window, known, window, truncated, round(none / total, 4), discarded, base)
