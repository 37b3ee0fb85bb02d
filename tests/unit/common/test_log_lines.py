"""The log lines of consumers name the trace of the message they are about: in the handler, and of what became of the message after it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict

import pytest

FIRST, SECOND = "0af7651916cd43dd8448eb211c80319c", "1" * 32

# A process of its own: how logs are set up is the process's, and it is that which is tested.
SCRIPT = """
import asyncio, sys
from datetime import UTC, datetime, timedelta

import structlog
from loopwright_common import telemetry
from loopwright_common.bus import ConsumerSpec, Outgoing
from loopwright_common.contracts.signals import Signal
from loopwright_common.contracts.subjects import SIGNALS
from loopwright_common.errors import Permanent, Retryable
from loopwright_common.testing.memory_bus import MemoryBus

telemetry.configure("probe")
log = structlog.get_logger()
NOW = datetime(2026, 11, 26, 10, 0, tzinfo=UTC)
WAY, *TRACES = sys.argv[1:]
RAISES = {"given back": Retryable("later", after=timedelta(hours=1)), "crashed": ZeroDivisionError("x"), "buried": Permanent("never")}

async def handle(messages):
    for message in messages:
        with telemetry.part("one", message.envelope.traceparent):
            log.info("handled", signal=message.payload.id)
    if WAY in RAISES:
        raise RAISES[WAY]

async def main():
    bus = MemoryBus("ingest")
    for number, trace in enumerate(TRACES):
        id = f"s{number}"
        signal = Signal(id=id, project="shop", source="http", kind="custom", title="t", occurred_at=NOW, received_at=NOW)
        parent = f"00-{trace}-b7ad6b7169203331-01"
        await bus.publish(Outgoing(SIGNALS, signal, id, {"project": "shop", "source": "http"}, traceparent=parent))
    log.info("before")
    spec = ConsumerSpec("mine", "probe", (SIGNALS,), batch_max=10, ordered=True)
    await bus.consume_batches(spec, handle)
    for _ in range(300):
        await asyncio.sleep(0.01)
        if bus.broker.resting():
            break
    await bus.close()
    log.info("after")

asyncio.run(main())
"""


def lines_of(way: str, *traces: str) -> dict[str, list[str]]:
    """Event -> the trace ids of its lines, of a process that consumes one message of each trace."""
    ended = subprocess.run([sys.executable, "-c", SCRIPT, way, *traces], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, list[str]] = defaultdict(list)
    for line in ended.stderr.splitlines():
        entry = json.loads(line)
        assert len(entry.get("span_id", "0" * 16)) == 16
        found[entry["event"]].append(entry.get("trace_id", ""))
    return dict(found)


@pytest.mark.parametrize(
    ("way", "event"), [("given back", "message_given_back"), ("crashed", "handler_crashed"), ("buried", "message_buried")]
)
def test_what_became_of_a_message_is_logged_in_its_trace(way: str, event: str) -> None:
    found = lines_of(way, FIRST)
    assert found["handled"] == [FIRST]
    assert found[event] == [FIRST]
    assert (found["before"], found["after"]) == ([""], [""])  # a line outside of any message names none


def test_each_message_of_a_batch_is_logged_in_its_own_trace() -> None:
    found = lines_of("well", FIRST, SECOND)
    assert found["handled"] == [FIRST, SECOND]


def test_a_batch_that_fails_is_told_apart_message_by_message() -> None:
    found = lines_of("buried", FIRST, SECOND)
    assert sorted(found["message_buried"]) == sorted([FIRST, SECOND])


CRASH = """
import sys

import structlog
from loopwright_common import telemetry

telemetry.configure("probe", format=sys.argv[1])

def call(held):
    raise RuntimeError("no answer from https://user:hunter2hunter2@tracker.example/api")

try:
    call({"what": "a-text-nobody-may-read"})
except RuntimeError as error:
    structlog.get_logger().exception("crashed", error=str(error))
"""


@pytest.mark.parametrize("format", ["json", "text"])
def test_a_traceback_tells_where_and_neither_what_was_held_there_nor_a_credential(format: str) -> None:
    ended = subprocess.run([sys.executable, "-c", CRASH, format], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" in ended.stderr
    assert "tracker.example/api" in ended.stderr
    assert "in call" in ended.stderr
    assert "nobody-may-read" not in ended.stderr.replace('call({"what": "a-text-nobody-may-read"})', "")
    assert "hunter2" not in ended.stderr
    assert len(ended.stderr.splitlines()) < 30
