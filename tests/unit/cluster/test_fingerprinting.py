"""Fingerprints with a project's rules as they stand, and what was learned kept."""

import pytest
from loopwright_cluster.fingerprinting import Fingerprinting
from loopwright_cluster.template_records import TemplateRecords
from loopwright_common.contracts.configuration import CONFIG_BUCKET, ProjectConfig, PublishedProject
from loopwright_common.projects import Projects
from loopwright_common.testing.memory_bus import MemoryBus


@pytest.fixture
async def running():
    bus = MemoryBus("cluster")
    projects, templates = Projects(bus), await TemplateRecords.open(bus)
    await projects.start()
    await templates.start()

    async def publish(revision, grouping):
        config = ProjectConfig.model_validate({"name": "shop", "grouping": grouping})
        await (await bus.key_value(CONFIG_BUCKET)).put(
            "project.shop", PublishedProject(number=1, revision=revision, config=config).model_dump_json().encode()
        )
        while (found := projects.get("shop")) is None or found.revision != revision:
            await projects.wait_changed()

    yield bus, Fingerprinting(templates, projects), publish
    await projects.stop()
    await templates.stop()


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
    again = await TemplateRecords.open(bus)
    await again.start()
    assert [Fingerprinting(again).of(line).key for line in reversed(lines)] == had
    await again.stop()


async def test_a_bare_exception_is_found_under_what_a_wrapped_one_recorded(running, make_signal):
    _, fingerprinting, _ = running
    frames = [("a.py", "go"), ("b.py", "pay"), ("c.py", "price")]
    crash = {"kind": "exception", "title": "x", "exception_type": "KeyError"}
    bare = make_signal(**crash, frames=frames)
    wrapped = make_signal(
        **{**crash, "exception_type": "Failed"},
        frames=[frames[0], ("r.py", "guard"), *frames[1:]],
        labels={"exception.chain": "Failed <- KeyError"},
    )
    found = fingerprinting.of(wrapped)
    recorded = {found.key, *(other.key for other in fingerprinting.others(wrapped, found) if other.record)}
    assert fingerprinting.of(bare).key in recorded
