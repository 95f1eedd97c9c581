"""What an upstream does wrong, takes too long for or has no room for: it is met once for all callers, and is over soon after."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from coordinator.domain.errors import BadInput
from coordinator.domain.lane import Lane
from coordinator.domain.price import Price, TokenRates
from coordinator.domain.upstream import UpstreamKind, UpstreamSettings
from coordinator.gateway import engine as engines
from coordinator.gateway import station as stations
from coordinator.gateway.claimant import Claimant
from coordinator.policy import upstream_limit
from coordinator.policy.circuit_breaker import CircuitState
from tests.gateway.rig import SSE, Exchange, House, Reply, Upstream, hello, housed, until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from coordinator.gateway.calls import Call
    from coordinator.gateway.engine import Engine

    Script = Callable[[Exchange], Awaitable[None]]

PRICE = Price(
    models=("*",),
    rates=TokenRates(cache_read_usd=1, cache_write_1h_usd=1, cache_write_usd=1, input_usd=1, output_usd=10),
)
RATE = b'{"type":"error","error":{"type":"rate_limit_error","message":"This request would exceed your rate limit"}}'
AT_ONCE = b'{"type":"error","error":{"type":"rate_limit_error","message":"Number of concurrent connections has exceeded your rate limit"}}'
USED_UP = b'{"type":"error","error":{"type":"rate_limit_error","message":"usage limit reached"}}'


def body(number: int = 0, model: str = "claude-x") -> bytes:
    return json.dumps(
        {"model": model, "max_tokens": 10, "messages": [{"role": "user", "content": str(number)}]}
    ).encode()


def number_of(exchange: Exchange) -> int:
    return int(json.loads(exchange.body)["messages"][0]["content"])


def described(name: str, upstream: Upstream, **more: Any) -> UpstreamSettings:
    return UpstreamSettings(kind=UpstreamKind.ANTHROPIC, name=name, url=upstream.url, **more)


def only(upstream: Upstream, **more: Any) -> tuple[UpstreamSettings, ...]:
    return (described("one", upstream, **more),)


async def refuse(exchange: Exchange, said: bytes, more: str, status: str = "429 Too Many Requests") -> None:
    await exchange.plain(said, status=status, more=more)


async def fail(exchange: Exchange, status: str = "500 Internal Server Error") -> None:
    await exchange.plain(b'{"type":"error","error":{"type":"api_error","message":"no"}}', status=status)


async def replies(house: House, count: int, first: int = 0, **more: Any) -> list[Reply]:
    return await asyncio.gather(*(house.reply(body=body(first + number), **more) for number in range(count)))


async def settled(house: House, wanted: Callable[[Engine], object], timeout_s: float = 5.0) -> None:
    """Until it is true of the running engine."""
    async with asyncio.timeout(timeout_s):
        while not await house.gateway.ask(wanted):  # noqa: ASYNC110 - asked of another thread
            await asyncio.sleep(0.005)


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back-off draws its shortest pauses."""
    monkeypatch.setattr("coordinator.gateway.engine.random.random", lambda: 0.0)


# -- the breaker -----------------------------------------------------------------------------------------------------


async def test_a_burst_of_failures_is_over_within_a_probe_after_it_ends(tmp_path: Path, no_pause: None) -> None:
    bad, probe_s = True, 0.2

    async def script(exchange: Exchange) -> None:
        await (fail(exchange) if bad else hello(exchange))

    async with housed(tmp_path, script, probe_every_s=probe_s, hold_s=10.0) as (house, upstream):
        assert [got.status for got in [await house.reply(body=body(n)) for n in range(3)]] == [500] * 3
        assert (await house.gateway.ask(lambda engine: engine.upstreams()))[0]["breakers"][0]["state"] == "open"
        await house.gateway.ask(lambda engine: engine.turn("retries", 5, "test", "probes are calls"))
        waiting = asyncio.ensure_future(replies(house, 12, first=10))
        await asyncio.sleep(2.5 * probe_s)
        assert not waiting.done()
        assert 1 <= len(upstream.seen) - 3 <= 4, "one probe a tick"
        bad, began = False, time.monotonic()
        got = await waiting
        assert time.monotonic() - began < probe_s + 0.4
        assert {one.status for one in got} == {200}
        assert (await house.gateway.ask(lambda engine: engine.upstreams()))[0]["breakers"] == []


async def test_the_first_byte_of_a_probe_closes_it_and_lets_the_others_go_at_once(tmp_path: Path) -> None:
    bad, end = True, asyncio.Event()

    async def script(exchange: Exchange) -> None:
        if bad:
            await fail(exchange)
            return
        await exchange.send(SSE)
        await exchange.chunk(b"event: ping\ndata: {}\n\n")
        await end.wait()
        await exchange.send(b"0\r\n\r\n")

    async with housed(tmp_path, script, probe_every_s=0.3, hold_s=10.0) as (house, upstream):
        for number in range(3):
            await house.reply(body=body(number))
        bad = False
        waiting = asyncio.ensure_future(replies(house, 8, first=10))
        await until(lambda: len(upstream.seen) >= 4)
        began = time.monotonic()
        await until(lambda: len(upstream.seen) >= 11)
        assert time.monotonic() - began < 0.2, "no call has ended yet, and none waits for its next look"
        end.set()
        assert {got.status for got in await waiting} == {200}


async def test_who_is_held_for_too_long_hears_that_it_is_away(tmp_path: Path) -> None:
    async with housed(tmp_path, fail, probe_every_s=30.0) as (house, upstream):
        for number in range(3):
            await house.reply(body=body(number))
        got = await house.reply(body=body(4))
        assert (got.status, got.error["type"]) == (502, "api_error"), "that is no limit of the caller's"
        assert "3 times in a row" in got.error["message"]
        assert len(upstream.seen) == 3
        assert (await house.reply(body=body(5, "claude-y"))).status == 500, "a breaker is one model's"
        await until(lambda: len(house.served()) >= 5)
        assert [one.ending for one in house.served()] == ["served"] * 3 + ["unreached", "served"]


@pytest.mark.parametrize("status", ["400 Bad", "401 No", "404 No", "413 Long", "422 Odd", "429 Rate", "429 At once"])
async def test_what_the_caller_did_and_limits_do_not_count(tmp_path: Path, status: str) -> None:
    async def script(exchange: Exchange) -> None:
        said = AT_ONCE if status == "429 At once" else RATE
        await refuse(exchange, said, "retry-after-ms: 30\r\n", status)

    async with housed(tmp_path, script, failures_to_open=1) as (house, upstream):
        for number in range(4):
            await settled(house, lambda engine: engine.stations[0].limit.may_start(time.monotonic()) == 0)
            assert (await house.reply(body=body(number))).status == int(status[:3])
            if status.startswith("429"):
                await house.gateway.ask(lambda engine: engine.resume("anthropic"))
        states = await house.gateway.ask(lambda engine: [one.state for one in engine.stations[0].breakers.values()])
        assert (states, len(upstream.seen)) == ([CircuitState.CLOSED], 4)


async def test_errors_inside_of_good_answers_count(tmp_path: Path) -> None:
    """Anthropic says that it is overloaded in a stream of status 200."""

    async def script(exchange: Exchange) -> None:
        await exchange.send(SSE)
        await exchange.chunk(b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error"}}\n\n')
        await exchange.send(b"0\r\n\r\n")

    async with housed(tmp_path, script) as (house, upstream):
        assert [(await house.reply(body=body(number))).status for number in range(5)] == [502] * 5
        assert len(upstream.seen) == 3


# -- trying again ----------------------------------------------------------------------------------------------------


async def cut_before_any_byte(exchange: Exchange) -> None:
    await exchange.send(SSE)
    exchange.writer.transport.abort()


async def hang_up(exchange: Exchange) -> None:
    exchange.writer.transport.abort()


async def error_first(exchange: Exchange) -> None:
    await exchange.send(SSE)
    await exchange.chunk(b'event: error\ndata: {"type":"error"}\n\n')
    await exchange.send(b"0\r\n\r\n")


@pytest.mark.parametrize("fault", [fail, cut_before_any_byte, hang_up, error_first])
async def test_what_failed_before_its_first_byte_is_tried_again(tmp_path: Path, no_pause: None, fault: Script) -> None:
    times = 0

    async def script(exchange: Exchange) -> None:
        nonlocal times
        times += 1
        await (fault(exchange) if times < 3 else hello(exchange))

    async with housed(tmp_path, script, retries=2, failures_to_open=20) as (house, upstream):
        assert (await house.reply(body=body())).status == 200
        assert len(upstream.seen) == 3
        await until(house.served)
        assert (house.served()[0].tries, house.served()[0].ending) == (3, "served")


async def test_after_its_first_byte_it_is_not(tmp_path: Path, no_pause: None) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(SSE)
        await exchange.chunk(b"event: ping\ndata: {}\n\n")
        exchange.writer.transport.abort()

    async with housed(tmp_path, script, retries=5, hold_s=5.0) as (house, upstream):
        assert not (await house.reply(body=body())).whole
        await until(house.served)
        assert (house.served()[0].ending, house.served()[0].tries, len(upstream.seen)) == ("broken", 1, 1)


async def test_a_callers_own_fault_is_not_tried_again(tmp_path: Path) -> None:
    async def script(exchange: Exchange) -> None:
        await fail(exchange, "400 Bad Request")

    async with housed(tmp_path, script, retries=5, hold_s=5.0) as (house, upstream):
        assert (await house.reply(body=body())).status == 400
        assert len(upstream.seen) == 1


async def test_pauses_between_tries_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.gateway.engine.random.random", lambda: 0.8)
    at: list[float] = []

    async def script(exchange: Exchange) -> None:
        at.append(time.monotonic())
        await fail(exchange)

    async with housed(tmp_path, script, retries=2, failures_to_open=20) as (house, _):
        got = await house.reply(body=body())
        assert (got.status, got.error["message"]) == (500, "no"), "what it said last"
        assert at[1] - at[0] >= 0.19
        assert at[2] - at[1] >= 0.39


async def test_tries_more_have_a_budget_of_all_calls(tmp_path: Path, no_pause: None) -> None:
    async with housed(tmp_path, fail, retries=2, retry_share=0.25, failures_to_open=1000) as (house, upstream):
        assert {got.status for got in await replies(house, 8)} == {500}
        assert len(upstream.seen) == 8 + 2 + 10, "a quarter of the calls, and one a second of ten"


# -- elsewhere -------------------------------------------------------------------------------------------------------


class Pair(House):
    """Two upstreams for every model."""

    def __init__(
        self, state: Path, one: Upstream, two: Upstream, weights: tuple[float, float] = (1, 1), **more: Any
    ) -> None:
        both = (described("one", one, weight=weights[0]), described("two", two, weight=weights[1]))
        super().__init__(state, one.url, upstreams=both, **more)

    async def at(self, session: int) -> str:
        """Where a call of it is answered."""
        reply = await self.reply(body=body(session), x_claude_code_session_id=f"session-{session}")
        assert reply.status == 200
        return reply.body.decode()


def named(name: str) -> Script:
    async def script(exchange: Exchange) -> None:
        await exchange.plain(name.encode())

    return script


async def test_a_call_goes_on_elsewhere_when_its_upstream_fails(tmp_path: Path, no_pause: None) -> None:
    async with Upstream(fail) as one, Upstream(named("two")) as two, Pair(tmp_path, one, two, retries=1) as house:
        for number in range(8):
            assert await house.at(number) == "two"
        assert 0 < len(one.seen) <= 3, "then its breaker is open, and it is not even asked"
        await until(lambda: len(house.served()) >= 8)
        assert {event.upstream for event in house.served()} == {"two"}
        assert sum(event.tries == 2 for event in house.served()) == len(one.seen)
        moved = await house.gateway.ask(lambda engine: sum(engine.meters.failovers.values()))
        assert moved == len(one.seen)


async def test_an_outage_of_many_probes_holds_nobody_up(tmp_path: Path, no_pause: None) -> None:
    """One call a tick is a probe, and goes on elsewhere when it failed; the others are not held at the door of who is away."""
    async with (
        Upstream(fail) as one,
        Upstream(named("two")) as two,
        Pair(tmp_path, one, two, retries=1, probe_every_s=0.1, hold_s=20) as house,
    ):
        slowest = 0.0
        for round_ in range(8):
            began = time.monotonic()
            assert set(await asyncio.gather(*(house.at(session) for session in range(12)))) == {"two"}
            slowest = max(slowest, time.monotonic() - began)
            before = len(one.seen)
            assert round_ == 0 or before <= 3 + 2 * round_ + 4, "no more than probes"
            await asyncio.sleep(0.11)  # the next probe is due: the clock is what is waited for
        assert slowest < 3, "nobody was held"


async def test_a_conversation_stays_where_it_was(tmp_path: Path, no_pause: None) -> None:
    """And moves only while its upstream is away."""
    down = False

    async def script(exchange: Exchange) -> None:
        await (fail(exchange) if down else exchange.plain(b"one"))

    async with (
        Upstream(script) as one,
        Upstream(named("two")) as two,
        Pair(tmp_path, one, two, retries=1, probe_every_s=0.1) as house,
    ):
        sessions = range(16)
        first = [await house.at(session) for session in sessions]
        assert set(first) == {"one", "two"}
        assert [await house.at(session) for session in sessions] == first
        down = True
        assert {await house.at(session) for session in sessions} == {"two"}
        down = False
        await asyncio.sleep(0.11)
        assert [await house.at(session) for session in sessions] == first


async def test_weights_share_conversations_out(tmp_path: Path) -> None:
    async with Upstream(named("one")) as one, Upstream(named("two")) as two, Pair(tmp_path, one, two, (3, 1)) as house:
        where = [await house.at(session) for session in range(160)]
        assert 100 <= where.count("one") <= 140


async def test_one_without_weight_is_for_when_no_other_can(tmp_path: Path, no_pause: None) -> None:
    async with (
        Upstream(named("one")) as one,
        Upstream(named("two")) as two,
        Pair(tmp_path, one, two, (1, 0), retries=1) as house,
    ):
        assert {await house.at(session) for session in range(10)} == {"one"}
        one.script = fail
        assert {await house.at(session) for session in range(10)} == {"two"}


@pytest.mark.parametrize(
    ("said", "more"), [(RATE, "retry-after: 20\r\n"), (USED_UP, "retry-after: 7200\r\n")], ids=["rate", "usage"]
)
async def test_a_limit_of_one_is_none_of_the_others(tmp_path: Path, said: bytes, more: str) -> None:
    async def script(exchange: Exchange) -> None:
        await refuse(exchange, said, more)

    async with Upstream(script) as one, Upstream(named("two")) as two, Pair(tmp_path, one, two) as house:
        assert {await house.at(session) for session in range(10)} == {"two"}
        assert len(one.seen) == 1


# -- limits that all share -------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of half a second are as long as those of three, and the ramp after them is five times as steep."""
    monkeypatch.setattr(upstream_limit, "SHORTEST_PROBED_S", 0.3)
    monkeypatch.setattr(upstream_limit, "BLINK_S", 0.2)
    monkeypatch.setattr(upstream_limit, "RAMP_PER_S", 10.0)


async def test_one_agents_429_holds_everybodys_calls_but_one_probe(tmp_path: Path, quick: None) -> None:
    """The probe's first byte opens the window; the others follow one by one."""
    at: list[float] = []
    probed = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        at.append(time.monotonic())
        if len(at) == 1:
            await refuse(exchange, RATE, "retry-after-ms: 1000\r\n")
            return
        if len(at) == 2:
            await probed.wait()
        await hello(exchange)

    async with housed(tmp_path, script, hold_s=10.0) as (house, _):
        first = asyncio.ensure_future(house.reply(body=body()))
        await until(lambda: at)
        await settled(house, lambda engine: engine.stations[0].limit.closed_until)
        others = asyncio.ensure_future(replies(house, 6, first=10, claim=("other", 1)))
        await until(lambda: len(at) >= 2)
        assert 0.2 <= at[1] - at[0] < 0.9, "early: before the window is over"
        await asyncio.sleep(0.2)
        assert len(at) == 2
        assert (await house.gateway.ask(lambda engine: engine.upstreams()))[0]["held_by"].startswith("closed for")
        probed.set()
        opened = time.monotonic()
        assert {got.status for got in [await first, *await others]} == {200}
        starts = [moment - opened for moment in at[2:]]
        assert len(starts) == 6
        assert starts[0] < 0.2, "whoever waited is woken"
        assert starts[-1] > 0.25, "a few at first"
        assert starts == sorted(starts)
        await until(lambda: len(house.served()) >= 7)
        assert {event.ending for event in house.served()} == {"served"}


async def test_a_window_that_is_probed_in_vain_takes_no_other_call(tmp_path: Path, quick: None) -> None:
    async def script(exchange: Exchange) -> None:
        await refuse(exchange, RATE, "retry-after-ms: 600\r\n")

    async with housed(tmp_path, script, hold_s=0.5) as (house, upstream):
        began = time.monotonic()
        got = await replies(house, 1) + await replies(house, 8, first=10)
        assert {one.status for one in got} == {429}
        assert all(int(one.headers["retry-after"]) >= 1 for one in got if "retry-after" in one.headers)
        assert time.monotonic() - began < 2.0
        assert len(upstream.seen) <= 3


@pytest.mark.parametrize(
    "header",
    [
        "retry-after-ms: 400\r\n",
        "x-ratelimit-remaining-tokens: 0\r\nx-ratelimit-reset-tokens: 400ms\r\n",
        "anthropic-ratelimit-requests-remaining: 0\r\nanthropic-ratelimit-requests-reset: {soon}\r\n",
        "",
    ],
)
async def test_the_pause_is_as_long_as_it_says_in_whatever_words(tmp_path: Path, header: str) -> None:
    times = 0
    message = b'{"error":{"message":"Rate limit reached. Please try again in 400ms."}}' if not header else b"{}"

    async def script(exchange: Exchange) -> None:
        nonlocal times
        times += 1
        if times > 1:
            await hello(exchange)
            return
        await refuse(exchange, message, header.format(soon=_rfc3339(time.time() + 0.4)))

    async with housed(tmp_path, script, hold_s=5.0) as (house, _):
        began = time.monotonic()
        assert (await house.reply(body=body())).status == 200
        assert 0.3 < time.monotonic() - began < 0.9


def _rfc3339(epoch_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(epoch_s)) + f".{int(epoch_s % 1 * 1000):03d}Z"


async def test_a_good_answer_that_leaves_nothing_closes_the_window_before_anybody_is_refused(tmp_path: Path) -> None:
    async def script(exchange: Exchange) -> None:
        left = "0" if len(upstream.seen) == 1 else "7"
        more = f"x-ratelimit-remaining-requests: {left}\r\nx-ratelimit-reset-requests: 20s\r\n"
        await exchange.plain(b'{"type":"message"}', more=more)

    async with housed(tmp_path, script) as (house, upstream):
        assert (await house.reply(body=body())).status == 200
        got = await house.reply(body=body(1))
        assert (got.status, len(upstream.seen)) == (429, 1)
        assert 15 <= int(got.headers["retry-after"]) <= 20
        await house.gateway.ask(lambda engine: engine.resume("anthropic"))
        assert (await house.reply(body=body(2))).status == 200
        limit = await house.gateway.ask(lambda engine: engine.stations[0].limit.closed_until)
        assert limit == 0.0, "7 are left"


async def test_a_usage_limit_ends_every_call_at_once_and_tells_the_fleet_when_it_is_over(tmp_path: Path) -> None:
    more = "anthropic-ratelimit-unified-status: rejected\r\nanthropic-ratelimit-unified-reset: {}\r\nx-should-retry: true\r\n"

    async def script(exchange: Exchange) -> None:
        await refuse(exchange, RATE, more.format(int(time.time()) + 7200))

    async with housed(tmp_path, script, hold_s=60.0, retries=5) as (house, upstream):
        began = time.monotonic()
        first = await house.reply(body=body())
        assert (first.status, first.headers["x-should-retry"], first.body) == (429, "false", RATE)
        second = await house.reply(body=body(1), claim=("other", 1))
        assert (second.status, second.headers["x-should-retry"]) == (429, "false")
        assert "retry-after" not in second.headers, "no program should wait for so long"
        assert "usage limit" in second.error["message"]
        assert time.monotonic() - began < 2.0
        assert len(upstream.seen) == 1
        await until(lambda: len(house.served()) >= 2)
        assert 7190 < house.gateway.conclude("fix-it", 1) <= 7200
        assert 7190 < house.gateway.conclude("other", 1) <= 7200


async def test_a_concurrency_429_sets_how_many_go_at_once(tmp_path: Path) -> None:
    inside = most = refused = 0

    async def script(exchange: Exchange) -> None:
        nonlocal inside, most, refused
        if inside >= 3:
            refused += 1
            await refuse(exchange, AT_ONCE, "retry-after: 30\r\n")
            return
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.15)
        inside -= 1
        await hello(exchange)

    async with housed(tmp_path, script, hold_s=10.0) as (house, _):
        assert {got.status for got in await replies(house, 12)} == {200}
        standing = (await house.gateway.ask(lambda engine: engine.upstreams()))[0]
        assert standing["limit"] == most == 3
        before = refused
        assert {got.status for got in await replies(house, 12, first=20)} == {200}
        assert refused == before, "now it is known"


async def test_settings_limit_how_many_go_at_once(tmp_path: Path) -> None:
    inside = most = 0

    async def script(exchange: Exchange) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.02)
        inside -= 1
        await hello(exchange)

    async with Upstream(script) as upstream:
        async with House(tmp_path, "", upstreams=only(upstream, max_concurrency=2), hold_s=10.0) as house:
            assert {got.status for got in await replies(house, 10)} == {200}
            assert most == 2


async def test_an_operator_pauses_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stations, "_LOOK_S", 30.0)
    async with housed(tmp_path, hold_s=60.0) as (house, upstream):
        await house.gateway.ask(lambda engine: engine.pause("anthropic", "the key is changed"))
        waiting = asyncio.ensure_future(replies(house, 1))
        await settled(house, lambda engine: engine.stations[0].door.inside)
        standing = (await house.gateway.ask(lambda engine: engine.upstreams()))[0]
        assert standing["held_by"] == "paused: the key is changed"
        await asyncio.sleep(0.05)
        assert upstream.seen == []
        began = time.monotonic()
        await house.gateway.ask(lambda engine: engine.resume("anthropic"))
        assert [got.status for got in await waiting] == [200]
        assert time.monotonic() - began < 0.5, "at once, not at its next look"
        assert len(house.said("noticed")) == 2
        with pytest.raises(BadInput, match="no upstream"):
            await house.gateway.ask(lambda engine: engine.pause("elsewhere", ""))


# -- who goes first, how many, and until when ------------------------------------------------------------------------


@pytest.mark.parametrize(("promote_s", "order"), [(60.0, [1, 4, 5, 2, 3]), (0.02, [1, 2, 3, 4, 5])])
async def test_the_urgent_go_first_but_nobody_starves(tmp_path: Path, promote_s: float, order: list[int]) -> None:
    """Two of LOW wait, then two of CRITICAL; who waits for long counts as more urgent."""
    go = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await go.wait()
        await hello(exchange)

    async with Upstream(script) as upstream:
        settings = {"upstreams": only(upstream, max_concurrency=1), "hold_s": 10.0, "promote_s": promote_s}
        async with House(tmp_path, "", **settings) as house:
            sent = []
            for number, lane in enumerate([Lane.NORMAL, Lane.LOW, Lane.LOW, Lane.CRITICAL, Lane.CRITICAL]):
                if number == 3:
                    await asyncio.sleep(0.15)
                house.claimant = Claimant(lane=lane)
                sent.append(asyncio.ensure_future(house.reply(body=body(number + 1))))
                await until(lambda: upstream.seen)
                await settled(house, lambda engine, n=number: sum(engine.stations[0].door.waiting) == n)
            go.set()
            await asyncio.gather(*sent)
            assert [number_of(one) for one in upstream.seen] == order
            await until(lambda: len(house.served()) >= 5)
            assert [event.lane for event in house.served()].count("low") == 2
            assert max(event.wait_s for event in house.served()) > 0.1


async def test_an_agent_may_not_begin_more_calls_than_its_share(tmp_path: Path) -> None:
    async with housed(tmp_path, agent_calls_per_s=0.2) as (house, upstream):
        assert (await house.reply(body=body())).status == 200
        got = await house.reply(body=body(1))
        assert (got.status, got.error["type"]) == (429, "rate_limit_error")
        assert 1 <= int(got.headers["retry-after"]) <= 5
        assert (await house.reply(body=body(2), claim=("other", 1))).status == 200, "that is another's share"
        assert len(upstream.seen) == 2


async def test_who_is_over_the_fleets_share_waits(tmp_path: Path) -> None:
    async with housed(tmp_path, fleet_calls_per_s=10.0, hold_s=5.0) as (house, upstream):
        began = time.monotonic()
        assert {got.status for got in await replies(house, 53)} == {200}
        assert 0.25 <= time.monotonic() - began < 2.0, "50 of five seconds at once, then ten a second"
        assert len(upstream.seen) == 53
        await until(lambda: len(house.served()) >= 53)
        assert sum(event.wait_s > 0.05 for event in house.served()) >= 2


async def test_who_waits_too_long_at_a_door_is_told_to_come_back(tmp_path: Path) -> None:
    go = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await go.wait()
        await hello(exchange)

    async with Upstream(script) as upstream:
        async with House(tmp_path, "", upstreams=only(upstream, max_concurrency=1), hold_s=0.2, room=2) as house:
            first = asyncio.ensure_future(house.reply(body=body()))
            await until(lambda: upstream.seen)
            began = time.monotonic()
            got = await replies(house, 4, first=1)
            assert sorted(one.status for one in got) == [429, 429, 529, 529], "two found no room to wait"
            assert 0.15 < time.monotonic() - began < 1.5
            assert all(int(one.headers["retry-after"]) >= 1 for one in got)
            go.set()
            assert (await first).status == 200
            await until(lambda: len(house.served()) >= 5)
            assert sorted(event.ending for event in house.served()) == ["limited"] * 2 + ["served"] + ["shed"] * 2


async def test_an_upstream_of_which_nothing_comes_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_LOOK_S", 0.02)

    async def script(exchange: Exchange) -> None:
        if number_of(exchange):
            await exchange.send(SSE)
            await exchange.chunk(b"event: ping\ndata: {}\n\n")
        await exchange.gone.wait()

    async with Upstream(script) as upstream:
        async with House(tmp_path, "", upstreams=only(upstream, first_byte_s=0.2, silence_s=0.2)) as house:
            began = time.monotonic()
            silent, stalled = await house.reply(body=body(0)), await house.reply(body=body(1))
            assert (silent.status, silent.error["type"]) == (504, "timeout_error")
            assert (stalled.status, stalled.whole) == (200, False)
            assert time.monotonic() - began < 2.0
            await until(lambda: all(one.gone.is_set() for one in upstream.seen))
            await until(lambda: len(house.served()) >= 2)
            assert [event.ending for event in house.served()] == ["late", "late"]
            failed = await house.gateway.ask(lambda engine: engine.stations[0].breaker("claude-x").last_failure)
            assert failed, "it speaks against the upstream"


async def test_knobs_act_on_the_next_call_and_are_told(tmp_path: Path, no_pause: None) -> None:
    bad = True

    async def script(exchange: Exchange) -> None:
        await (fail(exchange) if bad else hello(exchange))

    async with housed(tmp_path, script) as (house, upstream):

        async def turn(name: str, value: float) -> None:
            await house.gateway.ask(lambda engine: engine.turn(name, value, "person", "a try"))

        assert (await house.reply(body=body())).status == 500
        await turn("retries", 1)
        assert (await house.reply(body=body(1))).status == 500
        assert len(upstream.seen) == 3
        await turn("failures_to_open", 1)
        await turn("retries", 0)
        await turn("probe_every_s", 60)
        assert [(await house.reply(body=body(number))).status for number in (2, 3)] == [500, 502]
        assert len(upstream.seen) == 4
        bad = False
        await turn("probe_every_s", 0.1)
        await turn("agent_calls_per_s", 0.1)
        assert [(await house.reply(body=body(number))).status for number in (4, 5)] == [200, 429]
        await turn("agent_calls_per_s", 0)
        assert (await house.reply(body=body(6))).status == 200
        told = [one.event.to_json() for one in house.events if one.event.kind == "knob_turned"]
        assert [(one["knob"], one["old"], one["new"]) for one in told[:3]] == [
            ("retries", 0, 1),
            ("failures_to_open", 3, 1),
            ("retries", 1, 0),
        ]
        assert (told[0]["author"], told[0]["reason"]) == ("person", "a try")
        values = {one.knob.name: one.value for one in await house.gateway.knobs()}
        assert (values["failures_to_open"], values["probe_every_s"]) == (1, 0.1)
        for name, value in (("retries", 11), ("retries", 0.5), ("nothing", 1)):
            with pytest.raises(BadInput):
                await turn(name, value)
        assert len(told) == len([one for one in house.events if one.event.kind == "knob_turned"])


async def test_a_narrower_door_acts_at_once(tmp_path: Path) -> None:
    inside = most = 0

    async def script(exchange: Exchange) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.02)
        inside -= 1
        await hello(exchange)

    async with housed(tmp_path, script, hold_s=10.0) as (house, _):
        await house.gateway.ask(lambda engine: engine.turn("width", 2, "person", ""))
        assert {got.status for got in await replies(house, 8)} == {200}
        assert most == 2


# -- nothing is left behind ------------------------------------------------------------------------------------------


async def empty(house: House) -> dict[str, Any]:
    """All that calls take and have to give back."""

    def look(engine: Engine) -> dict[str, Any]:
        relay = engine._relay
        doors = [engine.inference, *(station.door for station in engine.stations)]
        levels = (engine.books.day, engine.books.fleet)
        return {
            "bills": len(relay.sharing._bills),
            "bytes": relay._held_bytes,
            "calls": len(engine._calls.open()),
            "flight": [station.limit.in_flight for station in engine.stations],
            "inside": [door.inside for door in doors],
            "probes": [breaker._out for station in engine.stations for breaker in station.breakers.values()],
            "reserved": [purse.reserved_usd for purse in (*levels, *engine.books._tasks.values())],
            "waiting": [sum(door.waiting) for door in doors],
        }

    return await house.gateway.ask(look)


def is_empty(left: dict[str, Any]) -> bool:
    return not any(any(value) if isinstance(value, list) else value for value in left.values())


@pytest.mark.parametrize("where", ["up", "streaming", "at the door", "for a limit", "for a breaker", "between tries"])
async def test_who_leaves_frees_whatever_it_had_or_waited_for(tmp_path: Path, where: str) -> None:
    async def script(exchange: Exchange) -> None:
        if where in ("for a breaker", "between tries"):
            await fail(exchange)
            return
        if where == "streaming":
            await exchange.send(SSE)
            await exchange.chunk(b"event: ping\ndata: {}\n\n")
        await exchange.gone.wait()

    async with Upstream(script) as upstream:
        narrow = only(upstream, max_concurrency=1 if where == "at the door" else 0)
        more = {"retries": 9, "failures_to_open": 1 if where == "for a breaker" else 20, "probe_every_s": 60.0}
        async with House(tmp_path, "", upstreams=narrow, hold_s=30.0, **more) as house:
            if where == "for a limit":
                await house.gateway.ask(lambda engine: engine.pause("one", "for a test"))
            talks = [await house.ask(body=body(number)) for number in range(2)]
            await until(lambda: (house.gateway.calls("fix-it", 1) or (0, 0.0))[0] == 2)
            if where != "for a limit":
                await until(lambda: upstream.seen)
            if where == "streaming":
                await talks[0].head()
            took: list[float] = []
            for talk in talks:
                began, open_calls = time.monotonic(), (house.gateway.calls("fix-it", 1) or (0, 0.0))[0]
                talk.close()
                await until(lambda n=open_calls: (house.gateway.calls("fix-it", 1) or (0, 0.0))[0] == n - 1)
                took.append(time.monotonic() - began)
            assert min(took) < 0.1
            if where in ("up", "streaming", "at the door"):
                await until(lambda: all(one.gone.is_set() for one in upstream.seen))
            await until(lambda: len(house.served()) >= 2)
            assert {event.ending for event in house.served()} == {"left"}
            assert is_empty(await empty(house)), await empty(house)


async def test_a_probe_that_never_went_up_is_given_back(tmp_path: Path) -> None:
    """It was let through by the breaker, and then left while it waited for a chair."""
    bad = True

    async def script(exchange: Exchange) -> None:
        if b"claude-y" in exchange.body:
            await exchange.gone.wait()
        await (fail(exchange) if bad else hello(exchange))

    more = {"width": 1, "hold_s": 10.0, "failures_to_open": 1, "probe_every_s": 0.2}
    async with housed(tmp_path, script, **more) as (house, upstream):
        assert (await house.reply(body=body())).status == 500
        busy = await house.ask(body=body(1, "claude-y"))
        await until(lambda: len(upstream.seen) >= 2)
        talk = await house.ask(body=body(2))
        await settled(house, lambda engine: sum(engine.inference.waiting) == 1)
        assert sum((await empty(house))["probes"]) == 1
        talk.close()
        await settled(house, lambda engine: sum(engine.inference.waiting) == 0)
        assert sum((await empty(house))["probes"]) == 0
        busy.close()
        bad = False
        assert (await house.reply(body=body(3))).status == 200


STORMS = [1]
"""Seeds; others found nothing more."""
STORM_CALLS = 300


class Storm:
    """An upstream that does anything at all, and clients that leave at any moment."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.begun: list[str] = []
        self.calm = False

    async def script(self, exchange: Exchange) -> None:
        await asyncio.sleep(self.chance.random() * 0.02)
        what = 1.0 if self.calm else self.chance.random()
        if what < 0.08:
            await fail(exchange, self.chance.choice(["500 No", "503 No", "529 No", "400 No"]))
        elif what < 0.2:
            said, more = self.chance.choice([(RATE, "retry-after-ms: 20\r\n"), (AT_ONCE, "")])
            await refuse(exchange, said, more)
        elif what < 0.26:
            exchange.writer.transport.abort()
        elif what < 0.3:
            await exchange.gone.wait()
        elif what < 0.36:
            await error_first(exchange)
        elif what < 0.7:
            await exchange.send(SSE)
            for number in range(self.chance.randrange(1, 6)):
                await exchange.chunk(f"event: ping\ndata: {number}\n\n".encode())
                await asyncio.sleep(self.chance.random() * 0.005)
            if what < 0.4:
                exchange.writer.transport.abort()
            else:
                await exchange.send(b"0\r\n\r\n")
        else:
            await exchange.plain(b'{"type":"message","usage":{"input_tokens":9,"output_tokens":3}}')

    async def caller(self, house: House, number: int) -> None:
        """Some ask what others ask; some leave."""
        await asyncio.sleep(self.chance.random() * 0.8)
        asked = body(number if self.chance.random() < 0.7 else number % 5)
        claim = self.chance.choice([("fix-it", 1), ("other", 1)])
        talk = await house.ask(body=asked, claim=claim, x_request_id=f"call{number}")
        with contextlib.suppress(TimeoutError, ConnectionError, asyncio.IncompleteReadError):
            async with asyncio.timeout(self.chance.random() * 0.2 if self.chance.random() < 0.4 else 1):
                await talk.reply()
        talk.close()

    async def weather(self, house: House) -> None:
        while True:
            await asyncio.sleep(0.02)
            turns = {
                "width": (1, 40),
                "room": (0, 200),
                "retries": (0, 3),
                "hold_s": (0, 3),
                "failures_to_open": (1, 5),
            }
            name = self.chance.choice(sorted(turns))
            value = self.chance.randint(*turns[name])
            await house.gateway.ask(lambda engine, n=name, v=value: engine.turn(n, v, "storm", ""))
            station = self.chance.choice(["one", "two"])
            if self.chance.random() < 0.2:
                await house.gateway.ask(lambda engine, n=station: engine.pause(n, "storm"))
                await asyncio.sleep(0.02)
            await house.gateway.ask(lambda engine, n=station: engine.resume(n))


@pytest.mark.parametrize("seed", STORMS)
async def test_every_call_of_a_storm_is_told_of_once_and_leaves_nothing_behind(tmp_path: Path, seed: int) -> None:
    storm = Storm(seed)
    settings = {"dedup": "strict", "probe_every_s": 0.1, "retries": 2, "hold_s": 1.0, "prices": (PRICE,)}
    async with (
        Upstream(storm.script) as one,
        Upstream(storm.script) as two,
        Pair(tmp_path, one, two, total_budget_usd=1e6, **settings) as house,
    ):
        calls = house.gateway._calls
        begin = calls.begin

        def counted(call: Call) -> None:
            storm.begun.append(call.id)
            begin(call)

        calls.begin = counted  # type: ignore[method-assign]
        weather = asyncio.create_task(storm.weather(house))
        await asyncio.gather(*(storm.caller(house, number) for number in range(STORM_CALLS)))
        weather.cancel()
        await asyncio.gather(weather, return_exceptions=True)
        async with asyncio.timeout(10):
            while not is_empty(left := await empty(house)):  # noqa: ASYNC110 - asked of another thread
                await asyncio.sleep(0.01)
        assert is_empty(left)
        assert len(storm.begun) > STORM_CALLS * 0.8
        await until(lambda: len(house.served()) >= len(storm.begun))
        assert Counter(event.request for event in house.served()) == Counter(storm.begun)
        assert len({event.ending for event in house.served()}) >= 4, "it was one"
        storm.calm = True
        for name, value in (("hold_s", 10), ("width", 100), ("room", 100), ("retries", 2)):
            await house.gateway.ask(lambda engine, n=name, v=value: engine.turn(n, v, "test", ""))
        after = await replies(house, 6, first=1000)
        assert {got.status for got in after} == {200}, "and all of it still works"
