"""One agent's answer told to another: new ids, and the teller's folders turned into the listener's, as the bytes pass.

Owns one invariant: the listener is given no folder of the teller's. Where a folder cannot be put right beyond doubt, telling
stops with ``NotRetellable`` before the place is passed on: it stands in signed reasoning, or what gives it away
(``agent_paths.telling``) is left over in another spelling, in whatever string of the answer. What hides even that (a path
put together letter by letter) is not seen. It knows Anthropic's answers, streamed and whole, and nothing of connections.

A text is passed on as it comes, but for an end that may be the beginning of a folder. The input of a tool is held back until
its block ends, with an empty piece in the place of each, since no client can use it sooner. Whatever is not changed stays
byte for byte as it was.
"""

from __future__ import annotations

import enum
import hashlib
import json
import re
from typing import TYPE_CHECKING, Any, Final

from coordinator.gateway.agent_paths import telling
from coordinator.gateway.fast_json import BadJson, decode, encode

if TYPE_CHECKING:
    from collections.abc import Collection

    from coordinator.gateway.agent_paths import AgentPaths
    from coordinator.kit.wire import RawHeaders

_HELD_BYTES: Final = 8 * 1024 * 1024
"""Of one event, or of an answer that is not a stream."""
_DISTINCT: Final = 6
"""Letters of a word that is looked for wherever it stands: ``main`` stands in ``domain``."""
_EVENT_END: Final = re.compile(rb"\r?\n\r?\n")
_LITERAL: Final = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_PREFIXED: Final = re.compile(r"([a-z]+_).+")
_SEALED: Final = frozenset({"redacted_thinking", "signature_delta", "thinking", "thinking_delta"})


class NotRetellable(Exception):
    """This answer cannot be told to another agent beyond doubt; the text says why."""


class Retelling:
    """How the folders of one agent become those of another, in texts. ``between`` says whether they can."""

    __slots__ = ("_find", "_patterns", "_table")

    def __init__(self, table: dict[str, str], telling_parts: Collection[str]) -> None:
        self._table = table
        self._patterns = sorted(table, key=len, reverse=True) + [part for part in telling_parts if part not in table]
        self._find = re.compile("|".join(map(re.escape, self._patterns)))

    @classmethod
    def between(cls, teller: AgentPaths, listener: AgentPaths, unlike: Collection[str] = ()) -> Retelling | None:
        """None: not beyond doubt. ``unlike``: other words that are the teller's alone (loose mode)."""
        if teller.names != listener.names or any(len(word) < _DISTINCT for word in unlike):
            return None
        table, parts = {}, list(unlike)
        for name, path in teller.by_name.items():
            other = listener.by_name[name]
            if path == other:
                continue
            told = telling(path, other)
            if told is None:
                return None
            table[path] = other
            parts.append(told)
        return cls(table, parts)

    @classmethod
    def of_ids(cls) -> Retelling:
        """Nothing but ids differs: the two asked with the very same words."""
        return cls({}, ())

    @property
    def idle(self) -> bool:
        """Nothing differs."""
        return not self._patterns

    def whole(self, text: str) -> str:
        """Raises ``NotRetellable``."""
        told, left = self.part(text, last=True)
        return told + left

    def part(self, text: str, *, last: bool = False) -> tuple[str, str]:
        """What can be told of ``text`` already, and the rest of it, which is to be given again with what follows."""
        if self.idle:
            return text, ""
        done: list[str] = []
        place = 0
        while True:
            found = self._find.search(text, place)
            held = len(text) if last else self._begun(text, place)
            if found is None or held <= found.start():
                done.append(text[place:held])
                return "".join(done), text[held:]
            done += (text[place : found.start()], self._instead(found[0]))
            place = found.end()

    def _instead(self, word: str) -> str:
        if word not in self._table:
            raise NotRetellable("a folder of the other agent's is named in a way that is not known")
        return self._table[word]

    def _begun(self, text: str, place: int) -> int:
        """Where the first thing begins that may be one to find once more has come; the text's length: nowhere."""
        first = len(text)
        for pattern in self._patterns:
            at = text.find(pattern[0], max(place, len(text) - len(pattern) + 1))
            while -1 < at < first:
                if pattern.startswith(text[at:]):
                    first = at
                    break
                at = text.find(pattern[0], at + 1)
        return first


class _Block:
    """One content block under way: the end of its text that is held back, and the pieces of its tool's input."""

    __slots__ = ("inputs", "text")

    def __init__(self) -> None:
        self.inputs: list[str] = []
        self.text = ""


class _Form(enum.Enum):
    """What kind of body comes."""

    EVENTS = enum.auto()
    JSON = enum.auto()
    PLAIN = enum.auto()


class Retold:
    """The rewriter of one answer for one listener. All but the constructor raise ``NotRetellable``.

    Nothing comes out before the first block has begun, so that a listener who cannot be told mostly learns it while there is
    time to ask alone. ``salt`` (any bytes, 64 at most) makes the ids this listener's own.
    """

    __slots__ = ("_blocks", "_early", "_form", "_opened", "_rest", "_retelling", "_salt")

    def __init__(self, retelling: Retelling, salt: bytes) -> None:
        self._blocks: dict[object, _Block] = {}
        self._early: list[bytes] = []
        self._form = _Form.JSON
        self._opened = False
        self._rest = b""
        self._retelling = retelling
        self._salt = salt

    def head(self, status: int, headers: RawHeaders) -> None:
        """What follows is the body of an answer with this head."""
        kind = packing = b""
        for name, value in headers:
            match name.lower():
                case b"content-type":
                    kind = value.partition(b";")[0].strip().lower()
                case b"content-encoding":
                    packing = value.strip().lower()
        if status != 200:
            self._form = _Form.PLAIN  # an error says the same to everybody
        elif packing not in (b"", b"identity"):
            raise NotRetellable("the answer is compressed")
        elif kind == b"text/event-stream":
            self._form = _Form.EVENTS
        elif kind != b"application/json":
            raise NotRetellable("the answer is neither events nor JSON")

    def feed(self, data: bytes) -> bytes:
        """The next bytes, in portions of any size. Gives what can be passed on, maybe nothing."""
        if self._form is _Form.PLAIN:
            return data
        rest = self._rest + data
        if len(rest) > _HELD_BYTES:
            raise NotRetellable("too long to be held")
        if self._form is _Form.JSON:
            self._rest = rest
            return b""
        told: list[bytes] = []
        place = 0
        for found in _EVENT_END.finditer(rest, max(0, len(self._rest) - 3)):
            told.append(self._event(rest[place : found.end()]))
            place = found.end()
        self._rest = rest[place:]
        self._early += told
        if not self._opened:
            return b""
        told, self._early = self._early, []
        return b"".join(told)

    def end(self) -> bytes:
        """The answer is whole: the rest of it."""
        if self._form is _Form.JSON:
            return self._message(self._rest)
        if self._rest.strip() or any(block.text or block.inputs for block in self._blocks.values()):
            raise NotRetellable("the answer ends in the middle of an event or of a block")
        return b"".join(self._early) + self._rest

    # -- one event -----------------------------------------------------------------------------------------------------

    def _event(self, raw: bytes) -> bytes:
        if self._opened and self._retelling.idle and b"_start" not in raw:
            return raw  # nothing in it is anybody's own
        lines = raw.splitlines()
        data = b"\n".join(line[5:].strip() for line in lines if line.startswith(b"data:"))
        if not data:
            return raw
        said = _read(data)
        kind, before, changed = said.get("type"), b"", False
        match kind:
            case "message_start":
                changed = self._own_ids(said.get("message"))
            case "content_block_start":
                changed = self._block_start(said)
            case "content_block_delta":
                changed = self._delta(said)
            case "content_block_stop":
                before = self._block_stop(said.get("index"))
            case _ if not self._retelling.idle:
                told = self._deep(said)
                changed, said = told != said, told
        self._opened = self._opened or kind not in ("message_start", "ping")
        if not changed:
            return before + raw
        others = b"".join(line + b"\n" for line in lines if line and not line.startswith(b"data:"))
        return before + others + b"data: " + _written(said) + b"\n\n"

    def _block_start(self, said: dict[str, Any]) -> bool:
        block = said.get("content_block")
        if not isinstance(block, dict):
            raise NotRetellable("a block is none that is known")
        self._blocks[said.get("index")] = state = _Block()
        if self._retelling.idle:
            return self._own_ids(block)
        if isinstance(text := block.get("text"), str):
            block["text"], state.text = self._retelling.part(text)
        said["content_block"] = {name: self._told(block, name) for name in block}
        self._own_ids(said["content_block"])
        return True

    def _told(self, block: dict[str, Any], name: str) -> Any:
        """One field of a block, whole; its text was told already, as far as it can be."""
        if name == "type" and block[name] in _SEALED:
            raise NotRetellable("signed reasoning cannot be put into other words")
        return block[name] if name == "text" and isinstance(block[name], str) else self._deep(block[name])

    def _delta(self, said: dict[str, Any]) -> bool:
        delta, block = said.get("delta"), self._blocks.get(said.get("index"))
        if not isinstance(delta, dict) or block is None:
            raise NotRetellable("a piece of a block that did not begin")
        if self._retelling.idle:
            return False
        kind, text = delta.get("type"), delta.get("text")
        piece = delta.get("partial_json")
        if kind == "text_delta" and isinstance(text, str):
            before = block.text
            delta["text"], block.text = self._retelling.part(before + text)
            return bool(before or delta["text"] != text)
        if kind == "input_json_delta" and isinstance(piece, str):
            block.inputs.append(piece)
            delta["partial_json"] = ""
            return bool(piece)
        if kind in _SEALED:
            raise NotRetellable("signed reasoning cannot be put into other words")
        said["delta"] = self._deep(delta)
        return bool(said["delta"] != delta)

    def _block_stop(self, index: object) -> bytes:
        block = self._blocks.pop(index, None)
        if block is None or not (block.text or block.inputs):
            return b""
        deltas: list[dict[str, str]] = []
        if block.text:
            deltas.append({"type": "text_delta", "text": self._retelling.whole(block.text)})
        if block.inputs:
            told = _json_told(self._retelling, "".join(block.inputs))
            deltas.append({"type": "input_json_delta", "partial_json": told})
        told_events = ({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas)
        return b"".join(b"event: content_block_delta\ndata: " + _written(event) + b"\n\n" for event in told_events)

    # -- values --------------------------------------------------------------------------------------------------------

    def _message(self, data: bytes) -> bytes:
        said = _read(data)
        content = said.get("content")
        for block in content if isinstance(content, list) else ():
            if not isinstance(block, dict):
                raise NotRetellable("a block is none that is known")
            if block.get("type") in _SEALED and not self._retelling.idle:
                raise NotRetellable("signed reasoning cannot be put into other words")
        told = said if self._retelling.idle else self._deep(said)
        changed = self._own_ids(told)
        for block in content if isinstance(content := told.get("content"), list) else ():
            changed |= self._own_ids(block)
        return _written(told) if changed or told != said else data

    def _own_ids(self, value: Any) -> bool:
        """Ids at the top of a message or a block, anew. The same id becomes the same again. Whether there was one."""
        found = False
        for name in ("id", "tool_use_id"):
            if isinstance(value, dict) and isinstance(value.get(name), str):
                known = _PREFIXED.fullmatch(value[name])
                code = hashlib.blake2b(value[name].encode(), digest_size=12, key=self._salt).hexdigest()
                value[name], found = f"{known[1] if known else ''}{code}", True
        return found

    def _deep(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._retelling.whole(value)
        if isinstance(value, dict):
            return {self._retelling.whole(name): self._deep(item) for name, item in value.items()}
        return [self._deep(item) for item in value] if isinstance(value, list) else value


def _json_told(retelling: Retelling, text: str) -> str:
    """JSON that may break off, with the strings in it told anew; all else stays as it is written."""
    done: list[str] = []
    place = 0
    for found in _LITERAL.finditer(text):
        done.append(text[place : found.start()])
        literal = found[0]
        try:
            string = json.loads(literal, strict=False)
        except ValueError as error:
            raise NotRetellable("a tool's input is no JSON") from error
        told = retelling.whole(string)
        done.append(literal if told == string else json.dumps(told, ensure_ascii=False))
        place = found.end()
    rest = text[place:]
    if '"' in rest and ("\\" in rest or retelling.whole(rest) != rest):
        raise NotRetellable("a tool's input breaks off in a place that matters")
    return "".join([*done, rest])


def _read(data: bytes) -> dict[str, Any]:
    try:
        said = decode(data)
    except BadJson as error:
        raise NotRetellable("what came is no JSON") from error
    if not isinstance(said, dict):
        raise NotRetellable("what came is no object")
    return said


def _written(said: object) -> bytes:
    try:
        return encode(said)
    except BadJson as error:
        raise NotRetellable("what came cannot be written again") from error
