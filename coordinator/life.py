"""One life of a daemon: start, serve until told or idle, drain, stop; and on SIGHUP the next life under new settings.

Owns one invariant: one daemon per directory, by a held lock that spans all its lives, and agents outlive each of them. What
is joined to what is ``daemon``'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from dataclasses import replace
from typing import TYPE_CHECKING

from coordinator.control.fleet_size import LOOK_S as SIZE_LOOK_S
from coordinator.control.tuning import TUNING_LOOK_S
from coordinator.daemon import Daemon, RunOptions
from coordinator.domain.errors import BadInput, GateBroken
from coordinator.domain.event import DaemonDraining, DaemonReady, DaemonReloading, DaemonStopped, Noticed, ReloadRefused
from coordinator.domain.problem import Problem
from coordinator.domain.task import TaskState
from coordinator.fleet.directory import keep_out_of_commits, make_state, own_scratch, sole_daemon
from coordinator.gateway.hosts import listening_address
from coordinator.kit import files, git, process
from coordinator.kit.clock import SystemClock
from coordinator.policy.telemetry import LOOK_S
from coordinator.sdk.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from pathlib import Path

    from coordinator.domain.event import Published
    from coordinator.domain.settings import Settings
    from coordinator.kit.lock import HeldLock
    from coordinator.kit.service import Service

_log = logging.getLogger(__name__)

_FOLLOW_S = 30.0
_IDLE_LOOK_S = 5.0
_PLACE_LOOK_S = 2.0
_TEMPFAIL = 75
"""EX_TEMPFAIL of sysexits.h: start it again, it may well work."""
_RETENTION_LOOK_S = 60.0
"""The first a minute after the start, when the rush is over; then it looks whether the disk is short or a day has passed."""
_SWEEP_S = 600.0
_BROKEN_PATIENCE = 2.0
"""A run that is to end when idle gives a broken gate this many retries to mend."""


class Life:
    """The result is an exit code."""

    def __init__(self, daemon: Daemon, began: float, held: HeldLock) -> None:
        self._daemon = daemon
        self._held = held
        self._began = began
        self._wanted: asyncio.Event = asyncio.Event()
        self._now: asyncio.Event = asyncio.Event()
        self._reason = ""
        self._interrupted = False
        self._lost = False
        self._reload = False
        self.successor: Settings | None = None
        """The settings of the next life, when this one ended for a reload."""

    async def serve(self, screens: Sequence[Service]) -> int:
        """Start everything, wait for an end, take everything down (but not the agents, when another life follows)."""
        daemon = self._daemon
        self._listen()
        for service in screens:
            daemon.supervisor.start(service)
        try:
            daemon.gateway.open()  # no order is written before it can name a way to models
            await daemon.follow()
            adopted = await daemon.recover()
            self._start_services()
            self._announce(adopted)
            await self._until_end()
            code = 0 if self.successor is not None else await self._drain()
        finally:
            await daemon.supervisor.stop()
            daemon.gateway.close()
            daemon.telemetry.close()
        return code

    def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, number)
        loop.add_signal_handler(signal.SIGHUP, self._on_reload)

    def _on_reload(self) -> None:
        self._reload = True

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
        daemon.ticks.every("place", _PLACE_LOOK_S, self._look_at_place)
        daemon.ticks.every("idle", _IDLE_LOOK_S, daemon.notice_idleness)
        daemon.ticks.every("retention", _RETENTION_LOOK_S, daemon.retention.look_again)
        daemon.ticks.every("sweep", _SWEEP_S, daemon.sweep)
        if daemon.sizer.on:
            daemon.ticks.every("fleet-size", SIZE_LOOK_S, daemon.sizer.look)
        daemon.ticks.every("telemetry", LOOK_S, daemon.telemetry.look)
        daemon.ticks.every("tuning", TUNING_LOOK_S, daemon.tuning.look)
        if daemon.options.self_improve:
            daemon.discovery.arrange(daemon.ticks)
        services: list[Service] = [] if daemon.traces is None else [daemon.traces]  # stopped last: all is told to it
        services += [
            daemon.calls,  # stopped after the gateway: what it served last is written
            daemon.gateway,
            daemon.lander,
            daemon.pool,
            daemon.spool,
            daemon.steward,
            daemon.ticks,
        ]
        if daemon.options.self_improve:
            services.append(daemon.discovery)
        for service in services:
            daemon.supervisor.start(service)
        daemon.ticks.run_soon("sweep")

    async def _look_at_place(self) -> None:
        """Whoever removes the state folder (``git clean -fdx``) lets a second daemon in: this one has to go, at once."""
        if not self._held.is_in_place() and not self._now.is_set():
            self._reason = (
                f"{self._daemon.layout.state} was removed while the daemon ran; all that was at work is stopped"
            )
            self._lost = True
            self._wanted.set()
            self._now.set()

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
            if self._reload and await self._can_reload():
                return
            if not self._daemon.options.until_idle:
                continue
            quiet = quiet + 1 if self._idle() else 0
            if quiet >= 3 or self._gate_is_hopeless():
                self._reason = self._reason or ("idle" if quiet >= 3 else "the gate is broken")
                return

    async def _can_reload(self) -> bool:
        """Whether the next life may begin: the settings are good, and what the gate is judging has been judged.

        With bad settings this life goes on under its own, which were the last good ones.
        """
        daemon, self._reload = self._daemon, False
        try:
            settings = settings_of(daemon.layout.repository, daemon.options)
            if settings.paths.state != daemon.settings.paths.state:
                raise BadInput([Problem(file="[paths] state", message="cannot change while a daemon runs")])
            if settings.gateway.enabled != "off":
                listening_address(settings.gateway.host)
        except BadInput as error:
            daemon.bus.publish(ReloadRefused(problems=tuple(map(str, error.problems))))
            return False
        daemon.bus.publish(DaemonReloading(reason="SIGHUP"))
        deadline = daemon.clock.monotonic() + daemon.settings.fleet.drain_s
        while daemon.lander.busy and not self._wanted.is_set() and daemon.clock.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), 0.1)
        if not self._wanted.is_set():
            self.successor = settings
        return True

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

    async def _abandon(self) -> int:
        """The folder is gone, and with it all that agents' work would be recorded by."""
        daemon = self._daemon
        daemon.bus.publish(DaemonStopped(reason=self._reason))
        try:
            await daemon.pool.stop_now()
        except OSError as error:
            _log.warning("not all agents could be stopped: %s", error, extra={"action": "abandon_failed"})
        with contextlib.suppress(OSError):
            keep_out_of_commits(daemon.layout)  # git leaves nested clones alone, but not what hides them
        return _TEMPFAIL

    async def _drain(self) -> int:
        if self._lost:
            return await self._abandon()
        daemon = self._daemon
        daemon.steward.drain()
        running = daemon.steward.at_work()
        if daemon.options.leave_agents and not self._now.is_set():
            agents = len(daemon.pool.agents())
            reason = f"{self._reason}; {agents} agents are left at work" if agents else self._reason
            daemon.bus.publish(DaemonStopped(reason=reason))
            return self._code()
        daemon.bus.publish(DaemonDraining(reason=self._reason, running=running))
        within_s = daemon.options.stop_within_s
        alarm = asyncio.get_running_loop().call_later(within_s, self._now.set) if within_s is not None else None
        await self._finish_work()
        if not self._now.is_set():
            await self._until_now(daemon.pool.drain())
        if self._now.is_set():
            daemon.revoke_keys()
            await daemon.pool.stop_now()
        if alarm is not None:
            alarm.cancel()
        daemon.bus.publish(DaemonStopped(reason=self._reason))
        return self._code()

    async def _until_now(self, drain: Coroutine[None, None, None]) -> None:
        """Wait for the drain, unless everything is to end at once meanwhile."""
        draining, now = asyncio.ensure_future(drain), asyncio.ensure_future(self._now.wait())
        try:
            await asyncio.wait({draining, now}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in (draining, now):
                each.cancel()
            await asyncio.gather(draining, now, return_exceptions=True)

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
    settings = settings_of(facts.top, options)
    layout = Layout(facts.top, facts.top / settings.paths.state)
    make_state(layout)
    with sole_daemon(layout) as held, own_scratch(layout):
        while True:
            daemon = Daemon(layout, settings, facts, options)
            if tap is not None:
                daemon.bus.tap(tap)
            life = Life(daemon, began, held)
            if daemon.gateway.on:
                process.hide()  # it has the provider's key
            try:
                code = await life.serve(screens(daemon))
            finally:
                daemon.store.close()
            if life.successor is None:
                return code
            settings, began = life.successor, clock.monotonic()


def settings_of(top: Path, options: RunOptions) -> Settings:
    """The configuration on disk, with what the command line overrides. Raises ``BadInput``."""
    settings = files.read_settings(top)
    if options.agents is None:
        return settings
    return replace(settings, fleet=replace(settings.fleet, agents=options.agents))
