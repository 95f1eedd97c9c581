"""What a sensor sees of real files and real processes, whatever an agent makes of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from coordinator.domain.attempt import Ending
from coordinator.domain.settings import FleetSettings
from coordinator.domain.vitals import Doing, Vitals
from coordinator.fleet import sensor as sensors
from coordinator.fleet.driver import Ended, Glimpse, PlainReader, Said
from coordinator.fleet.model_access import DirectAccess
from coordinator.fleet.sensor import Sensor
from coordinator.fleet.sighting import Sighting
from coordinator.fleet.vigil import Vigil
from coordinator.kit import lock, process, process_table
from coordinator.kit.bus import Bus
from coordinator.kit.clock import SystemClock
from coordinator.policy.health import HealthDiagnosis, thresholds
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1024 * 1024


class Listener:
    """A reader that keeps what it is fed and says what the test wants it to say."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.said = Glimpse()

    def feed(self, line: bytes) -> None:
        self.lines.append(line)
        if line.startswith(b"note "):
            self.said = replace(self.said, note=line.decode())

    def glimpse(self) -> Glimpse:
        return self.said

    def doom(self, now: float) -> Said | None:
        return None

    def conclude(self, ended: Ended) -> Said:
        raise NotImplementedError


class Rig:
    """A sensor on a file that does not exist yet and an empty tree."""

    def __init__(self, top: Path, *, understood: bool = True, memory_bytes: int = 0) -> None:
        self.file, self.tree, self.reader = top / "transcript.jsonl", top / "tree", Listener()
        self.tree.mkdir()
        self.notes: list[str] = []
        self.sensor = Sensor(
            self.reader,
            self.file,
            self.tree,
            understood=understood,
            memory_bytes=memory_bytes,
            tell=self.notes.append,
        )

    def write(self, data: bytes) -> None:
        with self.file.open("ab") as file:
            file.write(data)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


@pytest.fixture
def child() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes of a test; with all that came of them they end with it."""
    children: list[subprocess.Popen[bytes]] = []
    yield children
    for each in children:
        for member in process.tree(each.pid):
            process_table.send(member, signal.SIGKILL)
        each.wait()


# -- output --------------------------------------------------------------------------------------------------------


def test_lines_come_whole_and_growth_is_progress(rig: Rig) -> None:
    before = rig.sensor.look()
    rig.write(b'{"a": 1}\n{"b":')
    grown = rig.sensor.look()
    assert grown.progress_at > before.progress_at
    assert rig.reader.lines == [b'{"a": 1}']
    assert rig.sensor.look().progress_at == grown.progress_at
    rig.write(b" 2}\nlast")
    rig.sensor.finish()
    assert rig.reader.lines == [b'{"a": 1}', b'{"b": 2}', b"last"]


def test_each_new_note_is_told_once(rig: Rig) -> None:
    rig.write(b"note 1\nmore\nnote 2\nnote 2\n")
    rig.sensor.look()
    rig.write(b"more\nnote 1\nnote 3")
    rig.sensor.finish()
    assert rig.notes == ["note 1", "note 2", "note 1", "note 3"]


def test_a_line_of_ten_megabytes_is_cut_and_the_next_one_is_whole(rig: Rig) -> None:
    for _ in range(10):
        rig.write(b"x" * MIB)
        rig.sensor.read()
    rig.write(b"y\nnext\n")
    rig.write(b"z" * (2 * MIB) + b"\nafter\n" + b"\xff\xfe broken")
    rig.sensor.finish()
    cut, following, cut_too, after, broken = rig.reader.lines
    assert (len(cut), len(cut_too)) == (MIB, MIB)
    assert (following, after, broken) == (b"next", b"after", b"\xff\xfe broken")


def test_one_look_takes_a_bounded_piece_and_the_end_takes_all(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensors, "_CHUNK_BYTES", 100)
    rig.write(b"0123456789\n" * 100)
    assert rig.sensor.read()
    assert len(rig.reader.lines) == 36
    assert rig.sensor.read()
    rig.sensor.finish()
    assert rig.reader.lines == [b"0123456789"] * 100


def test_a_file_that_was_cut_is_read_from_its_start(rig: Rig) -> None:
    rig.write(b"one\ntwo\nhalf")
    rig.sensor.read()
    rig.file.write_bytes(b"new\n")
    assert rig.sensor.read()
    assert rig.reader.lines == [b"one", b"two", b"new"]


def test_what_is_no_file_is_no_output(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret\n")
    rig.file.symlink_to(tmp_path / "secret")
    assert not rig.sensor.read()
    rig.file.unlink()
    os.mkfifo(rig.file)
    assert not rig.sensor.read()
    rig.file.unlink()
    rig.file.mkdir()
    assert not rig.sensor.read()
    rig.sensor.finish()
    assert rig.reader.lines == []


def test_plain_output_only_has_a_size(tmp_path: Path) -> None:
    rig = Rig(tmp_path, understood=False)
    before = rig.sensor.look()
    rig.write(b"hello\n")
    assert rig.sensor.look().progress_at > before.progress_at
    assert not rig.sensor.read()
    rig.sensor.finish()
    assert rig.reader.lines == []


def test_what_it_does_and_since_when(rig: Rig) -> None:
    rig.reader.said = Glimpse(doing=Doing.USING_TOOL, tool="Bash", tool_limit_s=120.0, turns=3, cost_usd=0.5, repeats=2)
    first = rig.sensor.look()
    second = rig.sensor.look()
    assert (first.doing, first.tool, first.tool_limit_s) == ("using_tool", "Bash", 120.0)
    assert (first.turns, first.cost_usd, first.repeats) == (3, 0.5, 2)
    assert second.doing_since == first.doing_since
    assert second.seen_at > first.seen_at
    rig.reader.said = replace(rig.reader.said, tool="Read")
    assert rig.sensor.look().doing_since > first.doing_since
    assert Vitals.from_json(second.to_json()) == second
    assert second.boot == lock.boot_id()


def test_since_when_it_repeats_itself(rig: Rig) -> None:
    def look(repeats: int) -> Vitals:
        rig.reader.said = replace(rig.reader.said, repeats=repeats)
        return rig.sensor.look()

    look(1)
    once = look(1)
    assert once.repeating_since == once.seen_at
    assert [look(repeats).repeating_since for repeats in (2, 2, 3, 7)] == [once.repeating_since] * 4
    again = look(2)  # of something else
    assert again.repeating_since == again.seen_at
    assert look(3).repeating_since == again.seen_at


# -- processes -----------------------------------------------------------------------------------------------------


def _start(children: list[subprocess.Popen[bytes]], code: str) -> None:
    children.append(
        subprocess.Popen([sys.executable, "-S", "-c", f"import time, os\n{code}"], stdin=subprocess.DEVNULL)
    )


def test_a_busy_tree_is_seen_and_a_waiting_one_is_not(
    rig: Rig, child: list[subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    go = tmp_path / "go"
    code = (
        f"while not os.path.exists({str(go)!r}): time.sleep(0.1)\nif os.fork() == 0:\n  os.setsid()\n  while True: pass"
    )
    _start(child, code + "\nos.wait()")
    busy = []

    def quiet() -> bool:
        busy.append(rig.sensor.look())
        return busy[-1].seen_at - busy[-1].busy_at > 1.2

    wait_until(quiet, what="a look at which nothing was busy")
    assert busy[-1].processes >= 1
    assert busy[-1].memory_bytes > MIB
    go.touch()
    before = busy[-1].busy_at
    wait_until(lambda: rig.sensor.look().busy_at > before, what="a look at the busy grandchild")


def test_shared_memory_counts_once_when_it_matters(tmp_path: Path, child: list[subprocess.Popen[bytes]]) -> None:
    """Three processes share 60 MiB: counted for each, that is more than a limit of 120 MiB allows."""
    ready = tmp_path / "ready"
    code = "data = bytearray(os.urandom(60 * 2**20))\nfor _ in range(2):\n  if os.fork() == 0: time.sleep(100); os._exit(0)"
    _start(child, f"{code}\nopen({str(ready)!r}, 'w').close()\ntime.sleep(100)")
    wait_until(ready.exists, what="the children")
    limited = Rig(tmp_path, memory_bytes=120 * MIB).sensor.look()
    (tmp_path / "tree").rmdir()
    unlimited = Rig(tmp_path).sensor.look()
    assert unlimited.memory_bytes > 180 * MIB
    assert 60 * MIB < limited.memory_bytes < 120 * MIB


# -- files ---------------------------------------------------------------------------------------------------------


def test_a_changed_file_is_life_when_nothing_else_moves(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensors, "_QUIET_S", 0.0)
    monkeypatch.setattr(sensors, "BUSY_CORES", 1e9)
    deep = rig.tree / "src" / "deep"
    deep.mkdir(parents=True)
    (deep / "a.py").write_text("a")
    os.utime(deep / "a.py", (4e9, 4e9))  # a file from the future must not hide those that are written now
    (rig.tree / ".git").mkdir()
    (rig.tree / "loop").symlink_to(rig.tree)
    still = rig.sensor.look().changed_at
    assert rig.sensor.look().changed_at == still
    (rig.tree / ".git" / "index").write_text("x")
    assert rig.sensor.look().changed_at == still
    (deep / "b.py").write_text("b")
    seen = [rig.sensor.look().changed_at]
    assert seen[-1] > still
    assert rig.sensor.look().changed_at == seen[-1]
    os.utime(deep / "b.py", (5, 5))
    assert rig.sensor.look().changed_at > seen[-1]


@pytest.mark.parametrize("pause_s", [10, 12, 30])
def test_files_are_looked_at_beside_polls_and_not_beside_an_agent_that_goes_on(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, pause_s: int
) -> None:
    """A poll and its answer are output; what is polled for writes a file every second."""
    monkeypatch.setattr(sensors, "BUSY_CORES", 1e9)
    begun = now = rig.sensor.look().seen_at

    def look(repeats: int, *, tells: bool) -> Vitals:
        nonlocal now
        now += 1
        monkeypatch.setattr(sensors, "time", SimpleNamespace(monotonic=lambda: now))
        (rig.tree / "build.log").write_text("more")
        os.utime(rig.tree / "build.log", (now, now))
        if tells:
            rig.write(b"line\n")
            rig.reader.said = replace(rig.reader.said, repeats=repeats)
        return rig.sensor.look()

    goes_on = [look(0, tells=True) for _ in range(100)]
    assert goes_on[-1].changed_at <= begun
    polls = [look(2 + second // pause_s, tells=second % pause_s in (0, 2)) for second in range(120)]
    assert max(seen.seen_at - seen.changed_at for seen in polls[30:]) <= 10


def test_a_large_tree_costs_a_bounded_look_and_its_top_is_seen(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensors, "_MOST_ENTRIES", 30)
    modules = rig.tree / "node_modules" / "x"
    modules.mkdir(parents=True)
    for number in range(50):
        (modules / f"{number}").touch()
    (rig.tree / "src").mkdir()
    before = sensors._mark_of(rig.tree)
    assert sensors._mark_of(rig.tree) == before
    (rig.tree / "src" / "new").touch()
    assert sensors._mark_of(rig.tree) != before
    assert sensors._mark_of(rig.tree / "missing") == 0


# -- end to end ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("busy", [False, True], ids=["hung", "silent-build"])
def test_a_hung_tree_is_condemned_at_its_silence_and_a_silent_build_is_not(
    tmp_path: Path, child: list[subprocess.Popen[bytes]], busy: bool
) -> None:
    """Looks as a runner takes them, judged as a daemon does."""
    clock, limits = SystemClock(), replace(thresholds(FleetSettings(), None, None, timeout_s=1e6), stall_s=2.0)
    vigil = Vigil(clock, Bus(clock), heartbeat_s=1.0, access=DirectAccess())
    sensor = Sensor(PlainReader(), tmp_path / "agent.log", tmp_path, understood=False)
    _start(child, "while True: pass" if busy else "time.sleep(1000)")
    wait_until(lambda: sensor.look().processes > 0, what="the child")
    found: list[tuple[Vitals, HealthDiagnosis, float]] = []

    def over() -> bool:
        vitals = sensor.look()
        vigil.turn()
        seen = Sighting(beat=len(found), held=True, record=None, vitals=vitals)
        found.append((vitals, vigil.judge(("t", 1), seen, limits), clock.monotonic()))
        return found[-1][1].condemned is not None or vitals.seen_at - vitals.started_at > 8.0

    wait_until(lambda: over() or (busy and found[-1][0].seen_at - found[-1][0].started_at > 3.0), what="a verdict")
    vitals, diagnosis, judged_at = found[-1]
    if busy:
        assert diagnosis.condemned is None
    else:
        assert diagnosis.condemned is Ending.STALLED
        assert 2.0 < judged_at - max(vitals.busy_at, vitals.progress_at) < 2.2
