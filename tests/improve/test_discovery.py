from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from coordinator.api.phrase import phrase
from coordinator.checks.adapters import ADAPTERS
from coordinator.checks.ruff_format import RuffFormat
from coordinator.checks.ruff_lint import RuffLint
from coordinator.domain.event import FindingsFolded, FindingsJudged, Noticed, ScanTakesLong, TaskChanged, TaskLanded
from coordinator.domain.finding import ScanReport, ScanStatus
from coordinator.domain.settings import DismissedSettings, ToolSettings
from coordinator.domain.task import TaskState
from coordinator.domain.taskfile import parse
from coordinator.fleet.autofix import FIXED, mend
from coordinator.improve.autofolder import AutoFiles, AutoFolder
from coordinator.improve.autotask import MARK
from coordinator.improve.scanner import ScanQuestion
from coordinator.kit.git import Git
from coordinator.kit.schedule import next_local_fire
from coordinator.policy.change import path_matches
from coordinator.policy.grouping import GroupKey
from tests.improve.rig import FAULTS, Rig, commit, git
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from coordinator.checks.adapter import ScanOrder
    from coordinator.domain.event import Event


@pytest.fixture
def rig(repository: Path) -> Rig:
    commit(repository, dict(FAULTS))
    return Rig(repository)


def run_line(line: str, folder: Path) -> int:
    """A shell line as the gate runs it: our own programs are found last on PATH."""
    path = os.pathsep.join((os.environ["PATH"], str(Path(sys.executable).parent)))
    return subprocess.run(line, shell=True, cwd=folder, env={"PATH": path}, capture_output=True, check=False).returncode


async def test_findings_become_tasks_that_the_spool_takes_and_that_ruff_itself_can_finish(rig: Rig) -> None:
    (report,) = await rig.discovery.scan(write=True)
    assert (report.status, report.total, report.opened, report.queued, report.by_hand) == ("scanned", 6, 6, 3, 1)
    assert rig.states() == {"queued": 5, "open": 1}
    for task_id, text in rig.files().items():
        parsed = parse(text, f"tasks/auto/{task_id}.toml")
        assert parsed.problems == ()
        (task,) = parsed.tasks
        assert (task.id, task.role, task.labels[:2]) == (task_id, "autofix", ("discovery", "ruff"))
        rule, files = task.labels[2], [name for name in FAULTS if any(path_matches(name, glob) for glob in task.paths)]
        assert files
        assert run_line(task.accept[0], rig.repository) == 1
        run_line(shlex.join(["ruff", "check", "--isolated", "--fix", "-q", "--select", rule, *files]), rig.repository)
        assert run_line(task.accept[0], rig.repository) == 0
    assert git(rig.repository, "status", "--porcelain", "--", "tasks", ".coordinator") == ""
    assert not (rig.layout.state / "scan").exists()


async def test_the_embedded_agent_can_follow_every_task_and_a_scan_closes_them(rig: Rig) -> None:
    await rig.discovery.scan(write=True)
    for task_id, text in rig.files().items():
        (task,) = parse(text, f"{task_id}.toml").tasks
        agent = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "coordinator.fleet.autofix"),
            cwd=rig.repository,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await agent.communicate(task.prompt.encode())
        assert agent.returncode == 0, output
        assert run_line(task.accept[0], rig.repository) == 0
        rig.set_state(task_id, TaskState.COMPLETED)
    (report,) = await rig.discovery.scan(write=True)
    assert (report.closed, report.total, report.by_hand, report.removed) == (5, 1, 1, 3)
    assert rig.states() == {"fixed": 5, "open": 1}


async def test_a_task_that_lands_while_a_scan_looks_is_not_doubted(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await rig.discovery.scan(write=True)
    files, real = rig.files(), RuffLint.scan

    async def slow_scan(adapter: RuffLint, order: ScanOrder) -> ScanReport:
        report = await real(adapter, order)
        for task_id in files:
            rig.set_state(task_id, TaskState.COMPLETED)
        return report

    monkeypatch.setattr(RuffLint, "scan", slow_scan)
    await rig.discovery.scan(fresh=True, write=True)
    assert (rig.states(), rig.files()) == ({"queued": 5, "open": 1}, {})
    assert not any(row["reason"] for row in rig.rows())
    await rig.discovery.scan(write=True)
    assert all("still finds it" in str(row["reason"]) for row in rig.rows() if row["fix"] == "safe")
    assert (rig.states(), rig.files()) == ({"open": 6}, {})


async def test_the_fix_is_asked_for_and_not_cleanness_where_a_rule_is_only_partly_safe(repository: Path) -> None:
    commit(
        repository,
        {
            "pkg/__init__.py": "import os\n",
            "pkg/a.py": "try:\n    import json\nexcept ImportError:\n    pass\nimport re\n",
        },
    )
    rig = Rig(repository)
    await rig.discovery.scan(write=True)
    (text,) = rig.files().values()
    (task,) = parse(text, "x.toml").tasks
    assert "--diff" in task.accept[0]
    assert task.paths == ("pkg/a.py",)
    assert run_line(task.accept[0], repository) == 1
    (repository / "pkg/a.py").write_text("try:\n    import json\nexcept ImportError:\n    pass\n")
    assert run_line(task.accept[0], repository) == 0


async def test_a_hundred_scans_of_an_unchanged_tree_change_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def world() -> object:
        rows = [{**row, "last_seen": ""} for row in rig.rows()]
        stamps = [(path.name, path.stat().st_mtime_ns, path.stat().st_ino) for path in sorted(rig.auto.iterdir())]
        return rows, stamps

    await rig.discovery.scan(write=True)
    before = world()
    await rig.discovery.scan(write=True)
    assert world() == before
    question = ScanQuestion(adapters=[ADAPTERS["ruff"]], facts={}, now=rig.clock.now())
    told = [one async for one in rig.discovery._scanner.looks(question)]

    async def same_looks(_: object) -> AsyncGenerator[object]:
        for one in told:
            yield one

    monkeypatch.setattr(rig.discovery._scanner, "looks", same_looks)
    for _ in range(97):
        await rig.discovery.scan(write=True)
    assert world() == before
    monkeypatch.undo()
    (report,) = await rig.discovery.scan(write=True)
    assert report.unchanged
    assert world() == before
    (event, *_) = [event for event in reversed(rig.events) if isinstance(event, FindingsFolded)]
    assert (event.opened, event.closed, event.queued, event.total) == (0, 0, 0, 6)


async def test_moved_lines_are_the_same_findings(rig: Rig) -> None:
    await rig.discovery.scan(write=True)
    files = rig.files()
    commit(rig.repository, {"shop/stock.py": '"""Stock."""\n\n\n' + FAULTS["shop/stock.py"]})
    (report,) = await rig.discovery.scan(write=True)
    assert (report.opened, report.closed) == (0, 0)
    assert rig.files() == files
    assert rig.row_of("F541", "shop/till.py")["line"] == 5
    assert {row["line"] for row in rig.rows() if row["path"] == "shop/stock.py"} == {4, 5}


async def test_a_finding_that_is_gone_takes_its_waiting_task_along_and_one_that_returns_is_known(rig: Rig) -> None:
    await rig.discovery.scan(write=True)
    (task_id,) = [task_id for task_id in rig.files() if "web" in task_id]
    rig.set_state(task_id, TaskState.PENDING)
    commit(rig.repository, {"shop/web/page.py": "def page(tags=()):\n    return tags\n"})
    (report,) = await rig.discovery.scan(write=True)
    assert (report.closed, report.removed, report.queued) == (2, 1, 0)
    assert task_id not in rig.files()
    assert rig.row_of("F401", "shop/web/page.py")["state"] == "fixed"
    rig.set_state(task_id, TaskState.COMPLETED)
    commit(rig.repository, {"shop/web/page.py": FAULTS["shop/web/page.py"]})
    await rig.discovery.scan(write=True)
    assert f"{task_id}-2" in rig.files()
    assert rig.row_of("F401", "shop/web/page.py")["state"] == "queued"


async def test_a_tool_that_broke_closes_nothing_and_says_so(rig: Rig) -> None:
    await rig.discovery.scan(write=True)
    rows, files = rig.rows(), rig.files()
    commit(rig.repository, {"ruff.toml": "no-such-option = 1\n", "shop/stock.py": "x = 1\n"})
    (report,) = await rig.discovery.scan(write=True)
    assert report.status is ScanStatus.BROKEN
    assert "ruff.toml" in report.reason
    assert str(rig.repository) not in report.reason
    assert (rig.rows(), rig.files()) == (rows, files)
    commit(rig.repository, {"ruff.toml": None})
    (report,) = await rig.discovery.scan(write=True)
    assert (report.status, report.closed) == (ScanStatus.SCANNED, 2)


async def test_a_file_that_no_longer_parses_keeps_its_findings(rig: Rig) -> None:
    await rig.discovery.scan(write=True)
    commit(rig.repository, {"shop/stock.py": FAULTS["shop/stock.py"] + "def broken(:\n"})
    (report,) = await rig.discovery.scan(write=True)
    assert (report.status, report.closed) == (ScanStatus.SCANNED, 0)
    (text,) = [text for task_id, text in rig.files().items() if "f401-shop-" in task_id and "web" not in task_id]
    assert "shop/till.py" in text
    assert "shop/stock.py" not in text


async def test_an_unknown_tool_and_a_missing_branch_are_reports(rig: Rig, tmp_path: Path) -> None:
    reports = await rig.discovery.scan(["no-such", "ruff"])
    assert [(report.tool, report.status) for report in reports] == [("no-such", "unavailable"), ("ruff", "scanned")]
    assert rig.files() == {}
    empty = tmp_path / "empty"
    empty.mkdir()
    git(empty, "init", "--quiet")
    for report in await Rig(empty, target="coordinator/main").discovery.scan(write=True):
        assert report.status is ScanStatus.BROKEN
        assert "no commit" in report.reason


async def test_the_target_is_scanned_and_not_the_checkout(rig: Rig) -> None:
    git(rig.repository, "checkout", "--quiet", "-b", "elsewhere")
    commit(rig.repository, {"shop/late.py": "import os\n"})
    (rig.repository / "shop/dirty.py").write_text("import os\n")
    (report,) = await rig.discovery.scan()
    assert report.total == 6


async def test_at_most_max_open_and_the_next_ones_as_they_close(repository: Path) -> None:
    commit(repository, dict(FAULTS))
    rig = Rig(repository, max_open=1)
    seen = []
    for _ in range(3):
        await rig.discovery.scan(write=True)
        (task_id,) = rig.files()
        seen.append(task_id)
        (task,) = parse(rig.files()[task_id], "x.toml").tasks
        commit(repository, dict.fromkeys(task.paths, "x = 1\n"))
        rig.set_state(task_id, TaskState.COMPLETED)
    (report,) = await rig.discovery.scan(write=True)
    assert len(set(seen)) == 3
    assert report.total == 0
    assert rig.files() == {}


async def test_other_peoples_files_are_left_alone_and_ours_are_mended(rig: Rig) -> None:
    await rig.discovery.scan(write=True)
    first, second, third = rig.files()
    texts = rig.files()
    (rig.auto / f"{first}.toml").write_text("id = 'mine'\n")
    (rig.auto / f"{second}.toml").write_text(texts[second][:300])
    (rig.auto / f"{third}.toml").unlink()
    (rig.auto / f"{third}.toml").symlink_to(rig.repository / "README.md")
    (rig.auto / "notes.toml").write_text("# mine\n")
    (rig.auto / f".{first}.toml.123-0a1b2c3d.tmp").write_text("half")
    await rig.discovery.scan(write=True)
    assert (rig.auto / f"{first}.toml").read_text() == "id = 'mine'\n"
    assert (rig.auto / f"{second}.toml").read_text() == texts[second]
    assert (rig.auto / f"{third}.toml").is_symlink()
    assert (rig.repository / "README.md").read_text().startswith("# Shop")
    assert (rig.auto / "notes.toml").read_text() == "# mine\n"
    assert {f"{first}-2", f"{third}-2"} <= set(rig.files())
    assert not list(rig.auto.glob(".*.tmp"))


async def test_a_folder_that_leads_elsewhere_is_not_written(rig: Rig, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    rig.auto.parent.mkdir()
    rig.auto.symlink_to(elsewhere)
    (report,) = await rig.discovery.scan(write=True)
    assert (report.status, report.queued) == (ScanStatus.SCANNED, 0)
    assert list(elsewhere.iterdir()) == []
    assert "symbolic link" in next(event.message for event in rig.events if isinstance(event, Noticed))


async def test_a_name_taken_at_the_last_moment_leaves_the_findings_waiting(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = [("F401", "shop"), ("F541", "shop"), ("F401", "shop/web")]
    names = [GroupKey(scope=scope, subject=rule, tool="ruff").task_id(1) for rule, scope in groups]
    rig.auto.mkdir(parents=True)
    for name in names:
        (rig.auto / f"{name}.toml").write_text("# mine\n")
    monkeypatch.setattr(AutoFolder, "read", lambda _: AutoFiles(damaged=frozenset(), ours={}, taken=frozenset()))
    (report,) = await rig.discovery.scan(write=True)
    assert (report.queued, set(rig.files().values()), rig.states()) == (0, {"# mine\n"}, {"open": 6})
    monkeypatch.undo()
    (report,) = await rig.discovery.scan(write=True)
    assert report.queued == 3
    assert {row["task"] for row in rig.rows()} == {"", *(f"{name}-2" for name in names)}


def test_the_folder_replaces_and_removes_only_regular_files_with_our_mark(tmp_path: Path) -> None:
    folder = AutoFolder(tmp_path)
    assert folder.write("a", f"{MARK} 1")
    assert folder.write("a", f"{MARK} 2")
    (tmp_path / "auto" / "b.toml").write_text("mine")
    (tmp_path / "auto" / "c.toml").symlink_to(tmp_path / "auto" / "a.toml")
    (tmp_path / "auto" / "d.toml").mkdir()
    os.mkfifo(tmp_path / "auto" / "e.toml")
    for name in "bcde":
        assert not folder.write(name, f"{MARK} 3")
        assert not folder.remove(name)
    assert folder.read() == AutoFiles(damaged=frozenset("a"), ours={}, taken=frozenset("bcde"))
    assert (tmp_path / "auto" / "a.toml").read_text() == f"{MARK} 2"
    assert (tmp_path / "auto" / "b.toml").read_text() == "mine"
    assert folder.remove("a")
    assert not folder.remove("a")


async def test_a_lost_ledger_takes_its_files_back_and_removes_none(rig: Rig) -> None:
    await rig.discovery.scan(write=True)
    files = rig.files()
    rig.store.close()
    for path in rig.layout.state.glob("ledger.db*"):
        path.unlink()
    again = Rig(rig.repository)
    commit(rig.repository, {"ruff.toml": "no-such-option = 1\n"})
    await again.discovery.scan(write=True)
    assert again.files() == files
    commit(rig.repository, {"ruff.toml": None})
    (report,) = await again.discovery.scan(write=True)
    assert (again.files(), report.queued) == (files, 0)
    assert again.states() == {"queued": 5, "open": 1}


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from coordinator.improve.autofolder import AutoFolder
from coordinator.improve.register import FindingRegister
from tests.improve.rig import Rig

owner, method = {"write": (AutoFolder, "write"), "keep": (FindingRegister, "keep")}[sys.argv[2]]
calls, real = [0], getattr(owner, method)

def deadly(*args, **other):
    calls[0] += 1
    if calls[0] == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **other)

setattr(owner, method, deadly)
asyncio.run(Rig(Path(sys.argv[1])).discovery.scan(write=True))
"""


@pytest.mark.parametrize(("method", "call"), [("keep", 1), ("write", 1), ("write", 3), ("keep", 2)])
async def test_killed_anywhere_the_next_scan_makes_it_whole(rig: Rig, method: str, call: int) -> None:
    killed = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", KILLED, str(rig.repository), method, str(call)), cwd=Path(__file__).parents[2]
    )
    assert await killed.wait() == -9
    await rig.discovery.scan(write=True)
    files = rig.files()
    assert (len(files), rig.states()) == (3, {"queued": 5, "open": 1})
    assert {row["task"] for row in rig.rows()} - {""} == set(files)
    await rig.discovery.scan(write=True)
    assert rig.files() == files


# --- what is remembered ------------------------------------------------------------------------------------------------


async def test_a_renamed_file_keeps_its_findings_and_its_place_in_a_task(rig: Rig) -> None:
    await rig.discovery.scan(write=True)
    before = {row["fingerprint"]: (row["first_seen"], row["state"]) for row in rig.rows()}
    git(rig.repository, "mv", "shop/till.py", "shop/counter.py")
    git(rig.repository, "commit", "--quiet", "-m", "Rename")
    (report,) = await rig.discovery.scan(write=True)
    assert (report.opened, report.closed, report.unchanged) == (0, 0, False)
    assert sorted((row["first_seen"], row["state"]) for row in rig.rows()) == sorted(before.values())
    assert {row["path"] for row in rig.rows()} == {"shop/stock.py", "shop/counter.py", "shop/web/page.py"}
    assert all("shop/till.py" not in text for text in rig.files().values())
    assert sum("shop/counter.py" in text for text in rig.files().values()) == 2
    commit(rig.repository, {"shop/counter.py": "x = 1\n"})
    (report,) = await rig.discovery.scan(write=True)
    assert (report.opened, report.closed) == (0, 2)


async def test_a_dismissed_finding_stays_so_through_scans_renames_and_restarts(rig: Rig) -> None:
    await rig.discovery.scan(write=True)
    mark = str(rig.row_of("F541", "shop/till.py")["fingerprint"])
    assert await rig.discovery.dismiss([mark, "no such one"], "printed as it is") == 1
    assert await rig.discovery.dismiss([mark], "printed as it is") == 0
    commit(rig.repository, {"shop/till.py": "\n\n" + FAULTS["shop/till.py"]})
    git(rig.repository, "mv", "shop/till.py", "shop/counter.py")
    git(rig.repository, "commit", "--quiet", "-m", "Rename")
    await rig.discovery.scan(write=True)
    assert not any("f541" in task_id for task_id in rig.files())
    rig.store.close()
    again = Rig(rig.repository)
    await again.discovery.scan(fresh=True, write=True)
    row = again.row_of("F541", "shop/counter.py")
    assert (row["state"], row["reason"]) == ("dismissed", "printed as it is")
    assert await again.discovery.reopen([str(row["fingerprint"])]) == 1
    await again.discovery.scan(write=True)
    assert again.row_of("F541", "shop/counter.py")["state"] == "queued"
    (day,) = again.store.query("finding_days", since="2000-01-01")
    assert (day["tool"], day["found"], day["fixed"], day["reopened"], day["dismissed"]) == ("ruff", 6, 0, 0, 1)


async def test_what_was_fixed_long_ago_is_forgotten_and_a_dismissal_never_is(rig: Rig) -> None:
    await rig.discovery.scan()
    mark = str(rig.row_of("B006", "shop/web/page.py")["fingerprint"])
    await rig.discovery.dismiss([mark], "known")
    await rig.discovery.reopen([mark])
    await rig.discovery.dismiss([mark], "known")
    judged = [event for event in rig.events if isinstance(event, FindingsJudged)]
    assert [(event.verdict, event.reason, event.findings) for event in judged] == [
        ("dismissed", "known", (mark,)),
        ("reopened", "", (mark,)),
        ("dismissed", "known", (mark,)),
    ]
    commit(rig.repository, {"shop/till.py": "x = 1\n", "shop/web/page.py": "x = 1\n"})
    await rig.discovery.scan()
    await rig.discovery.forget()
    assert rig.states() == {"fixed": 3, "dismissed": 1, "open": 2}
    old = (rig.clock.now() - timedelta(days=181)).isoformat()
    for row in rig.rows():
        if row["path"] != "shop/till.py":
            rig.store.execute("finding_seen", fingerprint=row["fingerprint"], at=old)
    rig.store.execute("finding_day_add", day=old[:10], tool="ruff", found=1, fixed=0, reopened=0, dismissed=0)
    await rig.discovery.forget()
    assert rig.states() == {"fixed": 2, "dismissed": 1, "open": 2}
    assert len(rig.store.query("finding_days", since="")) == 1


async def test_what_comes_back_is_a_regression_and_names_the_task_that_had_fixed_it(rig: Rig) -> None:
    await rig.discovery.scan(write=True)
    task = str(rig.row_of("F541", "shop/till.py")["task"])
    rig.set_state(task, TaskState.COMPLETED)
    commit(rig.repository, {"shop/till.py": "import json\n\n\ndef ring():\n    return 'bell'\n"})
    await rig.discovery.scan(write=True)
    commit(rig.repository, {"shop/till.py": FAULTS["shop/till.py"]})
    (report,) = await rig.discovery.scan(write=True)
    assert (report.opened, report.reopened) == (1, 1)
    row = rig.row_of("F541", "shop/till.py")
    assert json.loads(row["data"])["fixed_by"] == task
    text = rig.files()[str(row["task"])]
    assert "is back" in text
    assert parse(text, "x.toml").tasks[0].title.startswith("Fix F541 again")


async def test_nothing_is_run_while_nothing_that_a_tool_reads_has_changed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[str] = []
    real = RuffLint.scan

    async def counted(adapter: RuffLint, order: ScanOrder) -> ScanReport:
        runs.append("run")
        return await real(adapter, order)

    monkeypatch.setattr(RuffLint, "scan", counted)
    await rig.discovery.scan(write=True)
    commit(rig.repository, {"README.md": "# More\n"})
    (report,) = await rig.discovery.scan(write=True)
    assert (report.unchanged, report.total, report.by_hand, report.status) == (True, 6, 1, "scanned")
    commit(rig.repository, {"pyproject.toml": "[tool.ruff.lint]\nselect = ['F401']\n"})
    (report,) = await rig.discovery.scan(write=True)
    assert (report.unchanged, report.total, report.closed) == (False, 4, 2)
    (report,) = await rig.discovery.scan(fresh=True)
    assert not report.unchanged
    assert len(runs) == 3


async def test_a_tool_that_broke_is_asked_again_though_nothing_changed(rig: Rig) -> None:
    commit(rig.repository, {"ruff.toml": "no-such-option = 1\n"})
    for _ in range(2):
        (report,) = await rig.discovery.scan()
        assert (report.status, report.unchanged) == (ScanStatus.BROKEN, False)


async def test_a_tool_that_broke_meanwhile_has_to_say_again_what_it_once_said(rig: Rig) -> None:
    await rig.discovery.scan()
    commit(rig.repository, {"ruff.toml": "no-such-option = 1\n"})
    await rig.discovery.scan()
    commit(rig.repository, {"ruff.toml": None})
    (report,) = await rig.discovery.scan()
    assert (report.status, report.unchanged) == (ScanStatus.SCANNED, False)


async def test_a_project_that_no_longer_calls_for_a_tool_is_done_with_it(repository: Path) -> None:
    commit(repository, {"a.py": "x = {  'a':1 }\n", "pyproject.toml": "[tool.ruff.format]\n"})
    rig = Rig(repository)
    reports = await rig.discovery.scan(write=True)
    assert [(one.tool, one.total, one.queued) for one in reports] == [("ruff", 0, 0), ("ruff-format", 1, 1)]
    commit(repository, {"pyproject.toml": "[tool.ruff]\n"})
    reports = await rig.discovery.scan(write=True)
    assert [(one.tool, one.status, one.closed) for one in reports][1:] == [("ruff-format", "uncalled", 1)]
    assert rig.files() == {}
    assert [one.tool for one in await rig.discovery.scan(write=True)] == ["ruff"]


async def test_a_file_is_formatted_by_the_embedded_agent_and_a_scan_closes_it(repository: Path) -> None:
    commit(repository, {"a.py": "x = {  'a':1 }\n", "pyproject.toml": "[tool.ruff.format]\n"})
    rig = Rig(repository)
    await rig.discovery.scan(write=True)
    ((task_id, text),) = rig.files().items()
    (task,) = parse(text, "x.toml").tasks
    assert task_id.startswith("ruff-format-unformatted-top-")
    assert run_line(task.accept[0], repository) == 1
    assert await mend(repository, task.prompt, {}) == FIXED
    assert run_line(task.accept[0], repository) == 0
    assert git(repository, "log", "-1", "--format=%s") == "ruff format: a.py"
    rig.set_state(task_id, TaskState.COMPLETED)
    reports = await rig.discovery.scan(write=True)
    assert [one.closed for one in reports] == [0, 1]
    assert rig.states() == {"fixed": 1}


async def test_what_no_tool_mends_is_for_the_role_that_the_settings_name(repository: Path) -> None:
    commit(repository, dict(FAULTS))
    rig = Rig(repository, role="claude")
    (report,) = await rig.discovery.scan(write=True)
    assert report.queued == 4
    roles = {task_id: parse(text, "x.toml").tasks[0].role for task_id, text in rig.files().items()}
    assert sorted(roles.values()) == ["autofix"] * 3 + ["claude"]
    (task_id,) = [task_id for task_id, role in roles.items() if role == "claude"]
    (task,) = parse(rig.files()[task_id], "x.toml").tasks
    assert "--select B006" in task.accept[0]
    assert run_line(task.accept[0], repository) == 1
    commit(repository, {"shop/web/page.py": "import re\n\n\ndef page(tags=()):\n    return tags\n"})
    assert run_line(task.accept[0], repository) == 0


# --- as a service ------------------------------------------------------------------------------------------------------


class Served:
    """The service on a real loop; ``news`` waits for the next fold."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.stopping = asyncio.Event()
        self._heard = rig.bus.subscribe()
        self.task = asyncio.create_task(rig.discovery.run(self.stopping))

    async def news(self, wanted: Callable[[FindingsFolded], bool] = lambda _: True) -> FindingsFolded:
        async with asyncio.timeout(10):
            async for published in self._heard:
                if isinstance(published.event, FindingsFolded) and wanted(published.event):
                    return published.event
        raise AssertionError("the bus closed")

    async def stop(self) -> None:
        self.stopping.set()
        await asyncio.wait_for(self.task, 5)


async def settled(condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(wait_until, condition)


async def test_served_it_scans_at_start_and_after_a_landing_and_places_when_a_task_settles(repository: Path) -> None:
    commit(repository, dict(FAULTS))
    rig = Rig(repository, max_open=1)
    told: list[bool] = []
    rig.bus.tap(
        lambda published: told.append(rig.discovery.busy) if isinstance(published.event, FindingsFolded) else None
    )
    served = Served(rig)
    assert (await served.news()).queued == 1
    (first,) = rig.files()
    await settled(lambda: not rig.discovery._at_work)
    assert rig.discovery.busy  # the ledger does not know of the task yet
    rig.set_state(first, TaskState.FAILED)
    await settled(lambda: not rig.discovery.busy)
    change = {"task": first, "old": "running", "reason": "", "generation": 1}
    rig.bus.publish(TaskChanged(new="failed", **change))
    assert rig.discovery.busy
    await settled(lambda: len(rig.files()) == 2)
    for task_id in rig.files():
        rig.set_state(task_id, TaskState.FAILED)
    await settled(lambda: not rig.discovery.busy)
    commit(repository, dict.fromkeys(FAULTS, "x = 1\n"))
    for _ in range(5):
        rig.bus.publish(TaskLanded(commit="c", files=(), generation=1, target="main", task=first))
    assert (await served.news()).closed == 6
    await settled(lambda: rig.files() == {} and not rig.discovery._at_work)
    assert told == [True, True]
    await served.stop()
    assert not rig.discovery._serving


async def test_served_it_follows_tasks_and_looks_only_with_what_a_landing_touched(repository: Path) -> None:
    commit(repository, {**FAULTS, "pyproject.toml": "[tool.ruff.format]\n"})
    rig = Rig(repository)
    served = Served(rig)
    await settled(lambda: len(rig.files()) > 3 and not rig.discovery._at_work)
    task = str(rig.row_of("F541", "shop/till.py")["task"])
    change = {"task": task, "reason": "", "generation": 1}
    rig.bus.publish(TaskChanged(old="ready", new="claimed", **change))
    assert rig.row_of("F541", "shop/till.py")["state"] == "in work"
    assert rig.row_of("F401", "shop/till.py")["state"] == "queued"
    rig.bus.publish(TaskChanged(old="claimed", new="pending", **change))
    assert rig.row_of("F541", "shop/till.py")["state"] == "queued"
    rig.bus.publish(TaskChanged(old="ready", new="claimed", **change))
    rig.bus.publish(TaskChanged(old="landing", new="completed", **change))
    assert rig.row_of("F541", "shop/till.py")["state"] == "in work"  # until a scan has looked
    landed = {"commit": "c", "generation": 1, "target": "main"}
    rig.bus.publish(TaskLanded(files=("docs/notes.md",), task="somebody-s", **landed))
    assert rig.discovery._due == set()
    rig.bus.publish(TaskLanded(files=("docs/notes.md",), task=task, **landed))
    assert rig.discovery._due == {"ruff"}
    rig.bus.publish(TaskLanded(files=("docs/conf.py",), task="somebody-s", **landed))
    assert rig.discovery._due == {"ruff", "ruff-format"}
    await served.stop()


async def test_a_slow_tool_keeps_nobody_s_tasks_waiting(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(repository, {**FAULTS, "pyproject.toml": "[tool.ruff.format]\n"})
    rig, looking, go_on = Rig(repository), asyncio.Event(), asyncio.Event()
    real = RuffFormat.scan

    async def slow(adapter: RuffFormat, order: ScanOrder) -> ScanReport:
        looking.set()
        await go_on.wait()
        return await real(adapter, order)

    monkeypatch.setattr(RuffFormat, "scan", slow)
    scan = asyncio.create_task(rig.discovery.scan(write=True))
    await asyncio.wait_for(looking.wait(), 10)
    assert len(rig.files()) == 3
    assert [event.tool for event in rig.events if isinstance(event, FindingsFolded)] == ["ruff"]
    mark = str(rig.row_of("F541", "shop/till.py")["fingerprint"])
    assert await asyncio.wait_for(rig.discovery.dismiss([mark], "a person does not wait either"), 5) == 1
    go_on.set()
    assert [(report.tool, report.queued) for report in await scan] == [("ruff", 3), ("ruff-format", 1)]
    assert not (rig.layout.state / "scan").exists()


async def test_what_the_settings_dismiss_has_no_task(repository: Path) -> None:
    commit(repository, dict(FAULTS))
    word = DismissedSettings(reason="we like it so", rule="F401", path="shop/*")
    rig = Rig(repository, dismissed=(word,))
    await rig.discovery.scan(write=True)
    dismissed = [row for row in rig.rows() if row["state"] == "dismissed"]
    assert {row["rule"] for row in dismissed} == {"F401"}
    assert {row["reason"] for row in dismissed} == {"we like it so (by the settings, [[discovery.dismissed]])"}
    assert not any("f401" in name for name in rig.files())
    free = Rig(repository)
    await free.discovery.scan(fresh=True, write=True)
    assert "dismissed" not in free.states()
    assert any("f401" in name for name in free.files())


async def test_a_tool_that_takes_long_gives_a_sign_of_life(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.improve.scanner.SIGN_OF_LIFE_S", 0.05)
    commit(repository, {**FAULTS, "pyproject.toml": "[tool.ruff.format]\n"})
    rig, real, told = Rig(repository), RuffFormat.scan, asyncio.Event()
    tell = rig.bus.publish

    def hear(event: Event) -> object:
        if isinstance(event, ScanTakesLong) and event.tool == "ruff-format":
            told.set()
        return tell(event)

    async def slow(adapter: RuffFormat, order: ScanOrder) -> ScanReport:
        await asyncio.wait_for(told.wait(), 10)
        return await real(adapter, order)

    monkeypatch.setattr(RuffFormat, "scan", slow)
    monkeypatch.setattr(rig.bus, "publish", hear)
    await rig.discovery.scan(write=True)
    said = [event for event in rig.events if isinstance(event, ScanTakesLong) and event.tool == "ruff-format"]
    assert [phrase(event).text for event in said] == [
        "ruff-format has been at it for 0.1 s; a first look may take minutes"
    ]
    before = len(rig.events)
    monkeypatch.undo()
    await rig.discovery.scan(fresh=True, write=True)
    assert not [event for event in rig.events[before:] if isinstance(event, ScanTakesLong)]


async def test_a_tree_that_cannot_be_made_breaks_those_that_were_not_asked_yet(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Git, "export_tree", full)
    reports = await rig.discovery.scan(write=True)
    assert {report.status for report in reports} == {ScanStatus.BROKEN}
    assert all("No space left" in report.reason for report in reports)
    assert rig.rows() == []


async def test_served_it_tries_a_broken_scan_again_by_itself(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.improve.discovery._FIRST_RETRY_S", 0.05)
    commit(rig.repository, {"ruff.toml": "no-such-option = 1\n"})
    served = Served(rig)
    assert (await served.news()).status == "broken"
    commit(rig.repository, {"ruff.toml": None})
    assert (await served.news(lambda event: event.status == "scanned")).queued == 3
    await served.stop()


async def test_a_stop_cuts_a_scan_short(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    looking = asyncio.Event()

    async def endless(*_: object, **__: object) -> object:
        looking.set()
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(RuffLint, "scan", endless)
    served = Served(rig)
    await asyncio.wait_for(looking.wait(), 5)
    assert rig.discovery.busy
    await served.stop()
    assert not (rig.layout.state / "scan").exists()
    assert not rig.discovery.busy


async def test_a_stop_before_the_start_and_the_tick_of_the_interval(rig: Rig) -> None:
    rig.discovery._serving = False
    stopping = asyncio.Event()
    stopping.set()
    await asyncio.wait_for(rig.discovery.run(stopping), 5)
    served = Served(rig)
    await served.news()
    await settled(lambda: not rig.discovery._at_work)
    shutil.rmtree(rig.auto)
    await rig.discovery.look_again()
    assert (await served.news()).queued == 3
    await served.stop()


class Beats:
    """What would be asked of the schedule."""

    def __init__(self) -> None:
        self.every_: dict[str, tuple[float, float]] = {}
        self.at_: dict[str, str] = {}

    def every(self, name: str, seconds: float, work: object, *, first_s: float, jitter_s: float) -> None:
        assert jitter_s <= seconds / 10
        self.every_[name] = (seconds, round(first_s, -1))

    def at(self, name: str, cron: str, work: object, *, jitter_s: float) -> None:
        self.at_[name] = cron


async def test_each_tool_has_its_own_pace_and_a_restart_does_not_begin_it_anew(repository: Path) -> None:
    commit(repository, {**FAULTS, "pyproject.toml": "[tool.ruff.format]\n"})
    tools = (ToolSettings(name="ruff", interval_s=7200.0), ToolSettings(name="ruff-format", cron="30 4 * * *"))
    rig, beats = Rig(repository, tool=tools, tools=("ruff", "ruff-format")), Beats()
    rig.discovery.arrange(beats)  # type: ignore[arg-type]
    assert (beats.every_, beats.at_) == ({"scan ruff": (7200.0, 7200.0)}, {"scan ruff-format": "30 4 * * *"})
    await rig.discovery.scan()
    (row,) = rig.store.query("fact_get", key="scan:ruff")
    long_ago = rig.clock.now() - timedelta(seconds=7000)
    for name in ("ruff", "ruff-format"):
        (row,) = rig.store.query("fact_get", key=f"scan:{name}")
        fact = {**json.loads(row["value"]), "at": long_ago.isoformat()}
        rig.store.execute("fact_put", key=f"scan:{name}", value=json.dumps(fact))
    again = Rig(repository, tool=tools, tools=("ruff", "ruff-format"))
    again.discovery.arrange(beats)  # type: ignore[arg-type]
    assert beats.every_ == {"scan ruff": (7200.0, 200.0)}
    missed = next_local_fire("30 4 * * *", long_ago) <= rig.clock.now()
    assert again.discovery._due_at_start() == ["ruff", *(["ruff-format"] if missed else [])]
    nightly = (ToolSettings(name="ruff", cron="* * * * *"), ToolSettings(name="ruff-format", cron="0 0 29 2 *"))
    assert Rig(repository, tool=nightly, tools=("ruff", "ruff-format")).discovery._due_at_start() == ["ruff"]


async def test_served_a_tool_whose_time_has_come_looks_and_the_others_do_not(rig: Rig) -> None:
    served = Served(rig)
    await served.news()
    await settled(lambda: not rig.discovery._at_work)
    commit(rig.repository, {"shop/late.py": "import os\n"})
    await rig.discovery.look_again("ruff-format")
    await settled(lambda: not rig.discovery._due and not rig.discovery._at_work)
    assert {str(row["path"]) for row in rig.rows()} == set(FAULTS)
    await rig.discovery.look_again("ruff")
    assert (await served.news(lambda event: event.tool == "ruff")).opened == 1
    await served.stop()


async def test_served_a_restart_on_an_unchanged_tree_runs_no_tool(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await rig.discovery.scan(write=True)
    monkeypatch.setattr(RuffLint, "scan", None)  # would be an error
    again = Rig(rig.repository)
    served = Served(again)
    event = await served.news()
    assert (event.unchanged, event.status, event.total) == (True, "scanned", 6)
    await served.stop()
