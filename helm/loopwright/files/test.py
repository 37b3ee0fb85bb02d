"""What `helm test` runs: every service is ready; and a signal that is sent to the edge becomes a report in the inbox.

Settings: LOOPWRIGHT_TEST_SERVICES (name=url, one a line), _PROJECT (empty: no signal), _TOKEN_FILE, _SECONDS. Exits 1 with what was wrong.
"""

import json
import os
import sys
import time
import urllib.error
import urllib.request
import uuid

SERVICES = dict(line.split("=", 1) for line in os.environ["LOOPWRIGHT_TEST_SERVICES"].split())
PROJECT = os.environ.get("LOOPWRIGHT_TEST_PROJECT", "")
SECONDS = float(os.environ.get("LOOPWRIGHT_TEST_SECONDS", "120"))


def ask(method, url, token="", body=None):
    """Return the status and the body of an answer."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    request = urllib.request.Request(url, data=data, method=method, headers=headers)  # noqa: S310  the chart names each address
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def expect(status, method, url, token="", body=None):
    """Return the answer's JSON. Exits when it has another status."""
    found, content = ask(method, url, token, body)
    if found != status:
        sys.exit(f"{method} {url}: {found} instead of {status}: {content[:500].decode(errors='replace')}")
    return json.loads(content) if content else None


def wait_ready(deadline):
    for name, url in SERVICES.items():
        while True:
            try:
                status, content = ask("GET", url)
            except OSError as error:
                status, content = 0, str(error).encode()
            if status == 200:
                print(f"{name} is ready", flush=True)
                break
            if time.monotonic() > deadline:
                sys.exit(f"{name} is not ready: {url}: {status} {content[:500].decode(errors='replace')}")
            time.sleep(1)


def send_a_signal(deadline):
    gateway, ingest = (SERVICES[name].rsplit("/", 1)[0] for name in ("gateway", "ingest"))
    with open(os.environ["LOOPWRIGHT_TEST_TOKEN_FILE"]) as file:
        token = file.read().strip()
    if ask("GET", f"{gateway}/v1/projects/{PROJECT}", token)[0] == 404:
        # Reports of this project are only written down: no change is ever made for it.
        expect(200, "PUT", f"{gateway}/v1/projects/{PROJECT}", token, {"name": PROJECT, "policy": {"mode": "report_only"}})
    key = expect(201, "POST", f"{gateway}/v1/projects/{PROJECT}/keys", token, {"scopes": ["signals:write"], "label": "helm test"})
    try:
        mark = uuid.uuid4().hex
        signal = {"kind": "custom", "title": f"helm test {mark}", "body": "Sent by helm test.", "fingerprint": [mark]}
        while True:
            # The key is known to the edge a moment after it was made.
            status, content = ask("POST", f"{ingest}/v1/signals", key["secret"], signal)
            if status == 202:
                break
            if time.monotonic() > deadline or status not in (401, 403, 503):
                sys.exit(f"ingest does not take the signal: {status} {content[:500].decode(errors='replace')}")
            time.sleep(0.5)
        print("ingest took the signal", flush=True)
        while True:
            page = expect(200, "GET", f"{gateway}/v1/reports?project={PROJECT}&q={mark}", token)
            found = [report for report in page["items"] if mark in report["title"]]
            if found:
                break
            if time.monotonic() > deadline:
                sys.exit(f"the signal was taken, and after {SECONDS:.0f} s there is no report of it")
            time.sleep(0.5)
        print(f"the signal is in report {found[0]['id']}", flush=True)
        url = f"{gateway}/v1/reports/{found[0]['id']}/actions/dismiss"
        expect(200, "POST", url, token, {"reason": "expected", "comment": "helm test"})
    finally:
        ask("DELETE", f"{gateway}/v1/projects/{PROJECT}/keys/{key['id']}", token)


wait_ready(time.monotonic() + SECONDS)
if PROJECT:
    send_a_signal(time.monotonic() + SECONDS)
print("all is well")
