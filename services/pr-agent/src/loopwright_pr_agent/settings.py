"""The pr-agent's settings, from environment variables prefixed ``LOOPWRIGHT_PR_AGENT_``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from loopwright_common.settings import MIB, ServiceSettings
from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$"  # Kubernetes' resource quantities, without the exponents


class PrAgentSettings(ServiceSettings):
    """Where changes are made, and how much one may use. The tokens that write are only ever named by their files here."""

    model_config = SettingsConfigDict(env_prefix="LOOPWRIGHT_PR_AGENT_", env_nested_delimiter="__", extra="ignore", frozen=True)

    port: int = Field(default=8404, ge=0, le=65_535, description="Port to listen on; 0 takes a free one.")
    work_dir: Path = Field(
        default=Path("data/pr-agent"), description="Folder of this service's mirrors and work folders, for one process only."
    )
    forge_url: str = Field(default="http://127.0.0.1:8406", description="The local forge.")
    forge_read_token: SecretStr = Field(
        default=SecretStr(""), description="A token of the forge with the read scope: all that this process itself holds."
    )
    forge_write_token_file: Path | None = Field(
        default=None, description="File with a token of the write scope; only the publisher, a process of its own, reads it."
    )
    forge_merge_token_file: Path | None = Field(
        default=None, description="File with a token of the merge scope; read only to carry out a merge that a person asked for."
    )
    sandbox: Literal["auto", "bubblewrap", "landlock", "kubernetes"] = Field(
        default="auto",
        description="auto takes the first that really holds on this host; a name takes that one or refuses. "
        "In a pod, auto tries kubernetes first where a sandbox namespace is set.",
    )
    toolchains: Annotated[tuple[Path, ...], NoDecode] = Field(
        default=(Path(sys.base_prefix), Path(sys.prefix)),
        description="Read-only folders shown in the sandbox, separated by ':'; their bin folders come first on PATH.",
    )
    concurrency: int = Field(default=1, ge=1, le=32, description="Changes worked on at once: each runs a test suite.")
    run_seconds_max: float = Field(default=900.0, ge=1.0, le=7_200.0, description="One command in the sandbox, whatever the manifest says.")
    run_memory_bytes_max: int = Field(
        default=2_048 * MIB, ge=64 * MIB, description="Memory of one run; test suites that need more are rare."
    )
    run_file_bytes_max: int = Field(default=256 * MIB, ge=MIB, description="One file written in the sandbox.")
    run_processes_max: int = Field(default=256, ge=8, le=10_000, description="Processes and threads of one run.")
    run_output_bytes_max: int = Field(default=8 * MIB, ge=64 * 1024, description="Output of one run; a flood ends it.")
    diff_bytes_max: int = Field(default=128 * 1024, ge=1_024, le=240_000, description="A larger change is not reviewed by anybody.")
    diff_files_max: int = Field(default=100, ge=1, le=300, description="Files one change may touch.")
    protected_paths: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="More gitignore patterns no change may touch, separated by ':'; CI workflows and owners always are."
    )
    # sandbox=kubernetes: where the Jobs go and what they are made of
    sandbox_namespace: str = Field(
        default="",
        pattern=r"^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)?$",
        description="Namespace of the sandbox Jobs, best one of their own; needed for kubernetes.",
    )
    sandbox_image: str = Field(
        default="",
        max_length=512,
        description="Image of the sandbox with toolchains and runner, best by digest (name@sha256:...); needed for kubernetes.",
    )
    sandbox_image_pull_policy: Literal["IfNotPresent", "Always", "Never"] = Field(
        default="IfNotPresent", description="An image named by digest never changes, so it need not be asked for again."
    )
    sandbox_image_pull_secrets: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Names of pull secrets in the sandbox namespace, separated by ','."
    )
    sandbox_runtime_class: str = Field(default="", description="RuntimeClass of the Jobs, as gvisor or kata; empty: the cluster's own.")
    sandbox_node_selector: dict[str, str] = Field(default_factory=dict, description="Node labels the Jobs need, as a JSON object.")
    sandbox_tolerations: tuple[dict[str, Any], ...] = Field(
        default=(), max_length=32, description="Tolerations of the Jobs' pods, as a JSON list in the pod's own form."
    )
    sandbox_priority_class: str = Field(default="", description="PriorityClass of the Jobs; empty: the cluster's own.")
    sandbox_uid: int | None = Field(
        default=1_000_000,
        ge=1,
        le=2**31 - 100_001,
        description="First of the user ids of Jobs; null lets the platform choose one, as OpenShift does.",
    )
    sandbox_uids: int = Field(
        default=10_000,
        ge=1,
        le=100_000,
        description="How many user ids there are: a node counts processes by user, so each run takes its own.",
    )
    sandbox_gid: int | None = Field(
        default=65_532, ge=1, le=2**31 - 1, description="Group in the Jobs (nonroot by convention); null lets the platform choose one."
    )
    sandbox_cpu_request: str = Field(default="250m", pattern=QUANTITY, description="CPU that a Job reserves: a test suite idles often.")
    sandbox_cpu_limit: str = Field(
        default="2", pattern=QUANTITY, description="CPU that a Job may use; more than two seldom helps a test suite."
    )
    sandbox_memory_request: str = Field(
        default="512Mi", pattern=QUANTITY, description="Memory that a Job reserves; its limit follows from run_memory_bytes_max."
    )
    sandbox_workspace_bytes: int = Field(
        default=2_048 * MIB, ge=16 * MIB, description="Size of the folder with the repository; a Job that passes it is evicted."
    )
    sandbox_home_bytes: int = Field(default=512 * MIB, ge=MIB, description="Size of the home folder, where tools keep their caches.")
    sandbox_tmp_bytes: int = Field(default=256 * MIB, ge=MIB, description="Size of /tmp, which is memory and part of the Job's limit.")
    sandbox_bundle_bytes_max: int = Field(
        default=256 * MIB, ge=MIB, description="A repository's files as they are handed to a Job; a larger one is refused."
    )
    sandbox_pending_seconds_max: float = Field(
        default=300.0, ge=1.0, le=3_600.0, description="How long a Job may wait for a node and its image before that is reported."
    )
    sandbox_ttl_seconds: int = Field(
        default=900, ge=0, le=86_400, description="How long a finished Job that nobody took away stays to be looked at."
    )
    # The broker: all that a Job may talk to
    broker_host: str = Field(default="0.0.0.0", description="Address the broker listens on; a network policy admits the Jobs alone.")  # noqa: S104
    broker_port: int = Field(default=8414, ge=0, le=65_535, description="Port of the broker; 0 takes a free one. Only with kubernetes.")
    broker_url: str = Field(
        default="",
        pattern=r"^(http://[^/?#\s]+)?$",
        max_length=512,
        description="The broker as Jobs reach it, http://<service or address>:<port>; a name is resolved here, Jobs have no DNS.",
    )
    broker_secret: SecretStr = Field(
        default=SecretStr(""),
        description="Key that the Jobs' tokens are made with, 32 characters or more; empty: one is made and kept on the bus.",
    )
    # The model that a coding agent in the sandbox may ask through the broker
    model_base_url: str = Field(
        default="", description="An OpenAI-compatible endpoint, as http://127.0.0.1:8000/v1, for runs in Jobs; empty: no model."
    )
    model_api_key: SecretStr = Field(default=SecretStr(""), description="The endpoint's key; it never reaches a sandbox.")
    model_name: str = Field(default="", description="The model's name at that endpoint; needed with a base URL.")
    model_seconds_max: float = Field(default=120.0, gt=0.0, le=600.0, description="How long one answer may take in all, retries included.")
    model_calls_per_run_max: int = Field(
        default=60, ge=1, le=10_000, description="Calls of one run: an agent that does not end by itself ends here."
    )
    model_input_tokens_per_run_max: int = Field(default=2_000_000, ge=1, description="Tokens read in one run: 60 calls of 33,000 each.")
    model_output_tokens_per_run_max: int = Field(default=120_000, ge=1, description="Tokens written in one run.")
    model_output_tokens_max: int = Field(default=8_000, ge=200, le=64_000, description="Tokens of one answer: a large edit of one file.")
    model_usd_per_run_max: float = Field(
        default=2.0, ge=0.0, le=1_000.0, description="US dollars for one run; a call that could pass it is refused."
    )
    model_usd_per_day_max: float = Field(default=20.0, ge=0.0, le=100_000.0, description="US dollars a day over all runs.")
    model_usd_per_million_input: float = Field(
        default=0.0, ge=0.0, le=10_000.0, description="The price of a million input tokens; 0 for a model of your own."
    )
    model_usd_per_million_output: float = Field(
        default=0.0, ge=0.0, le=10_000.0, description="The price of a million output tokens; 0 for a model of your own."
    )
    poll_seconds: float = Field(default=5.0, ge=0.1, le=3_600.0, description="How often the forge is asked about open pull requests.")

    @field_validator("toolchains", mode="before")
    @classmethod
    def _folders(cls, value: object) -> object:
        return tuple(Path(part) for part in value.split(":") if part) if isinstance(value, str) else value

    @field_validator("protected_paths", mode="before")
    @classmethod
    def _patterns(cls, value: object) -> object:
        return tuple(part for part in value.split(":") if part) if isinstance(value, str) else value

    @field_validator("sandbox_image_pull_secrets", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("sandbox_uid", "sandbox_gid", mode="before")
    @classmethod
    def _nobody(cls, value: object) -> object:
        return None if isinstance(value, str) and value.strip().lower() in ("", "null", "none") else value

    @field_validator("broker_secret")
    @classmethod
    def _long_enough(cls, value: SecretStr) -> SecretStr:
        if 0 < len(value.get_secret_value()) < 32:
            raise ValueError("is shorter than 32 characters")
        return value

    @model_validator(mode="after")
    def _what_belongs_together(self) -> PrAgentSettings:
        if self.model_base_url and not self.model_name:
            raise ValueError("set LOOPWRIGHT_PR_AGENT_MODEL_NAME too: the endpoint is asked for a model by its name")
        if self.sandbox == "kubernetes":
            for name in ("sandbox_namespace", "sandbox_image", "broker_url"):
                if not getattr(self, name):
                    raise ValueError(f"set LOOPWRIGHT_PR_AGENT_{name.upper()} too: sandbox=kubernetes needs it")
        return self
