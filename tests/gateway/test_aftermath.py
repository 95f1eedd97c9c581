"""Calls that are over are told of once, a few in a turn, and all of them when the gateway stops."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from coordinator.gateway.aftermath import SLICE, Aftermath
from coordinator.gateway.calls import Call
from coordinator.gateway.claimant import Claimant
from coordinator.gateway.dialect import Dialect
from coordinator.gateway.meters import Meters
from coordinator.kit.clock import SystemClock

if TYPE_CHECKING:
    from coordinator.domain.event import Event

CALLS = 20 * SLICE


class Rig:
    def __init__(self) -> None:
        self.told: list[list[Event]] = []
        self.all_told = asyncio.Event()
        self.aftermath = Aftermath(SystemClock(), Meters(), self.tell)
        for number in range(CALLS):
            call = Call(("t", 1), Claimant(), Dialect.ANTHROPIC_MESSAGES, "/v1/messages", 0.0)
            call.id = str(number)
            self.aftermath.add(call)

    def tell(self, events: list[Event]) -> None:
        self.told.append(events)
        self.all_told.set()

    def requests(self) -> list[str]:
        return [event.request for events in self.told for event in events]  # type: ignore[attr-defined]


async def test_others_have_their_turn_in_between() -> None:
    rig, turns = Rig(), 0
    while not rig.all_told.is_set():
        await asyncio.sleep(0)
        turns += len(rig.aftermath._over) < CALLS
    assert turns >= CALLS / SLICE / 3
    assert rig.requests() == [str(number) for number in range(CALLS)]
    assert len(rig.told) == 1, "one batch goes home"


async def test_when_the_gateway_stops_nothing_is_left_untold() -> None:
    rig = Rig()
    while len(rig.aftermath._over) == CALLS:  # noqa: ASYNC110 - turns of the loop are what is waited for
        await asyncio.sleep(0)
    rig.aftermath.fold()
    assert rig.requests() == [str(number) for number in range(CALLS)]
    rig.aftermath.fold()
    assert len(rig.told) == 1
