"""What measure asks of others: the repository's history, the counts, and a place to keep what is pending."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from loopwright_common.contracts.investigations import MetricContract
from loopwright_common.contracts.queries import RatesAnswer
from loopwright_common.contracts.signals import Deploy

from loopwright_measure.domain import Pending


@dataclass(frozen=True)
class Containment:
    """Whether a deploy contains a commit. ``unknown``: the repository has no such release or commit, now."""

    answer: Literal["yes", "no", "unknown"]
    reason: str
    commit: str | None = None  # that was deployed


class History(Protocol):
    """The repositories' histories."""

    async def contains(self, repository: str, deploy: Deploy, commit: str) -> Containment:
        """Whether what was deployed contains ``commit``. Raises Retryable when the forge does not answer."""
        ...


class Rates(Protocol):
    """The exact counts per minute."""

    async def counts(self, project: str, report_id: str, metric: MetricContract, start: datetime, end: datetime) -> RatesAnswer:
        """Signals of the report and use of the metric's service in [start, end). Raises Retryable when nobody answers."""
        ...


@dataclass(frozen=True)
class Kept:
    """A pending measurement with the revision that a compare-and-set names."""

    pending: Pending
    revision: int


class PendingStore(Protocol):
    """Durable when a method returns. Raises bus.Conflict when another writer was faster."""

    async def get(self, project: str, change_id: str) -> Kept | None: ...

    async def create(self, pending: Pending) -> Kept: ...

    async def update(self, kept: Kept, pending: Pending) -> Kept: ...

    async def of_project(self, project: str) -> list[Kept]:
        """Those not done."""
        ...

    async def all(self) -> list[Kept]: ...

    async def forget_done(self, before: datetime) -> int:
        """Deletes what was done before; gives how many."""
        ...

    async def remember_deploy(self, deploy: Deploy) -> None:
        """Keeps the newest deploys of a project, a bounded number."""
        ...

    async def deploys(self, project: str) -> list[Deploy]:
        """The remembered ones, by the time they were deployed."""
        ...
