"""Tokens and browser sessions, kept as hashes."""

from __future__ import annotations

import hmac
from datetime import datetime

from loopwright_common.auth import hash_token, new_token
from loopwright_common.identifiers import new_id
from sqlalchemy import delete, select, update

from loopwright_gateway.adapters import tables as t
from loopwright_gateway.adapters.store import SqlStore
from loopwright_gateway.ports import Account

OPERATOR = "operator"


class SqlAccounts:
    """Implements ports.Accounts. ``operator_token`` is the first administrator's, from the settings."""

    def __init__(self, store: SqlStore, operator_token: str = "") -> None:
        self._store = store
        self._operator = hash_token(operator_token) if operator_token else ""

    async def find(self, token: str, now: datetime) -> Account | None:
        """Who the token stands for; None when it is unknown, revoked or expired."""
        sha256 = hash_token(token)
        if self._operator and hmac.compare_digest(sha256, self._operator):
            return Account(OPERATOR, OPERATOR, "admin")
        c = t.tokens.c
        statement = select(c.id, c.name, c.role, c.expires_at).where(c.sha256 == sha256, c.revoked_at.is_(None))
        async with self._store.read() as connection:
            row = (await connection.execute(statement)).first()
        if row is None or (row[3] is not None and row[3] <= t.to_instant(now)):
            return None
        return Account(row[0], row[1], row[2])

    async def create(self, name: str, role: str, now: datetime, expires_at: datetime | None, prefix: str) -> tuple[str, str]:
        """(id, token). The token is told this once. Sessions that ran out are cleared away at the same time."""
        token, token_id = new_token(prefix), new_id()
        values = {
            "id": token_id, "name": name, "role": role, "sha256": hash_token(token), "created_at": t.to_instant(now),
            "expires_at": t.to_instant(expires_at) if expires_at else None, "revoked_at": None,
        }  # fmt: skip
        async with self._store.transaction() as unit:
            await unit.execute(delete(t.tokens).where(t.tokens.c.expires_at.is_not(None), t.tokens.c.expires_at <= t.to_instant(now)))
            await unit.execute(t.tokens.insert().values(values))
        return token_id, token

    async def revoke(self, token_id: str, now: datetime) -> bool:
        """Ends a session, or a token and with it every browser session of its name: none outlives the token that opened it."""
        c = t.tokens.c
        async with self._store.transaction() as unit:
            revoked = update(t.tokens).where(c.revoked_at.is_(None)).values(revoked_at=t.to_instant(now))
            if await unit.execute(revoked.where(c.id == token_id)) != 1:
                return False
            named = select(c.name).where(c.id == token_id, c.expires_at.is_(None)).scalar_subquery()
            await unit.execute(revoked.where(c.expires_at.is_not(None), c.name == named))
            return True
