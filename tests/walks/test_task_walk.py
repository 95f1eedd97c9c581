"""The walk of a task: a file lands in the spool, a commit lands on the target. Real git, real processes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.walks.house import House

_ADD_TRIPLE = "printf '\\n\\ndef triple(number):\\n    return number * 3\\n' >> calc.py; git commit -qam 'Add triple'"


def test_a_dropped_file_becomes_a_landed_commit(house: House) -> None:
    head = house.git("rev-parse", "HEAD")
    house.task("add-triple", _ADD_TRIPLE, title="Add triple", accept=['python3 -c "import calc; calc.triple(1)"'])
    done = house.command("run", "--until-idle")
    assert done.returncode == 0, done.stdout + done.stderr
    assert house.states() == {"add-triple": "completed"}
    assert "def triple" in house.show("calc.py")
    message = house.git("log", "-1", "--format=%B", "coordinator/main")
    assert message.startswith("Add triple")
    assert "Coordinator-Task: add-triple" in message
    assert "Coordinator-Attempt: add-triple/1" in message
    # nobody's checkout moved
    assert house.git("rev-parse", "HEAD") == head
    assert house.git("status", "--porcelain") == "?? tasks/"
    # and nothing is left behind
    assert list((house.top / ".coordinator" / "worktrees").iterdir()) == []
    assert house.git("for-each-ref", "--format=%(refname)", "refs/coordinator/base") == ""
    assert "refs/coordinator/rescue/add-triple/1" in house.git("for-each-ref", "--format=%(refname)")


def test_uncommitted_work_lands_as_well(house: House) -> None:
    house.task("edit", "echo '# note' >> calc.py; echo new > NEW.txt")
    assert house.command("run", "--until-idle").returncode == 0
    assert house.show("NEW.txt") == "new"


def test_dependencies_order_and_priorities(house: House) -> None:
    house.task("third", "echo 3 >> log.txt", depends_on=["second"], priority=1)
    house.task("second", "echo 2 >> log.txt", depends_on=["first"], priority=1)
    house.task("first", "echo 1 >> log.txt", priority=9)
    assert house.command("run", "--until-idle").returncode == 0
    assert house.landed() == ["first", "second", "third"]
    assert house.show("log.txt") == "1\n2\n3"


def test_what_the_gate_refuses_does_not_land_and_the_next_brief_says_why(house: House) -> None:
    house.task("break", "echo 'def double(n): return 0' > calc.py", max_attempts=2)
    done = house.command("run", "--until-idle")
    assert done.returncode == 1
    assert house.states() == {"break": "failed"}
    assert house.landed() == []
    brief = (house.top / ".coordinator/attempts/break/2/brief.md").read_text()
    assert "Why the last attempt did not land" in brief
    assert "unittest" in brief
    explained = house.command("explain", "break").stdout
    assert "gate" in explained
    assert "unittest" in explained


def test_refusals_have_names(house: House) -> None:
    house.task("nothing", "true", max_attempts=1)
    house.task("outside", "echo x >> calc.py", paths=["docs/**"], max_attempts=1)
    house.task("untest", "git rm -q test_calc.py", max_attempts=1)
    house.task("crash", "echo about to die; kill -9 $PPID; sleep 30", max_attempts=1)
    house.task("sad", "echo no way; exit 7", max_attempts=1)
    assert house.command("run", "--until-idle").returncode == 1
    endings = dict(house.rows("SELECT task, ending FROM attempts"))
    assert endings["nothing"] == "empty"
    assert endings["outside"] == "outside_paths"
    assert endings["untest"] == "deleted_tests"
    assert endings["sad"] == "failed"
    assert endings["crash"] in {"crashed", "failed"}
    assert house.landed() == []


def test_two_that_edit_the_same_line_both_land_in_turn(house: House) -> None:
    house.task("one", "sed -i 's/return .*/return 2 * number/' calc.py")
    house.task("two", "sed -i 's/return .*/return number + number/' calc.py")
    done = house.command("run", "--until-idle")
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(house.landed()) == ["one", "two"]


def test_a_gate_that_cannot_run_stops_the_line_and_charges_nobody(house: House) -> None:
    settings = house.top / "coordinator.toml"
    settings.write_text(
        settings.read_text().replace("python3 -m unittest -q", "no-such-tool --check") + "retry_s = 1.0\n"
    )
    house.task("fine", "echo hello > hello.txt")
    done = house.command("run", "--until-idle")
    assert done.returncode == 5, done.stdout + done.stderr
    assert "no-such-tool" in done.stdout + done.stderr
    assert house.landed() == []
    assert house.rows("SELECT attempts FROM tasks") == [(0,)]


def test_json_is_one_object_a_line(house: House) -> None:
    house.task("edit", "echo x > x.txt")
    done = house.command("--json", "run", "--until-idle")
    assert done.returncode == 0
    kinds = [json.loads(line).get("kind") for line in done.stdout.splitlines()]
    assert "task_landed" in kinds


def test_a_second_run_finds_nothing_to_do_even_without_its_ledger(house: House) -> None:
    house.task("edit", "echo x >> x.txt")
    assert house.command("run", "--until-idle").returncode == 0
    tip = house.git("rev-parse", "coordinator/main")
    for path in (house.top / ".coordinator").glob("ledger.db*"):
        path.unlink()
    assert house.command("run", "--until-idle").returncode == 0
    assert house.git("rev-parse", "coordinator/main") == tip
    assert house.states() == {"edit": "completed"}


def test_deleting_a_pending_task_cancels_it_and_an_edit_of_a_failed_one_runs_it_again(house: House) -> None:
    house.task("sad", "exit 1", max_attempts=1)
    gone = house.task("never", "echo x > never.txt", depends_on=["sad"])
    house.command("run", "--until-idle")
    assert house.states() == {"sad": "failed", "never": "blocked"}
    assert "sad" in house.command("explain", "never").stdout
    gone.unlink()
    house.task("sad", "echo better > sad.txt", max_attempts=1)
    assert house.command("run", "--until-idle").returncode == 0
    assert house.states() == {"sad": "completed", "never": "cancelled"}


def test_without_its_tests_a_project_gets_no_agents_work(house: House) -> None:
    settings = house.top / "coordinator.toml"
    python = house.top.parent / "python-without-pytest"
    python.write_text("#!/bin/sh\necho no pytest here >&2; exit 1\n")
    python.chmod(0o755)
    settings.write_text(
        settings.read_text().replace('commands = ["python3 -m unittest -q"]', f'python = "{python}"\nretry_s = 1.0')
    )
    (house.top / "pytest.ini").write_text("[pytest]\n")
    house.git("add", "pytest.ini")
    house.git("commit", "-qm", "pytest")
    for number in range(3):
        house.task(f"t{number}", f"echo x > {number}.txt", priority=number + 1)
    done = house.command("run", "--agents", "1", "--until-idle")
    assert done.returncode == 5, done.stdout + done.stderr
    assert house.landed() == []
    assert "pytest" in house.command("explain", "t0").stdout
