"""Asking in the ordered flow: a batch together, as if in turn; killed anywhere and delivered again, what is recorded stands."""

import random

import pytest
from loopwright_cluster.handlers import BEFORE_EVERYTHING, report_id_for
from loopwright_cluster.judging import Judging

from tests.unit.cluster.people import speaking_flow, stream
from tests.unit.cluster.test_grouping_flow import Fuse, later, until_done


class Knows:
    """An adjudicator that knows which problem each text is about, and names the earliest text that is about the same."""

    def __init__(self, about):
        self.about, self.calls = about, []

    async def choose(self, questions):
        self.calls.append([(item.newcomer.signal_id, [other.signal_id for other in item.candidates]) for item in questions])
        return [self._same(item) for item in questions]

    def _same(self, question):
        problem = self.about[question.newcomer.signal_id]
        same = [item for item in question.candidates if self.about[item.signal_id] == problem]
        return 1 + question.candidates.index(min(same, key=lambda item: int(item.signal_id[1:]))) if same else 0


class Fickle:
    """Says something else each time it is asked, whatever it was asked before."""

    def __init__(self, seed):
        self.rng = random.Random(seed)

    async def choose(self, questions):
        if self.rng.random() < 0.3:
            raise RuntimeError("not now")
        return [self.rng.randint(0, len(item.candidates)) for item in questions]


@pytest.fixture
def new_flow(tmp_path):
    """Makes a Flow whose matcher speaks; ``judging`` makes its judging."""
    made = []

    async def make(judging=Judging):
        made.append(await speaking_flow(tmp_path / f"vectors{len(made)}", judging()))
        return made[-1]

    return make


def everything_asked(adjudicator):
    def make():
        judging = Judging(adjudicator=adjudicator)
        judging._asking._share = 1.0  # so that where a batch ends makes no difference to what is asked
        return judging

    return make


def reports(flow):
    return {fact.signal.id: fact.report_id for fact in flow.facts()}


@pytest.mark.parametrize("seed", [1, 2])
async def test_asked_together_or_one_by_one_the_reports_are_the_same(new_flow, seed):
    signals, about = stream(seed, 140)
    found, calls = [], []
    for size in (1, 9, 140):
        knows = Knows(about)
        flow = await new_flow(everything_asked(knows))
        for start in range(0, len(signals), size):
            await flow.take(*signals[start : start + size])
        found.append(reports(flow))
        calls.append(len(knows.calls))
    plain = await new_flow()
    for start in range(0, len(signals), 9):
        await plain.take(*signals[start : start + 9])

    assert found[0] == found[1] == found[2]
    assert found[0] != reports(plain)
    assert calls[0] > 2 * calls[1] > 4 * calls[2]


async def test_those_that_followed_an_unsure_one_follow_it_into_its_report(new_flow):
    signals, about = stream(3, 140)
    knows = Knows(about)
    flow = await new_flow(everything_asked(knows))
    facts = await flow.take(*signals)
    moved = [fact for fact in facts if fact.decision.reason.startswith("a model was asked, as")]
    assert moved
    opened = {report_id_for(fact.signal) for fact in facts if fact.decision.outcome == "opened"}
    assert {fact.report_id for fact in facts} == opened  # nobody went to a report that was never opened
    assert await flow.index.count() == len({fact.decision.fingerprint for fact in facts})
    for exemplar in await flow.index.exemplars("shop", 1_000):
        assert (await flow.records.place("shop", exemplar.report_id, BEFORE_EVERYTHING, "")).report_id == reports(flow)[exemplar.signal_id]


async def test_the_reason_of_what_was_not_given_a_report_says_what_came_of_asking(new_flow):
    signals, about = stream(1, 140)
    flow = await new_flow(lambda: Judging(adjudicator=Knows(about)))
    facts = await flow.take(*signals)
    again = await flow.take(*signals)
    assert [fact.decision for fact in again] == [fact.decision for fact in facts]
    for words in ("; a model was asked and named none of the", "; no model was asked: it may be asked about 20% of"):
        assert any(words in fact.decision.reason for fact in facts), words
    for fact in facts:
        if fact.decision.reason.startswith("a model was asked, as"):
            assert fact.decision.outcome == "joined"
            assert "matcher was unsure" in fact.decision.reason


@pytest.mark.parametrize("seed", [1, 2])
async def test_killed_at_any_step_with_a_model_that_changes_its_mind_every_signal_has_one_opened_report(new_flow, seed):
    signals, _ = stream(seed, 60)
    first, rest = signals[:40], signals[40:]
    late = [later(signal, hours=30) for signal in rest[:6]]

    async def play(fuse, number):
        flow = await new_flow(everything_asked(Fickle(number)))
        await flow.take(*first)
        for report_id in sorted({fact.report_id for fact in flow.facts()})[::2]:
            await flow.transition(report_id, "held", at=first[-1].occurred_at)
        fickle = Fickle(number)

        async def work():
            flow.judging = everything_asked(fickle)()  # a new process: it remembers no answer
            await flow.restart(bus=flow.grouping._bus, index=flow.grouping._index)
            await flow.take(*rest, *late)

        await until_done(flow, fuse, work)
        return flow

    calm = Fuse()
    await play(calm, seed)
    assert calm.count > 20
    for after in (False, True):
        for step in range(1, calm.count + 1, 5):
            flow = await play(Fuse(step, after=after), step)
            facts = flow.facts()  # fails where a signal was told of in two ways
            assert {fact.signal.id for fact in facts} == {signal.id for signal in (*signals, *late)}
            opened = {report_id_for(fact.signal) for fact in facts if fact.decision.outcome == "opened"}
            assert {fact.report_id for fact in facts} == opened, f"killed at {step}, after={after}"
            of = {}
            for fact in facts:
                if fact.decision.rule not in ("recurrence", "fingerprint"):
                    assert of.setdefault(fact.decision.fingerprint, fact.report_id) == fact.report_id


async def test_a_shadow_is_compared_once_for_each_new_fingerprint(new_flow):
    signals, about = stream(1, 140)
    flow = await new_flow(lambda: Judging(shadow="v1", adjudicator=Knows(about)))
    facts = await flow.take(*signals)
    judged = sum(1 for fact in facts if fact.decision.rule in ("new", "similarity"))
    compared = await flow.compared.of("shop")
    assert compared.agreed + compared.differed == judged


async def test_a_report_that_its_sender_set_apart_is_not_offered_to_a_model(new_flow):
    signals, _ = stream(1, 140)
    texts = ("issue", "ticket")
    apart = [
        signal.model_copy(update={"fingerprint": (signal.id,)}) if signal.kind in texts and number % 2 else signal
        for number, signal in enumerate(signals)
    ]
    explicit = {signal.id for signal in apart if signal.fingerprint}
    knows = Knows({signal.id: 0 for signal in apart})  # to this one all are the same
    await (await new_flow(everything_asked(knows))).take(*apart)
    asked = [pair for call in knows.calls for pair in call]
    assert asked
    assert not explicit & {signal_id for newcomer, offered in asked for signal_id in (newcomer, *offered)}
