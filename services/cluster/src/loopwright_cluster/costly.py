"""A limit on the costly path: how many new fingerprints of a project are embedded and compared in a minute.

A project that floods with ever new problems (a release that puts an id into every message) would take the embedding from all others.
What is beyond the limit is grouped by its fingerprint alone, and says so.
"""

from __future__ import annotations

from datetime import datetime, timedelta

MINUTE = timedelta(minutes=1)
PROJECTS_MAX = 10_000  # remembered; the one that was asked for longest ago is forgotten, and begins a minute anew


class CostlyPath:
    """Counts by project and minute. ``per_minute`` 0 sets no limit."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._taken: dict[str, tuple[datetime, int]] = {}

    def take(self, project: str, wanted: int, now: datetime) -> int:
        """How many of ``wanted`` may go the costly way now; they are counted."""
        if not self.per_minute:
            return wanted
        since, taken = self._taken.pop(project, (now, 0))
        if not timedelta(0) <= now - since < MINUTE:
            since, taken = now, 0
        granted = min(wanted, self.per_minute - taken)
        self._taken[project] = (since, taken + granted)
        if len(self._taken) > PROJECTS_MAX:
            del self._taken[next(iter(self._taken))]
        return granted
