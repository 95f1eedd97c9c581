"""What the daemon puts before agents, written by hand: the protocol's own files, so that its tests need no daemon."""

from __future__ import annotations

import json
import shlex
import subprocess
from typing import TYPE_CHECKING

from coordinator.domain.attempt import ClaimRecord, Order
from coordinator.sdk.layout import branch_name

if TYPE_CHECKING:
    from pathlib import Path

    from coordinator.sdk.layout import Layout


def offer(
    layout: Layout, task: str, generation: int = 1, *, priority: int = 1, role: str = "r", heartbeat_s: float = 5.0
) -> Path:
    """Brief, order and ready entry of one generation; returns the entry."""
    attempt = layout.attempt(task, generation)
    attempt.mkdir(parents=True, exist_ok=True)
    (attempt / "brief.md").write_text(f"# {task}\n\nSay hello.\n", encoding="utf-8")
    order = Order(
        attempt=str(attempt),
        base=head(layout.repository),
        branch=branch_name(task, generation),
        brief=str(attempt / "brief.md"),
        generation=generation,
        heartbeat_s=heartbeat_s,
        repository=str(layout.repository),
        role=role,
        task=task,
        worktree=str(layout.worktree(task, generation)),
    )
    (attempt / "order.json").write_text(json.dumps(order.to_json()))
    names = ("attempt", "base", "branch", "brief", "generation", "repository", "role", "task", "timeout_s", "worktree")
    lines = [f"COORDINATOR_{name.upper()}={shlex.quote(str(getattr(order, name)))}\n" for name in names]
    (attempt / "order.env").write_text("".join(lines))
    entry = layout.ready_entry(priority, generation, task)
    entry.write_text(json.dumps({"generation": generation, "role": role, "task": task}))
    return entry


def head(repository: Path) -> str:
    """The commit checked out, or nothing where there is no repository."""
    answer = subprocess.run(
        ["git", "-C", str(repository), "rev-parse", "HEAD"], check=False, capture_output=True, text=True
    )
    return answer.stdout.strip() if answer.returncode == 0 else ""


def somebody(task: str, generation: int, *, state: str = "held") -> ClaimRecord:
    """The record of an agent that is not us."""
    return ClaimRecord(
        agent="rival", boot="b", generation=generation, host="elsewhere", pid=4711, started="1", state=state, task=task
    )
