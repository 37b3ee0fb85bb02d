"""The report's life as rules: which state may follow which, by whom, and what a person may do. Pure: no I/O, no clock."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from loopwright_common.contracts.investigations import InvestigationVerdict
from loopwright_common.contracts.reports import ReportState

S = ReportState

OPEN_WORK = frozenset({S.CHANGING, S.IN_REVIEW, S.MERGED, S.MEASURING})
QUIET = frozenset({S.DISMISSED, S.SUPPRESSED, S.MERGED_INTO})
VERDICTS = frozenset({S.HELD, S.NOT_HELD, S.WORSE, S.INCONCLUSIVE})
# A report rests in actionable only where the policy did not start the work: a person may.
WAITS_FOR_PERSON = frozenset({S.NEEDS_INPUT, S.ACTIONABLE, S.IN_REVIEW, S.NOT_HELD, S.WORSE, S.INCONCLUSIVE})

# What may follow by the loop's own facts. A person's moves are in PERSON_MAY; both are needed to move.
FOLLOWS: dict[ReportState, frozenset[ReportState]] = {
    S.GATHERING: frozenset({S.READY}),
    S.READY: frozenset({S.INVESTIGATING, S.NEEDS_INPUT, S.ACTIONABLE, S.NOT_ACTIONABLE}),
    S.INVESTIGATING: frozenset({S.NEEDS_INPUT, S.ACTIONABLE, S.NOT_ACTIONABLE, S.READY}),
    S.NEEDS_INPUT: frozenset({S.READY, S.CHANGING}),
    S.ACTIONABLE: frozenset({S.CHANGING, S.READY}),
    S.NOT_ACTIONABLE: frozenset({S.READY, S.CHANGING}),
    S.CHANGING: frozenset({S.IN_REVIEW, S.NEEDS_INPUT, S.MERGED, S.ACTIONABLE}),
    S.IN_REVIEW: frozenset({S.MERGED, S.NEEDS_INPUT, S.CHANGING, S.ACTIONABLE, S.READY}),
    S.MERGED: frozenset({S.MEASURING, *VERDICTS}),
    S.MEASURING: VERDICTS,
    S.HELD: frozenset({S.READY}),
    S.NOT_HELD: frozenset({S.READY, S.CHANGING}),
    S.WORSE: frozenset({S.READY, S.CHANGING}),
    S.INCONCLUSIVE: frozenset({S.READY, S.CHANGING}),
    S.DISMISSED: frozenset({S.READY, S.GATHERING}),
    S.SNOOZED: frozenset({S.GATHERING, S.READY}),
    S.SUPPRESSED: frozenset({S.READY, S.GATHERING}),
    S.MERGED_INTO: frozenset({S.GATHERING, S.READY}),  # when the merge is taken back
}
# "From anywhere" has two exceptions: what was merged away stays so until that is taken back, and a change that is out is finished or
# declined first.
for _state, _next in list(FOLLOWS.items()):
    if _state not in (S.MERGED_INTO,):
        FOLLOWS[_state] = _next | frozenset({S.DISMISSED, S.SNOOZED, S.SUPPRESSED, S.MERGED_INTO} - {_state})


class Action(StrEnum):
    """What a person may ask for."""

    PROVIDE_INPUT = "provide_input"
    START_WORK = "start_work"
    DISMISS = "dismiss"
    SNOOZE = "snooze"
    REOPEN = "reopen"
    SUPPRESS = "suppress"
    MERGE_INTO = "merge_into"
    SPLIT = "split"
    MOVE = "move"
    NEVER_TOGETHER = "never_together"
    MERGE = "merge"
    DECLINE = "decline"
    REQUEST_CHANGES = "request_changes"


class IllegalTransition(Exception):
    """The report is in a state that the next one cannot follow."""


def check(current: ReportState, following: ReportState) -> None:
    """Raises IllegalTransition, in words, when ``following`` may not follow ``current``."""
    if following not in FOLLOWS[current]:
        raise IllegalTransition(f"a report that is {current.value} cannot become {following.value}")


@dataclass(frozen=True)
class Facts:
    """What decides about actions, beside the state."""

    state: ReportState
    has_investigation: bool
    actionable: bool  # the last investigation found a concrete change
    open_change: bool


def actions(facts: Facts) -> tuple[Action, ...]:
    """What a person may do now, in the order the inbox shows it."""
    state = facts.state
    if state is S.MERGED_INTO:
        return ()
    found: list[Action] = []
    if state is S.IN_REVIEW:
        found += [Action.MERGE, Action.REQUEST_CHANGES, Action.DECLINE]
    if facts.has_investigation and facts.actionable and not facts.open_change and S.CHANGING in FOLLOWS[state]:
        found.append(Action.START_WORK)
    if S.READY in FOLLOWS[state] and state not in QUIET | {S.SNOOZED, S.GATHERING, S.INVESTIGATING, S.IN_REVIEW, S.HELD}:
        found.append(Action.PROVIDE_INPUT)
    if state in QUIET | {S.SNOOZED, S.HELD, S.NOT_ACTIONABLE, S.INCONCLUSIVE}:
        found.append(Action.REOPEN)
    if state not in OPEN_WORK:
        found += [Action.SNOOZE] if state is not S.SNOOZED else []
        found += [Action.DISMISS] if state is not S.DISMISSED else []
        found += [Action.SUPPRESS] if state is not S.SUPPRESSED else []
        found += [Action.MERGE_INTO]
    return (*found, Action.SPLIT, Action.MOVE, Action.NEVER_TOGETHER)


def waits_for(state: ReportState, question: str, reason: str) -> str:
    """What the report waits for, in a few words; empty when it waits for nothing."""
    words = {
        S.GATHERING: "more signals or time",
        S.READY: "the investigation",
        S.INVESTIGATING: "the investigation",
        S.CHANGING: "the change",
        S.MERGED: "the deploy",
        S.MEASURING: "the measurement",
        S.IN_REVIEW: "your review",
        S.NEEDS_INPUT: question or "your answer",
        S.ACTIONABLE: reason or "somebody to start the work",
        S.NOT_HELD: "you: the change did not help",
        S.WORSE: "you: it got worse",
        S.INCONCLUSIVE: "you: the numbers do not say",
    }
    return words.get(state, "")


def state_after_investigation(verdict: InvestigationVerdict) -> ReportState:
    """Where a verdict leads."""
    if verdict is InvestigationVerdict.ACTIONABLE:
        return S.ACTIONABLE
    if verdict is InvestigationVerdict.NEEDS_INPUT:
        return S.NEEDS_INPUT
    return S.NOT_ACTIONABLE  # already addressed is one: there is nothing left to change


def priority_rank(priority: str | None) -> int:
    """P0 -> 0 ... P4 -> 4; without one 5, so that sorting puts what is not yet judged last."""
    return int(priority[1]) if priority else 5
