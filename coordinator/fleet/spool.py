"""The spool: the folder that people, tools and the daemon itself drop task files into, followed as it changes.

Owns one invariant: whoever listens gets every accepted state of the whole folder, complete and in order. Watching is
only a hint; a full look every ``rescan_s`` finds what the watcher lost. It writes nothing and moves no task.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from coordinator.domain.event import SpoolRead
from coordinator.fleet.shelf import SETTLE_S, Shelf, listed
from coordinator.kit import files
from coordinator.policy.spool import SpoolState, combine

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from coordinator.domain.settings import FleetSettings
    from coordinator.kit.bus import Bus
    from coordinator.kit.clock import Clock

_log = logging.getLogger(__name__)

_SHORTEST_PAUSE_S: Final = 0.05
_PAUSE_FACTOR: Final = 4.0
"""A look is followed by a pause this many times as long: however busy the folder is, it costs a fifth of a core at most."""

_MOST_PROBLEMS: Final = 100
"""Problems that one event carries; all of them are in the state."""


class Spool:
    """``root`` is the folder of task files (it may be missing), ``known`` gives ids that count as defined although no
    file has them. ``on_state`` is called in the event loop.
    """

    name = "spool"

    def __init__(
        self,
        root: Path,
        repository: Path,
        settings: FleetSettings,
        bus: Bus,
        clock: Clock,
        on_state: Callable[[SpoolState], None],
        *,
        known: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self._root = root
        self._rescan_s = settings.rescan_s
        self._bus = bus
        self._clock = clock
        self._on_state = on_state
        self._known = known
        self._shelf = Shelf(root, repository)
        self._looking = asyncio.Lock()
        self._state: SpoolState | None = None
        self._dirty: set[str] = set()
        self._all_dirty = True
        self._wake = asyncio.Event()

    async def read(self) -> SpoolState:
        """Look at everything once and believe it as it stands: at start, and for commands that run without a daemon."""
        async with self._looking:
            began = self._clock.monotonic()
            wall = self._clock.now().timestamp()
            await asyncio.to_thread(self._shelf.look_at_all, began, wall=wall)
            state = await asyncio.to_thread(self._combined)
            if state != self._state:
                self._state = state
                self._publish(state, began)
            return state

    async def run(self, stopping: asyncio.Event) -> None:
        """Follow the folder until ``stopping``; begin with what stands there unless ``read`` did."""
        if self._state is None:
            state = await self.read()
            self._state = None  # remembered only once it was told
            self._on_state(state)
            self._state = state
        self._all_dirty = True
        listener = asyncio.create_task(self._listen(stopping), name="spool-watch")
        rescan_at = 0.0
        try:
            while not stopping.is_set():
                began = self._clock.monotonic()
                self._wake.clear()
                if self._all_dirty or began >= rescan_at:
                    rescan_at = began + self._rescan_s
                    await self._look(None)
                else:
                    await self._look(self._dirty | self._shelf.unsettled)
                if listener.done() and not stopping.is_set():
                    listener.result()
                took = self._clock.monotonic() - began
                await self._pause(stopping, max(_SHORTEST_PAUSE_S, took * _PAUSE_FACTOR), rescan_at)
        finally:
            listener.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listener

    async def _pause(self, stopping: asyncio.Event, shortest_s: float, rescan_at: float) -> None:
        """Wait for news, for files to settle or for the next full look; at least ``shortest_s``."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), shortest_s)
        longest_s = rescan_at - self._clock.monotonic()
        if self._shelf.unsettled:
            longest_s = min(longest_s, SETTLE_S)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), max(longest_s, 0.0))

    async def _listen(self, stopping: asyncio.Event) -> None:
        try:
            async for changed in files.watch([self._root], stopping, recursive=True):
                for path in changed:
                    self._note(path)
                if self._all_dirty or self._dirty:
                    self._wake.set()
        finally:
            self._wake.set()

    def _note(self, path: Path) -> None:
        """What a hint of the watcher is worth: one file, everything, or nothing."""
        if not path.is_relative_to(self._root) or path == self._root:
            self._all_dirty = True
            return
        relative = path.relative_to(self._root)
        if any(part.startswith(".") for part in relative.parts):
            return
        name, folder = relative.as_posix(), relative.parent.as_posix()
        if path.suffix == ".toml" and self._shelf.has_folder("" if folder == "." else folder):
            self._dirty.add(name)
        elif path.suffix == ".toml" or self._shelf.has_folder(name) or path.is_dir():
            self._all_dirty = True

    async def _look(self, names: Collection[str] | None) -> None:
        async with self._looking:
            self._dirty, self._all_dirty = set(), False
            began = self._clock.monotonic()
            if names is None:
                changed = await asyncio.to_thread(self._shelf.look_at_all, began)
            elif names:
                changed = await asyncio.to_thread(self._shelf.look_at, names, began)
            else:
                changed = False
            if not changed and self._state is not None:
                return
            state = await asyncio.to_thread(self._combined)
            if state == self._state:
                return
            self._on_state(state)
            self._state = state
            self._publish(state, began)

    def _combined(self) -> SpoolState:
        owners = {task.id: task.file for task in self._state.tasks.values()} if self._state is not None else {}
        state = combine(self._shelf.parsed(), self._known(), owners=owners)
        return replace(
            state,
            problems=tuple(sorted([*state.problems, *self._shelf.problems()])),
            unreadable=state.unreadable | self._shelf.unreadable(),
        )

    def _publish(self, state: SpoolState, began: float) -> None:
        took_s = self._clock.monotonic() - began
        self._bus.publish(
            SpoolRead(
                files=state.files,
                problems=listed(state.problems, _MOST_PROBLEMS),
                tasks=len(state.tasks),
                took_s=took_s,
            )
        )
        _log.debug(
            "read %d tasks in %d files",
            len(state.tasks),
            state.files,
            extra={"action": "spool_read", "problems": len(state.problems), "took_s": round(took_s, 4)},
        )
