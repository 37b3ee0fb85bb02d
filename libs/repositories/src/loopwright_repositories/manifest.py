"""``.loopwright.yaml``: how a repository says how it is built, tested, and how a failing signal is replayed.

.. code-block:: yaml

    version: 1
    setup: pip install -e .          # one shell line, or a list of shell lines run in order until one fails
    test: python -m pytest -q
    reproduce: python replay.py      # LOOPWRIGHT_SIGNALS names a file with example signals, a JSON list
    services:                        # service name: the folder that holds it
      checkout: services/checkout
    protected_paths:                 # gitignore patterns no proposed change may touch
      - deploy/**
    timeout: 10m                     # for each line; seconds, or with s, m or h

Without one, ``discover`` looks at the files for what such a repository usually has.
"""

from __future__ import annotations

import json
import re
from datetime import timedelta
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from loopwright_repositories.checkout import Checkout
from loopwright_repositories.errors import HostileInput, ManifestInvalid, OutputTooLarge, UnknownPath
from loopwright_repositories.names import repository_path

FILE = ".loopwright.yaml"
FILE_BYTES_MAX = 64 * 1024
PROBED_BYTES_MAX = 256 * 1024  # package.json and Makefile are read only to this size
_DURATION = re.compile(r"^(\d{1,6})\s*(s|m|h)?$")
_TESTS = re.compile(r"(?:^|/)(?:test_[^/]+|[^/]+_test)\.py$")


def _lines(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _duration(value: Any) -> Any:
    if isinstance(value, bool):
        return value
    match = _DURATION.match(str(value).strip()) if isinstance(value, int | str) else None
    if match is None:
        return value
    return timedelta(seconds=int(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2] or "s"])


ShellLine = Annotated[str, StringConstraints(min_length=1, max_length=4_096, strip_whitespace=True, pattern=r"^[^\x00]*$")]
Commands = Annotated[tuple[ShellLine, ...], BeforeValidator(_lines), Field(max_length=50)]
ServiceName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]


class Manifest(BaseModel):
    """What a repository says of itself. Commands are shell lines (``sh -c``) run in the repository's root, in order, until one fails."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1]
    setup: Commands = ()
    test: Commands = ()
    reproduce: Commands = ()
    services: dict[ServiceName, str] = Field(default_factory=dict, max_length=200)  # name -> path prefix, "" for the whole
    protected_paths: tuple[Annotated[str, StringConstraints(min_length=1, max_length=512)], ...] = Field(default=(), max_length=200)
    # Ten minutes: most test suites that guard a revert end within it, and a hung one must not hold a sandbox for hours.
    timeout: Annotated[timedelta, BeforeValidator(_duration)] = Field(
        default=timedelta(minutes=10), ge=timedelta(seconds=1), le=timedelta(hours=2)
    )

    @field_validator("services")
    @classmethod
    def _paths_are_inside(cls, services: dict[str, str]) -> dict[str, str]:
        checked = {}
        for name, path in services.items():
            plain = path.strip("/")
            if plain in ("", "."):
                plain = ""
            else:
                try:
                    repository_path(plain)
                except HostileInput as error:
                    raise ValueError(f"service {name}: {error}") from error
            checked[name] = plain
        return checked


class FoundManifest(BaseModel):
    """The manifest in force, and how it came about: the repository's own, or what was discovered, with the reasons."""

    model_config = ConfigDict(frozen=True)

    manifest: Manifest
    origin: Literal["file", "discovered", "nothing"]
    reasons: tuple[str, ...] = ()


def parse_manifest(content: bytes) -> Manifest:
    """Reads a ``.loopwright.yaml``. Raises ManifestInvalid naming the line or field, what is there, and what may be."""
    if len(content) > FILE_BYTES_MAX:
        raise ManifestInvalid(f"{FILE} is {len(content)} bytes; the limit is {FILE_BYTES_MAX}")
    try:
        text = content.decode("utf-8")
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            if isinstance(token, yaml.AliasToken | yaml.AnchorToken):
                # Aliases multiply: a few lines of them become gigabytes.
                raise ManifestInvalid(f"{FILE} line {token.start_mark.line + 1}: anchors and aliases are not read; write the value out")
        loaded = yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise ManifestInvalid(f"{FILE} is not UTF-8: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark is not None else ""
        raise ManifestInvalid(f"{FILE}{where}: {getattr(error, 'problem', None) or 'is not YAML'}") from error
    except (RecursionError, ValueError) as error:
        raise ManifestInvalid(f"{FILE} is nested too deeply or has an impossible value") from error
    if not isinstance(loaded, dict):
        raise ManifestInvalid(f"{FILE} must be a mapping that begins with 'version: 1'")
    try:
        return Manifest.model_validate(loaded)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[:5]
        faults = "; ".join(f"{'.'.join(str(part)[:64] for part in fault['loc']) or 'file'}: {fault['msg']}" for fault in first)
        raise ManifestInvalid(f"{FILE}: {faults}") from error


async def read_manifest(checkout: Checkout, revision: str) -> FoundManifest:
    """The repository's manifest at a revision, or what can be discovered there. Raises ManifestInvalid, UnknownRevision."""
    try:
        content = await checkout.show_file(FILE, revision, FILE_BYTES_MAX)
    except UnknownPath:
        return await discover(checkout, revision)
    except OutputTooLarge as error:
        raise ManifestInvalid(str(error)) from error
    return FoundManifest(manifest=parse_manifest(content), origin="file", reasons=(f"{FILE} at {revision[:12]}",))


async def discover(checkout: Checkout, revision: str) -> FoundManifest:
    """What a repository without a manifest most likely means by its tests: the first of pytest, tox, npm test, go test, make test."""
    files = {entry.path for entry in await checkout.list_files(revision) if entry.mode in ("100644", "100755")}

    async def read(path: str) -> str:
        if path not in files:
            return ""
        try:
            return (await checkout.show_file(path, revision, PROBED_BYTES_MAX)).decode("utf-8", "replace")
        except OutputTooLarge:
            return ""

    found: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = []  # reason, setup, test
    if reason := await _pytest(files, read):
        found.append((reason, await _python_setup(files), ("python -m pytest -q",)))
    if "tox.ini" in files:
        found.append(("tox.ini", (), ("tox",)))
    if _npm_test(await read("package.json")):
        locked = "package-lock.json" in files or "npm-shrinkwrap.json" in files
        found.append(("package.json has a test script", ("npm ci" if locked else "npm install",), ("npm test",)))
    if "go.mod" in files:
        found.append(("go.mod", (), ("go test ./...",)))
    makefile = next((name for name in ("GNUmakefile", "makefile", "Makefile") if name in files), None)
    if makefile and re.search(r"^test\s*:(?!=)", await read(makefile), re.MULTILINE):
        found.append((f"{makefile} has a test target", (), ("make test",)))
    if not found:
        reason = f"no {FILE}, and no pytest, tox, npm, go or make tests were found: add a {FILE} with 'test:'"
        return FoundManifest(manifest=Manifest(version=1), origin="nothing", reasons=(reason,))
    reason, setup, test = found[0]
    others = tuple(f"not used: {other}" for other, _, _ in found[1:])
    return FoundManifest(manifest=Manifest(version=1, setup=setup, test=test), origin="discovered", reasons=(reason, *others))


async def _pytest(files: set[str], read: Any) -> str:
    if "pytest.ini" in files:
        return "pytest.ini"
    for name, sign in (("pyproject.toml", "[tool.pytest"), ("setup.cfg", "[tool:pytest]")):
        if sign in await read(name):
            return f"{name} has {sign}"
    tests = sorted(path for path in files if _TESTS.search(path) or path.endswith("conftest.py"))
    return f"{tests[0]} and {len(tests) - 1} more test files" if tests else ""


async def _python_setup(files: set[str]) -> tuple[str, ...]:
    steps = [f"python -m pip install -r {name}" for name in ("requirements.txt", "requirements-dev.txt") if name in files]
    if not steps and ("pyproject.toml" in files or "setup.py" in files):
        steps = ["python -m pip install -e ."]
    return tuple(steps)


def _npm_test(package: str) -> bool:
    try:
        scripts = json.loads(package)["scripts"]
        test = scripts["test"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
    return isinstance(test, str) and "no test specified" not in test  # npm init writes that
