from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import venv
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest

from coordinator.domain.attempt import Ending
from coordinator.domain.event import GateBroke, GateJudged, GateMended
from coordinator.domain.settings import GateSettings, LandSettings, Settings
from coordinator.domain.task import TaskState
from coordinator.fleet.gate import Gate
from coordinator.fleet.lander import Lander
from coordinator.kit.bus import Bus
from coordinator.kit.clock import SystemClock
from coordinator.kit.git import Git
from coordinator.kit.store import Store
from tests.conftest import git
from tests.fleet.candidates import candidate, work

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from coordinator.domain.candidate import Candidate, Settlement
    from coordinator.domain.event import Event
    from coordinator.sdk.layout import Layout

TARGET = "coordinator/main"
REF = f"refs/heads/{TARGET}"


@dataclass
class Line:
    """A lander at work on a real repository, with everything it says written down."""

    repository: Path
    head: str
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    events: list[Event] = field(default_factory=list)
    fence: Callable[[Candidate], bool] = lambda _: True
    lander: Lander = field(init=False)
    settled: dict[str, Settlement] = field(default_factory=dict)
    stages: list[tuple[str, TaskState]] = field(default_factory=list)

    def tip(self) -> str:
        return git(self.repository, "rev-parse", REF)

    def settle(self, settlement: Settlement) -> None:
        assert settlement.candidate.task.id not in self.settled
        self.settled[settlement.candidate.task.id] = settlement
        self.changed.set()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    def said(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]


class MovedGit(Git):
    """Git during which somebody else moves the target just before the first compare-and-swap."""

    moved_to = ""

    async def update_ref(self, ref: str, new: str, old: str | None) -> bool:
        if self.moved_to:
            moved, self.moved_to = self.moved_to, ""
            await super().update_ref(ref, moved, None)
        return await super().update_ref(ref, new, old)


@pytest.fixture
def store(layout: Layout) -> Iterator[Store]:
    opened = Store.open(layout.ledger)
    yield opened
    opened.close()


@contextlib.asynccontextmanager
async def running(line: Line) -> AsyncIterator[Line]:
    stopping = asyncio.Event()
    service = asyncio.create_task(line.lander.run(stopping))
    try:
        yield line
    finally:
        stopping.set()
        await service


@pytest.fixture
def make(repository: Path, layout: Layout, store: Store) -> Callable[..., Line]:
    def make(*, kind: type[Git] = Git, **gate: object) -> Line:
        head = git(repository, "rev-parse", "HEAD")
        git(repository, "update-ref", REF, head)
        gate_settings = replace(GateSettings(memory_bytes=0, commands=("true",), retry_s=0.05), **gate)  # type: ignore[arg-type]
        settings = Settings(gate=gate_settings, land=LandSettings(target=TARGET))
        clock = SystemClock()
        bus = Bus(clock)
        repo = kind(repository, repository / ".git")
        line = Line(repository=repository, head=head)
        line.lander = Lander(
            repo,
            Gate(repo, settings, layout, store, clock, bus),
            settings,
            bus,
            clock,
            on_stage=lambda candidate, state: line.stages.append((candidate.task.id, state)),
            on_settled=line.settle,
            superseded=lambda candidate: "" if line.fence(candidate) else "generation 2 is over there",
        )

        def note(published: object) -> None:
            line.events.append(published.event)  # type: ignore[attr-defined]
            line.changed.set()

        bus.tap(note)
        return line

    return make


async def test_one_lands_as_one_commit_with_trailers(make: Callable[..., Line]) -> None:
    line = make()
    message = "Say more\n\nBecause.\n\nCoordinator-Task: somebody-else"
    one = candidate(line.repository, line.head, {"a.txt": "1\n"}, message=message, generation=4)
    async with running(line):
        line.lander.submit(one)
        await line.until(lambda: line.settled)
    settlement = line.settled["one"]
    assert settlement.ending is Ending.LANDED
    assert settlement.commit == line.tip()
    assert settlement.files == ("a.txt",)
    assert git(line.repository, "rev-parse", f"{REF}^") == line.head
    trailers = git(line.repository, "log", "-1", "--format=%(trailers:only,unfold)", REF)
    assert trailers.splitlines() == ["Coordinator-Task: one", "Coordinator-Attempt: one/4"]
    assert git(line.repository, "log", "-1", "--format=%s|%an|%cn", REF) == "Say more|coordinator agent|coordinator"
    assert line.stages == [("one", TaskState.VALIDATING), ("one", TaskState.LANDING)]
    assert not line.lander.waiting()
    assert git(line.repository, "rev-parse", "HEAD") == line.head


async def test_work_left_uncommitted_is_ours_and_gets_the_headline(make: Callable[..., Line]) -> None:
    line = make()
    async with running(line):
        line.lander.submit(candidate(line.repository, line.head, {"a.txt": "1\n"}))
        await line.until(lambda: line.settled)
    assert git(line.repository, "log", "-1", "--format=%s|%an", REF) == "Do one|coordinator"


async def test_several_that_wait_are_judged_together_and_land_one_commit_each(make: Callable[..., Line]) -> None:
    line = make()
    for number in range(5):
        line.lander.submit(candidate(line.repository, line.head, {f"f{number}": "x\n"}, task=f"t{number}"))
    async with running(line):
        await line.until(lambda: len(line.settled) >= 5)
    assert {settlement.ending for settlement in line.settled.values()} == {Ending.LANDED}
    assert len(line.said(GateJudged)) == 1
    log = git(line.repository, "log", "--reverse", "--format=%H", f"{line.head}..{REF}").splitlines()
    assert log == [line.settled[f"t{number}"].commit for number in range(5)]
    assert all(len(settlement.files) == 1 for settlement in line.settled.values())


async def test_a_failing_batch_is_bisected(make: Callable[..., Line]) -> None:
    line = make(commands=("test ! -f bad",))
    for number in range(8):
        files: dict[str, str | None] = {"bad" if number == 5 else f"f{number}": "x\n"}
        line.lander.submit(candidate(line.repository, line.head, files, task=f"t{number}"))
    async with running(line):
        await line.until(lambda: len(line.settled) >= 8)
    endings = {task: settlement.ending for task, settlement in line.settled.items()}
    assert endings.pop("t5") is Ending.GATE_FAILED
    assert set(endings.values()) == {Ending.LANDED}
    assert "test ! -f bad" in line.settled["t5"].feedback
    assert line.settled["t5"].verdict is not None
    assert "bad" not in git(line.repository, "ls-tree", "-r", "--name-only", REF).splitlines()
    assert len(line.said(GateJudged)) == 1 + 3 + 1


async def test_what_need_not_be_judged(make: Callable[..., Line]) -> None:
    line = make()
    base = line.head
    line.lander.submit(candidate(line.repository, base, {}, task="empty"))
    line.lander.submit(candidate(line.repository, base, {"b.txt": "x"}, task="outside", paths=("src/**",)))
    line.lander.submit(candidate(line.repository, base, {"tests/test_price.py": None}, task="tests"))
    async with running(line):
        await line.until(lambda: len(line.settled) >= 3)
    assert line.settled["empty"].ending is Ending.EMPTY
    assert line.settled["outside"].ending is Ending.OUTSIDE_PATHS
    assert "b.txt" in line.settled["outside"].feedback
    assert line.settled["tests"].ending is Ending.DELETED_TESTS
    assert not line.said(GateJudged)
    assert line.tip() == base


async def test_conflicts(make: Callable[..., Line]) -> None:
    """Two that change the same line: the first lands, the second is told what it ran into."""
    line = make()
    line.lander.submit(candidate(line.repository, line.head, {"README.md": "# One\n"}, task="first"))
    line.lander.submit(candidate(line.repository, line.head, {"README.md": "# Two\n"}, task="second"))
    line.lander.submit(candidate(line.repository, line.head, {"README.md": "# One\n"}, task="same"))
    async with running(line):
        await line.until(lambda: len(line.settled) >= 3)
    assert line.settled["first"].ending is Ending.LANDED
    assert line.settled["second"].ending is Ending.CONFLICT
    assert "README.md" in line.settled["second"].feedback
    assert line.settled["same"].ending is Ending.EMPTY
    assert "already" in line.settled["same"].reason


async def test_a_target_that_moves_meanwhile_is_judged_again(make: Callable[..., Line]) -> None:
    line = make(kind=MovedGit)
    other = work(line.repository, line.head, {"theirs.txt": "x\n"})
    line.lander._git.moved_to = other  # type: ignore[attr-defined]
    async with running(line):
        line.lander.submit(candidate(line.repository, line.head, {"ours.txt": "x\n"}))
        await line.until(lambda: line.settled)
    assert line.settled["one"].ending is Ending.LANDED
    assert git(line.repository, "rev-parse", f"{REF}^") == other
    assert len(line.said(GateJudged)) == 2
    stages = [state for _, state in line.stages]
    assert stages == [TaskState.VALIDATING, TaskState.LANDING] * 2


async def test_a_stale_generation_never_lands(make: Callable[..., Line]) -> None:
    """The fence is looked at after the gate, right before the swap; neighbours land without it."""
    line = make(commands=("true",))
    line.fence = lambda one: one.task.id != "old" or not line.said(GateJudged)
    line.lander.submit(candidate(line.repository, line.head, {"a": "x\n"}, task="old"))
    line.lander.submit(candidate(line.repository, line.head, {"b": "x\n"}, task="new"))
    async with running(line):
        await line.until(lambda: len(line.settled) >= 2)
    assert line.settled["old"].ending is Ending.STALE
    assert line.settled["new"].ending is Ending.LANDED
    assert "a" not in git(line.repository, "ls-tree", "--name-only", REF).splitlines()


async def test_withdrawn_work_is_neither_landed_nor_settled(make: Callable[..., Line]) -> None:
    line = make()
    line.lander.submit(candidate(line.repository, line.head, {"a": "x\n"}, task="gone"))
    assert line.lander.withdraw("gone")
    assert not line.lander.withdraw("gone")

    def withdraw_late(one: Candidate) -> bool:
        if one.task.id == "late" and line.said(GateJudged):
            line.lander.withdraw("late")
        return True

    line.fence = withdraw_late
    line.lander.submit(candidate(line.repository, line.head, {"b": "x\n"}, task="other"))
    line.lander.submit(candidate(line.repository, line.head, {"c": "x\n"}, task="late"))
    async with running(line):
        line.lander.submit(candidate(line.repository, line.head, {"d": "x\n"}, task="last"))
        await line.until(lambda: {"other", "last"} <= set(line.settled))
    assert set(line.settled) <= {"other", "last", "late"}
    assert "a" not in git(line.repository, "ls-tree", "--name-only", REF).splitlines()


async def test_a_newer_attempt_takes_the_place_of_an_older(make: Callable[..., Line]) -> None:
    line = make()
    line.lander.submit(candidate(line.repository, line.head, {"a": "old\n"}))
    line.lander.submit(candidate(line.repository, line.head, {"a": "new\n"}, generation=2))
    async with running(line):
        await line.until(lambda: line.settled)
    assert line.settled["one"].candidate.generation == 2
    assert git(line.repository, "show", f"{REF}:a") == "new"


async def test_a_broken_gate_stops_the_line_and_mends_by_itself(make: Callable[..., Line], tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    line = make(commands=(str(tool),))
    async with running(line):
        line.lander.submit(candidate(line.repository, line.head, {"a": "x\n"}))
        await line.until(lambda: len(line.said(GateJudged)) >= 3)
        assert str(tool) in line.lander.broken()
        assert line.lander.broken_s() > 0
        assert [one.task.id for one in line.lander.waiting()] == ["one"]
        assert not line.settled
        assert len(line.said(GateBroke)) == 1
        tool.write_text("#!/bin/sh\n")
        tool.chmod(0o755)
        await line.until(lambda: line.settled)
    assert line.settled["one"].ending is Ending.LANDED
    assert len(line.said(GateBroke)) == len(line.said(GateMended)) == 1
    assert line.lander.broken() == ""
    assert line.lander.broken_s() == 0.0


async def test_a_line_that_stood_moves_again_when_nobody_waits(make: Callable[..., Line]) -> None:
    """Dispatch waits for a broken line: it must not stay broken because its only candidate was cancelled."""
    line = make(commands=("no-such-tool",))
    async with running(line):
        line.lander.submit(candidate(line.repository, line.head, {"a": "x\n"}))
        await line.until(lambda: line.said(GateBroke))
        line.lander.withdraw("one")
        await line.until(lambda: line.said(GateMended))
    assert line.lander.broken() == ""


async def test_a_task_whose_own_command_cannot_run_waits_beside_the_line(
    make: Callable[..., Line], tmp_path: Path
) -> None:
    tool = tmp_path / "tool"
    line = make()
    line.lander.submit(candidate(line.repository, line.head, {"a": "x\n"}, task="odd", accept=(str(tool),)))
    line.lander.submit(candidate(line.repository, line.head, {"b": "x\n"}, task="plain"))
    async with running(line):
        await line.until(lambda: "plain" in line.settled)
        assert line.settled["plain"].ending is Ending.LANDED
        assert line.lander.broken() == ""
        assert str(tool) in line.lander.parked()["odd"]
        assert len(line.said(GateBroke)) == 1
        tool.write_text("#!/bin/sh\n")
        tool.chmod(0o755)
        await line.until(lambda: "odd" in line.settled)
    assert line.settled["odd"].ending is Ending.LANDED
    assert not line.lander.parked()
    assert len(line.said(GateMended)) == 1


@pytest.mark.parametrize("trouble", ["checked out", "absent"])
async def test_a_target_that_cannot_be_moved_stops_the_line(make: Callable[..., Line], trouble: str) -> None:
    line = make()
    if trouble == "absent":
        git(line.repository, "update-ref", "-d", REF)
    else:
        git(line.repository, "checkout", "--quiet", TARGET)
    async with running(line):
        line.lander.submit(candidate(line.repository, line.head, {"a": "x\n"}))
        await line.until(lambda: line.said(GateBroke))
        assert TARGET in line.lander.broken()
        if trouble == "absent":
            git(line.repository, "update-ref", REF, line.head)
        else:
            git(line.repository, "checkout", "--quiet", "main")
        await line.until(lambda: line.settled)
    assert line.settled["one"].ending is Ending.LANDED


async def test_stopping_cuts_a_judgement_off_and_keeps_the_line(make: Callable[..., Line], tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    os.mkfifo(begun)
    line = make(commands=(f"echo begun > {begun}; sleep 100",))
    line.lander.submit(candidate(line.repository, line.head, {"a": "x\n"}))
    async with asyncio.timeout(20), running(line):
        assert await asyncio.to_thread(begun.read_text) == "begun\n"
        assert line.lander.busy
    assert not line.lander.busy
    assert [one.task.id for one in line.lander.waiting()] == ["one"]
    assert line.tip() == line.head
    assert not list((line.repository / ".coordinator" / "gate").iterdir())


async def test_a_candidate_whose_commit_is_gone_does_not_hold_up_the_others(make: Callable[..., Line]) -> None:
    line = make()
    lost = replace(candidate(line.repository, line.head, {"a": "x\n"}, task="lost"), commit="0" * 40)
    line.lander.submit(lost)
    line.lander.submit(candidate(line.repository, line.head, {"b": "x\n"}, task="fine"))
    async with running(line):
        await line.until(lambda: len(line.settled) >= 2)
    assert line.settled["lost"].ending is Ending.CRASHED
    assert line.settled["fine"].ending is Ending.LANDED


async def test_trouble_with_git_stops_the_line_and_is_named(make: Callable[..., Line]) -> None:
    line = make()
    lock = line.repository / ".git" / f"{REF}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.touch()  # what a git that was killed leaves behind
    async with running(line):
        line.lander.submit(candidate(line.repository, line.head, {"a": "x\n"}))
        await line.until(lambda: line.said(GateBroke))
        assert "update-ref" in line.lander.broken()
        assert "\n" not in line.lander.broken()
        lock.unlink()
        await line.until(lambda: line.settled)
    assert line.settled["one"].ending is Ending.LANDED


# -- a project whose tests cannot be run ---------------------------------------------------------------------------------


def without_pytest(repository: Path) -> None:
    """An environment of the project's in which pytest is not installed."""
    venv.create(repository / ".venv", with_pip=False)


def trailers(repository: Path, commit: str) -> str:
    return git(repository, "log", "-1", "--format=%(trailers:only,unfold)", commit)


async def test_untested_only_autofix_lands_and_it_is_marked(make: Callable[..., Line]) -> None:
    line = make(commands=())
    without_pytest(line.repository)
    line.lander.submit(candidate(line.repository, line.head, {"a.txt": "x\n"}, task="wish", role="command"))
    line.lander.submit(candidate(line.repository, line.head, {"b.txt": "x\n"}, task="plain"))
    line.lander.submit(candidate(line.repository, line.head, {"c.txt": "x\n"}, task="fix-c", role="autofix"))
    line.lander.submit(candidate(line.repository, line.head, {"d.txt": "x\n"}, task="fix-d", role="autofix"))
    async with running(line):
        await line.until(lambda: len(line.settled) >= 2)
        assert {settlement.ending for settlement in line.settled.values()} == {Ending.LANDED}
        assert set(line.lander.parked()) == {"wish", "plain"}
        for word in ("cannot be run", "pytest is not installed", "make a .venv", '[gate] untested = "land"'):
            assert word in line.lander.parked()["wish"]
        assert line.lander.broken() == ""
    (broke,) = line.said(GateBroke)
    assert isinstance(broke, GateBroke)
    assert broke.tasks == ("wish", "plain")
    for task in ("fix-c", "fix-d"):
        settlement = line.settled[task]
        last = trailers(line.repository, settlement.commit).splitlines()[-1]
        assert last.startswith("Coordinator-Untested: pytest (pytest is not installed")
        assert "untested: pytest" in settlement.reason
        assert settlement.verdict is not None
        assert settlement.verdict.untested
    names = git(line.repository, "log", "--format=%s", f"{line.head}..{REF}").splitlines()
    assert names == ["Do fix-d", "Do fix-c"]
    assert line.settled["fix-d"].commit == line.tip()
    (judged,) = [
        event for event in line.said(GateJudged) if isinstance(event, GateJudged) and event.verdict == "passed"
    ]
    assert "pytest is not installed" in judged.untested


async def test_who_accepts_the_risk_lands_everything_marked(make: Callable[..., Line]) -> None:
    line = make(commands=(), untested="land")
    without_pytest(line.repository)
    line.lander.submit(candidate(line.repository, line.head, {"a.txt": "x\n"}, task="wish", role="command"))
    async with running(line):
        await line.until(lambda: line.settled)
    assert line.settled["wish"].ending is Ending.LANDED
    assert "Coordinator-Untested: pytest (" in trailers(line.repository, line.tip())
    assert not line.said(GateBroke)


async def test_after_a_bisection_too_what_landed_untested_is_marked(make: Callable[..., Line]) -> None:
    line = make(commands=())
    without_pytest(line.repository)
    for number in range(4):
        text = "import os\n" if number == 2 else f"X = {number}\n"
        files: dict[str, str | None] = {f"shop/m{number}.py": text}
        line.lander.submit(candidate(line.repository, line.head, files, task=f"t{number}", role="autofix"))
    async with running(line):
        await line.until(lambda: len(line.settled) >= 4)
    assert line.settled["t2"].ending is Ending.GATE_FAILED
    for task in ("t0", "t1", "t3"):
        assert "Coordinator-Untested: pytest (" in trailers(line.repository, line.settled[task].commit)


class FullDisk:
    """Takes the place of whoever writes settlements down, and cannot the first few times."""

    def __init__(self, line: Line, error: Exception, *, times: int = 1) -> None:
        self._settle, self._error, self.times = line.settle, error, times
        line.lander._on_settled = self

    def __call__(self, settlement: Settlement) -> None:
        if self.times:
            self.times -= 1
            raise self._error
        self._settle(settlement)


FULL = sqlite3.OperationalError("database or disk is full")


async def test_what_landed_while_it_could_not_be_written_down_is_told_when_there_is_room(
    make: Callable[..., Line],
) -> None:
    """The swap of two is done; telling of the first fails, and the service is started again, as its supervisor does."""
    line = make()
    FullDisk(line, FULL, times=2)
    for name in ("a", "b"):
        line.lander.submit(candidate(line.repository, line.head, {name: "1\n"}, task=name))
    for _ in range(2):
        with pytest.raises(sqlite3.OperationalError):
            await line.lander.run(asyncio.Event())
        assert line.tip() != line.head
        assert not line.settled
    async with running(line):
        await line.until(lambda: len(line.settled) >= 2)
    assert [(name, one.ending) for name, one in line.settled.items()] == [("a", Ending.LANDED), ("b", Ending.LANDED)]
    assert line.settled["b"].commit == line.tip()


async def test_a_refusal_that_could_not_be_written_down_is_told_later(make: Callable[..., Line]) -> None:
    """By the same run of the service, which takes it for trouble of the system's."""
    line = make()
    FullDisk(line, OSError("no space left on device"))
    async with running(line):
        line.lander.submit(candidate(line.repository, line.head, {"tests/test_price.py": None}, task="a"))
        await line.until(lambda: line.said(GateMended))
    assert line.settled["a"].ending is Ending.DELETED_TESTS
    assert len(line.said(GateBroke)) == len(line.said(GateMended)) == 1


async def test_withdrawn_work_is_not_settled_later_unless_it_has_landed(make: Callable[..., Line]) -> None:
    line = make()
    disk = FullDisk(line, FULL)
    test = "tests/test_price.py"
    for name, path, gone in (("landed", "a", "landed"), ("refused", test, "refused"), ("told", test, "another")):
        disk.times = 1
        change = {path: "1\n" if name == "landed" else None}
        line.lander.submit(candidate(line.repository, line.head, change, task=name))
        with pytest.raises(sqlite3.OperationalError):
            await line.lander.run(asyncio.Event())
        line.lander.withdraw(gone)
        stopping = asyncio.Event()
        stopping.set()
        await line.lander.run(stopping)  # which tells first of what it owes
    assert set(line.settled) == {"landed", "told"}


async def test_a_settlement_that_nobody_can_take_does_not_hold_up_the_others(make: Callable[..., Line]) -> None:
    line = make()
    FullDisk(line, KeyError("a fault of ours"))
    for name in ("a", "b"):
        line.lander.submit(candidate(line.repository, line.head, {name: "1\n"}, task=name))
    with pytest.raises(KeyError):
        await line.lander.run(asyncio.Event())
    async with running(line):
        await line.until(lambda: line.settled)
    assert set(line.settled) == {"b"}
    assert line.settled["b"].ending is Ending.LANDED
