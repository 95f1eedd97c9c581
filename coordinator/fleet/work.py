"""One attempt's command: its tree is made, it is started as its driver says, watched, and what came of it is understood.

Owns one invariant: when ``work`` is over, however it is over, nothing of the command runs on (or the result says that it
cannot be ended). It claims nothing and judges nothing.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from coordinator.domain.attempt import Order, Outcome
from coordinator.domain.errors import StaleGeneration, ToolFailed
from coordinator.domain.vitals import Doing
from coordinator.fleet import driver, drivers, sighting
from coordinator.fleet.driver import Ended, Said
from coordinator.fleet.sensor import Sensor
from coordinator.kit import lock, process, process_table, webhook
from coordinator.kit.process_files import open_sink

if TYPE_CHECKING:
    from collections.abc import Mapping

    from coordinator.fleet.driver import Launch, Reader
    from coordinator.kit.process import Exit
    from coordinator.sdk.claim import Claim

PASSED_ON: Final = ("HOME", "LANG", "LC_ALL", "LC_CTYPE", "LOGNAME", "PATH", "SHELL", "TMPDIR", "TZ", "USER")
"""All that a command gets of our environment, unless its role card names more."""

OUTPUT_BYTES: Final = 256 * 1024 * 1024
"""An agent that prints more is stopped: it fills the disk of everybody else."""

_NOTES_BYTES: Final = 16 * 1024 * 1024
"""What is noted of an agent's transcript for people; all of it is in the transcript."""

_KEY_S: Final = 1.0
"""What the gateway gets to take back a key, before the agent is stopped all the same."""

_LOOK_S: Final = 1.0
_SOON_S: Final = 0.2
"""The first looks come quickly, so that what is over in a moment was seen all the same."""


async def work(claim: Claim) -> Said:
    """Do what the order says. A cancel stops the command first; a second one cuts its grace short."""
    order = claim.order
    if not order.command:
        return Said(outcome=Outcome.UNSTARTED, reason="no_command", summary=f"role {order.role} has no command")
    try:
        worktree = await _clone(claim)
        launch = drivers.of(order.driver).launch(order, python=sys.executable)
        _write_files(order, launch)
    except (ToolFailed, OSError) as error:
        return Said(outcome=Outcome.UNSTARTED, reason="worktree", summary=f"no working tree: {error}")
    except ValueError as error:
        return Said(outcome=Outcome.UNSTARTED, reason="order", summary=str(error))
    return await _Command(claim, launch, worktree).run()


class _Command:
    def __init__(self, claim: Claim, launch: Launch, worktree: Path) -> None:
        self._claim = claim
        self._launch = launch
        self._order = order = claim.order
        self._worktree = worktree
        self._log = Path(order.attempt) / "agent.log"
        self._output = Path(order.attempt) / "transcript.jsonl" if launch.transcript else self._log
        self._errors = Path(order.attempt) / "errors.log" if launch.transcript else self._log
        self._notes_bytes = 0
        self._reader: Reader = drivers.of(order.driver).reader(order)
        self._sensor = Sensor(
            self._reader,
            self._output,
            worktree,
            understood=launch.transcript,
            memory_bytes=order.memory_bytes,
            tell=self._note,
        )
        self._finished_at: float | None = None

    async def run(self) -> Said:
        running = asyncio.create_task(self._process())
        early, stopped = None, False
        try:
            early = await self._attend(running)
        except asyncio.CancelledError:
            stopped = True
        try:
            await _finish(running)
        except asyncio.CancelledError:
            stopped = True
        self._sensor.finish()
        self._note_complaints()
        if not running.cancelled():
            return self._conclude(running.result())
        return self._ended_early(early, stopped=stopped)

    async def _attend(self, running: asyncio.Task[Exit]) -> Said | None:
        """Return when the command has ended or is to be ended; not None: how that is to be recorded."""
        pause_s = _SOON_S
        while True:
            await asyncio.wait({running}, timeout=pause_s)
            pause_s = min(pause_s * 1.5, _LOOK_S)
            if running.done():
                return None
            doomed = self._look()
            if doomed is not None or self._outstays():
                return doomed

    async def _process(self) -> Exit:
        order = self._order
        return await process.run(
            self._launch.argv,
            cwd=self._worktree,
            env=_environment(order, self._launch),
            contained=True,
            before_stop=self._give_up_key if order.gateway else None,
            errors=self._errors if self._launch.transcript else None,
            exclusive=True,
            limits=process.Limits(
                timeout_s=order.timeout_s,
                grace_s=order.grace_s,
                memory_bytes=order.memory_bytes,
                output_bytes=OUTPUT_BYTES,
            ),
            output=self._output,
            pass_fds=(self._claim.lock_fd,),
            stdin=self._launch.stdin if self._launch.stdin is not None else Path(order.brief),
        )

    async def _give_up_key(self) -> None:
        """First: who takes its time to die spends nothing meanwhile. Without a daemon there is nobody to spend through."""
        with suppress(OSError, TimeoutError):
            await webhook.post(f"{self._order.gateway}/end", {}, _KEY_S, key=self._order.key)

    def _look(self) -> Said | None:
        """Pass on what is seen; not None: going on is pointless."""
        vitals = self._sensor.look()
        glimpse = self._reader.glimpse()
        note = glimpse.note if self._launch.transcript else last_line(self._log)
        if not self._claim.lost.is_set():
            with suppress(OSError, StaleGeneration):  # the heartbeat's own thread sees the same and decides
                self._claim.progress(note, vitals=vitals.to_json())
        return self._reader.doom(time.time())

    def _note(self, text: str) -> None:
        """A line for people, where the output of other agents is as well."""
        line = f"{time.strftime('%H:%M:%S')} {text}\n".encode(errors="replace")
        self._notes_bytes += len(line)
        if self._notes_bytes > _NOTES_BYTES:
            return
        with suppress(OSError, ValueError), ExitStack() as stack:
            os.write(open_sink(stack, self._log), line)

    def _note_complaints(self) -> None:
        if self._launch.transcript:
            for line in sighting.last_lines(self._errors).splitlines():
                self._note(line)

    def _outstays(self) -> bool:
        """It has said its last word and runs on for longer than it may."""
        if self._reader.glimpse().doing is not Doing.FINISHED:
            self._finished_at = None
            return False
        now = time.monotonic()
        self._finished_at = self._finished_at if self._finished_at is not None else now
        return now - self._finished_at >= self._order.finish_s

    def _ended_early(self, early: Said | None, *, stopped: bool) -> Said:
        """Ended by us. What it had said before that stands; else it was stopped from outside."""
        clean = not process_table.lock_holders(self._claim.lock_path)
        if early is not None:
            return replace(early, clean=clean)
        known = self._reader.conclude(Ended(code=0, now=time.time()))
        if stopped and self._reader.glimpse().doing is not Doing.FINISHED:
            known = replace(known, outcome=Outcome.STOPPED, reason="stopped", summary="")
        return replace(known, clean=clean)

    def _conclude(self, ended: Exit) -> Said:
        facts = Ended(
            code=ended.code,
            last=last_line(self._errors),
            log=sighting.last_lines(self._errors),
            memory_exceeded=ended.memory_exceeded,
            now=time.time(),
            output_exceeded=ended.output_exceeded,
            signal=ended.signal,
            spawn_error=ended.spawn_error,
            timed_out=ended.timed_out,
        )
        said = driver.limit_of(facts, self._order, output_bytes=OUTPUT_BYTES)
        if said is None:
            said = self._reader.conclude(facts)
        else:
            known = self._reader.conclude(facts)
            said = replace(said, cost_usd=known.cost_usd, session=known.session, turns=known.turns)
        return replace(said, clean=ended.clean, exit_code=ended.code)


async def _finish(running: asyncio.Task[Exit]) -> None:
    """End it and wait for its end. When we are cancelled ourselves, it ends first, with less grace."""
    cancelled = False
    running.cancel()
    while not running.done():
        try:
            await asyncio.wait({running})
        except asyncio.CancelledError:
            cancelled = True
            running.cancel()
    if cancelled:
        raise asyncio.CancelledError


def _write_files(order: Order, launch: Launch) -> None:
    """What the program finds in its home; a home is private to the task."""
    if order.home:
        Path(order.home).mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, text in launch.files:
        path = Path(order.home) / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock.write_atomic(path, text.encode())


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


def _environment(order: Order, launch: Launch) -> dict[str, str]:
    env = command_environment(order, os.environ)
    return {name: value for name, value in env.items() if name not in launch.drop} | dict(launch.env)


def command_environment(order: Order, environment: Mapping[str, str]) -> dict[str, str]:
    """All that the command may see: the least of ours, what its card and its task name, and where it is."""
    names = (*PASSED_ON, *order.env_names)
    env = {name: environment[name] for name in names if name in environment}
    env |= dict(order.env)
    return env | {
        "COORDINATOR_ATTEMPT": order.attempt,
        "COORDINATOR_BRIEF": order.brief,
        "COORDINATOR_GENERATION": str(order.generation),
        "COORDINATOR_MODEL": order.model,
        "COORDINATOR_PYTHON": sys.executable,
        "COORDINATOR_ROLE": order.role,
        "COORDINATOR_TASK": order.task,
        "COORDINATOR_WORKTREE": order.worktree,
        "GIT_TERMINAL_PROMPT": "0",
    }


def last_line(path: Path) -> str:
    """The last line that says something, fit for a screen."""
    lines = [line.strip() for line in sighting.last_lines(path).splitlines()]
    last = next((line for line in reversed(lines) if line), "")
    return "".join(sign for sign in last if sign.isprintable())[:300]
