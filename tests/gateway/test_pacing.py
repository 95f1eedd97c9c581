"""Buckets of an agent and of the fleet: nobody is counted for a call that was not begun."""

from __future__ import annotations

import asyncio

import pytest

from coordinator.domain.settings import GatewaySettings
from coordinator.gateway.calls import Call
from coordinator.gateway.claimant import Claimant
from coordinator.gateway.dialect import Denied, Dialect
from coordinator.gateway.dials import Dials
from coordinator.gateway.pacing import Pacing
from coordinator.kit.clock import SystemClock


def call_at(clock: SystemClock, task: str) -> Call:
    return Call((task, 1), Claimant(), Dialect.ANTHROPIC_MESSAGES, "/v1/messages", clock.monotonic())


async def test_an_agent_keeps_its_turn_when_the_fleet_has_none() -> None:
    """Its own five of a burst are all there still, though it was refused ten times by the fleet's bucket."""
    clock = SystemClock()
    dials = Dials(GatewaySettings(agent_calls_per_s=1.0, fleet_calls_per_s=0.001, hold_s=0.0))
    pacing = Pacing(dials, clock)
    await pacing.wait(call_at(clock, "other"))  # the fleet's one token
    for _ in range(10):
        with pytest.raises(Denied, match="all agents together"):
            await pacing.wait(call_at(clock, "mine"))
    pacing._fleet = None
    for _ in range(5):
        await pacing.wait(call_at(clock, "mine"))
    with pytest.raises(Denied, match="this agent"):
        await pacing.wait(call_at(clock, "mine"))


async def test_who_is_cut_while_it_waits_is_not_counted() -> None:
    clock = SystemClock()
    pacing = Pacing(Dials(GatewaySettings(agent_calls_per_s=0.2, fleet_calls_per_s=0.1, hold_s=60.0)), clock)
    await pacing.wait(call_at(clock, "other"))
    waiting = asyncio.ensure_future(pacing.wait(call_at(clock, "mine")))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    pacing._fleet = None
    await pacing.wait(call_at(clock, "mine"))
