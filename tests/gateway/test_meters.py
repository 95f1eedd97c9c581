"""What ``/metrics`` says of a gateway that runs: each number is there because something happened, and no label is a caller's."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from coordinator.domain.lane import Lane
from coordinator.domain.upstream import UpstreamKind, UpstreamSettings, usual_upstream
from coordinator.gateway.dialect import Denied
from coordinator.gateway.meters import MODELS, OTHER
from tests.gateway.rig import Exchange, House, Upstream, hello, housed, until

if TYPE_CHECKING:
    from pathlib import Path

NO = b'{"type":"error","error":{"type":"api_error","message":"no"}}'
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


def body(model: str = "claude-x", text: str = "hi") -> bytes:
    return json.dumps({"model": model, "max_tokens": 9, "messages": [{"role": "user", "content": text}]}).encode()


async def scraped(house: House, calls: int = 0) -> dict[str, dict[tuple[str, ...], float]]:
    """What is not zero, by name (without ``orchestrator_``) and values of labels (by the labels' names in their order), once
    ``calls`` calls are counted."""
    await until(lambda: len(house.served()) >= calls)
    text = (await house.reply(method="GET", body=b"", target="/metrics")).body.decode()
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.value:
                name = sample.name.removeprefix("orchestrator_")
                found.setdefault(name, {})[tuple(value for _, value in sorted(sample.labels.items()))] = sample.value
    return found


def models_in(found: dict[str, dict[tuple[str, ...], float]]) -> set[str]:
    kept_away = {model for model, _ in found.get("circuit_breaker_requests_rejected_total", {})}
    return {model for _, model, _, _ in found["calls_total"]} | kept_away


async def test_errors_are_counted_by_kind_and_tries_by_upstream(tmp_path: Path) -> None:
    async def script(exchange: Exchange) -> None:
        match json.loads(exchange.body)["messages"][0]["content"]:
            case "bad":
                await exchange.plain(NO, status="400 Bad")
            case "down":
                await exchange.plain(NO, status="500 No")
            case "broken":
                await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{")
                exchange.writer.close()
            case _:
                await hello(exchange)

    async with housed(tmp_path, script, retries=1, retry_share=1.0) as (house, _):
        for text in ("hi", "bad", "down", "broken"):
            await house.reply(body=body(text=text))
        await house.reply(body=b"{")
        leaving = await house.ask(body=body(text="hi"))
        leaving.close()
        found = await scraped(house, 5)
        assert found["errors_total"] == {
            ("status_4xx",): 1.0,
            ("status_5xx",): 1.0,
            ("broken",): 1.0,
            ("refused",): 1.0,
        }
        assert found["worker_errors_total"] == {
            ("caller", "anthropic"): 1.0,
            ("server", "anthropic"): 2.0,
            ("cut", "anthropic"): 1.0,
        }
        assert "inference_timeouts_total" not in found


async def test_tries_of_which_nothing_came_are_time_outs(tmp_path: Path) -> None:
    async def silent(exchange: Exchange) -> None:
        await exchange.gone.wait()

    async with Upstream(silent) as upstream:
        slow = UpstreamSettings(kind=UpstreamKind.ANTHROPIC, name="slow", url=upstream.url, first_byte_s=0.1)
        async with House(tmp_path, "", upstreams=(slow,)) as house:
            assert (await house.reply(body=body())).status == 504
            found = await scraped(house, 1)
            assert found["inference_timeouts_total"] == {("slow",): 1.0}
            assert found["errors_total"] == {("late",): 1.0}


async def test_a_breaker_counts_each_state_it_comes_into(tmp_path: Path) -> None:
    bad = True

    async def script(exchange: Exchange) -> None:
        await (exchange.plain(NO, status="500 No") if bad else hello(exchange))

    async with housed(tmp_path, script, failures_to_open=2, probe_every_s=0.1, hold_s=5.0) as (house, _):
        for _ in range(3):  # the third is a probe that fails
            await house.reply(body=body())
        bad = False
        assert (await house.reply(body=body())).status == 200
        found = await scraped(house, 4)
        states = {key[0]: value for key, value in found["circuit_breaker_state_transitions_total"].items()}
        assert states == {"open": 2.0, "half-open": 2.0, "closed": 1.0}
        assert "circuit_breaker_state" not in found, "closed is 0"
        await house.gateway.ask(lambda engine: engine.turn("failures_to_open", 5, "test", "breakers begin anew"))
        again = await scraped(house, 4)
        assert again["circuit_breaker_state_transitions_total"] == found["circuit_breaker_state_transitions_total"]


async def test_calls_whose_time_is_over_while_they_wait_are_counted_where_they_waited(tmp_path: Path) -> None:
    go = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await go.wait()
        await exchange.plain(ANSWER, more="Content-Type: application/json\r\n")

    async with Upstream(script) as upstream:
        narrow = UpstreamSettings(kind=UpstreamKind.ANTHROPIC, name="narrow", url=upstream.url, max_concurrency=1)
        async with House(tmp_path, "", upstreams=(narrow,), hold_s=0.2) as house:
            first = await house.ask(body=body())
            await until(lambda: upstream.seen)
            assert (await house.reply(body=body())).status == 429
            prompt = json.dumps({"prompt": "hi", "model": "claude-x", "max_tokens": 5, "deadline_s": 0.1}).encode()
            await house.gateway.ask(lambda engine: engine.turn("hold_s", 60, "test", "the deadline comes first"))
            late = await house.reply("/v1/infer", prompt)
            assert late.status == 504, late.body
            found = await scraped(house, 2)
            assert found["requests_expired_total"] == {("upstream narrow",): 1.0, ("inference",): 1.0}
            go.set()
            assert (await first.reply()).status == 200
            first.close()


async def test_a_prompt_whose_time_is_over_at_a_door_is_counted_there(tmp_path: Path) -> None:
    async with Upstream() as upstream:
        one = replace(usual_upstream(UpstreamKind.ANTHROPIC, "one"), url=upstream.url, models=("claude-x",))
        async with House(tmp_path, "", upstreams=(one,)) as house:
            engine = house.gateway._engine
            assert engine is not None
            dict(engine._lane.stages())["assemble"].resize(width=0)
            asked = json.dumps({"prompt": "hi", "max_tokens": 5, "deadline_s": 0.1}).encode()
            assert (await house.reply("/v1/infer", asked)).status == 504
            assert (await scraped(house, 1))["requests_expired_total"] == {("assemble",): 1.0}


async def test_a_prompt_that_comes_to_a_door_too_late_is_counted_there(tmp_path: Path) -> None:
    """As one does of which another stage took all the time there was."""
    async with housed(tmp_path) as (house, _):
        engine = house.gateway._engine
        assert engine is not None
        late = asyncio.get_running_loop().time() - 1.0
        course: Any = SimpleNamespace(call=SimpleNamespace(lane=Lane.NORMAL), until=late, waits_at="")
        with pytest.raises(Denied, match="no room for this prompt at the stage post"):
            async with engine._lane._inside("post", course):
                pytest.fail("it is too late")
        assert (await scraped(house))["requests_expired_total"] == {("post",): 1.0}


async def test_kept_answers_are_counted_as_they_are_found_or_not(tmp_path: Path) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.plain(ANSWER, more="Content-Type: application/json\r\n")

    async with housed(tmp_path, script) as (house, _):
        asked = {"prompt": "hi", "model": "claude-x", "max_tokens": 5}
        for temperature in (0, 0, 0, 1):
            got = await house.reply("/v1/infer", json.dumps({**asked, "temperature": temperature}).encode())
            assert got.status == 200
        found = await scraped(house, 4)
        assert found["cache_hits_total"] == {(): 2.0}
        assert found["cache_misses_total"] == {(): 1.0}
        assert found["cache_bytes"][()] > len("Hello")
        await house.gateway.ask(lambda engine: engine.turn("cache_bytes", 0, "test", "all go"))
        found = await scraped(house, 4)
        assert found["cache_forgotten_total"] == {("evicted",): 1.0}
        assert "cache_bytes" not in found


async def test_who_waited_for_another_is_counted_by_what_came_of_it(tmp_path: Path) -> None:
    go = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await go.wait()
        await exchange.plain(ANSWER, more="Content-Type: application/json\r\n")

    prompt = json.dumps({"prompt": "hi", "model": "claude-x", "max_tokens": 5}).encode()
    async with housed(tmp_path, script, dedup="strict") as (house, upstream):
        one = await house.ask(body=body())
        await until(lambda: upstream.seen)
        other = await house.ask(body=body(), claim=("other", 1))
        await until(lambda: (house.gateway.calls("other", 1) or (0, 0))[0] == 1)
        prompts = [await house.ask("/v1/infer", prompt) for _ in range(3)]
        await until(lambda: len(house.gateway._calls.open()) >= 5)
        assert "dedup_waiters_unblocked_total" not in await scraped(house)
        go.set()
        for talk in (one, other, *prompts):
            assert (await talk.reply()).status == 200
            talk.close()
        found = await scraped(house, 5)
        assert found["dedup_waiters_unblocked_total"] == {("whole", "relay"): 1.0, ("whole", "prompt"): 2.0}


async def test_no_series_is_made_of_a_name_that_a_client_invents(tmp_path: Path) -> None:
    """Neither by calls that an upstream refuses for their model, nor by breakers, nor in place of the models that there are."""

    async def script(exchange: Exchange) -> None:
        model = json.loads(exchange.body)["model"]
        if model.startswith("claude-real"):
            await hello(exchange)
        else:
            await exchange.plain(NO, status="500 No" if model.startswith("claude-down") else "404 Not Found")

    aliases = {"fast": "claude-fast"}
    more: dict[str, Any] = {"failures_to_open": 1, "probe_every_s": 60.0, "calls_per_agent": 1000}
    async with housed(tmp_path, script, aliases=aliases, **more) as (house, _):
        invented = [f"claude-{kind}-{number}" for kind in ("no", "down", "down") for number in range(MODELS + 5)]
        for model in (*invented, "fast", "claude-real-1"):
            await house.reply(body=body(model))
        found = await scraped(house, len(invented) + 2)
        assert models_in(found) == {OTHER, "claude-fast", "claude-real-1"}
        assert found["circuit_breaker_state"] == {(OTHER, "anthropic"): 2.0}
        assert found["circuit_breaker_requests_rejected_total"] == {(OTHER, "anthropic"): MODELS + 5.0}
        assert found["requests_expired_total"] == {("upstream anthropic",): MODELS + 5.0}, "they may not be held"


async def test_not_even_those_that_are_answered_make_more_series_than_there_may_be(tmp_path: Path) -> None:
    """As servers of one's own do, which answer to any name."""
    async with housed(tmp_path, aliases={"fast": "claude-fast"}) as (house, _):
        for number in range(MODELS + 5):
            await house.reply(body=body(f"claude-{number}"))
        await house.reply(body=body("claude-" + "x" * 200))
        await house.reply(body=body("fast"))
        found = await scraped(house, MODELS + 7)
        assert models_in(found) == {OTHER, "claude-fast", *(f"claude-{number}" for number in range(MODELS))}
        calls = found["calls_total"]
        assert sum(value for key, value in calls.items() if key[1] == OTHER) == 6.0
