"""An agent's commits come into the repository whole, or not at all with a reason."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.kit import git_import
from coordinator.kit.git import Git, Imported
from coordinator.kit.git_tips import read_tips
from tests.clones import make_clone
from tests.conftest import git

if TYPE_CHECKING:
    from pathlib import Path

    from coordinator.sdk.layout import Layout


class Clone:
    def __init__(self, layout: Layout) -> None:
        self.top = layout.repository
        self.base = git(self.top, "rev-parse", "main")
        self.path = make_clone(layout, self.base)
        self.kit = Git(self.top, self.top / ".git")

    def commit(self, name: str, *words: str) -> str:
        (self.path / name).write_text(name)
        git(self.path, "add", "-A")
        git(self.path, "commit", "--quiet", "-m", f"add {name}", *words)
        return git(self.path, "rev-parse", "HEAD")

    async def take(self) -> Imported:
        return await self.kit.import_commits(self.path, self.base)

    def is_whole(self, commit: str) -> bool:
        """Whether the repository has it and everything it leads to, also without the clone."""
        shutil.rmtree(self.path)
        git(self.top, "rev-list", "--objects", commit)
        return True


@pytest.fixture
def clone(layout: Layout) -> Clone:
    return Clone(layout)


async def test_nothing_new_is_nothing(clone: Clone) -> None:
    assert await clone.take() == Imported(commits={})


async def test_branches_stashes_detached_heads_and_rewritten_history_all_come(clone: Clone) -> None:
    one = clone.commit("one")
    git(clone.path, "checkout", "--quiet", "-b", "idea", clone.base)
    idea = clone.commit("idea")
    amended = clone.commit("idea2", "--amend")
    stashes = []
    for text in ("first", "second"):
        (clone.path / "README.md").write_text(text)
        git(clone.path, "stash", "--quiet")
        stashes.append(git(clone.path, "rev-parse", "stash"))
    git(clone.path, "tag", "-a", "-m", "marked", "v1")
    git(clone.path, "checkout", "--quiet", "--detach", one)
    head = clone.commit("detached")
    git(clone.path, "pack-refs", "--all")
    found = await clone.take()
    assert found.complete, found.note
    named = {name: oid for name, oid in found.commits.items() if not name.startswith("reflog/")}
    assert named == {
        "HEAD": head,
        "heads/coordinator/a/1": one,
        "heads/idea": amended,
        "stash": stashes[1],
        "tags/v1": git(clone.path, "rev-parse", "v1"),
    }
    rest = {oid for name, oid in found.commits.items() if name.startswith("reflog/")}
    assert rest == {stashes[0], idea}
    shutil.rmtree(clone.path)
    for oid in {*named.values(), *rest}:
        git(clone.top, "rev-list", "--objects", oid)


async def test_large_history_comes_as_one_pack(clone: Clone) -> None:
    for number in range(220):
        (clone.path / f"f{number}").write_text(f"{number}")
    head = clone.commit("many")
    assert (await clone.take()).commits["HEAD"] == head
    assert list((clone.top / ".git" / "objects" / "pack").glob("*.pack"))
    assert clone.is_whole(head)


async def test_history_beyond_the_bound_is_refused(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(git_import, "_LARGEST_IMPORT_BYTES", 1000)
    (clone.path / "noise").write_bytes(os.urandom(5000))
    clone.commit("more")
    found = await clone.take()
    assert (found.commits, found.complete) == ({}, False)
    assert "bytes of history" in found.note


async def test_nothing_configured_in_the_clone_runs(clone: Clone, tmp_path: Path) -> None:
    alarm = tmp_path / "alarm"
    alarm.write_text(f"#!/bin/sh\ntouch '{tmp_path}/ran'\n")
    alarm.chmod(0o755)
    head = clone.commit("one")
    for name in (
        "core.fsmonitor",
        "core.pager",
        "core.sshCommand",
        "uploadpack.packObjectsHook",
        "core.alternateRefsCommand",
    ):
        git(clone.path, "config", name, str(alarm))
    git(clone.path, "config", "core.worktree", str(tmp_path))
    hook = clone.path / ".git" / "hooks" / "reference-transaction"
    hook.parent.mkdir(exist_ok=True)
    shutil.copy(alarm, hook)
    assert (await clone.take()).commits["HEAD"] == head
    assert not (tmp_path / "ran").exists()


def _forge_object(clone: Clone) -> None:
    """The blob of the new file gets other content under its old name."""
    blob = git(clone.path, "rev-parse", "HEAD:one")
    other = clone.path / "other"
    other.write_text("forged")
    fake = git(clone.path, "hash-object", "-w", "other")
    objects = clone.path / ".git" / "objects"
    target = objects / blob[:2] / blob[2:]
    target.chmod(0o644)
    shutil.copy(objects / fake[:2] / fake[2:], target)


def _drop_object(clone: Clone) -> None:
    tree = git(clone.path, "rev-parse", "HEAD^{tree}")
    (clone.path / ".git" / "objects" / tree[:2] / tree[2:]).unlink()


def _evil_tree(clone: Clone) -> None:
    blob = git(clone.path, "rev-parse", "HEAD:one")
    done = subprocess.run(
        ["git", "-C", str(clone.path), "mktree"],
        input=f"100644 blob {blob}\t.git\n".encode(),
        check=True,
        capture_output=True,
    )
    tree = done.stdout.decode().strip()
    commit = git(clone.path, "commit-tree", "-m", "evil", "-p", "HEAD", tree)
    git(clone.path, "update-ref", "refs/heads/evil", commit)


def _ref_to_nowhere(clone: Clone) -> None:
    (clone.path / ".git" / "refs" / "heads" / "x").write_text("e" * 40 + "\n")


def _objects_elsewhere(clone: Clone) -> None:
    shutil.rmtree(clone.path / ".git" / "objects")
    (clone.path / ".git" / "objects").symlink_to("/nonexistent")


@pytest.mark.parametrize("spoil", [_forge_object, _drop_object, _evil_tree, _ref_to_nowhere, _objects_elsewhere])
async def test_what_is_not_sound_is_not_imported(clone: Clone, spoil: object) -> None:
    clone.commit("one")
    assert callable(spoil)
    spoil(clone)
    before = git(clone.top, "fsck", "--no-dangling")
    found = await clone.take()
    assert (found.commits, found.complete) == ({}, False)
    assert found.note
    assert git(clone.top, "fsck", "--no-dangling") == before


async def test_alternates_that_lead_elsewhere_only_lend_objects(clone: Clone, tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet", "secret")
    clone.commit("one")
    (clone.path / ".git" / "objects" / "info" / "alternates").write_text(f"{tmp_path}/secret/.git/objects\n")
    found = await clone.take()
    assert found.complete
    assert set(found.commits) == {"HEAD", "heads/coordinator/a/1"}
    assert not [path for path in (tmp_path / "secret" / ".git" / "objects").rglob("*") if path.is_file()]


async def test_fifos_links_and_huge_files_among_the_refs_are_not_waited_for(clone: Clone, tmp_path: Path) -> None:
    head = clone.commit("one")
    inside = clone.path / ".git"
    os.mkfifo(inside / "refs" / "heads" / "fifo")
    (tmp_path / "outside").write_text(head)
    (inside / "refs" / "heads" / "link").symlink_to(tmp_path / "outside")
    with (inside / "packed-refs").open("wb") as file:
        file.truncate(1 << 40)
    shutil.rmtree(inside / "logs")
    (inside / "logs").symlink_to(tmp_path)
    found = await clone.take()
    assert (found.commits["HEAD"], found.complete) == (head, False)
    assert "heads/link" not in found.commits


@pytest.mark.parametrize("swap", ["gone", "file", "link to the repository", "link to another"])
async def test_a_git_folder_that_is_none_is_not_followed(clone: Clone, tmp_path: Path, swap: str) -> None:
    clone.commit("one")
    shutil.rmtree(clone.path / ".git")
    if swap == "file":
        (clone.path / ".git").write_text(f"gitdir: {clone.top}/.git")
    elif swap == "link to the repository":
        (clone.path / ".git").symlink_to(clone.top / ".git")
    elif swap == "link to another":
        git(tmp_path, "init", "--quiet", "evil")
        git(tmp_path / "evil", "-c", "user.name=x", "-c", "user.email=x@y", "commit", "-qm", "x", "--allow-empty")
        (clone.path / ".git").symlink_to(tmp_path / "evil" / ".git")
    found = await clone.take()
    assert found.commits == {}
    assert found.complete
    assert "its .git" in found.note


_GARBAGE = st.binary(max_size=200) | st.sampled_from([b"ref: refs/../../x", b"ref: ", b"a" * 40, b"a" * 41, b"0" * 40])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(head=_GARBAGE, packed=_GARBAGE, ref=_GARBAGE, log=_GARBAGE)
def test_no_garbage_in_the_names_raises(tmp_path: Path, head: bytes, packed: bytes, ref: bytes, log: bytes) -> None:
    folder = tmp_path / ".git"
    (folder / "refs" / "heads").mkdir(parents=True, exist_ok=True)
    (folder / "logs").mkdir(exist_ok=True)
    for name, data in (("HEAD", head), ("packed-refs", packed), ("refs/heads/x", ref), ("logs/HEAD", log)):
        (folder / name).write_bytes(data)
    tips = read_tips(tmp_path)
    assert not isinstance(tips, str)
    assert all(len(oid) in (40, 64) for oid in (*tips.named.values(), *tips.reflog))
