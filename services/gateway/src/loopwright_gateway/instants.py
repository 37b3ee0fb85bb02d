"""Instants in the database: UTC milliseconds since 1970."""

from __future__ import annotations

from datetime import UTC, datetime


def to_instant(at: datetime) -> int:
    """UTC milliseconds since 1970."""
    return round(at.timestamp() * 1000)


def from_instant(value: int) -> datetime:
    """The aware UTC datetime of a stored instant."""
    return datetime.fromtimestamp(value / 1000, UTC)
