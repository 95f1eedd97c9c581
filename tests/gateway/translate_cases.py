"""What the tests of the translation share: whole requests of both kinds, and every way to put nonsense into them."""

from __future__ import annotations

import copy
import itertools
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import TypeAdapter

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
SCHEMA = {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]}

CLAUDE_CODE: dict[str, Any] = {
    "model": "claude-opus-5-5",
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "<system-reminder>gitStatus</system-reminder>"},
                {"type": "text", "text": "Say hello", "cache_control": {"type": "ephemeral"}},
            ],
        },
        {
            "role": "system",
            "content": [{"type": "text", "text": "# Environment", "cache_control": {"type": "ephemeral"}}],
            "output_config": {"effort": "medium"},
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Two commands.", "signature": "sig"},
                {"type": "redacted_thinking", "data": "xx"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {"command": "ls"}},
                {"type": "tool_use", "id": "toolu_2", "name": "Read", "input": {"path": "a.png"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": "no such file", "is_error": True},
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_2",
                    "content": [
                        {"type": "text", "text": "a picture"},
                        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
                    ],
                },
                {"type": "text", "text": "go on"},
                {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
            ],
        },
        {"role": "system", "content": []},
    ],
    "system": [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.330"},
        {"type": "text", "text": "You are a Claude agent.", "cache_control": {"type": "ephemeral"}},
    ],
    "tools": [
        {"name": "Bash", "description": "Runs", "input_schema": SCHEMA, "cache_control": {"type": "ephemeral"}},
        {"name": "Read", "input_schema": SCHEMA, "strict": True, "type": "custom"},
        {
            "name": "DeferredToolPlaceholder",
            "description": "-",
            "input_schema": {"type": "object"},
            "defer_loading": True,
        },
    ],
    "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
    "metadata": {"user_id": json.dumps({"device_id": "1" * 64})},
    "max_tokens": 32000,
    "temperature": 1,
    "top_k": 40,
    "stop_sequences": ["END"],
    "thinking": {"type": "adaptive", "display": "omitted"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "output_config": {"effort": "medium", "format": {"type": "json_schema", "schema": SCHEMA}},
    "stream": True,
}

CHAT: dict[str, Any] = {
    "model": "gpt-5",
    "messages": [
        {"role": "system", "content": "You are an agent."},
        {"role": "developer", "content": [{"type": "text", "text": "Be short."}]},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Look"},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}", "detail": "low"}},
                {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
            ],
        },
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "functions.bash:0",
                    "type": "function",
                    "function": {"name": "bash", "arguments": '{"command":"ls"}'},
                },
                {"id": "functions_bash_0", "type": "function", "function": {"name": "bash", "arguments": ""}},
            ],
        },
        {"role": "tool", "tool_call_id": "functions.bash:0", "content": "a.py"},
        {"role": "tool", "tool_call_id": "functions_bash_0", "content": [{"type": "text", "text": "b.py"}]},
        {"role": "user", "content": "go on", "name": "me"},
        {"role": "system", "content": "It is late."},
        {"role": "assistant", "content": [{"type": "text", "text": "Done."}], "refusal": None},
        {"role": "user", "content": ""},
        {"role": "user", "content": "Thanks"},
    ],
    "tools": [
        {"type": "function", "function": {"name": "bash", "description": "Runs", "parameters": SCHEMA, "strict": True}},
        {"type": "function", "function": {"name": "stop"}},
    ],
    "tool_choice": {"type": "function", "function": {"name": "bash"}},
    "parallel_tool_calls": False,
    "max_completion_tokens": 500,
    "n": 1,
    "temperature": 1.5,
    "top_p": 0.9,
    "stop": "END",
    "user": "me",
    "logprobs": True,
    "presence_penalty": 0.5,
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}},
    "stream": True,
    "stream_options": {"include_usage": True},
}

JUNK: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1e308,
    10**40,
    "",
    "x",
    "\x00",
    [],
    [[]],
    [None],
    ["x"],
    {},
    {"type": []},
    {"": {}},
)


def body(value: Any) -> bytes:
    return json.dumps(value).encode()


def spoiled(value: Any, *, every: int = 11) -> Iterator[Any]:
    """Copies of ``value`` in which one thing, wherever it is, has been replaced by junk or is missing.

    There are thousands; ``every`` n-th is enough for each run, and 1 gives them all.
    """
    return itertools.islice(_spoiled(value), 0, None, every)


def _spoiled(value: Any) -> Iterator[Any]:
    for path in list(_paths(value)):
        for junk in JUNK:
            made = copy.deepcopy(value)
            holder = made
            for key in path[:-1]:
                holder = holder[key]
            holder[path[-1]] = junk
            yield made
        made = copy.deepcopy(value)
        holder = made
        for key in path[:-1]:
            holder = holder[key]
        del holder[path[-1]]
        yield made


def _paths(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*before, key)
        yield from _paths(inner, (*before, key))


def check(adapter: TypeAdapter[Any], value: Any) -> None:
    """Validates ``value`` to its depths: pydantic looks into an ``Iterable`` of a TypedDict only as it is read."""
    _read(adapter.validate_python(value))


def _read(value: Any) -> None:
    if isinstance(value, dict):
        for inner in value.values():
            _read(inner)
    elif not isinstance(value, str | bytes | int | float | None):
        for inner in value:
            _read(inner)


CHAT_ANSWER: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "qwen",
    "choices": [
        {
            "index": 0,
            "finish_reason": "tool_calls",
            "logprobs": None,
            "message": {
                "role": "assistant",
                "content": "I look.",
                "reasoning_content": "Two.",
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "Bash", "arguments": '{"command":"ls"}'}},
                    {"id": "", "type": "function", "function": {"name": "Stop", "arguments": ""}},
                ],
            },
        }
    ],
    "usage": {
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "total_tokens": 120,
        "prompt_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 10},
    },
    "timings": {"prompt_n": 1},
}

MESSAGE: dict[str, Any] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude",
    "content": [
        {"type": "thinking", "thinking": "Two.", "signature": "s"},
        {"type": "text", "text": "I look"},
        {"type": "text", "text": " now.", "citations": None},
        {"type": "tool_use", "id": "toolu_1", "name": "bash", "input": {"command": "ls"}},
        {"type": "tool_use", "id": "toolu_2", "name": "stop", "input": {}},
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": {
        "input_tokens": 30,
        "cache_creation_input_tokens": 10,
        "cache_read_input_tokens": 60,
        "output_tokens": 20,
        "service_tier": "standard",
    },
}
