"""A project's configuration: owned by the gateway, declared with ``loopwright apply``, watched by all services in the ``config`` bucket."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from loopwright_common.contracts.base import Contract, Input, Line, Name, ShortText, UtcDatetime

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
    """When a report is ready to be investigated."""

    minimum_weight: float = Field(default=1.0, ge=0.0)  # sum of its signals' weights
    group_wait: timedelta = Field(default=timedelta(seconds=30), ge=timedelta(0), le=timedelta(days=1))  # lets a burst gather


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


class ProjectConfig(Input):
    """What ``loopwright apply -f project.yaml`` takes."""

    name: Name
    title: Line = ""
    repositories: tuple[RepositoryConfig, ...] = Field(default=(), max_length=50)
    services: tuple[ServiceConfig, ...] = Field(default=(), max_length=200)
    promotion: Promotion = Promotion()
    policy: Policy = Policy()
    measurement: MeasurementConfig = MeasurementConfig()
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
