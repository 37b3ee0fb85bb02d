"""What the version in shadow decided beside the one in charge, by project, since this process began."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from datetime import datetime

from loopwright_common.clock import Clock

from loopwright_cluster.domain import Decision, Exemplar

DIFFERENCES_MAX = 100  # as many as an answer carries
PROJECTS_MAX = 1_024  # a difference is half a kilobyte; the project that was compared least recently is forgotten


@dataclass(frozen=True)
class Difference:
    """A newcomer that the two versions put elsewhere."""

    newcomer: Exemplar
    decided: Decision
    shadow: Decision
    at: datetime


@dataclass
class Compared:
    """A project's counts and its newest differences, oldest first."""

    agreed: int = 0
    differed: int = 0
    differences: deque[Difference] = field(default_factory=lambda: deque(maxlen=DIFFERENCES_MAX))


class Comparison:
    """Counts from its making on."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.since = clock.now()
        self._projects: OrderedDict[str, Compared] = OrderedDict()

    def of(self, project: str) -> Compared:
        """What was compared of a project."""
        return self._projects.get(project, Compared())

    def add(self, newcomer: Exemplar, decided: Decision, shadow: Decision) -> bool:
        """Compare two decisions about a newcomer; returns whether they are the same."""
        compared = self._projects.setdefault(newcomer.project, Compared())
        self._projects.move_to_end(newcomer.project)
        while len(self._projects) > PROJECTS_MAX:
            self._projects.popitem(last=False)
        agreed = (decided.outcome, decided.report_id) == (shadow.outcome, shadow.report_id)
        if agreed:
            compared.agreed += 1
        else:
            compared.differed += 1
            compared.differences.append(Difference(newcomer, decided, shadow, self._clock.now()))
        return agreed
