"""Of a call that several share, each ending belongs to one caller or to the upstream's call, and exactly one pays."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from coordinator.domain.upstream import UpstreamKind, UpstreamSettings
from coordinator.gateway.claimant import Claimant
from tests.gateway.rig import SSE, Exchange, House, Talk, Upstream, until
from tests.gateway.test_money import PRICE, RUN_USD_PER_TOKEN, WORD, runaway

if TYPE_CHECKING:
    from pathlib import Path

    from coordinator.domain.event import RequestServed

PATH = "/v1/chat/completions"
BODY = json.dumps({"model": "gpt-x", "stream": True, "max_tokens": 1_000_000}).encode()
WORDS = f"data: {json.dumps({'choices': [{'delta': {'content': 'Hi'}}]})}\n\n".encode()
BUDGET = 0.05


def usage(tokens: int) -> bytes:
    said = {"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": tokens}}
    return f"data: {json.dumps(said)}\n\n".encode() + b"data: [DONE]\n\n"


class Scripted(Upstream):
    """Sends what the test says, call by call."""

    def __init__(self) -> None:
        super().__init__(self._serve_steps)
        self.steps: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def _serve_steps(self, exchange: Exchange) -> None:
        sending = asyncio.ensure_future(self._send(exchange))
        gone = asyncio.ensure_future(exchange.gone.wait())
        await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
        sending.cancel()
        gone.cancel()

    async def _send(self, exchange: Exchange) -> None:
        while (piece := await self.steps.get()) is not None:
            await (exchange.send(piece) if piece is SSE else exchange.chunk(piece))
        await exchange.send(b"0\r\n\r\n")

    def say(self, *pieces: bytes | None) -> None:
        for piece in pieces:
            self.steps.put_nowait(piece)


def shared(tmp_path: Path, upstream: Upstream, **more: Any) -> House:
    given = {"silence_s": 60.0, "first_byte_s": 60.0} | {
        name: more.pop(name) for name in ("silence_s", "first_byte_s") if name in more
    }
    settings = UpstreamSettings(kind=UpstreamKind.VLLM, name="own", prices=(PRICE,), url=upstream.url, **given)
    return House(tmp_path, "", dedup="strict", upstreams=(settings,), **more)


async def read_all(talk: Talk) -> bytes:
    """To the end of the answer, whichever it is."""
    body = b""
    try:
        while part := await talk.chunk():
            body += part
    except (asyncio.IncompleteReadError, ConnectionError):
        body += b"(broken off)"
    return body


async def joined(house: House, upstream: Upstream) -> tuple[Talk, Talk]:
    """Two agents hear one answer, of which both have the head."""
    one = await house.ask(PATH, BODY)
    await one.head()
    await one.chunk()
    other = await house.ask(PATH, BODY, claim=("other", 1))
    await other.head()
    await other.chunk()
    assert len(upstream.seen) == 1
    return one, other


async def served(house: House, count: int) -> dict[str, RequestServed]:
    await until(lambda: len(house.served()) >= count, 10.0)
    return {event.task: event for event in house.served()}


async def spent(house: House) -> float:
    return float(await house.gateway.ask(lambda engine: engine.books.day.spent_usd))


async def nothing_is_set_aside(house: House) -> bool:
    return bool(await house.gateway.ask(lambda engine: engine.books.day.reserved_usd == 0))


# -- budgets ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leaves", ["nobody", "the first", "the second"])
async def test_a_shared_stream_that_runs_away_is_cut_whoever_listens(tmp_path: Path, leaves: str) -> None:
    async with Upstream(runaway) as upstream, shared(tmp_path, upstream, day_budget_usd=BUDGET) as house:
        one, other = await joined(house, upstream)
        staying = [one, other]
        if leaves != "nobody":
            staying.pop(0 if leaves == "the first" else 1).close()
        got = await asyncio.gather(*map(read_all, staying))
        await until(upstream.seen[0].gone.is_set)
        told = await served(house, 2)
        longest = max(body.count(WORD[PATH]) for body in got) * RUN_USD_PER_TOKEN
        assert 0.5 * BUDGET < longest <= 1.01 * BUDGET
        assert sorted(event.ending for event in told.values()) == (
            ["budget", "budget"] if leaves == "nobody" else ["budget", "left"]
        )
        assert all(b"nothing is left of the budget" in body for body in got)
        paid = [event.cost_usd for event in told.values() if event.cost_usd]
        assert len(paid) == 1
        assert await spent(house) == pytest.approx(paid[0])
        assert paid[0] <= 1.01 * BUDGET
        assert await nothing_is_set_aside(house)
        assert len(upstream.seen) == 1
        one.close()
        other.close()


async def test_who_cannot_pay_for_more_is_told_what_another_pays_for(tmp_path: Path) -> None:
    """The first one's task has little left, the other's enough: nobody's answer is cut, and the other pays for it."""
    async with Scripted() as upstream, shared(tmp_path, upstream) as house:
        house.claimants = {"fix-it": Claimant(budget_usd=BUDGET), "other": Claimant(budget_usd=10.0)}
        upstream.say(SSE, WORDS)
        one, other = await joined(house, upstream)
        upstream.say(*[WORDS * 100] * 60, usage(6000), None)
        got = await asyncio.gather(read_all(one), read_all(other))
        assert [body.count(WORD[PATH]) for body in got] == [6000, 6000]
        told = await served(house, 2)
        assert told["fix-it"].cost_usd == 0.0
        assert told["other"].cost_usd == pytest.approx(6000 * RUN_USD_PER_TOKEN + 10e-6)
        assert {event.ending for event in told.values()} == {"served"}
        assert [event.saved_usd for event in told.values()] == [0.0, 0.0], "none was avoided that had been asked for"
        purses = await house.gateway.ask(lambda engine: {k: v.spent_usd for k, v in engine.books._tasks.items()})
        assert purses == {"fix-it": 0.0, "other": pytest.approx(0.06001)}
        assert await nothing_is_set_aside(house)
        one.close()
        other.close()


async def test_when_who_pays_leaves_and_nobody_else_can_the_call_ends(tmp_path: Path) -> None:
    async with Scripted() as upstream, shared(tmp_path, upstream) as house:
        house.claimants = {"other": Claimant(budget_usd=0.001)}
        upstream.say(SSE, WORDS)
        one, other = await joined(house, upstream)
        upstream.say(WORDS * 100)
        await other.chunk()
        one.close()
        assert (await read_all(other)).endswith(b"(broken off)")
        await until(upstream.seen[0].gone.is_set)
        told = await served(house, 2)
        assert {task: event.ending for task, event in told.items()} == {"fix-it": "left", "other": "budget"}
        assert told["fix-it"].cost_usd > 0
        assert told["other"].cost_usd == 0
        assert await spent(house) == pytest.approx(told["fix-it"].cost_usd)
        assert (await house.reply(PATH, BODY, claim=("other", 1))).status == 402
        other.close()


@pytest.mark.parametrize("first", ["fix-it", "other"])
async def test_what_was_used_is_paid_for_when_all_have_left(tmp_path: Path, first: str) -> None:
    async with Scripted() as upstream, shared(tmp_path, upstream, day_budget_usd=5.0) as house:
        upstream.say(SSE, WORDS)
        talks = dict(zip(("fix-it", "other"), await joined(house, upstream), strict=True))
        upstream.say(WORDS * 200)
        for talk in talks.values():
            await talk.chunk()
        talks.pop(first).close()
        await served(house, 1)
        ((last, talk),) = talks.items()
        talk.close()
        await until(upstream.seen[0].gone.is_set)
        told = await served(house, 2)
        assert {event.ending for event in told.values()} == {"left"}
        assert told[first].cost_usd == 0.0
        assert told[last].cost_usd > 100 * RUN_USD_PER_TOKEN
        assert await spent(house) == pytest.approx(told[last].cost_usd)
        assert await nothing_is_set_aside(house)


@pytest.mark.parametrize("leaves", [True, False])
async def test_one_who_leaves_in_the_middle_changes_nothing_of_what_is_paid(tmp_path: Path, leaves: bool) -> None:
    async with Scripted() as upstream, shared(tmp_path, upstream) as house:
        upstream.say(SSE, WORDS)
        one, other = await joined(house, upstream)
        if leaves:
            other.close()
            await served(house, 1)
        upstream.say(WORDS * 1000, usage(50_000), None)
        await read_all(one)
        if not leaves:
            await read_all(other)
        told = await served(house, 2)
        assert told["fix-it"].cost_usd == pytest.approx(50_000 * RUN_USD_PER_TOKEN + 10e-6)
        assert told["fix-it"].output_tokens == 50_000
        assert told["other"].cost_usd == 0.0
        assert told["other"].saved_usd == pytest.approx(0.0 if leaves else told["fix-it"].cost_usd)
        one.close()
        other.close()


async def test_whoever_pays_in_the_end_pays_what_it_costs_where_it_was_answered(tmp_path: Path) -> None:
    """The first upstream fails, the second is ten times as dear; the one who asked leaves."""
    go = asyncio.Event()

    async def fails(exchange: Exchange) -> None:
        await exchange.plain(b'{"error":{"message":"no"}}', status="500 Internal Server Error")

    async def answers(exchange: Exchange) -> None:
        await exchange.send(SSE)
        await exchange.chunk(WORDS)
        await go.wait()
        await exchange.chunk(usage(1000))
        await exchange.send(b"0\r\n\r\n")

    dear = UpstreamSettings(kind=UpstreamKind.VLLM, name="dear", prices=(PRICE,), url="")
    async with Upstream(fails) as first, Upstream(answers) as second:
        own = [
            UpstreamSettings(kind=UpstreamKind.VLLM, name=name, prices=prices, url=upstream.url, weight=weight)
            for name, prices, upstream, weight in (("own", (), first, 1e6), ("dear", dear.prices, second, 1e-6))
        ]
        async with House(tmp_path, "", dedup="strict", retries=1, upstreams=tuple(own)) as house:
            one, other = await joined(house, second)
            one.close()
            await served(house, 1)
            go.set()
            await read_all(other)
            told = await served(house, 2)
            assert told["other"].cost_usd == pytest.approx(1000 * RUN_USD_PER_TOKEN + 10e-6)
            assert told["other"].priced
            other.close()


# -- an upstream that stands still ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("leaves", [True, False])
async def test_a_shared_stream_that_stands_still_ends_for_all(tmp_path: Path, leaves: bool) -> None:
    async with Scripted() as upstream, shared(tmp_path, upstream, silence_s=0.2) as house:
        upstream.say(SSE, WORDS)
        one, other = await joined(house, upstream)
        if leaves:
            one.close()
            await served(house, 1)
        assert (await read_all(other)).endswith(b"(broken off)")
        await until(upstream.seen[0].gone.is_set)
        told = await served(house, 2)
        assert told["other"].ending == "late"
        assert told["fix-it"].ending == ("left" if leaves else "late")
        one.close()
        other.close()


async def test_a_first_byte_that_does_not_come_is_asked_for_again_for_all(tmp_path: Path) -> None:
    async with Scripted() as upstream, shared(tmp_path, upstream, first_byte_s=0.2, retries=1) as house:
        one = await house.ask(PATH, BODY)
        await until(lambda: upstream.seen)
        other = await house.ask(PATH, BODY, claim=("other", 1))
        await until(lambda: len(upstream.seen) >= 2, 10.0)
        upstream.say(SSE, WORDS, usage(1), None)
        for talk in (one, other):
            assert (await talk.head())[0] == 200
            assert (await read_all(talk)).count(WORD[PATH]) == 1
            talk.close()
        assert len(upstream.seen) == 2
        told = await served(house, 2)
        assert {task: event.collapsed for task, event in told.items()} == {"fix-it": "", "other": "raw"}
        assert sum(event.cost_usd > 0 for event in told.values()) == 1


# -- a client that stands still -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("listens", [True, False])
async def test_a_client_that_takes_nothing_is_hung_up_on(tmp_path: Path, listens: bool) -> None:
    """Its chair is free again; whoever listens beside it hears all."""
    async with Scripted() as upstream, shared(tmp_path, upstream, stall_s=0.2, day_budget_usd=500.0) as house:

        def lengthen(engine: Any) -> None:
            engine._relay.sharing.deduplicator.flight_bytes = 2**26  # more than all sockets on the way take

        await house.gateway.ask(lengthen)
        upstream.say(SSE, WORDS)
        one, other = await joined(house, upstream)
        if not listens:
            other.close()
            await served(house, 1)
        upstream.say(*[WORDS * 8000] * 100, usage(1), None)
        if listens:
            assert (await read_all(other)).endswith(b"data: [DONE]\n\n")
        told = await served(house, 2)
        assert told["fix-it"].ending == "stalled"
        assert told["other"].ending == ("served" if listens else "left")
        assert sum(event.cost_usd > 0 for event in told.values()) == 1
        await until(lambda: house.gateway.calls("fix-it", 1) == (0, 0.0))
        assert await house.gateway.ask(lambda engine: engine.inference.inside) == 0
        assert await nothing_is_set_aside(house)
        one.close()
        other.close()
