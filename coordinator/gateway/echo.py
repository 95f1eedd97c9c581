"""The embedded model: it answers a prompt with the prompt, in every protocol, whole or word by word.

Owns one invariant: the same request is answered with the same bytes, after the same delay, for the same usage; so a fleet,
a test and a first look need no provider. It has the shape of an ``Origin`` of the wire and opens no connection.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from typing import TYPE_CHECKING, Any, Final

from coordinator.kit.wire_client import RequestLines

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator

    from coordinator.kit.wire import RawHeaders
    from coordinator.kit.wire_answer import BodySink

ECHO_MODEL: Final = "echo"

_JSON: Final = (b"content-type", b"application/json")
_SSE: Final = (b"content-type", b"text/event-stream")
_BYTES_PER_TOKEN: Final = 4
_WORDS: Final = re.compile(r"\S+\s*|\s+")
_LONGEST: Final = 4000
"""Words of an answer at most."""


class EchoOrigin:
    """``delay_s`` before the first byte, ``word_s`` between two words of a stream; ``output_tokens`` 0: as many as words."""

    def __init__(self, *, delay_s: float = 0.0, word_s: float = 0.0, output_tokens: int = 0) -> None:
        self._delay_s = delay_s
        self._word_s = word_s
        self._output_tokens = output_tokens

    def head(self, method: bytes, target: bytes, headers: Iterable[tuple[bytes, bytes]]) -> RequestLines:
        del headers
        return RequestLines(method, target, b"", b"")

    async def ask(self, head: RequestLines, body: bytes) -> EchoAnswer:
        """Never raises ``NotReached``."""
        await asyncio.sleep(self._delay_s)
        path = head.target.partition(b"?")[0]
        if head.method == b"GET" and path.endswith(b"/models"):
            return EchoAnswer(200, [_dumps({"object": "list", "data": [_model()]})], _JSON)
        try:
            asked = json.loads(body)
        except ValueError:
            asked = None
        if not isinstance(asked, dict):
            return EchoAnswer(400, [_dumps({"error": {"type": "invalid_request_error", "message": "no JSON"}})], _JSON)
        return self._answer(path, asked, body)

    def _answer(self, path: bytes, asked: dict[str, Any], body: bytes) -> EchoAnswer:
        prompt, input_tokens = last_text(asked), max(1, len(body) // _BYTES_PER_TOKEN)
        if path.endswith(b"/count_tokens"):
            return EchoAnswer(200, [_dumps({"input_tokens": input_tokens})], _JSON)
        words = _WORDS.findall(prompt)[:_LONGEST] or ["(nothing)"]
        limit = asked.get("max_tokens") or asked.get("max_completion_tokens") or asked.get("max_output_tokens")
        if isinstance(limit, int) and 0 < limit < len(words):
            words = words[:limit]
        said = _Said(
            input_tokens=input_tokens,
            model=str(asked.get("model") or ECHO_MODEL),
            name=hashlib.sha256(body).hexdigest()[:24],
            output_tokens=self._output_tokens or len(words),
            words=words,
        )
        speak = _anthropic if path.endswith(b"/messages") else _responses if path.endswith(b"/responses") else _openai
        if asked.get("stream"):
            return EchoAnswer(200, list(speak(said, True)), _SSE, self._word_s)
        return EchoAnswer(200, list(speak(said, False)), _JSON)

    async def close(self) -> None:
        """There is nothing to close."""


class EchoAnswer:
    """What the wire's ``Answer`` is, from memory."""

    def __init__(self, status: int, pieces: list[bytes], kind: tuple[bytes, bytes], pause_s: float = 0.0) -> None:
        self.status = status
        self.reason = b""
        self.headers: RawHeaders = (kind,)
        self.ended = False
        self.length = sum(map(len, pieces)) if kind is _JSON else None
        self._exchange: BodySink
        self._pieces = pieces
        self._pause_s = pause_s
        self._room = asyncio.Event()

    @property
    def at_hand(self) -> bytes:
        return self._pieces[0] if self._pieces else b""

    async def peek(self, patience_s: float) -> bytes:
        del patience_s
        return self._pieces[0] if self._pieces else b""

    async def read(self, limit: int) -> bytes:
        del limit  # a few words
        return b"".join([piece async for piece in self])

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for number, piece in enumerate(self._pieces):
            if number and self._pause_s:
                await asyncio.sleep(self._pause_s)
            yield piece
        self.ended = True

    async def flow(self, exchange: BodySink, tap: Callable[[bytes], None] | None) -> None:
        self.divert(exchange)
        async for piece in self:
            while self._exchange.full and not self._exchange.gone:
                self._room.clear()
                await self._room.wait()
            if tap is not None:
                tap(piece)
            self._exchange.send(piece)
        self._exchange.finish()

    def divert(self, exchange: BodySink) -> None:
        self._exchange = exchange
        exchange.on_room(self._room.clear, self._room.set)

    def close(self) -> None:
        self._pieces = []


class _Said:
    """One answer, before it is put into a protocol."""

    def __init__(self, *, input_tokens: int, model: str, name: str, output_tokens: int, words: list[str]) -> None:
        self.input_tokens = input_tokens
        self.model = model
        self.name = name
        self.output_tokens = output_tokens
        self.words = words


def last_text(asked: dict[str, Any]) -> str:
    """What the user said last, in whichever protocol; tool results count as said."""
    turns = asked.get("messages") or asked.get("input") or asked.get("prompt") or ""
    if isinstance(turns, list):
        turns = next((turn for turn in reversed(turns) if isinstance(turn, dict) and turn.get("role") == "user"), {})
        turns = turns.get("content", "")
    if isinstance(turns, list):
        texts = [part.get("text") or part.get("content") for part in turns if isinstance(part, dict)]
        turns = "\n".join(text for text in texts if isinstance(text, str))
    return turns if isinstance(turns, str) else ""


def _anthropic(said: _Said, stream: bool) -> Iterator[bytes]:
    usage = {"input_tokens": said.input_tokens, "output_tokens": said.output_tokens}
    message = {
        "id": f"msg_{said.name}",
        "type": "message",
        "role": "assistant",
        "model": said.model,
        "content": [{"type": "text", "text": "".join(said.words)}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": usage,
    }
    if not stream:
        yield _dumps(message)
        return
    opened = {**message, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
    yield _named("message_start", {"message": opened})
    yield _named("content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}})
    for word in said.words:
        yield _named("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": word}})
    yield _named("content_block_stop", {"index": 0})
    yield _named("message_delta", {"delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": usage})
    yield _named("message_stop", {})


def _openai(said: _Said, stream: bool) -> Iterator[bytes]:
    top = {"id": f"chatcmpl-{said.name}", "created": 0, "model": said.model}
    usage = {
        "prompt_tokens": said.input_tokens,
        "completion_tokens": said.output_tokens,
        "total_tokens": said.input_tokens + said.output_tokens,
    }
    if not stream:
        turn = {"role": "assistant", "content": "".join(said.words)}
        choice = {"index": 0, "message": turn, "finish_reason": "stop"}
        yield _dumps({**top, "object": "chat.completion", "choices": [choice], "usage": usage})
        return
    top["object"] = "chat.completion.chunk"
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}, *({"content": word} for word in said.words)]
    for delta in deltas:
        yield _data({**top, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
    yield _data({**top, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    yield _data({**top, "choices": [], "usage": usage})
    yield b"data: [DONE]\n\n"


def _responses(said: _Said, stream: bool) -> Iterator[bytes]:
    text = "".join(said.words)
    part = {"type": "output_text", "text": text, "annotations": []}
    item = {
        "type": "message",
        "id": f"msg_{said.name}",
        "role": "assistant",
        "status": "completed",
        "content": [part],
    }
    usage = {
        "input_tokens": said.input_tokens,
        "output_tokens": said.output_tokens,
        "total_tokens": said.input_tokens + said.output_tokens,
    }
    response = {
        "id": f"resp_{said.name}",
        "object": "response",
        "created_at": 0,
        "model": said.model,
        "status": "completed",
        "output": [item],
        "usage": usage,
    }
    if not stream:
        yield _dumps(response)
        return
    events = _response_events(response, item, said.words)
    for number, (kind, more) in enumerate(events):
        yield _named(kind, {"sequence_number": number, **more})


def _response_events(
    response: dict[str, Any], item: dict[str, Any], words: list[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """All that OpenAI's own helper for streams looks at."""
    part = item["content"][0]
    yield "response.created", {"response": {**response, "status": "in_progress", "output": [], "usage": None}}
    begun = {**item, "content": [], "status": "in_progress"}
    yield "response.output_item.added", {"output_index": 0, "item": begun}
    where = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    yield "response.content_part.added", {**where, "part": {**part, "text": ""}}
    for word in words:
        yield "response.output_text.delta", {**where, "delta": word, "logprobs": []}
    yield "response.output_text.done", {**where, "text": part["text"], "logprobs": []}
    yield "response.content_part.done", {**where, "part": part}
    yield "response.output_item.done", {"output_index": 0, "item": item}
    yield "response.completed", {"response": response}


def _model() -> dict[str, Any]:
    return {"id": ECHO_MODEL, "type": "model", "object": "model", "display_name": ECHO_MODEL, "created": 0}


def _named(event: str, value: dict[str, Any]) -> bytes:
    return f"event: {event}\n".encode() + _data({"type": event, **value})


def _data(value: dict[str, Any]) -> bytes:
    return b"data: " + _dumps(value) + b"\n\n"


def _dumps(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
