"""The text an agent gets on stdin: who it is, what to do, within which limits, and what went wrong before.

Composed from values only; what the gate or a limit said about the last attempt stands last, where models heed it most.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coordinator.domain.card import RoleCard
    from coordinator.domain.task import Task

FEEDBACK_LIMIT = 8_000
"""Characters of feedback that go into a brief; more drowns the task itself."""


def compose(task: Task, card: RoleCard, *, generation: int, feedback: str) -> str:
    """Markdown. The task's own prompt is passed on unchanged."""
    parts = [f"# {task.headline}", f"Task `{task.id}`, attempt {generation}."]
    if card.standing_brief.strip():
        parts.append(card.standing_brief.strip())
    parts.append("## What to do")
    parts.append(task.prompt.strip("\n"))
    rules = _rules(task, card)
    if rules:
        parts.append("## What must hold")
        parts.append("\n".join(f"- {rule}" for rule in rules))
    if feedback.strip():
        parts.append("## Why the last attempt did not land")
        parts.append(_shortened(feedback.strip()))
    return "\n\n".join(parts) + "\n"


def _rules(task: Task, card: RoleCard) -> list[str]:
    rules = []
    if task.paths:
        rules.append("Touch only: " + ", ".join(f"`{path}`" for path in task.paths))
    if card.paths:
        rules.append(f"Agents of role {card.role} touch only: " + ", ".join(f"`{path}`" for path in card.paths))
    rules.extend(f"This command exits 0 on the merged tree: `{command}`" for command in task.accept)
    return rules


def _shortened(text: str) -> str:
    if len(text) <= FEEDBACK_LIMIT:
        return text
    half = FEEDBACK_LIMIT // 2
    return f"{text[:half]}\n[… {len(text) - FEEDBACK_LIMIT} characters left out …]\n{text[-half:]}"
