"""Calls that are the same share one upstream call, on the path and with real sockets."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from coordinator.domain.price import Price, TokenRates
from coordinator.domain.role_route import RoleRoute
from coordinator.domain.upstream import UpstreamKind, UpstreamSettings
from coordinator.gateway.claimant import Claimant
from tests.gateway.rig import SSE, Exchange, House, Upstream, housed, until

if TYPE_CHECKING:
    from pathlib import Path

PRICE = Price(
    models=("*",),
    rates=TokenRates(cache_read_usd=1, cache_write_1h_usd=1, cache_write_usd=1, input_usd=1, output_usd=10),
)
BODY = json.dumps({"model": "claude-x", "max_tokens": 10, "messages": [{"role": "user", "content": "Hi"}]}).encode()
ANSWER = json.dumps(
    {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-x",
        "content": [{"type": "text", "text": "Hello"}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 1000, "output_tokens": 100},
    }
).encode()


def shared(tmp_path: Path, script: Any) -> Any:
    return housed(tmp_path, script, dedup="strict", prices=(PRICE,))


async def two(house: House, upstream: Any) -> tuple[Any, Any]:
    """Two agents ask the same; the second while the first waits."""
    one = await house.ask(body=BODY)
    await until(lambda: upstream.seen)
    other = await house.ask(body=BODY, claim=("other", 1))
    await until(lambda: (house.gateway.calls("other", 1) or (0, 0))[0] == 1)
    return one, other


async def test_two_agents_that_ask_the_same_at_the_same_time_pay_once(tmp_path: Path) -> None:
    go = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await go.wait()
        await exchange.plain(ANSWER, more="Content-Type: application/json\r\n")

    async with shared(tmp_path, script) as (house, upstream):
        one, other = await two(house, upstream)
        go.set()
        first, second = await one.reply(), await other.reply()
        assert first.body == ANSWER
        told = json.loads(second.body)
        assert told["content"] == json.loads(ANSWER)["content"]
        assert told["id"] != "msg_1", "told anew, with an id of its own"
        assert len(upstream.seen) == 1
        await until(lambda: len(house.served()) >= 2)
        by_task = {event.task: event for event in house.served()}
        paid, spared = by_task["fix-it"], by_task["other"]
        assert (paid.cost_usd, paid.saved_usd, paid.collapsed) == (0.002, 0.0, "")
        assert (spared.cost_usd, spared.saved_usd, spared.collapsed) == (0.0, 0.002, "raw")
        one.close()
        other.close()


@pytest.mark.parametrize("allowed", [False, True])
async def test_owners_of_money_share_no_call_unless_that_is_allowed(tmp_path: Path, allowed: bool) -> None:
    """Two upstreams with different owners; which agent goes to which is told by its role."""
    go = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await go.wait()
        await exchange.plain(ANSWER, more="Content-Type: application/json\r\n")

    async with Upstream(script) as upstream:
        listed = tuple(
            UpstreamSettings(kind=UpstreamKind.ANTHROPIC, name=name, owner=name, url=upstream.url)
            for name in ("ann", "ben")
        )
        roles = {name: RoleRoute(upstream=name) for name in ("ann", "ben")}
        more: dict[str, Any] = {"dedup": "strict", "dedup_across_owners": allowed, "upstreams": listed, "roles": roles}
        async with House(tmp_path, "", **more) as house:
            house.claimant = Claimant(role="ann")
            one = await house.ask(body=BODY)
            await until(lambda: upstream.seen)
            house.claimant = Claimant(role="ben")
            other = await house.ask(body=BODY, claim=("other", 1))
            await until(lambda: allowed or len(upstream.seen) >= 2)
            await until(lambda: (house.gateway.calls("other", 1) or (0, 0))[0] == 1)
            go.set()
            assert [(await talk.reply()).status for talk in (one, other)] == [200, 200]
            assert len(upstream.seen) == (1 if allowed else 2)
            one.close()
            other.close()


async def test_who_came_first_may_leave(tmp_path: Path) -> None:
    """The call goes on for the other, who then pays for it."""
    go = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await go.wait()
        await exchange.plain(ANSWER, more="Content-Type: application/json\r\n")

    async with shared(tmp_path, script) as (house, upstream):
        one, other = await two(house, upstream)
        one.close()
        await until(lambda: [event.ending for event in house.served()] == ["left"])
        assert not upstream.seen[0].gone.is_set()
        go.set()
        assert (await other.reply()).status == 200
        await until(lambda: len(house.served()) >= 2)
        assert len(upstream.seen) == 1
        assert [(event.task, event.cost_usd) for event in house.served()] == [("fix-it", 0.0), ("other", 0.002)]
        other.close()


async def test_a_revoked_first_caller_does_not_take_the_others_along(tmp_path: Path) -> None:
    go = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await go.wait()
        await exchange.plain(ANSWER, more="Content-Type: application/json\r\n")

    async with shared(tmp_path, script) as (house, upstream):
        one, other = await two(house, upstream)
        house.gateway.revoke("fix-it", 1)
        await until(lambda: [event.ending for event in house.served()] == ["revoked"])
        assert house.gateway.calls("fix-it", 1) == (0, 0.0)
        assert (await one.reply()).status == 403, "as it is when nobody else listens"
        go.set()
        assert (await other.reply()).status == 200
        assert len(upstream.seen) == 1
        one.close()
        other.close()


async def test_the_upstream_is_let_go_when_nobody_is_left(tmp_path: Path) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(SSE)
        await exchange.chunk(b"event: ping\ndata: {}\n\n")
        await exchange.gone.wait()

    async with shared(tmp_path, script) as (house, upstream):
        one, other = await two(house, upstream)
        one.close()
        await until(lambda: len(house.served()) >= 1)
        other.close()
        async with asyncio.timeout(1):
            await upstream.seen[0].gone.wait()
        await until(lambda: len(house.served()) >= 2)
        assert {event.ending for event in house.served()} == {"left"}


async def test_a_client_that_tries_again_joins_its_own_call(tmp_path: Path) -> None:
    go = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await go.wait()
        await exchange.plain(ANSWER, more="Content-Type: application/json\r\n")

    async with shared(tmp_path, script) as (house, upstream):
        one = await house.ask(body=BODY)
        await until(lambda: upstream.seen)
        again = await house.ask(body=BODY)
        await until(lambda: (house.gateway.calls("fix-it", 1) or (0, 0))[0] == 2)
        one.close()
        go.set()
        assert (await again.reply()).body == ANSWER
        assert len(upstream.seen) == 1
        await until(lambda: len(house.served()) >= 2)
        assert sorted((event.ending, event.collapsed) for event in house.served()) == [
            ("left", ""),
            ("served", "retry"),
        ]
        again.close()


async def test_an_upstream_that_fails_fails_each_by_itself(tmp_path: Path) -> None:
    """Who joined is not told another's failure to reach it, but asks by itself."""
    tries = 0

    async def script(exchange: Exchange) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            await asyncio.sleep(0.3)
            exchange.writer.transport.abort()
            return
        await exchange.plain(ANSWER, more="Content-Type: application/json\r\n")

    async with shared(tmp_path, script) as (house, upstream):
        one, other = await two(house, upstream)
        assert (await one.reply()).status == 502
        assert (await other.reply()).status == 200
        assert len(upstream.seen) == 2
        one.close()
        other.close()


PIECES = [b'data: {"choices":[{"delta":{"content":"%d"}}]}\n\n' % number for number in range(8)]
CHAT = json.dumps({"model": "gpt-x", "stream": True, "messages": [{"role": "user", "content": "Hi"}]}).encode()


async def test_who_comes_in_the_middle_of_a_stream_hears_it_from_the_beginning(tmp_path: Path) -> None:
    """The first one was alone until then, and goes on as if nothing were."""
    steps = asyncio.Queue[bytes]()

    async def script(exchange: Exchange) -> None:
        await exchange.send(SSE)
        while piece := await steps.get():
            await exchange.chunk(piece)
        await exchange.send(b"0\r\n\r\n")

    async with shared(tmp_path, script) as (house, upstream):
        one = await house.ask("/v1/chat/completions", body=CHAT)
        begun = b"".join(PIECES[:3])
        for piece in PIECES[:3]:
            steps.put_nowait(piece)
        await one.head()
        assert await beginning(one, len(begun)) == begun
        other = await house.ask("/v1/chat/completions", body=CHAT, claim=("other", 1))
        await other.head()
        assert await beginning(other, len(begun)) == begun
        rest = [asyncio.ensure_future(rest_of(talk)) for talk in (one, other)]
        for piece in PIECES[3:]:
            steps.put_nowait(piece)
        steps.put_nowait(b"")
        assert await asyncio.gather(*rest) == [b"".join(PIECES[3:])] * 2
        assert len(upstream.seen) == 1
        await until(lambda: len(house.served()) >= 2)
        assert {event.task: event.collapsed for event in house.served()} == {"fix-it": "", "other": "raw"}
        one.close()
        other.close()


async def test_the_first_may_leave_a_stream_that_another_joined_in_its_middle(tmp_path: Path) -> None:
    steps = asyncio.Queue[bytes]()

    async def script(exchange: Exchange) -> None:
        await exchange.send(SSE)
        while piece := await steps.get():
            await exchange.chunk(piece)
        await exchange.send(b"0\r\n\r\n")

    async with shared(tmp_path, script) as (house, upstream):
        one = await house.ask("/v1/chat/completions", body=CHAT)
        steps.put_nowait(PIECES[0])
        await one.head()
        await one.chunk()
        other = await house.ask("/v1/chat/completions", body=CHAT, claim=("other", 1))
        await other.head()
        assert await other.chunk() == PIECES[0]
        one.close()
        await until(house.served)
        assert house.served()[0].ending == "left"
        for piece in (*PIECES[1:], b""):
            steps.put_nowait(piece)
        assert await rest_of(other) == b"".join(PIECES[1:])
        await until(lambda: len(house.served()) >= 2)
        assert (house.served()[1].ending, house.served()[1].task) == ("served", "other")
        assert not upstream.seen[0].gone.is_set(), "the upstream's call went on"
        other.close()


async def test_a_slow_first_caller_does_not_hold_who_joins_in_the_middle(tmp_path: Path) -> None:
    """Its connection was full, and the upstream held for it; with another one there it goes on."""
    large = [b"data: " + b"%d" % number * 32_768 + b"\n\n" for number in range(100, 400)]

    async def script(exchange: Exchange) -> None:
        await exchange.send(SSE)
        for piece in large:
            await exchange.chunk(piece)
        await exchange.send(b"0\r\n\r\n")

    def lengthen(engine: Any) -> None:
        engine._relay.sharing.deduplicator.flight_bytes = 2**26  # more than all sockets on the way take

    async with shared(tmp_path, script) as (house, upstream):
        await house.gateway.ask(lengthen)
        one = await house.ask("/v1/chat/completions", body=CHAT)
        await one.head()
        call = await house.gateway.ask(lambda engine: engine._calls.open()[0])
        await until(lambda: call.exchange is not None and call.exchange.full)
        other = await house.ask("/v1/chat/completions", body=CHAT, claim=("other", 1))
        await other.head()
        assert await rest_of(other) == b"".join(large)
        assert await rest_of(one) == b"".join(large), "the slow one misses nothing"
        assert len(upstream.seen) == 1
        one.close()
        other.close()


async def test_nobody_joins_an_answer_that_is_too_long_to_be_kept(tmp_path: Path) -> None:
    steps = asyncio.Queue[bytes]()

    async def script(exchange: Exchange) -> None:
        await exchange.send(SSE)
        while piece := await steps.get():
            await exchange.chunk(piece)
        await exchange.send(b"0\r\n\r\n")

    async with shared(tmp_path, script) as (house, upstream):

        def shorten(engine: Any) -> None:
            engine._relay.sharing.deduplicator.flight_bytes = 100

        await house.gateway.ask(shorten)
        one = await house.ask("/v1/chat/completions", body=CHAT)
        await one.head()
        for piece in PIECES[:4]:
            steps.put_nowait(piece)
            assert await one.chunk() == piece
        other = await house.ask("/v1/chat/completions", body=CHAT, claim=("other", 1))
        await until(lambda: len(upstream.seen) >= 2)
        for _ in range(2):
            steps.put_nowait(b"")
        assert await rest_of(one) == b""
        await other.head()
        assert await rest_of(other) == b""
        one.close()
        other.close()


async def beginning(talk: Any, size: int) -> bytes:
    """So many bytes at least, in however many chunks they come."""
    got = b""
    while len(got) < size:
        got += await talk.chunk()
    return got


async def rest_of(talk: Any) -> bytes:
    """All chunks up to the last."""
    got = b""
    while chunk := await talk.chunk():
        got += chunk
    return got
