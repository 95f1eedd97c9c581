"""Streams across protocols: in what order, how early, how they end, and that the providers' own clients read them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from anthropic import APIStatusError, AsyncAnthropic
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import APIError, AsyncOpenAI

from coordinator.gateway import translate_stream
from coordinator.gateway.translate_answer import answer_to_anthropic, answer_to_openai
from coordinator.gateway.translate_request_to_anthropic import to_anthropic
from coordinator.gateway.translate_request_to_openai import to_openai
from coordinator.gateway.translate_stream_to_anthropic import StreamToAnthropic
from coordinator.gateway.translate_stream_to_openai import StreamToOpenai
from tests.gateway.translate_cases import CHAT_ANSWER, MESSAGE, SCHEMA, body, spoiled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence

    from coordinator.gateway.translate_stream import AnswerStream

DONE = b"data: [DONE]\n\n"


def data(value: Any) -> bytes:
    return b"data: " + body(value) + b"\n\n"


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "q", "choices": choices, **more}


def call(index: int | None, arguments: Any = "", *, name: str = "", call_id: str = "") -> dict[str, Any]:
    made: dict[str, Any] = {"function": {"arguments": arguments}}
    if index is not None:
        made["index"] = index
    if name:
        made["function"]["name"] = name
    if call_id:
        made |= {"id": call_id, "type": "function"}
    return {"tool_calls": [made]}


def event(kind: str, **more: Any) -> bytes:
    return f"event: {kind}\n".encode() + data({"type": kind, **more})


USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 20,
    "total_tokens": 120,
    "prompt_tokens_details": {"cached_tokens": 60},
}

CHAT_CHUNKS: list[dict[str, Any]] = [
    chunk({"role": "assistant", "content": ""}),
    chunk({"reasoning_content": "Two "}),
    chunk({"reasoning_content": "calls."}),
    chunk({"content": "I "}),
    chunk({"content": "lo\u00f6k."}),
    chunk(call(0, name="Bash", call_id="c0")),
    chunk(call(0, '{"command":')),
    chunk(call(0, '"ls"}')),
    chunk(call(1, name="Stop", call_id="c1")),
    chunk(call(1, "{}")),
    chunk({}, "tool_calls"),
    chunk(None, usage=USAGE),
]
CHAT_STREAM = b"".join(map(data, CHAT_CHUNKS)) + DONE

MESSAGE_STREAM = b"".join(
    [
        event(
            "message_start",
            message={
                **MESSAGE,
                "content": [],
                "stop_reason": None,
                "usage": {
                    "input_tokens": 30,
                    "cache_read_input_tokens": 60,
                    "cache_creation_input_tokens": 10,
                    "output_tokens": 1,
                },
            },
        ),
        event("content_block_start", index=0, content_block={"type": "thinking", "thinking": "", "signature": ""}),
        event("ping"),
        event("content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": "Two."}),
        event("content_block_delta", index=0, delta={"type": "signature_delta", "signature": "s"}),
        event("content_block_stop", index=0),
        event("content_block_start", index=1, content_block={"type": "text", "text": ""}),
        event("content_block_delta", index=1, delta={"type": "text_delta", "text": "I lo\u00f6k"}),
        event("content_block_delta", index=1, delta={"type": "text_delta", "text": " now."}),
        event("content_block_stop", index=1),
        event(
            "content_block_start",
            index=2,
            content_block={"type": "tool_use", "id": "toolu_1", "name": "bash", "input": {}},
        ),
        event("content_block_delta", index=2, delta={"type": "input_json_delta", "partial_json": ""}),
        event("content_block_delta", index=2, delta={"type": "input_json_delta", "partial_json": '{"command":'}),
        event("content_block_delta", index=2, delta={"type": "input_json_delta", "partial_json": '"ls"}'}),
        event("content_block_stop", index=2),
        event(
            "content_block_start",
            index=3,
            content_block={"type": "tool_use", "id": "toolu_2", "name": "stop", "input": {}},
        ),
        event("content_block_stop", index=3),
        event(
            "message_delta",
            delta={"stop_reason": "tool_use", "stop_sequence": None},
            usage={"output_tokens": 20, "input_tokens": None},
        ),
        event("message_stop"),
    ]
)


def upward(*, thinking: bool = False) -> StreamToAnthropic:
    return StreamToAnthropic(model="m", message_id="msg_9", thinking=thinking)


def downward(*, counted: bool = False) -> StreamToOpenai:
    return StreamToOpenai(model="m", answer_id="chatcmpl-9", created=7, counted=counted)


def events(out: bytes) -> list[dict[str, Any]]:
    """What an SSE stream of ours says; the event's name must be its type."""
    found = []
    for block in out.split(b"\n\n")[:-1]:
        *names, line = block.split(b"\n")
        if line == b"data: [DONE]":
            found.append({"done": True})
        elif not line.startswith(b":"):
            said = json.loads(line.removeprefix(b"data: "))
            assert [b"event: " + said["type"].encode()] == names if "type" in said else names == []
            found.append(said)
    return found


def blocks(out: bytes) -> list[tuple[str, str, str]]:
    """Each block as (kind, name, content), after checking the order that Anthropic's clients rely on."""
    said = [one for one in events(out) if one["type"] != "ping"]
    assert said[0]["type"] == "message_start"
    assert [one["type"] for one in said[-2:]] == ["message_delta", "message_stop"]
    found: list[tuple[str, str, str]] = []
    opened = False
    for one in said[1:-2]:
        if one["type"] == "content_block_start":
            assert not opened
            assert one["index"] == len(found)
            opened = True
            found.append((one["content_block"]["type"], one["content_block"].get("name", ""), ""))
        elif one["type"] == "content_block_delta":
            assert opened
            assert one["index"] == len(found) - 1
            delta = one["delta"]
            text = delta.get("text") or delta.get("thinking") or delta.get("partial_json") or ""
            found[-1] = (*found[-1][:2], found[-1][2] + text)
        else:
            assert one == {"type": "content_block_stop", "index": len(found) - 1}
            opened = False
    assert not opened
    return found


def whole(stream: AnswerStream, *parts: Any) -> bytes:
    """Chunks, or bytes, through a stream to its end."""
    out = b"".join(stream.feed(part if isinstance(part, bytes) else data(part)) for part in parts)
    return out + stream.end()


# -- to an Anthropic client --------------------------------------------------------------------------------------------


def test_a_stream_for_an_anthropic_client() -> None:
    stream = upward(thinking=True)
    out = whole(stream, CHAT_STREAM)
    assert blocks(out) == [
        ("thinking", "", "Two calls."),
        ("text", "", "I lo\u00f6k."),
        ("tool_use", "Bash", '{"command":"ls"}'),
        ("tool_use", "Stop", "{}"),
    ]
    said = events(out)
    assert said[0]["message"]["id"] == "msg_9"
    assert said[0]["message"]["model"] == "m"
    assert [one["content_block"]["id"] for one in said if one.get("content_block", {}).get("id")] == ["c0", "c1"]
    assert said[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert said[-2]["usage"] == {
        "input_tokens": 40,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 60,
        "output_tokens": 20,
    }
    assert stream.finished
    assert stream.block_ended
    assert stream.usage == USAGE
    assert stream.notes == ()
    assert not stream.error


def test_thinking_is_left_out_with_a_word_when_nobody_asked() -> None:
    stream = upward()
    assert [kind for kind, _, _ in blocks(whole(stream, CHAT_STREAM))] == ["text", "tool_use", "tool_use"]
    assert stream.notes == ("reasoning_content: the client did not ask for it",)


def test_nothing_is_held_back() -> None:
    """Each text goes out at once, and each call's block ends as soon as the next call shows that it is whole."""
    stream = upward()
    said = [[one["type"] for one in events(stream.feed(data(one)))] for one in CHAT_CHUNKS]
    assert said == [
        ["message_start"],
        [],
        [],
        ["content_block_start", "content_block_delta"],
        ["content_block_delta"],
        ["content_block_stop", "content_block_start"],
        ["content_block_delta"],
        ["content_block_delta"],
        ["content_block_stop", "content_block_start"],
        ["content_block_delta"],
        ["content_block_stop"],
        [],
    ]


def test_interleaved_calls_come_one_after_the_other() -> None:
    out = whole(
        upward(),
        chunk(call(0, name="A", call_id="a")),
        chunk(call(1, name="B", call_id="b")),
        chunk(call(0, '{"x":')),
        chunk(call(1, '{"y":')),
        chunk({"content": "late"}),
        chunk(call(1, "2}")),
        chunk(call(0, "1}")),
        chunk(call(2, "{}", name="C", call_id="c")),
        chunk({}, "tool_calls"),
        DONE,
    )
    assert blocks(out) == [
        ("tool_use", "A", '{"x":1}'),
        ("tool_use", "B", '{"y":2}'),
        ("text", "", "late"),
        ("tool_use", "C", "{}"),
    ]


def test_a_call_that_waited_goes_out_when_the_one_before_it_is_whole() -> None:
    stream = upward()
    for one in (call(0, '{"x":', name="A", call_id="a"), call(1, '{"y":2}', name="B", call_id="b")):
        stream.feed(data(chunk(one)))
    said = events(stream.feed(data(chunk(call(0, "1}")))))
    assert [one["type"] for one in said] == [
        "content_block_delta",
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
    ]
    assert stream.block_ended


@pytest.mark.parametrize(
    "calls",
    [
        [call(0, '{"a":1}', name="A", call_id="a"), call(0, '{"b":2}', name="B", call_id="b")],
        [call(None, '{"a":1}', name="A", call_id="a"), call(None, '{"b":2}', name="B", call_id="b")],
        [call(None, '{"a":1}', name="A"), call(None, '{"b":2}', name="B")],
        [call(0, {"a": 1}, name="A"), call(1, {"b": 2}, name="B")],
        [call(0, '{"a":', name="A", call_id="a"), call(0, "1}", name="A", call_id="a"), call(1, '{"b":2}', name="B")],
    ],
    ids=["one index", "no index", "no index and no id", "objects", "repeated head"],
)
def test_calls_of_servers_that_count_in_their_own_way(calls: list[dict[str, Any]]) -> None:
    out = whole(upward(), *map(chunk, calls), chunk({}, "tool_calls"), DONE)
    assert blocks(out) == [("tool_use", "A", '{"a":1}'), ("tool_use", "B", '{"b":2}')]
    ids = [one["content_block"]["id"] for one in events(out) if one["type"] == "content_block_start"]
    assert len(set(ids)) == 2
    assert all(ids)


def test_a_call_cannot_go_on_after_its_end() -> None:
    stream = upward()
    calls = [call(0, "{}", name="A"), call(1, '{"y":', name="B"), call(0, "\n"), call(0, "oops"), call(1, "2}")]
    out = whole(stream, *map(chunk, calls), chunk({}, "tool_calls"), DONE)
    assert blocks(out) == [("tool_use", "A", "{}"), ("tool_use", "B", '{"y":2}')]
    assert stream.notes == ("tool_calls.arguments: more of them after the end of the call of A",)


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([chunk({"content": "\n\n"}), chunk(call(0, "{}", name="A"))], [("tool_use", "A", "{}")]),
        ([chunk({"content": "\n"}), chunk({"content": "\nhi"})], [("text", "", "\n\nhi")]),
        ([chunk({"content": " "})], []),
        ([chunk({"content": None}), chunk({"refusal": "No."})], [("text", "", "No.")]),
        ([chunk({"content": [{"type": "text", "text": "hi"}]})], [("text", "", "hi")]),
        ([chunk(call(0, "{}")), chunk({"content": "hi"})], [("text", "", "hi")]),
        ([chunk(call(0, name="A")), chunk({"content": "hi"})], [("tool_use", "A", ""), ("text", "", "hi")]),
        ([{"choices": [{"index": 1, "delta": {"content": "other"}}]}, chunk({"content": "hi"})], [("text", "", "hi")]),
    ],
)
def test_content_for_an_anthropic_client(chunks: list[Any], expected: list[Any]) -> None:
    assert blocks(whole(upward(), *chunks, chunk({}, "stop"), DONE)) == expected


@pytest.mark.parametrize(
    ("finish", "more", "calls", "stop"),
    [
        ("stop", {}, False, ("end_turn", None)),
        ("stop", {}, True, ("tool_use", None)),
        ("length", {}, True, ("max_tokens", None)),
        ("content_filter", {}, False, ("refusal", None)),
        ("stop", {"stop_reason": "END"}, False, ("stop_sequence", "END")),
        ("tool_calls", {}, False, ("end_turn", None)),
    ],
)
def test_why_a_stream_stopped(finish: str, more: Any, *, calls: bool, stop: tuple[Any, Any]) -> None:
    last = chunk({}, finish)
    last["choices"][0] |= more
    first = chunk(call(0, "{}", name="A") if calls else {"content": "hi"})
    delta = events(whole(upward(), first, last, DONE))[-2]["delta"]
    assert (delta["stop_reason"], delta["stop_sequence"]) == stop


def test_usage_may_come_with_the_last_words_or_all_along() -> None:
    stream = upward()
    out = whole(
        stream,
        chunk({"content": "a"}, usage={"prompt_tokens": 5, "completion_tokens": 1}),
        chunk({}, "stop", usage=USAGE),
    )
    assert events(out)[0]["message"]["usage"]["input_tokens"] == 5
    assert events(out)[-2]["usage"]["output_tokens"] == 20
    assert stream.finished


def test_a_word_that_the_upstream_is_alive_is_passed_on() -> None:
    stream = upward()
    assert stream.feed(b": early\n\n") == b""
    stream.feed(data(chunk({"content": "a"})))
    assert events(stream.feed(b": OPENROUTER PROCESSING\n\n")) == [{"type": "ping"}]
    assert downward().feed(event("ping")) == b": ping\n\n"


@pytest.mark.parametrize(
    ("parts", "kind", "word"),
    [
        ([], "api_error", "broke off"),
        ([chunk({"content": "hi"})], "api_error", "broke off"),
        ([DONE], "api_error", "broke off"),
        ([b"<html>"], "api_error", "broke off"),
        ([b"data: {oops\n\n"], "api_error", "cannot be read"),
        ([{"error": {"message": "no slot", "code": 503}}], "api_error", "no slot"),
        ([{"error": {"message": "slow down", "code": 429}}], "rate_limit_error", "slow down"),
        ([{"error": "kaputt"}], "api_error", "kaputt"),
        ([b'error: {"code":500,"message":"older"}\n\n'], "api_error", "older"),
        ([b'event: error\ndata: {"message":"named"}\n\n'], "api_error", "named"),
        ([chunk({"content": "hi"}, "error")], "api_error", "gave up"),
    ],
)
def test_a_stream_that_breaks_off_says_so(parts: list[Any], kind: str, word: str) -> None:
    stream = upward()
    said = events(
        whole(stream, *parts, *([chunk({"content": "more"})] if parts and parts != [chunk({"content": "hi"})] else []))
    )
    last = said[-1]
    assert last["type"] == "error"
    assert last["error"]["type"] == kind
    assert word in last["error"]["message"]
    assert word in stream.error
    assert not stream.finished
    assert "message_stop" not in [one["type"] for one in said]


def test_what_was_begun_when_it_broke_off_stays_unfinished() -> None:
    stream = upward()
    out = stream.feed(data(chunk(call(0, '{"a":1}', name="A")))) + stream.broken("gone")
    assert "content_block_stop" not in [one["type"] for one in events(out)]
    assert events(out)[-1] == {"type": "error", "error": {"type": "api_error", "message": "gone"}}
    assert (stream.broken("again"), stream.feed(CHAT_STREAM), stream.end()) == (b"", b"", b"")


@pytest.mark.parametrize("make", [upward, downward])
def test_a_whole_answer_cannot_break_any_more(make: Callable[[], AnswerStream]) -> None:
    stream = make()
    whole(stream, CHAT_STREAM if make is upward else MESSAGE_STREAM)
    assert stream.finished
    assert (stream.broken("late"), stream.feed(CHAT_STREAM), stream.end()) == (b"", b"", b"")
    assert stream.error == ""


def test_done_without_a_reason_is_an_end() -> None:
    stream = upward()
    assert events(whole(stream, chunk({"content": "hi"}), DONE))[-2]["delta"]["stop_reason"] == "end_turn"
    assert stream.finished


# -- to an OpenAI client -----------------------------------------------------------------------------------------------


def test_a_stream_for_an_openai_client() -> None:
    stream = downward(counted=True)
    *chunks, usage, done = events(whole(stream, MESSAGE_STREAM))
    assert done == {"done": True}
    assert usage["choices"] == []
    assert usage["usage"]["prompt_tokens"] == 100
    assert usage["usage"]["completion_tokens"] == 20
    deltas = [one["choices"][0]["delta"] for one in chunks]
    assert deltas == [
        {"role": "assistant", "content": ""},
        {"content": "I lo\u00f6k"},
        {"content": " now."},
        {
            "tool_calls": [
                {"index": 0, "id": "toolu_1", "type": "function", "function": {"name": "bash", "arguments": ""}}
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"command":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"ls"}'}}]},
        {
            "tool_calls": [
                {"index": 1, "id": "toolu_2", "type": "function", "function": {"name": "stop", "arguments": ""}}
            ]
        },
        {"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]},
        {},
    ]
    assert [one["choices"][0]["finish_reason"] for one in chunks] == [None] * 8 + ["tool_calls"]
    assert {(one["id"], one["created"], one["model"]) for one in chunks} == {("chatcmpl-9", 7, "m")}
    assert stream.usage["output_tokens"] == 20
    assert stream.usage["input_tokens"] == 30
    assert stream.notes == ("content of type thinking: not carried over",)
    assert stream.block_ended


def test_tokens_are_counted_for_who_asked() -> None:
    assert not any("usage" in one for one in events(whole(downward(), MESSAGE_STREAM)))


def test_input_that_comes_with_the_start_of_a_block_is_not_lost() -> None:
    out = whole(
        downward(),
        event("content_block_start", index=0, content_block={"type": "text", "text": "hi"}),
        event("content_block_stop", index=0),
        event(
            "content_block_start",
            index=1,
            content_block={"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}},
        ),
        event("content_block_stop", index=1),
        event("message_delta", delta={"stop_reason": "tool_use"}),
    )
    deltas = [one["choices"][0]["delta"] for one in events(out)[:-1]]
    assert deltas[1] == {"content": "hi"}
    assert deltas[3]["tool_calls"][0]["function"]["arguments"] == '{"a":1}'


def test_what_the_provider_runs_itself_is_left_out_with_a_word() -> None:
    stream = downward()
    out = whole(
        stream,
        event(
            "content_block_start", index=0, content_block={"type": "server_tool_use", "id": "s", "name": "web_search"}
        ),
        event("content_block_delta", index=0, delta={"type": "input_json_delta", "partial_json": '{"q":1}'}),
        event("content_block_stop", index=0),
        event("content_block_delta", index=1, delta={"type": "brand_new_delta"}),
        event("brand_new_event"),
        event("message_delta", delta={"stop_reason": "end_turn"}),
        event("message_stop"),
    )
    assert b"tool_calls" not in out
    assert [note.partition(":")[0] for note in stream.notes] == ["content of type server_tool_use", "brand_new_delta"]


@pytest.mark.parametrize(
    ("parts", "word", "code"),
    [
        ([], "broke off", "upstream_unreachable"),
        ([event("message_start", message={})], "broke off", "upstream_unreachable"),
        ([event("message_start", message={}), event("message_stop")], "broke off", "upstream_unreachable"),
        (
            [event("error", error={"type": "overloaded_error", "message": "Overloaded"})],
            "Overloaded",
            "server_is_overloaded",
        ),
        ([event("error", error={"type": "what", "message": "x"})], "x", "server_error"),
        ([event("error", error={"type": "api_error", "message": "x"})], "x", "server_error"),
        ([b"event: error\ndata: null\n\n"], "broke off", "server_error"),
        ([b"data: \xff\n\n"], "cannot be read", "upstream_unreachable"),
    ],
)
def test_a_stream_that_breaks_off_says_so_to_an_openai_client(parts: list[bytes], word: str, code: str) -> None:
    stream = downward()
    said = events(whole(stream, *parts))
    assert word in said[-1]["error"]["message"]
    assert said[-1]["error"]["code"] == code
    assert {"done": True} not in said
    assert word in stream.error


# -- both --------------------------------------------------------------------------------------------------------------


def test_a_stream_and_a_whole_answer_say_the_same() -> None:
    message = CHAT_ANSWER["choices"][0]["message"]
    head, parts = (
        {"role": "assistant"},
        [{"reasoning_content": message["reasoning_content"]}, {"content": message["content"]}],
    )
    calls = [{"tool_calls": [{**one, "index": at}]} for at, one in enumerate(message["tool_calls"])]
    out = whole(
        upward(thinking=True),
        *map(chunk, [head, *parts, *calls]),
        chunk({}, "tool_calls"),
        chunk(None, usage=CHAT_ANSWER["usage"]),
        DONE,
    )
    answer = json.loads(answer_to_anthropic(body(CHAT_ANSWER), model="m", message_id="msg_9", thinking=True).body)
    assert [(kind, name) for kind, name, _ in blocks(out)] == [
        (block["type"], block.get("name", "")) for block in answer["content"]
    ]
    assert events(out)[-2]["usage"] == answer["usage"]
    assert events(out)[-2]["delta"]["stop_reason"] == answer["stop_reason"]

    down = events(whole(downward(counted=True), MESSAGE_STREAM))
    completion = json.loads(answer_to_openai(body(MESSAGE), model="m", answer_id="x", created=1).body)
    assert down[-2]["usage"] == completion["usage"]
    assert down[-3]["choices"][0]["finish_reason"] == completion["choices"][0]["finish_reason"]


def cut(whole_stream: bytes, at: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(at), len(whole_stream)]
    return [whole_stream[start:end] for start, end in itertools.pairwise(edges)]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, len(CHAT_STREAM)), max_size=30), st.sampled_from([b"\n", b"\r\n", b"\r"]), st.booleans())
def test_any_cut_gives_the_same(at: list[int], newline: bytes, upstream_is_openai: bool) -> None:
    given_stream = (CHAT_STREAM if upstream_is_openai else MESSAGE_STREAM).replace(b"\n", newline)
    make: Callable[[], AnswerStream] = upward if upstream_is_openai else downward
    plain = whole(make(), CHAT_STREAM if upstream_is_openai else MESSAGE_STREAM)
    assert whole(make(), *cut(given_stream, at)) == plain


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
def test_byte_by_byte_gives_the_same(newline: bytes) -> None:
    lines = b'event: error\ndata: {\ndata: "message":"why"}\n\n'
    for make, stream in ((upward, CHAT_STREAM), (downward, MESSAGE_STREAM), (upward, lines)):
        assert whole(make(), *(bytes([byte]) for byte in stream.replace(b"\n", newline))) == whole(make(), stream)


def test_an_event_may_have_its_data_on_several_lines_and_lack_its_last() -> None:
    lines = json.dumps(chunk({"content": "hi"}), indent=1).encode().replace(b"\n", b"\ndata:")
    stream = upward()
    out = whole(stream, b"id: 1\nretry: 5\ndata:" + lines + b"\n\n", data(chunk({}, "stop"))[:-1])
    assert blocks(out) == [("text", "", "hi")]
    assert stream.finished


def test_an_event_without_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(translate_stream, "EVENT_BYTES", 2**20)
    for piece in (b"x" * 2**16, b"data: x\n" * 2**13):
        stream = upward()
        fed = 0
        while not stream.error:
            stream.feed(piece)
            fed += len(piece)
            assert fed <= 2**21
        assert "1048576" in stream.error or "MB" in stream.error


def test_many_small_pieces_of_a_long_line_cost_no_more_than_their_length() -> None:
    """A quarter of a second of CPU; quadratic, it would be eight."""
    stream = upward()
    began = time.process_time()
    for _ in range(300_000):
        stream.feed(b"data: 0123456789")
    assert time.process_time() - began < 3
    assert not stream.error


def test_white_space_without_end_costs_no_more_than_its_length() -> None:
    stream = upward()
    blank = data(chunk({"content": "\n"}))
    began = time.process_time()
    out = b"".join(stream.feed(blank) for _ in range(20_000))
    assert time.process_time() - began < 5
    assert blocks(out + whole(stream, chunk({}, "stop"))) == []


@pytest.mark.parametrize("thinking", [False, True])
def test_no_nonsense_raises_upward(*, thinking: bool) -> None:
    for made in spoiled(CHAT_CHUNKS, every=43):
        stream = upward(thinking=thinking)
        out = whole(stream, *map(data, made), DONE)
        assert stream.finished or stream.error
        if stream.finished:
            blocks(out)


def test_no_nonsense_raises_downward() -> None:
    parsed = [json.loads(one.partition(b"data: ")[2]) for one in MESSAGE_STREAM.split(b"\n\n")[:-1]]
    for made in spoiled(parsed, every=19):
        stream = downward(counted=True)
        out = whole(stream, *map(data, made))
        assert stream.finished or stream.error
        events(out)


# -- the providers' own clients ----------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def gateway(
    translate: Callable[[bytes], Any], stream: Callable[[Any], AnswerStream], answer: Sequence[bytes]
) -> AsyncIterator[tuple[str, list[Any]]]:
    """A server that translates what it is asked, and answers with what an upstream streams, cut as ``answer`` is."""
    seen: list[Any] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        translated = translate(await reader.readexactly(length))
        seen.append(json.loads(translated.body))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        answering = stream(translated)
        for piece in answer:
            writer.write(answering.feed(piece))
            await writer.drain()
        writer.write(answering.end())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", seen
    finally:
        server.close()


def for_claude(answer: Sequence[bytes]) -> Any:
    return gateway(
        lambda asked: to_openai(asked, model="qwen"),
        lambda translated: upward(thinking=translated.thinking),
        answer,
    )


def for_gpt(answer: Sequence[bytes]) -> Any:
    return gateway(
        lambda asked: to_anthropic(asked, model="claude", default_max_tokens=4096),
        lambda translated: downward(counted=translated.usage),
        answer,
    )


PIECES = [CHAT_STREAM[at : at + 37] for at in range(0, len(CHAT_STREAM), 37)]
DOWN_PIECES = [MESSAGE_STREAM[at : at + 37] for at in range(0, len(MESSAGE_STREAM), 37)]
TOOLS: Any = [{"name": "Bash", "description": "Runs", "input_schema": SCHEMA}]
FUNCTIONS: Any = [{"type": "function", "function": {"name": "bash", "parameters": SCHEMA}}]


async def test_anthropics_client_reads_the_stream() -> None:
    async with for_claude(PIECES) as (url, seen), AsyncAnthropic(base_url=url, api_key="k", max_retries=0) as client:
        async with client.messages.stream(
            model="m",
            max_tokens=2048,
            messages=[{"role": "user", "content": "hi"}],
            tools=TOOLS,
            thinking={"type": "enabled", "budget_tokens": 1024},
        ) as stream:
            kinds = [one.type async for one in stream]
            message = await stream.get_final_message()
    assert seen[0]["model"] == "qwen"
    assert seen[0]["stream_options"] == {"include_usage": True}
    assert kinds.count("content_block_stop") == 4
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert [block.input for block in message.content if block.type == "tool_use"] == [{"command": "ls"}, {}]
    assert message.stop_reason == "tool_use"
    assert (message.usage.input_tokens, message.usage.output_tokens, message.usage.cache_read_input_tokens) == (
        40,
        20,
        60,
    )


async def test_anthropics_client_reads_text_as_it_comes() -> None:
    async with for_claude(PIECES) as (url, _), AsyncAnthropic(base_url=url, api_key="k", max_retries=0) as client:
        async with client.messages.stream(
            model="m", max_tokens=9, messages=[{"role": "user", "content": "hi"}]
        ) as stream:
            assert [text async for text in stream.text_stream] == ["I ", "lo\u00f6k."]
        raw = await client.messages.create(
            model="m", max_tokens=9, messages=[{"role": "user", "content": "hi"}], stream=True
        )
        assert [one.type async for one in raw][-1] == "message_stop"


async def test_anthropics_client_hears_of_a_break() -> None:
    broken = [data(chunk({"content": "hi"})), data({"error": {"message": "slow down", "code": 429}})]
    async with for_claude(broken) as (url, _), AsyncAnthropic(base_url=url, api_key="k", max_retries=0) as client:
        async with client.messages.stream(
            model="m", max_tokens=9, messages=[{"role": "user", "content": "hi"}]
        ) as stream:
            with pytest.raises(APIStatusError, match="slow down"):
                await stream.get_final_message()


async def test_openais_client_reads_the_stream() -> None:
    async with for_gpt(DOWN_PIECES) as (url, seen), AsyncOpenAI(base_url=url, api_key="k", max_retries=0) as client:
        async with client.chat.completions.stream(
            model="m",
            messages=[{"role": "user", "content": "hi"}],
            tools=FUNCTIONS,
            stream_options={"include_usage": True},
        ) as stream:
            kinds = [one.type async for one in stream]
            completion = await stream.get_final_completion()
    assert seen[0]["model"] == "claude"
    assert "content.done" in kinds
    assert kinds.count("tool_calls.function.arguments.done") == 2
    (choice,) = completion.choices
    assert choice.message.content == "I lo\u00f6k now."
    assert [(one.id, one.function.arguments) for one in choice.message.tool_calls or ()] == [
        ("toolu_1", '{"command":"ls"}'),
        ("toolu_2", "{}"),
    ]
    assert choice.finish_reason == "tool_calls"
    assert completion.usage is not None
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (100, 20)


async def test_openais_client_reads_chunks_as_they_come() -> None:
    async with for_gpt(DOWN_PIECES) as (url, _), AsyncOpenAI(base_url=url, api_key="k", max_retries=0) as client:
        stream = await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        texts = [one.choices[0].delta.content async for one in stream if one.choices[0].delta.content]
    assert texts == ["I lo\u00f6k", " now."]


async def test_openais_client_hears_of_a_break() -> None:
    begun, _, _ = MESSAGE_STREAM.partition(b"event: ping")
    broken = [begun, event("error", error={"type": "overloaded_error", "message": "Overloaded"})]
    async with for_gpt(broken) as (url, _), AsyncOpenAI(base_url=url, api_key="k", max_retries=0) as client:
        stream = await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        with pytest.raises(APIError, match="Overloaded"):
            _ = [one async for one in stream]
