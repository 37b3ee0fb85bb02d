"""The gateway's tables. Instants are kept as UTC milliseconds: exact, ordered, and the same in SQLite and PostgreSQL."""

from __future__ import annotations

from typing import Any

import sqlalchemy
from sqlalchemy import BigInteger, Boolean, Column, Float, Index, Integer, MetaData, Table
from sqlalchemy.types import TypeDecorator

from loopwright_gateway.instants import from_instant, to_instant

__all__ = ["from_instant", "metadata", "to_instant"]

metadata = MetaData()


class _WithoutNul(TypeDecorator[str]):
    """Text from outside may hold NUL, which PostgreSQL cannot keep: it becomes U+FFFD in both databases, so that both say the same."""

    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        return value.replace("\x00", "\ufffd") if value is not None else None


class String(_WithoutNul):
    impl = sqlalchemy.String
    cache_ok = True


class Text(_WithoutNul):
    impl = sqlalchemy.Text
    cache_ok = True


Id = String(64)
Instant = BigInteger
Serial = BigInteger().with_variant(Integer, "sqlite")  # only INTEGER PRIMARY KEY counts up in SQLite


projects = Table(
    "projects",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("number", Integer, nullable=False, unique=True),
    Column("revision", Integer, nullable=False),
    Column("config", Text, nullable=False),
    Column("created_at", Instant, nullable=False),
)

keys = Table(
    "keys",
    metadata,
    Column("id", Id, primary_key=True),
    Column("project", String(64), nullable=False, index=True),
    Column("sha256", String(64), nullable=False, unique=True),
    Column("scopes", Text, nullable=False),
    Column("label", String(512), nullable=False),
    Column("service", String(64), nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("revoked_at", Instant),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", Id, primary_key=True),
    Column("name", String(64), nullable=False),
    Column("role", String(16), nullable=False),
    Column("sha256", String(64), nullable=False, unique=True),
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant),
    Column("revoked_at", Instant),
)

reports = Table(
    "reports",
    metadata,
    Column("id", Id, primary_key=True),
    Column("project", String(64), nullable=False),
    Column("title", String(512), nullable=False),
    Column("state", String(32), nullable=False),
    Column("priority_rank", Integer, nullable=False),  # 0..4, 5 without
    Column("question", Text, nullable=False),
    Column("state_reason", Text, nullable=False),
    Column("services", Text, nullable=False),  # JSON list
    Column("kinds", Text, nullable=False),  # JSON object: signals per kind
    Column("releases", Text, nullable=False),  # JSON object: signals per release
    Column("input", Text, nullable=False),  # JSON list: what people answered
    Column("weight", Float, nullable=False),
    Column("signal_count", Integer, nullable=False),
    Column("live_count", Integer, nullable=False),  # without backfill
    Column("people_count", Integer, nullable=False),
    Column("first_seen", Instant, nullable=False),
    Column("last_seen", Instant, nullable=False),
    Column("opened_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    Column("attempt", Integer, nullable=False),  # investigations asked for
    Column("change_attempt", Integer, nullable=False),  # changes asked for
    Column("timeline_sequence", Integer, nullable=False),
    Column("version", Integer, nullable=False),  # rises with every line of the timeline, not with counts: what an action's If-Match names
    Column("recurrence_of", Id),
    Column("merged_into", Id),
    Column("snoozed_until", Instant),
    Column("snoozed_at_count", Integer),
    Column("snooze_signals", Integer),
    Index("reports_by_seen", "project", "last_seen", "id"),
    Index("reports_by_priority", "project", "priority_rank", "last_seen", "id"),
    Index("reports_by_state", "project", "state"),
)

timeline = Table(
    "timeline",
    metadata,
    Column("report_id", Id, primary_key=True),
    Column("sequence", Integer, primary_key=True),
    Column("project", String(64), nullable=False),
    Column("kind", String(32), nullable=False),  # transition, or what was noted
    Column("from_state", String(32)),
    Column("to_state", String(32)),
    Column("actor", String(512), nullable=False),
    Column("reason", Text, nullable=False),
    Column("cause", String(512), nullable=False),  # the message behind it: a redelivered one writes no second line
    Column("at", Instant, nullable=False),
    Index("timeline_by_cause", "report_id", "cause", unique=True),
)

signals_seen = Table(
    "signals_seen",
    metadata,
    Column("signal_id", Id, primary_key=True),
    Column("report_id", Id, nullable=False),
    Column("minute", Instant, nullable=False),
    Column("release", String(512), nullable=False),
    Column("environment", String(64), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("service", String(64), nullable=False),
    Column("weight", Float, nullable=False),
    Column("actor", String(64), nullable=False),
    Column("backfill", Boolean, nullable=False),
    Column("counted", Boolean, nullable=False),  # a verdict is on the report, but is not an occurrence of the problem
    Column("seen_at", Instant, nullable=False, index=True),
    Column("fingerprint", String(512), nullable=False, server_default=""),
    Column("told_report_id", Id, nullable=False, server_default=""),  # where the grouping put it; report_id is where people's words did
    Column("occurred_at", Instant, nullable=False, server_default="0"),
    Index("signals_seen_by_report", "report_id", "occurred_at", "signal_id"),
)

# Why a fingerprint came to a report: the decision on its first signal there, which stands for those that followed as known.
first_decisions = Table(
    "first_decisions",
    metadata,
    Column("report_id", Id, primary_key=True),  # where the grouping put it
    Column("fingerprint", String(512), primary_key=True),
    Column("project", String(64), nullable=False),
    Column("signal_id", Id, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("title", String(512), nullable=False),
    Column("rule", String(32), nullable=False),
    Column("signal", Text, nullable=False),
    Column("decision", Text, nullable=False),
    Column("at", Instant, nullable=False),
    Index("first_decisions_by_fingerprint", "project", "fingerprint"),
)

words = Table(
    "words",
    metadata,
    Column("command_id", Id, primary_key=True),
    Column("project", String(64), nullable=False),
    Column("action", String(32), nullable=False),
    Column("report_id", Id, nullable=False, index=True),  # merge: stays; split, move: is left; undo: where things return
    Column("other_report_id", Id, index=True),  # merge: goes; move: where to; never_together: the other; undo: where they were
    Column("new_report_id", Id, index=True),  # split: what was made
    Column("undoes", Id),
    Column("fingerprints", Text, nullable=False),  # JSON list
    Column("signals", Integer, nullable=False),  # asked: those named; done: those moved
    Column("actor", String(512), nullable=False),
    Column("reason", Text, nullable=False),
    Column("at", Instant, nullable=False),
    Column("state", String(16), nullable=False),  # asked, done, refused, undone
    Column("refusal", Text, nullable=False),
    Column("undone_by", Id),
)

# Which signals a word moved, so that exactly they go back. Forgotten as the signals themselves are.
signal_moves = Table(
    "signal_moves",
    metadata,
    Column("command_id", Id, primary_key=True),
    Column("signal_id", Id, primary_key=True),
    Column("from_report_id", Id, nullable=False),
    Column("to_report_id", Id, nullable=False),
    Column("alone", Boolean, nullable=False),  # without its fingerprint
    Column("at", Instant, nullable=False, index=True),
    Index("signal_moves_by_signal", "signal_id", "at"),
)

# Where fingerprints went, for facts that were decided before and are told after.
fingerprint_moves = Table(
    "fingerprint_moves",
    metadata,
    Column("command_id", Id, primary_key=True),
    Column("fingerprint", String(512), primary_key=True),
    Column("project", String(64), nullable=False),
    Column("from_report_id", Id, nullable=False),
    Column("to_report_id", Id, nullable=False),
    Column("at", Instant, nullable=False),
    Index("fingerprint_moves_by_fingerprint", "fingerprint", "project"),
)

minute_counts = Table(
    "minute_counts",
    metadata,
    Column("report_id", Id, primary_key=True),
    Column("minute", Instant, primary_key=True),
    Column("release", String(512), primary_key=True),
    Column("environment", String(64), primary_key=True),
    Column("count", Integer, nullable=False),
)

actors = Table(
    "actors",
    metadata,
    Column("report_id", Id, primary_key=True),
    Column("actor", String(64), primary_key=True),
)

examples = Table(
    "examples",
    metadata,
    Column("signal_id", Id, primary_key=True),
    Column("report_id", Id, nullable=False),
    Column("slot", String(16), nullable=False),  # first, kind, recent: what it was kept for
    Column("kind", String(32), nullable=False),
    Column("occurred_at", Instant, nullable=False),
    Column("signal", Text, nullable=False),
    Column("decision", Text, nullable=False),
    Index("examples_by_report", "report_id", "slot", "occurred_at"),
)

exposure = Table(
    "exposure",
    metadata,
    Column("project", String(64), primary_key=True),
    Column("service", String(64), primary_key=True),
    Column("minute", Instant, primary_key=True),
    Column("release", String(512), primary_key=True),
    Column("environment", String(64), primary_key=True),
    Column("unit", String(16), primary_key=True),
    Column("count", BigInteger, nullable=False),
    Column("errored", BigInteger, nullable=False),
)

exposure_seen = Table(
    "exposure_seen",
    metadata,
    Column("exposure_id", Id, primary_key=True),
    Column("seen_at", Instant, nullable=False, index=True),
)

deploys = Table(
    "deploys",
    metadata,
    Column("id", Id, primary_key=True),
    Column("project", String(64), nullable=False),
    Column("service", String(64), nullable=False),
    Column("deployed_at", Instant, nullable=False),
    Column("body", Text, nullable=False),
    Index("deploys_by_service", "project", "service", "deployed_at"),
)

investigations = Table(
    "investigations",
    metadata,
    Column("id", Id, primary_key=True),
    Column("report_id", Id, nullable=False, index=True),
    Column("attempt", Integer, nullable=False),
    Column("suspect", String(64)),
    Column("body", Text, nullable=False),
    Column("at", Instant, nullable=False),
)

changes = Table(
    "changes",
    metadata,
    Column("id", Id, primary_key=True),
    Column("project", String(64), nullable=False),
    Column("report_id", Id, nullable=False, index=True),
    Column("repository", String(512), nullable=False),
    Column("suspect", String(64)),
    Column("state", String(32), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("title", String(512), nullable=False),
    Column("requested_by", String(512), nullable=False),
    Column("feedback", Text, nullable=False),  # JSON list, oldest first
    Column("failure", Text, nullable=False),
    Column("merge_commit", String(64)),
    Column("closed_by", String(512)),
    Column("body", Text),  # contracts.Change once it was opened
    Column("fact_at", Instant, nullable=False),  # of the newest fact about it: an older one changes nothing
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    Index("changes_by_project", "project", "created_at", "id"),
)

measurements = Table(
    "measurements",
    metadata,
    Column("id", Id, primary_key=True),
    Column("project", String(64), nullable=False),
    Column("report_id", Id, nullable=False, index=True),
    Column("change_id", Id, nullable=False, index=True),
    Column("verdict", String(32)),  # none while it is being measured
    Column("started", Text),
    Column("body", Text),
    Column("at", Instant, nullable=False),
    Index("measurements_by_project", "project", "at", "id"),
)

usage = Table(
    "usage",
    metadata,
    Column("id", String(128), primary_key=True),  # the stage before the cause's id
    Column("project", String(64), nullable=False),
    Column("report_id", Id, nullable=False),
    Column("stage", String(32), nullable=False),  # investigate, change, pull_request, measure
    Column("month", String(7), nullable=False),
    Column("pull_requests", Integer, nullable=False),
    Column("cost", Text, nullable=False),  # contracts.Cost
    Column("usd", Float, nullable=False),
    Column("at", Instant, nullable=False),
    Index("usage_by_project", "project", "at"),
)

outbox = Table(
    "outbox",
    metadata,
    Column("id", Serial, primary_key=True, autoincrement=True),
    Column("kind", String(32), nullable=False),  # the subject's pattern, or timer, config
    Column("tokens", Text, nullable=False),
    Column("message_id", String(512), nullable=False),
    Column("about", String(512), nullable=False),
    Column("payload", Text, nullable=False),
    Column("traceparent", String(64), nullable=False, server_default=""),
    Column("decided_at", Instant, nullable=False, server_default="0"),
)

events = Table(
    "events",
    metadata,
    Column("id", Serial, primary_key=True, autoincrement=True),
    Column("kind", String(64), nullable=False),
    Column("project", String(64), nullable=False),
    Column("body", Text, nullable=False),
    Column("at", Instant, nullable=False),
    sqlite_autoincrement=True,  # an id is never used twice, so that Last-Event-ID means what it says
)
