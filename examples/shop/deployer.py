"""The shop's CD system: runs the shop from a commit of its repository, and tells Loopwright what went live.

    python examples/shop/deployer.py --repository http://127.0.0.1:8406/git/shop.git --folder /tmp/shop

Reads commands from standard input, one a line: ``deploy <commit>``, ``follow`` (deploy main whenever it moves), ``quit``. Prints an event
as a JSON line for each thing done. Secrets come from the environment: SHOP_REPOSITORY_TOKEN, SHOP_DEPLOY_KEY, SHOP_SENTRY_DSN.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import queue
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

FOLLOW_SECONDS = 0.5
START_SECONDS_MAX = 20.0


class Deployer:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None
        self.deployed = ""

    def git(self, *arguments: str, folder: Path | None = None) -> str:
        environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, "GIT_TERMINAL_PROMPT": "0"}
        token = os.environ.get("SHOP_REPOSITORY_TOKEN")
        if token:
            # Through the environment: arguments can be read by every process of the machine.
            basic = base64.b64encode(f"deployer:{token}".encode()).decode()
            environment |= {
                "GIT_CONFIG_COUNT": "1",
                "GIT_CONFIG_KEY_0": "http.extraHeader",
                "GIT_CONFIG_VALUE_0": f"Authorization: Basic {basic}",
            }
        command = ["git", *(["-C", str(folder)] if folder else []), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60).stdout.strip()

    def main_commit(self) -> str:
        return self.git("ls-remote", self.options.repository, "refs/heads/main").partition("\t")[0]

    def deploy(self, commit: str) -> None:
        folder = self.options.folder / commit[:12]
        if not folder.exists():
            fresh = folder.with_suffix(".new")
            shutil.rmtree(fresh, ignore_errors=True)
            self.git("clone", "--quiet", "--no-checkout", self.options.repository, str(fresh))
            self.git("checkout", "--quiet", "--detach", commit, folder=fresh)
            fresh.rename(folder)
        environment = {key: value for key, value in os.environ.items() if key not in ("SHOP_REPOSITORY_TOKEN", "SHOP_DEPLOY_KEY")}
        environment |= {"SHOP_RELEASE": commit, "SHOP_ENVIRONMENT": "production", "SHOP_FLUSH_SECONDS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        new = subprocess.Popen(
            [sys.executable, "-m", "shop", "--host", self.options.host, "--port", str(self.options.port)],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
        )
        try:
            self.wait_until_up(new)
        except RuntimeError:
            new.kill()
            new.wait()
            raise
        # The old release answers until the new one does: a deploy is no outage, and must not look like one.
        self.stop()
        self.process = new
        self.deployed = commit
        answer = self.tell(commit)
        print(json.dumps({"deployed": commit, "at": datetime.now(UTC).isoformat(), "deploy": answer}), flush=True)

    def wait_until_up(self, shop: subprocess.Popen[bytes]) -> None:
        """Waits for the line that the shop prints when it listens; its address may be answered by the old release."""
        assert shop.stdout is not None
        readable, _, _ = select.select([shop.stdout], [], [], START_SECONDS_MAX)
        if not readable:
            raise RuntimeError(f"the shop was not ready within {START_SECONDS_MAX:g} s")
        if not shop.stdout.readline().startswith(b"ready"):
            raise RuntimeError("the shop ended while it started; is its port taken?")

    def tell(self, commit: str) -> str:
        """Tells ingest, trying for a minute: a deploy nobody hears of is measured by nobody."""
        body = {
            "service": "shop",
            "release": commit,
            "commit": commit,
            "environment": "production",
            "deployed_at": datetime.now(UTC).isoformat(),
        }
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ.get('SHOP_DEPLOY_KEY', '')}"}
        request = urllib.request.Request(f"{self.options.ingest}/v1/deploys", json.dumps(body).encode(), headers, method="POST")
        for _ in range(60):
            try:
                with urllib.request.urlopen(request, timeout=10) as answer:
                    return str(json.load(answer)["id"])
            except OSError as error:
                print(f"the deploy was not taken yet: {error}", file=sys.stderr)
                time.sleep(1)
        raise RuntimeError("ingest did not take the deploy within a minute")

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--repository", required=True)
    options.add_argument("--folder", type=Path, required=True)
    options.add_argument("--host", default="127.0.0.1")
    options.add_argument("--port", type=int, default=8480)
    options.add_argument("--ingest", default="http://127.0.0.1:8401")
    given = options.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the shop is stopped too
    given.folder.mkdir(parents=True, exist_ok=True)
    deployer = Deployer(given)
    commands: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            commands.put(line.strip())
        commands.put("quit")

    threading.Thread(target=read, daemon=True).start()
    following = False
    try:
        while True:
            try:
                word, _, rest = commands.get(timeout=FOLLOW_SECONDS).partition(" ")
            except queue.Empty:
                word, rest = "", ""
            if word == "quit":
                return
            if word == "deploy":
                deployer.deploy(rest)
            elif word == "follow":
                following = True
            if following:
                try:
                    newest = deployer.main_commit()
                except (subprocess.SubprocessError, OSError) as error:
                    print(f"the repository does not answer: {error}", file=sys.stderr)
                    continue
                if newest and newest != deployer.deployed:
                    deployer.deploy(newest)
    finally:
        deployer.stop()


if __name__ == "__main__":
    main()
