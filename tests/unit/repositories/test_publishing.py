# ruff: noqa: ASYNC221 (git is quick, and nothing else runs meanwhile)
from __future__ import annotations

import subprocess
from datetime import UTC, datetime

import pytest
from loopwright_repositories.checkouts import Checkouts, RemoteRepository
from loopwright_repositories.errors import HostileInput
from loopwright_repositories.forges.port import Person
from loopwright_repositories.publishing import BranchMoved, DiffDoesNotApply, push_diff

LOOPWRIGHT = Person(name="Loopwright", email="loopwright@localhost.localdomain")
AT = datetime(2026, 3, 2, 10, 0, tzinfo=UTC)


@pytest.fixture
async def reverting(laid, tmp_path):
    """A repository with a guilty commit, and what a revert of it would push."""
    laid.commit("first", {"a.py": "good\n", "pic": b"\x00\x01"})
    laid.commit("guilty", {"a.py": "bad\n", "pic": b"\x00\x02", "new.py": "n\n"})
    checkout = await Checkouts(tmp_path / "m").sync(RemoteRepository("r", str(laid.path)))
    diff = await checkout.raw_diff(await checkout.resolve("HEAD"))
    base = laid.git("rev-parse", "HEAD")
    reverse = laid.git("diff", "--binary", "--full-index", "HEAD", "HEAD~1") + "\n"
    assert diff != reverse
    return checkout, {
        "base": base, "diff": reverse, "message": "Revert guilty\n\nBecause.", "person": LOOPWRIGHT, "at": AT, "url": str(laid.path),
        "branch": "loopwright/r1", "credential": None,
    }  # fmt: skip


async def test_a_diff_becomes_a_commit_on_a_branch(reverting, laid):
    checkout, wish = reverting
    commit = await push_diff(checkout, **wish)
    assert laid.git("rev-parse", "loopwright/r1") == commit
    assert laid.git("rev-parse", "loopwright/r1^{tree}") == laid.git("rev-parse", "HEAD~1^{tree}")
    said = laid.git("show", "-s", "--format=%an <%ae>|%P|%B", commit)
    assert said == f"Loopwright <loopwright@localhost.localdomain>|{wish['base']}|Revert guilty\n\nBecause."
    assert "loopwright-publish" not in laid.git("branch", "--list", "--all")


async def test_a_repeat_makes_the_same_commit_and_pushes_nothing_new(reverting):
    checkout, wish = reverting
    assert await push_diff(checkout, **wish) == await push_diff(checkout, **wish)


async def test_somebody_elses_push_is_not_overwritten(reverting, laid):
    checkout, wish = reverting
    first = await push_diff(checkout, **wish)
    laid.git("branch", "-f", "loopwright/r1", "HEAD")
    changed = wish | {"message": "another"}
    with pytest.raises(BranchMoved):
        await push_diff(checkout, **changed)
    with pytest.raises(BranchMoved):
        await push_diff(checkout, **changed, expected=first)
    await push_diff(checkout, **changed, expected=laid.git("rev-parse", "HEAD"))


async def test_a_diff_whose_binary_part_is_damaged_is_refused_although_git_apply_ends_with_0(reverting):
    checkout, wish = reverting
    whole = wish["diff"].rstrip()
    for cut in (whole[: whole.index("literal")], whole[:-3], whole.replace("JcmZQz", "JcmZQ!")):
        with pytest.raises(DiffDoesNotApply):
            await push_diff(checkout, **wish | {"diff": cut})
    assert await push_diff(checkout, **wish | {"diff": whole})  # only its last empty line is gone


@pytest.mark.parametrize("diff", ["", "nonsense\n", "--- a/none.py\n+++ b/none.py\n@@ -1 +1 @@\n-x\n+y\n"])
async def test_a_diff_that_does_not_fit_is_refused(reverting, diff):
    checkout, wish = reverting
    with pytest.raises(DiffDoesNotApply):
        await push_diff(checkout, **wish | {"diff": diff})


@pytest.mark.parametrize("path", ["../escape", ".git/hooks/post-commit", "/etc/evil", "a/../../b"])
async def test_a_diff_cannot_write_outside_the_tree(reverting, path):
    checkout, wish = reverting
    diff = f"diff --git a/{path} b/{path}\nnew file mode 100755\n--- /dev/null\n+++ b/{path}\n@@ -0,0 +1 @@\n+x\n"
    with pytest.raises(DiffDoesNotApply):
        await push_diff(checkout, **wish | {"diff": diff})


@pytest.mark.parametrize("branch", ["--receive-pack=x", "HEAD", "refs/heads/x", "a..b", "x:main", "+main"])
async def test_hostile_branches_are_refused(reverting, branch):
    checkout, wish = reverting
    with pytest.raises(HostileInput):
        await push_diff(checkout, **wish | {"branch": branch})


async def test_nothing_is_left_on_disk(reverting, tmp_path, monkeypatch):
    checkout, wish = reverting
    (tmp_path / "t").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "t"))
    monkeypatch.setattr("tempfile.tempdir", None)
    await push_diff(checkout, **wish)
    assert list((tmp_path / "t").iterdir()) == []
    assert subprocess.run(["git", "fsck", "--strict"], cwd=checkout.directory, capture_output=True).returncode == 0
