"""What a checkout tells of commits, lines and files: plain values, and the parsers of git's machine formats."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from loopwright_repositories.errors import RepositoryRefused

SUBJECT_CHARACTERS_MAX = 512
BODY_CHARACTERS_MAX = 16_384
FILES_PER_COMMIT_MAX = 2_000
_IDENTITY = re.compile(r"^(?P<name>.*?) ?<(?P<mail>[^>]*)> (?P<time>-?\d+) (?P<zone>[+-]\d{4})$")


@dataclass(frozen=True)
class FileCount:
    """A file that a commit touched. ``added`` and ``deleted`` are lines; None for a binary file."""

    path: str
    added: int | None
    deleted: int | None
    old_path: str | None = None  # where it was renamed or copied from


@dataclass(frozen=True)
class Commit:
    """One commit. ``files`` are against its first parent."""

    sha: str
    parents: tuple[str, ...]
    author_name: str
    author_mail: str
    authored_at: datetime
    committer_name: str
    committed_at: datetime
    subject: str
    body: str
    files: tuple[FileCount, ...] = ()
    files_truncated: bool = False

    @property
    def is_merge(self) -> bool:
        return len(self.parents) > 1


@dataclass(frozen=True)
class BlamedLine:
    """A line of a file and the commit that last wrote it. ``original_*`` is where it stood in that commit."""

    number: int
    text: str
    commit: str
    original_path: str
    original_number: int
    author_name: str
    author_mail: str
    committed_at: datetime
    summary: str


@dataclass(frozen=True)
class TreeFile:
    """A file at a revision. ``mode`` as git writes it: 100644, 100755, 120000 (symbolic link), 160000 (submodule)."""

    path: str
    size_bytes: int | None
    mode: str
    object_id: str


def parse_commit(sha: str, raw: bytes) -> Commit:
    """Reads a commit object as ``git cat-file`` gives it (gitformat: header lines, an empty line, the message)."""
    header, _, message = raw.partition(b"\n\n")
    fields: dict[str, list[str]] = {}
    for line in header.decode("utf-8", "replace").split("\n"):
        if line.startswith(" "):  # continuation of a signature
            continue
        key, _, value = line.partition(" ")
        fields.setdefault(key, []).append(value)
    encoding = fields.get("encoding", ["utf-8"])[0]
    try:
        text = message.decode(encoding, "replace")
    except LookupError:
        text = message.decode("utf-8", "replace")
    author_name, author_mail, authored_at = _identity(fields.get("author", [""])[0])
    committer_name, _, committed_at = _identity(fields.get("committer", [""])[0])
    subject, _, body = text.strip("\n").partition("\n\n")
    return Commit(
        sha=sha, parents=tuple(fields.get("parent", ())), author_name=author_name, author_mail=author_mail, authored_at=authored_at,
        committer_name=committer_name, committed_at=committed_at, subject=" ".join(subject.split())[:SUBJECT_CHARACTERS_MAX],
        body=body.strip()[:BODY_CHARACTERS_MAX],
    )  # fmt: skip


def _identity(line: str) -> tuple[str, str, datetime]:
    match = _IDENTITY.match(line)
    if match is None:
        return line[:200], "", datetime.fromtimestamp(0, UTC)
    try:
        at = datetime.fromtimestamp(int(match["time"]), UTC)
    except (OverflowError, ValueError, OSError):
        at = datetime.fromtimestamp(0, UTC)  # a commit may claim any time
    return match["name"][:200], match["mail"][:200], at


def parse_batch(output: bytes) -> Iterator[tuple[str, bytes]]:
    """Objects from ``git cat-file --batch``: (object id, content)."""
    position = 0
    while position < len(output):
        end = output.index(b"\n", position)
        head = output[position:end].decode("ascii", "replace").split(" ")
        if len(head) != 3:
            raise RepositoryRefused(f"git has no object {head[0][:64]}")
        size = int(head[2])
        yield head[0], output[end + 1 : end + 1 + size]
        position = end + 1 + size + 1


def parse_numstat(output: bytes) -> dict[str, list[FileCount]]:
    """Files per commit from ``git diff-tree --stdin -z --numstat``.

    A commit's id stands alone; a file is ``added TAB deleted TAB path``, or with a rename an empty path followed by the old and the new
    path, each ended by NUL. Paths are taken as they are, so a hostile one cannot pretend to be another record.
    """
    files: dict[str, list[FileCount]] = {}
    current: list[FileCount] = []
    tokens = iter(output.split(b"\x00"))
    for token in tokens:
        if not token:
            continue
        text = token.decode("utf-8", "replace").lstrip("\n")
        parts = text.split("\t", 2)
        if len(parts) < 3:
            current = files.setdefault(text.strip(), [])
            continue
        added, deleted, path = parts
        old_path = None
        if path == "":
            old_path = next(tokens).decode("utf-8", "replace")
            path = next(tokens).decode("utf-8", "replace")
        current.append(FileCount(path, _count(added), _count(deleted), old_path))
    return files


def _count(text: str) -> int | None:
    return None if text == "-" else int(text)


def parse_blame(output: str) -> list[BlamedLine]:
    """Lines from ``git blame --porcelain``: a commit's header is given once, then only its id."""
    lines: list[BlamedLine] = []
    known: dict[str, dict[str, str]] = {}
    commit, original, final = "", 0, 0
    for raw in output.split("\n"):
        if raw.startswith("\t"):
            about = known[commit]
            lines.append(
                BlamedLine(
                    number=final, text=raw[1:], commit=commit, original_path=about.get("filename", ""), original_number=original,
                    author_name=about.get("author", "")[:200], author_mail=about.get("author-mail", "").strip("<>")[:200],
                    committed_at=datetime.fromtimestamp(int(about.get("committer-time", "0")), UTC),
                    summary=about.get("summary", "")[:SUBJECT_CHARACTERS_MAX],
                )
            )  # fmt: skip
            continue
        key, _, value = raw.partition(" ")
        if re.fullmatch(r"[0-9a-f]{40}(?:[0-9a-f]{24})?", key):
            numbers = value.split(" ")
            commit, original, final = key, int(numbers[0]), int(numbers[1])
            known.setdefault(commit, {})
        elif key and commit:
            known[commit][key] = value
    return lines


def parse_tree(output: bytes) -> list[TreeFile]:
    """Files from ``git ls-tree -r -z -l``."""
    found = []
    for record in output.split(b"\x00"):
        if not record:
            continue
        about, _, path = record.partition(b"\t")
        mode, _, object_id, size = about.decode("ascii").split()
        found.append(TreeFile(path.decode("utf-8", "replace"), None if size == "-" else int(size), mode, object_id))
    return found
