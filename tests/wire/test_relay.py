"""Both halves of the wire together: an upstream, ours between, and a client that reads as it likes."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from typing import TYPE_CHECKING

from coordinator.kit.wire import AnswerCut
from coordinator.kit.wire_client import Origin
from coordinator.kit.wire_server import WireServer
from tests.wire.upstream import (
    CHUNKED,
    OK,
    PATIENCE_S,
    PLAIN,
    Ear,
    Talk,
    Upstream,
    at_once,
    listening,
    on_each_loop,
    soon,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    import pytest

    from coordinator.kit.wire_server import Exchange

EVENT = b'data: {"delta":"hello"}\n\n'
STREAM = CHUNKED + b"%x\r\n%b\r\n" % (len(EVENT), EVENT) * 50 + b"0\r\n\r\n"


class Relay:
    """All that comes goes to one upstream, and what that says goes back."""

    def __init__(self, origin: Origin) -> None:
        self.cancelled = 0
        self.origin = origin

    def admit(self, _: Exchange) -> int:
        return 1024 * 1024

    async def serve(self, exchange: Exchange) -> None:
        try:
            answer = await self.origin.ask(
                self.origin.head(exchange.method, exchange.target, exchange.headers), exchange.body
            )
            exchange.start(answer.status, answer.headers, length=answer.length)
            await answer.flow(exchange, None)
        except AnswerCut:
            exchange.cut()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


@contextlib.asynccontextmanager
async def relaying(talk: Callable[[Talk], Awaitable[None]]) -> AsyncIterator[tuple[Upstream, Relay, int]]:
    """An upstream, the relay before it, and the relay's port."""
    listener = socket.create_server(("127.0.0.1", 0))
    async with listening(talk) as upstream:
        relay = Relay(Origin(upstream.url))
        server = WireServer(relay)
        await server.start(listener)
        try:
            yield upstream, relay, listener.getsockname()[1]
        finally:
            await relay.origin.close()
            await server.stop(1.0)


async def ask(port: int, *, limit: int = 2**16) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=limit)
    writer.write(b"POST /v1 HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
    return reader, writer


@on_each_loop
async def test_answers_go_through_and_connections_are_kept_on_both_sides() -> None:
    async def talk(talk: Talk) -> None:
        while await talk.request():
            talk.say(PLAIN)
            assert await talk.request()
            talk.say(STREAM)

    async with relaying(talk) as (upstream, _, port):
        reader, writer = await ask(port)
        for _ in range(3):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
            assert await reader.readexactly(2) == b"ok"
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"\r\nTransfer-Encoding: chunked\r\n" in await reader.readuntil(b"\r\n\r\n")
            body = b""
            while size := int(await reader.readuntil(b"\r\n"), 16):
                body += await reader.readexactly(size)
                await reader.readexactly(2)
            await reader.readexactly(2)
            assert body == EVENT * 50
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        writer.close()
        assert len(upstream.talks) == 1


@on_each_loop
async def test_an_answer_that_is_cut_is_cut_for_the_client() -> None:
    async def talk(talk: Talk) -> None:
        await talk.request()
        talk.say(CHUNKED + b"2\r\nok\r\n")
        talk.hang_up()

    async with relaying(talk) as (_, __, port):
        reader, writer = await ask(port)
        data = await reader.read()
        assert data.endswith(b"\r\n\r\n2\r\nok\r\n")
        writer.close()


@on_each_loop
async def test_a_client_of_few_bytes_holds_the_upstream(monkeypatch: pytest.MonkeyPatch) -> None:
    piece = random.Random(1).randbytes(64 * 1024)
    written_bytes = 0

    async def talk(talk: Talk) -> None:
        nonlocal written_bytes
        await talk.request()
        talk.say(OK + b"Content-Length: %d\r\n\r\n" % (1024 * len(piece)))
        for _ in range(1024):
            talk.say(piece)
            await talk.writer.drain()
            written_bytes += len(piece)
        await talk.end()

    ear = Ear(monkeypatch)
    async with relaying(talk) as (upstream, _, port):
        reader, writer = await ask(port, limit=1)
        before = -1
        async with asyncio.timeout(10):
            while before != written_bytes:
                before = written_bytes
                assert await reader.readexactly(1)
                await asyncio.sleep(0.05)
        # Two pairs of sockets hold some; what the client took and did not give on is one read and a buffer.
        assert written_bytes < 40 * 1024 * 1024
        assert ear.heard_bytes < written_bytes
        writer.transport.abort()
        await asyncio.wait_for(upstream.talks[0].closed.wait(), PATIENCE_S)


@on_each_loop
async def test_a_client_that_hangs_up_frees_the_upstream_at_once() -> None:
    async def talk(talk: Talk) -> None:
        await talk.request()
        talk.say(CHUNKED + b"2\r\nok\r\n")
        await talk.end()

    async with relaying(talk) as (upstream, relay, port):

        async def once() -> Talk:
            reader, writer = await ask(port)
            await reader.readuntil(b"ok\r\n")
            writer.transport.abort()
            return upstream.talks[-1]

        await at_once(once)
        await soon(lambda: relay.cancelled == len(upstream.talks))


@on_each_loop
async def test_many_at_once() -> None:
    async def talk(talk: Talk) -> None:
        while await talk.request():
            talk.say(STREAM)

    async def call(port: int) -> int:
        reader, writer = await ask(port)
        data = await reader.readuntil(b"\r\n0\r\n\r\n")
        writer.close()
        return data.count(EVENT)

    async with relaying(talk) as (upstream, _, port):
        assert await asyncio.gather(*(call(port) for _ in range(60))) == [50] * 60
        assert len(upstream.talks) <= 60
