"""What a diff may be before anybody is asked to review it: size, protected paths, secrets, binary files, links.

Checked twice: by the service, to say no early, and by the publisher, which trusts nobody.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from loopwright_repositories.diffs import FileDiff, parse_diff
from loopwright_repositories.errors import RepositoryRefused
from pathspec import PathSpec

# What runs with rights of its own when merged, and who must look at it.
ALWAYS_PROTECTED = (
    ".github/workflows/", ".github/actions/", ".gitlab-ci.yml", ".gitlab/ci/", ".gitea/workflows/", ".forgejo/workflows/", ".circleci/",
    ".buildkite/", ".drone.yml", ".woodpecker/", ".woodpecker.yml", "Jenkinsfile", "azure-pipelines.yml", ".travis.yml",
    "bitbucket-pipelines.yml", "CODEOWNERS", ".loopwright.yaml", ".gitmodules", ".gitattributes",
)  # fmt: skip
# Formats their issuers document, or that secret scanners publish.
SECRETS = {
    "a private key": re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"),
    "an AWS access key": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a GitHub token": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{60,})\b"),
    "a GitLab token": re.compile(r"\bglpat-[A-Za-z0-9_-]{20,}"),
    "a Slack token": re.compile(r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}"),
    "a Google API key": re.compile(r"\bAIza[0-9A-Za-z_-]{35}\b"),
    "a Stripe live key": re.compile(r"\b[rs]k_live_[0-9A-Za-z]{16,}"),
    "a model provider's key": re.compile(r"\bsk-(?:proj-|ant-)[A-Za-z0-9_-]{20,}"),
    "a URL with a password": re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s:/@]{1,64}:[^\s:/@]{6,}@[^\s]+"),
}
_MODE = re.compile(r"^(?:new file mode|new mode) (120000|160000)$", re.MULTILINE)
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
    guarded = PathSpec.from_lines("gitignore", [*ALWAYS_PROTECTED, *protected])
    faults += [f"{path} is protected: a person has to change it" for path in files if guarded.match_file(path)]
    faults += [f"{file.path} is binary: nobody can review it" for file in parsed if file.is_binary]
    if "GIT binary patch" in diff and not any(file.is_binary for file in parsed):
        faults.append("the diff holds a binary patch: nobody can review it")
    if _MODE.search(diff) or _INDEX_MODE.search(diff):
        faults.append("the diff makes a symbolic link or a submodule")
    faults += [fault for file in parsed for fault in _secrets(file)]
    return Checked(files, tuple(faults[:20]))


def _secrets(file: FileDiff) -> list[str]:
    found = []
    for hunk in file.hunks:
        for line in hunk.lines:
            if line.kind == "added":
                found += [f"{file.path}:{line.new_number} looks like {name}" for name, shape in SECRETS.items() if shape.search(line.text)]
    return found
