"""The cluster service's settings, from environment variables prefixed ``LOOPWRIGHT_CLUSTER_``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from loopwright_common.settings import ServiceSettings
from pydantic import Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict


class ClusterSettings(ServiceSettings):
    """Where the model and the vectors are, and how much is done at once."""

    model_config = SettingsConfigDict(env_prefix="LOOPWRIGHT_CLUSTER_", env_nested_delimiter="__", extra="ignore", frozen=True)

    port: int = Field(default=8402, ge=0, le=65_535, description="Port to listen on; 0 takes a free one.")
    embedding_model_dir: Path = Field(
        default=Path(".cache/models/minilm-int8"),
        description="Folder made by python -m loopwright_cluster.embedding.model_build --out <folder>; without it grouping runs degraded.",
    )
    embedding_threads: int = Field(
        default=1, ge=1, le=64, description="Threads of the embedding: one core does 160 texts a second, and only new problems need it."
    )
    embedding_tokens_max: int = Field(
        default=256, ge=16, le=512, description="Tokens of a text that are read: the model was made for 256, more costs time for little."
    )
    index_dir: Path = Field(default=Path("data/cluster/vectors"), description="Folder of the embedded vector index, for one process only.")
    index_memory_mib: int = Field(
        default=256,
        ge=0,
        le=65_536,
        description="Memory for the embedded index's vectors and texts, of all projects together: 256 hold 105,000 reports. What does not "
        "fit is searched in the folder, which is slower. The container's limit has to grow with it.",
    )
    qdrant_url: str = Field(default="", description="A Qdrant server, as http://qdrant:6333, for more than one replica; empty: embedded.")
    qdrant_api_key: SecretStr = Field(default=SecretStr(""), description="The Qdrant server's key; empty for none.")
    qdrant_timeout_seconds: int = Field(
        default=10, ge=1, le=120, description="How long a Qdrant server may take; then the batch is retried."
    )
    embedding_workers: int = Field(
        default=1, ge=1, le=16, description="Texts embedded at once, each with 25 MB and its own threads; one leaves a core to the rest."
    )
    new_fingerprints_per_minute: int = Field(
        default=1_200,
        ge=0,
        description="New fingerprints of a project embedded and compared in a minute, an eighth of what a core does; what is beyond is "
        "grouped by its fingerprint alone, and says so. 0: no limit.",
    )
    grouping_version: Literal["v1", "v2"] = Field(
        default="v2", description="The version that decides where new fingerprints go; what was decided before stays as it is."
    )
    join_probability_min: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        description="The probability from which a text by a person joins without a model; 0: as fitted. docs/figures/grouping.csv has what "
        "each costs and brings.",
    )
    shadow: Literal["", "v1", "v2"] = Field(
        default="",
        description="A version that runs beside and is only compared: loopwright_cluster_shadow_decisions, and each difference logged.",
    )
    model_base_url: str = Field(
        default="", description="An OpenAI-compatible endpoint asked about reports the matcher is unsure of; empty: they open new reports."
    )
    model_api_key: SecretStr = Field(default=SecretStr(""), description="The endpoint's key; empty where it needs none.")
    model_name: str = Field(default="", description="The model's name at that endpoint; needed with a base URL.")
    model_seconds_max: float = Field(
        default=20.0,
        gt=0.0,
        le=120.0,
        description="How long all answers about a batch may take; a project's signals wait meanwhile, then new reports open.",
    )
    model_usd_per_day_max: float = Field(
        default=2.0, ge=0.0, le=100_000.0, description="US dollars a day for all questions; beyond it new reports open. Needs the prices."
    )
    model_usd_per_million_input: float = Field(
        default=0.0, ge=0.0, le=10_000.0, description="The price of a million input tokens; 0 for a model of your own."
    )
    model_usd_per_million_output: float = Field(
        default=0.0, ge=0.0, le=10_000.0, description="The price of a million output tokens; 0 for a model of your own."
    )
    batch_max: int = Field(
        default=400, ge=1, le=1_000, description="Signals decided and published together, half of what an atomic batch takes with room."
    )

    @model_validator(mode="after")
    def _model_is_whole(self) -> ClusterSettings:
        if self.model_base_url and not self.model_name:
            raise ValueError("set LOOPWRIGHT_CLUSTER_MODEL_NAME too: the endpoint is asked for a model by its name")
        return self
