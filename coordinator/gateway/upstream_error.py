"""What an upstream's error says, to us and to the caller: unpacked to be understood, and without a key of ours.

Owns one invariant: an error is passed on byte for byte unless a key stands in it, and then without. Google repeats one in full
when it was suspended. What follows from an error is the ``courier``'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from coordinator.gateway.codings import inflated
from coordinator.kit.wire import field

if TYPE_CHECKING:
    from coordinator.gateway.upstream import Upstream
    from coordinator.kit.wire import RawHeaders

ERROR_BYTES: Final = 1024 * 1024
"""Of an error's body at most."""
_READ_BYTES: Final = 4096
"""Of it, looked at: names of limits and pauses stand in the first kilobyte."""
_CODING: Final = b"content-encoding"


def told_error(upstream: Upstream, headers: RawHeaders, body: bytes) -> tuple[RawHeaders, bytes, str]:
    """Headers and body as a caller may see them, and what they say, to be searched for words."""
    plain = inflated(body, field(headers, _CODING), ERROR_BYTES)
    hushed = upstream.hushed(plain)
    if hushed != plain:
        headers, body = tuple(pair for pair in headers if pair[0].lower() != _CODING), hushed
    return headers, body, hushed[:_READ_BYTES].decode("utf-8", "replace")


def refuses_key(status: int, said: str) -> bool:
    """Whether it is about the key; Google answers 400 to one that it does not know."""
    return status in (401, 403) or (status == 400 and "API_KEY_INVALID" in said)
