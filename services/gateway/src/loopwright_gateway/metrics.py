"""What the gateway counts: the reports' and changes' ways, and how things stand.

Counted once the transaction stands (``Unit.after_commit``): what was rolled back did not happen. The gauges describe the database and the
bus, which replicas share: each replica reads them, and dashboards take the maximum.
"""

from __future__ import annotations

from loopwright_common.bus import Usage
from prometheus_client import Counter, Gauge

from loopwright_gateway.ports import Standing

TRANSITIONS = Counter("loopwright_report_transitions", "Reports that came into a state.", ["state"])
CHANGES = Counter("loopwright_changes", "Steps of changes: requested, opened, updated, merged, closed, failed, refused.", ["event"])
NOT_STARTED = Counter("loopwright_changes_not_started", "Actionable reports that the policy did not start, by its rule.", ["rule"])
VERDICTS = Counter("loopwright_verdicts", "Verdicts on merged changes.", ["verdict"])

REPORTS = Gauge("loopwright_reports", "Reports by state. Shared by replicas.", ["state"])
OPEN_CHANGES = Gauge("loopwright_open_changes", "Changes that have not ended, by state. Shared by replicas.", ["state"])
OLDEST_CHANGE = Gauge("loopwright_open_change_oldest_seconds", "Age of the oldest change in a state. Shared by replicas.", ["state"])
OUTBOX = Gauge("loopwright_outbox_items", "Facts that a transaction left to be sent. Shared by replicas.")
OUTBOX_OLDEST = Gauge("loopwright_outbox_oldest_seconds", "Age of the oldest of them; 0 when there is none. Shared by replicas.")
STREAM_MESSAGES = Gauge("loopwright_stream_messages", "Messages in a stream or bucket of JetStream. Shared by replicas.", ["stream"])
STREAM_BYTES = Gauge("loopwright_stream_bytes", "Bytes in a stream or bucket. Shared by replicas.", ["stream"])
STREAM_BYTES_MAX = Gauge("loopwright_stream_bytes_max", "Bytes a stream takes before it refuses. Shared by replicas.", ["stream"])
STORE_BYTES = Gauge("loopwright_jetstream_bytes", "Bytes of all streams and buckets. Shared by replicas.")
STORE_BYTES_MAX = Gauge("loopwright_jetstream_bytes_max", "Bytes JetStream may keep for us; 0 without a limit. Shared by replicas.")


def show_standing(standing: Standing) -> None:
    """Sets the gauges of the database. A state that nothing is in any more is 0, not gone: its line ends on the axis."""
    for gauge, values in ((REPORTS, standing.reports), (OPEN_CHANGES, standing.changes), (OLDEST_CHANGE, standing.oldest_change_seconds)):
        for state, value in values.items():
            gauge.labels(state).set(value)
    OUTBOX.set(standing.outbox_items)
    OUTBOX_OLDEST.set(standing.outbox_oldest_seconds)


def forget_standing() -> None:
    """Takes the values away: the database does not answer, and old numbers would be taken for true ones."""
    for gauge in (REPORTS, OPEN_CHANGES, OLDEST_CHANGE):
        gauge.clear()
    for number in (OUTBOX, OUTBOX_OLDEST):
        number.set(float("nan"))


def show_usage(usage: Usage) -> None:
    """Sets the gauges of the bus."""
    forget_usage()
    for stream in usage.streams:
        STREAM_MESSAGES.labels(stream.name).set(stream.messages)
        STREAM_BYTES.labels(stream.name).set(stream.bytes)
        if stream.bytes_max:
            STREAM_BYTES_MAX.labels(stream.name).set(stream.bytes_max)
    STORE_BYTES.set(usage.bytes)
    STORE_BYTES_MAX.set(usage.bytes_max)


def forget_usage() -> None:
    """As for the database. Also before new values are set: a bucket that was removed must not stay."""
    for gauge in (STREAM_MESSAGES, STREAM_BYTES, STREAM_BYTES_MAX):
        gauge.clear()
    for number in (STORE_BYTES, STORE_BYTES_MAX):
        number.set(float("nan"))
