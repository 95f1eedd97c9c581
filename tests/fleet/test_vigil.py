"""Ages are measured from what was seen, on the monotonic clock, for each attempt by itself."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from coordinator.domain.settings import FleetSettings
from coordinator.fleet.sighting import Sighting
from coordinator.fleet.vigil import Vigil


class _Time:
    """A clock that stands until it is moved."""

    at = 100.0

    def now(self) -> datetime:
        return datetime(2000, 1, 1, tzinfo=UTC)

    def monotonic(self) -> float:
        return self.at

    async def sleep(self, seconds: float) -> None:
        self.at += seconds


def _seen(beat: int) -> Sighting:
    return Sighting(beat=beat, held=True, record=None)


def test_a_beat_that_moves_is_life_and_one_that_stands_is_not() -> None:
    time = _Time()
    vigil = Vigil(replace(FleetSettings(), silence_s=10.0), time)
    for beat in range(5):
        assert vigil.judge(("t", 1), _seen(beat), timeout_s=1000) is None
        time.at += 9
    time.at += 2
    condemned = vigil.judge(("t", 1), _seen(4), timeout_s=1000)
    assert condemned is not None
    assert "no heartbeat for 10 s" in condemned.reason


def test_the_next_attempt_starts_with_a_clean_record() -> None:
    time = _Time()
    vigil = Vigil(replace(FleetSettings(), silence_s=10.0), time)
    vigil.judge(("t", 1), _seen(1), timeout_s=1000)
    time.at += 50
    assert vigil.judge(("t", 2), _seen(1), timeout_s=1000) is None
    vigil.forget(("t", 1))
    assert vigil.judge(("t", 1), _seen(1), timeout_s=1000) is None


def test_an_attempt_that_beats_but_never_ends_is_over_time() -> None:
    time = _Time()
    vigil = Vigil(replace(FleetSettings(), grace_s=5.0), time)
    vigil.judge(("t", 1), _seen(1), timeout_s=10)
    time.at += 10 + 5 + 31
    condemned = vigil.judge(("t", 1), _seen(2), timeout_s=10)
    assert condemned is not None
    assert condemned.ending == "over_time"
