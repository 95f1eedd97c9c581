"""A daemon from outside: alone in its directory, drained by one signal, ended by two, obeying its operator."""

from __future__ import annotations

import json
import shutil
import signal
from typing import TYPE_CHECKING

import pytest

from coordinator.kit.lock import is_held, process_start
from coordinator.sdk import Agent
from tests.waiting import wait_until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from tests.walks.house import House

_KILL_RUNNER = """kill -9 $(sed -n 's/.*"pid": \\([0-9]*\\).*/\\1/p' $COORDINATOR_ATTEMPT/heartbeat)"""
"""Shell lines by which a command ends the agent process that runs it."""


@pytest.fixture
def daemon(house: House) -> Iterator[subprocess.Popen[str]]:
    """A daemon that runs until told otherwise; whatever a test leaves is ended."""
    process = house.start("run")
    wait_until((house.top / ".coordinator" / "api.json").exists, what="the daemon's API")
    with process:
        yield process
        process.kill()
    for path in (house.top / "tasks").glob("*.toml"):
        path.unlink()
    house.command("run", "--until-idle")


def _state(house: House, task: str) -> str:
    return house.states().get(task, "")


def _wait_for(house: House, task: str, state: str) -> None:
    wait_until(lambda: _state(house, task) == state, 20, what=f"{task} {state} (is {_state(house, task)})")


def _touched(house: House, name: str) -> Path:
    return house.top.parent / name


def test_a_second_daemon_exits_at_once_and_names_the_first(
    house: House, daemon: subprocess.Popen[str], tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(house.top)
    for top in (house.top, link):
        done = type(house)(top).command("run", "--until-idle", timeout=20)
        assert done.returncode == 3
        assert f"pid {daemon.pid}" in done.stdout + done.stderr


def test_one_interrupt_drains(house: House, daemon: subprocess.Popen[str]) -> None:
    go = _touched(house, "go")
    house.task("slow", f"touch {go}.up; while [ ! -e {go} ]; do sleep 0.02; done; echo done > slow.txt")
    _wait_for(house, "slow", "running")
    daemon.send_signal(signal.SIGINT)
    house.task("late", "echo late > late.txt")
    wait_until(lambda: '"running": 1' in json.dumps(house.rows("SELECT data FROM journal WHERE kind='daemon_draining'"))
               .replace('\\"', '"'), 10, what="draining with one at work")  # fmt: skip
    go.touch()
    out, _ = daemon.communicate(timeout=30)
    assert daemon.returncode == 130
    assert house.landed() == ["slow"], out
    assert "draining" in out


def test_two_interrupts_stop_now_and_nothing_runs_on(house: House, daemon: subprocess.Popen[str]) -> None:
    pid_file = _touched(house, "pid")
    house.task("forever", f"echo $$ > {pid_file}; echo kept > kept.txt; while :; do sleep 0.05; done")
    _wait_for(house, "forever", "running")
    wait_until(lambda: pid_file.exists() and pid_file.read_text().strip())
    daemon.send_signal(signal.SIGINT)
    wait_until(lambda: house.rows("SELECT 1 FROM journal WHERE kind='daemon_draining'"))
    daemon.send_signal(signal.SIGINT)
    daemon.communicate(timeout=40)
    assert daemon.returncode == 130
    assert process_start(int(pid_file.read_text())) is None
    house.task("forever", "echo second > second.txt")
    assert house.command("run", "--until-idle").returncode == 0
    # what it had written is in its rescue ref, and nobody was charged for the stop
    assert house.show("kept.txt", "refs/coordinator/rescue/forever/1") == "kept"
    assert house.rows("SELECT ending FROM attempts ORDER BY generation") == [("stopped",), ("landed",)]
    assert house.rows("SELECT attempts FROM tasks") == [(0,)]
    assert house.show("second.txt") == "second"


def test_cancel_ends_the_command_and_deleting_the_file_does_so_too(house: House, daemon: subprocess.Popen[str]) -> None:
    pids = {}
    for name in ("one", "two"):
        pid_file = _touched(house, name)
        house.task(name, f"echo $$ > {pid_file}; while :; do sleep 0.05; done")
        wait_until(lambda path=pid_file: path.exists() and path.read_text().strip(), 20)  # type: ignore[misc]
        pids[name] = int(pid_file.read_text())
    assert house.command("tasks", "cancel", "one", "--reason", "not wanted").returncode == 0
    (house.top / "tasks" / "two.toml").unlink()
    for name, pid in pids.items():
        _wait_for(house, name, "cancelled")
        assert process_start(pid) is None
    assert "not wanted" in house.command("explain", "one").stdout
    assert "file was removed" in house.command("explain", "two").stdout


def test_an_edit_of_a_pending_task_applies(house: House, daemon: subprocess.Popen[str]) -> None:
    house.task("gate", "exit 1", max_attempts=1)
    house.task("edited", "echo old > edited.txt", depends_on=["gate"])
    _wait_for(house, "edited", "blocked")
    house.task("edited", "echo new > edited.txt")
    _wait_for(house, "edited", "completed")
    assert house.show("edited.txt") == "new"


def test_an_edit_while_it_is_at_work_counts_for_the_next_attempt(house: House, daemon: subprocess.Popen[str]) -> None:
    go = _touched(house, "go")
    house.task("t", f"while [ ! -e {go} ]; do sleep 0.02; done; exit 1", max_attempts=1)
    _wait_for(house, "t", "running")
    house.task("t", "echo better > t.txt", max_attempts=1)
    wait_until(lambda: "better" in house.rows("SELECT definition FROM tasks")[0][0])
    go.touch()
    _wait_for(house, "t", "completed")
    assert house.show("t.txt") == "better"
    assert house.rows("SELECT ending FROM attempts ORDER BY generation") == [("failed",), ("landed",)]


def test_what_is_asked_of_one_attempt_does_not_touch_another(house: House, daemon: subprocess.Popen[str]) -> None:
    go = _touched(house, "go")
    house.task("t", f"while [ ! -e {go} ]; do sleep 0.02; done; echo x > t.txt")
    _wait_for(house, "t", "running")
    refused = house.command("tasks", "retry", "t")
    assert refused.returncode != 0
    assert "running" in refused.stdout + refused.stderr
    assert house.command("tasks", "cancel", "t").returncode == 0
    _wait_for(house, "t", "cancelled")
    assert house.command("tasks", "retry", "t").returncode == 0
    _wait_for(house, "t", "running")
    assert house.command("tasks", "hold", "t").returncode == 0
    go.touch()
    _wait_for(house, "t", "completed")
    assert house.rows("SELECT ending FROM attempts ORDER BY generation") == [("cancelled",), ("landed",)]
    assert house.rows("SELECT hold, tries FROM tasks") == [(0, 0)]


def test_a_command_that_undoes_the_lock_does_not_get_a_second_owner(
    house: House, daemon: subprocess.Popen[str]
) -> None:
    log, go = _touched(house, "log"), _touched(house, "go")
    unlock = "for f in /proc/self/fd/*; do flock -u ${f##*/} 2>/dev/null || :; done"
    house.task("t", f"{unlock}; echo start >> {log}; while [ ! -e {go} ]; do sleep 0.02; done; echo x > t.txt")
    wait_until(lambda: log.exists() and not is_held(house.top / ".coordinator/claims/t.lock"), 20)
    seen = len(house.rows("SELECT 1 FROM journal"))
    house.task("other", "echo y > other.txt")
    _wait_for(house, "other", "completed")  # several turns later
    assert len(house.rows("SELECT 1 FROM journal")) > seen
    go.touch()
    _wait_for(house, "t", "completed")
    assert log.read_text() == "start\n"
    assert house.rows("SELECT ending FROM attempts WHERE task = 't'") == [("landed",)]


def test_children_of_a_killed_runner_do_not_run_on(house: House, daemon: subprocess.Popen[str]) -> None:
    pid_file = _touched(house, "child")
    child = f"import subprocess; p = subprocess.Popen(['sleep', '1000']); open('{pid_file}', 'w').write(str(p.pid))"
    house.task("t", f'[ -e {pid_file} ] && exit 0; python3 -c "{child}"; {_KILL_RUNNER}', max_attempts=1)
    _wait_for(house, "t", "failed")
    assert process_start(int(pid_file.read_text())) is None


def test_a_result_that_is_nonsense_ends_the_attempt(house: House, daemon: subprocess.Popen[str]) -> None:
    bad = '{"task": "t", "generation": 1, "outcome": "done", "summary": 5}'
    house.task("t", f"echo '{bad}' > $COORDINATOR_ATTEMPT/result.json; {_KILL_RUNNER}", max_attempts=1)
    _wait_for(house, "t", "held")  # an agent that dies at once has not tried; five times in a row is a crash loop
    assert house.rows("SELECT ending FROM attempts") == [("crashed",)] * 5


def test_hold_release_retry(house: House, daemon: subprocess.Popen[str]) -> None:
    house.task("sad", "exit 1", max_attempts=1)
    house.task("later", "echo x > later.txt", depends_on=["sad"])
    _wait_for(house, "later", "blocked")
    assert house.command("tasks", "hold", "later").returncode == 0
    house.task("sad", "echo fine > sad.txt", max_attempts=1)
    _wait_for(house, "sad", "completed")
    assert _state(house, "later") == "held"
    assert house.command("tasks", "release", "later").returncode == 0
    _wait_for(house, "later", "completed")
    refused = house.command("tasks", "cancel", "later")
    assert refused.returncode != 0
    assert "completed" in refused.stdout + refused.stderr


def test_an_agent_from_outside_claims_through_the_sdk_and_lands(house: House, daemon: subprocess.Popen[str]) -> None:
    card = house.top / "agents" / "robot.toml"
    card.write_text("external = true\n")
    house.task("outside", "unused", role="robot")
    agent = Agent(repository=house.top, roles=("robot",), name="robot-1")
    claims = []
    wait_until(lambda: claims.append(agent.claim_next()) or claims[-1], 20, what="the offer")  # type: ignore[func-returns-value]
    with claims[-1] as claim:
        tree = claim.prepare_worktree()
        (tree / "robot.txt").write_text("beep\n")
        claim.result("done", summary="wrote robot.txt")
    _wait_for(house, "outside", "completed")
    assert house.show("robot.txt") == "beep"


def test_a_frozen_agent_is_stopped_for_its_silence_and_the_task_tried_again(house: House) -> None:
    settings = house.top / "coordinator.toml"
    settings.write_text(
        settings.read_text().replace("[fleet]", "[fleet]\nsilence_s = 2.0\nheartbeat_s = 0.2\ngrace_s = 0.5")
    )
    once = _touched(house, "once")
    freeze = _KILL_RUNNER.replace("-9", "-STOP")
    house.task("t", f"[ -e {once} ] || {{ touch {once}; {freeze}; sleep 1000; }}; echo x > t.txt")
    done = house.command("run", "--until-idle")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row[0] for row in house.rows("SELECT ending FROM attempts ORDER BY generation")] == ["crashed", "landed"]
    assert "no heartbeat" in house.rows("SELECT reason FROM attempts WHERE generation = 1")[0][0]


def test_a_lost_ledger_finds_the_agent_that_is_at_work(house: House) -> None:
    go, log = _touched(house, "go"), _touched(house, "log")
    house.task("t", f"echo start >> {log}; while [ ! -e {go} ]; do sleep 0.02; done; echo x > t.txt")
    with house.start("run") as first:
        wait_until(log.exists, 20)
        first.kill()
    for path in (house.top / ".coordinator").glob("ledger.db*"):
        path.unlink()
    with house.start("run", "--until-idle") as second:
        wait_until((house.top / ".coordinator" / "api.json").exists)
        wait_until((house.top / ".coordinator" / "ledger.db").exists)
        _wait_for(house, "t", "running")
        go.touch()
        out, _ = second.communicate(timeout=30)
    assert second.returncode == 0, out
    assert log.read_text() == "start\n"
    assert house.landed() == ["t"]
    assert house.rows("SELECT generation FROM tasks") == [(1,)]


def test_a_lost_ledger_remembers_what_a_merge_brought_into_the_users_branch(house: House) -> None:
    house.task("a", "echo x >> log.txt")
    assert house.command("run", "--until-idle").returncode == 0
    (house.top / "mine.txt").write_text("mine\n")
    house.git("add", "mine.txt")
    house.git("commit", "-qm", "mine")
    house.git("merge", "-q", "--no-edit", "coordinator/main")
    for path in (house.top / ".coordinator").glob("ledger.db*"):
        path.unlink()
    assert house.command("run", "--until-idle").returncode == 0
    assert house.states() == {"a": "completed"}
    assert house.show("log.txt") == "x"


def test_an_offer_that_cannot_be_written_is_made_later(house: House, daemon: subprocess.Popen[str]) -> None:
    attempts = house.top / ".coordinator" / "attempts"
    (attempts / "bad").write_text("a file where a folder should be")
    house.task("bad", "echo bad > bad.txt", priority=1)
    house.task("good", "echo good > good.txt", priority=2)
    _wait_for(house, "good", "completed")
    assert "could not be offered" in house.command("explain", "bad").stdout
    (attempts / "bad").unlink()
    _wait_for(house, "bad", "completed")


def test_offers_to_agents_from_outside_hold_up_nobody(house: House) -> None:
    (house.top / "agents" / "robot.toml").write_text("external = true\n")
    for number in range(12):
        house.task(f"out{number}", "unused", role="robot", priority=1)
    house.task("own", "echo x > own.txt", priority=9)
    done = house.command("run", "--until-idle")
    assert done.returncode == 0, done.stdout + done.stderr
    assert house.states()["own"] == "completed"
    assert "from outside" in house.command("explain", "out3").stdout


def test_an_outage_pauses_the_role_and_charges_only_its_discovery(house: House, daemon: subprocess.Popen[str]) -> None:
    names = [f"t{number}" for number in range(9)]
    for name in names:
        house.task(name, f"[ -e {_touched(house, 'up')} ] || {{ echo 529 overloaded; exit 1; }}", max_attempts=2)
    query = "SELECT count(*) FROM journal WHERE kind = 'role_paused'"
    wait_until(lambda: house.rows(query) == [(1,)], 30, what="the role is paused")
    paused = "SELECT id FROM tasks WHERE state = 'pending' AND reason LIKE '%is paused%'"
    wait_until(lambda: house.rows(paused), 20, what="a task that waits for the role")
    explained = house.command("explain", house.rows(paused)[0][0]).stdout
    assert "role edit is paused" in " ".join(explained.split())
    assert "529 overloaded" in explained
    charged = house.rows("SELECT sum(attempts) FROM tasks")[0][0]
    assert charged <= 5 + 3, "five to find out, and those that were at work then"


def test_bad_settings_refuse_to_start_and_name_the_key(house: House) -> None:
    with (house.top / "coordinator.toml").open("a") as file:
        file.write("\n[fleet2]\nagents = 1\n")
    done = house.command("run", "--until-idle")
    assert done.returncode == 2
    assert "coordinator.toml:9: fleet2" in done.stdout + done.stderr
    assert "fleet" in done.stdout + done.stderr


def test_the_target_follows_the_users_branch_and_never_loses_a_commit(house: House) -> None:
    house.task("one", "echo 1 > one.txt")
    assert house.command("run", "--until-idle").returncode == 0
    house.git("merge", "-q", "coordinator/main")
    (house.top / "mine.txt").write_text("mine\n")
    house.git("add", "mine.txt")
    house.git("commit", "-qm", "mine")
    house.task("two", "cat mine.txt > two.txt")
    assert house.command("run", "--until-idle").returncode == 0
    assert house.show("two.txt") == "mine"
    assert house.git("merge-base", "--is-ancestor", "HEAD", "coordinator/main") == ""
    assert house.landed() == ["one", "two"]


def test_a_target_that_is_checked_out_stops_the_line_until_it_is_not(house: House) -> None:
    settings = house.top / "coordinator.toml"
    settings.write_text(settings.read_text() + 'retry_s = 1.0\n\n[land]\ntarget = "main"\n')
    house.task("one", "echo 1 > one.txt")
    done = house.command("run", "--until-idle")
    assert done.returncode == 5
    assert "checked out" in done.stdout + done.stderr
    assert not (house.top / "one.txt").exists()
    house.git("switch", "-qc", "elsewhere")
    assert house.command("run", "--until-idle").returncode == 0
    assert house.show("one.txt", "main") == "1"


def test_who_removes_the_ready_folder_stops_nobody(house: House, daemon: subprocess.Popen[str]) -> None:
    shutil.rmtree(house.top / ".coordinator" / "ready")
    (house.top / ".coordinator" / ".gitignore").unlink()
    house.task("t", "echo 1 > new")
    _wait_for(house, "t", "completed")
    assert ".coordinator" not in house.git("status", "--porcelain", "--untracked-files=all")


def test_a_daemon_whose_folder_is_removed_stops_all_and_says_why(house: House) -> None:
    """``git clean -fdx`` beside a running daemon: its lock is gone, and the next one may start."""
    pid_file = _touched(house, "pid")
    house.task("t", f"[ -e {pid_file} ] || {{ echo $$ > {pid_file}; exec sleep 1000; }}; echo 1 > new")
    first = house.start("run")
    wait_until(lambda: pid_file.exists() and pid_file.read_text().strip(), 20, what="at work")
    house.git("clean", "-fdxq", "-e", "tasks")
    said, _ = first.communicate(timeout=40)
    assert first.returncode == 75, said
    assert "was removed while the daemon ran" in said
    assert "Traceback" not in said
    assert ".coordinator" not in house.git("status", "--porcelain", "--untracked-files=all")
    assert process_start(int(pid_file.read_text())) is None
    assert house.command("run", "--until-idle").returncode == 0
    assert house.landed() == ["t"]
