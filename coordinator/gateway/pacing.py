"""How many calls may begin in a second: of each agent, and of all together.

Owns one invariant: who is over its share waits, and is told so when the wait would be longer than it is held for; nobody is
counted for a call that was not begun. What an upstream bears is its station's to know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from coordinator.gateway.dialect import Denial, Denied
from coordinator.policy.token_bucket import TokenBucket

if TYPE_CHECKING:
    from coordinator.gateway.calls import Call
    from coordinator.gateway.dials import Dials
    from coordinator.gateway.keys import Claim
    from coordinator.kit.clock import Clock

_BURST_S: Final = 5.0
"""What was not used of so many seconds may be used at once."""
_AGENTS: Final = 4096


class Pacing:
    """All buckets of one gateway."""

    def __init__(self, dials: Dials, clock: Clock) -> None:
        self._agents: dict[Claim, TokenBucket] = {}
        self._clock = clock
        self._dials = dials
        self._fleet: TokenBucket | None = None
        self.turned()

    def turned(self) -> None:
        """A rate was changed."""
        rate = self._dials.fleet_calls_per_s
        self._fleet = TokenBucket(rate, max(1.0, rate * _BURST_S), self._clock.monotonic()) if rate else None
        self._agents.clear()

    @property
    def paces(self) -> bool:
        """Whether anybody may have to wait."""
        return self._fleet is not None or self._dials.agent_calls_per_s > 0

    async def wait(self, call: Call) -> None:
        """Until the call may begin. Raises ``Denied``; then, and when it is cancelled, nobody was counted."""
        own = self._bucket(call.claim)
        if own is not None:
            await self._taken(own, call, "this agent")
        try:
            if self._fleet is not None:
                await self._taken(self._fleet, call, "all agents together")
        except BaseException:
            if own is not None:
                own.give_back(1.0)
            raise

    async def _taken(self, bucket: TokenBucket, call: Call, whose: str) -> None:
        while wait_s := bucket.take(1.0, self._clock.monotonic()):
            if self._clock.monotonic() + wait_s > call.began + self._dials.hold_s:
                raise Denied(Denial.LIMITED, f"{whose} may not begin more calls for now", retry_after_s=wait_s)
            await self._clock.sleep(wait_s)

    def _bucket(self, claim: Claim) -> TokenBucket | None:
        rate = self._dials.agent_calls_per_s
        if not rate:
            return None
        bucket = self._agents.get(claim)
        if bucket is None:
            if len(self._agents) >= _AGENTS:
                self._agents.clear()
            bucket = TokenBucket(rate, max(1.0, rate * _BURST_S), self._clock.monotonic())
            self._agents[claim] = bucket
        return bucket
