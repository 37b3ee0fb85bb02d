"""The Tiltfile, run with hand-written stand-ins for Tilt's functions: what it copies where, and that the names are the chart's.

Tilt itself is not run: it wants a Docker engine and a registry. That the file is Starlark was checked by hand with a Starlark parser.
"""

from __future__ import annotations

import ast
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def calls() -> dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]]:
    made: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {}

    def record(name: str) -> Any:
        def called(*arguments: Any, **named: Any) -> tuple[str, tuple[Any, ...]]:
            made.setdefault(name, []).append((arguments, named))
            return name, arguments

        return called

    names = ("load", "helm_resource", "docker_build", "sync", "fall_back_on", "local_resource")
    exec(compile((ROOT / "Tiltfile").read_text(), "Tiltfile", "exec"), {name: record(name) for name in names})
    return made


def test_the_tiltfile_uses_nothing_that_starlark_lacks() -> None:
    unknown = (ast.Import, ast.ImportFrom, ast.JoinedStr, ast.While, ast.ClassDef, ast.Try, ast.With, ast.Raise, ast.Starred)

    assert not [node for node in ast.walk(ast.parse((ROOT / "Tiltfile").read_text())) if isinstance(node, unknown)]


def test_every_package_is_copied_to_where_the_image_has_it(calls: dict[str, list[Any]]) -> None:
    copied = {Path(source): target for (source, target), _ in calls["sync"]}
    packages = {path.relative_to(ROOT) for pattern in ("libs/*", "services/*") for path in ROOT.glob(f"{pattern}/src/loopwright_*")}
    packages |= {path.relative_to(ROOT) for path in ROOT.glob("cli/src/loopwright_*")}

    assert set(copied) == packages
    assert all(target == f"/opt/loopwright/packages/{source.name}" for source, target in copied.items())
    assert "--target /opt/loopwright/packages" in (ROOT / "Dockerfile").read_text()


def test_what_cannot_be_copied_makes_the_image_anew(calls: dict[str, list[Any]]) -> None:
    (((files,), _),) = calls["fall_back_on"]

    assert {"Dockerfile", "requirements-image.lock"} <= set(files)
    assert all((ROOT / file).exists() for file in files)


def test_the_images_are_the_dockerfiles_targets_under_the_charts_names(calls: dict[str, list[Any]]) -> None:
    values = yaml.safe_load((ROOT / "helm/loopwright/values.yaml").read_text())
    targets = {arguments[0]: named["target"] for arguments, named in calls["docker_build"]}
    ((_, release),) = calls["helm_resource"]

    assert set(targets) == {
        values["image"]["repository"].removeprefix("docker.io/"),
        values["sandbox"]["image"]["repository"].removeprefix("docker.io/"),
    }
    assert all(f" AS {target}\n" in (ROOT / "Dockerfile").read_text() for target in targets.values())
    assert set(release["image_deps"]) == set(targets)
    for keys in release["image_keys"]:
        for key in keys:
            place = values
            for part in key.split("."):
                place = place[part]  # a KeyError: the chart has no such value


@pytest.fixture
def reloading(tmp_path: Path) -> Path:
    """docker/reload.py, which starts this Python instead of the image's."""
    script = tmp_path / "python"
    text = (ROOT / "docker" / "reload.py").read_text()
    assert '"/opt/loopwright/.venv/bin/python"' in text
    script.write_text(text.replace('"/opt/loopwright/.venv/bin/python"', repr(sys.executable)))
    (tmp_path / "watched").mkdir()
    (tmp_path / "watched" / "module.py").write_text("x = 1\n")
    return script


def _wait_for_lines(file: Path, count: int) -> None:
    end = time.monotonic() + 60
    while not file.exists() or len(file.read_text().splitlines()) < count:
        assert time.monotonic() < end, "the program was not started"
        time.sleep(0.05)


def test_a_changed_file_starts_the_service_again_and_an_end_is_passed_on(reloading: Path, tmp_path: Path) -> None:
    log, watched = tmp_path / "log", tmp_path / "watched"
    program = f"import time; open({str(log)!r}, 'a').write('started\\n'); time.sleep(600)"
    process = subprocess.Popen([sys.executable, reloading, "-c", program], env={"LOOPWRIGHT_RELOAD_DIR": str(watched)})
    try:
        _wait_for_lines(log, 1)
        (watched / "module.py").write_text("x = 2\n")
        _wait_for_lines(log, 2)
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
    finally:
        process.kill()


def test_a_program_that_ends_by_itself_gives_its_exit_code(reloading: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, reloading, "-c", "raise SystemExit(7)"], env={"LOOPWRIGHT_RELOAD_DIR": str(tmp_path / "watched")}
    )

    assert done.returncode == 7
