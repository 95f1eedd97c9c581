"""Measures what the autoscaler needs to know, and tells the fleet its size.

Owns one invariant: switched off, the fleet is what it is without it: as many as have work, up to ``[fleet] agents``. A bound
that was not measured (no agent seen yet, no gateway) bounds nothing. The rule is ``policy.autoscaler``'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from coordinator.domain.event import Noticed
from coordinator.domain.meter import Meter, MeterKind
from coordinator.kit import process
from coordinator.policy.autoscaler import Autoscaler, FleetBounds, FleetDemand, FleetSize

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

    from coordinator.domain.model_choice import ModelCapacity
    from coordinator.domain.settings import Settings
    from coordinator.kit.bus import Bus
    from coordinator.kit.clock import Clock

LOOK_S: Final = 5.0
_SMOOTH: Final = 0.2
_LEAST_BYTES: Final = 64 * 1024 * 1024
"""An agent that is only just started measures less than it will take."""
_USUAL_BYTES: Final = 300 * 1024 * 1024
"""What an agent takes before any was seen."""


class FleetSizer:
    """``memories`` tells the bytes of each agent at work, ``capacity`` what models can take (None: there is no gateway)."""

    def __init__(
        self,
        bus: Bus,
        clock: Clock,
        settings: Settings,
        *,
        capacity: Callable[[], Awaitable[ModelCapacity | None]],
        memories: Callable[[], Iterable[int]],
        self_improve: bool,
    ) -> None:
        self._bus = bus
        self._capacity = capacity
        self._clock = clock
        self._fleet = settings.fleet
        self._memories = memories
        self._scale = scale = settings.scale
        self._agent_bytes = float(_USUAL_BYTES)
        self._busy = 0
        self._calls: int | None = None
        self._calls_per_agent = 0.0
        self._last_work = float("-inf")
        self.ahead_known_s = scale.ahead_s
        self.linger_s = scale.linger_s
        self.most = settings.fleet.agents
        self.spare = scale.spare
        self._size = FleetSize(cap=settings.fleet.agents, wanted=0, why="")
        self._spent = False
        self.on = scale.enabled == "on" or (scale.enabled == "auto" and self_improve)
        """Whether the fleet's size follows the work."""

    @property
    def ahead_s(self) -> float:
        """How far ahead known work is to be counted; 0 when nobody asks."""
        return self.ahead_known_s if self.on else 0.0

    @property
    def idle_exit_s(self) -> float:
        """How long an agent process without work lives."""
        return self.linger_s if self.on else self._fleet.idle_exit_s

    @property
    def cap(self) -> int:
        """The most agents there may be, as of the last look."""
        return self._size.cap if self.on else self.most

    def want(self, busy: int, queued: int, coming: int) -> int:
        """How many agent processes there should be now."""
        if not self.on:
            return min(busy + queued, self.most)
        now = self._clock.monotonic()
        if busy + queued + coming:
            self._last_work = now
        self._busy = busy
        recent = now - self._last_work <= self.linger_s
        size = Autoscaler().size(
            FleetDemand(busy=busy, coming=coming, queued=queued, recent=recent), self._bounds(self._free_bytes())
        )
        if size.cap < self.most and size.why != self._size.why:
            self._bus.publish(Noticed(subject="fleet", message=f"at most {size.cap} agents for now: {size.why}"))
        self._size = size
        return size.wanted

    async def look(self) -> None:
        """Measure, now and then: what agents take, and what models can."""
        seen = [one for one in self._memories() if one >= _LEAST_BYTES]
        if seen:
            self._agent_bytes += _SMOOTH * (sum(seen) / len(seen) - self._agent_bytes)
        capacity = await self._capacity()
        self._calls = capacity.calls if capacity is not None else None
        self._spent = capacity is not None and capacity.spent
        if capacity is not None and self._busy and (capacity.in_flight or self._calls_per_agent):
            share = capacity.in_flight / self._busy
            before = self._calls_per_agent or share
            self._calls_per_agent = before + _SMOOTH * (share - before)

    def meters(self) -> Iterator[Meter]:
        yield _gauge("agents_wanted", "Agent processes that there should be.", self._size.wanted)
        yield _gauge("agents_cap", "The most agent processes that there may be now.", self.cap)
        yield _gauge("agent_memory_bytes", "What an agent at work was measured to take.", self._agent_bytes)

    def _free_bytes(self) -> float | None:
        """Memory that may still be given away; None when the settings do not want it looked at."""
        least = self._fleet.min_free_memory_bytes
        return float(max(process.free_memory() - least, 0)) if least else None

    def _bounds(self, free_bytes: float | None) -> FleetBounds:
        return FleetBounds(
            agent_bytes=self._agent_bytes,
            calls=self._calls,
            calls_per_agent=self._calls_per_agent,
            free_bytes=free_bytes,
            least=self._scale.least,
            most=self.most,
            spare=self.spare,
            spent=self._spent,
        )


def _gauge(name: str, about: str, value: float) -> Meter:
    samples: Sequence[tuple[tuple[str, ...], float]] = (((), float(value)),)
    return Meter(about=about, kind=MeterKind.GAUGE, labels=(), name=f"orchestrator_{name}", samples=tuple(samples))
