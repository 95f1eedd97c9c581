"""Where a call goes when the door it stands at does not let it in, and what its caller hears when there is no other."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from coordinator.domain.upstream import UpstreamKind, UpstreamSettings
from coordinator.gateway.claimant import Claimant
from tests.gateway.rig import SSE, Exchange, House, Upstream, hello, housed, until
from tests.gateway.test_money import PRICE, ask_for, costing
from tests.gateway.test_resilience import RATE, body, described, fail, refuse

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.gateway.engine.random.random", lambda: 0.0)


# -- a door that is shut --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("room", "hold_s"), [(0, 10.0), (10, 0.0)], ids=["full", "late"])
async def test_who_is_turned_away_at_one_door_goes_to_another(tmp_path: Path, room: int, hold_s: float) -> None:
    """The first upstream's one chair is taken, and its line is full or too slow."""
    go = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        await go.wait()
        await exchange.plain(b"one")

    async def quick(exchange: Exchange) -> None:
        await exchange.plain(b"two")

    async with Upstream(slow) as one, Upstream(quick) as two:
        both = (described("one", one, weight=1e6, max_concurrency=1), described("two", two, weight=1e-6))
        async with House(tmp_path, one.url, upstreams=both, hold_s=hold_s, room=room) as house:
            first = asyncio.ensure_future(house.reply(body=body(1)))
            await until(lambda: one.seen)
            assert (await house.reply(body=body(2))).body == b"two"
            go.set()
            assert (await first).body == b"one"
            await until(lambda: len(house.served()) >= 2)
            assert {event.upstream for event in house.served()} == {"one", "two"}


async def test_who_is_turned_away_everywhere_is_told_so(tmp_path: Path) -> None:
    go = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        await go.wait()
        await hello(exchange)

    async with Upstream(slow) as one, Upstream(slow) as two:
        both = tuple(described(name, each, max_concurrency=1) for name, each in (("one", one), ("two", two)))
        async with House(tmp_path, one.url, upstreams=both, hold_s=10.0, room=0) as house:
            held = [asyncio.ensure_future(house.reply(body=body(number))) for number in range(2)]
            await until(lambda: len(one.seen) + len(two.seen) >= 2)
            got = await house.reply(body=body(3))
            assert (got.status, got.error["type"]) == (529, "overloaded_error")
            go.set()
            assert [reply.status for reply in await asyncio.gather(*held)] == [200, 200]


async def test_what_an_upstream_said_is_heard_although_its_breaker_shut_then(tmp_path: Path, no_pause: None) -> None:
    async def script(exchange: Exchange) -> None:
        said = b'{"type":"error","error":{"type":"api_error","message":"the model fell over"}}'
        await exchange.plain(said, status="500 Internal Server Error")

    async with housed(tmp_path, script, retries=2, failures_to_open=1, probe_every_s=30.0) as (house, upstream):
        got = await house.reply(body=body())
        assert (got.status, got.error["message"]) == (500, "the model fell over")
        assert len(upstream.seen) == 1


# -- pauses that clients bear ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "pause", "stops"),
    [
        ("retry-after: 200\r\n", "200", True),
        ("Retry-After: 200\r\nretry-after-ms: 200000\r\nX-Should-Retry: true\r\n", "200", True),
        ("retry-after: 60\r\n", "60", False),
        ("retry-after: 7\r\n", "7", False),
    ],
)
async def test_a_pause_that_clients_do_not_bear_ends_their_call(
    tmp_path: Path, more: str, pause: str, *, stops: bool
) -> None:
    async def script(exchange: Exchange) -> None:
        await refuse(exchange, RATE, more)

    async with housed(tmp_path, script) as (house, _):
        got = await house.reply(body=body())
        assert (got.status, got.headers["retry-after"]) == (429, pause)
        assert got.headers.get("x-should-retry") == ("false" if stops else None)
        again = await house.reply(body=body(1))
        assert (again.status, int(again.headers["retry-after"]) <= 60) == (429, True)


# -- an error as the first event ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/v1/messages", b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error"}}\n\n'),
        ("/v1/chat/completions", b'data: {"error":{"message":"overloaded","code":503}}\n\n'),
        ("/v1/chat/completions", b'data: {"error": {"message": "overloaded"}}\n\n'),
        ("/v1/responses", b'event: error\ndata: {"type":"error","message":"overloaded"}\n\n'),
    ],
)
async def test_an_error_as_the_first_event_is_tried_again(
    tmp_path: Path, no_pause: None, path: str, said: bytes
) -> None:
    async def script(exchange: Exchange) -> None:
        if exchange.connection == 1 and len(upstream.seen) == 1:
            await exchange.send(SSE)
            await exchange.chunk(said)
            await exchange.send(b"0\r\n\r\n")
        else:
            await hello(exchange)

    async with housed(tmp_path, script, retries=1) as (house, upstream):
        assert (await house.reply(path, ask_for(path, stream=True))).status == 200
        assert len(upstream.seen) == 2


# -- money where it goes --------------------------------------------------------------------------------------------------


async def test_the_dearest_that_may_answer_is_what_is_set_aside(tmp_path: Path, no_pause: None) -> None:
    """The first costs nothing and fails; a budget that the second would pass is not passed."""

    async def answers(exchange: Exchange) -> None:
        await exchange.plain(json.dumps(costing(0.04)).encode(), more="Content-Type: application/json\r\n")

    async with Upstream(fail) as one, Upstream(answers) as two:
        made: list[dict[str, Any]] = [
            {"name": "own", "kind": UpstreamKind.VLLM, "url": one.url, "weight": 1e6},
            {"name": "dear", "kind": UpstreamKind.ANTHROPIC, "url": two.url, "weight": 1e-6, "prices": (PRICE,)},
        ]
        both = tuple(UpstreamSettings(**each) for each in made)
        async with House(tmp_path, "", upstreams=both, retries=1) as house:
            house.claimant = Claimant(budget_usd=0.05)
            asked = ask_for("/v1/messages", max_tokens=4000, messages=[{"role": "user", "content": "Go"}])
            assert (await house.reply(body=asked)).status == 200
            got = await house.reply(body=asked)
            assert (got.status, len(two.seen)) == (402, 1)
            spent = await house.gateway.ask(lambda engine: engine.books.day.spent_usd)
            assert spent == pytest.approx(0.04)


async def test_a_prompt_costs_what_it_costs_where_it_was_answered(tmp_path: Path, no_pause: None) -> None:
    async def answers(exchange: Exchange) -> None:
        said = {
            **costing(0.04),
            "role": "assistant",
            "content": [{"type": "text", "text": "Hi"}],
            "stop_reason": "end_turn",
        }
        await exchange.plain(json.dumps(said).encode(), more="Content-Type: application/json\r\n")

    async with Upstream(fail) as one, Upstream(answers) as two:
        both = (
            described("one", one, weight=1e6, models=("claude-x",)),
            described("two", two, weight=1e-6, models=("claude-x",), prices=(PRICE,)),
        )
        async with House(tmp_path, "", upstreams=both, retries=1) as house:
            asked = json.dumps({"prompt": "Go", "model": "claude-x", "retrieve": False}).encode()
            got = await house.reply("/v1/infer", asked)
            assert (got.status, json.loads(got.body)["cost_usd"]) == (200, pytest.approx(0.04))


async def test_one_call_that_no_upstream_can_bear_opens_no_breaker(tmp_path: Path, no_pause: None) -> None:
    """Tried three times, it is one failure of three that it takes."""

    async def script(exchange: Exchange) -> None:
        await (fail(exchange) if b"poison" in exchange.body else hello(exchange))

    async with housed(tmp_path, script, retries=2, failures_to_open=3) as (house, upstream):
        poison = body().replace(b'"0"', b'"poison"')
        for _ in range(2):
            assert (await house.reply(body=poison)).status == 500
        assert len(upstream.seen) == 6
        assert await house.gateway.ask(lambda engine: all(one.closed for one in engine.stations[0].breakers.values()))
        assert (await house.reply(body=poison)).status == 500
        assert not await house.gateway.ask(
            lambda engine: all(one.closed for one in engine.stations[0].breakers.values())
        )


async def test_retries_that_one_upstream_bears_are_no_others(tmp_path: Path, no_pause: None) -> None:
    """The one that always fails has used up what may be sent to it again; a call of another's is still tried again."""
    times = 0

    async def once(exchange: Exchange) -> None:
        nonlocal times
        times += 1
        await (fail(exchange) if times == 1 else hello(exchange))

    async with Upstream(fail) as one, Upstream(once) as two:
        both = (described("one", one, models=("claude-x",)), described("two", two, models=("claude-y",)))
        more: dict[str, Any] = {"retries": 1, "retry_share": 0.0, "failures_to_open": 1000}
        async with House(tmp_path, "", upstreams=both, **more) as house:
            for number in range(30):
                assert (await house.reply(body=body(number))).status == 500
            assert len(one.seen) < 60, "its budget is used up"
            assert (await house.reply(body=body(99, "claude-y"))).status == 200
            assert len(two.seen) == 2
