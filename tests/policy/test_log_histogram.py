"""The sketch keeps the error it promises, merged or not."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.policy.log_histogram import LEAST, MOST, RELATIVE_ERROR, LogHistogram, bin_of, value_of

VALUES = st.lists(st.floats(LEAST, MOST), min_size=1, max_size=200)


def of(values: list[float]) -> LogHistogram:
    made = LogHistogram()
    for value in values:
        made.add(value)
    return made


@given(VALUES, st.floats(0, 1))
def test_a_quantile_is_within_the_relative_error_of_the_true_one(values: list[float], share: float) -> None:
    true = sorted(values)[math.floor(share * (len(values) - 1))]
    found = of(values).quantile(share)
    assert found == pytest.approx(true, rel=RELATIVE_ERROR * 1.0001)


@given(VALUES, VALUES)
def test_merged_is_the_same_as_told_to_one(first: list[float], second: list[float]) -> None:
    merged, one = of(first), of(first + second)
    merged.merge(of(second))
    assert (merged.bins, merged.count) == (one.bins, one.count)
    assert merged.total == pytest.approx(one.total)


@given(VALUES)
def test_written_and_read_it_is_the_same(values: list[float]) -> None:
    one = of(values)
    read = LogHistogram.from_json(json.loads(json.dumps(one.to_json())))
    assert (read.bins, read.count, read.total) == (one.bins, one.count, one.total)


@given(st.floats(0, 1e300) | st.just(math.inf))
def test_every_value_has_a_bin_of_few(value: float) -> None:
    assert bin_of(LEAST) <= bin_of(value) <= bin_of(MOST)
    assert bin_of(MOST) - bin_of(LEAST) < 700
    assert LEAST * 0.97 <= value_of(bin_of(value)) <= MOST * 1.03


def test_nothing_has_no_quantile() -> None:
    assert LogHistogram().quantile(0.5) is None
