"""The streams of the table of subjects: made when they are missing, updated in place when the table has changed."""

from __future__ import annotations

from typing import Any

import structlog

from loopwright_common.bus import BusUnavailable
from loopwright_common.contracts.subjects import STREAMS, Stream
from loopwright_common.errors import Refused
from loopwright_common.nats_bus.connection import ApiError, Connection

log = structlog.get_logger()

NANOSECONDS = 1_000_000_000
STREAM_NOT_FOUND = 10059
STREAM_NAME_IN_USE = 10058
INSUFFICIENT_RESOURCES = (10023, 10047)  # of the account, of the server
STREAM_BYTES_MIN = 1024 * 1024
HALVINGS_MAX = 10


async def declare_streams(connection: Connection, store_bytes: int, replicas: int) -> int:
    """Makes or updates every stream; returns the bytes their sizes were cut from.

    ``store_bytes`` is cut to the account's limit, and halved while the server says that it has less. Raises Refused when it has not even
    a thousandth, BusUnavailable.
    """
    limit = await _account_limit(connection)
    total = min(store_bytes, limit) if limit > 0 else store_bytes
    for _ in range(HALVINGS_MAX):
        try:
            for stream in STREAMS:
                await _declare(connection, stream, stream_config(stream, total, replicas))
        except ApiError as error:
            if error.err_code not in INSUFFICIENT_RESOURCES:
                raise BusUnavailable(f"JetStream refused a stream: {error}") from error
            log.warning("jetstream_store_is_smaller", wanted_bytes=total, next_bytes=total // 2)
            total //= 2
        else:
            return total
    raise Refused(f"JetStream has no room for the streams: {store_bytes} bytes were asked for; raise max_file_store of nats-server")


def stream_config(stream: Stream, store_bytes: int, replicas: int) -> dict[str, Any]:
    """The JetStream configuration of a stream."""
    config: dict[str, Any] = {
        "name": stream.name,
        "subjects": list(stream.subjects),
        "retention": "limits",
        "storage": "file",
        "discard": "new",  # a full stream refuses, so that its publishers know; it never drops what was accepted
        "max_age": int(stream.max_age.total_seconds() * NANOSECONDS),
        "max_bytes": max(STREAM_BYTES_MIN, int(store_bytes * stream.store_share)),
        "duplicate_window": int(stream.duplicate_window.total_seconds() * NANOSECONDS),
        "num_replicas": replicas,
        "allow_direct": True,
        "allow_atomic": True,
    }
    if stream.scheduled:
        config |= {"allow_msg_schedules": True, "allow_msg_ttl": True, "allow_rollup_hdrs": True}
        # The server refuses atomic batches and discard=new on a stream that schedules.
        config |= {"allow_atomic": False, "discard": "old"}
    return config


async def _account_limit(connection: Connection) -> int:
    limits = (await connection.api("INFO")).get("limits", {})
    return int(limits.get("max_storage", -1))


async def _declare(connection: Connection, stream: Stream, wanted: dict[str, Any]) -> None:
    try:
        present = (await connection.api(f"STREAM.INFO.{stream.name}"))["config"]
    except ApiError as error:
        if error.err_code != STREAM_NOT_FOUND:
            raise
        try:
            await connection.api(f"STREAM.CREATE.{stream.name}", wanted)
            return
        except ApiError as raced:
            if raced.err_code != STREAM_NAME_IN_USE:
                raise
            present = (await connection.api(f"STREAM.INFO.{stream.name}"))["config"]
    # Never fewer subjects than there are: while versions are being rolled, an older service must not cut off a newer one.
    others = [subject for subject in present.get("subjects", []) if not any(overlap(subject, ours) for ours in wanted["subjects"])]
    wanted["subjects"] = sorted({*wanted["subjects"], *others})
    present["subjects"] = sorted(present.get("subjects", []))
    if any(present.get(key, False) != value for key, value in wanted.items()):
        await connection.api(f"STREAM.UPDATE.{stream.name}", {**present, **wanted})
        log.info("stream_updated", stream=stream.name)


def overlap(one: str, other: str) -> bool:
    """Whether a subject could match both patterns; the server takes no two such patterns."""
    first, second = one.split("."), other.split(".")
    for index in range(max(len(first), len(second))):
        tokens = [pattern[index] if index < len(pattern) else None for pattern in (first, second)]
        if ">" in tokens:
            return None not in tokens
        if None in tokens or ("*" not in tokens and tokens[0] != tokens[1]):
            return False
    return True
