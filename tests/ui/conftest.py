"""The real gateway with a shop's reports in it, and a browser: what the inbox is judged by."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from loopwright_common.bus import Outgoing
from loopwright_common.contracts import subjects as s
from loopwright_common.contracts.base import Contract
from loopwright_common.contracts.changes import Change, ChangeMerged
from loopwright_common.contracts.investigations import Investigation, InvestigationStarted
from loopwright_common.contracts.measurements import Measurement, MeasurementStarted
from loopwright_common.contracts.reports import GroupUpdated
from loopwright_common.contracts.signals import Deploy, Exposure
from loopwright_common.testing.memory_bus import MemoryBus
from loopwright_gateway.app import create_app
from loopwright_gateway.settings import GatewaySettings
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

OPERATOR = "operator-token-of-this-test"
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


class Gateway:
    """The gateway served by uvicorn on a free port, in a thread with a loop of its own."""

    token = OPERATOR

    def __init__(self, folder: Path) -> None:
        self.bus = MemoryBus("gateway")
        settings = {"database_url": f"sqlite+aiosqlite:///{folder}/gateway.db", "operator_token": OPERATOR, "drain_seconds": 2}
        self.app = create_app(GatewaySettings.model_validate(settings), bus=self.bus)
        self.server = uvicorn.Server(uvicorn.Config(self.app, port=0, log_config=None, ws="none", timeout_graceful_shutdown=1))
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        with asyncio.Runner() as runner:
            self.loop = runner.get_loop()
            runner.run(self.server.serve())

    def __enter__(self) -> Gateway:
        self.thread.start()
        deadline = time.monotonic() + 30
        while not self.server.started:
            assert self.thread.is_alive(), "the gateway did not start"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}"
        self.api = httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {OPERATOR}"}, timeout=20)
        return self

    def __exit__(self, *_: object) -> None:
        self.api.close()
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive(), "the gateway did not stop"

    def do(self, work: Any) -> Any:
        """Runs a coroutine where the gateway runs."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def publish(self, subject: s.Subject, payload: Contract, message_id: str, **tokens: str) -> None:
        self.do(self.bus.publish(Outgoing(subject, payload, message_id, {"project": "shop", **tokens})))

    def settled(self) -> None:
        """Returns when every fact published so far has been handled."""
        self.do(self.bus.idle(20))

    def now(self) -> datetime:
        return datetime.now(UTC)

    def report(self, report_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.api.get(f"/v1/reports/{report_id}").raise_for_status().json()
        return found

    # Facts, as the other services say them.

    def signal(self, report: str, number: int | str, at: datetime, **more: Any) -> None:
        rule = more.pop("rule", "fingerprint")
        reason = more.pop("reason", "the same exception at the same in-app frames as the first")
        neighbours = more.pop("neighbours", ())
        fingerprint = more.pop("fingerprint", f"fp-{report}")
        similar = more.pop("similar", ())
        values = {"source": "sentry", "kind": "exception", "title": report, "release": RELEASE, "environment": "production", **more}
        decision = {
            "outcome": "joined", "rule": rule, "reason": reason, "fingerprint": fingerprint, "neighbours": neighbours,
            "grouping_version": "v1", "similar": similar,
        }  # fmt: skip
        signal = {"id": f"{report}-{number}", "project": "shop", "occurred_at": at, "received_at": at, **values}
        fact = {"project": "shop", "report_id": report, "signal": signal, "decision": decision, "decided_at": at}
        self.publish(s.GROUPS_UPDATED, GroupUpdated.model_validate(fact), f"group:{report}-{number}")

    def deploy(self, service: str, commit: str, at: datetime) -> None:
        values = {"id": f"d-{service}-{commit[:8]}", "project": "shop", "service": service, "release": commit, "commit": commit}
        fact = Deploy.model_validate({**values, "deployed_at": at})
        self.publish(s.DEPLOYS, fact, fact.id, service=service)

    def exposure(self, service: str, release: str, at: datetime, count: int) -> None:
        minute = at.replace(second=0, microsecond=0)
        values = {"id": f"x-{service}-{minute.timestamp():.0f}", "project": "shop", "service": service, "release": release}
        fact = Exposure.model_validate({**values, "minute": minute, "count": count})
        self.publish(s.EXPOSURES, fact, fact.id, service=service)


def sha(seed: int) -> str:
    return hashlib.sha1(f"commit {seed}".encode()).hexdigest()


RELEASE = "7f4a7c15" + sha(7)[8:]
NOW = datetime.now(UTC)


def ago(**span: float) -> datetime:
    return NOW - timedelta(**span)


DIFF = '''diff --git a/checkout/totals.py b/checkout/totals.py
index 8d1c0aa..41f7e02 100644
--- a/checkout/totals.py
+++ b/checkout/totals.py
@@ -38,14 +38,11 @@ def total(cart: Cart, currency: Currency) -> Money:
     subtotal = sum((line.price * line.quantity for line in cart.lines), Money.zero(currency))
     discount = best_discount(cart, subtotal)
     taxed = subtotal - discount + tax(subtotal - discount, cart.address)
-    # One path for all currencies: amounts are rounded to the minor unit.
-    minor = MINOR_UNITS[currency.code]
-    return taxed.quantize(10**-minor)
+    if currency.exponent == 0:
+        return taxed.to_integral()
+    return taxed.quantize(currency.exponent)


 def tax(amount: Money, address: Address) -> Money:
     """The tax of an amount at an address, by the rate table of the day."""
-    rate = RATES[address.country]
-    return amount * rate
+    return amount * RATES.get(address.country, ZERO)
diff --git a/tests/test_totals.py b/tests/test_totals.py
index 10c0f4e..92aa7d1 100644
--- a/tests/test_totals.py
+++ b/tests/test_totals.py
@@ -12,3 +12,7 @@ def test_the_total_of_an_empty_cart_is_zero():
 def test_a_discount_is_taken_before_tax():
     cart = Cart.of(("mug", 2, eur(9)))
     assert total(cart, EUR) == eur("19.26")
+
+
+def test_a_currency_without_minor_units_keeps_whole_amounts():
+    assert total(Cart.of(("mug", 1, jpy(900))), JPY) == jpy(990)
'''.replace("\n\n", "\n \n")  # git's mark of an unchanged empty line, which no editor keeps

EVIDENCE = [
    ("signals", "Which signals are on this report, of which kinds and releases?", "last 24 h", "148 exceptions, 2 tickets, 1 failing "
     "health check. 148 of 148 exceptions name release 7f4a7c15."),
    ("rates", "How many requests to checkout failed per minute, before and after the deploy?", "6 h around the onset",
     "before: 0 of 21,604 requests (0.00%)\nafter: 148 of 3,912 requests (3.78%)"),
    ("deploys", "Which deploys of checkout came before the onset?", "24 h before the onset",
     "7f4a7c15 to production, 4 minutes before the first signal\n2b1e90d4 to production, 22 hours before"),
    ("git.blame", "Who last changed checkout/totals.py:44, where it is raised?", "",
     "44 | 7f4a7c15 | M. Okafor | minor = MINOR_UNITS[currency.code]"),
    ("git.log", "What is in the release, and was not in the one before?", "2b1e90d4..7f4a7c15",
     "7f4a7c15 Round totals in one place\n9c3de011 Show delivery dates on the receipt\n51aa20f7 Bump the payment client to 4.2"),
    ("git.log", "Was it already fixed on main?", "7f4a7c15..main", "no commit touches checkout/totals.py"),
]  # fmt: skip


@dataclass
class Case:
    """One report of the shop, and how far it goes."""

    id: str
    title: str
    service: str = "checkout"
    priority: str = "P2"
    signals: int = 12
    people: int = 5
    hours: float = 8.0
    until: str = "held"
    verdict: str = "actionable"
    reason: str = "one suspect commit explains the onset, the frames and the release, and its revert passes"
    question: str = ""
    summary: str = ""
    suspect: tuple[str, str] = ("Round totals in one place", "Mara Okafor")
    kinds: tuple[str, ...] = ()
    more: dict[str, Any] = field(default_factory=dict)


HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script> \u202egnp.exe \u2066" + "Unbreakable" * 24

CASES = [
    Case("yen", "Checkout fails for carts in yen: KeyError 'JPY' in total()", priority="P0", signals=148, people=97, hours=5.2,
         until="in_review", kinds=("ticket", "ticket", "health_check"),
         summary="Since release 7f4a7c15 every checkout in a currency without minor units fails. "
         "3.8% of all checkouts are hit, 97 people so far."),
    Case("receipts", "Receipts are sent twice when the mail queue is slow", "mail", "P1", 41, 33, 20.0, "held"),
    Case("search", "Search returns nothing for queries with an apostrophe", "search", "P2", 26, 21, 16.0, "not_held"),
    Case("login", "Login takes longer than 8 seconds behind the new session store", "accounts", "P1", 35, 30, 12.0, "worse"),
    Case("images", "Product images missing on the first page load", "catalogue", "P3", 9, 6, 22.0, "inconclusive"),
    Case("vat", "Prices without tax are shown to visitors from Norway", "catalogue", "P1", 22, 18, 3.0, "needs_input", "needs_input",
         "two commits fit the onset equally well, and the tax table has no owner",
         "Which rate is right for Norway since 1 November: 25% or 15%?"),
    Case("cookie", "Consent banner comes back on every page in Safari", "web", "P4", 14, 14, 9.0, "actionable"),
    Case("webhook", "Payment webhooks answered with 500 for refunds", "payments", "P1", 31, 0, 2.0, "changing"),
    Case("stock", "Stock goes below zero when two carts pay at once", "stock", "P2", 18, 12, 14.0, "measuring"),
    Case("coupon", "Coupon SPRING cannot be combined with free delivery", "checkout", "P3", 7, 7, 18.0, "merged"),
    Case("crawl", "Timeouts from one crawler's addresses", "web", "P4", 64, 1, 23.0, "not_actionable", "not_actionable",
         "one client causes all of it, and it is over its rate limit"),
    Case("fresh", "Export of invoices stops at page 40", "accounts", "P3", 3, 2, 0.4, "investigating"),
    Case("ready", "Delivery slots overlap on the day clocks change", "delivery", "P3", 2, 2, 0.2, "ready"),
    Case("old", "Notices imported from the previous tracker", "web", "P4", 5, 0, 6.0, "gathering", more={"backfill": True}),
    Case("hostile", HOSTILE, "web", "P4", 4, 2, 23.0, "in_review", summary=HOSTILE, suspect=(HOSTILE[:200], "<b>Mallory</b>"),
         more={"body": HOSTILE}),
    Case("dull", "Deprecation warning from the date library", "web", "P4", 8, 0, 11.0, "dismissed"),
    Case("quiet", "Slow query in the nightly stock count", "stock", "P4", 6, 0, 7.0, "snoozed"),
]  # fmt: skip
AFTER_CHANGE = ("in_review", "merged", "measuring", "held", "not_held", "worse", "inconclusive")
VERDICTS = ("held", "not_held", "worse", "inconclusive")


def investigation(case: Case, index: int) -> Investigation:
    commit = RELEASE if case.id == "yen" else sha(100 + index)
    evidence = [
        {"id": f"e{number}", "kind": kind, "question": question, "window": window, "answer": answer}
        for number, (kind, question, window, answer) in enumerate(EVIDENCE, 1)
    ]
    if case.id == "hostile":
        evidence[0] |= {"answer": HOSTILE, "question": HOSTILE[:400]}
    others = [("Show delivery dates on the receipt", "Jonas Weber", 0.21), ("Bump the payment client to 4.2", "Ines Duarte", 0.12)]
    suspects = [
        {"commit": commit, "title": case.suspect[0], "author": case.suspect[1], "committed_at": ago(hours=case.hours + 1), "score": 0.93,
         "reasons": ["last changed the line that raises (checkout/totals.py:44)",
         "is in the first release with the failure, and in none before",
                     "its deploy came 4 minutes before the first signal"], "files": ["checkout/totals.py"], "cites": ["e3", "e4", "e5"]},
        *({"commit": sha(300 + index * 9 + place), "title": title, "author": author, "committed_at": ago(hours=case.hours + 3),
           "score": score, "reasons": ["in the same release", "touches none of the files in the stack"], "cites": ["e5"]}
          for place, (title, author, score) in enumerate(others)),
    ]  # fmt: skip
    metric = {
        "query": f"signals of this report per request to {case.service} in production", "service": case.service,
        "baseline_start": ago(hours=case.hours), "baseline_end": ago(hours=case.hours / 2), "baseline_count": case.signals,
        "baseline_exposure": 3912,
    }  # fmt: skip
    return Investigation.model_validate({
        "id": f"i-{case.id}", "project": "shop", "report_id": case.id, "attempt": 1, "title": case.title,
        "summary": case.summary or f"{case.title}. It began {case.hours:.0f} hours ago with a release of {case.service}.",
        "evidence": evidence,
        "claims": [
            {"statement": "All 148 exceptions come from release 7f4a7c15; the release before had none.", "cites": ["e1", "e5"]},
            {"statement": "The failure rate of checkouts rose from 0.00% to 3.78% within 4 minutes of the deploy.", "cites": ["e2", "e3"]},
            {"statement": "The table MINOR_UNITS has no entry for currencies without minor units.", "cites": ["e4"]},
            {"statement": "Nothing on main changes the file since.", "cites": ["e6"]},
        ],
        "claims_dropped": 1,
        "hypotheses": [
            {"statement": "The payment provider refuses yen", "kept": False, "reason": "the exception is raised before it is asked",
             "cites": ["e4"]},
        ],
        "suspects": [] if case.verdict in ("not_actionable",) else suspects,
        "suspect_lines": [{"file": "checkout/totals.py", "start": 43, "end": 45, "commit": commit,
                           "text": "    # One path for all currencies: amounts are rounded to the minor unit.\n"
                                   "    minor = MINOR_UNITS[currency.code]\n"
                                   "    return taxed.quantize(10**-minor)"}],
        "reviewers": [{"name": "Mara Okafor", "reason": "wrote the lines"}, {"name": "@payments", "reason": "CODEOWNERS of checkout/"}],
        "repository": "shop", "base_commit": sha(8), "priority": case.priority,
        "priority_factors": [{"name": "share_of_requests", "value": "3.78% of checkouts", "points": 3.0},
                             {"name": "people", "value": f"{case.people}", "points": 1.5}, {"name": "trend", "value": "steady",
                              "points": 0.0}],
        "verdict": case.verdict, "reason": case.reason, "confidence": 0.93, "question": case.question, "metric": metric,
        "cost": {"wall_seconds": 6.4, "cpu_seconds": 3.1}, "started_at": ago(hours=case.hours - 0.1),
        "completed_at": ago(hours=case.hours - 0.2),
    })  # fmt: skip


def change(case: Case, change_id: str, index: int) -> Change:
    run = {"isolation": "bubblewrap", "outcome": "exited", "wall_seconds": 3.2}
    suspect = RELEASE if case.id == "yen" else sha(100 + index)
    return Change.model_validate({
        "id": change_id, "project": "shop", "report_id": case.id, "state": "in_review", "strategy": "revert",
        "title": f"Revert of {suspect[:8]}: {case.suspect[0]}"[:500], "repository": "shop", "base_commit": sha(8), "diff": DIFF,
        "body": "## Problem\n\n" + case.title, "diff_bytes": len(DIFF), "files": ["checkout/totals.py", "tests/test_totals.py"],
        "reverts": suspect, "proof": "reproduced", "proof_reason": "the recorded request failed before the change and passes after it",
        "runs": [
            {**run, "step": "baseline.reproduce", "command": "python -m pytest tests/reproduce_jpy.py", "exit_code": 1,
             "output_tail": "E   KeyError: 'JPY'\n1 failed in 0.31s"},
            {**run, "step": "changed.reproduce", "command": "python -m pytest tests/reproduce_jpy.py", "exit_code": 0,
             "output_tail": "1 passed in 0.29s"},
            {**run, "step": "changed.test", "command": "python -m pytest", "exit_code": 0, "output_tail": "214 passed in 2.87s"},
        ],
        "checks": [
            {"name": "reproduction", "status": "completed", "conclusion": "success", "summary": "fails without the change, passes with it"},
            {"name": "tests", "status": "completed", "conclusion": "success", "summary": "214 passed"},
            {"name": "lint", "status": "completed", "conclusion": "failure" if case.id == "search" else "success", "summary": "ruff"},
            {"name": "preview", "status": "in_progress", "summary": "building"},
        ],
        "pull_request": {"number": 418 + index, "url": f"http://127.0.0.1:8410/shop/pulls/{418 + index}",
        "branch": f"loopwright/{case.id}-totals",
                         "base": "main", "head_commit": sha(200 + index)},
        "cost": {"wall_seconds": 21.0, "cpu_seconds": 12.5}, "at": ago(hours=case.hours - 0.4),
    })  # fmt: skip


def measured(case: Case, change_id: str, found: Investigation) -> Measurement:
    numbers = {
        "held": (41, 3912, 0, 4120, 0.0, 0.0, 0.11, "the rate fell by at least 89%; the change was to halve it"),
        "not_held": (26, 5200, 24, 5010, 0.96, 0.53, 1.74, "the interval reaches from 47% less to 74% more: it was to halve"),
        "worse": (35, 4000, 96, 3900, 2.81, 1.89, 4.26, "the rate rose by at least 89%"),
        "inconclusive": (9, 800, 3, 610, 0.44, 0.07, 1.77, "too few requests to tell after 7 days"),
    }[case.until]
    before, exposed, after, exposed_after, ratio, low, high, reason = numbers
    window = {"releases": [RELEASE]}
    return Measurement.model_validate({
        "id": f"m-{case.id}", "project": "shop", "report_id": case.id, "change_id": change_id, "verdict": case.until, "reason": reason,
        "metric": found.metric, "release": sha(55), "deployed_at": ago(hours=1.5), "ratio": ratio, "ratio_low": low, "ratio_high": high,
        "p_value": 0.0001, "test": "exact conditional test of two Poisson rates", "at": ago(minutes=12),
        "before": {**window, "start": ago(hours=6), "end": ago(hours=3), "events": before, "exposure": exposed, "rate": before / exposed,
                   "rate_low": before / exposed * 0.7, "rate_high": before / exposed * 1.35},
        "after": {**window, "start": ago(hours=1.4), "end": ago(minutes=14), "events": after, "exposure": exposed_after,
                  "rate": after / exposed_after, "rate_low": after / exposed_after * 0.6, "rate_high": max(3.7,
                  after * 1.6) / exposed_after},
    })  # fmt: skip


def seed(gateway: Gateway) -> None:
    """Says what the other services would, stage by stage, until every case stands where it should."""
    config = {
        "name": "shop", "title": "Shop", "repositories": [{"name": "shop"}], "promotion": {"group_wait": 0},
        "services": [{"name": name, "repository": "shop"} for name in sorted({case.service for case in CASES})],
        "policy": {"changes_per_hour_max": 1000, "changes_per_day_max": 1000, "open_changes_max": 1000, "start_priorities": ["P0", "P1",
        "P2", "P3"]},
    }  # fmt: skip
    gateway.api.put("/v1/projects/shop", json=config).raise_for_status()
    for case in CASES:
        _signals(gateway, case)
    gateway.deploy("checkout", RELEASE, ago(hours=5.27))
    gateway.deploy("checkout", sha(6), ago(hours=21))
    for minutes in range(0, 360, 3):
        gateway.exposure("checkout", RELEASE if minutes < 312 else sha(6), ago(minutes=minutes), 36 + minutes % 7)
    gateway.settled()
    found = {case.id: investigation(case, index) for index, case in enumerate(CASES)}
    for case in CASES:
        if case.until not in ("gathering", "ready"):
            fact = InvestigationStarted(project="shop", report_id=case.id, attempt=1, at=ago(hours=case.hours - 0.05))
            gateway.publish(s.INVESTIGATIONS_STARTED, fact, f"started:{case.id}")
    gateway.settled()
    for case in CASES:
        if case.until not in ("gathering", "ready", "investigating"):
            gateway.publish(s.INVESTIGATIONS_COMPLETED, found[case.id], f"investigated:{case.id}")
    gateway.settled()
    # What is P4 does not start by itself here: a person starts it.
    gateway.api.post("/v1/reports/hostile/actions/start_work").raise_for_status()
    _changes(gateway, found)
    gateway.api.post("/v1/reports/dull/actions/dismiss", json={"reason": "expected"}).raise_for_status()
    gateway.api.post("/v1/reports/quiet/actions/snooze", json={"seconds": 86_400}).raise_for_status()
    states = {case.id: (gateway.report(case.id)["state"], case.until) for case in CASES}
    assert all(now == wanted for now, wanted in states.values()), states


def _signals(gateway: Gateway, case: Case) -> None:
    for number in range(case.signals):
        at = ago(hours=case.hours * (1 - (number / case.signals) ** 1.3))
        actor = f"{number % case.people:064x}" if case.people else ""
        more = {"title": case.title, "service": case.service, "actor": actor, **case.more}
        gateway.signal(case.id, number, at, **more)
    for number, kind in enumerate(case.kinds):
        title = {"ticket": "I cannot pay in yen, the page just says error", "health_check": "GET /checkout/health answered 500"}[kind]
        neighbours = [{"signal_id": f"{case.id}-0", "report_id": case.id, "title": case.title, "kind": "exception", "similarity": 0.87}]
        gateway.signal(
            case.id, f"{kind}-{number}", ago(hours=case.hours - 1 - number), title=title, kind=kind, service=case.service,
            rule="similarity", fingerprint=f"fp-{case.id}-{kind}",
            source="http" if kind == "ticket" else "health", neighbours=neighbours,
            reason="close to “Checkout fails for carts in yen” (0.87 is over 0.81), same service, within the hour",
        )  # fmt: skip


def _changes(gateway: Gateway, found: dict[str, Investigation]) -> None:
    ids = {case.id: gateway.report(case.id)["change"]["id"] for case in CASES if case.until in AFTER_CHANGE}
    for index, case in enumerate(CASES):
        if case.id in ids:
            gateway.publish(s.CHANGES_OPENED, change(case, ids[case.id], index), f"opened:{case.id}")
    gateway.settled()
    for case in CASES:
        if case.until in AFTER_CHANGE[1:]:
            fact = {"change_id": ids[case.id], "project": "shop", "report_id": case.id, "repository": "shop", "service": case.service,
                    "merge_commit": sha(55), "merged_by": "person:dana", "merged_at": ago(hours=2),
                    "investigation": found[case.id]}  # fmt: skip
            gateway.publish(s.CHANGES_MERGED, ChangeMerged.model_validate(fact), f"merged:{case.id}")
    gateway.settled()
    for case in CASES:
        if case.until in ("measuring", *VERDICTS):
            fact = {"id": f"m-{case.id}", "project": "shop", "report_id": case.id, "change_id": ids[case.id], "deploy_id": "d1",
            "release": sha(55),
                    "commit": sha(55), "deployed_at": ago(hours=1.5), "settles_at": ago(hours=1.4), "ends_at": NOW + timedelta(hours=1),
                    "at": ago(hours=1.5)}  # fmt: skip
            gateway.publish(s.MEASUREMENTS_STARTED, MeasurementStarted.model_validate(fact), f"measuring:{case.id}")
    gateway.settled()
    for case in CASES:
        if case.until in VERDICTS:
            gateway.publish(s.MEASUREMENTS_COMPLETED, measured(case, ids[case.id], found[case.id]), f"measured:{case.id}")
    gateway.settled()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with a report in every state."""
    with Gateway(tmp_path_factory.mktemp("shop")) as gateway:
        seed(gateway)
        yield gateway


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway that has heard of nothing yet."""
    with Gateway(tmp_path_factory.mktemp("new")) as gateway:
        yield gateway


# Module scope: playwright's own event loop must have ended before other modules run theirs.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        remedy = "no chromium on this machine; as root: apt-get install chromium"
        assert not os.environ.get("CI"), remedy
        pytest.skip(remedy)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


class Visit:
    """A person at the inbox, and what their browser said and asked for."""

    def __init__(self, context: BrowserContext, gateway: Gateway) -> None:
        self.gateway = gateway
        self.page: Page = context.new_page()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.errors.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def open(self, path: str = "/", token: str | None = None) -> Page:
        self.page.goto(f"{self.gateway.url}{path}#token={token or self.gateway.token}")
        self.page.wait_for_selector(".topbar")
        return self.page


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Visit]]:
    """Opens visits; afterwards none may have met an error, or asked anything of another host."""
    visits: list[tuple[Visit, BrowserContext, tuple[str, ...]]] = []

    def start(gateway: Gateway, *, width: int = 1440, height: int = 900, expect: tuple[str, ...] = (), **more: Any) -> Visit:
        context = browser.new_context(viewport={"width": width, "height": height}, **more)
        context.set_default_timeout(8000)
        visits.append((Visit(context, gateway), context, expect))
        return visits[-1][0]

    yield start
    for seen, context, expect in visits:
        context.close()
        unexpected = [error for error in seen.errors if not any(part in error for part in expect)]
        assert not unexpected, unexpected
        elsewhere = [url for url in seen.requests if not url.startswith(seen.gateway.url + "/")]
        assert not elsewhere, elsewhere
