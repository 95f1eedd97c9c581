"""Capability discovery: what tools find on the target branch becomes tasks, and is closed by a scan alone.

Owns one invariant: an agent's word closes nothing; a finding is fixed when a later scan of the target that could look does
not see it. A tool that is missing or broke is "not scanned", never "clean". It decides nothing about states or groups
(``policy.grouping`` does) and runs no task; what it wants comes back through the spool like anybody's.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from coordinator.checks import ruff
from coordinator.domain.errors import ToolFailed
from coordinator.domain.event import FindingsFolded, Noticed, TaskChanged, TaskLanded
from coordinator.domain.finding import FindingState, Fix, ScanReport, ScanStatus
from coordinator.domain.task import SETTLED, TaskState
from coordinator.improve import autotask
from coordinator.improve.autofolder import AutoFolder
from coordinator.improve.autotask import ToolProfile
from coordinator.improve.register import FindingRegister, ScanFact
from coordinator.policy.grouping import GroupLimits, Spooled, fold, place

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from coordinator.domain.event import Published
    from coordinator.domain.settings import Settings
    from coordinator.kit.bus import Bus
    from coordinator.kit.clock import Clock
    from coordinator.kit.git import Git
    from coordinator.kit.store import Store
    from coordinator.policy.grouping import Fold, KnownFinding
    from coordinator.sdk.layout import Layout

_log = logging.getLogger(__name__)

KNOWN_TOOLS: Final = ("ruff",)
"""Tools that this version can scan with; the safe fixes of each are applied by the role ``autofix``."""

_FIRST_RETRY_S: Final = 30.0
"""Pause after the first scan that broke; doubles up to the interval of full scans."""

_NOTICED_WITHIN_S: Final = 5.0
"""So long we wait for the spool to see a file that we wrote before we call ourselves idle."""

_LEFT_TO_HANDS: Final = frozenset({FindingState.OPEN, FindingState.REOPENED})


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldReport:
    """One tool's scan compared with what was known.

    ``opened`` counts new and returned findings, ``closed`` those gone, ``total`` all that the tool reported. ``by_hand``
    are open ones that no agent of ours can mend safely: they need a model's role or a person. ``queued`` is the number of
    task files written, ``removed`` of those taken away.
    """

    by_hand: int = 0
    closed: int = 0
    commit: str = ""
    opened: int = 0
    queued: int = 0
    reason: str = ""
    removed: int = 0
    status: ScanStatus
    took_s: float = 0.0
    tool: str
    total: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """One tool's report and how it was asked."""

    options: tuple[str, ...] = ()
    report: ScanReport
    target_version: str | None = None


class Discovery:
    """A service, and what the verb ``scan`` calls; scans never overlap."""

    name = "discovery"

    def __init__(
        self,
        git: Git,
        settings: Settings,
        layout: Layout,
        store: Store,
        bus: Bus,
        clock: Clock,
        *,
        target: str,
        tools: Sequence[str],
    ) -> None:
        self._git = git
        self._settings = settings.discovery
        self._register = FindingRegister(store)
        self._folder = AutoFolder(layout.repository / settings.paths.tasks)
        self._scratch = layout.state / "scan"
        self._bus = bus
        self._clock = clock
        self._target = target
        self._tools = tuple(tools)
        self._turn = asyncio.Lock()
        self._wake = asyncio.Event()
        self._scan_due = self._place_due = False
        self._serving = self._listening = False
        self._unnoticed: dict[str, float] = {}

    @property
    def busy(self) -> bool:
        """A scan or a placement is due or under way, or the ledger does not know yet of a task that was written."""
        due = self._serving and (self._scan_due or self._place_due)
        return due or self._turn.locked() or self._awaits_spool()

    async def look_again(self) -> None:
        """Ask for a full scan soon: the tick of the interval."""
        self._scan_due = True
        self._wake.set()

    async def run(self, stopping: asyncio.Event) -> None:
        """Scan at the start, after landings and when asked; try again by itself after a scan that broke."""
        self._serving = True
        if not self._listening:
            self._listening = True
            self._bus.tap(self._hear)
        await self.look_again()
        stop = asyncio.create_task(stopping.wait())
        try:
            retry_s = _FIRST_RETRY_S
            while await self._woken(stop, retry_s if self._broke() else None):
                if not (self._scan_due or self._place_due):
                    retry_s = min(retry_s * 2, max(self._settings.interval_s, _FIRST_RETRY_S))
                    self._scan_due = True
                elif not self._broke():
                    retry_s = _FIRST_RETRY_S
                await self._take_turn(stop)
        finally:
            self._serving = False
            stop.cancel()

    async def scan(self, tools: Sequence[str] | None = None, *, write: bool = False) -> tuple[FoldReport, ...]:
        """Scan the target's tip with ``tools`` (default: the configured ones) and fold what they say.

        Task files are written and removed only with ``write``. A tool that cannot look is a report, not an error.
        """
        names = tuple(dict.fromkeys(tools or self._tools))
        async with self._turn:
            # Read before the tip is: what is completed by now is in the tip.
            completed = await asyncio.to_thread(self._completed, names)
            commit, looks = await self._look(names)
            reports = [await asyncio.to_thread(self._fold, look, commit, completed) for look in looks]
            if write:
                reports = await self._place(reports)
        for report in reports:
            self._tell(report)
        return tuple(reports)

    # -- being told ------------------------------------------------------------------------------------------------

    def _hear(self, published: Published) -> None:
        event = published.event
        if isinstance(event, TaskLanded):
            self._scan_due = True
        elif isinstance(event, TaskChanged) and event.new in SETTLED and event.task.startswith(self._prefixes()):
            self._place_due = True
        else:
            return
        self._wake.set()

    def _prefixes(self) -> tuple[str, ...]:
        return tuple(f"{tool}-" for tool in KNOWN_TOOLS)

    async def _woken(self, stop: asyncio.Task[bool], patience_s: float | None) -> bool:
        """Wait for something to do, at most so long; False when told to stop."""
        wake = asyncio.create_task(self._wake.wait())
        await asyncio.wait({stop, wake}, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
        wake.cancel()
        self._wake.clear()
        return not stop.done()

    async def _take_turn(self, stop: asyncio.Task[bool]) -> None:
        scan = self._scan_due
        async with self._turn:
            # Under the turn, so that ``busy`` has no gap between the request and the work.
            self._scan_due = self._place_due = False
        if scan:
            work = asyncio.create_task(self._scan_and_rest())
        else:
            work = asyncio.create_task(self._place_again())
        await asyncio.wait({stop, work}, return_when=asyncio.FIRST_COMPLETED)
        await work
