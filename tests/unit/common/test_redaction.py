"""Credentials are taken out; what is around them stays."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopwright_common.redaction import redact

SECRETS = [
    "ghp_" + "a1B2" * 9,
    "github_pat_" + "x" * 40,
    "glpat-" + "y" * 20,
    "AKIA" + "ABCD1234EFGH5678",
    "xoxb-1234567890-abcdef",
    "sk-proj-" + "z" * 30,
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcdefghijklmnop",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIB\nxyz\n-----END RSA PRIVATE KEY-----",
]


@pytest.mark.parametrize("secret", SECRETS)
def test_a_token_of_a_known_format_goes_wherever_it_stands(secret: str) -> None:
    text = redact(f"before {secret} after")

    assert secret not in text
    assert text.startswith("before ")
    assert text.endswith(" after")


@pytest.mark.parametrize(
    "text",
    [
        "password=correct-horse",
        'DB_PASSWORD: "correct-horse"',
        '{"api_key": "correct-horse"}',
        "client_secret => correct-horse",
        "Authorization: Basic correct-horse-battery",
        "curl -H 'X-Api-Key: correct-horse'",
        "amqp://user:correct-horse@queue/",
        "Cookie: session=correct-horse; other=correct-horse",
    ],
)
def test_what_a_name_says_is_a_secret_goes(text: str) -> None:
    assert "correct-horse" not in redact(text)


@pytest.mark.parametrize(
    "text", ["KeyError: 'area'", 'File "/srv/shop/app.py", line 12, in total', "e3b0c44298fc1c14 fixed the token bucket"]
)
def test_what_holds_no_secret_stays_as_it_is(text: str) -> None:
    assert redact(text) == text


@given(st.text(max_size=300))
def test_redacting_twice_is_redacting_once(text: str) -> None:
    assert redact(redact(text)) == redact(text)


def test_a_key_without_its_end_is_cut_to_the_end() -> None:
    assert redact("x -----BEGIN PRIVATE KEY-----\nMIIB\nxyz") == "x [redacted]"
