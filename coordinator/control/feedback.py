"""Joins what became of work to the decision that caused it, also hours later: landed, refused, reverted, judged by a person.

Owns one invariant: an outcome is learnt from once. When a stronger word changes it (a revert, a verdict), that word counts
twice: once for what it takes back, once for itself. What is no outcome is written down and not learnt from.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from coordinator.domain.attempt import Ending
from coordinator.domain.errors import BadInput
from coordinator.domain.event import AttemptEnded, CallsCounted, FindingsFolded, TaskLanded
from coordinator.domain.problem import Problem
from coordinator.policy.evidence import Evidence, QualityEstimator

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

    from coordinator.control.model_router import ModelRouter
    from coordinator.domain.event import Published
    from coordinator.kit.clock import Clock
    from coordinator.kit.git import Git
    from coordinator.kit.store import Store

_REVERTS: Final = re.compile(r"\bThis reverts commit ([0-9a-f]{7,64})\b")
_SEEN: Final = "reverts_seen"
_REMEMBERED: Final = 200
_WATCHED: Final = timedelta(hours=2)
"""For so long after a landing, new findings in its files are put down to it."""


class FeedbackCollector:
    """A tap on the bus, and what a person or a look at the target's history says."""

    def __init__(self, store: Store, clock: Clock, router: ModelRouter) -> None:
        self._clock = clock
        self._costs: dict[tuple[str, int], float] = {}
        self._estimator = QualityEstimator()
        self._landings: dict[tuple[str, int], tuple[Published, int]] = {}
        self._router = router
        self._store = store

    def take(self, published: Published) -> None:
        """An event; most are none of ours."""
        event = published.event
        if isinstance(event, CallsCounted):
            self._costs[event.task, event.generation] = event.cost_usd
            while len(self._costs) > _REMEMBERED:
                self._costs.pop(next(iter(self._costs)))
        elif isinstance(event, AttemptEnded):
            self._ended(event)
        elif isinstance(event, TaskLanded):
            self._landed(published, event)
        elif isinstance(event, FindingsFolded) and event.opened:
            self._look_for_findings()

    async def follow(self, git: Git, target: str) -> None:
        """Look at what is new on the target since the last look: a commit that reverts a landing says that it was none."""
        tip = await git.resolve(f"refs/heads/{target}")
        rows = self._store.query("fact_get", key=_SEEN)
        seen = json.loads(rows[0]["value"]) if rows else ""
        if tip is None or tip == seen:
            return
        if await git.resolve(seen) is not None:
            output = await git.run("log", "--format=%B%x00", "--end-of-options", f"{seen}..{tip}")
            self.reverted(output.stdout.decode(errors="replace").split("\0"))
        self._store.execute("fact_put", key=_SEEN, value=json.dumps(tip))

    def reverted(self, messages: Iterable[str]) -> int:
        """``messages`` of commits that are new on the target: those that revert a landing undo its outcome. How many did."""
        undone = 0
        for commit in (found for message in messages for found in _REVERTS.findall(message)):
            for row in self._store.query("decisions_landed_as", commit=commit):
                self._revise(row, replace(_evidence_of(row), reverted=True))
                undone += 1
        return undone

    def judge(self, task: str, good: bool) -> str:
        """A person's word on the last attempt at a task that had an outcome; returns what it did. Raises ``BadInput``."""
        rows = [row for row in self._store.query("decisions_of", task=task) if row["landed"] is not None]
        if not rows:
            raise BadInput([Problem(file=task, message="no attempt at it has an outcome that the router chose")])
        self._revise(rows[-1], replace(_evidence_of(rows[-1]), verdict=good))
        return str(rows[-1]["arm"])

    def _ended(self, event: AttemptEnded) -> None:
        row = self._find(event.task, event.generation)
        if row is None or row["outcome"]:
            return
        evidence = Evidence(ending=Ending(event.ending), retries=row["attempt"])
        cost = self._costs.pop((event.task, event.generation), 0.0) or self._told_usd(event.task, event.generation)
        self._write(row, evidence, cost_usd=cost, took_s=event.took_s)
        quality = self._estimator.estimate(evidence)
        if quality.landed is not None:
            self._router.learn(row, quality.landed)

    def _landed(self, published: Published, event: TaskLanded) -> None:
        row = self._find(event.task, event.generation)
        if row is None:
            return
        if event.untested:
            self._revise(row, replace(_evidence_of(row), untested=True))
        self._landings[event.task, event.generation] = published, 0
        while len(self._landings) > _REMEMBERED:
            self._landings.pop(next(iter(self._landings)))

    def _look_for_findings(self) -> None:
        """New findings in the files of recent landings count against them."""
        oldest = self._clock.now() - _WATCHED
        recent = {key: seen for key, seen in self._landings.items() if seen[0].at >= oldest}
        self._landings = recent
        for (task, generation), (published, before) in list(recent.items()):
            event = published.event
            assert isinstance(event, TaskLanded)
            since = published.at.isoformat()
            found = sum(row["path"] in event.files for row in self._store.query("findings_since", since=since))
            row = self._find(task, generation)
            if found > before and row is not None:
                self._landings[task, generation] = published, found
                self._revise(row, replace(_evidence_of(row), findings=found))

    def _revise(self, row: sqlite3.Row, evidence: Evidence) -> None:
        quality = self._estimator.estimate(evidence)
        self._write(row, evidence, cost_usd=row["cost_usd"], took_s=row["took_s"])
        if quality.landed is not None and row["landed"] is not None and quality.landed != bool(row["landed"]):
            self._router.learn(row, quality.landed, times=2)

    def _write(self, row: sqlite3.Row, evidence: Evidence, *, cost_usd: float, took_s: float) -> None:
        quality = self._estimator.estimate(evidence)
        self._store.execute(
            "decision_end",
            task=row["task"],
            generation=row["generation"],
            outcome=evidence.ending.value if quality.basis not in ("reverted", "verdict") else quality.basis,
            outcome_at=self._clock.now().isoformat(),
            landed=quality.landed,
            quality=quality.score,
            cost_usd=cost_usd,
            took_s=took_s,
            evidence=json.dumps(asdict(evidence)),
        )

    def _find(self, task: str, generation: int) -> sqlite3.Row | None:
        rows = self._store.query("decision_of", task=task, generation=generation)
        return rows[0] if rows else None

    def _told_usd(self, task: str, generation: int) -> float:
        """What the agent itself said that it spent, where no gateway counts."""
        for row in self._store.query("attempts_of", task=task):
            if row["generation"] == generation:
                return float(row["cost_usd"])
        return 0.0


def _evidence_of(row: sqlite3.Row) -> Evidence:
    data: dict[str, Any] = json.loads(row["evidence"])
    data["ending"] = Ending(data["ending"])
    return Evidence(**data)
