"""What the stack gives each part: only what it needs, and secrets that their owner alone may read."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from loopwright_cli.stack import Child, Stack, children, write_private


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    return Stack(tmp_path / "data", 9400)


def by_name(stack: Stack, environment: dict[str, str] | None = None) -> dict[str, Child]:
    return {child.name: child for child in children(stack, environment or {"PATH": "/usr/bin", "HOME": "/home/ada"})}


def test_a_secret_is_made_once_and_readable_by_its_owner_alone(stack: Stack) -> None:
    first = stack.secret("operator_token")
    assert stack.secret("operator_token") == first
    assert len(first) >= 32
    assert stack.secret("actor_secret") != first
    assert stat.S_IMODE((stack.secrets / "operator_token").stat().st_mode) == 0o600
    assert stat.S_IMODE(stack.secrets.stat().st_mode) == 0o700


def test_a_secret_that_a_crash_left_empty_is_made_anew(stack: Stack) -> None:
    stack.secrets.mkdir(parents=True)
    (stack.secrets / "operator_token").write_text("")
    assert len(stack.secret("operator_token")) >= 32


def test_a_private_file_never_holds_half_of_what_it_should(tmp_path: Path) -> None:
    file = tmp_path / "token"
    write_private(file, "old")
    file.chmod(0o644)
    write_private(file, "new")
    assert file.read_text() == "new\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [file]


def test_nothing_of_the_callers_environment_is_passed_on_but_what_is_named(stack: Stack) -> None:
    caller = {
        "PATH": "/usr/bin",
        "AWS_SECRET_ACCESS_KEY": "mine",
        "LOOPWRIGHT_TOKEN": "mine",
        "LOOPWRIGHT_INGEST_BODY_BYTES_MAX": "1000",
        "LOOPWRIGHT_LOG_LEVEL": "debug",
    }
    found = by_name(stack, caller)
    for child in found.values():
        assert "AWS_SECRET_ACCESS_KEY" not in child.environment
        assert "LOOPWRIGHT_TOKEN" not in child.environment
    assert found["ingest"].environment["LOOPWRIGHT_INGEST_BODY_BYTES_MAX"] == "1000"
    assert all(("LOOPWRIGHT_INGEST_BODY_BYTES_MAX" in child.environment) == (name == "ingest") for name, child in found.items())
    assert found["gateway"].environment["LOOPWRIGHT_LOG_LEVEL"] == "debug"


def test_the_forges_write_and_merge_tokens_are_named_to_pr_agent_alone(stack: Stack) -> None:
    for name, child in by_name(stack).items():
        told = " ".join(child.environment.values())
        assert ("forge_write_token" in told) == (name == "pr-agent")
        assert ("forge_merge_token" in told) == (name == "pr-agent")


def test_no_secret_is_in_an_environment_or_on_a_command_line(stack: Stack) -> None:
    found = by_name(stack)
    secrets = [file.read_text().strip() for file in stack.secrets.iterdir() if file.name != "forge_tokens"]
    assert len(secrets) >= 6
    for child in found.values():
        seen = " ".join([*child.command, *child.environment.values()])
        assert not any(secret in seen for secret in secrets)


def test_the_bus_syncs_every_write_and_asks_who_it_is(stack: Stack) -> None:
    by_name(stack)
    config = stack.data / "nats" / "nats.conf"
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    text = config.read_text()
    assert "sync_interval: always" in text
    assert "host: 127.0.0.1" in text
    assert stack.secret("nats_password") in text


def test_every_part_has_a_port_of_its_own_from_the_first_one_on(stack: Stack) -> None:
    ports = {name: child.port for name, child in by_name(stack).items()}
    offsets = {"gateway": 0, "ingest": 1, "cluster": 2, "investigator": 3, "pr-agent": 4, "measure": 5, "forge": 6, "nats": 22}
    assert ports == {name: 9400 + offset for name, offset in offsets.items()}
