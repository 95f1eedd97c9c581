"""Keeps watch over attempts that are under way: measures what is seen of each into ages, has them judged, tells of changes.

Owns one invariant: a time that an agent wrote down is never taken for later than the look that saw it first, and time in which
nobody here could act (the machine slept, the daemon was frozen) is held against no one. Judging is ``policy.health``'s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from coordinator.domain.event import AgentHealthChanged, ClockStepped
from coordinator.domain.vitals import Doing
from coordinator.fleet.model_access import DirectAccess
from coordinator.kit import lock
from coordinator.kit.bus import Bus
from coordinator.policy import health

if TYPE_CHECKING:
    from coordinator.domain.attempt import ClaimRecord
    from coordinator.domain.settings import FleetSettings
    from coordinator.domain.task import Task
    from coordinator.domain.vitals import Vitals
    from coordinator.fleet.intake import Intake
    from coordinator.fleet.model_access import ModelAccess
    from coordinator.fleet.sighting import Sighting
    from coordinator.kit.clock import Clock
    from coordinator.policy.health import HealthDiagnosis, Observation, Thresholds


STEP_S: Final = 5.0
"""A gap between the ways that wall and monotonic time went since the last turn; less is a clock that is being adjusted."""
LATE_S: Final = 10.0
"""While attempts are under way turns come twice a second; this long without one, the daemon or the machine was frozen."""
_BEATS: Final = 3
"""Of an agent that was never seen alive (it may live where its pid is another one) this many beats must be missing."""
_MOST_STEPS: Final = 64


@dataclass(slots=True, kw_only=True)
class _Watch:
    """What is remembered of one attempt; times are monotonic, as they were read."""

    beat: int
    beat_at: float
    first: float
    dead_at: float | None = None
    diagnosis: HealthDiagnosis | None = None
    heavy_at: float | None = None
    served_at: float | None = None
    started: float | None = None
    told: health.HealthState | None = None
    was_alive: bool = False
    written: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Times that the agent wrote down: the newest value and when it was seen first."""

    def read(self, name: str, value: float, now: float) -> float:
        """A value is no later than the look that saw it first, so that one from the future ages like any other."""
        last, first_seen = self.written.get(name, (None, now))
        if last != value:
            first_seen = now
            self.written[name] = (value, now)
        return min(value, first_seen)


class Vigil:
    """One entry per attempt (task and generation) under way; forgotten when it ends.

    ``access`` tells of model calls that are in flight.
    """

    def __init__(self, clock: Clock, bus: Bus, *, heartbeat_s: float, access: ModelAccess) -> None:
        self._bus = bus
        self._access = access
        self._clock = clock
        self._heartbeat_s = heartbeat_s
        self._host, self._boot, *_ = lock.own_identity()
        self._last: tuple[float, float] | None = None
        self._late = False
        self._steps: list[tuple[float, float]] = []
        """When nobody could act, and for how long: what is older moves up by that, but not past it."""
        self._watches: dict[tuple[str, int], _Watch] = {}

    # -- time --------------------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Once a turn, before anybody is judged: notice time that went on without us, tell of it, and count it for no one."""
        wall, now = self._clock.now().timestamp(), self._clock.monotonic()
        last, self._last = self._last, (wall, now)
        if not self._watches:
            self._steps.clear()
        if last is None:
            return
        passed = now - last[1]
        gap = self._clock_gap(wall - last[0] - passed) + self._delay(passed)
        if gap and self._watches:
            self._steps = [*self._steps[1 - _MOST_STEPS :], (now, gap)]

    def _clock_gap(self, ahead: float) -> float:
        """Wall time that ran ahead is a machine that slept (or a clock that was set): what was in flight then has lost its
        connections and gets its full patience again. A clock that was set back changes nothing."""
        if ahead < -STEP_S:
            self._bus.publish(ClockStepped(gap_s=round(-ahead, 1), how="set_back"))
        if ahead <= STEP_S:
            return 0.0
        self._bus.publish(ClockStepped(gap_s=round(ahead, 1), how="ran_ahead"))
        return ahead

    def _delay(self, passed: float) -> float:
        """A turn that came late is forgiven in full once. One after another, the daemon is slow: then time passes after all."""
        was_late, self._late = self._late, bool(self._watches) and passed > LATE_S
        if not self._late:
            return 0.0
        if was_late:
            return passed - LATE_S
        self._bus.publish(ClockStepped(gap_s=round(passed, 1), how="late_turn"))
        return passed

    def _age(self, at: float, now: float) -> float:
        """Age of a moment, without the time in which nobody could act."""
        for step, gap in self._steps:
            if at < step:
                at = min(at + gap, step)
        return max(0.0, now - at)

    # -- attempts ----------------------------------------------------------------------------------------------------

    def judge(self, attempt: tuple[str, int], seen: Sighting, limits: Thresholds) -> HealthDiagnosis:
        """Note what was seen and say what the attempt is like."""
        now = self._clock.monotonic()
        watch = self._watches.get(attempt)
        if watch is None:
            watch = _Watch(beat=seen.beat, beat_at=now, first=now)
            self._watches[attempt] = watch
        elif watch.beat != seen.beat:
            watch.beat, watch.beat_at = seen.beat, now
        observation = self._with_life(watch, seen.record, now)
        if seen.vitals is not None:
            observation = self._with_vitals(observation, watch, seen.vitals, attempt, limits, now)
        diagnosis = health.judge(observation, limits)
        watch.diagnosis = diagnosis
        self._tell(attempt, watch, diagnosis, seen.record)
        return diagnosis

    def diagnosis(self, task: str, generation: int) -> HealthDiagnosis | None:
        """The latest word on an attempt under way."""
        watch = self._watches.get((task, generation))
        return watch.diagnosis if watch is not None else None

    @property
    def doubts(self) -> bool:
        """Somebody's process was not there at the last look; a second one soon makes sure."""
        return any(watch.dead_at is not None for watch in self._watches.values())

    def forget(self, attempt: tuple[str, int]) -> None:
        self._watches.pop(attempt, None)

    def _with_life(self, watch: _Watch, record: ClaimRecord | None, now: float) -> Observation:
        dead_s = 0.0
        if record is None or not self._is_dead(record):
            watch.dead_at = None
            watch.was_alive = watch.was_alive or (record is not None and self._is_ours(record))
        else:
            watch.dead_at = now if watch.dead_at is None else watch.dead_at
            missing = 0.0 if watch.was_alive else _BEATS * self._heartbeat_s
            dead_s = self._age(max(watch.dead_at, watch.beat_at + missing), now)
        return health.Observation(
            beat_age_s=self._age(watch.beat_at, now), dead_s=dead_s, run_age_s=self._age(watch.first, now)
        )

    def _is_ours(self, record: ClaimRecord) -> bool:
        return record.host == self._host and record.boot == self._boot and bool(record.started)

    def _is_dead(self, record: ClaimRecord) -> bool:
        """Certainly not there; of a process of another host nothing is known."""
        if record.state == "released" or not self._is_ours(record):
            return False
        try:
            return lock.process_start(record.pid) != record.started
        except OSError:
            return False

    def _with_vitals(
        self,
        before: Observation,
        watch: _Watch,
        vitals: Vitals,
        attempt: tuple[str, int],
        limits: Thresholds,
        now: float,
    ) -> Observation:
        if not (vitals.progress_at or vitals.busy_at or vitals.changed_at):
            return before  # it tells of itself, but not when: that is no evidence of anything
        began = self._began(watch, vitals, now)
        ages = {
            name: self._age(max(watch.read(name, getattr(vitals, name), now), began), now)
            for name in ("busy_at", "changed_at", "doing_since", "progress_at", "repeating_since")
        }
        doing = doing_of(vitals)
        calls, call_age_s, served_age_s = self._in_flight(watch, attempt, doing, now)
        heavy = bool(limits.memory_bytes) and vitals.memory_bytes > limits.memory_bytes
        watch.heavy_at = (now if watch.heavy_at is None else watch.heavy_at) if heavy else None
        return replace(
            before,
            busy_age_s=ages["busy_at"],
            call_age_s=call_age_s,
            calls=calls,
            changed_age_s=ages["changed_at"],
            cost_usd=vitals.cost_usd,
            doing=doing,
            doing_age_s=ages["doing_since"],
            heavy_s=self._age(watch.heavy_at, now) if watch.heavy_at is not None else 0.0,
            memory_bytes=vitals.memory_bytes,
            progress_age_s=ages["progress_at"],
            repeat_age_s=ages["repeating_since"] if vitals.repeating_since > 0 else 0.0,
            repeats=vitals.repeats,
            run_age_s=self._age(began, now),
            served_age_s=served_age_s,
            tool=vitals.tool,
            tool_limit_s=vitals.tool_limit_s,
        )

    @staticmethod
    def _began(watch: _Watch, vitals: Vitals, now: float) -> float:
        """When its command was started. Said once: who says something later is not believed, nothing is older than it."""
        said = min(vitals.started_at, now) if vitals.started_at > 0 else watch.first
        watch.started = said if watch.started is None else min(watch.started, said)
        return watch.started

    def _in_flight(
        self, watch: _Watch, attempt: tuple[str, int], doing: Doing, now: float
    ) -> tuple[int | None, float, float]:
        """Calls in flight, the age of the oldest, and the time since one was last in flight."""
        told = self._access.calls(*attempt)
        if told is None:
            return None, 0.0, math.inf
        calls, call_age_s = told
        if calls or (watch.served_at is None and watch.diagnosis is None and doing is Doing.THINKING):
            watch.served_at = now  # an agent that a new gateway finds waiting has lost its call with the old one
        served_age_s = self._age(watch.served_at, now) if watch.served_at is not None else math.inf
        return calls, call_age_s, served_age_s

    def _tell(
        self, attempt: tuple[str, int], watch: _Watch, diagnosis: HealthDiagnosis, record: ClaimRecord | None
    ) -> None:
        """Only trouble that begins, changes or ends is news; tools and thoughts come and go."""
        trouble = diagnosis.state if diagnosis.state in health.TROUBLED else None
        if trouble is watch.told:
            return
        old, watch.told = watch.told, trouble
        self._bus.publish(
            AgentHealthChanged(
                agent=record.agent if record is not None else "",
                generation=attempt[1],
                new=diagnosis.state,
                old=old or "",
                reason=diagnosis.reason,
                task=attempt[0],
            )
        )


def limits_of(task: Task, intake: Intake, fleet: FleetSettings) -> Thresholds:
    """Of an attempt under way, by what is configured now; its role may have lost its card meanwhile."""
    try:
        card = intake.card_of(task)
    except KeyError:
        card = None
    return health.thresholds(fleet, card, task, timeout_s=intake.timeout_s(task))


def doing_of(vitals: Vitals) -> Doing:
    """What it says it does; a word that we do not know says that it works."""
    try:
        return Doing(vitals.doing)
    except ValueError:
        return Doing.WORKING


def diagnose(seen: Sighting, limits: Thresholds, clock: Clock, *, heartbeat_s: float) -> HealthDiagnosis:
    """From one look alone, for readers without a daemon: what takes two looks or a gateway to see is taken for well."""
    return Vigil(clock, Bus(clock), heartbeat_s=heartbeat_s, access=DirectAccess()).judge(("", 0), seen, limits)
