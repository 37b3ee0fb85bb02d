"""Takes credentials out of text before it leaves the process: for a model, a log, a pull request.

Patterns of the published token formats (GitHub, GitLab, AWS, Slack, Google, OpenAI-like keys, JWT, PEM), credentials in URLs, and
assignments to names that say what they hold. It errs on the side of taking too much.
"""

from __future__ import annotations

import re

REDACTED = "[redacted]"

_WHOLE = re.compile(
    r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.{0,20000}?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)"
    r"|\bgh[pousr]_[A-Za-z0-9]{20,255}|\bgithub_pat_[A-Za-z0-9_]{20,255}|\bglpat-[A-Za-z0-9_-]{20,255}"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bxox[abeoprs]-[A-Za-z0-9-]{10,255}|\bAIza[A-Za-z0-9_-]{35}"
    r"|\bsk-[A-Za-z0-9_-]{16,255}"
    r"|\beyJ[A-Za-z0-9_-]{10,4096}\.eyJ[A-Za-z0-9_-]{10,4096}\.[A-Za-z0-9_-]{10,4096}",
    re.DOTALL,
)
_URL = re.compile(r"(\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@]{0,256}):([^\s/@]{1,256})@", re.IGNORECASE)
_HEADER = re.compile(
    r"(\b(?:authorization|proxy-authorization|cookie|set-cookie|x-api-key)[\"']?\s{0,4}[:=]\s{0,4}[\"']?)([^\r\n\"']{4,4096})",
    re.IGNORECASE,
)
_BEARER = re.compile(r"(\b(?:bearer|basic)\s{1,4})([A-Za-z0-9._~+/=-]{12,4096})", re.IGNORECASE)
_ASSIGNED = re.compile(
    r"(\b[A-Za-z0-9_.-]{0,64}(?:passw(?:or)?d|passphrase|secret|api[_-]?key|access[_-]?key|private[_-]?key|auth[_-]?token|access[_-]?token)"
    r"[A-Za-z0-9_-]{0,32}[\"']?\s{0,4}(?::|=>|=)\s{0,4})([\"'][^\"'\r\n]{4,1024}[\"']|[^\s\"',;(){}\[\]<>]{6,1024})",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """``text`` with credentials replaced by ``[redacted]``. Linear in its length."""
    text = _WHOLE.sub(REDACTED, text)
    text = _URL.sub(rf"\1:{REDACTED}@", text)
    text = _HEADER.sub(rf"\1{REDACTED}", text)
    text = _BEARER.sub(rf"\1{REDACTED}", text)
    return _ASSIGNED.sub(rf"\1{REDACTED}", text)
