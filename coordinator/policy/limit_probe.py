"""LimitProbe: finds how many calls at once an upstream serves best, by short tests on what it delivers.

Owns one invariant: one test at a time, and each is kept or taken back by what was delivered in it, never by how long calls took:
a call that is over tells of the past. While the noise of what is delivered is not known, or too large to see through, nothing
is tried. What refusals teach is ``learned_limit``'s. Constants are from simulation; ``scripts/bench control`` tries them.
"""

from __future__ import annotations

import enum
import math
import statistics
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection

SLACK: Final = 0.15
ALARM: Final = 1.0
"""A CUSUM of the logarithm of speed against its reference, each look: a fall by half alarms at the second look."""
SETTLE_TICKS: Final = 4
DEEPEST_CUT: Final = 0.5
CUT_TEST_TICKS: Final = 5
CALIBRATION: Final = 0.75
LEAST_CALIBRATED: Final = 4.0
CROWD: Final = 1.5
"""So many times more calls at once than when it was asked last are a new question."""
SHORTEST_TICKS, LONGEST_TICKS = 4, 12
SURE: Final = 2.0
"""A test is as long as it takes for what divides kept from reverted to be twice the noise of its outcome away from either."""
FILL_TICKS: Final = 2
"""Calls that were just let in deliver nothing yet."""
NEXT_TICKS, NEXT_GROWTH, LAST_TICKS = 36, 4, 2880
"""After a growth that did not help, the next is tried so much later, each time so many times later, up to 4 h of 5-s ticks."""
FINEST: Final = 2
"""A growth that helped a little, but not enough, is tried again by half, and by half of that."""
RETURN_TICKS, RETURN_WITHIN_TICKS = 12, 720
DRAIN_TICKS: Final = 24
NOISE_TICKS: Final = 8
LOUDEST: Final = 0.2
"""The largest standard deviation of the logarithm of speed, from look to look, through which a test can be judged."""
LEAST_CALLS: Final = 2.0
"""Fewer calls at once have nothing to be cut, and their speed is noise."""
_MEMORY: Final = 0.05


class _Trying(enum.Enum):
    ADVICE = "advice"
    CALIBRATION = "calibration"
    CUT = "cut"
    GROWTH = "growth"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeTick:
    """One look: bytes ``delivered_per_s`` and calls in flight, as means since the last; ``bound``: calls waited for the limit all
    the time. ``limit`` is what holds now; None: nothing does."""

    bound: bool
    delivered_per_s: float
    in_flight: float
    limit: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeMove:
    """``calls`` at once from now on, on trial (None: unlimited); or, with ``kept``, the end of the trial that goes on.
    ``futile``: it says nothing, because something came between."""

    calls: int | None = None
    futile: bool = False
    kept: bool | None = None
    why: str = ""


@dataclass(slots=True, kw_only=True)
class _Test:
    before: tuple[float, float]
    """Bytes a second, and calls at once: what was so, not what was allowed."""
    kind: _Trying
    limit: int | None
    new: int
    old: float
    ticks: int
    after: list[tuple[float, float]]
    drained: bool = False
    waited: int = 0


class LimitProbe:
    """``step`` with each look; ``outside`` when somebody else changed something."""

    def __init__(self) -> None:
        self._advised: tuple[int, str] | None = None
        self._calibrate = True
        self._calibrated = 0.0
        self._cut_at = -RETURN_WITHIN_TICKS
        self._falling = 0.0
        self._finer = 0
        self._growth_wait = NEXT_TICKS
        self._last_good = 0.0
        self._limit: int | None = None
        self._next_growth = 0
        self._rates: deque[tuple[float, float]] = deque(maxlen=LONGEST_TICKS)
        self._reference: float | None = None
        self._settling = 0
        self._speeds: deque[float] = deque(maxlen=3 * NOISE_TICKS)
        self._test: _Test | None = None
        self._tick = 0
        self._told = False
        """Of a change that is still to be seen."""

    @property
    def noise(self) -> float | None:
        """Standard deviation of the logarithm of speed from look to look, of the middle half; None: not measured."""
        steps = [abs(one - other) for one, other in zip(self._speeds, list(self._speeds)[1:], strict=False)]
        return statistics.median(steps) / 0.6745 / math.sqrt(2) if len(steps) >= NOISE_TICKS else None

    def outside(self) -> None:
        """A person, or another controller, changed something: the test says nothing, and what is best is asked anew."""
        self._forget()
        self._calibrate, self._growth_wait, self._next_growth = True, NEXT_TICKS, 0
        self._reference, self._told = None, True
        self._cut_at = self._tick - RETURN_WITHIN_TICKS
        self._finer, self._last_good = 0, 0.0

    def advise(self, calls: int, why: str) -> None:
        """Somebody thinks that so many calls at once are better: the next test is of that."""
        self._advised = calls, why

    def refused(self) -> None:
        """The test that was just begun may not be made."""
        if self._test is not None:
            self._take_back(self._test)
            self._put_off()

    def _forget(self) -> None:
        self._test = None
        self._rates.clear()
        self._falling, self._settling = 0.0, 0

    def step(self, seen: ProbeTick) -> ProbeMove | None:
        self._tick += 1
        if seen.limit != self._limit:
            was, self._limit = self._limit, seen.limit
            if self._test is None or seen.limit != self._test.new:
                return self._by_others(was)
        if seen.in_flight < LEAST_CALLS or seen.delivered_per_s < 1:
            self._rates.clear()
            return self._give_up("too few calls came") if self._test is not None else None
        if self._test is not None:
            return self._go_on(self._test, seen)
        self._rates.append((seen.delivered_per_s, seen.in_flight))
        speed = math.log(seen.delivered_per_s / seen.in_flight)
        if self._settling:
            self._settling -= 1
            return None if self._settling else self._cut(seen, speed)
        self._speeds.append(speed)
        noise = self.noise
        if noise is None or noise > LOUDEST:
            self._reference = None
            return None
        return self._watch(seen, speed)

    def _take_back(self, test: _Test) -> None:
        """What held before the test will hold again."""
        self._forget()
        self._limit = test.limit

    def _by_others(self, was: int | None) -> ProbeMove | None:
        """The limit is another one, and not by a test: a refusal, or somebody's word."""
        if self._test is None:
            self._rates.clear()
            self._calibrate = self._calibrate and (was is None or self._told)
            self._told = False
            return None
        return self._give_up("the limit was changed meanwhile")

    def _give_up(self, why: str) -> ProbeMove:
        assert self._test is not None
        self._take_back(self._test)
        self._next_growth = self._tick + self._growth_wait
        return ProbeMove(futile=True, kept=False, why=why)

    # -- what to try ---------------------------------------------------------------------------------------------------

    def _watch(self, seen: ProbeTick, speed: float) -> ProbeMove | None:
        if self._reference is None:
            self._reference = statistics.median(self._speeds)
        self._falling = max(0.0, self._falling + self._reference - speed - SLACK)
        if self._falling > ALARM:
            self._falling, self._settling = 0.0, SETTLE_TICKS
            self._rates.clear()  # what was delivered before the fall is no measure for what comes after a cut
            return None
        if not self._falling:
            self._reference += _MEMORY * (speed - self._reference)
        if len(self._rates) < SHORTEST_TICKS:
            return None
        if self._advised is not None:
            (calls, advice), self._advised = self._advised, None
            old = self._held(seen)
            ticks = self._test_ticks(old, calls)
            return self._begin(_Trying.ADVICE, old, calls, ticks, advice) if calls != old else None
        if seen.in_flight >= LEAST_CALIBRATED and (self._calibrate or seen.in_flight > CROWD * self._calibrated):
            return self._try_less(seen)
        return self._try_more(seen) if seen.bound and seen.limit is not None else None

    def _try_less(self, seen: ProbeTick) -> ProbeMove | None:
        old = self._held(seen)
        new = math.floor(old * CALIBRATION)
        ticks = self._test_ticks(old, new)
        if len(self._rates) < ticks:
            return None
        self._calibrate, self._calibrated = False, old
        why = f"is as much delivered with fewer than {old:.0f} calls at once?"
        return self._begin(_Trying.CALIBRATION, old, new, ticks, why)

    def _try_more(self, seen: ProbeTick) -> ProbeMove | None:
        assert seen.limit is not None
        returning = self._tick - self._cut_at < RETURN_WITHIN_TICKS
        if self._tick < self._next_growth:
            return None
        old = seen.limit
        if returning and self._last_good > old:
            new = min(2 * old, math.ceil(self._last_good))
        else:
            new = old + max(1, math.ceil(old * (0.5 if old < 8 else 0.25) / 2**self._finer))
        ticks = self._test_ticks(old, new)
        if len(self._rates) < ticks:
            return None
        why = f"calls wait, and {old} at once deliver {_means(self._rates)[0]:.3g} bytes/s"
        return self._begin(_Trying.GROWTH, old, new, ticks, why)

    def _cut(self, seen: ProbeTick, speed: float) -> ProbeMove | None:
        """Some looks after the fall was seen: by the ratio of speeds, if it is still there."""
        assert self._reference is not None
        ratio = math.exp(speed - self._reference)
        old = self._held(seen)
        new = max(1, math.floor(old * max(ratio, DEEPEST_CUT)))
        if ratio > 1 - SLACK or new >= old:
            return None
        self._last_good = max(self._last_good, old)
        why = f"each of {old:.0f} calls at once gets {ratio:.0%} of the usual bytes/s"
        return self._begin(_Trying.CUT, old, new, CUT_TEST_TICKS, why)

    def _begin(self, kind: _Trying, old: float, new: int, ticks: int, why: str) -> ProbeMove:
        self._test = _Test(
            after=[], before=_means(self._rates), kind=kind, limit=self._limit, new=new, old=old, ticks=ticks
        )
        self._rates.clear()
        return ProbeMove(calls=new, why=why)

    def _held(self, seen: ProbeTick) -> float:
        calls = _means(self._rates)[1]
        return calls if seen.limit is None else min(float(seen.limit), calls + 1)

    def _test_ticks(self, old: float, new: float) -> int:
        noise, margin = self.noise or LOUDEST, 0.5 * abs(new / old - 1)
        wanted = 2 * (SURE * noise / margin) ** 2 if margin else math.inf
        return min(max(math.ceil(min(wanted, LONGEST_TICKS)), SHORTEST_TICKS), LONGEST_TICKS)

    # -- what came of it -----------------------------------------------------------------------------------------------

    def _go_on(self, test: _Test, seen: ProbeTick) -> ProbeMove | None:
        test.waited += 1
        if not test.drained:
            ready = test.waited >= FILL_TICKS if test.new > test.old else seen.in_flight <= test.new + 0.5
            test.drained = ready or test.waited >= DRAIN_TICKS
            return None
        test.after.append((seen.delivered_per_s, seen.in_flight))
        if len(test.after) < test.ticks:
            return None
        (rate, calls), (old_rate, old_calls) = _means(test.after), test.before
        change, moved = rate / old_rate - 1, calls / old_calls - 1
        kept = change >= 0.5 * moved
        self._take_back(test)
        if kept:
            self._limit = test.new
            self._reference = math.log(rate / calls)
        self._judged(test, seen, kept, promising=change > 0.2 * moved > 0)
        said = f"{moved:+.0%} calls at once delivered {change:+.0%} bytes/s"
        return ProbeMove(kept=kept, why=said)

    def _judged(self, test: _Test, seen: ProbeTick, kept: bool, *, promising: bool) -> None:
        match test.kind:
            case _Trying.CALIBRATION:
                self._calibrate = kept  # once more, until less is delivered
            case _Trying.CUT:
                self._cut_at = self._tick if kept else self._cut_at
                self._calibrate = kept  # a cut is at most by half
                self._finer = 0
                self._reference = math.log(seen.delivered_per_s / seen.in_flight) if not kept else self._reference
                self._next_growth = self._tick + RETURN_TICKS
            case _Trying.ADVICE:
                self._calibrate = kept
            case _Trying.GROWTH if kept:
                self._calibrated = float(test.new)
                self._growth_wait, self._next_growth = NEXT_TICKS, self._tick
                self._last_good = max(self._last_good, test.new) if self._last_good else 0.0
            case _Trying.GROWTH if promising and self._finer < FINEST:
                self._finer += 1
                self._next_growth = self._tick + RETURN_TICKS
            case _Trying.GROWTH:
                self._put_off()

    def _put_off(self) -> None:
        age = self._tick - self._cut_at
        if age < RETURN_WITHIN_TICKS:
            self._next_growth = self._tick + max(RETURN_TICKS, age // 4)
            return
        self._finer = 0
        self._next_growth = self._tick + self._growth_wait
        self._growth_wait = min(self._growth_wait * NEXT_GROWTH, LAST_TICKS)


def _means(looks: Collection[tuple[float, float]]) -> tuple[float, float]:
    return statistics.fmean(rate for rate, _ in looks), statistics.fmean(calls for _, calls in looks)
