"""The ordered flow: what is published for each signal, once, whatever is delivered again and wherever the process dies."""

import asyncio
import contextlib
import itertools
import random
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loopwright_cluster import handlers
from loopwright_cluster.embedding.hashing import HashingEmbedding
from loopwright_cluster.handlers import report_id_for
from loopwright_cluster.regrouping import fill_index
from loopwright_common.bus import Conflict
from loopwright_common.contracts.queries import SearchQuery
from loopwright_common.contracts.subjects import SIGNALS
from loopwright_common.errors import Permanent


class CountingEmbedding(HashingEmbedding):
    """Keeps the texts it was asked for."""

    def __init__(self):
        self.asked = []

    async def embed(self, texts):
        self.asked += texts
        return await super().embed(texts)


@pytest.fixture
def crash(make_signal):
    def make(id, at=0, place="checkout", **fields):
        return make_signal(
            id, at=at, kind="exception", service="web", title=f"KeyError: in {place}", exception_type="KeyError",
            frames=[("app.py", "dispatch"), (f"{place}.py", place)], transaction=f"/{place}", **fields,
        )  # fmt: skip

    return make


def later(signal, hours):
    moved = {"id": f"late-{signal.id}"}
    moved |= {name: getattr(signal, name) + timedelta(hours=hours) for name in ("occurred_at", "received_at")}
    return signal.model_copy(update=moved)


async def test_the_first_signal_opens_a_report_and_the_second_of_the_same_crash_joins_it(flow, crash):
    first, second = await flow.take(crash("s1"), crash("s2", at=5))

    assert first.report_id == second.report_id == report_id_for(first.signal)
    assert (first.decision.outcome, first.decision.rule) == ("opened", "new")
    assert (second.decision.outcome, second.decision.rule) == ("joined", "fingerprint")
    assert "checkout.py:checkout" in second.decision.reason
    assert first.decision.grouping_version == "v2"


async def test_a_known_fingerprint_never_reaches_the_embedding(new_flow, crash):
    embedding = CountingEmbedding()
    flow = await new_flow(embedding)
    await flow.take(crash("s1"))
    await flow.restart()
    await flow.take(*(crash(f"s{number}") for number in range(2, 50)))

    assert len(embedding.asked) == 1
    assert len({fact.report_id for fact in flow.facts()}) == 1


async def test_what_was_compared_without_the_model_says_so_and_a_fingerprint_does_not(flow, crash):
    first, second = await flow.take(crash("s1"), crash("s2"))
    assert (first.decision.degraded, second.decision.degraded) == (True, False)


async def test_the_first_of_a_flood_of_new_problems_are_told_before_the_last_are_embedded(new_flow, crash, monkeypatch):
    monkeypatch.setattr(handlers, "NEW_PER_PART", 8)
    monkeypatch.setattr(handlers, "EMBEDDED_AT_ONCE", 8)
    told_before = []

    class Slow(CountingEmbedding):
        async def embed(self, texts):
            if self.asked:
                while len(told_before) < 8:  # for ever, if the first part waited for the second
                    told_before[:] = flow.facts()
                    await asyncio.sleep(0)
            return await super().embed(texts)

    flow = await new_flow(Slow())
    async with asyncio.timeout(20):
        facts = await flow.take(
            *(crash(f"s{number}", place=f"place{chr(97 + number)}") for number in range(12)), crash("again", place="placea")
        )

    assert len(told_before) == 8
    assert [fact.signal.id for fact in facts] == [*(f"s{number}" for number in range(12)), "again"]
    assert facts[-1].report_id == facts[0].report_id


@pytest.mark.parametrize("part", [1, 2, 64])
async def test_what_a_part_of_a_batch_led_to_leads_there_in_the_next_part(flow, make_signal, crash, monkeypatch, part):
    """The bare exception is known by another key of the wrapped one, which is stored between the parts."""
    monkeypatch.setattr(handlers, "NEW_PER_PART", part)
    frames = [("a.py", "go"), ("b.py", "pay"), ("c.py", "price")]
    bare = make_signal("s3", kind="exception", title="x", exception_type="KeyError", frames=frames)
    chain = {"exception.chain": "Failed <- KeyError"}
    through = [frames[0], ("r.py", "guard"), *frames[1:]]
    wrapped = make_signal("s1", kind="exception", title="x", exception_type="Failed", labels=chain, frames=through)

    first, _, other = await flow.take(wrapped, crash("s2"), bare)

    assert other.report_id == first.report_id
    assert other.decision.rule == "fingerprint"


async def test_projects_do_not_meet(flow, crash):
    ours, theirs = await flow.take(crash("s1"), crash("s2", project="bank"))
    assert ours.report_id != theirs.report_id
    assert theirs.decision.rule == "new"


async def test_three_kinds_of_signal_about_one_regression_share_a_report_and_each_says_why(new_flow, minilm, incidents):
    flow = await new_flow(minilm)
    for _, rows in incidents["settings_were_set_on"][:2]:
        signals = [signal.model_copy(update={"project": f"p{len(rows)}"}) for _, signal in rows]
        facts = await flow.take(*signals)
        together = {fact.report_id for fact, (group, _) in zip(facts, rows, strict=True) if group == "checkout"}
        assert len(together) == 1
        assert {fact.signal.kind for fact in facts if fact.report_id in together} == {"exception", "health_check", "ticket"}
        assert not any(fact.report_id in together for fact, (group, _) in zip(facts, rows, strict=True) if group != "checkout")
        for fact in facts:
            if fact.decision.rule == "similarity":
                assert "checkout" in fact.decision.reason
                assert fact.decision.neighbours[0].report_id == fact.report_id
                assert not fact.decision.degraded


async def test_a_batch_delivered_again_publishes_nothing_new(flow, crash):
    batch = [crash("s1"), crash("s2"), crash("s3", place="search")]
    before = await flow.take(*batch)
    await flow.restart()
    after = await flow.take(*batch)

    assert before == after
    assert len(flow.facts()) == 3


async def test_the_first_signal_delivered_again_after_others_keeps_its_first_decision(flow, crash):
    (opened,) = await flow.take(crash("s1"))
    await flow.take(crash("s2"))
    flow.bus.broker._ids.clear()  # the bus has forgotten its message ids, as after its duplicate window
    await flow.restart()
    await flow.take(crash("s1"))

    first, _, again = flow.told()
    assert again == first == opened


async def test_a_signal_on_the_subject_of_another_project_is_refused(flow, crash, on_the_bus):
    message = on_the_bus(SIGNALS, crash("s1"), source="sentry")
    message.project = "bank"
    with pytest.raises(Permanent, match="came on"):
        await flow.grouping.handle([message])
    assert flow.facts() == []


# Recurrence and the states people give.


async def test_a_recurrence_after_held_opens_a_linked_report_and_later_ones_go_there(flow, crash):
    (old,) = await flow.take(crash("s1"))
    await flow.transition(old.report_id, "held", at=flow.clock.now())
    late = flow.clock.now().timestamp() - crash("x").occurred_at.timestamp() + 60
    new, more = await flow.take(crash("s2", at=late), crash("s3", at=late + 5))

    assert new.report_id == report_id_for(new.signal) != old.report_id
    assert (new.decision.outcome, new.decision.rule, new.recurrence_of) == ("opened", "recurrence", old.report_id)
    assert "resolved" in new.decision.reason
    assert (more.report_id, more.decision.outcome, more.recurrence_of) == (new.report_id, "joined", None)


async def test_what_occurred_before_the_fix_was_measured_still_belongs_to_the_old_report(flow, crash):
    (old,) = await flow.take(crash("s1"))
    await flow.transition(old.report_id, "held", at=flow.clock.now())
    (straggler,) = await flow.take(crash("s2", at=30))
    assert straggler.report_id == old.report_id


async def test_a_problem_that_comes_back_after_each_of_forty_fixes_opens_a_report_each_time(flow, crash):
    (fact,) = await flow.take(crash("s0"))
    for number in range(1, 41):
        await flow.transition(fact.report_id, "held", at=flow.clock.now() + timedelta(hours=number))
        (again,) = await flow.take(later(crash(f"s{number}"), hours=number + 1.5))
        assert (again.decision.rule, again.recurrence_of) == ("recurrence", fact.report_id), number
        fact = again


async def test_a_recurrence_delivered_again_gives_the_same_report_and_link(flow, crash):
    (old,) = await flow.take(crash("s1"))
    await flow.transition(old.report_id, "dismissed", dismiss_reason="fixed", at=flow.clock.now())
    late = flow.clock.now().timestamp() - crash("x").occurred_at.timestamp() + 60
    (first,) = await flow.take(crash("s2", at=late))
    flow.bus.broker._ids.clear()
    await flow.restart()
    await flow.take(crash("s2", at=late))

    again = flow.facts()[-1]
    assert (again.report_id, again.recurrence_of, again.decision) == (first.report_id, old.report_id, first.decision)


async def test_other_fingerprints_of_a_resolved_report_recur_into_the_same_new_report(new_flow, minilm, incidents):
    flow = await new_flow(minilm)
    rows = [signal for group, signal in incidents["settings_were_set_on"][0][1] if group == "checkout"]
    old = (await flow.take(*rows))[0].report_id
    await flow.transition(old, "held", at=flow.clock.now(), project=rows[0].project)
    late = [later(signal, hours=3) for signal in rows]
    facts = await flow.take(*late)

    assert {fact.report_id for fact in facts} == {report_id_for(late[0])}
    assert [fact.recurrence_of for fact in facts] == [old, None, None]


@pytest.mark.parametrize(
    "change", [{"to_state": "suppressed"}, {"to_state": "dismissed", "dismiss_reason": "expected"}, {"to_state": "snoozed"}]
)
async def test_a_report_that_was_put_away_goes_on_taking_its_own(flow, crash, change):
    (old,) = await flow.take(crash("s1"))
    await flow.transition(old.report_id, at=flow.clock.now(), **change)
    (more,) = await flow.take(crash("s2", at=9_000))
    assert (more.report_id, more.decision.outcome) == (old.report_id, "joined")


async def test_a_reopened_report_takes_its_own_again_and_resolved_once_more_it_does_not(flow, crash):
    (old,) = await flow.take(crash("s1"))
    base = flow.clock.now().timestamp() - crash("x").occurred_at.timestamp()
    await flow.transition(old.report_id, "held", sequence=1, at=flow.clock.now())
    (first,) = await flow.take(crash("s2", at=base + 1))
    await flow.transition(old.report_id, "ready", sequence=2, at=flow.clock.now())
    (reopened,) = await flow.take(crash("s3", at=base + 2))
    await flow.transition(old.report_id, "held", sequence=3, at=flow.clock.now())
    (second,) = await flow.take(crash("s4", at=base + 3))

    assert reopened.report_id == old.report_id
    assert second.recurrence_of == old.report_id
    assert len({old.report_id, first.report_id, second.report_id}) == 3


async def test_older_news_of_a_report_changes_nothing(flow, crash):
    (old,) = await flow.take(crash("s1"))
    await flow.transition(old.report_id, "ready", sequence=5, at=flow.clock.now())
    await flow.transition(old.report_id, "held", sequence=4, at=flow.clock.now())
    (more,) = await flow.take(crash("s2", at=9_000))
    assert more.report_id == old.report_id


async def test_a_measurement_joins_the_report_it_is_about_even_when_that_is_resolved(flow, crash, make_signal):
    (old,) = await flow.take(crash("s1"))
    await flow.transition(old.report_id, "held", at=flow.clock.now())
    verdict = make_signal("m1", at=99_000, kind="measurement", source="measurement", title="held", about_report=old.report_id)
    (fact,) = await flow.take(verdict)

    assert (fact.report_id, fact.decision.rule, fact.recurrence_of) == (old.report_id, "about_report", None)
    assert (await flow.index.count()) == 1


# Merge and split.


async def test_merged_reports_are_one_from_then_on_also_for_verdicts_about_the_one_that_went(flow, crash, make_signal):
    one, other = await flow.take(crash("s1"), crash("s2", place="search"))
    fact = await flow.command("merge", one.report_id, other_report_id=other.report_id, reason="same cause")
    assert (fact.report_id, fact.from_report_id, fact.signal_ids) == (one.report_id, other.report_id, None)

    verdict = make_signal("m1", kind="measurement", source="measurement", about_report=other.report_id)
    for later in await flow.take(crash("s3", place="search"), crash("s4"), verdict):
        assert later.report_id == one.report_id


@pytest.mark.parametrize("fields", [{}, {"other_report_id": "r1"}])
async def test_a_merge_without_two_reports_is_refused(flow, fields):
    assert (await flow.command("merge", "r1", **fields)).refused


async def test_merging_in_a_circle_is_refused(flow, crash):
    one, other = await flow.take(crash("s1"), crash("s2", place="search"))
    await flow.command("merge", one.report_id, other_report_id=other.report_id)
    assert "circle" in (await flow.command("merge", other.report_id, other_report_id=one.report_id, id="c2")).refused


async def test_split_off_fingerprints_have_a_report_of_their_own(flow, crash):
    one, other = await flow.take(crash("s1"), crash("s2", place="search"))
    await flow.command("merge", one.report_id, other_report_id=other.report_id)
    fact = await flow.command("split", one.report_id, fingerprints=(other.decision.fingerprint,), id="c2")
    again = await flow.command("split", one.report_id, fingerprints=(other.decision.fingerprint,), id="c2")
    later, stays = await flow.take(crash("s3", place="search"), crash("s4"))

    assert fact == again
    assert later.report_id == fact.report_id not in {one.report_id, other.report_id}
    assert stays.report_id == one.report_id
    (hit,) = (await flow.search.answer(SearchQuery(project="shop", text="KeyError: in search", limit=1))).hits
    assert hit.report_id == fact.report_id


async def test_a_split_leaves_the_fingerprints_of_other_reports_where_they_are_and_says_so(flow, crash):
    one, other = await flow.take(crash("s1"), crash("s2", place="search"))
    both = (one.decision.fingerprint, other.decision.fingerprint)
    fact = await flow.command("split", one.report_id, fingerprints=both, id="c3")
    assert fact.fingerprints == both[:1]
    assert "1 of the fingerprints named" in fact.reason
    moved, stays = await flow.take(crash("s3"), crash("s4", place="search"))

    assert moved.report_id not in {one.report_id, other.report_id}
    assert stays.report_id == other.report_id


async def test_search_gives_each_report_once_the_most_similar_first(new_flow, minilm, make_signal):
    flow = await new_flow(minilm)
    facts = await flow.take(
        make_signal("s1", kind="ticket", title="Payment by card is declined", service="web"),
        make_signal("s2", kind="ticket", title="Card payment declined at once", service="web"),
        make_signal("s3", kind="ticket", title="Profile picture is upside down", service="web"),
    )
    answer = await flow.search.answer(SearchQuery(project="shop", text="customers cannot pay with their credit card", limit=5))

    assert answer.hits[0].report_id in {facts[0].report_id, facts[1].report_id}
    assert len(answer.hits) == len({hit.report_id for hit in answer.hits}) == len({fact.report_id for fact in facts})
    assert answer.hits[-1].title == "Profile picture is upside down"
    assert (await flow.search.answer(SearchQuery(project="bank", text="card"))).hits == ()


async def test_a_search_compares_with_what_people_wrote_as_they_wrote_it_and_with_machines_reports_as_those_are_kept(flow, make_signal):
    asked = "timeout after 30 seconds on page 7"
    await flow.take(
        make_signal("s1", kind="ticket", title=asked),
        make_signal("s2", kind="ticket", title="timeout after 45 seconds on page 9", service="billing"),
        make_signal("s3", kind="custom", title="timeout after 88 seconds on page 3", service="search"),
    )
    hits = (await flow.search.answer(SearchQuery(project="shop", text=asked, limit=5))).hits
    similarity = {hit.title: hit.similarity for hit in hits}
    assert similarity[asked] == similarity["timeout after 88 seconds on page 3"] == 1.0
    assert similarity["timeout after 45 seconds on page 9"] < 1.0


async def test_a_lost_index_is_filled_again_from_the_records(flow, new_flow, crash):
    facts = await flow.take(crash("s1"), crash("s2", place="search"), crash("s3", place="upload"))
    await flow.command("merge", facts[0].report_id, other_report_id=facts[1].report_id)
    empty = (await new_flow()).index

    assert await fill_index(flow.records, flow.embedding, empty) == 3
    assert await fill_index(flow.records, flow.embedding, empty) == 0
    found = await empty.nearest("shop", np.ones(384, np.float32), 10)
    assert {match.exemplar.signal_id: match.exemplar.report_id for match in found} == {
        "s1": facts[0].report_id, "s2": facts[0].report_id, "s3": facts[2].report_id,
    }  # fmt: skip


# Laws: delivered again, cut differently, killed anywhere.


def story(make_signal, crash, seed):
    """A seeded stream: repeats, near repeats, exceptions bare and wrapped, several kinds, two projects."""
    rng = random.Random(seed)
    places = ["checkout", "search", "upload"]
    signals = []
    for number in range(rng.randint(4, 14)):
        place, project, id = rng.choice(places), rng.choice(["shop", "bank"]), f"s{number}"
        kind = rng.choice(["exception", "exception", "wrapped", "ticket", "health"])
        at = rng.randint(0, 3_000)
        if kind == "exception":
            signals.append(crash(id, at=at, place=place, project=project))
        elif kind == "wrapped":
            through = [("app.py", "dispatch"), (rng.choice(["retry.py", "guard.py"]), "around"), (f"{place}.py", place)]
            fields = {"exception_type": "Failed", "labels": {"exception.chain": "Failed <- KeyError"}, "frames": through}
            signals.append(make_signal(id, at=at, kind="exception", service="web", title=f"Failed: in {place}", project=project, **fields))
        elif kind == "ticket":
            title = f"{place} fails {rng.choice(['again', 'for me', 'since noon'])}"
            signals.append(make_signal(id, at=at, kind="ticket", source="http", title=title, service="web", project=project))
        else:
            labels = {"check": place, "url": f"http://web/health/{place}"}
            title = f"check {place} failed"
            signals.append(
                make_signal(id, at=at, kind="health_check", source="health", title=title, service="web", labels=labels, project=project)
            )
    return signals


def outcome(flow):
    """What counts: each signal's fact without the moment of deciding, whatever it was told together with."""
    facts = [fact.model_copy(update={"decided_at": fact.signal.received_at}) for fact in flow.facts()]
    return sorted(facts, key=lambda fact: (fact.project, fact.signal.id))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), cuts=st.sets(st.integers(1, 13)), restarts=st.booleans(), part=st.integers(1, 4))
async def test_where_batches_and_their_parts_end_and_what_is_delivered_again_changes_nothing(
    new_flow, make_signal, crash, monkeypatch, seed, cuts, restarts, part
):
    signals = story(make_signal, crash, seed)
    whole, cut = await new_flow(), await new_flow()
    await whole.take(*signals)
    monkeypatch.setattr(handlers, "NEW_PER_PART", part)
    edges = [0, *sorted(edge for edge in cuts if edge < len(signals)), len(signals)]
    for start, end in itertools.pairwise(edges):
        await cut.take(*signals[start:end])
        if restarts:
            await cut.restart()
        await cut.take(*signals[start:end])  # delivered again

    monkeypatch.undo()
    assert outcome(cut) == outcome(whole)
    assert len(cut.facts()) == len(signals)


class Died(BaseException):
    """The process ended here."""


class Fuse:
    """Counts effects over everything it wraps, and kills the process just before or just after one of them."""

    def __init__(self, at=None, *, after=False):
        self.at, self.after, self.count = at, after, 0

    def wrap(self, target, *names):
        fuse = self

        class Wrapped:
            def __getattr__(self, name):
                found = getattr(target, name)
                if name not in names:
                    return found

                async def guarded(*args, **kwargs):
                    fuse.count += 1
                    mine = fuse.count
                    if mine == fuse.at and not fuse.after:
                        raise Died
                    result = await found(*args, **kwargs)
                    if mine == fuse.at:
                        raise Died
                    return result

                return guarded

        return Wrapped()


class FusedBus:
    """A bus whose buckets and publishing go through a fuse."""

    def __init__(self, bus, fuse):
        self._bus, self._fuse = bus, fuse

    async def key_value(self, bucket):
        mortal = self._fuse.wrap(await self._bus.key_value(bucket), "create", "update", "put")

        class OneByOne:
            """A server that does not take many together."""

            def __getattr__(self, name):
                return getattr(mortal, name)

            async def create_many(self, values):
                created = {}
                for key, value in values.items():
                    with contextlib.suppress(Conflict):
                        created[key] = await mortal.create(key, value)
                return created

        return OneByOne()

    async def publish_batch(self, messages):
        # One by one, so that it can also die in the middle of what is not atomic on every server.
        publish = self._fuse.wrap(self._bus, "publish").publish
        return [await publish(message) for message in messages]


async def until_done(flow, fuse, work):
    """Do ``work`` on a fresh process, and again on the next one if that dies: what the bus does with what was not acknowledged."""
    while True:
        await flow.restart(bus=FusedBus(flow.bus, fuse), index=fuse.wrap(flow.index, "upsert"))
        try:
            return await work()
        except Died:
            fuse.at = None


@pytest.mark.parametrize(("seed", "part"), [(1, 64), (2, 64), (3, 64), (3, 1), (4, 2)])
async def test_killed_at_any_step_every_signal_is_counted_once_and_nothing_is_decided_otherwise(
    new_flow, make_signal, crash, monkeypatch, seed, part
):
    monkeypatch.setattr(handlers, "NEW_PER_PART", part)
    signals = story(make_signal, crash, seed)
    # A fix is measured half-way, so that recurrences are among what dies.
    half = len(signals) // 2
    late = [later(signal, hours=10) for signal in signals]

    async def play(fuse):
        flow = await new_flow()
        for batch in (signals[:half], signals[half:]):
            await until_done(flow, fuse, lambda batch=batch: flow.take(*batch))
        reports = sorted({(fact.project, fact.report_id) for fact in flow.facts()})
        for project, report_id in reports[::2]:
            fixed = {"at": flow.clock.now() + timedelta(hours=4), "project": project}
            await until_done(flow, fuse, lambda report_id=report_id, fixed=fixed: flow.transition(report_id, "held", **fixed))
        await until_done(flow, fuse, lambda: flow.take(*late))
        return flow

    calm = Fuse()
    expected = await play(calm)
    assert calm.count > len(signals)
    for after in (False, True):
        for step in range(1, calm.count + 1):
            flow = await play(Fuse(step, after=after))
            assert sorted(outcome(flow), key=str) == sorted(outcome(expected), key=str), f"seed {seed}, killed at {step} after={after}"
            assert len(flow.facts()) == len(signals) + len(late)
            assert await flow.index.count() == await expected.index.count()


async def test_when_another_replica_recorded_the_fingerprint_first_its_decision_stands(flow, new_flow, crash):
    rival = await new_flow()
    rival.bus, rival.index = flow.bus, flow.index
    await rival.restart()
    original = flow.records.pointers

    async def overtaken(keys):
        found = await original(keys)
        if not flow.facts():
            await rival.take(crash("s9"))
        return found

    flow.records.pointers = overtaken
    with pytest.raises(Conflict):
        await flow.take(crash("s1"))
    (fact,) = await flow.take(crash("s1"))

    assert fact.report_id == report_id_for(crash("s9"))
    assert fact.decision.rule == "fingerprint"
    assert len(flow.facts()) == 2


async def test_another_replica_hears_of_a_merge_and_of_a_resolution(flow, new_flow, crash):
    other = await new_flow()
    other.bus, other.index = flow.bus, flow.index
    await other.restart()
    await other.records.start()
    try:
        one, two = await flow.take(crash("s1"), crash("s2", place="search"))
        assert [fact.report_id for fact in await other.take(crash("s3"), crash("s4", place="search"))] == [one.report_id, two.report_id]
        await flow.command("merge", one.report_id, other_report_id=two.report_id)
        await flow.transition(one.report_id, "held", at=flow.clock.now())
        await asyncio.sleep(0.05)  # the watch brings it; nothing is read again for it

        (merged,) = await other.take(crash("s5", place="search"))
        (recurred,) = await other.take(later(crash("s6"), hours=3))
        assert merged.report_id == one.report_id
        assert recurred.recurrence_of == one.report_id
    finally:
        await other.records.stop()
