"""A working tree is removed only when everything in it is in a ref, however often and whenever somebody dies."""

from __future__ import annotations

import asyncio
import errno
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from coordinator.domain.errors import ToolFailed
from coordinator.fleet.workspace import Workspaces
from coordinator.kit import lock
from coordinator.kit.git import Git
from coordinator.sdk.layout import base_ref, rescue_ref
from tests.clones import make_clone
from tests.conftest import git

if TYPE_CHECKING:
    from pathlib import Path

    from coordinator.sdk.layout import Layout


@pytest.fixture
def kit(repository: Path) -> Git:
    return Git(repository, repository / ".git")


@pytest.fixture
def spaces(kit: Git, layout: Layout) -> Workspaces:
    return Workspaces(kit, layout)


@pytest.fixture
def base(repository: Path) -> str:
    return git(repository, "rev-parse", "main")


def show(layout: Layout, name: str) -> str:
    return git(layout.repository, "show", name)


async def test_pin_collect_dispose(layout: Layout, spaces: Workspaces, kit: Git, base: str) -> None:
    await spaces.pin([("a", 1, base), ("b..c.lock", 1, base)])
    path = make_clone(layout, base)
    (path / "done").write_text("d")
    git(path, "add", "-A")
    git(path, "commit", "--quiet", "-m", "What I did")
    (path / "left").write_text("uncommitted")
    (path / ".gitignore").write_text("*.log\n")
    (path / "a.log").write_text("log")
    found = await spaces.collect("a", 1, base, agent="agent-1")
    assert found.candidate_commit is not None
    assert (found.changed, found.complete, found.note, found.message) == (True, True, "", "What I did")
    assert {change.path for change in await kit.changes(base, found.candidate_commit)} == {".gitignore", "done", "left"}
    assert show(layout, f"{found.rescue}:a.log") == "log"
    assert git(layout.repository, "log", "-1", "--format=%P|%an", found.candidate_commit) == f"{base}|agent-1"
    assert await spaces.dispose("a", 1, found)
    assert not path.exists()
    assert set(await kit.refs("refs/coordinator/base")) == {base_ref("b..c.lock", 1)}
    heads = await kit.refs("refs/coordinator/rescue-heads")
    assert {name.split("/")[5][:4] for name in heads} == {"HEAD", "head"}
    again = await spaces.collect("a", 1, base, agent="agent-1")
    assert replace(again, stamp=found.stamp) == found
    assert await spaces.dispose("a", 1, again)


async def test_an_unchanged_tree_leaves_no_ref(layout: Layout, spaces: Workspaces, kit: Git, base: str) -> None:
    await spaces.pin([("a", 1, base)])
    path = make_clone(layout, base)
    found = await spaces.collect("a", 1, base, agent="x")
    assert (found.candidate_commit, found.changed, found.rescue) == (base, False, "")
    assert await spaces.dispose("a", 1, found)
    assert not path.exists()
    assert await kit.refs("refs/coordinator") == {}


async def test_work_that_was_committed_and_taken_back_is_kept(
    layout: Layout, spaces: Workspaces, kit: Git, base: str
) -> None:
    path = make_clone(layout, base)
    (path / "idea").write_text("i")
    git(path, "add", "-A")
    git(path, "commit", "--quiet", "-m", "an idea")
    idea = git(path, "rev-parse", "HEAD")
    git(path, "reset", "--quiet", "--hard", base)
    found = await spaces.collect("a", 1, base, agent="x")
    assert (found.changed, found.complete) == (False, True)
    assert await spaces.dispose("a", 1, found)
    assert list((await kit.refs("refs/coordinator/rescue-heads")).values()) == [idea]
    git(layout.repository, "rev-list", "--objects", idea)


async def test_no_tree_at_all(spaces: Workspaces, base: str) -> None:
    found = await spaces.collect("a", 1, base, agent="x")
    assert (found.candidate_commit, found.changed, found.complete) == (None, False, True)
    assert found.note == "it left no working tree"
    assert await spaces.dispose("a", 1, found)


async def test_a_write_after_the_snapshot_keeps_the_tree(layout: Layout, spaces: Workspaces, base: str) -> None:
    path = make_clone(layout, base)
    (path / "work").write_text("1")
    found = await spaces.collect("a", 1, base, agent="x")
    (path / "late").write_text("2")
    assert not await spaces.dispose("a", 1, found)
    assert (path / "late").read_text() == "2"
    again = await spaces.collect("a", 1, base, agent="x")
    assert show(layout, f"{again.rescue}:late") == "2"
    earlier = git(layout.repository, "for-each-ref", "--format=%(objectname)", "refs/coordinator/rescue-heads/a/1")
    assert earlier == found.evidence
    assert await spaces.dispose("a", 1, again)


@pytest.mark.parametrize("damage", ["ref moved", "ref gone", "object gone", "not complete"])
async def test_without_evidence_nothing_is_removed(layout: Layout, spaces: Workspaces, base: str, damage: str) -> None:
    path = make_clone(layout, base)
    (path / "work").write_text("only here")
    found = await spaces.collect("a", 1, base, agent="x")
    if damage == "ref moved":
        git(layout.repository, "update-ref", rescue_ref("a", 1), base)
    elif damage == "ref gone":
        git(layout.repository, "update-ref", "-d", rescue_ref("a", 1))
    elif damage == "object gone":
        blob = git(layout.repository, "rev-parse", f"{found.evidence}:work")
        (layout.repository / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    else:
        found = replace(found, complete=False)
    assert not await spaces.dispose("a", 1, found)
    assert (path / "work").read_text() == "only here"


async def test_a_half_removed_tree_never_passes_for_the_agents_deletions(
    layout: Layout, kit: Git, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of the removal: the next life answers from the ref and finishes."""
    path = make_clone(layout, base)
    (path / "work").write_text("1")
    spaces = Workspaces(kit, layout)
    found = await spaces.collect("a", 1, base, agent="x")

    class Killed(BaseException):
        pass

    def half(target: Path) -> None:
        if target.exists():
            (target / "work").unlink()
            (target / "README.md").unlink()
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("coordinator.fleet.workspace.remove_tree", half)
        with pytest.raises(Killed):
            await spaces.dispose("a", 1, found)
    assert [entry.name for entry in layout.worktrees.iterdir()] == [".gone-a-1"]
    after = Workspaces(kit, layout)
    again = await after.collect("a", 1, base, agent="x")
    assert (again.candidate_commit, again.evidence) == (found.candidate_commit, found.evidence)
    await after.sweep()
    assert list(layout.worktrees.iterdir()) == []


async def test_sweep_gathers_leftovers_and_leaves_the_living_alone(
    layout: Layout, spaces: Workspaces, kit: Git, base: str
) -> None:
    tasks = ("over", "active", "held", "dashed-name", "broken")
    await spaces.pin([(task, 3, base) for task in (*tasks, "never-claimed")])
    for task in tasks:
        path = make_clone(layout, base, task, 3)
        (path / "work").write_text(task)
    git(layout.worktree("broken", 3), "init", "--quiet", "inner")
    (layout.worktrees / "not ours").mkdir()
    holder = lock.acquire(layout.claim_lock("held"))
    assert holder is not None
    with holder:
        await spaces.sweep({("active", 3)})
    assert {entry.name for entry in layout.worktrees.iterdir()} == {"active-3", "held-3", "broken-3", "not ours"}
    for task in ("over", "dashed-name", "broken"):
        assert show(layout, f"{rescue_ref(task, 3)}:work") == task
    await spaces.sweep({("active", 3), ("held", 3)})
    assert set(await kit.refs("refs/coordinator/base")) == {base_ref(task, 3) for task in ("active", "held", "broken")}


async def test_collect_reports_a_failing_disk_or_git_instead_of_raising(
    layout: Layout, spaces: Workspaces, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_clone(layout, base)
    (path / "work").write_text("1")
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(tmp_path / "no" / "such" / "folder"))
        found = await spaces.collect("a", 1, base, agent="x")
    assert (found.candidate_commit, found.complete) == (None, False)
    assert found.note.startswith("it could not be read: ")
    found = await spaces.collect("a", 1, "f" * 40, agent="x")
    assert (found.complete, found.note) == (False, "the commit it started from is not known any more")
    assert not await spaces.dispose("a", 1, found)


async def test_a_lost_base_is_taken_from_its_pin(layout: Layout, spaces: Workspaces, base: str) -> None:
    await spaces.pin([("a", 1, base)])
    (make_clone(layout, base) / "work").write_text("1")
    assert (await spaces.collect("a", 1, "", agent="x")).changed


async def test_folders_without_write_permission_and_links_are_removed(
    layout: Layout, spaces: Workspaces, base: str, tmp_path: Path
) -> None:
    path = make_clone(layout, base)
    (path / "shut").mkdir()
    (path / "shut" / "x").write_text("1")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "mine").write_text("precious")
    (path / "out").symlink_to(tmp_path / "outside")
    os.chmod(path / "shut", 0o555)
    found = await spaces.collect("a", 1, base, agent="x")
    assert await spaces.dispose("a", 1, found)
    assert list(layout.worktrees.iterdir()) == []
    assert (tmp_path / "outside" / "mine").read_text() == "precious"


async def test_fifty_trees_at_once(layout: Layout, spaces: Workspaces, kit: Git, base: str) -> None:
    """Made and collected side by side, nothing serialised: all 50, each with its own work."""
    names = [f"t{number}" for number in range(50)]
    await spaces.pin([(name, 1, base) for name in names])
    paths = await asyncio.gather(*(asyncio.to_thread(make_clone, layout, base, name) for name in names))
    for name, path in zip(names, paths, strict=True):
        (path / "work").write_text(name)
    found = await asyncio.gather(*(spaces.collect(name, 1, base, agent=name) for name in names))
    gone = await asyncio.gather(*(spaces.dispose(name, 1, one) for name, one in zip(names, found, strict=True)))
    assert all(gone)
    rescued = git(layout.repository, "for-each-ref", "--format=%(refname)", "refs/coordinator/rescue").split()
    assert len(rescued) == 50
    assert [show(layout, f"{rescue_ref(name, 1)}:work") for name in names[::10]] == names[::10]
    assert await kit.refs("refs/coordinator/base") == {}


@pytest.mark.parametrize(
    ("error", "later"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (ToolFailed("git write-tree failed with 128: fatal: write error: No space left on device"), True),
        (ToolFailed("git write-tree failed with 128: fatal: unable to read tree"), False),
        (OSError(errno.EACCES, "Permission denied"), False),
    ],
)
async def test_a_full_disk_says_nothing_about_the_attempt(
    layout: Layout, kit: Git, base: str, monkeypatch: pytest.MonkeyPatch, error: Exception, later: bool
) -> None:
    async def full(*_: object, **__: object) -> None:
        raise error

    spaces = Workspaces(kit, layout)
    layout.worktree("a", 1).mkdir()
    monkeypatch.setattr(kit, "import_commits", full)
    found = await spaces.collect("a", 1, base, agent="x")
    assert (found.later, found.complete, found.candidate_commit) == (later, False, None)


async def test_pins_of_attempts_that_are_over_go_at_once_and_later_ones_only_when_idle_twice(
    layout: Layout, spaces: Workspaces, kit: Git, base: str
) -> None:
    await spaces.pin([("a", 1, base), ("a", 2, base), ("b", 1, base)])
    await spaces.sweep((), {"a": 1, "b": 0})
    assert set(await kit.refs("refs/coordinator/base")) == {base_ref("a", 2), base_ref("b", 1)}
    await spaces.sweep((), {"a": 1, "b": 0})
    assert not await kit.refs("refs/coordinator/base")
