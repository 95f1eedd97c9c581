"""Space comes back, and nothing that somebody still needs is given for it. Real folders, refs and ledger."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from coordinator.domain.settings import FleetSettings, LandSettings, RetentionSettings, Settings
from coordinator.domain.task import Task, TaskState
from coordinator.fleet.ledger import Ledger
from coordinator.fleet.retention import Retention
from coordinator.kit import lock, process
from coordinator.kit.bus import Bus
from coordinator.kit.clock import SystemClock
from coordinator.kit.git import Git
from coordinator.kit.store import Store
from coordinator.sdk.layout import rescue_ref
from tests.conftest import git

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from coordinator.domain.event import Event
    from coordinator.sdk.layout import Layout

_WAY = {
    TaskState.READY: (TaskState.READY,),
    TaskState.HELD: (TaskState.HELD,),
    TaskState.RUNNING: (TaskState.READY, TaskState.CLAIMED, TaskState.RUNNING),
    TaskState.FAILED: (TaskState.READY, TaskState.CLAIMED, TaskState.FAILED),
    TaskState.COMPLETED: (TaskState.COMPLETED,),
}


class Place:
    """A ledger and what lies around it."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.store = Store.open(layout.ledger)
        self.bus = Bus(SystemClock())
        self.ledger = Ledger(self.store, self.bus, SystemClock())
        self.events: list[Event] = []
        self.bus.tap(lambda published: self.events.append(published.event))
        self.git = Git(layout.repository, layout.repository / ".git")

    def retention(self, **more: object) -> Retention:
        kept = replace(RetentionSettings(), **more)  # type: ignore[arg-type]
        settings = Settings(
            fleet=replace(FleetSettings(), min_free_bytes=1), land=LandSettings(target="main"), retention=kept
        )
        return Retention(self.layout, self.ledger, self.git, self.bus, SystemClock(), settings)

    def task(self, name: str, state: TaskState, *, generations: int = 1, days: float = 0.0, size: int = 1000) -> None:
        """A task in ``state`` whose attempts and home were last touched ``days`` ago (the newest attempt of them)."""
        self.ledger.add(Task(id=name, prompt="p"), reason="new")
        for step in _WAY[state]:
            self.ledger.move(name, step, "so it is", generation=generations)
        for generation in range(1, generations + 1):
            self.write(
                self.layout.attempt(name, generation) / "transcript.jsonl", size, days + generations - generation
            )
        self.write(self.layout.home(name) / "projects" / "session.jsonl", size, days)

    @staticmethod
    def write(path: Path, size: int, days: float) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
        then = time.time() - days * 86_400
        os.utime(path, (then, then))

    def left(self) -> set[str]:
        attempts = {f"{path.parent.name}/{path.name}" for path in self.layout.attempts.glob("*/*")}
        return attempts | {f"home of {path.name}" for path in self.layout.homes.glob("*")}


@pytest.fixture
def place(layout: Layout) -> Iterator[Place]:
    made = Place(layout)
    yield made
    made.store.close()


async def test_old_attempts_of_settled_tasks_go_and_what_is_needed_stays(place: Place) -> None:
    place.task("done", TaskState.COMPLETED, generations=2, days=30)
    place.task("young", TaskState.FAILED, days=1)
    place.task("held", TaskState.HELD, generations=3, days=30)
    place.task("busy", TaskState.RUNNING, generations=2, days=30)
    report = await place.retention(attempts_days=14.0).reclaim()
    assert place.left() == {
        "young/1",
        "home of young",
        "held/3",
        "home of held",
        "busy/2",
        "home of busy",
    }
    assert (report.attempts, report.homes) == (5, 1)
    assert report.freed_bytes >= 6 * 1000
    assert place.events[-1] == report
    assert not (place.layout.attempts / "done").exists()


async def test_too_much_goes_oldest_first(place: Place) -> None:
    for days in range(5):
        place.task(f"t{days}", TaskState.COMPLETED, days=float(days), size=100_000)
    report = await place.retention(max_bytes=450_000).reclaim()
    assert place.left() == {"t0/1", "home of t0", "t1/1", "home of t1"}
    assert report.kept_bytes <= 450_000


async def test_what_is_claimed_stays_whatever_the_ledger_says(place: Place) -> None:
    place.task("done", TaskState.COMPLETED, days=30)
    held = lock.acquire(place.layout.claim_lock("done"))
    assert held
    with held:
        await place.retention().reclaim()
        assert place.left() == {"done/1", "home of done"}
    await place.retention().reclaim()
    assert place.left() == set()


async def test_links_and_strangers_are_left_alone_and_half_removed_folders_are_finished(
    place: Place, tmp_path: Path
) -> None:
    treasure = tmp_path / "treasure"
    place.write(treasure / "gold", 10, 99)
    place.task("done", TaskState.COMPLETED, days=30)
    (place.layout.attempts / "link").symlink_to(treasure)
    (place.layout.home("done") / "out").symlink_to(treasure)
    place.write(place.layout.attempts / ".gone-1" / "rest", 10, 0)
    place.write(place.layout.attempts / "README", 10, 99)
    await place.retention().reclaim()
    assert (treasure / "gold").read_bytes() == b"x" * 10
    assert sorted(path.name for path in place.layout.attempts.iterdir()) == ["README", "link"]


async def test_rescue_refs_go_only_when_the_work_is_on_the_target(place: Place) -> None:
    old = (datetime.now(UTC) - timedelta(days=60)).isoformat()
    tip = git(place.layout.repository, "rev-parse", "HEAD")
    lost = git(place.layout.repository, "commit-tree", "-m", "elsewhere", "HEAD^{tree}")
    for name, commit, ending, when in (
        ("landed", tip, "landed", old),
        ("failed", tip, "gate_failed", old),
        ("recent", tip, "landed", datetime.now(UTC).isoformat()),
        ("rewritten", lost, "landed", old),
    ):
        place.task(name, TaskState.COMPLETED)
        place.ledger.note(name, commit=commit)
        place.ledger.record(name, 1, ending=ending, ended_at=when, rescue=tip)
        await place.git.update_refs([(rescue_ref(name, 1), tip)])
    assert (await place.retention(rescue_days=30.0).reclaim()).refs == 1
    names = {name.split("/")[3] for name in await place.git.refs("refs/coordinator/rescue")}
    assert names == {"failed", "recent", "rewritten"}
    row = place.ledger.attempt("landed", 1)
    assert row is not None
    assert row.rescue == ""
    assert (await place.retention(rescue_days=30.0).reclaim()).refs == 0


async def test_a_full_disk_is_a_reason_before_the_day_is_over(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.task("done", TaskState.COMPLETED, size=100_000)
    retention = place.retention()
    await retention.look_again()
    assert len(place.left()) == 2
    monkeypatch.setattr(process, "free_disk", lambda _: 0)
    await retention.look_again()  # it has just looked
    assert len(place.left()) == 2
    monkeypatch.setattr("coordinator.fleet.retention._PRESSED_S", 0.0)
    await retention.look_again()
    assert len(place.left()) < 2
