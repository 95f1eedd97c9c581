"""The only wiring: builds every room and joins them by events and callbacks.

It knows everything and decides nothing. Starting, draining and stopping it is ``life``'s.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coordinator.api.desk import LiveAgent, LiveSnapshot, live_agents
from coordinator.domain.event import AgentExited, FleetIdle, Noticed, TaskChanged
from coordinator.domain.lane import Lane
from coordinator.domain.task import ACTIVE, OWNED, TaskState
from coordinator.fleet import target
from coordinator.fleet.collector import Collector
from coordinator.fleet.dispatcher import Dispatcher
from coordinator.fleet.driver import PROVIDER_VARIABLES
from coordinator.fleet.gate import Gate
from coordinator.fleet.intake import Intake
from coordinator.fleet.lander import Lander
from coordinator.fleet.ledger import Ledger
from coordinator.fleet.pool import AgentPool
from coordinator.fleet.ready import ReadyBoard
from coordinator.fleet.recovery import Recovery
from coordinator.fleet.retention import Retention
from coordinator.fleet.settling import Settling
from coordinator.fleet.spool import Spool
from coordinator.fleet.steward import Steward
from coordinator.fleet.vigil import Vigil
from coordinator.fleet.workspace import Workspaces
from coordinator.gateway.agent_paths import folder_name
from coordinator.gateway.book import CallBook
from coordinator.gateway.claimant import Claimant
from coordinator.gateway.documents import finding_documents, revision_documents
from coordinator.gateway.gateway import Gateway
from coordinator.gateway.upstream import upstreams_of
from coordinator.improve.discovery import Discovery
from coordinator.improve.meters import discovery_meters
from coordinator.kit import git
from coordinator.kit.bus import Bus
from coordinator.kit.clock import SystemClock
from coordinator.kit.schedule import Ticks
from coordinator.kit.service import Supervisor
from coordinator.kit.store import Store
from coordinator.policy.spans import SpanPlace
from coordinator.steering import Steering
from coordinator.surface.metrics import exposition
from coordinator.surface.traces import traces_of

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

    from coordinator.domain.card import RoleCard
    from coordinator.domain.event import Published
    from coordinator.domain.meter import Meter
    from coordinator.domain.settings import Settings
    from coordinator.domain.task import Task
    from coordinator.improve.folding import FoldReport
    from coordinator.sdk.layout import Layout
    from coordinator.surface.traces import Traces

_GIT_S = 30.0
_JOURNAL_KEEP = 200_000

_TOLD_WHEN_IDLE = (TaskState.COMPLETED, TaskState.FAILED, TaskState.HELD)

_CLAIMANTS = 4096
"""Attempts that are remembered as callers."""

_FOUND = 50
"""From this priority on, tasks are usually made from findings."""

_KEPT = (TaskState.READY, TaskState.CLAIMED, TaskState.RUNNING)
"""States in which an attempt's worktree is in use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What ``coordinator run`` was asked for. ``agents`` overrides the settings.

    ``leave_agents``: a stop leaves the agents at work, for the next daemon to find. ``stop_within_s``: a drain that takes
    longer becomes a stop at once (None: it may take as long as it takes).
    """

    agents: int | None = None
    leave_agents: bool = False
    self_improve: bool = False
    stop_within_s: float | None = None
    until_idle: bool = False


class Daemon:
    """All rooms of one directory, joined. Used through ``run`` or ``offline``."""

    def __init__(self, layout: Layout, settings: Settings, facts: git.RepositoryFacts, options: RunOptions) -> None:
        self.layout = layout
        self.settings = settings
        self.options = options
        self._claimants: dict[tuple[str, int], tuple[Task, RoleCard | None, Claimant]] = {}
        self._loop = asyncio.get_running_loop()
        self.clock = SystemClock()
        self.began = self.clock.monotonic()
        self.bus = Bus(self.clock)
        self.store = Store.open(layout.ledger)
        self.bus.tap(self.store.journal)
        self.git = git.Git(facts.top, facts.git_dir, hooks=settings.land.hooks)
        self.workspaces = Workspaces(self.git, layout)
        self.ledger = Ledger(self.store, self.bus, self.clock)
        self.calls = CallBook(self.store)
        self.bus.tap(self.calls.take)
        self.traces = self._make_traces()
        self.gateway = self._make_gateway()
        steering = self._make_steering()
        self.router, self.feedback, self.telemetry = steering.router, steering.feedback, steering.telemetry
        self.sizer, self._steering_meters = steering.sizer, steering.meters
        self.board = ReadyBoard(layout, self.workspaces, settings.fleet, credentials=self.gateway.credentials)
        self.intake = Intake(layout, self.ledger, self.store, settings, self.clock, self._wake)
        self.pool = self._make_pool()
        self.gate = Gate(self.git, settings, layout, self.store, self.clock, self.bus)
        self.lander = self._make_lander()
        self.knobs = steering.board(self.pool, self.lander)
        self.tuning = steering.tuning(self.knobs)
        self.settling = self._make_settling()
        self.steward = self._make_steward()
        self.spool = self._make_spool()
        self.discovery = self._make_discovery()
        self.retention = Retention(layout, self.ledger, self.git, self.bus, self.clock, settings)
        self._was_busy = False
        self.bus.tap(self._heed)
        self.ticks = Ticks(self.bus, self.clock)
        self.supervisor = Supervisor(self.bus, self.clock)

    def _wake(self) -> None:
        self.steward.wake()

    def _make_spool(self) -> Spool:
        top, settings, intake = self.layout.repository, self.settings, self.intake
        tasks, known = top / settings.paths.tasks, self.ledger.ids
        return Spool(tasks, top, settings.fleet, self.bus, self.clock, intake.take, known=known)

    def _make_discovery(self) -> Discovery:
        target = self.settings.land.target
        return Discovery(self.git, self.settings, self.layout, self.store, self.bus, self.clock, target=target)

    def _make_gateway(self) -> Gateway:
        return Gateway(
            self.layout.state,
            self.settings.gateway,
            os.environ,
            self.bus,
            self.clock,
            self.store,
            origins={
                "doc": revision_documents(self.settings.land.target, self._git_output),
                "finding": finding_documents(self.store),
            },
            render=self._exposition,
            who=self._claimant,
        )

    def _exposition(self, meters: Iterable[Meter]) -> tuple[bytes, str]:
        """The gateway's page shows what the other rooms count as well; asked from its thread."""
        spans = self.traces.meters() if self.traces is not None else ()
        return exposition((*meters, *discovery_meters(self.store), *self._steering_meters(), *spans))

    def _make_steering(self) -> Steering:
        return Steering(
            self.bus,
            self.clock,
            self.store,
            self.settings,
            self.gateway,
            memories=lambda: (agent.memory_bytes for agent in self.agents()),
            self_improve=self.options.self_improve,
            top=self.layout.repository,
        )

    def _make_traces(self) -> Traces | None:
        known = upstreams_of(self.settings.gateway, os.environ).known
        places = {one.name: SpanPlace.of(one.kind, one.url) for one in known}
        export, repository, state = self.settings.traces.export, self.layout.repository, self.layout.state
        return traces_of(export, os.environ, self.bus, places, repository=repository, state=state)

    def _git_output(self, args: tuple[str, ...]) -> bytes:
        """For who works in a thread; the loop is the one that this daemon was made on."""
        return asyncio.run_coroutine_threadsafe(self.git.run(*args), self._loop).result(_GIT_S).stdout

    def _make_pool(self) -> AgentPool:
        fleet, hidden = self.settings.fleet, PROVIDER_VARIABLES if self.gateway.on else ()
        idle_s, ramp_s = self.sizer.idle_exit_s, fleet.ramp_s
        return AgentPool(self.layout, self.bus, self.clock, hidden=hidden, idle_exit_s=idle_s, ramp_s=ramp_s)

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

    def _make_settling(self) -> Settling:
        settings, intake, ledger = self.settings, self.intake, self.ledger
        return Settling(bus=self.bus, clock=self.clock, intake=intake, ledger=ledger, settings=settings)

    def _make_steward(self) -> Steward:
        fleet = self.settings.fleet
        dispatcher = Dispatcher(
            self.bus,
            self.clock,
            board=self.board,
            choose_model=self.router.choose,
            git=self.git,
            intake=self.intake,
            lander=self.lander,
            layout=self.layout,
            ledger=self.ledger,
            settings=self.settings,
            sizer=self.sizer,
        )
        return Steward(
            access=self.gateway,
            board=self.board,
            clock=self.clock,
            collector=Collector(self.layout, self.ledger, self.workspaces),
            dispatcher=dispatcher,
            intake=self.intake,
            lander=self.lander,
            layout=self.layout,
            ledger=self.ledger,
            pool=self.pool,
            settings=self.settings,
            settling=self.settling,
            vigil=Vigil(self.clock, self.bus, heartbeat_s=fleet.heartbeat_s, access=self.gateway),
        )

    def _claimant(self, task_id: str, generation: int) -> Claimant | None:
        """An attempt may call models from its offer to its end; asked for each call, from the gateway's thread."""
        entry = self.ledger.find(task_id)
        if entry is None or entry.generation != generation or entry.state not in _KEPT:
            return None
        task, card = entry.task, self.intake.find_card(entry.task)
        known = self._claimants.get((task_id, generation))
        if known is not None and known[0] is task and known[1] is card:
            return known[2]
        if len(self._claimants) >= _CLAIMANTS:
            self._claimants.clear()
        claimant = self._claimant_of(task, card, generation)
        self._claimants[task_id, generation] = task, card, claimant
        return claimant

    def _claimant_of(self, task: Task, card: RoleCard | None, generation: int) -> Claimant:
        worktree = str(self.layout.worktree(task.id, generation))
        return Claimant(
            agent=f"{task.id}.{generation}",
            budget_usd=task.budget_usd or (card.budget_usd if card is not None else 0.0),
            lane=_lane(task.priority),
            retrieve=card is not None and card.retrieve,
            places={
                worktree: "worktree",
                folder_name(worktree): "folder",
                str(self.layout.home(task.id)): "home",
                str(self.layout.attempt(task.id, generation)): "attempt",
            },
            role=self.intake.role_of(task),
            upstream=self.router.upstream_of(task.id, generation),
        )

    async def recover(self) -> int:
        """Make sense of what the last daemon left; returns how many agents live on."""
        adopted = self.pool.adopt()
        self._was_busy = adopted > 0
        recovery = Recovery(
            board=self.board,
            git=self.git,
            intake=self.intake,
            layout=self.layout,
            ledger=self.ledger,
            settling=self.settling,
            target=self.settings.land.target,
            workspaces=self.workspaces,
        )
        await recovery.remember_landed()
        self.intake.take(await self.spool.read())
        recovery.settle_offers()
        await recovery.resume(self.steward.resubmit)
        self.telemetry.begin((entry.task.id, entry.state.value) for entry in self.ledger.in_state(*ACTIVE))
        return adopted

    # -- what verbs and screens ask (``api.desk.LiveDaemon``) ------------------------------------------------------

    def agents(self) -> tuple[LiveAgent, ...]:
        return live_agents(self.layout, self.pool.agents(), self._title_of, self.steward.vigil.diagnosis)

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

    async def scan(self, tools: Sequence[str], *, fresh: bool = False) -> Sequence[FoldReport]:
        return await self.discovery.scan(tools, fresh=fresh)

    async def dismiss(self, fingerprints: Sequence[str], reason: str) -> int:
        return await self.discovery.dismiss(fingerprints, reason)

    async def reopen(self, fingerprints: Sequence[str]) -> int:
        return await self.discovery.reopen(fingerprints)

    def findings(self) -> list[sqlite3.Row]:
        return self.store.query("findings")

    def snapshot(self) -> LiveSnapshot:
        what, since = self.gate.running or ("", self.clock.monotonic())
        return LiveSnapshot(
            agents=self.agents(),
            checking=what,
            checking_s=self.clock.monotonic() - since,
            counts={state.value: self.ledger.count(state) for state in TaskState},
            draining=self.steward.draining,
            elapsed_s=self.clock.monotonic() - self.began,
            gate_broken=self.lander.broken(),
            judging=self.lander.busy,
            refusal=self.steward.refusal(),
            target=self.settings.land.target,
            waiting=len(self.lander.waiting()),
        )

    def turned_s(self) -> float:
        return self.clock.monotonic() - self.steward.turned_at

    def revoke_keys(self) -> None:
        """All agents are to be stopped now: none of them shall spend while it dies."""
        for entry in self.ledger.in_state(*OWNED):
            self.gateway.revoke(entry.task.id, entry.generation)

    # -- what is done now and then ------------------------------------------------------------------------------------

    async def follow(self) -> None:
        """Keep the target at or ahead of the user's branch while that is a plain step forward."""
        remark = await target.prepare(self.git, self.settings.land.target)
        if remark:
            self.bus.publish(Noticed(subject="target", message=remark))
        await self.feedback.follow(self.git, self.settings.land.target)
        self.steward.recheck_blocked()

    async def notice_idleness(self) -> None:
        """Tell once when the fleet has nothing left to do; new work arms it again."""
        if not self._was_busy or not self.steward.idle():
            return
        self._was_busy = False
        done, failed, held = (self.ledger.count(state) for state in _TOLD_WHEN_IDLE)
        self.bus.publish(FleetIdle(completed=done, failed=failed, held=held))

    def _heed(self, published: Published) -> None:
        event = published.event
        if isinstance(event, AgentExited):
            self._wake()  # what it was at may be over
        self._was_busy = self._was_busy or (isinstance(event, TaskChanged) and event.new in _KEPT)

    async def sweep(self) -> None:
        """Rescue and remove what ended attempts left behind; keep journal, baselines and findings bounded."""
        active = {(entry.task.id, entry.generation) for entry in self.ledger.in_state(*_KEPT)}
        await self.workspaces.sweep(active, {entry.task.id: entry.generation for entry in self.ledger.entries()})
        self.store.execute("journal_trim", keep=_JOURNAL_KEEP)
        self.store.execute("baselines_trim")
        await self.discovery.forget()


def _lane(priority: int) -> Lane:
    """People's tasks before those that were found; 0 before all."""
    if priority <= 0:
        return Lane.CRITICAL
    return Lane.HIGH if priority < _FOUND else Lane.NORMAL if priority < 2 * _FOUND else Lane.LOW
