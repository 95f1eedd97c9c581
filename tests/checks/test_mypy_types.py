"""The real ``mypy`` as a discovery tool."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings

from coordinator.checks.adapter import Printed
from coordinator.checks.mypy_types import Mypy, understood_mypy
from coordinator.checks.tool import ToolRun
from coordinator.domain.finding import Fix, ScanReport, ScanStatus, Severity
from tests.checks.hostile import spoilt
from tests.checks.rig import order_for, told, write_tree

if TYPE_CHECKING:
    from pathlib import Path

FAULTY = "def f(x: int) -> str:\n    return x\n\n\nf('a')\n"


async def scan(tree: Path, scratch: Path, **more: Any) -> ScanReport:
    return await Mypy().scan(order_for(Mypy(), tree, scratch, **more))


async def test_errors_have_place_rule_and_evidence_and_the_tree_is_only_read(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", shop__stock=FAULTY, clean="x: int = 1\n")
    report = await scan(tree, tmp_path / "1")
    assert report.status is ScanStatus.SCANNED, report.reason
    assert told(report) == [("return-value", "shop/stock.py", 2), ("arg-type", "shop/stock.py", 5)]
    first = report.findings[0]
    assert (first.evidence, first.fix, first.severity, first.place.column) == (
        "return x",
        Fix.NONE,
        Severity.MEDIUM,
        12,
    )
    assert sorted(path.name for path in tree.rglob("*")) == ["clean.py", "shop", "stock.py"]
    (tree / "shop/stock.py").write_text("import os\n\n\n" + FAULTY)
    moved = await scan(tree, tmp_path / "2")
    assert [one.fingerprint for one in moved.findings] == [one.fingerprint for one in report.findings]


async def test_the_project_says_what_is_looked_at(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", a=FAULTY, b=FAULTY, **{"pyproject.toml": '[tool.mypy]\nfiles = ["a.py"]\n'})
    assert {one.place.path for one in (await scan(tree, tmp_path / "1")).findings} == {"a.py"}
    (tree / "pyproject.toml").write_text("[tool.mypy]\nstrict = true\n")
    assert {one.place.path for one in (await scan(tree, tmp_path / "2")).findings} == {"a.py", "b.py"}
    (tree / "mypy.ini").write_text("[mypy]\nfiles = b.py\n")
    assert {one.place.path for one in (await scan(tree, tmp_path / "3")).findings} == {"b.py"}


async def test_what_it_could_not_follow_closes_nothing(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", a="import nowhere_at_all\nfrom b import gone\n" + FAULTY, b="x = 1\n")
    report = await scan(tree, tmp_path / "1")
    assert (report.status, report.unread) == (ScanStatus.SCANNED, ("a.py",))
    assert [one.rule for one in report.findings] == ["attr-defined", "return-value", "arg-type"]
    (tree / "b.py").write_text("def f(:\n")
    report = await scan(tree, tmp_path / "2")
    assert report.status is ScanStatus.PARTIAL
    assert "b.py cannot be parsed" in report.reason
    assert {(one.rule, one.place.path, one.severity) for one in report.findings} == {("syntax", "b.py", Severity.HIGH)}


async def test_a_configuration_that_cannot_be_is_broken(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", a="x = 1\n", **{"mypy.ini": "[mypy]\nplugins = no_such_plugin\n"})
    report = await scan(tree, tmp_path / "1")
    assert (report.status, "no_such_plugin" in report.reason) == (ScanStatus.BROKEN, True)
    report = await scan(tree, tmp_path / "2", arguments=("--no-such-option",))
    assert (report.status, "--no-such-option" in report.reason) == (ScanStatus.BROKEN, True)


@pytest.mark.parametrize(
    "script", ["exit 1", "exit 2", "echo '{'; exit 1", "echo '{}'", "echo Success; exit 0", "kill -9 $$"]
)
async def test_what_nobody_can_read_is_broken(tmp_path: Path, script: str) -> None:
    fake = tmp_path / "mypy"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    report = await scan(write_tree(tmp_path / "tree", a="x = 1\n"), tmp_path / "s", program=fake)
    assert report.status is ScanStatus.BROKEN
    assert report.reason


HONEST = {
    "file": "a.py",
    "line": 1,
    "column": 0,
    "message": 'No module named "x"',
    "hint": None,
    "code": "import-not-found",
    "severity": "error",
}


@settings(max_examples=200, deadline=None)
@given(spoilt(HONEST))
def test_whatever_the_report_holds_it_is_read_or_broken(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    folder = tmp_path_factory.mktemp("report")
    honest = {**HONEST, "code": "arg-type"}
    (folder / "out").write_bytes(json.dumps(honest).encode() + b"\n" + raw)
    order = order_for(Mypy(), folder, folder / "s")
    report = understood_mypy(order, Printed(out=folder / "out", ran=ToolRun(code=1, output="")))
    assert report.status in {ScanStatus.SCANNED, ScanStatus.BROKEN}
    assert bool(report.reason) is (report.status is ScanStatus.BROKEN)
    assert not any("root:" in one.evidence for one in report.findings)
