"""CODEOWNERS as GitHub, GitLab and Gitea read it: the last pattern that matches a path decides.

Patterns are gitignore patterns (pathspec), with GitHub's differences: no negation (``!``) and no character ranges (``[ ]``): such
lines are skipped and listed in ``skipped``; ``docs/*`` owns the files directly in ``docs`` and none below. A pattern without
owners makes the path unowned. Deviation:
GitLab's ``[Section]`` headings are skipped, so their default owners and approval counts do not apply.
Source: "About code owners", GitHub Docs.
"""

from __future__ import annotations

from dataclasses import dataclass

from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

PLACES = (".github/CODEOWNERS", "CODEOWNERS", "docs/CODEOWNERS", ".gitlab/CODEOWNERS", ".gitea/CODEOWNERS")  # the first that exists counts
LINES_MAX = 20_000  # GitHub refuses files over 3 MB; this bounds the patterns tried per path


@dataclass(frozen=True)
class OwnerRule:
    """One line: a pattern and who owns what it matches (``@user``, ``@org/team`` or a mail address)."""

    line: int
    pattern: str
    owners: tuple[str, ...]
    compiled: GitIgnoreSpecPattern

    def matches(self, path: str) -> bool:
        """Whether this rule speaks of ``path``."""
        if self.compiled.match_file(path) is None:
            return False
        if self.pattern.endswith("/*"):
            depth = self.pattern.strip("/").count("/")
            return path.count("/") == depth
        return True


@dataclass(frozen=True)
class CodeOwners:
    """The owners that a repository names. ``path`` is the file they were read from, empty when there is none."""

    path: str = ""
    rules: tuple[OwnerRule, ...] = ()
    skipped: tuple[str, ...] = ()

    def of(self, path: str) -> tuple[str, ...]:
        """Who owns ``path``: the owners of the last rule that matches; empty when nobody does."""
        rule = self.rule(path)
        return rule.owners if rule is not None else ()

    def rule(self, path: str) -> OwnerRule | None:
        """The rule that decides about ``path``."""
        return next((rule for rule in reversed(self.rules) if rule.matches(path)), None)


def parse_codeowners(text: str, path: str = "CODEOWNERS") -> CodeOwners:
    """Reads a CODEOWNERS file; lines that cannot be followed are kept in ``skipped`` with their number."""
    rules: list[OwnerRule] = []
    skipped: list[str] = []
    for number, raw in enumerate(text.splitlines()[:LINES_MAX], start=1):
        line = raw.split(" #", 1)[0].split("\t#", 1)[0].strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith(("[", "^[")):
            skipped.append(f"line {number}: section {line[:80]}")
            continue
        pattern, *owners = line.replace("\\ ", "\x00").split()
        pattern = pattern.replace("\x00", "\\ ")
        if pattern.startswith("!") or "[" in pattern:
            skipped.append(f"line {number}: {pattern[:80]} uses negation or a character range")
            continue
        try:
            compiled = GitIgnoreSpecPattern(pattern)
        except ValueError as error:
            skipped.append(f"line {number}: {pattern[:80]}: {error}")
            continue
        if compiled.include is None:
            skipped.append(f"line {number}: {pattern[:80]} matches nothing")
            continue
        rules.append(OwnerRule(number, pattern, tuple(owners), compiled))
    return CodeOwners(path, tuple(rules), tuple(skipped[:200]))
