"""Hostile requests get the right error; the edge goes on, and nothing of them is stored."""

import asyncio
import gzip
import json
import re
import zlib

import brotli
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

PROBLEM = "application/problem+json"
GOOD = json.dumps({"title": "still here"}).encode()


async def still_serves(edge, stored=0):
    """Nothing was stored, and the next good request is taken."""
    assert edge.stored == stored
    assert (await edge.post("/v1/signals", content=GOOD)).status_code == 202
    assert edge.stored == stored + 1


def deep(depth):
    return b"[" * depth + b"]" * depth


MALFORMED = {
    "empty": b"",
    "a word": b"hello",
    "half an object": b'{"title": "x"',
    "something behind": b'{"title": "x"} {"title": "y"}',
    "single quotes": b"{'title': 'x'}",
    "a comment": b'{"title": "x" /* y */}',
    "NaN": b'{"title": "x", "weight": NaN}',
    "Infinity": b'{"title": "x", "weight": Infinity}',
    "a raw NUL": b'{"title": "x\x00"}',
    "a raw control character": b'{"title": "x\x01"}',
    "not UTF-8": b'{"title": "\xff\xfe"}',
    "latin-1": '{"title": "café"}'.encode("latin-1"),
    "UTF-16": '{"title": "x"}'.encode("utf-16"),
    "an overlong encoding": b'{"title": "\xc0\xaf"}',
    "a surrogate in UTF-8": b'{"title": "\xed\xa0\x80"}',
    "half a surrogate pair": b'{"title": "\\ud800"}',
    "a byte order mark": b"\xef\xbb\xbf" + GOOD,
    "a number of 5,000 digits": b'{"title": "x", "weight": ' + b"9" * 5_000 + b"}",
    "nested 250 deep": b'{"title": "x", "labels": ' + deep(250) + b"}",
    "nested 100,000 deep": deep(100_000),
    "half of 100,000 deep": b"[" * 100_000,
    "objects 100,000 deep": b'{"a":' * 100_000,
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
async def test_what_is_no_json_is_a_400(edge, body):
    for path in ("/v1/signals", "/v1/deploys", "/v1/exposure"):
        answer = await edge.post(path, content=body)
        assert (answer.status_code, answer.headers["content-type"]) == (400, PROBLEM)
    await still_serves(edge)


@pytest.mark.parametrize(
    "body", [b"null", b"3", b'"x"', b"true", b"[]", b"[[]]", b"[null]", b'{"signals": null}', b'{"signals": []}', b"{}"]
)
async def test_json_of_another_shape_is_a_422(edge, body):
    answer = await edge.post("/v1/signals", content=body)
    assert (answer.status_code, answer.headers["content-type"]) == (422, PROBLEM)
    await still_serves(edge)


@pytest.mark.parametrize("number", [b"1e400", b"-1e400", b"1e-400000", b"9" * 400, b"-1", b"1e99"])
async def test_a_huge_number_is_not_taken_for_a_weight(edge, number):
    answer = await edge.post("/v1/signals", content=b'{"title": "x", "weight": ' + number + b"}")
    assert answer.status_code in ((202,) if number == b"1e-400000" else (400, 422))
    await still_serves(edge, stored=answer.status_code == 202)


@pytest.mark.parametrize("number", [b"1e400", b"9" * 4_000, b"1.5", b"-1", b'"12"x', b"1e19"])
async def test_a_huge_number_is_not_taken_for_a_count(edge, number):
    body = b'{"exposure": [{"minute": "2026-11-26T10:00:00Z", "count": ' + number + b"}]}"
    assert (await edge.post("/v1/exposure", content=body)).status_code in (400, 422)
    await still_serves(edge)


@pytest.mark.parametrize(
    "body",
    [
        b'{"title": "x", "title": "y"}',
        b'{"title": "x", "labels": {"a": "1", "a": "2"}}',
        b'{"title": "x\\u0000y"}',
    ],
)
async def test_what_would_be_changed_in_silence_is_refused(edge, body):
    answer = await edge.post("/v1/signals", content=body)
    assert answer.status_code in (400, 422)
    await still_serves(edge)


async def test_a_nul_never_gets_into_the_store(edge):
    await edge.post("/v1/signals", content=b'{"title": "a\\u0000b", "labels": {"k\\u0000": "v\\u0000"}}')
    kept = b"".join(message.payload for message in edge.bus.broker.streams["SIGNALS"])
    assert b"\x00" not in kept
    assert b"\\u0000" not in kept


# Compression

WRONG = {
    "gzip that is none": ("gzip", b"hello"),
    "gzip cut off": ("gzip", gzip.compress(GOOD * 50)[:-9]),
    "gzip with a wrong checksum": ("gzip", gzip.compress(GOOD)[:-8] + b"\0" * 8),
    "an empty gzip": ("gzip", b""),
    "deflate that is none": ("deflate", b"\xff\xff\xff"),
    "deflate cut off": ("deflate", zlib.compress(GOOD * 50)[:-6]),
    "deflate with something behind": ("deflate", zlib.compress(GOOD) + b"x"),
    "br that is none": ("br", b"\xff" * 40),
    "br cut off": ("br", brotli.compress(GOOD * 50)[:-3]),
    "br with something behind": ("br", brotli.compress(GOOD) + b"xyz"),
    "plain text called gzip": ("gzip", GOOD),
    "gzip called br": ("br", gzip.compress(GOOD)),
    "gzip with rubbish behind": ("gzip", gzip.compress(GOOD) + b"rubbish"),
}


@pytest.mark.parametrize(("encoding", "body"), WRONG.values(), ids=WRONG.keys())
async def test_what_is_not_compressed_as_it_says_is_a_400(edge, encoding, body):
    answer = await edge.post("/v1/signals", content=body, Content_Encoding=encoding)
    assert (answer.status_code, answer.headers["content-type"]) == (400, PROBLEM)
    await still_serves(edge)


RIGHT = {
    "gzip": gzip.compress(GOOD),
    "GZIP": gzip.compress(GOOD),
    "x-gzip": gzip.compress(GOOD),
    "deflate": zlib.compress(GOOD),
    "br": brotli.compress(GOOD),
    "identity": GOOD,
}


@pytest.mark.parametrize(("encoding", "body"), RIGHT.items(), ids=RIGHT.keys())
async def test_every_encoding_that_is_offered_is_understood(edge, encoding, body):
    assert (await edge.post("/v1/signals", content=body, Content_Encoding=encoding)).status_code == 202
    assert edge.signals[0].title == "still here"


async def test_a_raw_deflate_stream_is_understood(edge):
    stream = zlib.compressobj(wbits=-15)
    body = stream.compress(GOOD) + stream.flush()
    assert (await edge.post("/v1/signals", content=body, Content_Encoding="deflate")).status_code == 202


@pytest.mark.parametrize("encoding", ["compress", "zstd", "gzip, br", "rot13", "gzip;q=1", "\u00e9".encode("latin-1")])
async def test_an_unknown_encoding_is_a_415_that_says_what_is_known(edge, encoding):
    answer = await edge.post("/v1/signals", content=GOOD, Content_Encoding=encoding)
    assert (answer.status_code, answer.headers["content-type"]) == (415, PROBLEM)
    assert answer.headers["accept-encoding"] == "gzip, deflate, br"
    await still_serves(edge)


@pytest.mark.parametrize("kind", ["text/plain", "application/xml", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded"])
async def test_another_content_type_is_a_415(edge, kind):
    answer = await edge.post("/v1/signals", content=GOOD, Content_Type=kind)
    assert (answer.status_code, answer.headers["content-type"]) == (415, PROBLEM)
    await still_serves(edge)


BOMBS = {
    "gzip": lambda size: gzip.compress(b" " * size),
    "deflate": lambda size: zlib.compress(b" " * size),
    "br": lambda size: brotli.compress(b" " * size),
}


@pytest.mark.parametrize("encoding", BOMBS)
async def test_a_compression_bomb_is_a_413(start_edge, encoding):
    edge = await start_edge(decoded_bytes_max=1024**2)
    bomb = BOMBS[encoding](16 * 1024**2)
    for path in ("/v1/signals", "/v1/exposure"):
        answer = await edge.post(path, content=bomb, Content_Encoding=encoding)
        assert (answer.status_code, answer.headers["content-type"]) == (413, PROBLEM)
    await still_serves(edge)


async def test_others_are_answered_while_bombs_go_off(edge):
    bomb = BOMBS["gzip"](60 * 1024**2)
    bombs = [asyncio.create_task(edge.post("/v1/signals", content=bomb, Content_Encoding="gzip")) for _ in range(6)]
    await asyncio.sleep(0.01)
    assert (await edge.post("/v1/signals", content=GOOD)).status_code == 202
    assert not all(task.done() for task in bombs)
    assert {(await task).status_code for task in bombs} == {413}
    assert edge.stored == 1


# Sizes


async def test_a_body_over_the_limit_is_a_413_by_its_declared_length(start_edge):
    edge = await start_edge(body_bytes_max=100_000)
    answer = await edge.post("/v1/signals", content=b" " * 100_001)
    assert (answer.status_code, answer.headers["content-type"]) == (413, PROBLEM)
    await still_serves(edge)


async def test_a_body_over_the_limit_is_a_413_before_all_of_it_is_there(start_edge):
    edge = await start_edge(body_bytes_max=100_000)
    head = b"POST /v1/signals HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer lw_full_key\r\nContent-Type: application/json\r\n"
    # 1 MB is announced and not one byte of it sent: the answer comes all the same.
    assert (await edge.raw(head + b"Content-Length: 1000000\r\nConnection: close\r\n\r\n")).startswith(b"HTTP/1.1 413 ")
    # Seven chunks pass the limit; the last one, which would end the body, never comes.
    chunked = head + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n" + (b"4000\r\n" + b" " * 0x4000 + b"\r\n") * 7
    assert (await edge.raw(chunked)).startswith(b"HTTP/1.1 413 ")
    await still_serves(edge)


async def test_a_body_that_ends_too_early_stores_nothing(edge):
    head = b"POST /v1/signals HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer lw_full_key\r\nContent-Type: application/json\r\n"
    _, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    writer.write(head + b"Content-Length: 500\r\n\r\n" + GOOD)
    await writer.drain()
    await asyncio.sleep(0.05)
    writer.transport.abort()
    await asyncio.sleep(0.1)
    await still_serves(edge)


async def test_a_client_that_goes_away_is_no_failure_of_ours(edge, logged):
    _, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    writer.write(b"POST /v1/signals HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer lw_full_key\r\nContent-Length: 500\r\n\r\n{")
    await writer.drain()
    await asyncio.sleep(0.05)
    writer.transport.abort()
    await asyncio.sleep(0.1)
    assert [entry for entry in logged if entry["log_level"] == "error"] == []


RAW = {
    "not HTTP": b"hello\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 40,
    "no method": b" /v1/signals HTTP/1.1\r\n\r\n",
    "an unknown version": b"POST /v1/signals HTTP/9.9\r\nHost: x\r\n\r\n",
    "two lengths": b"POST /v1/signals HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "a negative length": b"POST /v1/signals HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    "a length of letters": b"POST /v1/signals HTTP/1.1\r\nHost: x\r\nContent-Length: abc\r\n\r\n",
    "length and chunks": b"POST /v1/signals HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a chunk of no size": b"POST /v1/signals HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n",
    "a header of control characters": b"POST /v1/signals HTTP/1.1\r\nHost: x\r\nA: \x00\x01\r\n\r\n",
    "a folded header": b"POST /v1/signals HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
}


@pytest.mark.parametrize("data", RAW.values(), ids=RAW.keys())
async def test_what_is_no_http_is_a_400_and_closed(edge, data):
    said = await edge.raw(data, half_close=True)
    assert said.startswith(b"HTTP/1.1 4") or said == b""
    await still_serves(edge)


START_OF_ONE = b"POST /v1/signals HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer lw_full_key\r\nContent-Type: application/json\r\n"
CHUNKED = START_OF_ONE + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"
ENDLESS = {
    "2,000 headers": START_OF_ONE + b"".join(b"X-%d: %s\r\n" % (number, b"a" * 1_000) for number in range(2_000)) + b"\r\n",
    "headers that do not end": START_OF_ONE + b"A: %s\r\n" % (b"b" * 500) * 200,
    "a header that does not end": START_OF_ONE + b"A: " + b"b" * 300_000,
    "a name that does not end": START_OF_ONE + b"b" * 300_000,
    "an address that does not end": b"POST /v1/" + b"b" * 300_000,
    "trailers": CHUNKED + b"0\r\n" + b"A: %s\r\n" % (b"b" * 1_000) * 200 + b"\r\n",
    "a trailer that does not end": CHUNKED + b"0\r\nA: " + b"b" * 300_000,
    "a chunk's extension that does not end": CHUNKED + b"2;a=" + b"b" * 300_000,
    "behind a good request": START_OF_ONE + b"Content-Length: %d\r\n\r\n" % len(GOOD) + GOOD + b"GET / HTTP/1.1\r\nA: " + b"b" * 300_000,
}


@pytest.mark.parametrize("data", ENDLESS.values(), ids=ENDLESS.keys())
async def test_headers_without_end_are_refused(edge, data, logged):
    said = await edge.raw(data)
    answers = re.findall(rb"HTTP/1\.1 (\d+) ", said)
    assert answers[-1:] == [b"431"]
    assert len(edge.signals) == answers.count(b"202") == len(answers) - 1
    assert [entry for entry in logged if entry["log_level"] == "error"] == []
    await still_serves(edge, stored=edge.stored)


async def test_headers_that_drip_are_refused_too(edge):
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    writer.write(START_OF_ONE)
    for _ in range(80):
        writer.write(b"A: " + b"b" * 1_000 + b"\r\n")
        await writer.drain()
        await asyncio.sleep(0.001)
    assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/1.1 431 ")
    writer.close()
    await still_serves(edge)


async def test_long_headers_within_the_limit_and_long_bodies_are_taken(edge):
    answer = await edge.post("/v1/signals", content=GOOD, X_Long="a" * 60_000)
    assert answer.status_code == 202
    long = json.dumps({"title": "x", "body": "y" * 200_000}).encode()
    answer = await edge.post("/v1/signals", content=long)
    assert answer.status_code in (202, 422)  # by what it says, not by its length
    await still_serves(edge, stored=edge.stored)


# Addresses and methods


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/signal", "/v1/signals/", "/v2/signals", "/v1/signals/../../etc/passwd", "/%00", "/api/7/minidump/"]
)
async def test_an_address_that_is_not_there_is_a_404(edge, path):
    answer = await edge.post(path, content=GOOD)
    assert (answer.status_code, answer.headers["content-type"]) == (404, PROBLEM)
    await still_serves(edge)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "TRACE"])
async def test_another_method_is_a_405_that_names_the_right_one(edge, method):
    answer = await edge.client.request(method, "/v1/signals")
    assert (answer.status_code, answer.headers["content-type"], answer.headers["allow"]) == (405, PROBLEM, "POST")


# Whatever comes

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
FIELDS = [
    "title",
    "kind",
    "body",
    "id",
    "occurred_at",
    "labels",
    "frames",
    "request",
    "fingerprint",
    "links",
    "weight",
    "actor",
    "severity",
]
half_right = st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=6).map(lambda item: {"title": "x"} | item)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
async def test_no_body_makes_it_fail(edge, body):
    for path in ("/v1/signals", "/v1/deploys", "/v1/exposure"):
        answer = await edge.post(path, content=body)
        assert answer.status_code in (400, 413, 422), (path, body)
        assert answer.headers["content-type"] == PROBLEM
    assert edge.stored == 0


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(item=half_right)
async def test_what_is_answered_202_is_stored_and_nothing_else_is(edge, item):
    before = len(edge.signals)
    answer = await edge.post("/v1/signals", item)
    assert answer.status_code in (202, 400, 422), answer.text
    taken = answer.json()["accepted"] if answer.status_code == 202 else 0
    assert len(edge.signals) == before + taken
