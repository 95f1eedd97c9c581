"""A fleet and its upstreams on a virtual clock: what the detectors of the product are judged on.

Owns one invariant: all chance comes from the seed, so that a world can be copied in the middle and goes on alike. It is a model:
24 agents by day and 6 by night, some 35,000 calls a day to three upstreams whose speed wanders by 8 % (memory of an hour) and
12 % over the day, 0.4 % errors with short bursts, some 300 gate verdicts a day. It was not made from recorded traffic.
"""

from __future__ import annotations

import heapq
import math
import random
from dataclasses import dataclass, field, replace

from coordinator.domain.event import AttemptEnded, Event, GateJudged, RequestServed, TaskChanged
from coordinator.policy.telemetry import LOOK_S
from coordinator.policy.watch import Watch

DAY_S = 86_400.0
HOUR_S = 3600.0
UPSTREAMS = ("north", "south", "west")
SHARES = (0.5, 0.3, 0.2)
WANDER, MEMORY_S, DAILY = 0.08, HOUR_S, 0.12


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    name: str
    model: str
    share: float
    token_s: float
    tokens: float
    usd_per_token: float


ROLES = (
    Role(name="bugfix", model="large", share=0.4, token_s=0.034, tokens=300, usd_per_token=9e-5),
    Role(name="feature", model="large", share=0.25, token_s=0.034, tokens=420, usd_per_token=9e-5),
    Role(name="lint", model="small", share=0.2, token_s=0.02, tokens=180, usd_per_token=2e-5),
    Role(name="upgrade", model="medium", share=0.15, token_s=0.027, tokens=260, usd_per_token=5e-5),
)


@dataclass(slots=True, kw_only=True)
class Trouble:
    """What is wrong from ``since_s`` for ``lasts_s``; factors of 1 and rates of 0 are no trouble. ``upstream``: only there."""

    cost: float = 1.0
    errors: float = 0.0
    first_token: float = 1.0
    gate_pass: float | None = None
    lasts_s: float = 1800.0
    since_s: float = math.inf
    silent: bool = False
    """Agents are busy and call nobody."""
    token: float = 1.0
    upstream: str = ""

    def on(self, at_s: float, upstream: str) -> bool:
        return self.since_s <= at_s < self.since_s + self.lasts_s and self.upstream in ("", upstream)


@dataclass(slots=True)
class Wander:
    """Of one upstream's speed, in logarithms."""

    at_s: float = 0.0
    value: float = 0.0

    def step(self, at_s: float, chance: random.Random) -> float:
        kept = math.exp(-(at_s - self.at_s) / MEMORY_S)
        self.value = self.value * kept + WANDER * math.sqrt(1 - kept * kept) * chance.gauss(0, 1)
        self.at_s = at_s
        return self.value + DAILY * math.sin(2 * math.pi * at_s / DAY_S)


def busy_hours(at_s: float) -> bool:
    return 9 <= at_s % DAY_S / HOUR_S < 18


@dataclass
class World:
    """``pass_to`` plays until then, telling ``watch`` of each event in its turn and of a look every 5 s."""

    seed: int
    at_s: float = 0.0
    trouble: Trouble = field(default_factory=Trouble)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.watch = Watch(self.at_s)
        self.changed: list[tuple[float, int, tuple[str, ...]]] = []
        """When, which incident, with which metrics."""
        self._speeds = {(name, what): Wander(self.at_s) for name in UPSTREAMS for what in ("first", "token")}
        self._due: list[tuple[float, int, str, object]] = []
        self._order = 0
        self._agents = 0
        self._at_work: set[int] = set()
        self._burst: dict[str, float] = {}
        self.calls = 0
        self._put(self.at_s + LOOK_S, "look", None)
        self._put(self.at_s, "shift", None)
        self._put(self.at_s + self.chance.expovariate(1 / (DAY_S / 6)), "burst", None)

    def _put(self, at_s: float, what: str, more: object) -> None:
        self._order += 1
        heapq.heappush(self._due, (at_s, self._order, what, more))

    def pass_to(self, until_s: float) -> None:
        while self._due[0][0] <= until_s:
            self.at_s, _, what, more = heapq.heappop(self._due)
            if what == "look":
                self._look()
            elif what == "shift":
                self._shift()
            elif what == "burst":
                self._burst[self.chance.choice(UPSTREAMS)] = self.at_s + self.chance.uniform(3, 10)
                self._put(self.at_s + self.chance.expovariate(6 / DAY_S), "burst", None)
            elif what == "call" and isinstance(more, int):
                self._call(more)
            elif what == "end" and isinstance(more, int):
                self._end_task(more)
            elif isinstance(more, Event):
                self.calls += isinstance(more, RequestServed)
                self.watch.take(more, self.at_s)
        self.at_s = until_s

    def begin(self, trouble: Trouble) -> None:
        """Now. Where all calls fail, those under way break off."""
        self.trouble = trouble
        trouble.since_s = self.at_s
        if trouble.errors < 1:
            return
        self._due = [
            (
                self.at_s + self.chance.uniform(0, 1),
                order,
                what,
                replace(more, cost_usd=0.0, ending="broken", output_tokens=0),
            )
            if isinstance(more, RequestServed) and trouble.upstream in ("", more.upstream) and not more.collapsed
            else (at_s, order, what, more)
            for at_s, order, what, more in self._due
        ]
        heapq.heapify(self._due)

    def _look(self) -> None:
        standings = {f"waiting|upstream={name}": self._waiting() for name in UPSTREAMS}
        sight = self.watch.look(self.at_s, standings)
        self.changed += [(self.at_s, one.number, one.metrics) for one in sight.changed]
        self._put(self.at_s + LOOK_S, "look", None)

    def _waiting(self) -> float:
        return float(self.chance.randint(1, 6)) if self.chance.random() < 0.004 else 0.0

    def _shift(self) -> None:
        """Agents come and go with the hours, one every two minutes; who goes ends its task first."""
        wanted = 24 if busy_hours(self.at_s) else 6
        if self._agents < wanted:
            self._agents += 1
            if self._agents not in self._at_work:  # it may still be at its last task
                self._begin_task(self._agents)
        elif self._agents > wanted:
            self._agents -= 1
        self._put(self.at_s + 120, "shift", None)

    def _begin_task(self, agent: int) -> None:
        self._at_work.add(agent)
        self._move(agent, "running")
        self._put(self.at_s + self.chance.uniform(1, 20), "call", agent)
        self._put(self.at_s + self.chance.lognormvariate(math.log(2800), 0.6), "end", agent)

    def _move(self, agent: int, new: str) -> None:
        self.watch.take(TaskChanged(generation=1, new=new, old="", reason="", task=f"t{agent}"), self.at_s)

    def _role(self, agent: int) -> Role:
        """An agent's tasks are of one kind for a quarter of an hour or so: roles come in runs."""
        pick = random.Random(self.seed * 1000 + agent * 97 + int(self.at_s // 900)).random()
        for role in ROLES:
            pick -= role.share
            if pick < 0:
                return role
        return ROLES[-1]

    def _end_task(self, agent: int) -> None:
        chance, role = self.chance, self._role(agent)
        share = self.trouble.gate_pass
        wanted = 0.9 if share is None or not self.trouble.on(self.at_s, "") else share
        passed = chance.random() < wanted
        gate_s = chance.lognormvariate(math.log(60), 0.4)
        verdict = "passed" if passed else "failed"
        self.watch.take(GateJudged(tasks=(f"t{agent}",), took_s=gate_s, verdict=verdict), self.at_s)
        landed = passed and chance.random() < 0.92
        ending, worked_s = ("landed" if landed else "gate_failed"), chance.lognormvariate(math.log(2500), 0.6)
        ended = AttemptEnded(
            duration_s=worked_s, ending=ending, generation=1, reason="", role=role.name, task=f"t{agent}"
        )
        self.watch.take(ended, self.at_s)
        if agent <= self._agents:
            self._put(self.at_s + chance.lognormvariate(math.log(2800), 0.6), "end", agent)
        else:
            self._at_work.discard(agent)
            self._move(agent, "completed")

    def _call(self, agent: int) -> None:
        if agent not in self._at_work:
            return
        chance, trouble = self.chance, self.trouble
        think_s = chance.lognormvariate(math.log(13), 0.9)
        if trouble.silent and trouble.on(self.at_s, "") and chance.random() < 0.8:
            self._put(self.at_s + 16.0 + think_s, "call", agent)
            return
        role, upstream = self._role(agent), chance.choices(UPSTREAMS, SHARES)[0]
        call = self._served(role, upstream, trouble if trouble.on(self.at_s, upstream) else Trouble())
        self._put(self.at_s + call.took_s, "served", call)
        self._put(self.at_s + call.took_s + think_s, "call", agent)

    def _served(self, role: Role, upstream: str, trouble: Trouble) -> RequestServed:
        chance, at_s = self.chance, self.at_s
        speeds = [math.exp(self._speeds[upstream, what].step(at_s, chance)) for what in ("first", "token")]
        wait_s = chance.uniform(1, 8) if chance.random() < 0.004 else 0.0
        burst = 0.3 if self._burst.get(upstream, 0.0) > at_s else 0.0
        failed = chance.random() < max(0.004, burst, trouble.errors)
        first_s = chance.lognormvariate(math.log(1.2), 0.5) * speeds[0] * trouble.first_token
        tokens = max(1, round(chance.lognormvariate(math.log(role.tokens), 1.05)))
        token_s = role.token_s * chance.lognormvariate(0, 0.25) * speeds[1] * trouble.token
        shared = chance.random()
        collapsed = "" if shared > 0.12 or failed else "cache" if shared < 0.07 else "exact"
        took_s = wait_s + (chance.uniform(0.2, 2) if failed else 0.05 if collapsed else first_s + tokens * token_s)
        limited = not failed and chance.random() < 0.001
        prompt_usd = chance.lognormvariate(math.log(0.01), 0.5)
        return RequestServed(
            bytes_down=0,
            bytes_up=0,
            cache_read_tokens=0 if failed or chance.random() < 0.15 else 20_000,
            collapsed=collapsed,
            cost_usd=0.0 if failed or collapsed else (prompt_usd + tokens * role.usd_per_token) * trouble.cost,
            ending="served",
            first_byte_s=0.0 if failed or collapsed else wait_s + first_s,
            generation=1,
            model=role.model,
            output_tokens=0 if failed or limited else tokens,
            path="/v1/messages",
            priced=not failed,
            role=role.name,
            status=529 if failed else 429 if limited else 200,
            stream=True,
            task="t",
            took_s=took_s,
            upstream=upstream,
            wait_s=wait_s,
        )
