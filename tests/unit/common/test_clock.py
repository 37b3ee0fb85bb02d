"""A clock that moves only when it is told."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from loopwright_common.testing.clock import FakeClock


async def test_sleepers_wake_when_their_time_has_come_and_not_before(fake_clock: FakeClock) -> None:
    woken: list[int] = []

    async def sleeper(seconds: int) -> None:
        await fake_clock.sleep(timedelta(seconds=seconds))
        woken.append(seconds)

    tasks = [asyncio.create_task(sleeper(seconds)) for seconds in (5, 10)]
    await asyncio.sleep(0)
    for step, expected in ((4, []), (1, [5]), (4, [5]), (1, [5, 10])):
        fake_clock.advance(seconds=step)
        await asyncio.sleep(0.01)
        assert woken == expected
    await asyncio.gather(*tasks)


def test_time_does_not_go_back(fake_clock: FakeClock) -> None:
    with pytest.raises(ValueError, match="forward"):
        fake_clock.advance(seconds=-1)
