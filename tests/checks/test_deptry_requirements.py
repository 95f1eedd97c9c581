"""The real ``deptry`` as a discovery tool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings

from coordinator.checks.deptry_requirements import Deptry, understood_deptry
from coordinator.checks.tool import ToolRun
from coordinator.domain.finding import Fix, ScanReport, ScanStatus, Severity
from tests.checks.hostile import spoilt
from tests.checks.rig import files_of, order_for, told, write_tree

if TYPE_CHECKING:
    from pathlib import Path

PROJECT = '[project]\nname = "shop"\nversion = "1"\ndependencies = ["{}"]\n'


async def scan(tree: Path, scratch: Path, **more: Any) -> ScanReport:
    return await Deptry().scan(order_for(Deptry(), tree, scratch, **more))


async def test_what_is_asked_for_in_vain_and_used_without_asking_is_found(tmp_path: Path) -> None:
    tree = write_tree(
        tmp_path / "tree", shop__a="import hypothesis\n", **{"pyproject.toml": PROJECT.format("psutil>=7")}
    )
    report = await scan(tree, tmp_path / "1")
    assert report.status is ScanStatus.SCANNED, report.reason
    assert told(report) == [("DEP002", "pyproject.toml", 0), ("DEP003", "shop/a.py", 1)]
    assert report.findings[1].evidence == "import hypothesis"
    assert {one.fix for one in report.findings} == {Fix.NONE}
    assert {path.name for path in tree.rglob("*")} == {"shop", "a.py", "pyproject.toml"}
    (tree / "shop/a.py").write_text("import sys\n\nimport hypothesis\nimport nowhere_at_all\n")
    again = await scan(tree, tmp_path / "2")
    assert {one.fingerprint for one in report.findings} < {one.fingerprint for one in again.findings}
    assert [(one.rule, one.severity) for one in again.findings if one.severity is Severity.MEDIUM] == [
        ("DEP001", Severity.MEDIUM)
    ]


async def test_a_guess_about_what_is_not_installed_is_told_nobody(tmp_path: Path) -> None:
    tree = write_tree(
        tmp_path / "tree",
        a="import other_name\nimport hypothesis\n",
        **{"pyproject.toml": PROJECT.format("not-here-at-all")},
    )
    report = await scan(tree, tmp_path / "1")
    assert (report.status, told(report)) == (ScanStatus.PARTIAL, [("DEP003", "a.py", 2)])
    assert "not-here-at-all is not installed" in report.reason
    (tree / "pyproject.toml").write_text("[tool.deptry]\nno_such_option = 1\n[project\n")
    assert (await scan(tree, tmp_path / "2")).status is ScanStatus.BROKEN


@pytest.mark.parametrize(
    "script", ["exit 0", "exit 1", "exit 2", "for last; do :; done; echo '[' >$last", "kill -9 $$"]
)
async def test_what_nobody_can_read_is_broken(tmp_path: Path, script: str) -> None:
    fake = tmp_path / "deptry"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    report = await scan(write_tree(tmp_path / "tree", a="x = 1\n"), tmp_path / "s", program=fake)
    assert report.status is ScanStatus.BROKEN
    assert report.reason


def test_it_is_called_for_by_code_with_requirements(tmp_path: Path) -> None:
    assert Deptry().uncalled(files_of(write_tree(tmp_path / "1", a="")), named=True)
    assert Deptry().uncalled(files_of(write_tree(tmp_path / "2", a="", **{"requirements.txt": "x"})), named=True) == ""


HONEST = [
    {"error": {"code": "DEP002", "message": "m"}, "module": "flask", "location": {"file": "pyproject.toml", "line": None, "column": None}},
    {"error": {"code": "DEP001", "message": "m"}, "module": "x", "location": {"file": "a.py", "line": 1, "column": 8}},
]  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(spoilt(HONEST))
def test_whatever_the_report_holds_it_is_read_or_broken(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    folder = tmp_path_factory.mktemp("report")
    (folder / "report").write_bytes(raw)
    order = order_for(Deptry(), folder, folder / "s")
    report = understood_deptry(order, ToolRun(code=1, output=""), folder / "report")
    assert report.status in {ScanStatus.SCANNED, ScanStatus.BROKEN}
    assert bool(report.reason) is (report.status is ScanStatus.BROKEN)
    assert not any("root:" in one.evidence for one in report.findings)
