"""One upstream as calls meet it: a door as wide as what it holds, the fleet's one view of its limits, breakers by model, and
the connections to it.

Owns one invariant: a call goes up only when door, limit and breaker let it, in the order of lanes and ages; and what it came
to is told to all three once. Which upstream a call tries is ``routing``'s, whether it is tried again ``courier``'s.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final, Protocol

from coordinator.domain.errors import BadInput
from coordinator.domain.problem import Problem
from coordinator.domain.upstream_sample import UpstreamSample
from coordinator.gateway.dialect import Denial, Denied
from coordinator.gateway.dials import calls_knob
from coordinator.kit.stage import Stage
from coordinator.policy.circuit_breaker import CircuitBreaker, CircuitState
from coordinator.policy.learned_limit import UNLIMITED
from coordinator.policy.retry_budget import RetryBudget
from coordinator.policy.upstream_limit import FULL, LONGEST_WINDOW_S, UpstreamLimit

if TYPE_CHECKING:
    from collections.abc import Iterable

    from coordinator.gateway.calls import Call
    from coordinator.gateway.dials import Dials
    from coordinator.gateway.echo import EchoAnswer
    from coordinator.gateway.upstream import Upstream
    from coordinator.kit.clock import Clock
    from coordinator.kit.wire_client import Answer, RequestLines
    from coordinator.policy.circuit_breaker import CircuitKnobs, CircuitTally

MODELS: Final = 200
"""Breakers of one upstream. Of models beyond that, the one that was asked for longest ago is forgotten."""

_LOOK_S: Final = 0.25
"""A call that an open breaker keeps waiting looks again after this: no sooner would it recover, and no crowd is dear."""
_LONGEST_LOOK_S: Final = 2.0
"""An operator, or an answer to another call, may let calls go sooner than was thought."""
_TICK_S: Final = 5.0
_LOCAL_TICK_S: Final = 1.0


class Source(Protocol):
    """What answers: the wire's ``Origin``, or the embedded echo."""

    def head(self, method: bytes, target: bytes, headers: Iterable[tuple[bytes, bytes]]) -> RequestLines: ...

    async def ask(self, head: RequestLines, body: bytes) -> Answer | EchoAnswer: ...

    async def close(self) -> None: ...


class Station:
    """Lives on the gateway's loop. ``tick`` is to be called about every second."""

    def __init__(self, upstream: Upstream, source: Source, dials: Dials, clock: Clock, retry_share: float) -> None:
        described = upstream.settings
        local = not upstream.credentials
        self._clock = clock
        self._dials = dials
        self._narrow = False
        self._news = asyncio.Event()
        self._tick_s = _LOCAL_TICK_S if local else _TICK_S
        self._ticked = clock.monotonic()
        self.breakers: dict[str, CircuitBreaker] = {}
        self.retries = RetryBudget(clock.monotonic(), share=retry_share)
        """Those that are sent here, whoever failed them: what it is asked more often by must stay in proportion to its calls."""
        self.circuit_changes: CircuitTally = {}
        self.kept_away: dict[str, int] = {}
        """Calls that found a breaker open, by model."""
        self.limit = UpstreamLimit(
            max_concurrency=described.max_concurrency,
            requests_per_s=described.requests_per_s,
            tick_s=self._tick_s,
        )
        self.name = described.name
        self.door = Stage(
            f"upstream {self.name}", width=self.limit.limit, room=int(dials.room), promote_s=dials.promote_s
        )
        self.source = source
        self.upstream = upstream
        self.knobs = self._circuit()

    def breaker(self, model: str) -> CircuitBreaker:
        found = self.breakers.get(model)
        if found is None:
            if len(self.breakers) >= MODELS:
                del self.breakers[next(iter(self.breakers))]
            found = self.breakers[model] = CircuitBreaker(self._clock.monotonic(), self.knobs, self.circuit_changes)
        return found

    def stands_open(self, model: str, now: float) -> bool:
        """Whether a call could go up without being held: what makes it worth to be tried before another upstream."""
        breaker = self.breakers.get(model)
        if breaker is not None and not breaker.would_allow(now):
            return False
        return self.limit.closed_until <= now and not self.limit.why(now).startswith("paused")

    async def enter(self, call: Call, until: float, inference: Stage) -> int:
        """A chair here and in the stage ``inference``, and the right to send now: the limit's turn. Whoever has it calls
        ``leave``. ``until`` (monotonic): how long the call may be held. Raises ``Denied`` and ``Shed``."""
        deadline = asyncio.get_running_loop().time() + max(0.0, until - self._clock.monotonic())
        with contextlib.ExitStack() as undo:
            if not self.door.try_enter(call.lane):
                await self.door.take(call.lane, deadline)
            undo.callback(self.door.leave)
            await self._allowed(call, until)
            undo.callback(lambda: self.breaker(call.model).abandon(self._clock.monotonic()))
            if not inference.try_enter(call.lane):
                await inference.take(call.lane, deadline)
                undo.callback(inference.leave)
                await self._limited(until)
            undo.pop_all()
        return self._began()

    def try_enter(self, call: Call, now: float, inference: Stage) -> int | None:
        """The same where nothing stands in the way; None: something does, and nothing was taken."""
        if not self.door.try_enter(call.lane):
            return None
        breaker = self.breakers.get(call.model)
        if (breaker is None or breaker.closed) and not self.limit.may_start(now) and inference.try_enter(call.lane):
            return self._began()
        self.door.leave()
        return None

    def _began(self) -> int:
        turn = self.limit.began(self._clock.monotonic())
        if self._narrow:
            self._fit()
        return turn

    def leave(self, inference: Stage) -> None:
        """The call is over."""
        self.limit.ended()
        inference.leave()
        if self._narrow or self.door.width != self.limit.limit:
            self._fit()
            self._stir()
        self.door.leave()

    def answered(self, model: str, now: float, turn: int) -> None:
        """A good answer began: whoever waited for a breaker, or for a window's end, looks again at once."""
        breaker = self.breaker(model)
        was_closed = breaker.closed
        breaker.success(now)
        if self.limit.accepted(now, turn) or not was_closed:
            self._fit()
            self._stir()

    def _stir(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def _allowed(self, call: Call, until: float) -> None:
        """Until limit and breaker let a call go. Whoever waits here is the next; the others are in the door's lines."""
        counted = False
        while True:
            await self._limited(until)
            breaker = self.breaker(call.model)
            if breaker.allow(self._clock.monotonic()):
                return
            if not counted:
                counted = True
                self._count_kept_away(call.model)
            why = f"it failed {self.knobs.failures_to_open} times in a row ({breaker.last_failure})"
            await self._held(_LOOK_S, until, why, Denial.UNREACHED)

    def _count_kept_away(self, model: str) -> None:
        if model not in self.kept_away and len(self.kept_away) >= MODELS:
            del self.kept_away[next(iter(self.kept_away))]
        self.kept_away[model] = self.kept_away.get(model, 0) + 1

    async def _limited(self, until: float) -> None:
        limit = self.limit
        while wait_s := limit.may_start(self._clock.monotonic()):
            await self._held(wait_s, until, limit.why(self._clock.monotonic()))

    async def _held(self, wait_s: float, until: float, why: str, denial: Denial = Denial.LIMITED) -> None:
        now = self._clock.monotonic()
        self._narrow = True
        self._fit()
        known_s = wait_s if wait_s != FULL else _LOOK_S
        if now + known_s > until:
            left_s = max(1.0, self.limit.closed_until - now)
            said = f"no call goes to {self.name} for now: {why}"
            raise Denied(denial, said, final=left_s > LONGEST_WINDOW_S, retry_after_s=left_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(known_s, _LONGEST_LOOK_S)):
                await self._news.wait()

    def _fit(self) -> None:
        """While something holds calls back, one at a time waits for it, and the others in the order of the lines."""
        self._narrow = self._narrow and bool(self.limit.why(self._clock.monotonic()))
        width = self.limit.in_flight + 1 if self._narrow else self.limit.limit
        self.door.resize(width=max(1, min(width, self.limit.limit)))

    def tick(self, now: float) -> None:
        if now - self._ticked >= self._tick_s:
            self._ticked = now
            self.limit.tick(now)
        self._fit()

    def turned(self) -> None:
        """A knob was changed. Breakers of other constants begin anew."""
        self.door.resize(room=int(self._dials.room), promote_s=self._dials.promote_s)
        if self.knobs != (knobs := self._circuit()):
            self.knobs = knobs
            self.breakers.clear()

    def set_calls(self, calls: float) -> float:
        """The most calls at once from now on; returns what it was. Raises ``BadInput``. The knob's upper end is no limit where
        the settings name none."""
        knob, before = calls_knob(self), float(self.limit.cap)
        if fault := knob.fault(calls):
            raise BadInput([Problem(file=knob.name, message=fault, expected="a value within its bounds")])
        free = calls >= knob.maximum and not self.upstream.settings.max_concurrency
        self.limit.set_cap(UNLIMITED if free else int(calls))
        self._fit()
        self._stir()
        return min(before, knob.maximum)

    def sample(self, delivered_bytes: int) -> UpstreamSample:
        limit = self.limit
        return UpstreamSample(
            cap=limit.cap,
            delivered_bytes=delivered_bytes,
            in_flight=limit.in_flight,
            limit=limit.limit,
            name=self.name,
            tick_s=self._tick_s,
            unlimited=limit.limit >= UNLIMITED,
            waiting=sum(self.door.waiting),
        )

    def _circuit(self) -> CircuitKnobs:
        return self._dials.circuit()

    # -- an operator's word --------------------------------------------------------------------------------------------

    def standing(self, now: float) -> dict[str, Any]:
        """For people: what it holds, what holds calls back, and which breakers are not closed."""
        limit = self.limit
        return {
            "breakers": [
                {"model": model, "state": breaker.state.value, "why": breaker.last_failure}
                for model, breaker in self.breakers.items()
                if breaker.state is not CircuitState.CLOSED
            ],
            "held_by": limit.why(now),
            "in_flight": limit.in_flight,
            "kind": self.upstream.kind.value,
            "limit": limit.limit if limit.limit < UNLIMITED else None,
            "models": list(self.upstream.settings.models),
            "name": self.name,
            "pace_per_s": limit.pace_per_s if limit.pace_per_s != FULL else None,
            "url": self.upstream.url,
            "waiting": sum(self.door.waiting),
        }

    def pause(self, reason: str) -> None:
        self.limit.pause(reason)

    def resume(self) -> None:
        self.limit.resume(self._clock.monotonic())
        self._fit()
        self._stir()
