"""An OpenAI-compatible server that says what a test wrote down for it, over real HTTP on loopback.

``with ScriptedModel() as model: model.answers("hello"); ...``. It runs in a thread, so that services in other processes may use it as well.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

START_SECONDS_MAX = 10.0
DIMENSIONS = 8


@dataclass(frozen=True)
class Reply:
    """One scripted answer. ``raw`` replaces the whole body; ``status`` other than 200 makes an error of it."""

    content: str = ""
    tool_calls: tuple[tuple[str, str], ...] = ()  # name, arguments as JSON text
    status: int = 200
    error_code: str = ""
    error_message: str = "scripted"
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    delay_seconds: float = 0.0
    endless: bool = False  # the body begins and never ends: a space now and then
    finish: str | None = None
    refusal: str | None = None
    usage: tuple[int, int] | None = (100, 20)  # input and output tokens; None: the answer does not say


@dataclass(frozen=True)
class Asked:
    """A request as it arrived."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    at: float  # monotonic seconds

    @property
    def text(self) -> str:
        """All message contents, one after the other."""
        return "\n".join(str(message.get("content", "")) for message in self.body.get("messages", []))


Respond = Callable[[Asked], Reply]


class ScriptedModel:
    """The server. Replies are given in the order they were scripted; without one left, ``respond`` decides, or the answer is a 500."""

    def __init__(self, respond: Respond | None = None, *, takes_schema: bool = True, api_key: str = "") -> None:
        self.requests: list[Asked] = []
        self.takes_schema = takes_schema
        self.model_name = "scripted-1"
        self._api_key = api_key
        self._respond = respond
        self._replies: deque[Reply] = deque()
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._server = uvicorn.Server(
            uvicorn.Config(self._app(), log_level="critical", lifespan="off", ws="none", timeout_graceful_shutdown=1)
        )
        self._thread = threading.Thread(target=lambda: self._server.run(sockets=[self._socket]), daemon=True)

    @property
    def url(self) -> str:
        """The base URL to configure."""
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"

    def start(self) -> ScriptedModel:
        self._thread.start()
        deadline = time.monotonic() + START_SECONDS_MAX
        while not self._server.started:
            if time.monotonic() > deadline:
                raise RuntimeError("the scripted model did not start")
            time.sleep(0.01)
        return self

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=10)
        self._socket.close()

    def __enter__(self) -> ScriptedModel:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # The script.

    def says(self, *replies: Reply) -> ScriptedModel:
        """Scripts whole replies."""
        self._replies.extend(replies)
        return self

    def answers(self, *contents: str | dict[str, Any]) -> ScriptedModel:
        """Scripts answers: text, or an object that is sent as JSON."""
        return self.says(*(Reply(content if isinstance(content, str) else json.dumps(content)) for content in contents))

    def calls_tool(self, name: str, arguments: dict[str, Any]) -> ScriptedModel:
        """Scripts a wish to call a tool."""
        return self.says(Reply(tool_calls=((name, json.dumps(arguments)),), finish="tool_calls"))

    def fails(self, status: int, *, times: int = 1, retry_after: str = "", code: str = "") -> ScriptedModel:
        """Scripts errors."""
        headers = {"retry-after": retry_after} if retry_after else {}
        return self.says(*[Reply(status=status, headers=headers, error_code=code)] * times)

    # The server.

    def _app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/embeddings", self._embeddings, methods=["POST"]),
                Route("/v1/models", self._models, methods=["GET"]),
            ]
        )

    async def _read(self, request: Request) -> Asked:
        asked = Asked(request.url.path, dict(request.headers), json.loads(await request.body()), time.monotonic())
        self.requests.append(asked)
        return asked

    def _next(self, asked: Asked) -> Reply:
        if self._api_key and asked.headers.get("authorization") != f"Bearer {self._api_key}":
            return Reply(status=401, error_code="invalid_api_key", error_message=f"wrong key {asked.headers.get('authorization')}")
        form = asked.body.get("response_format", {}).get("type")
        if form == "json_schema" and not self.takes_schema:
            return Reply(status=400, error_code="invalid_request_error", error_message="response_format is not supported")
        if self._replies:
            return self._replies.popleft()
        if self._respond is not None:
            return self._respond(asked)
        return Reply(status=500, error_message="the script is over")

    async def _chat(self, request: Request) -> Response:
        asked = await self._read(request)
        reply = self._next(asked)
        if reply.delay_seconds:
            await asyncio.sleep(reply.delay_seconds)
        if (other := _special(reply)) is not None:
            return other
        head = {"id": f"chatcmpl-{len(self.requests)}", "created": 1_764_150_000, "model": self.model_name}
        if asked.body.get("stream"):
            usage = bool(asked.body.get("stream_options", {}).get("include_usage"))
            return StreamingResponse(_stream(head, reply, usage), media_type="text/event-stream", headers=reply.headers)
        choice = {"index": 0, "message": _message(reply), "finish_reason": reply.finish or "stop", "logprobs": None}
        body: dict[str, Any] = {**head, "object": "chat.completion", "choices": [choice]}
        if reply.usage is not None:
            body["usage"] = _usage(*reply.usage)
        return JSONResponse(body, headers=reply.headers)

    async def _embeddings(self, request: Request) -> Response:
        asked = await self._read(request)
        texts = asked.body["input"]
        texts = [texts] if isinstance(texts, str) else texts
        scripted = bool(self._replies) or bool(self._api_key)
        reply = self._next(asked) if scripted else Reply()
        if (other := _special(reply)) is not None:
            return other
        data = [{"object": "embedding", "index": index, "embedding": embedding(text)} for index, text in enumerate(texts)]
        usage = {"prompt_tokens": sum(len(text.split()) for text in texts), "total_tokens": sum(len(text.split()) for text in texts)}
        # Out of order on purpose: the index counts, not the place.
        return JSONResponse({"object": "list", "data": data[::-1], "model": self.model_name, "usage": usage})

    async def _models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": self.model_name, "object": "model", "created": 0, "owned_by": "test"}]})


def embedding(text: str) -> list[float]:
    """A vector that depends on the text alone."""
    return [byte / 255 for byte in hashlib.sha256(text.encode()).digest()[:DIMENSIONS]]


def _special(reply: Reply) -> Response | None:
    if reply.endless:
        return StreamingResponse(_spaces(), media_type="application/json")
    if reply.raw is not None:
        return Response(reply.raw, reply.status, reply.headers, "application/json")
    if reply.status != 200:
        error = {"message": reply.error_message, "type": "scripted_error", "code": reply.error_code or None, "param": None}
        return JSONResponse({"error": error}, reply.status, reply.headers)
    return None


async def _spaces() -> AsyncIterator[bytes]:
    while True:
        yield b" "
        await asyncio.sleep(0.02)


def _message(reply: Reply) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": reply.content or None, "refusal": reply.refusal}
    if reply.tool_calls:
        message["tool_calls"] = [
            {"id": f"call_{index}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for index, (name, arguments) in enumerate(reply.tool_calls)
        ]
    return message


def _usage(input_tokens: int, output_tokens: int) -> dict[str, int]:
    return {"prompt_tokens": input_tokens, "completion_tokens": output_tokens, "total_tokens": input_tokens + output_tokens}


async def _stream(head: dict[str, Any], reply: Reply, with_usage: bool) -> AsyncIterator[bytes]:
    def event(delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return b"data: " + json.dumps({**head, "object": "chat.completion.chunk", "choices": [choice]}).encode() + b"\n\n"

    yield event({"role": "assistant", "content": ""})
    for start in range(0, len(reply.content), 16):
        yield event({"content": reply.content[start : start + 16]})
    for index, (name, arguments) in enumerate(reply.tool_calls):
        call = {"index": index, "id": f"call_{index}", "type": "function", "function": {"name": name, "arguments": arguments}}
        yield event({"tool_calls": [call]})
    yield event({}, reply.finish or "stop")
    if with_usage and reply.usage is not None:
        last = {**head, "object": "chat.completion.chunk", "choices": [], "usage": _usage(*reply.usage)}
        yield b"data: " + json.dumps(last).encode() + b"\n\n"
    yield b"data: [DONE]\n\n"
