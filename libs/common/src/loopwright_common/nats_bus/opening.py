"""From a service's settings to a connected bus."""

from __future__ import annotations

from loopwright_common.nats_bus.bus import NatsBus
from loopwright_common.settings import ServiceSettings


async def open_bus(settings: ServiceSettings, service: str) -> NatsBus:
    """The bus, connected, with the streams declared. Raises BusUnavailable, Refused when credentials or room are refused."""
    bus = NatsBus(
        settings.nats_url,
        service,
        user=settings.nats_user,
        password=settings.nats_password,
        ca_file=settings.nats_ca_file,
        store_bytes=settings.nats_store_bytes,
        replicas=settings.nats_replicas,
    )
    await bus.connect()
    return bus
