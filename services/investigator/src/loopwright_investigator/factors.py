"""What speaks for and against a commit: factors, each with its reason in words. ``analyzers.suspects`` says how they come together."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from loopwright_common.contracts.signals import Signal
from loopwright_repositories.diffs import FileDiff
from loopwright_repositories.history import Commit

from loopwright_investigator.code import enclosing_function, function_named, kind_of, names_in, only_formatting, same_code, strip_comment
from loopwright_investigator.domain import Located, Location, Onset, Place, abbreviated, line
from loopwright_investigator.ports import History

FORMATTED_FILES_MAX = 30  # a reformatting of the whole repository is one by its first files
# What was taken away stands in no blame: a pure deletion right before the failing line is nearly as telling as having written it.
TIERS = {"line": 20.0, "beside": 16.0, "near": 12.0, "names": 10.0, "function": 8.0, "file": 1.5, "path": 0.3, "none": 0.05}
CLOSE_TIERS = ("line", "beside", "near", "function")
NEAR_LINES = 3
NAMES_LEAST = 0.4  # of one name: half of a rare name of the error's own text
TERMS_MAX = 24
WORDS_MOST = 4.5  # at most this factor from names shared with the error
FORMATTING = 0.02
NO_EFFECT = 0.02  # tests, documentation, automation
TAKEN_BACK = 0.03
MERGE = 0.05  # its commits are candidates themselves
ELSEWHERE = 0.3  # another service's folder
RENAMED = 0.1
NAMED_BY_PERSON = 30.0
# Before the last good release: that release had the commit and did not fail.
BEFORE_WINDOW = {"new": 0.02, "likely": 0.15, "rose": 0.1, "unclear": 0.5}
RECENCY_DAYS = 7.0  # where no good release is known, the odds fall by e in a week
_REVERTS = re.compile(r"\b[Rr]everts?(?: commit)? ([0-9a-f]{7,40})\b")
_IMPORT_ERRORS = ("ImportError", "ModuleNotFoundError", "AttributeError", "NoSuchMethodError", "NoClassDefFoundError", "Cannot find module")


@dataclass
class Scored:
    """A candidate while it is being judged: odds 1 times the factors, with the reasons."""

    commit: Commit
    in_window: bool
    tier: str = "none"
    factor: float = 1.0
    place: float = 1.0  # the part of the factor that the place gave
    reasons: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    diffs: Sequence[FileDiff] = ()
    blamed: list[Location] = field(default_factory=list)
    formatted: frozenset[str] = frozenset()  # files in which nothing but the formatting changed
    discarded: str = ""
    touches: bool = False  # a located file, whatever it did there
    person: bool = False

    @property
    def paths(self) -> set[str]:
        return {each.path for each in self.commit.files} | {each.old_path for each in self.commit.files if each.old_path}


def judge_kinds(scored: Mapping[str, Scored], place: Place, aliases: Mapping[str, set[str]]) -> None:
    """What kind of change it is: factors below 1 for what cannot or will hardly have an effect in production."""
    taken_back: dict[str, str] = {}
    for each in scored.values():
        for named in _REVERTS.findall(f"{each.commit.subject}\n{each.commit.body}"):
            target = next((sha for sha in scored if sha.startswith(named)), None)
            if target is not None and target != each.commit.sha and scored[target].in_window and each.in_window:
                taken_back[target] = each.commit.sha
    for each in scored.values():
        kinds = {kind_of(path) for path in each.paths}
        touched = each.touches = any(path in aliases for path in each.paths)
        code = [diff for diff in each.diffs if kind_of(diff.path) not in ("test", "docs", "automation")]
        if each.commit.is_merge and not each.blamed:
            _lower(each, MERGE, "a merge: its commits are listed by themselves")
        elif kinds and kinds <= {"test", "docs", "automation"}:
            _lower(each, NO_EFFECT, f"changes only {' and '.join(sorted(kinds))}")
        elif each.diffs and code and all(diff.path in each.formatted for diff in code):
            _lower(each, FORMATTING, "changes only white space, comments or formatting")
        elif each.diffs and code and all(diff.status == "renamed" and not diff.added and not diff.deleted for diff in code):
            _lower(each, RENAMED, "only moves files")
        if each.commit.sha in taken_back:
            _lower(each, TAKEN_BACK, f"taken back by {abbreviated(taken_back[each.commit.sha])} before the release")
        elif each.commit.sha in taken_back.values():
            _lower(each, TAKEN_BACK, "only takes back a commit of the same release")
        if place.path and not touched and each.paths and not any(path.startswith(place.path + "/") for path in each.paths):
            each.factor *= ELSEWHERE
            each.reasons.append(f"touches nothing under {place.path}")


def _lower(each: Scored, factor: float, reason: str) -> None:
    each.factor *= factor
    each.reasons.append(reason)
    each.discarded = each.discarded or reason


async def find_formatting(scored: Mapping[str, Scored], history: History) -> None:
    """Notes the files in which nothing but the formatting changed."""
    for each in scored.values():
        if each.commit.parents:
            each.formatted = frozenset(
                [diff.path for diff in each.diffs[:FORMATTED_FILES_MAX] if await _formatting(diff, each.commit, history)]
            )


async def _formatting(diff: FileDiff, commit: Commit, history: History) -> bool:
    if diff.is_binary or diff.status in ("added", "deleted"):
        return False
    removed = [text.text for hunk in diff.hunks for text in hunk.lines if text.kind == "deleted"]
    added = [text.text for hunk in diff.hunks for text in hunk.lines if text.kind == "added"]
    if not (removed or added) or not only_formatting(removed, added, diff.path):
        return False
    old = await history.text(diff.old_path or diff.path, commit.parents[0])
    new = await history.text(diff.path, commit.sha)
    return old is not None and new is not None and same_code(old, new, diff.path)


async def judge_places(scored: Mapping[str, Scored], located: Located, aliases: Mapping[str, set[str]], history: History) -> None:
    """How close the diff comes to the located places; the best place decides, others add a little."""
    folders = {location.path.rsplit("/", 1)[0] for location in located.locations[:6] if "/" in location.path}
    for each in scored.values():
        best, best_tier, best_reason = TIERS["none"] if located.locations else 1.0, "none", ""
        others = 0.0
        for location in located.locations:
            tier, reason = await _tier(each, location, aliases, history)
            if tier == "none":
                continue
            strength = 1.0 + (TIERS[tier] - 1.0) * max(location.weight, 0.02)
            if tier in CLOSE_TIERS:
                others += location.weight
            if strength > best:
                best, best_tier, best_reason = strength, tier, reason
        if best_tier == "none" and any(path.rsplit("/", 1)[0] in folders for path in each.paths):
            best, best_tier, best_reason = TIERS["path"], "path", "touches the same folder"
        each.tier = best_tier
        each.place = best
        each.factor *= best * (1.0 + 0.1 * min(others, 2.0))
        if best_reason:
            each.reasons.insert(0, best_reason)


async def _tier(each: Scored, location: Location, aliases: Mapping[str, set[str]], history: History) -> tuple[str, str]:
    where = "the raising line" if location.raising else "a line of the stack" if location.from_frame else "a line that the signals name"
    if any(blamed.path == location.path and blamed.line == location.line for blamed in each.blamed):
        return "line", f"wrote {where}, {location.path}:{location.line}"
    names = {name for name, targets in aliases.items() if location.path in targets}
    if not names & each.paths:
        return "none", ""
    if all(path in each.formatted for path in names & each.paths):
        return "none", ""
    for diff in each.diffs:
        if (diff.path not in names and diff.old_path not in names) or diff.path in each.formatted:
            continue
        changed = _changed_positions(diff)
        lines = await history.text(diff.path, each.commit.sha)
        if lines is None or not changed:
            break
        at = _same_line(lines, location)
        if at is not None and at in _removed_before(diff):
            return "beside", f"took code away right before {where}, {location.path}:{location.line}"
        if at is not None and any(abs(number - at) <= NEAR_LINES for number in changed):
            return "near", f"changed code within {NEAR_LINES} lines of {where}, {location.path}:{location.line}"
        extent = enclosing_function(lines, at, diff.path, location.function) if at is not None else None
        extent = extent or function_named(lines, location.function, diff.path)
        if extent is not None and any(extent[0] <= number <= extent[1] + 1 for number in changed):
            name = f"{location.function}()" if location.function else "the function"
            return "function", f"changed {name} in {location.path}, which {'raises' if location.raising else 'is involved'}"
    return "file", f"changed {location.path}, {'where it is raised' if location.raising else 'which is involved'}"


def _removed_before(diff: FileDiff) -> set[int]:
    """Line numbers in the new file right before which code was taken away and nothing put in its place."""
    found: set[int] = set()
    for hunk in diff.hunks:
        for before, after in pairwise(hunk.lines):
            if before.kind == "deleted" and after.kind == "context" and after.new_number and strip_comment(before.text, diff.path):
                found.add(after.new_number)
    return found


def _changed_positions(diff: FileDiff) -> list[int]:
    """Line numbers in the new file where something was added, or before which something was taken away."""
    found = []
    for hunk in diff.hunks:
        next_number = hunk.new_start
        for text in hunk.lines:
            if text.new_number is not None:
                next_number = text.new_number + 1
                if text.kind == "added" and text.text.strip():
                    found.append(text.new_number)
            elif text.text.strip():
                found.append(next_number)
    return found


def _same_line(lines: Sequence[str], location: Location) -> int | None:
    """Where the located line stands in another version of the file: the nearest with the same text."""
    if not location.text or location.line is None or len(location.text) < 4:
        return None
    positions = [number for number, text in enumerate(lines, start=1) if text.strip() == location.text]
    return min(positions, key=lambda number: abs(number - (location.line or 1))) if positions else None


async def judge_words(
    scored: Mapping[str, Scored], signals: Sequence[Signal], located: Located, said: Sequence[str], anchor: str, history: History
) -> None:
    """Names that the error speaks of, found in the changed lines.

    A name that many files hold or many commits change tells little (inverse document frequency, Sparck Jones 1972). A commit that alone
    changes a rare name of the error's own text is suspect wherever it is: it may have changed what the failing code is handed.
    """
    terms = await _terms(signals, located, said, anchor, history)
    changed: dict[str, set[str]] = {}
    for sha, each in scored.items():
        for diff in each.diffs:
            if kind_of(diff.path) not in ("code", "migration", "dependencies") or diff.is_binary or diff.path in each.formatted:
                continue
            for hunk in diff.hunks:
                for changed_line in hunk.lines:
                    if changed_line.kind != "context":
                        each.names.update(names_in(changed_line.text[:1_000]))
        for name in each.names & terms.keys():
            changed.setdefault(name, set()).add(sha)
    import_error = any(sign in f"{signal.exception_type} {signal.exception_value}" for signal in signals for sign in _IMPORT_ERRORS)
    rare = max(3, len(scored) // 3)
    for sha, each in scored.items():
        told = sorted(
            ((terms[name] / len(owners), name) for name, owners in changed.items() if sha in owners and len(owners) <= rare), reverse=True
        )
        total = min(1.5, sum(weight for weight, _ in told))
        if total < 0.1:
            continue
        own = 1.0 + (TIERS["names"] - 1.0) * min(1.0, total)
        if each.place < own and told[0][0] >= NAMES_LEAST:
            each.factor *= own / each.place
            each.place = own
            each.tier = each.tier if each.tier in CLOSE_TIERS else "names"
        each.factor *= 1.0 + (WORDS_MOST - 1.0) * total / 1.5
        each.reasons.insert(
            1 if each.tier not in ("none", "names") else 0,
            f"changes lines with {', '.join(name for _, name in told[:3])}, which the error names",
        )
        if import_error and any(kind_of(path) == "dependencies" for path in each.paths):
            each.factor *= 3.0
            each.reasons.append("changes dependencies, and the error is about something that is not there")


async def _terms(signals: Sequence[Signal], located: Located, said: Sequence[str], anchor: str, history: History) -> dict[str, float]:
    """What to look for in changed lines, with its weight: by where it is from, and how few files hold it."""
    terms: dict[str, float] = {}

    def add(text: str, weight: float) -> None:
        for name in names_in(text)[:30]:
            terms[name] = max(weight, terms.get(name, 0.0))

    for signal in signals:
        add(signal.exception_value[:500], 1.0)
        if not signal.frames:
            add(f"{signal.title} {signal.body[:1_000]}", 0.3)
    if located.raising is not None:
        add(located.raising.text, 0.5)
    for location in located.locations[:6]:
        add(location.function, 0.3)
    for text in said[-5:]:
        add(text, 0.8)
    heaviest = sorted(terms, key=lambda name: (-terms[name], name))[:TERMS_MAX]
    weighed = {}
    for name in heaviest:
        holding = {hit.path for hit in await history.grep(name, anchor, word=True, limit=200) if kind_of(hit.path) == "code"}
        weighed[name] = terms[name] * (1.0 if len(holding) <= 3 else 0.5 if len(holding) <= 8 else 0.15)
    return weighed


def judge_time(each: Scored, onset: Onset, window_known: bool) -> None:
    """When it went live, or how old it is where that is not known."""
    if not each.in_window:
        # Without a good release there is no "before": the age alone speaks.
        each.factor *= BEFORE_WINDOW[onset.tie] if window_known else 0.5
        reason = "live before the problem began" if window_known else "older than the time that was looked at"
        each.reasons.append(reason)
        each.discarded = each.discarded or reason
    if window_known and each.in_window and onset.bad is not None:
        each.reasons.append(f"went live with {line(onset.bad.name, 80)}, in which the problem began")
    if not window_known:
        days = max(0.0, (onset.first_seen - each.commit.committed_at).total_seconds() / 86_400)
        each.factor *= max(0.02, math.exp(-days / RECENCY_DAYS))
        each.reasons.append(f"committed {_ago(days)} before the first signal")


def _ago(days: float) -> str:
    if days < 1 / 24:
        return f"{max(1, round(days * 1_440))} min"
    return f"{days * 24:.0f} h" if days < 2 else f"{days:.0f} days"
