"""Tells the service manager how the daemon is: ready, reloading, stopping, what it does, and that it still turns.

Owns one invariant: the watchdog hears of us only while the loop that does the work goes round, not merely while a timer
does. How it is told is ``kit.systemd``'s.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from coordinator.domain.event import DaemonDraining, DaemonReady, DaemonReloading, DaemonStopped, ReloadRefused

if TYPE_CHECKING:
    from coordinator.api.desk import LiveDaemon
    from coordinator.domain.event import Event
    from coordinator.kit.systemd import Systemd

_STATUS_S = 5.0
_TURN_LIMIT_S = 90.0
"""The steward turns at least every 30 s; one that has not for three times as long hangs."""


class SystemdReport:
    """A service of its own."""

    name = "systemd-report"

    def __init__(self, live: LiveDaemon, manager: Systemd) -> None:
        self._live = live
        self._manager = manager
        self._said = ""
        self._subscription = live.bus.subscribe()

    async def run(self, stopping: asyncio.Event) -> None:
        """Pass on what happens until told to stop, then what is still queued."""
        beside = [asyncio.create_task(self._beat_on()), asyncio.create_task(self._close_on(stopping))]
        try:
            async for published in self._subscription:
                self._pass_on(published.event)
        finally:
            for task in beside:
                task.cancel()

    async def _close_on(self, stopping: asyncio.Event) -> None:
        await stopping.wait()
        self._subscription.close()

    async def _beat_on(self) -> None:
        watchdog_s = self._manager.watchdog_s
        while True:
            self._beat()
            await self._live.clock.sleep(min(_STATUS_S, watchdog_s / 3) if watchdog_s else _STATUS_S)

    def _pass_on(self, event: Event) -> None:
        match event:
            case DaemonReady():
                self._manager.tell(READY="1", STATUS=self._status())
            case DaemonReloading():
                micros = str(int(self._live.clock.monotonic() * 1e6))
                self._manager.tell(RELOADING="1", MONOTONIC_USEC=micros, STATUS="reading the configuration again")
            case ReloadRefused():
                self._manager.tell(READY="1", STATUS=f"not reloaded: {event.problems[0]}")
            case DaemonDraining():
                self._manager.tell(STOPPING="1", STATUS=f"draining, {event.running} attempts at work")
            case DaemonStopped():
                self._manager.tell(STOPPING="1", STATUS=f"stopped: {event.reason}")
            case _:
                pass

    def _beat(self) -> None:
        if self._live.turned_s() < _TURN_LIMIT_S and self._manager.watchdog_s:
            self._manager.tell(WATCHDOG="1")
        status = self._status()
        if status != self._said:
            self._said = status
            self._manager.tell(STATUS=status)

    def _status(self) -> str:
        seen = self._live.snapshot()
        working = sum(agent.task is not None for agent in seen.agents)
        counts = ", ".join(f"{number} {state}" for state, number in seen.counts.items() if number)
        trouble = f"; gate broken: {seen.gate_broken}" if seen.gate_broken else ""
        refused = f"; nothing is started: {seen.refusal}" if seen.refusal else ""
        return f"{working} of {len(seen.agents)} agents at work; tasks: {counts or 'none'}{trouble}{refused}"
