import importlib.util
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from loopwright_cluster.adjudication import Question
from loopwright_cluster.domain import Exemplar

from bench.grouping import Knows
from bench.training import baseline
from bench.training.__main__ import FALSE_MERGES_SHARE, thresholds

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


def test_joining_stays_below_its_share_of_the_baselines_false_merges_even_where_more_would_have_a_better_f1():
    probability = np.linspace(0.9, 0.1, 100)
    right = np.array([True, False, True, False] + [True] * 20 + [False] * 76)
    known = right.copy()
    lists = SimpleNamespace(rows=np.arange(100), known=known)
    new = int((~known).sum())
    strict = thresholds(probability, right, lists, 1.5 / new / FALSE_MERGES_SHARE)
    loose = thresholds(probability, right, lists, 2.5 / new / FALSE_MERGES_SHARE)
    assert strict["join"]["held_out_false_merges"] == pytest.approx(1 / new, abs=1e-4)
    assert loose["join"]["held_out_attach_f1"] > strict["join"]["held_out_attach_f1"]
    assert strict["join"]["from"] >= strict["ask"]["from"] >= strict["suggest"]["from"]


async def test_the_perfect_adjudicator_names_the_candidate_with_the_same_label_or_none():
    def exemplar(row):
        return Exemplar("bench", f"fp{row}", "", f"row-{row}", "issue", "", 0.0, "", "")

    knows = Knows([{"group": group} for group in "abac"])
    questions = [Question(exemplar(2), (exemplar(1), exemplar(0))), Question(exemplar(3), (exemplar(1),))]
    assert await knows.choose(questions) == [2, 0]
    assert knows.asked == [2, 3]
