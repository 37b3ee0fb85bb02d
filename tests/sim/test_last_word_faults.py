"""People's words, killed at every effect and delivered again: each ends in the same state and is told of in the same way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
import structlog
from loopwright_cluster.handlers import report_id_for
from loopwright_common.bus import Outgoing
from loopwright_common.contracts.queries import GroupCommand
from loopwright_common.contracts.subjects import COMMANDS_GROUPS, GROUPS_REGROUPED
from loopwright_common.identifiers import derived_id
from loopwright_common.testing.memory_bus import MemoryBus

from tests.sim.conftest import Fuse, World, crash

NewWorld = Callable[[], Awaitable[World]]
PLACES = ("checkout", "search", "basket", "login")
OPENED = [report_id_for(crash(number, place)) for number, place in enumerate(PLACES)]


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


def words(fingerprints: list[str]) -> list[dict[str, Any]]:
    """One of each, and what takes it back; the last refused."""
    a, b, c, d = OPENED
    _, second, third, fourth = fingerprints
    split = derived_id("split", "shop", "split")
    return [
        {"command_id": "merge", "action": "merge", "report_id": a, "other_report_id": b},
        {"command_id": "split", "action": "split", "report_id": a, "fingerprints": (second,)},
        {"command_id": "move", "action": "move", "report_id": c, "other_report_id": a, "fingerprints": (third, fourth)},
        {"command_id": "never", "action": "never_together", "report_id": a, "other_report_id": d},
        {"command_id": "unsplit", "action": "undo", "report_id": split, "undoes": "split"},
        {"command_id": "unmerge", "action": "undo", "report_id": a, "undoes": "merge"},
        {"command_id": "refused", "action": "merge", "report_id": a, "other_report_id": d},
    ]


def facts(world: World) -> list[Any]:
    found: Any = MemoryBus("test", broker=world.broker).published(GROUPS_REGROUPED)
    return found  # type: ignore[no-any-return]


async def say(world: World, said: list[dict[str, Any]]) -> None:
    gateway = MemoryBus("gateway", broker=world.broker)
    for fields in said:
        command = GroupCommand(project="shop", actor="person:alice", at=world.clock.now(), **fields)
        await gateway.publish(Outgoing(COMMANDS_GROUPS, command, command.command_id, {"project": "shop"}))


async def obeyed(world: World, count: int, fuse: Fuse) -> None:
    """Lets time pass until every word has been told of, or the process is dead. Raises TimeoutError."""
    async with asyncio.timeout(30):
        while len({fact.command_id for fact in facts(world)}) < count and not fuse.blown.is_set():
            await asyncio.sleep(0.001)
            world.clock.advance(timedelta(seconds=1))


async def play(world: World, fuse: Fuse) -> dict[str, Any]:
    """Words while signals come in, on a process with a fuse and on the one after it. Returns what is to be the same however it went."""
    first = [crash(number, place) for number, place in enumerate(PLACES)]
    await world.publish(first)
    calm = await world.start(Fuse(), 4)
    await world.settle(first)
    await world.end(calm)
    fingerprints = [fact.decision.fingerprint for fact in sorted(world.told(), key=lambda fact: fact.signal.id)]
    said = words(fingerprints)

    meanwhile = [crash(number, PLACES[number % 4]) for number in range(4, 16)]
    await say(world, said)
    await world.publish(meanwhile)
    last = [crash(number, PLACES[number % 4]) for number in range(16, 20)]
    process = await world.start(fuse, 4)
    await obeyed(world, len(said), fuse)
    await world.settle(meanwhile, fuse)
    dead = fuse.blown.is_set()
    if not dead:
        await world.publish(last)
        await world.settle(last, fuse)
    if fuse.blown.is_set():
        await world.end(process)
        process = await world.start(Fuse(), 4)
        await obeyed(world, len(said), Fuse())
        await world.settle(meanwhile)
    if dead:
        await world.publish(last)
    await world.settle(last)
    await world.end(process)

    told = facts(world)
    assert len({fact.model_dump_json() for fact in told}) == len(said), "a word was told of in two ways"
    done = {fact.command_id: fact for fact in told}
    for fact in world.told():
        # What was taken away is told of in the place it left only until the moment that the word names.
        moved = done["move"]
        if fact.decision.fingerprint in moved.fingerprints and fact.report_id == moved.from_report_id:
            assert fact.decided_at <= moved.at
    reports = world.reports()
    return {
        "told": [(fact.command_id, fact.model_dump(exclude={"at"})) for fact in sorted(told, key=lambda fact: fact.command_id)],
        "places": [reports["shop", signal.id] for signal in last],
        "index": {item.fingerprint: item.report_id for item in await world.index.exemplars("shop", 100)},
    }


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_killed_at_any_effect_every_word_ends_in_the_same_state_and_the_same_fact(new_world: NewWorld, after: bool) -> None:
    calm = Fuse()
    expected = await play(await new_world(), calm)
    a, b, _, d = OPENED
    assert expected["places"] == [a, b, a, d]  # the fourth was not in the report that the move left
    assert dict(expected["told"])["refused"]["refused"]
    assert calm.count > 60
    for at in range(1, calm.count + 1):
        fuse = Fuse(at, after=after)
        found = await play(await new_world(), fuse)
        assert found == expected, f"killed at {at} of {calm.count}, after={after}"
