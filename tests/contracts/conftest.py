"""Golden examples: what a payload looks like on the wire, kept as files so that a change of a contract is seen in review.

A changed contract fails ``test_goldens.py`` with a diff. When the change is meant: ``LOOPWRIGHT_UPDATE_GOLDEN=1 pytest tests/contracts``,
look at the diff of ``tests/contracts/golden/``, commit it with the change.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

GOLDEN = Path(__file__).parent / "golden"
ACCEPT = "LOOPWRIGHT_UPDATE_GOLDEN"


@pytest.fixture
def golden() -> Callable[[str, Any], None]:
    """Compares a value with the golden file of that name, or writes the file when that is asked for."""

    def compare(name: str, value: Any) -> None:
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        path = GOLDEN / f"{name}.json"
        if os.environ.get(ACCEPT) == "1":
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        if before != text:
            diff = "".join(difflib.unified_diff(before.splitlines(True), text.splitlines(True), f"golden/{name}.json", "now"))
            pytest.fail(f"{name} is not what was agreed:\n{diff}\nWhen it is meant: {ACCEPT}=1 pytest tests/contracts", pytrace=False)

    return compare
