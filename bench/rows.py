"""Rows of a grouping file as signals: `id, timestamp, title, text, frames` and nothing else is looked at."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from loopwright_common.contracts.signals import Signal, SignalKind, StackFrame

PROJECT = "bench"
TITLE_CHARS_MAX = 512
TEXT_CHARS_MAX = 16_384


def load(path: Path) -> list[dict[str, Any]]:
    """The file's rows, in order. Raises ValueError naming the line that is not a JSON object."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}") from None
        if not isinstance(row, dict) or "id" not in row:
            raise ValueError(f"{path}, line {number} is not an object with an id")
        rows.append(row)
    return rows


def kind_of(row: Mapping[str, Any]) -> SignalKind:
    """Frames make an exception, a single line without further text a log line, all else was written by a person."""
    if row.get("frames"):
        return SignalKind.EXCEPTION
    text = str(row.get("text") or "").strip()
    title = str(row.get("title") or "").strip()
    return SignalKind.LOG if not text or text == title else SignalKind.ISSUE


def signal_of(number: int, row: Mapping[str, Any], kind: SignalKind) -> Signal:
    """The row as ingest would have accepted it; ``number`` makes its id, whatever the file's ids look like."""
    moment = _moment(row.get("timestamp"))
    title, text = str(row.get("title") or ""), str(row.get("text") or "")
    if kind is SignalKind.LOG:
        text = "\n".join(filter(None, (title, text)))
    frames = tuple(frame_of(frame) for frame in reversed(list(row.get("frames") or ())[:100]))
    return Signal(
        id=f"row-{number}",
        project=PROJECT,
        source="http",
        kind=kind,
        title=(title or text or "untitled")[:TITLE_CHARS_MAX],
        body=text[:TEXT_CHARS_MAX],
        occurred_at=moment,
        received_at=moment,
        frames=frames,
        exception_value=title[:TITLE_CHARS_MAX] if kind is SignalKind.EXCEPTION else "",
    )


def frame_of(frame: Any) -> StackFrame:
    """A row's frame: a line of text, or an object with the names that exports have for a frame's parts."""
    if not isinstance(frame, dict):
        return StackFrame(function=str(frame)[:512])

    def part(*names: str) -> str:
        return next((str(frame[name])[:512] for name in names if frame.get(name)), "")

    def number(*names: str) -> int | None:
        found = part(*names)
        return int(found) if found.isdecimal() and len(found) < 8 else None

    return StackFrame(
        file=part("file", "filename", "path", "abs_path", "source", "url", "fileName"),
        function=part("function", "func", "method", "name", "methodName", "symbol"),
        module=part("module", "class", "className", "package", "namespace"),
        line=number("line", "lineno", "line_number", "lineNumber"),
        column=number("column", "colno", "col", "columnNumber"),
        in_app=frame.get("in_app", frame.get("inApp", True)) is not False,
    )


def kinds_of(rows: list[dict[str, Any]]) -> list[SignalKind]:
    """Each row's kind; in a file where people write, a report without a text is a report all the same."""
    kinds = [kind_of(row) for row in rows]
    people = sum(kind is SignalKind.ISSUE for kind in kinds)
    lines = sum(kind is SignalKind.LOG for kind in kinds)
    return [SignalKind.ISSUE if kind is SignalKind.LOG and people > lines else kind for kind in kinds]


def _moment(value: object) -> datetime:
    text = str(value or "2020-01-01T00:00:00Z").replace("Z", "+00:00").replace(",", ".")
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = datetime.fromisoformat("2020-01-01T00:00:00+00:00")
    return moment if moment.tzinfo else datetime.fromisoformat(moment.isoformat() + "+00:00")
