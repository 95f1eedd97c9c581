"""The model calls under way, by the claim that makes them, and what each claim has called so far.

Owns one invariant: a call is counted in before its first byte goes up and out whatever happens to it, and once a claim
is revoked none of its calls is under way a moment later and none begins. It opens no socket and no file.
"""

from __future__ import annotations

import asyncio
import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from coordinator.gateway.keys import Claim
    from coordinator.kit.clock import Clock

_KEPT: Final = 4096
"""Claims remembered: far more than can be at work, far fewer than matter to memory."""


class CallEnding(enum.StrEnum):
    """What became of an accepted call."""

    BROKEN = "broken"
    """The upstream broke off in the middle of its answer, and so did we."""
    FAILED = "failed"
    """A fault of ours; the log has more."""
    LEFT = "left"
    """The caller hung up; the upstream call was ended with it."""
    REFUSED = "refused"
    """It was not sent up: too large, or too much at once."""
    REVOKED = "revoked"
    SERVED = "served"
    """The upstream's answer was passed on whole, whatever its status."""
    STOPPED = "stopped"
    """The gateway stops."""
    UNREACHED = "unreached"
    """The upstream did not answer."""


class Call:
    """One call under way. ``leash`` cuts it short from outside, with ``ending`` saying why."""

    def __init__(self, claim: Claim, began: float, leash: asyncio.Timeout) -> None:
        self.claim = claim
        self.began = began
        self.bytes_down = 0
        self.bytes_up = 0
        self.ending = CallEnding.FAILED
        self.first_byte_s = 0.0
        self.status = 0
        self.retry_after_s = 0.0
        self._cut = False
        self._leash = leash

    def cut(self, ending: CallEnding) -> None:
        """End it at once; the first reason counts."""
        if self._cut:
            return
        self._cut = True
        self.ending = ending
        self._leash.reschedule(asyncio.get_running_loop().time())


@dataclass(slots=True, kw_only=True)
class CallTally:
    """What one claim has called since the gateway started. ``limited``: answers that said 429. ``again_at``: when the last
    answer to say so meant (monotonic, 0: it did not say)."""

    again_at: float = 0.0

    bytes_down: int = 0
    bytes_up: int = 0
    calls: int = 0
    last_status: int = 0
    limited: int = 0


class Calls:
    """All of one gateway's."""

    closing = False
    """No further call is let in."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._open: dict[Claim, set[Call]] = {}
        self._over = asyncio.Event()
        self._revoked: dict[Claim, None] = {}
        self._tallies: dict[Claim, CallTally] = {}

    def begin(self, claim: Claim, leash: asyncio.Timeout) -> Call:
        call = Call(claim, self._clock.monotonic(), leash)
        self._open.setdefault(claim, set()).add(call)
        self._tallies.setdefault(claim, CallTally())
        _forget_oldest(self._tallies)
        return call

    def end(self, call: Call) -> None:
        """Once for each that began."""
        claim = call.claim
        self._open[claim].discard(call)
        if not self._open[claim]:
            del self._open[claim]
        tally = self._tallies.setdefault(claim, CallTally())
        tally.calls += 1
        tally.bytes_up += call.bytes_up
        tally.bytes_down += call.bytes_down
        tally.last_status = call.status or tally.last_status
        if call.status == 429:
            tally.limited += 1
            tally.again_at = self._clock.monotonic() + call.retry_after_s if call.retry_after_s else 0.0
        self._over.set()

    def ever_called(self, claim: Claim) -> bool:
        return claim in self._tallies

    def under_way(self, claim: Claim) -> tuple[int, float]:
        """How many calls of the claim are in flight, and the age of the oldest in seconds (0: there is none)."""
        calls = self._open.get(claim, ())
        now = self._clock.monotonic()
        return len(calls), max((now - call.began for call in calls), default=0.0)

    def take_tally(self, claim: Claim) -> CallTally | None:
        """What it called, told once; None: nothing, or that is told already."""
        return self._tallies.pop(claim, None)

    def revoke(self, claim: Claim) -> bool:
        """False: it was revoked before."""
        if claim in self._revoked:
            return False
        self._revoked[claim] = None
        _forget_oldest(self._revoked)
        for call in self._open.get(claim, ()):
            call.cut(CallEnding.REVOKED)
        return True

    def is_revoked(self, claim: Claim) -> bool:
        return claim in self._revoked

    async def close(self, patience_s: float) -> None:
        """Let nothing in any more; give what is under way ``patience_s`` to end, then cut it."""
        self.closing = True
        try:
            async with asyncio.timeout(patience_s):
                while self._open:
                    self._over.clear()
                    await self._over.wait()
        except TimeoutError:
            for call in [call for calls in self._open.values() for call in calls]:
                call.cut(CallEnding.STOPPED)


def _forget_oldest(known: dict[Claim, CallTally] | dict[Claim, None]) -> None:
    while len(known) > _KEPT:
        del known[next(iter(known))]
