"""A database and a vector server over TLS, with an authority of one's own, as the chart names it to their clients."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.adapters.test_bus_tls import certificate
from tests.adapters.test_store import UNPRIVILEGED, Postgres


def given(**more: str) -> dict[str, str]:
    """A process' environment with nothing of this one's settings."""
    return {"PATH": os.environ["PATH"], "HOME": tempfile.gettempdir(), **more}


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed: apt install openssl")
    return certificate(tmp_path)


@pytest.fixture
def database(authority: Path) -> Iterator[str]:
    """The address of a PostgreSQL that lets people in over TLS alone."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("PostgreSQL is not installed: apt install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    server = Postgres(found[-1].parent, folder)
    server.start()
    server.database("kept")
    data = next(folder.glob("**/pg_hba.conf")).parent
    for name in ("tls.crt", "tls.key"):
        shutil.copy(authority.parent / name, data / name)
        if os.getuid() == 0:
            shutil.chown(data / name, UNPRIVILEGED, UNPRIVILEGED)
        (data / name).chmod(0o600)
    (data / "pg_hba.conf").write_text("hostssl all all all trust\n")
    with (data / "postgresql.conf").open("a") as config:
        config.write("ssl = on\nssl_cert_file = 'tls.crt'\nssl_key_file = 'tls.key'\n")
    server.process.send_signal(signal.SIGHUP)  # reads its configuration again
    yield f"postgresql+asyncpg://tester@127.0.0.1:{server.port}/kept"
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


def migrate(url: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = given(LOOPWRIGHT_GATEWAY_DATABASE_URL=url, **more)
    command = [sys.executable, "-m", "loopwright_gateway.migrate"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_a_databases_certificate_is_checked_against_the_authority_that_is_named(database: str, authority: Path) -> None:
    trusted = migrate(f"{database}?ssl=verify-full", PGSSLROOTCERT=str(authority))
    assert trusted.returncode == 0, trusted.stderr
    unknown = migrate(f"{database}?ssl=verify-full", PGSSLROOTCERT="/etc/ssl/certs/ca-certificates.crt")
    assert unknown.returncode != 0
    assert "CERTIFICATE_VERIFY_FAILED" in unknown.stderr
    plain = migrate(f"{database}?ssl=disable")
    assert plain.returncode != 0


ASK = """
import asyncio, sys
from qdrant_client import AsyncQdrantClient
async def ask():
    client = AsyncQdrantClient(url=sys.argv[1], api_key="key", check_compatibility=False)
    print((await client.get_collections()).collections)
asyncio.run(ask())
"""


class Collections(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b'{"result": {"collections": []}, "status": "ok", "time": 0.0}'
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Says nothing."""


async def test_a_vector_servers_certificate_is_checked_against_the_authority_that_is_named(authority: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Collections)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority, authority.parent / "tls.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    command = [sys.executable, "-c", ASK, f"https://127.0.0.1:{server.server_port}"]
    try:
        trusted, unknown = await asyncio.gather(
            *(
                asyncio.to_thread(subprocess.run, command, env=environment, capture_output=True, text=True, timeout=120)
                for environment in (given(SSL_CERT_FILE=str(authority)), given())
            )
        )
    finally:
        server.shutdown()
        server.server_close()
    assert (trusted.returncode, trusted.stdout.strip()) == (0, "[]"), trusted.stderr
    assert unknown.returncode != 0
    assert "CERTIFICATE_VERIFY_FAILED" in unknown.stderr
