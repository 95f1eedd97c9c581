"""Limits are found by what is delivered: tests are kept or taken back, one at a time, and not at all where noise hides it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.policy.limit_probe import LimitProbe, ProbeMove, ProbeTick
from scripts.control_upstream import SharedUpstream

if TYPE_CHECKING:
    from collections.abc import Callable

    from coordinator.policy.upstream_limit import UpstreamLimit


@dataclass
class Played:
    """A fleet, its upstream and a probe. ``moves`` with the second at which each was made and the limit before it."""

    world: SharedUpstream
    probe: LimitProbe = field(default_factory=LimitProbe)
    moves: list[tuple[float, ProbeMove]] = field(default_factory=list)
    on: bool = True
    _old: int = 0
    _delivered: float = 0.0

    def pass_to(self, until_s: float) -> None:
        while self.world.at_s < until_s:
            looks = []
            for _ in range(5):
                self.world.pass_to(self.world.at_s + 1)
                looks.append((self.world.limit.in_flight, self.world.waiting))
            seen = ProbeTick(
                bound=all(waiting for _, waiting in looks),
                delivered_per_s=(self.world.delivered - self._delivered) / 5,
                in_flight=sum(calls for calls, _ in looks) / 5,
                limit=self.world.limit.limit,
            )
            self._delivered = self.world.delivered
            if self.on and (move := self.probe.step(seen)) is not None:
                self._do(move)

    def _do(self, move: ProbeMove) -> None:
        self.moves.append((self.world.at_s, move))
        limit: UpstreamLimit = self.world.limit
        if move.calls is not None:
            self._old = limit.cap
            limit.set_cap(move.calls)
        elif not move.kept:
            limit.set_cap(self._old)

    def kept(self) -> list[str]:
        return [move.why for _, move in self.moves if move.kept]


def work(seed: int, cap: int, *, on: bool, until_s: float = 3600.0, change: Callable[[SharedUpstream], None] | None = None, **more: float) -> float:  # fmt: skip
    played = Played(SharedUpstream(seed, cap=cap, **more), on=on)  # type: ignore[arg-type]
    if change is not None:
        played.pass_to(1200)
        change(played.world)
    played.pass_to(until_s)
    return played.world.done_s


@pytest.mark.parametrize("seed", [31, 32, 33])
def test_a_wrong_start_is_found_and_mended_within_200_s(seed: int) -> None:
    for cap, most in ((4, 400.0), (36, 200.0)):
        played = Played(SharedUpstream(seed, cap=cap))
        played.pass_to(most)
        assert 9 <= played.world.limit.cap <= 17, (cap, played.world.limit.cap)
        assert played.kept()


@pytest.mark.parametrize("seed", [31, 32, 33])
def test_a_right_limit_is_left_and_tests_of_it_are_taken_back(seed: int) -> None:
    played = Played(SharedUpstream(seed, cap=12))
    played.pass_to(4 * 3600)
    assert played.world.limit.cap == 12
    assert played.kept() == []
    assert sum(at_s > 3600 for at_s, _ in played.moves) / 3 <= 2.0  # a test and its end, an hour
    longest = max(end - begin for (begin, _), (end, _) in zip(played.moves[::2], played.moves[1::2], strict=False))
    assert longest <= 60
    assert work(seed, 12, on=True) >= 0.98 * work(seed, 12, on=False)


@pytest.mark.parametrize("seed", [31, 32])
def test_a_capacity_that_falls_is_followed_and_its_return_is_found(seed: int) -> None:
    played = Played(SharedUpstream(seed, cap=12))
    played.pass_to(1200)
    played.world.capacity = 4
    played.pass_to(1320)
    assert played.world.limit.cap <= 6
    played.pass_to(1800)
    played.world.capacity = 12
    played.pass_to(2100)
    assert 9 <= played.world.limit.cap <= 17


@pytest.mark.parametrize("seed", [31, 32, 33])
def test_where_half_as_many_more_are_too_many_one_more_is_tried(seed: int) -> None:
    played = Played(SharedUpstream(seed, agents=14, cap=5, capacity=6.5))
    played.pass_to(1200)
    while played.moves[-1][1].calls is not None:  # a test goes on
        played.pass_to(played.world.at_s + 5)
    assert played.world.limit.cap in (6, 7)


def test_all_calls_slower_alike_is_no_reason_to_hold_them_back() -> None:
    def slow(world: SharedUpstream) -> None:
        world.speed = 0.25

    assert work(31, 12, on=True, change=slow) >= 0.97 * work(31, 12, on=False, change=slow)


def test_a_fleet_that_is_no_burden_is_not_held_back() -> None:
    played = Played(SharedUpstream(31, agents=6, most=0))
    played.pass_to(3600)
    assert played.world.limit.cap > 100
    assert played.kept() == []


def test_nothing_is_tried_through_noise() -> None:
    played = Played(SharedUpstream(31, cap=4, noise=1.5))
    played.pass_to(3600)
    assert played.probe.noise is not None
    assert played.probe.noise > 0.2
    assert played.moves == []


def test_a_change_by_somebody_else_ends_the_test_without_a_verdict_and_is_asked_about() -> None:
    played = Played(SharedUpstream(31, cap=12))
    played.pass_to(50)
    assert played.moves[-1][1].calls == 9
    played.world.limit.set_cap(30)
    played.pass_to(55)
    ended = played.moves[-1][1]
    assert (ended.futile, ended.kept) == (True, False)
    played.world.limit.set_cap(30)
    played.probe.outside()
    played.pass_to(255)
    assert 9 <= played.world.limit.cap <= 17


def test_when_it_is_told_of_another_limit_it_asks_first_whether_fewer_would_do() -> None:
    played = Played(SharedUpstream(31, cap=12))
    played.pass_to(1000)
    before = len(played.moves)
    played.world.limit.set_cap(16)
    played.probe.outside()
    played.pass_to(1200)
    assert "with fewer than 16 calls" in played.moves[before][1].why
    assert played.world.limit.cap <= 14


LOOKS = st.builds(
    ProbeTick,
    bound=st.booleans(),
    delivered_per_s=st.floats(0, 1e6),
    in_flight=st.floats(0, 200),
    limit=st.one_of(st.none(), st.integers(1, 300)),
)


@given(st.lists(LOOKS, max_size=120), st.booleans())
def test_whatever_is_seen_tests_begin_and_end_in_turn_and_stay_above_nothing(looks: list[ProbeTick], steady: bool) -> None:  # fmt: skip
    probe, trying = LimitProbe(), False
    limit: int | None = 12
    for look in looks:
        seen = ProbeTick(bound=look.bound, delivered_per_s=look.delivered_per_s, in_flight=look.in_flight, limit=limit if steady else look.limit)  # fmt: skip
        move = probe.step(seen)
        if move is None:
            continue
        assert (move.calls is None) is trying
        assert move.calls is None or move.calls >= 1
        trying = move.calls is not None
        limit = move.calls if move.calls is not None else limit
