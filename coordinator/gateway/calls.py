"""The model calls under way, by the claim that makes them, and what each claim has called so far.

Owns one invariant: a call is counted in before its first byte goes up and out whatever happens to it, and once a claim
is revoked none of its calls is under way a moment later and none begins. Calls live on the gateway's loop; what others ask
of them from another thread is answered from one look at one table. It opens no socket and no file.
"""

from __future__ import annotations

import asyncio
import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from coordinator.domain.usage import TokenUsage

if TYPE_CHECKING:
    from collections.abc import Callable

    from coordinator.gateway.claimant import Claimant
    from coordinator.gateway.dialect import Dialect
    from coordinator.gateway.keys import Claim
    from coordinator.kit.clock import Clock
    from coordinator.kit.wire_exchange import Exchange

_KEPT: Final = 4096
"""Claims remembered: far more than can be at work, far fewer than matter to memory."""


class CallEnding(enum.StrEnum):
    """What became of an accepted call."""

    BROKEN = "broken"
    """The upstream broke off in the middle of its answer, and so did we."""
    BUDGET = "budget"
    """Nothing was left of a budget, before it or in the middle of it."""
    FAILED = "failed"
    """A fault of ours; the log has more."""
    LATE = "late"
    """The upstream took longer than it may, for its first byte or between two."""
    LEFT = "left"
    """The caller hung up; the upstream call was ended with it."""
    LIMITED = "limited"
    """It was not sent up: a limit of the upstream, of the fleet or of the agent stood in its way for too long."""
    REFUSED = "refused"
    """It was not sent up: too large, or not to be understood."""
    REVOKED = "revoked"
    SERVED = "served"
    """The upstream's answer was passed on whole, whatever its status."""
    SHED = "shed"
    """It was not sent up: too many wait."""
    STALLED = "stalled"
    """The caller took nothing of its answer for too long, and was hung up on."""
    STOPPED = "stopped"
    """The gateway stops."""
    UNREACHED = "unreached"
    """No upstream answered."""


class Call:
    """One call. Times are monotonic seconds; 0.0 means not yet."""

    __slots__ = (
        "answer_model",
        "began",
        "between_events",
        "bytes_down",
        "bytes_up",
        "claim",
        "collapsed",
        "cost_usd",
        "cut_for",
        "dialect",
        "ending",
        "estimated",
        "exchange",
        "failed_at",
        "finish",
        "first_at",
        "full_at",
        "id",
        "lane",
        "leave",
        "model",
        "over",
        "path",
        "priced",
        "retry_after_s",
        "saved_usd",
        "seen_bytes",
        "status",
        "stream",
        "task",
        "tries",
        "upstream",
        "usage",
        "wait_s",
        "who",
        "whole",
    )

    def __init__(self, claim: Claim, who: Claimant, dialect: Dialect, path: str, began: float) -> None:
        self.answer_model = self.finish = ""
        self.began = began
        self.between_events = False
        self.bytes_down = 0
        self.bytes_up = 0
        self.claim = claim
        self.collapsed = ""
        self.cost_usd = 0.0
        self.cut_for: CallEnding | None = None
        self.dialect = dialect
        self.ending = CallEnding.FAILED
        self.estimated = False
        self.exchange: Exchange | None = None
        self.failed_at = ""  # the upstream that failed it last
        self.first_at = 0.0
        self.full_at = 0.0
        self.id = ""
        self.lane = who.lane
        self.leave: Callable[[CallEnding], bool] | None = None
        self.model = ""
        self.over = False
        self.path = path
        self.priced = False
        self.retry_after_s = 0.0
        self.saved_usd = 0.0
        self.seen_bytes = 0
        self.status = 0
        self.stream = False
        self.task: asyncio.Task[Any] | None = None
        self.tries = 0
        self.upstream = ""
        self.usage = NO_USAGE
        self.wait_s = 0.0
        self.who = who
        self.whole = False  # the answer's own end was passed on

    def cut(self, ending: CallEnding) -> None:
        """End it at once, on the gateway's loop; the first reason counts. For endings that are this caller's own: others may
        listen to the same upstream call (``Delivery.end`` is for what ends that)."""
        if self.cut_for is None and not self.over:
            self.cut_for = ending
            if self.leave is not None and self.leave(ending):
                return  # the upstream's part goes on for others
            if self.task is not None:
                self.task.cancel()


NO_USAGE: Final = TokenUsage()


@dataclass(slots=True, kw_only=True)
class CallTally:
    """What one claim has called since the gateway started. ``limited``: answers that said 429. ``again_at``: when the last
    answer to say so meant (monotonic, 0: it did not say)."""

    again_at: float = 0.0

    bytes_down: int = 0
    bytes_up: int = 0
    calls: int = 0
    cost_usd: float = 0.0
    last_status: int = 0
    limited: int = 0


class Calls:
    """All of one gateway's. ``post`` has something called soon on the gateway's loop."""

    closing = False
    """No further call is let in."""

    def __init__(self, clock: Clock, post: Callable[..., object]) -> None:
        self._clock = clock
        self._post = post
        self._open: dict[Claim, set[Call]] = {}
        self._over: asyncio.Event | None = None
        self._revoked: dict[Claim, None] = {}
        self._tallies: dict[Claim, CallTally] = {}

    # -- on the gateway's loop ---------------------------------------------------------------------------------------

    def begin(self, call: Call) -> None:
        opened = self._open.get(call.claim)
        if opened is None:
            self._open[call.claim] = {call}
        else:
            opened.add(call)
        if call.claim not in self._tallies:
            self._tallies[call.claim] = CallTally()
            _forget_oldest(self._tallies)

    def end(self, call: Call) -> None:
        """Once for each that began; it holds on to nothing from now on."""
        call.over = True
        call.exchange = call.task = call.leave = None
        claim = call.claim
        opened = self._open[claim]
        opened.discard(call)
        if not opened:
            del self._open[claim]
        tally = self._tallies.get(claim)
        if tally is None:
            tally = self._tallies[claim] = CallTally()
        tally.calls += 1
        tally.bytes_up += call.bytes_up
        tally.bytes_down += call.bytes_down
        tally.cost_usd += call.cost_usd
        tally.last_status = call.status or tally.last_status
        if call.status == 429:
            tally.limited += 1
            tally.again_at = self._clock.monotonic() + call.retry_after_s if call.retry_after_s else 0.0
        if self._over is not None:
            self._over.set()

    def number(self, claim: Claim) -> int:
        opened = self._open.get(claim)
        return len(opened) if opened is not None else 0

    def open(self) -> list[Call]:
        """Those under way."""
        return [call for calls in self._open.values() for call in calls]

    async def close(self, patience_s: float) -> None:
        """Let nothing in any more; give what is under way ``patience_s`` to end, then cut it and wait for its end."""
        self.closing = True
        self._over = asyncio.Event()
        try:
            async with asyncio.timeout(patience_s):
                await self._wait_for_all()
        except TimeoutError:
            for call in self.open():
                call.cut(CallEnding.STOPPED)
            await self._wait_for_all()

    async def _wait_for_all(self) -> None:
        assert self._over is not None  # close
        while self._open:
            self._over.clear()
            await self._over.wait()

    def _cut_all(self, claim: Claim) -> None:
        for call in tuple(self._open.get(claim, ())):
            call.cut(CallEnding.REVOKED)

    # -- from any thread ---------------------------------------------------------------------------------------------

    def ever_called(self, claim: Claim) -> bool:
        return claim in self._tallies

    def under_way(self, claim: Claim) -> tuple[int, float]:
        """How many calls of the claim are in flight, and the age of the oldest in seconds (0: there is none)."""
        calls = tuple(self._open.get(claim, ()))
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
        self._post(self._cut_all, claim)
        return True

    def is_revoked(self, claim: Claim) -> bool:
        return claim in self._revoked


def _forget_oldest(known: dict[Claim, CallTally] | dict[Claim, None]) -> None:
    while len(known) > _KEPT:
        del known[next(iter(known))]
