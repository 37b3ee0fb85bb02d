"""In how many reports a name occurs, remembered for the names that were asked about and kept in step with what is written.

Asking the engine counts a name's points one by one: 46 ms for a name in thousands of them, for up to 24 names of each new fingerprint. The
names that are asked about most are the common ones, and those change least.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Set

from loopwright_cluster.ports import SPREAD_MAX

TOKENS_MAX = 20_000  # each with up to 64 reports' ids, most with a few: about 20 MB when full


class Spread:
    """For each remembered name of a project exactly the reports that have it, or SPREAD_MAX of them. Not thread-safe."""

    def __init__(self, tokens_max: int = TOKENS_MAX) -> None:
        self._tokens_max = tokens_max
        self._reports: OrderedDict[tuple[str, str], set[str]] = OrderedDict()

    def of(self, project: str, token: str) -> frozenset[str] | None:
        """The reports; None when it has to be asked."""
        found = self._reports.get((project, token))
        if found is None:
            return None
        self._reports.move_to_end((project, token))
        return frozenset(found)

    def learn(self, project: str, token: str, reports: Iterable[str]) -> None:
        """What was asked just now."""
        self._reports[project, token] = set(reports)
        if len(self._reports) > self._tokens_max:
            self._reports.popitem(last=False)

    def wrote(self, project: str, report_id: str, tokens: Iterable[str]) -> None:
        """A point that was not there before."""
        for token in tokens:
            found = self._reports.get((project, token))
            if found is not None and len(found) < SPREAD_MAX:
                found.add(report_id)

    def forget(self, projects: Set[str]) -> None:
        """Points of these projects were replaced or went to other reports: which names that concerns is not kept."""
        for key in [key for key in self._reports if key[0] in projects]:
            del self._reports[key]

    def split(self, project: str, tokens: Iterable[str]) -> tuple[Mapping[str, frozenset[str]], list[str]]:
        """What is known, and what has to be asked."""
        answers = {token: self.of(project, token) for token in tokens}
        return {token: found for token, found in answers.items() if found is not None}, [
            token for token, found in answers.items() if found is None
        ]
