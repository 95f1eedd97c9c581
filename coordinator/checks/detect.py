"""Which checks a project calls for, and which of them can run here.

Owns one invariant: what the project calls for and cannot be run is named with a remedy, never left out in silence. It
looks at files only; nothing of the project is executed to find out.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Protocol

from coordinator.checks.inroads import find_inroads, site_folders
from coordinator.checks.pytest import PytestCheck
from coordinator.checks.ruff import RuffCheck
from coordinator.checks.shell import ShellCheck
from coordinator.checks.tool import Surroundings, file_identity, find_tool
from coordinator.domain.check import CheckOutcome, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from coordinator.domain.settings import GateSettings

_NOT_OURS: Final = frozenset({".git", ".hg", ".tox", ".nox", ".venv", "venv", "node_modules", "target", "__pycache__"})
_PYTHON_TEST: Final = re.compile(r"test_.*\.py|.*_test\.py")
_PROGRAM_TEST: Final = MappingProxyType(
    {"cargo": (re.compile(r".*\.rs"), b"#[test]"), "go": (re.compile(r".*_test\.go"), b"func Test")}
)
"""Files that hold tests, and what stands in them: a manifest alone calls for no test."""
_TEXT_BYTES: Final = 1024 * 1024


class Check(Protocol):
    """One thing to ask of a tree.

    ``key`` identifies tool, version and surroundings: equal keys and equal trees give equal outcomes. A check that is not
    ``required`` is our own offer, not the project's demand: when it cannot look at the target it is set aside and named.
    ``tests`` tells whether it runs the project's tests, so that without it a change is untested.
    ``run`` may write below ``scratch`` (an empty folder) and must leave nothing running; it raises only ``OSError``.
    """

    @property
    def key(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def required(self) -> bool: ...
    @property
    def tests(self) -> bool: ...
    async def run(self, tree: Path, scratch: Path) -> CheckOutcome: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class GatePlan:
    """The checks to run, and those that the project calls for but that cannot run here.

    ``surroundings`` is what ``accept`` commands run in as well.
    """

    checks: tuple[Check, ...] = ()
    surroundings: Surroundings
    unavailable: tuple[Unavailable, ...] = ()

    @property
    def has_tests(self) -> bool:
        """Whether the project has any, runnable here or not; ``[gate] commands`` count as what its owner calls tests."""
        return any(check.tests for check in self.checks) or any(one.tests for one in self.unavailable)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Interpreter:
    """``own`` means the coordinator's own, for want of one of the project's."""

    own: bool
    path: Path

    @property
    def has_pytest(self) -> bool:
        if self.own:
            return importlib.util.find_spec("pytest") is not None
        folders = site_folders(self.path)
        # Without folders to look into (a system's interpreter) the run itself has to tell.
        return not folders or any((folder / "pytest").is_dir() for folder in folders)

    @property
    def identity(self) -> str:
        """Changes when the interpreter or what is installed for it changes."""
        return " ".join([file_identity(self.path), *(file_identity(folder) for folder in site_folders(self.path))])


def detect(tree: Path, checkout: Path, gate: GateSettings, packages: Path | None = None) -> GatePlan:
    """The plan for ``tree``. ``checkout`` is the user's own folder, where the project's environment is looked for; ``packages``
    go before what is installed there."""
    python = _interpreter(checkout, gate)
    surroundings = replace(_surroundings(checkout, gate, python), packages=packages)
    inroads = surroundings.inroads
    if gate.commands:
        identity = f"{python.identity} {','.join(sorted(gate.env))}{inroads.identity}"
        commands = [ShellCheck(line, surroundings=surroundings, identity=identity) for line in gate.commands]
        return GatePlan(checks=tuple(commands), surroundings=surroundings)
    checks: list[Check] = []
    unavailable: list[Unavailable] = []
    for found in (
        _ruff(tree, gate, surroundings.first),
        _pytest(tree, python, surroundings),
        _program(tree, "Cargo.toml", "cargo", "test --workspace --no-fail-fast", surroundings),
        _program(tree, "go.mod", "go", "test ./...", surroundings),
        _npm(tree),
    ):
        if isinstance(found, Unavailable):
            unavailable.append(found)
        elif found is not None:
            checks.append(found)
    return GatePlan(checks=tuple(checks), surroundings=surroundings, unavailable=tuple(unavailable))


def surroundings_of(checkout: Path, gate: GateSettings) -> Surroundings:
    """What programs that look at the project run in: its own Python environment, when there is one, comes first."""
    return _surroundings(checkout, gate, _interpreter(checkout, gate))


def _surroundings(checkout: Path, gate: GateSettings, python: _Interpreter) -> Surroundings:
    first = () if python.own else (python.path.parent,)
    inroads = find_inroads(python.path, checkout)
    return Surroundings(
        checkout=checkout,
        first=first,
        gate=gate,
        identity=python.identity,
        inroads=inroads,
        python=python.path,
    )


def _ruff(tree: Path, gate: GateSettings, first: Sequence[Path]) -> Check | Unavailable | None:
    if not _has_file(tree, re.compile(r".*\.pyi?")):
        return None
    ruff = find_tool("ruff", tree=tree, first=first)
    if ruff is None:
        return Unavailable(check="ruff", reason="ruff was not found", remedy="pip install ruff", tests=False)
    return RuffCheck(ruff=ruff, timeout_s=gate.timeout_s, identity=file_identity)


def _pytest(tree: Path, python: _Interpreter, surroundings: Surroundings) -> Check | Unavailable | None:
    if not _has_file(tree, _PYTHON_TEST):
        return None
    if not python.has_pytest:
        where = "the coordinator's own Python" if python.own else str(python.path)
        remedy = (
            "make a .venv with the project's requirements and pytest, or name one in [gate] python"
            if python.own
            else f"{python.path} -m pip install pytest"
        )
        return Unavailable(check="pytest", reason=f"pytest is not installed for {where}", remedy=remedy)
    identity = f"{python.identity} {','.join(sorted(surroundings.gate.env))}{surroundings.inroads.identity}"
    return PytestCheck(python=python.path, identity=identity, required=not python.own, surroundings=surroundings)


def _program(
    tree: Path, marker: str, program: str, arguments: str, surroundings: Surroundings
) -> Check | Unavailable | None:
    """A tool's own test run. Cargo gets a build folder per run: a shared one gives another tree's diagnostics."""
    if not (tree / marker).is_file():
        return None
    name = f"{program} {arguments.split()[0]}"
    found = find_tool(program, tree=tree)
    if found is None:
        return Unavailable(
            check=name,
            reason=f"{program} was not found",
            remedy=f"install {program} and put it on PATH",
            tests=_has_text(tree, *_PROGRAM_TEST[program]),
        )
    env = {"CARGO_TARGET_DIR": "{scratch}/target"} if program == "cargo" else {}
    command = f"{program} {arguments}"
    return ShellCheck(command, surroundings=surroundings, identity=file_identity(found), env=env)


def _npm(tree: Path) -> Unavailable | None:
    try:
        scripts = json.loads((tree / "package.json").read_bytes()).get("scripts", {})
        test = scripts.get("test", "")
    except (OSError, ValueError, AttributeError):
        return None
    if not test or "no test specified" in test:
        return None
    return Unavailable(
        check="npm test",
        reason="its node_modules are not in a clean working tree",
        remedy='set [gate] commands = ["npm ci && npm test"], which installs them for each run',
    )


def _interpreter(checkout: Path, gate: GateSettings) -> _Interpreter:
    if gate.python and os.sep not in gate.python:
        return _Interpreter(own=False, path=find_tool(gate.python, tree=checkout) or Path(gate.python))
    if gate.python:
        return _Interpreter(own=False, path=checkout / Path(gate.python).expanduser())
    for folder in (".venv", "venv"):
        path = checkout / folder / "bin" / "python"
        if path.is_file():
            return _Interpreter(own=False, path=path)
    return _Interpreter(own=True, path=Path(sys.executable).absolute())


def _has_file(tree: Path, pattern: re.Pattern[str]) -> bool:
    return any(True for _ in _files(tree, pattern))


def _has_text(tree: Path, pattern: re.Pattern[str], text: bytes) -> bool:
    for path in _files(tree, pattern):
        try:
            with path.open("rb") as file:
                if text in file.read(_TEXT_BYTES):
                    return True
        except OSError:
            continue
    return False


def _files(tree: Path, pattern: re.Pattern[str]) -> Iterator[Path]:
    for top, folders, files in os.walk(tree):
        folders[:] = [name for name in folders if name not in _NOT_OURS]
        yield from (Path(top, name) for name in files if pattern.fullmatch(name))
