"""Unified diffs as values: files, hunks, lines."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

from unidiff.errors import UnidiffParseError
from unidiff.patch import PatchSet

from loopwright_repositories.errors import RepositoryRefused

_KINDS: dict[str, Literal["added", "deleted", "context"]] = {"+": "added", "-": "deleted", " ": "context"}


@dataclass(frozen=True)
class DiffLine:
    """One line of a hunk. ``old_number`` is None for an added line, ``new_number`` for a deleted one."""

    kind: Literal["added", "deleted", "context"]
    old_number: int | None
    new_number: int | None
    text: str


@dataclass(frozen=True)
class Hunk:
    """A run of changed lines with its context. ``heading`` is the function git found it in."""

    old_start: int
    old_lines: int
    new_start: int
    new_lines: int
    heading: str
    lines: tuple[DiffLine, ...]


@dataclass(frozen=True)
class FileDiff:
    """What a diff does to one file."""

    path: str
    old_path: str | None  # where it was renamed from
    status: Literal["added", "deleted", "modified", "renamed"]
    is_binary: bool
    hunks: tuple[Hunk, ...]

    @property
    def added(self) -> int:
        return sum(line.kind == "added" for hunk in self.hunks for line in hunk.lines)

    @property
    def deleted(self) -> int:
        return sum(line.kind == "deleted" for hunk in self.hunks for line in hunk.lines)


def parse_diff(text: str) -> tuple[FileDiff, ...]:
    """The files of a unified diff. Raises RepositoryRefused when it is not one."""
    try:
        patches = PatchSet(io.StringIO(text))
    except UnidiffParseError as error:
        raise RepositoryRefused(f"not a unified diff: {str(error)[:200]}") from error
    return tuple(_file(patch) for patch in patches)


def _file(patch: object) -> FileDiff:
    source, target = _bare(patch.source_file), _bare(patch.target_file)  # type: ignore[attr-defined]
    renamed = bool(patch.is_rename)  # type: ignore[attr-defined]
    if patch.is_added_file:  # type: ignore[attr-defined]
        status: Literal["added", "deleted", "modified", "renamed"] = "added"
    elif patch.is_removed_file:  # type: ignore[attr-defined]
        status = "deleted"
    else:
        status = "renamed" if renamed else "modified"
    hunks = tuple(
        Hunk(
            hunk.source_start, hunk.source_length, hunk.target_start, hunk.target_length, (hunk.section_header or "").strip(),
            tuple(
                DiffLine(_KINDS[line.line_type], line.source_line_no, line.target_line_no, line.value.removesuffix("\n"))
                for line in hunk
                if line.line_type in _KINDS
            ),
        )
        for hunk in patch  # type: ignore[attr-defined]
    )  # fmt: skip
    path = source if status == "deleted" else target
    return FileDiff(path, source if renamed else None, status, bool(patch.is_binary_file), hunks)  # type: ignore[attr-defined]


def _bare(name: str) -> str:
    name = name.partition("\t")[0]
    if name.startswith('"') and name.endswith('"'):
        # C-quoted by git: octal escapes of UTF-8 bytes, \n, \t, \", \\.
        unescaped = name[1:-1].encode("latin-1", "backslashreplace").decode("unicode_escape")
        name = unescaped.encode("latin-1", "replace").decode("utf-8", "replace")
    return name[2:] if name[:2] in ("a/", "b/") else name
