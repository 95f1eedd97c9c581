"""``ruff check`` as a discovery tool; what it prints is understood in ``test_ruff``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings

from coordinator.checks.adapter import FixTask, Printed, SourceLines
from coordinator.checks.adapters import ADAPTERS, chosen
from coordinator.checks.ruff import read_report
from coordinator.checks.ruff_format import RuffFormat, understood
from coordinator.checks.ruff_lint import RuffLint
from coordinator.checks.tool import ToolRun
from coordinator.domain.discovery_config import DISCOVERY_TOOLS
from coordinator.domain.errors import ToolFailed
from coordinator.domain.finding import Fix, ScanReport, ScanStatus
from coordinator.domain.settings import DiscoverySettings
from tests.checks.hostile import spoilt
from tests.checks.rig import files_of, order_for, told, write_tree

if TYPE_CHECKING:
    from pathlib import Path

FAULTY = "import os\nimport sys\n\n\ndef f(x=[]):\n    return x\n"


def test_the_table_and_the_settings_know_the_same_tools() -> None:
    assert tuple(ADAPTERS) == DISCOVERY_TOOLS
    assert [one.name for one in chosen(DiscoverySettings())] == [one.name for one in ADAPTERS.values() if one.standard]
    assert [one.name for one in chosen(DiscoverySettings(tools=("ruff-format", "ruff-format")))] == ["ruff-format"]
    standard = [one.name for one in chosen(DiscoverySettings())]
    more = DiscoverySettings(extra_tools=("vulture", "ruff"), without_tools=("npm-audit",))
    assert [one.name for one in chosen(more)] == [*(name for name in standard if name != "npm-audit"), "vulture"]
    assert more.named_tools == ("vulture", "ruff")


@pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=list(ADAPTERS))
def test_every_adapter_has_what_others_ask_of_it(adapter: Any, tmp_path: Path) -> None:
    assert adapter.name == adapter.name.lower()
    assert adapter.program
    assert adapter.remedy
    assert adapter.reads
    assert Fix.NONE not in adapter.fixes
    assert adapter.uncalled(files_of(write_tree(tmp_path, **{"notes.txt": "no code"})), named=False)
    assert adapter.options_fault(["--exec", "rm"])
    assert adapter.options_fault(()) == ""


async def test_a_scan_says_how_a_group_is_looked_at(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", a=FAULTY, **{"setup.cfg": "[options]\npython_requires = >=3.9\n"})
    report = await RuffLint().scan(order_for(RuffLint(), tree, tmp_path / "scratch"))
    assert report.status is ScanStatus.SCANNED, report.reason
    assert told(report) == [("F401", "a.py", 1), ("F401", "a.py", 2), ("B006", "a.py", 5)]
    assert report.options[report.options.index("--select") + 1] == "{rule}"
    assert report.options[report.options.index("--target-version") + 1] == "py39"
    assert sorted(path.name for path in tree.iterdir()) == ["a.py", "setup.cfg"]


async def test_arguments_and_limits_of_the_settings_reach_the_program(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", a=FAULTY)
    quiet = await RuffLint().scan(order_for(RuffLint(), tree, tmp_path / "1", arguments=("--ignore", "F401")))
    assert told(quiet) == [("B006", "a.py", 5)]
    fake = tmp_path / "ruff"
    fake.write_text("#!/bin/sh\nsleep 60\n")
    fake.chmod(0o755)
    slow = await RuffLint().scan(order_for(RuffLint(), tree, tmp_path / "2", program=fake, timeout_s=0.2))
    assert (slow.status, slow.reason) == (ScanStatus.BROKEN, "ruff was stopped after 0.2 s")
    fake.write_text("#!/bin/sh\nyes\n")
    loud = await RuffLint().scan(order_for(RuffLint(), tree, tmp_path / "3", program=fake, output_bytes=4096))
    assert loud.status is ScanStatus.BROKEN
    assert "more than 4096 bytes" in loud.reason


async def test_variables_are_let_through_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_INDEX", "https://index.example")
    tree = write_tree(tmp_path / "tree", a=FAULTY)
    plain = order_for(RuffLint(), tree, tmp_path / "1").environment()
    let = order_for(RuffLint(), tree, tmp_path / "2", env=("SHOP_INDEX",)).environment(MORE="1")
    assert "SHOP_INDEX" not in plain
    assert (let["SHOP_INDEX"], let["MORE"]) == ("https://index.example", "1")


async def test_a_fix_that_ruff_cannot_make_is_an_error_with_its_words(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", a=FAULTY, **{"ruff.toml": "no-such-option = 1\n"})
    with pytest.raises(ToolFailed, match=r"ruff\.toml"):
        await RuffLint().fix(FixTask(files=("a.py",), rules=("F401",), scratch=tmp_path, tree=tree))


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("{tree}/pkg/a.py", "pkg/a.py"),
        ("file://{tree}/pkg/a.py", "pkg/a.py"),
        ("pkg/../a.py", "a.py"),
        ("./a.py", "a.py"),
        ("{link}/a.py", "a.py"),
        ("/etc/passwd", "/etc/passwd"),
        ("../other.py", "{parent}/other.py"),
    ],
)
def test_paths_are_told_relative_to_the_tree_however_the_tool_says_them(tmp_path: Path, name: str, path: str) -> None:
    tree = write_tree(tmp_path / "tree", a=FAULTY)
    (tmp_path / "link").symlink_to(tree)
    order = order_for(RuffLint(), tree, tmp_path / "scratch")
    places = {"tree": tree, "link": tmp_path / "link", "parent": tmp_path}
    assert order.relative(name.format(**places)) == path.format(**places)


HONEST = {
    "code": "F401",
    "message": "`os` imported but unused",
    "filename": "/tree/a.py",
    "location": {"row": 1, "column": 8},
    "end_location": {"row": 1, "column": 10},
    "fix": {"applicability": "safe", "message": "Remove", "edits": []},
    "cell": None,
    "url": "https://docs.astral.sh/ruff/rules/unused-import",
}


def sound(report: ScanReport) -> None:
    assert report.status in {ScanStatus.SCANNED, ScanStatus.BROKEN}
    assert bool(report.reason) is (report.status is ScanStatus.BROKEN)
    for finding in report.findings:
        texts = (
            finding.fingerprint,
            finding.rule,
            finding.message,
            finding.evidence,
            finding.suggestion,
            *finding.links,
        )
        assert all(isinstance(text, str) for text in (*texts, finding.place.path))
        assert isinstance(finding.place.line, int)
        assert "root:" not in finding.evidence  # a file that is none of the tree's


@settings(max_examples=150, deadline=None)
@given(spoilt(HONEST))
def test_whatever_ruff_s_report_holds_it_is_read_or_broken(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes
) -> None:
    folder = tmp_path_factory.mktemp("report")
    (folder / "report").write_bytes(raw)
    sound(read_report(folder, folder / "report", ToolRun(code=1, output="")))


@settings(max_examples=150, deadline=None)
@given(spoilt([{**HONEST, "code": "unformatted"}]))
def test_whatever_the_formatter_s_report_holds_it_is_read_or_broken(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes
) -> None:
    folder = tmp_path_factory.mktemp("report")
    (folder / "out").write_bytes(raw)
    order = order_for(RuffFormat(), folder, folder / "scratch")
    sound(understood(order, Printed(out=folder / "out", ran=ToolRun(code=1, output="")), ()))


@pytest.mark.parametrize("row", [float("inf"), float("nan"), "one", None, [], -1, 10**400])
def test_a_line_that_is_none_is_no_answer(tmp_path: Path, row: object) -> None:
    (tmp_path / "report").write_text(json.dumps({**HONEST, "location": {"row": row, "column": 1}}))
    report = read_report(tmp_path, tmp_path / "report", ToolRun(code=1, output=""))
    assert report.status is ScanStatus.BROKEN


def test_evidence_is_of_the_tree_alone(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("root: of all evil\n")
    tree = write_tree(tmp_path / "tree", a="import os\n")
    (tree / "link.py").symlink_to(tmp_path / "secret")
    lines = SourceLines(tree)
    assert lines.at("a.py", 1) == "import os"
    for path, line in (
        *(("a.py", 0), ("a.py", 2), ("a.py", 10**400), ("gone.py", 1), ("a\0b", 1), ("", 1)),
        *(("link.py", 1), ("../secret", 1), (str(tmp_path / "secret"), 1)),
    ):
        assert lines.at(path, line) == "", path
