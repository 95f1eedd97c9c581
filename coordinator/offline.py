"""What may be done to tasks and findings while no daemon runs, under the daemon's own lock.

Owns one invariant: nobody writes the ledger beside a daemon; who comes here while one runs is told so. It decides nothing: the
rooms do, the same ones as the daemon's.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from coordinator.fleet.directory import make_state, sole_daemon
from coordinator.fleet.ledger import Ledger
from coordinator.fleet.operate import Operator
from coordinator.improve.discovery import Discovery
from coordinator.kit import files, git
from coordinator.kit.bus import Bus
from coordinator.kit.clock import SystemClock
from coordinator.kit.store import Store
from coordinator.sdk.layout import Layout

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from coordinator.improve.folding import FoldReport


class Offline(Operator):
    """What ``api.desk.Operations`` asks, while no daemon runs and the caller holds its lock."""

    def __init__(self, layout: Layout, ledger: Ledger, discovery: Discovery, store: Store) -> None:
        super().__init__(layout, ledger)
        self._discovery = discovery
        self._store = store

    async def scan(self, tools: Sequence[str], *, fresh: bool = False) -> Sequence[FoldReport]:
        """Look and remember; task files are written by a running daemon only."""
        return await self._discovery.scan(tools, fresh=fresh)

    async def dismiss(self, fingerprints: Sequence[str], reason: str) -> int:
        return await self._discovery.dismiss(fingerprints, reason)

    async def reopen(self, fingerprints: Sequence[str]) -> int:
        return await self._discovery.reopen(fingerprints)

    def findings(self) -> list[sqlite3.Row]:
        return self._store.query("findings")


@asynccontextmanager
async def offline(root: Path) -> AsyncIterator[Offline]:
    """The operator's verbs while no daemon runs; raises ``DaemonBusy`` when one does."""
    facts = await git.inspect(root)
    settings = files.read_settings(facts.top)
    layout = Layout(facts.top, facts.top / settings.paths.state)
    make_state(layout)
    with sole_daemon(layout):
        store = Store.open(layout.ledger)
        clock = SystemClock()
        bus = Bus(clock)
        bus.tap(store.journal)
        repository = git.Git(facts.top, facts.git_dir)
        discovery = Discovery(repository, settings, layout, store, bus, clock, target=settings.land.target)
        try:
            yield Offline(layout, Ledger(store, bus, clock), discovery, store)
        finally:
            store.close()
