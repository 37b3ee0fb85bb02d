"""What is true of a signal whatever way it came in: its identity, its time, its weight, whom it names. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from loopwright_common.auth import actor_hash
from loopwright_common.contracts.configuration import ProjectConfig, ProjectKey, PublishedProject
from loopwright_common.contracts.signals import SignalKind
from loopwright_common.identifiers import derived_id, new_id
from loopwright_common.workloads import workload_of

FUTURE_MAX = timedelta(minutes=5)  # clocks differ by that much; more is a mistake
PAST_MAX = timedelta(days=366)
BACKFILL_AFTER = timedelta(days=1)  # older than that is history: counted, never promoted by itself

# How much one signal counts towards a report being looked into: a person who took the time to write weighs more than a log line.
WEIGHTS: dict[SignalKind, float] = {
    SignalKind.EXCEPTION: 1.0,
    SignalKind.LOG: 0.25,
    SignalKind.ALERT: 2.0,
    SignalKind.HEALTH_CHECK: 2.0,
    SignalKind.TICKET: 3.0,
    SignalKind.ISSUE: 3.0,
    SignalKind.REPLAY: 1.0,
    SignalKind.OBSERVATION: 1.0,
    SignalKind.CUSTOM: 1.0,
}

# Headers that carry credentials or say who somebody is; a reproduction needs none of them.
PRIVATE_HEADERS = re.compile(r"auth|cookie|token|secret|password|api[-_]?key|session|csrf|forwarded|real-ip|client-ip", re.IGNORECASE)

# Where monitoring names the service, what says it most plainly first. Prometheus' `service` may be the exporter that was scraped, so only
# a name that the project has counts.
SERVICE_LABELS = (
    "service", "service_name", "service.name", "exported_service", "app", "app_kubernetes_io_name", "app.kubernetes.io/name", "application",
    "deployment", "statefulset", "daemonset", "workload", "container", "exported_job", "job", "pod", "namespace",
)  # fmt: skip


@dataclass(frozen=True)
class Sender:
    """Who sends: the project of the key, the key itself, and how people's names are hidden."""

    project: PublishedProject
    key: ProjectKey
    actor_secret: bytes

    @property
    def config(self) -> ProjectConfig:
        return self.project.config

    @property
    def name(self) -> str:
        return self.project.config.name

    def pseudonym(self, actor: str) -> str:
        """A person's keyed hash; empty without a name or a secret: then nobody is recorded rather than somebody revealed."""
        return actor_hash(self.actor_secret, self.name, actor) if actor and self.actor_secret else ""

    def service(self, said: str, labels: Mapping[str, str] | None = None) -> str:
        """The service a signal belongs to: what the key says, else what the client says, else the one of the project's that its labels
        name, else the project's only one."""
        if self.key.service:
            return self.key.service
        if said:
            return said[:64]
        if len(self.config.services) == 1:
            return self.config.services[0].name
        return self._named(labels) if labels else ""

    def _named(self, labels: Mapping[str, str]) -> str:
        known = {service.name for service in self.config.services}
        for label in SERVICE_LABELS:
            value = labels.get(label, "").rpartition("/")[2]  # `job` may be namespace/name
            found = workload_of(value) if label == "pod" else value
            if found in known:
                return found
        return ""


@dataclass(frozen=True)
class Drop:
    """Something that was taken and is not used: what, and why."""

    kind: str
    reason: str


@dataclass
class Understood:
    """What a request held once it was read."""

    signals: list[Any] = field(default_factory=list)
    exposures: list[Any] = field(default_factory=list)
    drops: list[Drop] = field(default_factory=list)


def signal_id(project: str, source: str, key: str) -> str:
    """The id of a signal that its client names: the same name is the same signal. A fresh one without a name."""
    return derived_id("signal", project, source, key) if key else new_id()


def judge_time(occurred_at: datetime | None, now: datetime) -> tuple[datetime, bool]:
    """(when, whether it is history). Without a time it is now. Raises ValueError when it is no time a signal can have."""
    if occurred_at is None:
        return now, False
    if occurred_at > now + FUTURE_MAX:
        raise ValueError(f"lies {occurred_at - now} in the future; at most {FUTURE_MAX} is taken for a clock's error")
    if occurred_at < now - PAST_MAX:
        raise ValueError(f"lies more than {PAST_MAX.days} days back")
    return min(occurred_at, now), occurred_at < now - BACKFILL_AFTER


def first_line(text: str, limit: int = 512) -> str:
    """The first line that says something, cut to ``limit`` characters."""
    line = next((part.strip() for part in text.splitlines() if part.strip()), "")
    return line if len(line) <= limit else line[: limit - 1] + "…"


def cut(value: Any, limit: int) -> str:
    """A text of at most ``limit`` characters from whatever a client sent."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def parse_time(value: Any) -> datetime | None:
    """A time as clients write it: RFC 3339, or seconds since 1970. None for anything else."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        if isinstance(value, (int, float)):
            return datetime.fromtimestamp(value, UTC)
        found = datetime.fromisoformat(str(value).strip())
    except (ValueError, OverflowError, OSError):
        return None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
