"""The cluster service's settings, from environment variables prefixed ``LOOPWRIGHT_CLUSTER_``."""

from __future__ import annotations

from pathlib import Path

from loopwright_common.settings import ServiceSettings
from pydantic import Field, SecretStr
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
    batch_max: int = Field(
        default=400, ge=1, le=1_000, description="Signals decided and published together, half of what an atomic batch takes with room."
    )
