"""Which reports start work by themselves, and how much. Every refusal has a reason, and what cannot be checked refuses."""

from __future__ import annotations

from dataclasses import dataclass

from loopwright_common.contracts.configuration import Policy
from loopwright_common.contracts.investigations import Investigation, InvestigationVerdict


@dataclass(frozen=True)
class Load:
    """What is under way now; None where it could not be counted."""

    changes_last_hour: int | None
    changes_last_day: int | None
    open_in_repository: int | None
    usd_last_day: float | None
    same_cause_open: str | None  # the report that already has a change for this suspect commit


@dataclass(frozen=True)
class PolicyDecision:
    """Start or not, and why. ``rule`` is the reason's kind, one of few, for the metrics."""

    start: bool
    reason: str
    rule: str = "caps"


def decide(policy: Policy, investigation: Investigation, load: Load, *, backfill_only: bool, by_person: bool) -> PolicyDecision:
    """Whether a change may be requested. A person passes the mode, the priorities and the hourly cap; the other caps hold for all."""
    if investigation.verdict is not InvestigationVerdict.ACTIONABLE:
        return PolicyDecision(False, f"the verdict is {investigation.verdict.value}: there is no concrete change to make", "verdict")
    if not by_person:
        if policy.mode == "report_only":
            return PolicyDecision(False, "the project's policy is report_only: nothing is changed", "mode")
        if policy.mode == "ask":
            return PolicyDecision(False, "the project's policy is ask: a person starts the work", "mode")
        if backfill_only:
            return PolicyDecision(False, "it comes from loaded history only: a person starts the work", "backfill")
        if investigation.priority not in policy.start_priorities:
            allowed = ", ".join(policy.start_priorities) or "none"
            return PolicyDecision(False, f"{investigation.priority} does not start by itself (the policy starts {allowed})", "priority")
    if load.same_cause_open:
        return PolicyDecision(False, f"report {load.same_cause_open} already has a change for the same suspect commit", "same_cause")
    caps: list[tuple[str, float | None, float]] = [
        ("changes in the last 24 hours", load.changes_last_day, policy.changes_per_day_max),
        (f"open changes in {investigation.repository}", load.open_in_repository, policy.open_changes_max),
    ]
    if not by_person:
        caps.insert(0, ("changes in the last hour", load.changes_last_hour, policy.changes_per_hour_max))
    for name, value, cap in caps:
        if value is None:
            return PolicyDecision(False, f"{name} could not be counted, so none is started", "uncounted")
        if value >= cap:
            return PolicyDecision(False, f"{value:g} {name}, and the cap is {cap:g}")
    if load.usd_last_day is None:
        return PolicyDecision(False, "the money spent could not be counted, so none is started", "uncounted")
    if load.usd_last_day >= policy.usd_per_day_max:
        return PolicyDecision(
            False, f"${load.usd_last_day:.2f} were spent in 24 hours, and the budget is ${policy.usd_per_day_max:.2f}", "budget"
        )
    return PolicyDecision(
        True, "a person asked for it" if by_person else f"{investigation.priority} and actionable, within the caps", "started"
    )
