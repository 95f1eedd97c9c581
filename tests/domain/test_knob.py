from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.domain.knob import Knob, KnobKind

WIDTH = Knob(
    about="calls at a time",
    kind=KnobKind.TYPED,
    maximum=64.0,
    minimum=1.0,
    name="width",
    settle_s=30.0,
    step=3.0,
    unit="calls",
    whole=True,
)


@given(st.floats(allow_nan=True))
def test_the_nearest_value_is_always_allowed(value: float) -> None:
    nearest = WIDTH.nearest(value)
    assert WIDTH.fault(nearest) == ""
    assert WIDTH.nearest(nearest) == nearest or nearest == WIDTH.maximum


@pytest.mark.parametrize("value", [0.0, 65.0, math.inf, -math.inf, math.nan])
def test_beyond_the_bounds_is_named(value: float) -> None:
    assert WIDTH.fault(value) == "width goes from 1 to 64 calls"


def test_half_a_call_is_none() -> None:
    assert WIDTH.fault(2.5) == "width is a whole number"
    assert WIDTH.fault(2.0) == ""


def test_steps_are_counted_from_the_lower_bound() -> None:
    assert [WIDTH.nearest(value) for value in (1.0, 2.4, 2.6, 63.9, 64.0)] == [1.0, 1.0, 4.0, 64.0, 64.0]
