"""Packed bodies: unpacked as a whole where an error is looked at, and an answer's cost as exact as a plain one's."""

from __future__ import annotations

import json
import sys
import zlib
from typing import TYPE_CHECKING

import brotli
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.domain.price import Price, TokenRates
from coordinator.gateway.codings import inflated
from tests.gateway.rig import housed, until
from tests.gateway.scripted import streamed, whole
from tests.real.upstream import Say

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.gateway.rig import Exchange

CODINGS = ("br", "deflate", "gzip", "zstd")
RATES = TokenRates(cache_read_usd=1, cache_write_1h_usd=1, cache_write_usd=1, input_usd=3, output_usd=15)
PRICE = Price(models=("*",), rates=RATES)
SAY = Say("A few words of an answer. " * 40)


def packed(coding: str, body: bytes) -> bytes:
    match coding:
        case "br":
            return brotli.compress(body)
        case "zstd":
            return zstd.compress(body)
        case "gzip":
            stream = zlib.compressobj(wbits=31)
            return stream.compress(body) + stream.flush()
    return zlib.compress(body)


def in_pieces(coding: str, pieces: list[bytes]) -> list[bytes]:
    """Each piece can be unpacked as soon as it has come."""
    match coding:
        case "br":
            brotlied = brotli.Compressor()
            return [*(brotlied.process(one) + brotlied.flush() for one in pieces), brotlied.finish()]
        case "zstd":
            made = zstd.ZstdCompressor()
            return [*(made.compress(one, made.FLUSH_BLOCK) for one in pieces), made.flush()]
    stream = zlib.compressobj(wbits=31 if coding == "gzip" else 15)
    return [*(stream.compress(one) + stream.flush(zlib.Z_SYNC_FLUSH) for one in pieces), stream.flush()]


@pytest.mark.parametrize("coding", CODINGS)
def test_a_whole_body_is_unpacked_or_left_as_it_is(coding: str) -> None:
    body, name = b'{"error": {"message": "no"}}' * 50, coding.encode()
    sent = packed(coding, body)
    assert inflated(sent, name, 2000) == inflated(sent, b" %b " % name.upper(), 2000) == body
    for left in (sent[:-3], sent + b"x", b"", b"x", b"\xff" * 40, body):
        assert inflated(left, name, 2000) == left
    bomb = packed(coding, b"\0" * 2**24)
    assert inflated(bomb, name, 2**20) == bomb
    assert inflated(sent, b"identity", 2000) == sent
    assert inflated(sent, b"", 2000) == sent


@given(st.sampled_from(CODINGS), st.binary(max_size=200))
def test_nothing_that_is_packed_makes_it_raise(coding: str, body: bytes) -> None:
    assert inflated(packed(coding, body), coding.encode(), 1000) == body
    inflated(body, coding.encode(), 1000)
    inflated(packed(coding, b"x" * 100)[:5] + body, coding.encode(), 1000)


def whole_script(coding: str, sent: list[bytes]) -> Callable[..., object]:
    async def script(exchange: Exchange) -> None:
        sent[:] = [packed(coding, whole("/v1/messages", SAY, 1))]
        more = f"Content-Type: application/json\r\nContent-Encoding: {coding}\r\n"
        await exchange.plain(sent[0], more=more)

    return script


def stream_script(coding: str, sent: list[bytes]) -> Callable[..., object]:
    async def script(exchange: Exchange) -> None:
        head = f"Content-Type: text/event-stream\r\nContent-Encoding: {coding}\r\nTransfer-Encoding: chunked\r\n\r\n"
        sent[:] = in_pieces(coding, list(streamed("/v1/messages", SAY, 1)))
        await exchange.send(b"HTTP/1.1 200 OK\r\n" + head.encode())
        for piece in filter(None, sent):
            await exchange.chunk(piece)
        await exchange.send(b"0\r\n\r\n")

    return script


@pytest.mark.parametrize("make", [whole_script, stream_script])
@pytest.mark.parametrize("coding", CODINGS)
async def test_a_packed_answer_passes_byte_for_byte_and_is_priced_exactly(
    tmp_path: Path, coding: str, make: Callable[..., object]
) -> None:
    sent: list[bytes] = []
    plain = json.loads(whole("/v1/messages", SAY, 1))["usage"]
    asked = json.dumps({"model": "m", "max_tokens": 99, "messages": [], "stream": make is stream_script}).encode()
    async with housed(tmp_path, make(coding, sent), prices=(PRICE,)) as (house, upstream):  # type: ignore[arg-type]
        got = await house.reply(body=asked, accept_encoding="gzip, br, zstd")
        assert (got.status, got.body, got.headers["content-encoding"]) == (200, b"".join(sent), coding)
        assert upstream.seen[0].header("accept-encoding") == ["gzip, br, zstd"]
        await until(house.served)
        (served,) = house.served()
        assert served.priced
        assert (served.input_tokens, served.output_tokens) == (plain["input_tokens"], plain["output_tokens"])
        assert served.cost_usd == pytest.approx((3 * served.input_tokens + 15 * served.output_tokens) / 1e6)
        assert served.cost_usd > 0
