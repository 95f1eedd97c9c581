"""The table of task states."""

from __future__ import annotations

import pytest

from coordinator.domain.errors import ForbiddenTransition
from coordinator.domain.task import (
    ACTIVE,
    OPERATOR_MAY,
    OWNED,
    SETTLED,
    TASK_ID,
    TRANSITIONS,
    Task,
    TaskState,
    check_transition,
    check_wish,
)


def test_every_state_is_in_the_table_and_reachable_from_pending() -> None:
    assert set(TRANSITIONS) == set(TaskState)
    seen, todo = {TaskState.PENDING}, [TaskState.PENDING]
    while todo:
        for state in TRANSITIONS[todo.pop()] - seen:
            seen.add(state)
            todo.append(state)
    assert seen == set(TaskState)


def test_every_state_can_be_left_for_a_settled_one() -> None:
    for state in TaskState:
        seen, todo = {state}, [state]
        while todo:
            for following in TRANSITIONS[todo.pop()] - seen:
                seen.add(following)
                todo.append(following)
        assert seen & SETTLED


def test_only_landing_and_evidence_complete_a_task() -> None:
    into = {state for state, following in TRANSITIONS.items() if TaskState.COMPLETED in following}
    assert into == {TaskState.LANDING, TaskState.PENDING, TaskState.BLOCKED, TaskState.HELD}
    assert not into & OWNED


def test_owned_is_active_and_settled_is_not() -> None:
    assert OWNED < ACTIVE
    assert not ACTIVE & SETTLED


def test_a_missing_arrow_is_refused_and_the_possible_ones_are_named() -> None:
    with pytest.raises(ForbiddenTransition, match="completed → running is not possible .from completed: pending."):
        check_transition("t", TaskState.COMPLETED, TaskState.RUNNING)


def test_a_person_cannot_take_a_task_from_under_an_agent() -> None:
    for state in OWNED | {TaskState.VALIDATING, TaskState.LANDING}:
        with pytest.raises(ForbiddenTransition, match=f"retry has no meaning for t, which is {state}"):
            check_wish("t", "retry", state)
    for wish, states in OPERATOR_MAY.items():
        for state in states:
            check_wish("t", wish, state)


@pytest.mark.parametrize("text", ["../../x", "", ".hidden", "A", "a" * 101, "a/b", "a b", "ä"])
def test_ids_that_are_no_file_names(text: str) -> None:
    assert TASK_ID.fullmatch(text) is None


def test_headline_is_title_or_first_line() -> None:
    assert Task(id="a", prompt="one\ntwo").headline == "one"
    assert Task(id="a", prompt="one", title="T").headline == "T"
    assert len(Task(id="a", prompt="x" * 200).headline) == 80
