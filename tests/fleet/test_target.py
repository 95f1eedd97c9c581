"""The target branch is made, follows, and never loses a commit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from coordinator.domain.errors import BadRepository
from coordinator.fleet.target import prepare
from coordinator.kit.git import Git
from tests.conftest import git

if TYPE_CHECKING:
    from pathlib import Path

TARGET = "coordinator/main"


@pytest.fixture
def kit(repository: Path) -> Git:
    return Git(repository, repository / ".git")


def _commit(top: Path, name: str) -> str:
    (top / name).write_text(name)
    git(top, "add", "-A")
    git(top, "commit", "-qm", name)
    return git(top, "rev-parse", "HEAD")


async def test_made_at_head_then_left_alone(repository: Path, kit: Git) -> None:
    assert "created" in await prepare(kit, TARGET)
    assert git(repository, "rev-parse", TARGET) == git(repository, "rev-parse", "HEAD")
    assert await prepare(kit, TARGET) == ""


async def test_moved_forward_when_it_is_behind(repository: Path, kit: Git) -> None:
    await prepare(kit, TARGET)
    new = _commit(repository, "new")
    assert "forward" in await prepare(kit, TARGET)
    assert git(repository, "rev-parse", TARGET) == new


async def test_left_where_it_is_when_it_is_ahead_or_has_diverged(repository: Path, kit: Git) -> None:
    git(repository, "switch", "-qc", TARGET)
    landed = _commit(repository, "landed")
    git(repository, "switch", "-q", "main")
    assert await prepare(kit, TARGET) == ""
    _commit(repository, "mine")
    assert f"git merge {TARGET}" in await prepare(kit, TARGET)
    assert git(repository, "rev-parse", TARGET) == landed


async def test_not_moved_under_a_checkout(repository: Path, kit: Git, tmp_path: Path) -> None:
    await prepare(kit, TARGET)
    old = git(repository, "rev-parse", TARGET)
    git(repository, "worktree", "add", "-q", str(tmp_path / "linked"), TARGET)
    _commit(repository, "new")
    assert await prepare(kit, TARGET) == ""
    assert git(repository, "rev-parse", TARGET) == old


async def test_a_repository_without_a_commit_is_refused_with_the_remedy(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    with pytest.raises(BadRepository, match="no commit yet; make the first one"):
        await prepare(Git(tmp_path, tmp_path / ".git"), TARGET)
