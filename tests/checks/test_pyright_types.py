"""The real ``pyright`` as a discovery tool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings

from coordinator.checks.adapter import Printed
from coordinator.checks.pyright_types import Pyright, understood_pyright
from coordinator.checks.tool import ToolRun
from coordinator.domain.finding import Fix, ScanReport, ScanStatus, Severity
from tests.checks.hostile import spoilt
from tests.checks.rig import order_for, told, write_tree

if TYPE_CHECKING:
    from pathlib import Path

FAULTY = "def f(x: int) -> str:\n    return x\n\n\nf('a')\n"


async def scan(tree: Path, scratch: Path, **more: Any) -> ScanReport:
    return await Pyright().scan(order_for(Pyright(), tree, scratch, **more))


async def test_errors_have_place_rule_and_evidence_and_the_tree_is_only_read(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", shop__stock=FAULTY, clean="x: int = 1\n")
    report = await scan(tree, tmp_path / "1")
    assert report.status is ScanStatus.SCANNED, report.reason
    assert told(report) == [("reportReturnType", "shop/stock.py", 2), ("reportArgumentType", "shop/stock.py", 5)]
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


async def test_what_it_could_not_follow_closes_nothing(tmp_path: Path) -> None:
    tree = write_tree(
        tmp_path / "tree", a="import nowhere_at_all\n" + FAULTY, b="import shop.gone\n", shop__stock="def f(:\n"
    )
    report = await scan(tree, tmp_path / "1")
    assert (report.status, report.unread) == (ScanStatus.SCANNED, ("a.py", "shop/stock.py"))
    assert {(one.rule, one.place.path) for one in report.findings} == {
        ("reportReturnType", "a.py"),
        ("reportArgumentType", "a.py"),
        ("reportMissingImports", "b.py"),
        ("syntax", "shop/stock.py"),
    }


async def test_a_configuration_that_cannot_be_is_broken(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", a="x = 1\n", **{"pyrightconfig.json": "{"})
    assert (await scan(tree, tmp_path / "1")).status is ScanStatus.BROKEN
    (tree / "pyrightconfig.json").write_text('{"include": ["nowhere"]}')
    report = await scan(tree, tmp_path / "2")
    assert (report.status, report.findings) == (ScanStatus.BROKEN, ())
    report = await scan(tree, tmp_path / "3", arguments=("--no-such-option",))
    assert (report.status, "--no-such-option" in report.reason or "usage" in report.reason) == (ScanStatus.BROKEN, True)


@pytest.mark.parametrize("script", ["exit 0", "exit 1", "exit 2", "echo '{'; exit 1", "echo '{}'", "kill -9 $$"])
async def test_what_nobody_can_read_is_broken(tmp_path: Path, script: str) -> None:
    fake = tmp_path / "pyright"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    report = await scan(write_tree(tmp_path / "tree", a="x = 1\n"), tmp_path / "s", program=fake)
    assert report.status is ScanStatus.BROKEN
    assert report.reason


_RANGE = {"start": {"line": 0, "character": 1}, "end": {"line": 0, "character": 2}}
HONEST = {
    "generalDiagnostics": [
        {"file": "/tree/a.py", "severity": "error", "message": 'Import "x" could not', "range": _RANGE, "rule": "reportMissingImports"},
        {"file": "/tree/a.py", "severity": "error", "message": "m", "range": _RANGE, "rule": "reportReturnType"},
        {"file": "/tree/a.py", "severity": "warning", "message": "m", "range": _RANGE},
    ],
    "summary": {"filesAnalyzed": 3},
}  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(spoilt(HONEST))
def test_whatever_the_report_holds_it_is_read_or_broken(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    folder = tmp_path_factory.mktemp("report")
    (folder / "out").write_bytes(raw)
    order = order_for(Pyright(), folder, folder / "s")
    report = understood_pyright(order, Printed(out=folder / "out", ran=ToolRun(code=1, output="")))
    assert report.status in {ScanStatus.SCANNED, ScanStatus.BROKEN}
    assert bool(report.reason) is (report.status is ScanStatus.BROKEN)
    assert not any("root:" in one.evidence for one in report.findings)
