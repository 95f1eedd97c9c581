"""The oldest goes first, and never what somebody still needs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.policy.retention import Remains, choose

_REMAINS = st.lists(
    st.builds(
        Remains,
        active=st.booleans(),
        age_s=st.floats(0, 1e6),
        bytes=st.integers(0, 1000),
        generation=st.integers(0, 3),
        newest=st.booleans(),
        settled=st.booleans(),
        task=st.sampled_from("abcd"),
    ),
    max_size=20,
)
_AGES = st.one_of(st.none(), st.floats(0, 1e6))
_SIZES = st.one_of(st.none(), st.integers(0, 8000))


def _one(task: str, age_s: float, *, size: int = 10, active: bool = False, settled: bool = True) -> Remains:
    return Remains(active=active, age_s=age_s, bytes=size, generation=1, newest=True, settled=settled, task=task)


@given(_REMAINS, _AGES, _SIZES)
def test_what_is_needed_is_never_chosen(remains: list[Remains], age_s: float | None, size: int | None) -> None:
    for one in choose(remains, longest_age_s=age_s, most_bytes=size):
        assert not one.active
        assert one.settled or not one.newest


@given(_REMAINS, _AGES, _SIZES)
def test_afterwards_the_limits_hold_or_only_what_is_needed_is_left(
    remains: list[Remains], age_s: float | None, size: int | None
) -> None:
    chosen = choose(remains, longest_age_s=age_s, most_bytes=size)
    left = list(remains)
    for one in chosen:
        left.remove(one)
    if age_s is not None:
        assert all(one.age_s <= age_s or one.protected for one in left)
    if size is not None:
        assert sum(one.bytes for one in left) <= size or all(one.protected for one in left)


@given(_REMAINS, _AGES, _SIZES)
def test_nothing_goes_without_a_reason_and_the_oldest_goes_first(
    remains: list[Remains], age_s: float | None, size: int | None
) -> None:
    chosen = choose(remains, longest_age_s=age_s, most_bytes=size)
    assert [one.age_s for one in chosen] == sorted((one.age_s for one in chosen), reverse=True)
    left = sum(one.bytes for one in remains)
    for one in chosen:
        assert (age_s is not None and one.age_s > age_s) or (size is not None and left > size)
        left -= one.bytes


def test_size_takes_the_oldest_and_stops_in_time() -> None:
    remains = [_one("new", 1), _one("old", 3), _one("middle", 2), _one("at-work", 9, active=True)]
    assert [one.task for one in choose(remains, longest_age_s=None, most_bytes=25)] == ["old", "middle"]


def test_age_spares_what_a_task_goes_on_with() -> None:
    remains = [_one("settled", 100), _one("held", 100, settled=False), _one("young", 5)]
    assert [one.task for one in choose(remains, longest_age_s=50, most_bytes=None)] == ["settled"]
