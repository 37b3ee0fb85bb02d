"""Bug reports of a project in GitBugs, a public data set under CC BY 4.0, as rows of a grouping file.

A checkout of it (github.com/av9ash/gitbugs) has for each project a CSV of reports and one of pairs "is a duplicate of". The rows are in
time order; `group` is what the pairs link, however long the chain.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

FIELD_CHARS_MAX = 10_000_000


class Groups:
    """Names that pairs have linked, each under the first name of its group."""

    def __init__(self) -> None:
        self._under: dict[str, str] = {}

    def of(self, name: str) -> str:
        while (above := self._under.get(name, name)) != name:
            name = above
        return name

    def link(self, one: str, other: str) -> None:
        first, second = sorted((self.of(one), self.of(other)))
        if first != second:
            self._under[second] = first


def load(folder: Path) -> list[dict[str, Any]]:
    """The reports of one project's folder. Raises FileNotFoundError where one of its two files is missing, KeyError for other columns."""
    reports, pairs = files(folder)
    groups, rows = Groups(), list(_read(reports))
    known = {row["Issue id"] for row in rows}
    for pair in _read(pairs):
        if pair["Issue id"] in known and pair["Duplicate id"] in known:
            groups.link(pair["Issue id"], pair["Duplicate id"])
    found = [
        {
            "id": row["Issue id"],
            "timestamp": moment(row["Created"]),
            "title": row["Summary"],
            "text": row["Description"] or "",
            "group": groups.of(row["Issue id"]),
        }
        for row in rows
    ]
    return sorted(found, key=lambda row: (row["timestamp"], row["id"]))


def files(folder: Path) -> tuple[Path, Path]:
    """The project's reports and its pairs."""
    found = [next(folder.glob(pattern), None) for pattern in ("*_bugs.csv", "*_bugs-combined.csv")]
    reports, pairs = found
    if reports is None or pairs is None:
        raise FileNotFoundError(f"{folder} has no *_bugs.csv with its *_bugs-combined.csv; some projects' are packed: unpack them first")
    return reports, pairs


def digest(folder: Path) -> str:
    """The first figures of the SHA-256 of the two files: what the coefficients say they were made from."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in files(folder))).hexdigest()[:16]


def moment(text: str) -> str:
    """Jira's `30/Sep/21 17:20` or Bugzilla's ISO 8601, as ISO 8601. Raises ValueError for anything else."""
    found = datetime.strptime(f"{text} +0000", "%d/%b/%y %H:%M %z") if "/" in text else datetime.fromisoformat(text)
    return f"{found.replace(tzinfo=None).isoformat()}Z"


def _read(path: Path) -> Iterator[dict[str, str]]:
    csv.field_size_limit(FIELD_CHARS_MAX)
    with path.open(encoding="utf-8", newline="") as lines:
        yield from csv.DictReader(lines)
