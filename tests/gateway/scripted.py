"""A model that says what a test wants said, in whichever protocol it is asked, over the rig's bare sockets.

Owns one invariant: the n-th call gets the n-th line of the script (a call beyond its end the last one again), and the same line
means the same in each protocol, whole or streamed. What lines are is ``tests.real.upstream``'s.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coordinator.domain.upstream import UpstreamKind, UpstreamSettings
from tests.gateway.rig import SSE
from tests.gateway.scripted_google import (
    asks_for_stream,
    google_failed,
    google_models,
    google_refused,
    google_streamed,
    google_whole,
    is_google,
)
from tests.real.upstream import Refuse, Say, Silence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.gateway.rig import Exchange

JSON = "Content-Type: application/json\r\n"
REASONS = {402: "Payment Required", 429: "Too Many Requests", 529: "Overloaded"}


@dataclass(frozen=True)
class Held:
    """The first ``events`` of what would be said, and nothing more until the caller hangs up."""

    say: Say
    events: int


@dataclass(frozen=True)
class Fails:
    """The first ``events`` of what would be said, and then an error within the stream; without ``message`` it breaks off."""

    say: Say
    events: int
    message: str = ""


Line = Say | Refuse | Silence | Held | Fails


class Scripted:
    """A script of ``rig.Upstream``; ``asked`` are the bodies of the calls that took a line."""

    def __init__(self, *lines: Line) -> None:
        self.asked: list[dict[str, Any]] = []
        self._lines = lines

    async def __call__(self, exchange: Exchange) -> None:
        path = exchange.target.partition("?")[0]
        if path.endswith("/models"):
            google = exchange.header("x-goog-api-client") or path.startswith("/v1beta/")
            listed = {"models": google_models("model-a", "model-b")} if google else MODELS
            await exchange.plain(dumps(listed), more=JSON)
            return
        if path.endswith(":countTokens"):
            await exchange.plain(dumps({"totalTokens": 42}), more=JSON)
            return
        if path.endswith("/count_tokens"):
            await exchange.plain(dumps({"input_tokens": 42}), more=JSON)
            return
        asked = json.loads(exchange.body)
        self.asked.append(asked)
        number = len(self.asked)
        stream = bool(asked.get("stream")) or asks_for_stream(path)
        await answered(exchange, self._lines[min(number, len(self._lines)) - 1], number, stream)


async def answered(exchange: Exchange, line: Line, number: int, stream: bool) -> None:
    path = exchange.target.partition("?")[0]
    match line:
        case Refuse():
            more = JSON + "".join(f"{name}: {value}\r\n" for name, value in line.headers.items())
            status = f"{line.status} {REASONS.get(line.status, 'No')}"
            await exchange.plain(refused(path, line), status=status, more=more)
        case Silence():
            await exchange.gone.wait()
        case Held():
            await exchange.send(SSE)
            for event in streamed(path, line.say, number)[: line.events]:
                await exchange.chunk(event)
            await exchange.gone.wait()
        case Fails():
            await exchange.send(SSE)
            for event in streamed(path, line.say, number)[: line.events]:
                await exchange.chunk(event)
            if not line.message:
                exchange.writer.close()
                return
            await exchange.chunk(failed(path, line.message))
            await exchange.send(b"0\r\n\r\n")
        case Say() if stream:
            await exchange.send(SSE)
            for event in streamed(path, line, number):
                await exchange.chunk(event)
            await exchange.send(b"0\r\n\r\n")
        case Say():
            await exchange.plain(whole(path, line, number), more=JSON)


MODELS = {
    "object": "list",
    "data": [
        {
            "id": name,
            "object": "model",
            "type": "model",
            "display_name": name,
            "created": 1,
            "created_at": "2026-01-01T00:00:00Z",
            "owned_by": "test",
        }
        for name in ("model-a", "model-b")
    ],
    "has_more": False,
    "first_id": "model-a",
    "last_id": "model-b",
}


def dumps(value: object) -> bytes:
    return json.dumps(value).encode()


def refused(path: str, line: Refuse) -> bytes:
    if is_google(path):
        return google_refused(line)
    error: dict[str, Any] = {"type": line.kind, "message": line.message}
    if path.endswith("/messages"):
        return dumps({"type": "error", "error": error})
    return dumps({"error": {**error, "param": None, "code": line.kind}})


def failed(path: str, message: str) -> bytes:
    """An error in the middle of a stream."""
    if is_google(path):
        return google_failed(message)
    body = json.loads(refused(path, Refuse(529, message, "overloaded_error")))
    if path.endswith("/messages"):
        return _named("error", body)
    if path.endswith("/responses"):
        return _named("error", {"type": "error", "sequence_number": 9, **body})
    return b"data: " + dumps(body) + b"\n\n"


def streamed(path: str, say: Say, number: int) -> Sequence[bytes]:
    """What ``say`` is in the protocol of ``path``, one item for each event."""
    if is_google(path):
        return google_streamed(say, number)
    if path.endswith("/messages"):
        return [_named(event["type"], event) for event in _messages(say, number)]
    if path.endswith("/responses"):
        return [
            _named(kind, {"type": kind, "sequence_number": at, **more})
            for at, (kind, more) in enumerate(_responses(say, number))
        ]
    return [*(b"data: " + dumps(chunk) + b"\n\n" for chunk in _chunks(say, number)), b"data: [DONE]\n\n"]


def whole(path: str, say: Say, number: int) -> bytes:
    if is_google(path):
        return google_whole(say, number)
    if path.endswith("/messages"):
        events = say.events(number)
        return dumps({**events[0]["message"], "content": _blocks(say, number), **events[-2]["delta"], **_usage(events)})
    if path.endswith("/responses"):
        return dumps(_responses(say, number)[-1][1]["response"])
    message = {"role": "assistant", "content": say.text or None, "refusal": None}
    calls = _calls(say, number)
    choice = {"index": 0, "message": message | ({"tool_calls": calls} if calls else {}), "finish_reason": _finish(say)}
    return dumps({**_top(number), "object": "chat.completion", "choices": [choice], "usage": _chat_usage(say)})


def _named(kind: str, value: dict[str, Any]) -> bytes:
    return f"event: {kind}\n".encode() + b"data: " + dumps(value) + b"\n\n"


def _halves(text: str) -> tuple[str, str]:
    return text[: len(text) // 2], text[len(text) // 2 :]


# -- Anthropic's -------------------------------------------------------------------------------------------------------


def _messages(say: Say, number: int) -> Sequence[dict[str, Any]]:
    """Each delta in two parts, as a model writes them."""
    events: list[dict[str, Any]] = []
    for event in say.events(number):
        if event["type"] != "content_block_delta":
            events.append(event)
            continue
        key = "text" if "text" in event["delta"] else "partial_json"
        events += [{**event, "delta": {**event["delta"], key: part}} for part in _halves(event["delta"][key])]
    return events


def _blocks(say: Say, number: int) -> Sequence[dict[str, Any]]:
    blocks: list[dict[str, Any]] = [{"type": "text", "text": say.text}] if say.text else []
    for place, (name, given) in enumerate(say.tools):
        blocks.append({"type": "tool_use", "id": f"toolu_{number}_{place}", "name": name, "input": given})
    return blocks


def _usage(events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"usage": events[-2]["usage"]}


# -- OpenAI's ----------------------------------------------------------------------------------------------------------


def _top(number: int) -> dict[str, Any]:
    return {"id": f"chatcmpl-{number}", "created": 1, "model": "scripted"}


def _calls(say: Say, number: int) -> Sequence[dict[str, Any]]:
    return [
        {
            "id": f"call_{number}_{place}",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(given)},
        }
        for place, (name, given) in enumerate(say.tools)
    ]


def _finish(say: Say) -> str:
    return {"max_tokens": "length"}.get(say.stop, "tool_calls" if say.tools else "stop")


def _chat_usage(say: Say) -> dict[str, int]:
    return {"prompt_tokens": say.tokens, "completion_tokens": 10, "total_tokens": say.tokens + 10}


def _chunks(say: Say, number: int) -> Sequence[dict[str, Any]]:
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": part} for part in _halves(say.text) if part]
    for index, call in enumerate(_calls(say, number)):
        parts = _halves(call["function"]["arguments"])
        first = {**call, "index": index, "function": {**call["function"], "arguments": parts[0]}}
        deltas += [{"tool_calls": [first]}, {"tool_calls": [{"index": index, "function": {"arguments": parts[1]}}]}]
    top = {**_top(number), "object": "chat.completion.chunk"}
    chunks = [{**top, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    last = {**top, "choices": [{"index": 0, "delta": {}, "finish_reason": _finish(say)}]}
    return [*chunks, last, {**top, "choices": [], "usage": _chat_usage(say)}]


def _responses(say: Say, number: int) -> Sequence[tuple[str, dict[str, Any]]]:
    """Events, each by its kind; the last holds the whole answer."""
    usage = {
        "input_tokens": say.tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 10,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": say.tokens + 10,
    }
    answer = {"id": f"resp_{number}", "object": "response", "created_at": 1, "model": "scripted", "output": []}
    answer |= {"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "status": "in_progress"}
    events: list[tuple[str, dict[str, Any]]] = [("response.created", {"response": answer})]
    items: list[dict[str, Any]] = []
    if say.text:
        items.append(_text_item(say, number, events))
    for place, (name, given) in enumerate(say.tools):
        where = {"output_index": len(items)}
        call = {"type": "function_call", "id": f"fc_{number}_{place}", "call_id": f"call_{number}_{place}"}
        call |= {"name": name, "arguments": "", "status": "in_progress"}
        events.append(("response.output_item.added", {**where, "item": call}))
        for part in _halves(json.dumps(given)):
            more = {**where, "item_id": call["id"], "delta": part}
            events.append(("response.function_call_arguments.delta", more))
        done = {**call, "arguments": json.dumps(given), "status": "completed"}
        events.append(("response.output_item.done", {**where, "item": done}))
        items.append(done)
    completed = {**answer, "status": "completed", "output": items, "usage": usage}
    return [*events, ("response.completed", {"response": completed})]


def _text_item(say: Say, number: int, events: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    item = {"type": "message", "id": f"msg_{number}", "role": "assistant", "status": "in_progress", "content": []}
    part = {"type": "output_text", "text": "", "annotations": []}
    where = {"output_index": 0, "content_index": 0, "item_id": item["id"]}
    done = {**item, "status": "completed", "content": [{**part, "text": say.text}]}
    events.append(("response.output_item.added", {"output_index": 0, "item": item}))
    events.append(("response.content_part.added", {**where, "part": part}))
    for text in _halves(say.text):
        events.append(("response.output_text.delta", {**where, "delta": text, "logprobs": []}))
    events.append(("response.output_text.done", {**where, "text": say.text, "logprobs": []}))
    events.append(("response.content_part.done", {**where, "part": {**part, "text": say.text}}))
    events.append(("response.output_item.done", {"output_index": 0, "item": done}))
    return done


# -- upstreams of each kind --------------------------------------------------------------------------------------------


KEYS = {
    UpstreamKind.ANTHROPIC: "ANTHROPIC_API_KEY",
    UpstreamKind.GOOGLE: "GEMINI_API_KEY",
    UpstreamKind.OPENAI: "OPENAI_API_KEY",
}


def described(kind: UpstreamKind, url: str, name: str = "up", models: tuple[str, ...] = ("*",), **more: Any) -> Any:
    """Settings of one upstream at ``url``, as its own clients take it."""
    key = KEYS.get(kind, "")
    where = "" if kind is UpstreamKind.ECHO else f"{url}/v1" if kind is UpstreamKind.OPENAI else url
    return UpstreamSettings(kind=kind, name=name, url=where, models=models, key_env=key, **more)
