"""What ingest needs of others, beside the bus."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol


@dataclass(frozen=True)
class ProbeAnswer:
    """What an address answered: the status and the start of the body, or why there was no answer."""

    status: int | None
    excerpt: str
    error: str = ""


class Prober(Protocol):
    """Asks an address once. Adapter: ``adapters.http_prober.HttpProber``."""

    async def ask(self, url: str, timeout: timedelta) -> ProbeAnswer: ...
