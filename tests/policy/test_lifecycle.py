from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.domain.finding import Finding, FindingState, Fix, Place, ScanReport, ScanStatus, identified
from coordinator.policy.lifecycle import KnownFinding, dismiss, fold, reopen
from tests.policy.findings import World, finding, scanned

if TYPE_CHECKING:
    import random


@pytest.mark.parametrize("status", [ScanStatus.BROKEN, ScanStatus.UNAVAILABLE])
def test_a_tool_that_could_not_look_closes_nothing(status: ScanStatus) -> None:
    world = World()
    world.look(scanned(finding()))
    assert fold(world.known, scanned(status=status, reason="no")).changed == ()


def test_a_scan_of_another_tool_closes_nothing() -> None:
    world = World()
    world.look(scanned(finding()))
    assert fold(world.known, scanned(tool="mypy")).closed == 0


def test_a_file_that_could_not_be_read_keeps_its_findings_but_not_its_cured_syntax_error() -> None:
    world = World()
    error = finding("pkg/b.py", "invalid-syntax", fix=Fix.NONE, category="syntax")
    world.look(scanned(finding(), error))
    after = fold(world.known, scanned(unread=("pkg/a.py", "pkg/b.py")))
    assert [one.finding for one in after.changed] == [error]


def test_seen_gone_seen_again() -> None:
    world = World()
    world.look(scanned(finding()))
    assert world.state_of(finding())[0] is FindingState.OPEN
    world.look(scanned())
    assert world.state_of(finding())[0] is FindingState.FIXED
    again = fold(world.known, scanned(finding()))
    assert (again.reopened, again.opened) == (1, 0)
    assert again.changed[0].state is FindingState.REOPENED


def test_a_dismissed_finding_stays_dismissed_seen_or_not() -> None:
    world = World()
    world.known = {finding().fingerprint: KnownFinding(finding=finding(), state=FindingState.DISMISSED)}
    for report in (scanned(finding()), scanned(), scanned(finding())):
        world.look(report)
        assert world.state_of(finding())[0] is FindingState.DISMISSED


reports = st.builds(
    lambda numbers, status, unread: scanned(
        *(finding(f"pkg/{n % 4}.py", number=n) for n in numbers), status=status, unread=unread
    ),
    st.lists(st.integers(0, 12)),
    st.sampled_from(ScanStatus),
    st.sampled_from([(), ("pkg/1.py",)]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(reports, max_size=6))
def test_folding_the_same_report_twice_changes_nothing(history: list[ScanReport]) -> None:
    world = World()
    for report in history:
        world.look(report)
        assert fold(world.known, report).changed == ()
        if report.status is ScanStatus.SCANNED:
            seen = {one.fingerprint for one in report.findings}
            for one in world.known.values():
                believed = one.state is not FindingState.FIXED
                assert believed == (one.finding.fingerprint in seen) or one.finding.place.path in report.unread


# --- the same tree, told and arranged in other ways ---------------------------------------------------------------------


def real(path: str, line: int, evidence: str) -> Finding:
    """As an adapter makes it."""
    values = {"category": "dead code", "fix": Fix.SAFE, "message": "unused", "rule": "F401", "tool": "ruff"}
    return Finding(places=(Place(path=path, line=line),), evidence=evidence, **values)  # type: ignore[arg-type]


trees = st.dictionaries(
    st.sampled_from(["a.py", "b.py", "pkg/c.py", "pkg/d.py"]),
    st.lists(st.sampled_from(["import os", "import sys", "import re"]), max_size=5),
    max_size=4,
)


def scan_of(tree: dict[str, list[str]], *, shift: int = 0, chance: random.Random | None = None) -> ScanReport:
    found = [real(path, at * 3 + 1 + shift, text) for path, texts in tree.items() for at, text in enumerate(texts)]
    if chance is not None:
        chance.shuffle(found)
    return scanned(*identified(found))


@settings(max_examples=60, deadline=None)
@given(trees, st.randoms(use_true_random=False))
def test_a_hundred_scans_of_an_unchanged_tree_change_nothing(tree: dict[str, list[str]], chance: random.Random) -> None:
    world = World()
    world.look(scan_of(tree))
    world.settle()
    before = (dict(world.known), dict(world.ours))
    for _ in range(100):
        folded = world.look(scan_of(tree, chance=chance))
        assert (folded.changed, folded.dropped, folded.opened, folded.closed) == ((), (), 0, 0)
        placement = world.settle()
        assert (placement.write, placement.remove, placement.changed) == ((), (), ())
    assert (world.known, world.ours) == before


@settings(max_examples=100, deadline=None)
@given(trees, st.integers(1, 99), st.permutations(["a.py", "b.py", "pkg/c.py", "pkg/d.py"]))
def test_moved_lines_and_renamed_files_open_and_close_nothing(
    tree: dict[str, list[str]], shift: int, order: list[str]
) -> None:
    """Half of the files get new names; which, and what else moves, does not matter."""
    world = World()
    world.look(scan_of(tree))
    tasks = {one.finding.fingerprint: one.task for one in world.known.values()}
    renames = {path: f"new/{path.rpartition('/')[2]}" for path in order[:2]}
    after = {renames.get(path, path): texts for path, texts in tree.items()}
    folded = world.look(scan_of(after, shift=shift), renames=renames)
    assert (folded.opened, folded.closed, folded.reopened) == (0, 0, 0)
    assert len(world.known) == len(tasks)
    assert {one.finding.fingerprint for one in world.known.values()} == {
        one.fingerprint for one in scan_of(after).findings
    }
    assert world.look(scan_of(after, shift=shift)).changed == ()


def test_a_rename_keeps_what_is_remembered_and_follows_no_other_tool() -> None:
    (one,) = identified([real("a.py", 1, "import os")])
    (moved,) = identified([real("b.py", 4, "import os")])
    known = KnownFinding(finding=one, first_seen="2026-01-01", state=FindingState.DISMISSED, reason="a fixture")
    folded = fold({one.fingerprint: known}, scanned(moved), renames={"a.py": "b.py"})
    assert folded.dropped == (one.fingerprint,)
    (kept,) = folded.changed
    assert (kept.first_seen, kept.state, kept.reason) == ("2026-01-01", FindingState.DISMISSED, "a fixture")
    assert kept.finding == moved
    other = fold({one.fingerprint: known}, scanned(tool="mypy"), renames={"a.py": "b.py"})
    assert (other.changed, other.dropped) == ((), ())


def test_a_file_that_takes_a_name_with_a_past_takes_its_own_past_along_but_no_dismissal_is_lost() -> None:
    (old,) = identified([real("a.py", 1, "import os")])
    (there,) = identified([real("b.py", 1, "import os")])
    for state, left in ((FindingState.FIXED, FindingState.QUEUED), (FindingState.DISMISSED, FindingState.DISMISSED)):
        known = {
            old.fingerprint: KnownFinding(finding=old, state=FindingState.QUEUED, task="t"),
            there.fingerprint: KnownFinding(finding=there, state=state),
        }
        folded = fold(known, scanned(there), renames={"a.py": "b.py"})
        assert folded.dropped == (old.fingerprint,)
        result = {**known, **{one.finding.fingerprint: one for one in folded.changed}}
        assert result[there.fingerprint].state is left
        assert (folded.opened, folded.closed) == (0, 0)


# --- every status, every state ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ScanStatus)
@pytest.mark.parametrize("state", FindingState)
def test_what_a_look_that_sees_nothing_does_to_a_finding(status: ScanStatus, state: FindingState) -> None:
    one = KnownFinding(finding=finding(), state=state, task="t")
    folded = fold({finding().fingerprint: one}, scanned(status=status), at="now")
    closes = status in {ScanStatus.SCANNED, ScanStatus.UNCALLED}
    open_ = state not in {FindingState.FIXED, FindingState.DISMISSED}
    assert folded.closed == (closes and open_)
    after = FindingState.DISMISSED if state is FindingState.DISMISSED else FindingState.FIXED
    told = closes and state is not FindingState.FIXED
    assert [(one.state, one.closed_at) for one in folded.changed] == [(after, "now")] * told


def test_a_look_at_a_part_adds_and_closes_nothing() -> None:
    world = World()
    world.look(scanned(finding("pkg/a.py")))
    folded = world.look(scanned(finding("pkg/b.py"), status=ScanStatus.PARTIAL))
    assert (folded.opened, folded.closed) == (1, 0)


def test_what_was_fixed_and_is_back_says_who_had_fixed_it() -> None:
    known = KnownFinding(finding=finding(), state=FindingState.FIXED, task="ruff-f401", closed_at="then")
    (again,) = fold({finding().fingerprint: known}, scanned(finding())).changed
    assert (again.state, again.fixed_by, again.task, again.closed_at) == (FindingState.REOPENED, "ruff-f401", "", "")
    assert again.returns == 1


def test_a_crate_that_does_not_build_keeps_its_findings() -> None:
    world = World()
    world.look(scanned(finding("crates/a/lib.rs"), finding("crates/b/lib.rs")))
    folded = world.look(scanned(unread=("crates/a/",)))
    assert [one.finding.place.path for one in folded.changed] == ["crates/b/lib.rs"]


# --- a person's word ----------------------------------------------------------------------------------------------------


def test_a_dismissal_takes_the_task_away_and_only_a_person_undoes_it() -> None:
    one = KnownFinding(finding=finding(), state=FindingState.IN_WORK, task="t")
    (none,) = dismiss([one], "a fixture")
    assert (none.state, none.task, none.reason) == (FindingState.DISMISSED, "", "a fixture")
    assert list(dismiss([none], "a fixture")) == []
    (back,) = reopen([none])
    assert (back.state, back.reason) == (FindingState.OPEN, "")
    (regression,) = reopen([replace(none, returns=2)])
    assert regression.state is FindingState.REOPENED


def test_whatever_kept_a_finding_from_work_can_be_taken_back_and_a_fixed_one_cannot() -> None:
    stuck = KnownFinding(finding=finding(), reason="came back 3 times after it was fixed", returns=3)
    assert [one.reason for one in reopen([stuck])] == [""]
    assert list(reopen([KnownFinding(finding=finding(), state=FindingState.FIXED, reason="")])) == []
    assert list(reopen([KnownFinding(finding=finding())])) == []
