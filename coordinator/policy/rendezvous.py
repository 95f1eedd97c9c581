"""Which upstream serves a key, and which follow when that one does not: so that a session finds its cache warm.

Owns one invariant: the same key and nodes give the same order in every process and release, and the order of two nodes
depends on the key and on these two alone. So when a node goes, only its own keys move.
It knows nothing of health or load: whoever asks skips the nodes that are closed or full.
"""

from __future__ import annotations

import hashlib
import math
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_NUMBER: Final = struct.Struct("<Q").unpack
_UNIT: Final = 2.0**-52
"""52 bits of the number and a half are exact in a float, above 0 and below 1."""


def ranked(key: bytes | str, nodes: Sequence[tuple[str, float]]) -> tuple[str, ...]:
    """The names of ``nodes`` (name, weight), best first; a node's share of the keys is its share of the weights.

    Weighted rendezvous hashing: each node draws from the key an exponential waiting time with its weight as the rate,
    -ln(u) / weight, and the shortest is first (Thaler and Ravishankar, "Using name-based mappings to increase hit
    rates", 1998; weights: Schindelhauer and Schomaker, "Weighted distributed hash tables", 2005). A node whose weight
    is not above 0 is left out.
    """
    key = key if isinstance(key, bytes) else key.encode("utf-8", "surrogatepass")
    seed = hashlib.blake2b(
        key + b"\0", digest_size=8
    )  # names have no NUL: where one ends and the other begins is plain
    drawn = []
    for name, weight in nodes:
        if weight > 0:
            mark = seed.copy()
            mark.update(name.encode())
            (number,) = _NUMBER(mark.digest())
            drawn.append((-math.log(((number >> 12) + 0.5) * _UNIT) / weight, name))
    drawn.sort()
    return tuple([name for _, name in drawn])
