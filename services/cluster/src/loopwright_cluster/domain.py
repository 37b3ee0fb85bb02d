"""What the grouping speaks of: exemplars (the first signal of each fingerprint), candidates, and the decision with its reason. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from loopwright_common.identifiers import derived_id

FRAMES_KEPT = 10  # of a stack, the innermost; enough to compare two, and bounded in the index
# merged_into and successor links that are followed. A problem that comes back every week for years, or a report that is merged into the
# next one each time, has hundreds; what is longer is a mistake, not a history.
REPORT_CHAIN_MAX = 1_024


@dataclass(frozen=True)
class Exemplar:
    """The signal that stands for a fingerprint: what later signals are compared with, and all that is needed to index it again.

    ``anchors`` are the names it speaks of (functions, routes, exception types, words) with their weight 0..1; ``frames`` are its
    normalised in-app stack frames, innermost last; ``text`` is what was embedded; ``body`` is the beginning of what was written, as it was
    written; ``occurred_at`` is in epoch seconds; ``subjects`` says what an alert or a health check is about, by label (`describe`).
    """

    project: str
    fingerprint: str
    report_id: str
    signal_id: str
    kind: str
    service: str
    occurred_at: float
    title: str
    text: str
    release: str = ""
    environment: str = ""
    exception_type: str = ""
    explicit: bool = False
    anchors: Mapping[str, float] = field(default_factory=dict)
    frames: tuple[str, ...] = ()
    body: str = ""
    subjects: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def point_id(self) -> str:
        """The UUID of its point in the vector index: one point for each fingerprint of a project."""
        return point_id(self.project, self.fingerprint)

    def in_report(self, report_id: str) -> Exemplar:
        """The same exemplar, filed under another report."""
        return self if report_id == self.report_id else replace(self, report_id=report_id)

    def to_payload(self) -> dict[str, Any]:
        """The exemplar as JSON values. ``tokens`` repeats the anchors' names as a list, which an index can filter by."""
        return {
            "project": self.project,
            "fingerprint": self.fingerprint,
            "report": self.report_id,
            "signal": self.signal_id,
            "kind": self.kind,
            "service": self.service,
            "occurred_at": self.occurred_at,
            "title": self.title,
            "text": self.text,
            "release": self.release,
            "environment": self.environment,
            "exception_type": self.exception_type,
            "explicit": self.explicit,
            "tokens": sorted(self.anchors),
            "weights": [self.anchors[name] for name in sorted(self.anchors)],
            "frames": list(self.frames),
            "body": self.body,
            "subjects": dict(self.subjects),
        }

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any]) -> Exemplar:
        """Reads back what ``to_payload`` wrote. Raises KeyError when a field is missing."""
        return cls(
            project=payload["project"],
            fingerprint=payload["fingerprint"],
            report_id=payload["report"],
            signal_id=payload["signal"],
            kind=payload["kind"],
            service=payload["service"],
            occurred_at=float(payload["occurred_at"]),
            title=payload["title"],
            text=payload["text"],
            release=payload["release"],
            environment=payload["environment"],
            exception_type=payload["exception_type"],
            explicit=payload["explicit"],
            anchors=dict(zip(payload["tokens"], payload["weights"], strict=True)),
            frames=tuple(payload["frames"]),
            body=payload.get("body", ""),  # records of before it was kept have none
            subjects=dict(payload.get("subjects", {})),  # nor of these
        )


def point_id(project: str, fingerprint: str) -> str:
    """The UUID under which a fingerprint's exemplar is indexed."""
    return derived_id("point", project, fingerprint)


@dataclass(frozen=True)
class Match:
    """An exemplar found by the index; ``similarity`` is the cosine of the two embeddings, -1..1.

    ``vector`` is the exemplar's own, of unit length, where the search says that it returns it.
    """

    exemplar: Exemplar
    similarity: float
    vector: npt.NDArray[np.float32] | None = field(default=None, compare=False, repr=False)

    def in_report(self, report_id: str) -> Match:
        """The same match, its exemplar filed under another report."""
        return self if report_id == self.exemplar.report_id else replace(self, exemplar=self.exemplar.in_report(report_id))


class Outcome(StrEnum):
    JOIN = "joined"
    OPEN = "opened"


@dataclass(frozen=True)
class Candidate:
    """An earlier exemplar with its report as it stands now (merges followed), and the features the pair was judged by."""

    match: Match
    report_id: str
    score: float
    features: Mapping[str, float]
    verdict: str  # why it was accepted or refused, for a person


@dataclass(frozen=True)
class Decision:
    """Where a signal with a new fingerprint goes. ``report_id`` is None when it opens a report of its own."""

    outcome: Outcome
    report_id: str | None
    reason: str
    candidates: tuple[Candidate, ...] = ()
