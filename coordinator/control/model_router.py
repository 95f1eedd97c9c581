"""Gives each attempt its model: asks the policy of the settings, draws, and writes the decision down before it acts.

Owns one invariant: what was chosen, among what, with which probabilities and by which version of what is believed, is in the
store before the attempt is on offer; so an outcome of tomorrow finds the decision that caused it. What a price is, and
which upstream is away, comes from who knows.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol

from coordinator.domain.usage import TokenUsage
from coordinator.policy.exploration import drawn
from coordinator.policy.pricing import cost_usd
from coordinator.policy.rival_routers import policy_named
from coordinator.policy.routing import VIA, Arm, RoutingContext, allowed, kind_of_task, size_of_task

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
    from datetime import datetime

    from coordinator.domain.control_settings import RouterSettings
    from coordinator.domain.model_choice import ModelQuestion
    from coordinator.domain.price import Price
    from coordinator.kit.clock import Clock
    from coordinator.kit.store import Store
    from coordinator.policy.exploration import Chance
    from coordinator.policy.routing import RoutingPolicy

_log = logging.getLogger(__name__)

_CALLS: Final = 20
_CALL: Final = TokenUsage(cache_read_tokens=30_000, cache_write_tokens=3_000, input_tokens=1_000, output_tokens=600)
"""A medium attempt, as a coding agent makes it: so many calls, each about like this one."""
_SIZES: Final = MappingProxyType({"small": 0.5, "medium": 1.0, "large": 2.2})
_UNPRICED_USD: Final = 1.0
"""A medium attempt with a model that nobody has a price of, where no other is dearer."""
_USUAL_S: Final = 1080.0
"""An attempt of which nothing is known yet: 18 minutes."""
_BELIEVED: Final = 10
"""What is usual counts as so many attempts that were seen."""
_KEPT: Final = 100_000


class PriceOf(Protocol):
    """What is asked of whoever knows prices."""

    def of(self, model: str, upstream: str = "") -> Price | None:
        """None: nobody has told."""


class ModelRouter:
    """``chance`` is where all chance comes from; the same one, the same past and the same questions give the same answers."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        settings: RouterSettings,
        prices: PriceOf,
        chance: Chance,
        *,
        barred: Callable[[Sequence[str]], Awaitable[Collection[str]]],
    ) -> None:
        """``barred`` says which models go nowhere just now: breakers stand outside of what is learnt."""
        self._barred = barred
        self._chance = chance
        self._clock = clock
        self._learned: RoutingPolicy | None = None
        self._prices = prices
        self._settings = settings
        self._store = store
        self._usual: dict[str, tuple[float, float]] | None = None

    @property
    def policy(self) -> RoutingPolicy:
        """Read from the store when it is first wanted: a start does not wait for it."""
        if self._learned is None:
            self._learned = policy_of(self._store, self._settings)
        return self._learned

    def arms_of(self, role: str, models: tuple[str, ...]) -> tuple[str, ...]:
        """What the settings say of a role, else its card."""
        return tuple(self._settings.models.get(role, models))

    async def choose(self, asked: ModelQuestion) -> str:
        """The arm for an attempt; empty when its task names no model and its role has no list of them."""
        names = (asked.task.model,) if asked.task.model else self.arms_of(asked.role, asked.models)
        if not names:
            return ""
        context = self._context(asked)
        barred = await self._barred(names) if len(names) > 1 else ()
        arms = allowed(self._arms(names, context.size), barred=barred, cap_usd=self._settings.max_attempt_usd)
        chances = self.policy.propensities(context, arms, hours(self._clock.now()), self._chance)
        arm = arms[drawn(chances, self._chance.random())]
        self._store.execute(
            "decision_add",
            at=self._clock.now().isoformat(),
            task=asked.task.id,
            generation=asked.generation,
            role=asked.role,
            kind=context.kind,
            size=context.size,
            attempt=context.attempt,
            attempts=context.attempts,
            previous=context.previous,
            value_usd=context.value_usd,
            arm=arm.name,
            arms=json.dumps([asdict(one) for one in arms]),
            propensities=json.dumps([round(one, 9) for one in chances]),
            policy=self._settings.policy,
            version=self.policy.seen,
            pinned=len(names) == 1,
        )
        return arm.name

    def upstream_of(self, task: str, generation: int) -> str:
        """The upstream that was chosen for an attempt, empty: any. May be asked from any thread."""
        rows = self._store.query("decision_of", task=task, generation=generation)
        return str(rows[0]["arm"]).partition(VIA)[2] if rows else ""

    def learn(self, decision: Mapping[str, Any] | sqlite3.Row, landed: bool, times: int = 1) -> None:
        """What became of a decision. A later word that outweighs an earlier one counts several ``times``."""
        context, arms = case_of(decision)
        arm = next(one for one in arms if one.name == decision["arm"])
        for _ in range(times):
            self.policy.learn(context, arm, landed, hours(self._clock.now()))
        data = json.dumps(self.policy.to_json())
        name, now = self._settings.policy, self._clock.now().isoformat()
        self._store.execute("router_state_put", policy=name, at=now, data=data)
        self._store.execute("decisions_trim", keep=_KEPT)
        self._usual = None

    def _context(self, asked: ModelQuestion) -> RoutingContext:
        before = self._store.query("decisions_of", task=asked.task.id)
        earlier = [row["arm"] for row in before if row["generation"] < asked.generation]
        kind = kind_of_task(asked.task)
        return RoutingContext(
            attempt=max(asked.attempt, 0),
            attempts=max(asked.attempts, 1),
            kind=kind,
            previous=earlier[-1] if earlier and asked.attempt > 0 else "",
            size=size_of_task(asked.task),
            value_usd=self._settings.values_usd[kind],
        )

    def _arms(self, names: Iterable[str], size: str) -> list[Arm]:
        listed = {name: self._list_usd(name) for name in names}
        dearest = max((one for one in listed.values() if one is not None), default=_UNPRICED_USD)
        if self._usual is None:
            self._usual = self._measured()
        arms = []
        for name, known in listed.items():
            price = max(dearest, _UNPRICED_USD) if known is None else known
            factor, took_s = self._usual.get(name, (1.0, _USUAL_S))
            delay = took_s / 3600.0 * self._settings.hour_usd
            arms.append(Arm(cost_usd=price * _SIZES[size] * factor, delay_usd=delay, list_usd=price, name=name))
        return arms

    def _list_usd(self, name: str) -> float | None:
        """What a medium attempt costs by the price list."""
        model, _, upstream = name.partition(VIA)
        price = self._prices.of(model, upstream)
        return cost_usd(_CALL, price) * _CALLS if price is not None else None

    def _measured(self) -> dict[str, tuple[float, float]]:
        """By arm: how much more than usual its attempts used, and how long they took; what is usual has its weight."""
        used: dict[str, list[tuple[float, float]]] = {}
        for row in self._store.query("decisions_settled", limit=1000):
            arm = next(one for one in case_of(row)[1] if one.name == row["arm"])
            nominal = arm.list_usd * _SIZES.get(row["size"], 1.0)
            factor = min(max(row["cost_usd"] / nominal, 0.1), 10.0) if nominal and row["cost_usd"] else 1.0
            used.setdefault(arm.name, []).append((factor, row["took_s"]))
        return {
            name: (
                (_BELIEVED + sum(factor for factor, _ in seen)) / (_BELIEVED + len(seen)),
                (_BELIEVED * _USUAL_S + sum(took for _, took in seen)) / (_BELIEVED + len(seen)),
            )
            for name, seen in used.items()
        }


def policy_of(store: Store, settings: RouterSettings) -> RoutingPolicy:
    """The policy of the settings with what it has learnt; what cannot be read is learnt anew."""
    policy = policy_named(settings.policy, drift=settings.drift, floor=settings.floor)
    rows = store.query("router_state_get", policy=settings.policy)
    if rows:
        try:
            policy.restore(json.loads(rows[0]["data"]))
        except (KeyError, ValueError, IndexError, TypeError) as error:
            _log.warning("what the router learnt cannot be read: %s", error, extra={"action": "router_state_lost"})
            policy = policy_named(settings.policy, drift=settings.drift, floor=settings.floor)
    return policy


def case_of(row: Mapping[str, Any] | sqlite3.Row) -> tuple[RoutingContext, tuple[Arm, ...]]:
    """What a decision of the store was about, and among what."""
    context = RoutingContext(
        attempt=row["attempt"],
        attempts=row["attempts"],
        kind=row["kind"],
        previous=row["previous"],
        size=row["size"],
        value_usd=row["value_usd"],
    )
    return context, tuple(Arm(**one) for one in json.loads(row["arms"]))


def hours(moment: datetime) -> float:
    """Since 1970."""
    return moment.timestamp() / 3600.0
