"""Whether an attempt may go on: ages against limits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.domain.attempt import Ending
from coordinator.policy.health import OVERDUE_S, judge_attempt

_AGE = st.floats(0, 1e6)


@given(beat=_AGE, run=_AGE, silence=st.floats(1, 1e5), timeout=st.floats(1, 1e5), grace=st.floats(0, 100))
def test_condemned_exactly_when_silent_or_overdue(
    beat: float, run: float, silence: float, timeout: float, grace: float
) -> None:
    verdict = judge_attempt(beat_age_s=beat, run_age_s=run, silence_s=silence, timeout_s=timeout, grace_s=grace)
    if beat > silence:
        assert verdict is not None
        assert verdict.ending is Ending.CRASHED
    elif run > timeout + grace + OVERDUE_S:
        assert verdict is not None
        assert verdict.ending is Ending.OVER_TIME
    else:
        assert verdict is None


def test_the_reason_names_the_limit() -> None:
    silent = judge_attempt(beat_age_s=130, run_age_s=1, silence_s=120, timeout_s=600, grace_s=10)
    assert silent is not None
    assert silent.reason == "no heartbeat for 120 s, stopped"
