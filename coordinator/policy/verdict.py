"""The gate's word, computed from what each check said about the target and about the merged tree.

Owns one invariant: it is *passed* only when every check looked at both trees and none names anything new; what
could not be looked at is *broken*, unless the target's own run shows that the change broke it; what passed without the
project's tests says so. Runs nothing itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from coordinator.domain.check import BrokenBy, CheckOutcome, CheckStatus, Unavailable, Verdict, VerdictKind
from coordinator.policy.change import name_some

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

ENDLESS_FACTOR: Final = 2.0
"""A check that is over its time limit is the change's doing when the target needs less than the limit divided by this."""

_FROM_OUTSIDE: Final = frozenset({BrokenBy.ENVIRONMENT, BrokenBy.MOMENT})

SAFE_ROLES: Final = frozenset({"autofix"})
"""Roles whose work may land untested: they apply only what the tool that found the fault calls a safe fix."""

UNTESTED_REMEDY: Final = (
    "make a .venv with its dependencies, set [gate] python or commands, "
    'or accept the risk with [gate] untested = "land"'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One check on both trees. ``flaky`` are names that failed on the merged tree once and not again."""

    baseline: CheckOutcome
    flaky: frozenset[str] = frozenset()
    limit_s: float = 0.0
    merged: CheckOutcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """One ``accept`` command of one task on the merged tree.

    ``on_target`` is what it said about the target, asked only when it ran out of time.
    """

    command: str
    limit_s: float = 0.0
    on_target: CheckOutcome | None = None
    outcome: CheckOutcome
    task: str


@dataclass(slots=True, kw_only=True)
class _Opinion:
    excerpt: str = ""
    failures: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def fail(self, reason: str, outcome: CheckOutcome) -> None:
        self.reasons.append(reason)
        self.excerpt = self.excerpt or outcome.excerpt


def judge(
    pairs: Sequence[Pair],
    accepts: Sequence[Accepted] = (),
    *,
    renamed: Mapping[str, str] | None = None,
    notes: Iterable[str] = (),
    took_s: float = 0.0,
) -> Verdict:
    """Fold all outcomes into one verdict. ``renamed`` maps old to new paths, so that a moved test is not a lost one."""
    notes = tuple(notes)
    broken = _first_broken(pairs, accepts)
    if broken:
        check, task, outcome = broken
        return Verdict(
            kind=VerdictKind.BROKEN,
            broken_check=check,
            broken_tasks=(task,) if task else (),
            reason=f"{check} could not run: {outcome.reason or 'no reason given'}",
            excerpt=outcome.excerpt,
            notes=notes,
            took_s=took_s,
        )
    opinion = _Opinion(notes=list(notes))
    for accepted in accepts:
        if accepted.outcome.status is not CheckStatus.PASSED:
            opinion.failures.append(accepted.command)
            why = f": {accepted.outcome.reason}" if accepted.outcome.reason else ""
            opinion.fail(f"accept command of {accepted.task} failed ({accepted.command}){why}", accepted.outcome)
    for pair in pairs:
        _weigh(pair, renamed or {}, opinion)
    return Verdict(
        kind=VerdictKind.FAILED if opinion.reasons else VerdictKind.PASSED,
        excerpt=opinion.excerpt,
        lost_tests=tuple(sorted(opinion.lost)),
        new_failures=tuple(sorted(opinion.failures)),
        notes=tuple(opinion.notes),
        reason="; ".join(opinion.reasons) or _praise(len(pairs), len(accepts)),
        took_s=took_s,
    )


def refusal(outcome: CheckOutcome) -> Verdict:
    """Of a change that cannot even be tried out."""
    return Verdict(
        kind=VerdictKind.FAILED, excerpt=outcome.excerpt, new_failures=tuple(outcome.failures), reason=outcome.reason
    )


def without_tests(verdict: Verdict, missing: Sequence[Unavailable], roles: Mapping[str, str], *, land: bool) -> Verdict:
    """The word on a tree whose project has tests (``missing``) that could not be run. ``roles`` maps task to role.

    What failed stays failed. What passed is marked; unless ``land``, only tasks of ``SAFE_ROLES`` pass.
    """
    why = "; ".join(f"{one.check} ({one.reason})" for one in missing)
    waiting = () if land else tuple(task for task, role in roles.items() if role not in SAFE_ROLES)
    if verdict.kind is not VerdictKind.PASSED or not missing or not waiting:
        return replace(verdict, untested=why)
    return replace(
        verdict,
        kind=VerdictKind.BROKEN,
        broken_check=missing[0].check,
        broken_tasks=waiting,
        reason=f"the project's tests cannot be run: {why}; {UNTESTED_REMEDY}",
        untested=why,
    )


def _praise(checks: int, accepts: int) -> str:
    if checks + accepts == 0:
        return "nothing to check: the project has no check that can run here and the task names none"
    return f"{checks} check{'s' * (checks != 1)} and {accepts} accept command{'s' * (accepts != 1)} passed"


def _first_broken(pairs: Iterable[Pair], accepts: Iterable[Accepted]) -> tuple[str, str, CheckOutcome] | None:
    """What stops the line: a project's check before a task's own command, because it concerns everybody."""
    for pair in pairs:
        if pair.baseline.status is CheckStatus.BROKEN:
            return pair.baseline.check, "", pair.baseline
        if pair.merged.status is CheckStatus.BROKEN and not blames_change(pair):
            return pair.merged.check, "", pair.merged
    for accepted in accepts:
        if accepted.outcome.status is CheckStatus.BROKEN and not _blames_task(accepted):
            return f"accept command of {accepted.task} ({accepted.command})", accepted.task, accepted.outcome
    return None


def _blames_task(accepted: Accepted) -> bool:
    witness = accepted.on_target or CheckOutcome(check="", status=CheckStatus.PASSED, took_s=accepted.limit_s)
    if witness.status is CheckStatus.BROKEN and accepted.outcome.broken_by is BrokenBy.TIME:
        return False
    return blames_change(Pair(baseline=witness, merged=accepted.outcome, limit_s=accepted.limit_s))


def blames_change(pair: Pair) -> bool:
    """Whether a check that is broken on the merged tree is so because of the change.

    The target's run is the witness: the tool could look at that tree, so what it cannot look at any more is the change's
    doing; running out of time counts only when the target is far from the limit.
    """
    if pair.merged.broken_by is BrokenBy.TREE:
        return True
    return pair.merged.broken_by is BrokenBy.TIME and pair.baseline.took_s * ENDLESS_FACTOR < pair.limit_s


def new_failures(pair: Pair, renamed: Mapping[str, str] | None = None) -> frozenset[str]:
    """What fails on the merged tree and not on the target, flaky ones excepted; a nameless failure is the check.

    Only a nameless failure excuses a nameless one: what the target's named failures hide beside them, nobody knows. Where a
    test's parameters have other names than on the target (a random id), the test's own name tells that it failed there, too.
    """
    merged, baseline = pair.merged, pair.baseline
    if merged.status is not CheckStatus.FAILED:
        return frozenset()
    if not merged.failures:
        known = baseline.status is CheckStatus.FAILED and not baseline.failures
        return frozenset() if known or merged.check in pair.flaky else frozenset({merged.check})
    before = moved(baseline.failures, renamed or {})
    fresh = merged.failures - before - pair.flaky
    if not merged.seen:
        return fresh
    gone, ran = _bare(before - merged.failures - merged.seen), moved(baseline.seen, renamed or {})
    return frozenset(name for name in fresh if name in ran or _bare_name(name) not in gone)


def is_clean(pair: Pair, renamed: Mapping[str, str] | None = None) -> bool:
    """Whether nothing about this pair speaks against the change."""
    broken = CheckStatus.BROKEN in {pair.baseline.status, pair.merged.status}
    return not broken and not new_failures(pair, renamed) and not lost_tests(pair, renamed)


def confirmed(pair: Pair, second: CheckOutcome, renamed: Mapping[str, str] | None = None) -> Pair:
    """What stands after the merged tree was looked at a second time: what failed, and passed neither time.

    A failure that passed once is flaky. A run that was cut short from outside speaks neither for nor against the change: it
    is forgotten beside one that found nothing, and beside one that did, nothing is known yet.
    """
    first = pair.merged
    if first.status is CheckStatus.BROKEN and second.status is not CheckStatus.BROKEN:
        again = replace(pair, merged=second)
        return again if first.broken_by not in _FROM_OUTSIDE or is_clean(again, renamed) else pair
    if CheckStatus.BROKEN in {first.status, second.status}:
        return pair if first.broken_by in _FROM_OUTSIDE else replace(pair, merged=second)
    stands = first.failures & second.failures
    if first.seen or second.seen:
        stands |= _not_passed(first.failures, second)
        named = _bare(stands)
        stands |= {name for name in _not_passed(second.failures, first) if _bare_name(name) not in named}
    merged = _both(first, second, stands)
    failed = frozenset({merged.check}) if merged.status is CheckStatus.FAILED else frozenset()
    return replace(pair, merged=merged, flaky=new_failures(pair, renamed) - stands - failed)


def failed_twice(first: CheckOutcome, second: CheckOutcome) -> CheckOutcome:
    """What a target says that was looked at twice because it failed: what it excuses has failed both times."""
    for run in (first, second):
        if run.ran.status is CheckStatus.BROKEN:
            return run
    again = first.failures & second.failures
    if second.seen:
        failed = _bare(second.failures)
        again |= {name for name in first.failures - second.seen if _bare_name(name) in failed}
    return _both(first, second, again)


def _both(first: CheckOutcome, second: CheckOutcome, failures: frozenset[str]) -> CheckOutcome:
    """Two looks at one tree as one outcome that names ``failures``; that they are nameless in one look excludes nothing."""
    nameless = any(run.status is CheckStatus.FAILED and not run.failures for run in (first, second))
    failed = bool(failures) or (nameless and first.status is second.status is CheckStatus.FAILED)
    return replace(
        second,
        excerpt=first.excerpt,
        failures=failures,
        none_ran=second.none_ran if first.none_ran else "",
        seen=first.seen | second.seen,
        status=CheckStatus.FAILED if failed else CheckStatus.PASSED,
    )


def _not_passed(names: frozenset[str], run: CheckOutcome) -> frozenset[str]:
    """Those of ``names`` that did not pass in ``run``: what was skipped, or is in a file that could not be read, did not."""
    failed = _bare(run.failures)
    passed = _bare(run.seen) | {name.partition("::")[0] for name in run.seen}
    absent = names - run.seen - run.failures
    return (names & run.failures).union(
        name for name in absent if _bare_name(name) in failed or _bare_name(name) not in passed
    )


def _bare_name(name: str) -> str:
    """A test's name without its parameters, which come and go with its data."""
    return name.partition("[")[0]


def _bare(names: Iterable[str]) -> frozenset[str]:
    return frozenset(map(_bare_name, names))


def lost_tests(pair: Pair, renamed: Mapping[str, str] | None = None) -> frozenset[str]:
    """Tests that ran on the target and do not run on the merged tree, whatever their parameters are."""
    if pair.merged.status is CheckStatus.BROKEN or not pair.baseline.seen:
        return frozenset()
    return _bare(moved(pair.baseline.seen, renamed or {})) - _bare(pair.merged.seen)


def moved(names: Iterable[str], renamed: Mapping[str, str]) -> frozenset[str]:
    """Names that begin with a renamed file's old path, as they are called now."""
    if not renamed:
        return frozenset(names)
    result = set()
    for name in names:
        path, colon, rest = name.partition(":")
        result.add(f"{renamed.get(path, path)}{colon}{rest}")
    return frozenset(result)


def _weigh(pair: Pair, renamed: Mapping[str, str], opinion: _Opinion) -> None:
    merged, check = pair.merged, pair.merged.check
    if merged.status is CheckStatus.BROKEN:
        opinion.failures.append(check)
        opinion.fail(f"{check} runs on the target but not with this change: {merged.reason}", merged)
        return
    fresh = sorted(new_failures(pair, renamed))
    lost = sorted(lost_tests(pair, renamed) - set(fresh))
    if fresh:
        opinion.failures += fresh
        if fresh == [check]:  # a command that names nothing of what failed in it
            before = "it names what fails" if pair.baseline.failures else "it passes"
            opinion.fail(
                f"`{check}` fails{' without a name' * bool(pair.baseline.failures)}, on the target {before}", merged
            )
            return
        opinion.fail(f"{len(fresh)} new failure{'s' * (len(fresh) != 1)} in {check}: {name_some(fresh, 3)}", merged)
    if lost:
        opinion.lost += lost
        plural = "s" * (len(lost) != 1)
        opinion.fail(
            f"{len(lost)} test{plural} of {check} no longer run{'s' * (not plural)}: {name_some(lost, 3)}", merged
        )
    if pair.flaky:
        opinion.notes.append(f"flaky in {check} (failed once, then not): {name_some(sorted(pair.flaky), 3)}")
    known = merged.failures.difference(fresh)
    if known:
        opinion.notes.append(f"{check}: {len(known)} known failure{'s' * (len(known) != 1)} on the target as well")
        whole = {name for name in known if check == "pytest" and "::" not in name}
        if whole:
            plural = f"{len(whole)} test files" if len(whole) != 1 else "one test file"
            opinion.notes.append(f"{check}: {plural} cannot be imported, nothing in there was tested")
        if merged.seen and merged.seen <= merged.failures:
            opinion.notes.append(f"{check}: every test fails on the target as well: it proves little")
    elif merged.status is CheckStatus.FAILED and not merged.failures and not fresh and not pair.flaky:
        opinion.notes.append(f"{check} fails on the target as well and does not say where: it proves nothing")
