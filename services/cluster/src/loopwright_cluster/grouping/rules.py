"""A project's own rules, compiled: which signals get which fingerprint, and what its stack frames are to the grouping."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from loopwright_common.contracts.configuration import FINGERPRINT_VARIABLE, FingerprintRule, FrameRule, GroupingConfig
from loopwright_common.contracts.signals import Signal, StackFrame

from loopwright_cluster.grouping.frames import is_far_right, is_foreign, place, place_of

FRAMES_REMEMBERED_MAX = 8_192  # places of frames, for each project with frame rules
DEFAULT = "default"

Pattern = re.Pattern[str]


def _compiled(glob: str | None) -> Pattern | None:
    return re.compile(fnmatch.translate(glob.replace("[", "[[]").lower())) if glob is not None else None


def _matches(pattern: Pattern | None, text: str) -> bool:
    return pattern is None or pattern.match(text.lower()) is not None


class _Frames:
    """Three patterns of one frame."""

    def __init__(self, rule: FingerprintRule | FrameRule) -> None:
        self.module, self.path, self.function = _compiled(rule.module), _compiled(rule.path), _compiled(rule.function)
        self.any = not (self.module or self.path or self.function)

    def match(self, module: str, path: str, function: str) -> bool:
        return _matches(self.module, module) and _matches(self.path, path) and _matches(self.function, function)


class _Fingerprint:
    def __init__(self, rule: FingerprintRule) -> None:
        self.rule = rule
        self.frames = _Frames(rule)
        self.service, self.environment = _compiled(rule.service), _compiled(rule.environment)
        self.transaction, self.message, self.type = _compiled(rule.transaction), _compiled(rule.message), _compiled(rule.type)
        self.labels = [(name, _compiled(glob)) for name, glob in rule.labels.items()]

    def match(self, signal: Signal, types: Sequence[str], frames: Sequence[StackFrame]) -> bool:
        return (
            (not self.rule.kinds or signal.kind in self.rule.kinds)
            and _matches(self.service, signal.service)
            and _matches(self.environment, signal.environment)
            and _matches(self.transaction, signal.transaction)
            and (self.message is None or _matches(self.message, signal.title) or _matches(self.message, signal.exception_value))
            and (self.type is None or any(_matches(self.type, name) for name in types))
            and all(name in signal.labels and _matches(pattern, signal.labels[name]) for name, pattern in self.labels)
            and (self.frames.any or any(self.frames.match(frame.module, frame.file, frame.function) for frame in frames))
        )


@dataclass(frozen=True)
class Given:
    """A fingerprint by a rule: its parts as they are written, and the rule's name."""

    parts: tuple[str, ...]
    name: str


class Rules:
    """The rules of one project, ready for use. Pure: the same signal always gets the same."""

    def __init__(self, config: GroupingConfig) -> None:
        self._fingerprints = [_Fingerprint(rule) for rule in config.fingerprints]
        self._frames = [(_Frames(rule), rule.action) for rule in config.frames]
        # Asked for every frame of every signal: remembered, or the frames would be most of what a known fingerprint costs.
        self._own = lru_cache(FRAMES_REMEMBERED_MAX)(self._own_place)

    def given(self, signal: Signal, types: Sequence[str], frames: Sequence[StackFrame]) -> Given | None:
        """The fingerprint that the first matching rule gives, or None."""
        for compiled in self._fingerprints:
            if compiled.match(signal, types, frames):
                rule = compiled.rule
                return Given(rule.fingerprint, rule.name or ", ".join(rule.fingerprint))
        return None

    def own_places(self, frames: Sequence[StackFrame]) -> list[str]:
        """The places of the frames that are the product's own, in order; plumbing as an empty text."""
        own = self._own
        found = (own(frame.module, frame.file, frame.function, frame.in_app, is_far_right(frame)) for frame in frames)
        return [item for item in found if item is not None]

    def all_places(self, frames: Sequence[StackFrame]) -> list[str]:
        """The places of all frames that are not ignored."""
        return [place(frame) for frame in frames if self.standing(frame.module, frame.file, frame.function, frame.in_app) != "ignore"]

    def _own_place(self, module: str, file: str, function: str, in_app: bool, far_right: bool) -> str | None:
        if self.standing(module, file, function, in_app) != "in_app":
            return None
        return place_of(module, file, function, far_right=far_right)

    def standing(self, module: str, file: str, function: str, in_app: bool) -> str:
        """What a frame is to the grouping: in_app, not_in_app or ignore."""
        found = _usual(module, file, in_app)
        for patterns, action in self._frames:
            if patterns.match(module, file, function):
                found = action
        return found


def _usual(module: str, file: str, in_app: bool) -> str:
    """What is known to be a runtime's or a package's is not the product's own, whatever its sender says."""
    return "in_app" if in_app and not is_foreign(module, file) else "not_in_app"


NO_RULES = Rules(GroupingConfig())


def expanded(part: str, signal: Signal, types: Sequence[str], frames: Sequence[StackFrame], default: str) -> str:
    """A part of a fingerprint with its variables in place; one that does not exist stays as it is written."""
    if "{{" not in part:
        return part

    def value(found: re.Match[str]) -> str:
        name = found[1]
        if name == DEFAULT:
            return default
        if name.startswith("tags."):
            return signal.labels.get(name[5:], "")
        return _variables(signal, types, frames).get(name, found[0])

    return FINGERPRINT_VARIABLE.sub(value, part)


def _variables(signal: Signal, types: Sequence[str], frames: Sequence[StackFrame]) -> Mapping[str, str]:
    own = [frame for frame in frames if frame.in_app]
    at = (own or list(frames) or [StackFrame()])[-1]
    return {
        "error.type": types[0] if types else signal.exception_type,
        "error.value": signal.exception_value,
        "message": signal.title,
        "service": signal.service,
        "environment": signal.environment,
        "release": signal.release,
        "transaction": signal.transaction,
        "level": signal.severity.value,
        "stack.function": at.function,
        "stack.module": at.module,
        "stack.abs_path": at.file,
    }
