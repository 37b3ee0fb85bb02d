"""What people's words forbid: two reports that may not be together, and fingerprints that may not go where they were taken from. Pure.

A report named in a word stands for its *line*: what it was merged into and what followed it after it was resolved. Two reports are of one
line where their lines meet. A constraint whose own ends are of one line rests: a person has put them together since, and the newest word
wins. When that is undone it holds again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from datetime import datetime

Line = Set[str]
"""A report and all that it leads to."""


@dataclass(frozen=True)
class Word:
    """A word that holds, as far as it forbids something.

    ``pairs``: reports that may not be together. ``apart``: the reports each fingerprint was taken out of. ``never``: it is about the
    reports themselves, and a merge against it is refused.
    """

    command_id: str
    actor: str
    at: datetime
    pairs: tuple[tuple[str, str], ...] = ()
    apart: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    never: bool = False

    @property
    def said(self) -> str:
        """Who said what and when, for a person."""
        what = "that they are never together" if self.never else "that they are two problems"
        return f"{self.actor} said on {self.at:%Y-%m-%d at %H:%M} UTC {what} (command {self.command_id})"


class Constraints:
    """All that a project's words forbid."""

    def __init__(self, words: Iterable[Word]) -> None:
        self.pairs: list[tuple[str, str, Word]] = []
        self.apart: dict[str, list[tuple[str, Word]]] = {}
        for word in sorted(words, key=lambda word: (word.at, word.command_id), reverse=True):  # the newest is named first
            self.pairs += [(one, other, word) for one, other in word.pairs]
            for fingerprint, reports in word.apart.items():
                self.apart.setdefault(fingerprint, []).extend((report, word) for report in reports)
        self.ends = frozenset(
            {end for one, other, _ in self.pairs for end in (one, other)} | {report for told in self.apart.values() for report, _ in told}
        )

    def __bool__(self) -> bool:
        return bool(self.ends)


class AsTheyStand:
    """Constraints with the lines of their ends as things stand."""

    def __init__(self, constraints: Constraints, lines: Mapping[str, Line]) -> None:
        self._constraints = constraints
        self._lines = lines
        self._touching: dict[str, set[tuple[int, bool]]] = {}  # report -> the pairs whose first or second end leads there
        for at, (one, other, _) in enumerate(constraints.pairs):
            if lines[one].isdisjoint(lines[other]):
                for first, end in ((True, one), (False, other)):
                    for report in lines[end]:
                        self._touching.setdefault(report, set()).add((at, first))

    def between(self, one: Line, other: Line, *, never: bool = False) -> Word | None:
        """The word that keeps two lines apart; with ``never`` only one that is about the reports themselves."""
        if not self._touching or not one.isdisjoint(other):
            return None
        mine = {pair for report in one for pair in self._touching.get(report, ())}
        theirs = {pair for report in other for pair in self._touching.get(report, ())}
        against = sorted(at for at, first in mine if (at, not first) in theirs)
        words = (self._constraints.pairs[at][2] for at in against)
        return next((word for word in words if word.never or not never), None)

    def tells_of(self, fingerprint: str) -> bool:
        """Whether a word names the fingerprint."""
        return fingerprint in self._constraints.apart

    def of(self, fingerprint: str, its: Line, other: Line) -> Word | None:
        """The word that keeps a fingerprint, which is in the line ``its`` now (empty: in none), out of another line."""
        for report, word in self._constraints.apart.get(fingerprint, ()):
            taken_from = self._lines[report]
            if not taken_from.isdisjoint(other) and taken_from.isdisjoint(its):
                return word
        return None
