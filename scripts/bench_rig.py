"""What the parts of scripts/bench share: a repository that agents may do nothing in, and a daemon on it."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TOP = Path(__file__).resolve().parents[1]

Row = tuple[str, str, str]
"""What, measured, aim (empty: none)."""

IDENTITY = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "commit.gpgsign=false")


def git(top: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(top), *IDENTITY, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def repository(top: Path) -> Path:
    """A committed repository of 200 files whose agents do nothing."""
    top.mkdir(parents=True)
    git(top, "init", "--quiet", "--initial-branch=main")
    (top / "README.md").write_text("# Bench\n", encoding="utf-8")
    (top / "coordinator.toml").write_text('[gate]\ncommands = ["true"]\n', encoding="utf-8")
    (top / "agents").mkdir()
    (top / "agents" / "command.toml").write_text('command = ["true"]\n', encoding="utf-8")
    for number in range(200):
        path = top / f"part{number % 10}" / f"file{number}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{number}\n" * 50, encoding="utf-8")
    git(top, "add", "--all")
    git(top, "commit", "--quiet", "--no-verify", "-m", "Begin")
    return top


def drop_tasks(top: Path, count: int) -> None:
    (top / "tasks").mkdir()
    for number in range(count):
        text = f'[[tasks]]\nid = "task-{number:05d}"\nprompt = "Do number {number}."\npriority = {number % 9 + 1}\n'
        (top / "tasks" / f"{number:05d}.toml").write_text(text, encoding="utf-8")


@contextlib.contextmanager
def daemon(top: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], float]]:
    """A running daemon and the moment it was started; it is told twice to stop, then waited for."""
    began = time.perf_counter()
    log = (top.parent / f"{top.name}.log").open("a", encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "coordinator", "-C", str(top), "run", *options],
        cwd=TOP,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if "--json" in options else log,
        stderr=log,
        text=True,
    )
    try:
        yield process, began
    finally:
        for _ in range(2):
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
        if process.poll() is None:
            process.kill()
        process.wait()
        log.close()
        if process.stdout is not None:
            process.stdout.close()


def await_(condition: Callable[[], object], process: subprocess.Popen[str], timeout_s: float = 120.0) -> None:
    deadline = time.perf_counter() + timeout_s
    while not condition():
        if process.poll() is not None:
            raise SystemExit(f"the daemon ended by itself with exit code {process.returncode}")
        if time.perf_counter() > deadline:
            raise SystemExit(f"nothing happened for {timeout_s:.0f} s")
        time.sleep(0.005)
