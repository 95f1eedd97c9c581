from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from coordinator.checks.locate import locate
from coordinator.checks.ruff_lint import RuffLint
from coordinator.domain.settings import ToolSettings

if TYPE_CHECKING:
    from pathlib import Path


class Weighing(RuffLint):
    """A tool that nobody's PATH has."""

    name = "weighing"
    program = "weigh-the-tree"
    remedy = "buy scales"


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    path = tmp_path / "checkout"
    path.mkdir()
    return path


PLAIN = ToolSettings(name="weighing")


def test_what_is_nowhere_is_told_with_its_remedy(checkout: Path) -> None:
    found = locate(Weighing(), PLAIN, checkout)
    assert (found.program, found.reason, found.remedy) == (None, "weigh-the-tree was not found", "buy scales")


def test_the_project_s_environment_comes_before_path_and_our_own_last(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = program(tmp_path / "bin/weigh-the-tree")
    monkeypatch.setenv("PATH", str(elsewhere.parent))
    assert locate(Weighing(), PLAIN, checkout).program == elsewhere
    mine = program(checkout / ".venv/bin/weigh-the-tree")
    assert locate(Weighing(), PLAIN, checkout).program == mine
    monkeypatch.setenv("PATH", "/nowhere")
    ruff = locate(RuffLint(), ToolSettings(name="ruff"), checkout).program
    assert ruff is not None
    assert not ruff.is_relative_to(checkout)
    pinned = program(checkout / ".venv/bin/ruff")
    assert locate(RuffLint(), ToolSettings(name="ruff"), checkout).program == pinned


def test_what_lies_inside_the_project_is_run_only_where_that_is_allowed(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = program(checkout / "tools/weigh-the-tree")
    monkeypatch.setenv("PATH", f"tools:{checkout}/tools")
    found = locate(Weighing(), PLAIN, checkout)
    assert found.program is None
    assert "inside the project" in found.reason
    assert "inside = true" in found.remedy
    assert locate(Weighing(), ToolSettings(name="weighing", inside=True), checkout).program == inside


def test_a_path_of_the_settings_is_taken_or_refused_but_never_replaced(checkout: Path) -> None:
    program(checkout / ".venv/bin/weigh-the-tree")
    named = program(checkout / "tools/scales")
    assert locate(Weighing(), ToolSettings(name="weighing", path="tools/scales"), checkout).program == named
    named.chmod(0o644)
    found = locate(Weighing(), ToolSettings(name="weighing", path="tools/scales"), checkout)
    assert found.program is None
    assert "tools/scales" in found.reason
