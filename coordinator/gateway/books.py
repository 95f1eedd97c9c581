"""Money: before a call what it may cost is set aside, while it streams more is, and after it what it did cost is booked.

Owns one invariant: no call goes up whose cost does not fit in every budget it counts against, and a stream for which nothing
more is left is cut; so spending passes a budget by no more than one step of a stream. Prices are ``policy.pricing``'s, the
sums that a person reads are ``book``'s.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from coordinator.gateway.dialect import Denial, Denied, Dialect
from coordinator.policy.budget import NO_LIMIT, Budget, BudgetRefusal, Purse
from coordinator.policy.pricing import cost_usd, worst_case_usd

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import date

    from coordinator.domain.price import Price
    from coordinator.domain.settings import GatewaySettings
    from coordinator.domain.usage import TokenUsage
    from coordinator.gateway.calls import Call
    from coordinator.policy.budget import Reservation

STEP_TOKENS: Final = 512
"""Output that is set aside at a time while a stream goes on: a cent or so of the dearest models."""
LOOK_BYTES: Final = 4096
"""A stream is looked at each time so much more of it has passed: some thirty tokens of any protocol."""

_CAUTION: Final = 1.25
"""What was counted of a stream's tokens is an estimate: it is cut early rather than late."""

_FIRST_RATIO: Final = 0.5
"""Tokens per byte of a body, before one of the same agent was counted. Prose and code have 0.25 to 0.33."""
_MARGIN: Final = 1.25
_AGENTS: Final = 4096
_FREE: Final = frozenset({Dialect.ANTHROPIC_COUNT, Dialect.GOOGLE_COUNT, Dialect.GOOGLE_MODELS, Dialect.MODELS})
"""Nothing is generated."""


class Hold:
    """What is set aside for one call. ``covered_tokens``: how much output that pays for."""

    __slots__ = ("covered_tokens", "price", "purse", "reservation")

    def __init__(self, purse: Purse, reservation: Reservation, price: Price, covered_tokens: int) -> None:
        self.covered_tokens = covered_tokens
        self.price = price
        self.purse = purse
        self.reservation = reservation


class Books:
    """All purses of one gateway. ``spent`` is what earlier runs spent, USD by task."""

    def __init__(
        self, settings: GatewaySettings, *, today: date, spent_today: float, spent: Mapping[str, float]
    ) -> None:
        call_usd = settings.call_budget_usd or NO_LIMIT
        self.fleet = Purse(Budget.FLEET, settings.total_budget_usd or NO_LIMIT, call_usd=call_usd)
        self.day = Purse(Budget.DAY, settings.day_budget_usd or NO_LIMIT, above=self.fleet, day=today)
        self.fleet.restore(sum(spent.values()))
        self.day.restore(spent_today)
        self._limited = bool(settings.total_budget_usd or settings.day_budget_usd or settings.call_budget_usd)
        self._spent = dict(spent)
        self._tasks: dict[str, Purse] = {}
        self._ratios: dict[tuple[str, int], float] = {}
        self._settled = asyncio.Event()

    def limits(self, call: Call) -> bool:
        """Whether anything stands against what this call may cost."""
        return (self._limited or call.who.budget_usd > 0) and call.dialect not in _FREE

    def hold(
        self,
        call: Call,
        price: Price | None,
        body_bytes: int,
        max_tokens: int,
        *,
        before: Hold | None = None,
        so_far: int = 0,
    ) -> Hold | None:
        """Set aside what the call may cost: of a stream its input and a first step, else all of it. None: there is nothing to
        limit. Raises ``Denied``: 402, or 429 while other calls have set aside what it would need.

        ``before``: of another caller, who paid until now for the same upstream call, of which about ``so_far`` tokens have
        come. It is free when this returns, and as it was when this raises.
        """
        if not self.limits(call):
            if before is not None:
                before.purse.settle(before.reservation, 0.0)
                self._stir()
            return None
        if price is None:
            said = (
                f"a budget is set, and nobody has told what {call.model or 'this model'} costs: [[gateway.prices]] does"
            )
            raise Denied(Denial.OVER_BUDGET, said)
        purse = self._purse(call.claim[0], call.who.budget_usd)
        output = min(max_tokens, STEP_TOKENS + int(so_far * _CAUTION)) if call.stream else max_tokens
        ratio = self._ratios.get(call.claim, _FIRST_RATIO)
        wanted = worst_case_usd(body_bytes, output, price, tokens_per_byte=ratio)
        made = purse.reserve(wanted) if before is None else before.purse.hand_on(before.reservation, purse, wanted)
        if isinstance(made, BudgetRefusal):
            later = made.reserved_usd > 0 and made.spent_usd + made.wanted_usd <= made.limit_usd
            raise Denied(Denial.LIMITED if later else Denial.OVER_BUDGET, str(made))
        return Hold(purse, made, price, output)

    async def held(
        self, call: Call, price: Price | None, body_bytes: int, max_tokens: int, patience_s: float
    ) -> Hold | None:
        """The same; a call that only has no room beside those under way waits for them. Raises ``Denied`` (402, or 429 when
        they took longer)."""
        ends = asyncio.get_running_loop().time() + patience_s
        while True:
            try:
                return self.hold(call, price, body_bytes, max_tokens)
            except Denied as denied:
                if denied.denial is not Denial.LIMITED or asyncio.get_running_loop().time() >= ends:
                    raise
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(ends):
                    await self._settled.wait()

    def goes_on(self, hold: Hold, tokens: int) -> bool:
        """A stream has generated about so many: set more aside as it comes near to what is covered. False: nothing is left."""
        tokens = int(tokens * _CAUTION)
        while tokens + STEP_TOKENS // 2 > hold.covered_tokens:
            if not hold.purse.grow(hold.reservation, worst_case_usd(0, STEP_TOKENS, hold.price)):
                return tokens < hold.covered_tokens
            hold.covered_tokens += STEP_TOKENS
        return True

    def settle(self, call: Call, hold: Hold | None, price: Price | None, usage: TokenUsage, body_bytes: int) -> None:
        """What was carried for it is over; what that cost is in the call from now on."""
        call.priced = price is not None and not call.estimated
        cost = cost_usd(usage, price) if price is not None else 0.0
        call.cost_usd += cost
        if hold is not None:
            hold.purse.settle(hold.reservation, cost)
            self._stir()
        elif cost:
            self._purse(call.claim[0], call.who.budget_usd).spend(cost)
        if hold is not None and usage.prompt_tokens and body_bytes:
            if len(self._ratios) >= _AGENTS:
                self._ratios.clear()
            self._ratios[call.claim] = min(1.0, _MARGIN * usage.prompt_tokens / body_bytes)

    def _stir(self) -> None:
        settled, self._settled = self._settled, asyncio.Event()
        settled.set()

    def roll_over(self, today: date) -> None:
        self.day.roll_over(today)

    def _purse(self, task: str, budget_usd: float) -> Purse:
        purse = self._tasks.get(task)
        limit = budget_usd or NO_LIMIT
        if purse is None:
            purse = self._tasks[task] = Purse(Budget.TASK, limit, above=self.day)
            purse.restore(self._spent.get(task, 0.0))
        elif purse.limit_usd != limit:
            purse.limit_usd = limit
        return purse
