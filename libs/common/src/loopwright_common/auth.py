"""Tokens: made once, kept only as a hash, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping

TOKEN_BYTES = 32
TOKEN_LENGTH_MAX = 256


def new_token(prefix: str) -> str:
    """A fresh random token of 256 bits, as ``<prefix>_<43 characters>``. The prefix lets secret scanners find a leaked one."""
    return f"{prefix}_{secrets.token_urlsafe(TOKEN_BYTES)}"


def new_sentry_key() -> str:
    """A DSN's public key: 32 hexadecimal digits, as Sentry SDKs expect."""
    return secrets.token_hex(16)


def hash_token(token: str) -> str:
    """The SHA-256 of a token in hexadecimal. The tokens are random and long, so a slow password hash would add nothing."""
    return hashlib.sha256(token.encode("utf-8", errors="surrogatepass")).hexdigest()


def same_token(token: str, sha256: str) -> bool:
    """Whether ``token`` is the one whose hash is kept, in constant time."""
    return hmac.compare_digest(hash_token(token), sha256)


def bearer(headers: Mapping[str, str]) -> str | None:
    """The token of an ``Authorization: Bearer`` header (RFC 6750), or None."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    token = token.strip()
    return token if scheme.lower() == "bearer" and 0 < len(token) <= TOKEN_LENGTH_MAX else None


def actor_hash(secret: bytes, project: str, actor: str) -> str:
    """A person's pseudonym within one project: HMAC-SHA-256, cut to 128 bits. Without the secret nobody can try names against it."""
    return hmac.new(secret, f"{project}\x1f{actor}".encode("utf-8", errors="surrogatepass"), hashlib.sha256).hexdigest()[:32]
