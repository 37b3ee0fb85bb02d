"""Whose word counts on a trace, and how a trace goes on through batches."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from loopwright_common import telemetry
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
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


def test_links_are_no_more_than_a_span_keeps() -> None:
    assert len(telemetry.links(f"00-{TRACE}-{number:016x}-01" for number in range(1, 500))) == telemetry.LINKS_MAX
