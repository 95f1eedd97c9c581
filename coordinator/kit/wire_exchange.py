"""One request and its answer, on the server's side of the relay lane's wire.

Owns one invariant: an answer is framed once and exactly. What its head promised is what follows, or the connection is cut so
that the client can tell; nothing that a caller gives can end a line of the head. It reads no byte (``wire_intake`` does) and
does not know what a request means.
"""

from __future__ import annotations

import http
import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from coordinator.kit.wire import HOP_BY_HOP

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Mapping

    from coordinator.kit.wire import RawHeaders
    from coordinator.kit.wire_intake import WireIntake
    from coordinator.kit.wire_request import RequestHead

_log = logging.getLogger(__name__)

_OWN: Final = HOP_BY_HOP | {b"content-length"}
"""Fields that this side alone sets."""
_LINES: Final[Mapping[int, bytes]] = {
    status.value: b"HTTP/1.1 %d %b" % (status.value, status.phrase.encode()) for status in http.HTTPStatus
}
_WONT: Final = frozenset({b"keep-alive", b"Keep-Alive", b"close"})
"""What stands in ``Connection`` nearly always, and names no field that is not left out anyway."""
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_STARTS: Final = 1024
"""Names of fields that are remembered."""
_BODILESS: Final = frozenset({204, 304})
_JOINED_BYTES: Final = 16 * 1024
"""Up to here a copy is cheaper than a second buffer in the transport."""

# What ``_left`` is when it is not the number of bytes that are still owed.
_CHUNKED: Final = -1
_TO_THE_END: Final = -2
_NO_BODY: Final = -3
_UNSTARTED: Final = -4
_OVER: Final = -5


class Exchange:
    """What a client asks, and the only way to answer it. Lives on one loop; no method blocks.

    Once the client is gone, or the answer is over, every method of the answer does nothing. ``keep``, ``task``, ``lost`` and
    ``served`` are the intake's.
    """

    __slots__ = (
        "_asked",
        "_left",
        "_unsent",
        "_wire",
        "body",
        "finished",
        "gone",
        "keep",
        "length",
        "note",
        "notes",
        "on_gone",
        "sent_bytes",
        "task",
    )

    def __init__(self, wire: WireIntake, head: RequestHead, length: int) -> None:
        self._asked = head
        self._left = _UNSTARTED
        self._unsent = b""
        self._wire = wire
        self.body = b""
        """Whole when ``serve`` is called, empty before."""
        self.finished = False
        """The answer is whole."""
        self.gone = False
        """The client hung up before the answer was whole, or was hung up on."""
        self.keep = head.keep
        """Whether the connection may be used again."""
        self.length = length
        """Of the body, in bytes; -1: it is not known yet."""
        self.note: Any = None
        """The handler's own."""
        self.notes = head.notes
        """What was worked out of the request's head: still there when the client sends the same head again (but for its
        length), so nothing else may be in it."""
        self.on_gone: Callable[[], bool] | None = None
        """Asked when the client hangs up while it is served. True: the handler goes on for others; else it is cancelled."""
        self.sent_bytes = 0
        """Bytes of the answer's body that were given to the transport."""
        self.task: asyncio.Task[None] | None = None

    @property
    def headers(self) -> RawHeaders:
        head, length = self._asked, self.length
        if length == head.length:
            return head.headers
        said = b"%d" % length
        return tuple((name, said if name.lower() == b"content-length" else value) for name, value in head.headers)

    @property
    def method(self) -> bytes:
        return self._asked.method

    @property
    def target(self) -> bytes:
        """As it was sent; of an absolute one, what follows the authority."""
        return self._asked.target

    @property
    def peer(self) -> str:
        """Address and port of the other end."""
        return self._wire.peer

    @property
    def started(self) -> bool:
        """Whether an answer has begun (or nobody is there to get one)."""
        return self._left != _UNSTARTED

    @property
    def full(self) -> bool:
        """The client reads slower than the answer is written: whoever feeds it must pause."""
        return self._wire.full

    def header(self, name: bytes) -> bytes:
        """The first value of that name (given in lower case), or empty."""
        if name == b"content-length" and self.length != self._asked.length:
            return b"%d" % self.length
        return self._asked.index.get(name, b"").rstrip(b" \t")

    def start(
        self, status: int, headers: Iterable[tuple[bytes, bytes]], *, reason: bytes = b"", length: int | None
    ) -> None:
        """Begin the answer. ``length`` in bytes; None when it is not known: chunked, or to the connection's end for HTTP/1.0.

        The head is sent together with what follows in the same turn of the loop, or at that turn's end.
        Fields of ``HOP_BY_HOP``, those that ``Connection`` names and ``Content-Length`` are left out of ``headers``.
        Raises ``ValueError`` for what is no head, before a byte of it is sent.
        """
        if self._left == _OVER:
            return
        self._unsent = self._framed(status, headers, reason, length)
        self._wire.loop.call_soon(self._flush)

    def send(self, data: bytes) -> None:
        """Give more of the body to the transport, which buffers what the client does not take yet (see ``full``)."""
        left = self._left
        size = len(data)
        if left == _CHUNKED:
            if size > _JOINED_BYTES:
                self._wire.transport.writelines((b"%b%x\r\n" % (self._taken(), size), data, b"\r\n"))
            elif size:
                self._wire.transport.write(b"%b%x\r\n%b\r\n" % (self._taken(), size, data))
        elif left >= size or left == _TO_THE_END:
            if left >= 0:
                self._left = left - size
            if not self._unsent:
                self._wire.transport.write(data)
            elif size > _JOINED_BYTES:
                self._wire.transport.writelines((self._taken(), data))
            else:
                self._wire.transport.write(self._taken() + data)
        elif left >= 0:
            self._wrong("longer")
            return
        elif left == _UNSTARTED:
            raise RuntimeError("no answer was started")
        else:
            return
        self.sent_bytes += size

    def finish(self) -> None:
        """End the body. The connection is kept for the next request, or closed, as the protocol says."""
        left = self._left
        if left == _CHUNKED:
            self._wire.transport.write(self._taken() + b"0\r\n\r\n")
        elif left > 0:
            self._wrong("shorter")
            return
        elif left == _UNSTARTED:
            raise RuntimeError("no answer was started")
        elif left == _OVER:
            return
        elif self._unsent:
            self._flush()
        self._left = _OVER
        self.finished = True
        self._wire.answered(self)

    def reply(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes, *, reason: bytes = b"") -> None:
        """A whole small answer in one write."""
        if self._left == _OVER:
            return
        head = self._framed(status, headers, reason, len(body))
        if self._left <= 0:
            self._wire.transport.write(head)
        elif len(body) <= _JOINED_BYTES:
            self._wire.transport.write(head + body)
        else:
            self._wire.transport.writelines((head, body))
        if self._left > 0:
            self.sent_bytes = len(body)
        self._left = _OVER
        self.finished = True
        self._wire.answered(self)

    def cut(self) -> None:
        """Hang up, so that the client sees an answer that is not whole. What was sent before still reaches it, unless the
        connection's end is what ends the body: then only a reset can tell."""
        left = self._left
        if left != _OVER:
            self._flush()
            self._left = _OVER
            self.gone = True
            self._wire.hang_up(reset=left == _TO_THE_END)

    async def room(self) -> None:
        """Wait until the answer is not ``full``. Raises ``ConnectionResetError`` when nobody is there any more."""
        while self._left != _OVER and self._wire.full:
            await self._wire.room()
        if self._left == _OVER and not self.finished:
            raise ConnectionResetError("the client has hung up")

    def on_room(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """Have ``pause`` called when the answer gets ``full``, and ``resume`` when it is so no more. One pair at a time; it
        ends with the answer. Nothing is called for the state that it is in now."""
        if self._left != _OVER:
            self._wire.on_room(pause, resume)

    def lost(self) -> None:
        """The client hung up."""
        if self._left != _OVER:
            self._left = _OVER
            self.gone = True
            if self.task is not None and not (self.on_gone is not None and self.on_gone()):
                self.task.cancel()

    def served(self, task: asyncio.Task[None]) -> None:
        """The handler is through: see that the client is not left waiting."""
        self.task = None
        self._wire.server.served(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not (self.gone and isinstance(error, ConnectionError)):
            _log.error("a handler failed", exc_info=error)
        if self._left == _OVER:
            return
        if error is None and not task.cancelled():
            _log.error("a handler ended before its answer did")
        if self._left == _UNSTARTED:
            self.reply(500, (), b"")
        else:
            self.cut()

    def _flush(self) -> None:
        """Send the head, unless it went with a part of the body."""
        if self._unsent and self._left != _OVER:
            self._wire.transport.write(self._taken())

    def _taken(self) -> bytes:
        """The head, once."""
        head, self._unsent = self._unsent, b""
        return head

    def _wrong(self, how: str) -> None:
        _log.error("an answer was %s than its head had promised", how)
        self.cut()

    def _framed(self, status: int, headers: Iterable[tuple[bytes, bytes]], reason: bytes, length: int | None) -> bytes:
        """The head's bytes; from here on the answer is started."""
        if self._left != _UNSTARTED:
            raise RuntimeError("an answer was started before")
        if not 100 <= status <= 999:
            raise ValueError("no status")
        server = self._wire.server
        starts = server.starts
        parts = [b"HTTP/1.1 %d %b" % (status, reason) if reason else _LINES.get(status) or b"HTTP/1.1 %d " % status]
        named = b""
        for name, value in headers:
            start = starts[name]
            if start:
                parts += (start, value)
            elif len(name) == 10 and value not in _WONT and name.lower() == b"connection":
                named += b"," + value.lower()
        if named:
            _leave_out(parts, named)
        bodiless = status in _BODILESS or status < 200
        keep = self.keep and status >= 200 and not server.closing
        if length is None:
            left = _CHUNKED
            if self._asked.old and not bodiless:
                left, keep = _TO_THE_END, False
            elif not bodiless and self._asked.method != b"HEAD":
                parts += (b"\r\nTransfer-Encoding: ", b"chunked")
        else:
            left = length
            if not bodiless:
                parts += (b"\r\nContent-Length: ", b"%d" % length)
        if not keep or self._asked.old:
            parts += (b"\r\nConnection: ", b"keep-alive" if keep else b"close")
        ends = len(parts) + 3  # CR and LF each, before each pair and two times behind the last
        parts.append(b"\r\n\r\n")
        head = b"".join(parts)
        if len(head) - len(head.translate(None, b"\r\n\0")) != ends:
            raise ValueError("a line of the answer's head has an end of its own")
        self.keep = keep
        self._left = _NO_BODY if bodiless or self._asked.method == b"HEAD" else left
        return head


class FieldStarts(dict[bytes, bytes]):
    """How a field of an answer begins, by its name: the end of the line before it, and itself; empty for those that are not
    passed on. Names are the same again and again, so that this is looked up. Raises ``ValueError`` for what is no name."""

    def __missing__(self, name: bytes) -> bytes:
        if not _TOKEN.fullmatch(name):
            raise ValueError("a field of the answer has no name")
        if len(self) >= _STARTS:
            self.clear()
        self[name] = start = b"" if name.lower() in _OWN else b"\r\n%b: " % name
        return start


class WireHandler(Protocol):
    """What is done with requests. All are called on the server's loop."""

    def admit(self, exchange: Exchange) -> int | HandOver:
        """Asked once the head is there: bytes of body allowed. It may answer at once; then the rest of the body is dropped,
        or the connection closed when it is long. It may hold nothing that has to be given back: a client that hangs up in
        its body is never served. Raising closes the connection."""

    def refuse(self, exchange: Exchange, status: int, why: str) -> None:
        """Called when the body of an admitted request is too long, too slow or none: it may answer so in its own words, at
        once and whole. The connection ends with it."""

    async def serve(self, exchange: Exchange) -> None:
        """Called with the whole body; cancelled when the client hangs up. Raising before an answer has begun gives a 500."""


@dataclass(frozen=True, slots=True)
class HandOver:
    """Give the connection, with this request's bytes and all that follow, to another protocol, for good."""

    factory: Callable[[], asyncio.Protocol]


def _leave_out(parts: list[bytes], named: bytes) -> None:
    """The fields whose names stand in ``named``, a value of ``Connection``."""
    names = {name.strip() for name in named.split(b",")}
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    parts[1:] = [part for pair in pairs if pair[0][2:-2].lower() not in names for part in pair]


def refusal(status: int, why: str) -> bytes:
    """All of an answer after which the connection is closed."""
    text = f"{why}\n".encode()
    head = b"%b\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
    return head % (_LINES[status], len(text)) + text
