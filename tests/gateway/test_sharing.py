"""Calls that are the same share one upstream call, on the path and with real sockets."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from coordinator.domain.price import Price, TokenRates
from tests.gateway.rig import SSE, Exchange, House, housed, until

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
        await until(lambda: len(house.served()) == 2)
        by_task = {event.task: event for event in house.served()}
        paid, spared = by_task["fix-it"], by_task["other"]
        assert (paid.cost_usd, paid.saved_usd, paid.collapsed) == (0.002, 0.0, "")
        assert (spared.cost_usd, spared.saved_usd, spared.collapsed) == (0.0, 0.002, "raw")
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
        await until(lambda: len(house.served()) == 2)
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
        assert await one.reader.read(-1) == b""
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
        await until(lambda: len(house.served()) == 1)
        other.close()
        async with asyncio.timeout(1):
            await upstream.seen[0].gone.wait()
        await until(lambda: len(house.served()) == 2)
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
        await until(lambda: len(house.served()) == 2)
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
