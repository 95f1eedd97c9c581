"""How many retries a fleet may afford, and how long each of them pauses.

Owns one invariant: with each retry that is allowed, those of the window are at most a share of its requests, plus a few.
When an upstream is down every call wants to be tried again; without a budget that multiplies the load just then.
Which calls may be retried at all, and what is to be done about a task (``policy.retry``), are other questions.
"""

from __future__ import annotations

from typing import Final

SHARE: Final = 0.2
LEAST_PER_S: Final = 1.0
WINDOW_S: Final = 10.0
_SLICES: Final = 10


class RetryBudget:
    """Retries up to ``share`` of the requests of the last ``window_s``, plus ``least_per_s`` so that few callers may retry too.

    Finagle's ``RetryBudget`` (ttl 10 s, 20 %, and a minimum per second; Envoy's ``retry_budget`` has the same share of
    what is in flight). The window is ten slices, so it is between nine and ten tenths long; what falls out of it leaves
    with its slice. Memory is constant; times are readings of one monotonic clock, and one that goes back changes nothing.
    """

    __slots__ = (
        "_asked",
        "_least",
        "_requests",
        "_retried",
        "_retries",
        "_share",
        "_slice",
        "_slice_end_s",
        "_slice_s",
    )

    def __init__(
        self, now: float, *, share: float = SHARE, least_per_s: float = LEAST_PER_S, window_s: float = WINDOW_S
    ) -> None:
        """``ValueError``: a share or a minimum below zero, a window that is not above."""
        if not (share >= 0.0 and least_per_s >= 0.0 and window_s > 0.0):
            raise ValueError(f"share {share}, least_per_s {least_per_s}, window_s {window_s}: no such budget")
        self._least = least_per_s * window_s
        self._share = share
        self._slice_s = window_s / _SLICES
        self._requests = [0] * _SLICES
        self._retries = [0] * _SLICES
        self._asked = 0
        self._retried = 0
        self._slice = int(now // self._slice_s)
        self._slice_end_s = (self._slice + 1) * self._slice_s

    def note_request(self, now: float) -> None:
        """A call came in; its retries are not noted here."""
        if now >= self._slice_end_s:
            self._turn(now)
        self._requests[self._slice % _SLICES] += 1
        self._asked += 1

    def may_retry(self, now: float) -> bool:
        """True uses one retry up: ask right before it is made."""
        if now >= self._slice_end_s:
            self._turn(now)
        if self._retried + 1 > self._asked * self._share + self._least:
            return False
        self._retries[self._slice % _SLICES] += 1
        self._retried += 1
        return True

    def _turn(self, now: float) -> None:
        """Begin the slice of ``now``, and forget those that fell out of the window."""
        number = int(now // self._slice_s)
        for gone in range(self._slice + 1, min(number, self._slice + _SLICES) + 1):
            index = gone % _SLICES
            self._asked -= self._requests[index]
            self._retried -= self._retries[index]
            self._requests[index] = self._retries[index] = 0
        self._slice = number
        self._slice_end_s = (number + 1) * self._slice_s

    @property
    def left(self) -> int:
        """Retries that would be allowed at the last reading."""
        return max(int(self._asked * self._share + self._least) - self._retried, 0)


def retry_pause_s(attempt: int, chance: float, base_s: float, longest_s: float) -> float:
    """Seconds before retry number ``attempt`` (1 is the first): ``chance * min(longest_s, base_s * 2^(attempt-1))``.

    "Full jitter" (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, March 2015): of the ways compared
    there the one with the least work for the upstream. ``chance`` is uniform in [0, 1).
    """
    return chance * min(longest_s, base_s * 2.0 ** min(max(attempt - 1, 0), 60))
