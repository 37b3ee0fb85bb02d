from __future__ import annotations

from datetime import timedelta

import pytest
from loopwright_repositories.checkouts import Checkouts, RemoteRepository
from loopwright_repositories.errors import ManifestInvalid
from loopwright_repositories.manifest import parse_manifest, read_manifest


def test_a_full_manifest_is_read():
    manifest = parse_manifest(
        b"""
version: 1
setup: pip install -e .
test:
  - python -m pytest -q
  - ruff check
reproduce: python replay.py
services:
  checkout: services/checkout/
  web: .
protected_paths: [deploy/**, CODEOWNERS]
timeout: 10m
"""
    )
    assert manifest.setup == ("pip install -e .",)
    assert manifest.test == ("python -m pytest -q", "ruff check")
    assert manifest.services == {"checkout": "services/checkout", "web": ""}
    assert manifest.timeout == timedelta(minutes=10)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"version: 2\n", "version: Input should be 1"),
        (b"test: x\n", "version: Field required"),
        (b"version: 1\ntets: x\n", "tets: Extra inputs are not permitted"),
        (b"version: 1\ntest: [1, {a: b}]\n", "test.0"),
        (b"version: 1\ntimeout: forever\n", "timeout"),
        (b"version: 1\ntimeout: 3h\n", "timeout"),
        (b"version: 1\nservices: {a: ../../etc}\n", "service a"),
        (b"- a\n", "must be a mapping"),
        (b"", "must be a mapping"),
        (b"version: [1\n", "line 2"),
        (b"\xff\xfe", "not UTF-8"),
        (b"version: 1\ntest: &a [x]\nsetup: *a\n", "anchors and aliases"),
        (b"version: 1\ntest: !!python/object/apply:os.system [id]\n", "could not determine a constructor"),
        (b"version: 1\ntest: " + b"[" * 3000 + b"]" * 3000 + b"\n", "nested too deeply"),
        (b"version: 1\ntest: 2026-99-99\n", "impossible value"),
        (b"x" * 70_000, "70000 bytes"),
        (b'version: 1\ntest: "a\\0b"\n', "test"),
    ],
)
def test_a_manifest_that_cannot_be_followed_says_where_and_why(content, told):
    with pytest.raises(ManifestInvalid) as refused:
        parse_manifest(content)
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("files", "test", "setup"),
    [
        ({"tests/test_a.py": "", "requirements.txt": ""}, "python -m pytest -q", ("python -m pip install -r requirements.txt",)),
        ({"pyproject.toml": "[tool.pytest.ini_options]\n"}, "python -m pytest -q", ("python -m pip install -e .",)),
        ({"tox.ini": "[tox]"}, "tox", ()),
        ({"package.json": '{"scripts": {"test": "jest"}}', "package-lock.json": "{}"}, "npm test", ("npm ci",)),
        ({"go.mod": "module x", "Makefile": "test:\n\tgo test\n"}, "go test ./...", ()),
        ({"Makefile": "all:\n\ntest: all\n\ttrue\n"}, "make test", ()),
    ],
)
async def test_without_a_manifest_the_usual_tests_are_found(laid, tmp_path, files, test, setup):
    laid.commit("first", files)
    checkout = await Checkouts(tmp_path / "m").sync(RemoteRepository("r", str(laid.path)))
    found = await read_manifest(checkout, "main")
    assert found.origin == "discovered"
    assert (found.manifest.test, found.manifest.setup) == ((test,), setup)
    assert found.reasons


async def test_nothing_found_says_what_to_add(laid, tmp_path):
    laid.commit("first", {"README": "hi", "package.json": '{"scripts": {"test": "echo \\"Error: no test specified\\" && exit 1"}}'})
    checkout = await Checkouts(tmp_path / "m").sync(RemoteRepository("r", str(laid.path)))
    found = await read_manifest(checkout, "main")
    assert found.origin == "nothing"
    assert "add a .loopwright.yaml" in found.reasons[0]


async def test_the_repositorys_own_manifest_is_used_as_it_was_at_the_revision(laid, tmp_path):
    first = laid.commit("first", {".loopwright.yaml": "version: 1\ntest: old\n", "tox.ini": ""})
    laid.commit("second", {".loopwright.yaml": "version: 1\ntest: new\n"})
    checkout = await Checkouts(tmp_path / "m").sync(RemoteRepository("r", str(laid.path)))
    assert (await read_manifest(checkout, first)).manifest.test == ("old",)
    assert (await read_manifest(checkout, "main")).manifest.test == ("new",)
