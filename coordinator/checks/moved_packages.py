"""The Python packages that a change asks for, installed in a folder of their own, so that its tests meet what it moved.

Owns one invariant: where a change moves a requirement or adds one, either the tests import what it asks for, or it is said why
they cannot; what pip refuses to install together is the change's fault only if it installs what stood there before. Nothing is
installed into the project's own environment. Which version to move to is ``pip_upgrade``'s to choose.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from coordinator.checks.adapter import TreeFiles, glob_matcher
from coordinator.checks.inroads import site_folders
from coordinator.checks.python_pins import PACKAGE_FILES, read_demands
from coordinator.checks.tool import ToolRun, exit_words, find_tool, last_line, run_tool
from coordinator.domain.check import CheckOutcome, CheckStatus, Unavailable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from pathlib import Path

    from coordinator.checks.python_pins import Demand
    from coordinator.checks.tool import Surroundings

CHECK: Final = "requirements"
INSTALLED: Final = "site-packages"
"""The name by which ``origins`` knows that what lies below is nobody's source."""
_OPTIONS: Final = ("--quiet", "--disable-pip-version-check", "--no-input", "--prefer-binary")
_REMEDY: Final = 'see that pip can install them here; or let untested work land with [gate] untested = "land"'
NO_TEST: Final = Unavailable(
    check="tests",
    reason="the project has none that could show whether it bears what was moved",
    remedy='add one; or set [gate] untested = "land"',
)
_is_package_file: Final = glob_matcher(PACKAGE_FILES)


@dataclass(frozen=True, slots=True, kw_only=True)
class MovedPackages:
    """``folder`` holds what the change asks for, ``refused`` is pip's word that it cannot be had together, ``missing`` why
    neither is known. All None: nothing was moved."""

    folder: Path | None = None
    missing: Unavailable | None = None
    refused: CheckOutcome | None = None

    def unproven(self, *, tested: bool) -> Iterator[Unavailable]:
        """What keeps the move from being shown to work; ``tested``: the project has tests."""
        if self.missing is not None:
            yield self.missing
        elif self.folder is not None and not tested:
            yield NO_TEST


def requirement_files(changed: Collection[str]) -> list[str]:
    """Those of the changed files that ask for Python packages."""
    return sorted(filter(_is_package_file, changed))


def moved_between(names: Collection[str], target: Path, merged: Path) -> tuple[list[str], list[str]]:
    """What files of these names ask for in both trees, as lines that pip reads; twice nothing when nothing new is asked for.

    Of a lock file only what it moved: the rest may be for other machines.
    """
    old, new = (read_demands(TreeFiles(names=names, root=root)).found for root in (target, merged))
    before = {(one.path, _words(one)) for one in old}
    moved = {(one.path, one.package) for one in new if (one.path, _words(one)) not in before}
    if not moved:
        return [], []
    return _asked(old, moved), _asked(new, moved)


def _asked(demands: Iterable[Demand], moved: Collection[tuple[str, str]]) -> list[str]:
    paths, asked = {path for path, _ in moved}, dict[str, None]()
    for one in demands:
        if one.path in paths and (one.requirement is not None or (one.path, one.package) in moved):
            asked[_words(one)] = None
    return list(asked)


def _words(demand: Demand) -> str:
    return str(demand.requirement) if demand.requirement is not None else f"{demand.package}=={demand.version}"


async def install(before: list[str], after: list[str], surroundings: Surroundings, scratch: Path) -> MovedPackages:
    """Install ``after`` below ``scratch``, an empty folder. Where that fails ``before`` is tried, to know whose fault it is."""
    pip = _installer(surroundings)
    if pip is None:
        reason = f"there is no pip for {surroundings.python}, so that what was moved could not be tested"
        return MovedPackages(
            missing=Unavailable(check=CHECK, reason=reason, remedy=f"{surroundings.python} -m ensurepip")
        )
    ran = await _pip(pip, after, surroundings, scratch, "after")
    if ran.code == 0:
        return MovedPackages(folder=scratch / "after" / INSTALLED)
    old = await _pip(pip, before, surroundings, scratch, "before")
    why = _complaint(ran)
    if ran.broken_by is None and old.code == 0:
        refused = CheckOutcome(
            check=CHECK,
            excerpt=ran.output,
            failures=frozenset({CHECK}),
            reason=f"what is asked for now cannot be installed together: {why}",
            status=CheckStatus.FAILED,
            took_s=ran.took_s,
        )
        return MovedPackages(refused=refused)
    reason = f"what was moved could not be tested: pip {why}" + (
        "" if old.code == 0 else ", nor what stood there before"
    )
    return MovedPackages(missing=Unavailable(check=CHECK, reason=reason, remedy=_REMEDY))


def _installer(surroundings: Surroundings) -> list[str] | None:
    """What installs packages for the project's interpreter: its own pip, uv, or ours."""
    python = str(surroundings.python)
    if any((folder / "pip").is_dir() for folder in site_folders(surroundings.python)):
        return [python, "-m", "pip", "install", *_OPTIONS]
    uv = find_tool("uv", tree=surroundings.checkout) if surroundings.checkout is not None else None
    if uv is not None:
        return [str(uv), "pip", "install", "--quiet", "--python", python]
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip", "--python", python, "install", *_OPTIONS]
    return None


async def _pip(pip: list[str], wanted: list[str], surroundings: Surroundings, scratch: Path, name: str) -> ToolRun:
    file = scratch / f"{name}.txt"
    file.write_text("".join(f"{line}\n" for line in wanted), encoding="utf-8")
    env = surroundings.environment(scratch, scratch)
    del env["PYTHONPATH"]  # pip imports modules of its own
    argv = [*pip, "--target", str(scratch / name / INSTALLED), "-r", str(file)]
    return await run_tool(argv, cwd=scratch, env=env, limits=surroundings.limits(), log=scratch / f"{name}.log")


def _complaint(ran: ToolRun) -> str:
    if ran.broken_by is not None:
        return ran.problem
    lines = [line.strip() for line in ran.output.splitlines()]
    errors = [line for mark in ("ERROR:", "error:", "×") for line in lines if line.startswith(mark)]
    return errors[0][:200] if errors else exit_words(ran) if last_line(ran.output) else f"exited with {ran.code}"
