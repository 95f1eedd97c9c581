"""What a hostile agent can try from inside its attempt, each really tried, and that none of it gets out.

A private clone is a fence against git doing something on the agent's behalf, not against an agent that opens the user's
files by their path: it runs as the same user. What only a sandbox prevents is named in ``NEEDS_A_SANDBOX`` and shown.
"""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from coordinator.fleet.workspace import Collected, Workspaces
from coordinator.kit.git import Git
from coordinator.sdk.layout import rescue_ref
from tests.clones import make_clone
from tests.conftest import git

if TYPE_CHECKING:
    from pathlib import Path

    from coordinator.sdk.layout import Layout

NEEDS_A_SANDBOX = {
    "push to the repository by its path": 'git push --quiet --force "$REPOSITORY" HEAD:refs/heads/coordinator/main',
    "write into another attempt's folder": 'echo mine > "$OTHER/work.txt"',
    "write into the user's git folder": 'echo ref: refs/heads/elsewhere > "$REPOSITORY/.git/HEAD"',
}
"""Possible to every process of the same user; prevented when the user's repository and other attempts are read-only to it."""

TRICKS = {
    "pop another's stash": "git stash pop || true; git stash drop stash@{0} || true; git stash clear",
    "move the user's branches": (
        "git update-ref refs/heads/main HEAD; git branch -f coordinator/main HEAD;"
        "git update-ref refs/coordinator/rescue/other/1 HEAD"
    ),
    "delete the user's branches": (
        "git branch -D main || true; git update-ref -d refs/heads/coordinator/main;"
        "git update-ref -d refs/coordinator/rescue/other/1; rm -rf .git/refs/coordinator; git worktree prune"
    ),
    "push to any remote": (
        "test -z \"$(git remote)\"; git push origin HEAD:main && exit 1; git push --all && exit 1; git push && exit 1; true"
    ),
    "plant hooks": (
        "mkdir -p .git/hooks; for hook in pre-commit post-commit post-checkout post-merge post-index-change"
        " reference-transaction pre-auto-gc update post-update; do cp \"$ALARM\" .git/hooks/$hook; done;"
        "mkdir .githooks; cp \"$ALARM\" .githooks/post-checkout; git config core.hooksPath .githooks"
    ),
    "plant a file-system monitor": "git config core.fsmonitor \"$ALARM\"; git config core.untrackedCache true",
    "plant filters": (
        "git config filter.x.clean \"$ALARM\"; git config filter.x.smudge \"$ALARM\"; git config filter.x.process \"$ALARM\";"
        "git config filter.x.required true; git config merge.x.driver \"$ALARM\"; git config diff.x.textconv \"$ALARM\";"
        "git config diff.x.command \"$ALARM\"; git config diff.external \"$ALARM\";"
        "echo '* filter=x merge=x diff=x' > .gitattributes; mkdir -p .git/info; echo '* filter=x' > .git/info/attributes"
    ),
    "plant aliases and programs": (
        "git config alias.status \"!$ALARM\"; git config alias.write-tree \"!$ALARM\"; git config core.pager \"$ALARM\";"
        "git config core.editor \"$ALARM\"; git config core.sshCommand \"$ALARM\"; git config gpg.program \"$ALARM\";"
        "git config commit.gpgsign true; git config credential.helper \"!$ALARM\"; git config gc.recentObjectsHook \"$ALARM\";"
        "git config uploadpack.packObjectsHook \"$ALARM\"; git config core.alternateRefsCommand \"$ALARM\""
    ),
    "include other configuration": (
        "printf '[core]\\n\\tfsmonitor = %s\\n\\thooksPath = /nonexistent\\n' \"$ALARM\" > planted;"
        "git config include.path \"$PWD/planted\"; git config \"includeIf.gitdir:$REPOSITORY/.path\" \"$PWD/planted\";"
        "git config 'includeIf.gitdir:/.path' \"$PWD/planted\"; printf '[submodule \"s\"]\\n\\tpath = s\\n\\turl = ext::%s\\n"
        "\\tupdate = !%s\\n' \"$ALARM\" \"$ALARM\" > .gitmodules"
    ),
    "claim another work tree": "git config core.worktree \"$REPOSITORY\"; git config core.bare true",
    "rewrite history": (
        "git add -A; git commit -qm work; git checkout -q --orphan fresh; git commit -qm fresh;"
        "git branch -D coordinator/a/1; git reflog expire --expire=now --all; git replace HEAD HEAD~0 || true"
    ),
    "break HEAD and refs": (
        "echo garbage > .git/HEAD; echo garbage > .git/refs/heads/x; mkfifo .git/refs/heads/pipe;"
        "ln -s \"$REPOSITORY/.git/refs/heads/main\" .git/refs/heads/link; rm -f .git/index; mkdir .git/index"
    ),
    "swap .git for the user's": "rm -rf .git; ln -s \"$REPOSITORY/.git\" .git",
    "swap .git for a file": "rm -rf .git; echo \"gitdir: $REPOSITORY/.git\" > .git",
    "swap .git for an armed one": (
        "rm -rf .git; git init -q \"$OUTSIDE\"; git -C \"$OUTSIDE\" config core.fsmonitor \"$ALARM\";"
        "ln -s \"$OUTSIDE/.git\" .git"
    ),
    "point alternates elsewhere": (
        "git init -q --bare \"$OUTSIDE\"; echo \"$OUTSIDE/objects\" > .git/objects/info/alternates;"
        "mkfifo .git/objects/info/packs; ln -s / .git/objects/zz"
    ),
    "embed an armed repository": (
        "git init -q inner; cd inner; echo i > i; git add i; git -c user.name=x -c user.email=x@y commit -qm i;"
        "git config core.fsmonitor \"$ALARM\"; cd ..; git add -A 2>/dev/null; git commit -qm linked"
    ),
    "spoil the ignore rules": "echo '*' > .gitignore; mkdir -p .git/info; echo '!*' > .git/info/exclude",
}  # fmt: skip


class Scene:
    """A user's repository with a stash and a target, another attempt with a stash, and the attempt that misbehaves."""

    def __init__(self, layout: Layout, tmp_path: Path) -> None:
        self.layout, self.top = layout, layout.repository
        self.ran = tmp_path / "ran"
        self.alarm = tmp_path / "alarm"
        self.alarm.write_text(f'#!/bin/sh\necho "$0 $*" >> "{self.ran}"\nexit 1\n')
        self.alarm.chmod(0o755)
        self.outside = tmp_path / "outside"
        self.base = git(self.top, "rev-parse", "HEAD")
        git(self.top, "branch", "coordinator/main")
        git(self.top, "update-ref", "refs/coordinator/rescue/other/1", self.base)
        (self.top / ".git" / "info" / "exclude").write_text(".coordinator\n")
        (self.top / "README.md").write_text("the user's own work\n")
        git(self.top, "stash", "--quiet")
        (self.top / "README.md").write_text("in progress\n")
        self.other = make_clone(layout, self.base, "other", 1)
        (self.other / "README.md").write_text("another agent's work\n")
        git(self.other, "stash", "--quiet")
        (self.other / "work.txt").write_text("theirs\n")
        self.tree = make_clone(layout, self.base, "a", 1)
        self.kit = Git(self.top, self.top / ".git")
        self.spaces = Workspaces(self.kit, layout)

    def act(self, script: str) -> None:
        """The agent writes its work, then plays its trick."""
        (self.tree / "shop" / "work.py").write_text("WORK = 1\n")
        environment = os.environ | {
            "ALARM": str(self.alarm), "OTHER": str(self.other), "OUTSIDE": str(self.outside), "REPOSITORY": str(self.top),
        }  # fmt: skip
        done = subprocess.run(
            ["sh", "-c", script],
            cwd=self.tree,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        assert done.returncode == 0, done.stderr
        self.ran.unlink(missing_ok=True)  # what it ran against itself does not count

    def witness(self) -> dict[str, object]:
        """Everything that must not change."""
        inside = self.top / ".git"
        refs = git(self.top, "for-each-ref", "--format=%(refname) %(objectname)").splitlines()
        return {
            "config": (inside / "config").read_bytes(),
            "head": (inside / "HEAD").read_bytes(),
            "hooks": sorted(path.name for path in (inside / "hooks").glob("*")),
            "info": sorted((path.name, path.read_bytes()) for path in (inside / "info").glob("*")),
            "other refs": git(self.other, "for-each-ref"),
            "other stash": git(self.other, "stash", "list"),
            "other status": git(self.other, "status", "--porcelain"),
            "other work": (self.other / "work.txt").read_text(),
            "refs": [line for line in refs if "/rescue/a/" not in line and "/rescue-heads/a/" not in line],
            "stash": git(self.top, "stash", "list"),
            "status": git(self.top, "status", "--porcelain"),
            "text": (self.top / "README.md").read_text(),
        }

    async def judge(self, tmp_path: Path) -> Collected:
        """All that the daemon does with a finished attempt, up to the point where it would land."""
        found = await self.spaces.collect("a", 1, self.base, agent="villain")
        assert found.candidate_commit is not None, found.note
        assert await self.kit.changes(self.base, found.candidate_commit)
        merged = await self.kit.merge("coordinator/main", found.candidate_commit)
        assert merged.tree
        made = await self.kit.commit_tree(merged.tree, [self.base], "would land", committer=("x", "x@y"))
        await self.kit.export_tree(made, tmp_path / "gate")
        assert (tmp_path / "gate" / "shop" / "work.py").exists()
        await self.spaces.dispose("a", 1, found)
        await self.spaces.sweep({("other", 1)})
        return found


@pytest.fixture
def scene(layout: Layout, tmp_path: Path) -> Scene:
    return Scene(layout, tmp_path)


@pytest.mark.parametrize("trick", TRICKS)
async def test_tricks_do_not_get_out(scene: Scene, tmp_path: Path, trick: str) -> None:
    before = scene.witness()
    scene.act(TRICKS[trick])
    assert scene.witness() == before
    hidden = trick == "spoil the ignore rules"
    if hidden:
        found = await scene.spaces.collect("a", 1, scene.base, agent="villain")
        assert await scene.spaces.dispose("a", 1, found)
    else:
        found = await scene.judge(tmp_path)
    assert scene.witness() == before
    assert not scene.ran.exists(), scene.ran.read_text()
    rescued = git(scene.top, "show", f"{rescue_ref('a', 1)}:shop/work.py")
    assert rescued == "WORK = 1"
    assert scene.tree.exists() is not found.complete
    assert found.complete or found.note


async def test_history_that_was_rewritten_is_rescued_with_its_reflog(scene: Scene, tmp_path: Path) -> None:
    scene.act(
        "git add -A; git commit -qm first; echo 2 > two; git add -A; git commit -qm 'second thoughts';"
        "git reset -q --hard HEAD~1; git commit -q --amend -m amended"
    )
    await scene.judge(tmp_path)
    heads = git(
        scene.top, "for-each-ref", "--format=%(contents:subject)", "refs/coordinator/rescue-heads/a/1"
    ).splitlines()
    assert set(heads) == {"amended", "second thoughts"}  # the second stands on the first


async def test_a_root_swapped_for_the_users_checkout_is_refused(scene: Scene) -> None:
    before = scene.witness()
    scene.act('cd ..; mv a-1 "$OUTSIDE"; ln -s "$REPOSITORY" a-1')
    found = await scene.spaces.collect("a", 1, scene.base, agent="villain")
    assert (found.candidate_commit, found.complete) == (None, False)
    assert "not followed" in found.note
    await scene.spaces.sweep({("other", 1)})
    assert scene.witness() == before
    assert (scene.outside / "shop" / "work.py").exists()


async def test_what_a_trick_merges_does_not_run_the_users_tools_on_it(scene: Scene, tmp_path: Path) -> None:
    """Attributes come with the tree, but the programs they name only from configuration that the agent cannot write."""
    scene.act(TRICKS["plant filters"])
    await scene.judge(tmp_path)
    git(scene.top, "checkout", "--quiet", "--force", "--detach", rescue_ref("a", 1))
    git(scene.top, "status")
    assert not scene.ran.exists()


@pytest.mark.parametrize("trick", NEEDS_A_SANDBOX)
def test_what_only_a_sandbox_prevents_is_known(scene: Scene, trick: str) -> None:
    """If one of these stops being possible, the list above and the documentation claim too little."""
    before = scene.witness()
    scene.act(f"git add -A; git commit -qm work; {NEEDS_A_SANDBOX[trick]}")
    assert scene.witness() != before
