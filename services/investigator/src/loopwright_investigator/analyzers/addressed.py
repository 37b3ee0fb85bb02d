"""Whether main already has an answer: the suspect taken back, or the failing lines changed since the newest release that fails."""

from __future__ import annotations

import re
from collections.abc import Sequence

from loopwright_common.contracts.signals import Signal
from loopwright_repositories.diffs import FileDiff
from loopwright_repositories.history import Commit

from loopwright_investigator.code import kind_of, names_in, only_formatting, strip_comment
from loopwright_investigator.domain import Addressed, Evidence, Located, Location, Onset, Suspects, abbreviated, cites, line
from loopwright_investigator.ports import History

COMMITS_MAX = 200
DIFFS_MAX = 40
_FIX = re.compile(r"\b(fix(e[sd])?|bug|hotfix|revert(s|ed)?|regression|repair|resolve[sd]?|close[sd]?)\b", re.IGNORECASE)


async def find_fix(
    report_id: str, signals: Sequence[Signal], located: Located, onset: Onset, suspects: Suspects, history: History, evidence: Evidence
) -> Addressed:
    """The commit on main, not in the newest failing release, that deals with it; ``by`` is empty when there is none.

    Strength: 0.95 for the suspect taken back, 0.8 for changed failing lines with a message that speaks of a fix or the error, 0.6 for
    changed failing lines alone (they may have changed for another reason).
    """
    failing = onset.newest_seen.commit if onset.newest_seen is not None and onset.newest_seen.commit else None
    if failing is None or failing == history.main:
        return Addressed(reason="main has nothing that the failing release lacks" if failing else "the failing release is not known")
    later = list(await history.log(history.main, not_in=failing, limit=COMMITS_MAX))
    observed = evidence.observe(
        "git.log",
        f"What does main have that the failing release lacks? (git log {abbreviated(failing)}..{abbreviated(history.main)})",
        "\n".join(f"{abbreviated(each.sha)} {each.committed_at:%Y-%m-%d %H:%M}: {line(each.subject, 120)}" for each in later[:40])
        or "nothing",
        window=f"{abbreviated(failing)}..{abbreviated(history.main)}",
        data={"count": len(later)},
    )
    taken_back = _reverted(later, suspects)
    if taken_back is not None:
        by, what = taken_back
        reason = f"{abbreviated(by.sha)} on main takes {abbreviated(what)} back; it is not deployed yet"
        return Addressed(by.sha, "reverted", 0.95, reason, cites(observed))
    raising = located.raising
    if raising is None or raising.line is None:
        return Addressed(reason="no commit on main takes the suspect back", cites=cites(observed))
    changed = await _changes_lines(later, raising, failing, history)
    if changed is None:
        return Addressed(reason="main has the same failing lines", cites=cites(observed))
    names = {name for signal in signals for name in names_in(f"{signal.exception_type} {signal.exception_value}")} | {raising.function}
    message = f"{changed.subject}\n{changed.body}"
    speaks = bool(_FIX.search(message)) or report_id in message or bool(names & set(names_in(message)))
    observed_diff = evidence.observe(
        "git.diff",
        f"How did main change the failing lines? (git show {abbreviated(changed.sha)} -- {raising.path})",
        f"{abbreviated(changed.sha)} {line(changed.author_name, 60)}: {line(changed.subject)}",
        window=abbreviated(changed.sha),
        data={"commit": changed.sha, "path": raising.path},
    )
    where = f"{raising.path}:{raising.line}"
    said = f"{abbreviated(changed.sha)} on main (“{line(changed.subject, 80)}”)"
    reason = f"{said} changed {where} after the failing release; it is not deployed yet"
    return Addressed(changed.sha, "lines changed", 0.8 if speaks else 0.6, reason, cites(observed, observed_diff))


def _reverted(later: Sequence[Commit], suspects: Suspects) -> tuple[Commit, str] | None:
    """The commit that takes the first suspect back and has not been taken back itself."""
    first = suspects.first
    if first is None:
        return None
    undone: set[str] = set()
    for each in later:  # newest first
        if each.sha in undone:
            continue
        message = f"{each.subject}\n{each.body}"
        named = re.findall(r"\b[Rr]everts?(?: commit)? ([0-9a-f]{7,64})\b", message)
        undone.update(other.sha for other in later for name in named if other.sha.startswith(name))
        by_title = each.subject in (f'Revert "{first.title}"', f"Revert: {first.title}")
        if any(first.commit.startswith(name) for name in named) or (by_title and not named):
            return each, first.commit
    return None


async def _changes_lines(later: Sequence[Commit], raising: Location, failing: str, history: History) -> Commit | None:
    """The newest commit that changed the raising line's meaning, if main no longer has that line in that function."""
    paths = {raising.path}
    touching: list[Commit] = []
    for each in reversed(later):  # oldest first, to follow renames forward
        if any(file.path in paths or file.old_path in paths for file in each.files):
            touching.append(each)
            paths.update(file.path for file in each.files if file.old_path in paths)
    if not touching or kind_of(raising.path) == "test":
        return None
    start, end = raising.line or 1, raising.line or 1
    for each in reversed(touching[-DIFFS_MAX:]):
        if each.is_merge:
            continue
        for diff in await history.diff(each.sha):
            if (diff.path in paths or diff.old_path in paths) and _touches(diff, raising):
                return each
    for diff in await history.diff(history.main, base=failing, paths=sorted(paths)):
        if diff.status == "deleted" and diff.path == raising.path:
            return touching[-1]
        if any(
            text.kind == "deleted" and text.old_number is not None and start <= text.old_number <= end
            for hunk in diff.hunks
            for text in hunk.lines
        ):
            return None if _is_formatting(diff) else touching[-1]
    return None


def _touches(diff: FileDiff, raising: Location) -> bool:
    """Whether the diff takes the raising line's text away, other than by formatting it."""
    if not raising.text or _is_formatting(diff):
        return False
    wanted = strip_comment(raising.text, raising.path)
    removed = [strip_comment(text.text, diff.path) for hunk in diff.hunks for text in hunk.lines if text.kind == "deleted"]
    added = [strip_comment(text.text, diff.path) for hunk in diff.hunks for text in hunk.lines if text.kind == "added"]
    return removed.count(wanted) > added.count(wanted)


def _is_formatting(diff: FileDiff) -> bool:
    removed = [text.text for hunk in diff.hunks for text in hunk.lines if text.kind == "deleted"]
    added = [text.text for hunk in diff.hunks for text in hunk.lines if text.kind == "added"]
    return only_formatting(removed, added, diff.path)
