"""scripts/bench control, part router: the product's routers in a week of tasks whose truth is known.

A world of the bench's own, so that nobody is judged by the form he believes in: a task is landed when ability less hidden
difficulty (of the task, and of the task for this arm) and a normal error is above zero. Time is virtual, outcomes arrive late,
and all policies meet the same tasks with the same luck. The oracle knows every parameter, but no task's hidden difficulty.
"""

from __future__ import annotations

import heapq
import itertools
import math
import os
import random
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from coordinator.domain.control_settings import RouterSettings
from coordinator.policy.exploration import drawn, with_floor
from coordinator.policy.rival_routers import policy_named
from coordinator.policy.routing import Arm, RoutingContext, allowed, net_usd

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from coordinator.policy.exploration import Chance
    from coordinator.policy.routing import RoutingPolicy

Row = tuple[str, str, str]

HELD_OUT: Final = range(7000, 7020)
"""Seeds that nothing was tuned on."""
TUNING: Final = range(100, 108)
WEEK_H: Final = 168.0
DAY_H: Final = 24.0
RATE: Final = 30.0
ATTEMPTS: Final = 3
KINDS: Final = {
    "lint": (0.35, 0.5, 1.5),
    "upgrade": (0.25, 1.5, 0.7),
    "bug": (0.25, 5.0, -0.6),
    "feature": (0.15, 10.0, -1.5),
}
"""Share of tasks, what one is worth (USD), how easy it is."""
SIZES: Final = {"small": (0.4, 0.5, 0.4), "medium": (0.4, 1.0, 0.0), "large": (0.2, 2.2, -0.6)}
"""Share, cost factor, how easy."""
COMMON, OWN, ERROR = 0.8, 0.6, 1.7
"""Deviations: hidden difficulty of a task, of a task for one arm, of one attempt."""
USUAL: Final = RouterSettings()
DELAY_USD_PER_H: Final = 1.0
CHANGES: Final = {"worse": 48.0, "price": 80.0, "new": 104.0, "outage": 136.0}
OUTAGE_H: Final = 3.0


def split_normal(count: int, deviation: float) -> list[tuple[float, float]]:
    """Places and shares that stand for a normal distribution."""
    inverse = statistics.NormalDist(0.0, deviation).inv_cdf
    return [(inverse((n + 0.5) / count), 1.0 / count) for n in range(count)]


def phi(x: float) -> float:
    return 0.5 * (1.0 + math.erf(x / math.sqrt(2.0)))


@dataclass(frozen=True, slots=True)
class Candidate:
    name: str
    price_usd: float
    hours: float
    ability: Mapping[tuple[str, str], float]


@dataclass(frozen=True, slots=True)
class Job:
    """``luck`` is the normal error by attempt and arm, ``late_h`` how long after an attempt's start its outcome is known."""

    at_h: float
    kind: str
    size: str
    common: float
    own: tuple[float, ...]
    luck: tuple[tuple[float, ...], ...]
    late_h: tuple[float, ...]


class World:
    """``rough``: each arm has its own ability for each kind and size, and nothing adds up. ``changing``: the best arm turns
    silently worse, a price goes up, an arm is new, another is away."""

    def __init__(self, seed: int, *, changing: bool, rough: bool, rate: float, hours: float) -> None:
        chance = random.Random(f"world {seed}")
        self.changing, self.hours = changing, hours
        self.arms = [self._candidate(chance, number, rough) for number in range(chance.randint(3, 8))]
        cheapest = min(range(len(self.arms)), key=lambda n: self.arms[n].price_usd)
        self.arms[cheapest] = replace(self.arms[cheapest], price_usd=0.03)
        self.jobs = list(self._jobs(chance, rate))
        self.newest = chance.randrange(len(self.arms)) if changing and len(self.arms) > 3 else -1
        usual = [(n, self._use(n)) for n in range(len(self.arms)) if n != self.newest]
        self.best = max(usual, key=lambda pair: pair[1])[0]
        self.dearer = chance.choice([n for n, _ in usual])
        self.away = chance.choice([n for n, _ in usual])

    @staticmethod
    def _candidate(chance: random.Random, number: int, rough: bool) -> Candidate:
        price = 0.03 * 60 ** chance.random()
        level = 0.4 + 0.5 * (math.log(price / 0.03) - 2.05) + chance.gauss(0.0, 0.8)
        deviation = 1.0 if rough else 0.2
        ability = {}
        for kind, (_, _, easy) in KINDS.items():
            fit = chance.gauss(0.0, 0.4)
            for size, (_, _, easier) in SIZES.items():
                ability[kind, size] = level + easy + easier + fit + chance.gauss(0.0, deviation)
        return Candidate(f"arm-{number}", price, 0.3 * math.exp(chance.gauss(0.0, 0.3)), ability)

    def _jobs(self, chance: random.Random, rate: float) -> Iterator[Job]:
        now, count = 0.0, len(self.arms)
        while (now := now + chance.expovariate(rate)) < self.hours:
            yield Job(
                now,
                chance.choices(list(KINDS), [share for share, _, _ in KINDS.values()])[0],
                chance.choices(list(SIZES), [share for share, _, _ in SIZES.values()])[0],
                chance.gauss(0.0, COMMON),
                tuple(chance.gauss(0.0, OWN) for _ in range(count)),
                tuple(tuple(chance.gauss(0.0, ERROR) for _ in range(count)) for _ in range(ATTEMPTS)),
                tuple(0.3 + chance.lognormvariate(math.log(1 / 3), 0.7) for _ in range(ATTEMPTS)),
            )

    def _use(self, number: int) -> float:
        """What always taking it would bring, about."""
        total = 0.0
        for (kind, size), ability in self.arms[number].ability.items():
            share, value, _ = KINDS[kind]
            weight, factor, _ = SIZES[size]
            total += share * weight * (value * phi(ability / 2.0) - self.arms[number].price_usd * factor)
        return total

    # -- how it is at a time -------------------------------------------------------------------------------------

    def epoch(self, now_h: float) -> tuple[bool, ...]:
        """Which changes are in force."""
        if not self.changing:
            return False, False, self.newest < 0, False
        away = CHANGES["outage"] <= now_h < CHANGES["outage"] + OUTAGE_H
        return now_h >= CHANGES["worse"], now_h >= CHANGES["price"], now_h >= CHANGES["new"], away

    def ability(self, number: int, kind: str, size: str, epoch: Sequence[bool]) -> float:
        return self.arms[number].ability[kind, size] - (2.0 if epoch[0] and number == self.best else 0.0)

    def offered(self, size: str, epoch: Sequence[bool]) -> list[tuple[int, Arm]]:
        """Arms as the product sees them; a breaker keeps the one away that is."""
        found = []
        for number, one in enumerate(self.arms):
            price = one.price_usd * (4.0 if epoch[1] and number == self.dearer else 1.0)
            if (number == self.newest and not epoch[2]) or (epoch[3] and number == self.away):
                continue
            cost = price * SIZES[size][1]
            found.append(
                (number, Arm(cost_usd=cost, delay_usd=one.hours * DELAY_USD_PER_H, list_usd=price, name=one.name))
            )
        return found


class Oracle:
    """The best sequence of arms for each kind and size, by integrating over what is hidden."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._plans: dict[tuple[str, str, tuple[bool, ...]], tuple[int, ...]] = {}

    def arm(self, kind: str, size: str, attempt: int, epoch: tuple[bool, ...]) -> int:
        key = kind, size, epoch
        if key not in self._plans:
            self._plans[key] = self._plan(kind, size, epoch)
        return self._plans[key][attempt]

    def _plan(self, kind: str, size: str, epoch: tuple[bool, ...]) -> tuple[int, ...]:
        offered = dict(self._world.offered(size, epoch))
        hidden, own = split_normal(15, COMMON), split_normal(9, OWN)
        fails: dict[int, list[list[float]]] = {}
        for n in offered:
            able = self._world.ability(n, kind, size, epoch)
            one = [[1.0 - phi((able - d - e) / ERROR) for e, _ in own] for d, _ in hidden]
            fails[n] = [[sum(q**k for q in row) / len(row) for k in range(ATTEMPTS + 1)] for row in one]
        known: dict[tuple[int, ...], float] = {}

        def all_fail(arms: tuple[int, ...]) -> float:
            arms = tuple(sorted(arms))
            if arms not in known:
                counts = [(n, arms.count(n)) for n in set(arms)]
                known[arms] = sum(math.prod(fails[n][i][k] for n, k in counts) for i in range(15)) / 15
            return known[arms]

        value = KINDS[kind][1]
        costs = {n: arm.cost_usd + arm.delay_usd for n, arm in offered.items()}

        def worth(arms: tuple[int, ...]) -> float:
            spent = sum(costs[n] * (all_fail(arms[:i]) if i else 1.0) for i, n in enumerate(arms))
            return value * (1.0 - all_fail(arms)) - spent

        return max(itertools.product(offered, repeat=ATTEMPTS), key=worth)


class SeedRouter:
    """What the first version of this idea did: mean success, whatever it costs."""

    seen = 0

    def __init__(self) -> None:
        self._epsilon, self._counter = 0.1, 0
        self._scores: dict[str, tuple[int, int]] = {}

    def propensities(
        self, context: RoutingContext, arms: Sequence[Arm], now_h: float, chance: Chance
    ) -> tuple[float, ...]:
        self._counter += 1
        if chance.random() < self._epsilon:
            best = self._counter % len(arms)
        else:
            best = max(range(len(arms)), key=lambda n: self._score(arms[n].name))
        return tuple(float(n == best) for n in range(len(arms)))

    def _score(self, name: str) -> float:
        won, tried = self._scores.get(name, (0, 0))
        return won / tried if tried else 0.5

    def learn(self, context: RoutingContext, arm: Arm, landed: bool, now_h: float) -> None:
        won, tried = self._scores.get(arm.name, (0, 0))
        self._scores[arm.name] = won + landed, tried + 1
        self._epsilon = max(self._epsilon * 0.995, 0.01)

    def to_json(self) -> dict[str, object]:
        return {}

    def restore(self, data: Mapping[str, object]) -> None:
        raise NotImplementedError("it remembers nothing")


class Always:
    """One arm; while it is away, the cheapest of the others."""

    seen = 0

    def __init__(self, name: str) -> None:
        self._name = name

    def propensities(
        self, context: RoutingContext, arms: Sequence[Arm], now_h: float, chance: Chance
    ) -> tuple[float, ...]:
        best = min(range(len(arms)), key=lambda n: (arms[n].name != self._name, arms[n].cost_usd))
        return with_floor([float(n == best) for n in range(len(arms))], [arm.cost_usd for arm in arms], 0.0)

    def learn(self, context: RoutingContext, arm: Arm, landed: bool, now_h: float) -> None:
        self.seen += 1

    def to_json(self) -> dict[str, object]:
        return {}

    def restore(self, data: Mapping[str, object]) -> None:
        raise NotImplementedError("it remembers nothing")


@dataclass(slots=True)
class Score:
    """Net dollars in the first day and in all, tasks landed, dollars spent."""

    day_usd: float = 0.0
    all_usd: float = 0.0
    landed: int = 0
    spent_usd: float = 0.0


def play(world: World, policy: RoutingPolicy | Oracle, seed: int) -> Score:
    """Every task, in the order of virtual time; an outcome is learnt when it is known, and a retry follows it."""
    chance, score, order = random.Random(f"policy {seed}"), Score(), itertools.count()
    queue: list[tuple[float, int, Job, int, str, tuple[RoutingContext, Arm, bool] | None]] = [
        (job.at_h, next(order), job, 0, "", None) for job in world.jobs
    ]
    heapq.heapify(queue)
    while queue:
        now, _, job, attempt, previous, outcome = heapq.heappop(queue)
        if outcome is not None:
            if not isinstance(policy, Oracle):
                policy.learn(*outcome, now)
            if outcome[2]:
                continue
        if attempt >= ATTEMPTS or now >= world.hours + DAY_H:
            continue
        epoch = world.epoch(now)
        offered = world.offered(job.size, epoch)
        context = RoutingContext(
            attempt=attempt,
            attempts=ATTEMPTS,
            kind=job.kind,
            previous=previous,
            size=job.size,
            value_usd=KINDS[job.kind][1],
        )
        if isinstance(policy, Oracle):
            number = policy.arm(job.kind, job.size, attempt, epoch)
            arm = dict(offered)[number]
        else:
            arms = allowed([arm for _, arm in offered])
            number, arm = offered[drawn(policy.propensities(context, arms, now, chance), chance.random())]
        landed = (
            world.ability(number, job.kind, job.size, epoch) - job.common - job.own[number] + job.luck[attempt][number]
            > 0
        )
        net = net_usd(context, arm, landed)
        score.all_usd += net
        score.day_usd += net if job.at_h < DAY_H else 0.0
        score.landed += landed
        score.spent_usd += arm.cost_usd
        after = (context, arm, landed)
        heapq.heappush(queue, (now + job.late_h[attempt], next(order), job, attempt + 1, arm.name, after))
    return score


POLICIES: Final = ("thompson", "linucb", "epsilon_greedy", "seed", "best single arm")


def lost(
    seed: int, names: Sequence[str], *, changing: bool, rough: bool, rate: float, hours: float
) -> dict[str, tuple[float, ...]]:
    """By policy: share of the oracle's net that was lost in all and on day 1, net of day 1, landed per task."""
    world = World(seed, changing=changing, rough=rough, rate=rate, hours=hours)
    oracle = play(world, Oracle(world), seed)
    found: dict[str, tuple[float, ...]] = {"oracle": (0.0, 0.0, oracle.day_usd, oracle.landed / len(world.jobs))}
    for name in names:
        if name == "best single arm":
            scores = [play(world, Always(one.name), seed) for n, one in enumerate(world.arms) if n != world.newest]
            score = max(scores, key=lambda one: one.all_usd)
            score = replace(score, day_usd=max(one.day_usd for one in scores))
        else:
            policy = SeedRouter() if name == "seed" else policy_named(name, drift=USUAL.drift, floor=USUAL.floor)
            score = play(world, policy, seed)
        found[name] = (
            1.0 - score.all_usd / oracle.all_usd,
            1.0 - score.day_usd / oracle.day_usd,
            score.day_usd,
            score.landed / len(world.jobs),
        )
    return found


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval."""
    wide = 1.96 * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return statistics.fmean(values), wide


def router(_: Path, short: bool) -> Iterator[Row]:
    """The table of regret. ``short``: two seeds, six hours."""
    seeds = list(HELD_OUT)[:2] if short else list(HELD_OUT)
    hours, rate = (6.0, 20.0) if short else (WEEK_H, RATE)
    worlds = {"changes": (True, False), "no change": (False, False), "rough": (False, True)}
    aims = {("changes", "thompson"): "<= 3 % of the oracle's net", ("rough", "thompson"): "not behind linucb"}
    names = POLICIES
    for world, (changing, rough) in worlds.items():
        work = partial(lost, names=names, changing=changing, rough=rough, rate=rate, hours=hours)
        if short:
            played = [work(seed) for seed in seeds]
        else:
            with ProcessPoolExecutor(os.cpu_count()) as pool:
                played = list(pool.map(work, seeds))
        for name in names:
            week, wide = interval([100 * one[name][0] for one in played])
            day, _wide = interval([100 * one[name][1] for one in played])
            what = f"{world}: {name} loses, week / day 1"
            yield what, f"{week:.1f} ±{wide:.1f} / {day:.1f} %", aims.get((world, name), "")
        behind, wide = interval([100 * (one["thompson"][0] - one["linucb"][0]) for one in played])
        yield f"{world}: thompson less linucb, paired", f"{behind:.1f} ±{wide:.1f} %", "<= 0"
        ahead = sum(one["thompson"][2] > one["best single arm"][2] for one in played)
        aim = ">= 90 % of seeds" if world == "changes" else ""
        yield f"{world}: day 1 ahead of the best single arm", f"{ahead} of {len(played)}", aim
    yield "thompson: a decision and its learning, 6 arms", f"{_decision_ms(200 if short else 2000):.2f} ms", ""


def _decision_ms(count: int) -> float:
    """Of the learned router once it knows all there is to know about."""
    chance, router = random.Random(1), policy_named("thompson", drift=USUAL.drift, floor=USUAL.floor)
    arms = [Arm(cost_usd=0.05 * 2**n, delay_usd=0.3, list_usd=0.05 * 2**n, name=f"arm-{n}") for n in range(6)]
    contexts = [RoutingContext(kind=kind, size=size, value_usd=5.0) for kind in KINDS for size in SIZES]
    for context, arm in itertools.product(contexts, arms):
        router.learn(context, arm, chance.random() < 0.5, 0.0)
    began = time.process_time()
    for number in range(count):
        context = contexts[number % len(contexts)]
        arm = arms[drawn(router.propensities(context, arms, number / 30, chance), chance.random())]
        router.learn(context, arm, chance.random() < 0.5, number / 30)
    return 1000 * (time.process_time() - began) / count
