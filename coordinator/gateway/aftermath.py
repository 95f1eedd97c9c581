"""What follows a call once its last byte has gone: counted, told, written; in batches, so that no other call waits for it.

Owns one invariant: each call that was accepted is told of once, some ``BATCH_S`` after its end or when the gateway stops. It
prices nothing: the books did, at the call's end.
"""

from __future__ import annotations

import asyncio
from collections import deque
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
SLICE: Final = 8
"""Calls folded in one turn of the loop: some 0.1 ms, by which a call that is under way may be held up."""

_LANES: Final[Mapping[Lane, str]] = {lane: lane.name.lower() for lane in Lane}


class Aftermath:
    """``tell`` takes a batch of events to whoever publishes them, from the gateway's loop."""

    def __init__(self, clock: Clock, meters: Meters, tell: Callable[[list[Event]], object]) -> None:
        self._clock = clock
        self.delivered: dict[str, int] = {}
        """Bytes of good answers of calls that are over, by upstream."""
        self._events: list[Event] = []
        self._meters = meters
        self._over: deque[tuple[Call, float]] = deque()
        self._tell = tell
        self._timer: asyncio.Handle | None = None

    def add(self, call: Call) -> None:
        """It is over now."""
        if counts_as_delivered(call):
            self.delivered[call.upstream] = self.delivered.get(call.upstream, 0) + call.bytes_down
        self._over.append((call, self._clock.monotonic()))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(BATCH_S, self._go_on)

    def fold(self) -> None:
        """Tell of all that is over."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._over:
            self._fold_some()
        self._tell_all()

    def _go_on(self) -> None:
        """A few at a time: calls that are under way come in between."""
        self._fold_some()
        if self._over:
            self._timer = asyncio.get_running_loop().call_soon(self._go_on)
            return
        self._timer = None
        self._tell_all()

    def _fold_some(self) -> None:
        now, waiting = self._clock.monotonic(), len(self._over)
        for _ in range(min(max(SLICE, waiting // SLICE), waiting)):  # more, when they come faster than they are folded
            call, ended = self._over.popleft()
            self._meters.fold(call, ended)
            self._events.append(served_event(call, ended, now))

    def _tell_all(self) -> None:
        events, self._events = self._events, []
        if events:
            self._tell(events)


def counts_as_delivered(call: Call) -> bool:
    """Whether its bytes are an upstream's answer, given once."""
    return bool(call.upstream) and not call.collapsed and 0 < call.status < 400


def served_event(call: Call, ended: float, now: float) -> RequestServed:
    task, generation = call.claim
    usage = call.usage
    return RequestServed(
        age_s=round(now - ended, 4),
        agent=call.who.agent,
        answer_model=call.answer_model,
        bytes_down=call.bytes_down,
        bytes_up=call.bytes_up,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_tokens=usage.cache_write_tokens + usage.cache_write_1h_tokens,
        collapsed=call.collapsed,
        cost_usd=round(call.cost_usd, 9),
        ending=call.ending.value,
        finish=call.finish,
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
