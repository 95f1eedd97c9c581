"""When a tool looks again and when it is left out; which settings reach the tasks that are written."""

from __future__ import annotations

import shutil
import sys
import tomllib
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from coordinator.domain.settings import ToolSettings
from coordinator.improve.register import FindingRegister
from tests.improve.rig import FAULTS, Rig, commit


def program(folder: Path, script: str) -> Path:
    path = folder / "program"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


async def looked(rig: Rig, *named: str) -> bool:
    """Whether the one tool was run; the second look is at what nobody has changed since."""
    (report,) = await rig.discovery.scan(list(named))
    assert report.status == "scanned", report.reason
    return not report.unchanged


async def test_whatever_the_answer_depends_on_brings_another_look(repository: Path, tmp_path: Path) -> None:
    commit(repository, dict(FAULTS))
    ruff = program(tmp_path, f'exec {shutil.which("ruff", path=str(Path(sys.executable).parent))} "$@"')
    tool = ToolSettings(name="ruff", path=str(ruff))
    rig = Rig(repository, tool=(tool,))
    assert [await looked(rig) for _ in range(3)] == [True, False, False]
    with ruff.open("a") as file:
        file.write("# a newer version\n")
    assert [await looked(rig) for _ in range(2)] == [True, False]
    settings: dict[str, object] = {"tool": (tool,)}
    for changed in (
        {"tool": (replace(tool, arguments=("--quiet",)),)},
        {"select": ("F401",)},
        {"tools": ("ruff",)},
    ):
        settings |= changed
        rig.store.close()
        rig = Rig(repository, **settings)
        assert [await looked(rig) for _ in range(2)] == [True, False], changed


async def test_what_is_installed_for_the_project_brings_another_look(repository: Path) -> None:
    rig = Rig(repository, tools=("vulture",))
    assert [await looked(rig) for _ in range(2)] == [True, False]
    for folder in ("bin", "lib/python3.11/site-packages/more"):
        (repository / ".venv" / folder).mkdir(parents=True)
    (repository / ".venv/bin/python").symlink_to(sys.executable)
    assert [await looked(rig) for _ in range(2)] == [True, False]


async def test_where_time_matters_an_unchanged_tree_is_looked_at_again(repository: Path, tmp_path: Path) -> None:
    commit(repository, {"requirements.txt": "sound==1\n"})
    audit = program(tmp_path, """echo '{"dependencies": [{"name": "sound", "version": "1", "vulns": []}]}'""")
    tool = ToolSettings(name="pip-audit", path=str(audit))
    rig = Rig(repository, tool=(tool,), tools=("pip-audit",))
    assert [await looked(rig) for _ in range(2)] == [True, False]
    assert await looked(rig, "pip-audit")  # a person who asks for it wants to know
    register = FindingRegister(rig.store)
    for hours, again in ((11, False), (13, True)):
        fact = register.scans()["pip-audit"]
        register.keep_scan(replace(fact, looked_at=(rig.clock.now() - timedelta(hours=hours)).isoformat()))
        assert await looked(rig) is again


async def test_the_caps_the_priority_and_the_mildest_severity_are_those_of_the_settings(repository: Path) -> None:
    commit(repository, dict(FAULTS))
    for settings, tasks in (
        ({}, 3),
        ({"max_open_per_tool": 2}, 2),
        ({"max_open": 1}, 1),
        ({"tool": (ToolSettings(name="ruff", max_open=1),)}, 1),
        ({"role": "mender", "model_severity": "high"}, 3),
        ({"role": "mender", "model_severity": "medium", "priority": 7}, 4),
    ):
        rig = Rig(repository, **settings)
        (report,) = await rig.discovery.scan(fresh=True, write=True)
        assert (report.queued, len(rig.files())) == (tasks, tasks), settings
        priorities = {tomllib.loads(text)["tasks"][0]["priority"] for text in rig.files().values()}
        usual = settings.get("priority", 50)
        assert priorities <= {usual, usual + 10}, settings
        rig.store.close()
        shutil.rmtree(rig.auto)
        rig.layout.ledger.unlink()


async def test_a_priority_that_a_person_wrote_stays_when_the_task_is_written_anew(repository: Path) -> None:
    commit(repository, dict(FAULTS))
    rig = Rig(repository)
    await rig.discovery.scan(write=True)
    (task_id,) = {str(row["task"]) for row in rig.rows() if row["rule"] == "F541"}
    path = rig.auto / f"{task_id}.toml"
    before = path.read_text()
    path.write_text(before.replace("priority = 50", "priority = 3"))
    commit(repository, {"shop/till.py": FAULTS["shop/till.py"] + "\n\ndef again():\n    return f'gong'\n"})
    await rig.discovery.scan(write=True)
    (task,) = tomllib.loads(path.read_text())["tasks"]
    assert (task["priority"], "2 findings" in task["title"]) == (3, True)
    await rig.discovery.scan(fresh=True, write=True)
    assert tomllib.loads(path.read_text())["tasks"][0]["priority"] == 3
