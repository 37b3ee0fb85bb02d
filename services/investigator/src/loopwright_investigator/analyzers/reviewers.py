"""Who should look at a change here: the owners that the repository names, those who wrote the lines, those who worked on them lately."""

from __future__ import annotations

from collections import Counter

from loopwright_common.contracts.investigations import Reviewer

from loopwright_investigator.domain import Evidence, Located, Suspects, abbreviated, cites, line, plural
from loopwright_investigator.ports import History

REVIEWERS_MAX = 6
FILES_MAX = 5
LOG_MAX = 30
_BOTS = ("[bot]", "dependabot", "renovate", "github-actions")


async def find_reviewers(located: Located, suspects: Suspects, history: History, evidence: Evidence) -> tuple[Reviewer, ...]:
    """Owners first, then authors by how many of the failing function's lines are theirs, then recent authors of its files."""
    first = suspects.first
    weighed = Counter[str]()
    for location in located.locations:
        weighed[location.path] += 1
    paths = [located.raising.path] if located.raising is not None else []
    paths += [path for path, _ in weighed.most_common(FILES_MAX) if path not in paths]
    if first is not None and not paths:
        paths = [path for path in first.files if path in await history.files(history.main)]
    paths = paths[:FILES_MAX]
    if not paths:
        return ()
    reasons: dict[str, list[str]] = {}
    for path in paths:
        for owner in (await history.owners(path))[:5]:
            reasons.setdefault(line(owner, 120), []).append(f"owns {path} (CODEOWNERS)")
    lines, authors, recent = await _who_wrote(located, paths, history)
    for name, count in authors.most_common(3):
        reasons.setdefault(name, []).append(f"wrote {count} of {plural(lines, 'line')} of the failing function")
    for name, count in recent.most_common(3):
        reasons.setdefault(name, []).append(f"{plural(count, 'recent commit')} to {paths[0]}")
    if first is not None and first.author:
        reasons.setdefault(first.author, []).append(f"wrote the suspect {abbreviated(first.commit)}; somebody else should review it too")
    names = [name for name in reasons if name and not any(sign in name.lower() for sign in _BOTS)]
    observed = evidence.observe(
        "reviewers",
        f"Who knows {', '.join(paths[:3])}? (CODEOWNERS; git blame; git log -{LOG_MAX})",
        "\n".join(f"{name}: {'; '.join(reasons[name])}" for name in names[:REVIEWERS_MAX]) or "nobody is named",
        data={"paths": paths},
    )
    return tuple(
        Reviewer(name=name, reason=f"{'; '.join(dict.fromkeys(reasons[name]))} [{first_id(cites(observed))}]")
        for name in names[:REVIEWERS_MAX]
    )


def first_id(ids: tuple[str, ...]) -> str:
    """The first id, or a dash."""
    return ids[0] if ids else "-"


async def _who_wrote(located: Located, paths: list[str], history: History) -> tuple[int, Counter[str], Counter[str]]:
    authors: Counter[str] = Counter()
    raising = located.raising
    if raising is not None and raising.start is not None and raising.end is not None:
        for blamed in await history.blame(raising.path, raising.commit, raising.start, min(raising.end, raising.start + 300)):
            if blamed.text.strip():
                authors[line(blamed.author_name, 120)] += 1
    recent: Counter[str] = Counter()
    if paths:
        for commit in await history.log(history.main, path=paths[0], limit=LOG_MAX):
            if not commit.is_merge:
                recent[line(commit.author_name, 120)] += 1
    return sum(authors.values()), authors, recent
