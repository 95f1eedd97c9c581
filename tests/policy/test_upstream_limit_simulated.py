"""A fleet of callers before a simulated upstream that refuses: nearly all the work that an oracle gets done, few refusals.

The model: each caller thinks, calls, waits for the answer, and so on. The upstream has a number of places, a bucket of
starts, or hours at which it fails; an oracle sees them, the limit only its answers. Durations, capacities and scenarios
are those of the study whose rules ``UpstreamLimit`` follows (mean 8 s, 95 % below 30 s; a refusal costs half a token).
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from coordinator.policy.upstream_limit import FULL, GO, UpstreamLimit

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, kw_only=True)
class Pulse:
    """How fast things go: calls of 8 s on average, or of ``share`` of that; a refusal or failure arrives in ``answer_s``."""

    answer_s: float = 0.05
    share: float = 1.0
    think_s: float = 4.0
    tick_s: float = 5.0


MODEL = Pulse()
QUICK = Pulse(answer_s=0.005, share=1 / 40, think_s=0.4, tick_s=1.0)
"""A server of one's own: 0.2 s a call."""


@dataclass(kw_only=True)
class Upstream:
    """``places`` may change at given times; ``per_s`` starts a second from a bucket of ``burst``; it fails in ``outages`` and
    refuses everything in ``closures``, whose end it names. ``tells``: a refusal for the rate names a pause."""

    places: Callable[[float], int] = lambda _: 1 << 30
    per_s: float = math.inf
    burst: float = 1.0
    closures: tuple[tuple[float, float], ...] = ()
    outages: tuple[tuple[float, float], ...] = ()
    tells: bool = True

    def __post_init__(self) -> None:
        self.held = 0
        self.tokens = self.burst
        self.at = 0.0
        self.arrivals: list[float] = []

    def fill(self, now: float) -> None:
        if self.per_s < math.inf:
            self.tokens = min(self.tokens + (now - self.at) * self.per_s, self.burst)
        self.at = now

    def fails(self, now: float) -> float:
        """When the outage of now ends; 0: there is none."""
        return _end(self.outages, now)

    def closed(self, now: float) -> float:
        return _end(self.closures, now)

    def answer(self, now: float) -> tuple[str, float]:
        """What a call that arrives now is told, and the pause that it is asked for."""
        self.fill(now)
        self.arrivals.append(now)
        if self.fails(now):
            return "failed", 0.0
        if (end := self.closed(now)) > 0:
            return "rate", end - now
        if self.held >= self.places(now):
            return "concurrency", 0.0
        if self.per_s < math.inf:
            if self.tokens < 1:
                self.tokens -= 0.5
                return "rate", (1 - self.tokens) / self.per_s if self.tells else 0.0
            self.tokens -= 1
        self.held += 1
        return "accepted", 0.0


def _end(spans: tuple[tuple[float, float], ...], now: float) -> float:
    return next((end for start, end in spans if start <= now < end), 0.0)


class Oracle:
    """The same questions, answered by who sees the upstream."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream

    def may_start(self, now: float) -> float:
        up = self.upstream
        up.fill(now)
        if (end := max(up.fails(now), up.closed(now))) > 0:
            return end - now
        if up.held >= up.places(now):
            return FULL
        return max((1 - up.tokens) / up.per_s, 1e-6) if up.per_s < math.inf and up.tokens < 1 else GO


class Fleet:
    def __init__(
        self, upstream: Upstream, door: UpstreamLimit | Oracle, *, callers: int, seed: int, pulse: Pulse
    ) -> None:
        self.up = upstream
        self.pulse = pulse
        self.door = door
        self.limit = door if isinstance(door, UpstreamLimit) else None
        self.random = random.Random(seed)
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.number = itertools.count()
        self.now = 0.0
        self.waiting: deque[None] = deque()
        self.next_pump = math.inf
        self.done = 0
        self.refused = 0
        self.failed = 0
        self.flying: dict[int, bool] = {}
        for _ in range(callers):
            self.at(self.random.uniform(0, pulse.think_s), self.ask)
        for start, _ in upstream.outages:
            self.at(start, self.die)
        self.at(pulse.tick_s, self.tick)

    def at(self, delay: float, act: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.now + delay, next(self.number), act))

    def run(self, until: float) -> Fleet:
        while self.events[0][0] < until:
            self.now, _, act = heapq.heappop(self.events)
            act()
        return self

    def tick(self) -> None:
        if self.limit is not None:
            self.limit.tick(self.now)
        self.pump()
        self.at(self.pulse.tick_s, self.tick)

    def ask(self) -> None:
        self.waiting.append(None)
        self.pump()

    def pump(self) -> None:
        if self.next_pump <= self.now:
            self.next_pump = math.inf
        while self.waiting:
            wait = self.door.may_start(self.now)
            if wait > 0:
                if wait < FULL and self.now + wait < self.next_pump - 1e-9:
                    self.next_pump = self.now + wait
                    self.at(wait, self.pump)
                return
            self.waiting.popleft()
            self.send()

    def send(self) -> None:
        turn = self.limit.began(self.now) if self.limit is not None else 0
        told, pause = self.up.answer(self.now)
        if told != "accepted":
            self.at(self.pulse.answer_s, lambda: self.refuse(told, pause))
            return
        call, took = next(self.number), self.random.lognormvariate(1.106, 1.395) * self.pulse.share
        self.flying[call] = True
        self.at(min(took, self.random.uniform(0.5, 2.0) * self.pulse.share), lambda: self.accept(call, turn))
        self.at(took, lambda: self.finish(call))

    def accept(self, call: int, turn: int) -> None:
        if self.limit is not None and call in self.flying and self.limit.accepted(self.now, turn):
            self.pump()

    def refuse(self, told: str, pause: float) -> None:
        if self.limit is not None:
            if told == "rate":
                self.limit.rate_refused(self.now, pause)
            elif told == "concurrency":
                self.limit.concurrency_refused(self.now, self.limit.in_flight - 1, pause)
            else:
                self.limit.server_failed(self.now)
            self.limit.ended()
        if told == "failed":
            self.failed += 1
            self.at(1.0, self.ask)
        else:
            self.refused += 1
            self.waiting.appendleft(None)
            self.pump()

    def finish(self, call: int) -> None:
        if self.flying.pop(call, False):
            self.up.held -= 1
            if self.limit is not None:
                self.limit.ended()
            self.done += 1
            self.at(self.random.expovariate(1 / self.pulse.think_s), self.ask)
            self.pump()

    def die(self) -> None:
        """An outage begins: the answers under way break off."""
        for _ in range(len(self.flying)):
            self.up.held -= 1
            self.failed += 1
            if self.limit is not None:
                self.limit.server_failed(self.now)
                self.limit.ended()
            self.at(1.0, self.ask)
        self.flying.clear()


def run(
    upstream: dict[str, Any],
    *,
    oracle: bool = False,
    seed: int = 0,
    callers: int = 24,
    limit: dict[str, Any] | None = None,
    pulse: Pulse = MODEL,
    until: float = 3600.0,
) -> Fleet:
    """The limit's own settings are those of an upstream that holds 12 calls, unless told otherwise."""
    up = Upstream(**upstream)
    told = {"max_concurrency": 12} if limit is None else limit
    door = Oracle(up) if oracle else UpstreamLimit(tick_s=pulse.tick_s, **told)
    return Fleet(up, door, callers=callers, seed=seed, pulse=pulse).run(until)


def steady(places: int) -> Callable[[float], int]:
    return lambda _: places


SCENARIOS: dict[str, tuple[dict[str, Any], float, int]] = {
    "it holds what is allowed": ({"places": steady(12)}, 0.99, 0),
    "it holds a third less": ({"places": steady(8)}, 0.98, 7),
    "it holds one call": ({"places": steady(1)}, 0.98, 16),
    "it holds a third for ten minutes": ({"places": lambda now: 4 if 1200 < now < 1800 else 12}, 0.87, 12),
    "60 % of the rate, a bucket of five": ({"per_s": 0.9, "burst": 5.0}, 0.95, 70),
    "60 % of the rate, a minute's bucket": ({"per_s": 0.9, "burst": 54.0}, 0.95, 70),
    "60 % of the rate, and no word of when": ({"per_s": 0.9, "burst": 5.0, "tells": False}, 0.95, 70),
    "20 % of the rate": ({"per_s": 0.3, "burst": 5.0}, 0.95, 70),
    "30 s of failures every ten minutes": (
        {"places": steady(12), "outages": tuple((at, at + 30.0) for at in range(600, 3600, 600))},
        0.97,
        0,
    ),
    "closed for 20 s every five minutes": (
        {"places": steady(12), "closures": tuple((at, at + 20.0) for at in range(300, 3600, 300))},
        0.86,
        40,
    ),
}


@pytest.mark.parametrize("seed", [1])
@pytest.mark.parametrize("name", SCENARIOS)
def test_nearly_all_the_work_is_done_with_few_refusals(name: str, seed: int) -> None:
    upstream, share, refusals = SCENARIOS[name]
    best = run(upstream, oracle=True, seed=seed)
    ours = run(upstream, seed=seed)
    assert best.refused == 0
    assert ours.refused <= refusals
    assert ours.done >= share * best.done


@pytest.mark.parametrize("seed", [0, 1])
def test_a_limit_nobody_set_is_learned_in_one_refusal_each(seed: int) -> None:
    ours = run({"places": steady(8)}, seed=seed, limit={}, callers=200, until=600.0)
    assert ours.limit is not None
    assert ours.limit.limit == 8
    assert ours.refused <= 20


def test_failures_move_neither_limit_nor_pace() -> None:
    ours = run({"outages": ((100.0, 400.0),)}, seed=0, until=500.0)
    assert ours.failed > 1000
    assert ours.limit is not None
    assert (ours.limit.limit, ours.limit.pace_per_s) == (12, math.inf)


@pytest.mark.parametrize("callers", [24, 200])
@pytest.mark.parametrize("closed_s", [5.0, 20.0, 60.0, 250.0])
def test_a_closed_window_is_probed_once_and_left_slowly(callers: int, closed_s: float) -> None:
    """One call finds it closed, one probes it; all callers wait for the reset, and none storms out of it."""
    begin, end = 100.0, 100.0 + closed_s
    ours = run({"closures": ((begin, end),)}, seed=1, limit={}, callers=callers, until=end + 30)
    inside = [at for at in ours.up.arrivals if begin <= at < end]
    assert len([at for at in inside if at > inside[0] + MODEL.answer_s]) <= 1
    after = [at for at in ours.up.arrivals if at >= end]
    for second, most in enumerate((3, 9, 21)):
        assert len([at for at in after if after[0] <= at < after[0] + second + 1]) <= most
    assert len(after) > 30


def test_a_usage_limit_of_hours_costs_three_calls() -> None:
    closures = ((600.0, 600.0 + 5 * 3600),)
    ours = run({"closures": closures}, seed=0, until=600.0 + 5 * 3600 + 60)
    assert ours.refused <= 3
    assert len([at for at in ours.up.arrivals if at >= closures[0][1]]) > 20


@pytest.mark.parametrize("seed", [1])
@pytest.mark.parametrize(
    ("upstream", "share", "refusals"),
    [
        ({"places": steady(6)}, 0.99, 0),
        ({"places": steady(4)}, 0.92, 8),
        ({"per_s": 18.0, "burst": 20.0}, 0.97, 40),
        ({"per_s": 18.0, "burst": 5.0}, 0.87, 40),
    ],
)
def test_a_quick_server_of_ones_own_as_well(upstream: dict[str, Any], share: float, refusals: int, seed: int) -> None:
    limit = {"max_concurrency": 6}
    best = run(upstream, oracle=True, seed=seed, pulse=QUICK, until=200.0)
    ours = run(upstream, limit=limit, seed=seed, pulse=QUICK, until=200.0)
    assert ours.refused <= refusals
    assert ours.done >= share * best.done
