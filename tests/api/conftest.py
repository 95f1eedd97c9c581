"""A desk on a real ledger, and a stand-in for the daemon's rooms that only counts what it is asked."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest

from coordinator.api.desk import Desk, LiveAgent, LiveSnapshot
from coordinator.domain.errors import UnknownTask
from coordinator.domain.settings import FleetSettings, Settings
from coordinator.fleet.ledger import Ledger
from coordinator.kit.bus import Bus
from coordinator.kit.clock import SystemClock
from coordinator.kit.store import Store
from coordinator.sdk.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass
class LiveStub:
    """What a verb or a screen sees of a running daemon."""

    bus: Bus
    clock: SystemClock
    layout: Layout
    settings: Settings
    store: Store
    asked: list[tuple[str, ...]] = field(default_factory=list)
    seen: LiveSnapshot = field(
        default_factory=lambda: LiveSnapshot(agents=(), counts={}, draining=False, elapsed_s=1.0, target="t")
    )

    async def cancel(self, task_id: str, reason: str) -> None:
        if task_id == "nobody":
            raise UnknownTask("there is no task 'nobody'")
        self.asked.append(("cancel", task_id, reason))

    async def hold(self, task_id: str, reason: str) -> None:
        self.asked.append(("hold", task_id, reason))

    async def release(self, task_id: str) -> None:
        self.asked.append(("release", task_id))

    async def retry(self, task_id: str) -> None:
        self.asked.append(("retry", task_id))

    async def scan(self, tools: object) -> tuple[()]:
        self.asked.append(("scan", str(tools)))
        return ()

    def agents(self) -> tuple[LiveAgent, ...]:
        return self.seen.agents

    def snapshot(self) -> LiveSnapshot:
        return self.seen


@dataclass
class Place:
    """A directory with a ledger that tests write and a desk that verbs read from."""

    desk: Desk
    ledger: Ledger
    live: LiveStub

    @property
    def offline(self) -> Desk:
        return replace(self.desk, live=None)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    layout = Layout(tmp_path, tmp_path / ".coordinator")
    for folder in (layout.state, layout.claims, layout.attempts, layout.agents, tmp_path / "tasks"):
        folder.mkdir(exist_ok=True)
    clock = SystemClock()
    bus = Bus(clock)
    store = Store.open(layout.ledger)
    settings = Settings(fleet=FleetSettings(default_role="autofix"))
    live = LiveStub(bus, clock, layout, settings, store)
    desk = Desk(
        clock=clock,
        layout=layout,
        live=live,
        operate=lambda: contextlib.nullcontext(live),
        settings=settings,
        store=store,
        version="1",
    )
    yield Place(desk, Ledger(store, bus, clock), live)
    store.close()
