"""Everything an agent wrote gets into the snapshot, or the snapshot says what did not."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING

import pytest

from coordinator.kit import git_snapshot
from coordinator.kit.git import Git, Snapshot
from tests.clones import make_clone
from tests.conftest import git

if TYPE_CHECKING:
    from pathlib import Path

    from coordinator.sdk.layout import Layout


class Tree:
    """A clone to write into and the repository to read it with."""

    def __init__(self, layout: Layout) -> None:
        self.top = layout.repository
        self.base = git(self.top, "rev-parse", "main")
        self.path = make_clone(layout, self.base)
        self.kit = Git(self.top, self.top / ".git")

    async def snapshot(self) -> Snapshot:
        return await self.kit.snapshot(self.path, self.base, author=("agent-1", "a@b"), message="Attempt a/1")

    def files(self, commit: str) -> set[str]:
        return set(git(self.top, "ls-tree", "-r", "-z", "--name-only", commit).split("\0")) - {""}


@pytest.fixture
def tree(layout: Layout) -> Tree:
    return Tree(layout)


async def test_an_untouched_tree_is_the_base(tree: Tree) -> None:
    found = await tree.snapshot()
    assert (found.commit, found.changed, found.complete, found.skipped, found.kept) == (tree.base, False, True, (), "")


async def test_uncommitted_deleted_renamed_and_odd_files_are_all_there(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tree.path
    (path / "README.md").unlink()
    shutil.move(path / "shop" / "price.py", path / "price.py")
    (path / "new\nline").write_text("1")
    (path / "deep" / "er").mkdir(parents=True)
    (path / "deep" / "er" / "x").write_text("2")
    (path / "run").write_text("#!/bin/sh\n")
    (path / "run").chmod(0o755)
    (path / "link").symlink_to("/etc/passwd")
    (path / "tests" / "test_price.py").unlink()
    (path / "tests").rmdir()
    (path / "tests").symlink_to("shop")  # a folder became a link
    (path / "empty").mkdir()
    os.mkfifo(path / "fifo")
    monkeypatch.chdir(path)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")  # a whole path would be too long for a socket
    found = await tree.snapshot()
    assert tree.files(found.commit) == {
        "deep/er/x", "link", "new\nline", "price.py", "run", "shop/__init__.py", "tests",
    }  # fmt: skip
    assert found.complete
    assert sorted(found.skipped) == ["fifo: is no file, folder or link", "socket: is no file, folder or link"]
    assert git(tree.top, "log", "-1", "--format=%an|%P|%s", found.commit) == f"agent-1|{tree.base}|Attempt a/1"
    modes = git(tree.top, "ls-tree", found.commit)
    assert [line.split()[0] for line in modes.splitlines() if line.endswith(("link", "run", "tests"))] == [
        "120000", "100755", "120000",
    ]  # fmt: skip


async def test_the_users_index_refs_and_checkout_are_not_touched(tree: Tree) -> None:
    before = ((tree.top / ".git" / "index").read_bytes(), git(tree.top, "for-each-ref"), git(tree.top, "status", "-s"))
    (tree.path / "new").write_text("1")
    assert (await tree.snapshot()).changed
    assert before == (
        (tree.top / ".git" / "index").read_bytes(),
        git(tree.top, "for-each-ref"),
        git(tree.top, "status", "-s"),
    )


async def test_ignored_files_are_kept_beside_the_candidate_and_caches_are_not(tree: Tree) -> None:
    (tree.path / ".gitignore").write_text("secret.txt\nbuild/\nnode_modules/\ntarget\n*.log\n")
    for name in (
        "secret.txt", "build/out", "node_modules/x/y.js", "sub/node_modules/z", "target/debug/a", "a.log",
        "shop/__pycache__/price.cpython-311.pyc", "shop/__pycache__/note.txt", ".pytest_cache/v/x", ".ruff_cache/0",
        ".venv/bin/python", "sub/stay.txt",
    ):  # fmt: skip
        (tree.path / name).parent.mkdir(parents=True, exist_ok=True)
        (tree.path / name).write_text(name)
    found = await tree.snapshot()
    new = tree.files(found.commit) - tree.files(tree.base)
    # .venv is not ignored here, so it may be anything; a note hidden in a cache is a note
    assert new == {".gitignore", "shop/__pycache__/note.txt", ".venv/bin/python", "sub/stay.txt"}
    assert tree.files(found.kept) - tree.files(found.commit) == {"secret.txt", "build/out", "a.log"}
    assert git(tree.top, "rev-parse", f"{found.kept}^") == found.commit
    assert found.complete


async def test_tracked_files_in_folders_named_like_caches_are_the_candidates(layout: Layout) -> None:
    top = layout.repository
    for name in ("target/a", ".pytest_cache/b", "old.pyc", "ignored.txt"):
        (top / name).parent.mkdir(exist_ok=True)
        (top / name).write_text("1")
    (top / ".gitignore").write_text("target\nignored.txt\n")
    git(top, "add", "-A", "-f", ":!.coordinator")
    git(top, "commit", "--quiet", "-m", "odd names")
    tree = Tree(layout)
    for name in ("target/a", ".pytest_cache/b", "old.pyc", "ignored.txt"):
        (tree.path / name).write_text("22")
    found = await tree.snapshot()
    changed = {change.path for change in await tree.kit.changes(tree.base, found.commit)}
    assert changed == {"target/a", ".pytest_cache/b", "old.pyc", "ignored.txt"}
    assert found.kept == ""


async def test_too_much_ignored_data_is_not_called_complete(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(git_snapshot, "_MOST_IGNORED_BYTES", 1000)
    (tree.path / ".gitignore").write_text("*.log\n")
    (tree.path / "small.log").write_bytes(b"x" * 900)
    (tree.path / "large.log").write_bytes(b"x" * 5000)
    found = await tree.snapshot()
    assert "small.log" in tree.files(found.kept)
    assert not found.complete
    assert found.skipped[0].startswith("large.log: does not fit")


async def test_large_files(tree: Tree) -> None:
    with (tree.path / "100mb").open("wb") as file:
        file.truncate(100 * 1024 * 1024)
    with (tree.path / "terabyte").open("wb") as file:
        file.truncate(1 << 40)
    found = await tree.snapshot()
    assert git(tree.top, "cat-file", "-s", f"{found.commit}:100mb") == str(100 * 1024 * 1024)
    assert not found.complete
    assert "terabyte" in found.skipped[0]
    assert "terabyte" not in tree.files(found.commit)


async def test_embedded_repositories_keep_their_files_and_are_not_called_complete(tree: Tree) -> None:
    inner = tree.path / "inner"
    inner.mkdir()
    git(inner, "init", "--quiet")
    (inner / "work.txt").write_text("w")
    git(inner, "add", ".")
    git(inner, "-c", "user.name=x", "-c", "user.email=x@y", "commit", "--quiet", "-m", "inner")
    (tree.path / "shop" / ".git").write_text("gitdir: /nonexistent\n")
    found = await tree.snapshot()
    assert "inner/work.txt" in tree.files(found.commit)
    assert "shop/price.py" in tree.files(found.commit)
    assert not found.complete
    assert {text.split(":")[0] for text in found.skipped} == {"inner", "shop"}


@pytest.mark.parametrize("filled", [True, False])
async def test_submodules_stay_links_and_nothing_in_them_runs(layout: Layout, tmp_path: Path, filled: bool) -> None:
    top = layout.repository
    other = git(top, "commit-tree", "-m", "x", "HEAD^{tree}")
    git(top, "update-index", "--add", "--cacheinfo", f"160000,{other},lib")
    git(top, "commit", "--quiet", "-m", "submodule")
    tree = Tree(layout)
    if filled:
        lib = tree.path / "lib"
        git(lib, "init", "--quiet")
        (lib / "f").write_text("1")
        git(lib, "add", "f")
        git(lib, "-c", "user.name=x", "-c", "user.email=x@y", "commit", "--quiet", "-m", "x")
        alarm = tmp_path / "alarm"
        alarm.write_text(f"#!/bin/sh\ntouch '{tmp_path}/ran'\n")
        alarm.chmod(0o755)
        git(lib, "config", "core.fsmonitor", str(alarm))
    (tree.path / "new").write_text("1")
    found = await tree.snapshot()
    assert git(top, "ls-tree", found.commit, "lib").split()[:3] == ["160000", "commit", other]
    assert found.complete is not filled
    assert not (tmp_path / "ran").exists()


async def test_a_submodule_replaced_by_plain_files_or_removed(layout: Layout) -> None:
    top = layout.repository
    other = git(top, "rev-parse", "HEAD")
    for name in ("lib", "ext"):
        git(top, "update-index", "--add", "--cacheinfo", f"160000,{other},{name}")
    git(top, "commit", "--quiet", "-m", "submodules")
    tree = Tree(layout)
    (tree.path / "lib" / "vendored.py").write_text("1")
    (tree.path / "ext").rmdir()
    found = await tree.snapshot()
    assert found.complete
    assert "lib/vendored.py" in tree.files(found.commit)
    assert git(top, "ls-tree", found.commit, "ext") == ""


@pytest.mark.parametrize("swap", ["nothing", "symlink", "file", "foreign"])
async def test_the_clones_own_git_folder_does_not_matter(tree: Tree, tmp_path: Path, swap: str) -> None:
    (tree.path / "work").write_text("1")
    shutil.rmtree(tree.path / ".git")
    if swap == "symlink":
        (tree.path / ".git").symlink_to(tree.top / ".git")
    elif swap == "file":
        (tree.path / ".git").write_text(f"gitdir: {tree.top}/.git\n")
    elif swap == "foreign":
        git(tmp_path, "init", "--quiet", "evil")
        (tree.path / ".git").symlink_to(tmp_path / "evil" / ".git")
    found = await tree.snapshot()
    assert found.complete
    assert tree.files(found.commit) == tree.files(tree.base) | {"work"}


async def test_a_root_that_is_gone_or_swapped_is_refused(tree: Tree, tmp_path: Path) -> None:
    shutil.move(tree.path, tmp_path / "elsewhere")
    for _ in ("gone", "symlink"):
        found = await tree.snapshot()
        assert (found.commit, found.tree, found.changed, found.complete) == ("", "", False, False)
        assert "the working tree" in found.skipped[0]
        tree.path.unlink(missing_ok=True)
        tree.path.symlink_to(tmp_path / "elsewhere")


async def test_line_ends_and_filters_of_the_agents_choice_stop_nothing(tree: Tree, tmp_path: Path) -> None:
    git(tree.top, "config", "core.autocrlf", "input")
    git(tree.top, "config", "core.safecrlf", "true")
    (tree.path / "mixed.txt").write_bytes(b"a\r\nb\nc\r\n")
    (tree.path / ".gitattributes").write_text("* filter=evil diff=evil merge=evil\n")
    for name in ("clean", "smudge", "process"):
        git(tree.path, "config", f"filter.evil.{name}", f"touch '{tmp_path}/ran'; cat")
    found = await tree.snapshot()
    assert found.complete
    assert "mixed.txt" in tree.files(found.commit)
    assert not (tmp_path / "ran").exists()


async def test_the_stamp_changes_with_any_late_write(tree: Tree) -> None:
    (tree.path / "work").write_text("1")
    found = await tree.snapshot()
    assert await tree.kit.stamp(tree.path, tree.base) == found.stamp
    (tree.path / "shop" / "__pycache__").mkdir()
    (tree.path / "shop" / "__pycache__" / "x.pyc").write_text("1")
    assert await tree.kit.stamp(tree.path, tree.base) == found.stamp
    (tree.path / "work").write_text("2")
    assert await tree.kit.stamp(tree.path, tree.base) != found.stamp


_UNREADABLE = """
import asyncio, os, pwd, subprocess, sys, concurrent.futures.thread
from pathlib import Path
from coordinator.kit.git import Git
if os.getuid() == 0:  # root may read everything
    nobody = pwd.getpwnam("nobody")
    os.chown(sys.argv[1], nobody.pw_uid, nobody.pw_gid)
    os.setgroups([]); os.setgid(nobody.pw_gid); os.setuid(nobody.pw_uid)
os.chdir(sys.argv[1])
os.environ["HOME"] = sys.argv[1]
def git(*words): return subprocess.run(["git", "-C", "r", *words], check=True, capture_output=True, text=True).stdout.strip()
subprocess.run(["git", "init", "-q", "r"], check=True)
for name in ("d/tracked", "open", "shut"):
    Path("r", name).parent.mkdir(exist_ok=True); Path("r", name).write_text("1")
git("add", "."); git("-c", "user.name=x", "-c", "user.email=x@y", "commit", "-qm", "1")
subprocess.run(["git", "clone", "-q", "r", "w"], check=True)
Path("w/new").write_text("1"); Path("w/shut").chmod(0); Path("w/d").chmod(0)
kit = Git(Path("r").absolute(), Path("r/.git").absolute())
found = asyncio.run(kit.snapshot(Path("w").absolute(), git("rev-parse", "HEAD"), author=("a", "b"), message="m"))
print(git("ls-tree", "-r", "--name-only", found.commit).split(), found.complete, sorted(found.skipped))
Path("w/d").chmod(0o755)
"""


def test_what_cannot_be_read_stays_as_it_was_and_is_not_called_complete() -> None:
    """In a process that is not root, for root may read everything."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([sys.executable, "-c", _UNREADABLE, folder], check=False, capture_output=True, text=True)
        assert done.stdout.strip() == (
            "['d/tracked', 'new', 'open', 'shut'] False "
            "['d: cannot be listed (Permission denied)', 'shut: cannot be read']"
        ), done.stderr
