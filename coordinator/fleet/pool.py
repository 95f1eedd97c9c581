"""The agent processes of one daemon: starts them, finds those of an earlier daemon again, sees them end, stops them.

Owns one invariant: no process is signalled unless it is proven to be the one that is meant, and an attempt is stopped
through what it holds, so that an agent which has moved on keeps its new work. Who shall work on what is the steward's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import coordinator
from coordinator.domain.event import AgentExited, AgentStarted, Noticed
from coordinator.fleet.muster import STOP_FILE, read_entry, read_muster
from coordinator.kit import lock, process, process_table
from coordinator.kit.process_table import Member
from coordinator.kit.spawned import Spawned, exited
from coordinator.policy.ramp import Ramp

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from coordinator.domain.attempt import ClaimRecord
    from coordinator.fleet.muster import MusterEntry
    from coordinator.kit.bus import Bus
    from coordinator.kit.clock import Clock
    from coordinator.sdk.layout import Layout

_log = logging.getLogger(__name__)

_CHECK_S: Final = 0.05
_FIRST_PAUSE_S: Final = 0.5
_LARGEST_LOG_BYTES: Final = 5 * 1024 * 1024
_LONGEST_PAUSE_S: Final = 30.0
_QUICK_DEATH_S: Final = 5.0
_AT_ONCE: Final = 2
"""Starts that do not wait for each other: a replacement for an agent that died comes at once, and so does a small fleet."""
_SWEEP_GRACE_S: Final = 1.0
_STOP_PATIENCE_S: Final = 5.0
"""What a runner gets beyond the command's grace to see the stop file, write its result and let go."""
_TURN_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentView:
    """One agent process; ``since_s`` is how long it has been at its task, or without one."""

    adopted: bool
    generation: int | None
    name: str
    pid: int
    since_s: float
    task: str | None


@dataclass(slots=True, kw_only=True, eq=False)
class _Hand:
    began: float
    enrolled: bool = False
    member: Member
    name: str
    spawned: Spawned | None = None
    told_to_drain: bool = False
    watcher: asyncio.Task[None] | None = None


class AgentPool:
    """A service. Stopping it leaves the agents at work: they outlive the daemon unless ``drain`` or ``stop_now`` ran."""

    name = "pool"

    def __init__(
        self,
        layout: Layout,
        bus: Bus,
        clock: Clock,
        *,
        hidden: Collection[str] = (),
        idle_exit_s: float = 10.0,
        python: str = sys.executable,
        ramp_s: float = 0.0,
    ) -> None:
        """``hidden`` are variables that no agent process gets. ``ramp_s``: beyond the first two, agent processes are started at
        least so far apart."""
        self._bus = bus
        self._changed = asyncio.Event()
        self._clock = clock
        self._closed = False
        self._hidden = frozenset(hidden)
        self._hands: dict[Member, _Hand] = {}
        self.idle_exit_s = idle_exit_s
        self._layout = layout
        self._not_before = 0.0
        self._pause_s = 0.0
        self._python = python
        self._ramp = Ramp(at_once=_AT_ONCE, every_s=ramp_s)
        self._wanted = 0

    # -- the service ---------------------------------------------------------------------------------------------

    async def run(self, stopping: asyncio.Event) -> None:
        """Keep as many agents as are wanted; look again on every change and once a second."""
        stopper = asyncio.create_task(self._wake_on(stopping))
        try:
            while not stopping.is_set():
                self._changed.clear()
                self._reconcile()
                pause_s = min(self._ramp.wait_s(self._clock.monotonic()) or _TURN_S, _TURN_S)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), pause_s)
            await self._let_live()
        finally:
            stopper.cancel()

    def want(self, count: int) -> None:
        """How many agents there shall be. Fewer than there are: the surplus ends by itself when it finds nothing to do."""
        if count != self._wanted:
            self._wanted = count
            self._changed.set()

    def adopt(self) -> int:
        """Take on the living agents on the roll that are not ours yet; how many there were."""
        found = 0
        for name, entry in read_muster(self._layout).items():
            member = Member(entry.pid, entry.started)
            if member not in self._hands:
                self._take_on(_Hand(began=self._clock.monotonic(), member=member, name=name), adopted=True)
                found += 1
        return found

    def agents(self) -> tuple[AgentView, ...]:
        """Every living agent process of ours, by name."""
        return tuple(self._view(hand) for hand in sorted(self._hands.values(), key=lambda hand: hand.name))

    # -- the end -------------------------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Start no more; tell all to finish what they do; return when the last has ended. May be called again."""
        self._closed = True
        for hand in tuple(self._hands.values()):
            entry = self._entry(hand)
            if not hand.told_to_drain and not (entry and entry.draining):  # a second SIGTERM would cut its work off
                hand.told_to_drain = True
                process_table.send(hand.member, signal.SIGTERM)
        await self._all_gone()

    async def stop_now(self, grace_s: float = 15.0) -> None:
        """Start no more; stop every command and agent. What has not let go after ``grace_s`` is killed with its tree."""
        self._closed = True
        for hand in tuple(self._hands.values()):
            process_table.send(hand.member, signal.SIGINT)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._all_gone(), grace_s)
        for hand in tuple(self._hands.values()):
            entry = self._entry(hand)
            tag = self._tag(entry.task, entry.generation) if entry and entry.task and entry.generation else None
            await process.stop_tree(hand.member.pid, hand.member.started, 0.0, tag)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._all_gone(), _STOP_PATIENCE_S)

    async def stop_holder(
        self, record: ClaimRecord, grace_s: float, reason: str = "stopped by the coordinator"
    ) -> None:
        """End the attempt on record, whoever holds its claim; return when the claim is free or nothing more can be done.

        A runner of ours is asked by a file, so that it stops this attempt and no other, and lives on. Other agents get
        SIGTERM. After the grace what is left dies: the holder's tree, what carries the attempt's mark, and who has the lock.
        """
        entry = next((one for one in read_muster(self._layout).values() if one.pid == record.pid), None)
        if self._over(record):
            return
        if entry is not None and entry.started == record.started:
            folder = self._layout.attempt(record.task, record.generation)
            with contextlib.suppress(OSError):
                lock.write_atomic(folder / STOP_FILE, f"{reason}\n".encode())
            await self._until(lambda: self._over(record), grace_s + _STOP_PATIENCE_S)
        elif record.state == "held" and self._is_here(record):
            tag = self._tag(record.task, record.generation)
            await process.stop_tree(record.pid, record.started, grace_s, tag)
        if not self._over(record):
            await self._kill_holder(record)

    async def _kill_holder(self, record: ClaimRecord) -> None:
        """Last resort. The holder is frozen before its claim is read again: a frozen one cannot move on to other work."""
        tag = self._tag(record.task, record.generation)
        holder = Member(record.pid, record.started)
        _log.warning("killing %s", record.holder, extra={"action": "holder_killed", "task": record.task})
        if self._is_here(record) and process_table.send(holder, signal.SIGSTOP):
            if self._claims_still(record):
                await process.stop_tree(record.pid, record.started, 0.0, tag)
            else:
                process_table.send(holder, signal.SIGCONT)
        await process.stop_tagged(tag, 0.0)
        for member in process_table.lock_holders(self._layout.claim_lock(record.task)):
            if not self._over(record) and member != holder:
                await process.stop_tree(member.pid, member.started, 0.0)

    async def sweep_attempt(self, task: str, generation: int) -> None:
        """End what still carries the mark of an attempt that is over (its runner was killed, say)."""
        await process.stop_tagged(self._tag(task, generation), _SWEEP_GRACE_S)

    def _over(self, record: ClaimRecord) -> bool:
        """The claim is free, or a later generation's."""
        if not lock.is_held(self._layout.claim_lock(record.task)):
            return True
        now = lock.read_record(self._layout.claim_record(record.task))
        return now is not None and now.generation != record.generation

    def _claims_still(self, record: ClaimRecord) -> bool:
        now = lock.read_record(self._layout.claim_record(record.task))
        return not self._over(record) and (now is None or now.state == "held")

    @staticmethod
    def _is_here(record: ClaimRecord) -> bool:
        return lock.same_process_alive(record.pid, record.started, record.boot, record.host)

    def _tag(self, task: str, generation: int) -> str:
        return f"COORDINATOR_ATTEMPT={self._layout.attempt(task, generation)}"

    # -- hands ---------------------------------------------------------------------------------------------------

    def _reconcile(self) -> None:
        self.adopt()
        missing = self._wanted - self._working()
        while not self._closed and missing > 0 and (now := self._clock.monotonic()) >= self._not_before:
            if self._ramp.wait_s(now) > 0:
                return
            self._ramp = self._ramp.after_start(now)
            self._start()
            missing -= 1

    def _working(self) -> int:
        working = 0
        for hand in self._hands.values():
            entry = self._entry(hand)
            hand.enrolled = hand.enrolled or entry is not None
            working += not (entry and entry.draining)
        return working

    def _start(self) -> None:
        taken = {hand.name for hand in self._hands.values()}
        numbers = range(1, len(taken) + 1000)
        name = next(name for number in numbers if not self._is_taken(name := f"agent-{number}", taken))
        try:
            spawned = self._spawn(name)
        except OSError as error:
            self._back_off(f"cannot start an agent process: {error}")
            return
        hand = _Hand(began=self._clock.monotonic(), member=spawned.member, name=name, spawned=spawned)
        self._take_on(hand, adopted=False)

    def _is_taken(self, name: str, taken: set[str]) -> bool:
        return name in taken or lock.is_held(self._layout.agents / f"{name}.lock")

    def _spawn(self, name: str) -> Spawned:
        self._layout.agents.mkdir(parents=True, exist_ok=True)
        path = self._layout.agents / f"{name}.log"
        with contextlib.suppress(FileNotFoundError):
            if path.lstat().st_size > _LARGEST_LOG_BYTES:
                path.replace(path.with_suffix(".log.1"))
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        log = os.open(path, flags, 0o600)
        layout = self._layout
        where = ("--state", str(layout.state), "--repository", str(layout.repository), "--name", name)
        how = ("--idle-exit", f"{self.idle_exit_s:g}")  # told, so that it need not read the settings
        try:
            # -P and cwd "/": no file of the user's repository is taken for a module of ours
            command = (self._python, "-P", "-m", "coordinator", "agent", *where, *how)
            return Spawned.start(command, cwd=Path("/"), env=_environment(self._hidden), output=(log,))
        finally:
            os.close(log)

    def _take_on(self, hand: _Hand, *, adopted: bool) -> None:
        self._hands[hand.member] = hand
        hand.watcher = asyncio.create_task(self._watch(hand), name=f"watch {hand.name}")
        self._bus.publish(AgentStarted(agent=hand.name, pid=hand.member.pid, adopted=adopted))

    async def _watch(self, hand: _Hand) -> None:
        await exited(hand.member)
        enrolled = hand.enrolled or self._entry(hand) is not None  # its line stays on the roll when it was killed
        code = hand.spawned.reap() if hand.spawned else None
        self._hands.pop(hand.member, None)
        lived_s = self._clock.monotonic() - hand.began
        was_killed = enrolled and code is not None and code < 0
        if hand.spawned is None or lived_s >= _QUICK_DEATH_S or (code == 0 and lived_s >= _TURN_S):
            self._pause_s = 0.0
        elif not self._closed and not was_killed:  # one that was at work and was killed says nothing about the others
            log = self._layout.agents / f"{hand.name}.log"
            self._back_off(f"{hand.name} ended with code {code} after {lived_s:.1f} s; its output is in {log}")
        self._bus.publish(AgentExited(agent=hand.name, pid=hand.member.pid, exit_code=code))
        self._changed.set()

    def _back_off(self, reason: str) -> None:
        """An agent that cannot live is not started again at once; the first time, people are told."""
        if not self._pause_s:
            self._bus.publish(Noticed(subject="agents", message=reason))
        _log.warning("%s", reason, extra={"action": "agent_back_off"})
        self._pause_s = min(max(self._pause_s * 2, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
        self._not_before = self._clock.monotonic() + self._pause_s

    def _view(self, hand: _Hand) -> AgentView:
        entry = self._entry(hand)
        since = entry.since if entry else hand.began
        return AgentView(
            adopted=hand.spawned is None,
            generation=entry.generation if entry else None,
            name=hand.name,
            pid=hand.member.pid,
            since_s=max(0.0, self._clock.monotonic() - since),
            task=entry.task if entry else None,
        )

    def _entry(self, hand: _Hand) -> MusterEntry | None:
        entry = read_entry(self._layout.agents / f"{hand.name}.json")
        return entry if entry and (entry.pid, entry.started) == (hand.member.pid, hand.member.started) else None

    # -- waiting -------------------------------------------------------------------------------------------------

    async def _wake_on(self, stopping: asyncio.Event) -> None:
        await stopping.wait()
        self._changed.set()

    async def _all_gone(self) -> None:
        while watchers := [hand.watcher for hand in self._hands.values() if hand.watcher]:
            await asyncio.wait(watchers)

    async def _until(self, condition: Callable[[], bool], patience_s: float) -> None:
        deadline = self._clock.monotonic() + patience_s
        while not condition() and self._clock.monotonic() < deadline:
            await self._clock.sleep(_CHECK_S)

    async def _let_live(self) -> None:
        """The daemon goes; the agents stay."""
        hands = tuple(self._hands.values())
        self._hands.clear()
        for hand in hands:
            if hand.watcher:
                hand.watcher.cancel()
            if hand.spawned:
                hand.spawned.detach()
        await asyncio.gather(*(hand.watcher for hand in hands if hand.watcher), return_exceptions=True)


def _environment(hidden: Collection[str]) -> dict[str, str]:
    """The daemon's own, for role cards may let any of it through; without what would point git at one repository, and
    without ``hidden``: what a runner has, its agent can read.

    A source checkout that is not installed is put on the path, as whoever started the daemon must have done.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    kept = {name: value for name, value in kept.items() if name not in hidden}
    home = Path(coordinator.__file__).resolve().parent.parent
    if home.name not in {"site-packages", "dist-packages"}:
        kept["PYTHONPATH"] = os.pathsep.join(filter(None, (str(home), kept.get("PYTHONPATH", ""))))
    return kept
