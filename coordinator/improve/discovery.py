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
from coordinator.policy.grouping import AT_WORK, GroupLimits, Spooled, fold, place

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from coordinator.domain.event import Published
    from coordinator.domain.settings import Settings
    from coordinator.kit.bus import Bus
    from coordinator.kit.clock import Clock
    from coordinator.kit.git import Git
    from coordinator.kit.store import Store
    from coordinator.policy.grouping import KnownFinding
    from coordinator.sdk.layout import Layout

_log = logging.getLogger(__name__)

KNOWN_TOOLS: Final = ("ruff",)
"""Tools that this version can scan with; the safe fixes of each are applied by the role ``autofix``."""

_FIRST_RETRY_S: Final = 30.0
"""Pause after the first scan that broke; doubles up to the interval of full scans."""

_NOTICED_WITHIN_S: Final = 5.0
"""So long we wait for the spool to see a file that we wrote before we call ourselves idle."""

_LONGEST_REST_S: Final = 30.0
_PREFIXES: Final = tuple(f"{tool}-" for tool in KNOWN_TOOLS)
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
        self._scan_due = self._place_due = self._at_work = False
        self._serving = self._listening = False
        self._only_looking = False
        self._satisfied = True
        self._unnoticed: dict[str, float] = {}

    @property
    def busy(self) -> bool:
        """A scan or a placement is due or under way, or the ledger does not know yet of a task that was written."""
        due = self._scan_due or self._place_due or self._at_work
        return (self._serving and due) or self._turn.locked() or self._awaits_spool()

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
        retry_s = _FIRST_RETRY_S
        try:
            while await self._woken(stop, None if self._satisfied else retry_s):
                if not (self._scan_due or self._place_due):
                    self._scan_due = True
                    retry_s = min(retry_s * 2, max(self._settings.interval_s, _FIRST_RETRY_S))
                took_s = await self._serve_once(stop)
                if self._satisfied:
                    retry_s = _FIRST_RETRY_S
                # Never more than half of the time, however fast tasks land.
                await asyncio.wait({stop}, timeout=min(took_s, _LONGEST_REST_S))
        finally:
            self._serving = False
            stop.cancel()

    async def scan(self, tools: Sequence[str] | None = None, *, write: bool = False) -> tuple[FoldReport, ...]:
        """Scan the target's tip with ``tools`` (default: the configured ones) and fold what they say.

        Task files are written and removed only with ``write`` or while the service runs. A tool that cannot look is a
        report, not an error.
        """
        names = tuple(dict.fromkeys(tools or self._tools))
        async with self._turn:
            self._only_looking = True
            try:
                # Read before the tip is: what is completed by now is in the tip.
                completed = await asyncio.to_thread(self._completed)
                commit, looks = await self._look(names)
            finally:
                self._only_looking = False
            reports = [await asyncio.to_thread(self._fold, look, commit, completed) for look in looks]
            self._satisfied = all(report.status is ScanStatus.SCANNED for report in reports)
            if write or self._serving:
                reports = await self._place(reports)
        for report in reports:
            self._tell(report)
        return tuple(reports)

    # -- serving -----------------------------------------------------------------------------------------------------

    def _hear(self, published: Published) -> None:
        event = published.event
        if isinstance(event, TaskLanded):
            self._scan_due = True
        elif isinstance(event, TaskChanged) and event.new in SETTLED and event.task.startswith(_PREFIXES):
            self._place_due = True
        else:
            return
        self._wake.set()

    async def _woken(self, stop: asyncio.Task[bool], patience_s: float | None) -> bool:
        """Wait for something to do, at most so long; False when told to stop."""
        wake = asyncio.create_task(self._wake.wait())
        await asyncio.wait({stop, wake}, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
        wake.cancel()
        self._wake.clear()
        return not stop.done()

    async def _serve_once(self, stop: asyncio.Task[bool]) -> float:
        """Do what is due; returns how long it took. A stop cuts a scan short, but not what is written after it."""
        began = self._clock.monotonic()
        scan, self._at_work = self._scan_due, True
        self._scan_due = self._place_due = False
        work = asyncio.create_task(self._scan_all() if scan else self._place_again())
        try:
            await asyncio.wait({stop, work}, return_when=asyncio.FIRST_COMPLETED)
            if self._only_looking:
                work.cancel()
            await asyncio.wait({work})
        finally:
            self._at_work = False
            work.cancel()
        if not work.cancelled():
            work.result()
        return self._clock.monotonic() - began

    async def _scan_all(self) -> None:
        await self.scan(write=True)

    async def _place_again(self) -> None:
        async with self._turn:
            await self._place([])

    def _awaits_spool(self) -> bool:
        now = self._clock.monotonic()
        for task_id, deadline in tuple(self._unnoticed.items()):
            if now > deadline or self._register.task_state(task_id) not in {None, TaskState.CANCELLED}:
                del self._unnoticed[task_id]
        return bool(self._unnoticed)

    # -- looking -----------------------------------------------------------------------------------------------------

    def _completed(self) -> frozenset[str]:
        states = self._register.task_states(KNOWN_TOOLS)
        return frozenset(task_id for task_id, state in states.items() if state is TaskState.COMPLETED)

    async def _look(self, names: Iterable[str]) -> tuple[str, list[_Look]]:
        """Let each tool look at a clean tree of the target, or of HEAD while there is no target yet."""
        commit, reason = "", f"there is no commit to scan: neither branch {self._target} nor HEAD has one"
        try:
            tip = await self._git.resolve(f"refs/heads/{self._target}") or await self._git.resolve("HEAD")
            if tip is not None:
                commit = tip
                await asyncio.to_thread(self._clear_scratch, make=True)
                await self._git.export_tree(commit, self._scratch / "tree")
                return commit, [await self._ask(name, self._scratch / "tree") for name in names]
        except (ToolFailed, OSError) as error:
            reason = f"no clean tree of {self._target} could be made: {error}"
        finally:
            await asyncio.to_thread(self._clear_scratch, make=False)
        return commit, [_Look(report=ScanReport(tool=n, status=ScanStatus.BROKEN, reason=reason)) for n in names]

    def _clear_scratch(self, *, make: bool) -> None:
        shutil.rmtree(self._scratch, ignore_errors=True)
        if make:
            self._scratch.mkdir(parents=True, exist_ok=True)

    async def _ask(self, name: str, tree: Path) -> _Look:
        if name not in KNOWN_TOOLS:
            reason = f"this version cannot scan with it (it can with {', '.join(KNOWN_TOOLS)})"
            return _Look(report=ScanReport(tool=name, status=ScanStatus.UNAVAILABLE, reason=reason))
        report = await ruff.scan(tree, select=self._settings.select)
        report = replace(report, reason=report.reason.replace(f"{tree}/", ""))  # a person knows no such folder
        options = await asyncio.to_thread(ruff.configuration_arguments, tree, select=("{rule}",))
        version = options[options.index("--target-version") + 1] if "--target-version" in options else None
        return _Look(options=tuple(options), report=report, target_version=version)

    def _fold(self, look: _Look, commit: str, completed: frozenset[str]) -> FoldReport:
        """Bring the rows up to one tool's report."""
        report, at = look.report, self._clock.now().isoformat()
        known = self._register.known()
        folded = fold(known, report, completed=completed)
        known |= {one.finding.fingerprint: one for one in folded.changed}
        by_hand = sum(_needs_a_hand(one) for one in known.values() if one.finding.tool == report.tool)
        self._register.keep(folded.changed, seen=(found.fingerprint for found in report.findings), at=at)
        fact = self._register.scans().get(report.tool) or ScanFact(at=at, status=report.status, tool=report.tool)
        fact = replace(fact, at=at, reason=report.reason, status=report.status, took_s=report.took_s)
        if report.status is ScanStatus.SCANNED:
            fact = replace(
                fact,
                by_hand=by_hand,
                commit=commit,
                looked_at=at,
                options=look.options,
                target_version=look.target_version,
                total=len(report.findings),
            )
        self._register.keep_scan(fact)
        return FoldReport(
            by_hand=by_hand,
            closed=folded.closed,
            commit=commit,
            opened=folded.opened + folded.reopened,
            reason=report.reason,
            status=report.status,
            took_s=report.took_s,
            tool=report.tool,
            total=len(report.findings),
        )

    # -- placing -----------------------------------------------------------------------------------------------------

    async def _place(self, reports: Sequence[FoldReport]) -> list[FoldReport]:
        """Write and remove task files as ``policy.grouping`` wants them."""
        try:
            written, removed = await asyncio.to_thread(self._carry_out)
        except OSError as error:
            self._satisfied = False
            message = f"task files could not be written or removed: {error}"
            _log.warning(message, extra={"action": "place_failed"})
            self._bus.publish(Noticed(subject=self.name, message=message))
            return list(reports)
        deadline = self._clock.monotonic() + _NOTICED_WITHIN_S
        self._unnoticed |= dict.fromkeys(written, deadline)
        return [
            replace(report, queued=_count(written, report.tool), removed=_count(removed, report.tool))
            for report in reports
        ]

    def _carry_out(self) -> tuple[list[str], list[str]]:
        """Files first, rows after them: what a crash leaves half done, the files tell the next placement."""
        profiles = {fact.tool: self._profile(fact) for fact in self._register.scans().values() if fact.looked_at}
        there = self._folder.read()
        spooled = Spooled(
            ours=there.ours,
            salts={tool: profile.salt for tool, profile in profiles.items()},
            scanned=frozenset(profiles),
            states=self._register.task_states(KNOWN_TOOLS),
            taken=there.taken,
        )
        limits = GroupLimits(max_open=self._settings.max_open, priority=self._settings.priority)
        placement = place(tuple(self._register.known().values()), spooled, limits)
        texts = {group.id: autotask.render(group, profiles[group.key.tool]) for group in placement.write}
        refused = {task_id for task_id, text in texts.items() if not self._folder.write(task_id, text)}
        damaged = {task_id for task_id in there.damaged - set(texts) if spooled.states.get(task_id) not in AT_WORK}
        removed = [task_id for task_id in sorted({*placement.remove, *damaged}) if self._folder.remove(task_id)]
        rows = [one for one in placement.changed if one.task not in refused]
        self._register.keep(rows, at=self._clock.now().isoformat())
        return [task_id for task_id in texts if task_id not in refused | set(there.ours)], removed

    def _profile(self, fact: ScanFact) -> ToolProfile:
        return ToolProfile(
            options=fact.options, select=self._settings.select, target_version=fact.target_version, tool=fact.tool
        )

    def _tell(self, report: FoldReport) -> None:
        self._bus.publish(
            FindingsFolded(
                closed=report.closed,
                opened=report.opened,
                queued=report.queued,
                reason=report.reason,
                status=report.status,
                tool=report.tool,
                took_s=round(report.took_s, 3),
                total=report.total,
            )
        )


def _needs_a_hand(one: KnownFinding) -> bool:
    return one.state in _LEFT_TO_HANDS and (one.finding.fix is not Fix.SAFE or bool(one.reason))


def _count(task_ids: Iterable[str], tool: str) -> int:
    return sum(task_id.startswith(f"{tool}-") for task_id in task_ids)
