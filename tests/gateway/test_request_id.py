"""``X-Request-Id`` of a model call: an answer has one whatever became of it, and it is the one that the call is told of under."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from coordinator.domain.upstream import UpstreamKind, UpstreamSettings
from tests.gateway.rig import SSE, Exchange, House, Upstream, housed, until

if TYPE_CHECKING:
    from pathlib import Path

BODY = json.dumps({"model": "claude-x", "max_tokens": 9, "messages": []}).encode()
JSON = "Content-Type: application/json\r\n"
NO = b'{"type":"error","error":{"type":"api_error","message":"no"}}'


async def whole(exchange: Exchange) -> None:
    await exchange.plain(b'{"type":"message"}', more=JSON)


async def streamed(exchange: Exchange) -> None:
    await exchange.send(SSE)
    await exchange.chunk(b'event: message_stop\ndata: {"type":"message_stop"}\n\n')
    await exchange.send(b"0\r\n\r\n")


async def refused(exchange: Exchange) -> None:
    await exchange.plain(NO, status="400 Bad", more=JSON)


async def told_of(house: House) -> str:
    await until(house.served)
    return house.served()[0].request


@pytest.mark.parametrize("script", [whole, streamed, refused])
async def test_an_answer_without_one_gets_the_calls_own(tmp_path: Path, script: object) -> None:
    async with housed(tmp_path, script) as (house, _):  # type: ignore[arg-type]
        got = await house.reply(body=BODY)
        assert got.headers["x-request-id"] == await told_of(house) != ""


@pytest.mark.parametrize("script", [whole, refused])
async def test_a_client_names_its_call_itself(tmp_path: Path, script: object) -> None:
    async with housed(tmp_path, script) as (house, upstream):  # type: ignore[arg-type]
        got = await house.reply(body=BODY, x_request_id="mine7")
        assert got.headers["x-request-id"] == await told_of(house) == "mine7"
        assert upstream.seen[0].header("x-request-id") == ["mine7"]


@pytest.mark.parametrize("name", ["no good", "a/b", "x" * 200])
async def test_what_would_not_do_in_a_log_is_replaced(tmp_path: Path, name: str) -> None:
    async with housed(tmp_path, whole) as (house, upstream):
        got = await house.reply(body=BODY, x_request_id=name)
        assert got.headers["x-request-id"] == await told_of(house) != name
        assert upstream.seen[0].header("x-request-id") == [name], "what goes up is the client's"


@pytest.mark.parametrize("status", ["200 OK", "400 Bad"])
async def test_the_upstreams_own_is_left_as_it_is(tmp_path: Path, status: str) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.plain(NO, status=status, more=JSON + "X-Request-ID: theirs\r\n")

    async with housed(tmp_path, script) as (house, _):
        talk = await house.ask(body=BODY)
        async with asyncio.timeout(5):
            head = (await talk.reader.readuntil(b"\r\n\r\n")).lower()
        assert head.count(b"x-request-id:") == 1
        assert b"x-request-id: theirs\r\n" in head
        talk.close()


async def test_a_call_that_goes_to_nobody_has_one_too(tmp_path: Path) -> None:
    async with housed(tmp_path, whole) as (house, upstream):
        got = await house.reply(body=b"{", x_request_id="mine7")
        assert (got.status, got.headers["x-request-id"]) == (400, "mine7")
        assert not upstream.seen


async def test_a_translated_answer_has_one_too(tmp_path: Path) -> None:
    async def chat(exchange: Exchange) -> None:
        said = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}]}
        await exchange.plain(json.dumps({"id": "c", "model": "m", **said}).encode(), more=JSON)

    async with Upstream(chat) as upstream:
        rack = UpstreamSettings(kind=UpstreamKind.VLLM, name="rack", url=upstream.url)
        async with House(tmp_path, "", upstreams=(rack,)) as house:
            got = await house.reply(body=BODY.replace(b"[]", b'[{"role": "user", "content": "Hi"}]'))
            assert got.status == 200, got.body
            assert got.headers["x-request-id"] == await told_of(house) != ""
