"""The spool followed as people really treat it: half-written, replaced, moved, linked, huge, many."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from coordinator.domain.event import SpoolRead
from coordinator.domain.settings import FleetSettings
from coordinator.fleet.shelf import IMPATIENT_S, SETTLE_S, Shelf
from coordinator.fleet.spool import Spool
from coordinator.kit.bus import Bus
from coordinator.kit.clock import SystemClock
from coordinator.policy.spool import SpoolState, combine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


def task(task_id: str, prompt: str = "p", extra: str = "") -> str:
    return f'[[tasks]]\nid = "{task_id}"\nprompt = "{prompt}"\n{extra}'


class House:
    """A repository with a spool, and everything that the spool told."""

    def __init__(self, top: Path, *, rescan_s: float = 60.0) -> None:
        self.top = top
        self.tasks = top / "tasks"
        self.tasks.mkdir(exist_ok=True)
        clock = SystemClock()
        self.bus = Bus(clock)
        self.states: list[SpoolState] = []
        self._news = asyncio.Event()
        settings = replace(FleetSettings(), rescan_s=rescan_s)
        self.spool = Spool(self.tasks, top, settings, self.bus, clock, self._take)

    def _take(self, state: SpoolState) -> None:
        self.states.append(state)
        self._news.set()

    async def until(self, condition: Callable[[SpoolState], object]) -> SpoolState:
        async with asyncio.timeout(10):
            while not (self.states and condition(self.states[-1])):
                self._news.clear()
                await self._news.wait()
        return self.states[-1]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self.states.append(await self.spool.read())
        stopping = asyncio.Event()
        running = asyncio.create_task(self.spool.run(stopping))
        try:
            yield
            assert not running.done(), running
        finally:
            stopping.set()
            await asyncio.wait_for(running, 5)


def prompts(state: SpoolState) -> dict[str, str]:
    return {name: known.prompt for name, known in state.tasks.items()}


async def read(top: Path) -> SpoolState:
    return await House(top).spool.read()


# -- what must survive ---------------------------------------------------------------------------------------------


async def test_whatever_is_dropped_the_good_files_are_read_and_the_rest_is_told(tmp_path: Path) -> None:
    tasks = tmp_path / "tasks"
    (tasks / "below").mkdir(parents=True)
    (tasks / "below" / "good.toml").write_text(task("good"))
    (tasks / "bom.toml").write_bytes(b"\xef\xbb\xbf" + task("bom").encode())
    (tasks / "crlf.toml").write_bytes(task("crlf").replace("\n", "\r\n").encode())
    with (tasks / "huge.toml").open("wb") as file:
        file.write(task("huge").encode())
        file.truncate(50 * 1024 * 1024)
    (tasks / "latin.toml").write_bytes(b'[[tasks]]\nid = "l\xe4tin"\n')
    (tasks / "link.toml").symlink_to(tmp_path / "secret.toml")
    (tmp_path / "secret.toml").write_text(task("secret"))
    (tasks / "loop").symlink_to(tasks)
    (tasks / "x.toml").mkdir()
    (tasks / "escape.toml").write_text(task("../../x"))
    (tasks / "one.toml").write_text(task("twice"))
    (tasks / "two.toml").write_text(task("twice"))
    (tasks / "itself.toml").write_text(task("itself", extra='depends_on = ["itself"]\n'))
    (tasks / "circle.toml").write_text(
        task("a", extra='depends_on = ["b"]\n') + task("b", extra='depends_on = ["c"]\n')
    )
    (tasks / "circle2.toml").write_text(task("c", extra='depends_on = ["a"]\n'))
    (tasks / "missing.toml").write_text(task("missing", extra='depends_on = ["nowhere"]\n'))
    (tasks / "cut.toml").write_text('[[tasks]]\nid = "cut"\nprompt = "no end')
    os.mkfifo(tasks / "pipe.toml")
    state = await read(tmp_path)
    assert set(state.tasks) == {"good", "bom", "crlf", "twice", "missing"}
    assert set(state.rejected) == {"itself", "a", "b", "c"}
    assert set(state.blocked) == {"missing"}
    told = {(problem.file, problem.line, problem.key): str(problem) for problem in state.problems}
    assert set(told) == {
        ("tasks/huge.toml", 0, ""),
        ("tasks/latin.toml", 2, ""),
        ("tasks/link.toml", 0, ""),
        ("tasks/loop", 0, ""),
        ("tasks/x.toml", 0, ""),
        ("tasks/escape.toml", 2, "id"),
        ("tasks/two.toml", 1, "id"),
        ("tasks/itself.toml", 4, "depends_on"),
        ("tasks/circle.toml", 4, "depends_on"),
        ("tasks/missing.toml", 4, "depends_on"),
        ("tasks/cut.toml", 3, ""),
        ("tasks/pipe.toml", 0, ""),
    }
    assert "a → b → c → a" in told["tasks/circle.toml", 4, "depends_on"]
    assert state.unreadable == {"tasks/huge.toml", "tasks/latin.toml", "tasks/cut.toml"}
    assert not (tmp_path.parent / "x").exists()


async def test_a_spool_that_is_missing_is_empty(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.tasks.rmdir()
    async with house.running():
        assert house.states == [SpoolState()]
        house.tasks.mkdir()
        (house.tasks / "a.toml").write_text(task("a"))
        await house.until(lambda state: "a" in state.tasks)


async def test_the_first_state_is_what_stands_there(tmp_path: Path) -> None:
    house = House(tmp_path)
    (house.tasks / "a.toml").write_text(task("a"))
    stopping = asyncio.Event()
    running = asyncio.create_task(house.spool.run(stopping))
    await house.until(lambda _: True)
    stopping.set()
    await asyncio.wait_for(running, 5)
    assert [prompts(state) for state in house.states] == [{"a": "p"}]


async def test_no_file_of_a_person_is_written(tmp_path: Path) -> None:
    house = House(tmp_path)
    path = house.tasks / "a.toml"
    path.write_text(task("a"))
    path.chmod(0o444)
    before = path.stat()
    async with house.running():
        (house.tasks / "b.toml").write_text(task("b"))
        await house.until(lambda state: "b" in state.tasks)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert sorted(os.listdir(house.tasks)) == ["a.toml", "b.toml"]


# -- living with changes -------------------------------------------------------------------------------------------


async def test_new_edited_moved_and_deleted_files_apply(tmp_path: Path) -> None:
    house = House(tmp_path)
    told = house.bus.subscribe()
    path = house.tasks / "a.toml"
    path.write_text(task("a", "first"))
    async with house.running():
        assert prompts(house.states[-1]) == {"a": "first"}
        path.write_text(task("a", "second"))
        await house.until(lambda state: prompts(state) == {"a": "second"})
        (house.tasks / "new").mkdir()
        (house.tasks / "new" / "b.toml").write_text(task("b"))
        await house.until(lambda state: "b" in state.tasks)
        os.rename(path, house.tasks / "new" / "moved.toml")
        state = await house.until(lambda state: state.tasks["a"].file == "tasks/new/moved.toml")
        assert all("a" in state.tasks for state in house.states)
        (house.tasks / "new" / "moved.toml").unlink()
        state = await house.until(lambda state: set(state.tasks) == {"b"})
        assert state.gone({"a": "tasks/a.toml", "b": "tasks/new/b.toml"}) == {"a"}
    told.close()
    events = [published.event async for published in told]
    assert [event.tasks for event in events if isinstance(event, SpoolRead)] == [
        len(state.tasks) for state in house.states
    ]


async def test_a_file_that_is_no_longer_good_keeps_what_it_said_and_says_so(tmp_path: Path) -> None:
    house = House(tmp_path)
    path = house.tasks / "a.toml"
    path.write_text(task("a", "good") + task("b"))
    async with house.running():
        path.write_text(task("a", "better") + "[[tasks")
        state = await house.until(lambda state: state.problems)
        assert prompts(state) == {"a": "good", "b": "p"}
        assert state.gone({"a": "tasks/a.toml", "z": "tasks/a.toml"}) == set()
        (problem,) = state.problems
        assert (problem.file, problem.line) == ("tasks/a.toml", 4)
        assert "what it said before stays in force" in problem.message
        path.write_bytes(b"\xff")
        state = await house.until(lambda state: "UTF-8" in str(state.problems))
        assert prompts(state) == {"a": "good", "b": "p"}
        path.write_text(task("a", "better"))
        state = await house.until(lambda state: not state.problems)
        assert prompts(state) == {"a": "better"}


async def test_a_file_replaced_by_a_link_or_folder_is_gone(tmp_path: Path) -> None:
    house = House(tmp_path)
    for name in ("a", "b"):
        (house.tasks / f"{name}.toml").write_text(task(name))
    (tmp_path / "evil.toml").write_text(task("evil"))
    async with house.running():
        (house.tasks / "a.toml").unlink()
        (house.tasks / "a.toml").symlink_to(tmp_path / "evil.toml")
        await house.until(lambda state: set(state.tasks) == {"b"})
        (house.tasks / "b.toml").unlink()
        (house.tasks / "b.toml").mkdir()
        state = await house.until(lambda state: not state.tasks)
        assert [problem.file for problem in state.problems] == ["tasks/a.toml", "tasks/b.toml"]


async def test_a_rescan_finds_what_no_watcher_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def deaf(*_: object, **__: object) -> AsyncIterator[set[Path]]:
        await asyncio.Event().wait()
        yield set()

    monkeypatch.setattr("coordinator.kit.files.watch", deaf)
    house = House(tmp_path, rescan_s=0.1)
    async with house.running():
        (house.tasks / "a.toml").write_text(task("a"))
        await house.until(lambda state: "a" in state.tasks)
        (house.tasks / "a.toml").unlink()
        await house.until(lambda state: not state.tasks)


async def test_a_thousand_edits_a_minute_are_followed_without_a_wrong_state(tmp_path: Path) -> None:
    """Each edit truncates and writes in two steps, as editors do; no state may show half of it."""
    house = House(tmp_path)
    texts = [task("a", f"{number}", 'accept = ["true"]\n') + task("b", f"{number}") for number in range(30)]
    (house.tasks / "a.toml").write_text(texts[0])
    async with house.running():
        for number in range(1, 30):
            with (house.tasks / "a.toml").open("w") as file:
                file.write(texts[number][:40])
                file.flush()
                await asyncio.sleep(0.01)
                file.write(texts[number][40:])
            (house.tasks / f"other-{number % 5}.toml").write_text(task(f"other-{number % 5}", f"{number}"))
            await asyncio.sleep(0.05)
        await house.until(lambda state: prompts(state).get("a") == "29" and prompts(state).get("other-4") == "29")
    for state in house.states:
        assert state.problems == ()
        assert {"a", "b"} <= set(state.tasks)
        assert state.tasks["a"].accept == ("true",)
        assert state.tasks["a"].prompt == state.tasks["b"].prompt


async def test_ten_thousand_files(tmp_path: Path) -> None:
    house = House(tmp_path)
    for number in range(10_000):
        (house.tasks / f"{number}.toml").write_text(task(f"t{number}"))
    lags: list[float] = []

    async def measure() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.002)
            lags.append(time.perf_counter() - began)

    measuring = asyncio.create_task(measure())
    began = time.perf_counter()
    state = await house.spool.read()
    cold_s = time.perf_counter() - began
    assert (len(state.tasks), state.files, state.problems) == (10_000, 10_000, ())
    began = time.perf_counter()
    await house.spool.read()
    warm_s = time.perf_counter() - began
    measuring.cancel()
    lags.sort()
    assert cold_s < 8.0, "about 1 s on an idle machine"
    assert warm_s < 1.0, "about 0.06 s on an idle machine"
    assert lags[len(lags) * 9 // 10] < 0.05, "the event loop goes on meanwhile"


# -- the shelf: time as an argument --------------------------------------------------------------------------------


def state_of(shelf: Shelf) -> SpoolState:
    return combine(shelf.parsed())


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    (tmp_path / "tasks").mkdir()
    return Shelf(tmp_path / "tasks", tmp_path)


def test_a_file_counts_when_it_was_left_alone(tmp_path: Path, shelf: Shelf) -> None:
    path = tmp_path / "tasks" / "a.toml"
    path.write_text(task("a", "1"))
    assert not shelf.look_at_all(0.0)
    assert shelf.unreadable() == {"tasks/a.toml"}
    path.write_text(task("a", "22"))
    assert not shelf.look_at(["a.toml"], SETTLE_S * 0.9)
    assert not shelf.look_at(["a.toml"], SETTLE_S * 1.8)
    assert shelf.look_at(["a.toml"], SETTLE_S * 2.0)
    assert prompts(state_of(shelf)) == {"a": "22"}
    assert shelf.unsettled == shelf.unreadable() == frozenset()
    assert not shelf.look_at_all(9.0)


def test_a_file_that_never_rests_counts_after_a_while(tmp_path: Path, shelf: Shelf) -> None:
    path = tmp_path / "tasks" / "a.toml"
    for step in itertools.count():
        path.write_text(task("a", "x" * step))
        if shelf.look_at(["a.toml"], now := step * SETTLE_S / 2):
            break
    assert now >= IMPATIENT_S
    assert prompts(state_of(shelf)) == {"a": "x" * step}


def test_a_file_away_for_a_moment_was_never_gone(tmp_path: Path, shelf: Shelf) -> None:
    path = tmp_path / "tasks" / "a.toml"
    path.write_text(task("a"))
    shelf.look_at_all(0.0, wall=0.0)
    os.rename(path, path.with_name("a.toml~"))
    assert not shelf.look_at_all(1.0)
    assert set(state_of(shelf).tasks) == {"a"}
    os.rename(path.with_name("a.toml~"), path)
    assert not shelf.look_at_all(1.1)
    path.unlink()
    assert not shelf.look_at(["a.toml"], 2.0)
    assert shelf.look_at(["a.toml"], 2.0 + SETTLE_S)
    assert state_of(shelf).tasks == {}


def test_what_was_read_while_still_young_is_read_again(tmp_path: Path, shelf: Shelf) -> None:
    path = tmp_path / "tasks" / "a.toml"
    path.write_text(task("a", "1"))
    moment = path.stat()
    shelf.look_at_all(0.0, wall=moment.st_mtime)
    assert prompts(state_of(shelf)) == {"a": "1"}
    assert not shelf.look_at_all(1.0)
    assert shelf.unsettled == {"a.toml"}
    assert not shelf.look_at_all(1.0 + SETTLE_S), "read again, and nothing was different"
    assert shelf.unsettled == frozenset()


def test_a_folder_that_cannot_be_listed_takes_nothing_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "tasks" / "below"
    folder.mkdir(parents=True)
    (folder / "a.toml").write_text(task("a"))
    shelf = Shelf(tmp_path / "tasks", tmp_path)
    shelf.look_at_all(0.0, wall=0.0)
    real = os.scandir

    def refusing(path: str) -> object:  # permissions do not stop root, so the call itself is made to fail
        if str(path).endswith("below"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert shelf.look_at_all(1.0)
    shelf.look_at_all(2.0)
    assert set(state_of(shelf).tasks) == {"a"}
    assert shelf.unreadable() == {"tasks/below"}
    assert [str(problem) for problem in shelf.problems()] == ["tasks/below: cannot be listed: Permission denied"]
