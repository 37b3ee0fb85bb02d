"""Holds the product to its word: what it accepted is counted, once, whatever happens meanwhile."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from loopwright_cli.client import Api, ApiFailed

EVERY_SECONDS = 0.25
AUDIT = "audit"  # the project of the integrator below


def begin(gateway: Api) -> str:
    """Declares the audit's project, which is never promoted: it only counts. Gives a key that may post to it."""
    gateway.put(f"/v1/projects/{AUDIT}", {"name": AUDIT, "services": [{"name": "parcels"}], "promotion": {"minimum_weight": 1e9}})
    key = gateway.post(f"/v1/projects/{AUDIT}/keys", {"scopes": ["signals:write"], "service": "", "label": "audit"})
    return str(key["secret"])


@dataclass
class Integrator:
    """Posts tickets of its own all the while, each until it is taken, some twice. Their project is never promoted: it only counts."""

    url: str
    key: str
    rng: random.Random
    prefix: str = ""
    accepted: set[str] = field(default_factory=set)
    refusals: Counter[int] = field(default_factory=Counter)
    _over: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join(60)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        api, number = Api(self.url, self.key), 0
        while not self._over.wait(EVERY_SECONDS):
            number += 1
            ticket = {
                "id": f"{self.prefix}ticket-{number}",
                "kind": "ticket",
                "title": f"Parcel {self.rng.choice('abcdef')} came late",
                "service": "parcels",
            }
            for _ in range(2 if self.rng.random() < 0.2 else 1):
                self._post(api, ticket)

    def _post(self, api: Api, ticket: dict[str, Any]) -> None:
        for _ in range(300):
            try:
                result = api.post("/v1/signals", ticket)["results"][0]
            except ApiFailed as error:
                self.refusals[error.status] += 1
                time.sleep(0.1)
                continue
            assert result["outcome"] in ("accepted", "duplicate"), result
            self.accepted.add(ticket["id"])
            return


def counted(api: Api, project: str) -> int:
    """The signals that the reports of a project count. A report's own verdict is on it, and not counted as an occurrence."""
    rows = list(api.pages("/v1/reports", 1_000, project=project))
    return sum(sum(row["kinds"].values()) for row in rows)


def await_counted(api: Api, project: str, wanted: int, seconds: float) -> None:
    """Returns when exactly ``wanted`` signals are counted. A gateway that is being replaced is asked again."""
    until, seen = time.monotonic() + seconds, -1
    while seen != wanted:
        assert seen < wanted, f"{seen} signals are counted of {wanted}: some twice"
        assert time.monotonic() < until, f"{seen} of {wanted} accepted signals were counted within {seconds:g} s"
        try:
            seen = counted(api, project)
        except ApiFailed as error:
            if error.status not in (0, 502, 503):
                raise
        time.sleep(0.5)
