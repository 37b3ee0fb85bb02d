"""The edge over real HTTP: uvicorn on a free port, the memory bus behind it, two projects and their keys."""

import asyncio
import contextlib
import json
import socket

import httpx
import pytest
import pytest_asyncio
import structlog
import structlog.testing
import uvicorn
from loopwright_common.auth import hash_token
from loopwright_common.contracts.configuration import CONFIG_BUCKET, ProjectConfig, ProjectKey, PublishedProject, Scope, ServiceConfig
from loopwright_common.contracts.subjects import DEPLOYS, EXPOSURES, SIGNALS
from loopwright_common.request_heads import BoundedHeads
from loopwright_common.testing.clock import START
from loopwright_common.testing.memory_bus import MemoryBus
from loopwright_ingest.app import create_app
from loopwright_ingest.settings import IngestSettings

KEY = "lw_full_key"
SENTRY_KEY = "0123456789abcdef0123456789abcdef"
SECRET = "a secret for pseudonyms"


def key(id, token, *scopes, service="", revoked_at=None):
    return ProjectKey(id=id, sha256=hash_token(token), scopes=scopes, service=service, created_at=START, revoked_at=revoked_at)


def published(name="shop", number=7, revision=1, keys=None, services=("checkout",), **config):
    """A project as the gateway publishes it."""
    if keys is None:
        keys = (
            key("full", KEY, Scope.SIGNALS, Scope.DEPLOYS, Scope.EXPOSURE),
            key("dsn", SENTRY_KEY, Scope.SENTRY, service="checkout"),
            key("deploys-only", "lw_deploys_only", Scope.DEPLOYS),
            key("revoked", "lw_revoked", Scope.SIGNALS, revoked_at=START),
        )
    services = tuple(service if isinstance(service, ServiceConfig) else ServiceConfig(name=service) for service in services)
    return PublishedProject(number=number, revision=revision, config=ProjectConfig(name=name, services=services, **config), keys=keys)


class Edge:
    """A running ingest: its address, its bus, and clients polite and rude."""

    def __init__(self, bus, app, port):
        self.bus, self.app, self.port = bus, app, port
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx.AsyncClient(base_url=self.url, timeout=20, trust_env=False)

    async def post(self, path, body=None, *, token=KEY, content=None, **headers):
        """POSTs JSON, or ``content`` as it is. Header names are written with underscores."""
        sent = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        return await self.client.post(path, content=json.dumps(body).encode() if content is None else content, headers=sent)

    async def envelope(self, *items, headers=None, token=SENTRY_KEY, project=7, content=None, **more):
        """POSTs an envelope of (type, payload) items, the key in X-Sentry-Auth."""
        if content is None:
            lines = [json.dumps(headers or {})]
            for type_, payload in items:
                payload = payload if isinstance(payload, str) else json.dumps(payload)
                lines += [json.dumps({"type": type_, "length": len(payload.encode())}), payload]
            content = "\n".join(lines).encode()
        sent = {"Content-Type": "application/x-sentry-envelope"} | {name.replace("_", "-"): value for name, value in more.items()}
        if token is not None:
            sent["X-Sentry-Auth"] = f"Sentry sentry_version=7, sentry_client=test/1, sentry_key={token}"
        return await self.client.post(f"/api/{project}/envelope/", content=content, headers=sent)

    async def raw(self, data, *, half_close=False, timeout=10):
        """Sends bytes as they are over one connection; returns all that comes back until the server closes, or None of it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            with contextlib.suppress(ConnectionError):
                writer.write(data)
                await writer.drain()
                if half_close:
                    writer.write_eof()
            async with asyncio.timeout(timeout):
                with contextlib.suppress(ConnectionError):
                    return await reader.read()
            return b""
        finally:
            writer.close()

    async def publish(self, project):
        """Publishes a project's configuration and returns once the edge knows it."""
        bucket = await self.bus.key_value(CONFIG_BUCKET)
        await bucket.put(f"project.{project.config.name}", project.model_dump_json().encode())
        for _ in range(200):
            known = self.app.state.parts.admission._projects.get(project.config.name)
            if known is not None and known.revision == project.revision:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("the edge did not hear of the project")

    @property
    def signals(self):
        return self.bus.published(SIGNALS)

    @property
    def exposures(self):
        return self.bus.published(EXPOSURES)

    @property
    def deploys(self):
        return self.bus.published(DEPLOYS)

    @property
    def stored(self):
        """How many facts were stored at all."""
        return len(self.signals) + len(self.exposures) + len(self.deploys)


class Server(uvicorn.Server):
    """uvicorn inside the test's own loop, leaving signals to pytest."""

    @contextlib.contextmanager
    def capture_signals(self):
        yield


@contextlib.asynccontextmanager
async def running(app):
    """Serves an app on a free port, set up as ``process.serve`` does it."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, proxy_headers=False, ws="none", timeout_graceful_shutdown=2,
        http=BoundedHeads,
    )  # fmt: skip
    server = Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        if task.done():
            raise AssertionError("the edge did not start") from task.exception()
        await asyncio.sleep(0.005)
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await asyncio.wait_for(task, 15)


@pytest.fixture(autouse=True)
def logged():
    """What the service logs, as dicts. Rendered for nobody: rich's tracebacks of a whole stack take half a minute."""
    with structlog.testing.capture_logs() as entries:
        yield entries


@pytest_asyncio.fixture
async def start_edge():
    """Starts an edge with settings of the test's own; ``projects`` may be empty. All are stopped in the end."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(*, bus=None, projects=None, clock=None, **settings):
            bus = bus or MemoryBus("ingest")
            settings = IngestSettings(port=0, **({"actor_secret": SECRET, "gather_milliseconds": 1.0} | settings))
            app = create_app(settings, bus=bus, clock=clock)
            edge = Edge(bus, app, await stack.enter_async_context(running(app)))
            stack.push_async_callback(edge.client.aclose)
            for project in [published()] if projects is None else projects:
                await edge.publish(project)
            return edge

        yield start


@pytest_asyncio.fixture
async def edge(start_edge):
    """An edge with the project ``shop``, number 7."""
    return await start_edge()


@pytest.fixture
def keys():
    """(the full key, the DSN's key)"""
    return KEY, SENTRY_KEY


@pytest.fixture
def make_project():
    return published


@pytest.fixture
def make_key():
    return key
