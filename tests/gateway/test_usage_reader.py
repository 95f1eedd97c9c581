from __future__ import annotations

import json
import random
import subprocess
import sys
import time
import zlib
from functools import partial
from typing import TYPE_CHECKING, Any

import anthropic.types
import brotli
import httpx2
import openai
import openai.types.responses
import pytest
from anthropic.types import RawMessageStreamEvent
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response
from pydantic import TypeAdapter

from coordinator.domain.usage import TokenUsage
from coordinator.gateway.answer_facts import AnswerError
from coordinator.gateway.dialect import Dialect
from coordinator.gateway.usage_reader import (
    BATCH_BYTES,
    LINE_BYTES,
    WHOLE_BYTES,
    UsageReader,
    usage_reader,
)

if TYPE_CHECKING:
    from collections.abc import Callable

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SSE = b"text/event-stream; charset=utf-8"
JSON = b"application/json"
Event = dict[str, Any]

# -- what upstreams send, after their public documentation --------------------------------------------------------------------

ANTHROPIC_USAGE: Event = {
    "input_tokens": 25,
    "cache_creation_input_tokens": 100,
    "cache_read_input_tokens": 1000,
    "cache_creation": {"ephemeral_5m_input_tokens": 60, "ephemeral_1h_input_tokens": 40},
    "output_tokens": 1,
    "service_tier": "standard",
}
MESSAGE: Event = {
    "id": "msg_01",
    "type": "message",
    "role": "assistant",
    "model": "claude-opus-5-5",
    "content": [],
    "stop_reason": None,
    "stop_sequence": None,
    "usage": ANTHROPIC_USAGE,
}


def anthropic_events(texts: list[str]) -> list[Event]:
    return [
        {"type": "message_start", "message": MESSAGE},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
        *({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}} for text in texts),
        {"type": "content_block_stop", "index": 0},
        {
            "type": "content_block_start",
            "index": 1,
            "content_block": {"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {}},
        },
        {
            "type": "content_block_delta",
            "index": 1,
            "delta": {"type": "input_json_delta", "partial_json": '{"error": "message_stop"}'},
        },
        {"type": "content_block_stop", "index": 1},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "tool_use", "stop_sequence": None},
            "usage": {"output_tokens": 55, "output_tokens_details": {"thinking_tokens": 11}},
        },
        {"type": "message_stop"},
    ]


CHUNK: Event = {
    "id": "chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG",
    "object": "chat.completion.chunk",
    "created": 1741570283,
    "model": "gpt-4o-2024-08-06",
    "service_tier": "default",
    "system_fingerprint": "fp_50cad350e4",
}
CHAT_USAGE: Event = {
    "prompt_tokens": 100,
    "completion_tokens": 50,
    "total_tokens": 150,
    "prompt_tokens_details": {"cached_tokens": 64, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 10, "audio_tokens": 0},
}


def chat_chunk(delta: Event, finish: str | None = None) -> Event:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return {**CHUNK, "choices": [choice], "usage": None}


def chat_events(texts: list[str], *, usage: bool = True) -> list[Event]:
    return [
        chat_chunk({"role": "assistant", "content": "", "refusal": None}),
        *(chat_chunk({"content": text}) for text in texts),
        chat_chunk({}, "stop"),
        *([{**CHUNK, "choices": [], "usage": CHAT_USAGE}] if usage else []),
    ]


def tool_events() -> list[Event]:
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "bash", "arguments": ""}}
    pieces = ['{"', "command", '":"', "ls {a,b", '}"', "}"]
    return [
        chat_chunk({"role": "assistant", "content": None, "tool_calls": [call]}),
        *(chat_chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}) for piece in pieces),
        chat_chunk({}, "tool_calls"),
    ]


RESPONSE: Event = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1741476777,
    "status": "in_progress",
    "error": None,
    "incomplete_details": None,
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "model": "gpt-5-codex",
    "output": [],
    "parallel_tool_calls": True,
    "temperature": 1.0,
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "usage": None,
}
RESPONSE_USAGE: Event = {
    "input_tokens": 328,
    "input_tokens_details": {
        "cached_tokens": 200,
        "cache_write_tokens": 30,
        "cache_write_tokens_details": {"ttl_30m_tokens": 20, "ttl_12h_tokens": 10},
    },
    "output_tokens": 52,
    "output_tokens_details": {"reasoning_tokens": 20},
    "total_tokens": 380,
}
SHELL_CALL: Event = {
    "id": "fc_1",
    "type": "function_call",
    "status": "completed",
    "arguments": '{"cmd":"ls"}',
    "call_id": "call_1",
    "name": "exec_command",
}


def responses_events(texts: list[str]) -> list[Event]:
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    events: list[Event] = [
        {"type": "response.created", "response": RESPONSE},
        {"type": "response.in_progress", "response": RESPONSE},
        {"type": "response.output_item.added", "output_index": 0, "item": {**SHELL_CALL, "status": "in_progress"}},
        *({"type": "response.output_text.delta", **place, "delta": text, "logprobs": []} for text in texts),
        {"type": "response.output_item.done", "output_index": 0, "item": SHELL_CALL},
        {
            "type": "response.completed",
            "response": {**RESPONSE, "status": "completed", "output": [SHELL_CALL], "usage": RESPONSE_USAGE},
        },
    ]
    return [{**event, "sequence_number": number} for number, event in enumerate(events)]


def google_events(texts: list[str]) -> list[Event]:
    last = {"text": ".", "thoughtSignature": "CiQB"}
    return [
        *(
            {
                "candidates": [{"content": {"parts": [{"text": text}], "role": "model"}, "index": 0}],
                "usageMetadata": {"promptTokenCount": 10, "totalTokenCount": 10},
                "modelVersion": "gemini-2.5-pro",
                "responseId": "r",
            }
            for text in texts
        ),
        {
            "candidates": [
                {"content": {"parts": [last], "role": "model"}, "finishReason": "STOP", "index": 0},
            ],
            "usageMetadata": {
                "promptTokenCount": 10,
                "cachedContentTokenCount": 4,
                "toolUsePromptTokenCount": 3,
                "candidatesTokenCount": 50,
                "thoughtsTokenCount": 7,
                "totalTokenCount": 70,
            },
            "modelVersion": "gemini-2.5-pro",
        },
    ]


def sse(events: list[Event], *, end: bytes = b"\n", spaced: bool = False) -> list[bytes]:
    """One piece per event, as servers send them."""
    separators = (", ", ": ") if spaced else (",", ":")
    pieces = []
    for event in events:
        name = b"event: " + event["type"].encode() + end if "type" in event else b""
        data = json.dumps(event, separators=separators, ensure_ascii=spaced).encode()
        pieces.append(name + b"data: " + data + end + end)
    return pieces


DONE = [b"data: [DONE]\n\n"]
WORDS = ["Hello", " wörld", " 狐🦊", ' "quoted"\n', ' data: {"error"', " [DONE]", " \\", '"message_stop"']
STREAMS: dict[Dialect, list[bytes]] = {
    Dialect.ANTHROPIC_MESSAGES: sse(anthropic_events(WORDS)),
    Dialect.GOOGLE_GENERATE: sse(google_events(WORDS)),
    Dialect.OPENAI_CHAT: sse(chat_events(WORDS)) + DONE,
    Dialect.OPENAI_RESPONSES: sse(responses_events(WORDS)),
}
USAGES: dict[Dialect, TokenUsage] = {
    Dialect.ANTHROPIC_MESSAGES: TokenUsage(
        cache_read_tokens=1000,
        cache_write_1h_tokens=40,
        cache_write_tokens=60,
        input_tokens=25,
        output_tokens=55,
        reasoning_tokens=11,
    ),
    Dialect.GOOGLE_GENERATE: TokenUsage(cache_read_tokens=4, input_tokens=9, output_tokens=57, reasoning_tokens=7),
    Dialect.OPENAI_CHAT: TokenUsage(cache_read_tokens=64, input_tokens=36, output_tokens=50, reasoning_tokens=10),
    Dialect.OPENAI_RESPONSES: TokenUsage(
        cache_read_tokens=200,
        cache_write_1h_tokens=10,
        cache_write_tokens=20,
        input_tokens=98,
        output_tokens=52,
        reasoning_tokens=20,
    ),
}
MODELS = {
    Dialect.ANTHROPIC_MESSAGES: "claude-opus-5-5",
    Dialect.GOOGLE_GENERATE: "gemini-2.5-pro",
    Dialect.OPENAI_CHAT: "gpt-4o-2024-08-06",
    Dialect.OPENAI_RESPONSES: "gpt-5-codex",
}
DIALECTS = [*STREAMS]


def new(dialect: Dialect, content_type: bytes = SSE, encoding: bytes = b"") -> UsageReader:
    return usage_reader(dialect, content_type=content_type, content_encoding=encoding)


def read(dialect: Dialect, pieces: list[bytes], content_type: bytes = SSE, encoding: bytes = b"") -> UsageReader:
    reader = new(dialect, content_type, encoding)
    for piece in pieces:
        reader.feed(piece)
    reader.end()
    return reader


def found(reader: UsageReader) -> tuple[object, ...]:
    """Everything but the estimate."""
    usage = None if reader.estimated else reader.usage
    return (
        usage,
        reader.model,
        reader.block_ended,
        reader.error,
        reader.finished,
        reader.first_token,
        reader.unreadable,
        reader.output_bytes,
    )


# -- the fixtures are what the libraries take for real ----------------------------------------------------------------------


def test_the_streams_are_what_anthropics_library_reads() -> None:
    kind: Any = RawMessageStreamEvent
    for event in anthropic_events(WORDS):
        if event["type"] != "ping":
            TypeAdapter(kind).validate_python(event)
    client = anthropic.Anthropic(api_key="x")
    answer = httpx2.Response(
        200,
        content=b"".join(STREAMS[Dialect.ANTHROPIC_MESSAGES]),
        request=httpx2.Request("POST", "http://127.0.0.1:1/"),
    )
    events: list[Any] = list(anthropic.Stream(cast_to=kind, response=answer, client=client))
    assert events[-2].usage.output_tokens == 55


def test_the_streams_are_what_openais_library_reads() -> None:
    for event in chat_events(WORDS) + tool_events():
        ChatCompletionChunk.model_validate(event)
    for event in responses_events(WORDS):
        name = event["type"].replace("output_text", "text").replace("_", " ").replace(".", " ").title().replace(" ", "")
        getattr(openai.types.responses, f"{name}Event").model_validate(event)


# -- streams ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_stream_tells_what_it_used(dialect: Dialect) -> None:
    reader = read(dialect, STREAMS[dialect])
    assert reader.usage == USAGES[dialect]
    assert found(reader)[1:7] == (MODELS[dialect], True, None, True, True, False)
    assert reader.output_bytes == sum(map(len, STREAMS[dialect]))
    assert not reader.estimated


@pytest.mark.parametrize("spaced", [False, True])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_other_spellings_mean_the_same(dialect: Dialect, end: bytes, spaced: bool) -> None:
    events = {
        Dialect.ANTHROPIC_MESSAGES: anthropic_events,
        Dialect.GOOGLE_GENERATE: google_events,
        Dialect.OPENAI_CHAT: chat_events,
        Dialect.OPENAI_RESPONSES: responses_events,
    }[dialect](WORDS)
    pieces = sse(events, end=end, spaced=spaced)
    if dialect is Dialect.OPENAI_CHAT:
        pieces.append(b"data:[DONE]" + end + end)
    reader = read(dialect, [b": comment" + end + end, *pieces])
    assert found(reader)[:6] == (USAGES[dialect], MODELS[dialect], True, None, True, True)
    reader = new(dialect)
    assert reader.between_events
    for piece in pieces:
        between = []
        for part in (piece[:-1], piece[-1:]):
            reader.feed(part)
            between.append(reader.between_events)
        assert between == [False, True]


@given(st.sampled_from(DIALECTS), st.integers(0, 2**32), st.integers(1, 400))
def test_how_the_bytes_were_cut_makes_no_difference(dialect: Dialect, seed: int, longest: int) -> None:
    data = b"".join(STREAMS[dialect])
    assert found(read(dialect, cut(data, seed, longest))) == found(read(dialect, [data]))


def cut(data: bytes, seed: int, longest: int) -> list[bytes]:
    chance = random.Random(seed)
    pieces = []
    while data:
        size = chance.randint(0, longest)
        pieces.append(data[:size])
        data = data[size:]
    return pieces


@pytest.mark.parametrize("dialect", DIALECTS)
def test_byte_by_byte_and_asked_at_every_byte(dialect: Dialect) -> None:
    data = b"".join(STREAMS[dialect])
    reader = new(dialect)
    before = (False, False, False)
    for index in range(len(data)):
        reader.feed(data[index : index + 1])
        now = (reader.first_token, reader.block_ended, reader.finished)
        assert all(new_one >= old for old, new_one in zip(before, now, strict=True))
        before = now
    reader.end()
    assert found(reader) == found(read(dialect, [data]))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_last_line_may_have_no_end(dialect: Dialect) -> None:
    data = b"".join(STREAMS[dialect]).rstrip()
    assert found(read(dialect, [data]))[:6] == (USAGES[dialect], MODELS[dialect], True, None, True, True)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_long_stream_is_not_kept(dialect: Dialect) -> None:
    pieces = STREAMS[dialect]
    middle = pieces[4] if dialect is not Dialect.GOOGLE_GENERATE else pieces[0]
    reader = new(dialect)
    for piece in [*pieces[:5], *[middle] * 5000]:
        reader.feed(piece)
        assert sum(map(len, reader._kept)) < BATCH_BYTES
    for piece in pieces[5:]:
        reader.feed(piece)
    reader.end()
    assert found(reader)[:6] == (USAGES[dialect], MODELS[dialect], True, None, True, True)


@pytest.mark.parametrize(
    ("dialect", "first"),
    [
        (Dialect.ANTHROPIC_MESSAGES, 3),
        (Dialect.GOOGLE_GENERATE, 0),
        (Dialect.OPENAI_CHAT, 1),
        (Dialect.OPENAI_RESPONSES, 3),
    ],
)
def test_the_first_token_is_seen_when_it_comes(dialect: Dialect, first: int) -> None:
    reader = new(dialect)
    for index, piece in enumerate(STREAMS[dialect]):
        reader.feed(piece)
        assert reader.first_token is (index >= first)


@pytest.mark.parametrize(
    ("dialect", "events", "ended"),
    [
        (Dialect.ANTHROPIC_MESSAGES, anthropic_events(WORDS), 3 + len(WORDS)),
        (Dialect.OPENAI_CHAT, chat_events(WORDS), 1 + len(WORDS)),
        (Dialect.OPENAI_CHAT, tool_events(), 6),
        (Dialect.OPENAI_RESPONSES, responses_events(WORDS), 3 + len(WORDS)),
        (Dialect.GOOGLE_GENERATE, google_events(WORDS), len(WORDS)),
        (
            Dialect.GOOGLE_GENERATE,
            [
                {"candidates": [{"content": {"parts": [{"text": "so"}]}}]},
                {"candidates": [{"content": {"parts": [{"functionCall": {"name": "ls", "args": {}}}]}}]},
                {"candidates": [{"content": {"parts": [{"text": ""}]}}]},
            ],
            1,
        ),
    ],
)
def test_a_block_has_ended_when_a_client_may_act_on_it(dialect: Dialect, events: list[Event], ended: int) -> None:
    for asked in range(len(events)):
        reader = new(dialect)
        for piece in sse(events[: asked + 1]):
            reader.feed(piece)
        assert reader.block_ended is (asked >= ended), asked


def test_a_tool_call_is_complete_for_a_client_that_does_not_wait() -> None:
    """Arguments that are JSON already are acted on before the last chunk."""
    for text in ("}", "} ", "}\n"):
        call = {"index": 0, "id": "c", "function": {"name": "ls", "arguments": '{"a":{}' + text}}
        assert read(Dialect.OPENAI_CHAT, sse([chat_chunk({"tool_calls": [call]})])).block_ended
    assert not read(Dialect.OPENAI_CHAT, sse([chat_chunk({"content": '{"tool_calls":[]}'})])).block_ended


def test_a_block_far_back_is_remembered() -> None:
    pieces = sse(anthropic_events(["a"]))
    reader = new(Dialect.ANTHROPIC_MESSAGES)
    for piece in pieces[:6] + [pieces[3]] * 1000:
        reader.feed(piece)
    assert reader.block_ended
    assert not reader.finished


# -- usage in its variants ---------------------------------------------------------------------------------------------------


def anthropic_with(start: Event, delta: Event) -> TokenUsage:
    events = anthropic_events(["a"])
    events[0] = {"type": "message_start", "message": {**MESSAGE, "usage": start}}
    events[-2] = {**events[-2], "usage": delta}
    return read(Dialect.ANTHROPIC_MESSAGES, sse(events)).usage


def test_what_is_said_last_stands() -> None:
    """Claude Code accepts a full usage at the end; some servers know the input only then."""
    full = {"input_tokens": 7, "cache_read_input_tokens": 8, "cache_creation_input_tokens": 9, "output_tokens": 10}
    expected = TokenUsage(input_tokens=7, cache_read_tokens=8, cache_write_tokens=9, output_tokens=10)
    assert anthropic_with({"input_tokens": 0, "output_tokens": 0}, full) == expected
    partly = anthropic_with(ANTHROPIC_USAGE, {"output_tokens": 5, "input_tokens": None})
    assert (partly.input_tokens, partly.cache_read_tokens, partly.output_tokens) == (25, 1000, 5)


def test_a_compaction_on_the_server_is_counted_too() -> None:
    entry = {"input_tokens": 3, "output_tokens": 4, "cache_read_input_tokens": 5, "cache_creation_input_tokens": 6}
    iterations = [{"type": "compaction", **entry}, {"type": "message", **entry}, 7, {"type": "compaction", **entry}]
    usage = anthropic_with({"input_tokens": 1, "output_tokens": 0}, {"output_tokens": 2, "iterations": iterations})
    assert usage == TokenUsage(input_tokens=7, output_tokens=10, cache_read_tokens=10, cache_write_tokens=12)


ODD_COUNTS = [-1, -(10**30), 10**10, 10**40, "12", 1.5, True, None, [], {}]


@pytest.mark.parametrize("odd", ODD_COUNTS)
def test_what_cannot_be_a_count_is_not_believed(odd: object) -> None:
    usage = anthropic_with(ANTHROPIC_USAGE, {"output_tokens": 9, "input_tokens": odd})
    assert (usage.input_tokens, usage.output_tokens) == (25, 9)
    usage = anthropic_with({"input_tokens": odd, "cache_read_input_tokens": odd}, {"output_tokens": odd})
    assert usage.input_tokens == usage.cache_read_tokens == 0
    odd_usage = {"prompt_tokens": odd, "completion_tokens": 5, "prompt_tokens_details": odd}
    chat = read(
        Dialect.OPENAI_CHAT, sse([*chat_events(["a"], usage=False), {"choices": [], "usage": odd_usage}]) + DONE
    )
    assert chat.usage.input_tokens == 0
    google = google_events(["a"])
    google[-1]["usageMetadata"] = {"promptTokenCount": 5, "candidatesTokenCount": odd, "thoughtsTokenCount": odd}
    assert read(Dialect.GOOGLE_GENERATE, sse(google)).usage == TokenUsage(input_tokens=5)


def test_classes_never_add_up_to_more_than_there_is() -> None:
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 9},
        "completion_tokens_details": {"reasoning_tokens": 50},
    }
    told = read(Dialect.OPENAI_CHAT, sse([{"choices": [], "usage": usage}]) + DONE).usage
    assert told == TokenUsage(cache_read_tokens=8, cache_write_tokens=2, output_tokens=5, reasoning_tokens=5)
    usage = {"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 1}}
    assert read(Dialect.OPENAI_CHAT, [json.dumps({"usage": usage}).encode()], JSON).usage == TokenUsage(
        cache_read_tokens=3
    )
    google = {"usageMetadata": {"promptTokenCount": 3, "cachedContentTokenCount": 8}}
    assert read(Dialect.GOOGLE_GENERATE, [json.dumps(google).encode()], JSON).usage.input_tokens == 0


def test_of_two_counts_of_one_name_the_last_stands() -> None:
    data = b'data: {"type":"message_delta","usage":{"output_tokens":1,"output_tokens":9}}\n\n'
    assert read(Dialect.ANTHROPIC_MESSAGES, [data]).usage.output_tokens == 9


def test_usage_in_every_chunk_is_not_added_up() -> None:
    """vLLM's ``continuous_usage_stats``."""
    events = [
        {**chat_chunk({"content": "a"}), "usage": {"prompt_tokens": 5, "completion_tokens": count}}
        for count in range(1, 40)
    ]
    reader = read(Dialect.OPENAI_CHAT, [*sse(events), *sse([chat_chunk({}, "stop")]), *DONE])
    assert reader.usage == TokenUsage(input_tokens=5, output_tokens=39)


# -- estimates ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_is_not_told_is_estimated(dialect: Dialect) -> None:
    """400 texts of three tokens or so; the upstream breaks off before it says what they were."""
    make: dict[Dialect, Callable[[list[str]], list[bytes]]] = {
        Dialect.ANTHROPIC_MESSAGES: lambda texts: sse(anthropic_events(texts))[:-6],
        Dialect.GOOGLE_GENERATE: lambda texts: sse(google_events(texts))[:-1],
        Dialect.OPENAI_CHAT: lambda texts: sse(chat_events(texts))[:-2],
        Dialect.OPENAI_RESPONSES: lambda texts: sse(responses_events(texts))[:-2],
    }
    reader = read(dialect, make[dialect](["twelve signs"] * 400))
    assert reader.estimated
    assert not reader.finished
    assert 800 <= reader.usage.output_tokens <= 1800
    assert reader.usage.output_tokens == reader.tokens_so_far
    assert reader.usage.input_tokens == (25 if dialect is Dialect.ANTHROPIC_MESSAGES else reader.usage.input_tokens)


def test_a_chat_stream_without_usage_is_estimated() -> None:
    reader = read(Dialect.OPENAI_CHAT, sse(chat_events([" a"] * 60, usage=False)) + DONE)
    assert reader.finished
    assert reader.estimated
    assert 40 <= reader.usage.output_tokens <= 90


def test_a_stream_that_runs_away_is_noticed_on_its_way() -> None:
    reader = new(Dialect.OPENAI_CHAT)
    piece = sse([chat_chunk({"content": " word"})])[0]
    for count in range(1, 3001):
        reader.feed(piece)
        if count % 1000 == 0:
            assert 0.7 * count <= reader.tokens_so_far <= 1.5 * count


def test_nothing_that_was_never_generated_is_estimated() -> None:
    assert not read(Dialect.OPENAI_CHAT, []).estimated
    refused = read(Dialect.OPENAI_CHAT, [b'{"error":{"message":"no","code":"x"}}'], JSON)
    assert not refused.estimated
    assert refused.usage == TokenUsage()
    at_once = read(Dialect.ANTHROPIC_MESSAGES, sse([{"type": "error", "error": {"type": "overloaded_error"}}]))
    assert not at_once.estimated


# -- errors and ends -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dialect", "data", "kind", "message"),
    [
        (
            Dialect.ANTHROPIC_MESSAGES,
            b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}\n\n',
            "overloaded_error",
            "Overloaded",
        ),
        (Dialect.ANTHROPIC_MESSAGES, b'data: {"type":"error"}\n\n', "error", "error"),
        (
            Dialect.OPENAI_CHAT,
            b'data: {"error":{"message":"boom","type":"server_error","param":null,"code":null}}\n\ndata: [DONE]\n\n',
            "server_error",
            "boom",
        ),
        (Dialect.OPENAI_CHAT, b'data: {"error": "plain words"}\n\n', "error", "plain words"),
        (
            Dialect.OPENAI_CHAT,
            b'data: {"error":{"message":"bad","type":"BadRequestError","code":400}}\n\n',
            "BadRequestError",
            "bad",
        ),
        (
            Dialect.OPENAI_RESPONSES,
            b'event: error\ndata: {"type":"error","code":"rate_limit_exceeded","message":"slow","sequence_number":1}\n\n',
            "rate_limit_exceeded",
            "slow",
        ),
        (
            Dialect.OPENAI_RESPONSES,
            b'data: {"type":"response.failed","response":{"error":{"code":"server_error","message":"oh"},"usage":null}}\n\n',
            "server_error",
            "oh",
        ),
        (
            Dialect.GOOGLE_GENERATE,
            b'data: {"error":{"code":503,"message":"busy","status":"UNAVAILABLE"}}\n\n',
            "UNAVAILABLE",
            "busy",
        ),
        (
            Dialect.GOOGLE_GENERATE,
            b'{\n  "error": {\n    "code": 429,\n    "message": "quota",\n    "status": "RESOURCE_EXHAUSTED"\n  }\n}\n',
            "RESOURCE_EXHAUSTED",
            "quota",
        ),
    ],
)
def test_an_error_in_mid_stream_is_seen(dialect: Dialect, data: bytes, kind: str, message: str) -> None:
    for pieces in ([*STREAMS[dialect][:5], data], [*STREAMS[dialect][:5], *cut(data, 1, 9)], [data]):
        reader = read(dialect, pieces)
        assert reader.error == AnswerError(kind=kind, message=message)
        assert not reader.finished or dialect is Dialect.OPENAI_CHAT


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_stream_that_breaks_off_is_not_finished(dialect: Dialect) -> None:
    pieces = STREAMS[dialect]
    last = -2 if dialect is Dialect.OPENAI_CHAT else -1
    if dialect is Dialect.OPENAI_CHAT:
        pieces = [*pieces[:-3], *pieces[-2:]]  # without its finish_reason
    for stop in range(len(pieces) + last):
        assert not read(dialect, pieces[: stop + 1]).finished, stop


def test_ends_of_other_kinds() -> None:
    without_done = read(Dialect.OPENAI_CHAT, sse(chat_events(["a"])))
    assert without_done.finished
    incomplete = {"type": "response.incomplete", "response": {**RESPONSE, "usage": RESPONSE_USAGE}}
    assert read(Dialect.OPENAI_RESPONSES, sse([incomplete])).finished
    blocked = {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 4}}
    reader = read(Dialect.GOOGLE_GENERATE, sse([blocked]))
    assert (reader.finished, reader.estimated, reader.usage) == (True, False, TokenUsage(input_tokens=4))


def test_a_long_message_is_shortened() -> None:
    data = json.dumps({"error": {"message": "x" * 10_000, "code": "y" * 10_000}}).encode()
    error = read(Dialect.OPENAI_CHAT, [data], JSON).error
    assert error is not None
    assert (len(error.message), len(error.kind)) == (600, 100)


# -- whole answers ------------------------------------------------------------------------------------------------------------------

WHOLE: dict[Dialect, Event] = {
    Dialect.ANTHROPIC_MESSAGES: {
        **MESSAGE,
        "content": [{"type": "text", "text": "hi", "citations": None}],
        "stop_reason": "end_turn",
        "usage": {**ANTHROPIC_USAGE, "output_tokens": 55, "output_tokens_details": {"thinking_tokens": 11}},
    },
    Dialect.GOOGLE_GENERATE: google_events([])[0],
    Dialect.OPENAI_CHAT: {
        **CHUNK,
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "hi", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": CHAT_USAGE,
    },
    Dialect.OPENAI_RESPONSES: {**RESPONSE, "status": "completed", "output": [SHELL_CALL], "usage": RESPONSE_USAGE},
}


def test_the_answers_are_what_the_libraries_read() -> None:
    anthropic.types.Message.model_validate(WHOLE[Dialect.ANTHROPIC_MESSAGES])
    ChatCompletion.model_validate(WHOLE[Dialect.OPENAI_CHAT])
    Response.model_validate(WHOLE[Dialect.OPENAI_RESPONSES])


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_whole_answer_tells_what_it_used(dialect: Dialect) -> None:
    body = json.dumps(WHOLE[dialect], indent=1).encode()
    reader = read(dialect, cut(body, 3, 40), JSON)
    assert found(reader)[:7] == (USAGES[dialect], MODELS[dialect], True, None, True, True, False)
    broken = read(dialect, [body[:-5]], JSON)
    assert (broken.finished, broken.estimated) == (False, True)


def test_a_google_stream_may_be_a_list() -> None:
    body = json.dumps(google_events(["a", "b"]), indent=1).encode()
    reader = read(Dialect.GOOGLE_GENERATE, cut(body, 3, 40), b"application/json; charset=UTF-8")
    assert found(reader)[:5] == (USAGES[Dialect.GOOGLE_GENERATE], "gemini-2.5-pro", True, None, True)
    failed = [*google_events(["a"])[:1], {"error": {"code": 500, "message": "oh", "status": "INTERNAL"}}]
    assert read(Dialect.GOOGLE_GENERATE, [json.dumps(failed).encode()], JSON).error == AnswerError(
        kind="INTERNAL", message="oh"
    )


def test_embeddings_have_input_only() -> None:
    body = {"object": "list", "model": "e", "data": [], "usage": {"prompt_tokens": 8, "total_tokens": 8}}
    reader = read(Dialect.OPENAI_EMBEDDINGS, [json.dumps(body).encode()], JSON)
    assert (reader.usage, reader.estimated, reader.model) == (TokenUsage(input_tokens=8), False, "e")
    vectors = {"embeddings": [{"values": [0.125] * 768}]}
    for told, usage in (({"usageMetadata": {"promptTokenCount": 8}}, TokenUsage(input_tokens=8)), ({}, TokenUsage())):
        reader = read(Dialect.GOOGLE_EMBEDDINGS, [json.dumps({**vectors, **told}).encode()], JSON)
        assert (reader.usage, reader.estimated, reader.finished) == (usage, not told, True)


@pytest.mark.parametrize(
    "dialect", [Dialect.ANTHROPIC_COUNT, Dialect.MODELS, Dialect.GOOGLE_MODELS, Dialect.GOOGLE_COUNT]
)
def test_counts_and_lists_use_nothing(dialect: Dialect) -> None:
    reader = read(dialect, [b'{"input_tokens": 2095, "totalTokens": 31}'], JSON)
    assert (reader.usage, reader.estimated, reader.finished) == (TokenUsage(), False, True)


# -- compressed ------------------------------------------------------------------------------------------------------------------


def squeeze(pieces: list[bytes], wbits: int) -> list[bytes]:
    """As servers do: what is there goes out at once."""
    stream = zlib.compressobj(6, zlib.DEFLATED, wbits)
    return [*(stream.compress(piece) + stream.flush(zlib.Z_SYNC_FLUSH) for piece in pieces), stream.flush()]


def brotlied(pieces: list[bytes]) -> list[bytes]:
    stream = brotli.Compressor(quality=4)
    return [*(stream.process(piece) + stream.flush() for piece in pieces), stream.finish()]


def zstandard(pieces: list[bytes]) -> list[bytes]:
    stream = zstd.ZstdCompressor()
    return [*(stream.compress(piece, stream.FLUSH_BLOCK) for piece in pieces), stream.flush()]


PACKERS: list[tuple[bytes, Callable[[list[bytes]], list[bytes]]]] = [
    (b"gzip", partial(squeeze, wbits=31)),
    (b" GZip ", partial(squeeze, wbits=31)),
    (b"x-gzip", partial(squeeze, wbits=31)),
    (b"deflate", partial(squeeze, wbits=15)),
    (b"deflate", partial(squeeze, wbits=-15)),
    (b"br", brotlied),
    (b" BR", brotlied),
    (b"zstd", zstandard),
]


@pytest.mark.parametrize(("encoding", "pack"), PACKERS)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_compressed_answer_is_read(
    dialect: Dialect, encoding: bytes, pack: Callable[[list[bytes]], list[bytes]]
) -> None:
    plain = read(dialect, STREAMS[dialect])
    data = b"".join(pack(STREAMS[dialect]))
    for pieces in (pack(STREAMS[dialect]), [data], cut(data, 5, 3)):
        assert found(read(dialect, pieces, SSE, encoding))[:-1] == found(plain)[:-1]
    body = json.dumps(WHOLE[dialect]).encode()
    assert read(dialect, pack([body]), JSON, encoding).usage == USAGES[dialect]
    reader = new(dialect, SSE, encoding)
    reader.feed(pack(STREAMS[dialect])[0])
    assert not reader.between_events  # nothing of ours fits in there


@pytest.mark.parametrize(("encoding", "pack"), PACKERS)
def test_a_compressed_stream_is_read_while_it_comes(
    encoding: bytes, pack: Callable[[list[bytes]], list[bytes]]
) -> None:
    reader, plain = new(Dialect.ANTHROPIC_MESSAGES, SSE, encoding), new(Dialect.ANTHROPIC_MESSAGES)
    tokens = []
    pieces = STREAMS[Dialect.ANTHROPIC_MESSAGES]
    for packed, piece in zip(pack(pieces), pieces, strict=False):
        reader.feed(packed)
        plain.feed(piece)
        assert reader.first_token == plain.first_token
        assert reader.block_ended == plain.block_ended
        tokens.append(reader.tokens_so_far)
        assert tokens[-1] == plain.tokens_so_far
    assert tokens == sorted(tokens)
    assert tokens[-1] > 0


@pytest.mark.parametrize(("encoding", "pack"), PACKERS)
@pytest.mark.parametrize("content_type", [SSE, JSON])
def test_what_comes_after_a_packed_stream_is_no_answer(
    content_type: bytes, encoding: bytes, pack: Callable[[list[bytes]], list[bytes]]
) -> None:
    body = json.dumps(WHOLE[Dialect.ANTHROPIC_MESSAGES]).encode()
    whole = b"".join(pack([body] if content_type == JSON else STREAMS[Dialect.ANTHROPIC_MESSAGES]))
    for pieces in ([whole + b"more"], [whole, b"more"], [whole, b"more", b"again"]):
        assert read(Dialect.ANTHROPIC_MESSAGES, pieces, content_type, encoding).unreadable
    assert not read(Dialect.ANTHROPIC_MESSAGES, [whole, b"", b""], content_type, encoding).unreadable


@pytest.mark.parametrize("encoding", [b"gzip, br", b"zstd, gzip", b"compress", b"dcb"])
@pytest.mark.parametrize("content_type", [SSE, JSON])
def test_what_cannot_be_read_says_so(encoding: bytes, content_type: bytes) -> None:
    reader = new(Dialect.ANTHROPIC_MESSAGES, content_type, encoding)
    for _ in range(2000):
        reader.feed(b"x" * 100)
        assert len(reader._kept) <= 200
    reader.end()
    assert (reader.unreadable, reader.estimated, reader.finished) == (True, True, False)
    assert reader.usage == TokenUsage(output_tokens=50_000)


def test_plain_is_plain() -> None:
    assert not read(Dialect.OPENAI_CHAT, STREAMS[Dialect.OPENAI_CHAT], SSE, b"identity").unreadable


ZEROS = [b"\0" * 2**20] * 256
BOMBS: dict[bytes, bytes] = {
    b"br": b"".join(brotlied(ZEROS)),
    b"gzip": b"".join(squeeze(ZEROS, 31)),
    b"zstd": b"".join(zstandard(ZEROS)),
}


@pytest.mark.parametrize("encoding", BOMBS)
@pytest.mark.parametrize("content_type", [SSE, JSON])
def test_a_bomb_does_not_go_off(content_type: bytes, encoding: bytes) -> None:
    """256 MB of zeros in some KB. What a library holds outside of Python is seen by the system alone."""
    bomb = BOMBS[encoding]
    program = (
        "import resource, sys\n"
        "from coordinator.gateway.dialect import Dialect\n"
        "from coordinator.gateway.usage_reader import usage_reader\n"
        "bomb = sys.stdin.buffer.read()\n"
        f"kind, coding = {content_type!r}, {encoding!r}\n"
        "usage_reader(Dialect.OPENAI_CHAT, content_type=kind, content_encoding=coding).feed(b'')\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "reader = usage_reader(Dialect.OPENAI_CHAT, content_type=kind, content_encoding=coding)\n"
        "for _ in range(2):\n    reader.feed(bomb)\n"
        "reader.end()\n"
        "print(reader.unreadable, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], input=bomb, capture_output=True, check=True)
    unreadable, grown = done.stdout.decode().split()
    assert unreadable == "True"
    assert int(grown) < 48 * 1024 * (1024 if sys.platform == "darwin" else 1)


def test_a_window_that_no_answer_needs_is_not_made() -> None:
    """128 MiB of it, for one byte of input, is what the head of a frame may ask for."""
    options = {zstd.CompressionParameter.window_log: 27, zstd.CompressionParameter.content_size_flag: 0}
    stream = zstd.ZstdCompressor(options=options)
    body = b"".join(
        (stream.compress(json.dumps(WHOLE[Dialect.OPENAI_CHAT]).encode(), stream.FLUSH_BLOCK), stream.flush())
    )
    assert read(Dialect.OPENAI_CHAT, [body], JSON, b"zstd").unreadable
    options[zstd.CompressionParameter.window_log] = 23
    stream = zstd.ZstdCompressor(options=options)
    body = b"".join(
        (stream.compress(json.dumps(WHOLE[Dialect.OPENAI_CHAT]).encode(), stream.FLUSH_BLOCK), stream.flush())
    )
    assert not read(Dialect.OPENAI_CHAT, [body], JSON, b"zstd").unreadable


@pytest.mark.parametrize(("encoding", "pack"), [one for one in PACKERS if one[0] in BOMBS])
def test_a_broken_stream_inside_is_unreadable(encoding: bytes, pack: Callable[[list[bytes]], list[bytes]]) -> None:
    pieces = pack(STREAMS[Dialect.ANTHROPIC_MESSAGES])
    reader = read(Dialect.ANTHROPIC_MESSAGES, [*pieces[:5], b"\xff" * 50, *pieces[5:]], SSE, encoding)
    assert reader.unreadable
    assert reader.first_token
    assert reader.usage.input_tokens == 25


# -- what nobody should send ------------------------------------------------------------------------------------------------------


def test_a_line_that_is_too_long_is_passed_over() -> None:
    head, tail = b"".join(STREAMS[Dialect.ANTHROPIC_MESSAGES][:5]), b"".join(STREAMS[Dialect.ANTHROPIC_MESSAGES][5:])
    for start in (b'data: {"type":"message_stop","x":"', b"x", b"event: ", b'{"type": "'):
        long = start + b"y" * (10 * 2**20) + b'"}\n\n'
        whole = found(read(Dialect.ANTHROPIC_MESSAGES, [head + long + tail]))
        assert whole[:6] == (USAGES[Dialect.ANTHROPIC_MESSAGES], "claude-opus-5-5", True, None, True, True)
        reader = new(Dialect.ANTHROPIC_MESSAGES)
        reader.feed(head)
        for at in range(0, len(long), 60_000):
            reader.feed(long[at : at + 60_000])
            assert reader._line_bytes <= LINE_BYTES  # type: ignore[attr-defined]
        reader.feed(tail)
        reader.end()
        assert found(reader) == whole


@pytest.mark.parametrize("extra", [0, 1, 100_000])
def test_what_is_in_a_line_that_is_too_long_counts_for_nothing(extra: int) -> None:
    """Neither its beginning nor its end is taken for a line of its own, whether it comes whole or not."""
    told = b'data: {"type":"message_delta","usage":{"output_tokens":999}}'
    head = b"".join(STREAMS[Dialect.ANTHROPIC_MESSAGES])
    after = b'\n\ndata: {"type":"content_block_stop"}\n\n'
    for long in (told + b" " * (LINE_BYTES - len(told) + extra), b"x" * (LINE_BYTES + extra) + told):
        whole = read(Dialect.ANTHROPIC_MESSAGES, [head + long + after])
        assert whole.usage.output_tokens == (999 if extra == 0 and long.startswith(told) else 55)
        for at in (len(long) - len(told), LINE_BYTES // 2, 10):
            pieces = [head, long[:at], long[at : at + 99], long[at + 99 :], after[:20], after[20:]]
            assert found(read(Dialect.ANTHROPIC_MESSAGES, pieces)) == found(whole)
            asked = new(Dialect.ANTHROPIC_MESSAGES)
            for piece in pieces:
                asked.feed(piece)
                assert asked.finished
            asked.end()
            assert found(asked) == found(whole)


def test_a_line_that_is_too_long_is_no_token_and_ends_no_block() -> None:
    space = b" " * LINE_BYTES + b"\n\n"
    first = read(Dialect.ANTHROPIC_MESSAGES, [b'data: {"type":"content_block_delta"}' + space])
    assert not first.first_token
    head = b"".join(STREAMS[Dialect.ANTHROPIC_MESSAGES][:5])
    block = read(Dialect.ANTHROPIC_MESSAGES, [head, b'data: {"type":"content_block_stop"}' + space])
    assert block.first_token
    assert not block.block_ended


def test_a_line_of_one_byte_pieces_takes_linear_time() -> None:
    """A million of them: joining what is there at each would take hours."""
    reader = new(Dialect.OPENAI_CHAT)
    began = time.perf_counter()
    for _ in range(300_000):
        reader.feed(b"x")
    reader.end()
    assert time.perf_counter() - began < 20


def test_a_whole_answer_that_is_too_large_is_not_kept() -> None:
    reader = new(Dialect.OPENAI_CHAT, JSON)
    for _ in range(WHOLE_BYTES // 2**20 + 2):
        reader.feed(b" " * 2**20)
        assert sum(map(len, reader._kept)) <= WHOLE_BYTES + 2**20
    reader.end()
    assert reader.unreadable
    assert reader._kept == []


def test_deep_nesting_is_harmless() -> None:
    deep = b'{"error":' + b"[" * 200_000
    for dialect in Dialect:
        for content_type in (SSE, JSON):
            reader = read(dialect, [b"data: " + deep + b"\n\n" if content_type == SSE else deep], content_type)
            assert not reader.finished


MARKS = st.sampled_from(
    [
        b"data:", b"data: ", b"\n", b"\n\n", b"\r\n", b"event: error\n", b"[DONE]", b'"content_block_stop"', b'"tool_calls"',
        b'{"type":"message_delta","usage":{"output_tokens":', b"-5", b'"7"', b"1e99", b"9" * 30, b"}", b"}}", b"\x00", b"\xff\xfe",
        b'{"type":"error","error":', b"[]", b'"x"', b'{"choices":[{"delta":5,"finish_reason":[]}],"usage":[]}',
        b'{"choices":{}}', b'{"type":"response.completed","response":{"usage":{"input_tokens":{}}}}',
        b'{"candidates":[{"content":{"parts":[{"functionCall":null}]}}],"usageMetadata":3}', b'{"candidates":[null]}',
        b'{"type":"message_start","message":{"usage":{"cache_creation":[]}}}', b'{"type":["x"]}', b'{"type":"content_block_delta"}',
        b'{"choices":[{"delta":{"content":"a"}}]}', b'{"type":"x.delta"}', b'{"candidates":[{"content":{"parts":[{"text":"a"}]}}]}',
    ]
)  # fmt: skip
HOSTILE = st.lists(MARKS | st.binary(max_size=8), max_size=30)


@settings(max_examples=200)
@given(
    st.sampled_from(list(Dialect)),
    HOSTILE,
    st.integers(0, 2**32),
    st.sampled_from([SSE, JSON]),
    st.sampled_from([b"", b"gzip", b"deflate", b"br", b"zstd"]),
)
def test_nothing_that_comes_raises_or_depends_on_how(
    dialect: Dialect, parts: list[bytes], seed: int, content_type: bytes, encoding: bytes
) -> None:
    data = b"".join(parts)
    reader = read(dialect, [data], content_type, encoding)
    usage = reader.usage
    assert min(usage.input_tokens, usage.output_tokens, usage.reasoning_tokens, usage.cache_write_tokens) >= 0
    pieces = cut(data, seed, 12)
    assert found(read(dialect, pieces, content_type, encoding)) == found(reader)
    asked = new(dialect, content_type, encoding)
    for piece in pieces:
        asked.feed(piece)
        found(asked)
        assert asked.tokens_so_far >= 0
        assert asked.between_events in (True, False)
    asked.end()
    found(asked)


def test_a_piece_costs_next_to_nothing() -> None:
    """Seen: 0.2 to 0.4 µs for each of 50 pieces, and 14 to 22 µs once, after the last."""
    for dialect in DIALECTS:
        best = float("inf")
        pieces = STREAMS[dialect][:5] + [STREAMS[dialect][4 if dialect is not Dialect.GOOGLE_GENERATE else 0]] * 50
        for _ in range(20):
            feed = new(dialect).feed
            began = time.perf_counter_ns()
            for piece in pieces:
                feed(piece)
            best = min(best, (time.perf_counter_ns() - began) / len(pieces))
        assert best < 5000
