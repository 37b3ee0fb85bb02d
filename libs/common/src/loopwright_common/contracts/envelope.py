"""The envelope: CloudEvents 1.0 attributes in NATS headers (binary content mode) with W3C trace context beside them.

Source: CloudEvents NATS protocol binding 1.0.2, section 3.1: attributes are headers prefixed ``ce-``.
"""

from __future__ import annotations

import re
from datetime import datetime

from pydantic import field_validator

from loopwright_common.contracts.base import Contract, Line, UtcDatetime

_PRINTABLE_ASCII = re.compile(r"[ -~]*")


class Envelope(Contract):
    """Who said what, when. ``id`` is also the ``Nats-Msg-Id``: deterministic, so a repeated publish is stored once."""

    id: Line
    source: Line  # /services/<name>
    type: Line
    subject: Line = ""  # the report, change or signal it is about
    time: UtcDatetime
    traceparent: Line = ""

    @field_validator("id", "source", "type", "subject", "traceparent")
    @classmethod
    def _is_a_header_value(cls, value: str) -> str:
        if not _PRINTABLE_ASCII.fullmatch(value):
            raise ValueError("header values are printable ASCII")
        return value

    def headers(self) -> dict[str, str]:
        """The envelope as NATS headers."""
        headers = {
            "Nats-Msg-Id": self.id,
            "ce-specversion": "1.0",
            "ce-id": self.id,
            "ce-source": self.source,
            "ce-type": self.type,
            "ce-time": self.time.isoformat(),
            "content-type": "application/json",
        }
        if self.subject:
            headers["ce-subject"] = self.subject
        if self.traceparent:
            headers["traceparent"] = self.traceparent
        return headers

    @classmethod
    def from_headers(cls, headers: dict[str, str]) -> Envelope:
        """Reads an envelope back. Raises pydantic.ValidationError or KeyError when the headers are not one."""
        found = {key.lower(): value for key, value in headers.items()}
        return cls(
            id=found["ce-id"],
            source=found["ce-source"],
            type=found["ce-type"],
            subject=found.get("ce-subject", ""),
            time=datetime.fromisoformat(found["ce-time"]),
            traceparent=found.get("traceparent", ""),
        )
