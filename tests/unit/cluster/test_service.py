"""The service as it runs: on both buses, restarted, killed with its server, and started wrongly."""

import asyncio
import os
import subprocess
import sys
from datetime import timedelta

import httpx
import pytest
from loopwright_cluster.adapters.qdrant_edge import QdrantEdgeIndex
from loopwright_cluster.app import Service, create_app, open_index
from loopwright_cluster.domain import Exemplar
from loopwright_cluster.embedding.hashing import HashingEmbedding
from loopwright_cluster.settings import ClusterSettings
from loopwright_cluster.word_records import Words
from loopwright_common.bus import ConsumerSpec, Outgoing
from loopwright_common.clock import SystemClock
from loopwright_common.contracts.queries import EvaluationQuery, GroupCommand, SearchQuery, ShadowQuery
from loopwright_common.contracts.reports import ReportTransitioned
from loopwright_common.contracts.subjects import (
    COMMANDS_GROUPS,
    EVALUATION_QUERY,
    GROUPS_REGROUPED,
    GROUPS_UPDATED,
    REPORTS_TRANSITIONED,
    SEARCH_QUERY,
    SHADOW_QUERY,
    SIGNALS,
)


class Listener:
    """Collects the facts cluster publishes, as the gateway would hear them."""

    def __init__(self):
        self.facts, self.regrouped = [], []
        self._heard = asyncio.Condition()

    async def start(self, bus):
        async def hear(message):
            if message.subject.endswith("updated"):
                self.facts.extend(message.payload.apart())
            else:
                self.regrouped.append(message.payload)
            async with self._heard:
                self._heard.notify_all()

        subjects = (GROUPS_UPDATED, GROUPS_REGROUPED)
        await bus.consume(ConsumerSpec("listener", "gateway", subjects, ordered=True, ack_wait=timedelta(seconds=5)), hear)
        return self

    async def until(self, condition, seconds=20.0):
        async with asyncio.timeout(seconds), self._heard:
            await self._heard.wait_for(lambda: condition(self))


def announce(signal):
    return Outgoing(SIGNALS, signal, f"signal-{signal.id}", {"project": signal.project, "source": signal.source}, about=signal.id)


@pytest.fixture
def crash(make_signal):
    def make(id, at=0, place="checkout"):
        return make_signal(
            id, at=at, kind="exception", service="web", title=f"KeyError: in {place}", exception_type="KeyError",
            frames=[("app.py", "dispatch"), (f"{place}.py", place)], transaction=f"/{place}",
        )  # fmt: skip

    return make


async def start(bus, folder, batch_max=50):
    service = Service(bus, HashingEmbedding(), QdrantEdgeIndex(folder, 384), SystemClock(), batch_max=batch_max)
    await service.start()
    return service


async def test_signals_become_facts_questions_are_answered_and_commands_obeyed(bus, crash, tmp_path):
    listener = await Listener().start(bus)
    service = await start(bus, tmp_path / "vectors")
    signals = [crash(f"s{number}", place=["checkout", "search"][number % 2]) for number in range(120)]
    await bus.publish_batch([announce(signal) for signal in signals])
    await listener.until(lambda heard: len(heard.facts) == 120)

    for title in {signal.title for signal in signals}:  # one report's signals stay in order
        told = [fact.signal.id for fact in listener.facts if fact.signal.title == title]
        assert told == [signal.id for signal in signals if signal.title == title]
    reports = {fact.signal.title: fact.report_id for fact in listener.facts}
    assert len(set(reports.values())) == 2

    answer = await bus.ask(SEARCH_QUERY, SearchQuery(project="shop", text="KeyError: in search"))
    assert answer.hits[0].report_id == reports["KeyError: in search"]
    assert answer.degraded

    merge = GroupCommand(
        command_id="c1", project="shop", action="merge", report_id=reports["KeyError: in checkout"],
        other_report_id=reports["KeyError: in search"], actor="person:alice", at=SystemClock().now(),
    )  # fmt: skip
    await bus.publish(Outgoing(COMMANDS_GROUPS, merge, "c1", {"project": "shop"}))
    await listener.until(lambda heard: heard.regrouped)
    await bus.publish(announce(crash("s-after", place="search")))
    await listener.until(lambda heard: len(heard.facts) == 121)
    assert listener.facts[-1].report_id == reports["KeyError: in checkout"]
    await service.index.close()


async def test_people_words_outlive_the_service_and_are_evaluated(bus, crash, tmp_path):
    listener = await Listener().start(bus)
    service = await start(bus, tmp_path / "vectors")
    await bus.publish_batch([announce(crash("s1")), announce(crash("s2", place="search")), announce(crash("s3", place="login"))])
    await listener.until(lambda heard: len(heard.facts) == 3)
    one, two, three = (fact.report_id for fact in sorted(listener.facts, key=lambda fact: fact.signal.id))
    moved = next(fact.decision.fingerprint for fact in listener.facts if fact.signal.id == "s2")

    async def say(number, action, report_id, **fields):
        command = GroupCommand(
            command_id=f"c{number}",
            project="shop",
            action=action,
            report_id=report_id,
            actor="person:alice",
            at=SystemClock().now(),
            **fields,
        )
        await bus.publish(Outgoing(COMMANDS_GROUPS, command, f"c{number}", {"project": "shop"}))
        await listener.until(lambda heard: len(heard.regrouped) == number)
        return listener.regrouped[-1]

    assert not (await say(1, "move", two, other_report_id=one, fingerprints=(moved,))).refused
    assert not (await say(2, "never_together", one, other_report_id=three)).refused
    await service._words.stop()
    await service._records.stop()

    words = await Words.open(bus)  # as the next process reads them
    await words.start()
    assert {word.command_id for _, _, word in words.constraints("shop").pairs} == {"c2"}
    assert words.constraints("shop").apart.keys() == {moved}
    await words.stop()
    assert "(command c2)" in (await say(3, "merge", three, other_report_id=one)).refused
    evaluated = await bus.ask(EVALUATION_QUERY, EvaluationQuery(project="shop"))
    assert (evaluated.same, evaluated.apart, evaluated.version) == (1, 2, "v2")
    compared = await bus.ask(SHADOW_QUERY, ShadowQuery(project="shop"))
    assert (compared.shadow, compared.version) == ("", "v2")
    await service.index.close()


async def test_a_recurrence_is_linked_when_the_gateway_has_said_that_the_fix_held(bus, crash, tmp_path):
    listener = await Listener().start(bus)
    service = await start(bus, tmp_path / "vectors")
    await bus.publish(announce(crash("s1")))
    await listener.until(lambda heard: heard.facts)
    old = listener.facts[0].report_id
    held = ReportTransitioned(
        project="shop", report_id=old, sequence=1, from_state="measuring", to_state="held", actor="service:measure", reason="it held",
        at=crash("x", at=100).occurred_at,
    )  # fmt: skip
    await bus.publish(Outgoing(REPORTS_TRANSITIONED, held, "t1", {"project": "shop"}))
    async with asyncio.timeout(10):
        while True:  # the two streams are not in step: wait until it was heard
            entry = await (await bus.key_value("cluster_reports")).get(f"shop.{old}")
            if entry is not None:
                break
            await asyncio.sleep(0.02)
    await bus.publish_batch([announce(crash("s2", at=200)), announce(crash("s3", at=201))])
    await listener.until(lambda heard: len(heard.facts) == 3)

    second, third = listener.facts[1:]
    assert (second.recurrence_of, third.recurrence_of) == (old, None)
    assert second.report_id == third.report_id != old
    await service.index.close()


async def test_after_a_restart_without_its_index_a_known_fingerprint_still_finds_its_report(new_nats_bus, crash, tmp_path):
    first_bus, ears = await new_nats_bus("cluster"), await new_nats_bus("gateway")
    listener = await Listener().start(ears)
    first = await start(first_bus, tmp_path / "one")
    await ears.publish_batch([announce(crash("s1")), announce(crash("s2", place="search"))])
    await listener.until(lambda heard: len(heard.facts) == 2)
    await first.stop(timedelta(seconds=5))

    second = await start(await new_nats_bus("cluster"), tmp_path / "two")
    assert await second.index.count() == 2
    await ears.publish_batch([announce(crash("s3")), announce(crash("s4", place="search"))])
    await listener.until(lambda heard: len(heard.facts) == 4)
    assert [fact.report_id for fact in listener.facts[2:]] == [fact.report_id for fact in listener.facts[:2]]
    await second.stop(timedelta(seconds=5))


async def test_killing_the_server_midway_loses_no_signal_and_doubles_none(nats_server, new_nats_bus, crash, tmp_path):
    bus, ears = await new_nats_bus("cluster"), await new_nats_bus("gateway")
    listener = await Listener().start(ears)
    signals = [crash(f"s{number}", place=f"place{number % 7}") for number in range(400)]
    await ears.publish_batch([announce(signal) for signal in signals])
    service = await start(bus, tmp_path / "vectors", batch_max=20)
    await listener.until(lambda heard: len(heard.facts) > 40)
    nats_server.restart()
    await listener.until(lambda heard: len({fact.signal.id for fact in heard.facts}) == 400, seconds=60)

    by_signal = {}
    for fact in listener.facts:
        assert by_signal.setdefault(fact.signal.id, fact.report_id) == fact.report_id
    assert len(set(by_signal.values())) == 7
    info = {fact.signal.id for fact in listener.facts}
    assert info == {signal.id for signal in signals}
    await service.stop(timedelta(seconds=5))


async def test_the_app_says_that_it_runs_degraded_when_the_model_is_missing(nats_server, tmp_path):
    settings = ClusterSettings(
        nats_url=nats_server.url, nats_store_bytes=256 * 1024**2, embedding_model_dir=tmp_path / "absent", index_dir=tmp_path / "vectors"
    )
    app = create_app(settings)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://cluster") as client:
        before = await client.get("/v1/grouping")
        assert (before.status_code, before.headers["content-type"]) == (503, "application/problem+json")
        async with app.router.lifespan_context(app):
            ready = await client.get("/readyz")
            assert ready.status_code == 200
            assert any("DEGRADED" in need and str(tmp_path / "absent") in need for need in ready.json()["needs"])
            status = (await client.get("/v1/grouping")).json()
            assert status == {"grouping_version": "v2", "embedding": "character-hash", "degraded": True, "fingerprints_indexed": 0}


async def test_the_index_has_as_much_memory_as_is_set(tmp_path):
    embedding = HashingEmbedding()
    exemplar = Exemplar("shop", "fp", "r", "s", "issue", "", 0.0, "a title", "a title")
    for mib, there in ((0, False), (1, True)):
        index = await open_index(ClusterSettings(index_dir=tmp_path / str(mib), index_memory_mib=mib), embedding)
        await index.upsert([exemplar], await embedding.embed([exemplar.text]))
        assert await index.in_memory("shop") is there
        await index.close()


def run_module(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "loopwright_cluster", *arguments],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_help_lists_every_setting():
    done = run_module("--help")
    assert done.returncode == 0
    for name in ClusterSettings.model_fields:
        assert f"LOOPWRIGHT_CLUSTER_{name.upper()}" in done.stdout


def test_a_bad_setting_stops_the_start_and_names_variable_value_and_limit():
    done = run_module(LOOPWRIGHT_CLUSTER_BATCH_MAX="5000")
    assert done.returncode == 2
    assert "LOOPWRIGHT_CLUSTER_BATCH_MAX" in done.stderr
    assert "5000" in done.stderr
    assert "1000" in done.stderr
