"""What every service's settings share: one pydantic-settings class per service, secrets readable from files, errors that name the remedy.

A field ``port`` of the ingest service is the variable ``LOOPWRIGHT_INGEST_PORT``. Fields in ``SHARED`` may also be given once for all
services without the service's name, as ``LOOPWRIGHT_NATS_URL``; the longer name wins. Any variable may be given as ``<NAME>_FILE`` instead:
its value is then the content of that file, which is how Kubernetes and the supervisor hand over secrets.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_args

from pydantic import Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.sources import EnvSettingsSource

SECRET_FILE_BYTES_MAX = 64 * 1024
MIB = 1024**2
GIB = 1024**3


class BadSetting(Exception):
    """The settings cannot be used; the message lists each variable, its value and the remedy."""


class ServiceSettings(BaseSettings):
    """Settings every service has. A subclass sets ``env_prefix`` in its model_config and adds its own."""

    SHARED: ClassVar[frozenset[str]] = frozenset(
        {
            "nats_url",
            "nats_user",
            "nats_password",
            "nats_ca_file",
            "nats_store_bytes",
            "nats_replicas",
            "log_level",
            "log_format",
            "otlp_endpoint",
            "otlp_sample_ratio",
        }
    )

    model_config = SettingsConfigDict(env_nested_delimiter="__", extra="ignore", frozen=True)

    host: str = Field(default="127.0.0.1", description="Address to listen on. Loopback unless a network policy stands in front.")
    port: int = Field(default=0, ge=0, le=65_535, description="Port to listen on; 0 takes a free one.")
    nats_url: str = Field(default="nats://127.0.0.1:8422", description="The NATS server; several, separated by commas, for a cluster.")
    nats_user: str = Field(default="", description="NATS user; empty for a server without authorisation.")
    nats_password: SecretStr = Field(default=SecretStr(""), description="NATS password.")
    nats_ca_file: Path | None = Field(
        default=None, description="PEM file of the authority behind a tls:// server's certificate; without it the public ones."
    )
    nats_store_bytes: int = Field(
        default=20 * GIB, ge=64 * MIB, description="Bytes all streams together may hold; cut to what the server has."
    )
    nats_replicas: int = Field(default=1, ge=1, le=5, description="Copies of each stream: 3 in a NATS cluster of three.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Least severity that is logged.")
    log_format: Literal["json", "text"] = Field(default="json", description="json for machines, text for a person at a terminal.")
    otlp_endpoint: str = Field(default="", description="OTLP/HTTP endpoint for traces, as http://collector:4318; empty: none are sent.")
    otlp_sample_ratio: float = Field(
        default=1.0, ge=0.0, le=1.0, description="Share of traces that is recorded: all; less where thousands of signals a second come."
    )
    drain_seconds: float = Field(default=10.0, ge=0.0, le=600.0, description="How long running work may take after SIGTERM.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings, env_settings, _FileSource(settings_cls), _SharedSource(settings_cls))


class _FileSource(PydanticBaseSettingsSource):
    """``<NAME>_FILE``: the variable's value is in that file. A file that cannot be read stops the start."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        prefixes = [self.config.get("env_prefix", "")]
        if field_name in getattr(self.settings_cls, "SHARED", ()):
            prefixes.append("LOOPWRIGHT_")
        for prefix in prefixes:
            variable = f"{prefix}{field_name}_FILE".upper()
            path = os.environ.get(variable)
            # A field that itself ends in _file is a path, not a secret in a file.
            if path and not field_name.endswith("_file") and f"{field_name}_file" not in self.settings_cls.model_fields:
                return _read_secret(variable, Path(path)), field_name, self.field_is_complex(field)
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, field in self.settings_cls.model_fields.items():
            value, key, is_complex = self.get_field_value(field, name)
            if value is not None:
                found[key] = self.prepare_field_value(name, field, value, is_complex)
        return found


class _SharedSource(EnvSettingsSource):
    """``LOOPWRIGHT_<FIELD>`` for the fields all services share."""

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls, env_prefix="LOOPWRIGHT_")

    def __call__(self) -> dict[str, Any]:
        shared: frozenset[str] = getattr(self.settings_cls, "SHARED", frozenset())
        return {key: value for key, value in super().__call__().items() if key in shared}


def _read_secret(variable: str, path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(SECRET_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise BadSetting(f"{variable} names {path}, which cannot be read ({error.strerror}). Make it readable or unset it.") from error
    if len(content) > SECRET_FILE_BYTES_MAX:
        raise BadSetting(f"{variable} names {path}, which is over {SECRET_FILE_BYTES_MAX} bytes. A secret is one short line.")
    return content.decode("utf-8", errors="strict").strip()


S = TypeVar("S", bound=ServiceSettings)


def load(settings_type: type[S]) -> S:
    """The settings from the environment. Raises BadSetting with one line per variable that cannot be used."""
    try:
        return settings_type()
    except ValidationError as error:
        prefix = str(settings_type.model_config.get("env_prefix", ""))
        raise BadSetting("\n".join(_explain(prefix, settings_type, item) for item in error.errors(include_url=False))) from error


def _explain(prefix: str, settings_type: type[ServiceSettings], item: Any) -> str:
    location = [str(part) for part in item["loc"]] or ["(all)"]
    variable = f"{prefix}{'__'.join(location)}".upper()
    field = settings_type.model_fields.get(location[0])
    if field is None:
        return f"{variable}: {item['msg']}"
    value = "(secret)" if is_secret(field) else repr(item["input"])[:200]
    if item["type"] == "missing":
        return f"{variable} is not set. {field.description or ''}".strip()
    return f"{variable}={value}: {item['msg']}. {field.description or ''}".strip()


def is_secret(field: FieldInfo) -> bool:
    """Whether a field's value must never be shown."""
    return field.annotation is SecretStr or SecretStr in get_args(field.annotation)


def describe(settings_type: type[ServiceSettings]) -> str:
    """A line or two per variable with its default and its reason, for ``--help``."""
    prefix = str(settings_type.model_config.get("env_prefix", ""))
    lines: list[str] = []
    for name, field in settings_type.model_fields.items():
        if field.is_required():
            default = "required"
        elif is_secret(field):
            default = "secret; empty by default"
        else:
            default = f"default {field.get_default(call_default_factory=True)!r}"
        lines.append(f"  {prefix.upper()}{name.upper()}  ({default})")
        if field.description:
            lines.append(f"      {field.description}")
    return "\n".join(lines)
