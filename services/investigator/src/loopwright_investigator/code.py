"""What can be told of source code in any of the common languages without parsing it: functions, comments, names, kinds of file. Pure.

Heuristics on purpose: a parser per language would be exact for a few languages and absent for the rest, and the ranking of commits only
needs to know which function a line is in and whether a change does anything. Where nothing can be told, the answer is None.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

INDENTED = frozenset({"py", "pyi", "coffee", "nim", "yaml", "yml"})
HASH_COMMENTS = frozenset({"py", "pyi", "rb", "sh", "bash", "pl", "r", "ex", "exs", "yaml", "yml", "toml", "tf", "nim", "coffee", "cr"})
SLASH_COMMENTS = frozenset(
    {
        "js",
        "jsx",
        "ts",
        "tsx",
        "mjs",
        "cjs",
        "go",
        "java",
        "kt",
        "kts",
        "scala",
        "c",
        "h",
        "cc",
        "cpp",
        "hpp",
        "cs",
        "rs",
        "swift",
        "php",
        "dart",
        "groovy",
        "m",
        "mm",
        "vue",
        "svelte",
        "proto",
        "zig",
    }
)
SOURCE = HASH_COMMENTS | SLASH_COMMENTS | {"sql", "erl", "clj", "hs", "lua", "ml", "fs", "vb", "html", "erb", "jinja", "j2", "tmpl"}
LINES_SCANNED_MAX = 400  # above a line for the function that holds it: longer functions are rare, and a scan must end

_DEFINITION = re.compile(
    r"^\s*(?:export\s+|default\s+|public\s+|private\s+|protected\s+|internal\s+|static\s+|final\s+|override\s+|async\s+|pub(?:\([^)]*\))?\s+"
    r"|unsafe\s+|inline\s+|suspend\s+|open\s+|abstract\s+|virtual\s+)*"
    r"(?:(?:def|defp|func|function\*?|fn|fun|sub|proc|method)\s+(?:\([^)]*\)\s*)?(?:self\.)?(?P<a>[A-Za-z_$][\w$!?]*)"
    r"|(?:const|let|var)\s+(?P<b>[A-Za-z_$][\w$]*)\s*=\s*(?:async\s*)?(?:function\b|\([^)]*\)\s*(?::[^=]+)?=>|[A-Za-z_$][\w$]*\s*=>)"
    r"|(?P<c>[A-Za-z_$][\w$]*)\s*(?:=|:)\s*(?:async\s*)?(?:function\b|\([^)]*\)\s*=>)"
    r"|(?!(?:if|for|while|switch|catch|return|else|do|try|new|throw|await|with|match|synchronized|using|lock)\b)"
    r"(?:[\w<>\[\],.?&*:]+\s+)*(?P<d>[A-Za-z_$][\w$]*)\s*\([^;]*\)\s*(?:throws\s+[\w.,\s]+|const|noexcept|:\s*[\w<>\[\]|.?\s]+)?\s*\{)"
)
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{2,63}")
_STRING = re.compile(r"'[^'\\\n]{0,200}'|\"[^\"\\\n]{0,200}\"")
_NOT_NAMES = frozenset(
    re.findall(
        r"\w+",
        """
    and any are args async await bool boolean break case catch char class const continue def default del delete dict does double elif
    else enum error except exception export extends false final finally float for from func function get global has have here http
    https if implements import in instanceof int integer interface internal into is its key lambda let list long match module new nil
    none nonlocal not null num object of on optional or package pass private protected public pub raise range ref return returns
    select self set static str string struct super switch that the then there this throw throws traceback true try type typeof
    undefined union use using value values var void when where which while will with without yield you your print len append format
    line file most recent call last expected got missing required positional argument arguments attribute attributes failed failure
    cannot could invalid property properties read reading reason status code message request response server internal
        """,
    )
)
_TESTS = re.compile(
    r"(^|/)(tests?|testing|spec|specs|__tests__|testdata|fixtures|e2e)/|(^|/)(test_[^/]+|conftest\.py|[^/]+_test\.\w+|[^/]+\.(test|spec)\.\w+|[^/]+Tests?\.\w+)$"
)
_DOCS = re.compile(
    r"(^|/)(docs?|documentation|examples?)/|\.(md|rst|adoc|txt)$|(^|/)(LICENSE|CHANGELOG|README|AUTHORS|CODEOWNERS)[^/]*$", re.IGNORECASE
)
_AUTOMATION = re.compile(
    r"^(\.github|\.gitlab|\.circleci|\.ci)/|(^|/)(\.gitlab-ci\.yml|Jenkinsfile|\.pre-commit-config\.yaml|\.gitignore|\.editorconfig)$"
)
_DEPENDENCIES = re.compile(
    r"(^|/)(requirements[^/]*\.(txt|in|lock)|pyproject\.toml|setup\.(py|cfg)|poetry\.lock|uv\.lock|Pipfile(\.lock)?|package(-lock)?\.json|yarn\.lock"
    r"|pnpm-lock\.yaml|go\.(mod|sum)|Cargo\.(toml|lock)|Gemfile(\.lock)?|pom\.xml|build\.gradle(\.kts)?|composer\.(json|lock))$"
)
_MIGRATIONS = re.compile(
    r"(^|/)(migrations?|alembic/versions|db/migrate|migrate|flyway|liquibase|changelogs?)/[^/]+\.(py|sql|rb|js|ts|xml|yml|yaml|php|go)$"
)


def extension(path: str) -> str:
    """The file's extension in lower case, without the dot."""
    name = path.rsplit("/", 1)[-1]
    return name.rsplit(".", 1)[1].lower() if "." in name else ""


def is_source(path: str) -> bool:
    """Whether the file holds program text by its extension."""
    return extension(path) in SOURCE


def kind_of(path: str) -> str:
    """``test``, ``docs``, ``automation``, ``dependencies``, ``migration`` or ``code``: what a change to this file can do in production."""
    if _DEPENDENCIES.search(path):
        return "dependencies"
    if _MIGRATIONS.search(path) and not path.rsplit("/", 1)[-1].startswith("__init__"):
        return "migration"
    if _TESTS.search(path):
        return "test"
    if _AUTOMATION.search(path):
        return "automation"
    if _DOCS.search(path) and not (is_source(path) and not path.endswith(".txt")):
        return "docs"
    return "code"


def strip_comment(text: str, path: str) -> str:
    """A line without its comment and without any white space, or an empty text when nothing else is on it.

    Only comments at the start of a line or after a blank are seen, so that ``"#"`` within a text stays; block comments are seen where a
    line begins with ``/*`` or ``*``.
    """
    kind = extension(path)
    bare = text.strip()
    if kind in HASH_COMMENTS:
        if bare.startswith("#"):
            return ""
        bare = _cut_after_code(bare, "#")
    elif kind in SLASH_COMMENTS:
        if bare.startswith(("//", "/*", "*/")) or (bare.startswith("*") and not re.match(r"\*\w", bare)):
            return ""
        bare = _cut_after_code(bare, "//")
    elif kind in ("sql", "lua", "hs") and bare.startswith("--"):
        return ""
    return "".join(bare.split())


def _cut_after_code(text: str, sign: str) -> str:
    position = text.find(f" {sign}")
    while position >= 0:
        before = text[:position]
        # An odd number of quotes before the sign: it stands within a text.
        if not any(before.count(quote) % 2 for quote in "'\"`"):
            return before
        position = text.find(f" {sign}", position + 1)
    return text


def only_formatting(removed: Sequence[str], added: Sequence[str], path: str) -> bool:
    """Whether a hunk's lines hold the same code but for white space, line breaks, quotes and comments.

    In indented languages this is only half of the answer: compare the whole files with ``same_code`` too.
    """
    return is_source(path) and _plain(removed, path) == _plain(added, path)


def _plain(texts: Sequence[str], path: str) -> str:
    joined = "".join(strip_comment(text, path) for text in texts).replace("'", '"')
    return re.sub(r",(?=[)\]}])", "", joined).rstrip(";,")


def same_code(old: Sequence[str], new: Sequence[str], path: str) -> bool:
    """Whether two versions of a file hold the same code but for formatting and comments; for indented languages also the same blocks."""
    if not is_source(path):
        return False
    if extension(path) not in INDENTED:
        return _plain(old, path) == _plain(new, path)
    return _blocks(old, path) == _blocks(new, path)


def _blocks(texts: Sequence[str], path: str) -> list[tuple[int, str]]:
    """Logical lines with their block depth, found as Python's tokenizer finds it: by a stack of indents, brackets joining lines."""
    found: list[tuple[int, str]] = []
    stack = [0]
    balance = 0
    for text in texts:
        code = strip_comment(text, path)
        if not code:
            continue
        if balance > 0 and found:
            found[-1] = (found[-1][0], found[-1][1] + code)
        else:
            indent = len(text.expandtabs(8)) - len(text.expandtabs(8).lstrip())
            while stack[-1] > indent:
                stack.pop()
            if indent > stack[-1]:
                stack.append(indent)
            found.append((len(stack), code))
        balance = max(0, balance + _bracket_balance(code))
    return [(depth, re.sub(r",(?=[)\]}])", "", code.replace("'", '"'))) for depth, code in found]


def definition(text: str) -> str:
    """The name of the function that a line begins to define, or an empty text."""
    found = _DEFINITION.match(text[:400])
    return next((name for name in found.groups() if name), "") if found else ""


def plain_function(name: str) -> str:
    """A frame's function without its class, receiver, generics and compiler decoration; empty for ``<module>`` and such."""
    bare = re.sub(r"<locals>\.|\{closure[^}]*\}|::h[0-9a-f]{16}$", "", name)
    bare = re.sub(r"\(.*\)$", "", re.sub(r"\(\*?(\w+)\)\.", r"\1.", bare)).rstrip(".:")
    bare = re.split(r"::|\.|#|->|/", bare)[-1].split("$")[0] if not bare.startswith("$") else bare
    bare = re.sub(r"\s*\[as [^\]]*\]$", "", bare).removeprefix("async ").removeprefix("new ").strip()
    return (
        bare if re.fullmatch(r"[A-Za-z_$][\w$!?]*", bare) and bare not in ("module", "anonymous", "eval", "lambda", "main_module") else ""
    )


def enclosing_function(lines: Sequence[str], number: int, path: str, name: str = "") -> tuple[int, int] | None:
    """First and last line (from 1) of the function that holds line ``number``; ``name`` helps where functions are nested.

    None when the line is at the top level, or nothing that defines a function is within LINES_SCANNED_MAX lines above it.
    """
    if not 1 <= number <= len(lines):
        return None
    wanted = plain_function(name)
    fallback: tuple[int, int] | None = None
    for start in range(number, max(0, number - LINES_SCANNED_MAX), -1):
        found = definition(lines[start - 1])
        if not found:
            continue
        end = _end_of(lines, start, path)
        if end < number:
            continue
        if not wanted or found == wanted:
            return start, end
        fallback = fallback or (start, end)
    return fallback


def function_named(lines: Sequence[str], name: str, path: str) -> tuple[int, int] | None:
    """The lines of the only function of that name; None when there is none or more than one."""
    wanted = plain_function(name)
    if not wanted:
        return None
    starts = [number for number, text in enumerate(lines, start=1) if wanted in text and definition(text) == wanted]
    return (starts[0], _end_of(lines, starts[0], path)) if len(starts) == 1 else None


def _end_of(lines: Sequence[str], start: int, path: str) -> int:
    if extension(path) in INDENTED or extension(path) in ("rb", "ex", "exs"):
        return _end_by_indent(lines, start, path)
    return _end_by_braces(lines, start)


def _end_by_indent(lines: Sequence[str], start: int, path: str) -> int:
    depth = len(lines[start - 1]) - len(lines[start - 1].lstrip())
    end = start
    open_brackets = _bracket_balance(lines[start - 1])
    for number in range(start + 1, min(len(lines), start + 5_000) + 1):
        text = lines[number - 1]
        if not text.strip():
            continue
        if open_brackets > 0:
            open_brackets += _bracket_balance(text)  # a signature over several lines ends at any depth
            end = number
            continue
        if not strip_comment(text, path):
            continue  # a comment belongs to what follows it
        if len(text) - len(text.lstrip()) <= depth:
            return number if text.strip() == "end" else end
        end = number
    return end


def _bracket_balance(text: str) -> int:
    bare = _STRING.sub("", text)
    return sum(bare.count(sign) for sign in "([{") - sum(bare.count(sign) for sign in ")]}")


def _end_by_braces(lines: Sequence[str], start: int) -> int:
    balance = 0
    opened = False
    for number in range(start, min(len(lines), start + 5_000) + 1):
        bare = _STRING.sub("", lines[number - 1]).split("//", 1)[0]
        balance += bare.count("{") - bare.count("}")
        opened = opened or "{" in bare
        if opened and balance <= 0:
            return number
        if not opened and number > start + 8:
            return start + 1  # an arrow function of one expression
    return len(lines) if opened else start


def names_in(text: str) -> list[str]:
    """The identifiers of a piece of code or prose that are specific enough to search for, in order, each once."""
    return list(dict.fromkeys(word for word in _IDENTIFIER.findall(text[:20_000]) if word.lower() not in _NOT_NAMES and not word.isdigit()))


def defined_names(texts: Iterable[str], path: str) -> set[str]:
    """Names that these lines define at the reach of other files: functions, classes, types, constants."""
    found: set[str] = set()
    for text in texts:
        if name := definition(text):
            found.add(name)
        match = re.match(
            r"^\s*(?:export\s+|public\s+|pub\s+|abstract\s+)*(?:class|interface|struct|enum|trait|type|object|module|record)\s+([A-Za-z_]\w+)",
            text,
        )
        if match:
            found.add(match[1])
        match = re.match(r"^(?:export\s+)?(?:const\s+|let\s+|var\s+|final\s+|static\s+)*([A-Za-z_]\w{2,})\s*(?::[^=]+)?=(?!=)", text)
        if match and is_source(path):
            found.add(match[1])
    return found
