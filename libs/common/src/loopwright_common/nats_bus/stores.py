"""Buckets (NATS ADR-8) and objects (ADR-20, in the part that is needed) on JetStream streams."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from nats.aio.msg import Msg

from loopwright_common.bus import BusUnavailable, Conflict, Entry
from loopwright_common.errors import Permanent
from loopwright_common.identifiers import new_id
from loopwright_common.keys import check_bucket, check_key
from loopwright_common.nats_bus.connection import ApiError, Connection, Headers
from loopwright_common.nats_bus.streams import STREAM_NAME_IN_USE, STREAM_NOT_FOUND

T = TypeVar("T")

BATCH_BYTES_MAX = 4 * 1024**2  # held in the server's memory until it is committed
WRONG_LAST_SEQUENCE = (10071, 10164)
CHUNK_BYTES = 256 * 1024
OBJECT_BYTES_MAX = 64 * 1024**2
IDLE_SECONDS = 5.0  # the server's heartbeat to a watcher
LOST_SECONDS = 3 * IDLE_SECONDS
DELETED_FOR = "24h"  # longer than a watcher is ever without its server
RESUME_SECONDS = 0.3
ALLOWED_LATER = ("allow_msg_ttl", "allow_atomic")  # of streams that an earlier version made
KEYS_ASKED_MAX = 500  # in one request; the server takes 1,024
WRITES_IN_FLIGHT_MAX = 64
REPLY_SECONDS = 10.0


async def open_stream(connection: Connection, config: dict[str, Any]) -> dict[str, Any]:
    """Makes the stream when it is not there, and gives it what it lacks; returns how it is. Raises BusUnavailable."""
    name = config["name"]
    try:
        try:
            present = (await connection.api(f"STREAM.INFO.{name}"))["config"]
        except ApiError as error:
            if error.err_code != STREAM_NOT_FOUND:
                raise
            return dict((await connection.api(f"STREAM.CREATE.{name}", config))["config"])
        lacking = {name: True for name in ALLOWED_LATER if config.get(name) and not present.get(name)}
        if lacking:
            present = (await connection.api(f"STREAM.UPDATE.{name}", {**present, **lacking}))["config"]
        return dict(present)
    except ApiError as error:
        if error.err_code != STREAM_NAME_IN_USE:
            raise BusUnavailable(f"JetStream refused {name}: {error}") from error
        return config  # another process has just made it


async def store(connection: Connection, subject: str, payload: bytes, headers: Headers | None = None) -> int:
    """Publishes to a stream and returns the sequence. Raises Conflict, BusUnavailable, MessageTooLarge."""
    message = await connection.request(subject, payload, headers=headers)
    answer: dict[str, Any] = json.loads(message.data)
    if "error" in answer:
        error = ApiError(answer["error"])
        if error.err_code in WRONG_LAST_SEQUENCE:
            raise Conflict(f"{subject}: {error.description}")
        raise BusUnavailable(f"{subject} was not taken: {error}")
    return int(answer["seq"])


async def all_of(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results; all of them are over before the first failure goes up."""
    results = await asyncio.gather(*work, return_exceptions=True)
    found: list[T] = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        found.append(result)
    return found


def _chunks(values: Mapping[str, bytes]) -> list[dict[str, bytes]]:
    """The values in such portions as an atomic batch takes."""
    chunks: list[dict[str, bytes]] = []
    size = 0
    for key, value in values.items():
        size += len(key) + len(value)
        if not chunks or size > BATCH_BYTES_MAX or len(chunks[-1]) >= KEYS_ASKED_MAX:
            chunks.append({})
            size = len(key) + len(value)
        chunks[-1][key] = value
    return chunks


class NatsKeyValue:
    """A bucket: the stream ``KV_<bucket>``, one message kept per key."""

    def __init__(self, connection: Connection, bucket: str, replicas: int) -> None:
        check_bucket(bucket)
        self._connection = connection
        self._stream = f"KV_{bucket}"
        self._prefix = f"$KV.{bucket}."
        self._replicas = replicas
        self._alone = False  # one server holds it: whoever answers has what was just written

    async def open(self) -> None:
        present = await open_stream(
            self._connection,
            {
                "name": self._stream,
                "subjects": [f"{self._prefix}>"],
                "max_msgs_per_subject": 1,
                "storage": "file",
                "discard": "new",
                "allow_rollup_hdrs": True,
                "allow_msg_ttl": True,
                "allow_atomic": True,
                "deny_delete": True,
                "allow_direct": True,
                "num_replicas": self._replicas,
                "duplicate_window": 120_000_000_000,
            },
        )
        self._alone = int(present.get("num_replicas", 0)) == 1

    async def get(self, key: str) -> Entry | None:
        found = await self._last(key)
        return None if found is None or found[1] else found[0]

    async def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        wanted = list(dict.fromkeys(keys))
        for key in wanted:
            check_key(key)
        found: dict[str, Entry] = {}
        if self._alone and len(wanted) > 1:
            for start in range(0, len(wanted), KEYS_ASKED_MAX):
                found |= await self._last_of_each(wanted[start : start + KEYS_ASKED_MAX])
            return found
        # Of several servers one that lags behind may answer a question for many; the leader is asked for each.
        slots = asyncio.Semaphore(WRITES_IN_FLIGHT_MAX)

        async def read(key: str) -> Entry | None:
            async with slots:
                return await self.get(key)

        answers = await all_of([read(key) for key in wanted])
        return {key: entry for key, entry in zip(wanted, answers, strict=True) if entry is not None}

    async def _last_of_each(self, keys: Sequence[str]) -> dict[str, Entry]:
        """The entries of these keys, by one request (NATS ADR-31, batched direct get)."""
        found: dict[str, Entry] = {}
        finished: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def arrived(message: Msg) -> None:
            headers = message.headers or {}
            subject = headers.get("Nats-Subject")
            if subject is None:
                if not finished.done():
                    finished.set_result(headers.get("Status", ""))
            elif "KV-Operation" not in headers:
                key = subject.removeprefix(self._prefix)
                found[key] = Entry(key, message.data, int(headers["Nats-Sequence"]))

        inbox = self._connection.client.new_inbox()
        request = json.dumps({"multi_last": [self._prefix + key for key in keys]}).encode()
        with self._connection.losing() as lost:
            subscription = await self._connection.subscribe(inbox, cb=arrived)
            losing = asyncio.ensure_future(lost.wait())
            try:
                await self._connection.publish(f"$JS.API.DIRECT.GET.{self._stream}", request, inbox)
                await asyncio.wait([finished, losing], timeout=REPLY_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            finally:
                losing.cancel()
                with contextlib.suppress(Exception):
                    await subscription.unsubscribe()
        # 204 ends the entries, 404 says that there are none; no status at all comes of a lost connection or of no answer.
        status = finished.result() if finished.done() else "none"
        if status not in ("204", "404"):
            raise BusUnavailable(f"the bucket {self._stream} does not answer for {len(keys)} keys (status {status})")
        return found

    async def create_many(self, values: Mapping[str, bytes]) -> dict[str, int]:
        for key in values:
            check_key(key)
        created: dict[str, int] = {}
        for chunk in _chunks(values):
            if len(chunk) > 1:
                revisions = await self._create_all(chunk)
                if revisions:
                    created |= revisions
                    continue
            created |= await self._create_each(chunk)
        return created

    async def _create_each(self, values: Mapping[str, bytes]) -> dict[str, int]:
        slots = asyncio.Semaphore(WRITES_IN_FLIGHT_MAX)

        async def create(key: str, value: bytes) -> int:
            async with slots:
                try:
                    return await self.create(key, value)
                except Conflict:
                    return 0

        revisions = await all_of([create(key, value) for key, value in values.items()])
        return {key: revision for key, revision in zip(values, revisions, strict=True) if revision}

    async def _create_all(self, values: Mapping[str, bytes]) -> dict[str, int]:
        """All of them in one atomic batch, synced once; nothing when one of them exists or the server takes no such batch."""
        batch, answer = new_id(), b""
        for number, (key, value) in enumerate(values.items(), 1):
            headers = {
                "Nats-Expected-Last-Subject-Sequence": "0", "Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number)
            }  # fmt: skip
            if number < len(values):
                await self._connection.publish(self._prefix + key, value, headers=headers)
            else:
                headers["Nats-Batch-Commit"] = "1"
                answer = (await self._connection.request(self._prefix + key, value, headers=headers)).data
        told: dict[str, Any] = json.loads(answer)
        if "error" in told:
            return {}
        last, count = int(told["seq"]), int(told.get("count", 0))
        if count != len(values):
            raise BusUnavailable(f"the bucket {self._stream} took {count} of {len(values)} keys")
        return {key: last - count + number for number, key in enumerate(values, 1)}

    async def _last(self, key: str) -> tuple[Entry, bool] | None:
        """(entry, whether it was deleted). Asked of the stream's leader, so that what was just written is read."""
        check_key(key)
        try:
            answer = await self._connection.api(f"STREAM.MSG.GET.{self._stream}", {"last_by_subj": self._prefix + key})
        except ApiError as error:
            if error.code == 404:
                return None
            raise BusUnavailable(f"the bucket {self._stream} does not answer: {error}") from error
        message = answer["message"]
        headers = base64.b64decode(message.get("hdrs", "")).decode("utf-8", errors="replace")
        value = base64.b64decode(message.get("data", ""))
        return Entry(key, value, int(message["seq"])), "KV-Operation:" in headers

    async def create(self, key: str, value: bytes) -> int:
        check_key(key)
        try:
            return await self._write(key, value, 0)
        except Conflict:
            found = await self._last(key)
            if found is None or not found[1]:
                raise
            return await self._write(key, value, found[0].revision)

    async def update(self, key: str, value: bytes, revision: int) -> int:
        check_key(key)
        return await self._write(key, value, revision)

    async def put(self, key: str, value: bytes) -> int:
        check_key(key)
        return await store(self._connection, self._prefix + key, value)

    async def delete(self, key: str) -> None:
        check_key(key)
        # The mark tells watchers, and goes by itself: keys that come and go must not fill the bucket with marks.
        headers = {"KV-Operation": "PURGE", "Nats-Rollup": "sub", "Nats-TTL": DELETED_FOR}
        await store(self._connection, self._prefix + key, b"", headers)

    async def _write(self, key: str, value: bytes, revision: int) -> int:
        return await store(self._connection, self._prefix + key, value, {"Nats-Expected-Last-Subject-Sequence": str(revision)})

    async def keys(self, prefix: str = "") -> list[str]:
        found: dict[str, bool] = {}
        async with contextlib.aclosing(self._changes(prefix, headers_only=True)) as changes:
            async for change in changes:
                if change is None:
                    break
                found[change[0].key] = change[1]
        return sorted(key for key, deleted in found.items() if not deleted)

    async def watch(self, prefix: str = "") -> AsyncIterator[Entry | None]:
        """Goes on by itself after a lost connection, from where it was: also deletions of that time are told."""
        started, revision = False, 0
        while True:
            try:
                async with contextlib.aclosing(self._changes(prefix, after=revision)) as changes:
                    async for change in changes:
                        if change is None:
                            if not started:
                                started = True
                                yield None
                            continue
                        entry, deleted = change
                        revision = max(revision, entry.revision)
                        if not deleted:
                            yield entry
                        elif started:
                            yield Entry(entry.key, b"", entry.revision)
            except BusUnavailable:
                if not started:
                    raise
                await asyncio.sleep(RESUME_SECONDS)
                await self._connection.wait_connected()

    async def _changes(self, prefix: str, *, after: int = 0, headers_only: bool = False) -> AsyncGenerator[tuple[Entry, bool] | None, None]:
        """(entry, deleted) for each key, None once when all that was there was told, then every change. Raises BusUnavailable when lost.

        ``after``: only what was written after that revision.
        """
        queue: asyncio.Queue[Msg] = asyncio.Queue()

        async def arrived(message: Msg) -> None:
            queue.put_nowait(message)

        inbox = self._connection.client.new_inbox()
        subscription = await self._connection.subscribe(inbox, cb=arrived)
        name = f"watch-{new_id()}"
        config = {
            "name": name,
            "deliver_subject": inbox,
            "deliver_policy": "last_per_subject",
            "ack_policy": "none",
            "max_deliver": 1,
            "mem_storage": True,
            "num_replicas": 1,
            "filter_subject": f"{self._prefix}>",
            "replay_policy": "instant",
            "inactive_threshold": int(LOST_SECONDS * 4 * 1_000_000_000),
            "idle_heartbeat": int(IDLE_SECONDS * 1_000_000_000),
            "flow_control": True,
            "headers_only": headers_only,
        }
        if after:
            config |= {"deliver_policy": "by_start_sequence", "opt_start_seq": after + 1}
        try:
            with self._connection.losing() as lost:
                try:
                    made = await self._connection.api(
                        f"CONSUMER.CREATE.{self._stream}.{name}", {"stream_name": self._stream, "config": config}
                    )
                except ApiError as error:
                    raise BusUnavailable(f"the bucket {self._stream} cannot be watched: {error}") from error
                told = int(made.get("num_pending", 0)) == 0 and int(made.get("delivered", {}).get("consumer_seq", 0)) == 0
                if told:
                    yield None
                while True:
                    message = await self._next(queue, lost)
                    if not message.reply.startswith("$JS.ACK."):
                        await self._answer_control(message)
                        continue
                    key = message.subject.removeprefix(self._prefix)
                    tokens = message.reply.split(".")
                    if key.startswith(prefix):
                        deleted = (message.headers or {}).get("KV-Operation") is not None
                        yield Entry(key, message.data, int(tokens[-4])), deleted
                    if not told and int(tokens[-1]) == 0:
                        told = True
                        yield None
        finally:
            with contextlib.suppress(Exception):
                await subscription.unsubscribe()
            with contextlib.suppress(Exception):
                await self._connection.api(f"CONSUMER.DELETE.{self._stream}.{name}", timeout=1)

    async def _next(self, queue: asyncio.Queue[Msg], lost: asyncio.Event) -> Msg:
        if not queue.empty():
            return queue.get_nowait()
        getting, watching = asyncio.ensure_future(queue.get()), asyncio.ensure_future(lost.wait())
        try:
            await asyncio.wait([getting, watching], timeout=LOST_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if getting.done():
                return getting.result()
        finally:
            for task in (getting, watching):
                if not task.done():
                    task.cancel()
        raise BusUnavailable(f"the bucket {self._stream} is no longer being told of")

    async def _answer_control(self, message: Msg) -> None:
        """Flow control wants an answer; heartbeats do not, unless they say that the flow is stalled."""
        stalled = (message.headers or {}).get("Nats-Consumer-Stalled")
        if message.reply:
            await self._connection.publish(message.reply)
        elif stalled:
            await self._connection.publish(stalled)


class NatsObjectStore:
    """Large values in chunks: the stream ``OBJ_<bucket>``. A value is there when its description is, which is written last."""

    def __init__(self, connection: Connection, bucket: str, replicas: int) -> None:
        check_bucket(bucket)
        self._connection = connection
        self._stream = f"OBJ_{bucket}"
        self._prefix = f"$O.{bucket}."
        self._replicas = replicas

    async def open(self) -> None:
        await open_stream(
            self._connection,
            {
                "name": self._stream,
                "subjects": [f"{self._prefix}C.>", f"{self._prefix}M.>"],
                "storage": "file",
                "discard": "new",
                "allow_rollup_hdrs": True,
                "allow_direct": True,
                "num_replicas": self._replicas,
            },
        )

    def _meta(self, name: str) -> str:
        return f"{self._prefix}M.{base64.urlsafe_b64encode(name.encode()).decode()}"

    async def put(self, name: str, value: bytes) -> None:
        if len(value) > OBJECT_BYTES_MAX:
            raise Permanent(f"{name} has {len(value)} bytes; an object may have {OBJECT_BYTES_MAX}")
        earlier = await self._describe(name)
        chunk_id = new_id()
        subject = f"{self._prefix}C.{chunk_id}"
        for start in range(0, len(value), CHUNK_BYTES):
            await store(self._connection, subject, value[start : start + CHUNK_BYTES])
        digest = base64.urlsafe_b64encode(hashlib.sha256(value).digest()).decode()
        chunks = -(-len(value) // CHUNK_BYTES)
        meta = {"name": name, "nuid": chunk_id, "size": len(value), "chunks": chunks, "digest": f"SHA-256={digest}"}
        await store(self._connection, self._meta(name), json.dumps(meta).encode(), {"Nats-Rollup": "sub"})
        if earlier is not None:
            await self._purge(f"{self._prefix}C.{earlier['nuid']}")

    async def get(self, name: str) -> bytes | None:
        meta = await self._describe(name)
        if meta is None:
            return None
        parts: list[bytes] = []
        sequence = 1
        for _ in range(int(meta["chunks"])):
            try:
                request = {"seq": sequence, "next_by_subj": f"{self._prefix}C.{meta['nuid']}"}
                message = (await self._connection.api(f"STREAM.MSG.GET.{self._stream}", request))["message"]
            except ApiError as error:
                raise BusUnavailable(f"a part of {name} is missing: {error}") from error
            parts.append(base64.b64decode(message.get("data", "")))
            sequence = int(message["seq"]) + 1
        value = b"".join(parts)
        digest = base64.urlsafe_b64encode(hashlib.sha256(value).digest()).decode()
        if meta["digest"] != f"SHA-256={digest}":
            raise BusUnavailable(f"{name} was being replaced while it was read")
        return value

    async def delete(self, name: str) -> None:
        meta = await self._describe(name)
        if meta is not None:
            await self._purge(self._meta(name))
            await self._purge(f"{self._prefix}C.{meta['nuid']}")

    async def _describe(self, name: str) -> dict[str, Any] | None:
        try:
            answer = await self._connection.api(f"STREAM.MSG.GET.{self._stream}", {"last_by_subj": self._meta(name)})
        except ApiError as error:
            if error.code == 404:
                return None
            raise BusUnavailable(f"the object store {self._stream} does not answer: {error}") from error
        meta: dict[str, Any] = json.loads(base64.b64decode(answer["message"]["data"]))
        return meta

    async def _purge(self, subject: str) -> None:
        try:
            await self._connection.api(f"STREAM.PURGE.{self._stream}", {"filter": subject})
        except ApiError as error:
            raise BusUnavailable(f"{subject} cannot be removed: {error}") from error
