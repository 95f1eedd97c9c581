"""What both directions of the translation between Anthropic's Messages and OpenAI's chat completions share.

Owns one invariant: what cannot be carried over is named in a note or refused, never dropped in silence.
It builds no message and reads no stream: the ``translate_*`` modules do.
Considered and not used, each run on two interleaved tool calls: litellm (140 MB, seconds to import) mixes up their arguments;
llm-rosetta (small, MIT) and any-llm open two blocks at a time, llm-rosetta under one index and without a word on ``is_error``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from coordinator.gateway import fast_json
from coordinator.gateway.dialect import Denial

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NOTES: Final = 40
"""The most notes about one call; a body with more unknown keys than that is somebody's joke."""

_BY_STATUS: Final[Mapping[int, Denial]] = {denial.value.status: denial for denial in Denial}

_STOP_TO_ANTHROPIC: Final[Mapping[str, str]] = {
    "content_filter": "refusal",
    "length": "max_tokens",
    "stop": "end_turn",
}
STOP_TO_OPENAI: Final[Mapping[str, str]] = {
    "end_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "pause_turn": "stop",
    "refusal": "content_filter",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
}


GIVEN_UP: Final = frozenset({"abort", "error"})
"""Finish reasons of an answer that is none."""
_CALLING: Final = frozenset({"function_call", "tool_calls"})


class Untranslatable(Exception):
    """The other protocol has no honest word for it. The message is one sentence for whoever sent it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Translated:
    """A body in the other protocol. ``notes``: what was left out or changed, each as ``name: why``.

    ``thinking``: the client wants to see the model's thinking; ``usage``: it asked for the chunk with token counts.
    Both are arguments of the stream that brings the answer back.
    """

    body: bytes
    notes: tuple[str, ...] = ()
    thinking: bool = False
    usage: bool = False


class Notes:
    """What is said about one translation, each thing once."""

    __slots__ = ("_said",)

    def __init__(self) -> None:
        self._said: dict[str, None] = {}

    def add(self, name: str, why: str = "not carried over") -> None:
        if len(self._said) < NOTES:
            self._said[f"{name[:80]}: {why}"] = None

    def leave(self, said: Mapping[str, object], known: frozenset[str], where: str = "") -> None:
        """Names every key that is not ``known``, unless its value says nothing (null, false, empty)."""
        if not said.keys() <= known:
            for name, value in said.items():
                if name not in known and value is not None and value is not False and value not in ("", [], {}):
                    self.add(f"{where}{name}")

    def all(self) -> tuple[str, ...]:
        return tuple(self._said)


# -- shapes: a value of another type than expected counts as absent ----------------------------------------------------


def as_map(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def as_list(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else ()


def as_text(value: object) -> str:
    return value if isinstance(value, str) else ""


def as_count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


# -- shapes that must be right -----------------------------------------------------------------------------------------


def object_of(data: bytes, what: str) -> Mapping[str, object]:
    """Raises ``BadJson`` and ``Untranslatable``."""
    value = fast_json.decode(data)
    if not isinstance(value, dict):
        raise Untranslatable(f"{what} must be a JSON object")
    return value


def maps_of(value: object, what: str) -> Sequence[Mapping[str, object]]:
    """A list of objects; none for null. Raises ``Untranslatable``."""
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise Untranslatable(f"{what} must be a list of objects")
    return value


def text_of(said: Mapping[str, object], name: str, what: str) -> str:
    """A string that is there and not empty. Raises ``Untranslatable``."""
    value = said.get(name)
    if not isinstance(value, str) or not value:
        raise Untranslatable(f"{what} must have a {name}")
    return value


def blocks_of(content: object, what: str) -> Sequence[Mapping[str, object]]:
    """Content as a list of blocks, a string being one block of text. Raises ``Untranslatable``."""
    if isinstance(content, str):
        return ({"type": "text", "text": content},)
    return maps_of(content, f"the content of {what}")


# -- words of the answer -----------------------------------------------------------------------------------------------


def stop_to_anthropic(finish: str, *, called: bool, stop_sequence: str) -> str:
    """The stop reason. Some servers end a tool call with ``stop``: what was called counts more than what is said."""
    if called and finish in {"", "stop"}:
        return "tool_use"
    if finish in _CALLING:
        return "tool_use" if called else "end_turn"
    if stop_sequence and finish == "stop":
        return "stop_sequence"
    return _STOP_TO_ANTHROPIC.get(finish, "end_turn")


def usage_to_anthropic(usage: Mapping[str, object]) -> dict[str, int]:
    """Tokens. OpenAI's prompt tokens have those from the cache in them, Anthropic's input tokens have not."""
    details = as_map(usage.get("prompt_tokens_details"))
    read = as_count(details.get("cached_tokens"))
    written = as_count(details.get("cache_write_tokens"))
    return {
        "input_tokens": max(as_count(usage.get("prompt_tokens")) - read - written, 0),
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": read,
        "output_tokens": as_count(usage.get("completion_tokens")),
    }


def usage_to_openai(usage: Mapping[str, object]) -> dict[str, object]:
    read = as_count(usage.get("cache_read_input_tokens"))
    written = as_count(usage.get("cache_creation_input_tokens"))
    prompt = as_count(usage.get("input_tokens")) + read + written
    answer = as_count(usage.get("output_tokens"))
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": read, "cache_write_tokens": written},
    }


def tool_input(arguments: object) -> tuple[dict[str, object], bool]:
    """A call's arguments as an object, and whether they were one. What a model garbled is kept under ``arguments``."""
    if arguments is None or arguments == "":
        return {}, True
    if isinstance(arguments, dict):
        return arguments, True
    value: object = arguments
    if isinstance(arguments, str):
        try:
            value = fast_json.decode(arguments.encode("utf-8", "replace"))
        except fast_json.BadJson:
            value = arguments
    return (value, True) if isinstance(value, dict) else ({"arguments": arguments}, False)


def reasoning_of(said: Mapping[str, object]) -> str:
    """The thinking in a message or a delta: llama.cpp and DeepSeek name it one way, newer vLLM the other."""
    return as_text(said.get("reasoning_content")) or as_text(said.get("reasoning"))


def plain_text(content: object) -> str:
    """OpenAI's content: a string, null, or parts, of which those with text are joined."""
    if isinstance(content, str):
        return content
    return "".join(as_text(as_map(part).get("text")) for part in as_list(content))


def denial_of(status: int) -> Denial:
    """The words, in each protocol, for an upstream's HTTP status."""
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if status == 408:
        return Denial.TOO_LATE
    return Denial.FAULT if status >= 500 else Denial.BAD_REQUEST
