"""scripts/bench control, part scaler: the product's autoscaler before a week of bursts, beside fixed fleets and the seed's rules.

Time is virtual, in steps of five seconds. Tasks come at a rate that follows the day, a third of them in bursts; an agent takes a
minute or less to start and has no task until then. An idle agent ends by itself when it has lingered; none at work is ended.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
import statistics
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from coordinator.policy.autoscaler import Autoscaler, FleetBounds, FleetDemand

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

Row = tuple[str, str, str]

HELD_OUT: Final = range(9000, 9020)
STEP_S: Final = 5.0
WEEK_S: Final = 7 * 86_400.0
AGENTS: Final = 24
TASK_S: Final = 18 * 60.0
BURSTS: Final = 0.35
AHEAD_S: Final = 60.0


class Rule(Protocol):
    """How many there should be, given who works, who waits, what is known to come, and arrivals a second of late."""

    linger_s: float

    def want(self, busy: int, queued: int, coming: int, rate_per_s: float) -> int: ...


@dataclass(slots=True)
class Ours:
    """The product's own rule. ``ahead``: it is told of what is known to come."""

    ahead: bool = True
    linger_s: float = 300.0
    spare: int = 1

    def want(self, busy: int, queued: int, coming: int, rate_per_s: float) -> int:
        demand = FleetDemand(busy=busy, coming=coming if self.ahead else 0, queued=queued)
        return Autoscaler().size(demand, FleetBounds(most=AGENTS, spare=self.spare)).wanted


@dataclass(slots=True)
class Fixed:
    count: int
    linger_s: float = math.inf

    def want(self, busy: int, queued: int, coming: int, rate_per_s: float) -> int:
        return self.count


@dataclass(slots=True)
class SeedRule:
    """One agent for ten requests a second."""

    linger_s: float = 0.0

    def want(self, busy: int, queued: int, coming: int, rate_per_s: float) -> int:
        return min(max(math.ceil(rate_per_s / 10), 1), 8)


@dataclass(slots=True)
class SeedPool:
    """Smoothed use of the pool: one more above 70 %, one fewer below 20 %, ten looks of quiet after a change, 1 to 16."""

    linger_s: float = 0.0
    size: int = 1
    smooth: float = 0.0
    quiet: int = 0

    def want(self, busy: int, queued: int, coming: int, rate_per_s: float) -> int:
        use = min(1.0, (busy + queued) / self.size)
        self.smooth += 0.2 * (use - self.smooth)
        self.quiet = max(self.quiet - 1, 0)
        if not self.quiet and self.smooth > 0.7 and self.size < 16:
            self.size, self.quiet = self.size + 1, 10
        elif not self.quiet and self.smooth < 0.2 and self.size > 1:
            self.size, self.quiet = self.size - 1, 10
        return self.size


@dataclass(slots=True)
class Forecast(Ours):
    """Ours, and what a smoothed rate says that will come while an agent starts."""

    ahead: bool = True
    linger_s: float = 300.0
    spare: int = 1

    def want(self, busy: int, queued: int, coming: int, rate_per_s: float) -> int:
        return min(AGENTS, Ours.want(self, busy, queued, coming, rate_per_s) + math.ceil(rate_per_s * TASK_S * 0.25))


@dataclass(frozen=True, slots=True, order=True)
class Work:
    """``known_s``: when it is known to come (a schedule, a dependency that lands), else when it comes."""

    at_s: float
    takes_s: float = field(compare=False)
    known_s: float = field(compare=False)


def week(seed: int, per_hour: float, length_s: float) -> list[Work]:
    chance, found = random.Random(f"week {seed}"), []
    now, mean_burst = 0.0, 25.0

    def work(at: float) -> Work:
        takes = chance.lognormvariate(math.log(TASK_S) - 0.32, 0.8)
        return Work(at, takes, at - AHEAD_S if chance.random() < 0.3 else at)

    while now < length_s:
        busy = 1.0 + 0.7 * math.sin(2 * math.pi * (now / 86_400.0 - 0.3))
        singles, bursts = per_hour / 3600 * (1 - BURSTS) * busy, per_hour / 3600 * BURSTS / mean_burst * busy
        now += chance.expovariate(singles + bursts)
        count = chance.randint(5, 45) if chance.random() < bursts / (singles + bursts) else 1
        found += [work(now) for _ in range(count)]
    return sorted(found)


@dataclass(slots=True)
class Outcome:
    """Seconds that tasks waited, agent-hours that were idle a day, starts an hour."""

    waits_s: list[float] = field(default_factory=list)
    idle_h: float = 0.0
    starts: int = 0
    killed: int = 0


def play(rule: Rule, work: Sequence[Work], seed: int, length_s: float) -> Outcome:
    chance, out = random.Random(f"boot {seed}"), Outcome()
    arriving, known = deque(work), deque(sorted(work, key=lambda one: one.known_s))
    queue: deque[Work] = deque()
    booting: list[float] = []
    at_work: list[float] = []
    idle: list[float] = []  # since when
    rate, now, announced = 0.0, 0.0, 0
    for step in itertools.count():
        now = step * STEP_S
        if now >= length_s and not (queue or at_work or arriving):
            break
        arrived = 0
        while arriving and arriving[0].at_s <= now:
            queue.append(arriving.popleft())
            arrived += 1
        while known and known[0].known_s <= now:
            announced += known.popleft().known_s < math.inf
        rate += 0.02 * (arrived / STEP_S - rate)
        while at_work and at_work[0] <= now:
            heapq.heappop(at_work)
            idle.append(now)
        ready = [at for at in booting if at <= now]
        booting = [at for at in booting if at > now]
        idle += [now] * len(ready)
        while queue and idle:
            idle.pop()
            one = queue.popleft()
            out.waits_s.append(now - one.at_s)
            heapq.heappush(at_work, now + one.takes_s)
        out.idle_h += len(idle) * STEP_S / 3600
        coming = announced - (len(work) - len(arriving))
        wanted = rule.want(len(at_work), len(queue), max(coming, 0), rate)
        alive = len(at_work) + len(idle) + len(booting)
        for _ in range(wanted - alive):
            booting.append(now + chance.uniform(20.0, 60.0))
            out.starts += 1
        surplus = alive - wanted
        kept = []
        for since in idle:
            if surplus > 0 and now - since >= rule.linger_s:
                surplus -= 1
            else:
                kept.append(since)
        idle = kept
    out.idle_h *= 86_400.0 / length_s
    return out


RULES: Final[dict[str, Callable[[], Rule]]] = {
    "fixed 24": lambda: Fixed(AGENTS),
    "ours": Ours,
    "ours, untold": lambda: Ours(ahead=False),
    "ours, no spare": lambda: Ours(spare=0),
    "ours, no linger or spare": lambda: Ours(linger_s=0.0, spare=0),
    "ours and a forecast": Forecast,
    "seed's pool, 1 to 16": SeedPool,
    "seed's requests / 10": SeedRule,
}


def scaler(_: Path, short: bool) -> Iterator[Row]:
    """Waits and idle hours, against a fleet that is always full. ``short``: two seeds, a day, without the seed's rules."""
    seeds = list(HELD_OUT)[:2] if short else list(HELD_OUT)
    length = 86_400.0 if short else WEEK_S
    rules = dict(list(RULES.items())[:6]) if short else RULES
    played: dict[str, list[Outcome]] = {}
    for name, make in rules.items():
        played[name] = [play(make(), week(seed, 30.0, length), seed, length) for seed in seeds]
    full = [statistics.fmean(one.waits_s) for one in played["fixed 24"]]
    for name, found in played.items():
        means = [statistics.fmean(one.waits_s) for one in found]
        waits = sorted(wait for one in found for wait in one.waits_s)
        idle = statistics.fmean(one.idle_h for one in found)
        starts = statistics.fmean(one.starts for one in found) * 3600 / length
        half, most = waits[len(waits) // 2], waits[int(len(waits) * 0.95)]
        more = 100 * (statistics.fmean(means) / statistics.fmean(full) - 1)
        yield f"{name}: mean wait, p50, p95", f"{statistics.fmean(means):.0f}, {half:.0f}, {most:.0f} s", ""
        yield f"{name}: against full", f"{more:+.1f} %", "<= +10 %" if name == "ours" else ""
        yield (
            f"{name}: idle h/day, starts/h",
            f"{idle:.1f}, {starts:.1f}",
            "<= 40" if name == "ours" else "",
        )
