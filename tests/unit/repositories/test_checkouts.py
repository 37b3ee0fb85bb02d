# ruff: noqa: ASYNC221 (git is quick, and nothing else runs meanwhile)
from __future__ import annotations

import asyncio
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
from loopwright_repositories.checkout import release_candidates
from loopwright_repositories.checkouts import Checkouts, RemoteRepository
from loopwright_repositories.errors import (
    HostileInput,
    OutputTooLarge,
    RepositoryRefused,
    RepositoryUnavailable,
    UnknownPath,
    UnknownRevision,
)
from loopwright_repositories.git import run_git

HANGS = {"GIT_ALLOW_PROTOCOL": "ext"}  # only here: a transport that waits for ever
BODY = "def total(cart):\n    amount = 0\n    for item in cart:\n        amount += item.price\n    return amount\n"


@pytest.fixture
def checkouts(tmp_path: Path) -> Checkouts:
    return Checkouts(tmp_path / "mirrors")


def remote(laid) -> RemoteRepository:
    return RemoteRepository("shop", str(laid.path))


async def test_a_mirror_follows_new_commits_and_forgets_removed_branches(laid, checkouts):
    first = laid.commit("first", {"a.py": "1\n"})
    laid.git("branch", "gone")
    checkout = await checkouts.sync(remote(laid))
    assert await checkout.branches() == {"main": first, "gone": first}
    laid.git("branch", "-D", "gone")
    second = laid.commit("second", {"a.py": "2\n"})
    checkout = await checkouts.sync(remote(laid))
    assert await checkout.branches() == {"main": second}
    assert await checkout.default_branch() == "main"
    assert await checkout.resolve("HEAD") == second


async def test_the_default_branch_is_what_the_remote_says(laid, checkouts):
    laid.commit("first", {"a": "1"})
    laid.git("branch", "-m", "trunk")
    checkout = await checkouts.sync(remote(laid))
    assert await checkout.default_branch() == "trunk"


async def test_many_syncs_at_once_of_one_repository_take_turns(laid, checkouts):
    commit = laid.commit("first", {"a": "1"})
    found = await asyncio.gather(*(checkouts.sync(remote(laid)) for _ in range(6)))
    assert {await checkout.resolve("main") for checkout in found} == {commit}


async def test_a_lock_left_by_a_killed_process_does_not_block_the_next(laid, checkouts):
    laid.commit("first", {"a": "1"})
    checkout = await checkouts.sync(remote(laid))
    commit = laid.commit("second", {"a": "2"})
    (checkout.directory / "refs" / "heads" / "main.lock").write_text("")
    (checkout.directory / "packed-refs.lock").write_text("")
    fresh = Checkouts(checkouts.root)
    assert await (await fresh.sync(remote(laid))).resolve("main") == commit


async def test_a_remote_that_is_not_there_is_told(tmp_path, checkouts):
    with pytest.raises(RepositoryRefused, match="does not appear to be a git repository"):
        await checkouts.sync(RemoteRepository("shop", str(tmp_path / "nowhere")))
    with pytest.raises(RepositoryUnavailable):
        await checkouts.sync(RemoteRepository("shop", "http://127.0.0.1:9/nothing.git"))


@pytest.mark.parametrize(
    "url", ["ext::sh -c date", "--upload-pack=touch /tmp/x", "http://user:secret@host/x.git", "ssh://h/x", "/a/../b", ""]
)
async def test_urls_that_could_run_something_or_carry_a_credential_are_refused(checkouts, url):
    with pytest.raises(HostileInput) as refused:
        await checkouts.sync(RemoteRepository("shop", url))
    assert "secret" not in str(refused.value)


async def test_releases_tags_and_abbreviations_resolve_to_commits(laid, checkouts):
    first = laid.commit("first", {"a": "1"})
    laid.git("tag", "-a", "v1.4.0", "-m", "annotated")
    second = laid.commit("second", {"a": "2"})
    laid.git("tag", "shop@2.0.0")
    checkout = await checkouts.sync(remote(laid))
    for name in ("v1.4.0", "1.4.0", "shop@1.4.0", first, first[:8], f"shop@9.9.9+{first[:10]}", f"shop-{first[:9]}"):
        assert await checkout.resolve(name) == first, name
    for name in ("shop@2.0.0", "main", second[:12]):
        assert await checkout.resolve(name) == second, name
    for name in ("3.0.0", "f" * 40, "abcdef0"):
        with pytest.raises(UnknownRevision):
            await checkout.resolve(name)


async def test_a_tag_wins_over_a_commit_that_it_looks_like(laid, checkouts):
    first = laid.commit("first", {"a": "1"})
    second = laid.commit("second", {"a": "2"})
    laid.git("tag", second[:8], first)
    checkout = await checkouts.sync(remote(laid))
    assert await checkout.resolve(second[:8]) == first


@pytest.mark.parametrize(
    "name", ["--output=/tmp/x", "-h", "a..b", "main@{1}", "HEAD:file", "a b", "main^", "x\x00y", "", "a" * 300, ":/fix", "main~1", "x.lock"]
)
async def test_hostile_revisions_are_refused_before_git_sees_them(laid, checkouts, name):
    laid.commit("first", {"a": "1"})
    checkout = await checkouts.sync(remote(laid))
    with pytest.raises(HostileInput):
        await checkout.resolve(name)


@pytest.mark.parametrize(
    "path", ["../etc/passwd", "/etc/passwd", "-n", "a/../../b", "a\x00b", "", ":(glob)**", "./a", "a//b", "a\nb", "x" * 5000]
)
async def test_hostile_paths_are_refused_before_git_sees_them(laid, checkouts, path):
    laid.commit("first", {"a": "1"})
    checkout = await checkouts.sync(remote(laid))
    for call in (
        checkout.show_file(path, "main"),
        checkout.blame(path, "main"),
        checkout.log("main", path=path),
        checkout.list_files("main", path),
    ):
        with pytest.raises(HostileInput):
            await call


async def test_a_release_name_offers_its_parts_likeliest_first():
    assert release_candidates("shop@1.4.2+9f3c2aa") == (
        "shop@1.4.2+9f3c2aa",
        "1.4.2+9f3c2aa",
        "1.4.2",
        "9f3c2aa",
        "v1.4.2+9f3c2aa",
        "v1.4.2",
    )


async def test_ancestors_and_merge_bases(laid, checkouts):
    first = laid.commit("first", {"a": "1"})
    laid.git("checkout", "-q", "-b", "side")
    side = laid.commit("side", {"b": "1"})
    laid.git("checkout", "-q", "main")
    second = laid.commit("second", {"a": "2"})
    laid.git("merge", "-q", "--no-ff", "-m", "merge side", "side")
    laid.git("checkout", "-q", "--orphan", "unrelated")
    alone = laid.commit("alone", {"c": "1"})
    checkout = await checkouts.sync(remote(laid))
    assert await checkout.is_ancestor(first, "main")
    assert await checkout.is_ancestor(side, "main")
    assert await checkout.is_ancestor("main", "main")
    assert not await checkout.is_ancestor(second, side)
    assert await checkout.merge_base(second, side) == first
    assert await checkout.merge_base("main", alone) is None


async def test_the_log_tells_authors_times_bodies_and_counts(laid, checkouts):
    laid.commit("first", {"a.py": "1\n2\n3\n", "logo.png": b"\x89PNG\x00\x01"})
    laid.commit("Change a\n\nBecause of b.\n\nSigned-off-by: Ada", {"a.py": "1\n2\nthree\nfour\n"})
    checkout = await checkouts.sync(remote(laid))
    newest, oldest = await checkout.log("main")
    assert (newest.subject, newest.body) == ("Change a", "Because of b.\n\nSigned-off-by: Ada")
    assert (newest.author_name, newest.author_mail) == ("Ada", "ada@example.org")
    assert newest.committed_at.isoformat() == "2026-03-01T10:02:00+00:00"
    assert [(file.path, file.added, file.deleted) for file in newest.files] == [("a.py", 2, 1)]
    assert newest.parents == (oldest.sha,)
    assert [(file.path, file.added) for file in oldest.files] == [("a.py", 3), ("logo.png", None)]


async def test_the_log_of_a_file_goes_through_its_renames_and_a_range_is_cut(laid, checkouts):
    first = laid.commit("add", {"old.py": BODY, "other.py": "x\n"})
    laid.commit("unrelated", {"other.py": "y\n"})
    laid.git("mv", "old.py", "new.py")
    renamed = laid.commit("rename")
    changed = laid.commit("change", {"new.py": BODY.replace("0", "1")})
    checkout = await checkouts.sync(remote(laid))
    assert [commit.sha for commit in await checkout.log("main", path="new.py")] == [changed, renamed, first]
    assert [commit.sha for commit in await checkout.log("main", path="new.py", not_in=renamed)] == [changed]
    assert [commit.sha for commit in await checkout.log("main", limit=2)] == [changed, renamed]
    (file,) = (await checkout.commit(renamed)).files
    assert (file.path, file.old_path) == ("new.py", "old.py")
    with pytest.raises(RepositoryRefused, match="5000 are given"):
        await checkout.log("main", limit=10_000)


async def test_a_merge_commit_counts_what_it_brought_to_its_first_parent(laid, checkouts):
    laid.commit("first", {"a": "1\n"})
    laid.git("checkout", "-q", "-b", "side")
    laid.commit("side", {"b": "1\n2\n"})
    laid.git("checkout", "-q", "main")
    laid.git("merge", "-q", "--no-ff", "-m", "merge side", "side")
    checkout = await checkouts.sync(remote(laid))
    merge = await checkout.commit("main")
    assert merge.is_merge
    assert [(file.path, file.added) for file in merge.files] == [("b", 2)]
    assert [file.path for file in await checkout.diff("main")] == ["b"]


async def test_hostile_messages_and_file_names_do_not_break_the_log(laid, checkouts):
    sha = laid.commit("x\x1e\x1fy\n\n" + "0" * 40 + "\ntree abc", {"0" * 40: "1\n", 'q"uo\tte\nline': "1\n", "ünï.py": "1\n"})
    checkout = await checkouts.sync(remote(laid))
    (commit,) = await checkout.log("main")
    assert commit.sha == sha
    assert {file.path for file in commit.files} == {"0" * 40, 'q"uo\tte\nline', "ünï.py"}
    assert {file.path for file in await checkout.diff("main")} == {"0" * 40, 'q"uo\tte\nline', "ünï.py"}
    assert {entry.path for entry in await checkout.list_files("main")} == {"0" * 40, 'q"uo\tte\nline', "ünï.py"}


async def test_blame_names_the_commit_of_each_line_through_renames_and_moves(laid, checkouts):
    first = laid.commit("first", {"cart.py": BODY})
    laid.git("mv", "cart.py", "basket.py")
    laid.commit("rename")
    helper = "\n\ndef discount(cart, percent_of_the_price):\n    return total(cart) * (100 - percent_of_the_price) // 100\n"
    second = laid.commit("discount", {"basket.py": BODY + helper})
    moved = laid.commit("discount first", {"basket.py": helper.lstrip() + "\n\n" + BODY})
    guilty = laid.commit("round", {"basket.py": helper.lstrip() + "\n\n" + BODY.replace("item.price", "int(item.price)")})
    checkout = await checkouts.sync(remote(laid))
    by_text = {line.text.strip(): line for line in await checkout.blame("basket.py", "main")}
    assert by_text["amount += int(item.price)"].commit == guilty
    assert by_text["for item in cart:"].commit == first
    assert by_text["for item in cart:"].original_path == "cart.py"
    assert by_text["def discount(cart, percent_of_the_price):"].commit == second
    assert moved not in {line.commit for line in by_text.values() if line.text.strip()}
    (line,) = await checkout.blame("basket.py", "main", 2, 2)
    assert (line.number, line.text) == (2, "    return total(cart) * (100 - percent_of_the_price) // 100")
    assert await checkout.blame("basket.py", "main", 900, 901) == []
    with pytest.raises(UnknownPath):
        await checkout.blame("cart.py", "main")


async def test_indenting_a_line_does_not_take_the_blame_for_it(laid, checkouts):
    first = laid.commit("first", {"a.py": "alpha = compute_alpha()\n"})
    laid.commit("indent", {"a.py": "if True:\n    alpha = compute_alpha()\n"})
    checkout = await checkouts.sync(remote(laid))
    lines = await checkout.blame("a.py", "main")
    assert lines[1].commit == first
    assert (await checkout.blame("a.py", "main", ignore_whitespace=False, follow_moves=False))[1].commit != first


async def test_files_are_read_as_they_were_and_only_plain_ones(laid, checkouts):
    first = laid.commit("first", {"src/a.py": "old\n"})
    laid.git("mv", "src/a.py", "src/b.py")
    (laid.path / "link").symlink_to("/etc/passwd")
    laid.commit("second", {"big": "x" * 1000})
    checkout = await checkouts.sync(remote(laid))
    assert await checkout.show_file("src/a.py", first) == b"old\n"
    for missing in ("src/a.py", "src", "link", "nowhere"):
        with pytest.raises(UnknownPath):
            await checkout.show_file(missing, "main")
    with pytest.raises(OutputTooLarge, match="1000 bytes; the limit is 999"):
        await checkout.show_file("big", "main", bytes_max=999)
    assert [entry.path for entry in await checkout.list_files("main", "src")] == ["src/b.py"]


async def test_a_diff_has_files_hunks_and_line_numbers(laid, checkouts):
    laid.commit("first", {"cart.py": BODY, "gone.py": "x\n", "pic": b"\x00\x01"})
    laid.commit("change", {"cart.py": BODY.replace("amount = 0", "amount = 1"), "gone.py": None, "new.py": "n\n", "pic": b"\x00\x02"})
    checkout = await checkouts.sync(remote(laid))
    files = {file.path: file for file in await checkout.diff("main")}
    assert {path: file.status for path, file in files.items()} == {
        "cart.py": "modified",
        "gone.py": "deleted",
        "new.py": "added",
        "pic": "modified",
    }
    assert files["pic"].is_binary
    (hunk,) = files["cart.py"].hunks
    changed = [(line.kind, line.old_number, line.new_number, line.text) for line in hunk.lines if line.kind != "context"]
    assert changed == [("deleted", 2, None, "    amount = 0"), ("added", None, 2, "    amount = 1")]
    assert (files["cart.py"].added, files["cart.py"].deleted) == (1, 1)
    with pytest.raises(OutputTooLarge):
        await checkout.raw_diff("main", bytes_max=10)


async def test_a_raw_diff_can_be_applied_again(laid, checkouts, tmp_path):
    first = laid.commit("first", {"a.py": "1\n", "pic": b"\x00\x01"})
    laid.commit("second", {"a.py": "2\n", "pic": b"\x00\x02"})
    checkout = await checkouts.sync(remote(laid))
    await checkout.export(first, tmp_path / "out")
    subprocess.run(["git", "apply", "-"], cwd=tmp_path / "out", input=(await checkout.raw_diff("main")).encode(), check=True)
    assert (tmp_path / "out" / "a.py").read_text() == "2\n"
    assert (tmp_path / "out" / "pic").read_bytes() == b"\x00\x02"


async def test_an_export_has_every_file_of_the_revision_and_nothing_of_git(laid, checkouts, tmp_path):
    first = laid.commit("first", {"a.py": "1\n", ".gitattributes": "a.py export-ignore\n", "run.sh": "#!/bin/sh\n"})
    (laid.path / "run.sh").chmod(0o755)
    laid.commit("second", {"a.py": "2\n"})
    checkout = await checkouts.sync(remote(laid))
    assert await checkout.export(first, tmp_path / "out") == first
    assert sorted(entry.name for entry in (tmp_path / "out").iterdir()) == [".gitattributes", "a.py", "run.sh"]
    assert (tmp_path / "out" / "a.py").read_text() == "1\n"
    await checkout.export("main", tmp_path / "newer")
    assert (tmp_path / "newer" / "run.sh").stat().st_mode & 0o111
    with pytest.raises(RepositoryRefused, match="not empty"):
        await checkout.export(first, tmp_path / "out")


async def test_a_bundle_clones_to_the_revision_and_holds_no_other_branch(laid, checkouts, tmp_path):
    first = laid.commit("first", {"a": "1"})
    laid.git("checkout", "-q", "-b", "secret")
    laid.commit("secret", {"s": "1"})
    laid.git("checkout", "-q", "main")
    laid.commit("second", {"a": "2"})
    checkout = await checkouts.sync(remote(laid))
    assert await checkout.bundle(first, tmp_path / "r.bundle", branch="work") == first
    subprocess.run(["git", "clone", "-q", str(tmp_path / "r.bundle"), str(tmp_path / "clone")], check=True)
    said = subprocess.run(
        ["git", "for-each-ref", "--format=%(refname) %(objectname)"], cwd=tmp_path / "clone", check=True, capture_output=True, text=True
    ).stdout
    assert {line.split()[1] for line in said.splitlines()} == {first}
    assert "refs/heads/work" in said
    assert "secret" not in said


async def test_codeowners_come_from_the_revision(laid, checkouts):
    first = laid.commit("first", {"CODEOWNERS": "* @everyone\n"})
    laid.commit("second", {".github/CODEOWNERS": "* @web\n"})
    checkout = await checkouts.sync(remote(laid))
    assert (await checkout.codeowners(first)).of("a.py") == ("@everyone",)
    assert (await checkout.codeowners("main")).path == ".github/CODEOWNERS"


async def test_hooks_and_configuration_of_a_repository_do_not_run(laid, checkouts, tmp_path):
    laid.commit("first", {"a": "1"})
    checkout = await checkouts.sync(remote(laid))
    hook = checkout.directory / "hooks" / "reference-transaction"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    hook.chmod(0o755)
    laid.commit("second", {"a": "2"})
    await checkouts.sync(remote(laid))
    assert not (tmp_path / "ran").exists()


@pytest.mark.timeout(60)
async def test_git_is_stopped_at_its_output_limit_however_much_is_still_to_come(laid):
    laid.commit("first", {"big": "x\n" * 2_000_000})
    for limit in (1_000, 65_536, 65_537, 200_000, 1_000_000, 3_999_999):
        with pytest.raises(OutputTooLarge):
            await run_git(["show", "HEAD:big"], git_dir=laid.path / ".git", output_bytes_max=limit)
    assert len((await run_git(["show", "HEAD:big"], git_dir=laid.path / ".git", output_bytes_max=4_000_000)).stdout) == 4_000_000


async def test_git_is_stopped_at_its_time_limit_and_when_its_caller_is_cancelled(laid):
    laid.commit("first", {"a": "x"})
    for seconds in (0.0, 0.005, 0.05):
        with pytest.raises(RepositoryUnavailable, match="longer than"):
            # Waits for standard input that never comes.
            await run_git(["fetch", "ext::cat"], git_dir=laid.path / ".git", environment=HANGS, timeout=timedelta(seconds=seconds))
    running = asyncio.create_task(run_git(["fetch", "ext::cat"], git_dir=laid.path / ".git", environment=HANGS))
    await asyncio.sleep(0.1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(running, 5)
