"""A role's pause outlives the daemon, and ends by a probe that works."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from coordinator.domain.attempt import Ending
from coordinator.domain.event import Published, RoleMended, RolePaused
from coordinator.domain.vitals import Doing, Vitals
from coordinator.fleet.ledger import Ledger
from coordinator.fleet.roles import FACT, RoleWatch
from coordinator.kit.bus import Bus
from coordinator.kit.store import Store
from coordinator.policy.breaker import FIRST_PAUSE_S

if TYPE_CHECKING:
    from collections.abc import Iterator

    from coordinator.sdk.layout import Layout


class Clock:
    """Both clocks, moved by hand."""

    def __init__(self) -> None:
        self.wall = datetime(2026, 3, 1, 13, 0, tzinfo=UTC)
        self.mono = 1000.0

    def now(self) -> datetime:
        return self.wall

    def monotonic(self) -> float:
        return self.mono

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("nobody waits here")

    def passes(self, seconds: float) -> None:
        self.wall += timedelta(seconds=seconds)
        self.mono += seconds


class House:
    def __init__(self, layout: Layout) -> None:
        self.clock = Clock()
        self.store = Store.open(layout.ledger)
        self.told: list[str] = []
        self.start()

    def start(self) -> None:
        """A daemon, or the next one."""
        bus = Bus(self.clock)
        bus.tap(self._hear)
        self.ledger = Ledger(self.store, bus, self.clock)
        self.watch = RoleWatch(bus, self.clock, self.ledger)

    def _hear(self, published: Published) -> None:
        match published.event:
            case RolePaused(reason=reason):
                self.told.append(reason)
            case RoleMended(role=role):
                self.told.append(f"role {role} works again")

    def limit(self, task: str = "t1", *, in_s: float = 3600.0) -> Ending:
        retry_at = self.clock.wall.timestamp() + in_s if in_s else 0.0
        return self.watch.note_ending("claude", (task, 1), Ending.RATE_LIMITED, "usage limit", retry_at=retry_at)


@pytest.fixture
def house(layout: Layout) -> Iterator[House]:
    made = House(layout)
    yield made
    made.store.close()


def _seen(turns: int, doing: Doing = Doing.THINKING) -> Vitals:
    return Vitals(turns=turns, doing=doing)


def test_a_usage_limit_pauses_the_whole_role_and_says_until_when(house: House) -> None:
    assert house.limit() is Ending.RATE_LIMITED
    reset = (house.clock.wall + timedelta(hours=1)).astimezone()
    assert house.watch.refusals() == {"claude": f"role claude is paused: usage limit, resets at {reset:%H:%M}"}
    assert house.watch.wake_in_s() == pytest.approx(3600, abs=10)
    for number in range(2, 25):
        house.limit(f"t{number}", in_s=3600.0 + number)
    assert len(house.told) == 1


def test_it_outlives_the_daemon_and_a_reboot(house: House) -> None:
    house.limit()
    house.clock.passes(600)
    house.clock.mono = 5.0
    house.start()
    assert house.watch.refusals()
    assert house.watch.wake_in_s() == pytest.approx(3000, abs=10)
    house.clock.passes(3010)
    assert house.watch.refusals() == {}
    assert house.watch.slots() == {"claude": 1}


def test_only_a_probe_that_works_ends_it(house: House) -> None:
    house.limit()
    house.watch.note_success("claude", ("began-before", 1))
    assert house.watch.refusals()
    house.clock.passes(3610)
    house.watch.offered("claude", ("probe", 4))
    house.watch.note_vitals("claude", ("began-before", 1), _seen(30))
    house.watch.note_vitals("claude", ("probe", 4), _seen(1))
    assert house.watch.slots() == {"claude": 1}
    house.start()  # and the next daemon knows the probe
    house.watch.note_vitals("claude", ("probe", 4), _seen(1, Doing.USING_TOOL))
    assert house.watch.slots() == {}
    assert house.told[-1] == "role claude works again"
    assert house.ledger.read_fact(FACT) == {}


def test_a_probe_that_is_refused_again_waits_again(house: House) -> None:
    house.limit(in_s=0.0)
    first = house.watch.wake_in_s()
    assert first is not None
    house.clock.passes(first + 1)
    house.watch.offered("claude", ("probe", 1))
    house.limit("probe", in_s=0.0)
    assert house.watch.wake_in_s() == pytest.approx(2 * first, abs=1)
    assert not house.watch.is_hopeless("claude")


def test_a_missing_login_closes_the_role_at_the_first(house: House) -> None:
    ending = house.watch.note_ending("claude", ("t", 1), Ending.LOGIN_MISSING, "not logged in")
    assert ending is Ending.LOGIN_MISSING
    assert house.watch.refusals() == {"claude": "role claude is paused: not logged in"}
    assert "tried again with one task in 30 s" in house.told[0]


def test_while_a_role_is_probed_nothing_is_charged(house: House) -> None:
    endings = [house.watch.note_ending("r", (f"t{number}", 1), Ending.STALLED, "silent") for number in range(7)]
    assert endings == [Ending.STALLED] * 5 + [Ending.UNAVAILABLE] * 2
    house.watch.note_ending("r", ("t9", 1), Ending.GATE_FAILED, "red")  # its agents do work
    assert house.watch.refusals() == {}


@pytest.mark.parametrize("fact", [None, [], {"r": 5}, {"r": {"cause": "x"}}, {"r": {}}])
def test_garbage_in_the_ledger_is_forgotten(house: House, fact: object) -> None:
    house.ledger.fact(FACT, fact)
    house.start()
    assert house.watch.refusals() == {}


@pytest.mark.parametrize("in_s", [1e17, -5.0])
def test_a_reset_that_no_calendar_has_is_not_shown(house: House, in_s: float) -> None:
    house.limit(in_s=in_s)
    assert house.watch.refusals() == {"claude": "role claude is paused: usage limit"}


def test_of_a_reset_that_has_come_meanwhile_only_the_margin_is_waited_for(house: House) -> None:
    house.limit(in_s=-3.0)
    wake_in_s = house.watch.wake_in_s()
    assert wake_in_s is not None
    assert wake_in_s < FIRST_PAUSE_S / 2
