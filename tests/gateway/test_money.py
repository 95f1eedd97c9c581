"""What a call costs is known from what the upstream told, and no budget is passed, however many calls draw on it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from coordinator.domain.price import Price, TokenRates
from coordinator.domain.settings import GatewaySettings
from coordinator.domain.upstream import UpstreamKind, UpstreamSettings
from coordinator.gateway.book import CallBook
from coordinator.gateway.books import STEP_TOKENS, Books
from coordinator.gateway.calls import Call
from coordinator.gateway.claimant import Claimant
from coordinator.gateway.dialect import Dialect
from coordinator.kit.clock import SystemClock
from coordinator.kit.store import Store
from tests.gateway.rig import PROVIDER_KEY, SSE, Exchange, House, Reply, Upstream, hello, housed, until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from coordinator.domain.event import RequestServed

RATES = TokenRates(cache_read_usd=0.1, cache_write_1h_usd=2, cache_write_usd=1.25, input_usd=1, output_usd=10)
PRICE = Price(models=("claude-x", "gpt-x"), rates=RATES)
JSON = "Content-Type: application/json\r\n"

ANTHROPIC_USAGE = {
    "input_tokens": 1000,
    "cache_read_input_tokens": 10_000,
    "cache_creation_input_tokens": 2000,
    "cache_creation": {"ephemeral_5m_input_tokens": 1500, "ephemeral_1h_input_tokens": 500},
    "output_tokens": 100,
}
ANTHROPIC_USD = (1000 * 1 + 10_000 * 0.1 + 1500 * 1.25 + 500 * 2 + 100 * 10) / 1e6
CHAT_USAGE = {"prompt_tokens": 11_000, "completion_tokens": 100, "prompt_tokens_details": {"cached_tokens": 10_000}}
RESPONSES_USAGE = {"input_tokens": 11_000, "output_tokens": 100, "input_tokens_details": {"cached_tokens": 10_000}}
OPENAI_USD = (1000 * 1 + 10_000 * 0.1 + 100 * 10) / 1e6


def events(*told: dict[str, Any]) -> bytes:
    return b"".join(f"event: {one['type']}\ndata: {json.dumps(one)}\n\n".encode() for one in told)


def chunks(*told: dict[str, Any]) -> bytes:
    return b"".join(f"data: {json.dumps(one)}\n\n".encode() for one in told) + b"data: [DONE]\n\n"


TEXT = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}}
ANSWERS = [
    pytest.param(
        "/v1/messages", {"type": "message", "usage": ANTHROPIC_USAGE}, ANTHROPIC_USD, id="messages"
    ),
    pytest.param(
        "/v1/messages",
        events(
            {"type": "message_start", "message": {"usage": {**ANTHROPIC_USAGE, "output_tokens": 1}}},
            TEXT,
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 100}},
            {"type": "message_stop"},
        ),
        ANTHROPIC_USD,
        id="messages-stream",
    ),
    pytest.param("/v1/chat/completions", {"choices": [], "usage": CHAT_USAGE}, OPENAI_USD, id="chat"),
    pytest.param(
        "/v1/chat/completions",
        chunks({"choices": [{"delta": {"content": "Hi"}}]}, {"choices": [], "usage": CHAT_USAGE}),
        OPENAI_USD,
        id="chat-stream",
    ),
    pytest.param("/v1/responses", {"object": "response", "usage": RESPONSES_USAGE}, OPENAI_USD, id="responses"),
    pytest.param(
        "/v1/responses",
        events(
            {"type": "response.output_text.delta", "delta": "Hi"},
            {"type": "response.completed", "response": {"usage": RESPONSES_USAGE}},
        ),
        OPENAI_USD,
        id="responses-stream",
    ),
    pytest.param("/v1/embeddings", {"data": [], "usage": {"prompt_tokens": 500, "total_tokens": 500}}, 500 / 1e6, id="embeddings"),
    pytest.param("/v1/messages/count_tokens", {"input_tokens": 9000}, 0.0, id="count"),
]  # fmt: skip


def ask_for(path: str, *, stream: bool = False, max_tokens: int = 100, **more: Any) -> bytes:
    model = "claude-x" if path.startswith("/v1/messages") else "gpt-x"
    named = {"max_output_tokens" if path == "/v1/responses" else "max_tokens": max_tokens}
    return json.dumps({"model": model, "stream": stream, **named, **more}).encode()


def answering(answer: bytes | dict[str, Any]) -> Any:
    async def script(exchange: Exchange) -> None:
        if isinstance(answer, bytes):
            await exchange.send(SSE)
            await exchange.chunk(answer)
            await exchange.send(b"0\r\n\r\n")
        else:
            await exchange.plain(json.dumps(answer).encode(), more=JSON)

    return script


def costing(usd: float) -> dict[str, Any]:
    """A whole answer in Anthropic's protocol."""
    return {"type": "message", "usage": {"input_tokens": 0, "output_tokens": round(usd * 1e6 / 10)}}


async def served(house: House, count: int) -> list[RequestServed]:
    await until(lambda: len(house.served()) >= count)
    return house.served()


# -- what a call costs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "answer", "usd"), ANSWERS)
async def test_a_call_costs_what_its_answer_says_it_used(
    tmp_path: Path, path: str, answer: bytes | dict[str, Any], usd: float
) -> None:
    async with housed(tmp_path, answering(answer), prices=(PRICE,)) as (house, _):
        assert (await house.reply(path, ask_for(path, stream=isinstance(answer, bytes)))).status == 200
        (event,) = await served(house, 1)
        assert event.priced
        assert event.cost_usd == pytest.approx(usd, abs=1e-9)
        assert event.stream is isinstance(answer, bytes)
        house.gateway.conclude("fix-it", 1)
        told = [one.event.to_json() for one in house.events if one.event.kind == "calls_counted"]
        assert told[0]["cost_usd"] == pytest.approx(usd, abs=1e-9)


async def test_a_long_prompt_has_rates_of_its_own(tmp_path: Path) -> None:
    doubled = TokenRates(cache_read_usd=0.2, cache_write_1h_usd=4, cache_write_usd=2.5, input_usd=2, output_usd=20)
    price = replace(PRICE, long=doubled, long_above_tokens=13_000 - 1)
    async with housed(tmp_path, answering({"type": "message", "usage": ANTHROPIC_USAGE}), prices=(price,)) as (
        house,
        _,
    ):
        await house.reply(body=ask_for("/v1/messages"))
        (event,) = await served(house, 1)
        assert event.cost_usd == pytest.approx(2 * ANTHROPIC_USD, abs=1e-9)


async def test_a_model_nobody_has_priced_costs_an_unknown_amount(tmp_path: Path) -> None:
    async with housed(tmp_path, answering({"type": "message", "usage": ANTHROPIC_USAGE}), prices=(PRICE,)) as (
        house,
        _,
    ):
        body = ask_for("/v1/messages").replace(b"claude-x", b"odd-model")
        assert (await house.reply(body=body)).status == 200
        (event,) = await served(house, 1)
        assert (event.priced, event.cost_usd, event.input_tokens) == (False, 0.0, 1000)


async def test_what_was_refused_costs_nothing_and_that_is_known(tmp_path: Path) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.plain(b'{"type":"error"}', status="400 Bad Request")

    async with housed(tmp_path, script, prices=(PRICE,)) as (house, _):
        await house.reply(body=ask_for("/v1/messages").replace(b"claude-x", b"odd-model"))
        await house.reply(body=b"no json")
        assert [(event.priced, event.cost_usd) for event in await served(house, 2)] == [(True, 0.0)] * 2


async def test_a_call_that_was_answered_elsewhere_costs_what_it_costs_there(tmp_path: Path) -> None:
    async def away(exchange: Exchange) -> None:
        await exchange.plain(b"{}", status="500 No")

    dear = Price(models=("*",), rates=TokenRates(cache_read_usd=0, cache_write_1h_usd=0, cache_write_usd=0, input_usd=0, output_usd=30))  # fmt: skip
    async with Upstream(away) as one, Upstream(answering(costing(0.001))) as two:
        both = (
            UpstreamSettings(kind=UpstreamKind.ANTHROPIC, name="one", url=one.url, prices=(PRICE,)),
            UpstreamSettings(kind=UpstreamKind.ANTHROPIC, name="two", url=two.url, prices=(dear,), weight=0),
        )
        async with House(tmp_path, "", upstreams=both, retries=1) as house:
            assert (await house.reply(body=ask_for("/v1/messages"))).status == 200
            (event,) = await served(house, 1)
            assert (event.upstream, event.cost_usd) == ("two", pytest.approx(0.003))


# -- budgets ---------------------------------------------------------------------------------------------------------


def is_stop(got: Reply) -> bool:
    """What ends every client at once."""
    return got.status == 402 and got.headers.get("x-should-retry") == "false"


async def test_a_tasks_budget_is_not_passed_and_no_other_task_feels_it(tmp_path: Path) -> None:
    async with housed(tmp_path, answering(costing(0.004)), prices=(PRICE,)) as (house, upstream):
        house.claimant = Claimant(budget_usd=0.01)
        body = ask_for("/v1/messages", max_tokens=400)
        assert [(await house.reply(body=body)).status for _ in range(3)] == [200, 200, 402]
        assert (await house.reply(body=body, claim=("fix-it", 2))).status == 402, "it is the task's, not the attempt's"
        assert (await house.reply(body=body, claim=("other", 1))).status == 200
        assert len(upstream.seen) == 3
        told = await served(house, 5)
        assert [event.ending for event in told] == ["served", "served", "budget", "budget", "served"]
        assert await house.gateway.ask(lambda engine: engine.books._tasks["fix-it"].spent_usd) == pytest.approx(0.008)
        house.claimant = Claimant(budget_usd=0.02)
        assert (await house.reply(body=body, claim=("fix-it", 2))).status == 200, "somebody gave more"


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/v1/messages", "billing_error"),
        ("/v1/chat/completions", "insufficient_quota"),
        ("/v1/responses", "insufficient_quota"),
    ],
)
async def test_who_is_over_budget_hears_it_in_its_own_protocol(tmp_path: Path, path: str, kind: str) -> None:
    async with housed(tmp_path, hello, prices=(PRICE,), total_budget_usd=1e-6) as (house, upstream):
        for stream in (False, True):
            got = await house.reply(path, ask_for(path, stream=stream))
            assert is_stop(got)
            assert got.error["type"] == kind
            assert got.error["message"].startswith("coordinator: the fleet's budget: $0.00 of")
        assert upstream.seen == []


async def test_what_costs_nothing_needs_no_budget_and_no_price(tmp_path: Path) -> None:
    one = {"ANTHROPIC_API_KEY": PROVIDER_KEY}
    async with housed(tmp_path, hello, total_budget_usd=1e-6, openai_url="", environment=one) as (house, _):
        assert (await house.reply("/v1/models", b"", method="GET")).status == 200
        assert (await house.reply("/v1/messages/count_tokens", ask_for("/v1/messages"))).status == 200
        assert [event.priced for event in await served(house, 2)] == [True, True]


async def test_with_a_budget_a_model_without_a_price_is_not_called(tmp_path: Path) -> None:
    async with housed(tmp_path, hello, day_budget_usd=5.0) as (house, upstream):
        got = await house.reply(body=ask_for("/v1/messages").replace(b"claude-x", b"odd-model"))
        assert is_stop(got)
        assert "gateway.prices" in got.error["message"]
        assert upstream.seen == []


async def test_one_call_may_not_cost_more_than_a_call_may(tmp_path: Path) -> None:
    async with housed(tmp_path, answering(costing(0.001)), prices=(PRICE,), call_budget_usd=0.01) as (house, upstream):
        got = await house.reply(body=ask_for("/v1/messages", max_tokens=1000))
        assert is_stop(got)
        assert "no call may cost more than $0.01" in got.error["message"]
        assert (await house.reply(body=ask_for("/v1/messages", max_tokens=900))).status == 200
        assert len(upstream.seen) == 1


async def test_the_worst_is_set_aside_before_a_call_and_given_back_after_it(tmp_path: Path) -> None:
    """Two at once do not fit; the second waits for what the first does not need."""
    go = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await go.wait()
        await answering(costing(0.001))(exchange)

    async with housed(tmp_path, script, prices=(PRICE,), day_budget_usd=0.01, hold_s=10.0) as (house, upstream):
        body = ask_for("/v1/messages", max_tokens=600)
        first = asyncio.ensure_future(house.reply(body=body))
        await until(lambda: upstream.seen)
        assert await house.gateway.ask(lambda engine: engine.books.day.reserved_usd) >= 0.006
        second = asyncio.ensure_future(house.reply(body=body, claim=("other", 1)))
        await until(lambda: house.gateway.calls("other", 1))
        await asyncio.sleep(0.1)
        assert len(upstream.seen) == 1
        go.set()
        assert [(await first).status, (await second).status] == [200, 200]
        left = await house.gateway.ask(lambda engine: (engine.books.day.reserved_usd, engine.books.day.spent_usd))
        assert left == (0.0, pytest.approx(0.002))


async def test_who_waits_in_vain_for_anothers_rest_is_told_to_come_back(tmp_path: Path) -> None:
    go = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await go.wait()
        await answering(costing(0.001))(exchange)

    async with housed(tmp_path, script, prices=(PRICE,), day_budget_usd=0.01, hold_s=0.1) as (house, upstream):
        body = ask_for("/v1/messages", max_tokens=600)
        first = asyncio.ensure_future(house.reply(body=body))
        await until(lambda: upstream.seen)
        got = await house.reply(body=body, claim=("other", 1))
        assert (got.status, "x-should-retry" in got.headers) == (429, False), "the budget is not spent"
        assert "set aside for calls under way" in got.error["message"]
        go.set()
        assert (await first).status == 200


async def runaway(exchange: Exchange, words: int = 1_000_000) -> None:
    """One token an event, until nobody listens; events come in pieces that do not end where they do."""
    path = exchange.target.removeprefix("/v1")
    await exchange.send(SSE)
    if path == "/messages":
        start = {"type": "message_start", "message": {"usage": {"input_tokens": 10, "output_tokens": 1}}}
        await exchange.chunk(events(start))
        one = events(TEXT)
    elif path == "/responses":
        one = events({"type": "response.output_text.delta", "delta": "Hi"})
    else:
        one = f"data: {json.dumps({'choices': [{'delta': {'content': 'Hi'}}]})}\n\n".encode()
    try:
        for _ in range(words // 20):
            await exchange.chunk(one * 19 + one[:30])
            await exchange.chunk(one[30:])
            await asyncio.sleep(0.0005)
    finally:
        exchange.gone.set()


WORD: dict[str, bytes] = {
    "/v1/messages": b"content_block_delta\n",
    "/v1/chat/completions": b'"content": "Hi"',
    "/v1/responses": b"response.output_text.delta\n",
}
RUN_USD_PER_TOKEN = 10e-6


@pytest.mark.parametrize(
    ("path", "whose"),
    [
        *((path, "day_budget_usd") for path in sorted(WORD)),
        *(("/v1/messages", whose) for whose in ("call_budget_usd", "total_budget_usd", "task")),
    ],
)
async def test_a_stream_that_runs_away_is_cut_when_nothing_is_left(tmp_path: Path, path: str, whose: str) -> None:
    """The client hears why; what passed, at one token a word, is no more than the budget."""
    budget = 0.05
    settings = {"prices": (PRICE,)} if whose == "task" else {"prices": (PRICE,), whose: budget}
    async with housed(tmp_path, runaway, **settings) as (house, upstream):
        house.claimant = Claimant(budget_usd=budget if whose == "task" else 0.0)
        got = await house.reply(path, ask_for(path, stream=True, max_tokens=1_000_000))
        assert (got.status, got.whole) == (200, False)
        assert b"nothing is left of the budget" in got.body
        assert got.body.endswith(b"\n\n"), "an event of its own, not the rest of another"
        await until(upstream.seen[0].gone.is_set)
        (event,) = await served(house, 1)
        assert event.ending == "budget"
        passed_usd = got.body.count(WORD[path]) * RUN_USD_PER_TOKEN
        assert 0.5 * budget < passed_usd <= 1.01 * budget
        assert event.cost_usd <= 1.01 * budget
        if whose != "call_budget_usd":
            again = await house.reply(path, ask_for(path, stream=True, max_tokens=1_000_000))
            assert is_stop(again) or not again.whole


async def test_many_streams_at_once_pass_a_budget_together_by_no_more(tmp_path: Path) -> None:
    budget = 0.2
    async with housed(tmp_path, runaway, prices=(PRICE,), day_budget_usd=budget) as (house, _):
        body = ask_for("/v1/messages", stream=True, max_tokens=1_000_000)
        got = await asyncio.gather(*(house.reply(body=body, claim=("other", 1)) for _ in range(8)))
        assert not any(one.whole and one.status == 200 for one in got)
        passed_usd = sum(one.body.count(WORD["/v1/messages"]) for one in got) * RUN_USD_PER_TOKEN
        assert 0.5 * budget < passed_usd <= 1.01 * budget
        spent = await house.gateway.ask(lambda engine: engine.books.day.spent_usd)
        assert spent <= 1.01 * budget
        await served(house, 8)


async def test_a_stream_that_is_translated_is_cut_as_well(tmp_path: Path) -> None:
    budget = 0.05
    async with Upstream(runaway) as upstream:
        settings = UpstreamSettings(kind=UpstreamKind.VLLM, name="own", url=upstream.url, prices=(PRICE,))
        async with House(tmp_path, "", upstreams=(settings,), day_budget_usd=budget) as house:
            body = ask_for(
                "/v1/messages", stream=True, max_tokens=1_000_000, messages=[{"role": "user", "content": "Go"}]
            )
            got = await house.reply(body=body)
            assert upstream.seen[0].target == "/v1/chat/completions"
            assert (got.status, got.whole) == (200, False)
            assert b"event: error" in got.body
            (event,) = await served(house, 1)
            assert event.ending == "budget"
            assert event.cost_usd <= 1.01 * budget


@pytest.mark.parametrize(("tokens", "goes_on"), [(400, True), (420, False)])
def test_a_stream_is_cut_early_because_what_is_counted_of_it_is_an_estimate(tokens: int, goes_on: bool) -> None:
    """512 tokens are paid for and no more: a count of 420 may be 525 in truth, one of 400 is 500 at most."""
    settings = GatewaySettings(day_budget_usd=STEP_TOKENS * RATES.output_usd / 1e6)
    books = Books(settings, today=date(2026, 11, 30), spent_today=0.0, spent={})
    call = Call(("fix-it", 1), Claimant(), Dialect.ANTHROPIC_MESSAGES, "/v1/messages", 0.0)
    call.stream = True
    hold = books.hold(call, PRICE, 0, 100_000)
    assert hold is not None
    assert hold.covered_tokens == STEP_TOKENS
    assert books.goes_on(hold, tokens) is goes_on


async def test_a_stream_inside_of_its_budget_is_not_touched(tmp_path: Path) -> None:
    async def script(exchange: Exchange) -> None:
        await runaway(exchange, words=300)
        exchange.gone.clear()
        done = {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 1500}}
        await exchange.chunk(events(done, {"type": "message_stop"}))
        await exchange.send(b"0\r\n\r\n")

    async with housed(tmp_path, script, prices=(PRICE,), day_budget_usd=0.05) as (house, _):
        got = await house.reply(body=ask_for("/v1/messages", stream=True, max_tokens=1_000_000))
        assert (got.status, got.whole) == (200, True)
        (event,) = await served(house, 1)
        assert (event.ending, event.cost_usd) == ("served", pytest.approx(0.01501))


# -- the book --------------------------------------------------------------------------------------------------------


class Accountant(House):
    """A gateway whose calls are written down. ``days`` are what its clock is ahead."""

    def __init__(self, state: Path, upstream: str, store: Store, **settings: Any) -> None:
        super().__init__(state, upstream, **{"prices": (PRICE,), **settings})
        self.book = CallBook(store)
        self.bus.tap(self.book.take)
        self.clock = Ahead()
        self.gateway._store = store
        self.gateway._clock = self.clock
        self.store = store


class Ahead(SystemClock):
    days = 0

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(days=self.days)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store.open(tmp_path / "ledger.db")
    yield made
    made.close()


@pytest.mark.parametrize("whose", ["task", "day_budget_usd", "total_budget_usd"])
async def test_what_was_spent_is_known_to_the_next_gateway(tmp_path: Path, store: Store, whose: str) -> None:
    settings: dict[str, Any] = {} if whose == "task" else {whose: 0.01}
    body = ask_for("/v1/messages", max_tokens=400)
    async with Upstream(answering(costing(0.004))) as upstream:
        for expected in ([200, 200], [402]):
            async with Accountant(tmp_path, upstream.url, store, **settings) as house:
                house.claimant = Claimant(budget_usd=0.01 if whose == "task" else 0.0)
                assert [(await house.reply(body=body)).status for _ in expected] == expected
                await served(house, len(expected))
                await house.book.flush()
        assert len(upstream.seen) == 2


async def test_a_days_budget_is_there_again_the_next_day(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.gateway.engine._LOOK_S", 0.02)
    body = ask_for("/v1/messages", max_tokens=400)
    async with Upstream(answering(costing(0.004))) as upstream:
        async with Accountant(tmp_path, upstream.url, store, day_budget_usd=0.01) as house:
            assert [(await house.reply(body=body)).status for _ in range(3)] == [200, 200, 402]
            house.clock.days = 1
            async with asyncio.timeout(5):
                while await house.gateway.ask(lambda engine: engine.books.day.spent_usd):  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
            assert [(await house.reply(body=body)).status for _ in range(3)] == [200, 200, 402]
            house.clock.days = 0
            assert (await house.reply(body=body)).status == 402, "a clock that is set back gives no day twice"
            assert await house.gateway.ask(lambda engine: engine.books.fleet.spent_usd) == pytest.approx(0.016)
            await served(house, 7)
            await house.book.flush()


def total(rows: Sequence[Any], name: str) -> float:
    return sum(row[name] for row in rows)


async def test_the_books_sums_are_those_of_all_calls(tmp_path: Path, store: Store) -> None:
    async def script(exchange: Exchange) -> None:
        asked = json.loads(exchange.body)
        if asked["max_tokens"] == 7:
            await exchange.plain(b"{}", status="500 No")
        elif exchange.target == "/v1/messages":
            await answering({"type": "message", "usage": ANTHROPIC_USAGE})(exchange)
        else:
            await answering({"choices": [], "usage": CHAT_USAGE})(exchange)

    async with Upstream(script) as upstream, Accountant(tmp_path, upstream.url, store, failures_to_open=20) as house:
        for number in range(20):
            path = ("/v1/messages", "/v1/chat/completions")[number % 2]
            body = ask_for(path, max_tokens=7 if number % 5 == 4 else 100)
            if number % 3 == 0:
                body = body.replace(b"-x", b"-odd")
            await house.reply(path, body, claim=(("fix-it", 1), ("fix-it", 2), ("other", 1))[number % 3])
            if number == 10:
                await until(lambda: len(house.served()) >= 11)
                await house.book.flush()
        told = await served(house, 20)
        await house.book.flush()
        days, tasks = store.query("spend_by_day"), store.query("spend_by_task")
        for name in ("cost_usd", "saved_usd"):
            assert total(days, name) == pytest.approx(sum(getattr(event, name) for event in told))
        assert total(days, "calls") == 20
        assert total(days, "unpriced") == sum(not event.priced for event in told) == 6
        by_task = {row["task"]: row["cost_usd"] for row in tasks}
        for task in ("fix-it", "other"):
            assert by_task[task] == pytest.approx(sum(event.cost_usd for event in told if event.task == task))
            assert by_task[task] == pytest.approx(
                await house.gateway.ask(lambda engine, name=task: engine.books._tasks[name].spent_usd)
            )
        rows = [json.loads(row["data"]) for row in store.query("calls_last", limit=100)]
        assert [row["request"] for row in rows] == [event.request for event in told]


async def test_of_a_flood_only_the_last_are_kept_one_by_one_and_all_in_the_sums(tmp_path: Path, store: Store) -> None:
    async with Upstream() as upstream, Accountant(tmp_path, upstream.url, store) as house:
        await house.reply(body=ask_for("/v1/messages"))
        (event,) = await served(house, 1)
        for _ in range(699):
            house.bus.publish(replace(event, cost_usd=0.01))
        await house.book.flush()
        assert total(store.query("spend_by_day"), "calls") == 700
        assert total(store.query("spend_by_day"), "cost_usd") == pytest.approx(6.99 + event.cost_usd)
        assert len(store.query("calls_last", limit=1000)) == 500
