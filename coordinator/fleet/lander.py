"""The line of width one in which finished work is judged and put on the target branch.

Owns one invariant: the target moves only by compare-and-swap from the commit that the judged stack was built upon, and
only to a commit that the gate passed. It decides nothing about the task afterwards: it settles a candidate and forgets it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from coordinator.domain.attempt import Ending
from coordinator.domain.candidate import Candidate, Settlement
from coordinator.domain.check import Verdict, VerdictKind
from coordinator.domain.errors import CoordinatorError
from coordinator.domain.event import GateBroke, GateMended
from coordinator.domain.task import TaskState
from coordinator.domain.worktree import AGENT_EMAIL, AGENT_NAME
from coordinator.fleet.parking import Parking
from coordinator.policy.bisect import Bisection
from coordinator.policy.change import check_change, name_some
from coordinator.policy.landing import commit_message, feedback_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from coordinator.domain.settings import Settings
    from coordinator.fleet.gate import Gate
    from coordinator.kit.bus import Bus
    from coordinator.kit.clock import Clock
    from coordinator.kit.git import Git

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """One candidate merged upon what is below it: ``commit`` has the layer below (or the target) as its parent."""

    candidate: Candidate
    commit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Word:
    """Of one stack: how many layers ``passed`` together and what the gate said then (``praise``), which one is to blame
    for the next not passing (``culprit``), and what it said last.
    """

    culprit: int | None = None
    last: Verdict
    passed: int = 0
    praise: Verdict | None = None


class Lander:
    """A service. ``on_settled`` is called exactly once for each candidate submitted, unless it is withdrawn before."""

    name = "lander"

    def __init__(
        self,
        git: Git,
        gate: Gate,
        settings: Settings,
        bus: Bus,
        clock: Clock,
        *,
        on_stage: Callable[[Candidate, TaskState], None],
        on_settled: Callable[[Settlement], None],
        superseded: Callable[[Candidate], str],
        role_paths: Callable[[str], tuple[str, ...]] = lambda _: (),
    ) -> None:
        self._bus = bus
        self._clock = clock
        self._gate = gate
        self._git = git
        self._on_settled = on_settled
        self._on_stage = on_stage
        self._role_paths = role_paths
        self._settings = settings
        self._superseded = superseded
        self._broken_since = 0.0
        self._moving_at = clock.monotonic()
        self._owed: list[Settlement] = []  # out of the line, and not told yet
        self._parking = Parking(clock, pause_s=settings.gate.retry_s)
        self._queue: dict[str, Candidate] = {}
        self._reason = ""
        self._retry_at = 0.0
        self._wake = asyncio.Event()
        self.batch, self.busy = settings.gate.batch, False

    # -- what others ask -----------------------------------------------------------------------------------------

    def submit(self, candidate: Candidate) -> None:
        """Take a candidate into the line; a newer one of the same task takes the older one's place."""
        self._parking.leave(candidate.task.id)
        self._queue[candidate.task.id] = candidate
        self._wake.set()

    def withdraw(self, task_id: str) -> bool:
        """Take it out again; unless it has landed, it will not be settled. False when it is not (or no longer) in the line."""
        self._parking.leave(task_id)
        self._owed = [one for one in self._owed if one.candidate.task.id != task_id or one.ending is Ending.LANDED]
        return self._queue.pop(task_id, None) is not None

    def waiting(self) -> tuple[Candidate, ...]:
        """All candidates in the line, those being judged and those parked included."""
        return tuple(self._queue.values())

    def parked(self) -> dict[str, str]:
        """Task id → why it alone cannot be judged; the others pass by."""
        return self._parking.reasons()

    def broken(self) -> str:
        """Why the whole line stands; empty when it moves."""
        return self._reason

    def broken_s(self) -> float:
        """How long the line has been standing, or nothing but parked candidates has been in it; else 0."""
        now = self._clock.monotonic()
        if self._reason:
            return now - self._broken_since
        if self._parking and not self._ready_ones():
            return now - max(self._moving_at, self._parking.since())
        return 0.0

    # -- the service ---------------------------------------------------------------------------------------------

    async def run(self, stopping: asyncio.Event) -> None:
        """Land what comes until told to stop; a judgement under way is cut off then, its candidates stay in the line."""
        self._pay()
        await self._gate.sweep()
        work = asyncio.create_task(self._work())
        stop = asyncio.create_task(stopping.wait())
        try:
            await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.busy = False
            for task in (stop, work):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def _work(self) -> None:
        while True:
            self._wake.clear()
            pause_s = self._pause_s()
            if pause_s is None or pause_s > 0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), pause_s)
                continue
            self.busy = True
            try:
                await self._round()
            except (CoordinatorError, OSError) as error:
                self._stop_line("git", " ".join(str(error).split()))
            finally:
                self.busy = False

    def _pause_s(self) -> float | None:
        """How long nothing can be done; None when only a new candidate changes that."""
        if self._reason:  # also with nobody in the line: dispatch waits for the line to move
            return max(self._retry_at - self._clock.monotonic(), 0.0)
        if not self._queue:
            return None
        if self._ready_ones():
            return 0.0
        return self._parking.next_s()

    def _ready_ones(self) -> list[Candidate]:
        return [candidate for task_id, candidate in self._queue.items() if not self._parking.is_waiting(task_id)]

    # -- one round: take, screen, stack, judge, land ---------------------------------------------------------------

    async def _round(self) -> None:
        self._pay()
        ref = f"refs/heads/{self._settings.land.target}"
        tip = await self._git.resolve(ref)
        obstacle = await self._obstacle(tip)
        if tip is None or obstacle:
            self._stop_line("target", obstacle)
            return
        batch = self._ready_ones()[: self.batch]
        taken = [candidate for candidate in batch if await self._screen(candidate)]
        stack = await self._stack(tip, taken)
        if not stack:
            self._mend()
            return
        for layer in stack:
            self._on_stage(layer.candidate, TaskState.VALIDATING)
        word = await self._judge(tip, stack)
        if word.last.kind is VerdictKind.BROKEN:
            self._hold_up(word.last)
            return
        self._mend()
        good = stack[: word.passed]
        for layer in good:
            self._unpark(layer.candidate)
        if word.praise is not None and good and not await self._land_whole(ref, tip, good, word.praise):
            return  # the target moved, or somebody dropped out: what was judged is not what would land
        if word.culprit is not None:
            self._refuse(stack[word.culprit].candidate, Ending.GATE_FAILED, word.last.reason, verdict=word.last)

    async def _obstacle(self, tip: str | None) -> str:
        target = self._settings.land.target
        if tip is None:
            return f"the branch {target} does not exist; it is made at the next start"
        where = await self._git.checked_out(target)
        return f"the branch {target} is checked out in {where}; switch to another branch there" if where else ""

    async def _screen(self, candidate: Candidate) -> bool:
        """Settle what need not be judged at all."""
        if not self._is_in_line(candidate):
            return False
        for commit in (candidate.base, candidate.commit):
            if await self._git.resolve(commit) is None:  # one candidate's loss must not stop everybody's line
                self._refuse(candidate, Ending.CRASHED, f"commit {commit[:10]} is not in the repository any more")
                return False
        changes = await self._git.changes(candidate.base, candidate.commit)
        refusal = check_change(changes, paths=candidate.task.paths, role_paths=self._role_paths(candidate.task.role))
        if refusal is None:
            return self._is_in_line(candidate)
        self._refuse(candidate, refusal.ending, refusal.reason, feedback=refusal.feedback)
        return False

    async def _stack(self, tip: str, candidates: Sequence[Candidate]) -> list[_Layer]:
        """Merge one upon the other. Who conflicts with the target is settled, who only with a neighbour waits a round."""
        layers: list[_Layer] = []
        top, top_tree = tip, await self._git.tree_of(tip)
        for candidate in candidates:
            merge = await self._git.merge(top, candidate.commit)
            if not merge.tree:
                alone = merge if top == tip else await self._git.merge(tip, candidate.commit)
                if not alone.tree:
                    self._conflict(candidate, alone.conflicts)
                continue
            if merge.tree == top_tree:
                if top == tip:
                    reason = f"{self._settings.land.target} already has this change"
                    self._refuse(candidate, Ending.EMPTY, reason)
                continue
            top, top_tree = await self._commit(candidate, merge.tree, top), merge.tree
            layers.append(_Layer(candidate=candidate, commit=top))
        return layers

    async def _marked(self, tip: str, layers: Sequence[_Layer], untested: str) -> list[_Layer]:
        """The same trees again, in commits that say that the project's tests did not run on them."""
        marked, parent = [], tip
        for layer in layers:
            tree = await self._git.tree_of(layer.commit)
            parent = await self._commit(layer.candidate, tree, parent, untested=untested)
            marked.append(replace(layer, commit=parent))
        return marked

    async def _commit(self, candidate: Candidate, tree: str, parent: str, *, untested: str = "") -> str:
        """The squash commit; the author is the agent when it committed, the committer is always ours."""
        land = self._settings.land
        ours = (land.author_name, land.author_email)
        author = (AGENT_NAME, AGENT_EMAIL) if candidate.message.strip() else ours
        message = commit_message(candidate, untested=untested)
        return await self._git.commit_tree(tree, [parent], message, author=author, committer=ours)

    async def _judge(self, tip: str, stack: Sequence[_Layer]) -> _Word:
        verdict, praise = await self._ask(tip, stack), None
        if verdict.kind is VerdictKind.BROKEN:
            return _Word(last=verdict)
        if verdict.kind is VerdictKind.PASSED:
            return _Word(last=verdict, passed=len(stack), praise=verdict)
        search = Bisection(bad=len(stack))
        while (count := search.probe) is not None:
            word = await self._ask(tip, stack[:count])
            if word.kind is VerdictKind.BROKEN:
                return _Word(last=word)
            search = search.told(count, passed=word.kind is VerdictKind.PASSED)
            praise, verdict = (word, verdict) if word.kind is VerdictKind.PASSED else (praise, word)
        return _Word(culprit=search.culprit, last=verdict, passed=search.good, praise=praise)

    async def _ask(self, tip: str, stack: Sequence[_Layer]) -> Verdict:
        return await self._gate.judge(tip, stack[-1].commit, [layer.candidate.task for layer in stack])

    async def _land_whole(self, ref: str, tip: str, layers: Sequence[_Layer], verdict: Verdict) -> bool:
        """Land under a shield: once the swap is asked for, its outcome is always told."""
        landing = asyncio.create_task(self._land(ref, tip, layers, verdict))
        try:
            return await asyncio.shield(landing)
        except asyncio.CancelledError:
            await landing
            raise

    async def _land(self, ref: str, tip: str, layers: Sequence[_Layer], verdict: Verdict) -> bool:
        if verdict.untested:
            layers = await self._marked(tip, layers, verdict.untested)
        files = []
        for parent, layer in zip([tip, *(layer.commit for layer in layers)], layers, strict=False):
            changes = await self._git.changes(parent, layer.commit)
            files.append(tuple(sorted({name for change in changes for name in (change.path, change.old_path) if name})))
        obstacle = await self._obstacle(tip)
        if obstacle:
            self._stop_line("target", obstacle)
            return False
        if not all(self._is_in_line(layer.candidate) for layer in layers):
            return False
        for layer in layers:
            self._on_stage(layer.candidate, TaskState.LANDING)
        if not await self._git.update_ref(ref, layers[-1].commit, tip):
            _log.info("the target moved, judging again", extra={"action": "target_moved", "ref": ref})
            return False
        untested = f", untested: {verdict.untested}" if verdict.untested else ""
        reason = f"landed on {self._settings.land.target}{untested}"
        for layer, changed in zip(layers, files, strict=True):
            landed = Settlement(candidate=layer.candidate, commit=layer.commit, ending=Ending.LANDED, reason=reason)
            self._owe(replace(landed, files=changed, verdict=verdict))
        self._pay()
        return True

    # -- settling ------------------------------------------------------------------------------------------------

    def _is_in_line(self, candidate: Candidate) -> bool:
        """The fence: not withdrawn, not replaced, and of the newest generation; a stale one is settled as such."""
        if self._queue.get(candidate.task.id) is not candidate:
            return False
        reason = self._superseded(candidate)
        if not reason:
            return True
        self._refuse(candidate, Ending.STALE, reason)
        return False

    def _refuse(
        self, candidate: Candidate, ending: Ending, reason: str, *, feedback: str = "", verdict: Verdict | None = None
    ) -> None:
        feedback = feedback or (feedback_of(verdict) if verdict else reason)
        if self._queue.get(candidate.task.id) is candidate:
            self._owe(Settlement(candidate=candidate, ending=ending, reason=reason, feedback=feedback, verdict=verdict))
            self._pay()

    def _conflict(self, candidate: Candidate, conflicts: Sequence[str]) -> None:
        target, names = self._settings.land.target, name_some(sorted(conflicts)) or "files that git does not name"
        feedback = (
            f"While you worked, other changes landed on {target} that touch the same lines of {names}. "
            "You start from the new state now: make your change fit it."
        )
        self._refuse(candidate, Ending.CONFLICT, f"conflicts with {target} in {names}", feedback=feedback)

    def _owe(self, settlement: Settlement) -> None:
        task_id = settlement.candidate.task.id
        if self._queue.get(task_id) is settlement.candidate:
            del self._queue[task_id]
            self._parking.leave(task_id)
        self._moving_at = self._clock.monotonic()
        self._owed.append(settlement)
        said = {"action": "candidate_settled", "task": task_id, "ending": settlement.ending}
        _log.debug("candidate settled", extra=said)

    def _pay(self) -> None:
        """Tell of what is settled. What a full disk prevents is told when there is room again; nothing else mends by itself."""
        while self._owed:
            settlement = self._owed.pop(0)
            try:
                self._on_settled(settlement)
            except (OSError, sqlite3.Error):
                self._owed.insert(0, settlement)
                raise

    # -- standing still ------------------------------------------------------------------------------------------

    def _hold_up(self, verdict: Verdict) -> None:
        """A project's check that cannot run stops everybody; what concerns single tasks only parks these."""
        if not verdict.broken_tasks:
            self._stop_line(verdict.broken_check, verdict.reason)
            return
        self._mend()
        waiting = [task_id for task_id in verdict.broken_tasks if task_id in self._queue]
        new = tuple(task_id for task_id in waiting if self._parking.park(task_id, verdict.reason))
        if new:
            self._bus.publish(GateBroke(command=verdict.broken_check, reason=verdict.reason, tasks=new))

    def _unpark(self, candidate: Candidate) -> None:
        waited_s = self._parking.leave(candidate.task.id)
        if waited_s is not None:
            self._bus.publish(GateMended(stopped_s=round(waited_s, 3)))

    def _stop_line(self, check: str, reason: str) -> None:
        now = self._clock.monotonic()
        if not self._reason:
            self._broken_since = now
            _log.error("the line stands", extra={"action": "gate_broke", "check": check, "reason": reason})
            self._bus.publish(GateBroke(command=check, reason=reason))
        self._reason = reason or "unknown"
        self._retry_at = now + self._settings.gate.retry_s

    def _mend(self) -> None:
        if self._reason:
            stopped_s = round(self._clock.monotonic() - self._broken_since, 3)
            self._reason = ""
            self._bus.publish(GateMended(stopped_s=stopped_s))
