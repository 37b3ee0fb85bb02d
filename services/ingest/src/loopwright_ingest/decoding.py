"""From the bytes of a request to values, within limits. Pure."""

from __future__ import annotations

import re
import zlib
from typing import Any

import brotli
import jiter

CHUNK = 64 * 1024
# A list or an object costs some 64 bytes in memory and two on the wire: without a limit a body of "[],[]," grows thirtyfold.
CONTAINERS_MAX = 500_000
ESCAPE = re.compile(rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u([dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL)
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Undecodable(ValueError):
    """The bytes are not what the headers say: 400."""


class UnknownEncoding(ValueError):
    """A Content-Encoding that is not understood: 415."""


class TooLarge(ValueError):
    """Over a limit once decompressed: 413."""


def decompress(body: bytes, encoding: str, bytes_max: int) -> bytes:
    """The body without its Content-Encoding (RFC 9110, section 8.4): gzip, deflate, br or identity; one, not a chain.

    Raises UnknownEncoding, Undecodable, and TooLarge as soon as the limit is passed, whatever the ratio.
    """
    name = encoding.strip().lower()
    if name in ("", "identity"):
        decoded = body
    elif name in ("gzip", "x-gzip"):
        decoded = _inflate(body, 31, bytes_max)
    elif name == "deflate":
        # RFC 9110 means the zlib format; some clients send the raw stream.
        zlib_format = len(body) > 1 and body[0] & 0x0F == 8 and int.from_bytes(body[:2]) % 31 == 0
        decoded = _inflate(body, 15 if zlib_format else -15, bytes_max)
    elif name == "br":
        decoded = _unbrotli(body, bytes_max)
    else:
        raise UnknownEncoding(f"Content-Encoding {encoding[:64]!r} is not understood; gzip, deflate, br and identity are.")
    if len(decoded) > bytes_max:
        raise TooLarge(f"The body is over {bytes_max} bytes.")
    return decoded


def _inflate(body: bytes, wbits: int, bytes_max: int) -> bytes:
    stream = zlib.decompressobj(wbits)
    try:
        decoded = stream.decompress(body, bytes_max + 1)
        if len(decoded) <= bytes_max:
            decoded += stream.flush()
    except zlib.error as error:
        raise Undecodable(f"The body is not compressed as its Content-Encoding says: {error}.") from error
    if len(decoded) > bytes_max:
        raise TooLarge(f"The body is over {bytes_max} bytes once decompressed.")
    if not stream.eof:
        raise Undecodable("The compressed body ends too early.")
    if stream.unused_data:
        raise Undecodable("There is something behind the compressed body.")
    return decoded


def _unbrotli(body: bytes, bytes_max: int) -> bytes:
    stream = brotli.Decompressor()
    parts: list[bytes] = []
    size = 0
    try:
        data: bytes = body
        while True:
            part = stream.process(data, output_buffer_limit=CHUNK)
            size += len(part)
            parts.append(part)
            if size > bytes_max:
                raise TooLarge(f"The body is over {bytes_max} bytes once decompressed.")
            if stream.is_finished():
                return b"".join(parts)
            if stream.can_accept_more_data():
                raise Undecodable("The compressed body ends too early.")
            data = b""
    except brotli.error as error:
        raise Undecodable("The body is not compressed as its Content-Encoding says.") from error


def parse_json(body: bytes, *, lenient: bool = False) -> Any:
    """The value of a JSON text (RFC 8259): UTF-8, no NaN, nested 200 deep at most, no name twice in an object, no NUL in a text.

    ``lenient`` is for clients that cannot do better: half a surrogate pair (where JavaScript cut a text) and NUL become U+FFFD, and of a
    repeated name the last counts. Raises Undecodable, TooLarge.
    """
    if body.count(b"[") + body.count(b"{") > CONTAINERS_MAX:
        raise TooLarge(f"The JSON holds more than {CONTAINERS_MAX} lists and objects.")
    try:
        value = jiter.from_json(body, allow_inf_nan=False, cache_mode="keys", catch_duplicate_keys=not lenient)
    except (ValueError, RecursionError) as error:
        if lenient and "escape" in str(error) and (repaired := ESCAPE.sub(_whole_pairs, body)) != body:
            return parse_json(repaired, lenient=True)
        # Where it fails, without the content: it is hostile, and may be private.
        reason = re.sub(r'duplicate key ".*" at', "a name twice in an object at", str(error), flags=re.DOTALL)[-200:]
        raise Undecodable(f"The body is not valid JSON: {reason}.") from error
    if b"\\u0000" not in body:  # only its escape gets this far
        return value
    cleaned = clean(value)
    if not lenient and cleaned != value:
        raise Undecodable("A text in the body holds a NUL character, which cannot be kept.")
    return cleaned


def _whole_pairs(match: re.Match[bytes]) -> bytes:
    return b"\\ufffd" if match.group(1) else match.group(0)


def clean(value: Any) -> Any:
    """The value with NUL replaced in every text: PostgreSQL cannot hold it, and no person ever meant it."""
    if isinstance(value, str):
        return value.replace("\x00", REPLACEMENT) if "\x00" in value else value
    if isinstance(value, dict):
        return {clean(key): clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [clean(item) for item in value]
    return value
