"""The pr-agent's settings, from environment variables prefixed ``LOOPWRIGHT_PR_AGENT_``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from loopwright_common.settings import MIB, ServiceSettings
from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict


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
    sandbox: Literal["auto", "bubblewrap", "landlock"] = Field(
        default="auto", description="auto takes the first that really holds on this host; a name takes that one or refuses."
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
    poll_seconds: float = Field(default=5.0, ge=0.1, le=3_600.0, description="How often the forge is asked about open pull requests.")

    @field_validator("toolchains", mode="before")
    @classmethod
    def _folders(cls, value: object) -> object:
        return tuple(Path(part) for part in value.split(":") if part) if isinstance(value, str) else value

    @field_validator("protected_paths", mode="before")
    @classmethod
    def _patterns(cls, value: object) -> object:
        return tuple(part for part in value.split(":") if part) if isinstance(value, str) else value
