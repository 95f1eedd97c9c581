"""Which release of ruff a project names, where it names one.

Owns one invariant: nobody formats a project with another release than its own checks do: what one calls formatted, another may
not. Ruff's own ``required-version`` is its own to enforce.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from coordinator.checks.adapter import TreeFiles
from coordinator.checks.python_pins import PACKAGE_FILES, read_demands

if TYPE_CHECKING:
    from pathlib import Path

_HOOKS: Final = ".pre-commit-config.yaml"
_HOOK: Final = re.compile(r"""/ruff-pre-commit["']?\s*\n\s*rev:\s*["']?v?(\d[\w.]*)""")
_VERSION: Final = re.compile(r"ruff (\d[\w.]*)")


def ruff_pins(tree: Path) -> dict[str, str]:
    """The file that names it, by release: the hooks of pre-commit, requirements, lock files and ``pyproject.toml``."""
    files = [path for pattern in PACKAGE_FILES for path in tree.glob(pattern) if path.is_file()]
    names = {path.relative_to(tree).as_posix() for path in files}
    known = TreeFiles(names=names, root=tree)
    found = {one.version: one.path for one in read_demands(known).pins if one.package == "ruff"}
    return found | dict.fromkeys(_HOOK.findall(known.text(_HOOKS)), _HOOKS)


def wrong_release(tree: Path, said: str) -> str:
    """Why the program that says this of its version is not the project's; empty: it is, or the project names none."""
    pins, found = ruff_pins(tree), _VERSION.search(said)
    here = found[1] if found else "of an unknown release"
    if not pins or here in pins:
        return ""
    named = ", ".join(f"{release} ({file})" for release, file in sorted(pins.items()))
    return f"the project formats with ruff {named} and the one here is {here}"
