"""The bus over TLS: a server whose certificate is from an authority of one's own, as in a NATS cluster."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from loopwright_common.bus import BusUnavailable
from loopwright_common.nats_bus import open_bus
from loopwright_common.settings import ServiceSettings, load
from pydantic_settings import SettingsConfigDict


class Settings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="LOOPWRIGHT_TRYING_", extra="ignore", frozen=True)


def certificate(folder: Path) -> Path:
    """A self-signed certificate for 127.0.0.1, which is its own authority, and its key beside it."""
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", folder / "tls.key", "-out", folder / "tls.crt"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return folder / "tls.crt"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a server that takes TLS only, and its authority's file."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed: apt install openssl")
    authority = certificate(tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = tmp_path / "nats.conf"
    config.write_text(
        f'host: 127.0.0.1\nport: {port}\njetstream {{ store_dir: "{tmp_path}/store" }}\n'
        f'tls {{ cert_file: "{authority}", key_file: "{tmp_path}/tls.key" }}\n'
        'authorization { user: loopwright, password: "secret of the test" }\n'
    )
    process = subprocess.Popen([Path(sys.executable).parent / "nats-server", "-c", config], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            time.sleep(0.05)
    yield f"tls://127.0.0.1:{port}", authority
    process.terminate()
    process.wait(20)


def settings(monkeypatch: pytest.MonkeyPatch, url: str, **more: str) -> Settings:
    for name in [name for name in os.environ if name.startswith("LOOPWRIGHT_")]:
        monkeypatch.delenv(name)
    given = {"NATS_URL": url, "NATS_USER": "loopwright", "NATS_PASSWORD": "secret of the test", "NATS_STORE_BYTES": str(256 * 1024**2)}
    for name, value in (given | more).items():
        monkeypatch.setenv(f"LOOPWRIGHT_{name}", value)
    return load(Settings)


async def test_a_server_of_an_authority_of_ones_own_is_trusted_when_that_is_named(
    server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, authority = server
    bus = await open_bus(settings(monkeypatch, url, NATS_CA_FILE=str(authority)), "trying")
    try:
        assert await bus.ready()
    finally:
        await bus.close(timedelta(seconds=1))


async def test_a_server_of_an_unknown_authority_is_not_trusted(server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from loopwright_common.nats_bus import NatsBus

    url, _ = server
    chosen = settings(monkeypatch, url)
    bus = NatsBus(chosen.nats_url, "trying", user=chosen.nats_user, password=chosen.nats_password, ca_file=chosen.nats_ca_file)
    with pytest.raises(BusUnavailable, match=r"(?i)certificate|ssl|did not answer"):
        await bus.connect(timeout=timedelta(seconds=3))
