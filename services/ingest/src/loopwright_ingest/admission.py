"""Who may send what, and how much: keys, scopes, rates. Closed until the configuration was read once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from loopwright_common.auth import TOKEN_LENGTH_MAX, hash_token
from loopwright_common.contracts.configuration import ProjectKey, Scope
from loopwright_common.problems import ProblemError
from loopwright_common.projects import Projects

from loopwright_ingest.domain import Drop, Sender

DROP_KINDS_MAX = 1_000


class Admission:
    """Finds the sender of a key and holds it to its scope and its project's rate."""

    def __init__(self, projects: Projects, actor_secret: bytes, now: Callable[[], float] = time.monotonic) -> None:
        self._projects = projects
        self._actor_secret = actor_secret
        self._now = now
        self._buckets: dict[str, Bucket] = {}
        self._drops: Counter[tuple[str, str, str]] = Counter()

    def admit(self, key: str, scope: Scope, *, number: int | None = None) -> Sender:
        """The sender. Raises ProblemError: 401 without a key, 403 for a wrong one or a missing scope, 503 before it can be known."""
        if not self._projects.loaded:
            raise ProblemError(503, "The projects' keys are not known here yet. Try again.", headers={"Retry-After": "2"})
        if not key:
            raise ProblemError(
                401,
                "This needs a project's key: Authorization: Bearer <key>. Make one with loopwright keys create.",
                headers={"WWW-Authenticate": 'Bearer realm="loopwright-ingest"'},
            )
        found = self._projects.by_key(hash_token(key)) if len(key) <= TOKEN_LENGTH_MAX else None
        if found is None:
            raise ProblemError(403, "The key is not known, or was revoked.")
        project, key_id = found
        entry: ProjectKey = next(item for item in project.keys if item.id == key_id)
        if number is not None and project.number != number:
            raise ProblemError(403, f"The key does not belong to project {number}.")
        if scope not in entry.scopes:
            raise ProblemError(403, f"The key has not the scope {scope.value}; it has {', '.join(entry.scopes)}.")
        return Sender(project, entry, self._actor_secret)

    def spend(self, sender: Sender, items: int) -> None:
        """Takes ``items`` from the project's minute. Raises ProblemError 429 with Retry-After."""
        limit = sender.config.signals_per_minute_max
        bucket = self._buckets.get(sender.name)
        if bucket is None or bucket.per_minute != limit:
            bucket = self._buckets[sender.name] = Bucket(limit, float(limit), self._now())
        wait = bucket.take(items, self._now())
        if wait > 0:
            raise ProblemError(
                429,
                f"Project {sender.name} may send {limit} signals a minute (signals_per_minute_max), counted per ingest process.",
                headers={"Retry-After": str(max(1, round(wait + 0.5)))},
            )

    def record(self, project: str, drops: list[Drop]) -> None:
        """Counts what was taken and is not used."""
        for drop in drops:
            key = (project, drop.kind, drop.reason)
            if key not in self._drops and len(self._drops) >= DROP_KINDS_MAX:
                key = (project, "(other)", "more kinds than are counted apart")
            self._drops[key] += 1

    def dropped(self, project: str) -> list[dict[str, Any]]:
        """What was dropped from a project since this process started, most first."""
        return [
            {"type": kind, "reason": reason, "count": count} for (name, kind, reason), count in self._drops.most_common() if name == project
        ]


@dataclass
class Bucket:
    """A token bucket: a minute's worth at once, refilled evenly. A request of more than that goes when the bucket is full, into debt."""

    per_minute: int
    tokens: float
    at: float

    def take(self, items: int, now: float) -> float:
        """Zero when taken; else the seconds until it can be."""
        self.tokens = min(float(self.per_minute), self.tokens + (now - self.at) * self.per_minute / 60)
        self.at = now
        needed = min(items, self.per_minute)
        if needed <= self.tokens:
            self.tokens -= items
            return 0.0
        return (needed - self.tokens) * 60 / self.per_minute
