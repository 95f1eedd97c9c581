"""What each request means to the server, or that it refuses it; and how its answers are framed."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from coordinator.kit import wire_intake
from coordinator.kit.wire import FIELDS, HEAD_BYTES, new_loop
from coordinator.kit.wire_exchange import FieldStarts
from coordinator.kit.wire_server import Exchange, HandOver
from tests.wire.served import ALLOWED, Got, Meaning, Remembering, serving, turns
from tests.wire.upstream import guarded, on_each_loop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

HOST = b"Host: a\r\n"
GET = b"GET / HTTP/1.1\r\n" + HOST
POST = b"POST /p HTTP/1.1\r\n" + HOST
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
LAST = b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
"""Sent behind every case: it is served if, and only if, the server understood where the request ends and keeps the connection."""

ROOT: Meaning = (b"GET", b"/", b"")
EMPTY: Meaning = (b"POST", b"/p", b"")
ABC: Meaning = (b"POST", b"/p", b"abc")

UNDERSTOOD: dict[str, tuple[bytes, Meaning]] = {
    "plain": (GET + b"\r\n", ROOT),
    "an empty line before it": (b"\r\n" + GET + b"\r\n", ROOT),
    "many empty lines before it": (b"\r\n\r\n\n\n" + GET + b"\r\n", ROOT),
    "length": (POST + b"Content-Length: 3\r\n\r\nabc", ABC),
    "length zero": (POST + b"Content-Length: 0\r\n\r\n", EMPTY),
    "length with zeros before it": (POST + b"Content-Length: 003\r\n\r\nabc", ABC),
    "host with spaces around": (b"GET http://a/ HTTP/1.1\r\nHost: \t a \t \r\n\r\n", ROOT),
    "expectation with spaces around": (POST + b"Expect:  100-continue \t\r\nContent-Length: 3\r\n\r\nabc", ABC),
    "length with spaces around": (POST + b"Content-Length:\t 3 \t\r\n\r\nabc", ABC),
    "no length is no body": (POST + b"\r\n", EMPTY),
    "a body of a GET": (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", (b"GET", b"/", b"abc")),
    "a body that looks like a request": (POST + b"Content-Length: %d\r\n\r\n" % len(LAST) + LAST, (b"POST", b"/p", LAST)),
    "a body that looks like a head's end": (POST + b"Content-Length: 4\r\n\r\n\r\n\r\n", (b"POST", b"/p", b"\r\n\r\n")),
    "chunks": (CHUNKED + b"1\r\na\r\n02\r\nbc\r\n0\r\n\r\n", ABC),
    "chunks, no data": (CHUNKED + b"0\r\n\r\n", EMPTY),
    "chunks, in capitals": (POST + b"Transfer-Encoding: CHUNKED\r\n\r\nA\r\n0123456789\r\n0\r\n\r\n", (b"POST", b"/p", b"0123456789")),
    "chunks with a space behind the coding": (POST + b"Transfer-Encoding: chunked \r\n\r\n3\r\nabc\r\n0\r\n\r\n", ABC),
    "chunk extensions are dropped": (CHUNKED + b'3;a;b=c;d="e"\r\nabc\r\n0;f\r\n\r\n', ABC),
    "trailers are dropped": (CHUNKED + b"3\r\nabc\r\n0\r\nHost: evil\r\nX-Api-Key: evil\r\n\r\n", ABC),
    "chunk data that looks like an end": (CHUNKED + b"5\r\n0\r\n\r\n\r\n0\r\n\r\n", (b"POST", b"/p", b"0\r\n\r\n")),
    "query": (b"GET /a?b=c&d HTTP/1.1\r\n" + HOST + b"\r\n", (b"GET", b"/a?b=c&d", b"")),
    "two slashes": (b"GET //b/c HTTP/1.1\r\n" + HOST + b"\r\n", (b"GET", b"//b/c", b"")),
    "absolute target": (b"GET http://a/x?y HTTP/1.1\r\n" + HOST + b"\r\n", (b"GET", b"/x?y", b"")),
    "absolute target, in capitals": (b"GET HTTP://A HTTP/1.1\r\n" + HOST + b"\r\n", ROOT),
    "absolute target without a path": (b"GET http://a?y HTTP/1.1\r\n" + HOST + b"\r\n", (b"GET", b"/?y", b"")),
    "asterisk": (b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", (b"OPTIONS", b"*", b"")),
    "an empty host": (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", ROOT),
    "a host with a port": (b"GET / HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n", ROOT),
    "bytes beyond ASCII in a value": (GET + b"X: \xc3\xa9\xff\r\n\r\n", ROOT),
    "a field twice": (GET + b"X: 1\r\nX: 2\r\n\r\n", ROOT),
    "an unknown connection option": (GET + b"Connection: x\r\n\r\n", ROOT),
    "HTTP/1.0 that wants to be kept": (b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", ROOT),
    "an upgrade that is passed over": (GET + b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n", ROOT),
    "an upgrade with a body": (POST + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\nContent-Length: 3\r\n\r\nabc", ABC),
    "an upgrade with chunks": (POST + b"Connection: upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", ABC),
    "an upgrade that is not asked for": (POST + b"Upgrade: h2c\r\nContent-Length: 3\r\n\r\nabc", ABC),
    "expectation, with the body at once": (POST + b"Expect: 100-Continue\r\nContent-Length: 3\r\n\r\nabc", ABC),
    "expectation without a body": (GET + b"Expect: 100-continue\r\n\r\n", ROOT),
    "as many fields as may be": (b"GET / HTTP/1.1\r\n" + HOST + b"X: 1\r\n" * (FIELDS - 1) + b"\r\n", ROOT),
}  # fmt: skip

CLOSED: dict[str, tuple[bytes, Meaning]] = {
    "close": (GET + b"Connection: close\r\n\r\n", ROOT),
    "close among others": (GET + b"Connection: x, Close\r\n\r\n", ROOT),
    "close in a second field": (GET + b"Connection: keep-alive\r\nConnection: close\r\n\r\n", ROOT),
    "HTTP/1.0": (b"GET / HTTP/1.0\r\n\r\n", ROOT),
    "HTTP/1.0 with a host and a body": (b"POST /p HTTP/1.0\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", ABC),
}
"""Understood, and the connection is closed after the answer."""

REFUSED: dict[str, tuple[bytes, int]] = {
    # two framings
    "length and chunks": (POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "chunks and length": (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", 400),
    "two lengths": (POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc", 400),
    "the same length twice": (POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400),
    "a list of lengths": (POST + b"Content-Length: 3, 3\r\n\r\nabc", 400),
    "length and chunks, with an upgrade": (POST + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    # lengths that are none
    "length with a plus": (POST + b"Content-Length: +3\r\n\r\nabc", 400),
    "length with a minus": (POST + b"Content-Length: -3\r\n\r\nabc", 400),
    "length in hexadecimal": (POST + b"Content-Length: 0x3\r\n\r\nabc", 400),
    "length with an underscore": (POST + b"Content-Length: 1_0\r\n\r\nabc", 400),
    "length with a point": (POST + b"Content-Length: 3.0\r\n\r\nabc", 400),
    "length of nothing": (POST + b"Content-Length:\r\n\r\nabc", 400),
    "length in two parts": (POST + b"Content-Length: 3 3\r\n\r\nabc", 400),
    "length beyond 64 bits": (POST + b"Content-Length: 18446744073709551619\r\n\r\nabc", 400),
    "length in other digits": (POST + "Content-Length: ٣\r\n\r\nabc".encode(), 400),
    # codings
    "gzip before chunked": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    "gzip after chunked": (POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n", 400),
    "gzip alone": (POST + b"Transfer-Encoding: gzip\r\n\r\n0\r\n\r\n", 400),
    "identity": (POST + b"Transfer-Encoding: identity\r\n\r\n", 400),
    "chunked twice": (POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 400),
    "chunked in two fields": (POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "a comma before chunked": (POST + b"Transfer-Encoding: ,chunked\r\n\r\n0\r\n\r\n", 501),
    "almost chunked": (POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
    "chunked in quotes": (POST + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n', 400),
    "chunked behind a vertical tab": (POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400),
    "no coding": (POST + b"Transfer-Encoding:\r\n\r\n0\r\n\r\n", 400),
    "a space before the colon": (POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
    "chunks in HTTP/1.0": (b"POST /p HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    # chunks
    "chunk size with a sign": (CHUNKED + b"+3\r\nabc\r\n0\r\n\r\n", 400),
    "chunk size with 0x": (CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n", 400),
    "chunk size behind a space": (CHUNKED + b" 3\r\nabc\r\n0\r\n\r\n", 400),
    "chunk size before a space": (CHUNKED + b"3 \r\nabc\r\n0\r\n\r\n", 400),
    "chunk size with an underscore": (CHUNKED + b"1_0\r\n0123456789abcdef\r\n0\r\n\r\n", 400),
    "chunk size of nothing": (CHUNKED + b"\r\nabc\r\n0\r\n\r\n", 400),
    "chunk size beyond 64 bits": (CHUNKED + b"10000000000000003\r\nabc\r\n0\r\n\r\n", 400),
    "bare LF after a chunk's size": (CHUNKED + b"3\nabc\r\n0\r\n\r\n", 400),
    "bare LF after a chunk": (CHUNKED + b"3\r\nabc\n0\r\n\r\n", 400),
    "bare LF in an extension": (CHUNKED + b"3;a\nb\r\nabc\r\n0\r\n\r\n", 400),
    "bare CR in an extension": (CHUNKED + b"3;a\rb\r\nabc\r\n0\r\n\r\n", 400),
    "a chunk that is longer": (CHUNKED + b"3\r\nabcd\r\n0\r\n\r\n", 400),
    "a chunk that is shorter": (CHUNKED + b"3\r\nab\r\n0\r\n\r\n", 400),
    "bare LF at the end of chunks": (CHUNKED + b"3\r\nabc\r\n0\r\n\n", 400),
    "a length in the trailer": (CHUNKED + b"3\r\nabc\r\n0\r\nContent-Length: 5\r\n\r\n", 400),
    # lines
    "bare LF": (b"GET / HTTP/1.1\nHost: a\n\n", 400),
    "bare LF after a value": (b"GET / HTTP/1.1\r\nHost: a\nX: 1\r\n\r\n", 400),
    "bare LF at the head's end": (b"GET / HTTP/1.1\r\nHost: a\r\n\n", 400),
    "bare CR in a value": (GET + b"X: a\rY: b\r\n\r\n", 400),
    "bare CR after the request line": (b"GET / HTTP/1.1\rHost: a\r\n\r\n", 400),
    "two CR": (b"GET / HTTP/1.1\r\r\nHost: a\r\n\r\n", 400),
    "a folded field": (GET + b"X: a\r\n b\r\n\r\n", 400),
    "a folded length": (POST + b"Content-Length:\r\n 3\r\n\r\nabc", 400),
    "a space before the first field": (b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400),
    "a field without a name": (GET + b": a\r\n\r\n", 400),
    "a field without a colon": (GET + b"X\r\n\r\n", 400),
    "a bracket in a name": (GET + b"X(: a\r\n\r\n", 400),
    "a NUL in a name": (GET + b"X\0: a\r\n\r\n", 400),
    "a NUL in a value": (GET + b"X: a\0b\r\n\r\n", 400),
    "a control character in a value": (GET + b"X: a\x01b\r\n\r\n", 400),
    # request lines
    "two spaces before the target": (b"GET  / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "two spaces behind the target": (b"GET /  HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "a tab before the target": (b"GET\t/ HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "a space in the target": (b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "a space behind the version": (b"GET / HTTP/1.1 \r\n" + HOST + b"\r\n", 400),
    "a space before the method": (b" GET / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "a method that nobody knows": (b"FOO / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "a method in small letters": (b"get / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "a byte order mark": (b"\xef\xbb\xbfGET / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "a target without a slash": (b"GET x HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "a fragment": (b"GET /#x HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "a target beyond ASCII": (b"GET /\xff HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "a NUL in the target": (b"GET /\0 HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "an asterisk of a GET": (b"GET * HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "another host in the target": (b"GET http://b/ HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "a name and password in the target": (b"GET http://u:p@a/ HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "another scheme": (b"GET ftp://a/ HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "a fragment of an absolute target": (b"GET http://a/#x HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "a tunnel": (b"CONNECT a:80 HTTP/1.1\r\n" + HOST + b"\r\n", 501),
    # versions
    "HTTP/0.9": (b"GET /\r\n\r\n", 505),
    "HTTP/0.9 by name": (b"GET / HTTP/0.9\r\n" + HOST + b"\r\n", 505),
    "HTTP/1.2": (b"GET / HTTP/1.2\r\n" + HOST + b"\r\n", 505),
    "HTTP/2.0": (b"GET / HTTP/2.0\r\n" + HOST + b"\r\n", 505),
    "HTTP/2's opening": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "HTTP/3.0": (b"GET / HTTP/3.0\r\n" + HOST + b"\r\n", 505),
    "HTTP/11": (b"GET / HTTP/11\r\n" + HOST + b"\r\n", 400),
    "http/1.1": (b"GET / http/1.1\r\n" + HOST + b"\r\n", 400),
    "RTSP": (b"DESCRIBE / RTSP/1.0\r\n" + HOST + b"\r\n", 400),
    "RTSP, a method of both": (b"GET / RTSP/1.0\r\n" + HOST + b"\r\n", 400),
    "ICE": (b"SOURCE / ICE/1.0\r\n" + HOST + b"\r\n", 400),
    # hosts
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    "the same host twice": (b"GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n", 400),
    "two hosts in HTTP/1.0": (b"GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n", 400),
    "a list of hosts": (b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", 400),
    "a path in the host": (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    "a name in the host": (b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400),
    # bounds
    "too many fields": (b"GET / HTTP/1.1\r\n" + HOST + b"X: 1\r\n" * FIELDS + b"\r\n", 431),
    "a head that is too long": (GET + b"X: " + b"x" * HEAD_BYTES + b"\r\n\r\n", 431),
    "a head that does not end": (GET + b"X: " + b"x" * HEAD_BYTES, 431),
    "a target that is too long": (b"GET /" + b"x" * HEAD_BYTES + b" HTTP/1.1\r\n" + HOST + b"\r\n", 431),
    "a body that is too long": (POST + b"Content-Length: %d\r\n\r\nabc" % (ALLOWED + 1), 413),
    "chunks that are too long": (CHUNKED + b"100001\r\n" + b"x" * (ALLOWED + 1), 413),
    "another expectation": (POST + b"Expect: more\r\nContent-Length: 3\r\n\r\nabc", 417),
}  # fmt: skip


def in_pieces(raw: bytes, size: int) -> list[bytes]:
    return [raw[at : at + size] for at in range(0, len(raw), size)]


SPLITS: dict[str, Callable[[bytes], list[bytes]]] = {
    "whole": lambda raw: [raw],
    "byte by byte": lambda raw: in_pieces(raw, 1 if len(raw) < 1000 else 997),
}
split = pytest.mark.parametrize("pieces", SPLITS.values(), ids=SPLITS)


async def said(raw: bytes, pieces: Callable[[bytes], list[bytes]]) -> tuple[list[Got], list[Meaning]]:
    """The answers to ``raw`` with ``LAST`` behind it, and what was served."""
    handler = Remembering()
    async with serving(handler) as served:
        answers = await served.ask(*pieces(raw), LAST)
    return answers, handler.seen


LAST_MEANING: Meaning = (b"GET", b"/last", b"")


@split
@pytest.mark.parametrize(("raw", "meaning"), UNDERSTOOD.values(), ids=UNDERSTOOD)
def test_understood(raw: bytes, meaning: Meaning, pieces: Callable[[bytes], list[bytes]]) -> None:
    async def main() -> None:
        answers, seen = await said(raw, pieces)
        assert seen == [meaning, LAST_MEANING]
        assert [(answer.status, answer.body) for answer in answers] == [(200, meaning[2]), (200, b"")]

    guarded(new_loop, main())


@split
@pytest.mark.parametrize(("raw", "meaning"), CLOSED.values(), ids=CLOSED)
def test_understood_and_closed(raw: bytes, meaning: Meaning, pieces: Callable[[bytes], list[bytes]]) -> None:
    async def main() -> None:
        answers, seen = await said(raw, pieces)
        assert seen == [meaning]
        assert [(answer.status, answer.headers["connection"]) for answer in answers] == [(200, "close")]

    guarded(new_loop, main())


@on_each_loop
async def test_a_head_without_an_end_is_refused_as_soon_as_it_is_too_long() -> None:
    async with serving(Remembering()) as served, served.caller() as caller:
        await caller.say(GET + b"X: " + b"x" * HEAD_BYTES)
        got = await caller.answer()
        assert got is not None
        assert got.status == 431


@split
@pytest.mark.parametrize(("raw", "status"), REFUSED.values(), ids=REFUSED)
def test_refused(raw: bytes, status: int, pieces: Callable[[bytes], list[bytes]]) -> None:
    async def main() -> None:
        answers, seen = await said(raw, pieces)
        assert seen == []
        assert [(answer.status, answer.headers["connection"], answer.cut) for answer in answers] == [
            (status, "close", False)
        ]
        assert answers[0].body

    guarded(new_loop, main())


# ---------------------------------------------------------------------------------------------------------------- answers


def body_of(*pieces: bytes, length: int | None, status: int = 200) -> Callable[[Exchange], Awaitable[None]]:
    """A handler that sends them."""

    async def serve(exchange: Exchange) -> None:
        exchange.start(status, (), length=length)
        for piece in pieces:
            exchange.send(piece)
        exchange.finish()

    return serve


async def nothing_of_a_head(exchange: Exchange) -> None:
    exchange.start(200, (), length=3)
    if exchange.method != b"HEAD":
        exchange.send(b"abc")
    exchange.finish()


OLD = b"GET / HTTP/1.0\r\n\r\n"
OLD_KEPT = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"
ONE = GET + b"\r\n"
BIG = bytes(range(256)) * 200

ANSWERS: dict[str, tuple[bytes, Callable[[Exchange], Awaitable[None]], dict[str, str], bytes, bool]] = {
    "known length": (ONE, body_of(b"ab", b"", b"c", length=3), {"content-length": "3"}, b"abc", True),
    "no length": (ONE, body_of(b"ab", b"", b"c", length=None), {"transfer-encoding": "chunked"}, b"abc", True),
    "no length, long pieces": (ONE, body_of(BIG, b"c", BIG, length=None), {"transfer-encoding": "chunked"}, BIG + b"c" + BIG, True),
    "no length, nothing": (ONE, body_of(length=None), {"transfer-encoding": "chunked"}, b"", True),
    "length zero": (ONE, body_of(b"", length=0), {"content-length": "0"}, b"", True),
    "no length, HTTP/1.0": (OLD, body_of(b"ab", b"c", length=None), {"connection": "close"}, b"abc", False),
    "no length, HTTP/1.0 that is kept": (OLD_KEPT, body_of(b"ab", b"c", length=None), {"connection": "close"}, b"abc", False),
    "known length, HTTP/1.0": (OLD, body_of(b"abc", length=3), {"connection": "close", "content-length": "3"}, b"abc", False),
    "known length, HTTP/1.0 that is kept": (OLD_KEPT, body_of(b"abc", length=3), {"connection": "keep-alive", "content-length": "3"}, b"abc", True),
    "HEAD": (HEAD, body_of(b"abc", length=3), {"content-length": "3"}, b"", True),
    "HEAD, no length": (HEAD, body_of(b"abc", length=None), {}, b"", True),
    "HEAD, nothing sent": (HEAD, nothing_of_a_head, {"content-length": "3"}, b"", True),
    "204": (ONE, body_of(b"abc", length=3, status=204), {}, b"", True),
    "304": (ONE, body_of(length=None, status=304), {}, b"", True),
    "a status without a name": (ONE, body_of(b"abc", length=3, status=599), {"content-length": "3"}, b"abc", True),
}  # fmt: skip


@on_each_loop
@pytest.mark.parametrize(("raw", "serve", "headers", "body", "kept"), ANSWERS.values(), ids=ANSWERS)
async def test_answer(
    raw: bytes, serve: Callable[[Exchange], Awaitable[None]], headers: dict[str, str], body: bytes, kept: bool
) -> None:
    handler = Remembering(serve)
    async with serving(handler) as served:
        method = raw.partition(b" ")[0].decode()
        answers = await served.ask(raw, LAST, methods=(method,))
    assert (answers[0].headers, answers[0].body, answers[0].cut) == (headers, body, False)
    assert len(answers) == len(handler.seen) == 1 + kept
    assert all(exchange.finished and exchange.started and not exchange.gone for exchange in handler.exchanges)


@on_each_loop
async def test_a_reply_is_one_write_and_a_head_waits_for_no_body() -> None:
    begun = asyncio.Event()

    async def serve(exchange: Exchange) -> None:
        if exchange.target == b"/reply":
            exchange.reply(201, ((b"X-A", b"1"),), b"abc", reason=b"Made")
        else:
            exchange.start(200, (), length=3)
            await begun.wait()
            exchange.send(b"abc")
            exchange.finish()

    async with serving(Remembering(serve)) as served, served.caller() as caller:
        await caller.say(b"GET /reply HTTP/1.1\r\nHost: a\r\n\r\n")
        assert await caller.hear() == b"HTTP/1.1 201 Made\r\nX-A: 1\r\nContent-Length: 3\r\n\r\nabc"
        await caller.say(b"GET /start HTTP/1.1\r\nHost: a\r\n\r\n")
        assert await caller.hear() == b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"
        begun.set()
        assert await caller.hear() == b"abc"


@on_each_loop
async def test_head_and_chunks_of_one_turn_leave_together_and_are_counted() -> None:
    handler = Remembering(body_of(b"ab", b"c", length=None))
    async with serving(handler) as served, served.caller() as caller:
        await caller.say(ONE)
        heard = await caller.hear()
        while not heard.endswith(b"0\r\n\r\n"):
            heard += await caller.hear()
    assert heard == b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
    assert handler.exchanges[0].sent_bytes == 3
    handler = Remembering()
    async with serving(handler) as served:
        await served.ask(POST + b"Content-Length: 3\r\n\r\nabc", HEAD, LAST, methods=("POST", "HEAD"))
    assert [exchange.sent_bytes for exchange in handler.exchanges] == [3, 0, 0]


@on_each_loop
async def test_fields_of_one_connection_are_left_out_and_others_stay_as_they_are() -> None:
    given = (
        (b"x-request-ID", b" a  b "),
        (b"CONNECTION", b"X-Drop, keep-alive"),
        (b"x-drop", b"1"),
        (b"Keep-Alive", b"timeout=5"),
        (b"Transfer-Encoding", b"gzip"),
        (b"content-length", b"77"),
        (b"Trailer", b"X"),
        (b"Upgrade", b"h2c"),
        (b"Set-Cookie", b"a=1"),
        (b"Set-Cookie", b"b=2"),
        (b"X-Empty", b""),
    )

    async def serve(exchange: Exchange) -> None:
        exchange.reply(200, given, b"abc")

    async with serving(Remembering(serve)) as served, served.caller() as caller:
        await caller.say(ONE)
        assert await caller.hear() == (
            b"HTTP/1.1 200 OK\r\nx-request-ID:  a  b \r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nX-Empty: \r\n"
            b"Content-Length: 3\r\n\r\nabc"
        )


@pytest.mark.parametrize("bad", [b"a\r\nX: y", b"a\ny", b"a\ry", b"a\0y", b"\r\n\r\nHTTP/1.1 200 OK"])
@pytest.mark.parametrize("place", ["name", "value", "reason"])
def test_nothing_given_ends_a_line_of_the_head(bad: bytes, place: str, caplog: pytest.LogCaptureFixture) -> None:
    async def serve(exchange: Exchange) -> None:
        name, value, reason = (bad if place == this else b"z" for this in ("name", "value", "reason"))
        exchange.start(200, ((name, value),), reason=reason, length=None)

    async def main() -> None:
        async with serving(Remembering(serve)) as served, served.caller() as caller:
            await caller.say(ONE)
            assert await caller.hear() == b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"

    guarded(new_loop, main())
    assert len(caplog.records) == 1


@pytest.mark.parametrize("bad", [b"", b"X ", b"X Y", b"X:", b"X\xff"])
def test_what_is_no_name_is_no_field(bad: bytes) -> None:
    with pytest.raises(ValueError, match="name"):
        FieldStarts()[bad]


def test_no_more_names_are_remembered_than_may_be() -> None:
    starts = FieldStarts()
    for n in range(3000):
        assert starts[b"X-%d" % n] == starts[b"X-%d" % n] == b"\r\nX-%d: " % n
    assert len(starts) <= 1024


async def fails(_: Exchange) -> None:
    raise LookupError("nothing")


async def says_nothing(_: Exchange) -> None:
    return


async def fails_within(exchange: Exchange) -> None:
    exchange.start(200, (), length=None)
    exchange.send(b"ab")
    raise LookupError("nothing")


async def does_not_finish(exchange: Exchange) -> None:
    exchange.start(200, (), length=3)
    exchange.send(b"ab")


async def gives_up(exchange: Exchange) -> None:
    exchange.start(200, (), length=None)
    exchange.send(b"ab")
    raise asyncio.CancelledError


WRONG: dict[str, tuple[Callable[[Exchange], Awaitable[None]], Got | None, int]] = {
    "fails": (fails, Got(500, {"content-length": "0"}, b""), 1),
    "ends without an answer": (says_nothing, Got(500, {"content-length": "0"}, b""), 1),
    "fails within": (fails_within, Got(200, {"transfer-encoding": "chunked"}, b"ab", cut=True), 1),
    "ends within": (does_not_finish, Got(200, {"content-length": "3"}, b"ab", cut=True), 1),
    "is cancelled": (gives_up, Got(200, {"transfer-encoding": "chunked"}, b"ab", cut=True), 0),
    "less than promised": (body_of(b"ab", length=3), Got(200, {"content-length": "3"}, b"ab", cut=True), 1),
    "more than promised": (body_of(b"ab", b"cd", length=3), Got(200, {"content-length": "3"}, b"ab", cut=True), 1),
    "not a status": (body_of(b"ab", length=2, status=1000), Got(500, {"content-length": "0"}, b""), 1),
}


@on_each_loop
@pytest.mark.parametrize(("serve", "got", "logged"), WRONG.values(), ids=WRONG)
async def test_a_handler_that_goes_wrong_is_seen_by_the_client_and_logged_once(
    serve: Callable[[Exchange], Awaitable[None]], got: Got, logged: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(Remembering(serve)) as served, served.caller() as caller:
        await caller.say(ONE)
        assert await caller.answer() == got
    assert [record.name for record in caplog.records] == ["coordinator.kit.wire_exchange"] * logged


@on_each_loop
@pytest.mark.parametrize("raw", [ONE, OLD], ids=["chunked", "to the connection's end"])
async def test_a_cut_answer_can_be_told_from_a_whole_one(raw: bytes) -> None:
    heard = asyncio.Event()

    async def serve(exchange: Exchange) -> None:
        exchange.start(200, (), length=None)
        exchange.send(b"abc")
        await heard.wait()
        exchange.cut()
        exchange.send(b"def")
        exchange.finish()
        assert exchange.gone
        assert not exchange.finished

    async with serving(Remembering(serve)) as served, served.caller() as caller:
        await caller.say(raw)
        assert b"abc" in await caller.hear()
        heard.set()
        assert await caller.hear_out() == b""
        assert caller.reset == (raw == OLD)


@on_each_loop
async def test_an_answer_is_given_once(caplog: pytest.LogCaptureFixture) -> None:
    async def serve(exchange: Exchange) -> None:
        with pytest.raises(RuntimeError):
            exchange.send(b"too early")
        with pytest.raises(RuntimeError):
            exchange.finish()
        exchange.start(200, (), length=None)
        with pytest.raises(RuntimeError):
            exchange.start(200, (), length=None)
        with pytest.raises(RuntimeError):
            exchange.reply(200, (), b"")
        exchange.finish()
        exchange.start(500, (), length=None)
        exchange.reply(500, (), b"")
        exchange.send(b"too late")
        exchange.finish()
        exchange.cut()

    async with serving(Remembering(serve)) as served:
        answers = await served.ask(ONE, LAST)
    assert [(answer.status, answer.body) for answer in answers] == [(200, b""), (200, b"")]
    assert caplog.records == []


@on_each_loop
async def test_fields_of_the_request() -> None:
    async def serve(exchange: Exchange) -> None:
        assert exchange.headers == ((b"Host", b"a"), (b"X-One", b"1"), (b"x-one", b"2"), (b"X-Two", b"b c \t"))
        assert (exchange.header(b"x-one"), exchange.header(b"x-two"), exchange.header(b"none")) == (b"1", b"b c", b"")
        exchange.reply(200, (), exchange.peer.encode())

    async with serving(Remembering(serve)) as served, served.caller() as caller:
        await caller.say(GET + b"X-One: 1\r\nx-one: 2\r\nX-Two: \t b c \t\r\n\r\n")
        got = await caller.answer()
        assert got is not None
        assert got.body.decode() == "{}:{}".format(*caller.socket.getsockname())


# ------------------------------------------------------------------------------------------------------------- pipelining


@on_each_loop
async def test_requests_that_come_together_are_served_one_after_the_other() -> None:
    active = 0

    async def serve(exchange: Exchange) -> None:
        nonlocal active
        active += 1
        await turns()
        assert active == 1
        active -= 1
        exchange.reply(200, (), exchange.target + exchange.body)

    bodies = [bytes([65 + n]) * random.Random(n).choice((0, 5, 3000, 70_000)) for n in range(26)]
    raw = b"".join(
        b"POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (n, len(b), b) for n, b in enumerate(bodies)
    )
    handler = Remembering(serve)
    async with serving(handler) as served:
        answers = await served.ask(raw + LAST)
    assert [answer.body for answer in answers] == [b"/%d%b" % (n, b) for n, b in enumerate(bodies)] + [b"/last"]
    assert handler.seen == [(b"POST", b"/%d" % n, b) for n, b in enumerate(bodies)] + [LAST_MEANING]


@on_each_loop
async def test_hundreds_of_small_requests_in_one_piece() -> None:
    handler = Remembering(admit=lambda exchange: exchange.reply(200, (), exchange.target) or 0)
    async with serving(handler) as served:
        answers = await served.ask(b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % n for n in range(700)) + LAST)
    assert [answer.body for answer in answers] == [b"/%d" % n for n in range(700)] + [b"/last"]


@on_each_loop
async def test_requests_before_a_broken_one_are_answered() -> None:
    handler = Remembering()
    async with serving(handler) as served:
        answers = await served.ask(ONE + ONE + b"GET / HTTP/1.1\r\n\r\n" + LAST)
    assert [answer.status for answer in answers] == [200, 200, 400]
    assert handler.seen == [ROOT, ROOT]


@on_each_loop
@pytest.mark.parametrize("behind", [LAST, b"G", b"rubbish", GET + b"Connection: upgrade\r\nUpgrade: x\r\n\r\n"])
async def test_what_comes_in_one_piece_with_the_end_of_chunks_is_never_taken_for_something_else(behind: bytes) -> None:
    """Nobody but the parser knows where they end, and it does not say: the connection is closed after the answer."""
    handler = Remembering()
    async with serving(handler) as served:
        answers = await served.ask(CHUNKED + b"3\r\nabc\r\n0\r\n\r\n" + behind)
    assert [(answer.status, answer.headers["connection"]) for answer in answers] == [(200, "close")]
    assert handler.seen == [ABC]


@on_each_loop
async def test_nothing_is_read_behind_the_last_request() -> None:
    handler = Remembering()
    async with serving(handler) as served:
        answers = await served.ask(LAST + ONE)
    assert len(answers) == 1
    assert handler.seen == [LAST_MEANING]


# ---------------------------------------------------------------------------------------------- expectation, early answer


@on_each_loop
async def test_the_body_is_asked_for_once_it_is_allowed() -> None:
    handler = Remembering()
    async with serving(handler) as served, served.caller() as caller:
        await caller.say(POST + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        assert await caller.hear() == b"HTTP/1.1 100 Continue\r\n\r\n"
        await caller.say(b"abc" + LAST)
        assert [(answer.status, answer.body) for answer in await caller.answers()] == [(200, b"abc"), (200, b"")]
    assert handler.seen == [ABC, LAST_MEANING]


@on_each_loop
async def test_chunks_are_asked_for_as_well() -> None:
    async with serving(Remembering()) as served, served.caller() as caller:
        await caller.say(POST + b"Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert await caller.hear() == b"HTTP/1.1 100 Continue\r\n\r\n"
        await caller.say(b"3\r\nabc\r\n0\r\n\r\n")
        got = await caller.answer()
        assert got is not None
        assert got.body == b"abc"


@on_each_loop
async def test_a_body_that_has_begun_is_not_asked_for() -> None:
    async with serving(Remembering()) as served, served.caller() as caller:
        await caller.say(POST + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\na")
        await turns()
        await caller.say(b"bc")
        got = await caller.answer()
        assert got is not None
        assert (got.body, got.interim) == (b"abc", [])


@on_each_loop
async def test_no_body_is_asked_for_that_is_not_wanted() -> None:
    handler = Remembering(admit=lambda exchange: exchange.reply(401, (), b"who?") or 0)
    async with serving(handler) as served:
        answers = await served.ask(POST + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n", LAST)
        assert answers == [Got(401, {"content-length": "4", "connection": "close"}, b"who?")]
        (long,) = await served.ask(POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % (ALLOWED + 1))
        assert (long.interim, long.status) == ([], 401)
    handler = Remembering()
    async with serving(handler) as served:
        (long,) = await served.ask(POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % (ALLOWED + 1))
        assert (long.interim, long.status) == ([], 413)
        async with served.caller() as caller:
            await caller.say(b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
            await turns()
            await caller.say(b"abc")
            (old,) = await caller.answers()
            assert (old.interim, old.body) == ([], b"abc")
    assert handler.seen == [(b"POST", b"/", b"abc")]


def early(exchange: Exchange) -> int:
    if exchange.target == b"/p":
        exchange.reply(429, ((b"Retry-After", b"1"),), b"later")
        return 0
    return ALLOWED


@on_each_loop
@pytest.mark.parametrize("size", [3, wire_intake._DROPPED_BYTES])
async def test_an_early_answer_does_not_wait_for_the_body_and_a_short_rest_costs_no_connection(size: int) -> None:
    handler = Remembering(admit=early)
    async with serving(handler) as served, served.caller() as caller:
        await caller.say(POST + b"Content-Length: %d\r\n\r\n" % size)
        assert await caller.answer() == Got(429, {"retry-after": "1", "content-length": "5"}, b"later")
        await caller.say(b"x" * (size - 1))
        await turns()
        await caller.say(b"x" + LAST)
        assert [answer.status for answer in await caller.answers()] == [200]
    assert handler.seen == [LAST_MEANING]


@on_each_loop
@pytest.mark.parametrize(
    "framing", [b"Content-Length: 3000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n2dc6c0\r\n"]
)
async def test_after_an_early_answer_a_long_rest_is_not_waited_for_and_the_answer_is_not_lost(framing: bytes) -> None:
    """The client reads only after it has sent all of its body: a reset on the way would have taken the answer."""
    handler = Remembering(admit=early)
    async with serving(handler) as served, served.caller() as caller:
        await caller.say(POST + framing)
        await caller.say(b"x" * 3_000_000)
        got = await caller.answer()
        assert got == Got(429, {"retry-after": "1", "content-length": "5", "connection": "close"}, b"later")
        assert await caller.hear_out() == b""
        assert not caller.reset
    assert handler.seen == []


@on_each_loop
async def test_an_answer_that_had_begun_is_cut_when_its_request_breaks() -> None:
    def admit(exchange: Exchange) -> int:
        exchange.start(200, (), length=None)
        exchange.send(b"abc")
        return ALLOWED

    handler = Remembering(admit=admit)
    async with serving(handler) as served, served.caller() as caller:
        await caller.say(CHUNKED)
        await turns()
        await caller.say(b"no chunk")
        got = await caller.answer()
        assert got is not None
        assert (got.status, got.body, got.cut) == (200, b"abc", True)
        assert handler.exchanges[0].gone
    assert handler.seen == []


@on_each_loop
async def test_a_body_that_turns_out_too_long_is_refused_before_its_end() -> None:
    handler = Remembering(admit=lambda _: 10)
    async with serving(handler) as served, served.caller() as caller:
        await caller.say(CHUNKED + b"a\r\n0123456789\r\n")
        await turns()
        await caller.say(b"1\r\nx\r\n")
        got = await caller.answer()
        assert got is not None
        assert got.status == 413
    assert handler.seen == []


@on_each_loop
@pytest.mark.parametrize(
    ("said", "status"),
    [
        (CHUNKED + b"b\r\n0123456789!\r\n", 413),
        (POST + b"Content-Length: 11\r\n\r\n", 413),
        (POST + b"Content-Length: 11\r\nExpect: 100-continue\r\n\r\n", 413),
        (CHUNKED + b"no chunk", 400),
    ],
)
async def test_a_handler_says_in_its_own_words_that_a_body_is_refused(said: bytes, status: int) -> None:
    def refuse(exchange: Exchange, refused: int, why: str) -> None:
        exchange.reply(refused, ((b"X-Why", why.encode()),), b"{}")

    handler = Remembering(admit=lambda _: 10, refuse=refuse)
    async with serving(handler) as served:
        async with served.caller() as caller:
            await caller.say(said)
            got = await caller.answer()
            assert got is not None
            assert (got.status, got.body, got.headers["connection"]) == (status, b"{}", "close")
            assert got.headers["x-why"]
            assert await caller.hear_out() == b""
        assert [one.status for one in await served.ask(said.replace(b"POST /p", b"HEAD /p"), methods=["HEAD"])] == [
            status
        ]
    assert handler.seen == []


# -------------------------------------------------------------------------------------------------------------- hand over


def aiohttp_pages() -> web.Server:
    async def page(request: web.BaseRequest) -> web.StreamResponse:
        if request.headers.get("Upgrade", "") == "websocket":
            talk = web.WebSocketResponse()
            await talk.prepare(request)
            await talk.send_str("hello")
            await talk.close()
            return talk
        return web.Response(body=b"page " + request.raw_path.encode() + b" " + await request.read())

    return web.Server(page, access_log=None)


HANDED = b"POST /page HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"


@on_each_loop
@pytest.mark.parametrize("pieces", [1, 7, 1000])
async def test_the_connection_is_handed_over_with_all_that_came(pieces: int) -> None:
    pages = aiohttp_pages()
    handler = Remembering(admit=lambda exchange: HandOver(pages) if exchange.target == b"/page" else ALLOWED)
    async with serving(handler) as served, served.caller() as caller:
        await caller.say(ONE)
        assert (await caller.answer() or Got(0, {}, b"")).status == 200
        for piece in in_pieces(HANDED, pieces):
            await caller.say(piece)
            await turns()
        assert (await caller.answer() or Got(0, {}, b"")).body == b"page /page abc"
        assert served.connections == 0
        await caller.say(b"GET /other HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await caller.answer() or Got(0, {}, b"")).body == b"page /other "
    await pages.shutdown()
    assert handler.seen == [ROOT]


@on_each_loop
async def test_what_came_ahead_of_its_turn_is_handed_over_too() -> None:
    pages = aiohttp_pages()
    handler = Remembering(admit=lambda exchange: HandOver(pages) if exchange.target == b"/page" else ALLOWED)
    async with serving(handler) as served, served.caller() as caller:
        await caller.say(ONE + HANDED + HANDED)
        assert [(await caller.answer() or Got(0, {}, b"")).body for _ in range(3)] == [b"", *[b"page /page abc"] * 2]
    await pages.shutdown()


@on_each_loop
async def test_an_upgrade_is_the_other_protocol_s() -> None:
    pages = aiohttp_pages()
    async with serving(Remembering(admit=lambda _: HandOver(pages))) as served, served.caller() as caller:
        await caller.say(
            GET + b"Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        heard = b""
        while b"hello" not in heard:
            heard += await caller.hear()
    assert heard.startswith(b"HTTP/1.1 101 ")
    await pages.shutdown()


@on_each_loop
async def test_a_failing_admission_closes_the_connection() -> None:
    def admit(exchange: Exchange) -> int:
        if exchange.target == b"/p":
            raise LookupError("nothing")
        return 0

    faults: list[object] = []
    loop = asyncio.get_running_loop()
    async with serving(Remembering(admit=admit)) as served:
        before = loop.get_exception_handler()
        loop.set_exception_handler(lambda _, context: faults.append(context.get("exception")))
        assert await served.ask(POST + b"\r\n") == []
        assert len(await served.ask(ONE + POST + b"\r\n")) == 1
        loop.set_exception_handler(before)
    assert [type(fault) for fault in faults] == [LookupError, LookupError]
