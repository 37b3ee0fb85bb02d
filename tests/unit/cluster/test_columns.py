"""Points as columns: what a search within bounds finds is what looking at each point finds, whatever was written over or moved."""

import random

import numpy as np
import pytest
from loopwright_cluster.columns import Columns, unit
from loopwright_cluster.ports import ANYWHERE, Where

REPORTS, KINDS, SERVICES = ["r1", "r2", "r3"], ["exception", "ticket"], ["web", "pay"]


def by_hand(points, vector, limit, where):
    """The ids of the nearest ones, by looking at each."""
    fits = [
        (-float(np.vecdot(unit(row), unit(vector))), id)
        for id, (report, kind, service, at, row) in points.items()
        if where.report_id in (None, report)
        and where.kind in (None, kind)
        and where.service in (None, service)
        and (where.occurred_from is None or at >= where.occurred_from)
        and (where.occurred_to is None or at <= where.occurred_to)
    ]
    return [id for _, id in sorted(fits)[:limit]]


@pytest.mark.parametrize("head", [256, 8])
@pytest.mark.parametrize("seed", range(8))
def test_what_is_found_is_what_looking_at_each_point_finds(monkeypatch, seed, head):
    monkeypatch.setattr("loopwright_cluster.columns.HEAD_ROWS", head)
    rng = random.Random(seed)
    numbers = np.random.default_rng(seed)
    columns, points = Columns(4), {}
    for _ in range(400):
        step = rng.random()
        if step < 0.7 or not points:
            id = f"p{rng.randint(0, 150)}"
            row = unit(numbers.integers(-2, 3, 4).astype(np.float32) + np.float32(0.25))  # equal ones among them
            point = (rng.choice(REPORTS), rng.choice(KINDS), rng.choice(SERVICES), float(rng.randint(0, 100)), row)
            columns.write(id, *point)
            points[id] = point
        elif step < 0.85:
            id, report = rng.choice(list(points)), rng.choice(REPORTS)
            columns.assign(id, report)
            points[id] = (report, *points[id][1:])
        else:
            gone, stays = rng.sample([*REPORTS, "r4"], 2)
            columns.move(gone, stays)
            points = {id: (stays if point[0] == gone else point[0], *point[1:]) for id, point in points.items()}

        where = rng.choice(
            [
                ANYWHERE,
                Where(report_id=rng.choice([*REPORTS, "r4", "never heard of"]), kind=rng.choice([None, *KINDS])),
                Where(service=rng.choice(SERVICES), occurred_from=20.0, occurred_to=80.0),
                Where(report_id=rng.choice(REPORTS), service="web", occurred_from=50.0),
                Where(kind="ticket", occurred_to=50.0),
            ]
        )
        vector = unit(numbers.standard_normal(4).astype(np.float32))
        scores = columns.scores(vector)
        for limit in (5, 2):
            assert [columns.ids[row] for row in columns.best(scores, limit, where)] == by_hand(points, vector, limit, where)


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 4_096, 4_161])
def test_what_was_foreseen_is_what_each_scan_finds_to_the_last_bit(count):
    numbers = np.random.default_rng(count)
    stored = unit(numbers.standard_normal((count + 1, 48)).astype(np.float32))
    asked = unit(numbers.standard_normal((8, 48)).astype(np.float32))
    alone, together = Columns(48), Columns(48)
    for number in range(count):
        for columns in (alone, together):
            columns.write(f"p{number}", "r1", "ticket", "web", 0.0, stored[number])
    together.foresee(asked)
    for columns in (alone, together):  # one more since: its product is added
        columns.write("last", "r1", "ticket", "web", 0.0, stored[count])

    for vector in asked:
        assert together.scores(vector).tobytes() == alone.scores(vector).tobytes()


def test_what_was_foreseen_of_a_point_that_was_written_over_is_forgotten():
    one, other = np.array([1.0, 0.0], np.float32), np.array([0.0, 1.0], np.float32)
    columns = Columns(2)
    columns.write("p1", "r1", "ticket", "web", 0.0, one)
    columns.foresee(np.stack([one, other]))
    columns.write("p1", "r1", "ticket", "web", 0.0, other)

    assert columns.scores(one).tolist() == [0.0]
    assert columns.scores(other).tolist() == [1.0]


def test_scores_of_before_a_point_was_written_do_not_find_it():
    columns = Columns(2)
    one = np.array([1.0, 0.0], np.float32)
    columns.write("p1", "r1", "ticket", "web", 0.0, one)
    before = columns.scores(one)
    columns.write("p2", "r1", "ticket", "web", 0.0, one)

    assert columns.best(before, 5, Where(report_id="r1")) == [0]
    assert columns.best(columns.scores(one), 5, Where(report_id="r1")) == [0, 1]
