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
    """``slower``: how much longer this machine takes for the same than the one on which the seed was measured."""

    primitive: Primitive
    ns: float | None
    slower: float

    @property
    def seed_here(self) -> float:
        """The seed's figure as it would be here; 0: it has none."""
        return self.primitive.seed_measured * self.slower

    @property
    def verdict(self) -> str:
        if self.ns is None or not self.primitive.seed_measured:
            return ""
        return "PASS" if self.ns <= self.seed_here else "FAIL"


def yardstick() -> Made:
    return "now()", {"now": time.monotonic}


def cache() -> tuple[Any, tuple[object, ...], Any, Any]:
    """One that holds an answer, its key, and what was asked and answered."""
    import asyncio

    from coordinator.domain.usage import TokenUsage
    from coordinator.gateway.agent_paths import AgentPaths
    from coordinator.gateway.dialect import Dialect
    from coordinator.gateway.question import Question
    from coordinator.gateway.response_cache import ResponseCache, WholeAnswer
    from coordinator.gateway.sameness import Sameness
    from coordinator.kit.clock import SystemClock

    question = Question(
        BODY,
        claim=("a", 1),
        dialect=Dialect.OPENAI_CHAT,
        mode=Sameness.RAW,
        model="m",
        most=0,
        owner="",
        paths=AgentPaths({}),
        sense=b"",
        session=b"",
        streams=False,
        turns=0,
    )
    kept = ResponseCache(SystemClock(), max_bytes=64 * 1024 * 1024, ttl_s=300.0)
    answer = WholeAnswer(body=BODY, headers=(), usage=TokenUsage())
    asyncio.run(kept.keep(question, answer, declared=True))
    assert question.normal is not None
    return kept, (*question.key, question.normal.digest), question, answer


def cache_hit() -> Made:
    kept, key, question, _ = cache()
    return "get(key, form)", {"get": kept.get, "key": key, "form": question.normal.form}


def cache_miss() -> Made:
    kept, key, question, _ = cache()
    return "get(key, form)", {"get": kept.get, "key": (*key, "another"), "form": question.normal.form}


def cache_set() -> Made:
    kept, _, question, answer = cache()
    statement = "put(keep(question, answer, declared=True))"
    return statement, {"keep": kept.keep, "question": question, "answer": answer, "put": _finished}


def _finished(coroutine: Any) -> None:
    """It never waits."""
    try:
        coroutine.send(None)
    except StopIteration:
        return


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
    Primitive(name="cache hit", make=cache_hit, seed_published=81, seed_measured=80),
    Primitive(name="cache miss", make=cache_miss, seed_measured=29),
    Primitive(name="cache set", make=cache_set, seed_measured=233),
    Primitive(
        name="stage: enter + leave (the seed: bounded send)", make=stage, seed_published=1_000, seed_measured=225
    ),
)
"""The seed's queue is our stage's lines, which are not used by themselves."""

YARDSTICK_NS: Final = 38
"""What ``time.monotonic()`` took where and when the seed's figures were taken: this machine may be another, or busier."""


def nanoseconds(made: Made, take_s: float, takes: int) -> float:
    """Of one execution, the least mean of several takes."""
    statement, names = made
    timer = timeit.Timer(statement, globals=names)
    count, took = timer.autorange()
    count = max(1, int(count * take_s / took))
    return min(timer.repeat(takes, count)) / count * 1e9


def measure(*, short: bool) -> list[Timed]:
    """``short``: one quick take each, to see that it works."""

    def timed(made: Made) -> float:
        if short:
            statement, names = made
            return timeit.timeit(statement, globals=names, number=1_000) * 1e6
        return nanoseconds(made, TAKE_S, TAKES)

    slower = max(1.0, timed(yardstick()) / YARDSTICK_NS)
    return [
        Timed(primitive=one, ns=timed(one.make()) if one.make is not None else None, slower=slower)
        for one in PRIMITIVES
    ]
