"""Where the investigator's repositories come from: a real forge over real HTTP, or the source itself."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import httpx
import pytest
from loopwright_common.contracts.configuration import RepositoryConfig
from loopwright_common.errors import Permanent, Unavailable
from loopwright_investigator.adapters.forge_source import ForgeSource
from loopwright_investigator.adapters.git_history import MirroredRepositories, PlainSource
from loopwright_repositories.checkouts import Checkouts
from loopwright_repositories.forges.local import LocalForge
from pydantic import SecretStr

READ, WRITE, MERGE = "read-token-0123456789", "write-token-0123456789", "merge-token-0123456789"
IDENTITY = {"GIT_AUTHOR_NAME": "Ada", "GIT_AUTHOR_EMAIL": "a@x.org", "GIT_COMMITTER_NAME": "Ada", "GIT_COMMITTER_EMAIL": "a@x.org"}


def git(directory, *arguments):
    environment = {**os.environ, **IDENTITY, "GIT_CONFIG_GLOBAL": "/dev/null"}
    said = subprocess.run(["git", "-C", str(directory), *arguments], env=environment, check=True, capture_output=True, text=True)
    return said.stdout.strip()


def commit(directory, text):
    (directory / "cart.py").write_text(text)
    git(directory, "add", "cart.py")
    git(directory, "commit", "-q", "-m", f"Write {text.strip()}")
    return git(directory, "rev-parse", "HEAD")


@pytest.fixture
def source(tmp_path):
    directory = tmp_path / "source"
    directory.mkdir()
    git(directory, "init", "-q", "-b", "main")
    commit(directory, "x = 1\n")
    return directory


@pytest.fixture
def forge_url(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        "PATH": os.environ["PATH"],
        "LOOPWRIGHT_FORGE_PORT": str(port),
        "LOOPWRIGHT_FORGE_DATA": str(tmp_path / "forge"),
        "LOOPWRIGHT_FORGE_READ_TOKEN": READ,
        "LOOPWRIGHT_FORGE_WRITE_TOKEN": WRITE,
        "LOOPWRIGHT_FORGE_MERGE_TOKEN": MERGE,
    }
    process = subprocess.Popen([sys.executable, "-m", "loopwright_repositories.local_forge"], env=environment, cwd=tmp_path)
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=1).status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.05)
        else:
            raise AssertionError("the forge did not start within 30 s")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=20)


async def test_forge_follows_its_source_before_it_is_read(source, forge_url, tmp_path):
    config = RepositoryConfig(name="code", source=str(source))
    async with LocalForge(forge_url, SecretStr(WRITE)) as forge:
        repositories = MirroredRepositories(Checkouts(tmp_path / "mirrors"), ForgeSource(forge))
        first = await repositories.open(config)
        newer = commit(source, "x = 2\n")
        second = await repositories.open(config)
    assert second.main == newer
    assert await second.text("cart.py", newer) == ["x = 2"]
    assert await second.is_ancestor(first.main, second.main)


async def test_token_that_may_only_read_waits_until_the_repository_was_made(source, forge_url, tmp_path):
    config = RepositoryConfig(name="code", source=str(source))
    async with LocalForge(forge_url, SecretStr(READ)) as reader, LocalForge(forge_url, SecretStr(WRITE)) as writer:
        repositories = MirroredRepositories(Checkouts(tmp_path / "mirrors"), ForgeSource(reader))
        with pytest.raises(Unavailable, match="does not have the repository code yet"):
            await repositories.open(config)
        await writer.ensure_repository("code", source=str(source))
        history = await repositories.open(config)
    assert list(await history.files(history.main)) == ["cart.py"]


async def test_forge_that_does_not_answer_is_tried_again(tmp_path):
    async with LocalForge("http://127.0.0.1:9", SecretStr(READ)) as forge:
        repositories = MirroredRepositories(Checkouts(tmp_path / "mirrors"), ForgeSource(forge))
        with pytest.raises(Unavailable):
            await repositories.open(RepositoryConfig(name="code"))


async def test_source_is_read_itself_where_there_is_no_forge(source, tmp_path):
    repositories = MirroredRepositories(Checkouts(tmp_path / "mirrors"), PlainSource())
    history = await repositories.open(RepositoryConfig(name="code", source=str(source)))
    assert history.main == git(source, "rev-parse", "HEAD")
    with pytest.raises(Permanent, match="set default_branch"):
        await repositories.open(RepositoryConfig(name="other", source=str(source), default_branch="trunk"))
    with pytest.raises(Permanent, match="no source"):
        await repositories.open(RepositoryConfig(name="nowhere"))


async def test_what_is_not_there_gives_nothing_rather_than_an_error(source, tmp_path):
    repositories = MirroredRepositories(Checkouts(tmp_path / "mirrors"), PlainSource())
    history = await repositories.open(RepositoryConfig(name="code", source=str(source)))
    missing = "0" * 40
    assert await history.resolve("v9") is None
    assert await history.resolve("--help; rm") is None
    assert await history.text("../etc/passwd", history.main) is None
    assert await history.text("cart.py", missing) is None
    assert list(await history.files(missing)) == []
    assert list(await history.blame("nothing.py", history.main, 1, 1)) == []
    assert list(await history.log(missing)) == []
    assert list(await history.diff(missing)) == []
    assert await history.commit(missing) is None
    assert list(await history.grep("x\ny", history.main)) == []
    assert list(await history.grep("--all", history.main)) == []
    assert not await history.is_ancestor(missing, history.main)
    assert not (await history.revert(missing, history.main)).clean
    assert (await history.revert(history.main, history.main)).reason.startswith("it is the first commit")


async def test_trial_revert_leaves_the_mirror_as_it_was(source, tmp_path):
    repositories = MirroredRepositories(Checkouts(tmp_path / "mirrors"), PlainSource())
    guilty = commit(source, "x = 1 / 0\n")
    config = RepositoryConfig(name="code", source=str(source))
    history = await repositories.open(config)
    (mirror,) = (tmp_path / "mirrors").iterdir()
    before = git(mirror, "count-objects", "-v")
    check = await history.revert(guilty, history.main)
    assert check.clean
    assert check.files == ("cart.py",)
    assert check.changed_lines == 2
    assert git(mirror, "count-objects", "-v") == before
    conflicting = commit(source, "x = 2 / 0\n")
    history = await repositories.open(config)
    check = await history.revert(guilty, conflicting)
    assert not check.clean
    assert check.conflicts == ("cart.py",)
    undone = commit(source, "x = 1\n")
    history = await repositories.open(config)
    again = await history.revert(guilty, undone)
    assert again.clean
    assert again.empty
