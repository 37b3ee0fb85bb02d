import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
from loopwright_cluster.adjudication import Question
from loopwright_cluster.domain import Exemplar

from bench.grouping import Knows
from bench.training import baseline, gitbugs
from bench.training.__main__ import BACKWARDS, FALSE_MERGES_MAX, Lists, _again, thresholds

SCORE = Path(os.environ.get("LOOPWRIGHT_BENCH_DATA", Path(__file__).parents[4] / "shared" / "data")) / "grouping" / "score.py"
SAID = ("cart total basket login form token invoice page upload picture", "digest mail colour search filter queue retry cache lock")
WORDS = " ".join(SAID).split()


def rows(count=1_200):
    """Made-up reports; every fifth tells of an earlier one in partly the same words."""
    rng = np.random.default_rng(7)
    found = []
    for number in range(count):
        again = number % 5 == 4
        group = f"g{number - 3}" if again else f"g{number}"
        said = found[number - 3]["text"].split()[:6] if again else []
        text = " ".join([*said, *rng.choice(WORDS, 8).tolist(), f"someWord_{rng.integers(200)}"])
        found.append({"id": f"i{number}", "title": " ".join(rng.choice(WORDS, 4)), "text": text, "group": group})
    return found


def test_the_baseline_has_the_figures_of_the_public_datas_own_script():
    if not SCORE.exists():
        pytest.skip(f"{SCORE} is not there")
    pytest.importorskip("sklearn", reason="the script needs scikit-learn, which the project does without")
    spec = importlib.util.spec_from_file_location("score", SCORE)
    score = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(score)
    made = rows()
    ours, scored = baseline.figures(made, made[:480], range(480, len(made))), range(480, len(made))
    theirs = score.run(made)["tfidf_nn"]
    assert tuple(theirs["mix"][:2]) == ours["mix"]
    assert theirs["threshold"] == ours["threshold"]
    assert ours["tuned"]["f1"] == pytest.approx(theirs["attach_F1"])
    assert ours["tuned"]["false_merges"] == pytest.approx(theirs["false_merge_rate"])
    assert ours["recall"][0] == pytest.approx(theirs["recall_at_1"])
    assert ours["best possible threshold"]["f1"] == pytest.approx(theirs["oracle_attach_F1"])
    assert len(scored) == theirs["n"]


def test_the_baseline_finds_the_text_that_shares_rare_words_and_looks_at_the_past_only():
    made = [{"title": title, "text": ""} for title in ("login form", "frobnicator overflow", "login page", "overflow of frobnicator")]
    found = baseline.nearest(made, (3, 1))
    assert found.rows[3, 0] == 1
    assert all(row < number for number, best in enumerate(found.rows) for row in best)
    assert found.joined(0.5) == [0, 1, 2, 1]


def test_a_join_counts_as_right_only_in_the_report_that_mostly_holds_its_problem():
    found = baseline.attach(["a", "b", "a", "a", "c"], [0, 1, 0, 1, 0], range(5))
    assert (found["joins"], found["needed"]) == (3, 2)
    assert found["precision"] == pytest.approx(1 / 3)
    assert found["recall"] == pytest.approx(1 / 2)
    assert found["false_merges"] == pytest.approx(1 / 3)


def test_joining_stays_below_its_share_of_false_merges_even_where_more_would_have_a_better_f1():
    count = 400
    probability = np.linspace(0.9, 0.1, count)
    right = np.zeros(count, bool)
    right[:60:2] = True  # every other one, while those between are new problems
    right[60:80] = True  # beyond the limit it would go well again
    known = right.copy()
    new = int((~known).sum())
    bars = thresholds(probability, right, known, int(known.sum()), asked=0.5)
    f1_of_all = 2 * 50 / (80 + 50)
    assert 0.5 * FALSE_MERGES_MAX < bars["join"]["held_out_false_merges"] <= FALSE_MERGES_MAX < 30 / new
    assert bars["join"]["held_out_attach_f1"] < f1_of_all
    assert bars["join"]["from"] >= bars["ask"]["from"] >= bars["suggest"]["from"]


def test_what_is_learned_from_backwards_says_nothing_of_the_reports_that_are_held_out():
    labels = ["a", "b", "a", "c", "d", "b", "e", "f", "g", "h"]
    lists = Lists()
    lists.fold = np.array([1, 2, BACKWARDS, BACKWARDS])
    lists.kept_from = [{1}, {2}, {1}, set()]
    lists.parts = [slice(0, 1)] * 4
    assert _again(labels) == {2, 5}
    assert lists.outside(1) == [1, 3]
    assert lists.outside(2) == [0, 2, 3]


def test_a_project_of_gitbugs_is_read_in_time_order_with_its_chains_of_duplicates_as_groups(tmp_path):
    reports = [
        'later,3,30/Sep/21 17:20,"two\nlines"', "first,1,01/Jan/20 02:52,", "between,2,2020-05-01 10:00:00+00:00,words",
        "alone,4,2022-01-01 00:00:00,x",
    ]  # fmt: skip
    (tmp_path / "X_bugs.csv").write_text("\n".join(["Summary,Issue id,Created,Description", *reports, ""]))
    (tmp_path / "X_bugs-combined.csv").write_text("Issue id,Duplicate id\n3,2\n1,2\n4,99\n")
    found = gitbugs.load(tmp_path)
    assert [(row["id"], row["timestamp"]) for row in found] == [
        ("1", "2020-01-01T02:52:00Z"), ("2", "2020-05-01T10:00:00Z"), ("3", "2021-09-30T17:20:00Z"), ("4", "2022-01-01T00:00:00Z"),
    ]  # fmt: skip
    assert len({row["group"] for row in found[:3]}) == 1
    assert found[3]["group"] == "4"
    assert (found[0]["text"], found[2]["text"]) == ("", "two\nlines")
    with pytest.raises(FileNotFoundError, match="unpack"):
        gitbugs.load(tmp_path.parent)


async def test_the_perfect_adjudicator_names_the_candidate_with_the_same_label_or_none():
    def exemplar(row):
        return Exemplar("bench", f"fp{row}", "", f"row-{row}", "issue", "", 0.0, "", "")

    knows = Knows([{"group": group} for group in "abac"])
    questions = [Question(exemplar(2), (exemplar(1), exemplar(0))), Question(exemplar(3), (exemplar(1),))]
    assert await knows.choose(questions) == [2, 0]
    assert knows.asked == [2, 3]
