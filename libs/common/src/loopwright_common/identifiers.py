"""Identifiers: where a thing is named by its cause, redelivery gives the same name, so nothing is made twice."""

from __future__ import annotations

from uuid import UUID, uuid5

import uuid_utils

# A namespace of our own (RFC 9562, section 6.6), so that names made here never collide with other uuid5 users.
NAMESPACE = UUID("6f1c3b52-5d0c-5c8e-9a55-9d8f3f4f0c11")


def new_id() -> str:
    """A fresh UUIDv7 (RFC 9562): unique, and ordered by the time it was made to the millisecond."""
    return str(uuid_utils.uuid7())


def derived_id(*parts: str) -> str:
    """The UUIDv5 named by ``parts``: the same parts always give the same identifier."""
    return str(uuid5(NAMESPACE, "\x1f".join(parts)))
