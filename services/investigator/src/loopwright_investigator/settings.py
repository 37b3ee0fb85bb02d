"""The investigator's settings, from environment variables prefixed ``LOOPWRIGHT_INVESTIGATOR_``."""

from __future__ import annotations

from pathlib import Path

from loopwright_common.settings import ServiceSettings
from pydantic import Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict


class InvestigatorSettings(ServiceSettings):
    """Where repositories come from, how much is done at once, and which model is asked, if any."""

    model_config = SettingsConfigDict(env_prefix="LOOPWRIGHT_INVESTIGATOR_", env_nested_delimiter="__", extra="ignore", frozen=True)

    port: int = Field(default=8403, ge=0, le=65_535, description="Port to listen on; 0 takes a free one.")
    mirrors_dir: Path = Field(
        default=Path("data/investigator/mirrors"), description="Folder of the git mirrors, for one process only; it can be rebuilt."
    )
    forge_url: str = Field(
        default="http://127.0.0.1:8406", description="The local forge that holds the repositories; empty: fetch each repository's source."
    )
    forge_token: SecretStr = Field(default=SecretStr(""), description="The forge's token; read scope is enough, and all it should have.")
    concurrency: int = Field(
        default=2, ge=1, le=32, description="Investigations at once: each runs git one process at a time, so one for each core."
    )
    investigation_seconds_max: int = Field(
        default=900, ge=10, le=7_200, description="One investigation at most: a first fetch of a large repository is the longest part."
    )
    bundles_max: int = Field(
        default=5_000, ge=10, le=1_000_000, description="Replay bundles kept; the oldest go first. One is about 100 KB."
    )
    model_base_url: str = Field(
        default="", description="An OpenAI-compatible endpoint, as http://127.0.0.1:8000/v1, that words the results; empty: no model."
    )
    model_api_key: SecretStr = Field(default=SecretStr(""), description="The endpoint's key; empty where it needs none.")
    model_name: str = Field(default="", description="The model's name at that endpoint; needed with a base URL.")
    model_seconds_max: float = Field(
        default=60.0, gt=0.0, le=600.0, description="How long an answer may take in all, retries included; then the composed text stands."
    )
    model_output_tokens_max: int = Field(
        default=4_000, ge=200, le=64_000, description="Tokens of an answer: four times what the longest useful one needs."
    )
    model_usd_per_investigation_max: float = Field(
        default=0.5,
        ge=0.0,
        le=100.0,
        description="US dollars for one investigation; a call is counted at its most (a token per byte) before it is made.",
    )
    model_usd_per_day_max: float = Field(
        default=10.0, ge=0.0, le=100_000.0, description="US dollars a day over all investigations; beyond it the composed text stands."
    )
    model_usd_per_million_input: float = Field(
        default=0.0, ge=0.0, le=10_000.0, description="The price of a million input tokens; 0 for a model of your own."
    )
    model_usd_per_million_output: float = Field(
        default=0.0, ge=0.0, le=10_000.0, description="The price of a million output tokens; 0 for a model of your own."
    )

    @model_validator(mode="after")
    def _a_model_has_a_name(self) -> InvestigatorSettings:
        if self.model_base_url and not self.model_name:
            raise ValueError("set LOOPWRIGHT_INVESTIGATOR_MODEL_NAME too: the endpoint is asked for a model by its name")
        return self
