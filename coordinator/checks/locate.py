"""Where the program of a discovery tool is.

Owns one invariant: nothing from inside the project is run, neither from its checkout nor from the tree to be scanned, but what
the settings name or allow; the project's virtual environment is taken for its owner's, who made it. What cannot be found is
told with a remedy.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from coordinator.checks.tool import search_path

if TYPE_CHECKING:
    from coordinator.checks.adapter import ToolAdapter
    from coordinator.domain.settings import ToolSettings

_ENVIRONMENTS = (".venv/bin", "venv/bin")
_INSIDE = ("node_modules/.bin", "vendor/bin", "bin")


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """``program`` is None when it cannot be used; then ``reason`` says why and ``remedy`` what to do."""

    program: Path | None = None
    reason: str = ""
    remedy: str = ""


def environments_of(checkout: Path) -> list[Path]:
    """The folders of programs of a project's virtual environments, as far as these are where they usually are."""
    return [checkout / folder for folder in _ENVIRONMENTS]


def locate(tool: ToolAdapter, settings: ToolSettings, checkout: Path, *, python: Path | None = None) -> Located:
    """The path of the settings; else the project's environment's, that on PATH, our own installation's where the tool comes with
    us, and what lies inside the project where the settings allow it. The gate and role ``autofix`` look in the same order: what
    one release of a tool asks for, another may refuse.

    ``python`` is the folder of the project's interpreter, where that is in an environment elsewhere.
    """
    if settings.path:
        path = checkout / Path(settings.path).expanduser()
        if path.is_file() and os.access(path, os.X_OK):
            return Located(program=path)
        reason = f"{path}, the path of {tool.name} in the settings, is no program"
        return Located(reason=reason, remedy="name a program, or take path out")
    first = [*([python] if python else []), *environments_of(checkout)]
    path_names = search_path(checkout, os.environ.get("PATH", os.defpath), first=first)
    found = shutil.which(tool.program, path=path_names)
    if found is not None:
        return Located(program=Path(found))
    inside = _inside(tool.program, checkout)
    if inside is not None and settings.inside:
        return Located(program=inside)
    if inside is not None:
        reason = f"{tool.program} was found inside the project only ({inside.relative_to(checkout)})"
        return Located(reason=reason, remedy="inside = true in its [[discovery.tool]] allows it to be run")
    return Located(reason=f"{tool.program} was not found", remedy=tool.remedy)


def _inside(program: str, checkout: Path) -> Path | None:
    """On PATH by a folder of the project, or where package managers put it."""
    folders = [Path(entry) for entry in os.environ.get("PATH", "").split(os.pathsep) if entry]
    inside = [folder for folder in folders if (checkout / folder).resolve().is_relative_to(checkout.resolve())]
    for folder in (*inside, *(checkout / name for name in _INSIDE)):
        path = checkout / folder / program
        if path.is_file() and os.access(path, os.X_OK):
            return path
    return None
