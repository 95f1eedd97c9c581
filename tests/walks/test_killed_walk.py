"""The same walk with the daemon killed after every step of it, then started again. Nothing lost, nothing doubled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from coordinator.kit.lock import process_start
from tests.waiting import wait_until
from tests.walks.house import ENVIRONMENT

if TYPE_CHECKING:
    from tests.walks.house import House

_STEPS = [
    "daemon_ready",
    "task_changed:ready",
    "agent_started",
    "task_changed:claimed",
    "task_changed:running",
    "task_changed:validating",
    "gate_judged",
    "task_changed:landing",
    "task_changed:completed",
    "task_landed",
    # steps that no event announces
    "after=ReadyBoard.publish",
    "before=Workspaces.collect",
    "after=Workspaces.collect",
    "before=Workspaces.dispose",
    "after=Workspaces.dispose",
    "before=Git.update_ref",
    "after=Git.update_ref",
    "before=Settling.landed",
]


def _check(house: House) -> None:
    assert house.states() == {"one": "completed", "two": "completed", "three": "completed"}
    assert sorted(house.landed()) == ["one", "three", "two"]
    assert house.show("one.txt") == "1"
    assert house.show("three.txt") == "3"
    # each ran and landed once per generation, and the counter file shows no double effect
    assert house.show("count.txt").splitlines() == ["x"]
    assert list((house.top / ".coordinator" / "worktrees").iterdir()) == []
    assert house.git("for-each-ref", "refs/coordinator/base") == ""
    assert list((house.top / ".coordinator" / "ready").iterdir()) == []
    house.git("fsck", "--no-dangling")


@pytest.mark.parametrize("step", _STEPS)
def test_killed_after(house: House, step: str) -> None:
    house.task("one", "sleep 0.2; echo 1 > one.txt; echo x >> count.txt; git add -A; git commit -qm one")
    house.task("two", "sleep 0.1; echo 2 > two.txt")
    house.task("three", "echo 3 > three.txt", depends_on=["one", "two"])
    killer = [sys.executable, "-m", "tests.walks.dying_daemon", str(house.top), step, "1"]
    root = Path(__file__).resolve().parents[2]
    died = subprocess.run(killer, cwd=root, env=ENVIRONMENT, timeout=60, check=False, capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, f"step {step} never came: {died.stdout}{died.stderr}"
    done = house.command("run", "--until-idle")
    assert done.returncode == 0, done.stdout + done.stderr
    _check(house)


@pytest.mark.skipif(sys.platform != "linux", reason="cannot run here: only Linux lets us adopt orphans")
@pytest.mark.parametrize("warden_too", [False, True])
def test_checks_of_a_killed_daemon_do_not_run_on(house: House, warden_too: bool) -> None:
    """Their warden ends them at once; when it was killed as well, the next daemon finds them."""
    pid_file = house.top.parent / "gate-pid"
    settings = house.top / "coordinator.toml"
    slow = f"echo $$ $PPID > {pid_file}; [ -e {pid_file}.go ] || setsid sleep 1000"
    settings.write_text(settings.read_text().replace("python3 -m unittest -q", slow))
    house.task("one", "echo 1 > one.txt")
    with house.start("run") as daemon:
        wait_until(lambda: pid_file.exists() and pid_file.read_text().endswith("\n"), 20)
        pid, warden = map(int, pid_file.read_text().split())
        if warden_too:
            daemon.send_signal(signal.SIGSTOP)  # it shall not see the warden's end
            os.kill(warden, signal.SIGKILL)
        daemon.kill()
    if warden_too:
        assert process_start(pid) is not None  # it is an orphan now
    else:
        wait_until(lambda: process_start(pid) is None, 5)
    Path(f"{pid_file}.go").touch()
    assert house.command("run", "--until-idle").returncode == 0
    assert process_start(pid) is None
    assert house.landed() == ["one"]


def test_killed_again_and_again(house: House) -> None:
    house.task("one", "sleep 0.2; echo 1 > one.txt; echo x >> count.txt; git add -A; git commit -qm one")
    house.task("two", "sleep 0.1; echo 2 > two.txt")
    house.task("three", "echo 3 > three.txt", depends_on=["one", "two"])
    root, codes = Path(__file__).resolve().parents[2], []
    for step in _STEPS:
        killer = [sys.executable, "-m", "tests.walks.dying_daemon", str(house.top), step, "1"]
        codes.append(
            subprocess.run(killer, cwd=root, env=ENVIRONMENT, timeout=60, check=False, capture_output=True).returncode
        )
    assert codes.count(-signal.SIGKILL) >= len(_STEPS) // 2, "later steps may have been passed when an earlier run died"
    assert house.command("run", "--until-idle").returncode == 0
    _check(house)
    assert os.path.exists(house.top / ".coordinator" / "ledger.db")
