"""Laws of people's words over random histories: what is told apart is never together, what is merged is, the last word can be undone.

A word labels the pairs of fingerprints on its two sides; of a pair the newest label counts, and an undo takes its word's labels away.
"""

import itertools
import random
from datetime import timedelta

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loopwright_cluster.handlers import BEFORE_EVERYTHING
from loopwright_cluster.judging import Judging
from loopwright_cluster.regrouping import fill_index
from loopwright_common.contracts.subjects import GROUPS_REGROUPED

STEPS = 30
RESOLVED = ("held", "not_held")


class History:
    """Random signals, words, undos, resolutions, restarts and redeliveries, checked after each step."""

    def __init__(self, flow, make_signal, seed):
        self.flow, self.make_signal, self.rng = flow, make_signal, random.Random(seed)
        self.number = 0
        self.labels = {}  # pair of fingerprints -> (command, same?)
        self.words = {}  # command -> (how it was said, the fact, pairs it labelled)
        self.undone = set()
        self.last = None  # the newest word: (command, places before it, index before it, labels before it)
        self.seen = set()

    def id(self, kind):
        self.number += 1
        return f"{kind}{self.number}"

    async def where(self):
        """Each known fingerprint's report now."""
        found = {}
        for fingerprint, pointer in (await self.flow.records.fingerprints_of("shop")).items():
            found[fingerprint] = (await self.flow.records.place("shop", pointer.report_id, BEFORE_EVERYTHING, "")).report_id
        return found

    async def filed(self, index=None):
        return {item.fingerprint: item.report_id for item in await (index or self.flow.index).exemplars("shop", 1_000)}

    async def signals(self):
        signals = []
        for _ in range(self.rng.randint(1, 4)):
            self.flow.clock.advance(timedelta(minutes=7))
            way, place = self.rng.choice(("basket", "wishlist", "gift", "coupon")), self.rng.choice(("query", "search"))
            frames = [(f"{name}.py", name) for name in ("dispatch", "session", "orders", way, "cursor", place)]
            at = (self.flow.clock.now() - timedelta(hours=1)).timestamp()
            start = self.make_signal("x").occurred_at.timestamp()
            signals.append(
                self.make_signal(
                    self.id("s"), at=at - start, kind="exception", title=f"KeyError: in {place}", exception_type="KeyError", service="web",
                    frames=frames,
                )
            )  # fmt: skip
        await self.flow.take(*signals)

    async def say(self, action, report_id, **fields):
        command, before = self.id("c"), await self.where()
        filed, labels = await self.filed(), dict(self.labels)
        kept_apart = [await self.ends(said) for name, (said, _, _) in self.words.items() if name not in self.undone]
        said = (action, report_id, {"id": command} | fields)
        fact = await self.flow.command(action, report_id, id=command, **fields)
        if fact.refused:
            assert await self.where() == before, fact.refused
            assert await self.filed() == filed
            self.seen.add(f"{action} refused")
            return
        self.seen.add(action)
        assert action != "merge" or {report_id, fields["other_report_id"]} not in kept_apart
        if action == "undo":
            await self.check_undo(fields["undoes"], fact, before)
            return
        pairs = self.label(action, command, fact, before, fields)
        self.words[command] = (said, fact, pairs)
        self.last = (command, before, filed, labels)

    async def ends(self, said):
        """The reports that a never_together names, as they are now; of another word none."""
        action, report_id, fields = said
        if action != "never_together":
            return set()
        named = (report_id, fields["other_report_id"])
        return {(await self.flow.records.place("shop", name, BEFORE_EVERYTHING, "")).report_id for name in named}

    def label(self, action, command, fact, before, fields):
        def held(report_id):
            return {fingerprint for fingerprint, report in before.items() if report == report_id}

        if action == "never_together":
            sides = [(held(fact.report_id), held(fact.from_report_id), False)]
        elif action == "merge":
            sides = [(held(fact.report_id), held(fact.from_report_id), True)]
        else:
            moved = set(fact.fingerprints)
            assert moved == set(fields["fingerprints"]) & held(fact.from_report_id)
            sides = [(moved, held(fact.from_report_id) - moved, False)]
            if action == "move":
                sides.append((moved, held(fact.report_id) - moved, True))
        pairs = set()
        for one, other, same in sides:
            for pair in map(frozenset, itertools.product(one, other)):
                self.labels[pair] = (command, same)
                pairs.add(pair)
        return pairs

    async def check_undo(self, undone, fact, before):
        self.undone.add(undone)
        _, _, pairs = self.words[undone]
        now = await self.where()
        changed = set(fact.fingerprints) if fact.report_id != fact.from_report_id else set()
        assert {fingerprint for fingerprint in now if now[fingerprint] != before[fingerprint]} == changed
        assert all(now[fingerprint] == fact.report_id for fingerprint in fact.fingerprints)
        if self.last is not None and self.last[0] == undone:
            self.seen.add("undo of the last")
            _, places, filed, labels = self.last
            assert {fingerprint: now[fingerprint] for fingerprint in places} == places
            index = await self.filed()
            assert {fingerprint: index[fingerprint] for fingerprint in filed} == filed
            self.labels = labels
        else:
            for pair in pairs:
                self.labels.pop(pair, None)
            for pair, (_, same) in list(self.labels.items()):
                # The undo is the newest word of what it moves back.
                if len(pair & set(fact.fingerprints)) == 1 and self.together(now, pair) is not same:
                    del self.labels[pair]
        self.last = None

    @staticmethod
    def together(now, pair):
        return len({now[fingerprint] for fingerprint in pair}) == 1

    async def check(self):
        now = await self.where()
        for pair, (command, same) in self.labels.items():
            assert self.together(now, pair) is same, f"{command}: {pair} should be {'together' if same else 'apart'}"

    async def step(self):
        now = await self.where()
        reports = sorted(set(now.values()))
        kinds = ["signals"] * 4 + ["merge", "split", "move", "never_together", "undo", "undo", "resolve", "restart", "again"]
        kind = self.rng.choice(kinds if reports else ["signals"])
        report_id = self.rng.choice(reports) if reports else ""
        other = self.rng.choice(reports) if reports else ""
        some = tuple(sorted(self.rng.sample(sorted(now), min(len(now), self.rng.randint(1, 3)))))
        here = tuple(fingerprint for fingerprint in some if now[fingerprint] == report_id)
        if kind == "signals":
            await self.signals()
        elif kind in ("merge", "never_together"):
            await self.say(kind, report_id, other_report_id=other)
        elif kind == "split":
            await self.say(kind, report_id, fingerprints=here or some)
        elif kind == "move":
            await self.say(kind, report_id, fingerprints=here or some, other_report_id=other)
        elif kind == "undo":
            left = [command for command in self.words if command not in self.undone]
            if left:
                command = left[-1] if self.rng.random() < 0.5 else self.rng.choice(left)
                await self.say(kind, report_id, undoes=command)
        elif kind == "resolve":
            self.number += 1
            await self.flow.transition(report_id, self.rng.choice(RESOLVED), sequence=self.number, at=self.flow.clock.now())
            self.seen.add("resolve")
        elif kind == "restart":
            self.flow.judging = Judging(self.rng.choice(("v1", "v2")), shadow="v1")
            await self.flow.restart()
        elif self.words:
            command = self.rng.choice(sorted(self.words))
            (action, named, fields), fact, _ = self.words[command]
            self.flow.bus.broker._ids.clear()
            await self.flow.command(action, named, **fields)
            assert self.flow.bus.published(GROUPS_REGROUPED)[-1] == fact
            assert await self.where() == now


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
async def test_no_history_puts_together_what_was_told_apart_or_takes_apart_what_was_merged(new_flow, make_signal, seed):
    flow = await new_flow()
    history = History(flow, make_signal, seed)
    try:
        for _ in range(STEPS):
            await history.step()
            await history.check()
        empty = (await new_flow()).index
        await fill_index(flow.records, flow.embedding, empty)
        assert await history.filed(empty) == await history.filed()
    finally:
        await flow.words.stop()


async def test_the_histories_hold_all_that_they_are_to_test(new_flow, make_signal):
    seen = set()
    for seed in range(12):
        flow = await new_flow()
        history = History(flow, make_signal, seed)
        for _ in range(STEPS):
            await history.step()
        seen |= history.seen
        await flow.words.stop()
    words = {"merge", "split", "move", "never_together", "undo"}
    assert seen >= words | {"undo of the last", "resolve", "merge refused", "never_together refused", "split refused"}
