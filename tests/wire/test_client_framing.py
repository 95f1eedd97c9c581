"""Where an answer begins and ends: a table of answers, whole and byte by byte, and ends at every byte."""

from __future__ import annotations

import asyncio
import itertools
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from coordinator.kit.wire import FIELDS, HEAD_BYTES, AnswerCut, NotReached, new_loop
from coordinator.kit.wire_client import Origin
from tests.wire.upstream import (
    CHUNKED,
    OK,
    PATIENCE_S,
    PLAIN,
    Ear,
    Sink,
    Talk,
    guarded,
    listening,
    on_each_loop,
    say_split,
)

if TYPE_CHECKING:
    from coordinator.kit.wire_client import Answer

HUNDRED = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    raw: bytes
    body: bytes = b"ok"
    hang_up: bool = False
    """The upstream closes after it."""
    kept: bool = True
    """The connection may be used again."""
    method: bytes = b"GET"
    status: int = 200


WHOLE = {
    "Content-Length": Case(raw=PLAIN),
    "Content-Length 0": Case(raw=OK + b"Content-Length: 0\r\n\r\n", body=b""),
    "Content-Length with space after it": Case(raw=OK + b"Content-Length: 2 \t\r\n\r\nok"),
    "Content-Length in odd letters": Case(raw=OK + b"cONTENT-lENGTH:2\r\n\r\nok"),
    "chunked": Case(raw=CHUNKED + b"1\r\no\r\n1\r\nk\r\n0\r\n\r\n"),
    "chunked in odd letters": Case(raw=OK + b"Transfer-Encoding: Chunked \r\n\r\n2\r\nok\r\n0\r\n\r\n"),
    "chunked, empty": Case(raw=CHUNKED + b"0\r\n\r\n", body=b""),
    "chunk extensions": Case(raw=CHUNKED + b'2;a=b;c="d;e"\r\nok\r\n0;f\r\n\r\n'),
    "chunk sizes with zeros and letters": Case(raw=CHUNKED + b"0A\r\n0123456789\r\n000\r\n\r\n", body=b"0123456789"),
    "trailers": Case(raw=CHUNKED + b"2\r\nok\r\n0\r\nX-Sum: 1\r\nEmpty:\r\n\r\n"),
    "a trailer that says close": Case(raw=CHUNKED + b"2\r\nok\r\n0\r\nConnection: close\r\n\r\n", kept=False),
    "to the connection's end": Case(raw=OK + b"X: 1\r\n\r\nok", hang_up=True, kept=False),
    "to the connection's end, empty": Case(raw=OK + b"\r\n", body=b"", hang_up=True, kept=False),
    "HTTP/1.0 to its end": Case(raw=b"HTTP/1.0 200 OK\r\n\r\nok", hang_up=True, kept=False),
    "HTTP/1.0 with a length": Case(raw=b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", kept=False),
    "HTTP/1.0 keep-alive": Case(
        raw=b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok", kept=False
    ),
    "Connection: close": Case(raw=OK + b"Connection: close\r\nContent-Length: 2\r\n\r\nok", kept=False),
    "Connection: keep-alive, close": Case(
        raw=OK + b"Connection: keep-alive,\tCLOSE , x\r\nContent-Length: 2\r\n\r\nok", kept=False
    ),
    "Upgrade that nobody asked for": Case(
        raw=OK + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nok"
    ),
    "100 before": Case(raw=HUNDRED + PLAIN),
    "100 and 103 before": Case(raw=HUNDRED + b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + PLAIN),
    "100 with a length": Case(raw=b"HTTP/1.1 100 C\r\nContent-Length: 9\r\n\r\n" + PLAIN),
    "204": Case(raw=b"HTTP/1.1 204 No Content\r\n\r\n", body=b"", status=204),
    "204 with a length": Case(raw=b"HTTP/1.1 204 N\r\nContent-Length: 2\r\n\r\n", body=b"", status=204, kept=False),
    "204 that says chunked": Case(
        raw=b"HTTP/1.1 204 N\r\nTransfer-Encoding: chunked\r\n\r\n", body=b"", status=204, kept=False
    ),
    "204 and a body all the same": Case(
        raw=b"HTTP/1.1 204 N\r\nContent-Length: 2\r\n\r\nok", body=b"", status=204, kept=False
    ),
    "304 with a length": Case(raw=b"HTTP/1.1 304 Not\r\nContent-Length: 2\r\n\r\n", body=b"", status=304),
    "HEAD": Case(raw=PLAIN[:-2], body=b"", method=b"HEAD", kept=False),
    "HEAD, chunked": Case(raw=CHUNKED, body=b"", method=b"HEAD", kept=False),
    "HEAD without a length": Case(raw=OK + b"\r\n", body=b"", method=b"HEAD", kept=False),
    "HEAD and a body all the same": Case(raw=PLAIN, body=b"", method=b"HEAD", kept=False),
    "no reason": Case(raw=b"HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nok"),
    "no reason and no space": Case(raw=b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok"),
    "odd status": Case(raw=b"HTTP/1.1 999 Odd\r\nContent-Length: 2\r\n\r\nok", status=999),
    "error with a body": Case(raw=b"HTTP/1.1 529 Overloaded\r\nContent-Length: 2\r\n\r\nok", status=529),
    "fields with 8 bits and no value": Case(raw=OK + b"X:\r\nY: \xc3\xa9\r\nContent-Length: 2\r\n\r\nok"),
    "something behind": Case(raw=PLAIN + b"X", kept=False),
    "another answer behind": Case(raw=PLAIN + PLAIN, kept=False),
    "half an answer behind": Case(raw=PLAIN + b"HTTP/1.1 20", kept=False),
    "something behind the last chunk": Case(raw=CHUNKED + b"2\r\nok\r\n0\r\n\r\n" + PLAIN, kept=False),
    "something behind Connection: close": Case(
        raw=OK + b"Connection: close\r\nContent-Length: 2\r\n\r\nokX", kept=False
    ),
}

REFUSED = {
    "both framings": OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "both framings, the other way": OK + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "two equal lengths": OK + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok",
    "two lengths": OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nok!",
    "a list of lengths": OK + b"Content-Length: 2, 2\r\n\r\nok",
    "+ length": OK + b"Content-Length: +2\r\n\r\nok",
    "- length": OK + b"Content-Length: -2\r\n\r\nok",
    "hex length": OK + b"Content-Length: 0x2\r\n\r\nok",
    "empty length": OK + b"Content-Length: \r\n\r\nok",
    "length with a space in it": OK + b"Content-Length: 2 2\r\n\r\nok",
    "length beyond 64 bits": OK + b"Content-Length: 18446744073709551618\r\n\r\nok",
    "length in 19 digits": OK + b"Content-Length: 0000000000000000002\r\n\r\nok",
    "gzip": OK + b"Transfer-Encoding: gzip\r\n\r\nok",
    "gzip, chunked": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "chunked, gzip": OK + b"Transfer-Encoding: chunked, gzip\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "chunked twice": OK + b"Transfer-Encoding: chunked, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "chunked in two fields": OK + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n2\r\nok\r\n0\r\n\r\n",
    "identity": OK + b"Transfer-Encoding: identity\r\nContent-Length: 2\r\n\r\nok",
    "xchunked": OK + b"Transfer-Encoding: xchunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "chunked;q=1": OK + b"Transfer-Encoding: chunked;q=1\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "chunked behind a control character": OK + b"Transfer-Encoding: \x0bchunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "chunked in HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "bare LF after the status": b"HTTP/1.1 200 OK\nContent-Length: 2\r\n\r\nok",
    "bare LF after a field": OK + b"X: 1\nContent-Length: 2\r\n\r\nok",
    "bare LF at the end": OK + b"Content-Length: 2\r\n\nok",
    "bare CR in a field": OK + b"X: a\rb\r\nContent-Length: 2\r\n\r\nok",
    "obs-fold": OK + b"X: a\r\n b\r\nContent-Length: 2\r\n\r\nok",
    "obs-fold at first": OK + b" X: a\r\nContent-Length: 2\r\n\r\nok",
    "folded length": OK + b"Content-Length:\r\n 2\r\n\r\nok",
    "NUL in a field": OK + b"X: a\0b\r\nContent-Length: 2\r\n\r\nok",
    "space before the colon": OK + b"Content-Length : 2\r\n\r\nok",
    "no colon": OK + b"Content-Length 2\r\n\r\nok",
    "no name": OK + b": 1\r\nContent-Length: 2\r\n\r\nok",
    "8 bits in a name": OK + b"\xe9: 1\r\nContent-Length: 2\r\n\r\nok",
    "a control character in the reason": b"HTTP/1.1 200 O\x01K\r\nContent-Length: 2\r\n\r\nok",
    "NUL in the reason": b"HTTP/1.1 200 O\0K\r\nContent-Length: 2\r\n\r\nok",
    "status of two digits": b"HTTP/1.1 20 OK\r\nContent-Length: 2\r\n\r\nok",
    "status of four digits": b"HTTP/1.1 2000 OK\r\nContent-Length: 2\r\n\r\nok",
    "status 099": b"HTTP/1.1 099 OK\r\nContent-Length: 2\r\n\r\nok",
    "101": b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nabc",
    "101 without Upgrade": b"HTTP/1.1 101 Switching\r\n\r\nabc",
    "HTTP/2.0": b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/0.9": b"HTTP/0.9 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/1.2": b"HTTP/1.2 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/2.0 behind 100": HUNDRED + b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "RTSP": b"RTSP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "ICE": b"ICE/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "small letters": b"http/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "a line before": b"\r\n" + PLAIN,
    "no HTTP": b"220 mail.example.org ESMTP\r\n",
    "TLS": b"\x15\x03\x01\x00\x02\x02\x28",
    "100 with two framings": b"HTTP/1.1 100 C\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n" + PLAIN,
    "100 that closes": b"HTTP/1.1 100 C\r\nConnection: close\r\n\r\n" + PLAIN,
    "a head that is too long": OK + b"X: " + b"x" * HEAD_BYTES + b"\r\nContent-Length: 2\r\n\r\nok",
    "a reason that is too long": b"HTTP/1.1 200 " + b"x" * (HEAD_BYTES + 1) + b"\r\nContent-Length: 2\r\n\r\nok",
    "a name without an end": OK + b"x" * 2 * HEAD_BYTES,
    "too many fields": OK + b"X: 1\r\n" * FIELDS + b"Content-Length: 2\r\n\r\nok",
    "too many interim answers": HUNDRED * 4000,
}

CUT = {
    "short": (OK + b"Content-Length: 3\r\n\r\nok", b"ok"),
    "no last chunk": (CHUNKED + b"2\r\nok\r\n", b"ok"),
    "half a chunk": (CHUNKED + b"3\r\nok", b"ok"),
    "half a trailer": (CHUNKED + b"2\r\nok\r\n0\r\nX: 1\r\n", b"ok"),
    "chunk of no size": (CHUNKED + b"2\r\nok\r\n\r\n", b"ok"),
    "chunk of a negative size": (CHUNKED + b"-1\r\nok\r\n0\r\n\r\n", b""),
    "chunk of 0x": (CHUNKED + b"0x2\r\nok\r\n0\r\n\r\n", b""),
    "chunk size and a space": (CHUNKED + b"2 \r\nok\r\n0\r\n\r\n", b""),
    "chunk size beyond 64 bits": (CHUNKED + b"fffffffffffffffff\r\nok", b""),
    "chunk longer than it says": (CHUNKED + b"2\r\nokk\r\n0\r\n\r\n", b"ok"),
    "bare LF after a size": (CHUNKED + b"2\nok\r\n0\r\n\r\n", b""),
    "bare LF after a chunk": (CHUNKED + b"2\r\nok\n0\r\n\r\n", b"ok"),
    "bare LF at the end": (CHUNKED + b"2\r\nok\r\n0\r\n\n", b"ok"),
    "bare LF in an extension": (CHUNKED + b"2;a\nok\r\n0\r\n\r\n", b""),
    "control characters in an extension": (CHUNKED + b"2;a=\x01\r\nok\r\n0\r\n\r\n", b""),
    "length in the trailer": (CHUNKED + b"2\r\nok\r\n0\r\nContent-Length: 2\r\n\r\n", b"ok"),
    "folded trailer": (CHUNKED + b"2\r\nok\r\n0\r\nX: 1\r\n 2\r\n\r\n", b"ok"),
    "an extension without an end": (CHUNKED + b"2\r\nok\r\n2;" + b"x" * 3 * HEAD_BYTES, b"ok"),
    "a trailer without an end": (CHUNKED + b"2\r\nok\r\n0\r\nX: " + b"x" * 3 * HEAD_BYTES, b"ok"),
    "too many trailers": (CHUNKED + b"2\r\nok\r\n0\r\n" + b"X: 1\r\n" * (FIELDS + 1), b"ok"),
}


async def all_of(answer: Answer) -> tuple[bytes, str]:
    """The body, and why it is not whole if it is not."""
    pieces: list[bytes] = []
    try:
        async for piece in answer:
            pieces.append(piece)
    except AnswerCut as error:
        return b"".join(pieces), str(error)
    return b"".join(pieces), ""


def pieces_of(raw: bytes, how: str) -> list[bytes]:
    return [raw] if how == "whole" else [raw[i : i + 1] for i in range(len(raw))]


@pytest.mark.parametrize("how", ["whole", "byte by byte"])
@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_answer(name: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = WHOLE[name]

    async def work() -> None:
        ear, said = Ear(monkeypatch), asyncio.Event()

        async def talk(talk: Talk) -> None:
            while await talk.request():
                await say_split(talk, ear, pieces_of(case.raw, how))
                said.set()
                if case.hang_up:
                    talk.hang_up()
                    return

        async with listening(talk) as upstream:
            origin = Origin(upstream.url)
            for _ in range(2):
                ear.lost = 0
                said.clear()
                answer = await origin.ask(origin.head(case.method, b"/", ()), b"")
                sink = Sink()
                await answer.flow(sink, None)
                assert (answer.status, sink.body, sink.finished, answer.ended) == (case.status, case.body, True, True)
                await said.wait()  # what comes byte by byte after the end finds the connection idle, and closes it
            assert len(upstream.talks) == (1 if case.kept else 2)
            await origin.close()

    guarded(new_loop, work())


SPLIT = {
    "length": HUNDRED + OK + b"Content-Length: 10\r\n\r\n0123456789",
    "chunked": CHUNKED + b"3;x\r\n012\r\n6\r\n345678\r\n1\r\n9\r\n0\r\nX: 1\r\n\r\n",
}


@pytest.mark.parametrize("framing", SPLIT)
@on_each_loop
async def test_an_answer_in_two_and_more_pieces(framing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Split at each byte, and at random; all that one read gives leaves in one piece, and the connection is kept."""
    raw, chance, ear = SPLIT[framing], random.Random(7), Ear(monkeypatch)
    ways = [[raw[:at], raw[at:]] for at in range(1, len(raw))]
    for _ in range(60):
        marks = sorted(chance.sample(range(1, len(raw)), chance.randrange(2, 9)))
        ways.append([raw[a:b] for a, b in itertools.pairwise([0, *marks, len(raw)])])
    left = iter(ways)

    async def talk(talk: Talk) -> None:
        while await talk.request():
            await say_split(talk, ear, next(left))

    async with listening(talk) as upstream:
        origin = Origin(upstream.url)
        for pieces in ways:
            answer, sink = await origin.ask(origin.head(b"GET", b"/", ()), b""), Sink()
            await answer.flow(sink, None)
            assert sink.body == b"0123456789"
            assert len(sink.sent) <= len(pieces)
        assert len(upstream.talks) == 1
        await origin.close()


@on_each_loop
async def test_what_is_no_body_is_bounded_between_pieces_of_it_only(monkeypatch: pytest.MonkeyPatch) -> None:
    ear = Ear(monkeypatch)
    extension = b"1;" + b"x" * (HEAD_BYTES - 100)

    async def talk(talk: Talk) -> None:
        await talk.request()
        await say_split(talk, ear, [CHUNKED, *[extension, b"\r\no\r\n"] * 4, b"0\r\n\r\n"])

    async with listening(talk) as upstream:
        origin = Origin(upstream.url)
        assert await (await origin.ask(origin.head(b"GET", b"/", ()), b"")).read(9) == b"oooo"
        await origin.close()


@pytest.mark.parametrize("name", REFUSED)
def test_an_answer_that_is_none(name: str) -> None:
    async def work() -> None:
        async def talk(talk: Talk) -> None:
            await talk.request()
            talk.say(REFUSED[name])
            await talk.end()

        async with listening(talk) as upstream:
            origin = Origin(upstream.url)
            with pytest.raises(NotReached, match="the answer") as caught:
                await origin.ask(origin.head(b"GET", b"/", ()), b"")
            assert caught.value.sent
            assert ("not asked for" in str(caught.value)) == name.startswith(("101", "status 0"))
            await asyncio.wait_for(upstream.talks[0].closed.wait(), PATIENCE_S)
            assert len(upstream.talks) == 1
            await origin.close()

    guarded(new_loop, work())


@pytest.mark.parametrize("name", CUT)
def test_an_answer_that_breaks_off(name: str) -> None:
    raw, come = CUT[name]

    async def work() -> None:
        async def talk(talk: Talk) -> None:
            await talk.request()
            talk.say(raw)
            talk.hang_up()

        async with listening(talk) as upstream:
            origin = Origin(upstream.url)
            body, why = await all_of(await origin.ask(origin.head(b"GET", b"/", ()), b""))
            assert body == come
            assert why
            with pytest.raises(AnswerCut):
                await (await origin.ask(origin.head(b"GET", b"/", ()), b"")).read(100)
            answer, sink = await origin.ask(origin.head(b"GET", b"/", ()), b""), Sink()
            with pytest.raises(AnswerCut):
                await answer.flow(sink, None)
            assert (sink.body, sink.finished, answer.ended) == (come, False, False)
            assert len(upstream.talks) == 3
            await origin.close()

    guarded(new_loop, work())


HEAD_END = len(OK) + len(b"Content-Length: 2\r\n\r\n")
ENDS = {"length": PLAIN, "chunked": CHUNKED + b"2\r\nok\r\n0\r\n\r\n", "to the end": OK + b"X: 1\r\n\r\nok"}


@pytest.mark.parametrize("how", ["FIN", "RST"])
@pytest.mark.parametrize("framing", ENDS)
@on_each_loop
async def test_an_end_at_each_byte(framing: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a whole head: not reached, and not tried again on a fresh connection. With one: cut; but who says nothing of
    the length ends with the connection, unless that is torn."""
    raw = ENDS[framing]
    head = raw.index(b"\r\n\r\n") + 4
    ear = Ear(monkeypatch)
    at = 0

    async def talk(talk: Talk) -> None:
        await talk.request()
        talk.say(raw[:at])
        await ear.until(at)
        if how == "FIN":
            talk.hang_up()
        else:
            talk.reset()

    async with listening(talk) as upstream:
        origin = Origin(upstream.url)
        for at in range(len(raw) + (framing == "to the end")):
            ear.heard_bytes = ear.lost = 0
            if at < head:
                with pytest.raises(NotReached, match="closed|reset") as caught:
                    await origin.ask(origin.head(b"GET", b"/", ()), b"")
                assert caught.value.sent
            else:
                body, why = await all_of(await origin.ask(origin.head(b"GET", b"/", ()), b""))
                assert b"ok".startswith(body)
                assert (why == "") == (framing == "to the end" and how == "FIN")
            assert len(upstream.talks) == at + 1
        await origin.close()


@on_each_loop
async def test_what_came_before_a_reset_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    ear = Ear(monkeypatch)
    raw = OK + b"Content-Length: 10\r\n\r\nok"

    async def talk(talk: Talk) -> None:
        await talk.request()
        talk.say(raw)
        await ear.until(len(raw))
        talk.reset()

    async with listening(talk) as upstream:
        origin = Origin(upstream.url)
        answer = await origin.ask(origin.head(b"GET", b"/", ()), b"")
        await ear.until(10**9)  # lost
        sink = Sink()
        with pytest.raises(AnswerCut, match="reset|closed"):
            await answer.flow(sink, None)
        assert sink.body == b"ok"
        await origin.close()


async def test_the_head_is_given_as_it_was_sent() -> None:
    raw = b"HTTP/1.1 429 Too  Many\r\nX-a: 1\r\nx-A:  2\r\nContent-Length: 2\r\nX-b:\r\n\r\nno"
    async with listening(lambda talk: _once(talk, raw)) as upstream:
        origin = Origin(upstream.url)
        answer = await origin.ask(origin.head(b"GET", b"/", ()), b"")
        assert (answer.status, answer.reason, answer.length) == (429, b"Too  Many", 2)
        assert answer.headers == ((b"X-a", b"1"), (b"x-A", b"2"), (b"Content-Length", b"2"), (b"X-b", b""))
        assert await answer.read(2) == b"no"
        await origin.close()


async def _once(talk: Talk, raw: bytes) -> None:
    await talk.request()
    talk.say(raw)
    await talk.end()
