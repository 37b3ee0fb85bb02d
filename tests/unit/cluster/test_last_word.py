"""People have the last word: what each word does, what takes it back, and what no later decision undoes."""

import asyncio
import itertools

import pytest
from loopwright_cluster.evaluation import Evaluation
from loopwright_cluster.grouping import earlier
from loopwright_cluster.handlers import ProjectLocks
from loopwright_cluster.judging import Judging
from loopwright_cluster.records import FINGERPRINTS_BUCKET, FingerprintRecord
from loopwright_cluster.regrouping import fill_index
from loopwright_cluster.shadow import Shadow
from loopwright_common.contracts.queries import EvaluationQuery, ShadowQuery
from loopwright_common.contracts.subjects import GROUPS_REGROUPED
from loopwright_common.errors import Unavailable

from tests.unit.cluster.people import speaking_flow, stream
from tests.unit.cluster.test_grouping_flow import later


@pytest.fixture
def way(make_signal):
    """An exception raised in one place, reached with a layer more or less: another fingerprint each, and alike enough to join."""

    def make(id, through="basket", at=0, **fields):
        layers = {"basket": ("basket",), "orders": ()}.get(through, ("basket", through))
        frames = [(f"{name}.py", name) for name in ("dispatch", "session", "orders", *layers, "cursor", "query")]
        named = {"title": "KeyError: in query", "exception_type": "KeyError", "service": "web"}
        return make_signal(id, at=at, kind="exception", frames=frames, **(named | fields))

    return make


@pytest.fixture
def apart(make_signal):
    """An exception that is like no other of another place."""

    def make(id, place, at=0):
        return make_signal(
            id, at=at, kind="exception", service="web", title=f"KeyError: in {place}", exception_type="KeyError",
            frames=[("app.py", "dispatch"), (f"{place}.py", place)],
        )  # fmt: skip

    return make


def key(fact):
    return fact.decision.fingerprint


async def places(flow, *signals):
    """The report that each of these signals goes to now."""
    return [fact.report_id for fact in await flow.take(*signals)]


async def filed(flow):
    return {match.signal_id: match.report_id for match in await flow.index.exemplars("shop", 1_000)}


async def test_an_undone_merge_gives_back_what_came_by_it_and_keeps_what_joined_since(flow, apart, way):
    one, other = await flow.take(apart("s1", "checkout"), way("s2"))
    before = await filed(flow)
    merged = await flow.command("merge", one.report_id, other_report_id=other.report_id)
    (joined,) = await flow.take(way("s3", "wishlist"))  # like s2, so it joined the report that stays
    assert (merged.report_id, merged.from_report_id, joined.report_id) == (one.report_id, other.report_id, one.report_id)

    undone = await flow.command("undo", one.report_id, id="c2", undoes="c1")
    assert not undone.refused
    assert (undone.undoes, undone.report_id, undone.from_report_id) == ("c1", other.report_id, one.report_id)
    assert undone.fingerprints == (key(other),)
    assert await places(flow, apart("s4", "checkout"), way("s5"), way("s6", "wishlist")) == [one.report_id, other.report_id, one.report_id]
    assert await filed(flow) == before | {"s3": one.report_id}


async def test_a_late_echo_of_a_merge_does_not_bring_it_back(flow, apart):
    one, other = await flow.take(apart("s1", "checkout"), apart("s2", "search"))
    await flow.command("merge", one.report_id, other_report_id=other.report_id)
    await flow.command("undo", one.report_id, id="c2", undoes="c1")
    await flow.transition(other.report_id, "merged_into", sequence=5, merged_into=one.report_id)
    assert await places(flow, apart("s3", "search")) == [other.report_id]
    await flow.command("merge", one.report_id, id="c3", other_report_id=other.report_id)
    await flow.transition(other.report_id, "gathering", sequence=6, from_state="merged_into")
    assert await places(flow, apart("s4", "search")) == [one.report_id]


async def test_undoing_the_first_of_two_merges_leaves_the_second(flow, apart):
    a, b, c = await flow.take(apart("s1", "checkout"), apart("s2", "search"), apart("s3", "login"))
    await flow.command("merge", a.report_id, other_report_id=b.report_id)
    await flow.command("merge", c.report_id, other_report_id=b.report_id, id="c2")  # b is in a by now, so a goes
    undone = await flow.command("undo", c.report_id, id="c3", undoes="c1")
    assert (undone.report_id, undone.from_report_id, undone.fingerprints) == (b.report_id, c.report_id, (key(b),))
    signals = [apart("s4", "checkout"), apart("s5", "search"), apart("s6", "login")]
    assert await places(flow, *signals) == [c.report_id, b.report_id, c.report_id]


@pytest.mark.parametrize("action", ["split", "move"])
async def test_what_is_taken_out_stays_out_and_comes_back_by_undo(flow, new_flow, way, apart, action):
    one, same, third = await flow.take(way("s1"), way("s2", "wishlist"), apart("s3", "search"))
    assert one.report_id == same.report_id != third.report_id
    to = {} if action == "split" else {"other_report_id": third.report_id}
    fact = await flow.command(action, one.report_id, fingerprints=(key(same), "unknown"), **to)
    assert fact.fingerprints == (key(same),)
    assert (fact.report_id == third.report_id) is (action == "move")
    assert "1 of the fingerprints named" in fact.reason
    await flow.restart()
    assert await places(flow, way("s4"), way("s5", "wishlist")) == [one.report_id, fact.report_id]
    empty = (await new_flow()).index
    await fill_index(flow.records, flow.embedding, empty)
    assert {item.signal_id: item.report_id for item in await empty.exemplars("shop", 10)} == await filed(flow)
    assert (await filed(flow))["s2"] == fact.report_id

    undone = await flow.command("undo", one.report_id, id="c2", undoes="c1")
    assert (undone.report_id, undone.from_report_id, undone.fingerprints) == (one.report_id, fact.report_id, (key(same),))
    assert await places(flow, way("s6"), way("s7", "wishlist")) == [one.report_id, one.report_id]
    assert (await filed(flow))["s2"] == one.report_id


async def test_an_undo_leaves_what_a_later_word_has_moved_on(flow, way, apart):
    one, same, third = await flow.take(way("s1"), way("s2", "wishlist"), apart("s3", "search"))
    split = await flow.command("split", one.report_id, fingerprints=(key(one), key(same)))
    await flow.command("move", split.report_id, id="c2", other_report_id=third.report_id, fingerprints=(key(same),))
    undone = await flow.command("undo", one.report_id, id="c3", undoes="c1")
    assert undone.fingerprints == (key(one),)
    assert await places(flow, way("s4"), way("s5", "wishlist")) == [one.report_id, third.report_id]


async def test_an_undo_leaves_what_a_later_word_has_put_back_where_the_undone_one_had(flow, way, apart):
    one, second, third = await flow.take(apart("s1", "checkout"), apart("s2", "search"), apart("s3", "login"))
    a, b, c = one.report_id, second.report_id, third.report_id
    await flow.command("move", a, id="c1", other_report_id=b, fingerprints=(key(one),))
    await flow.command("move", b, id="c2", other_report_id=c, fingerprints=(key(one),))
    await flow.command("move", c, id="c3", other_report_id=b, fingerprints=(key(one),))
    undone = await flow.command("undo", a, id="c4", undoes="c1")
    assert undone.fingerprints == ()
    assert await places(flow, apart("s4", "checkout")) == [b]
    await flow.restart()
    await flow.command("undo", c, id="c5", undoes="c3")
    assert await places(flow, apart("s5", "checkout")) == [c]
    await flow.command("undo", b, id="c6", undoes="c2")
    assert await places(flow, apart("s6", "checkout")) == [b]


async def test_a_split_that_is_undone_after_a_merge_brought_it_back_names_what_stays_when_the_merge_is_undone_too(flow, way):
    one, same = await flow.take(way("s1"), way("s2", "wishlist"))
    split = await flow.command("split", one.report_id, fingerprints=(key(same),))
    await flow.command("merge", one.report_id, id="c2", other_report_id=split.report_id)
    undone = await flow.command("undo", one.report_id, id="c3", undoes="c1")
    assert (undone.report_id, undone.from_report_id, undone.fingerprints) == (one.report_id, one.report_id, (key(same),))
    apart = await flow.command("undo", one.report_id, id="c4", undoes="c2")
    assert (apart.report_id, apart.fingerprints) == (split.report_id, ())
    assert await places(flow, way("s3", "wishlist")) == [one.report_id]


async def test_a_split_of_signals_alone_moves_no_fingerprint_and_names_its_report_by_the_command(flow, way):
    (one,) = await flow.take(way("s1"))
    fact = await flow.command("split", one.report_id, signal_ids=("s1",))
    assert not fact.refused
    assert (fact.signal_ids, fact.fingerprints) == (("s1",), ())
    assert fact.report_id != one.report_id
    assert await places(flow, way("s2")) == [one.report_id]
    undone = await flow.command("undo", one.report_id, id="c2", undoes="c1")
    assert (undone.report_id, undone.from_report_id, undone.signal_ids) == (one.report_id, fact.report_id, ())


async def test_never_together_refuses_the_merge_until_it_is_undone(flow, apart):
    a, b, c = await flow.take(apart("s1", "checkout"), apart("s2", "search"), apart("s3", "login"))
    await flow.command("never_together", a.report_id, other_report_id=b.report_id, id="n1")
    await flow.command("merge", c.report_id, other_report_id=b.report_id, id="m1")
    refused = await flow.command("merge", a.report_id, other_report_id=c.report_id, id="m2")  # b came with c
    assert "person:alice said on 2026-11-26" in refused.refused
    assert "(command n1)" in refused.refused
    assert await places(flow, apart("s4", "login")) == [c.report_id]
    assert not (await flow.command("undo", a.report_id, undoes="n1", id="u1")).refused
    assert not (await flow.command("merge", a.report_id, other_report_id=c.report_id, id="m3")).refused
    assert await places(flow, apart("s5", "search"), apart("s6", "login")) == [a.report_id] * 2


async def test_never_together_goes_on_for_the_report_that_follows_a_resolved_one(flow, apart):
    a, b = await flow.take(apart("s1", "checkout"), apart("s2", "search"))
    await flow.command("never_together", a.report_id, other_report_id=b.report_id, id="n1")
    await flow.transition(a.report_id, "held", at=flow.clock.now())
    (again,) = await flow.take(later(apart("s3", "checkout"), hours=5))
    assert again.recurrence_of == a.report_id
    assert "(command n1)" in (await flow.command("merge", b.report_id, other_report_id=again.report_id, id="m1")).refused
    refused = await flow.command("never_together", a.report_id, other_report_id=again.report_id, id="n2")
    assert "follows the other" in refused.refused
    # Reopened and resolved once more: what was opened in between is of the line still.
    await flow.transition(a.report_id, "gathering", at=flow.clock.now(), sequence=2)
    await flow.transition(a.report_id, "held", at=flow.clock.now(), sequence=3)
    assert "(command n1)" in (await flow.command("merge", b.report_id, other_report_id=again.report_id, id="m2")).refused


async def test_what_followed_a_resolved_report_and_was_merged_back_into_it_goes_on_there(flow, apart):
    (a,) = await flow.take(apart("s1", "checkout"))
    await flow.transition(a.report_id, "held", at=flow.clock.now())
    (again,) = await flow.take(later(apart("s2", "checkout"), hours=5))
    assert again.report_id != a.report_id
    await flow.command("merge", a.report_id, other_report_id=again.report_id)
    assert await places(flow, later(apart("s3", "checkout"), hours=6)) == [a.report_id]


async def test_merging_a_split_off_report_back_wins_over_the_split_until_it_is_undone(flow, way):
    one, same = await flow.take(way("s1"), way("s2", "wishlist"))
    split = await flow.command("split", one.report_id, fingerprints=(key(same),))
    merged = await flow.command("merge", one.report_id, id="c2", other_report_id=split.report_id)
    assert not merged.refused
    assert await places(flow, way("s3", "wishlist")) == [one.report_id]
    await flow.command("undo", one.report_id, id="c3", undoes="c2")
    assert await places(flow, way("s4", "wishlist")) == [split.report_id]


async def test_a_report_that_is_merged_into_the_next_one_again_and_again_is_followed_and_taken_back_in_the_middle(flow, apart):
    names = [f"place{chr(97 + number // 26)}{chr(97 + number % 26)}" for number in range(45)]
    facts = [fact for number, name in enumerate(names) for fact in await flow.take(apart(f"s{number}", name))]
    reports = [fact.report_id for fact in facts]
    assert len(set(reports)) == 45
    for number, (gone, stays) in enumerate(itertools.pairwise(reports)):
        merged = await flow.command("merge", stays, id=f"m{number}", other_report_id=gone)
        assert (merged.refused, merged.from_report_id, merged.report_id) == ("", gone, stays)
    assert await places(flow, apart("t1", names[0])) == [reports[-1]]
    undone = await flow.command("undo", reports[-1], id="u", undoes="m40")
    assert set(undone.fingerprints) == {key(fact) for fact in facts[:41]}
    assert await places(flow, apart("t2", names[0]), apart("t3", names[41])) == [reports[40], reports[-1]]


@pytest.mark.parametrize(
    ("action", "fields", "why"),
    [
        ("split", {}, "names what leaves"), ("split", {"fingerprints": ("unknown",)}, "none of the 1 fingerprints"),
        ("move", {"fingerprints": ("F",)}, "names two reports"), ("move", {"fingerprints": ("F",), "other_report_id": "A"}, "are one"),
        ("never_together", {}, "names two reports"), ("never_together", {"other_report_id": "A"}, "both are"),
        ("undo", {}, "names the command"), ("undo", {"undoes": "nobody"}, "not known here"),
    ],
)  # fmt: skip
async def test_a_word_that_makes_no_sense_is_refused_for_good_and_changes_nothing(flow, way, action, fields, why):
    (a,) = await flow.take(way("s1"))
    fields = {name: a.report_id if value == "A" else (key(a),) if value == ("F",) else value for name, value in fields.items()}
    refused = await flow.command(action, a.report_id, **fields)
    assert why in refused.refused
    flow.clock.advance(later(way("x"), 1).occurred_at - way("x").occurred_at)
    assert await flow.command(action, a.report_id, **fields) == refused  # delivered again
    assert await places(flow, way("s2")) == [a.report_id]
    assert "was refused" in (await flow.command("undo", a.report_id, undoes="c1", id="c2")).refused


async def test_an_undo_can_be_neither_undone_nor_said_twice(flow, apart):
    a, b = await flow.take(apart("s1", "checkout"), apart("s2", "search"))
    await flow.command("merge", a.report_id, other_report_id=b.report_id)
    await flow.command("undo", a.report_id, undoes="c1", id="c2")
    assert "already, by command c2" in (await flow.command("undo", a.report_id, undoes="c1", id="c3")).refused
    assert "itself an undo" in (await flow.command("undo", a.report_id, undoes="c2", id="c4")).refused


async def test_reports_that_are_one_cannot_be_kept_apart_before_they_are_split(flow, apart):
    a, b = await flow.take(apart("s1", "checkout"), apart("s2", "search"))
    await flow.command("merge", a.report_id, other_report_id=b.report_id)
    assert "one by a merge" in (await flow.command("never_together", a.report_id, other_report_id=b.report_id, id="c2")).refused


async def test_a_word_that_died_half_done_can_be_taken_back_and_is_refused_when_it_is_replayed(flow, apart, monkeypatch):
    one, other = await flow.take(apart("s1", "checkout"), apart("s2", "search"))
    filed_before = await filed(flow)
    move = flow.index.move

    async def down(*arguments):
        raise Unavailable("the vector server does not answer")

    monkeypatch.setattr(flow.index, "move", down)
    with pytest.raises(Unavailable):
        await flow.command("merge", one.report_id, other_report_id=other.report_id)
    assert await places(flow, apart("s3", "search")) == [one.report_id]  # it is in force, and was not told of
    assert not flow.bus.published(GROUPS_REGROUPED)
    monkeypatch.setattr(flow.index, "move", move)
    assert not (await flow.command("undo", one.report_id, id="c2", undoes="c1")).refused
    assert "c2 took it back before it was done" in (await flow.command("merge", one.report_id, other_report_id=other.report_id)).refused
    assert await places(flow, apart("s4", "search")) == [other.report_id]
    assert await filed(flow) == filed_before


async def test_a_word_that_comes_again_after_later_ones_changes_nothing_and_says_the_same(flow, way, apart):
    one, same, third = await flow.take(way("s1"), way("s2", "wishlist"), apart("s3", "search"))
    words = [
        ("move", one.report_id, {"id": "c1", "fingerprints": (key(same),), "other_report_id": third.report_id}),
        ("move", third.report_id, {"id": "c2", "fingerprints": (key(same),), "other_report_id": one.report_id}),
        ("merge", one.report_id, {"id": "c3", "other_report_id": third.report_id}),
        ("undo", one.report_id, {"id": "c4", "undoes": "c3"}),
        ("never_together", one.report_id, {"id": "c5", "other_report_id": third.report_id}),
        ("undo", one.report_id, {"id": "c6", "undoes": "c5"}),
    ]
    facts = [await flow.command(action, report_id, **fields) for action, report_id, fields in words]
    assert not any(fact.refused for fact in facts)
    assert await places(flow, way("s4", "wishlist"), apart("s5", "search")) == [one.report_id, third.report_id]
    await flow.restart()
    for action, report_id, fields in words:
        await flow.command(action, report_id, **fields)
    assert len(flow.bus.published(GROUPS_REGROUPED)) == len(words)  # under the same message ids
    flow.bus.broker._ids.clear()  # as after the ten minutes that they are remembered
    assert [await flow.command(action, report_id, **fields) for action, report_id, fields in words] == facts
    assert await places(flow, way("s6", "wishlist"), apart("s7", "search")) == [one.report_id, third.report_id]


# What is decided automatically.


async def forget(flow, fingerprint):
    """Take a fingerprint's record away, as an operator may; then it is new again."""
    await (await flow.bus.key_value(FINGERPRINTS_BUCKET)).delete(f"shop.{fingerprint}")
    await flow.restart()


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("action", ["split", "move"])
async def test_a_fingerprint_that_is_new_again_does_not_join_what_it_was_taken_from(flow, way, apart, version, action):
    flow.judging = Judging(version, shadow="v1" if version == "v2" else "v2")
    await flow.restart()
    one, same, third = await flow.take(way("s1"), way("s2", "wishlist"), apart("s3", "search"))
    await forget(flow, key(same))
    (alike,) = await flow.take(way("s4", "wishlist"))
    assert alike.report_id == one.report_id  # by itself it joins

    to = {} if action == "split" else {"other_report_id": third.report_id}
    await flow.command(action, one.report_id, fingerprints=(key(same),), **to)
    await forget(flow, key(same))
    (new,) = await flow.take(way("s5", "wishlist"))
    assert new.decision.outcome == "opened"
    assert "“KeyError: in query” was left out: person:alice said on 2026-11-26" in new.decision.reason
    assert (await flow.compared.of("shop")).differed == 0  # the version in shadow is held to it too


async def test_the_key_of_an_earlier_version_leads_to_where_people_put_it(flow, way):
    """What an earlier version recorded, a person split; then the new version sees the same problem under its own key."""
    flow.judging = Judging("v1")
    await flow.restart()
    one, same = await flow.take(way("s1"), way("s2", "wishlist"))
    store = await flow.bus.key_value(FINGERPRINTS_BUCKET)
    old = earlier.key(way("s2", "wishlist"))
    record = FingerprintRecord.model_validate_json((await store.get(f"shop.{key(same)}")).value)
    exemplar = record.exemplar | {"fingerprint": old}
    await store.create(f"shop.{old}", record.model_copy(update={"exemplar": exemplar}).model_dump_json().encode())
    await forget(flow, key(same))
    split = await flow.command("split", one.report_id, fingerprints=(old,))

    flow.judging = Judging("v2")
    await flow.restart()
    (new,) = await flow.take(way("s3", "wishlist"))
    assert (new.report_id, new.decision.rule) == (split.report_id, "fingerprint")
    assert new.decision.fingerprint == key(same) != old


async def test_another_key_that_leads_against_a_word_is_skipped(flow, make_signal):
    """A wrapped exception is known by two of its keys: one in the report that people took the other one out of."""

    def crash(id, *frames, **fields):
        named = {"title": "x", "exception_type": "KeyError"} | fields
        return make_signal(id, kind="exception", frames=[(f"{name}.py", name) for name in frames], **named)

    inner, outer = await flow.take(crash("s1", "b", "c"), crash("s2", "a", "c"))
    wrapped = crash("s4", "a", "b", "c", exception_type="Failed", labels={"exception.chain": "Failed <- KeyError"})
    found = flow.fingerprinting.of(wrapped)
    known = [item.fingerprint for item in await flow.fingerprinting.elsewhere(wrapped, found)]
    assert known.index(key(inner)) < known.index(key(outer))
    if inner.report_id != outer.report_id:
        await flow.command("merge", inner.report_id, other_report_id=outer.report_id, id="m")
    split = await flow.command("split", inner.report_id, fingerprints=(key(outer),))
    (new,) = await flow.take(wrapped)
    assert new.report_id == split.report_id
    assert f"report {inner.report_id}, where another of its keys leads, was left out" in new.decision.reason


class Hostile:
    """Says that everything is the same as the first it is offered."""

    def __init__(self):
        self.offered = []

    async def choose(self, questions):
        self.offered += [(item.newcomer, list(item.candidates)) for item in questions]
        return [1 for _ in questions]


@pytest.fixture
async def hostile(tmp_path):
    """Makes a flow on a folder of its own, with a model that joins all it can and may be asked about everything."""
    made = []

    async def make(**fields):
        model = Hostile()
        judging = Judging(adjudicator=model, **fields)
        judging._asking._share = 1.0
        made.append(await speaking_flow(tmp_path / str(len(made)), judging))
        return made[-1], model

    yield make
    for flow in made:
        await flow.words.stop()


@pytest.mark.parametrize(("seed", "shadow"), [(1, None), (2, "v1"), (5, None)])
async def test_a_hostile_model_is_not_even_shown_both_sides_of_what_people_told_apart(hostile, seed, shadow):
    signals, _ = stream(seed, 140)
    flow, model = await hostile()
    for signal in signals:
        await flow.take(signal)
    of = {fact.signal.id: fact.report_id for fact in flow.facts()}

    def rival(newcomer, candidates):
        """The first candidate that is in another report than the best one, where nothing was joined before."""
        return next((item for item in candidates if of[item.signal_id] != of[candidates[0].signal_id]), None)

    at, best, other = next(
        (signals.index(next(signal for signal in signals if signal.id == newcomer.signal_id)), candidates[0], second)
        for newcomer, candidates in model.offered
        if (second := rival(newcomer, candidates)) is not None
    )
    flow, model = await hostile(shadow=shadow)
    for signal in signals[:at]:
        await flow.take(signal)
    one, two = of[best.signal_id], of[other.signal_id]
    assert not (await flow.command("never_together", one, other_report_id=two)).refused
    (asked,) = await flow.take(signals[at])
    newcomer, shown = model.offered[-1]
    assert newcomer.signal_id == signals[at].id
    assert best.signal_id in {item.signal_id for item in shown}
    assert two not in {of[item.signal_id] for item in shown}
    assert asked.report_id == one
    assert f"“{other.title[:80]}” was left out of what may be asked about: person:alice said" in asked.decision.reason

    for signal in signals[at + 1 :]:  # and in no later question
        (fact,) = await flow.take(signal)
        of[signal.id] = fact.report_id
    for _, candidates in model.offered:
        assert not {one, two} <= {of[item.signal_id] for item in candidates}


async def test_another_replica_hears_of_a_word_without_asking(flow, new_flow, way):
    rival = await new_flow()
    rival.bus, rival.index = flow.bus, flow.index
    await rival.restart()
    one, same = await flow.take(way("s1"), way("s2", "wishlist"))
    assert rival.words.constraints("shop") is None
    await flow.command("split", one.report_id, fingerprints=(key(same),))
    await asyncio.sleep(0.05)
    assert rival.words.constraints("shop").apart.keys() == {key(same)}
    await flow.command("undo", one.report_id, id="c2", undoes="c1")
    await asyncio.sleep(0.05)
    assert rival.words.constraints("shop") is None
    await rival.words.stop()


async def test_a_project_without_words_reads_nothing_of_them(flow, way, monkeypatch):
    one, _ = await flow.take(way("s1"), way("s2", "wishlist"))
    await flow.command("merge", one.report_id, other_report_id="r9")  # nothing is forbidden by it

    async def unexpected(*arguments):
        raise AssertionError("the words' bucket was read, or a report's line worked out")

    monkeypatch.setattr(flow.words, "read", unexpected)
    monkeypatch.setattr(flow.records, "line", unexpected)
    await flow.take(way("s3"), way("s4", "orders"), way("s5", "wishlist"))


# Evaluation and shadow.


def evaluation(flow):
    judging = flow.judging or Judging()
    return Evaluation(flow.records, flow.words, flow.embedding, flow.index, judging, ProjectLocks()).answer


@pytest.mark.parametrize("version", ["", "v1", "v2"])
async def test_an_evaluation_judges_the_pairs_that_people_decided(flow, way, apart, version):
    a, b, c, d = await flow.take(way("s1"), way("s2", "wishlist"), apart("s3", "search"), apart("s4", "login"))
    nothing = await evaluation(flow)(EvaluationQuery(project="shop", version=version))
    assert (nothing.same, nothing.apart, nothing.pairs) == (0, 0, ())
    await flow.command("merge", c.report_id, other_report_id=d.report_id, id="m1")  # not alike, and yet one
    await flow.command("split", a.report_id, fingerprints=(key(b),), id="p1")  # alike, and yet two
    await flow.command("never_together", a.report_id, other_report_id=c.report_id, id="n1")
    found = await evaluation(flow)(EvaluationQuery(project="shop", version=version))

    assert (found.version, found.truncated, found.degraded) == (version or "v2", False, True)
    assert (found.same, found.same_joined, found.apart, found.apart_joined) == (1, 0, 3, 1)
    first, second, *_ = found.pairs
    assert {(pair.command_id, pair.same, pair.would_join) for pair in (first, second)} == {("m1", True, False), ("p1", False, True)}
    assert {key(a), key(b)} in [{pair.fingerprint, pair.other_fingerprint} for pair in (first, second)]
    await flow.command("undo", a.report_id, undoes="p1", id="u1")
    await flow.command("undo", a.report_id, undoes="n1", id="u2")
    found = await evaluation(flow)(EvaluationQuery(project="shop", version=version))
    assert (found.same, found.apart) == (1, 0)


async def test_of_two_words_about_one_pair_the_newer_counts_and_a_move_says_both(flow, way, apart):
    a, b, c = await flow.take(way("s1"), way("s2", "wishlist"), apart("s3", "search"))
    await flow.command("never_together", a.report_id, other_report_id=c.report_id, id="n1")
    await flow.command("move", a.report_id, other_report_id=c.report_id, fingerprints=(key(b),), id="v1")
    found = await evaluation(flow)(EvaluationQuery(project="shop"))
    labels = {frozenset((pair.fingerprint, pair.other_fingerprint)): (pair.command_id, pair.same) for pair in found.pairs}
    assert labels == {
        frozenset((key(a), key(b))): ("v1", False),
        frozenset((key(b), key(c))): ("v1", True),
        frozenset((key(a), key(c))): ("n1", False),
    }


async def test_an_evaluation_of_texts_gives_the_matchers_probability_with_the_projects_own_rarity(tmp_path):
    signals, about = stream(2, 120)
    flow = await speaking_flow(tmp_path / "index", Judging())
    facts = await flow.take(*signals)
    texts = [fact for fact in facts if fact.signal.kind in ("issue", "ticket")]
    one, other = next(
        (one, other)
        for one in texts
        for other in texts
        if about[one.signal.id] == about[other.signal.id] and one.report_id != other.report_id
    )
    await flow.command("merge", one.report_id, other_report_id=other.report_id)
    found = await evaluation(flow)(EvaluationQuery(project="shop"))
    pairs = {frozenset((pair.fingerprint, pair.other_fingerprint)): pair for pair in found.pairs}
    pair = pairs[frozenset((key(one), key(other)))]
    assert pair.same
    assert 0.0 <= pair.probability <= 1.0
    by_rules = await evaluation(flow)(EvaluationQuery(project="shop", version="v1"))
    assert all(pair.probability is None for pair in by_rules.pairs)
    await flow.words.stop()


async def test_an_evaluation_of_more_pairs_than_it_compares_says_so(flow, apart):
    facts = await flow.take(*(apart(f"s{number}", f"place{chr(97 + number)}") for number in range(18)))
    for number, fact in enumerate(facts[1:-1]):
        await flow.command("merge", facts[0].report_id, other_report_id=fact.report_id, id=f"m{number}")
    await flow.command("never_together", facts[0].report_id, other_report_id=facts[-1].report_id, id="n1")
    found = await evaluation(flow)(EvaluationQuery(project="shop"))
    assert found.truncated
    assert found.apart == 14


async def test_a_shadow_tells_where_it_would_have_put_newcomers_of_its_project(tmp_path):
    signals, _ = stream(1, 140)
    flow = await speaking_flow(tmp_path / "index", Judging(shadow="v1"))
    await flow.take(*signals)
    answer = await Shadow("v2", flow.records, flow.clock, flow.compared).answer(ShadowQuery(project="shop"))
    assert (answer.version, answer.shadow) == ("v2", "v1")
    assert answer.differed == len(answer.differences) > 0
    assert answer.agreed > 0
    places = {fact.signal.id: fact for fact in flow.facts()}
    for item in answer.differences:
        assert item.report_id != item.shadow_report_id
        assert item.report_id in (None, places[item.signal_id].report_id)
    other = await Shadow("v2", flow.records, flow.clock, flow.compared).answer(ShadowQuery(project="bank"))
    assert (other.agreed, other.differed, other.differences) == (0, 0, ())
    alone = await Shadow("v2", flow.records, flow.clock, None).answer(ShadowQuery(project="shop"))
    assert (alone.shadow, alone.agreed) == ("", 0)
    await flow.words.stop()
