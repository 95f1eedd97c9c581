"""What follows a call once its last byte has gone: counted, told, written; in batches, so that no other call waits for it.

Owns one invariant: each call that was accepted is told of once, within ``BATCH_S`` of its end or when the gateway stops. It
prices nothing: the books did, at the call's end.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from coordinator.domain.event import RequestServed
from coordinator.domain.lane import Lane

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from coordinator.domain.event import Event
    from coordinator.gateway.calls import Call
    from coordinator.gateway.meters import Meters
    from coordinator.kit.clock import Clock

BATCH_S: Final = 0.02

_LANES: Final[Mapping[Lane, str]] = {lane: lane.name.lower() for lane in Lane}


class Aftermath:
    """``tell`` takes a batch of events to whoever publishes them, from the gateway's loop."""

    def __init__(self, clock: Clock, meters: Meters, tell: Callable[[list[Event]], object]) -> None:
        self._clock = clock
        self._meters = meters
        self._tell = tell
        self._over: list[tuple[Call, float]] = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, call: Call) -> None:
        """It is over now."""
        self._over.append((call, self._clock.monotonic()))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(BATCH_S, self.fold)

    def fold(self) -> None:
        """Tell of all that is over."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        over, self._over = self._over, []
        for call, ended in over:
            self._meters.fold(call, ended)
        if over:
            self._tell([served_event(call, ended) for call, ended in over])


def served_event(call: Call, ended: float) -> RequestServed:
    task, generation = call.claim
    usage = call.usage
    return RequestServed(
        agent=call.who.agent,
        bytes_down=call.bytes_down,
        bytes_up=call.bytes_up,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_tokens=usage.cache_write_tokens + usage.cache_write_1h_tokens,
        collapsed=call.collapsed,
        cost_usd=round(call.cost_usd, 9),
        ending=call.ending.value,
        first_byte_s=round(call.first_at - call.began, 4) if call.first_at else 0.0,
        generation=generation,
        input_tokens=usage.input_tokens,
        lane=_LANES[call.lane],
        model=call.model,
        output_tokens=usage.output_tokens,
        path=call.path,
        priced=call.priced or not (call.estimated or usage.prompt_tokens or usage.output_tokens),
        request=call.id,
        role=call.who.role,
        saved_usd=round(call.saved_usd, 9),
        status=call.status,
        stream=call.stream,
        task=task,
        took_s=round(ended - call.began, 4),
        tries=call.tries,
        upstream=call.upstream,
        wait_s=round(call.wait_s, 4),
    )
