"""Whether a line holds a credential: by the shapes that issuers document, and by randomness under a secret's name. Pure."""

from __future__ import annotations

import math
import re
from collections import Counter

LINE_CHARACTERS_MAX = 16_384  # looked at; the policy's own size limit is the next bound
# Formats their issuers document, or that secret scanners publish.
SECRETS = {
    "a private key": re.compile(r"-----BEGIN (?:[A-Z]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----"),
    "an AWS access key": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a GitHub token": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{60,})\b"),
    "a GitLab token": re.compile(r"\bglpat-[A-Za-z0-9_-]{20,}"),
    "a Slack token": re.compile(r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}"),
    "a Google API key": re.compile(r"\bAIza[0-9A-Za-z_-]{35}\b"),
    "a Stripe live key": re.compile(r"\b[rs]k_live_[0-9A-Za-z]{16,}"),
    "a model provider's key": re.compile(r"\bsk-(?:proj-|ant-)[A-Za-z0-9_-]{20,}"),
    "a URL with a password": re.compile(r"\b[a-z][a-z0-9+.-]{0,20}://[^\s:/@]{1,64}:[^\s:/@]{6,256}@[^\s]+"),
}
# name = value, as code, YAML, JSON, .env and command lines write it. Values that are code (calls, interpolations) do not match to the end.
# Every repetition is bounded: a hostile line costs time in proportion to its length.
_ASSIGNED = re.compile(
    r"""(?:secret|token|passw(?:or)?d|passphrase|credential|key|auth)[A-Za-z0-9_-]{0,30}["'\]]{0,2}"""
    r"""(?:\s{0,20}:\s{0,20}[A-Za-z][A-Za-z.\[\] |]{0,30}(?==))?\s{0,20}(?:=>|:=|=|:)\s{0,20}(?P<quote>[bru]?["'`])?"""
    r"""(?P<value>[A-Za-z0-9+/_=.~!@#%^&*-]{16,512})(?:["'`]|(?=[\s,;}\]]|$))""",
    re.IGNORECASE,
)
_NAME_BEFORE = re.compile(r"[A-Za-z0-9_.-]{0,40}$")
_STRONG = re.compile(
    r"secret|token|passw|passphrase|credential|(?:api|access|private|signing|encryption|auth|account|master)[_.-]?key", re.IGNORECASE
)
_OPEN = re.compile(
    r"public|hash|digest|checksum|fingerprint|integrity|sha\d|_sum\b|idempotency|cache|sort|primary|foreign|keyboard|author", re.IGNORECASE
)
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_HASH = re.compile(r"(?:sha(?:1|256|384|512)|md5|h1)[-:=]", re.IGNORECASE)
_PLACEHOLDER = re.compile(r"example|placeholder|change[_-]?me|dummy|redacted|your[_-]|xxxx|0123456789|123456789|abcdef", re.IGNORECASE)
_WORD = re.compile(r"[A-Z]?[a-z]{3,}|[A-Z]{4,}")
# Shannon bits per character. 20 random characters of 62 have 4.0 to 4.3, 32 hexadecimal digits 3.4 to 3.9; names and words seldom exceed
# 3.5 while mixing digits in, and those that do are told by their words.
BITS_MIXED, BITS_LOWER, BITS_HEXADECIMAL = 3.5, 3.6, 3.2


def secret_in(line: str) -> str:
    """What sort of credential a line looks like; empty when like none. Never holds the credential itself."""
    text = line[:LINE_CHARACTERS_MAX]
    for what, shape in SECRETS.items():
        if shape.search(text):
            return what
    for match in _ASSIGNED.finditer(text):
        before = _NAME_BEFORE.search(text, max(0, match.start() - 40), match.start())
        name = (before[0] if before else "") + re.split(r"[^A-Za-z0-9_-]", match[0], maxsplit=1)[0]
        if _is_random(name, match["value"]):
            return f"a credential: a random value under the name {name}"
    return ""


def _is_random(name: str, value: str) -> bool:
    """Whether a value is as mixed as a generated key. Hashes, UUIDs, paths, identifiers and placeholders are not."""
    strong = bool(_STRONG.search(name))
    value = value.strip("=")
    if _OPEN.search(name) or _UUID.fullmatch(value) or _HASH.match(value) or _PLACEHOLDER.search(value):
        return False
    if not (re.search(r"[0-9]", value) and re.search(r"[A-Za-z]", value)) or value.count(".") > 2 or value.count("/") > 4:
        return False
    if sum(map(len, _WORD.findall(value))) > 0.6 * len(value):
        return False  # a name, a path, a sentence
    bits = entropy_bits(value)
    if re.fullmatch(r"[0-9a-f]+|[0-9A-F]+", value):
        return strong and len(value) >= 32 and bits >= BITS_HEXADECIMAL
    if re.search(r"[a-z]", value) and re.search(r"[A-Z]", value):
        return len(value) >= (16 if strong else 24) and bits >= BITS_MIXED + (0 if strong else 0.5)
    return strong and len(value) >= 20 and bits >= BITS_LOWER


def entropy_bits(text: str) -> float:
    """Shannon entropy in bits per character (C. E. Shannon, 1948)."""
    return -sum(count / len(text) * math.log2(count / len(text)) for count in Counter(text).values()) if text else 0.0
