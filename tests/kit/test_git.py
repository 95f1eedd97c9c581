"""Objects, refs and merges of a real repository; nothing of the user's moves that was not asked to move."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from coordinator.domain.errors import BadRepository, ToolFailed
from coordinator.kit.git import FileChange, Git, inspect
from coordinator.kit.lock import process_start
from tests.conftest import git
from tests.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

US = ("coordinator", "coordinator@localhost")


@pytest.fixture
def kit(repository: Path) -> Git:
    return Git(repository, repository / ".git")


def commit(top: Path, files: dict[str, str | None], message: str = "change", branch: str = "") -> str:
    """A commit on ``branch`` (made when missing) in the checkout; the checkout goes back to main."""
    if branch:
        git(top, "checkout", "--quiet", "-B", branch)
    for name, text in files.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True) if text is None else path.write_text(text)
    git(top, "add", "-A")
    git(top, "commit", "--quiet", "-m", message)
    made = git(top, "rev-parse", "HEAD")
    git(top, "checkout", "--quiet", "main")
    return made


async def test_resolve(repository: Path, kit: Git) -> None:
    head = git(repository, "rev-parse", "HEAD")
    assert await kit.resolve("main") == await kit.resolve("HEAD") == await kit.resolve(head[:10]) == head
    for nothing in ("", "no-such-branch", "--all", "main^{tree}", "0" * 40, "HEAD~99", "\n"):
        assert await kit.resolve(nothing) is None


async def test_head_is_that_of_the_linked_work_tree_we_were_started_in(repository: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    git(repository, "worktree", "add", "--quiet", "-b", "other", str(linked))
    git(linked, "commit", "--quiet", "--allow-empty", "-m", "only here")
    facts = await inspect(linked)
    kit = Git(facts.top, facts.git_dir)
    assert (facts.branch, facts.git_dir, facts.worktree_branches) == ("other", repository / ".git", ("main", "other"))
    assert await kit.resolve("HEAD") == facts.head == git(linked, "rev-parse", "HEAD") != await kit.resolve("main")
    assert await kit.checked_out("other") == linked
    assert await kit.checked_out("main") == repository
    assert await kit.checked_out("oth") is None


async def test_changes_name_every_kind(repository: Path, kit: Git) -> None:
    long = "".join(f"line {number}\n" for number in range(30))
    old = commit(repository, {"gone": "x", "kept": "1", "moved": long, "typed": "t"}, branch="b")
    git(repository, "checkout", "--quiet", "b")
    (repository / "typed").unlink()
    (repository / "typed").symlink_to("kept")
    (repository / os.fsdecode(b"odd\n\xff")).write_text("o")
    git(repository, "mv", "moved", "there")
    git(repository, "rm", "--quiet", "gone")
    (repository / "kept").write_text("2")
    git(repository, "add", "-A")
    git(repository, "commit", "--quiet", "-m", "all kinds")
    assert await kit.changes(old, "b") == (
        FileChange(status="D", path="gone"),
        FileChange(status="M", path="kept"),
        FileChange(status="A", path="odd\n\\xff"),
        FileChange(status="R", path="there", old_path="moved"),
        FileChange(status="T", path="typed"),
    )


async def test_merge_clean_conflicting_and_unrelated(repository: Path, kit: Git) -> None:
    ours = commit(repository, {"a.txt": "ours\n", "shop/new.py": "N = 1\n"}, branch="ours")
    clean = commit(repository, {"b.txt": "theirs\n"}, branch="clean")
    clash = commit(repository, {"a.txt": "theirs\n"}, branch="clash")
    git(repository, "checkout", "--quiet", "--orphan", "stranger")
    git(repository, "commit", "--quiet", "-m", "another world")
    git(repository, "checkout", "--quiet", "main")
    merged = await kit.merge(ours, clean)
    assert merged.conflicts == ()
    assert [change.path for change in await kit.changes("main", merged.tree)] == ["a.txt", "b.txt", "shop/new.py"]
    assert await kit.merge(ours, clash) == type(merged)(tree="", conflicts=("a.txt",))
    assert (await kit.merge(ours, await kit.resolve("stranger") or "")).tree == ""
    with pytest.raises(ToolFailed, match="merge-tree"):
        await kit.merge(ours, "f" * 40)
    assert git(repository, "status", "--porcelain") == ""


async def test_commit_takes_any_name_and_message(repository: Path, kit: Git) -> None:
    tree = await kit.tree_of("main")
    made = await kit.commit_tree(tree, ["main"], "a\0b \udcff\n\nmore", author=("<>\n", "x<y>"), committer=US)
    assert git(repository, "log", "-1", "--format=%an|%ae|%cn|%P", made) == (
        f"coordinator|xy|coordinator|{git(repository, 'rev-parse', 'main')}"
    )
    assert git(repository, "log", "-1", "--format=%B", made).startswith("a\\0b ?")


async def test_compare_and_swap(repository: Path, kit: Git) -> None:
    first = git(repository, "rev-parse", "main")
    second = await kit.commit_tree(await kit.tree_of("main"), [first], "two", committer=US)
    ref = "refs/heads/coordinator/main"
    assert await kit.update_ref(ref, first, "")
    assert not await kit.update_ref(ref, second, "")
    assert not await kit.update_ref(ref, second, second)
    assert await kit.resolve(ref) == first
    assert await kit.update_ref(ref, second, first)
    assert not await kit.update_ref("refs/heads/coordinator", first, "")  # a longer name is in the way
    assert not await kit.update_ref(ref, "", first)
    assert await kit.update_ref(ref, "", second)
    assert await kit.resolve(ref) is None
    assert await kit.update_ref(ref, first, None)
    with pytest.raises(ToolFailed):
        await kit.update_ref(ref, "f" * 40, first)


async def test_only_one_of_many_swaps_wins(repository: Path, kit: Git) -> None:
    first = git(repository, "rev-parse", "main")
    tree = await kit.tree_of("main")
    made = [await kit.commit_tree(tree, [first], f"{number}", committer=US) for number in range(6)]
    await kit.update_ref("refs/heads/t", first, "")
    won = await asyncio.gather(*(kit.update_ref("refs/heads/t", one, first) for one in made))
    assert won.count(True) == 1
    assert await kit.resolve("t") == made[won.index(True)]


async def test_transaction_is_all_or_nothing(repository: Path, kit: Git) -> None:
    first = git(repository, "rev-parse", "main")
    await kit.update_refs([("refs/coordinator/base/a/1", first), ("refs/coordinator/base/b/1", first)])
    with pytest.raises(ToolFailed):
        await kit.update_refs([("refs/coordinator/base/c/1", first), ("refs/coordinator/base/d/1", "f" * 40)])
    assert set(await kit.refs("refs/coordinator/base")) == {"refs/coordinator/base/a/1", "refs/coordinator/base/b/1"}
    await kit.update_refs([("refs/coordinator/base/a/1", ""), ("refs/coordinator/base/never/1", "")])
    assert await kit.refs("refs/coordinator/base/") == {"refs/coordinator/base/b/1": first}
    await kit.update_refs([])


async def test_landed_believes_the_last_trailer_of_each_commit_on_all_paths(repository: Path, kit: Git) -> None:
    forged = (
        "work\n\nCoordinator-Task: victim\n\nCoordinator-Task: other\nCoordinator-Task: one\nCoordinator-Attempt: one/1"
    )
    one = commit(repository, {"1": "1"}, forged, branch="t")
    side = commit(repository, {"2": "2"}, "side\n\nCoordinator-Task: side", branch="side")
    git(repository, "checkout", "--quiet", "t")
    git(repository, "commit", "--quiet", "--allow-empty", "-m", "again\n\nCoordinator-Task: one")
    again = git(repository, "rev-parse", "HEAD")
    git(repository, "merge", "--quiet", "--no-ff", "-m", "Coordinator-Task: not-a-trailer of a body\n\nx", side)
    assert await kit.landed("t") == {"one": again, "side": side}
    assert await kit.landed("t", since=again) == {"side": side}
    assert await kit.landed(one) == {"one": one}
    assert await kit.landed("nowhere") == {}


async def test_export_is_clean_private_and_of_any_commit(repository: Path, kit: Git, tmp_path: Path) -> None:
    made = await kit.commit_tree(await kit.tree_of("main"), ["main"], "in no ref", committer=US)
    (repository / "README.md").write_text("not committed\n")
    dest = tmp_path / "with:colon and space" / "out"
    await kit.export_tree(made, dest)
    assert git(dest, "status", "--porcelain") == ""
    assert (git(dest, "rev-parse", "HEAD"), git(dest, "remote"), git(dest, "branch", "--list")) == (
        made,
        "",
        f"* (HEAD detached at {made[:7]})",
    )
    assert "not committed" not in (dest / "README.md").read_text()
    with pytest.raises(ToolFailed):
        await kit.export_tree("f" * 40, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


async def test_export_of_a_shallow_repository(repository: Path, tmp_path: Path) -> None:
    git(repository, "commit", "--quiet", "--allow-empty", "-m", "two")
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{repository}", str(shallow))
    facts = await inspect(shallow)
    assert facts.shallow
    kit = Git(facts.top, facts.git_dir)
    made = await kit.commit_tree(await kit.tree_of("HEAD"), ["HEAD"], "in no ref", committer=US)
    await kit.export_tree(made, tmp_path / "out")
    assert git(tmp_path / "out", "log", "--format=%s") == "in no ref\ntwo"


async def test_neither_hooks_nor_the_environment_reach_our_git(
    repository: Path, kit: Git, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alarm = tmp_path / "ran"
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    for name in ("reference-transaction", "post-checkout", "post-index-change"):
        (hooks / name).write_text(f"#!/bin/sh\necho {name} >> '{alarm}'\n")
        (hooks / name).chmod(0o755)
    git(repository, "config", "core.hooksPath", str(hooks))
    git(repository, "config", "--global", "core.hooksPath", str(hooks))
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    monkeypatch.setenv("GIT_INDEX_FILE", "/nonexistent")
    try:
        assert await kit.update_ref("refs/heads/x", await kit.resolve("main") or "", "")
        await kit.export_tree("main", tmp_path / "out")
        assert not alarm.exists()
        loud = Git(repository, repository / ".git", hooks=True)
        await loud.update_ref("refs/heads/y", await kit.resolve("main") or "", "")
        assert "reference-transaction" in alarm.read_text()
    finally:
        for name in ("GIT_DIR", "GIT_INDEX_FILE"):
            monkeypatch.delenv(name)
        git(repository, "config", "--global", "--unset", "core.hooksPath")


async def test_a_git_that_hangs_is_killed_with_its_children(repository: Path, kit: Git, tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    git(repository, "config", "alias.hang", f"!echo $$ > '{mark}'; sleep 600 & wait")
    with pytest.raises(ToolFailed, match=r"git hang: not done after 0\.5 s"):
        await kit.run("hang", timeout_s=0.5)
    wait_until(lambda: process_start(int(mark.read_text())) is None)


async def test_a_cancelled_git_is_killed(repository: Path, kit: Git, tmp_path: Path) -> None:
    mark = tmp_path / "fifo"
    os.mkfifo(mark)
    git(repository, "config", "alias.hang", f"!echo $$ > '{mark}'; exec sleep 600")
    task = asyncio.create_task(kit.run("hang"))
    pid = int(await asyncio.to_thread(mark.read_text))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    wait_until(lambda: process_start(pid) is None)


async def test_failures_name_command_code_and_reason(kit: Git) -> None:
    with pytest.raises(ToolFailed, match=r"^git ls-tree nothing: exit code 128: fatal: .*nothing"):
        await kit.run("ls-tree", "nothing")


async def test_inspect_finds_the_facts(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    facts = await inspect(repository / "shop")
    assert (facts.top, facts.git_dir, facts.branch) == (repository, repository / ".git", "main")
    assert facts.identity
    assert facts.git_version >= (2, 38, 0)
    assert not any((facts.dirty, facts.bare, facts.shallow, facts.has_lfs, facts.has_submodules, facts.partial))
    (repository / "README.md").write_text("changed")
    (repository / ".gitattributes").write_text("*.bin filter=lfs diff=lfs\n")
    monkeypatch.delenv("GIT_DIR")
    git(repository, "checkout", "--quiet", "--detach")
    git(repository, "config", "--unset", "user.email")
    facts = await inspect(repository)
    assert (facts.dirty, facts.has_lfs, facts.branch, facts.identity) == (True, True, None, False)


async def test_inspect_of_unusual_and_impossible_places(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRepository, match="not in a git repository; to make it one: git init"):
        await inspect(tmp_path)
    with pytest.raises(BadRepository, match="not a folder"):
        await inspect(tmp_path / "missing")
    with pytest.raises(BadRepository, match="inside a git folder"):
        await inspect(repository / ".git" / "refs")
    git(tmp_path, "init", "--quiet", "--initial-branch=trunk", "empty")
    facts = await inspect(tmp_path / "empty")
    assert (facts.head, facts.branch) == (None, "trunk")
    git(tmp_path, "clone", "--quiet", "--bare", str(repository), "bare.git")
    assert (await inspect(tmp_path / "bare.git")).bare


async def test_inspect_needs_a_git_that_is_new_enough(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadRepository, match=r"install git 2\.38 or newer"):
        await inspect(repository)
    old = tmp_path / "git"
    old.write_text("#!/bin/sh\necho git version 2.30.2\n")
    old.chmod(0o755)
    with pytest.raises(BadRepository, match=r"2\.30\.2 is too old; install git 2\.38"):
        await inspect(repository)
