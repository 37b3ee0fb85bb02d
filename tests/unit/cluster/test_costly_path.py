"""The limit on new fingerprints per minute: beyond it signals are grouped by fingerprint alone, say so, and are counted."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from loopwright_cluster.costly import CostlyPath
from loopwright_cluster.embedding.hashing import HashingEmbedding
from loopwright_cluster.embedding.pool import EmbeddingPool
from prometheus_client import REGISTRY

START = datetime(2026, 11, 26, 10, tzinfo=UTC)


def counted():
    value = REGISTRY.get_sample_value("loopwright_cluster_fingerprints_degraded_total", {"reason": "new_fingerprints_per_minute"})
    return value or 0.0


@pytest.fixture
def problem(make_signal):
    def make(id, place):
        return make_signal(
            id, kind="exception", service="web", title=f"KeyError: in {place}", exception_type="KeyError", frames=[(f"{place}.py", place)]
        )

    return make


async def test_what_is_beyond_the_limit_opens_reports_by_fingerprint_alone_and_says_why(flow, problem):
    flow.new_per_minute = 2
    await flow.restart()
    before = counted()
    places = ["checkout", "search", "basket", "login", "parcels"]
    facts = await flow.take(*[problem(f"s{number}", place) for number, place in enumerate(places)])

    assert len({fact.report_id for fact in facts}) >= 4
    assert all("new_fingerprints_per_minute" in fact.decision.reason.lower() for fact in facts[2:])
    assert all(fact.decision.degraded and fact.decision.outcome == "opened" for fact in facts[2:])
    assert not any("per_minute" in fact.decision.reason.lower() for fact in facts[:2])
    assert counted() - before == 3
    assert await flow.index.count() == 2


async def test_what_was_degraded_is_known_from_then_on_and_again_the_same_when_delivered_again(flow, problem):
    flow.new_per_minute = 1
    await flow.restart()
    batch = [problem("s1", "checkout"), problem("s2", "search")]
    first = await flow.take(*batch)
    await flow.restart()
    assert await flow.take(*batch) == first
    (later,) = await flow.take(problem("s3", "search"))
    assert later.report_id == first[1].report_id
    assert later.decision.rule == "fingerprint"
    assert not later.decision.degraded


def test_each_project_has_its_own_minute():
    costly = CostlyPath(10)
    assert [costly.take("shop", 7, START), costly.take("shop", 7, START), costly.take("bank", 7, START)] == [7, 3, 7]
    assert costly.take("shop", 7, START + timedelta(seconds=59)) == 0
    assert costly.take("shop", 7, START + timedelta(seconds=60)) == 7


async def test_a_pool_gives_each_text_the_vector_that_one_encoder_gives(make_signal):
    texts = [f"text number {number}" for number in range(11)]
    pool = EmbeddingPool([HashingEmbedding() for _ in range(3)])
    alone = await HashingEmbedding().embed(texts)
    for _ in range(2):
        assert np.array_equal(await pool.embed(texts), alone)
    assert (await pool.embed([])).shape == (0, alone.shape[1])
    await pool.close()
