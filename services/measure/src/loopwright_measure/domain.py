"""The life of a measurement: waiting for the deploy that contains the merge, measuring, concluded. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal

from loopwright_common.contracts.base import CommitSha, Contract, Identifier, Line, Name, ShortText, UtcDatetime
from loopwright_common.contracts.changes import ChangeMerged
from loopwright_common.contracts.configuration import ProjectConfig
from loopwright_common.contracts.investigations import MetricContract
from loopwright_common.contracts.measurements import Measurement, MeasurementStarted, RateWindow, Verdict
from loopwright_common.contracts.signals import Deploy, Severity, Signal, SignalKind
from loopwright_common.identifiers import derived_id
from pydantic import Field

from loopwright_measure.verdict import LOOKS_MAX, Judgement
from loopwright_measure.windows import Deployed, Sides

NOTES_MAX = 10
RELEASES_MAX = 50  # as many as a RateWindow names
DEPLOYS_REMEMBERED_MAX = 200  # per project: a deploy may be heard before the merge it contains
CLOCK_SKEW = timedelta(minutes=5)  # a deploy tells its own time, the forge that of the merge
LOOK_LEAST = timedelta(seconds=1)
LOOK_MOST = timedelta(hours=1)  # a look costs one question to the gateway
_SEVERITY = {
    Verdict.HELD: Severity.INFO,
    Verdict.INCONCLUSIVE: Severity.INFO,
    Verdict.NOT_HELD: Severity.WARNING,
    Verdict.WORSE: Severity.ERROR,
}


class Pending(Contract):
    """A measurement as it is kept: everything a restarted process needs to go on."""

    project: Name
    report_id: Identifier
    change_id: Identifier
    title: Line
    repository: Line
    service: Line  # whose deploy is waited for; empty: any service of the repository
    merge_commit: CommitSha
    merged_at: UtcDatetime
    metric: MetricContract
    phase: Literal["waiting", "measuring", "concluded", "done"] = "waiting"
    deploy: Deploy | None = None
    commit: CommitSha | None = None  # that was deployed
    releases: tuple[Line, ...] = Field(default=(), max_length=RELEASES_MAX)  # the deploy's and later ones that contain the change
    looks: int = 0
    next_look_at: UtcDatetime
    notes: tuple[ShortText, ...] = Field(default=(), max_length=NOTES_MAX)  # deploys that did not start it, and why
    result: Measurement | None = None
    done_at: UtcDatetime | None = None
    traceparent: Line = ""  # of the merge: deploys and timers, days later, go on in its trace

    @property
    def measurement_id(self) -> str:
        """The same for the same change, however often it is computed."""
        return derived_id("measurement", self.project, self.change_id)

    @property
    def deadline(self) -> datetime:
        """When it ends whatever is known: counted from the merge while no deploy came, from the deploy after."""
        return (self.deploy.deployed_at if self.deploy is not None else self.merged_at) + self.metric.maximum_wait

    @property
    def settles_at(self) -> datetime:
        assert self.deploy is not None
        return self.deploy.deployed_at + self.metric.settle

    @property
    def deployed(self) -> Deployed:
        assert self.deploy is not None
        return Deployed(self.deploy.deployed_at, frozenset({*self.releases, *([self.commit] if self.commit is not None else [])}))


def begin(merged: ChangeMerged) -> Pending | None:
    """The measurement a merge asks for; None when its investigation fixed no metric."""
    investigation = merged.investigation
    if investigation.metric is None:
        return None
    pending = Pending(
        project=merged.project, report_id=merged.report_id, change_id=merged.change_id, title=investigation.title,
        repository=merged.repository,
        service=merged.service or investigation.metric.service, merge_commit=merged.merge_commit, merged_at=merged.merged_at,
        metric=investigation.metric, next_look_at=merged.merged_at,
    )  # fmt: skip
    return pending.model_copy(update={"next_look_at": pending.deadline})


NO_METRIC = "The investigation fixed no metric before the change was made, so nothing can be measured after it."


def without_metric(merged: ChangeMerged) -> Pending:
    """A stand-in for a change whose investigation fixed no metric: enough to say that it cannot be measured."""
    metric = MetricContract(query="none was fixed", baseline_start=merged.merged_at, baseline_end=merged.merged_at)
    return Pending(
        project=merged.project, report_id=merged.report_id, change_id=merged.change_id, title=merged.investigation.title,
        repository=merged.repository, service=merged.service, merge_commit=merged.merge_commit, merged_at=merged.merged_at, metric=metric,
        next_look_at=merged.merged_at,
    )  # fmt: skip


def concerns(pending: Pending, deploy: Deploy, config: ProjectConfig | None) -> bool:
    """Whether this deploy could be of the changed code: the service that is waited for, or one of the repository's, in the environment."""
    if deploy.project != pending.project or (pending.metric.environment and deploy.environment != pending.metric.environment):
        return False
    if deploy.deployed_at < pending.merged_at - CLOCK_SKEW:
        return False  # what was live before the merge cannot contain it
    if pending.deploy is not None:
        return (deploy.service, deploy.environment) == (pending.deploy.service, pending.deploy.environment)
    if pending.service:
        return deploy.service == pending.service
    homes = {service.name: service.repository for service in config.services} if config is not None else {}
    return homes.get(deploy.service, pending.repository) == pending.repository


def start(pending: Pending, deploy: Deploy, commit: str) -> Pending:
    """The change is live: measuring begins with this deploy."""
    found = pending.model_copy(update={"phase": "measuring", "deploy": deploy, "commit": commit, "releases": (deploy.release,)})
    return found.model_copy(update={"next_look_at": min(found.settles_at + found.metric.minimum_window, found.deadline)})


def started(pending: Pending, now: datetime) -> MeasurementStarted:
    """The fact to publish."""
    assert pending.deploy is not None
    assert pending.commit is not None
    return MeasurementStarted(
        id=pending.measurement_id, project=pending.project, report_id=pending.report_id, change_id=pending.change_id,
        deploy_id=pending.deploy.id,
        release=pending.deploy.release, commit=pending.commit, deployed_at=pending.deploy.deployed_at, settles_at=pending.settles_at,
        ends_at=pending.deadline, at=now,
    )  # fmt: skip


def note(pending: Pending, text: str) -> Pending:
    """Remembers why a deploy did not start it; the oldest notes go first."""
    if text in pending.notes:
        return pending
    return pending.model_copy(update={"notes": (*pending.notes, text)[-NOTES_MAX:]})


def also_contains(pending: Pending, deploy: Deploy) -> Pending:
    """A later deploy that contains the change too: its release counts for the same side."""
    if deploy.release in pending.releases or len(pending.releases) >= RELEASES_MAX:
        return pending
    return pending.model_copy(update={"releases": (*pending.releases, deploy.release)})


def look_again_at(pending: Pending, now: datetime, exposure: float, needed: float) -> datetime:
    """When enough exposure should be there at the pace so far; within [1 s, 1 h] from now and not after the deadline."""
    elapsed = max(now - pending.settles_at, LOOK_LEAST)
    known = exposure > 0 and needed < float("inf")
    wait = elapsed * min(max(needed / exposure - 1.0, 0.0), 1_000.0) if known else elapsed
    # A quarter of what has passed at least: a pace measured over a short while says little.
    return min(now + min(max(wait, elapsed / 4, LOOK_LEAST), LOOK_MOST), pending.deadline)


def is_final(pending: Pending, now: datetime) -> bool:
    """Whether this look is the last one."""
    return now >= pending.deadline or pending.looks + 1 >= LOOKS_MAX


def conclude(pending: Pending, measurement: Measurement) -> Pending:
    """The verdict is found and kept, so that publishing it again says the same."""
    return pending.model_copy(update={"phase": "concluded", "result": measurement})


def finish(pending: Pending, now: datetime) -> Pending:
    """The verdict is published. What is kept only stops a late repeat of the merge from beginning anew."""
    return pending.model_copy(update={"phase": "done", "done_at": now})


def measured(pending: Pending, judgement: Judgement, sides: Sides, now: datetime) -> Measurement:
    """The measurement with its figures, without the chart's series."""
    comparison = judgement.comparison
    finite = comparison is not None and comparison.high != float("inf")
    defined = comparison is not None and comparison.ratio is not None and comparison.ratio != float("inf")
    return _measurement(
        pending, judgement.verdict, judgement.reason, now, before=sides.before.window(pending.metric.confidence),
        after=sides.after.window(pending.metric.confidence), test=judgement.test,
    ).model_copy(
        update={
            "ratio": comparison.ratio if comparison is not None and defined else None,
            "ratio_low": comparison.low if comparison is not None else None,
            "ratio_high": comparison.high if comparison is not None and finite else None,
            "p_value": comparison.p_value if comparison is not None else None,
        }
    )  # fmt: skip


def unmeasured(pending: Pending, reason: str, now: datetime) -> Measurement:
    """An inconclusive measurement for a reason outside the counts."""
    return _measurement(pending, Verdict.INCONCLUSIVE, reason, now)


def no_deploy(pending: Pending, now: datetime) -> Measurement:
    """No deploy with the change came in time."""
    whose = f"of {pending.service} " if pending.service else ""
    seen = f" Seen instead: {'; '.join(pending.notes)}." if pending.notes else ""
    reason = (
        f"No deploy {whose}that contains {pending.merge_commit[:12]} was reported within {pending.metric.maximum_wait} of the merge; "
        f"report deploys with their commit (POST /v1/deploys).{seen}"
    )
    return unmeasured(pending, reason, now)


def _measurement(
    pending: Pending, verdict: Verdict, reason: str, now: datetime, *, before: RateWindow | None = None, after: RateWindow | None = None,
    test: str = "",
) -> Measurement:  # fmt: skip
    deploy = pending.deploy
    return Measurement(
        id=pending.measurement_id, project=pending.project, report_id=pending.report_id, change_id=pending.change_id, verdict=verdict,
        reason=reason[:2_048], metric=pending.metric, before=before, after=after, test=test[:2_048],
        release=deploy.release if deploy is not None else "", deployed_at=deploy.deployed_at if deploy is not None else None, at=now,
    )  # fmt: skip


def verdict_signal(pending: Pending, measurement: Measurement) -> Signal:
    """The signal that closes the loop: about its report, and without weight, since it is no new trouble by itself."""
    words = {"held": "Held", "not_held": "Did not hold", "worse": "Got worse", "inconclusive": "Inconclusive"}
    labels = {"verdict": measurement.verdict.value, "change_id": measurement.change_id, "measurement_id": measurement.id}
    if measurement.ratio is not None:
        labels["ratio"] = f"{measurement.ratio:.4g}"
    return Signal(
        id=derived_id("signal", measurement.id), project=measurement.project, source="measurement", kind=SignalKind.MEASUREMENT,
        title=f"{words[measurement.verdict]}: {pending.title}"[:512], body=measurement.reason, occurred_at=measurement.at,
        received_at=measurement.at, service=measurement.metric.service[:64], release=measurement.release,
        environment=measurement.metric.environment[:64], severity=_SEVERITY[measurement.verdict], weight=0.0, labels=labels,
        dedupe_key=measurement.id, about_report=measurement.report_id,
    )  # fmt: skip
