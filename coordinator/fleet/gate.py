"""The validation gate: does the merged tree hold what the target holds, and what its tasks promise?

Owns one invariant: *passed* means that every check looked at this very merged tree in a clean clone of its own, and that
the target was looked at with the same tools. What the outcomes mean together is ``policy.verdict``'s; landing is the lander's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sqlite3
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from coordinator.checks.detect import Check, GatePlan, detect
from coordinator.checks.moved_packages import NO_TEST, MovedPackages, install, moved_between, requirement_files
from coordinator.checks.pytest import NOTHING_COLLECTED
from coordinator.checks.shell import run_command
from coordinator.checks.tool import temporary_folder
from coordinator.domain.check import BrokenBy, CheckOutcome, CheckStatus, Unavailable, Verdict, VerdictKind, passed
from coordinator.domain.errors import BadRepository, CoordinatorError
from coordinator.domain.event import GateJudged
from coordinator.fleet.admission import short_of_disk
from coordinator.fleet.baselines import Baselines
from coordinator.fleet.judged_trees import JudgedTrees
from coordinator.fleet.workspace import remove_tree
from coordinator.kit import process
from coordinator.policy.verdict import Accepted, Pair, confirmed, failed_twice, is_clean, judge, refusal, without_tests

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

    from coordinator.checks.tool import Surroundings
    from coordinator.domain.settings import Settings
    from coordinator.domain.task import Task
    from coordinator.kit.bus import Bus
    from coordinator.kit.clock import Clock
    from coordinator.kit.git import Git
    from coordinator.kit.store import Store
    from coordinator.sdk.layout import Layout

_log = logging.getLogger(__name__)

_LOOK_AGAIN_S: Final = 300.0
_PLANS_KEPT: Final = 16
_SMALL_SHARE: Final = 0.1
"""Temporary files may have a small disk of their own. With a tenth of it free it is not full."""
_SWEEP_GRACE_S: Final = 1.0
UNTESTED_FACT: Final = "gate:untested"
"""Fact: which of the project's tests could not be run when the gate last judged, and why."""


class Gate:
    """Judges merged trees; remembers what each check said about a tree so that the target is looked at once."""

    def __init__(self, git: Git, settings: Settings, layout: Layout, store: Store, clock: Clock, bus: Bus) -> None:
        self._baselines = Baselines(store, clock, again_s=settings.gate.retry_s)
        self._bus = bus
        self._clock = clock
        self._folder = layout.state / "gate"
        self._git = git
        self._layout = layout
        self._plans: dict[str, GatePlan] = {}
        self._default_role = settings.fleet.default_role
        self._least_free_bytes = settings.fleet.min_free_bytes
        self._set_aside: dict[str, tuple[Unavailable, float]] = {}
        self._settings = settings.gate
        self._store = store
        self._word = ""
        self.running: tuple[str, float] | None = None
        """What runs right now (a check's name or a command), and since when on the monotonic clock."""

    async def plan(self, target: str) -> GatePlan:
        """What would be run for ``target`` (any revision), and what cannot be; raises ``BadRepository`` when there is none."""
        commit = await self._git.resolve(target)
        if commit is None:
            raise BadRepository(f"{target} names no commit of this repository")
        tree = await self._git.tree_of(commit)
        if tree not in self._plans:
            async with self._trees(commit, commit) as trees:
                self._remember_plan(tree, await self._detect(await trees.target()))
        return self._without_set_aside(self._plans[tree])

    async def judge(self, target_commit: str, merged_commit: str, tasks: Sequence[Task]) -> Verdict:
        """The word on ``merged_commit``, built upon ``target_commit`` by ``tasks``. Trouble of ours is BROKEN, not raised."""
        began = self._clock.monotonic()
        try:
            async with self._trees(target_commit, merged_commit) as trees:
                verdict = await self._judge(trees, target_commit, merged_commit, tasks)
        except (CoordinatorError, OSError, sqlite3.Error) as error:
            _log.warning("the gate could not work", extra={"action": "gate_failed", "error": str(error)})
            reason = f"the gate could not work: {error}"
            verdict = Verdict(kind=VerdictKind.BROKEN, broken_check="gate", reason=reason)
        took_s = round(self._clock.monotonic() - began, 3)
        verdict = replace(verdict, took_s=took_s)
        ids = tuple(task.id for task in tasks)
        self._bus.publish(
            GateJudged(
                tasks=ids,
                verdict=verdict.kind,
                notes=verdict.notes,
                reason=verdict.reason,
                took_s=took_s,
                untested=verdict.untested,
            )
        )
        return verdict

    async def sweep(self) -> None:
        """End and remove what a killed run left behind; only for the daemon that holds the directory, before it judges."""
        for scratch in sorted(self._folder.glob("judge-*/run-*")):
            await process.stop_tagged(f"COORDINATOR_ATTEMPT={scratch}", _SWEEP_GRACE_S)
        await asyncio.to_thread(remove_tree, self._folder)

    @contextlib.asynccontextmanager
    async def _trees(self, target: str, merged: str) -> AsyncIterator[JudgedTrees]:
        self._folder.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=self._folder, prefix="judge-"))
        try:
            yield JudgedTrees(self._git, folder, target=target, merged=merged)
        finally:
            await asyncio.to_thread(remove_tree, folder)

    async def _judge(self, trees: JudgedTrees, target: str, merged: str, tasks: Sequence[Task]) -> Verdict:
        target_tree, merged_tree = await self._git.tree_of(target), await self._git.tree_of(merged)
        new_plan = await self._detect(await trees.merged())
        old_plan = await self._plan_of_target(trees, target_tree, new_plan)
        self._remember_plan(target_tree, old_plan)
        changes = await self._git.changes(target, merged)
        moved = await self._moved(trees, [change.path for change in changes], new_plan)
        if moved.refused is not None:
            return refusal(moved.refused)
        accepts = await self._accepts(trees, replace(new_plan.surroundings, packages=moved.folder), tasks)
        if any(accepted.outcome.status is not CheckStatus.PASSED for accepted in accepts):
            return judge((), accepts)
        if accepts:
            trees.forget()
        renamed = {change.old_path: change.path for change in changes if change.status == "R"}
        known = {check.key for check in old_plan.checks}
        new = [*moved.unproven(tested=new_plan.has_tests)]
        pairs = [(check, await self._compare(check, trees, target_tree, renamed, new)) for check in old_plan.checks]
        new_checks = [check for check in new_plan.checks if check.key not in known]
        pairs += [(check, await self._first_time(check, trees, new)) for check in new_checks]
        weighed = [(check, pair) for check, pair in pairs if pair is not None]
        missing = self._missing(new, old_plan, new_plan)
        notes = [f"{item.check} not run: {item.reason}" for item in missing if not item.tests]
        verdict = judge([pair for _, pair in weighed], accepts, renamed=renamed, notes=notes)
        untested = [item for item in missing if item.tests]
        self._leave_word(untested)
        if verdict.kind is VerdictKind.PASSED:
            self._remember_plan(merged_tree, new_plan)
            for check, pair in weighed if moved.folder is None else ():  # else later ones meet other packages
                self._baselines.remember(merged_tree, check, pair.merged)
        roles = {task.id: task.role or self._default_role for task in tasks}
        return without_tests(verdict, untested, roles, land=self._settings.untested == "land")

    async def _moved(self, trees: JudgedTrees, paths: Sequence[str], plan: GatePlan) -> MovedPackages:
        """The Python packages that the change asks for, which its checks are to be run with."""
        names = requirement_files(paths)
        if not names:
            return MovedPackages()
        target, merged = await trees.target(), await trees.merged()
        before, after = await asyncio.to_thread(moved_between, names, target, merged)
        if not after:
            return MovedPackages()
        if not plan.has_tests and self._settings.untested != "land":
            return MovedPackages(missing=NO_TEST)  # nothing that is installed would show anything
        with self._at("pip install"):
            moved = await install(before, after, plan.surroundings, trees.scratch())
        if moved.folder is not None:
            checks = (await self._detect(merged, moved.folder)).checks
            trees.instead = {check.name: check for check in checks}
        return moved

    async def _compare(
        self, check: Check, trees: JudgedTrees, target_tree: str, renamed: Mapping[str, str], missing: list[Unavailable]
    ) -> Pair | None:
        """One check on both trees; what speaks against the change is looked at twice. None when it was set aside."""
        if self._is_aside(check):
            return None
        remembered = self._baselines.recall(target_tree, check)
        baseline = (remembered or await self._baseline(check, trees, target_tree)).ran
        if baseline.reason == NOTHING_COLLECTED:
            return await self._first_time(check, trees, missing)
        if baseline.status is CheckStatus.BROKEN and self._may_set_aside(check, baseline):
            return None
        limit_s = self._settings.timeout_s
        if baseline.status is CheckStatus.BROKEN:
            return Pair(baseline=baseline, merged=baseline, limit_s=limit_s)
        pair = Pair(baseline=baseline, merged=await self._run(check, trees, await trees.merged()), limit_s=limit_s)
        pair = await self._looked_again(pair, check, trees, target_tree, renamed, remembered=remembered is not None)
        if is_clean(pair, renamed) and pair.merged.status is CheckStatus.PASSED:
            self._baselines.trust(target_tree, check)
        # One that could look at the merged tree has an opinion, which must not be lost with the target's.
        neither = pair.baseline.status is pair.merged.ran.status is CheckStatus.BROKEN
        return None if neither and self._may_set_aside(check, pair.baseline) else pair

    async def _looked_again(
        self,
        pair: Pair,
        check: Check,
        trees: JudgedTrees,
        target_tree: str,
        renamed: Mapping[str, str],
        *,
        remembered: bool,
    ) -> Pair:
        """What speaks against the change is looked at twice. What excuses it has to be so now, not only on another day:
        packages, network or the date may be what changed, not the code, and the day may have been a bad one."""
        at_once = is_clean(pair, renamed)
        if not at_once:
            pair = await self._confirmed(pair, check, trees, renamed)
        if remembered and not (is_clean(pair, renamed) and pair.merged.status is CheckStatus.PASSED):
            trees.forget()
            pair = replace(pair, baseline=(await self._baseline(check, trees, target_tree)).ran)
            if at_once and pair.baseline.status is not CheckStatus.BROKEN and not is_clean(pair, renamed):
                pair = await self._confirmed(pair, check, trees, renamed)
            trees.forget()
        return pair

    async def _confirmed(self, pair: Pair, check: Check, trees: JudgedTrees, renamed: Mapping[str, str]) -> Pair:
        trees.forget()
        if pair.merged.broken_by is not BrokenBy.TIME:
            pair = confirmed(pair, await self._run(check, trees, await trees.merged()), renamed)
        trees.forget()
        return pair

    async def _first_time(self, check: Check, trees: JudgedTrees, missing: list[Unavailable]) -> Pair | None:
        """A check that the change itself brings in (a project's first tests): there is no target to compare with."""
        if self._is_aside(check):
            return None
        merged = (await self._run(check, trees, await trees.merged())).ran
        if merged.reason == NOTHING_COLLECTED:
            return None
        if merged.status is CheckStatus.BROKEN and not check.required and merged.broken_by is not BrokenBy.MOMENT:
            missing.append(_unavailable(check, merged))  # of this tree, which says nothing about others
            return None
        return Pair(baseline=passed(check.name), merged=merged, limit_s=self._settings.timeout_s)

    async def _baseline(self, check: Check, trees: JudgedTrees, target_tree: str) -> CheckOutcome:
        """What the target says now. What fails there excuses a change, so it has to fail twice, once on another day."""
        outcome = await self._run(check, trees, await trees.target())
        if outcome.ran.status is CheckStatus.FAILED and not self._baselines.expects(target_tree, check, outcome):
            trees.forget()
            outcome = failed_twice(outcome, await self._run(check, trees, await trees.target()))
        return self._baselines.settled(target_tree, check, outcome)

    async def _accepts(self, trees: JudgedTrees, around: Surroundings, tasks: Sequence[Task]) -> list[Accepted]:
        """Each task's own commands, up to the first that does not pass: the rest would only cost time."""
        accepts: list[Accepted] = []
        limit_s = self._settings.timeout_s
        for task in tasks:
            for command in task.accept:
                outcome = await self._accept(command, trees, await trees.merged(), around)
                witness = None
                if outcome.broken_by is BrokenBy.TIME:
                    witness = await self._accept(command, trees, await trees.target(), replace(around, packages=None))
                accepts.append(
                    Accepted(command=command, outcome=outcome, task=task.id, on_target=witness, limit_s=limit_s)
                )
                if outcome.status is not CheckStatus.PASSED:
                    return accepts
        return accepts

    async def _accept(self, command: str, trees: JudgedTrees, tree: Path, around: Surroundings) -> CheckOutcome:
        with self._at(command):
            outcome = await run_command(command, name=command, tree=tree, scratch=trees.scratch(), surroundings=around)
            return self._unless_short(outcome)

    def _unless_short(self, outcome: CheckOutcome) -> CheckOutcome:
        """What fails while a disk is full, ours or that of temporary files, fails for that."""
        if outcome.status is CheckStatus.PASSED:
            return outcome
        for folder, share in ((self._folder, 1.0), (temporary_folder(), _SMALL_SHARE)):
            short = short_of_disk(folder, self._least_free_bytes, share=share) if folder.is_dir() else ""
            if short:
                reason = f"it fails while a disk is full: {short}, of {folder}"
                return replace(
                    outcome, broken_by=BrokenBy.MOMENT, none_ran="", reason=reason, status=CheckStatus.BROKEN
                )
        return outcome

    @contextlib.contextmanager
    def _at(self, what: str) -> Iterator[None]:
        self.running = what, self._clock.monotonic()
        try:
            yield
        finally:
            self.running = None

    async def _run(self, check: Check, trees: JudgedTrees, tree: Path) -> CheckOutcome:
        with self._at(check.name):
            outcome = self._unless_short(await trees.check_for(check, tree).run(tree, trees.scratch()))
        _log.debug(
            "check done",
            extra={"action": "check_done", "check": check.name, "status": outcome.status, "took_s": outcome.took_s},
        )
        return outcome

    async def _detect(self, tree: Path, packages: Path | None = None) -> GatePlan:
        return await asyncio.to_thread(detect, tree, self._layout.repository, self._settings, packages)

    # -- memory ------------------------------------------------------------------------------------------------------

    def _may_set_aside(self, check: Check, outcome: CheckOutcome) -> bool:
        """A check that is only our offer is named as not available; the line goes on.

        Not for good: what it lacked may be installed by and by. A slow one is asked less often.
        """
        if check.required or outcome.broken_by is BrokenBy.MOMENT:
            return False
        until = self._clock.monotonic() + max(_LOOK_AGAIN_S, 10 * outcome.took_s)
        self._set_aside[check.key] = (_unavailable(check, outcome), until)
        return True

    def _is_aside(self, check: Check) -> bool:
        return check.key in self._set_aside and self._clock.monotonic() < self._set_aside[check.key][1]

    def _without_set_aside(self, plan: GatePlan) -> GatePlan:
        aside = tuple(self._set_aside[check.key][0] for check in plan.checks if self._is_aside(check))
        checks = tuple(check for check in plan.checks if not self._is_aside(check))
        return replace(plan, checks=checks, unavailable=(*plan.unavailable, *aside))

    def _missing(self, found: Sequence[Unavailable], *plans: GatePlan) -> list[Unavailable]:
        """What cannot be run of either tree, each check once."""
        planned = (item for plan in plans for item in self._without_set_aside(plan).unavailable)
        return list({item.check: item for item in (*planned, *found)}.values())

    def _leave_word(self, untested: Sequence[Unavailable]) -> None:
        """For readers without a daemon, who see only what is installed and not what came of running it."""
        rows = [{"check": item.check, "reason": item.reason, "remedy": item.remedy} for item in untested]
        value = json.dumps(rows)
        if value != self._word:
            self._store.execute("fact_put", key=UNTESTED_FACT, value=value)
            self._word = value

    async def _plan_of_target(self, trees: JudgedTrees, tree: str, merged: GatePlan) -> GatePlan:
        """The remembered one, unless what was missing may be there now or a tool is another one than it was."""
        plan, keys = self._plans.get(tree), {check.name: check.key for check in merged.checks}
        stale = plan is None or any(keys.get(check.name) != check.key for check in plan.checks)
        if plan is None or stale or self._without_set_aside(plan).unavailable:
            return await self._detect(await trees.target())
        return plan

    def _remember_plan(self, tree: str, plan: GatePlan) -> None:
        self._plans.pop(tree, None)
        self._plans[tree] = plan
        while len(self._plans) > _PLANS_KEPT:
            del self._plans[next(iter(self._plans))]


def _unavailable(check: Check, outcome: CheckOutcome) -> Unavailable:
    remedy = "make a .venv with the project's requirements; or say in [gate] commands what to run"
    return Unavailable(check=check.name, reason=outcome.reason, remedy=remedy, tests=check.tests)
