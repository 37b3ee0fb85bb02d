"""Real git repositories laid down commit by commit, and cases around them."""

from __future__ import annotations

import random
import re
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
            input=b"".join(lines),
            check=True,
            timeout=30,
        )
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

    def text(self, path: str) -> str:
        return self.files[self.branch][path]

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

    def deploy(
        self, release: str, commit: str | None, minutes: float = 10, requests: int = 2_000, environment: str = "production"
    ) -> Deploy:
        """``release`` goes live ``minutes`` after the last thing that happened, and serves ``requests``."""
        self.repo.now += timedelta(minutes=minutes)
        deploy = Deploy(
            id=derived_id("deploy", self.service, release, str(len(self.deploys))),
            project="demo",
            service=self.service,
            release=release,
            commit=commit,
            environment=environment,
            deployed_at=self.repo.now,
        )
        self.deploys.append(deploy)
        self.exposure[release] = self.exposure.get(release, 0) + requests
        self.repo.now += timedelta(minutes=30)
        return deploy

    def signal(self, frames: Sequence[StackFrame] = (), *, release: str = "", count: int = 40, **fields: Any) -> Signal:
        """One example signal that stands for ``count`` like it."""
        self.repo.now += timedelta(minutes=1)
        fields.setdefault("title", "KeyError: 'currency'")
        signal = Signal(
            id=derived_id("signal", str(len(self.signals))),
            project="demo",
            source="sentry",
            kind=fields.pop("kind", SignalKind.EXCEPTION),
            service=fields.pop("service", self.service),
            release=release,
            environment=fields.pop("environment", "production"),
            occurred_at=self.repo.now,
            received_at=self.repo.now,
            frames=tuple(frames),
            **fields,
        )
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
            id="r1",
            project="demo",
            title=self.signals[0].title if self.signals else "A report",
            state=ReportState.READY,
            services=(self.service,),
            kinds=self.kinds or kinds,
            releases={name: count for name, count in self.counts.items() if name},
            signal_count=total,
            people_count=self.people,
            first_seen=first_seen,
            last_seen=self.repo.now,
            examples=tuple(self.signals[:20]),
            input=self.input,
        )
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

    def make(
        file: str, line: int | None = None, function: str = "", context: str = "", in_app: bool = True, module: str = ""
    ) -> StackFrame:
        return StackFrame(file=file, line=line, function=function, context=context, in_app=in_app, module=module)

    return make


# --- a small shop, broken once -----------------------------------------------------------------------------------------------------

CART = '''"""Carts."""

from decimal import Decimal


def lines(cart):
    return [line for line in cart["lines"] if line["quantity"] > 0]


def total(cart, rates):
    amount = Decimal(0)
    for line in lines(cart):
        amount += line["price"] * line["quantity"]
    return amount


def describe(cart):
    return f"{len(lines(cart))} lines"
'''
PRICED = '        amount += line["price"] * line["quantity"]\n'
CONVERTED = '        rate = rates[line["currency"]]\n        amount += line["price"] * line["quantity"] * rate\n'
RAISING = 'rates[line["currency"]]'
API = "from shop import cart\n\n\ndef checkout(request):\n    return cart.total(request.cart, {})\n"


class Shop:
    """The texts of the shop, and the story that most tests tell."""

    CART, PRICED, CONVERTED, RAISING, API = CART, PRICED, CONVERTED, RAISING, API
    GUILTY = CART.replace(PRICED, CONVERTED)

    @staticmethod
    def history(repo: Repo, cart: str = "src/shop/cart.py", api: str = "src/shop/api.py") -> tuple[str, str, str]:
        """A guilty commit between innocent ones. Gives (good, guilty, bad)."""
        repo.commit("Begin", {cart: CART, api: API, cart.replace("cart.py", "__init__.py"): ""})
        good = repo.commit("Count items", {cart: CART.replace(' lines"', ' items"')}, author="Bob")
        repo.commit("Explain the build", {"README.md": "# Shop\n"}, author="Carol")
        changed = repo.text(cart).replace(PRICED, CONVERTED)
        guilty = repo.commit("Convert prices to the shop's currency", {cart: changed}, author="Dave")
        repo.commit("Speak of positions", {cart: repo.text(cart).replace(' items"', ' positions"')}, author="Bob")
        bad = repo.commit("Answer with a status", {api: repo.text(api) + "\n\ndef health():\n    return 200\n"}, author="Carol")
        return good, guilty, bad

    @staticmethod
    def crash(scene: Scene, release: str, file: str = "/app/src/shop/cart.py", path: str = "src/shop/cart.py", **fields: Any) -> Signal:
        """A KeyError in the converted line, reached through the API."""
        fields = {"exception_type": "KeyError", "exception_value": "'currency'", "transaction": "/checkout", **fields}
        number = scene.repo.line_of(path, RAISING)
        return scene.signal(
            [
                StackFrame(file="/usr/lib/python3.11/wsgiref/handlers.py", line=137, function="run", in_app=False),
                StackFrame(
                    file=file.replace("cart.py", "api.py"), line=5, function="checkout", context="    return cart.total(request.cart, {})"
                ),
                StackFrame(file=file, line=number, function="total", context=f"        rate = {RAISING}"),
            ],
            release=release,
            **fields,
        )

    @staticmethod
    def deployed(scene: Scene, good: str, bad: str) -> Scene:
        scene.deploy("1.0", good)
        scene.deploy("1.1", bad)
        return scene


@pytest.fixture
def shop() -> type[Shop]:
    return Shop


# --- seeded histories: one guilty commit among innocent ones -------------------------------------------------------------------------

NOUNS = re.findall(
    r"\w+",
    """
    invoice cart order customer price basket voucher shipment address payment refund account session profile ticket stock warehouse
    carrier label parcel currency discount coupon ledger balance receipt supplier catalogue product variant review rating
    """,
)
VERBS = re.findall(
    r"\w+",
    """
    load save check apply compute merge parse render notify resolve assign collect prepare update reserve release format
    """,
)


@dataclass
class Function:
    name: str
    arguments: list[str]
    body: list[tuple[int, str]]  # (depth, statement without the language's decoration)


@dataclass
class Module:
    stem: str
    functions: list[Function]


@dataclass
class Incident:
    """A generated history with its truth. ``guilty`` is None where no commit caused it."""

    scene: Scene
    guilty: str | None
    kind: str
    seed: int


class Generator:
    """Writes a small product in Python, JavaScript or Go style, changes it at random, and breaks it once.

    Innocent commits touch other functions of the same file, the failing function itself (sometimes), comments, formatting of the failing
    line, tests, docs, dependencies, file names; they come through branches and are taken back. The guilty one writes the failing line,
    changes it, removes the guard above it, changes the caller, or changes what another file hands over.
    """

    KINDS = ("wrote line", "changed line", "removed guard", "changed caller", "changed producer")

    def __init__(self, seed: int, repo: Repo, root: Path) -> None:
        self.random = random.Random(seed)
        self.seed = seed
        self.repo = repo
        self.root = root
        self.language = self.random.choice(["py", "py", "js", "go"])
        self.prefix = self.random.choice(["src/shop", "shop", "services/checkout/app", "", "backend/internal"])
        self.used: set[str] = set()
        self.modules = [
            Module(self.name(1), [self.function() for _ in range(self.random.randint(4, 7))]) for _ in range(self.random.randint(4, 7))
        ]
        self.tabs = {module.stem: 4 for module in self.modules}
        self.kept: list[str] = []  # parts of the lines that the story rests on
        self.authors = ["Alice", "Bob", "Carol", "Dave", "Erin"]

    def name(self, words: int = 2) -> str:
        while True:
            parts = [self.random.choice(VERBS if position == 0 and words > 1 else NOUNS) for position in range(words)]
            found = "_".join(parts) + ("" if "_".join(parts) not in self.used else f"_{self.random.randint(2, 99)}")
            if found not in self.used:
                self.used.add(found)
                return found

    def statement(self) -> str:
        noun, other, key = (self.random.choice(NOUNS) for _ in range(3))
        return self.random.choice(
            [
                f"{noun}_total = {noun}.amount * {self.random.randint(2, 90)}",
                f'{other}_{key} = {other}["{key}"]',
                f"{noun}_{other} = convert({noun}, {other})",
                f"log({noun}.number, {self.random.randint(100, 999)})",
                f"{key}_count = len({key}_list) + {self.random.randint(1, 9)}",
            ]
        )

    def function(self) -> Function:
        return Function(
            self.name(), [self.random.choice(NOUNS), "context"], [(1, self.statement()) for _ in range(self.random.randint(4, 9))]
        )

    def path(self, module: Module) -> str:
        return "/".join(part for part in (self.prefix, f"{module.stem}.{self.language}") if part)

    def render(self, module: Module) -> str:
        lines = [{"py": '"""Part of the shop."""', "js": "'use strict';", "go": "package shop"}[self.language], ""]
        width = self.tabs[module.stem]
        for function in module.functions:
            arguments = ", ".join(function.arguments)
            if self.language == "py":
                lines += ["", f"def {function.name}({arguments}):"]
            elif self.language == "js":
                lines += [f"export function {function.name}({arguments}) {{"]
            else:
                lines += [f"func {function.name}({arguments}) {{"]
            for depth, text in function.body:
                lines.append(" " * width * depth + self.decorated(text))
            lines += [""] if self.language == "py" else ["}", ""]
        return "\n".join(lines) + "\n"

    def decorated(self, text: str) -> str:
        if text.startswith("#"):
            return text if self.language == "py" else "//" + text[1:]
        if text.startswith("if ") and text.endswith(": return None"):
            condition = text[3 : -len(": return None")]
            return {
                "py": text,
                "js": f"if (!{condition.removeprefix('not ')}) return null;",
                "go": f"if {condition} == nil {{ return nil }}",
            }[self.language]
        if self.language == "js" and " = " in text:
            return f"const {text};" if not text.startswith("const") else text
        return text.replace(" = ", " := ", 1) if self.language == "go" else text

    def write(self, *modules: Module, message: str, extra: dict[str, str] | None = None, **fields: Any) -> str:
        files = {self.path(module): self.render(module) for module in modules}
        return self.repo.commit(
            message, {**files, **(extra or {})}, author=self.random.choice(self.authors), minutes=self.random.randint(5, 300), **fields
        )

    def edit(self, function: Function) -> None:
        """Changes one line that the story does not rest on."""
        free = [at for at, (_, text) in enumerate(function.body) if not any(part in text for part in self.kept)]
        if free:
            function.body[self.random.choice(free)] = (1, self.statement())

    def innocent(self, module: Module, failing: Function | None, statement: str, near_allowed: bool) -> None:
        """One change that breaks nothing."""
        choice = self.random.choice(
            [
                "other function",
                "other function",
                "new function",
                "other file",
                "other file",
                "other file",
                "docs",
                "tests",
                "dependencies",
                "comment",
                "formatting",
                "rename",
                "branch",
                "taken back",
                "same function",
            ]
        )
        others = [each for each in self.modules if each is not module]
        if choice == "other function":
            function = self.random.choice([each for each in module.functions if each is not failing])
            self.edit(function)
            self.write(module, message=f"Change {function.name}")
        elif choice == "same function" and failing is not None and near_allowed:
            positions = [at for at, (_, text) in enumerate(failing.body) if text != statement and not text.startswith("if ")]
            at_failure = next((at for at, (_, text) in enumerate(failing.body) if text == statement), -99)
            # One in three comes as close as the guilty one does.
            far = [at for at in positions if abs(at - at_failure) > (0 if self.random.random() < 0.33 else 3)]
            if far:
                failing.body[self.random.choice(far)] = (1, self.statement())
                self.write(module, message=f"Tidy {failing.name}")
        elif choice == "new function":
            module.functions.insert(self.random.randrange(len(module.functions) + 1), self.function())
            self.write(module, message=f"Add a step to {module.stem}")
        elif choice == "docs":
            self.write(message="Explain more", extra={"README.md": f"# Shop\n\n{self.name(3)} {statement}\n"})
        elif choice == "tests":
            self.write(
                message=f"Test {module.stem}",
                extra={f"tests/test_{module.stem}.py": f"def test_{self.name()}():\n    assert {self.random.random()} # {statement}\n"},
            )
        elif choice == "dependencies":
            self.write(
                message="Update requests",
                extra={"requirements.txt": f"requests=={self.random.randint(2, 9)}.{self.random.randint(0, 30)}\n"},
            )
        elif choice == "comment":
            function = failing or self.random.choice(module.functions)
            function.body.insert(self.random.randrange(len(function.body)), (1, f"# {self.name(3)}"))
            self.write(module, message=f"Comment {function.name}")
        elif choice == "formatting":
            self.tabs[module.stem] = 6 - self.tabs[module.stem]
            self.write(module, message=f"Reformat {module.stem}")
        elif choice == "rename":
            old = self.path(module)
            width = self.tabs.pop(module.stem)
            module.stem = self.name(1)
            self.tabs[module.stem] = width
            self.repo.commit(f"Rename to {module.stem}", move={old: self.path(module)}, author=self.random.choice(self.authors), minutes=30)
        elif choice == "branch":
            other = self.random.choice(others)
            branch = f"topic-{len(self.used)}"
            self.repo.fork(branch)
            function = self.random.choice(other.functions)
            self.edit(function)
            self.write(other, message=f"Rework {function.name}", branch=branch)
            self.write(message="Say more", extra={"CHANGES.md": f"{self.name(3)}\n"})
            self.repo.merge(branch, author="Erin", minutes=20)
        elif choice == "taken back":
            function = self.random.choice(module.functions)
            before = self.render(module)
            at = self.random.randrange(len(function.body))
            kept = function.body[at]
            if any(part in kept[1] for part in self.kept):
                return
            function.body[at] = (1, self.statement())
            title = f"Try another way in {function.name}"
            sha = self.write(module, message=title)
            function.body[at] = kept
            self.repo.revert(sha, {self.path(module): before}, title, minutes=15)
        else:
            other = self.random.choice(others)
            function = self.random.choice(other.functions)
            self.edit(function)
            self.write(other, message=f"Change {function.name}")

    def decoy(self, module: Module, failing: Function, statement: str) -> None:
        """An innocent change of a line right beside the failing one."""
        at = next((at for at, (_, text) in enumerate(failing.body) if text == statement), 0)
        beside = [each for each in (at - 1, at + 1) if 0 <= each < len(failing.body) and not failing.body[each][1].startswith("if ")]
        if beside:
            failing.body[self.random.choice(beside)] = (1, self.statement())
            self.write(module, message=f"Tidy {failing.name}")

    def incident(self, kind: str | None = None, quiet: bool = False, decoy: bool = False, near: bool = False) -> Incident:
        """A history that breaks once, by ``kind``; ``quiet``: no commit breaks it or touches the failing function."""
        r = self.random
        kind = kind or r.choice(self.KINDS)
        module, caller_module, producer_module = r.sample(self.modules, 3)
        failing, caller, producer = (r.choice(each.functions) for each in (module, caller_module, producer_module))
        noun, key = r.choice(NOUNS), f"{r.choice(NOUNS)}_{r.choice(NOUNS)}"
        position = r.randrange(1, len(failing.body))
        old = f"{noun}_{key} = {noun}.{key}.number" if kind == "removed guard" else f'{noun}_{key} = {noun}["{key}"]'
        guard = f"if not {noun}.{key}: return None"
        error = {
            "removed guard": (
                "AttributeError",
                f"'NoneType' object has no attribute 'number' ({key})"
                if r.random() < 0.3
                else "'NoneType' object has no attribute 'number'",
            )
        }.get(kind, ("KeyError", f"'{key}'"))
        if kind == "changed line":
            old = f"{noun}_share = {noun}.amount / {noun}.parts"
            error = ("ZeroDivisionError", "division by zero")
        call = f"{failing.name}({noun}, context)"
        caller.body.append((1, f"answer_{noun} = {call}"))
        self.kept = [f"answer_{noun} = ", f"row_{noun} = ", old, guard, f"{noun}_share = "]
        if kind == "changed producer":
            producer.body.append((1, f'row_{noun} = pack("{key}", {noun}.number)'))
        if quiet or kind != "wrote line":
            failing.body.insert(position, (1, old))
        if kind == "removed guard":
            failing.body.insert(position, (1, guard))
        statement = old
        self.write(*self.modules, message="Begin", extra={f"{self.prefix}/__init__.py".lstrip("/"): ""} if self.language == "py" else None)
        for _ in range(r.randint(2, 6)):
            self.innocent(module, failing, statement, True)
        good = self.repo.heads["main"]
        before, after = r.randint(1, 8), r.randint(1, 8)
        for _ in range(before):
            self.innocent(module, failing, statement, near or not quiet)
        guilty: str | None = None
        if not quiet:
            message = r.choice([f"Improve {failing.name}", f"Speed up {module.stem}", "Small changes", f"Support {r.choice(NOUNS)}"])
            if kind == "wrote line":
                failing.body.insert(position, (1, statement))
            elif kind == "changed line":
                statement = f"{noun}_share = {noun}.amount / {noun}.parts_left"
                failing.body = [(depth, statement if text == old else text) for depth, text in failing.body]
            elif kind == "removed guard":
                failing.body = [(depth, text) for depth, text in failing.body if text != guard]
            elif kind == "changed caller":
                caller.body = [(depth, text.replace(call, f"{failing.name}({noun}_raw, context)")) for depth, text in caller.body]
            else:
                producer.body = [(depth, text.replace(f'"{key}"', f'"{key}_id"')) for depth, text in producer.body]
            changed = {"changed caller": caller_module, "changed producer": producer_module}.get(kind, module)
            extra_function = r.choice([each for each in changed.functions if each not in (failing, caller, producer)])
            if r.random() < 0.4:
                self.edit(extra_function)  # a commit does more than one thing
            guilty = self.write(changed, message=message)
        if decoy:
            self.decoy(module, failing, statement)
        for _ in range(after):
            self.innocent(module, failing, statement, near or not quiet)
        bad = self.repo.heads["main"]
        scene = Scene(self.repo, self.root)
        scene.deploy("1.0", good)
        scene.deploy("1.1", bad)
        frames = []
        wanted_call = next(text for _, text in caller.body if failing.name in text)
        for each, function, text in ((caller_module, caller, wanted_call), (module, failing, statement)):
            shown = self.decorated(text)
            path = self.path(each)
            number = self.repo.line_of(path, shown)
            deployed = r.choice(
                [
                    f"/app/{path}",
                    path,
                    f"/srv/www/releases/17/{path}",
                    f"webpack:///./{path}?a1b2" if self.language == "js" else f"/usr/src/app/{path}",
                ]
            )
            frames.append(StackFrame(file=deployed, function=function.name, line=number, context=shown.strip() if r.random() < 0.7 else ""))
        scene.signal(frames, release="1.1", exception_type=error[0], exception_value=error[1], title=f"{error[0]}: {error[1]}")
        return Incident(scene, guilty, kind, self.seed)


@pytest.fixture
def new_incident(tmp_path: Path) -> Callable[..., Incident]:
    """A seeded history with one guilty commit (or none, ``quiet``)."""

    def make(seed: int, kind: str | None = None, quiet: bool = False, decoy: bool = False, near: bool = False) -> Incident:
        root = tmp_path / f"{'quiet' if quiet else 'guilty'}-{kind or 'any'}-{seed}-{decoy}-{near}"
        root.mkdir()
        return Generator(seed, Repo(root / "code.git"), root).incident(kind, quiet, decoy, near)

    return make
