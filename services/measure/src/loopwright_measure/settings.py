"""The measure service's settings, from environment variables prefixed ``LOOPWRIGHT_MEASURE_``."""

from __future__ import annotations

from pathlib import Path

from loopwright_common.settings import ServiceSettings
from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict


class MeasureSettings(ServiceSettings):
    """Where the repositories are read from. How long a verdict takes is the project's configuration, not a setting."""

    model_config = SettingsConfigDict(env_prefix="LOOPWRIGHT_MEASURE_", env_nested_delimiter="__", extra="ignore", frozen=True)

    port: int = Field(default=8405, ge=0, le=65_535, description="Port to listen on; 0 takes a free one.")
    checkouts_dir: Path = Field(
        default=Path("data/measure/checkouts"), description="Folder of this service's repository mirrors, for one process only."
    )
    forge_url: str = Field(default="http://127.0.0.1:8406", description="The local forge, where deployed commits are looked up.")
    forge_token: SecretStr = Field(
        default=SecretStr(""), description="A token of the forge with the read scope: this service never writes to a repository."
    )
