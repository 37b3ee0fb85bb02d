"""Health checks: when a failing check speaks, how replicas share its turns, and which addresses are asked."""

import asyncio
import contextlib
import socket
from datetime import timedelta
from itertools import pairwise

import pytest
from loopwright_common.bus import Conflict
from loopwright_common.contracts.configuration import HealthCheck
from loopwright_common.contracts.subjects import SIGNALS
from loopwright_common.projects import Projects
from loopwright_common.testing.clock import START, FakeClock
from loopwright_common.testing.memory_bus import MemoryBus
from loopwright_ingest.adapters.http_prober import HttpProber
from loopwright_ingest.gather import Gatherer
from loopwright_ingest.ports import ProbeAnswer
from loopwright_ingest.probes import BUCKET, Probes
from loopwright_ingest.sources import health
from loopwright_ingest.sources.health import ProbeState

CHECK = HealthCheck(name="checkout", url="http://127.0.0.1:8000/health/checkout", interval=timedelta(seconds=30), failures_before_signal=2)
BROKEN, WELL = ProbeAnswer(500, "ZeroDivisionError in split_bill"), ProbeAnswer(200, "ok")


def run(answers, check=CHECK):
    """Whether each answer, an interval apart, leads to a signal."""
    state, spoke = ProbeState(due_at=START), []
    for number, answer in enumerate(answers):
        state, due = health.after(state, bool(health.verdict(check, answer)), check, START + number * check.interval)
        spoke.append(due)
    return spoke, state


def test_one_failure_is_no_signal_and_two_in_a_row_are_one():
    assert run([WELL, BROKEN, WELL, BROKEN, WELL])[0] == [False] * 5
    assert run([BROKEN, BROKEN])[0] == [False, True]


def test_while_it_lasts_it_is_said_again_ever_more_rarely():
    spoke, _ = run([BROKEN] * 400)
    at = [number for number, due in enumerate(spoke) if due]
    gaps = [later - earlier for earlier, later in pairwise(at)]
    assert gaps == sorted(gaps)
    assert gaps[0] < gaps[1] < gaps[2]
    assert max(gaps) * CHECK.interval == health.REPEAT_MOST


def test_recovery_is_recorded_and_the_next_outage_is_a_new_one():
    _, state = run([BROKEN, BROKEN, WELL])
    assert state.recovered_at == START + 2 * CHECK.interval
    assert (state.failures, state.failing_since) == (0, None)
    assert run([BROKEN, BROKEN, WELL, BROKEN, BROKEN])[0] == [False, True, False, False, True]


def test_a_signal_says_what_failed_how_and_where():
    state = ProbeState(due_at=START, failures=2, failing_since=START, signals=1)
    signal = health.signal_of("shop", "shop", "", "", CHECK, BROKEN, state, START)
    assert signal.title.startswith("Health check checkout of shop fails: 500")
    assert "ZeroDivisionError in split_bill" in signal.body
    assert (signal.kind, signal.source, signal.service) == ("health_check", "health", "shop")
    assert signal.labels == {"check": "checkout", "target": "127.0.0.1:8000/health/checkout", "status": "500"}


def test_two_replicas_that_find_the_same_say_it_once():
    state = ProbeState(due_at=START, failures=2, failing_since=START, signals=1)
    one = health.signal_of("shop", "shop", "", "", CHECK, BROKEN, state, START)
    other = health.signal_of("shop", "shop", "", "", CHECK, ProbeAnswer(None, "", "no answer"), state, START + timedelta(seconds=1))
    assert one.id == other.id
    later = health.signal_of("shop", "shop", "", "", CHECK, BROKEN, state.model_copy(update={"signals": 2}), START)
    assert later.id != one.id


def test_a_password_in_a_checks_address_is_not_told():
    check = CHECK.model_copy(update={"url": "http://probe:hunter2@127.0.0.1/health"})
    signal = health.signal_of("shop", "shop", "", "", check, BROKEN, ProbeState(due_at=START), START)
    assert "hunter2" not in signal.model_dump_json()


@pytest.mark.parametrize(
    ("answer", "well"),
    [(ProbeAnswer(200, ""), True), (ProbeAnswer(204, ""), False), (ProbeAnswer(302, ""), False), (ProbeAnswer(None, "", "refused"), False)],
)
def test_only_the_expected_status_is_well(answer, well):
    assert (health.verdict(CHECK, answer) == "") is well


# Running them


class Asked:
    """A prober that answers as the test says, and counts."""

    def __init__(self, answer=BROKEN):
        self.answer, self.count = answer, 0

    async def ask(self, url, timeout):
        self.count += 1
        await asyncio.sleep(0)
        return self.answer


class Replica:
    def __init__(self, bus, clock, prober):
        self.gatherer = Gatherer(bus, timedelta(0), 1_000)
        self.probes = Probes(bus, Projects(bus), prober, self.gatherer, clock, 5)

    async def probe(self, check=CHECK):
        await self.probes.probe("shop.shop.checkout", "shop", "shop", check)


@pytest.fixture
async def replicas():
    """Makes replicas of ingest on one bus and one clock."""
    clock = FakeClock(START)
    bus = MemoryBus("ingest", clock=clock)
    made = []

    async def make(prober):
        replica = Replica(bus, clock, prober)
        await replica.gatherer.start()
        made.append(replica)
        return replica

    yield bus, clock, make
    for replica in made:
        await replica.gatherer.stop()


async def test_replicas_share_the_turns_and_speak_once(replicas):
    bus, clock, make = replicas
    probers = [Asked(), Asked(), Asked()]
    made = [await make(prober) for prober in probers]
    for _ in range(10):
        await asyncio.gather(*(replica.probe() for replica in made))
        clock.advance(CHECK.interval)
    assert sum(prober.count for prober in probers) == 10
    found = bus.published(SIGNALS)
    assert len(found) == len({signal.id for signal in found}) == sum(run([BROKEN] * 10)[0])


async def test_a_replica_that_dies_between_claim_and_answer_only_loses_its_turn(replicas):
    bus, clock, make = replicas

    class Dies:
        async def ask(self, url, timeout):
            raise RuntimeError("killed")

    prober = Asked()
    dying, living = await make(Dies()), await make(prober)
    with pytest.raises(RuntimeError):
        await dying.probe()
    await living.probe()
    assert prober.count == 0  # the turn is taken
    for _ in range(2):
        clock.advance(CHECK.interval)
        await living.probe()
    assert len(bus.published(SIGNALS)) == 1


async def test_a_signal_that_could_not_be_stored_is_said_at_the_next_turn(replicas):
    bus, clock, make = replicas
    replica = await make(Asked())
    await replica.probe()
    clock.advance(CHECK.interval)
    bus.broker.stream_limits["SIGNALS"] = 0
    with contextlib.suppress(Exception):
        await replica.probe()
    assert bus.published(SIGNALS) == []
    bus.broker.stream_limits.clear()
    clock.advance(CHECK.interval)
    await replica.probe()
    assert len(bus.published(SIGNALS)) == 1


async def test_the_state_survives_a_restart(replicas):
    _, clock, make = replicas
    prober = Asked()
    await (await make(prober)).probe()
    clock.advance(CHECK.interval)
    await (await make(prober)).probe()
    bucket = await replicas[0].key_value(BUCKET)
    state = ProbeState.model_validate_json((await bucket.get("shop.shop.checkout")).value)
    assert (state.failures, state.signals) == (2, 1)
    with pytest.raises(Conflict):
        await bucket.create("shop.shop.checkout", b"")


async def test_a_configured_check_is_run_and_ends_with_its_configuration(start_edge, make_project):
    from loopwright_common.contracts.configuration import ServiceConfig

    async with answering(b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\nboom") as (port, asked):
        check = HealthCheck(name="front", url=f"http://127.0.0.1:{port}/health", interval=timedelta(seconds=1), failures_before_signal=1)
        service = ServiceConfig(name="shop", health_checks=(check,))
        edge = await start_edge(projects=[make_project(services=(service,))])
        async with asyncio.timeout(10):
            while not edge.signals:
                await asyncio.sleep(0.05)
        assert edge.signals[0].title.startswith("Health check front of shop fails: 500")
        assert "boom" in edge.signals[0].body
        await edge.publish(make_project(revision=2))
        await asyncio.sleep(1.2)
        seen = len(asked)
        await asyncio.sleep(2.2)
        assert len(asked) == seen


# Asking


@contextlib.asynccontextmanager
async def answering(response, *, slowly=False):
    """A server on loopback that says the same to everyone. Yields its port and what it was asked."""
    asked = []

    async def serve(reader, writer):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            asked.append(await reader.readuntil(b"\r\n\r\n"))
            if slowly:
                await asyncio.sleep(30)
            if callable(response):
                await response(writer)
            else:
                writer.write(response)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], asked
    finally:
        server.close()


@pytest.fixture
async def prober():
    made = HttpProber(allow_private=True)
    yield made
    await made.close()


SECOND = timedelta(seconds=1)


async def test_an_address_is_asked_politely_and_without_credentials(prober):
    async with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok") as (port, asked):
        assert await prober.ask(f"http://127.0.0.1:{port}/health?deep=1", SECOND) == ProbeAnswer(200, "ok")
    request = asked[0].decode().lower()
    assert request.startswith("get /health?deep=1 http/1.1")
    assert "loopwright" in request
    assert "authorization" not in request
    assert "cookie" not in request


async def test_a_redirect_is_an_answer_and_not_followed(prober):
    async with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as (there, asked_there):
        moved = f"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:{there}/secret\r\nContent-Length: 0\r\n\r\n".encode()
        async with answering(moved) as (port, _):
            assert (await prober.ask(f"http://127.0.0.1:{port}/", SECOND)).status == 302
    assert asked_there == []


async def test_of_an_endless_body_only_the_beginning_is_read(prober):
    async def endless(writer):
        writer.write(b"HTTP/1.1 500 Oops\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"1000\r\n" + b"a" * 0x1000 + b"\r\n")
            await writer.drain()

    async with answering(endless) as (port, _):
        answer = await prober.ask(f"http://127.0.0.1:{port}/", timedelta(seconds=5))
    assert answer.status == 500
    assert 0 < len(answer.excerpt) <= 2_048


async def test_one_that_does_not_answer_in_time_has_failed(prober):
    async with answering(b"", slowly=True) as (port, _):
        answer = await prober.ask(f"http://127.0.0.1:{port}/", timedelta(milliseconds=200))
    assert (answer.status, answer.error) == (None, "no answer in 0.2 s")


async def test_nobody_there_or_nonsense_has_failed(prober):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        answer = await prober.ask(f"http://127.0.0.1:{unused.getsockname()[1]}/", SECOND)
    assert answer.status is None
    async with answering(b"SSH-2.0-OpenSSH\r\n\r\n") as (port, _):
        answer = await prober.ask(f"http://127.0.0.1:{port}/", SECOND)
    assert (answer.status, bool(answer.error)) == (None, True)


async def test_bytes_that_are_no_text_do_not_get_into_a_signal(prober):
    async with answering(b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\na\x00\xff\xfe") as (port, _):
        answer = await prober.ask(f"http://127.0.0.1:{port}/", SECOND)
    assert "\x00" not in answer.excerpt
    answer.excerpt.encode()


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/",
        "gopher://127.0.0.1/",
        "//127.0.0.1/",
        "127.0.0.1:80",
        "",
        "http://",
        "javascript:alert(1)",
        "http://[::1",
    ],
)
async def test_what_is_not_http_is_not_asked(prober, url):
    answer = await prober.ask(url, SECOND)
    assert answer.status is None
    assert answer.error


@pytest.mark.parametrize(
    "host",
    ["169.254.169.254", "[fe80::1]", "[::ffff:169.254.169.254]", "0.0.0.0", "[::]", "224.0.0.1", "240.0.0.1", "2852039166", "0xa9fea9fe"],
)
async def test_metadata_and_other_special_addresses_are_not_asked(prober, host):
    answer = await prober.ask(f"http://{host}/latest/meta-data/", SECOND)
    assert answer.status is None
    assert "may not be asked" in answer.error or answer.error.startswith("no answer (gaierror")


async def test_localhost_is_asked_by_ipv6_too(prober):
    if not socket.has_ipv6:
        pytest.skip("no IPv6 on this host")
    with socket.socket(socket.AF_INET6) as unused:
        try:
            unused.bind(("::1", 0))
        except OSError as error:
            pytest.skip(f"no IPv6 loopback on this host: {error}")
        answer = await prober.ask(f"http://[::1]:{unused.getsockname()[1]}/", SECOND)
    assert answer.error == "no answer (ConnectError)"


async def test_private_addresses_are_not_asked_where_that_is_off():
    prober = HttpProber(allow_private=False)
    try:
        async with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as (port, asked):
            for host in ("127.0.0.1", "localhost", "10.0.0.1", "192.168.1.1", "[::1]", "[::ffff:127.0.0.1]"):
                answer = await prober.ask(f"http://{host}:{port}/", SECOND)
                assert answer.status is None
                assert "PROBE_PRIVATE_ADDRESSES" in answer.error or "may not be asked" in answer.error
        assert asked == []
    finally:
        await prober.close()


async def test_the_address_that_was_checked_is_the_one_that_is_asked(monkeypatch):
    prober = HttpProber(allow_private=False)
    loop = asyncio.get_running_loop()
    real, answers = loop.getaddrinfo, iter(["93.184.215.14"])

    async def rebinding(host, port, **more):
        if host in ("rebinding.test", b"rebinding.test"):
            host = next(answers, "127.0.0.1")
        return await real(host, port, **more)

    monkeypatch.setattr(loop, "getaddrinfo", rebinding)
    try:
        async with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret") as (port, asked):
            await prober.ask(f"http://rebinding.test:{port}/", SECOND)
            assert asked == []
    finally:
        await prober.close()
