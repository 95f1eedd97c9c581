"""An Anthropic client's request for an upstream that speaks OpenAI's chat completions.

Owns one invariant: the model is shown the same conversation and the same tools in the same order, so that what an
upstream cached of one turn is a prefix of the next. ``official`` is OpenAI itself; everybody else (llama.cpp, vLLM) puts
the messages through a model's own chat template, and most of those refuse a system message that is not the first.
It does not know what the upstream's model can do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from coordinator.gateway import fast_json
from coordinator.gateway.translate_terms import (
    Notes,
    Translated,
    Untranslatable,
    as_list,
    as_map,
    as_text,
    blocks_of,
    maps_of,
    object_of,
    text_of,
)
from coordinator.gateway.translate_tools import ToolChanges, tools_to_openai

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

STOPS: Final = 4
"""How many stop sequences OpenAI takes."""
USER_CHARS: Final = 64
"""The longest name of an end user that is passed on. What Claude Code sends there is longer, and names a device."""

_KNOWN: Final = frozenset(
    {
        "max_tokens",
        "messages",
        "metadata",
        "model",
        "output_config",
        "output_format",
        "stop_sequences",
        "stream",
        "system",
        "temperature",
        "thinking",
        "tool_choice",
        "tools",
        "top_k",
        "top_p",
    }
)
_KEPT_BY_ANTHROPIC: Final = ("container", "mcp_servers", "thread")
"""What lives or runs at the provider: without it the conversation would be another one."""
_MESSAGE: Final = frozenset({"clear_at", "content", "role"})
_TEXT: Final = frozenset({"text", "type"})


def to_openai(body: bytes, *, model: str, official: bool = False) -> Translated:
    """The request as chat completions. Raises ``BadJson`` and ``Untranslatable``."""
    asked = object_of(body, "the request")
    for name in _KEPT_BY_ANTHROPIC:
        if asked.get(name):
            raise Untranslatable(f"{name} is kept at Anthropic; this model is served by another")
    notes = Notes()
    notes.leave(asked, _KNOWN)
    chat = _Chat(notes, official=official)
    chat.add_all(asked)
    said: dict[str, object] = {"model": model, "messages": chat.messages()}
    said |= tools_to_openai(asked, chat.changes, notes, official=official)
    said |= _limits(asked, notes, official=official)
    said |= _format(asked, notes)
    if asked.get("stream") is True:
        said |= {"stream": True, "stream_options": {"include_usage": True}}
    thinking = as_map(asked.get("thinking"))
    wanted = as_text(thinking.get("type")) in {"adaptive", "between_tools", "enabled"}
    if wanted:
        notes.add("thinking", "how much this model thinks is its own affair")
    shown = wanted and thinking.get("display") != "omitted"
    return Translated(body=fast_json.encode(said), notes=notes.all(), thinking=shown)


def _limits(asked: Mapping[str, object], notes: Notes, *, official: bool) -> dict[str, object]:
    said = {name: asked[name] for name in ("temperature", "top_p") if asked.get(name) is not None}
    if asked.get("max_tokens") is not None:
        said["max_completion_tokens" if official else "max_tokens"] = asked["max_tokens"]
    if asked.get("top_k") is not None:
        if official:
            notes.add("top_k", "OpenAI has nothing like it")
        else:
            said["top_k"] = asked["top_k"]
    stops = as_list(asked.get("stop_sequences"))
    if official and len(stops) > STOPS:
        raise Untranslatable(f"OpenAI takes {STOPS} stop sequences at most, here are {len(stops)}")
    if stops:
        said["stop"] = stops
    user = as_text(as_map(asked.get("metadata")).get("user_id"))
    if user and len(user) <= USER_CHARS:
        said["user"] = user
    elif user:
        notes.add("metadata.user_id", f"longer than {USER_CHARS} characters")
    return said


def _format(asked: Mapping[str, object], notes: Notes) -> dict[str, object]:
    config = as_map(asked.get("output_config"))
    if config.get("effort"):
        notes.add("output_config.effort", "how much this model thinks is its own affair")
    notes.leave(config, frozenset({"effort", "format"}), "output_config.")
    wanted = as_map(config.get("format") or asked.get("output_format"))
    if not wanted:
        return {}
    schema = wanted.get("schema")
    if wanted.get("type") != "json_schema" or not isinstance(schema, dict):
        raise Untranslatable("an output format other than json_schema with a schema is not known here")
    return {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": schema, "strict": True},
        }
    }


# -- messages ----------------------------------------------------------------------------------------------------------


class _Chat:
    """The messages as they grow, and how they change the tools on the way."""

    __slots__ = ("_held", "_messages", "_notes", "_official", "_system", "_unanswered", "changes")

    def __init__(self, notes: Notes, *, official: bool) -> None:
        self.changes = ToolChanges()
        self._held: list[str] = []
        self._messages: list[dict[str, object]] = []
        self._notes = notes
        self._official = official
        self._system: list[str] = []
        self._unanswered: set[str] = set()

    def messages(self) -> list[dict[str, object]]:
        self._release()
        if not self._messages:
            raise Untranslatable("there is no message with anything in it")
        head: list[dict[str, object]] = []
        if self._system:
            head = [{"role": "system", "content": "\n\n".join(self._system)}]
        if self._messages[-1]["role"] == "assistant":
            self._notes.add("prefill", "this model may begin a new answer instead of going on with the given one")
        return head + [_flat(message) for message in self._messages]

    def add_all(self, asked: Mapping[str, object]) -> None:
        self._system.extend(self._texts(blocks_of(asked.get("system"), "system")))
        messages = maps_of(asked.get("messages"), "messages")
        last_user = max((at for at, message in enumerate(messages) if message.get("role") == "user"), default=-1)
        for at, message in enumerate(messages):
            self._notes.leave(message, _MESSAGE, "messages.")
            role = message.get("role")
            blocks = blocks_of(message.get("content"), f"message {at}")
            if role == "user":
                self._user(blocks)
            elif role == "assistant":
                self._assistant(blocks)
            elif role != "system":
                raise Untranslatable(f"message {at} must be of a user, the assistant or the system")
            elif message.get("clear_at") != "next_user_message" or at > last_user:
                self._mid_system(self._texts(blocks))

    def _mid_system(self, texts: list[str]) -> None:
        if not self._messages:
            self._system.extend(texts)
        elif texts:
            self._held.append("\n\n".join(texts))
            if not self._unanswered:
                self._release()

    def _release(self) -> None:
        """What the system says between a call and its result has to wait until the result is there."""
        for text in self._held:
            if self._official:
                self._messages.append({"role": "system", "content": text})
            else:
                self._notes.add("system message", "later than the first; sent as the user's, in <system-reminder>")
                self._say([{"type": "text", "text": f"<system-reminder>\n{text}\n</system-reminder>"}])
        self._held.clear()

    def _texts(self, blocks: Sequence[Mapping[str, object]]) -> list[str]:
        """A system message's text; directives about tools are noted down."""
        texts = []
        for block in blocks:
            kind = as_text(block.get("type"))
            if kind == "text":
                texts.append(self._text(block))
            elif kind in {"tool_addition", "tool_removal"}:
                self.changes.read(block, added=kind == "tool_addition")
            else:
                raise Untranslatable(f"a system message cannot hold a block of type {kind[:60]}")
        return [text for text in texts if text]

    def _text(self, block: Mapping[str, object]) -> str:
        self._notes.leave(block, _TEXT)
        return as_text(block.get("text"))

    # -- the user's turns ----------------------------------------------------------------------------------------------

    def _user(self, blocks: Sequence[Mapping[str, object]]) -> None:
        pictures: list[dict[str, object]] = []
        rest = []
        for block in blocks:
            if block.get("type") == "tool_result":
                pictures += self._result(block)
            else:
                rest.append(block)
        self._release()
        self._say([*pictures, *self._parts(rest)])

    def _say(self, parts: Iterable[dict[str, object]]) -> None:
        """As the user, whose turns in a row are one turn, at Anthropic and in every chat template."""
        parts = list(parts)
        last = self._messages[-1] if self._messages else {}
        before = last.get("content")
        if last.get("role") == "user" and isinstance(before, list):
            before += parts
        elif parts:
            self._messages.append({"role": "user", "content": parts})

    def _parts(self, blocks: Iterable[Mapping[str, object]]) -> Iterable[dict[str, object]]:
        for block in blocks:
            kind = as_text(block.get("type"))
            if kind == "text":
                if text := self._text(block):
                    yield {"type": "text", "text": text}
            elif kind == "image":
                yield self._image(block)
            elif kind == "tool_reference":
                name = text_of(block, "tool_name", "a tool_reference")
                self.changes.offered.add(name)
                yield {"type": "text", "text": f"The tool {name} can be called now."}
            else:
                raise Untranslatable(f"a block of type {kind[:60]} cannot be shown to this model")

    def _image(self, block: Mapping[str, object]) -> dict[str, object]:
        self._notes.leave(block, frozenset({"source", "type"}))
        source = as_map(block.get("source"))
        if source.get("type") == "base64":
            data = text_of(source, "data", "an image")
            url = f"data:{text_of(source, 'media_type', 'an image')};base64,{data}"
        elif source.get("type") == "url":
            url = text_of(source, "url", "an image")
        else:
            raise Untranslatable("an image must come as base64 or by its address; a file kept at Anthropic is not here")
        return {"type": "image_url", "image_url": {"url": url}}

    def _result(self, block: Mapping[str, object]) -> list[dict[str, object]]:
        """Adds the result, and returns its pictures with a word on where they are from: a result holds text only."""
        self._notes.leave(block, frozenset({"content", "is_error", "tool_use_id", "type"}))
        call = text_of(block, "tool_use_id", "a tool_result")
        parts = list(self._parts(blocks_of(block.get("content"), "a tool_result")))
        text = "\n\n".join(as_text(part["text"]) for part in parts if part["type"] == "text")
        pictures = [part for part in parts if part["type"] != "text"]
        if block.get("is_error") is True:
            self._notes.add("is_error", "said in the result's text")
            text = f"[the tool failed]\n{text}"
        self._unanswered.discard(call)
        self._messages.append({"role": "tool", "tool_call_id": call, "content": text})
        if not pictures:
            return []
        self._notes.add("images in a tool_result", "sent as the user's, after the results")
        return [{"type": "text", "text": f"[from the result of {call}]"}, *pictures]

    # -- the model's turns ---------------------------------------------------------------------------------------------

    def _assistant(self, blocks: Sequence[Mapping[str, object]]) -> None:
        text = thought = ""
        calls: list[object] = []
        for block in blocks:
            kind = as_text(block.get("type"))
            if kind == "text":
                text += self._text(block)
            elif kind == "thinking":
                thought += as_text(block.get("thinking"))
            elif kind == "tool_use":
                calls.append(self._call(block))
            elif kind not in {"fallback", "redacted_thinking"}:
                raise Untranslatable(f"a block of type {kind[:60]} cannot be shown to this model")
            else:
                self._notes.add(kind)
        if thought and self._official:
            self._notes.add("thinking of earlier turns")
            thought = ""
        if not (text or thought or calls):
            return
        if not self._messages or self._messages[-1]["role"] != "assistant":
            self._messages.append({"role": "assistant", "content": None})
        last = self._messages[-1]
        last["content"] = as_text(last["content"]) + text or (None if calls or last.get("tool_calls") else "")
        if thought:
            last["reasoning_content"] = as_text(last.get("reasoning_content")) + thought
        if calls:
            last["tool_calls"] = [*as_list(last.get("tool_calls")), *calls]

    def _call(self, block: Mapping[str, object]) -> dict[str, object]:
        self._notes.leave(block, frozenset({"id", "input", "name", "type"}))
        call = text_of(block, "id", "a tool_use")
        self._unanswered.add(call)
        arguments = fast_json.encode(block.get("input") or {}).decode()
        function = {"name": text_of(block, "name", "a tool_use"), "arguments": arguments}
        return {"id": call, "type": "function", "function": function}


def _flat(message: dict[str, object]) -> dict[str, object]:
    """Text alone as a string, which every chat template takes."""
    parts = message["content"]
    if not isinstance(parts, list) or any(part["type"] != "text" for part in parts):
        return message
    return {**message, "content": "\n\n".join(part["text"] for part in parts)}
