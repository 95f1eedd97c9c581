"""What the gateway counts, folded from calls that are over and read from what runs.

Owns one invariant: a label's values are bounded, whatever callers send: a model is named if the settings name it or an
upstream has answered for it, up to ``MODELS`` of these; all others are "other". The names are the seed's where it had one.
Prices, limits and stages are others'; this only counts.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Final

from coordinator.domain.lane import Lane
from coordinator.domain.meter import Meter, MeterKind, Spread
from coordinator.gateway.calls import CallEnding
from coordinator.policy.budget import NO_LIMIT
from coordinator.policy.circuit_breaker import CallFault, CircuitState
from coordinator.policy.learned_limit import UNLIMITED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from coordinator.domain.settings import GatewaySettings
    from coordinator.gateway.calls import Call
    from coordinator.gateway.deduplicator import DedupCounts
    from coordinator.gateway.prompt_sharing import SharingCounts
    from coordinator.gateway.response_cache import CacheCounts
    from coordinator.gateway.station import Station
    from coordinator.kit.stage import Stage
    from coordinator.policy.budget import Purse

MODELS: Final = 50
"""Named because an upstream answered for them; those of the settings come on top."""
NO_MODEL: Final = "none"
OTHER: Final = "other"

_NO_ERROR: Final = frozenset({CallEnding.LEFT, CallEnding.REVOKED, CallEnding.SERVED})
"""Who hangs up, or is stopped with its attempt, has met with no error."""

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

    def __init__(self, known: Iterable[str] = ()) -> None:
        """``known``: models that may be named from the start."""
        self._known = frozenset({*known, NO_MODEL})
        self._models: set[str] = set()
        self._errors: dict[Labels, int] = {}
        self._expired: dict[Labels, int] = {}
        self._faults: dict[Labels, int] = {}
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
        """The name as a label. What somebody made up, and no upstream knows, makes no series."""
        return name if name in self._models or name in self._known else OTHER

    def _answered_for(self, name: str) -> None:
        if len(self._models) < MODELS and name and len(name) <= 100 and name.isprintable():
            self._models.add(name)

    def fold(self, call: Call, now: float) -> None:
        if 200 <= call.status < 300 and call.upstream and call.model not in self._models:
            self._answered_for(call.model)
        if error := _error_of(call):
            _add(self._errors, (error,), 1)
        where = call.upstream or "none", self.model(call.model or NO_MODEL)
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

    def note_expired(self, stage: str) -> None:
        """A call's time was over while it waited there, or would have been before it could go on."""
        _add(self._expired, (stage,), 1)

    def note_fault(self, upstream: str, fault: CallFault) -> None:
        """One try of a call ended so."""
        _add(self._faults, (upstream, fault.value), 1)

    def _error_meters(self) -> Iterable[Meter]:
        yield _counter("orchestrator_errors_total", "Calls that ended with an error.", ("err_type",), self._errors)
        about, labels = "Tries at an upstream that failed, each of them.", ("worker", "error_kind")
        yield _counter("orchestrator_worker_errors_total", about, labels, self._faults)
        late = {(name,): count for (name, fault), count in self._faults.items() if fault == CallFault.TIMEOUT.value}
        about = "Tries that were ended because nothing came of them for too long."
        yield _counter("orchestrator_inference_timeouts_total", about, ("upstream",), late)
        about = "Calls whose time was over before a stage let them on."
        yield _counter("orchestrator_requests_expired_total", about, ("stage",), self._expired)

    def meters(self) -> Iterable[Meter]:
        yield from self._error_meters()
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
    """How doors and limits stand at this moment: a reading of the clock, and one of the loop's, which doors go by."""
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
    upstream = ("upstream",)
    yield _gauge("orchestrator_upstream_limit", "Calls that an upstream was found to hold.", upstream, limits)
    yield _gauge("orchestrator_upstream_in_flight", "Calls under way at an upstream.", upstream, flight)
    yield _gauge(
        "orchestrator_upstream_closed_seconds", "Seconds for which an upstream takes no call.", upstream, closed
    )


def breaker_meters(stations: Sequence[Station], meters: Meters) -> Iterable[Meter]:
    """How breakers stand. Of models that have no series of their own the worst state is shown, and what they counted together."""
    kept_away: dict[Labels, int] = {}
    states: dict[Labels, float] = {}
    changes = {(one.name, state.value): count for one in stations for state, count in one.circuit_changes.items()}
    for one in stations:
        for model, count in one.kept_away.items():
            _add(kept_away, (one.name, meters.model(model or NO_MODEL)), count)
        for model, breaker in one.breakers.items():
            key = one.name, meters.model(model or NO_MODEL)
            states[key] = max(states.get(key, 0.0), float(_STATES[breaker.state]))
    about = "Calls that found a breaker open and had to wait."
    name = "orchestrator_circuit_breaker_requests_rejected_total"
    yield _counter(name, about, ("upstream", "model"), kept_away)
    about = "Breakers: 0 closed, 1 half open, 2 open."
    yield _gauge("orchestrator_circuit_breaker_state", about, ("upstream", "model"), states)
    name = "orchestrator_circuit_breaker_state_transitions_total"
    yield _counter(name, "Times that breakers came into a state.", ("upstream", "state"), changes)


def sharing_meters(calls: DedupCounts, prompts: SharingCounts) -> Iterable[Meter]:
    """Of who waited for another's answer, what became of the wait."""
    unblocked = {("relay", landing.value): count for landing, count in calls.unblocked.items()}
    for how, count in (("whole", prompts.identical), ("alone", prompts.alone), ("again", prompts.again)):
        if count:
            unblocked["prompt", how] = count
    about = "Calls that waited for another's answer and do so no more, by what they got of it."
    yield _counter("orchestrator_dedup_waiters_unblocked_total", about, ("lane", "how"), unblocked)
    about = "Calls that were not offered to others, because the table was full."
    yield _counter("orchestrator_dedup_crowded_total", about, (), {(): calls.crowded})


def cache_meters(counts: CacheCounts, held_bytes: int) -> Iterable[Meter]:
    """Of answers that are given again. A miss is counted where one could have been kept."""
    yield _counter("orchestrator_cache_hits_total", "Answers that were given again.", (), {(): counts.hits})
    yield _counter("orchestrator_cache_misses_total", "Answers that were looked for.", (), {(): counts.misses})
    forgotten = {("evicted",): counts.evicted, ("expired",): counts.expired}
    yield _counter("orchestrator_cache_forgotten_total", "Answers that were let go.", ("why",), forgotten)
    yield _gauge("orchestrator_cache_bytes", "Memory of kept answers.", (), {(): held_bytes})


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


def named_models(settings: GatewaySettings) -> set[str]:
    """Models that a person wrote down, by their own names."""
    written = [*settings.aliases.values(), *(model for one in settings.upstreams for model in one.models)]
    return {model for model in written if not set("*?[") & set(model)}


def _error_of(call: Call) -> str:
    """What kind; empty: it ended well, or as its caller wanted."""
    if call.ending is CallEnding.SERVED and call.status >= 400:  # the upstream's own word, passed on
        return "status_4xx" if call.status < 500 else "status_5xx"
    return "" if call.ending in _NO_ERROR else call.ending.value


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
