"""What can be seen of an attempt that is under way, as its runner writes it beside the heartbeat.

Owns one invariant: times are this boot's monotonic clock (``time.monotonic``, one clock for all processes of a host), so
a daemon that was restarted reads the same ages as the one before. It is evidence; ``policy.health`` judges it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from coordinator.domain.record import Record


class Doing(enum.StrEnum):
    """What the agent does, as far as its output tells. ``working`` is all that is known of one whose output is plain."""

    FINISHED = "finished"
    STARTING = "starting"
    THINKING = "thinking"
    USING_TOOL = "using_tool"
    WORKING = "working"


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals(Record):
    """``*_at`` and ``*_since`` are monotonic seconds of the boot ``boot``.

    ``progress_at``: its output last grew. ``busy_at``: its processes together last used ``BUSY_CORES`` of a core.
    ``changed_at``: a file of its working tree last changed, as far as that was looked at.
    ``tool`` is in flight while ``doing`` is ``using_tool``, for ``tool_limit_s`` at most (0: it declared no time-out).
    ``repeats``: how often the newest call (same tool, same input, same answer), or the same round of a few calls, was made in
    a row; ``repeating_since`` its second time (0: not told).
    ``memory_bytes`` and ``processes`` are those of the whole tree, ``cpu_s`` what it has used so far.
    """

    boot: str = ""
    busy_at: float = 0.0
    changed_at: float = 0.0
    cost_usd: float = 0.0
    cpu_s: float = 0.0
    doing: str = Doing.STARTING
    doing_since: float = 0.0
    memory_bytes: int = 0
    processes: int = 0
    progress_at: float = 0.0
    repeating_since: float = 0.0
    repeats: int = 0
    seen_at: float = 0.0
    started_at: float = 0.0
    tool: str = ""
    tool_limit_s: float = 0.0
    turns: int = 0

    @property
    def doing_s(self) -> float:
        """For how long it had been doing that when it was last looked at."""
        return max(0.0, self.seen_at - self.doing_since)

    @property
    def quiet_s(self) -> float:
        """For how long nothing of it had moved when it was last looked at."""
        return max(0.0, self.seen_at - max(self.progress_at, self.busy_at, self.changed_at))


BUSY_CORES = 0.05
"""Share of one core from which on a tree counts as busy. A coding agent that only waits for its model uses 0.01."""
