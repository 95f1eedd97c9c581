"""Whether an attempt may go on: what was seen of it against its limits."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from coordinator.domain.attempt import Ending
from coordinator.domain.card import RoleCard
from coordinator.domain.settings import FleetSettings
from coordinator.domain.vitals import Doing
from coordinator.policy.health import (
    GONE_S,
    OVERDUE_S,
    OVERSPENT,
    POLL_S,
    POLLS,
    TOOL_SLACK_S,
    TROUBLED,
    HealthState,
    Observation,
    Thresholds,
    judge,
    thresholds,
)

_AGE = st.floats(0, 1e6)
_SOON = st.floats(0.1, 2000)

LIMITS = thresholds(FleetSettings(), None, None, timeout_s=3600.0)

OBSERVATIONS = st.builds(
    Observation,
    beat_age_s=_SOON,
    busy_age_s=_SOON,
    call_age_s=_SOON,
    calls=st.sampled_from([None, 0, 1, 3]),
    changed_age_s=_SOON,
    cost_usd=st.floats(0, 10),
    dead_s=st.sampled_from([0.0, GONE_S, 1.0]),
    doing=st.sampled_from([None, *Doing]),
    doing_age_s=_SOON,
    heavy_s=st.sampled_from([0.0, 10.0, 1000.0]),
    memory_bytes=st.integers(0, 2**40),
    progress_age_s=_SOON,
    repeat_age_s=_SOON,
    repeats=st.integers(0, 60),
    run_age_s=_SOON,
    served_age_s=st.one_of(st.just(math.inf), _SOON),
    tool=st.sampled_from(["", "Bash"]),
    tool_limit_s=st.sampled_from([0.0, -1.0, 120.0, 1e9]),
)
THRESHOLDS = st.builds(
    Thresholds,
    budget_usd=st.sampled_from([0.0, 5.0]),
    finish_s=_SOON,
    grace_s=st.floats(0, 30),
    loop_repeats=st.integers(3, 10),
    memory_bytes=st.sampled_from([0, 2**30]),
    silence_s=_SOON,
    stall_s=_SOON,
    think_limit_s=_SOON,
    timeout_s=_SOON,
    tool_limit_s=_SOON,
)


def _seen(doing: Doing | None = Doing.WORKING, *, quiet: float = 0.0, **more: Any) -> Observation:
    known = {
        "beat_age_s": 1.0,
        "busy_age_s": quiet,
        "changed_age_s": quiet,
        "progress_age_s": quiet,
        "run_age_s": 100.0,
    }
    return Observation(doing=doing, **{**known, **more})


@given(beat=_AGE, run=_AGE, silence=st.floats(1, 1e5), timeout=st.floats(1, 1e5), grace=st.floats(0, 100))
def test_one_that_says_nothing_of_itself_is_condemned_exactly_when_silent_or_overdue(
    beat: float, run: float, silence: float, timeout: float, grace: float
) -> None:
    limits = replace(LIMITS, silence_s=silence, timeout_s=timeout, grace_s=grace, stall_s=0.1)
    found = judge(_seen(None, beat_age_s=beat, run_age_s=run, quiet=1e9), limits)
    if beat > silence:
        assert (found.state, found.condemned) == (HealthState.GONE, Ending.CRASHED)
    elif run > timeout + grace + OVERDUE_S:
        assert (found.state, found.condemned) == (HealthState.OVER_TIME, Ending.OVER_TIME)
    else:
        assert (found.state, found.condemned) == (HealthState.WORKING, None)


@given(seen=OBSERVATIONS, limits=THRESHOLDS)
def test_nobody_is_a_stall_while_a_model_call_is_in_flight(seen: Observation, limits: Thresholds) -> None:
    found = judge(replace(seen, calls=2), limits)
    assert found.state not in (HealthState.STALLED, HealthState.QUIET)
    healthy = replace(
        seen, calls=1, dead_s=0, beat_age_s=0, run_age_s=0, heavy_s=0, cost_usd=0, repeats=0, doing=Doing.THINKING
    )
    assert judge(healthy, limits).condemned is None


@given(seen=OBSERVATIONS, limits=THRESHOLDS, older=st.floats(0, 5000), data=st.data())
def test_older_evidence_never_makes_a_condemned_one_well(
    seen: Observation, limits: Thresholds, older: float, data: st.DataObject
) -> None:
    ages = [
        "beat_age_s", "busy_age_s", "changed_age_s", "dead_s", "doing_age_s", "heavy_s", "progress_age_s", "run_age_s",
        "served_age_s",
    ]  # fmt: skip
    names = data.draw(st.sets(st.sampled_from(ages)))
    later = replace(seen, **{name: getattr(seen, name) + older for name in names})
    if judge(seen, limits).condemned:
        assert judge(later, limits).condemned


@given(seen=OBSERVATIONS, limits=THRESHOLDS)
@example(
    seen=Observation(beat_age_s=0.1, doing=Doing.USING_TOOL, run_age_s=0.1, tool_limit_s=120.0),
    limits=replace(LIMITS, timeout_s=1.0),
)
def test_a_reason_names_a_number_and_a_setting(seen: Observation, limits: Thresholds) -> None:
    found = judge(seen, limits)
    settings = ("[fleet] ", "timeout", "memory_bytes", "budget_usd", "stall")
    assert any(character.isdigit() for character in found.reason)
    dead = found.state is HealthState.GONE and "still holds the claim" in found.reason  # whatever is set, it is dead
    declared = seen.tool_limit_s > 0 and "its own time-out" in found.reason  # by the tool itself
    assert dead or declared or any(name in found.reason for name in settings)
    assert not found.reason.endswith(".")
    assert found.condemned is None or found.state in TROUBLED


@given(stall=st.floats(0.1, 1e5), off=st.floats(1e-3, 0.1))
def test_with_nothing_in_flight_the_silence_is_exact(stall: float, off: float) -> None:
    limits = replace(LIMITS, stall_s=stall)
    for doing, calls in ((Doing.WORKING, None), (Doing.STARTING, None), (Doing.THINKING, 0), (Doing.WORKING, 0)):
        late = judge(_seen(doing, quiet=stall * (1 + off), calls=calls, doing_age_s=1e5), limits)
        assert (late.state, late.condemned) == (HealthState.STALLED, Ending.STALLED)
        early = judge(_seen(doing, quiet=stall * (1 - off), calls=calls, doing_age_s=1e5), limits)
        assert early.condemned is None
        assert early.state is HealthState.QUIET


@pytest.mark.parametrize("sign", ["busy_age_s", "changed_age_s", "progress_age_s", "served_age_s"])
def test_one_sign_of_life_is_enough(sign: str) -> None:
    assert judge(_seen(quiet=1e6, **{sign: 5.0}), LIMITS).state is HealthState.WORKING
    assert judge(_seen(quiet=1e6, **{sign: 599.0}), LIMITS).state is HealthState.QUIET
    assert judge(_seen(quiet=1e6, **{sign: 601.0}), LIMITS).state is HealthState.STALLED


@pytest.mark.parametrize(
    ("stall_s", "silent_s", "stalled"),
    [(60, 61, False), (60, 389, False), (60, 391, True), (600, 391, False), (600, 599, False), (600, 601, True)],
)
def test_without_a_gateway_thinking_is_believed_as_long_as_clis_wait_and_silence_counts_after(
    stall_s: float, silent_s: float, stalled: bool
) -> None:
    limits = replace(LIMITS, stall_s=stall_s)
    found = judge(_seen(Doing.THINKING, quiet=silent_s, doing_age_s=silent_s), limits)
    assert (found.condemned is Ending.STALLED) is stalled
    if silent_s < 390:
        assert found.state is HealthState.THINKING
        assert "390 s ([fleet] think_limit_s)" in found.reason
    a_try_ago = judge(_seen(Doing.THINKING, quiet=1e5, doing_age_s=1e5, progress_age_s=350), limits)
    assert a_try_ago.condemned is None, "it said after 360 s that it tries again, and waits again"


def test_a_tool_in_flight_may_be_silent_for_as_long_as_it_declared() -> None:
    declared = {"tool": "Bash", "tool_limit_s": 1200.0}
    found = judge(_seen(Doing.USING_TOOL, quiet=1190, doing_age_s=1190, **declared), LIMITS)
    assert (found.state, found.reason) == (
        HealthState.USING_TOOL,
        "Bash at work for 1190 s of 1200 s (its own time-out)",
    )
    past = {"doing_age_s": 1200 + TOOL_SLACK_S + 1, **declared}
    assert judge(_seen(Doing.USING_TOOL, quiet=1190, **past), LIMITS).condemned is Ending.STALLED
    assert judge(_seen(Doing.USING_TOOL, quiet=1190, **{**past, "busy_age_s": 1.0}), LIMITS).condemned is None
    undeclared = judge(_seen(Doing.USING_TOOL, quiet=1790, doing_age_s=1790), LIMITS)
    assert undeclared.state is HealthState.USING_TOOL
    assert "[fleet] tool_limit_s" in undeclared.reason
    assert judge(_seen(Doing.USING_TOOL, quiet=1820, doing_age_s=1820), LIMITS).condemned is Ending.STALLED


def test_a_silent_build_of_twenty_minutes_lives_and_a_hung_one_does_not() -> None:
    for minute in range(21):
        busy = _seen(Doing.WORKING, quiet=60.0 * minute, busy_age_s=1.0)
        assert judge(busy, LIMITS).state is HealthState.WORKING
    assert judge(_seen(Doing.WORKING, quiet=1200.0), LIMITS).condemned is Ending.STALLED


def test_a_loop_is_condemned_at_its_count() -> None:
    assert judge(_seen(repeats=7), LIMITS).condemned is None
    found = judge(_seen(Doing.USING_TOOL, repeats=8, tool="Read", calls=1), LIMITS)
    assert (found.state, found.condemned) == (HealthState.LOOPING, Ending.LOOPING)
    assert "Read with the same answer 8 times" in found.reason
    assert found.reason.endswith("([fleet] loop_repeats = 8)")


def test_a_build_that_is_polled_with_the_same_answer_lives_for_long() -> None:
    polled = _seen(Doing.USING_TOOL, quiet=60.0, repeats=8, repeat_age_s=6 * 120.0, tool="Bash", tool_limit_s=600.0)
    assert judge(polled, LIMITS).state is HealthState.USING_TOOL
    still = {"busy_age_s": 5000.0, "changed_age_s": 5000.0}
    assert judge(replace(polled, repeats=39, repeat_age_s=37 * 120.0, **still), LIMITS).condemned is None
    found = judge(replace(polled, repeats=40, repeat_age_s=38 * 120.0, **still), LIMITS)
    assert (found.state, found.condemned) == (HealthState.LOOPING, Ending.LOOPING)
    assert "40 times in a row while nothing moved" in found.reason
    assert "[fleet] loop_repeats = 8, 5 times as many for polling" in found.reason


def test_polls_of_what_lived_are_not_held_against_it_when_it_pauses() -> None:
    """Sixty polls while a compiler was busy; now the linker waits for the disk."""
    polled = _seen(Doing.USING_TOOL, quiet=1.0, repeats=60, repeat_age_s=58 * 15.0, tool="Bash", tool_limit_s=600.0)
    for still_s, loops in ((1.0, False), (11.0, False), (37 * 15.0, False), (38 * 15.0, True)):
        for sign in ("busy_age_s", "changed_age_s"):
            other = "changed_age_s" if sign == "busy_age_s" else "busy_age_s"
            found = judge(replace(polled, **{sign: still_s, other: 900.0}), LIMITS)
            assert (found.condemned is Ending.LOOPING) is loops


@given(
    repeats=st.integers(3, 10_000),
    pause=st.floats(POLL_S + 0.1, 1000),
    beside=st.sampled_from(["busy_age_s", "changed_age_s"]),
    still=st.floats(0, 60),
)
def test_what_is_waited_for_lives_and_waiting_for_it_is_no_loop(
    repeats: int, pause: float, beside: str, still: float
) -> None:
    """``still``: for how many polls nothing has moved."""
    seen = _seen(quiet=1e6, repeats=repeats, repeat_age_s=pause * (repeats - 2))
    found = judge(replace(seen, **{beside: still * pause}), LIMITS)
    most = LIMITS.loop_repeats * POLLS
    if repeats < most or still < most - 3:
        assert found.condemned is not Ending.LOOPING
    elif still > most - 2:
        assert found.condemned is Ending.LOOPING


@given(
    limit=st.integers(3, 1000),
    pause=st.one_of(st.floats(0, 200), st.sampled_from([POLL_S - 0.2, POLL_S + 0.2])),
    data=st.data(),
)
def test_the_pace_decides_how_many_repeats_are_a_loop(limit: int, pause: float, data: st.DataObject) -> None:
    repeats = data.draw(st.one_of(st.integers(2, 6 * limit), st.sampled_from([limit - 1, limit, 5 * limit])))
    seen = _seen(quiet=pause * repeats, repeats=repeats, repeat_age_s=pause * (repeats - 2))
    loops = judge(seen, replace(LIMITS, loop_repeats=limit)).condemned is Ending.LOOPING
    if pause < POLL_S - 0.1:
        assert loops == (repeats >= limit)
    elif pause > POLL_S + 0.1:
        assert loops == (repeats >= POLLS * limit)


def test_what_the_runner_enforces_is_enforced_from_outside_a_little_later() -> None:
    limits = replace(LIMITS, memory_bytes=2**30, budget_usd=2.0)
    late = limits.grace_s + OVERDUE_S
    heavy = {"memory_bytes": 3 * 2**30}
    assert judge(_seen(heavy_s=late, **heavy), limits).condemned is None
    assert judge(_seen(heavy_s=late + 1, **heavy), limits).condemned is Ending.OVER_MEMORY
    assert judge(_seen(heavy_s=late + 1, **heavy), LIMITS).condemned is None, "no limit"
    assert judge(_seen(cost_usd=2.0 * OVERSPENT), limits).condemned is None
    assert judge(_seen(cost_usd=2.0 * OVERSPENT + 0.01), limits).condemned is Ending.OVER_BUDGET
    assert judge(_seen(cost_usd=100), LIMITS).condemned is None, "no budget"


def test_one_that_has_finished_is_left_to_its_runner_first() -> None:
    def after(seconds: float) -> Any:
        found = judge(_seen(Doing.FINISHED, quiet=seconds, doing_age_s=seconds, cost_usd=1e9), LIMITS)
        return found.state, found.condemned

    assert after(3) == (HealthState.FINISHING, None)
    assert after(16) == (HealthState.FINISHED_BUT_ALIVE, None)
    assert after(30 + 10 + OVERDUE_S) == (HealthState.FINISHED_BUT_ALIVE, None)
    assert after(30 + 10 + OVERDUE_S + 1) == (HealthState.FINISHED_BUT_ALIVE, Ending.STALLED)


def test_a_process_that_is_not_there_is_gone() -> None:
    assert judge(_seen(None, dead_s=GONE_S), LIMITS).condemned is None
    found = judge(_seen(None, dead_s=GONE_S + 0.1), LIMITS)
    assert (found.state, found.condemned) == (HealthState.GONE, Ending.CRASHED)
    assert judge(_seen(None, beat_age_s=120), LIMITS).condemned is None
    silent = judge(_seen(None, beat_age_s=130), LIMITS)
    assert silent.reason == "no heartbeat for 120 s ([fleet] silence_s), stopped"


def test_limits_come_from_settings_card_and_task() -> None:
    card = RoleCard(role="r", stall_s=33.0, memory_bytes=5, budget_usd=2.0)
    limits = thresholds(FleetSettings(), card, None, timeout_s=700.0)
    assert (limits.stall_s, limits.memory_bytes, limits.budget_usd, limits.timeout_s) == (33.0, 5, 2.0, 700.0)
    assert "stall of its role card = 33" in judge(_seen(quiet=34), limits).reason
    assert "[fleet] stall_s = 600" in judge(_seen(quiet=601), LIMITS).reason


def test_every_word_for_what_it_does_has_a_state() -> None:
    states = {judge(_seen(doing, doing_age_s=1.0), LIMITS).state for doing in Doing}
    assert states == {HealthState.FINISHING, *(frozenset(HealthState) - TROUBLED)}
