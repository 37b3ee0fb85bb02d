"""The envelope: CloudEvents 1.0 attributes in NATS headers (binary content mode) with W3C trace context beside them.

Source: CloudEvents NATS protocol binding 1.0.2, section 3.1: attributes are headers prefixed ``ce-``.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import StringConstraints

from loopwright_common.contracts.base import Contract, UtcDatetime

# Checked by a pattern within pydantic: a function per field cost more than the rest of the envelope.
HeaderValue = Annotated[str, StringConstraints(max_length=512, pattern=r"^[ -~]*$")]


class Envelope(Contract):
    """Who said what, when. ``id`` is also the ``Nats-Msg-Id``: deterministic, so a repeated publish is stored once."""

    id: HeaderValue
    source: HeaderValue  # /services/<name>
    type: HeaderValue
    subject: HeaderValue = ""  # the report, change or signal it is about
    time: UtcDatetime
    traceparent: HeaderValue = ""

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
        found = headers if "ce-id" in headers else {key.lower(): value for key, value in headers.items()}
        return cls(
            id=found["ce-id"],
            source=found["ce-source"],
            type=found["ce-type"],
            subject=found.get("ce-subject", ""),
            time=datetime.fromisoformat(found["ce-time"]),
            traceparent=found.get("traceparent", ""),
        )
