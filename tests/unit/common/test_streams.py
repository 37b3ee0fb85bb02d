"""Patterns that overlap, and configurations that fit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopwright_common.nats_bus.streams import overlap
from loopwright_common.testing.memory_bus import matches

TOKENS = st.sampled_from(["a", "b", "*"])
PATTERNS = st.builds(
    lambda tokens, rest: ".".join([*tokens, *rest]), st.lists(TOKENS, min_size=1, max_size=3), st.sampled_from([[], [">"]])
)
SUBJECTS = st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=4).map(".".join)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("a.*.*", "a.*.old", True),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        ("a.*", "a.b.c", False),
        ("a.b", "a.c", False),
        (">", "x.y", True),
    ],
)
def test_overlap_is_what_the_server_refuses(one: str, other: str, expected: bool) -> None:
    assert overlap(one, other) is expected
    assert overlap(other, one) is expected


@given(PATTERNS, PATTERNS, SUBJECTS)
def test_a_subject_that_matches_both_makes_them_overlap(one: str, other: str, subject: str) -> None:
    if matches(one, subject) and matches(other, subject):
        assert overlap(one, other)
