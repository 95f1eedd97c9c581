"""How good a piece of work was, by what is known of it: evidence first, the later and stronger word before the earlier.

Owns one invariant: what says nothing about the work (a refused budget, a broken gate, a lost race for the target, a stop) is no
outcome, neither good nor bad. It never reads a text: judging an answer by its looks is ``policy.quality``'s, for prompts alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from coordinator.domain.attempt import Ending

FAILURES: Final = frozenset(
    {
        Ending.CONTEXT_OVERFLOW,
        Ending.DELETED_TESTS,
        Ending.DENIED,
        Ending.EMPTY,
        Ending.FAILED,
        Ending.GATE_FAILED,
        Ending.LOOPING,
        Ending.OUTSIDE_PATHS,
        Ending.OVER_TIME,
        Ending.OVER_TURNS,
    }
)
"""Endings by the work's own fault. Of the others only ``LANDED`` is an outcome: crashes, limits, logins, memory, stalls and
budgets are about what was around it."""

_FINDING: Final = 0.1
_MOST_FINDINGS: Final = 0.5
_RETRY: Final = 0.1
_UNTESTED: Final = 0.8
"""What is left of a landing that no test could judge."""
_NEAR: Final = 0.2
"""An attempt that was finished and that the gate refused: more than nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known of one attempt. ``findings`` are those that scans after its landing found in its files, ``retries`` the
    attempts before it, ``verdict`` a person's word (None: nobody has judged it)."""

    ending: Ending
    findings: int = 0
    retries: int = 0
    reverted: bool = False
    untested: bool = False
    verdict: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkQuality:
    """``landed`` is the outcome to learn from (None: there is none), ``score`` 0 to 1 (None with it), ``basis`` the evidence that
    decided."""

    basis: str
    landed: bool | None
    score: float | None


class QualityEstimator:
    """By the strongest word there is: a person's, a revert, the gate's."""

    def estimate(self, evidence: Evidence) -> WorkQuality:
        if evidence.verdict is not None and (evidence.ending is Ending.LANDED or evidence.ending in FAILURES):
            return WorkQuality(basis="verdict", landed=evidence.verdict, score=1.0 if evidence.verdict else 0.0)
        if evidence.reverted:
            return WorkQuality(basis="reverted", landed=False, score=0.0)
        if evidence.ending is Ending.LANDED:
            score = 1.0 - min(_FINDING * evidence.findings, _MOST_FINDINGS)
            score *= (1.0 - _RETRY) ** evidence.retries * (_UNTESTED if evidence.untested else 1.0)
            basis = "findings" if evidence.findings else "untested" if evidence.untested else "landed"
            return WorkQuality(basis=basis, landed=True, score=round(score, 3))
        if evidence.ending in FAILURES:
            return WorkQuality(
                basis=evidence.ending.value,
                landed=False,
                score=_NEAR if evidence.ending is Ending.GATE_FAILED else 0.0,
            )
        return WorkQuality(basis=evidence.ending.value, landed=None, score=None)
