"""Groups and reports: which signals point at one problem, and the life of that problem as the gateway records it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from loopwright_common.contracts.base import Contract, Identifier, Line, Name, ShortText, UtcDatetime
from loopwright_common.contracts.signals import Deploy, Signal

EXAMPLES_MAX = 20


class Neighbour(Contract):
    """An earlier signal that was looked at before deciding, and how like it was."""

    signal_id: Identifier
    report_id: Identifier
    title: Line
    kind: str
    similarity: float  # cosine of the two embeddings, -1..1
    features: dict[str, float] = Field(default_factory=dict, max_length=32)


class GroupingDecision(Contract):
    """Why a signal is where it is: the rule or the nearest neighbours, with figures, in a sentence a person can read."""

    outcome: Literal["joined", "opened"]
    rule: Literal["fingerprint", "explicit_fingerprint", "similarity", "about_report", "new", "recurrence", "person"]
    reason: ShortText
    fingerprint: Line
    neighbours: tuple[Neighbour, ...] = Field(default=(), max_length=10)
    grouping_version: Line
    degraded: bool = False  # not compared as it should be: the embedding was a stand-in, or the reason says that a limit was reached
    similar: tuple[Identifier, ...] = Field(default=(), max_length=10)  # reports that may be the same problem, most probable first


SIGNALS_PER_FACT_MAX = 1_000


class GroupUpdated(Contract):
    """Cluster's fact: a signal belongs to ``report_id``, and so do ``more`` of the same project, for the same reason.

    Each signal is told of at least once: after a crash it may come again, in other company, so who counts does so by signal id.
    """

    project: Name
    report_id: Identifier
    signal: Signal
    decision: GroupingDecision
    recurrence_of: Identifier | None = None  # on the signal that opens the report
    decided_at: UtcDatetime
    # A flood of a known problem is many signals with one decision: told together, they are stored and read in one piece.
    more: tuple[Signal, ...] = Field(default=(), max_length=SIGNALS_PER_FACT_MAX - 1)

    def apart(self) -> list[GroupUpdated]:
        """The fact as one for each signal, in order."""
        if not self.more:
            return [self]
        return [self.model_copy(update={"signal": signal, "more": ()}) for signal in (self.signal, *self.more)]


FINGERPRINTS_PER_FACT_MAX = 10_000  # of one report that is taken back from another; half a message

RegroupAction = Literal["merge", "split", "move", "never_together", "undo"]


class ReportsRegrouped(Contract):
    """Cluster's fact after a person's word on grouping: these signals now belong to ``report_id``, or why it could not be so.

    From ``from_report_id`` go the signals named and all those of ``fingerprints`` that were decided until ``at``; what comes later is
    told of in its new place. ``never_together`` names two reports and moves nothing. ``undo`` moves back what ``undoes`` had moved: to
    ``report_id``, from where it is now.
    """

    project: Name
    command_id: Identifier
    action: RegroupAction
    report_id: Identifier
    from_report_id: Identifier
    signal_ids: tuple[Identifier, ...] | None = Field(default=None, max_length=10_000)  # None: all of them
    fingerprints: tuple[Line, ...] = Field(default=(), max_length=FINGERPRINTS_PER_FACT_MAX)
    undoes: Identifier | None = None
    refused: ShortText = ""  # why it was not done; nothing changed then
    actor: Line
    reason: ShortText = ""
    at: UtcDatetime


class ReportState(StrEnum):
    """The life of a report, in the order of the loop."""

    GATHERING = "gathering"
    READY = "ready"
    INVESTIGATING = "investigating"
    NEEDS_INPUT = "needs_input"
    ACTIONABLE = "actionable"
    NOT_ACTIONABLE = "not_actionable"
    CHANGING = "changing"
    IN_REVIEW = "in_review"
    MERGED = "merged"
    MEASURING = "measuring"
    HELD = "held"
    NOT_HELD = "not_held"
    WORSE = "worse"
    INCONCLUSIVE = "inconclusive"
    DISMISSED = "dismissed"
    SNOOZED = "snoozed"
    SUPPRESSED = "suppressed"
    MERGED_INTO = "merged_into"


# A new occurrence of these opens a linked report instead of being swallowed.
RESOLVED_STATES = frozenset({ReportState.HELD})


class DismissReason(StrEnum):
    """Why a person closes a report without a change. ``fixed`` counts as resolved: a recurrence opens a linked report."""

    FIXED = "fixed"
    NOT_A_PROBLEM = "not_a_problem"
    EXPECTED = "expected"
    WONT_FIX = "wont_fix"
    DUPLICATE = "duplicate"


class ReportTransitioned(Contract):
    """Gateway's fact: a report changed its state. The timeline a person reads is made of these."""

    project: Name
    report_id: Identifier
    sequence: int = Field(ge=1)  # 1, 2, ... per report
    from_state: ReportState | None
    to_state: ReportState
    actor: Line  # person:alice, service:investigator, policy
    reason: ShortText
    dismiss_reason: DismissReason | None = None
    merged_into: Identifier | None = None
    at: UtcDatetime


class MinuteCount(Contract):
    """Signals of one report in one minute, of one release."""

    minute: UtcDatetime
    release: Line = ""
    count: int


class ReportSnapshot(Contract):
    """What others need to know of a report to work on it. Counts are exact; examples are a bounded, varied choice."""

    id: Identifier
    project: Name
    title: Line
    state: ReportState
    services: tuple[str, ...] = Field(default=(), max_length=32)
    kinds: dict[str, int] = Field(default_factory=dict, max_length=32)  # signals per kind
    releases: dict[str, int] = Field(default_factory=dict, max_length=100)  # signals per release, the most frequent
    signal_count: int
    people_count: int  # distinct actors
    first_seen: UtcDatetime
    last_seen: UtcDatetime
    examples: tuple[Signal, ...] = Field(default=(), max_length=EXAMPLES_MAX)
    recurrence_of: Identifier | None = None
    backfill_only: bool = False
    input: tuple[ShortText, ...] = Field(default=(), max_length=20)  # what people answered, newest last


class ReportReady(Contract):
    """Gateway's request for an investigation; ``attempt`` rises when input arrived or a person asks again."""

    project: Name
    report: ReportSnapshot
    attempt: int = Field(default=1, ge=1)
    deploys: tuple[Deploy, ...] = Field(default=(), max_length=50)  # of its services, newest first
    at: UtcDatetime


Priority = Annotated[str, StringConstraints(pattern=r"^P[0-4]$")]
