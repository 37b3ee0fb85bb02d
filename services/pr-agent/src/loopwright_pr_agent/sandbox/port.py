"""What is asked of a sandbox: run one command over one folder, confined and bounded, and say what happened.

SandboxError
├── SandboxBroken  Retryable  this run could not be set up; the command never started
└── NoSandbox      Permanent  no isolation holds on this host; the message names the remedy
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from loopwright_common.errors import LoopwrightError, Permanent, Retryable

Outcome = Literal["exited", "timed_out", "out_of_memory", "killed", "output_limit"]
MIB = 1024**2


class SandboxError(LoopwrightError):
    """Any failure of the sandbox itself, never of the command inside it."""


class SandboxBroken(SandboxError, Retryable):
    """The run could not be set up; the command never started."""


class NoSandbox(SandboxError, Permanent):
    """No isolation holds on this host; the message names the remedy."""


@dataclass(frozen=True)
class Limits:
    """What one run may use. Each fails closed: what goes over it is ended, and the outcome says so."""

    wall_seconds: float = 600.0
    cpu_seconds: int = 600  # of any one process
    memory_bytes: int = 2048 * MIB  # private memory of any one process, and resident memory of all together
    file_bytes: int = 256 * MIB  # of any one file
    processes: int = 256  # threads count
    output_bytes: int = 8 * MIB
    tail_bytes: int = 12 * 1024  # of the output is kept: what a person reads in a transcript


@dataclass(frozen=True)
class InputFile:
    """A file the command may read; the environment variable ``variable`` holds its path inside."""

    name: str
    content: bytes
    variable: str


@dataclass(frozen=True)
class RunKey:
    """Which run it is. The same key with the same input is the same run: where runs outlive this process, it is found again, never begun
    twice. ``name`` is unique within the change: the pass, the step, the line."""

    project: str = ""
    change: str = ""
    name: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __str__(self) -> str:
        return f"{self.project}/{self.change}/{self.name}"


@dataclass(frozen=True)
class RunRequest:
    """One command. ``argv`` runs in ``workspace``, the one folder it may write; a shell line is ``("sh", "-c", line)``.

    A sandbox on this host leaves in ``workspace`` what the command wrote. One elsewhere starts from the folder as it is here and first
    runs ``before`` again: the commands that ran in it already and whose traces this one builds on, each with the exit code it had.
    """

    argv: tuple[str, ...]
    workspace: Path
    toolchains: tuple[Path, ...] = ()  # read-only prefixes; their bin folders come first on PATH
    inputs: tuple[InputFile, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)  # the whole of it, beside PATH, HOME, TMPDIR and LANG
    limits: Limits = Limits()
    key: RunKey = field(default_factory=RunKey)
    before: tuple[tuple[tuple[str, ...], int], ...] = ()
    model: bool = False  # whether the command may ask the model, where the sandbox brings one in
    diff: bool = False  # whether the changes to the workspace are wanted as text, where the folder does not come back


@dataclass(frozen=True)
class RunResult:
    """What happened. ``exit_code`` is None unless the command exited by itself. ``diff`` is None where none was asked for or made."""

    outcome: Outcome
    exit_code: int | None
    output_tail: str
    isolation: str
    facts: tuple[str, ...]  # what holds, and what is not covered
    wall_seconds: float
    cpu_seconds: float
    diff: str | None = None

    @property
    def passed(self) -> bool:
        return self.outcome == "exited" and self.exit_code == 0


class Sandbox(Protocol):
    """An isolation. ``run`` raises SandboxBroken when the command could not be started confined; cancelling ends the run."""

    @property
    def isolation(self) -> str: ...

    async def run(self, request: RunRequest) -> RunResult: ...
