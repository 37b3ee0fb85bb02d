"""``/v1/stream``: what changes, as it changes. Server-sent events with ids, so that a client that comes back misses nothing."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from loopwright_common.problems import ProblemError
from sse_starlette import EventSourceResponse, ServerSentEvent

from loopwright_gateway.api.parts import Caller, Parts, PartsOf, problems

router = APIRouter(prefix="/v1", tags=["stream"])

POLL_SECONDS = 1.0  # events of another replica's transactions; our own wake us at once
HEARTBEAT_SECONDS = 15
BATCH = 200


@router.get(
    "/stream",
    responses=problems(400, 401, 403, 422, 503) | {200: {"content": {"text/event-stream": {}}}},
    response_class=EventSourceResponse,
)
async def stream(
    request: Request,
    parts: PartsOf,
    _: Caller,
    project: Annotated[str | None, Query(max_length=64)] = None,
    last_event_id: Annotated[str | None, Header(pattern=r"^[0-9]{1,18}$")] = None,
) -> EventSourceResponse:
    """Events ``report.changed``, ``change.changed``, ``deploy.recorded``, ``measurement.completed``, ``command.refused``; and
    ``reset`` when too much was missed to be told one by one: then read the lists again. Comments are heartbeats."""
    clients: set[int] = request.app.state.stream_clients
    if len(clients) >= parts.settings.stream_clients_max:
        raise ProblemError(503, f"{parts.settings.stream_clients_max} clients listen already.", headers={"Retry-After": "30"})
    events = _events(request, parts, project, int(last_event_id) if last_event_id else None)
    return EventSourceResponse(events, ping=HEARTBEAT_SECONDS, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})


async def _events(request: Request, parts: Parts, project: str | None, after: int | None) -> AsyncIterator[ServerSentEvent]:
    clients: set[int] = request.app.state.stream_clients
    clients.add(id(request))
    try:
        oldest, newest = await parts.inbox.event_range()
        if after is None:
            after = newest
            yield ServerSentEvent(event="hello", id=str(after), data="{}")
        elif after > newest or after + 1 < oldest:
            after = newest
            yield ServerSentEvent(event="reset", id=str(after), data="{}")
        while not await request.is_disconnected() and not request.app.state.stopping:
            found = await parts.inbox.events(after, BATCH)
            for item in found:
                after = item.id
                if project is None or item.project == project:
                    data = json.dumps({"kind": item.kind, "project": item.project, "body": json.loads(item.body)})
                    yield ServerSentEvent(event=item.kind, id=str(item.id), data=data)
            if len(found) < BATCH:
                await parts.wait_committed(POLL_SECONDS)
    finally:
        clients.discard(id(request))
