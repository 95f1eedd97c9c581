"""The lock is the only truth about who holds what, and records name one process of all times."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from coordinator.domain.attempt import ClaimRecord
from coordinator.kit import lock
from tests.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

HOLD = """
import os, subprocess, sys
from pathlib import Path
from coordinator.kit import lock
held = lock.acquire(Path(sys.argv[1]))
child = None
if sys.argv[2] == "with-child":
    child = subprocess.Popen(["sleep", "60"], pass_fds=(held.fd,), stdout=subprocess.DEVNULL)
print(child.pid if child else 0, flush=True)
sys.stdin.readline()
if sys.argv[2] != "exit":
    held.release()
"""

RECORD = ClaimRecord(agent="a", boot="b", generation=3, host="h", pid=7, started="9", task="t")


def hold(path: Path, how: str = "alone") -> tuple[subprocess.Popen[str], int]:
    """Another process that holds the lock, and its child's pid."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def finish(process: subprocess.Popen[str]) -> None:
    process.communicate("\n", timeout=10)


def test_one_holder_at_a_time_even_within_a_process(tmp_path: Path) -> None:
    path = tmp_path / "t.lock"
    with lock.acquire(path) or pytest.fail("free") as held:
        assert lock.acquire(path) is None
        assert lock.is_held(path)
        assert held.fd >= 0
    assert not lock.is_held(path)
    held.release()  # a second time: nothing
    again = lock.acquire(path)
    assert again is not None
    again.release()


def test_file_is_neither_truncated_nor_replaced_nor_removed(tmp_path: Path) -> None:
    path = tmp_path / "t.lock"
    path.write_text("daemon 12")
    before = path.stat().st_ino
    held = lock.acquire(path)
    assert held is not None
    assert path.read_text() == "daemon 12"
    held.release()
    assert (path.read_text(), path.stat().st_ino) == ("daemon 12", before)


def test_probes_do_not_see_each_other_and_create_nothing(tmp_path: Path) -> None:
    import fcntl

    path = tmp_path / "t.lock"
    assert not lock.is_held(path)
    assert not path.exists()
    path.touch()
    with path.open() as probing:
        fcntl.flock(probing, fcntl.LOCK_SH)
        assert not lock.is_held(path)


@pytest.mark.parametrize("odd", ["symlink", "dangling", "fifo"])
def test_something_odd_in_the_place_of_a_lock_file_stalls_nobody(tmp_path: Path, odd: str) -> None:
    path = tmp_path / "t.lock"
    target = tmp_path / "precious"
    match odd:
        case "symlink":
            target.write_text("x")
            path.symlink_to(target)
        case "dangling":
            path.symlink_to(target)
        case _:
            os.mkfifo(path)
    assert not lock.is_held(path)
    if odd == "fifo":
        return
    with pytest.raises(OSError, match="symbolic"):
        lock.acquire(path)
    assert target.exists() == (odd == "symlink")


def test_kill_frees_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "t.lock"
    process, _ = hold(path)
    assert lock.is_held(path)
    assert lock.acquire(path) is None
    process.kill()
    process.communicate()
    assert not lock.is_held(path)


def test_a_stopped_holder_keeps_its_lock(tmp_path: Path) -> None:
    path = tmp_path / "t.lock"
    process, _ = hold(path)
    os.kill(process.pid, signal.SIGSTOP)
    assert lock.acquire(path) is None
    os.kill(process.pid, signal.SIGCONT)
    finish(process)
    assert not lock.is_held(path)


def test_a_child_that_inherited_the_lock_keeps_it_after_its_parent_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "t.lock"
    process, child = hold(path, "with-child")
    process.kill()
    process.communicate()
    assert lock.is_held(path)
    os.kill(child, signal.SIGKILL)
    wait_until(lambda: not lock.is_held(path), what="the child's end")


def test_release_frees_it_for_all_heirs(tmp_path: Path) -> None:
    path = tmp_path / "t.lock"
    process, child = hold(path, "with-child")
    finish(process)
    try:
        assert not lock.is_held(path)
    finally:
        os.kill(child, signal.SIGKILL)


def test_an_interpreter_that_ends_without_release_leaves_it_to_the_child(tmp_path: Path) -> None:
    """``filelock.FileLock`` would unlock at exit, under the child that still works."""
    path = tmp_path / "t.lock"
    code = HOLD.replace('!= "exit"', '== "never"')
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path), "with-child"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    finish(process)
    try:
        assert lock.is_held(path)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_lock_on_a_removed_file_is_not_taken_for_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody empties the folder between our open and our flock: what we locked is then no longer what others lock."""
    import filelock

    path = tmp_path / "t.lock"
    real, calls = filelock.lock_descriptor, []

    def remove_first(fd: int, *, blocking: bool) -> bool:
        if not calls:
            path.unlink()
        calls.append(fd)
        return real(fd, blocking=blocking)

    monkeypatch.setattr(filelock, "lock_descriptor", remove_first)
    held = lock.acquire(path)
    assert held is not None
    assert len(calls) == 2
    assert lock.is_held(path)
    held.release()


def test_record_comes_back_as_written(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    lock.write_record(path, RECORD)
    lock.write_record(path, replace(RECORD, generation=4))
    assert lock.read_record(path) == replace(RECORD, generation=4)
    assert os.listdir(tmp_path) == ["t.json"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[1]",
        b"{}",
        b'"x"',
        b"[" * 100_000,
        b'{"agent": "a"',
        json.dumps(RECORD.to_json() | {"generation": "3"}).encode(),
        json.dumps(RECORD.to_json() | {"generation": True}).encode(),
        json.dumps(RECORD.to_json() | {"agent": None}).encode(),
        json.dumps(RECORD.to_json()).encode() + b" " * (2 << 20),
    ],
    ids=lambda content: repr(content[:12]),
)
def test_garbage_is_no_record(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.json"
    path.write_bytes(content)
    assert lock.read_record(path) is None


def test_what_is_no_regular_file_is_no_record(tmp_path: Path) -> None:
    real, link, pipe = tmp_path / "real", tmp_path / "link", tmp_path / "pipe"
    lock.write_record(real, RECORD)
    link.symlink_to(real)
    os.mkfifo(pipe)
    for path in (link, pipe, tmp_path, tmp_path / "missing", real / "below"):
        assert lock.read_record(path) is None, path


def test_a_write_that_fails_leaves_the_old_content_and_no_litter(tmp_path: Path) -> None:
    """A full disk, as far as a test can make one: no file may grow beyond 4 bytes."""
    path = tmp_path / "t.json"
    path.write_text("old")
    code = (
        "import resource, sys; from pathlib import Path; from coordinator.kit import lock\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4, 4))\n"
        "try: lock.write_atomic(Path(sys.argv[1]), b'longer than that')\n"
        "except OSError: sys.exit(7)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 7
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["t.json"]


def test_write_replaces_a_symlink_instead_of_following_it(tmp_path: Path) -> None:
    target, path = tmp_path / "precious", tmp_path / "t.json"
    target.write_text("x")
    path.symlink_to(target)
    lock.write_atomic(path, b"new", mode=0o600)
    assert target.read_text() == "x"
    assert path.read_bytes() == b"new"
    assert path.lstat().st_mode & 0o777 == 0o600


def test_identity_names_this_very_process() -> None:
    host, boot, pid, started = lock.own_identity()
    assert pid == os.getpid()
    assert lock.same_process_alive(pid, started, boot, host)
    assert not lock.same_process_alive(pid, started + "1", boot, host), "a later process with the same pid"
    assert not lock.same_process_alive(pid, started, "another boot", host)
    assert not lock.same_process_alive(pid, started, boot, "another host")
    assert not lock.same_process_alive(pid, "", boot, host)


def test_gone_and_zombie_processes_have_no_start() -> None:
    process = subprocess.Popen(["sleep", "60"])
    started = lock.process_start(process.pid)
    assert started is not None
    assert lock.process_start(process.pid) == started
    os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: lock.process_start(process.pid) is None, what="the zombie")  # not yet waited for
    process.wait()
    assert lock.process_start(process.pid) is None


def test_a_process_name_with_brackets_and_blanks_does_not_confuse_us(tmp_path: Path) -> None:
    odd = tmp_path / "a) S 1 (b"
    odd.symlink_to("/bin/sleep")
    process = subprocess.Popen([odd, "60"])
    try:
        assert (lock.process_start(process.pid) or "").isdigit()
        _, boot, _, own = lock.own_identity()
        assert int(lock.process_start(process.pid) or 0) >= int(own)
        assert boot
    finally:
        process.kill()
        process.wait()


def test_a_lock_file_that_was_removed_is_not_in_place(tmp_path: Path) -> None:
    held = lock.acquire(tmp_path / "a.lock")
    assert held is not None
    with held:
        assert held.is_in_place()
        (tmp_path / "a.lock").unlink()
        assert not held.is_in_place()
        (tmp_path / "a.lock").touch()
        assert not held.is_in_place()
