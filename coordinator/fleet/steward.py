"""The steward: carries tasks from the spool to the target branch; with its helpers in the room (intake, settling,
recovery) the only one who moves a task from state to state, always through the ledger.

Owns one invariant: whatever it does next follows from files, locks, git and the ledger, so that it may be killed at any
line. It decides nothing itself: ``policy`` does; it touches nothing itself: ``kit`` and its neighbours in the room do.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coordinator.domain.attempt import Ending
from coordinator.domain.task import ACTIVE, OWNED, TaskState, check_wish
from coordinator.fleet import operate, sighting
from coordinator.fleet.vigil import limits_of
from coordinator.kit import files, lock
from coordinator.policy.health import HealthState

if TYPE_CHECKING:
    from coordinator.domain.attempt import ClaimRecord
    from coordinator.domain.candidate import Candidate, Settlement
    from coordinator.domain.settings import Settings
    from coordinator.fleet.collector import Collector
    from coordinator.fleet.dispatcher import Dispatcher
    from coordinator.fleet.intake import Intake
    from coordinator.fleet.lander import Lander
    from coordinator.fleet.ledger import Ledger, LedgerEntry
    from coordinator.fleet.model_access import ModelAccess
    from coordinator.fleet.pool import AgentPool
    from coordinator.fleet.ready import ReadyBoard
    from coordinator.fleet.settling import Settling
    from coordinator.fleet.vigil import Vigil
    from coordinator.kit.clock import Clock
    from coordinator.sdk.layout import Layout

_log = logging.getLogger(__name__)

_TURN_S = 0.5  # longest pause between two looks while anything is at work: locks of dead agents make no noise
_IDLE_TURN_S = 30.0
_SHORTAGE_S = 5.0
"""Pause before what an attempt left is gathered again, when the disk was too full for it. No new attempt starts meanwhile."""
_DOUBT_S = 0.1  # between two looks at an attempt whose process seems to be gone
_LETTING_GO_S = 0.02
"""Pause when a record says released while its lock is still held: it is let go in a moment, without a sound."""


_Key = tuple[str, int]
"""One attempt: a stop or a collection of one generation never touches the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stop:
    """An attempt that is being ended from outside, and how that is to be recorded; not if it ``finished`` and left work."""

    ending: Ending
    finished: bool = False
    reason: str
    task: asyncio.Task[None]


def _key(entry: LedgerEntry) -> _Key:
    return entry.task.id, entry.generation


class Steward:
    """A service; everything it needs is given to it."""

    draining = False
    name = "steward"
    turned_at = 0.0
    """When it last went round, on the monotonic clock."""
    _letting_go = False

    def __init__(
        self,
        *,
        access: ModelAccess,
        board: ReadyBoard,
        clock: Clock,
        collector: Collector,
        dispatcher: Dispatcher,
        intake: Intake,
        lander: Lander,
        layout: Layout,
        ledger: Ledger,
        pool: AgentPool,
        settings: Settings,
        settling: Settling,
        vigil: Vigil,
    ) -> None:
        self._access = access
        self._board = board
        self._clock = clock
        self._collector = collector
        self._dispatcher = dispatcher
        self._intake = intake
        self._lander = lander
        self._layout = layout
        self._ledger = ledger
        self._pool = pool
        self._settings = settings
        self._settling = settling
        self.vigil = vigil
        self._collecting: dict[_Key, asyncio.Task[None]] = {}
        self._stops: dict[_Key, _Stop] = {}
        self._wake = asyncio.Event()

    # -- the service ---------------------------------------------------------------------------------------------

    async def run(self, stopping: asyncio.Event) -> None:
        """Turn until told to stop; a turn is safe to repeat and safe to be cut off."""
        self.turned_at = self._clock.monotonic()
        watcher = asyncio.create_task(self._watch_claims(stopping))
        stopper = asyncio.create_task(self._wake_on(stopping))
        try:
            while not stopping.is_set():
                self._wake.clear()
                await self._turn()
                self.turned_at = self._clock.monotonic()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), self._pause_s())
        finally:
            tasks = (watcher, stopper, *self._collecting.values(), *(stop.task for stop in self._stops.values()))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._collecting.clear()
            self._stops.clear()

    def wake(self) -> None:
        """Something changed; take a turn soon."""
        self._wake.set()

    def recheck_blocked(self) -> None:
        """Look again at what stands in the way of blocked tasks: a program may have been installed meanwhile."""
        if self._ledger.count(TaskState.BLOCKED):
            self._intake.dependencies_changed()
            self.wake()

    def drain(self) -> None:
        """Start nothing new; what is at work goes on."""
        self.draining = True
        for entry in self._ledger.in_state(TaskState.READY):
            self._dispatcher.withdraw(entry, "draining: nothing new is started")
        self.wake()

    def refusal(self) -> str:
        """Why nothing is started at present; empty when nothing stands in the way."""
        return self._dispatcher.refusal

    def agents_at_work(self) -> int:
        """How many attempts are under way or being collected."""
        return self._ledger.count(*OWNED) + len(self._collecting)

    def at_work(self) -> int:
        """How many tasks are between claim and landing."""
        return self._ledger.count(*(ACTIVE - {TaskState.READY})) + len(self._collecting)

    def idle(self) -> bool:
        """Nothing is at work and nothing could be without a person, a new file or an agent from outside."""
        if self.at_work() or self._intake.behind:
            return False
        if any(not self._intake.external(entry) for entry in self._ledger.in_state(TaskState.READY)):
            return False
        now = self._clock.now().timestamp()
        pending = self._ledger.in_state(TaskState.PENDING)
        return all(self._dispatcher.is_hopeless(one) or (one.task.schedule and one.not_before > now) for one in pending)

    async def _turn(self) -> None:
        self._reap()
        await self._intake.fold(self._drop, self._dispatcher.withdraw)
        self.vigil.turn()
        self._see_claims()
        self._intake.recheck_dependencies()
        if not self.draining:
            await self._dispatcher.turn()
        self._pool.want(self._dispatcher.hands_wanted())

    def _reap(self) -> None:
        """Take note of collections that are over; one that failed is the service's failure, and tried again after it."""
        for key in [key for key, task in self._collecting.items() if task.done()]:
            self._collecting.pop(key).result()
        for stop in self._stops.values():
            if stop.task.done():
                stop.task.result()

    def _pause_s(self) -> float:
        if self._letting_go:
            return _LETTING_GO_S
        if self.vigil.doubts:
            return _DOUBT_S
        if self._ledger.count(*OWNED, TaskState.READY) or self._intake.behind:
            return _TURN_S
        if self._dispatcher.wake_at is None:
            return _IDLE_TURN_S
        return min(max(self._dispatcher.wake_at - self._clock.now().timestamp(), 0.01), _IDLE_TURN_S)

    async def _wake_on(self, stopping: asyncio.Event) -> None:
        await stopping.wait()
        self.wake()

    async def _watch_claims(self, stopping: asyncio.Event) -> None:
        self._layout.claims.mkdir(parents=True, exist_ok=True)
        async for _ in files.watch([self._layout.claims], stopping):
            self.wake()

    # -- claims --------------------------------------------------------------------------------------------------

    def _see_claims(self) -> None:
        self._letting_go = False
        for entry in self._ledger.in_state(TaskState.READY):
            record = sighting.look(self._layout, entry.task.id, entry.generation).record
            if record is not None and record.generation == entry.generation:
                self._board.clear(entry.task.id)
                self._note_claim(entry, record)
            elif entry.cancel:
                self._drop(entry, entry.cancel)
            else:
                self._dispatcher.mend(entry)
        for entry in self._ledger.in_state(*OWNED):
            if _key(entry) not in self._collecting:
                self._see_attempt(entry)

    def _note_claim(self, entry: LedgerEntry, record: ClaimRecord) -> None:
        self._ledger.record(
            entry.task.id,
            entry.generation,
            role=self._intake.role_of(entry.task),
            agent=record.agent,
            pid=record.pid,
            host=record.host,
            claimed_at=self._clock.now().isoformat(),
        )
        self._ledger.move(entry.task.id, TaskState.CLAIMED, f"claimed by {record.agent} (pid {record.pid})")

    def _see_attempt(self, entry: LedgerEntry) -> None:
        task_id = entry.task.id
        seen = sighting.look(self._layout, task_id, entry.generation)
        if not seen.held and not self._lives_on(entry, seen.record):
            self.vigil.forget(_key(entry))
            work = asyncio.create_task(self._collect(entry, seen.record))
            work.add_done_callback(lambda _: self.wake())
            self._collecting[_key(entry)] = work
            return
        if seen.record is not None and seen.record.state == "released":
            self._letting_go = True
        if entry.state is TaskState.CLAIMED and seen.doing == "running":
            holder = seen.record.agent if seen.record else "an agent"
            self._ledger.move(task_id, TaskState.RUNNING, f"{holder} is at work on it")
        if entry.cancel and seen.record is not None and _key(entry) not in self._stops:
            self._stop(entry, seen.record, Ending.CANCELLED, entry.cancel)
        self._dispatcher.note_vitals(entry, seen.vitals)
        found = self.vigil.judge(_key(entry), seen, limits_of(entry.task, self._intake, self._settings.fleet))
        if found.condemned and seen.record is not None and _key(entry) not in self._stops:
            self._stop(entry, seen.record, found.condemned, found.reason, found.state)

    def _lives_on(self, entry: LedgerEntry, record: ClaimRecord | None) -> bool:
        """The lock is free, but its owner neither said that it let go nor died: a command must have undone the lock.

        Its heartbeat is still watched; once it was stopped, or has left a result, there is nothing to wait for.
        """
        if record is None or record.generation != entry.generation or record.state == "released":
            return False
        stop = self._stops.get(_key(entry))
        if stop is not None and stop.task.done():
            return False
        if sighting.read_result(self._layout, entry.task.id, entry.generation) is not None:
            return False
        return lock.same_process_alive(record.pid, record.started, record.boot, record.host)

    def _stop(self, entry: LedgerEntry, record: ClaimRecord, ending: Ending, reason: str, state: str = "") -> None:
        """End an attempt from outside; it is collected when its lock is free, that is when it is dead."""
        extra = {"action": "attempt_stopped", "task": entry.task.id, "reason": reason}
        _log.warning("stopping an attempt", extra=extra)
        self._access.revoke(*_key(entry))
        task = asyncio.create_task(self._pool.stop_holder(record, self._settings.fleet.grace_s, reason))
        task.add_done_callback(lambda _: self.wake())
        finished = state == HealthState.FINISHED_BUT_ALIVE
        self._stops[_key(entry)] = _Stop(ending=ending, finished=finished, reason=reason, task=task)

    # -- what an attempt left ------------------------------------------------------------------------------------

    async def _collect(self, entry: LedgerEntry, record: ClaimRecord | None) -> None:
        key = task_id, generation = _key(entry)
        if sighting.read_result(self._layout, task_id, generation) is None:
            await self._pool.sweep_attempt(task_id, generation)
        left = await self._collector.gather(entry, record.agent if record is not None else "")
        if left.later:
            await self._clock.sleep(_SHORTAGE_S)
            return
        more_in_s = self._access.conclude(task_id, generation)
        stop = self._stops.pop(key, None)
        current = self._ledger.get(task_id)
        if current.generation != generation or current.state not in OWNED:
            return
        if current.cancel:
            self._settling.ended(current, Ending.CANCELLED, current.cancel)
        elif stop is not None and not (stop.finished and left.candidate is not None):
            ending = self._dispatcher.note_ending(current, stop.ending, stop.reason)
            self._settling.ended(current, ending, stop.reason, left)
        elif left.candidate is not None:
            self._dispatcher.note_success(current)
            if current.state is TaskState.CLAIMED:  # it was over before anybody looked
                self._ledger.move(task_id, TaskState.RUNNING, "was at work on it")
            self._ledger.move(task_id, TaskState.VALIDATING, "waits for the gate")
            self._lander.submit(left.candidate)
        else:
            retry_at = left.retry_at or (more_in_s and self._clock.now().timestamp() + more_in_s)
            ending = self._dispatcher.note_ending(current, left.ending or Ending.CRASHED, left.reason, retry_at)
            self._settling.ended(current, ending, left.reason, left)

    def resubmit(self, candidate: Candidate) -> None:
        """After a restart: an attempt that was collected before waits for the gate again."""
        self._lander.submit(candidate)

    # -- what the lander says ------------------------------------------------------------------------------------

    def superseded(self, candidate: Candidate) -> str:
        """The fence of landing: why this attempt may not land (any more), with the newer owner's name; empty: it may."""
        task_id, generation = candidate.task.id, candidate.generation
        entry = self._ledger.find(task_id)
        if entry is None:
            return f"task {task_id} is not in the ledger"
        record = sighting.look(self._layout, task_id, entry.generation).record
        newest = max(entry.generation, record.generation if record is not None else 0)
        if newest > generation:
            owner = (
                f"now it is {record.holder}" if record is not None and record.generation == newest else "it was retried"
            )
            return f"generation {generation} of {task_id} is over: {owner}"
        if entry.state not in (TaskState.VALIDATING, TaskState.LANDING):
            return f"task {task_id} is {entry.state} and waits for no landing"
        return ""

    def on_stage(self, candidate: Candidate, state: TaskState) -> None:
        entry = self._ledger.get(candidate.task.id)
        if not self.superseded(candidate) and entry.state is not state:
            reason = "passed the gate, landing" if state is TaskState.LANDING else "waits for the gate"
            self._ledger.move(candidate.task.id, state, reason)

    def on_settled(self, settlement: Settlement) -> None:
        candidate = settlement.candidate
        entry = self._ledger.find(candidate.task.id)
        if entry is None:
            return
        if settlement.ending is Ending.LANDED:
            self._settling.landed(entry, settlement)
        elif self.superseded(candidate):
            self._settling.superseded(candidate, settlement.reason)
        else:
            self._settling.refused(entry, settlement)
        self.wake()

    # -- what people want ----------------------------------------------------------------------------------------

    def _drop(self, entry: LedgerEntry, reason: str) -> None:
        """Cancel a task in whatever state it is; one that an agent has is stopped first, in this turn or a later one."""
        task_id = entry.task.id
        if entry.state is TaskState.READY and self._dispatcher.withdraw(entry, reason):
            entry = self._ledger.get(task_id)
        if entry.state in OWNED or entry.state is TaskState.READY:
            self._ledger.note(task_id, cancel=reason)
            self.wake()
        elif entry.state in (TaskState.VALIDATING, TaskState.LANDING):
            self._lander.withdraw(task_id)
            self._settling.ended(entry, Ending.CANCELLED, reason)
        elif entry.state is not TaskState.CANCELLED:
            self._ledger.move(task_id, TaskState.CANCELLED, reason)
            self._intake.dependencies_changed()

    async def cancel(self, task_id: str, reason: str) -> None:
        """Stop it if it runs, and never start it again unless a person retries it."""
        self._drop(self._ledger.get(task_id), reason)
        self.wake()

    async def hold(self, task_id: str, reason: str) -> None:
        """Start no further attempt. One that is at work goes on and may land."""
        entry = self._ledger.get(task_id)
        check_wish(task_id, "hold", entry.state)
        if entry.state is TaskState.READY and self._dispatcher.withdraw(entry, reason):
            entry = self._ledger.get(task_id)
        if entry.state in ACTIVE:
            self._ledger.note(task_id, hold=True)
        else:
            self._ledger.move(task_id, TaskState.HELD, reason)

    async def release(self, task_id: str) -> None:
        """Undo a hold."""
        operate.release(self._ledger, task_id)
        self.wake()

    async def retry(self, task_id: str) -> None:
        """Run a settled task again from the start, with all its attempts; end the pause of one that waits."""
        operate.retry(self._ledger, task_id)
        self._intake.dependencies_changed()
        self.wake()
