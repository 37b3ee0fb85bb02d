"""Serves the inbox's files as they are, with a policy that lets nothing in from elsewhere."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fastapi import FastAPI, Request
from loopwright_common.problems import ProblemError, problem_response
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

FOLDER = Path(__file__).parent / "ui"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


def install(app: FastAPI) -> None:
    """Adds the pages last: every address that is not the API's is the inbox, so that each of its states has a URL."""
    files = {path.name: (path.read_bytes(), TYPES[path.suffix]) for path in FOLDER.iterdir() if path.suffix in TYPES}
    tags = {name: f'"{hashlib.sha256(content).hexdigest()[:16]}"' for name, (content, _) in files.items()}

    @app.get("/{path:path}", include_in_schema=False)
    async def page(path: str, request: Request) -> Response:
        if path == "v1" or path.startswith("v1/"):
            raise ProblemError(404, "There is nothing at this address of the API; /openapi.json lists what there is.")
        name = path if path in files else "index.html"
        if name not in files or (name == "index.html" and "." in path.rsplit("/", 1)[-1]):
            raise ProblemError(404, "There is no such file.")
        headers = {"etag": tags[name], "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == tags[name]:
            return Response(status_code=304, headers=headers)
        content, media_type = files[name]
        return Response(content, headers=headers, media_type=media_type)


class Guarded:
    """Security headers on every answer, and only the host names we are known by."""

    def __init__(self, app: ASGIApp, hosts: str) -> None:
        self.app = app
        self.hosts = {host.strip().lower() for host in hosts.split(",") if host.strip()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {key for key, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *((key.encode(), value.encode()) for key, value in HEADERS.items() if key.encode() not in present),
                ]
                if b"cache-control" not in present:
                    message["headers"].append((b"cache-control", b"no-store"))
            await send(message)

        host = next((value.decode("latin-1") for key, value in scope["headers"] if key == b"host"), "")
        if "*" not in self.hosts and _name(host) not in self.hosts and scope["path"] not in ("/healthz", "/readyz", "/metrics"):
            detail = (
                f"This host name is not allowed; LOOPWRIGHT_GATEWAY_ALLOWED_HOSTS lists those that are: {', '.join(sorted(self.hosts))}."
            )
            await problem_response(400, detail)(scope, receive, guarded)
            return
        await self.app(scope, receive, guarded)


def _name(host: str) -> str:
    """The host without its port; an IPv6 address keeps its brackets."""
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].lower()
