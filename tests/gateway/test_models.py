"""One list of models over all upstreams, by the providers' own clients; and each upstream's bytes where there is but one."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import anthropic
import openai
import pytest
from google import genai
from google.genai import types

from coordinator.domain.upstream import UpstreamKind
from coordinator.gateway import model_inquiry
from tests.gateway.rig import PROVIDER_KEY, House, Upstream, housed, until
from tests.gateway.scripted import JSON, described, dumps
from tests.gateway.scripted_google import google_models

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from tests.gateway.rig import Exchange, Reply

pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")

ANTHROPIC, GOOGLE, OPENAI = UpstreamKind.ANTHROPIC, UpstreamKind.GOOGLE, UpstreamKind.OPENAI
LLAMA, VLLM, ECHO = UpstreamKind.LLAMA_CPP, UpstreamKind.VLLM, UpstreamKind.ECHO
ENVIRONMENT = {"ANTHROPIC_API_KEY": PROVIDER_KEY, "OPENAI_API_KEY": "sk-openai-secret", "GEMINI_API_KEY": "AIza-secret"}


def claude(name: str) -> dict[str, Any]:
    made = "2026-09-29T00:00:00Z"
    return {
        "type": "model",
        "id": name,
        "display_name": name.title(),
        "created_at": made,
        "max_input_tokens": 1_000_000,
        "futureField": {"a": [1]},
    }


def gpt(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 1_790_640_000, "owned_by": "somebody", "max_model_len": 40_960}


@dataclass
class Lister:
    """A script that has these models, and tells of them in pages and one by one. ``status``: it refuses."""

    entries: Sequence[dict[str, Any]] = ()
    page: int = 1000
    single: bool = True
    status: int = 0
    wait: asyncio.Event | None = None
    body: bytes = b""
    asked: list[str] = field(default_factory=list)

    async def __call__(self, exchange: Exchange) -> None:
        self.asked.append(exchange.target)
        path, _, query = exchange.target.partition("?")
        if self.wait is not None:
            await self.wait.wait()
        if self.status:
            error = {"type": "error", "error": {"type": "some_error", "message": f"said with {self.status}"}}
            more = JSON + "retry-after: 7\r\nx-other: 1\r\n"
            await exchange.plain(dumps(error), status=f"{self.status} No", more=more)
            return
        if self.body:
            await exchange.plain(self.body, more=JSON)
            return
        name = path.partition("/models")[2].removeprefix("/")
        found = self.one(name) if name else self.some(dict(parse_qsl(query)))
        status = "200 OK" if found else "404 Not Found"
        await exchange.plain(
            dumps(found or {"error": {"message": f"no {name}", "type": "not_found_error"}}), status, JSON
        )

    def one(self, name: str) -> dict[str, Any] | None:
        if not self.single:
            return None
        return next((one for one in self.entries if name in (one.get("id"), one.get("name", "")[7:])), None)

    def some(self, query: dict[str, str]) -> dict[str, Any]:
        names = [str(one.get("id") or one.get("name")) for one in self.entries]
        after = query.get("after_id") or query.get("pageToken") or ""
        begin = names.index(after) + 1 if after else 0
        page = list(self.entries[begin : begin + self.page])
        more = begin + self.page < len(names)
        if names and names[0].startswith("models/"):
            return {"models": page, **({"nextPageToken": page[-1]["name"]} if more else {})}
        return {"object": "list", "data": page, "has_more": more, "last_id": page[-1]["id"] if page else None}


class Scene:
    """A gateway before several upstreams, and each protocol's client of one agent."""

    def __init__(self, house: House, upstreams: dict[str, Upstream]) -> None:
        self.base, self.key = house.gateway.credentials("fix-it", 1)
        self.house = house
        self.upstreams = upstreams
        self.anthropic = anthropic.AsyncAnthropic(base_url=self.base, api_key=self.key, max_retries=0, timeout=10)
        self.openai = openai.AsyncOpenAI(base_url=f"{self.base}/v1", api_key=self.key, max_retries=0, timeout=10)

    def google(self, version: str = "v1") -> genai.Client:
        options = types.HttpOptions(base_url=self.base, timeout=10_000, api_version=version)
        return genai.Client(api_key=self.key, http_options=options)

    async def get(self, path: str = "/v1/models", **more: str) -> Reply:
        return await self.house.reply(path, b"", method="GET", **more)

    async def names(self, path: str = "/v1/models", **more: str) -> list[str]:
        got = await self.get(path, **more)
        assert got.status == 200, got.body
        return [one["id"] for one in json.loads(got.body)["data"]]


@contextlib.asynccontextmanager
async def scene(
    state: Path, *listers: tuple[UpstreamKind, str, Any] | tuple[UpstreamKind, str, Any, tuple[str, ...]], **more: Any
) -> AsyncIterator[Scene]:
    """Each by kind, name, script and the models of its settings."""
    async with contextlib.AsyncExitStack() as stack:
        upstreams, settings = {}, []
        for kind, name, script, *models in listers:
            upstream = upstreams[name] = await stack.enter_async_context(Upstream(script))
            settings.append(described(kind, upstream.url, name, *models))
        house = await stack.enter_async_context(
            House(state, "", environment=ENVIRONMENT, upstreams=tuple(settings), **more)
        )
        made = Scene(house, upstreams)
        async with made.anthropic, made.openai:
            yield made


CLAUDES = [claude("claude-opus-5-5"), claude("claude-haiku-5-5")]
GPTS = [gpt("gpt-6-sol"), gpt("gpt-6-luna")]
ALL = ["claude-opus-5-5", "claude-haiku-5-5", "gpt-6-sol", "gpt-6-luna"]
FOUR = (ANTHROPIC, "team", Lister(CLAUDES)), (OPENAI, "gpt", Lister(GPTS), ("gpt-*",))
NO_VERSION = {"anthropic_version": ""}


# -- one upstream ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ANTHROPIC, OPENAI, LLAMA, VLLM, GOOGLE], ids=lambda kind: kind.value)
@pytest.mark.parametrize("path", ["/v1/models", "/v1/models?limit=1000&x=y", "/v1/models/some-model"])
async def test_of_one_upstream_the_bytes_pass(tmp_path: Path, kind: UpstreamKind, path: str) -> None:
    for sent in (b'{ "data":[ {"id" : "a"},{"id": "a"} ] }\n', b"no json at all"):
        async with scene(tmp_path / str(len(sent)), (kind, "up", Lister(body=sent)), aliases={"quick": "a"}) as at:
            for more in ({}, NO_VERSION, {**NO_VERSION, "x_goog_api_client": "g"}):
                got = await at.get(path, **more)
                assert (got.status, got.body) == (200, sent)
            targets = [one.target for one in at.upstreams["up"].seen]
            assert targets == [path] * 3
            await until(lambda: len(at.house.served()) >= 3)
            assert {(one.upstream, one.status, one.cost_usd, one.priced) for one in at.house.served()} == {
                ("up", 200, 0.0, sent.startswith(b"{"))
            }


async def test_two_keys_in_the_environment_are_two_upstreams_and_one_is_one(tmp_path: Path) -> None:
    both = {"ANTHROPIC_API_KEY": PROVIDER_KEY, "OPENAI_API_KEY": "o"}
    for name, other in (("ANTHROPIC_API_KEY", "openai_url"), ("OPENAI_API_KEY", "anthropic_url")):
        one: dict[str, Any] = {"environment": {name: both[name]}, other: ""}
        async with housed(tmp_path / name, Lister(CLAUDES), **one) as (house, upstream):
            got = await house.reply("/v1/models?limit=1", b"", method="GET")
            assert (upstream.seen[-1].target, got.body) == ("/v1/models?limit=1", dumps(Lister(CLAUDES).some({})))
    async with housed(tmp_path / "both", Lister(CLAUDES), environment=both) as (house, upstream):
        assert (await house.reply("/v1/models?limit=1", b"", method="GET")).status == 200
        assert sorted(one.target for one in upstream.seen) == ["/v1/models", "/v1/models?limit=1000"]


async def test_an_error_of_one_upstream_passes_as_it_came(tmp_path: Path) -> None:
    async with scene(tmp_path, (OPENAI, "up", Lister(status=403))) as at:
        got = await at.get()
        assert (got.status, got.error["message"], got.headers["x-other"]) == (403, "said with 403", "1")


# -- several -----------------------------------------------------------------------------------------------------------


async def test_the_list_is_everybodys_in_the_shape_of_the_caller(tmp_path: Path) -> None:
    async with scene(tmp_path, *FOUR) as at:
        listed = [one async for one in at.anthropic.models.list()]
        assert [one.id for one in listed] == ALL
        assert all(one.type == "model" for one in listed)
        assert [one.display_name for one in listed] == [
            "Claude-Opus-5-5",
            "Claude-Haiku-5-5",
            "gpt-6-sol",
            "gpt-6-luna",
        ]
        assert listed[0].created_at.isoformat() == listed[2].created_at.isoformat() == "2026-09-29T00:00:00+00:00"
        told = [one async for one in at.openai.models.list()]
        assert [one.id for one in told] == ALL
        assert [(one.object, one.created) for one in told] == [("model", 1_790_640_000)] * 4
        assert [one.owned_by for one in told] == ["team", "team", "somebody", "somebody"]


async def test_what_is_unknown_is_kept(tmp_path: Path) -> None:
    async with scene(tmp_path, *FOUR) as at:
        for more, keys in (({}, {"data", "first_id", "has_more", "last_id"}), (NO_VERSION, {"data", "object"})):
            got = json.loads((await at.get("/v1/models?limit=1000", **more)).body)
            assert set(got) == keys
            for sent, told in zip([*CLAUDES, *GPTS], got["data"], strict=True):
                assert sent.items() <= told.items()


async def test_each_is_asked_in_its_own_words_with_its_own_key_at_once(tmp_path: Path) -> None:
    go = asyncio.Event()
    listers = [
        (ANTHROPIC, "team", Lister(CLAUDES, wait=go)),
        (OPENAI, "gpt", Lister(GPTS, wait=go), ("gpt-*",)),
        (VLLM, "rack", Lister([gpt("qwen")], wait=go), ("qwen",)),
        (LLAMA, "llama", Lister([gpt("default")], wait=go), ("default",)),
        (GOOGLE, "gem", Lister(google_models("gemini-x"), wait=go)),
    ]
    async with scene(tmp_path, *listers) as at:
        asking = asyncio.create_task(at.names(**NO_VERSION, user_agent="codex/1", openai_organization="org"))
        seen = {name: up.seen for name, up in at.upstreams.items()}
        await until(lambda: all(seen[name] for name in ("team", "gpt", "rack", "llama")))
        go.set()
        assert await asking == ["claude-opus-5-5", "claude-haiku-5-5", "gpt-6-sol", "gpt-6-luna", "qwen", "default"]
        assert seen.pop("gem") == [], "its models are called in its own protocol alone"
        asked = {name: (one.target, dict(one.headers)) for name, (one, *_) in seen.items()}
        assert [target for target, _ in asked.values()] == ["/v1/models?limit=1000", *["/v1/models"] * 3]
        assert asked["team"][1]["x-api-key"] == PROVIDER_KEY
        assert asked["team"][1]["anthropic-version"] == "2023-06-01"
        assert asked["gpt"][1]["Authorization"] == "Bearer sk-openai-secret"
        for name, (_, headers) in asked.items():
            assert at.key not in repr(headers)
            assert (headers["user-agent"], headers["accept-encoding"]) == ("codex/1", "identity")
            assert ("x-api-key" in headers, "anthropic-version" in headers) == (name == "team",) * 2
            assert "openai-organization" not in headers


async def test_it_is_one_call_for_who_counts_them(tmp_path: Path) -> None:
    async with scene(tmp_path, *FOUR) as at:
        assert await at.names() == ALL
        await until(at.house.served)
        (one,) = at.house.served()
        assert (one.ending, one.status, one.upstream, one.model, one.path) == (
            "served",
            200,
            "several",
            "",
            "/v1/models",
        )
        assert (one.cost_usd, one.priced, one.tries, one.bytes_down > 100) == (0.0, True, 1, True)


async def test_the_pages_of_an_upstream_are_put_together(tmp_path: Path) -> None:
    many = Lister([claude(f"claude-{number}") for number in range(7)], page=3)
    async with scene(tmp_path, (ANTHROPIC, "team", many), (OPENAI, "gpt", Lister(GPTS), ("gpt-*",))) as at:
        assert await at.names("/v1/models?limit=1000") == [f"claude-{number}" for number in range(7)] + ALL[2:]
        assert many.asked == [
            "/v1/models?limit=1000",
            "/v1/models?limit=1000&after_id=claude-2",
            "/v1/models?limit=1000&after_id=claude-5",
        ]


async def test_a_list_without_an_end_is_ended(tmp_path: Path) -> None:
    body = {"data": [gpt("gpt-a")], "has_more": True}
    for last in ("gpt-a", ""):
        endless = Lister(body=dumps({**body, "last_id": last}))
        async with scene(tmp_path / f"x{last}", (OPENAI, "gpt", endless, ("gpt-*",)), FOUR[0]) as at:
            assert await at.names() == ["gpt-a", "claude-opus-5-5", "claude-haiku-5-5"]
            assert len(endless.asked) <= 2


# -- pages for the caller ----------------------------------------------------------------------------------------------

MANY = [f"claude-{number:02}" for number in range(45)]
LONG = (ANTHROPIC, "team", Lister([claude(name) for name in MANY])), FOUR[1]
WHOLE = [*MANY, "gpt-6-sol", "gpt-6-luna"]


async def test_anthropics_client_turns_pages(tmp_path: Path) -> None:
    async with scene(tmp_path, *LONG) as at:
        for limit in (1, 7, 47, 1000):
            assert [one.id async for one in at.anthropic.models.list(limit=limit)] == WHOLE
        assert [one.id async for one in at.anthropic.models.list()] == WHOLE
        first = await at.anthropic.models.list(limit=45)
        assert (first.first_id, first.last_id, first.has_more) == (WHOLE[0], WHOLE[44], True)
        last = await first.get_next_page()
        assert (last.first_id, last.last_id, last.has_more) == (WHOLE[45], WHOLE[46], False)
        back = await at.anthropic.models.list(limit=3, before_id=WHOLE[5])
        assert ([one.id for one in back.data], back.has_more) == (WHOLE[2:5], True)
        whole = await at.anthropic.models.list(limit=47)
        assert (len(whole.data), whole.has_more) == (47, False)
        assert not (await at.anthropic.models.list(limit=2, before_id=WHOLE[2])).has_more
        back = await at.anthropic.models.list(limit=9, before_id=WHOLE[2])
        assert ([one.id for one in back.data], back.has_more) == (WHOLE[:2], False)
        assert len(await at.names()) == 20, "what Anthropic gives to who does not say"
        assert await at.names(**NO_VERSION) == WHOLE, "OpenAI's lists have no pages"
        end = json.loads((await at.get(f"/v1/models?after_id={WHOLE[-1]}")).body)
        assert end == {"data": [], "has_more": False, "first_id": None, "last_id": None}


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=x", "limit=-1", "after_id=nobody", "before_id=nobody"]
)
async def test_a_page_that_is_none_is_refused(tmp_path: Path, query: str) -> None:
    async with scene(tmp_path, *LONG) as at:
        got = await at.get(f"/v1/models?{query}")
        assert (got.status, got.error["type"]) == (400, "invalid_request_error")
        assert query.partition("=")[0] in got.error["message"]


# -- who fails ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [Lister(status=500), Lister(status=401), Lister(status=429), Lister(body=b"<html>"), Lister(body=b'{"data": {}}'), Lister(body=b"[1]")],
)  # fmt: skip
async def test_who_fails_is_left_out(tmp_path: Path, bad: Lister) -> None:
    async with scene(tmp_path, (OPENAI, "gpt", bad), FOUR[0]) as at:
        assert await at.names() == ALL[:2]
        await until(at.house.served)
        assert at.house.served()[0].upstream == "team"


async def test_who_is_not_there_is_left_out(tmp_path: Path) -> None:
    async with scene(tmp_path, (OPENAI, "gpt", Lister(GPTS)), FOUR[0], retries=1, hold_s=5.0) as at:
        await at.upstreams["gpt"].stop()
        assert await at.names() == ALL[:2]


async def test_who_takes_too_long_is_left_out_and_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_inquiry, "PATIENCE_S", 0.2)
    slow = Lister(GPTS, wait=asyncio.Event())
    async with scene(tmp_path, (OPENAI, "gpt", slow), FOUR[0]) as at:
        assert await at.names() == ALL[:2]
        await asyncio.wait_for(at.upstreams["gpt"].seen[0].gone.wait(), 5)
        standing = await at.house.gateway.ask(lambda engine: engine.upstreams())
        assert [one["in_flight"] for one in standing] == [0, 0]
    async with scene(tmp_path / "all", (OPENAI, "gpt", slow), (VLLM, "rack", slow)) as at:
        got = await at.get()
        assert (got.status, "no list of models came within 0.2 s" in got.error["message"]) == (504, True)


async def test_when_all_fail_the_last_error_is_told_in_the_callers_words(tmp_path: Path) -> None:
    for kind, other, more in ((ANTHROPIC, OPENAI, NO_VERSION), (OPENAI, ANTHROPIC, {}), (VLLM, OPENAI, NO_VERSION)):
        go = asyncio.Event()
        first, last = Lister(status=500), Lister(status=403, wait=go)
        async with scene(tmp_path / kind.value, (other, "first", first), (kind, "last", last)) as at:
            asking = asyncio.create_task(at.get(**more))
            await until(lambda first=first, at=at: first.asked and not _in_flight(at, 0))
            go.set()
            got = await asking
            assert (got.status, got.error["message"]) == (403, "said with 403")
            own = kind is VLLM  # of the caller's own protocol: as it came
            assert got.error["type"] == ("some_error" if own else "permission_error")
            assert (json.loads(got.body).get("type") == "error") == (own or not more)
            assert (got.headers["retry-after"], "x-other" in got.headers) == ("7", False)
            await until(at.house.served)
            assert [(one.status, one.upstream) for one in at.house.served()] == [(403, "last")]


def _in_flight(at: Scene, number: int) -> int:
    engine = at.house.gateway._engine
    assert engine is not None
    return engine.stations[number].limit.in_flight


async def test_a_refused_key_ends_the_client(tmp_path: Path) -> None:
    async with scene(tmp_path, (ANTHROPIC, "a", Lister(status=401)), (OPENAI, "b", Lister(status=401))) as at:
        got = await at.get()
        assert (got.status, got.headers["x-should-retry"]) == (401, "false")


async def test_who_hangs_up_frees_all_upstreams(tmp_path: Path) -> None:
    never = asyncio.Event()
    listers = [(kind, kind.value, Lister(wait=never)) for kind in (ANTHROPIC, OPENAI, VLLM)]
    async with scene(tmp_path, *listers) as at:
        talk = await at.house.ask("/v1/models", b"", method="GET")
        await until(lambda: all(up.seen for up in at.upstreams.values()))
        talk.close()
        for upstream in at.upstreams.values():
            await asyncio.wait_for(upstream.seen[0].gone.wait(), 5)
        await until(at.house.served)
        assert [one.ending for one in at.house.served()] == ["left"]


async def test_a_paused_upstream_is_not_waited_for(tmp_path: Path) -> None:
    async with scene(tmp_path, *FOUR) as at:
        await at.house.gateway.ask(lambda engine: engine.pause("gpt", "for a while"))
        assert await at.names() == ALL[:2]
        assert at.upstreams["gpt"].seen == []


# -- which belong there ------------------------------------------------------------------------------------------------


async def test_a_model_stands_there_once_as_the_one_tells_it_that_would_be_called(tmp_path: Path) -> None:
    anybody = Lister([gpt("qwen-3"), gpt("llama-4"), {**gpt("gpt-6-sol"), "owned_by": "anybody"}])
    told = [{**gpt("qwen-3"), "owned_by": "special"}, gpt("not-routed-here"), {"no": "id"}, "x", {"id": 5}]
    special = Lister(body=dumps({"data": told}))
    listers = (VLLM, "all", anybody, ("*",)), (VLLM, "qwen", special, ("qwen-*",)), FOUR[1]
    async with scene(tmp_path, *listers) as at:
        got = json.loads((await at.get(**NO_VERSION)).body)["data"]
        assert {one["id"]: one["owned_by"] for one in got} == {
            "llama-4": "somebody",
            "qwen-3": "special",
            "gpt-6-sol": "somebody",
            "gpt-6-luna": "somebody",
        }


async def test_of_equals_the_first_tells_of_a_model(tmp_path: Path) -> None:
    first, second = ([{**gpt("m"), "owned_by": name}] for name in ("first", "second"))
    async with scene(tmp_path, (VLLM, "one", Lister(first)), (VLLM, "two", Lister(second))) as at:
        got = json.loads((await at.get(**NO_VERSION)).body)["data"]
        assert [one["owned_by"] for one in got] == ["first"]
        assert json.loads((await at.get("/v1/models/m", **NO_VERSION)).body)["owned_by"] == "first"


async def test_lists_are_paced_like_other_calls(tmp_path: Path) -> None:
    async with scene(tmp_path, *FOUR, agent_calls_per_s=0.2) as at:
        assert (await at.get()).status == 200
        got = await at.get()
        assert (got.status, "this agent may not begin more calls" in got.error["message"]) == (429, True)
        assert [len(up.seen) for up in at.upstreams.values()] == [1, 1]


async def test_what_a_caller_could_not_call_is_not_listed(tmp_path: Path) -> None:
    """A provider has no model of another's: ``*`` in its settings is for its own clients."""
    environment = {"OPENAI_API_KEY": "o", "ANTHROPIC_API_KEY": "a"}
    gpts = Lister([gpt("gpt-6-sol"), gpt("whisper-1")])
    async with Upstream(Lister(CLAUDES)) as claudes, Upstream(gpts) as others:
        urls = {"anthropic_url": claudes.url, "openai_url": f"{others.url}/v1"}
        async with House(tmp_path, "", environment=environment, **urls) as house:
            at = Scene(house, {})
            assert await at.names() == ["claude-opus-5-5", "claude-haiku-5-5", "gpt-6-sol"]
            assert await at.names(**NO_VERSION) == ["claude-opus-5-5", "claude-haiku-5-5", "gpt-6-sol", "whisper-1"]


async def test_aliases_are_models_as_well(tmp_path: Path) -> None:
    aliases = {
        "fast": "claude-haiku-5-5",
        "sol": "gpt-6-sol",
        "gpt-6-luna": "claude-opus-5-5",
        "new": "gpt-7",
        "odd": "xyz",
    }
    async with scene(tmp_path, *FOUR, aliases=aliases) as at:
        listed = {one.id: one async for one in at.anthropic.models.list()}
        assert list(listed) == [*ALL, "fast", "sol", "new"]
        assert (listed["fast"].display_name, listed["new"].display_name) == ("Claude-Haiku-5-5", "new")
        told = {one.id: one for one in (await at.openai.models.list()).data}
        assert (told["new"].owned_by, told["fast"].owned_by, told["new"].created) == ("gpt", "team", 0)


# -- one model ---------------------------------------------------------------------------------------------------------


async def test_one_model_is_asked_of_the_upstream_that_has_it(tmp_path: Path) -> None:
    async with scene(tmp_path, *FOUR) as at:
        got = await at.get("/v1/models/claude-opus-5-5")
        assert got.body == dumps(CLAUDES[0])
        assert (await at.get("/v1/models/gpt-6-sol", **NO_VERSION)).body == dumps(GPTS[0])
        model = await at.anthropic.models.retrieve("gpt-6-sol")
        assert (model.id, model.type, model.display_name) == ("gpt-6-sol", "model", "gpt-6-sol")
        told = await at.openai.models.retrieve("claude-opus-5-5")
        assert (told.id, told.object, told.created, told.owned_by) == (
            "claude-opus-5-5",
            "model",
            1_790_640_000,
            "team",
        )
        assert [one.target for one in at.upstreams["gpt"].seen] == ["/v1/models/gpt-6-sol"] * 2
        assert [one.target for one in at.upstreams["team"].seen] == ["/v1/models/claude-opus-5-5"] * 2
        await until(lambda: len(at.house.served()) >= 4)
        assert [one.upstream for one in at.house.served()] == ["team", "gpt", "gpt", "team"]


async def test_where_the_settings_do_not_say_who_has_it_all_are_asked(tmp_path: Path) -> None:
    one, other = Lister([gpt("a/one")]), Lister([gpt("a/two"), gpt("ft:gpt-4o:org::1")], single=False)
    async with scene(tmp_path, (VLLM, "one", one), (VLLM, "other", other)) as at:
        assert (await at.openai.models.retrieve("a/one")).id == "a/one"
        assert (one.asked, other.asked) == (["/v1/models/a/one"], ["/v1/models/a/one"])
        assert (await at.openai.models.retrieve("a/two")).id == "a/two", "by its list, where it tells of none alone"
        assert (await at.openai.models.retrieve("ft:gpt-4o:org::1")).id == "ft:gpt-4o:org::1"
        with pytest.raises(openai.NotFoundError, match="no a/three"):
            await at.openai.models.retrieve("a/three")
        with pytest.raises(anthropic.NotFoundError, match="no a/three"):
            await at.anthropic.models.retrieve("a/three")


async def test_one_model_by_an_alias(tmp_path: Path) -> None:
    async with scene(tmp_path, *FOUR, aliases={"fast": "claude-haiku-5-5"}) as at:
        model = await at.anthropic.models.retrieve("fast")
        assert (model.id, model.display_name) == ("fast", "Claude-Haiku-5-5")
        assert (await at.openai.models.retrieve("fast")).id == "fast"
    async with scene(tmp_path / "one", FOUR[0], aliases={"fast": "claude-haiku-5-5"}) as at:
        model = await at.anthropic.models.retrieve("fast")
        assert (model.id, model.display_name) == ("fast", "Claude-Haiku-5-5")


async def test_one_model_while_its_upstream_fails(tmp_path: Path) -> None:
    async with scene(tmp_path, FOUR[0], (OPENAI, "gpt", Lister(status=403), ("gpt-*",))) as at:
        with pytest.raises(openai.PermissionDeniedError, match="said with 403"):
            await at.openai.models.retrieve("gpt-6-sol")


# -- Google's ----------------------------------------------------------------------------------------------------------

GEMS = (
    (GOOGLE, "one", Lister(google_models("gemini-a", "gemini-b", "gemini-c"), page=2)),
    (GOOGLE, "two", Lister(google_models("gemini-b", "gemini-d"))),
    FOUR[0],
)
GEMINIS = ["models/gemini-a", "models/gemini-b", "models/gemini-c", "models/gemini-d"]


@pytest.mark.parametrize("version", ["v1", "v1beta"])
async def test_googles_client_lists_googles_models(tmp_path: Path, version: str) -> None:
    async with scene(tmp_path, *GEMS, aliases={"flash": "gemini-d", "fast": "claude-haiku-5-5"}) as at:
        with at.google(version) as client:
            for size in (None, 1, 2, 5000):
                config = {"page_size": size} if size else {}
                listed = [one async for one in await client.aio.models.list(config=config)]  # type: ignore[arg-type]
                assert [one.name for one in listed] == [*GEMINIS, "models/flash"]
            assert listed[-1].display_name == "Gemini-D"
            found = await client.aio.models.get(model="gemini-d")
            assert (found.name, found.input_token_limit) == ("models/gemini-d", 1_048_576)
            assert (await client.aio.models.get(model="flash")).name == "models/flash"
            await client.aio.aclose()
        targets = {one.target for one in at.upstreams["one"].seen}
        assert f"/{version}/models?pageSize=1000&pageToken=models%2Fgemini-b" in targets
        assert {one.header("x-goog-api-key")[0] for one in at.upstreams["two"].seen} == {"AIza-secret"}
        assert at.upstreams["team"].seen == []


async def test_googles_pages(tmp_path: Path) -> None:
    async with scene(tmp_path, *GEMS) as at:
        got = json.loads((await at.get("/v1beta/models?pageSize=3")).body)
        assert ([one["name"] for one in got["models"]], got["nextPageToken"]) == (GEMINIS[:3], "gemini-c")
        assert got["models"][0]["sayWhat"] == {"new": True}
        rest = json.loads((await at.get("/v1beta/models?pageSize=3&pageToken=gemini-c")).body)
        assert rest == {"models": google_models("gemini-d")}
        refused = await at.get("/v1beta/models?pageToken=nobody")
        assert (refused.status, refused.error["status"]) == (400, "INVALID_ARGUMENT")


async def test_without_an_upstream_of_googles_its_clients_hear_so(tmp_path: Path) -> None:
    async with scene(tmp_path, *FOUR) as at:
        got = await at.get("/v1beta/models")
        assert (got.status, got.error["status"]) == (404, "NOT_FOUND")
        assert json.loads((await at.get(**NO_VERSION, x_goog_api_client="g")).body) == {"models": []}
