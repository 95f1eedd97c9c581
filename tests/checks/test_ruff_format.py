from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from coordinator.checks.adapter import FixTask
from coordinator.checks.ruff_format import RuffFormat
from coordinator.domain.finding import Fix, ScanStatus
from tests.checks.rig import files_of, order_for, told, write_tree

if TYPE_CHECKING:
    from pathlib import Path

UGLY = "x = {  'a':1 }\n"


@pytest.mark.parametrize(
    ("files", "named", "called"),
    [
        ({"a": UGLY}, False, False),
        ({"a": UGLY}, True, True),
        ({"notes.txt": "no Python"}, True, False),
        ({"a": UGLY, "pyproject.toml": "[tool.ruff.format]\nquote-style = 'single'\n"}, False, True),
        ({"a": UGLY, "pyproject.toml": "[tool.ruff]\nline-length = 90\n"}, False, False),
        ({"a": UGLY, ".pre-commit-config.yaml": "repos: [{hooks: [{id: ruff-format}]}]\n"}, False, True),
        ({"a": UGLY, ".github/workflows/check.yml": "run: ruff format --check .\n"}, False, True),
        ({"a": UGLY, ".github/workflows/check.yml": "run: ruff check .\n"}, False, False),
    ],
)
def test_only_a_project_that_says_so_is_formatted(
    tmp_path: Path, files: dict[str, str], named: bool, called: bool
) -> None:
    assert (not RuffFormat().uncalled(files_of(write_tree(tmp_path, **files)), named=named)) is called


async def test_each_file_is_one_finding_whatever_is_wrong_in_it(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", a=UGLY, pkg__b=UGLY + "\n\n\n\n" + UGLY, c="x = 1\n", bad="def f(:\n")
    report = await RuffFormat().scan(order_for(RuffFormat(), tree, tmp_path / "scratch"))
    assert report.status is ScanStatus.SCANNED, report.reason
    assert told(report) == [("unformatted", "a.py", 0), ("unformatted", "pkg/b.py", 0)]
    assert report.unread == ("bad.py",)
    assert {one.fix for one in report.findings} == {Fix.SAFE}
    (tree / "a.py").write_text("\n\n" + UGLY + UGLY)
    again = await RuffFormat().scan(order_for(RuffFormat(), tree, tmp_path / "scratch2"))
    assert [one.fingerprint for one in again.findings] == [one.fingerprint for one in report.findings]


async def test_a_formatted_tree_is_clean_and_a_broken_configuration_is_not(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", a="x = 1\n")
    report = await RuffFormat().scan(order_for(RuffFormat(), tree, tmp_path / "1"))
    assert (report.status, report.findings) == (ScanStatus.SCANNED, ())
    (tree / "ruff.toml").write_text("no-such-option = 1\n")
    report = await RuffFormat().scan(order_for(RuffFormat(), tree, tmp_path / "2"))
    assert report.status is ScanStatus.BROKEN
    assert "ruff.toml" in report.reason


async def test_another_release_than_the_project_s_does_not_judge_its_form(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", a=UGLY)
    (tree / "requirements.txt").write_text("ruff==0.0.1\n")
    report = await RuffFormat().scan(order_for(RuffFormat(), tree, tmp_path / "1"))
    assert report.status is ScanStatus.UNAVAILABLE
    assert report.reason.startswith("the project formats with ruff 0.0.1 (requirements.txt) and the one here is ")


@pytest.mark.parametrize(
    "script", ["echo '['", "exit 1", "echo '{}'; exit 1", "echo '[{}]'; exit 1", "kill -9 $$", "exit 7"]
)
async def test_what_nobody_can_read_is_broken(tmp_path: Path, script: str) -> None:
    fake = tmp_path / "ruff"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    tree = write_tree(tmp_path / "tree", a=UGLY)
    report = await RuffFormat().scan(order_for(RuffFormat(), tree, tmp_path / "scratch", program=fake))
    assert report.status is ScanStatus.BROKEN
    assert report.reason


async def test_the_fix_formats_what_is_left_of_its_files_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "outside.py").write_text(UGLY)
    tree = write_tree(tmp_path / "tree", a=UGLY, b=UGLY, c="x = 1\n")
    (tree / "link.py").symlink_to(tmp_path / "outside.py")
    task = FixTask(files=("a.py", "c.py", "gone.py", "link.py"), scratch=tmp_path, tree=tree)
    result = await RuffFormat().fix(task)
    assert result.files == ("a.py",)
    assert result.headline == "ruff format: a.py"
    assert ((tree / "a.py").read_text(), (tree / "b.py").read_text()) == ('x = {"a": 1}\n', UGLY)
    assert (tmp_path / "outside.py").read_text() == UGLY
    assert (await RuffFormat().fix(task)).nothing
