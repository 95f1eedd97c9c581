"""Finished work without agents: commits made straight in the repository, as a snapshot of an attempt would be."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from coordinator.domain.candidate import Candidate
from coordinator.domain.task import Task

if TYPE_CHECKING:
    from collections.abc import Mapping


def work(repository: Path, base: str, files: Mapping[str, str | None]) -> str:
    """A commit upon ``base`` with these files changed (None: deleted); no branch and no checkout is touched."""
    with tempfile.TemporaryDirectory() as folder:
        who = {f"GIT_{role}_{key}": "x@y" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
        env = {**os.environ, **who, "GIT_INDEX_FILE": str(Path(folder, "index"))}

        def git(*arguments: str, stdin: str = "") -> str:
            argv = ["git", "-C", str(repository), *arguments]
            return subprocess.run(argv, input=stdin, env=env, check=True, capture_output=True, text=True).stdout.strip()

        git("read-tree", base)
        for name, text in files.items():
            if text is None:
                git("update-index", "--force-remove", name)
            else:
                blob = git("hash-object", "-w", "--stdin", stdin=text)
                git("update-index", "--add", "--cacheinfo", f"100644,{blob},{name}")
        return git("commit-tree", git("write-tree"), "-p", base, "-m", "snapshot")


def candidate(
    repository: Path,
    base: str,
    files: Mapping[str, str | None],
    *,
    task: str = "one",
    accept: tuple[str, ...] = (),
    generation: int = 1,
    message: str = "",
    paths: tuple[str, ...] = (),
    role: str = "",
) -> Candidate:
    """A candidate whose attempt started at ``base`` and left ``files`` changed."""
    return Candidate(
        agent="agent-1",
        base=base,
        commit=work(repository, base, files),
        generation=generation,
        message=message,
        task=Task(id=task, prompt=f"do {task}", accept=accept, paths=paths, role=role, title=f"Do {task}"),
    )
