"""The inbox in a real browser, on the real gateway with facts told over the bus."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import uvicorn
from loopwright_common.bus import Outgoing
from loopwright_common.contracts import subjects as s
from loopwright_common.contracts.changes import Change, CheckRun, PullRequest, SandboxRun
from loopwright_common.contracts.investigations import Claim, Investigation, MetricContract, Observation, SuspectCommit
from loopwright_common.contracts.measurements import Measurement, RateWindow
from loopwright_common.contracts.reports import GroupingDecision, GroupUpdated
from loopwright_common.contracts.signals import Deploy, Signal
from loopwright_common.identifiers import derived_id
from loopwright_common.testing.memory_bus import MemoryBus
from loopwright_gateway.app import create_app
from loopwright_gateway.settings import GatewaySettings
from playwright.async_api import Browser, Page, async_playwright

TOKEN = "operator-token-of-this-test"
HOSTILE = '<img src="http://198.51.100.7/x" onerror="window.hacked=1"> \u202etxt\u202c [a](javascript:alert(1)) ' + "x" * 200
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SUSPECT = "7a16542100000000000000000000000000000000"
HEAD = "c044033b00000000000000000000000000000000"
DIFF = """diff --git a/shop/pricing.py b/shop/pricing.py
--- a/shop/pricing.py
+++ b/shop/pricing.py
@@ -20,5 +20,5 @@ def shipping(cart):
 def round_cash(amount, currency):
-    step = 10 ** DECIMALS[currency] // 20
+    step = CASH_STEPS[currency]
     return (amount + step // 2) // step * step
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@dataclass
class Inbox:
    """The running gateway, and the means to tell it facts."""

    url: str
    bus: MemoryBus
    store: Any
    told: int = 0
    reports: list[str] = field(default_factory=list)

    async def say(self, subject: s.Subject, payload: Any, **tokens: str) -> None:
        self.told += 1
        await self.bus.publish(Outgoing(subject, payload, f"told:{self.told}", {"project": "shop", **tokens}))

    async def settle(self) -> None:
        await self.bus.idle()
        await asyncio.sleep(0.7)  # the outbox looks twice a second
        await self.bus.idle()

    async def report(self, number: int, title: str, *, body: str = "") -> str:
        now = datetime.now(UTC)
        report_id = derived_id("ui", str(number))
        signal = Signal(
            id=derived_id("ui-signal", str(self.told), title), project="shop", source="sentry", kind="exception",
            title=title[:512], body=body,
            occurred_at=now - timedelta(minutes=number % 50), received_at=now, service="shop", release=SUSPECT, actor=f"a{number}",
        )  # fmt: skip
        decision = GroupingDecision(
            outcome="opened", rule="new", reason="nothing like it is known in this project", fingerprint="f", grouping_version="v1"
        )
        await self.say(
            s.GROUPS_UPDATED, GroupUpdated(project="shop", report_id=report_id, signal=signal, decision=decision, decided_at=now)
        )
        self.reports.append(report_id)
        return report_id

    async def investigated(self, report_id: str, *, summary: str, claim: str) -> None:
        now = datetime.now(UTC)
        suspect = SuspectCommit(
            commit=SUSPECT, title="Derive the cash rounding", author="Noor Haddad", committed_at=now - timedelta(days=2), score=0.82,
            reasons=("changed the raising line",), cites=("e1",),
        )  # fmt: skip
        found = Investigation(
            id=derived_id("inv", report_id), project="shop", report_id=report_id, attempt=1, title="Checkout fails for yen",
            summary=summary,
            evidence=(Observation(id="e1", kind="git.blame", question="who wrote the line", window="main", answer="Noor Haddad did"),),
            claims=(Claim(statement=claim, cites=("e1",)),), suspects=(suspect,), repository="shop", base_commit=HEAD, priority="P1",
            verdict="actionable", reason="a revert applies", confidence=0.82, metric=_metric(now), started_at=now, completed_at=now,
        )  # fmt: skip
        await self.say(s.INVESTIGATIONS_COMPLETED, found)

    async def opened(self, report_id: str) -> str:
        change_id = derived_id("change", report_id, "1")
        change = Change(
            id=change_id, project="shop", report_id=report_id, state="in_review", strategy="revert",
            title='Revert "Derive the cash rounding"',
            body="why", repository="shop", base_commit=HEAD, diff=DIFF, diff_bytes=len(DIFF), files=("shop/pricing.py",), reverts=SUSPECT,
            proof="reproduced", proof_reason="it failed before and passes after",
            runs=(_RUN,),
            checks=(CheckRun(name="tests", status="completed", conclusion="success", summary="14 passed"),),
            pull_request=PullRequest(number=1, url="http://127.0.0.1:1/pulls/1", branch="loopwright/x", base="main", head_commit=HEAD),
            at=datetime.now(UTC),
        )  # fmt: skip
        await self.say(s.CHANGES_OPENED, change)
        return change_id

    async def measured(self, report_id: str, change_id: str) -> None:
        now = datetime.now(UTC)
        before = RateWindow(start=now - timedelta(hours=2), end=now, events=33, exposure=811, rate=0.0407, rate_low=0.028, rate_high=0.057)
        after = RateWindow(start=now, end=now, events=0, exposure=392, rate=0.0, rate_low=0.0, rate_high=0.0094)
        await self.say(s.MEASUREMENTS_COMPLETED, Measurement(
            id=derived_id("m", report_id), project="shop", report_id=report_id, change_id=change_id, verdict="held", reason="the rate fell",
            metric=_metric(now), before=before, after=after, ratio=0.0, ratio_low=0.0, ratio_high=0.294, release=HEAD, at=now,
        ))  # fmt: skip


_RUN = SandboxRun(step="verify.test", command="pytest", isolation="bubblewrap", outcome="exited", exit_code=0, wall_seconds=1.2)


def _metric(now: datetime) -> MetricContract:
    return MetricContract(query="signals per request", service="shop", baseline_start=now - timedelta(hours=2), baseline_end=now)


@pytest_asyncio.fixture
async def inbox(tmp_path: Path) -> AsyncIterator[Inbox]:
    """The gateway on a free port, with a database of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = GatewaySettings(database_url=f"sqlite+aiosqlite:///{tmp_path / 'g.db'}", operator_token=TOKEN)  # type: ignore[arg-type]
    bus = MemoryBus("gateway")
    app = create_app(settings, bus=bus)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", timeout_graceful_shutdown=1))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.02)
    parts = app.state.parts
    config = {"name": "shop", "title": "The shop", "services": [{"name": "shop"}], "promotion": {"group_wait": 0}}
    from loopwright_common.contracts.configuration import ProjectConfig

    await parts.catalogue.apply(ProjectConfig.model_validate(config))
    yield Inbox(f"http://127.0.0.1:{port}", bus, parts.store)
    app.state.stopping = True
    server.should_exit = True
    await asyncio.wait_for(serving, 20)


@pytest_asyncio.fixture
async def browser() -> AsyncIterator[Browser]:
    found = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
    if found is None:
        assert not os.environ.get("CI"), "CI has no chromium: the set-up should have brought it"
        pytest.skip("no chromium on this machine; install it with: apt-get install chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture
async def page(browser: Browser, inbox: Inbox) -> AsyncIterator[Page]:
    """A signed-in page; at the end it must have shown no error and asked no other host."""
    context = await browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme="light")
    page = await context.new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: wrong.append(f"dialog {dialog.message}"))
    page.on("request", lambda request: wrong.append(f"asked {request.url}") if not request.url.startswith(inbox.url) else None)
    yield page
    assert wrong == []
    await context.close()


async def until(page: Page, condition: str) -> None:
    """Returns once a script's condition is true. Asked from outside: the page's policy forbids evaluating text inside it."""
    async with asyncio.timeout(15):
        while not await page.evaluate(condition):
            await asyncio.sleep(0.05)


async def enter(page: Page, inbox: Inbox, path: str = "/") -> None:
    await page.goto(f"{inbox.url}{path}#token={TOKEN}")
    await page.wait_for_selector(".topbar")


async def test_the_token_leaves_the_address_and_an_empty_inbox_says_how_to_begin(page: Page, inbox: Inbox) -> None:
    await enter(page, inbox)

    await page.wait_for_selector(".empty h2")
    assert "token" not in page.url
    assert "Nothing has come in yet" in await page.inner_text(".list-body")
    assert "loopwright signals send" in await page.inner_text(".list-body pre")
    await page.reload()
    await page.wait_for_selector(".topbar")  # the session is a cookie, so the page still is signed in
    assert await page.evaluate("document.cookie") == ""


async def test_without_a_token_the_page_says_where_one_is(page: Page, inbox: Inbox, browser: Browser) -> None:
    context = await browser.new_context()
    stranger = await context.new_page()
    await stranger.goto(inbox.url)
    await stranger.wait_for_selector(".login form")

    assert "operator_token" in await stranger.inner_text(".login")
    await stranger.fill(".login input", "wrong")
    await stranger.click(".login button")
    await stranger.wait_for_selector(".login [role=alert]:not(:empty)")
    await stranger.fill(".login input", TOKEN)
    await stranger.click(".login button")
    await stranger.wait_for_selector(".topbar")
    await context.close()


async def test_a_report_is_read_by_keyboard_down_to_its_evidence(page: Page, inbox: Inbox) -> None:
    report_id = await inbox.report(1, "ZeroDivisionError: integer division or modulo by zero")
    await inbox.report(2, "TimeoutError: the warehouse does not answer")
    await inbox.settle()
    await inbox.investigated(report_id, summary="It fails in round_cash. More is below.", claim="Noor wrote the raising line.")
    await inbox.settle()
    await inbox.opened(report_id)
    await inbox.settle()
    await enter(page, inbox)
    await page.wait_for_selector(".row")

    await page.keyboard.press("j")
    await page.wait_for_selector(".report h1")
    assert await page.inner_text(".report h1") == "Checkout fails for yen"
    assert f"/reports/{report_id}" in page.url
    assert "It fails in round_cash." in await page.inner_text(".lead")
    await page.click(".claims .cite")
    await page.wait_for_selector(".observation")
    assert "Noor Haddad did" in await page.inner_text(".observation")
    assert page.url.endswith("/evidence/e1")
    await page.wait_for_selector(".diff tr.add")
    assert "CASH_STEPS" in await page.inner_text(".diff tr.add")
    assert "reproduced" in await page.inner_text(".tag.proof-reproduced")
    await page.keyboard.press("j")
    await until(page, "document.querySelector('.report h1')?.textContent.includes('TimeoutError')")
    await page.keyboard.press("Escape")
    await until(page, "location.pathname === '/'")


async def test_a_merge_names_the_commit_that_was_seen(page: Page, inbox: Inbox) -> None:
    report_id = await inbox.report(1, "ZeroDivisionError")
    await inbox.settle()
    await inbox.investigated(report_id, summary="It fails.", claim="Noor wrote it.")
    await inbox.settle()
    await inbox.opened(report_id)
    await inbox.settle()
    await enter(page, inbox, f"/reports/{report_id}")
    await page.wait_for_selector(".actions .primary")

    await page.keyboard.press("m")
    await page.get_by_text("Merge now").click()
    await page.wait_for_selector(".toast")
    await inbox.settle()

    (command,) = inbox.bus.published(s.COMMANDS_CHANGES)
    assert (command.action, command.expected_head, command.actor) == ("merge", HEAD, "person:operator")


async def test_a_dismissal_asks_why_with_one_key_and_is_written_down(page: Page, inbox: Inbox) -> None:
    report_id = await inbox.report(1, "KeyError: 'x'")
    await inbox.settle()
    await enter(page, inbox, f"/reports/{report_id}")
    await page.wait_for_selector(".report .timeline")

    await page.keyboard.press("d")
    await page.wait_for_selector(".input-form .choices")
    await page.keyboard.press("2")
    await until(page, "document.querySelector('.timeline').textContent.includes('dismissed')")

    assert "expected" in await page.inner_text(".timeline")
    assert await page.locator(".actions").get_by_text("Reopen").count() == 1


async def test_what_changes_is_shown_without_moving_what_is_read(page: Page, inbox: Inbox) -> None:
    for number in range(3):
        await inbox.report(number, f"Error number {number}")
    await inbox.settle()
    await enter(page, inbox)
    await page.wait_for_selector(".row")
    before = await page.locator(".row .title").all_inner_texts()

    await inbox.report(77, "A new error nobody has seen")
    await page.wait_for_selector(".news")

    assert await page.locator(".row .title").all_inner_texts() == before
    assert "1 new report" in await page.inner_text(".news")
    await page.click(".news")
    await until(page, "[...document.querySelectorAll('.row .title')].some(e => e.textContent.includes('nobody has seen'))")


async def test_the_verdict_is_drawn_with_its_interval(page: Page, inbox: Inbox) -> None:
    report_id = await inbox.report(1, "ZeroDivisionError")
    await inbox.settle()
    await inbox.investigated(report_id, summary="It fails.", claim="Noor wrote it.")
    await inbox.settle()
    change_id = await inbox.opened(report_id)
    await inbox.say(s.DEPLOYS, Deploy(id="d1", project="shop", service="shop", release=HEAD, deployed_at=datetime.now(UTC)), service="shop")
    await inbox.settle()
    await inbox.measured(report_id, change_id)
    await inbox.settle()
    await enter(page, inbox, f"/reports/{report_id}")
    await page.wait_for_selector(".verdict-chart")

    assert "held" in await page.inner_text(".outcome >> nth=0")
    assert await page.locator(".verdict-chart .band").count() == 2
    assert "0.00 to 0.29" in await page.inner_text(".report")


async def test_hostile_text_stays_text(page: Page, inbox: Inbox) -> None:
    report_id = await inbox.report(1, HOSTILE, body=HOSTILE)
    await inbox.settle()
    await inbox.investigated(report_id, summary=HOSTILE, claim=HOSTILE)
    await inbox.settle()
    await enter(page, inbox, f"/reports/{report_id}")
    await page.wait_for_selector(".report .timeline")
    await page.get_by_text("Why are these together?").click()
    await page.locator(".opener").first.click()
    await page.wait_for_selector(".signals li")
    await page.wait_for_timeout(300)

    assert await page.evaluate("window.hacked") is None
    assert await page.locator(".report img, .row img").count() == 0
    assert await page.locator("a[href^='javascript']").count() == 0
    assert "<img src=" in await page.inner_text(".report")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_it_fits_a_phone_in_both_themes(browser: Browser, inbox: Inbox, scheme: Any) -> None:
    report_id = await inbox.report(1, HOSTILE)
    await inbox.settle()
    await inbox.investigated(report_id, summary=HOSTILE, claim=HOSTILE)
    await inbox.settle()
    await inbox.opened(report_id)
    await inbox.settle()
    context = await browser.new_context(viewport={"width": 380, "height": 800}, color_scheme=scheme)
    page = await context.new_page()
    await enter(page, inbox)
    await page.wait_for_selector(".row")
    assert await page.evaluate("document.documentElement.scrollWidth") <= 380
    await page.click(".row")
    await page.wait_for_selector(".report .timeline")
    assert await page.evaluate("document.documentElement.scrollWidth") <= 380
    assert await page.evaluate("document.querySelector('.detail').scrollWidth <= document.querySelector('.detail').clientWidth")
    assert not await page.is_visible(".list")
    await page.click(".back")
    await page.wait_for_selector(".row", state="visible")
    contrasts = await page.evaluate(CONTRASTS)
    assert {pair: ratio for pair, ratio in contrasts.items() if ratio < 4.5} == {}
    await context.close()


# WCAG 2.2, 1.4.3: relative luminance and contrast ratio of the pairs that text is drawn with.
CONTRASTS = """() => {
  const style = getComputedStyle(document.documentElement);
  const canvas = document.createElement('canvas').getContext('2d');
  const light = (name) => {
    canvas.fillStyle = style.getPropertyValue(name).trim();
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((value) => {
      const part = value / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const pairs = [
    ['--ink', '--ground'], ['--ink-soft', '--surface'], ['--ink-faint', '--surface'], ['--ink-faint', '--ground'],
    ['--accent', '--surface'], ['--held', '--held-soft'], ['--not-held', '--not-held-soft'], ['--worse', '--worse-soft'],
    ['--inconclusive', '--inconclusive-soft'], ['--p-ink', '--p0'], ['--p-ink', '--p1'], ['--p-ink', '--p2'], ['--p-ink', '--p3'],
    ['--accent-ink', '--accent'], ['--add-ink', '--add'], ['--del-ink', '--del'],
  ];
  const ratio = (one, other) => (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
  return Object.fromEntries(pairs.map(([one, other]) => [`${one} on ${other}`, ratio(light(one), light(other))]));
}"""
