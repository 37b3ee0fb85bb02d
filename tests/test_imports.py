"""Imports point one way. Read from the source, so that what is only imported in a function counts too."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    path.name: path
    for pattern in ("libs/*/src/loopwright_*", "services/*/src/loopwright_*", "cli/src/loopwright_*")
    for path in ROOT.glob(pattern)
}
SERVICES = {name for name, path in PACKAGES.items() if path.parents[2].name == "services"}
# contracts <- domain <- ports <- handlers <- app <- __main__: a room may import those before it.
LEVELS = {"domain": 1, "ports": 2, "handlers": 3, "api": 3, "app": 4, "__main__": 5}


def modules(package: str) -> Iterator[tuple[str, Path]]:
    root = PACKAGES[package]
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        yield ".".join([package, *(part for part in parts if part != "__init__")]), path


def imports(path: Path, module: str) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{name}.{alias.name}" for alias in node.names)


def test_there_is_something_to_check() -> None:
    assert {"loopwright_common", "loopwright_gateway", "loopwright_cli"} <= set(PACKAGES)
    assert len(SERVICES) >= 6


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_services_never_import_each_other(package: str) -> None:
    allowed = {package, "loopwright_common"}
    if package in SERVICES:
        allowed.add("loopwright_repositories")
    wrong = [
        f"{module} imports {name}"
        for module, path in modules(package)
        for name in imports(path, module)
        if name.startswith("loopwright_") and name.split(".")[0] not in allowed
    ]
    assert wrong == []


@pytest.mark.parametrize("package", sorted(SERVICES))
def test_only_the_composition_root_imports_adapters(package: str) -> None:
    roots = (
        f"{package}.app",
        f"{package}.__main__",
        f"{package}.adapters",
        f"{package}.migrate",
        f"{package}.migrations",
        f"{package}.publisher",
    )
    wrong = [
        f"{module} imports {name}"
        for module, path in modules(package)
        for name in imports(path, module)
        if name.startswith(f"{package}.adapters") and not module.startswith(roots)
    ]
    assert wrong == []


@pytest.mark.parametrize("package", sorted(SERVICES))
def test_rooms_import_only_those_before_them(package: str) -> None:
    wrong = []
    for module, path in modules(package):
        level = LEVELS.get(module.removeprefix(f"{package}.").split(".")[0])
        for name in imports(path, module):
            if level is None or not name.startswith(f"{package}."):
                continue
            other = LEVELS.get(name.removeprefix(f"{package}.").split(".")[0])
            if other is not None and other > level:
                wrong.append(f"{module} imports {name}")
    assert wrong == []


@pytest.mark.parametrize("package", sorted(SERVICES))
def test_domains_are_pure(package: str) -> None:
    impure = {"asyncio", "httpx", "os", "subprocess", "socket", "random", "time", "sqlalchemy", "fastapi", "nats", "openai"}
    path = PACKAGES[package] / "domain.py"
    wrong = [name for name in imports(path, f"{package}.domain") if name.split(".")[0] in impure]
    assert wrong == []


def test_one_package_speaks_nats_and_one_module_speaks_openai() -> None:
    wrong = [
        f"{module} imports {name}"
        for package in PACKAGES
        for module, path in modules(package)
        for name in imports(path, module)
        if (name.split(".")[0] == "nats" and not module.startswith("loopwright_common.nats_bus"))
        or (name.split(".")[0] == "openai" and not module.startswith("loopwright_common.model"))
    ]
    assert wrong == []


def _declared(package: str) -> set[str]:
    """The distributions that a package declares, and those that the libraries it declares do."""
    found: set[str] = set()
    waiting = [PACKAGES[package].parents[1] / "pyproject.toml"]
    while waiting:
        project = tomllib.loads(waiting.pop().read_text())["project"]
        for requirement in project["dependencies"]:
            name = re.split(r"[<>=!;\[ ]", requirement)[0].lower()
            found.add(name)
            if name.startswith("loopwright-"):
                waiting.append(ROOT / "libs" / name.removeprefix("loopwright-") / "pyproject.toml")
    return found


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_what_is_imported_is_declared(package: str) -> None:
    owners = metadata.packages_distributions()
    declared = _declared(package) | {f"loopwright-{package.removeprefix('loopwright_').replace('_', '-')}"}
    # What comes with a declared framework, and is part of what it promises.
    declared |= {"starlette", "pydantic-core", "typing-extensions", "click", "opentelemetry-api"}
    wrong = set()
    for module, path in modules(package):
        if ".testing" in module:
            continue
        for name in imports(path, module):
            top = name.split(".")[0]
            if top in sys.stdlib_module_names or top.startswith("loopwright_") or top == "":
                continue
            if not {owner.lower().replace("_", "-") for owner in owners.get(top, [])} & declared:
                wrong.add(f"{module} imports {top}")
    assert wrong == set()
