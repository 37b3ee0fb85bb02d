"""Why signals are together, and people's last word on it: said by mouse and by keyboard, carried out as cluster would, told on the page."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from loopwright_common.contracts import subjects as s
from loopwright_common.contracts.queries import GroupCommand
from loopwright_common.contracts.reports import ReportsRegrouped
from playwright.sync_api import Page, expect

from .conftest import HOSTILE, Gateway

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

YEN, MAIL, LEDGER = "Checkout fails for carts in yen", "Receipts are sent twice", "The ledger's pool is empty"


class Desk:
    """The gateway with reports of several fingerprints, and what cluster would say to the words of people."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.carried_out = 0
        self.made = 0

    def reports(self, count: int) -> list[str]:
        """Opens reports with ids of their own: the first has three fingerprints, the others one each."""
        self.made += 1
        ids = [f"{name}-{self.made}" for name in ("yen", "mail", "ledger")][:count]
        now = datetime.now(UTC)
        for id_, title in zip(ids, self.titles(), strict=False):
            for number in range(12):
                at = now - timedelta(minutes=3 * number + 2)
                self.gateway.signal(id_, number, at, title=title, service="checkout", fingerprint=f"fp-{id_}", rule="new")
        yen = ids[0]
        near = {
            "signal_id": f"{yen}-0", "report_id": yen, "title": YEN, "kind": "exception", "similarity": 0.81,
            "features": {"probability": 0.43, "cosine": 0.81, "words_cosine": 0.52, "title_share_new": 0.2, "same_service": 1.0},
        }  # fmt: skip
        for number in range(2):
            self.gateway.signal(
                yen, f"ticket-{number}", now - timedelta(minutes=number + 1), title="I cannot pay in yen", kind="ticket",
                service="checkout", fingerprint=f"ticket-{yen}", rule="similarity", neighbours=[near],
                reason="the same problem with a probability of 0.43",
                similar=ids[1:],
            )  # fmt: skip
        self.gateway.signal(
            yen, "health", now - timedelta(minutes=9), title=HOSTILE[:500], kind="health_check", service="checkout",
            fingerprint=f"health-{yen}", rule="similarity", reason="of the same service within the hour",
        )  # fmt: skip
        self.gateway.settled()
        return ids

    def titles(self) -> tuple[str, str, str]:
        """The reports made last, by their titles: no two reports of this desk are called the same."""
        return tuple(f"{title} ({self.made})" for title in (YEN, MAIL, LEDGER))  # type: ignore[return-value]

    def command(self) -> GroupCommand:
        """The next word that the gateway asks cluster to carry out."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            commands = self.gateway.bus.published(s.COMMANDS_GROUPS)
            if len(commands) > self.carried_out:
                self.carried_out += 1
                command = commands[self.carried_out - 1]
                assert isinstance(command, GroupCommand)
                return command
            time.sleep(0.05)
        raise AssertionError("no word was asked for")

    def carry_out(self, **more: Any) -> GroupCommand:
        """Says what cluster says when it has carried out the next word, or refused it."""
        command = self.command()
        to = {
            "merge": command.report_id, "split": f"new-{command.command_id}"[:64], "move": command.other_report_id,
            "never_together": command.report_id, "undo": command.report_id,
        }[command.action]  # fmt: skip
        left = {"merge": command.other_report_id, "never_together": command.other_report_id}.get(command.action, command.report_id)
        fact = {
            "project": command.project, "command_id": command.command_id, "action": command.action, "report_id": to, "from_report_id": left,
            "signal_ids": None if command.action == "merge" else command.signal_ids, "fingerprints": command.fingerprints,
            "undoes": command.undoes, "actor": command.actor, "reason": command.reason, "at": datetime.now(UTC), **more,
        }  # fmt: skip
        self.gateway.publish(s.GROUPS_REGROUPED, ReportsRegrouped.model_validate(fact), f"regrouped:{command.command_id}")
        self.gateway.settled()
        return command

    def count(self, report_id: str) -> int:
        return int(self.gateway.report(report_id)["signal_count"])


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with Gateway(tmp_path_factory.mktemp("desk")) as gateway:
        config = {"name": "shop", "title": "Shop", "promotion": {"group_wait": 0}, "services": [{"name": "checkout"}]}
        gateway.api.put("/v1/projects/shop", json=config).raise_for_status()
        yield Desk(gateway)


def opened(page: Page) -> None:
    """The grouping of the report that is shown."""
    page.get_by_text("Why are these together?").click()
    page.wait_for_selector(".fingerprints > li")


def line(page: Page, title: str) -> Any:
    return page.locator(".fingerprints > li").filter(has=page.locator(".opener .title", has_text=title))


def done(page: Page) -> Any:
    return page.locator(".place .note, .actions + div .note, .similar .note, .said .note")


def test_each_fingerprint_is_a_line_that_opens_what_decided_and_its_signals(desk: Desk, visit: Callable[..., Any]) -> None:
    yen, mail = desk.reports(2)
    page = visit(desk.gateway).open(f"/reports/{yen}")
    opened(page)

    assert page.locator(".fingerprints > li").count() == 3
    first = line(page, YEN)
    expect(first).to_contain_text("12 signals")
    tickets = line(page, "I cannot pay in yen")
    expect(tickets).to_contain_text("joined by likeness")
    expect(tickets).to_contain_text("2 signals")
    tickets.locator(".opener").press("Enter")
    expect(tickets.locator(".neighbours li")).to_contain_text(YEN)
    figures = tickets.locator(".figure").all_inner_texts()
    assert [figure.split() for figure in figures] == [
        ["same", "problem", "0.43"],
        ["alike", "in", "meaning", "0.81"],
        ["shared", "words", "0.52"],
    ]
    expect(tickets.locator(".neighbours")).to_contain_text("same service · titles share rare words")
    assert tickets.locator(".signals li").count() == 2

    first.locator(".opener").press("Enter")
    expect(first.locator(".signals li")).to_have_count(10)
    first.get_by_role("button", name="More signals (2)").click()
    expect(first.locator(".signals li")).to_have_count(12)
    similar = page.locator(".similar-reports")
    expect(similar.get_by_role("link")).to_have_attribute("href", f"/reports/{mail}")
    assert page.locator(".report img").count() == 0


def test_a_fingerprint_is_split_off_by_keyboard_alone_and_brought_back(desk: Desk, visit: Callable[..., Any]) -> None:
    (yen,) = desk.reports(1)
    page = visit(desk.gateway).open(f"/reports/{yen}")
    page.wait_for_selector(".report .timeline")
    page.locator(".why-together summary").press("Enter")
    page.wait_for_selector(".fingerprints > li")

    line(page, "I cannot pay in yen").locator(".fingerprint input").press("Space")
    expect(page.locator(".chosen-bar")).to_contain_text("1 fingerprint (2 signals, and those to come) chosen")
    page.get_by_role("button", name="Split off").press("Enter")
    expect(page.locator(".place .will")).to_contain_text("leaves this report and opens one of its own")
    page.keyboard.type("another cause")
    page.keyboard.press("Enter")
    command = desk.carry_out()
    assert (command.action, command.fingerprints, command.reason) == ("split", (f"ticket-{yen}",), "another cause")

    expect(done(page)).to_contain_text("Done.", timeout=15_000)
    expect(page.locator(".fingerprints > li")).to_have_count(2)
    expect(page.locator(".words-said li").first).to_contain_text("another cause")
    assert desk.count(yen) == 13
    page.get_by_role("link", name="Open the new report").click()
    page.wait_for_function(f"() => !location.pathname.endsWith('{yen}')")
    expect(page.locator(".words-said li")).to_contain_text("Split off from")
    expect(page.locator(".facts dd").first).to_have_text("2 2 tickets")

    page.get_by_role("button", name="Undo").press("Enter")
    expect(page.locator(".said form")).to_contain_text("comes back to where it was")
    page.locator(".said form").get_by_role("button", name="Undo").click()
    undo = desk.command()
    assert (undo.action, undo.undoes) == ("undo", command.command_id)
    desk.carried_out -= 1
    desk.carry_out(report_id=yen, from_report_id=f"new-{command.command_id}"[:64], fingerprints=(f"ticket-{yen}",))
    expect(page.locator(".words-said")).to_contain_text("undone", timeout=15_000)
    assert desk.count(yen) == 15


def test_a_signal_alone_is_moved_to_a_report_found_by_its_words(desk: Desk, visit: Callable[..., Any]) -> None:
    yen, _mail, ledger = desk.reports(3)
    page = visit(desk.gateway).open(f"/reports/{yen}")
    opened(page)
    first = line(page, YEN)
    first.locator(".opener").click()
    first.locator(".signals input").nth(1).check()
    page.get_by_role("button", name="Move to…").click()
    title = desk.titles()[2]
    page.get_by_role("combobox", name="The other report").fill(title)
    expect(page.locator(".found li")).to_have_count(1)
    page.keyboard.press("Enter")
    expect(page.locator(".will")).to_contain_text(f"1 signal alone goes to “{title}”")
    page.get_by_role("button", name="Move", exact=True).click()
    command = desk.carry_out()

    assert (command.action, command.other_report_id, command.signal_ids) == ("move", ledger, (f"{yen}-1",))
    expect(done(page)).to_contain_text("Moved to", timeout=15_000)
    expect(page.locator(".words-said li").first).to_contain_text(f"Moved to “{title}”")
    expect(first).to_contain_text("11 signals")
    expect(first.get_by_role("button", name="More signals (1)")).to_be_visible()  # what left is no longer listed
    assert (desk.count(yen), desk.count(ledger)) == (14, 13)
    page.goto(f"{desk.gateway.url}/reports/{ledger}")
    opened(page)
    moved = line(page, YEN)
    moved.locator(".opener").click()
    expect(moved.locator(".moved")).to_contain_text("Moved here from")
    expect(moved.locator(".moved")).to_contain_text("by operator")


def test_a_report_is_merged_into_another_from_the_menu_and_the_page_says_where_it_went(desk: Desk, visit: Callable[..., Any]) -> None:
    yen, mail = desk.reports(2)
    page = visit(desk.gateway).open(f"/reports/{yen}")
    page.wait_for_selector(".report .timeline")
    page.keyboard.press("a")
    page.get_by_role("button", name="Merge into…").click()
    page.get_by_role("combobox", name="The other report").fill(f"{desk.gateway.url}/reports/{mail}")
    expect(page.locator(".found li")).to_have_count(1)
    page.keyboard.press("Enter")
    expect(page.locator(".will")).to_contain_text(f"All 15 signals of this report, and those to come, go into “{desk.titles()[1]}”")
    page.locator(".word-form").get_by_role("button", name="Merge").click()
    command = desk.carry_out()

    assert (command.action, command.report_id, command.other_report_id) == ("merge", mail, yen)
    expect(done(page)).to_contain_text("Merged into", timeout=15_000)
    expect(page.locator(".eyebrow").first).to_contain_text("merged into another report")
    assert desk.gateway.report(yen)["merged_into"] == mail
    assert desk.count(mail) == 27


def test_never_together_is_said_from_a_similar_report_and_a_refused_merge_says_who_stands_against_it(
    desk: Desk, visit: Callable[..., Any]
) -> None:
    yen, mail = desk.reports(2)
    page = visit(desk.gateway).open(f"/reports/{yen}")
    opened(page)
    similar = page.locator(".similar-reports li")
    similar.get_by_role("button", name="Never together").click()
    expect(similar.locator(".will")).to_contain_text("two problems")
    similar.get_by_label("Why (kept with the word)").fill("the queue, not the till")
    similar.get_by_role("button", name="Keep apart").click()
    command = desk.carry_out()
    assert (command.action, {command.report_id, command.other_report_id}) == ("never_together", {yen, mail})
    expect(page.locator(".words-said li").first).to_contain_text(f"Never together with “{desk.titles()[1]}”", timeout=15_000)
    expect(page.locator(".words-said li").first).to_contain_text("the queue, not the till")
    expect(page.locator(".words-said li").first.locator(".word-done")).to_be_visible(timeout=15_000)

    similar = page.locator(".similar-reports li")
    similar.get_by_role("button", name="Merge into it").click()
    similar.get_by_role("button", name="Merge", exact=True).click()
    desk.carry_out(refused="person:operator said that these never go together; undo it first")
    expect(page.locator(".words-said li").first).to_contain_text("Not done: person:operator said", timeout=15_000)
    assert desk.count(yen) == 15


def test_what_is_chosen_and_half_typed_survives_a_live_change(desk: Desk, visit: Callable[..., Any]) -> None:
    (yen,) = desk.reports(1)
    page = visit(desk.gateway).open(f"/reports/{yen}")
    page.wait_for_selector(".live:not(.stale)")
    opened(page)
    line(page, "I cannot pay in yen").locator(".fingerprint input").check()
    page.get_by_role("button", name="Split off").click()
    page.keyboard.type("half a rea")

    desk.gateway.signal(yen, "late", datetime.now(UTC), title=YEN, service="checkout", fingerprint=f"fp-{yen}")
    expect(line(page, YEN)).to_contain_text("13 signals", timeout=15_000)
    page.keyboard.type("son")

    assert page.get_by_label("Why (kept with the word)").input_value() == "half a reason"
    assert line(page, "I cannot pay in yen").locator(".fingerprint input").is_checked()
    page.keyboard.press("Escape")
    expect(page.locator(".place form")).to_have_count(0)


def test_a_word_on_an_outdated_report_offers_to_look_again_where_it_was_said(desk: Desk, visit: Callable[..., Any]) -> None:
    (yen,) = desk.reports(1)
    seen = visit(desk.gateway, expect=("409", "stream", "ERR_FAILED"))
    seen.page.route("**/v1/stream", lambda route: route.abort())
    page = seen.open(f"/reports/{yen}")
    opened(page)
    line(page, "I cannot pay in yen").locator(".fingerprint input").check()
    page.get_by_role("button", name="Split off").click()
    desk.gateway.api.post(f"/v1/reports/{yen}/actions/snooze", json={"seconds": 3600}).raise_for_status()

    page.locator(".place").get_by_role("button", name="Split off").click()
    expect(page.locator(".place [role=alert]")).to_contain_text("has changed since you looked")
    page.get_by_role("button", name="Look again").click()
    expect(page.locator(".place [role=status]")).to_contain_text("how it stands now")
    page.locator(".place").get_by_role("button", name="Split off").click()
    assert desk.carry_out().fingerprints == (f"ticket-{yen}",)
    expect(page.locator(".words-said")).to_contain_text("Split off", timeout=20_000)


def test_a_viewer_sees_why_and_is_offered_no_word(desk: Desk, visit: Callable[..., Any]) -> None:
    (yen,) = desk.reports(1)
    token = desk.gateway.api.post("/v1/tokens", json={"name": "vera", "role": "viewer"}).raise_for_status().json()["token"]
    page = visit(desk.gateway).open(f"/reports/{yen}", token=token)
    opened(page)
    assert page.locator(".grouping input").count() == 0
    line(page, "I cannot pay in yen").locator(".opener").click()
    expect(page.locator(".neighbours li")).to_have_count(1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_nothing_of_the_grouping_sticks_out(desk: Desk, visit: Callable[..., Any], width: int, scheme: Any) -> None:
    (yen,) = desk.reports(1)
    page = visit(desk.gateway, width=width, color_scheme=scheme).open(f"/reports/{yen}")
    opened(page)
    for opener in page.locator(".opener").all():
        opener.click()
    page.wait_for_selector(".neighbours li")
    line(page, "I cannot pay in yen").locator(".fingerprint input").check()
    page.get_by_role("button", name="Move to…").click()
    page.wait_for_selector(".found li")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = page.evaluate(
        "[...document.querySelectorAll('.grouping *')].filter(e => !e.closest('.title, .sr')"
        " && e.getBoundingClientRect().right > document.querySelector('.grouping').getBoundingClientRect().right + 1)"
        ".map(e => e.className)"
    )
    assert wide == []
