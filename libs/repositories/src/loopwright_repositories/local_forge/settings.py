"""The local forge's environment."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256
from pathlib import Path

from pydantic import AnyHttpUrl, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "LOOPWRIGHT_FORGE_"
TOKEN_CHARACTERS_MIN = 16  # 16 characters of base64 hold 96 bits: beyond guessing over HTTP
_LOOPBACK = re.compile(r"^(127\.\d+\.\d+\.\d+|::1|localhost)$")


class Access(IntEnum):
    """What a token may do; each includes those before it."""

    NONE = 0
    READ = 1  # clone, fetch, see pull requests, ask the forge to catch up with a source
    WRITE = 2  # push branches but not the default one, open pull requests, comment, report checks
    MERGE = 3  # merge, close, push to the default branch (fast-forward)


class ForgeSettings(BaseSettings):
    """Where the forge listens, what it keeps, who may do what."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", secrets_dir=None)

    host: str = "127.0.0.1"  # loopback: the forge holds source code, and has no TLS of its own
    port: int = Field(default=8406, ge=1, le=65_535)  # beside the services' 8400 to 8405; fixed, since clone URLs hold it
    data: Path = Path("data/forge")  # beside the other services' state
    public_url: AnyHttpUrl | None = None  # by default http://<host>:<port>; set it when people reach the forge by another name
    allowed_hosts: str = ""  # more names it answers to, separated by commas: a service in a cluster is reached by several
    read_token: SecretStr | None = None
    write_token: SecretStr | None = None
    merge_token: SecretStr | None = None
    tokens_file: Path | None = (
        None  # lines of "read|write|merge <token>", or a folder with files read, write and merge, as Kubernetes mounts a Secret
    )
    anonymous_read: bool = False  # on one machine a link in the inbox should open without a password; on a shared one it should not
    push_bytes_max: int = Field(
        default=256 * 1024 * 1024, ge=1_024
    )  # a push of a change is kilobytes; a first push of a history may be large
    git_processes_max: int = Field(default=8, ge=1, le=256)  # each may use a core and tens of megabytes
    git_seconds_max: int = Field(default=600, ge=1, le=86_400)  # a clone over a slow line; beyond it the client hangs
    webhook_url: AnyHttpUrl | None = None
    webhook_secret: SecretStr | None = None
    webhook_attempts_max: int = Field(default=10, ge=1, le=100)  # with doubling delays: about 17 minutes until it is given up
    webhook_backlog_max: int = Field(default=1_000, ge=1, le=100_000)  # a receiver that is away for good must not fill the disk

    @model_validator(mode="after")
    def _somebody_may_write(self) -> ForgeSettings:
        if self.tokens_file is None and (self.write_token is None or self.merge_token is None):
            raise ValueError(
                f"set {PREFIX}WRITE_TOKEN and {PREFIX}MERGE_TOKEN (for example from 'openssl rand -hex 16'), or {PREFIX}TOKENS_FILE "
                "with lines of 'read|write|merge <token>': without them nobody could push or merge"
            )
        if self.anonymous_read and not _LOOPBACK.match(self.host):
            raise ValueError(f"{PREFIX}ANONYMOUS_READ is for loopback; {PREFIX}HOST is {self.host}: unset one of them")
        if self.webhook_url is not None and self.webhook_secret is None:
            raise ValueError(f"set {PREFIX}WEBHOOK_SECRET too: a webhook without a signature cannot be told from a forged one")
        return self

    @property
    def base_url(self) -> str:
        """The address people and clients use, without a trailing slash."""
        if self.public_url is not None:
            return str(self.public_url).rstrip("/")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


@dataclass(frozen=True)
class Tokens:
    """Who may do what: SHA-256 of a token -> access. The tokens themselves are not kept."""

    by_hash: dict[bytes, Access]

    def access_of(self, token: str) -> Access:
        """The access of a token that a client sent. Looked up by hash, so the time it takes says nothing of a token's characters."""
        return self.by_hash.get(sha256(token.encode()).digest(), Access.NONE)


def load_tokens(settings: ForgeSettings) -> Tokens:
    """The tokens of the settings and of the tokens file. Raises ValueError naming the line or variable, and the remedy."""
    found: dict[bytes, Access] = {}

    def add(token: str, access: Access, where: str) -> None:
        if len(token) < TOKEN_CHARACTERS_MIN or not token.isprintable() or " " in token:
            raise ValueError(f"{where}: a token needs at least {TOKEN_CHARACTERS_MIN} printable characters; try 'openssl rand -hex 16'")
        key = sha256(token.encode()).digest()
        if found.get(key, access) != access:
            raise ValueError(f"{where}: this token is already given with another scope; use one token per scope")
        found[key] = access

    for name, secret, access in (
        ("READ_TOKEN", settings.read_token, Access.READ),
        ("WRITE_TOKEN", settings.write_token, Access.WRITE),
        ("MERGE_TOKEN", settings.merge_token, Access.MERGE),
    ):
        if secret is not None:
            add(secret.get_secret_value(), access, PREFIX + name)
    if settings.tokens_file is not None and settings.tokens_file.is_dir():
        for access in (Access.READ, Access.WRITE, Access.MERGE):
            file = settings.tokens_file / access.name.lower()
            try:
                add(file.read_text(encoding="utf-8").strip(), access, str(file))
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"{PREFIX}TOKENS_FILE={settings.tokens_file} is a folder, but {file} cannot be read: {error}") from error
    elif settings.tokens_file is not None:
        try:
            lines = settings.tokens_file.read_text(encoding="utf-8").splitlines()[:1_000]
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{PREFIX}TOKENS_FILE={settings.tokens_file} cannot be read: {error}") from error
        for number, line in enumerate(lines, start=1):
            if not line.strip() or line.startswith("#"):
                continue
            scope, _, token = line.strip().partition(" ")
            if scope not in ("read", "write", "merge"):
                raise ValueError(
                    f"{settings.tokens_file}:{number}: begins with {scope[:20]!r}; write 'read', 'write' or 'merge', then the token"
                )
            add(token.strip(), Access[scope.upper()], f"{settings.tokens_file}:{number}")
    return Tokens(found)
