"""The fleet's size: never above its cap, never at the cost of work."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.policy.autoscaler import Autoscaler, FleetBounds, FleetDemand

demands = st.builds(
    FleetDemand, busy=st.integers(0, 120), coming=st.integers(0, 50), queued=st.integers(0, 200), recent=st.booleans()
)
bounds = st.builds(
    FleetBounds,
    agent_bytes=st.floats(0, 1e10),
    calls=st.none() | st.integers(0, 200),
    calls_per_agent=st.floats(0, 5),
    free_bytes=st.none() | st.floats(0, 1e11),
    least=st.integers(0, 100),
    most=st.integers(1, 100),
    spare=st.integers(0, 5),
    spent=st.booleans(),
)


@given(demands, bounds)
def test_it_wants_no_more_than_the_cap_and_nobody_at_work_gone(demand: FleetDemand, bound: FleetBounds) -> None:
    size = Autoscaler().size(demand, bound)
    assert size.wanted <= max(size.cap, demand.busy)
    assert size.wanted >= demand.busy
    assert 1 <= size.cap <= bound.most
    assert size.why
    assert Autoscaler().size(demand, bound) == size


@given(demands, bounds, st.integers(1, 20))
def test_more_work_never_means_fewer(demand: FleetDemand, bound: FleetBounds, more: int) -> None:
    grown = FleetDemand(busy=demand.busy, coming=demand.coming, queued=demand.queued + more, recent=demand.recent)
    assert Autoscaler().size(grown, bound).wanted >= Autoscaler().size(demand, bound).wanted


@pytest.mark.parametrize(
    ("demand", "bound", "wanted", "cap", "why"),
    [
        (FleetDemand(busy=2, queued=3), FleetBounds(most=24), 6, 24, "[fleet] agents"),
        (FleetDemand(busy=2, queued=3, coming=2), FleetBounds(most=24), 8, 24, "[fleet] agents"),
        (FleetDemand(busy=2, queued=30), FleetBounds(most=24), 24, 24, "[fleet] agents"),
        (FleetDemand(busy=0, queued=0), FleetBounds(most=24), 1, 24, "[fleet] agents"),
        (FleetDemand(busy=0, queued=0, recent=False), FleetBounds(most=24), 0, 24, "[fleet] agents"),
        (FleetDemand(busy=0, queued=0, recent=False), FleetBounds(most=24, least=3), 3, 24, "[fleet] agents"),
        (FleetDemand(busy=5, queued=9), FleetBounds(most=24, spent=True), 5, 5, "a budget is used up"),
        (FleetDemand(busy=0, queued=9), FleetBounds(most=24, spent=True), 1, 1, "a budget is used up"),
        (
            FleetDemand(busy=2, queued=9),
            FleetBounds(most=24, free_bytes=3e9, agent_bytes=1e9),
            5,
            5,
            "memory that is free",
        ),
        (
            FleetDemand(busy=2, queued=9),
            FleetBounds(most=24, free_bytes=None, agent_bytes=1e9),
            12,
            24,
            "[fleet] agents",
        ),
        (
            FleetDemand(busy=2, queued=9),
            FleetBounds(most=24, calls=4, calls_per_agent=0.5),
            8,
            8,
            "what the upstreams hold",
        ),
        (FleetDemand(busy=2, queued=9), FleetBounds(most=24, calls=4), 12, 24, "[fleet] agents"),
    ],
)
def test_sizes(demand: FleetDemand, bound: FleetBounds, wanted: int, cap: int, why: str) -> None:
    size = Autoscaler().size(demand, bound)
    assert (size.wanted, size.cap, size.why) == (wanted, cap, why)
