"""Grouping, version 1: does a signal with a new fingerprint join an earlier report, or open one?

Two questions with two sets of thresholds. Signals of the same kind must agree in structure (two exceptions share their type and the frame
that raised; two alerts share their names) or, where people write, in words: a ticket and an issue are two such texts. Else signals of
different kinds about one problem share no structure and few sentences; they must come from one service, begin within one window, and speak
of the same rare names (`anchors`).

Precision first: a wrong merge hides a problem, a missed one costs a click. So a report that already holds another problem of the
newcomer's own machine kind refuses it, two reports that fit about equally well are both refused, and reports that people have put away
take in only what is of the same kind. The figures below were set on made-up incidents of several domains (see tests/unit/cluster).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import timedelta

from loopwright_cluster.domain import Candidate, Decision, Exemplar, Match, Outcome
from loopwright_cluster.grouping.anchors import spoken
from loopwright_cluster.grouping.apart import told_apart
from loopwright_cluster.grouping.wishes import only_asks

VERSION = "v1"

# People write with their own words, hours later; machines repeat themselves, at once.
HUMAN_KINDS = frozenset({"ticket", "issue", "observation", "replay"})
MACHINE_WINDOW = timedelta(hours=2)  # an outage's alerts and exceptions begin within minutes of each other; two hours cover a slow burn
HUMAN_WINDOW = timedelta(hours=24)  # a customer writes the same day

CROSS_KIND_SCORE_MIN = 0.50
CROSS_KIND_ANCHORS_MIN = 0.45  # without at least about one shared rare name, likeness of sentences alone decides
CROSS_KIND_COSINE_ALONE_MIN = 0.70  # and then it has to be this great
ANCHORS_ENOUGH = 1.5  # two names of a structured field shared: more says no more
COSINE_NONE, COSINE_FULL = 0.15, 0.65  # MiniLM: unrelated texts of one product lie near .15, paraphrases of one failure near .65
MARGIN_MIN = 0.05  # between the best report and the next: below it nobody could say which

# Two texts by people. On 3,500 issues of a public tracker, of pairs within a day and at least this near 5 of 14 were duplicates by the
# maintainers' (incomplete) word; over any time at .80 only 12 of 181, so what is further apart in time has to say nearly the same.
HUMAN_COSINE_MIN = 0.85
HUMAN_COSINE_ANY_TIME_MIN = 0.92
HUMAN_COSINE_WITH_ANCHORS_MIN = 0.72  # in other words, about the same rare name of one service, within a day
MACHINE_COSINE_MIN = 0.93
MACHINE_ANCHORS_OVERLAP_MIN = 0.75
NAMES_SHOWN = 6  # of the shared names, in the explanation
PUT_AWAY = "its report was put away by a person, and takes in only more of the same"
# What a deployment adds to the name of a service: monitoring calls `checkout-api` what the error tracker calls `checkout`.
SERVICE_ENDS = frozenset({"api", "app", "backend", "server", "service", "svc"})
EXCEPTION_FRAMES_OVERLAP_MIN = 0.30  # beyond the raising frame, which must be the same: another way into the same line


@dataclass(frozen=True)
class Surroundings:
    """What is known around a newcomer.

    ``neighbours``: the most similar exemplars, and those of its service and time; their ``report_id`` is the report as it stands now.
    ``same_kind``: for each of their reports, its exemplars of the newcomer's kind. ``spread``: in how many reports each shared anchor
    occurs. ``quiet``: reports that people have put away (dismissed, suppressed).
    """

    neighbours: Sequence[Match]
    same_kind: Mapping[str, Sequence[Match]] = field(default_factory=dict)
    spread: Mapping[str, int] = field(default_factory=dict)
    quiet: Set[str] = frozenset()
    degraded: bool = False


def decide(newcomer: Exemplar, around: Surroundings) -> Decision:
    """Return where the newcomer goes, with the reason as a sentence and every candidate that was weighed, best first. Pure."""
    weighed = [_weigh(newcomer, match, around) for match in _unique(newcomer, around)]
    accepted = sorted((item for item in weighed if item.verdict == ""), key=lambda item: (-item.score, item.match.exemplar.signal_id))
    refused = sorted((item for item in weighed if item.verdict), key=lambda item: (-item.match.similarity, item.match.exemplar.signal_id))
    candidates = (*accepted, *refused)
    if not accepted:
        return Decision(Outcome.OPEN, None, _why_new(refused), candidates)
    best = accepted[0]
    rival = next((item for item in accepted if item.report_id != best.report_id), None)
    if rival is not None and best.score - rival.score < MARGIN_MIN:
        reason = (
            f"fits two reports about equally well ({best.score:.2f} “{_short(best.match.exemplar.title)}” and "
            f"{rival.score:.2f} “{_short(rival.match.exemplar.title)}”), so it is kept apart from both"
        )
        return Decision(Outcome.OPEN, None, reason, candidates)
    return Decision(Outcome.JOIN, best.report_id, _why_joined(newcomer, best), candidates)


def _unique(newcomer: Exemplar, around: Surroundings) -> list[Match]:
    found: dict[str, Match] = {}
    for match in (*around.neighbours, *(item for matches in around.same_kind.values() for item in matches)):
        if match.exemplar.fingerprint != newcomer.fingerprint:
            found.setdefault(match.exemplar.fingerprint, match)
    return list(found.values())


def _weigh(newcomer: Exemplar, match: Match, around: Surroundings) -> Candidate:
    """Judge one pair. A candidate with an empty ``verdict`` is accepted; otherwise the verdict says what stood against it."""
    other = match.exemplar
    shared = shared_anchors(newcomer, other, around.spread)
    features = {
        "cosine": match.similarity,
        "shared_names": round(sum(shared.values()), 3),
        "same_kind": float(newcomer.kind == other.kind),
        "same_service": float(bool(newcomer.service) and newcomer.service == other.service),
        "same_release": float(bool(newcomer.release) and newcomer.release == other.release),
        "onset_gap_seconds": round(abs(newcomer.occurred_at - other.occurred_at), 3),
        **{f"name:{name}": round(weight, 3) for name, weight in list(shared.items())[:NAMES_SHOWN]},
    }
    apart = told_apart(newcomer, other)
    if apart:
        score, against = 0.0, apart
    elif (
        newcomer.service
        and other.service
        and newcomer.service != other.service
        and not (_across(newcomer, other) and _akin(newcomer, other))
    ):
        score, against = 0.0, f"it is of another service, {other.service}"
    elif _across(newcomer, other):
        score, against = _cross_kind(newcomer, other, features, around)
    elif newcomer.kind != other.kind and other.report_id in around.quiet:
        score, against = 0.0, PUT_AWAY
    elif newcomer.explicit or other.explicit:
        score, against = 0.0, "an explicit fingerprint of its sender's sets it apart"
    elif newcomer.kind == "exception":
        score, against = _two_exceptions(newcomer, other, features)
    elif newcomer.kind in HUMAN_KINDS:
        score, against = _two_people(features)
    else:
        score, against = _two_machines(newcomer, other, features)
    return Candidate(match, other.report_id, round(score, 4), {**features, "score": round(score, 4)}, against)


def _across(one: Exemplar, other: Exemplar) -> bool:
    """Whether they are of two kinds that share no sentences. Two people's texts do, whatever they are filed as: names that every text
    about a part of the product holds had joined a ticket with an issue at half the likeness that two tickets need."""
    return one.kind != other.kind and not {one.kind, other.kind} <= HUMAN_KINDS


def _akin(one: Exemplar, other: Exemplar) -> bool:
    return _plain_service(one.service) == _plain_service(other.service)


def _plain_service(name: str) -> str:
    """The service's name as all write it: without case, separators, and what a deployment adds."""
    parts = re.split(r"[\W_]+", name.lower())
    while len(parts) > 1 and parts[-1] in SERVICE_ENDS:
        parts.pop()
    return "-".join(parts)


def shared_anchors(one: Exemplar, other: Exemplar, spread: Mapping[str, int]) -> dict[str, float]:
    """The names both speak of, weightiest first: the mean of their weights, less for a name that other reports speak of too.

    A name in one report counts whole, in two .62, in five .32 (n to the power -.7: a gentler inverse document frequency, since
    a young project has few documents to count in).
    """
    shared = {}
    for name in one.anchors.keys() & other.anchors.keys():
        shared[name] = (one.anchors[name] + other.anchors[name]) / 2 / max(1, spread.get(name, 1)) ** 0.7
    return dict(sorted(shared.items(), key=lambda item: (-item[1], item[0])))


def _cross_kind(newcomer: Exemplar, other: Exemplar, features: Mapping[str, float], around: Surroundings) -> tuple[float, str]:
    window = HUMAN_WINDOW if HUMAN_KINDS & {newcomer.kind, other.kind} else MACHINE_WINDOW
    gap, cosine, names = features["onset_gap_seconds"], features["cosine"], features["shared_names"]
    if "measurement" in (newcomer.kind, other.kind):
        return 0.0, "a measurement belongs to its own report only"
    if gap > window.total_seconds():
        return 0.0, f"it began {_span(gap)} apart, over the {_span(window.total_seconds())} for two kinds of signal"
    if other.report_id in around.quiet:
        return 0.0, PUT_AWAY
    if any(item.kind in HUMAN_KINDS and only_asks(item.title, item.body) for item in (newcomer, other)):
        return 0.0, "one asks for something and tells of no failure"
    own = around.same_kind.get(other.report_id, ())
    if newcomer.kind not in HUMAN_KINDS and any(item.exemplar.fingerprint != newcomer.fingerprint for item in own):
        return 0.0, f"its report already holds another {_say(newcomer.kind)}, “{_short(own[0].exemplar.title)}”"
    likeness = 0.0 if around.degraded else min(1.0, max(0.0, (cosine - COSINE_NONE) / (COSINE_FULL - COSINE_NONE)))
    closeness = 1.0 - gap / window.total_seconds()
    score = 0.5 * min(1.0, names / ANCHORS_ENOUGH) + 0.35 * likeness + 0.15 * closeness
    if not features["same_service"]:
        score -= 0.1  # one of them names no service, or names it otherwise
    if names < CROSS_KIND_ANCHORS_MIN and (around.degraded or cosine < CROSS_KIND_COSINE_ALONE_MIN):
        return score, f"they share too few rare names ({names:.2f} < {CROSS_KIND_ANCHORS_MIN}) at similarity {cosine:.2f}"
    if score < CROSS_KIND_SCORE_MIN:
        return score, f"their agreement is {score:.2f} < {CROSS_KIND_SCORE_MIN:.2f}"
    return score, ""


def _two_exceptions(newcomer: Exemplar, other: Exemplar, features: Mapping[str, float]) -> tuple[float, str]:
    if newcomer.exception_type != other.exception_type:
        return 0.0, f"it is a {other.exception_type or 'nameless exception'}, not a {newcomer.exception_type or 'nameless one'}"
    if not newcomer.frames or not other.frames:
        cosine = features["cosine"]
        return cosine, "" if cosine >= MACHINE_COSINE_MIN else f"without frames to compare, similarity {cosine:.2f} < {MACHINE_COSINE_MIN}"
    if newcomer.frames[-1] != other.frames[-1]:
        return 0.0, f"it was raised in {other.frames[-1]}, not in {newcomer.frames[-1]}"
    overlap = jaccard(newcomer.frames, other.frames)
    if overlap < EXCEPTION_FRAMES_OVERLAP_MIN:
        return overlap, f"their stacks share {overlap:.2f} of their frames, under {EXCEPTION_FRAMES_OVERLAP_MIN}"
    return 0.7 + 0.3 * overlap, ""


def _two_people(features: Mapping[str, float]) -> tuple[float, str]:
    cosine, names, gap = features["cosine"], features["shared_names"], features["onset_gap_seconds"]
    if gap > HUMAN_WINDOW.total_seconds():
        enough = cosine >= HUMAN_COSINE_ANY_TIME_MIN
        return cosine, "" if enough else f"similarity {cosine:.2f} < {HUMAN_COSINE_ANY_TIME_MIN}, as they are {_span(gap)} apart"
    same_thing = bool(features["same_service"]) and names >= CROSS_KIND_ANCHORS_MIN
    needed = HUMAN_COSINE_WITH_ANCHORS_MIN if same_thing else HUMAN_COSINE_MIN
    return cosine, "" if cosine >= needed else f"similarity {cosine:.2f} < {needed} for two texts by people, shared names {names:.2f}"


def _two_machines(newcomer: Exemplar, other: Exemplar, features: Mapping[str, float]) -> tuple[float, str]:
    cosine, overlap = features["cosine"], jaccard(newcomer.anchors, other.anchors)
    if cosine < MACHINE_COSINE_MIN or overlap < MACHINE_ANCHORS_OVERLAP_MIN:
        needed = f"{MACHINE_COSINE_MIN} and {MACHINE_ANCHORS_OVERLAP_MIN} are needed"
        return cosine, f"similarity {cosine:.2f} and {overlap:.2f} of names in common; {needed}"
    return cosine, ""


def jaccard(one: Iterable[str], other: Iterable[str]) -> float:
    """The share of all names that both have, 0..1; 0 when neither has any."""
    first, second = set(one), set(other)
    return len(first & second) / len(first | second) if first or second else 0.0


def _why_joined(newcomer: Exemplar, best: Candidate) -> str:
    other, features = best.match.exemplar, best.features
    names = spoken(
        [name.removeprefix("name:") for name in features if name.startswith("name:")],
        (newcomer.title, newcomer.text, newcomer.body, other.title, other.text, other.body),
    )
    about = f"both name {', '.join(names[:4])} (weight {features['shared_names']:.2f}), " if names else ""
    place = f" {_place(newcomer, other)}"
    bar = f" ≥ {CROSS_KIND_SCORE_MIN:.2f}" if _across(newcomer, other) else ""
    return (
        f"this {_say(newcomer.kind)} agrees with the {_say(other.kind)} “{_short(other.title)}”{place} at {best.score:.2f}{bar}: {about}"
        f"text similarity {features['cosine']:.2f}, began {_span(features['onset_gap_seconds'])} apart"
    )


def _place(newcomer: Exemplar, other: Exemplar) -> str:
    if newcomer.service == other.service:
        return f"of the same service ({other.service})" if other.service else "(neither names a service)"
    if newcomer.service and other.service:
        return f"of {other.service}, nearly the same name as {newcomer.service},"
    return f"(only one of them names a service, {newcomer.service or other.service})"


def _why_new(refused: Sequence[Candidate]) -> str:
    if not refused:
        return "nothing like it is known in this project"
    nearest = refused[0]
    return f"nothing known is near enough; the nearest, “{_short(nearest.match.exemplar.title)}”, does not fit: {nearest.verdict}"


def _say(kind: str) -> str:
    return kind.replace("_", " ")


def _short(title: str) -> str:
    return title if len(title) <= 80 else title[:79] + "…"


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5_400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3_600:.0f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"
