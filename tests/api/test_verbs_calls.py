"""What was called and what it cost, read from the book as the gateway writes it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from coordinator.api import view
from coordinator.api.verb import arguments_from
from coordinator.api.verbs_calls import show_door
from coordinator.domain.event import RequestServed
from coordinator.gateway.book import CallBook
from tests.api.test_verbs import VERBS, ask, shown, stream

if TYPE_CHECKING:
    from tests.api.conftest import Place

CALL = RequestServed(
    bytes_down=100,
    bytes_up=200,
    cache_read_tokens=120_000,
    cost_usd=0.0312,
    ending="served",
    first_byte_s=1.25,
    generation=2,
    input_tokens=1500,
    lane="normal",
    model="claude-opus-5-5",
    output_tokens=420,
    path="/v1/messages",
    priced=True,
    request="r-1",
    role="builder",
    status=200,
    stream=True,
    task="fix-login",
    took_s=9.5,
    tries=2,
    upstream="anthropic",
    wait_s=3.0,
)


class Clerk:
    def __init__(self, place: Place) -> None:
        self.book = CallBook(place.live.store)
        self.bus = place.live.bus
        self.bus.tap(self.book.take)

    async def write(self, *served: RequestServed) -> None:
        for event in served:
            self.bus.publish(event)
        await self.book.flush()


@pytest.fixture
def clerk(place: Place) -> Clerk:
    return Clerk(place)


def lines(data: dict[str, Any], width: int) -> list[str]:
    made = ["".join(span.text for span in line) for line in VERBS["calls"].show(data, width)]
    assert all(view.width_of(line) <= width for line in made), made
    return made


async def test_a_call_is_told_with_all_that_became_of_it(place: Place, clerk: Clerk) -> None:
    await clerk.write(CALL)
    (data,) = await stream(place, "calls", live=False)
    json.dumps(data)
    said = " ".join(" ".join(lines(data, 80)).split())
    for part in (
        "fix-login.2", "served 200", "claude-opus-5-5 at anthropic", "9.5 s, first byte 1.2", "held 3.0 s", "2 tries",
        "122k in (120k cached), 420 out", "$0.0312",
    ):  # fmt: skip
        assert part in said
    assert " ".join(" ".join(lines(data, 60)).split()) == said, "the same words in sixty columns"
    assert " ".join(lines(data, 200)[0].split()) == said, "one line where there is room"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ending": "budget", "status": 402, "upstream": "", "cost_usd": 0.0}, "budget 402"),
        ({"ending": "left", "status": 0}, "left "),
        ({"priced": False, "cost_usd": 0.0}, "cost unknown"),
        ({"collapsed": "strict", "saved_usd": 1.5, "cost_usd": 0.0}, "shared (strict), saved $1.50"),
        ({"model": "", "path": "/v1/models", "upstream": ""}, "/v1/models at no upstream"),
        ({"model": "\x1b[2J" + "long-name-" * 20}, "long-name"),
    ],
)
async def test_whatever_became_of_it_fits_and_is_said(
    place: Place, clerk: Clerk, changes: dict[str, Any], said: str
) -> None:
    await clerk.write(replace(CALL, **changes))
    (data,) = await stream(place, "calls", live=False)
    if len(data["model"]) < 100:
        assert said.strip() in " ".join(" ".join(lines(data, 60)).split())
    made = " ".join("".join(span.text for line in VERBS["calls"].show(data, 80) for span in line).split())
    assert said.strip() in made
    assert "\x1b" not in made


async def test_calls_are_chosen_by_task_and_number(place: Place, clerk: Clerk) -> None:
    await clerk.write(*(replace(CALL, request=f"r-{n}", task=("a", "b")[n % 2]) for n in range(6)))
    assert [one["request"] for one in await stream(place, "calls", limit=2)] == ["r-4", "r-5"]
    assert [one["request"] for one in await stream(place, "calls", task="a")] == ["r-0", "r-2", "r-4"]
    assert [one["request"] for one in await stream(place, "calls", task="a", limit=1)] == ["r-4"]
    assert await stream(place, "calls", limit=0) == []
    assert await stream(place, "calls", task="nobody") == []


async def test_calls_to_come_follow_those_that_were(
    place: Place, clerk: Clerk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.api.verbs_calls._LOOK_S", 0.01)
    await clerk.write(CALL)
    verb = VERBS["calls"]
    assert verb.stream is not None
    following = verb.stream(place.offline, arguments_from(verb, {"follow": True, "task": "fix-login"}))
    async with asyncio.timeout(5):
        assert (await anext(following))["request"] == "r-1"
        await clerk.write(replace(CALL, request="r-2", task="other"), replace(CALL, request="r-3"))
        assert (await anext(following))["request"] == "r-3", "each once, and only this task's"
    await following.aclose()  # type: ignore[attr-defined]


async def test_spending_is_told_by_day_and_by_task_the_dearest_first(place: Place, clerk: Clerk) -> None:
    nothing = await ask(place, "spend", live=False)
    assert "No model call" in shown(place, "spend", nothing)
    await clerk.write(
        replace(CALL, cost_usd=0.25, task="cheap"),
        replace(CALL, cost_usd=12.5, task="dear-" + "x" * 80),
        replace(CALL, cost_usd=0.0, priced=False, task="cheap"),
        replace(CALL, collapsed="strict", cost_usd=0.0, saved_usd=0.5, task="cheap"),
    )
    reply = await ask(place, "spend", live=False)
    assert [row["cost_usd"] for row in reply.data["tasks"]] == [12.5, 0.25]
    (day,) = reply.data["days"]
    assert (day["calls"], day["unpriced"], day["cost_usd"], day["saved_usd"]) == (4, 1, 12.75, 0.5)
    said = shown(place, "spend", reply)
    assert "$12.75" in said
    assert said.index("dear-xxx") < said.index("cheap")


async def test_many_tasks_are_cut_short_and_that_is_said(place: Place, clerk: Clerk) -> None:
    await clerk.write(*(replace(CALL, task=f"task-{number}") for number in range(25)))
    reply = await ask(place, "spend", live=False)
    assert len(reply.data["tasks"]) == 25
    assert "and 5 more: coordinator spend --json" in shown(place, "spend", reply)


def test_the_door_says_what_clients_of_each_protocol_are_to_be_told() -> None:
    data = {"url": "http://127.0.0.1:8", "upstreams": {"google": "https://g"}, "keys": {"local": "cck-1"}}
    said = "\n".join("".join(span.text for span in line) for line in show_door(data, 80))
    for words in (
        "ANTHROPIC_BASE_URL=http://127.0.0.1:8 ANTHROPIC_API_KEY=cck-1",
        "OPENAI_BASE_URL=http://127.0.0.1:8/v1 OPENAI_API_KEY=cck-1",
        "GOOGLE_GEMINI_BASE_URL=http://127.0.0.1:8 GEMINI_API_KEY=cck-1",
    ):
        assert f"export {words}" in said
