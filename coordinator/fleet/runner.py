"""An agent process of ours: claims a task, makes its tree, runs the role's command in it, says how it ended, lets go.

Owns one invariant: the claim is let go only when nothing that came of the command runs any more. It outlives the daemon
and asks it nothing. It does not judge: an exit code is a word, the gate decides.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from coordinator.domain.attempt import Order, Outcome
from coordinator.domain.errors import StaleGeneration, TemporaryError, ToolFailed
from coordinator.fleet import sighting
from coordinator.fleet.muster import STOP_FILE, Enrolment
from coordinator.kit import lock, process, process_table
from coordinator.sdk.agent import Agent
from coordinator.sdk.layout import task_of_entry

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from coordinator.kit.process import Exit
    from coordinator.sdk.claim import Claim
    from coordinator.sdk.layout import Layout

_log = logging.getLogger(__name__)

PASSED_ON: Final = ("HOME", "LANG", "LC_ALL", "LC_CTYPE", "LOGNAME", "PATH", "SHELL", "TMPDIR", "TZ", "USER")
"""All that a command gets of our environment, unless its role card names more."""

NAME_TAKEN: Final = 75
"""Exit code when a living process bears the name (EX_TEMPFAIL of sysexits.h)."""
STUCK: Final = 70
"""Exit code when something of the command cannot be ended: we leave, the claim stays held (EX_SOFTWARE)."""

_LOG_BYTES: Final = 256 * 1024 * 1024
"""An agent that prints more is stopped: it fills the disk of everybody else."""
_LOOK_S: Final = 0.25
_NOTE_EVERY: Final = 8
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What goes into the result; not ``clean``: something of the command still runs and cannot be ended."""

    outcome: Outcome
    clean: bool = True
    exit_code: int | None = None
    reason: str = ""
    summary: str = ""


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
                claim.result(said.outcome, exit_code=said.exit_code, reason=said.reason, summary=said.summary)
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
        work = self._work = asyncio.create_task(_work(claim))
        stop_file, turn = Path(claim.order.attempt) / STOP_FILE, 0
        try:
            while True:
                await asyncio.wait({work}, timeout=_LOOK_S)
                turn += 1
                if work.done():
                    break
                if not self._stop_reason and claim.lost.is_set():
                    self._end_work("a newer owner has taken over")
                elif not self._stop_reason and os.path.lexists(stop_file):
                    self._end_work(_first_line(stop_file) or "stopped from outside")
                elif turn % _NOTE_EVERY == 0 and not claim.lost.is_set():
                    _pass_on_note(claim)
        finally:
            self._work = None
            await _finish(work)
        if work.cancelled():
            clean = not process_table.lock_holders(self._layout.claim_lock(claim.order.task))
            return Said(outcome=Outcome.STOPPED, reason="stopped", summary=self._stop_reason, clean=clean)
        return work.result()


async def _finish(work: asyncio.Task[Said]) -> None:
    """When we are cancelled ourselves, the work ends first."""
    while not work.done():
        work.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.wait({work})


async def _work(claim: Claim) -> Said:
    order = claim.order
    if not order.command:
        return Said(outcome=Outcome.UNSTARTED, reason="no_command", summary=f"role {order.role} has no command")
    try:
        worktree = await _clone(claim)
    except (ToolFailed, OSError) as error:
        return Said(outcome=Outcome.UNSTARTED, reason="worktree", summary=f"no working tree: {error}")
    argv = [sys.executable if word == "{python}" else word for word in order.command]
    ended = await process.run(
        argv,
        cwd=worktree,
        env=command_environment(order, os.environ),
        exclusive=True,
        limits=process.Limits(
            timeout_s=order.timeout_s,
            grace_s=order.grace_s,
            memory_bytes=order.memory_bytes,
            output_bytes=_LOG_BYTES,
        ),
        output=_log_of(order),
        pass_fds=(claim.lock_fd,),
        stdin=Path(order.brief),
    )
    return _said(order, ended)


async def _clone(claim: Claim) -> Path:
    """In a thread, because git takes its time. When it is to end early, git is killed: it is all we run meanwhile."""
    thread = asyncio.ensure_future(asyncio.to_thread(claim.prepare_worktree))
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        while not thread.done():
            for member in process.tree(os.getpid())[1:]:
                process_table.send(member, signal.SIGKILL)
            with suppress(asyncio.CancelledError):
                await asyncio.wait({thread}, timeout=0.05)
        thread.exception()  # looked at, so that nobody reports it as never looked at
        raise


def command_environment(order: Order, environment: Mapping[str, str]) -> dict[str, str]:
    """All that the command may see: the least of ours, what its card and its task name, and where it is."""
    names = (*PASSED_ON, *order.env_names)
    env = {name: environment[name] for name in names if name in environment}
    env |= dict(order.env)
    return env | {
        "COORDINATOR_ATTEMPT": order.attempt,
        "COORDINATOR_BRIEF": order.brief,
        "COORDINATOR_GENERATION": str(order.generation),
        "COORDINATOR_PYTHON": sys.executable,
        "COORDINATOR_ROLE": order.role,
        "COORDINATOR_TASK": order.task,
        "COORDINATOR_WORKTREE": order.worktree,
        "GIT_TERMINAL_PROMPT": "0",
    }


def _said(order: Order, ended: Exit) -> Said:
    last = _last_line(_log_of(order))
    more = f": {last}" if last else ""
    if ended.spawn_error:
        outcome, reason, summary = Outcome.UNSTARTED, "spawn", ended.spawn_error
    elif ended.timed_out:
        outcome, reason, summary = Outcome.OVER_TIME, "timeout", f"over its time limit of {order.timeout_s:g} s{more}"
    elif ended.output_exceeded:
        limit = f"printed more than {_LOG_BYTES // 1024**2} MiB and was stopped"
        outcome, reason, summary = Outcome.FAILED, "output", limit
    elif ended.code == 0:
        outcome, reason, summary = Outcome.DONE, "", last
    elif ended.signal is not None:
        outcome, reason, summary = Outcome.FAILED, f"signal {ended.signal}", f"ended by signal {ended.signal}{more}"
    else:
        outcome, reason, summary = Outcome.FAILED, f"exit {ended.code}", f"exit code {ended.code}{more}"
    return Said(outcome=outcome, clean=ended.clean, exit_code=ended.code, reason=reason, summary=summary)


def _log_of(order: Order) -> Path:
    return Path(order.attempt) / "agent.log"


def _last_line(path: Path) -> str:
    """The last line that says something, fit for a screen."""
    lines = [line.strip() for line in sighting.last_lines(path).splitlines()]
    last = next((line for line in reversed(lines) if line), "")
    return "".join(sign for sign in last if sign.isprintable())[:300]


def _first_line(path: Path) -> str:
    lines = sighting.last_lines(path).strip().splitlines()
    return lines[0][:300] if lines else ""


def _pass_on_note(claim: Claim) -> None:
    """What the command printed last is what people see it doing."""
    note = _last_line(_log_of(claim.order))
    if note:
        with suppress(OSError, StaleGeneration):  # the heartbeat's own thread sees the same and decides
            claim.progress(note)
