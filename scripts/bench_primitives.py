"""Nanoseconds of the gateway's own parts beside those of the seed: no part of ours may be slower than its part in Rust."""

from __future__ import annotations

import time
import timeit
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

TAKES: Final = 7
TAKE_S: Final = 0.05
"""The least of several takes counts, each about this long."""

Made = tuple[str, dict[str, Any]]
"""A statement and the names in it, as ``timeit`` takes them: no call of a function is measured that is not in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Primitive:
    """The seed's figures are nanoseconds; 0: it has none."""

    name: str
    make: Callable[[], Made] | None = None
    """Prepares what is measured; None: ours is not built yet."""
    seed_measured: float = 0
    """The seed's own benchmark in release mode, on the machine and in the hour in which ours was first measured."""
    seed_published: float = 0
    """In the seed's README."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    primitive: Primitive
    ns: float | None

    @property
    def verdict(self) -> str:
        if self.ns is None or not self.primitive.seed_measured:
            return ""
        return "PASS" if self.ns <= self.primitive.seed_measured else "FAIL"


def empty_loop() -> Made:
    return "pass", {}


def breaker() -> Made:
    from coordinator.policy.circuit_breaker import CircuitBreaker

    return "breaker.allow(1.0); breaker.success(1.0)", {"breaker": CircuitBreaker(0.0)}


def bucket() -> Made:
    from coordinator.policy.token_bucket import TokenBucket

    return "bucket.take(1.0, now())", {"bucket": TokenBucket(1e9, 1e9, 0.0), "now": time.monotonic}


def stage() -> Made:
    from coordinator.domain.lane import Lane
    from coordinator.kit.stage import Stage

    door = Stage("door", width=8, room=8, promote_s=30.0)
    return "door.try_enter(lane); door.leave()", {"door": door, "lane": Lane.NORMAL}


def raw_key() -> Made:
    from coordinator.gateway.sameness import raw_key

    return "found = table.get(raw_key(body)); found == body", {
        "raw_key": raw_key,
        "body": BODY,
        "table": {raw_key(BODY): BODY},
    }


def new_key() -> Made:
    from coordinator.gateway.sameness import raw_key

    statement = "key = raw_key(body); known = table.get(key); table[key] = body; del table[key]"
    return statement, {"raw_key": raw_key, "body": BODY, "table": {}}


BODY: Final = b'{"model":"m","messages":[{"role":"user","content":"' + b"x" * 200 + b'"}]}'
PRIMITIVES: Final = (
    Primitive(name="(the empty loop, in every figure of ours)", make=empty_loop),
    Primitive(name="dedup check of a new prompt", make=new_key, seed_published=1_500, seed_measured=3_250),
    Primitive(name="dedup check of a known one", make=raw_key, seed_measured=87),
    Primitive(name="circuit breaker, closed: allow + success", make=breaker, seed_published=400, seed_measured=78),
    Primitive(name="token bucket: take", make=bucket, seed_published=110, seed_measured=111),
    Primitive(name="cache hit", seed_published=81, seed_measured=80),
    Primitive(name="cache miss", seed_measured=29),
    Primitive(name="cache set", seed_measured=233),
    Primitive(name="priority queue: push + pop", seed_measured=440),
    Primitive(
        name="stage: enter + leave (the seed: bounded send)", make=stage, seed_published=1_000, seed_measured=225
    ),
)
"""The seed's queue is our stage's lines, which are not used by themselves; its cache's figures follow with the cache."""


def nanoseconds(made: Made, take_s: float, takes: int) -> float:
    """Of one execution, the least mean of several takes."""
    statement, names = made
    timer = timeit.Timer(statement, globals=names)
    count, took = timer.autorange()
    count = max(1, int(count * take_s / took))
    return min(timer.repeat(takes, count)) / count * 1e9


def measure(*, short: bool) -> list[Timed]:
    """``short``: one quick take each, to see that it works."""
    timed = []
    for one in PRIMITIVES:
        if one.make is None:
            timed.append(Timed(primitive=one, ns=None))
        elif short:
            statement, names = one.make()
            timed.append(Timed(primitive=one, ns=timeit.timeit(statement, globals=names, number=1_000) * 1e6))
        else:
            timed.append(Timed(primitive=one, ns=nanoseconds(one.make(), TAKE_S, TAKES)))
    return timed
