from __future__ import annotations

import json
import os
import signal
import stat
import sys
from typing import TYPE_CHECKING

import pytest

from coordinator.fleet import runner, work
from coordinator.fleet.muster import read_muster
from coordinator.kit import lock
from coordinator.kit.lock import process_start
from tests.conftest import git
from tests.fleet.orders import offer, start_agent
from tests.waiting import wait_until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from coordinator.sdk.layout import Layout

MARK = 'echo up > "$COORDINATOR_ATTEMPT/up"; '
STUBBORN = MARK + "trap '' TERM; while :; do sleep 0.05; done"


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Agents of a test; whatever it leaves of them is ended."""
    agents: list[subprocess.Popen[bytes]] = []
    yield agents
    for agent in agents:
        agent.send_signal(signal.SIGINT)
        agent.wait(20)


def gone(pid: int) -> bool:
    return process_start(pid) is None


def test_an_attempt_from_claim_to_release(layout: Layout) -> None:
    script = 'cat; git branch --show-current; echo new > new.txt; git add .; git commit -qm "add"; echo "added it"'
    task = offer(layout, "one", script, brief="the brief\n")
    assert start_agent(layout).wait(20) == 0
    result = task.ended()
    assert (result.outcome, result.exit_code, result.summary) == ("done", 0, "added it")
    assert task.log == "the brief\ncoordinator/one/1\nadded it\n"
    assert git(task.tree, "log", "-1", "--format=%s %an") == "add coordinator agent"
    assert (task.record.state, task.record.agent, task.record.generation) == ("released", "agent-1", 1)
    assert list(layout.ready.iterdir()) == []
    assert list(layout.agents.glob("*.json")) == []
    assert git(layout.repository, "status", "--porcelain", "--untracked-files=no") == ""


@pytest.mark.parametrize(
    ("script", "outcome", "exit_code", "reason", "summary"),
    [
        ("echo no luck; exit 3", "failed", 3, "exit 3", "exit code 3: no luck"),
        ("kill -KILL $$", "failed", None, "signal 9", "ended by signal 9"),
        ("trap 'exit 5' TERM; echo slow; while :; do sleep 0.02; done", "over_time", 5, "timeout", "over its time"),
        ("printf '\\033[31mred\\033[0m\\n\\n'", "done", 0, "", "[31mred[0m"),
    ],
)
def test_how_an_attempt_ended_is_told(
    layout: Layout, script: str, outcome: str, exit_code: int | None, reason: str, summary: str
) -> None:
    task = offer(layout, "one", script, timeout_s=0.5 if outcome == "over_time" else 30)
    start_agent(layout).wait(20)
    result = task.ended()
    assert (result.outcome, result.exit_code, result.reason) == (outcome, exit_code, reason)
    assert result.summary.startswith(summary)


def test_what_cannot_be_started_is_told(layout: Layout) -> None:
    absent = offer(layout, "absent", command=("no-such-program",))
    bare = offer(layout, "bare", "true", base="0" * 40)
    log = offer(layout, "log", "true")
    (log.folder / "agent.log").symlink_to(layout.state / "elsewhere")
    start_agent(layout).wait(20)
    assert [task.ended().outcome for task in (absent, bare, log)] == ["unstarted"] * 3
    assert "no-such-program" in absent.ended().summary
    assert bare.ended().reason == "worktree"
    assert not (layout.state / "elsewhere").exists()


def test_the_environment_is_only_what_is_allowed(layout: Layout, started: list[subprocess.Popen[bytes]]) -> None:
    task = offer(
        layout, "one", "env -0 > $COORDINATOR_ATTEMPT/env", env=(("A", "b=c\nd"), ("HOME", "/x")), env_names=("KEY",)
    )
    started.append(start_agent(layout, KEY="k", SECRET="s", GIT_DIR="/nowhere", TZ="UTC", COORDINATOR_STATE="/wrong"))
    task.ended()
    env = dict(item.split("=", 1) for item in (task.folder / "env").read_text().split("\0") if item)
    assert env["COORDINATOR_ATTEMPT"] == str(task.folder)
    assert env["COORDINATOR_BRIEF"] == str(task.folder / "brief.md")
    assert env["COORDINATOR_WORKTREE"] == env["PWD"] == str(task.tree)
    assert (env["COORDINATOR_TASK"], env["COORDINATOR_GENERATION"], env["COORDINATOR_ROLE"]) == ("one", "1", "r")
    assert (env["A"], env["HOME"], env["KEY"], env["TZ"]) == ("b=c\nd", "/x", "k", "UTC")
    assert env["COORDINATOR_PYTHON"] == sys.executable
    allowed = {*work.PASSED_ON, "A", "KEY", "PWD", "OLDPWD", "SHLVL", "_", "GIT_TERMINAL_PROMPT"}
    assert {name for name in env if not name.startswith("COORDINATOR_")} <= allowed
    assert "COORDINATOR_STATE" not in env


def test_python_in_a_command_is_our_own_interpreter(layout: Layout) -> None:
    program = "import sys; print(sys.executable)"
    task = offer(layout, "one", command=("{python}", "-c", program))
    start_agent(layout).wait(20)
    assert task.ended().summary == sys.executable


def test_a_role_without_a_command_is_left_to_others(layout: Layout) -> None:
    outside = offer(layout, "outside", command=(), role="external")
    other = offer(layout, "other", "true", role="other")
    mine = offer(layout, "mine", "true", role="mine")
    start_agent(layout, "--role", "mine", "--role", "external").wait(20)
    assert mine.ended().outcome == "done"
    assert outside.result is other.result is None
    assert len(list(layout.ready.iterdir())) == 2


def test_once_is_one_attempt(layout: Layout) -> None:
    tasks = [offer(layout, name, "true") for name in ("a", "b")]
    assert start_agent(layout, "--once").wait(20) == 0
    assert [bool(task.result) for task in tasks] == [True, False]


def test_the_first_term_finishes_the_attempt(layout: Layout, started: list[subprocess.Popen[bytes]]) -> None:
    first = offer(layout, "first", MARK + 'while ! [ -e "$COORDINATOR_ATTEMPT/go" ]; do sleep 0.02; done')
    agent = start_agent(layout)
    started.append(agent)
    first.wait_for("up")
    second = offer(layout, "second", "true")
    agent.terminate()
    wait_until(lambda: read_muster(layout)["agent-1"].draining)
    assert read_muster(layout)["agent-1"].task == "first"
    (first.folder / "go").touch()
    assert agent.wait(20) == 0
    assert first.ended().outcome == "done"
    assert second.result is None


@pytest.mark.parametrize("signals", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT,)])
def test_a_second_term_or_an_interrupt_stops_the_command(
    layout: Layout, started: list[subprocess.Popen[bytes]], signals: tuple[signal.Signals, ...]
) -> None:
    task = offer(layout, "one", 'echo $$ > "$COORDINATOR_ATTEMPT/pid"; ' + STUBBORN, grace_s=0.2)
    agent = start_agent(layout)
    started.append(agent)
    pid = int(task.wait_for("pid"))
    task.wait_for("up")
    for number in signals:
        agent.send_signal(number)
        if number is signal.SIGTERM:
            wait_until(lambda: gone(agent.pid) or read_muster(layout)["agent-1"].draining)
    assert agent.wait(20) == 0
    assert task.ended().outcome == "stopped"
    assert gone(pid)


def test_a_stop_file_ends_this_attempt_and_the_agent_lives_on(
    layout: Layout, started: list[subprocess.Popen[bytes]]
) -> None:
    task = offer(layout, "one", STUBBORN, grace_s=0.1)
    agent = start_agent(layout, "--idle-exit", "20")
    started.append(agent)
    task.wait_for("up")
    lock.write_atomic(task.folder / "stop", b"cancelled by Ada\n")
    result = task.ended()
    assert (result.outcome, result.summary) == ("stopped", "cancelled by Ada")
    following = offer(layout, "two", "true")
    assert following.ended().outcome == "done"
    agent.terminate()
    assert agent.wait(20) == 0


def test_a_stop_during_the_clone_ends_git(layout: Layout, started: list[subprocess.Popen[bytes]]) -> None:
    (layout.repository / ".gitattributes").write_text("* filter=slow\n")
    git(layout.repository, "add", ".gitattributes")
    git(layout.repository, "commit", "-qm", "slow")
    home = layout.state / "home"
    home.mkdir()
    (home / ".gitconfig").write_text('[filter "slow"]\nsmudge = "echo up > $SLOW; exec sleep 60"\n')
    task = offer(layout, "one", "true")
    started.append(start_agent(layout, HOME=str(home), SLOW=str(task.folder / "up")))
    task.wait_for("up")
    started[0].send_signal(signal.SIGINT)
    assert started[0].wait(20) == 0
    assert task.ended().outcome == "stopped"


def test_nothing_of_the_command_outlives_the_attempt(layout: Layout) -> None:
    """Not even what left session, parent and environment behind, as daemons do."""
    wild = 'echo $$ > "$0"; trap "" TERM; while :; do sleep 0.05; done'
    script = (
        f'pid="$COORDINATOR_ATTEMPT/pid"; env -i PATH="$PATH" setsid -f sh -c \'{wild}\' "$pid"; '
        'while ! [ -s "$pid" ]; do sleep 0.01; done'
    )
    task = offer(layout, "one", script)
    start_agent(layout).wait(20)
    assert task.ended().outcome == "done"
    assert gone(int(task.wait_for("pid")))


def test_the_claim_of_a_killed_agent_stays_held_until_its_command_is_dead(
    layout: Layout, started: list[subprocess.Popen[bytes]]
) -> None:
    task = offer(layout, "one", 'echo "$$ $PPID" > "$COORDINATOR_ATTEMPT/pid"; exec sleep 60')
    started.append(start_agent(layout))
    pid, warden = map(int, task.wait_for("pid").split())
    os.kill(warden, signal.SIGSTOP)
    started[0].kill()
    started[0].wait()
    assert task.held()
    assert not gone(pid)
    os.kill(warden, signal.SIGCONT)
    wait_until(lambda: not task.held(), 5)
    assert gone(pid)
    assert task.result is None
    assert task.record.state == "held"
    assert read_muster(layout) == {}


def test_a_newer_owner_ends_the_attempt_without_a_result(
    layout: Layout, started: list[subprocess.Popen[bytes]]
) -> None:
    task = offer(layout, "one", STUBBORN, grace_s=0.1, heartbeat_s=0.1)
    started.append(start_agent(layout))
    task.wait_for("up")
    newer = {**task.record.to_json(), "generation": 2, "agent": "rival"}
    lock.write_atomic(layout.claim_record("one"), json.dumps(newer).encode())
    wait_until(lambda: not task.held())
    assert task.result is None
    assert task.record.agent == "rival"
    assert started[0].wait(20) == 0


def test_a_name_is_borne_by_one(layout: Layout, started: list[subprocess.Popen[bytes]]) -> None:
    started.append(start_agent(layout, "--idle-exit", "30"))
    wait_until(lambda: "agent-1" in read_muster(layout))
    assert start_agent(layout).wait(20) == runner.NAME_TAKEN
    assert read_muster(layout)["agent-1"].pid == started[0].pid


def test_what_the_command_says_is_seen_while_it_works(layout: Layout, started: list[subprocess.Popen[bytes]]) -> None:
    task = offer(layout, "one", "echo 'reading the code'; sleep 60")
    started.append(start_agent(layout))
    beat = task.folder / "heartbeat"
    wait_until(lambda: beat.exists() and "reading the code" in beat.read_text(), 20)
    assert stat.S_IMODE((task.folder / "agent.log").stat().st_mode) == 0o600
