"""requirements-image.lock is what the packages need and nothing else, at the versions of requirements.lock."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PIN = re.compile(
    r"^(?P<name>[a-z0-9-]+)(?:\[[a-z,]+\])?==(?P<version>\S+?)(?: ; (?P<marker>[^\\]+?))? \\\n(?P<hashes>(?:    --hash=\S+(?: \\)?\n)+)",
    re.M,
)


def _pins(lock: str) -> dict[tuple[str, str], tuple[str, frozenset[str]]]:
    """Of each name and version of a lock its marker and hashes."""
    text = (ROOT / lock).read_text()
    pins = {(m["name"], m["version"]): (m["marker"] or "", frozenset(re.findall(r"--hash=(\S+)", m["hashes"]))) for m in PIN.finditer(text)}
    assert len(pins) == len(re.findall(r"^[a-z0-9]", text, re.M)), f"a line of {lock} was not understood"
    return pins


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("image_requirements", ROOT / "tools" / "image_requirements.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_image_gets_the_versions_and_files_that_the_tests_ran_with() -> None:
    whole = _pins("requirements.lock")

    strangers = {pin for pin in _pins("requirements-image.lock") if pin not in whole}
    other_files = {pin for pin, (_, hashes) in _pins("requirements-image.lock").items() if pin in whole and hashes != whole[pin][1]}

    assert not strangers, f"type make lock: {strangers}"
    assert not other_files, f"type make lock: {other_files}"


def test_everything_a_package_declares_is_in_the_images_lock(tool: ModuleType) -> None:
    locked = {name for name, _ in _pins("requirements-image.lock")}

    missing = {tool.name_of(requirement) for requirement in tool.image_requirements()} - locked

    assert not missing, f"type make lock: {missing}"


def test_what_only_tests_and_checks_need_is_not_in_the_image(tool: ModuleType) -> None:
    tests = (ROOT / "requirements.in").read_text().split("# tests and checks\n")[1].split()
    assert "pytest" in tests
    # What a service declares as well is the service's.
    wanted = {tool.name_of(requirement) for requirement in tool.image_requirements()}

    found = {name for name, _ in _pins("requirements-image.lock")} & ({tool.name_of(line) for line in tests} - wanted)

    assert not found


def test_the_locks_name_no_package_index() -> None:
    for lock in ("requirements.lock", "requirements-image.lock"):
        text = (ROOT / lock).read_text()
        assert "://" not in text
        assert not re.search(r"^--", text, re.M)
