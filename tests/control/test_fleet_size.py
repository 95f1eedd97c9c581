"""What is measured bounds the fleet; switched off, nothing does but the settings."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from coordinator.control.fleet_size import FleetSizer
from coordinator.domain.control_settings import ScaleSettings
from coordinator.domain.event import Noticed
from coordinator.domain.model_choice import ModelCapacity
from coordinator.domain.settings import FleetSettings, Settings
from coordinator.kit.bus import Bus
from coordinator.kit.clock import SystemClock

if TYPE_CHECKING:
    from coordinator.domain.event import Published

MIB = 1024 * 1024


class StillClock(SystemClock):
    """Its time passes when told."""

    at = 1000.0

    def monotonic(self) -> float:
        return self.at


class Seat:
    """A sizer, and what it is told."""

    def __init__(self, scale: ScaleSettings | None = None, *, agents: int = 10, self_improve: bool = True) -> None:
        self.clock = StillClock()
        self.told: list[str] = []
        self.capacity: ModelCapacity | None = None
        self.memories: list[int] = []
        bus = Bus(self.clock)
        bus.tap(self._hear)
        fleet = replace(FleetSettings(), agents=agents, min_free_memory_bytes=0)
        settings = Settings(fleet=fleet, scale=scale or ScaleSettings())
        self.sizer = FleetSizer(
            bus,
            self.clock,
            settings,
            capacity=self._capacity,
            memories=lambda: self.memories,
            self_improve=self_improve,
        )

    async def _capacity(self) -> ModelCapacity | None:
        return self.capacity

    def _hear(self, published: Published) -> None:
        if isinstance(published.event, Noticed):
            self.told.append(published.event.message)


def test_off_it_is_what_has_work() -> None:
    for seat in (Seat(self_improve=False), Seat(ScaleSettings(enabled="off"))):
        assert [seat.sizer.want(*one) for one in ((0, 0, 0), (2, 3, 0), (2, 3, 4), (2, 30, 0))] == [0, 5, 5, 10]
        assert (seat.sizer.cap, seat.sizer.ahead_s, seat.sizer.idle_exit_s) == (10, 0.0, 10.0)


def test_a_spare_lingers_after_the_last_work_and_then_goes() -> None:
    seat = Seat()
    assert seat.sizer.idle_exit_s == 300.0
    assert seat.sizer.want(0, 0, 0) == 0, "nothing was ever to do"
    assert seat.sizer.want(1, 1, 1) == 4
    seat.clock.at += 299
    assert seat.sizer.want(0, 0, 0) == 1
    seat.clock.at += 2
    assert seat.sizer.want(0, 0, 0) == 0


async def test_a_used_up_budget_starts_nobody_and_says_so_once() -> None:
    seat = Seat()
    seat.capacity = ModelCapacity(calls=None, in_flight=0, spent=True)
    await seat.sizer.look()
    assert [seat.sizer.want(4, 5, 0) for _ in range(3)] == [4, 4, 4]
    assert seat.told == ["at most 4 agents for now: a budget is used up"]
    seat.capacity = None
    await seat.sizer.look()
    assert seat.sizer.want(4, 5, 0) == 10


async def test_what_upstreams_hold_bounds_agents_by_what_each_has_under_way() -> None:
    seat = Seat(agents=24)
    seat.sizer.want(4, 20, 0)
    seat.capacity = ModelCapacity(calls=6, in_flight=2, spent=False)
    await seat.sizer.look()
    assert seat.sizer.want(4, 20, 0) == 12
    assert seat.sizer.cap == 12


async def test_the_measured_size_of_an_agent_is_what_memory_is_divided_by() -> None:
    seat = Seat()
    seat.memories = [1 * MIB, 1000 * MIB, 2000 * MIB]
    for _ in range(60):
        await seat.sizer.look()
    (measured,) = (meter for meter in seat.sizer.meters() if meter.name.endswith("agent_memory_bytes"))
    value = measured.samples[0][1]
    assert isinstance(value, float)
    assert 1499 * MIB < value < 1501 * MIB, "one that has only just started is left out"
