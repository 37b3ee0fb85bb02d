"""Dead letters: what no attempt could handle, kept with its reason in the stream DEAD."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any

from loopwright_common.bus import Ack, BusUnavailable, DeadLetter
from loopwright_common.deliveries import REPLAY_FOR, RawMessage
from loopwright_common.errors import NotFound
from loopwright_common.identifiers import derived_id
from loopwright_common.nats_bus.connection import ApiError, Connection
from loopwright_common.nats_bus.publishing import Prepared, Publisher

STREAM = "DEAD"
ABOUT = "Loopwright-Dead"  # JSON: where it came from and why it is here; the original's headers are beside it
HEADERS_BYTES = 512  # names of the headers, the id, line ends


class DeadLetters:
    """Buries, lists, replays, discards."""

    def __init__(self, connection: Connection, publisher: Publisher) -> None:
        self._connection = connection
        self._publisher = publisher

    async def bury(self, consumer: str, message: RawMessage, reason: str) -> None:
        """Stores it under an id of its own: burying it twice is once. Raises BusUnavailable."""
        about = {
            "subject": message.subject,
            "stream": message.stream,
            "consumer": consumer,
            "reason": reason,
            "attempts": message.attempt,
            "headers": message.headers,
        }
        identifier = derived_id("dead", message.stream, consumer, str(message.sequence), message.headers.get("Nats-Msg-Id", ""))
        room = self._connection.client.max_payload - len(json.dumps(about, ensure_ascii=True)) - HEADERS_BYTES
        payload = message.payload
        if len(payload) > room:
            # Not ours, which leave room for this: a dead letter cut short is better than one that can never be written.
            payload = payload[: max(0, room)]
            about["reason"] = f"{reason} (payload cut from {len(message.payload)} to {len(payload)} bytes)"
        headers = {"Nats-Msg-Id": identifier, ABOUT: json.dumps(about, ensure_ascii=True)}
        await self._publisher.store(Prepared(STREAM, f"dead.{message.stream}.{consumer}", headers, payload))

    async def list(self, limit: int, before: int | None) -> list[DeadLetter]:
        """The newest first. Sequences that were replayed or discarded leave gaps, which are stepped over."""
        try:
            state = (await self._connection.api(f"STREAM.INFO.{STREAM}", {"deleted_details": True}))["state"]
        except ApiError as error:
            raise BusUnavailable(f"the dead letters do not answer: {error}") from error
        gone = set(state.get("deleted") or ())
        last = int(state["last_seq"]) if before is None else min(int(state["last_seq"]), before - 1)
        found: list[DeadLetter] = []
        for sequence in range(last, int(state["first_seq"]) - 1, -1):
            if len(found) >= limit or int(state["messages"]) == 0:
                break
            if sequence not in gone and (letter := await self._get(sequence)) is not None:
                found.append(letter)
        return found

    async def replay(self, sequence: int) -> Ack:
        """Puts it back where it came from, marked for the consumer that failed it."""
        letter = await self._get(sequence)
        if letter is None:
            raise NotFound(f"there is no dead letter {sequence}; it was replayed, discarded or has aged out")
        identifier = derived_id("replay", str(sequence), letter.died_at.isoformat())
        headers = {**letter.headers, REPLAY_FOR: letter.consumer, "Nats-Msg-Id": identifier}
        for name in [name for name in headers if name.startswith(("Nats-Batch-", "Nats-Schedul"))]:
            del headers[name]  # of the first time; the server would take them for instructions
        ack = await self._publisher.store(Prepared(letter.stream, letter.subject, headers, letter.payload))
        await self._remove(sequence)
        return ack

    async def discard(self, sequence: int) -> None:
        if await self._get(sequence) is None:
            raise NotFound(f"there is no dead letter {sequence}; it was replayed, discarded or has aged out")
        await self._remove(sequence)

    async def _get(self, sequence: int) -> DeadLetter | None:
        try:
            message = (await self._connection.api(f"STREAM.MSG.GET.{STREAM}", {"seq": sequence}))["message"]
        except ApiError as error:
            if error.code == 404:
                return None
            raise BusUnavailable(f"the dead letters do not answer: {error}") from error
        about = _about(message)
        return DeadLetter(
            sequence=int(message["seq"]),
            subject=about["subject"],
            stream=about["stream"],
            consumer=about["consumer"],
            reason=about["reason"],
            attempts=int(about["attempts"]),
            died_at=_time(message["time"]),
            headers=about["headers"],
            payload=base64.b64decode(message.get("data", "")),
        )

    async def _remove(self, sequence: int) -> None:
        try:
            await self._connection.api(f"STREAM.MSG.DELETE.{STREAM}", {"seq": sequence, "no_erase": True})
        except ApiError as error:
            if error.code != 404:
                raise BusUnavailable(f"the dead letter {sequence} cannot be removed: {error}") from error


def _about(message: dict[str, Any]) -> dict[str, Any]:
    for line in base64.b64decode(message.get("hdrs", "")).decode().split("\r\n"):
        name, _, value = line.partition(":")
        if name == ABOUT:
            found: dict[str, Any] = json.loads(value)
            return found
    return {"subject": message["subject"], "stream": "", "consumer": "", "reason": "unknown", "attempts": 0, "headers": {}}


def _time(text: str) -> datetime:
    """RFC 3339 with nanoseconds, of which Python keeps micro."""
    whole, _, fraction = text.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{whole}.{(fraction + '000000')[:6]}").replace(tzinfo=UTC)
