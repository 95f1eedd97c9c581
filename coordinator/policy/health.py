"""Whether an attempt that is still held may go on: what can be seen of it is judged against its limits.

Owns one invariant: an attempt is condemned for a sign only while nothing more recent speaks for it, and what condemns it is
named with its number and its setting. Ages are seconds, measured by whoever looked (``fleet.vigil``), never read from a
wall clock. A diagnosis is a value; stopping somebody is the steward's.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from coordinator.domain.attempt import Ending
from coordinator.domain.vitals import Doing

if TYPE_CHECKING:
    from coordinator.domain.card import RoleCard
    from coordinator.domain.settings import FleetSettings
    from coordinator.domain.task import Task

OVERDUE_S: Final = 30.0
"""Extra time, beside the grace, before what the agent's own runner enforces is enforced from outside."""

GONE_S: Final = 0.75
"""An agent process that is not there for this long is gone; at the first look without it, it may just be letting go."""

TOOL_SLACK_S: Final = 15.0
"""A tool is ended by its own CLI at its limit: SIGTERM, the wait for it, and its answer take this long at most."""

OVERSPENT: Final = 1.1
"""Share of the budget from which on it is enforced from outside: a CLI notices its budget after the call that broke it."""

POLL_S: Final = 10.0
"""Who makes the same call less often than this, on average, waits for something (a build, a job of CI; "sleep 10" is the
shortest wait that agents were seen to choose): a loop does not wait, its calls come as fast as the model answers. While
processes or files move beside it, what it waits for lives, and waiting is no loop however long it takes: of polls, only those
since something last moved count."""

POLLS: Final = 5
"""So many times ``loop_repeats`` polls are a loop, too: with the usual 8, one every 15 s, ten minutes of standstill."""

QUIET_SHARE: Final = 0.5
"""A silence is worth telling when this share of the patience with it is used up."""


class HealthState(enum.StrEnum):
    """What an attempt is like right now."""

    FINISHED_BUT_ALIVE = "finished_but_alive"
    FINISHING = "finishing"
    GONE = "gone"
    LOOPING = "looping"
    OVER_BUDGET = "over_budget"
    OVER_MEMORY = "over_memory"
    OVER_TIME = "over_time"
    QUIET = "quiet"
    STALLED = "stalled"
    STARTING = "starting"
    THINKING = "thinking"
    USING_TOOL = "using_tool"
    WORKING = "working"


TROUBLED: Final = frozenset(HealthState) - {
    HealthState.FINISHING,
    HealthState.STARTING,
    HealthState.THINKING,
    HealthState.USING_TOOL,
    HealthState.WORKING,
}
"""The states that a person may want to hear of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What was seen of one attempt; ages and times are seconds.

    ``dead_s``: for how long its process has been gone while the claim is still held (0: it lives, or nobody can know).
    ``beat_age_s``: since its heartbeat moved. ``run_age_s``: since its command was started, else since it was seen first.
    ``doing``: what it does and for how long, None when it tells nothing of itself; all below means something only if it does.
    ``tool_limit_s``: the time-out that the tool in flight declared (0: none). ``calls``: model calls in flight, the oldest for
    ``call_age_s``, and ``served_age_s`` since one was last in flight; None: no gateway tells. ``progress_age_s``,
    ``busy_age_s`` and ``changed_age_s``: since its output grew, its processes were busy, a file of its tree changed.
    ``heavy_s``: for how long it has had more memory than it may. ``repeat_age_s``: since the second of its ``repeats`` (0: not
    known).
    """

    beat_age_s: float
    busy_age_s: float = 0.0
    call_age_s: float = 0.0
    calls: int | None = None
    changed_age_s: float = 0.0
    cost_usd: float = 0.0
    dead_s: float = 0.0
    doing: Doing | None = None
    doing_age_s: float = 0.0
    heavy_s: float = 0.0
    memory_bytes: int = 0
    progress_age_s: float = 0.0
    repeat_age_s: float = 0.0
    repeats: int = 0
    run_age_s: float
    served_age_s: float = math.inf
    tool: str = ""
    tool_limit_s: float = 0.0

    @property
    def quiet_s(self) -> float:
        """Age of the youngest evidence of life. That a model call ended is evidence, too: its answer is being read."""
        return min(self.progress_age_s, self.busy_age_s, self.changed_age_s, self.served_age_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """The limits of one attempt, from settings, role card and task; 0 in ``budget_usd`` and ``memory_bytes``: no limit.

    ``stall_setting`` names where ``stall_s`` was set.
    """

    budget_usd: float = 0.0
    finish_s: float
    grace_s: float
    loop_repeats: int
    memory_bytes: int = 0
    silence_s: float
    stall_s: float
    stall_setting: str = "[fleet] stall_s"
    think_limit_s: float
    timeout_s: float
    tool_limit_s: float


def thresholds(fleet: FleetSettings, card: RoleCard | None, task: Task | None, *, timeout_s: float) -> Thresholds:
    """A card or a task that is not known (any more) has no limits of its own."""
    own_stall_s = card.stall_s if card is not None else 0.0
    budget_usd = (task.budget_usd if task is not None else 0.0) or (card.budget_usd if card is not None else 0.0)
    return Thresholds(
        budget_usd=budget_usd,
        finish_s=fleet.finish_s,
        grace_s=fleet.grace_s,
        loop_repeats=fleet.loop_repeats,
        memory_bytes=card.memory_bytes if card is not None else 0,
        silence_s=fleet.silence_s,
        stall_s=own_stall_s or fleet.stall_s,
        stall_setting="stall of its role card" if own_stall_s else "[fleet] stall_s",
        think_limit_s=fleet.think_limit_s,
        timeout_s=timeout_s,
        tool_limit_s=fleet.tool_limit_s,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthDiagnosis:
    """``reason`` is one sentence without its full stop. ``condemned``: the attempt is to be stopped, and that is how it ended."""

    condemned: Ending | None = None
    reason: str
    state: HealthState


def judge(seen: Observation, limits: Thresholds) -> HealthDiagnosis:
    """The worst that is true of it; what says nothing of itself is judged by heartbeat and time alone."""
    return (
        _gone(seen, limits)
        or _over_time(seen, limits)
        or _undescribed(seen, limits)
        or _finished(seen, limits)
        or _excessive(seen, limits)
        or _in_flight(seen, limits)
        or _silent(seen, limits)
    )


def _healthy(state: HealthState, reason: str) -> HealthDiagnosis:
    return HealthDiagnosis(reason=reason, state=state)


def _condemned(state: HealthState, ending: Ending, reason: str) -> HealthDiagnosis:
    return HealthDiagnosis(condemned=ending, reason=reason, state=state)


def _gone(seen: Observation, limits: Thresholds) -> HealthDiagnosis | None:
    if seen.dead_s > GONE_S:
        reason = f"its agent process has been gone for {seen.dead_s:.1f} s, and what it started still holds the claim"
        return _condemned(HealthState.GONE, Ending.CRASHED, reason)
    if seen.beat_age_s > limits.silence_s:
        reason = f"no heartbeat for {limits.silence_s:g} s ([fleet] silence_s), stopped"
        return _condemned(HealthState.GONE, Ending.CRASHED, reason)
    return None


def _over_time(seen: Observation, limits: Thresholds) -> HealthDiagnosis | None:
    extra_s = limits.grace_s + OVERDUE_S
    if seen.run_age_s <= limits.timeout_s + extra_s:
        return None
    reason = f"still running {extra_s:.0f} s after its time limit of {limits.timeout_s:g} s (timeout), stopped"
    return _condemned(HealthState.OVER_TIME, Ending.OVER_TIME, reason)


def _undescribed(seen: Observation, limits: Thresholds) -> HealthDiagnosis | None:
    if seen.doing is not None:
        return None
    reason = (
        f"its heartbeat moved {seen.beat_age_s:.0f} s ago; stopped after {limits.silence_s:g} s ([fleet] silence_s)"
    )
    return _healthy(HealthState.WORKING, reason)


def _finished(seen: Observation, limits: Thresholds) -> HealthDiagnosis | None:
    """It has said its last word: its runner ends it after ``finish_s``; a runner that does not is helped."""
    if seen.doing is not Doing.FINISHED:
        return None
    state = HealthState.FINISHING
    if seen.doing_age_s > limits.finish_s * QUIET_SHARE:
        state = HealthState.FINISHED_BUT_ALIVE
    reason = f"it said its last word {seen.doing_age_s:.0f} s ago and may run on for {limits.finish_s:g} s ([fleet] finish_s)"
    if seen.doing_age_s > limits.finish_s + limits.grace_s + OVERDUE_S:
        return _condemned(HealthState.FINISHED_BUT_ALIVE, Ending.STALLED, reason)
    return _healthy(state, reason)


def _excessive(seen: Observation, limits: Thresholds) -> HealthDiagnosis | None:
    polls = _is_polling(seen)
    repeats = _vain_polls(seen) if polls else seen.repeats
    if repeats >= limits.loop_repeats * (POLLS if polls else 1):
        what = f"the same call of {seen.tool}" if seen.tool else "the same call"
        limit = f"[fleet] loop_repeats = {limits.loop_repeats}{f', {POLLS} times as many for polling' if polls else ''}"
        still = " while nothing moved" if polls else ""
        reason = f"{what} with the same answer {repeats} times in a row{still}, alone or in turn with others ({limit})"
        return _condemned(HealthState.LOOPING, Ending.LOOPING, reason)
    if limits.memory_bytes and seen.heavy_s > limits.grace_s + OVERDUE_S:
        had, may = f"{seen.memory_bytes / 2**20:.0f} MiB", f"{limits.memory_bytes / 2**20:.0f} MiB (memory_bytes)"
        reason = f"its processes have {had} in memory, for {seen.heavy_s:.0f} s more than {may}"
        return _condemned(HealthState.OVER_MEMORY, Ending.OVER_MEMORY, reason)
    if limits.budget_usd and seen.cost_usd > limits.budget_usd * OVERSPENT:
        reason = f"it has cost {seen.cost_usd:.2f} USD of {limits.budget_usd:.2f} USD (budget_usd)"
        return _condemned(HealthState.OVER_BUDGET, Ending.OVER_BUDGET, reason)
    return None


def _is_polling(seen: Observation) -> bool:
    """From the second repeat to the newest there is one pause fewer than between all of them."""
    return seen.repeats > 2 and seen.repeat_age_s > POLL_S * (seen.repeats - 2)


def _vain_polls(seen: Observation) -> int:
    """How many of the polls there were, at their average pace, since a process was busy or a file changed."""
    pace_s = seen.repeat_age_s / (seen.repeats - 2)
    return min(seen.repeats, round(min(seen.busy_age_s, seen.changed_age_s) / pace_s) + 2)


def _in_flight(seen: Observation, limits: Thresholds) -> HealthDiagnosis | None:
    """Something is in flight that may be silent for as long as it takes.

    Without a gateway, a CLI's word that it waits for its model is believed for ``think_limit_s`` since its last byte, also when
    ``stall_s`` is shorter: for that long a slow model and a hung CLI look the same, and whoever is stopped for a slow model
    meets the same model again. After that a CLI that works would have given the call up and said so: now silence counts
    like any other, hence a longer ``stall_s`` is kept as it is.
    """
    if seen.calls:
        many = f"{seen.calls} model calls" if seen.calls > 1 else "a model call"
        told = f"{many} in flight for {seen.call_age_s:.0f} s, as the gateway sees"
        reason = f"{told}; {_patience(limits)} does not count meanwhile"
        return _healthy(HealthState.THINKING, reason)
    if seen.doing is Doing.USING_TOOL:
        limit_s, source = seen.tool_limit_s, "its own time-out"
        if limit_s <= 0:
            limit_s, source = limits.tool_limit_s, "[fleet] tool_limit_s"
        if seen.doing_age_s > limit_s + TOOL_SLACK_S:
            return None
        reason = f"{seen.tool or 'a tool'} at work for {seen.doing_age_s:.0f} s of {limit_s:g} s ({source})"
        return _healthy(HealthState.USING_TOOL, reason)
    wait_s = min(seen.doing_age_s, seen.progress_age_s)
    if seen.doing is Doing.THINKING and seen.calls is None and wait_s <= limits.think_limit_s:
        reason = f"waits for its model, {wait_s:.0f} s of {limits.think_limit_s:g} s ([fleet] think_limit_s)"
        return _healthy(HealthState.THINKING, reason)
    return None


def _silent(seen: Observation, limits: Thresholds) -> HealthDiagnosis:
    """Nothing is in flight (any more): it lives by what moves."""
    if seen.quiet_s > limits.stall_s:
        still = f"no output, no processor time and no changed file for {seen.quiet_s:.0f} s"
        reason = f"{_idleness(seen)}: {still} ({_patience(limits)})"
        return _condemned(HealthState.STALLED, Ending.STALLED, reason)
    reason = f"{_idleness(seen)}, and something last moved {seen.quiet_s:.0f} s ago ({_patience(limits)})"
    if seen.quiet_s > limits.stall_s * QUIET_SHARE:
        return _healthy(HealthState.QUIET, reason)
    return _healthy(HealthState((seen.doing or Doing.WORKING).value), reason)


def _idleness(seen: Observation) -> str:
    if seen.doing is Doing.USING_TOOL:
        return f"{seen.tool or 'a tool'} is over its time limit"
    if seen.doing is Doing.THINKING and seen.calls is None:
        return "it waits for its model longer than is believed"
    return "nothing is known to be in flight"


def _patience(limits: Thresholds) -> str:
    return f"{limits.stall_setting} = {limits.stall_s:g}"
