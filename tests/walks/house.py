"""A small real repository with tests, tasks and scripted agents, and ways to run the real daemon on it."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

_ENV = {
    **{name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_AUTHOR_NAME": "Ada",
    "GIT_AUTHOR_EMAIL": "ada@example.org",
    "GIT_COMMITTER_NAME": "Ada",
    "GIT_COMMITTER_EMAIL": "ada@example.org",
    "NO_COLOR": "1",
}

_EDIT_CARD = """\
description = "Runs the shell lines of the brief between the marks."
command = ["sh", "-c", "sed -n '/^#!run/,/^#!end/p' \\"$COORDINATOR_BRIEF\\" | grep -v '^#!' > \\"$COORDINATOR_ATTEMPT/script\\"; sh -e \\"$COORDINATOR_ATTEMPT/script\\""]
timeout = 60
"""

_SETTINGS = """\
[fleet]
agents = 3
backoff_s = 0.1
default_role = "edit"

[gate]
commands = ["python3 -m unittest -q"]
"""

_MODULE = "import os\n\n\ndef double(number):\n    return number * 2\n"
_TEST = """\
import unittest

from calc import double


class DoubleTest(unittest.TestCase):
    def test_double(self):
        self.assertEqual(double(2), 4)
"""


@dataclass(frozen=True)
class House:
    """A repository at ``top``."""

    top: Path

    def git(self, *args: str, check: bool = True) -> str:
        done = subprocess.run(["git", *args], cwd=self.top, env=_ENV, capture_output=True, text=True, check=False)
        if check and done.returncode:
            raise AssertionError(f"git {args}: {done.stderr}")
        return done.stdout.strip()

    def task(self, task_id: str, script: str, **keys: Any) -> Path:
        """Drop a task whose agent runs ``script`` in its worktree."""
        lines = [f"{name} = {json.dumps(value)}" for name, value in keys.items()]
        prompt = f"Do it.\n#!run\n{script}\n#!end\n"
        path = self.top / "tasks" / f"{task_id}.toml"
        path.parent.mkdir(exist_ok=True)
        body = "\n".join(["[[tasks]]", f'id = "{task_id}"', f"prompt = '''\n{prompt}'''", *lines])
        temporary = path.with_suffix(".tmp")
        temporary.write_text(body + "\n")
        temporary.replace(path)
        return path

    def command(self, *args: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "coordinator", "-C", str(self.top), *args]
        return subprocess.run(argv, env=_ENV, capture_output=True, text=True, timeout=timeout, check=False)

    def start(self, *args: str) -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "coordinator", "-C", str(self.top), *args]
        return subprocess.Popen(argv, env=_ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        path = self.top / ".coordinator" / "ledger.db"
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()

    def states(self) -> dict[str, str]:
        try:
            return dict(self.rows("SELECT id, state FROM tasks"))
        except sqlite3.OperationalError:  # the daemon has not made it yet
            return {}

    def landed(self) -> list[str]:
        return self.landed_on("coordinator/main")

    def landed_on(self, branch: str) -> list[str]:
        """Task ids on a branch, oldest first, from the trailers."""
        text = self.git("log", "--reverse", "--format=%(trailers:key=Coordinator-Task,valueonly)", branch)
        return [line for line in text.splitlines() if line]

    def show(self, path: str, revision: str = "coordinator/main") -> str:
        return self.git("show", f"{revision}:{path}")


def build(top: Path) -> House:
    """A committed little package with one test, a card for scripted agents, and settings."""
    top.mkdir()
    house = House(top)
    house.git("init", "-q", "-b", "main")
    for name, text in {
        "calc.py": _MODULE,
        "test_calc.py": _TEST,
        "agents/edit.toml": _EDIT_CARD,
        "coordinator.toml": _SETTINGS,
    }.items():
        path = top / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    house.git("add", "-A")
    house.git("commit", "-q", "-m", "begin")
    return house


ENVIRONMENT = _ENV
