"""What may be called the same call: the bytes of a request, its normal form, and what beside its body has a meaning.

Owns one invariant: two calls have equal forms only if the same answer serves both, but for ids and each agent's own folders.
What is not understood stays in the form, so it keeps calls apart. Hashes find candidates; forms are compared byte by byte.
It is also the door to ``xxhash``. How the answer to one is told to another is ``retold``'s.

``STRICT`` leaves out what no model sees. ``LOOSE`` leaves out besides what Claude Code says of the day, the branch, the git
user and the last commits, unless the conversation has come to speak of such things; files that differ from the last
commit stay in. Which is which was found by comparing real requests (CLAUDE-CODE.md section 9 of the project's notes).
"""

from __future__ import annotations

import enum
import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from json import loads
from typing import TYPE_CHECKING, Any, Final

import msgspec  # noqa: TC002 (msgspec reads the annotation when the class is made)
import xxhash

from coordinator.gateway.envelope import Sparse, sparse_reader
from coordinator.gateway.fast_json import BadJson, decode, encode

if TYPE_CHECKING:
    from coordinator.gateway.agent_paths import AgentPaths
    from coordinator.gateway.dialect import Dialect
    from coordinator.kit.wire import RawHeaders


class Sameness(enum.StrEnum):
    """How alike calls must be to share one upstream call."""

    LOOSE = "loose"
    OFF = "off"
    """Each call goes up, a client's second try included."""
    RAW = "raw"
    """Byte for byte."""
    STRICT = "strict"


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalised:
    """``digest`` is of ``form``. ``blanked``: what loose mode left out and an answer might name. ``deterministic``: asked at
    temperature 0. ``sealed``: the answer will hold reasoning that is signed and cannot be told anew."""

    blanked: frozenset[str] = frozenset()
    deterministic: bool = False
    digest: bytes
    form: bytes
    sealed: bool = False


class _Skimmed(Sparse):
    max_tokens: Any = None
    messages: list[msgspec.Raw] | None = None
    model: Any = None


_skim: Final = sparse_reader(_Skimmed)

_DROPPED: Final = frozenset({"cache_control", "metadata", "stream"})
_HELD_THERE: Final = frozenset({"container", "mcp_servers"})
"""The provider keeps a state or acts for the caller: two calls are two."""
_BILLING: Final = re.compile(r"x-anthropic-billing-header:(?: [a-z_]{1,40}=[\w.\-]{1,80};){1,8}\s?", re.ASCII)
"""All of a block: with more in it, a model would see what the form does not."""
_DISPLAY: Final = b"thinking-display-"
_LENGTHS: Final = frozenset(map(len, (b"accept-encoding", b"anthropic-beta", b"anthropic-version")))

_CONTEXT: Final = "<system-reminder>\nAs you answer the user's questions, you can use the following context:\n"
_GIT: Final = re.compile(
    r"(?P<a>\n# gitStatus\nThis is the git status at the start [^\n]*\n\nCurrent branch: )(?P<branch>[^\n]*)"
    r"(?P<b>\n(?:\nMain branch [^\n]*\n)?)(?P<user>(?:\nGit user: [^\n]*\n)?)"
    r"(?P<c>\nStatus:\n(?:[^\n]+\n)*\nRecent commits:\n)(?P<commits>(?:[0-9a-f]{7,40} [^\n]*\n)*)"
)
_DATE: Final = re.compile(r"(?P<a>\bToday's date is (?:now )?|\nDate: )(?P<date>\d{4}-\d\d-\d\d)\b")
_OF_STATE: Final = re.compile(
    r"\b(?:(?-i:HEAD)|authors?|bisect|blame|branch(?:es)?|changelog|checkout|cherry-pick|dates?|dirty"
    r"|git (?:describe|log|reflog|show)|history|latest commits?|merge[ds]?|pull|push|rebase[ds]?|recent commits?"
    r"|release[ds]?|revert|stash|tags?|today|tomorrow|uncommitted|year|yesterday)\b",
    re.IGNORECASE,
)
"""Whoever says one of these may get an answer that depends on what loose mode leaves out."""


# -- keys ---------------------------------------------------------------------------------------------------------------


def raw_key(body: bytes) -> bytes:
    """16 bytes that find candidates (xxh3, 128 bits): not collision-proof, so bytes are compared as well."""
    return xxhash.xxh3_128_digest(body)


def sense(dialect: Dialect, path: bytes, headers: RawHeaders) -> bytes:
    """What beside the body has a meaning. ``path`` is the protocol's own, with its query.

    ``Accept-Encoding`` counts as well: an answer that is shared is not packed anew.
    """
    betas = version = packing = b""
    for name, value in headers:
        if len(name) not in _LENGTHS:
            continue
        match name.lower():
            case b"anthropic-beta":
                betas = value if not betas else b"%b,%b" % (betas, value)
            case b"anthropic-version":
                version = value
            case b"accept-encoding":
                packing = value
    return b"%b\0%b\0%b\0%b\0%b" % (dialect.encode(), path, version, _betas(betas), packing)


@functools.lru_cache(maxsize=256)
def _betas(named: bytes) -> bytes:
    """The list as it counts. Clients send one of a few, with each call."""
    words = {word.strip() for word in named.split(b",")}
    return b",".join(sorted(word for word in words if word and not word.startswith(_DISPLAY)))


def shape(body: bytes, *, paths: AgentPaths, mode: Sameness) -> bytes:
    """A key from the model, the maximum, the number of messages and the last message's normal form: what differs in it has
    no equal normal forms, at a fraction of their cost. Empty: there is no normal form."""
    skimmed = _skim(body)
    if skimmed is None or not skimmed.messages:
        return b""
    try:
        last = decode(bytes(skimmed.messages[-1]))
        if isinstance(last, dict):
            last = _Ids().message(last)
            if mode is Sameness.LOOSE:
                _blank_message(last)
        renamed = paths.renamed(encode(last))
        head = encode((skimmed.model, skimmed.max_tokens, len(skimmed.messages)))
    except (BadJson, RecursionError):
        return b""
    return b"" if renamed is None else raw_key(head + renamed)


# -- the normal form ----------------------------------------------------------------------------------------------------


def normalised(body: bytes, *, paths: AgentPaths, mode: Sameness) -> Normalised | None:
    """The normal form of a request to Anthropic's ``/v1/messages``; in raw mode, of any request, its bytes.

    None: it has none, so that nothing is the same as it. ``paths``: the folders of the agent that sent it.
    """
    if mode is Sameness.RAW:
        return Normalised(digest=raw_key(body), form=body)
    try:
        asked = decode(body)
        if mode is Sameness.OFF or not isinstance(asked, dict) or _acts_elsewhere(asked) or _repeats(body, asked):
            return None
        blanked = _reduce(asked, mode)
        form = paths.renamed(encode(dict(sorted(asked.items()))))
    except (BadJson, RecursionError):
        return None
    if form is None:
        return None
    thinking = asked.get("thinking")
    return Normalised(
        blanked=blanked,
        deterministic=type(heat := asked.get("temperature")) in (int, float) and heat == 0,
        digest=raw_key(form),
        form=form,
        sealed=isinstance(thinking, dict) and thinking.get("type") == "enabled",
    )


def _acts_elsewhere(asked: dict[str, Any]) -> bool:
    """Whether the provider itself would do something that must be done for each caller, or no messages are there."""
    tools = asked.get("tools")
    kinds = [tool.get("type") for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    runs = any(isinstance(kind, str) and kind.startswith("code_execution") for kind in kinds)
    return runs or not isinstance(asked.get("messages"), list) or not _HELD_THERE.isdisjoint(asked)


def _repeats(body: bytes, asked: dict[str, Any]) -> bool:
    """Whether an object names a key twice: which of the two a provider reads is its own affair.

    What is as compact as we write it has none; only other JSON is read once more for it.
    """
    return encode(asked) != body and _repeats_key(body)


def _repeats_key(body: bytes) -> bool:
    found = False

    def look(pairs: list[tuple[str, Any]]) -> None:
        nonlocal found
        found = found or len(pairs) != len({name for name, _ in pairs})

    try:
        loads(body, object_pairs_hook=look)
    except ValueError:
        return True
    return found


def _reduce(asked: dict[str, Any], mode: Sameness) -> frozenset[str]:
    """Take out what has no meaning. Gives what was blanked."""
    for name in _DROPPED & asked.keys():
        del asked[name]
    if isinstance(thinking := asked.get("thinking"), dict):
        thinking.pop("display", None)
    if isinstance(tools := asked.get("tools"), list):
        asked["tools"] = [_uncached(tool) for tool in tools]
    ids = _Ids()
    if "system" in asked:
        blocks = ids.content(asked["system"])
        asked["system"] = [block for block in blocks if not _is_billing(block)] if isinstance(blocks, list) else blocks
    messages = [ids.message(message) if isinstance(message, dict) else message for message in asked["messages"]]
    asked["messages"] = messages
    if mode is not Sameness.LOOSE or _speaks_of_state(messages):
        return frozenset()
    blanked = {word for message in messages if isinstance(message, dict) for word in _blank_message(message)}
    if isinstance(system := asked.get("system"), list):
        blanked.update(_blank_blocks(system, date=True))
    return frozenset(blanked)


def _is_billing(block: object) -> bool:
    text = block.get("text") if isinstance(block, dict) and block.keys() == {"type", "text"} else None
    return isinstance(text, str) and _BILLING.fullmatch(text) is not None


def _uncached(value: Any) -> Any:
    if isinstance(value, dict) and "cache_control" in value:
        return {name: item for name, item in value.items() if name != "cache_control"}
    return value


class _Ids:
    """Blocks without cache marks, texts as blocks, and ids of tool calls by their first use."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def message(self, message: dict[str, Any]) -> dict[str, Any]:
        message = dict(_uncached(message))
        if "content" in message:
            message["content"] = self.content(message["content"])
        return message

    def content(self, content: Any) -> Any:
        if isinstance(content, str):
            return [{"type": "text", "text": content}]
        return [self._block(block) for block in content] if isinstance(content, list) else content

    def _block(self, block: Any) -> Any:
        if not isinstance(block, dict):
            return block
        block, kind = dict(_uncached(block)), block.get("type")
        if isinstance(kind, str) and kind.endswith("tool_use") and isinstance(block.get("id"), str):
            block["id"] = self._number(block["id"])
        if isinstance(kind, str) and kind.endswith("tool_result"):
            if isinstance(block.get("tool_use_id"), str):
                block["tool_use_id"] = self._number(block["tool_use_id"])
            if kind == "tool_result" and "content" in block:
                block["content"] = self.content(block["content"])
        elif kind == "document" and isinstance(source := block.get("source"), dict) and "content" in source:
            block["source"] = {**source, "content": self.content(source["content"])}
        return block

    def _number(self, name: str) -> str:
        return self._known.setdefault(name, f"#{len(self._known)}")


# -- loose mode ---------------------------------------------------------------------------------------------------------


def _blank_message(message: dict[str, Any]) -> set[str]:
    """What Claude Code itself says of day and git, in place. Gives what it said."""
    content, role = message.get("content"), message.get("role")
    return _blank_blocks(content, date=role == "system") if isinstance(content, list) else set()


def _blank_blocks(blocks: Iterable[Any], *, date: bool) -> set[str]:
    said: set[str] = set()

    def blank(found: re.Match[str]) -> str:
        parts = found.groupdict()
        said.update(parts[name] for name in ("branch", "date") if parts.get(name))
        return "".join(parts[name] or "" for name in ("a", "b", "c") if name in parts)

    for block in blocks:
        if not isinstance(block, dict) or not isinstance(text := block.get("text"), str):
            continue
        reminder = text.startswith(_CONTEXT)
        text = _GIT.sub(blank, text) if reminder else text
        block["text"] = _DATE.sub(blank, text) if reminder or date else text
    return said


def _speaks_of_state(messages: Iterable[Any]) -> bool:
    """Whether a person, the model or a call of a tool has come to speak of what loose mode leaves out."""
    for message in messages:
        if not isinstance(message, Mapping) or message.get("role") == "system":
            continue
        for block in message["content"] if isinstance(message.get("content"), list) else ():
            if not isinstance(block, dict):
                continue
            text = block.get("text") if block.get("type") == "text" else None
            if isinstance(text, str) and not text.startswith("<system-reminder>") and _OF_STATE.search(text):
                return True
            if block.get("type") == "tool_use" and _OF_STATE.search(encode(block.get("input")).decode()):
                return True
    return False
