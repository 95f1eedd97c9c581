"""What discovery is counted by: findings, scans, and what became of findings.

Owns one invariant: each number is read from the ledger when it is asked for; nothing is counted twice, and a tool that was
never asked has no samples.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING

from coordinator.domain.finding import REPORTING, Severity
from coordinator.domain.meter import Meter, MeterKind
from coordinator.improve.register import FindingRegister

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Mapping

    from coordinator.kit.store import Store

    Labelled = Mapping[tuple[str, ...], float]

_FATES = ("found", "fixed", "reopened", "dismissed")


def discovery_meters(store: Store) -> Iterator[Meter]:
    """Callable from any thread."""
    states: Counter[tuple[str, ...]] = Counter(
        (row["tool"], row["state"], _severity(row)) for row in store.query("findings")
    )
    yield _gauge("findings", "Findings that are known.", ("tool", "state", "severity"), states)
    fates: Counter[tuple[str, ...]] = Counter()
    for row in store.query("finding_days", since=""):
        for fate in _FATES:
            fates[row["tool"], fate] += row[fate]
    yield Meter(
        about="What became of findings.",
        kind=MeterKind.COUNTER,
        labels=("tool", "fate"),
        name="orchestrator_finding_fates_total",
        samples=tuple((labels, float(count)) for labels, count in fates.items()),
    )
    scans = FindingRegister(store).scans().values()
    ok: Labelled = {(fact.tool,): float(fact.status in REPORTING) for fact in scans}
    yield _gauge("scan_ok", "Whether the tool could look the last time it was asked.", ("tool",), ok)
    took: Labelled = {(fact.tool,): fact.took_s for fact in scans}
    yield _gauge("scan_seconds", "How long the last run of the tool took.", ("tool",), took)
    looked: Labelled = {
        (fact.tool,): datetime.fromisoformat(fact.looked_at).timestamp() for fact in scans if fact.looked_at
    }
    yield _gauge("scan_looked_at_seconds", "When the tool last did its work, epoch seconds.", ("tool",), looked)


def _severity(row: sqlite3.Row) -> str:
    return Severity(row["severity"]).name.lower()


def _gauge(name: str, about: str, labels: tuple[str, ...], table: Labelled) -> Meter:
    samples = tuple((key, float(value)) for key, value in table.items())
    return Meter(about=about, kind=MeterKind.GAUGE, labels=labels, name=f"orchestrator_{name}", samples=samples)
