"""What both translated streams share: reading server-sent events out of pieces of any size, and how a stream ends.

Owns two invariants: the same bytes give the same answer, however they were cut; and a client is told that its answer is
whole only when the upstream said so, and otherwise that it broke off. Memory is bounded by the longest event.
What the events mean is known in ``translate_stream_to_anthropic`` and ``translate_stream_to_openai``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

from coordinator.gateway import fast_json
from coordinator.gateway.translate_terms import Notes, as_map

if TYPE_CHECKING:
    from collections.abc import Mapping

EVENT_BYTES: Final = 16 * 1024 * 1024
"""The longest event. The longest that was seen is a file which a model writes in one call: some hundred KB."""
LINE_BYTES: Final = 64
"""What a line of it costs besides its own length."""
COMMENT: Final = b":"
"""The name of what is no event: a line that keeps the connection alive."""


class EventReader:
    """``feed`` gives each event once it is whole, as its name (mostly empty) and its data."""

    __slots__ = ("_buffer", "_data", "_held_bytes", "_name", "_scanned", "_was_cr")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._data: list[bytes] = []
        self._held_bytes = 0
        self._name = b""
        self._scanned = 0
        self._was_cr = False

    def feed(self, data: bytes) -> list[tuple[bytes, bytes]]:
        """Raises ``BadJson`` when an event is longer than any can be."""
        if not data:
            return []
        if self._was_cr or b"\r" in data:
            data = self._newlines(data)
        events: list[tuple[bytes, bytes]] = []
        buffer = self._buffer
        buffer += data
        start = 0
        while (end := buffer.find(b"\n", max(start, self._scanned))) >= 0:
            self._line(bytes(buffer[start:end]), events)
            start = end + 1
        del buffer[:start]
        self._scanned = len(buffer)
        if self._held_bytes + len(buffer) > EVENT_BYTES:
            raise fast_json.BadJson(f"an event of more than {EVENT_BYTES // 2**20} MB")
        return events

    def _newlines(self, data: bytes) -> bytes:
        if self._was_cr and data.startswith(b"\n"):
            data = data[1:]
        self._was_cr = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _line(self, line: bytes, events: list[tuple[bytes, bytes]]) -> None:
        if not line:
            if self._data:
                events.append((self._name, b"\n".join(self._data)))
            self._data, self._name, self._held_bytes = [], b"", 0
            return
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
            self._held_bytes += len(value) + LINE_BYTES
        elif field == b"event":
            self._name = value
        elif field == b"error":  # older llama.cpp
            events.append((field, value))
        elif not field:
            events.append((COMMENT, value))


class AnswerStream(ABC):
    """``feed`` takes bytes as they come and gives the bytes to send now; it never raises.

    ``usage``: tokens as the upstream counted them, in its own words. ``block_ended``: a whole block has gone out, which the
    client may have acted upon. ``finished``: the answer is whole. ``error``: what the client was told broke it off. After
    either nothing is sent any more.
    """

    __slots__ = ("_notes", "_out", "_reader", "block_ended", "error", "finished", "usage")

    def __init__(self) -> None:
        self.block_ended = False
        self.error = ""
        self.finished = False
        self.usage: dict[str, object] = {}
        self._notes = Notes()
        self._out: list[bytes] = []
        self._reader = EventReader()

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out of the answer, each as ``name: why``."""
        return self._notes.all()

    def feed(self, data: bytes) -> bytes:
        """Bytes of the upstream's answer, cut anywhere."""
        self._read(data)
        return self._taken()

    def end(self) -> bytes:
        """The upstream's answer has come to its end: in good order, or without its last word."""
        self._read(b"\n\n")  # an event that lacks only the blank line after it
        if not self._is_over():
            self._close()
        return self._taken()

    def broken(self, message: str) -> bytes:
        """The stream cannot go on. What was begun stays unfinished, so that no half call is run."""
        self._fail(message)
        return self._taken()

    @abstractmethod
    def _event(self, name: bytes, data: Mapping[str, object]) -> None:
        """One event of the upstream's; ``[DONE]`` is a name."""

    @abstractmethod
    def _close(self) -> None:
        """Finishes the answer, or fails when too little of it has come."""

    @abstractmethod
    def _failure(self, message: str, status: int) -> bytes:
        """The event that tells the client."""

    @abstractmethod
    def _alive(self) -> None:
        """The upstream has nothing to say, and says so."""

    def _read(self, data: bytes) -> None:
        try:
            for name, said in [] if self._is_over() else self._reader.feed(data):
                if name == COMMENT:
                    self._alive()
                elif said == b"[DONE]":
                    self._event(said, {})
                else:
                    self._event(name, as_map(fast_json.decode(said)))
                if self._is_over():
                    return
        except fast_json.BadJson as error:
            self._fail(f"the upstream's stream cannot be read: {error}")

    def _fail(self, message: str, status: int = 502) -> None:
        if not self._is_over():
            self.error = message or "the upstream broke off its answer"
            self._out.append(self._failure(self.error, status))

    def _is_over(self) -> bool:
        return self.finished or bool(self.error)

    def _taken(self) -> bytes:
        out, self._out = b"".join(self._out), []
        return out
