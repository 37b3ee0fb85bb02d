"""What the readers of traces make of lines: exceptions, each with its own stack."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from loopwright_common.contracts.signals import StackFrame

FRAMES_REMEMBERED_MAX = 8_192  # the traces of one release repeat their lines: remembering them makes reading twice as fast


@dataclass
class Part:
    type: str = ""
    message: str = ""
    frames: list[StackFrame] | None = None  # outermost first
    elided: int = 0  # outer frames it shares with the part before, which the text leaves out


@lru_cache(FRAMES_REMEMBERED_MAX)
def frame(
    file: str = "", function: str = "", line: str | None = None, column: str | None = None, module: str = "", *, in_app: bool = True
) -> StackFrame:
    """A frame out of a line's pieces."""
    return StackFrame(
        file=file[:512], function=function[:512], module=module[:512], in_app=in_app,
        line=int(line) if line and int(line) <= 10_000_000 else None, column=int(column) if column and int(column) <= 10_000_000 else None,
    )  # fmt: skip
