"""Tells one receiver of merges, closes and comments: signed, in order, retried with growing delay, given up with a reason.

The signature is GitHub's: ``X-Hub-Signature-256: sha256=<HMAC-SHA256 of the body in hexadecimal>``
("Validating webhook deliveries", GitHub Docs).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import httpx
from loopwright_common.clock import Clock

from loopwright_repositories.local_forge.problems import Problem
from loopwright_repositories.local_forge.pulls import Pulls
from loopwright_repositories.local_forge.settings import ForgeSettings
from loopwright_repositories.local_forge.store import Delivery, ForgeStore

FIRST_DELAY = timedelta(seconds=1)
MOST_DELAY = timedelta(minutes=5)
TIMEOUT_SECONDS = 10.0
POLL_SECONDS = 0.2  # the table is on the same disk and usually empty
_log = logging.getLogger(__name__)


@dataclass
class Webhooks:
    """Sends what the store's outbox holds."""

    settings: ForgeSettings
    store: ForgeStore
    pulls: Pulls
    clock: Clock
    _task: asyncio.Task[None] | None = field(default=None, init=False)

    def start(self) -> None:
        if self.settings.webhook_url is not None:
            self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS, trust_env=False) as http:
            while True:
                try:
                    waiting = await self._one(http)
                except Exception:  # the outbox keeps the delivery; the loop must live
                    _log.exception("webhook delivery failed unexpectedly")
                    waiting = True
                if waiting:
                    await asyncio.sleep(POLL_SECONDS)

    async def _one(self, http: httpx.AsyncClient) -> bool:
        """Sends the oldest delivery when it is due; True when there is nothing to do now."""
        delivery = await asyncio.to_thread(self.store.due_delivery)
        if delivery is None or delivery.due_at > self.clock.now():
            return True
        reason = await self._send(http, delivery)
        if not reason:
            await asyncio.to_thread(self.store.delivered, delivery.id)
            return False
        given_up = delivery.attempts + 1 >= self.settings.webhook_attempts_max
        delay = min(FIRST_DELAY * 2**delivery.attempts, MOST_DELAY)
        await asyncio.to_thread(self.store.not_delivered, delivery.id, self.clock.now() + delay, reason if given_up else "")
        _log.warning("webhook %s not delivered (attempt %d): %s", delivery.id, delivery.attempts + 1, reason)
        return False

    async def _send(self, http: httpx.AsyncClient, delivery: Delivery) -> str:
        """The reason why it was not taken; empty when it was."""
        try:
            body = json.dumps(await self._payload(delivery)).encode()
        except Problem as error:
            return f"cannot be told any more: {error.detail}"
        secret = self.settings.webhook_secret
        assert secret is not None
        signature = hmac.new(secret.get_secret_value().encode(), body, hashlib.sha256).hexdigest()
        headers = {
            "Content-Type": "application/json",
            "X-Hub-Signature-256": f"sha256={signature}",
            "X-Loopwright-Event": delivery.event,
            "X-Loopwright-Delivery": str(delivery.id),
        }
        try:
            answer = await http.post(str(self.settings.webhook_url), content=body, headers=headers)
        except httpx.HTTPError as error:
            return f"{type(error).__name__}: {error}"[:500]
        return "" if answer.is_success else f"the receiver answered {answer.status_code}"

    async def _payload(self, delivery: Delivery) -> dict[str, Any]:
        about = json.loads(delivery.payload)
        pull = await self.pulls.get(about["repository"], about["number"])
        payload: dict[str, Any] = {
            "event": delivery.event, "delivery": delivery.id, "repository": about["repository"],
            "pull_request": pull.model_dump(mode="json"),
        }  # fmt: skip
        if "comment" in about:
            payload["comment"] = await asyncio.to_thread(self.store.comment, about["comment"])
        return payload
