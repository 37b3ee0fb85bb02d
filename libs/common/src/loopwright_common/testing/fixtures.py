"""Fixtures every package's tests may use. ``tests/conftest.py`` loads this module as a pytest plugin."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from loopwright_common.bus import Bus
from loopwright_common.nats_bus import NatsBus
from loopwright_common.testing.clock import FakeClock
from loopwright_common.testing.memory_bus import MemoryBus
from loopwright_common.testing.nats_server import NatsServer, NatsServerMissing

STORE_BYTES = 256 * 1024**2


@pytest.fixture
def fake_clock() -> FakeClock:
    """A clock that stands still until it is advanced."""
    return FakeClock()


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[NatsServer]:
    """A real nats-server of this test's own; it may be killed and restarted."""
    try:
        server = NatsServer(tmp_path / "nats")
    except NatsServerMissing as missing:
        pytest.skip(str(missing))
    server.start()
    yield server
    server.kill()


@pytest_asyncio.fixture
async def new_nats_bus(nats_server: NatsServer) -> AsyncIterator[Callable[..., object]]:
    """Makes further connections to this test's server: ``await new_nats_bus("cluster")``. All are closed in the end."""
    opened: list[NatsBus] = []

    async def make(service: str = "test") -> NatsBus:
        bus = NatsBus(nats_server.url, service, store_bytes=STORE_BYTES)
        await bus.connect()
        opened.append(bus)
        return bus

    yield make
    for bus in opened:
        await bus.close()


@pytest_asyncio.fixture
async def nats_bus(nats_server: NatsServer) -> AsyncIterator[NatsBus]:
    """The real bus on a real server."""
    bus = NatsBus(nats_server.url, "test", store_bytes=STORE_BYTES)
    await bus.connect()
    yield bus
    await bus.close()


@pytest_asyncio.fixture
async def memory_bus(fake_clock: FakeClock) -> AsyncIterator[MemoryBus]:
    """The bus in memory, on ``fake_clock``: retries and timers fall due when the test advances it."""
    bus = MemoryBus("test", clock=fake_clock)
    yield bus
    await bus.close()


@pytest_asyncio.fixture(params=["memory", "nats"])
async def bus(request: pytest.FixtureRequest) -> AsyncIterator[Bus]:
    """Both buses, one after the other, in real time."""
    if request.param == "nats":
        server: NatsServer = request.getfixturevalue("nats_server")
        real = NatsBus(server.url, "test", store_bytes=STORE_BYTES)
        await real.connect()
        yield real
        await real.close()
    else:
        memory = MemoryBus("test")
        yield memory
        await memory.close()
