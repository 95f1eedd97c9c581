"""Two sets of globs: never "no" when a common file exists."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.policy.overlap import globs_overlap, overlap

_PART = st.sampled_from(["a", "b", "ab", "*", "a*", "?b"])
_GLOB = st.lists(_PART, min_size=1, max_size=3).map("/".join)
_FILE = st.lists(st.sampled_from(["a", "b", "ab", "bb"]), min_size=1, max_size=3).map("/".join)


@given(one=_GLOB, other=_GLOB, file=_FILE)
def test_a_common_file_means_overlap(one: str, other: str, file: str) -> None:
    if fnmatchcase(file, one) and fnmatchcase(file, other):
        assert globs_overlap(one, other)


@given(one=st.lists(_GLOB, max_size=3), other=st.lists(_GLOB, max_size=3))
def test_symmetric(one: list[str], other: list[str]) -> None:
    assert overlap(one, other) == overlap(other, one)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("src/a.py", "src/a.py", True),
        ("src/a.py", "src/b.py", False),
        ("src", "src/b.py", True),
        ("src/ab", "src/a", False),
        ("src/**", "docs/**", False),
        ("**/*.py", "docs/x.md", True),
        ("src/*.py", "src/deep/x.py", True),
    ],
)
def test_examples(one: str, other: str, expected: bool) -> None:
    assert globs_overlap(one, other) is expected


def test_no_paths_overlap_with_nothing() -> None:
    assert not overlap((), ("**",))
