"""The whole service with a model on the real bus: settings, client, decision, shadow, and what is left of it after a restart."""

import json
from datetime import timedelta

import pytest
import structlog
from loopwright_cluster.adapters.qdrant_edge import QdrantEdgeIndex
from loopwright_cluster.app import SPENDING_BUCKET, Service, open_judging
from loopwright_cluster.handlers import report_id_for
from loopwright_cluster.settings import ClusterSettings
from loopwright_common.bus import Outgoing
from loopwright_common.clock import SystemClock
from loopwright_common.contracts.queries import GroupCommand
from loopwright_common.contracts.subjects import COMMANDS_GROUPS, SIGNALS
from loopwright_common.testing.scripted_model import ScriptedModel
from prometheus_client import REGISTRY

from tests.unit.cluster.people import Letters, stream
from tests.unit.cluster.test_asking_a_model import KEY, says
from tests.unit.cluster.test_service import Listener

SIGNALS_SENT = 160


def announce(signal):
    return Outgoing(SIGNALS, signal, f"signal-{signal.id}", {"project": signal.project, "source": signal.source}, about=signal.id)


def sample(name, **labels):
    return REGISTRY.get_sample_value(name, labels) or 0.0


@pytest.fixture
def start(tmp_path):
    async def make(bus, url, name="vectors"):
        settings = ClusterSettings(
            model_base_url=url, model_name="scripted-1", model_api_key=KEY, shadow="v1", model_usd_per_million_input=1.0
        )
        clock = SystemClock()
        judging = await open_judging(settings, bus, clock)
        index = QdrantEdgeIndex(tmp_path / name, 384)
        service = Service(bus, Letters(), index, clock, batch_max=40, judging=judging)
        await service.start()
        return service, judging

    return make


async def test_what_a_model_was_asked_is_decided_told_and_kept_over_a_restart_without_the_index(new_nats_bus, start):
    signals, _ = stream(1, SIGNALS_SENT)
    ears = await new_nats_bus("gateway")
    listener = await Listener().start(ears)
    tokens = sample("loopwright_model_tokens_total", role="adjudicator", direction="input")
    asked = sample("loopwright_cluster_questions_total", answer="same")
    differs = sample("loopwright_cluster_shadow_decisions_total", version="v1", agreed="false")
    with structlog.testing.capture_logs() as logs, ScriptedModel(says(lambda item, shown: item["may_be_same_as"][0]), api_key=KEY) as model:
        bus = await new_nats_bus("cluster")
        service, judging = await start(bus, model.url)
        await ears.publish_batch([announce(signal) for signal in signals])
        await listener.until(lambda heard: len({fact.signal.id for fact in heard.facts}) == SIGNALS_SENT, seconds=90)
        client = judging._asking._adjudicator._client._client
        assert not client.is_closed()
        await service.stop(timedelta(seconds=5))
        assert client.is_closed()

        facts = {fact.signal.id: fact for fact in listener.facts}
        given = [fact for fact in facts.values() if fact.decision.reason.startswith("a model was asked, as")]
        assert given
        opened = {report_id_for(fact.signal) for fact in facts.values() if fact.decision.outcome == "opened"}
        assert {fact.report_id for fact in facts.values()} == opened

        # Metrics and logs: what it cost, what came of it, what the shadow would have done; and no secret.
        assert sample("loopwright_model_tokens_total", role="adjudicator", direction="input") == tokens + 100 * len(model.requests)
        assert sample("loopwright_cluster_questions_total", answer="same") - asked == len(given)
        spent = [await (await ears.key_value(SPENDING_BUCKET)).get(key) for key in await (await ears.key_value(SPENDING_BUCKET)).keys()]
        assert json.loads(spent[0].value) == pytest.approx(100 * len(model.requests) / 1_000_000)
        told = [entry for entry in logs if entry["event"] == "grouping_shadow_differs"]
        assert len(told) == sample("loopwright_cluster_shadow_decisions_total", version="v1", agreed="false") - differs > 0
        assert {"signal_id", "reason", "shadow_reason", "report_id", "shadow_report_id"} <= set(told[0])
        assert KEY not in str(logs)

        # A restart that has lost its index: the same texts again find their reports, and nobody is asked about what is recorded.
        before = len(model.requests)
        second, _ = await start(await new_nats_bus("cluster"), model.url, "empty")
        again = [signal.model_copy(update={"id": f"again-{signal.id}"}) for signal in signals]
        await ears.publish_batch([announce(signal) for signal in again])
        await listener.until(lambda heard: len({fact.signal.id for fact in heard.facts}) == 2 * SIGNALS_SENT, seconds=90)
        where = {fact.signal.id: fact.report_id for fact in listener.facts}
        assert all(where[f"again-{signal.id}"] == where[signal.id] for signal in signals)
        assert len(model.requests) == before

        # A person has the last word: what the model gave away leaves, and stays out.
        chosen = given[0]
        split = GroupCommand(
            command_id="c1", project="shop", action="split", report_id=chosen.report_id, fingerprints=(chosen.decision.fingerprint,),
            actor="person:alice", at=SystemClock().now(),
        )  # fmt: skip
        await ears.publish(Outgoing(COMMANDS_GROUPS, split, "c1", {"project": "shop"}))
        await listener.until(lambda heard: heard.regrouped)
        await ears.publish(announce(chosen.signal.model_copy(update={"id": "after"})))
        await listener.until(lambda heard: any(fact.signal.id == "after" for fact in heard.facts))
        after = next(fact for fact in listener.facts if fact.signal.id == "after")
        assert after.report_id == listener.regrouped[0].report_id != chosen.report_id
        await second.stop(timedelta(seconds=5))
