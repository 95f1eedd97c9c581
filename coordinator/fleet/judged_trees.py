"""Clean clones of the two trees that a judgement compares, and what to run a check with on each.

Owns one invariant: nobody is given a tree in which something ran, unless he ran it; all of them go away with their folder.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from coordinator.checks.detect import Check
    from coordinator.kit.git import Git


class JudgedTrees:
    """Each is made when first asked for, all below one folder. ``instead`` are, by name, the checks to be run on the merged
    tree: with the packages that the change asks for."""

    def __init__(self, git: Git, folder: Path, *, target: str, merged: str) -> None:
        self._commits = {"target": target, "merged": merged}
        self._counter = itertools.count(1)
        self._folder = folder
        self._git = git
        self._made: dict[str, Path] = {}
        self.instead: Mapping[str, Check] = {}

    async def target(self) -> Path:
        return await self._get("target")

    async def merged(self) -> Path:
        return await self._get("merged")

    def forget(self) -> None:
        """What ran in the trees may have changed them: the next who asks gets new ones."""
        self._made.clear()

    def check_for(self, check: Check, tree: Path) -> Check:
        return self.instead.get(check.name, check) if tree == self._made.get("merged") else check

    def scratch(self) -> Path:
        folder = self._folder / f"run-{next(self._counter)}"
        folder.mkdir()
        return folder

    async def _get(self, which: str) -> Path:
        if which not in self._made:
            path = self._folder / f"{which}-{next(self._counter)}"
            await self._git.export_tree(self._commits[which], path)
            self._made[which] = path
        return self._made[which]
