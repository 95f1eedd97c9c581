"""What the gateway counts, folded from calls that are over and read from what runs.

Owns one invariant: a label's values are bounded, whatever callers send: models beyond the first ``MODELS`` are "other". The
names are the seed's where it had one. Prices, limits and stages are others'; this only counts.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Final

from coordinator.domain.lane import Lane
from coordinator.domain.meter import Meter, MeterKind, Spread
from coordinator.policy.circuit_breaker import CircuitState
from coordinator.policy.learned_limit import UNLIMITED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from coordinator.gateway.calls import Call
    from coordinator.gateway.station import Station
    from coordinator.kit.stage import Stage

MODELS: Final = 50
OTHER: Final = "other"

_FIRST_BYTE_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0)
_WAIT_S: Final = (0.001, 0.01, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0)
_TOTAL_S: Final = (0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0)

_STATES: Final[Mapping[CircuitState, int]] = {CircuitState.CLOSED: 0, CircuitState.HALF_OPEN: 1, CircuitState.OPEN: 2}

Labels = tuple[str, ...]


class Histogram:
    """Counts by bucket; ``bounds`` are upper ends."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def spread(self) -> Spread:
        return Spread(bounds=self._bounds, counts=tuple(self._counts), total=self._total)


class Meters:
    """``fold`` once for each call that is over; the rest is counted where it happens."""

    def __init__(self) -> None:
        self._models: set[str] = set()
        self._calls: dict[Labels, int] = {}
        self._tokens: dict[Labels, int] = {}
        self._cost: dict[Labels, float] = {}
        self._first: dict[Labels, Histogram] = {}
        self._wait: dict[Labels, Histogram] = {}
        self._took: dict[Labels, Histogram] = {}
        self._collapsed: dict[Labels, int] = {}
        self._saved: dict[Labels, float] = {}
        self.retries: dict[Labels, int] = {}
        """By upstream and why."""
        self.failovers: dict[Labels, int] = {}
        """By the upstream that was left and why."""
        self.rejected: dict[Labels, int] = {}
        """By breaker: calls that it kept away."""
        self.affinity = {True: 0, False: 0}
        """Whether a session's call went where its last one went."""

    def model(self, name: str) -> str:
        """The name as a label."""
        if name in self._models:
            return name
        if len(self._models) < MODELS and len(name) <= 100 and name.isprintable():
            self._models.add(name)
            return name
        return OTHER

    def fold(self, call: Call, now: float) -> None:
        model, upstream = self.model(call.model or "none"), call.upstream or "none"
        _add(self._calls, (upstream, model, call.ending.value, str(call.status)), 1)
        where = upstream, model
        usage = call.usage
        for kind, number in (
            ("input", usage.input_tokens),
            ("output", usage.output_tokens),
            ("cache_read", usage.cache_read_tokens),
            ("cache_write", usage.cache_write_tokens + usage.cache_write_1h_tokens),
        ):
            if number:
                _add(self._tokens, (*where, kind), number)
        if call.cost_usd:
            _add(self._cost, where, call.cost_usd)
        if call.collapsed:
            _add(self._collapsed, (call.collapsed,), 1)
            _add(self._saved, (call.collapsed,), call.saved_usd)
        if call.first_at:
            _spread(self._first, where, _FIRST_BYTE_S, call.first_at - call.began)
        _spread(self._took, where, _TOTAL_S, now - call.began)
        _spread(self._wait, (call.lane.name.lower(),), _WAIT_S, call.wait_s)

    def meters(self) -> Iterable[Meter]:
        where = ("upstream", "model")
        yield _counter("orchestrator_calls_total", "Model calls.", (*where, "ending", "status"), self._calls)
        yield _counter("orchestrator_tokens_total", "Tokens of model calls.", (*where, "kind"), self._tokens)
        yield _counter("orchestrator_inference_cost_usd_total", "Cost of model calls, USD.", where, self._cost)
        yield _counter(
            "orchestrator_dedup_hits_total", "Calls that shared another's answer.", ("kind",), self._collapsed
        )
        yield _counter(
            "orchestrator_saved_usd_total", "What avoided calls would have cost, USD.", ("kind",), self._saved
        )
        yield _counter("orchestrator_retries_total", "Calls sent up once more.", ("upstream", "why"), self.retries)
        yield _counter("orchestrator_failovers_total", "Calls sent elsewhere.", ("upstream", "why"), self.failovers)
        yield _counter(
            "orchestrator_circuit_breaker_requests_rejected_total",
            "Times that an open breaker kept a call away.",
            where,
            self.rejected,
        )
        hits: dict[Labels, int] = {
            ("hit" if known else "miss",): count for known, count in self.affinity.items() if count
        }
        yield _counter(
            "orchestrator_session_affinity_total", "Whether sessions stay where they were.", ("result",), hits
        )
        first, took, wait = "Seconds to the first byte.", "Seconds from first to last byte.", "Seconds of waiting."
        yield _histogram("inference_time_to_first_token_seconds", first, where, self._first)
        yield _histogram("orchestrator_call_duration_seconds", took, where, self._took)
        yield _histogram("orchestrator_call_wait_seconds", wait, ("lane",), self._wait)


def standing_meters(
    inference: Stage, stations: Sequence[Station], now: float, more: Iterable[tuple[str, Stage]]
) -> Iterable[Meter]:
    """How doors, limits and breakers stand at this moment."""
    doors = [("inference", inference), *more, *((station.door.name, station.door) for station in stations)]
    depth = {(name, lane.name.lower()): float(door.waiting[lane]) for name, door in doors for lane in Lane}
    inside = {(name,): float(door.inside) for name, door in doors}
    passed = {(name,): float(sum(door.entered)) for name, door in doors}
    shed = {(name, why.value): float(count) for name, door in doors for why, count in door.shed.items() if count}
    waited = {(name,): door.waited_s for name, door in doors}
    yield _counter("orchestrator_requests_total", "Calls that passed a stage's door.", ("stage",), passed)
    yield _counter("orchestrator_requests_shed_total", "Calls that a stage turned away.", ("stage", "why"), shed)
    yield _counter("orchestrator_stage_wait_seconds_total", "Seconds waited at a stage's door.", ("stage",), waited)
    yield _gauge("orchestrator_queue_depth", "Calls that wait at a stage's door.", ("stage", "lane"), depth)
    yield _gauge("orchestrator_stage_inside", "Calls inside of a stage.", ("stage",), inside)
    limits = {(one.name,): float(one.limit.limit) for one in stations if one.limit.limit < UNLIMITED}
    flight = {(one.name,): float(one.limit.in_flight) for one in stations}
    closed = {(one.name,): max(0.0, one.limit.closed_until - now) for one in stations}
    states = {
        (one.name, model): float(_STATES[breaker.state]) for one in stations for model, breaker in one.breakers.items()
    }
    upstream = ("upstream",)
    yield _gauge("orchestrator_upstream_limit", "Calls that an upstream was found to hold.", upstream, limits)
    yield _gauge("orchestrator_upstream_in_flight", "Calls under way at an upstream.", upstream, flight)
    yield _gauge(
        "orchestrator_upstream_closed_seconds", "Seconds for which an upstream takes no call.", upstream, closed
    )
    about = "Breakers: 0 closed, 1 half open, 2 open."
    yield _gauge("orchestrator_circuit_breaker_state", about, ("upstream", "model"), states)


def _add(table: dict[Labels, int] | dict[Labels, float], labels: Labels, more: float) -> None:
    table[labels] = table.get(labels, 0) + more  # type: ignore[assignment]


def _spread(table: dict[Labels, Histogram], labels: Labels, bounds: tuple[float, ...], value: float) -> None:
    found = table.get(labels)
    if found is None:
        found = table[labels] = Histogram(bounds)
    found.add(value)


def _counter(name: str, about: str, labels: Labels, table: Mapping[Any, float]) -> Meter:
    samples = tuple((key, float(value)) for key, value in tuple(table.items()))
    return Meter(name=name, about=about, kind=MeterKind.COUNTER, labels=labels, samples=samples)


def _gauge(name: str, about: str, labels: Labels, table: Mapping[Any, float]) -> Meter:
    return Meter(name=name, about=about, kind=MeterKind.GAUGE, labels=labels, samples=tuple(table.items()))


def _histogram(name: str, about: str, labels: Labels, table: dict[Labels, Histogram]) -> Meter:
    samples = tuple((key, value.spread()) for key, value in tuple(table.items()))
    return Meter(name=name, about=about, kind=MeterKind.HISTOGRAM, labels=labels, samples=samples)
