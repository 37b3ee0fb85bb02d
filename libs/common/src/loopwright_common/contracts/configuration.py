"""A project's configuration: owned by the gateway, declared with ``loopwright apply``, watched by all services in the ``config`` bucket."""

from __future__ import annotations

import re
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from loopwright_common.contracts.base import Contract, Input, Line, Name, ShortText, UtcDatetime
from loopwright_common.contracts.signals import SignalKind

CONFIG_BUCKET = "config"  # key: project.<name>, value: PublishedProject as JSON


class Scope(StrEnum):
    """What a project's key may do at the edge. A Sentry DSN's public key has SENTRY only: it is meant to be in front ends."""

    SIGNALS = "signals:write"
    DEPLOYS = "deploys:write"
    EXPOSURE = "exposure:write"
    SENTRY = "sentry:write"


class HealthCheck(Input):
    """An active probe: ``url`` is asked every ``interval``; failures become one signal each time the state worsens and while it lasts."""

    name: Name
    url: ShortText
    service: Line = ""
    interval: timedelta = Field(default=timedelta(seconds=30), ge=timedelta(seconds=1), le=timedelta(days=1))
    timeout: timedelta = Field(default=timedelta(seconds=10), ge=timedelta(milliseconds=100), le=timedelta(minutes=1))
    expect_status: int = Field(default=200, ge=100, le=599)
    failures_before_signal: int = Field(default=2, ge=1, le=100)


class RepositoryConfig(Input):
    """A git repository and the forge that holds it. ``source`` is a path or URL that the local forge imports and follows."""

    name: Name
    forge: Literal["local"] = "local"
    source: ShortText = ""
    default_branch: Line = "main"
    protected_paths: tuple[Line, ...] = Field(default=(), max_length=100)


class ServiceConfig(Input):
    """A running service and where its code lives."""

    name: Name
    repository: Name | None = None
    path: Line = ""  # folder of the repository that holds it; empty: the whole
    deployed_path: Line = ""  # prefix that stack frames carry in production and the repository does not
    health_checks: tuple[HealthCheck, ...] = Field(default=(), max_length=50)


class Promotion(Input):
    """When a report is ready to be investigated: all of the minima are reached, and a burst had its time to gather."""

    minimum_weight: float = Field(default=1.0, ge=0.0)  # sum of its signals' weights, each times its kind's, and of its people's
    kind_weights: dict[SignalKind, Annotated[float, Field(ge=0.0, le=1_000.0, allow_inf_nan=False)]] = Field(default_factory=dict)  # 1 else
    minimum_count: int = Field(default=1, ge=1, le=1_000_000)  # signals of kinds whose weight is not 0
    half_life: timedelta | None = Field(default=None, ge=timedelta(minutes=1), le=timedelta(days=90))  # None: signals never lose weight
    minimum_people: int = Field(default=0, ge=0, le=1_000_000)  # distinct people among its signals
    people_weight: float = Field(default=0.0, ge=0.0, le=1_000.0, allow_inf_nan=False)  # for each of them, beside the signals' own
    group_wait: timedelta = Field(default=timedelta(seconds=30), ge=timedelta(0), le=timedelta(days=1))  # lets a burst gather

    @field_validator("kind_weights")
    @classmethod
    def _some_kind_counts(cls, weights: dict[SignalKind, float]) -> dict[SignalKind, float]:
        if SignalKind.MEASUREMENT in weights:
            raise ValueError("a measurement is a verdict coming back: it is never counted, so it has no weight")
        if all(weights.get(kind, 1.0) == 0.0 for kind in SignalKind if kind is not SignalKind.MEASUREMENT):
            raise ValueError("every kind has the weight 0, so that nothing would ever be investigated; leave one, or set policy.mode")
        return weights

    def kind_weight(self, kind: str) -> float:
        """What one signal of this kind counts, before its own weight."""
        return next((weight for known, weight in self.kind_weights.items() if known.value == kind), 1.0)


class Policy(Input):
    """Which reports start work by themselves, and how much. A cap that cannot be checked refuses."""

    mode: Literal["auto", "ask", "report_only"] = "auto"
    start_priorities: tuple[Annotated[str, StringConstraints(pattern=r"^P[0-4]$")], ...] = ("P0", "P1", "P2", "P3", "P4")
    changes_per_hour_max: int = Field(default=2, ge=0, le=1_000)
    changes_per_day_max: int = Field(default=20, ge=0, le=10_000)
    open_changes_max: int = Field(default=10, ge=0, le=1_000)  # per repository
    usd_per_day_max: float = Field(default=20.0, ge=0.0)


class MeasurementConfig(Input):
    """How long the verdict takes. The defaults suit a service with steady traffic."""

    settle: timedelta = Field(default=timedelta(minutes=10), ge=timedelta(0), le=timedelta(days=7))
    minimum_window: timedelta = Field(default=timedelta(hours=1), ge=timedelta(seconds=1), le=timedelta(days=30))
    maximum_wait: timedelta = Field(default=timedelta(days=7), ge=timedelta(seconds=1), le=timedelta(days=60))
    minimum_effect: float = Field(default=0.5, gt=0.0, lt=1.0)
    confidence: float = Field(default=0.95, gt=0.5, lt=1.0)


# A pattern over a whole text: `*` stands for anything, `?` for one character, case does not matter. Stars are few, since matching
# costs their product with the text's length, and the text is a stranger's.
Glob = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^*]*(?:\*[^*]*){0,6}$")]


class FingerprintRule(Input):
    """Signals that match everything said here get this fingerprint, instead of the sender's or the usual one. The first match counts.

    ``fingerprint`` may hold variables, as Sentry's rules do: ``{{ default }}`` is the usual fingerprint; the others (see
    ``FINGERPRINT_VARIABLES``, and ``{{ tags.<label> }}``) stand for the signal's own values.
    """

    name: Line = ""  # said in the explanation of what it groups
    kinds: tuple[SignalKind, ...] = Field(default=(), max_length=20)  # empty: every kind
    service: Glob | None = None
    environment: Glob | None = None
    transaction: Glob | None = None
    message: Glob | None = None  # the title or the exception's value
    type: Glob | None = None  # of the exception, or of any that it wraps
    module: Glob | None = None  # these three: of one and the same stack frame
    path: Glob | None = None
    function: Glob | None = None
    labels: dict[Line, Glob] = Field(default_factory=dict, max_length=16)
    fingerprint: tuple[Annotated[str, StringConstraints(min_length=1, max_length=512)], ...] = Field(min_length=1, max_length=16)

    @model_validator(mode="after")
    def _says_something(self) -> FingerprintRule:
        asked = (self.service, self.environment, self.transaction, self.message, self.type, self.module, self.path, self.function)
        if not (self.kinds or self.labels or any(asked)):
            raise ValueError(
                f"the rule {self.name or self.fingerprint} matches every signal: name a kind, a service, a type, a message, ..."
            )
        return self

    @field_validator("fingerprint")
    @classmethod
    def _variables_exist(cls, parts: tuple[str, ...]) -> tuple[str, ...]:
        for part in parts:
            for name in FINGERPRINT_VARIABLE.findall(part):
                if name not in FINGERPRINT_VARIABLES and not name.startswith("tags."):
                    known = ", ".join(sorted(FINGERPRINT_VARIABLES))
                    raise ValueError(f"unknown variable {{{{ {name} }}}}; there are {known} and tags.<label>")
        return parts


FINGERPRINT_VARIABLE = re.compile(r"\{\{\s{0,8}([\w.-]{1,200})\s{0,8}\}\}")
FINGERPRINT_VARIABLES = frozenset(
    {
        "default", "error.type", "error.value", "message", "service", "environment", "release", "transaction", "level", "stack.function",
        "stack.module", "stack.abs_path",
    }
)  # fmt: skip


class FrameRule(Input):
    """What stack frames that match everything said here are to the grouping. The last rule that matches a frame counts."""

    module: Glob | None = None
    path: Glob | None = None
    function: Glob | None = None
    action: Literal["in_app", "not_in_app", "ignore"]  # ignore: as if the frame were not in the stack

    @model_validator(mode="after")
    def _says_something(self) -> FrameRule:
        if self.module is None and self.path is None and self.function is None:
            raise ValueError("a frame rule needs a module, a path or a function to match")
        return self


class GroupingConfig(Input):
    """A project's own knowledge of what belongs together. It changes how new fingerprints are made; reports that exist stay as they are."""

    fingerprints: tuple[FingerprintRule, ...] = Field(default=(), max_length=100)
    frames: tuple[FrameRule, ...] = Field(default=(), max_length=200)


class ProjectConfig(Input):
    """What ``loopwright apply -f project.yaml`` takes."""

    name: Name
    title: Line = ""
    repositories: tuple[RepositoryConfig, ...] = Field(default=(), max_length=50)
    services: tuple[ServiceConfig, ...] = Field(default=(), max_length=200)
    promotion: Promotion = Promotion()
    policy: Policy = Policy()
    measurement: MeasurementConfig = MeasurementConfig()
    grouping: GroupingConfig = GroupingConfig()
    signals_per_minute_max: int = Field(default=60_000, ge=1, le=10_000_000)  # beyond it the edge answers 429

    @field_validator("services")
    @classmethod
    def _names_are_unique(cls, services: tuple[ServiceConfig, ...]) -> tuple[ServiceConfig, ...]:
        names = [service.name for service in services]
        if len(set(names)) != len(names):
            raise ValueError("two services have the same name")
        return services

    @model_validator(mode="after")
    def _repositories_exist(self) -> ProjectConfig:
        known = {repository.name for repository in self.repositories}
        for service in self.services:
            if service.repository is not None and service.repository not in known:
                raise ValueError(f"service {service.name} names the repository {service.repository}, which is not declared")
        return self


class ProjectKey(Contract):
    """A key of the edge, as others may know it: never the secret, only its SHA-256."""

    id: Line
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    scopes: tuple[Scope, ...]
    label: Line = ""
    service: Line = ""  # a Sentry DSN's key belongs to one service: its events name none
    created_at: UtcDatetime
    revoked_at: UtcDatetime | None = None


class PublishedProject(Contract):
    """What services find in the ``config`` bucket: the configuration, the number a Sentry DSN names, and the keys' hashes."""

    number: int = Field(ge=1)  # DSN: http://<public key>@host/<number>
    revision: int = Field(ge=1)
    config: ProjectConfig
    keys: tuple[ProjectKey, ...] = Field(default=(), max_length=1_000)
