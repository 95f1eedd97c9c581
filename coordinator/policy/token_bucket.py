"""How much may pass per second, with a burst: tokens per fleet, agent and upstream.

Owns one invariant: from its first reading on, no more than ``burst + rate * time`` tokens are ever taken.
Turner's token bucket ("New directions in communications", IEEE Communications Magazine, October 1986), refilled when it
is read. It holds nobody: whoever is told to wait does so elsewhere, in a ``Stage`` or at the client.
"""

from __future__ import annotations

import math


class TokenBucket:
    """``rate`` tokens per second, at most ``burst`` at once; it begins full. ``rate`` infinity: off, everything passes.

    Times are readings of one monotonic clock, in seconds. One that is earlier than another before it brings nothing in
    and takes nothing away.
    """

    __slots__ = ("_burst", "_rate", "_read_s", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        """``ValueError``: below zero."""
        _check(rate, burst)
        self._burst = burst
        self._rate = rate
        self._read_s = now
        self._tokens = burst

    def take(self, n: float, now: float) -> float:
        """0.0: ``n`` tokens are taken. Otherwise none is, and there will be ``n`` in that many seconds if nobody else takes
        any (infinity: never, for ``n`` is more than the burst or nothing flows). ``ValueError``: ``n`` below zero."""
        tokens = self._tokens
        if now > self._read_s:
            tokens += (now - self._read_s) * self._rate
            self._read_s = now
            if tokens > self._burst:
                tokens = self._burst
        left = tokens - n
        if left >= 0.0 and left <= tokens:  # n below zero is none; two comparisons of floats are quicker than a chain
            self._tokens = left
            return 0.0
        self._tokens = tokens
        return self._wait_s(n, now)

    def _wait_s(self, n: float, now: float) -> float:
        if not n >= 0.0:
            raise ValueError(f"{n} tokens cannot be taken")
        if self._rate == math.inf:
            return 0.0
        if n > self._burst or self._rate == 0.0:
            return math.inf
        return (n - self._tokens) / self._rate + max(self._read_s - now, 0.0)

    def give_back(self, n: float) -> None:
        """Of what was taken and then not used; what is more than the burst is lost. ``ValueError``: ``n`` below zero."""
        if not n >= 0.0:
            raise ValueError(f"{n} tokens cannot be given back")
        self._tokens = min(self._tokens + n, self._burst)

    def resize(self, rate: float, burst: float, now: float) -> None:
        """From ``now`` on; a greater burst fills up at the rate. ``ValueError``: below zero."""
        _check(rate, burst)
        self.take(0.0, now)  # what flowed in until now did so at the old rate
        self._rate = rate
        self._burst = burst
        self._tokens = min(self._tokens, burst)

    @property
    def burst(self) -> float:
        return self._burst

    @property
    def rate(self) -> float:
        return self._rate

    @property
    def tokens(self) -> float:
        """At the last reading."""
        return self._tokens


def _check(rate: float, burst: float) -> None:
    if not (rate >= 0.0 and burst >= 0.0):
        raise ValueError(f"rate {rate} and burst {burst} must not be below 0")
