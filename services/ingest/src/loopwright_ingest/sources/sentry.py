"""The Sentry SDK protocol: envelopes and store requests from unmodified clients.

Formats: Sentry's "Envelopes", "Event payloads" and "Sessions" in its SDK development documentation. An event becomes a signal,
sessions become exposure; what is not used is counted with its reason, never silently lost.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from loopwright_common.contracts.signals import FRAMES_MAX, LABELS_MAX, Exposure, RequestContext, Severity, Signal, SignalKind, StackFrame
from loopwright_common.identifiers import derived_id, new_id
from pydantic import ValidationError

from loopwright_ingest.decoding import TooLarge, Undecodable, parse_json
from loopwright_ingest.domain import PRIVATE_HEADERS, WEIGHTS, Drop, Sender, Understood, cut, first_line, judge_time, parse_time, signal_id

SOURCE = "sentry"
ITEMS_MAX = 200
ITEM_BYTES_MAX = 1024 * 1024  # Sentry's own limit for an event
AGGREGATES_MAX = 1_000
EVENT_ID = re.compile(r"^[0-9a-f]{32}$")
KEY = re.compile(r"sentry_key\s*=\s*([0-9a-f]{32})", re.IGNORECASE)
LEVELS = {"fatal": Severity.FATAL, "error": Severity.ERROR, "warning": Severity.WARNING, "info": Severity.INFO, "log": Severity.INFO,
          "debug": Severity.DEBUG, "sample": Severity.DEBUG}  # fmt: skip
# Clients that do not say what is their own code: paths of installed packages and of the language itself are not.
NOT_IN_APP = re.compile(r"(^|/)(site-packages|dist-packages|node_modules|vendor|\.venv|lib/python\d)(/|$)|^(node:|<frozen )")
# Where each cause has its whole stack, unless it is cut off in the product's own code. In others it ends at what caught it.
WHOLE_CAUSES = frozenset({"java", "ruby", "node", "javascript", "php"})
UNUSED = {
    "transaction": "exposure is taken from sessions; transactions would count the same requests again",
    "attachment": "attachments are not kept",
    "client_report": "the client's own count of what it did not send",
}


@dataclass(frozen=True)
class Item:
    """One item of an envelope."""

    type: str
    headers: dict[str, Any]
    payload: bytes


def key_of(auth_header: str, query: str, dsn: str = "") -> str:
    """The public key: from ``X-Sentry-Auth`` or ``Authorization``, from ``?sentry_key=``, or from the envelope's DSN. Empty without one."""
    if found := KEY.search(auth_header):
        return found.group(1).lower()
    if values := parse_qs(query, max_num_fields=20).get("sentry_key"):
        return values[0].lower() if EVENT_ID.match(values[0].lower()) else ""
    if dsn:
        try:
            user = unquote(urlsplit(dsn).username or "").lower()
        except ValueError:
            return ""
        return user if EVENT_ID.match(user) else ""
    return ""


def read_envelope(body: bytes) -> tuple[dict[str, Any], list[Item]]:
    """(headers, items). Raises Undecodable when it is not an envelope."""
    line, at = _line(body, 0)
    headers = _object(line, "The envelope's header")
    items: list[Item] = []
    while True:
        while body[at : at + 1] == b"\n":
            at += 1
        if at >= len(body):
            return headers, items
        line, at = _line(body, at)
        item = _object(line, "An item's header")
        length = item.get("length")
        if length is None:
            payload, at = _line(body, at)
        elif isinstance(length, int) and not isinstance(length, bool) and 0 <= length <= len(body) - at:
            payload, at = body[at : at + length], at + length
            if body[at : at + 1] not in (b"", b"\n"):
                raise Undecodable("An item is longer than its header says.")
        else:
            raise Undecodable("An item is shorter than its header says.")
        items.append(Item(cut(item.get("type"), 64), item, payload))
        if len(items) > ITEMS_MAX:
            raise Undecodable(f"The envelope has more than {ITEMS_MAX} items.")


def _line(body: bytes, start: int) -> tuple[bytes, int]:
    """The line that begins at ``start``, and where the next one does. Cutting the rest off each time would copy it each time."""
    end = body.find(b"\n", start)
    return (body[start:], len(body)) if end < 0 else (body[start:end], end + 1)


def _object(line: bytes, what: str) -> dict[str, Any]:
    found = parse_json(line, lenient=True)
    if not isinstance(found, dict):
        raise Undecodable(f"{what} is not a JSON object.")
    return found


def understand(items: list[Item], sender: Sender, now: datetime, sent_at: str = "") -> Understood:
    """Signals, exposure, and what is not used. ``sent_at`` is the envelope's: with it, an envelope sent again counts once.

    Raises Undecodable for an event that is not JSON, TooLarge for an item over ITEM_BYTES_MAX.
    """
    found = Understood()
    for item in items:
        if item.type in ("event", "session", "sessions") and len(item.payload) > ITEM_BYTES_MAX:
            raise TooLarge(f"An item of type {item.type} is over {ITEM_BYTES_MAX} bytes.")
        if item.type == "event":
            _take_event(_object(item.payload, "The event"), sender, now, found)
        elif item.type == "sessions":
            # Aggregates carry no id: the same bytes sent at the same microsecond are the same envelope sent again.
            identity = f"{sent_at}:{hashlib.sha256(item.payload).hexdigest()}" if sent_at else ""
            found.exposures.extend(_aggregates(_object(item.payload, "The sessions"), identity, sender, now, found))
        elif item.type == "session":
            found.exposures.extend(_session(_object(item.payload, "The session"), sender, now, found))
        else:
            found.drops.append(Drop(item.type or "(none)", UNUSED.get(item.type, "this kind of item is not used")))
    return found


def _take_event(event: dict[str, Any], sender: Sender, now: datetime, found: Understood) -> None:
    if event.get("type") == "transaction":
        found.drops.append(Drop("transaction", UNUSED["transaction"]))
        return
    try:
        found.signals.append(signal_of(event, sender, now))
    except (ValidationError, ValueError) as error:
        # The field and what is wrong with it, never its content.
        reason = str(error.errors()[0]["type"]) if isinstance(error, ValidationError) else "a value that cannot be"
        found.drops.append(Drop("event", f"not usable: {reason}"))


def signal_of(event: dict[str, Any], sender: Sender, now: datetime) -> Signal:
    """An event as a signal. Fields that are too long are cut; one whose time cannot be is as of now, and says so."""
    event_id = str(event.get("event_id") or "").replace("-", "").lower()
    tags = dict(_pairs(event.get("tags")))
    exceptions = _chain(event)
    # Sentry lists the cause first and what reached the surface last.
    raised = exceptions[-1] if exceptions else {}
    type_, value = cut(raised.get("type"), 512), cut(raised.get("value"), 2_048)
    message = _message(event)
    kind = SignalKind.EXCEPTION if exceptions else SignalKind.LOG
    title = first_line(f"{type_}: {value}" if type_ and value else type_ or value) if exceptions else first_line(message)
    labels = {cut(name, 200): cut(text, 512) for name, text in list(tags.items())[: LABELS_MAX - 5]}
    if len(exceptions) > 1:
        labels["exception.chain"] = cut(" <- ".join(cut(item.get("type"), 80) for item in reversed(exceptions)), 512)
    for name in ("logger", "platform", "server_name"):
        if isinstance(event.get(name), str):
            labels.setdefault(name, cut(event[name], 512))
    said_at = parse_time(event.get("timestamp"))
    try:
        occurred_at, history = judge_time(said_at, now)
    except ValueError:
        # An error is worth more than its time: a client's wrong clock does not lose it.
        occurred_at, history = now, False
        labels["clock"] = f"the client said {said_at.isoformat(timespec='seconds')}" if said_at else "wrong"
    user = event.get("user") if isinstance(event.get("user"), dict) else {}
    trace = (event.get("contexts") or {}).get("trace") if isinstance(event.get("contexts"), dict) else None
    return Signal(
        id=signal_id(sender.name, SOURCE, event_id if EVENT_ID.match(event_id) else ""),
        project=sender.name,
        source=SOURCE,
        kind=kind,
        title=title or "(no message)",
        body=cut(message or value, 16_384),
        occurred_at=occurred_at,
        received_at=now,
        service=sender.service(cut(tags.get("service"), 64)),
        release=cut(event.get("release"), 512),
        environment=cut(event.get("environment"), 64),
        severity=LEVELS.get(str(event.get("level") or "error").lower(), Severity.ERROR),
        weight=WEIGHTS[kind],
        actor=sender.pseudonym(_person(user or {})),
        exception_type=type_,
        exception_value=value,
        transaction=cut(event.get("transaction"), 512),
        frames=tuple(_frames(event, exceptions)),
        request=_request(event.get("request")),
        fingerprint=tuple(cut(part, 512) for part in event.get("fingerprint") or () if isinstance(part, (str, int)))[:16]
        if isinstance(event.get("fingerprint"), list)
        else (),
        labels=labels,
        dedupe_key=event_id,
        backfill=history,
        trace_id=cut(trace.get("trace_id"), 64) if isinstance(trace, dict) else "",
    )


def _values(value: Any) -> list[Any]:
    """Sentry writes lists as ``{"values": [...]}`` or plainly."""
    if isinstance(value, dict):
        value = value.get("values", [value] if "type" in value or "value" in value else [])
    return value if isinstance(value, list) else []


def _pairs(value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        yield from ((str(name), cut(item, 512)) for name, item in value.items())
    elif isinstance(value, list):
        yield from ((str(item[0]), cut(item[1], 512)) for item in value if isinstance(item, list) and len(item) == 2)


def _message(event: dict[str, Any]) -> str:
    entry = event.get("logentry") or event.get("message") or ""
    if isinstance(entry, dict):
        entry = entry.get("formatted") or entry.get("message") or ""
    return cut(entry, 16_384)


def _person(user: dict[str, Any]) -> str:
    # Named as other sources name people, so that one counts once. "{{auto}}" means the connection: behind a proxy, everybody.
    found = (user.get(name) for name in ("id", "email", "username", "ip_address"))
    return next((str(value) for value in found if value and value != "{{auto}}"), "")


def _chain(event: dict[str, Any]) -> list[dict[str, Any]]:
    """The exceptions, the root cause first and what reached the surface last.

    What happened to be handled when another was raised (Python's ``__context__``) did not cause it, and is left out.
    """
    exceptions = [value for value in _values(event.get("exception")) if isinstance(value, dict)]
    for number in range(len(exceptions) - 2, -1, -1):
        mechanism = exceptions[number].get("mechanism")
        if isinstance(mechanism, dict) and mechanism.get("source") == "__context__":
            return exceptions[number + 1 :]
    return exceptions


def _frames(event: dict[str, Any], exceptions: list[dict[str, Any]]) -> Iterator[StackFrame]:
    """The frames of what reached the surface, outermost first, and then those of its causes that are not among them.

    So the end is where it really happened, and an exception has the same frames whether or not a layer wrapped it. A stack without a frame
    of the product's own counts only where there is no other. A root cause that is told in full, from where the surfaced one's stack or a
    thread begins, needs none of the others' frames: they are of who waited for it and wrapped it, maybe in another thread.
    """
    if exceptions:
        stacks = [_stack(item.get("stacktrace")) for item in reversed(exceptions)]
        own = [stack for stack in stacks if any(frame.in_app for frame in stack)] or [stack for stack in stacks if stack][:1]
        if len(own) > 1:
            surfaced, cause = [_where(frame) for frame in own[0]], own[-1][0]
            apart = event.get("platform") in WHOLE_CAUSES and not cause.in_app and _where(cause) not in surfaced
            if apart or _where(cause) == surfaced[0]:
                own = own[-1:]
        found: list[StackFrame] = []
        seen: set[tuple[str, str, str]] = set()
        for stack in own:
            found.extend(frame for frame in stack if _where(frame) not in seen)
            seen.update(_where(frame) for frame in stack)
        yield from found[-FRAMES_MAX:]  # the end is where it happened
        return
    stacks = [_stack(item.get("stacktrace")) for item in _values(event.get("threads")) if isinstance(item, dict)]
    stacks.append(_stack(event.get("stacktrace")))
    chosen = next((stack for stack in stacks if any(frame.in_app for frame in stack)), next((stack for stack in stacks if stack), []))
    yield from chosen[-FRAMES_MAX:]


def _where(frame: StackFrame) -> tuple[str, str, str]:
    return frame.module, frame.file, frame.function


def _stack(value: Any) -> list[StackFrame]:
    frames = value.get("frames") if isinstance(value, dict) else None
    found: list[StackFrame] = []
    for frame in frames if isinstance(frames, list) else []:
        if not isinstance(frame, dict):
            continue
        path = cut(frame.get("filename") or frame.get("abs_path"), 512)
        in_app = frame.get("in_app")
        full = cut(frame.get("abs_path"), 512) or path
        found.append(
            StackFrame(
                file=path,
                function=cut(frame.get("function"), 512),
                module=cut(frame.get("module"), 512),
                line=_number(frame.get("lineno")),
                column=_number(frame.get("colno")),
                in_app=in_app if isinstance(in_app, bool) else not NOT_IN_APP.search(full),
                context=cut(frame.get("context_line"), 512).strip(),
            )
        )
    return found


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 10_000_000 else None


def _request(value: Any) -> RequestContext | None:
    if not isinstance(value, dict):
        return None
    query = value.get("query_string")
    if isinstance(query, (list, dict)):
        query = "&".join(f"{name}={item}" for name, item in _pairs(query))
    data = value.get("data")
    headers = {cut(name, 200): cut(item, 512) for name, item in _pairs(value.get("headers")) if name and not PRIVATE_HEADERS.search(name)}
    return RequestContext(
        method=cut(value.get("method"), 16),
        url=cut(value.get("url"), 2_048),
        query_string=cut(query, 2_048),
        data=cut(data if isinstance(data, str) else "" if data is None else json.dumps(data), 16_384),
        headers=dict(list(headers.items())[:32]),
    )


def _aggregates(body: dict[str, Any], identity: str, sender: Sender, now: datetime, found: Understood) -> Iterator[Exposure]:
    """Request-mode sessions: counts per minute of start. ``exited``, ``errored``, ``crashed`` and ``abnormal`` exclude each other."""
    buckets = body.get("aggregates")
    buckets = buckets if isinstance(buckets, list) else []
    if len(buckets) > AGGREGATES_MAX:
        found.drops.append(Drop("sessions", f"aggregates beyond the first {AGGREGATES_MAX} of an item"))
    for index, bucket in enumerate(buckets[:AGGREGATES_MAX]):
        if not isinstance(bucket, dict):
            continue
        bad = sum(_number(bucket.get(name)) or 0 for name in ("errored", "crashed", "abnormal"))
        count = bad + (_number(bucket.get("exited")) or 0)
        if count:
            name = f"sessions:{identity}:{index}" if identity else ""
            yield from _exposure(body, bucket.get("started"), "requests", count, bad, name, sender, now, found)


def _session(body: dict[str, Any], sender: Sender, now: datetime, found: Understood) -> Iterator[Exposure]:
    """One session: counted when it begins, so that its later updates do not count again."""
    if body.get("init") is not True:
        found.drops.append(Drop("session", "an update of a session that was counted when it began"))
        return
    bad = 1 if body.get("status") in ("crashed", "abnormal", "errored") or (_number(body.get("errors")) or 0) > 0 else 0
    name = f"session:{cut(body['sid'], 64)}" if body.get("sid") else ""
    yield from _exposure(body, body.get("started"), "sessions", 1, bad, name, sender, now, found)


def _exposure(
    body: dict[str, Any], started: Any, unit: Any, count: int, errored: int, name: str, sender: Sender, now: datetime, found: Understood
) -> Iterator[Exposure]:
    attributes = body.get("attrs") if isinstance(body.get("attrs"), dict) else body.get("attributes")
    attributes = attributes if isinstance(attributes, dict) else {}
    try:
        minute, _ = judge_time(parse_time(started), now)
    except ValueError as error:
        found.drops.append(Drop("sessions", f"started {error}"))
        return
    yield Exposure(
        id=derived_id("exposure", sender.name, "sentry", name) if name else new_id(),
        project=sender.name,
        service=sender.service(""),
        release=cut(attributes.get("release"), 512),
        environment=cut(attributes.get("environment"), 64),
        unit=unit,
        minute=minute.replace(second=0, microsecond=0),
        count=count,
        errored=errored,
    )
