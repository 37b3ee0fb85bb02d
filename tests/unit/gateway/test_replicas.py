"""Two gateways on one database and one bus: what is changed at one is in force at the other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest_asyncio
from loopwright_common.contracts.configuration import ProjectConfig, PublishedProject
from loopwright_common.contracts.signals import Exposure
from loopwright_common.testing.clock import FakeClock
from loopwright_common.testing.memory_bus import Broker, MemoryBus
from loopwright_gateway.adapters.store import SqlStore
from loopwright_gateway.app import Service
from loopwright_gateway.settings import GatewaySettings


@pytest_asyncio.fixture
async def replicas(tmp_path: Path, fake_clock: FakeClock) -> AsyncIterator[list[Service]]:
    url = f"sqlite+aiosqlite:///{tmp_path}/gateway.db"
    broker, started = Broker(fake_clock), []
    for _ in range(2):
        store = SqlStore.open(url)
        await store.migrate()
        service = Service(GatewaySettings.model_validate({"database_url": url}), MemoryBus("gateway", broker=broker), store, fake_clock)
        await service.start()
        started.append(service)
    yield started
    for service in started:
        await service.stop(timedelta(seconds=1))


def config(changes: int) -> ProjectConfig:
    return ProjectConfig.model_validate({"name": "shop", "policy": {"changes_per_hour_max": changes}})


async def in_force(service: Service, changes: int) -> None:
    async with asyncio.timeout(20):
        while (found := service.catalogue.get("shop")) is None or found.policy.changes_per_hour_max != changes:
            await asyncio.sleep(0.01)


async def test_a_policy_that_is_changed_at_one_replica_is_in_force_at_the_other(replicas: list[Service]) -> None:
    one, other = replicas
    await one.catalogue.apply(config(3))
    await in_force(other, 3)
    await other.catalogue.apply(config(0))
    await in_force(one, 0)
    await in_force(other, 0)


async def test_what_was_changed_while_the_bus_was_out_of_reach_is_known_once_it_is_back(replicas: list[Service]) -> None:
    one, other = replicas
    await one.catalogue.apply(config(3))
    await in_force(other, 3)
    one.bus.broker.available = False  # type: ignore[attr-defined]
    await one.catalogue.apply(config(4))
    assert other.catalogue.get("shop") == config(3)  # the last known stays in force
    one.bus.broker.available = True  # type: ignore[attr-defined]
    await in_force(other, 4)


async def test_an_older_revision_never_takes_a_newer_ones_place(replicas: list[Service]) -> None:
    one, other = replicas
    for changes in range(1, 12):
        await (one if changes % 2 else other).catalogue.apply(config(changes))
    await in_force(one, 11)
    await in_force(other, 11)
    one.catalogue._keep("shop", 3, config(3))
    assert one.catalogue.get("shop") == config(11)


async def test_a_configuration_on_the_bus_that_cannot_be_read_stops_nothing(replicas: list[Service]) -> None:
    one, other = replicas
    bucket = await one.bus.key_value("config")
    await bucket.put("project.odd", b"{")
    await one.catalogue.apply(config(5))
    await in_force(other, 5)


async def test_settings_that_a_project_does_not_use_are_not_published(replicas: list[Service]) -> None:
    one, other = replicas
    said = {"name": "shop", "promotion": {"half_life": 3600.0, "kind_weights": {"log": 0.5}}, "services": [{"name": "shop"}]}
    await one.catalogue.apply(ProjectConfig.model_validate(said))
    bucket = await one.bus.key_value("config")
    async with asyncio.timeout(20):
        while (entry := await bucket.get("project.shop")) is None:
            await asyncio.sleep(0.01)
    assert json.loads(entry.value)["config"] == said  # what an older service does not know would make it refuse the whole
    assert PublishedProject.model_validate_json(entry.value) == (await other.catalogue.all())[0]
    assert (await other.catalogue.apply(ProjectConfig.model_validate(said))).outcome == "unchanged"


async def test_what_is_older_than_the_settings_keep_is_forgotten(replicas: list[Service], fake_clock: FakeClock) -> None:
    one, _ = replicas
    old = fake_clock.now()
    async with one.store.transaction() as unit:
        for days in (0, 30, 400):
            minute = old + timedelta(days=days)
            item = Exposure(id=f"e{days}", project="shop", service="shop", minute=minute, count=1)
            await unit.add_exposure([item], minute)
    fake_clock.advance(timedelta(days=410))
    assert await one.prune() == 1 + 2  # a minute of 410 days ago, and the ids of all but the last
    _, exposure, _ = await one.store.rates("shop", None, ["shop"], "", old, fake_clock.now(), 10)
    assert [(found["minute"] - old).days for found in exposure] == [30, 400]
