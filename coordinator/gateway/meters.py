"""What the gateway counts, folded from calls that are over and read from what runs.

Owns one invariant: a label's values are bounded, whatever callers send: models beyond the first ``MODELS`` are "other". The
names are the seed's where it had one. Prices, limits and stages are others'; this only counts.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Final

from coordinator.domain.lane import Lane
from coordinator.domain.meter import Meter, MeterKind, Spread
from coordinator.policy.budget import NO_LIMIT
from coordinator.policy.circuit_breaker import CircuitState
from coordinator.policy.learned_limit import UNLIMITED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from coordinator.gateway.calls import Call
    from coordinator.gateway.station import Station
    from coordinator.kit.stage import Stage
    from coordinator.policy.budget import Purse

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


class _Traffic:
    """What went to one upstream for one model."""

    __slots__ = ("cost_usd", "ended", "first", "tokens", "took")

    def __init__(self) -> None:
        self.cost_usd = 0.0
        self.ended: dict[tuple[str, int], int] = {}  # by ending and status
        self.first = Histogram(_FIRST_BYTE_S)
        self.tokens = dict.fromkeys(("input", "output", "cache_read", "cache_write"), 0)
        self.took = Histogram(_TOTAL_S)

    def add(self, call: Call, now: float) -> None:
        key = call.ending.value, call.status
        self.ended[key] = self.ended.get(key, 0) + 1
        self.cost_usd += call.cost_usd
        self.took.add(now - call.began)
        if call.first_at:
            self.first.add(call.first_at - call.began)
        usage, tokens = call.usage, self.tokens
        tokens["input"] += usage.input_tokens
        tokens["output"] += usage.output_tokens
        if usage.cache_read_tokens:
            tokens["cache_read"] += usage.cache_read_tokens
        if usage.cache_write_tokens or usage.cache_write_1h_tokens:
            tokens["cache_write"] += usage.cache_write_tokens + usage.cache_write_1h_tokens


class Meters:
    """``fold`` once for each call that is over; the rest is counted where it happens."""

    def __init__(self) -> None:
        self._models: set[str] = set()
        self._traffic: dict[Labels, _Traffic] = {}
        self._wait = {lane: Histogram(_WAIT_S) for lane in Lane}
        self._collapsed: dict[Labels, int] = {}
        self._saved: dict[Labels, float] = {}
        self.affinity_hits = 0
        """Calls with a choice of upstreams that went to the one that is their conversation's."""
        self.affinity_misses = 0
        self.retries: dict[Labels, int] = {}
        """By upstream and why."""
        self.failovers: dict[Labels, int] = {}
        """By the upstream that was left and why."""

    def model(self, name: str) -> str:
        """The name as a label."""
        if name in self._models:
            return name
        if len(self._models) < MODELS and len(name) <= 100 and name.isprintable():
            self._models.add(name)
            return name
        return OTHER

    def fold(self, call: Call, now: float) -> None:
        where = call.upstream or "none", self.model(call.model or "none")
        traffic = self._traffic.get(where)
        if traffic is None:
            traffic = self._traffic[where] = _Traffic()
        traffic.add(call, now)
        self._wait[call.lane].add(call.wait_s)
        if call.collapsed:
            _add(self._collapsed, (call.collapsed,), 1)
            _add(self._saved, (call.collapsed,), call.saved_usd)

    def note_affinity(self, *, hit: bool) -> None:
        """A call that could have gone to several upstreams was answered by the first, or not."""
        if hit:
            self.affinity_hits += 1
        else:
            self.affinity_misses += 1

    def meters(self) -> Iterable[Meter]:
        where, traffic = ("upstream", "model"), tuple(self._traffic.items())
        calls = {
            (*key, ending, str(status)): number
            for key, one in traffic
            for (ending, status), number in tuple(one.ended.items())
        }
        tokens = {(*key, kind): number for key, one in traffic for kind, number in one.tokens.items() if number}
        cost = {key: one.cost_usd for key, one in traffic if one.cost_usd}
        yield _counter("orchestrator_calls_total", "Model calls.", (*where, "ending", "status"), calls)
        yield _counter("orchestrator_tokens_total", "Tokens of model calls.", (*where, "kind"), tokens)
        yield _counter("orchestrator_inference_cost_usd_total", "Cost of model calls, USD.", where, cost)
        yield _counter(
            "orchestrator_dedup_hits_total", "Calls that shared another's answer.", ("kind",), self._collapsed
        )
        yield _counter(
            "orchestrator_saved_usd_total", "What avoided calls would have cost, USD.", ("kind",), self._saved
        )
        yield _counter("orchestrator_retries_total", "Calls sent up once more.", ("upstream", "why"), self.retries)
        yield _counter("orchestrator_failovers_total", "Calls sent elsewhere.", ("upstream", "why"), self.failovers)
        hits, misses = {(): self.affinity_hits}, {(): self.affinity_misses}
        about = "Calls that went to the upstream that keeps their conversation warm."
        yield _counter("orchestrator_session_affinity_hits_total", about, (), hits)
        about = "Calls that had to go to another one."
        yield _counter("orchestrator_session_affinity_misses_total", about, (), misses)
        first, took, wait = "Seconds to the first byte.", "Seconds from first to last byte.", "Seconds of waiting."
        firsts = {key: one.first for key, one in traffic}
        tooks = {key: one.took for key, one in traffic}
        waits: dict[Labels, Histogram] = {(lane.name.lower(),): one for lane, one in self._wait.items()}
        yield _histogram("inference_time_to_first_token_seconds", first, where, firsts)
        yield _histogram("orchestrator_call_duration_seconds", took, where, tooks)
        yield _histogram("orchestrator_call_wait_seconds", wait, ("lane",), waits)


def standing_meters(
    inference: Stage,
    stations: Sequence[Station],
    now: float,
    loop_now: float,
    more: Iterable[tuple[str, Stage]],
) -> Iterable[Meter]:
    """How doors, limits and breakers stand at this moment: a reading of the clock, and one of the loop's, which doors go by."""
    doors = [("inference", inference), *more, *((station.door.name, station.door) for station in stations)]
    depth = {(name, lane.name.lower()): float(door.waiting[lane]) for name, door in doors for lane in Lane}
    inside = {(name,): float(door.inside) for name, door in doors}
    passed = {(name,): float(sum(door.entered)) for name, door in doors}
    shed = {(name, why.value): float(count) for name, door in doors for why, count in door.shed.items() if count}
    waited = {(name,): door.waited_s for name, door in doors}
    yield _counter("orchestrator_requests_total", "Calls that passed a stage's door.", ("stage",), passed)
    yield _counter("orchestrator_requests_shed_total", "Calls that a stage turned away.", ("stage", "why"), shed)
    yield _counter("orchestrator_stage_wait_seconds_total", "Seconds waited at a stage's door.", ("stage",), waited)
    longest = {(name,): door.longest_wait_s(loop_now) for name, door in doors}
    about = "Seconds that the oldest call has waited at a stage's door."
    yield _gauge("orchestrator_stage_longest_wait_seconds", about, ("stage",), longest)
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
    kept_away = {(one.name, model): count for one in stations for model, count in one.kept_away.items()}
    about = "Calls that found a breaker open and had to wait."
    name = "orchestrator_circuit_breaker_requests_rejected_total"
    yield _counter(name, about, ("upstream", "model"), kept_away)
    about = "Breakers: 0 closed, 1 half open, 2 open."
    yield _gauge("orchestrator_circuit_breaker_state", about, ("upstream", "model"), states)


def budget_meters(purses: Iterable[Purse]) -> Iterable[Meter]:
    """What is spent, set aside and allowed, of each budget that stands; ``budget``: of the day, or of the fleet."""
    known = [(purse.budget.value, purse) for purse in purses]
    spent = {(name,): purse.spent_usd for name, purse in known}
    reserved = {(name,): purse.reserved_usd for name, purse in known}
    limits = {(name,): purse.limit_usd for name, purse in known if purse.limit_usd != NO_LIMIT}
    passed = {(name,): max(purse.spent_usd - purse.limit_usd, 0.0) for name, purse in known if (name,) in limits}
    dearer = {(name,): purse.overshoot_usd for name, purse in known}
    labels = ("budget",)
    yield _gauge("orchestrator_budget_spent_usd", "Spent, USD.", labels, spent)
    yield _gauge("orchestrator_budget_reserved_usd", "Set aside for calls under way, USD.", labels, reserved)
    yield _gauge("orchestrator_budget_limit_usd", "Limits that are set, USD.", labels, limits)
    yield _gauge("orchestrator_budget_overshoot_usd", "Spent beyond the limit, USD.", labels, passed)
    about = "What calls cost beyond what was set aside for them, USD."
    yield _gauge("orchestrator_budget_underestimated_usd", about, labels, dearer)


def _add(table: dict[Labels, int] | dict[Labels, float], labels: Labels, more: float) -> None:
    table[labels] = table.get(labels, 0) + more  # type: ignore[assignment]


def _counter(name: str, about: str, labels: Labels, table: Mapping[Any, float]) -> Meter:
    samples = tuple((key, float(value)) for key, value in tuple(table.items()))
    return Meter(name=name, about=about, kind=MeterKind.COUNTER, labels=labels, samples=samples)


def _gauge(name: str, about: str, labels: Labels, table: Mapping[Any, float]) -> Meter:
    return Meter(name=name, about=about, kind=MeterKind.GAUGE, labels=labels, samples=tuple(table.items()))


def _histogram(name: str, about: str, labels: Labels, table: dict[Labels, Histogram]) -> Meter:
    spreads = ((key, value.spread()) for key, value in table.items())
    samples = tuple((key, spread) for key, spread in spreads if spread.count)
    return Meter(name=name, about=about, kind=MeterKind.HISTOGRAM, labels=labels, samples=samples)
