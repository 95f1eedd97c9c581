"""What is delivered is counted while it flows, once, and only what is an answer: that is what limits are tried by."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from coordinator.domain.upstream import UpstreamKind, UpstreamSettings
from tests.gateway.rig import House, Upstream, until

if TYPE_CHECKING:
    from pathlib import Path

    from coordinator.domain.upstream_sample import UpstreamSample
    from tests.gateway.rig import Exchange

PART = b"x" * 5000


async def seen(house: House) -> UpstreamSample:
    [sample] = await house.gateway.samples()
    return sample


async def test_bytes_of_a_stream_count_while_it_flows_and_only_once(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        await exchange.chunk(PART)
        await go_on.wait()
        await exchange.chunk(PART)
        await exchange.send(b"0\r\n\r\n")

    async with Upstream(script) as upstream:
        described = (
            UpstreamSettings(kind=UpstreamKind.ANTHROPIC, name="team", url=upstream.url, max_concurrency=4),
            UpstreamSettings(kind=UpstreamKind.ECHO, name="echo", models=("echo",)),
        )
        async with House(tmp_path / "g", "", upstreams=described) as house:
            reply = asyncio.ensure_future(house.reply(body=b'{"model":"claude-x","stream":true}'))
            flowing = None
            while flowing is None or flowing.delivered_bytes < len(PART):
                flowing = await seen(house)
            assert (flowing.in_flight, flowing.limit, flowing.cap, flowing.unlimited) == (1, 4, 4, False)
            assert flowing.delivered_bytes < 2 * len(PART)
            go_on.set()
            assert len((await reply).body) == 2 * len(PART)
            await until(lambda: bool(house.served()))
            over = await seen(house)
            assert 2 * len(PART) <= over.delivered_bytes < 2 * len(PART) + 200
            assert over.in_flight == 0
            assert await seen(house) == over


async def test_what_fails_delivers_nothing(tmp_path: Path) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.plain(PART, status="500 No")

    async with Upstream(script) as upstream:
        described = (UpstreamSettings(kind=UpstreamKind.ANTHROPIC, name="team", url=upstream.url),)
        async with House(tmp_path / "g", "", upstreams=described) as house:
            assert (await house.reply(body=b'{"model":"claude-x"}')).status == 500
            sample = await seen(house)
            assert (sample.delivered_bytes, sample.unlimited) == (0, True)
