"""Whose word counts on a trace, and how a trace goes on through batches."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from datetime import timedelta

import pytest
import structlog.testing
from loopwright_common import telemetry
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

TRACE = "0af7651916cd43dd8448eb211c80319c"
SAMPLED = f"00-{TRACE}-b7ad6b7169203331-01"
NOT_SAMPLED = f"00-{TRACE}-b7ad6b7169203331-00"
OTHER = "00-11111111111111111111111111111111-2222222222222222-01"


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """The spans that end, whatever provider the process has."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", lambda *_, **__: provider.get_tracer("test"))
    yield exporter
    provider.shutdown()


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [""],
        ["x"],
        ["00-" + "0" * 32 + "-b7ad6b7169203331-01"],
        [f"00-{TRACE}-{'0' * 16}-01"],
        [f"ff-{TRACE}-b7ad6b7169203331-01"],
        [f"00-{TRACE.upper()}-b7ad6b7169203331"],
        [SAMPLED + "\r\nNats-Msg-Id: mine"],
        [SAMPLED + "\xff"],
        [SAMPLED, SAMPLED],
        ["0" * 100_000],
    ],
)
def test_a_traceparent_from_outside_that_is_none_is_ignored(headers: list[str]) -> None:
    assert telemetry.from_outside(headers) == ""


@pytest.mark.parametrize("given", [SAMPLED, NOT_SAMPLED])
@pytest.mark.parametrize(("ratio", "flag"), [(0.0, "00"), (1.0, "01")])
def test_a_strangers_trace_is_continued_and_its_sampled_flag_is_ours_to_set(
    monkeypatch: pytest.MonkeyPatch, given: str, ratio: float, flag: str
) -> None:
    monkeypatch.setattr(telemetry, "_ratio", ratio)

    assert telemetry.from_outside([given]) == f"00-{TRACE}-b7ad6b7169203331-{flag}"


def test_what_is_sent_within_a_span_carries_it_and_outside_of_one_nothing(exported: InMemorySpanExporter) -> None:
    assert telemetry.traceparent() == ""
    with telemetry.span("work", parent=SAMPLED) as span:
        assert telemetry.traceparent() == f"00-{TRACE}-{span.get_span_context().span_id:016x}-01"
    with telemetry.continued(OTHER):
        assert telemetry.traceparent() == OTHER
    with telemetry.continued("nonsense"):
        assert telemetry.traceparent() == ""
    assert telemetry.traceparent() == ""


def test_a_message_of_a_batch_has_a_span_in_its_own_trace_that_links_to_the_batch(exported: InMemorySpanExporter) -> None:
    with telemetry.span("batch", linked=[SAMPLED, OTHER]) as batch, telemetry.part("one", SAMPLED, [OTHER]):
        pass

    one, whole = exported.get_finished_spans()
    assert format(one.context.trace_id, "032x") == TRACE
    assert {link.context.trace_id for link in one.links} == {batch.get_span_context().trace_id, int("1" * 32, 16)}
    assert {format(link.context.trace_id, "032x") for link in whole.links} == {TRACE, "1" * 32}
    assert whole.parent is None


def test_a_batch_of_one_is_already_in_its_messages_trace(exported: InMemorySpanExporter) -> None:
    with telemetry.span("handle", parent=SAMPLED), telemetry.part("one", SAMPLED, loopwright__report__id="r1"):
        pass

    one, handle = exported.get_finished_spans()
    assert one.parent is not None
    assert one.parent.span_id == handle.context.span_id
    assert (one.links, one.attributes) == ((), {"loopwright.report.id": "r1"})


def test_what_nobody_records_is_passed_on_without_a_span(exported: InMemorySpanExporter) -> None:
    assert telemetry.passed_on(NOT_SAMPLED) == NOT_SAMPLED
    assert telemetry.passed_on("") == ""
    for recorded in (SAMPLED, "nonsense", NOT_SAMPLED.upper(), f"{NOT_SAMPLED}\n", f"00-{'0' * 32}-b7ad6b7169203331-00"):
        assert telemetry.passed_on(recorded) is None
    with telemetry.span("batch", parent=NOT_SAMPLED):
        assert telemetry.passed_on("") == telemetry.traceparent() != ""
    with telemetry.span("batch", parent=SAMPLED):
        assert telemetry.passed_on("") is None
        assert telemetry.passed_on(NOT_SAMPLED) == NOT_SAMPLED


class Stuck(SpanExporter):
    """A collector that takes what it is sent and never answers."""

    def __init__(self) -> None:
        self.taken, self.answer, self.closed = threading.Event(), threading.Event(), threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.taken.set()
        self.answer.wait()
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self.closed.set()


def test_a_dead_collector_does_not_hold_up_the_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    stuck, provider = Stuck(), TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(stuck))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    provider.get_tracer("test").start_span("work").end()
    try:
        with structlog.testing.capture_logs() as lines:
            assert telemetry.shutdown(timedelta(milliseconds=50)) is False
        assert stuck.taken.is_set()  # it was tried
        assert not stuck.closed.is_set()  # and not waited for: the SDK closes the exporter after its 30 s
        assert [line["event"] for line in lines] == ["traces_not_sent"]
    finally:
        stuck.answer.set()


def test_the_last_spans_are_sent_before_the_process_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    for number in range(700):  # more than one export takes
        provider.get_tracer("test").start_span(f"work {number}").end()
    assert telemetry.shutdown(timedelta(seconds=30)) is True
    assert len(exporter.get_finished_spans()) == 700


def test_a_process_whose_collector_is_dead_ends() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # connections are taken by the kernel, and nobody reads them
        script = f"""
from datetime import timedelta
from loopwright_common import telemetry
telemetry.configure("probe", otlp_endpoint="http://127.0.0.1:{silent.getsockname()[1]}")
for number in range(2_000):
    with telemetry.span("work"):
        pass
print(telemetry.shutdown(timedelta(milliseconds=100)))
"""
        ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, "False\n"), ended.stderr
    assert json.loads(ended.stderr.splitlines()[-1])["event"] == "traces_not_sent"


def test_links_are_no_more_than_a_span_keeps() -> None:
    assert len(telemetry.links(f"00-{TRACE}-{number:016x}-01" for number in range(1, 500))) == telemetry.LINKS_MAX
