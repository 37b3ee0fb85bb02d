"""The gateway's settings, from environment variables prefixed ``LOOPWRIGHT_GATEWAY_``."""

from __future__ import annotations

from datetime import timedelta

from loopwright_common.settings import ServiceSettings
from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict


class GatewaySettings(ServiceSettings):
    """Where reports are kept, who may come in, and how the outside reaches ingest."""

    model_config = SettingsConfigDict(env_prefix="LOOPWRIGHT_GATEWAY_", env_nested_delimiter="__", extra="ignore", frozen=True)

    port: int = Field(default=8400, ge=0, le=65_535, description="Port of the API and the inbox; 0 takes a free one.")
    database_url: SecretStr = Field(
        default=SecretStr("sqlite+aiosqlite:///data/gateway/gateway.db"),
        description="SQLAlchemy URL: sqlite+aiosqlite:///path or postgresql+asyncpg://user:password@host/name.",
    )
    migrate_at_start: bool = Field(
        default=True, description="Bring the tables up to date at start. Off where a Job does it: python -m loopwright_gateway.migrate."
    )
    operator_token: SecretStr = Field(
        default=SecretStr(""), description="Token of the first administrator, named operator. Without it only tokens in the database work."
    )
    allowed_hosts: str = Field(
        default="127.0.0.1,localhost,[::1]",
        description="Host names the API answers to, separated by commas: a page elsewhere cannot reach it by rebinding a name. * for any.",
    )
    secure_cookies: bool = Field(default=False, description="Send the session cookie over HTTPS only. On behind TLS.")
    session_hours: int = Field(default=12, ge=1, le=720, description="How long a browser's session lasts.")
    ingest_public_url: str = Field(default="http://127.0.0.1:8401", description="Where clients reach ingest: goes into each DSN.")
    seen_days: int = Field(
        default=31, ge=1, le=400, description="How long a signal's id is remembered for exact counting: longer than the stream keeps it."
    )
    rates_days: int = Field(
        default=400,
        ge=180,
        le=3_660,
        description="How long counts per minute and exposure are kept. A verdict asks for 128 days and the time a pull request stood open.",
    )
    # 180: a baseline of 8 days, 60 until the deploy and 60 of measuring, 31 days that one question of the API may span, and some to spare.
    stream_events_max: int = Field(
        default=10_000, ge=100, le=1_000_000, description="Events kept for clients of /v1/stream that come back."
    )
    stream_clients_max: int = Field(default=200, ge=1, le=10_000, description="Clients of /v1/stream at once; more are told to come later.")

    @property
    def session_life(self) -> timedelta:
        return timedelta(hours=self.session_hours)
