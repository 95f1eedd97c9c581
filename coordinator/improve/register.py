"""What is remembered of findings and scans, as rows of the store.

Owns one invariant: a row says when a tool last really reported the finding, and a scan's fact whether the tool could look
the last time it was asked. It decides nothing: states come from ``policy.grouping``.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from coordinator.domain.finding import Finding, FindingState, Fix, Place, Severity
from coordinator.domain.task import TaskState
from coordinator.policy.grouping import id_prefix
from coordinator.policy.lifecycle import KnownFinding

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection, Iterable, Mapping
    from datetime import datetime

    from coordinator.kit.store import Store

_LISTS: Final = ("advisories", "links")
_PLAIN: Final = (
    *("about", "category", "cvss", "evidence", "fix_version", "installed", "kind", "ordinal", "package", "scope"),
    "suggestion",
)
"""What of a finding has no column of its own."""
_SCAN: Final = "scan:"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanFact:
    """The last scan with one tool; the fact ``scan:<tool>`` of the store, in JSON.

    ``looked_at`` is the wall time of the last scan in which the tool did its work, empty when there never was one; ``total``
    and ``by_hand`` (findings that no agent of ours can mend safely) are of that one, as are ``commit``, ``options`` (of the
    tool's command line, ``{rule}`` in a rule's place), ``version`` and ``inputs`` (what its answer depends on, as a hash).
    """

    at: str
    by_hand: int = 0
    commit: str = ""
    inputs: str = ""
    looked_at: str = ""
    options: tuple[str, ...] = ()
    reason: str = ""
    remedy: str = ""
    status: str
    took_s: float = 0.0
    tool: str
    total: int = 0
    version: str = ""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        known = {name: data[name] for name in cls.__dataclass_fields__ if name in data}
        return cls(**{**known, "options": tuple(data.get("options", ()))})


class FindingRegister:
    """Reads and writes through one ``Store``; callable from any thread."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def known(self) -> dict[str, KnownFinding]:
        """Everything that was ever found, by fingerprint."""
        return {row["fingerprint"]: _known(row) for row in self._store.query("findings")}

    def keep(
        self, changed: Collection[KnownFinding], *, seen: Iterable[str] = (), dropped: Iterable[str] = (), at: str
    ) -> None:
        """Write rows, forget those ``dropped``, and for the fingerprints ``seen`` that a tool reported them at ``at``; all or
        nothing."""
        with self._store.transaction():
            self._store.execute_many("finding_drop", [{"fingerprint": mark} for mark in dropped])
            self._store.execute_many("finding_put", [_row(one, at) for one in changed])
            self._store.execute_many("finding_seen", [{"fingerprint": mark, "at": at} for mark in seen])

    def scans(self) -> dict[str, ScanFact]:
        """The last scan with each tool."""
        rows = self._store.query("facts")
        facts = [ScanFact.from_json(json.loads(row["value"])) for row in rows if row["key"].startswith(_SCAN)]
        return {fact.tool: fact for fact in facts}

    def keep_scan(self, fact: ScanFact) -> None:
        self._store.execute("fact_put", key=f"{_SCAN}{fact.tool}", value=json.dumps(asdict(fact)))

    def follow(self, task_id: str, *, old: FindingState, new: FindingState) -> None:
        """The findings of a task go from one state to the other with it."""
        self._store.execute("finding_in_hands", task=task_id, old=old, new=new)

    def count_day(self, at: datetime, tool: str, **counts: int) -> None:
        """Add to what is known of the day; ``counts`` are of ``found``, ``fixed``, ``reopened`` and ``dismissed``."""
        if any(counts.values()):
            row = {"found": 0, "fixed": 0, "reopened": 0, "dismissed": 0, **counts}
            self._store.execute("finding_day_add", day=at.date().isoformat(), tool=tool, **row)

    def forget(self, before: datetime) -> None:
        """Drop what was fixed and not seen since, and the counts of days before; a person's dismissals are kept."""
        with self._store.transaction():
            self._store.execute("findings_trim", before=before.isoformat())
            self._store.execute("finding_days_trim", before=before.date().isoformat())

    def task_states(self, tools: Iterable[str]) -> dict[str, TaskState]:
        """States of all tasks whose id begins as those of the tools do."""
        return {
            row["id"]: TaskState(row["state"])
            for tool in tools
            for row in self._store.query("task_states", low=f"{id_prefix(tool)}-", high=f"{id_prefix(tool)}.")
        }

    def task_state(self, task_id: str) -> TaskState | None:
        rows = self._store.query("task_get", id=task_id)
        return TaskState(rows[0]["state"]) if rows else None


def _known(row: sqlite3.Row) -> KnownFinding:
    data = json.loads(row["data"])
    plain: dict[str, Any] = {name: data[name] for name in _PLAIN} | {name: tuple(data[name]) for name in _LISTS}
    finding = Finding(
        **plain,
        fingerprint=row["fingerprint"],
        fix=Fix(row["fix"]),
        message=row["message"],
        places=tuple(Place(path=path, line=line, column=column) for path, line, column in data["places"]),
        rule=row["rule"],
        severity=Severity(row["severity"]),
        tool=row["tool"],
    )
    return KnownFinding(
        closed_at=data["closed_at"],
        finding=finding,
        first_seen=row["first_seen"],
        fixed_by=data["fixed_by"],
        reason=row["reason"],
        returns=data["returns"],
        state=FindingState(row["state"]),
        task=row["task"],
    )


def _row(one: KnownFinding, at: str) -> dict[str, Any]:
    finding = one.finding
    data = {name: getattr(finding, name) for name in (*_PLAIN, *_LISTS)}
    data["places"] = [(place.path, place.line, place.column) for place in finding.places]
    data |= {"closed_at": one.closed_at, "fixed_by": one.fixed_by, "returns": one.returns}
    return {
        "data": json.dumps(data),
        "fingerprint": finding.fingerprint,
        "first_seen": one.first_seen or at,
        "fix": finding.fix,
        "last_seen": at,
        "line": finding.place.line,
        "message": finding.message,
        "path": finding.place.path,
        "reason": one.reason,
        "rule": finding.rule,
        "severity": int(finding.severity),
        "state": one.state,
        "task": one.task,
        "tool": finding.tool,
    }
