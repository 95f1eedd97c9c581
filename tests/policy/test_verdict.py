from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.domain.check import BrokenBy, CheckOutcome, CheckStatus, Unavailable, Verdict, VerdictKind
from coordinator.policy.verdict import Accepted, Pair, confirmed, failed_twice, is_clean, judge, without_tests


def ran(failures: set[str] = frozenset(), seen: set[str] = frozenset(), *, failed: bool | None = None) -> CheckOutcome:  # type: ignore[assignment]
    bad = bool(failures) if failed is None else failed
    status = CheckStatus.FAILED if bad else CheckStatus.PASSED
    return CheckOutcome(check="tests", status=status, failures=frozenset(failures), seen=frozenset(seen), took_s=10.0)


def broken(by: BrokenBy) -> CheckOutcome:
    return CheckOutcome(check="tests", status=CheckStatus.BROKEN, broken_by=by, reason="why not")


def kind(baseline: CheckOutcome, merged: CheckOutcome, limit_s: float = 100.0) -> VerdictKind:
    return judge([Pair(baseline=baseline, merged=merged, limit_s=limit_s)]).kind


def test_old_failures_are_not_charged_new_ones_are_named() -> None:
    verdict = judge([Pair(baseline=ran({"a"}), merged=ran({"a"}))])
    assert verdict.kind is VerdictKind.PASSED
    assert "known" in verdict.notes[0]
    verdict = judge([Pair(baseline=ran({"a"}), merged=ran({"a", "b"}))])
    assert verdict.kind is VerdictKind.FAILED
    assert verdict.new_failures == ("b",)
    assert "b" in verdict.reason


def test_nameless_failures_compare_by_status() -> None:
    assert kind(ran(), ran(failed=True)) is VerdictKind.FAILED
    assert kind(ran(failed=True), ran(failed=True)) is VerdictKind.PASSED
    assert kind(ran(failed=True), ran()) is VerdictKind.PASSED


def test_a_nameless_failure_is_not_excused_by_one_with_a_name() -> None:
    """All tests pass with the change, and then something else fails: too little coverage, a thread that will not end."""
    verdict = judge([Pair(baseline=ran({"a"}, {"a", "b"}), merged=ran(seen={"a", "b"}, failed=True))])
    assert (verdict.kind, verdict.new_failures) == (VerdictKind.FAILED, ("tests",))
    assert verdict.reason == "`tests` fails without a name, on the target it names what fails"


def test_a_test_that_no_longer_runs_is_lost() -> None:
    verdict = judge([Pair(baseline=ran(seen={"t.py::a", "t.py::b"}), merged=ran(seen={"t.py::a"}))])
    assert verdict.kind is VerdictKind.FAILED
    assert verdict.lost_tests == ("t.py::b",)


def test_parameters_may_change_and_files_may_move() -> None:
    baseline = ran(seen={"t.py::a[1]", "t.py::a[2]"}, failures={"t.py::a[1]"})
    merged = ran(seen={"u.py::a[3]", "u.py::a[1]"}, failures={"u.py::a[1]"})
    assert judge([Pair(baseline=baseline, merged=merged)], renamed={"t.py": "u.py"}).kind is VerdictKind.PASSED
    assert judge([Pair(baseline=baseline, merged=merged)]).kind is VerdictKind.FAILED


def test_who_is_to_blame_for_a_check_that_cannot_look() -> None:
    for by in BrokenBy:
        assert kind(broken(by), ran()) is VerdictKind.BROKEN
        assert kind(broken(by), broken(by)) is VerdictKind.BROKEN
    assert kind(ran(), broken(BrokenBy.ENVIRONMENT)) is VerdictKind.BROKEN
    assert kind(ran(), broken(BrokenBy.TREE)) is VerdictKind.FAILED
    assert kind(ran(), broken(BrokenBy.TIME), limit_s=100.0) is VerdictKind.FAILED
    assert kind(ran(), broken(BrokenBy.TIME), limit_s=19.0) is VerdictKind.BROKEN


def test_broken_names_check_and_reason_and_wins_over_failed() -> None:
    pairs = [
        Pair(baseline=ran(), merged=ran({"a"})),
        Pair(baseline=broken(BrokenBy.ENVIRONMENT), merged=ran()),
    ]
    verdict = judge(pairs)
    assert verdict.kind is VerdictKind.BROKEN
    assert verdict.broken_check == "tests"
    assert verdict.broken_tasks == ()
    assert "why not" in verdict.reason


def test_accept_commands() -> None:
    def accept(outcome: CheckOutcome, on_target: CheckOutcome | None = None) -> Accepted:
        return Accepted(command="make ok", outcome=outcome, task="t1", on_target=on_target, limit_s=100.0)

    assert judge([], [accept(ran())]).kind is VerdictKind.PASSED
    verdict = judge([], [accept(ran(failed=True))])
    assert verdict.kind is VerdictKind.FAILED
    assert verdict.new_failures == ("make ok",)
    assert judge([], [accept(broken(BrokenBy.TREE))]).kind is VerdictKind.FAILED
    verdict = judge([], [accept(broken(BrokenBy.ENVIRONMENT))])
    assert verdict.kind is VerdictKind.BROKEN
    assert verdict.broken_tasks == ("t1",)
    assert judge([], [accept(broken(BrokenBy.TIME))]).kind is VerdictKind.BROKEN
    assert judge([], [accept(broken(BrokenBy.TIME), broken(BrokenBy.TIME))]).kind is VerdictKind.BROKEN
    assert judge([], [accept(broken(BrokenBy.TIME), ran(failed=True))]).kind is VerdictKind.FAILED


def test_nothing_to_check_says_so() -> None:
    assert "nothing to check" in judge([]).reason


_NAMES = st.frozensets(st.sampled_from("abcdef"))
_RUNS = st.one_of(
    st.builds(lambda failures, seen: ran(failures, seen | failures), _NAMES, _NAMES),
    st.just(ran(failed=True)),
    st.sampled_from(BrokenBy).map(broken),
)


@given(st.lists(st.tuples(_RUNS, _RUNS), max_size=4))
def test_passed_only_when_every_check_looked_and_nothing_is_new(runs: list[tuple[CheckOutcome, CheckOutcome]]) -> None:
    pairs = [Pair(baseline=baseline, merged=merged, limit_s=15.0) for baseline, merged in runs]
    verdict = judge(pairs)
    assert (verdict.kind is VerdictKind.PASSED) == all(is_clean(pair) for pair in pairs)
    if verdict.kind is VerdictKind.PASSED:
        for baseline, merged in runs:
            assert CheckStatus.BROKEN not in {baseline.status, merged.status}
            assert merged.failures <= baseline.failures
    if any(baseline.status is CheckStatus.BROKEN for baseline, _ in runs):
        assert verdict.kind is VerdictKind.BROKEN


_OUTSIDE = (BrokenBy.ENVIRONMENT, BrokenBy.MOMENT)


@given(_RUNS, _RUNS, _RUNS)
def test_a_second_look_forgives_exactly_what_passed_once(
    baseline: CheckOutcome, first: CheckOutcome, second: CheckOutcome
) -> None:
    pair = Pair(baseline=baseline, merged=first, limit_s=15.0)
    final = confirmed(pair, second)
    if CheckStatus.BROKEN in {first.status, second.status}:
        assert final.merged in (first, second)
        return
    either = first.failures | second.failures
    passed = (first.seen - first.failures) | (second.seen - second.failures)
    tells = first.seen or second.seen
    assert final.merged.failures == (either - passed if tells else first.failures & second.failures)
    assert not final.flaky & final.merged.failures
    if second.status is CheckStatus.PASSED and second.seen >= first.failures:
        assert is_clean(final) or not is_clean(Pair(baseline=baseline, merged=second))


@pytest.mark.parametrize("by", BrokenBy)
@pytest.mark.parametrize("outside", _OUTSIDE)
def test_a_look_that_was_cut_short_from_outside_charges_nobody(by: BrokenBy, outside: BrokenBy) -> None:
    for first, second in (
        (ran({"a"}), broken(outside)),
        (broken(outside), ran({"a"})),
        (broken(by), broken(outside)),
        (broken(outside), broken(by)),
    ):
        if by is not BrokenBy.TIME:  # it is not looked at again
            assert judge([confirmed(Pair(baseline=ran(), merged=first), second)]).kind is VerdictKind.BROKEN
    assert judge([confirmed(Pair(baseline=ran(), merged=broken(outside)), ran())]).kind is VerdictKind.PASSED


def test_what_the_change_cuts_short_is_charged_to_it() -> None:
    for first, second in (
        (ran({"a"}), broken(BrokenBy.TREE)),
        (broken(BrokenBy.TREE), ran({"a"})),
        (broken(BrokenBy.TREE), broken(BrokenBy.TREE)),
    ):
        assert judge([confirmed(Pair(baseline=ran(), merged=first), second)]).kind is VerdictKind.FAILED
    again = ran({"a"}), broken(BrokenBy.TIME)
    for limit_s, kind in ((100.0, VerdictKind.FAILED), (19.0, VerdictKind.BROKEN)):
        assert judge([confirmed(Pair(baseline=ran(), merged=again[0], limit_s=limit_s), again[1])]).kind is kind


def test_a_failure_that_came_back_stands_and_a_flaky_one_is_a_note() -> None:
    pair = confirmed(Pair(baseline=ran(), merged=ran({"a", "b"}, set("abc"))), ran({"b", "c"}, set("abc")))
    verdict = judge([pair])
    assert verdict.new_failures == ("b",)
    assert "flaky" in verdict.notes[0]
    assert judge([confirmed(Pair(baseline=ran(), merged=ran({"a"})), ran())]).kind is VerdictKind.PASSED
    assert judge([confirmed(Pair(baseline=ran(), merged=ran(failed=True)), ran())]).kind is VerdictKind.PASSED
    for second in (ran(failed=True), ran({"b"})):
        pair = confirmed(Pair(baseline=ran(), merged=ran(failed=True)), second)
        assert judge([pair]).kind is VerdictKind.FAILED


BOTH = {"t.py::a", "t.py::b", "u.py::c"}


@pytest.mark.parametrize(
    "second",
    [
        ran(seen={"t.py::b", "u.py::c"}),  # skipped
        ran({"t.py"}, {"u.py::c"}),  # its file cannot be imported
        ran({"t.py::a"}, BOTH),
    ],
)
def test_a_test_that_failed_and_then_did_not_run_has_not_passed(second: CheckOutcome) -> None:
    for one, two in ((ran({"t.py::a"}, BOTH), second), (second, ran({"t.py::a"}, BOTH))):
        verdict = judge([confirmed(Pair(baseline=ran(seen=BOTH), merged=one), two)])
        assert (verdict.kind, verdict.new_failures) == (VerdictKind.FAILED, ("t.py::a",))
        assert failed_twice(one, two).failures == one.failures & two.failures, "nor does it excuse anybody"


def test_a_file_that_could_be_imported_the_second_time_is_flaky() -> None:
    pair = confirmed(Pair(baseline=ran(seen=BOTH), merged=ran({"t.py"}, {"u.py::c"})), ran(seen=BOTH))
    assert judge([pair]).kind is VerdictKind.PASSED


def random_ids(number: int, *, failed: bool = True) -> CheckOutcome:
    """A test whose parameter is called something else in each run."""
    return ran({f"t.py::a[{number}]"} if failed else set(), {f"t.py::a[{number}]", "t.py::b"})


def test_tests_with_random_ids_are_known_by_their_own_names() -> None:
    fine = random_ids(1, failed=False)
    assert judge([confirmed(Pair(baseline=fine, merged=random_ids(2)), random_ids(3))]).new_failures == ("t.py::a[2]",)
    assert judge([confirmed(Pair(baseline=fine, merged=random_ids(2)), fine)]).kind is VerdictKind.PASSED
    known = failed_twice(random_ids(1), random_ids(2))
    assert known.status is CheckStatus.FAILED
    assert failed_twice(random_ids(1), random_ids(2, failed=False)).status is CheckStatus.PASSED
    verdict = judge([confirmed(Pair(baseline=known, merged=random_ids(3)), random_ids(4))])
    assert verdict.kind is VerdictKind.PASSED
    assert "known failure" in verdict.notes[0]


def test_a_parameter_more_that_fails_is_new_beside_one_that_is_known_to_fail() -> None:
    baseline = ran({"t.py::a[1]"}, {"t.py::a[1]", "t.py::a[2]"})
    for more in ("2", "3"):
        failures = {"t.py::a[1]", f"t.py::a[{more}]"}
        assert judge([Pair(baseline=baseline, merged=ran(failures, failures))]).new_failures == (f"t.py::a[{more}]",)
    now = ran({"t.py::a[2]"}, {"t.py::a[2]"})  # the one that failed is gone, this one had passed
    assert judge([Pair(baseline=baseline, merged=now)]).new_failures == ("t.py::a[2]",)


def test_of_a_target_only_what_failed_twice_excuses() -> None:
    seen = {"a", "b", "c"}
    twice = failed_twice(ran({"a", "b"}, seen), ran({"b", "c"}, seen))
    assert twice == ran({"b"}, seen)
    assert failed_twice(ran({"a"}, seen), ran(seen=seen)).status is CheckStatus.PASSED
    assert failed_twice(ran(failed=True), ran(failed=True)).status is CheckStatus.FAILED
    for by in BrokenBy:
        assert failed_twice(ran({"a"}, seen), broken(by)) == broken(by)
    no_test_ran = replace(ran({"t.py"}), none_ran="it could not be imported")
    assert failed_twice(ran({"a"}, seen), no_test_ran) == failed_twice(no_test_ran, ran({"a"}, seen)) == no_test_ran


MISSING = Unavailable(check="pytest", reason="it is not installed", remedy="install it")


@pytest.mark.parametrize("kind", list(VerdictKind))
@pytest.mark.parametrize("land", [False, True])
def test_untested_work_passes_only_for_safe_roles_or_by_a_persons_word(kind: VerdictKind, land: bool) -> None:
    verdict = Verdict(kind=kind, reason="because")
    assert without_tests(verdict, (), {"a": "command"}, land=land) == verdict
    safe = without_tests(verdict, [MISSING], {"a": "autofix"}, land=land)
    assert (safe.kind, safe.reason, safe.untested) == (kind, "because", "pytest (it is not installed)")
    mixed = without_tests(verdict, [MISSING], {"a": "autofix", "b": "command", "c": "reviewer"}, land=land)
    assert mixed.untested == safe.untested
    if kind is VerdictKind.PASSED and not land:
        assert (mixed.kind, mixed.broken_check, mixed.broken_tasks) == (VerdictKind.BROKEN, "pytest", ("b", "c"))
    else:
        assert (mixed.kind, mixed.broken_tasks) == (kind, ())


def test_files_that_cannot_be_imported_on_either_tree_are_told() -> None:
    names = frozenset({"tests/test_a.py", "tests/test_b.py::test_x"})
    seen = frozenset({"tests/test_b.py::test_x"})
    both = CheckOutcome(check="pytest", status=CheckStatus.FAILED, failures=names, seen=seen)
    verdict = judge([Pair(baseline=both, merged=both)])
    assert verdict.kind is VerdictKind.PASSED
    told = " ".join(verdict.notes)
    for word in ("2 known failures", "one test file cannot be imported", "every test fails on the target"):
        assert word in told


def test_an_outcome_of_which_no_test_ran_is_broken() -> None:
    outcome = CheckOutcome(check="pytest", status=CheckStatus.PASSED, none_ran="all of them were skipped")
    assert outcome.ran.status is CheckStatus.BROKEN
    assert outcome.ran.broken_by is BrokenBy.TREE
    assert outcome.ran.reason == "no test ran: all of them were skipped"
    fine = CheckOutcome(check="pytest", status=CheckStatus.PASSED)
    assert fine.ran is fine
