"""Ages are measured from what was seen, on the monotonic clock, for each attempt by itself."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from coordinator.domain.attempt import ClaimRecord, Ending
from coordinator.domain.event import AgentHealthChanged, ClockStepped, Event
from coordinator.domain.settings import FleetSettings
from coordinator.domain.vitals import Doing, Vitals
from coordinator.fleet.model_access import DirectAccess
from coordinator.fleet.sighting import Sighting
from coordinator.fleet.vigil import Vigil, diagnose
from coordinator.kit import lock
from coordinator.kit.bus import Bus
from coordinator.policy.health import HealthDiagnosis, HealthState, Thresholds, thresholds

KEY = ("t", 1)
BOOT = "a-boot"
LIMITS = replace(thresholds(FleetSettings(), None, None, timeout_s=1e6), silence_s=1e6)


class _Time:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.at = 10_000.0
        self.wall = datetime(2000, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self.wall

    def monotonic(self) -> float:
        return self.at

    async def sleep(self, seconds: float) -> None:
        self.pass_(seconds)

    def pass_(self, seconds: float, *, wall: float | None = None) -> None:
        self.at += seconds
        self.wall += timedelta(seconds=seconds if wall is None else wall)


class _Access(DirectAccess):
    """A gateway that tells what the rig says."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig

    def calls(self, _task: str, _generation: int) -> tuple[int, float] | None:
        return self._rig.in_flight


@dataclass
class Rig:
    """A vigil on a clock of the test's own; what was published is kept."""

    limits: Thresholds = LIMITS
    time: _Time = field(default_factory=_Time)
    events: list[Event] = field(default_factory=list)
    in_flight: tuple[int, float] | None = None
    beat: int = 0

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        bus = Bus(self.time)
        bus.tap(lambda published: self.events.append(published.event))
        self.vigil = Vigil(self.time, bus, heartbeat_s=5.0, access=_Access(self))

    def look(self, vitals: Vitals | None = None, record: ClaimRecord | None = None, **more: Any) -> HealthDiagnosis:
        self.beat += 1
        seen = Sighting(**{"beat": self.beat, "held": True, "record": record, "vitals": vitals, **more})
        self.vigil.turn()
        return self.vigil.judge(KEY, seen, self.limits)

    def until_condemned(self, vitals: Vitals, *, every: float = 0.5, most: float = 5_000.0) -> float:
        """Seconds that pass until it is condemned."""
        began = self.time.at
        while self.look(vitals).condemned is None:
            assert self.time.at - began < most, "it is immortal"
            self.time.pass_(every)
        return self.time.at - began

    def seen_at(self, at: float, **more: Any) -> Vitals:
        known = {"boot": BOOT, "doing": Doing.WORKING, "doing_since": at, "started_at": at}
        return Vitals(**{**known, "busy_at": at, "changed_at": at, "progress_at": at, **more})

    def told(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if type(event) is kind]


@pytest.fixture
def rig() -> Rig:
    return Rig()


# -- heartbeats ----------------------------------------------------------------------------------------------------


def test_a_beat_that_moves_is_life_and_one_that_stands_is_not(rig: Rig) -> None:
    rig.limits = replace(LIMITS, silence_s=10.0)
    for _ in range(5):
        assert rig.look().condemned is None
        rig.time.pass_(9)
    for _ in range(4):
        found = rig.look(beat=999)
        rig.time.pass_(3.8)
    assert found.condemned is Ending.CRASHED
    assert "no heartbeat for 10 s" in found.reason


def test_the_next_attempt_starts_with_a_clean_record(rig: Rig) -> None:
    limits = replace(LIMITS, silence_s=10.0)
    still = Sighting(beat=1, held=True, record=None)
    rig.vigil.judge(("t", 1), still, limits)
    rig.time.pass_(50)
    assert rig.vigil.judge(("t", 2), still, limits).condemned is None
    rig.vigil.forget(("t", 1))
    assert rig.vigil.judge(("t", 1), still, limits).condemned is None
    assert rig.vigil.diagnosis("t", 1) is not None
    rig.vigil.forget(("t", 1))
    assert rig.vigil.diagnosis("t", 1) is None


def test_an_attempt_that_beats_but_never_ends_is_over_time(rig: Rig) -> None:
    rig.limits = replace(LIMITS, timeout_s=10.0, grace_s=5.0)
    for _ in range(9):
        assert rig.look().condemned is None
        rig.time.pass_(5)
    rig.time.pass_(1)
    assert rig.look().condemned is Ending.OVER_TIME


# -- vitals --------------------------------------------------------------------------------------------------------


def test_silence_is_counted_from_the_last_sign_and_survives_the_daemon(rig: Rig) -> None:
    vitals = rig.seen_at(rig.time.at)
    assert 600 < rig.until_condemned(vitals) <= 600.5
    rig.restart()
    found = rig.look(vitals)
    assert (found.state, found.condemned) == (HealthState.STALLED, Ending.STALLED), "at once, not after another silence"
    rig.restart()
    rig.time.pass_(5000)
    moved = replace(vitals, busy_at=rig.time.at - 1)
    assert rig.look(moved).state is HealthState.WORKING


def test_run_time_is_counted_from_the_command_and_survives_the_daemon(rig: Rig) -> None:
    rig.limits = replace(LIMITS, timeout_s=100.0, grace_s=0.0)
    rig.look()
    rig.time.pass_(9)
    rig.time.pass_(9)
    at = rig.time.at
    for _ in range(13):
        assert rig.look(rig.seen_at(at, busy_at=rig.time.at)).condemned is None, "making the tree took none of its time"
        rig.time.pass_(10)
    rig.restart()
    rig.time.pass_(1)
    assert rig.look(rig.seen_at(at, busy_at=rig.time.at)).condemned is Ending.OVER_TIME


@pytest.mark.parametrize("ahead", [100.0, 599.0, 1e9])
def test_a_time_from_the_future_ages_like_any_other(rig: Rig, ahead: float) -> None:
    forged = rig.seen_at(rig.time.at + ahead)
    assert rig.until_condemned(forged) <= 600.5


def test_a_tool_that_is_said_to_have_begun_in_the_future_ends(rig: Rig) -> None:
    at = rig.time.at
    forged = rig.seen_at(at, doing=Doing.USING_TOOL, doing_since=at + 1e9, tool_limit_s=1000.0)
    assert 1000 < rig.until_condemned(forged) < 1050


def _until_looping(rig: Rig, pause: float, *, busy: int = 0) -> int:
    """Repeats that it has made when it is stopped, 0: it is not; each look sees one more. The first ``busy`` of them are made
    while a process is busy."""
    since = moved = rig.time.at
    for repeats in range(2, 100):
        moved = rig.time.at if repeats <= busy else moved
        vitals = rig.seen_at(rig.time.at, busy_at=moved, changed_at=since, repeats=repeats, repeating_since=since)
        if rig.look(vitals).condemned is Ending.LOOPING:
            return repeats
        for _ in range(int(pause / 5)):
            rig.time.pass_(5)
            rig.vigil.turn()
    return 0


def test_a_fast_loop_ends_soon_and_polling_may_go_on(rig: Rig) -> None:
    assert _until_looping(rig, 5.0) == LIMITS.loop_repeats
    rig.vigil.forget(KEY)
    rig.limits = replace(LIMITS, timeout_s=1e6)
    assert _until_looping(rig, 120.0) == 5 * LIMITS.loop_repeats
    rig.vigil.forget(KEY)
    assert _until_looping(rig, 15.0, busy=100) == 0
    rig.vigil.forget(KEY)
    assert _until_looping(rig, 15.0, busy=50) == 48 + 5 * LIMITS.loop_repeats, "what was waited for lived that long"


def test_repeats_that_do_not_say_since_when_are_no_polling(rig: Rig) -> None:
    at = rig.time.at
    assert rig.look(rig.seen_at(at, repeats=8, started_at=at - 1000)).condemned is Ending.LOOPING
    rig.vigil.forget(KEY)
    assert rig.look(rig.seen_at(at, repeats=8, repeating_since=at + 1e9)).condemned is Ending.LOOPING


def test_a_start_that_moves_does_not_stop_the_time(rig: Rig) -> None:
    rig.limits = replace(LIMITS, timeout_s=60.0, grace_s=0.0)
    for _ in range(10):
        assert rig.look(rig.seen_at(rig.time.at)).condemned is None
        rig.time.pass_(9)
    rig.time.pass_(1)
    assert rig.look(rig.seen_at(rig.time.at)).condemned is Ending.OVER_TIME


def test_an_agent_is_never_older_than_its_attempt(rig: Rig) -> None:
    at = rig.time.at
    only_output = Vitals(boot=BOOT, started_at=at, progress_at=at, doing=Doing.WORKING)
    for _ in range(59):
        assert rig.look(only_output).condemned is None
        rig.time.pass_(10)
    tells_no_times = Vitals(boot=BOOT, doing=Doing.WORKING)
    rig.time.pass_(5000)
    assert rig.look(tells_no_times).condemned is None
    assert rig.look(rig.seen_at(rig.time.at, doing="dancing")).state is HealthState.WORKING


def test_memory_must_stay_over_its_limit(rig: Rig) -> None:
    rig.limits = replace(LIMITS, memory_bytes=1000, grace_s=10.0)

    def look(memory_bytes: int) -> HealthDiagnosis:
        rig.time.pass_(5)
        return rig.look(rig.seen_at(rig.time.at, memory_bytes=memory_bytes))

    for _ in range(5):
        assert look(5000).condemned is None
    assert look(900).condemned is None
    found = [look(5000).condemned for _ in range(10)]
    assert found[:9] == [None] * 9
    assert found[9] is Ending.OVER_MEMORY


# -- model calls ---------------------------------------------------------------------------------------------------


def test_a_call_in_flight_is_never_a_stall_and_its_end_is_a_sign_of_life(rig: Rig) -> None:
    vitals = rig.seen_at(rig.time.at, doing=Doing.THINKING)
    for second in range(0, 5000, 5):
        rig.in_flight = (1, float(second))
        assert rig.look(vitals).state is HealthState.THINKING
        rig.time.pass_(5)
    rig.in_flight = (0, 0.0)
    assert 595 <= rig.until_condemned(vitals, every=1.0) <= 601


def test_a_gateway_that_sees_no_call_is_believed_more_than_the_agent(rig: Rig) -> None:
    rig.limits = replace(LIMITS, stall_s=60.0)
    at = rig.time.at
    rig.in_flight = (0, 0.0)
    rig.look(rig.seen_at(at))
    assert 60 < rig.until_condemned(rig.seen_at(at, doing=Doing.THINKING)) <= 60.5
    without = Rig(limits=rig.limits)
    assert 390 < without.until_condemned(without.seen_at(at, doing=Doing.THINKING)) <= 390.5


def test_an_agent_that_a_new_gateway_finds_waiting_gets_time_to_call_again(rig: Rig) -> None:
    vitals = rig.seen_at(rig.time.at, doing=Doing.THINKING)
    rig.time.pass_(3000)
    rig.in_flight = (0, 0.0)
    assert 600 < rig.until_condemned(vitals) <= 600.5
    idle = Rig(in_flight=(0, 0.0))
    long_ago = idle.seen_at(idle.time.at)
    idle.time.pass_(3000)
    assert idle.look(long_ago).condemned is Ending.STALLED


# -- time that nobody could use ------------------------------------------------------------------------------------


def test_a_machine_that_slept_extends_every_deadline_once(rig: Rig) -> None:
    vitals = rig.seen_at(rig.time.at)
    for _ in range(118):
        rig.look(vitals)
        rig.time.pass_(5)
    rig.time.pass_(0.5, wall=8 * 3600)  # monotonic time stands still meanwhile
    assert 599 <= rig.until_condemned(vitals) <= 600.5
    (told,) = rig.told(ClockStepped)
    assert told.how == "ran_ahead"
    assert 8 * 3600 - 1 <= told.gap_s <= 8 * 3600


def test_a_short_gap_extends_by_no_more_than_itself(rig: Rig) -> None:
    vitals = rig.seen_at(rig.time.at)
    for _ in range(80):
        rig.look(vitals)
        rig.time.pass_(5)
    rig.time.pass_(0.5, wall=60.5)
    assert 258 <= rig.until_condemned(vitals) <= 261


def test_a_daemon_that_was_frozen_holds_it_against_nobody(rig: Rig) -> None:
    rig.limits = replace(LIMITS, silence_s=100.0)
    vitals = rig.seen_at(rig.time.at)
    rig.look(vitals)
    rig.time.pass_(3600)
    assert rig.look(vitals, beat=rig.beat).condemned is None
    (told,) = rig.told(ClockStepped)
    assert (told.how, told.gap_s) == ("late_turn", 3600.0)
    assert 599 <= rig.until_condemned(vitals) <= 600.5


def test_a_daemon_that_is_slow_all_the_time_still_judges(rig: Rig) -> None:
    assert rig.until_condemned(rig.seen_at(rig.time.at), every=12.0) < 1000
    assert len(rig.told(ClockStepped)) == 1


def test_a_wall_clock_set_back_or_adjusted_changes_nothing(rig: Rig) -> None:
    vitals = rig.seen_at(rig.time.at)
    rig.look(vitals)
    rig.time.pass_(1, wall=-3600)
    rig.look(vitals)
    rig.time.pass_(1, wall=4.0)
    assert 597.5 <= rig.until_condemned(vitals) <= 598.5
    (told,) = rig.told(ClockStepped)
    assert (told.how, told.gap_s) == ("set_back", 3601.0)


def test_an_idle_daemon_is_not_late(rig: Rig) -> None:
    for _ in range(3):
        rig.vigil.turn()
        rig.time.pass_(30)
    assert rig.events == []


# -- the process ---------------------------------------------------------------------------------------------------


def _record(pid: int, started: str = "", **more: str) -> ClaimRecord:
    host, boot, *_ = lock.own_identity()
    known = {"agent": "a", "boot": boot, "host": host, "task": "t", **more}
    return ClaimRecord(generation=1, pid=pid, started=started or lock.process_start(pid) or "", **known)  # type: ignore[arg-type]


def test_a_process_that_was_seen_alive_and_is_dead_is_noticed_within_two_seconds(rig: Rig) -> None:
    with subprocess.Popen(["sleep", "1000"]) as child:
        record = _record(child.pid)
        assert rig.look(record=record).condemned is None
        child.kill()
        child.wait()
    rig.time.pass_(0.5)
    assert rig.look(record=record, beat=1).condemned is None, "it may just be letting go"
    assert rig.look(record=replace(record, state="released"), beat=1).condemned is None
    rig.look(record=record, beat=1)
    rig.time.pass_(0.5)
    assert rig.look(record=record, beat=1).condemned is None
    rig.time.pass_(0.5)
    found = rig.look(record=record, beat=1)
    assert (found.state, found.condemned) == (HealthState.GONE, Ending.CRASHED)


def test_one_that_lives_elsewhere_is_believed_while_it_beats(rig: Rig) -> None:
    with subprocess.Popen(["true"]) as child:
        record = _record(child.pid, "1")
    for _ in range(20):
        assert rig.look(record=record).condemned is None
        rig.time.pass_(4)
    waited = 0.0
    while rig.look(record=record, beat=999).condemned is None:
        rig.time.pass_(0.5)
        waited += 0.5
        assert waited < 30
    assert waited > 12, "three beats have to be missing"
    for other in (_record(child.pid, "1", host="another"), _record(child.pid, "1", boot="another")):
        far = Rig()
        far.look(record=other, beat=1)
        far.time.pass_(500)
        assert far.look(record=other, beat=1).condemned is None


# -- what is told --------------------------------------------------------------------------------------------------


def test_trouble_is_told_once_and_so_is_its_end(rig: Rig) -> None:
    at = rig.time.at
    for _ in range(3):
        rig.look(rig.seen_at(at, doing=Doing.THINKING), record=_record(1, "1", host="another"))
        rig.look(rig.seen_at(at, doing=Doing.USING_TOOL, tool="Bash"))
    rig.time.pass_(400)
    for _ in range(3):
        rig.look(rig.seen_at(at), record=_record(1, "1", host="another"))
    rig.look(rig.seen_at(rig.time.at))
    told = [(event.old, event.new) for event in rig.told(AgentHealthChanged)]
    assert told == []  # it was the daemon that looked late
    for _ in range(50):
        rig.time.pass_(9)
        rig.look(rig.seen_at(at + 400), record=_record(1, "1", host="another"))
    rig.look(rig.seen_at(rig.time.at))
    told = [(event.old, event.new) for event in rig.told(AgentHealthChanged)]
    assert told == [("", "quiet"), ("quiet", "working")]
    first = rig.told(AgentHealthChanged)[0]
    assert (first.task, first.generation, first.agent) == ("t", 1, "a")
    assert "[fleet] stall_s" in first.reason


def test_one_look_is_enough_for_a_reader(rig: Rig) -> None:
    vitals = rig.seen_at(rig.time.at)
    rig.time.pass_(700)
    seen = Sighting(beat=1, held=True, record=None, vitals=vitals)
    assert diagnose(seen, LIMITS, rig.time, heartbeat_s=5.0).state is HealthState.STALLED
    assert diagnose(replace(seen, vitals=None), LIMITS, rig.time, heartbeat_s=5.0).state is HealthState.WORKING
    assert rig.events == []
