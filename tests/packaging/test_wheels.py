"""Every package works from its own wheel, in an environment that has its declared dependencies and nothing else."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = sorted(path.parent for pattern in ("libs/*", "services/*", "cli") for path in ROOT.glob(f"{pattern}/pyproject.toml"))
SERVICES = [package for package in PACKAGES if package.parent.name == "services"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

IMPORT_ALL = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    # Migration scripts are run by Alembic, which gives them their context; test support is for environments that have pytest.
    if not module.name.endswith(".__main__") and ".testing" not in module.name and ".migrations" not in module.name:
        importlib.import_module(module.name)
"""


def _uv() -> str:
    found = shutil.which("uv") or next((str(path) for path in ROOT.glob(".cache/uv/**/bin/uv")), None)
    if found is None:
        pytest.fail("uv is not there; `make test` brings it to .cache/uv")
    return found


def _run(*arguments: str | Path, folder: Path = Path("/"), **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("LOOPWRIGHT_", "PYTHON", "VIRTUAL_ENV"))}
    return subprocess.run([str(a) for a in arguments], env=kept | environment, capture_output=True, text=True, timeout=300, cwd=folder)


def _name(package: Path) -> str:
    return str(tomllib.loads((package / "pyproject.toml").read_text())["project"]["name"])


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel of every package."""
    folder = tmp_path_factory.mktemp("wheels")
    for package in PACKAGES:
        built = _run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, folder=package)
        assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="session")
def constraints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The locked versions without their hashes, as constraints: they pin what is asked for and add nothing."""
    pins = re.findall(r"^[A-Za-z0-9_.\[\]-]+==[^\s\\]+(?: ; [^\\\n]+)?", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    file = tmp_path_factory.mktemp("constraints") / "constraints.txt"
    file.write_text("\n".join(pin.strip() for pin in pins))
    return file


@pytest.fixture(scope="session")
def environments(wheels: Path, constraints: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One fresh environment per package, made when it is first asked for."""
    made: dict[str, Path] = {}

    class Environments(dict[str, Path]):
        def __missing__(self, name: str) -> Path:
            folder = tmp_path_factory.mktemp(name) / "venv"
            created = _run(_uv(), "venv", "--python", sys.executable, folder)
            assert created.returncode == 0, created.stderr
            python = folder / "bin" / "python"
            installed = _run(_uv(), "pip", "install", "--python", python, "--find-links", wheels, "-c", constraints, name)
            assert installed.returncode == 0, installed.stderr
            self[name] = python
            return python

    return Environments(made)


@pytest.mark.parametrize("package", PACKAGES, ids=_name)
def test_a_package_imports_with_only_its_own_dependencies(package: Path, environments: dict[str, Path]) -> None:
    module = next(path.name for path in (package / "src").iterdir() if path.name.startswith("loopwright_"))

    imported = _run(environments[_name(package)], "-c", IMPORT_ALL, module)

    assert imported.returncode == 0, imported.stderr


@pytest.mark.parametrize("service", SERVICES, ids=_name)
def test_a_service_explains_itself_to_a_stranger(service: Path, environments: dict[str, Path]) -> None:
    python = environments[_name(service)]
    short = service.name.replace("-", "_")

    helped = _run(python, "-m", f"loopwright_{short}", "--help")
    assert helped.returncode == 0, helped.stderr
    assert f"LOOPWRIGHT_{short.upper()}_PORT" in helped.stdout

    refused = _run(python, "-m", f"loopwright_{short}", **{f"LOOPWRIGHT_{short.upper()}_PORT": "many"})
    assert refused.returncode == 2
    assert f"LOOPWRIGHT_{short.upper()}_PORT" in refused.stderr
    assert "many" in refused.stderr

    unknown = _run(python, "-m", f"loopwright_{short}", "--frobnicate")
    assert unknown.returncode == 2
    assert "--help" in unknown.stderr
