"""The only wiring: builds every room, joins them by events and callbacks, runs them, takes them down.

Owns one invariant: one daemon per directory, by a held lock. It knows everything and decides nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from coordinator.api.desk import LiveAgent, LiveSnapshot, live_agents
from coordinator.domain.errors import GateBroken
from coordinator.domain.event import DaemonDraining, DaemonReady, DaemonStopped, Noticed
from coordinator.domain.task import TaskState
from coordinator.fleet import target
from coordinator.fleet.collector import Collector
from coordinator.fleet.directory import make_state, sole_daemon
from coordinator.fleet.gate import Gate
from coordinator.fleet.intake import Intake
from coordinator.fleet.lander import Lander
from coordinator.fleet.ledger import Ledger
from coordinator.fleet.operate import Operator
from coordinator.fleet.pool import AgentPool
from coordinator.fleet.ready import ReadyBoard
from coordinator.fleet.recovery import Recovery
from coordinator.fleet.spool import Spool
from coordinator.fleet.steward import Steward
from coordinator.fleet.workspace import Workspaces
from coordinator.improve.discovery import Discovery
from coordinator.kit import files, git
from coordinator.kit.bus import Bus
from coordinator.kit.clock import SystemClock
from coordinator.kit.schedule import Ticks
from coordinator.kit.service import Supervisor
from coordinator.kit.store import Store
from coordinator.sdk.layout import Layout

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from coordinator.domain.event import Published
    from coordinator.domain.settings import Settings
    from coordinator.improve.discovery import FoldReport
    from coordinator.kit.service import Service

_FOLLOW_S = 30.0
_SWEEP_S = 600.0
_JOURNAL_KEEP = 200_000
_BROKEN_PATIENCE = 2.0
"""A run that is to end when idle gives a broken gate this many retries to mend."""

_KEPT = (TaskState.READY, TaskState.CLAIMED, TaskState.RUNNING)
"""States in which an attempt's worktree is in use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What ``coordinator run`` was asked for. ``agents`` overrides the settings."""

    agents: int | None = None
    self_improve: bool = False
    until_idle: bool = False


class Daemon:
    """All rooms of one directory, joined. Used through ``run`` or ``offline``."""

    def __init__(self, layout: Layout, settings: Settings, facts: git.RepositoryFacts, options: RunOptions) -> None:
        self.layout = layout
        self.settings = settings
        self.options = options
        self.clock = SystemClock()
        self.began = self.clock.monotonic()
        self.bus = Bus(self.clock)
        self.store = Store.open(layout.ledger)
        self.bus.tap(self.store.journal)
        self.git = git.Git(facts.top, facts.git_dir, hooks=settings.land.hooks)
        self.workspaces = Workspaces(self.git, layout)
        self.ledger = Ledger(self.store, self.bus, self.clock)
        self.board = ReadyBoard(layout, self.workspaces, settings.fleet)
        self.intake = Intake(layout, self.ledger, self.store, settings, self.clock, self._wake)
        self.pool = AgentPool(layout, self.bus, self.clock, idle_exit_s=settings.fleet.idle_exit_s)
        self.gate = Gate(self.git, settings, layout, self.store, self.clock, self.bus)
        self.lander = self._make_lander()
        self.steward = self._make_steward()
        tasks = layout.repository / settings.paths.tasks
        self.spool = Spool(
            tasks, layout.repository, settings.fleet, self.bus, self.clock, self.intake.take, known=self.ledger.ids
        )
        self.discovery = Discovery(
            self.git,
            settings,
            layout,
            self.store,
            self.bus,
            self.clock,
            target=settings.land.target,
            tools=settings.discovery.tools,
        )
        self.ticks = Ticks(self.bus, self.clock)
        self.supervisor = Supervisor(self.bus, self.clock)

    def _wake(self) -> None:
        self.steward.wake()

    def _make_lander(self) -> Lander:
        return Lander(
            self.git,
            self.gate,
            self.settings,
            self.bus,
            self.clock,
            on_stage=lambda candidate, state: self.steward.on_stage(candidate, state),  # noqa: PLW0108 - not made yet
            on_settled=lambda settlement: self.steward.on_settled(settlement),  # noqa: PLW0108
            superseded=lambda candidate: self.steward.superseded(candidate),  # noqa: PLW0108
            role_paths=self.intake.role_paths,
        )

    def _make_steward(self) -> Steward:
        return Steward(
            board=self.board,
            bus=self.bus,
            clock=self.clock,
            collector=Collector(self.layout, self.ledger, self.workspaces),
            git=self.git,
            intake=self.intake,
            lander=self.lander,
            layout=self.layout,
            ledger=self.ledger,
            pool=self.pool,
            settings=self.settings,
        )

    async def recover(self) -> int:
        """Make sense of what the last daemon left; returns how many agents live on."""
        adopted = self.pool.adopt()
        recovery = Recovery(
            board=self.board,
            git=self.git,
            intake=self.intake,
            layout=self.layout,
            ledger=self.ledger,
            target=self.settings.land.target,
            workspaces=self.workspaces,
        )
        await recovery.remember_landed()
        self.intake.take(await self.spool.read())
        recovery.settle_offers()
        await recovery.resume(self.steward.resubmit)
        return adopted

    # -- what verbs and screens ask (``api.desk.LiveDaemon``) ------------------------------------------------------

    def agents(self) -> tuple[LiveAgent, ...]:
        return live_agents(self.layout, self.pool.agents(), self._title_of)

    def _title_of(self, task_id: str) -> str:
        entry = self.ledger.find(task_id)
        return entry.task.headline if entry is not None else ""

    async def cancel(self, task_id: str, reason: str) -> None:
        await self.steward.cancel(task_id, reason)

    async def hold(self, task_id: str, reason: str) -> None:
        await self.steward.hold(task_id, reason)

    async def release(self, task_id: str) -> None:
        await self.steward.release(task_id)

    async def retry(self, task_id: str) -> None:
        await self.steward.retry(task_id)

    async def scan(self, tools: Sequence[str]) -> Sequence[FoldReport]:
        return await self.discovery.scan(tools or None)

    def snapshot(self) -> LiveSnapshot:
        return LiveSnapshot(
            agents=self.agents(),
            counts={state.value: self.ledger.count(state) for state in TaskState},
            draining=self.steward.draining,
            elapsed_s=self.clock.monotonic() - self.began,
            gate_broken=self.lander.broken(),
            judging=self.lander.busy,
            refusal=self.steward.refusal(),
            target=self.settings.land.target,
            waiting=len(self.lander.waiting()),
        )

    # -- what is done now and then ------------------------------------------------------------------------------------

    async def follow(self) -> None:
        """Keep the target at or ahead of the user's branch while that is a plain step forward."""
        remark = await target.prepare(self.git, self.settings.land.target)
        if remark:
            self.bus.publish(Noticed(subject="target", message=remark))
        self.steward.recheck_blocked()

    async def sweep(self) -> None:
        """Rescue and remove what ended attempts left behind; keep journal and baselines bounded."""
        active = {(entry.task.id, entry.generation) for entry in self.ledger.in_state(*_KEPT)}
        await self.workspaces.sweep(active)
        self.store.execute("journal_trim", keep=_JOURNAL_KEEP)
        self.store.execute("baselines_trim")


class Run:
    """One life of a daemon: start, serve until told or idle, drain, stop. The result is an exit code."""

    def __init__(self, daemon: Daemon, began: float) -> None:
        self._daemon = daemon
        self._began = began
        self._wanted: asyncio.Event = asyncio.Event()
        self._now: asyncio.Event = asyncio.Event()
        self._reason = ""
        self._interrupted = False

    async def serve(self, screens: Sequence[Service]) -> int:
        """Start everything, wait for an end, take everything down."""
        daemon = self._daemon
        self._listen()
        for service in screens:
            daemon.supervisor.start(service)
        await daemon.follow()
        adopted = await daemon.recover()
        self._start_services()
        self._announce(adopted)
        try:
            await self._until_end()
            code = await self._drain()
        finally:
            await daemon.supervisor.stop()
        return code

    def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: int) -> None:
        """The first asks for a drain, the second for an end at once."""
        if self._wanted.is_set():
            self._now.set()
        self._interrupted = self._interrupted or number == signal.SIGINT
        self._reason = "interrupted (Ctrl-C)" if number == signal.SIGINT else "asked to stop (SIGTERM)"
        self._wanted.set()

    def _start_services(self) -> None:
        daemon = self._daemon
        daemon.ticks.every("follow-target", _FOLLOW_S, daemon.follow)
        daemon.ticks.every("sweep", _SWEEP_S, daemon.sweep)
        if daemon.options.self_improve:
            daemon.ticks.every("scan", daemon.settings.discovery.interval_s, daemon.discovery.look_again, jitter_s=30.0)
        services: list[Service] = [daemon.lander, daemon.pool, daemon.spool, daemon.steward, daemon.ticks]
        if daemon.options.self_improve:
            services.append(daemon.discovery)
        for service in services:
            daemon.supervisor.start(service)
        daemon.ticks.run_soon("sweep")

    def _announce(self, adopted: int) -> None:
        daemon = self._daemon
        daemon.bus.publish(
            DaemonReady(
                adopted=adopted,
                api=str(daemon.layout.api),
                pid=os.getpid(),
                target=daemon.settings.land.target,
                tasks=len(daemon.ledger),
                took_s=round(daemon.clock.monotonic() - self._began, 3),
            )
        )

    async def _until_end(self) -> None:
        """Return when a signal asked for it or, with ``until_idle``, when nothing is left to do."""
        quiet = 0
        while not self._wanted.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), 0.2)
            if not self._daemon.options.until_idle:
                continue
            quiet = quiet + 1 if self._idle() else 0
            if quiet >= 3 or self._gate_is_hopeless():
                self._reason = self._reason or ("idle" if quiet >= 3 else "the gate is broken")
                return

    def _idle(self) -> bool:
        daemon = self._daemon
        if daemon.options.self_improve and daemon.discovery.busy:
            return False
        return daemon.steward.idle()

    def _gate_is_hopeless(self) -> bool:
        """The gate stayed broken over several retries and nothing else is at work."""
        daemon = self._daemon
        entries = daemon.ledger.in_state(TaskState.CLAIMED, TaskState.RUNNING)
        patience = daemon.settings.gate.retry_s * _BROKEN_PATIENCE
        return not entries and daemon.lander.broken_s() > patience

    async def _drain(self) -> int:
        daemon = self._daemon
        daemon.steward.drain()
        running = daemon.steward.at_work()
        daemon.bus.publish(DaemonDraining(reason=self._reason, running=running))
        await self._finish_work()
        if self._now.is_set():
            await daemon.pool.stop_now()
        else:
            await daemon.pool.drain()
        daemon.bus.publish(DaemonStopped(reason=self._reason))
        return self._code()

    async def _finish_work(self) -> None:
        """Let agents end what they do, and the gate judge what they leave, for a while."""
        steward, clock, patience_s = self._daemon.steward, self._daemon.clock, self._daemon.settings.fleet.drain_s
        since = clock.monotonic()
        while steward.at_work() and not self._now.is_set() and not self._gate_is_hopeless():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._now.wait(), 0.2)
            since = clock.monotonic() if steward.agents_at_work() else since
            if clock.monotonic() - since > patience_s:
                message = f"{steward.at_work()} tasks wait for the gate; they are judged at the next start"
                self._daemon.bus.publish(Noticed(subject="drain", message=message))
                return

    def _code(self) -> int:
        daemon = self._daemon
        if daemon.lander.broken() or daemon.lander.parked():
            return GateBroken.exit_code
        if self._interrupted:
            return 130
        return 1 if daemon.ledger.count(TaskState.FAILED) else 0


async def run(
    root: Path,
    options: RunOptions,
    *,
    screens: Callable[[Daemon], Sequence[Service]] = lambda _: (),
    tap: Callable[[Published], None] | None = None,
) -> int:
    """Run the daemon on the repository at ``root`` and return its exit code.

    ``screens`` makes the services that show what happens; ``tap`` sees every event before anybody else does.
    Raises ``BadRepository``, ``BadInput`` (settings), ``DaemonBusy``.
    """
    clock = SystemClock()
    began = clock.monotonic()
    facts = await git.inspect(root)
    settings = files.read_settings(facts.top)
    if options.agents is not None:
        settings = replace(settings, fleet=replace(settings.fleet, agents=options.agents))
    layout = Layout(facts.top, facts.top / settings.paths.state)
    make_state(layout)
    with sole_daemon(layout):
        daemon = Daemon(layout, settings, facts, options)
        if tap is not None:
            daemon.bus.tap(tap)
        try:
            return await Run(daemon, began).serve(screens(daemon))
        finally:
            daemon.store.close()


class Offline(Operator):
    """What ``api.desk.Operations`` asks, while no daemon runs and the caller holds its lock."""

    def __init__(self, layout: Layout, ledger: Ledger, discovery: Discovery) -> None:
        super().__init__(layout, ledger)
        self._discovery = discovery

    async def scan(self, tools: Sequence[str]) -> Sequence[FoldReport]:
        """Look and remember; task files are written by a running daemon only."""
        return await self._discovery.scan(tools or None)


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
        target_name, tools = settings.land.target, settings.discovery.tools
        discovery = Discovery(repository, settings, layout, store, bus, clock, target=target_name, tools=tools)
        try:
            yield Offline(layout, Ledger(store, bus, clock), discovery)
        finally:
            store.close()
