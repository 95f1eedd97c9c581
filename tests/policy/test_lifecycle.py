from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.domain.finding import FindingState, Fix, ScanReport, ScanStatus
from coordinator.policy.lifecycle import KnownFinding, fold
from tests.policy.findings import World, finding, scanned


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
