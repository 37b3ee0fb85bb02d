"""What likeness never joins, since the fingerprints have told it apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopwright_cluster.domain import FRAMES_KEPT, Exemplar
from loopwright_cluster.grouping.apart import told_apart
from loopwright_cluster.grouping.describe import describe
from loopwright_cluster.grouping.fingerprints import fingerprint

STACK = ("a:go", "b:pay", "c:price", "d:convert")


def exemplar(kind="exception", service="web", type_="KeyError", frames=STACK):
    return Exemplar("shop", "f", "", "s", kind, service, 0.0, "t", "t", exception_type=type_, frames=tuple(frames))


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"type_": "ValueError"}, "one is a KeyError, the other a ValueError"),
        ({"frames": (*STACK[:3], "d:round")}, "one was raised in d:convert"),
        ({"frames": ("x:x", "y:y", "z:z", *STACK)}, "3 functions"),
        ({"frames": ("x:x", "y:y", "z:z", STACK[3])}, "a:go where the other goes through x:x"),
        ({"frames": (STACK[0], "b:retry", *STACK[2:])}, "b:pay where the other goes through b:retry"),
        ({"frames": ("main.*.js:<min>",)}, "no names"),
        ({"kind": "log", "frames": (*STACK[:3], "d:round")}, "one was raised in"),
    ],
)
def test_stacks_that_differ_in_what_counts_are_apart(other, why):
    assert why in told_apart(exemplar(), exemplar(**other))


@pytest.mark.parametrize(
    "other",
    [
        {"frames": (STACK[0], "r:guard", *STACK[1:])},
        {"frames": STACK[1:]},
        {"type_": ""},
        {"kind": "ticket", "frames": (), "type_": ""},
        {"kind": "log", "frames": (), "type_": ""},
    ],
)
def test_a_layer_in_between_and_other_kinds_of_signal_leave_it_open(other):
    assert told_apart(exemplar(), exemplar(**other)) == ""


def test_another_caller_keeps_long_stacks_apart_however_much_they_share():
    stack = tuple(f"m{number}:f{number}" for number in range(12))
    assert "goes through" in told_apart(exemplar(frames=stack), exemplar(frames=(*stack[:5], "m5:other", *stack[6:])))


def test_a_layer_in_a_stack_that_is_cut_pushes_out_a_caller_and_takes_none_away():
    stack = tuple(f"m{number}:f{number}" for number in range(12))
    guarded = (*stack[:8], "r:guard", *stack[8:])
    assert told_apart(exemplar(frames=stack[-FRAMES_KEPT:]), exemplar(frames=guarded[-FRAMES_KEPT:])) == ""
    assert "goes through" in told_apart(exemplar(frames=stack), exemplar(frames=(*guarded[:3], "m3:other", *guarded[4:])))


def test_lines_of_one_service_are_apart_and_those_of_two_are_not_judged_here():
    line = exemplar("log", frames=(), type_="")
    assert told_apart(line, exemplar("log", frames=(), type_=""))
    assert told_apart(line, exemplar("log", service="jobs", frames=(), type_="")) == ""


def fired(make_signal, kind="alert", **labels):
    signal = make_signal(kind=kind, title="QueueBacklog", labels={"alertname": "QueueBacklog", **labels})
    return describe(signal, fingerprint(signal))


@pytest.mark.parametrize(
    ("one", "other", "why"),
    [
        ({"queue": "invoices"}, {"queue": "mails"}, "one is about queue invoices, the other about queue mails"),
        ({"service": "checkout"}, {"service": "search"}, "service checkout"),
        ({"mountpoint": "/var/lib/postgresql"}, {"mountpoint": "/backup"}, "var lib postgresql"),
        ({"job_name": "backup-28391234"}, {"job_name": "newsletter-28391240"}, "newsletter"),
    ],
)
def test_two_firings_of_one_rule_about_two_things_are_apart(one, other, why, make_signal):
    assert why in told_apart(fired(make_signal, **one), fired(make_signal, **other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"code": "502"}, {"code": "503"}), ({"quantile": "0.99", "window": "5m"}, {"quantile": "0.5", "window": "1h"}),
        ({"job_name": "backup-28391234"}, {"job_name": "backup-28392674"}),
        ({"queue": "invoices"}, {}),
        ({"alertname": "ErrorBudgetBurnFast"}, {"alertname": "ErrorBudgetBurnSlow"}),
        ({"severity": "warning"}, {"severity": "critical"}),
    ],
)  # fmt: skip
def test_two_firings_that_differ_in_a_figure_a_run_or_how_badly_are_left_open(one, other, make_signal):
    assert told_apart(fired(make_signal, **one), fired(make_signal, **other)) == ""


def test_two_checks_of_two_pages_are_apart_and_of_two_replicas_of_one_are_not(make_signal):
    def check(**labels):
        return fired(make_signal, "health_check", **labels)

    assert "check login" in told_apart(check(check="login"), check(check="search"))
    assert told_apart(check(check="up", target="http://10.0.0.7:8080/ready"), check(check="up", target="http://10.0.0.8:8080/ready")) == ""


def test_what_an_alert_is_about_is_kept_with_it_and_is_not_known_of_older_ones(make_signal):
    alert = fired(make_signal, queue="invoices", instance="10.0.0.1:9100")
    assert alert.subjects == {"queue": "invoices"}
    stored = alert.to_payload()
    assert Exemplar.from_payload(stored) == alert
    del stored["subjects"]
    assert told_apart(Exemplar.from_payload(stored), fired(make_signal, queue="mails")) == ""


made = st.builds(
    exemplar, st.sampled_from(["exception", "log", "ticket"]), st.sampled_from(["a", "b"]), st.sampled_from(["", "A", "B"]),
    st.lists(st.sampled_from(["a:a", "b:b", "c:<min>", "d:d"]), max_size=5),
)  # fmt: skip


@given(made, made)
def test_it_does_not_matter_which_came_first(one, other):
    assert told_apart(one, other) == told_apart(other, one)
