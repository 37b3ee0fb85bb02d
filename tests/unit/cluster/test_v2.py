from dataclasses import replace

import numpy as np
import pytest
from loopwright_cluster.domain import Exemplar, Match, Outcome
from loopwright_cluster.grouping import v2
from loopwright_cluster.grouping.features import FEATURES, Text, compare, crowding_of
from loopwright_cluster.grouping.lexicon import Lexicon, Rarity, query_by_all, stored_vector
from loopwright_cluster.grouping.matcher import fitted
from loopwright_cluster.grouping.v1 import Surroundings
from loopwright_cluster.grouping.wording import read

TOPICS = (
    "billing page",
    "login form",
    "export of invoices",
    "search box",
    "dark theme",
    "upload of pictures",
    "mail digest",
    "time zone menu",
)


def issue(name, title, body="", *, report=None, at=0.0, **fields):
    return Exemplar(
        project="shop", fingerprint=f"fp-{name}", report_id=report or f"r-{name}", signal_id=f"s-{name}", kind="issue", service="",
        occurred_at=at, title=title, text=title, body=body, **fields,
    )  # fmt: skip


@pytest.fixture
def past():
    """Forty texts about different things, and the rarities they teach."""
    texts = [
        issue(f"p{n}", f"The {TOPICS[n % 8]} is slow on page {n}", f"It takes long to open item {n} there, please improve it.")
        for n in range(40)
    ]
    lexicon = Lexicon()
    for text in texts:
        lexicon.add(read(text.title, text.body))
    return texts, Rarity(lexicon)


def judged(newcomer, past, *pairs):
    texts, rarity = past
    matches = [Match(item, cosine) for item, cosine in pairs] + [Match(item, 0.2) for item in texts[:20]]
    return v2.judge(newcomer, Surroundings([]), v2.Hearing(matches, rarity))


CRASH = (
    "Assertion `frobnicator_depth > 0` failed in resolve_cycle\n"
    "```\nresolve_cycle::<Widget>(frobnicator_depth)\nthread panicked at widget.rs\n```"
)


def test_two_people_who_name_the_same_rare_things_meet(past):
    earlier = issue("old", "resolve_cycle panics with frobnicator_depth 0", CRASH)
    found = judged(issue("new", "frobnicator_depth assertion in resolve_cycle", CRASH, at=86_400.0), past, (earlier, 0.93))
    assert found.ranked[0].report_id == "r-old"
    assert found.decision.outcome is Outcome.JOIN
    assert "same problem" in found.decision.reason
    assert found.probability >= fitted().thresholds.join


def test_reports_about_the_same_part_of_a_product_stay_apart(past):
    found = judged(issue("new", "The search box forgets what I typed", "After a reload the field is empty."), past)
    assert found.decision.outcome is Outcome.OPEN
    assert found.decision.report_id is None


def test_what_is_nearer_to_everything_than_to_the_newcomer_says_less():
    hub, *others = np.eye(5, dtype=np.float32)
    hub = (hub + 2 * sum(others)).astype(np.float32)
    vectors = np.stack([hub / np.linalg.norm(hub), *others])
    crowding = crowding_of(vectors)
    assert crowding[0] > max(crowding[1:]) > 0.0
    assert crowding_of(vectors[::-1]) == crowding[::-1]
    assert crowding_of(vectors[:1]) == [0.0]
    expected = [np.mean([one @ other for at, other in enumerate(vectors) if at != own]) for own, one in enumerate(vectors)]
    assert crowding == pytest.approx(expected, abs=1e-4)


def test_joining_may_be_made_stricter_or_looser_than_as_fitted(past):
    earlier = issue("old", "resolve_cycle panics with frobnicator_depth 0", CRASH)
    newcomer = issue("new", "frobnicator_depth assertion in resolve_cycle", CRASH, at=86_400.0)
    probability = judged(newcomer, past, (earlier, 0.93)).probability
    texts, rarity = past
    hearing = v2.Hearing([Match(earlier, 0.93), *(Match(item, 0.2) for item in texts[:20])], rarity)
    for threshold, outcome in ((probability + 1e-6, Outcome.OPEN), (probability - 1e-6, Outcome.JOIN)):
        found = v2.judge(newcomer, Surroundings([]), hearing, fitted().joining_from(threshold))
        assert found.decision.outcome is outcome
        assert found.ranked[0].report_id == "r-old"
    bars = fitted().joining_from(0.001).thresholds
    assert bars.join == bars.ask == bars.suggest == 0.001


def test_a_decision_does_not_depend_on_the_order_of_its_candidates(past):
    texts, rarity = past
    newcomer = issue("new", "The dark theme is slow on my page", "It takes long to open.")
    matches = [Match(item, 0.3 + 0.01 * at) for at, item in enumerate(texts)]
    one = v2.judge(newcomer, Surroundings([]), v2.Hearing(matches, rarity))
    assert v2.judge(newcomer, Surroundings([]), v2.Hearing(matches[::-1], rarity)).probability == pytest.approx(one.probability)


def test_probabilities_of_a_texts_candidates_fall_and_are_probabilities(past):
    found = judged(issue("new", "The upload of pictures is slow", "on page 13"), past)
    scores = [item.score for item in found.ranked]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)


def test_a_young_project_is_grouped_by_the_rules_of_version_1():
    found = v2.judge(issue("new", "x"), Surroundings([]), v2.Hearing([Match(issue("old", "x"), 0.99)], Rarity(Lexicon())))
    assert found.decision.outcome is Outcome.OPEN
    assert found.ranked == ()


def test_a_report_of_another_service_is_no_candidate(past):
    earlier = replace(issue("old", "resolve_cycle panics with frobnicator_depth 0", CRASH), service="bank")
    newcomer = replace(issue("new", "resolve_cycle panics with frobnicator_depth 0", CRASH), service="shop")
    assert all(item.report_id != "r-old" for item in judged(newcomer, past, (earlier, 0.99)).ranked)


def test_a_set_of_texts_compares_to_as_many_rows_of_finite_figures(past):
    texts, rarity = past
    sides = [Text(read(item.title, item.body), item.occurred_at) for item in (*texts[:5], issue("empty", ""))]
    rows = compare(sides[-1], sides, [0.0] * 6, [0.0] * 6, rarity)
    assert rows.shape == (6, len(FEATURES))
    assert np.isfinite(rows).all()
    assert np.isfinite(fitted().ranked(rows).probabilities).all()


def test_words_that_only_one_batch_has_seen_count_as_those_that_are_stored(past):
    _, rarity = past
    more = [read("quux overflows", "the quux"), read("quux again", "")]
    stored, pending = Lexicon(), Rarity(Lexicon(), more)
    for wording in more:
        stored.add(wording)
    assert Rarity(stored).of("quux") == pending.of("quux")
    assert rarity.of("quux") > rarity.of("slow")


def test_the_search_of_the_index_and_of_the_features_score_alike(past):
    texts, rarity = past
    new, old = read("The dark theme is slow", "really slow"), read(texts[4].title, texts[4].body)
    query, vector = query_by_all(new, rarity), stored_vector(old)
    score = sum(weight * vector.get(index, 0.0) for index, weight in query.items())
    assert score > 0
