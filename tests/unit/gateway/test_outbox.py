"""The outbox: what a transaction left to be sent is sent, also when the process dies in between; one that failed sends nothing."""

from __future__ import annotations

from typing import Any

import pytest
from loopwright_common.bus import Bus, BusUnavailable
from loopwright_common.clock import SystemClock
from loopwright_common.contracts import subjects as s
from loopwright_common.contracts.configuration import CONFIG_BUCKET, ProjectConfig, PublishedProject
from loopwright_common.testing.memory_bus import MemoryBus
from loopwright_gateway.catalogue import Catalogue
from loopwright_gateway.outbox import Dispatcher


class Crash(Exception):
    """The process dies here."""


async def stored(bus: MemoryBus, subject: s.Subject) -> list[Any]:
    """What the memory bus holds of a subject."""
    tokens = subject.name(project="shop")
    return [subject.payload.model_validate_json(item.payload) for item in bus.broker.streams[subject.stream] if item.subject == tokens]


async def test_a_crash_between_sending_and_forgetting_sends_nothing_twice(gateway: Any, memory_bus: MemoryBus) -> None:
    await gateway.to_review()
    dispatcher = Dispatcher(gateway.store, memory_bus)
    forget = gateway.store.sent

    async def die(_: Any) -> None:
        raise Crash

    gateway.store.sent = die
    for _ in range(3):
        with pytest.raises(Crash):
            await dispatcher.send_some()
    gateway.store.sent = forget
    while await dispatcher.send_some():
        pass
    assert len(await stored(memory_bus, s.CHANGES_REQUESTED)) == 1
    assert len(await stored(memory_bus, s.REPORTS_READY)) == 1
    sequences = [fact.sequence for fact in await stored(memory_bus, s.REPORTS_TRANSITIONED)]
    assert sequences == sorted(set(sequences))
    assert await gateway.store.outbox(10) == []


async def test_a_transaction_that_fails_leaves_nothing_to_send(gateway: Any) -> None:
    async def die() -> None:
        async with gateway.store.transaction() as unit:
            await gateway.facts._open(unit, "r1", gateway.group("s1"), gateway.clock.now())
            raise Crash

    with pytest.raises(Crash):
        await die()
    assert await gateway.store.outbox(10) == []
    assert await gateway.timeline() == []


async def test_a_bus_that_is_down_is_waited_for(gateway: Any, memory_bus: MemoryBus) -> None:
    await gateway.open()
    waiting = len(await gateway.store.outbox(100))
    dispatcher = Dispatcher(gateway.store, memory_bus)
    memory_bus.broker.available = False
    with pytest.raises(BusUnavailable):
        await dispatcher.send_some()
    assert len(await gateway.store.outbox(100)) == waiting
    memory_bus.broker.available = True
    assert await dispatcher.send_some() == waiting
    assert len(await stored(memory_bus, s.REPORTS_READY)) == 1


async def test_the_newest_configuration_wins_whatever_is_sent_last(gateway: Any, bus: Bus) -> None:
    catalogue = Catalogue(gateway.store, SystemClock())
    dispatcher = Dispatcher(gateway.store, bus)
    await catalogue.apply(ProjectConfig(name="shop", title="first"))
    (old,) = await gateway.store.outbox(10)
    await dispatcher.send_some()
    await catalogue.apply(ProjectConfig(name="shop", title="second"))
    await dispatcher.send_some()
    async with gateway.store.transaction() as unit:
        await unit.enqueue(old)
    await dispatcher.send_some()
    entry = await (await bus.key_value(CONFIG_BUCKET)).get("project.shop")
    assert entry is not None
    published = PublishedProject.model_validate_json(entry.value)
    assert (published.config.title, published.revision, published.number) == ("second", 2, 1)


async def test_a_reports_examples_fit_into_a_message(gateway: Any, memory_bus: MemoryBus) -> None:
    frames = [{"file": f"f{number}" * 80, "context": "x" * 512, "function": "y" * 512, "module": "z" * 512} for number in range(100)]
    for number in range(12):  # each within its own bounds, together over a message's
        await gateway.give(s.GROUPS_UPDATED, gateway.group(f"big{number}", "r1", backfill=True, body="b" * 16_000, frames=frames))
    await gateway.give(s.GROUPS_UPDATED, gateway.group("live", "r1"))
    await Dispatcher(gateway.store, memory_bus).send_some()
    (ready,) = await stored(memory_bus, s.REPORTS_READY)
    assert 1 <= len(ready.report.examples) < 12
    assert ready.report.signal_count == 13


async def test_a_message_no_server_takes_is_told_on_its_report_and_holds_up_nothing(gateway: Any, memory_bus: MemoryBus) -> None:
    evidence = [{"id": f"e{number}", "kind": "log", "question": "q", "answer": "a" * 16_000} for number in range(90)]
    await gateway.open("r1")
    await gateway.give(s.INVESTIGATIONS_COMPLETED, gateway.investigation("r1", evidence=evidence))  # over 1 MiB
    await gateway.open("r2")
    dispatcher = Dispatcher(gateway.store, memory_bus)
    while await dispatcher.send_some():
        pass
    assert "r2" in [fact.report.id for fact in await stored(memory_bus, s.REPORTS_READY)]
    assert await stored(memory_bus, s.CHANGES_REQUESTED) == []
    (line,) = [line for line in await gateway.timeline("r1") if line.kind == "not_published"]
    assert "could not be sent" in line.reason
    await gateway.check_timeline("r1")
