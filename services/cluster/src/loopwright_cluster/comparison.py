"""What the version in shadow decided beside the one in charge, until it is stored."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from loopwright_common.clock import Clock

from loopwright_cluster.domain import Decision, Exemplar

DIFFERENCES_MAX = 100  # as many as an answer carries
WAITING_MAX = 1_000  # as many newcomers as a batch can have


@dataclass(frozen=True)
class Difference:
    """A newcomer that the two versions put elsewhere."""

    newcomer: Exemplar
    decided: Decision
    shadow: Decision
    at: datetime


@dataclass(frozen=True)
class Compared:
    """Counts of newcomers, and the differences among them, oldest first."""

    agreed: int = 0
    differed: int = 0
    differences: tuple[Difference, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.agreed or self.differed)


class Comparison:
    """Holds what was compared of the batches in hand. A newcomer whose batch failed and comes again counts once."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._projects: dict[str, dict[str, Difference | None]] = {}  # project -> signal -> where they differ

    def take(self, project: str) -> Compared:
        """What was compared of a project since it was last taken."""
        found = self._projects.pop(project, {})
        differences = tuple(item for item in found.values() if item is not None)
        return Compared(len(found) - len(differences), len(differences), differences[-DIFFERENCES_MAX:])

    def add(self, newcomer: Exemplar, decided: Decision, shadow: Decision) -> bool:
        """Compare two decisions about a newcomer; returns whether they are the same."""
        found = self._projects.setdefault(newcomer.project, {})
        agreed = (decided.outcome, decided.report_id) == (shadow.outcome, shadow.report_id)
        found[newcomer.signal_id] = None if agreed else Difference(newcomer, decided, shadow, self._clock.now())
        if len(found) > WAITING_MAX:
            del found[next(iter(found))]
        return agreed
