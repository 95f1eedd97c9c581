"""What is remembered of findings and scans, as rows of the store.

Owns one invariant: a row says when a tool last really reported the finding, and a scan's fact whether the tool could look
the last time it was asked. It decides nothing: states come from ``policy.grouping``.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from coordinator.domain.finding import Finding, FindingState, Fix, Place, Severity
from coordinator.domain.task import TaskState
from coordinator.policy.grouping import KnownFinding

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection, Iterable, Mapping

    from coordinator.kit.store import Store

_SCAN = "scan:"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanFact:
    """The last scan with one tool; the fact ``scan:<tool>`` of the store, in JSON.

    ``looked_at`` is the wall time of the last scan whose status was ``scanned``, empty when there never was one;
    ``total`` and ``by_hand`` (findings that no agent of ours can mend safely) are of that one, as are ``options`` (of the
    tool's command line, ``{rule}`` in a rule's place) and ``target_version``.
    """

    at: str
    by_hand: int = 0
    commit: str = ""
    looked_at: str = ""
    options: tuple[str, ...] = ()
    reason: str = ""
    status: str
    target_version: str | None = None
    took_s: float = 0.0
    tool: str
    total: int = 0

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(**{**data, "options": tuple(data["options"])})


class FindingRegister:
    """Reads and writes through one ``Store``; callable from any thread."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def known(self) -> dict[str, KnownFinding]:
        """Everything that was ever found, by fingerprint."""
        return {row["fingerprint"]: _known(row) for row in self._store.query("findings")}

    def keep(self, changed: Collection[KnownFinding], *, seen: Iterable[str] = (), at: str) -> None:
        """Write rows, and for the fingerprints ``seen`` that a tool reported them at ``at``; all or nothing."""
        with self._store.transaction():
            self._store.execute_many("finding_put", [_row(one, at) for one in changed])
            self._store.execute_many("finding_seen", [{"fingerprint": mark, "at": at} for mark in seen])

    def scans(self) -> dict[str, ScanFact]:
        """The last scan with each tool."""
        rows = self._store.query("facts")
        facts = [ScanFact.from_json(json.loads(row["value"])) for row in rows if row["key"].startswith(_SCAN)]
        return {fact.tool: fact for fact in facts}

    def keep_scan(self, fact: ScanFact) -> None:
        self._store.execute("fact_put", key=f"{_SCAN}{fact.tool}", value=json.dumps(asdict(fact)))

    def task_states(self, tools: Iterable[str]) -> dict[str, TaskState]:
        """States of all tasks whose id begins with a tool's name."""
        return {
            row["id"]: TaskState(row["state"])
            for tool in tools
            for row in self._store.query("task_states", low=f"{tool}-", high=f"{tool}.")
        }

    def task_state(self, task_id: str) -> TaskState | None:
        rows = self._store.query("task_get", id=task_id)
        return TaskState(rows[0]["state"]) if rows else None


def _known(row: sqlite3.Row) -> KnownFinding:
    data = json.loads(row["data"])
    finding = Finding(
        category=data["category"],
        evidence=data["evidence"],
        fingerprint=row["fingerprint"],
        fix=Fix(row["fix"]),
        message=row["message"],
        place=Place(path=row["path"], line=row["line"]),
        rule=row["rule"],
        severity=Severity(row["severity"]),
        suggestion=data["suggestion"],
        tool=row["tool"],
        url=data["url"],
    )
    state = FindingState(row["state"])
    return KnownFinding(finding=finding, state=state, task=row["task"], reason=row["reason"], returns=data["returns"])


def _row(one: KnownFinding, at: str) -> dict[str, Any]:
    finding = one.finding
    data = {
        "category": finding.category,
        "evidence": finding.evidence,
        "returns": one.returns,
        "suggestion": finding.suggestion,
        "url": finding.url,
    }
    return {
        "data": json.dumps(data),
        "fingerprint": finding.fingerprint,
        "first_seen": at,
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
