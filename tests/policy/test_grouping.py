from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from coordinator.domain.finding import Finding, FindingState, Fix, Place, ScanReport, ScanStatus, Severity
from coordinator.domain.task import SETTLED, TASK_ID, TaskState
from coordinator.policy.grouping import (
    MAX_RETURNS,
    AutoTask,
    GroupKey,
    GroupLimits,
    KnownFinding,
    Placement,
    Spooled,
    fold,
    place,
)

LIMITS = GroupLimits(max_files=3, max_open=4, priority=50)
AT_WORK = (TaskState.CLAIMED, TaskState.RUNNING, TaskState.VALIDATING, TaskState.LANDING)


def finding(path: str = "pkg/a.py", code: str = "F401", number: int = 1, **other: object) -> Finding:
    values: dict[str, object] = {
        "category": "dead code",
        "fingerprint": f"{path}|{code}|{number}",
        "fix": Fix.SAFE,
        "message": f"{code} in words",
        "place": Place(path=path, line=number),
        "rule": code,
        "severity": Severity.MEDIUM,
        "tool": "ruff",
    }
    return Finding(**(values | other))  # type: ignore[arg-type]


def scanned(*findings: Finding, **other: object) -> ScanReport:
    values: dict[str, object] = {"tool": "ruff", "status": ScanStatus.SCANNED, "findings": findings}
    return ScanReport(**(values | other))  # type: ignore[arg-type]


class World:
    """What the store, the spool and the ledger would hold."""

    def __init__(self, limits: GroupLimits = LIMITS) -> None:
        self.known: dict[str, KnownFinding] = {}
        self.limits = limits
        self.ours: dict[str, AutoTask] = {}
        self.states: dict[str, TaskState] = {}
        self.taken: set[str] = set()

    def spooled(self) -> Spooled:
        return Spooled(
            ours=self.ours, salts={"ruff": "salt"}, scanned={"ruff"}, states=self.states, taken=frozenset(self.taken)
        )

    def look(self, report: ScanReport) -> None:
        completed = {task_id for task_id, state in self.states.items() if state is TaskState.COMPLETED}
        self.keep(fold(self.known, report, completed=completed).changed)

    def keep(self, changed: tuple[KnownFinding, ...]) -> None:
        self.known |= {one.finding.fingerprint: one for one in changed}

    def settle(self) -> Placement:
        """Place, carry it out, and let the spool tell the ledger."""
        placement = place(tuple(self.known.values()), self.spooled(), self.limits)
        for task_id in placement.remove:
            del self.ours[task_id]
            if self.states.get(task_id) not in {*SETTLED, None}:
                self.states[task_id] = TaskState.CANCELLED
        for group in placement.write:
            self.ours[group.id] = AutoTask(
                id=group.id, tool=group.key.tool, rule=group.key.rule, files=group.files, essence=group.essence("salt")
            )
            if self.states.get(group.id) in {None, TaskState.CANCELLED}:
                self.states[group.id] = TaskState.PENDING
        self.keep(placement.changed)
        return placement

    def scan(self, *findings: Finding) -> Placement:
        self.look(scanned(*findings))
        return self.settle()

    def state_of(self, one: Finding) -> tuple[FindingState, str]:
        known = self.known[one.fingerprint]
        return known.state, known.task


# --- fold --------------------------------------------------------------------------------------------------------------


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


# --- place -------------------------------------------------------------------------------------------------------------


def test_one_task_for_each_rule_and_folder() -> None:
    world = World()
    placement = world.scan(
        finding("pkg/a.py", number=1),
        finding("pkg/a.py", number=2),
        finding("pkg/b.py"),
        finding("pkg/sub/a.py"),
        finding("pkg/a.py", "F541"),
        finding("top.py"),
    )
    assert {(group.key.rule, group.files) for group in placement.write} == {
        ("F401", ("pkg/a.py", "pkg/b.py")),
        ("F401", ("pkg/sub/a.py",)),
        ("F401", ("top.py",)),
        ("F541", ("pkg/a.py",)),
    }
    assert all(group.whole for group in placement.write)
    assert world.state_of(finding("top.py")) == (FindingState.QUEUED, GroupKey.of("ruff", "F401", "top.py").task_id(1))


def test_what_the_tool_cannot_mend_safely_is_remembered_and_makes_no_task() -> None:
    world = World()
    unsafe = finding("pkg/a.py", number=2, fix=Fix.UNSAFE)
    placement = world.scan(finding("pkg/a.py", number=1), unsafe, finding("pkg/b.py", "B006", fix=Fix.NONE))
    assert [[one.fix for one in group.findings] for group in placement.write] == [[Fix.SAFE]]
    assert not placement.write[0].whole
    assert world.state_of(unsafe) == (FindingState.OPEN, "")


@pytest.mark.parametrize("path", ["../out.py", "/etc/x.py", "a\nb.py", "a\udcff.py", "a\\b.py", "a" * 300 + ".py"])
def test_a_path_that_cannot_be_said_makes_no_task(path: str) -> None:
    assert World().scan(finding(path)).write == ()


def test_a_file_with_a_syntax_error_and_a_dismissal_make_no_task() -> None:
    world = World()
    dismissed = finding("pkg/b.py", number=9)
    world.known = {dismissed.fingerprint: KnownFinding(finding=dismissed, state=FindingState.DISMISSED)}
    error = finding("pkg/a.py", "invalid-syntax", fix=Fix.NONE, category="syntax")
    assert world.scan(error, finding("pkg/a.py"), finding("pkg/b.py"), dismissed).write == ()


def test_a_large_group_is_split_and_each_part_keeps_its_files() -> None:
    world = World(GroupLimits(max_files=3, max_open=10))
    all_ = [finding(f"pkg/{letter}.py") for letter in "abcdefgh"]
    world.scan(*all_)
    first, second, third = sorted(world.ours)
    assert [world.ours[id_].files for id_ in (first, second, third)] == [
        ("pkg/a.py", "pkg/b.py", "pkg/c.py"),
        ("pkg/d.py", "pkg/e.py", "pkg/f.py"),
        ("pkg/g.py", "pkg/h.py"),
    ]
    assert (second, third) == (f"{first}-2", f"{first}-3")
    world.states[first] = TaskState.COMPLETED
    placement = world.scan(*all_[3:])
    assert (placement.remove, placement.write) == ((first,), ())


def test_no_more_than_max_open_and_the_next_when_one_closes() -> None:
    world = World(GroupLimits(max_open=2))
    all_ = [finding(f"p{number}/a.py") for number in range(5)]
    assert len(world.scan(*all_).write) == 2
    done, failed = sorted(world.ours)
    world.states[done], world.states[failed] = TaskState.COMPLETED, TaskState.FAILED
    placement = world.scan(*[one for one in all_ if world.state_of(one)[1] != done])
    assert len(placement.write) == 2
    assert done not in world.ours
    assert failed in world.ours


def test_new_files_fill_a_waiting_task_before_they_get_their_own() -> None:
    world = World()
    world.scan(finding("pkg/a.py"))
    world.scan(*(finding(f"pkg/{letter}.py") for letter in "abcdef"))
    assert sorted(len(task.files) for task in world.ours.values()) == [3, 3]


def test_a_lowered_limit_takes_nothing_away_and_adds_nothing() -> None:
    world = World(GroupLimits(max_open=4))
    world.scan(*(finding(f"p{number}/a.py") for number in range(4)))
    world.limits = GroupLimits(max_open=1)
    placement = world.scan(*(finding(f"p{number}/a.py") for number in range(9)))
    assert (placement.write, placement.remove) == ((), ())


def test_worse_severities_come_first_and_folders_before_rules() -> None:
    world = World(GroupLimits(max_open=3))
    mild = [finding(f"{folder}/a.py", code) for folder in ("a", "b") for code in ("F401", "F541")]
    placement = world.scan(*mild, finding("z/a.py", severity=Severity.HIGH))
    assert [(group.key.folder, group.key.rule, group.priority) for group in placement.write] == [
        ("z", "F401", 40),
        ("a", "F401", 50),
        ("b", "F401", 50),
    ]


def test_moved_lines_rewrite_nothing_and_a_new_finding_rewrites_only_what_waits() -> None:
    world = World()
    world.scan(finding())
    moved = replace(finding(), place=Place(path="pkg/a.py", line=99))
    assert world.scan(moved).write == ()
    (task_id,) = world.ours
    assert [group.id for group in world.scan(moved, finding("pkg/b.py")).write] == [task_id]
    world.states[task_id] = TaskState.RUNNING
    placement = world.scan(moved, finding("pkg/b.py"), finding("pkg/a.py", number=7), finding("pkg/c.py"))
    assert [group.files for group in placement.write] == [("pkg/c.py",)]
    assert world.state_of(finding("pkg/a.py", number=7)) == (FindingState.QUEUED, task_id)


@pytest.mark.parametrize(
    ("state", "removed"),
    [(TaskState.PENDING, True), (TaskState.FAILED, True), (TaskState.COMPLETED, True), *((s, False) for s in AT_WORK)],
)
def test_a_task_with_nothing_left_is_removed_unless_somebody_works_on_it(state: TaskState, removed: bool) -> None:
    world = World()
    world.scan(finding())
    (task_id,) = world.ours
    world.states[task_id] = state
    assert world.scan().remove == ((task_id,) if removed else ())


def test_files_of_a_tool_that_never_looked_are_not_removed() -> None:
    world = World()
    world.scan(finding())
    empty = replace(world.spooled(), scanned=())
    assert place((), empty, LIMITS).remove == ()


def test_a_relapse_gets_a_number_and_a_lost_ledger_finds_its_files_again() -> None:
    world = World()
    world.scan(finding())
    (first,) = world.ours
    lost = World()
    lost.ours = dict(world.ours)
    placement = lost.scan(finding())
    assert (placement.write, placement.remove) == ((), ())
    assert lost.state_of(finding()) == (FindingState.QUEUED, first)
    world.states[first] = TaskState.COMPLETED
    world.scan()
    assert [group.id for group in world.scan(finding()).write] == [f"{first}-2"]


def test_a_landed_task_is_not_doubted_before_a_scan_and_not_repeated_when_it_did_not_help() -> None:
    world = World()
    world.scan(finding())
    (task_id,) = world.ours
    world.states[task_id] = TaskState.COMPLETED
    world.settle()
    assert world.state_of(finding()) == (FindingState.QUEUED, task_id)
    assert world.ours == {}
    for _ in range(3):
        assert world.scan(finding()).write == ()
    assert "still finds it" in world.known[finding().fingerprint].reason
    assert world.state_of(finding())[0] is FindingState.OPEN


def test_two_rules_that_undo_each_other_do_not_go_on_for_ever() -> None:
    world = World()
    tasks = 0
    for _ in range(20):
        tasks += len(world.scan(finding()).write)
        for task_id in world.ours:
            world.states[task_id] = TaskState.COMPLETED
        world.scan()
    assert tasks == MAX_RETURNS
    world.scan(finding())
    assert "undoing" in world.known[finding().fingerprint].reason


def test_a_deleted_file_is_written_again_under_its_name_and_a_strangers_name_is_left_alone() -> None:
    world = World()
    world.scan(finding())
    (task_id,) = world.ours
    world.ours.clear()
    assert [group.id for group in world.settle().write] == [task_id]
    world.ours.clear()
    world.taken = {task_id}
    assert [group.id for group in world.settle().write] == [f"{task_id}-2"]


@settings(max_examples=100, deadline=None)
@given(folder=st.text(max_size=150), code=st.text(max_size=60), number=st.integers(1, 10**6))
def test_every_id_is_a_task_id(folder: str, code: str, number: int) -> None:
    key = GroupKey(tool="ruff", rule=code.encode(errors="replace").decode(), folder=folder)
    assert TASK_ID.fullmatch(key.task_id(number))


class Life(RuleBasedStateMachine):
    """Trees change, tools break, tasks move, files vanish: what must hold after every placement."""

    @initialize()
    def begin(self) -> None:
        self.world = World()
        self.before: dict[str, AutoTask] = {}
        self.placement = Placement()

    def place(self) -> None:
        self.before = dict(self.world.ours)
        self.states = dict(self.world.states)
        self.placement = self.world.settle()

    @rule(numbers=st.sets(st.integers(0, 23), max_size=16), safe=st.sets(st.integers(0, 23)))
    def scan(self, numbers: set[int], safe: set[int]) -> None:
        found = [
            finding(
                f"p{number % 2}/{number % 6}.py",
                "F401" if number < 16 else "F541",
                number,
                fix=Fix.UNSAFE if number % 5 == 0 and number not in safe else Fix.SAFE,
            )
            for number in sorted(numbers)
        ]
        self.world.look(scanned(*found))
        self.place()

    @rule(status=st.sampled_from([ScanStatus.BROKEN, ScanStatus.UNAVAILABLE]))
    def break_down(self, status: ScanStatus) -> None:
        self.world.look(scanned(status=status))
        self.place()

    @rule(which=st.integers(0, 9), state=st.sampled_from(TaskState))
    def move(self, which: int, state: TaskState) -> None:
        if self.world.ours:
            self.world.states[sorted(self.world.ours)[which % len(self.world.ours)]] = state
        self.place()

    @rule(which=st.integers(0, 9))
    def lose_a_file(self, which: int) -> None:
        if self.world.ours:
            del self.world.ours[sorted(self.world.ours)[which % len(self.world.ours)]]
        self.place()

    @rule()
    def lose_the_ledger(self) -> None:
        self.world.known, self.world.states = {}, {}
        self.placement = Placement()

    @invariant()
    def placing_again_changes_nothing(self) -> None:
        assert place(tuple(self.world.known.values()), self.world.spooled(), LIMITS) == Placement() or (
            not self.world.known
        )

    @invariant()
    def no_file_has_two_tasks_of_a_rule(self) -> None:
        claimed = [(task.rule, path) for task in self.world.ours.values() for path in task.files]
        assert len(claimed) == len(set(claimed))
        assert all(len(task.files) <= LIMITS.max_files for task in self.world.ours.values())

    @invariant()
    def queued_means_a_task_names_the_file(self) -> None:
        for one in self.world.known.values():
            if one.state is FindingState.QUEUED and self.world.states.get(one.task) in {None, TaskState.PENDING}:
                assert one.finding.place.path in self.world.ours[one.task].files

    @invariant()
    def nobody_at_work_is_disturbed(self) -> None:
        touched = {*self.placement.remove, *(group.id for group in self.placement.write)}
        assert not any(self.states.get(task_id) in AT_WORK for task_id in touched & set(self.before))

    @invariant()
    def new_tasks_keep_within_the_limit(self) -> None:
        fresh = [group.id for group in self.placement.write if group.id not in self.before]
        open_ = [id_ for id_ in self.world.ours if self.world.states.get(id_) not in SETTLED]
        assert not fresh or len(open_) <= LIMITS.max_open


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
