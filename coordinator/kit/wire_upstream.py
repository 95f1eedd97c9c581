"""One connection to an upstream: a request goes out, and what comes back is framed and given to an ``Answer``.

Owns one invariant: an answer is whole when its own framing says so, and a connection is free for the next call only when
that answer was clean: nothing came after it, nothing of the request is unsent, and the upstream means to go on. It opens no
connection (``wire_dial``) and keeps none (``wire_client``); what llhttp lets pass that RFC 9112 does not is refused here.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Final, NoReturn

from coordinator.kit.wire import FIELDS, HEAD_BYTES, NotReached, ResponseParser, WireError, WireUpgrade
from coordinator.kit.wire_answer import Answer

if TYPE_CHECKING:
    from collections.abc import Callable

    from coordinator.kit.wire import RawHeaders

_JOINED_BYTES: Final = 16 * 1024
"""Up to here head and body are copied into one piece; a longer body is a write of its own."""
_OPENING: Final = b"HTTP/1."
"""llhttp takes RTSP, ICE, HTTP/0.9, HTTP/2.0 and empty lines in its place."""
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_LENGTH: Final = re.compile(rb"[0-9]{1,18}[ \t]*")

_IDLE, _HEAD, _BODY, _WHOLE, _GONE = range(5)
"""Where a connection stands: nothing asked; waiting for the head; in the body; the answer is whole; closed by us or them."""


class _Refused(Exception):
    """This answer is not one that we take; the text says why."""


class UpstreamConnection(asyncio.Protocol):
    """A connection to an upstream, with one call at a time.

    ``over`` is told when an answer is whole, and whether the connection may be used again (if not, it is to be aborted);
    ``lost`` when it is closed. ``idle_since`` is its keeper's: the loop's time at which it became free.
    """

    __slots__ = (
        "_answer",
        "_bare",
        "_fields",
        "_held",
        "_keep",
        "_loop",
        "_lost",
        "_opening",
        "_over",
        "_parser",
        "_pieces",
        "_quiet_bytes",
        "_reason",
        "_refusal",
        "_socket",
        "_stand",
        "_transport",
        "_until_close",
        "_waiter",
        "idle_since",
        "on_body",
    )

    def __init__(
        self, over: Callable[[UpstreamConnection, bool], None], lost: Callable[[UpstreamConnection], None]
    ) -> None:
        self._answer: Answer | None = None
        self._bare = False
        self._fields: list[tuple[bytes, bytes]] = []
        self._held = False
        self._keep = False
        self._loop = asyncio.get_running_loop()
        self._lost = lost
        self._opening = b""
        self._over = over
        self._pieces: list[bytes] = []
        self._quiet_bytes = 0
        self._reason = b""
        self._refusal = ""
        self._socket: asyncio.Transport | None = None
        self._stand = _IDLE
        self._transport: asyncio.Transport | None = None
        self._until_close = False
        self._waiter: asyncio.Future[Answer] | None = None
        self.idle_since = 0.0
        self.on_body = self._pieces.append  # called by the parser, without a frame of ours for each chunk
        self._parser = ResponseParser(self)

    @property
    def heard(self) -> bool:
        """Whether a byte of an answer to the last request came."""
        return bool(self._opening)

    @property
    def ready(self) -> bool:
        """Whether a request may be written."""
        return self._stand == _IDLE and self._transport is not None and not self._transport.is_closing()

    def attach(self, transport: asyncio.Transport, socket: asyncio.Transport) -> None:
        """It is open. ``socket`` is what carries ``transport`` (TLS), or the same."""
        self._transport, self._socket = transport, socket

    def tls_session(self) -> object:
        """What a later handshake may be shortened with, or None."""
        if self._transport is None or self._transport is self._socket:
            return None
        tls = self._transport.get_extra_info("ssl_object")
        return getattr(tls, "session", None)

    def ask(self, head: bytes, body: bytes, *, bare: bool) -> asyncio.Future[Answer]:
        """Write a request; ``bare`` says that its answer has no body (HEAD). The future gives the answer once its head came,
        or raises ``NotReached``. Only for who found it ``ready``; who is cancelled while waiting calls ``abort``."""
        self._bare = bare
        self._fields = []
        self._opening = self._reason = b""
        self._quiet_bytes = 0
        self._stand = _HEAD
        self._until_close = False
        self._waiter = waiter = self._loop.create_future()
        transport = self._transport
        if transport is None:
            raise RuntimeError("a request on a connection that was never opened")
        if len(body) <= _JOINED_BYTES:
            transport.write(head + body)
        else:
            transport.write(head)
            transport.write(body)
        return waiter

    def abort(self) -> None:
        """Close it at once, whatever is under way."""
        self._stand = _GONE
        if self._transport is not None:
            self._transport.abort()

    def hold(self) -> None:
        if not self._held and self._transport is not None:
            self._held = True
            self._transport.pause_reading()

    def go_on(self) -> None:
        if self._held and self._transport is not None:
            self._held = False
            self._transport.resume_reading()

    # ------------------------------------------------------------------------------------------ called by the transport

    def data_received(self, data: bytes) -> None:
        if self._stand in (_IDLE, _GONE):  # nobody asked for anything
            self.abort()
            return
        fault = self._parsed(data)
        if self._pieces:
            self._deliver()  # whoever reads may close us
        elif self._stand != _WHOLE:
            self._quiet_bytes += len(data)
            if self._quiet_bytes > HEAD_BYTES:
                fault = fault or "the answer's head, trailer or chunk extension is too long"
        if fault:
            self._break(fault)
        elif self._stand == _WHOLE:
            self._end()

    def eof_received(self) -> None:
        if self._stand == _BODY and self._until_close:
            self._end()
        else:
            self._break("the connection was closed")

    def connection_lost(self, exc: Exception | None) -> None:
        self._break((isinstance(exc, OSError) and exc.strerror) or "the connection was closed")
        self._transport = self._socket = None
        del self._parser  # which knows our methods: a circle that only the collector of garbage would find
        self._lost(self)

    # --------------------------------------------------------------------------------------------- called by the parser

    def on_message_begin(self) -> None:
        if self._stand == _WHOLE:
            raise _Refused  # more than was asked for; the answer before it stands

    def on_status(self, reason: bytes) -> None:
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        fields = self._fields  # trailers come here as well, when the answer has its own
        fields.append((name, value))
        if len(fields) > FIELDS:
            self._refuse("the answer has too many fields")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status == 101 or status < 100:
            self._refuse(f"the answer has a status that was not asked for: {status}")
        headers, self._fields = tuple(self._fields), []
        length = self._framed(status, headers)
        reason, self._reason = self._reason, b""
        if status < 200:  # interim; the answer itself is to come
            return
        if self._waiter is None or self._waiter.done():
            self._refuse("nobody waits for the answer any more")
        self._answer = Answer(self, status, reason, headers, length)
        self._waiter.set_result(self._answer)
        self._stand = _WHOLE if self._bare else _BODY

    def on_message_complete(self) -> None:
        if self._stand == _BODY:
            self._stand = _WHOLE
            self._keep = self._keep and self._parser.should_keep_alive()

    # ---------------------------------------------------------------------------------------------------------------- own

    def _parsed(self, data: bytes) -> str:
        """Feed the parser. Returns what is wrong with the answer, or nothing."""
        if len(self._opening) < len(_OPENING):
            self._opening = (self._opening + data)[: len(_OPENING)]
            if not _OPENING.startswith(self._opening):
                return "the answer is no HTTP/1.1"
        try:
            self._parser.feed_data(data)
        except (WireError, WireUpgrade) as error:
            self._keep = False
            if self._stand != _WHOLE:
                return self._refusal or f"the answer is no HTTP/1.1: {error}"
        return ""

    def _framed(self, status: int, headers: RawHeaders) -> int | None:
        """The length that the head gives; refuses what two readers could understand in two ways."""
        length: int | None = None
        chunked = False
        size = len(self._reason)
        for name, value in headers:
            size += len(name) + len(value) + 4
            if len(name) == 14 and name.lower() == b"content-length":
                if length is not None or not _LENGTH.fullmatch(value):
                    self._refuse("the answer has a Content-Length that is none")
                length = int(value)
            elif len(name) == 17 and name.lower() == b"transfer-encoding":
                if chunked or value.strip(b" \t").lower() != b"chunked":
                    self._refuse("the answer has a Transfer-Encoding other than chunked")
                chunked = True
        version = self._parser.get_http_version()
        if chunked and (length is not None or version != "1.1"):
            self._refuse("the answer has two framings")
        if version not in ("1.0", "1.1") or size > HEAD_BYTES or _CONTROL.search(self._reason):
            self._refuse("the answer's head is not one of HTTP/1.1, or too long")
        self._until_close = not (chunked or self._bare or length is not None or status in (204, 304))
        # A length or chunks where no body may be: whoever sent that may send a body too.
        self._keep = version == "1.1" and not self._bare
        self._keep = self._keep and not (chunked and status in (204, 304)) and not (length and status == 204)
        return length

    def _refuse(self, why: str) -> NoReturn:
        self._refusal = why
        raise _Refused(why)

    def _deliver(self) -> None:
        pieces, answer = self._pieces, self._answer
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._quiet_bytes = 0
        if answer is not None and not self._bare:
            answer.take(data)

    def _end(self) -> None:
        """The answer is whole."""
        answer, self._answer = self._answer, None
        transport, socket = self._transport, self._socket
        unsent = transport is None or socket is None or transport.get_write_buffer_size()
        if unsent or (socket is not transport and socket is not None and socket.get_write_buffer_size()):
            self._keep = False
        keep = self._keep and self._stand == _WHOLE
        self._stand = _IDLE if keep else _GONE
        self.go_on()
        self._over(self, keep)
        if answer is not None:
            answer.end()

    def _break(self, why: str) -> None:
        """No more will come. Whoever waits is told."""
        waiter, answer = self._waiter, self._answer
        self._waiter = self._answer = None
        self.abort()
        if answer is not None:
            answer.cut(why)
        elif waiter is not None and not waiter.done():
            waiter.set_exception(NotReached(why, sent=True))
