"""The wiring of control, a part of the daemon's: what watches, what chooses models and what sizes the fleet, joined to the rest.

It decides nothing.
"""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, Any

from coordinator.control.feedback import FeedbackCollector
from coordinator.control.fleet_knobs import fleet_knobs
from coordinator.control.fleet_size import FleetSizer
from coordinator.control.knob_board import KnobBoard
from coordinator.control.knob_panel import LivePanel
from coordinator.control.meters import telemetry_meters
from coordinator.control.model_router import ModelRouter
from coordinator.control.telemetry_bus import TelemetryBus
from coordinator.control.tuning import TuningController
from coordinator.gateway.quotes import PriceQuotes
from coordinator.gateway.upstream import upstreams_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from coordinator.domain.meter import Meter
    from coordinator.domain.settings import Settings
    from coordinator.fleet.lander import Lander
    from coordinator.fleet.pool import AgentPool
    from coordinator.gateway.gateway import Gateway
    from coordinator.kit.bus import Bus
    from coordinator.kit.clock import Clock
    from coordinator.kit.store import Store


class Steering:
    """``memories`` tells the bytes of each agent at work, ``top`` is the repository."""

    def __init__(
        self,
        bus: Bus,
        clock: Clock,
        store: Store,
        settings: Settings,
        gateway: Gateway,
        *,
        memories: Callable[[], Iterable[int]],
        self_improve: bool,
        top: Path,
    ) -> None:
        self._bus, self._clock, self._store = bus, clock, store
        self._gateway = gateway
        self._self_improve, self._settings = self_improve, settings
        prices = PriceQuotes(
            settings.gateway, upstreams_of(settings.gateway, os.environ).known, lambda: clock.now().date()
        )
        self.router = ModelRouter(store, clock, settings.router, prices, random.Random(), barred=gateway.barred)
        self.feedback = FeedbackCollector(store, clock, self.router)
        self.telemetry = TelemetryBus(bus, clock, store, settings.control, self._upstreams, top)
        self.sizer = FleetSizer(
            bus, clock, settings, capacity=gateway.capacity, memories=memories, self_improve=self_improve
        )
        bus.tap(self.feedback.take)
        bus.tap(self.telemetry.take)

    def board(self, pool: AgentPool, lander: Lander) -> KnobBoard:
        """All knobs, each at its place; turned as they were left."""
        sizer = self.sizer

        def linger(value: float) -> None:
            sizer.linger_s = value
            pool.idle_exit_s = sizer.idle_exit_s

        def knob(place: object, name: str, kind: type = int) -> tuple[Callable[[], float], Callable[[float], None]]:
            return lambda: float(getattr(place, name)), lambda value: setattr(place, name, kind(value))

        fleet = fleet_knobs(
            {
                "agents": knob(sizer, "most"),
                "ahead_s": knob(sizer, "ahead_known_s", float),
                "batch": knob(lander, "batch"),
                "linger_s": (lambda: sizer.linger_s, linger),
                "spare": knob(sizer, "spare"),
            }
        )
        board = KnobBoard(self._store, self._clock, (self._gateway, LivePanel(self._bus, fleet)))
        board.begin()
        return board

    def tuning(self, board: KnobBoard) -> TuningController:
        """Who turns them."""
        tuning = TuningController(
            self._clock,
            self._store,
            board,
            self._settings,
            self._gateway.samples,
            random.Random(),
            self_improve=self._self_improve,
        )
        self._bus.tap(tuning.take)
        return tuning

    async def _upstreams(self) -> Sequence[Mapping[str, Any]]:
        return await self._gateway.ask(lambda engine: engine.upstreams())

    def meters(self) -> Iterator[Meter]:
        yield from self.sizer.meters()
        yield from telemetry_meters(self.telemetry.view)
