"""Each knob, turned over the local API, acts on a gateway that runs: seen by what calls and prompts meet afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest

from coordinator.control.knob_board import KnobBoard
from coordinator.domain.lane import Lane
from coordinator.domain.price import Price, TokenRates
from coordinator.domain.settings import GatewaySettings
from coordinator.domain.upstream import UpstreamKind, UpstreamSettings
from coordinator.gateway.claimant import Claimant
from coordinator.gateway.dials import KNOBS
from coordinator.gateway.documents import text_documents
from coordinator.kit.clock import SystemClock
from coordinator.kit.store import Store
from tests.api.test_server import ask, serving
from tests.gateway.rig import Exchange, House, Upstream, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping

    from coordinator.gateway.engine import Engine
    from coordinator.kit.stage import Stage
    from tests.api.conftest import Place
    from tests.gateway.rig import Reply

ANSWER = json.dumps(
    {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-x",
        "content": [{"type": "text", "text": "Hello"}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 7, "output_tokens": 5},
    }
).encode()
PRICE = Price(
    models=("*",),
    rates=TokenRates(cache_read_usd=1, cache_write_1h_usd=1, cache_write_usd=1, input_usd=1, output_usd=1000),
)
LONG_S = 30.0


class Walk:
    """A gateway on real sockets, the API beside it, and an upstream that answers as it is told."""

    def __init__(self, place: Place, house: House, upstream: Upstream) -> None:
        self.bad = False
        self.house = house
        self.open = asyncio.Event()
        self.open.set()
        self.place = place
        self.upstream = upstream
        upstream.script = self._answer

    async def _answer(self, exchange: Exchange) -> None:
        gone = asyncio.ensure_future(exchange.gone.wait())
        opened = asyncio.ensure_future(self.open.wait())
        await asyncio.wait({gone, opened}, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        opened.cancel()
        if self.bad:
            await exchange.plain(b"{}", status="500 No")
        elif not exchange.gone.is_set():
            await exchange.plain(ANSWER, more="Content-Type: application/json\r\n")

    @property
    def engine(self) -> Engine:
        engine = self.house.gateway._engine
        assert engine is not None
        return engine

    @property
    def seen(self) -> list[int]:
        """Which calls reached the upstream, in their order."""
        return [json.loads(one.body)["max_tokens"] for one in self.upstream.seen]

    def door(self, name: str) -> Stage:
        return dict(self.engine._lane.stages())[name]

    async def turn(self, **values: float) -> None:
        for name, value in values.items():
            reply = await ask(self.place, "knobs set", {"name": name, "value": f"{value:g}"})
            assert reply.data == {"name": name, "value": value}

    async def reply(self, number: int = 1, **more: Any) -> Reply:
        return await self.house.reply(body=body(number), **more)

    async def statuses(self, number: int, **more: Any) -> list[int]:
        return [(await self.reply(one, **more)).status for one in range(number)]

    def send(self, number: int = 1, *, lane: Lane = Lane.NORMAL, **more: Any) -> asyncio.Future[Reply]:
        self.house.claimant = Claimant(lane=lane)
        return asyncio.ensure_future(self.reply(number, **more))

    async def infer(self, prompt: str = "hello", **more: Any) -> dict[str, Any]:
        asked = json.dumps({"prompt": prompt, "max_tokens": 5, "model": "claude-x", **more}).encode()
        got = await self.house.reply("/v1/infer", asked)
        return {"status": got.status, **json.loads(got.body)}

    async def waiting(self, number: int) -> None:
        """At the upstream's doors."""
        engine = self.engine
        await until(
            lambda: sum(engine.inference.waiting) + sum(sum(one.door.waiting) for one in engine.stations) == number
        )


def body(number: int) -> bytes:
    return json.dumps({"model": "claude-x", "max_tokens": number, "messages": []}).encode()


async def passed(seconds: float) -> None:
    ends = asyncio.get_running_loop().time() + seconds
    await until(lambda: asyncio.get_running_loop().time() > ends)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder with a short name, for the API's socket."""
    with TemporaryDirectory(prefix="c-", dir="/tmp") as folder:
        yield Path(folder)


@contextlib.asynccontextmanager
async def walk_of(place: Place, tmp_path: Path, **settings: Any) -> AsyncIterator[Walk]:
    state = tmp_path / "gateway"
    state.mkdir()
    store = Store.open(state / "notes.db")
    more: dict[str, Any] = {"dedup": "strict", "probe_every_s": 60.0, "retry_share": 1.0, **settings}
    async with Upstream() as upstream, serving(place):
        team = UpstreamSettings(kind=UpstreamKind.ANTHROPIC, name="team", url=upstream.url)
        origins = {"note": text_documents(lambda: [("note", "hello")])}
        async with House(state, "", upstreams=(team,), origins=origins, store=store, **more) as house:
            place.live.gateway = house.gateway  # type: ignore[attr-defined]
            place.live.knobs = KnobBoard(place.live.store, SystemClock(), (house.gateway,))  # type: ignore[attr-defined]
            yield Walk(place, house, upstream)
    store.close()


# -- calls ------------------------------------------------------------------------------------------------------------


async def agent_rate(walk: Walk) -> None:
    assert await walk.statuses(3) == [200] * 3
    await walk.turn(agent_calls_per_s=0.1)
    assert await walk.statuses(2) == [200, 429]
    assert await walk.statuses(1, claim=("other", 1)) == [200]


async def fleet_rate(walk: Walk) -> None:
    assert await walk.statuses(3) == [200] * 3
    await walk.turn(fleet_calls_per_s=0.1)
    assert await walk.statuses(1) == [200]
    assert await walk.statuses(1, claim=("other", 1)) == [429]


async def failures(walk: Walk) -> None:
    walk.bad = True
    assert await walk.statuses(2) == [500, 500]
    await walk.turn(failures_to_open=1)
    assert await walk.statuses(2) == [500, 502]
    assert len(walk.seen) == 3


async def probes(walk: Walk) -> None:
    walk.bad = True
    assert await walk.statuses(4) == [500, 500, 500, 502]
    walk.bad = False
    await walk.turn(probe_every_s=0.1)
    await passed(0.15)
    assert await walk.statuses(2) == [200, 200]


async def by_turns(walk: Walk) -> list[int]:
    """Every other call fails, and none in a row."""
    told = []
    for bad in (False, True, False, True, False):
        walk.bad = bad
        told += await walk.statuses(1)
    return told


async def share_of_failures(walk: Walk) -> None:
    assert await by_turns(walk) == [200, 500, 200, 500, 200]
    await walk.turn(breaker_window=4)
    assert await by_turns(walk) == [200, 500, 200, 500, 502]


async def how_large_a_share(walk: Walk) -> None:
    await walk.turn(breaker_window=4, open_rate=0.75)
    assert await by_turns(walk) == [200, 500, 200, 500, 200]
    await walk.turn(open_rate=0.5)
    assert await by_turns(walk) == [200, 500, 200, 500, 502]


async def round_of_probes(walk: Walk) -> None:
    for wanted, states in ((1, []), (2, ["half-open"])):
        await walk.turn(failures_to_open=2, probe_every_s=0.1, probes_to_close=wanted)
        assert await opened_and_probed(walk) == states


async def share_of_probes(walk: Walk) -> None:
    for rate, states in ((1.0, ["half-open"]), (0.5, [])):
        await walk.turn(failures_to_open=2, probe_every_s=0.1, probes_to_close=2, close_rate=rate)
        assert await opened_and_probed(walk) == states


async def opened_and_probed(walk: Walk) -> list[str]:
    """Two failures, a pause, and one probe that is answered: the states of breakers that are not closed then."""
    walk.bad = True
    assert await walk.statuses(2) == [500, 500]
    walk.bad = False
    await passed(0.15)
    assert await walk.statuses(1) == [200]
    (station,) = await walk.house.gateway.ask(lambda engine: engine.upstreams())
    return [one["state"] for one in station["breakers"]]


async def growing_pause(walk: Walk) -> None:
    await walk.turn(failures_to_open=2, probe_every_s=0.1)
    assert await twice_probed(walk) == 500
    await walk.turn(probe_growth=10)
    assert await twice_probed(walk) == 502


async def longest_pause(walk: Walk) -> None:
    await walk.turn(failures_to_open=2, probe_every_s=0.1, probe_growth=10)
    assert await twice_probed(walk) == 502
    await walk.turn(longest_probe_s=0.1)
    assert await twice_probed(walk) == 500


async def twice_probed(walk: Walk) -> int:
    """What a call hears 0.15 s after a probe failed, with a breaker that opened before that: 500 is the upstream's own word."""
    walk.bad = True
    assert await walk.statuses(2) == [500, 500]
    await passed(0.15)
    assert await walk.statuses(1) == [500]
    await passed(0.15)
    return (await walk.reply()).status


async def tries(walk: Walk) -> None:
    walk.bad = True
    assert await walk.statuses(1) == [500]
    await walk.turn(retries=1)
    assert await walk.statuses(1) == [500]
    assert len(walk.seen) == 3


async def hold(walk: Walk) -> None:
    """Calls that wait for an upstream, and prompts that wait for a budget."""
    await ask(walk.place, "upstreams pause", {"name": "team", "reason": "a pause"})
    assert await walk.statuses(1) == [429]
    await walk.turn(hold_s=LONG_S)
    held = walk.send()
    await until(lambda: len(walk.house.gateway._calls.open()) == 1)
    await ask(walk.place, "upstreams resume", {"name": "team"})
    assert (await held).status == 200

    walk.open.clear()
    walk.house.claimant = Claimant(budget_usd=0.08)  # for one that may use its 50 tokens, or two that did not
    first = asyncio.ensure_future(walk.infer("first", max_tokens=50))
    await until(lambda: len(walk.seen) >= 2)
    await walk.turn(hold_s=0)
    assert (await walk.infer("second", max_tokens=50))["status"] == 429
    await walk.turn(hold_s=LONG_S)
    third = asyncio.ensure_future(walk.infer("third", max_tokens=50))
    await until(lambda: len(walk.house.gateway._calls.open()) == 2)
    walk.open.set()
    assert [(await first)["status"], (await third)["status"]] == [200, 200]


async def promotion(walk: Walk) -> None:
    """Who came first but is less urgent goes first once waiting counts for more."""
    await walk.turn(hold_s=LONG_S, width=1)
    orders = []
    for promote_s in (3600, 0.1):
        await walk.turn(promote_s=promote_s)
        before = len(walk.seen)
        walk.open.clear()
        sent = [walk.send(1)]
        await until(lambda: len(walk.seen) >= before + 1)  # noqa: B023 - awaited in the loop
        sent.append(walk.send(3, lane=Lane.LOW))
        await walk.waiting(1)
        await passed(0.4)
        sent.append(walk.send(2, lane=Lane.CRITICAL))
        await walk.waiting(2)
        walk.open.set()
        assert {one.status for one in await asyncio.gather(*sent)} == {200}
        orders.append(walk.seen[before:])
    assert orders == [[1, 2, 3], [1, 3, 2]]
    assert {door.promote_s for _, door in walk.engine._lane.stages()} == {0.1}


async def width(walk: Walk) -> None:
    walk.open.clear()
    await walk.turn(hold_s=LONG_S, width=1)
    sent = [walk.send(1)]
    await until(lambda: walk.seen == [1])
    sent.append(walk.send(2))
    await walk.waiting(1)
    assert walk.seen == [1]
    await walk.turn(width=2)
    await until(lambda: walk.seen == [1, 2])
    walk.open.set()
    assert {one.status for one in await asyncio.gather(*sent)} == {200}


async def room(walk: Walk) -> None:
    walk.open.clear()
    await walk.turn(hold_s=LONG_S, width=1, room=0)
    sent = [walk.send(1)]
    await until(lambda: walk.seen == [1])
    assert await walk.statuses(1) == [529]
    await walk.turn(room=1)
    sent.append(walk.send(2))
    await walk.waiting(1)
    walk.open.set()
    assert {one.status for one in await asyncio.gather(*sent)} == {200}


async def dedup_wait(walk: Walk) -> None:
    """Who joined another's call asks by itself after it, as a call and as a prompt."""
    await walk.turn(dedup_wait_s=1)
    walk.open.clear()
    sent = [walk.send(), walk.send(claim=("other", 1))]
    await until(lambda: len(walk.house.gateway._calls.open()) == 2 and walk.seen)
    assert len(walk.seen) == 1
    await until(lambda: len(walk.seen) >= 2, 3)
    prompts = [asyncio.ensure_future(walk.infer()) for _ in range(2)]
    await until(lambda: len(walk.seen) >= 4, 3)
    walk.open.set()
    assert {one.status for one in await asyncio.gather(*sent)} == {200}
    assert {one["status"] for one in await asyncio.gather(*prompts)} == {200}


async def dedup_ttl(walk: Walk) -> None:
    """A client that left comes back for the answer that somebody else has got meanwhile."""
    for ttl_s, asked in ((300, 1), (1, 3)):
        await walk.turn(dedup_ttl_s=ttl_s)
        walk.open.clear()
        before = len(walk.seen)
        first = await walk.house.ask(body=body(1))
        await until(lambda: len(walk.house.gateway._calls.open()) == 1 and len(walk.seen) > before)  # noqa: B023
        other = walk.send(claim=("other", 1))
        await until(lambda: len(walk.house.gateway._calls.open()) == 2)
        first.close()
        await until(lambda: len(walk.house.gateway._calls.open()) == 1)
        walk.open.set()
        assert (await other).status == 200
        if ttl_s == 1:
            await passed(1.1)
        assert (await walk.reply()).status == 200
        assert len(walk.seen) == asked


# -- prompts ----------------------------------------------------------------------------------------------------------


def door(name: str) -> Callable[[Walk], Awaitable[None]]:
    """Its two knobs: how many are inside, and how many may wait."""

    async def check(walk: Walk) -> None:
        stage = walk.door(name)
        assert stage.try_enter(Lane.NORMAL)
        assert (await walk.infer("1"))["status"] == 200
        await walk.turn(**{f"{name}_width": 1, f"{name}_room": 0})
        refused = await walk.infer("2")
        assert (refused["status"], refused["error"]["code"]) == (503, "server_is_overloaded")
        assert f"at the stage {name}" in refused["error"]["message"]
        await walk.turn(**{f"{name}_width": 2})
        assert (await walk.infer("3"))["status"] == 200
        await walk.turn(**{f"{name}_width": 1, f"{name}_room": 1})
        held = asyncio.ensure_future(walk.infer("4"))
        await until(lambda: sum(stage.waiting) == 1)
        stage.leave()
        assert (await held)["status"] == 200

    return check


async def cache_age(walk: Walk) -> None:
    assert [(await walk.infer(temperature=0))["cached"] for _ in range(2)] == [False, True]
    await walk.turn(cache_ttl_s=1)
    assert [(await walk.infer("young", temperature=0))["cached"] for _ in range(2)] == [False, True]
    await passed(1.1)
    assert (await walk.infer("young", temperature=0))["cached"] is False


async def cache_size(walk: Walk) -> None:
    assert [(await walk.infer(temperature=0))["cached"] for _ in range(2)] == [False, True]
    await walk.turn(cache_bytes=0)
    assert [(await walk.infer(temperature=0))["cached"] for _ in range(2)] == [False, False]


CHECKS: Mapping[str, Callable[[Walk], Awaitable[None]]] = {
    "agent_calls_per_s": agent_rate,
    "breaker_window": share_of_failures,
    "cache_bytes": cache_size,
    "cache_ttl_s": cache_age,
    "close_rate": share_of_probes,
    "dedup_ttl_s": dedup_ttl,
    "dedup_wait_s": dedup_wait,
    "failures_to_open": failures,
    "fleet_calls_per_s": fleet_rate,
    "hold_s": hold,
    "longest_probe_s": longest_pause,
    "open_rate": how_large_a_share,
    "probe_every_s": probes,
    "probe_growth": growing_pause,
    "probes_to_close": round_of_probes,
    "promote_s": promotion,
    "retries": tries,
    "room": room,
    "width": width,
    **{f"{name}_{what}": door(name) for name in ("rag", "assemble", "post", "stream") for what in ("room", "width")},
}


def test_each_knob_has_its_check() -> None:
    assert sorted(CHECKS) == sorted(knob.name for knob in KNOBS)


def test_each_knob_begins_within_its_bounds() -> None:
    from coordinator.gateway.dials import Dials

    dials = Dials(GatewaySettings())
    assert {knob.name: fault for knob in KNOBS if (fault := knob.fault(dials.value(knob.name)))} == {}
    assert sorted(Dials.__slots__) == sorted(knob.name for knob in KNOBS)


@pytest.mark.parametrize("name", sorted({check: name for name, check in CHECKS.items()}.values()))
async def test_a_knob_that_is_turned_acts(place: Place, tmp_path: Path, name: str) -> None:
    settings: dict[str, Any] = {"prices": (PRICE,)} if name == "hold_s" else {}
    async with walk_of(place, tmp_path, **settings) as walk:
        await CHECKS[name](walk)
        turned = {one.event.knob: one.event.new for one in walk.house.events if one.event.kind == "knob_turned"}  # type: ignore[attr-defined]
        reply = await ask(place, "knobs list", {})
        shown = {one["name"]: one["value"] for one in reply.data["knobs"]}
        assert name in turned
        assert {knob: shown[knob] for knob in turned} == turned
