"""What an agent reads on stdin."""

from __future__ import annotations

from coordinator.domain.card import RoleCard
from coordinator.domain.task import Task
from coordinator.policy.brief import FEEDBACK_LIMIT, compose

_TASK = Task(id="t1", prompt="Do *this*.\n\n  keep   spaces", title="A title", accept=("pytest -q",), paths=("src/**",))


def test_prompt_is_passed_on_unchanged_and_rules_are_named() -> None:
    text = compose(_TASK, RoleCard(role="x", standing_brief="Be kind.\n"), generation=2, feedback="")
    assert "Do *this*.\n\n  keep   spaces" in text
    assert "Be kind." in text
    assert "`pytest -q`" in text
    assert "`src/**`" in text
    assert "attempt 2" in text
    assert "did not land" not in text


def test_feedback_stands_last_and_is_bounded() -> None:
    text = compose(_TASK, RoleCard(role="x"), generation=2, feedback="begin" + "x" * 50_000 + "end")
    assert text.rstrip().endswith("end")
    assert "characters left out" in text
    assert len(text) < FEEDBACK_LIMIT + 2_000
