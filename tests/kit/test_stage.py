"""Never over width or room, nothing leaked, lanes and ageing obeyed: under any interleaving."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, precondition, rule

from coordinator.domain.errors import Shed, ShedReason, TemporaryError
from coordinator.domain.lane import Lane
from coordinator.kit.stage import Stage
from coordinator.kit.wire import new_loop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

CRITICAL, HIGH, NORMAL, LOW = Lane


class Clockwork(asyncio.SelectorEventLoop):
    """A real loop whose time stands still until a test moves it."""

    now = 1000.0

    def time(self) -> float:
        return self.now

    def turn(self) -> None:
        """Run what is ready now, and the timers that are due; not what these make ready."""
        self.call_soon(self.stop)
        self.run_forever()

    def settle(self) -> None:
        for _ in range(6):
            self.turn()


@pytest.fixture
def loop() -> Iterator[Clockwork]:
    made = Clockwork()
    yield made
    for task in asyncio.all_tasks(made):
        task.cancel()
    made.settle()
    made.close()


class Caller:
    """Goes through a door, notes what became of it, and stays inside until it is let go."""

    def __init__(self, loop: Clockwork, stage: Stage, lane: Lane, deadline: float | None = None) -> None:
        self.inside = False
        self.shed: Shed | None = None
        self.go = loop.create_future()
        self.task = loop.create_task(self._visit(stage, lane, deadline))

    async def _visit(self, stage: Stage, lane: Lane, deadline: float | None) -> None:
        try:
            async with stage.enter(lane, deadline):
                self.inside = True
                try:
                    await self.go
                finally:
                    self.inside = False
        except Shed as shed:
            self.shed = shed


def served(loop: Clockwork, stage: Stage, callers: list[Caller]) -> list[int]:
    """The order in which ``callers`` are let in when each leaves as soon as it may; one at a time."""
    order = []
    for _ in callers:
        loop.settle()
        inside = [number for number, caller in enumerate(callers) if caller.inside]
        order += inside
        for number in inside:
            callers[number].go.set_result(None)
    loop.settle()
    return order


def called(loop: Clockwork, action: Callable[[], object]) -> None:
    loop.call_soon(action)
    loop.turn()


def test_a_free_chair_costs_no_turn_of_the_loop(loop: Clockwork) -> None:
    stage = Stage("door", width=2, room=0, promote_s=1.0)
    visit = stage.enter(NORMAL).__aenter__()
    with pytest.raises(StopIteration):
        visit.send(None)  # type: ignore[attr-defined] # a coroutine that ends at its first step never gave the loop a turn
    assert stage.try_enter(LOW)
    assert not stage.try_enter(CRITICAL)
    assert (stage.inside, stage.entered) == (2, (0, 0, 1, 1))
    stage.leave()
    stage.leave()
    assert stage.inside == 0
    with pytest.raises(RuntimeError, match="not inside"):
        stage.leave()


def test_an_error_inside_gives_the_chair_back(loop: Clockwork) -> None:
    stage = Stage("door", width=1, room=0, promote_s=1.0)

    async def fail() -> None:
        async with stage.enter(NORMAL):
            raise LookupError

    with pytest.raises(LookupError):
        loop.run_until_complete(fail())
    assert stage.inside == 0


def test_lanes_in_their_order_and_first_come_first_served_inside(loop: Clockwork) -> None:
    stage = Stage("door", width=1, room=10, promote_s=60.0)
    lanes = [HIGH, LOW, NORMAL, CRITICAL, NORMAL, LOW, CRITICAL]
    callers = [Caller(loop, stage, lane) for lane in lanes]
    loop.settle()
    assert stage.waiting == (2, 0, 2, 2)
    assert served(loop, stage, callers) == [0, 3, 6, 2, 4, 1, 5]
    assert stage.entered == (2, 1, 2, 2)


@pytest.mark.parametrize(
    ("promote_s", "order"),
    [(0.0, [0, 1, 2, 3]), (5.0, [0, 1, 3, 2]), (8.0, [0, 3, 1, 2]), (math.inf, [0, 3, 2, 1])],
    ids=["one line", "three lanes made up for", "one lane", "strict"],
)
def test_waiting_makes_up_for_a_lane(loop: Clockwork, promote_s: float, order: list[int]) -> None:
    stage = Stage("door", width=1, room=10, promote_s=promote_s)
    callers = [Caller(loop, stage, CRITICAL), Caller(loop, stage, LOW)]
    loop.settle()
    loop.now += 19.0
    callers.append(Caller(loop, stage, NORMAL))
    loop.settle()
    loop.now += 1.0
    callers.append(Caller(loop, stage, CRITICAL))
    assert served(loop, stage, callers) == order


def test_the_lowest_lane_is_not_starved(loop: Clockwork) -> None:
    """A critical caller arrives with each chair that becomes free; the low one is passed by for three promotions."""
    stage = Stage("door", width=1, room=10, promote_s=2.0)
    inside = Caller(loop, stage, CRITICAL)
    loop.settle()
    low = Caller(loop, stage, LOW)
    loop.settle()
    began = loop.now
    while not low.inside:
        following = Caller(loop, stage, CRITICAL)
        loop.settle()
        loop.now += 1.0
        inside.go.set_result(None)
        loop.settle()
        inside = following
        assert loop.now - began <= 8.0
    assert loop.now - began >= 6.0


def test_who_waits_is_never_passed_by_a_newcomer(loop: Clockwork) -> None:
    """The chair is handed over in the turn in which it becomes free."""
    stage = Stage("door", width=1, room=1, promote_s=1.0)
    assert stage.try_enter(NORMAL)
    waiter = Caller(loop, stage, LOW)
    loop.settle()
    barged = []
    called(loop, lambda: (stage.leave(), barged.append(stage.try_enter(CRITICAL))))
    loop.settle()
    assert (barged, waiter.inside, stage.inside) == ([False], True, 1)


def test_a_chair_for_one_who_is_cancelled_in_that_turn_is_handed_on(loop: Clockwork) -> None:
    """The fault of many a semaphore: the wake-up is lost, and everybody waits for ever."""
    stage = Stage("door", width=1, room=2, promote_s=1.0)
    assert stage.try_enter(NORMAL)
    first, second = Caller(loop, stage, NORMAL), Caller(loop, stage, NORMAL)
    loop.settle()
    called(loop, lambda: (stage.leave(), first.task.cancel()))
    loop.settle()
    assert (first.task.cancelled(), second.inside, stage.inside) == (True, True, 1)
    assert stage.waiting == (0, 0, 0, 0)


def test_one_who_was_cancelled_in_that_turn_is_passed_over(loop: Clockwork) -> None:
    stage = Stage("door", width=1, room=2, promote_s=1.0)
    assert stage.try_enter(NORMAL)
    first, second = Caller(loop, stage, NORMAL), Caller(loop, stage, NORMAL)
    loop.settle()
    called(loop, lambda: (first.task.cancel(), stage.leave()))
    loop.settle()
    assert (first.task.cancelled(), second.inside, stage.inside) == (True, True, 1)
    assert stage.entered == (0, 0, 2, 0)


def test_a_cancelled_waiter_gives_its_place_back(loop: Clockwork) -> None:
    stage = Stage("door", width=0, room=1, promote_s=1.0)
    first = Caller(loop, stage, NORMAL)
    loop.settle()
    first.task.cancel()
    loop.settle()
    second = Caller(loop, stage, NORMAL)
    loop.settle()
    assert (second.shed, stage.waiting) == (None, (0, 0, 1, 0))


def test_a_task_that_is_destroyed_leaves_nothing(loop: Clockwork) -> None:
    stage = Stage("door", width=1, room=2, promote_s=1.0)

    async def visit() -> None:
        async with stage.enter(NORMAL):
            pass

    async def steps() -> None:
        waits, seated = visit(), visit()
        assert stage.try_enter(NORMAL)
        seated.send(None)
        waits.send(None)
        assert sum(stage.waiting) == 2
        stage.leave()
        assert (stage.inside, sum(stage.waiting)) == (1, 1)
        waits.close()
        assert sum(stage.waiting) == 0
        seated.close()

    loop.run_until_complete(steps())
    assert (stage.inside, sum(stage.waiting)) == (0, 0)


def test_a_full_room_sheds(loop: Clockwork) -> None:
    stage = Stage("door", width=1, room=1, promote_s=1.0)
    callers = [Caller(loop, stage, lane) for lane in (NORMAL, LOW, CRITICAL)]
    loop.settle()
    shed = callers[2].shed
    assert isinstance(shed, TemporaryError)
    assert (shed.stage, shed.why) == ("door", ShedReason.FULL)
    assert str(shed) == "not let in at door: full"
    assert stage.shed == {ShedReason.FULL: 1, ShedReason.LATE: 0, ShedReason.CLOSED: 0}
    assert stage.waiting == (0, 0, 0, 1)


def test_a_deadline_ends_the_wait(loop: Clockwork) -> None:
    stage = Stage("door", width=1, room=9, promote_s=1.0)
    assert stage.try_enter(NORMAL)
    callers = [Caller(loop, stage, NORMAL, loop.now + after) for after in (3.0, 1.0, 2.0)] + [Caller(loop, stage, LOW)]
    left = []
    for _ in range(4):
        loop.settle()
        left.append([caller.shed is None for caller in callers])
        loop.now += 1.0
    assert left == [
        [True, True, True, True],
        [True, False, True, True],
        [True, False, False, True],
        [False, False, False, True],
    ]
    assert {caller.shed.why for caller in callers if caller.shed} == {ShedReason.LATE}
    assert stage.shed[ShedReason.LATE] == 3


def test_nobody_enters_after_its_deadline(loop: Clockwork) -> None:
    stage = Stage("door", width=1, room=9, promote_s=1.0)
    before = Caller(loop, stage, NORMAL, loop.now)
    loop.settle()
    assert before.shed is not None, "though a chair is free"
    assert (before.shed.why, stage.inside) == (ShedReason.LATE, 0)
    assert stage.try_enter(NORMAL)
    late, next_one = Caller(loop, stage, NORMAL, loop.now + 1.0), Caller(loop, stage, NORMAL, loop.now + 9.0)
    loop.settle()

    def slow_turn() -> None:
        loop.now += 2.0  # the timer has had no chance yet
        stage.leave()

    called(loop, slow_turn)
    loop.settle()
    assert late.shed is not None
    assert (late.shed.why, next_one.inside) == (ShedReason.LATE, True)


def test_many_deadlines_are_few_sweeps(loop: Clockwork) -> None:
    """Two thousand deadlines within forty milliseconds; each sweep looks at all who wait, so sweeps keep their distance."""
    sweeps = []

    class Counted(Stage):
        def _sweep(self) -> None:
            sweeps.append(loop.now)
            super()._sweep()

    stage = Counted("door", width=0, room=2000, promote_s=1.0)
    began = loop.now
    callers = [Caller(loop, stage, NORMAL, began + 1.0 + number * 2e-5) for number in range(2000)]
    loop.settle()
    loop.now += 1.0
    while any(stage.waiting):
        loop.now += 5e-4
        loop.turn()
        assert loop.now < began + 1.05
    loop.settle()
    assert all(caller.shed for caller in callers)
    assert len(sweeps) <= 25


def test_a_deadline_after_all_have_passed_is_kept_too(loop: Clockwork) -> None:
    stage = Stage("door", width=0, room=9, promote_s=1.0)
    for _ in range(3):
        caller = Caller(loop, stage, NORMAL, loop.now + 1.0)
        loop.settle()
        loop.now += 1.0
        loop.settle()
        assert caller.shed is not None


def test_a_nearer_deadline_than_all_before_is_kept_too(loop: Clockwork) -> None:
    stage = Stage("door", width=0, room=9, promote_s=1.0)
    far, near = Caller(loop, stage, NORMAL, loop.now + 100.0), Caller(loop, stage, LOW, loop.now + 1.0)
    loop.settle()
    loop.now += 1.0
    loop.settle()
    assert (far.shed, near.shed is not None) == (None, True)


def test_a_wider_door_wakes_who_waits(loop: Clockwork) -> None:
    stage = Stage("door", width=0, room=9, promote_s=1.0)
    callers = [Caller(loop, stage, lane) for lane in (LOW, NORMAL, HIGH)]
    loop.settle()
    called(loop, lambda: stage.resize(width=2))
    loop.settle()
    assert [caller.inside for caller in callers] == [False, True, True]


def test_a_narrower_door_throws_nobody_out_and_lets_nobody_in(loop: Clockwork) -> None:
    stage = Stage("door", width=3, room=9, promote_s=1.0)
    callers = [Caller(loop, stage, NORMAL) for _ in range(4)]
    loop.settle()
    called(loop, lambda: stage.resize(width=1))
    for left, inside in [(0, 2), (1, 1), (2, 1), (3, 0)]:
        callers[left].go.set_result(None)
        loop.settle()
        assert stage.inside == inside
        assert not stage.try_enter(NORMAL) or inside == 0


def test_a_smaller_room_sheds_nobody_who_waits(loop: Clockwork) -> None:
    stage = Stage("door", width=0, room=3, promote_s=1.0)
    callers = [Caller(loop, stage, NORMAL) for _ in range(3)]
    loop.settle()
    called(loop, lambda: stage.resize(room=1))
    late_comer = Caller(loop, stage, CRITICAL)
    loop.settle()
    assert [caller.shed for caller in callers] == [None] * 3
    assert late_comer.shed is not None
    assert (stage.width, stage.room, stage.promote_s, stage.name) == (0, 1, 1.0, "door")


def test_another_promotion_counts_for_who_waits_already(loop: Clockwork) -> None:
    stage = Stage("door", width=1, room=9, promote_s=math.inf)
    callers = [Caller(loop, stage, CRITICAL), Caller(loop, stage, LOW)]
    loop.settle()
    loop.now += 1.0
    callers.append(Caller(loop, stage, HIGH))
    loop.settle()
    called(loop, lambda: stage.resize(promote_s=0.1))
    assert served(loop, stage, callers) == [0, 1, 2]


@pytest.mark.parametrize("wrong", [{"width": -1}, {"room": -1}, {"promote_s": -0.1}, {"promote_s": math.nan}])
def test_sizes_below_zero_are_refused(wrong: dict[str, float]) -> None:
    right = {"width": 1, "room": 1, "promote_s": 1.0}
    with pytest.raises(ValueError, match="below 0"):
        Stage("door", **{**right, **wrong})  # type: ignore[arg-type]
    stage = Stage("door", width=1, room=1, promote_s=1.0)
    with pytest.raises(ValueError, match="below 0"):
        stage.resize(**wrong)  # type: ignore[arg-type]
    assert (stage.width, stage.room, stage.promote_s) == (1, 1, 1.0)


def test_a_closed_door_sheds_all_but_who_is_inside(loop: Clockwork) -> None:
    stage = Stage("door", width=1, room=9, promote_s=1.0)
    callers = [Caller(loop, stage, NORMAL, loop.now + 9.0) for _ in range(3)]
    loop.settle()
    called(loop, lambda: (stage.close(), stage.close(), stage.resize(width=5)))
    callers.append(Caller(loop, stage, CRITICAL))
    loop.settle()
    assert [caller.shed.why if caller.shed else None for caller in callers] == [None] + [ShedReason.CLOSED] * 3
    assert (callers[0].inside, stage.closed, stage.try_enter(CRITICAL)) == (True, True, False)
    callers[0].go.set_result(None)
    loop.settle()
    assert (stage.inside, stage.shed[ShedReason.CLOSED]) == (0, 3)
    assert all(timer.cancelled() for timer in loop._scheduled)  # type: ignore[attr-defined]


def test_waits_are_measured(loop: Clockwork) -> None:
    stage = Stage("door", width=1, room=9, promote_s=100.0)
    first, low = Caller(loop, stage, NORMAL), Caller(loop, stage, LOW)
    assert stage.longest_wait_s(loop.now) == 0.0
    loop.settle()
    loop.now += 3.0
    high = Caller(loop, stage, HIGH)
    loop.settle()
    loop.now += 2.0
    assert stage.longest_wait_s(loop.now) == pytest.approx(5.0)
    for leaving in (first, high):
        leaving.go.set_result(None)
        loop.settle()
    assert low.inside
    assert stage.waited_s == pytest.approx(7.0)


def test_when_to_come_again_follows_the_pace(loop: Clockwork) -> None:
    """One leaves every two seconds and four wait: the fifth is through after ten."""
    stage = Stage("door", width=1, room=4, promote_s=1.0)
    callers = [Caller(loop, stage, NORMAL) for _ in range(6)]
    loop.settle()
    assert callers[5].shed is not None
    assert callers[5].shed.after_s == 1.0, "nothing is known yet"
    for number in range(60):
        loop.now += 2.0
        callers[number if number < 5 else number + 1].go.set_result(None)
        callers.append(Caller(loop, stage, NORMAL))
        loop.settle()
    refused = Caller(loop, stage, NORMAL)
    loop.settle()
    assert refused.shed is not None
    assert refused.shed.after_s == pytest.approx(10.0, rel=0.1)


def test_when_to_come_again_is_bounded(loop: Clockwork) -> None:
    stage = Stage("door", width=1, room=1, promote_s=1.0)
    for _ in range(2):
        Caller(loop, stage, NORMAL)
    loop.settle()
    loop.now += 1e6
    stuck = Caller(loop, stage, NORMAL)
    loop.settle()
    assert stuck.shed is not None
    assert stuck.shed.after_s == 60.0


def test_without_a_room_the_pace_is_known_too(loop: Clockwork) -> None:
    stage = Stage("door", width=1, room=0, promote_s=1.0)
    after_s = []
    for _ in range(50):
        assert stage.try_enter(NORMAL)
        refused = Caller(loop, stage, NORMAL)
        loop.settle()
        assert refused.shed is not None
        after_s.append(refused.shed.after_s)
        loop.now += 4.0
        stage.leave()
    assert after_s[0] == 1.0
    assert after_s[-1] == pytest.approx(4.0, rel=0.2)


def test_a_crowd_that_comes_and_goes_leaves_nothing(loop: Clockwork) -> None:
    """While one is served for long, thousands wait for a little and give up: no list of the gone grows meanwhile."""
    stage = Stage("door", width=1, room=10_000, promote_s=1.0)
    assert stage.try_enter(NORMAL)
    patient = Caller(loop, stage, NORMAL)
    callers = [Caller(loop, stage, Lane(number % 4)) for number in range(2000)]
    loop.settle()
    for caller in callers:
        caller.task.cancel()
    loop.settle()
    assert sum(map(len, stage._lines)) == sum(stage.waiting) == 1
    called(loop, stage.leave)
    loop.settle()
    assert patient.inside


async def test_a_time_out_around_it_is_a_cancellation_like_any() -> None:
    stage = Stage("door", width=1, room=9, promote_s=1.0)
    async with stage.enter(NORMAL):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01), stage.enter(NORMAL):
                pass
        assert stage.waiting == (0, 0, 0, 0)
    assert stage.inside == 0


def test_deadlines_on_the_loop_of_the_wire() -> None:
    """Its clock counts milliseconds, and its timers may be early by half of one: nobody is forgotten for that."""

    async def wait_in_vain(stage: Stage, after_s: float) -> float:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + after_s
        with pytest.raises(Shed):
            async with stage.enter(NORMAL, deadline):
                pass
        return loop.time() - deadline

    async def all_of_them() -> list[float]:
        stage = Stage("door", width=0, room=99, promote_s=1.0)
        visits: list[Awaitable[float]] = [wait_in_vain(stage, 0.001 + number * 0.00037) for number in range(90)]
        return await asyncio.gather(*visits)

    wire = new_loop()
    try:
        late_by = wire.run_until_complete(asyncio.wait_for(all_of_them(), 10.0))
    finally:
        wire.close()
    assert min(late_by) >= -0.0021
    assert max(late_by) < 5.0


# ------------------------------------------------------------------------------------------- any interleaving


class Guest:
    """``state``: new, waiting, in (a chair is its), skipped, left, or why it was shed."""

    def __init__(self, number: int, lane: Lane, deadline: float | None) -> None:
        self.number = number
        self.lane = lane
        self.deadline = math.inf if deadline is None else deadline
        self.since = 0.0
        self.state: str = "new"
        self.cancelled = False
        self.seen_inside = False


class Model:
    """The door's rules in the plainest way: one list, searched."""

    def __init__(self, width: int, room: int, promote_s: float) -> None:
        self.width, self.room, self.promote_s = width, room, promote_s
        self.closed = False
        self.inside = self.entered = 0
        self.waited_s = 0.0
        self.shed = dict.fromkeys(ShedReason, 0)
        self.waiting: list[Guest] = []

    def step_in(self) -> bool:
        if self.closed or self.inside >= self.width:
            return False
        self.inside += 1
        self.entered += 1
        return True

    def arrive(self, guest: Guest, now: float) -> None:
        guest.since = now
        if self.closed:
            self.turn_away(guest, ShedReason.CLOSED)
        elif guest.deadline <= now:
            self.turn_away(guest, ShedReason.LATE)
        elif self.step_in():
            guest.state = "in"
        elif len(self.waiting) >= self.room:
            self.turn_away(guest, ShedReason.FULL)
        else:
            guest.state = "waiting"
            self.waiting.append(guest)

    def turn_away(self, guest: Guest, why: ShedReason) -> None:
        guest.state = "skipped" if guest.cancelled else why
        self.shed[why] += not guest.cancelled

    def leave(self, now: float) -> None:
        self.inside -= 1
        self.seat(now)

    def seat(self, now: float) -> None:
        while self.waiting and not self.closed and self.inside < self.width:
            guest = min(self.waiting, key=lambda one: (one.since + one.lane * self.promote_s, one.lane, one.number))
            self.waiting.remove(guest)
            if guest.deadline <= now:
                self.turn_away(guest, ShedReason.LATE)
            elif guest.cancelled:
                guest.state = "skipped"
            else:
                guest.state = "in"
                self.inside += 1
                self.entered += 1
                self.waited_s += now - guest.since

    def shed_all(self, why: ShedReason, until: float) -> None:
        for guest in [one for one in self.waiting if one.deadline <= until]:
            self.waiting.remove(guest)
            self.turn_away(guest, why)

    def give_up(self, guest: Guest, now: float) -> None:
        if guest.state == "waiting":
            self.waiting.remove(guest)
        elif guest.state == "in":
            self.leave(now)
        guest.state = "left"


class Door(RuleBasedStateMachine):
    """Whatever happens is queued, and happens in the loop's next turn, in this order; the door and the model see the same."""

    guests: Bundle[Guest] = Bundle("guests")

    @initialize(width=st.integers(0, 3), room=st.integers(0, 4), promote_s=st.sampled_from([0.0, 0.5, 1.5]))
    def begin(self, width: int, room: int, promote_s: float) -> None:
        self.loop = Clockwork()
        self.faults: list[object] = []
        self.loop.set_exception_handler(lambda _, context: self.faults.append(context.get("exception") or context))
        self.model = model = Model(width, room, promote_s)
        loop = self.loop

        class Watched(Stage):
            def _sweep(self) -> None:
                model.shed_all(ShedReason.LATE, loop.now + 0.001)
                super()._sweep()

        self.stage = Watched("door", width=width, room=room, promote_s=promote_s)
        self.all: list[Guest] = []
        self.tasks: dict[Guest, asyncio.Task[None]] = {}
        self.let_go: dict[Guest, asyncio.Future[None]] = {}
        self.loose = 0

    async def visit(self, guest: Guest) -> None:
        self.model.arrive(guest, self.loop.now)
        try:
            async with self.stage.enter(guest.lane, None if guest.deadline == math.inf else guest.deadline):
                assert guest.state == "in"
                guest.seen_inside = True
                try:
                    await self.let_go[guest]
                finally:
                    guest.seen_inside = False
                    guest.state = "left"
                    self.model.leave(self.loop.now)
        except Shed as shed:
            self.faults += [] if guest.state is shed.why and 0.1 <= shed.after_s <= 60.0 else [shed]
        except asyncio.CancelledError:
            self.model.give_up(guest, self.loop.now)
            raise

    @rule(
        target=guests,
        lane=st.sampled_from(Lane),
        patience_s=st.sampled_from([None, 0.0, 0.5, 1.0, 3.0]),
        count=st.integers(1, 3),
    )
    def arrive(self, lane: Lane, patience_s: float | None, count: int) -> object:
        made = []
        for _ in range(count):
            deadline = None if patience_s is None else self.loop.now + patience_s
            guest = Guest(len(self.all), lane, deadline)
            self.all.append(guest)
            self.let_go[guest] = self.loop.create_future()
            self.tasks[guest] = self.loop.create_task(self.visit(guest))
            made.append(guest)
        return multiple(*made)

    def _leave_if_inside(self, guest: Guest) -> None:
        if not self.let_go[guest].done():
            self.let_go[guest].set_result(None)

    @rule(guest=guests)
    def let_one_go(self, guest: Guest) -> None:
        self.loop.call_soon(self._leave_if_inside, guest)

    def _cancel(self, guest: Guest) -> None:
        if self.tasks[guest].cancel():
            guest.cancelled = True

    @rule(guest=guests)
    def cancel(self, guest: Guest) -> None:
        self.loop.call_soon(self._cancel, guest)

    def _step_in(self, lane: Lane) -> None:
        entered = self.stage.try_enter(lane)
        assert entered == self.model.step_in()
        self.loose += entered

    @rule(lane=st.sampled_from(Lane))
    def step_in(self, lane: Lane) -> None:
        self.loop.call_soon(self._step_in, lane)

    def _step_out(self) -> None:
        if self.loose:
            self.loose -= 1
            self.model.leave(self.loop.now)
            self.stage.leave()

    @rule()
    def step_out(self) -> None:
        self.loop.call_soon(self._step_out)

    def _resize(self, width: int | None, room: int | None, promote_s: float | None) -> None:
        self.stage.resize(width=width, room=room, promote_s=promote_s)
        model = self.model
        model.width = model.width if width is None else width
        model.room = model.room if room is None else room
        model.promote_s = model.promote_s if promote_s is None else promote_s
        model.seat(self.loop.now)

    @rule(
        width=st.none() | st.integers(0, 4),
        room=st.none() | st.integers(0, 5),
        promote_s=st.none() | st.sampled_from([0.0, 0.5, 1.5]),
    )
    def resize(self, width: int | None, room: int | None, promote_s: float | None) -> None:
        self.loop.call_soon(self._resize, width, room, promote_s)

    @precondition(lambda self: len(self.all) > 6)
    @rule()
    def close(self) -> None:
        self.loop.call_soon(self._close)

    def _close(self) -> None:
        self.stage.close()
        self.model.closed = True
        self.model.shed_all(ShedReason.CLOSED, math.inf)

    @rule(seconds=st.sampled_from([0.25, 0.5, 1.0, 2.0]), busy=st.booleans())
    def time_passes(self, seconds: float, busy: bool) -> None:
        """``busy``: and the next turn comes no sooner; timers come after what was ready before."""
        if not busy:
            self.turn(2)
        self.loop.now += seconds
        if not busy:
            self.turn(2)

    @rule(times=st.integers(1, 3))
    def turns(self, times: int) -> None:
        self.turn(times)

    def turn(self, times: int) -> None:
        for _ in range(times):
            self.loop.turn()
        for guest in self.model.waiting:
            assert guest.cancelled or guest.deadline > self.loop.now, "forgotten by the sweep"

    @invariant()
    def agrees(self) -> None:
        assert self.faults == []
        stage, model = self.stage, self.model
        lanes = [guest.lane for guest in model.waiting]
        assert stage.waiting == tuple(lanes.count(lane) for lane in Lane)
        assert (stage.inside, sum(stage.entered), stage.shed) == (model.inside, model.entered, model.shed)
        assert stage.waited_s == pytest.approx(model.waited_s)
        since = [guest.since for guest in model.waiting]
        assert stage.longest_wait_s(self.loop.now) == (self.loop.now - min(since) if since else 0.0)
        assert sum(guest.seen_inside for guest in self.all) + self.loose <= stage.inside
        assert not lanes or stage.inside >= stage.width, "a free chair, and somebody waits"
        for task in self.tasks.values():
            if task.done() and not task.cancelled():
                task.result()

    def teardown(self) -> None:
        """Let everybody through: no chair and no place is left behind."""
        if not hasattr(self, "loop"):
            return
        self.loop.settle()
        self.loop.call_soon(self._resize, len(self.all) + 9, 0, None)
        for guest in self.all:
            self.loop.call_soon(self._leave_if_inside, guest)
        for _ in range(self.loose):
            self.loop.call_soon(self._step_out)
        self.loop.settle()
        self.agrees()
        assert all(task.done() for task in self.tasks.values())
        assert (self.stage.inside, sum(self.stage.waiting)) == (0, 0)
        self.loop.close()


TestDoor = Door.TestCase
TestDoor.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
