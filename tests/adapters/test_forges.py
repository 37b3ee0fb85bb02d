"""The Forge port against a real server over real HTTP, with real git clients.

The local forge is the first adapter; others join the ``forge`` fixture.
"""

# ruff: noqa: ASYNC210, ASYNC221 (the server is another process: a test may well block while it waits for it)

from __future__ import annotations

import asyncio
import hashlib
import hmac
import http.server
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from loopwright_repositories.checkouts import Checkouts, RemoteRepository
from loopwright_repositories.errors import ForgeConflict, ForgeNotFound, ForgeRefused, ForgeUnavailable
from loopwright_repositories.forges.local import LocalForge
from loopwright_repositories.forges.port import Person
from loopwright_repositories.git import GitCredential, GitFailed, run_git
from pydantic import SecretStr

READ, WRITE, MERGE = "read-token-0123456789", "write-token-0123456789", "merge-token-0123456789"
ADA = Person(name="Ada Lovelace", email="ada@example.org")


class Server:
    """The forge as its own process."""

    def __init__(self, data: Path, **settings: str) -> None:
        self.data = data
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.settings = settings
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        environment = {
            "PATH": os.environ["PATH"], "LOOPWRIGHT_FORGE_PORT": str(self.port), "LOOPWRIGHT_FORGE_DATA": str(self.data),
            "LOOPWRIGHT_FORGE_READ_TOKEN": READ, "LOOPWRIGHT_FORGE_WRITE_TOKEN": WRITE, "LOOPWRIGHT_FORGE_MERGE_TOKEN": MERGE,
            **self.settings,
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-m", "loopwright_repositories.local_forge"], env=environment, cwd=self.data.parent
        )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"{self.url}/healthz", timeout=1).status_code == 200:
                    return
            except httpx.HTTPError:
                time.sleep(0.05)
        raise AssertionError("the forge did not start")

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(timeout=20)

    def forge(self, token: str = MERGE) -> LocalForge:
        return LocalForge(self.url, SecretStr(token))


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("forge") / "data")
    running.start()
    yield running
    running.stop()


@pytest.fixture
async def forge(server):
    async with server.forge() as client:
        yield client


@pytest.fixture
def name(request) -> str:
    return "r" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]


class Client:
    """A person's clone."""

    def __init__(self, path: Path, url: str, token: str) -> None:
        self.path = path
        path.mkdir(parents=True)
        self.environment = {
            "PATH": os.environ["PATH"], "HOME": str(path), "GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0",
            "GIT_AUTHOR_NAME": "Bob", "GIT_AUTHOR_EMAIL": "bob@example.org",
            "GIT_COMMITTER_NAME": "Bob", "GIT_COMMITTER_EMAIL": "bob@example.org",
            **GitCredential(SecretStr(token)).environment(url),
        }  # fmt: skip
        self.git("init", "-q", "-b", "main")
        self.git("remote", "add", "origin", url)

    def git(self, *arguments: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["git", *arguments], cwd=self.path, env=self.environment, check=ok, capture_output=True, text=True, timeout=60
        )

    def commit(self, files: dict[str, str], message: str = "change") -> str:
        for file, content in files.items():
            (self.path / file).parent.mkdir(parents=True, exist_ok=True)
            (self.path / file).write_text(content)
        self.git("add", "-A")
        self.git("commit", "-q", "-m", message)
        return self.git("rev-parse", "HEAD").stdout.strip()


@pytest.fixture
async def clone(forge, name, tmp_path):
    """A clone of a repository whose main has one commit, pushed with the merge scope."""
    await forge.ensure_repository(name)
    client = Client(tmp_path / "clone", forge.clone_url(name), MERGE)
    client.commit({"a.txt": "one\ntwo\nthree\n"}, "first")
    client.git("push", "-q", "origin", "main")
    return client


async def propose(forge, name, clone, branch="loopwright/r1-fix", content="one\n2\nthree\n", **more):
    clone.git("checkout", "-q", "-B", branch, "main")
    head = clone.commit({"a.txt": content}, "fix")
    clone.git("push", "-q", "-f", "origin", branch)
    pull = await forge.open_pull_request(name, head=branch, base="main", title="Fix it", body="Because.", **more)
    return pull, head


# The port


async def test_a_repository_is_made_once(forge, name):
    first = await forge.ensure_repository(name)
    again = await forge.ensure_repository(name)
    assert first == again
    assert (first.default_branch, first.head_commit) == ("main", None)
    assert first.clone_url == forge.clone_url(name)


async def test_what_is_pushed_can_be_cloned(forge, name, clone, tmp_path):
    other = Client(tmp_path / "other", forge.clone_url(name), READ)
    other.git("pull", "-q", "origin", "main")
    assert (other.path / "a.txt").read_text() == "one\ntwo\nthree\n"
    shallow = tmp_path / "shallow"
    subprocess.run(["git", "clone", "-q", "--depth=1", forge.clone_url(name), str(shallow)], env=other.environment, check=True, timeout=60)
    assert (shallow / "a.txt").exists()


async def test_a_checkout_syncs_from_the_forge_with_a_read_token(server, forge, name, clone, tmp_path):
    checkouts = Checkouts(tmp_path / "mirrors")
    remote = RemoteRepository(name, forge.clone_url(name), GitCredential(SecretStr(READ)))
    checkout = await checkouts.sync(remote)
    assert await checkout.resolve("main") == clone.git("rev-parse", "main").stdout.strip()
    config = (checkout.directory / "config").read_text()
    assert READ not in config


async def test_a_large_push_goes_through_in_chunks(forge, name, clone):
    import random

    noise = random.Random(1).randbytes(3_000_000).hex()
    clone.git("checkout", "-q", "-b", "big")
    clone.commit({"big.txt": noise})
    clone.git("push", "-q", "origin", "big")
    clone.git("fetch", "-q", "origin", "big")
    assert clone.git("rev-parse", "FETCH_HEAD").stdout == clone.git("rev-parse", "big").stdout


async def test_a_pull_request_is_opened_once_per_head(forge, name, clone):
    pull, head = await propose(forge, name, clone)
    again = await forge.open_pull_request(name, head=pull.head, base="main", title="Another title", body="")
    assert again == pull
    assert (pull.number, pull.draft, pull.state, pull.head_commit, pull.mergeable) == (1, True, "open", head, True)
    assert pull.base_commit == clone.git("rev-parse", "main").stdout.strip()
    assert (await forge.find_pull_request(name, pull.head)) == pull
    assert await forge.find_pull_request(name, "nothing") is None
    assert await forge.list_pull_requests(name) == (pull,)


async def test_many_openings_at_once_make_one_pull_request(forge, name, clone):
    pull, _ = await propose(forge, name, clone)
    opened = await asyncio.gather(
        *(forge.open_pull_request(name, head=pull.head, base="main", title=f"t{number}", body="") for number in range(8))
    )
    assert {found.number for found in opened} == {pull.number}


async def test_title_body_and_draft_change(forge, name, clone):
    pull, _ = await propose(forge, name, clone)
    changed = await forge.update_pull_request(name, pull.number, title="Better", body="Much.")
    assert (changed.title, changed.body, changed.draft) == ("Better", "Much.", True)
    assert not (await forge.mark_ready(name, pull.number)).draft
    assert not (await forge.mark_ready(name, pull.number)).draft


async def test_a_new_push_to_the_head_is_seen(forge, name, clone):
    pull, _ = await propose(forge, name, clone)
    moved = clone.commit({"b.txt": "b\n"})
    clone.git("push", "-q", "origin", pull.head)
    assert (await forge.get_pull_request(name, pull.number)).head_commit == moved
    assert "b.txt" in await forge.diff(name, pull.number)


async def test_comments_are_kept_in_order_and_once_per_key(forge, name, clone):
    pull, _ = await propose(forge, name, clone)
    first = await forge.comment(name, pull.number, "hello", key="k1")
    again = await forge.comment(name, pull.number, "hello again", key="k1")
    await forge.comment(name, pull.number, "bye", author="ada")
    assert first == again
    assert [(comment.author, comment.body) for comment in await forge.list_comments(name, pull.number)] == [
        ("loopwright", "hello"),
        ("ada", "bye"),
    ]


async def test_check_runs_are_replaced_by_name(forge, name, clone):
    _, head = await propose(forge, name, clone)
    await forge.set_check_run(name, head, "sandbox", status="in_progress")
    await forge.set_check_run(name, head, "sandbox", status="completed", conclusion="success", summary="12 passed")
    (check,) = await forge.list_check_runs(name, head)
    assert (check.name, check.conclusion, check.summary) == ("sandbox", "success", "12 passed")
    with pytest.raises(ForgeRefused):
        await forge.set_check_run(name, head, "sandbox", status="completed")
    with pytest.raises(ForgeNotFound):
        await forge.set_check_run(name, "f" * 40, "sandbox", status="queued")


async def test_a_merge_is_made_in_the_persons_name_and_moves_main(forge, name, clone):
    base = clone.git("rev-parse", "main").stdout.strip()
    pull, head = await propose(forge, name, clone)
    merged = await forge.merge(name, pull.number, person=ADA, expected_head=head)
    assert (merged.state, merged.merged_by, merged.draft, merged.mergeable) == ("merged", "Ada Lovelace", False, None)
    clone.git("fetch", "-q", "origin", "main")
    assert clone.git("rev-parse", "FETCH_HEAD").stdout.strip() == merged.merge_commit
    who = clone.git("show", "-s", "--format=%an <%ae> %cn <%ce>%n%P%n%B", "FETCH_HEAD").stdout
    assert who.splitlines()[0] == "Ada Lovelace <ada@example.org> Ada Lovelace <ada@example.org>"
    assert who.splitlines()[1] == f"{base} {head}"
    assert "Merge pull request #1 from loopwright/r1-fix" in who
    assert "Fix it" in who
    assert await forge.merge(name, pull.number, person=Person(name="Eve", email="eve@example.org")) == merged
    assert "+2" in await forge.diff(name, pull.number)  # still readable
    with pytest.raises(ForgeConflict):
        await forge.close(name, pull.number, closed_by="ada")


async def test_a_merge_of_something_else_than_was_seen_is_refused(forge, name, clone):
    pull, head = await propose(forge, name, clone)
    clone.commit({"evil.txt": "x"})
    clone.git("push", "-q", "origin", pull.head)
    with pytest.raises(ForgeConflict, match="look again"):
        await forge.merge(name, pull.number, person=ADA, expected_head=head)
    assert (await forge.get_pull_request(name, pull.number)).state == "open"


async def test_a_conflict_is_named_and_not_merged(forge, name, clone):
    pull, _ = await propose(forge, name, clone)
    clone.git("checkout", "-q", "main")
    moved = clone.commit({"a.txt": "one\nzwei\nthree\n"})
    clone.git("push", "-q", "origin", "main")
    found = await forge.get_pull_request(name, pull.number)
    assert found.mergeable is False
    assert "a.txt" in found.mergeable_reason
    with pytest.raises(ForgeConflict, match=r"a\.txt"):
        await forge.merge(name, pull.number, person=ADA)
    assert (await forge.ensure_repository(name)).head_commit == moved


async def test_a_closed_pull_request_is_not_merged_and_a_new_one_can_be_opened(forge, name, clone):
    pull, _ = await propose(forge, name, clone)
    closed = await forge.close(name, pull.number, closed_by="ada", comment="not now")
    assert (closed.state, closed.closed_by) == ("closed", "ada")
    assert await forge.close(name, pull.number, closed_by="eve") == closed
    assert [comment.body for comment in await forge.list_comments(name, pull.number)] == ["not now"]
    with pytest.raises(ForgeConflict, match="closed"):
        await forge.merge(name, pull.number, person=ADA)
    assert (await forge.open_pull_request(name, head=pull.head, base="main", title="again", body="")).number == 2


async def test_ten_merges_at_once_make_one_merge_commit(forge, name, clone):
    pull, _ = await propose(forge, name, clone)
    results = await asyncio.gather(*(forge.merge(name, pull.number, person=ADA) for _ in range(10)))
    assert len({result.merge_commit for result in results}) == 1
    clone.git("fetch", "-q", "origin", "main")
    assert clone.git("rev-list", "--count", "--merges", "FETCH_HEAD").stdout.strip() == "1"


async def test_merges_of_different_pull_requests_at_once_all_arrive(forge, name, clone):
    numbers = []
    for number in range(5):
        clone.git("checkout", "-q", "-B", f"b{number}", "main")
        clone.commit({f"f{number}.txt": "x"})
        clone.git("push", "-q", "origin", f"b{number}")
        numbers.append((await forge.open_pull_request(name, head=f"b{number}", base="main", title="t", body="")).number)
    merged = await asyncio.gather(*(forge.merge(name, number, person=ADA) for number in numbers))
    assert {pull.state for pull in merged} == {"merged"}
    clone.git("fetch", "-q", "origin", "main")
    files = clone.git("ls-tree", "--name-only", "FETCH_HEAD").stdout.split()
    assert {f"f{number}.txt" for number in range(5)} <= set(files)


async def test_nothing_to_merge_is_refused(forge, name, clone):
    clone.git("push", "-q", "origin", "main:same")
    with pytest.raises(ForgeRefused, match="no commit that main lacks"):
        await forge.open_pull_request(name, head="same", base="main", title="t", body="")
    with pytest.raises(ForgeRefused, match="no branch absent"):
        await forge.open_pull_request(name, head="absent", base="main", title="t", body="")
    with pytest.raises(ForgeNotFound):
        await forge.get_pull_request(name, 77)
    with pytest.raises(ForgeNotFound):
        await forge.get_pull_request("no-such-repository", 1)


async def test_a_forge_that_is_away_is_unavailable_not_refused():
    async with LocalForge("http://127.0.0.1:9", SecretStr(READ)) as away:
        with pytest.raises(ForgeUnavailable):
            await away.get_pull_request("x", 1)


# The local forge alone


async def test_a_merge_made_by_hand_counts_as_merged(forge, name, clone):
    pull, _ = await propose(forge, name, clone)
    clone.git("checkout", "-q", "main")
    clone.git("merge", "-q", "--no-ff", "-m", "by hand", pull.head)
    clone.git("push", "-q", "origin", "main")
    found = await forge.get_pull_request(name, pull.number)
    assert (found.state, found.merge_commit, found.merged_by) == ("merged", clone.git("rev-parse", "main").stdout.strip(), "Bob")


async def test_a_deleted_head_branch_leaves_the_pull_request_readable(forge, name, clone):
    pull, _ = await propose(forge, name, clone)
    clone.git("push", "-q", "origin", "--delete", pull.head)
    found = await forge.get_pull_request(name, pull.number)
    assert (found.state, found.mergeable) == ("open", False)
    assert "gone" in found.mergeable_reason
    assert "+2" in await forge.diff(name, pull.number)
    with pytest.raises(ForgeConflict, match="gone"):
        await forge.merge(name, pull.number, person=ADA)


async def test_a_head_reset_to_its_base_is_not_taken_for_merged(forge, name, clone):
    pull, _ = await propose(forge, name, clone)
    clone.git("push", "-q", "-f", "origin", f"main:{pull.head}")
    found = await forge.get_pull_request(name, pull.number)
    assert (found.state, found.mergeable) == ("open", False)
    with pytest.raises(ForgeConflict):
        await forge.merge(name, pull.number, person=ADA)


@pytest.mark.parametrize(
    ("token", "push", "says"),
    [
        (READ, "main:loopwright/x", "403"),
        (WRITE, "main:main", "protected"),
        (WRITE, "+main~1:main", "protected"),
        (WRITE, ":main", "deletion of the current branch prohibited"),
        (WRITE, "main:refs/pull/1/head", "only branches and tags"),
        (WRITE, "main:refs/sources/heads/main", ""),
        (MERGE, "+main~1:main", "moves only forward"),
        (MERGE, ":main", "deletion of the current branch prohibited"),
        ("wrong-token-0123456789", "main:loopwright/x", ""),
    ],
)
async def test_a_push_beyond_the_tokens_scope_is_refused(forge, name, clone, tmp_path, token, push, says):
    clone.commit({"b.txt": "b"})
    clone.git("push", "-q", "origin", "main")
    before = (await forge.ensure_repository(name)).head_commit
    clone.commit({"c.txt": "c"})
    clone.environment |= GitCredential(SecretStr(token)).environment(forge.clone_url(name))
    clone.git("config", "push.default", "nothing")
    if push == "+main~1:main":
        push = "+main~2:main"
    refused = clone.git("push", "origin", push, ok=False)
    assert refused.returncode != 0
    assert says in refused.stderr
    assert (await forge.ensure_repository(name)).head_commit == before


async def test_a_tag_is_made_with_write_and_moved_only_with_merge(forge, name, clone):
    clone.environment |= GitCredential(SecretStr(WRITE)).environment(forge.clone_url(name))
    clone.git("tag", "v1")
    clone.git("push", "-q", "origin", "v1")
    clone.commit({"b.txt": "b"})
    clone.git("tag", "-f", "v1")
    assert "moving a tag" in clone.git("push", "-f", "origin", "v1", ok=False).stderr


async def test_scopes_hold_on_the_api(server, name, clone, forge):
    pull, _ = await propose(forge, name, clone)
    async with server.forge(READ) as reader, server.forge(WRITE) as writer, LocalForge(server.url, None) as nobody:
        assert await reader.get_pull_request(name, pull.number)
        with pytest.raises(ForgeRefused, match="403"):
            await reader.comment(name, pull.number, "x")
        assert await writer.comment(name, pull.number, "x")
        with pytest.raises(ForgeRefused, match="403"):
            await writer.merge(name, pull.number, person=ADA)
        with pytest.raises(ForgeRefused, match="401"):
            await nobody.get_pull_request(name, pull.number)
    with pytest.raises(GitFailed):
        await run_git(["ls-remote", forge.clone_url(name)])


@pytest.mark.parametrize("bad", ["../etc", "a/b", "A", "-x", "x.git", ".hidden", "a" * 80, "x%2f..%2fy", "a\nb", ""])
async def test_hostile_repository_names_are_refused(forge, bad):
    with pytest.raises((ForgeRefused, ForgeNotFound)):
        await forge.ensure_repository(bad)
    with pytest.raises((ForgeRefused, ForgeNotFound)):
        await forge.get_pull_request(bad, 1)


@pytest.mark.parametrize("branch", ["--upload-pack=x", "a..b", "refs/heads/x", "x.lock", "a b", "HEAD", "x\x00", "main^{/x}"])
async def test_hostile_branch_names_are_refused(forge, name, clone, branch):
    with pytest.raises(ForgeRefused):
        await forge.open_pull_request(name, head=branch, base="main", title="t", body="")
    with pytest.raises(ForgeRefused):
        await forge.open_pull_request(name, head="loopwright/x", base=branch, title="t", body="")


@pytest.mark.parametrize(
    "path",
    [
        "/git/../../etc/passwd",
        "/git/{name}.git/config",
        "/git/{name}.git/HEAD",
        "/git/{name}.git/objects/info/packs",
        "/git/{name}.git/../{name}.git/info/refs?service=git-upload-pack",
        "/git/{name}.git/info/refs",
    ],
)
async def test_only_smart_http_is_served(server, name, clone, path):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as wire:
        headers = f"Host: 127.0.0.1\r\nAuthorization: Bearer {READ}\r\nConnection: close"
        wire.sendall(f"GET {path.format(name=name)} HTTP/1.1\r\n{headers}\r\n\r\n".encode())
        status = wire.recv(4096).split(b" ")[1]
    assert status in (b"404", b"422")


async def test_clients_that_go_away_in_mid_request_leave_no_process_and_no_slot_behind(server, name, clone, forge):
    for service in ("git-receive-pack", "git-upload-pack") * 10:
        head = (
            f"POST /git/{name}.git/{service} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {MERGE}\r\n"
            f"Content-Type: application/x-{service}-request\r\nContent-Length: 1000\r\n\r\n0032want "
        )
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as wire:
            wire.sendall(head.encode())
            await asyncio.sleep(0.05)
    clone.git("fetch", "-q", "origin")
    for _ in range(100):
        if not (left := _children(server.process.pid)):
            break
        await asyncio.sleep(0.1)
    assert left == []


def _children(pid: int) -> list[str]:
    said = subprocess.run(["ps", "-o", "args=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [line for line in said.splitlines() if "git" in line]


async def test_names_of_people_cannot_smuggle_headers(server, name, clone, forge):
    pull, _ = await propose(forge, name, clone)
    for bad in ({"name": "A\nauthor Eve <e@x>", "email": "a@b.c"}, {"name": "A", "email": "a@b> Eve <e@x"}, {"name": "", "email": "a@b.c"}):
        answer = httpx.post(
            f"{server.url}/api/v1/repos/{name}/pulls/{pull.number}/merge",
            json={"person": bad},
            headers={"Authorization": f"Bearer {MERGE}"},
        )
        assert answer.status_code == 422
        assert answer.headers["content-type"] == "application/problem+json"


async def test_wrong_requests_get_the_right_problem(server, name, clone):
    headers = {"Authorization": f"Bearer {MERGE}"}
    url = f"{server.url}/api/v1/repos"
    assert httpx.post(url, content=b"{", headers=headers | {"Content-Type": "application/json"}).status_code == 422
    assert httpx.post(url, content=b"{}", headers=headers | {"Content-Type": "text/plain"}).status_code == 415
    assert httpx.post(url, json={"name": "x", "bogus": 1}, headers=headers).status_code == 422
    assert httpx.post(url, json={"name": "x", "source": "s" * 2_000_000}, headers=headers).status_code == 413
    assert httpx.get(f"{server.url}/", headers=headers | {"Host": "evil.example"}).status_code == 403
    assert httpx.delete(url, headers=headers).status_code == 405
    assert httpx.get(f"{server.url}/nowhere", headers=headers).headers["content-type"] == "application/problem+json"
    assert httpx.get(f"{server.url}/api/v1/repos/{name}").headers["www-authenticate"].startswith("Basic")


async def test_the_page_of_a_pull_request_shows_it_and_runs_nothing(server, forge, name, clone):
    evil = "<script>alert(1)</script>"
    clone.git("checkout", "-q", "-b", "x")
    head = clone.commit({"a.txt": evil + "\n"}, evil)
    clone.git("push", "-q", "origin", "x")
    pull = await forge.open_pull_request(name, head="x", base="main", title=evil, body=evil)
    await forge.comment(name, pull.number, evil, author=evil)
    await forge.set_check_run(name, head, evil, status="completed", conclusion="success", summary=evil)
    page = httpx.get(pull.web_url, auth=("anyone", READ))
    assert page.status_code == 200
    assert "<script" not in page.text
    assert page.text.count("&lt;script&gt;") >= 7
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert httpx.get(pull.web_url).status_code == 401


# Sources


async def test_a_reader_may_ask_the_forge_to_catch_up(server, forge, name, tmp_path):
    own = Client(tmp_path / "own", "unused", READ)
    own.commit({"a.txt": "1\n"})
    await forge.ensure_repository(name, source=str(own.path))
    second = own.commit({"a.txt": "2\n"})
    async with server.forge(READ) as reader:
        (branch,) = await reader.sync_repository(name)
    assert (branch.outcome, branch.commit) == ("advanced", second)


async def test_a_persons_own_repository_is_imported_and_followed(forge, name, tmp_path):
    own = Client(tmp_path / "own", "unused", READ)
    first = own.commit({"a.txt": "1\n"})
    own.git("tag", "v1")
    made = await forge.ensure_repository(name, source=str(own.path))
    assert (made.head_commit, made.source) == (first, str(own.path))
    second = own.commit({"a.txt": "2\n"})
    own.git("branch", "feature")
    assert {(item.branch, item.outcome) for item in await forge.sync_repository(name)} == {("main", "advanced"), ("feature", "created")}
    assert (await forge.ensure_repository(name)).head_commit == second
    work = Client(tmp_path / "work", forge.clone_url(name), MERGE)
    work.git("pull", "-q", "origin", "main")
    ahead = work.commit({"b.txt": "b"})
    work.git("push", "-q", "origin", "main")
    outcomes = {item.branch: item for item in await forge.sync_repository(name)}
    assert outcomes["main"].outcome == "ahead"
    own.commit({"c.txt": "c"})
    outcomes = {item.branch: item for item in await forge.sync_repository(name)}
    assert (outcomes["main"].outcome, outcomes["main"].commit) == ("diverged", ahead)
    assert "merge the forge's branch" in outcomes["main"].detail
    assert own.git("branch", "--list").stdout.split() == ["feature", "*", "main"]  # the source is only read


@pytest.mark.parametrize("source", ["/nowhere/at/all", "ext::sh -c id", "http://a:b@127.0.0.1/x", "--upload-pack=id", "/a/../etc"])
async def test_a_source_that_cannot_be_imported_leaves_nothing(forge, name, source):
    with pytest.raises(ForgeRefused):
        await forge.ensure_repository(name, source=source)
    with pytest.raises(ForgeNotFound):
        await forge.list_pull_requests(name)


async def test_a_source_without_the_default_branch_says_which_it_has(forge, name, tmp_path):
    own = Client(tmp_path / "own", "unused", READ)
    own.commit({"a.txt": "1\n"})
    own.git("branch", "-m", "trunk")
    with pytest.raises(ForgeRefused, match="it has: trunk"):
        await forge.ensure_repository(name, source=str(own.path))
    assert (await forge.ensure_repository(name, source=str(own.path), default_branch="trunk")).default_branch == "trunk"


# Crashes, restarts, settings


@pytest.fixture
def own_server(tmp_path) -> Iterator[Server]:
    running = Server(tmp_path / "own-forge" / "data")
    running.data.parent.mkdir()
    running.start()
    yield running
    running.stop()


async def test_everything_is_there_after_kill_and_restart(own_server, tmp_path):
    async with own_server.forge() as forge:
        await forge.ensure_repository("shop")
        clone = Client(tmp_path / "c", forge.clone_url("shop"), MERGE)
        clone.commit({"a.txt": "one\n"})
        clone.git("push", "-q", "origin", "main")
        pull, head = await propose(forge, "shop", clone)
        await forge.comment("shop", pull.number, "kept")
        await forge.set_check_run("shop", head, "tests", status="completed", conclusion="success")
        own_server.kill()
        own_server.start()
        assert await forge.get_pull_request("shop", pull.number) == pull
        assert [comment.body for comment in await forge.list_comments("shop", pull.number)] == ["kept"]
        assert [check.name for check in await forge.list_check_runs("shop", head)] == ["tests"]


@pytest.mark.parametrize("moved", [True, False])
async def test_a_merge_interrupted_around_the_ref_update_is_finished_or_undone(own_server, tmp_path, moved):
    """The state a crash leaves on either side of the one step that cannot be undone, made by hand."""
    async with own_server.forge() as forge:
        await forge.ensure_repository("shop")
        clone = Client(tmp_path / "c", forge.clone_url("shop"), MERGE)
        base = clone.commit({"a.txt": "one\n"})
        clone.git("push", "-q", "origin", "main")
        pull, head = await propose(forge, "shop", clone)
        own_server.kill()
        directory = own_server.data / "repositories" / "shop.git"
        tree = clone.git("rev-parse", f"{head}^{{tree}}").stdout.strip()
        environment = clone.environment
        commit = subprocess.run(
            ["git", f"--git-dir={directory}", "commit-tree", tree, "-p", base, "-p", head, "-m", "merge"],
            env=environment, check=True, capture_output=True, text=True,
        ).stdout.strip()  # fmt: skip
        with sqlite3.connect(own_server.data / "forge.sqlite3") as db:
            db.execute("UPDATE pulls SET intent_commit = ?, intent_by = 'Ada Lovelace'", (commit,))
        if moved:
            subprocess.run(["git", f"--git-dir={directory}", "update-ref", "refs/heads/main", commit], env=environment, check=True)
        else:
            (directory / "refs" / "heads" / "main.lock").write_text(commit)
        own_server.start()
        found = await forge.get_pull_request("shop", pull.number)
        if moved:
            assert (found.state, found.merge_commit, found.merged_by) == ("merged", commit, "Ada Lovelace")
        else:
            assert found.state == "open"
        merged = await forge.merge("shop", pull.number, person=ADA)
        assert (merged.state, merged.merged_by) == ("merged", "Ada Lovelace")
        clone.git("fetch", "-q", "origin", "main")
        assert clone.git("rev-list", "--count", "--merges", "FETCH_HEAD").stdout.strip() == "1"


@pytest.mark.parametrize("seed", range(4))
async def test_kill_at_a_random_moment_of_a_merge_leaves_one_merge(own_server, tmp_path, seed):
    import random

    rng = random.Random(seed)
    async with own_server.forge() as forge:
        await forge.ensure_repository("shop")
        clone = Client(tmp_path / "c", forge.clone_url("shop"), MERGE)
        clone.commit({"a.txt": "one\n"})
        clone.git("push", "-q", "origin", "main")
        pull, head = await propose(forge, "shop", clone)
        wish = asyncio.create_task(forge.merge("shop", pull.number, person=ADA, expected_head=head))
        await asyncio.sleep(rng.uniform(0.0, 0.08))
        own_server.kill()
        await asyncio.gather(wish, return_exceptions=True)
        own_server.start()
        merged = await forge.merge("shop", pull.number, person=ADA, expected_head=head)
        assert (merged.state, merged.merged_by) == ("merged", "Ada Lovelace"), f"seed {seed}"
        clone.git("fetch", "-q", "origin", "main")
        assert clone.git("rev-list", "--count", "--merges", "FETCH_HEAD").stdout.strip() == "1", f"seed {seed}"
        assert clone.git("rev-parse", "FETCH_HEAD").stdout.strip() == merged.merge_commit


class Receiver:
    """Takes webhooks; refuses the first ``refuse`` of them."""

    def __init__(self, refuse: int) -> None:
        self.taken: list[tuple[dict[str, str], bytes]] = []
        self.refused = 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if outer.refused < refuse:
                    outer.refused += 1
                    self.send_response(503)
                else:
                    outer.taken.append((dict(self.headers), body))
                    self.send_response(204)
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


async def test_webhooks_are_signed_in_order_and_retried(tmp_path):
    receiver = Receiver(refuse=1)
    running = Server(
        tmp_path / "f" / "data", LOOPWRIGHT_FORGE_WEBHOOK_URL=f"http://127.0.0.1:{receiver.server.server_port}/hook",
        LOOPWRIGHT_FORGE_WEBHOOK_SECRET="very secret",
    )  # fmt: skip
    running.data.parent.mkdir()
    running.start()
    try:
        async with running.forge() as forge:
            await forge.ensure_repository("shop")
            clone = Client(tmp_path / "c", forge.clone_url("shop"), MERGE)
            clone.commit({"a.txt": "one\n"})
            clone.git("push", "-q", "origin", "main")
            pull, _ = await propose(forge, "shop", clone)
            await forge.comment("shop", pull.number, "hello")
            await forge.merge("shop", pull.number, person=ADA)
            other, _ = await propose(forge, "shop", clone, branch="other", content="three\n")
            await forge.close("shop", other.number, closed_by="ada")
            for _ in range(100):
                if len(receiver.taken) == 3:
                    break
                await asyncio.sleep(0.1)
    finally:
        running.stop()
        receiver.server.shutdown()
    assert receiver.refused == 1
    assert [headers["X-Loopwright-Event"] for headers, _ in receiver.taken] == ["comment", "merged", "closed"]
    for headers, body in receiver.taken:
        assert headers["X-Hub-Signature-256"] == "sha256=" + hmac.new(b"very secret", body, hashlib.sha256).hexdigest()
    assert json.loads(receiver.taken[0][1])["comment"]["body"] == "hello"
    assert json.loads(receiver.taken[1][1])["pull_request"]["state"] == "merged"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "LOOPWRIGHT_FORGE_WRITE_TOKEN"),
        ({"LOOPWRIGHT_FORGE_WRITE_TOKEN": "short", "LOOPWRIGHT_FORGE_MERGE_TOKEN": MERGE}, "at least 16"),
        ({"LOOPWRIGHT_FORGE_WRITE_TOKEN": MERGE, "LOOPWRIGHT_FORGE_MERGE_TOKEN": MERGE}, "another scope"),
        ({"LOOPWRIGHT_FORGE_PORT": "http"}, "LOOPWRIGHT_FORGE_PORT=http"),
        ({"LOOPWRIGHT_FORGE_TOKENS_FILE": "/nowhere"}, "cannot be read"),
        ({"LOOPWRIGHT_FORGE_WRITE_TOKEN": WRITE, "LOOPWRIGHT_FORGE_MERGE_TOKEN": MERGE, "LOOPWRIGHT_FORGE_HOST": "0.0.0.0",
          "LOOPWRIGHT_FORGE_ANONYMOUS_READ": "1"}, "loopback"),
    ],
)  # fmt: skip
def test_a_bad_setting_stops_the_start_and_says_what_to_do(tmp_path, settings, told):
    done = subprocess.run(
        [sys.executable, "-m", "loopwright_repositories.local_forge"], env={"PATH": os.environ["PATH"], **settings}, cwd=tmp_path,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert MERGE not in done.stderr


def test_help_lists_every_setting(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "loopwright_repositories.local_forge", "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert "LOOPWRIGHT_FORGE_WEBHOOK_URL" in done.stdout


async def test_tokens_come_from_a_file_and_anonymous_reading_is_a_setting(tmp_path):
    (tmp_path / "f").mkdir()
    tokens = tmp_path / "tokens"
    tokens.write_text(f"# ours\nread {READ}x\nwrite {WRITE}x\nmerge {MERGE}x\n")
    running = Server(tmp_path / "f" / "data", LOOPWRIGHT_FORGE_TOKENS_FILE=str(tokens), LOOPWRIGHT_FORGE_ANONYMOUS_READ="true")
    running.start()
    try:
        async with running.forge(MERGE + "x") as forge, LocalForge(running.url, None) as anyone:
            await forge.ensure_repository("shop")
            assert await anyone.list_pull_requests("shop") == ()
            with pytest.raises(ForgeRefused, match=r"401|403"):
                await anyone.ensure_repository("other")
    finally:
        running.stop()


async def test_tokens_come_from_a_folder_too_and_further_names_are_answered_to(tmp_path):
    (tmp_path / "f").mkdir()
    folder = tmp_path / "tokens"
    folder.mkdir()
    for scope, token in (("read", READ), ("write", WRITE), ("merge", MERGE)):
        (folder / scope).write_text(f"{token}x\n")
    running = Server(
        tmp_path / "f" / "data", LOOPWRIGHT_FORGE_TOKENS_FILE=str(folder), LOOPWRIGHT_FORGE_PUBLIC_URL="https://forge.example.org",
        LOOPWRIGHT_FORGE_ALLOWED_HOSTS="loopwright-forge, loopwright-forge.loop",
    )  # fmt: skip
    running.start()
    try:
        async with running.forge(MERGE + "x") as merger, running.forge(READ + "x") as reader:
            await merger.ensure_repository("shop")
            with pytest.raises(ForgeRefused, match="403"):
                await reader.ensure_repository("other")
        async with httpx.AsyncClient(base_url=running.url, headers={"Authorization": f"Bearer {READ}x"}) as client:
            for name, status in (("forge.example.org", 200), ("loopwright-forge.loop:8406", 200), ("evil.example.org", 403)):
                assert (await client.get("/repos/shop", headers={"Host": name})).status_code == status, name
    finally:
        running.stop()


def test_a_folder_of_tokens_without_one_of_them_stops_the_start(tmp_path):
    (tmp_path / "read").write_text(READ)
    settings = {"LOOPWRIGHT_FORGE_TOKENS_FILE": str(tmp_path), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-m", "loopwright_repositories.local_forge"],
        env=settings,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert f"{tmp_path / 'write'} cannot be read" in done.stderr
