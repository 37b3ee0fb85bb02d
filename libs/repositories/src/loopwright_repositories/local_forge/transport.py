"""Git's smart HTTP: ``git http-backend`` as a CGI program behind ASGI, streaming in both directions.

Source: git-http-backend(1) and gitprotocol-http(5). Request bodies may be gzip (git sends them so) and chunked; ``Git-Protocol`` goes
on, so that clients speak version 2.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from loopwright_repositories.git import end_process, hardened_environment, write_to
from loopwright_repositories.local_forge.access import require
from loopwright_repositories.local_forge.problems import Problem
from loopwright_repositories.local_forge.repositories import ForgeRepositories
from loopwright_repositories.local_forge.settings import Access, ForgeSettings

HEADER_BYTES_MAX = 16 * 1024
CHUNK_BYTES = 64 * 1024
PUSH_SLACK_BYTES = 256 * 1024  # the ref updates before the pack: git itself refuses the pack, and can say why in its own protocol
FETCH_REQUEST_BYTES_MAX = 16 * 1024 * 1024  # wants and haves: 50 bytes for each of some 300,000 commits
# info/refs and the two services; dumb HTTP (objects/...) is not offered, since it would go past the push rules' view of refs.
_SERVICES = {"info/refs": "GET", "git-upload-pack": "POST", "git-receive-pack": "POST"}
_PROTOCOL = re.compile(r"^version=[0-2](?::[a-z0-9=:.-]{1,100})?$")


@dataclass
class GitTransport:
    """Serves clone, fetch and push of the forge's repositories."""

    repositories: ForgeRepositories
    settings: ForgeSettings
    after_push: Callable[[str], Awaitable[None]]
    _slots: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self._slots = asyncio.Semaphore(self.settings.git_processes_max)

    async def serve(self, request: Request, name: str, what: str, access: Access) -> Response:
        """Answers one request. Raises Problem 401, 403, 404, 405, 413, 415, 503."""
        service = what if what != "info/refs" else request.query_params.get("service", "")
        if what not in _SERVICES or service not in ("git-upload-pack", "git-receive-pack"):
            raise Problem(404, "this forge speaks git's smart HTTP only: info/refs?service=..., git-upload-pack, git-receive-pack")
        if request.method != _SERVICES[what]:
            raise Problem(405, f"{what} takes {_SERVICES[what]}", {"Allow": _SERVICES[what]})
        pushes = service == "git-receive-pack"
        require(access, Access.WRITE if pushes else Access.READ)
        if what != "info/refs" and request.headers.get("content-type", "") != f"application/x-{service}-request":
            raise Problem(415, f"{what} takes application/x-{service}-request")
        record = await self.repositories.known(name)
        environment = self._environment(request, name, what, access, str(record["default_branch"]))
        limit = self.settings.push_bytes_max + PUSH_SLACK_BYTES if pushes else FETCH_REQUEST_BYTES_MAX
        length = request.headers.get("content-length", "0")
        if not length.isdigit() or int(length) > limit:
            raise Problem(413, f"the request is {length[:20]} bytes; the limit is {limit}; for pushes see LOOPWRIGHT_FORGE_PUSH_BYTES_MAX")
        try:
            async with asyncio.timeout(30):
                await self._slots.acquire()
        except TimeoutError as error:
            raise Problem(503, f"{self.settings.git_processes_max} git processes are busy", {"Retry-After": "5"}) from error
        run = _Run(environment, limit, self.settings.git_seconds_max)

        async def end() -> None:
            await run.end()
            self._slots.release()

        async def chunks() -> AsyncGenerator[bytes, None]:
            async for chunk in run.output():
                yield chunk
            if what == "git-receive-pack":
                await self.after_push(name)

        try:
            status, headers = await run.start(request)
        except ClientDisconnect as error:
            await end()
            raise Problem(400, "the client went away in mid-request") from error
        except BaseException:
            await end()
            raise
        return _Streamed(chunks(), status, headers, end)

    def _environment(self, request: Request, name: str, what: str, access: Access, default_branch: str) -> dict[str, str]:
        config = {
            "core.hooksPath": str(self.repositories.hooks.resolve()),
            "http.receivepack": "true",
            "receive.fsckObjects": "true",
            "receive.maxInputSize": str(self.settings.push_bytes_max),
            "transfer.hideRefs": "refs/sources",
            "uploadpack.allowFilter": "true",
        }
        environment = {"GIT_CONFIG_COUNT": str(len(config))}
        for number, (key, value) in enumerate(config.items()):
            environment |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
        protocol = request.headers.get("git-protocol", "")
        if _PROTOCOL.match(protocol):
            environment["GIT_PROTOCOL"] = protocol
        # CONTENT_LENGTH is left out: with it, http-backend of git 2.39 spins for ever when the input ends early, even after this process is
        # gone. Without it, it reads to the end of its input, and a pack that was cut short fails its checksum.
        if request.headers.get("content-encoding", "") in ("gzip", "x-gzip"):
            environment["HTTP_CONTENT_ENCODING"] = "gzip"
        return hardened_environment(
            environment
            | {
                "GIT_PROJECT_ROOT": str(self.repositories.root.resolve()),
                "GIT_HTTP_EXPORT_ALL": "1",
                "GIT_HTTP_MAX_REQUEST_BUFFER": str(FETCH_REQUEST_BYTES_MAX),
                "REQUEST_METHOD": request.method,
                "PATH_INFO": f"/{name}.git/{what}",
                "QUERY_STRING": f"service={request.query_params['service']}" if what == "info/refs" else "",
                "CONTENT_TYPE": request.headers.get("content-type", ""),
                "REMOTE_USER": access.name.lower(),
                "REMOTE_ADDR": request.client.host if request.client is not None else "",
                "SERVER_PROTOCOL": "HTTP/1.1",
                "LOOPWRIGHT_FORGE_ACCESS": access.name,
                "LOOPWRIGHT_FORGE_PROTECTED": f"refs/heads/{default_branch}",
            }
        )


class _Streamed(Response):
    """A streamed answer while the request may still be arriving.

    Starlette's own StreamingResponse listens for a disconnect by taking messages from ``receive``, and so would swallow the rest of a
    push: git answers its headers before it has read the pack.
    """

    def __init__(
        self, chunks: AsyncGenerator[bytes, None], status_code: int, headers: dict[str, str], end: Callable[[], Awaitable[None]]
    ) -> None:
        self.body = b""
        self.status_code = status_code
        self.background = None
        self.init_headers(headers)
        self._chunks = chunks
        self._end = end

    def init_headers(self, headers: Mapping[str, str] | None = None) -> None:
        self.raw_headers = [(key.lower().encode("latin-1"), value.encode("latin-1")) for key, value in (headers or {}).items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with aclosing(self._chunks) as chunks:
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                async for chunk in chunks:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            # Here rather than in the generator: one that was never begun has no finally.
            await self._end()


class _Run:
    """One http-backend process."""

    def __init__(self, environment: dict[str, str], input_bytes_max: int, seconds_max: int) -> None:
        self._environment = environment
        self._input_bytes_max = input_bytes_max
        self._deadline = asyncio.get_running_loop().time() + seconds_max
        self._process: asyncio.subprocess.Process | None = None
        self._feeding: asyncio.Task[None] | None = None
        self._rest = b""
        self._complete = False

    async def start(self, request: Request) -> tuple[int, dict[str, str]]:
        """Starts it and gives the status and headers it answers with. Raises Problem."""
        self._process = await asyncio.create_subprocess_exec(
            "git", "http-backend", env=self._environment, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL, start_new_session=True, limit=CHUNK_BYTES,
        )  # fmt: skip
        self._feeding = asyncio.create_task(self._feed(request, self._process))
        head = await self._head(self._process)
        # A request that was refused while it was read is known by now.
        if self._feeding.done():
            self._feeding.result()
        status, headers = 200, {}
        for line in head.decode("latin-1").split("\r\n"):
            key, _, value = line.partition(":")
            if key.lower() == "status":
                status = int(value.split()[0])
            elif key.strip():
                headers[key.strip()] = value.strip()
        return status, headers

    async def output(self) -> AsyncIterator[bytes]:
        """The body as it comes."""
        assert self._process is not None
        assert self._process.stdout is not None
        if self._rest:
            yield self._rest
        while chunk := await self._read(self._process.stdout):
            yield chunk
        self._complete = True

    async def end(self) -> None:
        """Kills whatever still runs, with its children."""
        if not self._complete:
            self._kill()
        if self._feeding is not None:
            self._feeding.cancel()
            await asyncio.gather(self._feeding, return_exceptions=True)
        if self._process is not None:
            if self._complete:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(2):  # it closed its output, so it is about to end by itself
                        await self._process.wait()
            await end_process(self._process)

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _head(self, process: asyncio.subprocess.Process) -> bytes:
        assert process.stdout is not None
        assert self._feeding is not None
        collected = b""
        while b"\r\n\r\n" not in collected:
            reading = asyncio.ensure_future(self._read(process.stdout))
            await asyncio.wait({reading, self._feeding}, return_when=asyncio.FIRST_COMPLETED)
            if self._feeding.done() and self._feeding.exception() is not None:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
                self._feeding.result()
            chunk = await reading
            collected += chunk
            if not chunk or len(collected) > HEADER_BYTES_MAX:
                raise Problem(500, "git http-backend did not answer as a CGI program does; is git complete on this host?")
        head, _, self._rest = collected.partition(b"\r\n\r\n")
        return head

    async def _feed(self, request: Request, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        taken = 0
        try:
            async for chunk in request.stream():
                taken += len(chunk)
                if taken > self._input_bytes_max:
                    raise Problem(413, f"the request is over {self._input_bytes_max} bytes; for pushes see LOOPWRIGHT_FORGE_PUSH_BYTES_MAX")
                if chunk:
                    await write_to(process.stdin, chunk)
        except (BrokenPipeError, ConnectionResetError):
            return  # it has read what it wanted
        except (ClientDisconnect, Problem):
            self._kill()
            raise
        finally:
            process.stdin.close()
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self._kill()  # nobody is listening any more

    async def _read(self, stream: asyncio.StreamReader) -> bytes:
        try:
            async with asyncio.timeout_at(self._deadline):
                return await stream.read(CHUNK_BYTES)
        except TimeoutError as error:
            raise Problem(503, "git took too long; see LOOPWRIGHT_FORGE_GIT_SECONDS_MAX") from error
