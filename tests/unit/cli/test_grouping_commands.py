"""What people say about the grouping at a terminal: what is asked of the gateway, what is told, how a refusal ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import Result

from .test_commands import Server, loopwright, server

__all__ = ["loopwright", "server"]  # fixtures

Run = Callable[..., Result]


def word(command_id: str = "c-new", **more: Any) -> dict[str, Any]:
    return {
        "command_id": command_id, "action": "split", "report_id": "r1", "other_report_id": None, "new_report_id": "r9",
        "fingerprints": ["f1"], "signals": 12, "actor": "person:ada", "reason": "another table", "at": "2026-11-26T10:00:00Z",
        "state": "done", "refusal": "", "undone_by": None, "undoable": True,
    } | more  # fmt: skip


def answers(server: Server, action: str, *states: dict[str, Any]) -> None:
    """The words before, and then, one state for each look, after the action is asked for."""
    looks = iter([[word("c-old", action=action)], *([state, word("c-old", action=action)] for state in states)])
    last: list[Any] = []

    def look(query: dict[str, list[str]]) -> Any:
        last[:] = next(looks, last)
        return {"words": list(last)}

    server.answer("GET", "/v1/reports/r1/grouping", look)
    server.answer("POST", f"/v1/reports/r1/actions/{'merge_into' if action == 'merge' else action}", {"id": "r1", "version": 4}, 202)


def posted(server: Server) -> list[tuple[str, Any]]:
    return [(path, body) for method, path, _, body, _ in server.asked if method == "POST"]


@pytest.mark.parametrize(
    ("arguments", "action", "path", "body"),
    [
        (["merge", "r1", "r2", "-m", "same"], "merge", "merge_into", {"report_id": "r2", "comment": "same"}),
        (["split", "r1", "--signal", "s1", "--signal", "s2"], "split", "split", {"signal_ids": ["s1", "s2"], "comment": ""}),
        (["split", "r1", "--fingerprint", "f1"], "split", "split", {"fingerprints": ["f1"], "comment": ""}),
        (
            ["move", "r1", "r2", "--fingerprint", "f1", "--signal", "s1"],
            "move",
            "move",
            {"signal_ids": ["s1"], "fingerprints": ["f1"], "report_id": "r2", "comment": ""},
        ),
        (["never-together", "r1", "r2", "-m", "two"], "never_together", "never_together", {"report_id": "r2", "comment": "two"}),
        (["undo", "r1", "c-7", "-m", "wrong"], "undo", "undo", {"command_id": "c-7", "comment": "wrong"}),
    ],
)
def test_each_word_is_asked_of_the_gateway_as_the_person_said_it(
    server: Server, loopwright: Run, arguments: list[str], action: str, path: str, body: dict[str, Any]
) -> None:
    answers(server, action, word(action=action))
    done = loopwright("reports", *arguments)
    assert done.exit_code == 0, done.output
    assert posted(server) == [(f"/v1/reports/r1/actions/{path}", body)]
    assert "done" in done.stdout
    assert "c-new" in done.stdout
    assert "c-old" not in done.stdout


def test_a_word_is_waited_for_until_the_grouping_has_carried_it_out(server: Server, loopwright: Run) -> None:
    answers(server, "split", word(state="asked", new_report_id=None), word(state="asked", new_report_id=None), word())
    done = loopwright("reports", "split", "r1", "--fingerprint", "f1", "-o", "json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["new_report_id"] == "r9"


def test_what_is_not_carried_out_in_time_says_where_to_look(server: Server, loopwright: Run) -> None:
    answers(server, "split", word(state="asked"))
    done = loopwright("reports", "split", "r1", "--fingerprint", "f1", "--wait", "0")
    assert done.exit_code == 0, done.output
    assert "loopwright reports words r1" in done.stdout


def test_a_refused_word_is_exit_code_4_and_says_why(server: Server, loopwright: Run) -> None:
    refusal = "person:bo said on 2026-11-25 that these never go together; undo it first"
    answers(server, "merge", word(action="merge", state="refused", refusal=refusal))
    done = loopwright("reports", "merge", "r1", "r2")
    assert done.exit_code == 4
    assert refusal in " ".join(done.stderr.split())
    assert done.stdout == ""


def test_a_version_that_is_stale_ends_as_the_gateway_says(server: Server, loopwright: Run) -> None:
    answers(server, "merge")
    server.answer("POST", "/v1/reports/r1/actions/merge_into", {"title": "Conflict", "detail": "The report is merged already."}, 409)
    done = loopwright("reports", "merge", "r1", "r2")
    assert done.exit_code == 4
    assert "The report is merged already." in done.stderr


def test_a_split_that_names_nothing_asks_nothing(server: Server, loopwright: Run) -> None:
    for arguments in (["split", "r1"], ["move", "r1", "r2"]):
        done = loopwright("reports", *arguments)
        assert done.exit_code == 2
        assert "--fingerprint" in done.stderr
    assert server.asked == []


@pytest.mark.parametrize(
    ("arguments", "merged_into", "told"),
    [
        (["explain", "r1"], "r2", "r1 was merged into r2, and its signals are there"),
        (["fingerprints", "r1"], "r2", "r1 was merged into r2, and its signals are there"),
        (["explain", "r1"], None, "no signal is on it"),
        (["explain", "r1", "--fingerprint", "f[b]9"], None, "no signal of fingerprint f[b]9 is on it"),
    ],
)
def test_a_report_that_has_no_signals_says_why_and_where_they_are(
    server: Server, loopwright: Run, arguments: list[str], merged_into: str | None, told: str
) -> None:
    server.answer("GET", f"/v1/reports/r1/{arguments[0]}", {"items": [], "next_cursor": None, "total": None})
    server.answer("GET", "/v1/reports/r1", {"id": "r1", "merged_into": merged_into})
    done = loopwright("reports", *arguments)
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == told
    assert json.loads(loopwright("reports", *arguments, "-o", "json").stdout) == []


@pytest.mark.parametrize("report", ["r1\nr2", "r1\x00", "r1\udcff"])
def test_an_id_that_no_address_can_hold_is_called_wrongly_and_not_a_fault_of_the_program(loopwright: Run, report: str) -> None:
    for arguments in (["words", report], ["explain", report], ["merge", report, "r2"]):
        done = loopwright("reports", *arguments)
        assert done.exit_code == 2, done.output
        assert "is not an address" in done.stderr


def test_words_are_told_with_who_why_and_what_came_of_them(server: Server, loopwright: Run) -> None:
    said = [
        word("c3", action="never_together", other_report_id="r4", state="refused", refusal="they are one by a merge", reason=""),
        word("c2", action="move", other_report_id="r5", state="undone", undone_by="c4"),
        word("c1", state="asked"),
    ]
    server.answer("GET", "/v1/reports/r1/grouping", {"words": said})
    done = loopwright("reports", "words", "r1")
    assert done.exit_code == 0, done.output
    assert "refused r1 and r4 never together" in done.stdout
    assert "not done: they are one by a merge" in done.stdout
    assert "undone moved from r1 to r5 (1 fingerprint, 12 signals)" in done.stdout
    assert "ada, 2026-11-26T10:00:00Z c1" in done.stdout
    assert "“another table”" in done.stdout
    server.answer("GET", "/v1/reports/r1/grouping", {"words": []})
    assert "nobody has said anything" in loopwright("reports", "words", "r1").stdout


def explanation(number: int, **more: Any) -> dict[str, Any]:
    near = {
        "signal_id": "s0", "report_id": "r3", "title": "Pool of the ledger is empty", "kind": "ticket", "similarity": 0.71234,
        "features": {"probability": 0.4321, "cosine": 0.71234, "words_cosine": 0.5, "quotes": 0.3, "same_service": 1.0, "name:ledger": 4.2},
    }  # fmt: skip
    decision = {
        "outcome": "joined", "rule": "similarity", "reason": "a probability of 0.43", "fingerprint": "f1", "neighbours": [near],
        "grouping_version": "v2", "degraded": False, "similar": ["r8"],
    }  # fmt: skip
    signal = {"id": f"s{number}", "kind": "ticket", "title": f"Signal {number}", "source": "http", "occurred_at": "2026-11-26T10:00:00Z"}
    return {"signal": signal, "fingerprint": "f1", "decision": decision, "moved": None} | more


def test_explain_goes_over_all_pages_and_says_what_decided(server: Server, loopwright: Run) -> None:
    moved = {"command_id": "c7", "action": "split", "actor": "person:ada", "at": "2026-11-26T11:00:00Z", "from_report_id": "r0"}
    pages = {
        "": {"items": [explanation(1)], "next_cursor": "next"},
        "next": {"items": [explanation(2, moved=moved), explanation(3, decision=None)], "next_cursor": None},
    }
    server.answer("GET", "/v1/reports/r1/explain", lambda query: pages[query.get("cursor", [""])[0]])
    done = loopwright("reports", "explain", "r1", "--fingerprint", "f1")
    assert done.exit_code == 0, done.output
    assert all(asked[2]["fingerprint"] == ["f1"] for asked in server.asked)
    said = " ".join(done.stdout.split())
    assert "probability 0.43, alike in meaning 0.71, alike in words 0.50, same service, both name ledger, they quote the same" in said
    assert "may be the same as r8" in said
    assert "split off here from r0 by ada, 2026-11-26T11:00:00Z c7" in said
    assert "no longer kept" in said
    assert said.index("Signal 1") < said.index("Signal 2") < said.index("Signal 3")


def test_hostile_words_cannot_act_on_the_terminal(server: Server, loopwright: Run) -> None:
    bad = "\x1b]0;owned\x07[bold]b[/bold]\u202e"
    server.answer("GET", "/v1/reports/r1/grouping", {"words": [word(reason=bad, refusal=bad, actor=bad, fingerprints=[bad])]})
    item = explanation(1)
    item["signal"]["title"] = item["decision"]["reason"] = item["fingerprint"] = item["decision"]["neighbours"][0]["title"] = bad
    item["decision"]["neighbours"][0]["features"][f"name:{bad}"] = 1.0
    server.answer("GET", "/v1/reports/r1/explain", {"items": [item], "next_cursor": None})
    for command in ("words", "explain"):
        said = loopwright("reports", command, "r1").stdout
        assert not set(said) & {"\x1b", "\x07", "\u202e"}
        assert "[bold]b[/bold]" in said


def test_fingerprints_are_a_table_and_json(server: Server, loopwright: Run) -> None:
    line = {"fingerprint": "f1", "title": "KeyError", "kind": "exception", "rule": "fingerprint", "reason": "frames",
            "signals": 1204, "first_seen": "2026-11-25T10:00:00Z", "last_seen": "2026-11-26T10:00:00Z"}  # fmt: skip
    server.answer("GET", "/v1/reports/r1/fingerprints", {"items": [line], "next_cursor": None})
    assert "1204" in loopwright("reports", "fingerprints", "r1").stdout
    assert json.loads(loopwright("reports", "fingerprints", "r1", "-o", "json").stdout) == [line]


def test_an_evaluation_names_the_pairs_that_the_version_has_wrong(server: Server, loopwright: Run) -> None:
    pair = {"command_id": "c1", "fingerprint": "f1", "other_fingerprint": "f2", "title": "Pool empty", "other_title": "Disk full",
            "same": False, "would_join": True, "probability": 0.61, "reason": "they use the same words"}  # fmt: skip
    found = {
        "version": "v2",
        "same": 3,
        "same_joined": 2,
        "apart": 5,
        "apart_joined": 1,
        "pairs": [pair],
        "truncated": True,
        "degraded": False,
    }
    server.answer("GET", "/v1/projects/shop/grouping/evaluation", found)
    done = loopwright("grouping", "evaluate", "shop", "--version", "v2")
    assert done.exit_code == 0, done.output
    assert server.asked[0][2] == {"version": ["v2"]}
    assert "one problem: 2 of 3" in done.stdout
    assert "two problems: 4 of 5" in done.stdout
    assert "not all pairs" in done.stdout
    assert "✕ “Pool empty” and “Disk full”" in done.stdout
    assert "two by a person, one by v2 (probability 0.61)" in done.stdout


def test_a_shadow_is_compared_with_the_version_in_charge(server: Server, loopwright: Run) -> None:
    difference = {"signal_id": "s1", "title": "Pool empty", "report_id": "r1", "reason": "0.71 is over", "shadow_report_id": None,
                  "shadow_reason": "nothing near", "at": "2026-11-26T10:00:00Z"}  # fmt: skip
    found = {"version": "v1", "shadow": "v2", "since": "2026-11-26T09:00:00Z", "agreed": 37, "differed": 3, "differences": [difference]}
    server.answer("GET", "/v1/projects/shop/grouping/shadow", found)
    said = loopwright("grouping", "shadow", "shop").stdout
    assert "37 decided alike, 3 otherwise (7.5% differed)" in said
    assert "v1: r1: 0.71 is over" in said
    assert "v2: a new report: nothing near" in said
    server.answer("GET", "/v1/projects/shop/grouping/shadow", found | {"shadow": ""})
    assert "v1 decides alone" in loopwright("grouping", "shadow", "shop").stdout


def test_a_grouping_that_does_not_answer_is_exit_code_5(server: Server, loopwright: Run) -> None:
    server.answer("GET", "/v1/projects/shop/grouping/evaluation", {"title": "Unavailable", "detail": "The grouping does not answer."}, 503)
    assert loopwright("grouping", "evaluate", "shop").exit_code == 5
