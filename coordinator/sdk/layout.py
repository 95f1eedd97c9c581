"""Where every file of the protocol is, and what the refs are called.

The one place that spells a path below ``.coordinator``; ``agents/PROTOCOL.md`` describes the same for other languages.
Pure arithmetic on paths: nothing here looks at the disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def ref_component(task_id: str) -> str:
    """A task id as one component of a git ref: ids may contain ``..`` or end in ``.lock`` or ``.``, refs may not."""
    text = task_id.replace("..", ".%2e").replace("..", ".%2e")
    if text.endswith(".lock"):
        text = text[: -len(".lock")] + "%2elock"
    return text[:-1] + "%2e" if text.endswith(".") else text


def base_ref(task_id: str, generation: int) -> str:
    """Holds the commit an attempt started from while its clone borrows objects."""
    return f"refs/coordinator/base/{ref_component(task_id)}/{generation}"


def branch_name(task_id: str, generation: int) -> str:
    """The branch an agent works on, in its private clone only."""
    return f"coordinator/{ref_component(task_id)}/{generation}"


def rescue_ref(task_id: str, generation: int) -> str:
    """Everything an attempt left behind, untracked files included."""
    return f"refs/coordinator/rescue/{ref_component(task_id)}/{generation}"


@dataclass(frozen=True, slots=True)
class Layout:
    """``repository`` is the top folder of the user's checkout, ``state`` the run-time folder (``.coordinator``)."""

    repository: Path
    state: Path

    @property
    def agents(self) -> Path:
        """One JSON file per living agent process of ours: ``{"agent", "pid", "started", "boot"}``."""
        return self.state / "agents"

    @property
    def api(self) -> Path:
        return self.state / "api.json"

    @property
    def attempts(self) -> Path:
        return self.state / "attempts"

    @property
    def claims(self) -> Path:
        return self.state / "claims"

    @property
    def daemon_lock(self) -> Path:
        return self.state / "daemon.lock"

    @property
    def homes(self) -> Path:
        """One folder per task: what its agents keep from one attempt to the next (configuration, sessions)."""
        return self.state / "homes"

    @property
    def ledger(self) -> Path:
        return self.state / "ledger.db"

    @property
    def ready(self) -> Path:
        return self.state / "ready"

    @property
    def worktrees(self) -> Path:
        return self.state / "worktrees"

    def attempt(self, task_id: str, generation: int) -> Path:
        return self.attempts / task_id / str(generation)

    def claim_lock(self, task_id: str) -> Path:
        return self.claims / f"{task_id}.lock"

    def claim_record(self, task_id: str) -> Path:
        return self.claims / f"{task_id}.json"

    def home(self, task_id: str) -> Path:
        return self.homes / task_id

    def ready_entry(self, priority: int, seq: int, task_id: str) -> Path:
        """Sorted by name, the most urgent and oldest first; the content is ``{"generation": N, "role": "…"}``."""
        return self.ready / f"{priority:06d}-{seq:010d}-{task_id}"

    def worktree(self, task_id: str, generation: int) -> Path:
        return self.worktrees / f"{task_id}-{generation}"


def task_of_entry(name: str) -> str:
    """The task id in a ready entry's file name."""
    return name.split("-", 2)[2]
