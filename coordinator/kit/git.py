"""Git as the daemon uses it: objects, refs, merges and trees of the user's repository, never their checkout.

Owns one invariant: no method touches the user's index, work tree, HEAD or configuration, and a ref moves only by
compare-and-swap or in one transaction. How git is started is ``git_command``; what an agent left is ``git_snapshot``
and ``git_import``.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from coordinator.domain.errors import ToolFailed
from coordinator.kit.git_command import GitCommand, GitOutput, clean_environment, failure, run_git, safety_options
from coordinator.kit.git_import import Imported, import_history
from coordinator.kit.git_inspect import RepositoryFacts, inspect
from coordinator.kit.git_snapshot import read_work_tree, tree_stamp

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

__all__ = ["FileChange", "Git", "GitOutput", "Imported", "MergeResult", "RepositoryFacts", "Snapshot", "inspect"]

IGNORED_FILES: Final = "Files that .gitignore leaves out, kept for rescue"
"""Message of the commit on top of a snapshot."""

_HEX: Final = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChange:
    """One file between two trees: ``status`` is A, M, D, R or T; ``old_path`` is set for R only."""

    status: str
    path: str
    old_path: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What a working tree held, as objects that no ref holds yet.

    ``commit`` has the tree and one parent, the base; it is the base itself when nothing ``changed``, and empty when the
    tree could not be read at all. ``kept`` is a commit on top of it with the ignored files, empty when there are none.
    ``complete``: every byte that the agent wrote is in ``kept`` or ``commit``; otherwise ``skipped`` says what is not.
    ``stamp`` identifies the files as they were read. ``messages`` are those of the agent's own commits, oldest first.
    """

    commit: str
    tree: str
    changed: bool
    messages: tuple[str, ...]
    complete: bool
    skipped: tuple[str, ...]
    kept: str = ""
    stamp: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeResult:
    """``tree`` is empty on conflict; then ``conflicts`` names the files."""

    tree: str
    conflicts: tuple[str, ...]


def path_text(raw: bytes) -> str:
    """A path as text that can be printed, stored and sent: bytes that are no UTF-8 become ``\\xNN``."""
    return raw.decode("utf-8", "backslashreplace")


def _identity(role: str, person: tuple[str, str]) -> dict[str, str]:
    """Git refuses empty names and cuts others at angle brackets; an agent's name must not stop a landing."""
    name, email = (re.sub(r"[<>\x00-\x1f]", "", text).encode(errors="replace").decode().strip() for text in person)
    return {f"GIT_{role}_NAME": name.strip(" .,:;\"'\\") or "coordinator", f"GIT_{role}_EMAIL": email}


class Git(GitCommand):
    """``top`` is the user's checkout, ``git_dir`` the common git folder. Revisions are passed as commits or names."""

    async def resolve(self, revision: str) -> str | None:
        """The full hash of the commit that ``revision`` names, None when there is none. HEAD is that of ``top``."""
        if not revision:
            return None
        words = ("rev-parse", "--verify", "--quiet", "--end-of-options", revision + "^{commit}")
        if revision == "HEAD":  # the checkout may be a linked work tree: then the common folder's HEAD is another's
            output = await self._outside("-C", str(self.top), *words, ok=(0, 1, 128))
        else:
            output = await self.run(*words, ok=(0, 1, 128))
        text = output.stdout.decode().strip()
        return text if output.code == 0 and _HEX.fullmatch(text) else None

    async def tree_of(self, commit: str) -> str:
        output = await self.run("rev-parse", "--verify", "--end-of-options", commit + "^{tree}")
        return output.stdout.decode().strip()

    async def is_ancestor(self, old: str, new: str) -> bool:
        return (await self.run("merge-base", "--is-ancestor", old, new, ok=(0, 1))).code == 0

    async def changes(self, old: str, new: str) -> tuple[FileChange, ...]:
        """Files that differ between two commits or trees, renames detected, sorted by path."""
        output = await self.run("diff-tree", "-r", "-z", "-M", "--name-status", "--no-ext-diff", old, new)
        words = iter(output.stdout.split(b"\0")[:-1])
        found = []
        for word in words:
            status = word[:1].decode()
            first = path_text(next(words))
            if status == "R":
                found.append(FileChange(status=status, old_path=first, path=path_text(next(words))))
            else:
                found.append(FileChange(status=status, path=first))
        return tuple(sorted(found, key=lambda change: change.path))

    async def listing(self, commit: str) -> dict[str, str]:
        """Every file of a commit by its path, with what changes when the file does: its mode and the hash of its content."""
        output = await self.run("ls-tree", "-r", "-z", "--full-tree", commit)
        files = {}
        for entry in output.stdout.split(b"\0")[:-1]:
            about, _, path = entry.partition(b"\t")
            mode, _, content = about.split(b" ")
            files[path_text(path)] = f"{mode.decode()} {content.decode()}"
        return files

    async def merge(self, ours: str, theirs: str) -> MergeResult:
        """The merge of two commits as a tree, made without any work tree."""
        output = await self.run("merge-tree", "--write-tree", "-z", "--name-only", ours, theirs, ok=(0, 1, 128))
        if output.code == 128 and "unrelated histories" in output.stderr:
            return MergeResult(tree="", conflicts=("(the histories have no common commit)",))
        first, _, rest = output.stdout.partition(b"\0")
        tree = first.decode(errors="replace")
        if not _HEX.fullmatch(tree):  # exit code 1 is used for both a conflict and a revision that does not exist
            raise failure(("git", "merge-tree", ours, theirs), output)
        if output.code == 0:
            return MergeResult(tree=tree, conflicts=())
        names = rest.partition(b"\0\0")[0].split(b"\0")
        return MergeResult(tree="", conflicts=tuple(sorted({path_text(name) for name in names if name})))

    async def commit_tree(
        self,
        tree: str,
        parents: Sequence[str],
        message: str,
        *,
        author: tuple[str, str] | None = None,
        committer: tuple[str, str],
    ) -> str:
        """A commit object (no ref moves). People are ``(name, email)``."""
        args = [word for parent in parents for word in ("-p", parent)]
        env = _identity("AUTHOR", author or committer) | _identity("COMMITTER", committer)
        text = message.replace("\0", "\\0").encode(errors="replace")
        output = await self.run("commit-tree", tree, *args, "-F", "-", stdin=text, env=env)
        return output.stdout.decode().strip()

    async def update_ref(self, ref: str, new: str, old: str | None) -> bool:
        """Compare and swap. ``old`` empty: must not exist; None: whatever. ``new`` empty deletes.

        False when it moved, or cannot be created because a branch of a shorter or longer name is in the way.
        """
        want = () if old is None else (old,)
        args = ("-d", ref, *want) if not new else (ref, new, *want)
        output = await self.run("update-ref", *args, ok=(0, 1, 128))
        if output.code == 0:
            return True
        now = (await self.refs(ref)).get(ref, "")
        if old is not None and (now != old or "; cannot create" in output.stderr):
            return False
        raise failure(("git", "update-ref", *args), output)

    async def update_refs(self, changes: Sequence[tuple[str, str]]) -> None:
        """All of ``(ref, new)`` or none, in one transaction; ``new`` empty deletes (also a ref that is not there)."""
        if not changes:
            return
        lines = [f"delete {ref}\0\0" if not new else f"update {ref}\0{new}\0\0" for ref, new in changes]
        await self.run("update-ref", "--stdin", "-z", stdin="".join(lines).encode())

    async def refs(self, prefix: str) -> dict[str, str]:
        """Full ref name → object hash, for ``prefix`` itself and everything below it."""
        output = await self.run("for-each-ref", "--format=%(objectname) %(refname)", "--", prefix.rstrip("/"))
        pairs = (line.split(" ", 1) for line in output.stdout.decode(errors="replace").splitlines())
        return {name: commit for commit, name in pairs}

    async def landed(self, target: str, *, since: str | None = None) -> dict[str, str]:
        """Task id → the newest commit in ``target``'s history (after ``since``) whose trailers name it.

        All parents are followed: a person who merges the target into their branch, and is followed by the target, makes
        it the second one. Only the last ``Coordinator-Task`` of a message counts: it is the one the lander wrote.
        """
        tip = await self.resolve(target)
        if tip is None:
            return {}
        form = "%H%x01%(trailers:key=Coordinator-Task,valueonly,separator=%x02)"
        span = f"{since}..{tip}" if since else tip
        output = await self.run("log", "-z", "--grep=^Coordinator-Task:", f"--format={form}", span, "--")
        found: dict[str, str] = {}
        for record in output.stdout.decode(errors="replace").split("\0"):
            commit, _, trailers = record.partition("\1")
            task_id = trailers.rpartition("\2")[2].strip()
            if task_id:
                found.setdefault(task_id, commit.strip())
        return found

    async def checked_out(self, branch: str) -> Path | None:
        """The folder (main or linked worktree) in which ``branch`` is checked out, None when nowhere."""
        output = await self.run("worktree", "list", "--porcelain", "-z")
        for block in output.stdout.split(b"\0\0"):
            lines = block.split(b"\0")
            if b"branch refs/heads/" + branch.encode() in lines and b"bare" not in lines:
                folder = Path(os.fsdecode(lines[0].removeprefix(b"worktree ")))
                if folder.exists():
                    return folder
        return None

    async def messages(self, base: str, head: str) -> tuple[str, ...]:
        """Messages of the commits of ``base..head``, oldest first, at most 50 of 4,000 characters each."""
        output = await self.run(
            "log", "-z", "--reverse", "--no-merges", "--max-count=50", "--format=%B", f"{base}..{head}", "--"
        )
        texts = output.stdout.decode(errors="replace").split("\0")
        return tuple(text.strip()[:4000] for text in texts if text.strip())

    async def export_tree(self, commit: str, dest: Path) -> None:
        """A clean private clone at ``commit``, HEAD detached; ``dest`` must not exist. Removed again on failure.

        Made by ``init`` and an ``alternates`` file instead of ``clone --shared``: that copies no refs, works on shallow
        repositories (where git silently refuses to share) and for commits that no ref holds yet.
        """
        exact = await self.resolve(commit)
        if exact is None:
            raise ToolFailed(f"there is no commit {commit} to make a tree of")
        kind = (await self.run("rev-parse", "--show-object-format")).stdout.decode().strip()
        try:
            await self._outside("init", "--quiet", "--template=", f"--object-format={kind}", str(dest))
            await asyncio.to_thread(self._share_objects, dest / ".git")
            inside = (f"--git-dir={dest / '.git'}", f"--work-tree={dest}")
            await self._outside(*inside, "checkout", "--quiet", "--force", "--detach", exact, cwd=dest)
        except BaseException:
            await asyncio.to_thread(shutil.rmtree, dest, ignore_errors=True)
            raise

    async def import_commits(self, worktree: Path, base: str) -> Imported:
        """Bring the agent's own commits of the clone at ``worktree`` into the repository's objects; see ``Imported``."""
        return await import_history(self, worktree, base)

    async def snapshot(
        self, worktree: Path, base: str, *, author: tuple[str, str], message: str, head: str | None = None
    ) -> Snapshot:
        """What ``worktree`` holds, as a commit on top of ``base``; ``head``, an imported commit, gives the messages."""
        messages = await self.messages(base, head) if head and head != base else ()
        reading = await read_work_tree(self, worktree, base)
        commit, kept = reading.tree and base, ""
        changed = bool(reading.tree) and reading.tree != await self.tree_of(base)
        if changed:
            commit = await self.commit_tree(reading.tree, [base], message, committer=author)
        if reading.kept_tree:
            kept = await self.commit_tree(reading.kept_tree, [commit], IGNORED_FILES, committer=author)
        return Snapshot(
            commit=commit,
            tree=reading.tree,
            changed=changed,
            messages=messages,
            complete=reading.complete,
            skipped=reading.skipped,
            kept=kept,
            stamp=reading.stamp,
        )

    async def stamp(self, worktree: Path, base: str) -> str:
        """The ``Snapshot.stamp`` that ``worktree`` would have now; empty when there is no such folder."""
        return await tree_stamp(self, worktree, base)

    def _share_objects(self, git_dir: Path) -> None:
        info = git_dir / "objects" / "info"
        info.mkdir(parents=True, exist_ok=True)
        (info / "alternates").write_bytes(os.fsencode(self.git_dir / "objects") + b"\n")
        shallow = self.git_dir / "shallow"
        if shallow.is_file():
            shutil.copyfile(shallow, git_dir / "shallow")

    async def _outside(self, *args: str, cwd: Path | None = None, ok: Collection[int] = (0,)) -> GitOutput:
        """Git on a repository that the arguments name, with the same care."""
        argv = ("git", *safety_options(hooks=False), *args)
        output = await run_git(argv, cwd=cwd or self.git_dir, env=clean_environment(), timeout_s=600.0)
        if output.code not in ok:
            raise failure(argv, output)
        return output
