"""What kind of repository a folder is in, looked at once at start and by ``doctor``.

Owns one invariant: a repository that we cannot work on is refused with a sentence that says what to do about it.
It decides nothing about repositories that are merely unusual: those are facts.
"""

from __future__ import annotations

import asyncio
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from coordinator.domain.errors import BadRepository, ToolFailed
from coordinator.kit.git_command import GitOutput, clean_environment, run_git, safety_options

OLDEST_GIT: Final = (2, 38, 0)
"""``merge-tree --write-tree`` came with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryFacts:
    """``top`` is the checkout (the git folder itself when ``bare``), ``git_dir`` the folder shared by all work trees.

    ``branch`` is None when HEAD is detached, ``head`` None when there is no commit yet. ``dirty`` counts tracked files.
    ``identity``: git knows a name and an e-mail for commits. ``partial``: some objects are only on a server.
    """

    top: Path
    git_dir: Path
    branch: str | None
    head: str | None
    dirty: bool
    bare: bool
    shallow: bool
    has_submodules: bool
    has_lfs: bool
    git_version: tuple[int, int, int]
    identity: bool
    worktree_branches: tuple[str, ...]
    partial: bool = False


async def _ask(directory: Path, *args: str) -> GitOutput:
    argv = ("git", *safety_options(hooks=False), "-C", str(directory), *args)
    return await run_git(argv, cwd=Path("/"), env=clean_environment(), timeout_s=60.0)


async def _answer(directory: Path, *args: str) -> str:
    """What git printed, empty when it refused."""
    output = await _ask(directory, *args)
    return os.fsdecode(output.stdout).strip() if output.code == 0 else ""


async def inspect(directory: Path) -> RepositoryFacts:
    """Look at the repository that contains ``directory``. Raises ``BadRepository`` with a remedy in its message."""
    directory = directory.absolute()
    if not directory.is_dir():
        raise BadRepository(f"{directory} is not a folder; name one inside a git repository")
    version = await _version()
    bare, git_dir, top = await _locate(directory)
    branch, head, status, identity, listing, partial = await asyncio.gather(
        _answer(top, "symbolic-ref", "--quiet", "--short", "HEAD"),
        _answer(top, "rev-parse", "--verify", "--quiet", "HEAD^{commit}"),
        _answer(top, "status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all"),  # fails when bare
        _answer(top, "-c", "user.useConfigOnly=true", "var", "GIT_COMMITTER_IDENT"),
        _answer(top, "worktree", "list", "--porcelain"),
        _answer(top, "config", "--get", "extensions.partialClone"),
    )
    prefix = "branch refs/heads/"
    branches = [line.removeprefix(prefix) for line in listing.splitlines() if line.startswith(prefix)]
    return RepositoryFacts(
        top=top,
        git_dir=git_dir,
        branch=branch or None,
        head=head or None,
        dirty=bool(status),
        bare=bare,
        shallow=(git_dir / "shallow").is_file(),
        has_submodules=(top / ".gitmodules").is_file(),
        has_lfs=_mentions_lfs(top / ".gitattributes"),
        git_version=version,
        identity=bool(identity),
        worktree_branches=tuple(sorted(branches)),
        partial=bool(partial),
    )


async def _version() -> tuple[int, int, int]:
    try:
        text = (
            await run_git(("git", "version"), cwd=Path("/"), env=clean_environment(), timeout_s=60.0)
        ).stdout.decode()
    except ToolFailed as error:
        raise BadRepository(
            f"git does not start ({error}); install git {OLDEST_GIT[0]}.{OLDEST_GIT[1]} or newer"
        ) from error
    match = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    version = (int(match[1]), int(match[2]), int(match[3] or 0)) if match else (0, 0, 0)
    if version < OLDEST_GIT:
        wanted = f"{OLDEST_GIT[0]}.{OLDEST_GIT[1]}"
        raise BadRepository(
            f"{text.strip()} is too old; install git {wanted} or newer (merge-tree --write-tree is needed)"
        )
    return version


async def _locate(directory: Path) -> tuple[bool, Path, Path]:
    """Whether the repository is bare, its common git folder, and the top of the checkout."""
    words = ("--is-bare-repository", "--is-inside-work-tree", "--path-format=absolute", "--git-common-dir")
    output = await _ask(directory, "rev-parse", *words)
    if output.code:
        raise BadRepository(_refusal(directory, output.stderr))
    bare, inside, git_dir = os.fsdecode(output.stdout).split("\n", 2)
    common = Path(git_dir.removesuffix("\n"))
    if bare == "true":
        return True, common, common
    if inside != "true":
        raise BadRepository(f"{directory} is inside a git folder; go to the checkout it belongs to")
    top = os.fsdecode((await _ask(directory, "rev-parse", "--show-toplevel")).stdout)
    return False, common, Path(top.removesuffix("\n"))


def _refusal(directory: Path, stderr: str) -> str:
    if "dubious ownership" in stderr:
        return (
            f"{directory} belongs to another user, so git refuses it; if you trust it: "
            f"git config --global --add safe.directory {directory}"
        )
    if "not a git repository" in stderr:
        return f"{directory} is not in a git repository; to make it one: git init, git add -A, git commit -m start"
    last = stderr.strip().rpartition("\n")[2]
    return f"git cannot read the repository at {directory}: {last}; git fsck tells more"


def _mentions_lfs(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return b"filter=lfs" in file.read(1024 * 1024)
    except OSError:
        return False
