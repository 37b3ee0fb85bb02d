"""What an investigation needs from outside: a repository's history, the gateway's rates, a place for replay bundles, a model to ask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from loopwright_common.contracts.configuration import RepositoryConfig
from loopwright_common.contracts.investigations import Cost
from loopwright_common.contracts.queries import RatesAnswer, RatesQuery
from loopwright_repositories.diffs import FileDiff
from loopwright_repositories.history import BlamedLine, Commit

from loopwright_investigator.domain import RevertCheck
from loopwright_investigator.explanation import Explanation


@dataclass(frozen=True)
class Match:
    """A line of a file at a revision that holds a searched text."""

    path: str
    line: int
    text: str


class History(Protocol):
    """One repository as it was when it was opened. Answers are of full commit ids, and the same question gives the same answer.

    What is not there gives None or nothing; only a repository that cannot be read raises.
    """

    @property
    def name(self) -> str: ...

    @property
    def main(self) -> str:
        """The commit of the default branch."""
        ...

    async def resolve(self, revision: str) -> str | None:
        """The commit that a release, tag or (abbreviated) commit id stands for."""
        ...

    async def is_ancestor(self, ancestor: str, descendant: str) -> bool: ...

    async def files(self, commit: str) -> Sequence[str]:
        """The paths of all plain files."""
        ...

    async def text(self, path: str, commit: str) -> Sequence[str] | None:
        """A file's lines, or None when there is no such text file or it is too large to be source code."""
        ...

    async def blame(self, path: str, commit: str, start: int, end: int) -> Sequence[BlamedLine]: ...

    async def log(self, commit: str, *, not_in: str | None = None, path: str | None = None, limit: int = 100) -> Sequence[Commit]: ...

    async def commit(self, commit: str) -> Commit | None: ...

    async def diff(self, commit: str, base: str | None = None, paths: Sequence[str] = ()) -> Sequence[FileDiff]:
        """What a commit did to its first parent (or to ``base``); nothing when the diff is too large to be read as one."""
        ...

    async def owners(self, path: str) -> Sequence[str]:
        """Who CODEOWNERS on main names for a path."""
        ...

    async def grep(self, text: str, commit: str, *, word: bool = False, limit: int = 50) -> Sequence[Match]:
        """Lines that hold ``text`` literally."""
        ...

    async def revert(self, commit: str, onto: str) -> RevertCheck:
        """Whether git can take ``commit`` back on top of ``onto``, as a three-way merge; nothing is written."""
        ...


class Repositories(Protocol):
    """Opens repositories, brought up to date first."""

    async def open(self, repository: RepositoryConfig, main: str | None = None) -> History:
        """``main`` pins the default branch to an earlier commit, for a replay. Raises Unavailable (try again) or Permanent."""
        ...


class Rates(Protocol):
    """The gateway's exact counts."""

    async def ask(self, query: RatesQuery) -> RatesAnswer:
        """Raises Retryable when nobody answers, Permanent when the question is refused."""
        ...


class Bundles(Protocol):
    """Where replay bundles are kept."""

    async def get(self, name: str) -> bytes | None: ...

    async def put(self, name: str, value: bytes) -> None: ...


@dataclass(frozen=True)
class Asked:
    """How asking a model ended: kept, slow, unavailable, refused (a limit, or the model declined) or wrong (not the object asked for).

    ``said`` is there when the outcome is kept; ``cost`` is counted in every case.
    """

    outcome: str
    cost: Cost
    said: Explanation | None = None
    detail: str = ""


class Advisor(Protocol):
    """A model behind an OpenAI-compatible endpoint. Never raises for what the model or its endpoint does."""

    @property
    def name(self) -> str: ...

    async def advise(self, system: str, user: str) -> Asked: ...

    async def close(self) -> None: ...
