"""The fingerprint of a signal: two signals that share it are the same problem, without any embedding being asked.

Order: the project's own rules; the sender's explicit fingerprint (which may hold ``{{ default }}``, as Sentry's protocol defines it); else
by what the signal is: an exception's root type and in-app frames, what a log line says, an alert's labels, a health check's name and
target, a person's words, or the parameterised message.

Version 2. What an earlier version grouped is found again through `alternatives`: only a fingerprint that no version knows is new.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from loopwright_common.contracts.signals import Signal, SignalKind, StackFrame
from loopwright_common.workloads import workload_of

from loopwright_cluster.grouping import earlier, traces
from loopwright_cluster.grouping.frames import MINIFIED, collapse, cycle, function_name, tells
from loopwright_cluster.grouping.logs import Templates, shape, template_id
from loopwright_cluster.grouping.normalise import normalise_text, parameterise
from loopwright_cluster.grouping.rules import NO_RULES, Rules, expanded
from loopwright_cluster.grouping.vocabulary import words

VERSION = "2"  # part of every key: fingerprints of another version never meet these
TELLING_MIN = 3  # where no frame is in-app: fewer places than this are a library's door, through which many problems come
UNWRAPPED_MAX = 12  # frames that are tried; only for an exception that wraps another and is not known
LAYER_MAX = 3  # outermost functions that may all be of the layer
TOLD_MIN = 2  # that then have to be left
KEYS_REMEMBERED_MAX = 8_192  # of log templates, 200 bytes each
CUT_TITLE_CHARS = 400  # a title of this length may be the beginning of a longer line, which the body then holds

_DEFAULT = re.compile(r"\{\{\s{0,8}default\s{0,8}\}\}")

VOLATILE_LABELS = words("volatile_labels")
CHECK_LABELS = ("check", "check_name", "health_check", "monitor", "probe", "name")
TARGET_LABELS = ("target", "url", "endpoint", "path", "route")
PLACE_LABELS = frozenset({"instance", "host", "hostname", "address", "addr"})
POD_LABELS = frozenset({"pod", "pod_name"})
_TARGET = re.compile(r"(?:https?|wss?|grpcs?|tcp|tls)://[^?#]{1,512}")
GO_RUNTIME_ERROR = "runtime error: "
DIRECT_CAUSE = "was the direct cause of the following exception"  # Python's words
COMMON_TYPES = frozenset({"Error", "Exception"})
LANGUAGE_PACKAGES = frozenset({"builtins", "exceptions", "lang", "System"})  # some clients say it and some do not
CHAIN_LABEL = "exception.chain"  # from the one that surfaced to the root cause, as the ingest writes it
# Recursion without end stops where the stack is full, which is chance: only the circle says what is wrong.
RUNAWAY_TYPES = frozenset(
    {"RecursionError", "StackOverflowError", "SystemStackError", "StackOverflowException", "InsufficientExecutionStackException"}
)
RUNAWAY_CHARS = 200  # of the message: what a runtime says, it says at once
_RUNAWAY = re.compile(
    r"call stack size exceeded|too much recursion|stack overflow|stack level too deep|goroutine stack exceeds", re.IGNORECASE
)
# What stays when a message is translated: the codes of operating systems and databases.
_STABLE_CODE = re.compile(
    r"\[Errno -?\d{1,5}\]|\[WinError \d{1,5}\]|SQLSTATE\[\w{5}\]|\bORA-\d{5}\b|\b0x8[0-9A-Fa-f]{7}\b|\bE[A-Z]{4,15}\b(?=[:,]| )"
)
# What browsers say of one mistake, each in its own words, with the name that the program has: what is before it (`e.total`) is a
# minifier's.
_ENGINES = (
    (
        "{} of nothing",
        re.compile(
            r"^Cannot (?:read|set) propert(?:y|ies) (?:'(\w{1,80})' )?of (?:undefined|null)(?: \((?:reading|setting) '(\w{1,80})'\))?$"
            r"|^can't access property \"?(\w{1,80})\"?(?:, .{1,200})? is (?:undefined|null)"
            r"|^(?:undefined|null) is not an object \(evaluating '[^']{0,200}?(\w{1,80})(?: = [^']{0,80})?'\)$"
        ),
    ),
    ("{} is not a function", re.compile(r"^(?:[^\s']{0,200}\.)?(\w{1,80}) is not a function(?:$|\. \(In ')")),
    ("{} is not defined", re.compile(r"^(?:Can't find variable: (\w{1,80})|(\w{1,80}) is not defined)$")),
)
_LOG_KINDS = frozenset({SignalKind.LOG, SignalKind.CUSTOM})


@dataclass(frozen=True)
class Fingerprint:
    """``key`` names it within a project; ``rule`` and ``parts`` say how it came about; ``explicit`` when only the sender's words count.

    ``variant`` of an exception: ``app`` (the product's own frames), ``system`` (all frames), ``message`` (no frame tells anything).
    """

    key: str
    rule: str
    parts: tuple[str, ...]
    explicit: bool = False
    variant: str = ""

    @property
    def described(self) -> str:
        """The parts in a line a person can read, shortened."""
        return " | ".join(part for part in self.parts if part)[:300]


@dataclass(frozen=True)
class Alternative:
    """Another key under which the same problem may be known. ``record``: to be written down beside the fingerprint's own.

    ``itself``: it leads only to a fingerprint that has this very key, not to what recorded it beside its own: of two stacks that are the
    same but for one function each, neither is the other without a layer, they are two callers.
    """

    key: str
    reason: str
    record: bool
    itself: bool = False


@dataclass(frozen=True)
class Stack:
    """A signal's exceptions, from the surface to the root, and its frames, outermost first; read from its text where it came as text.

    ``cause`` and ``whole_cause`` are the root cause's own stack, as in `traces.Trace`.
    """

    types: tuple[str, ...]
    message: str
    frames: tuple[StackFrame, ...]
    cause: tuple[StackFrame, ...] = ()
    whole_cause: tuple[StackFrame, ...] = ()

    @property
    def root(self) -> str:
        """The type of the root cause: a wrapper around it says only who passed it on. Go's runtime has one type for all its errors."""
        runtime = self.message.find(GO_RUNTIME_ERROR, 0, 200)
        if runtime >= 0:
            return parameterise(self.message[runtime:])
        return _type_name(self.types[-1]) if self.types and self.types[-1] else ""


@lru_cache(KEYS_REMEMBERED_MAX)
def _type_name(type_: str) -> str:
    """Without its package, but where that is all that tells it from others: `io.Error`, `sqlite3.Error`."""
    package, _, name = type_.replace("::", ".").rpartition(".")
    package = package.rpartition(".")[2].lstrip("*&")
    if name in COMMON_TYPES and package and package not in LANGUAGE_PACKAGES:
        return f"{package}.{name}"
    return function_name(name)


def fingerprint(signal: Signal, *, templates: Templates | None = None, rules: Rules = NO_RULES) -> Fingerprint:
    """Return the signal's fingerprint.

    ``templates`` lets log lines that differ in a name be one problem, and learns from the line; without it each form of line is its own.
    Depends on nothing but the signal, the rules, and the lines that the templates have seen before.
    """
    stack = stack_of(signal)
    found = _default(signal, stack, templates, rules)
    given = rules.given(signal, stack.types, stack.frames)
    parts = given.parts if given is not None else signal.fingerprint
    if not parts or (given is None and all(_DEFAULT.fullmatch(part.strip()) for part in parts)):
        return found
    default = "\x1e".join((found.rule, *found.parts)) if found.rule != "log" else f"log\x1e{found.key}"
    said = tuple(expanded(part, signal, stack.types, stack.frames, default) for part in parts)
    explicit = not any(_DEFAULT.search(part) for part in parts)
    if given is not None:
        return Fingerprint(_key("project_rule", said), "explicit", (f"rule {given.name}", *said), explicit)
    return Fingerprint(_key("explicit", said), "explicit", tuple(signal.fingerprint), explicit)


def alternatives(signal: Signal, found: Fingerprint, *, rules: Rules = NO_RULES) -> tuple[Alternative, ...]:
    """The other keys to look under when ``found.key`` is not known, the surest first. Not needed for a known fingerprint."""
    others = []
    if found.variant == "app":
        stack = stack_of(signal)
        key = _key("exception", _system_parts(signal, stack, rules)[0])
        others.append(Alternative(key, "all frames are those of earlier signals, whichever of them are the product's own", record=True))
        if len(stack.types) > 1:
            others.extend(_of_cause(signal, stack, found, rules))
            others.extend(_unwrapped(found))
    others.append(Alternative(earlier.key(signal), f"same fingerprint by version {earlier.VERSION}", record=False))
    return tuple(others)


def _of_cause(signal: Signal, stack: Stack, found: Fingerprint, rules: Rules) -> Iterator[Alternative]:
    """The root cause's own stack: without who waited for it in another thread and wrapped it, and without a layer of many functions."""
    for frames, itself in ((stack.whole_cause, False), (stack.cause, True)):
        own = collapse(rules.own_places(frames))
        bare = _of_places(signal.service, stack.root, own, runaway=False) if own else None
        if bare is not None and bare.key != found.key:
            yield Alternative(bare.key, "the root cause's own stack is the same", record=True, itself=itself)


def _unwrapped(found: Fingerprint) -> Iterator[Alternative]:
    """The stack without any one of its outer frames, or the first few: the layer that wrapped the exception may have put them there."""
    head, places = found.parts[:3], found.parts[3:]
    for number, item in enumerate(places[:-1][:UNWRAPPED_MAX]):
        reason = f"the same but for {item}, which may be the layer that wrapped it"
        yield Alternative(_key("exception", (*head, *places[:number], *places[number + 1 :])), reason, record=True, itself=True)
    for count in range(2, min(LAYER_MAX, len(places) - TOLD_MIN) + 1):
        reason = f"the same but for {', '.join(places[:count])}, which may be the layer that wrapped it"
        yield Alternative(_key("exception", (*head, *places[count:])), reason, record=True, itself=True)


def _key(rule: str, parts: Iterable[str]) -> str:
    return hashlib.sha256("\x1f".join((VERSION, rule, *parts)).encode("utf-8", "replace")).hexdigest()[:32]


def _default(signal: Signal, stack: Stack, templates: Templates | None, rules: Rules) -> Fingerprint:
    """For signals without words of the sender's. The service is always a part: equal names in two services are two places, and a wrong
    merge hurts most."""
    if signal.kind is SignalKind.EXCEPTION or (stack.types and stack.frames and signal.kind not in (SignalKind.TICKET, SignalKind.ISSUE)):
        return _exception(signal, stack, rules)
    if signal.kind is SignalKind.ALERT:
        return _of("alert", _alert(signal))
    if signal.kind is SignalKind.HEALTH_CHECK:
        return _of("health_check", _health_check(signal))
    if signal.kind in (SignalKind.TICKET, SignalKind.ISSUE):
        return _of("text", (signal.kind.value, signal.service, normalise_text(signal.title), normalise_text(signal.body)))
    if signal.kind in _LOG_KINDS:
        return _log(signal, templates)
    return _of("message", (signal.kind.value, signal.service, parameterise(signal.title or signal.body)))


def _of(rule: str, parts: tuple[str, ...], variant: str = "") -> Fingerprint:
    return Fingerprint(_key(rule, parts), rule, parts, variant=variant)


def log_line(signal: Signal) -> str:
    """The line a log signal is known by: its title, or the first line of its body where the title is only the beginning of that."""
    title = signal.title
    if len(title) >= CUT_TITLE_CHARS and signal.body.startswith(title[:CUT_TITLE_CHARS]):
        return signal.body.partition("\n")[0]
    return title or signal.body.partition("\n")[0]


def _log(signal: Signal, templates: Templates | None) -> Fingerprint:
    """By its template's first line, so that the key stays when the template grows."""
    line = log_line(signal)
    if templates is None:
        tokens = shape(line)
        id, text = template_id(tokens), " ".join(tokens)
    else:
        day = signal.received_at.toordinal() - 719_163  # of 1970-01-01
        template = templates.find(signal.project, signal.service, signal.kind.value, line, day)
        id, text = template.id, template.text
    kind = signal.kind.value
    return Fingerprint(_log_key(kind, signal.service, id), "log", (kind, signal.service, text))


@lru_cache(KEYS_REMEMBERED_MAX)
def _log_key(kind: str, service: str, id: str) -> str:
    return _key("log", (kind, service, id))


def stack_of(signal: Signal) -> Stack:
    """The signal's exceptions and frames; a trace in the body of a signal that came without frames is read."""
    if signal.frames or signal.exception_type:
        types, said = _types(signal), signal.exception_value or signal.title
        read = traces.parse(signal.body) if not signal.frames and "\n" in signal.body else None
        if read is None:
            return Stack(types, said, _told_apart(signal.frames))
        return Stack(read.types or types, read.messages[-1] if read.messages else said, read.frames, read.cause, read.whole_cause)
    if "\n" in signal.body and signal.kind in (SignalKind.EXCEPTION, SignalKind.LOG, SignalKind.CUSTOM):
        read = traces.parse(signal.body)
        if read is not None:
            return Stack(read.types, read.messages[-1] if read.messages else signal.title, read.frames, read.cause, read.whole_cause)
    return Stack(_types(signal) if signal.kind is SignalKind.EXCEPTION else (), signal.title, ())


def _told_apart(frames: tuple[StackFrame, ...]) -> tuple[StackFrame, ...]:
    """Frames of senders that write each as one line of text, `com.acme.Order.total(Order.java:12)`, taken apart."""
    if not frames or frames[-1].file or frames[-1].module:
        return frames
    return tuple(
        frame if frame.file or frame.module or frame.function.isidentifier() else _apart(frame.function, frame.in_app) for frame in frames
    )


@lru_cache(KEYS_REMEMBERED_MAX)
def _apart(text: str, in_app: bool) -> StackFrame:
    found = traces.frame_of(text)
    return found if in_app else found.model_copy(update={"in_app": False})


def _types(signal: Signal) -> tuple[str, ...]:
    """The chain of types that the sender told of: in fields, in its title, or in words below its message."""
    chain = signal.labels.get(CHAIN_LABEL)
    if chain and chain.startswith(signal.exception_type[:80]):
        return tuple(chain.split(" <- "))
    surfaced = signal.exception_type or traces.titled(signal.exception_value) or traces.titled(signal.title)
    causes: tuple[str, ...] = ()
    if "aused by" in signal.body:
        causes = traces.causes(signal.body)
    elif DIRECT_CAUSE in signal.body:
        read = traces.parse(signal.body)
        causes = read.types[1:] if read is not None else ()
    return (surfaced, *causes) if surfaced else causes


def _exception(signal: Signal, stack: Stack, rules: Rules) -> Fingerprint:
    own = rules.own_places(stack.frames)
    if not own:
        parts, variant = _system_parts(signal, stack, rules)
        return _of("exception", parts, variant)
    kind = stack.root
    runaway = kind in RUNAWAY_TYPES or _RUNAWAY.search(stack.message, 0, RUNAWAY_CHARS) is not None
    found = _of_places(signal.service, kind, tuple(own), runaway=runaway)
    if found is None:
        # A bundle without its source map: where it was raised has no name, so the words have to tell.
        found = _of("exception", ("app", signal.service, kind, _message(stack), *collapse(own)), "app")
    return found


@lru_cache(KEYS_REMEMBERED_MAX)
def _of_places(service: str, kind: str, own: tuple[str, ...], *, runaway: bool) -> Fingerprint | None:
    """The fingerprint by the product's own places, or None when none of them tells anything."""
    places = (cycle(own) if runaway else ()) or collapse(own)
    if places[-1].endswith(f":{MINIFIED}"):
        return None  # raised where no name tells what it is: those further out are of many a mistake
    return _of("exception", ("app", service, kind, *places), "app") if any(tells(item) for item in places) else None


def _system_parts(signal: Signal, stack: Stack, rules: Rules) -> tuple[tuple[str, ...], str]:
    """All frames; the message where they are too few to tell a place, or none."""
    places = collapse(rules.all_places(stack.frames))
    if sum(tells(item) for item in places) >= TELLING_MIN:
        return ("system", signal.service, stack.root, *places), "system"
    variant = "system" if places else "message"
    return (variant, signal.service, stack.root, _message(stack), *places), variant


def _message(stack: Stack) -> str:
    codes = _STABLE_CODE.findall(stack.message[:1_000])
    if codes:
        return " ".join(codes)
    said = stack.message[:1_000].removeprefix("Uncaught ").removeprefix(f"{stack.root}: ")
    for form, pattern in _ENGINES:
        if found := pattern.match(said):
            return form.format(next(filter(None, found.groups()), ""))
    return parameterise(stack.message)


def in_app_frames(signal: Signal, rules: Rules = NO_RULES) -> tuple[str, ...]:
    """The in-app frames as `file:function`, innermost last, each once."""
    return collapse(rules.own_places(stack_of(signal).frames))


def telling_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """The labels that say what an alert is about, not where it fired or how badly.

    Of a pod it is the workload: all crash loops of a namespace were one problem, and every pod one of its own would be as wrong. A probe's
    `instance` is the address it asks for, where others have the machine that was scraped.
    """
    kept = {}
    for name, value in labels.items():
        lowered = name.lower()
        if lowered in POD_LABELS:
            value = workload_of(value)
        elif lowered in PLACE_LABELS:
            target = _TARGET.match(value)
            value = target.group() if target else ""
        elif lowered in VOLATILE_LABELS:
            continue
        if value:
            kept[name] = value
    return kept


def _alert(signal: Signal) -> tuple[str, ...]:
    kept = sorted(f"{name}={value}" for name, value in telling_labels(signal.labels).items())
    if not any(name.lower() in {"alertname", "alert", "rule", "monitor_name"} for name in signal.labels):
        kept.insert(0, parameterise(signal.title))
    return (signal.service, *kept)


def _health_check(signal: Signal) -> tuple[str, ...]:
    name = next((signal.labels[label] for label in CHECK_LABELS if signal.labels.get(label)), "")
    target = next((signal.labels[label] for label in TARGET_LABELS if signal.labels.get(label)), "")
    if not target and signal.request is not None:
        target = signal.request.url
    # Without either, the title has to name the check.
    return (signal.service, name or ("" if target else parameterise(signal.title)), target)


__all__ = [
    "CHECK_LABELS", "PLACE_LABELS", "TARGET_LABELS", "VERSION", "VOLATILE_LABELS", "Alternative", "Fingerprint", "Stack", "alternatives",
    "fingerprint", "in_app_frames", "log_line", "stack_of", "telling_labels",
]  # fmt: skip
