import random

from loopwright_cluster.adjudication import RECENT_MIN, SAVED_MAX, Asking


def asked(probabilities, share=0.2):
    """Which of these reports a model may be asked about, in the order they come in."""
    asking, found = Asking(None, share=share), []
    for number, probability in enumerate(probabilities):
        asking.earn("shop")
        if probability and not asking.take("shop", probability):
            found.append(number)
    return found


def test_where_more_are_unsure_than_may_be_asked_about_the_likeliest_are():
    draw = random.Random(3)
    coming = [0.15 if number % 10 == 0 else draw.uniform(0.03, 0.06) for number in range(1_000)]
    likely = set(range(500, 1_000, 10))
    assert len(likely & set(asked(coming))) >= 0.9 * len(likely)  # first come, first asked would give them a fifth


def test_no_more_than_the_share_is_asked_about_beyond_what_was_saved():
    assert len(asked([0.1] * 1_000)) <= 0.2 * 1_000 + SAVED_MAX
    assert len(asked([number / 1_000 for number in range(1, 1_000)])) <= 0.2 * 1_000 + SAVED_MAX


def test_who_is_unsure_of_few_asks_about_all_of_them():
    coming = [0.05 if number % 10 == 0 else 0.0 for number in range(500)]
    assert asked(coming) == list(range(0, 500, 10))


def test_the_first_reports_of_a_project_are_compared_with_no_others():
    assert asked([0.05, 0.04, 0.03], share=1.0) == [0, 1, 2]
    assert RECENT_MIN > 3


def test_one_projects_reports_say_nothing_about_anothers():
    asking = Asking(None, share=0.2)
    for _ in range(100):
        asking.earn("shop")
        asking.take("shop", 0.9)
    asking.earn("bank")
    assert asking.take("bank", 0.03) == ""
