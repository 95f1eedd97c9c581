"""What is seen of an upstream at one moment, by whom its limit is tried.

Owns one invariant: ``delivered_bytes`` only grows while one gateway runs: it counts what of good answers was passed on, also of
those that are under way. Bytes go with tokens; nobody counts tokens before an answer's end.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamSample:
    """``cap`` is the most calls it may be given at once, ``limit`` what refusals left of that; ``unlimited``: nobody ever named
    or learnt a number, and ``limit`` means nothing. ``tick_s`` is how long a look takes that is worth something."""

    cap: int
    delivered_bytes: int
    in_flight: int
    limit: int
    name: str
    tick_s: float
    unlimited: bool
    waiting: int
