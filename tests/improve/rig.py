"""A repository with planted faults and a discovery on it, all real; the ledger's part is played by rows."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

from coordinator.domain.settings import DiscoverySettings, Settings
from coordinator.improve.discovery import Discovery
from coordinator.kit.bus import Bus
from coordinator.kit.clock import SystemClock
from coordinator.kit.git import Git
from coordinator.kit.store import QUERIES, Store
from coordinator.sdk.layout import Layout

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

    from coordinator.domain.event import Event
    from coordinator.domain.task import TaskState

FAULTS = {
    "shop/stock.py": "import os\nimport sys\n\n\ndef count(items):\n    return len(items)\n",
    "shop/till.py": "import json\n\n\ndef ring():\n    return f'bell'\n",
    "shop/web/page.py": "import re\n\n\ndef page(tags=[]):\n    return tags\n",
}
"""Four unused imports in two folders, one f-string without placeholders (all safe to fix), one mutable default (not)."""


def git(directory: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(directory), *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def commit(repository: Path, changes: dict[str, str | None]) -> None:
    for name, text in changes.items():
        path = repository / name
        if text is None:
            path.unlink()
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    git(repository, "add", "--all", "--", *changes)
    git(repository, "commit", "--quiet", "-m", "Change")


class Rig:
    def __init__(self, repository: Path, *, target: str = "main", **settings: object) -> None:
        self.repository = repository
        self.auto = repository / "tasks" / "auto"
        self.layout = Layout(repository, repository / ".coordinator")
        self.layout.state.mkdir(exist_ok=True)
        (self.layout.state / ".gitignore").write_text("*\n")
        self.store = Store.open(self.layout.ledger)
        self.clock = SystemClock()
        self.bus = Bus(self.clock)
        self.events: list[Event] = []
        self.bus.tap(lambda published: self.events.append(published.event))
        chosen = replace(DiscoverySettings(), **settings)  # type: ignore[arg-type]
        self.discovery = Discovery(
            Git(repository, repository / ".git"),
            Settings(discovery=chosen),
            self.layout,
            self.store,
            self.bus,
            self.clock,
            target=target,
        )

    def files(self) -> dict[str, str]:
        return {path.stem: path.read_text() for path in sorted(self.auto.glob("*.toml"))}

    def rows(self) -> list[dict[str, object]]:
        return [dict(row) for row in self.store.query("findings")]

    def states(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for row in self.rows():
            counts[str(row["state"])] = counts.get(str(row["state"]), 0) + 1
        return counts

    def set_state(self, task_id: str, state: TaskState) -> None:
        """What the ledger would say of a task."""
        row = dict.fromkeys(re.findall(r":(\w+)", QUERIES["task_put"]), 0)  # the columns are the ledger's business
        self.store.execute("task_put", **{**row, "id": task_id, "state": state})

    def row_of(self, rule: str, path: str) -> sqlite3.Row:
        (row,) = [row for row in self.store.query("findings") if (row["rule"], row["path"]) == (rule, path)]
        return row
