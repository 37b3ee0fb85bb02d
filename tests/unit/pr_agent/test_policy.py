"""What a diff may be, and what a pull request's text may hold."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopwright_pr_agent.body import block, plain
from loopwright_pr_agent.domain import person_of, printable
from loopwright_pr_agent.policy import DiffLimits, check_diff
from loopwright_pr_agent.sandbox.seccomp import Deny, assemble, common_rules, shared_host_rules


def diff_of(path: str, *added: str, header: str = "") -> str:
    lines = "".join(f"+{line}\n" for line in added)
    return f"diff --git a/{path} b/{path}\n{header}--- a/{path}\n+++ b/{path}\n@@ -1,1 +1,{1 + len(added)} @@\n a\n{lines}"


def test_an_ordinary_diff_may_be_published():
    checked = check_diff(diff_of("shop/cart.py", "x = 1"), DiffLimits())
    assert (checked.files, checked.faults) == (("shop/cart.py",), ())


@pytest.mark.parametrize(
    "path",
    [".github/workflows/ci.yml", ".gitlab-ci.yml", "CODEOWNERS", "docs/CODEOWNERS", ".loopwright.yaml", "Jenkinsfile", ".gitmodules"],
)
def test_what_runs_with_rights_of_its_own_is_protected(path):
    assert "is protected" in check_diff(diff_of(path, "x"), DiffLimits()).faults[0]


def test_configured_patterns_are_protected_too():
    assert check_diff(diff_of("deploy/prod/values.yaml", "x"), DiffLimits(), ("deploy/**",)).faults
    assert not check_diff(diff_of("src/deploy.py", "x"), DiffLimits(), ("deploy/**",)).faults


@pytest.mark.parametrize(
    "line",
    [
        "key = '" + "AKIA" + "IOSFODNN7EXAMPLE'",
        "-----BEGIN " + "RSA PRIVATE KEY-----",
        "token = 'ghp_" + "a" * 36 + "'",
        "slack = 'xoxb-" + "1" * 12 + "'",
        "url = 'postgres://user:" + "hunter22" + "@db/shop'",
    ],
)
def test_added_secrets_are_found(line):
    faults = check_diff(diff_of("shop/settings.py", line), DiffLimits()).faults
    assert faults
    assert "shop/settings.py:2 looks like" in faults[0]
    assert line not in faults[0]


def test_size_files_binaries_and_links_are_bounded():
    assert "DIFF_BYTES_MAX" in check_diff(diff_of("a.py", "x" * 2_000), DiffLimits(bytes_max=1_024)).faults[0]
    many = "".join(diff_of(f"f{number}.py", "x") for number in range(3))
    assert "DIFF_FILES_MAX" in check_diff(many, DiffLimits(files_max=2)).faults[0]
    binary = "diff --git a/x.png b/x.png\nindex 1..2 100644\nGIT binary patch\nliteral 1\nIc$@<\n\nliteral 0\nHc$@<\n\n"
    assert check_diff(binary, DiffLimits()).faults
    link = "diff --git a/l b/l\nnew file mode 120000\nindex 0000000..1111111\n--- /dev/null\n+++ b/l\n@@ -0,0 +1 @@\n+/etc/passwd\n"
    assert any("symbolic link" in fault for fault in check_diff(link, DiffLimits()).faults)
    assert check_diff("", DiffLimits()).faults
    assert check_diff("@@ nonsense", DiffLimits()).faults


@given(st.text(max_size=300))
def test_outside_text_never_mentions_embeds_or_links(text):
    shown = plain(text)
    assert "\n" not in shown
    assert "<" not in shown.replace("&lt;", "")
    assert "://" not in shown
    for index, character in enumerate(shown):
        if character in "@#":
            assert shown[index + 1] == "\u200b"
        if character in "[]*_`|!":
            assert shown[index - 1] == "\\"


@given(st.text(alphabet="`a\n ~", max_size=200))
def test_a_code_block_cannot_be_ended_from_inside(text):
    fence, *inside = block(text).split("\n")
    assert fence.removesuffix("text") not in "\n".join(inside[:-1])


@given(st.text(max_size=50), st.text(max_size=50))
def test_a_persons_name_can_always_be_written_by_git(name, email):
    from types import SimpleNamespace

    from loopwright_repositories.forges.port import Person

    made = person_of(SimpleNamespace(actor="person:ada", actor_name=name, actor_email=email))
    assert Person(name=made[0], email=made[1])


def test_control_characters_are_shown_as_such():
    assert printable("a\x1b[31m\nb\t\x00") == "a\ufffd[31m\nb\t\ufffd"


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_filters_are_whole_instructions_that_begin_with_the_architecture(machine):
    program = assemble([*common_rules(), *shared_host_rules()], machine)
    assert len(program) % 8 == 0
    assert program[:8] == bytes.fromhex("2000000004000000")
    assert len(program) // 8 < 4_096


def test_an_unknown_machine_is_refused():
    with pytest.raises(ValueError, match="riscv64"):
        assemble([Deny("ptrace")], "riscv64")


def run_publisher(job: object) -> subprocess.CompletedProcess[bytes]:
    content = job if isinstance(job, bytes) else json.dumps(job).encode()
    return subprocess.run(
        [sys.executable, "-m", "loopwright_pr_agent.publisher"],
        input=content,
        capture_output=True,
        timeout=60,
        env={"PATH": os.environ["PATH"]},
    )


def test_the_publisher_refuses_what_is_not_a_job():
    for job in (b"", b"[]", b"{", {"action": "destroy", "forge_url": "x", "repository": "r"}, base64.b64encode(os.urandom(64))):
        assert run_publisher(job).returncode == 2


def test_the_publisher_names_the_token_file_it_cannot_read_and_never_a_token(tmp_path):
    said = run_publisher(
        {"action": "close", "forge_url": "http://127.0.0.1:9", "repository": "r", "write_token_file": str(tmp_path / "no")}
    )
    result = json.loads(said.stdout)
    assert (result["ok"], result["kind"]) == (False, "refused")
    assert "LOOPWRIGHT_PR_AGENT_FORGE_WRITE_TOKEN_FILE" in result["reason"]
    (tmp_path / "yes").write_text("write-token-0123456789")
    said = run_publisher(
        {"action": "close", "forge_url": "http://127.0.0.1:9", "repository": "r", "number": 1, "write_token_file": str(tmp_path / "yes")}
    )
    assert json.loads(said.stdout)["kind"] == "unavailable"
    assert b"write-token" not in said.stdout + said.stderr
