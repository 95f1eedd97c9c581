"""Which arm (a model, at an upstream) an attempt is given: what is asked, what is answered, and what every policy can do.

Owns one invariant: a task whose model a person named has that one arm and probability 1; a price cap never leaves a task
without any arm. Policies are ``learned_router``'s and ``rival_routers``'; here is what they have in common.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from coordinator.domain.task import Task
    from coordinator.policy.exploration import Chance

VIA: Final = " via "
"""Between a model's name and its upstream's in an arm; no name of a model has a blank."""

KINDS: Final = ("lint", "upgrade", "bug", "feature", "task")
"""Kinds of tasks that are told apart; ``task`` is one of which nothing is known."""
_OF_TOOL: Final = MappingProxyType(
    {
        "deptry": "lint",
        "eslint": "lint",
        "mypy": "bug",
        "npm-audit": "upgrade",
        "pip-audit": "upgrade",
        "pyright": "bug",
        "pytest": "bug",
        "ruff": "lint",
        "ruff-format": "lint",
        "vulture": "lint",
    }
)
_SMALL_CHARS: Final = 600
_LARGE_CHARS: Final = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """What may be chosen. ``cost_usd`` is what an attempt is expected to cost with it, ``list_usd`` what the price list says
    of a medium one, ``delay_usd`` what its time is worth."""

    cost_usd: float
    delay_usd: float = 0.0
    list_usd: float
    name: str

    @property
    def model(self) -> str:
        return self.name.partition(VIA)[0]

    @property
    def upstream(self) -> str:
        """Empty: whichever has the model."""
        return self.name.partition(VIA)[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingContext:
    """What is seen of a task before an attempt. ``attempt`` counts those that failed before it, ``attempts`` is how many there
    may be in all, ``previous`` the arm of the last one. ``value_usd``: what the task is worth once it has landed."""

    attempt: int = 0
    attempts: int = 3
    kind: str
    previous: str = ""
    size: str
    value_usd: float

    @property
    def left(self) -> int:
        """Attempts that there may be, this one counted."""
        return max(self.attempts - self.attempt, 1)


class RoutingPolicy(Protocol):
    """Chooses arms by probabilities, and learns from what became of them. Times are hours since any fixed moment."""

    seen: int
    """Outcomes learnt from: the version of what is believed."""

    def propensities(
        self, context: RoutingContext, arms: Sequence[Arm], now_h: float, chance: Chance
    ) -> tuple[float, ...]: ...
    def learn(self, context: RoutingContext, arm: Arm, landed: bool, now_h: float) -> None: ...
    def to_json(self) -> dict[str, Any]: ...
    def restore(self, data: Mapping[str, Any]) -> None: ...


def net_usd(context: RoutingContext, arm: Arm, landed: bool) -> float:
    """What an attempt was worth, less what it cost."""
    return context.value_usd * landed - arm.cost_usd - arm.delay_usd


def allowed(arms: Sequence[Arm], *, barred: Collection[str] = (), cap_usd: float = 0.0) -> tuple[Arm, ...]:
    """Without those of ``barred`` (what a breaker keeps calls from) and those dearer than ``cap_usd`` (0: none is). When a rule
    would leave none, it leaves all, or the cheapest."""
    well = tuple(arm for arm in arms if arm.name not in barred) or tuple(arms)
    if not cap_usd:
        return well
    return tuple(arm for arm in well if arm.cost_usd <= cap_usd) or (min(well, key=lambda arm: arm.cost_usd),)


def kind_of_task(task: Task) -> str:
    """By a label that names a kind, or the tool that found it."""
    for label in task.labels:
        kind = label.lower() if label.lower() in KINDS else _OF_TOOL.get(label.lower())
        if kind is not None:
            return kind
    return "task"


def size_of_task(task: Task) -> str:
    """``small``, ``medium`` or ``large``, by how long its prompt is: all that is known before anybody has begun."""
    length = len(task.prompt)
    return "small" if length < _SMALL_CHARS else "medium" if length < _LARGE_CHARS else "large"
