"""A fleet of stand-ins for ``claude``, one behaviour each, under one daemon: every one ends as what it is, is explained, and
leaves nothing behind. Real daemon, real gateway, real git, real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from coordinator.kit.lock import process_start
from tests.standin import search_path
from tests.standin.upstream import PromptedUpstream
from tests.walks.house import ENVIRONMENT, House, build

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_ENV = {**ENVIRONMENT, "PATH": search_path(sys.executable, os.environ["PATH"]), "ANTHROPIC_API_KEY": "sk-of-the-house"}

_SETTINGS = f"""\
[fleet]
agents = 32
backoff_s = 0.1
crash_loop = 3
finish_s = 1.5
grace_s = 1.0
heartbeat_s = 0.5
loop_repeats = 6
max_attempts = 1
min_free_memory_bytes = 0
ramp_s = 0.0
stall_s = 3.0
think_limit_s = 3.0

[gate]
commands = ["{sys.executable} -m unittest -q"]

[gateway]
hold_s = 2.0

[[gateway.upstreams]]
name = "anthropic"
kind = "anthropic"
url = "URL"
models = ["*"]

[[gateway.upstreams]] # whose limit is reached for good: the others shall not have to wait for it
name = "used-up"
kind = "anthropic"
url = "URL"
models = ["claude-used-up"]
"""

_GONE_S = 5.0
"""Nothing of an attempt survives its end by longer."""

_MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Play:
    """A task and what has to become of it. ``told``: words that ``explain`` must have. ``card`` goes into its role's card."""

    line: str = ""
    card: dict[str, Any] = field(default_factory=dict)
    endings: tuple[str, ...]
    keys: dict[str, Any] = field(default_factory=dict)
    prompt: str = ""
    state: str
    told: tuple[str, ...] = ()


def _lands(line: str, **more: Any) -> Play:
    return Play(line=line, endings=("landed",), state="completed", **more)


def _fails(line: str, ending: str, *told: str, **more: Any) -> Play:
    return Play(line=line, endings=(ending,), state="failed", told=told, **more)


_TWICE = {"keys": {"max_attempts": 2}}

PLAYS: dict[str, Play] = {
    "work": _lands("work"),
    "uncommitted": _lands("uncommitted"),
    "wrong-branch": _lands("wrong_branch"),
    "flood": _lands("flood"),
    "garbage": _lands("garbage"),
    "background": _lands("background"),
    "orphans": _lands("orphans"),
    "linger": _lands("linger"),
    "silent-build": _lands("build s=6"),
    "bypass": _lands("work", card={"permission_mode": "bypassPermissions"}),
    "tried-again": _lands("work", prompt="UPSTREAM: 529 times=1 retry-after=0.2"),
    "mended": Play(
        line="""work file=calc.py text='def double(n): return 0' | work sh='git checkout -q HEAD -- calc.py; echo ok > mended.txt'""",
        endings=("gate_failed", "landed"),
        state="completed",
        **_TWICE,  # type: ignore[arg-type]
    ),
    "back": Play(line="usage_limit s=5 | work", endings=("rate_limited", "landed"), state="completed"),
    "unstuck": Play(line="hang | work", endings=("stalled", "landed"), state="completed", **_TWICE),  # type: ignore[arg-type]
    "crash": Play(
        line="crash", endings=("crashed",) * 3, state="held", told=("crash loop", "3 times in a row", "Bun has crashed")
    ),
    "broken": _fails("crash code=3", "failed", "exit code 3"),
    "nothing": _fails("nothing", "empty", "All done"),
    "hang": _fails("hang", "stalled", "no output, no processor time", "stall_s = 3"),
    "stubborn": _fails("stubborn", "stalled", "stall_s = 3"),
    "spin": _fails("spin", "over_time", "time limit of 4 s", card={"timeout": 4}),
    "silence": _fails("work", "over_time", "time limit of 6 s", card={"timeout": 6}, prompt="UPSTREAM: silence"),
    "loop": _fails("loop", "looping", "the same call of Bash with the same answer", "loop_repeats = 6"),
    "grow": _fails("grow to=512", "over_memory", "150 MiB", card={"memory_bytes": 150 * _MIB}),
    "delete-tests": _fails("delete_tests", "deleted_tests", "test_calc.py"),
    "denied": _fails("denied", "denied", "WebFetch"),
    "turns": _fails("endless", "over_turns", "maximum number of turns", card={"max_turns": 3}),
    "budget": Play(
        line="endless", card={"budget_usd": 0.005}, endings=("over_budget",), state="held", told=("budget", "release")
    ),
    "overflow": _fails("overflow", "context_overflow", "rompt is too long"),
    "absent": Play(
        line="work", card={"command": ["no-such-claude"]}, endings=(), state="blocked", told=("no-such-claude",)
    ),
    "limited": Play(
        line="work",
        card={"model": "claude-used-up"},
        prompt="UPSTREAM: 429 retry-after=90 message='limit reached, retry after 90 seconds'",
        endings=("rate_limited",),
        state="pending",
        told=("limit reached", "not charged"),
    ),
    "logged-out": Play(line="logged_out", endings=("login_missing",), state="pending", told=("ANTHROPIC_API_KEY",)),
    "refused-key": Play(
        line="work",
        prompt="UPSTREAM: 401",
        endings=("login_missing",),
        state="pending",
        told=("ANTHROPIC_API_KEY",),
    ),
}


@dataclass
class Fleet:
    """What the run came to."""

    house: House
    upstream: PromptedUpstream
    explained: dict[str, str] = field(default_factory=dict)
    leaked: dict[str, list[int]] = field(default_factory=dict)
    output: str = ""
    took_s: float = 0.0

    def endings(self) -> dict[str, tuple[str, ...]]:
        rows = self.house.rows("SELECT task, ending FROM attempts WHERE ending != '' ORDER BY task, generation")
        found: dict[str, tuple[str, ...]] = {}
        for task, ending in rows:
            found[task] = (*found.get(task, ()), ending)
        return found

    def is_over(self, name: str, endings: dict[str, tuple[str, ...]], states: dict[str, str]) -> bool:
        """As far as it is going to get within this test."""
        settled = states.get(name) in ("blocked", "completed", "failed", "held")
        return settled or (states.get(name) == "pending" and len(endings.get(name, ())) >= len(PLAYS[name].endings))


def _drop(house: House, name: str, play: Play) -> None:
    card = {"driver": "claude", "command": ["claude"], "timeout": 60, **play.card}
    lines = [f"{key} = {_toml(value)}" for key, value in card.items()]
    (house.top / "agents" / f"{name}.toml").write_text("\n".join(lines) + "\n")
    prompt = "\n".join(filter(None, ("Do it.", play.prompt, f"STANDIN: {play.line}")))
    keys = [f"{key} = {_toml(value)}" for key, value in {"role": name, **play.keys}.items()]
    task = "\n".join(["[[tasks]]", f'id = "{name}"', f'prompt = """\n{prompt}\n"""', *keys])
    (house.top / "tasks").mkdir(exist_ok=True)
    (house.top / "tasks" / f"{name}.toml").write_text(task + "\n")


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def _living(folder: Path) -> list[int]:
    """Processes that the attempt in that folder has started, as far as they still run."""
    path = folder / "pids"
    lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [int(pid) for pid, started in lines if process_start(int(pid)) == started]


def _watch(fleet: Fleet, deadline: float) -> None:
    """Until all is over; each attempt's processes are looked for from its end on."""
    ended: dict[tuple[str, int], float] = {}
    clean: set[tuple[str, int]] = set()
    while time.monotonic() < deadline:
        now = time.monotonic()
        for task, generation in fleet.house.rows("SELECT task, generation FROM attempts WHERE ending != ''"):
            key = (task, generation)
            since = ended.setdefault(key, now)
            if key in clean:
                continue
            living = _living(fleet.house.top / ".coordinator" / "attempts" / task / str(generation))
            if not living:
                clean.add(key)
            elif now - since > _GONE_S:
                fleet.leaked[f"{task}/{generation}"] = living
        endings, states = fleet.endings(), fleet.house.states()
        for name in PLAYS:
            if name not in fleet.explained and fleet.is_over(name, endings, states):
                fleet.explained[name] = _command(fleet.house, "explain", name)
        if len(fleet.explained) == len(PLAYS) and (clean == set(ended) or fleet.leaked):
            return
        time.sleep(0.1)


def _command(house: House, *arguments: str) -> str:
    argv = [sys.executable, "-m", "coordinator", "-C", str(house.top), *arguments]
    done = subprocess.run(argv, env=_ENV, capture_output=True, text=True, timeout=60, check=False)
    return " ".join((done.stdout + done.stderr).split())


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One run of one daemon; the tests look at what it came to."""
    house = build(tmp_path_factory.mktemp("fleet") / "house")
    with PromptedUpstream() as upstream:
        (house.top / "coordinator.toml").write_text(_SETTINGS.replace("URL", upstream.url))
        for name, play in PLAYS.items():
            _drop(house, name, play)
        house.git("add", "-A")
        house.git("commit", "-q", "-m", "a fleet")
        began = time.monotonic()
        argv = [sys.executable, "-m", "coordinator", "-C", str(house.top), "run"]
        log = house.top.parent / "daemon.log"
        with log.open("wb") as out, subprocess.Popen(argv, env=_ENV, stdout=out, stderr=out) as daemon:
            fleet = Fleet(house, upstream)
            try:
                while not (house.top / ".coordinator" / "api.json").exists() and daemon.poll() is None:
                    time.sleep(0.02)
                _watch(fleet, began + 45)
            finally:
                for _ in range(2):
                    daemon.send_signal(signal.SIGINT)
                    time.sleep(0.2)
                daemon.wait(30)
        fleet.output, fleet.took_s = log.read_text(errors="replace"), time.monotonic() - began
        yield fleet


@pytest.mark.parametrize("name", PLAYS)
def test_each_ends_as_what_it_is(fleet: Fleet, name: str) -> None:
    play, explained = PLAYS[name], fleet.explained.get(name, "")
    endings = fleet.endings().get(name, ())
    if play.state == "pending":  # its role is tried again now and then
        endings = endings[: len(play.endings)]
    assert endings == play.endings, explained or fleet.output[-3000:]
    assert fleet.house.states()[name] == play.state, explained
    missing = [words for words in play.told if words not in explained]
    assert missing == [], explained


def test_nothing_outlives_its_attempt(fleet: Fleet) -> None:
    assert fleet.leaked == {}
    attempts = fleet.house.top / ".coordinator" / "attempts"
    noted = {path.parent.parent.name for path in attempts.glob("*/*/pids")}
    assert noted == set(PLAYS) - {"absent"}
    assert len((attempts / "orphans" / "1" / "pids").read_text().splitlines()) == 6
    assert [path for path in attempts.glob("*/*") if _living(path)] == []


def test_what_landed_is_there_once_and_nothing_else(fleet: Fleet) -> None:
    house = fleet.house
    expected = sorted(name for name, play in PLAYS.items() if play.state == "completed")
    assert sorted(house.landed()) == expected
    files = house.git("ls-tree", "--name-only", "coordinator/main").splitlines()
    written = {name.removesuffix(".txt") for name in files if name.endswith(".txt")}
    assert written == set(expected)
    assert house.show("calc.py") == house.show("calc.py", "main")


def test_what_did_not_land_is_kept(fleet: Fleet) -> None:
    for name in ("hang", "stubborn", "spin", "crash", "grow", "unstuck"):
        assert fleet.house.show(f"{name}.txt", f"refs/coordinator/rescue/{name}/1") == "work 1"
    assert "test_calc.py" not in fleet.house.git("ls-tree", "--name-only", "refs/coordinator/rescue/delete-tests/1")


def test_the_users_repository_is_as_it_was(fleet: Fleet) -> None:
    house = fleet.house
    assert house.git("for-each-ref", "--format=%(refname)", "refs/heads").splitlines() == [
        "refs/heads/coordinator/main",
        "refs/heads/main",
    ]
    assert house.git("log", "-1", "--format=%s", "main") == "a fleet"
    assert house.git("status", "--porcelain") == ""
    pins = house.git("for-each-ref", "--format=%(refname)", "refs/coordinator/base").splitlines()
    # Pinned when a task is offered: that of an offer which the stop cut short is the next daemon's to drop.
    assert {ref.split("/")[3] for ref in pins} <= {name for name, play in PLAYS.items() if play.state == "pending"}
    assert list((house.top / ".coordinator" / "worktrees").iterdir()) == []
    house.git("fsck", "--no-dangling")


def test_no_agent_saw_the_providers_key(fleet: Fleet) -> None:
    calls = [call for calls in fleet.upstream.calls.values() for call in calls]
    assert list((fleet.house.top / ".coordinator" / "homes").rglob("two-at-once")) == []
    assert {call.headers["x-api-key"] for call in calls} == {_ENV["ANTHROPIC_API_KEY"]}
    for path in (fleet.house.top / ".coordinator" / "attempts").rglob("*.json*"):
        assert _ENV["ANTHROPIC_API_KEY"] not in path.read_text(errors="replace")


def test_a_second_try_goes_on_with_the_conversation_and_is_told_why(fleet: Fleet) -> None:
    attempts = fleet.house.top / ".coordinator" / "attempts"
    brief = (attempts / "mended" / "2" / "brief.md").read_text()
    assert "Why the last attempt did not land" in brief
    assert "unittest" in brief
    first, second = (
        (attempts / "mended" / number / "transcript.jsonl").read_text().splitlines()[0] for number in ("1", "2")
    )
    assert first.split('"session_id":')[1].split(",")[0] == second.split('"session_id":')[1].split(",")[0]


def test_it_took_no_longer_than_it_must(fleet: Fleet) -> None:
    """A tool in flight was left alone for twice the silence that ended the others, in one attempt."""
    rows = dict(fleet.house.rows("SELECT task, duration_s FROM attempts WHERE generation = 1"))
    assert rows["silent-build"] >= 6
    assert 3 <= rows["hang"] < 15  # 3 s, and what a busy machine with 29 agents takes to look
    assert rows["linger"] < 15
