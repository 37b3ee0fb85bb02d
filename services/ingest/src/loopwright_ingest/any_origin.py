"""Which endpoints pages of other sites may read the answer of: those that SDKs in browsers send to (Fetch standard, CORS protocol)."""

from __future__ import annotations

import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# A DSN's key is meant to be in front ends and can only send. The keys of every other endpoint are secrets: no page should hold one.
BROWSERS_SEND_TO = re.compile(r"/api/[^/]{1,64}/(?:envelope|store)/?")
# What Sentry's browser SDK reads of an answer: it backs off by the last two.
READABLE = "X-Sentry-Error, X-Sentry-Rate-Limits, Retry-After"
# What may come with an event: compression, the key, and the trace that the page's own requests carry.
SENDABLE = "Content-Type, Content-Encoding, X-Sentry-Auth, Authorization, X-Requested-With, Sentry-Trace, Baggage, Traceparent, Tracestate"
PREFLIGHT = {"Access-Control-Allow-Methods": "POST", "Access-Control-Allow-Headers": SENDABLE, "Access-Control-Max-Age": "7200"}
# 7200 s is the most that Chromium keeps; others cut it to their own.


class AnyOrigin:
    """Lets any page send events and read the answer, refusals of the body's limit too. Nothing is allowed with credentials.

    Outermost, so that no answer leaves without it: to a page, an answer that it may not read looks like a network that is down, and the
    SDK tries again rather than backing off. A page could always send (a POST of plain text needs nobody's leave); now it may read.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not BROWSERS_SEND_TO.fullmatch(scope["path"]):
            await self.app(scope, receive, send)
            return

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Access-Control-Allow-Origin"] = "*"  # also where no Origin came: a cache may give the answer to a page
                headers["Access-Control-Expose-Headers"] = READABLE
            await send(message)

        asked = Headers(scope=scope)
        if scope["method"] == "OPTIONS" and "origin" in asked and "access-control-request-method" in asked:
            await Response(status_code=204, headers=PREFLIGHT)(scope, receive, watched)
        else:
            await self.app(scope, receive, watched)
