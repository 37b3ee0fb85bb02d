"""One connection to NATS that comes back by itself. What was not acknowledged fails at once when it is lost; nothing waits to be sent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import ssl
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import AuthorizationError, ConnectionClosedError, ConnectionDrainingError, Error, MaxPayloadError, OutboundBufferLimitError
from pydantic import SecretStr

from loopwright_common.bus import BusUnavailable, MessageTooLarge
from loopwright_common.errors import Permanent, Refused

log = structlog.get_logger()

Headers = dict[str, str]

CONNECT_ATTEMPT_SECONDS = 3.0
RECONNECT_FIRST_SECONDS = 0.05
RECONNECT_MOST_SECONDS = 2.0  # a restarted server is found within this time
# A server that hangs is noticed after three of these; one that dies closes the socket and is noticed at once.
PING_SECONDS = 10
REQUEST_SECONDS = 10.0
# Kept free of every message, so that it can be buried with its headers and its reason beside it.
RESERVED_BYTES = 16 * 1024
HEADER_NAMES_REMEMBERED_MAX = 1_024  # there are some twenty; whatever else arrives pushes out what it pushes out
SERVER_LEAST = (2, 12)  # atomic batches and scheduled messages


class ApiError(Exception):
    """JetStream answered with an error."""

    def __init__(self, error: dict[str, Any]) -> None:
        self.code = int(error.get("code", 0))
        self.err_code = int(error.get("err_code", 0))
        self.description = str(error.get("description", ""))
        super().__init__(f"{self.description} (code {self.code}, err_code {self.err_code})")


class _Client(Client):
    """The client, reading headers in a third of the time: they were a third of what it cost to receive a message."""

    @staticmethod
    def _parse_header_lines(raw: bytes) -> Headers:
        found: Headers = {}
        for line in raw.decode("utf-8", "replace").split("\r\n"):
            said, separator, value = line.partition(":")
            if separator and (name := _header_name(said)):
                found[name] = value.strip()
        return found


@lru_cache(HEADER_NAMES_REMEMBERED_MAX)
def _header_name(said: str) -> str:
    """The name of a header without the white space around it; empty for what is none: a name is a token (RFC 9110, section 5.6.2)."""
    name = said.strip()
    return name if name.isascii() and len(name.split()) == 1 else ""


class Connection:
    """Connects, reconnects for ever, and sends requests."""

    def __init__(
        self,
        url: str,
        name: str,
        *,
        user: str = "",
        password: SecretStr | None = None,
        token: SecretStr | None = None,
        ca_file: Path | None = None,
    ) -> None:
        self.servers = [server.strip() for server in url.split(",") if server.strip()]
        self._name = name
        self._credentials: dict[str, Any] = {}
        if token is not None and token.get_secret_value():
            self._credentials["token"] = token.get_secret_value()
        elif user:
            self._credentials["user"] = user
            self._credentials["password"] = password.get_secret_value() if password is not None else ""
        if ca_file is not None:
            self._credentials["tls"] = ssl.create_default_context(cafile=str(ca_file))
        self._client: Client | None = None
        self._replies: dict[str, asyncio.Future[Msg]] = {}
        self._reply_prefix = ""
        self._counter = 0
        self._closing = False
        self._up = asyncio.Event()
        self._lost: list[asyncio.Event] = []
        self._on_new_client: list[Callable[[], Awaitable[None]]] = []
        self._reopening: asyncio.Task[None] | None = None
        self.generation = 0  # rises with each connection made or lost

    @property
    def client(self) -> Client:
        """The client. Raises BusUnavailable while there is none."""
        if self._client is None or not self._client.is_connected:
            raise BusUnavailable(f"NATS at {', '.join(self.servers)} is not connected")
        return self._client

    @property
    def connected(self) -> bool:
        return self._client is not None and self._client.is_connected

    @property
    def message_bytes_max(self) -> int:
        """What a payload and its headers may have together."""
        return self.client.max_payload - RESERVED_BYTES

    async def open(self, timeout: float) -> None:
        """Connects, trying until ``timeout`` seconds have passed. Raises BusUnavailable, or Refused when the credentials are not taken."""
        delay = RECONNECT_FIRST_SECONDS
        last = ""
        try:
            async with asyncio.timeout(timeout):
                while True:
                    try:
                        return await self._open_once()
                    except (BusUnavailable, OSError) as error:
                        last = str(error)
                    await asyncio.sleep(delay)
                    delay = min(delay * 2, RECONNECT_MOST_SECONDS)
        except TimeoutError as error:
            raise BusUnavailable(f"NATS at {', '.join(self.servers)} did not answer within {timeout:g} s: {last}") from error

    async def _open_once(self) -> None:
        client = _Client()
        failed: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

        async def on_error(error: Exception) -> None:
            if not failed.done():
                failed.set_result(error)
            else:
                log.debug("nats_error", error=str(error))

        async def on_lost() -> None:
            if client is self._client:
                self._connection_lost()

        async def on_back() -> None:
            if client is self._client:
                self._connection_back()

        async def on_closed() -> None:
            if client is self._client and not self._closing and self._reopening is None:
                self._connection_lost()
                self._reopening = asyncio.create_task(self._reopen())

        connecting = asyncio.create_task(
            client.connect(
                self.servers,
                name=self._name,
                error_cb=on_error,
                disconnected_cb=on_lost,
                reconnected_cb=on_back,
                closed_cb=on_closed,
                allow_reconnect=True,
                max_reconnect_attempts=-1,
                reconnect_time_wait=1,
                reconnect_to_server_handler=_next_server,
                connect_timeout=2,
                ping_interval=PING_SECONDS,
                max_outstanding_pings=2,
                pending_size=0,  # no client-side buffer while reconnecting: accepted means acknowledged
                **self._credentials,
            )
        )
        waited: list[asyncio.Future[Any]] = [connecting, failed]
        try:
            await asyncio.wait(waited, timeout=CONNECT_ATTEMPT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            connecting.cancel()
            await asyncio.gather(connecting, return_exceptions=True)
            with contextlib.suppress(Exception):
                await client.close()
            raise
        if not connecting.done() or connecting.exception() is not None:
            connecting.cancel()
            await asyncio.gather(connecting, return_exceptions=True)
            error = failed.result() if failed.done() else TimeoutError("no answer")
            with contextlib.suppress(Exception):
                await client.close()
            if isinstance(error, AuthorizationError) or "authorization" in str(error).lower():
                raise Refused(f"NATS at {', '.join(self.servers)} does not take these credentials")
            raise BusUnavailable(str(error) or type(error).__name__)
        if not failed.done():
            failed.set_result(ConnectionError("connected"))  # later errors are only logged
        version = client.connected_server_version
        if (version.major, version.minor) < SERVER_LEAST:
            await client.close()
            raise Permanent(f"nats-server is {version.major}.{version.minor}; {SERVER_LEAST[0]}.{SERVER_LEAST[1]} or newer is needed")
        self._client = client
        self._reply_prefix = client.new_inbox() + "."
        await client.subscribe(self._reply_prefix + "*", cb=self._on_reply)
        self._connection_back()

    async def _reopen(self) -> None:
        """The client gave up for good (as it does on some server errors): make another."""
        delay = RECONNECT_FIRST_SECONDS
        while not self._closing:
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311  spreads clients, protects nothing
            delay = min(delay * 2, RECONNECT_MOST_SECONDS)
            try:
                await self._open_once()
                for again in self._on_new_client:
                    await again()
                break
            except (BusUnavailable, Permanent, OSError) as error:
                log.warning("nats_not_back", error=str(error))
        self._reopening = None

    def on_new_client(self, again: Callable[[], Awaitable[None]]) -> None:
        """Calls ``again`` whenever a client was replaced, whose subscriptions are gone. Reconnects keep theirs."""
        self._on_new_client.append(again)

    def _connection_lost(self) -> None:
        self.generation += 1
        self._up.clear()
        for lost in self._lost:
            lost.set()
        for future in list(self._replies.values()):
            if not future.done():
                future.set_exception(BusUnavailable("the connection to NATS was lost before the acknowledgement"))
        if not self._closing:
            log.warning("nats_disconnected", servers=self.servers)

    def _connection_back(self) -> None:
        self.generation += 1
        self._up.set()
        log.info("nats_connected", servers=self.servers)

    async def wait_connected(self) -> None:
        """Returns once there is a connection."""
        await self._up.wait()

    @contextlib.contextmanager
    def losing(self) -> Any:
        """An event that is set when the connection is lost from here on."""
        event = asyncio.Event()
        self._lost.append(event)
        try:
            yield event
        finally:
            self._lost.remove(event)

    async def publish(self, subject: str, payload: bytes = b"", reply: str = "", headers: Headers | None = None) -> None:
        """Sends without waiting. Raises BusUnavailable, MessageTooLarge."""
        client = self.client
        # With its headers, which the client does not count: the server would close the connection on everybody using it.
        size = len(payload) + (sum(len(key) + len(value) + 4 for key, value in headers.items()) + 12 if headers else 0)
        if size > client.max_payload:
            raise MessageTooLarge(f"the message for {subject} has {size} bytes; the server takes {client.max_payload}")
        try:
            await client.publish(subject, payload, reply=reply, headers=headers)
        except MaxPayloadError as error:
            raise MessageTooLarge(f"the payload for {subject} has {len(payload)} bytes; the server takes {client.max_payload}") from error
        except (ConnectionClosedError, ConnectionDrainingError, OutboundBufferLimitError, OSError) as error:
            raise BusUnavailable(f"NATS is not connected: {error}") from error

    async def publish_each(self, subjects: Sequence[str], payload: bytes) -> None:
        """Sends the same to each subject, as one piece: a batch's acknowledgements cost more than receiving it, one by one.

        Sent with the next thing that is published. The subjects are the server's own (reply subjects). Raises BusUnavailable.
        """
        client = self.client
        tail = b" %d\r\n%b\r\n" % (len(payload), payload)
        try:
            await client._send_command(b"".join([b"PUB " + subject.encode() + tail for subject in subjects]))
        except (ConnectionClosedError, OutboundBufferLimitError, OSError) as error:
            raise BusUnavailable(f"NATS is not connected: {error}") from error

    async def subscribe(
        self, subject: str, queue: str = "", cb: Callable[[Msg], Awaitable[None]] | None = None, **limits: Any
    ) -> Subscription:
        try:
            return await self.client.subscribe(subject, queue=queue, cb=cb, **limits)
        except (Error, OSError) as error:
            raise BusUnavailable(f"NATS is not connected: {error}") from error

    def expect_reply(self) -> tuple[str, asyncio.Future[Msg]]:
        """A subject to be answered on, and the answer. The future fails with BusUnavailable when the connection is lost."""
        self.client  # noqa: B018  raises when there is no connection
        self._counter += 1
        token = str(self._counter)
        future: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        self._replies[token] = future
        future.add_done_callback(lambda _: self._replies.pop(token, None))
        return self._reply_prefix + token, future

    async def _on_reply(self, message: Msg) -> None:
        future = self._replies.get(message.subject.rpartition(".")[2])
        if future is not None and not future.done():
            future.set_result(message)

    async def request(self, subject: str, payload: bytes = b"", *, headers: Headers | None = None, timeout: float = REQUEST_SECONDS) -> Msg:
        """The answer. Raises BusUnavailable when none comes or nobody listens (then at once), MessageTooLarge."""
        reply, future = self.expect_reply()
        try:
            await self.publish(subject, payload, reply, headers)
            return await wait_reply(subject, future, timeout)
        finally:
            if not future.done():
                future.cancel()
            elif not future.cancelled():
                future.exception()  # seen, so that asyncio does not complain when publish raised first

    async def api(self, subject: str, request: dict[str, Any] | None = None, *, timeout: float = REQUEST_SECONDS) -> dict[str, Any]:
        """A JetStream API call. Raises ApiError with the server's code, BusUnavailable."""
        payload = json.dumps(request).encode() if request is not None else b""
        message = await self.request(f"$JS.API.{subject}", payload, timeout=timeout)
        answer: dict[str, Any] = json.loads(message.data)
        if "error" in answer:
            error = ApiError(answer["error"])
            if error.code == 503:
                raise BusUnavailable(f"JetStream cannot serve now: {error}")
            raise error
        return answer

    async def close(self) -> None:
        """Sends what is pending and disconnects."""
        self._closing = True
        if self._reopening is not None:
            self._reopening.cancel()
        client, self._client = self._client, None
        if client is not None:
            if client.is_connected:
                with contextlib.suppress(Error, OSError, TimeoutError):
                    await client.flush(timeout=2)
            with contextlib.suppress(Error, OSError):
                await client.close()
        self._connection_lost()


async def wait_reply(subject: str, future: asyncio.Future[Msg], timeout: float) -> Msg:
    """Waits for an answer. Raises BusUnavailable."""
    try:
        async with asyncio.timeout(timeout):
            message = await future
    except TimeoutError as error:
        raise BusUnavailable(f"NATS did not answer on {subject} within {timeout:g} s") from error
    if not message.data and message.headers is not None and message.headers.get("Status") == "503":
        raise NobodyListens(f"nobody listens on {subject}")
    return message


class NobodyListens(BusUnavailable):
    """The server knows of nobody who would take the message: no stream, no service, or JetStream is still starting."""


def _next_server(servers: list[Any], _: dict[str, Any]) -> tuple[Any, float]:
    """The server least often tried in vain, and a wait that doubles with the tries, spread so that clients do not come all at once."""
    server = min(servers, key=lambda candidate: candidate.reconnects)
    most = min(RECONNECT_FIRST_SECONDS * 2.0 ** min(server.reconnects, 10), RECONNECT_MOST_SECONDS)
    return server, most * random.uniform(0.5, 1.0)  # noqa: S311  spreads clients, protects nothing
