"""What likeness never joins, since the fingerprints have told it apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopwright_cluster.domain import Exemplar
from loopwright_cluster.grouping.apart import told_apart

STACK = ("a:go", "b:pay", "c:price", "d:convert")


def exemplar(kind="exception", service="web", type_="KeyError", frames=STACK):
    return Exemplar("shop", "f", "", "s", kind, service, 0.0, "t", "t", exception_type=type_, frames=tuple(frames))


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"type_": "ValueError"}, "one is a KeyError, the other a ValueError"),
        ({"frames": (*STACK[:3], "d:round")}, "one was raised in d:convert"),
        ({"frames": ("x:x", "y:y", "z:z", STACK[3])}, "6 functions"),
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


def test_lines_of_one_service_are_apart_and_those_of_two_are_not_judged_here():
    line = exemplar("log", frames=(), type_="")
    assert told_apart(line, exemplar("log", frames=(), type_=""))
    assert told_apart(line, exemplar("log", service="jobs", frames=(), type_="")) == ""


made = st.builds(
    exemplar, st.sampled_from(["exception", "log", "ticket"]), st.sampled_from(["a", "b"]), st.sampled_from(["", "A", "B"]),
    st.lists(st.sampled_from(["a:a", "b:b", "c:<min>", "d:d"]), max_size=5),
)  # fmt: skip


@given(made, made)
def test_it_does_not_matter_which_came_first(one, other):
    assert told_apart(one, other) == told_apart(other, one)
