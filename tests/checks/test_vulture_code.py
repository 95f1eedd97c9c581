"""The real ``vulture`` as a discovery tool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.checks.adapter import Printed
from coordinator.checks.tool import ToolRun
from coordinator.checks.vulture_code import Vulture, understood_vulture
from coordinator.domain.finding import Fix, ScanReport, ScanStatus
from tests.checks.rig import order_for, told, write_tree

if TYPE_CHECKING:
    from pathlib import Path

FAULTY = "import os\n\n\ndef unsure():\n    return 1\n    print(2)\n"


async def scan(tree: Path, scratch: Path, **more: Any) -> ScanReport:
    return await Vulture().scan(order_for(Vulture(), tree, scratch, **more))


async def test_only_what_is_rather_sure_is_told_unless_the_project_wants_more(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", shop__a=FAULTY)
    report = await scan(tree, tmp_path / "1")
    assert report.status is ScanStatus.SCANNED, report.reason
    assert told(report) == [("unused-import", "shop/a.py", 1), ("unreachable-code-after", "shop/a.py", 6)]
    assert (report.findings[0].message, report.findings[0].evidence) == ("unused import 'os'", "import os")
    assert {one.fix for one in report.findings} == {Fix.NONE}
    (tree / "shop/a.py").write_text("\n\n" + FAULTY)
    moved = await scan(tree, tmp_path / "2")
    assert [one.fingerprint for one in moved.findings] == [one.fingerprint for one in report.findings]
    (tree / "pyproject.toml").write_text('[tool.vulture]\nmin_confidence = 60\npaths = ["shop"]\n')
    assert "unused-function" in {one.rule for one in (await scan(tree, tmp_path / "3")).findings}


async def test_a_file_that_cannot_be_parsed_was_not_looked_at(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", a="x = 1\nprint(x)\n", bad="def f(:\n")
    report = await scan(tree, tmp_path / "1")
    assert (report.status, report.findings, report.unread) == (ScanStatus.SCANNED, (), ("bad.py",))
    (tree / "a.py").write_text(FAULTY)
    report = await scan(tree, tmp_path / "2")
    assert (len(report.findings), report.unread) == (2, ("bad.py",))
    (tree / "pyproject.toml").write_text('[tool.vulture]\npaths = ["nowhere"]\n')
    assert (await scan(tree, tmp_path / "3")).status is ScanStatus.BROKEN


@pytest.mark.parametrize(
    "script",
    ["exit 1", "exit 2", "exit 3", "echo odd; exit 3", "echo \"a.py:1: x 'y' (90% confidence)\"", "kill -9 $$"],
)
async def test_what_nobody_can_read_is_broken(tmp_path: Path, script: str) -> None:
    fake = tmp_path / "vulture"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    report = await scan(write_tree(tmp_path / "tree", a="x = 1\n"), tmp_path / "s", program=fake)
    assert report.status is ScanStatus.BROKEN
    assert report.reason


HONEST = "a.py:1: unused import 'os' (90% confidence)\nb.py:22: unused function 'f' (60% confidence, 3 lines)\n"


@settings(max_examples=200, deadline=None)
@given(
    cut=st.integers(0, len(HONEST)),
    old=st.sampled_from(["a.py", ":1:", "22", "unused import", "'os'", "90"]),
    new=st.sampled_from(["", "/etc/passwd", "9" * 5000, "\0", ":", "é\udcff", "x" * 5000, "../../x", "\n"])
    | st.text(max_size=9),
)
def test_whatever_it_prints_is_read_or_broken(
    tmp_path_factory: pytest.TempPathFactory, cut: int, old: str, new: str
) -> None:
    folder = tmp_path_factory.mktemp("report")
    (folder / "out").write_bytes(HONEST.replace(old, new)[:cut].encode(errors="surrogatepass"))
    order = order_for(Vulture(), folder, folder / "s")
    for said in ("", f"{new}.py:1: invalid syntax\n"):
        report = understood_vulture(order, Printed(out=folder / "out", ran=ToolRun(code=3, output=said)))
        assert report.status in {ScanStatus.SCANNED, ScanStatus.BROKEN}
        assert bool(report.reason) is (report.status is ScanStatus.BROKEN)
        assert not any("root:" in one.evidence for one in report.findings)
