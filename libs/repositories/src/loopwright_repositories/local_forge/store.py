"""What the forge knows beside git: repositories, pull requests, comments, checks, and webhooks still to deliver. SQLite, one process.

A webhook is written in the same transaction as the fact it tells, so that a crash loses neither or both.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE repositories (
    name TEXT PRIMARY KEY, default_branch TEXT NOT NULL, source TEXT NOT NULL, created_at TEXT NOT NULL
) STRICT;
CREATE TABLE pulls (
    repository TEXT NOT NULL REFERENCES repositories(name), number INTEGER NOT NULL, title TEXT NOT NULL, body TEXT NOT NULL,
    head TEXT NOT NULL, base TEXT NOT NULL, head_commit TEXT NOT NULL, base_commit TEXT NOT NULL,
    draft INTEGER NOT NULL, state TEXT NOT NULL CHECK (state IN ('open', 'merged', 'closed')),
    merge_commit TEXT, merged_by TEXT NOT NULL DEFAULT '', merged_at TEXT, closed_by TEXT NOT NULL DEFAULT '', closed_at TEXT,
    -- What a merge is about to do, written before the ref moves: a crash in between is finished from it at the next read.
    intent_commit TEXT, intent_by TEXT,
    created_at TEXT NOT NULL, updated_at TEXT NOT NULL,
    PRIMARY KEY (repository, number)
) STRICT;
CREATE UNIQUE INDEX one_open_pull_per_head ON pulls (repository, head, base) WHERE state = 'open';
CREATE TABLE comments (
    id INTEGER PRIMARY KEY AUTOINCREMENT, repository TEXT NOT NULL, number INTEGER NOT NULL, author TEXT NOT NULL, body TEXT NOT NULL,
    key TEXT NOT NULL, created_at TEXT NOT NULL, FOREIGN KEY (repository, number) REFERENCES pulls (repository, number)
) STRICT;
CREATE UNIQUE INDEX one_comment_per_key ON comments (repository, number, key) WHERE key <> '';
CREATE TABLE checks (
    repository TEXT NOT NULL, commit_id TEXT NOT NULL, name TEXT NOT NULL, status TEXT NOT NULL, conclusion TEXT, summary TEXT NOT NULL,
    updated_at TEXT NOT NULL, PRIMARY KEY (repository, commit_id, name)
) STRICT;
CREATE TABLE deliveries (
    id INTEGER PRIMARY KEY AUTOINCREMENT, event TEXT NOT NULL, payload TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
    due_at TEXT NOT NULL, failed_reason TEXT NOT NULL DEFAULT ''
) STRICT;
"""
COMMENTS_PER_PULL_MAX = 1_000
CHECKS_PER_COMMIT_MAX = 100
PULLS_LISTED_MAX = 100


class Full(Exception):
    """A bounded table has no room; the message names the limit."""


@dataclass(frozen=True)
class Delivery:
    """A webhook to send."""

    id: int
    event: str
    payload: str
    attempts: int
    due_at: datetime


class ForgeStore:
    """Synchronous and thread-safe; every write is on disk (``synchronous=FULL``) when its method returns."""

    def __init__(self, path: Path, *, webhooks: bool = False, backlog_max: int = 1_000) -> None:
        self._lock = threading.RLock()
        self._webhooks = webhooks
        self._backlog_max = backlog_max
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10.0)
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("PRAGMA foreign_keys=ON")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            self._db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
        elif version != SCHEMA_VERSION:
            raise ValueError(f"{path} has schema {version}; this program knows {SCHEMA_VERSION}: use the version that wrote it")

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _rows(self, query: str, *arguments: Any) -> list[dict[str, Any]]:
        with self._lock:
            return [dict(row) for row in self._db.execute(query, arguments).fetchall()]

    # Repositories

    def repository(self, name: str) -> dict[str, Any] | None:
        found = self._rows("SELECT * FROM repositories WHERE name = ?", name)
        return found[0] if found else None

    def repositories(self, limit: int = 1_000) -> list[dict[str, Any]]:
        return self._rows("SELECT * FROM repositories ORDER BY name LIMIT ?", limit)

    def add_repository(self, name: str, default_branch: str, source: str, now: datetime) -> None:
        with self._transaction() as db:
            db.execute("INSERT OR IGNORE INTO repositories VALUES (?, ?, ?, ?)", (name, default_branch, source, now.isoformat()))

    # Pull requests

    def pull(self, repository: str, number: int) -> dict[str, Any] | None:
        found = self._rows("SELECT * FROM pulls WHERE repository = ? AND number = ?", repository, number)
        return found[0] if found else None

    def pulls(self, repository: str, *, head: str = "", state: str = "", limit: int = PULLS_LISTED_MAX) -> list[dict[str, Any]]:
        return self._rows(
            "SELECT * FROM pulls WHERE repository = ? AND (? = '' OR head = ?) AND (? = '' OR state = ?) ORDER BY number DESC LIMIT ?",
            repository, head, head, state, state, limit,
        )  # fmt: skip

    def open_pull(self, repository: str, wish: dict[str, Any], now: datetime) -> tuple[int, bool]:
        """The number of the open pull request of this head and base, and whether it was made now."""
        with self._transaction() as db:
            found = db.execute(
                "SELECT number FROM pulls WHERE repository = ? AND head = ? AND base = ? AND state = 'open'",
                (repository, wish["head"], wish["base"]),
            ).fetchone()
            if found is not None:
                return int(found[0]), False
            number = int(db.execute("SELECT COALESCE(MAX(number), 0) + 1 FROM pulls WHERE repository = ?", (repository,)).fetchone()[0])
            at = now.isoformat()
            db.execute(
                "INSERT INTO pulls (repository, number, title, body, head, base, head_commit, base_commit, draft, state,"
                " created_at, updated_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'open', ?, ?)",
                (repository, number, wish["title"], wish["body"], wish["head"], wish["base"], wish["head_commit"], wish["base_commit"],
                 int(wish["draft"]), at, at),
            )  # fmt: skip
            return number, True

    def edit_pull(self, repository: str, number: int, now: datetime, **changed: str | int) -> None:
        """Changes title, body, draft, head_commit, base_commit, intent_commit or intent_by."""
        allowed = {"title", "body", "draft", "head_commit", "base_commit", "intent_commit", "intent_by"}
        assert changed.keys() <= allowed
        columns = ", ".join(f"{column} = ?" for column in changed)
        with self._transaction() as db:
            db.execute(
                f"UPDATE pulls SET {columns}, updated_at = ? WHERE repository = ? AND number = ?",  # noqa: S608 (names are ours)
                (*changed.values(), now.isoformat(), repository, number),
            )

    def mark_merged(self, repository: str, number: int, merge_commit: str, merged_by: str, now: datetime) -> None:
        """Records a merge, once, with its webhook."""
        with self._transaction() as db:
            done = db.execute(
                "UPDATE pulls SET state = 'merged', draft = 0, merge_commit = ?, merged_by = ?, merged_at = ?, updated_at = ?,"
                " intent_commit = NULL, intent_by = NULL WHERE repository = ? AND number = ? AND state = 'open'",
                (merge_commit, merged_by, now.isoformat(), now.isoformat(), repository, number),
            )
            if done.rowcount:
                self._enqueue(db, "merged", {"repository": repository, "number": number}, now)

    def mark_closed(self, repository: str, number: int, closed_by: str, now: datetime) -> None:
        """Records a close, once, with its webhook."""
        with self._transaction() as db:
            done = db.execute(
                "UPDATE pulls SET state = 'closed', closed_by = ?, closed_at = ?, updated_at = ?"
                " WHERE repository = ? AND number = ? AND state = 'open'",
                (closed_by, now.isoformat(), now.isoformat(), repository, number),
            )
            if done.rowcount:
                self._enqueue(db, "closed", {"repository": repository, "number": number}, now)

    # Comments and checks

    def add_comment(self, repository: str, number: int, author: str, body: str, key: str, now: datetime) -> dict[str, Any]:
        """The comment; the first one where ``key`` was used before. Raises Full."""
        with self._transaction() as db:
            if key:
                found = db.execute(
                    "SELECT * FROM comments WHERE repository = ? AND number = ? AND key = ?", (repository, number, key)
                ).fetchone()
                if found is not None:
                    return dict(found)
            count = db.execute("SELECT COUNT(*) FROM comments WHERE repository = ? AND number = ?", (repository, number)).fetchone()[0]
            if count >= COMMENTS_PER_PULL_MAX:
                raise Full(f"pull request {number} has {count} comments; the limit is {COMMENTS_PER_PULL_MAX}")
            made = db.execute(
                "INSERT INTO comments (repository, number, author, body, key, created_at) VALUES (?, ?, ?, ?, ?, ?)",
                (repository, number, author, body, key, now.isoformat()),
            )
            self._enqueue(db, "comment", {"repository": repository, "number": number, "comment": made.lastrowid}, now)
            return dict(db.execute("SELECT * FROM comments WHERE id = ?", (made.lastrowid,)).fetchone())

    def comments(self, repository: str, number: int) -> list[dict[str, Any]]:
        return self._rows("SELECT * FROM comments WHERE repository = ? AND number = ? ORDER BY id", repository, number)

    def comment(self, comment_id: int) -> dict[str, Any] | None:
        found = self._rows("SELECT * FROM comments WHERE id = ?", comment_id)
        return found[0] if found else None

    def set_check(self, repository: str, commit: str, name: str, status: str, conclusion: str | None, summary: str, now: datetime) -> None:
        """Makes or replaces a check. Raises Full."""
        with self._transaction() as db:
            others = db.execute(
                "SELECT COUNT(*) FROM checks WHERE repository = ? AND commit_id = ? AND name <> ?", (repository, commit, name)
            ).fetchone()[0]
            if others >= CHECKS_PER_COMMIT_MAX:
                raise Full(f"commit {commit[:12]} has {others} checks; the limit is {CHECKS_PER_COMMIT_MAX}")
            db.execute(
                "INSERT OR REPLACE INTO checks VALUES (?, ?, ?, ?, ?, ?, ?)",
                (repository, commit, name, status, conclusion, summary, now.isoformat()),
            )

    def checks(self, repository: str, commit: str) -> list[dict[str, Any]]:
        return self._rows(
            "SELECT name, status, conclusion, summary, updated_at FROM checks WHERE repository = ? AND commit_id = ? ORDER BY name",
            repository, commit,
        )  # fmt: skip

    # Webhooks

    def _enqueue(self, db: sqlite3.Connection, event: str, payload: dict[str, Any], now: datetime) -> None:
        if not self._webhooks:
            return
        waiting = db.execute("SELECT COUNT(*) FROM deliveries WHERE failed_reason = ''").fetchone()[0]
        if waiting >= self._backlog_max:
            # The facts themselves stay readable over the API; what is given up is said on the delivery.
            db.execute("UPDATE deliveries SET failed_reason = 'given up: the backlog is full' WHERE id = (SELECT MIN(id) FROM deliveries"
                       " WHERE failed_reason = '')")  # fmt: skip
        db.execute("INSERT INTO deliveries (event, payload, due_at) VALUES (?, ?, ?)", (event, json.dumps(payload), now.isoformat()))
        # What failed for good is kept for a person to see, up to the same limit.
        db.execute(
            "DELETE FROM deliveries WHERE failed_reason <> '' AND id NOT IN (SELECT id FROM deliveries WHERE failed_reason <> ''"
            " ORDER BY id DESC LIMIT ?)",
            (self._backlog_max,),
        )

    def due_delivery(self) -> Delivery | None:
        """The oldest webhook that still has to go out: they go in order, so a later fact never overtakes an earlier one."""
        found = self._rows("SELECT * FROM deliveries WHERE failed_reason = '' ORDER BY id LIMIT 1")
        if not found:
            return None
        row = found[0]
        return Delivery(row["id"], row["event"], row["payload"], row["attempts"], datetime.fromisoformat(row["due_at"]).astimezone(UTC))

    def delivered(self, delivery_id: int) -> None:
        with self._transaction() as db:
            db.execute("DELETE FROM deliveries WHERE id = ?", (delivery_id,))

    def not_delivered(self, delivery_id: int, due_at: datetime, failed_reason: str = "") -> None:
        """Counts an attempt; with ``failed_reason`` it is given up."""
        with self._transaction() as db:
            db.execute(
                "UPDATE deliveries SET attempts = attempts + 1, due_at = ?, failed_reason = ? WHERE id = ?",
                (due_at.isoformat(), failed_reason, delivery_id),
            )

    def failed_deliveries(self, limit: int = 100) -> list[dict[str, Any]]:
        return self._rows("SELECT * FROM deliveries WHERE failed_reason <> '' ORDER BY id DESC LIMIT ?", limit)
