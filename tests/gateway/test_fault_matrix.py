"""Whatever can go wrong upstream, what each client sees of it, what is told of the call, and that nothing of it stays behind.

The tables are the matrix: a row is a fault, and each row is met in five ways at once, which are the columns: three protocols
as they are, and two that are translated. ``WAITING_CALLS`` in the environment sets how many calls wait (10000: the full one).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from coordinator.domain.upstream import UpstreamKind
from coordinator.gateway import engine as engine_module
from coordinator.policy.circuit_breaker import CircuitState
from tests.conftest import CANNOT
from tests.gateway.rig import SSE, Exchange, House, Reply, Talk, Upstream, until
from tests.gateway.scripted import JSON, described, failed, refused, streamed, whole
from tests.real.upstream import Refuse, Say

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

    from coordinator.gateway.engine import Engine

WAITING_CALLS = int(os.environ.get("WAITING_CALLS", "300"))
SAY = Say("Half of it, and the other half.")
FREED_S = 0.1


@dataclass(frozen=True)
class Way:
    """A column: what a client speaks, and an upstream that speaks it as well, or something else."""

    name: str
    path: str
    kind: UpstreamKind
    translated: bool = False

    @property
    def anthropic(self) -> bool:
        """Whose shapes the client knows."""
        return self.path.endswith("/messages")

    def body(self, stream: bool) -> bytes:
        turns = [{"role": "user", "content": "Hello"}]
        asked: dict[str, Any] = {"model": self.name, "stream": stream}
        asked |= {"input": turns} if self.path.endswith("/responses") else {"messages": turns, "max_tokens": 9}
        return json.dumps(asked).encode()

    def error(self, got: Reply) -> tuple[str, str]:
        """Its type and its message, if ``got`` has the shape of this client's protocol."""
        told = json.loads(got.body)
        assert set(told) == ({"type", "error"} if self.anthropic else {"error"}), (self.name, told)
        assert set(told["error"]) >= ({"type", "message"} if self.anthropic else {"type", "message", "param", "code"})
        return told["error"]["type"], told["error"]["message"]

    @property
    def last(self) -> bytes:
        """What stands in the last event of a whole stream and in none before."""
        if self.anthropic:
            return b"event: message_stop"
        return b"event: response.completed" if self.path.endswith("/responses") else b"data: [DONE]"

    def broken_off(self, said: bytes) -> bool:
        """Whether the last event is an error in this client's protocol."""
        event = said.rstrip(b"\n").rpartition(b"\n\n")[2]
        if self.anthropic:
            return event.startswith(b"event: error\ndata: {")
        return event.startswith(b'data: {"error"')


WAYS = (
    Way("messages", "/v1/messages", UpstreamKind.ANTHROPIC),
    Way("chat", "/v1/chat/completions", UpstreamKind.OPENAI),
    Way("responses", "/v1/responses", UpstreamKind.OPENAI),
    Way("messages-to-chat", "/v1/messages", UpstreamKind.VLLM, translated=True),
    Way("chat-to-messages", "/v1/chat/completions", UpstreamKind.ANTHROPIC, translated=True),
)
NATIVE = WAYS[:3]
TRANSLATED = WAYS[3:]


class Matrix:
    """A gateway with an upstream for each way, all of them at one address."""

    def __init__(self, house: House, upstream: Upstream) -> None:
        self.house = house
        self.upstream = upstream
        self.tasks = 0

    async def each(self, *, stream: bool = False, ways: Sequence[Way] = WAYS) -> dict[str, Reply]:
        replies = await asyncio.gather(*(self.one(way, stream=stream) for way in ways))
        return {way.name: got for way, got in zip(ways, replies, strict=True)}

    async def one(self, way: Way, *, stream: bool = False) -> Reply:
        return await self.house.reply(way.path, way.body(stream), anthropic_version="")

    async def told(self, number: int = len(WAYS)) -> dict[str, tuple[str, int]]:
        """Ending and status of each call, by way; there are ``number`` of them and no more."""
        await until(lambda: len(self.house.served()) >= number)
        await self.clean()
        events = self.house.served()
        assert len(events) == number, "one for each call, and no more"
        assert len({one.request for one in events}) == number
        return {one.model: (one.ending, one.status) for one in events}

    async def clean(self) -> None:
        """Nothing is left of any call."""
        left = await self.house.gateway.ask(self._left)
        for _ in range(500):  # a connection's end takes a turn or two
            if not left:
                break
            await asyncio.sleep(0.01)
            left = await self.house.gateway.ask(self._left)
        assert left == {}

    def _left(self, engine: Engine) -> dict[str, object]:
        """What is not as it was before any call; looked at on the gateway's loop."""
        found: dict[str, object] = {
            "calls": len(engine._calls.open()),
            "held bytes": engine._relay._held_bytes,
            "in the stage": engine.inference.inside + sum(engine.inference.waiting),
            "bills": len(engine._relay.sharing._bills),
            "tasks": max(0, len(asyncio.all_tasks()) - self.tasks),
        }
        for station in engine.stations:
            source: Any = station.source
            found[f"{station.name} in flight"] = station.limit.in_flight
            found[f"{station.name} at its door"] = station.door.inside + sum(station.door.waiting)
            found[f"{station.name} connections in use"] = len(source._open) - len(source._idle)
            found[f"{station.name} probes"] = sum(breaker._out for breaker in station.breakers.values())
        return {name: value for name, value in found.items() if value}


@contextlib.asynccontextmanager
async def matrix(
    state: Path,
    script: Callable[[Exchange], Awaitable[None]],
    *,
    url: str = "",
    each: Mapping[str, Any] = {},
    **more: Any,
) -> AsyncIterator[Matrix]:
    """``url``: where the upstreams are instead; ``each``: their further settings."""
    async with Upstream(script) as upstream:
        made = tuple(described(way.kind, url or upstream.url, way.name, (way.name,), **each) for way in WAYS)
        async with House(state, "", upstreams=made, **more) as house:
            found = Matrix(house, upstream)
            found.tasks = await house.gateway.ask(lambda _: len(asyncio.all_tasks()))
            yield found


@pytest.fixture
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether calls stand still is looked at often."""
    monkeypatch.setattr(engine_module, "_LOOK_S", 0.02)


async def fine(exchange: Exchange) -> None:
    """The answer, whole or streamed as it was asked for."""
    path = exchange.target
    if json.loads(exchange.body).get("stream"):
        await exchange.send(SSE)
        for event in streamed(path, SAY, 1):
            await exchange.chunk(event)
        await exchange.send(b"0\r\n\r\n")
    else:
        await exchange.plain(whole(path, SAY, 1), more=JSON)


# -- statuses ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Status:
    """A row: what the upstream answers, what types translations of it have (Anthropic's, OpenAI's), and what the next call
    gets: an answer, or a refusal of ours."""

    status: int
    anthropic: str
    openai: str
    retry_after: str = ""
    then: int = 200
    should_retry: str = ""
    counts: bool = False


STATUSES = (
    Status(400, "invalid_request_error", "invalid_request_error"),
    Status(401, "authentication_error", "authentication_error", should_retry="false"),
    Status(402, "billing_error", "insufficient_quota"),
    Status(403, "permission_error", "permission_error"),
    Status(404, "not_found_error", "invalid_request_error"),
    Status(408, "timeout_error", "server_error"),
    Status(409, "invalid_request_error", "invalid_request_error"),
    Status(413, "request_too_large", "invalid_request_error"),
    Status(429, "rate_limit_error", "rate_limit_error", "7", then=429),
    Status(429, "rate_limit_error", "rate_limit_error", then=429),
    Status(500, "api_error", "server_error", then=502, counts=True),
    Status(502, "api_error", "server_error", then=502, counts=True),
    Status(503, "api_error", "server_error", then=502, counts=True),
    Status(503, "api_error", "server_error", "7", then=429, counts=True),
    Status(504, "timeout_error", "server_error", then=502, counts=True),
    Status(529, "overloaded_error", "server_error", then=502, counts=True),
    Status(529, "overloaded_error", "server_error", "7", then=429, counts=True),
)


@pytest.mark.parametrize(
    "row", STATUSES, ids=lambda row: f"{row.status}{'-' + row.retry_after if row.retry_after else ''}"
)
async def test_statuses(tmp_path: Path, row: Status) -> None:
    line = Refuse(row.status, f"said with {row.status}", "odd_error")

    async def script(exchange: Exchange) -> None:
        if len(at.upstream.seen) > len(WAYS):
            await fine(exchange)
            return
        more = JSON + (f"Retry-After: {row.retry_after}\r\n" if row.retry_after else "")
        await exchange.plain(refused(exchange.target, line), status=f"{row.status} No", more=more)

    async with matrix(tmp_path, script, failures_to_open=1) as at:
        for way, got in zip(WAYS, (await at.each()).values(), strict=True):
            assert got.status == row.status, way
            assert got.headers.get("retry-after", "") == row.retry_after, way
            assert got.headers.get("x-should-retry", "") == row.should_retry, way
            assert got.headers["x-request-id"]
            kind, message = way.error(got)
            if not way.translated:
                assert got.body == refused(way.path, line), "as it came"
            else:
                assert kind == (row.anthropic if way.anthropic else row.openai), way
                assert (f"said with {row.status}" in message) is (row.status != 401), way
        assert await at.told() == dict.fromkeys((way.name for way in WAYS), ("served", row.status))
        states = await at.house.gateway.ask(
            lambda engine: {breaker.state for one in engine.stations for breaker in one.breakers.values()}
        )
        assert states == {CircuitState.OPEN if row.counts else CircuitState.CLOSED}
        await after(at, row)


async def after(at: Matrix, row: Status) -> None:
    """One caller's refusal is everybody's; one caller's own mistake is nobody else's."""
    ending, kinds = THEN[row.then]
    for way, got in zip(WAYS, (await at.each()).values(), strict=True):
        assert got.status == row.then, (way, got.body)
        if kinds:
            kind, message = way.error(got)
            assert kind == kinds[0 if way.anthropic else 1]
            assert message.startswith("coordinator: no call goes to "), message
            assert 1 <= int(got.headers["retry-after"]) <= int(row.retry_after or 60), way
            assert "x-should-retry" not in got.headers
    assert len(at.upstream.seen) == len(WAYS) * (1 if kinds else 2)
    assert await at.told(2 * len(WAYS)) == dict.fromkeys((way.name for way in WAYS), (ending, row.then))


THEN: Mapping[int, tuple[str, tuple[str, ...]]] = {
    200: ("served", ()),
    429: ("limited", ("rate_limit_error", "rate_limit_error")),  # its window is closed
    502: ("unreached", ("api_error", "server_error")),  # its breaker is open
}


@pytest.mark.parametrize("status", [500, 502, 503, 504, 529])
async def test_a_server_that_fails_once_is_asked_again(tmp_path: Path, status: int) -> None:
    async def script(exchange: Exchange) -> None:
        if sum(one.body == exchange.body for one in at.upstream.seen) == 1:
            await exchange.plain(b"<html>", status=f"{status} No")
        else:
            await fine(exchange)

    async with matrix(tmp_path, script, retries=1, retry_share=1.0, hold_s=10.0) as at:
        assert {got.status for got in (await at.each()).values()} == {200}
        assert set((await at.told()).values()) == {("served", 200)}
        assert {one.tries for one in at.house.served()} == {2}


# -- answers that break off --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drop:
    """A row: how much of an answer comes. ``events``: whole ones of a stream, ``half`` of the next one."""

    name: str
    head: bytes = SSE
    events: int = 0
    half: bool = False
    all_but_the_end: bool = False
    abort: bool = False

    @property
    def begun(self) -> bool:
        return bool(self.events or self.half or self.all_but_the_end)

    def pieces(self, path: str) -> Sequence[bytes]:
        events = streamed(path, SAY, 1)
        if self.all_but_the_end:
            return events
        found = list(events[: self.events])
        if self.half:
            found.append(events[self.events][:-20])
        return found

    async def __call__(self, exchange: Exchange) -> None:
        if self.head:
            await exchange.send(self.head)
        for piece in self.pieces(exchange.target):
            await exchange.chunk(piece)
        if self.abort:
            exchange.writer.transport.abort()
        exchange.writer.close()


DROPS = (
    Drop("before-a-byte", head=b""),
    Drop("before-a-byte-reset", head=b"", abort=True),
    Drop("in-the-head", head=SSE[:40]),
    Drop("after-the-head"),
    Drop("in-the-first-event", half=True),
    Drop("in-an-event", events=3, half=True),
    Drop("after-an-event", events=3),
    Drop("after-a-block", events=5),  # Anthropic's: message_start, block_start, two deltas, block_stop
    Drop("before-the-end", all_but_the_end=True),
)


@pytest.mark.parametrize("row", DROPS, ids=lambda row: row.name)
async def test_streams_that_break_off(tmp_path: Path, row: Drop) -> None:
    async with matrix(tmp_path, row) as at:
        replies = await at.each(stream=True)
        for way in WAYS:
            got = replies[way.name]
            if not row.begun:
                assert_unreached(way, got)
                continue
            assert (got.status, got.whole) == (200, False), way
            upward = way.path if not way.translated else "/v1/chat/completions" if way.anthropic else "/v1/messages"
            if not way.translated:
                assert got.body == b"".join(row.pieces(upward)), "what came, to the last byte"
            elif row.all_but_the_end:
                assert not way.broken_off(got.body), "it is whole, but for the connection"
            else:
                assert way.broken_off(got.body), (way, got.body)
        ending = ("broken", 200) if row.begun else ("unreached", 502)
        assert await at.told() == dict.fromkeys((way.name for way in WAYS), ending)
        assert len(at.upstream.seen) == len(WAYS)


@pytest.mark.parametrize("row", DROPS, ids=lambda row: row.name)
async def test_what_breaks_off_is_asked_again_only_before_its_first_byte(tmp_path: Path, row: Drop) -> None:
    async def script(exchange: Exchange) -> None:
        again = sum(one.body == exchange.body for one in at.upstream.seen) > 1
        await (fine(exchange) if again else row(exchange))

    async with matrix(tmp_path, script, retries=1, retry_share=1.0, hold_s=10.0) as at:
        replies = await at.each(stream=True)
        assert {got.whole for got in replies.values()} == {not row.begun}
        ending = ("broken", 200) if row.begun else ("served", 200)
        assert set((await at.told()).values()) == {ending}
        assert {one.tries for one in at.house.served()} == {1 if row.begun else 2}
        assert len(at.upstream.seen) == len(WAYS) * (1 if row.begun else 2)


async def test_a_whole_answer_that_breaks_off(tmp_path: Path) -> None:
    """Of a translated one nothing was passed on: its client hears an error; the others see less than was promised."""

    async def script(exchange: Exchange) -> None:
        body = whole(exchange.target, SAY, 1)
        await exchange.send(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n{JSON}\r\n".encode() + body[:50])
        exchange.writer.close()

    async with matrix(tmp_path, script) as at:
        replies = await at.each()
        for way in NATIVE:
            assert (replies[way.name].status, replies[way.name].whole) == (200, False)
        for way in TRANSLATED:
            assert_unreached(way, replies[way.name])
        told = await at.told()
        assert {told[way.name] for way in NATIVE} == {("broken", 200)}
        assert {told[way.name] for way in TRANSLATED} == {("unreached", 502)}


async def test_a_stream_that_ends_too_early_but_in_good_order(tmp_path: Path) -> None:
    """As it came to those who speak its protocol; others are not told that it was whole."""

    async def script(exchange: Exchange) -> None:
        await exchange.send(SSE)
        for event in streamed(exchange.target, SAY, 1)[:3]:
            await exchange.chunk(event)
        await exchange.send(b"0\r\n\r\n")

    async with matrix(tmp_path, script) as at:
        replies = await at.each(stream=True)
        for way in NATIVE:
            assert replies[way.name].whole
            assert replies[way.name].body == b"".join(streamed(way.path, SAY, 1)[:3])
        for way in TRANSLATED:
            assert way.broken_off(replies[way.name].body), replies[way.name].body
        assert {ending for ending, _ in (await at.told()).values()} == {"served"}


def assert_unreached(way: Way, got: Reply, status: int = 502) -> str:
    """A whole error of ours, which a client tries again; its message."""
    assert (got.status, got.whole) == (status, True), (way, got)
    assert "x-should-retry" not in got.headers
    assert got.headers["content-type"] == "application/json"
    kind, message = way.error(got)
    assert kind == ({502: "api_error", 504: "timeout_error"}[status] if way.anthropic else "server_error")
    assert message.startswith("coordinator: "), message
    return message


async def test_a_stream_that_begins_with_an_error(tmp_path: Path) -> None:
    """Nothing was said yet, and it can be tried again; in the end the caller hears what the upstream said."""

    async def script(exchange: Exchange) -> None:
        await exchange.send(SSE)
        await exchange.chunk(failed(exchange.target, "too much of it"))
        await exchange.send(b"0\r\n\r\n")

    async with matrix(tmp_path, script) as at:
        replies = await at.each(stream=True)
        for way in WAYS:
            assert assert_unreached(way, replies[way.name]).endswith("its stream began with an error: too much of it")
        assert set((await at.told()).values()) == {("unreached", 502)}


@pytest.mark.parametrize(
    "said", [b"SSH-2.0-OpenSSH_9\r\n", b"\0" * 100, b"HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\n"]
)
async def test_what_is_no_answer(tmp_path: Path, said: bytes) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(said)
        await exchange.gone.wait()

    async with matrix(tmp_path, script) as at:
        for way, got in zip(WAYS, (await at.each()).values(), strict=True):
            assert_unreached(way, got)
        assert set((await at.told()).values()) == {("unreached", 502)}


@pytest.mark.parametrize("body", [b"<html>It works!</html>", b"{}", b'{"choices":[]}', b"[1", b""])
async def test_a_good_status_with_a_body_that_says_nothing(tmp_path: Path, body: bytes) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.plain(body, more=JSON)

    async with matrix(tmp_path, script) as at:
        replies = await at.each()
        for way in NATIVE:
            assert (replies[way.name].status, replies[way.name].body) == (200, body)
        for way in TRANSLATED:
            assert "cannot be understood" in assert_unreached(way, replies[way.name])
        await at.told()


async def test_a_proxys_page(tmp_path: Path) -> None:
    """Nothing for a terminal: a client of the other protocol hears of the status."""

    async def script(exchange: Exchange) -> None:
        await exchange.plain(
            b"<html>502 Bad Gateway</html>", status="502 Bad Gateway", more="Content-Type: text/html\r\n"
        )

    async with matrix(tmp_path, script) as at:
        replies = await at.each()
        for way in NATIVE:
            assert (replies[way.name].status, replies[way.name].body[:6]) == (502, b"<html>")
        for way in TRANSLATED:
            kind, message = way.error(replies[way.name])
            assert kind == ("api_error" if way.anthropic else "server_error")
            assert message == "the upstream answered 502 and no reason"
        assert set((await at.told()).values()) == {("served", 502)}


# -- calls that we end ourselves ---------------------------------------------------------------------------------------

OURS = {"revoked": ("revoked", 403, "permission_error", "permission_error", "false"), "stopped": ("stopped", 503, "api_error", "server_error", "")}  # fmt: skip


@pytest.mark.parametrize("why", OURS)
@pytest.mark.parametrize("begun", [False, True], ids=["waits", "streams"])
async def test_a_call_that_is_ended_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str, begun: bool
) -> None:
    monkeypatch.setattr(engine_module, "FAREWELL_S", 0.05)
    ending, status, anthropic, openai, should_retry = OURS[why]

    async def script(exchange: Exchange) -> None:
        if begun:
            await exchange.send(SSE)
            await exchange.chunk(b"".join(streamed(exchange.target, SAY, 1)[:3]))
        await exchange.gone.wait()

    async with matrix(tmp_path, script) as at:
        asking = asyncio.create_task(at.each(stream=True))
        await until(lambda: len(at.upstream.seen) >= len(WAYS))
        if begun:
            await until(lambda: all(one.first_at for one in at.house.gateway._calls.open()))
        if why == "revoked":
            at.house.gateway.revoke("fix-it", 1)
        else:
            await at.house.stop()
        for way, got in zip(WAYS, (await asking).values(), strict=True):
            if begun:
                assert (got.status, got.whole) == (200, False), way
                continue
            assert (got.status, got.headers.get("x-should-retry", "")) == (status, should_retry), way
            assert way.error(got)[0] == (anthropic if way.anthropic else openai)
        for exchange in at.upstream.seen:
            await asyncio.wait_for(exchange.gone.wait(), 5)
        await until(lambda: len(at.house.served()) >= len(WAYS))
        assert {(one.ending, one.status) for one in at.house.served()} == {(ending, 200 if begun else status)}
        if why == "revoked":
            await at.clean()


# -- answers that stand still ------------------------------------------------------------------------------------------

STALLS: Mapping[str, bytes] = {"no-byte": b"", "half-a-head": SSE[:40], "head-only": SSE}


@pytest.mark.usefixtures("quick_looks")
@pytest.mark.parametrize("stall", STALLS)
async def test_nothing_comes(tmp_path: Path, stall: str) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(STALLS[stall])
        await exchange.gone.wait()

    async with matrix(tmp_path, script, each={"first_byte_s": 0.2}) as at:
        for way, got in zip(WAYS, (await at.each(stream=True)).values(), strict=True):
            assert "did not begin to answer in time" in assert_unreached(way, got, 504)
        assert set((await at.told()).values()) == {("late", 504)}
        for exchange in at.upstream.seen:
            await asyncio.wait_for(exchange.gone.wait(), 5)


@pytest.mark.usefixtures("quick_looks")
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_no_more_comes(tmp_path: Path, stream: bool) -> None:
    async def script(exchange: Exchange) -> None:
        if stream:
            await exchange.send(SSE)
            await exchange.chunk(b"".join(streamed(exchange.target, SAY, 1)[:4]))
        else:
            await exchange.send(f"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n{JSON}\r\n{{".encode())
        await exchange.gone.wait()

    async with matrix(tmp_path, script, each={"first_byte_s": 5.0, "silence_s": 0.2}) as at:
        replies = await at.each(stream=stream)
        for way in WAYS:
            got = replies[way.name]
            if way.translated and not stream:
                assert_unreached(way, got, 504)
            else:
                assert (got.status, got.whole) == (200, False), way
        told = await at.told()
        assert {ending for ending, _ in told.values()} == {"late"}
        for exchange in at.upstream.seen:
            await asyncio.wait_for(exchange.gone.wait(), 5)


@pytest.mark.usefixtures("quick_looks")
async def test_pings_keep_a_stream_alive(tmp_path: Path) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(SSE)
        events = streamed(exchange.target, SAY, 1)
        await exchange.chunk(events[0])
        for _ in range(8):
            await asyncio.sleep(0.1)
            await exchange.chunk(b": still there\n\n")
        await exchange.chunk(b"".join(events[1:]))
        await exchange.send(b"0\r\n\r\n")

    async with matrix(tmp_path, script, each={"silence_s": 0.4}) as at:
        assert {got.whole for got in (await at.each(stream=True)).values()} == {True}
        assert {ending for ending, _ in (await at.told()).values()} == {"served"}


# -- readers -----------------------------------------------------------------------------------------------------------

MANY = 3000
"""Halves of a text of 10 kB, in one stream: more than all sockets' own buffers take."""


async def much(exchange: Exchange) -> None:
    """A stream that only somebody who reads gets all of."""
    events = streamed(exchange.target, Say("x" * 10_000), 1)
    at_text = next(number for number, event in enumerate(events) if b"xxxx" in event)
    exchange.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
    await exchange.send(SSE)
    for event in (*events[:at_text], *([events[at_text]] * MANY), *events[at_text + 2 :]):
        await exchange.chunk(event)
    await exchange.send(b"0\r\n\r\n")


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
async def test_a_slow_reader(tmp_path: Path, way: Way) -> None:
    """It holds its own upstream and nobody else's, and gets all of it in the end."""
    over = False

    async def script(exchange: Exchange) -> None:
        nonlocal over
        if json.loads(exchange.body).get("stream"):
            await much(exchange)
            over = True
        else:
            await fine(exchange)

    async with matrix(tmp_path, script) as at:
        talk = await slow(at.house, way)
        await stands(at.house)
        assert not over, "the upstream is held"
        assert (await at.one(way)).status == 200
        got = await asyncio.wait_for(talk.reply(), 20)
        assert got.whole
        assert got.body.count(b'"' + b"x" * 5000 + b'"') == MANY
        talk.close()
        await until(lambda: len(at.house.served()) >= 2)
        assert [one.ending for one in at.house.served()] == ["served", "served"]
        await at.clean()


@pytest.mark.usefixtures("quick_looks")
async def test_a_slow_reader_is_not_taken_for_a_dead_upstream(tmp_path: Path) -> None:
    way = WAYS[0]
    async with matrix(tmp_path, much, each={"silence_s": 0.3}) as at:
        talk = await slow(at.house, way)
        await stands(at.house)
        await asyncio.sleep(0.5)  # longer than an upstream may stand still
        assert at.house.served() == []
        talk.close()
        await until(at.house.served)
        assert at.house.served()[0].ending == "left"
        await at.clean()


async def slow(house: House, way: Way) -> Talk:
    """A connection of which little is read before somebody asks for it."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", house.port))
    base, key = house.gateway.credentials("fix-it", 1)
    body = way.body(True)
    target = base.removeprefix(house.gateway.url) + way.path
    head = f"POST {target} HTTP/1.1\r\nhost: localhost\r\nx-api-key: {key}\r\ncontent-length: {len(body)}\r\n\r\n"
    await asyncio.get_running_loop().sock_sendall(raw, head.encode() + body)
    return Talk(*await asyncio.open_connection(sock=raw, limit=2**14))


async def stands(house: House) -> None:
    """Until the only call's client takes no more, and the call stands still."""
    before = -1
    async with asyncio.timeout(10):
        while True:
            exchanges = [one.exchange for one in house.gateway._calls.open() if one.exchange is not None]
            now = sum(one.sent_bytes for one in exchanges if one.full)
            if now and now == before:
                return
            before = now
            await asyncio.sleep(0.1)


GONE = ("waits", "half-a-head", "streams", "whole")


@pytest.mark.parametrize("when", GONE)
async def test_a_reader_that_is_gone(tmp_path: Path, when: str) -> None:
    """The upstream's call ends with it, within 100 ms."""

    async def script(exchange: Exchange) -> None:
        if when == "half-a-head":
            await exchange.send(SSE[:40])
        elif when == "streams":
            await exchange.send(SSE)
            await exchange.chunk(b"".join(streamed(exchange.target, SAY, 1)[:4]))
        elif when == "whole":
            await exchange.send(f"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n{JSON}\r\n{{".encode())
        await exchange.gone.wait()

    async with matrix(tmp_path, script) as at:
        calls = 0

        async def once(way: Way) -> float:
            nonlocal calls
            calls += 1
            talk = await at.house.ask(way.path, way.body(when == "streams"))
            await until(lambda: len(at.upstream.seen) >= calls)
            if when == "streams" or (when == "whole" and not way.translated):
                await talk.reader.readuntil(b"\r\n\r\n")
                await talk.reader.read(1)
            began = time.monotonic()
            talk.close()
            await asyncio.wait_for(at.upstream.seen[-1].gone.wait(), 5)
            return time.monotonic() - began

        for way in WAYS:
            took = [await once(way)]
            while took[-1] > FREED_S and len(took) < 10:  # the machine may have been busy with something else
                took.append(await once(way))
            assert took[-1] <= FREED_S, (way, took)
        assert {ending for ending, _ in (await at.told(calls)).values()} == {"left"}


async def test_a_reader_that_is_gone_behind_the_answers_own_end(tmp_path: Path) -> None:
    """It has all, as clients do that do not wait for what frames the stream."""

    async def script(exchange: Exchange) -> None:
        await exchange.send(SSE)
        await exchange.chunk(b"".join(streamed(exchange.target, SAY, 1)))
        await exchange.gone.wait()

    async with matrix(tmp_path, script) as at:
        for calls, way in enumerate(WAYS):
            talk = await at.house.ask(way.path, way.body(True))
            await talk.reader.readuntil(way.last)
            await talk.reader.readuntil(b"\n\n")
            talk.close()
            await asyncio.wait_for(at.upstream.seen[calls].gone.wait(), 5)
        assert {ending for ending, _ in (await at.told()).values()} == {"served"}


# -- upstreams that cannot be reached ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Nowhere:
    """A row: an address, and what is said of it. The ports are those of ``addresses``."""

    name: str
    url: str
    said: str
    settings: Mapping[str, Any] = field(default_factory=dict)


NOWHERE = (
    Nowhere("dns", "http://nowhere.invalid", "known|found|resol|name"),
    Nowhere("refused", "http://127.0.0.1:{free}", "refused"),
    Nowhere("no-tls", "https://127.0.0.1:{plain}", "TLS failed"),
    Nowhere("untrusted", "https://localhost:{tls}", "certificate is not trusted"),
    Nowhere("mute-tls", "https://127.0.0.1:{mute}", "too long", {"connect_s": 0.2}),
)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that nobody trusts, and its key, in one file."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip(CANNOT + "no openssl")
    folder = tmp_path_factory.mktemp("tls")
    command = f"{openssl} req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 2 -subj /CN=test"
    command += f" -addext subjectAltName=DNS:localhost -keyout {folder / 'both'} -out {folder / 'pem'}"
    subprocess.run(command.split(), check=True, capture_output=True)
    with (folder / "both").open("ab") as file:
        file.write((folder / "pem").read_bytes())
    return folder / "both"


@contextlib.asynccontextmanager
async def addresses(certificate: Path) -> AsyncIterator[dict[str, int]]:
    """Ports: of nobody, of a server that says nothing, of one that speaks no TLS, and of one whose TLS nobody trusts."""

    async def nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await reader.read()
        writer.close()

    async def puzzled(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await nothing(reader, writer)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # handshakes fail, as they should
    secure = await asyncio.start_server(nothing, "localhost", 0, family=socket.AF_INET, ssl=context)
    mute = await asyncio.start_server(nothing, "127.0.0.1", 0)
    plain = await asyncio.start_server(puzzled, "127.0.0.1", 0)
    with socket.socket() as free:  # bound, and does not listen
        free.bind(("127.0.0.1", 0))
        async with secure, mute, plain:
            yield {
                "free": free.getsockname()[1],
                "mute": mute.sockets[0].getsockname()[1],
                "plain": plain.sockets[0].getsockname()[1],
                "tls": secure.sockets[0].getsockname()[1],
            }


@pytest.mark.parametrize("row", NOWHERE, ids=lambda row: row.name)
async def test_an_upstream_that_cannot_be_reached(tmp_path: Path, row: Nowhere, certificate: Path) -> None:
    async with addresses(certificate) as ports:
        url = row.url.format(**ports)
        async with matrix(tmp_path, fine, url=url, each=row.settings) as at:
            for way, got in zip(WAYS, (await at.each(stream=True)).values(), strict=True):
                message = assert_unreached(way, got)
                assert "cannot be reached from here" in message
                assert url in message
                assert any(word in message for word in row.said.split("|")), message
            assert set((await at.told()).values()) == {("unreached", 502)}
            told = [one for one in at.house.said("noticed") if "cannot be reached" in one]
            assert len(told) == len(WAYS), "of each upstream once"


async def test_an_upstream_that_restarts(tmp_path: Path) -> None:
    """Between two calls it is not noticed, while it is down it is told, in the middle of an answer that is cut."""

    async def script(exchange: Exchange) -> None:
        if not json.loads(exchange.body).get("stream"):
            await fine(exchange)
            return
        await exchange.send(SSE)
        await exchange.chunk(streamed(exchange.target, SAY, 1)[0])
        await exchange.gone.wait()

    async with matrix(tmp_path, script, failures_to_open=20) as at:
        port = int(at.upstream.url.rpartition(":")[2])
        assert {got.status for got in (await at.each()).values()} == {200}

        async def again() -> None:
            at.upstream._server = await asyncio.start_server(at.upstream._serve, "127.0.0.1", port)

        await at.upstream.stop()
        await again()
        assert {got.status for got in (await at.each()).values()} == {200}, "a connection grown stale is no fault"
        streams = asyncio.create_task(at.each(stream=True))
        await until(lambda: len(at.upstream.seen) >= 3 * len(WAYS))
        await until(lambda: all(one.first_at for one in at.house.gateway._calls.open()))
        await at.upstream.stop()
        assert {(got.status, got.whole) for got in (await streams).values()} == {(200, False)}
        for way, got in zip(WAYS, (await at.each()).values(), strict=True):
            assert_unreached(way, got)
        await again()
        assert {got.status for got in (await at.each()).values()} == {200}
        await at.told(5 * len(WAYS))
        endings = Counter(one.ending for one in at.house.served())
        assert endings == {"served": 3 * len(WAYS), "broken": len(WAYS), "unreached": len(WAYS)}


# -- more than there is room for ---------------------------------------------------------------------------------------

CROWD = """
import asyncio, collections, json, sys

async def main(port, number, requests):
    gate, found = asyncio.Semaphore(200), collections.Counter()

    async def one(at):
        async with gate:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=4096)
            writer.write(requests[at % len(requests)].encode())
        head = (await reader.readuntil(b"\\r\\n\\r\\n")).decode().lower().split("\\r\\n")
        fields = dict(line.split(": ", 1) for line in head[1:] if line)
        body = (await reader.readexactly(int(fields["content-length"]))).decode()
        writer.close()
        status = int(head[0].split()[1])
        kept = {name: fields[name] for name in ("retry-after", "x-should-retry") if name in fields}
        found[json.dumps([at % len(requests), status, kept, body if status >= 400 else ""])] += 1

    await asyncio.gather(*(one(at) for at in range(number)))
    print(json.dumps(list(found.items())))

asyncio.run(main(**json.load(sys.stdin)))
"""
"""A process of its own: its memory is not the gateway's."""


@pytest.mark.timeout(600)
async def test_more_calls_than_there_is_room_for(tmp_path: Path) -> None:
    """Those who cannot wait hear so at once, in their own words; those who can are served; memory is bounded."""
    go = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await go.wait()
        await fine(exchange)

    room = WAITING_CALLS // len(WAYS) * 4 // 5
    wait, run = room * len(WAYS), len(WAYS)
    more = {"room": room, "width": 64, "calls_per_agent": WAITING_CALLS, "hold_s": 300.0}
    async with matrix(tmp_path, script, each={"max_concurrency": 1}, **more) as at:
        base, key = at.house.gateway.credentials("fix-it", 1)
        requests = []
        for way in WAYS:
            body = way.body(False).decode()
            target = base.removeprefix(at.house.gateway.url) + way.path
            head = f"POST {target} HTTP/1.1\r\nhost: localhost\r\nx-api-key: {key}\r\ncontent-length: {len(body)}\r\n"
            requests.append(f"{head}\r\n{body}")
        before = psutil.Process().memory_info().rss
        crowd = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CROWD, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        given = json.dumps({"port": at.house.port, "number": WAITING_CALLS, "requests": requests}).encode()
        talking = asyncio.create_task(crowd.communicate(given))
        shed = WAITING_CALLS - wait - run
        await until(lambda: len(at.house.served()) >= shed, 100)
        await until(lambda: (at.house.gateway.calls("fix-it", 1) or (0, 0))[0] >= wait + run, 100)
        grown = psutil.Process().memory_info().rss - before
        assert (at.house.gateway.calls("fix-it", 1) or (0, 0))[0] == wait + run
        assert grown < 16 * 2**20 + WAITING_CALLS * 12_000, grown
        go.set()
        out, _ = await asyncio.wait_for(talking, 300)
        assert crowd.returncode == 0
        statuses: Counter[int] = Counter()
        for text, times in json.loads(out):
            number, status, headers, body = json.loads(text)
            statuses[200 if status == 200 else 0] += times
            if status != 200:
                assert_shed(WAYS[number], Reply(status, headers, body.encode()))
        assert statuses == {200: wait + run, 0: shed}
        await until(lambda: len(at.house.served()) >= WAITING_CALLS, 30)
        assert Counter(one.ending for one in at.house.served()) == {"served": wait + run, "shed": shed}
        await at.clean()


def assert_shed(way: Way, got: Reply) -> None:
    assert got.status == (529 if way.anthropic else 503)
    kind, message = way.error(got)
    assert kind == ("overloaded_error" if way.anthropic else "server_error")
    assert "too many calls wait" in message
    assert "x-should-retry" not in got.headers
    assert 1 <= int(got.headers.get("retry-after", 1)) <= 60
