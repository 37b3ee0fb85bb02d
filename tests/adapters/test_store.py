"""The gateway's store: SQLite and PostgreSQL keep the same promises. PostgreSQL is Debian's, started here for the module."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from alembic import command
from loopwright_common.contracts.investigations import Cost
from loopwright_common.contracts.reports import GroupingDecision, ReportState
from loopwright_common.contracts.signals import Exposure, Signal
from loopwright_common.testing.clock import START
from loopwright_gateway.adapters import tables as t
from loopwright_gateway.adapters.accounts import SqlAccounts
from loopwright_gateway.adapters.inbox import Inbox
from loopwright_gateway.adapters.store import SqlStore
from loopwright_gateway.migrate import configuration, migrate
from loopwright_gateway.ports import ReportQuery
from loopwright_gateway.promotion import MinuteWeight
from loopwright_gateway.records import ChangeRecord, FirstDecision, OutboxItem, Report, SeenSignal, TimelineEntry
from sqlalchemy import inspect, text

UNPRIVILEGED = 65534  # postgres refuses to run as root


class Postgres:
    """A PostgreSQL server on a socket of its own, as an ordinary user."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self.binaries, self.folder = binaries, folder
        self.user = {"user": UNPRIVILEGED, "group": UNPRIVILEGED, "extra_groups": []} if os.getuid() == 0 else {}

    def start(self) -> None:
        if self.user:
            os.chown(self.folder, UNPRIVILEGED, UNPRIVILEGED)
        data = self.folder / "data"
        initdb = [self.binaries / "initdb", "-D", data, "-U", "tester", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C"]
        subprocess.run(initdb, check=True, capture_output=True, timeout=60, cwd=self.folder, **self.user)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        arguments = [self.binaries / "postgres", "-D", data, "-p", str(self.port), "-h", "127.0.0.1", "-k", self.folder]
        self.log = (self.folder / "log").open("wb")
        self.process = subprocess.Popen([*arguments, "-F"], stdout=self.log, stderr=self.log, cwd=self.folder, **self.user)
        deadline = time.monotonic() + 30
        while subprocess.run([self.binaries / "pg_isready", "-h", "127.0.0.1", "-p", str(self.port)], capture_output=True).returncode:
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.1)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        self.log.close()

    def database(self, name: str) -> str:
        command = [self.binaries / "createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "tester", name]
        subprocess.run(command, check=True, capture_output=True, timeout=30)
        return f"postgresql+asyncpg://tester@127.0.0.1:{self.port}/{name}"


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("PostgreSQL is not installed: apt install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # not tmp_path: its parents are closed to the unprivileged user
    server = Postgres(found[-1].parent, folder)
    server.start()
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path}/gateway.db"
    server: Postgres = request.getfixturevalue("postgres")
    return server.database(f"t{time.monotonic_ns()}")


@pytest_asyncio.fixture
async def store(url: str) -> AsyncIterator[SqlStore]:
    opened = SqlStore.open(url)
    await opened.migrate()
    yield opened
    await opened.close()


def report(id: str = "r1", **more: Any) -> Report:
    values: dict[str, Any] = {
        "project": "shop", "title": f"Report {id}", "state": ReportState.GATHERING, "first_seen": START, "last_seen": START,
        "opened_at": START, "updated_at": START, **more,
    }  # fmt: skip
    return Report(id=id, **values)


def seen(id: str, report_id: str = "r1", actor: str = "") -> SeenSignal:
    return SeenSignal(id, report_id, START, "v1", "production", "exception", "shop", 1.0, actor, False, True)


async def save(store: SqlStore, *reports: Report) -> None:
    async with store.transaction() as unit:
        for item in reports:
            await unit.save_report(item)


async def test_migrations_make_exactly_the_tables_of_the_code(store: SqlStore) -> None:
    def columns(connection: Any) -> dict[str, dict[str, tuple[str, bool]]]:
        look = inspect(connection)
        return {
            table: {column["name"]: (str(column["type"]), column["nullable"]) for column in look.get_columns(table)}
            for table in look.get_table_names()
            if table != "alembic_version"
        }

    async with store.reading.connect() as connection:
        made = await connection.run_sync(columns)
    dialect = store.reading.dialect
    declared = {
        name: {column.name: (column.type.compile(dialect=dialect), bool(column.nullable)) for column in table.columns}
        for name, table in t.metadata.tables.items()
    }
    plain = str.maketrans({})
    alike = {"DOUBLE PRECISION": "FLOAT", "BIGSERIAL": "BIGINT"}
    for name in declared:
        assert {key: (alike.get(kind.translate(plain), kind), null) for key, (kind, null) in made[name].items()} == declared[name], name
    assert set(made) == set(declared)


async def test_two_that_migrate_an_empty_database_at_once_both_succeed(url: str) -> None:
    both = [SqlStore.open(url), SqlStore.open(url)]
    try:
        await asyncio.gather(*(item.migrate() for item in both))
        await save(both[0], report())
        await both[1].migrate()
        async with both[1].transaction() as unit:
            assert (await unit.report("r1")) is not None
    finally:
        for item in both:
            await item.close()


async def test_what_was_counted_before_fingerprints_were_kept_is_still_explained_and_moved(url: str) -> None:
    opened = SqlStore.open(url)
    try:
        async with opened.transaction() as unit:
            await unit._connection.run_sync(lambda connection: command.upgrade(configuration(connection), "0003"))
        async with opened.transaction() as unit:
            values = "'old', 'r1', 60000, 'v1', 'production', 'exception', 'shop', 1.0, 'ann', false, true, 60000"
            await unit.execute(text(f"INSERT INTO signals_seen VALUES ({values})"))
        await opened.migrate()
        await save(opened, report(signal_count=1, live_count=1, weight=1.0), report("r2"))
        (explained,), _ = await Inbox(opened).explain("r1", None, None, 10)
        (fingerprint,), _ = await Inbox(opened).fingerprints("r1", None, 10)
        assert (explained.signal.id, explained.fingerprint, explained.decision, explained.moved) == ("old", "", None, None)
        assert explained.signal.occurred_at.timestamp() == 60
        assert (fingerprint.fingerprint, fingerprint.signals, fingerprint.example) == ("", 1, "old")
        async with opened.transaction() as unit:
            await unit.mark("c1", "r1", "r2", START, fingerprints=(), signal_ids=("old",))
            assert (await unit.carried("c1")).signal_count == 1
            await unit.carry("c1", "r1", "r2", everything=False)
            assert await unit.named("r2", ["old"]) == {"old": ""}
    finally:
        await opened.close()


async def test_a_report_is_read_back_as_it_was_saved(store: SqlStore) -> None:
    saved = report(
        title="ünïcode ☃ 'quotes' \"and\" %_", priority="P2", services=["shop", "käse"], kinds={"ticket": 2}, releases={"v1": 3},
        input=["euros"], weight=2.5, snoozed_until=START + timedelta(milliseconds=1), question="which?", recurrence_of="r0",
    )  # fmt: skip
    await save(store, saved)
    async with store.transaction() as unit:
        assert await unit.report("r1") == saved
        assert await unit.report("r2") is None


async def test_what_a_failed_transaction_wrote_is_gone(store: SqlStore) -> None:
    async def fail() -> None:
        async with store.transaction() as unit:
            await unit.save_report(report())
            await unit.enqueue(OutboxItem("timer", {}, "m", "r1", "{}"))
            await unit.remember([seen("s1")], START)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    async with store.transaction() as unit:
        assert await unit.report("r1") is None
        assert await unit.unseen(["s1"]) == {"s1"}
    assert await store.outbox(10) == []


async def test_writers_come_one_after_the_other(store: SqlStore, url: str) -> None:
    other = SqlStore.open(url)
    await save(store, report())

    async def add(which: SqlStore) -> None:
        for _ in range(10):
            async with which.transaction() as unit:
                found = await unit.report("r1")
                assert found is not None
                await asyncio.sleep(0)
                found.signal_count += 1
                await unit.save_report(found)

    try:
        async with asyncio.timeout(60):
            await asyncio.gather(add(store), add(other), add(store))
    finally:
        await other.close()
    async with store.transaction() as unit:
        found = await unit.report("r1")
    assert found is not None
    assert found.signal_count == 30


async def test_a_line_of_the_timeline_with_the_same_cause_is_written_once(store: SqlStore) -> None:
    async with store.transaction() as unit:
        entry = TimelineEntry(1, "note", "policy", "why", START, "cause")
        assert await unit.add_timeline(report(), entry)
        assert not await unit.add_timeline(report(), TimelineEntry(2, "note", "policy", "why", START, "cause"))
        assert await unit.has_cause("r1", "cause")


async def test_counts_add_up_per_minute_release_and_environment(store: SqlStore) -> None:
    key = (START, "v1", "production")
    async with store.transaction() as unit:
        await unit.count("r1", {key: 2, (START, "v2", ""): 1})
        await unit.count("r1", {key: 3})
        assert await unit.add_actors("r1", ["a", "b", "a"]) == 2
        assert await unit.add_actors("r1", ["b", "c"]) == 1
    window = (START, START + timedelta(minutes=1))
    counts, _, cut = await store.rates("shop", "r1", [], "", *window, 10)
    assert ({item.release: item.count for item in counts}, cut) == ({"v1": 5, "v2": 1}, False)
    counts, _, _ = await store.rates("shop", "r1", [], "production", *window, 10)
    assert [item.count for item in counts] == [5]
    assert (await store.rates("shop", "r1", [], "", *window, 1))[2]
    assert (await store.rates("shop", "r1", [], "", START + timedelta(minutes=1), START + timedelta(minutes=2), 10))[0] == []


async def test_what_signals_weigh_is_told_per_minute_and_kind_in_the_order_of_time(store: SqlStore) -> None:
    def weighing(id: str, minutes: int, kind: str, weight: float, **more: Any) -> SeenSignal:
        return replace(seen(id), minute=START + timedelta(minutes=minutes), kind=kind, weight=weight, **more)

    async with store.transaction() as unit:
        signals = [
            weighing("s1", 5, "exception", 1.0), weighing("s2", 5, "exception", 0.5, backfill=True), weighing("s3", -5, "ticket", 2.0),
            weighing("s4", 5, "ticket", 2.0), weighing("s5", 5, "log", 9.0), weighing("s6", 5, "ticket", 9.0, counted=False),
            weighing("s7", 5, "ticket", 9.0, report_id="r2"),
        ]  # fmt: skip
        await unit.remember(signals, START)
        before, after = START - timedelta(minutes=5), START + timedelta(minutes=5)
        assert await unit.minute_weights("r1", ["exception", "ticket"]) == [
            MinuteWeight(before, "ticket", 2.0, 1), MinuteWeight(after, "exception", 1.5, 1), MinuteWeight(after, "ticket", 2.0, 1),
        ]  # fmt: skip
        assert await unit.minute_weights("r1", []) == []


async def test_exposure_ids_count_once(store: SqlStore) -> None:
    item = Exposure(id="e1", project="shop", service="shop", minute=START + timedelta(seconds=30), count=10**9, errored=1)
    async with store.transaction() as unit:
        assert await unit.add_exposure([item, item], START) == 1
        assert await unit.add_exposure([item, *(item.model_copy(update={"id": f"e{n}"}) for n in range(2, 6))], START) == 4
    _, exposure, _ = await store.rates("shop", None, ["shop"], "", START, START + timedelta(minutes=1), 10)
    assert [(entry["count"], entry["errored"], entry["minute"]) for entry in exposure] == [(5 * 10**9, 5, START)]


@pytest.mark.parametrize("sort", ["priority", "last_seen", "people", "created"])
async def test_pages_stay_right_while_reports_are_added(store: SqlStore, sort: str) -> None:
    def numbered(number: int) -> Report:
        at = START + timedelta(seconds=number // 3)
        priority = [None, "P0", "P1", "P4"][number % 4]
        return report(f"r{number:03}", priority=priority, last_seen=at, opened_at=at, people_count=number % 5)

    await save(store, *(numbered(number) for number in range(25)))
    inbox, found, after, added = Inbox(store), [], None, 100
    while True:
        rows, after, _ = await inbox.reports(ReportQuery(project="shop", sort=sort, after=after, limit=4), START)
        found += [row.id for row in rows]
        if after is None:
            break
        await save(store, numbered(added))
        added += 1
    first = [name for name in found if name < "r100"]
    assert sorted(first) == [f"r{number:03}" for number in range(25)]
    assert len(set(found)) == len(found)


async def test_lists_are_filtered_by_every_facet(store: SqlStore) -> None:
    await save(
        store,
        report("a", services=["shop"], kinds={"ticket": 1}, priority="P1", state=ReportState.NEEDS_INPUT, title="Pay 100% now"),
        report("b", services=["shop-api"], kinds={"exception": 2}, state=ReportState.DISMISSED, title="Pay 1000 now"),
        report("c", project="other", services=["shop"], kinds={"exception": 2}),
    )

    async def ids(**query: Any) -> list[str]:
        rows, _, total = await Inbox(store).reports(ReportQuery(sort="created", **query), START)
        assert total == len(rows)
        return sorted(row.id for row in rows)

    assert await ids() == ["a", "c"]
    assert await ids(include_closed=True) == ["a", "b", "c"]
    assert await ids(states=(ReportState.DISMISSED,)) == ["b"]
    assert await ids(project="other") == ["c"]
    assert await ids(service="shop", include_closed=True) == ["a", "c"]
    assert await ids(kind="ticket") == ["a"]
    assert await ids(priorities=("P1",)) == ["a"]
    assert await ids(waits_for_me=True) == ["a"]
    assert await ids(text="100%", include_closed=True) == ["a"]
    assert await ids(text="PAY", include_closed=True) == ["a", "b"]
    assert await ids(text="nothing", ids=("c",)) == ["c"]


async def test_usage_is_metered_once_per_id(store: SqlStore) -> None:
    async with store.transaction() as unit:
        for _ in range(2):
            await unit.add_usage("pull:c1", "shop", "r1", "pull_request", Cost(), START, pull_requests=1)
        assert await unit.add_usage("i:1", "shop", "r1", "investigate", Cost(usd=1.5, wall_seconds=2.0), START)
        assert await unit.usd_since("shop", START) == 1.5
        assert await unit.usd_since("shop", START + timedelta(seconds=1)) == 0.0
    usage = await Inbox(store).usage("shop", "2026-11")
    assert (usage.pull_requests, usage.usd, [item.stage for item in usage.stages]) == (1, 1.5, ["investigate", "pull_request"])
    assert (await Inbox(store).usage("shop", "2026-12")).pull_requests == 0


async def test_changes_are_counted_for_the_caps(store: SqlStore) -> None:
    def change(id: str, state: str, hours_ago: int, suspect: str = "s1") -> ChangeRecord:
        at = START - timedelta(hours=hours_ago)
        return ChangeRecord(id, "shop", f"r-{id}", "shop", suspect, state, 1, "t", "policy", at, at, at)

    async with store.transaction() as unit:
        for item in (change("c1", "requested", 0), change("c2", "failed", 2, "s2"), change("c3", "merged", 30, "s3")):
            await unit.save_change(item)
        assert [await unit.changes_since("shop", START - timedelta(hours=hours)) for hours in (1, 24, 48)] == [1, 2, 3]
        assert (await unit.open_changes("shop", "shop"), await unit.open_changes("shop", "other")) == (1, 0)
        assert [await unit.open_change_for("shop", "shop", name) for name in ("s1", "s2", "s3")] == ["r-c1", None, "r-c3"]


async def test_changes_are_listed_by_their_report(store: SqlStore) -> None:
    def change(number: int) -> ChangeRecord:
        at = START + timedelta(hours=number)
        return ChangeRecord(f"c{number}", "shop", f"r{number % 2}", "shop", None, "failed", number, "t", "policy", at, at, at)

    async with store.transaction() as unit:
        for number in range(6):
            await unit.save_change(change(number))
    inbox = Inbox(store)
    first, after = await inbox.changes("shop", [], "r1", None, 2)
    rest, end = await inbox.changes("shop", [], "r1", after, 2)
    assert ([item.id for item in first], [item.id for item in rest], end) == (["c5", "c3"], ["c1"], None)
    assert await inbox.changes("shop", ["merged"], "r1", None, 2) == ([], None)
    assert await inbox.changes(None, [], "r9", None, 2) == ([], None)


async def test_the_outbox_is_sent_oldest_first_and_forgotten(store: SqlStore) -> None:
    async with store.transaction() as unit:
        for number in range(5):
            await unit.enqueue(OutboxItem("timer", {"project": "shop"}, f"m{number}", "r1", "{}"))
    items = await store.outbox(3)
    assert [item.message_id for item in items] == ["m0", "m1", "m2"]
    await store.sent([item.id for item in items])
    assert [item.message_id for item in await store.outbox(9)] == ["m3", "m4"]


async def test_what_is_old_is_forgotten_and_event_ids_are_never_used_twice(store: SqlStore) -> None:
    async with store.transaction() as unit:
        await unit.remember([seen("old")], START)
        await unit.remember([seen("new")], START + timedelta(days=2))
        for _ in range(10):
            await unit.add_event("report.changed", "shop", {"id": "r1"}, START)
    inbox = Inbox(store)
    _, newest = await inbox.event_range()
    await store.prune(START + timedelta(days=1), START, 3)
    async with store.transaction() as unit:
        assert await unit.unseen(["old", "new"]) == {"old"}
        await unit.add_event("report.changed", "shop", {"id": "r1"}, START)
    assert [item.id for item in await inbox.events(0, 100)] == [newest - 2, newest - 1, newest, newest + 1]


async def test_counts_and_exposure_are_forgotten_by_their_minute_in_small_steps_and_nothing_younger(store: SqlStore) -> None:
    def minute(day: int, number: int = 0) -> datetime:
        return START + timedelta(days=day, minutes=number)

    reports = [report(f"r{number:03}", first_seen=minute(0), last_seen=minute(9)) for number in range(7)]
    await save(store, *reports, report("young", first_seen=minute(8)))
    async with store.transaction() as unit:
        for item in reports:
            days = {(minute(day, number), release, ""): 1 for day in (0, 3, 8) for number in range(5) for release in ("v1", "v2")}
            await unit.count(item.id, days)
        await unit.count("young", {(minute(8), "v1", ""): 3})
        items = [
            Exposure(id=f"{project}-{service}-{day}", project=project, service=service, minute=minute(day), count=4)
            for project in ("other", "shop") for service in ("api", "shop", "worker") for day in (0, 3, 8)
        ]  # fmt: skip
        await unit.add_exposure(items, minute(9))
    # 7 reports x 2 days x 10 rows, and 6 services x 2 days; the ids of exposures are younger
    assert await store.prune(minute(0), minute(4), 10, rows_per_step=3) == 7 * 2 * 10 + 6 * 2
    assert await store.prune(minute(0), minute(4), 10, rows_per_step=3) == 0
    for item in reports:
        signals, _, _ = await store.rates("shop", item.id, [], "", minute(0), minute(9), 1_000)
        assert [(found.minute, found.count) for found in signals] == [(minute(8, n), 1) for n in range(5) for _ in ("v1", "v2")]
    for project in ("other", "shop"):
        _, exposure, _ = await store.rates(project, None, ["api", "shop", "worker"], "", minute(0), minute(9), 1_000)
        assert [(found["service"], found["minute"], found["count"]) for found in exposure] == [
            (service, minute(8), 4) for service in ("api", "shop", "worker")
        ]


async def test_writers_are_not_kept_waiting_for_all_that_is_old(store: SqlStore) -> None:
    async with store.transaction() as unit:
        await unit.remember([seen(f"old{number}") for number in range(400)], START)
    pruning = asyncio.create_task(store.prune(START + timedelta(days=1), START, 10, rows_per_step=5))
    while len(await left(store)) == 400:
        await asyncio.sleep(0)
    async with store.transaction() as unit:
        await unit.remember([seen("new")], START + timedelta(days=2))
        between = set(await left(store))
    assert len(between) > 1, "the writer waited until everything was gone"
    assert await pruning == 400
    assert await left(store) == ["new"]


async def left(store: SqlStore) -> list[str]:
    async with store.reading.connect() as connection:
        return list((await connection.execute(text("SELECT signal_id FROM signals_seen"))).scalars())


async def test_tokens_are_kept_as_hashes_and_end_when_revoked_or_run_out(store: SqlStore) -> None:
    accounts = SqlAccounts(store, "operator-token")
    token_id, token = await accounts.create("alice", "viewer", START, None, "lwt")
    _, session = await accounts.create("alice", "viewer", START, START + timedelta(hours=1), "lws")
    assert [(await accounts.find(item, START)).name for item in (token, session, "operator-token")] == ["alice", "alice", "operator"]  # type: ignore[union-attr]
    assert await accounts.find(session, START + timedelta(hours=1)) is None
    assert await accounts.revoke(token_id, START)
    assert not await accounts.revoke(token_id, START)
    assert await accounts.find(token, START) is None
    async with store.reading.connect() as connection:
        rows = (await connection.execute(text("SELECT * FROM tokens"))).all()
    assert token not in str(rows)


async def test_the_longest_and_strangest_texts_that_contracts_allow_are_kept(store: SqlStore) -> None:
    wide = "\U0001f600" * 512
    signal = Signal(
        id="s" * 64, project="shop", source="http", kind="custom", title="t\x00t", body="b\x00" * 100, occurred_at=START, received_at=START,
        release=wide, environment="e" * 64, service="s" * 64,
    )  # fmt: skip
    decision = GroupingDecision(outcome="opened", rule="new", reason="r\x00", fingerprint=wide, grouping_version="v1")
    async with store.transaction() as unit:
        await unit.keep_example("r1", signal, decision)
        await unit.count("r1", {(START, wide, "e" * 64): 1})
        await unit.add_usage("investigate:" + "i" * 64, "shop", "r1", "investigate", Cost(), START)
        await unit.save_change(ChangeRecord("c", "shop", "r1", "n" * 512, None, "requested", 1, wide, "policy", START, START, START))
        await unit.keep_first_decisions([FirstDecision("shop", "r" * 64, signal, decision, START)])
        await unit.move_fingerprints("c" * 64, "shop", [wide, "f\x00"], "a" * 64, "b" * 64, START)
        assert (await unit.examples("r1", 10))[0][0] == signal
        assert set(await unit.fingerprint_moves("shop", [wide, "f\x00"])) == {wide, "f\ufffd"}


async def test_a_nul_in_a_title_is_no_reason_to_fail(store: SqlStore) -> None:
    await save(store, report(title="a\x00b", services=["s\x00"]))
    async with store.transaction() as unit:
        found = await unit.report("r1")
        await unit.remember([seen("s1", actor="x")], START)
    assert found is not None
    assert (found.title, found.services) == ("a\ufffdb", ["s\x00"])


async def test_a_database_that_is_ahead_of_this_program_is_left_as_it_is(store: SqlStore) -> None:
    """After a rollback the program before meets the newer tables."""
    async with store.transaction() as unit:
        await unit._connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    await store.migrate()
    await save(store, report())
    async with store.read() as connection:
        assert (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalar_one() == "9999"


async def test_a_migration_waits_for_a_server_that_is_still_to_come(postgres: Postgres) -> None:
    name = f"t{time.monotonic_ns()}"
    postgres.database(name)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"postgresql+asyncpg://tester@127.0.0.1:{port}/{name}"
    with pytest.raises(OSError):
        await migrate(url)
    waiting = asyncio.create_task(migrate(url, wait_seconds=60))
    await asyncio.sleep(0.2)
    assert not waiting.done()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", postgres.port)

        async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            while data := await source.read(65_536):
                target.write(data)
                await target.drain()
            target.close()

        await asyncio.gather(copy(reader, there[1]), copy(there[0], writer), return_exceptions=True)

    async with await asyncio.start_server(forward, "127.0.0.1", port):
        await waiting
        store = SqlStore.open(url)
        try:
            await save(store, report())
        finally:
            await store.close()


def test_sqlite_survives_a_killed_writer_without_losing_what_was_committed(tmp_path: Path) -> None:
    """SIGKILL in the middle of writing: every acknowledged row is there, and the file is whole."""
    program = f"""
import asyncio, sys
from loopwright_gateway.adapters.store import SqlStore
from loopwright_gateway.records import OutboxItem
async def main():
    store = SqlStore.open("sqlite+aiosqlite:///{tmp_path}/g.db")
    await store.migrate()
    for number in range(100_000):
        async with store.transaction() as unit:
            await unit.enqueue(OutboxItem("timer", {{}}, str(number), "", ""))
        print(number, flush=True)
asyncio.run(main())
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    acknowledged = [int(process.stdout.readline()) for _ in range(20)]
    process.kill()
    acknowledged += [int(line) for line in process.stdout.read().split("\n") if line]
    process.wait(10)

    async def look() -> list[str]:
        store = SqlStore.open(f"sqlite+aiosqlite:///{tmp_path}/g.db")
        try:
            return [item.message_id for item in await store.outbox(100_000)]
        finally:
            await store.close()

    assert [str(number) for number in acknowledged] == asyncio.run(look())[: len(acknowledged)]
