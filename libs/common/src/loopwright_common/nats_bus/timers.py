"""Timers as JetStream scheduled messages (NATS ADR-51): they wait in the server, over restarts of both sides."""

from __future__ import annotations

from datetime import UTC, datetime

from loopwright_common import telemetry
from loopwright_common.bus import BusUnavailable, Timer
from loopwright_common.contracts.envelope import Envelope
from loopwright_common.identifiers import new_id
from loopwright_common.keys import check_due, schedule_subject, timer_spec, timer_subject
from loopwright_common.nats_bus.connection import ApiError, Connection
from loopwright_common.nats_bus.stores import store

STREAM = "TIMERS"


async def schedule(connection: Connection, service: str, timer: Timer) -> None:
    """Replaces an earlier timer of the same name: a subject holds one schedule."""
    check_due(timer, datetime.now(UTC))
    subject = timer_spec(timer.service).subjects[0]
    envelope = Envelope(
        id=new_id(),
        source=f"/services/{service}",
        type=subject.event_type,
        time=datetime.now(UTC),
        traceparent=telemetry.traceparent(),
    )
    headers = envelope.headers()
    # The schedule's id is not the due message's: one timer set twice is two messages, of which the second replaces the first.
    del headers["Nats-Msg-Id"]
    due = max(timer.due_at.astimezone(UTC), datetime.now(UTC))
    headers["Nats-Schedule"] = f"@at {due.isoformat(timespec='microseconds').replace('+00:00', 'Z')}"
    headers["Nats-Schedule-Target"] = timer_subject(timer.service, timer.purpose, timer.key)
    headers["Nats-Rollup"] = "sub"
    await store(connection, schedule_subject(timer.service, timer.purpose, timer.key), timer.model_dump_json().encode(), headers)


async def cancel(connection: Connection, service: str, purpose: str, key: str) -> None:
    """Forgets a timer that waits, and one that is due but was not handled."""
    for subject in (schedule_subject(service, purpose, key), timer_subject(service, purpose, key)):
        try:
            await connection.api(f"STREAM.PURGE.{STREAM}", {"filter": subject})
        except ApiError as error:
            raise BusUnavailable(f"the timer {purpose} {key} cannot be cancelled: {error}") from error
