"""The real command in its own process: exit codes, where answers and complaints go, odd readers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from coordinator.cli import main, repository_top
from coordinator.domain.errors import BadRepository

if TYPE_CHECKING:
    from pathlib import Path

HERE = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "NO_COLOR": "1"}


@pytest.fixture
def top(tmp_path: Path) -> Path:
    subprocess.run(["git", "init", "-q", "-b", "main", str(tmp_path)], check=True)
    return tmp_path


def command(top: Path, *words: str, **options: object) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "coordinator", *words]
    return subprocess.run(argv, cwd=top, env=HERE, capture_output=True, text=True, timeout=30, check=False, **options)


def test_a_prompt_comes_from_standard_input_and_the_answer_alone_goes_out(top: Path) -> None:
    done = command(top, "--json", "tasks", "add", "--id", "n", "-", input="Do it.\nWell.\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["file"] == "tasks/n.toml"
    assert "Well." in (top / "tasks" / "n.toml").read_text()


def test_an_old_locale_is_no_obstacle(top: Path) -> None:
    (top / "tasks").mkdir()
    (top / "tasks" / "n.toml").write_text('[[tasks]]\nid = "n"\nprompt = "Süß → 寿司"\n', encoding="utf-8")
    argv = [sys.executable, "-m", "coordinator", "tasks", "list"]
    env = {**HERE, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(argv, cwd=top, env=env, capture_output=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert b"S??" in done.stdout


def test_a_reader_that_leaves_early_is_no_error(top: Path) -> None:
    argv = f"{sys.executable} -m coordinator --help | true; {sys.executable} -m coordinator status | true"
    done = subprocess.run(
        ["sh", "-c", argv], cwd=top, env=HERE, capture_output=True, text=True, timeout=30, check=False
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "commands:"),
        (["tasks"], 2, "commands:"),
        (["explain", "nobody"], 2, "no task 'nobody'"),
        (["run", "--agents", "0"], 2, "--agents: is 0"),
        (["events", "-f"], 4, "no daemon is running"),
        (["tasks", "list", "-s", "lost"], 2, "no state 'lost'"),
    ],
)
def test_exit_codes(top: Path, monkeypatch, capsys, words: list[str], code: int, said: str) -> None:
    monkeypatch.chdir(top)
    assert main(words) == code
    output = capsys.readouterr()
    assert said in output.err
    assert output.out == ""


def test_errors_are_json_when_json_was_asked_for(top: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(top)
    assert main(["--json", "tasks", "show", "nobody"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["type"], error["exit_code"]) == ("UnknownTask", 2)


def test_bad_settings_stop_everything_but_the_doctor(top: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(top)
    (top / "coordinator.toml").write_text("[fleet]\nagnts = 2\n")
    assert main(["status"]) == 2
    assert "coordinator.toml:2" in capsys.readouterr().err
    assert main(["doctor"]) == 1
    assert "agnts" in capsys.readouterr().out


def test_the_repository_is_found_from_below_and_through_a_link(top: Path, tmp_path_factory) -> None:
    below = top / "a" / "b"
    below.mkdir(parents=True)
    link = tmp_path_factory.mktemp("links") / "link"
    link.symlink_to(below)
    assert repository_top(below) == repository_top(link) == top.resolve()
    with pytest.raises(BadRepository, match="not inside a git repository"):
        repository_top(link.parent)
    with pytest.raises(BadRepository, match="not a folder"):
        repository_top(top / "missing")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("ledger is garbage", "ledger.db cannot be used"),
        ("ledger is a folder", "ledger.db cannot be used"),
        ("state is a file", "something that is no folder is in the way"),
    ],
)
def test_a_damaged_state_folder_is_one_sentence_with_a_remedy(top: Path, damage: str, said: str) -> None:
    state = top / ".coordinator"
    if damage == "state is a file":
        state.write_text("x")
    else:
        state.mkdir()
        ledger = state / "ledger.db"
        ledger.mkdir() if damage == "ledger is a folder" else ledger.write_bytes(os.urandom(4096))
    (top / "x").write_text("x")
    git = ["git", "-C", str(top), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "add", "x"], check=True)
    subprocess.run([*git, "commit", "-qm", "x"], check=True)
    for words in (["run", "--until-idle"], ["tasks", "hold", "t"], ["status"]):
        if words == ["status"] and damage == "state is a file":
            continue  # reading needs no folder
        done = command(top, *words)
        assert "Traceback" not in done.stderr
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr


PLANTED = """
import errno, resource, sqlite3, sys
from coordinator import cli, life
from coordinator.domain.errors import ToolFailed
from coordinator.kit import store
async def recover(daemon):
    {fault}
life.Daemon.recover = recover
sys.exit(cli.main([*sys.argv[1:], "run", "--until-idle"]))
"""
DISK_FULL = """
    connection = sqlite3.connect(":memory:")
    connection.execute("PRAGMA max_page_count = 1")
    connection.execute("CREATE TABLE t (x)")
"""


def committed(top: Path) -> Path:
    git = ["git", "-C", str(top), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    return top


def planted(top: Path, program: str, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", program, *words]
    return subprocess.run(argv, cwd=top, env=HERE, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        ("raise RuntimeError('odd')", 70, "RuntimeError: odd"),
        ("raise sqlite3.OperationalError('no such table: t')", 70, "OperationalError: no such table"),
        ("raise ToolFailed('git gc: exit code 128')", 70, "coordinator: git gc"),
        ("raise OSError(errno.ENOSPC, 'No space left on device', '/x')", 75, "coordinator: /x: No space left"),
        ("raise OSError(errno.EMFILE, 'Too many open files')", 75, "coordinator: Too many open files"),
        ("raise MemoryError", 75, "coordinator: Cannot allocate memory"),
        (DISK_FULL, 75, "coordinator: the ledger: database or disk is full; make room"),
        ("raise OSError(errno.EACCES, 'Permission denied', '/x')", 2, "coordinator: /x: Permission denied"),
        ("raise OSError(errno.EROFS, 'Read-only file system', '/x')", 2, "coordinator: /x: Read-only"),
    ],
    ids=["bug", "bug-in-sql", "tool", "room", "files", "memory", "sqlite-full", "right", "read-only"],
)
def test_a_run_that_dies_says_by_its_code_whether_to_start_it_again(
    top: Path, fault: str, code: int, said: str
) -> None:
    done = planted(committed(top), PLANTED.format(fault=fault))
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert ("Traceback" in done.stderr) == (code == 70 and "ToolFailed" not in fault)


def test_a_ledger_that_the_disk_has_no_room_for_is_not_called_damaged(top: Path) -> None:
    program = PLANTED.format(fault="pass").replace(
        "async def", f"def _full(_):{DISK_FULL}store.Store._migrate = _full\nasync def", 1
    )
    done = planted(committed(top), program, "--json")
    error = json.loads(done.stdout.splitlines()[-1])["error"]
    assert (done.returncode, error["type"], error["exit_code"]) == (75, "MachineShort", 75)
    assert "move it away" not in error["message"]


def test_a_process_without_files_left_is_the_machines_fault(top: Path) -> None:
    fault = "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3)); open('/dev/null')"
    done = planted(committed(top), PLANTED.format(fault=fault))
    assert (done.returncode, "Too many open files" in done.stderr) == (75, True), done.stderr


def test_arguments_that_are_no_text_and_a_closed_output(top: Path) -> None:
    argv = [sys.executable, "-m", "coordinator", "explain", b"\xff"]
    done = subprocess.run(argv, cwd=top, env=HERE, capture_output=True, timeout=30, check=False)
    assert (done.returncode, b"no UTF-8" in done.stderr) == (2, True)
    closed = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m coordinator tasks list >&-"],
        cwd=top, env=HERE, capture_output=True, timeout=30, check=False,
    )  # fmt: skip
    assert (closed.returncode, b"Traceback" in closed.stderr) == (2, False)
    full = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m coordinator tasks list > /dev/full"],
        cwd=top, env=HERE, capture_output=True, timeout=30, check=False,
    )  # fmt: skip
    assert (full.returncode, b"Traceback" in full.stderr) == (2, False)


def test_a_name_that_cannot_be_written_down_is_refused(top: Path) -> None:
    odd = top / "a\nb"
    odd.mkdir()
    with pytest.raises(BadRepository, match="rename it"):
        repository_top(odd)
