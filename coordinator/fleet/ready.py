"""Ready entries: what agents may claim now, written here and nowhere else.

Owns one invariant: an entry names exactly one generation, and everything that generation needs (brief, order, pinned
base) is on disk before the entry appears. Taking an entry back is done under the claim's own lock, so it either was
claimed or is gone. Which tasks become ready is ``policy.dispatch``'s decision.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coordinator.domain.attempt import Order
from coordinator.fleet.directory import keep_out_of_commits
from coordinator.kit import lock
from coordinator.policy import brief
from coordinator.sdk.layout import Layout, branch_name, task_of_entry

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from coordinator.domain.card import RoleCard
    from coordinator.domain.settings import FleetSettings
    from coordinator.domain.task import Task
    from coordinator.fleet.workspace import Workspaces


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatch:
    """One task about to be made ready: its card, the commit to start from, what the last attempt should have known, and
    the session of an earlier attempt to go on with (empty: a fresh one). ``model`` was chosen for it (empty: the task's or
    the card's)."""

    base: str
    card: RoleCard
    feedback: str
    generation: int
    model: str = ""
    resume: str = ""
    task: Task


class ReadyBoard:
    """The folder ``ready/``."""

    def __init__(
        self,
        layout: Layout,
        workspaces: Workspaces,
        settings: FleetSettings,
        *,
        credentials: Callable[[str, int], tuple[str, str]] = lambda task_id, generation: ("", ""),
    ) -> None:
        """``credentials`` gives the gateway's base URL and the key for an attempt; both empty while no gateway runs."""
        self._credentials = credentials
        self._layout = layout
        self._workspaces = workspaces
        self._settings = settings
        self._seq = 0
        self._entries: dict[str, Path] = {}

    async def publish(self, item: Dispatch) -> None:
        """Pin the base, write brief and order, then let the entry appear. Raises ``ToolFailed`` or ``OSError``."""
        await self._workspaces.pin([(item.task.id, item.generation, item.base)])
        self._seq += 1
        path = self._layout.ready_entry(item.task.priority, self._seq, item.task.id)
        self._entries[item.task.id] = path
        await asyncio.to_thread(self._write, item, path)

    def offers(self, task_id: str) -> bool:
        """Whether the entry lies there right now."""
        path = self._entries.get(task_id)
        return path is not None and path.exists()

    def withdraw(self, task_id: str, generation: int | None = None) -> bool:
        """Take an entry back. False when an agent holds the claim or has claimed ``generation`` (None: the entry's own)."""
        held = lock.acquire(self._layout.claim_lock(task_id))
        if held is None:
            return False
        with held:
            path = self._entries.get(task_id)
            if generation is None and path is not None:
                generation = _generation_of(path)
            record = lock.read_record(self._layout.claim_record(task_id))
            if generation is not None and record is not None and record.generation >= generation:
                return False
            self.clear(task_id)
            return True

    def clear(self, task_id: str) -> None:
        """Remove what is left of an entry whose claim was seen."""
        path = self._entries.pop(task_id, None)
        if path is not None:
            path.unlink(missing_ok=True)

    def load(self) -> dict[str, Path]:
        """What lies in the folder, by task; called once at start. Files that are no entries are left alone."""
        self._layout.ready.mkdir(parents=True, exist_ok=True)
        for path in sorted(self._layout.ready.iterdir()):
            if path.name.count("-") >= 2 and not path.name.startswith("."):
                self._entries[task_of_entry(path.name)] = path
        return dict(self._entries)

    def _write(self, item: Dispatch, path: Path) -> None:
        order = self._order(item)
        folder = self._layout.attempt(item.task.id, item.generation)
        folder.mkdir(parents=True, exist_ok=True)
        keep_out_of_commits(self._layout)  # whoever tidied up may have taken that away as well
        text = brief.compose(item.task, item.card, generation=item.generation, feedback=item.feedback)
        lock.write_atomic(folder / "brief.md", text.encode())
        lock.write_atomic(folder / "order.json", json.dumps(order.to_json(), indent=1).encode())
        lock.write_atomic(folder / "order.env", shell_lines(order).encode())
        entry = {"generation": item.generation, "role": order.role, "task": item.task.id}
        path.parent.mkdir(parents=True, exist_ok=True)  # somebody may have tidied up
        lock.write_atomic(path, json.dumps(entry).encode())

    def _order(self, item: Dispatch) -> Order:
        task, card = item.task, item.card
        folder = self._layout.attempt(task.id, item.generation)
        gateway, key = self._credentials(task.id, item.generation)
        return Order(
            attempt=str(folder),
            base=item.base,
            branch=branch_name(task.id, item.generation),
            brief=str(folder / "brief.md"),
            budget_usd=task.budget_usd or card.budget_usd,
            command=card.command,
            driver=card.driver,
            env=tuple({**dict(card.variables), **dict(task.env)}.items()),
            env_names=card.env,
            finish_s=self._settings.finish_s,
            gateway=gateway,
            generation=item.generation,
            grace_s=self._settings.grace_s,
            heartbeat_s=self._settings.heartbeat_s,
            home=str(self._layout.home(task.id)),
            key=key,
            max_turns=card.max_turns,
            memory_bytes=card.memory_bytes,
            model=item.model or task.model or card.model,
            paths=task.paths or card.paths,
            permission_mode=card.permission_mode,
            priority=task.priority,
            repository=str(self._layout.repository),
            resume=item.resume,
            role=card.role,
            session=str(uuid.uuid4()),
            task=task.id,
            timeout_s=task.timeout_s or card.timeout_s,
            title=task.headline,
            tools=card.tools,
            worktree=str(self._layout.worktree(task.id, item.generation)),
        )


def shell_lines(order: Order) -> str:
    """The order as lines a POSIX shell can source, for agents that have no JSON parser."""
    values = {
        "COORDINATOR_ATTEMPT": order.attempt,
        "COORDINATOR_BASE": order.base,
        "COORDINATOR_BRANCH": order.branch,
        "COORDINATOR_BRIEF": order.brief,
        "COORDINATOR_GENERATION": str(order.generation),
        "COORDINATOR_HEARTBEAT_S": f"{order.heartbeat_s:g}",
        "COORDINATOR_MODEL": order.model,
        "COORDINATOR_REPOSITORY": order.repository,
        "COORDINATOR_ROLE": order.role,
        "COORDINATOR_TASK": order.task,
        "COORDINATOR_TIMEOUT_S": f"{order.timeout_s:g}",
        "COORDINATOR_WORKTREE": order.worktree,
    }
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())


def _generation_of(path: Path) -> int | None:
    try:
        return int(json.loads(path.read_bytes())["generation"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
