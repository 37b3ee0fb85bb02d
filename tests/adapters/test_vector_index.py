"""One suite for both vector indexes: the embedded engine, and the server's client (through qdrant-client's local mode)."""

import asyncio
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
from loopwright_cluster.ports import SPREAD_MAX, Hybrid, Near, Where
from loopwright_common.errors import Unavailable
from qdrant_client import AsyncQdrantClient

DIMENSIONS = 8


def axis(*weights, of=DIMENSIONS):
    row = np.zeros(of, np.float32)
    row[: len(weights)] = weights
    return row / np.linalg.norm(row)


def exemplar(name, *, project="shop", report="r1", kind="exception", service="web", at=1_000.0, anchors=None):
    return Exemplar(
        project=project, fingerprint=f"fp-{name}", report_id=report, signal_id=f"s-{name}", kind=kind, service=service, occurred_at=at,
        title=f"title {name} \N{SNOWMAN}", text="text", release="1.0", environment="production", exception_type="KeyError", explicit=False,
        anchors=anchors or {"checkout": 1.0, "voucher": 0.5}, frames=("cart.py:total", "pricing.py:discount"),
    )  # fmt: skip


NO_MEMORY = 0


class InMemory:
    """The embedded index, every search of it answered from memory."""

    def __init__(self, index):
        self._index = index

    def __getattr__(self, name):
        return getattr(self._index, name)

    async def search(self, project, vector, asked):
        assert await self._index.in_memory(project)
        return await self._index.search(project, vector, asked)

    async def nearest(self, project, vector, limit, where=Where()):  # noqa: B008 (frozen)
        assert await self._index.in_memory(project)
        return await self._index.nearest(project, vector, limit, where)

    async def hybrid(self, project, query, limit_each, where=Where()):  # noqa: B008 (frozen)
        assert await self._index.in_memory(project)
        return await self._index.hybrid(project, query, limit_each, where)


@pytest.fixture(params=["edge", "edge in memory", "server"])
async def index(request, tmp_path):
    if request.param == "edge":
        opened = QdrantEdgeIndex(tmp_path / "vectors", DIMENSIONS, memory_bytes_max=NO_MEMORY)
    elif request.param == "edge in memory":
        opened = InMemory(QdrantEdgeIndex(tmp_path / "vectors", DIMENSIONS))
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
    for match in matches:
        assert match.vector @ query.dense == pytest.approx(match.similarity, abs=2e-4)

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


async def test_several_searches_with_one_vector_are_answered_each_for_itself(index):
    items = [exemplar("a"), exemplar("b", report="r2"), exemplar("c", kind="ticket", report="r3")]
    await index.upsert(items, np.stack([axis(1), axis(1, 0.5), axis(1, 1)]))
    asked = [Near(2), Near(5, Where(kind="ticket")), Near(5, Where(report_id="nowhere")), Near(5, Where(report_id="r2"))]

    answers = await index.search("shop", axis(1), asked)

    assert [[match.exemplar.signal_id for match in matches] for matches in answers] == [["s-a", "s-b"], ["s-c"], [], ["s-b"]]
    assert answers[0] == await index.nearest("shop", axis(1), 2)
    assert await index.search("shop", axis(1), []) == []


async def test_what_is_foreseen_changes_no_answer(index):
    await index.upsert([exemplar("a"), exemplar("b", report="r2")], np.stack([axis(1), axis(1, 0.5)]))
    coming = np.stack([axis(1), axis(0, 1), axis(1, 1)])
    before = [await index.nearest("shop", vector, 5) for vector in coming]
    await index.foresee("shop", coming)
    await index.foresee("a project without points", coming)
    assert [await index.nearest("shop", vector, 5) for vector in coming] == before

    await index.upsert([exemplar("a"), exemplar("c")], np.stack([axis(0, 1), axis(1)]))
    nearest = [(await index.nearest("shop", vector, 1))[0].exemplar.signal_id for vector in coming]
    assert nearest[:2] == ["s-c", "s-a"]


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


WORDS = ("frobnicator", "checkout", "voucher", "gasket", "harbour", "lattice")


@pytest.mark.parametrize("seed", range(4))
async def test_what_is_in_memory_answers_as_the_engine_does(tmp_path, seed):
    """Whatever is written, replaced, moved and assigned meanwhile, while it is being read too, and after the folder was opened again."""
    rng, dimensions = np.random.default_rng(seed), 32
    index = QdrantEdgeIndex(tmp_path / "vectors", dimensions)
    names: list[str] = []
    reports, kinds, services = [f"r{number}" for number in range(12)], ["exception", "ticket", "alert"], ["web", "search", ""]

    def made(name):
        words = " ".join(rng.choice(WORDS, 3))
        return replace(
            exemplar(
                name,
                project=str(rng.choice(["shop", "bank"])) if name not in names else name.partition("-")[0],
                report=str(rng.choice(reports)),
                kind=str(rng.choice(kinds)),
                service=str(rng.choice(services)),
                at=float(rng.integers(0, 5_000)),
            ),
            title=words,
            body=words,
        )

    async def write(count, of_old=0):
        items = [made(str(name)) for name in rng.choice(names, min(of_old, len(names)), replace=False)] if of_old else []
        for _ in range(count):
            project = str(rng.choice(["shop", "bank"]))
            items.append(replace(made(f"{project}-{len(names)}"), project=project))
            names.append(f"{project}-{len(names)}")
        vectors = rng.standard_normal((len(items), dimensions)).astype(np.float32)
        await index.upsert(items, vectors)  # not of unit length: the engine makes them so
        return items

    stored = await write(250)
    for step in range(16):
        action = rng.choice(["write", "write", "again", "assign", "move", "open", "fail"])
        if action == "write":
            stored = await write(int(rng.integers(1, 40)))
        elif action == "again":
            stored = await write(1, of_old=5)
        elif action == "assign":
            await index.assign([item.in_report(str(rng.choice(reports))) for item in stored])
        elif action == "move":
            project, gone, stays = (str(rng.choice(choice)) for choice in (["shop", "bank"], reports, reports))
            await asyncio.gather(index.nearest(project, axis(1, of=dimensions), 1), index.move(project, gone, stays))
        elif action == "open":
            await index.close()
            index = QdrantEdgeIndex(tmp_path / "vectors", dimensions)
            # Begins to be read, with a write in the midst of it.
            await asyncio.gather(index.nearest("shop", axis(1, of=dimensions), 1), write(7), index.move("shop", "r1", "r2"))
        else:
            with pytest.raises(Exception, match=r"."):
                await index.upsert([exemplar("wrong", project="shop")], np.ones((1, dimensions + 1), np.float32))
        for project in ("shop", "bank"):
            await same_answers(index, project, rng, dimensions, (step, action))
    await index.close()


async def same_answers(index, project, rng, dimensions, told):
    """Asks the memory and the engine the same."""
    assert await index.in_memory(project), told
    everything = await index.exemplars(project, 10_000)
    assert await index.count(project) == len(everything), told
    asked = [Near(7), Near(11, Where(kind="ticket")), Near(4, Where(report_id="r2", kind="exception"))]
    asked += [Near(11, Where(service="web", occurred_from=1_000.0, occurred_to=3_000.0)), Near(10_000), Near(3, Where(service=""))]
    vector = rng.standard_normal(dimensions).astype(np.float32)
    by_memory, by_engine = await index.search(project, vector, asked), await index._search_engine(project, vector, asked)
    for near, mine, engines in zip(asked, by_memory, by_engine, strict=True):
        assert [match.exemplar for match in mine] == [match.exemplar for match in engines], (told, near)
        # The last bit of a sum may differ, so the last of the four figures may where it stands half-way.
        assert [match.similarity for match in mine] == pytest.approx([match.similarity for match in engines], abs=1.01e-4), (told, near)
    words = {term_index(str(word)): float(weight) for word, weight in zip(rng.choice(WORDS, 2), (1.5, 0.7), strict=True)}
    for query in (Hybrid(vector, (words, {})), Hybrid(vector, ())):
        mine, engines = await index.hybrid(project, query, 9), await index._hybrid_engine(project, query, 9)
        # Which of several points with the same words are among the first nine is the engine's choice, once and for all.
        assert [match.exemplar for match in mine] == [match.exemplar for match in engines], told


async def test_of_equally_near_ones_the_first_by_id_are_taken(tmp_path):
    index = QdrantEdgeIndex(tmp_path / "vectors", DIMENSIONS)
    items = [exemplar(str(number)) for number in range(30)]
    await index.upsert(items, np.stack([axis(1, 1)] * 30))
    await index.upsert([exemplar("nearest")], np.stack([axis(1)]))
    assert await index.in_memory("shop")

    matches = await index.nearest("shop", axis(1), 6)

    assert [match.exemplar.point_id for match in matches[1:]] == sorted(item.point_id for item in items)[:5]
    await index.close()


async def test_projects_beyond_the_memory_are_answered_by_the_engine_and_come_in_when_others_are_idle(tmp_path):
    clock = [0.0]
    # Room for about 300 points of 8 dimensions; each project has 200.
    room = 300 * (DIMENSIONS * 4 + 250) * 100 // 75
    index = QdrantEdgeIndex(tmp_path / "vectors", DIMENSIONS, memory_bytes_max=room, now=lambda: clock[0])
    for project in ("shop", "bank"):
        items = [exemplar(str(number), project=project) for number in range(200)]
        await index.upsert(items, np.stack([axis(1, number / 100) for number in range(200)]))

    assert await index.in_memory("shop")
    assert not await index.in_memory("bank")
    assert [match.exemplar.signal_id for match in await index.nearest("bank", axis(1), 2)] == ["s-0", "s-1"]
    assert await index.in_memory("shop")

    clock[0] += 1_000
    assert await index.in_memory("bank")
    assert not await index.in_memory("shop")
    assert [match.exemplar.signal_id for match in await index.nearest("shop", axis(1), 2)] == ["s-0", "s-1"]

    # One that outgrows the memory is let go, and answered all the same.
    more = [exemplar(f"more-{number}", project="bank") for number in range(200)]
    await index.upsert(more, np.stack([axis(1, 1 + number) for number in range(200)]))
    assert not await index.in_memory("bank")
    assert len(await index.nearest("bank", axis(1), 1_000)) == 400
    vectors, exemplars = index.remembered_bytes
    assert vectors + exemplars <= room
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


@pytest.mark.parametrize(("reports", "expected"), [(1, 1), (5, 5), (63, 63), (64, 64), (100, 64)])
@pytest.mark.parametrize("points", [40, 400])
async def test_a_common_name_is_counted_by_report_however_many_points_have_it(index, points, reports, expected):
    items = [exemplar(f"{number}", report=f"r{number % reports}", anchors={"checkout": 1.0}) for number in range(points)]
    await index.upsert(items, np.stack([axis(1)] * points))

    found = (await index.spread("shop", ["checkout"]))["checkout"]

    assert len(found) == min(expected, points)
    assert found <= {item.report_id for item in items}


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
