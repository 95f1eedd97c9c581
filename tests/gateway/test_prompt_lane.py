"""Prompts of our own, through a running gateway on real sockets: what is answered, asked of whom, shared, and given back."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import socket
import sqlite3
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.domain.errors import BadInput
from coordinator.domain.lane import Lane
from coordinator.domain.price import FREE, Price, TokenRates
from coordinator.domain.role_route import RoleRoute
from coordinator.domain.upstream import UpstreamKind, usual_upstream
from coordinator.gateway import prompt_lane
from coordinator.gateway.calls import CallEnding
from coordinator.gateway.claimant import Claimant
from coordinator.gateway.documents import text_documents
from coordinator.gateway.engine import Engine
from coordinator.gateway.prompt import read_prompt
from coordinator.gateway.prompt_lane import PromptLane
from coordinator.gateway.prompt_routes import PromptRoutes
from coordinator.gateway.prompt_sharing import PromptSharing
from coordinator.gateway.response_cache import ResponseCache
from coordinator.gateway.retrieval import Retrieval
from coordinator.kit.clock import SystemClock
from coordinator.kit.store import Store
from tests.gateway.rig import SSE, Exchange, House, Upstream, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from coordinator.gateway.relay import Relay

    Script = Callable[[Exchange], Awaitable[None]]

HARD = (
    "Why should we choose this consensus algorithm, maybe, or possibly something else?\n1. a\n2. b\n```\nx\n```\n"
    + "word " * 600
)
BETWEEN = "1. a\n2. b\n```\nx\n```\nand the parser of the protocol"
PRICE = Price(
    models=("dear",),
    rates=TokenRates(input_usd=10, output_usd=1000, cache_read_usd=1, cache_write_usd=10, cache_write_1h_usd=10),
)


def lane_of(engine: Engine, relay: Relay, retrieval: Retrieval | None) -> PromptLane:
    settings = engine._order.settings
    return PromptLane(
        settings,
        engine._clock,
        aftermath=engine._aftermath,
        books=engine.books,
        calls=engine._calls,
        courier=relay._courier,
        dials=engine.dials,
        doorkeeper=relay._doorkeeper,
        meters=engine.meters,
        pacing=engine._pacing,
        prices=relay._prices,
        retrieval=retrieval,
        routes=PromptRoutes(
            engine.stations,
            relay._routes,
            models={UpstreamKind.ANTHROPIC: "claude-usual", UpstreamKind.LLAMA_CPP: "default"},
        ),
        sharing=PromptSharing(
            ResponseCache(engine._clock, max_bytes=2**20, ttl_s=300.0), joins=settings.dedup != "off", wait_s=120.0
        ),
    )


class PromptHouse(House):
    """A gateway with a prompt lane; ``notes`` are (source, text) that it retrieves from."""

    def __init__(
        self, state: Path, *kinds: tuple[UpstreamKind, str], notes: list[tuple[str, str]] | None = None, **more: Any
    ) -> None:
        each = more.pop("each", {})
        listed = [
            replace(usual_upstream(kind, f"{kind.value}{at}"), url=url, models=(f"m{at}", "*"), **each)
            for at, (kind, url) in enumerate(kinds or [(UpstreamKind.ECHO, "")])
        ]
        super().__init__(
            state,
            "",
            **{
                "upstreams": tuple(more.pop("upstreams", listed)),
                "enabled": "on",
                "dedup": "strict",
                "calls_per_agent": 200,
                **more,
            },
        )
        self.notes = notes
        self.state = state
        self.store: Store | None = None

    @property
    def lane(self) -> PromptLane:
        assert self.gateway._engine is not None
        lane = self.gateway._engine._pages.lane
        assert lane is not None
        return lane

    def made(self, engine: Engine, relay: Relay) -> PromptLane:
        if self.notes is None:
            return lane_of(engine, relay, None)
        self.store = Store.open(self.state / "notes.db")
        return lane_of(
            engine, relay, Retrieval(self.store, {"notes": text_documents(lambda: self.notes or [])}, SystemClock())
        )

    async def stop(self) -> None:
        await super().stop()
        if self.store is not None:
            self.store.close()

    async def infer(self, prompt: str = "Say  hello\n", **more: Any) -> dict[str, Any]:
        got = await self.reply("/v1/infer", asked(prompt, **more))
        assert got.whole
        return {"status": got.status, "headers": got.headers, **json.loads(got.body)}

    async def streamed(self, prompt: str = "Say  hello\n", **more: Any) -> list[tuple[str, dict[str, Any]]]:
        got = await self.reply("/v1/infer", asked(prompt, stream=True, **more))
        assert got.whole
        assert got.headers["content-type"] == "text/event-stream", got.body
        return events(got.body)

    def idle(self) -> bool:
        """No chair is taken anywhere."""
        engine = self.gateway._engine
        assert engine is not None
        doors = [door for _, door in self.lane.stages()] + [engine.inference, *(one.door for one in engine.stations)]
        return not any(door.inside or any(door.waiting) for door in doors)


def asked(prompt: str, **more: Any) -> bytes:
    return json.dumps({"prompt": prompt, "retrieve": False, **more}).encode()


def events(body: bytes) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for block in body.decode().removesuffix("\n\n").split("\n\n"):
        name, _, data = block.partition("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def told(found: list[tuple[str, dict[str, Any]]]) -> str:
    return "".join(said["text"] for name, said in found if name == "token")


@pytest.fixture(autouse=True)
def wired(monkeypatch: pytest.MonkeyPatch) -> dict[str, PromptHouse]:
    """Each engine gets the lane of the house that was made last."""
    current: dict[str, PromptHouse] = {}
    make = Engine._make_relay
    init = PromptHouse.__init__

    def made(engine: Engine) -> Relay:
        relay = make(engine)
        engine._lane = engine._pages.lane = current["house"].made(engine, relay)
        return relay

    def noted(house: PromptHouse, *args: Any, **more: Any) -> None:
        current["house"] = house
        init(house, *args, **more)

    monkeypatch.setattr(Engine, "_make_relay", made)
    monkeypatch.setattr(PromptHouse, "__init__", noted)
    return current


# -- upstreams that answer ----------------------------------------------------------------------------------------------


def message(text: str, stop: str = "end_turn", **usage: int) -> bytes:
    counts = {"input_tokens": 7, "output_tokens": 5, **usage}
    return json.dumps(
        {"type": "message", "content": [{"type": "text", "text": text}], "stop_reason": stop, "usage": counts}
    ).encode()


def chat(text: str, finish: str = "stop") -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return json.dumps({"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 5}}).encode()


def answering(*bodies: bytes) -> Script:
    """Each call gets the next answer; the last one stays."""
    left = list(bodies)

    async def script(exchange: Exchange) -> None:
        await exchange.plain(left.pop(0) if len(left) > 1 else left[0], more="Content-Type: application/json\r\n")

    return script


def event(kind: str, **more: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **more})}\n\n".encode()


def delta(text: str) -> bytes:
    return event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})


START = event("message_start", message={"usage": {"input_tokens": 7, "output_tokens": 1}})
END = event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 5}) + event("message_stop")


def streaming(*pieces: bytes, whole: bool = True) -> Script:
    async def script(exchange: Exchange) -> None:
        await exchange.send(SSE)
        for piece in pieces:
            await exchange.chunk(piece)
        if whole:
            await exchange.send(b"0\r\n\r\n")
        else:
            exchange.writer.transport.abort()

    return script


class Gate:
    """Holds each call until it is opened."""

    def __init__(self, then: Script) -> None:
        self.arrived = asyncio.Event()
        self.open = asyncio.Event()
        self.then = then

    async def __call__(self, exchange: Exchange) -> None:
        self.arrived.set()
        opened = asyncio.create_task(self.open.wait())
        gone = asyncio.create_task(exchange.gone.wait())
        await asyncio.wait({opened, gone}, return_when=asyncio.FIRST_COMPLETED)
        opened.cancel()
        gone.cancel()
        if not exchange.gone.is_set():
            await self.then(exchange)


@contextlib.asynccontextmanager
async def housed(
    state: Path, script: Script, kind: UpstreamKind = UpstreamKind.ANTHROPIC, **more: Any
) -> AsyncIterator[tuple[PromptHouse, Upstream]]:
    async with Upstream(script) as upstream, PromptHouse(state, (kind, upstream.url), **more) as house:
        yield house, upstream


async def served(house: PromptHouse, number: int = 1) -> Any:
    await until(lambda: len(house.served()) >= number)
    await until(house.idle)
    assert len(house.served()) == number
    return house.served()[-1]


# -- what is answered ---------------------------------------------------------------------------------------------------


async def test_a_prompt_is_answered_and_told_of_once(tmp_path: Path) -> None:
    async with PromptHouse(tmp_path) as house:
        prompt = "  Say\n\n  hello\tthere \n"
        got = await house.infer(prompt, session_id="s-1", metadata={"run": "7"})
        assert (got["status"], got["text"]) == (200, prompt)
        assert (got["session_id"], got["metadata"]) == ("s-1", {"run": "7"})
        assert (got["model"], got["upstream"], got["finish"]) == ("m0", "echo0", "end")
        assert (got["cached"], got["collapsed"], got["cost_usd"], got["passages"]) == (False, False, 0.0, [])
        assert (got["complexity"], got["tier"], got["quality"]) == (0.0, "local", 1.0)
        assert got["usage"] == {
            "input_tokens": got["usage"]["input_tokens"],
            "output_tokens": 4,
            "cache_read_tokens": 0,
            "cache_write_tokens": 0,
        }
        assert list(got["stages"]) == ["rag", "assemble", "inference", "post", "stream"]
        assert got["stages"]["inference"] > 0
        assert got["request_id"] == got["headers"]["x-request-id"]
        one = await served(house)
        assert (one.ending, one.status, one.path, one.task, one.request) == (
            "served",
            200,
            "/v1/infer",
            "fix-it",
            got["request_id"],
        )
        assert (one.model, one.upstream, one.priced, one.output_tokens, one.stream) == ("m0", "echo0", True, 4, False)
        assert one.bytes_up == len(asked(prompt, session_id="s-1", metadata={"run": "7"}))
        assert one.bytes_down > len(prompt)


async def test_a_stream_tells_the_text_as_it_comes(tmp_path: Path) -> None:
    async with PromptHouse(tmp_path) as house:
        found = await house.streamed("one two  three\n", session_id="s")
        names = [name for name, _ in found]
        assert (names[0], names[-1], set(names[1:-1])) == ("start", "done", {"token"})
        assert told(found) == found[-1][1]["text"] == "one two  three\n"
        assert found[0][1] == {
            "request_id": found[-1][1]["request_id"],
            "session_id": "s",
            "model": "m0",
            "upstream": "echo0",
            "passages": [],
        }
        assert found[-1][1]["stages"]["stream"] > 0
        one = await served(house)
        assert (one.ending, one.status, one.stream) == ("served", 200, True)
        assert 0 < one.first_byte_s <= one.took_s


async def test_each_stage_is_measured_and_counted(tmp_path: Path) -> None:
    async with PromptHouse(tmp_path, notes=[("note", "hello")]) as house:
        await house.infer("hello", retrieve=True)
        await house.streamed("hello")
        await served(house, 2)
        assert {name: sum(door.entered) for name, door in house.lane.stages()} == {
            "rag": 1,
            "assemble": 2,
            "post": 2,
            "stream": 2,
        }
        meter = next(one for one in house.lane.meters() if one.name.endswith("stage_duration_seconds"))
        assert {labels[0]: spread.count for labels, spread in meter.samples} == {
            "rag": 1,
            "assemble": 2,
            "inference": 2,
            "post": 2,
            "stream": 2,
        }  # type: ignore[union-attr]
        assert {name: (door.width, door.room) for name, door in house.lane.stages()} == {
            "rag": (8, 512),
            "assemble": (32, 512),
            "post": (32, 1024),
            "stream": (256, 256),
        }


@pytest.mark.parametrize(("stop", "finish"), [("end_turn", "end"), ("max_tokens", "length"), ("odd", "")])
async def test_how_an_answer_ended_and_who_gave_it_is_told(tmp_path: Path, stop: str, finish: str) -> None:
    said = json.dumps({**json.loads(message("well", stop)), "model": "claude-other"}).encode()
    async with housed(tmp_path, answering(said)) as (house, _):
        await house.infer()
        one = await served(house)
        assert (one.model, one.answer_model, one.finish) == ("m0", "claude-other", finish)


# -- what is refused ----------------------------------------------------------------------------------------------------


async def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    async with PromptHouse(tmp_path) as house:
        got = await house.reply("/v1/infer", b'{"prompt": "", "deadline_s": true, "nonsense": 1, "stream": "yes"}')
        assert got.status == 422
        assert [one["key"] for one in got.error["problems"]] == ["nonsense", "deadline_s", "prompt", "stream"]
        assert all(one["message"] and one["expected"] for one in got.error["problems"])
        one = await served(house)
        assert (one.ending, one.status) == ("refused", 422)


@pytest.mark.parametrize(
    "wrong",
    [
        {"metadata": {str(n): "x" for n in range(51)}},
        {"metadata": {"ü" * 65: "x"}},
        {"metadata": {"k": "ü" * 513}},
        {"metadata": {"k": 5}},
        {"metadata": []},
        {"priority": "urgent"},
        {"priority": 1},
        {"deadline_s": 0},
        {"deadline_s": 3600.5},
        {"max_tokens": 0},
        {"max_tokens": 1.5},
        {"max_tokens": True},
        {"temperature": 2.1},
        {"temperature": None},
        {"session_id": ""},
        {"session_id": "a\nb"},
        {"model": "x" * 257},
        {"system": 5},
        {"retrieve": "no"},
    ],
)
def test_what_does_not_fit(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInput) as caught:
        read_prompt(asked("hello", **wrong))
    assert [one.key for one in caught.value.problems] == list(wrong)


def test_what_fits() -> None:
    got = read_prompt(
        asked(
            "hello", metadata={"ü" * 64: "ü" * 512}, priority="critical", deadline_s=3600, temperature=0, max_tokens=1
        )
    )
    assert (got.lane, got.deadline_s, got.temperature, got.max_tokens, got.retrieve) == (
        Lane.CRITICAL,
        3600,
        0,
        1,
        False,
    )
    plain = read_prompt(b'{"prompt":" x"}')
    assert (plain.text, plain.max_tokens, plain.retrieve, plain.lane, plain.temperature) == (
        " x",
        1024,
        True,
        None,
        None,
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(
    ["prompt", "deadline_s", "metadata", "max_tokens", "model", "priority", "stream", "temperature", "x"]
)


@given(st.binary(max_size=60) | st.dictionaries(KEYS, JSON, max_size=6).map(lambda said: json.dumps(said).encode()))
def test_whatever_comes_is_a_prompt_or_bad_input(body: bytes) -> None:
    with contextlib.suppress(BadInput):
        got = read_prompt(body)
        assert got.text.strip()
        assert 0 <= got.deadline_s <= 3600


async def test_no_key_no_call(tmp_path: Path) -> None:
    async with PromptHouse(tmp_path) as house:
        body = asked("hello")
        target = {"target": "/v1/infer"}
        assert (await house.reply("/v1/infer", body, x_api_key="", **target)).status == 401
        assert (await house.reply("/v1/infer", body, x_api_key="cck-1-00-fix-it", **target)).status == 401
        key = house.gateway.credentials("other", 1)[1]
        assert (await house.reply("/v1/infer", body, x_api_key=key)).status == 403  # the address is another's
        assert (
            await house.reply("/v1/infer", body, x_api_key="", authorization=f"Bearer {key}", **target)
        ).status == 200
        assert (
            await house.reply("/v1/infer", body, x_api_key=house.gateway.credentials("gone", 1)[1], **target)
        ).status == 403
        house.gateway.revoke("other", 1)
        assert (await house.reply("/v1/infer", body, x_api_key=key, **target)).status == 403
        assert (await house.reply("/v1/infer", body, origin="http://evil.example")).status == 403
        assert (await house.reply("/v1/infer", body, method="PUT")).status == 405
        assert (await served(house)).ending == "served"  # of all these one was a call


async def test_a_prompt_may_be_long_but_not_endless(tmp_path: Path) -> None:
    async with PromptHouse(tmp_path) as house:
        prompt = "x" * 3_000_000
        assert (await house.infer(prompt))["text"] == prompt
        got = await house.reply("/v1/infer", asked("x" * 4 * 2**20))
        assert got.status == 413
        assert got.error["code"] == "request_too_large"
        await served(house)


async def test_bodies_as_clients_send_them(tmp_path: Path) -> None:
    async with PromptHouse(tmp_path) as house:
        body = asked("hello")
        packed = gzip.compress(body)
        got = await house.reply("/v1/infer", packed, content_encoding="gzip")
        assert json.loads(got.body)["text"] == "hello"
        got = await house.reply("/v1/infer", body, content_encoding="gzip")
        assert (got.status, got.error["code"]) == (400, "invalid_request")
        bomb = gzip.compress(b" " * 50_000_000)
        assert (await house.reply("/v1/infer", bomb, content_encoding="gzip")).status == 413
        base, key = house.gateway.credentials("fix-it", 1)
        talk = await house.talk()
        head = (
            f"POST {base.removeprefix(house.gateway.url)}/v1/infer HTTP/1.1\r\nHost: localhost\r\nx-api-key: {key}\r\n"
        )
        talk.writer.write(f"{head}Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        assert (await talk.head())[0] == 100
        half = len(body) // 2
        for part in (body[:half], body[half:], b""):
            talk.writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            await asyncio.sleep(0.01)
        assert json.loads((await talk.reply()).body)["text"] == "hello"
        talk.close()
        await served(house, 2)


async def test_a_body_that_does_not_come_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.kit.http.BODY_S", 0.1)
    async with PromptHouse(tmp_path) as house:
        talk = await house.ask("/v1/infer", b"{", content_length="50")
        assert (await talk.reply()).status == 504
        talk.close()
        talk = await house.ask("/v1/infer", b"{", content_length="50", x_api_key="")
        assert (await talk.reply()).status == 401  # before any of it
        talk.close()
        assert house.served() == []


# -- what is asked ------------------------------------------------------------------------------------------------------


async def test_context_comes_with_its_sources_and_the_question_last(tmp_path: Path) -> None:
    notes = [
        ("docs/breaker.md", "# Breakers\nA circuit breaker opens after three failures."),
        ("docs/cats.md", "Cats sleep."),
    ]
    async with housed(tmp_path, answering(message("after three")), notes=notes) as (house, upstream):
        got = await house.infer("When does a  circuit breaker open?\n", retrieve=True, system="Be brief.")
        assert got["passages"] == ["docs/breaker.md › Breakers"]
        assert got["text"] == "after three"
        assert "retrieval" not in got
        body = json.loads(upstream.seen[0].body)
        content = body["messages"][0]["content"]
        assert (
            '<passage source="docs/breaker.md › Breakers">\nA circuit breaker opens after three failures.\n</passage>'
            in content
        )
        assert "Cats" not in content
        assert content.endswith("</context>\n\nWhen does a  circuit breaker open?\n")
        assert (body["system"], body["max_tokens"], body["model"]) == ("Be brief.", 1024, "m0")
        assert (await house.infer("When does a circuit breaker open?"))["passages"] == []  # not wanted
        assert len(upstream.seen) == 2


async def test_retrieval_that_fails_costs_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with PromptHouse(tmp_path, notes=[("n", "circuit")]) as house:
        assert house.store is not None
        monkeypatch.setattr(house.store, "execute", _no_fts5)
        got = await house.infer("circuit", retrieve=True)
        assert (got["text"], got["passages"]) == ("circuit", [])
        assert got["retrieval"] == "retrieval is unavailable: no such module: fts5"


def _no_fts5(name: str, /, **_: Any) -> int:
    raise sqlite3.OperationalError(f"no such module: fts5{name[:0]}")


async def test_retrieval_that_hangs_costs_five_seconds_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_lane, "RAG_S", 0.05)
    going = threading.Event()

    def slow() -> list[tuple[str, str]]:
        going.wait(5)
        return []

    async with PromptHouse(tmp_path, notes=[]) as house:
        house.lane._retrieval._origins = {"slow": text_documents(slow)}  # type: ignore[union-attr]
        got = await house.infer("circuit", retrieve=True)
        assert (got["text"], got["retrieval"]) == ("circuit", "nothing was found within 0.05 s")
        going.set()
        await until(lambda: house.lane._retrieval._ready)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("kind", "path", "most"),
    [
        (UpstreamKind.ANTHROPIC, "/v1/messages", "max_tokens"),
        (UpstreamKind.OPENAI, "/chat/completions", "max_completion_tokens"),
        (UpstreamKind.LLAMA_CPP, "/v1/chat/completions", "max_tokens"),
        (UpstreamKind.VLLM, "/v1/chat/completions", "max_tokens"),
    ],
)
async def test_each_upstream_is_asked_in_its_own_protocol(
    tmp_path: Path, kind: UpstreamKind, path: str, most: str
) -> None:
    anthropic = kind is UpstreamKind.ANTHROPIC
    answer = message("  a\n b ", "max_tokens") if anthropic else chat("  a\n b ", "length")
    async with housed(tmp_path, answering(answer), kind) as (house, upstream):
        got = await house.infer(" q ", system="s", temperature=1.5, max_tokens=99, model="m0")
        assert (got["text"], got["finish"], got["quality"]) == ("  a\n b ", "length", 0.6)
        assert (got["usage"]["input_tokens"], got["usage"]["output_tokens"]) == (7, 5)
        seen = upstream.seen[0]
        body = json.loads(seen.body)
        assert seen.target == path
        assert (body["model"], body[most]) == ("m0", 99)
        assert "stream" not in body
        assert body["temperature"] == (1.0 if anthropic else 1.5)
        assert body["messages"][-1] == {"role": "user", "content": " q "}
        assert (body["system"] if anthropic else body["messages"][0]["content"]) == "s"
        assert seen.header("anthropic-version") == (["2023-06-01"] if anthropic else [])
        assert not any("cck-" in value for _, value in seen.headers)


@pytest.mark.parametrize("kind", [UpstreamKind.ANTHROPIC, UpstreamKind.VLLM])
async def test_streams_of_each_protocol(tmp_path: Path, kind: UpstreamKind) -> None:
    if kind is UpstreamKind.ANTHROPIC:
        data = START + delta("one ") + event("ping") + delta("two\n") + END
    else:
        parts: list[dict[str, Any]] = [
            {"choices": [{"index": 0, "delta": {"content": text}}]} for text in ("one ", "two\n")
        ]
        parts += [{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}]
        parts += [{"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5}}]
        data = b"".join(b"data: " + json.dumps(part).encode() + b"\n\n" for part in parts) + b"data: [DONE]\n\n"
    pieces = [data[at : at + 7] for at in range(0, len(data), 7)]
    async with housed(tmp_path, streaming(*pieces), kind) as (house, upstream):
        found = await house.streamed(model="m0")
        assert told(found) == "one two\n"
        done = found[-1][1]
        assert (done["text"], done["finish"], done["usage"]["output_tokens"]) == ("one two\n", "end", 5)
        assert json.loads(upstream.seen[0].body)["stream"] is True
        assert (await served(house)).input_tokens == 7


async def test_a_server_that_streams_unasked_is_read_all_the_same(tmp_path: Path) -> None:
    left = [streaming(START, delta("half"), whole=False), streaming(START, delta("one "), delta("two"), END)]

    async def script(exchange: Exchange) -> None:
        await left.pop(0)(exchange)

    async with housed(tmp_path, script, retries=1, retry_share=1.0, hold_s=30.0) as (house, _):
        assert (await house.infer())["text"] == "one two"


async def test_a_stream_without_its_last_word_is_not_whole(tmp_path: Path) -> None:
    async with housed(tmp_path, streaming(START, delta("half"))) as (house, _):
        found = await house.streamed()
        assert [name for name, _ in found] == ["start", "token", "error"]
        assert (await house.infer())["status"] == 502
        assert [one.ending for one in [await served(house, 2), *house.served()[:1]]] == ["unreached", "broken"]


async def test_what_an_upstream_does_not_count_is_estimated(tmp_path: Path) -> None:
    data = event("message_start", message={}) + delta("word " * 40) + event("message_stop")
    async with housed(tmp_path, streaming(data)) as (house, _):
        done = (await house.streamed("q" * 400))[-1][1]
        assert (done["finish"], done["quality"]) == ("unknown", 0.9)
        assert done["usage"]["input_tokens"] == 101
        assert 30 <= done["usage"]["output_tokens"] <= 80


async def test_a_server_that_does_not_stream_is_told_all_the_same(tmp_path: Path) -> None:
    async with housed(tmp_path, answering(message("all at once"))) as (house, _):
        found = await house.streamed()
        assert [name for name, _ in found] == ["start", "token", "done"]
        assert told(found) == "all at once"


# -- which model --------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def two(
    state: Path, local: Script, cloud: Script, **more: Any
) -> AsyncIterator[tuple[PromptHouse, Upstream, Upstream]]:
    async with Upstream(local) as near, Upstream(cloud) as far:
        kinds = (UpstreamKind.LLAMA_CPP, near.url), (UpstreamKind.ANTHROPIC, far.url)
        async with PromptHouse(state, *kinds, **more) as house:
            yield house, near, far


@pytest.mark.parametrize(
    ("prompt", "tier", "model"), [("Hello", "local", "m0"), (HARD, "cloud", "m1"), (BETWEEN, "either", "m0")]
)
async def test_hard_prompts_go_far_and_easy_ones_stay(tmp_path: Path, prompt: str, tier: str, model: str) -> None:
    async with two(tmp_path, answering(chat("near")), answering(message("far"))) as (house, near, far):
        got = await house.infer(prompt)
        assert (got["tier"], got["model"]) == (tier, model)
        assert (len(near.seen), len(far.seen)) == ((1, 0) if model == "m0" else (0, 1))
        assert json.loads((near.seen or far.seen)[0].body)["model"] == model


async def test_what_fails_near_is_asked_far(tmp_path: Path) -> None:
    async def broken(exchange: Exchange) -> None:
        await exchange.plain(b'{"error":{"message":"out of memory"}}', "500 No")

    more = {"failures_to_open": 2, "hold_s": 60.0, "probe_every_s": 60.0}
    async with two(tmp_path, broken, answering(message("far")), **more) as (house, near, far):
        for number in range(4):
            got = await house.infer(f"{BETWEEN} {number}")
            assert (got["text"], got["model"], got["upstream"]) == ("far", "m1", "anthropic1")
        assert len(near.seen) == 2  # from there on its breaker keeps them away
        one = await served(house, 4)
        assert (one.ending, one.model, one.upstream) == ("served", "m1", "anthropic1")
        got = await house.infer("Hello", deadline_s=0.1)
        assert got["status"] in (502, 504)  # what is meant for near stays there
        assert len(far.seen) == 4


async def test_what_is_paid_in_each_leg_is_added_up(tmp_path: Path) -> None:
    near = Price(models=("m0",), rates=PRICE.rates)
    far = Price(models=("m1",), rates=replace(PRICE.rates, output_usd=2000))
    spoilt = json.dumps({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5}}).encode()
    async with two(tmp_path, answering(spoilt), answering(message("far")), prices=(near, far)) as (house, _, _far):
        listed = house.gateway._engine.stations[0].upstream.settings  # type: ignore[union-attr]
        assert listed.prices  # llama.cpp is free by its own settings
        got = await house.infer(BETWEEN)
        assert got["cost_usd"] == pytest.approx((7 * 10 + 5 * 2000) / 1e6)
        assert got["usage"]["output_tokens"] == 10  # of both
        assert (await served(house)).cost_usd == pytest.approx(got["cost_usd"])


async def test_what_was_begun_near_is_not_begun_again_far(tmp_path: Path) -> None:
    async def endless(exchange: Exchange) -> None:
        await exchange.send(SSE)
        while True:
            part = {"choices": [{"index": 0, "delta": {"content": "word " * 50}}]}
            await exchange.chunk(b"data: " + json.dumps(part).encode() + b"\n\n")
            await asyncio.sleep(0.001)

    more: dict[str, Any] = {"each": {"prices": (replace(PRICE, models=("m0",)), replace(FREE, models=("m1",)))}}
    async with two(tmp_path, endless, answering(message("far")), **more) as (house, near, far):
        house.claimant = Claimant(budget_usd=1.0)
        found = await house.streamed(BETWEEN, max_tokens=100_000)
        assert found[-1][1]["error"]["code"] == "insufficient_quota"
        assert (len(near.seen), len(far.seen)) == (1, 0)


async def test_aliases_models_and_none(tmp_path: Path) -> None:
    only = [replace(usual_upstream(UpstreamKind.OPENAI, "gpt"), url="http://127.0.0.1:9/v1", models=("gpt-*",))]
    async with PromptHouse(tmp_path / "a", aliases={"quick": "m0"}) as house:
        assert (await house.infer(model="quick"))["model"] == "m0"
    async with PromptHouse(tmp_path / "b", upstreams=only) as house:
        got = await house.infer(model="other")
        assert (got["status"], got["error"]["code"]) == (404, "not_found")
        got = await house.infer()
        assert got["status"] == 404
        assert "names no model" in got["error"]["message"]
        assert {one.ending for one in [await served(house, 2)]} == {"refused"}
    google = replace(usual_upstream(UpstreamKind.GOOGLE, "gem"), url="http://127.0.0.1:9", models=("gemini-x",))
    echo = replace(usual_upstream(UpstreamKind.ECHO, "echo"), models=("m0",))
    async with PromptHouse(tmp_path / "c", upstreams=[google, echo]) as house:
        for prompt in ("short", HARD):  # the hard one would go to a provider's model first
            assert (await house.infer(prompt))["model"] == "m0"
        assert (await house.infer(model="gemini-x"))["status"] == 404


# -- what goes wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("status", "expected"),
    [("400 Bad", 400), ("401 No", 401), ("404 No", 404), ("429 Slow", 429), ("500 No", 502), ("503 Down", 503)],
)
async def test_what_an_upstream_refuses(tmp_path: Path, status: str, expected: int, stream: bool) -> None:
    async def script(exchange: Exchange) -> None:
        error = b'{"type":"error","error":{"type":"x","message":"because of sk-ant"}}'
        await exchange.plain(error, status, "Retry-After: 7\r\n")

    async with housed(tmp_path, script) as (house, _):
        got = await house.infer(stream=stream)
        assert got["status"] == expected
        assert got["error"]["message"].startswith("coordinator: anthropic0: ")
        assert ("sk-ant" in got["error"]["message"]) == (expected != 401)  # it may repeat a part of the key
        assert got["headers"].get("retry-after") == ("7" if expected in (429, 502, 503) else None)
        assert got["headers"].get("x-should-retry") == ("false" if expected < 429 else None)
        one = await served(house)
        assert (one.ending, one.status) == ("served", expected)


async def test_what_breaks_before_a_word_is_asked_again(tmp_path: Path) -> None:
    left = [
        streaming(START, whole=False),
        streaming(START, event("error", error={"message": "overloaded"})),
        streaming(START, delta("well"), END),
    ]

    async def script(exchange: Exchange) -> None:
        await left.pop(0)(exchange)

    async with housed(tmp_path, script, retries=2, retry_share=1.0, hold_s=30.0) as (house, upstream):
        found = await house.streamed()
        assert told(found) == "well"
        assert len(upstream.seen) == 3
        assert (await served(house)).tries == 3


@pytest.mark.parametrize("told_why", [False, True])
async def test_what_breaks_after_a_word_is_told_and_not_asked_again(tmp_path: Path, told_why: bool) -> None:
    heard = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.send(SSE)
        await exchange.chunk(START + delta("half "))
        await heard.wait()
        if told_why:
            await exchange.chunk(event("error", error={"message": "no more"}))
        exchange.writer.transport.abort()

    async with housed(tmp_path, script, retries=2, retry_share=1.0, hold_s=30.0) as (house, upstream):
        talk = await house.ask("/v1/infer", asked("hello", stream=True))
        assert (await talk.head())[0] == 200
        body = b""
        while b"half" not in body:
            body += await talk.chunk()
        heard.set()
        while part := await talk.chunk():
            body += part
        talk.close()
        found = events(body)
        assert [name for name, _ in found] == ["start", "token", "error"]
        assert "anthropic0 broke off" in found[-1][1]["error"]["message"]
        assert ("no more" in found[-1][1]["error"]["message"]) == told_why
        assert len(upstream.seen) == 1
        one = await served(house)
        assert (one.ending, one.status) == ("broken", 200)


@pytest.mark.parametrize("body", [b"no json", b'{"type":"other"}', b'{"choices":[]}'])
async def test_what_is_no_answer(tmp_path: Path, body: bytes) -> None:
    async with housed(tmp_path, answering(body)) as (house, _):
        assert (await house.infer())["status"] == 502
        assert (await served(house)).ending == "unreached"


async def test_a_deadline_bounds_everything(tmp_path: Path) -> None:
    gate = Gate(answering(message("late")))
    async with housed(tmp_path, gate) as (house, upstream):
        began = asyncio.get_running_loop().time()
        got = await house.infer(deadline_s=0.2)
        assert 0.2 <= asyncio.get_running_loop().time() - began < 2
        assert (got["status"], got["error"]["code"]) == (504, "timeout")
        one = await served(house)
        assert (one.ending, one.status) == ("late", 504)
        await asyncio.wait_for(upstream.seen[0].gone.wait(), 1)


async def test_a_deadline_in_the_middle_of_a_stream(tmp_path: Path) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(SSE)
        await exchange.chunk(START + delta("one "))
        await exchange.gone.wait()

    async with housed(tmp_path, script) as (house, _):
        found = await house.streamed(deadline_s=0.3)
        assert [name for name, _ in found] == ["start", "token", "error"]
        assert (await served(house)).ending == "late"


@pytest.mark.parametrize("stream", [False, True])
async def test_who_leaves_frees_chairs_and_upstream(tmp_path: Path, stream: bool) -> None:
    gate = Gate(answering(message("late")))
    async with housed(tmp_path, gate) as (house, upstream):
        talk = await house.ask("/v1/infer", asked("hello", stream=stream))
        await gate.arrived.wait()
        assert not house.idle()
        began = asyncio.get_running_loop().time()
        talk.close()
        await asyncio.wait_for(upstream.seen[0].gone.wait(), 1)
        await until(house.idle, 1)
        assert asyncio.get_running_loop().time() - began < 0.5  # some ms, where nothing else runs
        one = await served(house)
        assert (one.ending, one.status) == ("left", 0)


async def test_who_leaves_in_the_middle_of_a_stream(tmp_path: Path) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(SSE)
        await exchange.chunk(START + delta("one "))
        await exchange.gone.wait()

    async with housed(tmp_path, script) as (house, upstream):
        talk = await house.ask("/v1/infer", asked("hello", stream=True))
        assert (await talk.head())[0] == 200
        talk.close()
        await asyncio.wait_for(upstream.seen[0].gone.wait(), 1)
        one = await served(house)
        assert (one.ending, one.output_tokens > 0) == ("left", True)


async def test_a_slow_reader_holds_the_upstream_and_is_hung_up_on_at_its_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.kit.http.TAKEN_S", 0.2)
    sent, over = 0, asyncio.Event()

    async def script(exchange: Exchange) -> None:
        nonlocal sent
        try:
            await exchange.send(SSE)
            await exchange.chunk(START)
            while True:
                await exchange.chunk(delta("x" * 60_000))
                sent += 60_000
        finally:
            over.set()

    async with housed(tmp_path, script) as (house, _):
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(slow, ("127.0.0.1", house.port))
            body = asked("hello", stream=True, deadline_s=1.5)
            base, key = house.gateway.credentials("fix-it", 1)
            head = f"POST {base.removeprefix(house.gateway.url)}/v1/infer HTTP/1.1\r\nHost: localhost\r\nx-api-key: {key}\r\ncontent-length: {len(body)}\r\n\r\n"
            await loop.sock_sendall(slow, head.encode() + body)
            await until(lambda: bool(sent))
            before = -1
            while before != sent:  # until nothing moves any more
                before = sent
                await asyncio.sleep(0.15)
            assert sent < 20_000_000
            await asyncio.wait_for(over.wait(), 4)
            one = await served(house)
            assert one.ending == "late"
            pages = house.gateway._engine._pages._server._server  # type: ignore[union-attr]
            await until(lambda: not pages.connections, 3)


# -- what ends a prompt from outside ------------------------------------------------------------------------------------


async def test_a_revoked_key_ends_a_prompt(tmp_path: Path) -> None:
    gate = Gate(answering(message("late")))
    async with housed(tmp_path, gate) as (house, upstream):
        asking = asyncio.create_task(house.infer())
        await gate.arrived.wait()
        house.gateway.revoke("fix-it", 1)
        got = await asking
        assert (got["status"], got["error"]["code"]) == (403, "permission_denied")
        await asyncio.wait_for(upstream.seen[0].gone.wait(), 1)
        assert (await served(house)).ending == "revoked"


async def test_a_gateway_that_stops_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.gateway.engine.FAREWELL_S", 0.05)
    gate = Gate(answering(message("late")))
    async with housed(tmp_path, gate) as (house, _):
        asking = asyncio.create_task(house.infer())
        await gate.arrived.wait()
        await house.stop()
        got = await asking
        assert (got["status"], got["error"]["code"]) == (503, "service_unavailable")
        assert [one.ending for one in house.served()] == ["stopped"]


async def test_a_door_that_is_full_sheds(tmp_path: Path) -> None:
    async with PromptHouse(tmp_path) as house:
        doors = dict(house.lane.stages())
        doors["assemble"].resize(width=0, room=0)
        got = await house.infer()
        assert (got["status"], got["error"]["code"]) == (503, "server_is_overloaded")
        doors["assemble"].resize(width=1, room=1)
        doors["stream"].resize(width=0)
        assert (await house.infer(stream=True, deadline_s=0.1))["status"] == 504
        assert (await served(house, 2)).ending == "late"
        assert house.served()[0].ending == "shed"


# -- money --------------------------------------------------------------------------------------------------------------


async def test_what_no_budget_covers_is_not_asked(tmp_path: Path) -> None:
    more: dict[str, Any] = {"prices": (replace(PRICE, models=("m0",)),)}
    async with housed(tmp_path, answering(message("dear", output_tokens=50)), **more) as (house, upstream):
        house.claimant = Claimant(budget_usd=0.2)
        got = await house.infer(max_tokens=100)
        assert got["cost_usd"] == pytest.approx((7 * 10 + 50 * 1000) / 1e6)
        got = await house.infer(max_tokens=1000)
        assert (got["status"], got["error"]["code"]) == (402, "insufficient_quota")
        assert (await house.infer("again", max_tokens=100))["status"] == 200
        assert len(upstream.seen) == 2
        await served(house, 3)
        assert [one.ending for one in house.served()] == ["served", "budget", "served"]
        assert sum(one.cost_usd for one in house.served()) == pytest.approx(0.10014)


async def test_a_stream_is_cut_when_nothing_is_left(tmp_path: Path) -> None:
    over = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        try:
            await exchange.send(SSE)
            await exchange.chunk(START)
            while True:
                await exchange.chunk(delta("word " * 50))
                await asyncio.sleep(0.005)
        finally:
            over.set()

    more: dict[str, Any] = {"prices": (replace(PRICE, models=("m0",)),)}
    async with housed(tmp_path, script, **more) as (house, _):
        house.claimant = Claimant(budget_usd=3.0)
        found = await house.streamed(max_tokens=100_000)
        assert (found[0][0], found[-1][0]) == ("start", "error")
        assert found[-1][1]["error"]["code"] == "insufficient_quota"
        await asyncio.wait_for(over.wait(), 1)
        one = await served(house)
        assert one.ending == "budget"
        assert 1.5 < one.cost_usd <= 4.5  # what comes at one time is not cut apart


# -- what is not asked twice --------------------------------------------------------------------------------------------


async def test_identical_prompts_under_way_share_one_call(tmp_path: Path) -> None:
    gate = Gate(answering(message("shared")))
    more: dict[str, Any] = {"prices": (replace(PRICE, models=("m0",)),)}
    async with housed(tmp_path, gate, **more) as (house, upstream):
        first = asyncio.create_task(house.infer())
        await gate.arrived.wait()
        same = [asyncio.create_task(house.infer(session_id=str(n), metadata={"n": str(n)})) for n in range(3)]
        streamed = asyncio.create_task(house.streamed())
        other = asyncio.create_task(house.infer(max_tokens=5))
        await until(lambda: len(house.gateway._calls.open()) == 6 and len(upstream.seen) >= 2)
        gate.open.set()
        assert [(await one)["collapsed"] for one in (first, *same)] == [False, True, True, True]
        found = await streamed
        assert [name for name, _ in found] == ["start", "token", "done"]
        assert (found[-1][1]["text"], found[-1][1]["collapsed"], found[-1][1]["cached"]) == ("shared", True, False)
        assert not (await other)["collapsed"]
        assert len(upstream.seen) == 2
        await served(house, 6)
        shared = [one for one in house.served() if one.collapsed]
        assert {(one.collapsed, one.cost_usd, one.output_tokens, one.tries, one.priced) for one in shared} == {
            ("identical", 0.0, 0, 0, True)
        }
        assert {one.saved_usd for one in shared} == {round((7 * 10 + 5 * 1000) / 1e6, 9)}
        assert house.lane.sharing.counts.identical == 4


async def test_a_leader_that_leaves_is_followed_by_another(tmp_path: Path) -> None:
    gate = Gate(answering(message("second")))
    async with housed(tmp_path, gate) as (house, upstream):
        first = await house.ask("/v1/infer", asked("hello"))
        await gate.arrived.wait()
        rest = [asyncio.create_task(house.infer("hello")) for _ in range(3)]
        await until(lambda: len(house.gateway._calls.open()) == 4)
        first.close()
        await until(lambda: len(upstream.seen) >= 2)
        gate.open.set()
        got = [await one for one in rest]
        assert [one["text"] for one in got] == ["second"] * 3
        assert sorted(one["collapsed"] for one in got) == [False, True, True]
        assert len(upstream.seen) == 2
        await served(house, 4)
        assert house.lane.sharing.counts.again == 1
        assert house.lane.sharing._under_way == {}


async def test_nobody_waits_for_another_for_ever(tmp_path: Path) -> None:
    gate = Gate(answering(message("mine")))
    async with housed(tmp_path, gate) as (house, upstream):
        house.lane.sharing.wait_s = 0.05
        tasks = [asyncio.create_task(house.infer()) for _ in range(2)]
        await until(lambda: len(upstream.seen) >= 2)
        gate.open.set()
        assert [(await one)["collapsed"] for one in tasks] == [False, False]
        assert house.lane.sharing.counts.alone == 1


async def test_sharing_can_be_off(tmp_path: Path) -> None:
    gate = Gate(answering(message("mine")))
    async with housed(tmp_path, gate, dedup="off") as (house, upstream):
        tasks = [asyncio.create_task(house.infer()) for _ in range(2)]
        await until(lambda: len(upstream.seen) >= 2)
        gate.open.set()
        assert [(await one)["collapsed"] for one in tasks] == [False, False]


@pytest.mark.parametrize("allowed", [False, True])
async def test_other_peoples_money_is_not_shared_unless_that_is_allowed(tmp_path: Path, allowed: bool) -> None:
    gate = Gate(answering(message("mine")))
    async with Upstream(gate) as upstream:
        listed = [
            replace(usual_upstream(UpstreamKind.ANTHROPIC, owner), url=upstream.url, models=("m",), owner=owner)
            for owner in ("ann", "ben")
        ]
        roles = {owner: RoleRoute(upstream=owner) for owner in ("ann", "ben")}
        async with PromptHouse(tmp_path, upstreams=listed, roles=roles, dedup_across_owners=allowed) as house:
            house.claimant = Claimant(role="ann")
            first = asyncio.create_task(house.infer(model="m"))
            await gate.arrived.wait()
            house.claimant = Claimant(role="ben")
            other = asyncio.create_task(house.infer(model="m"))
            await until(lambda: len(house.gateway._calls.open()) >= 2 and len(upstream.seen) >= 2 - allowed)
            gate.open.set()
            assert [(await one)["collapsed"] for one in (first, other)] == [False, allowed]


async def test_other_peoples_money_is_not_shared(tmp_path: Path) -> None:
    gate = Gate(answering(message("mine")))
    async with Upstream(gate) as upstream:
        listed = [
            replace(
                usual_upstream(UpstreamKind.ANTHROPIC, owner), url=upstream.url, models=(f"{owner}-m",), owner=owner
            )
            for owner in ("ann", "ben")
        ]
        async with PromptHouse(tmp_path, upstreams=listed, aliases={"m": "ann-m"}) as house:
            tasks = [asyncio.create_task(house.infer(model=name)) for name in ("ann-m", "ben-m", "m")]
            await until(lambda: len(house.gateway._calls.open()) == 3 and len(upstream.seen) >= 2)
            gate.open.set()
            assert sorted([(await one)["collapsed"] for one in tasks]) == [False, False, True]


async def test_what_is_asked_without_chance_is_kept(tmp_path: Path) -> None:
    more: dict[str, Any] = {"prices": (replace(PRICE, models=("m0",)),)}
    async with housed(tmp_path, answering(message("kept"), message("new")), **more) as (house, upstream):
        first = await house.infer(temperature=0)
        again = await house.infer(temperature=0)
        assert [(one["text"], one["cached"], one["collapsed"]) for one in (first, again)] == [
            ("kept", False, False),
            ("kept", True, True),
        ]
        assert (again["usage"], again["cost_usd"]) == (first["usage"], 0.0)
        found = await house.streamed(temperature=0)
        assert (told(found), found[-1][1]["cached"], found[-1][1]["finish"]) == ("kept", True, "end")
        assert (await house.infer(temperature=0, system="other"))["text"] == "new"
        assert (await house.infer(temperature=0.5))["text"] == "new"
        assert (await house.infer(temperature=0.5))["cached"] is False
        assert len(upstream.seen) == 4
        await served(house, 6)
        assert [one.collapsed for one in house.served()] == ["", "cache", "cache", "", "", ""]
        assert house.served()[1].saved_usd == first["cost_usd"] > 0
        store = house.lane.sharing._store
        assert store is not None
        assert (store.counts.hits, store.counts.saved_usd) == (2, pytest.approx(2 * first["cost_usd"]))


async def test_failures_are_not_kept(tmp_path: Path) -> None:
    async with housed(tmp_path, answering(b"no json", message("well"))) as (house, _):
        assert (await house.infer(temperature=0))["status"] == 502
        assert (await house.infer(temperature=0))["text"] == "well"


async def test_priorities_are_lanes(tmp_path: Path) -> None:
    async with PromptHouse(tmp_path) as house:
        house.claimant = Claimant(lane=Lane.LOW)
        await house.infer()
        await house.infer(priority="high")
        await served(house, 2)
        assert [one.lane for one in house.served()] == ["low", "high"]


async def test_a_hundred_prompts_at_once(tmp_path: Path) -> None:
    async with PromptHouse(tmp_path, notes=[("n", "circuit breakers")]) as house:
        for name, door in house.lane.stages():
            door.resize(width=2 if name != "stream" else 5)
        got = await asyncio.gather(
            *(house.infer(f"circuit {n}", retrieve=n % 2 == 0, stream=False) for n in range(60)),
            *(house.streamed(f"circuit {n}") for n in range(60, 100)),
        )
        assert [one["text"].endswith(f"circuit {n}") for n, one in enumerate(got[:60])] == [True] * 60
        assert [told(found) for found in got[60:]] == [f"circuit {n}" for n in range(60, 100)]
        await served(house, 100)
        assert {one.ending for one in house.served()} == {CallEnding.SERVED.value}


async def test_the_other_pages_are_there_as_before(tmp_path: Path) -> None:
    async with PromptHouse(tmp_path) as house:
        for path, status, kind in (
            ("/health", 200, "application/json"),
            ("/ready", 200, "application/json"),
            ("/metrics", 200, "text/plain"),
            ("/v1/infer", 405, "application/json"),
        ):
            got = await house.reply(path, b"", method="GET", target=path)
            assert (got.status, got.headers["content-type"].split(";")[0]) == (status, kind)
            assert got.headers["connection"] == "close"
