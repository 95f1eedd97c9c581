from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from coordinator.checks.ruff import (
    RuffCheck,
    categorise,
    configuration_arguments,
    finding_names,
    project_target_version,
    scan,
)
from coordinator.domain.check import BrokenBy, CheckStatus
from coordinator.domain.finding import Fix, ScanReport, ScanStatus, Severity

if TYPE_CHECKING:
    from pathlib import Path

FAULTY = "import os\nimport sys\n\n\ndef f():\n    x = 1\n    return None == sys\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    path = tmp_path / "tree"
    path.mkdir()
    subprocess.run(["git", "init", "-q", path], check=True)
    (path / "a.py").write_text(FAULTY)
    return path


def marks(report: ScanReport) -> dict[str, str]:
    assert report.status is ScanStatus.SCANNED, report.reason
    return {finding.fingerprint: finding.rule for finding in report.findings}


async def test_findings_have_place_rule_fix_and_evidence(tree: Path) -> None:
    report = await scan(tree)
    by_rule = {finding.rule: finding for finding in report.findings}
    assert set(by_rule) == {"F401", "F841", "E711"}
    unused = by_rule["F401"]
    assert (unused.place.path, unused.place.line, unused.evidence) == ("a.py", 1, "import os")
    assert unused.fix is Fix.SAFE
    assert unused.category == "dead code"
    assert by_rule["E711"].severity is Severity.MEDIUM
    assert by_rule["F841"].fix is Fix.UNSAFE
    assert (tree / "a.py").read_text() == FAULTY
    assert sorted(path.name for path in tree.iterdir()) == [".git", "a.py"]


async def test_fingerprints_survive_moved_lines_and_another_folder(tree: Path, tmp_path: Path) -> None:
    before = marks(await scan(tree))
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.py").write_text('"""New."""\n\n' + FAULTY.replace("    x = 1", "    x  =  1"))
    assert marks(await scan(other)) == before
    (other / "a.py").write_text(FAULTY + "\n\ndef g():\n    x = 1\n")
    more = marks(await scan(other))
    assert set(before) < set(more)
    assert len(more) == len(before) + 1


async def test_a_file_that_cannot_be_parsed_is_named(tree: Path) -> None:
    (tree / "b.py").write_text("import os\ndef f(:\n")
    report = await scan(tree)
    assert report.status is ScanStatus.SCANNED
    assert report.unread == ("b.py",)
    assert {finding.rule for finding in report.findings if finding.place.path == "b.py"} == {"invalid-syntax"}


async def test_an_unreadable_configuration_is_broken_not_clean(tree: Path) -> None:
    (tree / "ruff.toml").write_text("x x\n")
    report = await scan(tree)
    assert report.status is ScanStatus.BROKEN
    assert "TOML" in report.reason


async def test_a_version_the_project_insists_on_is_unavailable(tree: Path) -> None:
    (tree / "ruff.toml").write_text('required-version = "==0.0.1"\n')
    report = await scan(tree)
    assert report.status is ScanStatus.UNAVAILABLE
    assert "0.0.1" in report.reason


async def test_a_tool_that_times_out_or_lies_is_broken(tree: Path, tmp_path: Path) -> None:
    fake = tmp_path / "ruff"
    fake.write_text("#!/bin/sh\nexit 0\n")
    fake.chmod(0o755)
    assert (await scan(tree, ruff=fake)).status is ScanStatus.BROKEN
    fake.write_text("#!/bin/sh\nsleep 60\n")
    report = await scan(tree, ruff=fake, timeout_s=0.2)
    assert report.status is ScanStatus.BROKEN
    assert "stopped after" in report.reason
    assert (await scan(tree, ruff=tmp_path / "absent")).status is ScanStatus.BROKEN


@pytest.mark.parametrize(
    ("script", "broken_by"),
    [
        ("kill -KILL $$", BrokenBy.ENVIRONMENT),
        ("sleep 60", BrokenBy.TIME),
        ("kill -SEGV $$", BrokenBy.TREE),
        ("exit 2", BrokenBy.TREE),
        ("", BrokenBy.TREE),
        (None, BrokenBy.ENVIRONMENT),
    ],
)
async def test_who_is_to_blame_when_it_cannot_look(
    tree: Path, tmp_path: Path, script: str | None, broken_by: BrokenBy
) -> None:
    fake = tmp_path / "ruff"
    if script is not None:
        fake.write_text(f"#!/bin/sh\n{script}\n")
        fake.chmod(0o755)
    timeout_s = 0.3 if broken_by is BrokenBy.TIME else 30.0
    outcome = await RuffCheck(ruff=fake, timeout_s=timeout_s, identity=str).run(tree, tmp_path)
    assert (outcome.status, outcome.broken_by) == (CheckStatus.BROKEN, broken_by), outcome


async def test_the_projects_own_selection_counts_and_folders_above_do_not(tree: Path) -> None:
    (tree.parent / "ruff.toml").write_text('exclude = ["a.py"]\nlint.select = ["D"]\n')
    assert set(marks(await scan(tree)).values()) == {"F401", "F841", "E711"}
    (tree / "pyproject.toml").write_text('[tool.ruff]\nlint.select = ["F401"]\n')
    assert set(marks(await scan(tree)).values()) == {"F401"}
    (tree / "pyproject.toml").write_text('[tool.ruff]\nline-length = 20\nlint.extend-select = ["E501"]\n')
    assert set(marks(await scan(tree)).values()) == {"F401", "F841", "E711", "E501"}
    assert set(marks(await scan(tree, select=["F841"])).values()) == {"F841"}
    (tree / "pyproject.toml").write_text('[tool.ruff]\nignore = ["E711"]\n')
    assert set(marks(await scan(tree)).values()) == {"F401", "F841"}
    assert set(marks(await scan(tree, select=["E7", "F4"])).values()) == {"F401"}
    (tree / "pyproject.toml").write_text('[tool.ruff]\nfix = true\nunsafe-fixes = true\nlint.select = ["F"]\n')
    await scan(tree)
    assert (tree / "a.py").read_text() == FAULTY


async def test_a_folder_that_ignores_itself_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".gitignore").write_text("*\n")
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a.py").write_text(FAULTY)
    assert marks(await scan(tree))


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("pyproject.toml", '[project]\nrequires-python = ">=3.9,<4"\n', "py39"),
        ("setup.cfg", "[options]\npython_requires = >=3.8\n", "py38"),
        ("setup.py", 'setup(python_requires=">=2.7, !=3.0.*")\n', "py37"),
        ("setup.py", "setup(python_requires='~=3.11')\n", "py311"),
        ("setup.py", "setup()\n", None),
        ("pyproject.toml", "not toml", None),
        ("pyproject.toml", "project = 3\n", None),
    ],
)
def test_the_oldest_python_that_the_project_supports(
    tmp_path: Path, name: str, text: str, expected: str | None
) -> None:
    (tmp_path / name).write_text(text)
    assert project_target_version(tmp_path) == expected
    arguments = configuration_arguments(tmp_path)
    assert ("--target-version" in arguments) == (expected is not None)


def test_the_projects_own_target_version_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "setup.cfg").write_text("[options]\npython_requires = >=3.8\n")
    (tmp_path / "ruff.toml").write_text('target-version = "py310"\n')
    assert "--target-version" not in configuration_arguments(tmp_path)


async def test_names_for_the_gate_do_not_depend_on_the_rest_of_the_line(tree: Path) -> None:
    names = finding_names((await scan(tree)).findings)
    (tree / "a.py").write_text(FAULTY.replace("x = 1", "x = 1 + 2").replace("import os\n", ""))
    after = finding_names((await scan(tree)).findings)
    assert set(after) < set(names)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("rule", "category"),
    [("F401", "dead code"), ("S101", "security"), ("SIM102", "style"), ("C901", "complexity"), ("UP007", "modernise"),
     ("B008", "bugs"), ("E501", "style"), ("E902", "syntax"), ("invalid-syntax", "syntax"), ("D100", "documentation")],
)  # fmt: skip
def test_categories(rule: str, category: str) -> None:
    assert categorise(rule) == category
