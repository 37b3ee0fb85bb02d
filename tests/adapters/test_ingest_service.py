"""Ingest as its own process on a real nats-server: an unmodified sentry-sdk, kill -9, a lost bus, settings that cannot be."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta

import httpx
import pytest
from loopwright_common.auth import hash_token
from loopwright_common.bus import ConsumerSpec
from loopwright_common.contracts.configuration import CONFIG_BUCKET, ProjectConfig, ProjectKey, PublishedProject, Scope, ServiceConfig
from loopwright_common.contracts.subjects import EXPOSURES, SIGNALS
from loopwright_common.testing.clock import START

KEY, DSN_KEY = "lw_key", "0123456789abcdef0123456789abcdef"
HEADERS = {"Authorization": f"Bearer {KEY}"}


class Process:
    """``python -m loopwright_ingest`` on a free port of its own, kept over restarts."""

    def __init__(self, nats_url, **settings):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("LOOPWRIGHT_")}
        own = {"PORT": str(self.port), "NATS_URL": nats_url, "NATS_STORE_BYTES": str(256 * 1024**2), "ACTOR_SECRET": "s"} | settings
        self.environment = kept | {f"LOOPWRIGHT_INGEST_{name}": value for name, value in own.items()}
        self.process = None

    def start(self):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "loopwright_ingest"], env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        return self

    async def ready(self):
        async with httpx.AsyncClient(trust_env=False) as client:
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                assert self.process.poll() is None, f"ingest ended with {self.process.returncode}"
                try:
                    if (await client.get(f"{self.url}/readyz")).status_code == 200:
                        return self
                except httpx.HTTPError:
                    pass
                await asyncio.sleep(0.05)
        raise AssertionError("ingest was not ready within 30 s")

    def end(self, number=signal.SIGTERM):
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(30)


@pytest.fixture
async def start_ingest(nats_server, nats_bus):
    """Starts ingest processes that know the project ``shop``, number 7."""
    keys = (
        ProjectKey(id="k", sha256=hash_token(KEY), scopes=(Scope.SIGNALS, Scope.DEPLOYS), created_at=START),
        ProjectKey(id="d", sha256=hash_token(DSN_KEY), scopes=(Scope.SENTRY,), service="shop", created_at=START),
    )
    project = PublishedProject(number=7, revision=1, config=ProjectConfig(name="shop", services=(ServiceConfig(name="shop"),)), keys=keys)
    bucket = await nats_bus.key_value(CONFIG_BUCKET)
    await bucket.put("project.shop", project.model_dump_json().encode())
    started = []

    async def start(**settings):
        process = Process(nats_server.url, **settings)
        started.append(process)
        return await process.start().ready()

    yield start
    for process in started:
        process.end(signal.SIGKILL)


@pytest.fixture
async def consumed(nats_bus):
    """Everything that is stored under signals and exposures, as it comes."""
    found = {"SIGNALS": [], "EXPOSURES": []}

    async def take(batch):
        for message in batch:
            found[message.stream].append(message)

    # A short ack_wait: what reaches the consumer just as it ends a fetch comes again only after that.
    spec = ConsumerSpec(name="all", service="test", subjects=(SIGNALS, EXPOSURES), batch_max=500, ack_wait=timedelta(seconds=2))
    await nats_bus.consume_batches(spec, take)
    return found


async def until(condition, seconds=20):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.05)


CLIENT = """
import os, sys
import sentry_sdk
from sentry_sdk.integrations.wsgi import SentryWsgiMiddleware
sentry_sdk.init(dsn=sys.argv[1], release="3f9c2a1", environment="production", traces_sample_rate=1.0, enable_logs=True)

def split_bill(total, people):
    return total / people

def application(environ, start_response):
    sentry_sdk.set_user({"id": "customer-17"})
    if environ["PATH_INFO"] == "/checkout":
        split_bill(30, 0)
    start_response("200 OK", [])
    return [b"ok"]

served = SentryWsgiMiddleware(application)
for path in ["/", "/", "/", "/checkout"]:
    environ = {"PATH_INFO": path, "REQUEST_METHOD": "GET", "SERVER_NAME": "shop", "SERVER_PORT": "80", "wsgi.url_scheme": "http",
               "QUERY_STRING": "", "HTTP_COOKIE": "session=top-secret"}
    try:
        list(served(environ, lambda status, headers, error=None: None))
    except ZeroDivisionError:
        pass
sentry_sdk.logger.warning("a structured log")
sentry_sdk.capture_message("something odd")
sentry_sdk.flush(timeout=10)
sentry_sdk.get_client().close(timeout=10)
"""


def run_client(port, **environment):
    dsn = f"http://{DSN_KEY}@127.0.0.1:{port}/7"
    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    command = [sys.executable, "-c", CLIENT, dsn]
    return subprocess.run(command, env=kept | environment, capture_output=True, text=True, timeout=60, check=True)


async def test_an_unmodified_sentry_client_is_understood(start_ingest, consumed):
    ingest = await start_ingest()
    await asyncio.to_thread(run_client, ingest.port)
    await until(lambda: len(consumed["SIGNALS"]) >= 2 and consumed["EXPOSURES"])
    exception, message = sorted((each.payload for each in consumed["SIGNALS"]), key=lambda item: item.kind)
    assert (exception.kind, exception.title) == ("exception", "ZeroDivisionError: division by zero")
    assert (exception.service, exception.release, exception.environment) == ("shop", "3f9c2a1", "production")
    assert [frame.function for frame in exception.frames][-2:] == ["application", "split_bill"]
    assert (len(exception.actor), "customer-17" in exception.model_dump_json(), "top-secret" in exception.model_dump_json()) == (
        32,
        False,
        False,
    )
    assert (message.kind, message.title) == ("log", "something odd")
    counted = [each.payload for each in consumed["EXPOSURES"]]
    assert {(item.service, item.release, item.unit) for item in counted} == {("shop", "3f9c2a1", "requests")}
    assert (sum(item.count for item in counted), sum(item.errored for item in counted)) == (4, 1)
    async with httpx.AsyncClient(trust_env=False, headers=HEADERS) as client:
        drops = {drop["type"]: drop["count"] for drop in (await client.get(f"{ingest.url}/v1/drops")).json()}
    assert drops["transaction"] == 4
    assert "log" in drops


async def test_every_accepted_signal_survives_kill_nine_and_is_stored_once(start_ingest, consumed):
    ingest = await start_ingest()
    accepted, answers, slots = set(), [], asyncio.Semaphore(8)

    async def post(client, number):
        body = [{"title": f"t{number}", "id": f"{number}-{part}"} for part in range(3)]
        while True:
            try:
                async with slots:
                    answer = await client.post(f"{ingest.url}/v1/signals", json=body, headers=HEADERS)
            except httpx.HTTPError:
                await asyncio.sleep(0.1)  # as a client does: again, with the same names
                continue
            answers.append(answer.status_code)
            if answer.status_code == 202:
                accepted.update(result["id"] for result in answer.json()["results"])
                return
            await asyncio.sleep(0.1)

    async with httpx.AsyncClient(trust_env=False, timeout=10) as client, asyncio.timeout(60):
        posting = [asyncio.create_task(post(client, number)) for number in range(100)]
        await until(lambda: len(answers) > 10)
        ingest.end(signal.SIGKILL)
        assert len(answers) < 100, "it was killed too late to matter"
        await ingest.start().ready()
        await asyncio.gather(*posting)
    assert len(accepted) == 300
    # By sequence: the stream holds what was stored, the consumer may be handed it twice.
    await until(lambda: len({message.sequence for message in consumed["SIGNALS"]}) >= 300)
    await asyncio.sleep(2.5)
    stored = {message.sequence: message.payload.id for message in consumed["SIGNALS"]}
    assert (len(stored), set(stored.values())) == (300, accepted)


async def test_while_nats_is_away_nothing_is_accepted_and_later_all_is(start_ingest, nats_server, nats_bus, consumed):
    ingest = await start_ingest()
    async with httpx.AsyncClient(trust_env=False, timeout=30, headers=HEADERS) as client:
        nats_server.kill()
        await asyncio.sleep(0.2)
        refused = [await client.post(f"{ingest.url}/v1/signals", json={"title": "lost", "id": str(number)}) for number in range(3)]
        assert {answer.status_code for answer in refused} == {503}
        assert all(answer.headers["retry-after"] for answer in refused)
        assert (await client.get(f"{ingest.url}/readyz")).status_code == 503
        nats_server.start()
        async with asyncio.timeout(30):
            while (answer := await client.post(f"{ingest.url}/v1/signals", json={"title": "kept", "id": "k"})).status_code != 202:
                assert answer.status_code == 503
                await asyncio.sleep(0.1)
    await until(lambda: consumed["SIGNALS"])
    await asyncio.sleep(0.3)
    assert {message.payload.title for message in consumed["SIGNALS"]} == {"kept"}


async def test_a_stop_answers_what_has_begun(start_ingest):
    ingest = await start_ingest(GATHER_MILLISECONDS="500")
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        posting = asyncio.create_task(client.post(f"{ingest.url}/v1/signals", json={"title": "x"}, headers=HEADERS))
        await asyncio.sleep(0.2)
        ingest.process.send_signal(signal.SIGTERM)
        assert (await posting).status_code == 202
    assert await asyncio.to_thread(ingest.process.wait, 20) == 0


def test_help_names_every_setting():
    said = subprocess.run([sys.executable, "-m", "loopwright_ingest", "--help"], capture_output=True, text=True, timeout=30, check=True)
    for name in ("PORT", "BODY_BYTES_MAX", "DECODED_BYTES_MAX", "PENDING_MAX", "ACTOR_SECRET", "PROBE_PRIVATE_ADDRESSES", "NATS_URL"):
        assert f"LOOPWRIGHT_INGEST_{name}" in said.stdout


def test_a_bad_setting_stops_the_start_and_says_which():
    environment = os.environ | {"LOOPWRIGHT_INGEST_PENDING_MAX": "many"}
    said = subprocess.run([sys.executable, "-m", "loopwright_ingest"], env=environment, capture_output=True, text=True, timeout=30)
    assert said.returncode == 2
    assert "LOOPWRIGHT_INGEST_PENDING_MAX='many'" in said.stderr


async def test_a_signals_trace_begins_with_its_request(start_ingest, consumed):
    ingest = await start_ingest()
    trace = "0af7651916cd43dd8448eb211c80319c"
    async with httpx.AsyncClient(trust_env=False, headers=HEADERS | {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}) as client:
        assert (await client.post(f"{ingest.url}/v1/signals", json={"title": "x"})).status_code == 202
    await until(lambda: consumed["SIGNALS"])
    assert trace in consumed["SIGNALS"][0].envelope.traceparent
