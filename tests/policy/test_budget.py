"""No budget is passed while the worst case holds; what is set aside comes back; what was overshot is counted."""

from __future__ import annotations

import math
from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from coordinator.policy.budget import NO_LIMIT, Budget, BudgetRefusal, Purse, Reservation

DAY = date(2026, 11, 30)


def got(answer: Reservation | BudgetRefusal) -> Reservation:
    assert isinstance(answer, Reservation), str(answer)
    return answer


def refused(answer: Reservation | BudgetRefusal) -> BudgetRefusal:
    assert isinstance(answer, BudgetRefusal)
    return answer


def tree(
    *, fleet: float = NO_LIMIT, day: float = NO_LIMIT, task: float = NO_LIMIT, call: float = NO_LIMIT
) -> list[Purse]:
    whole = Purse(Budget.FLEET, fleet)
    today = Purse(Budget.DAY, day, above=whole, day=DAY)
    return [Purse(Budget.TASK, task, above=today, call_usd=call), today, whole]


def test_what_a_call_costs_is_spent_on_all_levels() -> None:
    purses = tree(fleet=10, day=5, task=2)
    held = got(purses[0].reserve(1.5))
    assert [purse.reserved_usd for purse in purses] == [1.5, 1.5, 1.5]
    purses[0].settle(held, 0.25)
    assert [purse.reserved_usd for purse in purses] == [0, 0, 0]
    assert [purse.spent_usd for purse in purses] == [0.25, 0.25, 0.25]
    assert [purse.overshoot_usd for purse in purses] == [0, 0, 0]


@pytest.mark.parametrize(
    ("limits", "budget"),
    [
        ({"task": 1.0}, Budget.TASK),
        ({"task": 1.0, "day": 1.0}, Budget.TASK),
        ({"day": 1.0, "fleet": 1.0}, Budget.DAY),
        ({"fleet": 1.0, "task": 1.5}, Budget.FLEET),
        ({"call": 1.0, "task": 1.0}, Budget.CALL),
    ],
)
def test_a_refusal_names_the_nearest_limit_and_sets_nothing_aside(limits: dict[str, float], budget: Budget) -> None:
    purses = tree(**limits)
    refusal = refused(purses[0].reserve(1.25))
    assert (refusal.budget, refusal.limit_usd, refusal.wanted_usd) == (budget, 1.0, 1.25)
    assert [purse.reserved_usd for purse in purses] == [0, 0, 0]
    got(purses[0].reserve(1.0))


def test_a_refusal_says_how_much_is_spent_and_set_aside() -> None:
    purse = tree(task=5)[0]
    purse.settle(got(purse.reserve(1)), 1)
    got(purse.reserve(2))
    refusal = refused(purse.reserve(2.5))
    assert (refusal.spent_usd, refusal.reserved_usd) == (1.0, 2.0)
    assert str(refusal) == (
        "the task's budget: $1.00 of $5.00 are spent, $2.00 set aside for calls under way, and the call may cost $2.50"
    )
    purse = tree(call=0.5)[0]
    assert str(refused(purse.reserve(1))) == "the call may cost $1.00, and no call may cost more than $0.50"


def test_a_sibling_sees_what_was_spent_above() -> None:
    fleet = Purse(Budget.FLEET, 1)
    one, two = Purse(Budget.TASK, above=fleet), Purse(Budget.TASK, above=fleet)
    held = got(one.reserve(0.75))
    assert refused(two.reserve(0.5)).budget is Budget.FLEET
    one.settle(held, 0.125)
    got(two.reserve(0.5))
    assert (one.spent_usd, two.spent_usd, fleet.spent_usd) == (0.125, 0, 0.125)


def test_ten_times_ten_cents_are_a_dollar() -> None:
    purse = Purse(Budget.TASK, 1)
    held = [got(purse.reserve(0.1)) for _ in range(10)]
    assert refused(purse.reserve(1e-9)).reserved_usd == 1.0
    for one in held:
        purse.settle(one, 0.1)
    assert (purse.spent_usd, purse.reserved_usd) == (1.0, 0.0)


def test_a_stream_grows_until_nothing_is_left_and_is_then_to_be_cut() -> None:
    purses = tree(fleet=1.0, call=0.9)
    held = got(purses[0].reserve(0.25))
    assert purses[0].grow(held, 0.5)
    assert not purses[0].grow(held, 0.25), "no call may have more than 0.9"
    other = got(purses[0].reserve(0.125))
    assert not purses[0].grow(other, 0.25), "the fleet has a dollar"
    assert [purse.reserved_usd for purse in purses] == [0.875] * 3
    purses[0].settle(held, 0.75)
    purses[0].settle(other, 0.125)
    assert [purse.reserved_usd for purse in purses] == [0] * 3
    assert purses[2].overshoot_usd == 0


def test_what_a_call_costs_beyond_its_reservation_is_counted() -> None:
    purses = tree(task=1.0)
    purses[0].settle(got(purses[0].reserve(1.0)), 1.5)
    assert [purse.overshoot_usd for purse in purses] == [0.5] * 3
    assert purses[0].spent_usd == 1.5
    refused(purses[0].reserve(0.001))


def test_a_reservation_is_settled_once_and_by_its_own_purse() -> None:
    one, two = Purse(Budget.TASK), Purse(Budget.TASK)
    held = got(one.reserve(1))
    with pytest.raises(ValueError, match="another purse"):
        two.settle(held, 0)
    one.settle(held, 1)
    with pytest.raises(ValueError, match="settled already"):
        one.settle(held, 1)
    with pytest.raises(ValueError, match="settled already"):
        one.grow(held, 1)
    assert one.spent_usd == 1


@pytest.mark.parametrize("usd", [-0.01, math.nan, math.inf, -math.inf])
def test_what_is_no_amount_is_refused(usd: float) -> None:
    purse = Purse(Budget.FLEET, 1)
    held = got(purse.reserve(0.5))
    for act in (purse.reserve, purse.restore, lambda usd: purse.grow(held, usd), lambda usd: purse.settle(held, usd)):
        with pytest.raises(ValueError, match="no amount of money"):
            act(usd)
    assert (purse.spent_usd, purse.reserved_usd) == (0, 0.5)


def test_a_new_day_begins_with_nothing_spent_and_the_calls_under_way() -> None:
    task, day, fleet = tree(day=1.0, fleet=10.0)
    held = got(task.reserve(0.75))
    task.settle(got(task.reserve(0.25)), 0.25)
    day.roll_over(DAY)
    refused(task.reserve(0.5))
    day.roll_over(date(2026, 12, 1))
    assert (day.spent_usd, day.reserved_usd) == (0, 0.75)
    assert refused(task.reserve(0.5)).budget is Budget.DAY
    task.settle(held, 0.5)
    assert (day.spent_usd, fleet.spent_usd, task.spent_usd) == (0.5, 0.75, 0.75)


def test_a_clock_that_is_set_back_gives_no_day_twice() -> None:
    task, day, _ = tree(day=1.0)
    task.settle(got(task.reserve(1.0)), 1.0)
    day.roll_over(date(2026, 11, 29))
    day.roll_over(DAY)
    refused(task.reserve(0.5))


def test_after_a_restart_each_level_goes_on_where_it_was() -> None:
    task, day, fleet = tree(day=1.0, fleet=10.0)
    fleet.restore(9.0)
    day.restore(0.25)
    assert (task.spent_usd, day.spent_usd, fleet.spent_usd) == (0, 0.25, 9.0)
    assert refused(task.reserve(0.8)).budget is Budget.DAY
    got(task.reserve(0.75))


def test_a_limit_may_be_raised_and_lowered() -> None:
    purse = Purse(Budget.TASK, 1)
    purse.settle(got(purse.reserve(1)), 1)
    refused(purse.reserve(0.5))
    purse.limit_usd = 2
    held = got(purse.reserve(0.5))
    purse.limit_usd = 0.5
    refused(purse.reserve(0))
    purse.settle(held, 0.5)
    purse.limit_usd = NO_LIMIT
    assert purse.limit_usd == NO_LIMIT
    got(purse.reserve(100))


def test_a_budget_of_nothing_lets_free_calls_pass() -> None:
    purse = Purse(Budget.TASK, 0)
    purse.settle(got(purse.reserve(0)), 0)
    refused(purse.reserve(1e-9))


money = st.one_of(st.floats(0, 3), st.sampled_from([0.0, 0.1, 0.5, 1e-9, 1e-10]))


class Calls(RuleBasedStateMachine):
    """Calls of three tasks in any interleaving; what they cost is within what was set aside, or it is counted."""

    held = Bundle("held")

    @initialize(fleet=money, day=money, task=money, call=money)
    def begin(self, fleet: float, day: float, task: float, call: float) -> None:
        self.fleet = Purse(Budget.FLEET, fleet)
        self.day = Purse(Budget.DAY, day, above=self.fleet, day=DAY)
        self.tasks = [Purse(Budget.TASK, task, above=self.day, call_usd=call) for _ in range(3)]
        self.today = DAY
        self.beyond = 0.0
        self.open: dict[int, tuple[int, float]] = {}
        self.number = 0

    @rule(target=held, which=st.integers(0, 2), worst=money)
    def reserve(self, which: int, worst: float) -> tuple[int, int, Reservation] | None:
        answer = self.tasks[which].reserve(worst)
        if isinstance(answer, BudgetRefusal):
            return None
        self.number += 1
        self.open[self.number] = (which, round(worst, 9))
        return self.number, which, answer

    @rule(one=held, more=money)
    def grow(self, one: tuple[int, int, Reservation] | None, more: float) -> None:
        if one is not None and one[0] in self.open and self.tasks[one[1]].grow(one[2], more):
            self.open[one[0]] = (one[1], self.open[one[0]][1] + round(more, 9))

    @rule(target=held, one=consumes(held), which=st.integers(0, 2), worst=money)
    def hand_on(
        self, one: tuple[int, int, Reservation] | None, which: int, worst: float
    ) -> tuple[int, int, Reservation] | None:
        if one is None:
            return None
        purses = (*self.tasks, self.day, self.fleet)
        before = [purse.reserved_usd for purse in purses]
        made = self.tasks[one[1]].hand_on(one[2], self.tasks[which], worst)
        if isinstance(made, BudgetRefusal):
            assert [purse.reserved_usd for purse in purses] == before
            return one
        assert self.fleet.reserved_usd == pytest.approx(before[-1] - self.open[one[0]][1] + worst, abs=1e-7)
        self.open[one[0]] = (which, round(worst, 9))
        with pytest.raises(ValueError, match="settled already"):
            self.tasks[one[1]].settle(one[2], 0.0)
        return one[0], which, made

    @rule(one=consumes(held), share=st.floats(0, 1))
    def settle(self, one: tuple[int, int, Reservation] | None, share: float) -> None:
        if one is not None:
            self.tasks[one[1]].settle(one[2], self.open.pop(one[0])[1] * share)

    @rule(one=consumes(held), share=st.floats(1, 2))
    def overshoot(self, one: tuple[int, int, Reservation] | None, share: float) -> None:
        if one is not None:
            held = self.open.pop(one[0])[1]
            self.tasks[one[1]].settle(one[2], held * share)
            self.beyond += held * (share - 1)

    @rule(days=st.integers(-1, 1))
    def roll_over(self, days: int) -> None:
        self.today = date.fromordinal(self.today.toordinal() + days)
        self.day.roll_over(self.today)

    @invariant()
    def no_limit_is_passed_but_by_what_was_counted(self) -> None:
        for purse in (*self.tasks, self.day, self.fleet):
            assert purse.reserved_usd >= 0
            assert purse.spent_usd >= 0
            assert purse.spent_usd + purse.reserved_usd <= purse.limit_usd + purse.overshoot_usd + 1e-7
        assert self.fleet.overshoot_usd <= self.beyond + 1e-6

    @invariant()
    def what_is_set_aside_is_that_of_the_calls_under_way(self) -> None:
        for number, task in enumerate(self.tasks):
            own = sum(held for which, held in self.open.values() if which == number)
            assert task.reserved_usd == pytest.approx(own, abs=1e-6)
        if not self.open:
            assert [purse.reserved_usd for purse in (*self.tasks, self.day, self.fleet)] == [0.0] * 5
        assert self.fleet.spent_usd == pytest.approx(sum(task.spent_usd for task in self.tasks), abs=1e-6)


TestCalls = Calls.TestCase
TestCalls.settings = settings(max_examples=20, stateful_step_count=30, deadline=None)


@given(st.lists(st.tuples(money, st.floats(0, 1)), max_size=40), st.floats(0.1, 5))
def test_concurrent_calls_never_overshoot_while_the_worst_case_holds(
    calls: list[tuple[float, float]], limit: float
) -> None:
    """All are asked for before the first ends: as bad as concurrency gets."""
    purse = Purse(Budget.FLEET, limit)
    answers = [(purse.reserve(worst), worst * share) for worst, share in calls]
    for answer, actual in answers:
        if isinstance(answer, Reservation):
            purse.settle(answer, actual)
    assert purse.spent_usd <= purse.limit_usd
    assert purse.reserved_usd == 0
    assert purse.overshoot_usd == 0


def test_amounts_are_rounded_to_the_nearest_billionth() -> None:
    purse = Purse(Budget.FLEET)
    purse.settle(got(purse.reserve(1.003)), 1.003)
    assert purse.spent_usd == 1.003


def test_a_purse_that_knows_no_day_yet_learns_it_without_forgetting() -> None:
    day = Purse(Budget.DAY, 1.0)
    day.restore(0.5)
    day.roll_over(DAY)
    assert day.spent_usd == 0.5
    day.roll_over(date(2026, 12, 1))
    assert day.spent_usd == 0
