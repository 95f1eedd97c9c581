"""When a model of an upstream fails one call after another, it is left alone and probed.

Owns one invariant: while the circuit is not closed, at most one call per tick goes up; as a rule its first byte closes it.
A circuit breaker (Nygard, *Release It!*, 2007) per (upstream, model), over calls; ``policy.breaker`` is about roles, over
tasks. Limits are none of its business: a 429 sets the width or the pace, a fault of the caller's is the caller's.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Final


class CallFault(enum.StrEnum):
    """Why a call up did not end well."""

    CALLER = "caller"
    """A 4xx of the caller's making: 400, 401, 403, 404, 413, 422 …"""
    CONCURRENCY = "concurrency"
    """A 429 that means too many at once."""
    CUT = "cut"
    """The answer broke off."""
    RATE = "rate"
    """A 429 that means too many per minute."""
    SERVER = "server"
    """5xx, 529 included."""
    TIMEOUT = "timeout"
    UNREACHED = "unreached"
    """No connection, or no byte of an answer on it."""


class CircuitState(enum.StrEnum):
    CLOSED = "closed"
    """Calls pass."""
    HALF_OPEN = "half-open"
    """A probe is out, or some have been answered and more are wanted."""
    OPEN = "open"
    """None passes until the next probe is due."""


_COUNTED: Final = frozenset({CallFault.CUT, CallFault.SERVER, CallFault.TIMEOUT, CallFault.UNREACHED})


def counts(kind: CallFault) -> bool:
    """Whether it speaks against the upstream. What the caller did wrong and 429s are answers of one that works.

    (Simulated: counted 429s open it 44 times an hour and cost three quarters of what gets through.)
    """
    return kind in _COUNTED


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitKnobs:
    """``ValueError`` for what is none."""

    failures_to_open: int = 3
    """Counted failures in a row. 5 take longer to notice an outage; fewer than 3 happen by chance."""
    probe_every_s: float = 5.0
    """One tick: the first probe is due this long after the circuit opened, the next this long after the one before."""
    pause_growth: float = 1.0
    """Each failed round of probes makes the tick longer by this factor; 1 keeps recovery within one tick."""
    longest_pause_s: float = 320.0
    """What it grows to at most; nothing to a tick that does not grow."""
    rate_window: int = 0
    """Calls over which a rate of failures opens the circuit too, though none fail in a row; 0: off. O(1) memory."""
    open_rate: float = 0.5
    """Share of ``rate_window`` calls that must have failed; nothing is judged before there were as many."""
    probes_to_close: int = 1
    """Probes in a round. 1: the first byte of one closes it, or it stays open."""
    close_rate: float = 1.0
    """Share of a round that must be answered; decided as soon as it is certain."""

    def __post_init__(self) -> None:
        rates = 0.0 < self.open_rate <= 1.0 and 0.0 < self.close_rate <= 1.0
        numbers = self.failures_to_open >= 1 and self.probes_to_close >= 1 and self.rate_window >= 0
        if not (rates and numbers and self.probe_every_s > 0.0 and self.pause_growth >= 1.0):
            raise ValueError(f"no such circuit breaker: {self}")


KNOBS: Final = CircuitKnobs()

CircuitTally = dict[CircuitState, int]
"""How often a state was entered. It is its owner's, who adds up several breakers in it and keeps it when they go."""


class CircuitBreaker:
    """Ask ``allow`` right before a call goes up; a call that was allowed ends with ``success``, ``failure`` or ``abandon``.

    Times are readings of one monotonic clock, in seconds. A probe of which nothing is heard for a tick (a hung upstream)
    does not hold up the next. A call from before the circuit opened is as good a witness as a probe.
    """

    __slots__ = (
        "_closed", "_failed", "_good", "_knobs", "_last_failure", "_mask", "_need", "_next_probe_s", "_out", "_pause_s",
        "_probed_s", "_recent", "_row", "_seen", "_since", "_state", "_tally"
    )  # fmt: skip

    def __init__(self, now: float, knobs: CircuitKnobs = KNOBS, tally: CircuitTally | None = None) -> None:
        """``tally``: where it counts each change of its state."""
        self._knobs = knobs
        self._state = CircuitState.CLOSED
        self._tally: CircuitTally = {} if tally is None else tally
        self._need = math.ceil(knobs.close_rate * knobs.probes_to_close - 1e-9)
        self._mask = (1 << knobs.rate_window) - 1
        self._last_failure = ""
        self._next_probe_s = self._probed_s = now
        self._pause_s = knobs.probe_every_s
        self._good = self._failed = self._out = 0  # of a round of probes; ``out``: nothing is heard of them yet
        self._row = self._recent = self._seen = 0  # while closed
        self._close(now)

    def allow(self, now: float) -> bool:
        """Whether a call may go up. While the circuit is not closed True claims this tick's probe."""
        if self._closed:
            return True
        if now < self._next_probe_s:
            return False
        self._out += 1
        self._probed_s = now
        self._next_probe_s = now + self._pause_s
        self._changed()
        return True

    def would_allow(self, now: float) -> bool:
        """What ``allow`` would say; it claims no probe."""
        return self._closed or now >= self._next_probe_s

    def success(self, now: float) -> None:
        """The first byte of a good answer came: at once, not at the answer's end."""
        if self._closed:
            self._row = 0
            if self._mask:
                self._note(failed=0)
            return
        self._out = max(self._out - 1, 0)
        self._good += 1
        if self._good >= self._need:
            self._close(now)
        self._changed()

    def failure(self, now: float, kind: CallFault, why: str = "") -> None:
        """The call ended so, be it after its first byte; ``why`` is for people. What does not count is still an answer: it
        ends a probe like a good one, and changes nothing while the circuit is closed."""
        if kind not in _COUNTED:
            if not self._closed:
                self.success(now)
            return
        self._last_failure = why or kind.value
        if self._closed:
            self._row += 1
            if self._mask:
                self._note(failed=1)
            if self._row >= self._knobs.failures_to_open or self._rate_opens():
                self._open(now)
        elif self._out or self._good or self._failed:
            self._out = max(self._out - 1, 0)
            self._failed += 1
            if self._failed > self._knobs.probes_to_close - self._need:
                self._next_round()
        self._changed()

    def abandon(self, now: float) -> None:
        """The call never went up, or its caller left before anything was heard: no verdict, and the next may probe."""
        if self._out:
            self._out -= 1
            if not self._out:
                self._next_probe_s = now
            self._changed()

    def _changed(self) -> None:
        """Count it, if it did. Calls that pass a closed circuit do not come here."""
        state = self.state
        if state is not self._state:
            self._state = state
            self._tally[state] = self._tally.get(state, 0) + 1

    def _close(self, now: float) -> None:
        self._closed = True
        self._since = now
        self._row = self._recent = self._seen = 0
        self._good = self._failed = self._out = 0
        self._pause_s = self._knobs.probe_every_s

    def _open(self, now: float) -> None:
        self._closed = False
        self._since = self._probed_s = now
        self._next_probe_s = now + self._pause_s

    def _next_round(self) -> None:
        """Too many of this one failed."""
        self._good = self._failed = self._out = 0
        if self._knobs.pause_growth > 1.0:
            grown = self._pause_s * self._knobs.pause_growth
            self._pause_s = max(min(grown, self._knobs.longest_pause_s), self._knobs.probe_every_s)
        self._next_probe_s = self._probed_s + self._pause_s

    def _note(self, *, failed: int) -> None:
        """A bit per call, the newest lowest."""
        self._recent = (self._recent << 1 | failed) & self._mask
        self._seen += 1

    def _rate_opens(self) -> bool:
        window = self._knobs.rate_window
        return 0 < window <= self._seen and self._recent.bit_count() >= self._knobs.open_rate * window

    @property
    def closed(self) -> bool:
        """Whether every call may go up."""
        return self._closed

    @property
    def last_failure(self) -> str:
        """The last that counted; empty: there was none."""
        return self._last_failure

    @property
    def since(self) -> float:
        """When it closed, or else when it opened: probes in between do not begin it anew."""
        return self._since

    @property
    def state(self) -> CircuitState:
        if self._closed:
            return CircuitState.CLOSED
        return CircuitState.HALF_OPEN if self._out or self._good or self._failed else CircuitState.OPEN
