"""Capability discovery: what tools find on the target branch becomes tasks, and is closed by a scan alone.

Owns one invariant: an agent's word closes nothing; a finding is fixed when a later scan of the target that could look does
not see it. A tool that is missing or broke is "not scanned", never "clean". It decides nothing about states or groups
(``policy.grouping`` does) and runs no task; what it wants comes back through the spool like anybody's.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from coordinator.checks.adapter import glob_matcher
from coordinator.checks.adapters import ADAPTERS, chosen
from coordinator.domain.event import FindingsFolded, FindingsJudged, Noticed, ScanTakesLong, TaskChanged, TaskLanded
from coordinator.domain.finding import HOUSED, FindingState, ScanStatus
from coordinator.domain.task import SETTLED, TaskState
from coordinator.improve.folding import FoldReport, fold_look
from coordinator.improve.placing import TaskPlacer
from coordinator.improve.register import FindingRegister
from coordinator.improve.scanner import Scanner, ScanQuestion
from coordinator.kit.schedule import next_local_fire
from coordinator.policy.grouping import id_prefix
from coordinator.policy.lifecycle import dismiss, reopen
from coordinator.policy.placement import AT_WORK

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence

    from coordinator.domain.event import Published
    from coordinator.domain.settings import Settings
    from coordinator.improve.scanner import Look
    from coordinator.kit.bus import Bus
    from coordinator.kit.clock import Clock
    from coordinator.kit.git import Git
    from coordinator.kit.schedule import Ticks
    from coordinator.kit.store import Store
    from coordinator.policy.lifecycle import KnownFinding
    from coordinator.sdk.layout import Layout

_log = logging.getLogger(__name__)

_FIRST_RETRY_S: Final = 30.0
"""Pause after the first scan that broke; doubles up to the interval of full scans."""

_MEMORY: Final = timedelta(days=180)
"""A relapse later than this is called new."""

_NOTICED_WITHIN_S: Final = 5.0
"""So long we wait for the spool to see a file that we wrote before we call ourselves idle."""

_LONGEST_JITTER_S: Final = 30.0
"""So that daemons that were started together do not scan together for ever."""

_LONGEST_REST_S: Final = 30.0
_PLACING: Final = ""
"""Stands among the names of tools for the writing of task files, where both are tried again."""


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
    ) -> None:
        self._settings = settings.discovery
        self._register = FindingRegister(store)
        self._placer = TaskPlacer(layout.repository / settings.paths.tasks, self._register, settings.discovery)
        self._scanner = Scanner(git, settings, layout, self._tell_slow, target=target)
        self._bus = bus
        self._clock = clock
        self._tools = tuple(adapter.name for adapter in chosen(settings.discovery))
        self._prefixes = tuple(f"{id_prefix(name)}-" for name in ADAPTERS)
        self._turn = asyncio.Lock()
        self._books = asyncio.Lock()
        self._wake = asyncio.Event()
        self._due: set[str] = set()
        self._place_due = self._at_work = False
        self._serving = self._listening = False
        self._only_looking = False
        self._again: dict[str, tuple[float, float]] = {}
        self._unnoticed: dict[str, float] = {}

    @property
    def busy(self) -> bool:
        """A scan or a placement is due or under way, or the ledger does not know yet of a task that was written."""
        due = bool(self._due) or self._place_due or self._at_work
        return (self._serving and due) or self._turn.locked() or self._books.locked() or self._awaits_spool()

    async def look_again(self, *tools: str) -> None:
        """Ask for a scan with ``tools`` (none: all) soon. Several requests before it begins are one scan."""
        self._due.update(tools or self._tools)
        self._wake.set()

    def arrange(self, ticks: Ticks) -> None:
        """Have each tool look again at its own pace. How long ago it looked is remembered, also over a restart."""
        facts, now = self._register.scans(), self._clock.now()
        for name in self._tools:
            settings, fact = self._settings.of_tool(name), facts.get(name)
            work = functools.partial(self.look_again, name)
            if settings.cron:
                ticks.at(f"scan {name}", settings.cron, work, jitter_s=_LONGEST_JITTER_S)
                continue
            pause_s = settings.interval_s or self._settings.interval_s
            first_s = pause_s if fact is None else pause_s - (now - datetime.fromisoformat(fact.at)).total_seconds()
            jitter_s = min(_LONGEST_JITTER_S, pause_s / 10)
            ticks.every(f"scan {name}", pause_s, work, first_s=min(first_s, pause_s), jitter_s=jitter_s)

    def _due_at_start(self) -> list[str]:
        """All (what has not changed is left out by itself), but those with a time of their own only when they missed it."""
        facts, now, due = self._register.scans(), self._clock.now(), []
        for name in self._tools:
            cron, fact = self._settings.of_tool(name).cron, facts.get(name)
            if not cron or fact is None or next_local_fire(cron, datetime.fromisoformat(fact.at)) <= now:
                due.append(name)
        return due

    async def run(self, stopping: asyncio.Event) -> None:
        """Scan at the start, after landings and when asked; try again by itself after a scan that broke."""
        self._serving = True
        if not self._listening:
            self._listening = True
            self._bus.tap(self._hear)
        self._due.update(self._due_at_start())
        self._place_due = True
        self._wake.set()
        stop = asyncio.create_task(stopping.wait())
        try:
            while await self._woken(stop):
                if not (self._due or self._place_due):
                    continue
                took_s = await self._serve_once(stop)
                # Never more than half of the time, however fast tasks land.
                await asyncio.wait({stop}, timeout=min(took_s, _LONGEST_REST_S))
        finally:
            self._serving = False
            stop.cancel()

    async def scan(
        self, tools: Sequence[str] = (), *, fresh: bool = False, write: bool = False
    ) -> tuple[FoldReport, ...]:
        """Scan the target's tip with ``tools`` (none: those that the settings and the project call for) and fold what they say.

        A tool is not run when nothing that its answer depends on has changed, unless ``fresh``. Task files are written and
        removed only with ``write`` or while the service runs. A tool that cannot look is a report, not an error.
        """
        reports = await self._scan(tuple(dict.fromkeys(tools or self._tools)), named=tools, fresh=fresh, write=write)
        return tuple(one for one in reports if one.status is not ScanStatus.UNCALLED or one.tool in tools or one.closed)

    async def _scan(
        self, names: Sequence[str], *, fresh: bool = False, named: Collection[str] = (), write: bool = False
    ) -> list[FoldReport]:
        """Each tool's findings are folded, and its tasks written, before the next one is asked."""
        reports = [_unknown(name) for name in names if name not in ADAPTERS]
        async with self._turn:
            # Read before the tip is: what is completed by now is in the tip.
            completed, doubted = await asyncio.to_thread(self._completed)
            question = ScanQuestion(
                adapters=[ADAPTERS[name] for name in names if name in ADAPTERS],
                facts=self._register.scans(),
                fresh=names if fresh else doubted,
                named=named,
                now=self._clock.now(),
            )
            async with contextlib.aclosing(self._scanner.looks(question)) as looks:
                while (found := await self._next(looks)) is not None:
                    reports.append(await self._take(found[1], found[0], completed, write=write))
            if write or self._serving:
                reports = await self._place_rest(reports)
        for report in reports:
            if not _news(report):
                self._tell(report)
        return reports

    async def _next(self, looks: AsyncIterator[tuple[str, Look]]) -> tuple[str, Look] | None:
        """Only meanwhile may a stop cut a scan short."""
        self._only_looking = True
        try:
            return await anext(looks, None)
        finally:
            self._only_looking = False

    async def _take(self, look: Look, commit: str, completed: Collection[str], *, write: bool) -> FoldReport:
        """What is news has its tasks written, and is told, before the next tool is asked."""
        at = self._clock.now()
        async with self._books:
            report = await asyncio.to_thread(fold_look, self._register, look, at=at, commit=commit, completed=completed)
            self._plan_again(report)
            if (write or self._serving) and _news(report):
                (report,) = await self._place([report])
        if _news(report):
            self._tell(report)
        return report

    async def _place_rest(self, reports: Sequence[FoldReport]) -> list[FoldReport]:
        """Also where nothing was new there may be tasks to write: a file was lost, a place has become free."""
        quiet = [report for report in reports if not _news(report)]
        if not quiet:
            return list(reports)
        async with self._books:
            placed = {report.tool: report for report in await self._place(quiet)}
        return [placed.get(report.tool, report) for report in reports]

    async def dismiss(self, fingerprints: Collection[str], reason: str) -> int:
        """A person's word that these are none; returns how many changed. While a scan looks, this does not wait for it."""
        return await self._judge(fingerprints, lambda known: dismiss(known, reason), "dismissed", reason)

    async def reopen(self, fingerprints: Collection[str]) -> int:
        """A person's word that these are to be worked on after all; returns how many changed."""
        return await self._judge(fingerprints, reopen, "reopened")

    async def _judge(
        self,
        fingerprints: Collection[str],
        word: Callable[[Iterable[KnownFinding]], Iterable[KnownFinding]],
        verdict: str,
        reason: str = "",
    ) -> int:
        async with self._books:
            known = await asyncio.to_thread(self._register.known)
            at, changed = self._clock.now(), list(word(known[mark] for mark in fingerprints if mark in known))
            self._register.keep(changed, at=at.isoformat())
            dismissed = Counter(one.finding.tool for one in changed if one.state is FindingState.DISMISSED)
            for tool, count in dismissed.items():
                self._register.count_day(at, tool, dismissed=count)
        if changed:
            marks = tuple(one.finding.fingerprint for one in changed[:100])
            self._bus.publish(FindingsJudged(count=len(changed), findings=marks, reason=reason, verdict=verdict))
            self._place_due = self._place_due or self._serving
            self._wake.set()
        return len(changed)

    async def forget(self) -> None:
        """What was fixed long ago and never seen again is let go; what a person dismissed is not."""
        await asyncio.to_thread(self._register.forget, self._clock.now() - _MEMORY)

    # -- serving -----------------------------------------------------------------------------------------------------

    def _hear(self, published: Published) -> None:
        event = published.event
        if isinstance(event, TaskLanded):
            self._due |= self._touched_by(event)
        elif isinstance(event, TaskChanged) and event.task.startswith(self._prefixes):
            self._follow(event)
            self._place_due = self._place_due or event.new in SETTLED
        if self._due or self._place_due:
            self._wake.set()

    def _touched_by(self, event: TaskLanded) -> set[str]:
        """Tools that read one of the files, or whose findings the task was to mend."""
        touched = set()
        for name in self._tools:
            reads = glob_matcher(ADAPTERS[name].reads)
            if any(map(reads, event.files)) or event.task.startswith(f"{id_prefix(name)}-"):
                touched.add(name)
        return touched

    def _follow(self, event: TaskChanged) -> None:
        """Findings are in work for as long as their task is, and once it has landed until a scan has looked."""
        began, ended = event.new in AT_WORK, event.old in AT_WORK
        if began != ended and event.new != TaskState.COMPLETED:
            old, new = (FindingState.QUEUED, FindingState.IN_WORK)[:: 1 if began else -1]
            self._register.follow(event.task, old=old, new=new)

    async def _woken(self, stop: asyncio.Task[bool]) -> bool:
        """Wait for something to do, also for what is to be tried again; False when told to stop."""
        now = self._clock.monotonic()
        soonest = min((due for due, _ in self._again.values()), default=None)
        wake = asyncio.create_task(self._wake.wait())
        patience_s = None if soonest is None else max(0.0, soonest - now)
        await asyncio.wait({stop, wake}, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
        wake.cancel()
        self._wake.clear()
        now = self._clock.monotonic()
        for name, (due, pause_s) in self._again.items():
            if due <= now:
                self._again[name] = (now + pause_s, pause_s)  # should this time come to nothing
                self._place_due = self._place_due or name == _PLACING
                self._due |= {name} - {_PLACING}
        return not stop.done()

    def _plan_again(self, report: FoldReport) -> None:
        """A tool that broke gets another chance soon, and then ever later."""
        if report.status is ScanStatus.BROKEN:
            self._try_later(report.tool)
        else:
            self._again.pop(report.tool, None)

    def _try_later(self, name: str) -> None:
        longest = max(self._settings.interval_s, _FIRST_RETRY_S)
        pause_s = min(self._again[name][1] * 2, longest) if name in self._again else _FIRST_RETRY_S
        self._again[name] = (self._clock.monotonic() + pause_s, pause_s)

    async def _serve_once(self, stop: asyncio.Task[bool]) -> float:
        """Do what is due; returns how long it took. A stop cuts a scan short, but not what is written after it."""
        began = self._clock.monotonic()
        due, self._at_work = tuple(name for name in self._tools if name in self._due), True
        self._due.clear()
        self._place_due = False
        work = asyncio.create_task(self._scan_due(due) if due else self._place_again())
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

    async def _scan_due(self, names: Sequence[str]) -> None:
        await self._scan(names, write=True)

    async def _place_again(self) -> None:
        async with self._books:
            await self._place()

    def _awaits_spool(self) -> bool:
        now = self._clock.monotonic()
        for task_id, deadline in tuple(self._unnoticed.items()):
            if now > deadline or self._register.task_state(task_id) not in {None, TaskState.CANCELLED}:
                del self._unnoticed[task_id]
        return bool(self._unnoticed)

    def _completed(self) -> tuple[frozenset[str], frozenset[str]]:
        """Completed tasks, and tools of which one has findings that no scan has looked for since."""
        states = self._register.task_states(ADAPTERS)
        done = frozenset(task_id for task_id, state in states.items() if state is TaskState.COMPLETED)
        known = self._register.known().values()
        return done, frozenset(one.finding.tool for one in known if one.state in HOUSED and one.task in done)

    # -- placing -----------------------------------------------------------------------------------------------------

    async def _place(self, reports: Sequence[FoldReport] = ()) -> list[FoldReport]:
        """Write and remove task files as ``policy.placement`` wants them; ``reports`` with the counts of their tools."""
        try:
            written, removed = await asyncio.to_thread(self._placer.carry_out, self._clock.now().isoformat())
        except OSError as error:
            self._try_later(_PLACING)
            message = f"task files could not be written or removed: {error}"
            _log.warning(message, extra={"action": "place_failed"})
            self._bus.publish(Noticed(subject=self.name, message=message))
            return list(reports)
        self._again.pop(_PLACING, None)
        deadline = self._clock.monotonic() + _NOTICED_WITHIN_S
        self._unnoticed |= dict.fromkeys(written, deadline)
        new, gone = list(written.values()), list(removed.values())
        return [replace(one, queued=new.count(one.tool), removed=gone.count(one.tool)) for one in reports]

    def _tell_slow(self, tool: str, so_far_s: float) -> None:
        self._bus.publish(ScanTakesLong(so_far_s=so_far_s, tool=tool))

    def _tell(self, report: FoldReport) -> None:
        if report.status is ScanStatus.UNCALLED and not report.closed:
            return
        self._bus.publish(
            FindingsFolded(
                closed=report.closed,
                opened=report.opened,
                queued=report.queued,
                reason=report.reason,
                reopened=report.reopened,
                status=report.status,
                tool=report.tool,
                took_s=round(report.took_s, 3),
                total=report.total,
                unchanged=report.unchanged,
            )
        )


def _news(report: FoldReport) -> bool:
    return bool(report.opened or report.closed)


def _unknown(name: str) -> FoldReport:
    reason = f"this version cannot scan with it (it can with {', '.join(ADAPTERS)})"
    return FoldReport(reason=reason, status=ScanStatus.UNAVAILABLE, tool=name)
