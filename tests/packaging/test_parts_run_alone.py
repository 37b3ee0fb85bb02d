"""What has to run without the rest: the model's build stage in the image, and the sandbox in a Python that has no packages."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_image_builds_the_model_with_nothing_but_what_its_stage_copies(tmp_path: Path) -> None:
    stage = (ROOT / "Dockerfile").read_text().partition("AS model\n")[2].partition("\nFROM ")[0]
    copied = re.findall(r"^COPY (services/\S+) (src/\S+)$", stage, re.M)
    assert copied
    for source, target in copied:
        place = tmp_path / target
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, place)
        else:
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, place)
    modules = "loopwright_cluster.embedding.model_build, loopwright_cluster.embedding.minilm"
    done = _python(f"import {modules}; print(loopwright_cluster.__file__)", tmp_path / "src")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().startswith(str(tmp_path)), "it was another one that was imported"


def test_the_host_sandboxes_are_found_by_a_python_that_has_no_packages() -> None:
    folders = [*ROOT.glob("services/pr-agent/src"), *ROOT.glob("libs/common/src")]
    done = _python("import loopwright_pr_agent.sandbox.detect", *folders, flags=("-S",))  # -S: no packages but Python's own
    assert done.returncode == 0, done.stderr


def _python(code: str, *folders: Path, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *flags, "-c", code], capture_output=True, text=True, timeout=60, check=False,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": ":".join(map(str, folders))},
    )  # fmt: skip
