"""A Messages stream of an Anthropic upstream as the chunks that an OpenAI client reads.

Owns one invariant: whoever joins the chunks gets the answer that the upstream would have given whole, and ``[DONE]`` is
said only after a whole one. Nothing is waited for that could be sent now.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from coordinator.gateway import fast_json
from coordinator.gateway.dialect import Denial
from coordinator.gateway.translate_stream import AnswerStream
from coordinator.gateway.translate_terms import STOP_TO_OPENAI, as_count, as_map, as_text, denial_of, usage_to_openai

if TYPE_CHECKING:
    from collections.abc import Mapping

ALIVE: Final = b": ping\n\n"
DONE: Final = b"data: [DONE]\n\n"

_STATUS: Final[Mapping[str, int]] = {denial.value.anthropic: denial.value.status for denial in reversed(Denial)}
_UNSAID: Final = frozenset({"", "citations_delta", "signature_delta", "thinking_delta"})
"""Deltas of which nothing more is said than that their block is left out."""


class _Call:
    """A tool's call: its number among the calls, and whether any of its arguments has been sent."""

    __slots__ = ("argued", "given", "number")

    def __init__(self, number: int, given: Mapping[str, object]) -> None:
        self.argued = False
        self.given = given
        self.number = number


class StreamToOpenai(AnswerStream):
    """``counted``: the client asked for the chunk with token counts. ``created``: wall time in seconds."""

    __slots__ = ("_calls", "_counted", "_head", "_started", "_stop_reason")

    def __init__(self, *, model: str, answer_id: str, created: int, counted: bool = False) -> None:
        super().__init__()
        named = {"id": answer_id, "object": "chat.completion.chunk", "created": created, "model": model}
        self._calls: dict[int, _Call] = {}
        self._counted = counted
        self._head = fast_json.encode(named)[:-1]
        self._started = False
        self._stop_reason = ""

    def _event(self, name: bytes, data: Mapping[str, object]) -> None:
        kind = as_text(data.get("type"))
        if kind == "error" or name == b"error":
            error = as_map(data.get("error"))
            self._fail(as_text(error.get("message")), _STATUS.get(as_text(error.get("type")), 500))
        elif kind == "message_start":
            self._count(as_map(as_map(data.get("message")).get("usage")))
            self._start()
        elif kind == "content_block_start":
            self._block_start(_index(data), as_map(data.get("content_block")))
        elif kind == "content_block_delta":
            self._block_delta(_index(data), as_map(data.get("delta")))
        elif kind == "content_block_stop":
            self._block_stop(_index(data))
        elif kind == "message_delta":
            self._stop_reason = as_text(as_map(data.get("delta")).get("stop_reason")) or self._stop_reason
            self._count(as_map(data.get("usage")))
        elif kind == "message_stop":
            self._close()
        elif kind == "ping":
            self._alive()

    def _count(self, usage: Mapping[str, object]) -> None:
        """What the end of a message says counts for more than what its start said."""
        self.usage |= {name: value for name, value in usage.items() if value is not None}

    def _alive(self) -> None:
        self._out.append(ALIVE)

    # -- blocks --------------------------------------------------------------------------------------------------------

    def _block_start(self, index: int, block: Mapping[str, object]) -> None:
        kind = as_text(block.get("type"))
        if kind == "text":
            if text := as_text(block.get("text")):
                self._say({"content": text})
        elif kind == "tool_use":
            call = self._calls[index] = _Call(len(self._calls), as_map(block.get("input")))
            function = {"name": as_text(block.get("name")), "arguments": ""}
            begun = {"index": call.number, "id": as_text(block.get("id")), "type": "function", "function": function}
            self._say({"tool_calls": [begun]})
        else:
            self._notes.add(f"content of type {kind}")

    def _block_delta(self, index: int, delta: Mapping[str, object]) -> None:
        kind = as_text(delta.get("type"))
        if kind == "text_delta":
            self._say({"content": as_text(delta.get("text"))})
        elif kind == "input_json_delta":
            call = self._calls.get(index)
            if call is not None:  # otherwise it is a tool that runs at the provider
                self._argue(call, as_text(delta.get("partial_json")))
        elif kind not in _UNSAID:
            self._notes.add(kind)

    def _block_stop(self, index: int) -> None:
        """OpenAI's clients read the arguments of a call without any as JSON too: an object, not nothing."""
        call = self._calls.get(index)
        if call is not None and not call.argued:
            self._argue(call, fast_json.encode(call.given).decode())
        self.block_ended = True

    def _argue(self, call: _Call, arguments: str) -> None:
        if arguments:
            call.argued = True
            self._say({"tool_calls": [{"index": call.number, "function": {"arguments": arguments}}]})

    # -- the answer ----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        if not self._started:
            self._started = True
            self._chunk({"role": "assistant", "content": ""}, "")

    def _say(self, delta: dict[str, object]) -> None:
        self._start()
        self._chunk(delta, "")

    def _chunk(self, delta: dict[str, object], finish: str) -> None:
        self._out.append(
            b'data: %b,"choices":[{"index":0,"delta":%b,"finish_reason":%b}]}\n\n'
            % (self._head, fast_json.encode(delta), fast_json.encode(finish or None))
        )

    def _close(self) -> None:
        if not self._stop_reason:
            self._fail("the upstream broke off its answer")
            return
        self._start()
        self._chunk({}, STOP_TO_OPENAI.get(self._stop_reason, "stop"))
        if self._counted:
            usage = fast_json.encode(usage_to_openai(self.usage))
            self._out.append(b'data: %b,"choices":[],"usage":%b}\n\n' % (self._head, usage))
        self._out.append(DONE)
        self.finished = True

    def _failure(self, message: str, status: int) -> bytes:
        words = denial_of(status).value
        error = {"error": {"message": message, "type": words.openai, "param": None, "code": words.code}}
        return b"data: %b\n\n" % fast_json.encode(error)


def _index(data: Mapping[str, object]) -> int:
    return as_count(data.get("index"))
