"""What a time was worth: the value of what landed, less what calls cost; with the errors and waits that bound it.

Owns one invariant: everything is counted from events, once. A landing that the router decided about is worth what it said then,
any other what ``[router] values_usd`` says of a task.
"""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from coordinator.domain.event import RequestServed, TaskLanded
from coordinator.domain.served_call import UPSTREAM_FAULTS, CallError, error_of

if TYPE_CHECKING:
    from coordinator.domain.control_settings import RouterSettings
    from coordinator.domain.event import Event
    from coordinator.kit.store import Store

WINDOW_S: Final = 60.0
_HOUR_S: Final = 3600.0
_LEAST: Final = 20
_HIGH: Final = frozenset({"critical", "high"})


@dataclass(slots=True, kw_only=True)
class Score:
    """Sums over ``took_s``."""

    calls: int = 0
    cost_usd: float = 0.0
    failed: int = 0
    landed: int = 0
    took_s: float = 0.0
    value_usd: float = 0.0
    waited: int = 0

    def add(self, other: Score) -> None:
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)

    def worth(self, objective: str) -> float:
        """An hour of it."""
        total = self.landed if objective == "landed" else self.value_usd - self.cost_usd
        return total * _HOUR_S / self.took_s if self.took_s else 0.0

    @property
    def error_rate(self) -> float:
        return self.failed / self.calls if self.calls else 0.0

    @property
    def context(self) -> str:
        """What a score is compared within: as much, or as little, was asked for."""
        if not self.calls:
            return "idle"
        return "busy" if self.waited >= 0.2 * self.calls else "light"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Objective:
    """A tap on the bus; ``take_score`` hands over what was counted since it was asked last."""

    def __init__(self, store: Store, router: RouterSettings, began_s: float) -> None:
        self._now = Score()
        self._began_s = began_s
        self._router = router
        self._store = store
        self._waits: deque[tuple[float, float, str]] = deque()
        self._shed: deque[float] = deque()

    def take(self, event: Event, at_s: float) -> None:
        if isinstance(event, RequestServed):
            self._served(event, at_s)
        elif isinstance(event, TaskLanded):
            self._now.landed += 1
            self._now.value_usd += self._value(event)

    def _served(self, call: RequestServed, at_s: float) -> None:
        error, now = error_of(call), self._now
        now.calls += 1
        now.cost_usd += call.cost_usd
        now.failed += error in UPSTREAM_FAULTS
        now.waited += call.wait_s > 1.0
        if error is CallError.SHED:
            self._shed.append(at_s)
        elif error is None and not call.collapsed:
            self._waits.append((at_s, call.wait_s, call.lane))

    def _value(self, event: TaskLanded) -> float:
        rows = self._store.query("decision_of", task=event.task, generation=event.generation)
        return float(rows[0]["value_usd"]) if rows else self._router.values_usd["task"]

    def take_score(self, at_s: float) -> Score:
        done, self._now = self._now, Score()
        done.took_s, self._began_s = at_s - self._began_s, at_s
        return done

    # -- what servos measure -------------------------------------------------------------------------------------------

    def shed(self, at_s: float) -> int:
        """Calls that a full door turned away in the last minute."""
        while self._shed and self._shed[0] < at_s - WINDOW_S:
            self._shed.popleft()
        return len(self._shed)

    def wait_s(self, at_s: float, *, urgent: bool | None = None) -> float | None:
        """How long 95 % of the calls of the last minute waited at most: of all, or of urgent lanes, or of the others. None: too
        few calls to say."""
        while self._waits and self._waits[0][0] < at_s - WINDOW_S:
            self._waits.popleft()
        waits = sorted(wait for _, wait, lane in self._waits if urgent is None or (lane in _HIGH) is urgent)
        return waits[int(0.95 * len(waits))] if len(waits) >= _LEAST else None
