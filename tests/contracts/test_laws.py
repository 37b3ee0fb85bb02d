"""Laws of the contracts: what is written is read back the same, what is unknown is passed over, what is too much is refused."""

from __future__ import annotations

import json
import string
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loopwright_common.contracts import configuration  # noqa: F401  its models are looked at too
from loopwright_common.contracts.base import Contract, Input
from loopwright_common.contracts.envelope import Envelope
from loopwright_common.contracts.signals import Deploy, Exposure, Signal, SignalKind, StackFrame
from loopwright_common.contracts.subjects import QUESTIONS, STREAMS, SUBJECTS
from loopwright_common.deliveries import RawMessage, Reader
from loopwright_common.testing.memory_bus import matches
from pydantic import BaseModel, ValidationError

SERVICES = {"ingest", "cluster", "investigator", "pr-agent", "measure", "gateway", "scouts"}
TEXT = st.text(max_size=60)  # any text: hostile clients send any
NAMES = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=20)
MOMENTS = st.datetimes(min_value=datetime(2000, 1, 1), max_value=datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
FRAMES = st.builds(StackFrame, file=TEXT, function=TEXT, module=TEXT, line=st.none() | st.integers(0, 10_000_000), in_app=st.booleans())
SIGNALS = st.builds(
    Signal,
    id=NAMES,
    project=NAMES,
    source=NAMES,
    kind=st.sampled_from(SignalKind),
    title=TEXT,
    body=TEXT,
    occurred_at=MOMENTS,
    received_at=MOMENTS,
    service=TEXT.map(lambda text: text[:64]),
    weight=st.floats(0, 1_000),
    frames=st.lists(FRAMES, max_size=4).map(tuple),
    fingerprint=st.lists(TEXT, max_size=3).map(tuple),
    labels=st.dictionaries(TEXT, TEXT, max_size=3),
)
ASCII = st.text([chr(code) for code in range(32, 127)], max_size=80).map(str.strip)
ENVELOPES = st.builds(Envelope, id=ASCII, source=ASCII, type=ASCII, subject=ASCII, time=MOMENTS, traceparent=ASCII)


@given(SIGNALS)
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_a_signal_is_read_back_as_it_was_written(signal: Signal) -> None:
    assert Signal.model_validate_json(signal.model_dump_json()) == signal


@given(SIGNALS)
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=30)
def test_a_newer_services_fields_are_passed_over(signal: Signal) -> None:
    written = json.loads(signal.model_dump_json()) | {"added_later": {"deep": [1, 2]}}

    assert Signal.model_validate_json(json.dumps(written)) == signal


@given(ENVELOPES)
def test_an_envelope_goes_through_headers_whatever_their_case(envelope: Envelope) -> None:
    headers = envelope.headers()

    assert Envelope.from_headers(headers) == envelope
    assert Envelope.from_headers({key.upper(): value for key, value in headers.items()}) == envelope
    assert headers["Nats-Msg-Id"] == envelope.id


@given(st.text(min_size=1, max_size=20))
def test_an_envelope_takes_nothing_that_could_end_a_header(text: str) -> None:
    try:
        envelope = Envelope(id=text, source="s", type="t", time=datetime.now(UTC))
    except ValidationError:
        assert any(ord(character) < 32 or ord(character) > 126 for character in text)
    else:
        assert all("\r" not in value and "\n" not in value for value in envelope.headers().values())


@given(st.text(max_size=20))
def test_a_subject_takes_single_tokens_only(token: str) -> None:
    subject = SUBJECTS[0]
    try:
        name = subject.name(project=token, source="http")
    except ValueError:
        assert not token or any(character in token for character in " .*>\t\r\n")
    else:
        assert matches(subject.wildcard, name)


@given(st.binary(max_size=200), st.dictionaries(st.sampled_from(["ce-id", "ce-source", "ce-type", "ce-time", "traceparent"]), TEXT))
def test_reading_any_bytes_gives_a_message_or_says_why_not(payload: bytes, headers: dict[str, str]) -> None:
    from loopwright_common.deliveries import Unreadable

    raw = RawMessage("signals.shop.http", headers, payload, "SIGNALS", 1, 1)
    with pytest.raises(Unreadable):
        Reader(SUBJECTS).read(raw)


def test_a_time_without_a_zone_is_refused_and_others_become_utc() -> None:
    given_ = {"id": "d", "project": "shop", "service": "web", "release": "1", "deployed_at": "2026-11-26T12:00:00+02:00"}

    assert Deploy.model_validate(given_).deployed_at == datetime(2026, 11, 26, 10, tzinfo=UTC)
    with pytest.raises(ValidationError, match="time zone"):
        Deploy.model_validate(given_ | {"deployed_at": "2026-11-26T12:00:00"})


@pytest.mark.parametrize("name", ["", "A", "a.b", "a*", ">", "a b", "-a", "a-", "ä", "a" * 65, "a\n"])
def test_a_name_that_could_not_be_a_token_is_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        Exposure(id="e", project=name, service="web", minute=datetime.now(UTC), count=1)


def _models() -> list[type[BaseModel]]:
    found: list[type[BaseModel]] = []
    waiting: list[type[BaseModel]] = [Contract, Input]
    while waiting:
        for model in waiting.pop().__subclasses__():
            if model.__module__.startswith("loopwright_common.contracts") and model not in found:
                found.append(model)
                waiting.append(model)
    return sorted(found, key=lambda model: model.__name__)


@pytest.mark.parametrize("model", _models(), ids=lambda model: model.__name__)
def test_every_text_and_every_list_has_a_limit(model: type[BaseModel]) -> None:
    schema = model.model_json_schema()
    properties = schema.get("properties", {})
    loose = [name for name, field in properties.items() if any(not _bounded(part) for part in field.get("anyOf", [field]))]

    assert {(model.__name__, name) for name in loose} <= LOOSE, "give it a max_length"


# Our own words, of which there are few, and what the declared configuration's own limits bound.
LOOSE = {("Neighbour", "kind"), ("ProjectKey", "scopes"), ("Policy", "start_priorities")}


def _bounded(field: dict[str, Any]) -> bool:
    if field.get("type") == "string":
        return bool({"maxLength", "pattern", "format", "enum", "const"} & field.keys())
    if field.get("type") == "array":
        return "maxItems" in field
    return True


def test_every_stream_covers_the_subjects_that_name_it_and_no_other_does() -> None:
    for subject in SUBJECTS:
        covering = [stream.name for stream in STREAMS if any(matches(pattern, subject.wildcard) for pattern in stream.subjects)]
        assert covering == [subject.stream]


def test_every_fact_has_one_publisher_but_signals_which_have_one_per_source() -> None:
    for subject in SUBJECTS:
        assert set(subject.publishers) <= SERVICES
        assert len(subject.publishers) == 1 or subject.pattern == "signals.{project}.{source}"


def test_types_and_patterns_name_one_fact_each() -> None:
    assert len({subject.pattern for subject in SUBJECTS}) == len(SUBJECTS)
    assert len({subject.event_type for subject in SUBJECTS}) == len(SUBJECTS)
    assert len({question.subject for question in QUESTIONS}) == len(QUESTIONS)
    assert all(question.answered_by in SERVICES for question in QUESTIONS)


def test_the_streams_leave_room_for_buckets() -> None:
    assert sum(stream.store_share for stream in STREAMS) < 1
    assert {stream.name for stream in STREAMS if stream.scheduled} == {"TIMERS"}
