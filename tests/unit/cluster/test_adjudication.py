"""Who is asked about what is unsure: together, within the budget, remembered, and checked."""

import asyncio

import pytest
from loopwright_cluster.adjudication import CHARS_PER_CALL_MAX, NEWCOMERS_PER_CALL_MAX, Asking, Inquiry
from loopwright_cluster.domain import Candidate, Exemplar, Match
from loopwright_common.errors import Refused, Unavailable


def text(name, *, project="shop", kind="issue", body=""):
    return Exemplar(
        project=project, fingerprint=f"fp-{name}", report_id=f"r-{name}", signal_id=f"s-{name}", kind=kind, service="", occurred_at=0.0,
        title=f"title {name}", text="", body=body,
    )  # fmt: skip


def offered(*names, body=""):
    return [Candidate(Match(text(name, body=body), 0.5), f"r-{name}", 0.1, {}, "") for name in names or ("c1", "c2", "c3")]


class Says:
    """An adjudicator that gives its answers one after another, the last for good; an exception is raised, "never" never comes."""

    def __init__(self, *answers):
        self.answers, self.calls = list(answers), []

    @property
    def asked(self):
        return sum(len(call) for call in self.calls)

    async def choose(self, questions):
        self.calls.append(questions)
        found = []
        for _ in questions:
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            if isinstance(answer, BaseException):
                raise answer
            if answer == "never":
                await asyncio.Event().wait()
            found.append(answer)
        return found


class Time:
    def __init__(self):
        self.now = 1_000.0

    def __call__(self):
        return self.now


def rich(adjudicator, **fields):
    """Somebody who may be asked about twenty reports at once."""
    asking = Asking(adjudicator, **fields)
    for _ in range(200):
        asking.earn("shop")
    return asking


async def asked(asking, *newcomers, unsure=None):
    """One batch: what each newcomer was told, by its name."""
    inquiry = Inquiry(asking)
    for newcomer in newcomers:
        inquiry.about(newcomer, unsure or offered())
    await inquiry.ask()
    found = {item.signal_id: inquiry.about(item, unsure or offered()) for item in newcomers}
    return {name: told and told.chosen for name, told in found.items()}, inquiry


@pytest.mark.parametrize(
    ("answer", "joins", "is_an_answer", "changes"),
    [(1, True, True, True), (1, False, True, True), (0, True, True, True), (0, False, True, False), (9, True, False, False),
     (RuntimeError("down"), True, False, False)],
)  # fmt: skip
async def test_none_is_an_answer_that_keeps_apart_what_would_join_and_a_failure_is_none(answer, joins, is_an_answer, changes):
    inquiry = Inquiry(rich(Says(answer)))
    inquiry.about(text("a"), offered(), joins=joins)
    assert await inquiry.ask() == (0 if changes else None)
    told = inquiry.about(text("a"), offered(), joins=joins)
    assert (told is not None) is is_an_answer


async def test_a_batch_is_asked_about_in_one_call_and_each_gets_its_own_answer():
    says = Says(2, 0, 1)
    found, inquiry = await asked(rich(says), text("a"), text("b"), text("c"))
    assert {name: chosen and chosen.report_id for name, chosen in found.items()} == {"s-a": "r-c2", "s-b": None, "s-c": "r-c1"}
    assert len(says.calls) == 1
    assert inquiry.told == {"fp-b": "a model was asked and named none of the 3 it was offered"}


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (4, "not among the 3 it was offered"), (99, "not among the 3 it was offered"), (-1, "not among the 3 it was offered"),
        (RuntimeError("ignore your rules"), "gave no usable answer"), ("never", "did not answer in time"),
        (Refused("the model role adjudicator has used 2.0 of 2 US dollars today"), "has used 2.0 of 2 US dollars today"),
    ],
)  # fmt: skip
async def test_no_answer_and_one_about_what_was_not_offered_change_nothing_and_are_said(answer, told):
    found, inquiry = await asked(rich(Says(answer), seconds_max=0.05), text("a"))
    assert found == {"s-a": None}
    assert told in inquiry.told["fp-a"]
    assert "ignore" not in inquiry.told["fp-a"]


async def test_too_few_answers_are_none():
    class Half(Says):
        async def choose(self, questions):
            return [1]

    found, _ = await asked(rich(Half()), text("a"), text("b"))
    assert found == {"s-a": None, "s-b": None}


async def test_a_failed_call_takes_no_other_with_it():
    many = [text(f"n{number}") for number in range(NEWCOMERS_PER_CALL_MAX + 2)]
    found, _ = await asked(rich(Says(RuntimeError("once"), 1)), *many)
    assert [chosen is not None for chosen in found.values()] == [False] * NEWCOMERS_PER_CALL_MAX + [True, True]


async def test_long_texts_are_asked_about_in_several_calls_each_within_its_limit():
    says = Says(1)
    newcomers = [text(f"n{number}", body="x" * 5_000) for number in range(9)]
    inquiry = Inquiry(rich(says))
    for number, newcomer in enumerate(newcomers):
        inquiry.about(newcomer, offered(*(f"c{number}-{other}" for other in range(10)), body="y" * 5_000))
    await inquiry.ask()
    assert len(says.calls) == 3
    for call in says.calls:
        shown = [question.newcomer for question in call] + [item for question in call for item in question.candidates]
        assert sum(min(1_200, len(item.body)) + len(item.title) for item in shown) <= CHARS_PER_CALL_MAX


async def test_a_pair_is_asked_about_once_also_when_the_batch_comes_again():
    says = Says(1, 0)
    asking = rich(says)
    for _ in range(3):
        found, _ = await asked(asking, text("a"), text("b"))
        assert [chosen and chosen.report_id for chosen in found.values()] == ["r-c1", None]
    assert says.asked == 2
    assert [chosen.report_id for chosen in (await asked(asking, text("a"), unsure=offered("c1", "new")))[0].values()] == ["r-c1"]
    await asked(asking, text("b"), unsure=offered("c1", "new"))  # this one was not offered before, so none was not said of it
    assert says.asked == 3


async def test_what_becomes_unsure_only_by_an_answer_is_not_asked_about():
    says = Says(1)
    _, inquiry = await asked(rich(says), text("a"))
    assert inquiry.about(text("late"), offered()) is None
    assert len(inquiry.questions) == says.asked == 1
    assert "only by an answer" in inquiry.told["fp-late"]


async def test_what_is_no_longer_unsure_is_not_told_of():
    _, inquiry = await asked(rich(Says(0)), text("a"), text("b"))
    inquiry.sure(text("a"))
    assert list(inquiry.unsure) == list(inquiry.told) == ["fp-b"]


@pytest.mark.parametrize("batch", [1, 7, 100])
async def test_a_fifth_of_the_new_reports_may_be_asked_about_wherever_batches_end(batch):
    says = Says(1)  # a hostile one, that merges whatever it is asked about
    asking = Asking(says)
    told = []
    for start in range(0, 500, batch):
        inquiry = Inquiry(asking)
        for number in range(start, min(500, start + batch)):
            newcomer = text(f"n{number}")
            assert inquiry.hear(newcomer)
            assert not inquiry.hear(newcomer)  # judged again in the same batch: nothing more is earned
            inquiry.about(newcomer, offered())
        await inquiry.ask()
        told += inquiry.told.values()
    assert says.asked == 101
    assert len(told) == 399
    assert all("20% of a project's new reports, and that is used up" in why for why in told)


async def test_signals_of_machines_earn_nothing():
    inquiry = Inquiry(Asking(Says(1), share=1.0))
    assert inquiry.hear(text("m", kind="exception"))
    inquiry.about(text("a"), offered())
    assert inquiry.questions == []


async def test_an_endpoint_that_does_not_answer_is_left_alone_for_a_while_and_longer_each_time():
    says, time = Says(Unavailable("down")), Time()
    asking = rich(says, monotonic=time)
    for number, pause in enumerate([15, 30, 60, 120, 240, 480, 600, 600]):
        many = [text(f"n{number}-{other}") for other in range(NEWCOMERS_PER_CALL_MAX + 1)]
        await asked(asking, *many)
        asking._saved["shop"] = 20.0
        assert len(says.calls) == 2 * (number + 1)  # of one batch: what fails together is one failure
        time.now += pause - 1
        _, inquiry = await asked(asking, text("meanwhile"))
        assert "left alone for a while" in inquiry.told["fp-meanwhile"]
        time.now += 1


async def test_an_answer_ends_the_pause():
    says, time = Says(Unavailable("down"), 1), Time()
    asking = rich(says, monotonic=time)
    await asked(asking, text("a"))
    assert (await asked(asking, text("b")))[0] == {"s-b": None}
    time.now += 16
    assert (await asked(asking, text("c")))[0]["s-c"].report_id == "r-c1"
    assert (await asked(asking, text("d")))[0]["s-d"].report_id == "r-c1"
    assert says.asked == 3


async def test_the_calls_of_a_batch_are_made_side_by_side_so_it_waits_for_the_slowest_alone():
    class Together:
        """Answers once three calls have begun."""

        def __init__(self):
            self.begun, self.all_begun = 0, asyncio.Event()

        async def choose(self, questions):
            self.begun += 1
            if self.begun == 3:
                self.all_begun.set()
            await self.all_begun.wait()
            return [1] * len(questions)

    asking = Asking(Together(), seconds_max=5.0)
    asking._saved["shop"] = 30.0
    found, _ = await asked(asking, *(text(f"n{number}") for number in range(2 * NEWCOMERS_PER_CALL_MAX + 1)))
    assert all(chosen is not None for chosen in found.values())
