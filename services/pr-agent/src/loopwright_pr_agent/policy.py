"""What a diff may be before anybody is asked to review it: size, protected paths, secrets, binary files, links.

Checked by the service, to say no early, and by the publisher, which trusts nobody: it also judges the commit that git made of the diff,
since a text can be read in two ways (``--- x/.github/...`` is ``.github/...`` to git) and only the commit is pushed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from loopwright_repositories.diffs import FileDiff, parse_diff
from loopwright_repositories.errors import RepositoryRefused
from loopwright_repositories.publishing import MadeCommit
from pathspec import PathSpec

from loopwright_pr_agent.secret_scan import secret_in

# What runs with rights of its own when merged, and who must look at it. As gitignore patterns: without an inner slash at any depth.
# In lower case and matched so: CodeOwners is CODEOWNERS on a file system, or for a forge, that does not tell cases apart.
ALWAYS_PROTECTED = (
    ".github/workflows/", ".github/actions/", ".gitlab-ci.yml", ".gitlab/ci/", ".gitea/workflows/", ".gitea/actions/", ".forgejo/",
    ".circleci/", ".buildkite/", ".drone.yml", ".woodpecker/", ".woodpecker.yml", "jenkinsfile", "azure-pipelines.yml", ".travis.yml",
    "bitbucket-pipelines.yml", "codeowners", ".loopwright.yaml", ".gitmodules", ".gitattributes",
)  # fmt: skip
LINK, SUBMODULE = "120000", "160000"
_MODE = re.compile(r"^(?:new file mode|new mode) (120000|160000)$", re.MULTILINE)
_HEADER = re.compile(r"^diff --git ", re.MULTILINE)
_INDEX_MODE = re.compile(r"^index [0-9a-f]+\.\.[0-9a-f]+ (120000|160000)$", re.MULTILINE)


@dataclass(frozen=True)
class DiffLimits:
    """What one change may be."""

    bytes_max: int = 128 * 1024
    files_max: int = 100


@dataclass(frozen=True)
class Checked:
    """The files of a diff, and each reason against it; none: it may be published."""

    files: tuple[str, ...]
    faults: tuple[str, ...]


def check_diff(diff: str, limits: DiffLimits, protected: Sequence[str] = ()) -> Checked:
    """Reads a diff and says what speaks against it."""
    size = len(diff.encode())
    if size > limits.bytes_max:
        return Checked((), (f"the diff is {size} bytes; LOOPWRIGHT_PR_AGENT_DIFF_BYTES_MAX is {limits.bytes_max}",))
    try:
        parsed = parse_diff(diff)
    except RepositoryRefused as error:
        return Checked((), (str(error),))
    files = tuple(dict.fromkeys(path for file in parsed for path in (file.path, file.old_path) if path))
    faults = [] if parsed else ["the diff changes nothing"]
    if len(files) > limits.files_max:
        faults.append(f"the diff touches {len(files)} files; LOOPWRIGHT_PR_AGENT_DIFF_FILES_MAX is {limits.files_max}")
    if len(parsed) > len(_HEADER.findall(diff)):
        faults.append("a part of the diff has no 'diff --git' line: its names cannot be told for sure")
    faults += _protected(files, protected)
    faults += [f"{file.path} is binary: nobody can review it" for file in parsed if file.is_binary]
    if "GIT binary patch" in diff and not any(file.is_binary for file in parsed):
        faults.append("the diff holds a binary patch: nobody can review it")
    if _MODE.search(diff) or _INDEX_MODE.search(diff):
        faults.append("the diff makes a symbolic link or a submodule")
    faults += [fault for file in parsed for fault in _secrets(file)]
    return Checked(files, tuple(faults[:20]))


def check_made(made: MadeCommit, limits: DiffLimits, protected: Sequence[str] = ()) -> Checked:
    """Says what speaks against a commit that git made of a diff: by its trees, and by the diff that git itself writes."""
    checked = check_diff(made.diff, limits, protected)
    paths = tuple(changed.path for changed in made.paths)
    faults = _protected(paths, protected)
    if len(paths) > 2 * limits.files_max:  # a rename is two
        faults.append(f"the commit touches {len(paths)} paths; LOOPWRIGHT_PR_AGENT_DIFF_FILES_MAX is {limits.files_max}")
    for changed in made.paths:
        if {changed.old_mode, changed.new_mode} & {LINK, SUBMODULE}:
            faults.append(f"{printable_path(changed.path)} is or was a symbolic link or a submodule")
        if printable_path(changed.path) != changed.path:
            faults.append(f"{printable_path(changed.path)} has characters in its name that a reviewer cannot see")
    return Checked(paths, tuple(dict.fromkeys((*faults, *checked.faults)))[:20])


def printable_path(path: str) -> str:
    """The path with control characters, and bytes that are not UTF-8, escaped."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in path)


def _protected(paths: Sequence[str], configured: Sequence[str]) -> list[str]:
    # Two lists, so that a configured "!pattern" takes nothing from the built-in one.
    lists = (PathSpec.from_lines("gitignore", ALWAYS_PROTECTED), PathSpec.from_lines("gitignore", [line.casefold() for line in configured]),
             PathSpec.from_lines("gitignore", configured))  # fmt: skip
    return [
        f"{printable_path(path)} is protected: a person has to change it"
        for path in paths
        if any(spec.match_file(name) for spec in lists for name in (path, path.casefold()))
    ]


def _secrets(file: FileDiff) -> list[str]:
    found = []
    for hunk in file.hunks:
        for line in hunk.lines:
            if line.kind == "added" and (what := secret_in(line.text)):
                found.append(f"{file.path}:{line.new_number} looks like {what}")
    return found
