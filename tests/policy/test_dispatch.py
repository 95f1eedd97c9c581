"""Which tasks become ready: order, slots, overlap, refusal, pauses."""

from __future__ import annotations

from time import process_time

from hypothesis import given
from hypothesis import strategies as st

from coordinator.policy.dispatch import Waiting, choose
from coordinator.policy.overlap import overlap

_PATHS = st.sampled_from(["a.py", "b.py", "src/**", "src/x.py", "src/y/*.py", "docs/**", "**/*.md"])
_TASKS = st.lists(
    st.builds(
        Waiting,
        id=st.uuids().map(str),
        role=st.sampled_from(["autofix", "command"]),
        paths=st.lists(_PATHS, max_size=3).map(tuple),
        not_before=st.sampled_from([0.0, 5.0, 50.0]),
    ),
    max_size=12,
    unique_by=lambda task: task.id,
)


def _task(name: str, *paths: str, role: str = "autofix", not_before: float = 0.0) -> Waiting:
    return Waiting(id=name, role=role, paths=paths, not_before=not_before)


@given(waiting=_TASKS, active=_TASKS, room=st.integers(0, 6), slots=st.integers(0, 4))
def test_never_over_room_slots_or_paths(waiting: list[Waiting], active: list[Waiting], room: int, slots: int) -> None:
    choice = choose(waiting, active, now=10.0, refusal="", role_refusals={}, role_slots={"autofix": slots}, room=room)
    by_id = {task.id: task for task in waiting}
    chosen = [by_id[task_id] for task_id in choice.ready]
    assert len(chosen) <= room
    assert all(task.not_before <= 10.0 for task in chosen)
    new = [task for task in chosen if task.role == "autofix"]
    already = [task for task in active if task.role == "autofix"]
    assert not new or len(new) + len(already) <= slots
    for index, task in enumerate(chosen):
        assert not any(overlap(task.paths, other.paths) for other in [*active, *chosen[:index]])
    assert [task.id for task in chosen] == [task.id for task in waiting if task.id in set(choice.ready)]


@given(waiting=_TASKS, active=_TASKS)
def test_with_room_for_all_each_task_is_ready_or_has_a_cause_or_a_pause(
    waiting: list[Waiting], active: list[Waiting]
) -> None:
    choice = choose(waiting, active, now=10.0, refusal="", role_refusals={}, role_slots={}, room=100)
    explained = {task_id for task_id, _ in choice.causes} | set(choice.ready)
    paused = {task.id for task in waiting if task.not_before > 10.0}
    assert explained | paused == {task.id for task in waiting}
    assert (choice.wake_at is None) == (not paused)


def test_the_cause_names_the_task_in_the_way() -> None:
    choice = choose(
        [_task("second", "src/a.py")],
        [_task("first", "src/**")],
        now=0.0,
        refusal="",
        role_refusals={},
        role_slots={},
        room=4,
    )
    assert choice.ready == ()
    assert choice.causes == (("second", "task first is before it on the same paths"),)


def test_a_refusal_stops_everything_and_is_the_cause() -> None:
    choice = choose(
        [_task("one"), _task("two")], [], now=0.0, refusal="disk full", role_refusals={}, role_slots={}, room=4
    )
    assert choice.ready == ()
    assert choice.causes == (("one", "disk full"), ("two", "disk full"))


def test_a_task_behind_an_overlapping_one_overtakes_it() -> None:
    waiting = [_task("a", "x.py"), _task("b", "y.py")]
    choice = choose(waiting, [_task("busy", "x.py")], now=0.0, refusal="", role_refusals={}, role_slots={}, room=1)
    assert choice.ready == ("b",)


def test_the_earliest_end_of_a_pause_is_told() -> None:
    waiting = [_task("b", not_before=9.0), _task("a", not_before=7.0)]
    assert choose(waiting, [], now=0.0, refusal="", role_refusals={}, role_slots={}, room=1).wake_at == 7.0


def test_ten_thousand_in_each_others_way_are_looked_at_quickly() -> None:
    waiting = [_task(f"t{number}", f"src/{number % 3000}.py", "src/one.py") for number in range(10_000)]
    began = process_time()
    choice = choose(
        waiting, [_task("busy", "src/one.py")], now=0.0, refusal="", role_refusals={}, role_slots={}, room=5
    )
    assert choice.ready == ()
    assert process_time() - began < 1.0, "about 0.05 s on an idle machine"


def test_a_broad_task_is_not_overtaken_on_its_paths_for_ever() -> None:
    waiting = [_task("broad", "src/**"), _task("narrow", "src/a.py"), _task("elsewhere", "docs/x.md")]
    choice = choose(waiting, [_task("busy", "src/b.py")], now=0.0, refusal="", role_refusals={}, role_slots={}, room=5)
    assert choice.ready == ("elsewhere",)
    assert dict(choice.causes)["narrow"] == "task broad is before it on the same paths"


def test_a_paused_role_says_why_and_others_go_on() -> None:
    waiting = [_task("a", role="model"), _task("b")]
    choice = choose(waiting, [], now=0.0, refusal="", role_refusals={"model": "paused"}, role_slots={}, room=5)
    assert choice.ready == ("b",)
    assert choice.causes == (("a", "paused"),)


def test_roles_without_room_of_ours_neither_use_it_nor_need_it() -> None:
    waiting = [_task("out1", role="robot"), _task("out2", role="robot"), _task("own"), _task("own2")]
    choice = choose(
        waiting, [], now=0.0, refusal="", role_refusals={}, role_slots={"robot": 1}, room=1, roomless={"robot"}
    )
    assert choice.ready == ("out1", "own")
