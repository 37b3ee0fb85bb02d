"""Checks on what comes from outside before git sees it: revisions, paths, branch names, URLs."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from loopwright_repositories.errors import HostileInput

COMMIT = re.compile(r"^[0-9a-f]{40}(?:[0-9a-f]{24})?$")
PATH_CHARACTERS_MAX = 4_096  # PATH_MAX of Linux
REVISION_CHARACTERS_MAX = 256
URL_CHARACTERS_MAX = 2_048
# git-check-ref-format(1), rules 3 to 9, and no more than a release name, tag or branch needs.
_REVISION = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_./+@#=,!%-]*$")
_SCHEMES = frozenset({"http", "https", "file"})


def commit_sha(text: str) -> str:
    """The full commit id, or HostileInput when it is not 40 or 64 lower-case hexadecimal digits."""
    if not COMMIT.match(text):
        raise HostileInput(f"{text[:80]!r} is not a full commit id (40 or 64 hexadecimal digits)")
    return text


def revision_name(text: str) -> str:
    """A name that may be a branch, tag, release or commit. No ranges, no ``@{...}``, no ``:path``, nothing that reads as an option."""
    if len(text) > REVISION_CHARACTERS_MAX:
        raise HostileInput(f"revision of {len(text)} characters; the limit is {REVISION_CHARACTERS_MAX}")
    if not _REVISION.match(text) or ".." in text or "//" in text or text.endswith((".", "/", ".lock")):
        raise HostileInput(f"{text[:80]!r} cannot be the name of a revision")
    return text


def branch_name(text: str) -> str:
    """A branch name without ``refs/heads/``."""
    revision_name(text)
    if text == "HEAD" or text.startswith("refs/") or any(part.startswith(".") or part.endswith(".lock") for part in text.split("/")):
        raise HostileInput(f"{text[:80]!r} cannot be the name of a branch")
    return text


def repository_path(text: str) -> str:
    """A path inside a repository: relative, forward slashes, no ``.`` or ``..`` part, no NUL, no leading ``-``."""
    if not text or len(text) > PATH_CHARACTERS_MAX:
        raise HostileInput(f"path of {len(text)} characters; it must have 1 to {PATH_CHARACTERS_MAX}")
    if text.startswith(("-", "/", ":")) or "\x00" in text or "\n" in text:
        raise HostileInput(f"{text[:80]!r} is not a path inside a repository")
    if any(part in ("", ".", "..") for part in text.rstrip("/").split("/")):
        raise HostileInput(f"{text[:80]!r} is not a path inside a repository: it has an empty, '.' or '..' part")
    return text


def remote_url(text: str) -> str:
    """A URL (http, https, file) or absolute path to fetch from. Credentials in it are refused: they would end in logs."""
    if not text or len(text) > URL_CHARACTERS_MAX or any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise HostileInput("a repository URL is empty, too long or has control characters")
    if text.startswith("/"):
        if any(part == ".." for part in text.split("/")):
            raise HostileInput(f"{text[:120]!r} goes up with '..'; give the plain absolute path")
        return text
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise HostileInput(f"{text[:120]!r} is not a URL: {error}") from error
    if parts.scheme not in _SCHEMES:
        raise HostileInput(f"{text[:120]!r}: only http, https and file URLs and absolute paths are fetched")
    if parts.username is not None or parts.password is not None:
        raise HostileInput("a repository URL carries a credential; give it as a token instead")
    if parts.scheme != "file" and not parts.hostname:
        raise HostileInput(f"{text[:120]!r} names no host")
    return text
