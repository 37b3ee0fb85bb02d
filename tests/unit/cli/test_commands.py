"""The commands against a real HTTP server that answers as the gateway and ingest do: what they ask, what they say, how they end."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from loopwright_cli.main import app
from typer.testing import CliRunner, Result

HEAD = "c" * 40


class Server(ThreadingHTTPServer):
    """Answers what it was told to, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[tuple[str, str], tuple[int, Any]] = {}
        self.asked: list[tuple[str, str, dict[str, list[str]], Any, str]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, method: str, path: str, body: Any, status: int = 200) -> None:
        self.answers[method, path] = (status, body)


class _Handler(BaseHTTPRequestHandler):
    def _any(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        split = urlsplit(self.path)
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        query = parse_qs(split.query)
        server.asked.append((self.command, split.path, query, json.loads(raw) if raw else None, self.headers.get("Authorization", "")))
        status, body = server.answers.get((self.command, split.path), (404, {"title": "Not found", "detail": f"There is no {split.path}."}))
        if callable(body):
            body = body(query)
        payload = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    do_GET = do_POST = do_PUT = _any

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture
def loopwright(server: Server, tmp_path: Path) -> Callable[..., Result]:
    """Runs a command against the server, from a folder of its own."""

    def run(*arguments: str, **environment: str) -> Result:
        given = {
            "LOOPWRIGHT_URL": server.url,
            "LOOPWRIGHT_INGEST_URL": server.url,
            "LOOPWRIGHT_DATA": str(tmp_path / "data"),
            "COLUMNS": "200",
        }
        return CliRunner().invoke(app, list(arguments), env=given | environment)

    return run


def row(number: int, **more: Any) -> dict[str, Any]:
    return {
        "id": f"report-{number}",
        "title": f"Report {number}",
        "priority": "P1",
        "services": ["shop", "pay"],
        "signal_count": 3,
        "people_count": 2,
        "state": "in_review",
        "waits_for": "your review",
    } | more


def test_reports_are_listed_over_all_pages_up_to_the_limit(server: Server, loopwright: Callable[..., Result]) -> None:
    def pages(query: dict[str, list[str]]) -> Any:
        start = int(query.get("cursor", ["0"])[0])
        items = [row(number) for number in range(start, start + 2)]
        return {"items": items, "next_cursor": str(start + 2)}

    server.answer("GET", "/v1/reports", pages)
    done = loopwright("reports", "list", "--limit", "5", "-o", "json")
    assert done.exit_code == 0, done.output
    assert [item["id"] for item in json.loads(done.stdout)] == [f"report-{number}" for number in range(5)]
    assert len(server.asked) == 3


def test_filters_are_handed_to_the_gateway(server: Server, loopwright: Callable[..., Result]) -> None:
    server.answer("GET", "/v1/reports", {"items": [row(1)], "next_cursor": None})
    done = loopwright("reports", "list", "-p", "shop", "--state", "ready", "--state", "held", "--waiting", "-q", "yen")
    assert done.exit_code == 0
    query = server.asked[0][2]
    assert query["project"] == ["shop"]
    assert query["state"] == ["ready", "held"]
    assert query["waits_for_me"] == ["true"]
    assert query["q"] == ["yen"]
    assert "your review" in done.stdout
    assert "shop, pay" in done.stdout


def test_hostile_titles_cannot_act_on_the_terminal(server: Server, loopwright: Callable[..., Result]) -> None:
    title = "\x1b]0;owned\x07\x1b[31mred [bold]markup[/bold] \u202eright to left"
    server.answer("GET", "/v1/reports", {"items": [row(1, title=title)], "next_cursor": None})
    done = loopwright("reports", "list")
    assert done.exit_code == 0
    assert "\x1b" not in done.stdout
    assert "\x07" not in done.stdout
    assert "\u202e" not in done.stdout
    assert "[bold]markup[/bold]" in done.stdout


def test_the_operators_token_comes_from_the_data_folder_unless_one_is_given(
    server: Server, loopwright: Callable[..., Result], tmp_path: Path
) -> None:
    server.answer("GET", "/v1/changes", {"items": [], "next_cursor": None})
    secrets = tmp_path / "data" / "secrets"
    secrets.mkdir(parents=True)
    (secrets / "operator_token").write_text("from-the-folder\n")
    loopwright("changes", "list")
    loopwright("changes", "list", LOOPWRIGHT_TOKEN="given")
    assert [asked[4] for asked in server.asked] == ["Bearer from-the-folder", "Bearer given"]


@pytest.mark.parametrize(("status", "code"), [(400, 1), (401, 4), (403, 4), (404, 3), (409, 4), (422, 2), (429, 4), (500, 1), (503, 5)])
def test_every_refusal_has_its_exit_code(server: Server, loopwright: Callable[..., Result], status: int, code: int) -> None:
    problem = {"title": "No", "detail": "Not like this.", "errors": [{"pointer": "/limit", "detail": "is too large"}]}
    server.answer("GET", "/v1/reports/r1", problem, status)
    done = loopwright("reports", "show", "r1")
    assert done.exit_code == code
    assert "Not like this." in done.stderr
    assert "/limit: is too large" in done.stderr
    assert done.stdout == ""


def test_a_server_that_does_not_answer_is_exit_code_5_with_the_next_step(loopwright: Callable[..., Result]) -> None:
    done = loopwright("reports", "list", LOOPWRIGHT_URL="http://127.0.0.1:9")
    assert done.exit_code == 5
    assert "loopwright up" in done.stderr


def test_an_answer_that_is_no_problem_document_is_told_all_the_same(server: Server, loopwright: Callable[..., Result]) -> None:
    server.answer("GET", "/v1/reports/r1", "<html>bad gateway</html>", 502)
    done = loopwright("reports", "show", "r1")
    assert done.exit_code == 1
    assert "bad gateway" in done.stderr


def test_a_wrong_call_is_exit_code_2(loopwright: Callable[..., Result]) -> None:
    assert loopwright("reports", "list", "--limit", "0").exit_code == 2
    assert loopwright("changes", "decline", "c1").exit_code == 2
    assert loopwright("signals", "send").exit_code == 2
    assert loopwright("signals", "send", "--title", "a", "--file", "b").exit_code == 2


def test_a_merge_is_of_the_head_that_is_shown(server: Server, loopwright: Callable[..., Result]) -> None:
    server.answer("GET", "/v1/changes/c1", {"pull_request": {"head_commit": HEAD}})
    server.answer("POST", "/v1/changes/c1/actions/merge", {}, 202)
    done = loopwright("changes", "merge", "c1", "--name", "Robin", "--email", "robin@shop.example")
    assert done.exit_code == 0
    assert server.asked[-1][3] == {"expected_head": HEAD, "name": "Robin", "email": "robin@shop.example"}


def test_a_change_without_a_pull_request_cannot_be_merged(server: Server, loopwright: Callable[..., Result]) -> None:
    server.answer("GET", "/v1/changes/c1", {"pull_request": None})
    done = loopwright("changes", "merge", "c1")
    assert done.exit_code == 4
    assert "no pull request yet" in done.stderr
    assert [asked[0] for asked in server.asked] == ["GET"]


def test_a_decline_says_why(server: Server, loopwright: Callable[..., Result]) -> None:
    server.answer("POST", "/v1/changes/c1/actions/decline", {}, 202)
    assert loopwright("changes", "decline", "c1", "-m", "wrong place").exit_code == 0
    assert server.asked[-1][3] == {"comment": "wrong place"}


def test_a_diff_is_printed_as_it_is(server: Server, loopwright: Callable[..., Result]) -> None:
    diff = "diff --git a/x b/x\n-[old]\n+[new]\n"
    server.answer("GET", "/v1/changes/c1/diff", diff)
    assert loopwright("changes", "diff", "c1").stdout == diff


def test_sending_signals_says_which_were_rejected_and_ends_with_1(
    server: Server, loopwright: Callable[..., Result], tmp_path: Path
) -> None:
    file = tmp_path / "signals.json"
    file.write_text(json.dumps([{"title": "one"}, {"title": ""}]))
    results = [
        {"index": 0, "outcome": "accepted", "id": "1", "errors": []},
        {"index": 1, "outcome": "rejected", "id": None, "errors": [{"pointer": "/title", "detail": "is empty"}]},
    ]
    server.answer("POST", "/v1/signals", {"accepted": 1, "duplicates": 0, "rejected": 1, "results": results}, 207)
    done = loopwright("signals", "send", "-f", str(file), LOOPWRIGHT_KEY="k")
    assert done.exit_code == 1
    assert "1 accepted, 0 known already, 1 rejected" in done.stdout
    assert "1/title: is empty" in done.stdout
    assert server.asked[0][4] == "Bearer k"
    assert server.asked[0][3] == [{"title": "one"}, {"title": ""}]


def test_a_file_that_cannot_be_read_is_a_wrong_call(loopwright: Callable[..., Result], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("{")
    assert loopwright("signals", "send", "-f", str(broken)).exit_code == 2
    assert loopwright("signals", "send", "-f", str(tmp_path / "none")).exit_code == 2
    assert loopwright("apply", "-f", str(broken)).exit_code == 2
    assert loopwright("apply", "-f", str(tmp_path / "none")).exit_code == 2
    broken.write_text("title: no name")
    done = loopwright("apply", "-f", str(broken))
    assert done.exit_code == 2
    assert "it needs a name" in done.stderr


def test_apply_takes_repository_paths_relative_to_the_file(server: Server, loopwright: Callable[..., Result], tmp_path: Path) -> None:
    server.answer("PUT", "/v1/projects/shop", {"outcome": "created", "project": {"revision": 1}})
    file = tmp_path / "deep" / "project.yaml"
    file.parent.mkdir()
    sources = ("../code", "ssh://forge/x", "git@forge:x")
    declared = {"name": "shop", "repositories": [{"name": f"r{number}", "source": source} for number, source in enumerate(sources)]}
    file.write_text(json.dumps(declared))
    done = loopwright("apply", "-f", str(file), "--dry-run")
    assert done.exit_code == 0
    assert "created (dry run), revision 1" in done.stdout
    _, _, query, body, _ = server.asked[0]
    assert query == {"dry_run": ["true"]}
    assert [repository["source"] for repository in body["repositories"]] == [str(tmp_path / "code"), "ssh://forge/x", "git@forge:x"]


def test_a_key_is_told_once_and_alone_on_its_line(server: Server, loopwright: Callable[..., Result]) -> None:
    key = {"id": "k1", "scopes": ["sentry:write"], "secret": "s3cret", "dsn": "http://s3cret@127.0.0.1:8401/1"}
    server.answer("POST", "/v1/projects/shop/keys", key, 201)
    done = loopwright("keys", "create", "shop", "--scope", "sentry:write", "--service", "shop")
    assert done.stdout.splitlines()[-1] == "http://s3cret@127.0.0.1:8401/1"
    assert server.asked[0][3] == {"scopes": ["sentry:write"], "service": "shop", "label": ""}


def test_a_report_without_a_verdict_is_not_found(server: Server, loopwright: Callable[..., Result]) -> None:
    server.answer("GET", "/v1/verdicts", {"items": [], "next_cursor": None})
    assert loopwright("verdicts", "show", "r1").exit_code == 3
    assert loopwright("verdicts", "show").exit_code == 0


def test_a_verdict_is_told_with_its_interval(server: Server, loopwright: Callable[..., Result]) -> None:
    side = {"events": 40, "exposure": 800.0, "rate": 0.05, "rate_low": 0.036, "rate_high": 0.067}
    measurement = {
        "verdict": "not_held",
        "reason": "The rate did not fall.",
        "before": side,
        "after": None,
        "ratio": 0.98,
        "ratio_low": 0.7,
        "ratio_high": None,
    }
    server.answer("GET", "/v1/verdicts", {"items": [{"report_title": "Checkout", "measurement": measurement}], "next_cursor": None})
    said = loopwright("verdicts", "show").stdout
    assert "not held: The rate did not fall." in said
    assert "before: 40 of 800 5.00% (3.60% to 6.70%)" in said
    assert "0.980, interval 0.700 to ∞" in said


def test_help_names_the_exit_codes(loopwright: Callable[..., Result]) -> None:
    said = " ".join(loopwright("--help").stdout.split())
    assert "3 not found" in said
    assert "5 the server does not answer" in said


def test_doctor_names_what_is_missing_and_the_remedy(
    loopwright: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no git here
    done = loopwright("doctor", "-o", "json")
    found = {item["name"]: item for item in json.loads(done.stdout)}
    assert found["git"] == {"name": "git", "state": "missing", "detail": "not found", "remedy": "apt-get install git"}
    assert found["nats-server"]["state"] == "ok"
    assert done.exit_code == 1
