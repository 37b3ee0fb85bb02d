import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from loopwright_cluster.adapters.qdrant_server import QdrantServerIndex
from loopwright_cluster.comparison_records import ComparisonRecords
from loopwright_cluster.costly import CostlyPath
from loopwright_cluster.embedding.hashing import HashingEmbedding
from loopwright_cluster.embedding.minilm import MiniLmEmbedding
from loopwright_cluster.fingerprinting import Fingerprinting
from loopwright_cluster.handlers import ProjectLocks, SignalGrouping
from loopwright_cluster.records import Records
from loopwright_cluster.regrouping import Regrouping, Search
from loopwright_cluster.word_records import Words
from loopwright_common.bus import Received
from loopwright_common.contracts.envelope import Envelope
from loopwright_common.contracts.queries import GroupCommand
from loopwright_common.contracts.reports import ReportTransitioned
from loopwright_common.contracts.signals import Signal
from loopwright_common.contracts.subjects import COMMANDS_GROUPS, GROUPS_REGROUPED, GROUPS_UPDATED, REPORTS_TRANSITIONED, SIGNALS
from loopwright_common.testing.clock import FakeClock
from loopwright_common.testing.memory_bus import MemoryBus
from qdrant_client import AsyncQdrantClient

MODEL = Path(__file__).parents[3] / ".cache" / "models" / "minilm-int8"
START = datetime(2026, 11, 26, 10, tzinfo=UTC)


@pytest.fixture(scope="session")
def make_signal():
    """Builds a signal; ``at`` is seconds after a fixed start, ``frames`` may be (file, function) pairs."""

    def make(id="s1", *, at=0.0, project="shop", source="sentry", kind="log", title="something happened", frames=(), **fields):
        moment = START + timedelta(seconds=at)
        return Signal.model_validate(
            {
                "id": id, "project": project, "source": source, "kind": kind, "title": title, "occurred_at": moment, "received_at": moment,
                "frames": [{"file": frame[0], "function": frame[1]} if isinstance(frame, (tuple, list)) else frame for frame in frames],
                **fields,
            }
        )  # fmt: skip

    return make


@pytest.fixture(scope="session")
def incidents(make_signal):
    """Made-up incidents by domain: [(domain, [(group, signal), ...])]. The first lot set v1's figures, the second did not."""
    found = {}
    for part, entries in json.loads((Path(__file__).parent / "incidents.json").read_text()).items():
        found[part] = []
        for entry in entries:
            rows = []
            for number, row in enumerate(entry["signals"]):
                fields = {key: value for key, value in row.items() if key != "group"}
                rows.append((row["group"], make_signal(f"{row['group']}-{row['kind']}-{number}", **fields)))
            found[part].append((entry["domain"], rows))
    return found


@pytest.fixture(scope="session")
def minilm():
    if not (MODEL / "manifest.json").exists():
        pytest.skip(f"no embedding model in {MODEL}: run the set-up")
    return MiniLmEmbedding(MODEL)


class Flow:
    """The grouping's parts on one broker and one index, made anew by ``restart`` as after a crash: no memory survives."""

    def __init__(self, bus, embedding, index):
        self.bus, self.embedding, self.index = bus, embedding, index
        self.new_per_minute = 0
        self.fingerprinting = self.words = None
        self.judging = None  # None: as without a model
        self.clock = FakeClock(START + timedelta(hours=1))

    async def restart(self, *, bus=None, index=None):
        bus, index = bus or self.bus, index or self.index
        self.records = await Records.open(bus)
        if self.words is not None:
            await self.words.stop()
        self.words = await Words.open(bus)
        await self.words.start()
        if self.fingerprinting is not None:
            await self.fingerprinting.stop()
        self.fingerprinting = await Fingerprinting.open(bus)
        await self.fingerprinting.start()
        locks, shadow = ProjectLocks(), self.judging.shadow if self.judging is not None else None
        self.compared = await ComparisonRecords.open(bus, self.clock, self.judging.version, shadow) if shadow is not None else None
        self.grouping = SignalGrouping(
            bus, self.records, self.embedding, index, self.clock, locks, CostlyPath(self.new_per_minute), self.fingerprinting, self.judging,
            self.words, self.compared,
        )  # fmt: skip
        self.regrouping = Regrouping(bus, self.records, self.words, index, locks, self.clock)
        self.search = Search(self.records, self.embedding, index)
        return self

    async def take(self, *signals):
        """Hand signals in as one batch; returns (report id, decision) for each, as published."""
        await self.grouping.handle([received(SIGNALS, signal, source=signal.source) for signal in signals])
        facts = {fact.signal.id: fact for fact in self.facts()}
        return [facts[signal.id] for signal in signals]

    async def transition(self, report_id, to_state, *, sequence=1, at=START, **fields):
        heard = ReportTransitioned(
            project=fields.pop("project", "shop"), report_id=report_id, sequence=sequence, from_state=fields.pop("from_state", None),
            to_state=to_state, actor="test", reason="test", at=at, **fields,
        )  # fmt: skip
        await self.regrouping.hear([received(REPORTS_TRANSITIONED, heard)])

    async def command(self, action, report_id, *, id="c1", **fields):
        command = GroupCommand(
            command_id=id, project="shop", action=action, report_id=report_id, actor="person:alice", at=self.clock.now(), **fields
        )
        await self.regrouping.obey(received(COMMANDS_GROUPS, command))
        return self.bus.published(GROUPS_REGROUPED)[-1]

    def told(self):
        """What was published of each signal, as often as it was."""
        return [fact for together in self.bus.published(GROUPS_UPDATED) for fact in together.apart()]

    def facts(self):
        """One fact for each signal, as it is counted: what was told again has to say the same."""
        found = {}
        for fact in self.told():
            again = found.setdefault((fact.project, fact.signal.id), fact).model_copy(update={"decided_at": fact.decided_at})
            assert again == fact, f"told differently: {again} {fact}"
        return list(found.values())


def received(subject, payload, **tokens):
    name = subject.name(project=payload.project, **tokens)
    envelope = Envelope(id="m1", source="/services/test", type=subject.event_type, time=START)
    return Received(name, payload, envelope, subject.stream, 1, 1, payload.project, payload.model_dump_json().encode())


@pytest.fixture
def on_the_bus():
    return received


@pytest.fixture
def new_flow():
    """Makes a Flow on stores of its own: ``await new_flow()``. The index is the server adapter on qdrant-client's local mode."""

    async def make(embedding=None):
        index = await QdrantServerIndex.open(AsyncQdrantClient(location=":memory:"), "loopwright", 384)
        return await Flow(MemoryBus("cluster"), embedding or HashingEmbedding(), index).restart()

    return make


@pytest.fixture
async def flow(new_flow):
    return await new_flow()
