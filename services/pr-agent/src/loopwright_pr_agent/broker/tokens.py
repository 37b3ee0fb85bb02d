"""A run's token: made from the service's key, so that a service which begins anew knows its runs, and bound to one try of one run."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass

from loopwright_common.bus import Conflict, KeyValue

PREFIX = "lwrun"
SECRET_KEY, SECRET_BYTES = "broker-secret", 32
_FORM = re.compile(r"^lwrun_([0-9a-f]{20})_([0-9]{1,6})_([0-9a-f]{64})$")


@dataclass(frozen=True)
class Bearer:
    """Whose token it is, once the signature has been found right."""

    run: str
    generation: int


class Tokens:
    """Makes and checks what only this service can make."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) < SECRET_BYTES:
            raise ValueError(f"the key has {len(secret)} bytes; {SECRET_BYTES} are the least")
        self._secret = secret

    def token(self, run: str, generation: int) -> str:
        return f"{PREFIX}_{run}_{generation}_{self._sign('token', run, str(generation))}"

    def claim(self, run: str, generation: int) -> str:
        """What a Job carries to show that this service made it. It opens nothing."""
        return self._sign("claim", run, str(generation))[:40]

    def read(self, token: str) -> Bearer | None:
        """Whose it is; None for anything that was not made here. The comparison takes the same time wherever it differs."""
        found = _FORM.match(token)
        run, generation, signature = (found[1], found[2], found[3]) if found else ("0" * 20, "0", "0" * 64)
        right = hmac.compare_digest(self._sign("token", run, generation), signature)
        return Bearer(run, int(generation)) if found and right else None

    def _sign(self, *parts: str) -> str:
        return hmac.new(self._secret, "\0".join(parts).encode(), hashlib.sha256).hexdigest()


async def open_tokens(configured: str, bucket: KeyValue) -> Tokens:
    """By the configured key; without one by a key that is made once and kept in this service's bucket."""
    if configured:
        return Tokens(configured.encode())
    for _ in range(5):
        entry = await bucket.get(SECRET_KEY)
        if entry is not None and entry.value:
            return Tokens(entry.value)
        try:
            await bucket.create(SECRET_KEY, secrets.token_hex(SECRET_BYTES).encode())
        except Conflict:
            continue
    raise Conflict(f"the key of the broker's tokens cannot be kept in the bucket ({SECRET_KEY})")
