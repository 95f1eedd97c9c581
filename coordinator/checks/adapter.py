"""What every discovery tool is to us: one ``ToolAdapter``, whatever the tool is called and however it talks.

Owns one invariant: everything that differs between tools is asked of its adapter, so that nothing outside ``checks`` knows
one by name. It runs no schedule and keeps no findings: ``improve.discovery`` does.

To add a tool, write one module with one class and put it into the table of ``checks.adapters`` (and its name into
``domain.discovery_config.DISCOVERY_TOOLS``). What it has to keep:

* ``scan`` decides on what was printed first and on the exit code second: tools exit with 1 for findings *and* for a crash. It
  raises nothing for what the tool or the tree is like. Read and complete → ``SCANNED`` (what is not there any more is
  closed); read but not complete → ``PARTIAL``, or ``SCANNED`` with ``unread`` when the places are known; unreadable, empty,
  killed, too slow → ``broken(...)``; no network, no database, all dependencies skipped → ``unavailable(...)``, which is never
  "clean".
* The tree is only read. What the tool wants to write goes to ``order.scratch`` (removed afterwards) or ``order.cache`` (kept
  for the next scan of this tool, may be lost at any time). Run it with ``order.run``: limits and environment are right there.
* A tool that runs the tree's own code (its tests) may leave anything behind in it: such tools stand last in the table.
* Findings leave through ``domain.finding.identified`` and have paths relative to the tree (``order.relative``). Where the tool
  names the thing itself, ``about`` is that name (``requests|PYSEC-2018-28``), without version, line and file.
* Whatever the report holds, reading it raises nothing but ``UNREADABLE``, which is ``broken(...)``.
* Evidence is read through ``SourceLines`` and texts of a report through ``text_of``: reports, too, are written by others.
* ``reads`` names every file whose change can change the answer, configuration and lock files among them: a scan is left out
  while none of them changed. A tool whose answer also changes with time (an advisory database) has ``stale_after_s``.
* ``accept`` is a shell line that the gate runs on the merged tree: 0 when nothing of the group is left. A tool that can be
  asked for one rule in some files is asked so; any other says ``accept_by_look(group)``.
* ``fixes`` are the kinds of fix that can be applied without a model through ``fix``: ``SAFE`` ones by role ``autofix``,
  ``VERSION`` ones by role ``upgrade``, whose work has to be tested to land. Everything else is for a role with a model.
"""

from __future__ import annotations

import asyncio
import codecs
import os
import re
import shlex
import sys
from dataclasses import dataclass, field
from fnmatch import translate
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from coordinator.checks.tool import ToolRun, run_tool
from coordinator.domain.finding import Fix, ScanReport, ScanStatus

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from coordinator.checks.tool import Surroundings
    from coordinator.domain.settings import ToolSettings
    from coordinator.policy.grouping import TaskGroup

UNREADABLE: Final = (
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What reading a report of any shape may raise: then the report is broken, not we."""

_MARKS: Final = ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_NOT_THE_TREE: Final = frozenset(
    {".coordinator", ".git", ".hg", ".nox", ".tox", ".venv", "__pycache__", "node_modules", "target", "venv"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeFiles:
    """The files of the tree to be scanned, as git lists them: ``names`` relative to ``root``."""

    names: Collection[str]
    root: Path

    def any(self, *globs: str) -> bool:
        """Whether there is a file of such a name (``*.py``) or, with a ``/`` in the glob, of such a path."""
        matches = glob_matcher(globs)
        return any(matches(name) for name in self.names)

    def text(self, name: str, limit_bytes: int = 1024 * 1024) -> str:
        """The beginning of a regular file; empty when there is none."""
        path = self.root / name
        try:
            if path.is_symlink() or not path.is_file():
                return ""
            with path.open("rb") as file:
                return decoded(file.read(limit_bytes))
        except OSError:
            return ""


class SourceLines:
    """Lines of the tree's own files, for evidence: nothing that a report names outside of it, or behind a link, is read."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._files: dict[str, list[str]] = {}

    def at(self, path: str, line: int) -> str:
        """The line (1-based) without its indentation, at most 300 characters; empty when there is none."""
        lines = self._lines(path)
        return lines[line - 1].strip()[:300] if 0 < line <= len(lines) else ""

    def holds(self, path: str, text: str) -> bool:
        """Whether some line of the file has ``text`` in it."""
        return any(text in line for line in self._lines(path))

    def _lines(self, path: str) -> list[str]:
        if path not in self._files:
            self._files[path] = self._read(path)
        return self._files[path]

    def _read(self, path: str) -> list[str]:
        try:
            file = (self._root / path).resolve()
            if not file.is_relative_to(self._root) or not file.is_file():
                return []
            return re.split(r"\r\n|\r|\n", decoded(file.read_bytes()))
        except (OSError, ValueError):  # a NUL in the name
            return []


def decoded(raw: bytes) -> str:
    """The text of a file of the tree: UTF-8, or what the mark at its beginning says (PowerShell writes UTF-16)."""
    encoding = marked_encoding(raw)
    return raw.decode(encoding, errors="replace").removeprefix("\ufeff")


def marked_encoding(raw: bytes) -> str:
    """The mark itself stays a character, so that a text written back has it again."""
    return next((name for mark, name in _MARKS if raw.startswith(mark)), "utf-8")


def text_of(value: object, *, default: str | None = None) -> str:
    """``value`` as a report's text; raises ``TypeError`` for what is none, or takes ``default`` for what is missing."""
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no text")
    return value


def walk_files(root: Path) -> TreeFiles:
    """The files of a folder that is no commit: without what only lies about there."""
    names = []
    for top, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in _NOT_THE_TREE]
        below = os.path.relpath(top, root)
        names += [name if below == "." else f"{below}/{name}".replace(os.sep, "/") for name in files]
    return TreeFiles(names=names, root=root)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanOrder:
    """One scan: ``program`` (found already) on ``tree``. ``select`` is ``[discovery] select``."""

    cache: Path
    program: Path
    scratch: Path
    select: tuple[str, ...] = ()
    settings: ToolSettings
    surroundings: Surroundings
    tree: Path

    def environment(self, **extra: str) -> dict[str, str]:
        """That of the gate's checks, with what ``env`` of its ``[[discovery.tool]]`` lets through."""
        passed = {name: os.environ[name] for name in self.settings.env if name in os.environ}
        return {**self.surroundings.environment(self.tree, self.scratch), **passed, **extra}

    async def run(
        self, words: Sequence[str | Path], *, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> Printed:
        """Run the program with ``words`` and the arguments of the settings (before a ``--``) in the tree."""
        from coordinator.kit.process import Limits  # keeps psutil off the start path

        line = [str(word) for word in words]
        end = line.index("--") if "--" in line else len(line)
        argv = [str(self.program), *line[:end], *self.settings.arguments, *line[end:]]
        settings, number = self.settings, len(list(self.scratch.glob("run-*.out")))
        out, log = self.scratch / f"run-{number}.out", self.scratch / f"run-{number}.log"
        ran = await run_tool(
            argv,
            cwd=cwd or self.tree,
            env=env if env is not None else self.environment(),
            errors=log,
            limits=Limits(
                timeout_s=settings.timeout_s, memory_bytes=settings.memory_bytes, output_bytes=settings.output_bytes
            ),
            log=out,
        )
        return Printed(ran=ran, out=out)

    def relative(self, name: str) -> str:
        """A path as the tool printed it (absolute, ``file://`` taken off, or relative to the tree) relative to the tree."""
        root, path = os.path.realpath(self.tree), name.removeprefix("file://")
        whole = os.path.normpath(os.path.join(root, path))
        if not whole.startswith(root + os.sep):
            whole = os.path.join(os.path.realpath(os.path.dirname(whole)), os.path.basename(whole))
        return Path(os.path.relpath(whole, root) if whole.startswith(root + os.sep) else whole).as_posix()


@dataclass(frozen=True, slots=True, kw_only=True)
class Printed:
    """What one run printed: stdout is in the file ``out``, the end of stderr in ``ran.output``."""

    out: Path
    ran: ToolRun

    async def text(self) -> str:
        raw = await asyncio.to_thread(self.out.read_bytes)
        return raw.decode(errors="replace")


@dataclass(frozen=True, slots=True, kw_only=True)
class FixTask:
    """What ``autofix`` asks of an adapter's ``fix``: the group's ``files``, ``rules`` and ``options`` as its brief names them.

    ``checkout`` is the user's own folder, whose environment may hold the tool.
    ``files`` are relative to the tree and may be gone by now or be links: see ``checks.ruff_fix.is_within``. ``versions`` are,
    by package, those that the findings of the group call mended.
    """

    checkout: Path | None = None
    files: tuple[str, ...]
    options: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    scratch: Path
    tree: Path
    versions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class FixResult:
    """``headline`` and ``done`` (a line each) are the commit's message, ``told`` is what was done in a few words, ``files`` what
    was written. Without files ``nothing`` says why.
    """

    done: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    headline: str = ""
    nothing: str = ""
    told: str = ""


class ToolAdapter(Protocol):
    """One discovery tool.

    ``name`` is its name in settings, findings, task ids and messages; ``program`` what is looked for, ``remedy`` how a
    person gets it. A tool that is ``standard`` is used
    without being named in the settings. ``reads`` are globs of file names (or, with a ``/``, of paths). ``stale_after_s`` is
    after how long an unchanged tree is worth another look; None: never.
    """

    @property
    def fixes(self) -> frozenset[Fix]: ...
    @property
    def name(self) -> str: ...
    @property
    def program(self) -> str: ...
    @property
    def reads(self) -> tuple[str, ...]: ...
    @property
    def remedy(self) -> str: ...
    @property
    def stale_after_s(self) -> float | None: ...
    @property
    def standard(self) -> bool: ...

    def uncalled(self, files: TreeFiles, *, named: bool) -> str:
        """Why this tree does not call for the tool; empty when it does. ``named``: the settings name it."""
        ...

    async def scan(self, order: ScanOrder) -> ScanReport: ...

    def accept(self, group: TaskGroup, options: Sequence[str]) -> str:
        """``options`` are those of the scan's report, ``{rule}`` replaced."""
        ...

    def options_fault(self, options: Sequence[str]) -> str:
        """Why a brief may not ask ``fix`` for these; empty when it may. Briefs come through files that others can write."""
        ...

    async def fix(self, task: FixTask) -> FixResult:
        """Apply the tool's own fix in ``task.tree``; raises ``ToolFailed``. Never called for kinds not in ``fixes``."""
        ...


class FindingTool:
    """The part of an adapter that is the same for every tool which finds and mends nothing."""

    fixes: frozenset[Fix] = frozenset()

    def accept(self, group: TaskGroup, options: Sequence[str]) -> str:
        return accept_by_look(group)

    def options_fault(self, options: Sequence[str]) -> str:
        return f"asks for an option of a tool that has no fixes: {options[0]}" if options else ""

    async def fix(self, task: FixTask) -> FixResult:
        raise NotImplementedError("fixes is empty, so nobody asks")


@lru_cache(maxsize=64)
def glob_matcher(globs: tuple[str, ...]) -> Any:
    """A predicate of paths: any of ``globs`` fits the name, or the whole path when it has a ``/``."""
    names = [translate(glob) for glob in globs if "/" not in glob]
    paths = [translate(glob) for glob in globs if "/" in glob]
    by_name = re.compile("|".join(names) if names else r"(?!)")
    by_path = re.compile("|".join(paths) if paths else r"(?!)")
    return lambda path: bool(by_name.match(path.rpartition("/")[2]) or by_path.match(path))


def broken(tool: str, reason: str, ran: ToolRun | None = None) -> ScanReport:
    """A report of a tool that did not do its work. With ``ran``, whatever cut the run short is the reason before ``reason``."""
    if ran is not None and ran.problem:
        reason = f"{tool} {ran.problem}"
    by, took_s = (ran.broken_by, ran.took_s) if ran is not None else (None, 0.0)
    return ScanReport(tool=tool, status=ScanStatus.BROKEN, broken_by=by, reason=reason[:500], took_s=took_s)


def unavailable(tool: str, reason: str, ran: ToolRun | None = None) -> ScanReport:
    """A report of a tool that is not here, or that lacks what it needs (a network, a database)."""
    took_s = ran.took_s if ran is not None else 0.0
    return ScanReport(tool=tool, status=ScanStatus.UNAVAILABLE, reason=reason[:500], took_s=took_s)


def accept_by_look(group: TaskGroup, options: Iterable[str] = ()) -> str:
    """A line that asks our own adapter about the tree (verb ``look``) and exits 0 when nothing of the group is left in its files
    but what it is to spare.

    ``-P`` and ``-E``: neither the tree nor its ``PYTHONPATH`` gets to say what ``coordinator`` is.
    """
    words = [sys.executable, "-EP", "-m", "coordinator", "look", group.key.tool, *options]
    words += [f"--rule={rule}" for rule in group.rules] + [f"--path={path}" for path in group.files]
    if group.key.mechanical and not group.whole:
        for fix in sorted({finding.fix for finding in group.findings}):
            words.append(f"--fix={fix}")
    words += [f"--spare={finding.kind}" for finding in group.spared]
    return shlex.join(words)
