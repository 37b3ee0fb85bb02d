"""Ingest's settings, from environment variables prefixed ``LOOPWRIGHT_INGEST_``."""

from __future__ import annotations

from loopwright_common.settings import MIB, ServiceSettings
from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict


class IngestSettings(ServiceSettings):
    """How much is taken at once, and how people's names are hidden."""

    model_config = SettingsConfigDict(env_prefix="LOOPWRIGHT_INGEST_", env_nested_delimiter="__", extra="ignore", frozen=True)

    port: int = Field(default=8401, ge=0, le=65_535, description="Port of the edge; 0 takes a free one.")
    body_bytes_max: int = Field(
        default=20 * MIB, ge=1024, le=1024 * MIB, description="A request's body as sent. Sentry's own limit for an envelope is 20 MiB."
    )
    decoded_bytes_max: int = Field(
        default=50 * MIB, ge=1024, le=1024 * MIB, description="A request's body once decompressed: what stops a compression bomb."
    )
    gather_milliseconds: float = Field(
        default=4.0, ge=0.0, le=1_000.0, description="How long concurrent requests gather into one atomic batch; adds to each answer."
    )
    pending_max: int = Field(
        default=10_000, ge=1, le=1_000_000, description="Messages that wait for the bus's acknowledgement; beyond it clients get 503."
    )
    actor_secret: SecretStr = Field(
        default=SecretStr(""),
        description="Key of the hash that replaces people's ids; keep it, or people are counted anew. Without it no person is recorded.",
    )
    probe_private_addresses: bool = Field(
        default=True,
        description="Health checks may ask loopback and private addresses: it is your own network. Off where others declare them.",
    )
    probes_concurrent_max: int = Field(default=20, ge=1, le=1_000, description="Health checks under way at once in this process.")
