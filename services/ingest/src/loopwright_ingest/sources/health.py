"""Health checks: what a probe found, as signals. Pure; ``probes`` runs them."""

from __future__ import annotations

from datetime import datetime, timedelta
from urllib.parse import urlsplit

from loopwright_common.contracts.configuration import HealthCheck
from loopwright_common.contracts.signals import Severity, Signal, SignalKind
from pydantic import AwareDatetime, BaseModel

from loopwright_ingest.domain import WEIGHTS, cut, signal_id
from loopwright_ingest.ports import ProbeAnswer

SOURCE = "health"
# While a check fails it is said again after 2, 4, 8, ... intervals, and at least this often.
REPEAT_MOST = timedelta(hours=1)


class ProbeState(BaseModel):
    """What is kept of a check between probes, in the KV bucket ``probes``."""

    due_at: AwareDatetime
    failures: int = 0  # in a row
    failing_since: AwareDatetime | None = None
    signals: int = 0  # sent since it began to fail
    last_signal_at: AwareDatetime | None = None
    recovered_at: AwareDatetime | None = None


def verdict(check: HealthCheck, answer: ProbeAnswer) -> str:
    """Why the check fails, in a few words; empty when it is well."""
    if answer.status is None:
        return answer.error or "no answer"
    return "" if answer.status == check.expect_status else f"{answer.status} instead of {check.expect_status}"


def after(state: ProbeState, failing: bool, check: HealthCheck, now: datetime) -> tuple[ProbeState, bool]:
    """(the next state, whether a signal is due). A signal when it begins to fail, then again with growing spacing while it lasts."""
    if not failing:
        well = ProbeState(due_at=state.due_at, recovered_at=now if state.failing_since else state.recovered_at)
        return well, False
    failures = state.failures + 1
    since = state.failing_since or now
    spacing = min(check.interval * 2 ** min(state.signals, 20), REPEAT_MOST)
    due = failures >= check.failures_before_signal and (state.last_signal_at is None or now - state.last_signal_at >= spacing)
    return (
        ProbeState(
            due_at=state.due_at,
            failures=failures,
            failing_since=since,
            signals=state.signals + due,
            last_signal_at=now if due else state.last_signal_at,
            recovered_at=None,
        ),
        due,
    )


def signal_of(
    project: str, service: str, environment: str, release: str, check: HealthCheck, answer: ProbeAnswer, state: ProbeState, now: datetime
) -> Signal:
    """The signal of a failing check. Its identity is the outage and how often it was said, so that two replicas say it once."""
    why = verdict(check, answer)
    since = state.failing_since or now
    address = urlsplit(check.url)
    shown = address._replace(netloc=address.netloc.rpartition("@")[2], query="", fragment="")  # a password in it is nobody's business
    key = f"{service}:{check.name}:{since.isoformat()}:{state.signals}"
    text = [f"{shown.geturl()} answered {why}.", f"Failing since {since.isoformat(timespec='seconds')}, {state.failures} probes in a row."]
    if answer.excerpt:
        text.append(f"It said: {answer.excerpt}")
    return Signal(
        id=signal_id(project, SOURCE, key),
        project=project,
        source=SOURCE,
        kind=SignalKind.HEALTH_CHECK,
        title=cut(f"Health check {check.name} of {service} fails: {why}", 512),
        body=cut("\n".join(text), 16_384),
        occurred_at=now,
        received_at=now,
        service=service[:64],
        release=release,
        environment=environment,
        severity=Severity.ERROR,
        weight=WEIGHTS[SignalKind.HEALTH_CHECK],
        transaction=cut(address.path, 512),
        labels={"check": check.name, "target": cut(f"{shown.netloc}{shown.path}", 512), "status": str(answer.status or "none")},
        dedupe_key=cut(key, 512),
    )
