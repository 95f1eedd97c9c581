"""What passes, passes unchanged and at the pace of the slower end; and whatever ends a call ends it on both sides."""

from __future__ import annotations

import asyncio
import functools
import gc
import hashlib
import logging
import os
import socket
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from coordinator.gateway import engine, relay
from coordinator.gateway.calls import Call
from coordinator.gateway.deduplicator import Asked
from coordinator.gateway.delivery import RelayDelivery
from coordinator.gateway.question import Question
from coordinator.kit.wire_exchange import Exchange as WireExchange
from coordinator.kit.wire_server import WireServer
from tests.gateway.rig import PROVIDER_KEY, SSE, Exchange, House, Upstream, hello, housed, until

if TYPE_CHECKING:
    from pathlib import Path


async def test_bodies_and_protocol_headers_pass_unchanged(tmp_path: Path) -> None:
    body, answer = b'{"text":"' + os.urandom(35_000).hex().encode() + b'"}', os.urandom(50_000)

    async def script(exchange: Exchange) -> None:
        more = "Content-Type: application/json\r\nContent-Encoding: br\r\nX-Odd: Ä-1\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n"
        await exchange.plain(answer, more=more)

    async with housed(tmp_path, script) as (house, upstream):
        got = await house.reply(
            "/v1/messages?beta=true",
            body,
            anthropic_beta="a-2025,b-2026",
            accept_encoding="gzip, br, zstd",
            content_encoding="gzip",
            user_agent="claude-cli/2.1",
            connection="keep-alive, x-hop",
            x_hop="mine",
        )
        seen = upstream.seen[0]
        assert (seen.method, seen.target, seen.body) == ("POST", "/v1/messages?beta=true", body)
        passed = {name.lower(): value for name, value in seen.headers}
        assert passed == {
            "accept-encoding": "gzip, br, zstd",
            "anthropic-beta": "a-2025,b-2026",
            "anthropic-version": "2023-06-01",
            "content-encoding": "gzip",
            "content-length": str(len(body)),
            "host": upstream.url.removeprefix("http://"),
            "user-agent": "claude-cli/2.1",
            "x-api-key": PROVIDER_KEY,
        }
        assert got.status == 200
        assert got.body == answer
        assert (got.headers["content-encoding"], got.headers["x-odd"]) == ("br", "Ä-1".encode().decode("latin-1"))


async def test_a_stream_passes_as_it_comes(tmp_path: Path) -> None:
    """Each event is there before the next one is made."""
    step = asyncio.Queue[bytes]()

    async def script(exchange: Exchange) -> None:
        await exchange.send(SSE)
        while data := await step.get():
            await exchange.chunk(data)
        await exchange.send(b"0\r\n\r\n")

    async with housed(tmp_path, script) as (house, _):
        talk = await house.ask()
        async with asyncio.timeout(5):
            status, headers = await talk.head()  # before any event
            assert (status, headers["content-type"], headers["request-id"]) == (200, "text/event-stream", "r1")
            for number in range(5):
                event = f"event: ping\ndata: {number}\n\n".encode()
                step.put_nowait(event)
                assert await talk.chunk() == event
            assert house.gateway.calls("fix-it", 1) is not None
            step.put_nowait(b"")
            assert await talk.chunk() == b""
        talk.close()
        await until(house.served)
        served = house.served()[0]
        assert (served.ending, served.status, served.path) == ("served", 200, "/v1/messages")
        assert served.bytes_down == 5 * len(b"event: ping\ndata: 0\n\n")
        assert 0 < served.first_byte_s <= served.took_s


async def test_many_streams_at_once_keep_apart(tmp_path: Path) -> None:
    parts = [os.urandom(3000) for _ in range(40)]

    async def script(exchange: Exchange) -> None:
        await exchange.send(SSE)
        for part in parts:
            await exchange.chunk(exchange.body + part)
            await asyncio.sleep(0)
        await exchange.send(b"0\r\n\r\n")

    async with housed(tmp_path, script) as (house, _):
        names = [f'{{"name":"{number:010d}"}}'.encode() for number in range(20)]
        replies = await asyncio.gather(*(house.reply(body=name) for name in names))
        for name, got in zip(names, replies, strict=True):
            wanted = b"".join(name + part for part in parts)
            assert hashlib.sha256(got.body).digest() == hashlib.sha256(wanted).digest()
        await until(lambda: len(house.served()) >= 20)
        assert {one.ending for one in house.served()} == {"served"}
        assert house.gateway.calls("fix-it", 1) == (0, 0.0)


async def test_a_big_body_passes_and_a_bigger_one_does_not(tmp_path: Path) -> None:
    async with housed(tmp_path, body_bytes=8 * 2**20) as (house, upstream):
        body = b'{"x":"' + b"y" * (8 * 2**20 - 8) + b'"}'
        talk = await house.ask(body=body, expect="100-continue")
        async with asyncio.timeout(10):
            assert (await talk.reply()).status == 200  # the body was on its way: no 100 is owed
        talk.close()
        assert upstream.seen[0].body == body
        assert upstream.seen[0].header("expect") == []
        got = await house.reply(body=body + b" ")
        assert (got.status, got.headers["x-should-retry"]) == (413, "false")
        assert got.error["type"] == "request_too_large"
        assert len(upstream.seen) == 1


SHAPES = {
    "/v1/messages": lambda error: (error["type"], error["message"]),
    "/v1/chat/completions": lambda error: (error["code"], error["message"]),
    "/v1beta/models/gemini-x:generateContent": lambda error: (error["status"], error["message"]),
}


@pytest.mark.parametrize(
    ("body", "status", "words", "said"),
    [
        (b"7ff\r\n" + b"x" * 2047 + b"\r\n0\r\n\r\n", 413, "request_too_large", "at most ([gateway] body_bytes)"),
        (b"no chunk", 400, "invalid_request", "no chunks"),
        (b"5\r\n{", 408, "timeout", "too slowly"),
    ],
)
@pytest.mark.parametrize("path", SHAPES)
async def test_whose_body_is_refused_on_its_way_hears_so_in_its_own_protocol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, body: bytes, status: int, words: str, said: str
) -> None:
    monkeypatch.setattr(engine, "WireServer", functools.partial(WireServer, body_s=0.2))
    async with housed(tmp_path, body_bytes=1024) as (house, upstream):
        got = await house.reply(path, body, transfer_encoding="chunked", content_length="")
        kind, message = SHAPES[path](got.error)
        assert (got.status, got.headers["connection"]) == (status, "close")
        assert message.startswith("coordinator: ")
        assert said in message
        assert kind.lower().startswith(words) or "v1beta" in path
        if status == 413:
            whole = await house.reply(path, b"x" * 2048)
            assert (whole.status, whole.error) == (413, got.error), "as one whose head had told"
            assert {**whole.headers, "connection": ""} == {**got.headers, "connection": ""}
        assert upstream.seen == []


@pytest.mark.parametrize("stream", [True, False])
async def test_which_model_answered_is_told_as_the_answer_says(tmp_path: Path, stream: bool) -> None:
    """It may be another than was asked for; and when it was over is told with it."""
    said = b'{"type":"message","model":"claude-x-20260901","usage":{"input_tokens":3,"output_tokens":2}}'
    begin = b'event: message_start\ndata: {"type":"message_start","message":' + said + b"}\n\n"

    async def script(exchange: Exchange) -> None:
        if stream:
            await exchange.send(SSE)
            await exchange.chunk(begin + b'event: message_stop\ndata: {"type":"message_stop"}\n\n')
            await exchange.send(b"0\r\n\r\n")
        else:
            await exchange.plain(said, more="Content-Type: application/json\r\n")

    async with housed(tmp_path, script) as (house, _):
        body = b'{"model":"claude-x","stream":%s}' % str(stream).lower().encode()
        assert (await house.reply(body=body)).status == 200
        await until(house.served)
        (event,) = house.served()
        assert (event.model, event.answer_model, event.finish) == ("claude-x", "claude-x-20260901", "")
        assert 0 < event.age_s < 1


async def test_bodies_together_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "HELD_BYTES", 100_000)
    go = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await go.wait()
        await hello(exchange)

    async with housed(tmp_path, script) as (house, upstream):
        first = await house.ask(body=b'{"a":"' + b"a" * 60_000 + b'"}')
        await until(lambda: upstream.seen)
        got = await house.reply(body=b'{"b":"' + b"b" * 60_000 + b'"}')
        assert got.status == 529
        assert "x-should-retry" not in got.headers
        go.set()
        assert (await first.reply()).status == 200
        assert (await house.reply(body=b'{"b":"' + b"b" * 60_000 + b'"}')).status == 200
        first.close()


async def test_a_slow_reader_holds_the_upstream(tmp_path: Path) -> None:
    sent = 0

    async def script(exchange: Exchange) -> None:
        nonlocal sent
        if exchange.method == "GET":
            await hello(exchange)
            return
        await exchange.send(SSE)
        for _ in range(1000):
            await exchange.chunk(b"x" * 65_536)
            sent += 65_536
        await exchange.send(b"0\r\n\r\n")

    async with housed(tmp_path, script, openai_url="", environment={"ANTHROPIC_API_KEY": PROVIDER_KEY}) as (house, _):
        base, key = house.gateway.credentials("fix-it", 1)
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(slow, ("127.0.0.1", house.port))
            target = base.removeprefix(house.gateway.url) + "/v1/messages"
            head = f"POST {target} HTTP/1.1\r\nhost: localhost\r\nx-api-key: {key}\r\ncontent-length: 2\r\n\r\n{{}}"
            await loop.sock_sendall(slow, head.encode())
            await until(lambda: sent > 0)
            before = -1
            while before != sent:  # it comes to a stand
                before = sent
                await asyncio.sleep(0.2)
            assert sent < 20 * 2**20  # what sockets' own buffers take, far less than the 65 MB there are
            assert house.gateway.calls("fix-it", 1) is not None
            quick = await asyncio.wait_for(house.reply("/v1/models", b"", method="GET"), 2)
            assert quick.status == 200
        await until(lambda: any(one.ending == "left" for one in house.served()))


async def test_who_hangs_up_ends_the_upstream_call(tmp_path: Path) -> None:
    async def script(exchange: Exchange) -> None:
        if exchange.body == b'{"begun":0}':
            await exchange.send(SSE)
            await exchange.chunk(b"data: 1\n\n")
        await exchange.gone.wait()

    async with housed(tmp_path, script) as (house, upstream):
        for number, body in enumerate([b'{"begun":0}', b'{"silent":0}']):
            talk = await house.ask(body=body)
            await until(lambda number=number: len(upstream.seen) > number)
            if body == b'{"begun":0}':
                await talk.head()
                await talk.chunk()
            began = time.monotonic()
            talk.close()
            await asyncio.wait_for(upstream.seen[number].gone.wait(), 5)
            assert time.monotonic() - began < 0.1
        await until(lambda: len(house.served()) >= 2)
        assert [one.ending for one in house.served()] == ["left", "left"]


@pytest.mark.parametrize("framed", ["chunked", "length"])
async def test_an_upstream_that_breaks_off_is_seen_to_break_off(tmp_path: Path, framed: str) -> None:
    async def script(exchange: Exchange) -> None:
        if framed == "chunked":
            await exchange.send(SSE)
            await exchange.chunk(b"data: half")
        else:
            await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\ndata: half")
        exchange.writer.close()

    async with housed(tmp_path, script) as (house, _):
        talk = await house.ask()
        async with asyncio.timeout(5):
            await talk.head()
            rest = await talk.reader.read(-1)
        assert b"data: half" in rest
        assert not rest.endswith(b"0\r\n\r\n")
        await until(house.served)
        assert house.served()[0].ending == "broken"
        talk.close()


async def test_an_answer_that_ends_with_its_connection_is_whole(tmp_path: Path) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall of it")
        exchange.writer.close()

    async with housed(tmp_path, script) as (house, _):
        got = await house.reply()
        assert (got.body, got.whole) == (b"all of it", True)


async def test_an_upstream_that_is_not_there_is_worth_another_try(tmp_path: Path) -> None:
    async with Upstream() as upstream, House(tmp_path, upstream.url) as house:
        url = upstream.url
        await upstream.stop()
        for _ in range(2):
            got = await house.reply()
            assert (got.status, got.error["type"]) == (502, "api_error")
            assert "cannot be reached" in got.error["message"]
            assert "x-should-retry" not in got.headers
        assert len(house.said("noticed")) == 1, "told once, not once a call"
        upstream._server = await asyncio.start_server(upstream._serve, "127.0.0.1", int(url.rpartition(":")[2]))
        assert (await house.reply()).status == 200
        assert "answers again" in house.said("noticed")[1]
        await until(lambda: len(house.served()) >= 3)
        assert [one.ending for one in house.served()] == ["unreached", "unreached", "served"]


async def test_an_upstream_that_hangs_up_without_a_word_is_not_reached(tmp_path: Path) -> None:
    async def script(exchange: Exchange) -> None:
        exchange.writer.transport.abort()

    async with housed(tmp_path, script) as (house, upstream):
        assert (await house.reply()).status == 502
        assert len(upstream.seen) == 1, "a fresh connection is not tried twice: the call may have been made"


async def test_a_stale_connection_is_no_fault(tmp_path: Path) -> None:
    async def script(exchange: Exchange) -> None:
        if exchange.body == b'{"second":0}' and exchange.connection == 1:
            exchange.writer.transport.abort()
            return
        await hello(exchange)

    async with housed(tmp_path, script) as (house, upstream):
        assert (await house.reply(body=b'{"first":0}')).status == 200
        assert (await house.reply(body=b'{"second":0}')).status == 200
        assert [one.connection for one in upstream.seen] == [1, 1, 2]
        await until(lambda: len(house.served()) >= 2)


@pytest.mark.parametrize(("after_s", "times"), [(0.05, 2), (0.5, 1)])
async def test_a_call_that_may_have_been_worked_on_is_not_sent_again_and_again(
    tmp_path: Path, after_s: float, times: int
) -> None:
    """Six kept connections; each call that comes again is read whole, and then broken off."""

    async def script(exchange: Exchange) -> None:
        if exchange.body == b'{"costly":0}':
            await asyncio.sleep(after_s)
            exchange.writer.transport.abort()
            return
        if exchange.body == b'{"warm":0}':
            await asyncio.sleep(0.1)
        await hello(exchange)

    async with housed(tmp_path, script) as (house, upstream):
        await asyncio.gather(*(house.reply(body=b'{"warm":0}') for _ in range(6)))
        assert (await house.reply(body=b'{"costly":0}')).status == 502
        assert sum(one.body == b'{"costly":0}' for one in upstream.seen) == times


async def test_statuses_pass_and_are_counted(tmp_path: Path) -> None:
    async def script(exchange: Exchange) -> None:
        more = "retry-after: 7\r\nanthropic-ratelimit-requests-remaining: 0\r\n"
        await exchange.plain(b'{"type":"error"}', status="429 Too Many Requests", more=more)

    async with housed(tmp_path, script) as (house, upstream):
        got = await house.reply(body=b'{"a":1}')
        assert (got.status, got.headers["retry-after"], got.body) == (429, "7", b'{"type":"error"}')
        assert got.headers["anthropic-ratelimit-requests-remaining"] == "0"
        assert "x-should-retry" not in got.headers
        again = await house.reply()
        assert (again.status, again.error["type"]) == (429, "rate_limit_error")
        assert len(upstream.seen) == 1, "one agent's refusal is everybody's"
        await until(lambda: len(house.served()) >= 2)
        assert 6.0 < house.gateway.conclude("fix-it", 1) <= 7.0, "what its limit waits for"
        assert house.gateway.conclude("fix-it", 1) == 0.0
        counted = [one.event.to_json() for one in house.events if one.event.kind == "calls_counted"]
        assert [(one["calls"], one["limited"], one["last_status"], one["bytes_up"]) for one in counted] == [
            (2, 2, 429, 9)
        ]
        assert (await house.reply()).status == 403


async def test_a_limit_that_was_over_in_the_end_holds_up_nobody(tmp_path: Path) -> None:
    """The second call is held until the window that the first one met may be probed."""

    async def script(exchange: Exchange) -> None:
        if exchange.body == b'{"first":0}':
            await exchange.plain(b"{}", status="429 Too Many Requests", more="retry-after: 1\r\n")
            return
        await hello(exchange)

    async with housed(tmp_path, script) as (house, _):
        assert (await house.reply(body=b'{"first":0}')).status == 429
    async with housed(tmp_path, script, hold_s=5.0) as (house, _):
        first = await house.ask(body=b'{"first":0}')
        await asyncio.sleep(0.1)
        assert (await house.reply(body=b'{"second":0}')).status == 200
        await until(house.served)
        assert house.gateway.conclude("fix-it", 1) == 0.0
        first.close()


async def test_a_key_that_the_provider_refuses_ends_the_client_at_once(tmp_path: Path) -> None:
    """A 401 is asked again for three minutes, and no agent can mend a key that is ours."""

    async def script(exchange: Exchange) -> None:
        await exchange.plain(b'{"type":"error"}', status="401 Unauthorized")

    async with housed(tmp_path, script) as (house, _):
        got = await house.reply()
        assert (got.status, got.headers["x-should-retry"], got.body) == (401, "false", b'{"type":"error"}')
        await house.reply()
        assert len(house.said("noticed")) == 1
        assert "refuses the coordinator's key" in house.said("noticed")[0]


async def test_the_providers_key_is_shown_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def script(exchange: Exchange) -> None:
        if exchange.body == b'{"break":0}':
            await exchange.send(SSE)
            exchange.writer.transport.abort()
        elif exchange.body == b'{"die":0}':
            exchange.writer.transport.abort()
        else:
            await exchange.plain(b"no", status="401 Unauthorized")

    async with housed(tmp_path, script) as (house, upstream):
        heard = []
        for body in (b'{"break":0}', b'{"die":0}', b'{"refuse":0}'):
            talk = await house.ask(body=body)
            heard.append(await asyncio.wait_for(talk.reader.read(2000), 5))
            talk.close()
        assert all(PROVIDER_KEY in dict(one.headers).values() for one in upstream.seen)
        told = [caplog.text, repr(heard), repr([one.event for one in house.events]), repr(vars(house.gateway))]
        told += [path.read_text() for path in tmp_path.iterdir()]
        assert not [text for text in told if "provider-secret" in text or "openai-secret" in text]


async def test_every_protocol_goes_to_its_own(tmp_path: Path) -> None:
    async with housed(tmp_path) as (house, upstream):
        for path in ("/v1/chat/completions", "/v1/responses", "/v1/embeddings"):
            key = house.gateway.credentials("fix-it", 1)[1]
            got = await house.reply(path, x_api_key="", authorization=f"Bearer {key}", anthropic_version="")
            assert got.status == 200
            assert upstream.seen[-1].target == path
            assert upstream.seen[-1].header("authorization") == ["Bearer sk-openai-secret"]
            assert upstream.seen[-1].header("x-api-key") == []
        await house.reply("/v1/messages/count_tokens")
        assert upstream.seen[-1].target == "/v1/messages/count_tokens"


async def test_nothing_else_is_reached(tmp_path: Path) -> None:
    async with housed(tmp_path) as (house, upstream):
        for path in ("/v1/files", "/v1/messages/../files", "/v1/models/../files", "//evil/v1/messages", "/", "/v1"):
            assert (await house.reply(path)).status == 404, path
        for path, method in (("/v1/messages", "GET"), ("/v1/models", "POST"), ("/v1/messages", "DELETE")):
            assert (await house.reply(path, method=method)).status == 405
        for target in (
            "/v1/files",
            "http://evil.example/v1/files",
            "*",
            "/agents/fix-it/1",
            "/agents/Fix/01/v1/messages",
        ):
            assert (await house.reply(target=target)).status in (400, 404), target
        assert upstream.seen == []
        assert house.served() == []


@pytest.mark.parametrize("dedup", ["strict", "off"])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_call_leaves_nothing_for_the_collector(tmp_path: Path, dedup: str, *, stream: bool) -> None:
    """Else 150 KB of each stay until it looks for circles, thousands of calls later."""

    async def script(exchange: Exchange) -> None:
        if stream:
            await exchange.send(SSE)
            await exchange.chunk(b'event: message_stop\ndata: {"type":"message_stop"}\n\n')
            await exchange.chunk(b"")
        else:
            await hello(exchange)

    body = b'{"model":"claude-x","max_tokens":9,"stream":%s,"messages":[]}' % (b"true" if stream else b"false")
    async with housed(tmp_path, script, dedup=dedup) as (house, _):
        assert (await house.reply(body=body)).status == 200
        await until(lambda: len(house.served()) == 1)
        gc.collect()
        gc.disable()
        try:
            before = Counter(type(one) for one in gc.get_objects())
            for _ in range(5):
                assert (await house.reply(body=body)).status == 200
            await until(lambda: len(house.served()) == 6)
            left = Counter(type(one) for one in gc.get_objects()) - before
        finally:
            gc.enable()
        kept = {kind.__name__: left[kind] for kind in (Asked, Call, Question, RelayDelivery, WireExchange)}
        assert not any(kept.values()), kept
