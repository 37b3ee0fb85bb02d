"""Further dialects of traces: PHP, Rust, Elixir, Dart, and what debuggers and crash reporters write of native code.

Each reader gives the exceptions from the surface to the root, as those in `traces`. All patterns are bounded and anchored to one line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from loopwright_common.contracts.signals import StackFrame

from loopwright_cluster.grouping.trace_parts import Part, frame

Reader = Callable[[list[str]], Iterable[Part]]

_PHP_FRAME = re.compile(r"^\s{0,8}#(\d{1,4}) (?:(\S{1,300}?)\((\d{1,8})\)|\[internal function\]): ([\w\\{}:$>()./-]{1,300}?)\(.{0,600}$")
_PHP_TYPE = r"((?:[A-Za-z_]\w{0,80}\\){0,10}[A-Z]\w{0,80})"
_PHP_HEAD = re.compile(rf"^(?:.{{0,80}}?\bUncaught |(Next ))?{_PHP_TYPE}: (.{{0,400}}?) in (\S{{1,300}}?\.php)(?::| on line )(\d{{1,8}})$")
_PHP_LOGGED = re.compile(rf"^.{{0,400}}?\[object\] \({_PHP_TYPE}\(code: [^)]{{0,20}}\): (.{{0,400}}) at (\S{{1,300}}?\.php):(\d{{1,8}})\)")
_RUST_HEAD = re.compile(r"^thread '[^']{0,80}' (?:\(\d{1,12}\) )?panicked at (?:'(.{0,400})', )?(\S{1,300}?):\d{1,8}:\d{1,8}:?$")
_RUST_FRAME = re.compile(r"^\s{0,8}(\d{1,4}):\s{1,8}(?:0x[0-9a-f]{1,16} - )?(\S.{0,400})$")
_RUST_AT = re.compile(r"^\s{8,30}at (\S{1,400}?):(\d{1,8})(?::\d{1,8})?$")
_RUST_FOREIGN = re.compile(
    r"^<?(?:core|std|alloc|tokio|futures\w{0,20}|hyper|tower|rayon|backtrace)::|^(?:_{0,3}rust_|rust_begin_unwind|main$|_main$|_start$|__libc_)"
)
# What the language itself panics with: these words are the type, as others have one.
_RUST_TYPE = re.compile(
    r"^(?:index out of bounds|range (?:start|end) index|attempt to [a-z ]{3,40}|already (?:mutably )?borrowed"
    r"|assertion `?[^`]{0,60}`? failed|internal error: entered unreachable code|explicit panic)"
)
_RUST_UNWRAP = re.compile(r"^called `\w{1,20}::(\w{1,20})\(\)` on an? `(\w{1,20})` value(?:: ([\w:]{1,60}\w))?")
_ELIXIR_HEAD = re.compile(r"^\s{0,4}\*\* \(((?:[A-Z]\w{0,80}\.){0,8}\w{1,80})\) (.{0,400})$")
_ELIXIR_FRAME = re.compile(r"^\s{2,12}(?:\((\w{1,60})(?: [\w.+-]{1,40})?\) )?(\S{1,200}\.(?:exs?|erl|h?eex)):(\d{1,8}): (\S.{0,300})$")
_ELIXIR_FOREIGN = re.compile(
    r"^(?:elixir|stdlib|kernel|logger|ex_unit|mix|phoenix\w{0,30}|plug\w{0,30}|ecto\w{0,30}|cowboy|bandit|thousand_island|ranch|oban|absinthe"
    r"|db_connection|postgrex|myxql|telemetry|gen_stage|broadway|tesla|finch|mint|hackney)$"
)
_DART_FRAME = re.compile(
    r"^\s{0,8}#(\d{1,4})\s{1,8}(\S.{0,200}?) \(((?:package|dart|file|org-dartlang[\w-]{0,20}):\S{1,300}?)(?::(\d{1,8}))?(?::\d{1,8})?\)$"
)
_SANITIZER_FRAME = re.compile(
    r"^\s{0,8}#(\d{1,4})\s{1,4}0x[0-9a-f]{1,16} in (.{1,400}?)"
    r" (?:(/?[^\s()]{1,300}?):(\d{1,8})(?::\d{1,8})?|\(([^\s()]{1,300}?)\+0x[0-9a-f]{1,16}\).{0,80})$"
)
_DEBUGGER_FRAME = re.compile(
    r"^\s{0,8}#(\d{1,4})\s{1,4}(?:0x[0-9a-f]{1,16} in )?(\S.{0,400}?) \((?=\)|\.\.\.|\w{1,80}=).{0,400}?\)"
    r"(?: at (\S{1,300}?):(\d{1,8})| from (\S{1,300}))?$"
)
_CPP_FOREIGN = re.compile(r"^(?:std|__gnu_cxx|boost|__cxxabiv1|__interceptor_\w{1,40}|_start$|main$)(?:::|$)")
_APPLE_FRAME = re.compile(
    r"^(\d{1,4})\s{1,6}(\S.{0,60}?)\s{1,40}0x[0-9a-fA-F]{6,16} (\S.{0,400}?) \+ \d{1,10}(?: \((\S{1,200}?):(\d{1,8})\))?$"
)
_NATIVE_TYPE = re.compile(
    r"received signal (?P<signal>SIG\w{2,8})|instance of '(?P<cpp>[^']{1,200})'|Sanitizer: (?P<sanitizer>[\w-]{1,60})"
    r"|uncaught exception '(?P<objc>\w{1,80})'|^Fatal Exception: (?P<fatal>\w{1,80})|^Exception Type: {1,4}(?P<report>\w{1,40})"
    r"|^(?:Unhandled exception: )?(?P<dart>_{0,2}[A-Z]\w{1,60}(?:Error|Exception)?)(?: \([\w ]{1,60}\))?: "
)
_CRASHED = re.compile(r"^(?:Thread \d{1,4}.{0,80} Crashed|Last Exception Backtrace)|^={2,5}\d{1,8}={2,5}ERROR")
_PHP_HINT = re.compile(r"\n\s{0,8}#\d{1,4} (?:\S{1,300}?\(\d{1,8}\)|\[internal function\]): |\n#\d{1,4} \{main\}")
_ELIXIR_HINT = re.compile(r"\n\s{2,12}(?:\(\w{1,60}(?: [\w.+-]{1,40})?\) )?[\w./-]{1,200}\.(?:exs?|erl|h?eex):\d{1,8}: ")
_NUMBERED_HINT = re.compile(r"(?:^|\n)\s{0,8}#0\s{1,8}\S|(?:^|\n)0 {1,6}\S.{0,60}?\s0x[0-9a-fA-F]{6,16} ")


def reader(text: str) -> Reader | None:
    """Who is to read a text, or None where it looks like none of these."""
    if "stack backtrace:" in text or "' panicked at " in text:
        return rust
    if _PHP_HINT.search(text):
        return php
    if _ELIXIR_HINT.search(text):
        return elixir
    return numbered if _NUMBERED_HINT.search(text) else None


def php(lines: list[str]) -> Iterable[Part]:
    """A line names the function that was called and where from: where it stood is in the line before, and in the head for the first.

    The root cause is first where the others are said to be `Next`; a log of Laravel has it last.
    """
    parts: list[Part] = []
    causes_first, at = False, ("", "")
    for line in lines:
        if (found := _PHP_HEAD.match(line)) and (found[1] or not parts or parts[-1].frames):
            causes_first = causes_first or bool(found[1])
            parts.append(Part(found[2], found[3], []))
            at = (found[4], found[5])
        elif found := _PHP_LOGGED.match(line):
            parts.append(Part(found[1], found[2], []))
            at = (found[3], found[4])
        elif found := _PHP_FRAME.match(line):
            if not parts or (found[1] == "0" and parts[-1].frames):
                if parts:
                    break  # another trace
                parts.append(Part(frames=[]))
            own = parts[-1].frames = parts[-1].frames or []
            name = found[4].replace("->", "::")
            own.insert(0, frame(at[0], name, at[1]))
            at = (found[2] or "", found[3] or "")
    return reversed(parts) if causes_first else parts


def rust(lines: list[str]) -> Iterable[Part]:
    part, says, name = Part(frames=[]), False, ""
    frames: list[StackFrame] = []
    for line in [*lines, ""]:
        if found := _RUST_HEAD.match(line):
            if frames:
                break  # another thread's
            part.message, says = found[1] or "", found[1] is None
            continue
        if says:
            part.message, says = line, False
        placed = _RUST_AT.match(line) if name else None
        if name:
            own = not _RUST_FOREIGN.match(name)
            frames.insert(0, frame(placed[1] if placed else "", name, placed[2] if placed else None, in_app=own))
            name = ""
        if not placed and (found := _RUST_FRAME.match(line)):
            if found[1] in ("0", "1") and len(frames) > 1:
                break
            name = found[2]
    if unwrapped := _RUST_UNWRAP.match(part.message):
        part.type = " ".join(filter(None, (unwrapped[1], "on", unwrapped[2], unwrapped[3])))
    else:
        words = _RUST_TYPE.match(part.message)
        part.type = words[0] if words else "panic"
    part.frames = frames
    return [part] if frames else []


def elixir(lines: list[str]) -> Iterable[Part]:
    part = Part(frames=[])
    for line in lines:
        assert part.frames is not None
        if found := _ELIXIR_FRAME.match(line):
            part.frames.insert(0, frame(found[2], found[4], found[3], in_app=not _ELIXIR_FOREIGN.match(found[1] or "")))
        elif found := _ELIXIR_HEAD.match(line):
            if part.frames:
                break
            part.type, part.message = found[1], found[2]
    return [part]


def numbered(lines: list[str]) -> Iterable[Part]:
    """Dart, gdb, the sanitizers, Apple's crash reports: frames have numbers. Of several stacks the crashed thread's, else the first."""
    part = Part()
    stacks: list[list[StackFrame]] = []
    crashed, chosen = False, -1
    for line in lines:
        if found := _numbered_frame(line):
            number, made = found
            if number == 0 or not stacks:
                if crashed and chosen < 0:
                    chosen = len(stacks)
                stacks.append([])
            stacks[-1].insert(0, made)
        else:
            crashed = crashed or _CRASHED.match(line) is not None
            if not part.type and not stacks and (said := _NATIVE_TYPE.search(line)):
                part.type, part.message = said[said.lastgroup or 0], line
    if not stacks:
        return []
    part.frames = stacks[max(chosen, 0)]
    return [part]


def _numbered_frame(line: str) -> tuple[int, StackFrame] | None:
    if found := _DART_FRAME.match(line):
        return int(found[1]), frame(found[3], found[2], found[4])
    if found := _DEBUGGER_FRAME.match(line) or _SANITIZER_FRAME.match(line):
        own = not _CPP_FOREIGN.match(found[2])
        return int(found[1]), frame(found[3] or "", found[2], found[4], module=found[5] or "", in_app=own)
    if found := _APPLE_FRAME.match(line):
        return int(found[1]), frame(found[4] or "", found[3], found[5], module=found[2])
    return None


__all__ = ["reader"]
