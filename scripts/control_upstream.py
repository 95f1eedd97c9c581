"""A fleet at one upstream that shares its speed among the calls it holds, on a virtual clock: what limits are tried on.

Owns one invariant: all chance comes from the seed. It is a model: ``agents`` call, wait, think and call again; up to ``capacity``
calls run at full speed, beyond that they share it and thrash a little; a call takes 8 s alone (95 % less than 30 s). The noise
of token speed is assumed: 25 % by call and look.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from coordinator.domain.upstream_sample import UpstreamSample
from coordinator.policy.learned_limit import UNLIMITED
from coordinator.policy.upstream_limit import UpstreamLimit

LOOK_S = 5.0
STEP_S = 0.5
THRASH = 0.15
BYTES_PER_S = 4_000.0
CAPACITY = 12.0


@dataclass(slots=True)
class Running:
    left_s: float
    turn: int
    pace: float = 1.0


@dataclass
class SharedUpstream:
    """``cap``: the most calls at once it begins with, 0: no limit. ``refuses``: calls at once beyond which it says so."""

    seed: int
    agents: int = 24
    cap: int = 0
    noise: float = 0.25
    refuses: float = float("inf")
    capacity: float = CAPACITY
    most: int = 64
    at_s: float = 0.0
    running: list[Running] = field(default_factory=list)
    done_s: float = 0.0
    """Work that was done, in seconds of a call alone."""
    delivered: float = 0.0
    speed: float = 1.0

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.limit = UpstreamLimit(max_concurrency=self.most)
        if self.cap:
            self.limit.set_cap(self.cap)
        self.thinking = [self.chance.uniform(0, 8) for _ in range(self.agents)]
        self.waiting = 0

    def pass_to(self, until_s: float) -> None:
        while self.at_s < until_s:
            self._step()
            self.at_s += STEP_S
            if self.at_s % LOOK_S < STEP_S:
                self.limit.tick(self.at_s)

    def _step(self) -> None:
        self.waiting += sum(due <= self.at_s for due in self.thinking)
        self.thinking = [due for due in self.thinking if due > self.at_s]
        while self.waiting and not self.limit.may_start(self.at_s):
            if len(self.running) >= self.refuses:
                self.limit.began(self.at_s)
                self.limit.concurrency_refused(self.at_s, len(self.running))
                self.limit.ended()
                break
            self.waiting -= 1
            turn = self.limit.began(self.at_s)
            self.running.append(Running(self.chance.lognormvariate(1.6, 1.0), turn))
        count = len(self.running)
        each = self._each(count)
        for call in self.running:
            if self.at_s % LOOK_S < STEP_S:
                call.pace = max(0.0, self.chance.gauss(1, self.noise))
            done_s = each * call.pace * STEP_S
            call.left_s -= done_s
            self.done_s += done_s
            self.delivered += done_s * BYTES_PER_S
        over = [call for call in self.running if call.left_s <= 0]
        self.running = [call for call in self.running if call.left_s > 0]
        for call in over:
            self.limit.accepted(self.at_s, call.turn)
            self.limit.ended()
            self.thinking.append(self.at_s + self.chance.expovariate(1 / 4))

    def _each(self, count: int) -> float:
        share = min(1.0, self.capacity / count) if count else 0.0
        return self.speed * share / (1 + THRASH * max(0.0, count / self.capacity - 1))

    def sample(self) -> UpstreamSample:
        limit = self.limit
        return UpstreamSample(
            cap=limit.cap,
            delivered_bytes=int(self.delivered),
            in_flight=limit.in_flight,
            limit=limit.limit,
            name="shared",
            tick_s=LOOK_S,
            unlimited=limit.limit >= UNLIMITED,
            waiting=self.waiting,
        )
