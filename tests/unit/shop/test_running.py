"""The sample as it runs: its web service, an unmodified sentry-sdk in it, its customers, its deploys."""

from __future__ import annotations

import base64
import gzip
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

Shop = tuple[Path, list[dict[str, Any]]]
SECONDS_MAX = 20.0


class Collector(ThreadingHTTPServer):
    """Stands where ingest stands: keeps what was posted to it. ``refusals`` answers come first."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.posts: list[tuple[str, dict[str, str], bytes]] = []
        self.refusals = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def envelope_items(self) -> list[tuple[dict[str, Any], Any]]:
        """(item header, payload) of every envelope so far."""
        found = []
        for path, headers, body in list(self.posts):
            if not path.endswith("/envelope/"):
                continue
            plain = gzip.decompress(body) if headers.get("Content-Encoding") == "gzip" else _brotli(body)
            lines = plain.split(b"\n")
            for header, payload in zip(lines[1::2], lines[2::2], strict=False):
                if header:
                    found.append((json.loads(header), json.loads(payload)))
        return found


def _brotli(body: bytes) -> bytes:
    import brotli

    return bytes(brotli.decompress(body))


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, Collector)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if server.refusals:
            server.refusals -= 1
            self._answer(503, {})
            return
        server.posts.append((self.path, dict(self.headers), body))
        self._answer(200, {"id": "0"})

    def _answer(self, status: int, body: Any) -> None:
        payload = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    yield server
    server.shutdown()
    server.server_close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(url: str, method: str = "GET", customer: str = "") -> tuple[int, str]:
    request = urllib.request.Request(url, method=method, headers={"X-Customer": customer} if customer else {})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def until(look: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + SECONDS_MAX
    while time.monotonic() < deadline:
        try:
            if found := look():
                return found
        except OSError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"{what} did not happen within {SECONDS_MAX:g} s")


@contextmanager
def running(folder: Path, **settings: str) -> Iterator[str]:
    """The shop as a process; its address."""
    port = free_port()
    environment = os.environ | settings | {"PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen([sys.executable, "-m", "shop", "--port", str(port)], cwd=folder, env=environment)
    try:
        url = f"http://127.0.0.1:{port}"
        until(lambda: ask(f"{url}/health")[0] == 200, "the shop's start")
        yield url
    finally:
        process.terminate()
        process.wait(10)


def test_a_share_of_orders_fails_under_the_regression_and_the_health_check_says_so(shop: Shop, git: Callable[..., str]) -> None:
    folder, commits = shop
    with running(folder) as url:
        assert ask(f"{url}/checkout?items=mug:1&currency=EUR", "POST")[0] == 201
        assert ask(f"{url}/checkout?items=mug:1&currency=JPY", "POST")[0] == 500
        assert ask(f"{url}/health")[0] == 200
        status, said = ask(f"{url}/health/checkout")
        assert status == 500
        assert "ZeroDivisionError" in said
    healthy = next(str(commit["commit"]) for commit in commits if commit["first_release"])
    git(folder, "checkout", "--quiet", "--detach", healthy)
    with running(folder) as url:
        assert ask(f"{url}/checkout?items=mug:1&currency=JPY", "POST")[0] == 201
        assert ask(f"{url}/health/checkout")[0] == 200


def test_an_unmodified_sentry_sdk_sends_the_exception_the_request_the_person_and_the_sessions(shop: Shop, collector: Collector) -> None:
    folder, commits = shop
    release = str(commits[-1]["commit"])
    dsn = f"http://0123456789abcdef@127.0.0.1:{collector.server_port}/1"
    with running(folder, SHOP_SENTRY_DSN=dsn, SHOP_RELEASE=release, SHOP_FLUSH_SECONDS="0.3") as url:
        for customer in ("ann", "bo", "cy"):
            ask(f"{url}/checkout?items=mug:1&currency=EUR", "POST", customer)
        ask(f"{url}/checkout?items=mug:1&currency=JPY", "POST", "ann")

        def event() -> Any:
            return next((payload for header, payload in collector.envelope_items() if header["type"] == "event"), None)

        found = until(event, "the event")
        assert found["release"] == release
        assert found["user"]["id"] == "ann"
        assert found["request"]["method"] == "POST"
        assert found["request"]["query_string"] == "items=mug:1&currency=JPY"
        raised = found["exception"]["values"][-1]
        assert raised["type"] == "ZeroDivisionError"
        assert raised["stacktrace"]["frames"][-1]["function"] == "round_cash"
        assert raised["stacktrace"]["frames"][-1]["in_app"] is True

        def sessions() -> Any:
            counted = {"exited": 0, "crashed": 0, "errored": 0}
            for header, payload in collector.envelope_items():
                if header["type"] == "sessions":
                    assert payload["attrs"]["release"] == release
                    for aggregate in payload["aggregates"]:
                        for key in counted:
                            counted[key] += aggregate.get(key, 0)
            return counted if sum(counted.values()) >= 5 else None  # with the fixture's /health

        counted = until(sessions, "the sessions")
        assert counted["exited"] >= 4
        assert counted["crashed"] + counted["errored"] == 1


def test_a_shop_without_a_dsn_sends_nothing(shop: Shop, collector: Collector) -> None:
    with running(shop[0]) as url:
        ask(f"{url}/checkout?items=mug:1&currency=JPY", "POST")
    assert collector.posts == []


def test_traffic_is_bounded_and_the_same_for_the_same_seed(shop: Shop, sample: Path) -> None:
    answers = []
    with running(shop[0]) as url:
        for seed in ("3", "3", "4"):
            command = [sys.executable, str(sample / "traffic.py"), "--url", url, "--seconds", "1", "--per-second", "80", "--seed", seed]
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
            answers.append(json.loads(done.stdout))
    assert [answer["requests"] for answer in answers] == [80, 80, 80]
    assert answers[0]["answers"] == answers[1]["answers"]
    assert answers[0]["answers"] != answers[2]["answers"]
    assert answers[0]["answers"]["500"] > 0
    assert answers[0]["answers"]["500"] < answers[0]["answers"]["201"]


def test_the_deployer_runs_a_commit_tells_of_it_follows_main_and_takes_the_shop_with_it(
    shop: Shop, sample: Path, collector: Collector, tmp_path: Path, git: Callable[..., str]
) -> None:
    folder, commits = shop
    healthy, port = next(str(commit["commit"]) for commit in commits if commit["first_release"]), free_port()
    collector.refusals = 1  # the first telling is not taken: it is told again
    command = [sys.executable, str(sample / "deployer.py"), "--repository", str(folder), "--folder", str(tmp_path / "deployed")]
    command += ["--port", str(port), "--ingest", collector.url]
    environment = os.environ | {"SHOP_DEPLOY_KEY": "a-key", "SHOP_REPOSITORY_TOKEN": "a-token"}
    deployer = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert deployer.stdin is not None
    assert deployer.stdout is not None
    try:
        deployer.stdin.write(f"deploy {healthy}\n")
        deployer.stdin.flush()
        assert json.loads(deployer.stdout.readline())["deployed"] == healthy
        statuses: list[Any] = []
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.004):
                try:
                    statuses.append(ask(f"http://127.0.0.1:{port}/health")[0])
                except OSError as error:
                    statuses.append(type(error).__name__)

        watching = threading.Thread(target=watch)
        watching.start()
        deployer.stdin.write("follow\n")
        deployer.stdin.flush()
        main = str(commits[-1]["commit"])
        assert json.loads(deployer.stdout.readline())["deployed"] == main
        over.set()
        watching.join()
        # One connection may be lost with the old listener; a watcher that asks three times sees no outage.
        assert len([status for status in statuses if status != 200]) <= 1, statuses
        assert len(statuses) > 3
        told = [json.loads(body) for path, _, body in collector.posts if path == "/v1/deploys"]
        assert [deploy["commit"] for deploy in told] == [healthy, main]
        assert told[0]["service"] == "shop"
        assert all(headers["Authorization"] == "Bearer a-key" for _, headers, _ in collector.posts)
        assert ask(f"http://127.0.0.1:{port}/checkout?items=mug:1&currency=JPY", "POST")[0] == 500
    finally:
        deployer.terminate()
        deployer.wait(15)
    with pytest.raises(OSError, match="refused"):
        ask(f"http://127.0.0.1:{port}/health")


def test_the_shop_never_sees_the_deployers_secrets(shop: Shop, sample: Path, collector: Collector, tmp_path: Path) -> None:
    folder, commits = shop
    port = free_port()
    command = [sys.executable, str(sample / "deployer.py"), "--repository", str(folder), "--folder", str(tmp_path / "deployed")]
    command += ["--port", str(port), "--ingest", collector.url]
    environment = os.environ | {"SHOP_DEPLOY_KEY": "deploy-secret", "SHOP_REPOSITORY_TOKEN": "repository-secret"}
    deployer = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert deployer.stdin is not None
    assert deployer.stdout is not None
    try:
        deployer.stdin.write(f"deploy {commits[-1]['commit']}\n")
        deployer.stdin.flush()
        assert json.loads(deployer.stdout.readline())
        children = Path(f"/proc/{deployer.pid}/task/{deployer.pid}/children")
        if not children.exists():
            pytest.skip("this kernel does not list a process's children")
        pids = children.read_text().split()
        assert pids
        for pid in pids:
            seen = Path(f"/proc/{pid}/environ").read_bytes()
            assert b"SHOP_RELEASE=" in seen
            assert b"deploy-secret" not in seen
            assert b"repository-secret" not in seen
            assert base64.b64encode(b"deployer:repository-secret") not in seen
    finally:
        deployer.terminate()
        deployer.wait(15)
