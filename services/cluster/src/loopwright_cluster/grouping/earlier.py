"""The keys that fingerprints had in version 1, as it was: what was grouped under them is found again, and nothing new is made of them.

Nothing here may change, nor may `normalise`: a key that comes out differently is a report that is opened twice.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from itertools import groupby

from loopwright_common.contracts.signals import Signal, SignalKind, StackFrame

from loopwright_cluster.grouping.normalise import normalise_file, normalise_function, normalise_text, parameterise
from loopwright_cluster.grouping.vocabulary import words

VERSION = "1"  # part of every key: fingerprints of another version never meet these
FRAMES_MAX = 30  # innermost; what lies further out is the framework's or the caller's business
SYSTEM_FRAMES_MAX = 5  # where no frame is in-app, only the place of the error itself is telling

_DEFAULT = re.compile(r"\{\{\s*default\s*\}\}")

VOLATILE_LABELS = words("volatile_labels") | {"container"}  # which tells what an alert is about since
CHECK_LABELS = ("check", "check_name", "health_check", "monitor", "probe", "name")
TARGET_LABELS = ("target", "url", "endpoint", "path", "route")


def key(signal: Signal) -> str:
    """The signal's key in version 1."""
    rule, parts = _default(signal)
    if not signal.fingerprint or all(_DEFAULT.fullmatch(part.strip()) for part in signal.fingerprint):
        return _key(rule, parts)
    return _key("explicit", tuple(_DEFAULT.sub(lambda _: "\x1e".join((rule, *parts)), part) for part in signal.fingerprint))


def _key(rule: str, parts: Iterable[str]) -> str:
    return hashlib.sha256("\x1f".join((VERSION, rule, *parts)).encode("utf-8", "replace")).hexdigest()[:32]


def _default(signal: Signal) -> tuple[str, tuple[str, ...]]:
    """The rule and parts for signals without words of the sender's. The service is always a part: equal names in two services are
    two places, and a wrong merge hurts most."""
    if signal.kind is SignalKind.EXCEPTION or (signal.exception_type and signal.frames):
        return _exception(signal)
    if signal.kind is SignalKind.ALERT:
        return _alert(signal)
    if signal.kind is SignalKind.HEALTH_CHECK:
        return _health_check(signal)
    if signal.kind in (SignalKind.TICKET, SignalKind.ISSUE):
        return "text", (signal.kind.value, signal.service, normalise_text(signal.title), normalise_text(signal.body))
    return "message", (signal.kind.value, signal.service, parameterise(signal.title or signal.body))


def _exception(signal: Signal) -> tuple[str, tuple[str, ...]]:
    kind = normalise_function(signal.exception_type) if signal.exception_type else ""
    frames = _in_app_frames(signal)
    if frames:
        return "exception", (signal.service, kind, *frames)
    message = parameterise(signal.exception_value or signal.title)
    if signal.frames:
        return "exception", (signal.service, kind, message, *_keys(signal.frames[-SYSTEM_FRAMES_MAX:]))
    return "exception", (signal.service, kind, message)


def _in_app_frames(signal: Signal) -> tuple[str, ...]:
    """The in-app frames as `file:function`, innermost last, recursion folded into one."""
    return _keys([frame for frame in signal.frames if frame.in_app][-FRAMES_MAX:])


def _keys(frames: Iterable[StackFrame]) -> tuple[str, ...]:
    keys = (f"{frame.module or normalise_file(frame.file)}:{normalise_function(frame.function)}" for frame in frames)
    return tuple(key for key, _ in groupby(keys))


def _alert(signal: Signal) -> tuple[str, tuple[str, ...]]:
    kept = sorted(f"{name}={value}" for name, value in signal.labels.items() if name.lower() not in VOLATILE_LABELS)
    if not any(name.lower() in {"alertname", "alert", "rule", "monitor_name"} for name in signal.labels):
        kept.insert(0, parameterise(signal.title))
    return "alert", (signal.service, *kept)


def _health_check(signal: Signal) -> tuple[str, tuple[str, ...]]:
    name = next((signal.labels[label] for label in CHECK_LABELS if signal.labels.get(label)), "")
    target = next((signal.labels[label] for label in TARGET_LABELS if signal.labels.get(label)), "")
    if not target and signal.request is not None:
        target = signal.request.url
    # Without either, the title has to name the check.
    return "health_check", (signal.service, name or ("" if target else parameterise(signal.title)), target)
