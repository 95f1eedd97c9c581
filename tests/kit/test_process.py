from __future__ import annotations

import asyncio
import gc
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from coordinator.kit import process, process_table
from coordinator.kit.kin import Kin
from coordinator.kit.lock import acquire, is_held, process_start
from coordinator.kit.process import Exit, Limits
from coordinator.kit.process_table import Member
from coordinator.kit.spawned import exited
from tests.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="cannot run here: needs /proc")


async def run(argv: list[str], folder: Path, **more: Any) -> Exit:
    limits = Limits(**{"timeout_s": 20.0, "grace_s": 2.0, **more.pop("limits", {})})
    defaults: dict[str, Any] = {"cwd": folder, "env": ENV, "limits": limits, "output": folder / "log"}
    return await process.run(argv, **{**defaults, **more})


def shell(text: str) -> list[str]:
    return ["sh", "-c", text]


def pids(folder: Path, *names: str) -> list[int]:
    """Pids that programs of a test wrote into files, once they are complete."""
    files = [folder / name for name in names]
    wait_until(lambda: all(file.exists() and file.read_text().endswith("\n") for file in files), what=str(names))
    return [int(file.read_text()) for file in files]


def start(argv: list[str], **more: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(argv, **more)


def gone(pid: int) -> bool:
    return process_start(pid) is None


# Programs that leave somebody behind, from tame to wild; each writes the survivor's pid into the file "survivor".
SURVIVOR = "echo $$ > survivor; trap '' TERM HUP; while :; do sleep 0.05; done"
CHILD = 'sh -c "$SURVIVOR" & '
SETSID = 'setsid sh -c "$SURVIVOR" & '
FORGETFUL = 'env -i PATH="$PATH" sh -c "$SURVIVOR" & '
WILD = 'env -i PATH="$PATH" setsid -f sh -c "$SURVIVOR"; '
ENV = {"PATH": os.environ["PATH"], "SURVIVOR": SURVIVOR}
READY = "while ! [ -s survivor ]; do sleep 0.01; done; "


async def test_output_and_exit_code_of_a_program(tmp_path: Path) -> None:
    (tmp_path / "brief").write_text("the brief")
    ended = await run(shell("cat; echo err >&2; pwd; exit 7"), tmp_path, stdin=tmp_path / "brief")
    assert (ended.code, ended.signal, ended.timed_out, ended.spawn_error, ended.clean) == (7, None, False, "", True)
    assert (tmp_path / "log").read_text() == f"the brieferr\n{tmp_path}\n"


async def test_output_is_appended_and_may_be_a_descriptor(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("before\n")
    await run(shell("echo a"), tmp_path)
    with (tmp_path / "log").open("ab") as file:
        await run(shell("cat"), tmp_path, output=file.fileno(), stdin=b"from bytes\n")
    assert (tmp_path / "log").read_text() == "before\na\nfrom bytes\n"


async def test_a_megabyte_of_output_that_nobody_reads_does_not_block(tmp_path: Path) -> None:
    ended = await run(shell("head -c 3000000 /dev/zero"), tmp_path)
    assert ended.code == 0
    assert (tmp_path / "log").stat().st_size == 3_000_000


async def test_the_environment_is_exactly_what_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    await run(["env"], tmp_path, env={**ENV, "A": "1"})
    names = {line.partition("=")[0] for line in (tmp_path / "log").read_text().splitlines()}
    assert names == {"PATH", "SURVIVOR", "A", process.LINEAGE}


@pytest.mark.parametrize("memory_bytes", [0, 1 << 30])
@pytest.mark.parametrize("name", ["no-such-program", "./no-such-file", "./plain", "./folder", "a\0b"])
async def test_what_cannot_start_is_said_not_raised(tmp_path: Path, name: str, memory_bytes: int) -> None:
    (tmp_path / "plain").write_text("no program")
    (tmp_path / "folder").mkdir()
    ended = await run([name], tmp_path, limits={"memory_bytes": memory_bytes})
    assert name in ended.spawn_error
    assert ended.code is None


@pytest.mark.parametrize("what", ["cwd", "output", "fifo", "symlink", "empty", "stdin"])
async def test_a_bad_place_is_a_spawn_error(tmp_path: Path, what: str) -> None:
    argv, more = ["true"], {}
    match what:
        case "cwd":
            more = {"cwd": tmp_path / "missing"}
        case "output":
            more = {"output": tmp_path / "missing" / "log"}
        case "fifo":
            os.mkfifo(tmp_path / "pipe")
            more = {"stdin": tmp_path / "pipe"}
        case "symlink":
            (tmp_path / "log").symlink_to(tmp_path / "elsewhere")
        case "stdin":
            more = {"stdin": tmp_path / "missing"}
        case _:
            argv = []
    assert (await run(argv, tmp_path, **more)).spawn_error
    assert not (tmp_path / "elsewhere").exists()


async def test_a_signal_is_told_apart_from_a_code(tmp_path: Path) -> None:
    ended = await run(shell("kill -SEGV $$"), tmp_path)
    assert (ended.code, ended.signal) == (None, signal.SIGSEGV)


async def test_time_limit_asks_first(tmp_path: Path) -> None:
    ended = await run(
        shell("trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.02; done"),
        tmp_path,
        limits={"timeout_s": 0.3},
    )
    assert ended.timed_out
    assert ended.code == 3
    assert ended.took_s < 1.9
    assert (tmp_path / "log").read_text().endswith("bye\n")


async def test_time_limit_kills_what_does_not_listen(tmp_path: Path) -> None:
    ended = await run(shell(SURVIVOR), tmp_path, limits={"timeout_s": 0.3, "grace_s": 0.2})
    assert ended.timed_out
    assert ended.signal == signal.SIGKILL
    assert ended.leftover == 0


async def test_a_stopped_program_is_ended_as_well(tmp_path: Path) -> None:
    ended = await run(shell("kill -STOP $$"), tmp_path, limits={"timeout_s": 0.3, "grace_s": 5.0})
    assert ended.timed_out
    assert ended.signal == signal.SIGTERM
    assert ended.took_s < 4.0


@pytest.mark.parametrize("hidden", [CHILD, pytest.param(SETSID, marks=LINUX), FORGETFUL])
async def test_nobody_survives_a_program_that_ended(tmp_path: Path, hidden: str) -> None:
    ended = await run(shell(hidden + READY), tmp_path)
    [survivor] = pids(tmp_path, "survivor")
    assert gone(survivor)
    assert ended.code == 0
    assert ended.leftover >= 1


@pytest.mark.parametrize("hidden", [CHILD, SETSID, FORGETFUL])
async def test_nobody_survives_the_time_limit(tmp_path: Path, hidden: str) -> None:
    text = hidden + READY + "exec sleep 60"
    ended = await run(shell(text), tmp_path, limits={"timeout_s": 1.0, "grace_s": 0.1})
    [survivor] = pids(tmp_path, "survivor")
    assert ended.timed_out
    assert gone(survivor)


@LINUX
def test_a_daemon_that_left_session_parent_and_mark_is_caught_where_we_adopt_orphans(tmp_path: Path) -> None:
    """In a process of its own: only one that runs nothing else may say that all its descendants are the program's."""
    program = (
        "import asyncio, sys; from pathlib import Path; from coordinator.kit import process as p\n"
        "assert p.adopt_orphans()\n"
        f"asyncio.run(p.run(['sh', '-c', {WILD + READY!r}], cwd=Path('.'), env={ENV!r}, limits=p.Limits(timeout_s=20),"
        " output=1, exclusive=True))\n"
        "import psutil; print(len(psutil.Process().children()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    [survivor] = pids(tmp_path, "survivor")
    assert gone(survivor)
    assert done.stdout.splitlines()[-1] == "0"  # the shell may say "Killed" before


async def test_cancel_ends_the_tree_before_it_is_passed_on(tmp_path: Path) -> None:
    task = asyncio.create_task(run(shell(SETSID + READY + "sleep 60"), tmp_path, limits={"grace_s": 0.1}))
    await asyncio.to_thread(pids, tmp_path, "survivor")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gone(pids(tmp_path, "survivor")[0])


async def test_a_second_cancel_cuts_the_grace_short(tmp_path: Path) -> None:
    task = asyncio.create_task(run(shell(SURVIVOR), tmp_path, limits={"grace_s": 60.0}))
    await asyncio.to_thread(pids, tmp_path, "survivor")
    began = time.monotonic()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - began < 10
    assert gone(pids(tmp_path, "survivor")[0])


def test_nobody_survives_a_loop_that_is_torn_down(tmp_path: Path) -> None:
    async def abandon() -> None:
        task = asyncio.create_task(run(shell(SURVIVOR), tmp_path, limits={"grace_s": 60.0}))
        await asyncio.to_thread(pids, tmp_path, "survivor")
        task.cancel()
        await asyncio.sleep(0.05)

    began = time.monotonic()
    asyncio.run(abandon())
    [survivor] = pids(tmp_path, "survivor")
    wait_until(lambda: gone(survivor))
    assert time.monotonic() - began < 20


async def test_output_limit(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("12345")
    ended = await run(["cat", "/dev/zero"], tmp_path, limits={"output_bytes": 100_000, "grace_s": 0.1})
    assert ended.output_exceeded
    assert not ended.timed_out
    assert (tmp_path / "log").stat().st_size == 100_005


async def test_output_limit_holds_for_a_program_that_is_faster_than_we_look(tmp_path: Path) -> None:
    ended = await run(shell("head -c 200000 /dev/zero"), tmp_path, limits={"output_bytes": 100_000})
    assert ended.output_exceeded
    assert (tmp_path / "log").stat().st_size == 100_000


_TAKES = "import time; x = bytearray({mib} * 2**20); x[::4096] = b'x' * len(x[::4096]); time.sleep({s})"


@LINUX
@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("shape", ["itself", "child", "two-children"])
async def test_memory_limit_counts_the_whole_tree(tmp_path: Path, shape: str, exclusive: bool) -> None:
    take = f"{sys.executable} -c {shlex.quote(_TAKES.format(mib=60 if shape == 'two-children' else 120, s=30))}"
    lines = {"itself": f"exec {take}", "child": f"{take} & wait", "two-children": f"{take} & {take} & wait"}
    ended = await run(shell(lines[shape]), tmp_path, limits={"memory_bytes": 100 * 2**20}, exclusive=exclusive)
    assert (ended.memory_exceeded, ended.timed_out, ended.clean) == (True, False, True)
    assert ended.took_s < 20


@LINUX
async def test_what_is_shared_counts_once_and_what_is_reserved_does_not(tmp_path: Path) -> None:
    """Four forks of a program that holds 60 MiB, and 64 GiB of address space that nobody uses."""
    script = (
        "import mmap, os, time\n"
        "m = mmap.mmap(-1, 64 * 2**30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)\n"
        "x = bytearray(60 * 2**20); x[::4096] = b'x' * len(x[::4096])\n"
        "for _ in range(4):\n    if not os.fork(): time.sleep(1.2); os._exit(0)\n"
        "for _ in range(4): os.wait()\n"
    )
    ended = await run([sys.executable, "-c", script], tmp_path, limits={"memory_bytes": 150 * 2**20})
    assert (ended.code, ended.memory_exceeded) == (0, False)


async def test_the_lock_stays_held_by_the_program_alone(tmp_path: Path) -> None:
    lock = acquire(tmp_path / "claim.lock")
    assert lock
    task = asyncio.create_task(run(shell("echo $$ > pid; exec sleep 60"), tmp_path, pass_fds=(lock.fd,)))
    [pid] = await asyncio.to_thread(pids, tmp_path, "pid")
    os.close(lock.fd)
    lock.fd = -1
    assert is_held(tmp_path / "claim.lock")
    with (tmp_path / "claim.lock").open("rb"):  # a look at the file is no hold
        assert [member.pid for member in process_table.lock_holders(tmp_path / "claim.lock")] == [pid]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not is_held(tmp_path / "claim.lock")
    assert process_table.lock_holders(tmp_path / "missing") == ()


async def test_runs_side_by_side_do_not_end_each_other(tmp_path: Path) -> None:
    long = asyncio.create_task(run(shell("echo $$ > pid; exec sleep 0.6"), tmp_path))
    await asyncio.to_thread(pids, tmp_path, "pid")
    assert (await run(["true"], tmp_path)).code == 0
    assert (await run(["sleep", "9"], tmp_path, limits={"timeout_s": 0.1})).timed_out
    assert (await long).code == 0


async def test_a_run_within_a_run_ends_with_the_outer_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The product is developed with itself: what an inner coordinator starts carries the outer mark as well."""
    monkeypatch.setenv(process.LINEAGE, "outer")
    await run(["env"], tmp_path)
    line = next(line for line in (tmp_path / "log").read_text().splitlines() if line.startswith(process.LINEAGE))
    assert line.startswith(f"{process.LINEAGE}=outer:")


async def test_stop_tree_takes_children_and_marked_ones_and_no_stranger(tmp_path: Path) -> None:
    tag = f"COORDINATOR_ATTEMPT={tmp_path}/1"
    near = start(shell("sleep 60 & echo $! > child; wait"), cwd=tmp_path, start_new_session=True)
    env = {**ENV, "COORDINATOR_ATTEMPT": f"{tmp_path}/1"}
    far = start(["sleep", "60"], env=env)
    stranger = start(["sleep", "60"], env={**ENV, "COORDINATOR_ATTEMPT": f"{tmp_path}/12"})
    try:
        [child] = await asyncio.to_thread(pids, tmp_path, "child")
        started = process_start(near.pid)
        assert started
        assert [member.pid for member in process.tree(near.pid)] == [near.pid, child]
        assert process.usage(near.pid).processes == 1
        assert await process.stop_tree(near.pid, started, 1.0, tag)
        assert near.wait(5) in {0, -signal.SIGTERM}  # its child may end first, and then it does by itself
        assert far.wait(5) == -signal.SIGTERM
        assert gone(child)
        assert stranger.poll() is None
        assert await process.stop_tagged(f"COORDINATOR_ATTEMPT={tmp_path}/12", 1.0)
        assert stranger.wait(5) == -signal.SIGTERM
    finally:
        for each in (near, far, stranger):
            each.kill()
            each.wait()


async def test_a_stranger_with_a_reused_pid_is_never_signalled() -> None:
    stranger = start(["sleep", "60"], start_new_session=True)
    try:
        assert await process.stop_tree(stranger.pid, "12345", 0.1)
        assert not process_table.send(Member(stranger.pid, "12345"), signal.SIGKILL)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_we_never_belong_to_the_kin_ourselves(monkeypatch: pytest.MonkeyPatch) -> None:
    own = process_start(os.getpid())
    assert own
    assert os.getpid() not in {member.pid for member in Kin(Member(os.getpid(), own)).living()}


async def test_exited_wakes_for_others_children_and_for_reused_pids(tmp_path: Path) -> None:
    parent = start(shell("sleep 0.3 & echo $! > child; wait; sleep 60"), cwd=tmp_path, start_new_session=True)
    try:
        [child] = await asyncio.to_thread(pids, tmp_path, "child")
        seen = process_table.row(child)
        await asyncio.wait_for(exited(Member(child, seen.member.started if seen else "")), 5)
        await asyncio.wait_for(exited(Member(parent.pid, "12345")), 5)
        await asyncio.wait_for(exited(Member(2**22 - 1, "1")), 5)
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        parent.wait()


async def test_no_descriptor_and_no_child_is_left(tmp_path: Path) -> None:
    await run(["true"], tmp_path)
    gc.collect()  # what other tests left open is not ours
    before = len(os.listdir("/dev/fd"))
    for _ in range(5):
        await run(shell("sleep 9 & "), tmp_path, stdin=b"x", limits={"timeout_s": math.inf})
    assert len(os.listdir("/dev/fd")) == before
    assert len(process.tree(os.getpid())) == 1


def test_a_name_with_parentheses_does_not_shift_the_table() -> None:
    rest = " ".join(["S", "10", "11", "12", *"0" * 15, "4711", "0"])
    row = process_table.parse_stat(7, f"7 (a) b) (c) {rest}")
    assert row
    assert (row.member, row.parent, row.group, row.session, row.zombie) == (Member(7, "4711"), 10, 11, 12, False)
    assert process_table.parse_stat(7, "garbage") is None


def test_free_disk(tmp_path: Path) -> None:
    assert process.free_disk(tmp_path) > 0


@LINUX
def test_who_hides_shows_its_environment_to_nobody_of_the_same_user(tmp_path: Path) -> None:
    """Of two processes of one user (not root, who sees everything), one may read the other's keys, unless that one hides."""
    script = (
        "import ctypes, os, sys\n"
        "from coordinator.kit import process\n"
        "if os.getuid() == 0: os.setgid(65534); os.setuid(65534); ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)\n"
        "def look():\n"
        "    reader, writer = os.pipe()\n"
        "    target = os.getpid()\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        try: seen = b'KEY=secret' in open(f'/proc/{target}/environ', 'rb').read()\n"
        "        except OSError: seen = False\n"
        "        os.write(writer, b'1' if seen else b'0'); os._exit(0)\n"
        "    os.waitpid(child, 0)\n"
        "    return os.read(reader, 1).decode()\n"
        "before = look(); process.hide(); print(before, look())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "KEY": "secret"},
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.stdout.split() == ["1", "0"], done.stderr
