"""From the spool to the ledger: new, edited and removed tasks, their roles and their dependencies.

Owns one invariant: what stands in the spool is what the ledger wants, and a task that cannot run says why. A file that
cannot be read takes nothing away. It never starts or stops anything; dropping a task at work is left to the steward.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from coordinator.domain.task import ACTIVE, SETTLED, TaskState
from coordinator.fleet import cards
from coordinator.fleet.ledger import FRESH
from coordinator.kit import lock, schedule
from coordinator.policy import retry
from coordinator.policy.dispatch import Waiting

if TYPE_CHECKING:
    from collections.abc import Callable

    from coordinator.domain.card import RoleCard
    from coordinator.domain.settings import Settings
    from coordinator.domain.task import Task
    from coordinator.fleet.ledger import Ledger, LedgerEntry
    from coordinator.kit.clock import Clock
    from coordinator.kit.store import Store
    from coordinator.policy.spool import SpoolState
    from coordinator.sdk.layout import Layout

_SLICE = 200
"""Tasks folded between two breaths of the event loop."""

_WANTING = frozenset({TaskState.PENDING, TaskState.BLOCKED})
_EDITED_AT_WORK = -1
"""Charged attempts of a task that was edited while one was under way: that one was for the old text and does not count."""

_EXTERNAL_OFFERS = 32
"""Tasks offered to (or at work with) agents from outside, per role whose card sets no ``concurrency``."""

_REMOVED = "its file was removed"
_OVER = "what it was for is gone"
"""Of a task that discovery wrote: another change mended its findings, and with them went its file."""


class Intake:
    """``on_news`` is called whenever a turn of the steward is due."""

    def __init__(
        self,
        layout: Layout,
        ledger: Ledger,
        store: Store,
        settings: Settings,
        clock: Clock,
        on_news: Callable[[], None],
    ) -> None:
        self._layout = layout
        self._ledger = ledger
        self._store = store
        self._settings = settings
        self._clock = clock
        self._on_news = on_news
        self._cards = cards.load(layout.repository / settings.paths.agents)
        self._news: SpoolState | None = None
        self._folding = False
        self._dirty = True
        self.landed: dict[str, str] = {}
        """Task id → commit of what is on the target; a task that is new to the ledger but stands here is completed."""

    @property
    def behind(self) -> bool:
        """Something of the spool is not in the ledger yet."""
        return self._news is not None or self._folding

    def take(self, state: SpoolState) -> None:
        """The spool's callback; the newest state replaces one that was not folded yet."""
        self._news = state
        self._on_news()

    def dependencies_changed(self) -> None:
        self._dirty = True

    async def fold(
        self, drop: Callable[[LedgerEntry, str], None], withdraw: Callable[[LedgerEntry, str], bool]
    ) -> None:
        """Bring the ledger up to the newest state of the spool, a slice at a time.

        ``drop`` cancels a task in whatever state it is, ``withdraw`` takes an offer back (False: it was claimed).
        """
        state, self._news = self._news, None
        if state is None:
            return
        self._folding = True
        try:
            self._cards = await asyncio.to_thread(cards.load, self._layout.repository / self._settings.paths.agents)
            tasks = list(state.tasks.values())
            for start in range(0, len(tasks), _SLICE):
                with self._ledger.batch():
                    for task in tasks[start : start + _SLICE]:
                        self._fold_task(task, withdraw)
                await asyncio.sleep(0)
            self._drop_removed(state, drop)
            self._keep_problems(state)
            self._dirty = True
        except BaseException:
            self._put_back(state)
            raise
        finally:
            self._folding = False

    def _put_back(self, state: SpoolState) -> None:
        """Fold it again later, unless something newer has come meanwhile."""
        if self._news is None:
            self._news = state

    def _fold_task(self, task: Task, withdraw: Callable[[LedgerEntry, str], bool]) -> None:
        entry = self._ledger.find(task.id)
        if entry is None:
            self._ledger.add(task, reason=f"new in {task.file}; waits for its turn", not_before=self._first_run(task))
            self._recognise(task)
            return
        if entry.task == task and entry.state is not TaskState.CANCELLED:
            return
        edited = entry.task.digest != task.digest
        if edited and entry.state is TaskState.READY and withdraw(entry, "edited; it is offered anew"):
            entry = self._ledger.get(task.id)
        self._ledger.note(task.id, task=task)
        if edited and entry.state in ACTIVE:
            self._ledger.note(task.id, attempts=_EDITED_AT_WORK)
        fresh = {**FRESH, "not_before": self._first_run(task)}
        if entry.state is TaskState.PENDING and entry.task.schedule != task.schedule:
            self._ledger.note(task.id, not_before=fresh["not_before"])
        if entry.state is TaskState.CANCELLED and (edited or entry.reason in (_REMOVED, _OVER)):
            self._ledger.move(task.id, TaskState.PENDING, f"back in {task.file}", **fresh)
        elif entry.state in (TaskState.FAILED, TaskState.REJECTED) and edited:
            self._ledger.move(task.id, TaskState.PENDING, f"edited in {task.file}", **fresh)

    def _recognise(self, task: Task) -> None:
        """A ledger that was lost: the task may have landed, or an agent may be at work on it."""
        commit = self.landed.get(task.id)
        if commit is not None and not task.schedule:
            self._ledger.move(task.id, TaskState.COMPLETED, f"landed earlier as {commit[:10]}", commit=commit)
            return
        record = lock.read_record(self._layout.claim_record(task.id))
        if record is None:
            return
        worktree = self._layout.worktree(task.id, record.generation)
        if lock.is_held(self._layout.claim_lock(task.id)) or worktree.is_dir():
            reason = f"claimed by {record.agent} before the ledger was lost"
            self._ledger.move(task.id, TaskState.READY, reason, generation=record.generation)
            self._ledger.move(task.id, TaskState.CLAIMED, reason)

    def _drop_removed(self, state: SpoolState, drop: Callable[[LedgerEntry, str], None]) -> None:
        """Only what is certainly gone: a file or folder that cannot be read takes nothing away."""
        wanted = {entry.task.id: entry.task.file for entry in self._ledger.entries() if entry.state not in SETTLED}
        for task_id in sorted(state.gone(wanted)):
            written_by_discovery = f"/{wanted[task_id]}".startswith(f"/{self._settings.paths.tasks}/auto/")
            drop(self._ledger.get(task_id), _OVER if written_by_discovery else _REMOVED)

    def _keep_problems(self, state: SpoolState) -> None:
        with self._ledger.batch():
            self._store.execute("problems_clear")
            for problem in state.problems:
                self._store.execute(
                    "problem_add",
                    file=problem.file,
                    line=problem.line,
                    key=problem.key,
                    message=problem.message,
                    expected=problem.expected,
                )

    def _first_run(self, task: Task) -> float:
        if not task.schedule:
            return 0.0
        return schedule.next_local_fire(task.schedule, self._clock.now()).timestamp()

    def next_run(self, task: Task) -> float:
        """Epoch seconds of a scheduled task's next run."""
        return self._first_run(task)

    # -- what a task needs -----------------------------------------------------------------------------------------

    def recheck_dependencies(self) -> None:
        """Block what cannot run, with the cause; unblock what can."""
        if not self._dirty:
            return
        self._dirty = False
        with self._ledger.batch():
            for entry in self._ledger.in_state(*_WANTING):
                cause = self._obstacle(entry.task)
                if cause and entry.state is TaskState.PENDING:
                    self._ledger.move(entry.task.id, TaskState.BLOCKED, cause)
                elif cause:
                    self._ledger.note(entry.task.id, reason=cause)
                elif entry.state is TaskState.BLOCKED:
                    self._ledger.move(entry.task.id, TaskState.PENDING, "nothing blocks it any more")

    def _obstacle(self, task: Task) -> str:
        for needed in task.depends_on:
            other = self._ledger.find(needed)
            if other is None:
                return f"depends on {needed}, which is not in the spool"
            if other.state is not TaskState.COMPLETED:
                return f"depends on {needed}, which is {other.state}"
        return self._cards.obstacle(self.role_of(task))

    def about_to_be_free(self, entry: LedgerEntry) -> bool:
        """Whether all that it still waits for is being judged or landed."""
        others = [self._ledger.find(needed) for needed in entry.task.depends_on]
        missing = [one.state if one is not None else None for one in others]
        missing = [state for state in missing if state is not TaskState.COMPLETED]
        return bool(missing) and all(state in (TaskState.VALIDATING, TaskState.LANDING) for state in missing)

    def role_of(self, task: Task) -> str:
        return task.role or self._settings.fleet.default_role

    def card_of(self, task: Task) -> RoleCard:
        """The card of a task that is not blocked."""
        return self._cards.cards[self.role_of(task)]

    def find_card(self, task: Task) -> RoleCard | None:
        """Its role's card; None while there is none."""
        return self._cards.cards.get(self.role_of(task))

    def external(self, entry: LedgerEntry) -> bool:
        """Whether only agents from outside can take it."""
        card = self._cards.cards.get(self.role_of(entry.task))
        return card is not None and card.external

    def role_paths(self, role: str) -> tuple[str, ...]:
        """What any task of a role may touch; empty: anything."""
        card = self._cards.cards.get(role or self._settings.fleet.default_role)
        return card.paths if card is not None else ()

    def roles(self) -> frozenset[str]:
        """Every role that has a card."""
        return frozenset(self._cards.cards)

    def external_roles(self) -> frozenset[str]:
        """Roles whose agents come from outside: they take none of our hands."""
        return frozenset(role for role, card in self._cards.cards.items() if card.external)

    def role_slots(self) -> dict[str, int]:
        """How many tasks of a role may be active at a time; roles that are not in it are capped by our hands."""
        cards_ = self._cards.cards.items()
        slots = {role: _EXTERNAL_OFFERS for role, card in cards_ if card.external}
        return slots | {role: card.concurrency for role, card in cards_ if card.concurrency}

    def timeout_s(self, task: Task) -> float:
        card = self._cards.cards.get(self.role_of(task))
        return task.timeout_s or (card.timeout_s if card is not None else 600.0)

    def waiting(self, entry: LedgerEntry) -> Waiting:
        """A task as ``policy.dispatch`` wants to see it."""
        card = self._cards.cards.get(self.role_of(entry.task))
        paths = entry.task.paths or (card.paths if card is not None else ())
        due = entry.not_before
        if not entry.task.schedule and due - self._clock.now().timestamp() > retry.LONGEST_PAUSE_S * 1.5:
            due = 0.0  # no pause is that long: the wall clock was set back
        return Waiting(id=entry.task.id, role=self.role_of(entry.task), paths=paths, not_before=due)

    def next_generation(self, entry: LedgerEntry) -> int:
        """One more than any generation that was ever claimed, even when the ledger was lost."""
        record = lock.read_record(self._layout.claim_record(entry.task.id))
        return max(entry.generation, record.generation if record is not None else 0) + 1
