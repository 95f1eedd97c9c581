"""The bodies of requests as they come in: of a length that is known, or in chunks.

Owns one invariant: all bodies that are on their way take no more memory together than they may, and what was counted for one is
given back once, however it ends. Where a body begins is ``wire_request``'s to say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from coordinator.kit.wire import RequestParser, WireError, WireUpgrade
from coordinator.kit.wire_request import RequestRefused

if TYPE_CHECKING:
    from coordinator.kit.wire_request import HeadReader

_CHUNKED_HEAD: Final = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
_SMALL_BYTES: Final = 2048
"""Pieces up to this size are gathered, so that a body that comes byte by byte takes no more memory than another."""


class BodyRoom:
    """What the bodies that are still on their way may take, on all connections of a server together: ``most_bytes``."""

    __slots__ = ("_most_bytes", "taken_bytes")

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self.taken_bytes = 0

    def take(self, size: int) -> None:
        """Raises ``RequestRefused``; then nothing was taken."""
        if self.taken_bytes + size > self._most_bytes:
            raise RequestRefused(503, "Too many large requests are on their way.")
        self.taken_bytes += size


class SizedBody:
    """A body of a known length that comes in pieces. Whoever has it calls ``taken`` or ``drop`` in the end."""

    __slots__ = ("_held_bytes", "_need", "_pieces", "_reader", "_room", "got_bytes")

    extra: Final = False

    def __init__(self, reader: HeadReader, room: BodyRoom) -> None:
        self._held_bytes = 0
        self._need = reader.length
        self._pieces: list[bytes | bytearray] = []
        self._reader = reader
        self._room = room
        self.got_bytes = 0

    @property
    def whole(self) -> bool:
        return not self._need

    def feed(self, data: bytes) -> bytes:
        """Returns what is behind the body. Raises ``RequestRefused``."""
        need, rest = self._need, b""
        if len(data) > need:
            data, rest = data[:need], data[need:]
        self._need = need - len(data)
        self.got_bytes += len(data)
        self._reader.skip(data)
        self._room.take(len(data))
        self._held_bytes += len(data)
        pieces = self._pieces
        if len(data) > _SMALL_BYTES or not pieces:
            pieces.append(data)
        elif isinstance(pieces[-1], bytearray):
            pieces[-1] += data
        else:
            pieces.append(bytearray(data))
        return rest

    def drop(self) -> None:
        """Nobody wants what came so far."""
        self._pieces.clear()
        self._room.taken_bytes -= self._held_bytes
        self._held_bytes = 0

    def taken(self) -> bytes:
        body = b"".join(self._pieces)
        self.drop()
        return body


class ChunkedBody:
    """The same of a body in chunks, without their extensions and the trailer. ``extra``: something came behind its end in one
    piece with it, and nobody knows where it begins."""

    __slots__ = ("_body", "_dropped_bytes", "_held_bytes", "_parser", "_room", "extra", "on_body", "whole")

    def __init__(self, room: BodyRoom) -> None:
        self._body = bytearray()
        self._dropped_bytes = 0
        self._held_bytes = 0
        self._room = room
        self.extra = False
        self.on_body = self._body.extend  # called by the parser, without a frame of ours for each chunk
        self.whole = False
        self._parser = RequestParser(self)
        self._parser.feed_data(_CHUNKED_HEAD)

    @property
    def got_bytes(self) -> int:
        return self._dropped_bytes + len(self._body)

    def feed(self, data: bytes) -> bytes:
        """Returns nothing. Raises ``RequestRefused``."""
        try:
            self._parser.feed_data(data)
        except (WireError, WireUpgrade) as error:
            if not self.whole:
                raise RequestRefused(400, f"These are no chunks: {error}.") from error
            self.extra = True
        came = len(self._body) - self._held_bytes
        self._room.take(came)
        self._held_bytes += came
        return b""

    def drop(self) -> None:
        """Nobody wants what came so far."""
        self._dropped_bytes += len(self._body)
        self._body.clear()
        self._room.taken_bytes -= self._held_bytes
        self._held_bytes = 0

    def taken(self) -> bytes:
        body = bytes(self._body)
        self.drop()
        return body

    # --------------------------------------------------------------------------------------------- called by the parser

    def on_message_begin(self) -> None:
        self.extra = self.whole

    def on_message_complete(self) -> None:
        self.whole = True
