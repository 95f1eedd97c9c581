"""Repositories with planted findings, each a folder below ``planted/``, and the real tools that are to find them.

A folder has ``planted.toml`` (the tools, the table of what is planted, files to rename), ``tree/`` (the repository) and
``mended/`` (what is written over it so that nothing is left). Names end in ``.planted`` so that no tool takes the planted
faults for this repository's own.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordinator.checks.adapters import ADAPTERS
from coordinator.domain.finding import Severity
from coordinator.domain.settings import ToolSettings
from coordinator.improve import autotask
from tests.checks.eslint_program import install_eslint
from tests.improve.rig import Rig, commit, git

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from coordinator.improve.folding import FoldReport

PLANTED = Path(__file__).parent / "planted"
_SUFFIX = ".planted"
_COMMENTS = {".js": "// moved", ".json": "", ".mjs": "// moved", ".lock": "# moved", ".rs": "// moved"}


@dataclass(frozen=True, kw_only=True, order=True)
class Planted:
    """A line of the table. ``place`` is a path with its line; ``role`` and ``group`` are ``-`` where no task is to be."""

    tool: str
    rule: str
    place: str
    severity: str
    fix: str
    role: str
    group: str


def planted(name: str) -> dict[str, Any]:
    told: dict[str, Any] = tomllib.loads((PLANTED / name / "planted.toml").read_text(encoding="utf-8"))
    head, *lines = (line.split(maxsplit=6) for line in told["findings"].strip().splitlines())
    return {**told, "findings": sorted(Planted(**dict(zip(head, line, strict=True))) for line in lines)}


def overlay(name: str, part: str) -> dict[str, str]:
    top = PLANTED / name / part
    paths = [path for path in sorted(top.rglob("*")) if path.is_file()]
    return {path.relative_to(top).as_posix().removesuffix(_SUFFIX): path.read_text(encoding="utf-8") for path in paths}


class Fixture:
    """A repository of one folder with a discovery on it. Each tool is run by a link, so that it can be taken away."""

    def __init__(self, name: str, repository: Path, *, settings: Mapping[str, ToolSettings]) -> None:
        told = planted(name)
        self.name, self.repository = name, repository
        self.tools: Sequence[str] = told["tools"]
        self.findings: list[Planted] = told["findings"]
        self.renamed: dict[str, str] = told["renamed"]
        self.links = repository.parent / "bin"
        self.links.mkdir()
        self._real = {tool: _program(tool, repository.parent) for tool in self.tools}
        for tool in self.tools:
            self.give_back(tool)
        chosen = [settings.get(tool, ToolSettings(name=tool)) for tool in self.tools]
        tables = tuple(replace(one, path=str(self.links / one.name)) for one in chosen)
        git(repository, "rm", "--quiet", "-r", ".")
        commit(repository, dict(overlay(name, "tree")))
        self.rig = Rig(
            repository,
            max_open=100,
            max_open_per_tool=100,
            model_severity="info",
            role="mender",
            tool=tables,
            tools=tuple(self.tools),
        )

    async def scan(self, **how: Any) -> dict[str, FoldReport]:
        return {report.tool: report for report in await self.rig.discovery.scan(write=True, **how)}

    def found(self) -> list[Planted]:
        """What discovery knows, as lines of the table."""
        tasks = self.tasks()
        return sorted(self._told(row, tasks) for row in self.rig.rows())

    def _told(self, row: Mapping[str, Any], tasks: Mapping[str, tuple[str, str]]) -> Planted:
        role, group = tasks.get(row["task"], ("-", "-"))
        place = f"{row['path']}:{row['line']}" if row["line"] else row["path"]
        severity = Severity(row["severity"]).name.lower()
        told = {name: row[name] for name in ("tool", "rule", "fix")}
        return Planted(**told, place=place, severity=severity, role=role, group=group)

    def tasks(self) -> dict[str, tuple[str, str]]:
        """Role and group of every task file, by id."""
        told = {}
        for task_id, text in self.rig.files().items():
            task = autotask.read(text, task_id)
            assert task is not None
            (table,) = tomllib.loads(text)["tasks"]
            told[task_id] = (table["role"], f"{task.key.subject} in {task.key.scope or '.'}")
        assert len(set(told.values())) == len(told), "two tasks for one group"
        return told

    def world(self) -> object:
        """All that is remembered but the time of the last look, and the task files as they lie there."""
        rows = [{**row, "last_seen": ""} for row in self.rig.rows()]
        stamps = [(path.name, path.stat().st_mtime_ns, path.stat().st_ino) for path in sorted(self.rig.auto.glob("*"))]
        return rows, stamps

    def marks(self) -> dict[str, str]:
        return {str(row["fingerprint"]): str(row["state"]) for row in self.rig.rows()}

    def edit(self, change: Callable[[str, str], str]) -> None:
        names = git(self.repository, "ls-files").splitlines()
        texts = {name: (self.repository / name).read_text(encoding="utf-8") for name in names}
        commit(self.repository, {name: change(name, text) for name, text in texts.items()})

    def mend(self) -> None:
        commit(self.repository, dict(overlay(self.name, "mended")))

    def take_away(self, tool: str) -> None:
        (self.links / tool).unlink()

    def give_back(self, tool: str) -> None:
        link = self.links / tool
        link.unlink(missing_ok=True)
        if tool.startswith("cargo-"):  # rustup's cargo looks what it is called by
            link.write_text(f'#!/bin/sh\nexec {self._real[tool]} "$@"\n')
            link.chmod(0o755)
        else:
            link.symlink_to(self._real[tool])

    def shuffle(self, tool: str, seed: int) -> None:
        """From now on the tool says what it says in another order."""
        link = self.links / tool
        link.unlink()
        module = Path(__file__).with_name("shuffled.py")
        words = json.dumps([str(self._real[tool]), seed])
        link.write_text(f"#!{sys.executable}\nimport sys\nsys.argv[1:1] = {words}\n{module.read_text()}")
        link.chmod(0o755)


def shifted(name: str, text: str) -> str:
    return f"{_COMMENTS.get(Path(name).suffix, '# moved')}\n{text}"


def _program(tool: str, folder: Path) -> Path:
    if tool == "eslint":
        return install_eslint(folder / "eslint")
    own = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    found = shutil.which(ADAPTERS[tool].program, path=own)
    assert found, f"{tool} is not here"
    return Path(found)
