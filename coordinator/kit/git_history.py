"""Commits as a person wants to read them, through GitPython: it parses what a command line of git would make us parse.

Owns one invariant: every ``Repo`` is closed before the answer is given (an open one keeps git processes and their
descriptors). For reading single commits on request only; all that the daemon does again and again is ``kit.git``'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from pathlib import Path

_FILES: Final = 200
_PLAIN_PATHS: Final[Mapping[str, str]] = {
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "core.quotePath",
    "GIT_CONFIG_VALUE_0": "false",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FileStat:
    """One file of a commit and how many lines it gained and lost."""

    deleted: int
    inserted: int
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitStory:
    """``files`` are at most 200; ``deleted`` and ``inserted`` count lines over all files, ``changed`` all files."""

    at: datetime
    author: str
    changed: int
    commit: str
    deleted: int
    files: tuple[FileStat, ...]
    inserted: int
    subject: str


def read_commit(top: Path, commit: str) -> CommitStory | None:
    """The story of ``commit`` in the repository at ``top``; None when it cannot be read (gone, damaged, no repository)."""
    import git  # costs 60 ms; only who asks for a story pays

    try:
        with git.Repo(top) as repo, repo.git.custom_environment(**_PLAIN_PATHS):
            found = repo.commit(commit)
            stats = found.stats
            files = [
                FileStat(path=str(path), inserted=stat["insertions"], deleted=stat["deletions"])
                for path, stat in sorted(stats.files.items(), key=lambda item: str(item[0]))
            ]
            return CommitStory(
                at=found.committed_datetime,
                author=str(found.author),
                changed=stats.total["files"],
                commit=found.hexsha,
                deleted=stats.total["deletions"],
                files=tuple(files[:_FILES]),
                inserted=stats.total["insertions"],
                subject=str(found.summary),
            )
    except (git.exc.GitError, git.exc.ODBError, ValueError, OSError):
        return None
