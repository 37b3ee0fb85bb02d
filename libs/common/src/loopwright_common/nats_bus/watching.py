"""How far behind the consumers are and how full the streams, as JetStream says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from loopwright_common.bus import BusUnavailable, StreamUsage, Usage
from loopwright_common.metrics import ACK_PENDING, PENDING
from loopwright_common.nats_bus.connection import ApiError, Connection

EVERY_SECONDS = 15.0  # Prometheus asks every 15 to 60 s; a consumer's state costs the server next to nothing

log = structlog.get_logger()


class LagWatch:
    """Keeps the gauges of this process's consumers. ``consumers`` gives pairs of stream and durable name."""

    def __init__(self, connection: Connection, consumers: Callable[[], Sequence[tuple[str, str]]]) -> None:
        self._connection = connection
        self._consumers = consumers

    async def run(self) -> None:
        """Reads until cancelled."""
        while True:
            await self.read()
            await asyncio.sleep(EVERY_SECONDS)

    async def read(self) -> None:
        """Reads each consumer once. One that cannot be read has no value: an old number would be taken for a true one."""
        for stream, name in self._consumers():
            try:
                info = await self._connection.api(f"CONSUMER.INFO.{stream}.{name}", timeout=5)
                PENDING.labels(name, stream).set(info["num_pending"])
                ACK_PENDING.labels(name, stream).set(info["num_ack_pending"])
            except (ApiError, BusUnavailable, KeyError) as error:
                for gauge in (PENDING, ACK_PENDING):
                    gauge.remove(name, stream)
                log.debug("lag_not_read", consumer=name, stream=stream, error=str(error))


async def read_usage(connection: Connection) -> Usage:
    """What every stream and bucket holds and may hold. Raises BusUnavailable."""
    try:
        account = await connection.api("INFO")
        streams: list[StreamUsage] = []
        while True:
            page = await connection.api("STREAM.LIST", {"offset": len(streams)})
            found: list[dict[str, Any]] = page.get("streams") or []
            for each in found:
                limit = int(each["config"].get("max_bytes", -1))
                streams.append(
                    StreamUsage(each["config"]["name"], int(each["state"]["messages"]), int(each["state"]["bytes"]), max(0, limit))
                )
            if not found or len(streams) >= int(page.get("total", 0)):
                break
    except ApiError as error:
        raise BusUnavailable(f"JetStream does not say what it holds: {error}") from error
    limit = int(account.get("limits", {}).get("max_storage", -1))
    return Usage(tuple(streams), int(account.get("storage", 0)), max(0, limit))
