"""The scripts a newcomer meets first: they parse, make what they promise, and say what is missing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.conftest import git
from tests.house.source import TOP

if TYPE_CHECKING:
    from pathlib import Path

SHELL = ("scripts/agent-clis", "scripts/environment", "scripts/run", "scripts/rust-tools", "scripts/test", ".ci/run")


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("sample") / "bookshelf"
    subprocess.run([sys.executable, TOP / "scripts" / "sample", top], check=True, capture_output=True)
    return top


def run_tests(top: Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "unittest", "discover", "-s", "tests", "-t", "."]
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(argv, cwd=top, env=env, capture_output=True, text=True, check=False)


def findings(top: Path) -> list[dict[str, object]]:
    argv = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "json", "."]
    found: list[dict[str, object]] = json.loads(subprocess.run(argv, cwd=top, capture_output=True, check=False).stdout)
    return found


@pytest.mark.parametrize("name", SHELL)
def test_shell_scripts_parse(name: str) -> None:
    shell = "bash" if name == ".ci/run" else "sh"
    assert os.access(TOP / name, os.X_OK)
    subprocess.run([shell, "-n", TOP / name], check=True)


def test_the_sample_is_a_healthy_committed_repository(sample: Path) -> None:
    assert git(sample, "status", "--porcelain") == ""
    assert git(sample, "branch", "--show-current") == "main"
    assert run_tests(sample).returncode == 0


def test_the_sample_has_enough_to_mend(sample: Path) -> None:
    safe = Counter(
        (os.path.dirname(str(finding["filename"])), finding["code"])
        for finding in findings(sample)
        if isinstance(finding["fix"], dict) and finding["fix"]["applicability"] == "safe"
    )
    assert sum(safe.values()) >= 25
    assert len(safe) >= 10, "groups of rule and folder"
    assert len({folder for folder, _ in safe}) == 3


def test_the_trap_of_the_sample_snaps(sample: Path, tmp_path: Path) -> None:
    """The safe fix in ``export`` breaks a test, and no other safe fix does."""
    copy = tmp_path / "copy"
    git(sample, "clone", "--quiet", str(sample), str(copy))
    fix = [sys.executable, "-m", "ruff", "check", "--no-cache", "--quiet", "--fix", "--exit-zero"]
    subprocess.run([*fix, "bookshelf/search", *map(str, (copy / "bookshelf").glob("*.py"))], cwd=copy, check=True)
    assert run_tests(copy).returncode == 0
    subprocess.run([*fix, "bookshelf/export"], cwd=copy, check=True)
    assert run_tests(copy).returncode != 0


def test_the_tasks_of_the_sample_are_good(sample: Path) -> None:
    from coordinator.domain import taskfile

    tasks = []
    for path in sorted((sample / "tasks").glob("*.toml")):
        read = taskfile.parse(path.read_text(encoding="utf-8"), path.name)
        assert read.problems == ()
        tasks += read.tasks
    assert [(task.id, task.depends_on) for task in tasks] == [("changelog", ("due-in-days",)), ("due-in-days", ())]


def test_the_agent_of_the_sample_does_what_its_tasks_ask(sample: Path, tmp_path: Path) -> None:
    from coordinator.domain import taskfile

    copy = tmp_path / "copy"
    git(sample, "clone", "--quiet", str(sample), str(copy))
    for name in ("days-left", "changelog"):
        (task,) = taskfile.parse((sample / "tasks" / f"{name}.toml").read_text(encoding="utf-8"), name).tasks
        argv = [sys.executable, "agents/follow.py"]
        subprocess.run(
            argv, cwd=copy, input=f"# A brief\n\n{task.prompt}\n", text=True, check=True, capture_output=True
        )
        for command in task.accept:
            subprocess.run(["sh", "-c", command], cwd=copy, check=True, capture_output=True)
    assert "days_left" in (copy / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_sample_is_never_put_on_top_of_something(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious", encoding="utf-8")
    argv = [sys.executable, TOP / "scripts" / "sample", tmp_path]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "not empty" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_environment_says_when_there_is_no_python(tmp_path: Path) -> None:
    """A PATH with git and an interpreter that is too old."""
    scripts, programs = tmp_path / "scripts", tmp_path / "bin"
    for folder in (scripts, programs):
        folder.mkdir()
    (scripts / "environment").write_bytes((TOP / "scripts" / "environment").read_bytes())
    (tmp_path / "pyproject.toml").write_text("", encoding="utf-8")
    for name, text in {"python3": "exit 1", "git": "exit 0"}.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        (programs / name).chmod(0o755)
    for name in ("cat", "cksum", "dirname"):
        path = next(folder for folder in ("/bin", "/usr/bin") if os.access(f"{folder}/{name}", os.X_OK))
        (programs / name).symlink_to(f"{path}/{name}")
    argv = ["/bin/sh", str(scripts / "environment")]
    done = subprocess.run(argv, env={"PATH": str(programs)}, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Python 3.11 or newer was not found" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_environment_is_quick_when_nothing_changed(tmp_path: Path) -> None:
    """With the stamp in place nothing is started but the check; another pyproject.toml makes it install again."""
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (scripts / "environment").write_bytes((TOP / "scripts" / "environment").read_bytes())
    (tmp_path / "pyproject.toml").write_text("a = 1\n", encoding="utf-8")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\n[ "$1" = -m ] && echo "$@" >>"{tmp_path}/pip"\nexit 0\n', encoding="utf-8")
    python.chmod(0o755)

    def installs(*extra: str) -> int:
        subprocess.run(["sh", str(scripts / "environment"), *extra], check=True, capture_output=True)
        log = tmp_path / "pip"
        return len(log.read_text(encoding="utf-8").splitlines()) if log.exists() else 0

    assert installs() == 1
    assert installs() == 1
    assert installs("dev") == 2
    assert installs() == 2, "dev holds all that a run needs"
    (tmp_path / "pyproject.toml").write_text("a = 2\n", encoding="utf-8")
    assert installs("dev") == 3


def test_run_explains_itself() -> None:
    done = subprocess.run([TOP / "scripts" / "run", "--help"], capture_output=True, text=True, check=True)
    assert "scripts/run PATH [options]" in done.stdout


@pytest.mark.parametrize(
    "part",
    [
        *("tasks/claims", "tasks/spool", "tasks/dispatch", "tasks/worktrees", "tasks/start", "tasks/idle"),
        *("fleet/death", "fleet/restart", "fleet/cost", "fleet/soak"),
        *("control/incidents", "control/detection", "control/cost", "control/replay"),
        *("control/router", "control/scaler"),
        *("discovery/scans", "discovery/folding"),
    ],
)
def test_the_bench_measures(part: str) -> None:
    which, part = part.split("/")
    env = {**os.environ, "COORDINATOR_BENCH_PYTHON": sys.executable}
    argv = [sys.executable, TOP / "scripts" / "bench", which, "--short", "--only", part]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    rows = [re.split(r"  +", line) for line in done.stdout.split("aim\n", 1)[1].splitlines()]
    assert rows
    for row in rows:
        assert re.search(r"\d", row[-2] if len(row) > 2 else row[-1]), f"no figure in {row}"
    if part == "detection":
        assert [int(row[1].split("/")[1]) <= 2 for row in rows if row[0].startswith("full outage")] == [True]
    if part == "replay":
        assert [row[1].partition(", ")[::2] for row in rows] == [("1", "True")]
    if part == "claims":
        assert [row[1] for row in rows if row[0].startswith("claimed twice")] == ["0", "0"]
    if part == "worktrees":
        assert rows[0][1] == "5"
    if part == "scans":
        assert [row[1] for row in rows if row[0].startswith("findings in")] == ["60", "60", "62"]
    if part == "folding":
        assert [row[2] for row in rows if "new, tasks written" in row] == ["200, 10", "0, 0"]
    if part == "soak":
        assert [row[1] for row in rows if row[0].startswith("zombies")] == ["0"]


@pytest.mark.timeout(600)
def test_the_main_job_on_a_real_project(tmp_path: Path) -> None:
    env = {**os.environ, "COORDINATOR_PROJECTS_PYTHON": sys.executable}
    argv = [sys.executable, TOP / "scripts" / "real-projects"]
    refused = subprocess.run([*argv, "no-such"], env=env, capture_output=True, text=True, check=False)
    assert (refused.returncode, "there is no no-such" in refused.stderr) == (2, True)
    argv += ["flask-profiler", "--advisories", "old", "--land-untested", "--keep", tmp_path]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = dict(line.split(maxsplit=1) for line in done.stdout.rpartition("tasks\n")[2].splitlines() if line)
    assert rows["pip-audit"].split() == ["4", "1", "3", "completed"]
    before, after, number, state = rows["ruff"].split()
    assert (int(before) > int(after), int(number) > 5, state) == (True, True, "completed")
    moved = git(tmp_path / "flask-profiler", "diff", "main", "coordinator/main", "--", "requirements.txt")
    assert "+Jinja2==2.11.3" in moved
