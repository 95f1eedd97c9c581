"""What a request's bytes mean: its head, and how long its body is.

Owns one invariant: a request is understood as RFC 9112 has it or refused. llhttp reads it, in its strict mode; where llhttp is
laxer than the RFC (tokens beside ``chunked``, other protocols, spaces in the request line, two hosts …) it is refused here.
Bodies are ``wire_body``'s; no connection, no waiting and no answer: that is ``wire_intake``.

A client that keeps its connection sends one head again and again, with another length at most. Such a head is recognised by
its bytes and not read anew: equal bytes mean what they meant before.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from coordinator.kit.wire import FIELDS, HEAD_BYTES, RequestParser, WireError, WireUpgrade

if TYPE_CHECKING:
    from coordinator.kit.wire import RawHeaders

CHUNKED: Final = -1
"""A body's length that only its end will tell."""

_HEAD_END: Final = b"\r\n\r\n"
_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,18})(?=\r\n)", re.IGNORECASE)
_LENGTH_DIGITS: Final = 18
_HOST: Final = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~:[]%"
_ONCE: Final = frozenset({b"content-length", b"expect", b"host", b"transfer-encoding"})
"""Fields of which two could be understood in two ways."""
_OTHER_VERSIONS: Final = frozenset({"Invalid HTTP version", "Pause on PRI/Upgrade"})
"""llhttp's words for them."""
_SLASH: Final = ord("/")
_SPACE: Final = ord(" ")
_ZERO: Final = ord("0")


class RequestRefused(Exception):
    """The request is not served; the text says why. ``status`` is the answer's."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class RequestHead:
    """One head as it is understood. ``index`` has the first value of each name, in lower case (llhttp leaves white space behind
    values, and so does this); ``keep``: the client wants to go on; ``old``: HTTP/1.0; ``waits``: it waits for a 100 before it
    sends a body, if it has one. ``target``: as it was sent; of an absolute one, what follows the authority.

    The same object stands for the next request of the connection when its head is the same but for its length; ``length`` is
    that of the first. ``notes`` are whoever's who works something out of the rest of the head alone.
    """

    __slots__ = ("headers", "index", "keep", "length", "method", "notes", "old", "target", "waits")

    def __init__(self) -> None:
        self.headers: RawHeaders = ()
        self.index: dict[bytes, bytes] = {}
        self.keep = False
        self.length = 0
        self.method = b""
        self.notes: dict[object, Any] = {}
        self.old = False
        self.target = b""
        self.waits = False


class HeadReader:
    """Reads heads one after the other, and sees each body's bytes pass so that llhttp can tell where the next one begins.

    What it read last stands in its attributes: ``head``; ``length`` is the body's in bytes or ``CHUNKED``; ``received`` is all
    that came from the head's beginning on.
    """

    __slots__ = (
        "_after",
        "_before",
        "_complete",
        "_fields",
        "_keep",
        "_known",
        "_method",
        "_parser",
        "_raw",
        "_target",
        "begun",
        "head",
        "length",
        "received",
    )

    def __init__(self) -> None:
        self._after = self._before = b""  # what stood around the last head's length; nothing before: no head is known
        self._complete = False
        self._fields: list[tuple[bytes, bytes]] = []
        self._keep = False
        self._known = False  # the head was recognised: llhttp saw neither it nor its body
        self._method = b""
        self._parser: RequestParser | None = None
        self._raw = bytearray()
        self._target = b""
        self.begun = False
        """A part of a head is there, but not all of it."""
        self.head = RequestHead()
        self.length = 0
        self.received: bytes | bytearray = b""

    @property
    def expects(self) -> bool:
        """The client waits to be told to send the body."""
        return self.head.waits and self.length != 0

    def read(self, data: bytes) -> bytes | None:
        """Returns what is behind the head, or None when it is not all there yet. Raises ``RequestRefused``."""
        before = self._before
        if before and data.startswith(before) and not self.begun:
            end = self._recognised(data, len(before))
            if end:
                self._known = True
                self.received = data
                return data[end:]
        self._known = False
        return self._read(data)

    def _read(self, data: bytes) -> bytes | None:
        """The same, of a head that is not known."""
        raw, seen = self._raw, 0
        if raw:
            seen = len(raw)
            raw += data
            end = raw.find(_HEAD_END, max(seen - 3, 0))
        else:
            if data[0] < _SPACE:
                data = data.lstrip(b"\r\n")  # in place of a request line (RFC 9112 section 2.2)
                if not data:
                    return None
            end = data.find(_HEAD_END)
        if end < 0:
            if seen + len(data) > HEAD_BYTES:
                raise RequestRefused(431, "The head is too long.")
            if not seen:
                self._raw = bytearray(data)
                self.begun = True
            self._feed(data)
            if self._complete:
                raise RequestRefused(400, "This is no HTTP/1.1.")
            return None
        end += 4
        if end > HEAD_BYTES:
            raise RequestRefused(431, "The head is too long.")
        head = data[: end - seen]
        self._feed(head)
        if seen:
            self.received, self._raw, self.begun = raw, bytearray(), False
            self._conclude(bytes(raw[:end]))
        else:
            self.received = data
            self._conclude(head)
        return data[end - seen :]

    def skip(self, data: bytes) -> None:
        """A piece of a body of known length. Raises ``RequestRefused`` should llhttp be of another mind about its length."""
        if self._parser is not None and not self._known:
            self._feed(data)

    def _recognised(self, data: bytes, at: int) -> int:
        """Where the head ends that is the last one but for its length, which begins ``at``; 0: it is another one."""
        end = data.find(b"\r", at, at + _LENGTH_DIGITS + 1)
        if not data.startswith(self._after, end):
            return 0
        length = data[at:end]
        if not length.isdigit():
            return 0
        self.length = int(length)
        return end + len(self._after)

    def close(self) -> None:
        """No more will come."""
        self._parser = None
        self.received = b""

    def _feed(self, data: bytes) -> None:
        parser = self._parser
        if parser is None:
            parser = self._parser = RequestParser(self)
        try:
            parser.feed_data(data)
        except WireUpgrade:
            self._parser = None  # nobody here speaks anything else: what follows is the body, or the next request
        except WireError as error:
            self._parser = None
            status = 505 if str(error) in _OTHER_VERSIONS else 400
            raise RequestRefused(status, f"This is no HTTP/1.1: {error}.") from error

    def _conclude(self, raw: bytes) -> None:
        """The head is complete: see what it says."""
        fields, target, self._fields, self._target = self._fields, self._target, [], b""
        if not self._complete:
            raise RequestRefused(505, "This is no HTTP/1.1.")  # HTTP/2's opening; nothing else gets here
        self._complete = False
        self._before = b""
        if len(fields) > FIELDS:
            raise RequestRefused(431, "The head has too many fields.")
        line = self._method + b" " + target + b" HTTP/1."
        if not raw.startswith(line):
            other = raw.startswith((line[:-2], line[:-8] + b"\r\n"))
            raise RequestRefused(505 if other else 400, "This is no HTTP/1.1.")
        self.head = head = RequestHead()
        head.method, head.keep, head.old = self._method, self._keep, raw[len(line)] == _ZERO
        head.headers = tuple(fields)
        head.index = index = {name.lower(): value for name, value in fields}
        if len(index) != len(fields):
            _see_repeated(head)
        host = index.get(b"host")
        if host is None:
            if not head.old:
                raise RequestRefused(400, "HTTP/1.1 needs a Host field.")
        elif host.translate(None, _HOST) and host.rstrip(b" \t").translate(None, _HOST):
            raise RequestRefused(400, "The Host field names no host.")
        head.target = target if target[0] == _SLASH and b"#" not in target else _origin_form(head.method, target, host)
        self.length = head.length = self._framed(head)
        head.waits = b"expect" in index and _waits(head)
        if head.keep and (length := _LENGTH.search(raw)) is not None:
            self._before, self._after = raw[: length.start(1)], raw[length.end(1) :]

    def _framed(self, head: RequestHead) -> int:
        """The length of the body. That there are not two framings, llhttp has seen to."""
        length = head.index.get(b"content-length")
        if length is not None:
            if not length.rstrip(b" \t").isdigit() or b"transfer-encoding" in head.index:
                raise RequestRefused(400, "The Content-Length is none.")
            return int(length)
        coding = head.index.get(b"transfer-encoding")
        if coding is None:
            return 0
        if head.old:
            raise RequestRefused(400, "HTTP/1.0 has no transfer codings.")
        if coding.rstrip(b" \t").lower() != b"chunked":
            raise RequestRefused(501, "The one transfer coding here is chunked.")
        self._parser = None  # a reader of its own does the rest
        return CHUNKED

    # --------------------------------------------------------------------------------------------- called by the parser

    def on_url(self, part: bytes) -> None:
        self._target += part

    def on_header(self, *field: bytes) -> None:
        self._fields.append(field)  # type: ignore[arg-type]  # a pair: no other one has to be made of it

    def on_headers_complete(self) -> None:
        parser = self._parser
        if parser is not None:
            self._complete = True
            self._keep = parser.should_keep_alive()
            self._method = parser.get_method()


def _see_repeated(head: RequestHead) -> None:
    """The first of several values counts, unless only one may be."""
    seen: set[bytes] = set()
    for name, value in head.headers:
        name = name.lower()
        if name not in seen:
            seen.add(name)
            head.index[name] = value
        elif name in _ONCE:
            raise RequestRefused(400, f"There are two {name.decode()} fields.")


def _origin_form(method: bytes, target: bytes, host: bytes | None) -> bytes:
    """The target as it would have been without scheme and authority."""
    if method == b"CONNECT":
        raise RequestRefused(501, "There are no tunnels here.")
    if target == b"*" and method == b"OPTIONS":
        return target
    scheme, _, rest = target.partition(b"://")
    authority = rest.partition(b"/")[0].partition(b"?")[0]
    if scheme.lower() != b"http" or not host or authority.lower() != host.rstrip(b" \t").lower() or b"#" in rest:
        raise RequestRefused(400, "The target is none of this server's.")
    path = rest[len(authority) :]
    return path if path[:1] == b"/" else b"/" + path


def _waits(head: RequestHead) -> bool:
    """Whether the client waits to be told to send a body."""
    if head.old:
        return False
    if head.index[b"expect"].rstrip(b" \t").lower() != b"100-continue":
        raise RequestRefused(417, "Nothing but 100-continue can be expected.")
    return True
