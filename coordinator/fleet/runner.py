"""An agent process of ours: claims a task, makes its tree, runs the role's command in it, says how it ended, lets go.

Owns one invariant: the claim is let go only when nothing that came of the command runs any more. It outlives the daemon
and asks it nothing. It does not judge: an exit code is a word, the gate decides.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from coordinator.domain.attempt import Outcome
from coordinator.domain.errors import StaleGeneration, TemporaryError
from coordinator.fleet import sighting
from coordinator.fleet.driver import Said
from coordinator.fleet.muster import STOP_FILE, Enrolment
from coordinator.fleet.work import work
from coordinator.kit import lock, process, process_table
from coordinator.sdk.agent import Agent
from coordinator.sdk.layout import task_of_entry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from coordinator.sdk.claim import Claim
    from coordinator.sdk.layout import Layout

_log = logging.getLogger(__name__)

NAME_TAKEN: Final = 75
"""Exit code when a living process bears the name (EX_TEMPFAIL of sysexits.h)."""
STUCK: Final = 70
"""Exit code when something of the command cannot be ended: we leave, the claim stays held (EX_SOFTWARE)."""

_LOOK_S: Final = 0.25
_SHORTEST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 0.5


async def run_agent(
    layout: Layout, *, name: str, roles: Sequence[str] = (), idle_exit_s: float = 10.0, once: bool = False
) -> int:
    """Work until nothing could be claimed for ``idle_exit_s`` (or, with ``once``, for one attempt); an exit code.

    SIGTERM: finish the attempt, then end. A second one, or SIGINT: stop the command, write ``stopped``, end.
    """
    try:
        enrolment = Enrolment.enrol(layout, name)
    except TemporaryError as error:
        _log.error("%s", error, extra={"action": "agent_name_taken"})
        return NAME_TAKEN
    try:
        process.adopt_orphans()
        await _Runner(layout, name, tuple(roles), enrolment).serve(idle_exit_s, once=once)
    finally:
        enrolment.leave()
    return 0


class _Runner:
    def __init__(self, layout: Layout, name: str, roles: tuple[str, ...], enrolment: Enrolment) -> None:
        self._agent = Agent(repository=layout.repository, state=layout.state, name=name)
        self._enrolment = enrolment
        self._layout = layout
        self._roles = roles
        self._draining = False
        self._stop_reason = ""
        self._wake = asyncio.Event()
        self._work: asyncio.Task[Said] | None = None

    async def serve(self, idle_exit_s: float, *, once: bool) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._on_term)
        loop.add_signal_handler(signal.SIGINT, self._on_interrupt)
        try:
            await self._serve(idle_exit_s, once=once)
        finally:
            loop.remove_signal_handler(signal.SIGTERM)
            loop.remove_signal_handler(signal.SIGINT)

    async def _serve(self, idle_exit_s: float, *, once: bool) -> None:
        idle_since, pause = time.monotonic(), _SHORTEST_PAUSE_S
        while not self._draining:
            claim = self._claim()
            if claim is not None:
                await self._attempt(claim)
                idle_since, pause = time.monotonic(), _SHORTEST_PAUSE_S
                if once:
                    return
            elif time.monotonic() - idle_since >= idle_exit_s:
                return
            else:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), pause)
                pause = min(pause * 1.3, _LONGEST_PAUSE_S)

    # -- signals -------------------------------------------------------------------------------------------------

    def _on_term(self) -> None:
        if self._draining:
            self._on_interrupt()
            return
        self._draining = True
        self._wake.set()
        self._enrolment.drain()

    def _on_interrupt(self) -> None:
        self._draining = True
        self._wake.set()
        self._end_work("stopped by a signal to the agent process")

    def _end_work(self, reason: str) -> None:
        """Ask the present work to end; asked again, it ends without grace."""
        if self._work is not None:
            self._stop_reason = self._stop_reason or reason
            self._work.cancel()

    # -- claiming ------------------------------------------------------------------------------------------------

    def _claim(self) -> Claim | None:
        roles = self._startable_roles()
        if not roles:
            return None
        self._agent.roles = roles
        try:
            return self._agent.claim_next()
        except OSError as error:
            _log.warning("cannot claim: %s", error, extra={"action": "claim_failed"})
            return None

    def _startable_roles(self) -> tuple[str, ...]:
        """The roles among what is ready now whose orders have a command: others are for agents that bring their own."""
        startable: dict[str, bool] = {}
        try:
            names = sorted(name for name in os.listdir(self._layout.ready) if name.count("-") >= 2)
        except OSError:
            return ()
        for name in names:
            with suppress(OSError):
                entry = lock.read_object(self._layout.ready / name) or {}
                role, generation = entry.get("role"), entry.get("generation")
                wanted = not self._roles or role in self._roles
                if isinstance(role, str) and isinstance(generation, int) and wanted and not startable.get(role):
                    folder = self._layout.attempt(task_of_entry(name), generation)
                    startable[role] = bool((lock.read_object(folder / "order.json") or {}).get("command"))
        return tuple(role for role, has_command in startable.items() if has_command)

    # -- one attempt ---------------------------------------------------------------------------------------------

    async def _attempt(self, claim: Claim) -> None:
        order = claim.order
        extra = {"task": order.task, "generation": order.generation}
        _log.info("claimed %s, generation %d", order.task, order.generation, extra={"action": "claimed", **extra})
        try:
            with claim:
                self._enrolment.work_on(order.task, order.generation)
                said = await self._watched(claim)
                claim.result(
                    said.outcome,
                    cost_usd=said.cost_usd,
                    exit_code=said.exit_code,
                    reason=said.reason,
                    retry_at=said.retry_at,
                    session=said.session,
                    summary=said.summary,
                    turns=said.turns,
                )
                if not said.clean:
                    _log.critical(
                        "its command cannot be ended, the claim stays held", extra={"action": "stuck", **extra}
                    )
                    os._exit(STUCK)  # any orderly way out would release the claim under what still runs
            _log.info("%s: %s", order.task, said.outcome, extra={"action": "attempt_ended", **extra})
        except StaleGeneration as error:
            _log.warning("%s", error, extra={"action": "attempt_stale", **extra})
        except OSError as error:  # no result is on disk then, so the attempt counts as crashed: that is the truth
            _log.error("no result: %s", error, extra={"action": "result_unwritten", **extra})
        finally:
            self._enrolment.work_on(None, None)

    async def _watched(self, claim: Claim) -> Said:
        """Do the work, ended early when the attempt's stop file appears or a newer owner does."""
        self._stop_reason = ""
        task = self._work = asyncio.create_task(work(claim))
        stop_file = Path(claim.order.attempt) / STOP_FILE
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=_LOOK_S)
                if task.done() or self._stop_reason:
                    continue
                if claim.lost.is_set():
                    self._end_work("a newer owner has taken over")
                elif os.path.lexists(stop_file):
                    self._end_work(_first_line(stop_file) or "stopped from outside")
        finally:
            self._work = None
            await _finish(task)
        if task.cancelled():
            clean = not process_table.lock_holders(claim.lock_path)
            return Said(outcome=Outcome.STOPPED, reason="stopped", summary=self._stop_reason, clean=clean)
        said = task.result()
        return replace(said, summary=self._stop_reason) if said.outcome is Outcome.STOPPED else said


async def _finish(task: asyncio.Task[Said]) -> None:
    """When we are cancelled ourselves, the work ends first."""
    while not task.done():
        task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.wait({task})


def _first_line(path: Path) -> str:
    lines = sighting.last_lines(path).strip().splitlines()
    return lines[0][:300] if lines else ""
