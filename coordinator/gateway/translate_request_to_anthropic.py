"""An OpenAI client's chat request for an upstream that speaks Anthropic's Messages.

Owns one invariant: turns alternate and the results of a turn's calls come first in the next one, as Anthropic demands,
with every text, picture, call and result of the conversation in its order. It does not know which model will answer.
"""

from __future__ import annotations

import re
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
    reasoning_of,
    text_of,
    tool_input,
)
from coordinator.gateway.translate_tools import tools_to_anthropic

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_KNOWN: Final = frozenset(
    {
        "max_completion_tokens",
        "max_tokens",
        "messages",
        "modalities",
        "model",
        "n",
        "parallel_tool_calls",
        "response_format",
        "safety_identifier",
        "stop",
        "stream",
        "stream_options",
        "temperature",
        "tool_choice",
        "tools",
        "top_k",
        "top_p",
        "user",
    }
)
_OPENAI_ONLY: Final = ("audio", "function_call", "functions", "web_search_options")
_SAMPLING: Final = ("temperature", "top_k", "top_p")
_MESSAGE: Final = frozenset(
    {"content", "reasoning", "reasoning_content", "refusal", "role", "tool_call_id", "tool_calls"}
)
_PICTURES: Final = re.compile(r"data:(image/(?:gif|jpeg|png|webp));base64,([A-Za-z0-9+/=_-]+)")
_NOT_IN_IDS: Final = re.compile(r"[^A-Za-z0-9_-]")


def to_anthropic(body: bytes, *, model: str, default_max_tokens: int, sampling: bool = False) -> Translated:
    """The request as Messages. ``default_max_tokens``: when the client sets no limit; Anthropic wants one.

    ``sampling``: the model takes a temperature; Claude refuses the whole request for one since Opus 4.7 and Sonnet 5.
    Raises ``BadJson`` and ``Untranslatable``.
    """
    asked = object_of(body, "the request")
    _refuse(asked)
    notes = Notes()
    notes.leave(asked, _KNOWN)
    turns = _Turns(notes)
    for at, message in enumerate(maps_of(asked.get("messages"), "messages")):
        turns.add(message, f"message {at}")
    most = asked.get("max_completion_tokens")
    if most is None:
        most = asked.get("max_tokens")
    said: dict[str, object] = {"model": model, "max_tokens": default_max_tokens if most is None else most}
    said |= turns.messages()
    said |= tools_to_anthropic(asked, notes)
    if "tools" in said:  # who calls tools comes back with all of it; OpenAI keeps a prefix unasked, Anthropic when told
        said["cache_control"] = {"type": "ephemeral"}
        notes.add("cache_control", "added: what was sent is cached for the next turn, as OpenAI does by itself")
    said |= _limits(asked, notes, sampling=sampling)
    said |= _format(asked, notes)
    if asked.get("stream") is True:
        said["stream"] = True
    counted = as_map(asked.get("stream_options")).get("include_usage") is True
    return Translated(body=fast_json.encode(said), notes=notes.all(), usage=counted)


def _refuse(asked: Mapping[str, object]) -> None:
    for name in _OPENAI_ONLY:
        if asked.get(name):
            raise Untranslatable(f"{name} is OpenAI's own; this model is served by Anthropic")
    if asked.get("n") not in (None, 1):
        raise Untranslatable("n must be 1: Claude gives one answer to a request")
    if "audio" in as_list(asked.get("modalities")):
        raise Untranslatable("Claude does not speak: modalities must be text")


def _limits(asked: Mapping[str, object], notes: Notes, *, sampling: bool) -> dict[str, object]:
    said: dict[str, object] = {}
    if sampling:
        said = {name: asked[name] for name in _SAMPLING if asked.get(name) is not None}
        heat = said.get("temperature")
        if isinstance(heat, int | float) and heat > 1:
            said["temperature"] = 1
            notes.add("temperature", "1, which is the highest at Anthropic")
        if heat is not None and said.pop("top_p", None) is not None:
            notes.add("top_p", "Claude takes it or a temperature, not both")
    else:
        notes.leave({name: asked.get(name) for name in _SAMPLING}, frozenset())
    stop = asked.get("stop")
    stops = [stop] if isinstance(stop, str) else as_list(stop)
    if any(not as_text(one).strip() for one in stops):
        raise Untranslatable("Claude cannot be stopped at white space alone")
    if stops:
        said["stop_sequences"] = stops
    user = as_text(asked.get("user")) or as_text(asked.get("safety_identifier"))
    if user:
        said["metadata"] = {"user_id": user}
    return said


def _format(asked: Mapping[str, object], notes: Notes) -> dict[str, object]:
    wanted = as_map(asked.get("response_format"))
    kind = as_text(wanted.get("type"))
    if kind == "json_schema":
        schema = as_map(wanted.get("json_schema")).get("schema")
        if not isinstance(schema, dict):
            raise Untranslatable("response_format must have a json_schema with a schema")
        return {"output_config": {"format": {"type": "json_schema", "schema": schema}}}
    if kind == "json_object":
        notes.add("response_format", "JSON without a schema is asked for in the prompt only")
    elif kind not in {"", "text"}:
        raise Untranslatable("response_format must be text, json_object or json_schema")
    return {}


# -- messages ----------------------------------------------------------------------------------------------------------


class _Turns:
    """The turns as they grow."""

    __slots__ = ("_ids", "_messages", "_notes", "_system", "_taken")

    def __init__(self, notes: Notes) -> None:
        self._ids: dict[str, str] = {}
        self._messages: list[tuple[str, list[dict[str, object]]]] = []
        self._notes = notes
        self._system: list[dict[str, object]] = []
        self._taken: set[str] = set()

    def messages(self) -> dict[str, object]:
        """``system`` and ``messages``."""
        if not self._messages:
            raise Untranslatable("there is no message with anything in it")
        if self._messages[-1][0] == "assistant":
            self._notes.add("last message", "Claude goes on with it instead of answering it")
        said: dict[str, object] = {"system": self._system} if self._system else {}
        turns: list[object] = []
        for role, blocks in self._messages:
            ordered = sorted(blocks, key=_after_results)
            turns.append({"role": role, "content": ordered})
        said["messages"] = turns
        return said

    def add(self, message: Mapping[str, object], where: str) -> None:
        self._notes.leave(message, _MESSAGE, "messages.")
        role = as_text(message.get("role"))
        if role in {"developer", "system"}:
            self._instruct(self._texts(message.get("content"), where))
        elif role == "user":
            self._say("user", self._parts(message.get("content"), where))
        elif role == "assistant":
            self._say("assistant", self._answer(message, where))
        elif role == "tool":
            self._say("user", [self._result(message, where)])
        else:
            raise Untranslatable(f"{where} must be of the system, a developer, a user, the assistant or a tool")

    def _say(self, role: str, blocks: Iterable[dict[str, object]]) -> None:
        blocks = list(blocks)
        if self._messages and self._messages[-1][0] == role:
            self._messages[-1][1].extend(blocks)
        elif blocks:
            self._messages.append((role, blocks))

    def _instruct(self, texts: list[str]) -> None:
        """Later instructions stay where they are: moved to the front, they would spoil the order and what is cached."""
        if not self._messages:
            self._system.extend({"type": "text", "text": text} for text in texts)
        elif texts:
            said = "\n\n".join(texts)
            self._notes.add("system message", "later than the first; sent as the user's, in <system-reminder>")
            self._say("user", [{"type": "text", "text": f"<system-reminder>\n{said}\n</system-reminder>"}])

    def _texts(self, content: object, where: str) -> list[str]:
        """What is only text: Anthropic takes no block of text that is blank."""
        texts = []
        for part in blocks_of(content, where):
            if part.get("type") != "text":
                raise Untranslatable(f"{where} can hold text only")
            self._notes.leave(part, frozenset({"text", "type"}))
            if (text := as_text(part.get("text"))).strip():
                texts.append(text)
        return texts

    def _parts(self, content: object, where: str) -> Iterable[dict[str, object]]:
        for part in blocks_of(content, where):
            kind = as_text(part.get("type"))
            if kind == "text":
                for text in self._texts([part], where):
                    yield {"type": "text", "text": text}
            elif kind == "image_url":
                yield {"type": "image", "source": self._picture(part, where)}
            else:
                raise Untranslatable(f"{where} has a part of type {kind[:60]}, which Claude cannot be shown from here")

    def _picture(self, part: Mapping[str, object], where: str) -> dict[str, object]:
        picture = as_map(part.get("image_url"))
        if picture.get("detail") not in (None, "auto"):
            self._notes.add("image_url.detail")
        url = text_of(picture, "url", f"an image of {where}")
        if match := _PICTURES.fullmatch(url):
            return {"type": "base64", "media_type": match[1], "data": match[2]}
        if not url.startswith(("http://", "https://")):
            raise Untranslatable(f"an image of {where} must be a GIF, JPEG, PNG or WebP in base64, or have an address")
        return {"type": "url", "url": url}

    def _answer(self, message: Mapping[str, object], where: str) -> Iterable[dict[str, object]]:
        if reasoning_of(message):
            self._notes.add("reasoning of earlier turns", "Claude takes back only its own")
        content = message.get("content")
        for part in blocks_of(content, where):
            text = as_text(part.get("text")) or as_text(part.get("refusal"))
            if part.get("type") not in ("text", "refusal"):
                raise Untranslatable(f"{where} can hold text only")
            if text.strip():
                yield {"type": "text", "text": text}
        refusal = as_text(message.get("refusal"))
        if not content and refusal.strip():
            yield {"type": "text", "text": refusal}
        for call in maps_of(message.get("tool_calls"), f"tool_calls of {where}"):
            yield self._call(call, where)

    def _call(self, call: Mapping[str, object], where: str) -> dict[str, object]:
        if call.get("type") not in (None, "function"):
            raise Untranslatable(f"{where} calls what is no function")
        function = as_map(call.get("function"))
        given, whole = tool_input(function.get("arguments"))
        if not whole:
            self._notes.add("tool_calls.arguments", "no JSON object; given as {'arguments': …}")
        name = text_of(function, "name", f"a call of {where}")
        return {
            "type": "tool_use",
            "id": self._id(text_of(call, "id", f"a call of {where}")),
            "name": name,
            "input": given,
        }

    def _result(self, message: Mapping[str, object], where: str) -> dict[str, object]:
        call = self._id(text_of(message, "tool_call_id", where))
        blocks: Sequence[object] = list(self._parts(message.get("content"), where))
        result: dict[str, object] = {"type": "tool_result", "tool_use_id": call}
        return {**result, "content": blocks} if blocks else result

    def _id(self, given: str) -> str:
        """Anthropic takes letters, digits, ``_`` and ``-``. The same id becomes the same, two never become one."""
        if given not in self._ids:
            clean = said = _NOT_IN_IDS.sub("_", given)
            number = 1
            while said in self._taken:
                number += 1
                said = f"{clean}_{number}"
            self._taken.add(said)
            self._ids[given] = said
        return self._ids[given]


def _after_results(block: Mapping[str, object]) -> bool:
    return block["type"] != "tool_result"
