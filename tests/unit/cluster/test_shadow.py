"""What the version in shadow decided, kept: over restarts, from any replica, and never in a signal's way."""

from dataclasses import replace
from datetime import timedelta

import pytest
from loopwright_cluster.comparison import DIFFERENCES_MAX, Compared, Difference
from loopwright_cluster.comparison_records import SHADOW_BUCKET, ComparisonRecords
from loopwright_cluster.domain import Decision, Exemplar, Outcome
from loopwright_cluster.judging import Judging
from loopwright_cluster.shadow import Shadow
from loopwright_common.bus import Conflict
from loopwright_common.contracts.queries import ShadowQuery
from loopwright_common.testing.memory_bus import MemoryBus

from tests.unit.cluster.people import speaking_flow, stream

ASKED = ShadowQuery(project="shop")


def difference(number, at):
    newcomer = Exemplar(
        project="shop",
        fingerprint=f"f{number}",
        report_id="",
        signal_id=f"s{number}",
        kind="ticket",
        service="",
        occurred_at=0.0,
        title="t" * 600,
        text="",
    )
    return Difference(newcomer, Decision(Outcome.OPEN, None, "none near"), Decision(Outcome.JOIN, "r1", "x" * 3_000), at)  # fmt: skip


@pytest.fixture
async def kept(fake_clock):
    return await ComparisonRecords.open(MemoryBus("cluster"), fake_clock, "v2", "v1")


async def test_what_was_compared_is_told_after_a_restart_and_by_another_replica(tmp_path):
    signals, _ = stream(1, 140)
    flow = await speaking_flow(tmp_path / "index", Judging(shadow="v1"))
    await flow.take(*signals)
    told = await Shadow("v2", flow.records, flow.clock, flow.compared).answer(ASKED)
    assert told.differed == len(told.differences) > 0

    flow.judging = Judging(shadow="v1")  # nothing of the process is left
    await flow.restart()
    other = await ComparisonRecords.open(flow.bus, flow.clock, "v2", "v1")
    assert await Shadow("v2", flow.records, flow.clock, other).answer(ASKED) == told
    await flow.words.stop()


async def test_a_batch_that_failed_and_comes_again_is_counted_once(tmp_path, monkeypatch):
    signals, _ = stream(1, 140)
    flow = await speaking_flow(tmp_path / "index", Judging(shadow="v1"))
    publish = flow.bus.publish_batch

    async def lose(messages):
        monkeypatch.setattr(flow.bus, "publish_batch", publish)
        raise Conflict("another replica wrote meanwhile")

    monkeypatch.setattr(flow.bus, "publish_batch", lose)
    with pytest.raises(Conflict):
        await flow.take(*signals[:20])
    await flow.take(*signals[:20])
    found = await flow.compared.of("shop")
    assert found.agreed + found.differed == sum(1 for fact in flow.facts() if fact.decision.rule in ("new", "similarity")) > 0
    await flow.words.stop()


async def test_counts_add_up_and_the_newest_differences_are_kept(kept, fake_clock):
    since = (await kept.of("shop")).since
    for number in range(DIFFERENCES_MAX + 20):
        fake_clock.advance(timedelta(seconds=1))
        await kept.add("shop", Compared(2, 1, (difference(number, fake_clock.now()),)))
    found = await kept.of("shop")
    assert (found.agreed, found.differed) == (2 * (DIFFERENCES_MAX + 20), DIFFERENCES_MAX + 20)
    assert [item.signal_id for item in found.differences] == [f"s{number}" for number in range(DIFFERENCES_MAX + 19, 19, -1)]
    assert since <= found.since < found.differences[-1].at

    await kept.add("shop", Compared(0, 1, (difference(50, fake_clock.now()),)))
    told = [item.signal_id for item in (await kept.of("shop")).differences]
    assert told.count("s50") == 1


async def test_what_is_kept_of_a_hundred_hostile_differences_fits_into_a_message(kept, fake_clock):
    hostile = difference(0, fake_clock.now())
    long = replace(hostile.decided, reason="\U0001f4a5" * 2_048)
    differences = tuple(
        Difference(replace(hostile.newcomer, signal_id=f"s{number}", title="\U0001f4a5" * 512), long, long, hostile.at)
        for number in range(DIFFERENCES_MAX)
    )
    await kept.add("shop", Compared(0, DIFFERENCES_MAX, differences))
    entry = await kept._store.get("shop")
    assert len((await kept.of("shop")).differences) == DIFFERENCES_MAX
    assert len(entry.value) < 2**20 * 0.75


async def test_two_replicas_that_write_at_once_both_count(kept, fake_clock, monkeypatch):
    other = ComparisonRecords(kept._store, fake_clock, "v2", "v1")
    get = kept._store.get

    async def overtaken(key):
        entry = await get(key)
        monkeypatch.setattr(kept._store, "get", get)
        await other.add("shop", Compared(agreed=5))
        return entry

    monkeypatch.setattr(kept._store, "get", overtaken)
    await kept.add("shop", Compared(agreed=3))
    assert (await kept.of("shop")).agreed == 8


async def test_other_versions_begin_anew_and_what_cannot_be_read_too(kept, fake_clock):
    await kept.add("shop", Compared(agreed=3))
    turned = ComparisonRecords(kept._store, fake_clock, "v1", "v2")
    assert (await turned.of("shop")).agreed == 0
    await turned.add("shop", Compared(agreed=1))
    assert (await kept.of("shop")).agreed == 0  # the newest pair of versions is the one that is kept

    await kept._store.put("shop", b"{")
    await kept.add("shop", Compared(agreed=2))
    assert (await kept.of("shop")).agreed == 2


async def test_a_bus_that_is_away_holds_no_signal_up(kept, fake_clock):
    bus = MemoryBus("cluster")
    records = ComparisonRecords(await bus.key_value(SHADOW_BUCKET), fake_clock, "v2", "v1")
    bus.broker.available = False
    await records.add("shop", Compared(agreed=1))
