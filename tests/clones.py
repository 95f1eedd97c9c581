"""Private clones as agents make them, for tests that play the agent."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from coordinator.domain.worktree import clone_commands
from coordinator.sdk.layout import branch_name

if TYPE_CHECKING:
    from pathlib import Path

    from coordinator.sdk.layout import Layout


def make_clone(layout: Layout, base: str, task_id: str = "a", generation: int = 1) -> Path:
    """The working tree of one attempt, made with the very lines that agents run."""
    worktree = layout.worktree(task_id, generation)
    lines = clone_commands(
        repository=str(layout.repository),
        worktree=str(worktree),
        base=base,
        branch=branch_name(task_id, generation),
    )
    for line in lines:
        subprocess.run(line, check=True, capture_output=True)
    return worktree
