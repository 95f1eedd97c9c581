"""Whole answers and errors across protocols."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from anthropic.types import Message
from openai.types.chat import ChatCompletion

from coordinator.gateway.fast_json import BadJson
from coordinator.gateway.translate_answer import (
    answer_to_anthropic,
    answer_to_openai,
    error_to_anthropic,
    error_to_openai,
)
from coordinator.gateway.translate_terms import Untranslatable
from tests.gateway.translate_cases import CHAT_ANSWER, MESSAGE, body, spoiled


def up(answer: Any, *, thinking: bool = False) -> dict[str, Any]:
    """OpenAI's for an Anthropic client, as its own package reads it strictly."""
    translated = answer_to_anthropic(body(answer), model="m", message_id="msg_9", thinking=thinking)
    Message.model_validate_json(translated.body, strict=True)
    result: dict[str, Any] = json.loads(translated.body)
    return result


def down(answer: Any) -> dict[str, Any]:
    """Anthropic's for an OpenAI client."""
    translated = answer_to_openai(body(answer), model="m", answer_id="chatcmpl-9", created=7)
    ChatCompletion.model_validate_json(translated.body, strict=True)
    result: dict[str, Any] = json.loads(translated.body)
    return result


def chat(message: dict[str, Any] | None = None, finish: str | None = "stop", **more: Any) -> dict[str, Any]:
    made = copy.deepcopy(CHAT_ANSWER)
    choice = made["choices"][0]
    choice |= {"finish_reason": finish, "message": message or {"role": "assistant", "content": "hi"}, **more}
    return made


def test_an_answer_for_an_anthropic_client() -> None:
    assert up(CHAT_ANSWER) == {
        "id": "msg_9",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "c1", "name": "Bash", "input": {"command": "ls"}},
            {"type": "tool_use", "id": "toolu_msg_9_1", "name": "Stop", "input": {}},
        ],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 30,
            "cache_creation_input_tokens": 10,
            "cache_read_input_tokens": 60,
            "output_tokens": 20,
        },
    }


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_thinking_is_shown_to_who_wants_it(name: str) -> None:
    answer = chat({"role": "assistant", "content": "hi", name: "Hm."})
    assert up(answer, thinking=True)["content"][0] == {"type": "thinking", "thinking": "Hm.", "signature": ""}
    translated = answer_to_anthropic(body(answer), model="m", message_id="x")
    assert b"Hm." not in translated.body
    assert translated.notes == ("reasoning_content: the client did not ask for it",)


@pytest.mark.parametrize(
    ("finish", "message", "more", "stop"),
    [
        ("stop", None, {}, ("end_turn", None)),
        ("length", None, {}, ("max_tokens", None)),
        ("content_filter", None, {}, ("refusal", None)),
        (None, None, {}, ("end_turn", None)),
        ("tool_calls", None, {}, ("end_turn", None)),
        ("stop", None, {"stop_reason": "END"}, ("stop_sequence", "END")),
        ("stop", None, {"stop_reason": 151645}, ("end_turn", None)),
        ("stop", CHAT_ANSWER["choices"][0]["message"], {}, ("tool_use", None)),
        ("length", CHAT_ANSWER["choices"][0]["message"], {}, ("max_tokens", None)),
        ("stop", {"role": "assistant", "content": None, "refusal": "No."}, {}, ("refusal", None)),
    ],
)
def test_why_it_stopped(finish: Any, message: Any, more: dict[str, Any], stop: tuple[Any, Any]) -> None:
    answer = up(chat(message, finish, **more))
    assert (answer["stop_reason"], answer["stop_sequence"]) == stop


@pytest.mark.parametrize(
    ("message", "content"),
    [
        ({"content": ""}, []),
        ({"content": "\n\n"}, []),
        ({"content": None, "refusal": "No."}, [{"type": "text", "text": "No."}]),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, [{"type": "text", "text": "ab"}]),
        (
            {"tool_calls": [{"id": "c", "function": {"name": "f", "arguments": {"a": 1}}}]},
            [{"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}}],
        ),
        (
            {"tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{oops"}}]},
            [{"type": "tool_use", "id": "c", "name": "f", "input": {"arguments": "{oops"}}],
        ),
    ],
)
def test_content_for_an_anthropic_client(message: dict[str, Any], content: list[Any]) -> None:
    assert up(chat({"role": "assistant", **message}))["content"] == content


def test_an_answer_for_an_openai_client() -> None:
    answer = down(MESSAGE)
    (choice,) = answer["choices"]
    assert choice["message"]["content"] == "I look now."
    assert [(call["id"], call["function"]) for call in choice["message"]["tool_calls"]] == [
        ("toolu_1", {"name": "bash", "arguments": '{"command":"ls"}'}),
        ("toolu_2", {"name": "stop", "arguments": "{}"}),
    ]
    assert choice["finish_reason"] == "tool_calls"
    assert (answer["id"], answer["created"], answer["model"]) == ("chatcmpl-9", 7, "m")
    assert answer["usage"] == {
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "total_tokens": 120,
        "prompt_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 10},
    }
    notes = answer_to_openai(body(MESSAGE), model="m", answer_id="x", created=1).notes
    assert notes == ("content of type thinking: not carried over",)


@pytest.mark.parametrize(
    ("stop", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("pause_turn", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("refusal", "content_filter"),
        ("tool_use", "tool_calls"),
        ("something new", "stop"),
        (None, "stop"),
    ],
)
def test_why_it_stopped_for_an_openai_client(stop: Any, finish: str) -> None:
    answer = down({**MESSAGE, "stop_reason": stop})
    assert answer["choices"][0]["finish_reason"] == finish


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        ({"choices": []}, "without a choice"),
        ({"error": {"message": "no slot"}}, "no slot"),
        ({"choices": [{"message": {}, "finish_reason": "error"}]}, "gave up"),
        ([], "object"),
    ],
)
def test_what_is_no_answer_is_not_made_one(answer: Any, word: str) -> None:
    with pytest.raises(Untranslatable, match=word):
        answer_to_anthropic(body(answer), model="m", message_id="x")


def test_what_is_no_message_is_not_made_an_answer() -> None:
    with pytest.raises(Untranslatable, match="busy"):
        answer_to_openai(
            body({"type": "error", "error": {"type": "x", "message": "busy"}}), model="m", answer_id="x", created=1
        )
    with pytest.raises(BadJson):
        answer_to_openai(b"<html>", model="m", answer_id="x", created=1)


def test_no_nonsense_raises_anything_else() -> None:
    outcomes: set[object] = set()
    for made in spoiled(CHAT_ANSWER, every=1):
        try:
            outcomes.add(type(json.loads(answer_to_anthropic(body(made), model="m", message_id="x").body)))
        except Untranslatable as refused:
            outcomes.add(bool(str(refused)))
    for made in spoiled(MESSAGE, every=1):
        try:
            outcomes.add(type(json.loads(answer_to_openai(body(made), model="m", answer_id="x", created=1).body)))
        except Untranslatable as refused:
            outcomes.add(bool(str(refused)))
    assert outcomes == {dict, True}


# -- errors ------------------------------------------------------------------------------------------------------------

OPENAI_ERROR = {
    "error": {"message": "Rate limit reached", "type": "requests", "param": None, "code": "rate_limit_exceeded"}
}


def to_anthropic(status: int, said: Any) -> tuple[str, str]:
    data = said if isinstance(said, bytes) else body(said)
    error = json.loads(error_to_anthropic(status, data))
    assert error.keys() == {"type", "error"}
    assert error["type"] == "error"
    return error["error"]["type"], error["error"]["message"]


@pytest.mark.parametrize(
    ("status", "said", "kind", "message"),
    [
        (429, OPENAI_ERROR, "rate_limit_error", "Rate limit reached"),
        (400, {"object": "error", "message": "bad", "code": 400}, "invalid_request_error", "bad"),
        (404, {"detail": "Not Found"}, "not_found_error", "Not Found"),
        (422, {"detail": [{"loc": ["body"], "msg": "x"}]}, "invalid_request_error", '[{"loc":["body"],"msg":"x"}]'),
        (402, {"error": "no money"}, "billing_error", "no money"),
        (403, OPENAI_ERROR, "permission_error", "Rate limit reached"),
        (408, b"", "timeout_error", "the upstream answered 408 and no reason"),
        (413, b"too big\n", "request_too_large", "too big"),
        (500, b"<html><h1>Oops</h1>", "api_error", "the upstream answered 500 and no reason"),
        (503, {"error": {"code": 503, "message": "Loading model"}}, "api_error", "Loading model"),
        (504, b"\xff\xfe", "timeout_error", "\ufffd\ufffd"),
        (529, {}, "overloaded_error", "the upstream answered 529 and no reason"),
        (418, {"error": {"message": ""}}, "invalid_request_error", "the upstream answered 418 and no reason"),
    ],
)
def test_errors_for_an_anthropic_client(status: int, said: Any, kind: str, message: str) -> None:
    assert to_anthropic(status, said) == (kind, message)


def test_what_is_said_about_our_key_stays_here() -> None:
    said = {"error": {"message": "Incorrect API key provided: sk-proj-1234"}}
    assert b"sk-proj" not in error_to_anthropic(401, body(said))
    assert b"sk-proj" not in error_to_openai(401, body(said))


@pytest.mark.parametrize(
    ("message", "more", "said"),
    [
        (
            "…",
            {"type": "exceed_context_size_error", "n_prompt_tokens": 1407, "n_ctx": 256},
            "prompt is too long: 1407 tokens > 256 maximum",
        ),
        (
            "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens. Please reduce",
            {"code": "context_length_exceeded"},
            "prompt is too long: 9000 tokens > 8192 maximum",
        ),
        (
            "This model's maximum context length is 16384 tokens. However, you requested 122946 tokens (112946 in the messages, 10000 in the completion). Please",
            {},
            "prompt is too long: 112946 tokens > 16384 maximum",
        ),
        (
            "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens (4000 in the messages, 1000 in the completion). Please",
            {},
            "input length and `max_tokens` exceed context limit: 4000 + 1000 > 4096",
        ),
        (
            "'max_tokens' or 'max_completion_tokens' is too large: 10000. This model's maximum context length is 16384 tokens and your request has 8000 input tokens (10000 > 16384 - 8000).",
            {},
            "input length and `max_tokens` exceed context limit: 8000 + 10000 > 16384",
        ),
    ],
)
def test_a_prompt_that_is_too_long_is_called_so_in_words_that_claude_code_acts_on(
    message: str, more: dict[str, Any], said: str
) -> None:
    assert to_anthropic(400, {"error": {"message": message, **more}}) == ("invalid_request_error", said)


@pytest.mark.parametrize(
    ("status", "message", "kind", "code"),
    [
        (400, "prompt is too long: 2 tokens > 1 maximum", "invalid_request_error", "context_length_exceeded"),
        (400, "bad", "invalid_request_error", "invalid_request"),
        (401, "x", "authentication_error", "invalid_api_key"),
        (429, "slow down", "rate_limit_error", "rate_limit_exceeded"),
        (529, "Overloaded", "server_error", "server_is_overloaded"),
    ],
)
def test_errors_for_an_openai_client(status: int, message: str, kind: str, code: str) -> None:
    said = {"type": "error", "error": {"type": "x", "message": message}, "request_id": "r"}
    error = json.loads(error_to_openai(status, body(said)))["error"]
    assert error["type"] == kind
    assert error["code"] == code
    assert error["param"] is None
    assert status == 401 or error["message"] == message


@pytest.mark.parametrize("status", [400, 401, 500, 599])
def test_no_error_raises_one(status: int) -> None:
    for said in (
        b"",
        b"[" * 10_000,
        b"null",
        b'"x"',
        *map(body, spoiled({"error": {"message": "m", "n_ctx": 1, "n_prompt_tokens": 2}}, every=1)),
    ):
        assert json.loads(error_to_anthropic(status, said))["error"]["message"]
        assert json.loads(error_to_openai(status, said))["error"]["message"]
