"""What the first tier has told apart, so that likeness alone never joins it: a veto that any matcher can ask for.

Two stacks, or two log lines, of one service with different fingerprints are near each other by any measure of words: they come from one
program. The fingerprints have already taken out what may differ within one problem; what is left differs because it says something else.
Two firings of one alerting rule have the same words, whatever they are about: only their labels say that it is two queues or two volumes.
"""

from __future__ import annotations

from loopwright_cluster.domain import FRAMES_KEPT, Exemplar
from loopwright_cluster.grouping.frames import tells

LINES = frozenset({"log", "custom"})
LABELLED = frozenset({"alert", "health_check"})
OTHER_PLACES_SHARE_MAX = 0.34  # of the shorter stack's places: a layer that came in between adds one or two, and takes none away


def told_apart(one: Exemplar, other: Exemplar) -> str:
    """Why two exemplars are two problems whatever their likeness, as a sentence for a person; empty when that is open. Symmetric."""
    if has_stack(one) and has_stack(other):
        return _stacks(one, other)
    if one.kind in LINES and other.kind in LINES and one.service == other.service and not (has_stack(one) or has_stack(other)):
        return "both are log lines of one service, and without their values they say two things"
    if one.kind == other.kind and one.kind in LABELLED:
        return _subjects(one, other)
    return ""


def _subjects(one: Exemplar, other: Exemplar) -> str:
    name = next((name for name in sorted(one.subjects.keys() & other.subjects.keys()) if one.subjects[name] != other.subjects[name]), "")
    if not name:
        return ""
    first, second = sorted((one.subjects[name], other.subjects[name]))
    return f"one is about {name} {first}, the other about {name} {second}"


def has_stack(exemplar: Exemplar) -> bool:
    """Whether it is an exception by its frames, in whatever kind of signal it came."""
    return bool(exemplar.frames)


def _stacks(one: Exemplar, other: Exemplar) -> str:
    if one.exception_type and other.exception_type and one.exception_type != other.exception_type:
        return f"one is a {min(one.exception_type, other.exception_type)}, the other a {max(one.exception_type, other.exception_type)}"
    if not (any(map(tells, one.frames)) and any(map(tells, other.frames))):
        return "their frames have no names, and their messages differ"
    if one.frames[-1] != other.frames[-1]:
        return f"one was raised in {min(one.frames[-1], other.frames[-1])}, the other in {max(one.frames[-1], other.frames[-1])}"
    mine, theirs = _seen(one, other), _seen(other, one)
    replaced = sorted((next(iter(sorted(mine - theirs)), ""), next(iter(sorted(theirs - mine)), "")))
    if all(replaced) and all(map(tells, replaced)):
        return f"one goes through {replaced[0]} where the other goes through {replaced[1]}"
    apart = len(mine ^ theirs)
    shorter = min(len(mine), len(theirs))
    if apart > max(1, OTHER_PLACES_SHARE_MAX * shorter):
        return f"{apart} functions are in one of their stacks only, more than a layer in between would bring"
    return ""


def _seen(exemplar: Exemplar, other: Exemplar) -> set[str]:
    """The functions of its stack. Where the other's is cut, those further out than all that both have are left out: a layer more has pushed
    them out of what is kept of the other."""
    frames = exemplar.frames
    if len(other.frames) >= FRAMES_KEPT:
        common = set(other.frames)
        frames = frames[next((at for at, frame in enumerate(frames) if frame in common), 0) :]
    return set(frames)
