"""How a model's endpoint is reached: answers bounded, redirects refused, nothing retried behind our back. Imported by ``model`` alone."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx2
import openai
from pydantic import SecretStr

CONNECT_SECONDS = 10.0


class AnswerTooLarge(httpx2.TransportError):
    """The endpoint's answer passed the limit, or came compressed although that was not asked for."""


class _Bounded(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, bytes_max: int) -> None:
        self._stream = stream
        self._bytes_max = bytes_max

    async def __aiter__(self) -> AsyncIterator[bytes]:
        received = 0
        async for part in self._stream:
            received += len(part)
            if received > self._bytes_max:
                raise AnswerTooLarge(f"the answer is over {self._bytes_max} bytes")
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()


class _BoundedTransport(httpx2.AsyncHTTPTransport):
    def __init__(self, bytes_max: int) -> None:
        super().__init__()
        self._bytes_max = bytes_max

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await super().handle_async_request(request)
        if response.headers.get("content-encoding", "identity") != "identity":
            # A small compressed answer may unpack to any size; nothing compressed was asked for.
            await response.aclose()
            raise AnswerTooLarge("the answer is compressed")
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _Bounded(response.stream, self._bytes_max)
        return response


def open_client(base_url: str, api_key: SecretStr, attempt_seconds_max: float, bytes_max: int) -> openai.AsyncOpenAI:
    """An openai client without retries of its own; the key goes to ``base_url`` and nowhere else."""
    transport = httpx2.AsyncClient(
        transport=_BoundedTransport(bytes_max),
        timeout=httpx2.Timeout(attempt_seconds_max, connect=min(CONNECT_SECONDS, attempt_seconds_max)),
        follow_redirects=False,
    )
    return openai.AsyncOpenAI(
        base_url=base_url,
        api_key=api_key.get_secret_value() or "none",  # endpoints without a key take any
        max_retries=0,
        http_client=transport,
        default_headers={"Accept-Encoding": "identity"},
    )
