"""Work that waits to be judged and landed, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coordinator.domain.attempt import Ending
    from coordinator.domain.check import Verdict
    from coordinator.domain.task import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """``commit`` is the daemon's own snapshot of the attempt's tree, in the user's repository, with parent ``base``.

    ``message`` is the agent's own commit message(s) when it committed, else empty.
    """

    agent: str
    base: str
    commit: str
    generation: int
    message: str = ""
    task: Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """``ending`` is LANDED (then ``commit`` is on the target and ``files`` changed), CONFLICT, EMPTY, OUTSIDE_PATHS,
    DELETED_TESTS, GATE_FAILED, STALE or CRASHED (its snapshot is gone). ``reason`` is one sentence, ``feedback`` the
    text for the next brief.
    """

    candidate: Candidate
    commit: str = ""
    ending: Ending
    feedback: str = ""
    files: tuple[str, ...] = ()
    reason: str
    verdict: Verdict | None = None
