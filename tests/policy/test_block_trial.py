"""A block trial errs as rarely as it says under continuous looking, and finds what it is planned to find."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from coordinator.domain.knob import ChangeVerdict
from coordinator.policy.block_trial import EFFECT, ERROR, SPREAD, BlockTrial, pairs_planned


def verdicts(effect: float, trials: int, *, spread: float = SPREAD, most_pairs: int | None = None) -> Counter[str]:
    """Of trials in which chance decides which block is the new value's."""
    found: Counter[str] = Counter()
    chance = random.Random(5)
    for _ in range(trials):
        trial, verdict = BlockTrial(most_pairs), None
        while verdict is None:
            old, new = (chance.lognormvariate(0, spread) for _ in range(2))
            verdict = trial.take(old, new * (1 + effect))
        found["worse" if verdict is ChangeVerdict.REVERTED and trial.left > 0 else verdict] += 1
    return found


def test_without_an_effect_it_errs_in_few_however_long_it_looks() -> None:
    found = verdicts(0.0, 1500, most_pairs=60)
    assert found["kept"] <= 1500 * ERROR * 1.2
    assert found["worse"] <= 1500 * ERROR * 1.2


def test_what_it_is_planned_for_is_found_in_four_of_five() -> None:
    assert verdicts(EFFECT, 500)["kept"] >= 400
    assert verdicts(1 / (1 + EFFECT) - 1, 500)["worse"] >= 400


def test_smaller_effects_and_more_spread_need_more_pairs() -> None:
    assert pairs_planned(0.2) > 3 * pairs_planned(0.5) > 0
    assert pairs_planned(0.5, 0.6) > pairs_planned(0.5, 0.3)


@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), min_size=1, max_size=40))
def test_better_and_worse_are_mirror_images(scores: list[tuple[float, float]]) -> None:
    one, other = BlockTrial(1000), BlockTrial(1000)
    mirrored = {None: None, ChangeVerdict.KEPT: ChangeVerdict.REVERTED, ChangeVerdict.REVERTED: ChangeVerdict.KEPT}
    for old, new in scores:
        verdict = one.take(old, new)
        assert other.take(new, old) is mirrored[verdict]
        if verdict is not None:
            break


def test_where_nothing_comes_of_either_it_ends_all_the_same() -> None:
    trial = BlockTrial(3)
    assert [trial.take(0, 0) for _ in range(3)] == [None, None, ChangeVerdict.REVERTED]
    assert trial.said() == "nothing came of either"
