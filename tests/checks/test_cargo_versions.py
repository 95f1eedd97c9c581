from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.checks.cargo_versions import comes_later, is_reachable, latest_crate_version, next_patched, read_lock

versions = st.from_regex(r"[0-9]\.[0-9]{1,2}\.[0-9]{1,2}(-(rc|beta)\.[0-9])?", fullmatch=True)


@pytest.mark.parametrize(
    ("present", "patched", "found"),
    [
        ("1.6.0", (">=0.6.14, <1.0.0", ">=1.6.1"), "1.6.1"),
        ("0.6.10", (">=0.6.14, <1.0.0", ">=1.6.1"), "0.6.14"),
        ("0.5.0", (">=0.6.14, <1.0.0", ">=1.6.1"), "0.6.14"),  # not reachable, yet the nearest
        ("1.2.0", ("^1.4",), "1.4.0"),
        ("1.2.0", ("~1.3.5", ">=1.4.9"), "1.3.5"),
        ("1.2.0", (">=2",), "2.0.0"),
        ("1.2.0", ("=1.2.7",), "1.2.7"),
        ("1.2.0", ("1.2.8",), "1.2.8"),
        ("1.2.0", (">1.2.0",), ""),  # which one that is, nobody says
        ("1.2.0", ("<1.0.0",), ""),
        ("1.2.0", (">=1.1.0",), ""),
        ("1.2.0", (), ""),
        ("1.0.0-rc.1", (">=1.0.0-rc.3",), "1.0.0-rc.3"),
        ("1.2.0", ("*", "", ">= x"), ""),
    ],
)
def test_the_lowest_patched_version(present: str, patched: tuple[str, ...], found: str) -> None:
    assert next_patched(present, patched) == found


@pytest.mark.parametrize(
    ("version", "present", "reachable"),
    [
        ("1.9.0", "1.2.3", True),
        ("2.0.0", "1.2.3", False),
        ("0.2.4", "0.2.3", True),
        ("0.3.0", "0.2.3", False),
        ("0.0.4", "0.0.3", False),
        ("1.2.2", "1.2.3", False),
        ("1.2.3", "1.2.3", False),
        ("1.2.3", "1.2.3-rc.1", True),
        ("nonsense", "1.2.3", False),
    ],
)
def test_what_a_caret_requirement_admits(version: str, present: str, *, reachable: bool) -> None:
    assert is_reachable(version, present) is reachable


@given(st.lists(versions, min_size=1, max_size=6))
def test_the_order_is_total_and_the_latest_comes_after_all_others(some: list[str]) -> None:
    latest = latest_crate_version(some)
    assert not any(comes_later(one, latest) for one in some)


def test_marks_are_ordered_as_semver_has_it() -> None:
    order = ["1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2", "1.0.0-beta.11", "1.0.0"]
    assert all(comes_later(later, earlier) for earlier, later in itertools.pairwise(order))


def test_lines_of_a_lock_file_are_told_where_they_are_sure() -> None:
    text = 'version = 3\n\n[[package]]\nname = "a"\nversion = "1.0.0"\n\n[[package]]\nname = "b"\nversion = "2.0.0"\n'
    assert [(one.name, one.version, one.line) for one in read_lock(text)] == [("a", "1.0.0", 4), ("b", "2.0.0", 8)]
    odd = text.replace('name = "a"\n', 'name = "a" \n').replace(
        'version = "2.0.0"\n', 'version = "2.0.0"\nx = """\nname = \n"""\n'
    )
    assert {one.line for one in read_lock(odd)} == {0}
    with pytest.raises(ValueError, match="line 1"):
        read_lock("[[package]")
