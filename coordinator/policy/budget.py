"""Budgets: the worst case of a call is set aside before it is sent, and what it really cost is booked after it.

Owns one invariant: what was spent and what is set aside never pass a limit together, on any level; only a call that costs
more than was set aside for it can do that, and by how much is counted. Money is kept in whole billionths of a dollar, so
that sums come out even. It knows no prices (``policy.pricing``) and no clock: the day comes in as an argument.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from datetime import date

NO_LIMIT: Final = math.inf

_UNIT: Final = 1_000_000_000
_MOST_USD: Final = 1e9
"""Of one call. More is no amount of money but a fault."""


class Budget(enum.StrEnum):
    """Whose limit it is. ``CALL`` is a limit for each single call; the others are levels of purses."""

    CALL = "call"
    DAY = "day"
    FLEET = "fleet"
    TASK = "task"


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetRefusal:
    """The call may not be made: ``wanted_usd`` does not fit in ``limit_usd``, of which ``spent_usd`` is spent and
    ``reserved_usd`` set aside for calls that are under way."""

    budget: Budget
    limit_usd: float
    reserved_usd: float
    spent_usd: float
    wanted_usd: float

    def __str__(self) -> str:
        if self.budget is Budget.CALL:
            return f"the call may cost ${self.wanted_usd:.2f}, and no call may cost more than ${self.limit_usd:.2f}"
        left = f"${self.spent_usd:.2f} of ${self.limit_usd:.2f} are spent"
        held = f", ${self.reserved_usd:.2f} set aside for calls under way" if self.reserved_usd > 0 else ""
        return f"the {self.budget.value}'s budget: {left}{held}, and the call may cost ${self.wanted_usd:.2f}"


class _Level:
    """One limit and what counts against it, in billionths of a dollar; None: no limit."""

    __slots__ = ("budget", "call", "limit", "overshoot", "reserved", "spent")

    def __init__(self, budget: Budget, limit: int | None, call: int | None) -> None:
        self.budget = budget
        self.call = call
        self.limit = limit
        self.overshoot = 0
        self.reserved = 0
        self.spent = 0

    def refusal(self, wanted: int) -> BudgetRefusal | None:
        if self.limit is None or self.spent + self.reserved + wanted <= self.limit:
            return None
        return BudgetRefusal(
            budget=self.budget,
            limit_usd=self.limit / _UNIT,
            reserved_usd=self.reserved / _UNIT,
            spent_usd=self.spent / _UNIT,
            wanted_usd=wanted / _UNIT,
        )


class Reservation:
    """What is set aside for one call that is under way: ``held`` billionths of a dollar, until the purse that made it
    settles it."""

    __slots__ = ("held", "purse")

    def __init__(self, purse: Purse, held: int) -> None:
        self.held = held
        self.purse: Purse | None = purse


class Purse:
    """One budget, and those ``above`` it, in which whatever is spent here is spent as well: task, day, fleet.

    ``limit_usd`` and ``call_usd`` (for each single call) may be ``NO_LIMIT``. Amounts are USD.
    """

    __slots__ = ("_day", "_own", "levels")

    def __init__(
        self,
        budget: Budget,
        limit_usd: float = NO_LIMIT,
        *,
        above: Purse | None = None,
        call_usd: float = NO_LIMIT,
        day: date | None = None,
    ) -> None:
        self._day = day
        self._own = _Level(budget, _limit(limit_usd), _limit(call_usd))
        self.levels: tuple[_Level, ...] = (self._own, *(above.levels if above is not None else ()))

    @property
    def budget(self) -> Budget:
        """Whose it is."""
        return self._own.budget

    @property
    def limit_usd(self) -> float:
        return NO_LIMIT if self._own.limit is None else self._own.limit / _UNIT

    @limit_usd.setter
    def limit_usd(self, limit_usd: float) -> None:
        """Somebody gave more, or less: what is spent already stays spent."""
        self._own.limit = _limit(limit_usd)

    @property
    def overshoot_usd(self) -> float:
        """By how much calls together cost more than was set aside for them."""
        return self._own.overshoot / _UNIT

    @property
    def reserved_usd(self) -> float:
        return self._own.reserved / _UNIT

    @property
    def spent_usd(self) -> float:
        return self._own.spent / _UNIT

    def reserve(self, worst_usd: float) -> Reservation | BudgetRefusal:
        """Set aside what a call may cost at most, on all levels or on none."""
        wanted = _amount(worst_usd)
        refusal = self._refusal(wanted, wanted)
        if refusal is not None:
            return refusal
        for level in self.levels:
            level.reserved += wanted
        return Reservation(self, wanted)

    def grow(self, reservation: Reservation, more_usd: float) -> bool:
        """Set aside more for a call that goes on. False: nothing was, a limit is reached, and the call is to be cut."""
        self._check(reservation)
        more = _amount(more_usd)
        if self._refusal(more, reservation.held + more) is not None:
            return False
        reservation.held += more
        for level in self.levels:
            level.reserved += more
        return True

    def hand_on(self, reservation: Reservation, heir: Purse, worst_usd: float) -> Reservation | BudgetRefusal:
        """Another purse is to pay for a call that goes on: what is set aside here for it is free, and ``worst_usd`` is set aside
        there. When it does not fit there, all is as it was."""
        self._check(reservation)
        for level in self.levels:
            level.reserved -= reservation.held
        made = heir.reserve(worst_usd)
        if isinstance(made, BudgetRefusal):
            for level in self.levels:
                level.reserved += reservation.held
        else:
            reservation.purse = None
        return made

    def settle(self, reservation: Reservation, actual_usd: float) -> None:
        """The call is over and cost ``actual_usd`` (0 when nothing was sent). Once for each reservation."""
        self._check(reservation)
        actual = _amount(actual_usd)
        reservation.purse = None
        for level in self.levels:
            level.reserved -= reservation.held
            level.spent += actual
            level.overshoot += max(actual - reservation.held, 0)

    def spend(self, actual_usd: float) -> None:
        """A call is over for which nothing was set aside."""
        actual = _amount(actual_usd)
        for level in self.levels:
            level.spent += actual
            level.overshoot += actual

    def roll_over(self, day: date) -> None:
        """A purse for a day begins anew when a later day has come. What is set aside stays so, and is spent on the day on
        which its call ends. A clock that is set back changes nothing, so that no day's budget is had twice."""
        if self._day is None or day > self._day:
            if self._day is not None:
                self._own.spent = self._own.overshoot = 0
            self._day = day

    def restore(self, spent_usd: float) -> None:
        """After a restart: this was spent on this level before. Each level is told its own."""
        self._own.spent = _amount(spent_usd)

    def _refusal(self, wanted: int, call: int) -> BudgetRefusal | None:
        """The first limit that ``wanted`` more would pass, from the call up; the call would then have ``call`` in all."""
        for level in self.levels:
            if level.call is not None and call > level.call:
                return BudgetRefusal(
                    budget=Budget.CALL,
                    limit_usd=level.call / _UNIT,
                    reserved_usd=0.0,
                    spent_usd=0.0,
                    wanted_usd=call / _UNIT,
                )
        for level in self.levels:
            refusal = level.refusal(wanted)
            if refusal is not None:
                return refusal
        return None

    def _check(self, reservation: Reservation) -> None:
        if reservation.purse is not self:
            raise ValueError("the reservation is another purse's, or is settled already")


def _amount(usd: float) -> int:
    if not 0 <= usd <= _MOST_USD:  # true of nan as well
        raise ValueError(f"{usd!r} is no amount of money")
    return round(usd * _UNIT)


def _limit(usd: float) -> int | None:
    return None if usd == NO_LIMIT else _amount(usd)
