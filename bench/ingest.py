"""Ingest over HTTP as a ratio to a route that does nothing and to raw JetStream publishing, in the same run.

``python -m bench.ingest``. The service runs in its own process, as it does for real; so does the server with the idle route.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from loopwright_common.auth import hash_token
from loopwright_common.contracts.configuration import CONFIG_BUCKET, ProjectConfig, ProjectKey, PublishedProject, Scope
from loopwright_common.nats_bus import NatsBus
from loopwright_common.testing.nats_server import NatsServer

from bench.raw import MOMENT, publish_rates

SECONDS = 4.0
CLIENTS = 32
BATCH = 100
KEY = "lwk_benchmark"
IDLE = """
import sys, uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
async def nothing(request):
    await request.body()
    return JSONResponse({}, 202)
uvicorn.run(Starlette(routes=[Route("/v1/signals", nothing, methods=["POST"])]), port=int(sys.argv[1]), log_level="error")
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def body(number: int, items: int) -> bytes:
    signals = [{"kind": "custom", "title": f"number {number}-{item}", "body": "x" * 120, "service": "shop"} for item in range(items)]
    return json.dumps(signals[0] if items == 1 else {"signals": signals}).encode()


async def load(port: int, items: int) -> float:
    """Requests a second that come back with 202, from a number of clients at once.

    The clients are bare sockets: they share the machine with what is measured, and a comfortable client costs more than the server.
    """
    answered = 0
    end = time.perf_counter() + SECONDS
    content = body(0, items)
    head = f"POST /v1/signals HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
    request = head.encode() + b"Content-Length: %d\r\n\r\n" % len(content) + content

    async def ask() -> None:
        nonlocal answered
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < end:
            writer.write(request)
            said = await reader.readuntil(b"\r\n\r\n")
            assert said.startswith(b"HTTP/1.1 202 "), said
            length = next(line for line in said.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.partition(b":")[2]))
            answered += 1
        writer.close()

    started = time.perf_counter()
    await asyncio.gather(*(ask() for _ in range(CLIENTS)))
    return answered / (time.perf_counter() - started)


async def publish_project(bus: NatsBus) -> None:
    key = ProjectKey(id="k", sha256=hash_token(KEY), scopes=(Scope.SIGNALS,), created_at=MOMENT)
    project = PublishedProject(number=1, revision=1, config=ProjectConfig(name="bench", signals_per_minute_max=10_000_000), keys=(key,))
    await (await bus.key_value(CONFIG_BUCKET)).put("project.bench", project.model_dump_json().encode())


async def until_up(port: int, path: str) -> None:
    async with httpx.AsyncClient() as client, asyncio.timeout(30):
        while True:
            try:
                if (await client.get(f"http://127.0.0.1:{port}{path}")).status_code in (200, 405):
                    return
            except httpx.HTTPError:
                pass
            await asyncio.sleep(0.1)


def start(idle_port: int, environment: dict[str, str]) -> list[subprocess.Popen[Any]]:
    return [
        subprocess.Popen([sys.executable, "-c", IDLE, str(idle_port)]),
        subprocess.Popen([sys.executable, "-m", "loopwright_ingest"], env=environment, stderr=subprocess.DEVNULL),
    ]


async def measure() -> None:
    idle_port, ingest_port = free_port(), free_port()
    with tempfile.TemporaryDirectory() as folder:
        server = NatsServer(Path(folder), store_bytes=4 * 1024**3).start()
        bus = NatsBus(server.url, "bench", store_bytes=2 * 1024**3)
        await bus.connect()
        await publish_project(bus)
        environment = os.environ | {"LOOPWRIGHT_NATS_URL": server.url, "LOOPWRIGHT_INGEST_PORT": str(ingest_port)}
        environment["LOOPWRIGHT_NATS_STORE_BYTES"] = str(2 * 1024**3)
        processes = start(idle_port, environment)
        try:
            await until_up(idle_port, "/v1/signals")
            await until_up(ingest_port, "/readyz")
            raw = await publish_rates(bus)
            idle = await load(idle_port, 1)
            single = await load(ingest_port, 1)
            batched = await load(ingest_port, BATCH) * BATCH
        finally:
            for process in processes:
                process.send_signal(signal.SIGTERM)
                process.wait(20)
            await bus.close()
            server.kill()
    print(f"a route that does nothing         {idle:8.0f} requests/s   1.00")
    print(f"raw publishing, one by one        {raw.single:8.0f} signals/s")
    print(f"raw publishing, in batches        {raw.batched:8.0f} signals/s")
    for name, rate, publishing in (("one signal", single, raw.single), (f"{BATCH} signals", batched, raw.batched)):
        ratios = f"{rate / idle:5.2f} of the idle route, {rate / publishing:5.2f} of raw publishing"
        print(f"ingest, {name:<11} a request    {rate:8.0f} signals/s   {ratios}")


def main() -> None:
    asyncio.run(measure())


if __name__ == "__main__":
    main()
