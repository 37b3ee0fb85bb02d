"""Grouping, killed at every effect, cut anywhere and delivered again: every signal is counted once, in one report for each fingerprint."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loopwright_common.contracts.signals import Signal

from tests.sim.conftest import Fuse, World, crash

NewWorld = Callable[[], Awaitable[World]]
PLACES = ("checkout", "search", "basket", "login")


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


def story(seed: int, count: int = 12) -> list[Signal]:
    """Crashes of a few places in two projects, mixed."""
    rng = random.Random(seed)
    return [crash(number, rng.choice(PLACES), rng.choice(("shop", "bank"))) for number in range(count)]


async def play(world: World, signals: list[Signal], fuse: Fuse, *, batch_max: int, standby: bool) -> None:
    """A first process with a fuse, and another one beside it or after it."""
    await world.publish(signals[: len(signals) // 2])
    first = await world.start(fuse, batch_max)
    buses = [first]
    if standby:
        buses.append(await world.start(Fuse(), batch_max))
    await world.publish(signals[len(signals) // 2 :])
    await world.settle(signals, None if standby else fuse)
    if fuse.blown.is_set() and not standby:
        await world.end(first)
        buses.append(await world.start(Fuse(), batch_max))
        await world.settle(signals)
    for bus in buses:
        await world.end(bus)


@pytest.mark.parametrize("standby", [False, True], ids=["restarted", "standby"])
async def test_killed_at_any_effect_no_signal_is_lost_or_counted_twice(new_world: NewWorld, standby: bool) -> None:
    signals = story(7)
    calm = Fuse()
    world = await new_world()
    await play(world, signals, calm, batch_max=4, standby=False)
    expected = world.reports()
    world.check(signals)
    assert calm.count > len(signals)
    for after in (False, True):
        # With a standby every second effect will do: it is the same process that dies, and the machine has other tests to run.
        for at in range(1 + (standby and after), calm.count + 1, 1 + standby):
            world, fuse = await new_world(), Fuse(at, after=after)
            await play(world, signals, fuse, batch_max=4, standby=standby)
            world.check(signals)
            assert world.reports() == expected, f"killed at {at} of {calm.count}, after={after}, standby={standby}"
            if not standby:
                assert fuse.blown.is_set() or at > calm.count - 2


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), batch_max=st.integers(1, 9), again=st.sets(st.integers(0, 11)))
async def test_batch_boundaries_and_redelivery_change_nothing(new_world: NewWorld, seed: int, batch_max: int, again: set[int]) -> None:
    signals = story(seed)
    whole, cut = await new_world(), await new_world()
    await play(whole, signals, Fuse(), batch_max=100, standby=False)
    await play(cut, signals, Fuse(), batch_max=batch_max, standby=True)
    cut.broker._ids.clear()  # as after the ten minutes that message ids are remembered
    await cut.publish([signals[number] for number in sorted(again)])
    bus = await cut.start(Fuse(), batch_max)
    async with asyncio.timeout(10):
        await bus.idle()
    await cut.end(bus)

    cut.check(signals)
    assert cut.reports() == whole.reports()
    assert await cut.index.count() == await whole.index.count()
