"""Whole answers and errors, in both directions of the translation.

Owns one invariant: an error keeps the meaning that the client's program acts on: a prompt that is too long is called so in
the words which make Claude Code compact it, and what an upstream says about our key is not repeated.
Status and headers are the caller's; streams are the business of ``translate_stream_to_*``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from coordinator.gateway import fast_json
from coordinator.gateway.translate_terms import (
    GIVEN_UP,
    STOP_TO_OPENAI,
    Notes,
    Translated,
    Untranslatable,
    as_count,
    as_list,
    as_map,
    as_text,
    denial_of,
    object_of,
    plain_text,
    reasoning_of,
    stop_to_anthropic,
    tool_input,
    usage_to_anthropic,
    usage_to_openai,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

ERROR_CHARS: Final = 2000
"""What is repeated of an upstream's message."""

_TOO_LONG: Final = (
    re.compile(r"maximum context length is (?P<most>\d+) tokens.*?\((?P<prompt>\d+) in the (?:messages|input|prompt)"),
    re.compile(r"maximum context length is (?P<most>\d+) tokens.*?has (?P<prompt>\d+) input tokens"),
    re.compile(r"maximum context length is (?P<most>\d+) tokens.*?(?:resulted in|requested) (?P<prompt>\d+) tokens"),
)
"""How OpenAI and vLLM say it; with what was asked for as an answer, where they say that."""
_ASKED: Final = re.compile(r"(\d+) in the completion|is too large: (\d+)|requested (\d+) output tokens")


# -- answers -----------------------------------------------------------------------------------------------------------


def answer_to_anthropic(body: bytes, *, model: str, message_id: str, thinking: bool = False) -> Translated:
    """A chat completion as a message. ``thinking``: whether the client wants to see it.

    Raises ``BadJson`` and ``Untranslatable`` when it is no answer; that is the upstream's fault.
    """
    said = object_of(body, "the upstream's answer")
    choices = as_list(said.get("choices"))
    if not choices:
        raise Untranslatable(f"the upstream answered without a choice: {_message(said) or 'no reason was given'}")
    choice = as_map(choices[0])
    message = as_map(choice.get("message"))
    notes = Notes()
    refusal = as_text(message.get("refusal"))
    content: list[dict[str, object]] = []
    thought = reasoning_of(message)
    if thought and thinking:
        content.append({"type": "thinking", "thinking": thought, "signature": ""})
    elif thought:
        notes.add("reasoning_content", "the client did not ask for it")
    text = plain_text(message.get("content")) or refusal
    if text.strip():
        content.append({"type": "text", "text": text})
    calls = [as_map(call) for call in as_list(message.get("tool_calls"))]
    content += [_tool_use(call, f"toolu_{message_id}_{at}", notes) for at, call in enumerate(calls)]
    finish = as_text(choice.get("finish_reason"))
    if finish in GIVEN_UP:
        raise Untranslatable("the upstream gave up in the middle of its answer")
    matched = as_text(choice.get("stop_reason"))
    stop = stop_to_anthropic("content_filter" if refusal else finish, called=bool(calls), stop_sequence=matched)
    answer = {
        "id": message_id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": stop,
        "stop_sequence": matched if stop == "stop_sequence" else None,
        "usage": usage_to_anthropic(as_map(said.get("usage"))),
    }
    return Translated(body=fast_json.encode(answer), notes=notes.all())


def _tool_use(call: Mapping[str, object], own_id: str, notes: Notes) -> dict[str, object]:
    """The upstream's id is kept as it is: some models' templates know their own calls by it."""
    function = as_map(call.get("function"))
    given, whole = tool_input(function.get("arguments"))
    if not whole:
        notes.add("tool_calls.arguments", "no JSON object; given as {'arguments': …}")
    return {
        "type": "tool_use",
        "id": as_text(call.get("id")) or own_id,
        "name": as_text(function.get("name")),
        "input": given,
    }


def answer_to_openai(body: bytes, *, model: str, answer_id: str, created: int) -> Translated:
    """A message as a chat completion. ``created``: wall time in seconds.

    Raises ``BadJson`` and ``Untranslatable`` when it is no answer; that is the upstream's fault.
    """
    said = object_of(body, "the upstream's answer")
    if said.get("type") != "message":
        raise Untranslatable(f"the upstream answered without a message: {_message(said) or 'no reason was given'}")
    notes = Notes()
    texts: list[str] = []
    calls: list[dict[str, object]] = []
    for block in map(as_map, as_list(said.get("content"))):
        kind = as_text(block.get("type"))
        if kind == "text":
            texts.append(as_text(block.get("text")))
        elif kind == "tool_use":
            arguments = fast_json.encode(as_map(block.get("input"))).decode()
            function = {"name": as_text(block.get("name")), "arguments": arguments}
            calls.append({"id": as_text(block.get("id")), "type": "function", "function": function})
        else:
            notes.add(f"content of type {kind}")
    message: dict[str, object] = {"role": "assistant", "content": "".join(texts) if texts else None, "refusal": None}
    if calls:
        message["tool_calls"] = calls
    finish = STOP_TO_OPENAI.get(as_text(said.get("stop_reason")), "stop")
    answer = {
        "id": answer_id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}],
        "usage": usage_to_openai(as_map(said.get("usage"))),
    }
    return Translated(body=fast_json.encode(answer), notes=notes.all())


# -- errors ------------------------------------------------------------------------------------------------------------


def error_to_anthropic(status: int, body: bytes) -> bytes:
    """An OpenAI upstream's error, whatever form it has, as Anthropic's."""
    error, message = _error(status, body)
    overflow = _overflow(error, message)
    if overflow is not None:
        prompt, asked, most = overflow
        message = f"prompt is too long: {prompt} tokens > {most} maximum"
        if prompt <= most:
            message = f"input length and `max_tokens` exceed context limit: {prompt} + {asked} > {most}"
    kind = "invalid_request_error" if overflow is not None else denial_of(status).value.anthropic
    return fast_json.encode({"type": "error", "error": {"type": kind, "message": message}})


def error_to_openai(status: int, body: bytes) -> bytes:
    """An Anthropic upstream's error as OpenAI's."""
    _, message = _error(status, body)
    words = denial_of(status).value
    code = words.code
    if status == 400 and re.search(r"prompt is too long|exceed context limit", message):
        code = "context_length_exceeded"
    return fast_json.encode({"error": {"message": message, "type": words.openai, "param": None, "code": code}})


def _error(status: int, body: bytes) -> tuple[Mapping[str, object], str]:
    """The error object, and a message that is never empty."""
    plain = ""
    try:
        said = as_map(fast_json.decode(body))
    except fast_json.BadJson:
        said = {}
        if not body.lstrip().startswith(b"<"):  # a proxy's page is nothing to read in a terminal
            plain = body[:ERROR_CHARS].decode("utf-8", "replace").strip()
    message = _message(said) or plain
    if status == 401:
        message = "the upstream refuses the coordinator's key"  # its own words may repeat a part of the key
    return as_map(said.get("error")) or said, message or f"the upstream answered {status} and no reason"


def _message(said: Mapping[str, object]) -> str:
    """OpenAI, llama.cpp and Anthropic put it into ``error``, vLLM has also been seen to put it beside, FastAPI in ``detail``."""
    error = said.get("error")
    for found in (as_map(error).get("message"), error, said.get("message"), said.get("detail")):
        if isinstance(found, str) and found:
            return found[:ERROR_CHARS]
    detail = said.get("detail")
    return fast_json.encode(detail).decode()[:ERROR_CHARS] if detail else ""


def _overflow(error: Mapping[str, object], message: str) -> tuple[int, int, int] | None:
    """Tokens of the prompt, tokens asked for, and the most there can be of both; None: it is about something else."""
    prompt, most = as_count(error.get("n_prompt_tokens")), as_count(error.get("n_ctx"))
    if prompt and most:  # llama.cpp
        return max(prompt, most + 1), 0, most
    match = next(filter(None, (pattern.search(message) for pattern in _TOO_LONG)), None)
    if match is None:
        return None
    asked = _ASKED.search(message)
    wanted = next((int(one) for one in asked.groups() if one), 0) if asked is not None else 0
    prompt, most = int(match["prompt"]), int(match["most"])
    return (prompt, wanted, most) if prompt > most or wanted else None
