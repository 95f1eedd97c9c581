"""Detectors: bounds that hold whatever is fed, silence without knowledge, and what is found when it is there."""

from __future__ import annotations

import math
import random
from itertools import pairwise
from statistics import NormalDist

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.domain.incident import Alarm, AlarmLevel, AlarmStep
from coordinator.policy.anomaly import CALM_LOOKS, LONGEST_S, PLANS, AnomalyDetector
from coordinator.policy.cusum import CAP, BernoulliCusum, Cusum, PoissonCusum, RankCusum, Shift
from coordinator.policy.log_histogram import bin_of
from coordinator.policy.reference_window import FARTHEST, GAP_S, LEAST, WINDOW_S, ReferenceWindow, normal_score
from coordinator.policy.robust_z import RobustZ

SHIFTS = st.one_of(
    st.floats(0.001, 0.9).map(lambda odds: Shift(odds=odds)),
    st.floats(1.1, 1000).map(lambda odds: Shift(odds=odds)),
    st.floats(0.001, 0.9).map(lambda drop: Shift(drop=drop)),
)


# -- sums ----------------------------------------------------------------------------------------------------------


@given(SHIFTS, st.floats(0.01, 0.99))
def test_the_share_that_is_looked_for_is_on_its_own_side_of_the_usual(shift: Shift, usual: float) -> None:
    share = shift.share(usual)
    assert 0 < share < 1
    assert share < usual if shift.falling else share > usual


@given(SHIFTS, st.floats(0, 1), st.lists(st.booleans(), max_size=400))
def test_a_sum_of_shares_stays_within_its_bounds(shift: Shift, usual: float, hits: list[bool]) -> None:
    detector = BernoulliCusum(usual, shift, 8.0, memory=50.0)
    for hit in hits:
        before = detector.cusum.sum
        detector.step(hit, "r")
        assert 0 <= detector.cusum.sum <= CAP * 8.0
        assert 0 <= detector.usual <= 1
        assert 0 <= detector.hits <= max(detector.cusum.events, 0)
        if hit is shift.falling:
            assert detector.cusum.sum <= before or not before


@given(st.lists(st.floats(-1e6, 1e6), max_size=200), st.floats(0.1, 100))
def test_a_sum_is_never_below_zero_nor_far_above_its_threshold(steps: list[float], threshold: float) -> None:
    cusum = Cusum(threshold)
    for step in steps:
        cusum.move(step, "")
        assert 0 <= cusum.sum <= CAP * threshold
        assert cusum.peak >= cusum.sum


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0, 500)), max_size=200))
def test_counts_without_exposure_say_nothing(looks: list[tuple[int, float]]) -> None:
    one, other = (PoissonCusum(0.5, 17.0, memory_s=86_400.0, least=20) for _ in range(2))
    for count, exposure in looks:
        one.step(count, exposure, 5.0)
        other.step(count, exposure, 5.0)
        other.step(7, 0.0, 5.0)
        assert 0 <= one.cusum.sum <= CAP * 17.0
    assert (one.cusum.sum, one.counted, one.exposed) == (other.cusum.sum, other.counted, other.exposed)


def test_a_share_is_not_unlearnt_while_an_alarm_builds_up() -> None:
    detector = BernoulliCusum(0.01, Shift(odds=11.0), 8.0, memory=100.0)
    for _ in range(1000):
        detector.step(False, "")
    usual = detector.usual
    for _ in range(1000):
        detector.step(True, "")
    assert detector.usual < usual + 0.05
    assert detector.cusum.sum == CAP * 8.0


def test_from_next_to_nothing_nothing_can_fall() -> None:
    detector = BernoulliCusum(0.0, Shift(drop=0.04), 12.0, memory=5000.0)
    for _ in range(10_000):
        detector.step(False, "")
    assert detector.cusum.sum == 0


def test_a_role_is_blamed_only_for_nearly_all_of_the_evidence() -> None:
    cusum = Cusum(10.0)
    for _ in range(5):
        cusum.move(1.0, "slow")
        cusum.move(0.1, "well")
    assert cusum.blamed() == "slow"
    cusum.move(3.0, "well")
    assert cusum.blamed() == ""
    alone = Cusum(10.0)
    alone.move(5.0, "only")
    assert alone.blamed() == ""


# -- what is usual -------------------------------------------------------------------------------------------------


@given(st.floats(1e-6, 1 - 1e-6))
def test_normal_scores_are_those_of_the_distribution(rank: float) -> None:
    assert normal_score(rank) == pytest.approx(NormalDist().inv_cdf(rank), rel=1e-7, abs=1e-8)


def fed(values: list[float], seconds: float = 5.0) -> tuple[ReferenceWindow, float]:
    window, at_s = ReferenceWindow(), 0.0
    for value in values:
        at_s += seconds
        window.add(bin_of(value), at_s)
    return window, at_s


def test_a_window_is_silent_until_it_knows_enough_and_never_knows_its_neighbours() -> None:
    window, at_s = fed([1.0] * LEAST, seconds=1.0)
    usual = bin_of(1.0)
    assert window.score(usual, at_s) is None
    assert window.score(usual, at_s + GAP_S) is None  # the slot that they are in ended later
    assert window.score(usual, at_s + 2 * GAP_S) == 0
    assert window.ready
    assert window.score(usual, at_s + GAP_S + WINDOW_S + 3600) is None


@settings(max_examples=30)
@given(st.lists(st.floats(0.01, 1000), min_size=LEAST, max_size=2 * LEAST))
def test_scores_rise_with_the_value_and_are_cut(values: list[float]) -> None:
    window, at_s = fed(values)
    at_s += 2 * GAP_S
    scores = [window.score(bin_of(10 ** (exponent / 10)), at_s) for exponent in range(-30, 40)]
    known = [score for score in scores if score is not None]
    assert len(known) == len(scores)
    assert all(later >= earlier for earlier, later in pairwise(known))
    assert -FARTHEST <= known[0] < 0 < known[-1] <= FARTHEST


def test_scores_of_what_is_usual_are_normal() -> None:
    chance = random.Random(1)
    values = [chance.lognormvariate(1.0, 0.8) for _ in range(4000)]
    window, at_s = fed(values)
    at_s += 2 * GAP_S
    scores = [window.score(bin_of(chance.lognormvariate(1.0, 0.8)), at_s) or 0.0 for _ in range(4000)]
    mean = sum(scores) / len(scores)
    assert abs(mean) < 0.06
    assert math.sqrt(sum((score - mean) ** 2 for score in scores) / len(scores)) == pytest.approx(1.0, abs=0.06)


# -- the bank ------------------------------------------------------------------------------------------------------


class Bank:
    """A bank with a clock: three values a look."""

    def __init__(self, *robust_z: str) -> None:
        self.detector = AnomalyDetector(robust_z)
        self.at_s = 0.0
        self.alarms: list[Alarm] = []
        self._chance = random.Random(7)

    def pass_s(self, seconds: float, times: float = 1.0, metric: str = "token_s", role: str = "a") -> None:
        for _ in range(round(seconds / 5)):
            for _ in range(3):
                value = self._chance.lognormvariate(-4.0, 0.4) * times
                self.detector.measure(metric, value, self.at_s, group="g", role=role, scope="up")
            self.look()

    def look(self) -> None:
        self.at_s += 5
        self.alarms += self.detector.look(self.at_s)


def test_a_slowdown_is_one_alarm_of_each_metric_with_its_size() -> None:
    bank = Bank()
    bank.pass_s(4 * 3600)
    assert bank.alarms == []
    began = bank.at_s
    bank.pass_s(300, times=3.0)
    first = [alarm for alarm in bank.alarms if alarm.step is AlarmStep.BEGAN]
    assert [alarm.name for alarm in first] == ["token_s", "token_s@up"]
    assert first[0].at_s - began <= 60
    worse = next(alarm for alarm in bank.alarms if alarm.step is AlarmStep.WORSENED)
    assert worse.level is AlarmLevel.CRITICAL
    assert 2 < float(worse.size.split()[0]) < 4.5
    bank.pass_s(3600)
    steps = [alarm.step for alarm in bank.alarms if not alarm.scope]
    assert steps == [AlarmStep.BEGAN, AlarmStep.WORSENED, AlarmStep.ENDED]


@pytest.mark.parametrize("quiet_s", [0.0, 50.0, 3600.0])
def test_looks_without_samples_move_nothing(quiet_s: float) -> None:
    one, other = Bank(), Bank()
    for bank in (one, other):
        bank.pass_s(3 * 3600)
    for _ in range(round(quiet_s / 5)):
        other.look()
    assert other.alarms == []
    for bank in (one, other):
        bank.pass_s(60, times=3.0)
    assert [alarm.name for alarm in one.alarms] == [alarm.name for alarm in other.alarms] != []


def test_an_alarm_that_goes_on_for_hours_is_the_new_usual() -> None:
    bank = Bank()
    for _ in range(300):
        bank.detector.judge("shed", False)
    bank.look()
    while bank.at_s < LONGEST_S + 600 and not any(one.step is AlarmStep.ENDED for one in bank.alarms):
        bank.detector.judge("shed", True)
        bank.look()
    assert [one.step for one in bank.alarms] == [AlarmStep.BEGAN, AlarmStep.WORSENED, AlarmStep.ENDED]
    assert LONGEST_S <= bank.alarms[-1].at_s - bank.alarms[0].at_s < LONGEST_S + 10


def test_an_alarm_ends_only_after_a_while_of_calm() -> None:
    bank = Bank()
    for _ in range(300):
        bank.detector.judge("shed", False)
    for _ in range(2):
        bank.detector.judge("shed", True)
    bank.look()
    for _ in range(1000):
        bank.detector.judge("shed", False)
    for _ in range(CALM_LOOKS):  # in the first of them it had been high since the look before
        bank.look()
    assert [one.step for one in bank.alarms] == [AlarmStep.BEGAN]
    bank.look()
    assert [one.step for one in bank.alarms] == [AlarmStep.BEGAN, AlarmStep.ENDED]


def test_a_declared_change_ends_alarms_and_begins_anew() -> None:
    bank = Bank()
    bank.pass_s(4 * 3600)
    bank.pass_s(300, times=3.0)
    ended = bank.detector.restart(bank.at_s)
    assert {(one.name, one.step) for one in ended} == {("token_s", AlarmStep.ENDED), ("token_s@up", AlarmStep.ENDED)}
    bank.alarms.clear()
    bank.pass_s(4 * 3600, times=3.0)
    assert bank.alarms == []


def test_a_metric_may_be_judged_by_its_robust_z() -> None:
    found = {}
    for name, bank in (("z", Bank("token_s")), ("usual", Bank())):
        for value in (*[1.0] * 40, 100.0):
            bank.detector.measure("token_s", value, bank.at_s, group="g", role="a")
            bank.look()
        found[name] = [(one.metric, one.size) for one in bank.alarms]
    assert found["usual"] == []
    ((metric, size),) = found["z"]
    assert metric == "token_s"
    assert 90 < float(size.split()[0]) < 110


def test_a_z_of_a_constant_that_jumps_is_large_and_a_short_window_silent() -> None:
    score = RobustZ()
    for _ in range(29):
        score.step(5.0)
    score.step(500.0)
    assert score.take_peak() == 0
    for _ in range(60):
        score.step(5.0)
    assert score.take_peak() == 0
    score.step(6.0)
    assert score.take_peak() > 3.5


@given(st.sampled_from(sorted(name for name in PLANS if "@" not in name)), st.integers(0, 500))
def test_nothing_alarms_before_it_knows_what_is_usual(metric: str, seed: int) -> None:
    bank, chance = Bank(), random.Random(seed)
    for _ in range(PLANS[metric].least - 1):
        if metric == "calls":
            bank.detector.count(metric, chance.choice((0, 1)), 5.0, 5.0)
        elif PLANS[metric].allowance:
            bank.detector.measure(metric, chance.choice((0.01, 1e6)), bank.at_s, group="g", role="")
        else:
            bank.detector.judge(metric, chance.random() < 0.5)
        bank.at_s += 0.1
    assert bank.detector.look(bank.at_s) == []


def test_scopes_are_bounded() -> None:
    detector = AnomalyDetector()
    for number in range(500):
        detector.judge("fault", False, scope=f"up{number}")
    assert len(detector) < 30


def test_rank_steps_are_sums_of_scores_above_the_allowance() -> None:
    detector = RankCusum(0.75, 16.0)
    for _ in range(4):
        detector.step(1.75, 10, "")
    assert detector.cusum.sum == pytest.approx(4.0)
    assert detector.bins_above == 40
    detector.step(-9.0, 0, "")
    assert (detector.cusum.sum, detector.bins_above) == (0, 0)
