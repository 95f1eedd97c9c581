"""The fleet that ``scripts/chaos`` torments: a repository, stand-ins for ``claude``, one daemon after the other.

Owns one invariant: all that happens is drawn from one seed (when it happens is the machine's), and everything lies in one
folder, on a small disk of its own where one can be mounted. What must hold is in ``chaos_checks``.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from typing import IO, TYPE_CHECKING, Any

from coordinator.fleet.muster import read_muster
from coordinator.kit.lock import process_start
from coordinator.sdk.layout import Layout
from tests.standin import search_path

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from tests.standin.upstream import PromptedUpstream

PROVIDER_KEY = "sk-the-house-alone-knows-this"
_NO_ROOM = ("coordinator: No space left on device", "coordinator: the ledger: database or disk is full")
ROLES = 12
"""Failures in a row pause a role: over so many of them, one bad run does not stop the fleet."""

GOOD = (
    "background s=0.2",
    "build s=2",
    "garbage",
    "linger",
    "orphans",
    "uncommitted",
    "work",
    "work",
    "work",
    "wrong_branch",
)
MENDED = (
    "crash | work",
    "crash code=1 | work",
    "delete_tests | work",
    "hang | work",
    "loop | work",
    "nothing | work",
    "stubborn | work",
    "work file=calc.py text='def double(n): return 0' | work",
)
BAD = ("crash", "delete_tests", "denied", "endless", "overflow")

_SETTINGS = """\
[fleet]
agents = {agents}
backoff_s = 0.2
default_role = "r0"
finish_s = 1.0
grace_s = 1.0
heartbeat_s = 0.5
idle_exit_s = 2.0
loop_repeats = 6
max_attempts = 4
min_free_bytes = 16777216
ramp_s = 0.1
silence_s = 10.0
stall_s = 3.0
think_limit_s = 3.0

[gate]
commands = ["{python} -m unittest -q"]
retry_s = 1.0

[gateway]
anthropic_url = "{url}"
hold_s = 2.0
"""
_CARD = """\
driver = "claude"
command = ["claude"]
budget_usd = 0.05
max_turns = 12
timeout = 20
"""
_MODULE = "def double(number):\n    return number * 2\n"
_TEST = """\
import unittest

from calc import double


class DoubleTest(unittest.TestCase):
    def test_double(self):
        self.assertEqual(double(2), 4)
"""


class ChaosFleet:
    """Used by one thread. ``place`` is an empty folder."""

    def __init__(self, place: Path, rng: random.Random, upstream: PromptedUpstream, *, agents: int) -> None:
        self.top = place / "repository"
        self.layout = Layout(self.top, self.top / ".coordinator")
        self.log = place.parent / f"{place.name}.log"
        self.rng, self.upstream, self.agents = rng, upstream, agents
        self.env = {
            name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "COORDINATOR_"))
        } | {
            "ANTHROPIC_API_KEY": PROVIDER_KEY,
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_CONFIG_SYSTEM": "/dev/null",
            "GIT_AUTHOR_NAME": "Ada",
            "GIT_AUTHOR_EMAIL": "ada@example.org",
            "GIT_COMMITTER_NAME": "Ada",
            "GIT_COMMITTER_EMAIL": "ada@example.org",
            "NO_COLOR": "1",
            "PATH": search_path(sys.executable, os.environ["PATH"]),
        }
        self.dropped: dict[str, str] = {}
        self.committed = 0
        self.code: int | None = None
        self.died: list[str] = []
        self.harmed: Counter[str] = Counter()
        self._daemon: subprocess.Popen[bytes] | None = None
        self._killed = False
        self._build()

    def _build(self) -> None:
        self.top.mkdir(parents=True)
        self.git("init", "-q", "-b", "main")
        settings = _SETTINGS.format(agents=self.agents, python=sys.executable, url=self.upstream.url)
        files = {"calc.py": _MODULE, "test_calc.py": _TEST, "coordinator.toml": settings, ".gitignore": "tasks/\n"}
        files |= {f"agents/r{number}.toml": _CARD for number in range(ROLES)}
        for name, text in files.items():
            (self.top / name).parent.mkdir(exist_ok=True)
            (self.top / name).write_text(text)
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "begin")

    def git(self, *arguments: str) -> str:
        argv = ["git", "-C", str(self.top), *arguments]
        return subprocess.run(argv, env=self.env, check=True, capture_output=True, text=True).stdout.strip()

    # -- tasks -------------------------------------------------------------------------------------------------------

    def drop(self) -> None:
        """One more task, a bad one now and then."""
        kind = self.rng.choices((GOOD, MENDED, BAD), weights=(6, 4, 1))[0]
        name, line = f"t{len(self.dropped):04d}", self.rng.choice(kind)
        prompt = f"Do it.\nSTANDIN: {line}"
        if self.rng.random() < 0.1:
            prompt += f"\nUPSTREAM: {self.rng.choice((429, 500, 529))} times=1 retry-after=0.2"
        role = f"r{self.rng.randrange(ROLES)}"
        text = f'[[tasks]]\nid = "{name}"\nrole = "{role}"\nprompt = """\n{prompt}\n"""\n'
        path = self.top / "tasks" / f"{name}.toml"
        try:
            path.parent.mkdir(exist_ok=True)
            path.with_suffix(".tmp").write_text(text)
            path.with_suffix(".tmp").replace(path)
        except OSError:  # the disk is full: then it was not dropped
            return
        self.dropped[name] = line

    def unsettled(self) -> int:
        settled = sum(state in ("completed", "failed", "held", "cancelled") for state in self.states().values())
        return len(self.dropped) - settled

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(f"file:{self.layout.ledger}?mode=ro", uri=True, timeout=10)
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()

    def states(self) -> dict[str, str]:
        try:
            return dict(self.rows("SELECT id, state FROM tasks"))
        except sqlite3.OperationalError:  # there is none yet
            return {}

    # -- the daemon --------------------------------------------------------------------------------------------------

    def command(self, *arguments: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "coordinator", "-C", str(self.top), *arguments]
        return subprocess.run(argv, env=self.env, capture_output=True, text=True, timeout=timeout_s, check=False)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """A daemon; one at a time."""
        argv = [sys.executable, "-m", "coordinator", "-C", str(self.top), "run", *arguments]
        with self._open_log() as log:
            self._daemon = subprocess.Popen(argv, env=self.env, stdout=log, stderr=log, start_new_session=True)
        self._killed = False
        return self._daemon

    def _open_log(self) -> IO[bytes]:
        return self.log.open("ab")

    def daemon_pid(self) -> int:
        return self._daemon.pid if self._daemon is not None and self._daemon.poll() is None else 0

    def mind_the_daemon(self) -> None:
        """Start one when there is none; one that was not killed should be there, unless it began on a full disk and said so."""
        if self.daemon_pid():
            return
        if self._daemon is not None and not self._killed and not self._last_words().startswith(_NO_ROOM):
            self.died.append(f"the daemon (pid {self._daemon.pid}) ended by itself with {self._daemon.returncode}")
        self.start()

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()
        return lines[-1] if lines else ""

    def kill_daemon(self) -> None:
        if self._daemon is not None:
            self._killed = True
            self._daemon.kill()
            self._daemon.wait()

    def settle(self, timeout_s: float) -> int | None:
        """A last daemon, undisturbed, until it has nothing to do; None: it had not come to that in time."""
        self.kill_daemon()
        daemon = self.start("--until-idle")
        try:
            return daemon.wait(timeout_s)
        except subprocess.TimeoutExpired:
            for _ in range(2):
                daemon.send_signal(signal.SIGINT)
                time.sleep(0.5)
            daemon.wait(30)
            return None

    # -- who lives ---------------------------------------------------------------------------------------------------

    def runners(self) -> list[int]:
        return [entry.pid for entry in read_muster(self.layout).values()]

    def living(self) -> list[int]:
        """Processes of attempts that run, as far as they were noted."""
        lines = [
            line.split() for path in self.layout.attempts.glob("*/*/pids") for line in path.read_text().splitlines()
        ]
        noted = [(int(words[0]), words[1]) for words in lines if len(words) == 2 and words[0].isdecimal()]
        return [pid for pid, started in noted if process_start(pid) == started]

    def ledger_json(self, *arguments: str) -> dict[str, Any]:
        done = self.command("--json", *arguments)
        data: dict[str, Any] = json.loads(done.stdout)
        return data
