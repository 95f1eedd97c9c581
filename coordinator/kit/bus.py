"""The one bus: whoever has seen something happen tells it here; whoever wants to know listens.

Owns one invariant: publishing never blocks and never fails. A slow listener loses its oldest events and the loss is
counted; a tap (the journal) is called at once and may not be slow.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

from coordinator.domain.errors import is_the_machines
from coordinator.domain.event import Event, Published

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from coordinator.kit.clock import Clock

_log = logging.getLogger(__name__)


class Subscription:
    """A listener's own bounded queue; iterate it. ``dropped`` counts what it was too slow for."""

    def __init__(self, bus: Bus, room: int) -> None:
        self._bus = bus
        self._events: deque[Published] = deque()
        self._room = room
        self._wake = asyncio.Event()
        self._closed = False
        self.dropped = 0

    def push(self, published: Published) -> None:
        if len(self._events) >= self._room:
            self._events.popleft()
            self.dropped += 1
        self._events.append(published)
        self._wake.set()

    def close(self) -> None:
        """End the iteration after what is already queued; safe to call twice."""
        self._closed = True
        self._bus.forget(self)
        self._wake.set()

    async def __aiter__(self) -> AsyncIterator[Published]:
        while True:
            while self._events:
                yield self._events.popleft()
            if self._closed:
                return
            self._wake.clear()
            await self._wake.wait()


class Bus:
    """Stamps events with a sequence number and the wall clock, and hands them on in order."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._held: list[Published] | None = None
        self._seq = 0
        self._subscriptions: list[Subscription] = []
        self._taps: list[Callable[[Published], None]] = []

    def publish(self, event: Event) -> Published:
        self._seq += 1
        published = Published(seq=self._seq, at=self._clock.now(), event=event)
        for tap in self._taps:
            try:
                tap(published)
            except Exception as error:  # noqa: BLE001 - the bus is one of the two seams where a listener's fault must not reach the teller
                extra = {"action": "tap_failed", "event_kind": event.kind}
                _log.error(
                    "%s was not written down: %s", event.kind, error, exc_info=not is_the_machines(error), extra=extra
                )
        if self._held is not None:
            self._held.append(published)
        else:
            self._push(published)
        return published

    @contextmanager
    def held(self) -> Iterator[None]:
        """What is published inside, taps hear at once, listeners when the block is left, and never when it raises."""
        if self._held is not None:
            yield
            return
        self._held = []
        try:
            yield
        except BaseException:
            self._held = None
            raise
        held, self._held = self._held, None
        for published in held:
            self._push(published)

    def _push(self, published: Published) -> None:
        for subscription in tuple(self._subscriptions):
            subscription.push(published)

    def tap(self, listener: Callable[[Published], None]) -> None:
        """Call ``listener`` synchronously for each event from now on."""
        self._taps.append(listener)

    def subscribe(self, room: int = 1000) -> Subscription:
        """Listen from now on; at most ``room`` events wait."""
        subscription = Subscription(self, room)
        self._subscriptions.append(subscription)
        return subscription

    def forget(self, subscription: Subscription) -> None:
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
