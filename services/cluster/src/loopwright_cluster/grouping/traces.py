"""Reads stack traces that come as text: in a log line's continuation, a ticket, an export of another tool. Six families of languages here,
others in `dialects`.

`parse` gives the exceptions, from what reached the surface down to the root cause, and one stack: the frames of the surfaced exception
and then those of its causes that are not among them, outermost first. Frames of other threads and goroutines are not read.

All patterns are bounded and anchored to one line: the text is hostile.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from loopwright_common.contracts.signals import FRAMES_MAX, StackFrame

from loopwright_cluster.grouping import dialects
from loopwright_cluster.grouping.trace_parts import Part as _Part
from loopwright_cluster.grouping.trace_parts import frame as _frame

LINES_MAX = 600  # a trace of a hundred frames and its causes
LINE_CHARS_MAX = 600
CAUSES_MAX = 12
TRACES_REMEMBERED_MAX = 256  # of 16 KiB at most

_PY_START = re.compile(r"^\s*(?:\| )?Traceback \(most recent call last\):")
_PY_FRAME = re.compile(r'^\s*(?:\| )?\s*File "([^"]{1,400})", line (\d{1,8})(?:, in (.{1,200}))?$')
_PY_DIRECT = "The above exception was the direct cause of the following exception"
_PY_DURING = "During handling of the above exception, another exception occurred"
_ERROR = re.compile(r"^(?:\| )?\s{0,8}((?:[A-Za-z_][\w$]{0,100}[.:\\]{1,2}){0,12}[A-Z_a-z][\w$]{1,100})(?:: ?(.{0,400}))?$")
_JAVA_FRAME = re.compile(
    r"^\s{1,16}at (?:[\w.@-]{0,120}/{1,2}){0,2}((?:[\w$]{1,120}\.){1,20})([\w$<>-]{1,160})\("
    r"([\w$ -]{1,120}\.(?:java|kts?|scala|groovy|clj[cs]?)|Native Method|Unknown Source|<generated>|SourceFile|)(?::(\d{1,8}))?\)"
)
_JAVA_HEAD = re.compile(
    r"^(?:Exception in thread \"[^\"]{0,200}\" |Caused by: |Suppressed: |\s{0,8}Wrapped by: )?"
    r"((?:[\w$]{1,100}\.){0,12}[A-Z][\w$]{1,120})(?:: ?(.{0,400}))?$"
)
_JAVA_MORE = re.compile(r"^\s{1,16}\.\.\. (\d{1,6}) (?:more|common frames omitted)")
_JS_FRAME = re.compile(
    r"^\s{1,16}at (?:async )?(?:(.{1,200}?) \()?"
    r"((?:[a-z][a-z0-9+.-]{1,20}:/{0,3}|/|\.{0,2}/|[A-Za-z]:\\|[\w@.-]{1,100}[/.]|<anonymous>|node:)"
    r"[^()\s]{0,400}?)(?::(\d{1,8}))?(?::(\d{1,8}))?\)?$"
)
_JS_HEAD = re.compile(
    r"^(?:Uncaught |\s{0,8}\[?cause\]?: |Caused by: )?(?:\(in promise\) )?"
    r"((?:[A-Z]\w{0,80}\.)?[A-Z]\w{0,80}(?:Error|Exception)?)(?: \[\w{1,40}\])?(?:: (.{0,400}))?$"
)
_GECKO_FRAME = re.compile(
    r"^\s{0,8}(?:(?:[a-zA-Z ]{1,30}\*){1,3}|(?:global|module|eval) code(?=@))?([^@\s]{0,200})"
    r"@((?:[a-z][a-z0-9+.-]{1,20}:/{1,3}|/|\.{0,2}/)[^\s]{1,400}?):(\d{1,8})(?::(\d{1,8}))?$"
)
_GO_RECOVERED = re.compile(r" \[recovered[^\]]{0,20}\]$")
_GO_START = re.compile(
    r"^(?:(?:.{0,80}http: )?panic(?: serving \S{1,80})?: (.{0,400})|"
    r"fatal error: (.{0,400})|goroutine \d{1,12} \[([^\]]{1,60})\]:)$"
)
_GO_FUNCTION = re.compile(r"^((?:[\w.~@%-]{1,100}/){0,12}[\w.%*()\[\]{}-]{1,200})\((?:[^)]{0,300}|\.\.\.)\)$")
_GO_FILE = re.compile(r"^\s{1,8}(\S{1,400}\.(?:go|s)):(\d{1,8})(?: \+0x[0-9a-f]{1,16})?$")
_RUBY_HEAD = re.compile(r"^(\S{1,300}?):(\d{1,8}):in [`']([^']{1,200})': (.{0,300}?) ?\(((?:[A-Z]\w{0,80}::){0,8}[A-Z]\w{0,80})\)$")
_RUBY_FRAME = re.compile(r"^\s{0,16}(?:\d{1,4}: )?(?:from )?(\S{1,300}?):(\d{1,8}):in [`']([^']{1,200})'")
_NET_HEAD = re.compile(
    r"^(?:[^\W\d_][^:.]{1,60}[.:] )?(?: ?---> )?"  # `Unhandled exception. `, in any language
    r"((?:[A-Za-z_]\w{0,80}\.){1,12}\w{0,80}(?:Exception|Error|Fault)\w{0,40})(?: \(0x[0-9A-Fa-f]{8}\))?(?:: ?(.{0,400}))?$"
)
# .NET speaks the machine's language: of a frame's words only the order is sure, `at A.B(args) in file:line 12`.
_NET_FRAME = re.compile(
    r"^\s{1,8}[^\W\d_]{1,10}:? "
    r"((?:[\w<>`$+|\[\]-]{1,160}\.){1,20}\.?[\w<>`$|\[\],-]{1,160})\(([^)]{0,400})\)"
    r"(?: [^\W\d_]{1,10}:? (.{1,300}?):[^\W\d_]{1,12} ?(\d{1,8}))?$"
)
_NET_END = re.compile(r"^\s{1,8}--- .{1,120} ---$")
# Notations of single frames: `file:12 in function`, `function (file:12)`, `function at file:12`, `file:12:function`, `file:function:12`,
# `file:12: function`, `file(12): function()`, and of native code `function from library`, `library function`.
_SOURCE = (
    r"(?:(?:[a-z][a-z0-9+.-]{1,20}:/{0,3}(?:[\w.-]{1,100}:\d{2,5}/)?|[A-Za-z]:)?[^\s:()]{1,300}\.(?:py|rb|erb|php|java|kts?|scala|groovy|clj|[cm]?[jt]sx?|vue|svelte|go|rs"
    r"|cs|fs|vb|c|cc|cpp|hpp?|mm?|swift|exs?|erl|lua|pl|dart)(?:\?[^\s:()]{0,100})?|(?:node|dart):[\w/-]{1,100}|<anonymous>)"
)
_NUMBER = re.compile(r"^#\d{1,4}\s{1,8}(?:0x[0-9a-f]{1,16} in )?")
_IN_FILE = re.compile(rf"^({_SOURCE})(?::(\d{{1,8}}))?(?::\d{{1,8}})?,? in (\S.{{0,300}})$")
_BEFORE_FILE = re.compile(rf"^(\S.{{0,300}}) at ({_SOURCE})(?::(\d{{1,8}}))?(?::\d{{1,8}})?$")
_OF_FILE = re.compile(rf"^((?!\()\S.{{0,300}}?|) ?[(\[]({_SOURCE})(?::(\d{{1,8}}))?(?::\d{{1,8}})?[)\]]$")
_FILE_FUNCTION = re.compile(
    rf"^({_SOURCE})(?::(\d{{1,8}}))?(?::\d{{1,8}})?(?::([^\d\s:][^\s:]{{0,200}}))?(?::\d{{1,8}})?(?:\s([^\s:]{{1,200}}))?$"
)
_FILE_LINE_CALL = re.compile(rf"^({_SOURCE})(?:\((\d{{1,8}})\)|:(\d{{1,8}})): (\S.{{0,300}})$")
_FILE_ANY_FUNCTION = re.compile(rf"^({_SOURCE}):(?!\d)(\S.{{0,300}}?)(?::\d{{1,8}})?$")
_MODULE_FUNCTION = re.compile(r"^((?:[\w$]{1,100}\.){1,12}[\w$]{1,120}):([^\s:/\d][^\s:/]{0,200})$")
_LIBRARY = r"(\S{1,300}\.(?:so|dylib|dll)\S{0,20})"
_OF_LIBRARY = re.compile(rf"^(?:(\S.{{0,300}}) from {_LIBRARY}|{_LIBRARY} (\S.{{0,300}}))$")
_OF_IMAGE = re.compile(r"^([A-Z]\w{1,60}) ([-+]\[.{1,300}\]|_\S{1,300}|closure #\d.{1,300})$")  # Apple's image and symbol
_GO_PACKAGE = re.compile(r"^((?:[\w.~@%-]{1,100}/){1,12}[\w%-]{1,100})\.(\S{1,200})$")
_GO_NAME = re.compile(r"/[\w.-]{1,100}\.|\(\*\w|\.func\d|\$\$Lambda")
# `Fehler: ...` is how a person's language says that something failed: a type is qualified, or ends as types do, or has two humps.
_TITLED = re.compile(
    r"^(?:Uncaught |Unhandled exception[.:]? |Unhandled \w{1,20}: |Exception in thread \"[^\"]{0,200}\" |\(in promise\) ){0,2}"
    r"((?:[A-Za-z_][\w$]{0,100}(?:\.|::|\\)){1,12}[A-Z][\w$]{1,120}|(?:[A-Za-z_]\w{0,60}::){1,6}\w{1,80}"
    r"|[A-Z][\w$]{0,120}(?:Error|Exception|Fault|Failure|Failed|Warning|Interrupt|Timeout|Exit|Overflow)"
    r"|SIG[A-Z]{2,8}|EXC_[A-Z_]{3,30}|[A-Z][a-z\d]{1,40}(?:[A-Z][a-z\d]{1,40}){1,6}|Error|Exception|panic|fatal error)(?=: |:?$)"
)
_CAUSED_BY = re.compile(r"^.{0,200}?[Cc]aused by:? ((?:[A-Za-z_][\w$]{0,100}[.:\\]{1,2}){0,12}[A-Z][\w$]{1,120})(?=:|$|\s)")
_RUBY_LOGGED = re.compile(r"^(?:.{0,200}[\]:] )?((?:[A-Z]\w{0,80}::){0,8}[A-Z]\w{0,80}) \((.{0,400})\):?$")  # as Rails logs it
_RUBY_HINT = re.compile(r":\d{1,8}:in [`']")
_JVM_HINT = re.compile(r"\(\w{1,120}\.(?:java|kts?|scala|groovy|clj)(?::|\))|\(Native Method\)|\(Unknown Source")
_JS_HINT = re.compile(r":\d{1,8}:\d{1,8}\)?\s{0,4}(?:\n|$)")
_HINT = re.compile(
    r"Traceback \(most|^\s{1,16}at |\n\s{1,16}at |goroutine \d|"
    r":in [`']|@(?:(?:https?|file|webpack|app|capacitor|ionic)[\w-]*:/|\.{0,2}/)|\.go:\d|panicked at |#0\s|(?:^|\n)0 {1,6}\S|\*\* \("
    r"|\n {3}[^\W\d_]{1,10}:? [\w<>`+$]{1,160}\.[\w<>`+$.|\[\]-]{1,300}\("
)


@dataclass(frozen=True)
class Trace:
    """``types`` and ``messages`` from the surface to the root; ``frames`` outermost first.

    ``cause``: where another exception wraps the root cause, its own stack as it is told. ``whole_cause``: with the outer frames that are
    left out of it; empty where the language ends a cause's stack at what caught it.
    """

    types: tuple[str, ...]
    messages: tuple[str, ...]
    frames: tuple[StackFrame, ...]
    cause: tuple[StackFrame, ...] = ()
    whole_cause: tuple[StackFrame, ...] = ()


def may_hold_trace(text: str) -> bool:
    """A cheap look: whether parsing is worth the time."""
    return _HINT.search(text) is not None


@lru_cache(TRACES_REMEMBERED_MAX)
def parse(text: str) -> Trace | None:
    """The trace in a text, or None. Reads at most LINES_MAX lines."""
    if not may_hold_trace(text):
        return None
    lines = [line[:LINE_CHARS_MAX].rstrip() for line in text.split("\n", LINES_MAX)[:LINES_MAX]]
    for read in _readers(text):
        parts = [part for part in read(lines) if part.frames or part.type]
        if any(part.frames for part in parts):
            return _joined(parts[:CAUSES_MAX], whole=read not in (_python, _net))
    return None


def frame_of(text: str) -> StackFrame:
    """One frame out of one line, in any of the notations that traces and exports use; what fits none is a function's name."""
    line = _NUMBER.sub("", text[:LINE_CHARS_MAX].strip()).removeprefix("at ")
    if found := _PY_FRAME.match(line):
        return _frame(found[1], found[3] or "<module>", found[2])
    at = f"  at {line}"
    if found := _JAVA_FRAME.match(at):
        return _frame(found[3] if "." in found[3] else "", found[2], found[4], module=found[1].rstrip("."))
    if found := _RUBY_FRAME.match(line):
        return _frame(found[1], found[3], found[2])
    if found := _IN_FILE.match(line):
        return _frame(found[1], found[3], found[2])
    if found := _OF_FILE.match(line) or _BEFORE_FILE.match(line):
        return _frame(found[2], found[1], found[3])
    if found := _FILE_LINE_CALL.match(line):
        return _frame(found[1], found[4].replace("->", "::"), found[2] or found[3])
    if found := _FILE_FUNCTION.match(line):
        return _frame(found[1], found[3] or found[4] or "", found[2])
    if found := _FILE_ANY_FUNCTION.match(line):
        return _frame(found[1], found[2])
    if found := _OF_LIBRARY.match(line):
        return _frame("", found[1] or found[4], module=found[2] or found[3])
    if (found := _JS_FRAME.match(at)) and found[3]:
        return _frame(found[2], found[1] or "", found[3], found[4])
    if found := _GECKO_FRAME.match(line):
        return _frame(found[2], found[1], found[3], found[4])
    if found := _NET_FRAME.match(at):
        module, _, function = found[1].rpartition(".")
        return _frame(found[3] or "", function, found[4], module=module)
    if found := _OF_IMAGE.match(line):
        return _frame("", found[2], module=found[1])
    if found := _GO_PACKAGE.match(line) or _MODULE_FUNCTION.match(line):
        return _frame("", found[2], module=found[1])
    module, _, function = line.rpartition(".")
    return (
        _frame("", function, module=module) if module and function and " " not in line and not _GO_NAME.search(line) else _frame("", line)
    )


def titled(text: str) -> str:
    """The type in a title such as `shop.errors.PaymentFailed: no card`, or nothing."""
    found = _TITLED.match(text[:LINE_CHARS_MAX])
    return found[1] if found else ""


def causes(text: str) -> tuple[str, ...]:
    """The types that a text says an exception was caused by, the root cause last."""
    found = (_CAUSED_BY.match(line[:LINE_CHARS_MAX]) for line in text.split("\n", LINES_MAX)[:LINES_MAX] if "aused by" in line)
    return tuple(match[1].rpartition(".")[2] for match in found if match)[:CAUSES_MAX]


def _readers(text: str) -> Sequence[Callable[[list[str]], Iterable[_Part]]]:
    """Who is to read it, the likeliest first."""
    if "Traceback (most recent call last)" in text and 'File "' in text:
        return (_python,)
    if "goroutine " in text:
        return (_go,)
    if _RUBY_HINT.search(text):
        return (_ruby,)
    if _JVM_HINT.search(text):
        return (_jvm,)
    if (read := dialects.reader(text)) is not None:
        return (read,)
    return (_javascript, _net) if _JS_HINT.search(text) else (_net, _jvm, _javascript)


def _joined(parts: list[_Part], *, whole: bool) -> Trace:
    """Surface first. A cause's frames come after those that led to it."""
    frames: list[StackFrame] = []
    seen: set[tuple[str, str, str]] = set()
    complete: list[StackFrame] = []
    for part in parts:
        own = part.frames or []
        fresh = [frame for frame in own if (frame.module, frame.file, frame.function) not in seen] if seen else own
        frames.extend(fresh)
        seen.update((frame.module, frame.file, frame.function) for frame in own)
        complete = [*complete[: part.elided], *own]
    cause = tuple(parts[-1].frames or ())[-FRAMES_MAX:] if len(parts) > 1 else ()
    return Trace(
        tuple(part.type for part in parts if part.type),
        tuple(part.message for part in parts if part.type),
        tuple(frames[-FRAMES_MAX:]),
        cause,
        tuple(complete[-FRAMES_MAX:]) if cause and whole else (),
    )


def _python(lines: list[str]) -> Iterable[_Part]:
    """Python prints the root cause first. What happened while another error was handled is a problem of its own."""
    parts: list[_Part] = []
    current: _Part | None = None
    direct = True
    for line in lines:
        if _PY_START.match(line):
            if current is not None and not direct:
                parts.clear()
            current = _Part(frames=[])
            parts.insert(0, current)
        elif current is None:
            continue
        elif found := _PY_FRAME.match(line):
            assert current.frames is not None
            if not current.type:
                current.frames.append(_frame(found[1], (found[3] or "<module>").strip(), found[2]))
        elif _PY_DURING in line or _PY_DIRECT in line:
            direct = _PY_DIRECT in line
        elif current.frames and not current.type and not line.startswith("  ") and (found := _ERROR.match(line)):
            current.type, current.message = found[1].rpartition(".")[2], found[2] or ""
    return parts


def _jvm(lines: list[str]) -> Iterable[_Part]:
    parts: list[_Part] = []
    current: _Part | None = None
    for line in lines:
        if found := _JAVA_FRAME.match(line):
            if current is None:
                current = _Part(frames=[])
                parts.append(current)
            current.frames = current.frames or []
            file = found[3] if "." in found[3] else ""
            current.frames.insert(0, _frame(file, found[2], found[4], module=found[1].rstrip(".")))
        elif (found := _JAVA_MORE.match(line)) and current is not None:
            current.elided = int(found[1])
        elif line.lstrip().startswith("Suppressed: "):
            current = _Part(frames=[])  # told of on the side: not part of the chain
        elif found := _JAVA_HEAD.match(line):
            if line.startswith("Caused by: ") or not parts:
                current = _Part(found[1].rpartition(".")[2], found[2] or "", [])
                parts.append(current)
            elif parts and any(part.frames for part in parts) and line[:1] not in " \t":
                break  # another trace, another thread
        elif line.startswith('"') and any(part.frames for part in parts):
            break  # a thread dump's next thread
    return [part for part in parts if part.frames]


def _javascript(lines: list[str]) -> Iterable[_Part]:
    parts: list[_Part] = []
    head = _Part(frames=[])
    for line in lines:
        found = _JS_FRAME.match(line)
        if found:
            function, file, row, column = found[1] or "", found[2], found[3], found[4]
        elif (found := _GECKO_FRAME.match(line)) is not None:
            function, file, row, column = found[1], found[2], found[3], found[4]
        else:
            if error := _JS_HEAD.match(line):
                if not head.frames and not parts:
                    head.type, head.message = error[1], error[2] or ""
                elif "cause" in line[:16].lower():
                    parts.append(head)
                    head = _Part(error[1], error[2] or "", [])
            continue
        assert head.frames is not None
        head.frames.insert(0, _frame(file, function, row, column))
    return [*parts, head]


def _go(lines: list[str]) -> Iterable[_Part]:
    """The first goroutine that is told of is the one that panicked; the others are only there."""
    part = _Part(frames=[])
    function, started, in_goroutine = "", False, False
    frames: list[StackFrame] = []
    for line in lines:
        if found := _GO_START.match(line):
            if found[3] is not None:
                if in_goroutine:
                    break
                in_goroutine = True
            else:
                part.type = "panic" if found[1] is not None else "fatal error"
                part.message = _GO_RECOVERED.sub("", found[1] or found[2] or "")
            started = True
        elif started and line.startswith("created by "):
            break
        elif started and in_goroutine and (found := _GO_FUNCTION.match(line)):
            function = found[1]
        elif function and (found := _GO_FILE.match(line)):
            frames.insert(0, _frame(found[1], function, found[2]))
            if function in ("panic", "runtime.gopanic", "runtime.sigpanic"):
                frames.clear()  # what comes before it is the runtime's way of dying
            function = ""
    part.frames = frames
    return [part] if frames else []


def _ruby(lines: list[str]) -> Iterable[_Part]:
    """Ruby prints what reached the surface first, then each cause with a stack of its own: innermost first, on some terminals last."""
    parts = [_Part(frames=[])]
    innermost_last = any(_PY_START.match(line) for line in lines)
    for line in lines:
        head, frame = _RUBY_HEAD.match(line), _RUBY_FRAME.match(line)
        said = None if frame or _PY_START.match(line) else _RUBY_LOGGED.match(line) or _ERROR.match(line)
        if said and not said[1][:1].isupper():
            said = None
        part = parts[-1]
        assert part.frames is not None
        # A line of the source may be shown below the message: only one that says something begins a cause.
        if part.frames and part.type and (head or (said and said[2] and not line[:1].isspace())):
            part = _Part(frames=[])
            parts.append(part)
        assert part.frames is not None
        if head:
            part.type, part.message = head[5].rpartition("::")[2], head[4]
        elif said and not part.type:
            part.type, part.message = said[1].rpartition("::")[2], said[2] or ""
        if frame:
            part.frames.insert(len(part.frames) if innermost_last else 0, _frame(frame[1], frame[3], frame[2]))
    return parts


def _net(lines: list[str]) -> Iterable[_Part]:
    """.NET prints the chain of types first, then the stack of the root cause, and further out that of each wrapper."""
    types: list[_Part] = []
    stacks: list[list[StackFrame]] = [[]]
    for line in lines:
        if _NET_END.match(line):
            stacks.append([])
        elif found := _NET_FRAME.match(line):
            module, _, function = found[1].rpartition(".")
            if not function:
                continue
            stacks[-1].insert(0, _frame(found[3] or "", function, found[4], module=module.rstrip(".")))
        else:
            for piece in line.split(" ---> "):
                if (found := _NET_HEAD.match(piece.strip())) and len(types) < CAUSES_MAX and not any(stacks):
                    types.append(_Part(found[1].rpartition(".")[2], found[2] or "", []))
    stacks = [stack for stack in stacks if stack]
    if not types or not stacks:
        return []
    for part, stack in zip(reversed(types), stacks, strict=False):  # the root's stack is first
        part.frames = stack
    return types
