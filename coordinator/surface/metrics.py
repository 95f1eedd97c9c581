"""The numbers of the house in Prometheus' text format.

Owns one invariant: what it prints is what it was given; nothing is counted here. It serves nothing: who has an address to
be scraped at calls ``exposition``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from coordinator.domain.meter import MeterKind, Spread

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from coordinator.domain.meter import Meter


def exposition(meters: Iterable[Meter]) -> tuple[bytes, str]:
    """Body and content type."""
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Given(meters))
    return generate_latest(registry), CONTENT_TYPE_LATEST


class _Given:
    """What prometheus_client calls a collector."""

    def __init__(self, meters: Iterable[Meter]) -> None:
        self._meters = meters

    def collect(self) -> Iterator[Any]:
        for meter in self._meters:
            yield _family(meter)


def _family(meter: Meter) -> Any:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    kinds = {
        MeterKind.COUNTER: CounterMetricFamily,
        MeterKind.GAUGE: GaugeMetricFamily,
        MeterKind.HISTOGRAM: HistogramMetricFamily,
    }
    family: Any = kinds[meter.kind](meter.name, meter.about, labels=meter.labels)
    for labels, value in meter.samples:
        if isinstance(value, Spread):
            family.add_metric(labels, _buckets(value), value.total)
        else:
            family.add_metric(labels, value)
    return family


def _buckets(spread: Spread) -> list[tuple[str, int]]:
    """Summed up, as the format wants them."""
    found, seen = [], 0
    for bound, count in zip((*map(str, spread.bounds), "+Inf"), spread.counts, strict=True):
        seen += count
        found.append((bound, seen))
    return found
