"""What an answer or a request is once it is unpacked: gzip, deflate, brotli and zstd, piece by piece.

Owns one invariant: nothing that is packed, however it was made, makes it raise or take more memory than a bound, and a stream
is unpacked as far as it has come. It is also the door to ``brotli`` and ``zstd``, which are loaded when the first answer
needs them. Bytes on their way are not its affair: they are passed on as they came.
"""

from __future__ import annotations

import sys
import zlib
from typing import Any, Final, Protocol

_ZLIB: Final = frozenset({b"deflate", b"gzip", b"x-gzip"})
_WINDOW_LOG: Final = 23
"""Of zstd, 8 MiB: no answer on the web may need more (RFC 9659). Brotli's has 16 MiB by its own rule."""


class Inflater(Protocol):
    """Of one answer. ``over``: the packed stream came to its own end."""

    over: bool

    def inflate(self, data: bytes, most: int) -> tuple[bytes, bool]:
        """What it becomes, and whether it is of no use from here on: broken, or more than ``most`` bytes."""


def inflater_of(coding: bytes) -> Inflater | None:
    """For the value of a ``content-encoding``. None: it is plain, or packed in another way, or more than once."""
    coding = coding.strip().lower()
    if coding in _ZLIB:
        return _ZlibInflater()
    if coding == b"br":
        return _BrotliInflater()
    return _ZstdInflater() if coding == b"zstd" else None


def inflated(body: bytes, coding: bytes, most: int) -> bytes:
    """A whole body to be looked at; as it is where it is plain, packed in an unknown way, broken or more than ``most`` bytes."""
    inflater = inflater_of(coding)
    if inflater is None:
        return body
    plain, broken = inflater.inflate(body, most)
    return plain if inflater.over and not broken else body


class _ZlibInflater:
    """Of gzip, zlib and, because some servers call that deflate, of the bare stream inside. One member, as on the web."""

    __slots__ = ("_head", "_stream", "over")

    def __init__(self) -> None:
        self._head = b""
        self._stream: zlib._Decompress | None = None
        self.over = False

    def inflate(self, data: bytes, most: int) -> tuple[bytes, bool]:
        if self._stream is None:
            data = self._head = self._head + data
            if len(data) < 2:
                return b"", False
            known = data.startswith(b"\x1f\x8b") or (data[0] & 15 == 8 and (data[0] * 256 + data[1]) % 31 == 0)
            self._stream = zlib.decompressobj(wbits=47 if known else -15)
        try:
            plain = self._stream.decompress(data, most)
        except zlib.error:
            return b"", True
        self.over = self._stream.eof
        return plain, bool(self._stream.unconsumed_tail or self._stream.unused_data)


class _BrotliInflater:
    """Its output may be twice ``most`` at one time: the library's buffer doubles until it has reached a limit."""

    __slots__ = ("_error", "_stream", "over")

    def __init__(self) -> None:
        import brotli  # who never meets it does without

        self._error: type[Exception] = brotli.error
        self._stream: Any = brotli.Decompressor()
        self.over = False

    def inflate(self, data: bytes, most: int) -> tuple[bytes, bool]:
        if self.over:
            return b"", bool(data)
        try:
            plain: bytes = self._stream.process(data, output_buffer_limit=most)
        except self._error:
            return b"", True
        self.over = self._stream.is_finished()
        return plain, not self.over and not self._stream.can_accept_more_data()


class _ZstdInflater:
    """One frame: whoever flushes a stream goes on in it."""

    __slots__ = ("_error", "_stream", "over")

    def __init__(self) -> None:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd

        self._error = zstd.ZstdError
        self._stream = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG})
        self.over = False

    def inflate(self, data: bytes, most: int) -> tuple[bytes, bool]:
        if self.over:
            return b"", bool(data)
        try:
            plain = self._stream.decompress(data, most)
        except self._error:
            return b"", True
        self.over = self._stream.eof
        return plain, bool(self._stream.unused_data) if self.over else not self._stream.needs_input
