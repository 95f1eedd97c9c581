"""What follows when an attempt did not land: again, when, and whether it is charged to the task.

A decision is a value; the steward carries it out. Chance comes in as an argument.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from coordinator.domain.attempt import Ending

LONGEST_PAUSE_S: Final = 300.0
"""Cap of the exponential back-off; longer pauses only hide a task that needs a person."""

UNCHARGED: Final = frozenset({Ending.CONFLICT, Ending.STALE, Ending.STOPPED, Ending.UNAVAILABLE})
"""Endings that are nobody's fault: the target moved, another owner took over, a person stopped the run, what the agent
needs was not there (exit code 75, or its role is being probed). (A gate
that cannot look ends no attempt: it waits in the line.)"""

UNCHARGED_FACTOR: Final = 5
"""No task may use more than this many times its allowed attempts, charged or not: nothing loops for ever."""

_JITTER: Final = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryDecision:
    """``after_s`` is meaningful when ``again``; ``attempts`` is the count of charged attempts from now on."""

    after_s: float
    again: bool
    attempts: int
    why: str


def decide(
    ending: Ending, *, attempts: int, tries: int, max_attempts: int, backoff_s: float, chance: float
) -> RetryDecision:
    """Decide about an attempt that ended as ``ending``.

    ``attempts`` are those charged before this one (-1: not even this one counts), ``tries`` counts all since the task
    was last started anew, ``chance`` is uniform in [0, 1). The pause is ``backoff_s · 2^(n-1)``, capped, with ±25 %
    jitter ("equal jitter", AWS Architecture Blog 2015) so that tasks that failed together do not come back together.
    """
    charged = max(attempts + (ending not in UNCHARGED), 0)
    if charged >= max_attempts and ending not in UNCHARGED:
        plural = "" if max_attempts == 1 else "s"
        return RetryDecision(
            after_s=0.0, again=False, attempts=charged, why=f"{charged} of {max_attempts} attempt{plural} used"
        )
    if tries >= max_attempts * UNCHARGED_FACTOR:
        return RetryDecision(after_s=0.0, again=False, attempts=charged, why=f"{tries} attempts in all, none landed")
    pause = min(backoff_s * 2.0 ** max(charged - 1, 0), LONGEST_PAUSE_S)
    pause *= 1 - _JITTER + 2 * _JITTER * chance
    return RetryDecision(after_s=pause, again=True, attempts=charged, why=f"attempt {charged} of {max_attempts}")
