from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.kit import process, process_table, warden
from coordinator.kit.lock import process_start
from coordinator.kit.process import Exit, Limits
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="cannot run here: only Linux lets us adopt orphans")

SURVIVOR = "echo $$ > survivor; trap '' TERM HUP; while :; do sleep 0.05; done"
WILD = 'env -i PATH="$PATH" setsid -f sh -c "$SURVIVOR"; while ! [ -s survivor ]; do sleep 0.01; done; '
ENV = {"PATH": os.environ["PATH"], "SURVIVOR": SURVIVOR}

RACER = """
import os, time
os.setsid()
os.environ.clear()
until = time.monotonic() + 30
count = 0
while time.monotonic() < until:
    if os.fork():
        os._exit(0)
    os.setsid()
    count += 1
    if count == 50:
        open("survivor", "w").write("up\\n")
    if count % 50 == 0:
        os.utime("survivor")
"""
"""A process that is never the same for longer than a moment: it forks and ends, all the time, each time in a new session."""

WATCHERS = """
import os, select, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pipes = [os.pipe() for _ in range(40)]
for own in range(len(pipes)):
    if not os.fork():
        os.setsid()
        os.environ.clear()
        for number, (_, end) in enumerate(pipes):
            if number != own:
                os.close(end)
        others = [start for number, (start, _) in enumerate(pipes) if number != own]
        if select.select(others, [], [], 30)[0]:
            open("noticed", "a").write("a")
            time.sleep(30)
        os._exit(0)
open("survivor", "w").write("up\\n")
for _, end in pipes:
    os.close(end)
"""
"""Processes that look after each other, as those do who would start again what was killed."""


async def run(argv: list[str], folder: Path, **more: Any) -> Exit:
    limits = Limits(**{"timeout_s": 20.0, "grace_s": 0.2, **more.pop("limits", {})})
    defaults: dict[str, Any] = {"cwd": folder, "env": ENV, "limits": limits, "output": folder / "log"}
    return await process.run(argv, contained=True, **{**defaults, **more})


def shell(text: str) -> list[str]:
    return ["sh", "-c", text]


def survivor(folder: Path) -> int:
    path = folder / "survivor"
    wait_until(lambda: path.exists() and path.read_text().endswith("\n"))
    return int(path.read_text())


def gone(pid: int) -> bool:
    return process_start(pid) is None


def children() -> set[int]:
    return {row.member.pid for row in process_table.rows().values() if row.parent == os.getpid()}


@pytest.fixture(autouse=True)
def _nobody_left(tmp_path: Path) -> Any:
    """Neither of us, nor of the test when what it tests fails."""
    before = children()
    yield
    assert children() <= before
    wait_until(lambda: not [pid for pid in process_table.rows() if _works_in(pid, tmp_path)], what="an empty folder")


def _works_in(pid: int, folder: Path) -> bool:
    try:
        return Path(f"/proc/{pid}/cwd").readlink() == folder
    except OSError:
        return False


@pytest.mark.parametrize(
    ("script", "code", "number"), [("exit 0", 0, None), ("exit 7", 7, None), ("kill -SEGV $$", None, signal.SIGSEGV)]
)
async def test_an_end_is_passed_on(tmp_path: Path, script: str, code: int | None, number: int | None) -> None:
    ended = await run(shell(script), tmp_path)
    assert (ended.code, ended.signal, ended.spawn_error, ended.leftover, ended.clean) == (code, number, "", 0, True)


@pytest.mark.parametrize("name", ["no-such-program", "./no-such-file", "./plain", "./folder", "a\0b"])
async def test_what_cannot_start_is_said(tmp_path: Path, name: str) -> None:
    (tmp_path / "plain").write_text("no program")
    (tmp_path / "folder").mkdir()
    ended = await run([name], tmp_path)
    assert ended.spawn_error.startswith(f"cannot start {name}: ")
    assert ended.code is None


async def test_the_program_gets_what_it_was_given_and_nothing_of_the_warden(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"\xff in\n")
    script = "cat; pwd; printf '%s|' \"$@\"; echo; env; ls -l /proc/$$/fd | grep -c socket: ; test -e /proc/$$/fd/$0 && echo mine; cat /proc/$$/status"
    with (tmp_path / "in").open() as file:
        fd = file.fileno()
        arguments = ["a b", "$HOME", "'\"", "-n", ""]
        env = {**ENV, "ODD": "\udcff=\n"}
        await run([*shell(script), str(fd), *arguments], tmp_path, stdin=tmp_path / "in", env=env, pass_fds=(fd,))
    said = (tmp_path / "log").read_bytes()
    assert said.startswith(b"\xff in\n" + os.fsencode(tmp_path) + b"\na b|$HOME|'\"|-n||\n")
    assert b"\nODD=\xff=\n\n" in said
    assert b"LC_CTYPE" not in said
    assert b"\n0\nmine\n" in said  # no socket: that would be the warden's link
    ignored = next(line.split()[1] for line in said.splitlines() if line.startswith(b"SigIgn"))
    assert int(ignored, 16) & 0x7FFFFFFF == 0


@pytest.mark.parametrize("end", ["by itself", "time limit"])
async def test_nobody_survives_who_left_session_parent_and_mark(tmp_path: Path, end: str) -> None:
    ended = await run(shell(WILD + ("" if end == "by itself" else "sleep 60")), tmp_path, limits={"timeout_s": 2.0})
    assert gone(survivor(tmp_path))
    assert (ended.timed_out, ended.clean) == (end == "time limit", True)
    assert (
        ended.leftover == (1 if end == "by itself" else 0) or ended.leftover == 2
    )  # its ``sleep`` may be seen as well


async def test_nobody_survives_a_cancel(tmp_path: Path) -> None:
    task = asyncio.create_task(run(shell(WILD + "sleep 60"), tmp_path))
    pid = await asyncio.to_thread(survivor, tmp_path)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gone(pid)


def test_nobody_survives_a_loop_that_is_torn_down(tmp_path: Path) -> None:
    async def abandon() -> None:
        task = asyncio.create_task(run(shell(WILD + "sleep 60"), tmp_path, limits={"grace_s": 60.0}))
        await asyncio.to_thread(survivor, tmp_path)
        task.cancel()
        await asyncio.sleep(0.05)

    asyncio.run(abandon())
    wait_until(lambda: gone(survivor(tmp_path)))
    for pid in children():  # the warden ends by itself; nobody was left to collect it
        wait_until(lambda pid=pid: process_table.rows()[pid].zombie)  # type: ignore[misc]
        process_table.reap(pid)


@pytest.mark.parametrize("kind", ["wild", "racer", "watchers"])
def test_nobody_survives_us_when_we_are_killed(tmp_path: Path, kind: str) -> None:
    (tmp_path / "racer").write_text(RACER)
    (tmp_path / "watchers").write_text(WATCHERS)
    script = WILD + "sleep 60" if kind == "wild" else f"{sys.executable} -S {kind} & sleep 60"
    program = (
        "import asyncio, sys; from pathlib import Path; from coordinator.kit import process as p\n"
        f"asyncio.run(p.run(['sh', '-c', {script!r}], cwd=Path('.'), env={ENV!r}, limits=p.Limits(timeout_s=60),"
        " output=1, contained=True))\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    caller = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, env=env)
    wait_until((tmp_path / "survivor").exists)
    caller.kill()
    caller.wait()
    wait_until(lambda: not [pid for pid in process_table.rows() if _works_in(pid, tmp_path)], 5)
    assert not (tmp_path / "noticed").exists()


async def test_a_racer_is_caught(tmp_path: Path) -> None:
    (tmp_path / "racer").write_text(RACER)
    script = f"{sys.executable} -S racer & while ! [ -e survivor ]; do sleep 0.01; done"
    ended = await run(shell(script), tmp_path)
    assert (ended.code, ended.clean) == (0, True)
    stamp = (tmp_path / "survivor").stat().st_mtime_ns
    assert not [pid for pid in process_table.rows() if _works_in(pid, tmp_path)]
    assert (tmp_path / "survivor").stat().st_mtime_ns == stamp


async def test_who_watches_over_others_never_learns_of_their_end(tmp_path: Path) -> None:
    (tmp_path / "watchers").write_text(WATCHERS)
    script = f"{sys.executable} -S watchers & while ! [ -e survivor ]; do sleep 0.01; done"
    ended = await run(shell(script), tmp_path)
    assert (ended.code, ended.clean) == (0, True)
    assert not (tmp_path / "noticed").exists()


async def test_a_killed_warden_leaves_only_what_hides_from_its_mark(tmp_path: Path) -> None:
    script = 'setsid -f sh -c "$SURVIVOR"; while ! [ -s survivor ]; do sleep 0.01; done; kill -9 $PPID; sleep 60'
    ended = await run(shell(script), tmp_path)
    assert ended.signal == signal.SIGKILL
    assert gone(survivor(tmp_path))


async def test_a_warden_that_cannot_work_is_no_verdict_on_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warden, "command", lambda *_: [sys.executable, "-S", "-c", "raise SystemExit(1)"])
    ended = await run(["true"], tmp_path)
    assert (ended.code, ended.signal) == (None, None)
    assert "ended with code 1" in ended.spawn_error


async def test_a_stopped_warden_does_not_hold_us_up(tmp_path: Path) -> None:
    began = time.monotonic()
    ended = await run(shell("kill -STOP $PPID; trap 'exit 3' TERM; sleep 60"), tmp_path, limits={"timeout_s": 0.5})
    assert (ended.timed_out, ended.clean) == (True, True)
    assert time.monotonic() - began < 10


async def test_a_warden_is_deaf_to_what_its_program_sends_it(tmp_path: Path) -> None:
    ended = await run(shell("for s in HUP INT QUIT TERM USR1 USR2; do kill -$s $PPID; done; exit 4"), tmp_path)
    assert (ended.code, ended.signal) == (4, None)


async def test_memory_is_that_of_the_program(tmp_path: Path) -> None:
    take = "x = bytearray(120 * 2**20); x[::4096] = b'x' * len(x[::4096]); import time; time.sleep(30)"
    ended = await run([sys.executable, "-c", take], tmp_path, limits={"memory_bytes": 100 * 2**20})
    assert (ended.memory_exceeded, ended.timed_out, ended.clean) == (True, False, True)


def test_a_warden_is_there_at_once() -> None:
    """What makes its start cost 15 ms and not 60: it imports nothing that is large."""
    line = (
        f"import sys; sys.argv = ['x']; exec(open({warden.__file__!r}).read(), dict(__name__='w')); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", line], capture_output=True, text=True, check=True)
    large = {"asyncio", "ctypes", "dataclasses", "pathlib", "re", "socket", "subprocess", "threading", "typing"}
    assert "signal" in done.stdout.split()
    assert not large & set(done.stdout.split())


@given(st.integers(-64, 255))
def test_an_end_is_understood(code: int) -> None:
    assert warden.parse(f"{warden.ENDED} {code}".encode()) == (code, "")


@given(st.binary(max_size=40))
def test_garbage_is_no_end(word: bytes) -> None:
    code, problem = warden.parse(word)
    assert code is None or word.startswith(b"ended ")
    assert not problem or word.startswith(b"failed")
