"""Telemetry: what happened, folded into windows from events alone, and what a person is shown of a window.

Owns one invariant: everything shown can be traced to events that were told, or to a standing that was looked at; what nobody
told of is None. Windows are made of whole minutes and the one under way, the shortest of slices of 5 s.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

from coordinator.domain.attempt import Ending
from coordinator.domain.event import AttemptEnded, GateJudged, RequestServed, TaskChanged, TaskLanded
from coordinator.domain.served_call import UPSTREAM_FAULTS, error_of, tells_of_upstream
from coordinator.domain.task import ACTIVE, OWNED, TaskState
from coordinator.policy.telemetry_cell import TelemetryCell

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from coordinator.domain.event import Event

LOOK_S: Final = 5.0
"""How often a snapshot is taken."""
MINUTE_S: Final = 60.0
WINDOWS_S: Final[Mapping[str, float]] = {"1m": 60.0, "5m": 300.0, "15m": 900.0, "1h": 3600.0}

LEAST_TOKENS: Final = 8
"""An answer of fewer tokens tells nothing of their speed."""
_LABELS: Final = 50
"""Of each kind: roles, upstreams; what comes later is "other"."""

UNJUDGED: Final = frozenset(
    {
        Ending.CANCELLED,
        Ending.DENIED,
        Ending.LOGIN_MISSING,
        Ending.RATE_LIMITED,
        Ending.STALE,
        Ending.STOPPED,
        Ending.UNAVAILABLE,
        Ending.UNSTARTED,
    }
)
"""Endings that say nothing of the work: it was not the work that ended the attempt."""


_STAGES: Final = tuple(state for state in TaskState if state in ACTIVE)


class Labels:
    """Bounds how many names are told apart."""

    def __init__(self, most: int = _LABELS) -> None:
        self._known: set[str] = set()
        self._most = most

    def of(self, name: str) -> str:
        if name in self._known:
            return name
        if len(self._known) < self._most:
            self._known.add(name)
            return name
        return "other"


class Telemetry:
    """``take`` each event, ``look`` every 5 s; times are monotonic seconds."""

    def __init__(self, began_s: float) -> None:
        self._minute_ends_s = began_s + MINUTE_S
        self._minute = TelemetryCell()
        self._minutes: deque[TelemetryCell] = deque(maxlen=60)
        self._slice = TelemetryCell()
        self._slices: deque[TelemetryCell] = deque(maxlen=round(MINUTE_S / LOOK_S))
        self._names = Labels()
        self._states: dict[str, str] = {}
        """Of tasks that are at some stage of being worked on."""

    @property
    def busy(self) -> int:
        """Attempts under way."""
        return sum(state in OWNED for state in self._states.values())

    def take(self, event: Event) -> None:
        if isinstance(event, RequestServed):
            self._served(event)
        elif isinstance(event, TaskChanged):
            self._moved(event)
        elif isinstance(event, GateJudged):
            self._slice.count(f"gate.{event.verdict}")
            if event.verdict != "broken":
                self._slice.count("gate.judged")
                self._slice.spread("gate_s", event.took_s)
        elif isinstance(event, AttemptEnded):
            self._ended(event)
        elif isinstance(event, TaskLanded):
            self._slice.count("landed")

    def _served(self, call: RequestServed) -> None:
        cell, role, upstream = self._slice, self._names.of(call.role or "none"), self._names.of(call.upstream or "none")
        cell.count("calls")
        cell.count(f"calls|role={role}")
        cell.count(f"calls|upstream={upstream}")
        if call.collapsed:
            cell.count("cached" if call.collapsed == "cache" else "shared")
        error = error_of(call)
        if error is not None:
            cell.count(f"error.{error}")
            cell.count("errors")
        cell.spread("wait_s", call.wait_s)
        if call.priced:
            cell.count("priced")
            cell.sum("cost_usd", call.cost_usd)
            cell.count(f"priced|role={role}")
            cell.sum(f"cost_usd|role={role}", call.cost_usd)
        cell.sum("output_tokens", call.output_tokens)
        if not tells_of_upstream(call):
            return
        cell.count("answers")
        cell.count(f"answers|upstream={upstream}")
        if error in UPSTREAM_FAULTS:
            cell.count("faults")
            cell.count(f"faults|upstream={upstream}")
        elif error is None:
            self._fold_times(cell, call, role, upstream)

    def _fold_times(self, cell: TelemetryCell, call: RequestServed, role: str, upstream: str) -> None:
        cell.spread("call_s", call.took_s - call.wait_s)
        first_s, token_s = first_token_s(call), seconds_per_token(call)
        if first_s is not None:
            cell.spread("first_token_s", first_s)
            cell.spread(f"first_token_s|upstream={upstream}", first_s)
        if token_s is not None:
            cell.spread("token_s", token_s)
            cell.spread(f"token_s|role={role}", token_s)
            cell.spread(f"token_s|upstream={upstream}", token_s)

    def _moved(self, event: TaskChanged) -> None:
        if event.new in ACTIVE:
            self._states[event.task] = event.new
        else:
            self._states.pop(event.task, None)

    def _ended(self, event: AttemptEnded) -> None:
        cell = self._slice
        cell.count(f"ended.{event.ending}")
        if event.ending in UNJUDGED:
            return
        cell.count("attempts")
        cell.spread("attempt_s", event.duration_s)
        if event.ending == Ending.LANDED:
            cell.count("attempts.landed")

    def look(self, at_s: float, standings: Mapping[str, float]) -> TelemetryCell | None:
        """End the slice; returns the minute that is over with it, if one is and something happened in it.

        ``standings`` are what was looked at rather than told: keys as in a cell.
        """
        cell = self._slice
        cell.standings.update(standings)
        for state in _STAGES:
            cell.standings[f"depth|stage={state.value}"] = sum(one == state for one in self._states.values())
        cell.standings["agents_busy"] = self.busy
        self._slices.append(cell)
        self._minute.merge(cell)
        self._slice = TelemetryCell()
        if at_s < self._minute_ends_s:
            return None
        self._minute_ends_s = at_s + MINUTE_S
        return self.end()

    def end(self) -> TelemetryCell | None:
        """The minute under way is over now; as ``look``."""
        self._minute.merge(self._slice)
        self._slice = TelemetryCell()
        over, self._minute = self._minute, TelemetryCell()
        self._minutes.append(over)
        return over or None

    def know(self, states: Iterable[tuple[str, str]]) -> None:
        """How tasks stood before the first event."""
        self._states.update((task, state) for task, state in states if state in ACTIVE)

    def restore(self, minutes: Iterable[TelemetryCell]) -> None:
        """What an earlier daemon saw in the minutes until now, the oldest first, also those in which nothing happened."""
        for cell in minutes:
            cell.standings.clear()  # how things stood then is not how they stand
            self._minutes.append(cell)

    def window(self, seconds: float) -> TelemetryCell:
        """All of the last ``seconds``, in one cell."""
        made = TelemetryCell()
        if seconds <= MINUTE_S:
            cells: Sequence[TelemetryCell] = (*self._slices, self._slice)
        else:
            minutes = round(seconds / MINUTE_S) - 1
            cells = (*tuple(self._minutes)[-minutes:], self._minute, self._slice)
        for cell in cells:
            made.merge(cell)
        return made


def first_token_s(call: RequestServed) -> float | None:
    """Until the upstream's first byte, without the time that it was held here; of streams only: others come whole."""
    if not call.stream or not call.first_byte_s:
        return None
    return max(0.0, call.first_byte_s - call.wait_s)


def seconds_per_token(call: RequestServed) -> float | None:
    if not call.stream or not call.first_byte_s or call.output_tokens < LEAST_TOKENS:
        return None
    return max(0.0, call.took_s - call.first_byte_s) / call.output_tokens


_SPREADS: Final = ("first_token_s", "token_s", "call_s", "wait_s", "gate_s", "attempt_s")


def figures_of(cell: TelemetryCell, window_s: float) -> dict[str, Any]:
    """A window for people and programs; stable keys, None for what has no sample."""
    counts, sums = cell.counts, cell.sums
    cost = sums.get("cost_usd")
    return {
        "agents_busy": cell.standings.get("agents_busy"),
        "breakers": _labelled(cell.standings, "breakers_open", "upstream"),
        "cache_rate": cell.rate("cached", "calls"),
        "calls": counts.get("calls", 0),
        "calls_per_s": counts.get("calls", 0) / window_s,
        "cost_usd": cost,
        "cost_usd_per_min": None if cost is None else cost * MINUTE_S / window_s,
        "dedup_rate": cell.rate("shared", "calls"),
        "depth": _labelled(cell.standings, "depth", "stage"),
        "error_rate": cell.rate("errors", "calls"),
        "errors": {key.partition(".")[2]: count for key, count in sorted(counts.items()) if key.startswith("error.")},
        "fault_rate": cell.rate("faults", "answers"),
        "gate_pass_rate": cell.rate("gate.passed", "gate.judged"),
        "landed": counts.get("landed", 0),
        "landing_rate": cell.rate("attempts.landed", "attempts"),
        "roles": _by_role(cell),
        "shed_rate": cell.rate("error.shed", "calls"),
        "spreads": {key: cell.quantiles(key) for key in _SPREADS},
        "tokens_per_s": sums["output_tokens"] / window_s if "output_tokens" in sums else None,
        "upstreams": _by_upstream(cell),
        "waiting": _labelled(cell.standings, "waiting", "upstream"),
        "window_s": window_s,
    }


def _by_role(cell: TelemetryCell) -> dict[str, Any]:
    return {
        role: {
            "calls": count,
            "cost_usd_per_call": cell.sums.get(f"cost_usd|role={role}", 0.0) / priced if priced else None,
            "token_s": cell.quantiles(f"token_s|role={role}"),
        }
        for role, count in _labelled(cell.counts, "calls", "role").items()
        for priced in (cell.counts.get(f"priced|role={role}", 0),)
    }


def _by_upstream(cell: TelemetryCell) -> dict[str, Any]:
    return {
        name: {
            "calls": count,
            "fault_rate": cell.rate(f"faults|upstream={name}", f"answers|upstream={name}"),
            "first_token_s": cell.quantiles(f"first_token_s|upstream={name}"),
            "token_s": cell.quantiles(f"token_s|upstream={name}"),
        }
        for name, count in _labelled(cell.counts, "calls", "upstream").items()
    }


def _labelled(table: Mapping[str, Any], key: str, label: str) -> dict[str, Any]:
    head = f"{key}|{label}="
    return {name.removeprefix(head): value for name, value in sorted(table.items()) if name.startswith(head)}
