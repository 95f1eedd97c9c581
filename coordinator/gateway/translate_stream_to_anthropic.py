"""A chat-completions stream of an OpenAI-compatible upstream as the Messages stream that an Anthropic client reads.

Owns one invariant: one block is open at a time, each is stopped before the next starts, and what a tool is called with is
whole when its block stops, because Claude Code runs a tool at that moment. Calls that an upstream sends interleaved wait
for their turn. Nothing is waited for that could be sent now.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from coordinator.gateway import fast_json
from coordinator.gateway.translate_stream import AnswerStream
from coordinator.gateway.translate_terms import (
    GIVEN_UP,
    as_count,
    as_list,
    as_map,
    as_text,
    denial_of,
    plain_text,
    reasoning_of,
    stop_to_anthropic,
    tool_input,
    usage_to_anthropic,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

PING: Final = b'event: ping\ndata: {"type":"ping"}\n\n'

_DELTAS: Final[Mapping[str, tuple[str, str]]] = {
    "text": ("text_delta", "text"),
    "thinking": ("thinking_delta", "thinking"),
    "tool_use": ("input_json_delta", "partial_json"),
}


class _Block:
    """One block: ``waiting`` is what cannot be sent yet, ``given`` a call's arguments up to now. ``index`` < 0: not begun."""

    __slots__ = ("blank", "call", "given", "index", "kind", "name", "tried", "waiting", "whole")

    def __init__(self, kind: str) -> None:
        self.blank = True
        self.call = ""
        self.given: list[str] = []
        self.index = -1
        self.kind = kind
        self.name = ""
        self.tried = 0
        self.waiting: list[str] = []
        self.whole = False

    @property
    def ready(self) -> bool:
        """A call can begin when it has a name; a text when it is not blank, because Anthropic takes back no blank text."""
        return bool(self.name) if self.kind == "tool_use" else not self.blank

    def is_whole(self) -> bool:
        """Now that another one has begun: text is, and a call whose arguments are an object."""
        if self.kind != "tool_use":
            return True
        if self.tried != len(self.given):
            self.tried = len(self.given)
            self.whole = self.given[-1].rstrip().endswith("}") and tool_input("".join(self.given))[1]
        return self.whole


class StreamToAnthropic(AnswerStream):
    """``thinking``: the client wants to see the model's thinking."""

    __slots__ = ("_calls", "_finish", "_matched", "_message_id", "_model", "_next", "_queue", "_started", "_thinking")

    def __init__(self, *, model: str, message_id: str, thinking: bool = False) -> None:
        super().__init__()
        self._calls: dict[int, _Block] = {}
        self._finish = ""
        self._matched = ""
        self._message_id = message_id
        self._model = model
        self._next = 0
        self._queue: deque[_Block] = deque()
        self._started = False
        self._thinking = thinking

    # -- what comes ----------------------------------------------------------------------------------------------------

    def _event(self, name: bytes, data: Mapping[str, object]) -> None:
        if name == b"[DONE]":
            self._finish = self._finish or ("stop" if self._started else "")
            self._close()
            return
        error = data.get("error")
        if error or name == b"error":
            said = as_map(error) or data
            message = as_text(said.get("message")) or as_text(error)
            self._fail(message, as_count(said.get("code")))
            return
        if usage := as_map(data.get("usage")):
            self.usage = dict(usage)
        for choice in map(as_map, as_list(data.get("choices"))):
            if not choice.get("index"):
                self._choice(choice)

    def _alive(self) -> None:
        if self._started:
            self._out.append(PING)

    def _choice(self, choice: Mapping[str, object]) -> None:
        self._start()
        delta = as_map(choice.get("delta"))
        if thought := reasoning_of(delta):
            if self._thinking:
                self._text("thinking", thought)
            else:
                self._notes.add("reasoning_content", "the client did not ask for it")
        if text := plain_text(delta.get("content")):
            self._text("text", text)
        if refusal := as_text(delta.get("refusal")):
            self._text("text", refusal)
        for call in map(as_map, as_list(delta.get("tool_calls"))):
            self._call(call)
        finish = as_text(choice.get("finish_reason"))
        if finish in GIVEN_UP:
            self._fail("the upstream gave up in the middle of its answer")
        elif finish:
            self._finish = finish
            self._matched = as_text(choice.get("stop_reason"))  # vLLM: which stop sequence it was
            self._flush()

    def _text(self, kind: str, text: str) -> None:
        block = self._queue[-1] if self._queue else None
        if block is None or block.kind != kind:
            block = _Block(kind)
            self._queue.append(block)
        self._add(block, text)

    def _call(self, call: Mapping[str, object]) -> None:
        """A call is known by its index; some servers give every call the same one, but another id, or none at all."""
        function = as_map(call.get("function"))
        given, name = as_text(call.get("id")), as_text(function.get("name"))
        index = call.get("index")
        index = index if isinstance(index, int) else -1
        block = self._calls.get(index)
        if block is None or (name and block.name and _is_another(block, given)):
            block = self._calls[index] = _Block("tool_use")
            self._queue.append(block)
        block.call = block.call or given
        block.name = block.name or name
        arguments = function.get("arguments")
        if isinstance(arguments, dict):
            arguments = fast_json.encode(arguments).decode()
        self._add(block, as_text(arguments))

    # -- blocks, one at a time -----------------------------------------------------------------------------------------

    def _add(self, block: _Block, text: str) -> None:
        if text:
            block.given.append(text)
            block.blank = block.blank and text.isspace()
        if block.index < 0:
            block.waiting.append(text)
        elif self._queue and block is self._queue[0]:
            if text:
                self._delta(block, text)
        elif text.strip():
            self._notes.add("tool_calls.arguments", f"more of them after the end of the call of {block.name}")
        if block.index < 0 or len(self._queue) > 1:
            self._advance()

    def _advance(self) -> None:
        """Begins the first block if it can begin, and stops it for the next one if it is whole."""
        while self._queue:
            head = self._queue[0]
            followed = len(self._queue) > 1
            if head.index < 0:
                if head.ready:
                    self._begin(head)
                elif head.kind == "tool_use" or not followed:
                    return
            if not followed or not head.is_whole():
                return
            self._end(self._queue.popleft())

    def _flush(self) -> None:
        """Nothing more comes for any of them."""
        while self._queue:
            head = self._queue.popleft()
            if head.index < 0 and head.ready:
                self._begin(head)
            elif head.index < 0 and head.kind == "tool_use":
                self._notes.add("tool_calls", "a call without a name")
            self._end(head)

    def _begin(self, block: _Block) -> None:
        block.index = self._next
        self._next += 1
        begun: dict[str, object] = {"type": block.kind}
        match block.kind:
            case "tool_use":
                call = block.call or f"toolu_{self._message_id}_{block.index}"
                begun |= {"id": call, "name": block.name, "input": {}}
            case "thinking":
                begun |= {"thinking": "", "signature": ""}
            case _:
                begun["text"] = ""
        self._send("content_block_start", {"index": block.index, "content_block": begun})
        if waited := "".join(block.waiting):
            self._delta(block, waited)
        block.waiting.clear()

    def _delta(self, block: _Block, text: str) -> None:
        kind, field = _DELTAS[block.kind]
        self._out.append(
            b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":"%b","%b":%b}}\n\n'
            % (block.index, kind.encode(), field.encode(), fast_json.encode(text))
        )

    def _end(self, block: _Block) -> None:
        if block.index < 0:
            return
        if block.kind == "thinking":
            signature = {"type": "signature_delta", "signature": ""}
            self._send("content_block_delta", {"index": block.index, "delta": signature})
        self._send("content_block_stop", {"index": block.index})
        self.block_ended = True

    # -- the message ---------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._started:
            return
        self._started = True
        message: dict[str, object] = {
            "id": self._message_id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage_to_anthropic(self.usage),
        }
        self._send("message_start", {"message": message})

    def _close(self) -> None:
        if not self._finish:
            self._fail("the upstream broke off its answer")
            return
        self._flush()
        stop = stop_to_anthropic(self._finish, called=bool(self._calls), stop_sequence=self._matched)
        delta = {"stop_reason": stop, "stop_sequence": self._matched if stop == "stop_sequence" else None}
        self._send("message_delta", {"delta": delta, "usage": usage_to_anthropic(self.usage)})
        self._send("message_stop", {})
        self.finished = True

    def _failure(self, message: str, status: int) -> bytes:
        kind = denial_of(status).value.anthropic if status >= 400 else "api_error"
        error = {"type": "error", "error": {"type": kind, "message": message}}
        return b"event: error\ndata: %b\n\n" % fast_json.encode(error)

    def _send(self, kind: str, said: dict[str, object]) -> None:
        data = fast_json.encode({"type": kind} | said)
        self._out.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), data))


def _is_another(block: _Block, given: str) -> bool:
    """Whether a name under an index that is taken begins another call: by its id, or because the one before is whole."""
    return given != block.call if given and block.call else block.is_whole()
