"""Google's own Python client against the gateway: text, tools, streams, counts, vectors, errors, limits and money."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from google import genai
from google.genai import errors, types

from coordinator.domain.price import Price, TokenRates
from coordinator.domain.upstream import UpstreamKind
from tests.gateway.rig import SSE, House, Upstream, until
from tests.gateway.scripted import JSON, Fails, Held, Scripted, described
from tests.gateway.scripted_google import CACHED, THOUGHTS, google_streamed
from tests.real.upstream import Refuse, Say

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from coordinator.domain.event import RequestServed
    from tests.gateway.rig import Exchange, Script
    from tests.gateway.scripted import Line

pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")

GOOGLE = UpstreamKind.GOOGLE
HELLO = "Hello, whoever asks."
MODEL = "gemini-2.5-pro"
SECRET = "AIza-secret-of-the-provider-0123456789"
ENVIRONMENT = {"GEMINI_API_KEY": SECRET}
RATES = TokenRates(cache_read_usd=1, cache_write_1h_usd=4, cache_write_usd=4, input_usd=4, output_usd=10)
PRICES = (Price(models=("*",), rates=RATES),)
WEATHER = types.Tool(
    function_declarations=[
        types.FunctionDeclaration(
            name="weather",
            description="Tells",
            parameters_json_schema={"type": "object", "properties": {"city": {"type": "string"}}},
        )
    ]
)
TOOLS = types.GenerateContentConfig(
    tools=[WEATHER], automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True)
)


class Scene:
    """A gateway before one upstream of Google's kind, and Google's client of one agent."""

    def __init__(self, house: House, upstream: Upstream, script: Any) -> None:
        self.base, self.key = house.gateway.credentials("fix-it", 1)
        self.house = house
        self.script = script
        self.upstream = upstream
        self.client = self.make()
        self.models = self.client.aio.models

    def make(self, *, base: str = "", key: str = "", **more: Any) -> genai.Client:
        options = types.HttpOptions(base_url=base or self.base, timeout=10_000, **more)
        return genai.Client(api_key=key or self.key, http_options=options)

    async def served(self, number: int) -> list[RequestServed]:
        await until(lambda: len(self.house.served()) >= number)
        return self.house.served()


@contextlib.asynccontextmanager
async def scene(
    state: Path, *lines: Line, script: Script | None = None, environment: Any = None, **more: Any
) -> AsyncIterator[Scene]:
    acting = script or Scripted(*lines or (Say(HELLO),))
    async with (
        Upstream(acting) as upstream,
        House(
            state,
            "",
            environment=environment or ENVIRONMENT,
            **{"upstreams": (described(GOOGLE, upstream.url, "google"),), **more},
        ) as house,
    ):
        made = Scene(house, upstream, acting)
        try:
            yield made
        finally:
            await made.client.aio.aclose()
            made.client.close()


async def drained(at: Scene, model: str, got: list[str] | None = None) -> None:
    """The whole of a stream."""
    async for chunk in await at.models.generate_content_stream(model=model, contents=HELLO):
        if got is not None:
            got.append(chunk.text or "")


# -- text, streams, tools ----------------------------------------------------------------------------------------------


async def test_text_with_what_it_used(tmp_path: Path) -> None:
    async with scene(tmp_path, prices=PRICES) as at:
        answer = await at.models.generate_content(model=MODEL, contents=HELLO)
        assert (answer.text, answer.model_version) == (HELLO, "gemini-scripted")
        (served,) = await at.served(1)
        assert (served.ending, served.status, served.model, served.upstream) == ("served", 200, MODEL, "google")
        assert (served.input_tokens, served.cache_read_tokens) == (100 - CACHED, CACHED)
        assert served.output_tokens == 10 + THOUGHTS
        assert served.priced
        usd = (4 * (100 - CACHED) + 1 * CACHED + 10 * (10 + THOUGHTS)) / 1e6
        assert served.cost_usd == pytest.approx(usd)


async def test_what_goes_up_is_what_came_with_another_key(tmp_path: Path) -> None:
    body = b'{"contents":[ {"parts": [{"text":"\xc3\xa4"}]}],"futureField":{"a":1}}'
    async with scene(tmp_path) as at:
        path = f"/v1beta/models/{MODEL}:streamGenerateContent?key={at.key}&alt=sse&%6Bey=x&access_token=y"
        got = await at.house.reply(path, body, x_api_key="", x_goog_api_key=at.key, x_goog_api_client="gemini-cli/1")
        assert got.body == b"".join(google_streamed(Say(HELLO), 1))
        (seen,) = at.upstream.seen
        assert (seen.target, seen.body) == (f"/v1beta/models/{MODEL}:streamGenerateContent?alt=sse", body)
        assert (seen.header("x-goog-api-key"), seen.header("x-goog-api-client")) == ([SECRET], ["gemini-cli/1"])
        assert at.key not in repr(seen.headers) + seen.target
        (served,) = await at.served(1)
        assert (served.path, served.stream) == (f"/v1beta/models/{MODEL}:streamGenerateContent", True)


@pytest.mark.parametrize("query", ["?key=K", "?key=K&key=L", "?KEY=k", "?alt=sse", "?alt=sse&keys=1", "?"])
async def test_no_key_of_a_caller_goes_up_and_nothing_else_is_lost(tmp_path: Path, query: str) -> None:
    async with scene(tmp_path) as at:
        await at.house.reply(f"/v1/models/{MODEL}:generateContent{query}", x_api_key="", x_goog_api_key=at.key)
        left = {"?key=K": "", "?key=K&key=L": "", "?": "?"}.get(query, query)
        assert at.upstream.seen[0].target == f"/v1/models/{MODEL}:generateContent{left}"


async def test_a_stream(tmp_path: Path) -> None:
    async with scene(tmp_path) as at:
        chunks = [one async for one in await at.models.generate_content_stream(model=MODEL, contents=HELLO)]
        assert len(chunks) == 3
        assert "".join(one.text or "" for one in chunks) == HELLO
        assert chunks[-1].candidates is not None
        assert chunks[-1].candidates[0].finish_reason is types.FinishReason.STOP
        (served,) = await at.served(1)
        assert (served.stream, served.ending, served.first_byte_s > 0) == (True, "served", True)
        assert (served.input_tokens, served.output_tokens) == (100 - CACHED, 10 + THOUGHTS)


@pytest.mark.parametrize("streams", [False, True], ids=["whole", "stream"])
async def test_the_same_of_two_agents_is_asked_once_and_paid_once(tmp_path: Path, streams: bool) -> None:
    go = asyncio.Event()
    inner = Scripted(Say(HELLO))

    async def script(exchange: Exchange) -> None:
        await go.wait()
        await inner(exchange)

    path = f"/v1/models/{MODEL}:{'streamGenerateContent?alt=sse' if streams else 'generateContent'}"
    body = b'{"contents":[{"role":"user","parts":[{"text":"the same"}]}]}'
    async with scene(tmp_path, script=script, prices=PRICES, dedup="strict") as at:
        asking = [
            asyncio.create_task(at.house.reply(path, body, claim=claim, x_api_key="", x_goog_api_key=key))
            for claim in (("fix-it", 1), ("other", 1))
            for key in (at.house.gateway.credentials(*claim)[1],)
        ]
        await until(lambda: len(at.house.gateway._calls.open()) == 2 and at.upstream.seen)
        go.set()
        first, second = await asyncio.gather(*asking)
        assert HELLO[:10].encode() in first.body
        assert (first.status, first.body) == (second.status, second.body)
        assert len(at.upstream.seen) == 1
        served = await at.served(2)
        assert sorted((one.cost_usd > 0, one.saved_usd > 0, one.collapsed) for one in served) == [
            (False, True, "raw"),
            (True, False, ""),
        ]


async def test_a_client_that_blocks(tmp_path: Path) -> None:
    def talk(at: Scene) -> tuple[str | None, str]:
        with at.make() as client:
            whole = client.models.generate_content(model=MODEL, contents=HELLO)
            stream = client.models.generate_content_stream(model=MODEL, contents=HELLO)
            return whole.text, "".join(one.text or "" for one in stream)

    async with scene(tmp_path) as at:
        assert await asyncio.to_thread(talk, at) == (HELLO, HELLO)


CALL = Say("I look.", tools=(("weather", {"city": "Bern"}), ("weather", {"city": "Chur"})))
DONE = Say("Rain in Bern, sun in Chur.")


@pytest.mark.parametrize("streams", [False, True], ids=["whole", "stream"])
async def test_tools(tmp_path: Path, streams: bool) -> None:
    async with scene(tmp_path, CALL, DONE) as at:

        async def ask(turns: list[Any]) -> list[types.Part]:
            if not streams:
                answers = [await at.models.generate_content(model=MODEL, contents=turns, config=TOOLS)]
            else:
                stream = await at.models.generate_content_stream(model=MODEL, contents=turns, config=TOOLS)
                answers = [one async for one in stream]
            return [part for one in answers for part in one.parts or ()]

        asked = types.Content(role="user", parts=[types.Part(text=HELLO)])
        parts = await ask([asked])
        calls = [part.function_call for part in parts if part.function_call is not None]
        assert [(call.name, call.args) for call in calls] == [
            ("weather", {"city": "Bern"}),
            ("weather", {"city": "Chur"}),
        ]
        results = [
            types.Part.from_function_response(name="weather", response={"said": said}) for said in ("rain", "sun")
        ]
        said = types.Content(role="model", parts=parts)
        last = await ask([asked, said, types.Content(role="user", parts=results)])
        assert "".join(part.text or "" for part in last) == DONE.text
        told = [part["functionResponse"]["response"] for part in at.script.asked[1]["contents"][-1]["parts"]]
        assert told == [{"said": "rain"}, {"said": "sun"}]
        assert [one.ending for one in await at.served(2)] == ["served", "served"]


async def test_counts_and_vectors(tmp_path: Path) -> None:
    usage = {"usageMetadata": {"promptTokenCount": 8}}
    told: list[dict[str, Any]] = [usage, {}]

    async def script(exchange: Exchange) -> None:
        if exchange.target.endswith(":countTokens"):
            await exchange.plain(b'{"totalTokens": 42}', more=JSON)
            return
        vector = {"embeddings": [{"values": [0.25] * 768}]}
        await exchange.plain(json.dumps({**vector, **told.pop(0)}).encode(), more=JSON)

    async with scene(tmp_path, script=script, prices=PRICES) as at:
        assert (await at.models.count_tokens(model=MODEL, contents=HELLO)).total_tokens == 42
        for _ in range(2):
            vectors = await at.models.embed_content(model="gemini-embedding-2", contents=HELLO)
            assert vectors.embeddings is not None
            assert vectors.embeddings[0].values == [0.25] * 768
        counted, exact, guessed = await at.served(3)
        assert (counted.cost_usd, counted.priced) == (0, True)
        assert (exact.input_tokens, exact.output_tokens, exact.priced) == (8, 0, True)
        assert exact.cost_usd == pytest.approx(8 * 4 / 1e6)
        assert (guessed.output_tokens, guessed.priced, 0 < guessed.input_tokens < 60) == (0, False, True)


# -- who calls ---------------------------------------------------------------------------------------------------------


async def test_a_key_is_shown_in_googles_header_or_in_the_path(tmp_path: Path) -> None:
    async with scene(tmp_path) as at:
        bare = at.house.gateway.url
        for base, key in ((at.base, at.key), (bare, at.key), (f"{bare}/keys/{at.key}", "whatever")):
            with at.make(base=base, key=key) as client:
                answer = await client.aio.models.generate_content(model=MODEL, contents=HELLO)
                await client.aio.aclose()
            assert answer.text == HELLO
        other = at.house.gateway.credentials("other", 1)[1]
        for key, code in (("AIza-of-nobody", 401), (other, 403)):
            with at.make(key=key) as client:
                with pytest.raises(errors.ClientError, match="coordinator: ") as caught:
                    await client.aio.models.generate_content(model=MODEL, contents=HELLO)
                await client.aio.aclose()
            assert caught.value.code == code
        at.house.gateway.revoke("fix-it", 1)
        with pytest.raises(errors.ClientError, match="was revoked") as caught:
            await at.models.generate_content(model=MODEL, contents=HELLO)
        assert caught.value.status == "PERMISSION_DENIED"
        assert len(at.upstream.seen) == 3
        assert {tuple(one.header("x-goog-api-key")) for one in at.upstream.seen} == {(SECRET,)}


async def test_no_key_of_googles_is_said(tmp_path: Path) -> None:
    environment = {"ANTHROPIC_API_KEY": "k"}
    async with scene(tmp_path, environment=environment, upstreams=(), anthropic_url="http://127.0.0.1:1") as at:
        with pytest.raises(errors.ClientError, match="the coordinator has no GEMINI_API_KEY") as caught:
            await at.models.generate_content(model=MODEL, contents=HELLO)
        assert (caught.value.code, caught.value.status) == (401, "UNAUTHENTICATED")


async def test_the_environment_alone_is_enough(tmp_path: Path) -> None:
    async with Upstream(Scripted(Say(HELLO))) as upstream:
        environment = {"GOOGLE_API_KEY": SECRET, "GOOGLE_GEMINI_BASE_URL": f"{upstream.url}/prefix/"}
        async with scene(tmp_path, environment=environment, upstreams=(), anthropic_url="", openai_url="") as at:
            assert (await at.models.generate_content(model=MODEL, contents=HELLO)).text == HELLO
            (seen,) = upstream.seen
            assert seen.target == f"/prefix/v1/models/{MODEL}:generateContent"
            assert seen.header("x-goog-api-key") == [SECRET]


async def test_nobody_else_speaks_googles_protocol(tmp_path: Path) -> None:
    async with Upstream(Scripted(Say(HELLO))) as upstream:
        kinds = (UpstreamKind.ANTHROPIC, UpstreamKind.OPENAI, UpstreamKind.LLAMA_CPP, UpstreamKind.VLLM)
        ups = tuple(described(kind, upstream.url, kind.value) for kind in kinds)
        async with scene(tmp_path, upstreams=ups) as at:
            with pytest.raises(errors.ClientError, match=f"no upstream is told to answer for the model {MODEL}"):
                await at.models.generate_content(model=MODEL, contents=HELLO)
        assert upstream.seen == []


async def test_and_google_speaks_nobody_elses(tmp_path: Path) -> None:
    async with scene(tmp_path) as at:
        for path in ("/v1/messages", "/v1/chat/completions", "/v1/responses", "/v1/messages/count_tokens"):
            got = await at.house.reply(path, b'{"model":"gemini-2.5-pro","messages":[],"max_tokens":9}')
            assert got.status == 404, path
        assert at.upstream.seen == []


# -- aliases -----------------------------------------------------------------------------------------------------------


async def test_an_alias_is_one_word_in_path_and_body(tmp_path: Path) -> None:
    aliases = {"fast": MODEL, "plus+ted": MODEL}
    async with scene(tmp_path, aliases=aliases) as at:
        assert (await at.models.generate_content(model="fast", contents="say fast")).text == HELLO
        assert (await at.models.generate_content(model="plus+ted", contents="x")).text == HELLO
        assert (await at.models.generate_content(model="plussted", contents="x")).text == HELLO
        await at.models.embed_content(model="fast", contents=["a", "b"])
        targets = [one.target for one in at.upstream.seen]
        assert targets[:2] == [f"/v1/models/{MODEL}:generateContent"] * 2
        assert targets[2:] == ["/v1/models/plussted:generateContent", f"/v1/models/{MODEL}:batchEmbedContents"]
        asked = json.loads(at.upstream.seen[3].body)
        assert [one["model"] for one in asked["requests"]] == [f"models/{MODEL}"] * 2
        assert b"say fast" in at.upstream.seen[0].body
        assert [one.model for one in await at.served(4)] == [MODEL, MODEL, "plussted", MODEL]


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 499, 500, 503, 504])
async def test_errors_are_told_as_they_came(tmp_path: Path, status: int) -> None:
    refused = Refuse(status, f"said with {status}", "SOME_STATUS", {"x-goog-ext": "7"})
    async with scene(tmp_path, refused) as at:
        for stream in (False, True):
            kind = errors.ClientError if status < 500 else errors.ServerError
            ask = drained(at, f"m-{stream}") if stream else at.models.generate_content(model="m", contents=HELLO)
            with pytest.raises(kind, match=f"said with {status}") as caught:
                await ask
            assert (caught.value.code, caught.value.status) == (status, "SOME_STATUS")
            if status == 429:
                at.house.gateway._thread.post(at.house.gateway._engine.resume, "google")  # type: ignore[union-attr]
        assert {(one.ending, one.status) for one in await at.served(2)} == {("served", status)}


async def test_a_key_that_google_does_not_know_is_told_to_people(tmp_path: Path) -> None:
    details = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}]
    error = {"code": 400, "message": "API key not valid.", "status": "INVALID_ARGUMENT", "details": details}

    async def script(exchange: Exchange) -> None:
        await exchange.plain(json.dumps({"error": error}).encode(), status="400 Bad Request", more=JSON)

    async with scene(tmp_path, script=script) as at:
        with pytest.raises(errors.ClientError, match="API key not valid"):
            await at.models.generate_content(model=MODEL, contents=HELLO)
        await until(lambda: any("refuses the coordinator's key (400)" in one for one in at.house.said("noticed")))


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
async def test_an_error_that_repeats_the_key_is_passed_on_without_it(tmp_path: Path, packed: bool) -> None:
    said = f"Permission denied: Consumer 'api_key:{SECRET}' has been suspended."
    error = {"error": {"code": 403, "message": said, "status": "PERMISSION_DENIED"}}

    async def script(exchange: Exchange) -> None:
        body = json.dumps(error).encode()
        more = JSON + ("Content-Encoding: gzip\r\n" if packed else "")
        await exchange.plain(gzip.compress(body) if packed else body, status="403 Forbidden", more=more)

    async with scene(tmp_path, script=script) as at:
        with pytest.raises(errors.ClientError, match="'api_key:\\(the key\\)' has been suspended") as caught:
            await at.models.generate_content(model=MODEL, contents=HELLO)
        assert SECRET not in repr(caught.value) + repr(caught.value.details)
        await at.served(1)
        assert SECRET not in repr([one.event for one in at.house.events])


async def test_an_error_without_a_key_passes_byte_for_byte(tmp_path: Path) -> None:
    sent = gzip.compress(b'{"error": {"code": 403, "message": "no"}}')

    async def script(exchange: Exchange) -> None:
        await exchange.plain(sent, status="403 Forbidden", more=JSON + "Content-Encoding: gzip\r\n")

    async with scene(tmp_path, script=script) as at:
        got = await at.house.reply(f"/v1/models/{MODEL}:generateContent", x_api_key="", x_goog_api_key=at.key)
        assert (got.status, got.body, got.headers["content-encoding"]) == (403, sent, "gzip")


IN_A_MOMENT = Refuse(503, "The model is overloaded. Please try again later.", "UNAVAILABLE")


async def test_what_fails_before_its_first_byte_is_tried_again(tmp_path: Path) -> None:
    async with scene(tmp_path, IN_A_MOMENT, Say(HELLO), retries=1, hold_s=10.0) as at:
        assert (await at.models.generate_content(model=MODEL, contents=HELLO)).text == HELLO
        (served,) = await at.served(1)
        assert (served.tries, served.status, len(at.upstream.seen)) == (2, 200, 2)


async def test_it_goes_to_another_of_googles_kind(tmp_path: Path) -> None:
    async with Upstream(Scripted(Refuse(503, "busy", "UNAVAILABLE"))) as bad, Upstream(Scripted(Say(HELLO))) as good:
        ups = (
            described(GOOGLE, bad.url, "bad", weight=1000.0, affinity=False),
            described(GOOGLE, good.url, "good", weight=0.0),
        )
        async with scene(tmp_path, upstreams=ups, retries=1, hold_s=10.0) as at:
            assert (await at.models.generate_content(model=MODEL, contents=HELLO)).text == HELLO
            assert [(one.tries, one.upstream) for one in await at.served(1)] == [(2, "good")]
            assert (len(bad.seen), len(good.seen)) == (1, 1)


async def test_an_error_within_a_stream(tmp_path: Path) -> None:
    async with scene(tmp_path, Fails(Say(HELLO), 1, "too much of it"), retries=3, hold_s=10.0) as at:
        with pytest.raises(errors.APIError, match="too much of it") as caught:
            await drained(at, MODEL)
        assert caught.value.code == 503
        await at.served(1)
        assert len(at.upstream.seen) == 1, "a part was passed on"


async def test_a_stream_that_breaks_off_is_not_taken_for_whole(tmp_path: Path) -> None:
    async with scene(tmp_path, Fails(Say(HELLO), 1), retries=3, hold_s=10.0) as at:
        with at.make(async_client_args={}) as client:
            with pytest.raises(Exception, match=r"incomplete|not completed|peer closed|payload") as caught:
                await asyncio.to_thread(
                    lambda: list(client.models.generate_content_stream(model=MODEL, contents=HELLO))
                )
        assert not isinstance(caught.value, errors.APIError)
        assert [one.ending for one in await at.served(1)] == ["broken"]
        assert len(at.upstream.seen) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # its client lets go of a cut connection
async def test_a_stream_that_is_closed_frees_the_upstream(tmp_path: Path) -> None:
    async with scene(tmp_path, Held(Say(HELLO), 2)) as at:
        stream: Any = await at.models.generate_content_stream(model=MODEL, contents=HELLO)
        await anext(stream)
        asking = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        began = time.monotonic()
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration):
            await asking
        await stream.aclose()
        await at.client.aio.aclose()
        await asyncio.wait_for(at.upstream.seen[-1].gone.wait(), 5)
        assert time.monotonic() - began < 1.0
        assert [one.ending for one in await at.served(1)] == ["left"]


# -- limits ------------------------------------------------------------------------------------------------------------


def exhausted(quota: str, delay: str, *, more: str = "") -> bytes:
    """A 429 as the Gemini API was seen to send it (RooCode#3883, OmniRoute#9504)."""
    message = "You exceeded your current quota, please check your plan and billing details." + more
    kind = "type.googleapis.com/google.rpc."
    details: list[dict[str, Any]] = [
        {
            "@type": f"{kind}QuotaFailure",
            "violations": [
                {
                    "quotaMetric": "generativelanguage.googleapis.com/generate_content_free_tier_requests",
                    "quotaId": quota,
                    "quotaDimensions": {"location": "global", "model": MODEL},
                    "quotaValue": "20",
                }
            ],
        },
        {"@type": f"{kind}Help", "links": [{"description": "Learn more", "url": "https://ai.google.dev"}]},
    ]
    if delay:
        details.append({"@type": f"{kind}RetryInfo", "retryDelay": delay})
    error = {"code": 429, "message": message, "status": "RESOURCE_EXHAUSTED", "details": details}
    return json.dumps({"error": error}, indent=2).encode()


BY_THE_MINUTE = "GenerateRequestsPerMinutePerProjectPerModel-FreeTier"
BY_THE_DAY = "GenerateRequestsPerDayPerProjectPerModel-FreeTier"


def limited_once(body: bytes, *, packed: bool = False) -> Script:
    answers = [body]

    async def script(exchange: Exchange) -> None:
        if not answers:
            await Scripted(Say(HELLO))(exchange)
            return
        said = answers.pop()
        more = JSON + ("Content-Encoding: gzip\r\n" if packed else "")
        await exchange.plain(gzip.compress(said) if packed else said, status="429 Too Many Requests", more=more)

    return script


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
async def test_the_pause_that_google_names_is_kept_for_the_caller(tmp_path: Path, packed: bool) -> None:
    script = limited_once(exhausted(BY_THE_MINUTE, "0.6s"), packed=packed)
    async with scene(tmp_path, script=script, hold_s=20.0) as at:
        began = time.monotonic()
        assert (await at.models.generate_content(model=MODEL, contents=HELLO)).text == HELLO
        assert 0.6 <= time.monotonic() - began < 5
        (served,) = await at.served(1)
        assert (served.tries, served.status) == (2, 200)


async def test_a_quota_of_the_day_is_told_at_once_and_its_pause_is_not_believed(tmp_path: Path) -> None:
    body = exhausted(BY_THE_DAY, "1s", more="\nPlease retry in 1.2s.")
    async with scene(tmp_path, script=limited_once(body), hold_s=20.0) as at:
        with pytest.raises(errors.ClientError, match="exceeded your current quota") as caught:
            await at.models.generate_content(model=MODEL, contents=HELLO)
        assert (caught.value.code, caught.value.status) == (429, "RESOURCE_EXHAUSTED")
        assert len(at.upstream.seen) == 1
        standing = await at.house.gateway.ask(lambda engine: engine.upstreams())
        assert "a usage limit is reached" in standing[0]["held_by"]


async def test_our_own_limit_names_a_pause_that_googles_clients_read(tmp_path: Path) -> None:
    async with scene(tmp_path, script=limited_once(exhausted(BY_THE_MINUTE, "30s")), hold_s=0.0) as at:
        with pytest.raises(errors.ClientError):
            await at.models.generate_content(model=MODEL, contents=HELLO)
        with pytest.raises(errors.ClientError, match="no call goes to google for now") as caught:
            await at.models.generate_content(model=MODEL, contents=HELLO)
        assert (caught.value.code, caught.value.status) == (429, "RESOURCE_EXHAUSTED")
        assert caught.value.details["error"]["details"][0]["retryDelay"] in ("29s", "30s")
        assert len(at.upstream.seen) == 1


# -- money -------------------------------------------------------------------------------------------------------------


async def test_no_budget_left(tmp_path: Path) -> None:
    async with scene(tmp_path, prices=PRICES, total_budget_usd=1e-6) as at:
        with pytest.raises(errors.ClientError, match="coordinator: the fleet's budget") as caught:
            await at.models.generate_content(model=MODEL, contents=HELLO)
        assert (caught.value.code, caught.value.status) == (402, "FAILED_PRECONDITION")
        assert (await at.models.count_tokens(model=MODEL, contents=HELLO)).total_tokens == 42
        assert [one.ending for one in await at.served(2)] == ["budget", "served"]


async def test_what_a_request_may_generate_is_set_aside(tmp_path: Path) -> None:
    config = types.GenerateContentConfig(max_output_tokens=1000, candidate_count=2)
    async with scene(tmp_path, prices=PRICES, call_budget_usd=0.015) as at:
        with pytest.raises(errors.ClientError, match="coordinator: ") as caught:
            await at.models.generate_content(model=MODEL, contents=HELLO, config=config)
        assert caught.value.code == 402
        config.candidate_count = 1
        assert (await at.models.generate_content(model=MODEL, contents=HELLO, config=config)).text == HELLO


async def test_a_stream_that_runs_away_is_cut_with_a_word_why(tmp_path: Path) -> None:
    text = "word " * 400

    async def script(exchange: Exchange) -> None:
        await exchange.send(SSE)
        chunk = google_streamed(Say(text), 1)[0]
        with contextlib.suppress(ConnectionError):
            while not exchange.gone.is_set():
                await exchange.chunk(chunk)
                await asyncio.sleep(0.001)

    budget_usd = 0.03
    async with scene(tmp_path, script=script, prices=PRICES, total_budget_usd=budget_usd) as at:
        got: list[str] = []
        with pytest.raises(errors.APIError, match="nothing is left of the budget") as caught:
            await drained(at, MODEL, got)
        assert caught.value.code == 402
        assert len(got) > 1
        (served,) = await at.served(1)
        assert served.ending == "budget"
        assert served.cost_usd <= budget_usd * 1.01
        await asyncio.wait_for(at.upstream.seen[-1].gone.wait(), 5)
