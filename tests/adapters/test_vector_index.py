"""One suite for both vector indexes: the embedded engine, and the server's client (through qdrant-client's local mode)."""

import random
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
from loopwright_cluster.adapters.qdrant_edge import IndexInUse, QdrantEdgeIndex
from loopwright_cluster.adapters.qdrant_server import QdrantServerIndex
from loopwright_cluster.domain import Exemplar
from loopwright_cluster.grouping.lexicon import term_index
from loopwright_cluster.ports import SPREAD_MAX, Hybrid, Where
from loopwright_common.errors import Unavailable
from qdrant_client import AsyncQdrantClient

DIMENSIONS = 8


def axis(*weights):
    row = np.zeros(DIMENSIONS, np.float32)
    row[: len(weights)] = weights
    return row / np.linalg.norm(row)


def exemplar(name, *, project="shop", report="r1", kind="exception", service="web", at=1_000.0, anchors=None):
    return Exemplar(
        project=project, fingerprint=f"fp-{name}", report_id=report, signal_id=f"s-{name}", kind=kind, service=service, occurred_at=at,
        title=f"title {name} \N{SNOWMAN}", text="text", release="1.0", environment="production", exception_type="KeyError", explicit=False,
        anchors=anchors or {"checkout": 1.0, "voucher": 0.5}, frames=("cart.py:total", "pricing.py:discount"),
    )  # fmt: skip


@pytest.fixture(params=["edge", "server"])
async def index(request, tmp_path):
    if request.param == "edge":
        opened = QdrantEdgeIndex(tmp_path / "vectors", DIMENSIONS)
    else:
        opened = await QdrantServerIndex.open(AsyncQdrantClient(location=":memory:"), "loopwright", DIMENSIONS)
    yield opened
    await opened.close()


async def test_the_nearest_exemplar_comes_first_and_comes_back_whole(index):
    near, far = exemplar("near"), exemplar("far")
    await index.upsert([far, near], np.stack([axis(0, 1), axis(1, 0.1)]))

    matches = await index.nearest("shop", axis(1), limit=5)

    assert [match.exemplar for match in matches] == [near, far]
    assert matches[0].similarity == pytest.approx(0.995, abs=1e-3)
    assert matches[1].similarity == pytest.approx(0.0, abs=1e-3)


async def test_an_empty_index_has_no_neighbours(index):
    assert await index.nearest("shop", axis(1), limit=5) == []
    assert await index.count() == 0


async def test_a_hybrid_search_finds_what_only_the_words_have_in_common_and_says_how_near_its_meaning_is(index):
    near = replace(exemplar("near"), title="nothing shared", body="")
    words = replace(exemplar("words"), title="the frobnicator stalls", body="when it rains")
    neither = replace(exemplar("neither"), title="quite another thing", body="")
    await index.upsert([near, words, neither], np.stack([axis(1), axis(0, 1), axis(0, 0, 1)]))
    query = Hybrid(axis(1, 0.1), ({term_index("frobnicator"): 3.0},))

    matches = await index.hybrid("shop", query, 1)

    assert [match.exemplar for match in matches] == [near, words]
    assert matches[1].similarity == pytest.approx(0.0995, abs=1e-3)


async def test_a_hybrid_search_keeps_within_its_project_and_bounds(index):
    there = replace(exemplar("a", kind="ticket"), title="frobnicator")
    other_kind = replace(exemplar("b", kind="alert"), title="frobnicator")
    other_project = replace(exemplar("c", project="bank", kind="ticket"), title="frobnicator")
    await index.upsert([there, other_kind, other_project], np.stack([axis(1)] * 3))

    matches = await index.hybrid("shop", Hybrid(axis(1), ({term_index("frobnicator"): 1.0}, {})), 10, Where(kind="ticket"))

    assert [match.exemplar for match in matches] == [there]


async def test_all_exemplars_of_a_project_can_be_read_back_to_a_limit(index):
    mine = [exemplar(f"m{number}") for number in range(5)]
    await index.upsert([*mine, exemplar("theirs", project="bank")], np.stack([axis(1)] * 6))

    assert sorted(item.fingerprint for item in await index.exemplars("shop", 100)) == [f"fp-m{number}" for number in range(5)]
    assert len(await index.exemplars("shop", 3)) == 3
    assert await index.exemplars("nowhere", 10) == []


async def test_one_project_never_sees_another(index):
    await index.upsert([exemplar("a"), exemplar("b", project="bank")], np.stack([axis(1), axis(1)]))

    assert [match.exemplar.project for match in await index.nearest("bank", axis(1), limit=5)] == ["bank"]
    assert await index.count("shop") == 1
    assert await index.count() == 2


async def test_the_limit_holds(index):
    items = [exemplar(str(number)) for number in range(7)]
    await index.upsert(items, np.stack([axis(1, number / 10) for number in range(7)]))

    matches = await index.nearest("shop", axis(1), limit=3)

    assert [match.exemplar.signal_id for match in matches] == ["s-0", "s-1", "s-2"]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (Where(report_id="r2"), {"s-b"}),
        (Where(kind="ticket"), {"s-c"}),
        (Where(service="search"), {"s-d"}),
        (Where(occurred_from=1_000.0, occurred_to=1_010.0), {"s-a", "s-b"}),
        (Where(occurred_from=5_000.0), {"s-c"}),
        (Where(report_id="r1", kind="exception", occurred_to=2_000.0), {"s-a", "s-d"}),
    ],
)
async def test_a_search_is_narrowed_by_report_kind_service_and_time(index, where, expected):
    items = [
        exemplar("a"), exemplar("b", report="r2", at=1_010.0), exemplar("c", kind="ticket", report="r3", at=5_000.0),
        exemplar("d", service="search", at=1_020.0),
    ]  # fmt: skip
    await index.upsert(items, np.stack([axis(1)] * 4))

    matches = await index.nearest("shop", axis(1), limit=10, where=where)

    assert {match.exemplar.signal_id for match in matches} == expected
    assert all(where.admits(match.exemplar) for match in matches)
    assert {item.signal_id for item in items if where.admits(item)} == expected


async def test_storing_the_same_fingerprint_again_replaces_its_point(index):
    await index.upsert([exemplar("a")], np.stack([axis(1)]))
    await index.upsert([exemplar("a", report="r9")], np.stack([axis(0, 1)]))

    (match,) = await index.nearest("shop", axis(0, 1), limit=5)

    assert match.exemplar.report_id == "r9"
    assert match.similarity == pytest.approx(1.0, abs=1e-3)
    assert await index.count() == 1


@pytest.mark.parametrize("seed", range(4))
async def test_a_spread_that_is_remembered_is_what_counting_would_say(tmp_path, seed):
    """Whatever is written, replaced, moved and assigned meanwhile, and after the folder was opened again."""
    rng = random.Random(seed)
    names = ["checkout", "voucher", "search", "cart", "rare"]
    points: dict[str, Exemplar] = {}
    index = QdrantEdgeIndex(tmp_path / "vectors", DIMENSIONS)
    for step in range(60):
        action = rng.choice(["write", "write", "write", "again", "assign", "move", "open", "ask"])
        known = sorted(points)
        if action == "write":
            some = [f"{step}-{number}" for number in range(rng.choice([1, 1, 12, 40]))]
            made = [
                exemplar(
                    name,
                    project=rng.choice(["shop", "bank"]),
                    report=f"r{rng.randrange(90)}",
                    anchors=dict.fromkeys(rng.sample(names, rng.randint(1, 3)), 1.0),
                )
                for name in some
            ]
        elif action == "again" and known:
            made = [replace(points[name], report_id=f"r{rng.randrange(90)}") for name in rng.sample(known, min(3, len(known)))]
        elif action == "assign" and known:
            made = []
            chosen = [replace(points[name], report_id="assigned") for name in rng.sample(known, min(4, len(known)))]
            await index.assign(chosen)
            points |= {item.signal_id: item for item in chosen}
        elif action == "move":
            made = []
            await index.move("shop", "r1", "r2")
            points = {
                name: replace(item, report_id="r2") if (item.project, item.report_id) == ("shop", "r1") else item
                for name, item in points.items()
            }
        else:
            made = []
            if action == "open":
                await index.close()
                index = QdrantEdgeIndex(tmp_path / "vectors", DIMENSIONS)
        if made:
            await index.upsert(made, np.stack([axis(1, rng.random()) for _ in made]))
            points |= {item.signal_id: item for item in made}
        for project in ("shop", "bank"):
            told = await index.spread(project, rng.sample(names, 3))
            for name, reports in told.items():
                right = {item.report_id for item in points.values() if item.project == project and name in item.anchors}
                assert reports == right if len(right) < SPREAD_MAX else len(reports) == SPREAD_MAX, (step, action, name)
                assert reports <= right
    await index.close()


async def test_spread_names_the_reports_that_speak_of_a_token(index):
    items = [
        exemplar("a", anchors={"checkout": 1.0}), exemplar("b", anchors={"checkout": 1.0}),
        exemplar("c", report="r2", anchors={"checkout": 1.0, "search": 1.0}), exemplar("d", project="bank", report="r3"),
    ]  # fmt: skip
    await index.upsert(items, np.stack([axis(1)] * 4))

    assert await index.spread("shop", ["checkout", "search", "absent"]) == {
        "checkout": frozenset({"r1", "r2"}), "search": frozenset({"r2"}), "absent": frozenset(),
    }  # fmt: skip


async def test_assigning_moves_a_point_to_another_report_and_leaves_its_vector(index):
    items = [exemplar("a"), exemplar("b")]
    await index.upsert(items, np.stack([axis(1), axis(0, 1)]))

    await index.assign([items[0].in_report("r2"), exemplar("unknown").in_report("r2")])

    matches = await index.nearest("shop", axis(1), limit=5)
    assert [(match.exemplar.signal_id, match.exemplar.report_id) for match in matches] == [("s-a", "r2"), ("s-b", "r1")]
    assert matches[0].similarity == pytest.approx(1.0, abs=1e-3)
    assert await index.count() == 2


async def test_moving_takes_all_points_of_a_report_to_another(index):
    items = [exemplar("a"), exemplar("b"), exemplar("c", report="r2"), exemplar("d", project="bank")]
    await index.upsert(items, np.stack([axis(1)] * 4))

    await index.move("shop", "r1", "r5")

    reports = {match.exemplar.signal_id: match.exemplar.report_id for match in await index.nearest("shop", axis(1), limit=5)}
    assert reports == {"s-a": "r5", "s-b": "r5", "s-c": "r2"}
    assert [match.exemplar.report_id for match in await index.nearest("bank", axis(1), limit=5)] == ["r1"]


async def test_missing_names_the_points_that_are_not_there(index):
    present, absent = exemplar("a"), exemplar("b")
    await index.upsert([present], np.stack([axis(1)]))

    assert await index.missing([present.point_id, absent.point_id]) == {absent.point_id}
    assert await index.missing([]) == set()


async def test_the_embedded_index_survives_a_restart(tmp_path):
    first = QdrantEdgeIndex(tmp_path / "vectors", DIMENSIONS)
    await first.upsert([exemplar("a")], np.stack([axis(1)]))
    await first.close()

    second = QdrantEdgeIndex(tmp_path / "vectors", DIMENSIONS)
    (match,) = await second.nearest("shop", axis(1), limit=5)
    await second.close()

    assert match.exemplar == exemplar("a")


def test_an_upsert_that_returned_survives_a_kill(tmp_path):
    script = textwrap.dedent(f"""
        import asyncio, os, numpy as np
        from pathlib import Path
        from loopwright_cluster.adapters.qdrant_edge import QdrantEdgeIndex
        from loopwright_cluster.domain import Exemplar
        async def main():
            index = QdrantEdgeIndex(Path({str(tmp_path / "vectors")!r}), {DIMENSIONS})
            item = Exemplar("shop", "fp", "r", "s", "log", "web", 1.0, "title", "text")
            await index.upsert([item], np.eye(1, {DIMENSIONS}, dtype=np.float32))
            os.kill(os.getpid(), 9)
        asyncio.run(main())
    """)
    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == -9

    async def count():
        index = QdrantEdgeIndex(tmp_path / "vectors", DIMENSIONS)
        try:
            return await index.count("shop")
        finally:
            await index.close()

    import asyncio

    assert asyncio.run(count()) == 1


async def test_a_second_process_is_refused_the_embedded_index(tmp_path):
    first = QdrantEdgeIndex(tmp_path / "vectors", DIMENSIONS)
    with pytest.raises(IndexInUse, match="open in another process"):
        QdrantEdgeIndex(tmp_path / "vectors", DIMENSIONS)
    await first.close()
    await QdrantEdgeIndex(tmp_path / "vectors", DIMENSIONS).close()


async def test_an_absent_server_is_unavailable_and_names_the_setting():
    client = AsyncQdrantClient(url="http://127.0.0.1:1", timeout=2, check_compatibility=False)
    with pytest.raises(Unavailable, match="LOOPWRIGHT_CLUSTER_QDRANT_URL"):
        await QdrantServerIndex.open(client, "loopwright", DIMENSIONS)
    await client.close()


async def test_an_unreadable_embedded_index_is_set_aside_and_made_anew(tmp_path):
    first = QdrantEdgeIndex(tmp_path / "vectors", DIMENSIONS)
    await first.upsert([exemplar("a")], np.stack([axis(1)]))
    await first.close()
    for path in (tmp_path / "vectors" / "shard-hybrid").rglob("*"):
        if path.is_file():
            path.write_bytes(b"\x00garbage")

    second = QdrantEdgeIndex(tmp_path / "vectors", DIMENSIONS)

    assert await second.count() == 0
    await second.upsert([exemplar("b")], np.stack([axis(1)]))
    assert await second.count() == 1
    await second.close()
    assert list((tmp_path / "vectors").glob("shard-hybrid.unreadable-*"))
