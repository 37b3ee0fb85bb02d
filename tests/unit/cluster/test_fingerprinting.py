"""Fingerprints with a project's rules as they stand, what was learned kept, and known problems found under other keys."""

import pytest
from loopwright_cluster.alias_records import ALIASES_BUCKET, AliasRecords
from loopwright_cluster.fingerprinting import Fingerprinting
from loopwright_cluster.grouping import earlier
from loopwright_common.contracts.configuration import CONFIG_BUCKET, ProjectConfig, PublishedProject
from loopwright_common.projects import Projects
from loopwright_common.testing.memory_bus import MemoryBus

FRAMES = [("a.py", "go"), ("b.py", "pay"), ("c.py", "price")]
CRASH = {"kind": "exception", "title": "x", "exception_type": "KeyError"}
WRAPPED = {"kind": "exception", "title": "x", "exception_type": "Failed", "labels": {"exception.chain": "Failed <- KeyError"}}


@pytest.fixture
async def running():
    bus = MemoryBus("cluster")
    projects = Projects(bus)
    await projects.start()
    fingerprinting = await Fingerprinting.open(bus, projects)
    await fingerprinting.start()

    async def publish(revision, grouping):
        config = ProjectConfig.model_validate({"name": "shop", "grouping": grouping})
        await (await bus.key_value(CONFIG_BUCKET)).put(
            "project.shop", PublishedProject(number=1, revision=revision, config=config).model_dump_json().encode()
        )
        while (found := projects.get("shop")) is None or found.revision != revision:
            await projects.wait_changed()

    yield bus, fingerprinting, publish
    await projects.stop()
    await fingerprinting.stop()


async def test_a_projects_rules_count_as_soon_as_they_are_applied_and_for_no_other(running, make_signal):
    _, fingerprinting, publish = running
    usual = fingerprinting.of(make_signal(title="rate limit"))
    await publish(1, {"fingerprints": [{"message": "rate*", "fingerprint": ["limit"]}]})
    assert "limit" in fingerprinting.of(make_signal(title="rate limit")).parts
    assert fingerprinting.of(make_signal(title="rate limit", project="crm")).parts == usual.parts
    assert fingerprinting.rules("shop") is fingerprinting.rules("shop")
    await publish(2, {})
    assert fingerprinting.of(make_signal(title="rate limit")) == usual


async def test_what_was_learned_is_there_for_the_next_process(running, make_signal):
    bus, fingerprinting, _ = running
    lines = [make_signal(title=f"Invalid user {name} from 10.0.0.1") for name in ("alice", "bob")]
    had = [fingerprinting.of(line).key for line in lines]
    await fingerprinting.save("shop")
    again = await Fingerprinting.open(bus)
    await again.start()
    assert [again.of(line).key for line in reversed(lines)] == had
    await again.stop()


async def keys(fingerprinting, signal):
    return [item.fingerprint for item in await fingerprinting.elsewhere(signal, fingerprinting.of(signal))]


async def test_a_bare_exception_leads_to_the_wrapped_one_that_was_noted_at_once_and_after_a_restart(running, make_signal):
    bus, fingerprinting, _ = running
    bare, wrapped = make_signal(**CRASH, frames=FRAMES), make_signal(**WRAPPED, frames=[FRAMES[0], ("r.py", "guard"), *FRAMES[1:]])
    found = fingerprinting.of(wrapped)
    assert found.key not in await keys(fingerprinting, bare)
    fingerprinting.note(wrapped, found)
    assert (await keys(fingerprinting, bare))[0] == found.key
    await fingerprinting.save("shop")
    again = await Fingerprinting.open(bus)
    assert (await keys(again, bare))[0] == found.key
    assert found.key not in await keys(again, make_signal(**CRASH, frames=FRAMES, project="crm"))


async def test_a_wrapped_exception_leads_to_the_bare_one(running, make_signal):
    _, fingerprinting, _ = running
    bare, wrapped = make_signal(**CRASH, frames=FRAMES), make_signal(**WRAPPED, frames=[FRAMES[0], ("r.py", "guard"), *FRAMES[1:]])
    assert fingerprinting.of(bare).key in await keys(fingerprinting, wrapped)


async def test_two_callers_of_a_wrapped_exception_do_not_lead_to_one_another(running, make_signal):
    _, fingerprinting, _ = running
    bare = make_signal(**CRASH, frames=FRAMES)
    one, other = (
        make_signal(**WRAPPED, frames=[FRAMES[0], caller, *FRAMES[1:]]) for caller in (("cart.py", "pay_now"), ("api.py", "retry"))
    )
    fingerprinting.note(one, fingerprinting.of(one))
    assert fingerprinting.of(one).key not in await keys(fingerprinting, other)
    assert (await keys(fingerprinting, bare))[0] == fingerprinting.of(one).key


async def test_the_key_of_an_earlier_version_is_the_last_that_is_tried(running, make_signal):
    _, fingerprinting, _ = running
    for signal in (make_signal(**CRASH, frames=FRAMES), make_signal(title="a line")):
        assert (await keys(fingerprinting, signal))[-1] == earlier.key(signal)


async def test_the_first_to_take_an_alias_keeps_it():
    bus = MemoryBus("cluster")
    one, other = await AliasRecords.open(bus), await AliasRecords.open(bus)
    await one.add("shop", {"k": "first"})
    await other.add("shop", {"k": "second", "l": "second"})
    assert await other.first("shop", ["k", "l", "m"]) == {"k": "first", "l": "second"}
    assert sorted(await (await bus.key_value(ALIASES_BUCKET)).keys()) == ["shop.k", "shop.l"]
