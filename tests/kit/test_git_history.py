from __future__ import annotations

import os
from typing import TYPE_CHECKING

from coordinator.kit.git_history import FileStat, read_commit
from tests.conftest import git

if TYPE_CHECKING:
    from pathlib import Path


def test_a_commit_is_told_with_its_files_and_lines(repository: Path) -> None:
    (repository / "README.md").write_text("# Shop\n")
    (repository / "ü new.txt").write_text("one\ntwo\n")
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "Say less\n\nand more\n")
    story = read_commit(repository, "HEAD")
    assert story is not None
    assert (story.subject, story.author, story.changed) == ("Say less", "Ada", 2)
    assert (story.inserted, story.deleted) == (2, 2)
    assert story.files[0] == FileStat(path="README.md", inserted=0, deleted=2)
    assert story.commit == git(repository, "rev-parse", "HEAD")


def test_what_is_not_there_is_none(repository: Path, tmp_path: Path) -> None:
    assert read_commit(repository, "0" * 40) is None
    assert read_commit(repository, "no such revision") is None
    assert read_commit(tmp_path, "HEAD") is None


def test_nothing_stays_open(repository: Path) -> None:
    read_commit(repository, "HEAD")
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(5):
        read_commit(repository, "HEAD")
    assert (len(os.listdir("/proc/self/fd")) if before else 0) <= before
