"""What the watch sees, for whoever scrapes: telemetry of the last minutes, and incidents.

Owns one invariant: what has no sample in the window is not among the samples; it is not zero. It reads a view that is never
changed, so any thread may ask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from coordinator.domain.incident import AlarmLevel
from coordinator.domain.meter import Meter, MeterKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from coordinator.control.telemetry_bus import TelemetryView

    Labelled = Mapping[tuple[str, ...], float]

_RATES: Final[Mapping[str, str]] = {
    "agents_busy": "Attempts under way.",
    "cache_rate": "Share of calls that the cache answered.",
    "calls_per_s": "Model calls that ended, per second.",
    "cost_usd_per_min": "What calls cost, USD per minute.",
    "dedup_rate": "Share of calls that shared another's answer.",
    "error_rate": "Share of calls that ended with an error, whosever it was.",
    "fault_rate": "Share of answers that were an upstream's fault.",
    "gate_pass_rate": "Share of gate verdicts that passed.",
    "landing_rate": "Share of attempts that landed, of those that their work decided.",
    "shed_rate": "Share of calls that were turned away.",
    "tokens_per_s": "Output tokens of calls that ended, per second.",
}
_QUANTILES: Final = ("p50", "p95", "p99")


def telemetry_meters(view: TelemetryView) -> Iterator[Meter]:
    for key, about in _RATES.items():
        table: Labelled = {
            (window,): figures[key] for window, figures in view.figures.items() if figures[key] is not None
        }
        yield _gauge(f"telemetry_{key}", about, ("window",), table)
    spreads: dict[tuple[str, ...], float] = {}
    for window, figures in view.figures.items():
        for metric, values in figures["spreads"].items():
            spreads.update({(window, metric, name): values[name] for name in _QUANTILES if values is not None})
    yield _gauge("telemetry_seconds", "Quantiles of durations.", ("window", "metric", "quantile"), spreads)
    depth: Mapping[str, Any] = view.figures.get("1m", {}).get("depth", {})
    stages: Labelled = {(stage,): value for stage, value in depth.items()}
    yield _gauge("telemetry_depth", "Tasks by the stage they are at.", ("stage",), stages)
    levels: Labelled = {(level.value,): sum(one.level is level for one in view.open) for level in AlarmLevel}
    yield _gauge("incidents_open", "Incidents that go on.", ("level",), levels)
    yield Meter(
        about="Incidents that began since the daemon did.",
        kind=MeterKind.COUNTER,
        name="orchestrator_incidents_total",
        samples=(((), float(view.begun)),),
    )
    yield _gauge("metrics_watched", "Metrics that detectors watch.", (), {(): view.watched})


def _gauge(name: str, about: str, labels: tuple[str, ...], table: Labelled) -> Meter:
    samples = tuple((key, float(value)) for key, value in table.items())
    return Meter(about=about, kind=MeterKind.GAUGE, labels=labels, name=f"orchestrator_{name}", samples=samples)
