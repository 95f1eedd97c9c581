"""A servo stays within bounds, winds nothing up, starts without a bump, and does nothing where there is no sample."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from coordinator.domain.knob import Knob, KnobKind
from coordinator.policy.servo import Servo, ServoPlan

KNOB = Knob(
    about="", kind=KnobKind.SERVO, maximum=4096, minimum=8, name="room", settle_s=30, step=8, unit="calls", whole=True
)
SAMPLES = st.lists(st.one_of(st.none(), st.floats(0, 1e6), st.just(math.nan)), max_size=60)


def plan(**more: float) -> ServoPlan:
    return ServoPlan(cool_s=more.pop("cool_s", 0.0), rising=True, target=30.0, **more)


def run(servo: Servo, value: float, samples: list[float | None], *, from_s: float = 0.0) -> list[float]:
    """The knob's values, by sample."""
    found = []
    for number, measured in enumerate(samples):
        new = servo.step(value, measured, from_s + 30.0 * number)
        value = value if new is None else new
        found.append(value)
    return found


@given(SAMPLES, st.integers(1, 512).map(lambda steps: 8.0 * steps), st.booleans())
def test_bounds_and_steps_are_never_left(samples: list[float | None], start: float, rising: bool) -> None:
    servo = Servo(KNOB, ServoPlan(cool_s=0.0, derivative_s=20.0, rising=rising, target=30.0))
    for value in run(servo, start, samples):
        assert KNOB.minimum <= value <= KNOB.maximum
        assert value % 8 == 0


@given(st.integers(1, 400), st.booleans())
def test_time_at_a_bound_is_not_saved_up(long: int, high: bool) -> None:
    stuck, turned = (0.0, 300.0) if high else (300.0, 0.0)
    bound = KNOB.maximum if high else KNOB.minimum
    servo = Servo(KNOB, plan())
    [*_, last] = run(servo, bound, [stuck] * long)
    assert last == bound
    back = run(servo, bound, [turned] * 3, from_s=30.0 * long)
    assert back[-1] != bound


@given(st.lists(st.floats(0, 300), max_size=30), st.data())
def test_missing_samples_change_nothing(samples: list[float], data: st.DataObject) -> None:
    whole, holed = Servo(KNOB, plan()), Servo(KNOB, plan())
    value = other = 512.0
    for number, measured in enumerate(samples):
        at_s = 30.0 * number
        for _ in range(data.draw(st.integers(0, 2))):
            assert holed.step(other, None, at_s - 10) is None
        new, its = whole.step(value, measured, at_s), holed.step(other, measured, at_s)
        assert new == its
        value, other = (value if new is None else new), (other if its is None else its)


@given(st.floats(0, 1e6), st.integers(1, 512).map(lambda steps: 8.0 * steps))
def test_it_starts_from_what_is_without_a_bump(measured: float, value: float) -> None:
    assert Servo(KNOB, plan()).step(value, measured, 0.0) is None


def test_it_settles_where_the_target_is_met_and_then_keeps_still() -> None:
    """Who waits at a door of 2 calls a second waits for as long as the room is deep."""
    servo, room = Servo(KNOB, plan(cool_s=20.0)), 1024.0
    rooms = []
    for number in range(200):
        room = servo.step(room, room / 2.0, 10.0 * number) or room
        rooms.append(room)
    assert 0.75 <= rooms[-1] / 2.0 / 30.0 <= 1.25
    assert len(set(rooms[-50:])) == 1


def test_after_a_move_it_waits_for_its_effect() -> None:
    servo = Servo(KNOB, plan(cool_s=60.0))
    servo.step(512.0, 300.0, 0.0)
    moved = servo.step(512.0, 300.0, 60.0)
    assert moved is not None
    assert moved < 512
    assert servo.step(moved, 300.0, 119.0) is None
    assert servo.step(moved, 300.0, 121.0) is not None


def test_a_value_that_somebody_else_set_is_where_it_goes_on_from() -> None:
    servo = Servo(KNOB, plan())
    run(servo, 512.0, [300.0] * 10)
    assert servo.step(4000.0, 300.0, 1000.0) is None
    after = servo.step(4000.0, 300.0, 1030.0)
    assert after is not None
    assert 3000 < after < 4000
