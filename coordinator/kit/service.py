"""The one contract of every background thing, and the one supervisor that restarts it.

A service may be stopped before it was started and stopped twice; a stop is not a cancel: ``run`` is told by the event
``stopping`` and returns when it is done. A service that raises is restarted with growing pauses and says so on the bus.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Protocol

from coordinator.domain.errors import is_the_machines
from coordinator.domain.event import ServiceFailed

if TYPE_CHECKING:
    from coordinator.kit.bus import Bus
    from coordinator.kit.clock import Clock

_log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_HEALTHY_AFTER_S = 60.0


class Service(Protocol):
    """``name`` for logs; ``run`` works until ``stopping`` is set, then returns soon."""

    name: str

    async def run(self, stopping: asyncio.Event) -> None: ...


def _say(name: str, error: Exception, pause_s: float) -> None:
    """A full disk needs no traceback; what nobody foresaw does."""
    extra = {"action": "service_failed", "service": name}
    _log.error("%s failed, again in %g s: %s", name, pause_s, error, exc_info=not is_the_machines(error), extra=extra)


class Supervisor:
    """Runs services, restarts those that raise, stops them in reverse order of start."""

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self._bus = bus
        self._clock = clock
        self._running: list[tuple[Service, asyncio.Event, asyncio.Task[None]]] = []

    def start(self, service: Service) -> None:
        stopping = asyncio.Event()
        task = asyncio.create_task(self._keep(service, stopping), name=service.name)
        self._running.append((service, stopping, task))

    async def stop(self, *, patience_s: float = 10.0) -> None:
        """Ask each service to stop, last started first; cancel what has not returned after ``patience_s``."""
        while self._running:
            service, stopping, task = self._running.pop()
            stopping.set()
            done, _ = await asyncio.wait({task}, timeout=patience_s)
            if not done:
                _log.warning(
                    "service did not stop in time", extra={"action": "service_cancelled", "service": service.name}
                )
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def _keep(self, service: Service, stopping: asyncio.Event) -> None:
        pause = _FIRST_PAUSE_S
        while not stopping.is_set():
            began = self._clock.monotonic()
            try:
                await service.run(stopping)
                return
            except Exception as error:  # noqa: BLE001 - the supervisor is the seam: a fault in one service must not end the daemon
                if self._clock.monotonic() - began > _HEALTHY_AFTER_S:
                    pause = _FIRST_PAUSE_S
                _say(service.name, error, pause)
                self._bus.publish(ServiceFailed(service=service.name, error=repr(error), after_s=pause))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), pause)
            pause = min(pause * 2, _LONGEST_PAUSE_S)
