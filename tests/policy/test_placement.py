from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from coordinator.domain.finding import Finding, FindingState, Fix, Place, ScanStatus, Severity
from coordinator.domain.task import SETTLED, TASK_ID, TaskState
from coordinator.policy.grouping import AutoTask, GroupKey, GroupLimits
from coordinator.policy.lifecycle import MAX_RETURNS, KnownFinding, reopen
from coordinator.policy.placement import AT_WORK, RESERVED, Placement, place
from coordinator.policy.verdict import SAFE_ROLES
from tests.policy.findings import LIMITS, World, finding, scanned


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
    assert {(group.key.subject, group.files) for group in placement.write} == {
        ("F401", ("pkg/a.py", "pkg/b.py")),
        ("F401", ("pkg/sub/a.py",)),
        ("F401", ("top.py",)),
        ("F541", ("pkg/a.py",)),
    }
    assert all(group.whole for group in placement.write)
    assert world.state_of(finding("top.py")) == (
        FindingState.QUEUED,
        GroupKey(scope="", subject="F401", tool="ruff").task_id(1),
    )


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
    assert [(group.key.scope, group.key.subject, group.priority) for group in placement.write] == [
        ("z", "F401", 40),
        ("a", "F401", 50),
        ("b", "F401", 50),
    ]


def test_moved_lines_rewrite_nothing_and_a_new_finding_rewrites_only_what_waits() -> None:
    world = World()
    world.scan(finding())
    moved = replace(finding(), places=(Place(path="pkg/a.py", line=99),))
    assert world.scan(moved).write == ()
    (task_id,) = world.ours
    assert [group.id for group in world.scan(moved, finding("pkg/b.py")).write] == [task_id]
    world.states[task_id] = TaskState.RUNNING
    placement = world.scan(moved, finding("pkg/b.py"), finding("pkg/a.py", number=7), finding("pkg/c.py"))
    assert [group.files for group in placement.write] == [("pkg/c.py",)]
    assert world.state_of(finding("pkg/a.py", number=7)) == (FindingState.IN_WORK, task_id)


@pytest.mark.parametrize(
    ("state", "removed"),
    [
        (TaskState.PENDING, True),
        (TaskState.FAILED, True),
        (TaskState.COMPLETED, True),
        *((s, False) for s in sorted(AT_WORK)),
    ],
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
    key = GroupKey(tool="ruff", subject=code.encode(errors="replace").decode(), scope=folder)
    assert TASK_ID.fullmatch(key.task_id(number))


# --- by kind of hand --------------------------------------------------------------------------------------------------

MODEL = GroupLimits(max_open=50, model_role="claude")


def upgrade(package: str, advisory: str, path: str = "requirements.txt", **other: object) -> Finding:
    """As an auditor of dependencies would tell it."""
    values: dict[str, object] = {
        "category": "security",
        "fix": Fix.VERSION,
        "fix_version": "2",
        "fingerprint": f"{path}|{package}|{advisory}",
        "package": package,
        "severity": Severity.HIGH,
        "tool": "audit",
    }
    return finding(path, advisory, 0, **(values | other))


def roles(placement: Placement) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(group.role, group.key.subject, group.rules) for group in placement.write]


def test_one_upgrade_mends_all_advisories_of_a_package_and_what_has_none_is_for_a_model() -> None:
    world = World(MODEL)
    placement = world.scan(
        upgrade("jinja2", "PYSEC-1"),
        upgrade("jinja2", "PYSEC-2"),
        upgrade("requests", "PYSEC-3", severity=Severity.CRITICAL),
        upgrade("requests", "PYSEC-4", fix=Fix.NONE, fix_version=""),
        upgrade("jinja2", "PYSEC-1", "docs/requirements.txt"),
    )
    assert roles(placement) == [
        ("upgrade", "requests", ("PYSEC-3",)),
        ("upgrade", "jinja2", ("PYSEC-1", "PYSEC-2")),
        ("upgrade", "jinja2", ("PYSEC-1",)),
        ("claude", "requests", ("PYSEC-4",)),
    ]
    assert len({group.id for group in placement.write}) == 4


def test_another_version_is_never_taken_for_what_may_land_untested() -> None:
    limits = GroupLimits()
    assert {limits.safe_role} == SAFE_ROLES
    safe, unsafe = finding(fix=Fix.SAFE), finding(fix=Fix.UNSAFE)
    key = GroupKey(scope="", subject="F401", tool="ruff")
    assert limits.role_of(key, [safe, safe]) == "autofix"
    for mixed in ([upgrade("jinja2", "X")], [safe, upgrade("jinja2", "X")], [safe, unsafe]):
        assert limits.role_of(key, mixed) not in SAFE_ROLES


def test_a_crate_is_one_scope_whatever_folders_it_has() -> None:
    world = World()
    found = [finding(f"crates/a/src/{name}/lib.rs", "dead_code", scope="crates/a") for name in "xy"]
    (group,) = world.scan(*found).write
    assert (group.key.scope, len(group.findings)) == ("crates/a", 2)


def test_without_a_model_s_role_nothing_is_asked_of_one_and_mild_things_are_left() -> None:
    unsafe = finding("pkg/a.py", "B006", fix=Fix.UNSAFE)
    assert World().scan(unsafe).write == ()
    assert roles(World(MODEL).scan(unsafe)) == [("claude", "B006", ("B006",))]
    strict = replace(MODEL, model_severity=Severity.HIGH)
    assert World(strict).scan(unsafe).write == ()
    assert World(strict).scan(replace(unsafe, severity=Severity.HIGH)).write != ()


def test_a_model_is_not_asked_to_leave_none_of_a_rule_where_one_is_to_stay() -> None:
    dismissed, other = (finding("pkg/a.py", "B006", number, fix=Fix.UNSAFE) for number in (1, 2))
    world = World(MODEL)
    world.known = {dismissed.fingerprint: KnownFinding(finding=dismissed, state=FindingState.DISMISSED)}
    elsewhere = finding("pkg/b.py", "B006", fix=Fix.UNSAFE)
    (group,) = world.scan(dismissed, other, elsewhere).write
    assert (group.files, group.findings, group.spared) == (("pkg/a.py", "pkg/b.py"), (other, elsewhere), (dismissed,))
    assert world.scan(dismissed, other, elsewhere).write == ()
    world.keep(tuple(reopen(list(world.known.values()))))
    (group,) = world.scan(dismissed, other, elsewhere).write
    assert (len(group.findings), group.spared) == (3, ())


def test_a_model_is_not_told_of_any_number_to_leave() -> None:
    world = World(MODEL)
    many = [finding("pkg/a.py", "B006", number, fix=Fix.UNSAFE) for number in range(30)]
    world.known = {one.fingerprint: KnownFinding(finding=one, state=FindingState.DISMISSED) for one in many[1:]}
    assert world.scan(*many).write == ()


def test_the_same_file_may_have_a_task_for_each_kind_of_hand() -> None:
    world = World(MODEL)
    placement = world.scan(finding("pkg/a.py"), finding("pkg/a.py", number=2, fix=Fix.UNSAFE))
    assert sorted((group.role, group.whole) for group in placement.write) == [("autofix", False), ("claude", True)]


def test_no_tool_takes_more_than_its_share() -> None:
    world = World(GroupLimits(max_open=6, max_per_tool=4, per_tool={"audit": 1}))
    many = [finding(f"p{number}/a.py") for number in range(9)]
    placement = world.scan(*many, *(upgrade(name, "X", severity=Severity.LOW) for name in "abc"))
    assert sorted(group.key.tool for group in placement.write) == ["audit", *["ruff"] * 4]
    assert world.scan(*many).write == ()


def test_a_grave_vulnerability_waits_for_no_lint() -> None:
    world = World(GroupLimits(max_open=4, max_per_tool=4))
    lint = [finding(f"p{number}/a.py") for number in range(9)]
    assert len(world.scan(*lint).write) == 4
    grave = [upgrade(f"q{number}", "X", severity=Severity.HIGH) for number in range(30)]
    mild = [upgrade(f"r{number}", "X", severity=Severity.LOW) for number in range(3)]
    placement = world.scan(*lint, *grave, *mild)
    assert len(placement.write) == RESERVED
    assert {group.priority for group in placement.write} == {40}
    assert len(world.ours) == 4 + RESERVED
    assert World(GroupLimits(max_open=0)).scan(*grave).write == ()
    assert World(GroupLimits(per_tool={"audit": 0})).scan(*grave).write == ()


@settings(max_examples=60, deadline=None)
@given(
    numbers=st.lists(st.integers(0, 300), max_size=120),
    cap=st.integers(0, 12),
    share=st.integers(0, 12),
)
def test_whatever_is_found_tasks_keep_within_the_caps(numbers: list[int], cap: int, share: int) -> None:
    world = World(GroupLimits(max_open=cap, max_per_tool=share, model_role="claude"))
    found = {number: finding(f"p{number % 40}/a.py", f"R{number % 7}", number) for number in numbers}
    audits = {number: upgrade(f"q{number}", "X") for number in numbers if number % 5 == 0}
    world.scan(*found.values(), *audits.values())
    tools = [task.key.tool for task in world.ours.values()]
    reserve = RESERVED if cap and share and audits else 0  # they are grave
    assert len(tools) <= cap + reserve
    assert all(tools.count(tool) <= share + reserve for tool in set(tools))
    assert tools.count("ruff") <= min(cap, share)
    if found and cap and share:
        assert tools


def test_a_priority_that_a_person_wrote_stays_through_every_change() -> None:
    world = World()
    world.scan(finding("pkg/a.py"))
    ((task_id, task),) = world.ours.items()
    world.ours[task_id] = replace(task, priority=3)
    assert world.scan(finding("pkg/a.py")).write == ()
    (group,) = world.scan(finding("pkg/a.py"), finding("pkg/b.py")).write
    assert (group.pinned, group.priority) == (3, 50)


def test_a_finding_is_in_work_while_its_task_is() -> None:
    world = World()
    world.scan(finding())
    (task_id,) = world.ours
    for state in sorted(TaskState, key=lambda state: state is TaskState.COMPLETED):
        world.states[task_id] = state
        before = world.state_of(finding())
        world.settle()
        expected = FindingState.IN_WORK if state in AT_WORK else FindingState.QUEUED
        expected = FindingState.OPEN if state is TaskState.FAILED else expected
        landed = state is TaskState.COMPLETED  # whether it is mended, a scan has to say
        assert world.state_of(finding()) == (before if landed else (expected, task_id)), state


def test_what_is_back_is_named_so_in_its_task() -> None:
    world = World()
    world.scan(finding())
    for task_id in world.ours:
        world.states[task_id] = TaskState.COMPLETED
    world.scan()
    (group,) = world.scan(finding(), finding("pkg/b.py")).write
    assert group.returned == {finding().fingerprint}


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
        claimed = [(task.key, path) for task in self.world.ours.values() for path in task.files]
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
