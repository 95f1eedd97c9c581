"""Orders for agents of ours, written by hand, and agents that carry them out: no daemon needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordinator.domain.attempt import Order, Result
from coordinator.kit import lock
from coordinator.sdk.layout import branch_name
from tests.conftest import git
from tests.waiting import wait_until

if TYPE_CHECKING:
    from coordinator.domain.attempt import ClaimRecord
    from coordinator.sdk.layout import Layout

ENV = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


@dataclass(frozen=True)
class Offer:
    """A task on offer and the files of its attempt."""

    layout: Layout
    task: str
    generation: int

    @property
    def folder(self) -> Path:
        return self.layout.attempt(self.task, self.generation)

    @property
    def log(self) -> str:
        path = self.folder / "agent.log"
        return path.read_text() if path.exists() else ""

    @property
    def record(self) -> ClaimRecord:
        record = lock.read_record(self.layout.claim_record(self.task))
        assert record is not None
        return record

    @property
    def result(self) -> Result | None:
        data = lock.read_object(self.folder / "result.json")
        return Result.from_json(data) if data else None

    @property
    def tree(self) -> Path:
        return self.layout.worktree(self.task, self.generation)

    def held(self) -> bool:
        return lock.is_held(self.layout.claim_lock(self.task))

    def ended(self) -> Result:
        """The result, once the claim was let go."""
        wait_until(lambda: self.result and not self.held(), 20, what=f"the end of {self.task}")
        result = self.result
        assert result is not None
        return result

    def wait_for(self, name: str) -> str:
        """Content of a file in the attempt's folder, once its last line is complete."""
        path = self.folder / name
        wait_until(lambda: path.exists() and path.read_text().endswith("\n"), 20, what=f"{name} of {self.task}")
        return path.read_text().strip()


def offer(layout: Layout, task: str, *script: str, generation: int = 1, brief: str = "", **more: Any) -> Offer:
    """Offer a task whose command is a shell script (or ``command``, given by name)."""
    made = Offer(layout, task, generation)
    made.folder.mkdir(parents=True)
    (made.folder / "brief.md").write_text(brief or f"# {task}\n")
    order = {
        "attempt": str(made.folder),
        "base": git(layout.repository, "rev-parse", "HEAD"),
        "branch": branch_name(task, generation),
        "brief": str(made.folder / "brief.md"),
        "command": ("sh", "-c", *script),
        "generation": generation,
        "grace_s": 2.0,
        "repository": str(layout.repository),
        "role": "r",
        "task": task,
        "timeout_s": 30.0,
        "worktree": str(made.tree),
        **more,
    }
    (made.folder / "order.json").write_text(json.dumps(Order(**order).to_json()))
    entry = {"generation": generation, "role": order["role"], "task": task}
    lock.write_atomic(layout.ready_entry(1, generation, task), json.dumps(entry).encode())
    return made


def start_agent(layout: Layout, *options: str, name: str = "agent-1", **env: str) -> subprocess.Popen[bytes]:
    """An agent process, as the pool would start it."""
    where = ["--state", str(layout.state), "--repository", str(layout.repository), "--name", name]
    log = (layout.agents / f"{name}.log").open("ab")
    with log:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "coordinator", "agent", *where, "--idle-exit", "0.2", *options],
            cwd="/",
            env={**ENV, **env},
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
