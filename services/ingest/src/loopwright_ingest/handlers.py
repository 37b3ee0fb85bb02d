"""What a request becomes: read, understood, made durable, answered."""

from __future__ import annotations

from datetime import datetime

from loopwright_common.bus import Ack, Outgoing
from loopwright_common.clock import Clock
from loopwright_common.contracts.signals import Deploy, Exposure, Signal
from loopwright_common.contracts.subjects import DEPLOYS, EXPOSURES, SIGNALS
from loopwright_common.errors import LoopwrightError
from loopwright_common.problems import FieldError, ProblemError
from prometheus_client import Counter

from loopwright_ingest.admission import Admission
from loopwright_ingest.domain import Drop, Sender, Understood
from loopwright_ingest.gather import Gatherer
from loopwright_ingest.sources import http, sentry

# Outcomes: accepted, duplicate, rejected (not what it should be), dropped (understood and not used), refused (over the project's rate),
# unavailable (the bus did not take it).
ITEMS = Counter("loopwright_ingest_items", "Items by source and outcome.", ["source", "outcome"])
SIGNAL_BYTES_MAX = 768 * 1024  # the bus takes a message of 1 MiB, and one that is too large would fail its whole request
SERVICE_OF_EXPOSURE = "unknown"  # a subject needs a token where a client names no service


class Intake:
    """The ways in. Each returns once what was accepted is durable."""

    def __init__(self, admission: Admission, gatherer: Gatherer, clock: Clock) -> None:
        self._admission = admission
        self._gatherer = gatherer
        self._clock = clock

    def now(self) -> datetime:
        return self._clock.now()

    async def signals(self, items: list[object], sender: Sender) -> http.SignalsAnswer:
        """Takes posted signals; each item has its own outcome."""
        self._spend("http", sender, len(items))
        now = self.now()
        results: list[http.ItemResult] = []
        good: list[tuple[int, Signal]] = []
        for index, item in enumerate(items):
            found = http.understand(item, sender, now)
            if isinstance(found, Signal) and (size := len(found.model_dump_json())) > SIGNAL_BYTES_MAX:
                found = [FieldError(pointer="/", detail=f"the signal has {size} bytes; at most {SIGNAL_BYTES_MAX} are kept")]
            if isinstance(found, Signal):
                good.append((index, found))
            else:
                results.append(http.ItemResult(index=index, outcome="rejected", errors=_within(found)))
        acks = await self._submit("http", [_signal(signal) for _, signal in good]) if good else []
        for (index, signal), ack in zip(good, acks, strict=True):
            results.append(http.ItemResult(index=index, outcome="duplicate" if ack.duplicate else "accepted", id=signal.id))
        results.sort(key=lambda result: result.index)
        counts = {outcome: sum(result.outcome == outcome for result in results) for outcome in ("accepted", "duplicate", "rejected")}
        for outcome, count in counts.items():
            ITEMS.labels("http", outcome).inc(count)
        return http.SignalsAnswer(accepted=counts["accepted"], duplicates=counts["duplicate"], rejected=counts["rejected"], results=results)

    def _spend(self, source: str, sender: Sender, items: int) -> None:
        try:
            self._admission.spend(sender, items)
        except ProblemError:
            ITEMS.labels(source, "refused").inc(items)
            raise

    async def _submit(self, source: str, messages: list[Outgoing]) -> list[Ack]:
        try:
            return await self._gatherer.submit(messages)
        except LoopwrightError:
            ITEMS.labels(source, "unavailable").inc(len(messages))
            raise

    async def sentry(self, items: list[sentry.Item], sender: Sender, sent_at: str = "") -> Understood:
        """Takes an envelope's items."""
        found = sentry.understand(items, sender, self.now(), sent_at)
        for signal in [signal for signal in found.signals if len(signal.model_dump_json()) > SIGNAL_BYTES_MAX]:
            found.signals.remove(signal)
            found.drops.append(Drop("event", f"over {SIGNAL_BYTES_MAX} bytes as a signal"))
        self._spend("sentry", sender, max(1, len(found.signals)))
        messages = [_signal(signal) for signal in found.signals] + [_exposure(item) for item in found.exposures]
        if messages:
            acks = await self._submit("sentry", messages)
            for ack in acks[: len(found.signals)]:
                ITEMS.labels("sentry", "duplicate" if ack.duplicate else "accepted").inc()
        self._admission.record(sender.name, found.drops)
        ITEMS.labels("sentry", "dropped").inc(len(found.drops))
        return found

    async def deploy(self, deploy: Deploy) -> Ack:
        message = Outgoing(DEPLOYS, deploy, f"deploy:{deploy.id}", {"project": deploy.project, "service": deploy.service}, deploy.id)
        (ack,) = await self._submit("deploy", [message])
        ITEMS.labels("deploy", "duplicate" if ack.duplicate else "accepted").inc()
        return ack

    async def exposure(self, items: list[Exposure]) -> list[Ack]:
        acks = await self._submit("exposure", [_exposure(item) for item in items])
        for ack in acks:
            ITEMS.labels("exposure", "duplicate" if ack.duplicate else "accepted").inc()
        return acks


def _signal(signal: Signal) -> Outgoing:
    tokens = {"project": signal.project, "source": signal.source}
    return Outgoing(SIGNALS, signal, f"signal:{signal.project}:{signal.id}", tokens, signal.id)


def _exposure(item: Exposure) -> Outgoing:
    # Clients name services as they like; the subject takes one token.
    token = "".join(character if (character.isalnum() and character.isascii()) or character in "-_" else "-" for character in item.service)
    tokens = {"project": item.project, "service": token or SERVICE_OF_EXPOSURE}
    return Outgoing(EXPOSURES, item, f"exposure:{item.id}", tokens, item.id)


def _within(errors: list[FieldError]) -> list[FieldError]:
    return errors[:20]
