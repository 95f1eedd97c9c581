"""Made-up findings, and a world in which their tasks live."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.domain.finding import Finding, Fix, Place, ScanReport, ScanStatus, Severity
from coordinator.domain.task import SETTLED, TaskState
from coordinator.policy.grouping import AutoTask, GroupLimits
from coordinator.policy.lifecycle import Fold, KnownFinding, fold
from coordinator.policy.placement import Placement, Spooled, place

if TYPE_CHECKING:
    from collections.abc import Mapping

    from coordinator.domain.finding import FindingState

LIMITS = GroupLimits(max_files=3, max_open=4, priority=50)


def finding(path: str = "pkg/a.py", code: str = "F401", number: int = 1, **other: object) -> Finding:
    values: dict[str, object] = {
        "category": "dead code",
        "fingerprint": f"{path}|{code}|{number}",
        "fix": Fix.SAFE,
        "message": f"{code} in words",
        "places": (Place(path=path, line=number),),
        "rule": code,
        "severity": Severity.MEDIUM,
        "tool": "ruff",
    }
    return Finding(**(values | other))  # type: ignore[arg-type]


def scanned(*findings: Finding, **other: object) -> ScanReport:
    values: dict[str, object] = {"tool": "ruff", "status": ScanStatus.SCANNED, "findings": findings}
    return ScanReport(**(values | other))  # type: ignore[arg-type]


class World:
    """What the store, the spool and the ledger would hold."""

    def __init__(self, limits: GroupLimits = LIMITS) -> None:
        self.known: dict[str, KnownFinding] = {}
        self.limits = limits
        self.ours: dict[str, AutoTask] = {}
        self.states: dict[str, TaskState] = {}
        self.taken: set[str] = set()

    def spooled(self) -> Spooled:
        return Spooled(
            fixes={"ruff": {Fix.SAFE}, "audit": {Fix.VERSION}},
            ours=self.ours,
            salts={"ruff": "salt", "audit": "salt"},
            scanned={"ruff", "audit"},
            states=self.states,
            taken=frozenset(self.taken),
        )

    def look(self, report: ScanReport, renames: Mapping[str, str] | None = None) -> Fold:
        completed = {task_id for task_id, state in self.states.items() if state is TaskState.COMPLETED}
        folded = fold(self.known, report, at="now", completed=completed, renames=renames)
        self.known = {mark: one for mark, one in self.known.items() if mark not in folded.dropped}
        self.keep(folded.changed)
        return folded

    def keep(self, changed: tuple[KnownFinding, ...]) -> None:
        self.known |= {one.finding.fingerprint: one for one in changed}

    def settle(self) -> Placement:
        """Place, carry it out, and let the spool tell the ledger."""
        placement = place(tuple(self.known.values()), self.spooled(), self.limits)
        for task_id in placement.remove:
            del self.ours[task_id]
            if self.states.get(task_id) not in {*SETTLED, None}:
                self.states[task_id] = TaskState.CANCELLED
        for group in placement.write:
            self.ours[group.id] = AutoTask(
                essence=group.essence("salt"), files=group.files, id=group.id, key=group.key, priority=group.pinned
            )
            if self.states.get(group.id) in {None, TaskState.CANCELLED}:
                self.states[group.id] = TaskState.PENDING
        self.keep(placement.changed)
        return placement

    def scan(self, *findings: Finding) -> Placement:
        self.look(scanned(*findings))
        return self.settle()

    def state_of(self, one: Finding) -> tuple[FindingState, str]:
        known = self.known[one.fingerprint]
        return known.state, known.task
