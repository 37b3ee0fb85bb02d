"""What is judged is the commit that git makes of a diff, not only its text; random values under a secret's name are secrets."""

from __future__ import annotations

import base64
import hashlib
import random
import string
import time
import uuid
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopwright_pr_agent.policy import DiffLimits, check_diff, check_made
from loopwright_pr_agent.secret_scan import secret_in
from loopwright_repositories.checkouts import Checkouts, RemoteRepository
from loopwright_repositories.errors import RepositoryRefused
from loopwright_repositories.forges.port import Person
from loopwright_repositories.publishing import push_diff

WORKFLOW = ".github/workflows/ci.yml"
RANDOM = "9fK2xQ7LmZp4Rt8VwYbN3cHd6GjS1aEu"


def text_diff(path: str, line: str) -> str:
    return f"diff --git a/{path} b/{path}\n--- a/{path}\n+++ b/{path}\n@@ -1 +1,2 @@\n a\n+{line}\n"


@pytest.fixture
async def judged(repository, tmp_path):
    """Pushes a diff through the judge to a real repository, and gives what was pushed; raises what the judge said."""
    for name, content in {WORKFLOW: "x\n", "src/a.py": "x\n", "lib/" + WORKFLOW: "x\n"}.items():
        (repository.path / name).parent.mkdir(parents=True, exist_ok=True)
        (repository.path / name).write_text(content)
    base = repository.commit("first")
    checkout = await Checkouts(tmp_path / "mirrors").sync(RemoteRepository("r", str(repository.path)))

    async def push(diff: str, protected: tuple[str, ...] = (), limits: DiffLimits | None = None) -> str:
        def judge(made) -> None:
            if faults := check_made(made, limits or DiffLimits(), protected).faults:
                raise RepositoryRefused("; ".join(faults))

        await push_diff(
            checkout, base=base, diff=diff, message="m", person=Person(name="L", email="l@localhost"), at=datetime(2026, 1, 1, tzinfo=UTC),
            url=str(repository.path), branch="loopwright/x", credential=None, judge=judge,
        )  # fmt: skip
        return repository.git("show", "--name-only", "--format=", "loopwright/x")

    push.branches = lambda: repository.git("branch", "--list", "loopwright/*")
    return push


HIDDEN = {
    "other prefixes": f"--- x/{WORKFLOW}\n+++ y/{WORKFLOW}\n@@ -1 +1 @@\n-x\n+y\n",
    "other prefixes with a header": f"diff --git x/{WORKFLOW} y/{WORKFLOW}\n--- x/{WORKFLOW}\n+++ y/{WORKFLOW}\n@@ -1 +1 @@\n-x\n+y\n",
    "a longer prefix": f"diff --git src/{WORKFLOW} src/{WORKFLOW}\n--- src/{WORKFLOW}\n+++ src/{WORKFLOW}\n@@ -1 +1 @@\n-x\n+y\n",
    "renamed away": f"diff --git a/{WORKFLOW} b/ci.yml\nsimilarity index 100%\nrename from {WORKFLOW}\nrename to ci.yml\n",
}


@pytest.mark.parametrize("diff", HIDDEN.values(), ids=HIDDEN)
async def test_a_protected_path_is_seen_however_the_diff_writes_it(judged, diff):
    with pytest.raises(RepositoryRefused, match=r"\.github/workflows/ci\.yml is protected"):
        await judged(diff)
    assert judged.branches() == ""


async def test_the_publisher_judges_the_commit_before_it_is_pushed(judged, monkeypatch, forge_server, repository, tmp_path):
    from types import SimpleNamespace

    from loopwright_pr_agent import publisher

    hostile = HIDDEN["other prefixes with a header"]
    assert check_diff(hostile, DiffLimits()).faults == (), "the text alone tells nothing; only the commit does"
    change = SimpleNamespace(diff=hostile, title="t", proof=SimpleNamespace(value="none"), proof_reason="", id="c", body="",
                             base_commit=repository.git("rev-parse", "HEAD"), checks=())  # fmt: skip
    mirror = next((tmp_path / "mirrors").rglob("HEAD")).parent
    job = publisher.Job(action="publish", forge_url=forge_server.url, repository="r", mirror=str(mirror), branch="loopwright/x")

    class Forge:
        credential = None

        async def find_pull_request(self, name, branch):
            return None

        def clone_url(self, name):
            return str(repository.path)

        async def open_pull_request(self, *_, **__):
            raise AssertionError("it was pushed")

    with pytest.raises(RepositoryRefused, match="is protected"):
        await publisher.publish(job.model_copy(update={"change": change}), Forge())
    assert judged.branches() == ""


async def test_an_ordinary_change_and_a_path_that_only_resembles_a_protected_one_are_pushed(judged):
    assert await judged("diff --git a/src/a.py b/src/a.py\n--- a/src/a.py\n+++ b/src/a.py\n@@ -1 +1 @@\n-x\n+y\n") == "src/a.py"


async def test_links_submodules_and_secrets_are_seen_in_the_commit(judged):
    link = "diff --git x/l y/l\nnew file mode 120000\n--- /dev/null\n+++ y/l\n@@ -0,0 +1 @@\n+/etc/passwd\n\\ No newline at end of file\n"
    with pytest.raises(RepositoryRefused, match="symbolic link"):
        await judged(link)
    secret = f"--- x/src/a.py\n+++ y/src/a.py\n@@ -1 +1,2 @@\n x\n+API_KEY = '{RANDOM}'\n"
    with pytest.raises(RepositoryRefused, match=r"src/a\.py:2 looks like a credential"):
        await judged(secret)
    assert judged.branches() == ""


@pytest.mark.parametrize(
    "path",
    [
        "CODEOWNERS", ".github/codeowners", "docs/CodeOwners", ".gitlab/CODEOWNERS", ".gitlab-ci.yml", "sub/.GitLab-CI.yml",
        ".circleci/config.yml", ".CircleCI/config.yml", "Jenkinsfile", "jenkinsfile", "build/Jenkinsfile", ".forgejo/workflows/a.yml",
        ".Forgejo/x", ".gitea/workflows/ci.yaml", ".GitHub/Workflows/ci.yml",
    ],
)  # fmt: skip
def test_what_decides_who_reviews_and_what_runs_is_protected_in_any_case(path):
    assert any("is protected" in fault for fault in check_diff(text_diff(path, "x"), DiffLimits()).faults)


def test_no_configured_pattern_takes_protection_away():
    assert check_diff(text_diff("CODEOWNERS", "x"), DiffLimits(), ("!CODEOWNERS", "!codeowners")).faults


@pytest.mark.parametrize("path", ["src/codeowners.py", "docs/jenkins.md", "src/circleci.py", "github/workflows.py"])
def test_other_files_are_not_protected(path):
    assert check_diff(text_diff(path, "x"), DiffLimits()).faults == ()


@pytest.mark.parametrize(
    "line",
    [
        f'API_KEY = "{RANDOM}"',
        f"  api-key: {RANDOM}",
        f"DB_PASSWORD={RANDOM}",
        f'{{"clientSecret": "{RANDOM}"}}',
        f'access_token: str = "{RANDOM}"',
        f"config[\"secret_token\"] = '{RANDOM}'",
        "SECRET_KEY = '" + hashlib.sha256(b"x").hexdigest() + "'",
        "export AUTH_TOKEN=" + base64.b64encode(hashlib.sha256(b"y").digest()).decode(),
        "encryption_key = b'" + base64.urlsafe_b64encode(hashlib.sha256(b"z").digest()).decode() + "'",
    ],
)
def test_a_random_value_under_a_secrets_name_is_found_and_not_repeated(line):
    (fault,) = check_diff(text_diff("shop/settings.py", line), DiffLimits()).faults
    assert "shop/settings.py:2 looks like a credential" in fault
    assert RANDOM not in fault


@pytest.mark.parametrize(
    "line",
    [
        'token = request.headers.get("Authorization")',
        "secret: ${{ secrets.DEPLOY_TOKEN_2 }}",
        'password = os.environ["DATABASE_PASSWORD_V2"]',
        f'token_id = "{uuid.UUID(int=0x9F3A7C5512EE4B0C8D217766AA01BC42)}"',
        'cache_key = "' + hashlib.sha256(b"x").hexdigest() + '"',
        '"integrity": "sha512-' + base64.b64encode(hashlib.sha512(b"x").digest()).decode() + '",',
        '    {file = "tokenizers-0.13.3-cp310-cp310-macosx_10_11_x86_64.whl", hash = "sha256:' + hashlib.sha256(b"x").hexdigest() + '"},',
        'checksum = "' + hashlib.sha256(b"x").hexdigest() + '"',
        "github.com/golang-jwt/jwt/v5 v5.2.1 h1:" + base64.b64encode(hashlib.sha256(b"x").digest()).decode(),
        "tokenizers==0.13.3 --hash=sha256:" + hashlib.sha256(b"x").hexdigest(),
        "passwordResetPath: '/auth/v2/passwordReset/confirmStep1'",
        "access_token = create_access_token_v2_for_user_session",
        "self.token = accessToken2FromSessionStore1",
        'API_KEY = "your-api-key-goes-here-123"',
        'API_KEY = "AbCdEfGh1234EXAMPLE5678key"',
        'publicKeyToken="b77a5c561934e089b77a5c561934e089"',
        "primary_key = Column(Integer, ForeignKey('orders.id2'))",
        "key: users/2024/summary-report-v2.json",
        'token_url = "https://login.example.org/oauth2/v2.0/token"',
        "keyboard = Qwertz105KeyLayoutDe2Mac4Win",
        'for key1, value2 in sorted(items.items()): assert key1 == "abc"',
    ],
)
def test_hashes_identifiers_paths_and_placeholders_are_no_secrets(line):
    assert check_diff(text_diff("shop/settings.py", line), DiffLimits()).faults == ()


def test_a_secret_that_is_taken_away_or_only_near_the_change_is_no_fault():
    diff = f"diff --git a/a b/a\n--- a/a\n+++ b/a\n@@ -1,2 +1,2 @@\n API_KEY = '{RANDOM}'\n-TOKEN = '{RANDOM}'\n+pass\n"
    assert check_diff(diff, DiffLimits()).faults == ()


def test_nearly_every_generated_key_is_found():
    rng = random.Random(7)
    made = ["".join(rng.choices(string.ascii_letters + string.digits, k=32)) for _ in range(500)]
    made += ["".join(rng.choices("0123456789abcdef", k=40)) for _ in range(500)]
    assert sum(bool(secret_in(f"api_key = '{value}'")) for value in made) >= 985


@settings(max_examples=50)
@given(st.sampled_from(["key", "token=", "key:", "a://b:", "secret ", "x", " ", "keykey==", "'", "PRIVATE "]), st.integers(1, 6_000))
def test_a_hostile_line_takes_no_time(piece, times):
    before = time.process_time()
    secret_in(piece * times)
    assert time.process_time() - before < 2
