"""Real git repositories laid down commit by commit, and cases around them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from loopwright_common.contracts.configuration import ProjectConfig, RepositoryConfig, ServiceConfig
from loopwright_common.contracts.investigations import Investigation
from loopwright_common.contracts.queries import ExposureMinute, RatesAnswer
from loopwright_common.contracts.reports import MinuteCount, ReportReady, ReportSnapshot, ReportState
from loopwright_common.contracts.signals import Deploy, Signal, SignalKind, StackFrame
from loopwright_common.identifiers import derived_id
from loopwright_investigator.adapters.git_history import GitHistory, MirroredRepositories, PlainSource
from loopwright_investigator.compose import Findings
from loopwright_investigator.domain import Case, Evidence
from loopwright_investigator.investigation import find_place, investigate
from loopwright_repositories.checkouts import Checkouts

START = datetime(2026, 11, 20, 8, 0, tzinfo=UTC)


@dataclass
class Repo:
    """A repository written through ``git fast-import``: files as text, times exact, no work tree."""

    directory: Path
    branch: str = "main"
    now: datetime = START
    files: dict[str, dict[str, str]] = field(default_factory=dict)  # branch -> path -> text
    heads: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        subprocess.run(["git", "init", "-q", "--bare", "-b", self.branch, str(self.directory)], check=True)

    def commit(
        self,
        message: str,
        write: dict[str, str] | None = None,
        delete: Sequence[str] = (),
        *,
        move: dict[str, str] | None = None,
        author: str = "Alice",
        minutes: float = 60,
        branch: str | None = None,
        parents: Sequence[str] | None = None,
    ) -> str:
        """Adds a commit ``minutes`` after the one before; gives its id."""
        branch = branch or self.branch
        self.now += timedelta(minutes=minutes)
        tree = dict(self.files.get(branch, {}))
        for old, new in (move or {}).items():
            tree[new] = tree.pop(old)
        for path in delete:
            del tree[path]
        tree.update(write or {})
        self.files[branch] = tree
        if parents is None:
            parents = [self.heads[branch]] if branch in self.heads else []
        mail = f"{author.lower().replace(' ', '.')}@example.com"
        stamp = f"{int(self.now.timestamp())} +0000"
        text = message.encode()
        lines = [f"commit refs/heads/{branch}\nmark :1\nauthor {author} <{mail}> {stamp}\ncommitter {author} <{mail}> {stamp}\n".encode()]
        lines.append(b"data %d\n%b\n" % (len(text), text))
        lines += [f"{'from' if position == 0 else 'merge'} {parent}\n".encode() for position, parent in enumerate(parents)]
        lines.append(b"deleteall\n")
        for path, content in tree.items():
            body = content.encode("utf-8", "surrogateescape")
            quoted = '"' + path.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
            lines.append(f"M 100644 inline {quoted}\n".encode() + b"data %d\n%b\n" % (len(body), body))
        marks = self.directory / "marks"
        subprocess.run(
            ["git", "--git-dir", str(self.directory), "fast-import", "--quiet", "--force", f"--export-marks={marks}"],
            input=b"".join(lines), check=True, timeout=30,
        )  # fmt: skip
        sha = marks.read_text().split()[1]
        self.heads[branch] = sha
        return sha

    def fork(self, branch: str, source: str | None = None) -> None:
        """Begins a branch where another one is."""
        source = source or self.branch
        self.files[branch] = dict(self.files[source])
        self.heads[branch] = self.heads[source]

    def merge(self, branch: str, message: str = "", **changes: Any) -> str:
        """Merges a branch into the main one; the branch's version of each file it has wins, ``write`` over both."""
        merged = {**self.files[self.branch], **self.files[branch], **changes.pop("write", {})}
        parents = [self.heads[self.branch], self.heads[branch]]
        return self.commit(message or f"Merge branch '{branch}'", merged, parents=parents, **changes)

    def revert(self, sha: str, write: dict[str, str], title: str = "", **changes: Any) -> str:
        return self.commit(f'Revert "{title}"\n\nThis reverts commit {sha}.\n', write, **changes)

    def tag(self, name: str, sha: str | None = None) -> None:
        subprocess.run(["git", "--git-dir", str(self.directory), "tag", name, sha or self.heads[self.branch]], check=True)

    def line_of(self, path: str, text: str, branch: str | None = None) -> int:
        """The number of the line that holds ``text``."""
        for number, each in enumerate(self.files[branch or self.branch][path].split("\n"), start=1):
            if text in each:
                return number
        raise AssertionError(f"{path} has no line with {text!r}")


@dataclass
class Scene:
    """A report about a service of a repository, told by what was deployed and what came in."""

    repo: Repo
    root: Path
    service: str = "shop"
    path: str = ""
    deployed_path: str = ""
    with_repository: bool = True
    deploys: list[Deploy] = field(default_factory=list)
    signals: list[Signal] = field(default_factory=list)
    exposure: dict[str, int] = field(default_factory=dict)  # release -> requests
    counts: dict[str, int] = field(default_factory=dict)  # release -> signals
    input: tuple[str, ...] = ()
    first_seen: datetime | None = None
    people: int = 12
    rates: bool = True
    protected: tuple[str, ...] = ()
    repositories: tuple[RepositoryConfig, ...] | None = None
    extra_services: tuple[ServiceConfig, ...] = ()
    kinds: dict[str, int] | None = None

    def deploy(self, release: str, commit: str | None, minutes: float = 10, requests: int = 2_000, environment: str = "production") -> Deploy:
        """``release`` goes live ``minutes`` after the last thing that happened, and serves ``requests``."""
        self.repo.now += timedelta(minutes=minutes)
        deploy = Deploy(
            id=derived_id("deploy", self.service, release, str(len(self.deploys))), project="demo", service=self.service, release=release,
            commit=commit, environment=environment, deployed_at=self.repo.now,
        )  # fmt: skip
        self.deploys.append(deploy)
        self.exposure[release] = self.exposure.get(release, 0) + requests
        self.repo.now += timedelta(minutes=30)
        return deploy

    def signal(
        self, frames: Sequence[StackFrame] = (), *, release: str = "", kind: SignalKind = SignalKind.EXCEPTION, count: int = 40, **fields: Any
    ) -> Signal:  # fmt: skip
        """One example signal that stands for ``count`` like it."""
        self.repo.now += timedelta(minutes=1)
        fields.setdefault("title", "KeyError: 'currency'")
        signal = Signal(
            id=derived_id("signal", str(len(self.signals))), project="demo", source="sentry", kind=kind, service=fields.pop("service", self.service),
            release=release, environment=fields.pop("environment", "production"), occurred_at=self.repo.now, received_at=self.repo.now,
            frames=tuple(frames), **fields,
        )  # fmt: skip
        self.signals.append(signal)
        self.counts[release] = self.counts.get(release, 0) + count
        self.first_seen = self.first_seen or self.repo.now
        return signal

    @property
    def case(self) -> Case:
        now = self.repo.now + timedelta(minutes=20)
        first_seen = self.first_seen or now
        total = sum(self.counts.values())
        config = ProjectConfig(
            name="demo",
            repositories=self.repositories
            if self.repositories is not None
            else (RepositoryConfig(name="code", source=str(self.repo.directory), protected_paths=self.protected),)
            if self.with_repository
            else (),
            services=(
                ServiceConfig(
                    name=self.service, repository="code" if self.with_repository else None, path=self.path, deployed_path=self.deployed_path
                ),
                *self.extra_services,
            ),
        )
        kinds: dict[str, int] = {}
        for signal in self.signals:
            kinds[signal.kind.value] = kinds.get(signal.kind.value, 0) + 1
        report = ReportSnapshot(
            id="r1", project="demo", title=self.signals[0].title if self.signals else "A report", state=ReportState.READY,
            services=(self.service,), kinds=self.kinds or kinds, releases={name: count for name, count in self.counts.items() if name},
            signal_count=total, people_count=self.people, first_seen=first_seen, last_seen=self.repo.now, examples=tuple(self.signals[:20]),
            input=self.input,
        )  # fmt: skip
        live = {deploy.release: deploy.deployed_at for deploy in self.deploys}
        rates = RatesAnswer(
            signals=tuple(
                MinuteCount(minute=max(first_seen, live.get(name, first_seen)).replace(second=0), release=name, count=count)
                for name, count in self.counts.items()
                if count
            ),
            exposure=tuple(
                ExposureMinute(
                    minute=live[name].replace(second=0) + timedelta(minutes=4 * step), service=self.service, release=name, count=count // 10
                )
                for name, count in self.exposure.items()
                for step in range(10)
            ),
            deploys=tuple(self.deploys),
            people_count=self.people,
        )
        ready = ReportReady(project="demo", report=report, attempt=1, deploys=tuple(reversed(self.deploys)), at=now)
        return Case(ready, config, rates if self.rates else None, now, "" if self.rates else "the gateway does not answer", first_seen)

    async def open(self) -> GitHistory | None:
        place = find_place(self.case)
        if place.repository is None:
            return None
        return await MirroredRepositories(Checkouts(self.root / "mirrors"), PlainSource()).open(place.repository)  # type: ignore[return-value]

    async def investigate(self) -> tuple[Investigation, Findings]:
        case = self.case
        return await investigate(case, derived_id("investigation", "r1", "1"), find_place(case), await self.open(), Evidence())


@pytest.fixture
def new_repo(tmp_path: Path) -> Callable[..., Repo]:
    made: list[Repo] = []

    def make(**fields: Any) -> Repo:
        made.append(Repo(tmp_path / f"repository-{len(made)}.git", **fields))
        return made[-1]

    return make


@pytest.fixture
def new_scene(tmp_path: Path) -> Callable[..., Scene]:
    def make(repo: Repo, **fields: Any) -> Scene:
        return Scene(repo, tmp_path, **fields)

    return make


@pytest.fixture
def frame() -> Callable[..., StackFrame]:
    """A stack frame in few words."""

    def make(file: str, line: int | None = None, function: str = "", context: str = "", in_app: bool = True, module: str = "") -> StackFrame:
        return StackFrame(file=file, line=line, function=function, context=context, in_app=in_app, module=module)

    return make
